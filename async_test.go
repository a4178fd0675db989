package holdfast

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"holdfast/histogram"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

func TestAsyncIDs(t *testing.T) {
	const n, clients = 10_000, 10
	d, _ := buildLogged(t, Config{Workers: 4, Queue: 20})
	ran := make(chan string, n)
	h := mustJobs(t, d, JobsConfig{}).Async(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ran <- string(JobID(r.Context()))
	}))
	answered := make(chan string, n)
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for range n / clients {
				answered <- accepted(t, post(h, ""))
			}
		})
	}
	wg.Wait()
	if _, err := d.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	close(answered)
	close(ran)
	ids := make(map[string]bool)
	for id := range answered {
		if ids[id] {
			t.Fatalf("id %s was given twice", id)
		}
		ids[id] = true
	}
	for id := range ran {
		if !ids[id] {
			t.Fatalf("a job ran with the id %q, which was not answered", id)
		}
		delete(ids, id)
	}
	if len(ids) > 0 {
		t.Errorf("%d ids were answered whose jobs did not run", len(ids))
	}
}

func TestAsyncRequest(t *testing.T) {
	d, _ := buildLogged(t, Config{Workers: 1, Queue: 200})
	type seen struct {
		method, uri, path, query, host, body string
		header                               http.Header
		err                                  error
	}
	got := make(chan seen, 1)
	h := mustJobs(t, d, JobsConfig{}).Async(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		got <- seen{r.Method, r.RequestURI, r.URL.Path, r.URL.RawQuery, r.Host, string(body), r.Header, err}
	}))
	for _, method := range []string{"POST", "PUT", "DELETE"} {
		for _, body := range []string{"", "x", strings.Repeat("0123456789", 50_000)} {
			req := httptest.NewRequest(method, "http://example.com/a%20b/c?q=1&q=2", strings.NewReader(body))
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			req.Header["X-Many"] = []string{"1", "2"}
			sent := req.Header.Clone()
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, req)
			accepted(t, rec)

			want := sent.Clone()
			s := <-got
			if s.method != method || s.uri != "http://example.com/a%20b/c?q=1&q=2" || s.path != "/a b/c" || s.query != "q=1&q=2" || s.host != "example.com" || s.body != body || s.err != nil {
				t.Errorf("the handler got %s %s, path %s, query %s, host %s, %d bytes, %v", s.method, s.uri, s.path, s.query, s.host, len(s.body), s.err)
			}
			if fmt.Sprint(s.header) != fmt.Sprint(want) {
				t.Errorf("the handler got the header %v, want %v", s.header, want)
			}
			if fmt.Sprint(req.Header) != fmt.Sprint(sent) {
				t.Errorf("the request's own header became %v", req.Header)
			}
		}
	}
}

// The job's context has the values of the request's, and goes on when the request has
// been answered and the client has left.
func TestAsyncContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := buildLogged(t, Config{Workers: 1, Queue: 200})
		type key struct{}
		var value, server any
		var during, after error
		finished := false
		job := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			value, server = r.Context().Value(key{}), r.Context().Value(http.ServerContextKey)
			select {
			case <-time.After(time.Hour):
			case <-r.Context().Done():
			}
			during = r.Context().Err()
			<-r.Context().Done()
			after = context.Cause(r.Context())
			finished = true
		})
		async := mustJobs(t, d, JobsConfig{}).Async(job)
		dial := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			async.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), key{}, "carried")))
		}))
		c := dial()
		fmt.Fprint(c, "POST /bbb HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
		if res, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || res.StatusCode != 202 {
			t.Fatal(res, err)
		}
		c.Close()
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if value != "carried" || server == nil {
			t.Errorf("values %v and %v, want them carried over", value, server)
		}
		if during != nil || finished {
			t.Errorf("an hour after the client has left the context has ended: %v", during)
		}
		// A stop that is out of patience ends it.
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		d.Shutdown(ctx)
		synctest.Wait()
		if !finished || !errors.Is(after, ErrClosed) {
			t.Errorf("cut off: finished %v, cause %v; want ErrClosed", finished, after)
		}
	})
}

