package store

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"holdfast/internal/budget"
)

// kept adds a job that has ended with a body of size bytes.
func kept(t *testing.T, s *Store, size int) *Job {
	t.Helper()
	j := NewJob(NewID(), nil, Request{})
	s.Add(j, nil)
	s.Accept(j)
	s.Start(j)
	s.End(j, Outcome{State: Done, Response: respond(t, strings.Repeat("m", size))})
	return j
}

func withMemory(limit int64) (*Store, *budget.Budget) {
	var s *Store
	b := budget.New(limit, func(need int64, enough func() bool) { s.Yield(need, enough) }, nil)
	s = New(Bounds{Jobs: 1_000_000, Bytes: 1 << 40, Age: time.Hour, Memory: b})
	return s, b
}

func present(s *Store, j *Job) bool {
	_, ok := s.Lookup(j.ID.String())
	return ok
}

// What is kept gives way to what is new: the oldest first, but what is being read last.
func TestYield(t *testing.T) {
	s, b := withMemory(10 << 20)
	var jobs []*Job
	for range 8 {
		jobs = append(jobs, kept(t, s, 1<<20))
	}
	read := s.View(jobs[0]).Response.Held()
	read.Hold()
	var h budget.Hold
	h.Open(b, 0)
	if !h.Reserve(5 << 19) {
		t.Fatal("2.5 MiB are not there although 8 could go")
	}
	for i, want := range []bool{true, false, false, true, true, true, true, true} {
		if present(s, jobs[i]) != want {
			t.Errorf("job %d is there: %v, want %v", i, !want, want)
		}
	}
	if page, _, _ := s.List("", Cursor{}, 100); len(page) != 6 {
		t.Errorf("the list has %d jobs, want 6", len(page))
	}
	if h.Reserve(9 << 20) {
		t.Error("memory that is being read is given away")
	}
	if st := s.Stats(); st.Kept != 6 || st.ByBytes != 2 {
		t.Errorf("%+v; want none evicted in vain, so 6 kept and 2 evicted", st)
	}
	read.Release()
	if !h.Reserve(6<<20) || present(s, jobs[0]) {
		t.Error("what was read does not give way when its reader is done")
	}
	h.Close()
}

// A small response does not go for nothing: it gives back no memory where a large one beside
// it gives enough.
func TestYieldLargeFirst(t *testing.T) {
	s, b := withMemory(4 << 20)
	var small []*Job
	for range 10 {
		small = append(small, kept(t, s, 1000))
	}
	large := kept(t, s, 2<<20)
	var h budget.Hold
	h.Open(b, 0)
	if !h.Reserve(2<<20) || present(s, large) {
		t.Error("the large one does not give way")
	}
	for i, j := range small {
		if !present(s, j) {
			t.Errorf("number %d of the small ones has given way before it", i)
		}
	}
	h.Close()
}

// A response that is forgotten while it is being read stays counted.
func TestForgottenStaysCounted(t *testing.T) {
	for _, size := range []int{1000, 1 << 20} {
		s, b := withMemory(100 << 20)
		s.bounds.Jobs = 1
		j := kept(t, s, size)
		v := s.View(j)
		v.Response.Held().Hold()
		for range 2000 { // so that its chunk has gone
			kept(t, s, 1000)
		}
		if present(s, j) {
			t.Fatal("the job is still there")
		}
		before := b.Held()
		v.Response.Held().Release()
		if freed := before - b.Held(); freed < int64(size) {
			t.Errorf("%d bytes: its last reader gives back %d", size, freed)
		}
	}
}

// Small responses give way by the chunk, and a chunk that is read stays.
func TestYieldChunks(t *testing.T) {
	s, b := withMemory(4 << 20)
	first := kept(t, s, 1000)
	held := s.View(first).Response.Held()
	held.Hold()
	var newest *Job
	for range 6_000 {
		newest = kept(t, s, 1000)
	}
	if b.Held() > 4<<20 {
		t.Errorf("%d bytes are held of 4 MiB", b.Held())
	}
	st := s.Stats()
	if !present(s, first) || st.ByBytes == 0 || st.Kept < 2000 {
		t.Errorf("%+v, the one that is read is there: %v", st, present(s, first))
	}
	held.Release()
	var h budget.Hold
	h.Open(b, 0)
	const most = 13 << 18 // of 4 MiB, for one
	if !h.Reserve(most) || s.Stats().Kept > 300 || b.Held() > most+2*chunkSize {
		t.Errorf("all but the newest can go, but %+v, %d held", s.Stats(), b.Held())
	}
	// Without it, a client whose job has just ended finds that its result has gone.
	if !present(s, newest) || h.Reserve(chunkSize) || !present(s, newest) {
		t.Errorf("the newest result has given way: %+v, %d held", s.Stats(), b.Held())
	}
	h.Close()
}

// Whatever goes in whatever order, the list and the lookup agree, and nothing is left.
func TestYieldProperty(t *testing.T) {
	for seed := range uint64(8) {
		random := rand.New(rand.NewPCG(seed, 1))
		s, b := withMemory(3 << 20)
		var jobs []*Job
		var readers []*budget.Shared
		for range 600 {
			size := random.IntN(2000)
			if random.IntN(8) == 0 {
				size = random.IntN(400_000)
			}
			jobs = append(jobs, kept(t, s, size))
			if random.IntN(10) == 0 && len(readers) < 8 {
				held := s.View(jobs[len(jobs)-1]).Response.Held()
				held.Hold()
				readers = append(readers, held)
			} else if len(readers) > 0 && random.IntN(4) == 0 {
				readers[0].Release()
				readers = readers[1:]
			}
			if random.IntN(30) == 0 {
				var h budget.Hold
				h.Open(b, 0)
				h.Reserve(random.Int64N(3 << 20))
				h.Close()
			}
		}
		agree(t, s, jobs, seed)
		for _, r := range readers {
			r.Release()
		}
		s.mu.Lock()
		s.bounds.Jobs = 0
		s.evictLocked(s.now())
		s.mu.Unlock()
		if b.Held() != 0 || s.Stats().Bytes != 0 || len(s.kept.chunks) != 0 {
			t.Fatalf("seed %d: at the end %d held, %+v, %d chunks", seed, b.Held(), s.Stats(), len(s.kept.chunks))
		}
	}
}

// agree checks that the list has what can be found, the last ended first.
func agree(t *testing.T, s *Store, jobs []*Job, seed uint64) {
	t.Helper()
	var want, got []string
	for i := len(jobs) - 1; i >= 0; i-- {
		if present(s, jobs[i]) {
			want = append(want, jobs[i].ID.Short())
		}
	}
	var after Cursor
	for more := true; more; {
		var page []Listed
		page, after, more = s.List("", after, 7)
		for _, l := range page {
			got = append(got, l.ID.Short())
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) || len(want) != s.Stats().Kept {
		t.Fatalf("seed %d: the list has %d jobs, %d can be found, and %d are kept", seed, len(got), len(want), s.Stats().Kept)
	}
}
