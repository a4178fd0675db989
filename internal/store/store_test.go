package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"holdfast/internal/exchange"
)

// plenty is what no test but those of the bounds comes near.
var plenty = Bounds{Jobs: 1 << 30, Bytes: 1 << 40, Age: 1000 * time.Hour}

// respond returns the response of a handler that writes body. It is never
// released, so that it stays what it is.
func respond(t testing.TB, body string) exchange.Response {
	t.Helper()
	var x exchange.Exchange
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, body) })
	x.Capture(h, httptest.NewRequest("POST", "/", nil), nil, 1<<40)
	if err := x.Serve(context.Background()); err != nil {
		t.Fatal(err)
	}
	return x.Response()
}

// bodyOf returns what a client would be given.
func bodyOf(o Outcome) string {
	rec := httptest.NewRecorder()
	o.Response.CopyHeader(rec.Header())
	o.Response.Write(rec, "GET")
	return rec.Body.String()
}

func done(t testing.TB, body string) Outcome {
	return Outcome{State: Done, Response: respond(t, body)}
}

// work is canceled if it may be.
type work func() bool

func (w work) Cancel() bool { return w() }

// accept makes j known, and accepted.
func accept(s *Store, j *Job, c *Claim) {
	s.Add(j, c)
	s.Accept(j)
}

func open(s *Store) *Job {
	j := NewJob(NewID(), nil, Request{})
	accept(s, j, nil)
	return j
}

func lookup(t testing.TB, s *Store, j *Job) View {
	t.Helper()
	found, ok := s.Lookup(j.ID.String())
	if !ok {
		t.Fatalf("job %v is not there", j.ID)
	}
	if found.ID != j.ID {
		t.Fatalf("looked up %v, got %v", j.ID, found.ID)
	}
	return s.View(found)
}

func there(s *Store, id ID) bool {
	_, ok := s.Lookup(id.String())
	return ok
}

func TestIDs(t *testing.T) {
	seen := make(map[ID]bool)
	for range 10_000 {
		id := NewID()
		text := id.String()
		back, ok := ParseID(text)
		if !ok || back != id || len(text) != 26 || seen[id] {
			t.Fatalf("%v became %q, that %v, %v; seen before: %v", id[:], text, back[:], ok, seen[id])
		}
		if strings.Trim(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") != "" {
			t.Fatalf("%q has other than letters and digits", text)
		}
		if short := id.Short(); len(short) != 8 || !strings.HasPrefix(text, short) {
			t.Fatalf("%q is short for %q", short, text)
		}
		seen[id] = true
	}

	good := ID{0: 0xab, 15: 0xff}.String()
	if _, ok := ParseID(good); !ok {
		t.Fatalf("%q is refused", good)
	}
	bad := []string{
		"", good[:25], good + "A", good + good, good + "======", " " + good[1:], good[:25] + "\n", good[:25] + "=",
		strings.ToLower(good), "v" + good[1:], "1" + good[1:], "0" + good[1:], "8" + good[1:], "\x00" + good[1:],
		good[:12] + "\r\n" + good[14:], good[:13] + "é" + good[15:],
	}
	// Of 128 bits the last letter has 3, so of 32 letters 8 are canonical. The others
	// would be second names of the same job.
	canonical := 0
	for _, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567" {
		text := good[:25] + string(c)
		if id, ok := ParseID(text); ok {
			canonical++
			if id.String() != text {
				t.Errorf("%q is taken for %q", text, id)
			}
		} else {
			bad = append(bad, text)
		}
	}
	if canonical != 8 {
		t.Errorf("%d last letters are taken, want 8", canonical)
	}
	s := New(plenty)
	j := NewJob(ID{0: 0xab, 15: 0xff}, nil, Request{})
	accept(s, j, nil)
	for _, text := range bad {
		if _, ok := ParseID(text); ok {
			t.Errorf("%q is taken for an ID", text)
		}
		if _, ok := s.Lookup(text); ok {
			t.Errorf("%q opens a job", text)
		}
	}
	if !there(s, j.ID) || there(s, ID{}) {
		t.Error("want the one job there is, and no other")
	}
}

// Accept comes from another goroutine than Start and End, so anywhere among them.
func TestOrders(t *testing.T) {
	for _, order := range []string{"", "A", "S", "E", "AS", "SA", "AE", "EA", "ASE", "SAE", "SEA", "SE", "AA", "SS", "EE", "ES"} {
		t.Run(order, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testOrder(t, order) })
		})
	}
}

