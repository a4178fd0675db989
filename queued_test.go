package holdfast

import (
	"bufio"
	"bytes"
	"context"
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
		dial := serve(t, f.Queued(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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
		expectProblem(t, post(h, "10s"), 503, "queue is full", "10")
		expectProblem(t, post(f.Async(sleeps), "10s"), 503, "queue is full", "10")
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
		expectProblem(t, dropped, 503, "gave its place", "1")
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
			expectProblem(t, rec, 503, "shutting down", "")
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
			expectProblem(t, post(f.Queued(h), ""), 504, "longer than a job may", "")
			id := accepted(t, post(f.Async(h), ""))
			time.Sleep(10 * time.Second)
			rec := f.response(id)
			expectGone(t, rec, 504, "longer than a job may")
			if got := rec.Header().Get("Job-State"); got != "failed" || f.d.Stats().Failed != 2 {
				t.Errorf("%s: %s, %d failed", name, got, f.d.Stats().Failed)
			}
		})
	}
}

// A client that does not read its response holds no worker.
func TestQueuedSlowReader(t *testing.T) {
	inBubble(t, Config{Workers: 1, Queue: 200}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
		const size = 4 << 20
		dial := serve(t, f.Queued(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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

// A client learns that the handler panicked, and nothing else; the log has the rest.
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
				async := f.response(accepted(t, post(f.Async(h), "", "Prefer: handling=x")))
				if async.Code == 202 {
					synctest.Wait()
					async = f.response(strings.Split(async.Body.String(), `"`)[3])
				}
				expectProblem(t, queued, 500, "the handler panicked", "")
				expectGone(t, async, 500, "the handler panicked")
				for _, rec := range []*httptest.ResponseRecorder{queued, async} {
					if all := fmt.Sprint(rec.Header(), rec.Body); strings.Contains(strings.ToLower(all), "secret") || strings.Contains(all, "goroutine") || strings.Contains(all, ".go") {
						t.Errorf("it tells: %s", all)
					}
				}
				if got := async.Header().Get("Job-State"); got != "failed" {
					t.Errorf("Job-State %q", got)
				}
				if text := f.log.String(); strings.Count(text, "level=ERROR") != 2 || !strings.Contains(text, "secret") || !strings.Contains(text, "queued_test.go") {
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
		c := serve(t, f.Queued(abort))()
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		if text, err := io.ReadAll(c); err != nil || len(text) > 0 {
			t.Errorf("%q, %v; want the connection to be closed without an answer", text, err)
		}
		id := accepted(t, post(f.Async(abort), ""))
		synctest.Wait()
		expectGone(t, f.response(id), 500, "aborted")
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
		expectProblem(t, post(f.Queued(h), ""), 500, "did not return", "")
		id := accepted(t, post(f.Async(h), ""))
		synctest.Wait()
		expectGone(t, f.response(id), 500, "did not return")
		if got := f.state(id); got != "failed" {
			t.Errorf("state %s", got)
		}
		if rec := post(f.Queued(sleeps), "1s"); rec.Body.String() != "slept 1s" {
			t.Errorf("the worker is gone: %d %s", rec.Code, rec.Body)
		}
	})
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
			id := accepted(t, post(f.Async(h), fmt.Sprint(n)))
			synctest.Wait()
			async := f.response(id)
			if n <= 900 {
				if queued.Code != 200 || async.Code != 200 || queued.Body.Len() != n || async.Body.Len() != n {
					t.Errorf("%d bytes: %d and %d", n, queued.Code, async.Code)
				}
				continue
			}
			expectProblem(t, queued, 500, "too large; at most 1000 bytes", "")
			expectGone(t, async, 500, "too large; at most 1000 bytes")
			if got := f.state(id); got != "failed" {
				t.Errorf("state %s", got)
			}
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

// Whoever waits is not cut off by the server's WriteTimeout: over HTTP/1 the
// deadline can be moved when the wait is over, over HTTP/2 the stream is gone then.
func TestWaitsOutliveTheWriteTimeout(t *testing.T) {
	t.Parallel()
	const timeout = 150 * time.Millisecond
	for _, http2 := range []bool{false, true} {
		d, _ := buildLogged(t, Config{Workers: 1, Queue: 0})
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

// http.ErrAbortHandler itself ends the request without a word. Wrapped it is a panic
// like another, as in net/http.
func TestWrappedAbortHandler(t *testing.T) {
	for _, value := range []error{fmt.Errorf("wrapped: %w", http.ErrAbortHandler), errors.Join(http.ErrAbortHandler)} {
		inBubble(t, Config{Workers: 1, Queue: 2}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
			h := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(value) })
			expectProblem(t, post(f.Queued(h), ""), 500, "the handler panicked", "")
			id := accepted(t, post(f.Async(h), ""))
			synctest.Wait()
			expectGone(t, f.response(id), 500, "the handler panicked")
			if f.log.records() != 2 {
				t.Errorf("log: %s", f.log)
			}
			hasOneWorker(t, "wrapped", f.d)
		})
	}
	synctest.Test(t, func(t *testing.T) { // without HTTP
		d, log := buildLogged(t, Config{Workers: 1, Queue: 2})
		if err := d.Do(bg, func(context.Context) error { panic(http.ErrAbortHandler) }); !errors.Is(err, http.ErrAbortHandler) || log.records() != 0 {
			t.Errorf("%v; log: %s", err, log)
		}
		hasOneWorker(t, "bare", d)
	})
}