func TestBodyBound(t *testing.T) {
	for _, test := range []struct {
		limit  int64 // of JobsConfig
		size   int
		status int
		says   string
	}{
		{10, 10, 0, ""},
		{10, 11, 413, "at most 10 bytes"},
		{10, 1000, 413, "at most 10 bytes"},
		{1, 0, 0, ""},
		{0, 1 << 20, 0, ""}, // the default
		{0, 1<<20 + 1, 413, "at most 1048576 bytes"},
	} {
		f := newJobsFixture(t, Config{Workers: 1, Queue: 200}, JobsConfig{MaxBody: test.limit})
		sizes := make(chan int, 4)
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			sizes <- len(body)
		})
		for _, wrapped := range []http.Handler{f.Queued(h), f.Async(h)} {
			text := strings.Repeat("x", test.size)
			unknown := httptest.NewRequest("POST", "/work", io.MultiReader(strings.NewReader(text)))
			for _, r := range []*http.Request{httptest.NewRequest("POST", "/work", strings.NewReader(text)), unknown} {
				rec := httptest.NewRecorder()
				wrapped.ServeHTTP(rec, r)
				if test.status != 0 {
					expectProblem(t, rec, test.status, test.says, "")
				} else if n := <-sizes; n != test.size {
					t.Errorf("the handler read %d bytes, want %d", n, test.size)
				}
			}
		}
		if len(sizes) > 0 {
			t.Error("a refused request has become a job")
		}
	}
}

// A body whose length is announced as too large is not read, and a request that
// breaks off becomes no job.
func TestBodyThatIsNotThere(t *testing.T) {
	f := newJobsFixture(t, Config{Workers: 1, Queue: 200}, JobsConfig{MaxBody: 10})
	h := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a job ran") })
	for _, wrapped := range []http.Handler{f.Queued(h), f.Async(h)} {
		r := httptest.NewRequest("POST", "/work", iotest.ErrReader(errors.New("read")))
		r.ContentLength = 11
		rec := httptest.NewRecorder()
		wrapped.ServeHTTP(rec, r)
		expectProblem(t, rec, 413, "at most 10 bytes", "")

		r = httptest.NewRequest("POST", "/work", io.MultiReader(strings.NewReader("half"), iotest.ErrReader(errors.New("connection reset"))))
		rec = httptest.NewRecorder()
		wrapped.ServeHTTP(rec, r)
		expectProblem(t, rec, 400, "could not be read", "")
	}
	if n := f.d.Stats().Accepted; n != 0 {
		t.Errorf("%d accepted", n)
	}
}

