// Package conns bounds the connections of an HTTP server. It differs from
// golang.org/x/net/netutil.LimitListener in that nobody is left to wait in the
// kernel's queue: when every place is taken, a connection that is of no use to
// anyone gives way, and if there is none the newcomer gets a short 503.
//
// A [Listener] follows its connections from New to Closed, so the server that
// serves it must have [State] as its ConnState and [Context] as its ConnContext.
package conns

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"holdfast/internal/budget"
)

// Grace is how long a connection of a Listener without Limits.Prove may take over
// the header of a request before it counts as idle.
const Grace = 2 * time.Second

// Limits bound the connections of a [Listener].
type Limits struct {
	Open    int // connections that are served
	Refused int // connections that linger after their refusal; at least 1

	// Prove is how long a connection may stay without a request that [Prove] was
	// called for. Until then any newcomer may take its place. If zero, none need
	// prove anything, and a newcomer takes the place of one that is idle.
	Prove time.Duration

	Memory *budget.Budget // for connections and the headers that are read from them; nil: no limit
}

// A Listener has at most Limits.Open connections open, and Limits.Refused more
// that are being refused.
type Listener struct {
	net.Listener
	limits Limits
	ask    func(net.Conn) peer // what the system knows of the other end

	mu    sync.Mutex // protects the following fields and the places of all connections
	open  int
	lists [places]chain // by place, each in the order of Conn.since
	armed bool          // lookAround will be called

	refusals refusals
}

// A place is what a connection is at, and so whether it may be closed for another.
type place int

const (
	nowhere place = iota // closed, or somebody else's
	fresh                // has yet to send a request, or the first that counts
	idle                 // between two requests
	busy                 // has a request in a handler
	places
)

// Listen bounds the connections of l.
func Listen(l net.Listener, limits Limits) *Listener {
	limited := &Listener{Listener: l, limits: limits, ask: ask}
	limited.refusals.limit = max(limits.Refused, 1)
	return limited
}

// Accept returns the next connection that is to be served.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			// The sum of what is reserved can be wrong, since the process has
			// descriptors that nobody counts. Then one that is worth less gives way.
			if (errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)) && l.yield() {
				continue
			}
			return nil, err
		}
		if conn := l.admit(c); conn != nil {
			unbuffered(c)
			return conn, nil
		}
		l.refusals.add(c)
	}
}

// admit returns the connection to be served, or nil if there is no place for it.
// Accept alone calls it, so a place that was made is still there a moment later.
func (l *Listener) admit(c net.Conn) *Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.open >= l.limits.Open { // again if somebody else was closing the victim
		victim := l.victimLocked()
		if victim == nil {
			return nil
		}
		l.mu.Unlock()
		victim.Close()
		l.mu.Lock()
	}
	l.open++
	conn := &Conn{Conn: c, l: l, proven: l.limits.Prove == 0}
	conn.meter.Hold.Open(l.limits.Memory, budget.Conn)
	conn.header.begin()
	conn.meter.Begin()
	l.moveLocked(conn, fresh)
	if !conn.proven {
		conn.proving = time.AfterFunc(l.limits.Prove, func() { conn.Close() })
	}
	return conn
}

// victimLocked returns the connection that is to give way, or nil.
//
// Where connections prove themselves, those that have not go first, the oldest of
// them before the others however young it is: whoever fills the places with
// connections that send nothing only drives out his own, and one who sends his
// request at once has been served before it is his turn. Elsewhere it is the one
// that has been idle longest, and a newcomer has some time for his header.
func (l *Listener) victimLocked() *Conn {
	young, old := l.lists[fresh].first, l.lists[idle].first
	if l.limits.Prove > 0 {
		if young != nil {
			return young
		}
		return old
	}
	if young != nil && time.Since(young.since) < Grace {
		young = nil
	}
	if old == nil || young != nil && young.since.Before(old.since) {
		return young
	}
	return old
}

// yield closes a connection to free its descriptor, and reports whether there was
// one that could go.
func (l *Listener) yield() bool {
	if l.refusals.dropOldest() {
		return true
	}
	l.mu.Lock()
	victim := l.victimLocked()
	l.mu.Unlock()
	if victim == nil {
		return false
	}
	victim.Close()
	return true
}

// A Conn is a connection of a [Listener].
type Conn struct {
	net.Conn
	l *Listener

	header header       // touched by Read, and by the server between two of them
	meter  budget.Meter // so is this, but for its Hold, which Close closes

	old   atomic.Bool  // has sent a request of HTTP/1.0
	until atomic.Int64 // when its request has waited too long, by time.Time.UnixNano; 0: never

	writing sync.Mutex // held while something is written; protects the following field
	written bool       // more than interim responses since the request began

	// The following fields are protected by l.mu.
	place      place
	since      time.Time // of being there
	prev, next *Conn     // in the place's chain
	closed     bool
	ended      bool                    // the context of its requests has ended
	cancel     context.CancelCauseFunc // ends the context of its requests; nil before Context
	proven     bool
	proving    *time.Timer // closes the connection; nil if it need not prove itself
	probed     bool        // since the request began
}