func testOrder(t *testing.T, order string) {
	s := New(Bounds{Jobs: 10, Bytes: 1 << 20, Age: time.Hour})
	j := NewJob(NewID(), nil, Request{"POST", "/x?y", "POST /x"})
	s.Add(j, nil)
	want := View{Outcome: Outcome{State: Queued}}
	for i, step := range order {
		time.Sleep(time.Second)
		now := time.Now().Add(1) // the clock is never 0
		if i == 0 {
			want.Accepted = now
		}
		switch step {
		case 'A':
			if err := s.Accept(j); err != nil {
				t.Fatal(err)
			}
		case 'S':
			s.Start(j)
			if want.State == Queued {
				want.State, want.Started = Running, now
			}
		case 'E':
			s.End(j, done(t, fmt.Sprint(i)))
			if want.State != Done {
				want.State, want.Ended, want.Expires, want.Detail = Done, now, now.Add(time.Hour), fmt.Sprint(i)
			}
		}
		for _, v := range []View{s.View(j), lookup(t, s, j)} {
			if v.State != want.State || !v.Accepted.Equal(want.Accepted) || !v.Started.Equal(want.Started) || !v.Ended.Equal(want.Ended) || !v.Expires.Equal(want.Expires) {
				t.Errorf("after %s: %+v, want %+v", order[:i+1], v, want)
			}
			if v.Request != (Request{"POST", "/x?y", "POST /x"}) {
				t.Errorf("after %s: %+v", order[:i+1], v.Request)
			}
			if want.State == Done && bodyOf(v.Outcome) != want.Detail {
				t.Errorf("after %s: body %q, want that of the first end, %q", order[:i+1], bodyOf(v.Outcome), want.Detail)
			}
		}
	}
	open, kept := 0, 0
	switch {
	case want.State == Done:
		kept = 1
	case order != "":
		open = 1
	}
	lookup(t, s, j) // also before it is accepted
	page, _, _ := s.List("", Cursor{}, 10)
	if st := s.Stats(); st.Open != open || st.Kept != kept || len(page) != open+kept {
		t.Errorf("%d open, %d kept, %d listed; want %d, %d and %d", st.Open, st.Kept, len(page), open, kept, open+kept)
	}
	s.Withdraw(j)
	if there(s, j.ID) != (order != "") {
		t.Errorf("there after it was withdrawn: %v", there(s, j.ID))
	}
	s.Withdraw(j)
	if st := s.Stats(); st.Open != open || st.Kept != kept {
		t.Errorf("withdrawn: %d open, %d kept; want %d and %d", st.Open, st.Kept, open, kept)
	}
}

func TestRequestOf(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if got, want := RequestOf(r), (Request{"PUT", "/in/a%2Fb?c=d", "/in/"}); got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	})
	mux := http.NewServeMux()
	mux.Handle("/in/", http.StripPrefix("/in", h))
	mux.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("PUT", "/in/a%2Fb?c=d", nil))
	for target, want := range map[string]string{"*": "*", "http://host/a?b": "/a?b", "http://host": "/"} {
		if got := RequestOf(httptest.NewRequest("OPTIONS", target, nil)).Target; got != want {
			t.Errorf("%s: %s, want %s", target, got, want)
		}
	}
}

// What came from a client is kept cut, in whole characters.
func TestRequestIsCut(t *testing.T) {
	s := New(plenty)
	j := NewJob(NewID(), nil, Request{strings.Repeat("M", 1000), "/" + strings.Repeat("é", 1000), strings.Repeat("r", 1000)})
	accept(s, j, nil)
	want := Request{strings.Repeat("M", 20), "/" + strings.Repeat("é", 99), strings.Repeat("r", 200)}
	if got := s.View(j).Request; got != want {
		t.Errorf("%+v", got)
	}
	r := httptest.NewRequest(strings.Repeat("M", 1000), "/"+strings.Repeat("é", 1000), nil)
	r.Pattern = strings.Repeat("r", 1000)
	if got := RequestOf(r); got != want {
		t.Errorf("RequestOf: %+v", got)
	}
	before := s.Stats().Bytes
	s.End(j, Outcome{State: Failed})
	if got := lookup(t, s, j).Request; got != want {
		t.Errorf("ended: %+v", got)
	}
	if took, want := s.Stats().Bytes-before, (&record{request: want}).size(); took != want {
		t.Errorf("it takes %d bytes, want %d", took, want)
	}
}

// A response that comes with another outcome than Done or Failed is not kept: its memory is
// the caller's, who uses it for the next client.
func TestEndKeepsNoOtherResponse(t *testing.T) {
	s := New(plenty)
	j := open(s)
	s.End(j, Outcome{State: Canceled, Response: respond(t, "another client's")})
	if n := s.View(j).Response.Size(); n != 0 {
		t.Errorf("%d bytes are kept", n)
	}
}

func TestOutcomes(t *testing.T) {
	s := New(plenty)
	for _, o := range []Outcome{
		{State: Failed, Status: 500, Detail: "why"},
		{State: Failed, Status: 504, Detail: strings.Repeat("long ", 5000)},
		{State: Canceled, Status: 410},
		{State: Dropped, Status: 410, Detail: "dröpped"},
		done(t, ""),
		done(t, strings.Repeat("0123456789", 1<<20)),
	} {
		j := open(s)
		s.Start(j)
		s.End(j, o)
		for _, v := range []View{s.View(j), lookup(t, s, j)} {
			if v.State != o.State || v.Status != o.Status || v.Detail != o.Detail {
				t.Errorf("%s %d %.20q, want %s %d %.20q", v.State, v.Status, v.Detail, o.State, o.Status, o.Detail)
			}
			if o.State == Done && bodyOf(v.Outcome) != bodyOf(o) {
				t.Errorf("another body than the %d bytes", len(bodyOf(o)))
			}
		}
	}
}

