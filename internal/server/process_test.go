//go:build unix

package server

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"holdfast"
	"holdfast/internal/proctest"
)

// The tests in this file start main.go as it is shipped.

var (
	stops     = flag.Int("stops", 20, "stops under load of TestStopUnderLoad")
	firstSeed = flag.Uint64("seed", 1, "seed of the first of them")
)

func TestMain(m *testing.M) { proctest.Main(m) }

func build(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("starts processes")
	}
	return proctest.Build(t)
}

// A process is a server that a test has started, and ends with it.
type process struct {
	*proctest.Process
	t    *testing.T
	addr string
}

func launch(t *testing.T, env []string, name string, args ...string) *process {
	t.Helper()
	return &process{Process: proctest.Launch(t, env, name, args...), t: t}
}

// start runs the server on a free port and returns when it listens.
func start(t *testing.T, args ...string) *process {
	t.Helper()
	p := launch(t, nil, build(t), append([]string{"-addr", "127.0.0.1:0", "-admin", "", "-log-jobs"}, args...)...)
	p.listens()
	return p
}

func (p *process) listens() {
	p.t.Helper()
	p.addr = p.Addr()
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.Cmd.Process.Signal(s); err != nil {
		p.t.Fatalf("%v: %v", s, err)
	}
}

// exit waits for the end and returns the exit code.
func (p *process) exit() int {
	p.t.Helper()
	select {
	case <-p.Ended:
	case <-time.After(patience):
		p.t.Fatal("does not end")
	}
	return p.Cmd.ProcessState.ExitCode()
}

// stopped waits for the end after a stop that has lost nothing.
func (p *process) stopped() {
	p.t.Helper()
	if code := p.exit(); code != 0 {
		p.t.Errorf("exit code %d, want 0", code)
	}
	lines := strings.Split(strings.TrimSpace(p.Text()), "\n")
	last := lines[len(lines)-1]
	for _, want := range []string{"INFO stopped ", " cut_off=0 ", " never_started=0 ", " requests_cut_off=0"} {
		if !strings.Contains(last+" ", want) {
			p.t.Errorf("the last line is %q, want %q in it", last, want)
		}
	}
}

var ranLine = regexp.MustCompile(` job ended job=(\S+) method=POST target=/bbb state=done `)

// ran returns the short ids of the jobs that have run, and how often each did.
func (p *process) ran() map[string]int {
	ids := make(map[string]int)
	for _, match := range ranLine.FindAllStringSubmatch(p.Text(), -1) {
		ids[match[1]]++
	}
	return ids
}

func short(id string) string { return holdfast.ID(id).Short() }

// connect returns a connection to the process. What is done on it is bounded.
func (p *process) connect() *client {
	p.t.Helper()
	conn, err := net.Dial("tcp", p.addr)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return &client{t: p.t, conn: conn, r: bufio.NewReader(conn)}
}

// once sends one request on a connection of its own.
func (p *process) once(method, target, body string, header ...string) (answer, error) {
	conn, err := net.Dial("tcp", p.addr)
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, request(method, target, body, header...)); err != nil {
		return answer{}, err
	}
	c := &client{t: p.t, conn: conn, r: bufio.NewReader(conn)}
	return c.receive()
}

// must is once for an answer that has to come with a status.
func (p *process) must(status int, method, target, body string, header ...string) answer {
	p.t.Helper()
	a, err := p.once(method, target, body, header...)
	if err != nil {
		p.t.Fatalf("%s %s: %v", method, target, err)
	}
	a.check(p.t, status)
	return a
}