func TestAsyncRetryAfter(t *testing.T) {
	const ms = time.Millisecond
	for _, test := range []struct {
		name           string
		workers, queue int
		ran            []time.Duration // jobs that have run before
		pause          bool
		want           int
	}{
		{name: "nothing has run yet", workers: 1, queue: 5, want: 1},
		{name: "one worker", workers: 1, queue: 5, ran: []time.Duration{time.Second}, want: 5},
		{name: "rounded up", workers: 2, queue: 5, ran: []time.Duration{time.Second}, want: 3},
		{name: "the mean", workers: 3, queue: 4, ran: []time.Duration{time.Second, 3 * time.Second}, want: 3},
		{name: "barely a second", workers: 1, queue: 100, ran: []time.Duration{10 * ms}, want: 1},
		{name: "barely more", workers: 1, queue: 100, ran: []time.Duration{10*ms + 1}, want: 2},
		{name: "less than a second", workers: 100, queue: 200, ran: []time.Duration{ms}, want: 1},
		{name: "no time at all", workers: 1, queue: 200, ran: []time.Duration{0, 0}, want: 1},
		{name: "exactly 7", workers: 1, queue: 25, ran: []time.Duration{280 * ms}, want: 7}, // 7.000000000000001 if rounded on the way
		{name: "exactly 55", workers: 1, queue: 50, ran: []time.Duration{1100 * ms}, want: 55},
		{name: "exactly 29", workers: 7, queue: 203, ran: []time.Duration{time.Second}, want: 29},
		{name: "nearly an hour", workers: 1, queue: 3, ran: []time.Duration{1199 * time.Second}, want: 3597},
		{name: "an hour", workers: 1, queue: 3, ran: []time.Duration{1200 * time.Second}, want: 3600},
		{name: "more than an hour", workers: 1, queue: 3, ran: []time.Duration{24 * time.Hour}, want: 3600},
		{name: "hand-over only", workers: 2, queue: 0, ran: []time.Duration{time.Minute}, want: 1},
		{name: "paused", workers: 4, queue: 5, ran: []time.Duration{2 * time.Second}, pause: true, want: 10}, // as with one worker
		{name: "paused from the start", workers: 0, queue: 5, want: 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, _ := buildLogged(t, Config{Workers: test.workers, Queue: test.queue, Overflow: Reject})
				for _, run := range test.ran {
					err := d.Do(t.Context(), func(context.Context) error { time.Sleep(run); return nil })
					if err != nil {
						t.Fatal(err)
					}
				}
				if test.pause {
					d.Resize(0)
				}
				h := mustJobs(t, d, JobsConfig{}).Async(sleeps)
				for range d.Stats().Workers {
					accepted(t, post(h, "1000h"))
				}
				for range test.queue {
					accepted(t, post(h, "1000h"))
				}
				synctest.Wait()
				for range 2 {
					expectProblem(t, post(h, "1000h"), 503, "the queue is full", strconv.Itoa(test.want))
				}
				if n := d.Stats().RefusedFull; n != 2 {
					t.Errorf("%d refused, want 2", n)
				}
			})
		})
	}
}

// No rounding error adds a second, whatever the backlog and the mean.
func TestAsyncRetryAfterExact(t *testing.T) {
	const places = 120
	d, _ := buildLogged(t, Config{Workers: 0, Queue: places})
	for queued := 1; queued <= places; queued++ {
		if err := d.Go(t.Context(), func(context.Context) error { return nil }); err != nil {
			t.Fatal(err)
		}
		for ms := 1; ms <= 1200; ms += 3 {
			d.stats.Run = histogram.Histogram{Count: 1, Sum: float64(ms) * 1e6} // one job that took ms
			if got, want := (queue{d}).Load(nil).RetryAfter(), (queued*ms+999)/1000; got != want {
				t.Fatalf("%d queued, %d ms each: %d, want %d", queued, ms, got, want)
			}
		}
	}
}

func TestAsyncDropOldest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := buildLogged(t, Config{Workers: 1, Queue: 2, Overflow: DropOldest})
		var ran []string
		jobs := mustJobs(t, d, JobsConfig{})
		h := jobs.Async(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second)
			ran = append(ran, string(JobID(r.Context())))
		}))
		var ids []string
		for range 6 {
			ids = append(ids, accepted(t, post(h, "")))
			synctest.Wait() // the first one runs
		}
		if _, err := d.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if want := []string{ids[0], ids[4], ids[5]}; fmt.Sprint(ran) != fmt.Sprint(want) {
			t.Errorf("ran %v of %v, want the first and the last two", ran, ids)
		}
		if n := d.Stats().Dropped; n != 3 {
			t.Errorf("%d dropped, want 3", n)
		}
		for i, want := range []string{"done", "dropped", "dropped", "dropped", "done", "done"} {
			rec := ask(bg, jobs, "GET", "/jobs/"+ids[i]+"/response", "")
			hasHeader(t, rec, "Job-State", want)
			if want == "dropped" {
				expectProblem(t, rec, 410, "dropped", "")
			}
		}
	})
	synctest.Test(t, func(t *testing.T) { // nothing is queued that could be dropped
		d, _ := buildLogged(t, Config{Workers: 1, Queue: 0, Overflow: DropOldest})
		h := mustJobs(t, d, JobsConfig{}).Async(sleeps)
		accepted(t, post(h, "1h"))
		synctest.Wait() // it runs
		expectProblem(t, post(h, "1h"), 503, "the queue is full", "1")
	})
}

