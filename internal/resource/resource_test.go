package resource

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/exchange"
	"holdfast/internal/memtest"
	"holdfast/internal/store"
)

type fixture struct {
	*Handler
	stop   chan struct{}
	active atomic.Int64 // requests that serve has in hand
}

func newFixture() *fixture {
	stop := make(chan struct{})
	return &fixture{Handler: &Handler{
		Store:      store.New(store.Bounds{Jobs: 1000, Bytes: 1 << 30, Age: time.Hour}),
		Path:       "/jobs/",
		RetryAfter: func() int { return 7 },
		Stop:       stop,
	}, stop: stop}
}

// work is what a job is canceled by.
type work func() bool

func (w work) Cancel() bool { return w() }

// job returns an accepted job. A cancel ends it if it is queued.
func (f *fixture) job() *store.Job {
	var j *store.Job
	j = store.NewJob(store.NewID(), work(func() bool {
		if f.Store.View(j).State != store.Queued {
			return false
		}
		f.Store.End(j, store.Outcome{State: store.Canceled, Status: 410, Detail: "the job was canceled"})
		return true
	}), store.Request{Method: "POST", Target: "/things?q=1", Route: "POST /things"})
	f.Store.Add(j, nil)
	f.Store.Accept(j)
	return j
}

// in returns a job in one of the states, by a name.
func (f *fixture) in(t testing.TB, state string) *store.Job {
	j := f.job()
	if state == "queued" {
		return j
	}
	f.Store.Start(j)
	var o store.Outcome
	switch state {
	case "running":
		return j
	case "done":
		o = f.done(t, "GET", func(w http.ResponseWriter, r *http.Request) {
			h := w.Header()
			h.Set("X-Handler", "yes")
			h.Add("X-Many", "1")
			h.Add("X-Many", "2")
			h.Set("Job-State", "forged")
			h.Set("Cache-Control", "max-age=60")
			w.WriteHeader(404)
			io.WriteString(w, "none of ours")
		})
	case "failed":
		o = store.Outcome{State: store.Failed, Status: 500, Detail: "the handler panicked"}
	case "late":
		o = store.Outcome{State: store.Failed, Status: 504, Detail: "the handler ran for longer than a job may"}
	case "canceled":
		o = store.Outcome{State: store.Canceled, Status: 410, Detail: "the job was canceled"}
	case "dropped":
		o = store.Outcome{State: store.Dropped, Status: 410, Detail: "the job was dropped"}
	}
	f.Store.End(j, o)
	return j
}

func (f *fixture) done(t testing.TB, method string, h http.HandlerFunc) store.Outcome {
	var x exchange.Exchange
	x.Capture(h, httptest.NewRequest(method, "/", nil), nil, 1<<20)
	if err := x.Serve(context.Background()); err != nil {
		t.Fatal(err)
	}
	return store.Outcome{State: store.Done, Response: x.Response()}
}

func urlOf(j *store.Job) string { return "/jobs/" + j.ID.String() }

func (f *fixture) do(method, target string, header ...string) *httptest.ResponseRecorder {
	return f.doContext(context.Background(), method, target, header...)
}

