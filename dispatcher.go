// Package holdfast holds a load that cannot be served at once: it accepts jobs
// into a bounded queue and runs them on a fixed number of workers. It differs
// from a buffered channel with goroutines ranging over it in what it promises:
// an exact bound, a choice of what happens beyond it, one outcome for every
// accepted job, cancellation, resizing, and a shutdown that loses nothing in
// silence.
//
// # Concurrency properties
//
// A job leaves the queue only when a worker is idle to run it, in the order in
// which jobs were accepted; of submits that overlap in time either may be first.
// With w workers and a queue of L places, w + L jobs are accepted, from any
// state, before the next one waits, is refused or displaces the oldest; at most w
// of them run. The number of goroutines is w + 1 however many jobs wait.
//
// Every accepted job ends exactly once, in one of the states from [Succeeded] to
// [Abandoned], also if it panics, calls [runtime.Goexit], or the dispatcher is
// shut down; whoever waits for it is told.
//
// A job that submits to its own dispatcher never blocks on it: where it would
// have to wait it gets [ErrNested]. That is known by the job's context, so a
// wait on a context that is not the job's, or a cycle of waits through another
// dispatcher, is not detected and can deadlock.
package holdfast

import (
	"cmp"
	"container/list"
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/internal/counts"
	"holdfast/internal/stamps"
)

// Bounds of a Config.
const (
	maxWorkers = 1_000_000
	maxQueue   = 10_000_000
)

// A Config says how a Dispatcher is built. The zero Config is ready to use.
type Config struct {
	// Workers is the number of jobs that may run at once, at most 1,000,000.
	// If zero, 100 is used. -1 means none: the dispatcher starts paused.
	Workers int

	// Queue is the number of accepted jobs that may wait for a worker, at most
	// 10,000,000. If zero, 200 is used. -1 means none: a job is accepted only
	// if a worker is idle to take it over. The places are allocated at once,
	// with 32 bytes each.
	Queue int

	// Overflow is what a submit does when every place is taken, unless the
	// call says otherwise. If zero, Block is used.
	Overflow Overflow

	// JobTimeout is the time that a job may run before its context reports
	// context.DeadlineExceeded. A job that ignores its context keeps its
	// worker; when it returns it counts as Failed. If zero, there is none.
	JobTimeout time.Duration

	// Logger gets one record for each job that panics. If nil, slog.Default()
	// is used.
	Logger *slog.Logger
}

// A Dispatcher runs jobs on its workers. Create one with [New] and end it with
// [Dispatcher.Shutdown]. Its methods may be called by any number of goroutines
// at once.
type Dispatcher struct {
	// Written once in New, only read afterwards.
	places     int // L, the places in the queue
	jobTimeout time.Duration
	log        *slog.Logger
	epoch      time.Time // the clock's zero
	counts     counts.Counts

	// ctx is the context of jobs without one of their own, canceled when
	// Shutdown cuts off what runs.
	ctx    context.Context
	cancel context.CancelCauseFunc

	// queue is the JobQueue. Submitters that hold a place and find no idle worker
	// send; the dispatcher's goroutine and workers that have just finished a job
	// receive. It is never closed: whether jobs are accepted is part of the
	// admission decision, and a sender that has passed it must be able to send.
	queue chan entry

	// pool is the WorkerPool. Idle workers send their own channel; the dispatcher's
	// goroutine or a submitter receives it and answers with exactly one entry. It
	// has no room, so the workers that wait in it are idle, and there may be any
	// number of them. Never closed.
	pool chan chan entry

	wake  chan struct{} // Resize and Shutdown send, the dispatcher's goroutine receives
	ended chan struct{} // closed when admission has ended and no job holds a place
	cut   chan struct{} // closed when the first context of a Shutdown ends before that
	swept chan struct{} // closed when a sweep has emptied the queue; at the latest with ended
	gone  chan struct{} // closed by the dispatcher's goroutine at its end

	_    [64]byte
	word atomic.Uint64 // decides admission; every job writes it, so it has its cache line to itself
	_    [64]byte

	overflow   atomic.Uint32              // an Overflow; seldom written
	surplus    atomic.Int64               // workers alive beyond the target; raised with every shard locked
	sweeping   atomic.Bool                // no job may start any more; set with every shard locked
	stamps     atomic.Pointer[stamps.Set] // the newest of allStamps
	submitters sync.Pool                  // of *submitter

	refusedFull, refusedClosed, refusedNested, refusedGone atomic.Uint64

	// Lock order: mu, the shards of counts, Job.mu, and the locks of a store.
	mu        sync.Mutex // protects the following fields
	closed    bool
	target    int // workers asked for
	workers   map[chan entry]*worker
	blocked   list.List // of *submitter, in the order in which they came
	allStamps []*stamps.Set
	abandoned []leftover

	atClose    int   // jobs queued or running when admission ended
	cutRunning int   // jobs running when a context cut the shutdown off
	cutBy      error // the error of that context
}

