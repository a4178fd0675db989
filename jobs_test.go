package holdfast

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"
)

// inBubble runs a test of Jobs in virtual time.
func inBubble(t *testing.T, cfg Config, jc JobsConfig, test func(t *testing.T, f *jobsFixture)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, newJobsFixture(t, cfg, jc)) })
}

type jobsFixture struct {
	*Jobs
	d     *Dispatcher
	log   *asyncLog
	began time.Time
}

func newJobsFixture(t *testing.T, cfg Config, jc JobsConfig) *jobsFixture {
	d, log := asyncDispatcher(t, cfg)
	return &jobsFixture{mustJobs(t, d, jc), d, log, time.Now()}
}

// ask sends a request to a handler. Headers come as "Name: value".
func ask(ctx context.Context, h http.Handler, method, target, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequestWithContext(ctx, method, target, strings.NewReader(body))
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		r.Header.Add(name, value)
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return rec
}

func post(h http.Handler, body string, header ...string) *httptest.ResponseRecorder {
	return ask(bg, h, "POST", "/work", body, header...)
}

// state returns where a job stands.
func (f *jobsFixture) state(id string) string {
	return ask(bg, f, "GET", "/jobs/"+id, "").Header().Get("Job-State")
}

func (f *jobsFixture) response(id string) *httptest.ResponseRecorder {
	return ask(bg, f, "GET", "/jobs/"+id+"/response", "")
}

// at checks the time since the fixture was made.
func (f *jobsFixture) at(t *testing.T, what string, want time.Duration) {
	t.Helper()
	if got := time.Since(f.began); got != want {
		t.Errorf("%s after %v, want %v", what, got, want)
	}
}

func hasHeader(t *testing.T, rec *httptest.ResponseRecorder, name, want string) {
	t.Helper()
	if got := strings.Join(rec.Header()[name], "|"); got != want {
		t.Errorf("%s is %q, want %q", name, got, want)
	}
}

// sleeps answers with its body after the time that the body says, or when its
// context ends.
var sleeps = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	d, err := time.ParseDuration(string(body))
	if err != nil {
		panic(err)
	}
	select {
	case <-time.After(d):
		fmt.Fprintf(w, "slept %s", body)
	case <-r.Context().Done():
	}
})

func TestSyncIsOutsideThePool(t *testing.T) {
	f := newJobsFixture(t, Config{Workers: 0, Queue: 0, Overflow: Reject}, JobsConfig{})
	var request *http.Request
	var writer http.ResponseWriter
	rec := httptest.NewRecorder()
	r := httptest.NewRequest("POST", "/work", nil)
	f.Sync(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		request, writer = r, w
		w.WriteHeader(418)
	})).ServeHTTP(rec, r)
	if request != r || writer != http.ResponseWriter(rec) || rec.Code != 418 {
		t.Errorf("%d; want the handler to get the request and the writer themselves", rec.Code)
	}
	hasHeader(t, rec, "Vary", "Prefer")
	// A panic reaches its caller, so it runs in the caller's goroutine.
	defer func() {
		if v := recover(); v != "mine" {
			t.Errorf("recovered %v", v)
		}
		if st := f.d.Stats(); st.Accepted != 0 || st.RefusedFull != 0 {
			t.Errorf("the pool has had to do with it: %+v", st)
		}
	}()
	post(f.Sync(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("mine") })), "")
}

// What is meant for Jobs is taken out of Prefer, and nothing else is.
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
			began := time.Now()
			rec := post(wrap(sleeps), "1m", "Prefer: Respond-Async")
			id := asyncAccepted(t, rec)
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

func TestQueuedWaitsForAWorker(t *testing.T) {
	inBubble(t, Config{Workers: 1, Queue: 200}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
		h := f.Queued(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			time.Sleep(time.Hour)
			w.Header()["x-odd-CASE"] = []string{"1", "", "2"}
			w.Header()["Content-Type"] = nil
			w.Header().Set("Trailer", "X-End")
			w.WriteHeader(299)
			w.Write(body)
			w.Header().Set("X-End", "fin")
		}))
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() {
				rec := post(h, fmt.Sprint("body ", i))
				f.at(t, "answered", time.Duration(i+1)*time.Hour)
				if rec.Code != 299 || rec.Body.String() != fmt.Sprint("body ", i) {
					t.Errorf("%d %s", rec.Code, rec.Body)
				}
				res := rec.Result()
				odd := map[string][]string(rec.Header())["x-odd-CASE"] // as the handler has written it
				if !slices.Equal(odd, []string{"1", "", "2"}) || res.Header["Content-Type"] != nil || res.Trailer.Get("X-End") != "fin" {
					t.Errorf("%v, trailer %v", rec.Header(), res.Trailer)
				}
				hasHeader(t, rec, "Vary", "Prefer")
			})
			synctest.Wait()
		}
		wg.Wait()
	})
}

func TestQueuedBound(t *testing.T) {
	inBubble(t, Config{Workers: 3, Queue: 5}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
		var now, most atomic.Int64
		h := f.Queued(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n := now.Add(1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			time.Sleep(time.Second)
			now.Add(-1)
			io.Copy(w, r.Body)
		}))
		var wg sync.WaitGroup
		for i := range 60 {
			wg.Go(func() {
				if rec := post(h, fmt.Sprint(i)); rec.Body.String() != fmt.Sprint(i) {
					t.Errorf("%d got %d %s", i, rec.Code, rec.Body)
				}
			})
		}
		wg.Wait()
		f.at(t, "all", 20*time.Second)
		if most.Load() != 3 {
			t.Errorf("%d at once, want 3", most.Load())
		}
	})
}

