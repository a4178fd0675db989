package holdfast

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"slices"
	"time"

	"holdfast/internal/budget"
	"holdfast/internal/httpjob"
	"holdfast/internal/later"
	"holdfast/internal/line"
	"holdfast/internal/patience"
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
	// they may take, at least 64 KiB. Beyond that, those that ended first are forgotten
	// first. If zero, 100,000 and 256 MiB are used. Open jobs are always kept.
	RetainJobs  int
	RetainBytes int64

	// MaxMemory is about how many bytes may be held for clients: requests that wait, and
	// responses that are being made, sent or kept. Kept ones give way first, but for the
	// newest sixteenth of the memory; what would still go beyond is refused with 503. If
	// zero, half of what the process may use is used: of the machine's memory, of its
	// control group's, or of GOMEMLIMIT.
	MaxMemory int64

	// OnEnd is called once for each job of Queued and Async that has ended, in
	// whatever state, for logs and metrics. For Async it is called by the worker that
	// ran the job, which begins its next one after it, or by the goroutine that
	// canceled, displaced or abandoned it. So it should return soon, and must not wait
	// for a job. A panic in it is logged. If nil, nothing is called.
	OnEnd func(JobInfo)

	// Patience is the time after which an answer is worth nothing; a request may name
	// less (Prefer: wait, Grpc-Timeout, X-Envoy-Expected-Rq-Timeout-Ms, its context's
	// deadline). If zero, Queued learns it from clients that leave. Negative is none.
	Patience time.Duration

	// Classify says how urgent a request is, whose, and how patient; see [Class]. It is
	// called once for each request of Queued and Async, by its own goroutine. A request
	// for which a client has all its places gets 429. If nil, all requests are alike.
	Classify func(*http.Request) Class

	// Retry says which jobs of Async are tried again. If zero, none is.
	Retry Retry

	// MaxDelay is how far ahead a request of Async may say that it is to run, by Run-At or
	// Delay. If zero, 24 hours is used; if negative, such a request is answered with 400.
	MaxDelay time.Duration

	// MaxDelayed is how many jobs may wait for the time that their clients have named, with
	// a quarter of MaxMemory, and how many between two attempts. Beyond that, a request that
	// would have to wait, or might have to be tried again, gets 503; jobs that were accepted
	// before are still tried again. If zero, 10,000 is used.
	MaxDelayed int

	// PublicURL is where clients find the root of the server, such as
	// "https://host/queue", if that is not where it listens: a prefix for all URLs
	// that clients are given. The routes stay. If empty, the URLs are relative.
	PublicURL string
}

// Retry says which jobs of [Jobs.Async] are tried again, and how often. In between a job is
// queued, but has no place in the queue: it waits for a random time of up to 1 s after the
// first attempt, 2 s after the second and so on, 5 minutes at most, and in addition for what
// the Retry-After of its last response says, up to MaxDelay. A response with Job-Retry: never
// is the last. A job whose attempts have come to nothing has failed, and keeps the last
// response. One that was canceled, dropped, ran for too long or panicked with
// [http.ErrAbortHandler] is not tried again.
type Retry struct {
	// Attempts is how often a job is tried in all, at most 1000, if it panics or as On says.
	// The request has a Job-Attempt header then, 1 for the first, and an Idempotency-Key. If
	// zero, 1 is used.
	Attempts int

	// On has the statuses of responses, 400 to 599, after which a job is tried again. If nil,
	// a response is a response.
	On []int
}

// Jobs turns requests into jobs of a dispatcher, and serves the jobs to clients. Its
// methods, and the handlers that they return, may be called by any number of
// goroutines at once. Wrap a handler once, and not for each request: what wraps it learns
// how long it runs.
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
	requests *httpjob.Jobs
	limits   httpjob.Limits
}

