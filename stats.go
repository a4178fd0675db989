package holdfast

import (
	"time"

	"holdfast/histogram"
	"holdfast/internal/counts"
	"holdfast/internal/stamps"
)

// Stats is a snapshot of a Dispatcher. It is exact: no job ends or starts while
// it is taken, so that in every snapshot
//
//	Accepted = Queued + Running + Succeeded + Failed + Panicked + Canceled + Dropped + Abandoned
//
// and 0 <= Queued <= Queue, 0 <= Running <= Workers; after a shrink, until the
// surplus workers have finished what they run, Running may be up to the number
// of workers there were.
type Stats struct {
	Workers  int      // as set by New or Resize; 0 when a shutdown needs them no more
	Queue    int      // places for jobs that wait
	Overflow Overflow // as set by New or SetOverflow

	Accepted uint64 // jobs since New
	Queued   int    // jobs that wait for a worker
	Running  int    // jobs in the hands of workers; a job on its way to an idle one counts here when the queue is full
	Vacated  int    // places in the queue that canceled jobs hold until a worker reaches them
	Blocked  int    // submitters that wait for a place

	// Ended jobs since New, by outcome.
	Succeeded, Failed, Panicked, Canceled, Dropped, Abandoned uint64

	// Submits since New that were not accepted, by reason.
	RefusedFull   uint64 // ErrQueueFull
	RefusedClosed uint64 // ErrClosed
	RefusedNested uint64 // ErrNested
	RefusedGone   uint64 // the context ended first

	// OldestAge is how long ago the longest-waiting queued job was accepted; 0
	// if none is queued. Canceled jobs do not count, nor does a submit that has
	// not returned yet.
	OldestAge time.Duration

	Wait histogram.Histogram // from acceptance to start, of jobs that have started
	Run  histogram.Histogram // from start to end, of jobs that have started and ended
}

// Stats returns a snapshot. It holds up the ends and starts of jobs while it
// is taken, some microseconds, or some milliseconds with millions of places.
func (d *Dispatcher) Stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	st := Stats{
		Workers:       d.target,
		Queue:         d.places,
		Overflow:      Overflow(d.overflow.Load()),
		Blocked:       d.blocked.Len(),
		RefusedFull:   d.refusedFull.Load(),
		RefusedClosed: d.refusedClosed.Load(),
		RefusedNested: d.refusedNested.Load(),
		RefusedGone:   d.refusedGone.Load(),
	}
	var t counts.Sum
	d.counts.Freeze(func() {
		t = d.sumFrozen()
		st.Wait, st.Run = d.counts.Timings()
		st.OldestAge = d.oldestAge()
	})
	// Beyond the places of the queue are only jobs on their way to workers that
	// are idle.
	passing := min(max(t.Queued+t.Vacated-d.places, 0), t.Queued)
	st.Accepted = t.Accepted
	st.Queued, st.Running, st.Vacated = t.Queued-passing, t.Running+passing, t.Vacated
	if st.Queued == 0 {
		st.OldestAge = 0 // what has a stamp is on its way
	}
	st.Succeeded, st.Failed, st.Panicked = t.Ended[Succeeded], t.Ended[Failed], t.Ended[Panicked]
	st.Canceled, st.Dropped, st.Abandoned = t.Ended[Canceled], t.Ended[Dropped], t.Ended[Abandoned]
	return st
}

// sum counts at one moment. d.mu must be held.
func (d *Dispatcher) sum() (t counts.Sum) {
	d.counts.Freeze(func() { t = d.sumFrozen() })
	return t
}

func (d *Dispatcher) sumFrozen() counts.Sum {
	return d.counts.Sum(d.word.Load()/oneAccepted, 1<<64/oneAccepted) // the word has the lower bits alone
}

// now returns the time since New in nanoseconds, and 1 at least, since a stamp
// of 0 means none. It reads the monotonic clock alone, at half the cost of
// time.Now.
func (d *Dispatcher) now() int64 {
	if !counts.Timing {
		return 1
	}
	return max(int64(time.Since(d.epoch)), 0) + 1
}

// at returns the time that the dispatcher's clock calls now.
func (d *Dispatcher) at(now int64) time.Time { return d.epoch.Add(time.Duration(now - 1)) }

// unstamped is the stamp of all jobs when timing is off.
var unstamped stamps.Cell

func (d *Dispatcher) oldestAge() time.Duration {
	now := d.now()
	oldest := now
	for _, s := range d.allStamps {
		oldest = min(oldest, s.Oldest())
	}
	return time.Duration(now - oldest)
}