func (f *fixture) doContext(ctx context.Context, method, target string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequestWithContext(ctx, method, target, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	f.ServeHTTP(rec, r)
	return rec
}

// shown is the job resource.
type shown struct {
	ID          string     `json:"id"`
	State       string     `json:"state"`
	AcceptedAt  *time.Time `json:"accepted_at"`
	StartedAt   *time.Time `json:"started_at"`
	EndedAt     *time.Time `json:"ended_at"`
	ExpiresAt   *time.Time `json:"expires_at"`
	Error       string     `json:"error"`
	URL         string     `json:"url"`
	ResponseURL string     `json:"response_url"`
	Status      string     `json:"status"`
	Resource    string     `json:"resourceLocation"`
}

func parse(t testing.TB, data []byte) (s shown) {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(string(data)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		t.Fatalf("%s: %v", data, err)
	}
	return s
}

func checkHeader(t testing.TB, what string, h http.Header, want map[string]string) {
	t.Helper()
	for name, value := range want {
		if got := strings.Join(h[http.CanonicalHeaderKey(name)], "|"); got != value {
			t.Errorf("%s: %s is %q, want %q", what, name, got, value)
		}
	}
}

func checkProblem(t testing.TB, what string, rec *httptest.ResponseRecorder, status int, says string) {
	t.Helper()
	var p struct {
		Title, Detail string
		Status        int
	}
	err := json.Unmarshal(rec.Body.Bytes(), &p)
	if rec.Code != status || err != nil || p.Status != status || p.Title != http.StatusText(status) || !strings.Contains(p.Detail, says) || rec.Header().Get("Content-Type") != "application/problem+json" {
		t.Errorf("%s: %d %v %s, want a problem %d that says %q", what, rec.Code, rec.Header(), rec.Body, status, says)
	}
}

var all = []string{"queued", "running", "done", "failed", "late", "canceled", "dropped"}

// stateOf returns what a client is to see.
func stateOf(name string) string {
	if name == "late" {
		return "failed"
	}
	return name
}

// statusOf has what pollers of long-running operations are to see. They know three
// ends, and take all else for a state that passes.
var statusOf = map[string]string{
	"queued": "NotStarted", "running": "Running", "done": "Succeeded",
	"failed": "Failed", "late": "Failed", "canceled": "Canceled", "dropped": "Failed",
}

func TestShow(t *testing.T) {
	details := map[string]string{"failed": "the handler panicked", "late": "the handler ran for longer than a job may", "canceled": "the job was canceled", "dropped": "the job was dropped"}
	for _, name := range all {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture()
			began := time.Now()
			j := f.in(t, name)
			time.Sleep(time.Minute) // the times are those of the job
			rec := f.do("GET", urlOf(j))
			if rec.Code != 200 {
				t.Fatalf("%s: %d", name, rec.Code)
			}
			checkHeader(t, name, rec.Header(), map[string]string{
				"Job-State": stateOf(name), "Cache-Control": "no-store", "Content-Type": "application/json", "Content-Length": strconv.Itoa(rec.Body.Len()),
				"Vary": "Prefer|Accept", "Preference-Applied": "", "Retry-After": map[bool]string{true: "7"}[name == "queued" || name == "running"], "Location": "",
			})
			s := parse(t, rec.Body.Bytes())
			if s.ID != j.ID.String() || s.State != stateOf(name) || s.URL != urlOf(j) || s.ResponseURL != urlOf(j)+"/response" || s.Error != details[name] {
				t.Errorf("%s: %+v", name, s)
			}
			resource := map[bool]string{true: urlOf(j) + "/response"}[name == "done"]
			if s.Status != statusOf[name] || s.Resource != resource {
				t.Errorf("%s: status %s, resourceLocation %q; want %s, %q", name, s.Status, s.Resource, statusOf[name], resource)
			}
			at := func(got *time.Time, want time.Duration) bool {
				return got != nil && got.Sub(began) >= want && got.Sub(began) < want+time.Second && got.Location() == time.UTC
			}
			ended := name != "queued" && name != "running"
			if !at(s.AcceptedAt, 0) || (name == "queued") != (s.StartedAt == nil) || name != "queued" && !at(s.StartedAt, 0) ||
				ended && (!at(s.EndedAt, 0) || !at(s.ExpiresAt, time.Hour)) || !ended && (s.EndedAt != nil || s.ExpiresAt != nil) {
				t.Errorf("%s: times %s", name, rec.Body)
			}
			if !strings.HasSuffix(rec.Body.String(), "}\n") {
				t.Errorf("%s: no line end", name)
			}

			// A long poll on what has ended answers at once, and says so.
			if ended {
				before := time.Now()
				for _, target := range []string{urlOf(j), urlOf(j) + "/response"} {
					rec := f.do("GET", target, "Prefer", "wait=30, other")
					if time.Since(before) != 0 || rec.Header().Get("Preference-Applied") != "wait=30" || rec.Header().Get("Job-State") != stateOf(name) {
						t.Errorf("%s %s: after %v, %v", name, target, time.Since(before), rec.Header())
					}
				}
			}
		})
	}
}