func TestQueuedClientLeaves(t *testing.T) {
	inBubble(t, Config{Workers: 1, Queue: 200}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
		var called []string
		var cause error
		h := f.Queued(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			called = append(called, string(body))
			if string(body) == "running" {
				<-r.Context().Done()
				cause = r.Context().Err()
				time.Sleep(time.Minute) // it takes its time to return
			}
		}))
		ctx, leave := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			ask(ctx, h, "POST", "/work", "running")
			f.at(t, "the request of a running job returned", 2*time.Minute)
		})
		synctest.Wait()
		early, leaveEarly := context.WithCancel(t.Context())
		wg.Go(func() {
			ask(early, h, "POST", "/work", "left before the start")
			f.at(t, "the request of a queued job returned", 30*time.Second)
		})
		synctest.Wait()
		wg.Go(func() {
			if rec := post(h, "last"); rec.Code != 200 {
				t.Errorf("%d", rec.Code)
			}
			f.at(t, "the worker was free", 2*time.Minute)
		})
		time.Sleep(30 * time.Second)
		leaveEarly()
		time.Sleep(30 * time.Second)
		leave()
		wg.Wait()
		if !slices.Equal(called, []string{"running", "last"}) || cause != context.Canceled {
			t.Errorf("called %q, the context ended with %v", called, cause)
		}
	})
}

// The same over a connection: the server has read the body, so it notices.
func TestQueuedConnectionBreaks(t *testing.T) {
	inBubble(t, Config{Workers: 1, Queue: 200}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
		var called, ended atomic.Int64
		dial := asyncServe(t, f.Queued(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			called.Add(1)
			<-r.Context().Done()
			ended.Add(1)
		})))
		first, second := dial(), dial()
		fmt.Fprint(first, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody")
		synctest.Wait()
		fmt.Fprint(second, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n")
		synctest.Wait()
		if st := f.d.Stats(); st.Running != 1 || st.Queued != 1 {
			t.Fatalf("%d running, %d queued", st.Running, st.Queued)
		}
		second.Close()
		synctest.Wait()
		if st := f.d.Stats(); st.Queued != 0 || st.Canceled != 1 {
			t.Errorf("%d queued, %d canceled", st.Queued, st.Canceled)
		}
		first.Close()
		synctest.Wait()
		if called.Load() != 1 || ended.Load() != 1 {
			t.Errorf("%d called, %d ended", called.Load(), ended.Load())
		}
	})
}

func TestQueuedRefusals(t *testing.T) {
	inBubble(t, Config{Workers: 1, Queue: 1, Overflow: Reject}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
		h := f.Queued(sleeps)
		post(h, "10s") // so that there is a mean
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() { post(h, "10s") })
			synctest.Wait()
		}
		asyncRefused(t, post(h, "10s"), 503, "queue is full", "10")
		asyncRefused(t, post(f.Async(sleeps), "10s"), 503, "queue is full", "10")
		wg.Wait()
	})
	inBubble(t, Config{Workers: 1, Queue: 1, Overflow: DropOldest}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
		h := f.Queued(sleeps)
		var wg sync.WaitGroup
		var dropped *httptest.ResponseRecorder
		wg.Go(func() { post(h, "10s") })
		synctest.Wait()
		wg.Go(func() {
			dropped = post(h, "10s")
			f.at(t, "dropped", 5*time.Second)
		})
		time.Sleep(5 * time.Second)
		if rec := post(h, "1s"); rec.Code != 200 {
			t.Errorf("%d", rec.Code)
		}
		wg.Wait()
		asyncRefused(t, dropped, 503, "gave its place", "1")
	})
}

func TestQueuedShutdown(t *testing.T) {
	inBubble(t, Config{Workers: 1, Queue: 1}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
		h := f.Queued(sleeps)
		recs := make([]*httptest.ResponseRecorder, 3) // running, queued, waiting for a place
		var wg sync.WaitGroup
		for i := range recs {
			wg.Go(func() { recs[i] = post(h, "1h") })
			synctest.Wait()
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		f.d.Shutdown(ctx)
		wg.Wait()
		f.at(t, "all are told", time.Minute)
		for _, rec := range append(recs, post(h, "1h")) {
			asyncRefused(t, rec, 503, "shutting down", "")
		}
	})
}

func TestQueuedJobTimeout(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"obeys":   func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"answers": func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done(); w.Write([]byte("late")) },
		"ignores": func(w http.ResponseWriter, r *http.Request) { time.Sleep(2 * time.Second) },
	} {
		inBubble(t, Config{Workers: 1, JobTimeout: time.Second, Queue: 200}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
			asyncRefused(t, post(f.Queued(h), ""), 504, "longer than a job may", "")
			id := asyncAccepted(t, post(f.Async(h), ""))
			time.Sleep(10 * time.Second)
			rec := f.response(id)
			kept(t, rec, 504, "longer than a job may")
			if got := rec.Header().Get("Job-State"); got != "failed" || f.d.Stats().Failed != 2 {
				t.Errorf("%s: %s, %d failed", name, got, f.d.Stats().Failed)
			}
		})
	}
}

