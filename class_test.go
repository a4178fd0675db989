package holdfast

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A lineUp is a dispatcher whose only worker is occupied until all jobs are queued.
type lineUp struct {
	t    *testing.T
	d    *Dispatcher
	open gate

	mu  sync.Mutex
	ran []string
}

func newLineUp(t *testing.T, cfg Config) *lineUp {
	l := &lineUp{t: t, d: build(t, cfg), open: make(gate)}
	mustGo(t, l.d, l.open.pass)
	return l
}

// job returns a job that takes a second and says that it ran.
func (l *lineUp) job(name string) func(context.Context) error {
	return func(context.Context) error {
		l.mu.Lock()
		l.ran = append(l.ran, name)
		l.mu.Unlock()
		time.Sleep(time.Second)
		return nil
	}
}

// soFar returns the names of the jobs that have run, in order.
func (l *lineUp) soFar() []string {
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.ran)
}

func (l *lineUp) submit(name string, c Class) *Job {
	l.t.Helper()
	j, err := l.d.For(c).Submit(bg, l.job(name))
	if err != nil {
		l.t.Fatalf("%s: %v", name, err)
	}
	return j
}

// expect opens the gate and checks in which order the jobs run.
func (l *lineUp) expect(want ...string) {
	l.t.Helper()
	close(l.open)
	time.Sleep(time.Hour)
	if ran := l.soFar(); !slices.Equal(ran, want) {
		l.t.Errorf("ran %v, want %v", ran, want)
	}
	expectIdleLine(l.t, l.d)
}

// expectIdleLine checks that nothing is left of jobs that have ended.
func expectIdleLine(t *testing.T, d *Dispatcher) {
	t.Helper()
	synctest.Wait()
	d.lock()
	defer d.mu.Unlock()
	for _, name := range []string{"", "a", "b", "c"} {
		if n := d.line.Places(name) + d.blocked.Places(name); n != 0 {
			t.Errorf("client %q has %d places when all have ended", name, n)
		}
	}
}

// What was queued before the first job of a class keeps its order, and its age.
func TestG16LineUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLineUp(t, sized(1, 10))
		mustSubmit(t, l.d, l.job("one"))
		mustSubmit(t, l.d, l.job("canceled")).Cancel()
		mustGo(t, l.d, l.job("two"))
		time.Sleep(time.Minute)
		l.submit("urgent", Class{Urgency: 3})
		l.submit("late", Class{Urgency: -4})
		mustGo(t, l.d, l.job("three"))
		if st := l.d.Stats(); st.Queued != 5 || st.OldestAge != time.Minute {
			t.Errorf("%s", brief(st))
		}
		l.expect("urgent", "one", "two", "three", "late")
	})
}

func TestG16UrgencyIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLineUp(t, sized(1, 10))
		l.submit("-4", Class{Urgency: -4})
		l.submit("-100", Class{Urgency: -100})
		l.submit("3", Class{Urgency: 3})
		l.submit("1<<40", Class{Urgency: 1 << 30})
		l.submit("heavy", Class{Client: "a", Weight: 1 << 30})
		l.submit("negative", Class{Client: "b", Weight: -1 << 30})
		l.expect("3", "1<<40", "heavy", "negative", "-4", "-100")
	})
}

// One of 20 jobs is of a less urgent class, so that nothing starves.
func TestG16LeastUrgentHasAShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLineUp(t, sized(1, 1000))
		for range 200 {
			l.submit("urgent", Class{Urgency: 2})
		}
		for range 20 {
			l.submit("normal", Class{})
			l.submit("low", Class{Urgency: -4})
		}
		close(l.open)
		time.Sleep(200*time.Second - time.Millisecond)
		count := map[string]int{}
		for i, name := range l.soFar() {
			count[name]++
			if want := map[bool]string{true: "urgent"}[i%20 != 19]; want != "" && name != want {
				t.Errorf("job %d is %s", i, name)
			}
		}
		if count["urgent"] != 190 || count["normal"] != 5 || count["low"] != 5 {
			t.Errorf("ran %v; want 190 urgent ones, 5 normal and 5 low", count)
		}
		time.Sleep(time.Hour)
		expectIdleLine(t, l.d)
	})
}

