package store

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pages returns the pages of a list, from a cursor to the end. Between is called
// after each but the last.
func pages(t testing.TB, s *Store, state State, limit int, between func(page int)) (all [][]Listed) {
	t.Helper()
	var after Cursor
	for {
		page, next, more := s.List(state, after, limit)
		if len(page) > limit {
			t.Fatalf("%d jobs on a page of %d", len(page), limit)
		}
		all = append(all, page)
		if !more {
			return all
		}
		parsed, ok := ParseCursor(next.String())
		if !ok || parsed != next || next == after {
			t.Fatalf("after %+v comes %+v, whose text %q is %+v, %v", after, next, next, parsed, ok)
		}
		after = next
		if between != nil {
			between(len(all))
		}
	}
}

func ids(jobs []Listed) (ids []ID) {
	for _, j := range jobs {
		ids = append(ids, j.ID)
	}
	return ids
}

// names returns the jobs by what the test calls them.
func names(jobs []Listed, name map[ID]string) string {
	var text []string
	for _, j := range jobs {
		text = append(text, name[j.ID])
	}
	return strings.Join(text, " ")
}

func TestListOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(plenty)
		name := make(map[ID]string)
		jobs := make(map[string]*Job)
		for _, n := range strings.Fields("q1 r1 d1 q2 f1 c1 r2 d2 x1 q3") {
			time.Sleep(time.Second)
			jobs[n] = open(s)
			name[jobs[n].ID] = n
		}
		for _, n := range strings.Fields("r2 r1 c1 x1 d2 f1 d1") { // not in the order in which they came
			time.Sleep(time.Second)
			if n[0] != 'c' && n[0] != 'x' {
				s.Start(jobs[n])
			}
			switch n[0] {
			case 'd':
				s.End(jobs[n], done(t, n))
			case 'f':
				s.End(jobs[n], Outcome{State: Failed, Status: 500, Detail: "failed"})
			case 'c':
				s.End(jobs[n], Outcome{State: Canceled, Status: 410, Detail: "canceled"})
			case 'x':
				s.End(jobs[n], Outcome{State: Dropped, Status: 410, Detail: "dropped"})
			}
		}
		for state, want := range map[State]string{
			"":       "q3 r2 q2 r1 q1 d1 f1 d2 x1 c1",
			Queued:   "q3 q2 q1",
			Running:  "r2 r1",
			Done:     "d1 d2",
			Failed:   "f1",
			Canceled: "c1",
			Dropped:  "x1",
			"none":   "",
		} {
			for limit := 1; limit <= 11; limit++ {
				var got []Listed
				all := pages(t, s, state, limit, nil)
				for i, page := range all {
					if i < len(all)-1 && len(page) != limit {
						t.Errorf("%q: page %d of %d has %d jobs, want %d", state, i, len(all), len(page), limit)
					}
					got = append(got, page...)
				}
				if state == "" && len(all[len(all)-1]) == 0 {
					t.Errorf("pages of %d: the last one is empty", limit)
				}
				if names(got, name) != want {
					t.Errorf("%q in pages of %d: %s, want %s", state, limit, names(got, name), want)
				}
				for _, j := range got {
					if want := lookup(t, s, jobs[name[j.ID]]); fmt.Sprint(j.View) != fmt.Sprint(want) {
						t.Errorf("%s is listed as %+v, want %+v", name[j.ID], j.View, want)
					}
				}
			}
		}
		if page, _, more := New(plenty).List("", Cursor{}, 10); len(page) != 0 || more {
			t.Errorf("of no jobs %d are listed, more: %v", len(page), more)
		}
	})
}

// The clock stands still, so all are accepted at one time.
func TestListOrderAtOneTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(plenty)
		var want []ID
		for range 100 {
			want = append(want, open(s).ID)
		}
		slices.SortFunc(want, func(a, b ID) int { return bytes.Compare(a[:], b[:]) })
		for _, limit := range []int{1, 2, 7, 50, 99, 100, 101} {
			if got := ids(slices.Concat(pages(t, s, "", limit, nil)...)); !slices.Equal(got, want) {
				t.Errorf("pages of %d: %d jobs, or not in order", limit, len(got))
			}
		}
	})
}