// A client learns that the handler panicked, and nothing else; the log has the
// rest.
func TestPanics(t *testing.T) {
	for _, value := range []any{"secret", errors.New("secret"), fmt.Errorf("secret: %w", context.DeadlineExceeded), fmt.Errorf("secret: %w", context.Canceled), fmt.Errorf("secret: %w", ErrQueueFull)} {
		for _, partly := range []bool{false, true} {
			inBubble(t, Config{Workers: 1, Queue: 200}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
				h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if partly {
						w.Header().Set("X-Secret", "1")
						io.WriteString(w, "secret")
					}
					panic(value)
				})
				queued := post(f.Queued(h), "")
				async := f.response(asyncAccepted(t, post(f.Async(h), "", "Prefer: handling=x")))
				if async.Code == 202 {
					synctest.Wait()
					async = f.response(strings.Split(async.Body.String(), `"`)[3])
				}
				asyncRefused(t, queued, 500, "the handler panicked", "")
				kept(t, async, 500, "the handler panicked")
				for _, rec := range []*httptest.ResponseRecorder{queued, async} {
					if all := fmt.Sprint(rec.Header(), rec.Body); strings.Contains(strings.ToLower(all), "secret") || strings.Contains(all, "goroutine") || strings.Contains(all, ".go") {
						t.Errorf("it tells: %s", all)
					}
				}
				if got := async.Header().Get("Job-State"); got != "failed" {
					t.Errorf("Job-State %q", got)
				}
				if text := f.log.String(); strings.Count(text, "level=ERROR") != 2 || !strings.Contains(text, "secret") || !strings.Contains(text, "jobs_test.go") {
					t.Errorf("log: %s", text)
				}
			})
		}
	}
}

// http.ErrAbortHandler ends the request as it does without a queue: no answer, no
// log.
func TestAbortHandler(t *testing.T) {
	inBubble(t, Config{Workers: 1, Queue: 200}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
		abort := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "a part")
			panic(http.ErrAbortHandler)
		})
		for _, h := range []http.Handler{f.Queued(abort), f.Sync(abort)} {
			func() {
				defer func() {
					if v := recover(); v != http.ErrAbortHandler {
						t.Errorf("recovered %v", v)
					}
				}()
				post(h, "")
			}()
		}
		c := asyncServe(t, f.Queued(abort))()
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		if text, err := io.ReadAll(c); err != nil || len(text) > 0 {
			t.Errorf("%q, %v; want the connection to be closed without an answer", text, err)
		}
		id := asyncAccepted(t, post(f.Async(abort), ""))
		synctest.Wait()
		kept(t, f.response(id), 500, "aborted")
		if got := f.state(id); got != "failed" {
			t.Errorf("state %s", got)
		}
		if text := f.log.String(); text != "" {
			t.Errorf("log: %s", text)
		}
	})
}

func TestGoexitFails(t *testing.T) {
	inBubble(t, Config{Workers: 1, Queue: 200}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "a part")
			runtime.Goexit()
		})
		asyncRefused(t, post(f.Queued(h), ""), 500, "did not return", "")
		id := asyncAccepted(t, post(f.Async(h), ""))
		synctest.Wait()
		kept(t, f.response(id), 500, "did not return")
		if got := f.state(id); got != "failed" {
			t.Errorf("state %s", got)
		}
		if rec := post(f.Queued(sleeps), "1s"); rec.Body.String() != "slept 1s" {
			t.Errorf("the worker is gone: %d %s", rec.Code, rec.Body)
		}
	})
}

// A client that does not read its response holds no worker.
func TestQueuedSlowReader(t *testing.T) {
	inBubble(t, Config{Workers: 1, Queue: 200}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
		const size = 4 << 20
		dial := asyncServe(t, f.Queued(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Write(make([]byte, size))
		})))
		slow := dial() // a pipe without a buffer
		fmt.Fprint(slow, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		synctest.Wait()
		if st := f.d.Stats(); st.Running != 0 || st.Succeeded != 1 {
			t.Fatalf("%d running, %d succeeded", st.Running, st.Succeeded)
		}
		if rec := post(f.Queued(sleeps), "1s"); rec.Code != 200 {
			t.Errorf("%d", rec.Code)
		}
		// It gets all of it, whenever it reads.
		time.Sleep(time.Hour)
		res, err := http.ReadResponse(bufio.NewReader(slow), nil)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, res.Body); n != size || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
	})
}

func TestBodyBound(t *testing.T) {
	f := newJobsFixture(t, Config{Workers: 1, Queue: 200}, JobsConfig{MaxBody: 10})
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	for name, h := range map[string]http.Handler{"Queued": f.Queued(h), "Async": f.Async(h)} {
		asyncRefused(t, post(h, "12345678901"), 413, "at most 10 bytes", "")
		if rec := post(h, "1234567890"); rec.Code >= 400 {
			t.Errorf("%s: %d", name, rec.Code)
		}
		r := httptest.NewRequest("POST", "/", io.MultiReader(strings.NewReader("123456"), strings.NewReader("78901"))) // of unknown length
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		asyncRefused(t, rec, 413, "at most 10 bytes", "")
	}
	if n := f.d.Stats().Accepted; n != 2 {
		t.Errorf("%d accepted, want 2", n)
	}
}

func TestResponseBound(t *testing.T) {
	inBubble(t, Config{Workers: 1, Queue: 200}, JobsConfig{MaxResponse: 1000}, func(t *testing.T, f *jobsFixture) {
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var n int
			fmt.Fscan(r.Body, &n)
			w.Write(make([]byte, n))
		})
		for _, n := range []int{0, 900, 1001, 1 << 20} {
			queued := post(f.Queued(h), fmt.Sprint(n))
			id := asyncAccepted(t, post(f.Async(h), fmt.Sprint(n)))
			synctest.Wait()
			async := f.response(id)
			if n <= 900 {
				if queued.Code != 200 || async.Code != 200 || queued.Body.Len() != n || async.Body.Len() != n {
					t.Errorf("%d bytes: %d and %d", n, queued.Code, async.Code)
				}
				continue
			}
			asyncRefused(t, queued, 500, "too large; at most 1000 bytes", "")
			kept(t, async, 500, "too large; at most 1000 bytes")
			if got := f.state(id); got != "failed" {
				t.Errorf("state %s", got)
			}
		}
	})
}

