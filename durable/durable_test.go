package durable

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast"
)

// patience is the longest time to wait for anything.
const patience = 30 * time.Second

// A life is a server from its start to its end.
type life struct {
	t    *testing.T
	d    *holdfast.Dispatcher
	jobs *Jobs
	http *httptest.Server
}

// begin starts a server whose jobs are in dir and are served by h.
func begin(t *testing.T, dir string, cfg holdfast.Config, h http.Handler, change ...func(*Config)) *life {
	t.Helper()
	d, err := holdfast.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c := Config{Dir: dir, Dispatcher: d, Handler: h, Jobs: holdfast.JobsConfig{Classify: classify}}
	for _, f := range change {
		f(&c)
	}
	jobs, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/jobs/", jobs)
	mux.Handle("/", jobs.Async(h))
	l := &life{t, d, jobs, httptest.NewServer(mux)}
	t.Cleanup(func() { l.end() })
	return l
}

func classify(r *http.Request) holdfast.Class {
	return holdfast.Class{Urgency: holdfast.Priority(r.Header), Client: r.Header.Get("Client")}
}

// end stops the server as fast as it can. What runs is cut off.
func (l *life) end() {
	if l.jobs == nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	l.d.Shutdown(ctx)
	l.http.Close()
	ctx, cancel = context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := l.jobs.Close(ctx); err != nil {
		l.t.Error(err)
	}
	l.jobs = nil
}

// post submits a job and returns its URL.
func (l *life) post(target, body string, header ...string) string {
	l.t.Helper()
	r, err := http.NewRequest("POST", l.http.URL+target, strings.NewReader(body))
	if err != nil {
		l.t.Fatal(err)
	}
	r.Host = "holdfast.test" // a key is of one host, and each life has a port of its own
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		l.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		text, _ := io.ReadAll(resp.Body)
		l.t.Fatalf("POST %s: %d %s", target, resp.StatusCode, text)
	}
	return resp.Header.Get("Location")
}

// state returns where a job stands.
func (l *life) state(url string) string {
	l.t.Helper()
	resp, err := http.Get(l.http.URL + url)
	if err != nil {
		l.t.Fatal(err)
	}
	defer resp.Body.Close()
	var job struct{ State string }
	if err := json.NewDecoder(resp.Body).Decode(&job); err != nil || resp.StatusCode != http.StatusOK {
		l.t.Fatalf("GET %s: %d, %v", url, resp.StatusCode, err)
	}
	return job.State
}

// await waits until a job is in a state.
func (l *life) await(url, state string) {
	l.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		switch got := l.state(url); {
		case got == state:
			return
		case time.Now().After(end):
			l.t.Fatalf("%s is %s, want %s", url, got, state)
		}
	}
}

