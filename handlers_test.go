package holdfast

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"holdfast/histogram"
)

// asyncDispatcher returns a dispatcher that is shut down with the test, and
// where it logs to. What still runs then is cut off.
func asyncDispatcher(t *testing.T, cfg Config) (*Dispatcher, *asyncLog) {
	t.Helper()
	log := new(asyncLog)
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cut, cancel := context.WithCancel(context.Background())
		cancel()
		d.Shutdown(cut)
	})
	return d, log
}

type asyncLog struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *asyncLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *asyncLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// asyncPost sends a request with a body to a handler.
func asyncPost(h http.Handler, body io.Reader) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest("POST", "/bbb", body))
	return rec
}

// asyncAccepted checks that an answer is 202 in the form of the contract, and
// returns the id.
func asyncAccepted(t *testing.T, rec *httptest.ResponseRecorder) string {
	t.Helper()
	var body struct{ ID, State, URL string }
	dec := json.NewDecoder(bytes.NewReader(rec.Body.Bytes()))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&body); rec.Code != 202 || err != nil || len(body.ID) != 26 || body.State != "queued" || body.URL != "/jobs/"+body.ID {
		t.Fatalf("%d %s, want 202 with an id, the state queued and the URL", rec.Code, rec.Body)
	}
	if got := rec.Header(); got.Get("Content-Type") != "application/json" || got.Get("Content-Length") != strconv.Itoa(rec.Body.Len()) {
		t.Errorf("header %v", got)
	}
	return body.ID
}

// kept checks that an answer says that a job has failed: for good, with the status
// that a request which had waited for it would have got.
func kept(t *testing.T, rec *httptest.ResponseRecorder, cause int, says string) {
	t.Helper()
	asyncRefused(t, rec, 410, says, "")
	if want := fmt.Sprintf(`"cause_status":%d`, cause); !strings.Contains(rec.Body.String(), want) {
		t.Errorf("%s, want %s", rec.Body, want)
	}
}

// asyncRefused checks that an answer is a problem.
func asyncRefused(t *testing.T, rec *httptest.ResponseRecorder, status int, says, retryAfter string) {
	t.Helper()
	var p struct {
		Status int
		Detail string
	}
	err := json.Unmarshal(rec.Body.Bytes(), &p)
	if rec.Code != status || err != nil || p.Status != status || !strings.Contains(p.Detail, says) || rec.Header().Get("Content-Type") != "application/problem+json" {
		t.Errorf("%d %s, want a problem %d that says %q", rec.Code, rec.Body, status, says)
	}
	if got := rec.Header().Get("Retry-After"); got != retryAfter {
		t.Errorf("%d: Retry-After %q, want %q", rec.Code, got, retryAfter)
	}
}

func asyncSleep(d time.Duration) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(d):
		case <-r.Context().Done():
		}
	}
}

