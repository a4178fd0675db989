package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/proctest"
)

// The tests in this file run deploy/holdfast.service under a service manager of their own,
// whether the machine has one or not.

// boot turns a shell in new namespaces into a service manager that sees nothing of the
// machine's. The kernel's settings are read-only, the control groups are those of the
// test, and what it writes goes to memory or to the folder that is its argument.
const boot = `set -e
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount -o remount,ro,bind /proc/sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
[ ! -e /dev/console ] || mount --bind /dev/null /dev/console
mount -t tmpfs tmpfs /run
mkdir /run/test
mount --bind "$1" /run/test
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /var/tmp
mount --bind /run/test/etc /etc
mount --bind /run/test/bin /usr/local/bin
mount --make-rshared /
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=holdfast-test SYSTEMD_UNIT_PATH=/run/test/units \
	/lib/systemd/systemd --system --unit=multi-user.target --show-status=no`

// A manager is a running systemd. It ends with the test, and what it runs with it.
type manager struct {
	t       *testing.T
	dir     string // that it sees as /run/test
	process *proctest.Process
	pid     string // of systemd
	addr    string // of the service
	admin   string
}

func startManager(t *testing.T) *manager {
	asRoot(t)
	unshare := service(t, "unshare")
	service(t, "nsenter")
	service(t, "systemctl")
	service(t, "systemd-analyze")
	m := &manager{t: t, dir: t.TempDir(), addr: vacant(t), admin: vacant(t)}
	m.furnish()
	group := controlGroup(t)
	// Process 0 is the one that writes, so all that follows begins in the group.
	m.process = proctest.Launch(t, nil, "sh", "-c", `echo 0 >"$1/cgroup.procs" && exec "$2" --fork --kill-child `+
		`--pid --mount --uts --ipc --cgroup --propagation private sh -c "$3" boot "$4"`, "sh", group, unshare, boot, m.dir)
	m.pid = m.child()
	m.await("the manager to be up", func() bool {
		out, _ := m.try("systemctl", "is-active", "multi-user.target")
		return out == "active"
	})
	return m
}

// furnish writes what the manager finds: the unit as it is, the units that it needs by
// name, the program as it is released, and as much of /etc as there must be.
func (m *manager) furnish() {
	m.t.Helper()
	for name, text := range map[string]string{
		"units/holdfast.service":            deployed(m.t, "holdfast.service"),
		"units/holdfast.service.d/log.conf": "[Service]\nStandardOutput=append:/run/test/log\nStandardError=append:/run/test/log\n",
		"etc/holdfast/admin-token":          adminToken + "\n",
		"etc/machine-id":                    "0123456789abcdef0123456789abcdef\n",
		"etc/passwd":                        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
		"etc/group":                         "root:x:0:\nnogroup:x:65534:\n",
	} {
		m.write(name, text)
	}
	for _, target := range []string{"network-online", "sysinit", "basic", "shutdown", "multi-user"} {
		m.write("units/"+target+".target", "[Unit]\nDescription=It is reached at once\nDefaultDependencies=no\n")
	}
	bin := filepath.Join(m.dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		m.t.Fatal(err)
	}
	readImage(m.t).binary(m.t, runtime.GOARCH, filepath.Join(bin, "holdfast"))
}

func (m *manager) write(name, text string) {
	m.t.Helper()
	path := filepath.Join(m.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// controlGroup makes a control group below that of the test. It is removed when the
// test has ended, with those that were made below it.
func controlGroup(t *testing.T) string {
	t.Helper()
	read := func(name string, line *regexp.Regexp) string {
		t.Helper()
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		found := line.FindSubmatch(text)
		if found == nil {
			t.Fatalf("%s has no line like %v; the test needs control groups of version 2", name, line)
		}
		return string(found[1])
	}
	root := read("/proc/self/mountinfo", regexp.MustCompile(`(?m)^\S+ \S+ \S+ \S+ (\S+) .* - cgroup2 `))
	own := read("/proc/self/cgroup", regexp.MustCompile(`(?m)^0::(.*)$`))
	group := filepath.Join(root, own, fmt.Sprint("holdfast-test-", os.Getpid()))
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var err error
		for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if err = removeGroups(group); err == nil {
				return
			}
		}
		t.Errorf("the control group stays: %v", err)
	})
	return group
}

