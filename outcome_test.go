package holdfast

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// No job ends twice, or in a way that its handle does not show.
func TestG5EachOutcomeOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boom := errors.New("boom")
		var pe *PanicError
		cfg := sized(1, 10)
		cfg.Logger = quiet
		d := build(t, cfg)
		var calls [8]atomic.Int64
		counted := func(i int, fn func(context.Context) error) func(context.Context) error {
			return func(ctx context.Context) error { calls[i].Add(1); return fn(ctx) }
		}
		jobs := []*Job{
			mustSubmit(t, d, counted(0, nop)),
			mustSubmit(t, d, counted(1, func(context.Context) error { return boom })),
			mustSubmit(t, d, counted(2, func(context.Context) error { panic(boom) })),
			mustSubmit(t, d, counted(3, func(context.Context) error { runtime.Goexit(); return nil })),
		}
		synctest.Wait()
		jobs = append(jobs, mustSubmit(t, d, counted(4, untilCanceled)))
		synctest.Wait()
		jobs = append(jobs, mustSubmit(t, d, counted(5, nop)))
		early := jobs[5].Done() // asked for before the end
		jobs[5].Cancel()
		jobs[4].Cancel()
		synctest.Wait()
		d.Resize(0)
		jobs = append(jobs, mustSubmit(t, d, counted(6, nop)))
		for range 9 {
			mustGo(t, d, nop)
		}
		jobs = append(jobs, mustSubmit(t, d, counted(7, nop), DropOldest))
		d.Resize(0)
		if _, err := d.Shutdown(bg); !errors.Is(err, ErrAbandoned) {
			t.Errorf("Shutdown: %v", err)
		}
		check := func() {
			t.Helper()
			for i, want := range []struct {
				state State
				err   error
				calls int64
			}{
				{StateSucceeded, nil, 1}, {StateFailed, boom, 1}, {StatePanicked, boom, 1}, {StateFailed, errGoexit, 1}, {StateCanceled, context.Canceled, 1},
				{StateCanceled, context.Canceled, 0}, {StateDropped, ErrDropped, 0}, {StateAbandoned, ErrAbandoned, 0},
			} {
				expectState(t, jobs[i], want.state, want.err)
				if n := calls[i].Load(); n != want.calls {
					t.Errorf("job %d was called %d times, want %d", i, n, want.calls)
				}
				if err := jobs[i].Wait(bg); err != jobs[i].Err() {
					t.Errorf("job %d: Wait %v, Err %v", i, err, jobs[i].Err())
				}
			}
		}
		check()
		if !errors.As(jobs[2].Err(), &pe) || !isClosed(early) {
			t.Errorf("%v; Done closed: %v", jobs[2].Err(), isClosed(early))
		}
		for _, j := range jobs {
			j.Cancel() // has ended: changes nothing
		}
		check()
		expectStats(t, d, Stats{Queue: 10, Accepted: 17, Succeeded: 1, Failed: 2, Panicked: 1, Canceled: 2, Dropped: 1, Abandoned: 10})
	})
}

