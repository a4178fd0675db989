// Flashsale sells 20 items to any number of buyers, who wait in a queue of a hundred.
// /ping buys one, /add adds 20, /cache shows the counters.
//
// Read main.go for the wiring and the stop, shop.go for a buyer's way through the queue,
// and stock.go for the items, in memory or in Redis.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"log"
	"net"
	"net/http"
	"os/signal"
	"syscall"
	"time"

	"holdfast"
	"holdfast/admin"
)

const (
	places      = 100              // for buyers who wait
	patience    = time.Minute      // for those who wait when the program is stopped
	adminListen = "127.0.0.1:8081" // the page asks for no password, so only this machine may reach it
	sending     = 10 * time.Second // for a client to send its request
)

// options is what the flags say.
type options struct {
	addr, admin, redis string
	workers            int
	work               time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.addr, "addr", ":8080", "where to listen for buyers")
	flag.StringVar(&o.admin, "admin", adminListen, "where the admin dashboard listens; it asks for no password")
	flag.StringVar(&o.redis, "redis", "", "address of a Redis server for the stock; if empty, it is kept in memory")
	flag.IntVar(&o.workers, "workers", 1, "number of buyers served at once; 0 pauses")
	flag.DurationVar(&o.work, "work", 500*time.Millisecond, "how long it takes to serve a buyer")
	flag.Parse()

	signal.Ignore(syscall.SIGPIPE) // else a log whose reader has gone ends the program, with what is queued
	ctx, restore := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, restore) // a second signal ends the program at once
	if err := run(ctx, o); err != nil {
		log.Fatal(err)
	}
}

// run sells until ctx ends, then serves the buyers who wait.
func run(ctx context.Context, o options) error {
	queue, err := holdfast.New(holdfast.Config{Workers: o.workers, Queue: places, Overflow: holdfast.Reject})
	if err != nil {
		return err
	}
	items := memory()
	if o.redis != "" {
		if items, err = shared(o.redis); err != nil {
			return err
		}
	}
	buyers, err := net.Listen("tcp", o.addr)
	if err != nil {
		return err
	}
	operators, err := net.Listen("tcp", cmp.Or(o.admin, adminListen))
	if err != nil {
		return err
	}
	log.Printf("listening on %v for buyers, on %v for the operator", buyers.Addr(), operators.Addr())

	public := &http.Server{Handler: shop{queue, items, o.work}, ReadTimeout: sending}
	dashboard := admin.New(admin.Config{Dispatcher: queue})
	go dashboard.Run(ctx)
	failed := make(chan error, 2)
	go func() { failed <- public.Serve(buyers) }()
	go func() { failed <- http.Serve(operators, dashboard) }()

	var serving error
	select {
	case serving = <-failed:
	case <-ctx.Done():
	}
	return errors.Join(serving, stop(queue, public, items))
}

// stop serves the buyers who wait, and logs what was sold.
func stop(queue *holdfast.Dispatcher, public *http.Server, items stock) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	// The queue first, while the listener is open: who waits gets an answer, who comes
	// is refused.
	report, err := queue.Shutdown(ctx)
	err = errors.Join(err, public.Shutdown(ctx))
	counters, unread := read(items)
	log.Printf("stopped: %d cut off, %d never started, %v", report.Running, len(report.NeverStarted), counters)
	return errors.Join(err, unread)
}