func TestCancelJobs(t *testing.T) {
	inBubble(t, Config{Workers: 1, Queue: 5}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
		var ran []string
		var ended error
		h := f.Async(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ran = append(ran, string(JobID(r.Context())))
			<-r.Context().Done()
			ended = r.Context().Err()
			time.Sleep(time.Minute)
			io.WriteString(w, "nobody wants it")
		}))
		running, queued := asyncAccepted(t, post(h, "")), ""
		synctest.Wait()
		queued = asyncAccepted(t, post(h, ""))
		if rec := ask(bg, f, "DELETE", "/jobs/"+queued, ""); rec.Code != 200 || rec.Header().Get("Job-State") != "canceled" {
			t.Errorf("queued: %d %s", rec.Code, rec.Body)
		}
		asyncRefused(t, f.response(queued), 410, "canceled", "")
		if rec := ask(bg, f, "DELETE", "/jobs/"+running, ""); rec.Code != 202 || rec.Header().Get("Job-State") != "running" {
			t.Errorf("running: %d %s", rec.Code, rec.Body)
		}
		synctest.Wait()
		if ended != context.Canceled {
			t.Errorf("its context: %v", ended)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		asyncRefused(t, f.response(running), 410, "canceled", "")
		if rec := ask(bg, f, "DELETE", "/jobs/"+running, ""); rec.Code != 200 {
			t.Errorf("again: %d", rec.Code)
		}
		if !slices.Equal(ran, []string{running}) {
			t.Errorf("ran %q", ran)
		}
		if st := f.Stats(); st.Open != 0 || st.Kept != 2 {
			t.Errorf("%+v", st)
		}
	})
}

func TestDroppedJobs(t *testing.T) {
	inBubble(t, Config{Workers: 1, Queue: 1, Overflow: DropOldest}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
		h := f.Async(sleeps)
		var ids []string
		for range 3 {
			ids = append(ids, asyncAccepted(t, post(h, "1h")))
			synctest.Wait()
		}
		rec := f.response(ids[1])
		asyncRefused(t, rec, 410, "dropped", "")
		hasHeader(t, rec, "Job-State", "dropped")
		if a, b := f.state(ids[0]), f.state(ids[2]); a != "running" || b != "queued" {
			t.Errorf("%s and %s", a, b)
		}
	})
}

func TestShutdownEndsJobs(t *testing.T) {
	inBubble(t, Config{Workers: 2, Queue: 5}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
		h := f.Async(sleeps)
		obeys := asyncAccepted(t, post(h, "1h"))
		ignores := asyncAccepted(t, post(f.Async(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(time.Hour) })), ""))
		synctest.Wait()
		queued := asyncAccepted(t, post(h, "1h"))
		var polled, streamed *httptest.ResponseRecorder
		var wg sync.WaitGroup
		wg.Go(func() {
			polled = ask(bg, f, "GET", "/jobs/"+ignores, "", "Prefer: wait=60")
			f.at(t, "the long poll ended", 30*time.Second)
		})
		wg.Go(func() {
			streamed = ask(bg, f, "GET", "/jobs/"+ignores, "", "Accept: text/event-stream")
			f.at(t, "the stream ended", 30*time.Second)
		})
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		f.d.Shutdown(ctx)
		wg.Wait()
		synctest.Wait()
		if polled.Header().Get("Job-State") != "running" || strings.Contains(streamed.Body.String(), "id: 3") {
			t.Errorf("%s, %s", polled.Body, streamed.Body)
		}
		asyncRefused(t, f.response(queued), 410, "shut down before the job had started", "")
		asyncRefused(t, f.response(obeys), 410, "canceled", "")
		if a, b, c := f.state(obeys), f.state(ignores), f.state(queued); a != "canceled" || b != "running" || c != "canceled" {
			t.Errorf("%s, %s, %s", a, b, c)
		}
		time.Sleep(time.Hour)
		if got := f.state(ignores); got != "canceled" {
			t.Errorf("%s", got)
		}
	})
}

func TestJobID(t *testing.T) {
	inBubble(t, Config{Workers: 3, Queue: 200}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
		seen := make(map[string]string)
		var mu sync.Mutex
		see := func(ctx context.Context, where string) {
			mu.Lock()
			defer mu.Unlock()
			seen[where] = string(JobID(ctx))
		}
		type key struct{}
		inner := ""
		h := f.Async(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ctx := r.Context()
			see(ctx, "handler")
			see(context.WithValue(ctx, key{}, 1), "child")
			job := func(where string) func(context.Context) error {
				return func(ctx context.Context) error { see(ctx, where); return nil }
			}
			f.d.Go(ctx, job("Go"))
			f.d.Submit(context.WithValue(ctx, key{}, 1), job("Submit"))
			f.d.Go(ctx, func(ctx context.Context) error { return f.d.Go(ctx, job("Go in Go")) })
			other, _ := asyncDispatcher(t, Config{Workers: 1, Queue: 200})
			other.Do(ctx, job("Do elsewhere"))
			post(mustJobs(t, other, JobsConfig{}).Queued(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { see(r.Context(), "unrelated") })), "")
			inner = asyncAccepted(t, ask(ctx, f.Async(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { see(r.Context(), "job of its own") })), "POST", "/", ""))
		}))
		id := asyncAccepted(t, post(h, ""))
		synctest.Wait()
		post(f.Sync(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { see(r.Context(), "Sync") })), "")
		post(f.Queued(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { see(r.Context(), "Queued") })), "")
		want := map[string]string{
			"handler": id, "child": id, "Go": id, "Submit": id, "Go in Go": id, "Do elsewhere": id,
			"job of its own": inner, "unrelated": "", "Sync": "", "Queued": "",
		}
		if fmt.Sprint(seen) != fmt.Sprint(want) || id == inner {
			t.Errorf("%v\nwant %v", seen, want)
		}
		if got := JobID(t.Context()); got != "" {
			t.Errorf("%q in a context of no job", got)
		}
	})
}

