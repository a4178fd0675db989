package holdfast

import (
	"context"
	"net/http"
	"runtime/debug"

	"holdfast/internal/counts"
)

// A worker is one goroutine that runs one job at a time.
type worker struct {
	d     *Dispatcher
	shard *counts.Shard // where it counts

	// jobs is where an idle worker is answered. Whoever has received it from the
	// pool sends one entry; since there is room for one, nobody waits for the
	// worker. Never closed.
	jobs chan entry

	// The job in hand. Only the worker writes these, job with the shard
	// locked, so that a shutdown can find what runs.
	busy  bool
	fn    func(context.Context) error
	ctx   context.Context
	job   *Job // nil if nobody follows it
	since int64
	state State
	err   error
}

func newWorker(d *Dispatcher, n int) *worker {
	return &worker{d: d, shard: d.counts.Worker(n), jobs: make(chan entry, 1)}
}

// work runs jobs until the dispatcher dismisses the worker. A job that calls
// runtime.Goexit takes the goroutine with it; the worker goes on in a new one,
// which begins by ending that job.
func (w *worker) work() {
	defer func() {
		if w.busy {
			go w.work()
		}
	}()
	for w.next() {
		w.run()
	}
}

// run calls the job's function. Until it returns, the outcome is that of a
// function that never does.
func (w *worker) run() {
	w.state, w.err = Failed, errGoexit
	defer func() {
		if v := recover(); v != nil {
			w.state, w.err = Panicked, &PanicError{Value: v, Stack: debug.Stack()}
			if v != http.ErrAbortHandler { // which is to end a request, not to be told of
				w.d.log.Error("holdfast: job panicked", "panic", v, "stack", string(w.err.(*PanicError).Stack))
			}
		}
	}()
	w.state, w.err = Succeeded, w.fn(w.ctx)
	if w.err != nil {
		w.state = Failed
	}
}

// next ends the job in hand, if there is one, and begins another: straight from
// the queue if one waits there, else from who takes the worker from the pool. It
// returns false when the worker is not needed any more.
//
// To take from the queue directly is not to pass the dispatcher by: a worker
// that has just finished is idle, so still no job leaves the queue but for an
// idle worker. It saves the two hand-overs, and with them most of a small job's
// cost, just when there is no time to lose.
func (w *worker) next() bool {
	d := w.d
	for {
		now := d.now()
		ended, job, state := w.busy, w.job, w.state
		if ended {
			state = w.outcome(now)
		}

		w.shard.Lock()
		if ended {
			w.shard.End(int(state), now-w.since)
			w.busy, w.fn, w.ctx, w.job, w.err = false, nil, nil, nil, nil
		}
		e, taken := w.poll()
		begun := taken && w.begin(e, now) // a sweep leaves no worker that may poll
		w.shard.Unlock()

		if ended {
			d.freePlace()
			if job != nil {
				job.tell()
			}
		} else if taken {
			d.roomMade()
		}
		if begun {
			return true
		}
		if taken { // a job canceled while it was queued: its place is free now
			d.freePlace()
			continue
		}

		d.pool <- w.jobs
		if e = <-w.jobs; e.fn == nil && e.job == nil {
			return false
		}
		now = d.now()
		w.shard.Lock()
		swept := d.sweeping.Load()
		begun = !swept && w.begin(e, now)
		w.shard.Unlock()
		switch {
		case begun:
			return true
		case swept:
			d.abandon(e)
		default:
			d.freePlace()
		}
	}
}

// poll takes a job from the queue if one waits and the worker is not surplus.
// The shard must be locked.
func (w *worker) poll() (e entry, ok bool) {
	if w.d.surplus.Load() > 0 {
		return e, false
	}
	select {
	case e = <-w.d.queue:
		return e, true
	default:
		return e, false
	}
}

// begin takes e in hand, or returns false if the job has been canceled. The shard
// must be locked, and no sweep have begun: whoever has locked every shard knows
// that no job begins.
func (w *worker) begin(e entry, now int64) bool {
	var accepted int64
	if e.job == nil {
		w.fn, w.ctx, accepted = e.fn, w.d.ctx, e.stamp.Free()
	} else {
		var ok bool
		if w.fn, w.ctx, accepted, ok = e.job.begin(now); !ok {
			w.shard.Vacated--
			return false
		}
	}
	w.busy, w.job, w.since = true, e.job, now
	w.shard.Begin(now - accepted)
	return true
}

// outcome decides how the job in hand has ended.
func (w *worker) outcome(now int64) State {
	switch {
	case w.job != nil:
		return w.job.finish(w.state, w.err, now)
	case w.state != Panicked && w.d.ctx.Err() != nil:
		return Canceled
	}
	return w.state
}