// A channel of Changed taken before a View misses no state that the View did not
// show: whoever waits like that is never left behind.
func TestChangedMissesNothing(t *testing.T) {
	s := New(plenty)
	for range 200 {
		j := open(s)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for {
					changed := s.Changed(j)
					if s.View(j).State.Ended() {
						return
					}
					<-changed
				}
			})
		}
		wg.Go(func() { s.Start(j); s.End(j, Outcome{State: Failed}) })
		wg.Wait()
	}

	// Each change is told, and nothing else is.
	synctest.Test(t, func(t *testing.T) {
		s := New(plenty)
		j := NewJob(NewID(), nil, Request{})
		var told atomic.Int64
		next := func() { c := s.Changed(j); go func() { <-c; told.Add(1) }() }
		check := func(what string, want int64) {
			synctest.Wait()
			if n := told.Load(); n != want {
				t.Errorf("%s: told %d times, want %d", what, n, want)
			}
		}
		next()
		s.Add(j, nil)
		s.Accept(j)
		check("accepted", 0)
		s.Start(j)
		check("started", 1)
		next()
		next()
		check("again", 1)
		s.End(j, Outcome{State: Failed})
		check("ended", 3)
	})
}

func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(plenty)
		// Queued: Cancel returns when the end has been told, even if that is later.
		var j *Job
		j = NewJob(NewID(), work(func() bool {
			go func() {
				time.Sleep(time.Second)
				s.End(j, Outcome{State: Canceled, Status: 410})
			}()
			return true
		}), Request{})
		accept(s, j, nil)
		began := time.Now()
		if v := s.Cancel(j); v.State != Canceled || time.Since(began) != time.Second {
			t.Errorf("%s after %v", v.State, time.Since(began))
		}
		if v := s.Cancel(j); v.State != Canceled { // its work is gone
			t.Error(v.State)
		}
		found, _ := s.Lookup(j.ID.String())
		if v := s.Cancel(found); v.State != Canceled {
			t.Error(v.State)
		}
		// Running: it goes on until it notices.
		calls := 0
		j = NewJob(NewID(), work(func() bool { calls++; return false }), Request{})
		accept(s, j, nil)
		s.Start(j)
		found, _ = s.Lookup(j.ID.String())
		if v := s.Cancel(found); v.State != Running || calls != 1 {
			t.Errorf("%s, %d calls", v.State, calls)
		}
		s.End(j, done(t, ""))
		if v := s.Cancel(found); v.State != Done || calls != 1 {
			t.Errorf("%s, %d calls", v.State, calls)
		}
	})
}

// What exceeds a bound goes, the one that ended first before the others; what is
// queued or running stays.
func TestBounds(t *testing.T) {
	o := done(t, strings.Repeat("x", 1000))
	one := (&record{outcome: o}).size()
	for _, test := range []struct {
		name   string
		bounds Bounds
		cause  func(Stats) uint64
	}{
		{"jobs", Bounds{Jobs: 10, Bytes: 1 << 40, Age: time.Hour}, func(s Stats) uint64 { return s.ByJobs }},
		{"bytes", Bounds{Jobs: 1 << 30, Bytes: 10*one + one - 1, Age: time.Hour}, func(s Stats) uint64 { return s.ByBytes }},
		{"age", Bounds{Jobs: 1 << 30, Bytes: 1 << 40, Age: 10 * time.Second}, func(s Stats) uint64 { return s.ByAge }},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := New(test.bounds)
				queued, running := open(s), open(s)
				s.Start(running)
				var jobs []*Job
				for range 100 { // accepted in one order, ended in the other
					jobs = append(jobs, open(s))
				}
				for i := range jobs {
					s.End(jobs[len(jobs)-1-i], o)
					for k := range jobs {
						ended := k >= len(jobs)-1-i
						want := !ended || k-(len(jobs)-1-i) < 10
						if got := there(s, jobs[k].ID); got != want {
							t.Fatalf("%d have ended: the one that ended as number %d is there: %v, want %v", i+1, len(jobs)-k, got, want)
						}
					}
					st := s.Stats()
					kept := min(i+1, 10)
					if st.Open != 2+len(jobs)-1-i || st.Kept != kept || st.Bytes != int64(kept)*one || test.cause(st) != uint64(i+1-kept) || st.ByAge+st.ByBytes+st.ByJobs != test.cause(st) {
						t.Fatalf("after %d ends: %+v", i+1, st)
					}
					time.Sleep(time.Second)
					synctest.Wait()
				}
				if !there(s, queued.ID) || !there(s, running.ID) {
					t.Error("an open job was forgotten")
				}
				time.Sleep(2 * test.bounds.Age)
				if !there(s, queued.ID) || !there(s, running.ID) {
					t.Error("an open job was forgotten for its age")
				}
			})
		})
	}

	// One that alone is too much is gone at once, yet its own record shows it.
	s := New(Bounds{Jobs: 10, Bytes: 100, Age: time.Hour})
	j := open(s)
	s.End(j, o)
	if st := s.Stats(); st.Kept != 0 || st.Bytes != 0 || st.ByBytes != 1 || there(s, j.ID) || bodyOf(s.View(j).Outcome) != bodyOf(o) {
		t.Errorf("%+v", st)
	}
}