func TestResponse(t *testing.T) {
	f := newFixture()
	// What is kept is final, whatever it was; who waited with the request may retry it.
	for _, test := range []struct {
		name          string
		cause, waited int
		retry, says   string
	}{
		{"failed", 500, 500, "", "the handler panicked"},
		{"late", 504, 504, "", "longer than a job may"},
		{"canceled", 0, 410, "", "canceled"},
		{"dropped", 0, 503, "7", "dropped"},
	} {
		j := f.in(t, test.name)
		rec := f.do("GET", urlOf(j)+"/response")
		checkProblem(t, test.name, rec, 410, test.says)
		checkHeader(t, test.name, rec.Header(), map[string]string{"Job-State": stateOf(test.name), "Cache-Control": "no-store", "Vary": "Prefer", "Preference-Applied": "", "Retry-After": ""})
		var p struct {
			Cause *int `json:"cause_status"`
		}
		if err := json.Unmarshal(rec.Body.Bytes(), &p); err != nil || (p.Cause != nil) != (test.cause != 0) || p.Cause != nil && *p.Cause != test.cause {
			t.Errorf("%s: %s, want cause_status %d, or none if that is 0", test.name, rec.Body, test.cause)
		}

		rec = httptest.NewRecorder()
		f.Result(rec, httptest.NewRequest("POST", "/", nil), j, "wait=1")
		checkProblem(t, test.name+", waited for", rec, test.waited, test.says)
		checkHeader(t, test.name+", waited for", rec.Header(), map[string]string{"Job-State": stateOf(test.name), "Cache-Control": "no-store", "Preference-Applied": "wait=1", "Retry-After": test.retry})
		if test.waited != 410 && strings.Contains(rec.Body.String(), "cause_status") {
			t.Errorf("%s: %s", test.name, rec.Body)
		}
	}
	for _, name := range []string{"queued", "running"} {
		j := f.in(t, name)
		rec := f.do("GET", urlOf(j)+"/response")
		if s := parse(t, rec.Body.Bytes()); rec.Code != 202 || s.State != name || s.ID != j.ID.String() {
			t.Errorf("%s: %d %s", name, rec.Code, rec.Body)
		}
		checkHeader(t, name, rec.Header(), map[string]string{"Job-State": name, "Cache-Control": "no-store", "Retry-After": "7", "Vary": "Prefer", "Content-Type": "application/json", "Preference-Applied": ""})
	}
	rec := f.do("GET", urlOf(f.in(t, "done"))+"/response")
	if rec.Code != 404 || rec.Body.String() != "none of ours" {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	// The handler's own fields, but for the one by which it is told from us.
	checkHeader(t, "done", rec.Header(), map[string]string{"Job-State": "done", "X-Handler": "yes", "X-Many": "1|2", "Cache-Control": "max-age=60", "Vary": "Prefer", "Content-Type": "text/plain; charset=utf-8", "Preference-Applied": ""})
}

// What an outer handler has said that the answer varies by stays.
func TestVaryIsAddedTo(t *testing.T) {
	f := newFixture()
	j := f.in(t, "done")
	for _, accept := range []string{"", "text/event-stream"} {
		for _, target := range []string{urlOf(j), urlOf(j) + "/response"} {
			rec := httptest.NewRecorder()
			rec.Header().Set("Vary", "Origin")
			r := httptest.NewRequest("GET", target, nil)
			r.Header.Set("Accept", accept)
			f.ServeHTTP(rec, r)
			if vary := rec.Header()["Vary"]; !slices.Contains(vary, "Origin") || len(vary) < 2 {
				t.Errorf("%s, Accept %q: Vary is %q, want Origin in it, and more", target, accept, vary)
			}
		}
	}
}

func TestHead(t *testing.T) {
	f := newFixture()
	server := httptest.NewServer(f)
	defer server.Close()
	for _, name := range all {
		for _, below := range []string{"", "/response"} {
			j := f.in(t, name)
			get, err := http.Get(server.URL + urlOf(j) + below)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(get.Body)
			get.Body.Close()
			head, err := http.Head(server.URL + urlOf(j) + below)
			if err != nil {
				t.Fatal(err)
			}
			get.Header.Del("Date")
			head.Header.Del("Date")
			if head.StatusCode != get.StatusCode || fmt.Sprint(head.Header) != fmt.Sprint(get.Header) || head.ContentLength != int64(len(body)) {
				t.Errorf("%s%s: HEAD %d %v, GET %d %v", name, below, head.StatusCode, head.Header, get.StatusCode, get.Header)
			}
		}
	}
	// A stream is not for HEAD.
	j := f.in(t, "running")
	if rec := f.do("HEAD", urlOf(j), "Accept", "text/event-stream"); rec.Code != 200 || rec.Header().Get("Content-Type") != "application/json" {
		t.Errorf("%d %v", rec.Code, rec.Header())
	}
}

func TestDelete(t *testing.T) {
	f := newFixture()
	for _, test := range []struct {
		name   string
		status int
		then   string
	}{
		{"queued", 200, "canceled"},
		{"running", 202, "running"},
		{"canceled", 200, "canceled"},
		{"done", 409, "done"},
		{"failed", 409, "failed"},
		{"late", 409, "failed"},
		{"dropped", 409, "dropped"},
	} {
		j := f.in(t, test.name)
		for range 2 { // a repeat gets the same answer
			rec := f.do("DELETE", urlOf(j))
			checkHeader(t, test.name, rec.Header(), map[string]string{"Job-State": test.then, "Cache-Control": "no-store"})
			if test.status == 409 {
				checkProblem(t, test.name, rec, 409, test.then)
				continue
			}
			if s := parse(t, rec.Body.Bytes()); rec.Code != test.status || s.State != test.then || s.ID != j.ID.String() {
				t.Errorf("%s: %d %s", test.name, rec.Code, rec.Body)
			}
		}
	}
}

func TestMethods(t *testing.T) {
	f := newFixture()
	known := f.in(t, "running")
	unknown := "/jobs/" + store.NewID().String()
	for _, method := range []string{"POST", "PUT", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW", "get", "ET", "HEA", "D"} {
		for target, allow := range map[string]string{urlOf(known): "GET, HEAD, DELETE", urlOf(known) + "/response": "GET, HEAD"} {
			rec := f.do(method, target)
			checkProblem(t, method, rec, 405, allow)
			checkHeader(t, method, rec.Header(), map[string]string{"Allow": allow})
			// The answer does not tell whether there is such a job.
			target = strings.Replace(target, urlOf(known), unknown, 1)
			other := f.do(method, target)
			if other.Code != rec.Code || fmt.Sprint(other.Header()) != fmt.Sprint(rec.Header()) || other.Body.String() != rec.Body.String() {
				t.Errorf("%s tells a known job from an unknown one", method)
			}
		}
	}
	if rec := f.do("DELETE", urlOf(known)+"/response"); rec.Code != 405 || rec.Header().Get("Allow") != "GET, HEAD" {
		t.Errorf("DELETE of a response: %d", rec.Code)
	}
	if s := parse(t, f.do("GET", urlOf(known)).Body.Bytes()); s.State != "running" {
		t.Errorf("a wrong method changed the job: %s", s.State)
	}
}

// An unknown id, an expired one, one that is none and a wrong path get one and the
// same answer.
func TestNotFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		expired := f.in(t, "done")
		time.Sleep(time.Hour)
		open := f.in(t, "running")
		first := f.do("GET", "/jobs/"+store.NewID().String())
		checkProblem(t, "unknown", first, 404, "no such job")
		checkHeader(t, "unknown", first.Header(), map[string]string{"Job-State": "", "Vary": "", "Preference-Applied": ""})
		id := open.ID.String()
		for _, path := range []string{
			urlOf(expired), urlOf(expired) + "/response", "/jobs/" + store.NewID().String() + "/response",
			"/jobs/", "/jobs/x", "/jobs/" + strings.ToLower(id), "/jobs/" + id + "/", "/jobs/" + id + "/responses", "/jobs/" + id + "/response/",
			"/jobs/" + id + "//response", "/jobs//" + id, "/jobs/" + id + "A", "/jobs/" + id[:25], "/other/" + id, "/jobs" + id, "/jobs/" + id + "%00", "/jobs/%20" + id, "/jobs//response", "/",
		} {
			for _, method := range []string{"GET", "HEAD"} {
				for _, header := range [][]string{nil, {"Prefer", "wait=30"}, {"Accept", "text/event-stream"}} {
					rec := f.do(method, path, header...)
					if rec.Code != first.Code || fmt.Sprint(rec.Header()) != fmt.Sprint(first.Header()) || rec.Body.String() != first.Body.String() {
						t.Errorf("%s %s %q: %d %v %s", method, path, header, rec.Code, rec.Header(), rec.Body)
					}
				}
			}
		}
		for _, path := range []string{urlOf(expired), "/jobs/x"} {
			if rec := f.do("DELETE", path); rec.Body.String() != first.Body.String() || fmt.Sprint(rec.Header()) != fmt.Sprint(first.Header()) {
				t.Errorf("DELETE %s: %d %s", path, rec.Code, rec.Body)
			}
		}
	})
}

