package holdfast

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/histogram"
)

// The engine's guarantees, one by one. Order, bounds and times are tested in
// virtual time, where a test that hangs fails at once as a deadlock of its bubble
// and a goroutine that is left fails it too.

var bg = context.Background()

// expired has ended.
var expired = func() context.Context {
	ctx, cancel := context.WithCancel(bg)
	cancel()
	return ctx
}()

func sized(workers, queue int) Config { return Config{Workers: workers, Queue: queue} }

// build returns a dispatcher that is shut down when the test ends, and checked
// then: nothing may be left in it.
func build(t testing.TB, cfg Config) *Dispatcher {
	t.Helper()
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.Shutdown(bg)
		d.running.Wait() // a job that a shutdown has cut off may still run
		st := d.Stats()
		if st.Queued+st.Running+st.Blocked != 0 || st.Accepted != endedIn(st) {
			t.Errorf("left after the shutdown: %s", brief(st))
		}
	})
	return d
}

// A gate holds jobs until it is closed, whatever their contexts say.
type gate chan struct{}

func (g gate) pass(context.Context) error { <-g; return nil }

func nop(context.Context) error { return nil }

// untilCanceled is a job that runs until its context ends.
func untilCanceled(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

// under returns what submits to d under a policy, that of d if there is none.
func under(d *Dispatcher, overflow []Overflow) Submitter {
	if len(overflow) == 0 {
		return Submitter{d, byDefault}
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

func endedIn(st Stats) uint64 {
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

// settled waits, in real time, until cond holds.
func settled(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !cond(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// A panicLog counts the records that a dispatcher logs.
type panicLog struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (p *panicLog) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.Write(b)
}

func (p *panicLog) logger() *slog.Logger { return slog.New(slog.NewTextHandler(p, nil)) }

func (p *panicLog) records() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Count(p.text.String(), "level=ERROR")
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// Without it an idle pool would refuse before its workers have work.
func TestG1IdleFirstExactBound(t *testing.T) {
	for _, size := range [][2]int{{1, 0}, {4, 0}, {1, 1}, {2, 4}, {3, 1}, {16, 64}, {0, 0}, {0, 5}} {
		synctest.Test(t, func(t *testing.T) {
			w, l := size[0], size[1]
			d := build(t, sized(w, l))
			for round := range 3 { // new, then idle again
				open := make(gate)
				if n := fill(t, d, open.pass); n != w+l {
					t.Fatalf("w %d L %d round %d: %d accepted, want %d", w, l, round, n, w+l)
				}
				synctest.Wait()
				if st := d.Stats(); st.Running != w || st.Queued != l {
					t.Errorf("w %d L %d: %s", w, l, brief(st))
				}
				close(open)
				synctest.Wait()
				if w == 0 {
					return // paused: nothing leaves
				}
			}
		})
	}
}

// Without it places would be lost or given twice when submitters race.
func TestG1ConcurrentBurstExactBound(t *testing.T) {
	for _, size := range [][2]int{{1, 0}, {4, 0}, {2, 4}, {4, 8}} {
		synctest.Test(t, func(t *testing.T) {
			w, l := size[0], size[1]
			d := build(t, sized(w, l))
			for range 200 {
				open := make(gate)
				var wg sync.WaitGroup
				var accepted, refused atomic.Int64
				for range 8 {
					wg.Go(func() {
						for range 5 {
							if d.With(Reject).Go(bg, open.pass) == nil {
								accepted.Add(1)
							} else {
								refused.Add(1)
							}
						}
					})
				}
				wg.Wait()
				if n := int(accepted.Load()); n != w+l || refused.Load() != int64(40-w-l) {
					t.Fatalf("w %d L %d: %d accepted, want %d", w, l, n, w+l)
				}
				close(open)
				synctest.Wait()
			}
		})
	}
}

// Without it a place would be free before its job has told its end, or after: a
// caller that waits for a job and submits the next would be refused.
func TestG1PlaceIsFreeWhenTheEndIsTold(t *testing.T) {
	d := build(t, sized(1, 0))
	for range 3000 {
		open := make(gate)
		j := mustSubmit(t, d, open.pass, Reject)
		for range 4 { // the more wait, the longer it takes to tell them all
			go func() { <-j.Done() }()
		}
		go close(open)
		for n, done := 1, j.Done(); !isClosed(done); n++ {
			if n%100 == 0 { // there may be one processor
				runtime.Gosched()
			}
		}
	}
}

// Without it a resize would change the pool and not the bound, or count twice.
func TestG1BoundAfterResize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(2, 3))
		end := make(chan struct{}) // each receive ends one job
		job := func(context.Context) error { <-end; return nil }
		defer close(end)
		expect := func(what string, want, running, queued int) {
			t.Helper()
			synctest.Wait()
			if n := fill(t, d, job); n != want {
				t.Errorf("%s: %d accepted, want %d", what, n, want)
			}
			synctest.Wait()
			if st := d.Stats(); st.Running != running || st.Queued != queued {
				t.Errorf("%s: %s", what, brief(st))
			}
		}
		finish := func(n int) {
			for range n {
				end <- struct{}{}
				synctest.Wait()
			}
		}
		resize := func(n int) {
			t.Helper()
			if err := d.Resize(n); err != nil {
				t.Error(err)
			}
		}
		expect("new", 5, 2, 3)
		resize(4)
		expect("2 to 4", 2, 4, 3)
		resize(1)
		expect("4 to 1", 0, 4, 3)
		finish(2)
		expect("two surplus jobs ended", 0, 2, 3)
		finish(1)
		expect("at the new size", 0, 1, 3)
		finish(1)
		expect("one more ended", 1, 1, 3)
		resize(0)
		expect("1 to 0", 0, 1, 3)
		finish(1)
		expect("paused", 0, 0, 3)
		resize(2)
		expect("0 to 2", 2, 2, 3)
		resize(2)
		expect("2 to 2", 0, 2, 3)
	})
}

// Without it a million waiting jobs would be a million goroutines.
func TestG1GoroutinesDoNotDependOnWaitingJobs(t *testing.T) {
	const w, l = 4, 100_000
	before := runtime.NumGoroutine()
	d := build(t, sized(w, l))
	open := make(gate)
	defer close(open)
	for range w {
		mustGo(t, d, open.pass)
	}
	settled(t, "all workers run", func() bool { return d.Stats().Running == w })
	idle := runtime.NumGoroutine()
	for range l / 2 {
		mustGo(t, d, nop, Reject)
		mustSubmit(t, d, nop, Reject)
	}
	if n := runtime.NumGoroutine(); n > idle || n > before+w+1 {
		t.Errorf("%d goroutines before New, %d with nothing queued, %d with %d jobs queued", before, idle, n, l)
	}
}

// Without it an accepted send could wait behind the jobs that run.
func TestG1SendWaitsForNoJobToEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 300 {
			w, l := 1+rand.IntN(6), rand.IntN(4)
			d := build(t, sized(w, l))
			open := make(gate)
			var wg sync.WaitGroup
			for range w + l {
				wg.Go(func() { mustGo(t, d, open.pass) })
			}
			wg.Wait() // no job has ended
			close(open)
			d.Shutdown(bg)
		}
	})
}

// Without it a shrink would take away the worker that an accepted send counts on.
func TestG1SendWaitsForNoJobToEndAcrossResize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 1500 {
			w, l := 1+rand.IntN(6), rand.IntN(4)
			d := build(t, sized(w, l))
			if rand.IntN(2) == 0 {
				synctest.Wait() // the workers have registered
			}
			open := make(gate)
			begin := make(chan struct{})
			var accepted, ran atomic.Int64
			var wg sync.WaitGroup
			for range w + l {
				wg.Go(func() {
					<-begin
					if d.With(Reject).Go(bg, func(context.Context) error { <-open; ran.Add(1); return nil }) == nil {
						accepted.Add(1)
					}
				})
			}
			size := 0
			if rand.IntN(2) == 0 {
				size = rand.IntN(w + 1)
			}
			close(begin)
			for range rand.IntN(2 * (w + l)) {
				runtime.Gosched()
			}
			d.Resize(size)
			wg.Wait() // no job has ended
			synctest.Wait()
			if st := d.Stats(); st.Running > w || st.Queued > l || int64(st.Accepted) != accepted.Load() {
				t.Fatalf("w %d to %d: %s", w, size, brief(st))
			}
			d.Resize(w)
			close(open)
			if report, err := d.Shutdown(bg); err != nil || ran.Load() != accepted.Load() {
				t.Fatalf("w %d to %d, L %d: %d accepted, %d ran, %+v %v", w, size, l, accepted.Load(), ran.Load(), report, err)
			}
		}
	})
}

// Without it a time-out would free the slot while the job runs on.
func TestG2BoundHoldsPastTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := sized(2, 20)
		cfg.JobTimeout = time.Second
		d := build(t, cfg)
		var m meter
		var jobs []*Job
		for range 10 {
			jobs = append(jobs, mustSubmit(t, d, m.wrap(func(context.Context) error {
				time.Sleep(time.Hour) // ignores its context
				return nil
			})))
		}
		time.Sleep(time.Minute)
		expectStats(t, d, Stats{Workers: 2, Queue: 20, Accepted: 10, Running: 2, Queued: 8})
		time.Sleep(6 * time.Hour)
		if m.most.Load() != 2 {
			t.Errorf("%d ran at once, want 2", m.most.Load())
		}
		for _, j := range jobs {
			expectState(t, j, StateFailed, context.DeadlineExceeded)
		}
	})
}

// Without it a shrink would stop jobs, or start some beyond the new number.
func TestG2SurplusFinishesAfterShrink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(5, 20))
		var m meter
		for i := range 15 { // 5 run at once, and end one second after the other
			mustGo(t, d, m.wrap(func(context.Context) error { time.Sleep(time.Duration(i%5+1) * time.Second); return nil }))
		}
		synctest.Wait()
		if err := d.Resize(2); err != nil {
			t.Fatal(err)
		}
		for _, want := range []int64{5, 4, 3, 2, 2} {
			synctest.Wait()
			if n := m.now.Load(); n != want {
				t.Errorf("%d run, want %d", n, want)
			}
			time.Sleep(time.Second)
		}
		m.most.Store(0)
		time.Sleep(time.Minute)
		if m.most.Load() > 2 {
			t.Errorf("%d ran at once after the shrink to 2", m.most.Load())
		}
		expectStats(t, d, Stats{Workers: 2, Queue: 20, Accepted: 15, Succeeded: 15})
	})
}

