package store

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/budget"
	"holdfast/internal/exchange"
)

// A tape is a journal that writes when it is told to.
type tape struct {
	records [][]byte
	waiting []func(error)
	err     error
}

func (p *tape) Append(b []byte, done func(error)) {
	p.records = append(p.records, slices.Clone(b))
	p.waiting = append(p.waiting, done)
}

func (p *tape) Err() error { return p.err }

// write writes n of the records that wait, or all if n is negative.
func (p *tape) write(n int) {
	for ; n != 0 && len(p.waiting) > 0; n-- {
		done := p.waiting[0]
		p.waiting = p.waiting[1:]
		if done != nil {
			done(nil)
		}
	}
}

func journaled(b Bounds) (*Store, *tape) {
	s, p := New(b), new(tape)
	s.Journaled(p)
	return s, p
}

var wide = Bounds{Jobs: 1000, Bytes: 1 << 30, Age: time.Hour}

// captured returns a job that a journal can have.
func captured(text string) *Job {
	j := NewJob(NewID(), nil, Request{Method: "POST", Target: "/" + text, Route: "POST /"})
	j.Capture([]byte("captured " + text))
	return j
}

// respondWith returns a response with a body, as a handler makes it.
func respondWith(t *testing.T, body string) exchange.Response {
	t.Helper()
	var x exchange.Exchange
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Kept", "yes")
		w.WriteHeader(http.StatusTeapot)
		w.Write([]byte(body))
	})
	x.Capture(h, httptest.NewRequest("POST", "/", nil), nil, 8<<20)
	if err := x.Serve(t.Context()); err != nil {
		t.Fatal(err)
	}
	return x.Response()
}

// replayed returns a store that has read what is on the tape.
func replayed(t *testing.T, b Bounds, p *tape) *Store {
	t.Helper()
	s := New(b)
	s.Journaled(new(tape))
	for i, record := range p.records {
		if err := s.Replay(record); err != nil {
			t.Fatalf("record %d: %v", i, err)
		}
	}
	return s
}

// Without it a client gets 202 for a job that a power failure takes away.
func TestAcceptWaitsForTheJournal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := journaled(wide)
		j := captured("a")
		s.Add(j, nil)
		accepted := make(chan error, 1)
		go func() { accepted <- s.Accept(j) }()
		synctest.Wait()
		select {
		case err := <-accepted:
			t.Fatalf("Accept returned %v before its record was written", err)
		default:
		}
		p.write(-1)
		if err := <-accepted; err != nil {
			t.Fatal(err)
		}
	})
}

// Without it a disk that stands still holds every client for ever.
func TestAcceptGivesUpOnTheJournal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := journaled(wide)
		j := captured("a")
		s.Add(j, nil)
		if err := s.Accept(j); !errors.Is(err, ErrNotStored) {
			t.Errorf("Accept returned %v, want ErrNotStored", err)
		}
		p.err = errors.New("disk full")
		if err := s.Ready(); !errors.Is(err, ErrNotStored) || !strings.Contains(err.Error(), "disk full") {
			t.Errorf("Ready returned %v, want ErrNotStored and why", err)
		}
	})
}

// Without it a restart could take back what a client was told.
func TestEndIsShownWhenWritten(t *testing.T) {
	s, p := journaled(wide)
	j := captured("a")
	s.Add(j, nil)
	s.Start(j)
	p.write(-1)
	v := s.End(j, Outcome{State: Done, Response: respondWith(t, "body")})
	if v.State != Done || v.Ended.IsZero() || v.Response.Status() != http.StatusTeapot {
		t.Errorf("End returned %v ended %v, want how it has ended", v.State, v.Ended)
	}
	if state := s.State(j); state != Running {
		t.Errorf("the job is %s before its end was written, want running", state)
	}
	if again := s.End(j, Outcome{State: Failed}); again.State != Running {
		t.Errorf("a second End returned %s, want running", again.State)
	}
	if s.Start(j) != 0 {
		t.Error("a job that is about to end was started")
	}
	p.write(-1)
	if state := s.State(j); state != Done {
		t.Errorf("the job is %s when its end was written, want done", state)
	}
	if found, ok := s.Lookup(j.ID.String()); !ok || s.State(found) != Done {
		t.Error("the job is not kept")
	}
	if live := s.Live(); live != s.Stats().Bytes {
		t.Errorf("%d bytes of the journal are live, want the %d of the kept job", live, s.Stats().Bytes)
	}
}

