//go:build linux && soak && !race

package server

import (
	"bytes"
	"encoding/json"
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

const (
	maxMemory = 256 << 20
	bigSize   = 8_000_000
)

// A squeeze is a server with a budget, and clients that want more than that.
type squeeze struct {
	*process
	t      *testing.T
	pid    int
	admin  string
	until  time.Time // when the clients leave
	wg     sync.WaitGroup
	status sync.Map // of what clients were answered: int to *atomic.Int64
}

func newSqueeze(t *testing.T, lasting time.Duration, args ...string) *squeeze {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		writeBig(w)
	}))
	t.Cleanup(up.Close)
	p := launch(t, nil, build(t), append([]string{"-addr", "127.0.0.1:0", "-admin", "127.0.0.1:0",
		"-upstream", up.URL, "-max-memory", "256MiB", "-drain", "1ms"}, args...)...)
	p.listens()
	s := &squeeze{process: p, t: t, pid: p.Cmd.Process.Pid, admin: p.Admin(), until: time.Now().Add(lasting)}
	s.held() // before the crowd, since a connection of the operator's has to prove itself in time
	return s
}

var big = bytes.Repeat([]byte("m"), bigSize)

func writeBig(w http.ResponseWriter) {
	w.Header().Set("Content-Length", strconv.Itoa(bigSize))
	w.Write(big)
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
	text := []byte(request) // once: a thousand bodies of a mebibyte are a lot
	for range n {
		s.wg.Go(func() { s.slow(text) })
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

// memory returns the resident set of the process: what it is, as VmRSS, or what it was at
// its greatest, as VmHWM.
func (s *squeeze) memory(which string) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.pid))
	if err != nil {
		s.t.Fatal(err)
	}
	size := regexp.MustCompile(which + `:\s+(\d+) kB`).FindSubmatch(text)
	n, _ := strconv.Atoi(string(size[1]))
	return n << 10
}

// A holding is what the operator's page says about memory.
type holding struct {
	Held    int64  `json:"held_bytes"`
	Refused uint64 `json:"refused_memory"`
	Evicted struct {
		Bytes int `json:"bytes"`
	} `json:"evicted"`
}

// held asks for that.
func (s *squeeze) held() holding {
	a, err := http.Get("http://" + s.admin + "/stats")
	if err != nil {
		s.t.Fatal(err)
	}
	defer a.Body.Close()
	var st struct{ Kept holding }
	text, err := io.ReadAll(a.Body) // to its end, so that the connection is used again
	if err == nil {
		err = json.Unmarshal(text, &st)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return st.Kept
}

// check waits for the clients, with an honest one among them, and holds what the process
// took against its budget.
func (s *squeeze) check() {
	s.t.Helper()
	s.wg.Go(s.honest)
	s.watch()
}

// watch is check without another client.
func (s *squeeze) watch() {
	s.t.Helper()
	var most int64
	for time.Now().Before(s.until.Add(-100 * time.Millisecond)) {
		most = max(most, s.held().Held)
		time.Sleep(100 * time.Millisecond)
	}
	s.wg.Wait()
	peak := s.memory("VmHWM")
	refused := s.held().Refused
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
		if held = s.held().Held; held < 1<<20 {
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

// body is a request for a job of some seconds, with a body of n bytes.
func body(seconds, n int) string {
	text := sleepFor(seconds)
	return fmt.Sprintf("POST /bbb HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s%s", n, text, strings.Repeat(" ", n-len(text)))
}

func TestMemoryWaitingBodies(t *testing.T) {
	s := newSqueeze(t, 6*time.Second, "-workers", "1", "-queue", "0")
	s.crowd(2000, body(600, 1<<20))
	s.check()
}

// lines is a request for a job of some seconds, with a header of 62 KB in as many lines as
// it may have.
func lines(seconds int) string {
	var b strings.Builder
	text := sleepFor(seconds)
	fmt.Fprintf(&b, "POST /bbb HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n", len(text))
	for i := range conns.MaxHeaderLines - 2 {
		fmt.Fprintf(&b, "x%d: %s\r\n", i, strings.Repeat("v", 484))
	}
	return b.String() + "\r\n" + text
}

func TestMemoryHeaderLines(t *testing.T) {
	s := newSqueeze(t, 6*time.Second, "-workers", "1", "-queue", "0")
	s.crowd(2500, lines(600))
	s.check()
}