// An urgent job finds a place although others have filled the queue.
func TestG16UrgentDisplacesTheNewestOfTheLeast(t *testing.T) {
	for _, policy := range []Overflow{Block, Reject} {
		synctest.Test(t, func(t *testing.T) {
			cfg := sized(1, 4)
			cfg.Overflow = policy
			l := newLineUp(t, cfg)
			l.submit("low 1", Class{Urgency: -1})
			low := l.submit("low 2", Class{Urgency: -1})
			normal := l.submit("normal", Class{})
			l.submit("urgent 1", Class{Urgency: 1})
			l.submit("urgent 2", Class{Urgency: 1})
			expectState(t, low, StateDropped, ErrDropped)
			l.submit("urgent 3", Class{Urgency: 1})
			expectState(t, normal, StateQueued, nil) // low 1 went
			l.submit("urgent 4", Class{Urgency: 1})
			expectState(t, normal, StateDropped, ErrDropped)
			refuses := func(c Class) error {
				ctx, cancel := context.WithTimeout(bg, time.Second)
				defer cancel()
				return l.d.For(c).Go(ctx, nop)
			}
			want := map[Overflow]error{Block: context.DeadlineExceeded, Reject: ErrQueueFull}[policy]
			for _, c := range []Class{{Urgency: 1}, {}, {Urgency: -1}, {Urgency: 1, Client: "a"}} {
				if err := refuses(c); err != want {
					t.Errorf("%v, %+v: %v, want %v", policy, c, err, want)
				}
			}
			l.expect("urgent 1", "urgent 2", "urgent 3", "urgent 4")
		})
	}
}

func TestG16DropOldestDropsTheLeastUrgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := sized(1, 3)
		cfg.Overflow = DropOldest
		l := newLineUp(t, cfg)
		l.submit("urgent", Class{Urgency: 1})
		oldest := l.submit("low 1", Class{Urgency: -1})
		l.submit("low 2", Class{Urgency: -1})
		l.submit("low 3", Class{Urgency: -1})
		expectState(t, oldest, StateDropped, ErrDropped)
		l.submit("normal 1", Class{})
		l.submit("normal 2", Class{})
		if err := l.d.For(Class{Urgency: -1}).Go(bg, nop); err != ErrQueueFull {
			t.Errorf("a less urgent job where all are more urgent: %v", err)
		}
		l.expect("urgent", "normal 1", "normal 2")
	})
}

// A request that a client waits for gives its place to a client that has less; a job
// that nobody waits for was promised to run.
func TestG16ShareOfPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := sized(1, 3)
		cfg.Overflow = Reject
		l := newLineUp(t, cfg)
		do := func(name, client string) chan error {
			result := make(chan error, 1)
			go func() { result <- l.d.For(Class{Client: client}).Do(bg, l.job(name)) }()
			synctest.Wait()
			return result
		}
		var results []chan error
		for i := range 3 {
			results = append(results, do(fmt.Sprint("a", i), "a"))
		}
		if err := <-do("a3", "a"); err != ErrQueueFull {
			t.Errorf("one more of the same client: %v", err)
		}
		b := do("b0", "b")
		if err := <-results[2]; err != ErrDropped {
			t.Errorf("the newest of the one with more: %v", err)
		}
		if err := <-do("b1", "b"); err != ErrQueueFull { // it would have as many as the other
			t.Errorf("one more of the second client: %v", err)
		}
		l.expect("a0", "b0", "a1")
		if err := <-b; err != nil {
			t.Error(err)
		}

		// One job that was promised to run does not protect those before it.
		l = newLineUp(t, cfg)
		do("a0", "a")
		last := do("a1", "a")
		l.submit("a2", Class{Client: "a"})
		do("b0", "b")
		if err := <-last; err != ErrDropped {
			t.Errorf("the newest that somebody waits for: %v", err)
		}
		l.expect("a0", "b0", "a2")

		l = newLineUp(t, cfg)
		for i := range 3 {
			l.submit(fmt.Sprint("a", i), Class{Client: "a"})
		}
		if err := l.d.For(Class{Client: "b"}).Go(bg, nop); err != ErrQueueFull {
			t.Errorf("beside jobs that nobody waits for: %v", err)
		}
		l.expect("a0", "a1", "a2")
	})
}