// A kept job is there until its age is exactly the bound, and goes then without
// anybody asking.
func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Bounds{Jobs: 100, Bytes: 1 << 30, Age: time.Minute})
		// inside looks without the eviction that any method begins with.
		inside := func() (kept, chunks int, bytes int64, timer bool) {
			s.mu.Lock()
			defer s.mu.Unlock()
			return len(s.kept.index), len(s.kept.chunks), s.kept.bytes, s.timer != nil
		}
		if _, _, _, timer := inside(); timer {
			t.Error("a timer in an empty store")
		}
		for round := range 3 { // the timer comes back
			first := open(s)
			s.End(first, done(t, "first"))
			time.Sleep(20 * time.Second)
			second := open(s)
			s.End(second, done(t, strings.Repeat("x", 2*chunkSize)))
			if _, _, _, timer := inside(); !timer {
				t.Error("no timer")
			}
			time.Sleep(40*time.Second - 1)
			synctest.Wait()
			if kept, _, _, _ := inside(); kept != 2 || !there(s, first.ID) {
				t.Errorf("%d kept the moment before, want 2", kept)
			}
			time.Sleep(time.Nanosecond)
			synctest.Wait()
			if kept, _, _, timer := inside(); kept != 1 || !timer {
				t.Errorf("%d kept after a minute, timer %v; want 1, true", kept, timer)
			}
			if there(s, first.ID) || !there(s, second.ID) {
				t.Error("the wrong one went")
			}
			time.Sleep(20 * time.Second)
			synctest.Wait()
			if kept, chunks, bytes, timer := inside(); kept+chunks != 0 || bytes != 0 || timer {
				t.Errorf("%d records, %d chunks, %d bytes, timer %v; want nothing left", kept, chunks, bytes, timer)
			}
			if st := s.Stats(); st.ByAge != uint64(2*round+2) {
				t.Errorf("%d by age", st.ByAge)
			}
		}
	})
	// A lookup that comes before the timer does not find it either.
	synctest.Test(t, func(t *testing.T) {
		s := New(Bounds{Jobs: 100, Bytes: 1 << 30, Age: time.Minute})
		j := open(s)
		s.End(j, done(t, "x"))
		s.mu.Lock()
		s.timer.Stop()
		s.mu.Unlock()
		time.Sleep(time.Minute)
		if there(s, j.ID) {
			t.Error("found after its age")
		}
	})
}

// A model of the store: plain slices, and every rule written down once more.
type model struct {
	bounds Bounds
	jobs   []*modelJob // all that ever were
	kept   []*modelJob // in the order of their ends
	bytes  int64
	unread int

	byAge, byJobs, byBytes uint64
	last                   time.Time // when the last evicted one had ended
}

type modelJob struct {
	job     *Job
	state   State
	gone    bool
	read    bool
	ended   time.Time
	started time.Time
	size    int64
	text    string // of the response, or the detail
	key     *Key
}

func (m *model) evict(now time.Time) {
	for len(m.kept) > 0 {
		j := m.kept[0]
		switch {
		case now.Sub(j.ended) >= m.bounds.Age:
			m.byAge++
		case len(m.kept) > m.bounds.Jobs:
			m.byJobs++
		case m.bytes > m.bounds.Bytes:
			m.byBytes++
		default:
			return
		}
		j.gone = true
		m.bytes -= j.size
		if !j.read {
			m.unread--
		}
		m.last = j.ended
		m.kept = m.kept[1:]
	}
}

func (m *model) keep(j *modelJob, now time.Time) {
	m.kept = append(m.kept, j)
	m.bytes += j.size
	m.unread++
	m.evict(now)
}

func TestModel(t *testing.T) {
	steps := 3000
	if testing.Short() {
		steps = 500
	}
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { simulate(t, rand.New(rand.NewPCG(seed, 1)), steps) })
		})
	}
}