// Without it a client is told that its job runs, which the one before has been told is canceled.
func TestCancelWaitsForAnEndOnItsWay(t *testing.T) {
	for _, o := range []Outcome{{State: Canceled}, {State: Failed, Status: 500}} {
		synctest.Test(t, func(t *testing.T) {
			s, p := journaled(wide)
			j := captured("a")
			s.Add(j, nil)
			p.write(-1)
			s.End(j, o)
			told := make(chan View, 1)
			go func() { told <- s.Cancel(j) }()
			synctest.Wait()
			p.write(-1)
			if v := <-told; v.State != o.State {
				t.Errorf("Cancel returned %s, want %s", v.State, o.State)
			}
		})
	}
}

// The response that a handler made must outlast its maker, for as long as the disk takes.
func TestEndCopiesTheResponse(t *testing.T) {
	for _, size := range []int{0, 10, largeSize, largeSize + 1, 1 << 20} {
		s, p := journaled(wide)
		j := captured("a")
		s.Add(j, nil)
		s.Start(j)
		var x exchange.Exchange
		body := strings.Repeat("x", size)
		x.Capture(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write([]byte(body)) }), httptest.NewRequest("POST", "/", nil), nil, 8<<20)
		if err := x.Serve(t.Context()); err != nil {
			t.Fatal(err)
		}
		ended := s.End(j, Outcome{State: Done, Response: x.Retain()})
		x.Release()
		// Others get the memory.
		var y exchange.Exchange
		y.Capture(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write([]byte(strings.Repeat("y", size))) }), httptest.NewRequest("POST", "/", nil), nil, 8<<20)
		if err := y.Serve(t.Context()); err != nil {
			t.Fatal(err)
		}
		w := httptest.NewRecorder()
		if ended.Response.Write(w, "POST"); w.Body.String() != body {
			t.Errorf("%d bytes: what End returned has another body", size)
		}
		p.write(-1)
		for name, s := range map[string]*Store{"memory": s, "replayed": replayed(t, wide, p)} {
			found, ok := s.Lookup(j.ID.String())
			if !ok {
				t.Fatalf("%s, %d bytes: the job is not kept", name, size)
			}
			w := httptest.NewRecorder()
			s.View(found).Response.Write(w, "POST")
			if w.Body.String() != body {
				t.Errorf("%s, %d bytes: another body was kept", name, size)
			}
		}
	}
}

// What a journal has puts everything back: open jobs in order, with what was captured and
// how often they were started, ended ones with their times and response, and keys.
func TestReplay(t *testing.T) {
	s, p := journaled(wide)
	ended := func(text string, o Outcome, key string) *Job {
		j := captured(text)
		s.Add(j, claimOf(t, s, key))
		s.Start(j)
		p.write(-1)
		s.End(j, o)
		p.write(-1)
		return j
	}
	done := ended("done", Outcome{State: Done, Response: respondWith(t, "body")}, "k1")
	failed := ended("failed", Outcome{State: Failed, Status: 504, Detail: "too late"}, "")
	var open []*Job
	for i := range 5 {
		j := captured(fmt.Sprint("open", i))
		s.Add(j, claimOf(t, s, fmt.Sprint("open", i)))
		if i == 2 {
			s.Start(j)
		} else {
			go s.Accept(j)
			waitRecords(t, s, p, j)
		}
		open = append(open, j)
	}
	dropped := captured("dropped")
	s.Add(dropped, claimOf(t, s, "k2"))
	s.End(dropped, Outcome{State: Dropped, Status: 410})
	withdrawn := captured("withdrawn")
	s.Add(withdrawn, nil)
	s.Withdraw(withdrawn)
	p.write(-1)

	again := replayed(t, wide, p)
	for _, want := range []*Job{done, failed, dropped} {
		j, ok := again.Lookup(want.ID.String())
		if !ok {
			t.Fatalf("%s is not there", want.request.Target)
		}
		before, _ := s.Lookup(want.ID.String())
		got, had := again.View(j), s.View(before)
		for _, times := range [][2]time.Time{{got.Accepted, had.Accepted}, {got.Started, had.Started}, {got.Ended, had.Ended}} {
			if d := times[0].Sub(times[1]).Abs(); d > time.Second || times[0].IsZero() != times[1].IsZero() {
				t.Errorf("%s: a time is %v, was %v", want.request.Target, times[0], times[1])
			}
		}
		if got.State != had.State || got.Detail != had.Detail || got.Outcome.Status != had.Outcome.Status || got.Request != had.Request {
			t.Errorf("%s: is %+v, was %+v", want.request.Target, got, had)
		}
	}
	restored := again.Restored()
	if len(restored) != len(open) {
		t.Fatalf("%d jobs are open, want %d", len(restored), len(open))
	}
	for i, r := range restored {
		starts := 0
		if i == 2 {
			starts = 1
		}
		if r.ID != open[i].ID || string(r.Captured) != fmt.Sprint("captured open", i) || r.Deaths != starts || again.State(r.Job) != Queued {
			t.Errorf("job %d is %s with %q, started %d times and %s", i, r.ID.Short(), r.Captured, r.Deaths, again.State(r.Job))
		}
	}
	for key, want := range map[string]*Job{"k1": done, "open3": open[3]} {
		if j, _, err := again.Claim(t.Context(), keyOf(key), Print{}); err != nil || j == nil || j.ID != want.ID {
			t.Errorf("key %s leads to %v, %v, want its job", key, j, err)
		}
	}
	if j, claim, err := again.Claim(t.Context(), keyOf("k2"), Print{}); err != nil || claim == nil {
		t.Errorf("the key of a job that never ran leads to %v, %v, want a claim", j, err)
	}
	if _, ok := again.Lookup(withdrawn.ID.String()); ok {
		t.Error("a job that was refused has come to life")
	}
}