// New returns a running Dispatcher. A Config that is out of bounds is an error
// that names the field.
func New(cfg Config) (*Dispatcher, error) {
	workers, err := size("Workers", cfg.Workers, 100, maxWorkers)
	if err != nil {
		return nil, err
	}
	places, err := size("Queue", cfg.Queue, 200, maxQueue)
	if err != nil {
		return nil, err
	}
	if int(cfg.Overflow) >= len(overflowNames) {
		return nil, fmt.Errorf("holdfast: Config.Overflow is %v; want Block, Reject or DropOldest", cfg.Overflow)
	}
	if cfg.JobTimeout < 0 {
		return nil, fmt.Errorf("holdfast: Config.JobTimeout is %v; want 0 (none) or more", cfg.JobTimeout)
	}
	d := &Dispatcher{
		places:     places,
		jobTimeout: cfg.JobTimeout,
		log:        cfg.Logger,
		epoch:      time.Now(),
		counts:     counts.New(),
		queue:      make(chan entry, max(places, 1)),
		pool:       make(chan chan entry),
		wake:       make(chan struct{}),
		ended:      make(chan struct{}),
		cut:        make(chan struct{}),
		swept:      make(chan struct{}),
		gone:       make(chan struct{}),
		workers:    make(map[chan entry]*worker),
	}
	if d.log == nil {
		d.log = slog.Default()
	}
	d.ctx, d.cancel = context.WithCancelCause(context.WithValue(context.Background(), ownerKey{}, d))
	d.overflow.Store(uint32(cfg.Overflow))
	d.word.Store(uint64(places+freeBias) * onePlace)
	d.mu.Lock()
	d.resizeLocked(workers)
	d.mu.Unlock()
	go d.dispatch()
	return d, nil
}

func size(field string, n, byDefault, most int) (int, error) {
	switch {
	case n < -1 || n > most:
		return 0, fmt.Errorf("holdfast: Config.%s is %d; want 1 to %d, 0 for the default of %d, or -1 for none", field, n, most, byDefault)
	case n == -1:
		return 0, nil
	case n == 0:
		return byDefault, nil
	}
	return n, nil
}

// Go submits fn and returns once it is accepted, nil, or is not: [ErrQueueFull],
// [ErrClosed], [ErrNested] or, if ctx ended first, ctx.Err(). An overflow policy
// given after fn replaces the dispatcher's for this call. Only under [Block] does
// Go wait for others to end: until a place is free, ctx ends or Shutdown begins.
//
// The context that fn gets has the values of ctx, not its cancellation, and is
// canceled when Shutdown cuts the job off. What fn returns is counted and
// otherwise lost; use [Dispatcher.Submit] to see it. With context.Background()
// and no JobTimeout a call allocates nothing, and fn's context is one that such
// jobs share.
func (d *Dispatcher) Go(ctx context.Context, fn func(context.Context) error, overflow ...Overflow) error {
	if fn == nil {
		panic("holdfast: nil function")
	}
	if d.jobTimeout == 0 && (ctx == context.Background() || ctx == context.TODO()) {
		return d.submit(ctx, entry{fn: fn}, overflow)
	}
	return d.submit(ctx, entry{job: new(Job).prepare(d, ctx, fn)}, overflow)
}