// A handler answers the same, however it is wrapped.
func TestWrappedAnswersTheSame(t *testing.T) {
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		w.Header().Set("X-Path", r.URL.Path)
		if r.URL.Path == "/flushed" {
			io.WriteString(w, "a part, ")
			w.(http.Flusher).Flush()
		}
		fmt.Fprintf(w, "%s %s %s", r.Method, r.URL, r.Header.Get("X-Sent"))
		w.Header().Set("X-Sum", "42")
	}))
	defer upstream.Close()
	target, _ := url.Parse(upstream.URL)
	modified := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	files := fstest.MapFS{
		"a.txt":      {Data: []byte("some text"), ModTime: modified},
		"big.bin":    {Data: bytes.Repeat([]byte{0, 1, 2, 3}, 50_000), ModTime: modified},
		"page.html":  {Data: []byte("<p>page"), ModTime: modified},
		"dir/b.json": {Data: []byte("{}"), ModTime: modified},
		"empty.css":  {ModTime: modified},
	}
	handlers := map[string]http.Handler{
		"files":  http.FileServer(http.FS(files)),
		"teapot": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Error(w, "I'm a teapot", http.StatusTeapot) }),
		"proxy":  &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }},
		"empty":  http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}),
		"204":    http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) }),
		"bare": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header()["Content-Type"], w.Header()["Date"] = nil, nil
			w.Write([]byte("x"))
		}),
	}
	f := newJobsFixture(t, Config{Workers: 2, Queue: 200}, JobsConfig{})
	mux := http.NewServeMux()
	mux.Handle("/jobs/", f)
	for name, h := range handlers {
		for wrapper, wrapped := range map[string]http.Handler{"plain": h, "sync": f.Sync(h), "queued": f.Queued(h), "async": f.Async(h), "waited": f.Async(h)} {
			prefix := "/" + wrapper + "/" + name
			mux.Handle(prefix+"/", http.StripPrefix(prefix, wrapped))
		}
	}
	server := httptest.NewServer(mux)
	defer server.Close()
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	fetch := func(method, path string, header ...string) *http.Response {
		r, err := http.NewRequest(method, server.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Accept-Encoding", "identity")
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		res, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	// describe returns all that a client sees, but for what is ours.
	describe := func(res *http.Response) string {
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		h := res.Header.Clone()
		if h.Get("Date") != "" {
			h.Set("Date", "some")
		}
		for _, ours := range []string{"Vary", "Job-State", "Preference-Applied"} {
			h.Del(ours)
		}
		return fmt.Sprintf("%d, %d bytes of %d, %v, %v, %v, %v, %x", res.StatusCode, len(body), res.ContentLength, res.TransferEncoding, h, res.Trailer, err, body[:min(len(body), 100)])
	}
	for _, test := range []struct {
		method, path string
		header       []string
	}{
		{"GET", "/files/a.txt", nil},
		{"HEAD", "/files/a.txt", nil},
		{"GET", "/files/", nil},
		{"GET", "/files/dir", nil},
		{"GET", "/files/big.bin", nil},
		{"HEAD", "/files/big.bin", nil},
		{"GET", "/files/big.bin", []string{"Range", "bytes=10-19"}},
		{"GET", "/files/big.bin", []string{"Range", "bytes=0-9,20-29,100000-"}},
		{"GET", "/files/big.bin", []string{"Range", "bytes=900000-"}},
		{"GET", "/files/a.txt", []string{"If-Modified-Since", modified.Format(http.TimeFormat)}},
		{"GET", "/files/page.html", nil},
		{"GET", "/files/empty.css", nil},
		{"GET", "/files/none", nil},
		{"POST", "/teapot/", nil},
		{"GET", "/empty/", nil},
		{"HEAD", "/empty/", nil},
		{"DELETE", "/204/", nil},
		{"GET", "/bare/", nil},
		{"GET", "/proxy/x?y=z", []string{"X-Sent", "yes"}},
		{"POST", "/proxy/flushed", nil},
		{"HEAD", "/proxy/x", nil},
	} {
		plain := fetch(test.method, "/plain"+test.path, test.header...)
		want := describe(plain)
		// The boundary of several ranges is random.
		boundary := ""
		if _, after, ok := strings.Cut(plain.Header.Get("Content-Type"), "boundary="); ok {
			boundary = after
		}
		same := func(wrapper string, res *http.Response) {
			got := describe(res)
			if boundary != "" {
				got, _, _ = strings.Cut(got, ", map")
				want, _, _ = strings.Cut(want, ", map")
			}
			if got != want {
				t.Errorf("%s %s %q\nas %s: %s\nplain: %s", test.method, test.path, test.header, wrapper, got, want)
			}
		}
		same("sync", fetch(test.method, "/sync"+test.path, test.header...))
		same("queued", fetch(test.method, "/queued"+test.path, test.header...))
		waited := fetch(test.method, "/waited"+test.path, append(slices.Clone(test.header), "Prefer", "wait=50")...)
		if waited.Header.Get("Job-State") != "done" || waited.Header.Get("Preference-Applied") != "wait=50" {
			t.Errorf("%v", waited.Header)
		}
		same("waited", waited)
		res := fetch(test.method, "/async"+test.path, test.header...)
		res.Body.Close()
		// Looked up in the way of the request, or Content-Length could not be the same.
		method := "GET"
		if test.method == "HEAD" {
			method = "HEAD"
		}
		async := fetch(method, res.Header.Get("Location")+"/response", "Prefer", "wait=60")
		if async.Header.Get("Job-State") != "done" {
			t.Errorf("%v", async.Header)
		}
		same("async", async)
	}
}

// wait counts from the receipt of the request, also while it waits for a place in a
// full queue; but that it does not end.
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
					asyncAccepted(t, post(f.Async(sleeps), test.full.String()))
					synctest.Wait()
				}
				rec := post(f.Async(sleeps), test.takes, "Prefer: "+test.prefer)
				f.at(t, "answered", test.after)
				hasHeader(t, rec, "Preference-Applied", test.applied)
				hasHeader(t, rec, "Vary", "Prefer")
				if test.status == 202 {
					asyncAccepted(t, rec)
				} else if rec.Code != 200 || rec.Body.String() != "slept "+test.takes || rec.Header().Get("Job-State") != "done" {
					t.Errorf("%d %v %s", rec.Code, rec.Header(), rec.Body)
				}
				time.Sleep(2 * time.Hour)
			})
		})
	}
	inBubble(t, Config{Workers: 1, Queue: 200}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
		rec := post(f.Async(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("x") })), "", "Prefer: wait=5")
		asyncRefused(t, rec, 500, "panicked", "")
		hasHeader(t, rec, "Job-State", "failed")
		hasHeader(t, rec, "Preference-Applied", "wait=5")
		// Who leaves while it waits loses the answer, not the job.
		ctx, leave := context.WithCancel(t.Context())
		go func() { time.Sleep(time.Second); leave() }()
		id := asyncAccepted(t, ask(ctx, f.Async(sleeps), "POST", "/", "10s", "Prefer: wait=60"))
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
		first := asyncAccepted(t, post(h, "a", key))
		same := func(what string, header ...string) {
			t.Helper()
			if id := asyncAccepted(t, post(h, "a", header...)); id != first {
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
		asyncRefused(t, post(h, "b", key), 422, "another request", "")
		asyncRefused(t, ask(bg, h, "PUT", "/work", "a", key), 422, "another request", "")
		asyncRefused(t, ask(bg, h, "POST", "/other", "a", key), 422, "another request", "")
		asyncRefused(t, ask(bg, h, "POST", "/work?x", "a", key), 422, "another request", "")
		others := map[string]bool{first: true}
		for _, header := range [][]string{nil, nil, {"Idempotency-Key: K"}, {key, "Authorization: Bearer 1"}, {key, "Authorization: Bearer 2"}, {key, "Cookie: a=1"}} {
			id := asyncAccepted(t, post(h, "a", header...))
			if others[id] {
				t.Errorf("%q opens the job of another client", header)
			}
			others[id] = true
		}
		for _, bad := range [][]string{{"Idempotency-Key: "}, {`Idempotency-Key: "k`}, {key, key}, {"Idempotency-Key: " + strings.Repeat("x", 256)}} {
			asyncRefused(t, post(h, "a", bad...), 400, "Idempotency-Key", "")
		}
		asyncAccepted(t, post(h, "last", "Idempotency-Key: "+strings.Repeat("x", 255)))
		time.Sleep(time.Minute)
		synctest.Wait()
		if want := []string{"a", "a", "a", "a", "a", "a", "a", "last"}; !slices.Equal(ran, want) {
			t.Errorf("ran %q, want %q", ran, want)
		}
		// The key is kept as long as its job.
		time.Sleep(time.Hour)
		if id := asyncAccepted(t, post(h, "b", key)); id == first {
			t.Error("the key outlives its job")
		}
		time.Sleep(time.Minute)
	})
}