// NewJobs returns Jobs that run on d. If a field of cfg is not as described, the error
// names it.
func NewJobs(d *Dispatcher, cfg JobsConfig) (*Jobs, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	j := cfg.jobs(d)
	if cfg.Classify != nil {
		j.Classify = func(r *http.Request) (*line.Class, time.Duration) {
			c := cfg.Classify(r)
			patience := c.Patience
			c.Patience = 0 // package httpjob sees to it
			return c.line(), patience
		}
	}
	if cfg.OnEnd != nil {
		j.OnEnd = func(id string, v store.View) { d.tell(cfg.OnEnd, infoOf(id, v)) }
	}
	d.onClose(j.Shutdown)
	return &Jobs{j, httpjob.Limits{Body: cfg.MaxBody, Run: d.jobTimeout, Patience: cfg.Patience}}, nil
}

// complete fills in what is zero, and returns an error if a field is not as described.
func (cfg *JobsConfig) complete() error {
	cfg.Path = cmp.Or(cfg.Path, "/jobs/")
	cfg.MaxBody = cmp.Or(cfg.MaxBody, 1<<20)
	cfg.RetainBytes = cmp.Or(cfg.RetainBytes, 256<<20)
	cfg.MaxResponse = cmp.Or(cfg.MaxResponse, min(8<<20, cfg.RetainBytes/2))
	cfg.Retain = cmp.Or(cfg.Retain, time.Hour)
	cfg.RetainJobs = cmp.Or(cfg.RetainJobs, 100_000)
	cfg.MaxMemory = cmp.Or(cfg.MaxMemory, budget.Default())
	cfg.MaxDelay = cmp.Or(cfg.MaxDelay, 24*time.Hour)
	cfg.MaxDelayed = cmp.Or(cfg.MaxDelayed, 10_000)
	switch {
	case cfg.Path[0] != '/' || cfg.Path[len(cfg.Path)-1] != '/':
		return fmt.Errorf("holdfast: JobsConfig.Path is %q; want it to begin and end in /", cfg.Path)
	case cfg.MaxBody < 0 || cfg.MaxResponse < 0 || cfg.Retain < 0 || cfg.RetainJobs < 0 || cfg.RetainBytes < 0 || cfg.MaxMemory < 0:
		return fmt.Errorf("holdfast: JobsConfig has MaxBody %d, MaxResponse %d, Retain %v, RetainJobs %d, RetainBytes %d and MaxMemory %d; want 0 (the default) or more", cfg.MaxBody, cfg.MaxResponse, cfg.Retain, cfg.RetainJobs, cfg.RetainBytes, cfg.MaxMemory)
	case cfg.Retry.Attempts < 0 || cfg.Retry.Attempts > 1000 || cfg.MaxDelayed < 0:
		return fmt.Errorf("holdfast: JobsConfig has Retry.Attempts %d and MaxDelayed %d; want 0 (the default) or more, and at most 1000 attempts", cfg.Retry.Attempts, cfg.MaxDelayed)
	case slices.ContainsFunc(cfg.Retry.On, func(status int) bool { return status < 400 || status > 599 }):
		return fmt.Errorf("holdfast: JobsConfig.Retry.On is %v; want statuses from 400 to 599", cfg.Retry.On)
	case cfg.RetainBytes < 64<<10 || cfg.MaxResponse > cfg.RetainBytes/2:
		return fmt.Errorf("holdfast: JobsConfig.RetainBytes is %d; want at least 64 KiB, and twice MaxResponse, which is %d", cfg.RetainBytes, cfg.MaxResponse)
	}
	return nil
}