// State follows a connection. It is for http.Server.ConnState.
func State(c net.Conn, state http.ConnState) {
	conn, ok := c.(*Conn)
	if !ok {
		return
	}
	switch state {
	case http.StateActive:
		conn.header.end()
		conn.meter.End()
		conn.writing.Lock()
		conn.written = false
		conn.writing.Unlock()
		conn.enter(busy)
	case http.StateIdle:
		conn.header.begin()
		conn.meter.Begin()
		if conn.enter(idle) { // so would the context of the next request be
			conn.Close()
		}
	case http.StateHijacked: // whoever has it now closes it
		conn.enter(nowhere)
	}
}

// enter moves the connection on, and reports whether the context of its requests has
// ended.
func (c *Conn) enter(p place) (ended bool) {
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	c.enterLocked(p)
	return c.ended
}

// enterLocked moves the connection on. One that has not proved itself stays where
// it is.
func (c *Conn) enterLocked(p place) {
	l := c.l
	if c.closed || !c.proven && p != nowhere {
		return
	}
	c.probed = false
	c.until.Store(0)
	l.moveLocked(c, p)
	if p == busy && !l.armed {
		l.armLocked()
	}
}

func (l *Listener) moveLocked(c *Conn, p place) {
	l.lists[c.place].remove(c)
	c.place = p
	if p != nowhere {
		c.since = time.Now()
		l.lists[p].add(c)
	}
}

type connKey struct{}

// Context returns the context for the requests of a connection. It ends when the
// other end has left, which net/http alone does not notice if the client has sent
// more than its request. It is for http.Server.ConnContext.
func Context(ctx context.Context, c net.Conn) context.Context {
	conn, ok := c.(*Conn)
	if !ok {
		return ctx
	}
	ctx, cancel := context.WithCancelCause(ctx)
	conn.l.mu.Lock()
	defer conn.l.mu.Unlock()
	conn.cancel = cancel
	if conn.closed {
		cancel(net.ErrClosed)
	}
	return context.WithValue(ctx, connKey{}, conn)
}

// Limit ends the context of a connection's requests, with [ErrLate] as the cause,
// if the present one has not ended after d, to the second, and nobody has lifted
// the limit. ctx is the request's context.
func Limit(ctx context.Context, d time.Duration) {
	if c, ok := ctx.Value(connKey{}).(*Conn); ok {
		c.until.Store(time.Now().Add(d).UnixNano())
	}
}

// Unlimit lifts the limit of the present request. ctx is its context, or one that
// has its values.
func Unlimit(ctx context.Context) {
	if c, ok := ctx.Value(connKey{}).(*Conn); ok {
		c.until.Store(0)
	}
}

// Prove tells that a request has been one of those that the listener is for. Its
// connection then is closed for another only if it is idle and there is none that
// has not proved itself. ctx is the request's context.
func Prove(ctx context.Context) {
	c, ok := ctx.Value(connKey{}).(*Conn)
	if !ok {
		return
	}
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	if c.proven {
		return
	}
	c.proven = true
	c.proving.Stop()
	c.enterLocked(busy)
}

// Old tells that a request is one of HTTP/1.0, whose client can take no interim
// response. ctx is the request's context.
func Old(ctx context.Context) {
	if c, ok := ctx.Value(connKey{}).(*Conn); ok {
		c.old.Store(true)
	}
}

func (c *Conn) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.written = c.written || string(p) != interim
	return c.Conn.Write(p)
}

// Close closes the connection, makes room for another one, and ends the context
// of its requests.
func (c *Conn) Close() error {
	l := c.l
	l.mu.Lock()
	first, cancel := !c.closed, c.cancel
	c.closed = true
	l.moveLocked(c, nowhere)
	l.mu.Unlock()
	if c.proving != nil {
		c.proving.Stop()
	}
	if cancel != nil {
		cancel(net.ErrClosed)
	}
	err := c.Conn.Close()
	c.meter.Hold.Close()
	if first {
		l.mu.Lock()
		l.open--
		l.mu.Unlock()
	}
	return err
}

// CloseWrite lets the server end a connection without a reset that takes the
// answer with it.
func (c *Conn) CloseWrite() error {
	return halfClose(c.Conn)
}

// A chain has connections in the order in which they came. Its links are in the
// connections: one that serves many requests changes chains twice for each.
type chain struct{ first, last *Conn }

func (l *chain) add(c *Conn) {
	c.prev, c.next = l.last, nil
	if l.last != nil {
		l.last.next = c
	} else {
		l.first = c
	}
	l.last = c
}

// remove is for a connection that is in the chain, or in none.
func (l *chain) remove(c *Conn) {
	if c.prev != nil {
		c.prev.next = c.next
	} else if l.first == c {
		l.first = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	} else if l.last == c {
		l.last = c.prev
	}
	c.prev, c.next = nil, nil
}
