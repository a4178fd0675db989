// Package later holds what waits for its time. Beside a timer for each, a Room knows how
// many wait and bounds them, and lets those whose time has come go in one after the other.
package later

import (
	"container/heap"
	"sync"
	"time"
)

// A Room holds items until their time has come. Then it calls Enter of each, in the order
// of urgency, and where that is the same, of their times. One goroutine at most does that,
// and there is none while nothing is due: so an Enter that blocks holds back the others,
// which stay in the room. Create a Room with New. Its methods may be called by any number
// of goroutines at once, and none of them blocks.
//
// Those whose times others have named are bounded apart from the rest: whoever names times
// that are far ahead must not take the room of those who have come in otherwise.
type Room struct {
	max      int
	maxBytes int64

	mu       sync.Mutex // protects the following fields and those of every Item that is in the room
	waiting  queue      // the earliest first
	due      queue      // the most urgent first
	timer    *time.Timer
	entering bool // a goroutine is letting items in
	closed   bool
	added    uint64
	named    int   // items with Named
	bytes    int64 // of these
}

// An Item is what waits in a Room. Its exported fields are set before it is added, and not
// changed while it is in the room. It may be added again when it has left.
type Item struct {
	Urgency int    // the lower goes first
	Enter   func() // called when it has left the room, since its time has come
	Owner   any    // whatever whoever closes the room is to know
	Named   bool   // its time was named by somebody who is not to be trusted
	Size    int64  // of one that was named, in bytes

	at    time.Time
	order uint64 // of the items that were added
	in    *queue // nil: it is in no room
	index int
}

// New returns an empty Room. It has room for max items that are Named, which have maxBytes
// at most, and is full when there are max others.
func New(max int, maxBytes int64) *Room {
	r := &Room{max: max, maxBytes: maxBytes}
	r.waiting.less = func(a, b *Item) bool {
		return a.at.Before(b.at) || a.at.Equal(b.at) && a.order < b.order
	}
	r.due.less = func(a, b *Item) bool {
		return a.Urgency < b.Urgency || a.Urgency == b.Urgency && r.waiting.less(a, b)
	}
	return r
}

// Add lets it wait until a time, and reports whether there was room. Without must it has to
// be Named; with must there is room, however many are there. A closed Room has none.
func (r *Room) Add(it *Item, at time.Time, must bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || !must && (r.named >= r.max || r.bytes+it.Size > r.maxBytes) {
		return false
	}
	r.countLocked(it, 1)
	r.added++
	it.at, it.order = at, r.added
	heap.Push(&r.waiting, it)
	if it.index == 0 {
		r.waitLocked()
	}
	return true
}

// Remove takes it out of the room, and reports whether it was there. If not, Enter has been
// called, or is about to be.
func (r *Room) Remove(it *Item) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if it.in == nil {
		return false
	}
	heap.Remove(it.in, it.index)
	r.countLocked(it, -1)
	return true
}

// Len returns how many items are in the room.
func (r *Room) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lenLocked()
}

// Full reports whether there are max items or more that are not Named.
func (r *Room) Full() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lenLocked()-r.named >= r.max
}

// countLocked counts n items like it.
func (r *Room) countLocked(it *Item, n int) {
	if it.Named {
		r.named += n
		r.bytes += int64(n) * it.Size
	}
}

// Closed reports whether Close was called.
func (r *Room) Closed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed
}

// Close empties the room and lets nothing in any more. It returns what was there, those
// that were due before the others.
func (r *Room) Close() (left []*Item) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	if r.timer != nil {
		r.timer.Stop()
	}
	for _, q := range []*queue{&r.due, &r.waiting} {
		for len(q.items) > 0 {
			it := heap.Pop(q).(*Item)
			r.countLocked(it, -1)
			left = append(left, it)
		}
	}
	return left
}

func (r *Room) lenLocked() int { return len(r.waiting.items) + len(r.due.items) }

// waitLocked sets the timer to the time of the earliest item.
func (r *Room) waitLocked() {
	if r.entering || len(r.waiting.items) == 0 {
		return // whoever is letting items in sets it in the end
	}
	left := time.Until(r.waiting.items[0].at)
	if r.timer == nil {
		r.timer = time.AfterFunc(left, r.let)
		return
	}
	r.timer.Reset(left)
}

// let lets in what is due. The timer may call it although another call is under way.
func (r *Room) let() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.entering {
		return
	}
	r.entering = true
	for it := r.nextLocked(); it != nil; it = r.nextLocked() {
		r.mu.Unlock()
		it.Enter()
		r.mu.Lock()
	}
	r.entering = false
	r.waitLocked()
}

// nextLocked takes out the item that is the next to go in, or returns nil if none is due.
func (r *Room) nextLocked() *Item {
	now := time.Now()
	for len(r.waiting.items) > 0 && !r.waiting.items[0].at.After(now) {
		heap.Push(&r.due, heap.Pop(&r.waiting))
	}
	if len(r.due.items) == 0 {
		return nil
	}
	it := heap.Pop(&r.due).(*Item)
	r.countLocked(it, -1)
	return it
}

// A queue is a heap of items that know where they are in it.
type queue struct {
	items []*Item
	less  func(a, b *Item) bool
}

// Len implements heap.Interface, as the following methods do.
func (q *queue) Len() int { return len(q.items) }

func (q *queue) Less(i, j int) bool { return q.less(q.items[i], q.items[j]) }

func (q *queue) Swap(i, j int) {
	q.items[i], q.items[j] = q.items[j], q.items[i]
	q.items[i].index, q.items[j].index = i, j
}

func (q *queue) Push(x any) {
	it := x.(*Item)
	it.in, it.index = q, len(q.items)
	q.items = append(q.items, it)
}

func (q *queue) Pop() any {
	last := len(q.items) - 1
	it := q.items[last]
	q.items[last] = nil
	q.items = q.items[:last]
	it.in = nil
	return it
}
