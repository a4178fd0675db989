package holdfast

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// With the submitter's cancellation a job would end with the request that brought it;
// without its values it would lose its trace.
func TestG8ValuesWithoutCancellation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 4))
		ctx, cancel := context.WithTimeout(context.WithValue(bg, ctxKey("k"), "v"), time.Second)
		open := make(gate)
		checks := 0
		fn := func(c context.Context) error {
			<-open
			_, hasDeadline := c.Deadline()
			if c.Value(ctxKey("k")) != "v" || c.Err() != nil || isClosed(c.Done()) || hasDeadline || context.Cause(c) != nil {
				t.Errorf("value %v, error %v, cause %v, deadline %v", c.Value(ctxKey("k")), c.Err(), context.Cause(c), hasDeadline)
			}
			if c.Value(ctxKey("k")) != "v" || c.Value(ctxKey("other")) != nil {
				t.Errorf("values after first use: %v, %v", c.Value(ctxKey("k")), c.Value(ctxKey("other")))
			}
			checks++
			return c.Err()
		}
		if err := d.Go(ctx, fn); err != nil {
			t.Error(err)
		}
		j, err := d.Submit(ctx, fn)
		if err != nil {
			t.Error(err)
		}
		cancel() // the submitter has gone: its job runs all the same
		time.Sleep(2 * time.Second)
		close(open)
		synctest.Wait()
		expectState(t, j, StateSucceeded, nil)
		if checks != 2 {
			t.Errorf("%d checks", checks)
		}
	})
}

// A job must not outlive its time-out unseen, or be cut off before it.
func TestG8JobTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := sized(1, 10)
		cfg.JobTimeout = time.Minute
		d := build(t, cfg)
		for _, submit := range []func(fn func(context.Context) error) error{
			func(fn func(context.Context) error) error { return d.Do(bg, fn) },
			func(fn func(context.Context) error) error { return mustSubmit(t, d, fn).Wait(bg) },
			func(fn func(context.Context) error) error { mustGo(t, d, fn); synctest.Wait(); return nil },
		} {
			time.Sleep(time.Hour) // the time-out counts from the start
			start := time.Now()
			if err := submit(func(ctx context.Context) error {
				deadline, ok := ctx.Deadline()
				if off := deadline.Sub(start.Add(time.Minute)); !ok || off < 0 || off > time.Microsecond {
					t.Errorf("deadline %v, started %v", deadline, start)
				}
				return ctx.Err()
			}); err != nil {
				t.Errorf("in time: %v", err)
			}
		}

		start := time.Now()
		first := mustSubmit(t, d, untilCanceled)
		second := mustSubmit(t, d, untilCanceled) // waits a minute, and then has its own
		boom := errors.New("boom")
		fails := mustSubmit(t, d, func(context.Context) error { time.Sleep(time.Hour); return boom })
		if err := first.Wait(bg); err != context.DeadlineExceeded {
			t.Errorf("first: %v", err)
		}
		if took := time.Since(start).Round(time.Microsecond); took != time.Minute {
			t.Errorf("first took %v", took)
		}
		if err := second.Wait(bg); err != context.DeadlineExceeded {
			t.Errorf("second: %v", err)
		}
		if took := time.Since(start).Round(time.Microsecond); took != 2*time.Minute {
			t.Errorf("second took %v", took)
		}
		fails.Wait(bg)
		expectState(t, fails, StateFailed, context.DeadlineExceeded)
		expectState(t, fails, StateFailed, boom)
		expectStats(t, d, Stats{Workers: 1, Queue: 10, Accepted: 6, Succeeded: 3, Failed: 3})
	})
}

// A deadline that overflows would turn the usual way to say "never" into "at once".
func TestG8HugeJobTimeout(t *testing.T) {
	for _, timeout := range []time.Duration{math.MaxInt64, math.MaxInt64 / 2} {
		cfg := sized(1, 1)
		cfg.JobTimeout = timeout
		d := build(t, cfg)
		if err := d.Do(bg, func(ctx context.Context) error { return ctx.Err() }); err != nil {
			t.Errorf("%v: %v", timeout, err)
		}
	}
}

