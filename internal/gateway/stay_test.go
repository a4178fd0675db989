package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast"
	"holdfast/internal/server"
)

// A deaf upstream does not notice that its client has left. It works until it is let go.
type deaf struct {
	t         *testing.T
	now, most atomic.Int64
	hungUp    atomic.Int64 // requests whose connection was closed before they were let go
	begun     chan string
	hold      chan struct{}
	letGo     func()
}

// toDeaf starts a server with a deaf upstream.
func toDeaf(t *testing.T, c server.Config, gateway Config) (*deaf, *fixture) {
	u := &deaf{t: t, begun: make(chan string, 1000), hold: make(chan struct{})}
	u.letGo = sync.OnceFunc(func() { close(u.hold) })
	f := through(t, c, gateway, u.ServeHTTP)
	t.Cleanup(u.letGo)
	return u, f
}

func (u *deaf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n := u.now.Add(1)
	defer u.now.Add(-1)
	for m := u.most.Load(); n > m && !u.most.CompareAndSwap(m, n); m = u.most.Load() {
	}
	io.Copy(io.Discard, r.Body) // before that a server does not notice
	u.begun <- r.URL.Path
	<-u.hold
	if r.Context().Err() != nil {
		u.hungUp.Add(1)
	}
	io.WriteString(w, "done")
}

// next returns the path of the next request that has begun.
func (u *deaf) next() string {
	u.t.Helper()
	select {
	case path := <-u.begun:
		return path
	case <-time.After(patience):
		u.t.Fatal("no request has come")
		return ""
	}
}

// send sends a request in the background and returns how to leave, which waits.
func (f *fixture) send(method, target string) (leave func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if res, err := gatewayClient.Do(f.request(method, target, strings.NewReader("x")).WithContext(ctx)); err == nil {
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
		}
	}()
	return func() { cancel(); <-done }
}

func (f *fixture) until(what string, ok func(holdfast.Stats) bool) {
	f.t.Helper()
	for end := time.Now().Add(patience); !ok(f.d.Stats()); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			f.t.Fatalf("never: %s; %+v", what, f.d.Stats())
		}
	}
}

// The upstream never sees more than -workers requests, also when every client leaves at
// once and comes again.
func TestStays(t *testing.T) {
	const workers = 3
	u, f := toDeaf(t, server.Config{Workers: workers, Queue: 100}, Config{})
	for stay := range 10 {
		var leaves []func()
		for range 2 * workers {
			leaves = append(leaves, f.send("POST", "/sync/x"))
		}
		f.until("all are there", func(s holdfast.Stats) bool { return s.Running == workers && s.Queued == workers*min(1+stay, 2) })
		for _, leave := range leaves {
			leave()
		}
		f.until("those that wait are gone", func(s holdfast.Stats) bool { return s.Queued == 0 })
	}
	if s := f.d.Stats(); s.Running != workers || u.now.Load() != workers {
		t.Errorf("%d running, %d at the upstream, want %d", s.Running, u.now.Load(), workers)
	}
	u.letGo()
	if res, body := f.do(f.request("POST", "/sync/x", nil)); res.StatusCode != 200 || body != "done" {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	if u.most.Load() != workers || u.hungUp.Load() != 0 {
		t.Errorf("%d requests at once, want %d; the gateway has hung up on %d", u.most.Load(), workers, u.hungUp.Load())
	}
	if strings.Contains(f.log.String(), "upstream failed") {
		t.Error("a client that leaves is logged as a fault of the upstream")
	}
}

// A job that is canceled while it runs is told so, and its worker stays too.
func TestStaysWithCanceled(t *testing.T) {
	u, f := toDeaf(t, server.Config{Workers: 1, Queue: 2}, Config{})
	res, err := gatewayClient.Do(f.request("POST", "/async/first", nil))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	u.next()
	job := res.Header.Get("Location")
	if res, _ := f.do(f.request("DELETE", job, nil)); res.StatusCode != 202 {
		t.Errorf("DELETE: %d, want 202", res.StatusCode)
	}
	second := f.send("POST", "/sync/second")
	f.until("the second is queued", func(s holdfast.Stats) bool { return s.Queued == 1 && s.Running == 1 })
	u.letGo()
	if path := u.next(); path != "/second" || u.most.Load() != 1 {
		t.Errorf("%s, %d at once", path, u.most.Load())
	}
	second()
	if res, _ := f.do(f.request("GET", job+"/response", nil)); res.StatusCode != 410 || res.Header.Get("Job-State") != "canceled" {
		t.Errorf("the response of the first: %d %v", res.StatusCode, res.Header)
	}
}

// A client is told in time that its job is late. Its request keeps the place at the
// upstream, and who comes next waits for that.
func TestLateJobKeepsItsPlace(t *testing.T) {
	u, f := toDeaf(t, server.Config{Workers: 1, Queue: 10, JobTimeout: 100 * time.Millisecond}, Config{})
	for _, mode := range modes {
		for range 3 {
			res, body := f.do(f.request("POST", mode+"/late", nil))
			f.problem(mode, res, body, 504, "")
		}
	}
	if len(u.begun) != 1 || u.most.Load() != 1 {
		t.Errorf("the upstream has seen %d requests, %d at once; want 1", len(u.begun), u.most.Load())
	}
	u.letGo()
	f.until("the place is free", func(holdfast.Stats) bool {
		res, body := f.do(f.request("POST", "/sync/next", nil))
		return res.StatusCode == 200 && body == "done"
	})
}

// An upstream that hangs does not hold a worker for ever.
func TestTimeout(t *testing.T) {
	_, f := toDeaf(t, server.Config{Workers: 1, Queue: 10}, Config{Timeout: 50 * time.Millisecond})
	for _, mode := range modes {
		res, body := f.do(f.request("POST", mode+"/x", nil))
		f.problem(mode, res, body, 504, "the upstream has not answered in time")
	}
	f.send("POST", "/sync/x")() // and left by its client
	f.until("the worker is free", func(s holdfast.Stats) bool { return s.Running == 0 })
	if !strings.Contains(f.log.String(), "upstream failed") {
		t.Error("it is not logged")
	}
}

// A response of which a part has come is late too.
func TestTimeoutInTheBody(t *testing.T) {
	left := make(chan struct{}, 10)
	f := through(t, server.Config{Workers: 1, Queue: 10}, Config{Timeout: 50 * time.Millisecond}, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "a part")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		left <- struct{}{}
	})
	res, body := f.do(f.request("POST", "/sync/x", nil))
	f.problem("/sync", res, body, 504, "the upstream has not answered in time")
	<-left // the gateway has hung up
}