// Of more than one chunk each record is shown once, whatever the pages; and so it is
// from a chunk of which the oldest records are forgotten.
func TestListChunks(t *testing.T) {
	s := New(Bounds{Jobs: 9000, Bytes: 1 << 40, Age: time.Hour})
	var ended []ID
	for i := range 10_000 {
		j := open(s)
		s.End(j, Outcome{State: Failed, Status: 500, Detail: strings.Repeat("d", i%50)})
		ended = append(ended, j.ID)
	}
	want := slices.Clone(ended[1000:])
	slices.Reverse(want)
	if s.kept.front == 0 || len(s.kept.chunks) < 3 {
		t.Fatalf("%d chunks, the first from %d", len(s.kept.chunks), s.kept.front)
	}
	for _, limit := range []int{10, 77, 1000, 9000, 9001} {
		if got := ids(slices.Concat(pages(t, s, "", limit, nil)...)); !slices.Equal(got, want) {
			t.Errorf("pages of %d: %d jobs, want %d", limit, len(got), len(want))
		}
	}
}

// What List promises of a job that ends between two pages.
func TestListEndsBetweenPages(t *testing.T) {
	for _, test := range []struct {
		ends  string // after the page of this number
		page  int
		state State
		want  string
	}{
		{"", 0, "", "o5 o4 | o3 o2 | o1 e2 | e1"},
		{"o1", 1, "", "o5 o4 | o3 o2 | o1! e2 | e1"}, // not shown yet: as it has ended
		{"o5", 1, "", "o5 o4 | o3 o2 | o1 o5! | e2 e1"},
		{"o5", 3, "", "o5 o4 | o3 o2 | o1 e2 | e1"}, // all have been shown: not again
		{"o1", 3, "", "o5 o4 | o3 o2 | o1 e2 | e1"},
		{"o1", 1, Queued, "o5 o4 | o3 o2"},
		{"o1", 1, Done, "e2 e1"}, // there is one page alone
	} {
		s := New(plenty)
		name := make(map[ID]string)
		jobs := make(map[string]*Job)
		for _, n := range strings.Fields("e1 e2 o1 o2 o3 o4 o5") {
			jobs[n] = open(s)
			name[jobs[n].ID] = n
			if n[0] == 'e' {
				s.End(jobs[n], done(t, n))
			}
			for last := s.now(); s.now() == last; { // where the clock is coarse
			}
		}
		all := pages(t, s, test.state, 2, func(page int) {
			if page == test.page {
				s.End(jobs[test.ends], done(t, "x"))
			}
		})
		var got []string
		for _, page := range all {
			text := names(page, name)
			for _, j := range page {
				if n := name[j.ID]; n[0] == 'o' && j.State.Ended() {
					text = strings.Replace(text, n, n+"!", 1)
				}
			}
			got = append(got, text)
		}
		if text := strings.Join(got, " | "); text != test.want {
			t.Errorf("%s ends after page %d, list of %q: %s, want %s", test.ends, test.page, test.state, text, test.want)
		}
	}
}

// The state is another between two pages: with a state asked for, a job is shown if
// it is in it when its turn comes.
func TestListStartsBetweenPages(t *testing.T) {
	s := New(plenty)
	var jobs []*Job
	for range 10 {
		jobs = append(jobs, open(s))
	}
	slices.SortFunc(jobs, func(a, b *Job) int { return order(a.cursor(), b.cursor()) })
	var want []ID
	for i, j := range jobs {
		if i != 5 {
			want = append(want, j.ID)
		}
	}
	got := ids(slices.Concat(pages(t, s, Queued, 2, func(page int) {
		if page == 1 {
			s.Start(jobs[0])
			s.Start(jobs[5])
		}
	})...))
	if !slices.Equal(got, want) {
		t.Errorf("%d jobs, want all that were queued, and the first, in order", len(got))
	}
}

