package holdfast

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"weak"
)

// Each of these is a trap that another pool or queue fell into; the comment
// names it. Many are held shut more thoroughly by the tests of the guarantees.

// Send on a closed channel when a submit meets the stop: workerpool #76 and #66,
// pond #20 and #43, conc.
func TestTrapSubmitMeetsStop(t *testing.T) {
	for range 300 {
		d, err := New(sized(2, 2))
		if err != nil {
			t.Fatal(err)
		}
		var submitting sync.WaitGroup
		for range 4 {
			submitting.Go(func() {
				for d.Go(bg, nop) == nil {
				}
			})
		}
		if _, err := d.Shutdown(bg); err != nil {
			t.Fatal(err)
		}
		submitting.Wait()
		if st := d.Stats(); st.Accepted != st.Succeeded {
			t.Fatalf("an accepted job was left: %s", brief(st))
		}
	}
}

// A waiter sleeps while a place is free: pond #108, ants #205, and 8 of 278,000
// calls in go-concurrency-limits.
func TestTrapLostWakeUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 0))
		var submitters sync.WaitGroup
		for range 50 {
			submitters.Go(func() {
				for range 200 {
					if err := d.Go(bg, nop); err != nil {
						t.Error(err)
					}
				}
			})
		}
		submitters.Wait() // a submitter that is forgotten is a deadlock of the bubble
	})
}

// A goroutine for each job behind a bounded channel, so that the bound is none:
// the dispatcher of the million requests, 2015.
func TestTrapGoroutinePerWaitingJob(t *testing.T) {
	d := build(t, sized(2, 10_000))
	open := make(gate)
	defer close(open)
	for range 2 {
		mustGo(t, d, open.pass)
	}
	before := runtime.NumGoroutine()
	if n := fill(t, d, open.pass); n != 10_000 {
		t.Errorf("accepted %d, want 10000", n)
	}
	if after := runtime.NumGoroutine(); after > before {
		t.Errorf("%d goroutines with 10,000 jobs waiting, %d without", after, before)
	}
}

// A worker quits after it has registered, and a job is later sent to nobody; a
// registration that is not selected against the quit, and room in the pool for
// as many workers as there were at first: the same pattern on every resize.
func TestTrapStaleRegistration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 1))
		for n := range 200 {
			if err := d.Resize(n % 7 * 5); err != nil {
				t.Fatal(err)
			}
			if n%7 == 0 {
				continue
			}
			for range 3 {
				if err := d.Do(bg, nop); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

// Shrinking from 10 to 8 leaves 2 that are tracked, and the next change panics:
// easyqueue.
func TestTrapShrinkBookkeeping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(10, 0))
		for _, n := range []int{8, 9, 3, 20, 1, 10} {
			if err := d.Resize(n); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			open := make(gate)
			if got := fill(t, d, open.pass); got != n {
				t.Errorf("resized to %d, %d jobs accepted", n, got)
			}
			synctest.Wait()
			if st := d.Stats(); st.Running != n {
				t.Errorf("resized to %d, %d run", n, st.Running)
			}
			close(open)
			synctest.Wait()
		}
	})
}

// A push is refused while another partition has room: easyqueue.
func TestTrapFalseOverflow(t *testing.T) {
	for range 200 {
		d := build(t, sized(3, 5))
		open := make(gate)
		if got := fill(t, d, open.pass); got != 8 {
			t.Fatalf("accepted %d, want 8", got)
		}
		close(open)
		d.Shutdown(bg)
	}
}

// Idle workers wake up every millisecond to look for work: easyqueue. Here all
// of them wait in a channel, and there is no timer.
func TestTrapIdlePolling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		build(t, sized(5, 5))
		synctest.Wait()
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		idle := 0
		for goroutine := range strings.SplitSeq(string(stacks), "\n\n") {
			if !strings.Contains(goroutine, "holdfast.(*worker).work") {
				continue
			}
			if header, _, _ := strings.Cut(goroutine, "\n"); strings.Contains(header, "chan send") || strings.Contains(header, "chan receive") {
				idle++
			} else if strings.Contains(header, "synctest bubble") {
				t.Errorf("an idle worker is not just waiting: %s", header)
			}
		}
		if idle < 5 {
			t.Errorf("%d idle workers wait in a channel, want 5", idle)
		}
	})
}

// Whoever waits for a queued job is never answered when it is discarded: pond #61
// and #138, workerpool before 1.3, go-playground/pool.
func TestTrapDiscardedJobAnswersItsWaiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(0, 1))
		dropped := mustSubmit(t, d, nop)
		abandoned := mustSubmit(t, d, nop, DropOldest)
		if err := dropped.Wait(bg); err != ErrDropped {
			t.Errorf("dropped: %v", err)
		}
		d.Shutdown(bg)
		if err := abandoned.Wait(bg); err != ErrAbandoned {
			t.Errorf("abandoned: %v", err)
		}
	})
}

// An inner layer refuses, the job vanishes, and the stop waits for it for ever:
// pond's sub-pools.
func TestTrapRefusedJobIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 0))
		open := make(gate)
		mustGo(t, d, open.pass)
		if j, err := d.Submit(bg, nop, Reject); j != nil || err != ErrQueueFull {
			t.Errorf("Submit: %v, %v", j, err)
		}
		if err := d.Do(bg, nop, Reject); err != ErrQueueFull {
			t.Errorf("Do: %v", err)
		}
		close(open)
		if report, err := d.Shutdown(bg); err != nil || report.Finished > 1 {
			t.Errorf("Shutdown: %+v, %v", report, err)
		}
	})
}