func keyOf(text string) (k Key) {
	copy(k[:], text)
	return k
}

// claimOf returns a claim under a key, or nil if it is empty.
func claimOf(t *testing.T, s *Store, key string) *Claim {
	t.Helper()
	if key == "" {
		return nil
	}
	_, claim, err := s.Claim(t.Context(), keyOf(key), Print{})
	if err != nil || claim == nil {
		t.Fatalf("no claim of %q: %v", key, err)
	}
	return claim
}

// waitRecords waits until the acceptance of j is on the tape.
func waitRecords(t *testing.T, s *Store, p *tape, j *Job) {
	t.Helper()
	for {
		s.mu.Lock()
		accepted := j.accepted > 0
		s.mu.Unlock()
		if accepted {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// Without it an ended job comes to life when its record was copied behind its end, or an
// open one is lost with the old part of the journal.
func TestCopyIfAlive(t *testing.T) {
	s, p := journaled(wide)
	add := func(text string) *Job {
		j := captured(text)
		s.Add(j, nil)
		s.Start(j)
		p.write(-1)
		return j
	}
	open, ending, kept, gone := add("open"), add("ending"), add("kept"), add("gone")
	s.End(gone, Outcome{State: Failed, Status: 500})
	s.End(kept, Outcome{State: Failed, Status: 500})
	p.write(-1)
	s.bounds.Jobs = 1
	s.mu.Lock()
	s.evictLocked(s.now())
	s.mu.Unlock()
	s.End(ending, Outcome{State: Failed, Status: 500})

	old := p.records
	p.records = nil
	for _, b := range old {
		s.CopyIfAlive(b)
	}
	var copied []string
	for _, b := range p.records {
		copied = append(copied, fmt.Sprint(b[0], ID(b[1:headSize]).Short()))
	}
	want := []string{fmt.Sprint(kindAccept, open.ID.Short()), fmt.Sprint(kindStart, open.ID.Short()), fmt.Sprint(kindEnd, kept.ID.Short())}
	slices.Sort(copied)
	slices.Sort(want)
	if !slices.Equal(copied, want) {
		t.Errorf("copied %v, want %v", copied, want)
	}
	// Both copies there, as after a crash in the middle.
	p.records = append(old, p.records...)
	again := replayed(t, wide, p)
	if r := again.Restored(); len(r) != 1 || r[0].ID != open.ID || r[0].Deaths != 1 {
		t.Errorf("open after the copy: %v", r)
	}
}

// Whatever a folder has that this version did not write is refused, not half read.
func TestReplayRefuses(t *testing.T) {
	s, p := journaled(wide)
	j := captured("a")
	s.Add(j, nil)
	s.Start(j)
	s.End(j, Outcome{State: Done, Response: respondWith(t, "body")})
	for _, whole := range p.records {
		for n := range len(whole) {
			cut := New(wide)
			cut.Journaled(new(tape))
			if err := cut.Replay(whole[:n:n]); err == nil && !(whole[0] == kindAccept && n >= acceptSize+j.request.size()) {
				t.Fatalf("a record of kind %d cut to %d of %d bytes is taken", whole[0], n, len(whole))
			}
		}
		whole = slices.Clone(whole)
		whole[0] = 99
		if err := New(wide).Replay(whole); err == nil {
			t.Error("a record of an unknown kind is taken")
		}
	}
}

// Without it a restart frees the key of a job that waits, since an older job, which the key
// had led to before it was forgotten, is forgotten once more.
func TestReplayOfAKeyThatWasUsedAgain(t *testing.T) {
	s, p := journaled(Bounds{Jobs: 1, Bytes: 1 << 30, Age: time.Hour})
	run := func(key string) *Job {
		j := captured(key)
		s.Add(j, claimOf(t, s, key))
		s.Start(j)
		s.End(j, Outcome{State: Failed, Status: 500})
		p.write(-1)
		return j
	}
	old := run("k")
	run("other") // the first one is forgotten
	open := captured("open")
	s.Add(open, claimOf(t, s, "k"))
	go s.Accept(open)
	waitRecords(t, s, p, open)
	p.write(-1)
	copied := replayed(t, wide, p) // which keeps more, so all is there again
	more := new(tape)
	copied.journal = more
	for _, b := range p.records {
		copied.CopyIfAlive(b)
	}
	for name, records := range map[string][][]byte{
		"replayed": p.records, "copied": append(slices.Clone(p.records), more.records...),
		"copied and cut": append(slices.Clone(p.records[6:]), more.records...),
		"ends last":      append(slices.Clone(p.records[6:]), more.records[0:2]...),
	} {
		for kept, b := range map[string]Bounds{"all": wide, "one": {Jobs: 1, Bytes: 1 << 30, Age: time.Hour}} {
			again := replayed(t, b, &tape{records: records})
			again.Restored()
			c := again.claims[keyOf("k")]
			if c == nil || c.job != open.ID {
				t.Errorf("%s, %s kept: the key leads to %v, want the open job and not %s", name, kept, c, old.ID.Short())
			}
		}
	}
}

// Likewise, where the older job became too old.
func TestReplayOfAKeyThatExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := journaled(wide)
		old, open := captured("old"), captured("open")
		s.Add(old, claimOf(t, s, "k"))
		s.Start(old)
		s.End(old, Outcome{State: Failed, Status: 500})
		p.write(-1)
		time.Sleep(wide.Age + time.Second)
		s.Add(open, claimOf(t, s, "k"))
		s.Start(open)
		p.write(-1)
		again := replayed(t, wide, p)
		again.Restored()
		if j, _, err := again.Claim(t.Context(), keyOf("k"), Print{}); err != nil || j == nil || j.ID != open.ID {
			t.Errorf("the key leads to %v, %v, want the open job", j, err)
		}
	})
}

