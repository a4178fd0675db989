package durable

import (
	"flag"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast"
)

var (
	startKept   = flag.Int("start-kept", 3000, "how many jobs have ended when TestStart starts the server again, `n`")
	startQueued = flag.Int("start-queued", 1000, "how many are queued then, `n`")
)

// After a restart all jobs are there, those that have ended and those that are queued. With
// -v it says how long the start took, and what a job takes in memory.
func TestStart(t *testing.T) {
	dir := t.TempDir()
	cfg := holdfast.Config{Workers: 100, Queue: *startQueued + 1000}
	sizes := func(c *Config) {
		c.NoSync = true // only so that the log is there soon
		c.Jobs.Retain, c.Jobs.RetainJobs, c.Jobs.RetainBytes, c.Jobs.MaxMemory = 24*time.Hour, *startKept+*startQueued, 8<<30, 16<<30
	}
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	l := begin(t, dir, cfg, h, sizes)
	first := l.submit(*startKept, h)
	for end := time.Now().Add(patience); l.jobs.Stats().Kept < *startKept; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d of %d jobs have ended", l.jobs.Stats().Kept, *startKept)
		}
	}
	if err := l.d.Resize(0); err != nil {
		t.Fatal(err)
	}
	last := l.submit(*startQueued, h)
	l.end()

	before := heap()
	begun := time.Now()
	cfg.Workers = 0
	l = begin(t, dir, cfg, h, sizes)
	took := time.Since(begun)
	if got := l.jobs.Stats(); got.Kept != *startKept || got.Open != *startQueued || l.d.Stats().Queued != *startQueued {
		t.Errorf("%d jobs have ended and %d are open; want %d and %d", got.Kept, got.Open, *startKept, *startQueued)
	}
	t.Logf("a start with %d jobs that have ended and %d that are queued took %v; %d bytes of log; %d bytes of memory for each job", *startKept, *startQueued, took, l.jobs.Log().Bytes, (heap()-before)/int64(*startKept+*startQueued))
	if status, body := l.response(first); status != http.StatusOK || body != "hello" {
		t.Errorf("the first job's response is %d %q", status, body)
	}
	if state := l.state(last); state != "queued" {
		t.Errorf("the last job is %s, want queued", state)
	}
}

// submit submits n jobs, without a network, and returns the URL of one of them.
func (l *life) submit(n int, h http.Handler) (url string) {
	l.t.Helper()
	var left atomic.Int64
	left.Store(int64(n))
	var clients sync.WaitGroup
	urls := make(chan string, 1)
	async := l.jobs.Async(h)
	for range 256 {
		clients.Go(func() {
			for left.Add(-1) >= 0 {
				w := httptest.NewRecorder()
				async.ServeHTTP(w, httptest.NewRequest("POST", "/work", strings.NewReader("hello")))
				if w.Code != http.StatusAccepted {
					l.t.Errorf("POST: %d %s", w.Code, w.Body)
					return
				}
				select {
				case urls <- w.Header().Get("Location"):
				default:
				}
			}
		})
	}
	clients.Wait()
	return <-urls
}

// heap returns how many bytes are in use.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