// One that waits for a place holds the key. When it comes to nothing, the next one
// takes over.
func TestIdempotencyTakesOver(t *testing.T) {
	for _, how := range []string{"is accepted", "leaves", "is shut out"} {
		inBubble(t, Config{Workers: 1, Queue: 0}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
			var ran atomic.Int64
			asyncAccepted(t, post(f.Async(sleeps), "1m"))
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
			asyncRefused(t, post(h, "other", "Idempotency-Key: k"), 422, "another request", "")
			switch how {
			case "leaves":
				leave()
				synctest.Wait()
				asyncRefused(t, recs[0], 503, "ended before it was accepted", "")
				if n := f.d.Stats().Blocked; n != 1 {
					t.Errorf("%d wait for a place, want the second", n)
				}
			case "is shut out":
				f.d.Shutdown(t.Context())
			}
			wg.Wait()
			leave()
			synctest.Wait()
			accepted := recs[:]
			switch how {
			case "leaves":
				accepted = recs[1:]
			case "is shut out":
				for _, rec := range recs {
					asyncRefused(t, rec, 503, "shutting down", "")
				}
				if ran.Load() != 0 {
					t.Error("ran")
				}
				return
			}
			id := asyncAccepted(t, accepted[0])
			for _, rec := range accepted {
				if asyncAccepted(t, rec) != id {
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
		asyncAccepted(t, post(f.Async(sleeps), "1m"))
		synctest.Wait()
		asyncRefused(t, post(f.Async(sleeps), "1s", "Idempotency-Key: k"), 503, "full", "1")
		time.Sleep(time.Hour)
		asyncAccepted(t, post(f.Async(sleeps), "2s", "Idempotency-Key: k"))
		time.Sleep(time.Hour)
	})
}

func TestNewJobs(t *testing.T) {
	d, _ := asyncDispatcher(t, Config{Workers: 1, Queue: 200})
	for _, test := range []struct {
		cfg               JobsConfig
		maxBody, response int64
		path              string
	}{
		{JobsConfig{}, 1 << 20, 8 << 20, "/jobs/"},
		{JobsConfig{Path: "/"}, 1 << 20, 8 << 20, "/"},
		{JobsConfig{RetainBytes: 64 << 10}, 1 << 20, 32 << 10, "/jobs/"},
		{JobsConfig{RetainBytes: 64 << 10, MaxResponse: 32 << 10, MaxBody: 1, RetainJobs: 1, Retain: 1, Path: "/a/b/"}, 1, 32 << 10, "/a/b/"},
	} {
		j := mustJobs(t, d, test.cfg)
		if j.limits.Body != test.maxBody || j.requests.MaxResponse != test.response || j.requests.Resource.Path != test.path {
			t.Errorf("%+v: %d, %d, %s", test.cfg, j.limits.Body, j.requests.MaxResponse, j.requests.Resource.Path)
		}
	}
	for says, cfg := range map[string]JobsConfig{
		"Path":          {Path: "jobs/"},
		"/ ":            {Path: "/jobs"},
		"MaxBody -1":    {MaxBody: -1},
		"MaxResponse":   {MaxResponse: 64 << 10, RetainBytes: 127 << 10},
		"64 KiB":        {RetainBytes: 64<<10 - 1},
		"Retain -1ns":   {Retain: -1},
		"RetainJobs -1": {RetainJobs: -1},
		"RetainBytes":   {RetainBytes: -1},
		"-7":            {MaxResponse: -7},
	} {
		if j, err := NewJobs(d, cfg); j != nil || err == nil || !strings.HasPrefix(err.Error(), "holdfast: ") || !strings.Contains(err.Error()+" ", says) {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
	// The defaults of what is kept.
	inBubble(t, Config{Workers: 1, Queue: 200}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
		id := asyncAccepted(t, post(f.Async(sleeps), "0s"))
		time.Sleep(time.Hour - 1)
		if f.state(id) != "done" || f.Stats().Reach != time.Hour {
			t.Errorf("gone before an hour; reach %v", f.Stats().Reach)
		}
		time.Sleep(time.Nanosecond)
		if got := f.state(id); got != "" {
			t.Errorf("%s after an hour", got)
		}
	})
}

func TestJobsStats(t *testing.T) {
	inBubble(t, Config{Workers: 1, Queue: 200}, JobsConfig{RetainJobs: 3, Retain: time.Minute, RetainBytes: 100_000}, func(t *testing.T, f *jobsFixture) {
		h := f.Async(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second)
			io.Copy(w, r.Body)
		}))
		check := func(what string, want JobsStats) {
			t.Helper()
			synctest.Wait()
			got := f.Stats()
			if (got.KeptBytes > 0) != (got.Kept > 0) || got.KeptBytes > 100_000 {
				t.Errorf("%s: %d bytes", what, got.KeptBytes)
			}
			got.KeptBytes, got.Held = 0, 0
			if got != want {
				t.Errorf("%s: %+v, want %+v", what, got, want)
			}
		}
		check("empty", JobsStats{Reach: time.Minute})
		for range 5 {
			post(h, "")
		}
		check("open", JobsStats{Open: 5, Reach: time.Minute})
		time.Sleep(2 * time.Second)
		check("two have ended", JobsStats{Open: 3, Kept: 2, Reach: time.Minute})
		time.Sleep(3 * time.Second) // ends at 1, 2, 3, 4 and 5 s
		check("by jobs", JobsStats{Kept: 3, EvictedJobs: 2, Reach: 3 * time.Second})
		post(h, strings.Repeat("x", 50_000-100)) // at 6 s
		time.Sleep(time.Second)
		check("more", JobsStats{Kept: 3, EvictedJobs: 3, Reach: 3 * time.Second})
		post(h, strings.Repeat("x", 50_000-100)) // at 7 s
		time.Sleep(time.Second)
		check("by bytes", JobsStats{Kept: 1, EvictedJobs: 4, EvictedBytes: 2, Reach: time.Second})
		time.Sleep(time.Minute)
		check("by age", JobsStats{EvictedJobs: 4, EvictedBytes: 2, EvictedAge: 1, Reach: time.Minute})
	})
}

