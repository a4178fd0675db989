// Package httpjob runs HTTP requests as jobs: it captures a request, submits it to a
// queue, keeps the response, and answers the client. It knows the queue by an
// interface, since the dispatcher must know nothing of HTTP.
package httpjob

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/internal/budget"
	"holdfast/internal/exchange"
	"holdfast/internal/header"
	"holdfast/internal/later"
	"holdfast/internal/lazy"
	"holdfast/internal/line"
	"holdfast/internal/patience"
	"holdfast/internal/problem"
	"holdfast/internal/resource"
	"holdfast/internal/store"
)

// A Queue runs functions on workers.
type Queue interface {
	// NewJob returns a job that is yet to be submitted. As a job, run gets a context
	// with the values of ctx. ended is called once, when the job has ended.
	NewJob(ctx context.Context, class *line.Class, limit time.Duration, run func(context.Context) error, ended func(End, error)) Job

	// Do submits run and returns when it has ended, or was refused. If ctx ends before
	// it has begun, it is not called.
	Do(ctx context.Context, class *line.Class, limit time.Duration, run func(context.Context) error) (End, error)

	// Note counts what has happened to a request of a class.
	Note(class *line.Class, what Note)

	// Load returns how much there is to do before a job of a class, or in all if class is
	// nil.
	Load(class *line.Class) patience.Load
}

// A Note is what a Queue counts for package httpjob.
type Note int

const (
	LateAtDoor  Note = iota // it was refused, since it could not be answered in time
	LateWaiting             // likewise, while it waited
	InVain                  // it was begun, and its client left before the answer
)

// Refusals are the errors for which a request has not run.
type Refusals struct {
	Full, Share, Dropped, Closed, Abandoned, Nested error

	// Moved is what a client is told when the queue is closed, and others go on with it: it
	// makes sense to try again. If empty, the server is shutting down.
	Moved string
}

// explain says to a client why its request has not run, and whether it makes sense to
// try again.
func (r Refusals) explain(err error) (detail string, again bool) {
	late, isLate := err.(*lateError)
	switch {
	case isLate:
		return late.Error(), true
	case err == errFull:
		return err.Error() + "; try again later", true
	case errors.Is(err, r.Full):
		return "the queue is full; try again later", true
	case errors.Is(err, r.Share):
		return "the client has all the places in the queue that it may have; try again later", true
	case errors.Is(err, r.Dropped):
		return "the request gave its place in a full queue to another one; try again later", true
	case r.Moved != "" && (errors.Is(err, r.Closed) || errors.Is(err, r.Abandoned)):
		return r.Moved, true
	case errors.Is(err, r.Closed), errors.Is(err, r.Abandoned):
		return "the server is shutting down", false
	case errors.Is(err, r.Nested):
		return "the request comes from a job of the same queue, which would wait for itself", false
	}
	return "the request ended before it was accepted", false // its client has left; nobody reads this
}

// A Job is a function that is to run on a worker.
type Job interface {
	// Submit blocks until the job is accepted, or returns an error. ctx bounds the wait.
	Submit(ctx context.Context) error

	// Enter is Submit for a job that was accepted before, whatever the policy of the queue: it
	// waits for a place if it may, or else is refused.
	Enter(ctx context.Context, wait bool) error

	// Resubmit is Submit for a job that was accepted before a restart: it has a place
	// whatever the bound and whatever its client has, as if the queue had been longer until
	// just now. It does not block. An error means that the queue is closed.
	Resubmit() error

	// Cancel cancels the job, and reports whether it has ended by that. It may come
	// before Submit has returned.
	Cancel() bool
}

// An End is how a job has ended.
type End int

const (
	Refused   End = iota // it was not accepted
	_                    // so that the following have the numbers of holdfast.State
	Succeeded            // run returned nil
	Failed               // it did not, or not in time; the error says why
	Panicked             // it panicked, but not with http.ErrAbortHandler
	Canceled             // by its client
	Dropped              // for a newer job
	Abandoned            // by a shutdown, before it began
	Aborted              // it panicked with http.ErrAbortHandler
	Stopped              // by a shutdown
)

// Limits are the bounds of a route.
type Limits struct {
	Body int64         // bytes of a request
	Run  time.Duration // time that a job may run; 0: no limit

	// Patience is the time after which an answer is worth nothing. 0: for Queued it is
	// learned from the clients, for Async there is none. Negative: there is none.
	Patience time.Duration
}

