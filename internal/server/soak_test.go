//go:build linux && soak && !race

package server

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

var soaked = flag.Duration("soak", 20*time.Second, "how long TestSoak goes on")

const (
	honestClients = 20
	soakConns     = 600 // of the server; the bad clients are more
)

// A soak is a gateway that runs for long, with everything at once that clients, the
// upstream and the reader of the log do wrong, and with honest clients beside.
type soak struct {
	*squeeze
	*piped
	*record
	t        *testing.T
	addr     string
	upstream *moody
	loss     chan int // lines of the log that were lost, when it has ended
}

func newSoak(t *testing.T) *soak {
	if openFiles() < 4096 {
		t.Fatalf("%d open files, want at least 4096 for the clients", openFiles())
	}
	u := newMoody(t)
	p := startPiped(t, "-admin", "127.0.0.1:0", "-upstream", "http://"+u.addr, "-max-memory", "256MiB",
		"-workers", "50", "-queue", "50", "-max-conns", strconv.Itoa(soakConns), "-upstream-timeout", "2s",
		"-retain", "15s", "-retain-bytes", "64MiB", "-drain", "20s")
	second, err := p.lines.ReadString('\n')
	match := regexp.MustCompile(` dashboard url=http://(\S+)/`).FindStringSubmatch(second)
	if match == nil {
		t.Fatalf("%q, %v; want the operator's address", second, err)
	}
	s := &squeeze{process: p.process, t: t, pid: p.cmd.Process.Pid, admin: match[1], until: time.Now().Add(*soaked)}
	s.held()
	r := &record{counts: make(map[string]int), faults: make(map[string]int), examples: make(map[string]string)}
	return &soak{squeeze: s, piped: p, record: r, t: t, addr: p.addr, upstream: u, loss: make(chan int, 1)}
}

// readLog reads the log for spells, until the soak is over, and then to its end.
func (s *soak) readLog() {
	const read, stand = 2 * time.Second, 20 * time.Second
	lost := 0
	line := regexp.MustCompile(` WARN lines of this log were lost lines=(\d+)\n`)
	for still := time.Now().Add(read); ; {
		text, err := s.lines.ReadString('\n')
		if err != nil {
			break
		}
		if match := line.FindStringSubmatch(text); match != nil {
			n, _ := strconv.Atoi(match[1])
			lost += n
		}
		if time.Now().After(still) {
			pause(s.t, s.until, stand, stand)
			still = time.Now().Add(read)
		}
	}
	s.loss <- lost
}

// again lets n clients do the same again and again.
func (s *soak) again(n int, visit func()) {
	for range n {
		s.wg.Go(func() {
			for time.Now().Before(s.until) {
				visit()
				pause(s.t, s.until, 100*time.Millisecond, time.Second)
			}
		})
	}
}

// slowly lets n clients send the same and read the answer slowly.
func (s *soak) slowly(n int, request string) {
	text := []byte(request)
	s.again(n, func() { s.slow(text) })
}

// ghost sends a whole request for a job and a byte of another one, and soon leaves.
func (s *soak) ghost(request string) {
	c, err := net.DialTimeout("tcp", s.addr, patience)
	if err != nil {
		s.answered(0)
		return
	}
	defer c.Close()
	c.SetDeadline(s.until)
	io.WriteString(c, request+"P")
	pause(s.t, s.until, 0, 2*time.Second)
}

// flood opens many connections at once. Every other one sends a request, and all stay for
// a while.
func (s *soak) flood(n int) {
	var open []net.Conn
	for i := range n {
		c, err := net.DialTimeout("tcp", s.addr, time.Second)
		if err != nil {
			s.answered(0)
			continue
		}
		open = append(open, c)
		if i%2 == 0 {
			c.SetDeadline(time.Now().Add(time.Second))
			io.WriteString(c, request("GET", "/healthz", ""))
		}
	}
	pause(s.t, s.until, time.Second, 3*time.Second)
	for _, c := range open {
		c.Close()
	}
	pause(s.t, s.until, 2*time.Second, 6*time.Second)
}