// A stop that is cut off takes the requests at the upstream with it. For those that
// nobody waits for the stop does not wait at all.
func TestStop(t *testing.T) {
	for _, test := range []struct {
		name    string
		leave   bool
		drain   time.Duration
		cut     bool
		gateway Config
	}{
		{"waited for", false, 50 * time.Millisecond, true, Config{}},
		{"waited for, with a time-out", false, 50 * time.Millisecond, true, Config{Timeout: time.Hour}},
		{"left", true, time.Hour, false, Config{}},
	} {
		u, f := toDeaf(t, server.Config{Workers: 2, Queue: 2, Drain: test.drain}, test.gateway)
		leave := f.send("POST", "/sync/x")
		u.next()
		if test.leave {
			leave()
		} else {
			if res, err := gatewayClient.Do(f.request("POST", "/async/x", nil)); err != nil || res.StatusCode != 202 {
				t.Errorf("%v, %v", res, err)
			}
			u.next()
		}
		began := time.Now()
		err := f.stop()
		if cut := err != nil; cut != test.cut || time.Since(began) > patience {
			t.Errorf("%s: stopped after %v with %v", test.name, time.Since(began), err)
		}
		f.until("no job runs", func(s holdfast.Stats) bool { return s.Running == 0 })
		u.letGo()
	}
}

// The cause of a cut-off is holdfast.ErrClosed, whatever the job waits for.
func TestCutOff(t *testing.T) {
	u, f := toDeaf(t, server.Config{Workers: 1, Queue: 1}, Config{})
	job, cancel := context.WithCancelCause(t.Context())
	p := &route{f.g, &f.g.work, "/sync"}
	ended := make(chan error, 1)
	go func() {
		_, err := p.exchange(job, p.outgoing(f.request("GET", "/x", nil), nil, "/sync"), nil)
		ended <- err
	}()
	u.next()
	cancel(fmt.Errorf("%w: %w", holdfast.ErrClosed, context.Canceled))
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("the worker stays when the server is cut off")
	}
}

// The preflight of a browser waits for no worker, and its request may be a job.
func TestPreflight(t *testing.T) {
	var pause atomic.Pointer[chan struct{}]
	f := through(t, server.Config{Workers: 0, Queue: 1}, Config{}, func(w http.ResponseWriter, r *http.Request) {
		if hold := pause.Load(); hold != nil {
			<-*hold
		}
		w.Header().Set("Access-Control-Allow-Origin", r.Header.Get("Origin"))
		w.Header().Set("Access-Control-Allow-Methods", r.Header.Get("Access-Control-Request-Method"))
		w.WriteHeader(204)
	})
	preflight := func(mode string) *http.Request {
		r := f.request("OPTIONS", mode+"/x", nil)
		r.Header.Set("Origin", "https://shop.example")
		r.Header.Set("Access-Control-Request-Method", "PUT")
		return r
	}
	for _, mode := range modes {
		res, _ := f.do(preflight(mode))
		if res.StatusCode != 204 || res.Header.Get("Access-Control-Allow-Origin") != "https://shop.example" || res.Header.Get("Access-Control-Allow-Methods") != "PUT" {
			t.Errorf("%s: %d %v", mode, res.StatusCode, res.Header)
		}
	}
	if s := f.d.Stats(); s.Accepted != 0 {
		t.Errorf("%d became jobs", s.Accepted)
	}
	// Of preflights one is at the upstream at a time.
	hold := make(chan struct{})
	pause.Store(&hold)
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() {
			if res, _ := f.do(preflight("/async")); res.StatusCode != 204 {
				t.Errorf("%d", res.StatusCode)
			}
		})
	}
	waiting := func() int {
		l := &f.g.preflights
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.waiting)
	}
	f.until("four wait", func(holdfast.Stats) bool { return waiting() == 4 })
	close(hold)
	all.Wait()
	// An OPTIONS that is no preflight is a request like others.
	if res, err := gatewayClient.Do(f.request("OPTIONS", "/async/x", nil)); err != nil || res.StatusCode != 202 {
		t.Errorf("OPTIONS: %v, %v", res, err)
	}
}

// A place that is given when its waiter leaves is not lost.
func TestPlaces(t *testing.T) {
	var p places
	p.resize(2)
	var now, most atomic.Int64
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for n := range 2000 {
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(n%7)*time.Microsecond)
				if p.take(ctx) == nil {
					if m := now.Add(1); m > most.Load() {
						most.Store(m)
					}
					now.Add(-1)
					p.give()
				}
				cancel()
			}
		})
	}
	all.Wait()
	if p.taken != 0 || len(p.waiting) != 0 || most.Load() > 2 {
		t.Errorf("%d taken, %d waiting at the end, %d at once", p.taken, len(p.waiting), most.Load())
	}
}
