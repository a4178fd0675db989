package holdfast

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"reflect"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// The traps that other pools and queues fell into, each held shut. Who fell in
// stands in the comment: the project, and the number of its issue.

// Send on a closed channel when Submit meets Stop: workerpool #76 #66, pond #20
// #43, conc. A panic here would end the test run.
func TestTrapSendOnClosedChannel(t *testing.T) {
	for range 1000 {
		d := build(t, sized(1, 1))
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for d.Go(bg, nop) == nil {
				}
			})
		}
		wg.Go(func() { d.Shutdown(bg) })
		wg.Go(func() { d.Resize(2) })
		wg.Wait()
		if err := d.Go(bg, nop); err != ErrClosed {
			t.Fatal(err)
		}
	}
}

// Lost wake-up, a waiter sleeps while a slot is free: pond #108 and two further
// pull requests, ants #205, go-concurrency-limits. The bubble would stand still.
// See also TestG13GrowthWakesWhoWaits, TestG13AtRest.
func TestTrapLostWakeUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 1))
		var wg sync.WaitGroup
		var accepted, gone atomic.Int64
		for range 10 {
			wg.Go(func() {
				for i := range 300 {
					ctx, cancel := context.WithCancel(bg)
					if i%3 == 0 { // leaves the line, perhaps in the moment it is served
						go cancel()
					}
					if d.Go(ctx, nop) == nil {
						accepted.Add(1)
					} else {
						gone.Add(1)
					}
					cancel()
				}
			})
		}
		wg.Wait()
		expectStats(t, d, Stats{Workers: 1, Queue: 1, Accepted: uint64(accepted.Load()), Succeeded: uint64(accepted.Load()), RefusedGone: uint64(gone.Load())})
	})
}

// Goroutine per job behind a bounded channel, the bound is fake: the dispatcher
// of 2015 for a million requests. See TestG1GoroutinesDoNotDependOnWaitingJobs;
// here the bound itself: a dispatcher that took a job first would hold one more.
func TestTrapGoroutinePerJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(0, 100)) // no worker: nothing may leave the queue
		before := runtime.NumGoroutine()
		if n := fill(t, d, nop); n != 100 {
			t.Errorf("%d accepted, want 100", n)
		}
		synctest.Wait()
		if n := fill(t, d, nop); n != 0 || len(d.queue) != 100 || runtime.NumGoroutine() > before {
			t.Errorf("later %d more, %d in the channel, %d goroutines more", n, len(d.queue), runtime.NumGoroutine()-before)
		}
	})
}

// Stale registration, a worker takes quit after it has put its channel in the
// pool and the dispatcher sends to nobody: the same dispatcher, on every resize.
func TestTrapStaleRegistration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(4, 4))
		for i := range 300 {
			if i%2 == 0 {
				synctest.Wait() // all are registered
			}
			d.Resize(1 + i%4)
			var wg sync.WaitGroup
			for range 1 + i%4 {
				wg.Add(1)
				mustGo(t, d, func(context.Context) error { wg.Done(); return nil })
			}
			wg.Wait() // one that was sent to nobody would be missed here
		}
	})
}

// Pool of fixed capacity, workers that were added later block when they register:
// the same dispatcher.
func TestTrapPoolOfFixedCapacity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 300))
		d.Resize(200)
		for range 3 {
			synctest.Wait()
			open := make(gate)
			for range 200 {
				mustGo(t, d, open.pass)
			}
			synctest.Wait()
			if st := d.Stats(); st.Running != 200 {
				t.Errorf("%s", brief(st))
			}
			close(open)
		}
		synctest.Wait()
		d.Resize(0) // all of them must hear of it, registered or not
	})
}

