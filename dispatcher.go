// Package holdfast runs jobs from a bounded queue on a fixed number of workers. Beside
// a buffered channel with goroutines ranging over it, it has an exact bound, a choice of
// what happens beyond it, one outcome for every accepted job, and an orderly shutdown.
//
// Fill in a [Config] and call [New] for a [Dispatcher], which runs functions. [NewJobs]
// wraps HTTP handlers, so that requests wait for a worker, or become jobs that a client
// can follow. [Dispatcher.Shutdown] comes last, while the HTTP server still listens.
//
//	d, err := holdfast.New(holdfast.Config{Workers: 8, Queue: 100})
//	jobs, err := holdfast.NewJobs(d, holdfast.JobsConfig{})
//	mux.Handle("POST /report", jobs.Async(report)) // 202 at once; with Queued, the real response
//	mux.Handle("/jobs/", jobs)                     // status, response, cancel
//	left, err := d.Shutdown(ctx)                   // what was cut off or never started
//
// # Concurrency properties
//
// A job leaves the queue only when a worker is idle to run it, in the order in which jobs
// were accepted. With w workers and a queue of L places, w + L jobs are accepted before
// the next one waits, is refused or displaces the oldest, whether the workers are idle or
// busy. At most w of them run. There are w goroutines however many jobs wait.
//
// Every accepted job ends once, in one of the states from [StateSucceeded] to
// [StateAbandoned], and whoever waits for it is woken then. A job that would wait for its
// own dispatcher gets [ErrNested] instead. The dispatcher recognizes the job by its
// context: one that waits with another context, through another dispatcher, or by an HTTP
// request to a queued route of its own server, can wait for itself and hang.
package holdfast

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"holdfast/internal/lazy"
	"holdfast/internal/line"
)

// Bounds of a Config.
const (
	maxWorkers = 1_000_000
	maxQueue   = 10_000_000
)

// A Config says how a Dispatcher is built.
type Config struct {
	// Workers is the number of jobs that may run at once, at most 1,000,000. If
	// zero, the dispatcher is paused: it runs nothing until Resize.
	Workers int

	// Queue is the number of accepted jobs that may wait for a worker, at most
	// 10,000,000. If zero, a job is accepted only if a worker is idle. New
	// allocates 30 bytes for each place.
	Queue int

	// Overflow is what a submit does when every place is taken, unless the call
	// says otherwise. If zero, Block is used.
	Overflow Overflow

	// JobTimeout is the time that a job may run before its context reports
	// context.DeadlineExceeded. A job that ignores its context keeps its worker;
	// when it returns it counts as failed. If zero, there is no limit.
	JobTimeout time.Duration

	// ClientPlaces is how many places one client may hold: jobs that run, are queued,
	// or wait for a place. It counts for jobs whose [Class] names a client. If zero,
	// there is no limit.
	ClientPlaces int

	// Logger gets one record for each job that panics. If nil, slog.Default() is
	// used.
	Logger *slog.Logger
}

