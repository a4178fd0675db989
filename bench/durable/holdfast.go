package main

import (
	"cmp"
	"context"
	"io"
	"net/http"
	"path/filepath"

	"holdfast"
	"holdfast/durable"
)

// openHoldfast serves what users of package durable write: their handler, wrapped.
func openHoldfast(ctx context.Context, dir string, workers int) (*service, error) {
	queue := places
	if workers == 0 {
		queue = 1_000_000 // more than are accepted in one measurement, since none leaves
	}
	d, err := holdfast.New(holdfast.Config{Workers: workers, Queue: queue})
	if err != nil {
		return nil, err
	}
	work := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, outcome) })
	jobs, err := durable.Open(ctx, durable.Config{Dir: filepath.Join(dir, "log"), Dispatcher: d, Handler: work})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("POST /work", jobs.Async(work))
	mux.Handle("/jobs/", jobs)
	return &service{mux, func(ctx context.Context) error {
		// Jobs that wait need not run: what a shutdown cuts off is not lost.
		ended, cancel := context.WithCancel(ctx)
		cancel()
		d.Shutdown(ended)
		return cmp.Or(jobs.Close(ctx), ctx.Err())
	}}, nil
}
