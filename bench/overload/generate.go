package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// An outcome is what became of a request.
type outcome uint8

const (
	unsent  outcome = iota // this side could not, or the run was interrupted
	good                   // answered within the patience, with a status below 400
	late                   // the same, but after it; only to clients that stay
	refused                // 429 or 503
	failed                 // any other status, or no answer
	left                   // the client has given up
)

// A sample is one request and what became of it.
type sample struct {
	arrival
	took    time.Duration // from when the request was due
	outcome outcome
}

// answered returns when the sample's request ended.
func (s sample) answered() time.Duration { return s.due + s.took }

// idHeader numbers the requests, so that the upstream of a comparison knows whose
// client has left, whatever stands between the two.
const idHeader = "Overload-Request"

// stayFor is how much longer than its patience a client waits that stays. It is
// bounded, or a service that hangs would hang the generator.
const stayFor = 10 * time.Second

// A target is what the load is sent to.
type target struct {
	url, method, body string
	header            http.Header
	clientHeader      string            // names the client
	gone              func(request int) // told when a client leaves; nil: requests have no number

	// Made by newTarget.
	client *http.Client
	ctx    context.Context    // ends the run
	stop   context.CancelFunc // ends what is open

	mu     sync.Mutex
	faults map[string]int // failed requests by what was wrong
}

// maxFaults bounds how many kinds of faults are told apart.
const maxFaults = 8

// fault counts a failed request.
func (t *target) fault(status int, err error) {
	text := "status " + strconv.Itoa(status)
	var op *net.OpError
	switch {
	case errors.As(err, &op): // without the port, which is another one each time
		text = op.Op + ": " + op.Err.Error()
	case err != nil:
		text = err.Error()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.faults[text] == 0 && len(t.faults) >= maxFaults {
		text = "others"
	}
	t.faults[text]++
}

// newTarget prepares to send to a URL until ctx ends.
func newTarget(ctx context.Context, t *target) *target {
	t.faults = make(map[string]int)
	// Connections are kept for as many as were open at once: a client that had to
	// connect anew for each request would measure the kernel.
	transport := &http.Transport{MaxIdleConnsPerHost: maxOpenLimit, DisableCompression: true, IdleConnTimeout: time.Minute}
	t.client = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	t.ctx, t.stop = context.WithCancel(ctx)
	return t
}

// A health says how well the generator itself kept up.
type health struct {
	LateP99   float64 // seconds by which requests were sent after they were due
	LateWorst float64
	Unsent    int
	Open      int     // at most, at once
	MemoryMiB float64 // that the generator's process has from the system
}

// tolerated is the lateness up to which a figure can be trusted: the times that
// are told include it, and a late schedule is no longer the one that was fixed.
const tolerated = 10 * time.Millisecond

func (h health) trusted() bool { return h.LateP99 <= tolerated.Seconds() && h.Unsent == 0 }

func (h health) String() string {
	s := fmt.Sprintf("generator: 99 %% of requests sent within %s of their due time, the worst %s after it; at most %d open at once, %d not sent; %.0f MiB",
		seconds(h.LateP99), seconds(h.LateWorst), h.Open, h.Unsent, h.MemoryMiB)
	if !h.trusted() {
		s = "NOT TO BE TRUSTED, the generator fell behind its schedule. " + s
	}
	return s
}

// send sends the requests when they are due, whatever becomes of those before:
// at most maxOpen are open at once, and what would be beyond that is not sent.
func (t *target) send(arrivals []arrival, mix []class, maxOpen int) ([]sample, health) {
	defer t.client.CloseIdleConnections()
	defer t.stop()
	samples := make([]sample, len(arrivals))
	lateness := make([]float64, len(arrivals))
	var open atomic.Int64
	var peak int64
	var wait sync.WaitGroup
	start := time.Now()
	for i, a := range arrivals {
		samples[i].arrival = a
		if !t.sleepUntil(start.Add(a.due)) || open.Load() >= int64(maxOpen) {
			continue
		}
		peak = max(peak, open.Add(1))
		wait.Go(func() {
			defer open.Add(-1)
			lateness[i] = max(0, time.Since(start.Add(a.due)).Seconds())
			samples[i].took, samples[i].outcome = t.one(i, a, mix[a.class], start.Add(a.due))
		})
	}
	wait.Wait()
	h := health{Open: int(peak)}
	for _, s := range samples {
		if s.outcome == unsent {
			h.Unsent++
		}
	}
	slices.Sort(lateness)
	h.LateP99, h.LateWorst = quantile(lateness, 0.99), quantile(lateness, 1)
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	h.MemoryMiB = float64(m.Sys) / (1 << 20)
	return samples, h
}

// sleepUntil reports false if the run has been interrupted.
func (t *target) sleepUntil(due time.Time) bool {
	wait := time.Until(due)
	if wait <= 0 {
		return t.ctx.Err() == nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-t.ctx.Done():
		return false
	}
}

// one sends a request and waits for its answer, for as long as its client would.
func (t *target) one(id int, a arrival, c class, due time.Time) (time.Duration, outcome) {
	limit := c.Patience
	if c.Stays {
		limit += stayFor
	}
	ctx, cancel := context.WithDeadline(t.ctx, due.Add(limit))
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, t.method, t.url, strings.NewReader(t.body))
	if err != nil {
		t.fault(0, err)
		return 0, failed
	}
	t.sign(request.Header, id, a, c)
	response, err := t.client.Do(request)
	status := 0
	if err == nil {
		status = response.StatusCode
		_, err = io.Copy(io.Discard, response.Body)
		response.Body.Close() // ends the connection if the body has not been read
	}
	took := time.Since(due)
	result := judge(status, err, took, c)
	if result == left && t.gone != nil {
		t.gone(id)
	}
	if result == failed {
		t.fault(status, err)
	}
	return took, result
}

// sign sets what tells a request from others.
func (t *target) sign(h http.Header, id int, a arrival, c class) {
	maps.Copy(h, t.header)
	if c.Urgency >= 0 {
		h.Set("Priority", "u="+strconv.Itoa(c.Urgency))
	}
	if name := c.client(a.client); name != "" {
		h.Set(t.clientHeader, name)
	}
	if t.gone != nil {
		h.Set(idHeader, strconv.Itoa(id))
	}
}

// judge returns the outcome of a request of a class.
func judge(status int, err error, took time.Duration, c class) outcome {
	switch {
	case errors.Is(err, context.Canceled):
		return unsent // the run was interrupted; nothing can be said
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.EADDRNOTAVAIL):
		return unsent // this machine has no more files or ports: not the fault of the service
	case errors.Is(err, context.DeadlineExceeded), took > c.Patience && !c.Stays:
		return left
	case err != nil:
		return failed
	case status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable:
		return refused
	case status >= 400:
		return failed
	case took > c.Patience:
		return late
	}
	return good
}