func TestG16ClientsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLineUp(t, sized(1, 100))
		for i := range 4 {
			l.submit(fmt.Sprint("a", i), Class{Client: "a"})
		}
		l.submit("canceled", Class{Client: "b"}).Cancel()
		for i := range 2 {
			l.submit(fmt.Sprint("b", i), Class{Client: "b"})
			l.submit(fmt.Sprint("-", i), Class{Urgency: 0})
		}
		l.expect("a0", "b0", "-0", "a1", "b1", "-1", "a2", "a3")
	})
}

// What is shared is the time of workers, not the number of jobs.
func TestG16ClientsShareTime(t *testing.T) {
	for _, test := range []struct {
		name             string
		heavy            int           // weight of a
		slow             time.Duration // jobs of a; those of b take a second
		fromA, fromB     int64         // how many run in 400 s
		withinA, withinB int64
	}{
		{"alike", 1, time.Second, 400, 400, 4, 4},
		{"slow jobs", 1, 10 * time.Second, 40, 400, 3, 20},
		{"weight", 3, time.Second, 600, 200, 8, 8},
	} {
		synctest.Test(t, func(t *testing.T) {
			d := build(t, sized(2, 4000))
			var ranA, ranB atomic.Int64
			job := func(ran *atomic.Int64, takes time.Duration) func(context.Context) error {
				return func(ctx context.Context) error {
					ran.Add(1)
					select {
					case <-time.After(takes):
					case <-ctx.Done():
					}
					return nil
				}
			}
			for range 1000 {
				d.For(Class{Client: "a", Weight: test.heavy}).Go(bg, job(&ranA, test.slow))
				d.For(Class{Client: "b"}).Go(bg, job(&ranB, time.Second))
			}
			time.Sleep(400 * time.Second)
			synctest.Wait()
			if a, b := ranA.Load()-test.fromA, ranB.Load()-test.fromB; max(a, -a) > test.withinA || max(b, -b) > test.withinB {
				t.Errorf("%s: %d and %d have run; want about %d and %d", test.name, ranA.Load(), ranB.Load(), test.fromA, test.fromB)
			}
			d.Shutdown(expired)
		})
	}
}

// Submitters that wait for a place are served as jobs are.
func TestG16BlockedSubmittersTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLineUp(t, sized(1, 0))
		block := func(name string, c Class) {
			go l.d.For(c).Go(bg, l.job(name))
			synctest.Wait()
		}
		for i := range 3 {
			block(fmt.Sprint("a", i), Class{Client: "a"})
		}
		block("b0", Class{Client: "b"})
		block("urgent", Class{Client: "a", Urgency: 1})
		l.expect("urgent", "a0", "b0", "a1", "a2")
	})
}

func TestG16ClientPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := sized(1, 2)
		cfg.ClientPlaces = 3
		d := build(t, cfg)
		open := make(gate)
		a := d.For(Class{Client: "a"})
		running, _ := a.Submit(bg, open.pass)
		queued, _ := a.Submit(bg, nop)
		mustGo(t, d, nop)
		go a.Go(bg, nop) // waits for a place
		synctest.Wait()
		for range 2 {
			if err := a.Go(bg, nop); err != ErrShare {
				t.Errorf("a fourth: %v, want ErrShare", err)
			}
		}
		queued.Cancel()
		synctest.Wait()
		if err := d.For(Class{Client: "a", Urgency: 3}).Go(bg, nop); err != nil {
			t.Errorf("after one was canceled: %v", err)
		}
		close(open)
		<-running.Done()
		synctest.Wait()
		for _, c := range []Class{{Client: "a"}, {Client: strings.Repeat("long ", 1000)}} {
			hold := make(gate)
			for range 3 {
				if err := d.For(c).Go(bg, hold.pass); err != nil {
					t.Errorf("%.10s when all have ended: %v", c.Client, err)
				}
			}
			if err := d.For(c).Go(bg, nop); err != ErrShare {
				t.Errorf("%.10s: %v", c.Client, err)
			}
			close(hold)
			synctest.Wait()
		}
		st := d.Stats()
		if st.RefusedShare != 4 {
			t.Errorf("%d refused, want 4", st.RefusedShare)
		}
		expectIdleLine(t, d)
	})
}