// Jobs turns requests into jobs.
type Jobs struct {
	Queue       Queue
	Refusals    Refusals
	Store       *store.Store
	Memory      *budget.Budget // of all that is held for clients; nil: no bound
	Resource    *resource.Handler
	Classify    func(*http.Request) (*line.Class, time.Duration) // and the patience, 0 if it is not limited; nil: all are alike
	MaxResponse int64                                            // bytes
	OnEnd       func(string, store.View)                         // called with the id, if it can be looked up, once for each job that has ended; may be nil
	NotMounted  func()                                           // called if no client can follow its job; see checkMount

	Retry    Retry
	Room     *later.Room   // where jobs wait for their time
	MaxDelay time.Duration // how far ahead a request may say that it is to run; not positive: it may not

	mount     sync.Once
	restoring *route // of jobs that were accepted before a restart; nil: there are none

	predicts    atomic.Bool      // some route has a patience
	service     patience.Service // of all routes
	pushback    patience.Pushback
	idle        atomic.Pointer[time.Time] // when a request last found an idle worker
	expired     atomic.Pointer[time.Time] // when a request last expired
	lateAtDoor  atomic.Uint64
	lateWaiting atomic.Uint64
}

// IDKey is the key of the job's id, a store.ID, among the values of its context.
type IDKey struct{}

// Sync returns a handler that calls h at once, unless the client prefers an
// asynchronous response.
func (j *Jobs) Sync(h http.Handler, l Limits) http.Handler {
	return j.unlessAsync(j.newRoute(h, l), func(w http.ResponseWriter, r *http.Request, p header.Prefer, _ *budget.Hold) {
		stripped := p.Strip(r)
		h.ServeHTTP(w, stripped)
		if r.MultipartForm == nil { // whose files the server removes, if they are in its own request
			r.MultipartForm = stripped.MultipartForm
		}
	})
}

// Queued returns a handler that lets a worker call h and answers with its response,
// unless the client prefers an asynchronous one.
func (j *Jobs) Queued(h http.Handler, l Limits) http.Handler {
	j.predicts.Store(true) // clients may name their patience
	rt := j.newRoute(h, l)
	return j.unlessAsync(rt, func(w http.ResponseWriter, r *http.Request, p header.Prefer, hold *budget.Hold) {
		t := turn{jobs: j, route: rt, received: time.Now()}
		t.classify(r)
		t.named = header.Shorter(named(r, t.received), p.Wait)
		// To the end: before that the server does not notice a client that leaves.
		body, ok := problem.ReadBodyInto(hold, w, r, l.Body)
		if !ok {
			return
		}
		if err := t.enter(); err != nil {
			j.refuse(w, t.class, err)
			return
		}
		j.queued(w, r, &t, body, p)
	})
}

// queued lets a request wait for its turn and answers it.
func (j *Jobs) queued(w http.ResponseWriter, r *http.Request, t *turn, body []byte, p header.Prefer) {
	var x exchange.Exchange
	defer x.Release()
	if !j.hold(&x, r) {
		problem.NoMemory(w, j.Memory, noMemory)
		return
	}
	about := newAbout(r, store.ID{})
	accepted, started := time.Now(), time.Time{}
	hurry := resource.Unhurried(w, r)
	end, err := j.Queue.Do(t.start(withAbout{r.Context(), about}), t.class, t.route.limits.Run, func(ctx context.Context) error {
		if err := t.begin(r.Context()); err != nil {
			return err
		}
		started = time.Now()
		x.Capture(t.route.handler, p.Strip(r), body, j.MaxResponse)
		return j.serve(ctx, t.route, &x, r.Context())
	})
	hurry()
	if end != Refused {
		problem.Forget(r)
	}
	t.stop()
	t.seen(r.Context(), !started.IsZero())
	o := outcome(&x, end, err)
	if t.expired() {
		err, o.State, o.Detail = errLate, store.Canceled, "the job was not begun, since its answer would have come too late"
	}
	if j.OnEnd != nil && end != Refused {
		j.OnEnd("", store.View{Outcome: o, Request: about.request, Accepted: accepted, Started: started, Ended: time.Now()})
	}
	if o.State == store.Done {
		x.Response().CopyHeader(w.Header())
		x.Response().Write(w, r.Method)
		return
	}
	j.fail(w, t.class, o, err)
}

// fail answers a request whose job has no response.
func (j *Jobs) fail(w http.ResponseWriter, class *line.Class, o store.Outcome, err error) {
	switch {
	case o.Detail == exchange.Aborted:
		panic(http.ErrAbortHandler)
	case o.State == store.Failed:
		problem.Retry(w, o.Status, o.Detail, j.RetryAfter)
	default:
		j.refuse(w, class, err)
	}
}