func TestProcessServes(t *testing.T) {
	t.Parallel()
	p := start(t)
	if a := p.must(200, "GET", "/", ""); !strings.Contains(a.body, "/aaa") || !strings.Contains(a.body, "/bbb") {
		t.Errorf("GET / says %q", a.body)
	}
	p.must(200, "GET", "/healthz", "")
	p.must(200, "GET", "/readyz", "")
	p.must(404, "GET", "/nowhere", "")
	if a := p.must(405, "GET", "/aaa", ""); a.header.Get("Allow") != "POST" {
		t.Errorf("Allow: %q", a.header.Get("Allow"))
	}
	if a := p.must(200, "POST", "/aaa", sleepFor(0), "Content-Type: application/x-www-form-urlencoded"); a.body != sleepFor(0)+"\n" {
		t.Errorf("the body is %q", a.body)
	}
	p.must(400, "POST", "/aaa", "{}")
	p.must(400, "POST", "/bbb", "{}")
	p.must(413, "POST", "/aaa", strings.Repeat(" ", 1<<20+1))
	p.must(413, "POST", "/bbb", strings.Repeat(" ", 1<<20+1))
	id := p.must(202, "POST", "/bbb", sleepFor(0), "Job-Id: forged").id()
	p.AwaitLog(regexp.MustCompile(` job ended job=` + short(id) + ` method=POST target=/bbb state=done status=200 attempts=1 wait=\S+ run=\S+\n`))
	p.signal(os.Interrupt)
	p.stopped()
	if ran := p.ran(); len(ran) != 1 {
		t.Errorf("ran %v, want %s alone", ran, id)
	}
}

// What net/http refuses before a handler sees it, it says in full, and ends the
// connection without a reset.
func TestProcessRefusesBrokenRequests(t *testing.T) {
	t.Parallel()
	p := start(t, "-max-body", "1KiB")
	for _, test := range []struct {
		name, send string
		status     string
	}{
		{"no request", "garbage\r\n\r\n", "400"},
		{"no host", "GET / HTTP/1.1\r\n\r\n", "400"},
		{"lengths that differ", request("POST", "/bbb", sleepFor(0), "Content-Length: 3"), "400"},
		{"negative length", request("POST", "/bbb", "", "Content-Length: -1"), "400"},
		{"unknown coding", request("POST", "/bbb", "", "Transfer-Encoding: gzip"), "501"},
		{"unknown expectation", request("POST", "/bbb", sleepFor(0), "Expect: miracle", "Connection: close"), "417"},
		{"broken chunk", request("POST", "/bbb", "", "Transfer-Encoding: chunked") + "zz\r\n", "400"},
		{"header too large", request("GET", "/", "", "X: "+strings.Repeat("x", 80<<10)), "431"},
		{"HTTP/3.0", "GET / HTTP/3.0\r\nHost: x\r\n\r\n", "505"},
		{"large body", request("POST", "/bbb", "", "Content-Length: 1000000000") + strings.Repeat(" ", 2<<10), "413"},
		{"large body, expecting", request("POST", "/bbb", "", "Content-Length: 1000000000", "Expect: 100-continue"), "413"},
		{"large body to nobody, expecting", request("PUT", "/bbb", "", "Content-Length: 1000000000", "Expect: 100-continue"), "405"},
		{"large chunked body, expecting", request("POST", "/bbb", "", "Transfer-Encoding: chunked", "Expect: 100-continue") + "fffff\r\n" + strings.Repeat(" ", 512<<10), "100"},
	} {
		c := p.connect()
		c.send(test.send)
		all, err := io.ReadAll(c.conn)
		if err != nil || !strings.HasPrefix(string(all), "HTTP/1.1 "+test.status+" ") {
			t.Errorf("%s: %q, %v; want %s and the end", test.name, all, err, test.status)
		}
	}
	p.must(200, "GET", "/healthz", "")
	if n := len(p.ran()); n != 0 {
		t.Errorf("%d jobs ran", n)
	}
}