// Without it one worker would not be a way to run things in order.
func TestG3OneWorkerRunsInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 100))
		for round := range 3 { // from idle; then with the worker taking the next itself
			var r record
			var want []int
			for i := range 60 {
				switch i % 4 {
				case 0:
					mustGo(t, d, r.job(i))
				case 1:
					mustSubmit(t, d, r.job(i))
				case 2:
					d.Go(context.WithValue(bg, ctxKey("k"), "v"), r.job(i))
				case 3:
					if round == 2 {
						mustSubmit(t, d, r.job(i)).Cancel()
						continue
					}
					if round == 1 {
						mustSubmit(t, d, r.job(i))
						break
					}
					go d.Do(bg, r.job(i))
					synctest.Wait() // only then is it sure to be before the next
				}
				want = append(want, i)
			}
			synctest.Wait()
			if round == 2 { // canceled at once: each may have run or not
				r.mu.Lock()
				r.ran = slices.DeleteFunc(r.ran, func(n int) bool { return n%4 == 3 })
				r.mu.Unlock()
			}
			r.expect(t, want...)
		}
	})
}

// Without it submitters that were let in together could pass each other.
func TestG3BlockedSubmittersEnterInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(0, 4))
		var r record
		for range 4 {
			mustSubmit(t, d, r.job(-1))
		}
		for i := range 10 {
			go d.With(Block).Go(bg, r.job(i))
			synctest.Wait()
		}
		expectStats(t, d, Stats{Queue: 4, Accepted: 4, Queued: 4, Blocked: 10})
		d.Resize(1)
		synctest.Wait()
		r.expect(t, append([]int{-1, -1, -1, -1}, upTo(10)...)...)
	})
}

// Without it growth would let in any of those who wait, or not as many.
func TestG3GrowthLetsTheFirstIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, l := range []int{0, 1, 3} {
			d := build(t, sized(1, l))
			open := make(gate)
			if n := fill(t, d, open.pass); n != 1+l {
				t.Fatal(n)
			}
			var accepted record
			for i := range 10 {
				go func() {
					if d.With(Block).Go(bg, open.pass) == nil {
						accepted.add(i)
					}
				}()
				synctest.Wait()
			}
			d.Resize(5)
			synctest.Wait()
			slices.Sort(accepted.ran) // the order of return is not the order of acceptance
			accepted.expect(t, upTo(4)...)
			expectStats(t, d, Stats{Workers: 5, Queue: l, Accepted: uint64(5 + l), Running: 5, Queued: l, Blocked: 6, RefusedFull: 1})
			close(open)
			d.Shutdown(bg)
		}
	})
}

// Without it a producer's own jobs could be reordered under contention: each is
// submitted after the one before was accepted.
func TestG3OrderOfEachProducerUnderLoad(t *testing.T) {
	d := build(t, sized(1, 8))
	const producers, each = 8, 1000
	var last [producers]int // only the one worker touches it
	var wg sync.WaitGroup
	for p := range producers {
		wg.Go(func() {
			for i := 1; i <= each; i++ {
				mustGo(t, d, func(context.Context) error {
					if i != last[p]+1 {
						t.Errorf("producer %d: job %d ran after %d", p, i, last[p])
					}
					last[p] = i
					return nil
				}, Block)
			}
		})
	}
	wg.Wait()
	d.Shutdown(bg)
	for p, n := range last {
		if n != each {
			t.Errorf("producer %d: %d of %d ran", p, n, each)
		}
	}
}

// Without it who waits longest could starve.
func TestG4BlockIsFirstComeFirstServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 2))
		var r record
		end := make(chan struct{})
		for i := range 20 {
			go d.Go(bg, func(context.Context) error { <-end; r.add(i); return nil })
			synctest.Wait()
		}
		expectStats(t, d, Stats{Workers: 1, Queue: 2, Accepted: 3, Running: 1, Queued: 2, Blocked: 17})
		if err := d.With(Reject).Go(bg, nop); err != ErrQueueFull {
			t.Errorf("Reject beside blocked submitters: %v", err)
		}
		for i := range 20 {
			end <- struct{}{}
			synctest.Wait()
			if st := d.Stats(); st.Blocked != max(16-i, 0) {
				t.Errorf("after %d ends: %s", i+1, brief(st))
			}
		}
		r.expect(t, upTo(20)...)
	})
}

// Without it a request whose client has left would wait on, or run.
func TestG4BlockEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 1))
		open := make(gate)
		fill(t, d, open.pass)
		var r record
		errs := make([]error, 6)
		cancels := make([]context.CancelFunc, 6)
		for i := range 6 {
			var ctx context.Context
			ctx, cancels[i] = context.WithCancel(bg)
			if i == 5 {
				ctx, cancels[i] = context.WithTimeout(bg, time.Second)
			}
			defer cancels[i]()
			errs[i] = errors.New("has not returned")
			go func() { errs[i] = d.Go(ctx, r.job(i)) }()
			synctest.Wait()
		}
		for _, i := range []int{2, 0, 4} { // from the middle, the head and the tail
			cancels[i]()
			synctest.Wait()
			if errs[i] != context.Canceled {
				t.Errorf("submitter %d: %v", i, errs[i])
			}
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if errs[5] != context.DeadlineExceeded {
			t.Errorf("submitter 5: %v", errs[5])
		}
		expectStats(t, d, Stats{Workers: 1, Queue: 1, Accepted: 2, Running: 1, Queued: 1, Blocked: 2, RefusedFull: 1, RefusedGone: 4})
		close(open)
		synctest.Wait()
		r.expect(t, 1, 3)
		if err := d.Go(expired, nop); err != context.Canceled { // places are free
			t.Errorf("with a context that has ended: %v", err)
		}
		expectStats(t, d, Stats{Workers: 1, Queue: 1, Accepted: 4, Succeeded: 4, RefusedFull: 1, RefusedGone: 5})
	})
}

// Without it a submitter that leaves in the moment it is let in would take the
// place with it, or have its job run although it was told otherwise.
func TestG4LeavingMeetsAcceptance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var accepted, gone int
		for range 1000 {
			d := build(t, sized(1, 0))
			open := make(gate)
			mustGo(t, d, open.pass)
			var ran, told [4]atomic.Bool
			var wg sync.WaitGroup
			var cancels []context.CancelFunc
			for i := range 4 {
				ctx, cancel := context.WithCancel(bg)
				cancels = append(cancels, cancel)
				wg.Go(func() {
					told[i].Store(d.Go(ctx, func(context.Context) error { ran[i].Store(true); return nil }) == nil)
				})
			}
			synctest.Wait()
			go close(open)
			for _, cancel := range cancels {
				go cancel()
			}
			wg.Wait()
			synctest.Wait()
			for i := range 4 {
				if ran[i].Load() != told[i].Load() {
					t.Fatalf("told that it is accepted: %v, ran: %v", told[i].Load(), ran[i].Load())
				}
				if told[i].Load() {
					accepted++
				} else {
					gone++
				}
			}
			if err := d.With(Reject).Go(bg, nop); err != nil {
				t.Fatalf("the place is lost: %v", err)
			}
			d.Shutdown(bg)
		}
		t.Logf("%d accepted, %d gone", accepted, gone)
	})
}

// Without it a newcomer could take the place that is meant for who waits.
func TestG4NewcomersDoNotPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 300 {
			d := build(t, sized(1, 0))
			first, open := make(gate), make(gate)
			mustGo(t, d, first.pass)
			var served atomic.Bool
			go func() { d.Go(bg, open.pass); served.Store(true) }()
			synctest.Wait()
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() {
					for n := 1; !served.Load(); n++ {
						if d.With(Reject).Go(bg, nop) == nil {
							t.Error("a newcomer got the place")
						}
						if n%10 == 0 { // there may be one processor
							runtime.Gosched()
						}
					}
				})
			}
			for d.Stats().RefusedFull < 20 { // they are at it
				runtime.Gosched()
			}
			close(first)
			wg.Wait()
			close(open)
			d.Shutdown(bg)
		}
	})
}

// Without it a refusal would take time, which is what its caller wants to avoid.
func TestG4RejectAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := sized(1, 1)
		cfg.Overflow = Reject
		d := build(t, cfg)
		open := make(gate)
		defer close(open)
		mustGo(t, d, open.pass)
		mustGo(t, d, open.pass)
		start := time.Now()
		if err := d.Go(bg, nop); err != ErrQueueFull {
			t.Errorf("Go: %v", err)
		}
		if j, err := d.Submit(bg, nop); err != ErrQueueFull || j != nil {
			t.Errorf("Submit: %v %v", j, err)
		}
		if err := d.Do(bg, nop); err != ErrQueueFull {
			t.Errorf("Do: %v", err)
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("refusals took %v", took)
		}
		expectStats(t, d, Stats{Workers: 1, Queue: 1, Accepted: 2, Running: 1, Queued: 1, RefusedFull: 3})
	})
}

// Without it one call would empty the queue for those who wait behind it.
func TestG4DropOldestDropsAtMostOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 5))
		var r record
		open := make(gate)
		mustGo(t, d, open.pass)
		synctest.Wait()
		var queued []*Job
		for i := range 5 {
			queued = append(queued, mustSubmit(t, d, r.job(i)))
		}
		for i := range 100 {
			go d.With(Block).Go(bg, r.job(100+i))
			synctest.Wait()
		}
		var told error
		go func() { told = queued[0].Wait(bg) }()
		synctest.Wait()

		newest := mustSubmit(t, d, r.job(5), DropOldest)
		expectStats(t, d, Stats{Workers: 1, Queue: 5, Accepted: 7, Running: 1, Queued: 5, Blocked: 100, Dropped: 1})
		expectState(t, queued[0], StateDropped, ErrDropped)
		if told != ErrDropped {
			t.Errorf("the waiter was told %v", told)
		}
		for _, j := range append(queued[1:], newest) {
			expectState(t, j, StateQueued, nil)
		}
		close(open)
		synctest.Wait()
		want := upTo(200)
		r.expect(t, append(want[1:6], want[100:]...)...) // the newest ahead of those who wait
	})
}

// Without it DropOldest would drop where there is room.
func TestG4DropOldestWithRoomDropsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := sized(2, 3)
		cfg.Overflow = DropOldest
		d := build(t, cfg)
		open := make(gate)
		for range 5 {
			mustGo(t, d, open.pass)
		}
		expectStats(t, d, Stats{Workers: 2, Queue: 3, Accepted: 5, Running: 2, Queued: 3})
		close(open)
		expectStats(t, d, Stats{Workers: 2, Queue: 3, Accepted: 5, Succeeded: 5})
	})
}

// Without it a running job would be lost, or the bound.
func TestG4DropOldestRefusesWithNothingQueued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, l := range []int{0, 2} {
			d := build(t, sized(2, l))
			open := make(gate)
			fill(t, d, open.pass)
			// With L > 0 the pool shrinks until only running jobs are left.
			if l > 0 {
				d.Resize(0)
				for range l {
					mustGo(t, d, nop, DropOldest)
				}
				expectStats(t, d, Stats{Queue: l, Accepted: uint64(2 + 2*l), Running: 2, Queued: l, Dropped: uint64(l), RefusedFull: 1})
			} else {
				synctest.Wait()
				if err := d.With(DropOldest).Go(bg, nop); err != ErrQueueFull {
					t.Errorf("%v", err)
				}
				expectStats(t, d, Stats{Workers: 2, Accepted: 2, Running: 2, RefusedFull: 2})
			}
			close(open)
			d.Shutdown(bg)
		}
		d := build(t, sized(0, 0)) // no place at all
		if err := d.With(DropOldest).Go(bg, nop); err != ErrQueueFull {
			t.Errorf("paused, L = 0: %v", err)
		}
	})
}