func TestAccepted(t *testing.T) {
	f := newFixture()
	f.Path, f.Base = "/a/b/", "https://host/queue"
	length := 0
	for i, name := range all { // the answer to a repeat comes when it has long ended
		j := f.in(t, name)
		rec := httptest.NewRecorder()
		applied := []string{"", "respond-async, wait=3"}[i%2]
		f.Accepted(rec, j, applied)
		want := fmt.Sprintf("{\"id\":%q,\"state\":\"queued\",\"url\":\"https://host/queue/a/b/%s\"}\n", j.ID, j.ID)
		url := "https://host/queue/a/b/" + j.ID.String()
		if rec.Code != 202 || rec.Body.String() != want {
			t.Errorf("%d %s, want %s", rec.Code, rec.Body, want)
		}
		checkHeader(t, name, rec.Header(), map[string]string{"Location": url, "Operation-Location": url, "Content-Location": url + "/response", "Content-Type": "application/json", "Content-Length": strconv.Itoa(len(want)), "Job-State": stateOf(name), "Preference-Applied": applied})
		if length > 0 && length != rec.Body.Len() {
			t.Errorf("%d bytes, then %d", length, rec.Body.Len())
		}
		length = rec.Body.Len()
		// What a caller adds to a header must not reach the next answer.
		rec.Header().Add("Content-Type", "x")
		rec.Header().Add("Job-State", "x")
	}
	if rec := f.do("GET", urlOf(f.in(t, "done"))); rec.Code != 404 {
		t.Errorf("another path: %d", rec.Code)
	}
	j := f.in(t, "done")
	rec := f.do("GET", "/a/b/"+j.ID.String()) // whatever clients see, the routes stay
	at := "https://host/queue/a/b/" + j.ID.String()
	if s := parse(t, rec.Body.Bytes()); rec.Code != 200 || s.URL != at || s.ResponseURL != at+"/response" || s.Resource != s.ResponseURL {
		t.Errorf("its path: %d %s", rec.Code, rec.Body)
	}
}