func simulate(t *testing.T, r *rand.Rand, steps int) {
	m := &model{bounds: Bounds{Jobs: 60, Bytes: 3 << 19, Age: 30 * time.Minute}}
	s := New(m.bounds)
	byKey := make(map[Key]*modelJob)
	var open []*modelJob
	start := func(j *modelJob) {
		s.Start(j.job)
		if j.started.IsZero() {
			j.state, j.started = Running, time.Now()
		}
	}
	end := func(j *modelJob) {
		o := Outcome{State: Done}
		switch r.IntN(6) {
		case 0:
			o = Outcome{State: Failed, Status: 500, Detail: strings.Repeat("f", r.IntN(100))}
		case 1:
			o = Outcome{State: Canceled, Status: 410}
		}
		j.text = o.Detail
		if o.State == Done {
			n := r.IntN(2000)
			if r.IntN(30) == 0 {
				n = r.IntN(4 * chunkSize)
			}
			j.text = strings.Repeat(string(rune('a'+r.IntN(26))), n)
			o.Response = respond(t, j.text)
		}
		j.state, j.ended = o.State, time.Now()
		ran := !j.started.IsZero()
		if j.key != nil && !ran {
			delete(byKey, *j.key)
		}
		r := record{outcome: o, claimed: j.key != nil && ran}
		j.size = r.size()
		s.End(j.job, o)
	}
	for step := range steps {
		if r.IntN(2) == 0 {
			time.Sleep(time.Duration(r.IntN(30)) * time.Second)
		}
		if r.IntN(500) == 0 {
			time.Sleep(m.bounds.Age)
		}
		// At the very moment of its expiry a record may be there or not; the timer
		// has then run.
		synctest.Wait()
		m.evict(time.Now())

		switch {
		case len(open) < 5 || r.IntN(2) == 0 && len(open) < 40:
			j := &modelJob{job: NewJob(NewID(), nil, Request{}), state: Queued}
			var claim *Claim
			if r.IntN(3) == 0 {
				key := Key{0: byte(r.IntN(20))}
				found, first, err := s.Claim(t.Context(), key, Print{})
				holder := byKey[key]
				if holder != nil && !holder.gone {
					if err != nil || found == nil || found.ID != holder.job.ID {
						t.Fatalf("step %d: the key of %v gives %v, %v", step, holder.job.ID, found, err)
					}
					break
				}
				if err != nil || found != nil {
					t.Fatalf("step %d: a free key gives %v, %v", step, found, err)
				}
				if r.IntN(4) == 0 {
					s.Release(first)
					break
				}
				claim, j.key, byKey[key] = first, &key, j
			}
			s.Add(j.job, claim)
			if r.IntN(10) == 0 {
				s.Withdraw(j.job)
				if claim != nil {
					delete(byKey, *j.key)
				}
				break
			}
			m.jobs = append(m.jobs, j)
			early := r.IntN(10) == 0 // it ends before it is accepted
			if early {
				start(j)
				end(j)
			}
			s.Accept(j.job)
			if early {
				m.keep(j, time.Now())
			} else {
				open = append(open, j)
			}
		case r.IntN(3) == 0:
			j := open[r.IntN(len(open))]
			start(j)
		default:
			i := r.IntN(len(open))
			j := open[i]
			open = append(open[:i], open[i+1:]...)
			end(j)
			m.keep(j, time.Now())
		}

		if len(m.jobs) > 0 && r.IntN(2) == 0 { // one that may be open, read already, or forgotten
			j := m.jobs[max(0, len(m.jobs)-1-r.IntN(90))]
			s.Read(j.job)
			if j.state.Ended() && !j.gone && !j.read {
				j.read = true
				m.unread--
			}
		}

		want := Stats{Open: len(open), Kept: len(m.kept), Bytes: m.bytes, Unread: m.unread, ByAge: m.byAge, ByJobs: m.byJobs, ByBytes: m.byBytes, Reach: m.bounds.Age}
		if !m.last.IsZero() {
			want.Reach = min(want.Reach, time.Since(m.last))
		}
		st := s.Stats()
		if st != want {
			t.Fatalf("step %d: %+v, want %+v", step, st, want)
		}
		// All that can still be there, and of the others those that went last; from
		// time to time all.
		look := m.jobs[max(0, len(m.jobs)-120):]
		if step%500 == 0 || step == steps-1 {
			look = m.jobs
		}
		for _, j := range look {
			found, ok := s.Lookup(j.job.ID.String())
			if ok == j.gone {
				t.Fatalf("step %d: %v, ended %v ago, is there: %v", step, j.state, time.Since(j.ended), ok)
			}
			if j.state.Ended() && time.Since(j.ended) < st.Reach && !ok {
				t.Fatalf("step %d: what ended %v ago is gone, though one can look back for %v", step, time.Since(j.ended), st.Reach)
			}
			if !ok {
				continue
			}
			v := s.View(found)
			if v.State != j.state || j.state.Ended() && !v.Ended.Add(-1).Equal(j.ended) {
				t.Fatalf("step %d: %s, ended %v; want %s, %v", step, v.State, v.Ended, j.state, j.ended)
			}
			switch {
			case j.state != Done:
				if v.Detail != j.text && j.state.Ended() {
					t.Fatalf("step %d: detail %q, want %q", step, v.Detail, j.text)
				}
			case len(j.text) > 4096 && step%20 != 0: // to copy it each time would take too long
			case !bytes.HasSuffix(v.Response.Append(nil), []byte(j.text)):
				t.Fatalf("step %d: another response than the one of %d bytes", step, len(j.text))
			}
		}
	}
	if !testing.Short() && (m.byAge == 0 || m.byJobs == 0 || m.byBytes == 0) {
		t.Errorf("by age %d, by jobs %d, by bytes %d: the simulation leaves out one", m.byAge, m.byJobs, m.byBytes)
	}
}

// What was read stays what it was, though its record is forgotten and the log goes
// on.
func TestReadStaysValid(t *testing.T) {
	s := New(Bounds{Jobs: 3, Bytes: 1 << 30, Age: time.Hour})
	type reading struct {
		v    View
		want []byte
	}
	var read []reading
	for i := range 5000 {
		j := open(s)
		s.End(j, done(t, strings.Repeat(fmt.Sprint(i, " "), 1+i%200)))
		if i%100 == 0 {
			v := lookup(t, s, j)
			read = append(read, reading{v, v.Response.Append(nil)})
			// Neither does its reader reach what comes after it.
			if got := append(v.Response.Append(nil), "xxxx"...); len(got) == 0 {
				t.Fatal()
			}
		}
	}
	if st := s.Stats(); st.Kept != 3 {
		t.Fatalf("%+v", st)
	}
	for i, r := range read {
		if !bytes.Equal(r.v.Response.Append(nil), r.want) {
			t.Errorf("what was read as number %d has changed", i)
		}
	}
}