// Without it a job would be dropped although a place is held by nobody.
func TestG4DropOldestTakesTheCanceledPlaceFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(0, 3))
		var r record
		canceled := mustSubmit(t, d, r.job(0))
		mustGo(t, d, r.job(1))
		mustGo(t, d, r.job(2))
		canceled.Cancel()
		mustGo(t, d, r.job(3), DropOldest)
		expectStats(t, d, Stats{Queue: 3, Accepted: 4, Queued: 3, Canceled: 1})
		expectState(t, canceled, StateCanceled, context.Canceled)
		d.Resize(1)
		synctest.Wait()
		r.expect(t, 1, 2, 3)
	})
}

// Without it calls that race would be refused, or drop more than their share.
func TestG4ConcurrentDropOldest(t *testing.T) {
	for round := range 150 {
		synctest.Test(t, func(t *testing.T) {
			l := []int{10, 2, 1}[round%3]
			d := build(t, sized(0, l))
			var wg sync.WaitGroup
			for i := range 100 {
				wg.Go(func() {
					if i%2 == 0 {
						mustGo(t, d, nop, DropOldest)
					} else {
						mustSubmit(t, d, nop, DropOldest)
					}
				})
			}
			wg.Wait()
			expectStats(t, d, Stats{Queue: l, Accepted: 100, Queued: l, Dropped: uint64(100 - l)})
		})
	}
}

// Without it one policy would have to fit all callers.
func TestG4PolicyPerCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, byDefault := range []Overflow{Block, Reject, DropOldest} {
			cfg := sized(0, 1)
			cfg.Overflow = byDefault
			d := build(t, cfg)
			oldest := mustSubmit(t, d, nop)
			if err := d.With(Reject).Go(bg, nop); err != ErrQueueFull {
				t.Errorf("%v, Reject: %v", byDefault, err)
			}
			mustGo(t, d, nop, DropOldest)
			expectState(t, oldest, StateDropped, ErrDropped)
			ctx, cancel := context.WithTimeout(bg, time.Second)
			if err := d.With(Block).Do(ctx, nop); err != context.DeadlineExceeded {
				t.Errorf("%v, Block: %v", byDefault, err)
			}
			cancel()
			if err := d.With(Overflow(3)).Go(bg, nop); err == nil || !strings.Contains(err.Error(), "Overflow(3)") {
				t.Errorf("%v, Overflow(3): %v", byDefault, err)
			}
			expectStats(t, d, Stats{Queue: 1, Accepted: 2, Queued: 1, Dropped: 1, RefusedFull: 1, RefusedGone: 1})
		}
	})
}

// Without it an operator would have to restart the server to change it.
func TestG4PolicyChangesWhileRunning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(0, 1))
		oldest := mustSubmit(t, d, nop)
		waits := make(chan error, 1)
		go func() { waits <- d.Go(bg, nop) }()
		synctest.Wait()

		if err := d.SetOverflow(Overflow(3)); err == nil || !strings.Contains(err.Error(), "Overflow(3)") {
			t.Errorf("SetOverflow(Overflow(3)): %v", err)
		}
		expectStats(t, d, Stats{Queue: 1, Accepted: 1, Queued: 1, Blocked: 1})
		if err := d.SetOverflow(Reject); err != nil {
			t.Fatal(err)
		}
		if err := d.Go(bg, nop); err != ErrQueueFull {
			t.Errorf("after Reject: %v", err)
		}
		expectStats(t, d, Stats{Queue: 1, Accepted: 1, Queued: 1, Blocked: 1, RefusedFull: 1})
		d.SetOverflow(DropOldest)
		if got := d.Stats().Overflow; got != DropOldest {
			t.Errorf("the policy is %v", got)
		}
		mustGo(t, d, nop)
		expectState(t, oldest, StateDropped, ErrDropped)
		expectStats(t, d, Stats{Queue: 1, Accepted: 2, Queued: 1, Dropped: 1, Blocked: 1, RefusedFull: 1})
		if err := d.Resize(1); err != nil {
			t.Fatal(err)
		}
		if err := <-waits; err != nil {
			t.Errorf("who waited under Block got %v", err)
		}
	})
}

// Without it a job could end twice, or in no way that its handle shows.
func TestG5EachOutcomeOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boom := errors.New("boom")
		var pe *PanicError
		cfg := sized(1, 10)
		cfg.Logger = quiet
		d := build(t, cfg)
		var calls [8]atomic.Int64
		counted := func(i int, fn func(context.Context) error) func(context.Context) error {
			return func(ctx context.Context) error { calls[i].Add(1); return fn(ctx) }
		}
		jobs := []*Job{
			mustSubmit(t, d, counted(0, nop)),
			mustSubmit(t, d, counted(1, func(context.Context) error { return boom })),
			mustSubmit(t, d, counted(2, func(context.Context) error { panic(boom) })),
			mustSubmit(t, d, counted(3, func(context.Context) error { runtime.Goexit(); return nil })),
		}
		synctest.Wait()
		jobs = append(jobs, mustSubmit(t, d, counted(4, untilCanceled)))
		synctest.Wait()
		jobs = append(jobs, mustSubmit(t, d, counted(5, nop)))
		early := jobs[5].Done() // asked for before the end
		jobs[5].Cancel()
		jobs[4].Cancel()
		synctest.Wait()
		d.Resize(0)
		jobs = append(jobs, mustSubmit(t, d, counted(6, nop)))
		for range 9 {
			mustGo(t, d, nop)
		}
		jobs = append(jobs, mustSubmit(t, d, counted(7, nop), DropOldest))
		d.Resize(0)
		if _, err := d.Shutdown(bg); !errors.Is(err, ErrAbandoned) {
			t.Errorf("Shutdown: %v", err)
		}
		check := func() {
			t.Helper()
			for i, want := range []struct {
				state State
				err   error
				calls int64
			}{
				{StateSucceeded, nil, 1}, {StateFailed, boom, 1}, {StatePanicked, boom, 1}, {StateFailed, errGoexit, 1}, {StateCanceled, context.Canceled, 1},
				{StateCanceled, context.Canceled, 0}, {StateDropped, ErrDropped, 0}, {StateAbandoned, ErrAbandoned, 0},
			} {
				expectState(t, jobs[i], want.state, want.err)
				if n := calls[i].Load(); n != want.calls {
					t.Errorf("job %d was called %d times, want %d", i, n, want.calls)
				}
				if err := jobs[i].Wait(bg); err != jobs[i].Err() {
					t.Errorf("job %d: Wait %v, Err %v", i, err, jobs[i].Err())
				}
			}
		}
		check()
		if !errors.As(jobs[2].Err(), &pe) || !isClosed(early) {
			t.Errorf("%v; Done closed: %v", jobs[2].Err(), isClosed(early))
		}
		for _, j := range jobs {
			j.Cancel() // has ended: changes nothing
		}
		check()
		expectStats(t, d, Stats{Queue: 10, Accepted: 17, Succeeded: 1, Failed: 2, Panicked: 1, Canceled: 2, Dropped: 1, Abandoned: 10})
	})
}

// Without it somebody would wait for ever: each way to end, each way to wait.
func TestG5NoWaiterHangs(t *testing.T) {
	ways := map[string]func(t *testing.T, d *Dispatcher, open gate, last *Job){
		"ran":       func(t *testing.T, d *Dispatcher, open gate, last *Job) { close(open) },
		"canceled":  func(t *testing.T, d *Dispatcher, open gate, last *Job) { last.Cancel(); close(open) },
		"dropped":   func(t *testing.T, d *Dispatcher, open gate, last *Job) { mustGo(t, d, nop, DropOldest); close(open) },
		"abandoned": func(t *testing.T, d *Dispatcher, open gate, last *Job) { d.Shutdown(expired); close(open) },
		"paused": func(t *testing.T, d *Dispatcher, open gate, last *Job) {
			d.Resize(0)
			close(open)
			synctest.Wait()
			d.Shutdown(bg)
		},
	}
	fns := map[string]func(context.Context) error{
		"nop":    nop,
		"panic":  func(context.Context) error { panic("boom") },
		"goexit": func(context.Context) error { runtime.Goexit(); return nil },
		"cancel": untilCanceled,
	}
	for way, end := range ways {
		for kind, fn := range fns {
			if kind == "cancel" && way != "canceled" && way != "abandoned" && way != "paused" {
				continue // would run for ever
			}
			synctest.Test(t, func(t *testing.T) {
				cfg := sized(1, 1)
				cfg.Logger = quiet
				d := build(t, cfg)
				open := make(gate)
				mustGo(t, d, open.pass)
				synctest.Wait()
				j := mustSubmit(t, d, fn)
				var wg sync.WaitGroup
				wg.Go(func() { j.Wait(bg) })
				wg.Go(func() { j.Wait(bg) })
				wg.Go(func() { <-j.Done() })
				synctest.Wait()
				end(t, d, open, j)
				wg.Wait() // a deadlock of the bubble if one hangs
				if !j.State().Ended() {
					t.Errorf("%s, %s: %v", way, kind, j.State())
				}
			})
		}
	}
}

