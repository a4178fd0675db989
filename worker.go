package holdfast

import (
	"net/http"
	"runtime/debug"

	"holdfast/internal/lazy"
)

// A worker is one goroutine that runs one job at a time.
type worker struct {
	d *Dispatcher

	// jobs is where an idle worker is answered. The dispatcher sends one job after it
	// has received the channel from the pool, or closes it to dismiss the worker. It
	// has room for that job, so the dispatcher never waits for the worker.
	jobs chan entry

	job     entry   // in hand; it has a function, or there is none
	outcome outcome // of its function so far; zero until that is called
}

// An outcome is how the function of a job has ended.
type outcome struct {
	state State
	err   error
	gone  error // why the caller that the job is attached to has gone; nil if it has not
}

// work runs jobs until the dispatcher dismisses the worker. A function that calls
// runtime.Goexit takes the goroutine with it; the worker goes on in a new one, from
// where it was.
func (w *worker) work() {
	dismissed := false
	defer func() {
		if !dismissed {
			w.d.running.Go(w.work)
		}
	}()
	for w.next() {
		w.run()
	}
	dismissed = true
}

// next ends the job in hand, if it has run, and begins another: at once if one is
// queued, since a worker that has finished is idle, else when the dispatcher sends
// one. It returns false if the worker is dismissed.
func (w *worker) next() bool {
	if w.outcome.state.Ended() {
		w.d.finish(w)
	}
	if w.job.fn == nil {
		w.job = <-w.jobs // none, if the channel is closed
	}
	return w.job.fn != nil
}

// run calls the function of the job in hand. All that it calls is code of others, and
// may panic. Until the function returns, the outcome is that of one that never does.
func (w *worker) run() {
	w.outcome = outcome{state: StateFailed, err: errGoexit}
	defer func() {
		if v := recover(); v != nil {
			err := &PanicError{Value: v, Stack: debug.Stack()}
			w.outcome = outcome{state: StatePanicked, err: err}
			w.d.logPanic("job", err, w.job.job)
		}
	}()
	ctx := w.d.ctx
	if w.job.job != nil {
		ctx = &w.job.job.context
	}
	err := w.job.fn(ctx)
	if w.outcome = (outcome{state: StateSucceeded, err: err}); err != nil {
		w.outcome.state = StateFailed
	}
	if j := w.job.job; j != nil && j.context.Attached {
		w.outcome.gone = j.context.Parent.Err()
	}
}

// logPanic logs a panic, and what is known of the request that j comes from, if any.
// http.ErrAbortHandler is no fault: it ends a request. The logger's handler and the
// value's methods are code of others too, and may panic.
func (d *Dispatcher) logPanic(what string, err *PanicError, j *Job) {
	if err.Value == http.ErrAbortHandler {
		return
	}
	defer func() { recover() }()
	log := d.log
	if j != nil && j.context.Value(lazy.AboutKey{}) != nil {
		log = log.With("job", j.context.Value(lazy.AboutKey{}))
	}
	log.Error("holdfast: "+what+" panicked", "panic", err.Value, "stack", string(err.Stack))
}