// A shutdown returns what never started in the order of acceptance, whatever the turns.
func TestG12ShutdownOfALine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLineUp(t, sized(1, 10))
		for i, c := range []Class{{Urgency: -1}, {Client: "a"}, {Client: "a"}, {Urgency: 2}, {}} {
			l.submit(fmt.Sprint(i), c)
		}
		report, err := l.d.Shutdown(expired)
		if !errors.Is(err, ErrAbandoned) || len(report.NeverStarted) != 5 {
			t.Fatalf("%+v, %v", report, err)
		}
		for _, fn := range report.NeverStarted {
			fn(bg)
		}
		l.expect("0", "1", "2", "3", "4")
	})
}

func TestG15Patience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 2))
		second := func(context.Context) error { time.Sleep(time.Second); return nil }
		d.Do(bg, second) // so that it is known how long jobs take
		patient := func(p time.Duration) Submitter { return d.For(Class{Patience: p}) }

		if err := patient(1).Do(bg, second); err != nil {
			t.Errorf("with an idle worker: %v", err) // it has begun in time
		}
		mustGo(t, d, second)
		mustGo(t, d, second)
		if err := patient(1500*time.Millisecond).Go(bg, nop); err != ErrLate {
			t.Errorf("2 s before its turn: %v, want ErrLate", err)
		}
		began := time.Now()
		j, err := patient(2100*time.Millisecond).Submit(bg, nop)
		if err != nil {
			t.Fatal(err)
		}
		<-j.Done()
		if got := time.Since(began); got != 2*time.Second {
			t.Errorf("ended after %v", got)
		}
		expectState(t, j, StateSucceeded, nil)

		// A job that takes longer than others, which nobody could tell.
		open := make(gate)
		mustGo(t, d, open.pass)
		began = time.Now()
		queued, err := patient(3*time.Second).Submit(bg, nop)
		if err != nil {
			t.Fatal(err)
		}
		other, _ := d.Submit(bg, nop)
		if err := patient(4*time.Second).Go(bg, nop); err != nil || time.Since(began) != 3*time.Second {
			t.Errorf("the place of the one that expired: %v after %v", err, time.Since(began))
		}
		expectState(t, queued, StateCanceled, ErrLate)
		time.Sleep(time.Second) // since its submit, 4 s
		mustGo(t, d, nop)
		if err := patient(4*time.Second).Go(bg, nop); err != ErrLate || time.Since(began) != 8*time.Second {
			t.Errorf("without a place: %v after %v, want ErrLate after 8s", err, time.Since(began))
		}
		if other.State() != StateQueued {
			t.Errorf("the patient one is %v", other.State())
		}
		close(open)
		<-other.Done()
		synctest.Wait()
		st := d.Stats()
		if st.RefusedLate != 2 || st.Canceled != 2 || st.RefusedGone != 0 {
			t.Errorf("%d refused late, %d canceled, %d gone; want 2, 2, 0", st.RefusedLate, st.Canceled, st.RefusedGone)
		}

		if u := d.Urgencies(); len(u) != 1 || u[0].Expired != 2 || u[0].RefusedLate != 2 {
			t.Errorf("%+v; want 2 expired and 2 refused late", u)
		}

		// Once begun it is not late any more.
		long, _ := patient(time.Second).Submit(bg, func(ctx context.Context) error { time.Sleep(time.Minute); return ctx.Err() })
		<-long.Done()
		expectState(t, long, StateSucceeded, nil)
		done, _ := patient(time.Hour).Submit(bg, nop)
		<-done.Done()
		if done.turn.late.Stop() {
			t.Error("the timer of a job that has ended runs on")
		}
	})
}

// byHeaders is the class that the headers of a request name.
func byHeaders(r *http.Request) Class {
	patience, _ := time.ParseDuration(r.Header.Get("Patience"))
	return Class{Urgency: Priority(r.Header), Client: r.Header.Get("Client"), Patience: patience}
}