func TestParseBase(t *testing.T) {
	for s, want := range map[string]string{
		"https://host": "https://host", "http://host:8080/": "http://host:8080", "https://host/queue": "https://host/queue", "https://host/a/b//": "https://host/a/b",
		"http://[::1]:80/ä": "http://[::1]:80/%C3%A4",
	} {
		if got, err := ParseBase(s); got != want || err != nil {
			t.Errorf("%q: %q, %v; want %q", s, got, err, want)
		}
	}
	for _, s := range []string{"", "/queue", "host", "host:80", "//host", "ftp://host", "https://", "https:///queue", "https://u@host", "https://host?", "https://host?q", "https://host#", "https://host#f", "https://host/%", "https://host/\r\nX: y", "https://ho st"} {
		if got, err := ParseBase(s); got != "" || err == nil {
			t.Errorf("%q: %q, want an error", s, got)
		}
	}
}

func TestApplied(t *testing.T) {
	for _, test := range []struct {
		async bool
		wait  time.Duration
		want  string
	}{
		{false, -1, ""}, {true, -1, "respond-async"}, {false, 0, "wait=0"}, {true, 50 * time.Second, "respond-async, wait=50"},
	} {
		if got := Applied(test.async, test.wait); got != test.want {
			t.Errorf("%v, %v: %q, want %q", test.async, test.wait, got, test.want)
		}
	}
}

// A long poll ends with the job, after the time that it asks for, when its client
// leaves or when nobody is to wait any more, and shows where the job stands then.
func TestLongPoll(t *testing.T) {
	for _, below := range []string{"", "/response"} {
		for _, test := range []struct {
			name, prefer, applied string
			act                   func(f *fixture, j *store.Job, leave func())
			after                 time.Duration
			state                 string
		}{
			{"nothing", "wait=9", "wait=9", nil, 9 * time.Second, "queued"},
			{"more than a proxy waits", "wait=3600", "wait=50", nil, 50 * time.Second, "queued"},
			{"no time", "wait=0", "wait=0", nil, 0, "queued"},
			{"not understood", "wait=-3", "", nil, 0, "queued"},
			{"only the first", "wait=2, wait=30", "wait=2", nil, 2 * time.Second, "queued"},
			{"starts", "wait=9", "wait=9", func(f *fixture, j *store.Job, _ func()) { f.Store.Start(j) }, 9 * time.Second, "running"},
			{"ends", "wait=9", "wait=9", func(f *fixture, j *store.Job, _ func()) {
				f.Store.Start(j)
				time.Sleep(time.Second)
				f.Store.End(j, store.Outcome{State: store.Failed, Status: 500, Detail: "x"})
			}, 4 * time.Second, "failed"},
			{"is canceled", "wait=9", "wait=9", func(f *fixture, j *store.Job, _ func()) { f.Store.Cancel(j) }, 3 * time.Second, "canceled"},
			{"client leaves", "wait=9", "wait=9", func(_ *fixture, _ *store.Job, leave func()) { leave() }, 3 * time.Second, "queued"},
			{"stop", "wait=9", "wait=9", func(f *fixture, _ *store.Job, _ func()) { close(f.stop) }, 3 * time.Second, "queued"},
		} {
			t.Run(test.name+below, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFixture()
					j := f.job()
					ctx, leave := context.WithCancel(t.Context())
					defer leave()
					began := time.Now()
					if test.act != nil {
						go func() {
							time.Sleep(3 * time.Second)
							test.act(f, j, leave)
						}()
					}
					rec := f.doContext(ctx, "GET", urlOf(j)+below, "Prefer", test.prefer)
					if took := time.Since(began); took != test.after {
						t.Errorf("answered after %v, want %v", took, test.after)
					}
					want := map[string]string{"Job-State": test.state, "Preference-Applied": test.applied, "Cache-Control": "no-store", "Retry-After": ""}
					if test.state == "queued" || test.state == "running" {
						want["Retry-After"] = "7"
					}
					checkHeader(t, test.name, rec.Header(), want)
					synctest.Wait()
				})
			})
		}
	}
}