// response returns status and body of a job's response.
func (l *life) response(url string) (int, string) {
	l.t.Helper()
	resp, err := http.Get(l.http.URL + url + "/response")
	if err != nil {
		l.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		l.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// What was accepted runs after a restart, in its order, with the request as it came.
func TestRestart(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	record := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, fmt.Sprint(r.Method, " ", r.URL, " ", r.Header.Get("X-Own"), " ", r.Header.Get("Job-Attempt"), " ", r.Header.Get("Idempotency-Key"), " ", len(body)))
		w.Header().Set("X-Answer", r.Header.Get("X-Own"))
		w.WriteHeader(http.StatusCreated)
		w.Write(body)
	})
	dir := t.TempDir()
	l := begin(t, dir, holdfast.Config{Queue: 100}, record) // paused
	urls := make(map[string]string)
	large := strings.Repeat("l", 700_000)
	for _, name := range []string{"a", "b", "c", "d"} {
		body := name
		if name == "c" {
			body = large
		}
		urls[name] = l.post("/task/"+name+"?q=%20", body, "X-Own", name, "Idempotency-Key", "key-"+name)
	}
	urls["urgent"] = l.post("/urgent", "u", "Priority", "u=0")
	urls["canceled"] = l.post("/canceled", "x")
	if r, _ := http.NewRequest("DELETE", l.http.URL+urls["canceled"], nil); r != nil {
		if resp, err := http.DefaultClient.Do(r); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("DELETE: %v, %v", resp, err)
		}
	}
	l.end()

	l = begin(t, dir, holdfast.Config{Queue: 100}, record)
	for name, url := range urls {
		want := "queued"
		if name == "canceled" {
			want = "canceled"
		}
		if got := l.state(url); got != want {
			t.Errorf("%s is %s after the restart, want %s", name, got, want)
		}
	}
	if again := l.post("/task/a?q=%20", "a", "X-Own", "a", "Idempotency-Key", "key-a"); again != urls["a"] {
		t.Errorf("the key leads to %s after the restart, want %s", again, urls["a"])
	}
	l.d.Resize(1)
	for name, url := range urls {
		if name != "canceled" {
			l.await(url, "done")
		}
	}
	id := strings.TrimPrefix(urls["urgent"], "/jobs/")
	want := []string{`POST /urgent  1 "` + id + `" 1`}
	for _, name := range []string{"a", "b", "c", "d"} {
		n := 1
		if name == "c" {
			n = len(large)
		}
		want = append(want, fmt.Sprintf("POST /task/%s?q=%%20 %s 1 key-%s %d", name, name, name, n))
	}
	if !slices.Equal(seen, want) {
		t.Errorf("the handler saw\n%s\nwant\n%s", strings.Join(seen, "\n"), strings.Join(want, "\n"))
	}
	l.end()

	l = begin(t, dir, holdfast.Config{Workers: 1, Queue: 100}, record)
	if status, body := l.response(urls["c"]); status != http.StatusCreated || body != large {
		t.Errorf("the response is %d with %d bytes after a second restart", status, len(body))
	}
	if len(seen) != len(want) {
		t.Error("a job that had ended ran again")
	}
}

// What a shutdown cuts off goes on after the restart, however often, and the handler can
// tell.
func TestShutdownIsNoDeath(t *testing.T) {
	started := make(chan string, 10)
	hang := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		started <- r.Header.Get("Job-Attempt")
		if r.Header.Get("Job-Attempt") != "6" {
			<-r.Context().Done()
		}
	})
	dir := t.TempDir()
	l := begin(t, dir, holdfast.Config{Workers: 1, Queue: 10}, hang)
	url := l.post("/", "")
	for attempt := range 6 {
		select {
		case got := <-started:
			if want := fmt.Sprint(attempt + 1); got != want {
				t.Fatalf("Job-Attempt is %s, want %s", got, want)
			}
		case <-time.After(patience):
			t.Fatal("the job was not started")
		}
		if attempt < 5 {
			l.end()
			l = begin(t, dir, holdfast.Config{Workers: 1, Queue: 10}, hang)
		}
	}
	l.await(url, "done")
}

// A queue that has become smaller loses nothing: what finds no place waits for one.
func TestRestartWithFewerPlaces(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.URL.Path) })
	dir := t.TempDir()
	l := begin(t, dir, holdfast.Config{Queue: 50}, h)
	var urls []string
	for i := range 50 {
		urls = append(urls, l.post(fmt.Sprint("/", i), "", "Client", "the one"))
	}
	l.end()
	l = begin(t, dir, holdfast.Config{Queue: 2, Overflow: holdfast.DropOldest, ClientPlaces: 1}, h)
	r, _ := http.NewRequest("DELETE", l.http.URL+urls[49], nil)
	if resp, err := http.DefaultClient.Do(r); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("DELETE of a job that has no place yet: %v, %v", resp, err)
	}
	if got := l.state(urls[49]); got != "canceled" {
		t.Errorf("the job is %s after the DELETE, want canceled", got)
	}
	l.d.Resize(2)
	for i, url := range urls[:49] {
		l.await(url, "done")
		if status, body := l.response(url); status != http.StatusOK || body != fmt.Sprint("/", i) {
			t.Errorf("the response of job %d is %d %s", i, status, body)
		}
	}
	l.await(urls[49], "canceled")
}

