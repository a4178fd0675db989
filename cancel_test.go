package holdfast

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A canceled job must not run, and its place goes to exactly one other job.
func TestG7CanceledInTheQueueNeverRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 3))
		var r record
		open := make(gate)
		mustGo(t, d, open.pass)
		synctest.Wait()
		jobs := []*Job{mustSubmit(t, d, r.job(0)), mustSubmit(t, d, r.job(1)), mustSubmit(t, d, r.job(2))}
		jobs[1].Cancel()
		jobs[1].Cancel()
		expectState(t, jobs[1], StateCanceled, context.Canceled)
		expectStats(t, d, Stats{Workers: 1, Queue: 3, Accepted: 4, Running: 1, Queued: 2, Canceled: 1})
		if n := fill(t, d, r.job(3)); n != 1 {
			t.Errorf("%d accepted into the place of a canceled job, want 1", n)
		}
		close(open)
		synctest.Wait()
		r.expect(t, 0, 2, 3)
		expectStats(t, d, Stats{Workers: 1, Queue: 3, Accepted: 5, Succeeded: 4, Canceled: 1, RefusedFull: 1})
	})
}

// A canceled job must not keep its place until a worker reaches its entry in the
// channel, and such entries must not take the room of jobs.
func TestG7PlaceOfACanceledJobIsFreeAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, l := range []int{1, 2, 3, 4, 7, 100} {
			d := build(t, sized(0, l))
			var r record
			var jobs []*Job
			for i := range l {
				jobs = append(jobs, mustSubmit(t, d, r.job(i)))
			}
			for i := range 10 * l { // the job in each place, again and again
				waiting := make(chan *Job, 1)
				go func() { waiting <- mustSubmit(t, d, r.job(l+i)) }()
				expectStats(t, d, Stats{Queue: l, Queued: l, Blocked: 1, Accepted: uint64(l + i), Canceled: uint64(i)})
				jobs[i%l].Cancel()
				jobs[i%l] = <-waiting
			}
			d.Resize(1)
			synctest.Wait()
			r.expect(t, upTo(11 * l)[10*l:]...)
		}
	})
}

// Many cancels fill the channel with entries that hold no job. However they lie among
// the jobs, and whether the first one has been looked at or not, no job is lost or
// overtaken, and the channel has room for each that is accepted.
func TestG7CompactionKeepsOrder(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 7))
			l := 1 + rng.IntN(70)
			d := build(t, sized(0, l))
			var r record
			var queued []int
			handles := map[int]*Job{}
			for i := range 3000 {
				if len(queued) == l { // a cancel, mostly of one that is not the first
					n := rng.IntN(len(queued))
					handles[queued[n]].Cancel()
					queued = slices.Delete(queued, n, n+1)
				}
				if rng.IntN(9) == 0 {
					d.Stats() // looks at the first one
				}
				handles[i] = mustSubmit(t, d, r.job(i), Reject)
				queued = append(queued, i)
				if rng.IntN(5) == 0 && len(queued) == l {
					n := -1 - i
					handles[n] = mustSubmit(t, d, r.job(n), DropOldest)
					queued = append(queued[1:], n)
				}
				if rng.IntN(40) == 0 { // a burst of them
					for _, n := range queued[len(queued)/2:] {
						handles[n].Cancel()
					}
					queued = queued[:len(queued)/2]
				}
				if st := d.Stats(); st.Queued != len(queued) {
					t.Fatalf("seed %d: %d queued, want %d", seed, st.Queued, len(queued))
				}
			}
			d.Resize(1)
			synctest.Wait()
			r.expect(t, queued...)
		})
	}
}

// A place that a cancel frees goes to the submitter that has waited longest, and a
// canceled job behind a running one wakes whoever waits for it at once.
func TestG7CancelLetsTheFirstIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 2))
		var r record
		open := make(gate)
		mustGo(t, d, open.pass)
		synctest.Wait()
		first, second := mustSubmit(t, d, r.job(0)), mustSubmit(t, d, r.job(1))
		for i := range 3 {
			go d.Go(bg, r.job(10+i))
			synctest.Wait()
		}
		var told error
		go func() { told = second.Wait(bg) }()
		synctest.Wait()
		second.Cancel()
		expectStats(t, d, Stats{Workers: 1, Queue: 2, Accepted: 4, Running: 1, Queued: 2, Blocked: 2, Canceled: 1})
		if told != context.Canceled {
			t.Errorf("Wait: %v", told)
		}
		first.Cancel()
		expectStats(t, d, Stats{Workers: 1, Queue: 2, Accepted: 5, Running: 1, Queued: 2, Blocked: 1, Canceled: 2})
		close(open)
		synctest.Wait()
		r.expect(t, 10, 11, 12)
	})
}