// Async returns a handler that accepts requests as jobs and answers with 202.
func (j *Jobs) Async(h http.Handler, l Limits) http.Handler {
	rt := j.newRoute(h, l)
	return &entrance{j, func(w http.ResponseWriter, r *http.Request, p header.Prefer, hold *budget.Hold) {
		j.async(w, r, rt, p, hold)
	}}
}

func (j *Jobs) unlessAsync(rt *route, next answer) http.Handler {
	return &entrance{j, func(w http.ResponseWriter, r *http.Request, p header.Prefer, hold *budget.Hold) {
		if p.RespondAsync {
			j.async(w, r, rt, p, hold)
			return
		}
		next(w, r, p, hold)
	}}
}

// async accepts a request as a job and answers it.
func (j *Jobs) async(w http.ResponseWriter, r *http.Request, rt *route, p header.Prefer, hold *budget.Hold) {
	j.mount.Do(func() { j.checkMount(r) })
	received := time.Now()
	// To the end: before that the server does not notice a client that leaves while the
	// request waits for a place.
	body, ok := problem.ReadBodyInto(hold, w, r, rt.limits.Body)
	if !ok {
		return
	}
	key, err := header.ParseKey(r.Header["Idempotency-Key"])
	if err != nil {
		problem.Write(w, http.StatusBadRequest, err.Error())
		return
	}
	until, err := header.ParseDelay(r.Header, received, j.MaxDelay)
	if err != nil {
		problem.Write(w, http.StatusBadRequest, err.Error())
		return
	}
	hurry := resource.Unhurried(w, r)
	t := &turn{jobs: j, route: rt, received: received, until: until}
	t.classify(r)
	record, err := j.accept(p.Strip(r), t, body, key)
	if hurry(); err != nil {
		j.notAccepted(w, t.class, err)
		return
	}
	problem.Forget(r)
	if p.Wait > 0 && j.Resource.Await(w, r, record, received.Add(p.Wait)) {
		j.Resource.Result(w, r, record, resource.Applied(false, p.Wait))
		return
	}
	j.Resource.Accepted(w, record, resource.Applied(p.RespondAsync, p.Wait))
}

// notAccepted answers a request of a class that has become no job.
func (j *Jobs) notAccepted(w http.ResponseWriter, class *line.Class, err error) {
	switch {
	case errors.Is(err, store.ErrOtherRequest):
		problem.Write(w, http.StatusUnprocessableEntity, "the Idempotency-Key was used for another request; want a new one")
	case errors.Is(err, store.ErrNotStored):
		problem.Retry(w, http.StatusServiceUnavailable, "the job could not be stored; try again later", j.RetryAfter)
	case err == problem.ErrNoMemory:
		problem.NoMemory(w, j.Memory, noMemory)
	default:
		j.refuse(w, class, err)
	}
}

// accept returns the record of the job that the request becomes, or has become before.
// It blocks while there is no place, or while another request with the same key does.
func (j *Jobs) accept(r *http.Request, t *turn, body []byte, key string) (*store.Job, error) {
	var claim *store.Claim
	if key != "" {
		record, first, err := j.Store.Claim(r.Context(), store.KeyOf(r, key), store.PrintOf(r, body))
		if err != nil || record != nil {
			return record, err
		}
		claim = first
		defer j.Store.Release(claim)
	}
	if err := j.Store.Ready(); err != nil {
		return nil, err
	}
	if err := j.roomFor(); err != nil {
		return nil, err
	}
	// What the operator says is about the job, what the client says is not: it is about
	// the answer, which is that the job was accepted, and proxies say it of all requests.
	if t.set > 0 && t.until.IsZero() {
		if err := t.enter(); err != nil {
			return nil, err
		}
	}
	if j.Store.Durable() { // whose journal gets a copy of the request, until Accept has returned
		var copied budget.Hold
		copied.Open(j.Memory, 0)
		defer copied.Close()
		if !copied.Reserve(int64(len(body)) + budget.Copy(r.Header)) {
			return nil, problem.ErrNoMemory
		}
	}
	x, err := j.capture(r, t, body, key)
	if err != nil {
		return nil, err
	}
	return x.record, x.accept(r, t, claim)
}

