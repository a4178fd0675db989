package holdfast

import (
	"context"
	"errors"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestProbeResizeUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := New(Config{Workers: -1, Queue: 1})
		hold := make(chan struct{})
		job := func(context.Context) error { <-hold; return nil }
		d.Go(t.Context(), job)
		go d.Go(t.Context(), job)
		synctest.Wait()
		d.Resize(1)
		synctest.Wait()
		st := d.Stats()
		t.Logf("%d queued %d running %d blocked, free %d", st.Queued, st.Running, st.Blocked, free(d.word.Load()))
		if st.Blocked > 0 {
			t.Error("lost")
		}
		close(hold)
		d.Shutdown(context.Background())
	})
}

func TestProbeCause(t *testing.T) {
	d, _ := New(Config{Workers: 1, Queue: 1})
	ctx, cancel := context.WithCancelCause(context.Background())
	go1 := make(chan struct{})
	j, _ := d.Submit(ctx, func(c context.Context) error {
		<-go1
		if err := context.Cause(c); err != nil {
			t.Error("cause", err)
		}
		return nil
	})
	cancel(errors.New("mine"))
	close(go1)
	j.Wait(context.Background())
	d.Shutdown(context.Background())
}

func TestProbeTimeout(t *testing.T) {
	d, _ := New(Config{Workers: 1, Queue: 1, JobTimeout: math.MaxInt64})
	j, _ := d.Submit(context.Background(), func(c context.Context) error { return c.Err() })
	if err := j.Wait(context.Background()); err != nil {
		t.Error(err)
	}
	d.Shutdown(context.Background())
}

func TestProbeStampLeak(t *testing.T) {
	d, _ := New(Config{Workers: 1, Queue: 7})
	end := time.Now().Add(10 * time.Second)
	var wg sync.WaitGroup
	n := 0
	for time.Now().Before(end) {
		n++
		j, _ := d.Submit(context.Background(), func(c context.Context) error { return nil })
		wg.Go(func() { j.Cancel() })
		wg.Wait()
		j.Wait(context.Background())
		if n%1000 == 0 {
			for _, s := range d.allStamps {
				for i := range s.cells {
					if v := s.cells[i].Load(); v != 0 {
						t.Fatalf("after %d: cell %d is %d", n, i, v)
					}
				}
			}
		}
	}
	t.Log(n)
	d.Shutdown(context.Background())
}
