package holdfast

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// What a program sees of its jobs over HTTP: OnEnd, Lookup, Cancel, and ids in a log.

// infos are the jobs that have ended, as OnEnd was told.
type infos struct {
	mu  sync.Mutex
	all []JobInfo
}

func (i *infos) add(info JobInfo) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.all = append(i.all, info)
}

// take returns the jobs since the last call, by the time at which they were accepted.
func (i *infos) take() []JobInfo {
	synctest.Wait()
	i.mu.Lock()
	defer i.mu.Unlock()
	taken := i.all
	i.all = nil
	slices.SortStableFunc(taken, func(a, b JobInfo) int { return a.Accepted.Compare(b.Accepted) })
	return taken
}

// expectInfo checks one job that OnEnd was told of: whether it has an id, and all but
// the times by what it would print.
func expectInfo(t *testing.T, got JobInfo, id bool, state string, status int, says string, wait, run time.Duration) {
	t.Helper()
	if (got.ID != "") != id || got.State != state || got.Status != status || !strings.Contains(got.Error, says) || (got.Error == "") != (says == "") ||
		got.Wait != wait || got.Run != run || got.Accepted.IsZero() || got.Ended.IsZero() || got.Method != "POST" || got.Target != "/work?x=1" || got.Route != "POST /work" {
		t.Errorf("got %+v, waited %v, ran %v;\nwant id %v, state %s, status %d, error %q, wait %v, run %v", got, got.Wait, got.Run, id, state, status, says, wait, run)
	}
}

// Each way to end a job of Queued or Async is told once, with its times.
func TestOnEnd(t *testing.T) {
	const s = time.Second
	for _, async := range []bool{true, false} {
		var seen infos
		inBubble(t, Config{Workers: 1, Queue: 1, Overflow: DropOldest, JobTimeout: time.Minute}, JobsConfig{OnEnd: seen.add}, func(t *testing.T, f *jobsFixture) {
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				switch string(body) {
				case "panic":
					panic("boom")
				case "exit":
					runtime.Goexit()
				case "late":
					time.Sleep(time.Hour)
				case "teapot":
					w.WriteHeader(http.StatusTeapot)
				case "sleep":
					select {
					case <-time.After(10 * s):
					case <-r.Context().Done():
					}
				}
			})
			mux := http.NewServeMux()
			if async {
				mux.Handle("POST /work", f.Async(h))
			} else {
				mux.Handle("POST /work", f.Queued(h))
			}
			send := func(body string) (leave context.CancelFunc) {
				ctx, leave := context.WithCancel(t.Context())
				go func() {
					defer func() { recover() }() // http.ErrAbortHandler
					ask(ctx, mux, "POST", "/work?x=1", body)
				}()
				synctest.Wait()
				return leave
			}
			one := func(body, state string, status int, says string, run time.Duration) {
				t.Helper()
				send(body)
				time.Sleep(2 * time.Hour)
				if got := seen.take(); len(got) != 1 {
					t.Errorf("%s: told %+v", body, got)
				} else {
					expectInfo(t, got[0], async, state, status, says, 0, run)
				}
			}
			one("", "done", 200, "", 0)
			one("teapot", "done", 418, "", 0)
			one("sleep", "done", 200, "", 10*s)
			one("panic", "failed", 0, "the handler panicked", 0)
			one("exit", "failed", 0, "did not return", 0)
			one("late", "failed", 0, "longer than a job may", time.Hour)

			send("sleep")
			time.Sleep(s)
			send("dropped")
			time.Sleep(s)
			leave := send("sleep") // takes its place
			time.Sleep(time.Hour)
			got := seen.take()
			if len(got) != 3 {
				t.Fatalf("told %+v", got)
			}
			expectInfo(t, got[0], async, "done", 200, "", 0, 10*s)
			expectInfo(t, got[1], async, "dropped", 0, "dropped", 0, 0)
			expectInfo(t, got[2], async, "done", 200, "", 8*s, 10*s)
			leave()

			leave = send("sleep")
			time.Sleep(s)
			leaveQueued := send("queued")
			time.Sleep(s)
			if async {
				for _, j := range []string{"queued", "running"} {
					cancelThe(t, f, j)
				}
			} else {
				leaveQueued()
				synctest.Wait()
				leave()
			}
			got = seen.take()
			if len(got) != 2 {
				t.Fatalf("told %+v", got)
			}
			expectInfo(t, got[0], async, "canceled", 0, "canceled", 0, 2*s)
			expectInfo(t, got[1], async, "canceled", 0, "canceled", 0, 0)

			send("late")
			time.Sleep(s)
			send("queued")
			f.d.Shutdown(expired)
			if got := seen.take(); len(got) != 1 {
				t.Errorf("told %+v", got)
			} else {
				expectInfo(t, got[0], async, "canceled", 0, "shut down before the job had started", 0, 0)
			}
			send("refused")
			time.Sleep(time.Hour)
			if got := seen.take(); len(got) != 1 { // the running one; what was refused is no job
				t.Errorf("told %+v", got)
			} else {
				expectInfo(t, got[0], async, "canceled", 0, "when the server shut down", 0, time.Hour)
			}
		})
	}
}

