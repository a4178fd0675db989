//go:build linux && soak && !race

package server

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/conns"
)

// The race detector's memory is several times the program's, so these tests run without.

var mixed = flag.Duration("mix", 5*time.Second, "how long TestMemoryMixed goes on")

const (
	maxMemory = 256 << 20
	bigSize   = 8_000_000
)

// A squeeze is a server with a budget, and clients that want more than that.
type squeeze struct {
	*process
	t      *testing.T
	admin  string
	until  time.Time // when the clients leave
	wg     sync.WaitGroup
	status sync.Map // of what clients were answered: int to *atomic.Int64
}

func newSqueeze(t *testing.T, lasting time.Duration, args ...string) *squeeze {
	body := bytes.Repeat([]byte("m"), bigSize)
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Length", strconv.Itoa(bigSize))
		w.Write(body)
	}))
	t.Cleanup(up.Close)
	p := launch(t, nil, build(t), append([]string{"-addr", "127.0.0.1:0", "-admin", "127.0.0.1:0",
		"-upstream", up.URL, "-max-memory", "256MiB", "-drain", "1ms"}, args...)...)
	p.listens()
	s := &squeeze{process: p, t: t, admin: p.Admin(), until: time.Now().Add(lasting)}
	s.held() // before the crowd, since a connection of the operator's has to prove itself in time
	return s
}

// answered counts an answer; 0 is none.
func (s *squeeze) answered(status int) {
	n, _ := s.status.LoadOrStore(status, new(atomic.Int64))
	n.(*atomic.Int64).Add(1)
}

// slow sends a request and reads the answer at 1,000 bytes a second, in pieces of a
// tenth, until the squeeze is over.
func (s *squeeze) slow(request []byte) {
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		s.answered(0)
		return
	}
	defer c.Close()
	c.(*net.TCPConn).SetReadBuffer(4 << 10)
	c.SetDeadline(s.until)
	go c.Write(request)
	piece := make([]byte, 100)
	if n, err := io.ReadAtLeast(c, piece, 12); err != nil {
		s.answered(0) // it waited to the end
		return
	} else if status, err := strconv.Atoi(string(piece[:n][9:12])); err == nil {
		s.answered(status)
	}
	for tick := time.NewTicker(100 * time.Millisecond); ; <-tick.C {
		if _, err := c.Read(piece); err != nil {
			tick.Stop()
			return
		}
	}
}

// crowd lets n clients send the same request and read slowly.
func (s *squeeze) crowd(n int, request string) {
	for range n {
		s.wg.Go(func() { s.slow([]byte(request)) })
	}
}

// honest is another client, which is to be answered all the time: the request itself, or
// 503 with Retry-After.
func (s *squeeze) honest() {
	client := &http.Client{Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	for range time.Tick(50 * time.Millisecond) {
		if time.Now().After(s.until) {
			return
		}
		for _, path := range []string{"/healthz", "/aaa"} {
			method, body := "POST", `{"sleep_time":0}`
			if path == "/healthz" {
				method, body = "GET", ""
			}
			r, _ := http.NewRequest(method, "http://"+s.addr+path, strings.NewReader(body))
			a, err := client.Do(r)
			if err != nil {
				s.t.Errorf("another client: %v", err)
				return
			}
			a.Body.Close()
			if a.StatusCode != 200 && (a.StatusCode != 503 || a.Header.Get("Retry-After") == "" || path == "/healthz") {
				s.t.Errorf("another client: %s is answered %d, Retry-After %q", path, a.StatusCode, a.Header.Get("Retry-After"))
			}
			s.answered(1000 + a.StatusCode)
		}
	}
}

// memory returns the resident set of the process at its greatest.
func (s *squeeze) memory() int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.Cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	peak := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(text)
	n, _ := strconv.Atoi(string(peak[1]))
	return n << 10
}