// An operator has to tell jobs that were stopped from jobs that failed.
func TestG8CanceledOrFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := sized(10, 0)
		cfg.JobTimeout = time.Minute
		cfg.Logger = quiet
		d := build(t, cfg)
		ways := []struct {
			name   string
			cancel bool
			fn     func(context.Context) error
			state  State
			err    error
		}{
			{"returns nil though canceled", true, func(ctx context.Context) error { <-ctx.Done(); return nil }, StateCanceled, context.Canceled},
			{"returns its context's error", true, untilCanceled, StateCanceled, context.Canceled},
			{"wraps its context's error", true, func(ctx context.Context) error { <-ctx.Done(); return fmt.Errorf("x: %w", ctx.Err()) }, StateCanceled, context.Canceled},
			{"panics though canceled", true, func(ctx context.Context) error { <-ctx.Done(); panic("boom") }, StatePanicked, nil},
			{"exits though canceled", true, func(ctx context.Context) error { <-ctx.Done(); runtime.Goexit(); return nil }, StateCanceled, context.Canceled},
			{"canceled long before its deadline", true, func(ctx context.Context) error { <-ctx.Done(); time.Sleep(time.Hour); return nil }, StateCanceled, context.Canceled},
			{"late", false, untilCanceled, StateFailed, context.DeadlineExceeded},
			{"late and nil", false, func(ctx context.Context) error { time.Sleep(time.Hour); return nil }, StateFailed, context.DeadlineExceeded},
			{"late and panics", false, func(ctx context.Context) error { <-ctx.Done(); panic("boom") }, StatePanicked, nil},
			{"says canceled but was not", false, func(ctx context.Context) error { return context.Canceled }, StateFailed, context.Canceled},
		}
		var jobs []*Job
		for _, way := range ways {
			jobs = append(jobs, mustSubmit(t, d, way.fn))
		}
		synctest.Wait()
		for i, way := range ways {
			if way.cancel {
				jobs[i].Cancel()
			}
		}
		time.Sleep(3 * time.Hour)
		for i, way := range ways {
			if j := jobs[i]; j.State() != way.state || way.err != nil && !errors.Is(j.Err(), way.err) || j.Err() == nil {
				t.Errorf("%s: %v, %v", way.name, j.State(), j.Err())
			}
		}
	})
}

// If the job of Do did not end with its caller, the caller could leave its closure
// running.
func TestG8DoInheritsItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 1))
		ctx, cancel := context.WithCancel(context.WithValue(bg, ctxKey("k"), "v"))
		var ended time.Time
		go func() { time.Sleep(time.Second); cancel() }()
		start := time.Now()
		err := d.Do(ctx, func(c context.Context) error {
			if c.Value(ctxKey("k")) != "v" {
				t.Error("no value")
			}
			<-c.Done()
			time.Sleep(time.Hour) // Do waits for the function
			ended = time.Now()
			return nil
		})
		if err != context.Canceled || time.Since(start) != time.Hour+time.Second || !ended.Equal(time.Now()) {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		late, cancel := context.WithTimeout(bg, time.Minute)
		defer cancel()
		if err := d.Do(late, func(c context.Context) error {
			want, _ := late.Deadline()
			if got, ok := c.Deadline(); !ok || !got.Equal(want) {
				t.Errorf("deadline %v, want the caller's %v", got, want)
			}
			return untilCanceled(c)
		}); err != context.DeadlineExceeded {
			t.Errorf("past the caller's deadline: %v", err)
		}
		expectStats(t, d, Stats{Workers: 1, Queue: 1, Accepted: 2, Canceled: 1, Failed: 1})
	})
}

// The context of a job has the cause for which it ended: that of the caller of Do, at
// every moment of the cancellation.
func TestG8CauseOfTheCaller(t *testing.T) {
	d := build(t, sized(2, 2))
	cause := errors.New("the client has left")
	for i := range 5000 {
		ctx, cancel := context.WithCancelCause(bg)
		started := make(chan struct{})
		go func() {
			if i%2 == 0 {
				<-started
			}
			cancel(cause)
		}()
		err := d.Do(ctx, func(c context.Context) error {
			if i%4 < 2 {
				c.Err() // makes the context before it is canceled, or not
			}
			close(started)
			<-c.Done()
			if got := context.Cause(c); got != cause || c.Err() != context.Canceled {
				t.Errorf("round %d: cause %v, error %v", i, got, c.Err())
			}
			return nil
		})
		if err != context.Canceled {
			t.Fatalf("round %d: %v", i, err)
		}
	}
}