// A Dispatcher runs jobs on its workers. Create one with [New] and end it with
// [Dispatcher.Shutdown]. Its methods may be called by any number of goroutines at
// once.
//
// All its decisions are made under one mutex: acceptance, order, hand-over, end,
// resizing and shutdown. The critical sections call no code of others, and are short but
// for those that look at all jobs or workers: a resize, a shutdown, and the moment in
// which the first job of a class makes a line of the queue.
type Dispatcher struct {
	Submitter // under the dispatcher's policy

	// Written once in New, only read afterwards.
	jobTimeout   time.Duration
	clientPlaces int // 0: no limit
	log          *slog.Logger
	epoch        time.Time // the zero of now

	// ctx is the context of jobs that have none of their own. It is canceled when a
	// shutdown cuts off what runs, and when it is over.
	ctx    context.Context
	cancel context.CancelCauseFunc

	running  sync.WaitGroup // the goroutines of workers
	over     chan struct{}  // closed by finished; Shutdown receives
	finished func()         // called when all workers are gone or a shutdown was cut off

	_  [64]byte   // so that reading the fields above does not wait for a cache line that each job writes
	mu sync.Mutex // protects the following fields; see lock
	_  [64]byte   // so that those who try the lock do not take from its holder what it works on

	// queue is the JobQueue. acceptLocked sends, firstLocked receives, and sweepLocked does
	// both. It has some room for entries of canceled jobs, and is never closed; the field
	// closed ends admission.
	queue chan entry
	first entry // the oldest one, if somebody has looked at it; see firstLocked

	// line is what the JobQueue becomes when the first job of a Class comes: then it is
	// decided there which job is next. Until then it is nil. See lineUpLocked.
	line *line.Line[entry]

	// pool is the WorkerPool: the channels of idle workers, in the order in which they
	// became idle. finish and resizeLocked send a worker's own channel. handOverLocked
	// receives it and answers with a job, dismissLocked closes it. The pool is never
	// closed; a resize moves the channels to a new one.
	pool chan chan entry

	workers   int                                    // not dismissed; more than stats.Workers while a surplus is busy
	closed    bool                                   // Shutdown has begun
	leaving   []func() []func(context.Context) error // what Shutdown calls then; see onClose
	stopped   bool                                   // a shutdown was cut off: what runs is canceled
	stats     Stats                                  // OldestAge is filled in by Stats
	blocked   *line.Line[*waiter]                    // who waits for a place
	urgencies [line.Urgencies]UrgencyCounts
	report    Report // of the shutdown
	why       error  // that Shutdown returns
}

// An entry is what waits in the JobQueue: a function that nobody follows, or a job
// that has a handle or a context of its own. It is passed by value, so that a
// waiting job costs no allocation.
type entry struct {
	fn  func(context.Context) error
	job *Job
	at  int64 // when it was accepted; in the hands of a worker, when it started
}

// blank reports whether the entry holds no job, or one that was canceled.
func (e *entry) blank() bool {
	if e.job != nil {
		return e.job.state != StateQueued
	}
	return e.fn == nil
}

// New returns a running Dispatcher. If a field of cfg is out of bounds, the error
// names it.
func New(cfg Config) (*Dispatcher, error) {
	switch {
	case cfg.Workers < 0 || cfg.Workers > maxWorkers:
		return nil, fmt.Errorf("holdfast: Config.Workers is %d; want 0 (paused) to %d", cfg.Workers, maxWorkers)
	case cfg.Queue < 0 || cfg.Queue > maxQueue:
		return nil, fmt.Errorf("holdfast: Config.Queue is %d; want 0 (none) to %d", cfg.Queue, maxQueue)
	case !cfg.Overflow.known():
		return nil, fmt.Errorf("holdfast: Config.Overflow is %v; want Block, Reject or DropOldest", cfg.Overflow)
	case cfg.JobTimeout < 0 || cfg.ClientPlaces < 0:
		return nil, fmt.Errorf("holdfast: Config.JobTimeout is %v and ClientPlaces %d; want 0 (no limit) or more", cfg.JobTimeout, cfg.ClientPlaces)
	}
	d := &Dispatcher{
		jobTimeout:   cfg.JobTimeout,
		clientPlaces: cfg.ClientPlaces,
		log:          cmp.Or(cfg.Logger, slog.Default()),
		epoch:        time.Now(),
		over:         make(chan struct{}),
		queue:        make(chan entry, cfg.Queue+cfg.Queue/4+1),
		blocked:      line.New[*waiter](),
		stats:        Stats{Queue: cfg.Queue, Overflow: cfg.Overflow},
	}
	d.Submitter.d = d
	d.finished = sync.OnceFunc(func() { close(d.over) })
	d.ctx, d.cancel = context.WithCancelCause(context.WithValue(context.Background(), lazy.OwnerKey{}, d))
	d.resizeLocked(cfg.Workers)
	return d, nil
}

// A Submitter submits jobs to a Dispatcher. That which a Dispatcher contains does so
// under the dispatcher's policy and makes no difference between jobs; others are made
// by its methods With and For.
type Submitter struct {
	d        *Dispatcher
	own      bool // it has a policy of its own
	overflow Overflow
	class    *line.Class // nil: an urgency of 0, no client and no end of patience
}

