package holdfast

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// ErrClosed is returned by a submit, also by one that already waits for a place, and
// by Resize, once Shutdown has begun.
var ErrClosed = errors.New("holdfast: dispatcher is shut down")

// ErrAbandoned is the error of a job that ended as [StateAbandoned]. The error of
// [Dispatcher.Shutdown] matches it when there are such jobs.
var ErrAbandoned = errors.New("holdfast: job abandoned at shutdown before it started")

// errStopped is the error of a job whose context was canceled by Shutdown.
var errStopped = fmt.Errorf("%w: running job canceled: %w", ErrClosed, context.Canceled)

// A Report says what became of the jobs that were queued or running when Shutdown
// ended admission. Each is counted in one field.
type Report struct {
	// Finished counts the jobs that have ended, in whatever state, before the
	// shutdown was cut off.
	Finished int
	// Running counts the jobs that were running when the shutdown was cut off. Their
	// contexts are canceled. Their functions may or may not have returned since.
	Running int
	// NeverStarted has the functions of the jobs that were abandoned, in the order in
	// which they were accepted, for the caller to run or to record.
	NeverStarted []func(context.Context) error
}

// Shutdown ends admission, so that submits return [ErrClosed], also those that
// already wait, and blocks until all queued and running jobs have ended. If that
// comes before ctx ends, the error is nil.
//
// If ctx ends first, the shutdown is cut off: queued jobs end as abandoned, the
// contexts of running ones are canceled, and Shutdown returns without waiting for
// their functions. The error then matches ctx.Err(), and [ErrAbandoned] if jobs never
// started. A paused dispatcher abandons its queue at once, since nobody would run it.
//
// Shut the dispatcher down while the HTTP server still listens, so that clients can
// fetch responses while the queue drains, and then the server: in the other order it
// would wait for requests that wait for the queue.
//
// When the functions have returned, no goroutine of the dispatcher is left. If
// Shutdown is called more than once, the earliest end of a context decides, and every
// call returns the same report. A job that calls Shutdown waits for itself. A Dispatcher
// cannot be used again.
func (d *Dispatcher) Shutdown(ctx context.Context) (Report, error) {
	d.endAdmission()
	select {
	case <-d.over:
	case <-ctx.Done():
		d.cutOff(ctx.Err())
	}
	d.lock()
	defer d.mu.Unlock()
	return d.report, d.why
}

// endAdmission lets nobody in any more, and drains the queue.
func (d *Dispatcher) endAdmission() {
	d.lock()
	if d.closed {
		d.mu.Unlock()
		return
	}
	d.closed = true
	for d.stats.Blocked > 0 {
		s := d.blocked.Oldest().Value
		d.unblockLocked(s, d.refuseLocked(&s.entry, ErrClosed))
	}
	d.report.Finished = d.stats.Queued + d.stats.Running
	var abandoned []*Job
	if d.stats.Workers == 0 && d.stats.Queued > 0 {
		abandoned = d.abandonLocked()
		d.why = fmt.Errorf("holdfast: shutdown of a paused dispatcher, %d queued: %w", len(d.report.NeverStarted), ErrAbandoned)
	}
	leaving := d.leaving
	d.dispatchLocked(d.now())
	d.mu.Unlock()

	notify(abandoned)
	d.leave(leaving)
	go func() {
		d.running.Wait()
		d.finished()
		d.cancel(ErrClosed)
	}()
}

// onClose makes f what Shutdown calls when it has ended admission. f lets go of jobs that
// would have been submitted later, and returns their functions, which never start.
func (d *Dispatcher) onClose(f func() []func(context.Context) error) {
	d.lock()
	defer d.mu.Unlock()
	d.leaving = append(d.leaving, f)
}

func (d *Dispatcher) leave(leaving []func() []func(context.Context) error) {
	for _, f := range leaving {
		left := f()
		d.lock()
		if d.report.NeverStarted = append(d.report.NeverStarted, left...); len(left) > 0 {
			d.why = errors.Join(d.why, fmt.Errorf("holdfast: shutdown with %d jobs that waited for their time: %w", len(left), ErrAbandoned))
		}
		d.mu.Unlock()
	}
}

// cutOff ends a shutdown before its time because of err, unless nothing is left to
// cut off.
func (d *Dispatcher) cutOff(err error) {
	d.lock()
	if d.stopped || d.stats.Queued+d.stats.Running == 0 {
		d.mu.Unlock()
		return
	}
	abandoned := d.abandonLocked()
	d.stopped = true
	d.report.Running = d.stats.Running
	d.report.Finished -= d.stats.Running
	d.why = fmt.Errorf("holdfast: shutdown cut off with %d jobs running: %w", d.report.Running, err)
	if n := len(d.report.NeverStarted); n > 0 {
		d.why = fmt.Errorf("%w; %d queued: %w", d.why, n, ErrAbandoned)
	}
	d.dispatchLocked(d.now())
	d.mu.Unlock()

	d.cancel(errStopped)
	notify(abandoned)
	d.finished()
}

// notify notifies jobs that were abandoned. It calls code of others, each in turn. A
// function that calls runtime.Goexit ends the goroutine, and the next one goes on with the
// other jobs.
func notify(jobs []*Job) {
	for len(jobs) > 0 {
		var wg sync.WaitGroup
		wg.Go(func() {
			for len(jobs) > 0 {
				j := jobs[0]
				jobs = jobs[1:]
				j.notify()
			}
		})
		wg.Wait()
	}
}

// abandonLocked empties the queue. The caller notifies the jobs.
func (d *Dispatcher) abandonLocked() (abandoned []*Job) {
	d.report.Finished -= d.stats.Queued
	for d.stats.Queued > 0 {
		j, fn := d.discardLocked(*d.firstLocked(), StateAbandoned, ErrAbandoned)
		d.report.NeverStarted = append(d.report.NeverStarted, fn)
		if j != nil {
			abandoned = append(abandoned, j)
		}
	}
	return abandoned
}
