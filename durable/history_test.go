package durable

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// An operation is what a client did and saw. What it was told held at some moment between
// from and to.
type operation struct {
	from, to time.Time
	key      string // of an accept; "" if it had none
	job      string // its URL
	accept   bool
	missing  bool   // it was answered with 404
	state    string // that the answer tells; "" if it tells none
	body     string // of a response
}

// A history is what all clients did and saw.
type history struct {
	mu  sync.Mutex
	all []operation
}

func (h *history) add(o operation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = append(h.all, o)
}

// faults checks whether the history is one of a store that is in one place: whether the
// operations on each job, and on each key, have an order in which every answer is right and
// which does not contradict the clocks of the clients. A job goes from open to one end and
// stays there, and a key gets one job, so such an order exists if and only if nothing is
// told after the end, or after the acceptance, that is true only before it, and there is
// one end, one response and one job of a key.
func (h *history) faults() (faults []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	type job struct {
		accepted, ended time.Time // the earliest that an answer said so
		state, body     string
	}
	jobs, keys := make(map[string]*job), make(map[string]string)
	fault := func(o operation, format string, args ...any) {
		faults = append(faults, fmt.Sprintf("%s, %v to %v: ", o.job, o.from.Format("05.000"), o.to.Format("05.000"))+fmt.Sprintf(format, args...))
	}
	first := func(t *time.Time, at time.Time) {
		if t.IsZero() || at.Before(*t) {
			*t = at
		}
	}
	for _, o := range h.all {
		if jobs[o.job] == nil {
			jobs[o.job] = new(job)
		}
		j := jobs[o.job]
		if !o.missing {
			first(&j.accepted, o.to)
		}
		if had, ok := keys[o.key]; o.key != "" && ok && had != o.job {
			fault(o, "the key %s led to %s before", o.key, had)
		} else if o.key != "" {
			keys[o.key] = o.job
		}
		if ended(o.state) {
			first(&j.ended, o.to)
			if j.state != "" && j.state != o.state {
				fault(o, "it has ended as %s, and as %s", j.state, o.state)
			}
			j.state = o.state
		}
		if o.body != "" && j.body != "" && j.body != o.body {
			fault(o, "its response is %.40q, and %.40q", j.body, o.body)
		}
		j.body = max(j.body, o.body)
	}
	for _, o := range h.all {
		switch j := jobs[o.job]; {
		case o.missing && !j.accepted.IsZero() && o.from.After(j.accepted):
			fault(o, "it is unknown after it was accepted")
		case !o.accept && !o.missing && !ended(o.state) && !j.ended.IsZero() && o.from.After(j.ended):
			fault(o, "it is %s after it has ended as %s", o.state, j.state)
		}
	}
	return faults
}

func ended(state string) bool { return state != "" && state != "queued" && state != "running" }

// A shelf is a store of jobs with a fault.
type shelf struct {
	fault string
	mu    sync.Mutex
	jobs  []string // the states
	keys  map[string]int
	asked int
}

func (s *shelf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	if r.Method == "POST" {
		key := r.Header.Get("Idempotency-Key")
		n, known := s.keys[key]
		if !known || key == "" || s.fault == "key" && s.asked%7 == 0 {
			n = len(s.jobs)
			s.jobs = append(s.jobs, "queued")
			s.keys[key] = n
		}
		w.Header().Set("Location", fmt.Sprint("/jobs/", n))
		w.WriteHeader(http.StatusAccepted)
		return
	}
	var n int
	fmt.Sscanf(r.URL.Path, "/jobs/%d", &n)
	strange := s.asked%11 == 0
	switch {
	case strange && s.fault == "loses":
		w.WriteHeader(http.StatusNotFound)
		return
	case strange && s.fault == "stale":
		fmt.Fprint(w, `{"state":"running"}`)
		return
	case strange && s.fault == "turns" && s.jobs[n] == "done":
		s.jobs[n] = "canceled"
	case r.Method == "DELETE" && s.jobs[n] == "queued":
		s.jobs[n] = "canceled"
	case s.jobs[n] == "queued" && s.asked%3 == 0:
		s.jobs[n] = "done"
	}
	if strings.HasSuffix(r.URL.Path, "/response") {
		w.Header().Set("Job-State", s.jobs[n])
		if s.jobs[n] == "done" {
			fmt.Fprint(w, "response ", n)
			if strange && s.fault == "response" {
				fmt.Fprint(w, " of another")
			}
		}
		return
	}
	fmt.Fprintf(w, `{"state":%q}`, s.jobs[n])
}

// The check of a history finds the faults that a store may have, and none in a store that
// has none.
func TestHistory(t *testing.T) {
	for _, fault := range []string{"", "key", "loses", "stale", "turns", "response"} {
		s := &shelf{fault: fault, keys: make(map[string]int)}
		server := httptest.NewServer(s)
		c := &crew{history: new(history), rng: rand.New(rand.NewPCG(14, 0)), ask: func(method, path, body string, header ...string) (int, http.Header, string, error) {
			return request(server.URL+path, method, body, header...)
		}}
		for n := range 300 {
			c.act(n)
		}
		server.Close()
		if found := c.history.faults(); (len(found) > 0) != (fault != "") {
			t.Errorf("the store with the fault %q: %d faults found, such as %v", fault, len(found), found[:min(len(found), 3)])
		}
	}
}

func request(url, method, body string, header ...string) (int, http.Header, string, error) {
	r, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return 0, nil, "", err
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	r.Host = "holdfast.test" // a key is of one host, and each node has a port of its own
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, nil, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, string(text), err
}
