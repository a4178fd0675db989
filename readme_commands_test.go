//go:build unix

package holdfast_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The commands of the pages do what the pages say: those in blocks of sh, those in blocks
// of console, whose output must be the one shown, and those in tables. They run as a
// reader's would, in a clone of what is here, but on ports that are free. A page is run
// from its beginning, since a command may need what one before it has made.

// patient is how long a command may take, also one that builds the server first.
const patient = 3 * time.Minute

var (
	ports = []string{"8099", "8098", "8097", "8100", "8080", "8081", "8000", "9011", "9012", "9013", "9021", "9022", "9023"} // of the pages
	tools = regexp.MustCompile(`\b(ab|curl|git|make|openssl|python3)\b`)

	// serves finds commands that do not end, each with the port on which it then listens.
	serves = []struct {
		command *regexp.Regexp
		port    string
		args    string // that only the test gives it
	}{
		{regexp.MustCompile(`^go run main\.go plan\b`), "", ""},
		{regexp.MustCompile(`^(go run main\.go|bin/holdfast)\b`), "8099", ""},
		{regexp.MustCompile(`^(go -C durable run \./cmd/holdfast\b|bin/durable$)`), "8099", ""},
		{regexp.MustCompile(`^bin/durable -node n1 `), "8099", ""},
		{regexp.MustCompile(`^bin/durable -node n2 `), "8098", ""},
		{regexp.MustCompile(`^bin/durable -node n3 `), "8097", ""},
		{regexp.MustCompile(`^go run \.$`), "8080", ""},
		{regexp.MustCompile(`^python3 -m http\.server\b`), "8000", ""},
		{regexp.MustCompile(`^go -C examples/payload run \.$`), "8099", " -addr 127.0.0.1:8099"},
		{regexp.MustCompile(`^go run \./examples/flowcontrol$`), "8080", " -addr 127.0.0.1:8080"},
		{regexp.MustCompile(`^go -C examples/flashsale run \.$`), "8080", " -addr 127.0.0.1:8080 -admin 127.0.0.1:8081"},
	}

	// killed finds a command that starts a server itself, and kills it.
	killed = regexp.MustCompile(`^\(bin/durable &.* kill -9 \$!\)`)

	jobID = regexp.MustCompile(`\b[A-Z2-7]{26}\b`)

	// varying is what is different each time in the output of a command.
	varying = []struct {
		is   *regexp.Regexp
		word string
	}{
		{jobID, "ID"},
		{regexp.MustCompile(`took [0-9.]+s`), "took a while"},
		{regexp.MustCompile(`(?m)^(Date|Last-Modified|Server|Retry-After): .*$`), "$1: something"},
		{regexp.MustCompile(`"\d{4}-\d\d-\d\dT[0-9:.]+Z"`), `"some time"`},
		{regexp.MustCompile(`Content-Length: \d{3}\b`), "Content-Length: some"}, // of what contains times
		{regexp.MustCompile(`[ \r]+\n`), "\n"},
	}
)

func TestCommandsOfThePages(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a minute")
	}
	repository := snapshot(t)
	for _, p := range manual(t) {
		if strings.HasSuffix(p.name, ".zh-CN.md") {
			continue // it has the same commands
		}
		t.Run(p.name, func(t *testing.T) {
			r := newReader(t, repository)
			for _, b := range p.blocks {
				r.follow(p.name, b)
			}
		})
	}
}

