package holdfast

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestNewJobs(t *testing.T) {
	d, _ := buildLogged(t, Config{Workers: 1, Queue: 200})
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
	// The defaults of what is expectGone.
	inBubble(t, Config{Workers: 1, Queue: 200}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
		id := accepted(t, post(f.Async(sleeps), "0s"))
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
		running, queued := accepted(t, post(h, "")), ""
		synctest.Wait()
		queued = accepted(t, post(h, ""))
		if rec := ask(bg, f, "DELETE", "/jobs/"+queued, ""); rec.Code != 200 || rec.Header().Get("Job-State") != "canceled" {
			t.Errorf("queued: %d %s", rec.Code, rec.Body)
		}
		expectProblem(t, f.response(queued), 410, "canceled", "")
		if rec := ask(bg, f, "DELETE", "/jobs/"+running, ""); rec.Code != 202 || rec.Header().Get("Job-State") != "running" {
			t.Errorf("running: %d %s", rec.Code, rec.Body)
		}
		synctest.Wait()
		if ended != context.Canceled {
			t.Errorf("its context: %v", ended)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		expectProblem(t, f.response(running), 410, "canceled", "")
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

func TestShutdownEndsJobs(t *testing.T) {
	inBubble(t, Config{Workers: 2, Queue: 5}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
		h := f.Async(sleeps)
		obeys := accepted(t, post(h, "1h"))
		ignores := accepted(t, post(f.Async(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(time.Hour) })), ""))
		synctest.Wait()
		queued := accepted(t, post(h, "1h"))
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
		expectProblem(t, f.response(queued), 410, "shut down before the job had started", "")
		expectProblem(t, f.response(obeys), 410, "canceled", "")
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
			other, _ := buildLogged(t, Config{Workers: 1, Queue: 200})
			other.Do(ctx, job("Do elsewhere"))
			post(mustJobs(t, other, JobsConfig{}).Queued(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { see(r.Context(), "unrelated") })), "")
			inner = accepted(t, ask(ctx, f.Async(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { see(r.Context(), "job of its own") })), "POST", "/", ""))
		}))
		id := accepted(t, post(h, ""))
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
			want.Unread = want.Kept // nobody asks for a response
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
			ids = append(ids, accepted(t, post(f.Async(sleeps), "10s")))
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
		expectProblem(t, ask(bg, f.ListHandler(), "GET", "/?state=late", ""), 400, "want queued, running", "")
		expectProblem(t, ask(bg, f.ListHandler(), "DELETE", "/", ""), 405, "GET, HEAD", "")
	})
}

func TestTwoJobs(t *testing.T) {
	inBubble(t, Config{Workers: 1, Queue: 200}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
		other := mustJobs(t, f.d, JobsConfig{Path: "/jobs/other/", MaxBody: 10})
		mine := accepted(t, post(f.Async(sleeps), "1s", "Idempotency-Key: k"))
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
		expectProblem(t, post(other.Async(sleeps), "12345678901"), 413, "10 bytes", "")
	})
}

// With changes the limits of a route, and nothing else.
func TestJobsWith(t *testing.T) {
	inBubble(t, Config{Workers: 1, Queue: 10, JobTimeout: time.Minute}, JobsConfig{MaxBody: 5, Retain: 24 * time.Hour}, func(t *testing.T, f *jobsFixture) {
		with := func(j *Jobs, l Limits) *Jobs {
			t.Helper()
			view, err := j.With(l)
			if err != nil {
				t.Fatal(err)
			}
			return view
		}
		large := with(f.Jobs, Limits{MaxBody: 10})
		for _, test := range []struct {
			name    string
			jobs    *Jobs
			body    int
			timeout time.Duration
		}{
			{"none", f.Jobs, 5, time.Minute},
			{"zero", with(f.Jobs, Limits{}), 5, time.Minute},
			{"large", large, 10, time.Minute},
			{"small", with(f.Jobs, Limits{MaxBody: 1}), 1, time.Minute},
			{"long", with(f.Jobs, Limits{Timeout: time.Hour}), 5, time.Hour},
			{"short", with(f.Jobs, Limits{Timeout: time.Second}), 5, time.Second},
			{"of a view", with(large, Limits{Timeout: time.Hour}), 10, time.Hour},
		} {
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if deadline, ok := r.Context().Deadline(); !ok || time.Until(deadline).Round(time.Millisecond) != test.timeout {
					t.Errorf("%s: %v until the deadline, want %v", test.name, time.Until(deadline), test.timeout)
				}
				<-r.Context().Done()
			})
			for _, wrapped := range []http.Handler{test.jobs.Queued(h), test.jobs.Async(h)} {
				expectProblem(t, post(wrapped, strings.Repeat("x", test.body+1)), 413, fmt.Sprintf("at most %d bytes", test.body), "")
			}
			expectProblem(t, post(test.jobs.Queued(h), strings.Repeat("x", test.body)), 504, "longer than a job may", "")
			id := accepted(t, post(test.jobs.Async(h), strings.Repeat("x", test.body)))
			time.Sleep(2 * time.Hour)
			expectGone(t, f.response(id), 504, "longer than a job may") // it is in the same store
			time.Sleep(time.Hour)
		}
		for says, l := range map[string]Limits{"MaxBody -1": {MaxBody: -1}, "Timeout -1ns": {Timeout: -1}} {
			if view, err := f.With(l); view != nil || err == nil || !strings.Contains(err.Error(), says) {
				t.Errorf("%+v: %v", l, err)
			}
		}
	})
	// Without a JobTimeout one route can have a limit.
	inBubble(t, Config{Workers: 1, Queue: 10}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
		view, err := f.With(Limits{Timeout: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		expectProblem(t, post(view.Queued(sleeps), "2s"), 504, "longer than a job may", "")
		if rec := post(f.Queued(sleeps), "2s"); rec.Code != 200 {
			t.Errorf("%d", rec.Code)
		}
	})
}