// Under Block a request waits for as long as it takes. A client that leaves while it
// waits has no job, and holds up nobody.
func TestAsyncBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := buildLogged(t, Config{Workers: 1, Queue: 1})
		var ran []string
		dial := serve(t, mustJobs(t, d, JobsConfig{}).Async(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Hour)
			ran = append(ran, r.Header.Get("Name"))
		})))
		began := time.Now()
		answered := make(map[string]time.Duration)
		var mu sync.Mutex
		conns := make(map[string]net.Conn)
		for _, name := range []string{"runs", "queued", "leaves", "waits", "leaves too", "stopped"} {
			c := dial()
			conns[name] = c
			fmt.Fprintf(c, "POST /bbb HTTP/1.1\r\nHost: x\r\nName: %s\r\nContent-Length: 4\r\n\r\nbody", name)
			go func() {
				res, err := http.ReadResponse(bufio.NewReader(c), nil)
				if err != nil {
					return
				}
				mu.Lock()
				defer mu.Unlock()
				answered[name+" "+strconv.Itoa(res.StatusCode)] = time.Since(began)
			}()
			synctest.Wait()
		}
		if got := d.Stats(); got.Running != 1 || got.Queued != 1 || got.Blocked != 4 || len(answered) != 2 {
			t.Fatalf("%d running, %d queued, %d waiting, %d answered; want 1, 1, 4 and 2", got.Running, got.Queued, got.Blocked, len(answered))
		}
		conns["leaves"].Close()
		synctest.Wait()
		if got := d.Stats(); got.Blocked != 3 || got.RefusedGone != 1 {
			t.Errorf("%d waiting, %d gone; want 3 and 1", got.Blocked, got.RefusedGone)
		}
		time.Sleep(30 * time.Minute)
		conns["leaves too"].Close()
		time.Sleep(time.Hour) // the first job has ended
		if _, err := d.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		want := map[string]time.Duration{"runs 202": 0, "queued 202": 0, "waits 202": time.Hour, "stopped 503": 90 * time.Minute}
		if fmt.Sprint(answered) != fmt.Sprint(want) {
			t.Errorf("answered %v, want %v", answered, want)
		}
		if want := []string{"runs", "queued", "waits"}; fmt.Sprint(ran) != fmt.Sprint(want) {
			t.Errorf("ran %q, want %q", ran, want)
		}
	})
}

// A client that has left already has no job even if there is room.
func TestAsyncGone(t *testing.T) {
	d, _ := buildLogged(t, Config{Workers: 1, Queue: 200})
	h := mustJobs(t, d, JobsConfig{}).Async(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a job ran") }))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequestWithContext(ctx, "POST", "/bbb", nil))
	expectProblem(t, rec, 503, "ended before it was accepted", "")
	if _, err := d.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

// A job that posts to its own dispatcher gets an error where it would have to wait.
func TestAsyncNested(t *testing.T) {
	d, _ := buildLogged(t, Config{Workers: 1, Queue: 1})
	jobs := mustJobs(t, d, JobsConfig{})
	done := make(chan struct{})
	var inner http.Handler
	inner = jobs.Async(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Depth") != "" {
			return
		}
		defer close(done)
		post := func() *httptest.ResponseRecorder {
			rec := httptest.NewRecorder()
			req := httptest.NewRequestWithContext(r.Context(), "POST", "/bbb", nil)
			req.Header.Set("Depth", "1")
			inner.ServeHTTP(rec, req)
			return rec
		}
		accepted(t, post())
		expectProblem(t, post(), 503, "comes from a job of the same queue", "")
	}))
	accepted(t, post(inner, ""))
	<-done
	if _, err := d.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

