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

// No submitter sleeps beside a place that a resize has made.
func TestG13GrowthWakesWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 100 {
			l, blocked := rand.IntN(3), 1+rand.IntN(6)
			d := build(t, sized(0, l))
			open := make(gate)
			vacate := rand.IntN(l + 1)
			for i := range l {
				if j := mustSubmit(t, d, open.pass); i < vacate {
					j.Cancel()
				}
			}
			for range blocked {
				go d.Go(bg, open.pass)
			}
			atRest(t, d)
			for n := 1; n < 6; n++ {
				d.Resize(n)
				atRest(t, d)
			}
			close(open)
			atRest(t, d)
			d.Shutdown(bg)
		}
	})
}

// If a place could become free just before a lone submitter begins to wait for it,
// nobody would come later and wake it.
func TestG13TheOnlySubmitterIsWoken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 0))
		for i := range 100_000 {
			mustGo(t, d, func(context.Context) error {
				for range i % 500 { // to meet the next submit at each of its steps
					runtime.KeepAlive(i)
				}
				return nil
			})
		}
	})
}

// None of the ways to free a place forgets a waiting submitter.
func TestG13AtRest(t *testing.T) {
	for seed := range uint64(150) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 13))
			cfg := sized(rng.IntN(4), rng.IntN(4))
			cfg.Logger = quiet
			d := build(t, cfg)
			var mu sync.Mutex
			var handles []*Job
			var leave []context.CancelFunc
			end := make(chan struct{})
			job := func(context.Context) error {
				<-end
				switch rand.IntN(8) {
				case 0:
					panic("boom")
				case 1:
					runtime.Goexit()
				}
				return nil
			}
			for range 60 {
				for range 1 + rng.IntN(4) { // operations that start at the same time
					switch rng.IntN(8) {
					case 0, 1, 2, 3:
						policy := Overflow(rng.IntN(4) % 3)
						ctx, cancel := context.WithCancel(bg)
						leave = append(leave, cancel)
						go func() {
							if j, err := d.With(policy).Submit(ctx, job); err == nil {
								mu.Lock()
								handles = append(handles, j)
								mu.Unlock()
							}
						}()
					case 4:
						n := rng.IntN(5)
						go d.Resize(n)
					case 5:
						mu.Lock()
						if len(handles) > 0 {
							go handles[rng.IntN(len(handles))].Cancel()
						}
						mu.Unlock()
					case 6:
						if len(leave) > 0 {
							go leave[rng.IntN(len(leave))]()
						}
					case 7:
						select {
						case end <- struct{}{}:
						default:
						}
					}
				}
				atRest(t, d)
				if t.Failed() {
					t.Fatalf("seed %d", seed)
				}
			}
			d.Resize(1)
			close(end)
			for _, cancel := range leave {
				cancel()
			}
			atRest(t, d)
		})
	}
}

// Lost wake-up, a waiter sleeps while a slot is free: pond #108 and two further pull
// requests, ants #205, go-concurrency-limits. The bubble stands still, and fails, if
// one of these calls never returns.
func TestTrapLostWakeUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, size := range [][2]int{{1, 0}, {2, 0}, {1, 1}, {3, 2}} {
			d := build(t, sized(size[0], size[1]))
			var wg sync.WaitGroup
			var gone atomic.Int64
			for range 16 {
				wg.Go(func() {
					for i := range 500 {
						switch i % 5 {
						case 0: // leaves the line, perhaps at the moment when it is served
							ctx, cancel := context.WithCancel(bg)
							go cancel()
							if d.Go(ctx, nop) != nil {
								gone.Add(1)
							}
						case 1:
							d.Do(bg, nop)
						default:
							d.Go(bg, nop)
						}
					}
				})
			}
			wg.Wait()
			atRest(t, d)
			n := uint64(16*500 - gone.Load())
			expectStats(t, d, Stats{Workers: size[0], Queue: size[1], Accepted: n, Succeeded: n, RefusedGone: uint64(gone.Load())})
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
