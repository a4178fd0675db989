package holdfast

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

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

func TestOverflowText(t *testing.T) {
	for i, name := range []string{"block", "reject", "drop-oldest"} {
		o := Overflow(i)
		text, err := o.MarshalText()
		if o.String() != name || string(text) != name || err != nil {
			t.Errorf("Overflow(%d) is %q, %q, %v", i, o, text, err)
		}
		back := Overflow(7)
		if err := back.UnmarshalText(text); err != nil || back != o {
			t.Errorf("%q gives %v, %v", text, back, err)
		}
	}
	if Overflow(3).String() != "Overflow(3)" {
		t.Errorf("%v", Overflow(3))
	}
	if _, err := Overflow(3).MarshalText(); err == nil {
		t.Error("Overflow(3) has a text")
	}
	for _, text := range []string{"", "Block", "block ", "dropoldest", "0", "drop-oldest\n"} {
		o := DropOldest
		if err := o.UnmarshalText([]byte(text)); err == nil || o != DropOldest || !strings.Contains(err.Error(), "want block, reject or drop-oldest") {
			t.Errorf("%q: %v, %v", text, o, err)
		}
	}
	var v struct{ Overflow Overflow }
	if err := json.Unmarshal([]byte(`{"overflow":"reject"}`), &v); err != nil || v.Overflow != Reject {
		t.Errorf("%v, %v", v.Overflow, err)
	}
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

// TestStress lets everything meet everything in real time, under the race
// detector: all kinds of submits and policies, cancels, panics, Goexits, contexts
// that end, resizes and snapshots, and a shutdown in the middle of it.
func TestStress(t *testing.T) {
	for round := range 16 {
		s := &stressed{most: 6, places: []int{0, 1, 5, 50}[round%4], runs: make(map[int]int)}
		cfg := sized(2, s.places)
		cfg.Overflow = Overflow(round % 3)
		cfg.Logger = quiet
		var err error
		if s.d, err = New(cfg); err != nil {
			t.Fatal(err)
		}
		ctx := bg
		if round%2 == 1 {
			ctx = expired
		}
		s.run(t, ctx)
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
}

type stressed struct {
	d      *Dispatcher
	most   int // workers at any time
	places int

	// The test's own counts.
	meter                                          meter
	calls, full, closed, nested, started, panicked atomic.Uint64

	mu      sync.Mutex
	runs    map[int]int // by job
	handles []*Job
}

func (s *stressed) run(t *testing.T, ctx context.Context) {
	var load, others sync.WaitGroup
	stop := make(chan struct{})
	for p := range 6 {
		load.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(s.places), uint64(p)))
			for i := 0; s.submit(rng, p<<24+i) != ErrClosed; i++ {
			}
		})
	}
	for range 2 {
		others.Go(func() {
			for !isClosed(s.d.over) && !t.Failed() {
				st := s.d.Stats()
				if st.Accepted != uint64(st.Queued+st.Running)+endedIn(st) || st.Queued < 0 || st.Queued > s.places || st.Running < 0 || st.Running > s.most {
					t.Errorf("%s", brief(st))
				}
				runtime.Gosched()
			}
		})
	}
	others.Go(func() {
		for rng := rand.New(rand.NewPCG(7, 7)); !isClosed(stop); {
			if err := s.d.Resize(rng.IntN(s.most + 1)); err != nil {
				t.Error(err)
			}
			for range rng.IntN(100) {
				runtime.Gosched()
			}
		}
		s.d.Resize(1)
		report, err := s.d.Shutdown(ctx)
		if ctx == bg && (err != nil || report.Running+len(report.NeverStarted) > 0) {
			t.Errorf("%+v, %v", report, err)
		}
		if st := s.d.Stats(); uint64(len(report.NeverStarted)) != st.Abandoned {
			t.Errorf("%d never started: %s", len(report.NeverStarted), brief(st))
		}
	})
	settled(t, "2,000 have run", func() bool { return s.started.Load() > 2000 || t.Failed() })
	close(stop)
	load.Wait()
	others.Wait()
	s.d.running.Wait() // for what a cut-off shutdown leaves running

	st := s.d.Stats()
	if st.Accepted != endedIn(st) || st.Queued+st.Running+st.Blocked != 0 || st.OldestAge != 0 {
		t.Errorf("left: %s", brief(st))
	}
	if calls := st.Accepted + st.RefusedFull + st.RefusedClosed + st.RefusedNested + st.RefusedGone; calls != s.calls.Load() ||
		st.RefusedFull != s.full.Load() || st.RefusedClosed != s.closed.Load() || st.RefusedNested != s.nested.Load() {
		t.Errorf("%d calls, full %d, closed %d, nested %d: %s", s.calls.Load(), s.full.Load(), s.closed.Load(), s.nested.Load(), brief(st))
	}
	if n := s.started.Load(); st.Wait.Count != n || st.Run.Count != n || st.Panicked != s.panicked.Load() {
		t.Errorf("%d started, %d panicked: %d waits, %d runs: %s", n, s.panicked.Load(), st.Wait.Count, st.Run.Count, brief(st))
	}
	if n := s.meter.most.Load(); n > int64(s.most) {
		t.Errorf("%d ran at once", n)
	}
	for id, n := range s.runs {
		if n != 1 {
			t.Errorf("job %d ran %d times", id, n)
		}
	}
	for _, j := range s.handles {
		if !j.State().Ended() || !isClosed(j.Done()) || (j.Err() == nil) != (j.State() == StateSucceeded) {
			t.Errorf("%v, %v, Done closed: %v", j.State(), j.Err(), isClosed(j.Done()))
		}
	}
}

// submit makes one call of a random kind.
func (s *stressed) submit(rng *rand.Rand, id int) (err error) {
	ctx, cancel := context.WithCancel(bg)
	defer cancel()
	if rng.IntN(4) == 0 {
		ctx = context.WithValue(ctx, ctxKey("k"), id)
	}
	if rng.IntN(4) == 0 {
		go cancel()
	}
	fn, policy := s.function(rng, id), Overflow(rng.IntN(3))
	s.calls.Add(1)
	switch rng.IntN(3) {
	case 0:
		err = s.d.With(policy).Go(ctx, fn)
	case 1:
		var j *Job
		if j, err = s.d.With(policy).Submit(ctx, fn); err == nil {
			s.mu.Lock()
			s.handles = append(s.handles, j)
			s.mu.Unlock()
			switch rng.IntN(4) {
			case 0:
				j.Cancel()
			case 1:
				j.Wait(ctx)
			}
		}
	case 2:
		err = s.d.With(policy).Do(ctx, fn)
	}
	switch err {
	case ErrQueueFull:
		s.full.Add(1)
		runtime.Gosched()
	case ErrClosed:
		s.closed.Add(1)
	}
	return err
}

// function returns a job that ends in a random way.
func (s *stressed) function(rng *rand.Rand, id int) func(context.Context) error {
	way := rng.IntN(10)
	return s.meter.wrap(func(ctx context.Context) error {
		s.started.Add(1)
		s.mu.Lock()
		s.runs[id]++
		s.mu.Unlock()
		switch way {
		case 0:
			s.panicked.Add(1)
			panic("boom")
		case 1:
			runtime.Goexit()
		case 2:
			return errors.New("boom")
		case 3:
			s.calls.Add(1)
			s.nested.Add(1)
			if err := s.d.Do(ctx, nop); err != ErrNested {
				return errors.New("not nested")
			}
		case 4:
			runtime.Gosched()
			return ctx.Err()
		}
		return nil
	})
}
