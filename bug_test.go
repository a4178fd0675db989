package holdfast

import (
	"context"
	"math"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Tests of faults that were found and not yet mended.

// A Cancel that comes between begin's look at the stamp and its look at the job
// leaves the stamp's cell void for good. When every cell is, claim spins for ever
// and with it each submit, holding a place.
func TestBugCancelMeetsBeginLeaksAStamp(t *testing.T) {
	d := build(t, sized(1, 1000))
	for range 20_000 {
		j := mustSubmit(t, d, nop)
		go j.Cancel()
		j.Wait(bg)
	}
	settled(t, "every place is free", func() bool { return free(d.word.Load()) == 1001 })
	leaked := 0
	for _, s := range d.allStamps {
		for i := range s.cells {
			if s.cells[i].Load() != stampFree {
				leaked++
			}
		}
	}
	if leaked > 0 {
		t.Errorf("%d of %d cells are held by nobody", leaked, d.allStamps[0].len())
	}
}

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

// A DropOldest that finds a place just freed lets the first of those who wait in,
// and then drops it: a job that was accepted after the call began.
func TestBugDropOldestDropsWhomItLetIn(t *testing.T) {
	d := build(t, sized(1, 1))
	end := make(chan struct{})
	defer close(end)
	job := func(context.Context) error { <-end; return nil }
	mustGo(t, d, job)
	mustGo(t, d, job)
	waiter := make(chan *Job, 1)
	go func() { waiter <- mustSubmit(t, d, job, Block) }()
	settled(t, "a submitter waits", func() bool { st := d.Stats(); return st.Blocked == 1 && st.Running == 1 })

	d.mu.Lock()
	newest := make(chan *Job, 1)
	go func() { newest <- mustSubmit(t, d, job, DropOldest) }()
	settled(t, "DropOldest has begun", func() bool { return parked("(*Dispatcher).submit(") })
	end <- struct{}{}
	settled(t, "a place is free", func() bool { return free(d.word.Load()) == 1 && parked("(*Dispatcher).settle(") })
	d.mu.Unlock()

	<-newest
	if j := <-waiter; j.State() == Dropped {
		t.Error("the job that was let in after the call of DropOldest began has been dropped by it")
	}
}

// With L = 0 nothing is ever queued, but a job on its way to its worker gives the
// empty queue an age.
func TestBugAgeOfAnEmptyQueue(t *testing.T) {
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
// none of the report's numbers.
func TestBugReportForgetsJobsCanceledMeanwhile(t *testing.T) {
	for range 50 {
		d := build(t, sized(1, 2000))
		open := make(gate)
		mustGo(t, d, open.pass)
		settled(t, "it runs", func() bool { return d.Stats().Running == 1 })
		var jobs []*Job
		for range 2000 {
			jobs = append(jobs, mustSubmit(t, d, nop))
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := range jobs {
				jobs[len(jobs)-1-i].Cancel()
			}
		})
		before := d.Stats()
		report, _ := d.Shutdown(expired)
		wg.Wait()
		close(open)
		least := before.Queued + before.Running - 2000 // all may be canceled before
		_ = least
		<-d.gone
		st := d.Stats()
		// What ended before admission did is in atClose.
		want := 2001 - int(d.atClose.finished())
		if got := report.Finished + report.Running + len(report.NeverStarted); got != want {
			t.Errorf("%d finished, %d running, %d never started: %d of %d; %s", report.Finished, report.Running, len(report.NeverStarted), got, want, brief(st))
			return
		}
	}
}

// "Running counts the jobs that were still running when Shutdown returned": not so
// for a later call, which repeats what the cut has found.
func TestBugLaterReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(2, 2))
		mustGo(t, d, func(context.Context) error { time.Sleep(time.Hour); return nil })
		synctest.Wait()
		first, _ := d.Shutdown(expired)
		time.Sleep(2 * time.Hour)
		second, _ := d.Shutdown(bg)
		if first.Running != 1 || second.Running != 0 || second.Finished != 1 {
			t.Errorf("first %+v, second %+v", first, second)
		}
	})
}

// NeverStarted is in the order of the queue only as far as the clock tells jobs
// apart.
func TestBugNeverStartedOrder(t *testing.T) {
	for range 2000 {
		synctest.Test(t, func(t *testing.T) {
			d := build(t, sized(2, 6))
			synctest.Wait()
			var r record
			for i := range 6 {
				mustGo(t, d, r.job(i))
			}
			report, _ := d.Shutdown(expired)
			<-d.gone
			r.ran = nil
			for _, fn := range report.NeverStarted {
				fn(bg)
			}
			for i := 1; i < len(r.ran); i++ {
				if r.ran[i] < r.ran[i-1] {
					t.Errorf("never started: %v", r.ran)
				}
			}
		})
		if t.Failed() {
			return
		}
	}
}

// A job that submits its successor with its own context keeps every ancestor.
func TestBugSuccessorsKeepTheirAncestors(t *testing.T) {
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

// A context's Value method, foreign code, is called with the dispatcher locked.
func TestBugForeignCodeUnderTheLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(0, 1))
		mustGo(t, d, nop)
		var under bool
		d.Go(watching{expiring(t), func() {
			if d.mu.TryLock() {
				d.mu.Unlock()
			} else {
				under = true
			}
		}}, nop, Block)
		if under {
			t.Error("ctx.Value was called with Dispatcher.mu locked: one that panics or calls Stats would stop the dispatcher for good")
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

// The idiom for "never".
func TestBugHugeJobTimeout(t *testing.T) {
	cfg := sized(1, 1)
	cfg.JobTimeout = math.MaxInt64
	d := build(t, cfg)
	if err := d.Do(bg, func(ctx context.Context) error { return ctx.Err() }); err != nil {
		t.Error(err)
	}
}

// Shutdown out of a job.
func TestBugShutdownInAJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 3))
		mustGo(t, d, func(ctx context.Context) error {
			report, err := d.Shutdown(expired)
			t.Logf("%+v %v", report, err)
			return nil
		})
		mustGo(t, d, nop)
	})
}