// With returns a Submitter that submits under policy o. It costs nothing. An unknown
// policy makes every submit return an error.
func (s Submitter) With(o Overflow) Submitter {
	s.own, s.overflow = true, o
	return s
}

// Go submits fn. It returns nil once fn is accepted, otherwise [ErrQueueFull],
// [ErrClosed], [ErrNested] or, if ctx ended first, ctx.Err(). Only under [Block] does
// Go wait for other jobs: until a place is free, ctx ends or Shutdown begins.
//
// The context that fn gets has the values of ctx, not its cancellation, and is
// canceled when Shutdown cuts the job off. The error that fn returns is counted and
// otherwise lost; Submit keeps it. With context.Background() and no JobTimeout a call
// allocates nothing, and such jobs share one context.
func (s Submitter) Go(ctx context.Context, fn func(context.Context) error) error {
	if fn != nil && s.d.jobTimeout == 0 && s.class == nil && (ctx == context.Background() || ctx == context.TODO()) {
		return s.submit(ctx, entry{fn: fn})
	}
	return s.submit(ctx, entry{job: s.d.newJob(ctx, false, s.class, s.d.jobTimeout, fn)})
}

// Submit is like Go, and returns a handle by which the job can be followed and
// canceled. The handle is nil if there is an error.
func (s Submitter) Submit(ctx context.Context, fn func(context.Context) error) (*Job, error) {
	j := s.d.newJob(ctx, false, s.class, s.d.jobTimeout, fn)
	j.done = make(chan struct{})
	if err := s.submit(ctx, entry{job: j}); err != nil {
		return nil, err
	}
	return j, nil
}

// TryGo is Go under [Reject], whatever the policy: it never waits.
func (s Submitter) TryGo(ctx context.Context, fn func(context.Context) error) error {
	return s.With(Reject).Go(ctx, fn)
}

// TrySubmit is Submit under [Reject], whatever the policy: it never waits.
func (s Submitter) TrySubmit(ctx context.Context, fn func(context.Context) error) (*Job, error) {
	return s.With(Reject).Submit(ctx, fn)
}

// Do submits fn, waits for its end and returns its error, as [Job.Err] does. If
// ctx ends while the job is queued, the job never runs and Do returns ctx.Err().
// If ctx ends while it runs, the job's context is canceled and Do goes on
// waiting: fn never outlives the call. The context that fn gets has the cancellation
// of ctx too, so that a job is canceled with its caller.
//
// If ctx is that of a job of the same dispatcher, Do returns [ErrNested].
func (s Submitter) Do(ctx context.Context, fn func(context.Context) error) error {
	return s.do(ctx, s.d.newJob(ctx, true, s.class, s.d.jobTimeout, fn))
}

// do submits j, which is attached to ctx, and waits for its end.
func (s Submitter) do(ctx context.Context, j *Job) error {
	j.done = make(chan struct{})
	if err := s.submit(ctx, entry{job: j}); err != nil {
		return err
	}
	select {
	case <-j.done:
	case <-ctx.Done():
		j.cancelWith(ctx.Err(), context.Cause(ctx))
		<-j.done
	}
	return j.err
}

// submit accepts e, or says why not. It blocks only under Block, until a place is
// free, ctx ends or the dispatcher is closed.
func (s Submitter) submit(ctx context.Context, e entry) (err error) {
	d, policy, class := s.d, s.overflow, e.class()
	gone, nested, now := ctx.Err(), d.owns(ctx), d.now()
	var dropped *Job
	var waiting *waiter
	d.lock()
	switch {
	case !policy.known():
		err = fmt.Errorf("holdfast: %v is not an overflow policy", policy)
	case nested && e.job != nil && e.job.context.Attached: // it would wait for the end too
		d.stats.RefusedNested++
		err = ErrNested
	case gone != nil:
		d.stats.RefusedGone++
		err = gone
	case d.closed:
		err = d.refuseLocked(&e, ErrClosed)
	case d.sharedOutLocked(class):
		err = d.refuseLocked(&e, ErrShare)
	case class.Patience > 0 && d.loadLocked(class).MeanWait() > class.Patience:
		err = d.refuseLocked(&e, ErrLate)
	case d.freeLocked() > 0:
		d.acceptLocked(e, now)
		d.dispatchLocked(now)
	default:
		if !s.own {
			policy = d.stats.Overflow
		}
		dropped, waiting, err = d.overflowLocked(e, policy, nested, now)
	}
	d.mu.Unlock()

	if dropped != nil {
		dropped.notify()
	}
	if waiting != nil {
		return d.wait(ctx, waiting)
	}
	return err
}

