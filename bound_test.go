package holdfast

import (
	"context"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// With an inexact bound an idle pool would refuse before its workers have work.
func TestG1IdleFirstExactBound(t *testing.T) {
	for _, size := range [][2]int{{1, 0}, {4, 0}, {1, 1}, {2, 4}, {3, 1}, {16, 64}, {0, 0}, {0, 5}} {
		synctest.Test(t, func(t *testing.T) {
			w, l := size[0], size[1]
			d := build(t, sized(w, l))
			for round := range 3 { // new, then idle again
				open := make(gate)
				if n := fill(t, d, open.pass); n != w+l {
					t.Fatalf("w %d L %d round %d: %d accepted, want %d", w, l, round, n, w+l)
				}
				synctest.Wait()
				if st := d.Stats(); st.Running != w || st.Queued != l {
					t.Errorf("w %d L %d: %s", w, l, brief(st))
				}
				close(open)
				synctest.Wait()
				if w == 0 {
					return // paused: nothing leaves
				}
			}
		})
	}
}

// If acceptance were not one decision, places would be lost or given twice when
// submitters race.
func TestG1ConcurrentBurstExactBound(t *testing.T) {
	for _, size := range [][2]int{{1, 0}, {4, 0}, {2, 4}, {4, 8}} {
		synctest.Test(t, func(t *testing.T) {
			w, l := size[0], size[1]
			d := build(t, sized(w, l))
			for range 200 {
				open := make(gate)
				var wg sync.WaitGroup
				var accepted, refused atomic.Int64
				for range 8 {
					wg.Go(func() {
						for range 5 {
							if d.With(Reject).Go(bg, open.pass) == nil {
								accepted.Add(1)
							} else {
								refused.Add(1)
							}
						}
					})
				}
				wg.Wait()
				if n := int(accepted.Load()); n != w+l || refused.Load() != int64(40-w-l) {
					t.Fatalf("w %d L %d: %d accepted, want %d", w, l, n, w+l)
				}
				close(open)
				synctest.Wait()
			}
		})
	}
}

// If a place became free after its job's end is seen, a caller that waits for a job
// and submits the next one would be refused.
func TestG1PlaceIsFreeWhenTheEndIsTold(t *testing.T) {
	d := build(t, sized(1, 0))
	for range 3000 {
		open := make(gate)
		j := mustSubmit(t, d, open.pass, Reject)
		for range 4 { // the more wait, the longer it takes to tell them all
			go func() { <-j.Done() }()
		}
		go close(open)
		for n, done := 1, j.Done(); !isClosed(done); n++ {
			if n%100 == 0 { // there may be one processor
				runtime.Gosched()
			}
		}
	}
}

// A resize that changed only the pool, or counted twice, would shift the bound.
func TestG1BoundAfterResize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(2, 3))
		end := make(chan struct{}) // each receive ends one job
		job := func(context.Context) error { <-end; return nil }
		defer close(end)
		expect := func(what string, want, running, queued int) {
			t.Helper()
			synctest.Wait()
			if n := fill(t, d, job); n != want {
				t.Errorf("%s: %d accepted, want %d", what, n, want)
			}
			synctest.Wait()
			if st := d.Stats(); st.Running != running || st.Queued != queued {
				t.Errorf("%s: %s", what, brief(st))
			}
		}
		finish := func(n int) {
			for range n {
				end <- struct{}{}
				synctest.Wait()
			}
		}
		resize := func(n int) {
			t.Helper()
			if err := d.Resize(n); err != nil {
				t.Error(err)
			}
		}
		expect("new", 5, 2, 3)
		resize(4)
		expect("2 to 4", 2, 4, 3)
		resize(1)
		expect("4 to 1", 0, 4, 3)
		finish(2)
		expect("two surplus jobs ended", 0, 2, 3)
		finish(1)
		expect("at the new size", 0, 1, 3)
		finish(1)
		expect("one more ended", 1, 1, 3)
		resize(0)
		expect("1 to 0", 0, 1, 3)
		finish(1)
		expect("paused", 0, 0, 3)
		resize(2)
		expect("0 to 2", 2, 2, 3)
		resize(2)
		expect("2 to 2", 0, 2, 3)
	})
}

// A goroutine per job behind a bounded channel makes the bound a fake, and a million
// waiting jobs a million goroutines: the dispatcher of 2015 for a million requests. A
// dispatcher that took a job first would hold one more, too.
func TestTrapGoroutinePerJob(t *testing.T) {
	const w, l = 4, 100_000
	before := runtime.NumGoroutine()
	d := build(t, sized(w, l))
	open := make(gate)
	defer close(open)
	for range w {
		mustGo(t, d, open.pass)
	}
	eventually(t, "all workers run", func() bool { return d.Stats().Running == w })
	idle := runtime.NumGoroutine()
	for range l / 2 {
		mustGo(t, d, nop, Reject)
		mustSubmit(t, d, nop, Reject)
	}
	if n := runtime.NumGoroutine(); n > idle || n > before+w+1 {
		t.Errorf("%d goroutines before New, %d with nothing queued, %d with %d jobs queued", before, idle, n, l)
	}
	if n := fill(t, d, nop); n != 0 || len(d.queue) != l {
		t.Errorf("%d jobs more, %d in the channel, want %d", n, len(d.queue), l)
	}
}

