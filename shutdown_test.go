package holdfast

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A normal stop loses no accepted job.
func TestG12Drain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(2, 6))
		var ran atomic.Int64
		for range 8 {
			mustGo(t, d, func(ctx context.Context) error { time.Sleep(time.Second); ran.Add(1); return ctx.Err() })
		}
		synctest.Wait()
		blocked := make(chan error)
		for range 2 {
			go func() { blocked <- d.Go(bg, nop) }()
		}
		synctest.Wait()
		start := time.Now()
		done := make(chan struct{})
		go func() {
			defer close(done)
			report, err := d.Shutdown(bg)
			if err != nil || report.Finished != 8 || report.Running != 0 || report.NeverStarted != nil {
				t.Errorf("%+v, %v", report, err)
			}
		}()
		for range 2 { // at once, not when the jobs have ended
			if err := <-blocked; err != ErrClosed {
				t.Errorf("blocked submitter: %v", err)
			}
		}
		synctest.Wait()
		for _, policy := range []Overflow{Block, Reject, DropOldest} {
			_, err := d.With(policy).Submit(bg, nop)
			if err != ErrClosed || d.With(policy).Go(bg, nop) != ErrClosed || d.With(policy).Do(bg, nop) != ErrClosed {
				t.Errorf("%v while draining: %v", policy, err)
			}
		}
		if time.Since(start) != 0 {
			t.Errorf("refusals took %v", time.Since(start))
		}
		<-done
		if time.Since(start) != 4*time.Second || ran.Load() != 8 {
			t.Errorf("%d ran in %v", ran.Load(), time.Since(start))
		}
		expectStats(t, d, Stats{Queue: 6, Accepted: 8, Succeeded: 8, RefusedClosed: 11})
	})
}

// A stop that runs out of time leaves no waiter, context, worker or caller in the dark.
func TestG12ContextEndsFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(3, 8))
		var r record
		obeys := mustSubmit(t, d, untilCanceled)
		stubborn := mustSubmit(t, d, func(context.Context) error { time.Sleep(time.Hour); return nil })
		var shared error // of a job without a context of its own
		mustGo(t, d, func(ctx context.Context) error { shared = untilCanceled(ctx); return shared })
		synctest.Wait()
		queued := []*Job{mustSubmit(t, d, r.job(0)), mustSubmit(t, d, r.job(1))}
		mustGo(t, d, r.job(2))
		canceled := mustSubmit(t, d, r.job(-1))
		later := mustSubmit(t, d, r.job(-2))
		d.Go(context.WithValue(bg, ctxKey("k"), 1), r.job(3))
		var do error
		go func() { do = d.Do(bg, r.job(4)) }()
		synctest.Wait()
		canceled.Cancel() // before the shutdown: none of its business
		go func() { time.Sleep(time.Second / 2); later.Cancel() }()

		ctx, cancel := context.WithTimeout(bg, time.Second)
		defer cancel()
		start := time.Now()
		report, err := d.Shutdown(ctx)
		if time.Since(start) != time.Second {
			t.Errorf("returned after %v", time.Since(start))
		}
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrAbandoned) {
			t.Errorf("error: %v", err)
		}
		if report.Finished != 1 || report.Running != 3 || len(report.NeverStarted) != 5 {
			t.Errorf("report: %+v", report)
		}
		r.expect(t)
		for _, fn := range report.NeverStarted { // in the order of the queue, for the caller to run
			fn(bg)
		}
		r.expect(t, 0, 1, 2, 3, 4)
		synctest.Wait()
		for _, j := range queued {
			expectState(t, j, StateAbandoned, ErrAbandoned)
		}
		if do != ErrAbandoned || shared != context.Canceled {
			t.Errorf("Do: %v, shared context: %v", do, shared)
		}
		expectState(t, obeys, StateCanceled, context.Canceled)
		expectState(t, obeys, StateCanceled, ErrClosed)
		expectState(t, stubborn, StateRunning, nil)
		expectStats(t, d, Stats{Queue: 8, Accepted: 10, Running: 1, Abandoned: 5, Canceled: 4})
		time.Sleep(time.Hour)
		expectState(t, stubborn, StateCanceled, ErrClosed)
		expectStats(t, d, Stats{Queue: 8, Accepted: 10, Abandoned: 5, Canceled: 5})
		// That nothing is left is for the end of the bubble to say.
	})
}

