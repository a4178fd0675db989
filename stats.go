package holdfast

import (
	"math"
	"math/bits"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
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

	Wait Histogram // from acceptance to start, of jobs that have started
	Run  Histogram // from start to end, of jobs that have started and ended
}

// Stats returns a snapshot. It holds up the ends and starts of jobs while it
// is taken, some microseconds, or some milliseconds with millions of places.
func (d *Dispatcher) Stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	st := Stats{
		Workers:       d.target,
		Queue:         d.places,
		Blocked:       d.blocked.n,
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
			st.Wait.merge(&d.shards[i].wait)
			st.Run.merge(&d.shards[i].run)
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
	wait, run Histogram

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
		s.wait.add(wait)
	}
}

func (s *shard) end(state State, run int64) {
	if counting {
		s.ended[state]++
	}
	if timing {
		s.run.add(run)
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

// stamps hold the times at which the queued jobs were accepted, one cell for
// each, since a channel does not tell the age of its first element. A cell is
// free, has the time, or is void: in use by a job that was canceled.
//
// The cell of a job is found by its number in the order of acceptance. As jobs
// leave in that order and there are as many cells as places, the first one
// looked at is nearly always free.
type stamps struct {
	cells []atomic.Int64 // a power of two of them
}

const (
	stampFree = 0
	stampVoid = -1

	// stride is how far away the next cell is looked for. One cell that is held
	// for long, by a job on its way to a worker that does not get a processor,
	// would otherwise displace all that come after. It is odd, so that every cell
	// is reached.
	stride = 67
)

func newStamps(places int) *stamps {
	return &stamps{cells: make([]atomic.Int64, 1<<bits.Len(uint(max(places, 1)-1)))}
}

func (s *stamps) len() int { return len(s.cells) }

func (s *stamps) claim(number uint64, now int64) *atomic.Int64 {
	mask := uint64(len(s.cells) - 1)
	for i := number; ; i += stride {
		c := &s.cells[i&mask]
		if !timing || c.Load() == stampFree && c.CompareAndSwap(stampFree, now) {
			return c
		}
	}
}

// unclaim frees a cell and returns the time that it had.
func unclaim(cell *atomic.Int64) int64 {
	if !timing {
		return 1
	}
	return cell.Swap(stampFree)
}

func (d *Dispatcher) oldestAge() time.Duration {
	now := d.now()
	oldest := now
	for _, s := range d.allStamps {
		for i := range s.cells {
			if at := s.cells[i].Load(); at > stampFree && at < oldest {
				oldest = at
			}
		}
	}
	return time.Duration(now - oldest)
}

// A Histogram counts durations in buckets whose bounds are at most an eighth
// apart, from 1 ns to 39 hours; what is longer counts in the last one.
type Histogram struct {
	Count   uint64
	Sum     float64 // of the durations, in nanoseconds
	buckets [buckets]uint64
}

const (
	subBits = 3 // each power of two is divided into 8
	maxBits = 47
	buckets = (maxBits - subBits + 1) << subBits
)

func (h *Histogram) add(ns int64) {
	ns = max(ns, 0) // the queue's clock was read before the worker's, on another processor
	h.Count++
	h.Sum += float64(ns)
	h.buckets[bucket(uint64(ns))]++
}

func bucket(ns uint64) int {
	shift := max(bits.Len64(ns)-subBits-1, 0)
	return min(shift<<subBits+int(ns>>shift), buckets-1)
}

// upper returns the greatest duration that falls into bucket i, in nanoseconds.
func upper(i int) int64 {
	if i < 1<<subBits {
		return int64(i)
	}
	shift := i>>subBits - 1
	return int64(i-shift<<subBits+1)<<shift - 1
}

func (h *Histogram) merge(o *Histogram) {
	h.Count += o.Count
	h.Sum += o.Sum
	for i, n := range o.buckets {
		h.buckets[i] += n
	}
}

// Mean returns the mean duration, or 0 if there is none.
func (h *Histogram) Mean() time.Duration {
	if h.Count == 0 {
		return 0
	}
	if mean := math.Round(h.Sum / float64(h.Count)); mean < math.MaxInt64 {
		return time.Duration(mean)
	}
	return math.MaxInt64
}

// Quantile returns the duration that a share q of the durations do not exceed,
// too high by an eighth at most. q is taken as 0 if below or not a number, as 1
// if above. Without durations it returns 0.
func (h *Histogram) Quantile(q float64) time.Duration {
	if h.Count == 0 {
		return 0
	}
	rank := uint64(1)
	if q > 0 {
		rank = max(uint64(math.Ceil(min(q, 1)*float64(h.Count))), 1)
	}
	i := 0
	for seen := h.buckets[0]; seen < rank && i < buckets-1; seen += h.buckets[i] {
		i++
	}
	return time.Duration(upper(i))
}
