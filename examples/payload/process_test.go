package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"holdfast/examples/payload/store"
	"holdfast/internal/proctest"
)

// gateway is the S3 server of the tests. Its version is pinned, so that a new release
// cannot break the tests.
const gateway = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"

var program string // the path of the built example

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "payload-")
	if err != nil {
		panic(err)
	}
	program = filepath.Join(dir, "payload")
	args := []string{"build", "-o", program}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "-race" && s.Value == "true" {
				args = append(args, "-race")
			}
		}
	}
	code := 1
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
	} else {
		code = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// stop sends SIGTERM.
func stop(p *proctest.Process) { p.Cmd.Process.Signal(syscall.SIGTERM) }

// checkExit waits for a process to end, and checks its exit code.
func checkExit(t *testing.T, p *proctest.Process, want int) {
	t.Helper()
	select {
	case <-p.Ended:
	case <-time.After(2 * proctest.Patience):
		t.Fatal("the process does not end after SIGTERM")
	}
	if code := p.Cmd.ProcessState.ExitCode(); code != want {
		t.Errorf("exit code %d; want %d", code, want)
	}
}

// senders send collections of numbers, each number once, and record the answers.
type senders struct {
	next     atomic.Int64
	answered atomic.Int64 // collections answered with 202

	mu       sync.Mutex // protects the following fields
	accepted map[string]bool
	sent     map[string]bool
}

// run sends until the server is gone. It calls enough once the given number of
// collections is answered.
func (s *senders) run(t *testing.T, addr string, collections int64, enough func()) {
	t.Helper()
	s.accepted, s.sent = map[string]bool{}, map[string]bool{}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 20}, Timeout: proctest.Patience}
	var all sync.WaitGroup
	for g := range 20 {
		sizes := rand.New(rand.NewPCG(1, uint64(g)))
		all.Go(func() {
			for {
				n := 1 + sizes.IntN(3)
				first := int(s.next.Add(int64(n))) - n
				s.mu.Lock()
				for i := range n {
					s.sent[fmt.Sprint(first+i)] = true
				}
				s.mu.Unlock()
				resp, err := client.Post("http://"+addr+"/payload", "application/json", strings.NewReader(collectionOf(first, n)))
				if err != nil {
					return
				}
				var a struct{ Accepted int }
				err = json.NewDecoder(resp.Body).Decode(&a)
				resp.Body.Close()
				if err != nil || resp.StatusCode != 202 && resp.StatusCode != 503 || resp.StatusCode == 202 && a.Accepted != n {
					t.Errorf("answer %d to %d payloads, %d accepted, %v", resp.StatusCode, n, a.Accepted, err)
					return
				}
				s.mu.Lock()
				for i := range a.Accepted {
					s.accepted[fmt.Sprint(first+i)] = true
				}
				s.mu.Unlock()
				if resp.StatusCode == 202 && s.answered.Add(1) == collections {
					enough()
				}
			}
		})
	}
	all.Wait()
}

// check compares the sent and accepted payloads with stored, which has the number of
// copies of each payload.
func (s *senders) check(t *testing.T, stored map[string]int) {
	t.Helper()
	lost, twice, strange := 0, 0, 0
	for n := range s.accepted {
		if stored[n] == 0 {
			lost++
		}
	}
	for n, times := range stored {
		if times > 1 {
			twice++
		}
		if !s.sent[n] {
			strange++
		}
	}
	if lost+twice+strange > 0 || len(s.accepted) == 0 {
		t.Errorf("of %d accepted payloads %d are lost, %d stored twice; %d were never sent", len(s.accepted), lost, twice, strange)
	}
}

// files returns the contents of all files below folder, with the number of copies.
func files(t *testing.T, folder string) map[string]int {
	t.Helper()
	contents := map[string]int{}
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		contents[string(text)]++
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return contents
}

func TestStopUnderLoadLosesNothing(t *testing.T) {
	folder := t.TempDir()
	p := proctest.Launch(t, []string{"MAX_WORKERS=2", "MAX_QUEUE=2000"}, program, "-addr", "127.0.0.1:0", "-folder", folder)
	var s senders
	s.run(t, p.Addr(), 3000, func() { stop(p) })
	checkExit(t, p, 0)
	s.check(t, files(t, folder))
	var total, stored int
	line := p.AwaitLog(regexp.MustCompile(`stopped (accepted=\d+ stored=\d+)`))
	if fmt.Sscanf(line, "accepted=%d stored=%d", &total, &stored); total != stored || total < len(s.accepted) {
		t.Errorf("log says %q; %d were answered as accepted", line, len(s.accepted))
	}
}

// A log whose reader has gone, as tee has after Ctrl-C, costs nothing that is queued.
func TestStopWithoutALog(t *testing.T) {
	folder := t.TempDir()
	p := exec.Command(program, "-addr", "127.0.0.1:0", "-folder", folder)
	p.Env = append(os.Environ(), "MAX_WORKERS=1", "MAX_QUEUE=2000")
	log, err := p.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(2*proctest.Patience, func() { p.Process.Kill() })
	defer late.Stop()
	first, err := bufio.NewReader(log).ReadString('\n')
	match := regexp.MustCompile(` addr=(\S+) `).FindStringSubmatch(first)
	if match == nil {
		t.Fatalf("%q, %v", first, err)
	}
	resp, err := http.Post("http://"+match[1]+"/payload", "application/json", strings.NewReader(collectionOf(0, 1000)))
	if err != nil || resp.StatusCode != 202 {
		t.Fatal(resp, err)
	}
	resp.Body.Close()
	log.Close()
	p.Process.Signal(os.Interrupt)
	if err := p.Wait(); err != nil {
		t.Error(err)
	}
	if n := len(files(t, folder)); n != 1000 {
		t.Errorf("%d payloads of 1000 are stored", n)
	}
}

