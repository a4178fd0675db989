package holdfast

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// The first seed is fixed; a run that fails is repeated with -seed, never
// answered with another one.
var (
	schedules = flag.Int("schedules", 2000, "schedules of TestSimulation")
	firstSeed = flag.Uint64("seed", 1, "first seed of TestSimulation")
)

// TestSimulation drives the real dispatcher in virtual time through random
// schedules: submits of all kinds and policies, cancels, panics, Goexits,
// resizes, nested submits, jobs of several classes in some of the schedules, and a
// shutdown at some moment. Each step starts its
// operations at the same time. At every point of rest, when nothing can happen
// but by the passing of time, the guarantees are checked against the
// simulation's own counts.
func TestSimulation(t *testing.T) {
	for n := range *schedules {
		seed := *firstSeed + uint64(n)
		s := &simulation{seed: seed, rng: rand.New(rand.NewPCG(seed, 0))}
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			defer func() {
				if v := recover(); v != nil { // a deadlock of the bubble
					t.Fatalf("seed %d: %v\n%s", seed, v, s.events())
				}
			}()
			synctest.Test(t, func(t *testing.T) {
				s.run()
				if s.failure != "" {
					t.Errorf("seed %d: %s\n%s", seed, s.failure, s.events())
				}
			})
		})
		if t.Failed() {
			return
		}
	}
}

// A simJob is what the simulation knows of one submit.
type simJob struct {
	id        int
	kind      string // go, submit or do
	policy    Overflow
	class     Class
	step      int // in which the call began
	accepted  int // step at whose rest the call was first seen accepted; -1: not yet
	returned  bool
	err       error
	handle    *Job
	startedAt int // position in the order of starts; 0: not started
	ended     bool
	nested    bool // submitted by a job
	meddled   bool // canceled by somebody, or given a context that ends
}

type simulation struct {
	seed    uint64
	rng     *rand.Rand
	d       *Dispatcher
	workers int
	places  int
	step    int
	failure string
	alone   bool // the step had one operation
	classes bool // jobs have classes

	mu       sync.Mutex
	log      []string
	jobs     []*simJob
	starts   int
	running  int
	allowed  int // jobs that may run: the workers, after a shrink what ran then
	panics   int
	shutdown bool
	report   *Report
}

func (s *simulation) logf(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, fmt.Sprintf("%d: ", s.step)+fmt.Sprintf(format, args...))
}

func (s *simulation) events() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.log, "\n")
}

func (s *simulation) fail(format string, args ...any) {
	if s.failure == "" {
		s.failure = fmt.Sprintf("step %d: ", s.step) + fmt.Sprintf(format, args...)
	}
}

