// Package counts counts what becomes of jobs, and times it, at little cost to
// those who run them.
package counts

import (
	"runtime"
	"sync"
	"time"

	"holdfast/histogram"
)

// What is measured. The benchmarks build the package with one or both of these
// off, to state what each costs (see bench/README.md); nothing else changes them.
const (
	Counting = true // outcomes, and what is queued and running
	Timing   = true // waits, run times and the age of the queue
)

// States is the number of states that a job can be in.
const States = 8

// A Shard is a part of the counts. Workers are spread over the shards, so that
// they seldom meet; its lock is taken once a job and is cheaper than the atomic
// additions that it replaces.
type Shard struct {
	sync.Mutex // protects the following fields
	Started    uint64
	Ended      [States]uint64
	Unstarted  uint64 // ended without having started
	Vacated    int    // canceled in the queue, less those that a worker has reached
	Wait, Run  histogram.Histogram

	_ [64]byte // the next shard is on a cache line of its own
}

// Begin counts a job that starts after a wait of so many nanoseconds.
func (s *Shard) Begin(wait int64) {
	if Counting {
		s.Started++
	}
	if Timing {
		s.Wait.Add(time.Duration(wait))
	}
}

// End counts a job that has run for so many nanoseconds and ends in state.
func (s *Shard) End(state int, run int64) {
	if Counting {
		s.Ended[state]++
	}
	if Timing {
		s.Run.Add(time.Duration(run))
	}
}

// EndUnstarted counts a job that ends in state without having started.
func (s *Shard) EndUnstarted(state int) {
	s.Ended[state]++
	s.Unstarted++
}

// Counts are all shards. While all of them are locked, no job begins or ends.
type Counts struct {
	shards []Shard // the first is for whoever is not a worker
}

// New returns Counts of nothing.
func New() Counts {
	return Counts{make([]Shard, 1+min(4*runtime.GOMAXPROCS(0), 64))}
}

// Others returns the shard of whoever is not a worker.
func (c *Counts) Others() *Shard { return &c.shards[0] }

// Worker returns the shard of the nth worker.
func (c *Counts) Worker(n int) *Shard { return &c.shards[1+n%(len(c.shards)-1)] }

// Freeze calls f while no job begins or ends.
func (c *Counts) Freeze(f func()) {
	for i := range c.shards {
		c.shards[i].Lock()
	}
	f()
	for i := range c.shards {
		c.shards[i].Unlock()
	}
}

// A Sum is what the shards have counted together.
type Sum struct {
	Accepted                 uint64
	Queued, Running, Vacated int
	Ended                    [States]uint64
	MeanRun                  time.Duration
}

// Sum adds the shards up. They must be frozen. accepted is the number of jobs
// accepted so far, modulo some number.
func (c *Counts) Sum(accepted, modulo uint64) Sum {
	var t Sum
	var run histogram.Histogram
	var ended, started, unstarted uint64
	for i := range c.shards {
		s := &c.shards[i]
		for state, n := range s.Ended {
			t.Ended[state] += n
			ended += n
		}
		started += s.Started
		unstarted += s.Unstarted
		t.Vacated += s.Vacated
		run.Count += s.Run.Count
		run.Sum += s.Run.Sum
	}
	// No job is counted as ended that is not accepted.
	t.Accepted = ended + (accepted-ended)%modulo
	t.Running = int(started - (ended - unstarted))
	t.Queued = int(t.Accepted - ended - uint64(t.Running))
	t.MeanRun = run.Mean()
	return t
}

// Timings adds the histograms up. The shards must be frozen.
func (c *Counts) Timings() (wait, run histogram.Histogram) {
	for i := range c.shards {
		wait.Merge(&c.shards[i].Wait)
		run.Merge(&c.shards[i].Run)
	}
	return wait, run
}