// With 2 workers and 4 places six are accepted at once. What the seventh meets
// is the policy's.
func TestProcessOverflow(t *testing.T) {
	for _, policy := range []string{"block", "reject", "drop-oldest"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			p := start(t, "-workers", "2", "-queue", "4", "-overflow", policy)
			began := time.Now()
			for range 6 {
				p.must(202, "POST", "/bbb", sleepFor(2))
			}
			if d := time.Since(began); d >= 2*time.Second {
				t.Errorf("six were accepted after %v; no place was free again before 2 s", d)
			}
			switch policy {
			case "block":
				p.must(202, "POST", "/bbb", sleepFor(0))
				if d := time.Since(began); d < 2*time.Second {
					t.Errorf("the seventh was accepted after %v, before a job of 2 s can have ended", d)
				}
				p.signal(syscall.SIGTERM)
				p.stopped()
				if n := len(p.ran()); n != 7 {
					t.Errorf("%d jobs ran, want 7", n)
				}
			case "reject":
				if a := p.must(503, "POST", "/bbb", sleepFor(0)); a.header.Get("Retry-After") != "1" {
					t.Errorf("Retry-After %q, want 1, as nothing has run yet", a.header.Get("Retry-After"))
				}
			case "drop-oldest":
				p.must(202, "POST", "/bbb", sleepFor(0))
				p.signal(syscall.SIGTERM)
				p.stopped()
				if n := len(p.ran()); n != 6 {
					t.Errorf("%d jobs ran, want 6 of 7", n)
				}
			}
		})
	}
}

// A burst that meets four idle workers and no queue: four are accepted, not
// three, and not five.
func TestProcessBurst(t *testing.T) {
	t.Parallel()
	for range 5 {
		p := start(t, "-workers", "4", "-queue", "0", "-overflow", "reject")
		status := make(chan int, 50)
		fire := make(chan struct{})
		for range cap(status) {
			c := p.connect()
			go func() {
				<-fire
				io.WriteString(c.conn, request("POST", "/bbb", sleepFor(5)))
				a, _ := c.receive()
				status <- a.status
			}()
		}
		close(fire)
		got := make(map[int]int)
		for range cap(status) {
			got[<-status]++
		}
		if got[202] != 4 || got[503] != 46 {
			t.Errorf("answers %v, want 4 times 202 and 46 times 503", got)
		}
		p.Cmd.Process.Kill()
		p.exit()
	}
}

// The load that ab makes: no request fails, and all answers are of one length.
func TestProcessLoad(t *testing.T) {
	t.Parallel()
	const requests, concurrency = 2000, 100
	p := start(t)
	for _, target := range []string{"/aaa", "/bbb"} {
		for _, test := range []struct {
			version, header string
			keep            bool
		}{
			{"1.0", "", false},
			{"1.0", "Connection: Keep-Alive\r\n", true},
			{"1.1", "Connection: close\r\n", false},
			{"1.1", "", true},
		} {
			text := fmt.Sprintf("POST %s HTTP/%s\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 16\r\n%s\r\n%s", target, test.version, test.header, sleepFor(0))
			answers := make(chan error, requests)
			var wg sync.WaitGroup
			for range concurrency {
				wg.Go(func() {
					var c *client
					for range requests / concurrency {
						if c == nil {
							conn, err := net.Dial("tcp", p.addr)
							if err != nil {
								answers <- err
								continue
							}
							conn.SetDeadline(time.Now().Add(patience))
							c = &client{conn: conn, r: bufio.NewReader(conn)}
						}
						answers <- func() error {
							if _, err := io.WriteString(c.conn, text); err != nil {
								return err
							}
							a, err := c.receive()
							if err != nil {
								return err
							}
							if a.status/100 != 2 || len(a.body) != map[string]int{"/aaa": 17, "/bbb": 94}[target] || a.close == test.keep {
								return fmt.Errorf("%d %q, close %v", a.status, a.body, a.close)
							}
							return nil
						}()
						if !test.keep {
							c.conn.Close()
							c = nil
						}
					}
					if c != nil {
						c.conn.Close()
					}
				})
			}
			wg.Wait()
			close(answers)
			failed := 0
			var first error
			for err := range answers {
				if err != nil && failed == 0 {
					first = err
				}
				if err != nil {
					failed++
				}
			}
			if failed > 0 {
				t.Errorf("%s HTTP/%s %q: %d of %d failed, the first with %v", target, test.version, test.header, failed, requests, first)
			}
		}
	}
	p.signal(syscall.SIGTERM)
	p.stopped()
	if n := len(p.ran()); n != 4*requests {
		t.Errorf("%d jobs ran, want %d", n, 4*requests)
	}
}