func TestJobsList(t *testing.T) {
	inBubble(t, Config{Workers: 1, Queue: 200}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
		type page struct {
			Jobs []struct{ ID, State, URL string }
			Next string
		}
		get := func(query string) (p page) {
			t.Helper()
			rec := ask(bg, f.ListHandler(), "GET", "/anywhere"+query, "")
			if err := json.Unmarshal(rec.Body.Bytes(), &p); err != nil || rec.Code != 200 {
				t.Fatalf("%d %s: %v", rec.Code, rec.Body, err)
			}
			return p
		}
		var ids []string
		for range 4 {
			ids = append(ids, asyncAccepted(t, post(f.Async(sleeps), "10s")))
			time.Sleep(time.Second)
		}
		time.Sleep(20 * time.Second) // at 24 s the third runs
		want := []struct{ id, state string }{{ids[3], "queued"}, {ids[2], "running"}, {ids[1], "done"}, {ids[0], "done"}}
		for query, n := range map[string]int{"": 4, "?limit=4": 4, "?limit=3": 3, "?limit=1": 1} {
			p := get(query)
			if len(p.Jobs) != n || (p.Next != "") != (n < 4) {
				t.Fatalf("%s: %+v", query, p)
			}
			for i, j := range append(p.Jobs, get("?after=" + p.Next).Jobs[:4-n]...) {
				if j.ID != want[i].id || j.State != want[i].state || j.URL != "/jobs/"+j.ID {
					t.Errorf("%s: number %d is %+v, want %v", query, i, j, want[i])
				}
			}
		}
		if p := get("?state=queued"); len(p.Jobs) != 1 || p.Jobs[0].ID != ids[3] {
			t.Errorf("%+v", p)
		}
		asyncRefused(t, ask(bg, f.ListHandler(), "GET", "/?state=late", ""), 400, "want queued, running", "")
		asyncRefused(t, ask(bg, f.ListHandler(), "DELETE", "/", ""), 405, "GET, HEAD", "")
	})
}

