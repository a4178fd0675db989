package holdfast

import (
	"time"

	"holdfast/histogram"
	"holdfast/internal/line"
)

// Stats is a snapshot of a Dispatcher. It is exact: the numbers are those by which
// the dispatcher decides, so in every snapshot
//
//	Accepted = Queued + Running + Succeeded + Failed + Panicked + Canceled + Dropped + Abandoned
//
// and 0 <= Queued <= Queue, 0 <= Running <= Workers. After a shrink, until the
// surplus workers have finished what they run, Running may be up to the number of
// workers there were. After a restart of a durable server with fewer places than before,
// Queued may be more than Queue.
type Stats struct {
	Workers  int      // Workers is what New or Resize has set, and 0 once a shutdown needs none.
	Queue    int      // Queue is the number of places for jobs that wait.
	Overflow Overflow // Overflow is what New or SetOverflow has set.

	Accepted uint64 // Accepted counts the jobs that were accepted since New.
	Queued   int    // Queued is the number of jobs that wait for a worker.
	Running  int    // Running is the number of jobs that were handed to a worker and have not ended.
	Blocked  int    // Blocked is the number of submitters that wait for a place.

	// These count the jobs that have ended since New, by outcome.
	Succeeded, Failed, Panicked, Canceled, Dropped, Abandoned uint64

	// These count the submits since New that were not accepted, by reason.
	RefusedFull   uint64 // The submit got ErrQueueFull.
	RefusedClosed uint64 // The submit got ErrClosed.
	RefusedNested uint64 // The submit got ErrNested.
	RefusedGone   uint64 // The context of the submit ended first.
	RefusedShare  uint64 // The submit got ErrShare.
	RefusedLate   uint64 // The submit got ErrLate, or Jobs refused a request for its patience when it came.

	// OldestAge is how long ago the longest-waiting queued job was accepted, 0 if
	// none is queued.
	OldestAge time.Duration

	Wait histogram.Histogram // Wait has the times from acceptance to the hand-over, of jobs that have started.
	Run  histogram.Histogram // Run has the times from the hand-over to the end, of jobs that have ended after it.
}

// Stats returns a snapshot. It takes about a microsecond, during which no job starts
// or ends.
func (d *Dispatcher) Stats() Stats {
	d.lock()
	defer d.mu.Unlock()
	st := d.stats
	st.OldestAge = d.oldestLocked()
	return st
}

// UrgencyStats says what there is at one urgency, and what became of the rest since New.
type UrgencyStats struct {
	Urgency   int           // Urgency is that of Class.
	Queued    int           // Queued is the number of jobs that wait for a worker.
	OldestAge time.Duration // OldestAge is how long the first of them has waited, 0 if none is queued.
	UrgencyCounts
	Clients []ClientStats // Clients are at most 10 with the most queued jobs, the one with most first.
}

// UrgencyCounts counts the jobs of one urgency that have come to nothing.
type UrgencyCounts struct {
	RefusedFull, RefusedShare, RefusedLate, RefusedClosed uint64 // These count as in Stats.

	Dropped uint64 // Dropped counts as in Stats.
	Expired uint64 // Expired counts the jobs that were not begun within their patience.
	InVain  uint64 // InVain counts requests of Queued that were begun, and whose client left before the answer.
}

// ClientStats says what one client has.
type ClientStats struct {
	Client          string // Client is its name; a long one is hashed.
	Queued, Running int    // Queued and Running are its numbers of jobs of one urgency.
}

// Urgencies returns a snapshot by urgency, the most urgent first, without those of which
// there has been nothing.
func (d *Dispatcher) Urgencies() []UrgencyStats {
	d.lock()
	defer d.mu.Unlock()
	var all []UrgencyStats
	for u, counts := range d.urgencies {
		s := UrgencyStats{Urgency: line.Normal - u, UrgencyCounts: counts}
		if d.line == nil && u == line.Normal {
			s.Queued, s.OldestAge = d.stats.Queued, d.oldestLocked()
		} else if d.line != nil {
			s.Queued = d.line.Waiting(u)
			if i := d.line.OldestOf(u); i != nil {
				s.OldestAge = time.Duration(max(d.now()-i.Value.at, 0))
			}
			for _, c := range d.line.Most(u, 10) {
				s.Clients = append(s.Clients, ClientStats{c.Client, c.Waiting, c.Running})
			}
		}
		if s.Queued > 0 || counts != (UrgencyCounts{}) || u == line.Normal {
			all = append(all, s)
		}
	}
	return all
}

// oldestLocked returns how long the job that has waited longest has done so.
func (d *Dispatcher) oldestLocked() time.Duration {
	if d.stats.Queued == 0 {
		return 0
	}
	return time.Duration(max(d.now()-d.firstLocked().at, 0))
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

// timing says that the clock is read. A benchmark builds the package without it, to state
// what it costs (see bench/README.md); nothing else changes it, since time-outs, shares
// and predictions need the clock.
const timing = true

// now returns the time since New in nanoseconds. It reads the monotonic clock alone,
// at half the cost of time.Now.
func (d *Dispatcher) now() int64 {
	if !timing {
		return 0
	}
	return int64(time.Since(d.epoch))
}
