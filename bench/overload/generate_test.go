package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

type tripper func(*http.Request) (*http.Response, error)

func (f tripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// evenly returns requests of one class, evenly spaced.
func evenly(n int, gap time.Duration) []arrival {
	arrivals := make([]arrival, n)
	for i := range arrivals {
		arrivals[i].due = time.Duration(i) * gap
	}
	return arrivals
}

// The loop is open: requests are sent when they are due although none has been
// answered, and each client leaves when its own patience has ended, not sooner
// and not later.
func TestOpenLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n, gap = 50, 10 * time.Millisecond
		start := time.Now()
		var gone atomic.Int64
		target := newTarget(t.Context(), &target{url: "http://service/", method: "GET", gone: func(int) { gone.Add(1) }})
		var sent [n]time.Duration
		var received atomic.Int64
		target.client.Transport = tripper(func(r *http.Request) (*http.Response, error) {
			sent[received.Add(1)-1] = time.Since(start)
			<-r.Context().Done()
			return nil, r.Context().Err()
		})
		samples, h := target.send(evenly(n, gap), []class{{Urgency: -1, Patience: time.Second}}, n)
		for i, s := range samples {
			if sent[i] != time.Duration(i)*gap || s.outcome != left || s.took != time.Second {
				t.Fatalf("request %d was sent after %v and ended as %v after %v; want %v, and %v after 1s", i, sent[i], s.outcome, s.took, time.Duration(i)*gap, left)
			}
		}
		if gone.Load() != n || h.Open != n || h.Unsent != 0 || h.LateWorst != 0 || !h.trusted() {
			t.Errorf("%d of %d have left; %+v", gone.Load(), n, h)
		}
	})
}

// What is due beyond the bound of open requests is left out, and that is said.
func TestOpenRequestsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := newTarget(t.Context(), &target{url: "http://service/", method: "GET"})
		var open, most atomic.Int64
		target.client.Transport = tripper(func(r *http.Request) (*http.Response, error) {
			most.Store(max(most.Load(), open.Add(1)))
			defer open.Add(-1)
			<-r.Context().Done()
			return nil, r.Context().Err()
		})
		samples, h := target.send(evenly(25, time.Millisecond), []class{{Urgency: -1, Patience: time.Second}}, 10)
		if most.Load() != 10 || h.Open != 10 || h.Unsent != 15 || samples[10].outcome != unsent || h.trusted() {
			t.Errorf("%d open at once; %+v", most.Load(), h)
		}
		if !strings.Contains(h.String(), "NOT TO BE TRUSTED") {
			t.Errorf("the generator says %q", h)
		}
	})
}

// A client that stays is answered late; an interrupted run ends at once.
func TestStaysAndInterrupt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		target := newTarget(ctx, &target{url: "http://service/", method: "GET"})
		target.client.Transport = tripper(func(r *http.Request) (*http.Response, error) {
			select {
			case <-time.After(3 * time.Second):
				return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader("late"))}, nil
			case <-r.Context().Done():
				return nil, r.Context().Err()
			}
		})
		time.AfterFunc(4*time.Second, cancel)
		start := time.Now()
		samples, _ := target.send(evenly(3, 2*time.Second), []class{{Urgency: -1, Patience: time.Second, Stays: true}}, 10)
		if samples[0].outcome != late || samples[0].took != 3*time.Second || samples[1].outcome != unsent || samples[2].outcome != unsent {
			t.Errorf("%+v; want the first late, the others unsent", samples)
		}
		if took := time.Since(start); took != 4*time.Second {
			t.Errorf("ended after %v, want 4s", took)
		}
	})
}

