package holdfast

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/memtest"
)

func mustJobs(t testing.TB, d *Dispatcher, cfg JobsConfig) *Jobs {
	t.Helper()
	j, err := NewJobs(d, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// inBubble runs a test of Jobs in virtual time.
func inBubble(t *testing.T, cfg Config, jc JobsConfig, test func(t *testing.T, f *jobsFixture)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, newJobsFixture(t, cfg, jc)) })
}

type jobsFixture struct {
	*Jobs
	d     *Dispatcher
	log   *errorLog
	began time.Time
}

func newJobsFixture(t *testing.T, cfg Config, jc JobsConfig) *jobsFixture {
	d, log := buildLogged(t, cfg)
	return &jobsFixture{mustJobs(t, d, jc), d, log, time.Now()}
}

// state returns where a job stands.
func (f *jobsFixture) state(id string) string {
	return ask(bg, f, "GET", "/jobs/"+id, "").Header().Get("Job-State")
}

func (f *jobsFixture) response(id string) *httptest.ResponseRecorder {
	return ask(bg, f, "GET", "/jobs/"+id+"/response", "")
}

// at checks the time since the fixture was made.
func (f *jobsFixture) at(t *testing.T, what string, want time.Duration) {
	t.Helper()
	if got := time.Since(f.began); got != want {
		t.Errorf("%s after %v, want %v", what, got, want)
	}
}

// ask sends a request to a handler. Headers come as "Name: value".
func ask(ctx context.Context, h http.Handler, method, target, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequestWithContext(ctx, method, target, strings.NewReader(body))
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		r.Header.Add(name, value)
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return rec
}

func post(h http.Handler, body string, header ...string) *httptest.ResponseRecorder {
	return ask(bg, h, "POST", "/work", body, header...)
}

func hasHeader(t *testing.T, rec *httptest.ResponseRecorder, name, want string) {
	t.Helper()
	if got := strings.Join(rec.Header()[name], "|"); got != want {
		t.Errorf("%s is %q, want %q", name, got, want)
	}
}

// accepted checks that an answer is 202 in the form of the contract, and
// returns the id.
func accepted(t *testing.T, rec *httptest.ResponseRecorder) string {
	t.Helper()
	var body struct{ ID, State, URL string }
	dec := json.NewDecoder(bytes.NewReader(rec.Body.Bytes()))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&body); rec.Code != 202 || err != nil || len(body.ID) != 26 || body.State != "queued" || body.URL != "/jobs/"+body.ID {
		t.Fatalf("%d %s, want 202 with an id, the state queued and the URL", rec.Code, rec.Body)
	}
	if got := rec.Header(); got.Get("Content-Type") != "application/json" || got.Get("Content-Length") != strconv.Itoa(rec.Body.Len()) {
		t.Errorf("header %v", got)
	}
	return body.ID
}

// expectProblem checks that an answer is a problem.
func expectProblem(t *testing.T, rec *httptest.ResponseRecorder, status int, says, retryAfter string) {
	t.Helper()
	var p struct {
		Status int
		Detail string
	}
	err := json.Unmarshal(rec.Body.Bytes(), &p)
	if rec.Code != status || err != nil || p.Status != status || !strings.Contains(p.Detail, says) || rec.Header().Get("Content-Type") != "application/problem+json" {
		t.Errorf("%d %s, want a problem %d that says %q", rec.Code, rec.Body, status, says)
	}
	if got := rec.Header().Get("Retry-After"); got != retryAfter {
		t.Errorf("%d: Retry-After %q, want %q", rec.Code, got, retryAfter)
	}
}

// expectGone checks that an answer says that a job has failed: for good, with the status
// that a request which had waited for it would have got.
func expectGone(t *testing.T, rec *httptest.ResponseRecorder, cause int, says string) {
	t.Helper()
	expectProblem(t, rec, 410, says, "")
	if want := fmt.Sprintf(`"cause_status":%d`, cause); !strings.Contains(rec.Body.String(), want) {
		t.Errorf("%s, want %s", rec.Body, want)
	}
}

// sleeps answers with its body after the time that the body says, or when its
// context ends.
var sleeps = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	d, err := time.ParseDuration(string(body))
	if err != nil {
		panic(err)
	}
	select {
	case <-time.After(d):
		fmt.Fprintf(w, "slept %s", body)
	case <-r.Context().Done():
	}
})

// serve runs an HTTP server in a bubble, on connections in memory.
func serve(t *testing.T, h http.Handler) (dial func() net.Conn) {
	return memtest.Serve(t, &http.Server{Handler: h})
}
