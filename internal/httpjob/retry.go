package httpjob

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"holdfast/internal/exchange"
	"holdfast/internal/header"
	"holdfast/internal/later"
	"holdfast/internal/line"
	"holdfast/internal/store"
)

// A Retry says which jobs are tried again, and how often. The zero Retry tries none.
type Retry struct {
	Attempts int   // in all
	On       []int // statuses, besides panics and what was not reached
}

// The bounds of the time between two attempts; see backOff.
const (
	firstBackOff = time.Second
	mostBackOff  = 5 * time.Minute
)

// again is how long a job whose time has come waits if its client holds all the places that
// it may.
const again = time.Second

// errFull is the error of a job that would have to wait for its time where too many do.
var errFull = errors.New("too many jobs wait for their time")

// backOff returns how long to wait after the nth attempt: exponential back-off with full
// jitter, a random time from 0 to min(5m, 1s * 2^(n-1)), as described by Marc Brooker in
// "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015). Jobs that have failed in
// step are spread by it over the whole time, which half as much jitter would not do. What
// the response asks for is the least, and the jitter comes on top, for the same reason.
// most bounds what it can ask for.
func backOff(n int, asked, most time.Duration) time.Duration {
	window := mostBackOff
	if n < 10 { // 2^9 seconds are more than that
		window = min(window, firstBackOff<<(n-1))
	}
	return min(asked, max(most, mostBackOff)) + rand.N(window+1)
}

// retries reports whether a job may be tried more than once.
func (j *Jobs) retries() bool { return j.Retry.Attempts > 1 }

// tellsAttempts reports whether handlers get a Job-Attempt, and a key by which they can tell
// that they have seen the request before.
func (j *Jobs) tellsAttempts() bool { return j.retries() || j.Store.Durable() }

// roomFor returns errFull if a request would become a job that might find no room between
// two attempts. Those that were accepted before come in whatever the bound, so what waits
// there is less than that and the places of the queue together, and no retry is lost.
func (j *Jobs) roomFor() error {
	if j.retries() && j.Room.Full() {
		return errFull
	}
	return nil
}

// A pause is what an execution has while the engine does not: it waits for its time, or it
// is submitted since that has come.
type pause struct {
	item  later.Item
	ctx   context.Context // bounds the wait for a place
	leave context.CancelFunc
	over  chan struct{} // closed when the job is in the engine, or has ended
	ended bool          // set before that
}

// beginPause comes before the store lets anybody know that the job waits, so that a Cancel
// finds the pause.
func (x *execution) beginPause() *pause {
	p := &pause{over: make(chan struct{})}
	p.ctx, p.leave = context.WithCancel(context.Background())
	p.item.Urgency = line.Classless.Urgency
	if x.class != nil {
		p.item.Urgency = x.class.Urgency
	}
	p.item.Enter, p.item.Owner = func() { x.enter(p) }, x
	if x.jobs.Store.Attempts(x.record) == 0 { // it waits since its client has said so
		p.item.Named, p.item.Size = true, int64(x.exchange.Size())
	}
	x.mu.Lock()
	x.pause = p
	x.mu.Unlock()
	return p
}

// await lets the job wait in the room until a time. It returns false if there is no room,
// or if the room is closed.
func (x *execution) await(p *pause, until time.Time, must bool) bool {
	if !x.jobs.Room.Add(&p.item, until, must) {
		return false
	}
	if p.ctx.Err() != nil && x.jobs.Room.Remove(&p.item) { // canceled before it was there
		x.endPause(p, Canceled, context.Canceled)
	}
	return true
}

// enter submits the job, whose time has come, and blocks until it has a place: it stands in
// the row with all others that wait for one.
func (x *execution) enter(p *pause) {
	x.mu.Lock()
	x.job = x.newJob()
	x.mu.Unlock()
	err := x.job.Enter(p.ctx, true)
	switch {
	case err == nil:
		x.donePause(p)
	case p.ctx.Err() != nil:
		x.endPause(p, Canceled, context.Canceled)
	case errors.Is(err, x.jobs.Refusals.Closed) || !x.await(p, time.Now().Add(again), true):
		x.endPause(p, Abandoned, x.jobs.Refusals.Abandoned)
	}
}

// donePause says that the engine has the job.
func (x *execution) donePause(p *pause) {
	p.leave()
	x.mu.Lock()
	if x.pause == p { // or the next attempt is over, too
		x.pause = nil
	}
	x.mu.Unlock()
	close(p.over)
}

