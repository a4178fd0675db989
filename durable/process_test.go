//go:build unix

package durable

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"holdfast/conformance"
	"holdfast/internal/proctest"
)

func TestMain(m *testing.M) { proctest.Main(m) }

// launch starts the command on a folder, on a free port.
func launch(t *testing.T, dir string, args ...string) *proctest.Process {
	t.Helper()
	return proctest.Launch(t, nil, proctest.BuildPackage(t, "./cmd/holdfast"), append([]string{"-addr", "127.0.0.1:0", "-admin", "", "-data", dir}, args...)...)
}

// The HTTP contract is the same, whether jobs outlive the process or not.
func TestConformance(t *testing.T) {
	conformance.Run(t, "http://"+launch(t, t.TempDir()).Addr())
}

// A job that was running each time when the process died fails in the end: it may be what
// kills it.
func TestDeaths(t *testing.T) {
	dir := t.TempDir()
	started := make(chan bool, 10)
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/deadly" {
			started <- true
			<-r.Context().Done()
		}
	}))
	defer upstream.Close()
	args := []string{"-upstream", upstream.URL, "-workers", "1", "-abandon"}
	p := launch(t, dir, args...)
	post := func(path string) string {
		resp, err := http.Post("http://"+p.Addr()+"/async"+path, "text/plain", nil)
		if err != nil || resp.StatusCode != http.StatusAccepted {
			t.Fatalf("POST: %v, %v", resp, err)
		}
		resp.Body.Close()
		return resp.Header.Get("Location")
	}
	url := post("/deadly")
	for range 3 {
		select {
		case <-started:
		case <-time.After(patience):
			t.Fatal("the job was not started")
		}
		post("/later") // its record lies behind that of the start, and is on disk
		p.Cmd.Process.Kill()
		<-p.Ended
		p = launch(t, dir, args...)
		p.Addr()
	}
	r, _ := http.NewRequest("GET", "http://"+p.Addr()+url+"/response", nil)
	r.Header.Set("Prefer", "wait=30") // until the end is on disk
	gone, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer gone.Body.Close()
	if text, _ := io.ReadAll(gone.Body); gone.StatusCode != http.StatusGone || !strings.Contains(string(text), "3 times") {
		t.Errorf("%d %s, want 410 that says why", gone.StatusCode, text)
	}
	if len(started) > 0 {
		t.Error("the job was started once more")
	}
}

// A server that cannot listen starts no job: a supervisor would start it until the jobs had
// been started too often.
func TestServerThatCannotListen(t *testing.T) {
	dir := t.TempDir()
	p := launch(t, dir, "-workers", "1")
	resp, err := http.Post("http://"+p.Addr()+"/bbb", "application/json", strings.NewReader(`{"sleep_time":1}`))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	url := resp.Header.Get("Location")
	p.Cmd.Process.Kill()
	<-p.Ended
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for range 3 {
		p := launch(t, dir, "-addr", taken.Addr().String())
		<-p.Ended
		if code := p.Cmd.ProcessState.ExitCode(); code != 1 {
			t.Errorf("exit status %d, want 1", code)
		}
	}
	p = launch(t, dir, "-workers", "1")
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		resp, err := http.Get("http://" + p.Addr() + url)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		var job struct{ State string }
		json.Unmarshal(body, &job)
		if job.State == "done" {
			break
		}
		if job.State == "failed" || time.Now().After(end) {
			t.Fatalf("the job is %s", body)
		}
	}
}