func TestAsyncIDs(t *testing.T) {
	const n, clients = 10_000, 10
	d, _ := asyncDispatcher(t, Config{Workers: 4, Queue: 20})
	ran := make(chan string, n)
	h := NewJobs(d, JobsConfig{}).Async(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ran <- JobID(r.Context())
	}))
	answered := make(chan string, n)
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for range n / clients {
				answered <- asyncAccepted(t, asyncPost(h, nil))
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
	d, _ := asyncDispatcher(t, Config{Workers: 1})
	type seen struct {
		method, uri, path, query, host, body string
		header                               http.Header
		err                                  error
	}
	got := make(chan seen, 1)
	h := NewJobs(d, JobsConfig{}).Async(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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
			asyncAccepted(t, rec)

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

// The job's context has the values of the request's, and goes on when the
// request has been answered and the client has left.
func TestAsyncContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := asyncDispatcher(t, Config{Workers: 1})
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
		async := NewJobs(d, JobsConfig{}).Async(job)
		dial := asyncServe(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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

// asyncServe runs an HTTP server in a bubble, on connections in memory.
func asyncServe(t *testing.T, h http.Handler) (dial func() net.Conn) {
	l := asyncListener{make(chan net.Conn), make(chan struct{})}
	s := &http.Server{Handler: h}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return func() net.Conn {
		client, server := net.Pipe()
		l.conns <- server
		t.Cleanup(func() { client.Close() })
		return client
	}
}

type asyncListener struct {
	conns chan net.Conn
	done  chan struct{}
}

func (l asyncListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l asyncListener) Close() error   { close(l.done); return nil }
func (l asyncListener) Addr() net.Addr { return &net.UnixAddr{Name: "memory", Net: "unix"} }

func TestAsyncRetryAfter(t *testing.T) {
	const ms = time.Millisecond
	for _, test := range []struct {
		name           string
		workers, queue int
		ran            []time.Duration // jobs that have run before
		pause          bool
		cancel         int // queued jobs that are canceled
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
		{name: "hand-over only", workers: 2, queue: -1, ran: []time.Duration{time.Minute}, want: 1},
		{name: "paused", workers: 4, queue: 5, ran: []time.Duration{2 * time.Second}, pause: true, want: 10}, // as with one worker
		{name: "paused from the start", workers: -1, queue: 5, want: 1},
		{name: "canceled jobs do not count", workers: 1, queue: 5, ran: []time.Duration{time.Second}, cancel: 2, want: 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, _ := asyncDispatcher(t, Config{Workers: test.workers, Queue: test.queue, Overflow: Reject})
				for _, run := range test.ran {
					err := d.Do(t.Context(), func(context.Context) error { time.Sleep(run); return nil })
					if err != nil {
						t.Fatal(err)
					}
				}
				if test.pause {
					d.Resize(0)
				}
				h := NewJobs(d, JobsConfig{}).Async(asyncSleep(1000 * time.Hour))
				for range d.Stats().Workers {
					asyncAccepted(t, asyncPost(h, nil))
				}
				for range test.cancel {
					j, err := d.Submit(t.Context(), func(context.Context) error { return nil })
					if err != nil {
						t.Fatal(err)
					}
					defer j.Cancel()
					synctest.Wait()
					j.Cancel()
				}
				for range max(test.queue-test.cancel, 0) {
					asyncAccepted(t, asyncPost(h, nil))
				}
				synctest.Wait()
				for range 2 {
					asyncRefused(t, asyncPost(h, nil), 503, "the queue is full", strconv.Itoa(test.want))
				}
				if n := d.Stats().RefusedFull; n != 2 {
					t.Errorf("%d refused, want 2", n)
				}
			})
		})
	}
}

// Whole seconds are not missed by a rounding, whatever the backlog and the mean.
func TestAsyncRetryAfterExact(t *testing.T) {
	const queue = 120
	d, _ := asyncDispatcher(t, Config{Workers: -1, Queue: queue})
	for queued := 1; queued <= queue; queued++ {
		if err := d.Go(t.Context(), func(context.Context) error { return nil }); err != nil {
			t.Fatal(err)
		}
		for ms := 1; ms <= 1200; ms += 3 {
			d.counts.Others().Run = histogram.Histogram{Count: 1, Sum: float64(ms) * 1e6} // one job that took ms
			if got, want := d.retryAfter(), (queued*ms+999)/1000; got != want {
				t.Fatalf("%d queued, %d ms each: %d, want %d", queued, ms, got, want)
			}
		}
	}
}

func TestAsyncClosed(t *testing.T) {
	for _, policy := range []Overflow{Block, Reject, DropOldest} {
		d, _ := asyncDispatcher(t, Config{Workers: 1, Overflow: policy})
		if _, err := d.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		h := NewJobs(d, JobsConfig{}).Async(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a job ran") }))
		asyncRefused(t, asyncPost(h, nil), 503, "shutting down", "")
	}
}

func TestAsyncDropOldest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := asyncDispatcher(t, Config{Workers: 1, Queue: 2, Overflow: DropOldest})
		var ran []string
		h := NewJobs(d, JobsConfig{}).Async(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second)
			ran = append(ran, JobID(r.Context()))
		}))
		var ids []string
		for range 6 {
			ids = append(ids, asyncAccepted(t, asyncPost(h, nil)))
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
	})
	synctest.Test(t, func(t *testing.T) { // nothing is queued that could be dropped
		d, _ := asyncDispatcher(t, Config{Workers: 1, Queue: -1, Overflow: DropOldest})
		h := NewJobs(d, JobsConfig{}).Async(asyncSleep(time.Hour))
		asyncAccepted(t, asyncPost(h, nil))
		synctest.Wait() // it runs
		asyncRefused(t, asyncPost(h, nil), 503, "the queue is full", "1")
	})
}