// Whoever has been told 202 has a job that ran, whenever the signal comes.
func TestStopUnderLoad(t *testing.T) {
	const clients = 8
	build(t)
	for n := range *stops {
		seed := *firstSeed + uint64(n)
		rng := rand.New(rand.NewPCG(seed, 0))
		keep := rng.IntN(2) == 0
		after := 1 + rng.IntN(300)
		p := start(t, "-workers", "4", "-queue", "50")
		ids := make(chan string, 1<<16)
		var accepted sync.WaitGroup
		enough := make(chan struct{})
		var mu sync.Mutex
		count := 0
		for range clients {
			accepted.Go(func() {
				var c *client
				for {
					if c == nil {
						conn, err := net.Dial("tcp", p.addr)
						if err != nil {
							return
						}
						conn.SetDeadline(time.Now().Add(patience))
						c = &client{conn: conn, r: bufio.NewReader(conn)}
					}
					if _, err := io.WriteString(c.conn, request("POST", "/bbb", sleepFor(0))); err != nil {
						c.conn.Close()
						return
					}
					a, err := c.receive()
					if err != nil || a.status != 202 {
						c.conn.Close()
						if err == nil && (a.status != 503 || !strings.Contains(a.body, "shutting down")) {
							t.Errorf("seed %d: %d %s", seed, a.status, a.body)
						}
						return
					}
					ids <- a.id()
					mu.Lock()
					if count++; count == after {
						close(enough)
					}
					mu.Unlock()
					if !keep {
						c.conn.Close()
						c = nil
					}
				}
			})
		}
		select {
		case <-enough:
		case <-time.After(patience):
			t.Fatalf("seed %d: the load has stopped by itself", seed)
		}
		p.signal(syscall.SIGTERM)
		p.stopped()
		accepted.Wait()
		close(ids)
		ran := p.ran()
		for id := range ids {
			if ran[short(id)] != 1 {
				t.Errorf("seed %d: job %s was accepted and ran %d times", seed, id, ran[short(id)])
			}
		}
		if t.Failed() {
			t.Fatalf("repeat with -seed %d -stops 1", seed)
		}
	}
}

// While it drains the process answers that it is not ready, and takes nothing.
func TestProcessDrains(t *testing.T) {
	t.Parallel()
	p := start(t, "-workers", "1")
	ids := []string{p.must(202, "POST", "/bbb", sleepFor(1)).id(), p.must(202, "POST", "/bbb", sleepFor(1)).id()}
	p.signal(syscall.SIGTERM)
	p.AwaitLog(regexp.MustCompile(` INFO stopping `))
	var readiness int
	for end := time.Now().Add(patience); readiness != 503 && time.Now().Before(end); { // the line comes first
		a, err := p.once("GET", "/readyz", "")
		if err != nil {
			t.Fatal(err)
		}
		readiness = a.status
	}
	p.must(200, "GET", "/healthz", "")
	p.must(503, "POST", "/bbb", sleepFor(0))
	p.must(503, "POST", "/aaa", sleepFor(0))
	p.stopped()
	if ran := p.ran(); len(ran) != 2 || ran[short(ids[0])] != 1 || ran[short(ids[1])] != 1 {
		t.Errorf("ran %v, want %v", ran, ids)
	}
}

func TestProcessDrainLimit(t *testing.T) {
	t.Parallel()
	p := start(t, "-workers", "1", "-drain", "200ms")
	p.must(202, "POST", "/bbb", sleepFor(60))
	p.must(202, "POST", "/bbb", sleepFor(60))
	p.signal(syscall.SIGTERM)
	if code := p.exit(); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	if log := p.Text(); !strings.Contains(log, "INFO stopped finished=0 cut_off=1 never_started=1 ") || !strings.Contains(log, "ERROR ") {
		t.Error("the log does not tell what was cut off")
	}
}