// capture returns the execution that the request becomes.
func (j *Jobs) capture(r *http.Request, t *turn, body []byte, key string) (*execution, error) {
	x := &execution{jobs: j, route: t.route, class: t.class, limit: t.route.limits.Run}
	if !j.hold(&x.exchange, r) || !x.exchange.Hold.Reserve(budget.Copy(r.Header)) { // the handler gets a copy of its own
		x.exchange.Hold.Close()
		return nil, problem.ErrNoMemory
	}
	problem.Give(r, &x.exchange.Hold)
	about := newAbout(r, store.NewID())
	x.record = store.NewJob(about.id, x, about.request)
	x.exchange.Capture(t.route.handler, r, body, j.MaxResponse)
	x.exchange.Keep()
	x.exchange.DelHeader("Run-At")
	x.exchange.DelHeader("Delay")
	if key == "" && j.tellsAttempts() {
		x.exchange.SetHeader("Idempotency-Key", `"`+x.record.ID.String()+`"`)
	}
	if j.Store.Durable() {
		x.journal(t)
	}
	x.values = withAbout{lazy.Values(r.Context()), about}
	if t.until.IsZero() {
		x.job = x.newJob()
	} else {
		j.Store.Delay(x.record, t.until)
	}
	return x, nil
}

// newJob returns the job of the engine that is the next attempt.
func (x *execution) newJob() Job {
	return x.jobs.Queue.NewJob(x.values, x.class, x.limit, x.run, x.ended)
}

// accept makes the execution a job that its client may rely on. It blocks while there is
// no place, and until the job is stored.
func (x *execution) accept(r *http.Request, t *turn, claim *store.Claim) error {
	// It is known before it is accepted, so no job can have ended before it is known.
	x.jobs.Store.Add(x.record, claim)
	defer x.jobs.Store.Withdraw(x.record) // unless it is accepted
	if err := x.submit(r, t); err != nil {
		x.exchange.Hold.Close()
		return err
	}
	err := x.jobs.Store.Accept(x.record)
	// A job that is not stored comes to nothing, as its client is told. But if it runs, the
	// repeat of a request under a key gets what becomes of it.
	if err != nil && (claim == nil || x.jobs.Store.State(x.record) == store.Queued) {
		x.Cancel()
	}
	return err
}

// submit gives the job a place in the queue, or in the room if it is to run later.
func (x *execution) submit(r *http.Request, t *turn) error {
	if t.until.IsZero() {
		ctx, stop := t.place(r)
		defer stop()
		return t.refused(ctx, x.job.Submit(ctx))
	}
	if p := x.beginPause(); !x.await(p, t.until, false) {
		if x.jobs.Room.Closed() {
			return x.jobs.Refusals.Closed
		}
		return errFull
	}
	return nil
}

// withAbout is the context of a request that becomes a job.
type withAbout struct {
	context.Context
	about *about
}

func (c withAbout) Value(key any) any {
	switch key {
	case lazy.AboutKey{}:
		return c.about
	case IDKey{}:
		if c.about.id != (store.ID{}) {
			return c.about.id
		}
	}
	return c.Context.Value(key)
}

// about is what a log says of a request. The id is cut to what opens no job.
type about struct {
	id        store.ID // zero for a job that nobody can look up
	request   store.Request
	requestID string
}

func newAbout(r *http.Request, id store.ID) *about {
	return &about{id: id, request: store.RequestOf(r), requestID: r.Header.Get("X-Request-Id")}
}

// LogValue implements slog.LogValuer.
func (a *about) LogValue() slog.Value {
	attrs := []slog.Attr{slog.String("method", a.request.Method), slog.String("target", cut(a.request.Target))}
	if a.id != (store.ID{}) {
		attrs = append(attrs, slog.String("id", a.id.Short()))
	}
	if a.requestID != "" {
		attrs = append(attrs, slog.String("request_id", cut(a.requestID)))
	}
	return slog.GroupValue(attrs...)
}

// cut bounds what a client has sent and a log repeats.
func cut(s string) string { return s[:min(len(s), 200)] }

// An execution is a request that is a job.
type execution struct {
	jobs     *Jobs
	route    *route
	class    *line.Class
	limit    time.Duration   // that an attempt may run
	values   context.Context // whose values each attempt sees
	record   *store.Job
	exchange exchange.Exchange

	mu    sync.Mutex // protects the following fields
	job   Job        // the present attempt, or the last
	pause *pause     // before a further attempt, or the first; nil while the engine has the job

	cut    bool        // a shutdown has ended its context while it ran; set when run returns
	stored atomic.Bool // it has ended for this process, and is for the next one to run
}

// Cancel implements store.Work.
func (x *execution) Cancel() bool {
	if x.stored.CompareAndSwap(true, false) { // or the next process would run it
		x.ended(Canceled, context.Canceled)
		return true
	}
	if x.cancelPause() {
		return true
	}
	x.mu.Lock()
	job := x.job
	x.mu.Unlock()
	return job.Cancel()
}

var (
	errEnded  = errors.New("the request's job has ended, and its clients know that")
	errStored = errors.New("the request's job is stored, and runs after a restart")
)