// Under Block a request waits for as long as it takes; whoever leaves while it
// waits has no job, and holds up nobody.
func TestAsyncBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := asyncDispatcher(t, Config{Workers: 1, Queue: 1})
		var ran []string
		dial := asyncServe(t, NewJobs(d, JobsConfig{}).Async(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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
	d, _ := asyncDispatcher(t, Config{Workers: 1})
	h := NewJobs(d, JobsConfig{}).Async(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a job ran") }))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequestWithContext(ctx, "POST", "/bbb", nil))
	asyncRefused(t, rec, 503, "ended before it was accepted", "")
	if _, err := d.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

// A job that posts to its own dispatcher is told when that would have to wait.
func TestAsyncNested(t *testing.T) {
	d, _ := asyncDispatcher(t, Config{Workers: 1, Queue: 1})
	jobs := NewJobs(d, JobsConfig{})
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
		asyncAccepted(t, post())
		asyncRefused(t, post(), 503, "comes from a job of the same queue", "")
	}))
	asyncAccepted(t, asyncPost(inner, nil))
	<-done
	if _, err := d.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

// A handler may panic or end its goroutine; the worker lives on, and the log
// has it.
func TestAsyncPanic(t *testing.T) {
	d, log := asyncDispatcher(t, Config{Workers: 1, Queue: 10})
	ran := make(chan string, 3)
	h := NewJobs(d, JobsConfig{}).Async(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		ran <- string(body)
		switch string(body) {
		case "panic":
			panic("deliberate")
		case "nil":
			panic(nil)
		}
	}))
	for _, body := range []string{"panic", "nil", "last"} {
		asyncAccepted(t, asyncPost(h, strings.NewReader(body)))
		if got := <-ran; got != body {
			t.Errorf("ran %q, want %q", got, body)
		}
	}
	if _, err := d.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	text := log.String()
	if strings.Count(text, "level=ERROR") != 2 || !strings.Contains(text, "deliberate") || !strings.Contains(text, "panic called with nil") || !strings.Contains(text, "handlers_test.go") {
		t.Errorf("want two records with the panics and their stacks:\n%s", text)
	}
	if st := d.Stats(); st.Panicked != 2 || st.Succeeded != 1 {
		t.Errorf("%d panicked, %d succeeded; want 2 and 1", st.Panicked, st.Succeeded)
	}
}

func TestAsyncBody(t *testing.T) {
	for _, test := range []struct {
		limit  int64 // of JobsConfig
		size   int
		status int
		says   string
	}{
		{10, 10, 202, ""},
		{10, 11, 413, "at most 10 bytes"},
		{10, 1000, 413, "at most 10 bytes"},
		{1, 0, 202, ""},
		{0, 1 << 20, 202, ""}, // the default
		{0, 1<<20 + 1, 413, "at most 1048576 bytes"},
	} {
		d, _ := asyncDispatcher(t, Config{Workers: 1})
		sizes := make(chan int, 1)
		h := NewJobs(d, JobsConfig{MaxBody: test.limit}).Async(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			sizes <- len(body)
		}))
		rec := asyncPost(h, strings.NewReader(strings.Repeat("x", test.size)))
		if _, err := d.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		close(sizes)
		got, ran := <-sizes
		switch {
		case test.status != 202:
			asyncRefused(t, rec, test.status, test.says, "")
			if ran {
				t.Error("a job ran")
			}
		case got != test.size:
			asyncAccepted(t, rec)
			t.Errorf("the handler read %d bytes, want %d", got, test.size)
		}
	}

	// What says that it is too large is not read.
	{
		d, _ := asyncDispatcher(t, Config{Workers: 1})
		h := NewJobs(d, JobsConfig{MaxBody: 10}).Async(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a job ran") }))
		req := httptest.NewRequest("POST", "/bbb", iotest.ErrReader(errors.New("read")))
		req.ContentLength = 11
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, req)
		asyncRefused(t, rec, 413, "at most 10 bytes", "")
	}

	// Of a request that breaks off there is no job.
	d, _ := asyncDispatcher(t, Config{Workers: 1})
	h := NewJobs(d, JobsConfig{}).Async(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a job ran") }))
	body, w := io.Pipe()
	go func() {
		io.WriteString(w, "half")
		w.CloseWithError(errors.New("connection reset"))
	}()
	asyncRefused(t, asyncPost(h, body), 400, "could not be read", "")
	if _, err := d.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}
