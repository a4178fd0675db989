package holdfast

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"holdfast/internal/exchange"
	"holdfast/internal/header"
	"holdfast/internal/problem"
	"holdfast/internal/resource"
	"holdfast/internal/store"
)

// A JobsConfig says how requests become jobs, and how long their results are kept.
// The zero JobsConfig is ready to use.
type JobsConfig struct {
	// Path is where the Jobs is mounted. It begins and ends in a slash. If empty,
	// "/jobs/" is used.
	Path string

	// MaxBody is the greatest size of a request's body in bytes; a larger one is
	// answered with 413. If zero, 1 MiB is used.
	MaxBody int64

	// MaxResponse is the greatest size of a response in bytes, header and trailer
	// included. A job with a larger one fails. It may not be more than half of
	// RetainBytes; if zero, 8 MiB or that half is used, whichever is less.
	MaxResponse int64

	// Retain is how long a job can be read after its end. If zero, 1 hour is used.
	Retain time.Duration

	// RetainJobs is how many ended jobs are kept, and RetainBytes about how many bytes
	// they may take. Beyond that, those that ended first are forgotten first. If zero,
	// 100,000 and 256 MiB are used. Queued and running jobs are always kept.
	// RetainBytes may not be less than 64 KiB.
	RetainJobs  int
	RetainBytes int64

	// OnEnd is called once for each job of Queued and Async that has ended, in
	// whatever state, for logs and metrics. For Async the worker calls it that ran the
	// job, or whoever canceled it, so it should return soon. A panic in it is logged. If
	// nil, nothing is called.
	OnEnd func(JobInfo)

	// PublicURL is where clients find the root of the server, such as
	// "https://host/queue", if that is not where it listens: a prefix for all URLs
	// that clients are given. The routes stay. If empty, the URLs are relative.
	PublicURL string
}

// Jobs turns requests into jobs of a dispatcher, and serves the jobs to clients. Its
// methods, and the handlers that they return, may be called by any number of
// goroutines at once.
//
// A wrapped handler needs no change. As a job it gets the request's method, target,
// header and body, the values of the request's context, and a ResponseWriter that
// writes into memory, so that a slow reader does not hold a worker. Its response is
// kept as net/http would have sent it: status, header, body and trailer, with the
// Content-Type and the Content-Length that net/http adds. Since responses are
// buffered, nothing is streamed: a Flush sends nothing, and informational responses
// (1xx) are left out. What needs the connection is not supported: Hijack and deadlines
// return [http.ErrNotSupported], and a handler that switches protocols fails.
// Preferences that were meant for Jobs are removed from the request.
type Jobs struct {
	d           *Dispatcher
	limits      Limits
	maxResponse int64
	onEnd       func(JobInfo)
	store       *store.Store
	resource    *resource.Handler
	mount       *sync.Once // see checkMount
}

// NewJobs returns Jobs that run on d. If a field of cfg is not as described, the error
// names it.
func NewJobs(d *Dispatcher, cfg JobsConfig) (*Jobs, error) {
	if cfg.Path == "" {
		cfg.Path = "/jobs/"
	}
	orDefault(&cfg.MaxBody, 1<<20)
	orDefault(&cfg.RetainBytes, 256<<20)
	orDefault(&cfg.MaxResponse, min(8<<20, cfg.RetainBytes/2))
	orDefault(&cfg.Retain, time.Hour)
	orDefault(&cfg.RetainJobs, 100_000)
	switch {
	case cfg.Path[0] != '/' || cfg.Path[len(cfg.Path)-1] != '/':
		return nil, fmt.Errorf("holdfast: JobsConfig.Path is %q; want it to begin and end in /", cfg.Path)
	case cfg.MaxBody < 0 || cfg.MaxResponse < 0 || cfg.Retain < 0 || cfg.RetainJobs < 0:
		return nil, fmt.Errorf("holdfast: JobsConfig has MaxBody %d, MaxResponse %d, Retain %v and RetainJobs %d; want 0 (the default) or more", cfg.MaxBody, cfg.MaxResponse, cfg.Retain, cfg.RetainJobs)
	case cfg.RetainBytes < 64<<10 || cfg.MaxResponse > cfg.RetainBytes/2:
		return nil, fmt.Errorf("holdfast: JobsConfig.RetainBytes is %d; want at least 64 KiB, and twice MaxResponse, which is %d", cfg.RetainBytes, cfg.MaxResponse)
	}
	s := store.New(store.Bounds{Jobs: cfg.RetainJobs, Bytes: cfg.RetainBytes, Age: cfg.Retain})
	return &Jobs{
		d:           d,
		limits:      Limits{MaxBody: cfg.MaxBody, Timeout: d.jobTimeout},
		maxResponse: cfg.MaxResponse,
		onEnd:       cfg.OnEnd,
		store:       s,
		// Once a shutdown is over or was cut off, nobody need wait for a job.
		resource: &resource.Handler{Store: s, Path: cfg.Path, Base: cfg.PublicURL, RetryAfter: d.retryAfter, Stop: d.over},
		mount:    new(sync.Once),
	}, nil
}