func TestJudge(t *testing.T) {
	leaves, stays := class{Patience: time.Second}, class{Patience: time.Second, Stays: true}
	wrapped := func(err error) error { return &url.Error{Op: "Get", URL: "http://x", Err: err} }
	for _, c := range []struct {
		status int
		err    error
		took   time.Duration
		class  class
		want   outcome
	}{
		{200, nil, time.Second, leaves, good},
		{202, nil, time.Millisecond, leaves, good},
		{302, nil, time.Millisecond, leaves, good},
		{200, nil, time.Second + 1, leaves, left},
		{200, nil, time.Second + 1, stays, late},
		{503, nil, time.Millisecond, leaves, refused},
		{429, nil, time.Millisecond, leaves, refused},
		{503, nil, 2 * time.Second, stays, refused},
		{503, nil, 2 * time.Second, leaves, left},
		{500, nil, time.Millisecond, leaves, failed},
		{504, nil, time.Millisecond, leaves, failed},
		{404, nil, time.Millisecond, leaves, failed},
		{0, wrapped(context.DeadlineExceeded), time.Second, leaves, left},
		{200, context.DeadlineExceeded, time.Second, leaves, left}, // within the body
		{0, wrapped(context.Canceled), time.Millisecond, leaves, unsent},
		{0, wrapped(&net.OpError{Op: "dial", Err: syscall.EMFILE}), time.Millisecond, leaves, unsent},
		{0, wrapped(&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}), time.Millisecond, leaves, failed},
		{200, io.ErrUnexpectedEOF, time.Millisecond, leaves, failed},
	} {
		if got := judge(c.status, c.err, c.took, c.class); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func TestFaultsAreBounded(t *testing.T) {
	target := newTarget(t.Context(), new(target))
	for status := range 100 {
		target.fault(400+status, nil)
	}
	if len(target.faults) > maxFaults+1 || target.faults["others"] != 100-maxFaults || target.faults["status 400"] != 1 {
		t.Errorf("%v", target.faults)
	}
}

// call sends a request to the machine.
func call(ctx context.Context, m *machine, request int) {
	r := httptest.NewRequestWithContext(ctx, "GET", "/", nil)
	r.Header.Set(idHeader, strconv.Itoa(request))
	m.ServeHTTP(httptest.NewRecorder(), r)
}

// The machine does so many calls at once and no more, in order; it works for those
// who have left, and counts that.
func TestMachine(t *testing.T) {
	for _, stops := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			m := newMachine(services[1], 50*time.Millisecond, 1, 2, stops, make([]atomic.Bool, 6), 1)
			m.closed = t.Context()
			start := time.Now()
			var ends [6]time.Duration
			var calls sync.WaitGroup
			for i := range ends {
				ctx, leave := context.WithCancel(t.Context())
				defer leave()
				calls.Go(func() {
					call(ctx, m, i)
					ends[i] = time.Since(start)
				})
				synctest.Wait() // in this order
				if i == 2 {
					time.AfterFunc(60*time.Millisecond, func() { m.gone[i].Store(true); leave() })
				}
			}
			calls.Wait()
			const ms = time.Millisecond
			want := [6]time.Duration{50 * ms, 50 * ms, 100 * ms, 100 * ms, 150 * ms, 150 * ms}
			if stops { // the third leaves its slot to the fifth
				want = [6]time.Duration{50 * ms, 50 * ms, 60 * ms, 100 * ms, 110 * ms, 150 * ms}
			}
			if ends != want {
				t.Errorf("stops %v: calls ended after %v, want %v", stops, ends, want)
			}
			if m.calls.Load() != 5 || m.vain.Load() != 1 {
				t.Errorf("stops %v: %d calls, %d of them in vain; want 5, without the warm-up, and 1", stops, m.calls.Load(), m.vain.Load())
			}
		})
	}
}

// The service times have the means that the capacity is computed with, and depend
// on the request alone.
func TestServiceTimes(t *testing.T) {
	for _, s := range services {
		m := newMachine(s, 50*time.Millisecond, 1, 8, false, nil, 0)
		const n = 20_000
		var sum time.Duration
		for i := range n {
			sum += m.lasts(i)
		}
		near(t, s.name+": calls a second", 8/(sum.Seconds()/n), capacity(s, 50*time.Millisecond, 8))
		if again := newMachine(s, 50*time.Millisecond, 1, 1, true, nil, 0); m.lasts(7) != again.lasts(7) {
			t.Error(s.name, "differs between two machines of one seed")
		}
	}
}
