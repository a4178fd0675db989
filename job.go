package holdfast

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// State is where a job stands. A job is queued, then running, then in one of the six
// states that end it. A job that ends without having started goes from queued to its
// end directly.
type State uint8

const (
	StateQueued    State = iota // accepted, waiting for a worker
	StateRunning                // handed to a worker
	StateSucceeded              // the function returned nil
	StateFailed                 // the function returned an error, ran past its deadline or called runtime.Goexit
	StatePanicked               // the function panicked
	StateCanceled               // canceled before the function returned, or before it was called
	StateDropped                // gave its place to a newer job under DropOldest; never ran
	StateAbandoned              // still queued when Shutdown was cut off; never ran
)

// String returns the state's name in lower case.
func (s State) String() string {
	names := []string{"queued", "running", "succeeded", "failed", "panicked", "canceled", "dropped", "abandoned"}
	if int(s) >= len(names) {
		return fmt.Sprintf("State(%d)", uint8(s))
	}
	return names[s]
}

// Ended reports whether s is one of the states that end a job.
func (s State) Ended() bool { return s > StateRunning }

// ErrNested is returned by Do and [Job.Wait], and by a submit that would have to wait
// for a place, when their context is that of a job of the same dispatcher: the job
// would occupy a worker while it waits for a worker.
var ErrNested = errors.New("holdfast: a job may not wait for its own dispatcher")

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

// A Job is the handle of one accepted job. Its methods may be called by any number
// of goroutines at once, also from within the job, and after its end.
type Job struct {
	// Written before the job is submitted, only read afterwards.
	d        *Dispatcher
	parent   context.Context // whose values the job sees
	attached bool            // the submitter waits, so the job is canceled with parent
	timeout  time.Duration   // that it may run; 0: no limit
	onEnd    func()          // called once, after the end; may be nil

	// Protected by d.mu.
	state    State
	fn       func(context.Context) error
	err      error
	done     chan struct{} // made by the first Done, closed at the end
	canceled error         // why the job was canceled while it ran: its error,
	cause    error         // and the cause of its context
	deadline int64         // on the dispatcher's clock; 0: none

	context atomic.Pointer[liveContext] // set under d.mu; nil until it is asked for
}

// newJob returns a job that sees the values of ctx.
func newJob(d *Dispatcher, ctx context.Context, fn func(context.Context) error) *Job {
	return &Job{d: d, parent: valuesOf(ctx), fn: fn, timeout: d.jobTimeout}
}

// valuesOf returns a context with the values of ctx. If ctx is the context of a job,
// that is the job's own parent. Through the job itself, a chain of jobs, each
// submitted by the one before, would keep all its ancestors in memory.
func valuesOf(ctx context.Context) context.Context {
	if c, ok := ctx.(*jobContext); ok {
		return c.parent
	}
	return ctx
}

var closedChan = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// Done returns a channel that is closed when the job has ended. Every accepted job
// ends, and it ends once.
func (j *Job) Done() <-chan struct{} {
	j.d.lock()
	defer j.d.mu.Unlock()
	switch {
	case j.done != nil:
	case j.state.Ended():
		j.done = closedChan
	default:
		j.done = make(chan struct{})
	}
	return j.done
}

// State returns the job's present state. It does not block.
func (j *Job) State() State {
	j.d.lock()
	defer j.d.mu.Unlock()
	return j.state
}

// Err returns nil until the job has ended, and nil if it succeeded. Otherwise it
// returns the error that the function returned, a [*PanicError], [ErrDropped],
// [ErrAbandoned], an error that matches context.Canceled for a canceled job (and
// [ErrClosed] too if Shutdown canceled it), or one that matches
// context.DeadlineExceeded for a job that ran past its deadline. It does not block.
func (j *Job) Err() error {
	j.d.lock()
	defer j.d.mu.Unlock()
	return j.err
}

// Wait blocks until the job has ended and returns [Job.Err], or until ctx ends and
// returns ctx.Err(). If both have happened, the job's end counts. The end of ctx ends
// the waiting, not the job. If ctx is the context of a job of the same dispatcher,
// Wait returns [ErrNested] at once, even if the job has ended: a result that depended
// on timing would hide the mistake until the day of load.
func (j *Job) Wait(ctx context.Context) error {
	if j.d.owns(ctx) {
		return ErrNested
	}
	select {
	case <-j.Done():
	case <-ctx.Done():
		if !j.State().Ended() {
			return ctx.Err()
		}
	}
	return j.Err()
}

// Cancel ends the job. A queued job ends as canceled at once and never runs, and its
// place is free. A running job has its context canceled and ends when its function
// returns. On a job that has ended Cancel does nothing. It does not block.
func (j *Job) Cancel() { j.cancelWith(context.Canceled, context.Canceled) }

