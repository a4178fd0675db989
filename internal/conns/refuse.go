package conns

import (
	"container/list"
	"io"
	"net"
	"strconv"
	"sync"
	"time"
)

// tooMany answers a connection beyond the limit, and noMemory one whose header there
// is no memory for. They are written without having read a request, so they are the
// same for all.
var (
	tooMany  = unavailable("too many connections; try again later")
	noMemory = unavailable("no memory is left for the header; try again later")
)

func unavailable(detail string) string {
	body := `{"title":"Service Unavailable","status":503,"detail":"` + detail + `"}` + "\n"
	return "HTTP/1.1 503 Service Unavailable\r\n" +
		"Content-Type: application/problem+json\r\n" +
		"Content-Length: " + strconv.Itoa(len(body)) + "\r\n" +
		"Retry-After: 1\r\n" +
		"Connection: close\r\n" +
		"\r\n" + body
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

func halfClose(c net.Conn) {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
}