func (s *simulation) run() {
	s.workers, s.places = s.rng.IntN(5), s.rng.IntN(5)
	cfg := Config{
		Workers:  s.workers,
		Queue:    s.places,
		Overflow: Overflow(s.rng.IntN(3)),
		Logger:   slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	if s.rng.IntN(4) == 0 {
		cfg.JobTimeout = time.Duration(1+s.rng.IntN(20)) * time.Millisecond
	}
	var err error
	if s.d, err = New(cfg); err != nil {
		s.fail("%v", err)
		return
	}
	s.allowed = s.workers
	s.classes = s.rng.IntN(2) == 0
	s.logf("workers %d, queue %d, %v, time-out %v", s.workers, s.places, cfg.Overflow, cfg.JobTimeout)

	steps := 5 + s.rng.IntN(25)
	stop := s.rng.IntN(2 * steps) // half of the schedules are shut down at the end only
	before := s.d.Stats()
	for n := 1; n <= steps && s.failure == ""; n++ {
		s.mu.Lock()
		s.step = n
		s.mu.Unlock()
		ops := 1 + s.rng.IntN(6)
		s.alone = ops == 1
		for range ops {
			s.operate(cfg)
		}
		if s.step == stop {
			s.stop()
		}
		synctest.Wait()
		before = s.check(before)
		if s.rng.IntN(2) == 0 {
			time.Sleep(time.Duration(s.rng.IntN(8000)) * time.Microsecond)
			synctest.Wait()
			s.alone = false
			before = s.check(before)
		}
	}
	if !s.shutdown {
		s.stop()
	}
	time.Sleep(time.Hour) // every job has ended by then, and every context
	synctest.Wait()
	s.final()
}

// operate starts one random operation.
func (s *simulation) operate(cfg Config) {
	switch n := s.rng.IntN(20); {
	case n < 13:
		s.submit(cfg)
	case n < 15 && s.rng.IntN(2) == 0:
		n := s.rng.IntN(6)
		s.logf("resize %d", n)
		s.alone = false
		s.mu.Lock()
		s.workers = n
		s.allowed = max(n, s.allowed)
		s.mu.Unlock()
		if err := s.d.Resize(n); err != nil && !(s.shutdown && errors.Is(err, ErrClosed)) {
			s.fail("Resize: %v", err)
		}
	case n < 17:
		if j := s.anyHandle(); j != nil {
			j.meddled = true
			s.logf("cancel %d", j.id)
			go j.handle.Cancel()
		}
	case n < 18:
		if j := s.anyHandle(); j != nil {
			ctx, cancel := endingAfter(time.Duration(s.rng.IntN(10)) * time.Millisecond)
			go func() {
				defer cancel()
				err := j.handle.Wait(ctx)
				if ctx.Err() == nil && !errors.Is(err, j.handle.Err()) {
					s.mu.Lock()
					s.fail("Wait of %d: %v, Err: %v", j.id, err, j.handle.Err())
					s.mu.Unlock()
				}
			}()
		}
	default:
		go func() {
			st := s.d.Stats()
			s.mu.Lock()
			defer s.mu.Unlock()
			s.conserved(st)
		}()
	}
}

func (s *simulation) anyHandle() *simJob {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.jobs) == 0 {
		return nil
	}
	if j := s.jobs[s.rng.IntN(len(s.jobs))]; j.handle != nil {
		return j
	}
	return nil
}

func (s *simulation) newJob(kind string, policy Overflow) *simJob {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := &simJob{id: len(s.jobs), kind: kind, policy: policy, step: s.step, accepted: -1}
	s.jobs = append(s.jobs, j)
	return j
}

func (s *simulation) returned(j *simJob, handle *Job, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j.returned, j.handle, j.err = true, handle, err
}

// endingAfter returns a context that ends after d, as context.WithTimeout does. That
// one has a timer start a goroutine, and once in some ten thousand bubbles the
// race detector of Go 1.26 crashes on it.
func endingAfter(d time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	e := &endingContext{ctx, make(chan struct{})}
	go func() {
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
		close(e.done)
	}()
	return e, cancel
}

type endingContext struct {
	context.Context
	done chan struct{}
}

func (e *endingContext) Done() <-chan struct{} { return e.done }

func (e *endingContext) Err() error {
	if isClosed(e.done) {
		return context.DeadlineExceeded
	}
	return nil
}