// End copies the response, of whatever size and whether or not the job is accepted
// already: the memory that it lay in is used for another one at once.
func TestEndCopies(t *testing.T) {
	for _, size := range []int{0, 1, 1000, largeSize - 100, largeSize + 1, 2 * chunkSize} {
		for _, early := range []bool{false, true} {
			s := New(plenty)
			j := NewJob(NewID(), nil, Request{})
			s.Add(j, nil)
			if !early {
				s.Accept(j)
			}
			want := strings.Repeat("m", size)
			raw := respond(t, want).Append(nil)
			s.Start(j)
			s.End(j, Outcome{State: Done, Response: exchange.Cut(raw, nil)})
			for i := range raw {
				raw[i] = 0xff
			}
			if early {
				s.Accept(j)
			}
			if bodyOf(s.View(j).Outcome) != want || bodyOf(lookup(t, s, j).Outcome) != want {
				t.Errorf("%d bytes, ended before it was accepted: %v: the response has changed", size, early)
			}
		}
	}
}

func TestMemoryStaysFlat(t *testing.T) {
	if testing.Short() {
		t.Skip("half a million jobs")
	}
	s := New(Bounds{Jobs: 1000, Bytes: 1 << 30, Age: time.Hour})
	o := done(t, strings.Repeat("x", 100))
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	var before int64
	for i := range 500_000 {
		if i == 20_000 {
			before = heap()
		}
		j := open(s)
		s.Start(j)
		s.End(j, o)
	}
	if grown := heap() - before; grown > 2<<20 {
		t.Errorf("the heap grew by %d KiB", grown>>10)
	}
	if st := s.Stats(); st.Kept != 1000 || st.ByJobs != 499_000 {
		t.Errorf("%+v", st)
	}
}

// Without it a Store that is not used any more would stay, with all it keeps, until
// the last of that is too old.
func TestNobodyKeepsAStore(t *testing.T) {
	s := New(Bounds{Jobs: 10, Bytes: 1 << 20, Age: time.Hour})
	s.End(open(s), done(t, "kept"))
	if s.timer == nil {
		t.Fatal("nothing is kept, or for ever")
	}
	left := weak.Make(s)
	runtime.GC()
	if left.Value() == nil {
		t.Fatal("the store has gone while it was known")
	}
	runtime.KeepAlive(s)
	s = nil
	runtime.GC()
	if left.Value() != nil {
		t.Error("the store is still there")
	}
}

// At the same time others read: nothing is torn.
func TestConcurrent(t *testing.T) {
	s := New(Bounds{Jobs: 50, Bytes: 1 << 20, Age: time.Hour})
	responses := make([]exchange.Response, 10)
	for i := range responses {
		responses[i] = respond(t, strings.Repeat(fmt.Sprint(i), 3000))
	}
	var wg sync.WaitGroup
	var newest [4]atomic.Pointer[Job]
	for w := range newest {
		wg.Go(func() {
			for i := range 1000 {
				j := NewJob(NewID(), nil, Request{})
				j.ID[0] = byte(i % 10) // says which response
				newest[w].Store(j)
				accept(s, j, nil)
				s.Start(j)
				s.End(j, Outcome{State: Done, Response: responses[i%10]})
			}
		})
		wg.Go(func() {
			for range 1000 {
				j := newest[w].Load()
				if j == nil {
					continue
				}
				if found, ok := s.Lookup(j.ID.String()); ok {
					if v := s.View(found); v.State == Done && !bytes.Equal(v.Response.Append(nil), responses[j.ID[0]].Append(nil)) {
						t.Error("a response of another job")
					}
				}
				s.Stats()
			}
		})
	}
	wg.Wait()
	if st := s.Stats(); st.Kept+int(st.ByJobs+st.ByBytes) != 4000 || st.Open != 0 {
		t.Errorf("%+v", st)
	}
}

func TestClaimOneWinner(t *testing.T) {
	for _, by := range []string{"Accept", "Start", "End"} {
		synctest.Test(t, func(t *testing.T) {
			s := New(plenty)
			var winners []*Claim
			var got []ID
			var mu sync.Mutex
			for range 100 {
				go func() {
					j, c, err := s.Claim(t.Context(), Key{1}, Print{2})
					mu.Lock()
					defer mu.Unlock()
					switch {
					case err != nil || (j == nil) == (c == nil):
						t.Errorf("%v, %v, %v", j, c, err)
					case c != nil:
						winners = append(winners, c)
					default:
						got = append(got, j.ID)
					}
				}()
			}
			synctest.Wait()
			if len(winners) != 1 || len(got) != 0 {
				t.Fatalf("%d winners and %d answers while it is undecided", len(winners), len(got))
			}
			j := NewJob(NewID(), nil, Request{})
			s.Add(j, winners[0])
			synctest.Wait()
			if len(got) != 0 {
				t.Fatalf("%d answers while it is undecided", len(got))
			}
			switch by {
			case "Accept":
				s.Accept(j)
			case "Start":
				s.Start(j)
			case "End":
				s.Start(j)
				s.End(j, Outcome{State: Failed})
			}
			s.Withdraw(j)
			s.Release(winners[0]) // neither does anything any more
			synctest.Wait()
			if len(winners) != 1 || len(got) != 99 {
				t.Fatalf("%d winners, %d answers; want 1 and 99", len(winners), len(got))
			}
			for _, id := range got {
				if id != j.ID {
					t.Fatalf("got job %v, want %v", id, j.ID)
				}
			}
			if again, _, err := s.Claim(t.Context(), Key{1}, Print{2}); err != nil || again == nil || again.ID != j.ID {
				t.Errorf("later: %v, %v", again, err)
			}
		})
	}
}