// cancelWith cancels the job with err for the job's error and cause for the cause of
// its context.
func (j *Job) cancelWith(err, cause error) {
	d := j.d
	d.lock()
	queued := j.state == StateQueued
	var live *liveContext
	var due []wakeup
	switch {
	case queued:
		d.stats.Queued--
		d.stats.Canceled++
		j.endLocked(StateCanceled, err)
		due = d.dispatchLocked(nil, d.now())
	case j.state == StateRunning && j.canceled == nil:
		j.canceled, j.cause, live = err, cause, j.context.Load()
	}
	d.mu.Unlock()
	wake(due)
	if live != nil {
		live.cancel(cause)
	}
	if queued {
		j.notify()
	}
}

// startLocked moves the job from queued to running and returns its function.
func (j *Job) startLocked(now int64) func(context.Context) error {
	j.state = StateRunning
	if j.timeout > 0 {
		j.deadline = now + int64(j.timeout)
	}
	return j.fn
}

// finishLocked ends a running job. Its outcome is what its function returned, unless
// the job was canceled or late before that.
func (j *Job) finishLocked(o outcome, now int64) State {
	cause := j.canceled
	switch {
	case cause != nil:
	case j.d.stopped:
		cause = errStopped
	case o.gone != nil:
		cause = o.gone
	case j.deadline > 0 && now >= j.deadline:
		cause = context.DeadlineExceeded
	}
	if cause != nil && o.state != StatePanicked {
		o.state = StateCanceled
		if cause == context.DeadlineExceeded {
			o.state = StateFailed
		}
		// Joined and not formatted or examined: an error's methods are foreign code.
		if o.err == nil || o.err == context.Canceled || o.err == context.DeadlineExceeded {
			o.err = cause
		} else {
			o.err = errors.Join(cause, o.err)
		}
	}
	delete(j.d.contexts, j)
	j.endLocked(o.state, o.err)
	return o.state
}

// endLocked gives the job its outcome, which the caller counts, and lets go of its
// function, so that a handle does not keep what the function captured. The caller
// calls notify when it has unlocked d.mu.
func (j *Job) endLocked(state State, err error) {
	j.state, j.err, j.fn = state, err, nil
}

// notify wakes those who wait for the job. They find it counted as ended, and its
// place free.
func (j *Job) notify() {
	if j.done != nil { // it does not change after the end
		close(j.done)
	}
	if live := j.context.Load(); live != nil {
		live.cancel(context.Canceled)
	}
	if j.onEnd != nil {
		j.onEnd()
	}
}

// jobContext is the context that a job's function gets: the submitter's values
// without its cancellation, canceled when the job is, and at its end. The job is its
// own context, so that a submit costs one allocation. What a context needs beyond the
// values is made on first use, since most jobs never ask. It is never used for
// another job.
type jobContext Job

// A liveContext is what can end. A job has at most one.
type liveContext struct {
	context.Context
	cancel context.CancelCauseFunc
}

func (c *jobContext) Deadline() (time.Time, bool) { return c.live().Deadline() }
func (c *jobContext) Done() <-chan struct{}       { return c.live().Done() }
func (c *jobContext) Err() error                  { return c.live().Err() }

func (c *jobContext) Value(key any) any {
	if key == (ownerKey{}) {
		return c.d
	}
	if live := c.context.Load(); live != nil {
		return live.Value(key) // also how package context finds the context to attach children to
	}
	if c.attached {
		return c.parent.Value(key)
	}
	return context.WithoutCancel(c.parent).Value(key)
}

func (c *jobContext) live() *liveContext {
	if live := c.context.Load(); live != nil {
		return live
	}
	// Made without the lock: the parent's methods are foreign code.
	parent := c.parent
	if !c.attached {
		parent = context.WithoutCancel(parent)
	}
	ctx, cancel := context.WithCancelCause(parent)
	live := &liveContext{ctx, cancel}
	if c.deadline > 0 {
		late, stop := context.WithDeadline(ctx, c.d.at(c.deadline))
		live = &liveContext{late, func(cause error) { cancel(cause); stop() }}
	}
	first, cause := c.share(live)
	if first != live {
		live.cancel(context.Canceled)
	} else if cause != nil {
		live.cancel(cause)
	}
	return first
}

// share makes live the job's context, unless another goroutine has been faster, and
// returns the one that it is. cause is not nil if the job has been canceled or has
// ended before.
func (c *jobContext) share(live *liveContext) (first *liveContext, cause error) {
	c.d.lock()
	defer c.d.mu.Unlock()
	if first = c.context.Load(); first != nil {
		return first, nil
	}
	c.context.Store(live)
	switch {
	case c.state.Ended():
		return live, context.Canceled
	case c.cause != nil:
		return live, c.cause
	case c.d.stopped:
		return live, errStopped
	}
	c.d.contexts[(*Job)(c)] = struct{}{}
	return live, nil
}

// ownerKey is the key under which a job's context holds its dispatcher: the innermost
// one, so a job of another dispatcher may wait for this one.
type ownerKey struct{}

// owns reports whether ctx is that of a job of d.
func (d *Dispatcher) owns(ctx context.Context) bool {
	return ctx != context.Background() && ctx.Value(ownerKey{}) == d
}
