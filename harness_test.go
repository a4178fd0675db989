package holdfast

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/histogram"
	"holdfast/internal/memtest"
)

// The guarantees of the engine, with w workers and L places in the queue. Names of
// tests and messages refer to them.
//
//	G1   Idle first, exact bound: a job holds a place from acceptance to its end, there
//	     are w + L places, and from any state, idle included, w + L jobs are accepted
//	     before the first is refused, made to wait or dropped. An accepted send waits
//	     for no job to end. Goroutines do not depend on how many jobs wait.
//	G2   Bound: at most w jobs run, those past their deadline included. After a shrink
//	     the surplus finishes what it runs.
//	G3   Order: jobs of one class leave the queue in the order in which they were
//	     accepted.
//	G4   Overflow: Block waits for a place until the context ends or shutdown, first
//	     come, first served. Reject returns ErrQueueFull at once. DropOldest ends the
//	     longest-waiting queued job, one at most, and takes its place ahead of blocked
//	     submitters; with none to drop it refuses. There is a default, and a choice per
//	     call.
//	G5   One outcome: every accepted job ends exactly once, and no waiter hangs.
//	G6   Conservation: in every snapshot accepted = queued + running + outcomes, with
//	     0 <= queued <= L and 0 <= running <= w. Refusals are counted by reason.
//	G7   Cancel: a queued job never runs and frees its place at once; a running one has
//	     its context canceled. If the caller of Do has gone before the start, the job is
//	     skipped and counted.
//	G8   Context: a job sees the submitter's values without its cancellation, unless the
//	     caller waits. The time-out is a deadline. A context is never reused. Canceled
//	     before the function returned: canceled; past its deadline: failed.
//	G9   Isolation: a panic becomes the job's error with its stack, logged once;
//	     runtime.Goexit ends the job, not the pool.
//	G10  Nesting: with the job's own context a submit that would have to wait, Do and
//	     Wait return ErrNested.
//	G11  Resize: the number of workers changes while running, to 0 and up again; no job
//	     is lost, stranded or run twice.
//	G12  Shutdown: admission ends and jobs finish; when the context ends first, queued
//	     jobs are abandoned, running contexts canceled, waiters told, and a report
//	     counts each job once. A paused dispatcher abandons its queue at once.
//	G13  No lost wake-up: at rest no idle worker beside a queued job, and no blocked
//	     submitter beside a free place.
//	G14  Timings: queue wait and run time as histograms, and the exact age of the oldest
//	     queued job.
//	G15  Patience: a job that cannot be answered within its patience is refused at the
//	     door, or ended unstarted as soon as that is certain.
//	G16  Urgency and shares: the more urgent first; within an urgency clients share the
//	     workers fairly; no worker is idle while anything waits.
//
// Order, bounds and times are tested in virtual time, where a test that hangs fails
// at once as a deadlock of its bubble, and a goroutine that is left fails it too.
// A TestTrap holds shut what other pools and queues fell into: its comment names the
// project and the number of its issue.

var bg = context.Background()

// expired has ended.
var expired = func() context.Context {
	ctx, cancel := context.WithCancel(bg)
	cancel()
	return ctx
}()

type ctxKey string

func sized(workers, queue int) Config { return Config{Workers: workers, Queue: queue} }

// build returns a dispatcher that is shut down when the test ends, and checked
// then: nothing may be left in it.
func build(t testing.TB, cfg Config) *Dispatcher {
	t.Helper()
	return stopAtEnd(t, cfg, bg)
}

// buildLogged is build for tests that leave jobs running, which are cut off at the
// end, or that look at the log.
func buildLogged(t testing.TB, cfg Config) (*Dispatcher, *errorLog) {
	t.Helper()
	log := new(errorLog)
	cfg.Logger = log.logger()
	return stopAtEnd(t, cfg, expired), log
}

func stopAtEnd(t testing.TB, cfg Config, limit context.Context) *Dispatcher {
	t.Helper()
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.Shutdown(limit)
		d.running.Wait() // a job that a shutdown has cut off may still run
		if st := d.Stats(); st.Queued+st.Running+st.Blocked != 0 || st.Accepted != ended(st) {
			t.Errorf("left after the shutdown: %s", brief(st))
		}
	})
	return d
}

// An errorLog is what a dispatcher logs.
type errorLog struct{ memtest.Log }

func (l *errorLog) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// records returns how many errors were logged.
func (l *errorLog) records() int { return strings.Count(l.String(), "level=ERROR") }

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// A gate holds jobs until it is closed, whatever their contexts say.
type gate chan struct{}

func (g gate) pass(context.Context) error { <-g; return nil }

