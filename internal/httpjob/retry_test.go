package httpjob_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
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
	"holdfast/internal/httpjob"
	"holdfast/internal/store"
)

// A retried is a server's jobs in memory, in virtual time.
type retried struct {
	d    *holdfast.Dispatcher
	jobs *holdfast.Jobs
	core *httpjob.Jobs
	http.Handler
	ended atomic.Int64
}

func newRetried(t *testing.T, cfg holdfast.Config, jc holdfast.JobsConfig, h http.HandlerFunc) *retried {
	t.Helper()
	cfg.Logger = slog.New(slog.DiscardHandler)
	d, err := holdfast.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	f := &retried{d: d}
	jc.OnEnd = func(holdfast.JobInfo) { f.ended.Add(1) }
	if f.jobs, err = holdfast.NewJobs(d, jc); err != nil {
		t.Fatal(err)
	}
	f.Handler = f.jobs.Async(h)
	f.core = httpjob.Of(f.Handler)
	return f
}

// pass lets time pass, and what happens then be done.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (f *retried) stop(t *testing.T) {
	t.Helper()
	f.d.Shutdown(t.Context())
	if st := f.jobs.Stats(); st.Held > st.KeptBytes+1<<20 {
		t.Errorf("%d bytes are held in the end, and %d of those kept", st.Held, st.KeptBytes)
	}
}

// post submits a request and returns its answer. Headers come in pairs.
func (f *retried) post(body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("POST", "/work", strings.NewReader(body))
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	f.ServeHTTP(w, r)
	return w
}

func (f *retried) id(t *testing.T, w *httptest.ResponseRecorder) string {
	t.Helper()
	var job struct{ ID string }
	if json.Unmarshal(w.Body.Bytes(), &job); w.Code != 202 {
		t.Fatalf("%d %s, want 202", w.Code, w.Body)
	}
	return job.ID
}

// A shown is the job resource.
type shown struct {
	State      string
	Attempts   int
	Error      string
	NextAt     time.Time `json:"next_attempt_at"`
	LastStatus int       `json:"last_status"`
	retryAfter string
}

func (f *retried) show(t *testing.T, id string) (s shown) {
	t.Helper()
	w := httptest.NewRecorder()
	f.jobs.ServeHTTP(w, httptest.NewRequest("GET", "/jobs/"+id, nil))
	if err := json.Unmarshal(w.Body.Bytes(), &s); err != nil {
		t.Fatal(err)
	}
	s.retryAfter = w.Header().Get("Retry-After")
	return s
}

func (f *retried) response(id string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	f.jobs.ServeHTTP(w, httptest.NewRequest("GET", "/jobs/"+id+"/response", nil))
	return w
}

// A job that panics or answers with a status of the list is tried again, with the request
// as it came, up to its last attempt, and keeps the last response.
func TestAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen []string
		f := newRetried(t, holdfast.Config{Workers: 1, Queue: 1}, holdfast.JobsConfig{Retry: holdfast.Retry{Attempts: 3, On: []int{503}}}, func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			seen = append(seen, fmt.Sprint(r.Header.Get("Job-Attempt"), r.Header.Get("X-Own"), string(body), len(r.Header.Get("Idempotency-Key"))))
			r.Header.Set("X-Own", "changed")
			if len(seen) == 1 {
				panic("on purpose")
			}
			w.WriteHeader(503)
			fmt.Fprint(w, "attempt ", len(seen))
		})
		defer f.stop(t)
		id := f.id(t, f.post("body", "X-Own", " own "))
		synctest.Wait()
		s := f.show(t, id)
		if left := time.Until(s.NextAt); s.State != "queued" || s.Attempts != 1 || s.NextAt.IsZero() || left > time.Second || f.jobs.Stats().Delayed != 1 {
			t.Errorf("after the first attempt: %+v", s)
		}
		if st := f.d.Stats(); st.Queued+st.Running != 0 {
			t.Errorf("it has a place while it waits: %+v", st)
		}
		pass(4 * time.Second)
		synctest.Wait()
		s = f.show(t, id)
		if s.State != "failed" || s.Attempts != 3 || s.Error != "the handler answered 503 at the last of 3 attempts" || f.ended.Load() != 1 {
			t.Errorf("in the end: %+v, which was said %d times", s, f.ended.Load())
		}
		if w := f.response(id); w.Code != 503 || w.Body.String() != "attempt 3" || w.Header().Get("Job-State") != "failed" {
			t.Errorf("the response is %d %s, want that of the last attempt", w.Code, w.Body)
		}
		if want := []string{"1 own body28", "2 own body28", "3 own body28"}; !slices.Equal(seen, want) {
			t.Errorf("the handler saw %q, want %q", seen, want)
		}
		if st := f.jobs.Stats(); st.Retries != 2 || st.Failed != 1 || st.Delayed != 0 {
			t.Errorf("%+v", st)
		}
	})
}