// run is what the worker calls. A program may call it too, if a shutdown has returned
// it as never started.
func (x *execution) run(ctx context.Context) error {
	if x.stored.Load() {
		return errStored
	}
	attempt := x.jobs.Store.Start(x.record)
	if attempt == 0 {
		return errEnded
	}
	if attempt > 1 || x.jobs.tellsAttempts() {
		x.exchange.SetHeader("Job-Attempt", strconv.Itoa(attempt))
	}
	if x.jobs.Store.Durable() {
		defer func() { x.cut = errors.Is(context.Cause(ctx), x.jobs.Refusals.Closed) }()
	}
	if !x.jobs.predicts.Load() {
		return x.exchange.Serve(ctx)
	}
	return x.jobs.serve(ctx, x.route, &x.exchange, context.Background())
}

// ended tells the store how the job has ended. What a shutdown has cut off beside a
// journal has not: it is submitted again after the restart. That holds also where the
// handler panics when its context ends, as a ReverseProxy does.
func (x *execution) ended(end End, err error) {
	cut := end == Abandoned || end == Stopped || x.cut && (end == Aborted || end == Panicked)
	if cut && x.jobs.Store.Durable() {
		x.stored.Store(true)
		x.exchange.Release()
		return
	}
	o := outcome(&x.exchange, end, err)
	if x.retry(end, &o) {
		return
	}
	if o.Response.Size() > 0 {
		o.Response = x.exchange.Retain()
	}
	if o.State == store.Failed {
		o.Letter = x.letter()
	}
	v := x.jobs.Store.End(x.record, o)
	x.exchange.Release()
	x.jobs.tell(x.record, v)
}

func (j *Jobs) tell(record *store.Job, v store.View) {
	if j.OnEnd != nil {
		j.OnEnd(record.ID.String(), v)
	}
}

// outcome is what the end of a job means to clients.
func outcome(x *exchange.Exchange, end End, err error) store.Outcome {
	o := store.Outcome{State: store.Canceled, Status: http.StatusGone}
	switch end {
	case Succeeded:
		return store.Outcome{State: store.Done, Response: x.Response()}
	case Failed:
		o.State = store.Failed
		o.Status, o.Detail = x.Failure(err)
	case Aborted:
		o.State = store.Failed
		o.Status, o.Detail = x.Failure(http.ErrAbortHandler)
	case Panicked:
		// What it panicked with is not examined: an error's methods are code of others.
		return store.Outcome{State: store.Failed, Status: http.StatusInternalServerError, Detail: "the handler panicked"}
	case Canceled:
		o.Detail = "the job was canceled"
	case Stopped:
		o.Detail = "the job was canceled when the server shut down"
	case Abandoned:
		o.Detail = "the server shut down before the job had started"
	case Dropped:
		o.State, o.Detail = store.Dropped, "the job was dropped from a full queue for a newer one"
	}
	return o
}

// RetryAfter returns the seconds after which the present queue will have been worked off.
func (j *Jobs) RetryAfter() int { return j.Queue.Load(nil).RetryAfter() }

// refuse answers a request of a class that has come to nothing.
func (j *Jobs) refuse(w http.ResponseWriter, class *line.Class, err error) {
	after := func() int { return j.Queue.Load(cmp.Or(class, line.Classless)).RetryAfter() }
	detail, again := j.Refusals.explain(err)
	switch {
	case !again:
		problem.Write(w, http.StatusServiceUnavailable, detail)
	case errors.Is(err, j.Refusals.Share): // it is the client's own doing, so others need not wait longer
		problem.Retry(w, http.StatusTooManyRequests, detail, after)
	default:
		problem.Retry(w, http.StatusServiceUnavailable, detail, func() int {
			return min(after()+j.pushback.Refused(), patience.MaxRetryAfter)
		})
	}
}

// checkMount calls NotMounted if the server has no handler for the jobs: then each 202
// would have a Location that is 404. It sees that where the server's handler is a
// ServeMux without middleware around it.
func (j *Jobs) checkMount(r *http.Request) {
	s, ok := r.Context().Value(http.ServerContextKey).(*http.Server)
	if !ok {
		return
	}
	mux, ok := s.Handler.(*http.ServeMux)
	if s.Handler == nil {
		mux, ok = http.DefaultServeMux, true
	}
	if !ok {
		return
	}
	probe := &http.Request{Method: http.MethodGet, Host: r.Host, URL: &url.URL{Path: j.Resource.Path + "id"}}
	if _, pattern := mux.Handler(probe); pattern == "" {
		j.NotMounted()
	}
}