// Submit is like [Dispatcher.Go], and returns a handle by which the job can be
// followed and canceled. The handle is nil if there is an error.
func (d *Dispatcher) Submit(ctx context.Context, fn func(context.Context) error, overflow ...Overflow) (*Job, error) {
	return d.follow(ctx, new(Job).prepare(d, ctx, fn), overflow)
}

func (d *Dispatcher) follow(ctx context.Context, j *Job, overflow []Overflow) (*Job, error) {
	if j.fn == nil {
		panic("holdfast: nil function")
	}
	if err := d.submit(ctx, entry{job: j}, overflow); err != nil {
		return nil, err
	}
	return j, nil
}

// Do submits fn, waits for its end and returns its error, as [Job.Err] does. If
// ctx ends while the job is queued, the job never runs and Do returns ctx.Err().
// If ctx ends while it runs, the job's context is canceled and Do goes on
// waiting: fn never outlives the call. So that a job is canceled with its caller,
// the context that fn gets has the cancellation of ctx too.
//
// With the context of a job of the same dispatcher Do returns [ErrNested].
func (d *Dispatcher) Do(ctx context.Context, fn func(context.Context) error, overflow ...Overflow) error {
	if d.owns(ctx) {
		d.refusedNested.Add(1)
		return ErrNested
	}
	j, err := d.follow(ctx, &Job{d: d, parent: ctx, waiter: true, fn: fn}, overflow)
	if err != nil {
		return err
	}
	done := j.Done()
	select {
	case <-done:
	case <-ctx.Done():
		j.cancelWith(ctx.Err())
		<-done
	}
	return j.Err()
}

// Resize changes the number of workers to n, 0 to 1,000,000, and returns without
// waiting for a job to end. 0 pauses: what is queued stays queued. Of surplus
// workers those that are idle end, the others when they have finished what they
// run. With more workers there are more places too, so submitters that wait may
// be let in. After Shutdown has begun it returns [ErrClosed].
func (d *Dispatcher) Resize(n int) error {
	if n < 0 || n > maxWorkers {
		return fmt.Errorf("holdfast: Resize(%d); want 0 to %d", n, maxWorkers)
	}
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return ErrClosed
	}
	d.resizeLocked(n)
	d.admitLocked()
	d.mu.Unlock()
	d.nudge()
	return nil
}

// SetOverflow changes what a submit does when every place is taken, unless the call
// says otherwise. Submitters that wait for a place already go on waiting. A policy
// that is none is an error and changes nothing.
func (d *Dispatcher) SetOverflow(o Overflow) error {
	if int(o) >= len(overflowNames) {
		return fmt.Errorf("holdfast: SetOverflow(%v); want Block, Reject or DropOldest", o)
	}
	d.overflow.Store(uint32(o))
	return nil
}

// resizeLocked sets the number of workers and with it the number of places.
func (d *Dispatcher) resizeLocked(n int) {
	if limit := n + d.places; len(d.allStamps) == 0 || limit > d.allStamps[len(d.allStamps)-1].Len() {
		// Before there are more places there must be stamps for them.
		d.allStamps = append(d.allStamps, stamps.New(limit))
		d.stamps.Store(d.allStamps[len(d.allStamps)-1])
	}
	d.word.Add(uint64(n-d.target) * onePlace)
	d.target = n
	for len(d.workers) < n {
		w := newWorker(d, len(d.workers))
		d.workers[w.jobs] = w
		go w.work()
	}
	// A worker looks at surplus and takes a job with its shard locked, so from
	// here on none takes a job that is surplus.
	d.counts.Freeze(func() { d.surplus.Store(int64(len(d.workers) - n)) })
}

// nudge makes the dispatcher's goroutine look again, and returns when it does: from
// then on it gives surplus workers no job but as in dismiss. d.mu must not be held.
func (d *Dispatcher) nudge() {
	select {
	case d.wake <- struct{}{}:
	case <-d.gone:
	}
}