func TestNotTriedAgain(t *testing.T) {
	for what, c := range map[string]struct {
		h     http.HandlerFunc
		state string
	}{
		"aborts":      {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "failed"},
		"is late":     {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "failed"},
		"answers":     {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }, "done"},
		"says no":     {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Job-Retry", "never"); w.WriteHeader(503) }, "failed"},
		"is too much": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503); w.Write(make([]byte, 10_000)) }, "failed"},
		"declares more": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "9")
			w.WriteHeader(503)
		}, "failed"},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				calls := 0
				f := newRetried(t, holdfast.Config{Workers: 1, Queue: 1, JobTimeout: time.Second}, holdfast.JobsConfig{MaxResponse: 5000, Retry: holdfast.Retry{Attempts: 3, On: []int{503}}}, func(w http.ResponseWriter, r *http.Request) {
					calls++
					c.h(w, r)
				})
				defer f.stop(t)
				id := f.id(t, f.post(""))
				pass(time.Hour / 2)
				if s := f.show(t, id); s.State != c.state || calls != 1 {
					t.Errorf("%+v after %d attempts, want %s after one", s, calls, c.state)
				}
				if got := f.response(id).Header(); got["Job-Retry"] != nil {
					t.Errorf("the client sees %v", got)
				}
			})
		})
	}
}

// What the upstream asks for is the least, as seconds or as a date, and not beyond MaxDelay.
func TestRetryAfter(t *testing.T) {
	for _, c := range []struct {
		value    string
		min, max time.Duration
	}{
		{"60", time.Minute, time.Minute + time.Second},
		{"date", 2*time.Minute - time.Second, 2*time.Minute + time.Second},
		{"999999999999", time.Hour, time.Hour + time.Second},
		{"-5", 0, time.Second},
		{"soon", 0, time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			var at []time.Time
			f := newRetried(t, holdfast.Config{Workers: 1, Queue: 1}, holdfast.JobsConfig{MaxDelay: time.Hour, Retry: holdfast.Retry{Attempts: 2, On: []int{429}}}, func(w http.ResponseWriter, r *http.Request) {
				at = append(at, time.Now())
				value := c.value
				if value == "date" {
					value = time.Now().Add(2 * time.Minute).UTC().Format(http.TimeFormat)
				}
				w.Header().Set("Retry-After", value)
				w.WriteHeader(429)
			})
			defer f.stop(t)
			id := f.id(t, f.post(""))
			synctest.Wait()
			if s := f.show(t, id); s.LastStatus != 429 || c.value == "60" && s.retryAfter != "60" && s.retryAfter != "61" {
				t.Errorf("%+v", s)
			}
			pass(2 * time.Hour)
			if len(at) != 2 || at[1].Sub(at[0]) < c.min || at[1].Sub(at[0]) > c.max {
				t.Errorf("Retry-After %s: attempts at %v, want the second %v to %v later", c.value, at, c.min, c.max)
			}
		})
	}
}