// Each way to end a job wakes each kind of waiter.
func TestG5NoWaiterHangs(t *testing.T) {
	ways := map[string]func(t *testing.T, d *Dispatcher, open gate, last *Job){
		"ran":       func(t *testing.T, d *Dispatcher, open gate, last *Job) { close(open) },
		"canceled":  func(t *testing.T, d *Dispatcher, open gate, last *Job) { last.Cancel(); close(open) },
		"dropped":   func(t *testing.T, d *Dispatcher, open gate, last *Job) { mustGo(t, d, nop, DropOldest); close(open) },
		"abandoned": func(t *testing.T, d *Dispatcher, open gate, last *Job) { d.Shutdown(expired); close(open) },
		"paused": func(t *testing.T, d *Dispatcher, open gate, last *Job) {
			d.Resize(0)
			close(open)
			synctest.Wait()
			d.Shutdown(bg)
		},
	}
	fns := map[string]func(context.Context) error{
		"nop":    nop,
		"panic":  func(context.Context) error { panic("boom") },
		"goexit": func(context.Context) error { runtime.Goexit(); return nil },
		"cancel": untilCanceled,
	}
	for way, end := range ways {
		for kind, fn := range fns {
			if kind == "cancel" && way != "canceled" && way != "abandoned" && way != "paused" {
				continue // would run for ever
			}
			synctest.Test(t, func(t *testing.T) {
				cfg := sized(1, 1)
				cfg.Logger = quiet
				d := build(t, cfg)
				open := make(gate)
				mustGo(t, d, open.pass)
				synctest.Wait()
				j := mustSubmit(t, d, fn)
				var wg sync.WaitGroup
				wg.Go(func() { j.Wait(bg) })
				wg.Go(func() { j.Wait(bg) })
				wg.Go(func() { <-j.Done() })
				synctest.Wait()
				end(t, d, open, j)
				wg.Wait() // a deadlock of the bubble if one hangs
				if !j.State().Ended() {
					t.Errorf("%s, %s: %v", way, kind, j.State())
				}
			})
		}
	}
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

func TestStateStrings(t *testing.T) {
	want := []string{"queued", "running", "succeeded", "failed", "panicked", "canceled", "dropped", "abandoned", "State(8)"}
	for i, name := range want {
		if s := State(i); s.String() != name || s.Ended() != (i >= 2) {
			t.Errorf("State(%d) is %q, ended %v", i, s, s.Ended())
		}
	}
	if State(255).String() != "State(255)" {
		t.Errorf("%v", State(255))
	}
}

// If a panic were not the job's error, it would take the process with it, or leave no
// trace.
func TestG9PanicIsTheJobsError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged errorLog
		cfg := sized(1, 4)
		cfg.Logger = logged.logger()
		d := build(t, cfg)
		boom := errors.New("boom")
		var typedNil *errorLog
		for i, value := range []any{"boom", boom, nil, 7, typedNil} {
			err := d.Do(bg, func(context.Context) error { panicHere(value); return nil })
			var pe *PanicError
			if !errors.As(err, &pe) {
				t.Fatalf("panic(%v): %v", value, err)
			}
			if err, ok := value.(error); ok && !errors.Is(pe, err) {
				t.Errorf("%v does not unwrap to %v", pe, err)
			}
			var pne *runtime.PanicNilError
			if value == nil && !errors.As(err, &pne) {
				t.Errorf("panic(nil): %v", err)
			}
			if !bytes.Contains(pe.Stack, []byte("panicHere")) || strings.Contains(pe.Error(), "goroutine") {
				t.Errorf("stack %q, error %q", pe.Stack, pe)
			}
			if logged.records() != i+1 {
				t.Errorf("%d records after %d panics", logged.records(), i+1)
			}
		}
		mustGo(t, d, func(context.Context) error { panic("nobody follows it") })
		synctest.Wait()
		if text := logged.String(); logged.records() != 6 || !strings.Contains(text, "nobody follows it") || !strings.Contains(text, "stack=") {
			t.Errorf("logged: %s", text)
		}
		mustGo(t, d, nop)
		expectStats(t, d, Stats{Workers: 1, Queue: 4, Accepted: 7, Panicked: 6, Succeeded: 1})
	})
}

func panicHere(v any) { panic(v) }

// If runtime.Goexit (t.FailNow in a job) ended the worker, each call would cost one.
func TestG9GoexitEndsTheJobNotThePool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged errorLog
		cfg := sized(3, 300)
		cfg.Logger = logged.logger()
		d := build(t, cfg)
		exits := []func(context.Context) error{
			func(context.Context) error { runtime.Goexit(); return nil },
			func(context.Context) error { defer runtime.Goexit(); return nil },
			func(context.Context) error { defer runtime.Goexit(); panic("boom") }, // Goexit ends the panic
		}
		var jobs []*Job
		var ran atomic.Int64
		for i := range 300 {
			if i%2 == 0 {
				jobs = append(jobs, mustSubmit(t, d, exits[i/2%3]))
			} else {
				mustGo(t, d, func(context.Context) error { ran.Add(1); return nil })
			}
		}
		synctest.Wait()
		for _, j := range jobs {
			expectState(t, j, StateFailed, errGoexit)
		}
		if ran.Load() != 150 {
			t.Errorf("%d of 150 other jobs ran", ran.Load())
		}
		// A panic on the way out of a Goexit is a panic.
		if err := d.Do(bg, func(context.Context) error { defer func() { panic("boom") }(); runtime.Goexit(); return nil }); !errors.As(err, new(*PanicError)) {
			t.Errorf("panic in Goexit: %v", err)
		}
		// All three workers are there, and no fourth.
		open := make(gate)
		for range 4 {
			mustGo(t, d, open.pass)
		}
		synctest.Wait()
		if st := d.Stats(); st.Running != 3 || st.Queued != 1 || st.Failed != 150 || logged.records() != 1 {
			t.Errorf("%s; %d records", brief(st), logged.records())
		}
		close(open)
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

// Finished jobs expectGone referenced: pond #110. A handle that is expectGone, an idle worker
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
	eventually(t, "nothing runs", func() bool { st := d.Stats(); return st.Running+st.Queued == 0 })
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
	eventually(t, "5 wait", func() bool { return d.Stats().Blocked == 5 })
	cancel()
	wg.Wait()
	d.Resize(2)
	close(open)
	for _, j := range handles {
		j.Wait(bg)
	}
	eventually(t, "everything is freed", func() bool { runtime.GC(); return freed.Load() == made.Load() })
	runtime.KeepAlive(handles)
	runtime.KeepAlive(d)
}
