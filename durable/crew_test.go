package durable

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"
)

// A crew is a client that accepts, reads and cancels jobs, and writes down what it saw.
type crew struct {
	history *history
	rng     *rand.Rand
	ask     func(method, path, body string, header ...string) (int, http.Header, string, error)
	shared  *ledger // of all clients; may be nil
	own     []string
}

// A ledger has the jobs that clients were promised.
type ledger struct {
	mu   sync.Mutex
	jobs []entry
	last time.Time     // the last promise
	gap  time.Duration // the longest time without one
}

// An entry is a job that a client has a 202 for.
type entry struct{ url, name, body string }

func (l *ledger) promise(e entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); !l.last.IsZero() {
		l.gap, l.last = max(l.gap, now.Sub(l.last)), now
	} else {
		l.last = now
	}
	l.jobs = append(l.jobs, e)
}

// any returns one of the latest jobs, anybody's.
func (c *crew) any() string {
	if c.shared == nil {
		return c.own[max(0, len(c.own)-1-c.rng.IntN(20))]
	}
	c.shared.mu.Lock()
	defer c.shared.mu.Unlock()
	if len(c.shared.jobs) == 0 {
		return ""
	}
	return c.shared.jobs[max(0, len(c.shared.jobs)-1-c.rng.IntN(200))].url
}

// act does one thing after the other with the job of a number, and with others.
func (c *crew) act(n int) {
	name, body := fmt.Sprint("j", n), strings.Repeat("b", 1<<c.rng.IntN(13))
	header := []string{"X-Job", name}
	repeats := 1
	if n%4 == 0 {
		header = append(header, "Idempotency-Key", fmt.Sprint("key", n))
		repeats = 2
	}
	url := ""
	for range repeats {
		if got := c.accept(body, header...); got != "" && url == "" {
			url = got
			c.own = append(c.own, url)
			if c.shared != nil {
				c.shared.promise(entry{url, name, body})
			}
		}
	}
	if url != "" && n%10 == 1 {
		c.look("DELETE", url)
	}
	for range 3 {
		if url = c.any(); url != "" {
			c.look([]string{"GET", "GET", "RESPONSE"}[c.rng.IntN(3)], url)
		}
	}
}

// accept returns the URL of the job, or "" if there was no 202.
func (c *crew) accept(body string, header ...string) string {
	o := operation{accept: true, from: time.Now()}
	status, h, _, err := c.ask("POST", "/async/work", body, header...)
	if o.to = time.Now(); err != nil || status != http.StatusAccepted {
		return "" // it may have become a job, or not
	}
	if len(header) > 2 {
		o.key = header[3]
	}
	o.job = h.Get("Location")
	c.history.add(o)
	return o.job
}

// look asks where a job stands, or for its response, or cancels it.
func (c *crew) look(method, url string) {
	o := operation{job: url, from: time.Now()}
	path := url
	if method == "RESPONSE" {
		method, path = "GET", url+"/response"
	}
	status, h, text, err := c.ask(method, path, "")
	o.to = time.Now()
	switch {
	case err != nil || status == http.StatusServiceUnavailable:
		return
	case status == http.StatusNotFound && h.Get("Job-State") == "":
		o.missing = true
	case path != url:
		if o.state = h.Get("Job-State"); o.state == "done" {
			o.body = text
		}
	case status == http.StatusConflict:
		o.state = h.Get("Job-State")
	default:
		var job struct{ State string }
		json.Unmarshal([]byte(text), &job)
		o.state = job.State
	}
	c.history.add(o)
}
