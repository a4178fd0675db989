// Package memtest holds in memory what tests would otherwise have on the network and
// on the standard error: a listener and a log.
package memtest

import (
	"bytes"
	"net"
	"net/http"
	"sync"
	"testing"
)

// A Listener is a listener without a network. Its connections are pipes: they have no
// buffer, and their deadlines pass in the time of a synctest bubble.
type Listener struct {
	conns chan net.Conn
	gone  chan struct{} // closed by close
	close func()
}

// Listen returns a new Listener.
func Listen() *Listener {
	l := &Listener{conns: make(chan net.Conn), gone: make(chan struct{})}
	l.close = sync.OnceFunc(func() { close(l.gone) })
	return l
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.gone:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. It may be called more than once.
func (l *Listener) Close() error { l.close(); return nil }

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return &net.UnixAddr{Name: "memory", Net: "unix"} }

// Dial returns both ends of a new connection. It blocks until the connection is
// accepted or l is closed.
func (l *Listener) Dial() (client net.Conn, server *Conn, err error) {
	client, server = Pipe()
	select {
	case l.conns <- server:
		return client, server, nil
	case <-l.gone:
		return nil, nil, net.ErrClosed
	}
}

// MustDial returns the client's end of a new connection, which is closed when the test
// ends, and a channel that is closed when the server has closed its own.
func (l *Listener) MustDial(t *testing.T) (net.Conn, <-chan struct{}) {
	t.Helper()
	client, server, err := l.Dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client, server.Closed
}

// A Conn is the server's end of a connection.
type Conn struct {
	net.Conn
	Closed <-chan struct{} // closed when the server has closed this end
	once   func()
}

// Pipe returns both ends of a connection that no listener knows.
func Pipe() (client net.Conn, server *Conn) {
	client, end := net.Pipe()
	closed := make(chan struct{})
	return client, &Conn{end, closed, sync.OnceFunc(func() { close(closed) })}
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	defer c.once()
	return c.Conn.Close()
}

// Serve runs s until the test ends. dial returns a new connection to it.
func Serve(t *testing.T, s *http.Server) (dial func() net.Conn) {
	l := Listen()
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return func() net.Conn {
		client, _ := l.MustDial(t)
		return client
	}
}

// A Log keeps what is written to it. It may be used by any number of goroutines at
// once.
type Log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// String returns what is there.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Take returns what has come since the last call.
func (l *Log) Take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.text.Reset()
	return l.text.String()
}