// answers sends requests and collects the answers as they come.
type answers struct {
	mu   sync.Mutex
	said []string
}

func (a *answers) send(h http.Handler, name, takes string, header ...string) {
	go func() {
		rec := post(h, takes, header...)
		a.mu.Lock()
		defer a.mu.Unlock()
		a.said = append(a.said, fmt.Sprint(name, " ", rec.Code))
	}()
	synctest.Wait()
}

func (a *answers) expect(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	if !slices.Equal(a.said, want) {
		t.Errorf("answers %q, want %q", a.said, want)
	}
	a.said = nil
}

func TestG16OverHTTP(t *testing.T) {
	inBubble(t, Config{Workers: 1, Queue: 3, ClientPlaces: 3, Overflow: Reject}, JobsConfig{Classify: byHeaders, Patience: -1}, func(t *testing.T, f *jobsFixture) {
		var a answers
		h := f.Queued(sleeps)
		for _, async := range []bool{false, true} {
			if async {
				h = f.Async(sleeps)
			}
			prefer := "Prefer: wait=50"
			a.send(h, "first", "1s", prefer)
			a.send(h, "a1", "1s", prefer, "Client: a")
			a.send(h, "a2", "1s", prefer, "Client: a")
			a.send(h, "b", "1s", prefer, "Client: b")
			a.send(h, "urgent", "1s", prefer, "Priority: u=0, i", "Client: c")
			a.expect(t, "a2 503") // the newest of the client that has most
			a.send(h, "malformed", "1s", prefer, "Priority: u=0 i", "Client: d")
			a.expect(t, "malformed 503")
			time.Sleep(5 * time.Second)
			a.expect(t, "first 200", "urgent 200", "a1 200", "b 200")

			for range 3 {
				a.send(h, "e", "1s", prefer, "Client: e")
			}
			rec := post(h, "1s", prefer, "Client: e")
			expectProblem(t, rec, 429, "all the places", rec.Header().Get("Retry-After"))
			if rec.Header().Get("Retry-After") == "" {
				t.Error("429 without Retry-After")
			}
			time.Sleep(5 * time.Second)
			a.expect(t, "e 200", "e 200", "e 200")
		}
		for _, u := range f.d.Urgencies() {
			if u.Urgency == 0 && (u.RefusedShare != 2 || u.RefusedFull != 2 || u.Dropped != 2) {
				t.Errorf("%+v; want 2 refused for their share, 2 for want of a place, and 2 dropped", u)
			}
			if u.Queued != 0 || u.OldestAge != 0 || u.RefusedLate+u.Expired+u.RefusedClosed+u.InVain != 0 {
				t.Errorf("%+v at the end", u)
			}
		}
	})
}

// The wait that is predicted is that for the request's own place: one client's flood does
// not make the others late.
func TestG15PatienceInALine(t *testing.T) {
	inBubble(t, Config{Workers: 1, Queue: 100}, JobsConfig{Classify: byHeaders}, func(t *testing.T, f *jobsFixture) {
		h := f.Queued(sleeps)
		for range 50 { // so that the service is known
			post(h, "100ms", "Patience: 1h")
		}
		var a answers
		for i := range 20 {
			a.send(h, fmt.Sprint("flood ", i), "100ms", "Client: flood", "Patience: 1s")
		}
		refused := len(a.said)
		if refused < 10 {
			t.Errorf("%d of 20 refused at the door; want those that would wait for more than 1s", refused)
		}
		a.send(h, "urgent", "100ms", "Client: flood", "Priority: u=0", "Patience: 400ms")
		a.send(h, "small", "100ms", "Client: small", "Patience: 500ms")
		a.send(h, "nameless", "100ms", "Patience: 600ms")
		time.Sleep(500 * time.Millisecond)
		a.mu.Lock()
		defer a.mu.Unlock()
		if of, by := f.d.Stats().RefusedLate, f.Stats().RefusedLate; of != by || by != uint64(refused) {
			t.Errorf("%d refused late by the dispatcher's count, %d by that of the Jobs, want %d", of, by, refused)
		}
		for _, want := range []string{"urgent 200", "small 200", "nameless 200"} {
			if !slices.Contains(a.said, want) {
				t.Errorf("%q; want %q within 500ms", a.said, want)
			}
		}
	})
}