// The other causes: the job's own cancellation, its time-out, a shutdown, its end.
func TestG8Causes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, early := range []bool{true, false} { // is the context asked before it ends?
			cfg := sized(4, 0)
			cfg.JobTimeout = time.Minute
			d := build(t, cfg)
			causes := map[string]error{}
			var mu sync.Mutex
			watch := func(name string, takes time.Duration) func(context.Context) error {
				return func(c context.Context) error {
					if early {
						c.Err()
					}
					time.Sleep(takes)
					mu.Lock()
					defer mu.Unlock()
					causes[name] = context.Cause(c)
					return nil
				}
			}
			canceled := mustSubmit(t, d, watch("canceled", 2*time.Second))
			mustSubmit(t, d, watch("late", time.Hour))
			mustSubmit(t, d, watch("running", time.Second))
			var kept context.Context
			mustSubmit(t, d, func(c context.Context) error { kept = c; return nil }).Wait(bg)
			ended := context.Cause(kept)
			time.Sleep(time.Second)
			canceled.Cancel()
			time.Sleep(2 * time.Hour)
			mustSubmit(t, d, watch("cut off", 10*time.Second))
			synctest.Wait()
			d.Shutdown(expired)
			time.Sleep(time.Minute)
			synctest.Wait()
			causes["ended"] = ended
			want := map[string]error{"canceled": context.Canceled, "late": context.DeadlineExceeded, "running": nil, "cut off": errStopped, "ended": context.Canceled}
			if fmt.Sprint(causes) != fmt.Sprint(want) {
				t.Errorf("asked early %v: %v, want %v", early, causes, want)
			}
		}
	})
}

// If a context were reused, a goroutine that a job left behind would act for another
// job.
func TestG8ContextIsNotReused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 1))
		seen := map[context.Context]int{}
		var expectGone []context.Context
		for i := range 200 {
			ctx := context.WithValue(bg, ctxKey("k"), i)
			fn := func(c context.Context) error {
				if i%2 == 0 && c.Err() != nil { // half of them are first used after the job
					t.Errorf("job %d: %v at its start", i, c.Err())
				}
				expectGone = append(expectGone, c)
				return nil
			}
			switch i % 3 {
			case 0:
				d.Go(ctx, fn)
			case 1:
				d.Submit(ctx, fn)
			case 2:
				d.Do(ctx, fn)
			}
			synctest.Wait()
		}
		for i, c := range expectGone {
			seen[c]++
			if c.Err() != context.Canceled || !isClosed(c.Done()) || c.Value(ctxKey("k")) != i {
				t.Errorf("job %d: context after its end: %v, %v", i, c.Err(), c.Value(ctxKey("k")))
			}
		}
		if len(seen) != 200 {
			t.Errorf("%d contexts for 200 jobs", len(seen))
		}
	})
}

// Contexts that are derived from a job's end with the job, and cost no goroutine each.
func TestG8ChildrenOfAJobsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := sized(4, 4)
		cfg.JobTimeout = time.Hour
		for _, timeout := range []time.Duration{0, time.Hour} {
			cfg.JobTimeout = timeout
			d := build(t, cfg)
			var after atomic.Int64
			var children []context.Context
			fn := func(c context.Context) error {
				before := runtime.NumGoroutine()
				child, cancel := context.WithCancel(context.WithValue(c, ctxKey("k"), "child"))
				_ = cancel // the job's end cancels it
				late, cancel2 := context.WithTimeout(child, 100*time.Hour)
				_ = cancel2
				context.AfterFunc(c, func() { after.Add(1) })
				stopped := context.AfterFunc(c, func() { t.Error("stopped") })
				if !stopped() {
					t.Error("AfterFunc cannot be stopped")
				}
				if n := runtime.NumGoroutine(); n > before {
					t.Errorf("%d goroutines more for the children", n-before)
				}
				if child.Err() != nil {
					t.Errorf("child: %v", child.Err())
				}
				children = append(children, child, late)
				return nil
			}
			d.Do(bg, fn)
			d.Do(context.WithValue(bg, ctxKey("k"), 1), fn)
			mustSubmit(t, d, fn).Wait(bg)
			d.Go(context.WithValue(bg, ctxKey("k"), 1), fn)
			synctest.Wait()
			if after.Load() != 4 {
				t.Errorf("%d of 4 AfterFuncs have run", after.Load())
			}
			for i, c := range children {
				if c.Err() != context.Canceled {
					t.Errorf("child %d: %v", i, c.Err())
				}
			}

			j := mustSubmit(t, d, func(c context.Context) error {
				child, cancel := context.WithCancel(c)
				defer cancel()
				return untilCanceled(child)
			})
			synctest.Wait()
			j.Cancel()
			synctest.Wait()
			expectState(t, j, StateCanceled, context.Canceled)
		}
	})
}

