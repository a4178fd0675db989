package holdfast

import (
	"context"
	"crypto/rand"
	"errors"
	"maps"
	"math"
	"net/http"
	"strconv"
	"time"

	"holdfast/internal/problem"
)

// A JobsConfig says how requests become jobs. The zero JobsConfig is ready to
// use.
type JobsConfig struct {
	// MaxBody is the greatest size of a request's body in bytes; a larger one
	// is answered with 413. If zero, 1 MiB is used.
	MaxBody int64
}

// Jobs makes handlers asynchronous: a request becomes a job of a dispatcher.
type Jobs struct {
	d       *Dispatcher
	maxBody int64
}

// NewJobs returns Jobs that run on d.
func NewJobs(d *Dispatcher, cfg JobsConfig) *Jobs {
	if cfg.MaxBody == 0 {
		cfg.MaxBody = 1 << 20
	}
	return &Jobs{d: d, maxBody: cfg.MaxBody}
}

// Async returns a handler that accepts a request as a job, answers 202 with
//
//	{"id":"…","state":"queued"}
//
// and has a worker call h with the request. h gets the method, the target, the
// header and the body of the request, with the id as Job-Id in the header, and a
// context with its values that does not end when the client leaves. What h
// answers is discarded.
//
// What happens when every place is taken is up to the dispatcher's overflow
// policy: under Block the request waits, and a client that leaves while it
// waits has no job; a refusal is 503 with Retry-After.
func (j *Jobs) Async(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// To the end: before that the server does not notice a client that
		// leaves while the request waits for a place.
		body, ok := problem.ReadBody(w, r, j.maxBody)
		if !ok {
			return
		}
		id := rand.Text() // 130 bits of randomness, of constant length
		err := j.d.Go(r.Context(), func(ctx context.Context) error {
			request := r.WithContext(ctx)
			request.Header = maps.Clone(r.Header)
			request.Header.Set("Job-Id", id)
			request.Body = problem.NewBody(body)
			h.ServeHTTP(&discarded{header: make(http.Header)}, request)
			return nil
		})
		if err != nil {
			j.refuse(w, err)
			return
		}
		answer := make([]byte, 0, 64)
		answer = append(answer, `{"id":"`...)
		answer = append(answer, id...)
		answer = append(answer, `","state":"queued"}`+"\n"...)
		w.Header()["Content-Type"] = jsonType
		w.Header()["Content-Length"] = []string{strconv.Itoa(len(answer))}
		w.WriteHeader(http.StatusAccepted)
		w.Write(answer)
	})
}

var jsonType = []string{"application/json"} // Header.Set would make one for each answer

// refuse answers a request that was not accepted.
func (j *Jobs) refuse(w http.ResponseWriter, err error) {
	switch {
	case errors.Is(err, ErrQueueFull):
		w.Header().Set("Retry-After", strconv.Itoa(j.d.retryAfter()))
		problem.Write(w, http.StatusServiceUnavailable, "the queue is full; try again later")
	case errors.Is(err, ErrClosed):
		problem.Write(w, http.StatusServiceUnavailable, "the server is shutting down")
	case errors.Is(err, ErrNested):
		problem.Write(w, http.StatusServiceUnavailable, "the queue is full, and the request comes from one of its jobs")
	default:
		// The client has left; nobody reads this.
		problem.Write(w, http.StatusServiceUnavailable, "the request ended before it was accepted")
	}
}

// retryAfter returns the whole seconds after which what is queued now will have
// been worked off: queued · mean service time / workers, at least 1. A paused
// dispatcher counts as one worker; beyond an hour nobody waits.
func (d *Dispatcher) retryAfter() int {
	var queued int
	var run Histogram
	d.mu.Lock()
	workers := d.target
	d.freeze(func() {
		queued = d.tallyFrozen().queued
		for i := range d.shards {
			run.Count += d.shards[i].run.Count
			run.Sum += d.shards[i].run.Sum
		}
	})
	d.mu.Unlock()
	// One division, and of whole numbers: rounded twice, 7 s can be 7.000000000000001.
	seconds := float64(queued) * float64(run.Mean()) / (float64(max(workers, 1)) * float64(time.Second))
	return int(math.Ceil(min(max(seconds, 1), time.Hour.Seconds())))
}

// discarded is the ResponseWriter of a job whose response nobody reads.
type discarded struct{ header http.Header }

func (d *discarded) Header() http.Header         { return d.header }
func (d *discarded) WriteHeader(int)             {}
func (d *discarded) Write(p []byte) (int, error) { return len(p), nil }