// A queue that has become smaller keeps its order, and nobody overtakes it.
func TestOrderWithFewerPlaces(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, r.URL.Path)
	})
	for _, urgent := range []string{"u=0", ""} {
		seen = nil
		dir := t.TempDir()
		l := begin(t, dir, holdfast.Config{Queue: 50}, h)
		var urls, want []string
		for i := range 10 {
			urls = append(urls, l.post(fmt.Sprint("/", i), ""))
			want = append(want, fmt.Sprint("/", i))
		}
		urls = append(urls, l.post("/last", "", "Priority", urgent))
		if urgent == "" {
			want = append(want, "/last")
		} else {
			want = append([]string{"/last"}, want...)
		}
		l.end()
		l = begin(t, dir, holdfast.Config{Queue: 2, Overflow: holdfast.Block}, h)
		overtaking := make(chan string)
		go func() { overtaking <- l.post("/new", "") }()
		for l.d.Stats().Blocked == 0 {
			time.Sleep(time.Millisecond)
		}
		l.d.Resize(1)
		urls, want = append(urls, <-overtaking), append(want, "/new")
		for _, url := range urls {
			l.await(url, "done")
		}
		if !slices.Equal(seen, want) {
			t.Errorf("last with %q: the handler saw %v, want %v", urgent, seen, want)
		}
	}
}

// Without it a job that no record of the log can hold is never shown as ended, and runs again
// after each restart.
func TestContentThatNoRecordHolds(t *testing.T) {
	d, err := holdfast.New(holdfast.Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, jobs := range []holdfast.JobsConfig{{MaxBody: 64 << 20}, {MaxResponse: 64 << 20}} {
		dir := filepath.Join(t.TempDir(), "data")
		if _, err := Open(t.Context(), Config{Dir: dir, Dispatcher: d, Handler: http.NotFoundHandler(), Jobs: jobs}); err == nil {
			t.Errorf("Open took %+v", jobs)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Error("Open has created the folder all the same")
		}
	}
}

// The folder belongs to one process at a time.
func TestFolderIsOwned(t *testing.T) {
	dir := t.TempDir()
	begin(t, dir, holdfast.Config{Queue: 1}, http.NotFoundHandler())
	d, err := holdfast.New(holdfast.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Config{Dir: dir, Dispatcher: d, Handler: http.NotFoundHandler()}); err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("a second Open returned %v, want an error in one line", err)
	}
}

// Check says what a folder holds, and changes nothing.
func TestCheck(t *testing.T) {
	dir := t.TempDir()
	started := make(chan bool, 1)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hang" {
			started <- true
			<-r.Context().Done()
		}
	})
	l := begin(t, dir, holdfast.Config{Workers: 1, Queue: 10}, h)
	l.await(l.post("/a", ""), "done")
	l.await(l.post("/b", ""), "done")
	l.post("/hang", "")
	<-started
	l.post("/c", "")
	if _, err := Check(t.Context(), dir); err == nil {
		t.Error("a folder was read that a server is using")
	}
	l.end()
	for range 2 {
		r, err := Check(t.Context(), dir)
		if err != nil || r.Open != 2 || r.Started != 1 || r.Ended != 2 || r.Records != 10 || len(r.Problems) != 0 {
			t.Errorf("Check says %+v, %v", r, err)
		}
	}
	if _, err := Check(t.Context(), filepath.Join(dir, "none")); err == nil {
		t.Error("a folder was read that is not there")
	}
}

// The log is cut behind what is needed, and an old job that waits does not pin it.
func TestLogIsBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 300 MiB")
	}
	dir := t.TempDir()
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/old" {
			<-r.Context().Done()
		}
	})
	l := begin(t, dir, holdfast.Config{Workers: 2, Queue: 100}, h, func(c *Config) { c.NoSync = true })
	old := l.post("/old", "the old one", "Client", "old")
	body := strings.Repeat("x", 1<<20)
	for i := range 300 {
		l.post(fmt.Sprint("/", i), body)
	}
	for end := time.Now().Add(patience); size(t, dir) > 150<<20; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the folder has %d MiB after 300 MiB of jobs that have ended", size(t, dir)>>20)
		}
	}
	l.end()
	l = begin(t, dir, holdfast.Config{Queue: 100}, h)
	if got := l.state(old); got != "queued" {
		t.Errorf("the old job is %s after the log was cut, want queued", got)
	}
}

// size returns the bytes of the files below dir.
func size(t *testing.T, dir string) (n int64) {
	t.Helper()
	filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			if info, err := e.Info(); err == nil {
				n += info.Size()
			}
		}
		return nil
	})
	return n
}
