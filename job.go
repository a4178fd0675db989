package holdfast

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"holdfast/internal/counts"
	"holdfast/internal/stamps"
	"holdfast/internal/store"
)

// State is where a job stands. A job is Queued, then Running, then in one of
// the six states that end it; a job that ends without having started goes from
// Queued to its end at once.
type State uint8

const (
	Queued    State = iota // accepted, waiting for a worker
	Running                // a worker is in the job's function
	Succeeded              // the function returned nil
	Failed                 // the function returned an error, ran past its deadline or called runtime.Goexit
	Panicked               // the function panicked
	Canceled               // canceled before the function returned, or before it was called
	Dropped                // gave its place to a newer job under DropOldest; never ran
	Abandoned              // still queued when Shutdown's context ended; never ran

	states = iota
)

var _ [counts.States]struct{} = [states]struct{}{}

// String returns the state's name in lower case.
func (s State) String() string {
	names := [states]string{"queued", "running", "succeeded", "failed", "panicked", "canceled", "dropped", "abandoned"}
	if int(s) >= len(names) {
		return fmt.Sprintf("State(%d)", uint8(s))
	}
	return names[s]
}

// Ended reports whether s is one of the states that end a job.
func (s State) Ended() bool { return s > Running }

// ErrDropped is the error of a job that ended as Dropped.
var ErrDropped = errors.New("holdfast: job dropped from a full queue for a newer one")

// ErrAbandoned is the error of a job that ended as Abandoned. The error of
// [Dispatcher.Shutdown] matches it when there are such jobs.
var ErrAbandoned = errors.New("holdfast: job abandoned at shutdown before it started")

// ErrNested is returned by Do and [Job.Wait], and by a submit that would have
// to wait for a place, when their context is that of a job of the same
// dispatcher: the job would occupy a worker while it waits for a worker.
var ErrNested = errors.New("holdfast: a job may not wait for its own dispatcher")

// errStopped is the error of a job whose context was canceled by Shutdown.
var errStopped = fmt.Errorf("%w: running job canceled: %w", ErrClosed, context.Canceled)

var errGoexit = errors.New("holdfast: job called runtime.Goexit")

// A PanicError is the error of a job that ended as Panicked.
type PanicError struct {
	Value any    // what the function panicked with
	Stack []byte // the stack of the panic, as formatted by runtime/debug.Stack
}

// Error names the panic's value. The stack is left out: an error's text may
// travel to a client.
func (e *PanicError) Error() string { return fmt.Sprintf("holdfast: job panicked: %v", e.Value) }

// Unwrap returns the panic's value if it is an error, otherwise nil.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// A Job is the handle of one accepted job. Its methods may be called by any
// number of goroutines at once, also from within the job, and after its end.
type Job struct {
	// Written before the job is sent to the queue, only read afterwards.
	d       *Dispatcher
	parent  context.Context // whose values the job sees
	stamp   *stamps.Cell
	waiter  bool       // the submitter waits, so the job is canceled with parent
	id      store.ID   // of the request that the job is, or comes from; see JobID
	request *execution // that it is; nil for most

	mu       sync.Mutex // protects the following fields
	state    State
	told     bool // done is closed, or is to be made closed
	fn       func(context.Context) error
	err      error
	done     chan struct{} // made by the first Done, closed by tell
	cause    error         // why the job was canceled while it ran
	deadline int64         // on the dispatcher's clock; 0: none
	ctx      context.Context
	cancel   context.CancelCauseFunc // nil until ctx is made
}

// prepare makes a new job of j, one that sees the values of ctx. If ctx is the
// context of another job, that job's own parent has them too; through the job
// itself a row of jobs, each submitted by the one before, would keep all that have
// ended. It returns j.
func (j *Job) prepare(d *Dispatcher, ctx context.Context, fn func(context.Context) error) *Job {
	if c, ok := ctx.(*jobContext); ok {
		ctx, j.id = c.parent, c.id
	}
	j.d, j.parent, j.fn = d, ctx, fn
	return j
}

var closedChan = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// Done returns a channel that is closed when the job has ended. Every accepted
// job ends, and it ends once.
func (j *Job) Done() <-chan struct{} {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.done == nil {
		j.done = closedChan
		if !j.told {
			j.done = make(chan struct{})
		}
	}
	return j.done
}

// State returns the job's present state. It does not block.
func (j *Job) State() State {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.state
}

// Err returns nil until the job has ended, and nil if it succeeded. Otherwise
// it returns the error that the function returned, a [*PanicError],
// [ErrDropped], [ErrAbandoned], an error that matches context.Canceled for a
// canceled job (and [ErrClosed] too if Shutdown canceled it), or one that
// matches context.DeadlineExceeded for a job that ran past its deadline. It
// does not block.
func (j *Job) Err() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.err
}

