package holdfast

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	"holdfast/internal/exchange"
	"holdfast/internal/header"
	"holdfast/internal/problem"
	"holdfast/internal/resource"
	"holdfast/internal/store"
)

// A JobsConfig says how requests become jobs, and how long one can read what
// became of them. The zero JobsConfig is ready to use.
type JobsConfig struct {
	// Path is where the Jobs is served, and begins and ends in a slash. If empty,
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

	// RetainJobs is how many ended jobs are kept, and RetainBytes how many bytes
	// they may take, as far as that can be told; of what is too much the one that
	// ended first is forgotten first. If zero, 100,000 and 256 MiB are used. Jobs
	// that are queued or running are always kept. RetainBytes may not be less than
	// 64 KiB.
	RetainJobs  int
	RetainBytes int64

	// PublicURL is where clients find the root of the server, such as
	// "https://host/queue", if that is not where it listens: a prefix for all URLs
	// that clients are given. The routes stay. If empty, the URLs are relative.
	PublicURL string
}

// Jobs turns requests into jobs of a dispatcher, and serves what becomes of them.
// Its methods, and the handlers that they return, may be called by any number of
// goroutines at once.
//
// A handler needs no change for it. As a job it gets the request's method,
// target, header and body, the values of the request's context, and a
// ResponseWriter that writes into memory, so that no slow reader holds a worker.
// What it answers is kept as net/http would have sent it: status, header, body
// and trailer, with the Content-Type and the Content-Length that net/http adds.
// Informational responses (1xx) are left out. What needs the connection is not
// supported: Hijack and deadlines return [http.ErrNotSupported], and a handler
// that switches protocols fails. Prefer is taken out of the request as far as it
// was meant for Jobs.
type Jobs struct {
	d           *Dispatcher
	maxBody     int64
	maxResponse int64
	store       *store.Store
	resource    *resource.Handler
}

// NewJobs returns Jobs that run on d. It panics if a field of cfg is negative or
// otherwise not as described.
func NewJobs(d *Dispatcher, cfg JobsConfig) *Jobs {
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
		panic(fmt.Sprintf("holdfast: JobsConfig.Path is %q; want it to begin and end in /", cfg.Path))
	case min(cfg.MaxBody, cfg.MaxResponse, cfg.RetainBytes, int64(cfg.Retain), int64(cfg.RetainJobs)) < 0:
		panic(fmt.Sprintf("holdfast: a field of %+v is negative", cfg))
	case cfg.RetainBytes < 64<<10 || cfg.MaxResponse > cfg.RetainBytes/2:
		panic(fmt.Sprintf("holdfast: JobsConfig.RetainBytes is %d; want at least 64 KiB, and twice MaxResponse, %d", cfg.RetainBytes, cfg.MaxResponse))
	}
	j := &Jobs{d: d, maxBody: cfg.MaxBody, maxResponse: cfg.MaxResponse}
	j.store = store.New(store.Bounds{Jobs: cfg.RetainJobs, Bytes: cfg.RetainBytes, Age: cfg.Retain})
	// When a shutdown that was cut off has told the queued jobs too, nobody need wait
	// for those that still run.
	j.resource = &resource.Handler{Store: j.store, Path: cfg.Path, Base: cfg.PublicURL, RetryAfter: d.retryAfter, Stop: d.swept}
	return j
}

func orDefault[T int | int64 | time.Duration](field *T, value T) {
	if *field == 0 {
		*field = value
	}
}

// Sync returns a handler that calls h at once, in the request's own goroutine and
// outside of the pool. A request with Prefer: respond-async it answers as
// [Jobs.Async] does.
func (j *Jobs) Sync(h http.Handler) http.Handler {
	return j.preferring(func(w http.ResponseWriter, r *http.Request, p header.Prefer) {
		if p.RespondAsync {
			j.async(w, r, h, p)
			return
		}
		stripped := p.Strip(r)
		h.ServeHTTP(w, stripped)
		if r.MultipartForm == nil { // whose files the server removes, if they are in its own request
			r.MultipartForm = stripped.MultipartForm
		}
	})
}

