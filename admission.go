package holdfast

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"runtime"

	"holdfast/internal/counts"
	"holdfast/internal/stamps"
)

// Overflow says what a submit does when every place is taken.
type Overflow uint8

const (
	// Block waits for a place until the context ends or Shutdown begins. Who
	// came first is served first.
	Block Overflow = iota
	// Reject returns ErrQueueFull at once.
	Reject
	// DropOldest ends the job that has waited longest in the queue as Dropped
	// and takes its place, ahead of submitters that wait under Block. If no
	// job is queued it returns ErrQueueFull. It fits where only the newest
	// work matters; where others wait for the dropped job, they get ErrDropped.
	DropOldest
)

var overflowNames = []string{"block", "reject", "drop-oldest"}

// String returns "block", "reject" or "drop-oldest".
func (o Overflow) String() string {
	if int(o) >= len(overflowNames) {
		return fmt.Sprintf("Overflow(%d)", uint8(o))
	}
	return overflowNames[o]
}

// MarshalText returns the policy's name.
func (o Overflow) MarshalText() ([]byte, error) {
	if int(o) >= len(overflowNames) {
		return nil, fmt.Errorf("holdfast: %v is not an overflow policy", o)
	}
	return []byte(o.String()), nil
}

// UnmarshalText sets the policy from its name. Any other text is an error and
// changes nothing.
func (o *Overflow) UnmarshalText(text []byte) error {
	for i, name := range overflowNames {
		if string(text) == name {
			*o = Overflow(i)
			return nil
		}
	}
	return fmt.Errorf("holdfast: overflow policy %q; want block, reject or drop-oldest", text)
}

// ErrQueueFull is returned by a submit under Reject when every place is taken,
// and under DropOldest when besides no job is queued that could be dropped.
var ErrQueueFull = errors.New("holdfast: queue full")

// ErrClosed is returned by a submit, by one that already waits for a place
// too, and by Resize, once Shutdown has begun.
var ErrClosed = errors.New("holdfast: dispatcher is shut down")

// An entry is what waits in the JobQueue: a function that nobody follows, or a
// job that has a handle or a context of its own. It is passed by value, so that
// a waiting job costs its 24 bytes in the channel, its stamp of 8, and nothing
// else. The zero entry tells a worker to end.
type entry struct {
	fn    func(context.Context) error
	job   *Job
	stamp *stamps.Cell
}

// The admission word. A job holds a place from acceptance to its end, and
// whether there is one is decided by a compare-and-swap of this one word, not
// by the room in the channel: the queue of an idle dispatcher is handed on to
// the workers only after a moment, and until then a plain channel would refuse
// jobs that idle workers wait for. A lock around the channel would be exact as
// well, at twice the cost.
//
//	bit  0      slow: admissions and freed places are settled under Dispatcher.mu
//	bits 1-25   free places + freeBias; negative while a shrink is not yet worked off
//	bits 26-63  jobs accepted so far, modulo 2^38
//
// slow is set while submitters wait, while a DropOldest is deciding, and for
// good once the dispatcher is closed. Since it is part of the word, nobody can
// pass a waiting submitter, and no place is freed without its being seen.
const (
	slow        = 1
	onePlace    = 1 << 1
	freeBits    = 25
	freeBias    = 1 << (freeBits - 1)
	oneAccepted = onePlace << freeBits
)

func free(word uint64) int { return int(word>>1&(1<<freeBits-1)) - freeBias }

// takePlace takes a free place in one decision and returns the number of the
// job in the order of acceptance. Only a caller that holds d.mu may ask while
// slow is set.
func (d *Dispatcher) takePlace(locked bool) (number uint64, ok bool) {
	for {
		word := d.word.Load()
		if free(word) <= 0 || word&slow != 0 && !locked {
			return 0, false
		}
		if d.word.CompareAndSwap(word, word+oneAccepted-onePlace) {
			return word / oneAccepted, true
		}
	}
}

// freePlace gives back the place of a job that has ended.
func (d *Dispatcher) freePlace() {
	if d.word.Add(onePlace)&slow != 0 {
		d.settle()
	}
}