// removeGroups removes a control group and those below it, which is done when there is no
// process in them any more.
func removeGroups(group string) error {
	var all []string
	filepath.WalkDir(group, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			all = append(all, path)
		}
		return nil
	})
	for _, path := range slices.Backward(all) {
		if err := syscall.Rmdir(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// child waits for the process that unshare has forked.
func (m *manager) child() (pid string) {
	m.t.Helper()
	own := m.process.Cmd.Process.Pid
	m.await("the namespaces", func() bool {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", own, own))
		comm, _ := os.ReadFile("/proc/" + strings.TrimSpace(string(text)) + "/comm")
		pid = strings.TrimSpace(string(text))
		return string(comm) == "systemd\n"
	})
	return pid
}

func (m *manager) await(what string, holds func() bool) {
	m.t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(20 * time.Millisecond) {
		select {
		case <-m.process.Ended:
			m.t.Fatalf("the manager has ended; waited for %s", what)
		default:
		}
		if time.Now().After(end) {
			status, _ := m.try("systemctl", "status", "--no-pager", "holdfast")
			m.t.Fatalf("waited for %s\n%s\n%s", what, status, m.log())
		}
	}
}

// try runs a command where the manager is.
func (m *manager) try(args ...string) (string, error) {
	cmd := exec.Command("nsenter", append([]string{"--target", m.pid, "--mount", "--pid", "--", "env", "SYSTEMD_UNIT_PATH=/run/test/units"}, args...)...)
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (m *manager) run(args ...string) string {
	m.t.Helper()
	out, err := m.try(args...)
	if err != nil {
		m.t.Fatalf("%v: %v\n%s\n%s", args, err, out, m.log())
	}
	return out
}

// show returns what the manager says of the service.
func (m *manager) show(property string) string {
	m.t.Helper()
	return m.run("systemctl", "show", "--value", "--property", property, "holdfast")
}

// log returns what the service has logged.
func (m *manager) log() string {
	text, _ := os.ReadFile(filepath.Join(m.dir, "log"))
	return string(text)
}

// begin starts the service with the settings of deploy, and more.
func (m *manager) begin(more ...string) {
	m.t.Helper()
	lines := append([]string{deployed(m.t, "holdfast.env"), "ADDR=" + m.addr, "ADMIN_ADDR=" + m.admin}, more...)
	m.write("etc/holdfast/holdfast.env", strings.Join(lines, "\n")+"\n")
	m.write("log", "")
	m.run("systemctl", "start", "holdfast")
}

// The unit drains within its time-out, says so when it could not, comes back when it was
// killed, and stays down when a setting is wrong.
func TestSystemd(t *testing.T) {
	m := startManager(t)
	for _, test := range []struct {
		name string
		run  func(*manager)
	}{
		{"unit", (*manager).verified},
		{"drain", (*manager).drains},
		{"cut off", (*manager).cutsOff},
		{"killed", (*manager).comesBack},
		{"wrong setting", (*manager).staysDown},
	} {
		t.Run(test.name, func(t *testing.T) {
			m.t = t
			test.run(m)
		})
	}
}

// verified asks systemd's own tool what is wrong with the unit, and how exposed it is.
func (m *manager) verified() {
	const unit = "/run/test/units/holdfast.service"
	if out := m.run("systemd-analyze", "verify", unit); out != "" {
		m.t.Errorf("systemd-analyze verify: %s", out)
	}
	// In tenths; 20 is "OK", and a unit that says nothing has 96.
	m.run("systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=20", unit)

	drain := regexp.MustCompile(`(?m)^DRAIN_TIMEOUT=(.*)$`).FindStringSubmatch(deployed(m.t, "holdfast.env"))
	if drain == nil {
		m.t.Fatal("holdfast.env has no DRAIN_TIMEOUT")
	}
	needs, err := time.ParseDuration(drain[1])
	stop, stopErr := time.ParseDuration(m.show("TimeoutStopUSec"))
	if err != nil || stopErr != nil || stop < needs+stopMargin {
		m.t.Errorf("TimeoutStopSec is %v, want DRAIN_TIMEOUT (%v) and %v at least; %v, %v", stop, needs, stopMargin, err, stopErr)
	}
}

func (m *manager) drains() {
	open := make(chan struct{})
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-open }))
	defer upstream.Close()
	pass := sync.OnceFunc(func() { close(open) })
	defer pass() // if the test fails before, or Close waits for the request
	m.begin("UPSTREAM=" + upstream.URL)
	awaitListener(m.t, m.process, m.addr)
	m.confined()
	for header, want := range map[string]int{"X-None: 1": 401, "Authorization: Bearer " + adminToken: 200} {
		if res, text := do(m.t, "GET", "http://"+m.admin+"/stats", nil, header); res.StatusCode != want {
			m.t.Errorf("the operator's listener with %s: %d %s, want %d", header, res.StatusCode, text, want)
		}
	}
	if res, text := do(m.t, "POST", "http://"+m.addr+"/async/gate", nil); res.StatusCode != 202 {
		m.t.Fatalf("a job: %d %s", res.StatusCode, text)
	}
	done := make(chan error, 1)
	go func() {
		_, err := m.try("systemctl", "stop", "holdfast")
		done <- err
	}()
	awaitStop(m.t, m.addr)
	pass()
	if err := <-done; err != nil {
		m.t.Error(err)
	}
	m.ended("inactive", "success", "0", "finished=1 cut_off=0 never_started=0")
}