// An upstream that refuses all jobs for a while meets them one by one afterwards: no two of
// a thousand that were refused at the same moment come back at the same one.
func TestRetryStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		at := make(map[time.Duration]int)
		began := time.Now()
		f := newRetried(t, holdfast.Config{Workers: 1000}, holdfast.JobsConfig{Retry: holdfast.Retry{Attempts: 20, On: []int{503}}}, func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			if at[time.Since(began)]++; time.Since(began) < time.Minute {
				w.WriteHeader(503)
			}
		})
		defer f.stop(t)
		for range 1000 {
			f.id(t, f.post(""))
		}
		pass(time.Hour)
		delete(at, 0)
		most := 0
		for _, n := range at {
			most = max(most, n)
		}
		if st := f.jobs.Stats(); st.Open != 0 || st.Failed != 0 || most > 3 || len(at) < 5000 {
			t.Errorf("%+v, and up to %d at one of %d moments", st, most, len(at))
		}
	})
}

// A retry that finds the queue full waits for a place, and can be canceled meanwhile. So can
// one that waits for its time, and one that runs again.
func TestCancelOfARetry(t *testing.T) {
	for _, when := range []string{"waiting", "submitting", "running"} {
		t.Run(when, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				calls, free := 0, make(chan bool)
				f := newRetried(t, holdfast.Config{Workers: 1, Overflow: holdfast.Reject}, holdfast.JobsConfig{Retry: holdfast.Retry{Attempts: 9, On: []int{503}}}, func(w http.ResponseWriter, r *http.Request) {
					if body, _ := io.ReadAll(r.Body); len(body) > 0 {
						<-free
						return
					}
					if calls++; calls > 1 {
						<-r.Context().Done()
						time.Sleep(time.Second) // it takes its time to notice
					}
					w.WriteHeader(503)
				})
				defer f.stop(t)
				id := f.id(t, f.post(""))
				synctest.Wait()
				switch when {
				case "submitting":
					f.id(t, f.post("long"))
					pass(time.Second)
					synctest.Wait()
					if st := f.d.Stats(); st.Blocked != 1 {
						t.Fatalf("%+v, want one that waits for a place", st)
					}
				case "running":
					pass(time.Second)
				}
				w := httptest.NewRecorder()
				f.jobs.ServeHTTP(w, httptest.NewRequest("DELETE", "/jobs/"+id, nil))
				close(free)
				pass(time.Hour / 2)
				want := map[string]int{"waiting": 200, "submitting": 200, "running": 202}[when]
				if s := f.show(t, id); w.Code != want || s.State != "canceled" || calls > 2 || calls > 1 != (when == "running") {
					t.Errorf("%d, and %+v after %d attempts; want %d, and canceled", w.Code, s, calls, want)
				}
				if st := f.d.Stats(); st.Blocked+st.Queued+st.Running != 0 || f.jobs.Stats().Delayed != 0 {
					t.Errorf("%+v", st)
				}
			})
		})
	}
}

// Whatever Run-At and Delay say, bad values change nothing, and are answered with what is
// expected.
func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ran := make(map[string]time.Duration)
		began := time.Now()
		f := newRetried(t, holdfast.Config{Workers: 1, Queue: 1}, holdfast.JobsConfig{}, func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			ran[string(body)] = time.Since(began)
			if r.Header.Get("Delay")+r.Header.Get("Run-At") != "" {
				t.Error("the handler was asked to wait, too")
			}
		})
		defer f.stop(t)
		date := func(d time.Duration) string { return began.Add(d).UTC().Format(http.TimeFormat) }
		for _, bad := range [][]string{
			{"Delay", "-1"}, {"Delay", "1.5"}, {"Delay", ""}, {"Delay", "1m"}, {"Delay", "86401"}, {"Delay", "99999999999999999999"},
			{"Run-At", "tomorrow"}, {"Run-At", date(25 * time.Hour)}, {"Run-At", "2000-01-01T00:00:00Z"},
			{"Delay", "1", "Run-At", date(time.Second)}, {"Delay", "1", "Delay", "1"},
		} {
			if w := f.post("bad", bad...); w.Code != 400 || !strings.Contains(w.Body.String(), "want") {
				t.Errorf("%q: %d %s, want 400", bad, w.Code, w.Body)
			}
		}
		id := f.id(t, f.post("delay", "Delay", "60"))
		f.id(t, f.post("date", "Run-At", date(30*time.Second)))
		f.id(t, f.post("past", "Run-At", date(-time.Hour)))
		f.id(t, f.post("day", "Delay", "86400"))
		synctest.Wait()
		if s := f.show(t, id); s.State != "queued" || !s.NextAt.Equal(began.Add(time.Minute)) || s.Attempts != 0 || s.retryAfter != "60" {
			t.Errorf("%+v", s)
		}
		pass(25 * time.Hour)
		want := map[string]time.Duration{"past": 0, "date": 30 * time.Second, "delay": time.Minute, "day": 24 * time.Hour}
		if fmt.Sprint(ran) != fmt.Sprint(want) {
			t.Errorf("they ran at %v, want %v", ran, want)
		}
	})
}

func TestNoDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newRetried(t, holdfast.Config{Workers: 1}, holdfast.JobsConfig{MaxDelay: -1}, func(http.ResponseWriter, *http.Request) {})
		defer f.stop(t)
		if w := f.post("", "Delay", "1"); w.Code != 400 {
			t.Errorf("%d %s, want 400", w.Code, w.Body)
		}
	})
}

// The same key with another delay is another request.
func TestDelayUnderAKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newRetried(t, holdfast.Config{Workers: 1}, holdfast.JobsConfig{}, func(http.ResponseWriter, *http.Request) {})
		defer f.stop(t)
		id := f.id(t, f.post("", "Delay", "10", "Idempotency-Key", "k"))
		if again := f.id(t, f.post("", "Delay", "10", "Idempotency-Key", "k")); again != id {
			t.Error("a repeat got another job")
		}
		if w := f.post("", "Delay", "11", "Idempotency-Key", "k"); w.Code != 422 {
			t.Errorf("%d, want 422", w.Code)
		}
	})
}

// Jobs that wait for their time hold nobody up, and a full room refuses those that would
// have to wait there, or might have to; but never a retry. Whoever names times fills only
// the room of those who do.
func TestFullRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 10_000
		var ran atomic.Int64
		f := newRetried(t, holdfast.Config{Workers: 1, Queue: 1}, holdfast.JobsConfig{MaxMemory: 1 << 30, Retry: holdfast.Retry{Attempts: 3}}, func(w http.ResponseWriter, r *http.Request) { ran.Add(1) })
		defer f.stop(t)
		for range n {
			f.id(t, f.post("", "Delay", "3600"))
		}
		if w := f.post("", "Delay", "1"); w.Code != 503 || w.Header().Get("Retry-After") == "" {
			t.Errorf("%d %s, want 503 with Retry-After", w.Code, w.Body)
		}
		f.id(t, f.post(""))
		synctest.Wait()
		if ran.Load() != 1 {
			t.Error("a job without a delay was not served at once")
		}
		pass(time.Hour)
		synctest.Wait()
		if st := f.jobs.Stats(); ran.Load() != n+1 || st.Open != 0 {
			t.Errorf("%d ran, and %+v", ran.Load(), st)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		release := make(chan bool)
		f := newRetried(t, holdfast.Config{Workers: 2}, holdfast.JobsConfig{MaxDelayed: 1, Retry: holdfast.Retry{Attempts: 2, On: []int{503}}}, func(w http.ResponseWriter, r *http.Request) {
			<-release
			w.WriteHeader(503)
		})
		defer f.stop(t)
		f.id(t, f.post(""))
		f.id(t, f.post(""))
		close(release)
		synctest.Wait()
		if st := f.jobs.Stats(); st.Delayed != 2 {
			t.Errorf("%+v, want both to wait", st)
		}
		if w := f.post(""); w.Code != 503 {
			t.Errorf("%d, want 503: it might have to wait, too", w.Code)
		}
		pass(time.Minute)
		if st := f.jobs.Stats(); st.Failed != 2 || st.Retries != 2 {
			t.Errorf("%+v, want both to have failed after a retry", st)
		}
	})
}

