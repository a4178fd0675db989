package httpjob_test

import (
	"context"
	"encoding/json"
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
	"holdfast/internal/budget"
	"holdfast/internal/httpjob"
	"holdfast/internal/store"
)

// A tape is a journal that writes at once, or not while it is stuck.
type tape struct {
	mu      sync.Mutex
	records [][]byte
	stuck   atomic.Bool
	waiting []func(error)
}

func (p *tape) Append(b []byte, done func(error)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.records = append(p.records, slices.Clone(b))
	if done == nil {
		return
	}
	p.waiting = append(p.waiting, done)
	if !p.stuck.Load() {
		go p.write()
	}
}

// write writes what waits.
func (p *tape) write() {
	for {
		p.mu.Lock()
		if len(p.waiting) == 0 {
			p.mu.Unlock()
			return
		}
		done := p.waiting[0]
		p.waiting = p.waiting[1:]
		p.mu.Unlock()
		done(nil)
	}
}

func (p *tape) Err() error { return nil }

// A journaled is a server's jobs beside a tape.
type journaled struct {
	d    *holdfast.Dispatcher
	core *httpjob.Jobs
	jobs *holdfast.Jobs
	http.Handler
}

// beside returns jobs that go on with what is on the tape.
func beside(t *testing.T, p *tape, cfg holdfast.Config, jc holdfast.JobsConfig, h http.Handler) *journaled {
	t.Helper()
	cfg.Logger = slog.New(slog.DiscardHandler)
	d, err := holdfast.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	jobs, err := holdfast.NewJobs(d, jc)
	if err != nil {
		t.Fatal(err)
	}
	f := &journaled{d, httpjob.Of(jobs.Async(h)), jobs, jobs.Async(h)}
	f.core.Store.Journaled(p)
	for _, b := range slices.Clone(p.records) {
		if err := f.core.Store.Replay(b); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.core.Restore(h, 3, nil); err != nil {
		t.Fatal(err)
	}
	return f
}

// A job that goes on elsewhere has met no death, however often who led has died, and goes
// on as the attempt that it is.
func TestRestoreOfWhatGoesOnElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := new(tape)
		before := beside(t, p, holdfast.Config{Workers: 2, Queue: 2}, holdfast.JobsConfig{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
		}))
		_, lost := before.post("/lost", "")
		_, goesOn := before.post("/goes-on", "")
		synctest.Wait()
		defer before.cutOff()

		var attempts []string
		d, _ := holdfast.New(holdfast.Config{Workers: 2})
		defer d.Shutdown(t.Context())
		jobs, _ := holdfast.NewJobs(d, holdfast.JobsConfig{})
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			attempts = append(attempts, r.URL.Path+" "+r.Header.Get("Job-Attempt"))
		})
		core := httpjob.Of(jobs.Async(h))
		core.Store.Journaled(new(tape))
		for _, b := range slices.Clone(p.records) {
			if err := core.Store.Replay(b); err != nil {
				t.Fatal(err)
			}
		}
		id, _ := store.ParseID(string(goesOn))
		if n, err := core.Restore(h, 1, map[store.ID]int{id: 1}); n != 1 || err != nil {
			t.Errorf("%d jobs are back, %v; want 1", n, err)
		}
		synctest.Wait()
		if want := []string{"/goes-on 1"}; !slices.Equal(attempts, want) {
			t.Errorf("%q were started, want %q", attempts, want)
		}
		id, _ = store.ParseID(string(lost))
		if state, _ := core.Store.Standing(id); state != store.Failed {
			t.Errorf("the other job is %s, want %s", state, store.Failed)
		}
	})
}

// post submits a request and returns its answer, and the id of the job.
func (f *journaled) post(target, body string, header ...string) (int, holdfast.ID) {
	r := httptest.NewRequest("POST", target, strings.NewReader(body))
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	f.ServeHTTP(w, r)
	var job struct{ ID holdfast.ID }
	json.Unmarshal(w.Body.Bytes(), &job)
	return w.Code, job.ID
}

// cutOff shuts down without waiting for what runs.
func (f *journaled) cutOff() holdfast.Report {
	at, cancel := context.WithCancel(context.Background())
	cancel()
	report, _ := f.d.Shutdown(at)
	return report
}

// A handler that panics since a shutdown has ended its context, as a ReverseProxy does, was
// cut off like one that returns.
func TestPanicOfWhatAShutdownCutsOff(t *testing.T) {
	for _, v := range []any{http.ErrAbortHandler, "on purpose"} {
		synctest.Test(t, func(t *testing.T) {
			p := new(tape)
			lives := 0
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if lives++; lives == 1 {
					<-r.Context().Done()
					panic(v)
				}
			})
			f := beside(t, p, holdfast.Config{Workers: 1, Queue: 1}, holdfast.JobsConfig{}, h)
			_, id := f.post("/", "")
			synctest.Wait()
			f.cutOff()
			synctest.Wait()
			f = beside(t, p, holdfast.Config{Workers: 1, Queue: 1}, holdfast.JobsConfig{}, h)
			synctest.Wait()
			if got, ok := f.jobs.Lookup(id); !ok || got.State != "done" {
				t.Errorf("panic with %v: the job is %s %s after the restart, want done", v, got.State, got.Error)
			}
			f.cutOff()
			synctest.Wait()
		})
	}
}

