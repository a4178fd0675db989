package holdfast

import (
	"context"
	"errors"
	"holdfast/histogram"
	"holdfast/internal/httpjob"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Statistics can be wrong and still add up, so they are compared with the test's own
// counts.
func TestG6SnapshotsMatchTheTestsCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := sized(2, 4)
		cfg.Logger = quiet
		d := build(t, cfg)
		want := Stats{Workers: 2, Queue: 4}
		expect := func() { t.Helper(); expectStats(t, d, want) }
		expect()

		open := make(gate)
		mustGo(t, d, open.pass)
		running := mustSubmit(t, d, untilCanceled)
		synctest.Wait()
		queued := mustSubmit(t, d, nop)
		mustGo(t, d, func(context.Context) error { return errors.New("boom") })
		mustGo(t, d, func(context.Context) error { panic("boom") })
		mustGo(t, d, func(ctx context.Context) error {
			if err := d.Do(ctx, nop); err != ErrNested {
				t.Errorf("nested Do: %v", err)
			}
			return nil
		})
		want.Accepted, want.Running, want.Queued = 6, 2, 4
		expect()

		d.With(Reject).Go(bg, nop)
		d.Go(expired, nop)
		want.RefusedFull, want.RefusedGone = 1, 1
		expect()

		ctx, cancel := context.WithCancel(bg)
		go d.Go(ctx, nop)
		go d.Go(bg, nop)
		want.Blocked = 2
		expect()
		cancel()
		want.Blocked, want.RefusedGone = 1, 2
		expect()

		queued.Cancel()
		want.Accepted, want.Blocked, want.Canceled = 7, 0, 1 // its place is free at once
		expect()

		running.Cancel() // its worker takes the rest
		want.Running, want.Queued = 1, 0
		want.Canceled, want.Failed, want.Panicked, want.Succeeded, want.RefusedNested = 2, 1, 1, 2, 1
		expect()

		d.Resize(1)
		want.Workers = 1
		expect()
		mustGo(t, d, nop)
		want.Accepted, want.Queued = 8, 1
		expect()
		mustGo(t, d, nop)
		mustGo(t, d, nop)
		mustGo(t, d, nop)
		mustGo(t, d, nop, DropOldest)
		want.Accepted, want.Queued, want.Dropped = 12, 4, 1
		expect()

		go d.Go(bg, nop)
		want.Blocked = 1
		expect()
		go d.Shutdown(bg)
		want.Blocked, want.RefusedClosed = 0, 1
		expect()
		if err := d.Go(bg, nop); err != ErrClosed {
			t.Errorf("after Shutdown: %v", err)
		}
		want.RefusedClosed = 2
		expect()
		close(open)
		want.Workers, want.Running, want.Queued, want.Succeeded = 0, 0, 0, 7
		expect()
	})
}

// A snapshot that is taken in the middle of things adds up, too.
func TestG6EverySnapshotUnderLoadConserves(t *testing.T) {
	for _, size := range [][2]int{{2, 0}, {3, 5}, {4, 64}} {
		w, l := size[0], size[1]
		cfg := sized(w, l)
		cfg.Logger = quiet
		d := build(t, cfg)
		var began, accepted, started, told atomic.Uint64
		stop := make(chan struct{})
		var load, polls sync.WaitGroup
		for p := range 6 {
			load.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(p), 0))
				for !isClosed(stop) {
					kind := rng.IntN(5)
					fn := func(context.Context) error {
						started.Add(1)
						switch kind {
						case 0:
							panic("boom")
						case 1:
							runtime.Goexit()
						}
						return nil
					}
					began.Add(1)
					j, err := d.With(Overflow(rng.IntN(3))).Submit(bg, fn)
					if err != nil {
						continue
					}
					accepted.Add(1)
					if kind == 2 {
						j.Cancel()
					}
					if kind <= 3 {
						j.Wait(bg)
						told.Add(1)
					}
				}
			})
		}
		for range 2 {
			polls.Go(func() {
				var last Stats
				for n := 0; n < 3000; n++ {
					acceptedBefore, toldBefore, startedBefore := accepted.Load(), told.Load(), started.Load()
					st := d.Stats()
					beganAfter := began.Load()
					all := ended(st)
					switch {
					case st.Accepted != uint64(st.Queued+st.Running)+all:
						t.Errorf("does not add up: %s", brief(st))
					case st.Queued < 0 || st.Queued > l || st.Running < 0 || st.Running > w || st.Queued > l+w:
						t.Errorf("out of bounds: %s", brief(st))
					case st.Accepted < acceptedBefore || st.Accepted > beganAfter:
						t.Errorf("%d to %d accepted: %s", acceptedBefore, beganAfter, brief(st))
					case all < toldBefore:
						t.Errorf("%d were told: %s", toldBefore, brief(st))
					case st.Wait.Count < startedBefore || st.Wait.Count > st.Accepted:
						t.Errorf("%d started, Wait.Count %d: %s", startedBefore, st.Wait.Count, brief(st))
					case st.Wait.Count-st.Run.Count > uint64(st.Running):
						t.Errorf("%d began, %d ended: %s", st.Wait.Count, st.Run.Count, brief(st))
					case st.Accepted < last.Accepted || all < ended(last) || st.Wait.Count < last.Wait.Count:
						t.Errorf("went back: %s\nafter: %s", brief(st), brief(last))
					case st.OldestAge < 0 || st.Queued == 0 && st.OldestAge != 0:
						t.Errorf("oldest: %s", brief(st))
					default:
						last = st
						continue
					}
					return
				}
			})
		}
		polls.Wait()
		close(stop)
		load.Wait()
		d.Shutdown(bg)
		if st := d.Stats(); st.Accepted != accepted.Load() || st.Wait.Count != started.Load() || st.Run.Count != started.Load() {
			t.Errorf("%d accepted, %d started: %s, %d waits, %d runs", accepted.Load(), started.Load(), brief(st), st.Wait.Count, st.Run.Count)
		}
	}
}