// holder sends one request and keeps its connection, until the server closes it.
func (s *soak) holder() {
	c, err := net.DialTimeout("tcp", s.addr, patience)
	if err != nil {
		s.answered(0)
		return
	}
	defer c.Close()
	c.SetDeadline(s.until)
	io.WriteString(c, request("GET", "/healthz", ""))
	r := bufio.NewReader(c)
	if res, err := http.ReadResponse(r, nil); err == nil {
		s.answered(res.StatusCode)
		io.Copy(io.Discard, r)
	}
}

// tiny is a request with more of the shortest lines than a header may have.
func tiny() string {
	return "POST /async/echo HTTP/1.1\r\nHost: h\r\n" + strings.Repeat("a:\r\n", 15_000) + "\r\n"
}

// crowds lets all the bad clients in.
func (s *soak) crowds() {
	s.slowly(80, request("GET", "/sync/big", ""))
	s.wg.Go(func() {
		for time.Now().Before(s.until.Add(-time.Second)) {
			s.readForgotten(20)
			pause(s.t, s.until, 5*time.Second, 10*time.Second)
		}
	})
	s.slowly(250, body(1, 1<<20))
	s.slowly(150, lines(0))
	s.slowly(20, tiny())
	s.again(50, func() { s.ghost(request("POST", "/bbb", sleepFor(0))) })
	s.again(50, func() { s.ghost(request("POST", "/async/echo", strings.Repeat("g", 10_000))) })
	s.again(100, s.holder)
	s.again(1, func() { s.flood(1000) })
	s.wg.Go(func() { s.upstream.run(s.until) })
}

// A footprint is what a process takes.
type footprint struct{ goroutines, files, resident int }

func (f footprint) String() string {
	return fmt.Sprintf("%d goroutines, %d descriptors, %d MiB resident", f.goroutines, f.files, f.resident>>20)
}

// footprint asks for the garbage to be collected first, so that what is only not yet
// collected is told from what is held.
func (s *soak) footprint() footprint {
	s.page("heap?gc=1")
	total := regexp.MustCompile(`^goroutine profile: total (\d+)\n`).FindStringSubmatch(s.page("goroutine?debug=1"))
	if total == nil {
		s.t.Fatal("no profile of goroutines")
	}
	n, _ := strconv.Atoi(total[1])
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.pid))
	if err != nil {
		s.t.Fatal(err)
	}
	return footprint{n, len(files), s.memory("VmRSS")}
}

// page returns one of the operator's profiles.
func (s *soak) page(name string) string {
	a, err := http.Get("http://" + s.admin + "/debug/pprof/" + name)
	if err != nil {
		s.t.Fatal(err)
	}
	defer a.Body.Close()
	text, err := io.ReadAll(a.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(text)
}

// kept is how much more may be resident at the end than before. The collector returns what
// is free to the system a while later, but not what it knows of it: the marks and spans of
// a heap as large as the budget, and the descriptors of some thousand goroutines. That is
// a small part of the budget, and does not grow with time.
const kept = maxMemory / 8

// returns waits until the process takes no more than before.
func (s *soak) returns(before footprint) {
	s.t.Helper()
	var now footprint
	for end := time.Now().Add(2 * patience); time.Now().Before(end); time.Sleep(time.Second) {
		now = s.footprint()
		if now.goroutines <= before.goroutines && now.files <= before.files && now.resident <= before.resident+kept {
			s.t.Logf("before %v; after %v", before, now)
			return
		}
	}
	s.t.Errorf("%v when the clients have left, want %v as before, and at most %d MiB more\n%s", now, before, kept>>20, s.page("goroutine?debug=1"))
}

func TestSoak(t *testing.T) {
	s := newSoak(t)
	before := s.footprint()
	go s.readLog()
	s.crowds()
	for n := range honestClients {
		s.wg.Go(func() { newHonest(n, s).run(t) })
	}
	s.watch()
	s.record.check(t)
	s.empty()
	s.returns(before)
	if len(s.upstream.spells) == 0 {
		t.Error("the upstream was never dead: the soak was too short")
	}
	s.stop(syscall.SIGTERM)
	if n := <-s.loss; n == 0 {
		t.Error("no line of the log was lost: its reader has not stood still")
	}
}