// Preferences that are meant for Jobs are taken out of Prefer, others are not.
func TestPreferIsStripped(t *testing.T) {
	f := newJobsFixture(t, Config{Workers: 2, Queue: 200}, JobsConfig{})
	for _, test := range []struct{ sent, want []string }{
		{nil, nil},
		{[]string{"wait=5"}, nil},
		{[]string{"handling=lenient"}, []string{"handling=lenient"}},
		{[]string{"wait=5, handling=lenient; x=\"a,b\"", "return=minimal"}, []string{"handling=lenient; x=\"a,b\"", "return=minimal"}},
		{[]string{"return=minimal, WAIT=1, wait=2"}, []string{"return=minimal"}},
		{[]string{"waiting=5, respond-asynchronously"}, []string{"waiting=5", "respond-asynchronously"}},
	} {
		for _, async := range []bool{false, true} {
			for name, wrap := range map[string]func(http.Handler) http.Handler{"Sync": f.Sync, "Queued": f.Queued, "Async": f.Async} {
				got := make(chan []string, 1)
				h := wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { got <- r.Header["Prefer"] }))
				r := httptest.NewRequest("POST", "/work", nil)
				sent := slices.Clone(test.sent)
				if async {
					sent = append([]string{"respond-async"}, sent...)
				}
				if sent != nil {
					r.Header["Prefer"] = slices.Clone(sent)
				}
				rec := httptest.NewRecorder()
				h.ServeHTTP(rec, r)
				if inner := <-got; !slices.Equal(inner, test.want) {
					t.Errorf("%s: the handler got %q of %q, want %q", name, inner, sent, test.want)
				}
				if !slices.Equal(r.Header["Prefer"], sent) {
					t.Errorf("%s: the request's own header became %q", name, r.Header["Prefer"])
				}
				if rec.Header().Get("Vary") != "Prefer" {
					t.Errorf("%s: Vary %q", name, rec.Header()["Vary"])
				}
				if async && rec.Code == 202 && !strings.HasPrefix(rec.Header().Get("Preference-Applied"), "respond-async") {
					t.Errorf("%s: %d applied %q", name, rec.Code, rec.Header()["Preference-Applied"])
				}
			}
		}
	}
}

func TestRespondAsync(t *testing.T) {
	inBubble(t, Config{Workers: 1, Queue: 200}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
		for _, wrap := range []func(http.Handler) http.Handler{f.Sync, f.Queued, f.Async} {
			post(f.Async(sleeps), "1s") // occupies the worker, or the next job might run before its answer is written
			began := time.Now()
			rec := post(wrap(sleeps), "1m", "Prefer: Respond-Async")
			id := accepted(t, rec)
			if time.Since(began) != 0 {
				t.Errorf("answered after %v", time.Since(began))
			}
			hasHeader(t, rec, "Preference-Applied", "respond-async")
			hasHeader(t, rec, "Location", "/jobs/"+id)
			hasHeader(t, rec, "Job-State", "queued")
			time.Sleep(2 * time.Minute)
			if rec := f.response(id); rec.Body.String() != "slept 1m" {
				t.Errorf("%d %s", rec.Code, rec.Body)
			}
		}
		// With a value it is something else.
		if rec := post(f.Sync(sleeps), "1s", "Prefer: respond-async=no"); rec.Code != 200 {
			t.Errorf("%d", rec.Code)
		}
	})
}