// resubmit accepts a job that was accepted before a restart. It has a place whatever the
// bound, as if the queue had been longer until just now.
func (d *Dispatcher) resubmit(e entry) error {
	now := d.now()
	d.lock()
	defer d.mu.Unlock()
	if d.closed {
		return d.refuseLocked(&e, ErrClosed)
	}
	if d.freeLocked() <= 0 && d.line == nil {
		d.lineUpLocked() // which has room for more than the channel
	}
	d.acceptLocked(e, now)
	d.dispatchLocked(now)
	return nil
}

// lock locks d.mu. It tries some times before it parks the goroutine, which costs more
// than several of these sections take. sync.Mutex does so by itself only while its
// processor has nothing else to run, and here it always has: the workers. Between the
// tries it looks away for about as long as a section takes, so that the processor of
// the holder keeps what it works on in its cache.
func (d *Dispatcher) lock() {
	for range 20 {
		if d.mu.TryLock() {
			return
		}
		for range 1000 {
		}
	}
	d.mu.Lock()
}

// freeLocked returns how many jobs can be accepted. A job holds a place from its
// acceptance to its end, and there are as many as workers and places in the queue
// together. What is in the channel does not decide. The result is negative while a
// shrink has not taken full effect.
func (d *Dispatcher) freeLocked() int {
	return d.stats.Workers + d.stats.Queue - d.stats.Queued - d.stats.Running
}

// acceptLocked puts e into the JobQueue, or into the line. There must be a free place;
// dispatchLocked must follow if a worker may be idle.
func (d *Dispatcher) acceptLocked(e entry, now int64) {
	if e.job != nil {
		e.job.accepted = true
		e.job.expireLocked()
	}
	e.at = now
	if d.line == nil && e.job != nil && e.job.turn != nil {
		d.lineUpLocked()
	}
	if d.line != nil {
		d.addLocked(d.line, e)
	} else {
		if len(d.queue) == cap(d.queue) {
			d.sweepLocked()
		}
		d.queue <- e
	}
	d.stats.Accepted++
	d.stats.Queued++
}

// sweepLocked makes room in the channel. While a worker is idle it holds at most the
// job that is about to be handed over, otherwise at most stats.Queue jobs. All other
// entries are of canceled jobs, at least a fifth of a full channel, so to remove them
// costs amortized constant time.
func (d *Dispatcher) sweepLocked() {
	for range len(d.queue) {
		if e := <-d.queue; !e.blank() {
			d.queue <- e
		}
	}
}

// dispatchLocked does what a change has made possible. It follows every change: a job
// was accepted or has ended, or the number of workers is another.
func (d *Dispatcher) dispatchLocked(now int64) {
	if d.closed && d.stats.Queued == 0 {
		d.stats.Workers = 0 // no job will come any more
	}
	d.dismissLocked()
	d.handOverLocked(now)
	for d.stats.Blocked > 0 && d.freeLocked() > 0 {
		d.admitLocked(now)
		d.handOverLocked(now)
	}
}

// handOverLocked takes an idle worker first and a job second. The other way round a
// job that has left the queue would wait for a worker outside it, in a goroutine of
// its own, and the queue would never fill: its bound would mean nothing.
//
// A pool of channels, and not w workers that range over one channel: there the
// runtime decides who gets the next job, and a worker can be told to end only by a
// message that waits in the queue behind all jobs. Here a worker that becomes idle
// is given a job, waits, or is dismissed, in one decision.
func (d *Dispatcher) handOverLocked(now int64) {
	for d.stats.Queued > 0 && len(d.pool) > 0 {
		idle := <-d.pool
		idle <- d.nextLocked(now)
	}
}

