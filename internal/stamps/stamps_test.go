package stamps

import (
	"math"
	"math/rand/v2"
	"sync"
	"testing"
)

// Compared with a plain list: whatever is claimed, voided and freed in any order,
// the oldest is the least time of those in use.
func TestOldest(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{0, 1, 2, 3, 64, 100} {
		s := New(n)
		if s.Len() < n || s.Len()&(s.Len()-1) != 0 {
			t.Fatalf("New(%d) has %d cells", n, s.Len())
		}
		type job struct {
			cell *Cell
			at   int64
			void bool
		}
		var jobs []job
		for number := range uint64(3000) {
			if len(jobs) < s.Len() && r.IntN(2) == 0 { // every cell can be had, also the last
				at := 1 + r.Int64N(1000)
				jobs = append(jobs, job{s.Claim(number, at), at, false})
			} else if len(jobs) > 0 {
				i := r.IntN(len(jobs))
				if r.IntN(4) == 0 {
					jobs[i].cell.Void()
					jobs[i].void = true
				} else {
					if at := jobs[i].cell.Free(); !jobs[i].void && at != jobs[i].at {
						t.Fatalf("freed %d, want %d", at, jobs[i].at)
					}
					jobs = append(jobs[:i], jobs[i+1:]...)
				}
			}
			want := int64(math.MaxInt64)
			for _, j := range jobs {
				if !j.void {
					want = min(want, j.at)
				}
			}
			if got := s.Oldest(); got != want {
				t.Fatalf("the oldest is %d, want %d", got, want)
			}
		}
	}
}

// As many jobs at once as there are cells: each gets one of its own.
func TestClaimAtOnce(t *testing.T) {
	s := New(64)
	var wg sync.WaitGroup
	for g := range s.Len() {
		wg.Go(func() {
			for i := range 500 {
				at := int64(g*1000 + i + 1)
				if got := s.Claim(uint64(i), at).Free(); got != at {
					t.Errorf("a cell of two jobs: %d, want %d", got, at)
				}
			}
		})
	}
	wg.Wait()
	if s.Oldest() != math.MaxInt64 {
		t.Error("a cell is left in use")
	}
}