// cancelThe cancels the one job in a state from Go.
func cancelThe(t *testing.T, f *jobsFixture, state string) {
	t.Helper()
	_, rest, _ := strings.Cut(ask(bg, f.ListHandler(), "GET", "/?state="+state, "").Body.String(), `"id":"`)
	id, _, ok := strings.Cut(rest, `"`)
	if _, known := f.Cancel(ID(id)); !ok || !known {
		t.Errorf("no job is %s", state)
	}
}

// What is refused has not become a job, so OnEnd is not called.
func TestOnEndOfRefusals(t *testing.T) {
	var seen infos
	inBubble(t, Config{Workers: 0, Queue: 0, Overflow: Reject}, JobsConfig{OnEnd: seen.add}, func(t *testing.T, f *jobsFixture) {
		for _, h := range []http.Handler{f.Queued(sleeps), f.Async(sleeps)} {
			expectProblem(t, post(h, "1s"), 503, "queue is full", "1")
			ask(expired, h, "POST", "/work", "1s")
		}
		f.d.Shutdown(bg)
		for _, h := range []http.Handler{f.Queued(sleeps), f.Async(sleeps)} {
			expectProblem(t, post(h, "1s"), 503, "shutting down", "")
		}
		if got := seen.take(); len(got) != 0 {
			t.Errorf("told %+v", got)
		}
	})
}

// When OnEnd is called, the job has ended for everybody.
func TestOnEndComesAfterTheEnd(t *testing.T) {
	var f *jobsFixture
	var jobs *Jobs
	calls := 0
	synctest.Test(t, func(t *testing.T) {
		d, _ := buildLogged(t, Config{Workers: 1, Queue: 1})
		jobs = mustJobs(t, d, JobsConfig{OnEnd: func(i JobInfo) {
			calls++
			if got, ok := jobs.Lookup(i.ID); !ok || got != i || i.State != "done" {
				t.Errorf("told %+v, looked up %+v, %v", i, got, ok)
			}
			if st := d.Stats(); st.Succeeded != 1 || st.Running != 0 {
				t.Errorf("%s", brief(st))
			}
			if err := d.TryGo(bg, nop); err != nil {
				t.Errorf("its place is taken: %v", err)
			}
		}})
		f = &jobsFixture{Jobs: jobs, d: d}
		post(f.Async(sleeps), "1s")
		time.Sleep(time.Minute)
	})
	if calls != 1 {
		t.Errorf("called %d times", calls)
	}
}

// A panic in OnEnd, whatever its value does, is logged, and the worker lives; so does
// it when OnEnd ends its goroutine or takes its time.
func TestOnEndMisbehaves(t *testing.T) {
	for name, misdeed := range misdeeds {
		for _, value := range append(foreignValues(misdeed), "boom", nil) {
			synctest.Test(t, func(t *testing.T) {
				d, log := buildLogged(t, Config{Workers: 1, Queue: 2})
				jobs := mustJobs(t, d, JobsConfig{OnEnd: func(JobInfo) { panic(value) }})
				id := accepted(t, post(jobs.Async(sleeps), "1s"))
				time.Sleep(time.Minute)
				if i, ok := jobs.Lookup(ID(id)); !ok || i.State != "done" {
					t.Errorf("%s: %+v", name, i)
				}
				var rec *httptest.ResponseRecorder
				go func() { rec = post(jobs.Queued(sleeps), "1s") }()
				time.Sleep(time.Minute)
				synctest.Wait()
				if rec == nil && name != "exits" { // then it is the request's goroutine that the value ends
					t.Errorf("%s: Queued has not answered", name)
				} else if rec != nil && rec.Body.String() != "slept 1s" {
					t.Errorf("%s: Queued: %d %s", name, rec.Code, rec.Body)
				}
				if value == "boom" && (log.records() != 2 || strings.Count(log.String(), "OnEnd panicked") != 2 || !strings.Contains(log.String(), "follow_test.go")) {
					t.Errorf("log: %s", log)
				}
				hasOneWorker(t, name, d)
			})
		}
		synctest.Test(t, func(t *testing.T) {
			d, _ := buildLogged(t, Config{Workers: 1, Queue: 2})
			jobs := mustJobs(t, d, JobsConfig{OnEnd: func(JobInfo) { misdeed() }})
			accepted(t, post(jobs.Async(sleeps), "1s"))
			hasOneWorker(t, name, d)
		})
	}
}