// A server without the resource answers 202 with a Location that is 404: that is one
// line in the log, and none where it is mounted or cannot be seen.
func TestMountIsChecked(t *testing.T) {
	use := func(m *http.ServeMux, patterns ...string) func(*Jobs) http.Handler {
		return func(j *Jobs) http.Handler {
			for _, p := range patterns {
				m.Handle(p, j)
			}
			m.Handle("POST /async", j.Async(sleeps))
			m.Handle("POST /sync", j.Sync(sleeps))
			if view, err := j.With(Limits{MaxBody: 1 << 10}); err == nil {
				m.Handle("POST /queued", view.Queued(sleeps))
			}
			return m
		}
	}
	wrap := func(inner func(*Jobs) http.Handler) func(*Jobs) http.Handler {
		return func(j *Jobs) http.Handler {
			h := inner(j)
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(w, r) })
		}
	}
	theirs := http.DefaultServeMux
	defer func() { http.DefaultServeMux = theirs }()
	http.DefaultServeMux = http.NewServeMux()
	for _, test := range []struct {
		name    string
		path    string
		handler func(*Jobs) http.Handler // nil: that of the server
		errors  int
	}{
		{"not mounted", "", use(http.NewServeMux()), 1},
		{"mounted", "", use(http.NewServeMux(), "/jobs/"), 0},
		{"mounted by method", "", use(http.NewServeMux(), "GET /jobs/", "DELETE /jobs/"), 0},
		{"mounted for the host", "", use(http.NewServeMux(), "example.com/jobs/"), 0},
		{"mounted for another host", "", use(http.NewServeMux(), "example.org/jobs/"), 1},
		{"mounted elsewhere", "", use(http.NewServeMux(), "/work/"), 1},
		{"mounted at its path", "/work/", use(http.NewServeMux(), "/work/"), 0},
		{"mounted at the default", "/work/", use(http.NewServeMux(), "/jobs/"), 1},
		{"behind middleware", "", wrap(use(http.NewServeMux())), 0},
		{"mounted behind middleware", "", wrap(use(http.NewServeMux(), "/jobs/")), 0},
		{"the default mux", "", func(j *Jobs) http.Handler { use(http.DefaultServeMux)(j); return nil }, 1},
	} {
		inBubble(t, Config{Workers: 1, Queue: 10}, JobsConfig{Path: test.path}, func(t *testing.T, f *jobsFixture) {
			h := test.handler(f.Jobs)
			dial := serve(t, h)
			for _, path := range []string{"/sync", "/queued", "/async", "/async"} {
				c := dial()
				fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: example.com\r\nPrefer: respond-async\r\nContent-Length: 2\r\nConnection: close\r\n\r\n1s", path)
				if text, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(text), "HTTP/1.1 202 ") {
					t.Fatalf("%s: %s, %v", test.name, text, err)
				}
			}
			text := f.log.String()
			if f.log.records() != test.errors || strings.Contains(text, "JobsConfig.Path") != (test.errors > 0) || strings.Count(text, "\n") != test.errors {
				t.Errorf("%s: want %d errors in the log: %s", test.name, test.errors, text)
			}
			time.Sleep(time.Minute)
		})
	}
	f := newJobsFixture(t, Config{Workers: 1, Queue: 10}, JobsConfig{})
	accepted(t, post(f.Async(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})), "")) // no server at all
	if f.log.records() != 0 {
		t.Errorf("log: %s", f.log)
	}
}
