package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
)

// A fixture is a Handler whose demo sleeps for as long as a request asks.
type fixture struct {
	t        *testing.T
	d        *holdfast.Dispatcher
	jobs     *holdfast.Jobs
	h        *Handler
	stopping atomic.Bool
	resized  []int // not locked: calls come one at a time
}

// newFixture returns a fixture that ends with the test. In a synctest bubble its
// history runs in virtual time.
func newFixture(t *testing.T, cfg holdfast.Config, change func(*Config)) *fixture {
	t.Helper()
	f := &fixture{t: t}
	cfg.Logger = slog.New(slog.DiscardHandler)
	var err error
	if f.d, err = holdfast.New(cfg); err != nil {
		t.Fatal(err)
	}
	if f.jobs, err = holdfast.NewJobs(f.d, holdfast.JobsConfig{}); err != nil {
		t.Fatal(err)
	}
	demo := http.NewServeMux()
	demo.Handle("POST /aaa", f.jobs.Sync(http.HandlerFunc(sleep)))
	demo.Handle("POST /bbb", f.jobs.Async(http.HandlerFunc(sleep)))
	c := Config{
		Dispatcher: f.d, Jobs: f.jobs, Version: "v1.2.3", Logger: cfg.Logger, Demo: demo,
		Stopping: f.stopping.Load,
		Health:   http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "fine\n") }),
		Resize: func(n int) error {
			err := f.d.Resize(n)
			if err == nil {
				f.resized = append(f.resized, n)
			}
			return err
		},
	}
	if change != nil {
		change(&c)
	}
	f.h = New(c)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { f.h.Run(ctx); close(done) }()
	t.Cleanup(func() {
		cancel()
		<-done
		over, end := context.WithCancel(context.Background())
		end()
		f.d.Shutdown(over)
	})
	return f
}

func sleep(w http.ResponseWriter, r *http.Request) {
	var asked struct {
		SleepTime int `json:"sleep_time"`
	}
	if err := json.NewDecoder(r.Body).Decode(&asked); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	timer := time.NewTimer(time.Duration(asked.SleepTime) * time.Second)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.Context().Done():
		w.WriteHeader(http.StatusServiceUnavailable)
	}
}

// do sends a request with header lines, as a program on this machine would.
func (f *fixture) do(method, target, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.Host = "127.0.0.1:8100"
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		if name == "Host" {
			r.Host = value
			continue
		}
		r.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	f.h.ServeHTTP(w, r)
	return w
}

// expect fails unless the answer has a status and contains each of the texts.
func (f *fixture) expect(w *httptest.ResponseRecorder, status int, texts ...string) {
	f.t.Helper()
	if w.Code != status {
		f.t.Errorf("%d %s, want %d", w.Code, w.Body, status)
	}
	if kind := w.Header().Get("Content-Type"); w.Code >= 400 && kind != "application/problem+json" {
		f.t.Errorf("%d has the type %q, want a problem", w.Code, kind)
	}
	for _, text := range texts {
		if !strings.Contains(w.Body.String(), text) {
			f.t.Errorf("%d %s, want %q in it", w.Code, w.Body, text)
		}
	}
}

func (f *fixture) stats() Stats {
	f.t.Helper()
	w := f.do("GET", "/stats", "")
	f.expect(w, 200)
	var s Stats
	decoder := json.NewDecoder(w.Body)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&s); err != nil {
		f.t.Fatal(err)
	}
	return s
}

