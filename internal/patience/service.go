// Package patience predicts whether a request can be answered before its answer is
// worth nothing. It differs from a deadline in that it looks ahead: work that would
// end too late is best not begun, since it takes a worker from work that would not.
package patience

import (
	"math"
	"slices"
	"sync"
	"time"
)

// Of how many runs and of which age an estimate is made. The window is short so that
// the estimate follows a service that becomes slow; few keeps it from being made of
// chance where runs are rare. What is older than forget says nothing.
const (
	most   = 512
	few    = 32
	window = 2 * time.Second
	forget = time.Minute

	// often bounds what estimates cost: they are not made anew more often than this.
	often = 10 * time.Millisecond
)

// high is the quantile of the service time that a request must have left when it
// begins.
const high = 0.99

// A Service estimates the service time of what runs. The zero Service knows nothing.
// Its methods may be called by any number of goroutines at once.
type Service struct {
	mu     sync.Mutex // protects the following fields
	runs   [most]run  // a ring
	count  int        // since the beginning
	last   Estimate
	made   time.Time // when last was made
	madeOf int       // count at that time
}

type run struct {
	end  time.Time
	took time.Duration
}

// An Estimate says how long a run takes. It is zero if nothing is known.
type Estimate struct {
	Mean, Deviation, Median, High time.Duration
}

// A Result is what a run came to.
type Result int

const (
	Done   Result = iota // it did what was asked for
	Failed               // it did not
	Cut                  // it was broken off, since its client has left
)

// Ran tells that a run has ended. A run that failed quickly says nothing about how long
// the work takes; one that failed slowly has held its worker for that time, and so
// counts. One that was broken off would have taken longer. Nobody knows how long, so it
// counts twice: then runs begin earlier, until they are not broken off.
func (s *Service) Ran(took time.Duration, r Result) {
	now := time.Now()
	if r == Cut {
		took *= 2
	}
	if r != Done {
		if mean := s.Estimate().Mean; took < mean || mean == 0 && r == Failed {
			return
		}
	}
	s.mu.Lock()
	s.runs[s.count%most] = run{now, max(took, 1)}
	s.count++
	s.mu.Unlock()
}

// Estimate returns the present estimate.
func (s *Service) Estimate() Estimate {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if since := now.Sub(s.made); since >= window/few || s.count != s.madeOf && (since >= often || s.madeOf == 0) {
		s.last, s.made, s.madeOf = estimate(s.recent(now)), now, s.count
	}
	return s.last
}

// Stale reports whether nothing has ended for a while, so that the estimate may be out
// of date.
func (s *Service) Stale() bool {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count == 0 || now.Sub(s.runs[(s.count-1)%most].end) > window/2
}

// recent returns how long the recent runs took.
func (s *Service) recent(now time.Time) []time.Duration {
	var took []time.Duration
	for i := 1; i <= min(s.count, most); i++ {
		r := s.runs[(s.count-i)%most]
		if age := now.Sub(r.end); age > forget || age > window && i > few {
			break
		}
		took = append(took, r.took)
	}
	return took
}

func estimate(took []time.Duration) (e Estimate) {
	if len(took) == 0 {
		return e
	}
	var sum, squares float64
	for _, d := range took {
		sum += float64(d)
	}
	mean := sum / float64(len(took))
	for _, d := range took {
		squares += (float64(d) - mean) * (float64(d) - mean)
	}
	slices.Sort(took)
	at := func(q float64) time.Duration { return took[int(math.Ceil(q*float64(len(took))))-1] }
	return Estimate{time.Duration(mean), time.Duration(math.Sqrt(squares / float64(len(took)))), at(0.5), at(high)}
}

// A Load is what a queue has in it at one moment.
type Load struct {
	Queued  int // jobs that wait for a worker
	Blocked int // and submits that wait for a place
	Running int
	Workers int
	MeanRun time.Duration // of all jobs so far
}

// Waiting returns how many wait, for a worker or for a place.
func (l Load) Waiting() int { return l.Queued + l.Blocked }

// MaxRetryAfter is the most seconds that anybody is asked to wait. Nobody waits longer.
const MaxRetryAfter = 3600

// RetryAfter returns the whole seconds after which the present queue will have been
// worked off: queued · mean service time / workers, at least 1. A paused dispatcher
// counts as one worker. It is at most MaxRetryAfter.
func (l Load) RetryAfter() int {
	// One division, and of whole numbers: rounded twice, 7 s can be 7.000000000000001.
	seconds := float64(l.Queued) * float64(l.MeanRun) / (float64(max(l.Workers, 1)) * float64(time.Second))
	return int(math.Ceil(min(max(seconds, 1), MaxRetryAfter)))
}

// MeanWait predicts how long a job that comes now waits for a worker, from what all jobs
// so far have taken: each worker ends one in a mean run time, and as many must end as are
// before it, and one more. It is 0 if the queue is paused, which may end at any moment.
func (l Load) MeanWait() time.Duration {
	if l.Idle() || l.Workers == 0 {
		return 0
	}
	return time.Duration(float64(l.MeanRun) * float64(l.Waiting()+1) / float64(l.Workers))
}

// Idle reports whether a job that comes now would begin at once.
func (l Load) Idle() bool { return l.Waiting() == 0 && l.Running < l.Workers }

// unlucky is how many standard deviations a wait is assumed to be above its mean. One
// that comes in spite of that is found only when its time is over, which is later than
// a refusal should come.
const unlucky = 4

// No machine is as even as its estimates: waits are taken to be longer by at least one
// part in doubt, and one part in way of the patience is for the way to the client.
const (
	doubt = 10
	way   = 20
)

// Wait predicts how long a job that comes now waits for a worker: each worker ends one
// job in a mean service time, and as many must end as are before it, and one more. It
// is 0 if nothing is known, or if the queue is paused, which may end at any moment.
func (e Estimate) Wait(l Load) time.Duration {
	if l.Idle() || l.Workers == 0 {
		return 0
	}
	ends := float64(l.Waiting() + 1)
	mean := float64(e.Mean) * ends
	margin := max(unlucky*float64(e.Deviation)*math.Sqrt(ends), mean/doubt)
	return time.Duration((mean + margin) / float64(l.Workers))
}

// Need returns how much of a patience a request must have left when it begins. If most
// runs are quick and few are slower than half of the patience, it is that half: it
// would refuse everything for the sake of these few. While the queue is a passing one,
// a good chance is enough: the worker would otherwise soon be idle.
func (e Estimate) Need(patience time.Duration, standing bool) time.Duration {
	need := e.High
	if !standing {
		need = e.Median
	} else if need > patience/2 {
		need = max(patience/2, e.Median)
	}
	return need + patience/way
}