// Without it a job whose acceptance was copied counts its starts from 1 again after a
// restart, once its start lies before the copy.
func TestCopyKeepsStarts(t *testing.T) {
	s, p := journaled(wide)
	j := captured("a")
	s.Add(j, nil)
	s.Start(j)
	p.write(-1)
	old := p.records
	p.records = nil
	s.CopyIfAlive(old[0]) // the part that goes ends between the two
	p.records = append(old[1:], p.records...)
	if r := replayed(t, wide, p).Restored(); len(r) != 1 || r[0].Deaths != 1 {
		t.Errorf("open after the copy: %+v, want one job that was started once", r)
	}
}

// Without it the repeat of a request is answered with the job of the first, whose client
// was told that it could not be stored, and which comes to nothing.
func TestClaimOfAJobThatWasGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := journaled(wide)
		j := captured("a")
		s.Add(j, claimOf(t, s, "k"))
		if err := s.Accept(j); !errors.Is(err, ErrNotStored) {
			t.Fatalf("Accept returned %v, want ErrNotStored", err)
		}
		s.End(j, Outcome{State: Canceled, Status: 410})
		got := make(chan *Job, 1)
		go func() {
			again, _, err := s.Claim(t.Context(), keyOf("k"), Print{})
			if err != nil {
				t.Error(err)
			}
			got <- again
		}()
		synctest.Wait()
		p.write(1) // the acceptance, and not the end yet
		synctest.Wait()
		p.write(1)
		if again := <-got; again != nil {
			t.Errorf("the repeat got the job that was given up, %s; want a claim", s.State(again))
		}
	})
}