// A shrink that took away the worker that an accepted send counts on would make the
// send wait behind the jobs that run.
func TestG1SendWaitsForNoJobToEndAcrossResize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 1500 {
			w, l := 1+rand.IntN(6), rand.IntN(4)
			d := build(t, sized(w, l))
			if rand.IntN(2) == 0 {
				synctest.Wait() // the workers have registered
			}
			open := make(gate)
			begin := make(chan struct{})
			var accepted, ran atomic.Int64
			var wg sync.WaitGroup
			for range w + l {
				wg.Go(func() {
					<-begin
					if d.With(Reject).Go(bg, func(context.Context) error { <-open; ran.Add(1); return nil }) == nil {
						accepted.Add(1)
					}
				})
			}
			size := 0
			if rand.IntN(2) == 0 {
				size = rand.IntN(w + 1)
			}
			close(begin)
			for range rand.IntN(2 * (w + l)) {
				runtime.Gosched()
			}
			d.Resize(size)
			wg.Wait() // no job has ended
			synctest.Wait()
			if st := d.Stats(); st.Running > w || st.Queued > l || int64(st.Accepted) != accepted.Load() {
				t.Fatalf("w %d to %d: %s", w, size, brief(st))
			}
			d.Resize(w)
			close(open)
			if report, err := d.Shutdown(bg); err != nil || ran.Load() != accepted.Load() {
				t.Fatalf("w %d to %d, L %d: %d accepted, %d ran, %+v %v", w, size, l, accepted.Load(), ran.Load(), report, err)
			}
		}
	})
}

// False overflow, a push refused while another partition has room: easyqueue. Here
// no submitter is refused before all places are taken, whoever it is.
func TestTrapFalseOverflow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 100 {
			d := build(t, sized(4, 60))
			open := make(gate)
			var wg sync.WaitGroup
			for range 64 {
				wg.Go(func() { mustGo(t, d, open.pass, Reject) })
			}
			wg.Wait()
			if err := d.With(Reject).Go(bg, nop); err != ErrQueueFull {
				t.Fatalf("the 65th: %v", err)
			}
			close(open)
			d.Shutdown(bg)
		}
	})
}

// Bound checked outside the lock: ants #374, golang-queue, failsafe-go's queue.
// See also TestG1ConcurrentBurstExactBound; here the jobs run beside it.
func TestTrapBoundCheckedOutsideTheLock(t *testing.T) {
	const w, l = 2, 3
	d := build(t, sized(w, l))
	var m meter
	var inside atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				open := make(gate)
				j, err := d.With(Reject).Submit(bg, m.wrap(open.pass))
				if err != nil {
					runtime.Gosched()
					continue
				}
				if n := inside.Add(1); n > w+l {
					t.Errorf("%d jobs have a place", n)
				}
				inside.Add(-1)
				close(open)
				j.Wait(bg)
			}
		})
	}
	wg.Wait()
	if m.most.Load() > w {
		t.Errorf("%d ran at once", m.most.Load())
	}
}

// A time-out frees the slot while the job runs on, limit 1 and 4 running:
// golang-queue.
func TestTrapTimeoutFreesTheSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := sized(2, 20)
		cfg.JobTimeout = time.Second
		d := build(t, cfg)
		var m meter
		var jobs []*Job
		for range 10 {
			jobs = append(jobs, mustSubmit(t, d, m.wrap(func(context.Context) error {
				time.Sleep(time.Hour) // ignores its context
				return nil
			})))
		}
		time.Sleep(time.Minute)
		expectStats(t, d, Stats{Workers: 2, Queue: 20, Accepted: 10, Running: 2, Queued: 8})
		time.Sleep(6 * time.Hour)
		if m.most.Load() != 2 {
			t.Errorf("%d ran at once, want 2", m.most.Load())
		}
		for _, j := range jobs {
			expectState(t, j, StateFailed, context.DeadlineExceeded)
		}
	})
}

// A shrink must neither stop jobs nor start some beyond the new number.
func TestG2SurplusFinishesAfterShrink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(5, 20))
		var m meter
		for i := range 15 { // 5 run at once, and end one second after the other
			mustGo(t, d, m.wrap(func(context.Context) error { time.Sleep(time.Duration(i%5+1) * time.Second); return nil }))
		}
		synctest.Wait()
		if err := d.Resize(2); err != nil {
			t.Fatal(err)
		}
		for _, want := range []int64{5, 4, 3, 2, 2} {
			synctest.Wait()
			if n := m.now.Load(); n != want {
				t.Errorf("%d run, want %d", n, want)
			}
			time.Sleep(time.Second)
		}
		m.most.Store(0)
		time.Sleep(time.Minute)
		if m.most.Load() > 2 {
			t.Errorf("%d ran at once after the shrink to 2", m.most.Load())
		}
		expectStats(t, d, Stats{Workers: 2, Queue: 20, Accepted: 15, Succeeded: 15})
	})
}
