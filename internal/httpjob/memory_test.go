package httpjob_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast"
)

// A fixture is a server of jobs with little memory.
type fixture struct {
	t    *testing.T
	d    *holdfast.Dispatcher
	jobs *holdfast.Jobs
	url  string
	most int64
}

// unruly does what the query asks for.
func unruly(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	size, _ := strconv.Atoi(q.Get("size"))
	if d, err := time.ParseDuration(q.Get("sleep")); err == nil {
		select {
		case <-time.After(d):
		case <-r.Context().Done():
		}
	}
	switch q.Get("end") {
	case "panic":
		panic("on purpose")
	case "abort":
		panic(http.ErrAbortHandler)
	case "declared":
		w.Header().Set("Content-Length", strconv.Itoa(size))
	case "left":
		if _, server := w.(io.ReaderFrom); server {
			return // whose response must not be written later
		}
		go func() {
			time.Sleep(time.Millisecond)
			w.Write(make([]byte, 10_000))
		}()
	}
	if q.Get("echo") != "" {
		io.Copy(w, r.Body)
	}
	for piece := make([]byte, 1000); size > 0; size -= len(piece) {
		if _, err := w.Write(piece[:min(size, len(piece))]); err != nil {
			return
		}
	}
}

func newFixture(t *testing.T, overflow holdfast.Overflow) *fixture {
	d, err := holdfast.New(holdfast.Config{Workers: 3, Queue: 3, Overflow: overflow, JobTimeout: 40 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{t: t, d: d, most: 1 << 20}
	f.jobs, err = holdfast.NewJobs(d, holdfast.JobsConfig{MaxBody: 300_000, MaxResponse: 300_000, Retain: 30 * time.Millisecond, RetainBytes: 700_000, MaxMemory: f.most})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	h := http.HandlerFunc(unruly)
	mux.Handle("/sync", f.jobs.Sync(h))
	mux.Handle("/queued", f.jobs.Queued(h))
	mux.Handle("/async", f.jobs.Async(h))
	mux.Handle("/late", http.TimeoutHandler(f.jobs.Queued(h), 10*time.Millisecond, ""))
	mux.Handle("/jobs/", f.jobs)
	s := httptest.NewUnstartedServer(mux)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	s.Start()
	t.Cleanup(s.Close)
	f.url = s.URL
	return f
}

// breaking is a body that breaks off.
type breaking struct{ io.Reader }

func (b breaking) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err == io.EOF {
		err = errors.New("on purpose")
	}
	return n, err
}

// request returns a request of any kind.
func (f *fixture) request(random *rand.Rand) *http.Request {
	one := func(of ...string) string { return of[random.IntN(len(of))] }
	path := one("/sync", "/queued", "/async", "/async", "/late")
	query := fmt.Sprintf("?size=%d&sleep=%s&end=%s&echo=%s", random.IntN(330_000)*random.IntN(2), one("", "1ms", "5ms", "60ms"), one("", "", "panic", "abort", "declared", "left"), one("", "1"))
	var body io.Reader = bytes.NewReader(make([]byte, random.IntN(310_000)*random.IntN(2)))
	switch random.IntN(5) {
	case 0:
		body = io.MultiReader(body) // of unknown length
	case 1:
		body = breaking{body}
	}
	r, err := http.NewRequest("POST", f.url+path+query, body)
	if err != nil {
		f.t.Fatal(err)
	}
	if random.IntN(3) == 0 {
		r.Header.Set("Prefer", one("respond-async", "wait=1", "respond-async, wait=1"))
	}
	if random.IntN(3) == 0 {
		r.Header.Set("Idempotency-Key", one("a", "b", "c"))
	}
	for i := range random.IntN(100) * random.IntN(2) {
		r.Header.Set(fmt.Sprint("X-", i), "v")
	}
	return r
}

// client sends requests of any kind, and follows, cancels, or leaves.
func (f *fixture) client(random *rand.Rand, n int) {
	c := &http.Client{Timeout: time.Duration(1+random.IntN(100)) * time.Millisecond, Transport: &http.Transport{}}
	defer c.CloseIdleConnections()
	for range n {
		a, err := c.Do(f.request(random))
		if err != nil {
			continue
		}
		if a.StatusCode == 503 && a.Header.Get("Retry-After") == "" {
			text, _ := io.ReadAll(a.Body)
			if !strings.Contains(string(text), "Timeout") && !strings.Contains(string(text), "before it was accepted") && len(text) > 0 {
				f.t.Errorf("503 without Retry-After: %s", text)
			}
		}
		io.CopyN(io.Discard, a.Body, random.Int64N(20_000))
		a.Body.Close()
		if url := a.Header.Get("Location"); url != "" {
			f.follow(c, random, url)
		}
	}
}

func (f *fixture) follow(c *http.Client, random *rand.Rand, url string) {
	method := "GET"
	if random.IntN(4) == 0 {
		method = "DELETE"
	} else if random.IntN(2) == 0 {
		url += "/response"
	}
	r, _ := http.NewRequest(method, f.url+url, nil)
	r.Header.Set("Prefer", "wait=1")
	if a, err := c.Do(r); err == nil {
		io.CopyN(io.Discard, a.Body, random.Int64N(20_000))
		time.Sleep(time.Duration(random.IntN(5)) * time.Millisecond)
		a.Body.Close()
	}
}

// Whatever becomes of requests, everything that was held for them is given back once.
func TestNothingLeaks(t *testing.T) {
	for seed, overflow := range []holdfast.Overflow{holdfast.Block, holdfast.Reject, holdfast.DropOldest} {
		f := newFixture(t, overflow)
		var wg sync.WaitGroup
		for i := range 12 {
			wg.Go(func() { f.client(rand.New(rand.NewPCG(uint64(seed), uint64(i))), 40) })
		}
		done := make(chan struct{})
		go func() { wg.Wait(); close(done) }()
		var greatest int64
		for over := false; !over; {
			select {
			case <-done:
				over = true
			case <-time.After(time.Millisecond):
				greatest = max(greatest, f.jobs.Stats().Held)
			}
		}
		st := f.jobs.Stats()
		for end := time.Now().Add(10 * time.Second); st.Held != 0 && time.Now().Before(end); st = f.jobs.Stats() {
			time.Sleep(5 * time.Millisecond)
		}
		if st.Held != 0 || st.Kept != 0 || st.Open != 0 {
			t.Errorf("%v: at the end %+v; want nothing", overflow, st)
		}
		// A chunk of the store and what stands in its index are there before they can be refused.
		if greatest > f.most+1<<20 || greatest == 0 {
			t.Errorf("%v: %d bytes were held, of %d", overflow, greatest, f.most)
		}
		t.Logf("%v: at most %d held, %d refused, evicted %d", overflow, greatest, st.RefusedHeld, st.EvictedBytes)
	}
}

// What a job takes is counted when its request has long been answered, and a job that is
// canceled gives it back.
func TestJobsAreCounted(t *testing.T) {
	d, err := holdfast.New(holdfast.Config{Workers: 0, Queue: 100, Overflow: holdfast.Reject})
	if err != nil {
		t.Fatal(err)
	}
	jobs, err := holdfast.NewJobs(d, holdfast.JobsConfig{MaxMemory: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	h := jobs.Async(http.HandlerFunc(unruly))
	var ids []holdfast.ID
	var refused *httptest.ResponseRecorder
	for range 20 {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("POST", "/", bytes.NewReader(make([]byte, 180_000))))
		if w.Code != http.StatusAccepted {
			refused = w
			continue
		}
		ids = append(ids, holdfast.ID(strings.TrimPrefix(w.Header().Get("Location"), "/jobs/")))
	}
	if st := jobs.Stats(); len(ids) != 5 || st.Held < 900_000 || st.RefusedHeld != 15 {
		t.Errorf("%d jobs of 180,000 bytes fit into 1 MiB, %d are held, %d refused; want 5 and 15", len(ids), st.Held, st.RefusedHeld)
	}
	if refused == nil || refused.Code != 503 || refused.Header().Get("Retry-After") == "" || !strings.Contains(refused.Body.String(), "memory") {
		t.Errorf("a job beyond that is answered %+v", refused)
	}
	for _, id := range ids {
		jobs.Cancel(id)
	}
	if held := jobs.Stats().Held; held > 300_000 { // a chunk of the store
		t.Errorf("%d bytes are held for canceled jobs", held)
	}
}

// A request of Queued has its body until it is answered, and costs no more then.
func TestQueuedForgetsTheBody(t *testing.T) {
	d, err := holdfast.New(holdfast.Config{Workers: 1, Queue: 1})
	if err != nil {
		t.Fatal(err)
	}
	jobs, err := holdfast.NewJobs(d, holdfast.JobsConfig{MaxMemory: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	var during int64
	h := jobs.Queued(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { during = jobs.Stats().Held }))
	w := &watching{ResponseWriter: httptest.NewRecorder(), jobs: jobs}
	h.ServeHTTP(w, httptest.NewRequest("POST", "/", bytes.NewReader(make([]byte, 300_000))))
	if during < 300_000 || w.held >= 300_000 || jobs.Stats().Held != 0 {
		t.Errorf("%d bytes are held during the job, %d for its answer, %d at the end", during, w.held, jobs.Stats().Held)
	}
}

// watching notes what is held when an answer is written.
type watching struct {
	http.ResponseWriter
	jobs *holdfast.Jobs
	held int64
}

func (w *watching) WriteHeader(status int) {
	w.held = w.jobs.Stats().Held
	w.ResponseWriter.WriteHeader(status)
}