// Without it the statistics could be wrong in a way that adds up.
func TestG6SnapshotsMatchTheTestsCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := sized(2, 4)
		cfg.Logger = quiet
		d := build(t, cfg)
		want := Stats{Workers: 2, Queue: 4}
		expect := func() { t.Helper(); expectStats(t, d, want) }
		expect()

		open := make(gate)
		mustGo(t, d, open.pass)
		running := mustSubmit(t, d, untilCanceled)
		synctest.Wait()
		queued := mustSubmit(t, d, nop)
		mustGo(t, d, func(context.Context) error { return errors.New("boom") })
		mustGo(t, d, func(context.Context) error { panic("boom") })
		mustGo(t, d, func(ctx context.Context) error {
			if err := d.Do(ctx, nop); err != ErrNested {
				t.Errorf("nested Do: %v", err)
			}
			return nil
		})
		want.Accepted, want.Running, want.Queued = 6, 2, 4
		expect()

		d.With(Reject).Go(bg, nop)
		d.Go(expired, nop)
		want.RefusedFull, want.RefusedGone = 1, 1
		expect()

		ctx, cancel := context.WithCancel(bg)
		go d.Go(ctx, nop)
		go d.Go(bg, nop)
		want.Blocked = 2
		expect()
		cancel()
		want.Blocked, want.RefusedGone = 1, 2
		expect()

		queued.Cancel()
		want.Accepted, want.Blocked, want.Canceled = 7, 0, 1 // its place is free at once
		expect()

		running.Cancel() // its worker takes the rest
		want.Running, want.Queued = 1, 0
		want.Canceled, want.Failed, want.Panicked, want.Succeeded, want.RefusedNested = 2, 1, 1, 2, 1
		expect()

		d.Resize(1)
		want.Workers = 1
		expect()
		mustGo(t, d, nop)
		want.Accepted, want.Queued = 8, 1
		expect()
		mustGo(t, d, nop)
		mustGo(t, d, nop)
		mustGo(t, d, nop)
		mustGo(t, d, nop, DropOldest)
		want.Accepted, want.Queued, want.Dropped = 12, 4, 1
		expect()

		go d.Go(bg, nop)
		want.Blocked = 1
		expect()
		go d.Shutdown(bg)
		want.Blocked, want.RefusedClosed = 0, 1
		expect()
		if err := d.Go(bg, nop); err != ErrClosed {
			t.Errorf("after Shutdown: %v", err)
		}
		want.RefusedClosed = 2
		expect()
		close(open)
		want.Workers, want.Running, want.Queued, want.Succeeded = 0, 0, 0, 7
		expect()
	})
}

// Without it a snapshot taken in the middle of things would not add up.
func TestG6EverySnapshotUnderLoadConserves(t *testing.T) {
	for _, size := range [][2]int{{2, 0}, {3, 5}, {4, 64}} {
		w, l := size[0], size[1]
		cfg := sized(w, l)
		cfg.Logger = quiet
		d := build(t, cfg)
		var began, accepted, started, told atomic.Uint64
		stop := make(chan struct{})
		var load, polls sync.WaitGroup
		for p := range 6 {
			load.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(p), 0))
				for !isClosed(stop) {
					kind := rng.IntN(5)
					fn := func(context.Context) error {
						started.Add(1)
						switch kind {
						case 0:
							panic("boom")
						case 1:
							runtime.Goexit()
						}
						return nil
					}
					began.Add(1)
					j, err := d.With(Overflow(rng.IntN(3))).Submit(bg, fn)
					if err != nil {
						continue
					}
					accepted.Add(1)
					if kind == 2 {
						j.Cancel()
					}
					if kind <= 3 {
						j.Wait(bg)
						told.Add(1)
					}
				}
			})
		}
		for range 2 {
			polls.Go(func() {
				var last Stats
				for n := 0; n < 3000; n++ {
					acceptedBefore, toldBefore, startedBefore := accepted.Load(), told.Load(), started.Load()
					st := d.Stats()
					beganAfter := began.Load()
					ended := endedIn(st)
					switch {
					case st.Accepted != uint64(st.Queued+st.Running)+ended:
						t.Errorf("does not add up: %s", brief(st))
					case st.Queued < 0 || st.Queued > l || st.Running < 0 || st.Running > w || st.Queued > l+w:
						t.Errorf("out of bounds: %s", brief(st))
					case st.Accepted < acceptedBefore || st.Accepted > beganAfter:
						t.Errorf("%d to %d accepted: %s", acceptedBefore, beganAfter, brief(st))
					case ended < toldBefore:
						t.Errorf("%d were told: %s", toldBefore, brief(st))
					case st.Wait.Count < startedBefore || st.Wait.Count > st.Accepted:
						t.Errorf("%d started, Wait.Count %d: %s", startedBefore, st.Wait.Count, brief(st))
					case st.Wait.Count-st.Run.Count > uint64(st.Running):
						t.Errorf("%d began, %d ended: %s", st.Wait.Count, st.Run.Count, brief(st))
					case st.Accepted < last.Accepted || ended < endedIn(last) || st.Wait.Count < last.Wait.Count:
						t.Errorf("went back: %s\nafter: %s", brief(st), brief(last))
					case st.OldestAge < 0:
						t.Errorf("oldest: %s", brief(st))
					default:
						last = st
						continue
					}
					return
				}
			})
		}
		polls.Wait()
		close(stop)
		load.Wait()
		d.Shutdown(bg)
		if st := d.Stats(); st.Accepted != accepted.Load() || st.Wait.Count != started.Load() || st.Run.Count != started.Load() {
			t.Errorf("%d accepted, %d started: %s, %d waits, %d runs", accepted.Load(), started.Load(), brief(st), st.Wait.Count, st.Run.Count)
		}
	}
}

// Without it a canceled job would run, or give its place away before its turn.
func TestG7CanceledInTheQueueNeverRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 3))
		var r record
		open := make(gate)
		mustGo(t, d, open.pass)
		synctest.Wait()
		jobs := []*Job{mustSubmit(t, d, r.job(0)), mustSubmit(t, d, r.job(1)), mustSubmit(t, d, r.job(2))}
		jobs[1].Cancel()
		jobs[1].Cancel()
		expectState(t, jobs[1], StateCanceled, context.Canceled)
		expectStats(t, d, Stats{Workers: 1, Queue: 3, Accepted: 4, Running: 1, Queued: 2, Canceled: 1})
		if n := fill(t, d, r.job(3)); n != 1 {
			t.Errorf("%d accepted into the place of a canceled job, want 1", n)
		}
		close(open)
		synctest.Wait()
		r.expect(t, 0, 2, 3)
		expectStats(t, d, Stats{Workers: 1, Queue: 3, Accepted: 5, Succeeded: 4, Canceled: 1, RefusedFull: 1})
	})
}

// Without it a canceled job would keep its place until a worker reaches what is left
// of it, or that would take the room of jobs.
func TestG7PlaceOfACanceledJobIsFreeAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, l := range []int{1, 2, 3, 4, 7, 100} {
			d := build(t, sized(0, l))
			var r record
			var jobs []*Job
			for i := range l {
				jobs = append(jobs, mustSubmit(t, d, r.job(i)))
			}
			for i := range 10 * l { // the job in each place, again and again
				waiting := make(chan *Job, 1)
				go func() { waiting <- mustSubmit(t, d, r.job(l+i)) }()
				expectStats(t, d, Stats{Queue: l, Queued: l, Blocked: 1, Accepted: uint64(l + i), Canceled: uint64(i)})
				jobs[i%l].Cancel()
				jobs[i%l] = <-waiting
			}
			d.Resize(1)
			synctest.Wait()
			r.expect(t, upTo(11 * l)[10*l:]...)
		}
	})
}

// Without it Cancel on a running job would be a wish.
func TestG7CancelOfARunningJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(3, 3))
		boom := errors.New("boom")
		open := make(gate)
		obeys := mustSubmit(t, d, untilCanceled)
		ignores := mustSubmit(t, d, open.pass)
		fails := mustSubmit(t, d, func(ctx context.Context) error { <-ctx.Done(); return boom })
		synctest.Wait()
		for _, j := range []*Job{obeys, ignores, fails} {
			j.Cancel()
		}
		synctest.Wait()
		expectState(t, obeys, StateCanceled, context.Canceled)
		expectState(t, fails, StateCanceled, context.Canceled)
		expectState(t, fails, StateCanceled, boom)
		expectState(t, ignores, StateRunning, nil) // until its function returns
		close(open)
		synctest.Wait()
		expectState(t, ignores, StateCanceled, context.Canceled)
		expectStats(t, d, Stats{Workers: 3, Queue: 3, Accepted: 3, Canceled: 3})
	})
}

// Without it Cancel could meet the start or the end of a job in a bad moment: it
// must be canceled or have run, never both and never neither.
func TestG7CancelMeetsStartAndEnd(t *testing.T) {
	d := build(t, sized(2, 4))
	var states [8]int
	for range 5000 {
		var ran atomic.Bool
		var ctxErr error
		j := mustSubmit(t, d, func(ctx context.Context) error { ran.Store(true); ctxErr = ctx.Err(); return nil })
		go j.Cancel()
		j.Wait(bg)
		state := j.State()
		states[state]++
		switch {
		case state != StateSucceeded && state != StateCanceled:
			t.Fatalf("ended as %v", state)
		case state == StateSucceeded && (!ran.Load() || ctxErr != nil || j.Err() != nil):
			t.Fatalf("succeeded, ran %v, context %v, error %v", ran.Load(), ctxErr, j.Err())
		case state == StateCanceled && !errors.Is(j.Err(), context.Canceled):
			t.Fatalf("canceled with error %v", j.Err())
		}
	}
	t.Logf("%d succeeded, %d canceled", states[StateSucceeded], states[StateCanceled])
}

// Without it work would be done for a caller that has gone.
func TestG7DoWhoseCallerLeavesBeforeTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 1))
		var r record
		open := make(gate)
		mustGo(t, d, open.pass)
		synctest.Wait()
		ctx, cancel := context.WithCancel(bg)
		first, leave := context.WithCancel(bg)
		var queued, blocked error
		go func() { queued = d.Do(ctx, r.job(0)) }()
		synctest.Wait()
		go func() { blocked = d.Do(first, r.job(1)) }()
		synctest.Wait()
		leave()
		synctest.Wait()
		cancel()
		synctest.Wait()
		if queued != context.Canceled || blocked != context.Canceled {
			t.Errorf("queued: %v, blocked: %v", queued, blocked)
		}
		expectStats(t, d, Stats{Workers: 1, Queue: 1, Accepted: 2, Running: 1, Canceled: 1, RefusedGone: 1})
		close(open)
		synctest.Wait()
		r.expect(t)
		late, cancel := context.WithTimeout(bg, time.Second)
		defer cancel()
		d.Resize(0)
		if err := d.Do(late, r.job(2)); err != context.DeadlineExceeded {
			t.Errorf("past the caller's deadline: %v", err)
		}
		expectStats(t, d, Stats{Queue: 1, Accepted: 3, Succeeded: 1, Canceled: 2, RefusedGone: 1})
	})
}

type ctxKey string

// Without it a job would end with the request that brought it, or lose its trace.
func TestG8ValuesWithoutCancellation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 4))
		ctx, cancel := context.WithTimeout(context.WithValue(bg, ctxKey("k"), "v"), time.Second)
		open := make(gate)
		checks := 0
		fn := func(c context.Context) error {
			<-open
			_, hasDeadline := c.Deadline()
			if c.Value(ctxKey("k")) != "v" || c.Err() != nil || isClosed(c.Done()) || hasDeadline || context.Cause(c) != nil {
				t.Errorf("value %v, error %v, cause %v, deadline %v", c.Value(ctxKey("k")), c.Err(), context.Cause(c), hasDeadline)
			}
			if c.Value(ctxKey("k")) != "v" || c.Value(ctxKey("other")) != nil {
				t.Errorf("values after first use: %v, %v", c.Value(ctxKey("k")), c.Value(ctxKey("other")))
			}
			checks++
			return c.Err()
		}
		if err := d.Go(ctx, fn); err != nil {
			t.Error(err)
		}
		j, err := d.Submit(ctx, fn)
		if err != nil {
			t.Error(err)
		}
		cancel() // the submitter has gone: its job runs all the same
		time.Sleep(2 * time.Second)
		close(open)
		synctest.Wait()
		expectState(t, j, StateSucceeded, nil)
		if checks != 2 {
			t.Errorf("%d checks", checks)
		}
	})
}

