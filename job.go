package holdfast

import (
	"context"
	"errors"
	"fmt"
	"time"

	"holdfast/internal/enum"
	"holdfast/internal/lazy"
	"holdfast/internal/line"
)

// State is where a job stands. A job is queued, then running, then in one of the six
// states that end it. A job that ends without having started goes from queued to its
// end directly.
type State uint8

const (
	StateQueued    State = iota // The job was accepted and waits for a worker.
	StateRunning                // The job was handed to a worker.
	StateSucceeded              // The function returned nil.
	StateFailed                 // The function returned an error, ran past its deadline or called runtime.Goexit.
	StatePanicked               // The function panicked.
	StateCanceled               // The job was canceled before the function returned, or before it was called.
	StateDropped                // The job gave its place to a newer one, under DropOldest or by its class, and never ran.
	StateAbandoned              // The job was still queued when Shutdown was cut off, and never ran.
)

var stateNames = []string{"queued", "running", "succeeded", "failed", "panicked", "canceled", "dropped", "abandoned"}

// String returns the state's name in lower case.
func (s State) String() string { return enum.String(s, "State", stateNames) }

// Ended reports whether s is one of the states that end a job.
func (s State) Ended() bool { return s > StateRunning }

// ErrNested is returned by Do and [Job.Wait], and by a submit that would have to wait
// for a place, when their context is that of a job of the same dispatcher: the job
// would occupy a worker while it waits for a worker.
var ErrNested = errors.New("holdfast: a job may not wait for its own dispatcher")

var errGoexit = errors.New("holdfast: job called runtime.Goexit")

// A PanicError is the error of a job that ended as [StatePanicked].
type PanicError struct {
	Value any    // Value is what the function panicked with.
	Stack []byte // Stack is the stack of the panic, as runtime/debug.Stack formats it.
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
	// Written before the job is submitted, only read afterwards, but for the deadline
	// of context, which is set at the start.
	d       *Dispatcher
	timeout time.Duration // that it may run; 0: no limit
	turn    *turn         // nil: it is of no class; set when the line begins, too
	onEnd   func()        // called once, after the end; may be nil
	done    chan struct{} // closed at the end; nil if nobody has the handle
	context lazy.Context  // that its function gets

	// Protected by d.mu.
	state    State
	accepted bool // before, it cannot be canceled
	fn       func(context.Context) error
	err      error
	canceled error // why it was canceled while it ran
}

// newJob returns a job of a class, which may be nil, that may run for limit. It sees the
// values of ctx, and if it is attached, since its submitter waits for it, the cancellation
// too.
func (d *Dispatcher) newJob(ctx context.Context, attached bool, class *line.Class, limit time.Duration, fn func(context.Context) error) *Job {
	if fn == nil {
		panic("holdfast: nil function")
	}
	if !attached {
		ctx = lazy.Values(ctx)
	}
	j := &Job{d: d, fn: fn, timeout: limit}
	if class != nil {
		j.turn = newTurn(class)
	}
	j.context.Parent, j.context.Attached, j.context.Stop, j.context.Owner = ctx, attached, d.ctx, d
	return j
}

// Done returns a channel that is closed when the job has ended. Every accepted job
// ends, and it ends once.
func (j *Job) Done() <-chan struct{} { return j.done }

// State returns the job's present state. It does not block.
func (j *Job) State() State {
	j.d.lock()
	defer j.d.mu.Unlock()
	return j.state
}

// Err returns nil until the job has ended, and nil if it succeeded. Otherwise it
// returns the error that the function returned, a [*PanicError], [ErrDropped],
// [ErrAbandoned], [ErrLate], an error that matches context.Canceled for a canceled job (and
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
// on timing would hide the mistake until the system is under load.
func (j *Job) Wait(ctx context.Context) error {
	if j.d.owns(ctx) {
		return ErrNested
	}
	select {
	case <-j.done:
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
// its context. If cause is nil, it cancels the job only if that is queued.
func (j *Job) cancelWith(err, cause error) {
	d := j.d
	d.lock()
	if !j.accepted {
		d.mu.Unlock()
		return
	}
	was := j.state
	switch {
	case was == StateQueued:
		if d.line != nil {
			d.removeLocked(entry{job: j})
		} else {
			d.stats.Queued-- // its entry is blank now
		}
		d.stats.Canceled++
		if cause == nil {
			d.urgencies[j.turn.class.Urgency].Expired++
		}
		j.endLocked(StateCanceled, err)
		d.dispatchLocked(d.now())
	case was == StateRunning && j.canceled == nil && cause != nil:
		j.canceled = err
	}
	d.mu.Unlock()
	switch {
	case was == StateQueued:
		j.notify()
	case was == StateRunning && cause != nil:
		j.context.Cancel(cause)
	}
}

// finishLocked ends a running job. Its outcome is what its function returned, unless
// the job was canceled or late before that.
func (j *Job) finishLocked(o outcome, now int64) State {
	cause := j.canceled
	switch limit := j.context.Limit; {
	case cause != nil:
	case j.d.stopped:
		cause = errStopped
	case o.gone != nil:
		cause = o.gone
	case !limit.IsZero() && !j.d.epoch.Add(time.Duration(now)).Before(limit):
		cause = context.DeadlineExceeded
	}
	if cause != nil && o.state != StatePanicked {
		o.state = StateCanceled
		if cause == context.DeadlineExceeded {
			o.state = StateFailed
		}
		// Joined and not formatted or examined: an error's methods are code of others.
		if o.err == nil || o.err == context.Canceled || o.err == context.DeadlineExceeded {
			o.err = cause
		} else {
			o.err = errors.Join(cause, o.err)
		}
	}
	j.endLocked(o.state, o.err)
	return o.state
}

// endLocked gives the job its outcome, which the caller counts, and lets go of its
// function, so that a handle does not keep what the function captured. The caller
// calls notify when it has unlocked d.mu.
func (j *Job) endLocked(state State, err error) {
	j.state, j.err, j.fn = state, err, nil
	if j.turn != nil && j.turn.late != nil {
		j.turn.late.Stop()
	}
}

// notify wakes those who wait for the job. They find it counted as ended, and its
// place given up.
func (j *Job) notify() {
	if j.done != nil {
		close(j.done)
	}
	j.context.End()
	if j.onEnd != nil {
		j.onEnd()
	}
}

// owns reports whether ctx is that of a job of d.
func (d *Dispatcher) owns(ctx context.Context) bool {
	return ctx != context.Background() && ctx.Value(lazy.OwnerKey{}) == d
}
