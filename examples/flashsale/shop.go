package main

import (
	"context"
	"encoding/json"
	"log"
	"net/http"
	"time"

	"holdfast"
)

// batch is how many items /add adds, and how many there are at the start.
const batch = 20

// A shop serves buyers, one for each worker of its queue.
type shop struct {
	queue *holdfast.Dispatcher
	items stock
	work  time.Duration // that a buyer takes
}

// An outcome is what has become of a buyer, and the name of the counter for that.
type outcome string

const (
	sold    outcome = "sold"
	soldOut outcome = "sold_out"
	refused outcome = "refused" // the queue was full, or the shop closes
	gone    outcome = "gone"    // left before being served
)

var statuses = map[outcome]int{
	sold:    http.StatusOK,
	soldOut: http.StatusGone,
	refused: http.StatusServiceUnavailable,
	gone:    http.StatusServiceUnavailable, // which nobody reads
}

func (s shop) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	status, answer, err := s.answer(r)
	if err != nil {
		log.Print(err)
		status, answer = http.StatusBadGateway, "the stock cannot be reached"
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(answer)
}

// answer does what a request asks for. An error is one of the stock.
func (s shop) answer(r *http.Request) (status int, answer any, err error) {
	// A body would keep the server from noticing a buyer who leaves until it was read.
	if r.Method != http.MethodGet && r.Method != http.MethodPost || r.ContentLength != 0 {
		return http.StatusBadRequest, "want GET or POST, and no body", nil
	}
	switch r.URL.Path {
	case "/ping":
		bought, err := s.buy(r.Context())
		return statuses[bought], bought, err
	case "/add":
		_, err := s.items.add("added", batch)
		return http.StatusOK, "added", err
	case "/cache":
		counters, err := read(s.items)
		return http.StatusOK, counters, err
	}
	return http.StatusNotFound, "want /ping, /add or /cache", nil
}

// buy waits in the queue and is served by a worker. A buyer who leaves the queue is never
// served. A buyer who is served has bought, even if the client leaves meanwhile.
func (s shop) buy(ctx context.Context) (outcome, error) {
	if _, err := s.items.add("calls", 1); err != nil {
		return refused, err
	}
	result, failed := refused, error(nil)
	job, err := s.queue.Submit(ctx, func(context.Context) error {
		result, failed = s.serve()
		return failed
	})
	if err == nil {
		context.AfterFunc(ctx, job.Cancel) // the buyer leaves
		<-job.Done()
	}
	if result == refused && ctx.Err() != nil {
		result = gone
	}
	if result != sold && failed == nil { // the sale was its own count
		_, failed = s.items.add(string(result), 1)
	}
	return result, failed
}

// serve sells an item, if there is one, and does the work for it.
func (s shop) serve() (outcome, error) {
	n, err := s.items.add(string(sold), 1)
	if err != nil || n == 0 {
		return soldOut, err
	}
	time.Sleep(s.work)
	return sold, nil
}