// Without it a job would outlive its time-out unseen, or be cut before it.
func TestG8JobTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := sized(1, 10)
		cfg.JobTimeout = time.Minute
		d := build(t, cfg)
		for _, submit := range []func(fn func(context.Context) error) error{
			func(fn func(context.Context) error) error { return d.Do(bg, fn) },
			func(fn func(context.Context) error) error { return mustSubmit(t, d, fn).Wait(bg) },
			func(fn func(context.Context) error) error { mustGo(t, d, fn); synctest.Wait(); return nil },
		} {
			time.Sleep(time.Hour) // the time-out counts from the start
			start := time.Now()
			if err := submit(func(ctx context.Context) error {
				deadline, ok := ctx.Deadline()
				if off := deadline.Sub(start.Add(time.Minute)); !ok || off < 0 || off > time.Microsecond {
					t.Errorf("deadline %v, started %v", deadline, start)
				}
				return ctx.Err()
			}); err != nil {
				t.Errorf("in time: %v", err)
			}
		}

		start := time.Now()
		first := mustSubmit(t, d, untilCanceled)
		second := mustSubmit(t, d, untilCanceled) // waits a minute, and then has its own
		boom := errors.New("boom")
		fails := mustSubmit(t, d, func(context.Context) error { time.Sleep(time.Hour); return boom })
		if err := first.Wait(bg); err != context.DeadlineExceeded {
			t.Errorf("first: %v", err)
		}
		if took := time.Since(start).Round(time.Microsecond); took != time.Minute {
			t.Errorf("first took %v", took)
		}
		if err := second.Wait(bg); err != context.DeadlineExceeded {
			t.Errorf("second: %v", err)
		}
		if took := time.Since(start).Round(time.Microsecond); took != 2*time.Minute {
			t.Errorf("second took %v", took)
		}
		fails.Wait(bg)
		expectState(t, fails, StateFailed, context.DeadlineExceeded)
		expectState(t, fails, StateFailed, boom)
		expectStats(t, d, Stats{Workers: 1, Queue: 10, Accepted: 6, Succeeded: 3, Failed: 3})
	})
}

// Without it the usual way to say "never" would be "at once".
func TestG8HugeJobTimeout(t *testing.T) {
	for _, timeout := range []time.Duration{math.MaxInt64, math.MaxInt64 / 2} {
		cfg := sized(1, 1)
		cfg.JobTimeout = timeout
		d := build(t, cfg)
		if err := d.Do(bg, func(ctx context.Context) error { return ctx.Err() }); err != nil {
			t.Errorf("%v: %v", timeout, err)
		}
	}
}

// Without it an operator could not tell jobs that were stopped from those that failed.
func TestG8CanceledOrFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := sized(10, 0)
		cfg.JobTimeout = time.Minute
		cfg.Logger = quiet
		d := build(t, cfg)
		ways := []struct {
			name   string
			cancel bool
			fn     func(context.Context) error
			state  State
			err    error
		}{
			{"returns nil though canceled", true, func(ctx context.Context) error { <-ctx.Done(); return nil }, StateCanceled, context.Canceled},
			{"returns its context's error", true, untilCanceled, StateCanceled, context.Canceled},
			{"wraps its context's error", true, func(ctx context.Context) error { <-ctx.Done(); return fmt.Errorf("x: %w", ctx.Err()) }, StateCanceled, context.Canceled},
			{"panics though canceled", true, func(ctx context.Context) error { <-ctx.Done(); panic("boom") }, StatePanicked, nil},
			{"exits though canceled", true, func(ctx context.Context) error { <-ctx.Done(); runtime.Goexit(); return nil }, StateCanceled, context.Canceled},
			{"canceled long before its deadline", true, func(ctx context.Context) error { <-ctx.Done(); time.Sleep(time.Hour); return nil }, StateCanceled, context.Canceled},
			{"late", false, untilCanceled, StateFailed, context.DeadlineExceeded},
			{"late and nil", false, func(ctx context.Context) error { time.Sleep(time.Hour); return nil }, StateFailed, context.DeadlineExceeded},
			{"late and panics", false, func(ctx context.Context) error { <-ctx.Done(); panic("boom") }, StatePanicked, nil},
			{"says canceled but was not", false, func(ctx context.Context) error { return context.Canceled }, StateFailed, context.Canceled},
		}
		var jobs []*Job
		for _, way := range ways {
			jobs = append(jobs, mustSubmit(t, d, way.fn))
		}
		synctest.Wait()
		for i, way := range ways {
			if way.cancel {
				jobs[i].Cancel()
			}
		}
		time.Sleep(3 * time.Hour)
		for i, way := range ways {
			if j := jobs[i]; j.State() != way.state || way.err != nil && !errors.Is(j.Err(), way.err) || j.Err() == nil {
				t.Errorf("%s: %v, %v", way.name, j.State(), j.Err())
			}
		}
	})
}

// Without it a caller that waits could leave its closure running.
func TestG8DoInheritsItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 1))
		ctx, cancel := context.WithCancel(context.WithValue(bg, ctxKey("k"), "v"))
		var ended time.Time
		go func() { time.Sleep(time.Second); cancel() }()
		start := time.Now()
		err := d.Do(ctx, func(c context.Context) error {
			if c.Value(ctxKey("k")) != "v" {
				t.Error("no value")
			}
			<-c.Done()
			time.Sleep(time.Hour) // Do waits for the function
			ended = time.Now()
			return nil
		})
		if err != context.Canceled || time.Since(start) != time.Hour+time.Second || !ended.Equal(time.Now()) {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		late, cancel := context.WithTimeout(bg, time.Minute)
		defer cancel()
		if err := d.Do(late, func(c context.Context) error {
			want, _ := late.Deadline()
			if got, ok := c.Deadline(); !ok || !got.Equal(want) {
				t.Errorf("deadline %v, want the caller's %v", got, want)
			}
			return untilCanceled(c)
		}); err != context.DeadlineExceeded {
			t.Errorf("past the caller's deadline: %v", err)
		}
		expectStats(t, d, Stats{Workers: 1, Queue: 1, Accepted: 2, Canceled: 1, Failed: 1})
	})
}

// Without it a goroutine that a job left behind would act for another job.
func TestG8ContextIsNotReused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 1))
		seen := map[context.Context]int{}
		var kept []context.Context
		for i := range 200 {
			ctx := context.WithValue(bg, ctxKey("k"), i)
			fn := func(c context.Context) error {
				if i%2 == 0 && c.Err() != nil { // half of them are first used after the job
					t.Errorf("job %d: %v at its start", i, c.Err())
				}
				kept = append(kept, c)
				return nil
			}
			switch i % 3 {
			case 0:
				d.Go(ctx, fn)
			case 1:
				d.Submit(ctx, fn)
			case 2:
				d.Do(ctx, fn)
			}
			synctest.Wait()
		}
		for i, c := range kept {
			seen[c]++
			if c.Err() != context.Canceled || !isClosed(c.Done()) || c.Value(ctxKey("k")) != i {
				t.Errorf("job %d: context after its end: %v, %v", i, c.Err(), c.Value(ctxKey("k")))
			}
		}
		if len(seen) != 200 {
			t.Errorf("%d contexts for 200 jobs", len(seen))
		}
	})
}

// Without it what a job hangs on its context would not end with the job, or cost
// a goroutine each.
func TestG8ChildrenOfAJobsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := sized(4, 4)
		cfg.JobTimeout = time.Hour
		for _, timeout := range []time.Duration{0, time.Hour} {
			cfg.JobTimeout = timeout
			d := build(t, cfg)
			var after atomic.Int64
			var children []context.Context
			fn := func(c context.Context) error {
				before := runtime.NumGoroutine()
				child, cancel := context.WithCancel(context.WithValue(c, ctxKey("k"), "child"))
				_ = cancel // the job's end cancels it
				late, cancel2 := context.WithTimeout(child, 100*time.Hour)
				_ = cancel2
				context.AfterFunc(c, func() { after.Add(1) })
				stopped := context.AfterFunc(c, func() { t.Error("stopped") })
				if !stopped() {
					t.Error("AfterFunc cannot be stopped")
				}
				if n := runtime.NumGoroutine(); n > before {
					t.Errorf("%d goroutines more for the children", n-before)
				}
				if child.Err() != nil {
					t.Errorf("child: %v", child.Err())
				}
				children = append(children, child, late)
				return nil
			}
			d.Do(bg, fn)
			d.Do(context.WithValue(bg, ctxKey("k"), 1), fn)
			mustSubmit(t, d, fn).Wait(bg)
			d.Go(context.WithValue(bg, ctxKey("k"), 1), fn)
			synctest.Wait()
			if after.Load() != 4 {
				t.Errorf("%d of 4 AfterFuncs have run", after.Load())
			}
			for i, c := range children {
				if c.Err() != context.Canceled {
					t.Errorf("child %d: %v", i, c.Err())
				}
			}

			j := mustSubmit(t, d, func(c context.Context) error {
				child, cancel := context.WithCancel(c)
				defer cancel()
				return untilCanceled(child)
			})
			synctest.Wait()
			j.Cancel()
			synctest.Wait()
			expectState(t, j, StateCanceled, context.Canceled)
		}
	})
}

// Without it a panic would take the process with it, or leave no trace.
func TestG9PanicIsTheJobsError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged panicLog
		cfg := sized(1, 4)
		cfg.Logger = logged.logger()
		d := build(t, cfg)
		boom := errors.New("boom")
		var typedNil *panicLog
		for i, value := range []any{"boom", boom, nil, 7, typedNil} {
			err := d.Do(bg, func(context.Context) error { panicHere(value); return nil })
			var pe *PanicError
			if !errors.As(err, &pe) {
				t.Fatalf("panic(%v): %v", value, err)
			}
			if err, ok := value.(error); ok && !errors.Is(pe, err) {
				t.Errorf("%v does not unwrap to %v", pe, err)
			}
			var pne *runtime.PanicNilError
			if value == nil && !errors.As(err, &pne) {
				t.Errorf("panic(nil): %v", err)
			}
			if !bytes.Contains(pe.Stack, []byte("panicHere")) || strings.Contains(pe.Error(), "goroutine") {
				t.Errorf("stack %q, error %q", pe.Stack, pe)
			}
			if logged.records() != i+1 {
				t.Errorf("%d records after %d panics", logged.records(), i+1)
			}
		}
		mustGo(t, d, func(context.Context) error { panic("nobody follows it") })
		synctest.Wait()
		if text := logged.text.String(); logged.records() != 6 || !strings.Contains(text, "nobody follows it") || !strings.Contains(text, "stack=") {
			t.Errorf("logged: %s", text)
		}
		mustGo(t, d, nop)
		expectStats(t, d, Stats{Workers: 1, Queue: 4, Accepted: 7, Panicked: 6, Succeeded: 1})
	})
}

