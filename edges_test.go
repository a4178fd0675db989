package holdfast

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Edges of the guarantees: cases that are seldom met and easy to get wrong.

// parked reports whether a goroutine waits for a mutex in fn.
func parked(fn string) bool {
	buf := make([]byte, 1<<20)
	for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(g, "[sync.Mutex.Lock") && strings.Contains(g, fn) {
			return true
		}
	}
	return false
}

// Without it every program that imports the package would serve its profiles to
// whoever can reach its default mux.
func TestImportRegistersNothing(t *testing.T) {
	for _, path := range []string{"/", "/debug/pprof/", "/debug/vars", "/jobs/", "/healthz"} {
		r := httptest.NewRequest("GET", path, nil)
		if _, pattern := http.DefaultServeMux.Handler(r); pattern != "" {
			t.Errorf("http.DefaultServeMux serves %s as %q", path, pattern)
		}
	}
	deps, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, dep := range strings.Fields(string(deps)) {
		if dep == "expvar" || dep == "net/http/pprof" || dep == "holdfast/admin" {
			t.Errorf("the package imports %s", dep)
		}
	}
}

// With L = 0 nothing is ever queued, so a job on its way to its worker gives the
// empty queue no age.
func TestG14EmptyQueueHasNoAge(t *testing.T) {
	d := build(t, sized(2, 0))
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for !stop.Load() {
				d.Go(bg, nop)
			}
		})
	}
	for range 20_000 {
		if st := d.Stats(); st.Queued == 0 && st.OldestAge != 0 {
			t.Errorf("oldest age with nothing queued: %s", brief(st))
			break
		}
	}
	stop.Store(true)
	wg.Wait()
}

// Jobs that are canceled while a shutdown that is cut off empties the queue are in
// the report too.
func TestG12ReportHasJobsCanceledMeanwhile(t *testing.T) {
	for range 50 {
		d := build(t, sized(1, 2000))
		open := make(gate)
		mustGo(t, d, open.pass)
		var jobs []*Job
		for range 2000 {
			jobs = append(jobs, mustSubmit(t, d, nop))
		}
		ctx, cutOff := context.WithCancel(bg)
		var report Report
		var wg sync.WaitGroup
		wg.Go(func() { report, _ = d.Shutdown(ctx) })
		settled(t, "admission has ended", func() bool { return d.Go(bg, nop) == ErrClosed })
		wg.Go(func() {
			for i := range jobs {
				jobs[len(jobs)-1-i].Cancel()
			}
		})
		cutOff()
		wg.Wait()
		close(open)
		if got := report.Finished + report.Running + len(report.NeverStarted); got != 2001 {
			t.Errorf("%d finished, %d running, %d never started: %d of 2001; %s", report.Finished, report.Running, len(report.NeverStarted), got, brief(d.Stats()))
			return
		}
	}
}

// Every call of Shutdown reports the same, also one that comes when the jobs that
// were cut off have returned.
func TestG12LaterReportIsTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(2, 2))
		mustGo(t, d, func(context.Context) error { time.Sleep(time.Hour); return nil })
		synctest.Wait()
		first, _ := d.Shutdown(expired)
		time.Sleep(2 * time.Hour)
		second, err := d.Shutdown(bg)
		if first.Running != 1 || first.Finished != 0 || second.Running != 1 || second.Finished != 0 || err == nil {
			t.Errorf("first %+v, second %+v, %v", first, second, err)
		}
	})
}

// A job that submits its successor with its own context must not keep every
// ancestor.
func TestG8SuccessorsKeepNoAncestors(t *testing.T) {
	d := build(t, sized(1, 1))
	objects := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapObjects
	}
	before := objects()
	done := make(chan uint64)
	n := 0
	var next func(ctx context.Context) error
	next = func(ctx context.Context) error {
		if n++; n == 100_000 {
			done <- objects()
			return nil
		}
		return d.Go(ctx, next)
	}
	d.Go(context.WithValue(bg, ctxKey("k"), "v"), next)
	if after := <-done; after > before+50_000 {
		t.Errorf("%d objects kept after %d jobs, all but one ended", after-before, n)
	}
}

// A context is foreign code: one whose Value panics or calls Stats, called with the
// dispatcher locked, would stop it for good.
func TestG10NoForeignCodeUnderTheLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(0, 1))
		mustGo(t, d, nop)
		var under bool
		d.With(Block).Go(watching{expiring(t), func() {
			if d.mu.TryLock() {
				d.mu.Unlock()
			} else {
				under = true
			}
		}}, nop)
		if under {
			t.Error("ctx.Value was called with Dispatcher.mu locked")
		}
	})
}

func expiring(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(bg, time.Second)
	t.Cleanup(cancel)
	return ctx
}

type watching struct {
	context.Context
	value func()
}

func (w watching) Value(key any) any { w.value(); return w.Context.Value(key) }

// A typedNil is the usual mistake: a nil pointer in an error.
type typedNil struct{ inner error }

func (e *typedNil) Error() string { return "typed nil" }
func (e *typedNil) Unwrap() error { return e.inner } // panics on nil

// What a function returns is foreign code too: looked into outside of run's recover
// and with the job locked, an Unwrap or Is that panics would take the process with
// it. Only a job that was canceled or is late gets there.
func TestG9ReturnedErrorIsNotLookedInto(t *testing.T) {
	d := build(t, sized(0, 1))
	// As a worker would call it; there the panic could not be recovered.
	running := &Job{d: d, state: StateRunning, canceled: context.Canceled}
	defer func() {
		if v := recover(); v != nil {
			t.Errorf("finish panics: %v", v)
		}
	}()
	if state := running.finishLocked(outcome{state: StateFailed, err: (*typedNil)(nil)}, 1); state != StateCanceled {
		t.Errorf("ended as %v", state)
	}
}