// A job that submits its successor with its own context must not keep every ancestor
// in memory.
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
		t.Errorf("%d objects expectGone after %d jobs, all but one ended", after-before, n)
	}
}

// A job must not wait for a worker that is its own.
func TestG10NestedSubmitNeverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, kind := range []string{"go", "go with values", "submit", "do"} {
			d := build(t, sized(1, 1))
			other := build(t, sized(1, 1))
			ended := mustSubmit(t, d, nop)
			synctest.Wait()
			var r record
			var told error
			fn := func(ctx context.Context) error {
				derived, cancel := context.WithTimeout(context.WithValue(context.WithoutCancel(ctx), ctxKey("k"), 1), time.Hour)
				defer cancel()
				for _, c := range []context.Context{ctx, derived} {
					if err := d.Do(c, nop); err != ErrNested { // though there is room
						t.Errorf("%s: Do: %v", kind, err)
					}
					if err := ended.Wait(c); err != ErrNested {
						t.Errorf("%s: Wait: %v", kind, err)
					}
				}
				old, err := d.Submit(ctx, r.job(0)) // there is room
				if err != nil {
					t.Errorf("%s: Submit with room: %v", kind, err)
				}
				if err := old.Wait(derived); err != ErrNested {
					t.Errorf("%s: Wait for a queued job: %v", kind, err)
				}
				if err := d.Go(derived, nop); err != ErrNested {
					t.Errorf("%s: Go without room: %v", kind, err)
				}
				if _, err := d.With(Block).Submit(ctx, nop); err != ErrNested {
					t.Errorf("%s: Submit without room: %v", kind, err)
				}
				if err := d.With(Reject).Go(ctx, nop); err != ErrQueueFull {
					t.Errorf("%s: Reject: %v", kind, err)
				}
				if err := d.With(DropOldest).Go(ctx, r.job(1)); err != nil {
					t.Errorf("%s: DropOldest: %v", kind, err)
				}
				expectState(t, old, StateDropped, ErrDropped)
				if err := other.Do(ctx, r.job(2)); err != nil { // another dispatcher may be waited for
					t.Errorf("%s: other dispatcher: %v", kind, err)
				}
				told = ctx.Err()
				return nil
			}
			switch kind {
			case "go":
				mustGo(t, d, fn)
			case "go with values":
				d.Go(context.WithValue(bg, ctxKey("k"), 1), fn)
			case "submit":
				mustSubmit(t, d, fn)
			case "do":
				d.Do(bg, fn)
			}
			synctest.Wait()
			r.expect(t, 2, 1)
			if told != nil {
				t.Errorf("%s: %v", kind, told)
			}
			expectStats(t, d, Stats{Workers: 1, Queue: 1, Accepted: 4, Succeeded: 3, Dropped: 1, RefusedNested: 4, RefusedFull: 1})
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

// A context is foreign code: one whose Value panics or calls Stats, called with the
// dispatcher locked, would stop the dispatcher for good.
func TestG10NoForeignCodeUnderTheLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(0, 1))
		mustGo(t, d, nop)
		var under bool
		ctx, cancel := context.WithTimeout(bg, time.Second)
		defer cancel()
		d.With(Block).Go(watching{ctx, func() {
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

type watching struct {
	context.Context
	value func()
}

func (w watching) Value(key any) any { w.value(); return w.Context.Value(key) }
