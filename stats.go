package holdfast

import (
	"runtime"
	"sync"
	"time"

	"holdfast/histogram"
	"holdfast/internal/stamps"
)

// What is measured. The benchmarks build the package with one or both of these
// off, to state what each costs (see bench/README.md); nothing else changes them.
const (
	counting = true // outcomes, and what is queued and running
	timing   = true // waits, run times and the age of the queue
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
	Workers int // as set by New or Resize
	Queue   int // places for jobs that wait

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
		Blocked:       d.blocked.Len(),
		RefusedFull:   d.refusedFull.Load(),
		RefusedClosed: d.refusedClosed.Load(),
		RefusedNested: d.refusedNested.Load(),
		RefusedGone:   d.refusedGone.Load(),
	}
	if d.closed {
		st.Workers = 0
	}
	var t tally
	d.freeze(func() {
		t = d.tallyFrozen()
		for i := range d.shards {
			st.Wait.Merge(&d.shards[i].wait)
			st.Run.Merge(&d.shards[i].run)
		}
		st.OldestAge = d.oldestAge()
	})
	// Beyond the places of the queue are only jobs on their way to workers that
	// are idle.
	passing := min(max(t.queued+t.vacated-d.places, 0), t.queued)
	st.Accepted = t.accepted
	st.Queued, st.Running, st.Vacated = t.queued-passing, t.running+passing, t.vacated
	if st.Queued == 0 {
		st.OldestAge = 0 // what has a stamp is on its way
	}
	st.Succeeded, st.Failed, st.Panicked = t.ended[Succeeded], t.ended[Failed], t.ended[Panicked]
	st.Canceled, st.Dropped, st.Abandoned = t.ended[Canceled], t.ended[Dropped], t.ended[Abandoned]
	return st
}

// A shard is a part of the counts. Workers are spread over the shards, so that
// they seldom meet; its lock is taken once a job and is cheaper than the atomic
// additions that it replaces.
//
// All shards locked is the state in which no job begins or ends. Lock order:
// Dispatcher.mu, shards in their order, Job.mu.
type shard struct {
	mu        sync.Mutex // protects the following fields
	started   uint64
	ended     [states]uint64
	unstarted uint64 // ended without having started
	vacated   int    // canceled in the queue, less those that a worker has reached
	wait, run histogram.Histogram

	_ [64]byte // the next shard is on a cache line of its own
}

func newShards() []shard { return make([]shard, 1+min(4*runtime.GOMAXPROCS(0), 64)) }

// others returns the shard of whoever is not a worker.
func (d *Dispatcher) others() *shard { return &d.shards[0] }

func (s *shard) begin(wait int64) {
	if counting {
		s.started++
	}
	if timing {
		s.wait.Add(time.Duration(wait))
	}
}

func (s *shard) end(state State, run int64) {
	if counting {
		s.ended[state]++
	}
	if timing {
		s.run.Add(time.Duration(run))
	}
}

func (s *shard) endUnstarted(state State) {
	s.ended[state]++
	s.unstarted++
}

// freeze calls f while no job begins or ends.
func (d *Dispatcher) freeze(f func()) {
	for i := range d.shards {
		d.shards[i].mu.Lock()
	}
	f()
	for i := range d.shards {
		d.shards[i].mu.Unlock()
	}
}

// A tally is what the shards and the admission word say together.
type tally struct {
	accepted                 uint64
	queued, running, vacated int
	ended                    [states]uint64
}

// tally counts at one moment. d.mu must be held.
func (d *Dispatcher) tally() (t tally) {
	d.freeze(func() { t = d.tallyFrozen() })
	return t
}

func (d *Dispatcher) tallyFrozen() tally {
	var t tally
	var ended, started, unstarted uint64
	for i := range d.shards {
		s := &d.shards[i]
		for state, n := range s.ended {
			t.ended[state] += n
			ended += n
		}
		started += s.started
		unstarted += s.unstarted
		t.vacated += s.vacated
	}
	// The word has the lower bits of the number; no job is counted as ended
	// that is not accepted.
	t.accepted = ended + (d.word.Load()/oneAccepted-ended)%(1<<64/oneAccepted)
	t.running = int(started - (ended - unstarted))
	t.queued = int(t.accepted - ended - uint64(t.running))
	return t
}

// now returns the time since New in nanoseconds, and 1 at least, since a stamp
// of 0 means none. It reads the monotonic clock alone, at half the cost of
// time.Now.
func (d *Dispatcher) now() int64 {
	if !timing {
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
