package holdfast

import (
	"time"

	"holdfast/histogram"
)

// Stats is a snapshot of a Dispatcher. It is exact: the numbers are those by which
// the dispatcher decides, so in every snapshot
//
//	Accepted = Queued + Running + Succeeded + Failed + Panicked + Canceled + Dropped + Abandoned
//
// and 0 <= Queued <= Queue, 0 <= Running <= Workers. After a shrink, until the
// surplus workers have finished what they run, Running may be up to the number of
// workers there were.
type Stats struct {
	Workers  int      // as set by New or Resize; 0 when a shutdown needs no more of them
	Queue    int      // places for jobs that wait
	Overflow Overflow // as set by New or SetOverflow

	Accepted uint64 // jobs since New
	Queued   int    // jobs that wait for a worker
	Running  int    // jobs that were handed to a worker and have not ended
	Blocked  int    // submitters that wait for a place

	// Ended jobs since New, by outcome.
	Succeeded, Failed, Panicked, Canceled, Dropped, Abandoned uint64

	// Submits since New that were not accepted, by reason.
	RefusedFull   uint64 // ErrQueueFull
	RefusedClosed uint64 // ErrClosed
	RefusedNested uint64 // ErrNested
	RefusedGone   uint64 // the context ended first
	RefusedShare  uint64 // ErrShare
	RefusedLate   uint64 // ErrLate

	// OldestAge is how long ago the longest-waiting queued job was accepted, 0 if
	// none is queued.
	OldestAge time.Duration

	Wait histogram.Histogram // from acceptance to the hand-over, of jobs that have started
	Run  histogram.Histogram // from the hand-over to the end, of jobs that have started and ended
}

// Stats returns a snapshot. It takes about a microsecond, during which no job starts
// or ends.
func (d *Dispatcher) Stats() Stats {
	d.lock()
	defer d.mu.Unlock()
	st := d.stats
	if st.Queued > 0 {
		st.OldestAge = time.Duration(max(d.now()-d.firstLocked().at, 0))
	}
	return st
}

// ended returns the counter of the jobs that ended in state.
func (st *Stats) ended(state State) *uint64 {
	switch state {
	case StateSucceeded:
		return &st.Succeeded
	case StateFailed:
		return &st.Failed
	case StatePanicked:
		return &st.Panicked
	case StateCanceled:
		return &st.Canceled
	case StateDropped:
		return &st.Dropped
	}
	return &st.Abandoned
}

// timing says that waits, run times and the age of the queue are measured. A benchmark
// builds the package without it, to state what it costs (see bench/README.md); nothing
// else changes it.
const timing = true

// now returns the time since New in nanoseconds. It reads the monotonic clock alone,
// at half the cost of time.Now.
func (d *Dispatcher) now() int64 {
	if !timing {
		return 0
	}
	return int64(time.Since(d.epoch))
}
