package conns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/memtest"
)

// gaveWay dials a connection that has to be accepted, and checks which of those
// there were had to go for it.
func gaveWay(t *testing.T, l *memtest.Listener, accepted <-chan net.Conn, ends []<-chan struct{}, want int) (net.Conn, <-chan struct{}) {
	t.Helper()
	_, end := l.MustDial(t)
	c := <-accepted
	synctest.Wait()
	for i, end := range ends {
		if isClosed(end) != (i == want) {
			t.Errorf("connection %d closed: %v; want %d alone to go", i, isClosed(end), want)
		}
	}
	return c, end
}

// The connection that has been idle longest makes room, whatever came first.
func TestLongestIdleGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, limit, accepted := limited(t, Limits{Open: 4, Refused: 1})
		var open []net.Conn
		var ends []<-chan struct{}
		for range 4 {
			_, end := l.MustDial(t)
			open, ends = append(open, <-accepted), append(ends, end)
		}
		for _, i := range []int{2, 0, 3} {
			time.Sleep(time.Second)
			State(open[i], http.StateIdle)
		}
		// 2 is busy again, and idle since a moment ago.
		State(open[2], http.StateActive)
		State(open[2], http.StateIdle)
		gaveWay(t, l, accepted, ends, 0)
		gaveWay(t, l, accepted, ends[3:], 0)
		gaveWay(t, l, accepted, ends[2:3], 0)
		if isClosed(ends[1]) {
			t.Error("a connection with a request in a handler was closed")
		}
		c, _ := l.MustDial(t)
		refusal(t, c) // all are busy now
		if n, _ := limit.counts(); n != 4 {
			t.Errorf("%d open, want 4", n)
		}
	})
}

// A connection that has never sent a request counts as idle when it has had some
// time, and so does one that is slow with the header of its next request: one with
// a request on its way is left in peace.
func TestSlowHeadersGiveWay(t *testing.T) {
	for _, first := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			l := memtest.Listen()
			defer l.Close()
			limit := Listen(l, Limits{Open: 1, Refused: 1})
			client, end := mustDialTo(t, limit)
			if !first {
				State(end.conn, http.StateActive)
				State(end.conn, http.StateIdle)
				time.Sleep(time.Hour)
				go io.WriteString(client, "GET")
				end.conn.Read(make([]byte, 100))
			}
			time.Sleep(Grace - 1)
			if v := limit.admit(new(net.TCPConn)); v != nil {
				t.Fatalf("first request %v: closed for another one after less than %v", first, Grace)
			}
			time.Sleep(1 * time.Nanosecond)
			if v := limit.admit(new(net.TCPConn)); v == nil || !isClosed(end.closed) {
				t.Errorf("first request %v: there is no room after %v", first, Grace)
			}
		})
	}
}

// An admitted is a connection that a test has accepted itself.
type admitted struct {
	conn   *Conn
	closed <-chan struct{}
}

func mustDialTo(t *testing.T, limit *Listener) (net.Conn, admitted) {
	t.Helper()
	c, end := memtest.Pipe()
	t.Cleanup(func() { c.Close() })
	conn := limit.admit(end)
	if conn == nil {
		t.Fatal("no place")
	}
	t.Cleanup(func() { conn.Close() })
	return c, admitted{conn, end.Closed}
}

// Out of descriptors, the listener makes room and goes on; if there is nothing
// that may go, that is an error.
func TestOutOfDescriptors(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE} {
		synctest.Test(t, func(t *testing.T) {
			failing := &failing{Listener: memtest.Listen(), fails: 2, err: &net.OpError{Op: "accept", Err: errno}}
			limit := Listen(failing, Limits{Open: 9, Refused: 1})
			_, a := mustDialTo(t, limit)
			_, b := mustDialTo(t, limit)
			State(a.conn, http.StateActive)
			for _, c := range []admitted{b, a} {
				State(c.conn, http.StateActive)
				State(c.conn, http.StateIdle)
				time.Sleep(time.Second)
			}
			go failing.Dial()
			c, err := limit.Accept()
			if err != nil || !isClosed(a.closed) || !isClosed(b.closed) {
				t.Fatalf("%v; closed %v and %v", err, isClosed(a.closed), isClosed(b.closed))
			}
			defer c.Close()
			failing.fails = 1
			if _, err := limit.Accept(); !errors.Is(err, errno) {
				t.Errorf("%v with nothing that may go, want %v", err, errno)
			}
		})
	}
}

