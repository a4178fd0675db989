package command

import (
	"math"
	"os"
	"runtime/debug"
)

// limitHeap makes the budget the garbage collector's soft limit, unless GOMEMLIMIT sets
// one. Left alone, the collector lets the heap grow to twice what is in use before it
// runs: the process would take twice the budget when that is used up. Far below the limit
// nothing changes. Near it the collector runs more often, but never takes
// more than half of the processors; and since what is held is mostly bodies, in which
// there are no pointers, each of its runs is short. It needs some memory to work with:
// requests that are refused take memory too, until the collector has run. That is the
// sixteenth of the budget which nothing large can have, and 16 MiB at least.
func limitHeap(budget int64) {
	if os.Getenv("GOMEMLIMIT") == "" && budget < math.MaxInt64/2 {
		debug.SetMemoryLimit(budget + max(16<<20-budget/16, 0))
	}
}
