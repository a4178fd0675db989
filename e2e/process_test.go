package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience bounds whatever is waited for here.
const patience = 30 * time.Second

var binary struct {
	once      sync.Once
	dir, path string
	err       error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if binary.dir != "" {
		os.RemoveAll(binary.dir)
	}
	os.Exit(code)
}

// build returns the path of the server, with the race detector if the tests have
// it.
func build(t *testing.T) string {
	t.Helper()
	binary.once.Do(func() {
		if binary.dir, binary.err = os.MkdirTemp("", "holdfast-e2e"); binary.err != nil {
			return
		}
		binary.path = filepath.Join(binary.dir, "holdfast")
		args := []string{"build", "-o", binary.path}
		if info, ok := debug.ReadBuildInfo(); ok {
			for _, s := range info.Settings {
				if s.Key == "-race" && s.Value == "true" {
					args = append(args, "-race")
				}
			}
		}
		cmd := exec.Command("go", append(args, "main.go")...)
		cmd.Dir = ".."
		if out, err := cmd.CombinedOutput(); err != nil {
			binary.err = fmt.Errorf("%v: %v\n%s", cmd, err, out)
		}
	})
	if binary.err != nil {
		t.Fatal(binary.err)
	}
	return binary.path
}

// A process is a server that a test has started, and ends with it.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	addr  string
	ended chan struct{}

	mu    sync.Mutex
	log   []byte
	lines chan struct{} // has room for one; there is more in log
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	p.log = append(p.log, b...)
	p.mu.Unlock()
	select {
	case p.lines <- struct{}{}:
	default:
	}
	return len(b), nil
}

func (p *process) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return string(p.log)
}

// start runs the server on a free port and returns when it listens. The
// environment is empty, so that no variable changes what is tested.
func start(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{
		t:     t,
		cmd:   exec.Command(build(t), append([]string{"-addr", "127.0.0.1:0"}, args...)...),
		ended: make(chan struct{}),
		lines: make(chan struct{}, 1),
	}
	p.cmd.Env = []string{"GORACE=atexit_sleep_ms=0"}
	p.cmd.Stdout, p.cmd.Stderr = p, p
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		<-p.ended
		if log := p.text(); strings.Contains(log, "DATA RACE") {
			t.Errorf("data race in the process:\n%s", log)
		} else if t.Failed() {
			t.Logf("%v\n%s", p.cmd, log)
		}
	})
	p.addr = p.awaitLog(regexp.MustCompile(` addr=(\S+) `))
	return p
}

// awaitLog waits for a line in the log and returns the expression's last group.
func (p *process) awaitLog(line *regexp.Regexp) string {
	p.t.Helper()
	late := time.After(patience)
	for {
		if match := line.FindStringSubmatch(p.text() + "\n"); match != nil {
			return match[len(match)-1]
		}
		select {
		case <-p.lines:
		case <-p.ended:
			p.t.Fatalf("ended without %v in the log:\n%s", line, p.text())
		case <-late:
			p.t.Fatalf("no %v in the log", line)
		}
	}
}
