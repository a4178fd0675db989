// Package budget bounds the memory that is held for clients. Whatever holds some has a
// Hold, or a part of a Shared if several hold it, and gives it back when it lets go.
//
// # Invariants
//
// Each byte is in one Hold or in one Shared at a time, and is given back once: a Hold
// that is closed takes nothing any more. A reservation never leads beyond the limit, nor a
// large one into the last part of it: a few large ones could else leave nothing for the
// many small ones, such as the short response of a job that was accepted long ago.
// What is there already, and cannot be refused, is added all the same: what is over the
// limit by that is refused to others.
package budget

import (
	"net/http"
	"sync/atomic"

	"holdfast/internal/wrapped"
)

// A Budget is a number of bytes and how many of them are held. Its methods may be called
// by any number of goroutines at once. A nil Budget has no limit, and counts nothing.
type Budget struct {
	limit   int64
	yield   func(need int64, enough func() bool)
	again   func() int
	held    atomic.Int64
	refused atomic.Uint64
}

// New returns a Budget of limit bytes. Before it refuses, it calls yield, which is to
// let go of what can be had again or is only kept, until enough reports true or there is
// no more; of nothing, if there is not about as much as need. again returns the seconds
// after which it makes sense to try again. Either may be nil.
func New(limit int64, yield func(need int64, enough func() bool), again func() int) *Budget {
	return &Budget{limit: limit, yield: yield, again: again}
}

// A reservation of more than small bytes leaves one part of so many of the limit free.
const (
	small = 16 << 10
	parts = 16
)

// try takes n bytes if they are there below limit.
func (b *Budget) try(n, limit int64) bool {
	for {
		held := b.held.Load()
		if n > limit-held {
			return false
		}
		if b.held.CompareAndSwap(held, held+n) {
			return true
		}
	}
}

func (b *Budget) reserve(n int64, large bool) bool {
	if b == nil {
		return true
	}
	limit := b.limit
	if large {
		limit -= limit / parts
	}
	if b.try(n, limit) {
		return true
	}
	if b.yield == nil || n > limit {
		return false
	}
	taken := false
	b.yield(n+b.held.Load()-limit, func() bool {
		taken = taken || b.try(n, limit)
		return taken
	})
	return taken || b.try(n, limit)
}

// Part returns the part of the limit that large reservations leave free.
func (b *Budget) Part() int64 {
	if b == nil {
		return 0
	}
	return b.limit / parts
}

// Add counts n bytes that are there whatever the limit says. If n is negative, they are
// not any more.
func (b *Budget) Add(n int64) {
	if b != nil {
		b.held.Add(n)
	}
}

// Over reports whether more is held than the limit allows.
func (b *Budget) Over() bool { return b != nil && b.held.Load() > b.limit }

// Refuse counts something that was refused.
func (b *Budget) Refuse() {
	if b != nil {
		b.refused.Add(1)
	}
}

// Again returns the seconds after which it makes sense to try again.
func (b *Budget) Again() int {
	if b == nil || b.again == nil {
		return 1
	}
	return b.again()
}

// Held returns the bytes that are held, and Refused how many times some were not there.
func (b *Budget) Held() int64 {
	if b == nil {
		return 0
	}
	return b.held.Load()
}

func (b *Budget) Refused() uint64 {
	if b == nil {
		return 0
	}
	return b.refused.Load()
}

// A Hold is what one owner holds. The zero Hold is of no Budget, until Open. Reserve,
// Release, Move and Close may be called by several goroutines at once.
type Hold struct {
	budget *Budget
	bytes  atomic.Int64 // closed if negative
}

const closed = -1

// Open makes h a Hold of b with n bytes that are there already.
func (h *Hold) Open(b *Budget, n int64) {
	h.budget = b
	h.bytes.Store(n)
	b.Add(n)
}

// Budget returns what Open was called with.
func (h *Hold) Budget() *Budget {
	if h == nil {
		return nil
	}
	return h.budget
}

// Reserve adds n bytes, and reports whether they are there. After Close there are none.
func (h *Hold) Reserve(n int64) bool { return h.reserve(n, n > small) }

// reserve is Reserve for bytes that are large together with what has come before.
func (h *Hold) reserve(n int64, large bool) bool {
	if h == nil || h.budget == nil {
		return true
	}
	if !h.budget.reserve(n, large) {
		return false
	}
	return h.take(n)
}

// take puts bytes that are counted into h. If h is closed, they are given back.
func (h *Hold) take(n int64) bool {
	for {
		bytes := h.bytes.Load()
		if bytes < 0 {
			h.budget.Add(-n)
			return false
		}
		if h.bytes.CompareAndSwap(bytes, bytes+n) {
			return true
		}
	}
}

// leave takes up to n bytes out of h, which stay counted, and returns how many.
func (h *Hold) leave(n int64) int64 {
	for {
		bytes := h.bytes.Load()
		out := min(n, bytes)
		if out <= 0 {
			return 0
		}
		if h.bytes.CompareAndSwap(bytes, bytes-out) {
			return out
		}
	}
}

// Release gives n of the bytes back, or all if there are fewer.
func (h *Hold) Release(n int64) {
	if h != nil && h.budget != nil {
		h.budget.Add(-h.leave(n))
	}
}

// Move hands n of the bytes to another Hold of the same Budget.
func (h *Hold) Move(n int64, to *Hold) {
	if h != nil && h.budget != nil {
		to.take(h.leave(n))
	}
}

// Share makes n of the bytes a Shared of one holder.
func (h *Hold) Share(n int64) *Shared {
	if h == nil || h.budget == nil {
		return nil
	}
	s := &Shared{budget: h.budget, bytes: h.leave(n)}
	s.holders.Store(1)
	return s
}

// Close gives everything back, and lets h take nothing any more. Further calls do
// nothing.
func (h *Hold) Close() {
	if h == nil || h.budget == nil {
		return
	}
	if bytes := h.bytes.Swap(closed); bytes > 0 {
		h.budget.Add(-bytes)
	}
}

// A Shared is memory that is held until its last holder lets go of it. A nil Shared is
// not counted.
type Shared struct {
	budget  *Budget
	bytes   int64
	holders atomic.Int64
}

// Share returns a Shared of n bytes that are there already, with one holder.
func (b *Budget) Share(n int64) *Shared {
	if b == nil {
		return nil
	}
	b.Add(n)
	s := &Shared{budget: b, bytes: n}
	s.holders.Store(1)
	return s
}

// Hold adds a holder. Whoever has a reference may become one although the last has let
// go meanwhile: then the memory is counted again, since the reference keeps it.
func (s *Shared) Hold() {
	if s != nil && s.holders.Add(1) == 1 {
		s.budget.Add(s.bytes)
	}
}

// Release takes a holder away.
func (s *Shared) Release() {
	if s != nil && s.holders.Add(-1) == 0 {
		s.budget.Add(-s.bytes)
	}
}

// Alone reports whether there is no more than one holder.
func (s *Shared) Alone() bool { return s == nil || s.holders.Load() <= 1 }

// From returns the Hold of the request that w answers, or nil if nobody holds one for it.
func From(w http.ResponseWriter) *Hold {
	if holding, ok := wrapped.Find[interface{ Hold() *Hold }](w); ok {
		return holding.Hold()
	}
	return nil
}

// Of returns the Budget that a handler of Jobs counts in, or nil if it is no such
// handler.
func Of(h http.Handler) *Budget {
	if counting, ok := h.(interface{ Budget() *Budget }); ok {
		return counting.Budget()
	}
	return nil
}