func orDefault[T int | int64 | time.Duration](field *T, value T) {
	if *field == 0 {
		*field = value
	}
}

// Limits are the limits of a route. A limit of zero is that of the Jobs.
type Limits struct {
	MaxBody int64         // as in JobsConfig
	Timeout time.Duration // as JobTimeout in Config
}

// With returns a view of j that wraps handlers under other limits, so that one route
// for uploads need not raise the limits of all. The jobs are the same, and only one
// of the views is mounted. A negative limit is an error.
func (j *Jobs) With(l Limits) (*Jobs, error) {
	if l.MaxBody < 0 || l.Timeout < 0 {
		return nil, fmt.Errorf("holdfast: Limits has MaxBody %d and Timeout %v; want 0 (as before) or more", l.MaxBody, l.Timeout)
	}
	orDefault(&l.MaxBody, j.limits.MaxBody)
	orDefault(&l.Timeout, j.limits.Timeout)
	view := *j
	view.limits = l
	return &view, nil
}

// Sync returns a handler that calls h at once, in the request's own goroutine and
// outside of the pool. A request with Prefer: respond-async is answered as by
// [Jobs.Async].
func (j *Jobs) Sync(h http.Handler) http.Handler {
	return j.unlessAsync(h, func(w http.ResponseWriter, r *http.Request, p header.Prefer) {
		stripped := p.Strip(r)
		h.ServeHTTP(w, stripped)
		if r.MultipartForm == nil { // whose files the server removes, if they are in its own request
			r.MultipartForm = stripped.MultipartForm
		}
	})
}

// Queued returns a handler that lets the request wait in the queue until a worker
// calls h with it, and answers with the response of h. If the client leaves before h
// is called, it is not called; if it leaves later, the request's context ends. A
// request that is refused or dropped gets 503, one that runs for longer than its limit
// 504, and a panic becomes 500. A request with Prefer: respond-async is answered as by
// [Jobs.Async].
func (j *Jobs) Queued(h http.Handler) http.Handler {
	return j.unlessAsync(h, func(w http.ResponseWriter, r *http.Request, p header.Prefer) {
		// To the end: before that the server does not notice a client that leaves.
		body, ok := problem.ReadBody(w, r, j.limits.MaxBody)
		if !ok {
			return
		}
		begun := time.Now()
		var started time.Time
		x := &execution{jobs: j, job: Job{d: j.d, parent: r.Context(), attached: true, timeout: j.limits.Timeout}}
		x.job.fn = func(ctx context.Context) error {
			started = time.Now()
			x.exchange.Capture(ctx, h, p.Strip(r), body, j.maxResponse)
			return x.exchange.Serve()
		}
		hurry := resource.Unhurried(w, r)
		err := Submitter{j.d, byDefault}.do(r.Context(), &x.job)
		hurry()
		defer x.exchange.Release()
		if x.job.State().Ended() && j.onEnd != nil {
			v := store.View{Outcome: x.outcome(), Request: store.RequestOf(r), Accepted: begun, Started: started, Ended: time.Now()}
			j.callOnEnd(infoOf("", v))
		}
		x.answer(w, r, err)
	})
}

// answer answers a client that has waited for the response.
func (x *execution) answer(w http.ResponseWriter, r *http.Request, err error) {
	switch x.job.State() {
	case StateSucceeded:
		x.exchange.Response().CopyHeader(w.Header())
		x.exchange.Response().Write(w, r.Method)
	case StateFailed, StatePanicked:
		status, detail := x.failure()
		if detail == exchange.Aborted {
			panic(http.ErrAbortHandler)
		}
		problem.Write(w, status, detail)
	default: // it has not run, or its client has gone
		x.jobs.refuse(w, err)
	}
}

