// Package stamps holds the times at which the jobs in a queue were accepted, since
// a channel does not tell the age of its first element.
package stamps

import (
	"math"
	"math/bits"
	"sync/atomic"
)

// A Cell has the time of one job. It is free, or has the time, or is void: in use
// by a job that was canceled.
type Cell struct{ at atomic.Int64 }

const (
	free = 0
	void = -1
)

// Free makes the cell free, and returns the time that it had.
func (c *Cell) Free() int64 { return c.at.Swap(free) }

// Void makes the time of a cell in use not count any more.
func (c *Cell) Void() { c.at.Store(void) }

// A Set has cells for a number of jobs. Its methods may be called by any number
// of goroutines at once.
//
// The cell of a job is found by its number in the order of acceptance. As jobs
// leave in that order and there are as many cells as places, the first one looked
// at is nearly always free.
type Set struct {
	cells []Cell // a power of two of them
}

// stride is how far away the next cell is looked for. One cell that is held for
// long, by a job on its way to a worker that does not get a processor, would
// otherwise displace all that come after. It is odd, so that every cell is
// reached.
const stride = 67

// New returns a Set with at least n cells.
func New(n int) *Set {
	return &Set{cells: make([]Cell, 1<<bits.Len(uint(max(n, 1)-1)))}
}

// Len returns the number of cells.
func (s *Set) Len() int { return len(s.cells) }

// Claim takes a cell for the job with a number and sets it to at, which must be
// above 0. No more jobs than there are cells may have one.
func (s *Set) Claim(number uint64, at int64) *Cell {
	mask := uint64(len(s.cells) - 1)
	for i := number; ; i += stride {
		c := &s.cells[i&mask]
		if c.at.Load() == free && c.at.CompareAndSwap(free, at) {
			return c
		}
	}
}

// Oldest returns the least of the times, or math.MaxInt64 if there is none.
func (s *Set) Oldest() int64 {
	oldest := int64(math.MaxInt64)
	for i := range s.cells {
		if at := s.cells[i].at.Load(); at > free && at < oldest {
			oldest = at
		}
	}
	return oldest
}
