package command

import (
	"math"
	"os"
	"runtime/debug"
)

// limitHeap sets the garbage collector's soft limit a sixteenth beyond the budget, unless
// GOMEMLIMIT sets one. Left alone, the collector lets the heap grow to twice what is in
// use before it runs: the process would take twice the budget when that is used up. Far
// below the limit nothing changes. Near it the collector runs more often, but never takes
// more than half of the processors; and since what is held is mostly bodies, in which
// there are no pointers, each of its runs is short. The sixteenth is what it needs to work
// with: requests that are refused take memory too, until the collector has run.
func limitHeap(budget int64) {
	if os.Getenv("GOMEMLIMIT") == "" && budget < math.MaxInt64/2 {
		debug.SetMemoryLimit(budget + max(budget/16, 16<<20))
	}
}