// A cut that interrupts only running jobs must not read like a loss.
func TestG12ContextEndsFirstWithNothingQueued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 1))
		j := mustSubmit(t, d, untilCanceled)
		synctest.Wait()
		report, err := d.Shutdown(expired)
		if !errors.Is(err, context.Canceled) || errors.Is(err, ErrAbandoned) || report.Running != 1 || report.NeverStarted != nil {
			t.Errorf("%+v, %v", report, err)
		}
		if err := j.Wait(bg); !errors.Is(err, ErrClosed) {
			t.Errorf("%v", err)
		}
		idle := build(t, sized(1, 1))
		if report, err := idle.Shutdown(expired); err != nil || report.Finished+report.Running+len(report.NeverStarted) != 0 {
			t.Errorf("nothing to do: %+v, %v", report, err)
		}
	})
}

// The shutdown of a paused dispatcher would otherwise wait forever.
func TestG12PausedAbandonsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(2, 5))
		var r record
		open := make(gate)
		running := mustSubmit(t, d, func(ctx context.Context) error { <-open; return ctx.Err() })
		obeys := mustSubmit(t, d, func(ctx context.Context) error {
			select {
			case <-open:
			case <-ctx.Done():
			}
			return ctx.Err()
		})
		synctest.Wait()
		for i := range 5 {
			mustGo(t, d, r.job(i))
		}
		d.Resize(0)
		var err error
		var report Report
		returned := false
		go func() { report, err = d.Shutdown(bg); returned = true }()
		expectStats(t, d, Stats{Queue: 5, Accepted: 7, Running: 2, Abandoned: 5}) // at once
		if returned {
			t.Error("returned with jobs running and time left")
		}
		expectState(t, running, StateRunning, nil)
		expectState(t, obeys, StateRunning, nil) // its context is not canceled: it may finish
		close(open)
		synctest.Wait()
		expectState(t, running, StateSucceeded, nil)
		expectState(t, obeys, StateSucceeded, nil)
		if !returned || !errors.Is(err, ErrAbandoned) || errors.Is(err, context.Canceled) || report.Finished != 2 || report.Running != 0 || len(report.NeverStarted) != 5 {
			t.Errorf("returned %v: %+v, %v", returned, report, err)
		}
		r.expect(t)
		for _, fn := range report.NeverStarted {
			fn(bg)
		}
		r.expect(t, upTo(5)...)

		empty := build(t, sized(0, 5))
		if report, err := empty.Shutdown(bg); err != nil || report.NeverStarted != nil {
			t.Errorf("paused and empty: %+v, %v", report, err)
		}
	})
}

// A second signal can hasten a stop, and cannot undo it. Every call reports the same,
// also one that comes when the jobs that were cut off have returned.
func TestG12TwoCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, limits := range [][]time.Duration{{time.Hour, time.Second}, {time.Second, time.Hour}, {0, time.Second, time.Hour}} { // 0: none
			d := build(t, sized(1, 3))
			fill(t, d, func(context.Context) error { time.Sleep(24 * time.Hour); return nil })
			synctest.Wait()
			start := time.Now()
			var wg sync.WaitGroup
			for _, limit := range limits {
				wg.Go(func() {
					ctx, cancel := bg, context.CancelFunc(func() {})
					if limit > 0 {
						ctx, cancel = context.WithTimeout(bg, limit)
					}
					defer cancel()
					report, err := d.Shutdown(ctx)
					if report.Running != 1 || len(report.NeverStarted) != 3 || !errors.Is(err, ErrAbandoned) || !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("%+v, %v", report, err)
					}
				})
				synctest.Wait()
			}
			wg.Wait()
			if time.Since(start) != time.Second {
				t.Errorf("limits %v: cut off after %v", limits, time.Since(start))
			}
			time.Sleep(24 * time.Hour)
			if later, err := d.Shutdown(bg); later.Running != 1 || later.Finished != 0 || len(later.NeverStarted) != 3 || err == nil {
				t.Errorf("later: %+v, %v", later, err)
			}
			expectStats(t, d, Stats{Queue: 3, Accepted: 4, Canceled: 1, Abandoned: 3, RefusedFull: 1})
		}
		d := build(t, sized(1, 3))
		fill(t, d, func(context.Context) error { time.Sleep(time.Second); return nil })
		first, err1 := d.Shutdown(bg)
		second, err2 := d.Shutdown(expired)
		if err1 != nil || err2 != nil || first.Finished != 4 || second.Finished != 4 {
			t.Errorf("%+v, %v; %+v, %v", first, err1, second, err2)
		}
	})
}