// dispatch is the dispatcher's goroutine.
//
// It takes an idle worker first and a job second. The other way round a job that
// has left the queue would wait for a worker outside it, in a goroutine of its
// own, and the queue would never fill: its bound would be none.
//
// Why a chan chan, and not w workers ranging over one channel? There, who gets
// the next job is decided in the runtime, and nobody can take a worker away but
// by sending it a message through the queue. Here one place decides: a worker
// that asks for a job is given one, or is told to end because the pool shrinks
// or the dispatcher stops, and no job waits behind such a message. The price is
// a second hand-over per job, and it is paid only where there is something to
// decide: a worker that has just finished takes the next job itself, if there is
// one (see worker.next), and a submitter that finds no job waiting gives its own
// to an idle worker (see send).
func (d *Dispatcher) dispatch() {
	defer close(d.gone)
	var idle chan entry
	ended := d.ended
	for {
		// 1. A surplus worker ends, or gets the job that it is still needed for.
		if idle != nil && d.dismiss(idle) {
			idle = nil
			d.roomMade()
		}
		// 2. After a shutdown the last one is followed by the dispatcher.
		if ended == nil && d.deserted() {
			return
		}
		// 3. First an idle worker, then a job for it. What is abandoned leaves
		// the queue without a worker.
		pool, queue := d.pool, d.queue
		switch {
		case d.sweeping.Load():
			if idle != nil {
				pool = nil
			}
		case idle == nil:
			queue = nil
		default:
			pool = nil
		}
		select {
		case idle = <-pool:
		case e := <-queue:
			if d.sweeping.Load() {
				d.abandon(e)
				continue
			}
			idle <- e
			idle = nil
			d.roomMade()
		case <-d.wake:
		case <-ended:
			ended = nil
		}
	}
}

// dismiss reports whether an idle worker was surplus, and then has answered it:
// with the zero entry, when it is struck off, or with one more job. It is the one
// place where the number of workers falls.
//
// A surplus worker stays for as long as more jobs hold places than the queue and
// the other workers have. Then one was accepted on its account, just before the
// shrink, and is in the queue or about to be; or another worker is about to free
// the place of a job that has ended. Neither takes long. To let it wait for a job
// like others would be to run one that a paused dispatcher has accepted since.
func (d *Dispatcher) dismiss(w chan entry) bool {
	if d.surplus.Load() <= 0 {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(d.workers) > d.target {
		if d.inPlaces() < d.places+len(d.workers) || d.sweeping.Load() {
			delete(d.workers, w)
			d.surplus.Add(-1)
			w <- entry{}
			return true
		}
		select {
		case e := <-d.queue:
			w <- e
			return true
		default:
		}
		d.mu.Unlock()
		runtime.Gosched()
		d.mu.Lock()
	}
	return false
}

func (d *Dispatcher) deserted() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.workers) == 0
}

// A Report says what became of the jobs that were queued or running when
// Shutdown ended admission. Each is in one of the three.
type Report struct {
	// Finished counts those that have ended, in whatever state, without the
	// shutdown's doing.
	Finished int
	// Running counts those that were running when the context ended, and so were
	// cut off: their contexts are canceled, and their functions may or may not
	// have returned since.
	Running int
	// NeverStarted has the functions of those that were abandoned, for the
	// caller to run or to record, in the order in which they were accepted as
	// far as the clock tells them apart.
	NeverStarted []func(context.Context) error
}