// snapshot returns a repository with one commit: the files as they are.
func snapshot(t *testing.T) string {
	t.Helper()
	list, err := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		missing(t, fmt.Sprintf("git ls-files: %v; this is no clone", err))
	}
	dir := t.TempDir()
	for name := range strings.SplitSeq(strings.Trim(string(list), "\x00"), "\x00") {
		data, err := os.ReadFile(name)
		if os.IsNotExist(err) {
			continue // deleted, and not yet committed
		}
		if err == nil {
			err = os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), data, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{
		{"init", "-q"},
		{"add", "-A", "-f"},
		{"-c", "user.name=test", "-c", "user.email=test@example.invalid", "commit", "-q", "-m", "snapshot"},
	} {
		if out, err := exec.Command("git", append([]string{"-C", dir}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	return dir
}

// missing skips the test, or fails it where nothing may be missing.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("HOLDFAST_REQUIRE_SERVICES") != "" {
		t.Fatal(what)
	}
	t.Skip(what)
}

// A reader does what a page says.
type reader struct {
	t       *testing.T
	home    string // where the clone is
	env     []string
	ports   *strings.Replacer // from those of the pages to free ones
	free    map[string]string // the same
	servers map[string]*serving
	program string // the last whole Go program of the page
	id      string // the last job id
}

// A serving command runs until the reader stops it.
type serving struct {
	cmd   *exec.Cmd
	log   *bytes.Buffer // read only when it has ended
	ended chan struct{}
}

func newReader(t *testing.T, repository string) *reader {
	r := &reader{t: t, home: t.TempDir(), free: map[string]string{}, servers: map[string]*serving{}}
	var pairs []string
	for _, port := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_, r.free[port], _ = net.SplitHostPort(l.Addr().String())
		pairs = append(pairs, port, r.free[port])
	}
	r.ports = strings.NewReplacer(append(pairs, "~/", r.home+"/")...)
	// A client that gets an error has failed, unlike curl's default.
	if err := os.WriteFile(filepath.Join(r.home, ".curlrc"), []byte("fail\nmax-time = 60\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	r.env = append(os.Environ(), "REPOSITORY="+repository, "CURL_HOME="+r.home, "GOFLAGS=-trimpath", "GOWORK=off",
		"ADDR=127.0.0.1:"+r.free["8099"], "ADMIN_ADDR=127.0.0.1:"+r.free["8100"])
	t.Cleanup(func() {
		for port := range r.servers {
			r.stop(port)
		}
	})
	if clone := `git clone -q "$REPOSITORY" holdfast`; !t.Failed() {
		r.run("the test", r.home, clone)
	}
	return r
}

// follow does what a block says. Every block begins in the clone, but the one that makes
// it.
func (r *reader) follow(name string, b block) {
	where := func(line int) string { return fmt.Sprintf("%s:%d", name, b.line+line) }
	dir := filepath.Join(r.home, "holdfast")
	switch b.language {
	case "go":
		if strings.Contains(b.text, "package main\n") {
			r.program = r.ports.Replace(b.text)
		}
	case "table":
		if strings.HasPrefix(b.text, "go ") {
			r.line(where(0), dir, b.text)
		}
	case "sh":
		if strings.Contains(b.text, "git clone ") {
			if err := os.RemoveAll(dir); err != nil {
				r.t.Fatal(err)
			}
			dir = r.home
		}
		for i, line := range strings.Split(b.text, "\n") {
			dir = r.line(where(i+1), dir, line)
		}
	case "console":
		r.console(where, dir, b.text)
	}
}

// line does what a line says, and returns the folder in which the next one is done.
func (r *reader) line(where, dir, line string) string {
	if comment, ok := strings.CutPrefix(line, "# "); ok && strings.Contains(comment, "main.go") {
		if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(r.program), 0o644); err != nil {
			r.t.Fatal(err)
		}
	}
	line = strings.TrimSpace(comments["sh"].ReplaceAllString(line, ""))
	if line == "" {
		return dir
	}
	for _, s := range serves {
		if !s.command.MatchString(line) {
			continue
		}
		if s.port == "" || line == "go run ." && !strings.Contains(r.program, "ListenAndServe") {
			break
		}
		r.serve(where, dir, line+s.args, s.port)
		return dir
	}
	_, dir = r.run(where, dir, line)
	return dir
}