// Async returns a handler that accepts a request as a job, and answers at once with
// 202, the Location of the job, and
//
//	{"id":"…","state":"queued","url":"/jobs/…"}
//
// When its turn has come, a worker calls h with the request. The response of h can be
// read at Location/response. The context that h gets does not end when the client
// leaves, and [JobID] returns the job's id by it.
//
// With Prefer: wait=n the answer waits for up to n seconds, 50 at most, and is the
// real response if that is there. A repeated request, that is one with an
// Idempotency-Key that the same client (by its Authorization and Cookie) has used
// before, is no new job: it is answered with the first one, or, if it is not the same
// request, with 422.
//
// What happens when every place is taken is up to the dispatcher's overflow policy:
// under Block the request waits, and a client that leaves while it waits has no job; a
// refusal is 503 with Retry-After.
func (j *Jobs) Async(h http.Handler) http.Handler {
	return j.preferring(func(w http.ResponseWriter, r *http.Request, p header.Prefer) { j.async(w, r, h, p) })
}

// ServeHTTP serves the jobs below Path. GET {id} reports where a job stands, at once,
// with Prefer: wait=n, or as a stream of events (Accept: text/event-stream).
// GET {id}/response is the response. DELETE {id} cancels. The id is all that one needs
// for that, and without it one learns nothing.
func (j *Jobs) ServeHTTP(w http.ResponseWriter, r *http.Request) { j.resource.ServeHTTP(w, r) }

// ListHandler returns a handler that answers GET with the jobs as
// {"jobs":[…],"next":"…"}: first those that have not ended, the last accepted first,
// then those that have, the last ended first. The query parameter state selects the
// jobs in one state, limit is the size of a page, 1 to 1000 (100 by default), and after
// is the next of the page before. Without a next there are no more jobs; with one a
// page may still be short, or empty. Paging to the end returns every job that was
// present throughout. A job that ends meanwhile may be returned twice.
//
// It is for the operator alone: whoever can read the list can read and cancel every
// job. It authenticates nobody.
func (j *Jobs) ListHandler() http.Handler { return http.HandlerFunc(j.resource.List) }

// preferring calls next with what the client prefers.
func (j *Jobs) preferring(next func(http.ResponseWriter, *http.Request, header.Prefer)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Add("Vary", "Prefer")
		next(w, r, header.ParsePrefer(r.Header["Prefer"]))
	})
}

// unlessAsync calls next unless the client prefers an asynchronous response of h.
func (j *Jobs) unlessAsync(h http.Handler, next func(http.ResponseWriter, *http.Request, header.Prefer)) http.Handler {
	return j.preferring(func(w http.ResponseWriter, r *http.Request, p header.Prefer) {
		if p.RespondAsync {
			j.async(w, r, h, p)
			return
		}
		next(w, r, p)
	})
}

// async accepts a request as a job and answers it.
func (j *Jobs) async(w http.ResponseWriter, r *http.Request, h http.Handler, p header.Prefer) {
	j.mount.Do(func() { j.checkMount(r) })
	var received time.Time
	if p.Wait > 0 {
		received = time.Now()
	}
	// To the end: before that the server does not notice a client that leaves
	// while the request waits for a place.
	body, ok := problem.ReadBody(w, r, j.limits.MaxBody)
	if !ok {
		return
	}
	key, err := header.ParseKey(r.Header["Idempotency-Key"])
	if err != nil {
		problem.Write(w, http.StatusBadRequest, err.Error())
		return
	}
	hurry := resource.Unhurried(w, r)
	record, err := j.accept(p.Strip(r), h, body, key)
	hurry()
	switch {
	case errors.Is(err, store.ErrOtherRequest):
		problem.Write(w, http.StatusUnprocessableEntity, "the Idempotency-Key was used for another request; want a new one")
		return
	case err != nil:
		j.refuse(w, err)
		return
	}
	if p.Wait > 0 && j.resource.Await(w, r, record, received.Add(p.Wait)) {
		j.resource.Result(w, r, record, resource.Applied(false, p.Wait))
		return
	}
	j.resource.Accepted(w, record, resource.Applied(p.RespondAsync, p.Wait))
}

// accept returns the record of the job that the request becomes, or has become
// before. It blocks while there is no place, or while another one with the same
// key does.
func (j *Jobs) accept(r *http.Request, h http.Handler, body []byte, key string) (*store.Job, error) {
	var claim *store.Claim
	if key != "" {
		record, first, err := j.store.Claim(r.Context(), store.KeyOf(r, key), store.PrintOf(r, body))
		if err != nil || record != nil {
			return record, err
		}
		claim = first
		defer j.store.Release(claim)
	}
	id := store.NewID()
	x := &execution{jobs: j}
	x.job = Job{d: j.d, parent: idContext{valuesOf(r.Context()), id}, fn: x.run, timeout: j.limits.Timeout, onEnd: x.ended}
	x.record = store.NewJob(id, x, store.RequestOf(r))
	x.exchange.Capture((*jobContext)(&x.job), h, r, body, j.maxResponse)
	// It is known before it is accepted, so no job can have ended before it is known.
	j.store.Add(x.record, claim)
	defer j.store.Withdraw(x.record) // unless it is accepted
	if err := j.d.submit(r.Context(), entry{job: &x.job}, byDefault); err != nil {
		return nil, err
	}
	return x.record, j.store.Accept(x.record)
}

