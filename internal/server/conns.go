package server

import (
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/internal/budget"
)

// tooMany answers a connection beyond the limit, and noHeader one whose header there is
// no memory for. They are written without having read a request, so they are the same
// for all.
var (
	tooMany  = unavailable("too many connections; try again later")
	noHeader = unavailable("no memory is left for the header; try again later")
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

// Descriptors that are kept free of clients: for the listeners, the standard
// streams and the poller, for connections that are being refused, and for the
// operator's, of which a browser opens six.
const (
	reserved   = 16
	refusers   = 16
	adminConns = 16
)

// connLimit is a listener that has at most max connections open and answers
// those beyond with a short 503. Without it a server that runs out of
// descriptors retries to accept ever more slowly, and clients see it hang.
type connLimit struct {
	net.Listener
	max      int64
	memory   *budget.Budget // for headers that are being read
	open     atomic.Int64
	refusing atomic.Int64
}

func (l *connLimit) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) <= l.max {
			counted := &countedConn{Conn: c, closed: sync.OnceFunc(func() { l.open.Add(-1) })}
			counted.meter.Hold.Open(l.memory, budget.Conn)
			counted.meter.Begin()
			return counted, nil
		}
		l.open.Add(-1)
		if l.refusing.Add(1) > refusers {
			l.refusing.Add(-1)
			c.Close()
			continue
		}
		go func() {
			defer l.refusing.Add(-1)
			refuse(c)
		}()
	}
}

// refuse answers and closes. It takes in what the client sends until the client
// closes, for a second at most: closed with data unread, a connection is reset,
// and the client loses the answer.
func refuse(c net.Conn) {
	defer c.Close()
	answerAndClose(c, tooMany)
}

func answerAndClose(c net.Conn, answer string) {
	c.SetDeadline(time.Now().Add(time.Second))
	if _, err := io.WriteString(c, answer); err != nil {
		return
	}
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
	io.Copy(io.Discard, io.LimitReader(c, 1<<20))
}

type countedConn struct {
	net.Conn
	closed func()
	meter  budget.Meter // touched by Read, and by the server between two of them
}

// meterState is the ConnState of a server: a request is active when its header is there.
func meterState(c net.Conn, state http.ConnState) {
	counted, ok := c.(*countedConn)
	switch {
	case !ok:
	case state == http.StateActive:
		counted.meter.End()
	case state == http.StateIdle:
		counted.meter.Begin()
	}
}

// Read reads from the connection. A header that there is no memory for is answered here,
// and ends the connection.
func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.meter.Read(p[:n]) {
		return n, err
	}
	c.meter.Hold.Budget().Refuse()
	answerAndClose(c.Conn, noHeader)
	return 0, io.EOF // to which the server answers nothing
}

func (c *countedConn) Close() error {
	defer c.closed()
	defer c.meter.Hold.Close()
	return c.Conn.Close()
}

// CloseWrite lets the server end a connection without a reset that takes the
// answer with it.
func (c *countedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// connsFor returns the connections that a limit of open files leaves room for,
// and how many of them to use: some are left to what the handlers open.
func connsFor(files uint64) (most, byDefault int) {
	most = int(min(files, 1<<20)) - reserved - refusers - adminConns
	most = max(most, 1)
	return most, max(most-most/8, 1)
}
