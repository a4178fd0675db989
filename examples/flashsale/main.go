// Flashsale sells 20 items: /ping buys one, /add adds 20, /cache shows the counters.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"log"
	"net"
	"net/http"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
	"holdfast"
	"holdfast/admin"
)

func main() {
	addr := flag.String("addr", ":8080", "where to listen")
	control := flag.String("admin", "127.0.0.1:8081", "where the admin dashboard listens; it asks for no password")
	server := flag.String("redis", "", "address of a Redis server for the stock; if empty, it is kept in memory")
	workers := flag.Int("workers", 1, "number of buyers served at once; 0 pauses")
	work := flag.Duration("work", 500*time.Millisecond, "how long it takes to serve a buyer")
	flag.Parse()
	queue, err := holdfast.New(holdfast.Config{Workers: *workers, Queue: 100, Overflow: holdfast.Reject})
	items := memory()
	if err == nil && *server != "" {
		items, err = shared(*server)
	}
	front, errFront := net.Listen("tcp", *addr)
	back, errBack := net.Listen("tcp", cmp.Or(*control, "127.0.0.1:8081"))
	if err = errors.Join(err, errFront, errBack); err != nil {
		log.Fatal(err)
	}
	signal.Ignore(syscall.SIGPIPE) // else a log whose reader has gone ends the program, with what is queued
	log.Printf("listening on %v for buyers, on %v for the operator", front.Addr(), back.Addr())
	ctx, restore := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	operator := admin.New(admin.Config{Dispatcher: queue})
	public := &http.Server{Handler: shop{queue, items, *work}, ReadTimeout: 10 * time.Second}
	ended := make(chan error, 3)
	go func() { ended <- http.Serve(back, operator) }()
	go func() { go operator.Run(ctx); ended <- public.Serve(front) }()
	context.AfterFunc(ctx, func() { restore(); ended <- nil }) // a second signal ends the program at once
	err = <-ended
	limit, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	report, cut := queue.Shutdown(limit) // before the listener closes, so that waiting buyers get answers
	err = errors.Join(err, cut, public.Shutdown(limit))
	counters, unread := items.read()
	log.Printf("stopped: %d cut off, %d never started, %v", report.Running, len(report.NeverStarted), counters)
	if err = errors.Join(err, unread); err != nil {
		log.Fatal(err)
	}
}

type shop struct {
	queue *holdfast.Dispatcher
	items stock
	work  time.Duration
}

func (s shop) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	status, answer, err := http.StatusOK, any("added"), error(nil)
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodPost || r.ContentLength != 0: // the server does not notice a disconnect before the body is read
		status, answer = http.StatusBadRequest, "want GET or POST, and no body"
	case r.URL.Path == "/ping":
		status, answer, err = s.buy(r.Context())
	case r.URL.Path == "/add":
		_, err = s.items("added", 20)
	case r.URL.Path == "/cache":
		answer, err = s.items.read()
	default:
		status, answer = http.StatusNotFound, "want /ping, /add or /cache"
	}
	if err != nil {
		log.Print(err)
		status, answer = http.StatusBadGateway, "the stock cannot be reached"
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(answer)
}

// buy waits for its turn. A buyer who leaves the queue is never served; a buyer who is served has bought.
func (s shop) buy(ctx context.Context) (status int, outcome string, err error) {
	_, uncounted := s.items("calls", 1)
	status, outcome = http.StatusServiceUnavailable, "refused"
	job, refused := s.queue.Submit(ctx, func(context.Context) error {
		var sold int
		status, outcome = http.StatusGone, "sold_out"
		if sold, err = s.items("sold", 1); sold > 0 {
			status, outcome = http.StatusOK, "sold"
			time.Sleep(s.work)
		}
		return err
	})
	if refused == nil {
		context.AfterFunc(ctx, job.Cancel) // when the client disconnects
		<-job.Done()
	}
	if outcome == "refused" && ctx.Err() != nil {
		outcome = "gone"
	}
	if outcome != "sold" && err == nil {
		_, err = s.items(outcome, 1)
	}
	return status, outcome, errors.Join(err, uncounted)
}

// A stock atomically adds n to a counter and returns its value, or returns 0 for a sale if too few items are left.
type stock func(counter string, n int) (int, error)

func (s stock) read() (map[string]int, error) {
	counters, err := make(map[string]int), error(nil)
	for _, name := range []string{"sold", "added", "sold_out", "refused", "gone", "calls"} {
		n, failed := s(name, 0)
		counters[name], err = n, errors.Join(err, failed)
	}
	counters["remaining"] = counters["added"] - counters["sold"]
	return counters, err
}

func memory() stock {
	var mu sync.Mutex
	counters := map[string]int{"added": 20}
	return func(name string, n int) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		if name == "sold" && counters["sold"]+n > counters["added"] {
			return 0, nil
		}
		counters[name] += n
		return counters[name], nil
	}
}

// shared returns a stock in Redis, which runs a script atomically, so no lock is needed.
func shared(addr string) (stock, error) {
	client := redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1}) // a retry could sell twice, if only the answer was lost
	script := redis.NewScript(`
		local n = (redis.call('HGET', KEYS[1], ARGV[1]) or 0) + ARGV[2]
		if ARGV[1] == 'sold' and n > (redis.call('HGET', KEYS[1], 'added') or 0) + 0 then return 0 end
		return redis.call('HINCRBY', KEYS[1], ARGV[1], ARGV[2])`)
	return func(name string, n int) (int, error) {
		return script.Run(context.Background(), client, []string{"flashsale"}, name, n).Int()
	}, client.HSetNX(context.Background(), "flashsale", "added", 20).Err() // only the first process sets it
}
