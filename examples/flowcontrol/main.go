// Flowcontrol serves any path on :8080 through a queue of ten. A request waits for a
// worker, of which there is one by default, and gets its own response. When the queue is
// full, the request that has waited longest is refused, and the newest takes its place.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"holdfast"
)

const drain = 30 * time.Second // time to finish the queue after a signal

func main() {
	addr := flag.String("addr", ":8080", "where to listen")
	workers := flag.Int("workers", 1, "number of requests processed at once, 1 to 1000")
	work := flag.Duration("work", 500*time.Millisecond, "how long the work of a request takes")
	flag.Parse()
	if *workers < 1 || *workers > 1000 {
		fmt.Fprintf(os.Stderr, "flowcontrol: -workers is %d; want 1 to 1000\n", *workers)
		os.Exit(2)
	}
	if *work < 0 {
		fmt.Fprintf(os.Stderr, "flowcontrol: -work is %v; want 0 or more\n", *work)
		os.Exit(2)
	}
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "flowcontrol: argument %q; want flags only\n", flag.Arg(0))
		os.Exit(2)
	}
	signal.Ignore(syscall.SIGPIPE) // else a log whose reader has gone ends the program, with what is queued
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // which nohup does
		signals = append(signals, syscall.SIGHUP)
	}
	ctx, restore := signal.NotifyContext(context.Background(), signals...)
	// A second signal ends the program at once, but a hangup often comes twice.
	context.AfterFunc(ctx, func() { signal.Ignore(syscall.SIGHUP); restore() })
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{ReplaceAttr: short}))
	if err := run(ctx, *addr, *workers, *work, log); err != nil {
		log.Error(err.Error())
		os.Exit(1)
	}
}

// short cuts what a client can make long.
func short(_ []string, a slog.Attr) slog.Attr {
	if text := a.Value.String(); a.Value.Kind() == slog.KindString && len(text) > 200 {
		a.Value = slog.StringValue(text[:200] + "…")
	}
	return a
}

// run serves until ctx ends, then finishes the queued requests.
func run(ctx context.Context, addr string, workers int, work time.Duration, log *slog.Logger) error {
	h, d, err := handler(workers, work, log)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler:      h,
		ReadTimeout:  10 * time.Second,
		WriteTimeout: 10 * time.Second, // the time in the queue does not count
		IdleTimeout:  time.Minute,
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	log.Info("listening", "addr", l.Addr().String(), "workers", workers)

	var serving error
	select {
	case serving = <-failed:
	case <-ctx.Done():
	}
	limit, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	// The dispatcher first, with the listener open: new requests get 503, and waiting
	// ones get their responses.
	report, err := d.Shutdown(limit)
	log.Info("stopped", "finished", report.Finished, "cut_off", report.Running, "never_started", len(report.NeverStarted))
	return errors.Join(serving, err, server.Shutdown(limit))
}

// handler returns a handler that works for the given time, behind a queue of ten.
func handler(workers int, work time.Duration, log *slog.Logger) (http.Handler, *holdfast.Dispatcher, error) {
	d, err := holdfast.New(holdfast.Config{Workers: workers, Queue: 10, Overflow: holdfast.DropOldest, Logger: log})
	if err != nil {
		return nil, nil, err
	}
	// Here the overflow policy alone decides who is refused, as in the source.
	jobs, err := holdfast.NewJobs(d, holdfast.JobsConfig{Patience: -1})
	if err != nil {
		return nil, nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("/", numbered(log, jobs.Queued(worker(work, log))))
	mux.Handle("/jobs/", jobs) // for clients that send Prefer: respond-async
	return mux, d, nil
}

// arrivalKey is the context key for a request's arrival.
type arrivalKey struct{}

type arrival struct {
	number int64
	at     time.Time
}

// numbered numbers requests in order of arrival, and logs those whose client
// disconnects.
func numbered(log *slog.Logger, next http.Handler) http.Handler {
	var last atomic.Int64
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := arrival{last.Add(1), time.Now()}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), arrivalKey{}, a)))
		if r.Context().Err() != nil {
			log.Info("client left", "number", a.number, "path", r.URL.Path)
		}
	})
}

// worker returns an ordinary handler. It does not know about the queue, and does not
// check whether its client is still there.
func worker(work time.Duration, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := r.Context().Value(arrivalKey{}).(arrival)
		waited := time.Since(a.at).Round(time.Millisecond)
		log.Info("begins", "number", a.number, "path", r.URL.Path)
		time.Sleep(work)
		fmt.Fprintf(w, "request %d, %s %s: waited %v, worked %v\n", a.number, r.Method, r.URL.Path, waited, work)
	})
}
