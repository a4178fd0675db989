package holdfast

import (
	"context"
	"errors"
	"fmt"
	"time"

	"holdfast/internal/enum"
	"holdfast/internal/line"
)

// Overflow says what a submit does when every place is taken.
type Overflow uint8

const (
	// Block waits for a place until the context ends or Shutdown begins. Waiting
	// submitters are served in the order in which they came.
	Block Overflow = iota
	// Reject returns ErrQueueFull at once.
	Reject
	// DropOldest ends the job that has waited longest in the queue as dropped and
	// takes its place, ahead of submitters that wait under Block. If no job is
	// queued, it returns ErrQueueFull. It fits where only the newest work matters.
	// Whoever waits for the dropped job gets ErrDropped.
	DropOldest
)

var overflowNames = []string{"block", "reject", "drop-oldest"}

func (o Overflow) known() bool { return int(o) < len(overflowNames) }

// String returns "block", "reject" or "drop-oldest".
func (o Overflow) String() string { return enum.String(o, "Overflow", overflowNames) }

// MarshalText returns the policy's name. An unknown policy is an error.
func (o Overflow) MarshalText() ([]byte, error) {
	if !o.known() {
		return nil, fmt.Errorf("holdfast: %v is not an overflow policy", o)
	}
	return []byte(o.String()), nil
}

// UnmarshalText sets the policy from its name. Any other text is an error and
// changes nothing.
func (o *Overflow) UnmarshalText(text []byte) error {
	if !enum.Set(o, text, overflowNames) {
		return fmt.Errorf("holdfast: overflow policy %q; want block, reject or drop-oldest", text)
	}
	return nil
}

// ErrQueueFull is returned by a submit under Reject when every place is taken, and
// under DropOldest when, in addition, no queued job can be dropped.
var ErrQueueFull = errors.New("holdfast: queue full")

// ErrDropped is the error of a job that ended as [StateDropped].
var ErrDropped = errors.New("holdfast: job dropped from a full queue for a newer one")

// SetOverflow changes what a submit does when every place is taken, unless the call
// says otherwise. Submitters that already wait go on waiting. An unknown policy is an
// error and changes nothing.
func (d *Dispatcher) SetOverflow(o Overflow) error {
	if !o.known() {
		return fmt.Errorf("holdfast: SetOverflow(%v); want Block, Reject or DropOldest", o)
	}
	d.lock()
	d.stats.Overflow = o
	d.mu.Unlock()
	return nil
}

// overflowLocked decides what becomes of e when no place is free. At most one of its
// results is not nil: a job that was dropped for e, which was accepted; a submitter
// that has to wait; an error. If all are nil, e was accepted.
func (d *Dispatcher) overflowLocked(e entry, policy Overflow, nested bool, now int64) (dropped *Job, waiting *waiter, err error) {
	switch victim := d.victimLocked(&e, policy); { // a new policy that drops nothing has its case first
	case victim != nil:
		job, _ := d.discardLocked(*victim, StateDropped, ErrDropped)
		d.acceptLocked(e, now)
		return job, nil, nil
	case policy != Block:
		return nil, nil, d.refuseLocked(&e, ErrQueueFull)
	case nested:
		d.stats.RefusedNested++
		return nil, nil, ErrNested
	}
	s := &waiter{entry: e, result: make(chan error, 1)}
	if e.job != nil && e.job.turn != nil {
		s.until = e.job.turn.until
	}
	s.place = d.blocked.Add(s, *e.class())
	d.stats.Blocked++
	return nil, s, nil
}

// refuseLocked counts that e is refused because of err, and returns err.
func (d *Dispatcher) refuseLocked(e *entry, err error) error {
	switch u := &d.urgencies[e.class().Urgency]; err {
	case ErrQueueFull:
		d.stats.RefusedFull++
		u.RefusedFull++
	case ErrClosed:
		d.stats.RefusedClosed++
		u.RefusedClosed++
	case ErrShare:
		d.stats.RefusedShare++
		u.RefusedShare++
	case ErrLate:
		d.stats.RefusedLate++
		u.RefusedLate++
	}
	return err
}