// At the stop the error is that of some context, not that of a stop: pond.
func TestTrapErrorAtStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 0))
		job := mustSubmit(t, d, untilCanceled)
		synctest.Wait()
		waiting := make(chan error, 1)
		go func() { waiting <- d.Go(bg, nop) }()
		synctest.Wait()
		d.Shutdown(expired)
		if err := <-waiting; err != ErrClosed {
			t.Errorf("a submit that waited: %v", err)
		}
		if err := d.Go(bg, nop); err != ErrClosed {
			t.Errorf("a submit after it: %v", err)
		}
		if err := job.Wait(bg); !errors.Is(err, ErrClosed) || !errors.Is(err, context.Canceled) {
			t.Errorf("a job that was cut off: %v", err)
		}
	})
}

// A submit from inside a job deadlocks a full pool: ants #197, pond bounded.
func TestTrapNestedSubmit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 0))
		err := d.Do(bg, func(ctx context.Context) error { return d.Go(ctx, nop) })
		if err != ErrNested {
			t.Errorf("nested: %v", err)
		}
	})
}

// A time-out frees the slot while the job runs on, and with a limit of 1 four
// run: golang-queue.
func TestTrapTimeoutFreesNoSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := sized(1, 10)
		cfg.JobTimeout = time.Millisecond
		d := build(t, cfg)
		var m meter
		stubborn := m.wrap(func(context.Context) error { time.Sleep(time.Second); return nil })
		for range 5 {
			mustGo(t, d, stubborn)
		}
		d.Shutdown(bg)
		if m.most.Load() != 1 {
			t.Errorf("%d ran at once", m.most.Load())
		}
		if st := d.Stats(); st.Failed != 5 {
			t.Errorf("late jobs have not failed: %s", brief(st))
		}
	})
}

// Counters drift after a panic or a Goexit: tunny, golang-queue, ants #50.
func TestTrapCountersAfterPanicAndGoexit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := sized(2, 2)
		cfg.Logger = quiet
		d := build(t, cfg)
		for n := range 100 {
			mustGo(t, d, func(context.Context) error {
				if n%2 == 0 {
					panic(n)
				}
				runtime.Goexit()
				return nil
			})
		}
		synctest.Wait()
		st := d.Stats()
		if st.Panicked != 50 || st.Failed != 50 || st.Running != 0 || st.Queued != 0 {
			t.Errorf("%s", brief(st))
		}
		open := make(gate)
		defer close(open)
		if got := fill(t, d, open.pass); got != 4 {
			t.Errorf("%d places are left of 4", got)
		}
	})
}

// The bound is checked outside of the lock that changes it: ants #374,
// golang-queue, failsafe-go.
func TestTrapBoundUnderContention(t *testing.T) {
	for range 200 {
		d := build(t, sized(2, 3))
		open := make(gate)
		var accepted sync.Map
		var burst sync.WaitGroup
		for n := range 40 {
			burst.Go(func() {
				if d.Go(bg, open.pass, Reject) == nil {
					accepted.Store(n, true)
				}
			})
		}
		burst.Wait()
		n := 0
		accepted.Range(func(any, any) bool { n++; return true })
		if n != 5 {
			t.Fatalf("accepted %d, want 5", n)
		}
		close(open)
		d.Shutdown(bg)
	}
}

// Finished jobs stay referenced: pond #110.
func TestTrapFinishedJobsAreLetGo(t *testing.T) {
	d := build(t, sized(2, 10))
	var kept []weak.Pointer[[1 << 10]byte]
	var handles []*Job
	for n := range 10 {
		captured := new([1 << 10]byte)
		kept = append(kept, weak.Make(captured))
		fn := func(context.Context) error { captured[0]++; return nil }
		if n%2 == 0 {
			if err := d.Do(bg, fn); err != nil {
				t.Fatal(err)
			}
			continue
		}
		j := mustSubmit(t, d, fn)
		if err := j.Wait(bg); err != nil {
			t.Fatal(err)
		}
		handles = append(handles, j)
	}
	// A job that runs after a job has overwritten what the worker had in hand.
	runtime.GC()
	for n, p := range kept {
		if p.Value() != nil {
			t.Errorf("what job %d captured is still referenced", n)
		}
	}
	runtime.KeepAlive(handles)
	runtime.KeepAlive(d)
}

// A goroutine of the pool outlives its release: ants #212.
func TestTrapNoGoroutineIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // fails if one is left
		d, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		for range 500 {
			mustGo(t, d, nop)
		}
		d.Shutdown(bg)
	})
}

// An option does nothing: golang-queue's WithMetric. Workers, Queue and Logger
// have tests of their own by the dozen.
func TestTrapEveryOptionWorks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, Config{Workers: -1, Queue: 1, Overflow: DropOldest})
		j := mustSubmit(t, d, nop)
		mustGo(t, d, nop)
		if err := j.Err(); err != ErrDropped {
			t.Errorf("Overflow: %v", err)
		}
		d = build(t, Config{JobTimeout: time.Second})
		begin := time.Now()
		if err := d.Do(bg, untilCanceled); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != time.Second {
			t.Errorf("JobTimeout: %v after %v", err, time.Since(begin))
		}
	})
}

// A slot is held while the response is written to a slow reader: chi's Throttle,
// navidrome #5472. Here the worker never meets the client.
func TestTrapSlowReaderHoldsNoWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 0))
		ran := make(chan struct{}, 2)
		h := NewJobs(d, JobsConfig{}).Async(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { ran <- struct{}{} }))
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

// A client that has left counts as rejected: chi's Throttle.
func TestTrapClientThatLeftIsNotRejected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(0, 0))
		ctx, leave := context.WithTimeout(bg, time.Second)
		defer leave()
		if err := d.Go(ctx, nop); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Go: %v", err)
		}
		if st := d.Stats(); st.RefusedGone != 1 || st.RefusedFull != 0 {
			t.Errorf("%s", brief(st))
		}
	})
}
