package holdfast

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
)

// One worker is a way to run things in order, however they are submitted.
func TestG3OneWorkerRunsInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 100))
		for round := range 3 { // from idle; then with the worker taking the next itself
			var r record
			var want []int
			for i := range 60 {
				switch i % 4 {
				case 0:
					mustGo(t, d, r.job(i))
				case 1:
					mustSubmit(t, d, r.job(i))
				case 2:
					d.Go(context.WithValue(bg, ctxKey("k"), "v"), r.job(i))
				case 3:
					if round == 2 {
						mustSubmit(t, d, r.job(i)).Cancel()
						continue
					}
					if round == 1 {
						mustSubmit(t, d, r.job(i))
						break
					}
					go d.Do(bg, r.job(i))
					synctest.Wait() // only then is it sure to be before the next
				}
				want = append(want, i)
			}
			synctest.Wait()
			if round == 2 { // canceled at once: each may have run or not
				r.mu.Lock()
				r.ran = slices.DeleteFunc(r.ran, func(n int) bool { return n%4 == 3 })
				r.mu.Unlock()
			}
			r.expect(t, want...)
		}
	})
}

// Submitters that are let in together must not overtake each other.
func TestG3BlockedSubmittersEnterInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(0, 4))
		var r record
		for range 4 {
			mustSubmit(t, d, r.job(-1))
		}
		for i := range 10 {
			go d.With(Block).Go(bg, r.job(i))
			synctest.Wait()
		}
		expectStats(t, d, Stats{Queue: 4, Accepted: 4, Queued: 4, Blocked: 10})
		d.Resize(1)
		synctest.Wait()
		r.expect(t, append([]int{-1, -1, -1, -1}, upTo(10)...)...)
	})
}

// Growth lets in as many as there are new places, and those that came first.
func TestG3GrowthLetsTheFirstIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, l := range []int{0, 1, 3} {
			d := build(t, sized(1, l))
			open := make(gate)
			if n := fill(t, d, open.pass); n != 1+l {
				t.Fatal(n)
			}
			var accepted record
			for i := range 10 {
				go func() {
					if d.With(Block).Go(bg, open.pass) == nil {
						accepted.add(i)
					}
				}()
				synctest.Wait()
			}
			d.Resize(5)
			synctest.Wait()
			slices.Sort(accepted.ran) // the order of return is not the order of acceptance
			accepted.expect(t, upTo(4)...)
			expectStats(t, d, Stats{Workers: 5, Queue: l, Accepted: uint64(5 + l), Running: 5, Queued: l, Blocked: 6, RefusedFull: 1})
			close(open)
			d.Shutdown(bg)
		}
	})
}

// A producer's own jobs are not reordered under contention: each is submitted after
// the one before was accepted.
func TestG3OrderOfEachProducerUnderLoad(t *testing.T) {
	d := build(t, sized(1, 8))
	const producers, each = 8, 1000
	var last [producers]int // only the one worker touches it
	var wg sync.WaitGroup
	for p := range producers {
		wg.Go(func() {
			for i := 1; i <= each; i++ {
				mustGo(t, d, func(context.Context) error {
					if i != last[p]+1 {
						t.Errorf("producer %d: job %d ran after %d", p, i, last[p])
					}
					last[p] = i
					return nil
				}, Block)
			}
		})
	}
	wg.Wait()
	d.Shutdown(bg)
	for p, n := range last {
		if n != each {
			t.Errorf("producer %d: %d of %d ran", p, n, each)
		}
	}
}