// Shrink bookkeeping, `[:old-new]`: easyqueue goes from 10 to 8, tracks 2, and
// panics on the next change. See also TestG11WorkersAreAsManyAsAskedFor.
func TestTrapShrinkBookkeeping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(10, 100))
		var m meter
		for _, n := range []int{8, 9, 8, 3, 2, 7, 10, 1} {
			if err := d.Resize(n); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			m.most.Store(0)
			for range 30 {
				mustGo(t, d, m.wrap(func(context.Context) error { time.Sleep(time.Second); return nil }))
			}
			time.Sleep(time.Minute)
			if got := m.most.Load(); got != int64(n) {
				t.Errorf("%d ran at once, want %d", got, n)
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

// Idle workers that poll every millisecond: easyqueue. Of a year in virtual time
// each tick would be run; this test would take hours.
func TestTrapPolling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(8, 8))
		paused := build(t, sized(0, 1))
		mustGo(t, paused, nop)
		go paused.Go(bg, nop) // waits for a place
		time.Sleep(365 * 24 * time.Hour)
		mustGo(t, d, nop)
	})
}

// Waiter never answered when its queued job is discarded: pond #61 #138,
// workerpool before 1.3, go-playground/pool. See also TestG5NoWaiterHangs.
func TestTrapWaiterOfADiscardedJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(0, 3))
		errs := make(chan error, 3)
		for range 3 {
			go func() { errs <- d.Do(bg, nop) }()
			synctest.Wait()
		}
		mustGo(t, d, nop, DropOldest)
		if err := <-errs; err != ErrDropped {
			t.Errorf("dropped: %v", err)
		}
		d.Shutdown(bg)
		for range 2 {
			if err := <-errs; err != ErrAbandoned {
				t.Errorf("abandoned: %v", err)
			}
		}
	})
}

// Inner layer refuses, the job vanishes and StopAndWait hangs: pond's sub-pool.
// What is refused leaves no trace that a shutdown would wait for.
func TestTrapRefusedJobIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 0))
		open := make(gate)
		mustGo(t, d, func(ctx context.Context) error {
			d.Go(ctx, nop)
			d.Do(ctx, nop)
			return open.pass(ctx)
		})
		synctest.Wait()
		d.With(Reject).Go(bg, nop)
		d.With(DropOldest).Go(bg, nop)
		d.Go(expired, nop)
		d.With(Overflow(9)).Go(bg, nop)
		ctx, cancel := context.WithTimeout(bg, time.Second)
		defer cancel()
		d.Go(ctx, nop)
		close(open)
		if report, err := d.Shutdown(bg); err != nil || report.Finished != 1 {
			t.Errorf("%+v, %v", report, err)
		}
		expectStats(t, d, Stats{Accepted: 1, Succeeded: 1, RefusedFull: 2, RefusedGone: 2, RefusedNested: 2})
	})
}

// Wrong error at stop, "context canceled" instead of "stopped": pond. See also
// TestG12BlockedSubmittersGetErrClosed.
func TestTrapWrongErrorAtStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 0))
		j := mustSubmit(t, d, untilCanceled)
		synctest.Wait()
		errs := make(chan error, 1)
		go func() { errs <- d.Go(bg, nop) }()
		synctest.Wait()
		d.Shutdown(expired)
		if err := <-errs; err != ErrClosed {
			t.Errorf("blocked submitter: %v", err)
		}
		if err := d.Go(bg, nop); err != ErrClosed {
			t.Errorf("later: %v", err)
		}
		if err := j.Wait(bg); !errors.Is(err, ErrClosed) || !errors.Is(err, context.Canceled) {
			t.Errorf("running job: %v", err)
		}
	})
}

// Submit from inside a job deadlocks a full pool: ants #197, pond. See also
// TestG10NestedSubmitNeverWaits; here every worker does it at once.
func TestTrapNestedSubmitDeadlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(4, 2))
		var nested, accepted atomic.Int64
		var tree func(depth int) func(context.Context) error
		tree = func(depth int) func(context.Context) error {
			return func(ctx context.Context) error {
				for range 3 {
					if depth == 0 {
						break
					}
					switch err := d.Go(ctx, tree(depth-1)); err {
					case nil:
						accepted.Add(1)
					case ErrNested:
						nested.Add(1)
					default:
						t.Error(err)
					}
				}
				return nil
			}
		}
		for range 20 {
			mustGo(t, d, tree(4))
			accepted.Add(1)
		}
		synctest.Wait()
		n := uint64(accepted.Load())
		expectStats(t, d, Stats{Workers: 4, Queue: 2, Accepted: n, Succeeded: n, RefusedNested: uint64(nested.Load())})
	})
}