// dismissLocked ends surplus workers that are idle.
func (d *Dispatcher) dismissLocked() {
	for d.workers > d.stats.Workers && len(d.pool) > 0 {
		close(<-d.pool)
		d.workers--
	}
}

// firstLocked returns the job that has waited longest. One must be queued. A channel
// cannot be looked into, so the job is kept in d.first until somebody takes it.
func (d *Dispatcher) firstLocked() *entry {
	if d.line != nil {
		return &d.line.Oldest().Value
	}
	for d.first.blank() {
		d.first = <-d.queue
	}
	return &d.first
}

// removeLocked takes e out of the queue without running it. If there is no line, e must be
// the first job.
func (d *Dispatcher) removeLocked(e entry) {
	d.stats.Queued--
	if d.line != nil {
		d.line.Remove(e.job.turn.item)
		e.job.turn.item = nil
	} else {
		d.first = entry{}
	}
}

// nextLocked takes the job whose turn it is and starts it. Nothing is decided earlier:
// a worker is idle.
func (d *Dispatcher) nextLocked(now int64) (e entry) {
	if d.line != nil {
		e = d.line.Next().Value
	} else {
		e, d.first = *d.firstLocked(), entry{}
	}
	d.stats.Queued--
	d.stats.Running++
	if timing {
		d.stats.Wait.Add(time.Duration(now - e.at))
	}
	if j := e.job; j != nil {
		e.fn, j.state = j.fn, StateRunning
		if j.timeout > 0 {
			j.context.Limit = d.epoch.Add(time.Duration(now)).Add(j.timeout)
		}
	}
	e.at = now
	return e
}

// finish ends the job that w has in hand. If another is queued and w is not surplus,
// w takes that, as handOverLocked would decide, since no other worker is idle. Otherwise
// w enters the pool, where a surplus worker is dismissed.
func (d *Dispatcher) finish(w *worker) {
	now := d.now()
	j, state := w.job.job, w.outcome.state
	d.lock()
	if timing {
		d.stats.Run.Add(time.Duration(now - w.job.at))
	}
	if j != nil && j.turn != nil && j.turn.item != nil {
		d.line.Ended(j.turn.item, now-w.job.at)
		j.turn.item = nil
	}
	switch {
	case j != nil:
		state = j.finishLocked(w.outcome, now)
	case d.stopped && state != StatePanicked:
		state = StateCanceled
	}
	d.stats.Running--
	*d.stats.ended(state)++
	w.job, w.outcome = entry{}, outcome{}
	if d.stats.Queued > 0 && d.workers <= d.stats.Workers {
		w.job = d.nextLocked(now)
	} else {
		d.pool <- w.jobs
	}
	d.dispatchLocked(now)
	d.mu.Unlock()
	if j != nil {
		j.notify()
	}
}

// Resize changes the number of workers to n, 0 to 1,000,000, and returns without
// waiting for a job to end. 0 pauses: queued jobs stay queued. Surplus workers end
// at once if they are idle, else when they have finished what they run. More workers
// mean more places too, so blocked submitters may be let in. After Shutdown has begun
// it returns [ErrClosed].
func (d *Dispatcher) Resize(n int) error {
	if n < 0 || n > maxWorkers {
		return fmt.Errorf("holdfast: Resize(%d); want 0 to %d", n, maxWorkers)
	}
	d.lock()
	defer d.mu.Unlock()
	if d.closed {
		return ErrClosed
	}
	d.resizeLocked(n)
	return nil
}

// resizeLocked sets the number of workers and with it the number of places.
func (d *Dispatcher) resizeLocked(n int) {
	d.stats.Workers = n
	d.dismissLocked()
	// The pool has room for every worker that is left, and is made anew so that its
	// memory returns after a shrink.
	pool := make(chan chan entry, max(n, d.workers))
	for range len(d.pool) {
		pool <- <-d.pool
	}
	d.pool = pool
	for d.workers < n {
		w := &worker{d: d, jobs: make(chan entry, 1)}
		d.workers++
		d.pool <- w.jobs
		d.running.Go(w.work)
	}
	d.dispatchLocked(d.now())
}