// confined looks at what the kernel lets the service do.
func (m *manager) confined() {
	m.t.Helper()
	of := "/proc/" + m.show("MainPID")
	status := m.run("cat", of+"/status")
	for _, line := range []string{`Uid:\t[1-9]\d{4}\t`, `CapEff:\t0+\n`, `CapBnd:\t0+\n`, `NoNewPrivs:\t1\n`, `Seccomp:\t2\n`} {
		if !regexp.MustCompile(line).MatchString(status) {
			m.t.Errorf("the process has no line %q in\n%s", line, status)
		}
	}
	if limits := m.run("cat", of+"/limits"); !regexp.MustCompile(`Max open files +` + m.show("LimitNOFILE") + ` `).MatchString(limits) {
		m.t.Errorf("LimitNOFILE is %s; the process has\n%s", m.show("LimitNOFILE"), limits)
	}
}

// ended waits for the end of the service, and looks how that was.
func (m *manager) ended(state, result, status, last string) {
	m.t.Helper()
	m.await("the service to be "+state, func() bool { return m.show("ActiveState") == state })
	if r, s := m.show("Result"), m.show("ExecMainStatus"); r != result || s != status || !strings.Contains(m.log(), last) {
		m.t.Errorf("the result is %s, the exit status %s; want %s, %s, and %q in\n%s", r, s, result, status, last, m.log())
	}
}

func (m *manager) cutsOff() {
	m.begin("DRAIN_TIMEOUT=200ms")
	awaitListener(m.t, m.process, m.addr)
	if res, text := do(m.t, "POST", "http://"+m.addr+"/bbb", strings.NewReader(endless)); res.StatusCode != 202 {
		m.t.Fatalf("a job: %d %s", res.StatusCode, text)
	}
	m.try("systemctl", "stop", "holdfast")
	m.ended("failed", "exit-code", "1", "finished=0 cut_off=1")
}

func (m *manager) comesBack() {
	m.begin()
	awaitListener(m.t, m.process, m.addr)
	m.run("systemctl", "kill", "--signal=KILL", "holdfast")
	m.await("another process", func() bool { return m.show("NRestarts") == "1" && m.show("ActiveState") == "active" })
	awaitListener(m.t, m.process, m.addr)
	m.run("systemctl", "stop", "holdfast")
}

func (m *manager) staysDown() {
	m.begin("MAX_WORKERS=many")
	m.ended("failed", "exit-code", "2", `"many" for MAX_WORKERS`)
	if n := m.show("NRestarts"); n != "0" {
		m.t.Errorf("the service was started again %s times, with the same setting", n)
	}
}