// Cancel on a running job ends its context, whatever the job makes of it.
func TestG7CancelOfARunningJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(3, 3))
		boom := errors.New("boom")
		open := make(gate)
		obeys := mustSubmit(t, d, untilCanceled)
		ignores := mustSubmit(t, d, open.pass)
		fails := mustSubmit(t, d, func(ctx context.Context) error { <-ctx.Done(); return boom })
		synctest.Wait()
		for _, j := range []*Job{obeys, ignores, fails} {
			j.Cancel()
		}
		synctest.Wait()
		expectState(t, obeys, StateCanceled, context.Canceled)
		expectState(t, fails, StateCanceled, context.Canceled)
		expectState(t, fails, StateCanceled, boom)
		expectState(t, ignores, StateRunning, nil) // until its function returns
		close(open)
		synctest.Wait()
		expectState(t, ignores, StateCanceled, context.Canceled)
		expectStats(t, d, Stats{Workers: 3, Queue: 3, Accepted: 3, Canceled: 3})
	})
}

// Cancel may meet the start or the end of a job: the job is canceled or has
// succeeded, never both and never neither.
func TestG7CancelMeetsStartAndEnd(t *testing.T) {
	d := build(t, sized(2, 4))
	var states [8]int
	for range 5000 {
		var ran atomic.Bool
		var ctxErr error
		j := mustSubmit(t, d, func(ctx context.Context) error { ran.Store(true); ctxErr = ctx.Err(); return nil })
		go j.Cancel()
		j.Wait(bg)
		state := j.State()
		states[state]++
		switch {
		case state != StateSucceeded && state != StateCanceled:
			t.Fatalf("ended as %v", state)
		case state == StateSucceeded && (!ran.Load() || ctxErr != nil || j.Err() != nil):
			t.Fatalf("succeeded, ran %v, context %v, error %v", ran.Load(), ctxErr, j.Err())
		case state == StateCanceled && !errors.Is(j.Err(), context.Canceled):
			t.Fatalf("canceled with error %v", j.Err())
		}
	}
	t.Logf("%d succeeded, %d canceled", states[StateSucceeded], states[StateCanceled])
}

// No work is done for a caller that has gone.
func TestG7DoWhoseCallerLeavesBeforeTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 1))
		var r record
		open := make(gate)
		mustGo(t, d, open.pass)
		synctest.Wait()
		ctx, cancel := context.WithCancel(bg)
		first, leave := context.WithCancel(bg)
		var queued, blocked error
		go func() { queued = d.Do(ctx, r.job(0)) }()
		synctest.Wait()
		go func() { blocked = d.Do(first, r.job(1)) }()
		synctest.Wait()
		leave()
		synctest.Wait()
		cancel()
		synctest.Wait()
		if queued != context.Canceled || blocked != context.Canceled {
			t.Errorf("queued: %v, blocked: %v", queued, blocked)
		}
		expectStats(t, d, Stats{Workers: 1, Queue: 1, Accepted: 2, Running: 1, Canceled: 1, RefusedGone: 1})
		close(open)
		synctest.Wait()
		r.expect(t)
		late, cancel := context.WithTimeout(bg, time.Second)
		defer cancel()
		d.Resize(0)
		if err := d.Do(late, r.job(2)); err != context.DeadlineExceeded {
			t.Errorf("past the caller's deadline: %v", err)
		}
		expectStats(t, d, Stats{Queue: 1, Accepted: 3, Succeeded: 1, Canceled: 2, RefusedGone: 1})
	})
}

// If Wait ended the job, it would be a way to cancel by accident.
func TestWaitEndsWithItsContextNotTheJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 1))
		open := make(gate)
		var ctxErr error
		running := mustSubmit(t, d, func(ctx context.Context) error { <-open; ctxErr = ctx.Err(); return nil })
		synctest.Wait()
		queued := mustSubmit(t, d, nop)
		ctx, cancel := context.WithTimeout(bg, time.Second)
		defer cancel()
		for _, j := range []*Job{running, queued} {
			if err := j.Wait(ctx); err != context.DeadlineExceeded {
				t.Errorf("%v", err)
			}
		}
		expectState(t, running, StateRunning, nil)
		expectState(t, queued, StateQueued, nil)
		close(open)
		if err := errors.Join(running.Wait(bg), queued.Wait(bg), ctxErr); err != nil {
			t.Error(err)
		}
		if err := running.Wait(expired); err != nil { // the end is known: it wins
			t.Errorf("Wait for an ended job with an ended context: %v", err)
		}
	})
}

// A closure that outlives the caller of Do would race with it: under the race detector
// this test is about local.
func TestDoNeverLeavesItsClosureRunning(t *testing.T) {
	d := build(t, sized(2, 4))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 1000 {
				local := 0
				ctx, cancel := context.WithCancel(bg)
				if i%2 == 0 {
					go cancel()
				}
				err := d.Do(ctx, func(context.Context) error { local++; return nil })
				local++
				if err == nil && local != 2 || err != nil && err != context.Canceled {
					t.Errorf("%d, %v", local, err)
				}
				cancel()
			}
		})
	}
	wg.Wait()
}
