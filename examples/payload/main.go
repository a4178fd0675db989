// Payload accepts collections of payloads over HTTP and uploads each payload to a store.
// Payloads that arrive faster than the store can take them wait in a bounded queue.
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/net/netutil"
	"holdfast"
	"holdfast/examples/payload/store"
)

const (
	maxConns = 1000             // open at once; further ones wait to be accepted
	maxBody  = 1 << 20          // bytes in a request
	maxItems = 1000             // payloads in a request
	attempts = 3                // to store a payload
	timeout  = 10 * time.Second // for an attempt; also to read a request, and to write its answer
)

func main() {
	addr := flag.String("addr", ":8099", "listen on `host:port`")
	folder := flag.String("folder", "payloads", "store payloads in files below `path`")
	s3 := flag.String("s3", "", "store them as objects in the bucket at `URL` instead, http(s)://host[:port]/bucket; credentials come from the environment")
	drain := flag.Duration("drain", 30*time.Second, "after a signal, wait at most this long for accepted payloads to be stored")
	flag.Parse()
	if err := run(*addr, *folder, *s3, *drain); err != nil {
		slog.Error(err.Error())
		os.Exit(1)
	}
}

func run(addr, folder, s3 string, drain time.Duration) error {
	signal.Ignore(syscall.SIGPIPE) // else a log whose reader has gone ends the program, with what is queued
	ctx, restore := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	workers, errWorkers := env("MAX_WORKERS", "100", 1_000_000)
	queue, errQueue := env("MAX_QUEUE", "200", 10_000_000)
	pool, errPool := holdfast.New(holdfast.Config{Workers: workers, Queue: queue})
	to, errStore := store.Open(ctx, folder, s3)
	l, errListen := net.Listen("tcp", addr)
	if err := errors.Join(errWorkers, errQueue, errPool, errStore, errListen); err != nil {
		return err
	}
	slog.Info("payload", "addr", l.Addr().String(), "workers", workers, "queue", queue)
	mux := http.NewServeMux()
	mux.Handle("POST /payload", &handler{pool, to})
	server := http.Server{Handler: mux, ReadTimeout: timeout, WriteTimeout: timeout, IdleTimeout: time.Minute}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(netutil.LimitListener(l, maxConns)) }()
	select {
	case errListen = <-failed:
	case <-ctx.Done():
	}
	restore() // another signal ends the process at once
	late, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	errServer := server.Shutdown(late) // first: requests that wait for a place get one as the queue drains
	_, errPool = pool.Shutdown(late)
	s := pool.Stats()
	slog.Info("stopped", "accepted", s.Accepted, "stored", s.Succeeded)
	if lost := s.Accepted - s.Succeeded; lost > 0 {
		return errors.Join(fmt.Errorf("%d accepted payloads are lost, or may not be stored", lost), errListen, errServer, errPool)
	}
	return errListen
}

// env returns a number from the environment, or byDefault if the variable is empty.
func env(name, byDefault string, most int) (int, error) {
	text := cmp.Or(os.Getenv(name), byDefault)
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > most {
		return 0, fmt.Errorf("%s is %q; want a number from 1 to %d", name, text, most)
	}
	return n, nil
}

type handler struct {
	pool *holdfast.Dispatcher
	to   store.Store
}

// ServeHTTP answers 202 when all payloads are accepted. While the queue is full, it waits.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		answer(w, http.StatusRequestEntityTooLarge, 0, fmt.Sprintf("the body is too large; want at most %d bytes", maxBody))
		return
	}
	var collection struct { // version and token are ignored
		Data []json.RawMessage
	}
	if err != nil || json.Unmarshal(body, &collection) != nil || len(collection.Data) == 0 || len(collection.Data) > maxItems {
		answer(w, http.StatusBadRequest, 0, fmt.Sprintf(`the body is invalid; want {"version":"…","token":"…","data":[…]} with 1 to %d payloads of any kind`, maxItems))
		return
	}
	for i, data := range collection.Data {
		if err := h.pool.Go(r.Context(), h.upload(data)); err != nil {
			answer(w, http.StatusServiceUnavailable, i, "the server is shutting down; it accepted only the first payloads, as many as accepted says")
			return
		}
	}
	answer(w, http.StatusAccepted, len(collection.Data), "")
}

// upload returns a payload's job. It keeps its worker while it retries, which slows
// everything down to what the store can take.
func (h *handler) upload(data []byte) func(context.Context) error {
	return func(ctx context.Context) (err error) {
		name := rand.Text() // the same for each attempt: a failed one may have stored it
		for n := range attempts {
			time.Sleep(time.Duration(n*n) * 100 * time.Millisecond)
			limited, cancel := context.WithTimeout(ctx, timeout)
			err = h.to.Put(limited, name, data)
			cancel()
			if err == nil {
				return nil
			}
		}
		slog.Error("payload lost", "name", name, "bytes", len(data), "error", err)
		return err
	}
}

// answer reports how many payloads were accepted, and what was wrong if not all were.
func answer(w http.ResponseWriter, status, accepted int, wrong string) {
	body := map[string]any{"accepted": accepted}
	w.Header().Set("Content-Type", "application/json")
	if wrong != "" {
		w.Header().Set("Content-Type", "application/problem+json")
		body["title"], body["status"], body["detail"] = http.StatusText(status), status, wrong
	}
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(timeout)) // the wait for the queue does not count
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(body)
}