// The names are a contract: programs that read /stats depend on them.
func TestStatsNames(t *testing.T) {
	f := newFixture(t, holdfast.Config{Workers: 1, Queue: 200}, func(c *Config) { c.Log = func() LogStats { return LogStats{} } })
	w := f.do("GET", "/stats", "")
	for header, want := range map[string]string{"Content-Type": "application/json", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"} {
		if got := w.Header().Get(header); got != want {
			t.Errorf("%s: %q, want %q", header, got, want)
		}
	}
	var s map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &s); err != nil {
		t.Fatal(err)
	}
	for path, names := range map[string]string{
		"":                        "time uptime_seconds version stopping dispatcher kept log second minute advice bursts urgencies",
		"dispatcher":              "workers queue overflow resume_workers accepted queued running blocked ended refused gave_up oldest_age_seconds wait_seconds run_seconds",
		"dispatcher ended":        "succeeded failed panicked canceled dropped abandoned",
		"dispatcher refused":      "full closed nested share late",
		"urgencies 0":             "urgency queued oldest_age_seconds refused dropped in_vain clients",
		"urgencies 0 refused":     "full share late expired closed",
		"dispatcher wait_seconds": "count mean p50 p90 p99 max",
		"kept":                    "open jobs bytes evicted reach_seconds held_bytes refused_memory late delayed retries failed",
		"kept late":               "refused expired",
		"log":                     "bytes waiting_records error write_seconds",
		"kept evicted":            "age jobs bytes",
		"second":                  "time arrivals started finished refused gave_up workers queue queued running blocked wait_p50_seconds wait_p99_seconds run_p50_seconds run_p99_seconds",
		"minute":                  "seconds arrivals_per_second finished_per_second refused_per_second gave_up_per_second busy_workers wait_seconds run_seconds",
	} {
		at := s
		for _, name := range strings.Fields(path) {
			switch v := at[name].(type) {
			case map[string]any:
				at = v
			case []any:
				at = map[string]any{"0": v[0]}
			}
		}
		got := slices.Sorted(maps.Keys(at))
		if want := slices.Sorted(slices.Values(strings.Fields(names))); !slices.Equal(got, want) {
			t.Errorf("%q has the names %q, want %q", path, got, want)
		}
	}
}

// The figures of /stats are those of a known load.
func TestStatsTellTheTruth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, holdfast.Config{Workers: 2, Queue: 3, Overflow: holdfast.Reject}, nil)
		if s := f.stats(); s.Version != "v1.2.3" || s.Stopping || s.Bursts == nil || len(s.Bursts) != 0 || s.Dispatcher.Run.Mean != nil || s.Minute.Seconds != 0 {
			t.Errorf("at first: %+v", s)
		}
		time.Sleep(500 * time.Millisecond) // so that what follows is not on the second
		for range 7 {                      // 2 run, 3 wait, 2 are refused
			f.d.Go(context.Background(), func(context.Context) error { time.Sleep(time.Second); return nil })
			synctest.Wait()
		}
		s := f.stats()
		d := s.Dispatcher
		if d.Workers != 2 || d.Queue != 3 || d.Overflow != holdfast.Reject || d.Accepted != 5 || d.Queued != 3 || d.Running != 2 || d.Refused != (Refused{Full: 2}) {
			t.Errorf("with all places taken: %+v", d)
		}
		time.Sleep(750 * time.Millisecond) // 1.25: the mark of the first second is there
		if s = f.stats(); s.Second.Arrivals != 7 || s.Second.Refused != 2 || s.Second.Started != 2 || s.Second.Finished != 0 || s.Second.Queued != 3 || s.Second.Running != 2 || s.Second.RunP50 != nil {
			t.Errorf("the first second: %+v", s.Second)
		}
		if s.Dispatcher.OldestAge != 0.75 {
			t.Errorf("the oldest has waited for %v s, want 0.75", s.Dispatcher.OldestAge)
		}
		time.Sleep(time.Second) // 2.25: two have ended at 1.5
		s = f.stats()
		if s.Second.Arrivals != 0 || s.Second.Finished != 2 || s.Second.Started != 2 || s.Second.Queued != 1 || s.Second.RunP50 == nil || *s.Second.RunP50 < 1 || *s.Second.RunP50 > 1.125 {
			t.Errorf("the second second: %+v", s.Second)
		}
		if m := s.Minute; m.Seconds != 2 || m.Arrivals != 3.5 || m.Finished != 1 || m.Refused != 1 || m.Run.Count != 2 || *m.Run.Mean != 1 {
			t.Errorf("so far: %+v", m)
		}
		time.Sleep(2 * time.Minute)
		s = f.stats()
		if s.Dispatcher.Ended != (Ended{Succeeded: 5}) || s.Dispatcher.Run.Count != 5 || s.Minute.Run.Count != 0 || s.Minute.Seconds != 60 || s.Minute.Arrivals != 0 {
			t.Errorf("in the end: %+v", s)
		}
		f.stopping.Store(true)
		if !f.stats().Stopping {
			t.Error("does not tell that the server stops")
		}
	})
}