func nop(context.Context) error { return nil }

// untilCanceled is a job that runs until its context ends.
func untilCanceled(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

// under returns what submits to d under a policy, that of d if there is none.
func under(d *Dispatcher, overflow []Overflow) Submitter {
	if len(overflow) == 0 {
		return d.Submitter
	}
	return d.With(overflow[0])
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func mustGo(t testing.TB, d *Dispatcher, fn func(context.Context) error, overflow ...Overflow) {
	t.Helper()
	if err := under(d, overflow).Go(bg, fn); err != nil {
		t.Fatalf("Go: %v", err)
	}
}

func mustSubmit(t testing.TB, d *Dispatcher, fn func(context.Context) error, overflow ...Overflow) *Job {
	t.Helper()
	j, err := under(d, overflow).Submit(bg, fn)
	if err != nil {
		t.Fatalf("Submit: %v", err)
	}
	return j
}

// fill submits fn until it is refused, and returns how many were accepted.
func fill(t testing.TB, d *Dispatcher, fn func(context.Context) error) (accepted int) {
	t.Helper()
	for range 100_000 {
		switch err := d.With(Reject).Go(bg, fn); err {
		case nil:
			accepted++
		case ErrQueueFull:
			return accepted
		default:
			t.Fatalf("Go: %v", err)
		}
	}
	t.Fatal("there seems to be no bound")
	return 0
}

// A record keeps the order in which jobs ran.
type record struct {
	mu  sync.Mutex
	ran []int
}

func (r *record) add(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ran = append(r.ran, n)
}

func (r *record) job(n int) func(context.Context) error {
	return func(context.Context) error { r.add(n); return nil }
}

func (r *record) expect(t testing.TB, want ...int) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Equal(r.ran, want) {
		t.Errorf("ran %v, want %v", r.ran, want)
	}
}

func upTo(n int) (s []int) {
	for i := range n {
		s = append(s, i)
	}
	return s
}

// A meter counts what runs at once.
type meter struct{ now, most atomic.Int64 }

func (m *meter) wrap(fn func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		n := m.now.Add(1)
		defer m.now.Add(-1)
		for most := m.most.Load(); n > most && !m.most.CompareAndSwap(most, n); most = m.most.Load() {
		}
		return fn(ctx)
	}
}

func ended(st Stats) uint64 {
	return st.Succeeded + st.Failed + st.Panicked + st.Canceled + st.Dropped + st.Abandoned
}

// numbers returns st without its timings, so that it can be compared.
func numbers(st Stats) Stats {
	st.Overflow, st.OldestAge, st.Wait, st.Run = 0, 0, histogram.Histogram{}, histogram.Histogram{}
	return st
}

func brief(st Stats) string {
	return fmt.Sprintf("w %d L %d, accepted %d = queued %d + running %d + (succeeded %d failed %d panicked %d canceled %d dropped %d abandoned %d), "+
		"blocked %d, refused full %d closed %d nested %d gone %d, oldest %v",
		st.Workers, st.Queue, st.Accepted, st.Queued, st.Running, st.Succeeded, st.Failed, st.Panicked, st.Canceled, st.Dropped, st.Abandoned,
		st.Blocked, st.RefusedFull, st.RefusedClosed, st.RefusedNested, st.RefusedGone, st.OldestAge)
}

// expectStats waits for rest and compares the numbers.
func expectStats(t testing.TB, d *Dispatcher, want Stats) {
	t.Helper()
	synctest.Wait()
	if got := numbers(d.Stats()); got != want {
		t.Errorf("statistics\n got: %s\nwant: %s", brief(got), brief(want))
	}
}

func expectState(t testing.TB, j *Job, state State, err error) {
	t.Helper()
	if j.State() != state || !errors.Is(j.Err(), err) || (err == nil) != (j.Err() == nil) {
		t.Errorf("job is %v with error %v, want %v with %v", j.State(), j.Err(), state, err)
	}
	if isClosed(j.Done()) != state.Ended() {
		t.Errorf("job is %v, Done closed: %v", j.State(), isClosed(j.Done()))
	}
}

// eventually waits, in real time, until cond holds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !cond(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// atRest checks what holds at every point of rest.
func atRest(t testing.TB, d *Dispatcher) {
	t.Helper()
	synctest.Wait()
	st := d.Stats()
	if st.Queued > 0 && st.Running < st.Workers {
		t.Errorf("an idle worker beside a queued job: %s", brief(st))
	}
	if st.Blocked > 0 && st.Queued+st.Running < st.Workers+st.Queue {
		t.Errorf("a blocked submitter beside a free place: %s", brief(st))
	}
}
