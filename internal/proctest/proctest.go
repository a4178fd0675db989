// Package proctest builds and starts the shipped main.go in tests.
package proctest

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A process inherits what its parent ignores. The tests may run where a hangup is
// ignored, but what they start must begin as from a shell.
func init() { signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP) }

// Patience is the longest time to wait for anything.
const Patience = 30 * time.Second

var built struct {
	mu       sync.Mutex
	dir      string
	programs map[string]string // by package
}

// Main runs the tests and removes the programs that were built. Call it from
// TestMain.
func Main(m *testing.M) {
	code := m.Run()
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// Build returns the path of the program that main.go in the root is.
func Build(t *testing.T) string {
	t.Helper()
	// The tests may stand in another module. A package names the root's module
	// in a way that make module finds, whatever its path.
	root, err := exec.Command("go", "list", "-f", "{{.Module.Dir}}", "holdfast/internal/proctest").Output()
	if err != nil {
		t.Fatalf("go list holdfast/internal/proctest: %v", err)
	}
	return build(t, strings.TrimSpace(string(root)), "main.go")
}

// BuildPackage is Build for a package of the module that the tests stand in.
func BuildPackage(t *testing.T, name string) string {
	t.Helper()
	return build(t, "", name)
}

// build builds a program once, with the race detector if the tests have it.
func build(t *testing.T, dir, name string) string {
	t.Helper()
	built.mu.Lock()
	defer built.mu.Unlock()
	if path, ok := built.programs[name]; ok {
		return path
	}
	if built.dir == "" {
		var err error
		if built.dir, err = os.MkdirTemp("", "holdfast"); err != nil {
			t.Fatal(err)
		}
		built.programs = make(map[string]string)
	}
	path := filepath.Join(built.dir, fmt.Sprintf("holdfast%d", len(built.programs)))
	args := []string{"build", "-o", path}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "-race" && s.Value == "true" {
				args = append(args, "-race")
			}
		}
	}
	cmd := exec.Command("go", append(args, name)...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	built.programs[name] = path
	return path
}

// A Process is a command that a test started. It is killed when the test ends.
type Process struct {
	Cmd   *exec.Cmd
	Ended chan struct{} // closed when the process has ended and its log is complete

	t     *testing.T
	mu    sync.Mutex // protects log
	log   []byte
	lines chan struct{} // has room for one; receives when log has grown
}

// Launch starts a command. Its environment is env and the PATH.
func Launch(t *testing.T, env []string, name string, args ...string) *Process {
	t.Helper()
	return LaunchIn(t, "", env, name, args...)
}

// LaunchIn is like Launch, for a command that runs in the folder dir.
func LaunchIn(t *testing.T, dir string, env []string, name string, args ...string) *Process {
	t.Helper()
	p := &Process{t: t, Cmd: exec.Command(name, args...), Ended: make(chan struct{}), lines: make(chan struct{}, 1)}
	p.Cmd.Env = append(env, "PATH="+os.Getenv("PATH"), "GORACE=atexit_sleep_ms=0")
	p.Cmd.Dir = dir
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

// Write appends to the log. The process's output goes there.
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

// Text returns the output of the process so far.
func (p *Process) Text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return string(p.log)
}

// Addr waits until the server listens, and returns its address.
func (p *Process) Addr() string {
	p.t.Helper()
	return p.AwaitLog(regexp.MustCompile(` addr=(\S+) `))
}

// Admin waits until the admin server listens, and returns its address.
func (p *Process) Admin() string {
	p.t.Helper()
	return p.AwaitLog(regexp.MustCompile(` dashboard url=http://(\S+)/`))
}

// AwaitLog waits until the log matches line, and returns its last submatch.
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