// One who is refused is told how long the wait for its own place is, and while refusals go
// on, to stay away for longer.
func TestRetryAfterOfTheRefused(t *testing.T) {
	retryAfter := func(t *testing.T, status int, rec *httptest.ResponseRecorder) int {
		seconds, err := strconv.Atoi(rec.Header().Get("Retry-After"))
		if rec.Code != status || err != nil {
			t.Errorf("%d, Retry-After %q, want %d", rec.Code, rec.Header().Get("Retry-After"), status)
		}
		return seconds
	}
	inBubble(t, Config{Workers: 1, Queue: 20, ClientPlaces: 10}, JobsConfig{Classify: byHeaders}, func(t *testing.T, f *jobsFixture) {
		h := f.Async(sleeps)
		post(h, "1s", "Client: a")
		time.Sleep(2 * time.Second)
		for range 10 {
			post(h, "1h", "Client: a")
		}
		for range 10 { // nobody else is told to stay away for longer
			if got := retryAfter(t, 429, post(h, "1s", "Client: a")); got < 9 || got > 11 {
				t.Errorf("Retry-After %d behind 9 jobs of 1 s of its own", got)
			}
			time.Sleep(time.Second)
		}
	})
	inBubble(t, Config{Workers: 1, Overflow: Reject}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
		h := f.Async(sleeps)
		post(h, "1h")
		if got := retryAfter(t, 503, post(h, "1s")); got != 1 {
			t.Errorf("the first one is told %d, want 1", got)
		}
		last := 0
		for range 8 {
			time.Sleep(time.Second)
			last = retryAfter(t, 503, post(h, "1s"))
		}
		if last < 1+16 || last > 1+32 {
			t.Errorf("after 8 s of refusals: %d, want 17 to 33", last)
		}
	})
}

// A request that was begun, and whose client left before the answer, was begun in vain.
func TestInVain(t *testing.T) {
	inBubble(t, Config{Workers: 1, Queue: 1}, JobsConfig{}, func(t *testing.T, f *jobsFixture) {
		ctx, leave := context.WithCancel(bg)
		go ask(ctx, f.Queued(sleeps), "POST", "/work", "1m") // it runs
		synctest.Wait()
		go ask(ctx, f.Queued(sleeps), "POST", "/work", "1m") // it never does
		synctest.Wait()
		leave()
		synctest.Wait()
		if all := f.d.Urgencies(); len(all) != 1 || all[0].InVain != 1 {
			t.Errorf("%+v, want one begun in vain", all)
		}
	})
}

func TestUrgencies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 100))
		if all := d.Urgencies(); len(all) != 1 || !reflect.DeepEqual(all[0], UrgencyStats{}) {
			t.Errorf("new: %+v", all)
		}
		open := make(gate)
		mustGo(t, d, open.pass)
		mustGo(t, d, nop)
		time.Sleep(time.Second)
		if all := d.Urgencies(); len(all) != 1 || !reflect.DeepEqual(all[0], UrgencyStats{Queued: 1, OldestAge: time.Second}) {
			t.Errorf("without a class: %+v", all)
		}
		for client := range 13 {
			for range client + 1 {
				d.For(Class{Urgency: 2, Client: fmt.Sprint(client)}).Go(bg, nop)
			}
		}
		time.Sleep(time.Second)
		all := d.Urgencies()
		if len(all) != 2 || all[0].Urgency != 2 || all[0].Queued != 91 || all[1].Queued != 1 || all[1].OldestAge != 2*time.Second {
			t.Fatalf("%+v", all)
		}
		if c := all[0].Clients; len(c) != 10 || c[0] != (ClientStats{"12", 13, 0}) || c[9].Queued != 4 || all[0].OldestAge != time.Second {
			t.Errorf("%+v", all[0])
		}
		close(open)
	})
}