// Shutdown ends admission, so that submits return [ErrClosed], also those that
// already wait, and blocks until all queued and running jobs have ended. If that
// comes before ctx ends the error is nil.
//
// If ctx ends first, queued jobs end as [Abandoned], the contexts of running ones
// are canceled, and Shutdown returns without waiting for their functions. The
// error then matches ctx.Err(), and [ErrAbandoned] if jobs never started. A
// paused dispatcher abandons its queue at once, since nobody would run it.
//
// When the functions have returned no goroutine of the dispatcher is left. If
// Shutdown is called more than once, the earliest end of a context decides, and
// every call reports. A Dispatcher cannot be used again.
func (d *Dispatcher) Shutdown(ctx context.Context) (Report, error) {
	d.mu.Lock()
	if !d.closed {
		d.closed = true
		d.word.Or(slow)
		for d.blocked.Len() > 0 {
			s := d.blocked.Front().Value.(*submitter)
			d.unblockLocked(s)
			d.refusedClosed.Add(1)
			s.told <- ErrClosed
		}
		t := d.sum()
		d.atClose = t.Queued + t.Running
		if d.target == 0 {
			d.sweepLocked()
		}
		d.noticeEndLocked()
	}
	d.mu.Unlock()
	d.nudge()

	select {
	case <-d.ended:
	case <-d.cut:
	case <-ctx.Done():
		d.cutOff(ctx.Err())
	}
	<-d.swept
	if isClosed(d.ended) {
		d.cancel(ErrClosed)
		<-d.gone
	}
	return d.report()
}

// sweepLocked makes what is queued end as abandoned: no job starts any more, and
// the dispatcher's goroutine empties the queue without workers.
func (d *Dispatcher) sweepLocked() {
	d.resizeLocked(0)
	d.counts.Freeze(func() { d.sweeping.Store(true) })
}

// cutOff ends a shutdown before its time because of err.
func (d *Dispatcher) cutOff(err error) {
	d.mu.Lock()
	if isClosed(d.ended) || isClosed(d.cut) {
		d.mu.Unlock()
		return
	}
	d.sweepLocked()
	d.cutBy, d.cutRunning = err, d.sum().Running
	var running []*Job
	for _, w := range d.workers {
		w.shard.Lock()
		if w.job != nil {
			running = append(running, w.job)
		}
		w.shard.Unlock()
	}
	close(d.cut)
	d.noticeEndLocked()
	d.mu.Unlock()

	d.cancel(errStopped)
	for _, j := range running {
		j.cancelWith(errStopped)
	}
	d.nudge()
}

// abandon ends a job that is left in the queue by a sweep.
func (d *Dispatcher) abandon(e entry) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if left, ok := d.discard(e, Abandoned, ErrAbandoned); ok {
		d.abandoned = append(d.abandoned, left)
		if e.job != nil {
			e.job.tell()
		}
	}
	d.word.Add(onePlace)
	d.noticeEndLocked()
}

// noticeEndLocked closes swept and ended when their time has come.
func (d *Dispatcher) noticeEndLocked() {
	if d.inPlaces() == 0 && !isClosed(d.ended) {
		d.resizeLocked(0) // the workers may go
		close(d.ended)
		if !isClosed(d.swept) {
			close(d.swept)
		}
	}
	if d.sweeping.Load() && !isClosed(d.swept) && d.sum().Queued == 0 {
		close(d.swept)
	}
}

// inPlaces returns the number of jobs that hold a place. d.mu must be held.
func (d *Dispatcher) inPlaces() int { return d.target + d.places - free(d.word.Load()) }

// leftover is a job that never started.
type leftover struct {
	accepted int64
	fn       func(context.Context) error
}

func (d *Dispatcher) report() (Report, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := Report{Running: d.cutRunning, Finished: d.atClose - d.cutRunning - len(d.abandoned)}
	// Those that a sweep found on their way to a worker come late.
	slices.SortStableFunc(d.abandoned, func(a, b leftover) int { return cmp.Compare(a.accepted, b.accepted) })
	for _, left := range d.abandoned {
		r.NeverStarted = append(r.NeverStarted, left.fn)
	}
	var err error
	switch n := len(r.NeverStarted); {
	case d.cutBy != nil && n > 0:
		err = fmt.Errorf("holdfast: shutdown cut off with %d jobs running: %w; %d queued: %w", r.Running, d.cutBy, n, ErrAbandoned)
	case d.cutBy != nil:
		err = fmt.Errorf("holdfast: shutdown cut off with %d jobs running: %w", r.Running, d.cutBy)
	case n > 0:
		err = fmt.Errorf("holdfast: shutdown of a paused dispatcher, %d queued: %w", n, ErrAbandoned)
	}
	return r, err
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
