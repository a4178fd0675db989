package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A queue is what stands behind a front.
type queue interface {
	// accept stores a job and returns its id. When it has returned, the job is on disk.
	accept(ctx context.Context, body []byte) (id string, err error)
	// result reads from the store where a job stands, and if it has ended, its result.
	// The error is errUnknown if there is no such job.
	result(ctx context.Context, id string) (response []byte, at stage, err error)
}

var errUnknown = errors.New("no such job")

// A stage is where a job stands.
type stage int

const (
	open   stage = iota
	ending       // it has run, and its end is about to be stored
	done
)

// A front is the smallest HTTP handler before a queue that does for a client what
// Holdfast's does: POST /work is answered with 202 and a Location when the job is on disk,
// and GET {Location}/response with the result, which Prefer: wait=n waits for.
type front struct {
	queue queue // set once, before the first request

	mu      sync.Mutex // protects the following field
	waiting map[string]chan struct{}
}

func newFront() *front { return &front{waiting: make(map[string]chan struct{})} }

// handler returns the handler before q.
func (f *front) handler(q queue) http.Handler {
	f.queue = q
	mux := http.NewServeMux()
	mux.HandleFunc("POST /work", f.post)
	mux.HandleFunc("GET /jobs/{id}/response", f.get)
	return mux
}

func (f *front) post(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	id, err := f.queue.accept(r.Context(), body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Location", "/jobs/"+id)
	w.WriteHeader(http.StatusAccepted)
}

// Between the end of a job in its worker and in the store, the store is read again after
// a pause, which doubles each time.
const (
	firstPause = 250 * time.Microsecond
	lastPause  = 4 * time.Millisecond
)

func (f *front) get(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	ended := f.watch(id) // before the store is read, so that no end is missed
	until := time.After(preferredWait(r))
	pause := firstPause
	for {
		response, at, err := f.queue.result(r.Context(), id)
		if err != nil || at == done {
			f.ended(id) // nobody else will say so
			f.answer(w, response, err)
			return
		}
		var again <-chan time.Time
		if at == ending || ended == nil {
			again = time.After(pause)
			pause = min(2*pause, lastPause)
		}
		select {
		case <-ended:
			ended = nil
		case <-again:
		case <-until:
			w.WriteHeader(http.StatusAccepted)
			return
		case <-r.Context().Done():
			return
		}
	}
}

func (f *front) answer(w http.ResponseWriter, response []byte, err error) {
	switch {
	case errors.Is(err, errUnknown):
		http.Error(w, err.Error(), http.StatusNotFound)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		w.Write(response)
	}
}

// preferredWait returns the time of Prefer: wait=n, at most 50 s; 0 if there is none.
func preferredWait(r *http.Request) time.Duration {
	value, _ := strings.CutPrefix(r.Header.Get("Prefer"), "wait=")
	seconds, _ := strconv.Atoi(value)
	return time.Duration(min(max(seconds, 0), 50)) * time.Second
}

// watch returns a channel that is closed when the job is said to have ended.
func (f *front) watch(id string) <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, ok := f.waiting[id]
	if !ok {
		c = make(chan struct{})
		f.waiting[id] = c
	}
	return c
}

// ended tells those who wait for a job to read the store again. Workers call it when
// they have stored the end, or, where the library stores it, when the job has run.
func (f *front) ended(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c, ok := f.waiting[id]; ok {
		close(c)
		delete(f.waiting, id)
	}
}