// Bodies of jobs that are far ahead leave memory for the others.
func TestDelayedBodies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newRetried(t, holdfast.Config{Workers: 1, Queue: 1}, holdfast.JobsConfig{MaxMemory: 16 << 20, RetainBytes: 1 << 20, MaxBody: 1 << 20}, func(w http.ResponseWriter, r *http.Request) {})
		defer f.stop(t)
		body, n := strings.Repeat("x", 1<<18), 0
		for f.post(body, "Delay", "3600").Code == 202 {
			n++
		}
		if n < 10 || n > 16 {
			t.Errorf("%d delayed requests of 256 KiB were accepted, want those that a quarter of 16 MiB holds", n)
		}
		if w := f.post(body); w.Code != 202 {
			t.Errorf("%d %s, want 202 for a request that need not wait", w.Code, w.Body)
		}
		pass(time.Hour)
		if w := f.post(body, "Delay", "1"); w.Code != 202 {
			t.Errorf("%d, want 202 when the others have run", w.Code)
		}
	})
}

// What waits when a shutdown begins never starts, and is said to be.
func TestShutdownOfWhatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newRetried(t, holdfast.Config{Workers: 1}, holdfast.JobsConfig{Retry: holdfast.Retry{Attempts: 9, On: []int{503}}}, func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			if len(body) > 0 {
				time.Sleep(10 * time.Second)
			}
			w.WriteHeader(503)
		})
		delayed, retry := f.id(t, f.post("", "Delay", "60")), f.id(t, f.post(""))
		synctest.Wait()
		runs := f.id(t, f.post("runs"))
		pass(5 * time.Second) // the retry waits for a place
		report, err := f.d.Shutdown(t.Context())
		if len(report.NeverStarted) != 1 || report.Finished != 1 || !errors.Is(err, holdfast.ErrAbandoned) {
			t.Errorf("%d never started, %d finished, %v; want one of each", len(report.NeverStarted), report.Finished, err)
		}
		synctest.Wait()
		for id, want := range map[string]string{delayed: "canceled", retry: "canceled", runs: "failed"} {
			if s := f.show(t, id); s.State != want {
				t.Errorf("%+v, want %s", s, want)
			}
		}
		if w := f.response(runs); w.Code != 503 || w.Header().Get("Job-State") != "failed" {
			t.Errorf("what failed during the shutdown has the response %d %s", w.Code, w.Body)
		}
		if err := report.NeverStarted[0](context.Background()); err == nil {
			t.Error("what was abandoned runs all the same")
		}
	})
}

// A job that has failed runs again with its id, and one that is discarded is gone.
func TestAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var works atomic.Bool
		attempts := ""
		f := newRetried(t, holdfast.Config{Workers: 1, Overflow: holdfast.Block}, holdfast.JobsConfig{Retry: holdfast.Retry{Attempts: 2}}, func(w http.ResponseWriter, r *http.Request) {
			attempts += r.Header.Get("Job-Attempt")
			if body, _ := io.ReadAll(r.Body); string(body) == "long" {
				time.Sleep(time.Minute)
			} else if string(body) != "body" {
				t.Errorf("the body is %q", body)
			}
			if !works.Load() {
				panic("on purpose")
			}
		})
		defer f.stop(t)
		id := f.id(t, f.post("body", "Idempotency-Key", "k"))
		pass(time.Minute)
		works.Store(true)
		key, _ := store.ParseID(id)
		busy := f.id(t, f.post("long"))
		synctest.Wait()
		if err := f.core.Again(key); !errors.Is(err, holdfast.ErrQueueFull) || f.show(t, id).State != "failed" {
			t.Errorf("%v with a full queue, and %+v", err, f.show(t, id))
		}
		pass(time.Minute)
		if err := f.core.Again(key); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		if s := f.show(t, id); s.State != "done" || s.Attempts != 3 || attempts != "1213" {
			t.Errorf("%+v after the attempts %s", s, attempts)
		}
		if again := f.id(t, f.post("body", "Idempotency-Key", "k")); again != id {
			t.Error("its key leads to another job")
		}
		other, _ := store.ParseID(busy)
		if f.core.Again(key) != httpjob.ErrNotFailed || f.core.Discard(key) || f.core.Discard(other) {
			t.Error("a job that is done was run again, or discarded")
		}
		works.Store(false)
		gone, _ := store.ParseID(f.id(t, f.post("body")))
		pass(time.Minute)
		if !f.core.Discard(gone) || f.core.Discard(gone) || f.core.Again(gone) != httpjob.ErrNotFailed || f.response(gone.String()).Code != 404 {
			t.Error("a job that failed was not discarded once")
		}
	})
}