// When the first one gives up, one of those who wait comes next.
func TestClaimRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(plenty)
		_, held, _ := s.Claim(t.Context(), Key{1}, Print{2})
		winners := make(chan *Claim, 10)
		for range 10 {
			go func() {
				if _, c, err := s.Claim(t.Context(), Key{1}, Print{2}); err != nil {
					t.Error(err)
				} else if c != nil {
					winners <- c
				}
			}()
		}
		for i := range 6 {
			synctest.Wait()
			if len(winners) != 0 {
				t.Fatal("two hold the claim")
			}
			if i%2 == 0 { // the dispatcher has refused it
				j := NewJob(NewID(), nil, Request{})
				s.Add(j, held)
				s.Withdraw(j)
			}
			s.Release(held)
			s.Release(held)
			synctest.Wait()
			if len(winners) != 1 {
				t.Fatalf("%d came next, want 1", len(winners))
			}
			held = <-winners
		}
		j := NewJob(NewID(), nil, Request{})
		accept(s, j, held)
		synctest.Wait()
		if len(winners) != 0 {
			t.Error("another claim beside the job")
		}
		// A claim that nobody waits for goes too.
		_, c, _ := s.Claim(t.Context(), Key{2}, Print{})
		s.Release(c)
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.claims) != 1 {
			t.Errorf("%d claims, want the one of the job", len(s.claims))
		}
	})
}

func TestClaimContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(plenty)
		_, held, _ := s.Claim(t.Context(), Key{1}, Print{2})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		j, c, err := s.Claim(ctx, Key{1}, Print{2})
		if j != nil || c != nil || err != context.DeadlineExceeded || time.Since(began) != time.Minute {
			t.Errorf("%v, %v, %v after %v", j, c, err, time.Since(began))
		}
		s.Release(held)
		if _, c, err := s.Claim(t.Context(), Key{1}, Print{2}); c == nil || err != nil {
			t.Errorf("who left is in the way: %v", err)
		}
	})
}

func TestClaimOtherRequest(t *testing.T) {
	s := New(plenty)
	_, c, _ := s.Claim(t.Context(), Key{1}, Print{2})
	other := func(what string) {
		t.Helper()
		if j, c, err := s.Claim(t.Context(), Key{1}, Print{3}); j != nil || c != nil || !errors.Is(err, ErrOtherRequest) {
			t.Errorf("%s: %v, %v, %v", what, j, c, err)
		}
	}
	other("undecided") // and does not wait
	j := NewJob(NewID(), nil, Request{})
	accept(s, j, c)
	other("queued")
	s.Start(j)
	other("running")
	s.End(j, Outcome{State: Failed})
	other("ended")
	if again, _, err := s.Claim(t.Context(), Key{1}, Print{2}); err != nil || again == nil || again.ID != j.ID {
		t.Error("the same request is refused now")
	}
}

// A claim goes with its job, whatever the job goes for.
func TestClaimGoesWithItsJob(t *testing.T) {
	size := (&record{claimed: true}).size()
	for _, test := range []struct {
		name   string
		bounds Bounds
		push   int // jobs that end afterwards
		wait   time.Duration
	}{
		{"jobs", Bounds{Jobs: 2, Bytes: 1 << 40, Age: time.Hour}, 2, 0},
		{"bytes", Bounds{Jobs: 1 << 30, Bytes: 2 * size, Age: time.Hour}, 2, 0},
		{"bytes at once", Bounds{Jobs: 1 << 30, Bytes: size - 1, Age: time.Hour}, 0, 0},
		{"age", Bounds{Jobs: 1 << 30, Bytes: 1 << 40, Age: time.Hour}, 0, time.Hour},
	} {
		for _, early := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				s := New(test.bounds)
				_, c, _ := s.Claim(t.Context(), Key{1}, Print{2})
				j := NewJob(NewID(), nil, Request{})
				s.Add(j, c)
				if !early {
					s.Accept(j)
				}
				s.Start(j)
				s.End(j, Outcome{State: Failed})
				s.Accept(j)
				s.Release(c)
				for range test.push {
					if found, _, _ := s.Claim(t.Context(), Key{1}, Print{2}); found == nil {
						t.Errorf("%s: gone too early", test.name)
					}
					s.End(open(s), Outcome{State: Failed, Detail: strings.Repeat("x", claimSize)})
				}
				time.Sleep(test.wait)
				synctest.Wait()
				s.mu.Lock()
				left := len(s.claims)
				s.mu.Unlock()
				if left != 0 {
					t.Errorf("%s: the claim is left", test.name)
				}
				found, next, err := s.Claim(t.Context(), Key{1}, Print{3}) // another print, even
				if found != nil || next == nil || err != nil {
					t.Fatalf("%s: %v, %v, %v", test.name, found, next, err)
				}
				j2 := NewJob(NewID(), nil, Request{})
				accept(s, j2, next)
				if found, _, _ := s.Claim(t.Context(), Key{1}, Print{3}); found == nil || found.ID != j2.ID {
					t.Errorf("%s: the new claim gives %v", test.name, found)
				}
			})
		}
	}
}