func TestProcessSecondSignal(t *testing.T) {
	t.Parallel()
	for _, drain := range []string{"0", "10m"} {
		p := start(t, "-workers", "1", "-drain", drain)
		p.must(202, "POST", "/bbb", sleepFor(60))
		p.signal(syscall.SIGTERM)
		p.AwaitLog(regexp.MustCompile(` INFO stopping `))
		// The process may not be done yet with handling the first one, so
		// the second one is repeated.
		began, signals := time.Now(), 0
		for ended := false; !ended; signals++ {
			err := p.Cmd.Process.Signal(syscall.SIGTERM)
			if d := time.Since(began); d > patience {
				t.Fatalf("goes on %v after the second signal, which was sent %d times, the last time with %v", d, signals, err)
			}
			select {
			case <-p.Ended:
				ended = true
			case <-time.After(100 * time.Millisecond):
			}
		}
		if status := p.Cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGTERM {
			t.Errorf("ended with %v, want by the signal", p.Cmd.ProcessState)
		}
	}
}

func TestProcessStartFails(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	addr := taken.Addr().String()
	for _, test := range []struct {
		args []string
		env  string
		code int
		says []string
	}{
		{[]string{"-addr", addr}, "", 1, []string{addr, "in use"}},
		{nil, "ADDR=" + addr, 1, []string{addr, "in use"}},
		{[]string{"-addr", "no-port"}, "", 1, []string{"no-port"}},
		{[]string{"-workers", "many"}, "", 2, []string{"-workers", "many", "0 to 1000000"}},
		{[]string{"-nonsense"}, "", 2, []string{"-nonsense"}},
		{[]string{"serve"}, "", 2, []string{"serve"}},
		{[]string{"-admin", ":8100"}, "", 2, []string{"-admin :8100", "-admin-token-file"}},
		{[]string{"-admin-token-file", "/nonexistent"}, "", 2, []string{"-admin-token-file", "/nonexistent"}},
		{nil, "OVERFLOW=sometimes", 2, []string{"OVERFLOW", "sometimes", "block, reject or drop-oldest"}},
		{[]string{"-h"}, "", 0, []string{"-workers", "MAX_WORKERS"}},
		{[]string{"-version"}, "", 0, []string{"holdfast devel"}},
	} {
		p := launch(t, []string{test.env}, build(t), test.args...)
		if code := p.exit(); code != test.code {
			t.Errorf("%q %s: exit code %d, want %d", test.args, test.env, code, test.code)
		}
		log := p.Text()
		for _, want := range test.says {
			if !strings.Contains(log, want) {
				t.Errorf("%q %s: %q does not say %q", test.args, test.env, log, want)
			}
		}
		if test.code != 0 && strings.Count(log, "\n") != 1 {
			t.Errorf("%q %s: %q, want one line", test.args, test.env, log)
		}
	}
}

// admin starts the server with an admin listener on a free port, and returns its
// address.
func admin(t *testing.T, args ...string) (p *process, addr string) {
	t.Helper()
	p = start(t, append([]string{"-admin", "127.0.0.1:0"}, args...)...)
	return p, p.Admin()
}

// What only the operator may see stands on the operator's listener alone.
func TestProcessAdmin(t *testing.T) {
	t.Parallel()
	p, addr := admin(t)
	own := &process{Process: p.Process, t: t, addr: addr}
	for _, target := range []string{"/stats", "/events", "/jobs", "/burst", "/dispatcher", "/debug/vars", "/debug/pprof/", "/page.js"} {
		for _, method := range []string{"GET", "POST", "PATCH"} {
			if a, err := p.once(method, target, "{}"); err != nil || a.status != 404 {
				t.Errorf("%s %s on the public listener: %d, %v; want 404", method, target, a.status, err)
			}
		}
	}
	for _, target := range []string{"/", "/stats", "/jobs", "/debug/vars", "/debug/pprof/", "/healthz", "/readyz"} {
		if a, err := own.once("GET", target, ""); err != nil || a.status != 200 {
			t.Errorf("%s: %d, %v; want 200", target, a.status, err)
		}
	}
	for _, target := range []string{"/aaa", "/bbb"} {
		if a, err := own.once("POST", target, sleepFor(0)); err != nil || a.status != 404 {
			t.Errorf("%s on the admin listener: %d, %v; want 404", target, a.status, err)
		}
	}
	if a, err := own.once("PATCH", "/dispatcher", `{"workers":3,"overflow":"reject"}`); err != nil || a.status != 200 {
		t.Errorf("PATCH: %d, %v", a.status, err)
	}
	p.AwaitLog(regexp.MustCompile(`dispatcher changed workers=3 overflow=reject`))
	if a, err := own.once("POST", "/burst", `{"path":"/bbb","jobs":300,"sleep_time":0}`); err != nil || a.status != 202 {
		t.Errorf("POST /burst: %d, %v", a.status, err)
	}
	p.signal(syscall.SIGTERM)
	p.stopped()
}