// wait counts from the receipt of the request, also while the request waits for a place
// in a full queue; but it does not end that wait.
func TestPreferWait(t *testing.T) {
	for _, test := range []struct {
		name, prefer string
		full         time.Duration // until there is a place
		takes        string
		after        time.Duration
		status       int
		applied      string
	}{
		{"in time", "wait=5", 0, "3s", 3 * time.Second, 200, "wait=5"},
		{"late", "wait=2", 0, "3s", 2 * time.Second, 202, "wait=2"},
		{"at most what proxies wait", "wait=100", 0, "1h", 50 * time.Second, 202, "wait=50"},
		{"not at all", "wait=0", 0, "3s", 0, 202, "wait=0"},
		{"unknown", "wait=x", 0, "3s", 0, 202, ""},
		{"both", "respond-async, wait=2", 0, "3s", 2 * time.Second, 202, "respond-async, wait=2"},
		{"full for longer", "wait=5", 10 * time.Second, "1s", 10 * time.Second, 202, "wait=5"},
		{"full, then late", "wait=15", 10 * time.Second, "8s", 15 * time.Second, 202, "wait=15"},
		{"full, then in time", "wait=15", 10 * time.Second, "3s", 13 * time.Second, 200, "wait=15"},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, Config{Workers: 1, Queue: 0}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
				if test.full > 0 {
					accepted(t, post(f.Async(sleeps), test.full.String()))
					synctest.Wait()
				}
				rec := post(f.Async(sleeps), test.takes, "Prefer: "+test.prefer)
				f.at(t, "answered", test.after)
				hasHeader(t, rec, "Preference-Applied", test.applied)
				hasHeader(t, rec, "Vary", "Prefer")
				if test.status == 202 {
					accepted(t, rec)
				} else if rec.Code != 200 || rec.Body.String() != "slept "+test.takes || rec.Header().Get("Job-State") != "done" {
					t.Errorf("%d %v %s", rec.Code, rec.Header(), rec.Body)
				}
				time.Sleep(2 * time.Hour)
			})
		})
	}
	inBubble(t, Config{Workers: 1, Queue: 200}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
		rec := post(f.Async(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("x") })), "", "Prefer: wait=5")
		expectProblem(t, rec, 500, "panicked", "")
		hasHeader(t, rec, "Job-State", "failed")
		hasHeader(t, rec, "Preference-Applied", "wait=5")
		// A client that leaves while it waits loses the answer, not the job.
		ctx, leave := context.WithCancel(t.Context())
		go func() { time.Sleep(time.Second); leave() }()
		id := accepted(t, ask(ctx, f.Async(sleeps), "POST", "/", "10s", "Prefer: wait=60"))
		f.at(t, "left", time.Second)
		time.Sleep(time.Minute)
		if got := f.state(id); got != "done" {
			t.Errorf("%s", got)
		}
	})
}

func TestIdempotency(t *testing.T) {
	inBubble(t, Config{Workers: 1, Queue: 100}, JobsConfig{Retain: time.Hour}, func(t *testing.T, f *jobsFixture) {
		var ran []string
		h := f.Async(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			ran = append(ran, string(body))
			time.Sleep(time.Second)
			io.WriteString(w, "did "+string(body))
		}))
		const key = "Idempotency-Key: k"
		first := accepted(t, post(h, "a", key))
		same := func(what string, header ...string) {
			t.Helper()
			if id := accepted(t, post(h, "a", header...)); id != first {
				t.Errorf("%s: another job", what)
			}
		}
		same("queued or running", key)
		same("quoted", `Idempotency-Key: "k"`)
		same("with other headers", key, "User-Agent: x", "Prefer: handling=x")
		time.Sleep(time.Minute)
		same("ended", key)
		if rec := post(h, "a", key, "Prefer: wait=5"); rec.Body.String() != "did a" || rec.Header().Get("Job-State") != "done" {
			t.Errorf("%d %s", rec.Code, rec.Body)
		}
		expectProblem(t, post(h, "b", key), 422, "another request", "")
		expectProblem(t, ask(bg, h, "PUT", "/work", "a", key), 422, "another request", "")
		expectProblem(t, ask(bg, h, "POST", "/other", "a", key), 422, "another request", "")
		expectProblem(t, ask(bg, h, "POST", "/work?x", "a", key), 422, "another request", "")
		others := map[string]bool{first: true}
		for _, header := range [][]string{nil, nil, {"Idempotency-Key: K"}, {key, "Authorization: Bearer 1"}, {key, "Authorization: Bearer 2"}, {key, "Cookie: a=1"}} {
			id := accepted(t, post(h, "a", header...))
			if others[id] {
				t.Errorf("%q opens the job of another client", header)
			}
			others[id] = true
		}
		for _, bad := range [][]string{{"Idempotency-Key: "}, {`Idempotency-Key: "k`}, {key, key}, {"Idempotency-Key: " + strings.Repeat("x", 256)}} {
			expectProblem(t, post(h, "a", bad...), 400, "Idempotency-Key", "")
		}
		accepted(t, post(h, "last", "Idempotency-Key: "+strings.Repeat("x", 255)))
		time.Sleep(time.Minute)
		synctest.Wait()
		if want := []string{"a", "a", "a", "a", "a", "a", "a", "last"}; !slices.Equal(ran, want) {
			t.Errorf("ran %q, want %q", ran, want)
		}
		// The key is expectGone as long as its job.
		time.Sleep(time.Hour)
		if id := accepted(t, post(h, "b", key)); id == first {
			t.Error("the key outlives its job")
		}
		time.Sleep(time.Minute)
	})
}