// What is forgotten between two pages, by number or by age, is the end of the list.
func TestListEvictionBetweenPages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 10_000 // of more than one chunk
		for _, forget := range []string{"all by age", "all by jobs", "half by jobs"} {
			s := New(Bounds{Jobs: n, Bytes: 1 << 40, Age: time.Hour})
			failed := Outcome{State: Failed, Status: 500, Detail: "failed"}
			var want []ID
			for range n {
				j := open(s)
				s.End(j, failed)
				want = append(want, j.ID)
			}
			slices.Reverse(want)
			more := 0 // that come between the pages
			switch forget {
			case "all by jobs":
				more, want = n, want[:100]
			case "half by jobs":
				more, want = n/2, want[:n/2]
			case "all by age":
				want = want[:100]
			}
			got := slices.Concat(pages(t, s, "", 100, func(page int) {
				if page > 1 {
					return
				}
				for range more {
					s.End(open(s), failed)
				}
				if forget == "all by age" {
					time.Sleep(time.Hour)
				}
			})...)
			if !slices.Equal(ids(got), want) {
				t.Errorf("%s: %d jobs, want %d", forget, len(got), len(want))
			}
		}
		// What is too old is not shown even before the timer has come to forget it.
		s := New(Bounds{Jobs: 10, Bytes: 1 << 20, Age: time.Hour})
		s.End(open(s), done(t, "x"))
		s.mu.Lock()
		s.timer.Stop()
		s.mu.Unlock()
		time.Sleep(time.Hour)
		if page, _, more := s.List("", Cursor{}, 10); len(page) != 0 || more {
			t.Errorf("%d jobs that are too old", len(page))
		}
	})
}

// One page looks at a bounded number of records, and the next goes on from there.
func TestListLooksAtSoMany(t *testing.T) {
	s := New(plenty)
	canceled := Outcome{State: Canceled, Status: 410}
	oldest := open(s)
	s.End(oldest, Outcome{State: Dropped, Status: 410})
	for range 2*mostSeen + 10 {
		s.End(open(s), canceled)
	}
	var sizes []int
	all := pages(t, s, Dropped, 10, nil)
	for _, page := range all {
		sizes = append(sizes, len(page))
	}
	if want := []int{0, 0, 1}; !slices.Equal(sizes, want) || all[2][0].ID != oldest.ID {
		t.Errorf("pages of %v, want %v", sizes, want)
	}
}

