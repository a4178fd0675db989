package line

import (
	"container/heap"
	"slices"
)

// A flow that waits is in two heaps of its level.
const (
	byDue = iota
	byLength
)

// A flowHeap holds the flows of a level that wait. Each of them knows its position.
type flowHeap[T any] struct {
	which  int // of a flow's positions
	before func(a, b *flow[T]) bool
	flows  []*flow[T]
}

func sooner[T any](a, b *flow[T]) bool {
	if a.due != b.due {
		return a.due < b.due
	}
	return a.order < b.order
}

func longer[T any](a, b *flow[T]) bool { return a.items.n > b.items.n }

func (h *flowHeap[T]) push(f *flow[T])   { heap.Push(h, f) }
func (h *flowHeap[T]) fix(f *flow[T])    { heap.Fix(h, f.at[h.which]) }
func (h *flowHeap[T]) remove(f *flow[T]) { heap.Remove(h, f.at[h.which]) }

// most returns the first n flows in order. A flow comes after the one above it, so only
// those below the ones already found can be next.
func (h *flowHeap[T]) most(n int) []*flow[T] {
	var found []*flow[T]
	next := h.flows[:min(1, len(h.flows))]
	for len(found) < n && len(next) > 0 {
		best := 0
		for i := range next {
			if h.before(next[i], next[best]) {
				best = i
			}
		}
		f := next[best]
		found = append(found, f)
		below := 2*f.at[h.which] + 1
		next = slices.Concat(next[:best], next[best+1:], h.flows[min(below, len(h.flows)):min(below+2, len(h.flows))])
	}
	return found
}

// Len, Less, Swap, Push and Pop implement heap.Interface.

func (h *flowHeap[T]) Len() int           { return len(h.flows) }
func (h *flowHeap[T]) Less(i, j int) bool { return h.before(h.flows[i], h.flows[j]) }

func (h *flowHeap[T]) Swap(i, j int) {
	h.flows[i], h.flows[j] = h.flows[j], h.flows[i]
	h.flows[i].at[h.which], h.flows[j].at[h.which] = i, j
}

func (h *flowHeap[T]) Push(f any) {
	f.(*flow[T]).at[h.which] = len(h.flows)
	h.flows = append(h.flows, f.(*flow[T]))
}

func (h *flowHeap[T]) Pop() any {
	last := len(h.flows) - 1
	f := h.flows[last]
	h.flows[last] = nil
	h.flows = h.flows[:last]
	return f
}
