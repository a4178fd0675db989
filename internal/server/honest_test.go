//go:build linux && soak && !race

package server

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A record is what honest clients were answered.
type record struct {
	mu       sync.Mutex // protects the following fields
	counts   map[string]int
	faults   map[string]int    // by kind
	examples map[string]string // the first of each
}

func (r *record) count(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts[what]++
}

func (r *record) fault(kind, format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.faults[kind]++; r.faults[kind] == 1 {
		r.examples[kind] = time.Now().Format(time.StampMilli) + " " + fmt.Sprintf(format, args...)
	}
}

// check fails the test for each kind of fault, and logs the counts.
func (r *record) check(t *testing.T) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for kind, n := range r.faults {
		t.Errorf("honest clients: %d times %s, the first: %s", n, kind, r.examples[kind])
	}
	var said []string
	for what, n := range r.counts {
		said = append(said, fmt.Sprintf("%d×%s", n, what))
	}
	slices.Sort(said)
	t.Logf("honest clients were answered %v", said)
}

// An honest client is net/http's own, with the connections that it keeps. It comes again
// after what Retry-After says, and takes each of its jobs to its response.
//
// Its POSTs have an Idempotency-Key. That is what lets net/http send one again if the
// connection that it had kept was closed at the same moment: a server may close an idle
// connection at any time, and this one does so to make room.
type honest struct {
	*record
	name     string
	base     string
	until    time.Time // when it begins nothing new
	upstream *moody
	client   *http.Client
	ended    int // jobs and requests that ended well
}

func newHonest(n int, s *soak) *honest {
	// Whoever waits for a place is answered within placeTimeout.
	client := &http.Client{Transport: &http.Transport{}, Timeout: placeTimeout + patience}
	return &honest{s.record, fmt.Sprint("honest-", n), "http://" + s.addr, s.until, s.upstream, client, 0}
}

// run works until the time has come, and ends what it has begun.
func (h *honest) run(t *testing.T) {
	defer h.client.CloseIdleConnections()
	for n := 0; time.Now().Before(h.until); n++ {
		body := fmt.Sprintf("%s-%d %s", h.name, n, strings.Repeat("x", n%40*100))
		key := fmt.Sprintf("Idempotency-Key: %q", body[:strings.Index(body, " ")])
		if n%2 == 0 {
			h.sync(body, key)
		} else {
			h.async(body, key)
		}
		if n%3 == 2 {
			h.client.CloseIdleConnections() // and the next is a new one
		}
		pause(t, h.until, 10*time.Millisecond, 200*time.Millisecond)
	}
	if h.ended == 0 {
		h.fault("nothing that ended well", "%s", h.name)
	}
}

func (h *honest) sync(body, key string) {
	began := time.Now()
	if a, ok := h.ask("POST", "/sync/echo", body, key); ok {
		h.result("sync", began, a, body)
	}
}

func (h *honest) async(body, key string) {
	began := time.Now()
	if a, ok := h.job(body, key); ok {
		h.result("job", began, a, body)
	}
}

// job sends a request for a job, and returns the answer where its response should be.
func (h *honest) job(body, key string) (answer, bool) {
	a, ok := h.ask("POST", "/async/echo", body, key)
	if !ok {
		return a, false
	}
	if a.status != http.StatusAccepted || a.header.Get("Location") == "" {
		h.fault(fmt.Sprintf("async: %d", a.status), "%s, want 202 and a Location", a.body)
		return a, false
	}
	h.count("async: 202")
	location := a.header.Get("Location")
	for ok && a.status == http.StatusAccepted {
		a, ok = h.ask("GET", location+"/response", "", "Prefer: wait=10")
	}
	return a, ok
}

// result looks at the response of the upstream, or of the gateway in its place: that is
// 502 or 504 where the upstream was dead while the request was under way, since the
// client is to know that its request may have been done, and that it was not refused.
func (h *honest) result(what string, began time.Time, a answer, want string) {
	h.count(fmt.Sprintf("%s: %d", what, a.status))
	switch {
	case a.status == http.StatusOK && a.body == want:
		h.ended++
	case a.status == http.StatusOK:
		h.fault(what+": wrong body", "%.100q, want %.100q", a.body, want)
	case a.status == http.StatusBadGateway || a.status == http.StatusGatewayTimeout:
		if !h.upstream.dead(began, time.Now()) {
			h.fault(fmt.Sprintf("%s: %d of a healthy upstream", what, a.status), "after %v: %s", time.Since(began), a.body)
		}
	default:
		h.fault(fmt.Sprintf("%s: %d", what, a.status), "after %v: %s", time.Since(began), a.body)
	}
}

// ask sends a request until it is not refused with 503. ok is false if there was something
// else than an answer.
func (h *honest) ask(method, target, body string, header ...string) (a answer, ok bool) {
	for {
		began := time.Now()
		a, err := h.send(method, target, body, header)
		if err != nil {
			h.fault(kindOf(err), "%s, after %v: %v", h.name, time.Since(began), err)
			return a, false
		}
		if a.status != http.StatusServiceUnavailable {
			return a, true
		}
		after, err := strconv.Atoi(a.header.Get("Retry-After"))
		if err != nil || after < 1 {
			h.fault("503 without Retry-After", "%v %s", a.header, a.body)
			return a, false
		}
		h.count("503: " + detailOf(a))
		if time.Since(h.until) > patience {
			h.fault("503 when the others have left", "%s", a.body)
			return a, false
		}
		time.Sleep(time.Duration(after) * time.Second)
	}
}

func (h *honest) send(method, target, body string, header []string) (answer, error) {
	r, err := http.NewRequest(method, h.base+target, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		r.Header.Set(name, value)
	}
	res, err := h.client.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return answer{res.StatusCode, res.Header, string(text), res.Close}, err
}

// detailOf returns what a problem says, without the numbers in it.
func detailOf(a answer) string {
	var p struct{ Detail string }
	if err := json.Unmarshal([]byte(a.body), &p); err != nil {
		return a.body
	}
	return regexp.MustCompile(`\d[\d.]*m?s`).ReplaceAllString(p.Detail, "…")
}

// kindOf names an error without what differs each time.
func kindOf(err error) string {
	for _, kind := range []error{syscall.ECONNRESET, syscall.ECONNREFUSED, syscall.EPIPE, io.EOF, io.ErrUnexpectedEOF} {
		if errors.Is(err, kind) {
			return kind.Error()
		}
	}
	if late, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err); ok && late.Timeout() {
		return "no answer in time"
	}
	inner := err
	for next := errors.Unwrap(inner); next != nil; next = errors.Unwrap(inner) {
		inner = next
	}
	return cmp.Or(inner.Error(), "an error")
}