// What a shutdown returns as never started is stored, and a program that runs it all the
// same must not run it twice.
func TestNeverStartedIsStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { t.Error("the handler was called") })
		f := beside(t, new(tape), holdfast.Config{Queue: 1}, holdfast.JobsConfig{}, h)
		f.post("/", "")
		report := f.cutOff()
		if len(report.NeverStarted) != 1 {
			t.Fatalf("%d jobs were never started, want 1", len(report.NeverStarted))
		}
		if err := report.NeverStarted[0](t.Context()); err == nil {
			t.Error("it returned nil, want an error")
		}
	})
}

// OnEnd is called once for each job, also for one that was started too often.
func TestOnEndOfAJobThatWasStartedTooOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := new(tape)
		hang := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		var told []holdfast.JobInfo
		jc := holdfast.JobsConfig{OnEnd: func(i holdfast.JobInfo) { told = append(told, i) }}
		var id holdfast.ID
		for life := range 4 {
			f := beside(t, p, holdfast.Config{Workers: 1, Queue: 1}, jc, hang)
			if life == 0 {
				_, id = f.post("/", "")
			}
			synctest.Wait()
			f.cutOff()
			synctest.Wait()
		}
		if len(told) != 1 || told[0].ID != id || told[0].State != "failed" {
			t.Errorf("OnEnd was told %+v, want that the job has failed", told)
		}
	})
}

// A request under a key whose client was told that it could not be stored is repeated. If it
// runs by then, the repeat gets its response, and not a job that was canceled in the middle.
func TestKeyOfAJobThatRanBeforeItWasStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := new(tape)
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-time.After(12 * time.Second):
				io.WriteString(w, "done")
			case <-r.Context().Done():
			}
		})
		f := beside(t, p, holdfast.Config{Workers: 1, Queue: 1}, holdfast.JobsConfig{}, h)
		p.stuck.Store(true)
		if code, _ := f.post("/", "", "Idempotency-Key", "k"); code != http.StatusServiceUnavailable {
			t.Fatalf("%d while the disk stands still, want 503", code)
		}
		time.AfterFunc(5*time.Second, func() {
			p.stuck.Store(false)
			p.write()
		})
		code, id := f.post("/", "", "Idempotency-Key", "k")
		time.Sleep(time.Minute)
		if got, _ := f.jobs.Lookup(id); code != http.StatusAccepted || got.State != "done" {
			t.Errorf("the repeat got %d and a job that is %s, want 202 and done", code, got.State)
		}
		f.cutOff()
		synctest.Wait()
	})
}

// What a request has beside a journal while it waits is counted: it is as large as its body.
func TestRecordIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		f := beside(t, new(tape), holdfast.Config{Workers: 1, Overflow: holdfast.Block}, holdfast.JobsConfig{MaxMemory: 64 << 20}, hang)
		f.post("/", "")
		memory := budget.Of(f.Handler)
		before := memory.Held()
		const size = 1 << 20
		go f.post("/", strings.Repeat("x", size))
		synctest.Wait()
		if held := memory.Held() - before; held < 2*size {
			t.Errorf("%d bytes are counted for a request with %d that waits, want twice that", held, size)
		}
		f.cutOff()
		synctest.Wait()
		if held := memory.Held(); held > before {
			t.Errorf("%d bytes are counted at the end, want no more than %d", held, before)
		}
	})
}

// A client that cancels what a shutdown has cut off does so for the next process.
func TestCancelOfWhatAShutdownCutsOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := new(tape)
		hang := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		var told []string
		f := beside(t, p, holdfast.Config{Workers: 1, Queue: 1}, holdfast.JobsConfig{OnEnd: func(i holdfast.JobInfo) { told = append(told, i.State) }}, hang)
		_, running := f.post("/", "")
		synctest.Wait()
		_, queued := f.post("/", "")
		f.cutOff()
		synctest.Wait()
		for _, id := range []holdfast.ID{running, queued} {
			for range 2 {
				w := httptest.NewRecorder()
				if f.jobs.ServeHTTP(w, httptest.NewRequest("DELETE", "/jobs/"+string(id), nil)); w.Code != http.StatusOK {
					t.Errorf("DELETE: %d %s, want 200", w.Code, w.Body)
				}
			}
		}
		if !slices.Equal(told, []string{"canceled", "canceled"}) {
			t.Errorf("OnEnd was told %v, want each job once", told)
		}
		f = beside(t, p, holdfast.Config{Workers: 1, Queue: 1}, holdfast.JobsConfig{}, hang)
		for _, id := range []holdfast.ID{running, queued} {
			if got, _ := f.jobs.Lookup(id); got.State != "canceled" {
				t.Errorf("a canceled job is %s after the restart", got.State)
			}
		}
		f.cutOff()
		synctest.Wait()
	})
}

// A server that lingers waits for the clients of a job whose end is on the way to the disk.
func TestUnreadBeforeItIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := new(tape)
		f := beside(t, p, holdfast.Config{Workers: 1, Queue: 1}, holdfast.JobsConfig{}, http.NotFoundHandler())
		release := make(chan bool)
		h := f.jobs.Async(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-release }))
		f.Handler = h
		f.post("/", "")
		p.stuck.Store(true)
		close(release)
		synctest.Wait()
		if n := f.jobs.Stats().Unread; n != 1 {
			t.Errorf("%d jobs are unread before the end is written, want 1", n)
		}
		p.write()
		if n := f.jobs.Stats().Unread; n != 1 {
			t.Errorf("%d jobs are unread when the end is written, want 1", n)
		}
		f.cutOff()
		synctest.Wait()
	})
}