// held asks the operator's page for the bytes held and the number refused.
func (s *squeeze) held() (held int64, refused uint64) {
	a, err := http.Get("http://" + s.admin + "/stats")
	if err != nil {
		s.t.Fatal(err)
	}
	defer a.Body.Close()
	var st struct {
		Kept struct {
			Held    int64  `json:"held_bytes"`
			Refused uint64 `json:"refused_memory"`
		} `json:"kept"`
	}
	text, err := io.ReadAll(a.Body) // to its end, so that the connection is used again
	if err == nil {
		err = json.Unmarshal(text, &st)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return st.Kept.Held, st.Kept.Refused
}

// check waits for the clients, and holds what the process took against its budget.
func (s *squeeze) check() {
	s.t.Helper()
	var most int64
	s.wg.Go(s.honest)
	for time.Now().Before(s.until.Add(-100 * time.Millisecond)) {
		held, _ := s.held()
		most = max(most, held)
		time.Sleep(100 * time.Millisecond)
	}
	s.wg.Wait()
	peak := s.memory()
	_, refused := s.held()
	var said []string
	s.status.Range(func(status, n any) bool {
		said = append(said, fmt.Sprintf("%d×%d", n.(*atomic.Int64).Load(), status))
		return true
	})
	s.t.Logf("resident %d MiB at most, held %d MiB at most, refused %d, answers %v", peak>>20, most>>20, refused, said)
	if peak > maxMemory+maxMemory/4 {
		s.t.Errorf("%d MiB resident; want at most a quarter more than 256 MiB", peak>>20)
	}
	if most > maxMemory+maxMemory/16 {
		s.t.Errorf("%d MiB counted; want at most 256 MiB", most>>20)
	}
	if refused == 0 {
		s.t.Error("nothing was refused: the test asks for too little")
	}
}

// empty waits until the clients that have left hold nothing but a store's chunk.
func (s *squeeze) empty() {
	s.t.Helper()
	var held int64
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if held, _ = s.held(); held < 1<<20 {
			return
		}
	}
	s.t.Errorf("%d bytes are held when the clients have left", held)
}

func TestMemorySlowReaders(t *testing.T) {
	s := newSqueeze(t, 6*time.Second)
	s.crowd(300, "GET /sync/big HTTP/1.1\r\nHost: h\r\n\r\n")
	s.check()
	s.empty()
}

// readForgotten begins to read n kept responses slowly, each of which is forgotten when
// the next ones have come.
func (s *squeeze) readForgotten(n int) {
	for range n {
		s.wg.Go(func() {
			client := &http.Client{Timeout: time.Until(s.until)}
			a, err := client.Post("http://"+s.addr+"/async/big", "", nil)
			if err != nil {
				return // it waited to the end
			}
			a.Body.Close()
			client.CloseIdleConnections()
			s.answered(2000 + a.StatusCode)
			if a.StatusCode == http.StatusAccepted {
				s.slow([]byte("GET " + a.Header.Get("Location") + "/response HTTP/1.1\r\nHost: h\r\nPrefer: wait=5\r\n\r\n"))
			}
		})
		time.Sleep(5 * time.Millisecond)
	}
}

func TestMemoryForgottenResponses(t *testing.T) {
	s := newSqueeze(t, 8*time.Second, "-retain-bytes", "16MiB")
	s.wg.Go(func() { s.readForgotten(240) })
	s.check()
}

// body is a request for a job that does not end soon, with a body of n bytes.
func body(n int) string {
	text := `{"sleep_time":600}`
	return fmt.Sprintf("POST /bbb HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s%s", n, text, strings.Repeat(" ", n-len(text)))
}

func TestMemoryWaitingBodies(t *testing.T) {
	s := newSqueeze(t, 6*time.Second, "-workers", "1", "-queue", "0")
	s.crowd(2000, body(1<<20))
	s.check()
}

// lines is a request with a header of 62 KB in as many lines as it may have.
func lines() string {
	var b strings.Builder
	b.WriteString("POST /bbb HTTP/1.1\r\nHost: h\r\nContent-Length: 18\r\n")
	for i := range conns.MaxHeaderLines - 2 {
		fmt.Fprintf(&b, "x%d: %s\r\n", i, strings.Repeat("v", 484))
	}
	return b.String() + "\r\n" + `{"sleep_time":600}`
}

func TestMemoryHeaderLines(t *testing.T) {
	s := newSqueeze(t, 6*time.Second, "-workers", "1", "-queue", "0")
	s.crowd(2500, lines())
	s.check()
}

func TestMemoryMixed(t *testing.T) {
	s := newSqueeze(t, *mixed, "-workers", "50", "-queue", "50", "-retain-bytes", "64MiB")
	s.crowd(100, "GET /sync/big HTTP/1.1\r\nHost: h\r\n\r\n")
	s.wg.Go(func() { s.readForgotten(80) })
	s.crowd(600, body(1<<20))
	s.crowd(300, lines())
	s.wg.Go(func() { // who was refused comes again
		for time.Now().Before(s.until.Add(-time.Second)) {
			time.Sleep(time.Second)
			s.crowd(20, body(1<<20))
			s.crowd(10, lines())
		}
	})
	s.check()
}