// Queued returns a handler that lets the request wait in the queue until a worker
// calls h with it, and answers with what h has answered. If the client leaves
// before h is called, it is not called; if it leaves later, the request's context
// ends. A request that is refused or dropped gets 503, one that takes longer than
// the dispatcher's JobTimeout 504, and a panic becomes 500. With Prefer:
// respond-async it does as [Jobs.Async].
func (j *Jobs) Queued(h http.Handler) http.Handler {
	return j.preferring(func(w http.ResponseWriter, r *http.Request, p header.Prefer) {
		if p.RespondAsync {
			j.async(w, r, h, p)
			return
		}
		// To the end: before that the server does not notice a client that leaves.
		body, ok := problem.ReadBody(w, r, j.maxBody)
		if !ok {
			return
		}
		var x exchange.Exchange
		started := false
		hurry := resource.Unhurried(w, r)
		err := j.d.Do(r.Context(), func(ctx context.Context) error {
			started = true
			x.Capture(ctx, h, p.Strip(r), body, j.maxResponse)
			return x.Serve()
		})
		hurry()
		defer x.Release()
		_, panicked := err.(*PanicError)
		switch {
		case err == nil:
			x.Response().CopyHeader(w.Header())
			x.Response().Write(w, r.Method)
		case !started || !panicked && errors.Is(err, context.Canceled):
			j.refuse(w, err) // it has not run, or nobody waits for it any more
		default:
			status, detail := x.Failure(err, panicked)
			if detail == exchange.Aborted {
				panic(http.ErrAbortHandler)
			}
			problem.Write(w, status, detail)
		}
	})
}

// Async returns a handler that accepts a request as a job, and answers at once
// with 202, the Location of the job, and
//
//	{"id":"…","state":"queued","url":"/jobs/…"}
//
// When its turn has come a worker calls h with the request; what h answers can
// be read at Location/response. The context that h gets does not end when the
// client leaves, and [JobID] knows the id by it.
//
// With Prefer: wait=n the answer waits for at most n seconds, 60 at most, and is
// the real response if that is there. A request with an Idempotency-Key that the
// same client (by its Authorization and Cookie) has used before is no new job: it
// is answered with the first one, or, if it is not the same request, with 422.
//
// What happens when every place is taken is up to the dispatcher's overflow
// policy: under Block the request waits, and a client that leaves while it waits
// has no job; a refusal is 503 with Retry-After.
func (j *Jobs) Async(h http.Handler) http.Handler {
	return j.preferring(func(w http.ResponseWriter, r *http.Request, p header.Prefer) { j.async(w, r, h, p) })
}

// ServeHTTP serves the jobs below Path: GET {id} tells where a job stands, at once,
// with Prefer: wait=n, or as a stream of events (Accept: text/event-stream);
// GET {id}/response is the response; DELETE {id} cancels. The id is all that one
// needs to do that, and without it one learns nothing.
func (j *Jobs) ServeHTTP(w http.ResponseWriter, r *http.Request) { j.resource.ServeHTTP(w, r) }

// List returns a handler that answers GET with the jobs as {"jobs":[…],"next":"…"}:
// first those that have not ended, the last accepted before the others, then those
// that have, the last ended before the others. The query's state asks for those in
// one state, limit for at most so many, 1 to 1000 (100 if there is none), and after
// for those behind a page, whose next it is. Without a next there are no more; with
// one a page may still be short, or empty. Who goes on to the end misses no job
// that is there all the time, and may get one twice that ends meanwhile.
//
// It is for the operator alone: it tells the ids, and with them whoever can read it
// can read and cancel every job. It asks nobody who they are.
func (j *Jobs) List() http.Handler { return http.HandlerFunc(j.resource.List) }

// preferring calls next with what the client prefers.
func (j *Jobs) preferring(next func(http.ResponseWriter, *http.Request, header.Prefer)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Add("Vary", "Prefer")
		next(w, r, header.ParsePrefer(r.Header["Prefer"]))
	})
}

// An execution is a request that is a job.
type execution struct {
	job      Job // not a pointer: one object less for each request
	jobs     *Jobs
	record   *store.Job
	exchange exchange.Exchange
}

// Cancel implements store.Work.
func (x *execution) Cancel() bool {
	x.job.Cancel()
	return x.job.State() == Canceled
}

