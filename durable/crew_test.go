package durable

import (
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"holdfast/durable/internal/history"
)

// A crew is a client that accepts, reads and cancels jobs, and writes down what it saw.
type crew struct {
	history *history.History
	rng     *rand.Rand
	ask     func(method, path, body string, header ...string) (int, http.Header, string, error)
	shared  *ledger // of all clients
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
func (c *crew) any() (e entry, ok bool) {
	c.shared.mu.Lock()
	defer c.shared.mu.Unlock()
	if len(c.shared.jobs) == 0 {
		return entry{}, false
	}
	return c.shared.jobs[max(0, len(c.shared.jobs)-1-c.rng.IntN(200))], true
}

// act does one thing after the other with the job of a number, and with others.
func (c *crew) act(n int) {
	e := entry{name: fmt.Sprint("j", n), body: strings.Repeat("b", 1<<c.rng.IntN(13))}
	header := []string{"X-Job", e.name}
	repeats := 1
	if n%4 == 0 {
		header = append(header, "Idempotency-Key", fmt.Sprint("key", n))
		repeats = 2
	}
	for range repeats {
		if got := c.accept(e, header...); got != "" && e.url == "" {
			e.url = got
			c.shared.promise(e)
		}
	}
	if e.url != "" && n%10 == 1 {
		c.cancel(e)
	}
	for range 3 {
		if e, ok := c.any(); ok {
			c.look(e, c.rng.IntN(3) == 0)
		}
	}
}

// accept returns the URL of the job, or "" if there was no 202.
func (c *crew) accept(e entry, header ...string) string {
	o := history.Op{Kind: history.Submit, Job: e.name}
	from := c.history.Now()
	status, h, _, err := c.ask("POST", "/async/work", e.body, header...)
	// It may have become a job, or not, as with 503 after a leader was lost.
	o.Status, o.Lost = status, err != nil || status != http.StatusAccepted
	if !o.Lost {
		o.URL = h.Get("Location")
	}
	c.history.Add(from, o)
	return o.URL
}

func (c *crew) cancel(e entry) {
	from := c.history.Now()
	status, _, _, err := c.ask("DELETE", e.url, "")
	c.history.Add(from, history.Op{Kind: history.Cancel, Job: e.name, URL: e.url, Status: status, Lost: err != nil || status == http.StatusServiceUnavailable})
}

// look asks where a job stands, or for its response.
func (c *crew) look(e entry, response bool) {
	o := history.Op{Kind: history.Look, Job: e.name, URL: e.url}
	path := e.url
	if response {
		path += "/response"
	}
	from := c.history.Now()
	status, h, text, err := c.ask("GET", path, "")
	o.Status, o.Lost = status, err != nil
	if o.State, o.Response = seen(h, text); !response {
		o.Response = ""
	}
	c.history.Add(from, o)
}

// seen returns what an answer about a job says of its state, and of its response if it is
// done.
func seen(h http.Header, body string) (state, response string) {
	if state = h.Get("Job-State"); state == "done" {
		response = fmt.Sprintf("%08x", crc32.ChecksumIEEE([]byte(body)))
	}
	return state, response
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