// A WriteTimeout that is shorter than the wait does not cut the answer.
func TestWriteTimeout(t *testing.T) {
	f := newFixture()
	server := httptest.NewUnstartedServer(f)
	server.Config.WriteTimeout = 50 * time.Millisecond
	server.Start()
	defer server.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, prefer := range []string{"wait=1", "wait=50"} {
		for _, below := range []string{"", "/response"} {
			wg.Go(func() {
				j := f.in(t, "running")
				if prefer == "wait=50" {
					time.AfterFunc(300*time.Millisecond, func() { f.Store.End(j, store.Outcome{State: store.Failed, Status: 500, Detail: "x"}) })
				}
				r, _ := http.NewRequest("GET", server.URL+urlOf(j)+below, nil)
				r.Header.Set("Prefer", prefer)
				res, err := server.Client().Do(r)
				if err != nil {
					t.Errorf("%s %s: %v", prefer, below, err)
					return
				}
				defer res.Body.Close()
				if body, err := io.ReadAll(res.Body); err != nil || len(body) == 0 || res.Header.Get("Preference-Applied") != prefer {
					t.Errorf("%s %s: %d bytes, %v", prefer, below, len(body), err)
				}
			})
		}
	}
	wg.Go(func() { // a stream gets the time anew for each event
		j := f.job()
		time.AfterFunc(200*time.Millisecond, func() { f.Store.Start(j) })
		time.AfterFunc(400*time.Millisecond, func() { f.Store.End(j, store.Outcome{State: store.Failed, Status: 500, Detail: "x"}) })
		r, _ := http.NewRequest("GET", server.URL+urlOf(j), nil)
		r.Header.Set("Accept", "text/event-stream")
		res, err := server.Client().Do(r)
		if err != nil {
			t.Error(err)
			return
		}
		defer res.Body.Close()
		if body, err := io.ReadAll(res.Body); err != nil || strings.Count(string(body), "event: state") != 3 {
			t.Errorf("%s, %v", body, err)
		}
	})
}

// A stream is what a client of one reads, on a connection in memory.
type stream struct {
	t     *testing.T
	conn  net.Conn
	res   *http.Response
	lines *bufio.Reader
}

func (f *fixture) serve(t *testing.T) (dial func() net.Conn) {
	s := &http.Server{WriteTimeout: 5 * time.Second} // shorter than the pauses
	s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.active.Add(1)
		defer f.active.Add(-1)
		f.ServeHTTP(w, r)
	})
	return memtest.Serve(t, s)
}

func open(t *testing.T, conn net.Conn, j *store.Job, header ...string) *stream {
	t.Helper()
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nAccept: text/html;q=0.1, text/event-stream\r\n%s\r\n", urlOf(j), strings.Join(append(header, ""), "\r\n"))
	r := bufio.NewReader(conn)
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &stream{t, conn, res, bufio.NewReader(res.Body)}
}

// block returns what stands before the next empty line, or the error.
func (s *stream) block() (lines []string, err error) {
	for {
		line, err := s.lines.ReadString('\n')
		if err != nil {
			return lines, err
		}
		if line == "\n" {
			return lines, nil
		}
		lines = append(lines, strings.TrimSuffix(line, "\n"))
	}
}

