package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/proctest"
)

// The tests of deploy run the server as its files say. Here stands what they share.

// stopMargin is how much longer than -drain a stop may take: for the last answers, on
// either listener, and the last lines of the log.
const stopMargin = 5 * time.Second

// adminToken is the operator's in these tests.
const adminToken = "0123456789abcdef"

// deployed returns the text of a file in deploy.
func deployed(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "deploy", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// settings returns the lines of an environment file that are neither empty nor comments.
func settings(text string) (lines []string) {
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	return lines
}

// asRoot skips the test unless it runs as root on a machine that lets root make namespaces
// and control groups, which many containers do not. .ci/run tries that out first, and says
// so; where it is possible, nothing may be skipped.
func asRoot(t *testing.T) {
	t.Helper()
	switch {
	case os.Getenv("HOLDFAST_NO_NAMESPACES") != "":
		t.Skip("this machine does not let root make namespaces")
	case os.Geteuid() == 0:
	case os.Getenv("HOLDFAST_REQUIRE_SERVICES") != "":
		t.Fatal("not root, and HOLDFAST_REQUIRE_SERVICES is set")
	default:
		t.Skip("it changes the root folder, which root alone may do")
	}
}

var stopped = regexp.MustCompile(` (?:msg=)?stopped (.*)`)

// awaitStop waits until the server has begun to stop.
func awaitStop(t *testing.T, addr string) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		res, err := direct.Get("http://" + addr + "/readyz")
		if err != nil {
			t.Fatalf("the server does not answer while it stops: %v", err)
		}
		res.Body.Close()
		if res.StatusCode == 503 {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the server is ready although it was told to stop")
		}
	}
}

// terminate stops a server with SIGTERM, calls meanwhile when it has begun to stop, and
// fails the test unless nothing was cut off.
func terminate(t *testing.T, p *proctest.Process, addr string, meanwhile func()) {
	t.Helper()
	if err := p.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	awaitStop(t, addr)
	meanwhile()
	last := p.AwaitLog(stopped)
	select {
	case <-p.Ended:
	case <-time.After(patience):
		t.Fatal("the process has not ended")
	}
	if status := p.Cmd.ProcessState.ExitCode(); status != 0 || !strings.Contains(last, "cut_off=0 never_started=0 requests_cut_off=0") {
		t.Errorf("exit status %d, want 0; the last line says %s", status, last)
	}
}
