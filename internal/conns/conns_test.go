package conns

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/memtest"
)

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// limited accepts from a listener in memory, and passes what it accepts on, as
// connections that are busy.
func limited(t *testing.T, limits Limits) (*memtest.Listener, *Listener, <-chan net.Conn) {
	l := memtest.Listen()
	limit := Listen(l, limits)
	accepted := make(chan net.Conn, 1000)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := limit.Accept()
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					t.Errorf("Accept: %v", err)
				}
				return
			}
			State(c, http.StateActive)
			accepted <- c
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return l, limit, accepted
}

// counts returns how many connections are open, and how many are being refused.
func (l *Listener) counts() (open, refused int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refusals.mu.Lock()
	defer l.refusals.mu.Unlock()
	return l.open, l.refusals.line.Len()
}

// refused is how many may linger in these tests.
const refused = 16

// refusal reads the answer of a connection beyond the limit to its end.
func refusal(t *testing.T, r io.Reader) {
	t.Helper()
	buffered := bufio.NewReader(r)
	res, err := http.ReadResponse(buffered, nil)
	if err != nil {
		t.Fatalf("no answer beyond the limit: %v", err)
	}
	body, err := io.ReadAll(res.Body) // fails if there is less than Content-Length
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != 503 || res.Header.Get("Content-Type") != "application/problem+json" || !json.Valid(body) || !res.Close || res.Header.Get("Retry-After") != "1" || res.ContentLength != int64(len(body)) {
		t.Errorf("%d %v %s; want 503, a problem, Connection: close, Retry-After: 1 and the length", res.StatusCode, res.Header, body)
	}
	if rest, err := io.ReadAll(buffered); len(rest) > 0 || err != nil {
		t.Errorf("%q and %v follow the answer", rest, err)
	}
}

func TestConnLimit(t *testing.T) {
	for _, max := range []int{1, 2, 7} {
		synctest.Test(t, func(t *testing.T) {
			l, limit, accepted := limited(t, Limits{Open: max, Refused: refused})
			var open []net.Conn
			for range max {
				l.MustDial(t)
				open = append(open, <-accepted)
			}
			for round := range 3 {
				c, closed := l.MustDial(t)
				refusal(t, c)
				<-closed
				synctest.Wait()
				if len(accepted) > 0 {
					t.Fatalf("round %d: more than %d accepted", round, max)
				}

				// The end of a connection makes room for one, however often
				// it is closed.
				for range 3 {
					open[0].Close()
				}
				l.MustDial(t)
				open = append(open[1:], <-accepted)
				if n, _ := limit.counts(); n != max {
					t.Fatalf("round %d: %d counted as open, want %d", round, n, max)
				}
			}
			c, _ := l.MustDial(t)
			refusal(t, c)
			for _, c := range open {
				c.Close()
			}
			synctest.Wait()
			if n, m := limit.counts(); n != 0 || m != 0 {
				t.Errorf("%d open and %d being refused after the end", n, m)
			}
		})
	}
}

// Of clients that do not take their refusal only so many are waited for, and
// only for so long. The oldest goes first.
func TestRefusersBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, limit, accepted := limited(t, Limits{Open: 1, Refused: refused})
		l.MustDial(t)
		kept := <-accepted
		began := time.Now()
		const n = 200
		var closed []<-chan struct{}
		for range n {
			_, c := l.MustDial(t)
			closed = append(closed, c)
		}
		synctest.Wait()
		at := func() (n int) {
			for _, c := range closed {
				if isClosed(c) {
					n++
				}
			}
			return n
		}
		if got := at(); got != n-refused {
			t.Errorf("%d of %d connections closed at once, want all but %d", got, n, refused)
		}
		for i, c := range closed {
			if isClosed(c) != (i < n-refused) {
				t.Errorf("number %d: closed %v", i, isClosed(c))
			}
		}
		for _, c := range closed {
			<-c
		}
		if d := time.Since(began); d != time.Second {
			t.Errorf("the last refusal took %v, want a second", d)
		}
		synctest.Wait()
		if _, m := limit.counts(); m != 0 {
			t.Errorf("%d being refused after the end", m)
		}
		// Then refusals are complete again.
		c, _ := l.MustDial(t)
		refusal(t, c)
		kept.Close()
	})
}

// A refused client that goes on sending is listened to for a while, not for
// ever.
func TestRefusedSender(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _, accepted := limited(t, Limits{Open: 1, Refused: refused})
		l.MustDial(t)
		kept := <-accepted
		defer kept.Close()
		for _, every := range []time.Duration{0, 100 * time.Millisecond} {
			c, closed := l.MustDial(t)
			var sender sync.WaitGroup
			sender.Go(func() {
				for {
					if _, err := c.Write(make([]byte, 1000)); err != nil {
						return
					}
					time.Sleep(every)
				}
			})
			began := time.Now()
			refusal(t, c)
			<-closed
			if d := time.Since(began); d > time.Second {
				t.Errorf("sending every %v: closed after %v", every, d)
			}
			sender.Wait()
		}
	})
}

