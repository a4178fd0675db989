// Package proctest starts main.go as it is shipped, for tests.
package proctest

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

// Patience bounds whatever is waited for.
const Patience = 30 * time.Second

var binary struct {
	once      sync.Once
	dir, path string
	err       error
}

// Main runs the tests and removes what Build has made. It is what TestMain calls.
func Main(m *testing.M) {
	code := m.Run()
	if binary.dir != "" {
		os.RemoveAll(binary.dir)
	}
	os.Exit(code)
}

// Build returns the path of the program, with the race detector if the tests have
// it. It builds once.
func Build(t *testing.T) string {
	t.Helper()
	binary.once.Do(func() {
		// The tests may stand in another module. A package names the root's module
		// in a way that make module finds, whatever its path.
		root, err := exec.Command("go", "list", "-f", "{{.Module.Dir}}", "holdfast/internal/proctest").Output()
		if err != nil {
			binary.err = fmt.Errorf("go list holdfast/internal/proctest: %v", err)
			return
		}
		if binary.dir, binary.err = os.MkdirTemp("", "holdfast"); binary.err != nil {
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
		cmd.Dir = strings.TrimSpace(string(root))
		if out, err := cmd.CombinedOutput(); err != nil {
			binary.err = fmt.Errorf("%v: %v\n%s", cmd, err, out)
		}
	})
	if binary.err != nil {
		t.Fatal(binary.err)
	}
	return binary.path
}

// A Process is a command that a test has started, and ends with it.
type Process struct {
	Cmd   *exec.Cmd
	Ended chan struct{} // closed when it has ended and its log is complete

	t     *testing.T
	mu    sync.Mutex
	log   []byte
	lines chan struct{} // has room for one; there is more in log
}

// Launch starts a command with env as its environment, besides the PATH.
func Launch(t *testing.T, env []string, name string, args ...string) *Process {
	t.Helper()
	p := &Process{t: t, Cmd: exec.Command(name, args...), Ended: make(chan struct{}), lines: make(chan struct{}, 1)}
	p.Cmd.Env = append(env, "PATH="+os.Getenv("PATH"), "GORACE=atexit_sleep_ms=0")
	p.Cmd.Stdout, p.Cmd.Stderr = p, p
	if err := p.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.Cmd.Wait()
		close(p.Ended)
	}()
	t.Cleanup(func() {
		p.Cmd.Process.Kill()
		<-p.Ended
		log := p.Text()
		if strings.Contains(log, "DATA RACE") {
			t.Error("data race in the process")
		}
		if t.Failed() {
			if len(log) > 4000 {
				log = log[:1000] + "\n…\n" + log[len(log)-3000:]
			}
			t.Logf("%v\n%s", p.Cmd, log)
		}
	})
	return p
}

// Write appends to the log. It is where the process writes to.
func (p *Process) Write(b []byte) (int, error) {
	p.mu.Lock()
	p.log = append(p.log, b...)
	p.mu.Unlock()
	select {
	case p.lines <- struct{}{}:
	default:
	}
	return len(b), nil
}

// Text returns what the process has written so far.
func (p *Process) Text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return string(p.log)
}

// Addr waits until the server listens, and returns where.
func (p *Process) Addr() string {
	p.t.Helper()
	return p.AwaitLog(regexp.MustCompile(` addr=(\S+) `))
}

// Admin waits until the operator's listener listens, and returns where.
func (p *Process) Admin() string {
	p.t.Helper()
	return p.AwaitLog(regexp.MustCompile(` dashboard url=http://(\S+)/`))
}

// AwaitLog waits for a line in the log and returns the expression's last group.
func (p *Process) AwaitLog(line *regexp.Regexp) string {
	p.t.Helper()
	late := time.After(Patience)
	for {
		if match := line.FindStringSubmatch(p.Text() + "\n"); match != nil {
			return match[len(match)-1]
		}
		select {
		case <-p.lines:
		case <-p.Ended:
			if match := line.FindStringSubmatch(p.Text() + "\n"); match != nil {
				return match[len(match)-1]
			}
			p.t.Fatalf("ended without %v in the log", line)
		case <-late:
			p.t.Fatalf("no %v in the log", line)
		}
	}
}