// endPause ends the job, which the engine does not have.
func (x *execution) endPause(p *pause, end End, err error) {
	p.ended = true
	p.leave()
	close(p.over)
	x.ended(end, err)
}

// cancelPause cancels a job that the engine does not have, and reports whether that was so.
func (x *execution) cancelPause() bool {
	x.mu.Lock()
	p := x.pause
	x.mu.Unlock()
	if p == nil {
		return false
	}
	p.leave()
	if x.jobs.Room.Remove(&p.item) {
		x.endPause(p, Canceled, context.Canceled)
		return true
	}
	<-p.over
	return p.ended
}

// retry reports whether another attempt follows the one that has ended, and sees to that. If
// none follows although the attempt has come to nothing, o becomes that of a failed job.
func (x *execution) retry(end End, o *store.Outcome) bool {
	j, v := x.jobs, x.exchange.Verdict()
	status := o.Answered()
	if !j.retries() || end != Panicked && !(end == Succeeded && (v.Failed || slices.Contains(j.Retry.On, status))) {
		return false
	}
	n := j.Store.Attempts(x.record)
	if v.Never || n >= j.Retry.Attempts || j.Room.Closed() && !j.Store.Durable() {
		x.giveUp(o, v, n)
		return false
	}
	now := time.Now()
	until := now.Add(backOff(n, header.RetryAfter(v.After, now), j.MaxDelay))
	p := x.beginPause()
	x.exchange.Again()
	if !j.Store.Wait(x.record, until, status) {
		x.endPause(p, Canceled, context.Canceled) // somebody has ended it for its clients
	} else if !x.await(p, until, true) {
		x.endPause(p, Abandoned, j.Refusals.Abandoned)
	}
	return true
}

// giveUp makes o the outcome of a job that has failed after n attempts. It keeps its last
// response.
func (x *execution) giveUp(o *store.Outcome, v exchange.Verdict, n int) {
	if o.State == store.Done {
		o.State, o.Status, o.Detail = store.Failed, o.Answered(), fmt.Sprintf("the handler answered %d", o.Answered())
	}
	switch {
	case v.Never:
		o.Detail += ", and that no other attempt makes sense"
	case n > 1:
		o.Detail += fmt.Sprintf(" at the last of %d attempts", n)
	}
}

// Shutdown ends the jobs that wait for their time: nobody will run them in this process. It
// returns what was to run of those that no other process will run either.
func (j *Jobs) Shutdown() (neverStarted []func(context.Context) error) {
	for _, it := range j.Room.Close() {
		x := it.Owner.(*execution)
		if !j.Store.Durable() {
			neverStarted = append(neverStarted, x.run)
		}
		x.mu.Lock()
		p := x.pause
		x.mu.Unlock()
		x.endPause(p, Abandoned, j.Refusals.Abandoned)
	}
	return neverStarted
}

// Again runs the job with an id again, which has failed, as it was captured. It does not
// wait for a place. The error matches ErrNotFailed if there is no such job, or it cannot be
// made again; Refusals.Full or Refusals.Share if it has no place; Refusals.Closed; or
// store.ErrNotStored.
func (j *Jobs) Again(id store.ID) error {
	if err := j.Store.Ready(); err != nil {
		return err
	}
	record, letter, ok := j.Store.Again(id)
	if !ok {
		return ErrNotFailed
	}
	defer j.Store.Withdraw(record) // unless it is accepted
	rt, ok := letter.Route.(*route)
	if !ok {
		rt = j.restoring
	}
	x := &execution{jobs: j, route: rt}
	if _, err := x.restore(record, letter.Captured); err != nil {
		return err
	}
	if j.Store.Durable() {
		record.Capture(letter.Captured)
	}
	if err := x.job.Enter(context.Background(), false); err != nil {
		x.exchange.Release()
		return err
	}
	return j.Store.Accept(record)
}

// ErrNotFailed is the error of Again for a job that has not failed, or is not kept.
var ErrNotFailed = errors.New("the job has not failed, or is no longer kept")

// letter returns what the job can be made of again.
func (x *execution) letter() store.Letter {
	return store.Letter{Captured: x.encode(time.Time{}), Route: x.route}
}

// Discard forgets a job that has failed, and reports whether it has.
func (j *Jobs) Discard(id store.ID) bool { return j.Store.Discard(id) }