// A client is answered when its request begins, not before: a client with a pool takes
// what comes before it has asked for a fault of the connection. Of one that asks for
// nothing only so long is waited for.
func TestRefusedWhenAsking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _, accepted := limited(t, Limits{Open: 1, Refused: refused})
		l.MustDial(t)
		kept := <-accepted
		defer kept.Close()
		c, _ := l.MustDial(t)
		c.SetReadDeadline(time.Now().Add(beginTime / 2))
		if n, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%d bytes, %v before the request; want none", n, err)
		}
		c.SetReadDeadline(time.Time{})
		io.WriteString(c, "G")
		answered := func(c net.Conn, want time.Duration) {
			began := time.Now()
			r := bufio.NewReader(c)
			r.Peek(1)
			if d := time.Since(began); d != want {
				t.Errorf("answered after %v, want %v", d, want)
			}
			refusal(t, r)
		}
		answered(c, 0)
		silent, _ := l.MustDial(t)
		answered(silent, beginTime)
	})
}

// One that has to go before it has begun its request is answered too.
func TestRefusedAtOnce(t *testing.T) {
	first, s := tcp(t)
	r := refusals{limit: 1}
	r.add(s)
	_, s = tcp(t)
	r.add(s)
	refusal(t, first)
}

// halfPipe is a pipe that notes the half close of its server's end.
type halfPipe struct {
	net.Conn
	events *[]string
}

func (p halfPipe) CloseWrite() error { *p.events = append(*p.events, "half"); return nil }
func (p halfPipe) Close() error      { *p.events = append(*p.events, "closed"); return p.Conn.Close() }

// After the answer the client is told that it was the last, and only then, when
// the client has closed too, is the connection closed.
func TestRefuseHalfCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := net.Pipe()
		var events []string
		go func() { c := halfPipe{s, &events}; linger(c, tooMany); c.Close() }()
		io.ReadFull(c, make([]byte, len(tooMany)))
		for range 3 {
			synctest.Wait()
			if fmt.Sprint(events) != "[half]" {
				t.Fatalf("%q while the client sends, want only its half closed", events)
			}
			io.WriteString(c, "what the client still sends")
		}
		c.Close()
		synctest.Wait()
		if fmt.Sprint(events) != "[half closed]" {
			t.Errorf("%q in the end", events)
		}
	})
}

// tcp returns both ends of a connection.
func tcp(t *testing.T) (client, server *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// On a real connection the answer arrives although the client's request was
// never read: it is not lost to a reset.
func TestRefuseTCP(t *testing.T) {
	for _, size := range []int{0, 1, 100_000} {
		c, s := tcp(t)
		if _, err := fmt.Fprintf(c, "POST /bbb HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", size, strings.Repeat("x", size)); err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() { linger(s, tooMany); s.Close(); close(done) }()
		refusal(t, c)
		c.Close() // ends the refusal at once
		<-done
	}
}

// The server's own refusals, too, end in an end of file, not in a reset.
func TestCloseWrite(t *testing.T) {
	c, s := tcp(t)
	l := Listen(nil, Limits{Open: 1})
	var conn net.Conn = l.admit(s)
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok {
		t.Fatal("a connection hides CloseWrite from net/http")
	}
	if err := half.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the client reads %d bytes, %v; want EOF", n, err)
	}
	io.WriteString(c, "x")
	if n, err := conn.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Errorf("the server reads %d bytes, %v; want 1", n, err)
	}
	if n, _ := l.counts(); n != 1 {
		t.Error("half closed counts as closed")
	}

	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if err := (&Conn{Conn: b}).CloseWrite(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("CloseWrite of a pipe: %v", err)
	}
}

// Many come and go at once: never more than max, and at the end none.
func TestConnLimitConcurrent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const max, dialers, each = 10, 40, 50
		l, limit, accepted := limited(t, Limits{Open: max, Refused: refused})
		var serving atomic.Int64
		stop := make(chan struct{})
		for range max + 1 {
			go func() {
				for {
					select {
					case c := <-accepted:
						if n := serving.Add(1); n > max {
							t.Errorf("%d connections at once", n)
						}
						io.WriteString(c, "!")
						serving.Add(-1)
						c.Close()
						c.Close()
					case <-stop:
						return
					}
				}
			}()
		}
		var wg sync.WaitGroup
		for range dialers {
			wg.Go(func() {
				for range each {
					c, _, err := l.Dial()
					if err != nil {
						t.Error(err)
						return
					}
					io.Copy(io.Discard, c)
					c.Close()
				}
			})
		}
		wg.Wait()
		close(stop)
		synctest.Wait()
		if n, m := limit.counts(); n != 0 || m != 0 {
			t.Errorf("%d open and %d being refused after the end", n, m)
		}
	})
}