// event checks that the next block is an event.
func (s *stream) event(id int, state string) {
	s.t.Helper()
	lines, err := s.block()
	if err != nil || len(lines) != 3 || lines[0] != fmt.Sprint("id: ", id) || lines[1] != "event: state" || !strings.HasPrefix(lines[2], "data: {") {
		s.t.Fatalf("%q, %v; want event %d, %s", lines, err, id, state)
	}
	if got := parse(s.t, []byte(lines[2][len("data: "):])); got.State != state {
		s.t.Errorf("event %d says %s, want %s", id, got.State, state)
	}
}

func (s *stream) end() {
	s.t.Helper()
	if lines, err := s.block(); err != io.EOF || len(lines) > 0 {
		s.t.Errorf("%q, %v; want the end of the stream", lines, err)
	}
}

func TestEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		dial := f.serve(t)
		j := f.job()
		s := open(t, dial(), j)
		checkHeader(t, "stream", s.res.Header, map[string]string{"Content-Type": "text/event-stream", "Cache-Control": "no-store", "Job-State": "queued", "Vary": "Accept", "X-Accel-Buffering": "no"})
		if s.res.StatusCode != 200 {
			t.Errorf("%d", s.res.StatusCode)
		}
		s.event(1, "queued")
		time.Sleep(10 * time.Second)
		f.Store.Start(j)
		began := time.Now()
		s.event(2, "running")
		if took := time.Since(began); took != 0 {
			t.Errorf("the event came after %v", took)
		}
		// A comment every 15 s keeps the connection, for as long as it takes.
		for i := range 20 {
			lines, err := s.block()
			if err != nil || len(lines) != 1 || !strings.HasPrefix(lines[0], ":") {
				t.Fatalf("%q, %v; want a comment", lines, err)
			}
			if took, want := time.Since(began), time.Duration(i+1)*15*time.Second-10*time.Second; took != want {
				t.Fatalf("comment %d after %v, want %v", i+1, took, want)
			}
		}
		f.Store.End(j, f.done(t, "GET", func(w http.ResponseWriter, r *http.Request) {}))
		s.event(3, "done")
		s.end()
	})
}

// What ends faster than it is read may pass over a state, and never shows an
// earlier one after a later.
func TestEventsPassOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		dial := f.serve(t)
		for _, name := range []string{"done", "failed", "late", "canceled", "dropped"} {
			s := open(t, dial(), f.in(t, name))
			s.event(3, stateOf(name))
			s.end()
		}
		j := f.job()
		s := open(t, dial(), j)
		s.event(1, "queued")
		if v := f.Store.Cancel(j); v.State != store.Canceled {
			t.Fatal(v.State)
		}
		s.event(3, "canceled")
		s.end()
	})
}

func TestLastEventID(t *testing.T) {
	for _, test := range []struct {
		state, last string
		want        []int // events before the job's end
	}{
		{"queued", "1", nil},
		{"queued", "", []int{1}},
		{"running", "1", []int{2}},
		{"running", "2", nil},
		{"running", "0", []int{2}},
		{"running", "x", []int{2}},
		{"running", "-1", []int{2}},
		{"running", "4", []int{2}},
		{"running", "99999999999999999999", []int{2}},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture()
			j := f.in(t, test.state)
			s := open(t, f.serve(t)(), j, "Last-Event-ID: "+test.last) // the header comes at once all the same
			for _, id := range test.want {
				s.event(id, test.state)
			}
			time.Sleep(time.Second)
			f.Store.End(j, store.Outcome{State: store.Failed, Status: 500, Detail: "x"})
			s.event(3, "failed")
			s.end()
		})
	}
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		dial := f.serve(t)
		for _, last := range []string{"", "1", "2", "x"} {
			s := open(t, dial(), f.in(t, "done"), "Last-Event-ID: "+last)
			s.event(3, "done")
			s.end()
		}
		for _, name := range []string{"done", "failed", "late", "canceled", "dropped"} {
			s := open(t, dial(), f.in(t, name), "Last-Event-ID: 3")
			if s.res.StatusCode != 204 || s.res.Header.Get("Job-State") != stateOf(name) {
				t.Errorf("%s: %d %v; want 204, which stops a client from coming back", name, s.res.StatusCode, s.res.Header)
			}
		}
	})
}

