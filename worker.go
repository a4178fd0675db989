package holdfast

import (
	"net/http"
	"runtime/debug"
)

// A worker is one goroutine that runs one job at a time.
type worker struct {
	d *Dispatcher

	// jobs is where an idle worker is answered. The dispatcher sends one job after it
	// has received the channel from the pool, or closes it to dismiss the worker. It
	// has room for that job, so the dispatcher never waits for the worker.
	jobs chan entry
}

// An outcome is how the function of a job has ended.
type outcome struct {
	state State
	err   error
	gone  error // why the caller that the job is attached to has gone; nil if it has not
}

// work runs jobs until the dispatcher dismisses the worker. A job that calls
// runtime.Goexit takes the goroutine with it; the worker goes on in a new one.
func (w *worker) work() {
	dismissed := false
	defer func() {
		if !dismissed {
			w.d.running.Go(w.work)
		}
	}()
	for e := range w.jobs {
		w.run(e)
	}
	dismissed = true
}

// run runs one job. Until the job's function returns, the outcome is that of a
// function that never does.
func (w *worker) run(e entry) {
	o := outcome{state: StateFailed, err: errGoexit}
	defer func() { w.d.finish(w, e, o) }()
	w.call(e, &o)
}

// call calls the function of a job. All that it calls is code of others, and may
// panic. It does not return from a runtime.Goexit, hence the pointer.
func (w *worker) call(e entry, o *outcome) {
	defer func() {
		if v := recover(); v != nil {
			err := &PanicError{Value: v, Stack: debug.Stack()}
			*o = outcome{state: StatePanicked, err: err}
			w.d.logPanic("holdfast: job panicked", err)
		}
	}()
	ctx := w.d.ctx
	if e.job != nil {
		ctx = (*jobContext)(e.job)
	}
	o.err = e.fn(ctx)
	if o.err == nil {
		o.state = StateSucceeded
	}
	if e.job != nil && e.job.attached {
		o.gone = e.job.parent.Err()
	}
}

// logPanic logs a panic with its stack. http.ErrAbortHandler is no fault: it ends a
// request. The logger's handler is code of others too.
func (d *Dispatcher) logPanic(message string, err *PanicError) {
	if err.Value == http.ErrAbortHandler {
		return
	}
	defer func() { recover() }()
	d.log.Error(message, "panic", err.Value, "stack", string(err.Stack))
}