// A list costs no copy of the responses, neither of those in the log nor of those
// beside it.
func TestListDoesNotCopyResponses(t *testing.T) {
	s := New(plenty)
	const n, size = 100, 1 << 20
	for _, size := range []int{size, largeSize - 200} {
		o := done(t, strings.Repeat("x", size))
		for range n {
			s.End(open(s), o)
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	page, _, more := s.List("", Cursor{}, 2*n)
	runtime.ReadMemStats(&after)
	if len(page) != 2*n || more {
		t.Fatalf("%d jobs", len(page))
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > n*largeSize/4 {
		t.Errorf("a list of %d jobs took %d bytes", len(page), took)
	}
	for i, j := range page {
		if want := []int{largeSize - 200, size}[i/n]; len(bodyOf(j.Outcome)) != want {
			t.Fatalf("job %d has a response of %d bytes, want %d", i, len(bodyOf(j.Outcome)), want)
		}
	}
}

// Within one page each job is shown once, and in the state that was asked for, even
// if it starts and ends while the page is made: the lock is given up in between.
func TestListWhileJobsEnd(t *testing.T) {
	s := New(plenty)
	const n = 30 * atOnce
	jobs := make([]*Job, n)
	for i := range jobs {
		jobs[i] = open(s)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		order := rand.New(rand.NewPCG(1, 2)).Perm(n)
		for _, i := range order {
			s.Start(jobs[i])
		}
		for _, i := range order {
			s.End(jobs[i], Outcome{State: Failed, Status: 500})
		}
	})
	for ended := 0; ended < n; {
		page, _, more := s.List("", Cursor{}, 2*n)
		seen := make(map[ID]bool, n)
		ended = 0
		for _, j := range page {
			if seen[j.ID] {
				t.Fatalf("%v is there twice", j.ID)
			}
			seen[j.ID] = true
			if j.State.Ended() {
				ended++
			} else if ended > 0 {
				t.Fatal("one that has not ended comes after one that has")
			}
		}
		if len(page) != n || more {
			t.Fatalf("%d of %d jobs, more: %v", len(page), n, more)
		}
		for _, state := range []State{Queued, Running, Failed} {
			page, _, _ := s.List(state, Cursor{}, n)
			for _, j := range page {
				if j.State != state {
					t.Fatalf("asked for %s, got one that is %s", state, j.State)
				}
			}
		}
	}
	wg.Wait()
}

// Others accept, start, end and forget jobs while one goes through all pages. What
// is there from the first page to the last is shown: once if it does not end
// meanwhile, else perhaps a second time, on a later page, as ended.
func TestListConcurrent(t *testing.T) {
	const (
		churn   = 20_000
		steady  = 3000
		inHand  = 500
		workers = 2
	)
	// As many are forgotten as end in the test: those that had ended before.
	s := New(Bounds{Jobs: churn + steady, Bytes: 1 << 40, Age: time.Hour})
	failed := Outcome{State: Failed, Status: 500, Detail: "failed"}
	for range churn {
		s.End(open(s), failed)
	}
	still := make(map[ID]bool) // those that do not change, and whether they have ended
	for range steady {
		j := open(s)
		s.End(j, failed)
		still[j.ID] = true
		still[open(s).ID] = false
	}

	var mu sync.Mutex
	present := maps.Collect(maps.All(still)) // and those that are never forgotten again
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 3))
			var mine []*Job
			for range churn / workers {
				j := NewJob(NewID(), nil, Request{})
				accept(s, j, nil)
				mu.Lock()
				present[j.ID] = false
				mu.Unlock()
				if mine = append(mine, j); len(mine) > inHand {
					i := r.IntN(len(mine))
					s.Start(mine[i])
					s.End(mine[i], failed)
					mine[i] = mine[len(mine)-1]
					mine = mine[:len(mine)-1]
				}
			}
		})
	}
	finished := make(chan struct{})
	go func() { wg.Wait(); close(finished) }()
	rounds, twice := 0, 0
	for over := false; !over; rounds++ {
		select {
		case <-finished:
			over = true // one more, when nothing changes
		default:
		}
		mu.Lock()
		before := maps.Clone(present)
		mu.Unlock()
		type sight struct {
			page  int
			ended bool
		}
		seen := make(map[ID]sight)
		for i, page := range pages(t, s, "", 100+rounds%900, nil) {
			for _, j := range page {
				now := sight{i, j.State.Ended()}
				if earlier, ok := seen[j.ID]; ok {
					twice++
					_, unchanged := still[j.ID]
					if unchanged || earlier.ended || !now.ended || earlier.page == i || over {
						t.Fatalf("shown as %+v, and again as %+v; is it one that stays as it is: %v", earlier, now, unchanged)
					}
				}
				if ended, ok := still[j.ID]; ok && ended != now.ended {
					t.Fatalf("ended: %v, want %v", now.ended, ended)
				}
				seen[j.ID] = now
			}
		}
		for id := range before {
			if _, ok := seen[id]; !ok {
				t.Fatalf("of %d jobs that were there %v is not shown", len(before), id)
			}
		}
	}
	if st := s.Stats(); st.ByJobs == 0 {
		t.Errorf("nothing was forgotten: %+v", st)
	}
	t.Logf("%d lists, %d shown a second time as ended", rounds, twice)
}