// console runs commands, and compares their output with the one shown.
func (r *reader) console(where func(int) string, dir, text string) {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i := 0; i < len(lines); {
		command, ok := strings.CutPrefix(lines[i], "$ ")
		if !ok {
			r.t.Fatalf("%s: %q; want $ and a command", where(i+1), lines[i])
		}
		at, end := i, i+1
		for end < len(lines) && !strings.HasPrefix(lines[end], "$ ") {
			end++
		}
		command = comments["console"].ReplaceAllString(command, "")
		if killed.MatchString(command) {
			r.stop("8099") // the page has said so
		}
		if r.id != "" {
			command = jobID.ReplaceAllString(command, r.id)
		}
		got, _ := r.run(where(at+1), dir, command)
		if id := jobID.FindString(got); id != "" {
			r.id = id
		}
		want := strings.Join(lines[at+1:end], "\n") + "\n"
		if got, want := steady(got), steady(want); got != want {
			r.t.Errorf("%s: %s\ngot\n%swant\n%s", where(at+1), command, got, want)
		}
		i = end
	}
}

// steady returns the part of an output that is the same each time.
func steady(output string) string {
	for _, v := range varying {
		output = v.is.ReplaceAllString(output, v.word)
	}
	return strings.TrimSpace(output) + "\n"
}

// run runs a command that ends, and returns its output and the folder that it ends in.
func (r *reader) run(where, dir, command string) (output, after string) {
	r.t.Helper()
	for _, tool := range tools.FindAllString(command, -1) {
		if _, err := exec.LookPath(tool); err != nil {
			missing(r.t, fmt.Sprintf("%s: %v", where, err))
		}
	}
	ctx, cancel := context.WithTimeout(r.t.Context(), patient)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", r.ports.Replace(command)+"\nstatus=$?; pwd >&3; exit $status")
	cmd.Dir, cmd.Env, cmd.WaitDelay = dir, r.env, time.Second
	folder, err := os.CreateTemp(r.home, "folder")
	if err != nil {
		r.t.Fatal(err)
	}
	defer folder.Close()
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = &out, &log, []*os.File{folder}
	if err := cmd.Run(); err != nil {
		r.t.Fatalf("%s: %s: %v\n%s%s", where, command, err, &out, &log)
	}
	if failed := regexp.MustCompile(`Failed requests: +[1-9].*`).FindString(out.String()); failed != "" {
		r.t.Errorf("%s: %s: %s", where, command, failed)
	}
	at, err := os.ReadFile(folder.Name())
	if err != nil {
		r.t.Fatal(err)
	}
	return out.String(), strings.TrimSpace(string(at))
}

// serve starts a command that does not end, and waits until it listens.
func (r *reader) serve(where, dir, command, port string) {
	r.stop(port)
	s := &serving{cmd: exec.Command("bash", "-c", "exec "+r.ports.Replace(command)), log: new(bytes.Buffer), ended: make(chan struct{})}
	s.cmd.Dir, s.cmd.Env, s.cmd.Stdout, s.cmd.Stderr = dir, r.env, s.log, s.log
	s.cmd.WaitDelay = time.Second
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // go run passes no signals on
	if err := s.cmd.Start(); err != nil {
		r.t.Fatalf("%s: %s: %v", where, command, err)
	}
	r.servers[port] = s
	go func() {
		s.cmd.Wait()
		close(s.ended)
	}()
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("tcp", "127.0.0.1:"+r.free[port]); err == nil {
			c.Close()
			return
		}
		select {
		case <-s.ended:
			r.t.Fatalf("%s: %s has ended\n%s", where, command, s.log)
		default:
		}
		if time.Since(began) > patient {
			r.t.Fatalf("%s: %s does not listen", where, command)
		}
	}
}

// stop stops the server that uses a port, in order if that does not take long. It waits
// for the whole process group: go run may end before the server that it has started.
func (r *reader) stop(port string) {
	s := r.servers[port]
	if s == nil {
		return
	}
	delete(r.servers, port)
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		syscall.Kill(-s.cmd.Process.Pid, signal)
		for began := time.Now(); time.Since(began) < 10*time.Second; time.Sleep(10 * time.Millisecond) {
			if syscall.Kill(-s.cmd.Process.Pid, 0) == syscall.ESRCH {
				<-s.ended
				return
			}
		}
	}
	r.t.Errorf("%v cannot be stopped", s.cmd)
}
