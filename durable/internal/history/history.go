// Package history checks what clients were told of jobs: whether there is an order of all
// that they did, each thing at one moment between its beginning and its end, in which a
// server that does one thing after the other tells them the same (linearizability).
// It is for tests.
package history

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// A Kind says what was done.
type Kind string

const (
	Submit Kind = "submit" // a request under the key of the job
	Look   Kind = "look"   // for its state, and its response if there is one
	Cancel Kind = "cancel"
	Run    Kind = "run" // the handler was called
)

// An Op is what was done to a job, and what came of it.
type Op struct {
	Kind Kind
	Job  string // its key, which clients know before it has a URL

	// Life numbers the lives of a server, from 1: a job that ran when one ended is queued in
	// the next. It is 0 if there is no telling in which life something happened.
	Life int

	// What a client was told. If Lost, it was told nothing, and what it wanted may have
	// happened, or may yet.
	Lost     bool
	Status   int    // of HTTP
	URL      string // of the job: from Submit, or what Look and Cancel asked
	State    string // from Look
	Response string // from Look, if the state is done and it was asked for

	from, to int64 // when it began and ended
}

// String returns the operation as a line of a report.
func (o Op) String() string {
	told := fmt.Sprintf("%d %s%s %s", o.Status, o.State, o.URL, o.Response)
	if o.Lost {
		told = "lost"
	}
	return fmt.Sprintf("%v to %v, life %d: %s: %s", time.Duration(o.from), time.Duration(o.to), o.Life, o.Kind, told)
}

// A History is what happened to jobs. Its methods may be called by any number of goroutines
// at once.
type History struct {
	mu    sync.Mutex
	begun time.Time
	ops   map[string][]Op // by job
}

// New returns a History that begins now.
func New() *History { return &History{begun: time.Now(), ops: make(map[string][]Op)} }

// Now returns the time since the history began.
func (h *History) Now() int64 { return int64(time.Since(h.begun)) }

// Add adds an operation that began at from and has just ended.
func (h *History) Add(from int64, o Op) {
	o.from, o.to = from, h.Now()
	if o.Lost {
		o.to = math.MaxInt64
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops[o.Job] = append(h.ops[o.Job], o)
}

// Check returns an error that shows a job of which clients were told what no server could
// have told them, or nil.
func (h *History) Check() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for job, ops := range h.ops {
		events := make([]porcupine.Operation, len(ops))
		for i, o := range ops {
			events[i] = porcupine.Operation{Input: o, Output: o, Call: o.from, Return: o.to}
		}
		if porcupine.CheckOperationsTimeout(model, events, time.Minute) == porcupine.Ok {
			continue
		}
		slices.SortFunc(ops, func(a, b Op) int { return cmp.Compare(a.from, b.from) })
		lines := make([]string, len(ops))
		for i, o := range ops {
			lines[i] = o.String()
		}
		return fmt.Errorf("no order explains what was told of %s:\n%s", job, strings.Join(lines, "\n"))
	}
	return nil
}

// Size returns how many jobs and operations there are.
func (h *History) Size() (jobs, ops int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, of := range h.ops {
		ops += len(of)
	}
	return len(h.ops), ops
}

// A state is what a server knows of a job.
type state struct {
	url     string // "" if there is no such job, unknown if no client has been told
	end     string // how it ended; "" if it has not, unknown if it was not canceled
	reply   string // its response; "" if no client has seen it
	ran     int    // the life in which the handler was called last
	started int    // the life in which the job was running last
	asked   bool   // a client was told that it will be canceled, or may have been
}

const (
	unknown  = "?"
	canceled = "canceled"
)

var model = (&porcupine.NondeterministicModel{
	Init: func() []any { return []any{state{}} },
	Step: func(s, in, _ any) []any { return step(s.(state), in.(Op)) },
}).ToModel()

// step returns the states that an operation can lead to; none if it cannot have happened.
func step(s state, o Op) []any {
	switch o.Kind {
	case Submit:
		return s.submit(o)
	case Cancel:
		return s.cancel(o)
	case Run:
		if s.url == "" || s.end != "" || o.Life > 0 && s.ran == o.Life {
			return nil
		}
		s.ran = o.Life
		return []any{s}
	}
	return s.look(o)
}

func (s state) submit(o Op) []any {
	same, free := s, s.url == "" || s.end == canceled // whose key may be had by another job
	same.url = o.URL
	switch {
	case o.Lost && free:
		return []any{s, state{url: unknown}}
	case o.Lost, o.Status == 503:
		return []any{s}
	case o.Status == 202 && (s.url == unknown || s.url == o.URL):
		return []any{same}
	case o.Status == 202 && free:
		return []any{state{url: o.URL}}
	}
	return nil
}

func (s state) cancel(o Op) []any {
	gone, seen, ended := s, s, s
	gone.end, seen.started, ended.end = canceled, o.Life, cmp.Or(s.end, unknown)
	seen.asked = true
	open := s.end == ""
	switch {
	case o.Lost && open && s.url == o.URL:
		s.asked = true
		return []any{s, gone}
	case o.Lost, o.Status == 503:
		return []any{s}
	case s.url != o.URL:
		return s.former(o.Status == 200)
	case o.Status == 200 && (open && (s.asked || !s.startedIn(o.Life)) || s.end == canceled):
		return []any{gone}
	case o.Status == 202 && open:
		return []any{seen}
	case o.Status == 409 && s.end != canceled:
		return []any{ended}
	}
	return nil
}

// former returns what it can lead to that a client was told of a job that gave its key to
// another one: nothing has changed if it was told what is true of a canceled job.
func (s state) former(ok bool) []any {
	if ok && s.url != "" {
		return []any{s}
	}
	return nil
}

func (s state) look(o Op) []any {
	switch {
	case o.Lost, o.Status == 503:
		return []any{s}
	case s.url != o.URL:
		return s.former(o.State == canceled)
	case o.Status == 404:
		return nil
	case o.State == "queued" || o.State == "running":
		if s.end != "" || o.State == "queued" && s.startedIn(o.Life) {
			return nil
		}
		if o.State == "running" {
			s.started = o.Life
		}
		return []any{s}
	case s.end != "" && s.end != o.State && (s.end != unknown || o.State == canceled):
		return nil
	case s.reply != "" && o.Response != "" && s.reply != o.Response:
		return nil
	}
	s.end, s.reply = o.State, cmp.Or(s.reply, o.Response)
	return []any{s}
}

// startedIn reports whether the job was started in a life.
func (s state) startedIn(life int) bool { return life > 0 && (s.ran == life || s.started == life) }
