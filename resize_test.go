package holdfast

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A resize must not lose, strand or repeat jobs.
func TestG11NoJobIsLostOrRunTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(3, 10))
		const jobs = 2000
		var ran [jobs]atomic.Int64
		var wg sync.WaitGroup
		for p := range 4 {
			wg.Go(func() {
				for i := p; i < jobs; i += 4 {
					mustGo(t, d, func(context.Context) error {
						ran[i].Add(1)
						time.Sleep(time.Duration(i%7) * time.Millisecond)
						return nil
					})
				}
			})
		}
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, 1))
			for range 400 {
				if err := d.Resize(rng.IntN(8) * rng.IntN(2)); err != nil { // half of them 0
					t.Error(err)
				}
				if rng.IntN(3) > 0 {
					time.Sleep(time.Duration(rng.IntN(5)) * time.Millisecond)
				}
			}
			d.Resize(5)
		})
		wg.Wait()
		d.Shutdown(bg)
		for i := range ran {
			if n := ran[i].Load(); n != 1 {
				t.Errorf("job %d ran %d times", i, n)
			}
		}
	})
}

// A paused dispatcher runs nothing, also if its workers were idle and registered.
func TestG11PauseWithIdleWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, w := range []int{1, 2, 5} {
			d := build(t, sized(w, 5))
			var r record
			for round := range 20 {
				if round%2 == 0 {
					synctest.Wait() // all workers are idle and registered
				}
				if err := d.Resize(0); err != nil {
					t.Fatal(err)
				}
				for i := range 5 {
					mustGo(t, d, r.job(i), Reject)
				}
				if round%2 == 1 {
					time.Sleep(time.Hour)
				}
				synctest.Wait()
				r.expect(t)
				if err := d.Resize(w); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				slices.Sort(r.ran)
				r.expect(t, upTo(5)...)
				r.ran = nil
			}
		}
	})
}

// Shrink bookkeeping, `[:old-new]`: easyqueue goes from 10 to 8, tracks 2, and panics
// on the next change. A shrink ends goroutines, and a growth starts them.
func TestTrapShrinkBookkeeping(t *testing.T) {
	before := runtime.NumGoroutine()
	d := build(t, sized(2, 10))
	for _, n := range []int{10, 8, 9, 0, 3, 3, 1, 50, 2} {
		if err := d.Resize(n); err != nil {
			t.Fatal(err)
		}
		eventually(t, fmt.Sprintf("%d workers", n), func() bool { return runtime.NumGoroutine() <= before+1+n })
		func() {
			open := make(gate)
			defer close(open)
			if got := fill(t, d, open.pass); got != n+10 {
				t.Fatalf("%d workers: %d accepted", n, got)
			}
			eventually(t, fmt.Sprintf("%d run", n), func() bool { st := d.Stats(); return st.Running == n && st.Queued == 10 })
		}()
		d.Resize(max(n, 1))
		eventually(t, "every place is free", func() bool { return func() bool { st := d.Stats(); return st.Queued+st.Running == 0 }() })
	}
}

// Resize must not wait for a job, hang in one, or take any number.
func TestG11ResizeReturnsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(2, 2))
		open := make(gate)
		fill(t, d, open.pass)
		start := time.Now()
		for _, n := range []int{0, 5, 0, 1} {
			if err := d.Resize(n); err != nil {
				t.Error(err)
			}
		}
		for _, n := range []int{-1, maxWorkers + 1, math.MinInt, math.MaxInt} {
			if err := d.Resize(n); err == nil || !strings.Contains(err.Error(), fmt.Sprint(n)) {
				t.Errorf("Resize(%d): %v", n, err)
			}
		}
		if time.Since(start) != 0 || d.Stats().Workers != 1 {
			t.Errorf("%v, %s", time.Since(start), brief(d.Stats()))
		}
		close(open)
		synctest.Wait()
		if err := d.Do(bg, func(context.Context) error { return errors.Join(d.Resize(0), d.Resize(3), d.Resize(2)) }); err != nil {
			t.Errorf("from within a job: %v", err)
		}
		d.Shutdown(bg)
		if err := d.Resize(3); err != ErrClosed {
			t.Errorf("after Shutdown: %v", err)
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