// The histograms must not be off by the time of another job.
func TestG14HistogramsAreExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 2))
		sleeper := func(s int) func(context.Context) error {
			return func(context.Context) error { time.Sleep(time.Duration(s) * time.Second); return nil }
		}
		expect := func(what string, h histogram.Histogram, durations ...time.Duration) {
			t.Helper()
			slices.Sort(durations)
			var sum time.Duration
			for _, x := range durations {
				sum += x
			}
			if h.Count != uint64(len(durations)) || h.Sum != float64(sum) {
				t.Errorf("%s: %d with sum %v, want %d with %v", what, h.Count, time.Duration(h.Sum), len(durations), sum)
			}
			for i, x := range durations {
				q := (float64(i) + 0.5) / float64(len(durations))
				if got := h.Quantile(q); got < x || got > x+x/8 {
					t.Errorf("%s: quantile %.2f is %v, want %v or an eighth more at most", what, q, got, x)
				}
			}
		}
		for s := 1; s <= 4; s++ { // the fourth waits a second for its place: that is no wait in the queue
			mustGo(t, d, sleeper(s))
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		const s = time.Second
		st := d.Stats()
		expect("wait", st.Wait, 0, 1*s, 3*s, 5*s)
		expect("run", st.Run, 1*s, 2*s, 3*s, 4*s)

		// What never starts has no wait, and what has not ended no run time.
		d.Resize(0)
		j := mustSubmit(t, d, nop)
		mustGo(t, d, nop)
		time.Sleep(s)
		mustGo(t, d, sleeper(10), DropOldest)
		j.Cancel()
		time.Sleep(s)
		d.Resize(1)
		time.Sleep(5 * s)
		synctest.Wait()
		st = d.Stats()
		expect("wait", st.Wait, 0, 1*s, 3*s, 5*s, 2*s, 1*s)
		expect("run", st.Run, 1*s, 2*s, 3*s, 4*s, 0)
		time.Sleep(time.Minute)
		expect("run", d.Stats().Run, 1*s, 2*s, 3*s, 4*s, 0, 10*s)
		if st := d.Stats(); st.Run.Mean() != 20*s/6 {
			t.Errorf("mean %v", st.Run.Mean())
		}
	})
}

// An operator must neither see an age that is not there nor miss one.
func TestG14OldestAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(0, 3))
		expect := func(want time.Duration) {
			t.Helper()
			synctest.Wait()
			if got := d.Stats().OldestAge; got != want {
				t.Errorf("oldest age %v, want %v", got, want)
			}
		}
		const s = time.Second
		time.Sleep(s)
		expect(0) // empty
		first := mustSubmit(t, d, nop)
		expect(0) // new
		time.Sleep(s)
		expect(s)
		second := mustSubmit(t, d, nop)
		time.Sleep(2 * s)
		expect(3 * s) // grows while paused
		mustGo(t, d, nop)
		go d.Go(bg, nop) // waits for a place: not queued
		time.Sleep(s)
		expect(4 * s)
		first.Cancel()
		expect(3 * s)                 // canceled jobs are left out
		mustGo(t, d, nop, DropOldest) // the submitter that waited has the canceled one's place
		expectState(t, second, StateDropped, ErrDropped)
		expect(s)
		time.Sleep(s)
		expect(2 * s)
		d.Resize(1)
		expect(0)
		time.Sleep(time.Hour)
		expect(0)
	})
}

