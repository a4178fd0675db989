package conns

import (
	"container/list"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// tooMany answers a connection beyond the limit, noMemory one whose header there is no
// memory for, and tooManyLines one whose header has too many lines. They are written
// without having read a request, so they are the same for all.
var (
	tooMany      = shortAnswer(http.StatusServiceUnavailable, "Retry-After: 1\r\n", "too many connections; try again later")
	noMemory     = shortAnswer(http.StatusServiceUnavailable, "Retry-After: 1\r\n", "no memory is left for the header; try again later")
	tooManyLines = shortAnswer(http.StatusRequestHeaderFieldsTooLarge, "", fmt.Sprintf("the header has too many lines; want at most %d", MaxHeaderLines))
)

// shortAnswer returns a whole response. more is a further line of its header, if any.
func shortAnswer(status int, more, detail string) string {
	title := http.StatusText(status)
	body := fmt.Sprintf(`{"title":"%s","status":%d,"detail":"%s"}`+"\n", title, status, detail)
	return fmt.Sprintf("HTTP/1.1 %d %s\r\nContent-Type: application/problem+json\r\nContent-Length: %d\r\n%sConnection: close\r\n\r\n%s", status, title, len(body), more, body)
}

// How long and for how much a refused client is listened to, and how much of that time it
// has to begin its request.
const (
	lingerTime  = time.Second
	lingerBytes = 1 << 20
	beginTime   = lingerTime / 4
)

// refusals are connections that get their refusal and linger. When there is no room for
// another one the oldest goes: it has had the most time to read its answer.
type refusals struct {
	limit int

	mu   sync.Mutex // protects the following field
	line list.List  // of *turnedAway, in the order in which they came
}

// A turnedAway is a connection that is answered once, by whoever is first to set answered.
type turnedAway struct {
	net.Conn
	answered atomic.Bool
}

// add refuses a connection. It does not block: it is called by the one goroutine
// that accepts.
func (r *refusals) add(c net.Conn) {
	refused := &turnedAway{Conn: c}
	r.mu.Lock()
	e := r.line.PushBack(refused)
	full := r.line.Len() > r.limit
	r.mu.Unlock()
	if full {
		r.dropOldest()
	}
	go func() {
		refused.serve()
		r.mu.Lock()
		r.line.Remove(e) // does nothing if it was dropped
		r.mu.Unlock()
		c.Close()
	}()
}

// dropOldest closes the connection that has lingered longest, and reports whether
// there was one. If it has no answer yet, it gets it now.
func (r *refusals) dropOldest() bool {
	r.mu.Lock()
	e := r.line.Front()
	if e != nil {
		r.line.Remove(e)
	}
	r.mu.Unlock()
	if e == nil {
		return false
	}
	c := e.Value.(*turnedAway)
	if !c.answered.Swap(true) {
		writeNow(c.Conn, tooMany)
	}
	c.Close()
	return true
}

// serve answers a client when it has begun its request, or has not for a while. Before
// that, clients with a pool of connections such as net/http's take an answer for a fault
// of the connection: they have asked for nothing on it yet.
func (c *turnedAway) serve() {
	c.SetReadDeadline(time.Now().Add(beginTime))
	c.Read(make([]byte, 512)) // whatever comes of it is answered
	if !c.answered.Swap(true) {
		c.SetDeadline(time.Now().Add(lingerTime - beginTime))
		answerAndListen(c.Conn, tooMany)
	}
}

// linger answers a client that has sent a part of its request.
func linger(c net.Conn, answer string) {
	c.SetDeadline(time.Now().Add(lingerTime))
	answerAndListen(c, answer)
}

// answerAndListen writes an answer and ends the sending side. Then it takes in what the
// client sends until the client closes, or the deadline: closed with data unread, a
// connection is reset, and the client loses the answer.
func answerAndListen(c net.Conn, answer string) {
	// On a busy machine the deadline may have passed before there was anything to wait for.
	if !writeNow(c, answer) {
		if _, err := io.WriteString(c, answer); err != nil {
			return
		}
	}
	halfClose(c)
	io.Copy(io.Discard, io.LimitReader(c, lingerBytes))
}

func halfClose(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}