// submit starts a submit of a random kind, policy, context and function.
func (s *simulation) submit(cfg Config) {
	kind := []string{"go", "submit", "do"}[s.rng.IntN(3)]
	policy := cfg.Overflow
	var overflow []Overflow
	if s.rng.IntN(2) == 0 {
		policy = Overflow(s.rng.IntN(3))
		overflow = append(overflow, policy)
	}
	j := s.newJob(kind, policy)
	ctx, cancel := context.Background(), context.CancelFunc(func() {})
	switch s.rng.IntN(4) {
	case 0:
		ctx, cancel = endingAfter(time.Duration(1+s.rng.IntN(10000)) * time.Microsecond)
		j.meddled = kind == "do"
	case 1:
		ctx = context.WithValue(ctx, ctxKey("key"), "value")
	}
	if s.classes && s.rng.IntN(4) > 0 {
		j.class = Class{Urgency: s.rng.IntN(3) - 1, Client: []string{"", "a", "b"}[s.rng.IntN(3)], Weight: s.rng.IntN(3)}
		if kind == "submit" && s.rng.IntN(4) == 0 { // of another job one could not tell what became of it
			j.class.Patience = time.Duration(1+s.rng.IntN(10000)) * time.Microsecond
			j.meddled = true
		}
	}
	fn := s.function(j, cfg)
	s.logf("%s %d %v %+v", kind, j.id, policy, j.class)
	go func() {
		defer cancel()
		var handle *Job
		var err error
		switch kind {
		case "go":
			err = under(s.d, overflow).For(j.class).Go(ctx, fn)
		case "submit":
			handle, err = under(s.d, overflow).For(j.class).Submit(ctx, fn)
		case "do":
			err = under(s.d, overflow).For(j.class).Do(ctx, fn)
		}
		s.returned(j, handle, err)
	}()
}

// function returns a job's function: how it works and how it ends is random.
func (s *simulation) function(j *simJob, cfg Config) func(context.Context) error {
	work := time.Duration(s.rng.IntN(10000)) * time.Microsecond
	if s.rng.IntN(3) == 0 {
		work = 0
	}
	stubborn := s.rng.IntN(3) == 0
	ending := s.rng.IntN(10)
	nest := s.rng.IntN(6) == 0
	var nested func(context.Context) error
	var nestedJob *simJob
	if nest {
		nestedJob = &simJob{kind: "go", policy: Block, accepted: -1, nested: true}
		nested = func(ctx context.Context) error { s.begin(nestedJob); defer s.end(nestedJob); return nil }
	}
	return func(ctx context.Context) error {
		s.begin(j)
		defer s.end(j)
		if nest {
			if err := s.d.Do(ctx, func(context.Context) error { return nil }); err != ErrNested {
				panic(fmt.Sprintf("nested Do: %v", err))
			}
			s.mu.Lock()
			nestedJob.id, nestedJob.step = len(s.jobs), s.step
			s.jobs = append(s.jobs, nestedJob)
			s.mu.Unlock()
			s.returned(nestedJob, nil, s.d.With(Block).Go(ctx, nested))
		}
		if stubborn {
			time.Sleep(work)
		} else {
			select {
			case <-time.After(work):
			case <-ctx.Done():
			}
		}
		switch ending {
		case 0:
			s.mu.Lock()
			s.panics++
			s.mu.Unlock()
			panic("simulated")
		case 1:
			runtime.Goexit()
		case 2:
			return errors.New("simulated")
		case 3:
			return ctx.Err()
		}
		return nil
	}
}