// jobs returns what the Jobs of a complete configuration do their work with.
func (cfg *JobsConfig) jobs(d *Dispatcher) *httpjob.Jobs {
	j := &httpjob.Jobs{
		Queue: queue{d}, MaxResponse: cfg.MaxResponse, MaxDelay: cfg.MaxDelay, Room: later.New(cfg.MaxDelayed, cfg.MaxMemory/4),
		Retry: httpjob.Retry{Attempts: cfg.Retry.Attempts, On: slices.Clone(cfg.Retry.On)},
	}
	j.Refusals = httpjob.Refusals{Full: ErrQueueFull, Share: ErrShare, Dropped: ErrDropped, Closed: ErrClosed, Abandoned: ErrAbandoned, Nested: ErrNested}
	j.Memory = budget.New(cfg.MaxMemory, func(need int64, enough func() bool) { j.Store.Yield(need, enough) }, j.RetryAfter)
	j.Store = store.New(store.Bounds{Jobs: cfg.RetainJobs, Bytes: cfg.RetainBytes, Age: cfg.Retain, Memory: j.Memory})
	// Once a shutdown is over or was cut off, nobody need wait for a job.
	j.Resource = &resource.Handler{Store: j.Store, Path: cfg.Path, Base: cfg.PublicURL, RetryAfter: j.RetryAfter, Stop: d.over}
	j.NotMounted = func() {
		d.log.Error("holdfast: the server has no handler for JobsConfig.Path, so no client can follow its job; mount the Jobs there", "path", cfg.Path)
	}
	return j
}

// tell calls onEnd, which is code of others and may panic.
func (d *Dispatcher) tell(onEnd func(JobInfo), i JobInfo) {
	defer func() {
		if v := recover(); v != nil {
			d.logPanic("JobsConfig.OnEnd", &PanicError{Value: v, Stack: debug.Stack()}, nil)
		}
	}()
	onEnd(i)
}

// Limits are the limits of a route. A limit of zero is that of the Jobs.
type Limits struct {
	MaxBody  int64         // MaxBody is that of JobsConfig.
	Timeout  time.Duration // Timeout is the JobTimeout of Config.
	Patience time.Duration // Patience is that of JobsConfig.
}

// With returns a view of j that wraps handlers under other limits, so that one route
// for uploads need not raise the limits of all. The jobs are the same, and only one
// of the views is mounted. A negative limit is an error.
func (j *Jobs) With(l Limits) (*Jobs, error) {
	if l.MaxBody < 0 || l.Timeout < 0 {
		return nil, fmt.Errorf("holdfast: Limits has MaxBody %d and Timeout %v; want 0 (as before) or more", l.MaxBody, l.Timeout)
	}
	return &Jobs{j.requests, httpjob.Limits{Body: cmp.Or(l.MaxBody, j.limits.Body), Run: cmp.Or(l.Timeout, j.limits.Run), Patience: cmp.Or(l.Patience, j.limits.Patience)}}, nil
}

// Sync returns a handler that calls h at once, in the request's own goroutine and
// outside of the pool. A request with Prefer: respond-async is answered as by
// [Jobs.Async].
func (j *Jobs) Sync(h http.Handler) http.Handler { return j.requests.Sync(h, j.limits) }

// Queued returns a handler that lets the request wait in the queue until a worker
// calls h with it, and answers with the response of h. If the client leaves before h
// is called, it is not called; if it leaves later, the request's context ends. A
// request that is refused, dropped or cannot be answered in time (see Patience in
// [JobsConfig]) gets 503, one that runs for too long 504, and a panic becomes 500. A
// request with Prefer: respond-async is answered as by [Jobs.Async].
func (j *Jobs) Queued(h http.Handler) http.Handler { return j.requests.Queued(h, j.limits) }

// Async returns a handler that accepts a request as a job, and answers at once with
// 202, the Location of the job, and
//
//	{"id":"…","state":"queued","url":"/jobs/…"}
//
// When its turn has come, a worker calls h with the request. The response of h can be
// read at Location/response. The context that h gets does not end when the client
// leaves, and [JobID] returns the job's id from it.
//
// With Prefer: wait=n the answer waits for up to n seconds, 50 at most, and is the real
// response if that is there. A request with an Idempotency-Key that the same client (by
// its Authorization and Cookie) has used before is answered with the first one's job,
// or with 422 if it is another request. While no place is free, the request waits under
// Block, and a client that leaves then has no job; a refusal is 503 with Retry-After.
func (j *Jobs) Async(h http.Handler) http.Handler { return j.requests.Async(h, j.limits) }