func TestTwoJobs(t *testing.T) {
	inBubble(t, Config{Workers: 1, Queue: 200}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
		other := mustJobs(t, f.d, JobsConfig{Path: "/jobs/other/", MaxBody: 10})
		mine := asyncAccepted(t, post(f.Async(sleeps), "1s", "Idempotency-Key: k"))
		rec := post(other.Async(sleeps), "2s", "Idempotency-Key: k")
		location := rec.Header().Get("Location")
		if !strings.HasPrefix(location, "/jobs/other/") {
			t.Fatalf("%d %s", rec.Code, location)
		}
		time.Sleep(time.Minute)
		if rec := ask(bg, other, "GET", location+"/response", ""); rec.Body.String() != "slept 2s" {
			t.Errorf("%d %s", rec.Code, rec.Body)
		}
		if rec := f.response(mine); rec.Body.String() != "slept 1s" {
			t.Errorf("%d %s", rec.Code, rec.Body)
		}
		id := strings.TrimPrefix(location, "/jobs/other/")
		for _, wrong := range []*httptest.ResponseRecorder{ask(bg, f, "GET", location, ""), f.response(id), ask(bg, other, "GET", "/jobs/other/"+mine, ""), ask(bg, other, "GET", "/jobs/"+mine, "")} {
			if wrong.Code != 404 {
				t.Errorf("%d %s", wrong.Code, wrong.Body)
			}
		}
		asyncRefused(t, post(other.Async(sleeps), "12345678901"), 413, "10 bytes", "")
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
	d, _ := asyncDispatcher(t, Config{Workers: 0, Queue: n})
	jobs := mustJobs(t, d, JobsConfig{})
	c := asyncServe(t, jobs.Async(sleeps))()
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

// Whoever waits is not cut off by the server's WriteTimeout: over HTTP/1 the
// deadline can be moved when the wait is over, over HTTP/2 the stream is gone then.
func TestWaitsOutliveTheWriteTimeout(t *testing.T) {
	t.Parallel()
	const timeout = 150 * time.Millisecond
	for _, http2 := range []bool{false, true} {
		d, _ := asyncDispatcher(t, Config{Workers: 1, Queue: 0})
		jobs := mustJobs(t, d, JobsConfig{})
		slow := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(2 * timeout)
			io.WriteString(w, "slept")
		})
		mux := http.NewServeMux()
		mux.Handle("/queued", jobs.Queued(slow))
		mux.Handle("/async", jobs.Async(slow))
		mux.Handle("/jobs/", jobs)
		s := httptest.NewUnstartedServer(mux)
		s.Config.WriteTimeout = timeout
		s.EnableHTTP2 = http2
		s.StartTLS()
		t.Cleanup(s.Close)
		get := func(method, path string, header ...string) (status int, body, location string) {
			t.Helper()
			req, err := http.NewRequest(method, s.URL+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(header) > 0 {
				req.Header.Set(header[0], header[1])
			}
			res, err := s.Client().Do(req)
			if err != nil {
				t.Errorf("HTTP/2 %v, %s: %v", http2, path, err)
				return 0, "", ""
			}
			defer res.Body.Close()
			text, err := io.ReadAll(res.Body)
			if err != nil || (res.ProtoMajor == 2) != http2 {
				t.Errorf("%s, %s: %v", res.Proto, path, err)
			}
			return res.StatusCode, string(text), res.Header.Get("Location")
		}
		if status, body, _ := get("POST", "/queued"); status != 200 || body != "slept" {
			t.Errorf("HTTP/2 %v, queued: %d %s", http2, status, body)
		}
		if status, body, _ := get("POST", "/async", "Prefer", "wait=10"); status != 200 || body != "slept" {
			t.Errorf("HTTP/2 %v, wait: %d %s", http2, status, body)
		}
		_, _, first := get("POST", "/async")
		status, _, second := get("POST", "/async") // has to wait for the place of the first
		if status != 202 {
			t.Errorf("HTTP/2 %v, full queue: %d", http2, status)
		}
		if status, body, _ := get("GET", second, "Prefer", "wait=10"); status != 200 || !strings.Contains(body, `"done"`) {
			t.Errorf("HTTP/2 %v, long poll: %d %s", http2, status, body)
		}
		_, _, third := get("POST", "/async")
		if status, body, _ := get("GET", third, "Accept", "text/event-stream"); status != 200 || !strings.Contains(body, `"done"`) {
			t.Errorf("HTTP/2 %v, events: %d %s", http2, status, body)
		}
		if status, body, _ := get("GET", first+"/response"); status != 200 || body != "slept" {
			t.Errorf("HTTP/2 %v, the first: %d %s", http2, status, body)
		}
	}
}
