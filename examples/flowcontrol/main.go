// Flowcontrol serves any path on :8080 through a queue of ten: a request waits for a
// worker, of which there is one unless told otherwise, and then gets its own response.
// When the queue is full, the request that has waited longest is told so, and a newer
// one has its place.
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

const drain = 30 * time.Second // for what is queued when the program is told to stop

func main() {
	addr := flag.String("addr", ":8080", "where to listen")
	workers := flag.Int("workers", 1, "requests that are worked on at once, 1 to 1000")
	work := flag.Duration("work", 500*time.Millisecond, "how long a request takes")
	flag.Parse()
	if *workers < 1 || *workers > 1000 {
		fmt.Fprintf(os.Stderr, "flowcontrol: -workers is %d; want 1 to 1000\n", *workers)
		os.Exit(2)
	}
	if *work < 0 || flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "flowcontrol: -work is %v, and behind the flags is %q; want 0 or more, and nothing\n", *work, flag.Args())
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

// run serves until ctx ends, then finishes what is queued.
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
		WriteTimeout: 10 * time.Second, // to take the response; the time in the queue does not count
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
	// The dispatcher first, with the listener open: who comes now is told that the
	// server is shutting down, and who waits gets a response.
	report, err := d.Shutdown(limit)
	log.Info("stopped", "finished", report.Finished, "cut_off", report.Running, "never_started", len(report.NeverStarted))
	return errors.Join(serving, err, server.Shutdown(limit))
}

// handler returns what is served: work, that takes as long as it is told, behind a
// queue of ten.
func handler(workers int, work time.Duration, log *slog.Logger) (http.Handler, *holdfast.Dispatcher, error) {
	d, err := holdfast.New(holdfast.Config{Workers: workers, Queue: 10, Overflow: holdfast.DropOldest, Logger: log})
	if err != nil {
		return nil, nil, err
	}
	jobs := holdfast.NewJobs(d, holdfast.JobsConfig{})
	mux := http.NewServeMux()
	mux.Handle("/", numbered(log, jobs.Queued(worker(work, log))))
	mux.Handle("/jobs/", jobs) // for who prefers not to wait: Prefer: respond-async
	return mux, d, nil
}

// arrived is the key under which a request's context has its arrival.
type arrived struct{}

type arrival struct {
	number int64
	at     time.Time
}

// numbered numbers requests in the order in which they come, and logs those whose
// clients leave.
func numbered(log *slog.Logger, next http.Handler) http.Handler {
	var last atomic.Int64
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := arrival{last.Add(1), time.Now()}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), arrived{}, a)))
		if r.Context().Err() != nil {
			log.Info("client left", "number", a.number, "path", r.URL.Path)
		}
	})
}

// worker is a handler as it may be found anywhere; of the queue it knows nothing, and it
// does not look whether its client is still there.
func worker(work time.Duration, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := r.Context().Value(arrived{}).(arrival)
		waited := time.Since(a.at).Round(time.Millisecond)
		log.Info("begins", "number", a.number, "path", r.URL.Path)
		time.Sleep(work)
		fmt.Fprintf(w, "request %d, %s %s: waited %v, worked %v\n", a.number, r.Method, r.URL.Path, waited, work)
	})
}
