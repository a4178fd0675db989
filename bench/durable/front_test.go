package main

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A recorder calls a handler without a network.
type recorder struct{ handler http.Handler }

func (c *recorder) do(method, target, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.Header.Set("Prefer", "wait=10")
	w := httptest.NewRecorder()
	c.handler.ServeHTTP(w, r)
	return w
}

// A slowQueue has one job, which is accepted after a second. It runs until runs has
// passed since the start, and its end is stored at stored.
type slowQueue struct {
	began        time.Time
	runs, stored time.Duration
	reads        int
	onRead       func()
	lags         bool // between the two it does not know that the job has run
	fails        error
}

func (q *slowQueue) accept(_ context.Context, body []byte) (string, error) {
	time.Sleep(time.Second)
	return "job" + string(body), q.fails
}

func (q *slowQueue) result(_ context.Context, id string) ([]byte, stage, error) {
	q.reads++
	at := time.Since(q.began)
	if q.onRead != nil {
		q.onRead()
	}
	switch {
	case q.fails != nil:
		return nil, open, q.fails
	case id != "job":
		return nil, open, errUnknown
	case at < q.runs:
		return nil, open, nil
	case at < q.stored && !q.lags:
		return nil, ending, nil
	case at < q.stored:
		return nil, open, nil
	}
	return []byte(outcome), done, nil
}

const second = time.Second

var frontCases = []struct {
	name         string
	queue        slowQueue
	ended        time.Duration // when the front is told; never if 0
	id           string
	status       int
	within, upTo time.Duration
	reads        int // at most
}{
	{"it has ended", slowQueue{}, 0, "job", 200, 0, 0, 1},
	{"it is waited for", slowQueue{runs: second, stored: second}, second, "job", 200, second, second, 2},
	{"the end is stored after the worker said so", slowQueue{runs: second, stored: second + 10*time.Millisecond}, second, "job", 200, second + 10*time.Millisecond, second + 14*time.Millisecond, 9},
	{"the same, and the store does not know", slowQueue{runs: second, stored: second + 10*time.Millisecond, lags: true}, second, "job", 200, second + 10*time.Millisecond, second + 14*time.Millisecond, 9},
	{"it is about to end when it is asked for", slowQueue{stored: 10 * time.Millisecond}, 0, "job", 200, 10 * time.Millisecond, 14 * time.Millisecond, 9},
	{"it takes too long", slowQueue{runs: time.Minute, stored: time.Minute}, 0, "job", 202, 10 * second, 10 * second, 1},
	{"unknown", slowQueue{}, 0, "other", 404, 0, 0, 1},
	{"the store fails", slowQueue{fails: errors.New("broken")}, 0, "job", 500, 0, 0, 1},
}

func TestFront(t *testing.T) {
	for _, c := range frontCases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c.queue.began = time.Now()
				f := newFront()
				client := &recorder{f.handler(&c.queue)}
				if c.ended > 0 {
					time.AfterFunc(c.ended, func() { f.ended("job") })
				}
				w := client.do("GET", "/jobs/"+c.id+"/response", "")
				if took := time.Since(c.queue.began); w.Code != c.status || took < c.within || took > c.upTo || c.queue.reads > c.reads {
					t.Errorf("%d after %v and %d reads; want %d after %v to %v and at most %d", w.Code, took, c.queue.reads, c.status, c.within, c.upTo, c.reads)
				}
				if w.Code == 200 && w.Body.String() != outcome {
					t.Errorf("the result is %q", w.Body)
				}
				if c.status != 202 && len(f.waiting) > 0 {
					t.Errorf("%d are still waited for", len(f.waiting))
				}
			})
		})
	}
}

// An end that comes while the store is read is not missed.
func TestFrontEndDuringRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFront()
		q := &slowQueue{began: time.Now(), runs: time.Nanosecond, stored: time.Nanosecond}
		q.onRead = func() {
			if q.reads == 1 { // what it is about to return is no longer so
				time.Sleep(time.Nanosecond)
				f.ended("job")
			}
		}
		w := (&recorder{f.handler(q)}).do("GET", "/jobs/job/response", "")
		if took := time.Since(q.began); w.Code != 200 || took > time.Millisecond {
			t.Errorf("%d after %v; want 200 at once", w.Code, took)
		}
	})
}

func TestFrontAccepts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		q := &slowQueue{}
		client := &recorder{newFront().handler(q)}
		w := client.do("POST", "/work", "-7")
		if took := time.Since(begin); w.Code != 202 || w.Header().Get("Location") != "/jobs/job-7" || took != time.Second {
			t.Errorf("%d with Location %q after %v; want 202 with /jobs/job-7 when it is stored", w.Code, w.Header().Get("Location"), took)
		}
		q.fails = errors.New("no room")
		if w := client.do("POST", "/work", ""); w.Code != 503 || !strings.Contains(w.Body.String(), "no room") {
			t.Errorf("%d %q; want 503 and why", w.Code, w.Body)
		}
	})
}

func TestPreferredWait(t *testing.T) {
	for text, want := range map[string]time.Duration{"": 0, "wait=3": 3 * time.Second, "wait=100": 50 * time.Second, "wait=-1": 0, "wait=x": 0, "respond-async": 0} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Prefer", text)
		if got := preferredWait(r); got != want {
			t.Errorf("Prefer: %s is %v, want %v", text, got, want)
		}
	}
}
