package e2e

import (
	"debug/elf"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"

	"holdfast/internal/proctest"
)

// A containerImage is what deploy/Dockerfile says of the container, read as far as it goes here.
type containerImage struct {
	build      string // the command that makes /holdfast
	roots      string // where the certificates of authorities are
	user       string
	entrypoint string
}

// The lines of the Dockerfile that an image is read from. Each must be there once.
var (
	buildLine      = regexp.MustCompile(`(?m)^RUN (.* go build .*)$`)
	rootsLine      = regexp.MustCompile(`(?m)^COPY --from=build (/etc/ssl/\S+) (/etc/ssl/\S+)$`)
	userLine       = regexp.MustCompile(`(?m)^USER (\S+)$`)
	entrypointLine = regexp.MustCompile(`(?m)^ENTRYPOINT \["(/\S+)"\]$`)
	copyLine       = regexp.MustCompile(`(?m)^COPY --from=build (/holdfast /holdfast)$`)
	scratchLine    = regexp.MustCompile(`(?m)^(FROM scratch)$`)
)

func readImage(t *testing.T) containerImage {
	t.Helper()
	text := deployed(t, "Dockerfile")
	one := func(line *regexp.Regexp) string {
		t.Helper()
		found := line.FindAllStringSubmatch(text, -1)
		if len(found) != 1 {
			t.Fatalf("the Dockerfile has %d lines like %v, want one", len(found), line)
		}
		return found[0][len(found[0])-1]
	}
	one(scratchLine)
	one(copyLine)
	return containerImage{build: one(buildLine), roots: one(rootsLine), user: one(userLine), entrypoint: one(entrypointLine)}
}

// buildContext makes a folder with what a build of the image sees: the files of the
// repository, but for those that Dockerfile.dockerignore names.
func buildContext(t *testing.T) string {
	t.Helper()
	list := exec.Command("git", "ls-files", "-z")
	list.Dir = ".."
	out, err := list.Output()
	if err != nil {
		t.Fatalf("%v: %v", list, err)
	}
	ignored := map[string]bool{}
	for _, name := range settings(deployed(t, "Dockerfile.dockerignore")) {
		ignored[name] = true
	}
	dir := t.TempDir()
	for name := range strings.SplitSeq(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		if top, _, _ := strings.Cut(name, "/"); ignored[top] {
			continue
		}
		text, err := os.ReadFile(filepath.Join("..", name))
		if os.IsNotExist(err) {
			continue // deleted, and git does not know yet
		}
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// binary builds the binary as the Dockerfile does, into a file.
func (i containerImage) binary(t *testing.T, arch, to string) {
	t.Helper()
	command := strings.Replace(i.build, " -o /holdfast ", " -o "+to+" ", 1)
	if command == i.build {
		t.Fatalf("%q does not build /holdfast", i.build)
	}
	build := exec.Command("sh", "-c", command)
	build.Dir = buildContext(t)
	build.Env = append(os.Environ(), "VERSION=v1.2.3-test", "TARGETOS=linux", "TARGETARCH="+arch)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
}

// The container's binary needs nothing but itself: it runs as nobody in a root folder in
// which there are only it and the certificates, reaches an upstream over TLS, and drains.
func TestContainer(t *testing.T) {
	asRoot(t)
	chroot := service(t, "chroot")
	i := readImage(t)
	root := t.TempDir()
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	i.binary(t, runtime.GOARCH, filepath.Join(root, i.entrypoint))
	static(t, filepath.Join(root, i.entrypoint))

	open := make(chan struct{})
	upstream := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/gate" {
			<-open
		}
		io.WriteString(w, "passed")
	}))
	defer upstream.Close()
	pass := sync.OnceFunc(func() { close(open) })
	defer pass() // if the test fails before, or Close waits for the request
	trust(t, filepath.Join(root, i.roots), upstream)

	p := proctest.Launch(t, []string{"UPSTREAM=" + upstream.URL, "ADMIN_ADDR="}, chroot,
		"--userspec="+i.user, root, i.entrypoint, "-addr", "127.0.0.1:0", "-linger", "0")
	addr := p.Addr()
	if !strings.Contains(p.Text(), "holdfast v1.2.3-test") {
		t.Error("the version is not stamped")
	}
	if res, text := do(t, "GET", "http://"+addr+"/sync/", nil); res.StatusCode != 200 || text != "passed" {
		t.Errorf("the upstream over TLS: %d %s", res.StatusCode, text)
	}
	if res, text := do(t, "POST", "http://"+addr+"/async/gate", nil); res.StatusCode != 202 {
		t.Errorf("a job: %d %s", res.StatusCode, text)
	}
	terminate(t, p, addr, pass) // with what a container gets
}

// trust writes a file of authorities with that of a server.
func trust(t *testing.T, name string, s *httptest.Server) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	if err := os.WriteFile(name, text, 0o644); err != nil {
		t.Fatal(err)
	}
}

// static fails unless a binary needs no loader and no library.
func static(t *testing.T, name string) {
	t.Helper()
	file, err := elf.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, part := range file.Progs {
		if part.Type == elf.PT_INTERP || part.Type == elf.PT_DYNAMIC {
			t.Errorf("the binary is not static: it has a %v", part.Type)
		}
	}
}