// An execution is a request that is a job.
type execution struct {
	job      Job // not a pointer: one allocation less for each request
	jobs     *Jobs
	record   *store.Job // nil for a job of Queued, which nobody can look up
	exchange exchange.Exchange
}

// Cancel implements store.Work.
func (x *execution) Cancel() bool {
	x.job.Cancel()
	return x.job.State() == StateCanceled
}

func (x *execution) run(context.Context) error {
	if x.job.State() != StateRunning {
		return ErrAbandoned // as a function of Report.NeverStarted, when its clients know that already
	}
	x.jobs.store.Start(x.record)
	return x.exchange.Serve()
}

// ended tells the store of the outcome.
func (x *execution) ended() {
	x.jobs.store.End(x.record, x.outcome())
	x.exchange.Release()
	if x.jobs.onEnd != nil {
		x.jobs.callOnEnd(infoOf(ID(x.record.ID.String()), x.jobs.store.View(x.record)))
	}
}

// outcome is what the job's end means to clients.
func (x *execution) outcome() store.Outcome {
	o := store.Outcome{State: store.Canceled, Status: http.StatusGone}
	switch x.job.State() {
	case StateSucceeded:
		return store.Outcome{State: store.Done, Response: x.exchange.Response()}
	case StateCanceled:
		o.Detail = "the job was canceled"
		if x.job.Err() == errStopped {
			o.Detail += " when the server shut down"
		}
	case StateAbandoned:
		o.Detail = "the server shut down before the job had started"
	case StateDropped:
		o.State, o.Detail = store.Dropped, "the job was dropped from a full queue for a newer one"
	default:
		o.State = store.Failed
		o.Status, o.Detail = x.failure()
	}
	return o
}

// failure is what a client learns of a job that has failed or panicked. It does not
// examine what the handler panicked with: the methods of an error are foreign code.
func (x *execution) failure() (status int, detail string) {
	err := x.job.Err()
	if p, ok := err.(*PanicError); ok {
		if p.Value != http.ErrAbortHandler {
			return http.StatusInternalServerError, "the handler panicked"
		}
		err = http.ErrAbortHandler
	}
	return x.exchange.Failure(err)
}

// refuse answers a request that has come to nothing.
func (j *Jobs) refuse(w http.ResponseWriter, err error) {
	var detail string
	switch {
	case errors.Is(err, ErrQueueFull):
		detail = "the queue is full; try again later"
	case errors.Is(err, ErrDropped):
		detail = "the request gave its place in a full queue to a newer one; try again later"
	case errors.Is(err, ErrClosed), errors.Is(err, ErrAbandoned):
		detail = "the server is shutting down"
	case errors.Is(err, ErrNested):
		detail = "the request comes from a job of the same queue, which would wait for itself"
	default:
		detail = "the request ended before it was accepted" // its client has left; nobody reads this
	}
	if errors.Is(err, ErrQueueFull) || errors.Is(err, ErrDropped) {
		w.Header().Set("Retry-After", strconv.Itoa(j.d.retryAfter()))
	}
	problem.Write(w, http.StatusServiceUnavailable, detail)
}

// retryAfter returns the whole seconds after which the present queue will have been
// worked off: queued · mean service time / workers, at least 1. A paused dispatcher
// counts as one worker. It is bounded by an hour, beyond which nobody waits.
func (d *Dispatcher) retryAfter() int {
	st := d.Stats()
	// One division, and of whole numbers: rounded twice, 7 s can be 7.000000000000001.
	seconds := float64(st.Queued) * float64(st.Run.Mean()) / (float64(max(st.Workers, 1)) * float64(time.Second))
	return int(math.Ceil(min(max(seconds, 1), time.Hour.Seconds())))
}

// checkMount logs an error if the server has no handler for the jobs: then each 202
// would have a Location that is 404. It sees that where the server's handler is a
// ServeMux, without middleware around it.
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
	probe := &http.Request{Method: http.MethodGet, Host: r.Host, URL: &url.URL{Path: j.resource.Path + "id"}}
	if _, pattern := mux.Handler(probe); pattern == "" {
		j.d.log.Error("holdfast: clients cannot follow their jobs: the server has no handler for JobsConfig.Path; mount the Jobs there", "path", j.resource.Path)
	}
}