func (s *simulation) begin(j *simJob) {
	s.logf("start %d", j.id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if j.startedAt > 0 {
		s.fail("job %d started twice", j.id)
	}
	s.starts++
	s.running++
	j.startedAt = s.starts
}

func (s *simulation) end(j *simJob) {
	s.logf("end %d", j.id)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running--
	j.ended = true
}

func (s *simulation) stop() {
	s.mu.Lock()
	s.shutdown = true
	s.mu.Unlock()
	for range 1 + s.rng.IntN(2) {
		ctx, cancel := context.WithCancel(context.Background())
		limit := time.Duration(s.rng.IntN(20)) * time.Millisecond
		if s.rng.IntN(2) == 0 {
			ctx, cancel = endingAfter(limit)
		}
		s.logf("shutdown")
		go func() {
			defer cancel()
			report, err := s.d.Shutdown(ctx)
			s.mu.Lock()
			defer s.mu.Unlock()
			if err == nil && (report.Running > 0 || len(report.NeverStarted) > 0) {
				s.fail("no error for %+v", report)
			}
			if s.report != nil && (s.report.Running != report.Running || s.report.Finished != report.Finished) {
				s.fail("reports differ: %+v, %+v", *s.report, report)
			}
			s.report = &report
		}()
	}
}

// conserved checks what holds in every snapshot. s.mu must be held.
func (s *simulation) conserved(st Stats) {
	if sum := uint64(st.Queued+st.Running) + ended(st); st.Accepted != sum {
		s.fail("accepted %d, sum %d: %s", st.Accepted, sum, brief(st))
	}
	if st.Queued < 0 || st.Queued > s.places {
		s.fail("queued beyond %d: %s", s.places, brief(st))
	}
	if st.Running < 0 || st.Running > s.allowed {
		s.fail("running beyond %d: %s", s.allowed, brief(st))
	}
}

// check holds the guarantees against the simulation's counts at a point of rest.
func (s *simulation) check(before Stats) Stats {
	st := s.d.Stats()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conserved(st)
	if st.Running != s.running {
		s.fail("G6: %d run, statistics say %d", s.running, st.Running)
	}
	if s.running > s.allowed {
		s.fail("G2: %d run, allowed %d", s.running, s.allowed)
	}
	s.allowed = max(s.workers, min(s.allowed, s.running))

	if !s.shutdown && st.Queued > 0 && st.Running < s.workers {
		s.fail("G13: idle worker beside a queued job: %s", brief(st))
	}
	s.d.lock()
	queued, blocked := st.Queued, s.d.blocked.Len()
	if s.d.line != nil {
		queued = s.d.line.Len()
	}
	s.d.mu.Unlock()
	if queued != st.Queued || blocked != st.Blocked {
		s.fail("G6: the lines hold others than these: %s", brief(st))
	}
	used := st.Queued + st.Running
	if st.Blocked > 0 && used < s.workers+s.places {
		s.fail("G13: blocked submitter beside a free place: %s", brief(st))
	}

	// Which calls have been accepted, and which wait. A call of Do that has not returned and
	// not started may be either; one that returned with its context's error may
	// have been either.
	var accepted, unclear, waiting, unstarted int
	var known [StateAbandoned + 1]uint64
	for _, j := range s.jobs {
		switch {
		case j.kind == "do" && !j.returned && j.startedAt == 0:
			waiting++ // queued or blocked
		case j.kind == "do" && j.returned && j.startedAt == 0:
			switch {
			case errors.Is(j.err, ErrDropped):
				known[StateDropped]++
				accepted++
			case errors.Is(j.err, ErrAbandoned):
				known[StateAbandoned]++
				accepted++
			case errors.Is(j.err, context.DeadlineExceeded):
				unclear++
			}
		case !j.returned && j.startedAt == 0:
			waiting++ // blocked
		case j.returned && j.err != nil && j.kind != "do":
		default:
			accepted++
			if j.accepted < 0 {
				j.accepted = s.step
			}
			if j.handle != nil {
				state := j.handle.State()
				known[state]++
				if (j.startedAt > 0 && !j.ended) != (state == StateRunning) && j.startedAt > 0 == !j.ended {
					s.fail("job %d started %d, ended %v, but is %v", j.id, j.startedAt, j.ended, state)
				}
				if state.Ended() != isClosed(j.handle.Done()) {
					s.fail("G5: job %d is %v, Done closed: %v", j.id, state, isClosed(j.handle.Done()))
				}
				if state == StateQueued {
					unstarted++
				}
			} else if j.startedAt == 0 {
				unstarted++ // or dropped or abandoned, which nobody is told of
			}
		}
	}
	all := int(st.Accepted) + st.Blocked
	if low := accepted + waiting; all < low || all > low+unclear {
		s.fail("G6: %d accepted, %d wait, %d unclear: %s", accepted, waiting, unclear, brief(st))
	}
	untold := int(st.Dropped + st.Abandoned - known[StateDropped] - known[StateAbandoned])
	if got := st.Queued + st.Blocked + untold; got != unstarted+waiting {
		s.fail("G6: %d unstarted, %d wait, %d dropped or abandoned untold: %s", unstarted, waiting, untold, brief(st))
	}
	if int(st.Panicked) > s.panics {
		s.fail("G6: %d panics, statistics say %d", s.panics, st.Panicked)
	}
	s.ordered()
	if s.alone {
		s.exact(before, st)
	}
	return st
}

// ordered checks G3 and the fairness of G4, among the jobs of one urgency and client: a
// job that was accepted before the call of another began has started if that one has,
// and a blocked call that began before another has been accepted if that one has.
func (s *simulation) ordered() {
	type flow struct {
		urgency int
		client  string
	}
	of := func(j *simJob) flow { return flow{j.class.Urgency, j.class.Client} }
	lastStarted, lastBlocked := map[flow]int{}, map[flow]int{} // greatest step of a call whose job has started, or was let in under Block
	for _, j := range s.jobs {
		if j.startedAt > 0 {
			lastStarted[of(j)] = max(lastStarted[of(j)], j.step)
		}
		if j.policy == Block && (j.startedAt > 0 || j.handle != nil || j.kind == "go" && j.returned && j.err == nil) {
			lastBlocked[of(j)] = max(lastBlocked[of(j)], j.step)
		}
	}
	for _, j := range s.jobs {
		if j.handle != nil && j.handle.State() == StateQueued && j.accepted < lastStarted[of(j)] {
			s.fail("G3: job %d is queued since step %d, one of step %d has started", j.id, j.accepted, lastStarted[of(j)])
		}
		if j.policy == Block && j.kind != "do" && !j.returned && j.startedAt == 0 && j.step < lastBlocked[of(j)] {
			s.fail("G4: job %d waits for a place since step %d, one of step %d has one", j.id, j.step, lastBlocked[of(j)])
		}
	}
}

// exact checks a step that had one operation: what a submit got follows from
// the places that were taken.
func (s *simulation) exact(before, st Stats) {
	j := s.jobs
	if len(j) == 0 || j[len(j)-1].step != s.step || s.shutdown {
		return
	}
	last := j[len(j)-1]
	if last.nested {
		return // the step's operation was another one
	}
	full := before.Queued+before.Running >= s.workers+s.places
	refused := errors.Is(last.err, ErrQueueFull)
	dropped := int(st.Dropped - before.Dropped)
	if errors.Is(last.err, ErrLate) {
		return
	}
	switch last.policy {
	case Reject:
		if refused != (full && dropped == 0) {
			s.fail("G1: job %d refused %v, but full is %v: %s", last.id, refused, full, brief(before))
		}
		if dropped > 1 || dropped > 0 && !s.classes {
			s.fail("G4: %d dropped by %d: %s", dropped, last.id, brief(before))
		}
	case DropOldest:
		switch {
		case s.classes && refused: // all that was queued may have been more urgent
		case dropped > 1 || dropped == 1 && !full:
			s.fail("G4: one call dropped %d: %s", dropped, brief(before))
		case full && before.Queued > 0 && dropped != 1:
			s.fail("G4: nothing dropped by %d: %s", last.id, brief(before))
		case full && before.Queued == 0 && !refused:
			s.fail("G4: job %d not refused with nothing to drop: %s", last.id, brief(before))
		}
	}
	if before.Blocked > st.Blocked+1 {
		s.fail("a submit let others in: %s", brief(before))
	}
}

// final checks what holds when everything has ended.
func (s *simulation) final() {
	st := s.d.Stats()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conserved(st)
	if st.Queued+st.Running+st.Blocked != 0 || st.OldestAge != 0 {
		s.fail("left after the shutdown: %s", brief(st))
	}
	if s.report == nil {
		s.fail("Shutdown has not returned")
		return
	}
	var started uint64
	for _, j := range s.jobs {
		if !j.returned {
			s.fail("job %d: %s has not returned", j.id, j.kind)
		}
		if j.startedAt > 0 {
			started++
			if !j.ended {
				s.fail("job %d has not ended", j.id)
			}
		}
		if j.handle == nil {
			continue
		}
		state, err := j.handle.State(), j.handle.Err()
		ran := j.startedAt > 0
		switch {
		case !isClosed(j.handle.Done()):
			s.fail("G5: job %d: Done is open", j.id)
		case ran && (state == StateDropped || state == StateAbandoned), !ran && state < StateCanceled:
			s.fail("G5: job %d started %v, but ended as %v", j.id, ran, state)
		case (err == nil) != (state == StateSucceeded):
			s.fail("G5: job %d ended as %v with error %v", j.id, state, err)
		case state == StateCanceled && !j.meddled && len(s.report.NeverStarted)+s.report.Running == 0:
			s.fail("G7: job %d canceled by nobody", j.id)
		}
	}
	if uint64(s.panics) != st.Panicked {
		s.fail("G9: %d panics, statistics say %d", s.panics, st.Panicked)
	}
	if n := uint64(len(s.report.NeverStarted)); n != st.Abandoned {
		s.fail("G12: %d never started, statistics say %d abandoned", n, st.Abandoned)
	}
	if st.Wait.Count != started || st.Run.Count != started {
		s.fail("G14: %d started, histograms have %d and %d", started, st.Wait.Count, st.Run.Count)
	}
}

// TestStress lets everything meet everything in real time, under the race
// detector: all kinds of submits and policies, cancels, panics, Goexits, contexts
// that end, resizes and snapshots, and a shutdown in the middle of it.
func TestStress(t *testing.T) {
	for round := range 16 {
		s := &stressed{most: 6, places: []int{0, 1, 5, 50}[round%4], runs: make(map[int]int)}
		cfg := sized(2, s.places)
		cfg.Overflow = Overflow(round % 3)
		cfg.Logger = quiet
		var err error
		if s.d, err = New(cfg); err != nil {
			t.Fatal(err)
		}
		ctx := bg
		if round%2 == 1 {
			ctx = expired
		}
		s.run(t, ctx)
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
}

type stressed struct {
	d      *Dispatcher
	most   int // workers at any time
	places int

	// The test's own counts.
	meter                                          meter
	calls, full, closed, nested, started, panicked atomic.Uint64

	mu      sync.Mutex
	runs    map[int]int // by job
	handles []*Job
}

func (s *stressed) run(t *testing.T, ctx context.Context) {
	var load, others sync.WaitGroup
	stop := make(chan struct{})
	for p := range 6 {
		load.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(s.places), uint64(p)))
			for i := 0; s.submit(rng, p<<24+i) != ErrClosed; i++ {
			}
		})
	}
	for range 2 {
		others.Go(func() {
			for !isClosed(s.d.over) && !t.Failed() {
				st := s.d.Stats()
				if st.Accepted != uint64(st.Queued+st.Running)+ended(st) || st.Queued < 0 || st.Queued > s.places || st.Running < 0 || st.Running > s.most {
					t.Errorf("%s", brief(st))
				}
				runtime.Gosched()
			}
		})
	}
	others.Go(func() {
		for rng := rand.New(rand.NewPCG(7, 7)); !isClosed(stop); {
			if err := s.d.Resize(rng.IntN(s.most + 1)); err != nil {
				t.Error(err)
			}
			for range rng.IntN(100) {
				runtime.Gosched()
			}
		}
		s.d.Resize(1)
		report, err := s.d.Shutdown(ctx)
		if ctx == bg && (err != nil || report.Running+len(report.NeverStarted) > 0) {
			t.Errorf("%+v, %v", report, err)
		}
		if st := s.d.Stats(); uint64(len(report.NeverStarted)) != st.Abandoned {
			t.Errorf("%d never started: %s", len(report.NeverStarted), brief(st))
		}
	})
	eventually(t, "2,000 have run", func() bool { return s.started.Load() > 2000 || t.Failed() })
	close(stop)
	load.Wait()
	others.Wait()
	s.d.running.Wait() // for what a cut-off shutdown leaves running

	st := s.d.Stats()
	if st.Accepted != ended(st) || st.Queued+st.Running+st.Blocked != 0 || st.OldestAge != 0 {
		t.Errorf("left: %s", brief(st))
	}
	if calls := st.Accepted + st.RefusedFull + st.RefusedClosed + st.RefusedNested + st.RefusedGone; calls != s.calls.Load() ||
		st.RefusedFull != s.full.Load() || st.RefusedClosed != s.closed.Load() || st.RefusedNested != s.nested.Load() {
		t.Errorf("%d calls, full %d, closed %d, nested %d: %s", s.calls.Load(), s.full.Load(), s.closed.Load(), s.nested.Load(), brief(st))
	}
	if n := s.started.Load(); st.Wait.Count != n || st.Run.Count != n || st.Panicked != s.panicked.Load() {
		t.Errorf("%d started, %d panicked: %d waits, %d runs: %s", n, s.panicked.Load(), st.Wait.Count, st.Run.Count, brief(st))
	}
	if n := s.meter.most.Load(); n > int64(s.most) {
		t.Errorf("%d ran at once", n)
	}
	for id, n := range s.runs {
		if n != 1 {
			t.Errorf("job %d ran %d times", id, n)
		}
	}
	for _, j := range s.handles {
		if !j.State().Ended() || !isClosed(j.Done()) || (j.Err() == nil) != (j.State() == StateSucceeded) {
			t.Errorf("%v, %v, Done closed: %v", j.State(), j.Err(), isClosed(j.Done()))
		}
	}
}