func panicHere(v any) { panic(v) }

// Without it runtime.Goexit (t.FailNow in a job) would cost a worker each.
func TestG9GoexitEndsTheJobNotThePool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged panicLog
		cfg := sized(3, 300)
		cfg.Logger = logged.logger()
		d := build(t, cfg)
		exits := []func(context.Context) error{
			func(context.Context) error { runtime.Goexit(); return nil },
			func(context.Context) error { defer runtime.Goexit(); return nil },
			func(context.Context) error { defer runtime.Goexit(); panic("boom") }, // Goexit ends the panic
		}
		var jobs []*Job
		var ran atomic.Int64
		for i := range 300 {
			if i%2 == 0 {
				jobs = append(jobs, mustSubmit(t, d, exits[i/2%3]))
			} else {
				mustGo(t, d, func(context.Context) error { ran.Add(1); return nil })
			}
		}
		synctest.Wait()
		for _, j := range jobs {
			expectState(t, j, StateFailed, errGoexit)
		}
		if ran.Load() != 150 {
			t.Errorf("%d of 150 other jobs ran", ran.Load())
		}
		// A panic on the way out of a Goexit is a panic.
		if err := d.Do(bg, func(context.Context) error { defer func() { panic("boom") }(); runtime.Goexit(); return nil }); !errors.As(err, new(*PanicError)) {
			t.Errorf("panic in Goexit: %v", err)
		}
		// All three workers are there, and no fourth.
		open := make(gate)
		for range 4 {
			mustGo(t, d, open.pass)
		}
		synctest.Wait()
		if st := d.Stats(); st.Running != 3 || st.Queued != 1 || st.Failed != 150 || logged.records() != 1 {
			t.Errorf("%s; %d records", brief(st), logged.records())
		}
		close(open)
	})
}

// Without it a job could wait for a worker that is itself.
func TestG10NestedSubmitNeverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, kind := range []string{"go", "go with values", "submit", "do"} {
			d := build(t, sized(1, 1))
			other := build(t, sized(1, 1))
			ended := mustSubmit(t, d, nop)
			synctest.Wait()
			var r record
			var told error
			fn := func(ctx context.Context) error {
				derived, cancel := context.WithTimeout(context.WithValue(context.WithoutCancel(ctx), ctxKey("k"), 1), time.Hour)
				defer cancel()
				for _, c := range []context.Context{ctx, derived} {
					if err := d.Do(c, nop); err != ErrNested { // though there is room
						t.Errorf("%s: Do: %v", kind, err)
					}
					if err := ended.Wait(c); err != ErrNested {
						t.Errorf("%s: Wait: %v", kind, err)
					}
				}
				old, err := d.Submit(ctx, r.job(0)) // there is room
				if err != nil {
					t.Errorf("%s: Submit with room: %v", kind, err)
				}
				if err := old.Wait(derived); err != ErrNested {
					t.Errorf("%s: Wait for a queued job: %v", kind, err)
				}
				if err := d.Go(derived, nop); err != ErrNested {
					t.Errorf("%s: Go without room: %v", kind, err)
				}
				if _, err := d.With(Block).Submit(ctx, nop); err != ErrNested {
					t.Errorf("%s: Submit without room: %v", kind, err)
				}
				if err := d.With(Reject).Go(ctx, nop); err != ErrQueueFull {
					t.Errorf("%s: Reject: %v", kind, err)
				}
				if err := d.With(DropOldest).Go(ctx, r.job(1)); err != nil {
					t.Errorf("%s: DropOldest: %v", kind, err)
				}
				expectState(t, old, StateDropped, ErrDropped)
				if err := other.Do(ctx, r.job(2)); err != nil { // another dispatcher may be waited for
					t.Errorf("%s: other dispatcher: %v", kind, err)
				}
				told = ctx.Err()
				return nil
			}
			switch kind {
			case "go":
				mustGo(t, d, fn)
			case "go with values":
				d.Go(context.WithValue(bg, ctxKey("k"), 1), fn)
			case "submit":
				mustSubmit(t, d, fn)
			case "do":
				d.Do(bg, fn)
			}
			synctest.Wait()
			r.expect(t, 2, 1)
			if told != nil {
				t.Errorf("%s: %v", kind, told)
			}
			expectStats(t, d, Stats{Workers: 1, Queue: 1, Accepted: 4, Succeeded: 3, Dropped: 1, RefusedNested: 4, RefusedFull: 1})
		}
	})
}

// Without it a resize could lose, strand or repeat jobs.
func TestG11NoJobIsLostOrRunTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(3, 10))
		const jobs = 2000
		var ran [jobs]atomic.Int64
		var wg sync.WaitGroup
		for p := range 4 {
			wg.Go(func() {
				for i := p; i < jobs; i += 4 {
					mustGo(t, d, func(context.Context) error {
						ran[i].Add(1)
						time.Sleep(time.Duration(i%7) * time.Millisecond)
						return nil
					})
				}
			})
		}
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, 1))
			for range 400 {
				if err := d.Resize(rng.IntN(8) * rng.IntN(2)); err != nil { // half of them 0
					t.Error(err)
				}
				if rng.IntN(3) > 0 {
					time.Sleep(time.Duration(rng.IntN(5)) * time.Millisecond)
				}
			}
			d.Resize(5)
		})
		wg.Wait()
		d.Shutdown(bg)
		for i := range ran {
			if n := ran[i].Load(); n != 1 {
				t.Errorf("job %d ran %d times", i, n)
			}
		}
	})
}

// Without it a pause would let one more job run: the dispatcher's goroutine may
// hold an idle worker already.
func TestG11PauseWithAnIdleWorkerInHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, w := range []int{1, 2, 5} {
			d := build(t, sized(w, 5))
			var r record
			for round := range 20 {
				if round%2 == 0 {
					synctest.Wait() // all workers are idle and registered
				}
				if err := d.Resize(0); err != nil {
					t.Fatal(err)
				}
				for i := range 5 {
					mustGo(t, d, r.job(i), Reject)
				}
				if round%2 == 1 {
					time.Sleep(time.Hour)
				}
				synctest.Wait()
				r.expect(t)
				if err := d.Resize(w); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				slices.Sort(r.ran)
				r.expect(t, upTo(5)...)
				r.ran = nil
			}
		}
	})
}

// Without it a shrink would not end goroutines, or a growth not start them.
func TestG11WorkersAreAsManyAsAskedFor(t *testing.T) {
	before := runtime.NumGoroutine()
	d := build(t, sized(2, 10))
	for _, n := range []int{10, 8, 9, 0, 3, 3, 1, 50, 2} {
		if err := d.Resize(n); err != nil {
			t.Fatal(err)
		}
		settled(t, fmt.Sprintf("%d workers", n), func() bool { return runtime.NumGoroutine() <= before+1+n })
		func() {
			open := make(gate)
			defer close(open)
			if got := fill(t, d, open.pass); got != n+10 {
				t.Fatalf("%d workers: %d accepted", n, got)
			}
			settled(t, fmt.Sprintf("%d run", n), func() bool { st := d.Stats(); return st.Running == n && st.Queued == 10 })
		}()
		d.Resize(max(n, 1))
		settled(t, "every place is free", func() bool { return func() bool { st := d.Stats(); return st.Queued+st.Running == 0 }() })
	}
}

// Without it Resize would hang in a job, wait for one, or take any number.
func TestG11ResizeReturnsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(2, 2))
		open := make(gate)
		fill(t, d, open.pass)
		start := time.Now()
		for _, n := range []int{0, 5, 0, 1} {
			if err := d.Resize(n); err != nil {
				t.Error(err)
			}
		}
		for _, n := range []int{-1, maxWorkers + 1, math.MinInt, math.MaxInt} {
			if err := d.Resize(n); err == nil || !strings.Contains(err.Error(), fmt.Sprint(n)) {
				t.Errorf("Resize(%d): %v", n, err)
			}
		}
		if time.Since(start) != 0 || d.Stats().Workers != 1 {
			t.Errorf("%v, %s", time.Since(start), brief(d.Stats()))
		}
		close(open)
		synctest.Wait()
		if err := d.Do(bg, func(context.Context) error { return errors.Join(d.Resize(0), d.Resize(3), d.Resize(2)) }); err != nil {
			t.Errorf("from within a job: %v", err)
		}
		d.Shutdown(bg)
		if err := d.Resize(3); err != ErrClosed {
			t.Errorf("after Shutdown: %v", err)
		}
	})
}

// Without it accepted jobs would be lost at a normal stop.
func TestG12Drain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(2, 6))
		var ran atomic.Int64
		for range 8 {
			mustGo(t, d, func(ctx context.Context) error { time.Sleep(time.Second); ran.Add(1); return ctx.Err() })
		}
		synctest.Wait()
		blocked := make(chan error)
		for range 2 {
			go func() { blocked <- d.Go(bg, nop) }()
		}
		synctest.Wait()
		start := time.Now()
		done := make(chan struct{})
		go func() {
			defer close(done)
			report, err := d.Shutdown(bg)
			if err != nil || report.Finished != 8 || report.Running != 0 || report.NeverStarted != nil {
				t.Errorf("%+v, %v", report, err)
			}
		}()
		for range 2 { // at once, not when the jobs have ended
			if err := <-blocked; err != ErrClosed {
				t.Errorf("blocked submitter: %v", err)
			}
		}
		synctest.Wait()
		for _, policy := range []Overflow{Block, Reject, DropOldest} {
			_, err := d.With(policy).Submit(bg, nop)
			if err != ErrClosed || d.With(policy).Go(bg, nop) != ErrClosed || d.With(policy).Do(bg, nop) != ErrClosed {
				t.Errorf("%v while draining: %v", policy, err)
			}
		}
		if time.Since(start) != 0 {
			t.Errorf("refusals took %v", time.Since(start))
		}
		<-done
		if time.Since(start) != 4*time.Second || ran.Load() != 8 {
			t.Errorf("%d ran in %v", ran.Load(), time.Since(start))
		}
		expectStats(t, d, Stats{Queue: 6, Accepted: 8, Succeeded: 8, RefusedClosed: 11})
	})
}