// A request that waits for a place holds the key. When it comes to nothing, the next
// one takes over.
func TestIdempotencyTakesOver(t *testing.T) {
	for _, how := range []string{"is accepted", "leaves", "is shut out"} {
		inBubble(t, Config{Workers: 1, Queue: 0}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
			var ran atomic.Int64
			accepted(t, post(f.Async(sleeps), "1m"))
			synctest.Wait()
			h := f.Async(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { ran.Add(1) }))
			ctx, leave := context.WithCancel(t.Context())
			var recs [4]*httptest.ResponseRecorder
			var wg sync.WaitGroup
			for i := range recs {
				wg.Go(func() {
					mine := bg
					if i == 0 {
						mine = ctx
					}
					recs[i] = ask(mine, h, "POST", "/work", "", "Idempotency-Key: k")
				})
				synctest.Wait()
			}
			if n := f.d.Stats().Blocked; n != 1 {
				t.Errorf("%d wait for a place, want the first", n)
			}
			expectProblem(t, post(h, "other", "Idempotency-Key: k"), 422, "another request", "")
			switch how {
			case "leaves":
				leave()
				synctest.Wait()
				expectProblem(t, recs[0], 503, "ended before it was accepted", "")
				if n := f.d.Stats().Blocked; n != 1 {
					t.Errorf("%d wait for a place, want the second", n)
				}
			case "is shut out":
				f.d.Shutdown(t.Context())
			}
			wg.Wait()
			leave()
			synctest.Wait()
			mine := recs[:]
			switch how {
			case "leaves":
				mine = recs[1:]
			case "is shut out":
				for _, rec := range recs {
					expectProblem(t, rec, 503, "shutting down", "")
				}
				if ran.Load() != 0 {
					t.Error("ran")
				}
				return
			}
			id := accepted(t, mine[0])
			for _, rec := range mine {
				if accepted(t, rec) != id {
					t.Errorf("%s: another job", how)
				}
			}
			if ran.Load() != 1 {
				t.Errorf("%s: ran %d times", how, ran.Load())
			}
		})
	}
	// A refusal leaves the key free.
	inBubble(t, Config{Workers: 1, Queue: 0, Overflow: Reject}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
		accepted(t, post(f.Async(sleeps), "1m"))
		synctest.Wait()
		expectProblem(t, post(f.Async(sleeps), "1s", "Idempotency-Key: k"), 503, "full", "1")
		time.Sleep(time.Hour)
		accepted(t, post(f.Async(sleeps), "2s", "Idempotency-Key: k"))
		time.Sleep(time.Hour)
	})
}

