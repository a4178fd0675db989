package httpjob

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"net/http"
	"sync/atomic"
	"time"

	"holdfast/internal/exchange"
	"holdfast/internal/header"
	"holdfast/internal/line"
	"holdfast/internal/patience"
)

// A route is the handler that requests of one kind are for, with what is known of them.
type route struct {
	handler http.Handler
	limits  Limits
	service patience.Service
	clients patience.Departures
}

func (j *Jobs) newRoute(h http.Handler, l Limits) *route {
	if l.Patience > 0 {
		j.predicts.Store(true)
	}
	return &route{handler: h, limits: l}
}

// serve lets the handler serve a request, and learns how long it takes. The wait for a
// worker depends on the runs of all routes, the time that a request needs on those of
// its own. A run is broken off when client ends.
func (j *Jobs) serve(ctx context.Context, rt *route, x *exchange.Exchange, client context.Context) error {
	started := time.Now()
	err := x.Serve(ctx)
	took, result := time.Since(started), patience.Done
	switch {
	case client.Err() != nil:
		result = patience.Cut
	case err != nil || x.Response().Status() >= http.StatusInternalServerError:
		result = patience.Failed
	}
	j.service.Ran(took, result)
	rt.service.Ran(took, result)
	return err
}

// Late counts the requests that were refused since they could not be answered in time.
type Late struct {
	AtDoor  uint64 // when they came
	Waiting uint64 // while they waited
}

// Late returns how many requests were refused for that reason so far.
func (j *Jobs) Late() Late { return Late{j.lateAtDoor.Load(), j.lateWaiting.Load()} }

// A lateError says that a request cannot be answered in time.
type lateError struct {
	wait time.Duration // that is predicted; 0: it has waited for as long as it could
}

func (e *lateError) Error() string {
	if e.wait == 0 {
		return "the request has waited until it was too late to begin it; try again later"
	}
	return fmt.Sprintf("the request would wait for about %v, and be answered too late; try again later", e.wait.Round(time.Millisecond))
}

// passes is for how many patiences a queue may last and still be called passing: a
// service that is not overloaded has such queues too.
const passes = 2

// states of a turn
const (
	waiting int32 = iota
	begun
	late
)

// A turn is a request that waits for a worker, and what is left of its patience.
//
// The end of its context would end it while it runs, too. So its state decides who
// comes first: the worker, and then the request is the client's own; or the time after
// which it is too late to begin, and then no worker begins it.
type turn struct {
	jobs     *Jobs
	route    *route
	received time.Time
	until    time.Time // when the job is to run; zero: whenever its turn comes
	class    *line.Class
	set      time.Duration // by the operator; 0: none, negative: without end
	named    time.Duration // by the client; 0: none
	probe    bool          // it runs whatever is predicted, so that predictions can improve
	state    atomic.Int32
	cancel   context.CancelCauseFunc
	timer    *time.Timer
}

// classify finds out whose the request is, how urgent, and how patient the operator
// says that it is.
func (t *turn) classify(r *http.Request) {
	t.set = t.route.limits.Patience
	if t.jobs.Classify == nil {
		return
	}
	class, limit := t.jobs.Classify(r)
	t.class = class
	if limit > 0 {
		t.jobs.predicts.Store(true)
		t.set = header.Shorter(limit, t.set)
	}
}

// limit returns the patience: what the client has named or the operator has set, the
// shorter of the two; if there is neither, what is known of other clients; or 0.
func (t *turn) limit() time.Duration {
	if t.set == 0 && t.named == 0 {
		return t.route.clients.Patience()
	}
	return header.Shorter(t.named, t.set)
}

// left returns the time in which the request has to begin; ok is false if it is not
// limited.
func (t *turn) left() (left time.Duration, ok bool) {
	limit := min(t.limit(), math.MaxInt64/passes)
	if limit == 0 || t.probe {
		return 0, false
	}
	return limit - t.route.service.Estimate().Need(limit, t.jobs.standing(passes*limit)) - time.Since(t.received), true
}

// standing reports whether no worker has been idle for a while, or a request has
// expired. That may empty a queue, which then only looks like a passing one.
func (j *Jobs) standing(while time.Duration) bool {
	idle, expired := j.idle.Load(), j.expired.Load()
	return idle != nil && time.Since(*idle) > while || expired != nil && time.Since(*expired) < while
}