// Wait blocks until the job has ended and returns [Job.Err], or until ctx ends
// and returns ctx.Err(). The end of ctx ends the waiting, not the job. If ctx
// is the context of a job of the same dispatcher, Wait returns [ErrNested] at
// once, even if the job has ended: an answer that depended on the moment would
// hide the mistake until the day of load.
func (j *Job) Wait(ctx context.Context) error {
	if j.d.owns(ctx) {
		return ErrNested
	}
	done := j.Done()
	if !isClosed(done) { // of both, the end of the job is first
		select {
		case <-done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return j.Err()
}

// Cancel ends the job. A queued job ends as Canceled at once and never runs;
// its place in the queue is free again when a worker reaches it. A running
// job has its context canceled and ends when its function returns. On a job
// that has ended Cancel does nothing. It does not block.
func (j *Job) Cancel() { j.cancelWith(context.Canceled) }

func (j *Job) cancelWith(cause error) {
	// The statistics and the job change as one, or a worker could give the
	// place away before the job is counted as ended.
	s := j.d.counts.Others()
	s.Lock()
	j.mu.Lock()
	queued := j.state == Queued
	var cancel context.CancelCauseFunc
	switch {
	case queued:
		j.endLocked(Canceled, cause)
		j.stamp.Void()
		s.Vacated++
		s.EndUnstarted(int(Canceled))
	case j.state == Running && j.cause == nil:
		j.cause, cancel = cause, j.cancel
	}
	j.mu.Unlock()
	s.Unlock()

	if cancel != nil {
		cancel(cause)
	}
	if queued {
		j.tell()
	}
}

// begin moves a queued job to Running and returns its function and context and
// when it was accepted, or reports false if it has ended in the queue.
func (j *Job) begin(now int64) (fn func(context.Context) error, ctx context.Context, accepted int64, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	// Not before the lock: Cancel writes the stamp while the job is queued.
	accepted = j.stamp.Free()
	if j.state != Queued {
		return nil, nil, 0, false
	}
	j.state = Running
	if t := j.d.jobTimeout; t > 0 {
		j.deadline = now + int64(t)
	}
	return j.fn, (*jobContext)(j), accepted, true
}

// finish decides the outcome of a running job from what its function returned
// and from whether it was canceled or late before that. The caller counts the
// outcome and then calls tell.
func (j *Job) finish(state State, err error, now int64) State {
	var left error
	if j.waiter {
		left = j.parent.Err() // not under the lock: it is foreign code
	}
	j.mu.Lock()
	cause := j.cause
	if cause == nil {
		cause = left
	}
	if cause == nil && j.deadline > 0 && now >= j.deadline {
		cause = context.DeadlineExceeded
	}
	if cause != nil && state != Panicked {
		state = Canceled
		if cause == context.DeadlineExceeded {
			state = Failed
		}
		// Joined, not formatted or looked into: an error's methods are foreign
		// code too.
		if err == nil || err == context.Canceled || err == context.DeadlineExceeded {
			err = cause
		} else {
			err = errors.Join(cause, err)
		}
	}
	j.endLocked(state, err)
	cancel := j.cancel
	j.mu.Unlock()
	if cancel != nil {
		cancel(context.Canceled)
	}
	return state
}

// endLocked gives the job its outcome and lets go of its function, so that a
// handle that is kept does not keep what the function captured.
func (j *Job) endLocked(state State, err error) {
	j.state, j.err, j.fn = state, err, nil
}

// tell wakes whoever waits for the job. It comes after the job's place is free
// and its outcome is counted, so that a waiter finds both.
func (j *Job) tell() {
	j.mu.Lock()
	j.told = true
	if j.done != nil {
		close(j.done)
	}
	state, err := j.state, j.err
	j.mu.Unlock()
	if j.request != nil {
		j.request.ended(state, err)
	}
}

// jobContext is the context that a job's function gets: the submitter's values
// without its cancellation, canceled when the job is, and at its end. The job
// is its own context, so that a submit costs one allocation; what a context
// needs beyond the values is made on first use, since most jobs never ask. It
// is never used for another job.
type jobContext Job

func (c *jobContext) Deadline() (time.Time, bool) { return c.live().Deadline() }
func (c *jobContext) Done() <-chan struct{}       { return c.live().Done() }

// Err makes no context only to find that nothing has happened.
func (c *jobContext) Err() error {
	c.mu.Lock()
	calm := c.ctx == nil && c.cause == nil && c.deadline == 0 && !c.waiter && !c.state.Ended()
	c.mu.Unlock()
	if calm {
		return nil
	}
	return c.live().Err()
}

func (c *jobContext) Value(key any) any {
	if key == (ownerKey{}) {
		return c.d
	}
	if key == (jobIDKey{}) && c.id != (store.ID{}) {
		return c.id
	}
	c.mu.Lock()
	ctx := c.ctx
	c.mu.Unlock()
	if ctx == nil {
		return c.parent.Value(key)
	}
	// Also how package context finds the context to hang children on.
	return ctx.Value(key)
}

func (c *jobContext) live() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx != nil {
		return c.ctx
	}
	parent := c.parent
	if !c.waiter {
		parent = context.WithoutCancel(parent)
	}
	ctx, cancel := context.WithCancelCause(parent)
	if c.deadline > 0 {
		late, stop := context.WithDeadline(ctx, c.d.at(c.deadline))
		base := cancel
		ctx, cancel = late, func(cause error) { base(cause); stop() }
	}
	switch {
	case c.state.Ended():
		cancel(context.Canceled)
	case c.cause != nil:
		cancel(c.cause)
	}
	c.ctx, c.cancel = ctx, cancel
	return ctx
}

// ownerKey is the key under which a job's context holds its dispatcher: the
// innermost one, so a job of another dispatcher may wait for this one.
type ownerKey struct{}

func (d *Dispatcher) owns(ctx context.Context) bool {
	return ctx != context.Background() && ctx.Value(ownerKey{}) == d
}