func TestWhatTheDrainLeavesIsTold(t *testing.T) {
	stuck := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		}
	}))
	defer stuck.Close()
	env := []string{"MAX_WORKERS=1", "AWS_ACCESS_KEY_ID=a", "AWS_SECRET_ACCESS_KEY=b", "AWS_REGION=us-east-1"}
	p := proctest.Launch(t, env, program, "-addr", "127.0.0.1:0", "-s3", stuck.URL+"/bucket", "-drain", "100ms")
	resp, err := http.Post("http://"+p.Addr()+"/payload", "application/json", strings.NewReader(collectionOf(0, 5)))
	if err != nil || resp.StatusCode != 202 {
		t.Fatal(resp, err)
	}
	resp.Body.Close()
	stop(p)
	checkExit(t, p, 1)
	p.AwaitLog(regexp.MustCompile(`5 accepted payloads are lost`))
}

func TestMethodsAndPaths(t *testing.T) {
	p := proctest.Launch(t, nil, program, "-addr", "127.0.0.1:0", "-folder", t.TempDir())
	base := "http://" + p.Addr()
	for _, c := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/payload", 405}, {"HEAD", "/payload", 405}, {"PUT", "/payload", 405}, {"DELETE", "/payload", 405},
		{"POST", "/", 404}, {"POST", "/payload/x", 404}, {"POST", "/payload", 202},
	} {
		req, _ := http.NewRequest(c.method, base+c.path, strings.NewReader(collectionOf(0, 1)))
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != c.status || c.status == 405 && resp.Header.Get("Allow") != "POST" {
			t.Errorf("%s %s: %s, Allow %q; want %d", c.method, c.path, resp.Status, resp.Header.Get("Allow"), c.status)
		}
	}
	stop(p)
	checkExit(t, p, 0)
}

func TestS3(t *testing.T) {
	bin, data := t.TempDir(), t.TempDir()
	install := exec.Command("go", "install", gateway)
	install.Env = append(os.Environ(), "GOBIN="+bin, "GOFLAGS=-mod=mod")
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", install, err, out)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	endpoint := l.Addr().String()
	l.Close() // for the gateway, which cannot report a port that it chose
	proctest.Launch(t, []string{"ROOT_ACCESS_KEY=access", "ROOT_SECRET_KEY=secret-secret", "HOME=" + data}, filepath.Join(bin, "versitygw"),
		"--port", endpoint, "--quiet", "posix", "--sidecar", t.TempDir(), data)
	client, err := minio.New(endpoint, &minio.Options{Creds: credentials.NewStaticV4("access", "secret-secret", ""), Region: "us-east-1"})
	if err != nil {
		t.Fatal(err)
	}
	for late := time.Now().Add(proctest.Patience); ; time.Sleep(20 * time.Millisecond) {
		if err = client.MakeBucket(t.Context(), "payloads", minio.MakeBucketOptions{}); err == nil {
			break
		} else if time.Now().After(late) {
			t.Fatal(err)
		}
	}
	t.Setenv("AWS_ACCESS_KEY_ID", "access")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret-secret")

	t.Run("an object has the bytes of Put", func(t *testing.T) {
		s, err := store.OpenS3(t.Context(), "http://"+endpoint+"/payloads")
		if err != nil {
			t.Fatal(err)
		}
		want := []byte("{ \"a\" : \"\xff\" }")
		for range 2 { // repeating it is harmless
			if err := s.Put(t.Context(), "one", want); err != nil {
				t.Fatal(err)
			}
		}
		o, err := client.GetObject(t.Context(), "payloads", "one", minio.GetObjectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer o.Close()
		got, err := io.ReadAll(o)
		info, _ := o.Stat()
		if err != nil || !bytes.Equal(got, want) || info.ContentType != "application/octet-stream" {
			t.Errorf("object %q of type %q, %v; want %q", got, info.ContentType, err, want)
		}
		if resp, err := http.Get("http://" + endpoint + "/payloads/one"); err != nil || resp.StatusCode != 403 {
			t.Errorf("without credentials: %v, %v; want 403", resp, err)
		}
		if err := client.RemoveObject(t.Context(), "payloads", "one", minio.RemoveObjectOptions{}); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("errors of Open", func(t *testing.T) {
		for _, url := range []string{"http://" + endpoint + "/none", "http://" + endpoint, "http://access:secret-secret@" + endpoint + "/payloads", "ftp://" + endpoint + "/payloads", "payloads", "http:///payloads", "http://" + endpoint + "/payloads/below"} {
			if _, err := store.OpenS3(t.Context(), url); err == nil || strings.Contains(err.Error(), "secret-secret") {
				t.Errorf("%s: error %v; want one that does not contain the secret", url, err)
			}
		}
	})
	t.Run("a stop under load loses nothing", func(t *testing.T) {
		env := []string{"AWS_ACCESS_KEY_ID=access", "AWS_SECRET_ACCESS_KEY=secret-secret"}
		p := proctest.Launch(t, env, program, "-addr", "127.0.0.1:0", "-s3", "http://"+endpoint+"/payloads")
		var s senders
		s.run(t, p.Addr(), 300, func() { stop(p) })
		checkExit(t, p, 0)
		s.check(t, files(t, filepath.Join(data, "payloads"))) // the gateway keeps each object in a file
	})
}