// The history is bounded, and a page gets as much of it as its charts show.
func TestHistoryIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, holdfast.Config{Workers: 1, Queue: 200}, nil)
		time.Sleep(time.Hour + time.Millisecond)
		past, _ := f.h.history.look()
		if list := samples(past); len(list) != 300 || list[299].Time.Sub(list[0].Time) != 299*time.Second {
			t.Errorf("%d samples over %v", len(list), list[len(list)-1].Time.Sub(list[0].Time))
		}
		if len(past) != maxMarks || cap(past) > 4*maxMarks {
			t.Errorf("%d marks in room for %d", len(past), cap(past))
		}
	})
}

// An event is a Server-Sent Event.
type event struct{ name, data string }

// watch opens the stream and returns its events, and a channel that is closed when
// the Handler has returned.
func (f *fixture) watch(ctx context.Context) (<-chan event, <-chan struct{}) {
	out, in := io.Pipe()
	events, ended := make(chan event), make(chan struct{})
	r := httptest.NewRequest("GET", "/events", nil).WithContext(ctx)
	r.Host = "localhost"
	go func() {
		f.h.ServeHTTP(&pipeWriter{in, make(http.Header)}, r)
		in.Close()
		close(ended)
	}()
	go func() {
		defer close(events)
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 1<<20)
		var e event
		for lines.Scan() {
			name, value, _ := strings.Cut(lines.Text(), ": ")
			switch name {
			case "event":
				e.name = value
			case "data":
				e.data = value
			case "":
				events <- e
				e = event{}
			}
		}
	}()
	return events, ended
}

type pipeWriter struct {
	io.Writer
	header http.Header
}

func (w *pipeWriter) Header() http.Header { return w.header }
func (w *pipeWriter) WriteHeader(int)     {}
func (w *pipeWriter) Flush()              {}

// nginx would send the events in bursts.
func TestEventsAreNotBuffered(t *testing.T) {
	f := newFixture(t, holdfast.Config{Workers: 1}, nil)
	if got := f.do("HEAD", "/events", "").Header().Get("X-Accel-Buffering"); got != "no" {
		t.Errorf("X-Accel-Buffering: %q, want no", got)
	}
}

// A client that leaves has given up. It does not count as refused.
func TestGaveUpIsNotRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, holdfast.Config{Workers: 1, Queue: 1}, nil)
		time.Sleep(500 * time.Millisecond) // so that what follows is not on the second
		for range 2 {
			f.d.Go(context.Background(), func(context.Context) error { time.Sleep(5 * time.Second); return nil })
		}
		ctx, leave := context.WithCancel(context.Background())
		for range 3 {
			go f.d.Go(ctx, func(context.Context) error { return nil })
		}
		synctest.Wait()
		leave()
		synctest.Wait()
		f.d.TryGo(context.Background(), func(context.Context) error { return nil })
		time.Sleep(time.Second)
		s := f.stats()
		if d := s.Dispatcher; d.GaveUp != 3 || d.Refused != (Refused{Full: 1}) {
			t.Errorf("%d gave up, refused %+v; want 3, and 1 for a full queue", d.GaveUp, d.Refused)
		}
		if s.Second.GaveUp != 3 || s.Second.Refused != 1 || s.Second.Arrivals != 6 {
			t.Errorf("the second: %+v", s.Second)
		}
		if s.Minute.GaveUp != 3 || s.Minute.Refused != 1 || s.Minute.Arrivals != 6 {
			t.Errorf("the minute: %+v", s.Minute)
		}
		time.Sleep(10 * time.Second)
	})
}

func TestEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, holdfast.Config{Workers: 1, Queue: 10}, nil)
		time.Sleep(3500 * time.Millisecond)
		ctx, leave := context.WithCancel(context.Background())
		events, ended := f.watch(ctx)

		var past []Sample
		if e := <-events; e.name != "history" || json.Unmarshal([]byte(e.data), &past) != nil || len(past) != 3 {
			t.Errorf("first %v, want a history of three seconds", e)
		}
		for n := range 4 {
			e := <-events
			var s Stats
			if err := json.Unmarshal([]byte(e.data), &s); e.name != "stats" || err != nil {
				t.Fatalf("%v, %v; want the statistics", e, err)
			}
			if want := 3.5; n == 0 && s.Uptime != want {
				t.Errorf("after %v s, want at once, at %v", s.Uptime, want)
			}
			if want := float64(3 + n); n > 0 && s.Uptime != want {
				t.Errorf("event %d after %v s, want %v", n, s.Uptime, want)
			}
			if n == 1 {
				f.d.Go(context.Background(), func(context.Context) error { return nil })
			}
			if want := uint64(max(n-1, 0)); s.Dispatcher.Accepted != min(want, 1) || s.Second.Time.IsZero() {
				t.Errorf("event %d: %+v", n, s.Dispatcher)
			}
		}
		leave()
		<-ended
		if n := f.h.streams.Load(); n != 0 {
			t.Errorf("%d streams are counted as open", n)
		}
	})
}

func TestStreamsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, holdfast.Config{Workers: 1, Queue: 200}, nil)
		ctx, leave := context.WithCancel(context.Background())
		for range maxStreams {
			events, _ := f.watch(ctx)
			go func() {
				for range events {
				}
			}()
		}
		synctest.Wait()
		f.expect(f.do("GET", "/events", ""), 503, "8 streams are open")
		leave()
		synctest.Wait()
		if n := f.h.streams.Load(); n != 0 {
			t.Errorf("%d streams are counted as open", n)
		}
	})
}

func TestChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, holdfast.Config{Workers: 5, Queue: 7}, nil)
		for _, test := range []struct {
			body   string
			status int
			says   string
		}{
			{`{"workers":50,"overflow":"reject"}`, 200, `{"workers":50,"queue":7,"overflow":"reject"}`},
			{`{"overflow":"drop-oldest"}`, 200, `{"workers":50,"queue":7,"overflow":"drop-oldest"}`},
			{` {"workers":0}` + "\n", 200, `{"workers":0,"queue":7,"overflow":"drop-oldest"}`},
			{`{"workers":-1,"overflow":"block"}`, 400, "Resize(-1); want 0 to 1000000"},
			{`{"workers":1000001,"overflow":"block"}`, 400, "Resize(1000001)"},
			{`{"workers":1,"overflow":"Block"}`, 400, `overflow cannot be \"Block\"; want {`},
			{`{"workers":1.5}`, 400, "workers cannot be 1.5; want {"},
			{`{"workers":"1"}`, 400, "workers cannot be"},
			{`{"workers":null,"overflow":"block"}`, 400, "workers cannot be null"},
			{`{"workers":1,"workers":2}`, 400, "workers is given twice"},
			{`{"Workers":1}`, 400, `Workers\" is not known`},
			{`{"workers":1,"queue":1}`, 400, `queue\" is not known`},
			{`{"workers":1} {}`, 400, "something follows"},
			{`{}`, 400, "or both"},
			{`null`, 400, "not a JSON object"},
			{`[]`, 400, "not a JSON object"},
			{`{`, 400, "not JSON"},
			{``, 400, "empty"},
			{`{"workers":1,"overflow":"` + strings.Repeat("x", 5000) + `"}`, 413, "at most 4096 bytes"},
		} {
			f.expect(f.do("PATCH", "/dispatcher", test.body), test.status, test.says)
		}
		if st := f.d.Stats(); st.Workers != 0 || st.Overflow != holdfast.DropOldest {
			t.Errorf("%d workers, %v: a request that was refused has changed something", st.Workers, st.Overflow)
		}
		if fmt.Sprint(f.resized) != "[50 0]" {
			t.Errorf("told of %v, want of 50 and 0", f.resized)
		}
		if d := f.stats().Dispatcher; d.Resume != 50 {
			t.Errorf("to resume with %d workers, want the 50 before the pause", d.Resume)
		}
		f.stopping.Store(true)
		f.expect(f.do("PATCH", "/dispatcher", `{"overflow":"block"}`), 503, "shutting down")
		f.expect(f.do("POST", "/burst", `{"path":"/bbb","jobs":1}`), 503, "shutting down")
		f.stopping.Store(false)
		f.d.Shutdown(context.Background())
		f.expect(f.do("PATCH", "/dispatcher", `{"workers":3,"overflow":"block"}`), 503, "shut down")
	})
}

// Concurrent changes happen one after the other, for everything that depends on them.
func TestChangesAtTheSameTime(t *testing.T) {
	f := newFixture(t, holdfast.Config{Workers: 5, Queue: 200}, nil)
	for range 100 {
		var wg sync.WaitGroup
		for _, n := range []string{"1", "40", "0", "7"} {
			wg.Go(func() { f.expect(f.do("PATCH", "/dispatcher", `{"workers":`+n+`}`), 200, `{"workers":`+n+`,`) })
		}
		wg.Wait()
		d := f.stats().Dispatcher
		if told := f.resized[len(f.resized)-1]; d.Workers != told || d.Workers > 0 && d.Resume != d.Workers || d.Resume == 0 {
			t.Fatalf("%d workers, told of %d, to resume with %d", d.Workers, told, d.Resume)
		}
	}
}

// A server that starts paused has a number of workers to resume with, too.
func TestResumeOfPaused(t *testing.T) {
	f := newFixture(t, holdfast.Config{Queue: 200}, nil)
	if d := f.stats().Dispatcher; d.Workers != 0 || d.Resume != 1 {
		t.Errorf("%d workers, to resume with %d", d.Workers, d.Resume)
	}
}