// Each of a thousand clients gets the answer to its own request, however it asks.
func TestThousandClients(t *testing.T) {
	f := newJobsFixture(t, Config{Workers: 8, Queue: 50}, JobsConfig{})
	h := f.Async(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if len(body)%3 == 0 {
			time.Sleep(time.Millisecond)
		}
		w.Header().Set("X-Client", r.Header.Get("X-Client"))
		w.Header().Set("X-Job", string(JobID(r.Context())))
		w.WriteHeader(240 + len(body)%50)
		fmt.Fprintf(w, "%s|%s", r.URL.Path, body)
	}))
	var wg sync.WaitGroup
	for i := range 1000 {
		wg.Go(func() {
			name := fmt.Sprint("client-", i)
			path, body := "/"+name, strings.Repeat(name+" ", 1+i%70)
			headers := []string{"X-Client: " + name}
			if i%5 == 0 {
				headers = append(headers, "Idempotency-Key: "+name)
			}
			rec := ask(bg, h, "POST", path, body, headers...)
			if rec.Code != 202 {
				t.Errorf("%s: %d %s", name, rec.Code, rec.Body)
				return
			}
			location := rec.Header().Get("Location")
			switch i % 3 {
			case 0:
				for ask(bg, f, "GET", location+"/response", "").Header().Get("Job-State") != "done" {
					time.Sleep(time.Millisecond)
				}
			case 1:
				ask(bg, f, "GET", location, "", "Prefer: wait=60")
			default:
				if text := ask(bg, f, "GET", location, "", "Accept: text/event-stream").Body.String(); strings.Count(text, `"state":"done"`) != 1 {
					t.Errorf("%s: events %q", name, text)
				}
			}
			rec = ask(bg, f, "GET", location+"/response", "")
			if rec.Code != 240+len(body)%50 || rec.Body.String() != path+"|"+body || rec.Header().Get("X-Client") != name || "/jobs/"+rec.Header().Get("X-Job") != location {
				t.Errorf("%s at %s: %d %v %.80s", name, location, rec.Code, rec.Header(), rec.Body)
			}
		})
	}
	wg.Wait()
	if st := f.Stats(); st.Open != 0 || st.Kept != 1000 {
		t.Errorf("%+v", st)
	}
}

// What a request costs while it waits, taken from a real connection.
func TestMemoryOfWaitingRequests(t *testing.T) {
	const n = 20_000
	d, _ := buildLogged(t, Config{Workers: 0, Queue: n})
	jobs := mustJobs(t, d, JobsConfig{})
	c := serve(t, jobs.Async(sleeps))()
	r := bufio.NewReader(c)
	send := func() {
		fmt.Fprint(c, "POST /work HTTP/1.1\r\nHost: example.com\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\nContent-Type: application/json\r\nAuthorization: Bearer 0123456789abcdef\r\nContent-Length: 16\r\n\r\n{\"sleep_time\":1}")
		res, err := http.ReadResponse(r, nil)
		if err != nil || res.StatusCode != 202 {
			t.Fatal(res, err)
		}
		io.Copy(io.Discard, res.Body)
	}
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // what a sync.Pool holds goes with the second
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	send()
	before := heap()
	for range n - 1 {
		send()
	}
	each := (int64(heap()) - int64(before)) / (n - 1)
	if st := jobs.Stats(); st.Open != n {
		t.Fatalf("%+v", st)
	}
	t.Logf("a queued request takes %d bytes", each)
	if each > 4<<10 {
		t.Errorf("a queued request takes %d bytes, want less than 4 KiB", each)
	}
	runtime.KeepAlive(d)
}

// A slot is held while the response is written to a slow reader: chi's Throttle,
// navidrome #5472. Here the worker never meets the client.
func TestTrapSlowReaderHoldsNoWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 0))
		ran := make(chan struct{}, 2)
		h := mustJobs(t, d, JobsConfig{}).Async(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { ran <- struct{}{} }))
		reader := make(gate)
		for range 2 {
			go h.ServeHTTP(&unread{httptest.NewRecorder(), reader}, httptest.NewRequest("POST", "/", nil))
			<-ran
			synctest.Wait()
		}
		close(reader)
	})
}

// unread is a response that the client does not read until the gate opens.
type unread struct {
	*httptest.ResponseRecorder
	gate gate
}

func (u *unread) Write(p []byte) (int, error) { <-u.gate; return u.ResponseRecorder.Write(p) }
