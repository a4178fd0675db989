package admin

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
)

// A newcomer sees that /bbb answers at once and /aaa after the work.
func TestBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, holdfast.Config{Workers: 2, Queue: 3}, nil)
		f.expect(f.do("POST", "/burst", `{"path":"/bbb","jobs":7,"sleep_time":10}`), 202, `{"path":"/bbb","jobs":7,"sleep_time":10}`)
		f.expect(f.do("POST", "/burst", `{"path":"/aaa","jobs":4,"sleep_time":1}`), 202)
		time.Sleep(5 * time.Second)
		s := f.stats()
		if d := s.Dispatcher; d.Running != 2 || d.Queued != 3 || d.Blocked != 2 {
			t.Errorf("%d run, %d wait, %d wait for a place; want 2, 3 and 2", d.Running, d.Queued, d.Blocked)
		}
		if len(s.Bursts) != 2 {
			t.Fatalf("%d bursts, want one for each path", len(s.Bursts))
		}
		sync, async := s.Bursts[0], s.Bursts[1]
		if sync.Path != "/aaa" || sync.Jobs != 4 || sync.Pending != 0 || sync.Answered != 4 || *sync.Answer.P50 < 1 {
			t.Errorf("/aaa: %+v", sync)
		}
		if async.Path != "/bbb" || async.Jobs != 7 || async.SleepTime != 10 || async.Pending != 2 || async.Answered != 5 || *async.Answer.Max != 0 {
			t.Errorf("/bbb: %+v", async)
		}
		f.expect(f.do("DELETE", "/burst", ""), 204)
		synctest.Wait()
		s = f.stats()
		if b := s.Bursts[1]; b.Pending != 0 || b.Stopped != 2 || b.Answered != 5 || s.Dispatcher.Blocked != 0 || s.Dispatcher.Queued != 3 {
			t.Errorf("after the stop: %+v, %+v", b, s.Dispatcher)
		}
		// A stop does not affect later bursts.
		f.expect(f.do("POST", "/burst", `{"path":"/aaa","jobs":2,"sleep_time":0}`), 202)
		synctest.Wait()
		if b := f.stats().Bursts[0]; b.Jobs != 2 || b.Answered != 2 {
			t.Errorf("after a stop: %+v", b)
		}
	})
}

func TestBurstRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, holdfast.Config{Workers: 1, Queue: 1, Overflow: holdfast.Reject}, nil)
		f.expect(f.do("POST", "/burst", `{"path":"/bbb","jobs":10,"sleep_time":1}`), 202)
		synctest.Wait()
		if b := f.stats().Bursts[0]; b.Answered != 2 || b.Refused != 8 || b.Pending != 0 || b.Answer.Count != 2 {
			t.Errorf("%+v, want 2 accepted and 8 refused", b)
		}
	})
}

func TestBurstIsBounded(t *testing.T) {
	// Not in a synctest bubble: with some thousands of goroutines in one, the race
	// detector of Go 1.26 fails now and then.
	open := make(chan struct{})
	f := newFixture(t, holdfast.Config{Workers: 1, Queue: 200}, func(c *Config) {
		c.Demo = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-open })
	})
	for body, says := range map[string]string{
		`{"path":"/ccc","jobs":1}`: "want /aaa or /bbb",
		`{"jobs":1}`:               "want /aaa or /bbb",
		`{"path":"http://evil.example/bbb","jobs":1}`: "want /aaa or /bbb",
		`{"path":"/bbb"}`:                              "jobs is 0; want 1 to 10000",
		`{"path":"/bbb","jobs":-1}`:                    "jobs is -1",
		`{"path":"/bbb","jobs":10001}`:                 "jobs is 10001",
		`{"path":"/bbb","jobs":1,"sleep_time":61}`:     "sleep_time is 61; want 0 to 60",
		`{"path":"/bbb","jobs":1,"sleep_time":-1}`:     "sleep_time is -1",
		`{"path":"/bbb","jobs":1,"sleep_time":0.5}`:    "sleep_time",
		`{"path":"/bbb","jobs":1,"concurrency":1}`:     "concurrency",
		`{"path":"/bbb","jobs":1,"sleep_time":1}extra`: "something follows",
	} {
		f.expect(f.do("POST", "/burst", body), 400, says)
	}
	if st := f.d.Stats(); st.Accepted != 0 {
		t.Errorf("%d jobs accepted", st.Accepted)
	}
	f.expect(f.do("POST", "/burst", `{"path":"/aaa","jobs":6000,"sleep_time":60}`), 202)
	f.expect(f.do("POST", "/burst", `{"path":"/aaa","jobs":4001,"sleep_time":60}`), 429, "6000 requests of earlier bursts")
	f.expect(f.do("POST", "/burst", `{"path":"/bbb","jobs":4000,"sleep_time":0}`), 202)
	close(open)
	for _, path := range []int{0, 1} {
		end := time.Now().Add(30 * time.Second)
		for b := f.stats().Bursts[path]; b.Answered != b.Jobs; b = f.stats().Bursts[path] {
			if time.Now().After(end) {
				t.Fatalf("%+v", b)
			}
			time.Sleep(time.Millisecond)
		}
	}
	f.expect(f.do("POST", "/burst", `{"path":"/aaa","jobs":10000,"sleep_time":0}`), 202)
}

// No server between a burst and the demo recovers from a panic.
func TestBurstOutlivesPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, holdfast.Config{Workers: 1, Queue: 200}, func(c *Config) {
			c.Demo = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
		})
		f.expect(f.do("POST", "/burst", `{"path":"/aaa","jobs":3}`), 202)
		synctest.Wait()
		if b := f.stats().Bursts[0]; b.Refused != 3 || b.Pending != 0 {
			t.Errorf("%+v, want 3 refused", b)
		}
	})
}