// victimLocked returns the queued job that gives its place to e, or nil.
func (d *Dispatcher) victimLocked(e *entry, policy Overflow) *entry {
	if d.stats.Queued == 0 {
		return nil
	}
	if d.line == nil {
		switch {
		case e.class().Urgency != line.Normal:
			d.lineUpLocked()
		case policy == DropOldest:
			return d.firstLocked()
		default:
			return nil
		}
	}
	// Those who wait for a place come first, unless they are less urgent.
	if policy != DropOldest && d.blocked.UpTo(e.class().Urgency) > 0 {
		return nil
	}
	// Only a request whose client still waits for it gives its place to another client:
	// the other jobs were promised to run.
	victim := d.line.Displaced(*e.class(), d.stats.Queue, line.Displace[entry]{
		Oldest: policy == DropOldest,
		Waits:  policy == Block,
		Yields: func(e entry) bool { return e.job.context.Attached },
	})
	if victim == nil {
		return nil
	}
	return &victim.Value
}

// discardLocked ends e, which is the first job or in the line, without running it. It
// returns the job, nil if it has no handle, and its function.
func (d *Dispatcher) discardLocked(e entry, state State, err error) (*Job, func(context.Context) error) {
	d.removeLocked(e)
	*d.stats.ended(state)++
	if state == StateDropped {
		d.urgencies[e.class().Urgency].Dropped++
	}
	if e.job != nil {
		e.fn = e.job.fn
		e.job.endLocked(state, err)
	}
	return e.job, e.fn
}

// A waiter is a submit that waits for a place. Waiters stand in a list and not in the
// channel: there newcomers could overtake them, and the end of their contexts
// or of the dispatcher would not reach them.
type waiter struct {
	entry  entry
	result chan error          // has room for the one result; nil means accepted
	until  time.Time           // when its patience ends; zero: never
	place  *line.Item[*waiter] // in Dispatcher.blocked; nil when it has a result
}

// wait blocks until s is accepted, ctx or the patience of its class ends, or the
// dispatcher is closed.
func (d *Dispatcher) wait(ctx context.Context, s *waiter) error {
	if !s.until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadlineCause(ctx, s.until, ErrLate)
		defer cancel()
	}
	select {
	case err := <-s.result:
		return err
	case <-ctx.Done():
	}
	gone, late := ctx.Err(), context.Cause(ctx) == ErrLate
	d.lock()
	switch {
	case s.place == nil:
	case late:
		d.unblockLocked(s, d.refuseLocked(&s.entry, ErrLate))
	default:
		d.stats.RefusedGone++
		d.unblockLocked(s, gone)
	}
	d.mu.Unlock()
	// If it was accepted or refused at the same moment, that stands: the job may be
	// running already.
	return <-s.result
}

// unblockLocked ends the wait of s with an error.
func (d *Dispatcher) unblockLocked(s *waiter, err error) {
	d.blocked.Remove(s.place)
	d.answerLocked(s, err)
}

// answerLocked gives s, which has left those that wait, its result.
func (d *Dispatcher) answerLocked(s *waiter, result error) {
	d.stats.Blocked--
	s.place = nil
	s.result <- result
}

// admitLocked accepts the submitter whose turn it is. As dispatchLocked calls it after
// every change that frees a place, no newcomer finds one while a submitter waits.
func (d *Dispatcher) admitLocked(now int64) {
	turn := d.blocked.Next()
	// A place costs what its job will cost. Otherwise clients that wait for places would
	// share these, and not the workers' time.
	cost := int64(0)
	if d.line != nil {
		cost = d.line.Cost(*turn.Value.entry.class())
	}
	d.blocked.Ended(turn, cost)
	d.acceptLocked(turn.Value.entry, now)
	d.answerLocked(turn.Value, nil)
}
