//go:build unix

package server

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// What becomes of the process when its log, its terminal or the reader of its log
// does not do as it should.

var logStops = flag.Int("log-stops", 5, "stops of TestStopWithBadLog, with each kind of log reader")

// A piped is a server whose log goes into a pipe that the test reads, or does not.
type piped struct {
	*process // without a Process
	cmd      *exec.Cmd
	log      *os.File
	lines    *bufio.Reader
	ended    chan struct{}
}

// startPiped returns the server when it listens. The pipe holds little, where that
// can be had.
func startPiped(t *testing.T, args ...string) *piped {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS == "linux" {
		const setPipeSize = 1031 // F_SETPIPE_SZ
		syscall.Syscall(syscall.SYS_FCNTL, write.Fd(), setPipeSize, 4096)
	}
	p := &piped{process: &process{t: t}, log: read, lines: bufio.NewReaderSize(read, 4096), ended: make(chan struct{})}
	p.cmd = exec.Command(build(t), append([]string{"-addr", "127.0.0.1:0", "-admin", "", "-log-jobs"}, args...)...)
	p.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "GORACE=atexit_sleep_ms=0"}
	p.cmd.Stdout, p.cmd.Stderr = write, write
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	write.Close()
	go func() {
		p.cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		<-p.ended
		read.Close()
	})
	first, err := p.lines.ReadString('\n')
	match := regexp.MustCompile(` addr=(\S+) `).FindStringSubmatch(first)
	if match == nil {
		t.Fatalf("%q, %v; want the address", first, err)
	}
	p.addr = match[1]
	return p
}

// stop sends a signal and checks that the process ends with status 0. It returns how
// long that has taken.
func (p *piped) stop(signal os.Signal) time.Duration {
	p.t.Helper()
	began := time.Now()
	p.cmd.Process.Signal(signal)
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.t.Fatalf("does not end after %v", signal)
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		p.t.Errorf("ended with %v, want status 0", p.cmd.ProcessState)
	}
	return time.Since(began)
}

// post sends so many jobs that do nothing, on some connections.
func (p *piped) post(jobs int) {
	p.t.Helper()
	const conns = 8
	var all sync.WaitGroup
	for range conns {
		all.Go(func() {
			conn, err := net.Dial("tcp", p.addr)
			if err != nil {
				p.t.Error(err)
				return
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(patience))
			c := &client{t: p.t, conn: conn, r: bufio.NewReader(conn)}
			for range jobs / conns {
				io.WriteString(conn, request("POST", "/bbb", sleepFor(0)))
				if a, err := c.receive(); err != nil || a.status != 202 {
					p.t.Errorf("%d, %v; want 202", a.status, err)
					return
				}
			}
		})
	}
	all.Wait()
}

// Ctrl-C goes to tee as well, which ends first.
func TestTeeEndsFirst(t *testing.T) {
	t.Parallel()
	program, dir := build(t), t.TempDir()
	status := filepath.Join(dir, "status")
	log := filepath.Join(dir, "log")
	// The shell must see Ctrl-C too, or it would start the program without.
	p := exec.Command("sh", "-c", `{ trap : INT; "$0" -addr 127.0.0.1:0 -admin "" -workers 1 -log-jobs; echo $? >`+status+`; } 2>&1 | tee `+log, program)
	p.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(-p.Process.Pid, syscall.SIGKILL)
		p.Wait()
	})
	s := &process{t: t, addr: awaitFile(t, log, regexp.MustCompile(` addr=(\S+) `))}
	var ids []string
	for range 3 {
		ids = append(ids, s.must(202, "POST", "/bbb", sleepFor(1)).id())
	}
	syscall.Kill(-p.Process.Pid, syscall.SIGINT)
	for _, id := range ids {
		a := s.must(200, "GET", "/jobs/"+id+"/response", "", "Prefer: wait=30")
		if a.body != sleepFor(1)+"\n" {
			t.Errorf("job %s: %q", id, a.body)
		}
	}
	if code := awaitFile(t, status, regexp.MustCompile(`(\d+)\n`)); code != "0" {
		t.Errorf("status %s, want 0", code)
	}
}

// awaitFile waits for something to stand in a file.
func awaitFile(t *testing.T, name string, want *regexp.Regexp) string {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		text, _ := os.ReadFile(name)
		if match := want.FindSubmatch(text); match != nil {
			return string(match[1])
		}
	}
	t.Fatalf("no %v in %s", want, name)
	return ""
}