func TestParseCursor(t *testing.T) {
	id := ID{0: 0xab, 15: 0xff}
	for _, c := range []Cursor{
		{},
		{accepted: 1, id: id},
		{accepted: 1<<63 - 1},
		{ended: true},
		{ended: true, at: place{1<<32 - 1, 1<<32 - 1}},
		{ended: true, at: place{7, 84}},
	} {
		if back, ok := ParseCursor(c.String()); !ok || back != c {
			t.Errorf("%+v became %q, and that %+v, %v", c, c, back, ok)
		}
	}
	text := id.String()
	for _, s := range []string{
		"x", "o", "k", "o.", "k.", "k1", "k1.", "k.1", "k1.1.1", "k01.1", "k1.01", "k+1.1", "k-1.1", "kA.1", "k1_0.1", "k 1.1", "k1.1 ", "k1z141z4.0", "k0.1z141z4",
		"o1", "o1.", "o0." + text, "o." + text, "o-1." + text, "oA." + text, "o1y2p0ij32e8e8." + text, "o1." + strings.ToLower(text), "o1." + text[:25], "o1." + text + "A", "O1." + text, "\x00", "é",
	} {
		if c, ok := ParseCursor(s); ok || c != (Cursor{}) {
			t.Errorf("%q is taken for %+v", s, c)
		}
	}
}

// A text is a Cursor in one way at most, and whatever a client sends, it goes on
// through jobs that there are, each once, to an end.
func FuzzCursor(f *testing.F) {
	s := New(Bounds{Jobs: 500, Bytes: 1 << 40, Age: 1000 * time.Hour})
	for i := range 800 {
		s.End(open(s), Outcome{State: []State{Failed, Canceled}[i%2], Status: 500, Detail: strings.Repeat("d", i%20*200)})
	}
	if s.kept.first == 0 || s.kept.front == 0 || len(s.kept.chunks) < 3 {
		f.Fatalf("%d chunks, the first is number %d from %d; want some that are gone, and one in part", len(s.kept.chunks), s.kept.first, s.kept.front)
	}
	for range 50 {
		open(s)
	}
	all := ids(slices.Concat(pages(f, s, "", 1000, nil)...))
	place := make(map[ID]int)
	for i, id := range all {
		place[id] = i
	}
	_, inOpen, _ := s.List("", Cursor{}, 10)
	_, inLog, _ := s.List("", Cursor{}, 100)
	for _, seed := range []string{"", "o1.AAAAAAAAAAAAAAAAAAAAAAAAAA", "o1y2p0ij32e8e7.AAAAAAAAAAAAAAAAAAAAAAAAAA", "k0.0", "k1.1", "k1.3", "k2.5k", "k1z141z3.1z141z3", "k1.1z141z3", "k1z141z3.0", "x", inOpen.String(), inLog.String()} {
		f.Add(seed, "", uint16(1000))
		f.Add(seed, "failed", uint16(100))
		f.Add(seed, "queued", uint16(7))
	}
	f.Fuzz(func(t *testing.T, text, state string, limit uint16) {
		c, ok := ParseCursor(text)
		if !ok {
			return
		}
		if c.String() != text {
			t.Fatalf("%q is %+v, whose text is %q", text, c, c)
		}
		most := int(limit)%1000 + 1
		last := -1
		for n := 0; ; n++ {
			page, next, more := s.List(State(state), c, most)
			if len(page) > most || n > len(all)/most+2 {
				t.Fatalf("%d jobs on page %d of %d", len(page), n, most)
			}
			for _, j := range page {
				i, ok := place[j.ID]
				if !ok || i <= last || state != "" && string(j.State) != state {
					t.Fatalf("%v (known: %v) is number %d, after %d, and %s", j.ID, ok, i, last, j.State)
				}
				last = i
			}
			if !more {
				return
			}
			c = next
		}
	})
}