// The end of a patience that comes just before the place ends the job nevertheless.
func TestG15PatienceEndsWithTheWaitForAPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(0, 1))
		for range 200 {
			first := mustSubmit(t, d, nop)
			var waiting sync.WaitGroup
			for range 8 {
				waiting.Go(func() {
					j, err := d.For(Class{Patience: 5 * time.Millisecond}).Submit(bg, nop)
					if err == nil {
						<-j.Done()
						err = j.Err()
					}
					if err != ErrLate {
						t.Errorf("%v, want ErrLate", err)
					}
				})
			}
			synctest.Wait()
			time.Sleep(5 * time.Millisecond) // the place is free at the moment when they leave
			first.Cancel()
			waiting.Wait()
		}
		if st := d.Stats(); st.Queued+st.Blocked != 0 {
			t.Errorf("left: %s", brief(st))
		}
	})
}

// Where all clients wait for places, their shares are those of weights and time too.
func TestG16BlockedClientsShareTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := build(t, sized(1, 2))
		var stop atomic.Bool
		var a, b atomic.Int64
		loop := func(c Class, took *atomic.Int64, each time.Duration) {
			for range 20 {
				go func() {
					for !stop.Load() {
						d.For(c).Do(bg, func(context.Context) error { time.Sleep(each); took.Add(int64(each)); return nil })
					}
				}()
			}
		}
		loop(Class{Client: "slow"}, &a, 20*time.Millisecond)
		loop(Class{Client: "heavy", Weight: 3}, &b, 2*time.Millisecond)
		time.Sleep(20 * time.Second)
		stop.Store(true)
		time.Sleep(time.Minute)
		if ratio := float64(b.Load()) / float64(a.Load()); ratio < 2.4 || ratio > 3.6 {
			t.Errorf("a client of weight 3 got %.2f times the time of one of weight 1", ratio)
		}
	})
}

// A job without a class that waits for a place does not race with those in the line.
func TestStressOfClasses(t *testing.T) {
	d := build(t, sized(2, 1))
	var all sync.WaitGroup
	for p := range 8 {
		all.Go(func() {
			for i := range 300 {
				c := Class{Urgency: i%3 - 1, Client: fmt.Sprint(p % 3)}
				if i%4 == 0 {
					c = Class{}
				}
				if i%5 == 0 {
					c.Patience = time.Microsecond
				}
				if j, err := d.For(c).Submit(bg, nop); err == nil && i%7 == 0 {
					j.Cancel()
				}
			}
		})
	}
	all.Wait()
}

func TestG16FirstClassIsTheLeastUrgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := sized(1, 1)
		cfg.Overflow = DropOldest
		l := newLineUp(t, cfg)
		mustGo(t, l.d, l.job("normal"))
		if err := l.d.For(Class{Urgency: -1}).Go(bg, nop); err != ErrQueueFull {
			t.Errorf("%v; a less urgent job does not displace a normal one", err)
		}
		l.expect("normal")
	})
}

// Before the first job of a class there is no line yet. A job that would be next in it is
// not late.
func TestUrgentIsNotLateBeforeTheLine(t *testing.T) {
	for name, c := range map[string]Class{
		"urgent":     {Urgency: 3, Patience: 5 * time.Second},
		"new client": {Client: "new", Patience: 5 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := build(t, Config{Workers: 1, Queue: 100})
				second := func(context.Context) error { time.Sleep(time.Second); return nil }
				for range 50 {
					d.Go(t.Context(), second)
				}
				time.Sleep(3500 * time.Millisecond) // it is known what a job takes
				began := time.Now()
				var waited time.Duration
				j, err := d.For(c).Submit(t.Context(), func(context.Context) error { waited = time.Since(began); return nil })
				if err != nil {
					t.Fatalf("a job that would be next is refused: %v", err)
				}
				if err := j.Wait(t.Context()); err != nil || waited > 2*time.Second {
					t.Errorf("it began after %v, and ended with %v", waited, err)
				}
				if err := d.For(Class{Urgency: -1, Patience: 5 * time.Second}).Go(t.Context(), second); err != ErrLate {
					t.Errorf("a job that has all the others before it: %v, want ErrLate", err)
				}
			})
		})
	}
}