// Without it who repeats a request while the disk stands still waits for ever.
func TestClaimGivesUpOnTheJournal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := journaled(wide)
		j := captured("a")
		s.Add(j, claimOf(t, s, "k"))
		accepted := make(chan error, 1)
		repeated := make(chan error, 1)
		go func() {
			_, _, err := s.Claim(t.Context(), keyOf("k"), Print{})
			repeated <- err
		}()
		time.Sleep(time.Minute) // it has no place
		go func() { accepted <- s.Accept(j) }()
		time.Sleep(2*storeTimeout + time.Second)
		select {
		case err := <-repeated:
			if !errors.Is(err, ErrNotStored) {
				t.Errorf("Claim returned %v, want ErrNotStored", err)
			}
		default:
			t.Error("Claim still waits")
		}
		<-accepted
	})
}

// The bounds on what is kept are of the order of the ends, also where copies of old ends lie
// behind newer ones.
func TestReplaySortsCopies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := journaled(wide)
		var jobs []*Job
		var ends [][]byte
		for i := range 4 {
			j := captured(fmt.Sprint(i))
			s.Add(j, nil)
			s.Start(j)
			p.write(-1)
			body := strings.Repeat("x", (i%2)*(largeSize+1))
			s.End(j, Outcome{State: Done, Response: respondWith(t, body)})
			p.write(-1)
			jobs, ends = append(jobs, j), append(ends, p.records[len(p.records)-1])
			time.Sleep(time.Minute)
		}
		p.records = [][]byte{ends[2], ends[3], ends[0], ends[1]}
		two := wide
		two.Jobs = 2
		two.Memory = budget.New(64<<20, nil, nil)
		again := replayed(t, two, p)
		again.Restored()
		for i, j := range jobs {
			if _, ok := again.Lookup(j.ID.String()); ok != (i >= 2) {
				t.Errorf("job %d is there: %v", i, ok)
			}
		}
		time.Sleep(wide.Age)
		if st := again.Stats(); st.Kept != 0 || st.Bytes != 0 || two.Memory.Held() > chunkSize {
			t.Errorf("%+v and %d bytes are held when all are too old", st, two.Memory.Held())
		}
	})
}

// A shutdown that cuts a job off is told apart from a process that died.
func TestCut(t *testing.T) {
	s, p := journaled(wide)
	running, queued := captured("running"), captured("queued")
	for _, j := range []*Job{running, queued} {
		s.Add(j, nil)
		go s.Accept(j)
		waitRecords(t, s, p, j)
	}
	s.Start(running)
	s.CutOff()
	for _, r := range replayed(t, wide, p).Restored() {
		if r.Deaths != 0 {
			t.Errorf("%s: %d deaths", r.Captured, r.Deaths)
		}
	}
	p.records = p.records[:3] // without the record of the cut
	for i, r := range replayed(t, wide, p).Restored() {
		if r.Deaths != 1-i {
			t.Errorf("%s: %d deaths", r.Captured, r.Deaths)
		}
	}
}

// Without it a disk that stands still lets jobs that end take any amount of memory.
func TestWaitingEndsAreCounted(t *testing.T) {
	b := wide
	b.Memory = budget.New(64<<20, nil, nil)
	s, p := journaled(b)
	j := captured("a")
	s.Add(j, nil)
	s.Start(j)
	before := b.Memory.Held()
	s.End(j, Outcome{State: Failed, Detail: strings.Repeat("d", 1<<20)})
	if held := b.Memory.Held() - before; held < 1<<20 {
		t.Errorf("%d bytes are held for an end of 1 MiB that waits for the disk", held)
	}
	p.write(-1)
	s.mu.Lock()
	s.bounds.Jobs = 0
	s.evictLocked(s.now())
	s.mu.Unlock()
	if held := b.Memory.Held() - before; held > chunkSize {
		t.Errorf("%d bytes are held when the job is forgotten", held)
	}
}