// An unknown path is a problem, and so is a wrong method, which names the right ones.
func TestRoutes(t *testing.T) {
	f := newFixture(t, holdfast.Config{Workers: 1, Queue: 200}, nil)
	for _, test := range []struct {
		method, target string
		status         int
		says           string
	}{
		{"GET", "/healthz", 200, "fine"},
		{"GET", "/readyz", 200, "fine"},
		{"GET", "/jobs", 200, `{"jobs":[]`},
		{"GET", "/jobs/AAAAAAAAAAAAAAAAAAAAAAAAAA", 404, "no such job"},
		{"GET", "/debug/vars", 200, `"memstats":`},
		{"GET", "/debug/vars", 200, `"holdfast":{"time":`},
		{"GET", "/debug/pprof/", 200, "goroutine"},
		{"GET", "/debug/pprof/goroutine?debug=1", 200, "goroutine profile"},
		{"GET", "/debug/pprof/cmdline", 200, "admin.test"},
		{"GET", "/debug/pprof/symbol", 200, "num_symbols"},
		{"GET", "/debug/pprof/trace?seconds=0.01", 200, "go 1."},
		{"GET", "/", 200, "<!doctype html>"},
		{"GET", "/page.css", 200, "prefers-color-scheme"},
		{"GET", "/page.js", 200, "EventSource"},
		{"GET", "/common.js", 200, "fetch"},
		{"GET", "/jobs.html", 200, "jobs.js"},
		{"GET", "/jobs.js", 200, "fragment"},
		{"GET", "/metrics", 200, "# TYPE holdfast_workers gauge"},
		{"GET", "/icon.svg", 200, "<svg"},
		{"HEAD", "/", 200, ""},
		{"GET", "/index.html", 404, ""},
		{"GET", "/page/", 404, ""},
		{"GET", "/nowhere", 404, ""},
		{"GET", "/dispatcher", 405, "PATCH"},
		{"POST", "/stats", 405, "GET"},
		{"POST", "/jobs", 405, "GET"},
		{"GET", "/burst", 405, "POST"},
		{"OPTIONS", "/dispatcher", 405, "PATCH"},
	} {
		w := f.do(test.method, test.target, "")
		f.expect(w, test.status)
		if !strings.Contains(strings.ToLower(w.Body.String()), strings.ToLower(test.says)) {
			t.Errorf("%s %s: %.200s, want %q in it", test.method, test.target, w.Body, test.says)
		}
	}
}

// Only the dispatcher is required.
func TestLeastConfig(t *testing.T) {
	f := newFixture(t, holdfast.Config{Workers: 1, Queue: 200}, func(c *Config) { *c = Config{Dispatcher: c.Dispatcher} })
	f.expect(f.do("POST", "/burst", `{"path":"/bbb","jobs":1}`), 404)
	f.expect(f.do("GET", "/jobs", ""), 404)
	f.expect(f.do("GET", "/jobs/AAAAAAAAAAAAAAAAAAAAAAAAAA", ""), 404, "nothing is served")
	f.expect(f.do("GET", "/jobs.html", ""), 404)
	f.expect(f.do("GET", "/healthz", ""), 404)
	f.expect(f.do("PATCH", "/dispatcher", `{"workers":2}`), 200)
	if s := f.stats(); s.Bursts != nil || s.Kept != nil || s.Stopping || s.Dispatcher.Workers != 2 {
		t.Errorf("%+v", s)
	}
}

// The pages may use their own files, and nothing else. All URLs are relative, since
// a proxy may serve the listener below a prefix.
func TestPagePolicy(t *testing.T) {
	f := newFixture(t, holdfast.Config{Workers: 1, Queue: 200}, nil)
	const html, script = "text/html; charset=utf-8", "text/javascript; charset=utf-8"
	for target, kind := range map[string]string{
		"/": html, "/jobs.html": html, "/page.js": script, "/jobs.js": script, "/common.js": script,
		"/page.css": "text/css; charset=utf-8", "/icon.svg": "image/svg+xml",
	} {
		w := f.do("GET", target, "")
		for header, want := range map[string]string{
			"Content-Type": kind, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cross-Origin-Opener-Policy": "same-origin", "Content-Security-Policy": policy,
		} {
			if got := w.Header().Get(header); got != want {
				t.Errorf("%s of %s: %q, want %q", header, target, got, want)
			}
		}
		for _, absolute := range []string{`href="/`, `src="/`, `"GET", "/`, `"POST", "/`, `"PATCH", "/`, `"DELETE", "/`, `EventSource("`, "location.origin", "url("} {
			if strings.Contains(w.Body.String(), absolute) {
				t.Errorf("%s has %q, which leads out of a prefix", target, absolute)
			}
		}
		if kind != html {
			continue
		}
		for _, inline := range []string{"<script>", "<style", " style=", " onclick=", "javascript:", "http://", "https://"} {
			if strings.Contains(w.Body.String(), inline) {
				t.Errorf("%s has %q, which the policy forbids or which leads elsewhere", target, inline)
			}
		}
	}
}