// Without it a stop that is out of time would leave waiters, contexts, workers or
// the caller in the dark.
func TestG12ContextEndsFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(3, 8))
		var r record
		obeys := mustSubmit(t, d, untilCanceled)
		stubborn := mustSubmit(t, d, func(context.Context) error { time.Sleep(time.Hour); return nil })
		var shared error // of a job without a context of its own
		mustGo(t, d, func(ctx context.Context) error { shared = untilCanceled(ctx); return shared })
		synctest.Wait()
		queued := []*Job{mustSubmit(t, d, r.job(0)), mustSubmit(t, d, r.job(1))}
		mustGo(t, d, r.job(2))
		canceled := mustSubmit(t, d, r.job(-1))
		later := mustSubmit(t, d, r.job(-2))
		d.Go(context.WithValue(bg, ctxKey("k"), 1), r.job(3))
		var do error
		go func() { do = d.Do(bg, r.job(4)) }()
		synctest.Wait()
		canceled.Cancel() // before the shutdown: none of its business
		go func() { time.Sleep(time.Second / 2); later.Cancel() }()

		ctx, cancel := context.WithTimeout(bg, time.Second)
		defer cancel()
		start := time.Now()
		report, err := d.Shutdown(ctx)
		if time.Since(start) != time.Second {
			t.Errorf("returned after %v", time.Since(start))
		}
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrAbandoned) {
			t.Errorf("error: %v", err)
		}
		if report.Finished != 1 || report.Running != 3 || len(report.NeverStarted) != 5 {
			t.Errorf("report: %+v", report)
		}
		r.expect(t)
		for _, fn := range report.NeverStarted { // in the order of the queue, for the caller to run
			fn(bg)
		}
		r.expect(t, 0, 1, 2, 3, 4)
		synctest.Wait()
		for _, j := range queued {
			expectState(t, j, StateAbandoned, ErrAbandoned)
		}
		if do != ErrAbandoned || shared != context.Canceled {
			t.Errorf("Do: %v, shared context: %v", do, shared)
		}
		expectState(t, obeys, StateCanceled, context.Canceled)
		expectState(t, obeys, StateCanceled, ErrClosed)
		expectState(t, stubborn, StateRunning, nil)
		expectStats(t, d, Stats{Queue: 8, Accepted: 10, Running: 1, Abandoned: 5, Canceled: 4})
		time.Sleep(time.Hour)
		expectState(t, stubborn, StateCanceled, ErrClosed)
		expectStats(t, d, Stats{Queue: 8, Accepted: 10, Abandoned: 5, Canceled: 5})
		// That nothing is left is for the end of the bubble to say.
	})
}

// Without it a cut that interrupts only running jobs would read like a loss.
func TestG12ContextEndsFirstWithNothingQueued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 1))
		j := mustSubmit(t, d, untilCanceled)
		synctest.Wait()
		report, err := d.Shutdown(expired)
		if !errors.Is(err, context.Canceled) || errors.Is(err, ErrAbandoned) || report.Running != 1 || report.NeverStarted != nil {
			t.Errorf("%+v, %v", report, err)
		}
		if err := j.Wait(bg); !errors.Is(err, ErrClosed) {
			t.Errorf("%v", err)
		}
		idle := build(t, sized(1, 1))
		if report, err := idle.Shutdown(expired); err != nil || report.Finished+report.Running+len(report.NeverStarted) != 0 {
			t.Errorf("nothing to do: %+v, %v", report, err)
		}
	})
}

// Without it the shutdown of a paused dispatcher would wait for ever.
func TestG12PausedAbandonsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(2, 5))
		var r record
		open := make(gate)
		running := mustSubmit(t, d, func(ctx context.Context) error { <-open; return ctx.Err() })
		obeys := mustSubmit(t, d, func(ctx context.Context) error {
			select {
			case <-open:
			case <-ctx.Done():
			}
			return ctx.Err()
		})
		synctest.Wait()
		for i := range 5 {
			mustGo(t, d, r.job(i))
		}
		d.Resize(0)
		var err error
		var report Report
		returned := false
		go func() { report, err = d.Shutdown(bg); returned = true }()
		expectStats(t, d, Stats{Queue: 5, Accepted: 7, Running: 2, Abandoned: 5}) // at once
		if returned {
			t.Error("returned with jobs running and time left")
		}
		expectState(t, running, StateRunning, nil)
		expectState(t, obeys, StateRunning, nil) // its context is not canceled: it may finish
		close(open)
		synctest.Wait()
		expectState(t, running, StateSucceeded, nil)
		expectState(t, obeys, StateSucceeded, nil)
		if !returned || !errors.Is(err, ErrAbandoned) || errors.Is(err, context.Canceled) || report.Finished != 2 || report.Running != 0 || len(report.NeverStarted) != 5 {
			t.Errorf("returned %v: %+v, %v", returned, report, err)
		}
		r.expect(t)
		for _, fn := range report.NeverStarted {
			fn(bg)
		}
		r.expect(t, upTo(5)...)

		empty := build(t, sized(0, 5))
		if report, err := empty.Shutdown(bg); err != nil || report.NeverStarted != nil {
			t.Errorf("paused and empty: %+v, %v", report, err)
		}
	})
}

// Without it a second signal could not hasten a stop, or would undo it.
func TestG12TwoCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, limits := range [][]time.Duration{{time.Hour, time.Second}, {time.Second, time.Hour}, {0, time.Second, time.Hour}} { // 0: none
			d := build(t, sized(1, 3))
			fill(t, d, func(context.Context) error { time.Sleep(24 * time.Hour); return nil })
			synctest.Wait()
			start := time.Now()
			var wg sync.WaitGroup
			for _, limit := range limits {
				wg.Go(func() {
					ctx, cancel := bg, context.CancelFunc(func() {})
					if limit > 0 {
						ctx, cancel = context.WithTimeout(bg, limit)
					}
					defer cancel()
					report, err := d.Shutdown(ctx)
					if report.Running != 1 || len(report.NeverStarted) != 3 || !errors.Is(err, ErrAbandoned) || !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("%+v, %v", report, err)
					}
				})
				synctest.Wait()
			}
			wg.Wait()
			if time.Since(start) != time.Second {
				t.Errorf("limits %v: cut off after %v", limits, time.Since(start))
			}
			time.Sleep(24 * time.Hour)
			expectStats(t, d, Stats{Queue: 3, Accepted: 4, Canceled: 1, Abandoned: 3, RefusedFull: 1})
		}
		d := build(t, sized(1, 3))
		fill(t, d, func(context.Context) error { time.Sleep(time.Second); return nil })
		first, err1 := d.Shutdown(bg)
		second, err2 := d.Shutdown(expired)
		if err1 != nil || err2 != nil || first.Finished != 4 || second.Finished != 4 {
			t.Errorf("%+v, %v; %+v, %v", first, err1, second, err2)
		}
	})
}

// Without it a blocked submitter would be told of a cancellation that was none of
// its own.
func TestG12BlockedSubmittersGetErrClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, ctx := range []context.Context{bg, expired} {
			for _, paused := range []bool{false, true} {
				d := build(t, sized(2, 2))
				open := make(gate)
				fill(t, d, open.pass)
				if paused {
					d.Resize(0)
				}
				errs := make(chan error, 30)
				for i := range 30 {
					go func() {
						switch i % 3 {
						case 0:
							errs <- d.Go(bg, nop)
						case 1:
							_, err := d.Submit(context.WithValue(bg, ctxKey("k"), 1), nop)
							errs <- err
						case 2:
							errs <- d.Do(bg, nop)
						}
					}()
				}
				synctest.Wait()
				if n := d.Stats().Blocked; n != 30 {
					t.Errorf("%d blocked", n)
				}
				go d.Shutdown(ctx)
				for range 30 {
					if err := <-errs; err != ErrClosed {
						t.Errorf("%v", err)
					}
				}
				close(open)
				synctest.Wait()
				if st := d.Stats(); st.RefusedClosed != 30 || st.Blocked != 0 {
					t.Errorf("%s", brief(st))
				}
			}
		}
	})
}

// Without it an accepted job could be stranded by a stop: tried, checking and
// then sending lost 26 of 20,000.
func TestG12SubmitMeetsShutdown(t *testing.T) {
	before := runtime.NumGoroutine()
	var accepted, refused, abandoned int
	for round := range 3000 {
		w, l := round%3, round%4
		d, err := New(sized(w, l))
		if err != nil {
			t.Fatal(err)
		}
		ctx := bg
		if round%2 == 1 {
			ctx = expired
		}
		var mu sync.Mutex
		var jobs []*Job
		var ran atomic.Int64
		var wg sync.WaitGroup
		start := make(chan struct{})
		for p := range 4 {
			wg.Go(func() {
				<-start
				for range 50 {
					j, err := d.With(Overflow(p%3)).Submit(bg, func(context.Context) error { ran.Add(1); return nil })
					switch err {
					case nil:
						mu.Lock()
						jobs = append(jobs, j)
						mu.Unlock()
					case ErrQueueFull:
						runtime.Gosched()
					case ErrClosed:
						return
					default:
						t.Errorf("Submit: %v", err)
						return
					}
				}
			})
		}
		var report Report
		wg.Go(func() { <-start; report, _ = d.Shutdown(ctx) })
		close(start)
		wg.Wait()
		var states [8]int
		for _, j := range jobs {
			j.Wait(bg) // hangs if one is stranded
			states[j.State()]++
		}
		d.Shutdown(bg)
		st := d.Stats()
		if int(st.Accepted) != len(jobs) || len(report.NeverStarted) != states[StateAbandoned] ||
			states[StateSucceeded]+states[StateCanceled]+states[StateAbandoned]+states[StateDropped] != len(jobs) || int(ran.Load()) != states[StateSucceeded]+states[StateCanceled] {
			t.Fatalf("round %d: %d accepted, states %v, %d ran, report %+v, %s", round, len(jobs), states, ran.Load(), report, brief(st))
		}
		if ctx == bg && w > 0 && states[StateAbandoned]+states[StateCanceled]+report.Running > 0 {
			t.Fatalf("round %d: states %v, report %+v", round, states, report)
		}
		accepted += len(jobs)
		refused += int(st.RefusedClosed)
		abandoned += states[StateAbandoned]
	}
	settled(t, "the goroutines are gone", func() bool { return runtime.NumGoroutine() <= before })
	t.Logf("%d accepted, %d refused, %d abandoned", accepted, refused, abandoned)
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

// Without it a submitter would sleep beside the place that a resize has made.
func TestG13GrowthWakesWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 100 {
			l, blocked := rand.IntN(3), 1+rand.IntN(6)
			d := build(t, sized(0, l))
			open := make(gate)
			vacate := rand.IntN(l + 1)
			for i := range l {
				if j := mustSubmit(t, d, open.pass); i < vacate {
					j.Cancel()
				}
			}
			for range blocked {
				go d.Go(bg, open.pass)
			}
			atRest(t, d)
			for n := 1; n < 6; n++ {
				d.Resize(n)
				atRest(t, d)
			}
			close(open)
			atRest(t, d)
			d.Shutdown(bg)
		}
	})
}

