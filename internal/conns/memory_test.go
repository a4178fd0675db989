package conns

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"holdfast/internal/budget"
	"holdfast/internal/memtest"
)

// A header for which there is no memory is answered before its end, the first of a
// connection as well as a later one. One of ordinary size takes no more than the
// connection, and nothing is held when that is closed.
func TestHeaderMemory(t *testing.T) {
	long := "GET / HTTP/1.1\r\nHost: h\r\nLong: " + strings.Repeat("x", 60<<10)
	for _, before := range []int{0, 1, 3} {
		synctest.Test(t, func(t *testing.T) {
			memory := budget.New(2*budget.Conn, nil, nil)
			limit := Listen(memtest.Listen(), Limits{Open: 9, Refused: 1, Memory: memory})
			c, s := mustDialTo(t, limit)
			request := func(text string) error {
				go io.WriteString(c, text)
				_, err := http.ReadRequest(bufio.NewReaderSize(s.conn, 1))
				return err
			}
			for range before {
				if err := request("GET / HTTP/1.1\r\nHost: h\r\n\r\n"); err != nil {
					t.Fatal(err)
				}
				State(s.conn, http.StateActive)
				if n := memory.Held(); n != budget.Conn {
					t.Errorf("%d bytes are held for a connection", n)
				}
				State(s.conn, http.StateIdle)
			}
			go func() {
				if request(long) == nil {
					t.Error("the header fits")
				}
				s.conn.Close()
			}()
			res, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil || res.StatusCode != 503 || res.Header.Get("Retry-After") != "1" || !res.Close {
				t.Errorf("%v, %v; want 503 with Retry-After that closes the connection", res, err)
			}
			c.Close()
			synctest.Wait()
			if memory.Held() != 0 || memory.Refused() != 1 {
				t.Errorf("%d bytes are held after the end, %d counted as refused", memory.Held(), memory.Refused())
			}
		})
	}
}

// A header that is there is counted by whoever has the request, and not twice.
func TestHeaderIsHandedOn(t *testing.T) {
	memory := budget.New(1<<20, nil, nil)
	limit := Listen(memtest.Listen(), Limits{Open: 9, Refused: 1, Memory: memory})
	c, s := mustDialTo(t, limit)
	go io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\nLong: "+strings.Repeat("x", 60<<10)+"\r\n\r\n")
	if _, err := http.ReadRequest(bufio.NewReader(s.conn)); err != nil {
		t.Fatal(err)
	}
	if n := memory.Held(); n < budget.Conn+60<<10 {
		t.Errorf("%d bytes are held for a header of 60 KiB", n)
	}
	State(s.conn, http.StateActive)
	if n := memory.Held(); n != budget.Conn {
		t.Errorf("%d bytes are held by the connection when the request is there", n)
	}
}