func TestConfig(t *testing.T) {
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{Workers: -1}, "Config.Workers is -1"},
		{Config{Workers: 1_000_001}, "Config.Workers is 1000001"},
		{Config{Queue: -1}, "Config.Queue is -1"},
		{Config{Queue: 10_000_001}, "Config.Queue is 10000001"},
		{Config{Overflow: 3}, "Config.Overflow is Overflow(3)"},
		{Config{JobTimeout: -1}, "Config.JobTimeout is -1ns"},
		{Config{ClientPlaces: -1}, "ClientPlaces -1"},
	} {
		if d, err := New(c.cfg); d != nil || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c.cfg, err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct{ workers, queue int }{{0, 0}, {1, 1}, {0, 5}, {5, 0}} {
			d := build(t, Config{Workers: c.workers, Queue: c.queue})
			expectStats(t, d, Stats{Workers: c.workers, Queue: c.queue})
			if st := d.Stats(); st.OldestAge != 0 || st.Wait.Count != 0 || st.Run.Count != 0 {
				t.Errorf("new: %s", brief(st))
			}
		}
	})
}

// An option that does nothing: golang-queue's WithMetric. A field that is added to
// Config needs a case here.
func TestTrapOptionThatDoesNothing(t *testing.T) {
	var logged errorLog
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
		with("ClientPlaces", func(c *Config) { c.ClientPlaces = 1 }, func(d *Dispatcher) bool {
			open := make(gate)
			defer close(open)
			one := d.For(Class{Client: "one"})
			return one.Go(bg, open.pass) == nil && one.Go(bg, open.pass) == ErrShare
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

func TestNilFunctionPanics(t *testing.T) {
	d := build(t, sized(1, 1))
	for name, f := range map[string]func(){
		"Go":     func() { d.Go(bg, nil) },
		"Submit": func() { d.Submit(bg, nil) },
		"Do":     func() { d.Do(bg, nil) },
	} {
		func() {
			defer func() {
				if v := recover(); v != "holdfast: nil function" {
					t.Errorf("%s: %v", name, v)
				}
			}()
			f()
		}()
	}
	if st := d.Stats(); st.Accepted != 0 {
		t.Errorf("%s", brief(st))
	}
}

// If the import registered handlers, every program with the package would serve its
// profiles to whoever can reach its default mux.
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

// Fire-and-forget must not feed the garbage collector at each job.
func TestAllocations(t *testing.T) {
	d := build(t, sized(2, 64))
	values := context.WithValue(bg, ctxKey("k"), "v")
	for _, c := range []struct {
		what string
		most float64
		f    func()
	}{
		{"Go", 0, func() { d.Go(bg, nop) }},
		{"Go with a policy", 0, func() { d.With(Block).Go(bg, nop) }},
		{"Go refused", 0, func() { d.With(Reject).Go(bg, nop) }},
		{"Go dropping", 0, func() { d.With(DropOldest).Go(bg, nop) }},
		{"Go with values", 1, func() { d.Go(values, nop) }},
		{"Submit and Wait", 2, func() {
			j, err := d.Submit(bg, nop)
			if err != nil {
				t.Error(err)
			}
			j.Wait(bg)
		}},
	} {
		if n := testing.AllocsPerRun(2000, c.f); n > c.most {
			t.Errorf("%s: %v allocations, at most %v", c.what, n, c.most)
		}
	}
	st := d.Stats()
	if st.Accepted == 0 || st.Failed > 0 {
		t.Errorf("%s", brief(st))
	}
}

// A request's job says how it has ended in the terms of package httpjob, whose numbers
// are those of the states.
func TestEndsHaveTheNumbersOfStates(t *testing.T) {
	for state, end := range map[State]httpjob.End{
		StateSucceeded: httpjob.Succeeded, StateFailed: httpjob.Failed, StatePanicked: httpjob.Panicked,
		StateCanceled: httpjob.Canceled, StateDropped: httpjob.Dropped, StateAbandoned: httpjob.Abandoned,
	} {
		if httpjob.End(state) != end {
			t.Errorf("%v is %d, its end %d", state, state, end)
		}
	}
}

// What is canceled before it was accepted is not there: counted as ended it would make
// the queue's length negative.
func TestG7CancelBeforeAcceptance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(0, 1))
		j := queue{d}.NewJob(bg, nil, 0, nop, func(httpjob.End, error) {})
		if j.Cancel() {
			t.Error("canceled before it was there")
		}
		expectStats(t, d, Stats{Queue: 1})
		if err := j.Submit(bg); err != nil || !j.Cancel() {
			t.Errorf("%v, or not canceled", err)
		}
		expectStats(t, d, Stats{Queue: 1, Accepted: 1, Canceled: 1})
	})
}

// The pool's memory returns after a shrink.
func TestG11PoolShrinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1000, 1))
		d.Resize(3)
		if n := cap(d.pool); n != 3 {
			t.Errorf("room for %d idle workers of 3", n)
		}
	})
}