// A stream ends when its client leaves and when nobody is to wait any more.
func TestEventsEnd(t *testing.T) {
	for _, name := range []string{"leaves", "stop"} {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture()
			j := f.in(t, "running")
			ended := make(chan time.Time, 1)
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			began := time.Now()
			go func() {
				f.doContext(ctx, "GET", urlOf(j), "Accept", "text/event-stream")
				ended <- time.Now()
			}()
			time.Sleep(20 * time.Second)
			select {
			case <-ended:
				t.Error("ended by itself")
			default:
			}
			if name == "leaves" {
				leave()
			} else {
				close(f.stop)
			}
			if after := (<-ended).Sub(began); after != 20*time.Second {
				t.Errorf("%s: the stream ended after %v", name, after)
			}
		})
	}
	// A client whose connection breaks off holds nothing until the next event.
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		j := f.in(t, "running")
		s := open(t, f.serve(t)(), j)
		s.event(2, "running")
		if n := f.active.Load(); n != 1 {
			t.Errorf("%d streams, want 1", n)
		}
		s.conn.Close()
		synctest.Wait()
		if n := f.active.Load(); n != 0 {
			t.Errorf("%d streams are left", n)
		}
	})
}

// Of many streams of one job each gets every event, in order.
func TestManyStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		j := f.job()
		var got [50][]string
		var wg sync.WaitGroup
		for i := range got {
			wg.Go(func() {
				rec := f.do("GET", urlOf(j), "Accept", "text/event-stream")
				for line := range strings.SplitSeq(rec.Body.String(), "\n") {
					if data, ok := strings.CutPrefix(line, "data: "); ok {
						got[i] = append(got[i], parse(t, []byte(data)).State)
					}
				}
			})
		}
		synctest.Wait()
		f.Store.Start(j)
		synctest.Wait()
		f.Store.End(j, store.Outcome{State: store.Dropped, Status: 410})
		wg.Wait()
		for i := range got {
			if !slices.Equal(got[i], []string{"queued", "running", "dropped"}) {
				t.Errorf("stream %d: %v", i, got[i])
			}
		}
	})
}

func TestResourcePathsAreIndependent(t *testing.T) {
	a, b := newFixture(), newFixture()
	b.Path = "/jobs/b/"
	j := b.in(t, "done")
	if rec := a.do("GET", "/jobs/b/"+j.ID.String()); rec.Code != 404 {
		t.Errorf("%d", rec.Code)
	}
	if rec := b.do("GET", "/jobs/b/"+j.ID.String()); rec.Code != 200 {
		t.Errorf("%d", rec.Code)
	}
}

// What a client has when it knows all that there is: the response, or else how the
// job has ended.
func TestRead(t *testing.T) {
	for _, test := range []struct {
		state, method, below string
		header               []string
		read                 bool
	}{
		{"queued", "GET", "", nil, false},
		{"running", "GET", "/response", nil, false},
		{"done", "GET", "", nil, false}, // who polls comes for the response next
		{"done", "GET", "", []string{"Accept", "text/event-stream"}, false},
		{"done", "DELETE", "", nil, false},
		{"done", "HEAD", "/response", nil, false},
		{"done", "GET", "/response", nil, true},
		{"failed", "HEAD", "", nil, false},
		{"failed", "GET", "", nil, true},
		{"failed", "GET", "/response", nil, true},
		{"failed", "GET", "", []string{"Accept", "text/event-stream"}, true},
		{"dropped", "GET", "", []string{"Prefer", "wait=5"}, true},
		{"canceled", "DELETE", "", nil, true},
	} {
		f := newFixture()
		j := f.in(t, test.state)
		ended := f.Store.Stats().Kept
		if n := f.Store.Stats().Unread; n != ended {
			t.Errorf("%s: %d unread at first, want %d", test.state, n, ended)
		}
		f.do(test.method, urlOf(j)+test.below, test.header...)
		f.do(test.method, urlOf(j)+test.below, test.header...)
		want := ended
		if test.read {
			want = 0
		}
		if n := f.Store.Stats().Unread; n != want {
			t.Errorf("%s %s%s %q of a job that is %s: %d unread, want %d", test.method, urlOf(j), test.below, test.header, test.state, n, want)
		}
	}
	// A client that has waited for its job has the end too, whatever it is.
	for _, state := range []string{"done", "failed", "dropped", "canceled"} {
		f := newFixture()
		f.Result(httptest.NewRecorder(), httptest.NewRequest("POST", "/", nil), f.in(t, state), "")
		if n := f.Store.Stats().Unread; n != 0 {
			t.Errorf("the result of a job that is %s: %d unread, want 0", state, n)
		}
	}
	// A client that has left has read nothing.
	f := newFixture()
	ctx, leave := context.WithCancel(t.Context())
	leave()
	f.doContext(ctx, "GET", urlOf(f.in(t, "done"))+"/response")
	if n := f.Store.Stats().Unread; n != 1 {
		t.Errorf("a client has left: %d unread, want 1", n)
	}
}
