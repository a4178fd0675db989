package main

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
)

// When drain has returned, every job has run exactly once. Otherwise the figures would
// not measure what they claim.
func TestEveryJobRunsOnce(t *testing.T) {
	const producers, share, workers, queue = 20, 200, 8, 16
	for _, c := range contenders {
		t.Run(c.name, func(t *testing.T) {
			p := c.open(workers, queue)
			hold(p, workers)()
			runs := make([]atomic.Int32, producers*share)
			var submitting sync.WaitGroup
			for i := range producers {
				submitting.Go(func() {
					var handles []any
					for n := i * share; n < (i+1)*share; n++ {
						handles = append(handles, p.submit(newJob(func() { runs[n].Add(1) })))
					}
					for n, h := range handles {
						if !c.handle {
							break
						}
						p.wait(h)
						if got := runs[i*share+n].Load(); got != 1 {
							t.Errorf("job %d ran %d times when its handle reported the end", i*share+n, got)
						}
					}
				})
			}
			submitting.Wait()
			release := drain(p, workers)
			for n := range runs {
				if got := runs[n].Load(); got != 1 {
					t.Errorf("job %d ran %d times", n, got)
				}
			}
			release()
			p.close()
		})
	}
}

func TestProduce(t *testing.T) {
	for _, c := range contenders {
		for _, open := range []int{0, 1, 3, 100} {
			if c.handle != (open > 0) {
				continue
			}
			t.Run(fmt.Sprint(c.name, "/", open), func(t *testing.T) {
				p := c.open(2, 4)
				var ran atomic.Int64
				produce(p, newJob(func() { ran.Add(1) }), 50, open)
				if c.handle && ran.Load() != 50 {
					t.Errorf("%d jobs had run after all handles were waited for, want 50", ran.Load())
				}
				drain(p, 2)()
				if ran.Load() != 50 {
					t.Errorf("%d jobs have run, want 50", ran.Load())
				}
				p.close()
			})
		}
	}
}

func TestInterleave(t *testing.T) {
	var order []int
	out := interleave(3, 3, func(e int) int { order = append(order, e); return 10*e + len(order) })
	if got, want := fmt.Sprint(order, out), "[0 1 2 1 2 0 2 0 1] [[1 6 8] [12 14 19] [23 25 27]]"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