func (x *execution) run(context.Context) error {
	if x.job.State() != Running {
		return ErrAbandoned // as a function of Report.NeverStarted; its clients have been told so
	}
	x.jobs.store.Start(x.record)
	return x.exchange.Serve()
}

// ended tells the store of the outcome.
func (x *execution) ended(state State, err error) {
	o := store.Outcome{State: store.Canceled, Status: http.StatusGone}
	switch state {
	case Succeeded:
		o = store.Outcome{State: store.Done, Response: x.exchange.Response()}
	case Canceled:
		o.Detail = "the job was canceled"
		if errors.Is(err, ErrClosed) {
			o.Detail += " when the server shut down"
		}
	case Abandoned:
		o.Detail = "the server shut down before the job had started"
	case Dropped:
		o.State, o.Detail = store.Dropped, "the job was dropped from a full queue for a newer one"
	default:
		o.State = store.Failed
		o.Status, o.Detail = x.exchange.Failure(err, state == Panicked)
	}
	x.jobs.store.End(x.record, o)
	x.exchange.Release()
}

// async accepts a request as a job and answers it.
func (j *Jobs) async(w http.ResponseWriter, r *http.Request, h http.Handler, p header.Prefer) {
	var received time.Time
	if p.Wait > 0 {
		received = time.Now()
	}
	// To the end: before that the server does not notice a client that leaves
	// while the request waits for a place.
	body, ok := problem.ReadBody(w, r, j.maxBody)
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
	x := &execution{jobs: j}
	x.job.prepare(j.d, r.Context(), x.run)
	x.job.id, x.job.request = store.NewID(), x
	x.record = store.NewJob(x.job.id, x, store.RequestOf(r))
	x.exchange.Capture((*jobContext)(&x.job), h, r, body, j.maxResponse)
	j.store.Add(x.record, claim)
	defer j.store.Withdraw(x.record) // unless it is accepted
	if _, err := j.d.follow(r.Context(), &x.job, nil); err != nil {
		return nil, err
	}
	return x.record, j.store.Accept(x.record)
}

type jobIDKey struct{}

// JobID returns the id under which the request that ctx belongs to can be looked
// up at [Jobs], or "" if it is none that was accepted by [Jobs.Async]. It is for
// the handler's log, say.
func JobID(ctx context.Context) string {
	if id, ok := ctx.Value(jobIDKey{}).(store.ID); ok {
		return id.String()
	}
	return ""
}

// refuse answers a request that has come to nothing.
func (j *Jobs) refuse(w http.ResponseWriter, err error) {
	status, detail := http.StatusServiceUnavailable, ""
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
	problem.Write(w, status, detail)
}

// retryAfter returns the whole seconds after which what is queued now will have
// been worked off: queued · mean service time / workers, at least 1. A paused
// dispatcher counts as one worker; beyond an hour nobody waits.
func (d *Dispatcher) retryAfter() int {
	d.mu.Lock()
	workers, t := d.target, d.sum()
	d.mu.Unlock()
	// One division, and of whole numbers: rounded twice, 7 s can be 7.000000000000001.
	seconds := float64(t.Queued) * float64(t.MeanRun) / (float64(max(workers, 1)) * float64(time.Second))
	return int(math.Ceil(min(max(seconds, 1), time.Hour.Seconds())))
}

// JobsStats says what [Jobs] keeps of jobs.
type JobsStats struct {
	Open      int   // jobs that have not ended
	Kept      int   // jobs that have
	KeptBytes int64 // that these take, as far as that can be told

	// Ended jobs that were forgotten, by the bound that they exceeded: Retain,
	// RetainJobs or RetainBytes.
	EvictedAge, EvictedJobs, EvictedBytes uint64

	// Reach is how far back one can look: what ended less long ago than that is
	// still there. It is Retain, unless the other bounds allow less.
	Reach time.Duration
}

// Stats returns a snapshot of what is kept. It does not block.
func (j *Jobs) Stats() JobsStats {
	s := j.store.Stats()
	return JobsStats{s.Open, s.Kept, s.Bytes, s.ByAge, s.ByJobs, s.ByBytes, s.Reach}
}
