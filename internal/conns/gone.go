package conns

import (
	"errors"
	"io"
	"time"
)

// The causes with which the context of a connection's requests ends.
var (
	ErrGone = errors.New("conns: the client has left")
	ErrLate = errors.New("conns: the request has waited too long")
)

// A peer is what is known of the other end of a connection.
type peer int

const (
	present peer = iota // it may still send; also if nothing is known
	ended               // it sends nothing any more, but may read
	gone                // it does neither
)

// interim is the shortest interim response. A client of HTTP/1.1 has to take one
// that it has not asked for, and to go on waiting.
const interim = "HTTP/1.1 100 Continue\r\n\r\n"

// look is how often the clients of requests that take long are looked at, and how
// long a request takes before it is.
const look = time.Second

// armLocked lets the next look come. There is one only while a request is served:
// a Listener needs no goroutine, and nothing that would have to end it.
func (l *Listener) armLocked() {
	l.armed = true
	time.AfterFunc(look, l.lookAround)
}

// lookAround ends the requests whose clients have left, or that have waited for as
// long as they may.
//
// The server itself reads on while a handler runs, and takes the end of what it
// reads for the client's leaving. But it reads one byte: if there is one, such as
// the first of another request, or a line end that was sent too much, it hears of
// nothing that comes later. So the system is asked.
//
// A reset is proof that the client has left. The end of what it sends is not: it
// may have closed its sending side alone, and wait for its answer. A client that
// has left cannot be told from it until it is sent something: then its system
// answers with a reset. So it is sent an interim response, once, if nothing was
// sent yet. If there is no reset, the client is there, and if it leaves later, the
// probes that keep the connection alive meet with a reset within about a minute,
// since a system does not keep a socket longer whose program has closed it. What
// has been answered in part needs no probe, for the rest of the answer is one.
// A client of HTTP/1.0 knows no interim responses. Its end is its leaving, as it is
// for net/http if nothing follows a request.
func (l *Listener) lookAround() {
	l.mu.Lock()
	now := time.Now()
	before := now.Add(-look)
	var waiting []*Conn
	for c := l.lists[busy].first; c != nil && !c.since.After(before); c = c.next {
		waiting = append(waiting, c)
	}
	l.mu.Unlock()

	for _, c := range waiting {
		if until := c.until.Load(); until != 0 && until <= now.UnixNano() {
			c.end(ErrLate)
			continue
		}
		switch l.ask(c.Conn) {
		case gone:
			c.end(ErrGone)
		case ended:
			if c.old.Load() {
				c.end(ErrGone)
			} else {
				c.probe()
			}
		}
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	if l.armed = l.lists[busy].first != nil; l.armed {
		l.armLocked()
	}
}

// end ends the context of the connection's requests. The connection stays until the
// handler has returned, and counts as open: a limit of connections is one of
// handlers too.
func (c *Conn) end(cause error) {
	c.l.mu.Lock()
	cancel := c.cancel
	c.ended = cancel != nil
	c.l.mu.Unlock()
	if cancel != nil {
		cancel(cause)
	}
}

// probe sends something to a client that may have left, unless a response is on
// its way: it must not come between the parts of one.
func (c *Conn) probe() {
	c.l.mu.Lock()
	skip := c.probed || c.place != busy
	c.probed = true
	c.l.mu.Unlock()
	if skip || !c.writing.TryLock() {
		return
	}
	defer c.writing.Unlock()
	if !c.written {
		io.WriteString(c.Conn, interim) // an error is that of a connection which is gone
	}
}