// roomMade follows the taking of a job from the queue, unless freePlace does.
func (d *Dispatcher) roomMade() {
	if d.word.Load()&slow != 0 {
		d.settle()
	}
}

// settle lets waiting submitters in, or notices the end of a shutdown.
func (d *Dispatcher) settle() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		d.noticeEndLocked()
		return
	}
	d.admitLocked()
}

// submit accepts e, or says why not. Without a refusal it blocks only under
// Block, and there until a place is free, ctx ends or the dispatcher is closed.
func (d *Dispatcher) submit(ctx context.Context, e entry, overflow []Overflow) error {
	policy := Overflow(d.overflow.Load())
	if len(overflow) > 0 {
		if policy = overflow[0]; int(policy) >= len(overflowNames) {
			return fmt.Errorf("holdfast: %v is not an overflow policy", policy)
		}
	}
	if err := ctx.Err(); err != nil {
		d.refusedGone.Add(1)
		return err
	}
	if number, ok := d.takePlace(false); ok {
		d.send(e, number)
		return nil
	}

	nested := policy == Block && d.owns(ctx) // not under the lock: ctx is foreign code
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		d.refusedClosed.Add(1)
		return ErrClosed
	}
	if policy == DropOldest {
		return d.dropOldest(e) // unlocks
	}
	if d.blocked.Len() == 0 {
		if number, ok := d.takePlace(true); ok {
			d.mu.Unlock()
			d.send(e, number)
			return nil
		}
	}
	if policy == Reject {
		d.mu.Unlock()
		d.refusedFull.Add(1)
		return ErrQueueFull
	}
	if nested {
		d.mu.Unlock()
		d.refusedNested.Add(1)
		return ErrNested
	}
	return d.wait(ctx, e) // unlocks
}

// send brings an accepted job on its way.
//
// If no job waits and a worker does, it is handed over here, as the dispatcher's
// goroutine would: first the worker, then the job. That is one hand-over instead
// of two. What is to be decided is left to that goroutine: who is first where jobs
// wait, and which worker ends where some are surplus.
//
// Else it goes into the JobQueue. The channel has L places, and w + L jobs may be
// accepted, so it may have to wait: for a worker that is idle already to be
// served, never for a job to end. For if L jobs are in the channel and this one is
// besides, at most w - 1 can be in the hands of workers. Resize keeps that true:
// it lets no worker go whom an accepted job counts on (see dismiss).
func (d *Dispatcher) send(e entry, number uint64) {
	d.mark(&e, number, d.now())
	if len(d.queue) == 0 {
		select {
		case idle := <-d.pool:
			// Looked at when the worker is taken, not before: a resize in between
			// would have returned, and not know of it.
			if d.surplus.Load() <= 0 {
				idle <- e
				return
			}
			go func() { d.pool <- idle }() // registers again
		default:
		}
	}
	d.queue <- e
}

// mark stamps e with its time of acceptance.
func (d *Dispatcher) mark(e *entry, number uint64, now int64) {
	e.stamp = &unstamped
	if counts.Timing {
		e.stamp = d.stamps.Load().Claim(number, now)
	}
	if e.job != nil {
		e.job.stamp = e.stamp
	}
}

// dropOldest replaces the longest-waiting queued job by e. It is called with
// d.mu held and unlocks it.
//
// A place that is free it takes, ahead of those who wait. While slow is set and
// d.mu held nobody else is accepted, so what comes out of the queue was there
// when this call found every place taken: one call drops at most one job, and
// never one that was let in meanwhile.
func (d *Dispatcher) dropOldest(e entry) error {
	for {
		d.word.Or(slow)
		if number, ok := d.takePlace(true); ok {
			d.endSlowLocked()
			d.mu.Unlock()
			d.send(e, number)
			return nil
		}
		select {
		case oldest := <-d.queue:
			_, dropped := d.discard(oldest, Dropped, ErrDropped)
			number := (d.word.Add(oneAccepted) - oneAccepted) / oneAccepted // the place passes on
			d.endSlowLocked()
			d.mu.Unlock()
			if dropped && oldest.job != nil {
				oldest.job.tell()
			}
			d.send(e, number)
			return nil
		default:
		}
		// The channel is empty. Jobs that were accepted may still be on their
		// way into it, or from it to their worker.
		underway := d.sum().Queued > 0
		d.endSlowLocked()
		d.mu.Unlock()
		if !underway {
			d.refusedFull.Add(1)
			return ErrQueueFull
		}
		runtime.Gosched()
		d.mu.Lock()
		if d.closed {
			d.mu.Unlock()
			d.refusedClosed.Add(1)
			return ErrClosed
		}
	}
}

