package conns

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// A waiting server has requests that wait until they are let go or their context
// ends, which it then tells.
type waiting struct {
	addr  string
	begun chan struct{}
	let   chan struct{}
	ended chan error
}

func serveWaiting(t *testing.T) *waiting {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &waiting{l.Addr().String(), make(chan struct{}, 1), make(chan struct{}), make(chan error, 1)}
	server := &http.Server{ConnState: State, ConnContext: Context, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if !r.ProtoAtLeast(1, 1) {
			Old(r.Context())
		}
		s.begun <- struct{}{}
		select {
		case <-r.Context().Done():
			s.ended <- context.Cause(r.Context())
		case <-s.let:
			fmt.Fprint(w, "done")
			s.ended <- nil
		}
	})}
	go server.Serve(Listen(l, Limits{Open: 10, Refused: 1}))
	t.Cleanup(func() { server.Close() })
	return s
}

const post = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"

// Whoever has left is noticed, whatever he has sent before and however he left; and
// whoever waits for his answer gets it.
func TestLeaving(t *testing.T) {
	const old = "POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}"
	closes := func(c *net.TCPConn) { c.Close() }
	resets := func(c *net.TCPConn) { c.SetLinger(0); c.Close() }
	halves := func(c *net.TCPConn) { c.CloseWrite() }
	stays := func(c *net.TCPConn) {}
	for _, test := range []struct {
		name       string
		send, more string // the request, and what follows it
		then       func(*net.TCPConn)
		leaves     bool
	}{
		{"nothing more", post, "", closes, true},
		{"one byte", post, "x", closes, true},
		{"a line end", post, "\r\n", closes, true},
		{"another request", post, post, closes, true},
		{"one byte, and a reset", post, "x", resets, true},
		{"much, and a reset", post, string(make([]byte, 100_000)), resets, true},
		{"100 Continue", "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}", "x", closes, true},
		{"HTTP/1.0", old, "x", closes, true},
		{"HTTP/1.0, half closed", old, "x", halves, true}, // as without the byte
		{"half closed", post, "\n", halves, false},
		{"still there", post, "x", stays, false},
		{"still there, HTTP/1.0", old, "x", stays, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := serveWaiting(t)
			conn, err := net.Dial("tcp", s.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			io.WriteString(conn, test.send)
			<-s.begun
			io.WriteString(conn, test.more) // the server reads what came with the request otherwise
			time.Sleep(look / 10)
			test.then(conn.(*net.TCPConn))
			if !test.leaves {
				time.Sleep(3 * look)
				close(s.let)
				body := answerOf(t, conn)
				if err := <-s.ended; err != nil || body != "done" {
					t.Errorf("%v, answered %q", err, body)
				}
				return
			}
			select {
			case err := <-s.ended:
				if err == nil || !errors.Is(err, ErrGone) && test.more != "" {
					t.Errorf("the cause is %v", err)
				}
			case <-time.After(30 * time.Second):
				t.Error("the client has left, and its request waits")
			}
		})
	}
}

// answerOf reads responses up to the first that is not interim.
func answerOf(t *testing.T, c net.Conn) string {
	r := bufio.NewReader(c)
	for {
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		if res.StatusCode >= 200 {
			return string(body)
		}
	}
}

// What a client does not read stays where it is counted: the system takes little of
// it. Without that bound it takes megabytes.
func TestUnreadDoesNotPileUp(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	limited := Listen(l, Limits{Open: 1, Refused: 1})
	defer limited.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	c, err := limited.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	taken := 0
	for taken < 64<<20 {
		c.SetWriteDeadline(time.Now().Add(time.Second))
		n, err := c.Write(make([]byte, 64<<10))
		taken += n
		if err != nil {
			break
		}
	}
	if taken > 1<<20 {
		t.Errorf("the system takes %d bytes for a client that reads none", taken)
	}
	t.Log(taken)
}
