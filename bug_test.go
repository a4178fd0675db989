package holdfast

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
)

// A worker that is handed a canceled job counts its place as no longer vacated;
// if a sweep begins just then, it passes the job on to abandon, which counts it
// again, and frees a stamp's cell that may be another's by now.
func TestBugCanceledJobMeetsSweep(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	for round := range 60_000 {
		d, err := New(sized(2, 1))
		if err != nil {
			t.Fatal(err)
		}
		for range 5 { // the workers register
			runtime.Gosched()
		}
		var jobs []*Job
		for range 2 {
			jobs = append(jobs, mustSubmit(t, d, nop))
		}
		pause := rand.IntN(3)
		var wg sync.WaitGroup
		for _, j := range jobs {
			wg.Go(j.Cancel)
		}
		wg.Go(func() {
			for range pause {
				runtime.Gosched()
			}
			d.Shutdown(expired)
		})
		wg.Wait()
		<-d.gone
		if st := d.Stats(); st.Vacated != 0 {
			t.Fatalf("round %d: %s", round, brief(st))
		}
	}
}
