package conns

import (
	"container/list"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
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

// How long and for how much a refused client is listened to after its answer.
const (
	lingerTime  = time.Second
	lingerBytes = 1 << 20
)

// refusals are connections that have got their refusal and linger. When there is
// no room for another one the oldest goes: it has had the most time to read its
// answer.
type refusals struct {
	limit int

	mu   sync.Mutex // protects the following field
	line list.List  // of net.Conn, in the order in which they came
}

// add refuses a connection. It does not block: it is called by the one goroutine
// that accepts.
func (r *refusals) add(c net.Conn) {
	answered := writeNow(c, tooMany)
	if answered {
		halfClose(c)
	}
	r.mu.Lock()
	e := r.line.PushBack(c)
	full := r.line.Len() > r.limit
	r.mu.Unlock()
	if full {
		r.dropOldest()
	}
	go func() {
		linger(c, tooMany, answered)
		r.mu.Lock()
		r.line.Remove(e) // does nothing if it was dropped
		r.mu.Unlock()
		c.Close()
	}()
}

// dropOldest closes the connection that has lingered longest, and reports whether
// there was one.
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
	e.Value.(net.Conn).Close()
	return true
}

// linger writes an answer, unless that is done already, and ends the sending side.
// Then it takes in what the client sends until the client closes, for a second at
// most: closed with data unread, a connection is reset, and the client loses the
// answer.
func linger(c net.Conn, answer string, answered bool) {
	c.SetDeadline(time.Now().Add(lingerTime))
	if !answered {
		if _, err := io.WriteString(c, answer); err != nil {
			return
		}
		halfClose(c)
	}
	io.Copy(io.Discard, io.LimitReader(c, lingerBytes))
}

func halfClose(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}