// A failing listener fails so often before it accepts.
type failing struct {
	*memtest.Listener
	fails int
	err   error
}

func (l *failing) Accept() (net.Conn, error) {
	if l.fails--; l.fails >= 0 {
		return nil, l.err
	}
	return l.Listener.Accept()
}

// Connections that prove nothing are closed in time, and before that make room for
// every newcomer, but never take the place of one that has proved itself.
func TestProve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := memtest.Listen()
		defer l.Close()
		limit := Listen(l, Limits{Open: 3, Refused: 1, Prove: 2 * time.Second})
		_, own := mustDialTo(t, limit)
		ctx := Context(t.Context(), own.conn)
		State(own.conn, http.StateActive)
		Prove(ctx)
		Prove(ctx)
		State(own.conn, http.StateIdle)

		var strangers []admitted
		for range 50 { // a storm, without a pause
			_, s := mustDialTo(t, limit)
			State(s.conn, http.StateActive) // busy with being refused, say
			strangers = append(strangers, s)
		}
		for i, s := range strangers {
			if isClosed(s.closed) != (i < 48) {
				t.Errorf("stranger %d closed: %v", i, isClosed(s.closed))
			}
		}
		_, second := mustDialTo(t, limit) // one of the operator's gets in at once
		Prove(Context(t.Context(), second.conn))
		time.Sleep(2*time.Second - 1)
		synctest.Wait()
		if isClosed(strangers[49].closed) {
			t.Error("closed before its time")
		}
		time.Sleep(1 * time.Nanosecond)
		synctest.Wait()
		if !isClosed(strangers[49].closed) {
			t.Error("a connection that has proved nothing is open after its time")
		}
		time.Sleep(time.Hour)
		if isClosed(own.closed) || isClosed(second.closed) {
			t.Error("a connection that has proved itself was closed")
		}
		// If all have, the idle one makes room.
		_, third := mustDialTo(t, limit)
		Prove(Context(t.Context(), third.conn))
		mustDialTo(t, limit)
		if !isClosed(own.closed) || isClosed(second.closed) || isClosed(third.closed) {
			t.Error("want the idle connection to go, and not a busy one")
		}
	})
}

// The end of a request's client, as far as it can be known.
func TestLookAround(t *testing.T) {
	for _, test := range []struct {
		name        string
		says        peer
		old, answer bool
		probed      bool
		cause       error
	}{
		{name: "present"},
		{name: "reset", says: gone, cause: ErrGone},
		{name: "half closed", says: ended, probed: true},
		{name: "half closed HTTP/1.0", says: ended, old: true, cause: ErrGone},
		{name: "half closed while it is answered", says: ended, answer: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := memtest.Listen()
				defer l.Close()
				limit := Listen(l, Limits{Open: 2, Refused: 1})
				var asked atomic.Int64
				limit.ask = func(net.Conn) peer { asked.Add(1); return test.says }
				client, c := mustDialTo(t, limit)
				got := make(chan string, 1)
				go func() {
					text, _ := io.ReadAll(client)
					got <- string(text)
				}()
				ctx := Context(t.Context(), c.conn)
				State(c.conn, http.StateActive)
				want := interim // the server's own, for one that expects it
				io.WriteString(c.conn, interim)
				if test.old {
					Old(ctx)
				}
				if test.answer {
					io.WriteString(c.conn, "HTTP/1.1 200 OK\r\n")
					want += "HTTP/1.1 200 OK\r\n"
				}
				time.Sleep(look - 1)
				synctest.Wait()
				if asked.Load() > 0 {
					t.Error("asked for a request that takes no time")
				}
				time.Sleep(10 * look)
				synctest.Wait()
				if asked.Load() == 0 || context.Cause(ctx) != test.cause {
					t.Errorf("asked %d times, the context's cause is %v, want %v", asked.Load(), context.Cause(ctx), test.cause)
				}
				if isClosed(c.closed) {
					t.Error("closed while the handler runs")
				}
				State(c.conn, http.StateIdle)
				if isClosed(c.closed) != (test.cause != nil) {
					t.Errorf("closed after the request: %v", isClosed(c.closed))
				}
				asked.Store(0)
				time.Sleep(10 * look)
				if asked.Load() > 0 {
					t.Error("asked with no request in a handler")
				}
				c.conn.Close()
				if test.probed {
					want += interim
				}
				if text := <-got; text != want {
					t.Errorf("the client got %q, want %q", text, want)
				}
			})
		})
	}
}