// enter returns a lateError if the request cannot be answered in time. A request that
// finds nothing else running while predictions are old is let in all the same: if all
// were refused, nobody would learn that the service has become quick again.
func (t *turn) enter() error {
	load := t.jobs.Queue.Load(cmp.Or(t.class, line.Classless))
	if load.Idle() {
		t.jobs.idle.Store(new(time.Now()))
	}
	left, ok := t.left()
	if !ok {
		return nil
	}
	wait := t.jobs.service.Estimate().Wait(load)
	if wait <= left {
		return nil
	}
	if t.probe = load.Running == 0 && load.Idle() && t.route.service.Stale(); t.probe {
		return nil
	}
	t.countLate(LateAtDoor)
	return &lateError{max(wait, time.Millisecond)}
}

// start returns a context for the time until the end of the request, which ends too
// when it is certain that the request's turn comes too late. stop must follow.
func (t *turn) start(ctx context.Context) context.Context {
	left, ok := t.left()
	ctx, t.cancel = context.WithCancelCause(ctx)
	if ok {
		t.timer = time.AfterFunc(math.MaxInt64, t.check) // check may find t.timer only when it is set
		t.timer.Reset(left)
	}
	return ctx
}

func (t *turn) stop() {
	t.state.CompareAndSwap(waiting, begun) // so that check does not set the timer again
	if t.timer != nil {
		t.timer.Stop()
	}
	t.cancel(nil)
}

// check is called when it was to be too late. The service may have become quicker
// since.
func (t *turn) check() {
	switch left, ok := t.left(); {
	case !ok: // what was learned has been forgotten
	case left > 0:
		if t.state.Load() == waiting {
			t.timer.Reset(left)
		}
	default:
		t.expire()
	}
}

// expire ends the wait, unless a worker has begun.
func (t *turn) expire() {
	if t.state.CompareAndSwap(waiting, late) {
		t.jobs.expired.Store(new(time.Now()))
		t.cancel(errLate)
	}
}

var errLate error = new(lateError)

// begin returns nil if a worker may begin. The client may have left just now, when the
// job could not be canceled yet; the service may have become slower than it was when the
// timer was set, or others may have shown by leaving that it is too late.
func (t *turn) begin(client context.Context) error {
	if err := client.Err(); err != nil {
		return err
	}
	if left, ok := t.left(); ok && left <= 0 {
		t.expire()
	}
	if !t.state.CompareAndSwap(waiting, begun) {
		return errLate
	}
	return nil
}

// expired reports whether the request was not begun since it was too late, and counts
// that.
func (t *turn) expired() bool {
	if t.state.Load() != late {
		return false
	}
	t.countLate(LateWaiting)
	return true
}

// countLate counts that the request was refused since its answer would come too late.
func (t *turn) countLate(when Note) {
	t.jobs.Queue.Note(t.class, when)
	if when == LateAtDoor {
		t.jobs.lateAtDoor.Add(1)
	} else {
		t.jobs.lateWaiting.Add(1)
	}
}

// seen counts a request that was begun in vain, and learns from the client of one that
// has ended how long clients wait. Of one that has named its patience there is nothing to
// learn about those that do not.
func (t *turn) seen(ctx context.Context, began bool) {
	if began && ctx.Err() == context.Canceled {
		t.jobs.Queue.Note(t.class, InVain)
	}
	if t.named > 0 || t.set != 0 {
		return
	}
	switch ctx.Err() {
	case nil:
		t.route.clients.Stayed(time.Since(t.received))
	case context.Canceled:
		t.route.clients.Left(time.Since(t.received))
	}
}

// named returns the time from its receipt in which a request is to be answered, as the
// client says by its headers or the program by the context; or 0.
func named(r *http.Request, received time.Time) time.Duration {
	limit := header.Timeout(r.Header)
	if deadline, ok := r.Context().Deadline(); ok {
		limit = header.Shorter(limit, max(deadline.Sub(received), 1))
	}
	return limit
}

// refused returns the error of a submit whose wait for a place was bounded by ctx.
func (t *turn) refused(ctx context.Context, err error) error {
	if err != nil && err == ctx.Err() && context.Cause(ctx) == errLate {
		t.countLate(LateWaiting)
		return errLate
	}
	return err
}

// place bounds the time that an asynchronous request waits for a place, since it has no
// answer until then. When the time is over, errLate is the cause of the context's end.
func (t *turn) place(r *http.Request) (context.Context, context.CancelFunc) {
	limit := header.Shorter(named(r, t.received), t.set)
	if limit == 0 {
		return r.Context(), func() {}
	}
	return context.WithDeadlineCause(r.Context(), t.received.Add(limit), errLate)
}
