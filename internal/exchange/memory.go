package exchange

import (
	"holdfast/internal/budget"
	"holdfast/internal/problem"
)

// included is how much of a response is in what a job takes anyway, so that a short one
// is no work to count.
const included = 2 << 10

// Large is the size beyond which a response is kept where it was made, since a copy would
// be dear, and take its memory twice for a moment.
const Large = 32 << 10

// Hold lets a handler count what it holds for the response; see budget.From.
func (r *recorder) Hold() *budget.Hold { return r.hold }

// growLocked makes room for n more bytes of the body, and reports whether there was
// memory for it. What append does would be known only afterwards.
func (r *recorder) growLocked(n int) bool {
	s := r.scratch
	need := len(s.body) + n
	if need <= cap(s.body) {
		return r.payLocked(0)
	}
	size := max(need, 512, 2*min(cap(s.body), 64<<10), cap(s.body)+cap(s.body)/4)
	if r.length >= int64(need) && r.length < r.limit { // which limits need, too
		size = int(r.length)
	}
	before := cap(s.body)
	// Both are there until the one has been copied.
	for !r.payLocked(size) {
		if size == need {
			return false
		}
		r.err, size = nil, need
	}
	s.body = append(make([]byte, 0, size), s.body...)
	back := min(int64(before), r.paid-included)
	r.hold.Release(back)
	r.paid -= back
	return true
}

// payLocked sees to it that the scratch is counted, and more bytes with it.
func (r *recorder) payLocked(more int) bool {
	total := int64(cap(r.scratch.head)) + int64(cap(r.scratch.body)) + int64(more)
	if n := total - r.paid; n > 0 {
		if !r.hold.Reserve(n) {
			r.err = problem.ErrNoMemory
			return false
		}
		r.paid = total
	}
	return true
}
