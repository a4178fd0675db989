package httpjob_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/internal/httpjob"
	"holdfast/internal/store"
)

var twice = holdfast.JobsConfig{Retry: holdfast.Retry{Attempts: 2, On: []int{503}}}

func (f *journaled) look(t *testing.T, id holdfast.ID) (s shown) {
	t.Helper()
	w := httptest.NewRecorder()
	f.jobs.ServeHTTP(w, httptest.NewRequest("GET", "/jobs/"+string(id), nil))
	if err := json.Unmarshal(w.Body.Bytes(), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// What waits for its time when the process dies, or is stopped, waits for the same time in
// the next one, and its attempts count on.
func TestRestartOfWhatWaits(t *testing.T) {
	for _, stopped := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			p, began := new(tape), time.Now()
			var seen []string
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				seen = append(seen, fmt.Sprint(string(body), r.Header.Get("Job-Attempt"), " ", time.Since(began)))
				if string(body) == "retry" {
					w.Header().Set("Retry-After", "10")
					w.WriteHeader(503)
				}
			})
			f := beside(t, p, holdfast.Config{Workers: 1, Queue: 9}, twice, h)
			_, delayed := f.post("/", "delayed", "Delay", "60")
			_, retry := f.post("/", "retry")
			synctest.Wait()
			before := f.look(t, retry)
			var report holdfast.Report
			if stopped {
				report = f.cutOff()
			}
			if len(report.NeverStarted) != 0 || before.Attempts != 1 || before.LastStatus != 503 {
				t.Errorf("%+v, and %d never started", before, len(report.NeverStarted))
			}
			left := &tape{records: p.records}
			g := beside(t, left, holdfast.Config{Workers: 1, Queue: 9}, twice, h)
			defer g.d.Shutdown(t.Context())
			f.d.Resize(0) // the process that has died
			synctest.Wait()
			if after := g.look(t, retry); after != before {
				t.Errorf("%+v before, and %+v after the restart", before, after)
			}
			if s := g.look(t, delayed); !s.NextAt.Equal(began.Add(time.Minute)) || s.State != "queued" || s.Attempts != 0 {
				t.Errorf("delayed: %+v", s)
			}
			pass(50 * time.Second)
			if s := g.look(t, retry); s.State != "failed" || s.Attempts != 2 {
				t.Errorf("%+v, want it to have failed at the second attempt", s)
			}
			pass(20 * time.Second)
			synctest.Wait()
			if len(seen) != 3 || seen[0] != "retry1 0s" || !strings.HasPrefix(seen[1], "retry2 1") || seen[2] != "delayed1 1m0s" {
				t.Errorf("the handler saw %q", seen)
			}
			f.d.Shutdown(t.Context())
		})
	}
}

// A clock that is set back while no process is there does not make a job wait for longer
// than its client has said.
func TestClockSetBack(t *testing.T) {
	p := new(tape)
	var id holdfast.ID
	h := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	synctest.Test(t, func(t *testing.T) { // each begins at the same time
		pass(1000 * time.Hour)
		f := beside(t, p, holdfast.Config{Workers: 1}, twice, h)
		_, id = f.post("/", "", "Delay", "60")
		synctest.Wait()
		f.cutOff()
	})
	synctest.Test(t, func(t *testing.T) {
		f := beside(t, &tape{records: p.records}, holdfast.Config{Workers: 1}, twice, h)
		defer f.d.Shutdown(t.Context())
		for _, want := range []string{"queued", "done"} {
			if s := f.look(t, id); s.State != want {
				t.Errorf("%+v, want %s", s, want)
			}
			pass(61 * time.Second)
		}
	})
}

// A job that waited when the process died has not killed it, however often it was tried.
func TestWaitingIsNoDeath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, works := new(tape), false
		jc := holdfast.JobsConfig{Retry: holdfast.Retry{Attempts: 4}}
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !works {
				panic("on purpose")
			}
		})
		f := beside(t, p, holdfast.Config{Workers: 1}, jc, h)
		_, id := f.post("/", "")
		for f.look(t, id).Attempts < 3 {
			time.Sleep(time.Millisecond)
			synctest.Wait()
		}
		f.cutOff()
		works = true
		g := beside(t, &tape{records: p.records}, holdfast.Config{Workers: 1}, jc, h)
		defer g.d.Shutdown(t.Context())
		pass(time.Minute)
		if s := g.look(t, id); s.State != "done" || s.Attempts != 4 {
			t.Errorf("%+v, want it done at the fourth attempt", s)
		}
	})
}

// A job that has failed keeps its response and its request across restarts, and across what
// the cleaner copies; run again it ends anew, and that end is the one that stays.
func TestAgainAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, works := new(tape), false
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !works {
				w.WriteHeader(503)
			}
			body, _ := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%s %s", body, r.Header.Get("Job-Attempt"))
		})
		restart := func(old *journaled) *journaled {
			old.d.Shutdown(t.Context())
			left := &tape{records: p.records}
			f := beside(t, left, holdfast.Config{Workers: 1}, twice, h)
			for _, b := range left.records[:len(p.records):len(p.records)] {
				f.core.Store.CopyIfAlive(b) // as if the log were cleaned
			}
			left.records = left.records[len(p.records):]
			p = left
			return f
		}
		f := beside(t, p, holdfast.Config{Workers: 1}, twice, h)
		_, id := f.post("/", "body", "Idempotency-Key", "k")
		_, other := f.post("/", "other")
		pass(time.Minute)
		p = &tape{records: p.records}
		f = restart(f)
		answer := func() string {
			w := httptest.NewRecorder()
			f.jobs.ServeHTTP(w, httptest.NewRequest("GET", "/jobs/"+string(id)+"/response", nil))
			return fmt.Sprint(w.Code, " ", w.Body, " ", w.Header().Get("Job-State"))
		}
		if got := answer(); got != "503 body 2 failed" || f.jobs.Stats().Failed != 2 {
			t.Errorf("after a restart: %s, and %+v", got, f.jobs.Stats())
		}
		key, _ := store.ParseID(string(id))
		gone, _ := store.ParseID(string(other))
		works = true
		if err := f.core.Again(key); err != nil || !f.core.Discard(gone) {
			t.Fatal(err)
		}
		synctest.Wait()
		for range 3 {
			if got := answer(); got != "200 body 3 done" || f.core.Again(key) != httpjob.ErrNotFailed {
				t.Errorf("run again: %s", got)
			}
			if _, repeated := f.post("/", "body", "Idempotency-Key", "k"); repeated != id {
				t.Error("its key leads to another job")
			}
			if _, ok := f.jobs.Lookup(other); ok {
				t.Error("what was discarded is back")
			}
			f = restart(f)
		}
		f.d.Shutdown(t.Context())
	})
}

// A job that was running again when the process died runs in the next one.
func TestDeathOfWhatRunsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, calls := new(tape), 0
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if calls++; calls < 3 {
				w.WriteHeader(503)
			} else if calls == 3 {
				<-r.Context().Done()
			}
		})
		f := beside(t, p, holdfast.Config{Workers: 1}, twice, h)
		_, id := f.post("/", "")
		pass(time.Minute)
		key, _ := store.ParseID(string(id))
		if err := f.core.Again(key); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		f.cutOff()
		f.core.Store.CutOff()
		g := beside(t, &tape{records: p.records}, holdfast.Config{Workers: 1}, twice, h)
		defer g.d.Shutdown(t.Context())
		synctest.Wait()
		if s := g.look(t, id); s.State != "done" || s.Attempts != 4 {
			t.Errorf("%+v, want it done at the fourth attempt", s)
		}
	})
}