func TestLimit(t *testing.T) {
	for _, lifted := range []string{"", "lifted", "other request"} {
		synctest.Test(t, func(t *testing.T) {
			l := memtest.Listen()
			defer l.Close()
			_, c := mustDialTo(t, Listen(l, Limits{Open: 1, Refused: 1}))
			ctx := Context(t.Context(), c.conn)
			State(c.conn, http.StateActive)
			Limit(ctx, time.Minute)
			time.Sleep(time.Minute - 1)
			synctest.Wait()
			switch lifted {
			case "lifted":
				Unlimit(ctx)
			case "other request":
				State(c.conn, http.StateIdle)
				State(c.conn, http.StateActive)
			}
			if ctx.Err() != nil {
				t.Fatal("ended before its time")
			}
			time.Sleep(look + 1)
			synctest.Wait()
			if late := context.Cause(ctx) == ErrLate; late != (lifted == "") {
				t.Errorf("%q: the cause is %v", lifted, context.Cause(ctx))
			}
		})
	}
}

// The context of a connection's requests ends with the connection.
func TestContextEnds(t *testing.T) {
	l := Listen(memtest.Listen(), Limits{Open: 2})
	for _, before := range []bool{false, true} {
		_, s := net.Pipe()
		c := l.admit(s)
		if before {
			c.Close()
		}
		ctx := Context(t.Context(), c)
		c.Close()
		if ctx.Err() == nil {
			t.Errorf("closed before: %v; the context goes on", before)
		}
	}
	if n, _ := l.counts(); n != 0 {
		t.Errorf("%d open", n)
	}
}

// What is no Conn is passed by.
func TestForeignConn(t *testing.T) {
	_, s := net.Pipe()
	State(s, http.StateIdle)
	ctx := Context(t.Context(), s)
	Prove(ctx)
	Old(ctx)
	Limit(ctx, 1)
	Unlimit(ctx)
	if ctx != t.Context() {
		t.Error("the context of a foreign connection is another one")
	}
}

func lines(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "a%d:\r\n", i)
	}
	return b.String()
}

func TestHeaderLines(t *testing.T) {
	const start = "GET / HTTP/1.1\r\n"
	for _, test := range []struct {
		name, text string
		fits       bool
	}{
		{"none", start + "\r\n", true},
		{"most", start + lines(MaxHeaderLines) + "\r\n", true},
		{"most, and a body", start + lines(MaxHeaderLines) + "\r\n" + strings.Repeat("x\n", 1000), true},
		{"most, line feeds alone", strings.ReplaceAll(start+lines(MaxHeaderLines)+"\r\n", "\r", "") + strings.Repeat("x\n", 1000), true},
		{"empty lines before", strings.Repeat("\r\n", 300) + start + lines(MaxHeaderLines) + "\r\n", true},
		{"one too many", start + lines(MaxHeaderLines+1) + "\r\n", false},
		{"one too many, not ended", start + lines(MaxHeaderLines+1), false},
		{"line feeds alone", strings.ReplaceAll(start+lines(MaxHeaderLines+1), "\r", ""), false},
		{"continued lines", start + "a:\r\n" + strings.Repeat(" b\r\n", MaxHeaderLines), false},
	} {
		for _, size := range []int{1, 2, 7, 4096, len(test.text)} {
			var h header
			h.begin()
			fits := true
			for text := []byte(test.text); len(text) > 0 && fits; {
				n := min(size, len(text))
				fits, text = h.read(text[:n]), text[n:]
			}
			if fits != test.fits {
				t.Errorf("%s, %d bytes at a time: fits %v", test.name, size, fits)
			}
		}
	}
}

// A connection that has been silent for longer than another one is idle goes first.
func TestSilentBeforeIdle(t *testing.T) {
	for _, silentFirst := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			l := memtest.Listen()
			defer l.Close()
			limit := Listen(l, Limits{Open: 2, Refused: 1})
			_, a := mustDialTo(t, limit)
			time.Sleep(time.Minute)
			_, b := mustDialTo(t, limit)
			idle, silent := b, a
			if !silentFirst {
				idle, silent = a, b
			}
			State(idle.conn, http.StateIdle)
			time.Sleep(time.Minute)
			if !silentFirst {
				State(idle.conn, http.StateActive)
				State(idle.conn, http.StateIdle)
			}
			mustDialTo(t, limit)
			if !isClosed(silent.closed) || isClosed(idle.closed) {
				t.Errorf("silent first %v: closed %v, and the idle one %v", silentFirst, isClosed(silent.closed), isClosed(idle.closed))
			}
		})
	}
}