// Whoever watches sees the queue drain, to the end.
func TestProcessAdminOutlivesTheDrain(t *testing.T) {
	t.Parallel()
	p, addr := admin(t, "-workers", "1")
	res, err := http.Get("http://" + addr + "/events")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	for range 2 {
		if a, err := p.once("POST", "/bbb", sleepFor(2)); err != nil || a.status != 202 {
			t.Fatalf("%d, %v", a.status, err)
		}
	}
	p.signal(syscall.SIGTERM)
	own := &process{Process: p.Process, t: t, addr: addr}
	p.AwaitLog(regexp.MustCompile(`INFO stopping `))
	for target, status := range map[string]int{"/readyz": 503, "/healthz": 200, "/jobs": 200, "/stats": 200} {
		if a, err := own.once("GET", target, ""); err != nil || a.status != status {
			t.Errorf("%s while it stops: %d, %v; want %d", target, a.status, err, status)
		}
	}
	if a, err := own.once("PATCH", "/dispatcher", `{"workers":3}`); err != nil || a.status != 503 {
		t.Errorf("PATCH while it stops: %d, %v", a.status, err)
	}
	told, err := io.ReadAll(res.Body)
	if err != nil || !strings.Contains(string(told), `"stopping":true`) || !strings.Contains(string(told), `"succeeded":1,`) {
		t.Errorf("the stream ended with %v, and tells %.2000s", err, told)
	}
	p.stopped()
}

// A second server on the machine starts like the first, unless it was said where
// the operator is to find it.
func TestProcessAdminTaken(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:8100")
	if err == nil {
		defer taken.Close() // else another server has it, which does as well: no test does
	}
	p := launch(t, nil, build(t), "-addr", "127.0.0.1:0")
	p.listens()
	if log := p.Text(); !strings.Contains(log, "no admin listener: its default address is taken") || strings.Contains(log, "dashboard") {
		t.Errorf("%q does not say that there is no dashboard", log)
	}
	off := start(t)
	if log := off.Text(); strings.Contains(log, "admin listener") || strings.Contains(log, "dashboard") {
		t.Errorf("-admin \"\": %q", log)
	}
	set := launch(t, nil, build(t), "-addr", "127.0.0.1:0", "-admin", "127.0.0.1:8100")
	if code := set.exit(); code != 1 || !strings.Contains(set.Text(), "127.0.0.1:8100") || !strings.Contains(set.Text(), "in use") {
		t.Errorf("exit code %d, %q; want 1 and the reason", code, set.Text())
	}
}

// The gateway's connections follow the number of workers.
func TestProcessAdminResizesGateway(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var now, most int
	hold := make(chan struct{})
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		now++
		most = max(most, now)
		mu.Unlock()
		<-hold
		mu.Lock()
		now--
		mu.Unlock()
	}))
	defer upstream.Close()
	release := sync.OnceFunc(func() { close(hold) })
	defer release()
	seen := func(n int) {
		t.Helper()
		for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
			mu.Lock()
			at := now
			mu.Unlock()
			if at == n {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%d requests at the upstream, want %d", at, n)
			}
		}
	}
	p, addr := admin(t, "-workers", "1", "-upstream", upstream.URL)
	for range 5 {
		if a, err := p.once("GET", "/async/", ""); err != nil || a.status != 202 {
			t.Fatalf("%d, %v", a.status, err)
		}
	}
	seen(1)
	own := &process{Process: p.Process, t: t, addr: addr}
	if a, err := own.once("PATCH", "/dispatcher", `{"workers":4}`); err != nil || a.status != 200 {
		t.Fatalf("%d, %v", a.status, err)
	}
	seen(4)
	release()
	seen(0)
	p.signal(syscall.SIGTERM)
	p.stopped()
	if most > 4 {
		t.Errorf("%d requests at the upstream at once, want at most 4", most)
	}
}