// A log that nobody reads holds up neither jobs nor requests nor the stop.
func TestLogStandsStill(t *testing.T) {
	t.Parallel()
	p := startPiped(t, "-drain", "1s")
	p.post(4000)
	id := p.must(202, "POST", "/bbb", sleepFor(0)).id()
	p.must(200, "GET", "/jobs/"+id+"/response", "", "Prefer: wait=30")
	p.must(200, "POST", "/aaa", sleepFor(0))
	// The drain, and after it a second for answers and half a one for the log, besides
	// what a busy machine needs.
	if took := p.stop(syscall.SIGTERM); took > 10*time.Second {
		t.Errorf("the stop has taken %v with -drain 1s", took)
	}
}

// When it is read again, it says how many lines were lost.
func TestLogGoesOn(t *testing.T) {
	t.Parallel()
	const jobs = 16_000 // with more lines than a pipe and the buffers hold
	p := startPiped(t)
	p.post(jobs)
	text := make(chan string)
	go func() {
		all, _ := io.ReadAll(p.lines)
		text <- string(all)
	}()
	p.stop(syscall.SIGTERM)
	log := <-text
	lost := 0
	for _, match := range regexp.MustCompile(` WARN lines of this log were lost lines=(\d+)\n`).FindAllStringSubmatch(log, -1) {
		n, _ := strconv.Atoi(match[1])
		lost += n
	}
	ran := strings.Count(log, " INFO job ended ")
	stopping := strings.Count(log, " INFO stopping ") // which may be among those lost
	if lost == 0 || ran+stopping+lost != jobs+1 || !strings.Contains(log, " INFO stopped ") {
		t.Errorf("%d lines of jobs and %d lost, of %d and one; the log ends with %q", ran+stopping, lost, jobs, log[max(0, len(log)-300):])
	}
}

// A log that may not become larger costs lines alone.
func TestLogIsFull(t *testing.T) {
	t.Parallel()
	log := filepath.Join(t.TempDir(), "log")
	p := launch(t, nil, "sh", "-c", `ulimit -f 8; exec "$0" "$@" 2>`+log, build(t), "-addr", "127.0.0.1:0", "-admin", "", "-log-jobs")
	p.addr = awaitFile(t, log, regexp.MustCompile(` addr=(\S+) `))
	full := &piped{process: p}
	full.post(400)
	p.signal(syscall.SIGTERM)
	if code := p.exit(); code != 0 {
		t.Errorf("ended with %v, want status 0", p.Cmd.ProcessState)
	}
	if text, err := os.ReadFile(log); err != nil || strings.Contains(string(text), "stopped") {
		t.Errorf("%v; %d bytes, want a log that was full long before", err, len(text))
	}
}

// Go's transport logs a line for each connection on which the upstream says more than
// it was asked. These are lines like the others, and few.
func TestTransportLogs(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
					io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"+strings.Repeat("more\n", 500))
					io.Copy(io.Discard, c)
				}
			}()
		}
	}()
	p := start(t, "-workers", "1", "-upstream", "http://"+l.Addr().String())
	for range 30 {
		// What is left on a connection may be taken for the next response: 502.
		if a, err := p.once("GET", "/sync/", ""); err != nil || a.status != 200 && a.status != 502 {
			t.Fatalf("%d, %v", a.status, err)
		}
	}
	p.signal(syscall.SIGTERM)
	p.stopped()
	log := p.Text()
	if n := strings.Count(log, " WARN Unsolicited response "); n == 0 || n > 10 {
		t.Errorf("%d lines of the transport, want 1 to 10", n)
	}
	for line := range strings.Lines(log) {
		if !regexp.MustCompile(`^\S+ \S+ (INFO|WARN) `).MatchString(line) {
			t.Errorf("%q is no record", line)
		}
	}
}

// A path takes little of the log, however long it is.
func TestLogIsShort(t *testing.T) {
	t.Parallel()
	p := start(t, "-upstream", "http://127.0.0.1:1")
	before := len(p.Text())
	for range 20 {
		p.must(502, "GET", "/sync/"+strings.Repeat("%0a", 20_000), "")
	}
	p.signal(syscall.SIGTERM)
	p.stopped()
	if n := len(p.Text()) - before; n > 40_000 {
		t.Errorf("20 requests have logged %d bytes", n)
	}
}