// Time-out frees the slot while the job runs on, limit 1 and 4 running:
// golang-queue. See also TestG2BoundHoldsPastTheDeadline.
func TestTrapTimeoutFreesTheSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := sized(1, 10)
		cfg.JobTimeout = time.Millisecond
		d := build(t, cfg)
		var m meter
		for range 4 {
			mustGo(t, d, m.wrap(func(context.Context) error { time.Sleep(time.Second); return nil }))
		}
		time.Sleep(10 * time.Second)
		if m.most.Load() != 1 {
			t.Errorf("limit 1, %d ran at once", m.most.Load())
		}
		expectStats(t, d, Stats{Workers: 1, Queue: 10, Accepted: 4, Failed: 4})
	})
}

// Counters that drift after a panic or Goexit: tunny, golang-queue, ants #50.
func TestTrapCountersDrift(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := sized(3, 9)
		cfg.Logger = quiet
		d := build(t, cfg)
		for i := range 999 {
			switch i % 3 {
			case 0:
				mustGo(t, d, func(context.Context) error { panic(i) })
			case 1:
				mustGo(t, d, func(context.Context) error { runtime.Goexit(); return nil })
			case 2:
				mustGo(t, d, nop)
			}
		}
		expectStats(t, d, Stats{Workers: 3, Queue: 9, Accepted: 999, Panicked: 333, Failed: 333, Succeeded: 333})
		open := make(gate)
		if n := fill(t, d, open.pass); n != 12 {
			t.Errorf("%d accepted, want 12", n)
		}
		synctest.Wait()
		if st := d.Stats(); st.Running != 3 {
			t.Errorf("%s", brief(st))
		}
		close(open)
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

// Finished jobs kept referenced: pond #110. A handle that is kept, an idle worker
// and the queue's own memory keep nothing of what a job's function captured.
func TestTrapFinishedJobsKept(t *testing.T) {
	cfg := sized(2, 8)
	cfg.Logger = quiet
	d := build(t, cfg)
	var freed, made atomic.Int64
	capture := func(then func(context.Context) error) func(context.Context) error {
		big := new([1 << 16]byte)
		made.Add(1)
		runtime.AddCleanup(big, func(int) { freed.Add(1) }, 0)
		return func(ctx context.Context) error { big[0]++; return then(ctx) }
	}
	var handles []*Job
	for range 20 { // run
		mustGo(t, d, capture(nop))
		d.Go(context.WithValue(bg, ctxKey("k"), 1), capture(nop))
		handles = append(handles, mustSubmit(t, d, capture(nop)))
		handles = append(handles, mustSubmit(t, d, capture(func(context.Context) error { panic("boom") })))
		handles = append(handles, mustSubmit(t, d, capture(func(context.Context) error { runtime.Goexit(); return nil })))
		d.Do(bg, capture(nop))
	}
	open := make(gate)
	d.Resize(0)
	settled(t, "nothing runs", func() bool { st := d.Stats(); return st.Running+st.Queued == 0 })
	for range 8 { // canceled in the queue, dropped
		j := mustSubmit(t, d, capture(nop))
		handles = append(handles, j)
		j.Cancel()
	}
	for range 20 {
		handles = append(handles, mustSubmit(t, d, capture(nop), DropOldest))
	}
	ctx, cancel := context.WithCancel(bg)
	var wg sync.WaitGroup
	for range 5 { // blocked, then gone
		wg.Go(func() { d.With(Block).Go(ctx, capture(nop)) })
	}
	settled(t, "5 wait", func() bool { return d.Stats().Blocked == 5 })
	cancel()
	wg.Wait()
	d.Resize(2)
	close(open)
	for _, j := range handles {
		j.Wait(bg)
	}
	settled(t, "everything is freed", func() bool { runtime.GC(); return freed.Load() == made.Load() })
	runtime.KeepAlive(handles)
	runtime.KeepAlive(d)
}

// Background goroutine outlives Release: ants #212. That every other test's bubble
// ends says the same; here after random lives, in real time.
func TestTrapGoroutineOutlivesShutdown(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 300 {
		d, err := New(sized(rand.IntN(5), rand.IntN(5)))
		if err != nil {
			t.Fatal(err)
		}
		var jobs []*Job
		for range rand.IntN(10) {
			if j, err := d.With(Reject).Submit(bg, func(context.Context) error { runtime.Goexit(); return nil }); err == nil {
				jobs = append(jobs, j)
			}
		}
		d.Resize(rand.IntN(5))
		if rand.IntN(2) == 0 {
			d.Shutdown(expired)
		}
		d.Shutdown(bg)
		for _, j := range jobs {
			j.Wait(bg)
		}
	}
	settled(t, "all goroutines are gone", func() bool { return runtime.NumGoroutine() <= before })
}

// An option that does nothing: golang-queue's WithMetric. A field that is added to
// Config needs a case here.
func TestTrapOptionThatDoesNothing(t *testing.T) {
	var logged panicLog
	synctest.Test(t, func(t *testing.T) {
		effect := map[string]bool{}
		with := func(field string, set func(*Config), seen func(d *Dispatcher) bool) {
			t.Helper()
			cfg := Config{Workers: 2, Queue: 2, Overflow: Reject, Logger: quiet}
			without := seen(build(t, cfg))
			set(&cfg)
			if effect[field] = seen(build(t, cfg)); !effect[field] || without {
				t.Errorf("%s: seen %v, without it %v", field, effect[field], without)
			}
		}
		filled := func(want int) func(d *Dispatcher) bool {
			return func(d *Dispatcher) bool {
				open := make(gate)
				defer close(open)
				return fill(t, d, open.pass) == want
			}
		}
		with("Workers", func(c *Config) { c.Workers = 5 }, filled(7))
		with("Queue", func(c *Config) { c.Queue = 7 }, filled(9))
		with("Overflow", func(c *Config) { c.Overflow = DropOldest }, func(d *Dispatcher) bool {
			open := make(gate)
			defer close(open)
			fill(t, d, open.pass)
			synctest.Wait()
			return d.Go(bg, nop) == nil
		})
		with("JobTimeout", func(c *Config) { c.JobTimeout = time.Second }, func(d *Dispatcher) bool {
			var limited bool
			d.Do(bg, func(ctx context.Context) error { _, limited = ctx.Deadline(); return nil })
			return limited
		})
		with("Logger", func(c *Config) { c.Logger = logged.logger() }, func(d *Dispatcher) bool {
			d.Do(bg, func(context.Context) error { panic("boom") })
			return logged.records() == 1
		})
		for i := range reflect.TypeFor[Config]().NumField() {
			if name := reflect.TypeFor[Config]().Field(i).Name; !effect[name] {
				t.Errorf("Config.%s has no case", name)
			}
		}
	})
}

// A slot is held while the response is written to a slow reader: chi's Throttle,
// navidrome #5472. Here the worker never meets the client.
func TestTrapSlowReaderHoldsNoWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 0))
		ran := make(chan struct{}, 2)
		h := mustJobs(t, d, JobsConfig{}).Async(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { ran <- struct{}{} }))
		reader := make(gate)
		for range 2 {
			go h.ServeHTTP(&unread{httptest.NewRecorder(), reader}, httptest.NewRequest("POST", "/", nil))
			<-ran
			synctest.Wait()
		}
		close(reader)
	})
}

// unread is a response that the client does not read until the gate opens.
type unread struct {
	*httptest.ResponseRecorder
	gate gate
}

func (u *unread) Write(p []byte) (int, error) { <-u.gate; return u.ResponseRecorder.Write(p) }

// A client that left is answered and logged as "rejected": chi Throttle. The HTTP
// half is the handlers'; here it is counted as gone, not as refused.
func TestTrapClientThatLeftIsNotRejected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(0, 0))
		ctx, cancel := context.WithCancel(bg)
		errs := make(chan error, 1)
		go func() { errs <- d.Go(ctx, nop) }()
		synctest.Wait()
		cancel()
		if err := <-errs; err != context.Canceled {
			t.Errorf("%v", err)
		}
		expectStats(t, d, Stats{RefusedGone: 1})
	})
}