// ServeHTTP serves the jobs below Path. GET {id} reports where a job stands, at once,
// with Prefer: wait=n, or as a stream of events (Accept: text/event-stream).
// GET {id}/response is the response. DELETE {id} cancels. The id is all that one needs
// for that, and without it one learns nothing.
func (j *Jobs) ServeHTTP(w http.ResponseWriter, r *http.Request) { j.requests.Resource.ServeHTTP(w, r) }

// ListHandler returns a handler that answers GET with the jobs as
// {"jobs":[…],"next":"…"}: first those that have not ended, the last accepted first,
// then those that have, the last ended first. The query parameter state selects one
// state, limit is the size of a page, 1 to 1000 (100 by default), and after is the next
// of the page before. Without a next there are no more jobs; a page may be short.
// Paging to the end returns every job that was present throughout, and one that ends
// meanwhile perhaps twice.
//
// It is for the operator alone: it asks nobody who they are, and whoever can read the
// list can read and cancel every job.
func (j *Jobs) ListHandler() http.Handler { return http.HandlerFunc(j.requests.Resource.List) }

// queue is the Dispatcher as package httpjob needs it.
type queue struct{ *Dispatcher }

func (q queue) NewJob(ctx context.Context, class *line.Class, limit time.Duration, run func(context.Context) error, ended func(httpjob.End, error)) httpjob.Job {
	j := q.newJob(ctx, false, class, limit, run)
	j.onEnd = func() { ended(j.end()) }
	return (*requestJob)(j)
}

func (q queue) Do(ctx context.Context, class *line.Class, limit time.Duration, run func(context.Context) error) (httpjob.End, error) {
	j := q.newJob(ctx, true, class, limit, run)
	if err := q.do(ctx, j); j.state == StateQueued { // it is nobody else's
		return httpjob.Refused, err
	}
	return j.end()
}

// A requestJob is a Job as package httpjob needs it.
type requestJob Job

func (j *requestJob) Submit(ctx context.Context) error { return j.d.submit(ctx, entry{job: (*Job)(j)}) }

func (j *requestJob) Enter(ctx context.Context, wait bool) error {
	policy := Reject
	if wait {
		policy = Block
	}
	return j.d.With(policy).submit(ctx, entry{job: (*Job)(j)})
}

func (j *requestJob) Resubmit() error { return j.d.resubmit(entry{job: (*Job)(j)}) }

func (j *requestJob) Cancel() bool {
	(*Job)(j).Cancel()
	return (*Job)(j).State() == StateCanceled
}

// end says how the job has ended; nothing changes it any more. What a function panicked
// with is only compared: its methods are code of others.
func (j *Job) end() (httpjob.End, error) {
	switch p, panicked := j.err.(*PanicError); {
	case panicked && p.Value == http.ErrAbortHandler:
		return httpjob.Aborted, j.err
	case j.state == StateCanceled && errors.Is(j.err, ErrClosed): // its parts are errors of package exchange
		return httpjob.Stopped, j.err
	}
	return httpjob.End(j.state), j.err // a test holds their numbers together
}

func (q queue) Note(class *line.Class, what httpjob.Note) {
	q.lock()
	defer q.mu.Unlock()
	switch counts := &q.urgencies[cmp.Or(class, line.Classless).Urgency]; what {
	case httpjob.LateAtDoor:
		q.stats.RefusedLate++
		counts.RefusedLate++
	case httpjob.LateWaiting:
		counts.Expired++
	case httpjob.InVain:
		counts.InVain++
	}
}

func (q queue) Load(class *line.Class) patience.Load {
	q.lock()
	defer q.mu.Unlock()
	return q.loadLocked(class)
}