// A hangup drains as SIGTERM does, and the second one, which the shell sends besides
// the kernel, does not end it.
func TestHangup(t *testing.T) {
	t.Parallel()
	for _, first := range []syscall.Signal{syscall.SIGHUP, syscall.SIGTERM} {
		p := start(t, "-workers", "1")
		for range 3 {
			p.must(202, "POST", "/bbb", sleepFor(1))
		}
		p.signal(first)
		p.AwaitLog(regexp.MustCompile(` INFO stopping `))
		for range 3 {
			p.Cmd.Process.Signal(syscall.SIGHUP)
			time.Sleep(50 * time.Millisecond)
		}
		p.stopped()
		if n := len(p.ran()); n != 3 {
			t.Errorf("%v: %d jobs ran, want 3", first, n)
		}
	}
}

// With nohup a hangup is nothing.
func TestHangupIgnored(t *testing.T) {
	t.Parallel()
	p := launch(t, nil, "nohup", build(t), "-addr", "127.0.0.1:0", "-admin", "", "-log-jobs")
	p.listens()
	p.must(202, "POST", "/bbb", sleepFor(0))
	for range 3 {
		p.signal(syscall.SIGHUP)
		time.Sleep(50 * time.Millisecond)
		p.must(200, "GET", "/readyz", "")
	}
	p.signal(syscall.SIGTERM)
	p.Cmd.Process.Signal(syscall.SIGHUP)
	p.stopped()
}

// The readers of a log, from the moment at which the server is under load until it
// has ended.
var logReaders = map[string]func(p *piped){
	"gone":  func(p *piped) { p.log.Close() },
	"stuck": func(p *piped) {},
	"slow": func(p *piped) {
		go func() {
			for {
				if _, err := p.lines.Read(make([]byte, 100)); err != nil {
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
		}()
	},
}

// Whoever has been told 202 has a job that ran, whatever reads the log.
func TestStopWithBadLog(t *testing.T) {
	const clients, drain = 8, 10 * time.Second
	build(t)
	for reader, read := range logReaders {
		t.Run(reader, func(t *testing.T) {
			total, lost := 0, 0
			var longest time.Duration
			for n := range *logStops {
				var mu sync.Mutex
				ran := make(map[string]int)
				upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					time.Sleep(time.Millisecond)
					mu.Lock()
					ran[r.URL.Path]++
					mu.Unlock()
				}))
				p := startPiped(t, "-workers", "4", "-queue", "50", "-drain", drain.String(), "-linger", "0", "-upstream", upstream.URL)
				seed := *firstSeed + uint64(n)
				after := 100 + rand.New(rand.NewPCG(seed, 0)).IntN(300)
				accepted, took := underLoad(p, clients, after, func() { read(p) })
				longest = max(longest, took)
				upstream.Close()
				total += len(accepted)
				for _, path := range accepted {
					if ran[path] != 1 {
						lost++
						t.Errorf("seed %d: %s was accepted and ran %d times", seed, path, ran[path])
					}
				}
				if t.Failed() {
					t.Fatalf("repeat with -seed %d -log-stops 1 -run /%s", seed, reader)
				}
			}
			t.Logf("%d stops: %d accepted, %d lost; the longest took %v", *logStops, total, lost, longest)
		})
	}
}

// underLoad sends requests for jobs of the gateway, with one for a job that is logged
// after each, until the server stops, which it does when so many are accepted. It
// returns the paths of those that were.
func underLoad(p *piped, clients, after int, loaded func()) (accepted []string, took time.Duration) {
	var mu sync.Mutex
	var all sync.WaitGroup
	half, enough := make(chan struct{}), make(chan struct{})
	accept := func(path string) {
		mu.Lock()
		defer mu.Unlock()
		accepted = append(accepted, path)
		switch len(accepted) {
		case after / 2:
			close(half)
		case after:
			close(enough)
		}
	}
	for i := range clients {
		all.Go(func() {
			for k := 0; ; k++ {
				path := fmt.Sprintf("/%d-%d", i, k)
				a, err := p.once("GET", "/async"+path, "")
				if err != nil || a.status != 202 {
					return
				}
				accept(path)
				p.once("POST", "/bbb", sleepFor(0))
			}
		})
	}
	for _, reached := range []chan struct{}{half, enough} {
		select {
		case <-reached:
		case <-time.After(patience):
			p.t.Fatal("the load has stopped by itself")
		}
		if reached == half {
			loaded()
		}
	}
	took = p.stop(syscall.SIGTERM)
	all.Wait()
	return accepted, took
}