// Wrong error at stop, "context canceled" instead of "stopped": pond. A blocked
// submitter is not told of a cancellation that is not its own.
func TestTrapWrongErrorAtStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, ctx := range []context.Context{bg, expired} {
			for _, paused := range []bool{false, true} {
				d := build(t, sized(2, 2))
				open := make(gate)
				fill(t, d, open.pass)
				if paused {
					d.Resize(0)
				}
				errs := make(chan error, 30)
				for i := range 30 {
					go func() {
						switch i % 3 {
						case 0:
							errs <- d.Go(bg, nop)
						case 1:
							_, err := d.Submit(context.WithValue(bg, ctxKey("k"), 1), nop)
							errs <- err
						case 2:
							errs <- d.Do(bg, nop)
						}
					}()
				}
				synctest.Wait()
				if n := d.Stats().Blocked; n != 30 {
					t.Errorf("%d blocked", n)
				}
				go d.Shutdown(ctx)
				for range 30 {
					if err := <-errs; err != ErrClosed {
						t.Errorf("%v", err)
					}
				}
				if err := d.Go(bg, nop); err != ErrClosed {
					t.Errorf("later: %v", err)
				}
				close(open)
				synctest.Wait()
				if st := d.Stats(); st.RefusedClosed != 31 || st.Blocked != 0 {
					t.Errorf("%s", brief(st))
				}
			}
		}
	})
}

// Jobs that are canceled while a shutdown is cut off are in the report, too.
func TestG12ReportHasJobsCanceledMeanwhile(t *testing.T) {
	for range 10 {
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
		eventually(t, "admission has ended", func() bool { return d.Go(bg, nop) == ErrClosed })
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

// No accepted job is stranded by a stop: a check of the state before the send, and not
// in the same decision, lost 26 of 20,000.
func TestG12SubmitMeetsShutdown(t *testing.T) {
	before := runtime.NumGoroutine()
	var accepted, refused, abandoned int
	for round := range 3000 {
		w, l := round%3, round%4
		d, err := New(sized(w, l))
		if err != nil {
			t.Fatal(err)
		}
		ctx := bg
		if round%2 == 1 {
			ctx = expired
		}
		var mu sync.Mutex
		var jobs []*Job
		var ran atomic.Int64
		var wg sync.WaitGroup
		start := make(chan struct{})
		for p := range 4 {
			wg.Go(func() {
				<-start
				for range 50 {
					j, err := d.With(Overflow(p%3)).Submit(bg, func(context.Context) error { ran.Add(1); return nil })
					switch err {
					case nil:
						mu.Lock()
						jobs = append(jobs, j)
						mu.Unlock()
					case ErrQueueFull:
						runtime.Gosched()
					case ErrClosed:
						return
					default:
						t.Errorf("Submit: %v", err)
						return
					}
				}
			})
		}
		var report Report
		wg.Go(func() { <-start; report, _ = d.Shutdown(ctx) })
		close(start)
		wg.Wait()
		var states [8]int
		for _, j := range jobs {
			j.Wait(bg) // hangs if one is stranded
			states[j.State()]++
		}
		d.Shutdown(bg)
		st := d.Stats()
		if int(st.Accepted) != len(jobs) || len(report.NeverStarted) != states[StateAbandoned] ||
			states[StateSucceeded]+states[StateCanceled]+states[StateAbandoned]+states[StateDropped] != len(jobs) || int(ran.Load()) != states[StateSucceeded]+states[StateCanceled] {
			t.Fatalf("round %d: %d accepted, states %v, %d ran, report %+v, %s", round, len(jobs), states, ran.Load(), report, brief(st))
		}
		if ctx == bg && w > 0 && states[StateAbandoned]+states[StateCanceled]+report.Running > 0 {
			t.Fatalf("round %d: states %v, report %+v", round, states, report)
		}
		accepted += len(jobs)
		refused += int(st.RefusedClosed)
		abandoned += states[StateAbandoned]
	}
	eventually(t, "the goroutines are gone", func() bool { return runtime.NumGoroutine() <= before })
	t.Logf("%d accepted, %d refused, %d abandoned", accepted, refused, abandoned)
}

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
	eventually(t, "all goroutines are gone", func() bool { return runtime.NumGoroutine() <= before })
}