func TestLookup(t *testing.T) {
	inBubble(t, Config{Workers: 1, Queue: 5}, JobsConfig{Retain: time.Hour}, func(t *testing.T, f *jobsFixture) {
		mux := http.NewServeMux()
		mux.Handle("PUT /{name}/x", f.Async(sleeps))
		target := "/" + strings.Repeat("n", 300) + "/x"
		began := time.Now()
		var ids []ID
		for range 2 {
			ids = append(ids, ID(accepted(t, ask(bg, mux, "PUT", target, "10s"))))
		}
		synctest.Wait()
		expect := func(n int, state string, accepted, started, ended time.Duration, status int) {
			t.Helper()
			at := func(when time.Time, want time.Duration) bool { // to the microsecond
				if want < 0 {
					return when.IsZero()
				}
				return when.Sub(began).Round(time.Microsecond) == want
			}
			i, ok := f.Lookup(ids[n])
			if !ok || i.ID != ids[n] || i.Method != "PUT" || i.Route != "PUT /{name}/x" || i.State != state || i.Status != status || i.Error != "" ||
				!at(i.Accepted, accepted) || !at(i.Started, started) || !at(i.Ended, ended) || len(i.Target) > 200 || !strings.HasPrefix(target, i.Target[:100]) {
				t.Errorf("job %d: %+v, %v", n, i, ok)
			}
		}
		const s = time.Second
		expect(0, "running", 0, 0, -1, 0)
		expect(1, "queued", 0, -1, -1, 0)
		time.Sleep(15 * s)
		expect(0, "done", 0, 0, 10*s, 200)
		expect(1, "running", 0, 10*s, -1, 0)
		if i, _ := f.Lookup(ids[1]); i.Wait != 10*s || i.Run != 0 {
			t.Errorf("waited %v, ran %v", i.Wait, i.Run)
		}
		time.Sleep(time.Hour)
		other := mustJobs(t, f.d, JobsConfig{})
		for _, id := range []ID{ids[0], "", "x", ids[1] + "x", ids[1][1:], ID(strings.ToUpper(string(ids[1])) + " "), "00000000000000000000000000"} {
			if i, ok := f.Lookup(id); ok || i != (JobInfo{}) { // the first is forgotten by now
				t.Errorf("%q is known: %+v", id, i)
			}
			if i, ok := f.Cancel(id); ok || i != (JobInfo{}) {
				t.Errorf("%q was canceled: %+v", id, i)
			}
		}
		if _, ok := other.Lookup(ids[1]); ok {
			t.Error("another Jobs knows it")
		}
	})
}

func TestCancelFromGo(t *testing.T) {
	inBubble(t, Config{Workers: 1, Queue: 1}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
		h := f.Async(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			time.Sleep(time.Second)
		}))
		running := ID(accepted(t, post(h, "")))
		synctest.Wait()
		queued := ID(accepted(t, post(h, "")))
		expect := func(id ID, state string) {
			t.Helper()
			if i, ok := f.Cancel(id); !ok || i.ID != id || i.State != state || (state == "canceled") != (i.Error != "") {
				t.Errorf("%+v, %v; want %s", i, ok, state)
			}
		}
		expect(queued, "canceled")
		if n := fill(t, f.d, nop); n != 1 {
			t.Errorf("%d places are free, want that of the canceled job", n)
		}
		expect(running, "running")
		time.Sleep(time.Minute)
		expect(running, "canceled")
		expect(queued, "canceled")
		done := ID(accepted(t, post(f.Async(sleeps), "0s")))
		synctest.Wait()
		if i, ok := f.Cancel(done); !ok || i.State != "done" {
			t.Errorf("%+v, %v", i, ok)
		}
	})
}

func TestIDInALog(t *testing.T) {
	id := ID("abcdefghijklmnopqrstuvwxyz")
	for _, test := range []struct{ id, short ID }{{"", ""}, {"abc", "abc"}, {"abcdefgh", "abcdefgh"}, {id, "abcdefgh"}} {
		if got := test.id.Short(); got != string(test.short) {
			t.Errorf("%q is %q for short, want %q", test.id, got, test.short)
		}
	}
	for _, format := range logFormats {
		var out strings.Builder
		log := slog.New(format(&out, &slog.HandlerOptions{}))
		log.Info("a", "id", id)
		log.With("id", id).WithGroup("g").Info("b", slog.Any("id", id), slog.Group("h", "id", id))
		if text := out.String(); strings.Contains(text, "abcdefghi") || strings.Count(text, "abcdefgh") != 4 {
			t.Errorf("logged %s", text)
		}
	}
}
