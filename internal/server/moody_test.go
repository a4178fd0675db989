//go:build linux && soak && !race

package server

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"
)

// A moody upstream is dead for spells: it refuses connections, it hangs, or it resets
// them. Otherwise it answers with what it was sent, and /big with much more.
type moody struct {
	t        *testing.T
	addr     string
	listener net.Listener // the last one; used by run alone, once there is one

	mu     sync.Mutex // protects the following fields
	mood   mood
	over   chan struct{} // closed when the present spell is
	spells []spell
	inside map[net.Conn]bool
}

type mood int

const (
	well mood = iota
	refuses
	hangs
	resets
	moods
)

// A spell is a time in which the upstream was dead; to is zero if it still is.
type spell struct{ from, to time.Time }

// aftermath is for how long after a spell the gateway may still meet with a connection of
// that time.
const aftermath = time.Second

// newMoody starts an upstream. It listens on an address that no client has its end on, so
// that no client can have its port when it is to listen again.
func newMoody(t *testing.T) *moody {
	u := &moody{t: t, addr: "127.0.0.2:0", over: make(chan struct{}), inside: make(map[net.Conn]bool)}
	u.listen()
	u.addr = u.listener.Addr().String()
	t.Cleanup(func() { u.listener.Close() })
	return u
}

func (u *moody) listen() {
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if u.listener, err = net.Listen("tcp", u.addr); err == nil {
			server := &http.Server{Handler: u, ConnState: u.follow}
			go server.Serve(u.listener)
			return
		}
	}
	u.t.Errorf("the upstream does not come back: %v", err)
}

func (u *moody) follow(c net.Conn, state http.ConnState) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if state == http.StateClosed {
		delete(u.inside, c)
	} else {
		u.inside[c] = true
	}
}

// reset closes a connection without an end.
func reset(c net.Conn) {
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
}

// run changes the mood until the time has come, and leaves the upstream well.
func (u *moody) run(until time.Time) {
	bad := well
	for time.Now().Before(until) {
		if pause(u.t, until, 4*time.Second, 8*time.Second); time.Now().After(until) {
			return
		}
		bad = bad%(moods-1) + 1
		u.fall(bad)
		pause(u.t, until, time.Second, 4*time.Second)
		u.recover()
	}
}

// fall begins a spell. Connections that are open are those of a process that has died,
// unless it hangs.
func (u *moody) fall(m mood) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.mood = m
	u.spells = append(u.spells, spell{from: time.Now()})
	if m == refuses {
		u.listener.Close()
	}
	for c := range u.inside {
		if m != hangs {
			reset(c)
		}
	}
}

// recover ends a spell.
func (u *moody) recover() {
	if u.mood == refuses {
		u.listen()
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.mood = well
	close(u.over)
	u.over = make(chan struct{})
	u.spells[len(u.spells)-1].to = time.Now()
}

// dead reports whether the upstream was dead at any time between the two.
func (u *moody) dead(from, to time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, s := range u.spells {
		if s.from.Before(to) && (s.to.IsZero() || s.to.Add(aftermath).After(from)) {
			return true
		}
	}
	return false
}

func (u *moody) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var body bytes.Buffer
	io.Copy(&body, r.Body)
	u.mu.Lock()
	mood, over := u.mood, u.over
	u.mu.Unlock()
	switch {
	case mood == hangs:
		select {
		case <-over:
		case <-r.Context().Done():
		}
		panic(http.ErrAbortHandler)
	case mood == resets:
		if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
			reset(c)
			u.follow(c, http.StateClosed)
		}
	case r.URL.Path == "/big":
		writeBig(w)
	default:
		time.Sleep(5 * time.Millisecond) // so that there is a queue
		w.Write(body.Bytes())
	}
}

// pause waits for a time between the two, but not beyond the end.
func pause(t *testing.T, end time.Time, least, most time.Duration) {
	d := min(least+rand.N(most-least+1), time.Until(end))
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}