// Without it a place could be freed, or a job taken, just before somebody begins
// to wait who is alone: nobody comes later and mends it.
func TestG13TheOnlySubmitterIsWoken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 0))
		for i := range 100_000 {
			mustGo(t, d, func(context.Context) error {
				for range i % 500 { // to meet the next submit at each of its steps
					runtime.KeepAlive(i)
				}
				return nil
			})
		}
	})
}

// Without it who waits while the queue is full and an idle worker about to be
// served would wait for the end of a job, with a place free.
func TestG13BurstAtAnIdlePool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 1000 {
			w, l := 2+rand.IntN(3), rand.IntN(2)
			d := build(t, sized(w, l))
			if rand.IntN(2) == 0 {
				synctest.Wait()
			}
			open := make(gate)
			var short atomic.Int64
			short.Store(int64(1 + rand.IntN(w+l))) // so many end at once
			for range 3 * (w + l) {
				go d.Go(bg, func(context.Context) error {
					if short.Add(-1) < 0 {
						<-open
					}
					return nil
				})
			}
			atRest(t, d)
			close(open)
			atRest(t, d)
			d.Shutdown(bg)
		}
	})
}

// Without it any of the other ways to free a place could forget who waits.
func TestG13AtRest(t *testing.T) {
	for seed := range uint64(150) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 13))
			cfg := sized(rng.IntN(4), rng.IntN(4))
			cfg.Logger = quiet
			d := build(t, cfg)
			var mu sync.Mutex
			var handles []*Job
			var leave []context.CancelFunc
			end := make(chan struct{})
			job := func(context.Context) error {
				<-end
				switch rand.IntN(8) {
				case 0:
					panic("boom")
				case 1:
					runtime.Goexit()
				}
				return nil
			}
			for range 60 {
				for range 1 + rng.IntN(4) { // operations that start at the same time
					switch rng.IntN(8) {
					case 0, 1, 2, 3:
						policy := Overflow(rng.IntN(4) % 3)
						ctx, cancel := context.WithCancel(bg)
						leave = append(leave, cancel)
						go func() {
							if j, err := d.With(policy).Submit(ctx, job); err == nil {
								mu.Lock()
								handles = append(handles, j)
								mu.Unlock()
							}
						}()
					case 4:
						n := rng.IntN(5)
						go d.Resize(n)
					case 5:
						mu.Lock()
						if len(handles) > 0 {
							go handles[rng.IntN(len(handles))].Cancel()
						}
						mu.Unlock()
					case 6:
						if len(leave) > 0 {
							go leave[rng.IntN(len(leave))]()
						}
					case 7:
						select {
						case end <- struct{}{}:
						default:
						}
					}
				}
				atRest(t, d)
				if t.Failed() {
					t.Fatalf("seed %d", seed)
				}
			}
			d.Resize(1)
			close(end)
			for _, cancel := range leave {
				cancel()
			}
			atRest(t, d)
		})
	}
}

// Without it one wake-up in a million would be lost, and found in production: the
// bubble stands still, and fails, if one of these calls never returns.
func TestG13NobodyIsForgottenUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, size := range [][2]int{{1, 0}, {2, 0}, {1, 1}, {3, 2}} {
			d := build(t, sized(size[0], size[1]))
			var wg sync.WaitGroup
			for range 16 {
				wg.Go(func() {
					for i := range 500 {
						if i%5 == 0 {
							ctx, cancel := context.WithCancel(bg)
							go cancel()
							d.Go(ctx, nop)
						} else if i%5 == 1 {
							d.Do(bg, nop)
						} else {
							d.Go(bg, nop)
						}
					}
				})
			}
			wg.Wait()
			atRest(t, d)
		}
	})
}

// Without it the histograms could be off by the time of another job.
func TestG14HistogramsAreExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 2))
		sleeper := func(s int) func(context.Context) error {
			return func(context.Context) error { time.Sleep(time.Duration(s) * time.Second); return nil }
		}
		expect := func(what string, h histogram.Histogram, durations ...time.Duration) {
			t.Helper()
			slices.Sort(durations)
			var sum time.Duration
			for _, x := range durations {
				sum += x
			}
			if h.Count != uint64(len(durations)) || h.Sum != float64(sum) {
				t.Errorf("%s: %d with sum %v, want %d with %v", what, h.Count, time.Duration(h.Sum), len(durations), sum)
			}
			for i, x := range durations {
				q := (float64(i) + 0.5) / float64(len(durations))
				if got := h.Quantile(q); got < x || got > x+x/8 {
					t.Errorf("%s: quantile %.2f is %v, want %v or an eighth more at most", what, q, got, x)
				}
			}
		}
		for s := 1; s <= 4; s++ { // the fourth waits a second for its place: that is no wait in the queue
			mustGo(t, d, sleeper(s))
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		const s = time.Second
		st := d.Stats()
		expect("wait", st.Wait, 0, 1*s, 3*s, 5*s)
		expect("run", st.Run, 1*s, 2*s, 3*s, 4*s)

		// What never starts has no wait, and what has not ended no run time.
		d.Resize(0)
		j := mustSubmit(t, d, nop)
		mustGo(t, d, nop)
		time.Sleep(s)
		mustGo(t, d, sleeper(10), DropOldest)
		j.Cancel()
		time.Sleep(s)
		d.Resize(1)
		time.Sleep(5 * s)
		synctest.Wait()
		st = d.Stats()
		expect("wait", st.Wait, 0, 1*s, 3*s, 5*s, 2*s, 1*s)
		expect("run", st.Run, 1*s, 2*s, 3*s, 4*s, 0)
		time.Sleep(time.Minute)
		expect("run", d.Stats().Run, 1*s, 2*s, 3*s, 4*s, 0, 10*s)
		if st := d.Stats(); st.Run.Mean() != 20*s/6 {
			t.Errorf("mean %v", st.Run.Mean())
		}
	})
}

// Without it an operator would look at an age that is not there, or miss one.
func TestG14OldestAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(0, 3))
		expect := func(want time.Duration) {
			t.Helper()
			synctest.Wait()
			if got := d.Stats().OldestAge; got != want {
				t.Errorf("oldest age %v, want %v", got, want)
			}
		}
		const s = time.Second
		time.Sleep(s)
		expect(0) // empty
		first := mustSubmit(t, d, nop)
		expect(0) // new
		time.Sleep(s)
		expect(s)
		second := mustSubmit(t, d, nop)
		time.Sleep(2 * s)
		expect(3 * s) // grows while paused
		mustGo(t, d, nop)
		go d.Go(bg, nop) // waits for a place: not queued
		time.Sleep(s)
		expect(4 * s)
		first.Cancel()
		expect(3 * s)                 // canceled jobs are left out
		mustGo(t, d, nop, DropOldest) // the submitter that waited has the canceled one's place
		expectState(t, second, StateDropped, ErrDropped)
		expect(s)
		time.Sleep(s)
		expect(2 * s)
		d.Resize(1)
		expect(0)
		time.Sleep(time.Hour)
		expect(0)
	})
}

// Without it the ages of what is queued would be lost when the queue's cells grow.
func TestG14OldestAgeAcrossGrowth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 3))
		end := make(chan struct{})
		job := func(context.Context) error { <-end; return nil }
		defer close(end)
		expect := func(want time.Duration) {
			t.Helper()
			synctest.Wait()
			if got := d.Stats().OldestAge; got != want {
				t.Errorf("oldest age %v, want %v", got, want)
			}
		}
		const s = time.Second
		mustGo(t, d, job)
		for range 3 { // aged 3, 2 and 1
			mustGo(t, d, job)
			time.Sleep(s)
		}
		expect(3 * s)
		d.Resize(2)
		expect(2 * s)
		mustGo(t, d, job)
		time.Sleep(s)
		expect(3 * s)
		d.Resize(4)
		for range 2 {
			mustGo(t, d, job)
		}
		expect(s)
		d.Resize(0)
		for range 4 { // the surplus finishes, nothing begins
			end <- struct{}{}
		}
		time.Sleep(s)
		expect(2 * s)
		d.Resize(20)
		expect(0)
	})
}

// Without it Wait would be a way to cancel by accident.
func TestWaitEndsWithItsContextNotTheJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 1))
		open := make(gate)
		var ctxErr error
		running := mustSubmit(t, d, func(ctx context.Context) error { <-open; ctxErr = ctx.Err(); return nil })
		synctest.Wait()
		queued := mustSubmit(t, d, nop)
		ctx, cancel := context.WithTimeout(bg, time.Second)
		defer cancel()
		for _, j := range []*Job{running, queued} {
			if err := j.Wait(ctx); err != context.DeadlineExceeded {
				t.Errorf("%v", err)
			}
		}
		expectState(t, running, StateRunning, nil)
		expectState(t, queued, StateQueued, nil)
		close(open)
		if err := errors.Join(running.Wait(bg), queued.Wait(bg), ctxErr); err != nil {
			t.Error(err)
		}
		if err := running.Wait(expired); err != nil { // the end is known: it wins
			t.Errorf("Wait for an ended job with an ended context: %v", err)
		}
	})
}

// Without it a closure would outlive the caller of Do and race with it: under the
// race detector this test is about local.
func TestDoNeverLeavesItsClosureRunning(t *testing.T) {
	d := build(t, sized(2, 4))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 1000 {
				local := 0
				ctx, cancel := context.WithCancel(bg)
				if i%2 == 0 {
					go cancel()
				}
				err := d.Do(ctx, func(context.Context) error { local++; return nil })
				local++
				if err == nil && local != 2 || err != nil && err != context.Canceled {
					t.Errorf("%d, %v", local, err)
				}
				cancel()
			}
		})
	}
	wg.Wait()
}

// Without it fire-and-forget would feed the garbage collector at each job.
func TestAllocations(t *testing.T) {
	d := build(t, sized(2, 64))
	values := context.WithValue(bg, ctxKey("k"), "v")
	for _, c := range []struct {
		what string
		most float64
		f    func()
	}{
		{"Go", 0, func() { d.Go(bg, nop) }},
		{"Go with a policy", 0, func() { d.With(Block).Go(bg, nop) }},
		{"Go refused", 0, func() { d.With(Reject).Go(bg, nop) }},
		{"Go dropping", 0, func() { d.With(DropOldest).Go(bg, nop) }},
		{"Go with values", 1, func() { d.Go(values, nop) }},
		{"Submit and Wait", 2, func() {
			j, err := d.Submit(bg, nop)
			if err != nil {
				t.Error(err)
			}
			j.Wait(bg)
		}},
	} {
		if n := testing.AllocsPerRun(2000, c.f); n > c.most {
			t.Errorf("%s: %v allocations, at most %v", c.what, n, c.most)
		}
	}
	st := d.Stats()
	if st.Accepted == 0 || st.Failed > 0 {
		t.Errorf("%s", brief(st))
	}
}