// discard ends a job that was taken from the queue unstarted. It returns false
// if the job was canceled before: then only its place is left. The caller tells
// the job's end and disposes of the place.
func (d *Dispatcher) discard(e entry, state State, err error) (left leftover, ok bool) {
	s := d.counts.Others()
	s.Lock()
	defer s.Unlock()
	j := e.job
	if j != nil {
		j.mu.Lock()
		defer j.mu.Unlock()
	}
	left = leftover{accepted: e.stamp.Free(), fn: e.fn}
	if j != nil {
		if j.state != Queued {
			s.Vacated--
			return leftover{}, false
		}
		left.fn = j.fn
		j.endLocked(state, err)
	}
	s.EndUnstarted(int(state))
	return left, true
}

// A submitter is a call of Go, Submit or Do that waits for a place. The list of
// them, not the channel, is where they wait: what waits in a channel can be
// passed, and cannot be told that the dispatcher is closed.
type submitter struct {
	entry entry
	told  chan error    // has room for one; nil: accepted
	place *list.Element // in Dispatcher.blocked; nil when it is not there any more
}

// unblockLocked takes s from the list of those who wait.
func (d *Dispatcher) unblockLocked(s *submitter) {
	d.blocked.Remove(s.place)
	s.place = nil
}

// wait blocks until e is accepted, ctx ends or the dispatcher is closed. It is
// called with d.mu held and unlocks it.
func (d *Dispatcher) wait(ctx context.Context, e entry) error {
	// Only with slow set is it certain that the next freed place is seen; and
	// one that was freed just before that must be taken now.
	d.word.Or(slow)
	if d.blocked.Len() == 0 {
		if number, ok := d.takePlace(true); ok {
			d.endSlowLocked()
			d.mu.Unlock()
			d.send(e, number)
			return nil
		}
	}
	s, _ := d.submitters.Get().(*submitter)
	if s == nil {
		s = &submitter{told: make(chan error, 1)}
	}
	s.entry = e
	s.place = d.blocked.PushBack(s)
	d.mu.Unlock()

	var err error
	select {
	case err = <-s.told:
	case <-ctx.Done():
		d.mu.Lock()
		if s.place != nil {
			d.unblockLocked(s)
			d.endSlowLocked()
			d.mu.Unlock()
			d.refusedGone.Add(1)
			err = ctx.Err()
		} else {
			// Accepted or closed in the same moment: that stands, since the
			// job may be running already.
			d.mu.Unlock()
			err = <-s.told
		}
	}
	s.entry = entry{}
	d.submitters.Put(s)
	return err
}

// admitLocked lets waiting submitters in, first come, first served, while there
// are places and room in the queue. It sends for them: woken to send for
// themselves, they could pass each other.
//
// The sends must not block, since the workers they would wait for may need
// d.mu. So a submitter can be left waiting beside a free place because the
// channel is full; then somebody is about to take a job from it, will find slow
// set and settle. That is why the channel has room for one at least.
func (d *Dispatcher) admitLocked() {
	for d.blocked.Len() > 0 {
		s := d.blocked.Front().Value.(*submitter)
		number, ok := d.takePlace(true)
		if !ok {
			return
		}
		d.mark(&s.entry, number, d.now())
		select {
		case d.queue <- s.entry:
			d.unblockLocked(s)
			s.told <- nil
		default:
			s.entry.stamp.Free()
			d.word.Add(^uint64(oneAccepted - onePlace - 1)) // gives both back
			return
		}
	}
	d.endSlowLocked()
}

// endSlowLocked returns to the fast path if nothing needs the slow one.
func (d *Dispatcher) endSlowLocked() {
	if d.blocked.Len() == 0 && !d.closed {
		d.word.And(^uint64(slow))
	}
}