func TestProcessEnvironment(t *testing.T) {
	t.Parallel()
	p := launch(t, []string{"ADDR=127.0.0.1:0", "MAX_WORKERS=3", "MAX_QUEUE=", "OVERFLOW=reject"}, build(t), "-workers", "2", "-admin", "")
	p.listens()
	if log := p.Text(); !strings.Contains(log, " workers=2 queue=200 overflow=reject\n") {
		t.Errorf("%q, want the flag, the default and the variable", log)
	}
}

// With few descriptors the process never hangs: what it cannot hold it refuses
// or closes, and then it serves again.
func TestProcessFewDescriptors(t *testing.T) {
	t.Parallel()
	const files, conns = 64, 200
	_, want := connsOf(files, 0)
	p := launch(t, nil, "sh", "-c", fmt.Sprintf(`ulimit -n %d; exec "$0" "$@"`, files), build(t), "-addr", "127.0.0.1:0", "-admin", "")
	p.listens()
	for round := range 3 {
		var open []*client
		for range conns {
			open = append(open, p.connect())
		}
		got := make(map[int]int)
		var mu sync.Mutex
		var wg sync.WaitGroup
		for _, c := range open {
			wg.Go(func() {
				io.WriteString(c.conn, request("GET", "/healthz", ""))
				a, err := c.receive() // 0: closed without an answer
				if errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error("a connection is neither served nor closed")
				}
				if a.status == 503 {
					a.check(t, 503)
				}
				mu.Lock()
				defer mu.Unlock()
				got[a.status]++
			})
		}
		wg.Wait()
		// Each refusal was sent before a request: what a client loses of it, it loses
		// because its own request meets a closed connection.
		if got[200] < want || got[200]+got[503]+got[0] != conns {
			t.Errorf("round %d: answers %v, want at least %d times 200, and else 503 or none", round, got, want)
		}
		t.Log(got)
		for _, c := range open {
			c.conn.Close()
		}
		// The server sees the ends one after the other.
		served := 0
		for end := time.Now().Add(patience); served < want && time.Now().Before(end); {
			if a, err := p.once("GET", "/healthz", "", "Connection: close"); err == nil && a.status == 200 {
				served++
			} else {
				served = 0
			}
		}
		if served < want {
			t.Fatalf("round %d: the server does not recover", round)
		}
	}
	if strings.Contains(p.Text(), "too many open files") {
		t.Error("the process ran out of descriptors")
	}
	p.signal(syscall.SIGTERM)
	p.stopped()
}

// The clients that people have: net/http's own, with a pool of connections, and
// one that expects 100 Continue.
func TestProcessStandardClient(t *testing.T) {
	t.Parallel()
	p := start(t)
	transport := &http.Transport{ExpectContinueTimeout: patience, MaxIdleConnsPerHost: 10}
	defer transport.CloseIdleConnections()
	hc := &http.Client{Transport: transport, Timeout: patience}
	for n := range 100 {
		target, body, status := "/bbb", sleepFor(0), 202
		switch n % 5 {
		case 1:
			target, status = "/aaa", 200
		case 2:
			body, status = "{}", 400
		case 3:
			target, status = "/nowhere", 404
		case 4:
			body, status = strings.Repeat(" ", 3<<20), 413
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		req, err := http.NewRequestWithContext(ctx, "POST", "http://"+p.addr+target, bytes.NewReader([]byte(body)))
		if err != nil {
			t.Fatal(err)
		}
		if n%2 == 0 {
			req.Header.Set("Expect", "100-continue")
		}
		res, err := hc.Do(req)
		if err != nil {
			t.Fatalf("request %d to %s: %v", n, target, err)
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
		cancel()
		if res.StatusCode != status {
			t.Errorf("request %d to %s: %d, want %d", n, target, res.StatusCode, status)
		}
	}
}