// The key of a job that ended without having run is free: a repeat is a new job, and
// not the old one, that will never run. So it is for those who waited for the first,
// and the end of the old job takes nothing from the new one.
func TestKeyOfAJobThatNeverRan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Bounds{Jobs: 1, Bytes: 1 << 20, Age: time.Hour})
		_, c, _ := s.Claim(t.Context(), Key{1}, Print{2})
		waiting := make(chan *Claim)
		go func() {
			j, c, err := s.Claim(t.Context(), Key{1}, Print{2})
			if j != nil || err != nil {
				t.Errorf("the one who waited gets %v, %v", j, err)
			}
			waiting <- c
		}()
		synctest.Wait()
		never := NewJob(NewID(), nil, Request{})
		s.Add(never, c)
		s.End(never, Outcome{State: Dropped, Status: 410})
		c = <-waiting
		if !there(s, never.ID) {
			t.Error("the dropped job can't be read")
		}
		again := NewJob(NewID(), nil, Request{})
		accept(s, again, c)
		s.End(open(s), Outcome{State: Failed}) // never is forgotten
		if there(s, never.ID) {
			t.Fatal("the bound is not reached")
		}
		if j, _, err := s.Claim(t.Context(), Key{1}, Print{2}); err != nil || j == nil || j.ID != again.ID {
			t.Errorf("a repeat gives %v, %v", j, err)
		}
		s.Start(again)
		s.End(again, Outcome{State: Canceled, Status: 410})
		if j, _, err := s.Claim(t.Context(), Key{1}, Print{2}); err != nil || j == nil || j.ID != again.ID {
			t.Errorf("a repeat of one that was canceled while it ran gives %v, %v", j, err)
		}
	})
}

// Who has the key but not the credentials has another key. No two requests are one
// because bytes stand in another field, or in two instead of one.
func TestKeyOf(t *testing.T) {
	type client struct {
		name         string
		auth, cookie []string
	}
	clients := []client{
		{"k", nil, nil},
		{"K", nil, nil},
		{"k", []string{""}, nil},
		{"k", nil, []string{""}},
		{"k", []string{"a"}, nil},
		{"k", nil, []string{"a"}},
		{"ka", nil, nil},
		{"k", []string{"a", "b"}, nil},
		{"k", []string{"ab"}, nil},
		{"k", []string{"b", "a"}, nil},
		{"k", []string{"a"}, []string{"b"}},
		{"k", []string{"b"}, []string{"a"}},
		{"k", nil, []string{"ab"}},
		{"k", nil, []string{"a", "b"}},
		{"k", []string{"a", ""}, nil},
		{"k", []string{"", "a"}, nil},
		{"k", []string{"a\x01b"}, nil},
		{"k\x01\x01a", nil, nil},
		{"k", []string{strings.Repeat("a", 127)}, nil},
		{"k", []string{strings.Repeat("a", 128)}, nil},
	}
	seen := make(map[Key]client)
	for _, c := range clients {
		r := httptest.NewRequest("POST", "/", nil)
		if c.auth != nil {
			r.Header["Authorization"] = c.auth
		}
		if c.cookie != nil {
			r.Header["Cookie"] = c.cookie
		}
		r.Header.Set("User-Agent", "does not matter")
		key := KeyOf(r, c.name)
		if other, ok := seen[key]; ok {
			t.Errorf("%q has the key of %q", c, other)
		}
		seen[key] = c
		r.Header.Set("User-Agent", "another")
		r.URL.Path = "/other"
		if KeyOf(r, c.name) != key {
			t.Errorf("%q: the key depends on more than the client", c)
		}
	}

	prints := make(map[Print][]string)
	for _, f := range [][]string{
		{"POST", "http://a/b", "c"},
		{"PUT", "http://a/b", "c"},
		{"POST", "http://a/bc", ""},
		{"POST", "http://a/b?", "c"},
		{"POST", "http://a/b?c", ""},
		{"POST", "http://a/b%2F", "c"},
		{"POST", "http://a/b/", "c"},
		{"POST", "http://ab/b", "c"},
		{"POST", "http://a/", "bc"},
		{"POST", "http://a/b", "c\x00"},
		{"POST", "http://a/b", ""},
	} {
		p := PrintOf(httptest.NewRequest(f[0], f[1], nil), []byte(f[2]))
		if other, ok := prints[p]; ok {
			t.Errorf("%q has the print of %q", f, other)
		}
		prints[p] = f
		if PrintOf(httptest.NewRequest(f[0], f[1], nil), []byte(f[2])) != p {
			t.Errorf("%q has two prints", f)
		}
	}
}

// Many keys and clients at once, some of whom give up: never two jobs for a key.
func TestClaimRace(t *testing.T) {
	s := New(plenty)
	var jobs [20]atomic.Pointer[Job]
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 400 {
				k := i % len(jobs)
				j, c, err := s.Claim(t.Context(), Key{byte(k)}, Print{})
				switch {
				case err != nil:
					t.Error(err)
				case c != nil && i < 3*len(jobs) && i%3 != 0:
					s.Release(c)
				case c != nil:
					j = NewJob(NewID(), nil, Request{})
					if !jobs[k].CompareAndSwap(nil, j) {
						t.Error("two jobs for one key")
					}
					accept(s, j, c)
					s.Release(c)
				case jobs[k].Load() == nil || jobs[k].Load().ID != j.ID:
					t.Error("a job of another key")
				}
			}
		})
	}
	wg.Wait()
}