// submit makes one call of a random kind.
func (s *stressed) submit(rng *rand.Rand, id int) (err error) {
	ctx, cancel := context.WithCancel(bg)
	defer cancel()
	if rng.IntN(4) == 0 {
		ctx = context.WithValue(ctx, ctxKey("k"), id)
	}
	if rng.IntN(4) == 0 {
		go cancel()
	}
	fn, policy := s.function(rng, id), Overflow(rng.IntN(3))
	s.calls.Add(1)
	switch rng.IntN(3) {
	case 0:
		err = s.d.With(policy).Go(ctx, fn)
	case 1:
		var j *Job
		if j, err = s.d.With(policy).Submit(ctx, fn); err == nil {
			s.mu.Lock()
			s.handles = append(s.handles, j)
			s.mu.Unlock()
			switch rng.IntN(4) {
			case 0:
				j.Cancel()
			case 1:
				j.Wait(ctx)
			}
		}
	case 2:
		err = s.d.With(policy).Do(ctx, fn)
	}
	switch err {
	case ErrQueueFull:
		s.full.Add(1)
		runtime.Gosched()
	case ErrClosed:
		s.closed.Add(1)
	}
	return err
}

// function returns a job that ends in a random way.
func (s *stressed) function(rng *rand.Rand, id int) func(context.Context) error {
	way := rng.IntN(10)
	return s.meter.wrap(func(ctx context.Context) error {
		s.started.Add(1)
		s.mu.Lock()
		s.runs[id]++
		s.mu.Unlock()
		switch way {
		case 0:
			s.panicked.Add(1)
			panic("boom")
		case 1:
			runtime.Goexit()
		case 2:
			return errors.New("boom")
		case 3:
			s.calls.Add(1)
			s.nested.Add(1)
			if err := s.d.Do(ctx, nop); err != ErrNested {
				return errors.New("not nested")
			}
		case 4:
			runtime.Gosched()
			return ctx.Err()
		}
		return nil
	})
}
