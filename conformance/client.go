package conformance

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// patience is the longest time to wait for anything. It is longer than the longest
// wait that a client may ask for, and sets no requirement on the server's speed.
const patience = 90 * time.Second

// A server is the server under test.
type server struct {
	url    string
	client *http.Client
}

// dial returns the server at url. Its client does not follow redirects, decompress or
// use proxies, which would hide what the server sends.
func dial(t *testing.T, url string) *server {
	transport := &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &server{strings.TrimSuffix(url, "/"), &http.Client{
		Transport:     transport,
		Timeout:       patience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// An answer is a response, with a description of its request.
type answer struct {
	asked  string
	status int
	header http.Header
	body   string
	took   time.Duration
}

// send sends a request. Each header is a line "Name: value".
func (s *server) send(method, path, body string, header ...string) (*http.Response, answer, error) {
	a := answer{asked: method + " " + path}
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
		a.asked += fmt.Sprintf(" %#.80q", body)
	}
	if len(header) > 0 {
		a.asked += fmt.Sprintf(" %.120q", header)
	}
	r, err := http.NewRequest(method, s.url+path, reader)
	if err != nil {
		return nil, a, err
	}
	for _, line := range header {
		name, value, _ := strings.Cut(line, ":")
		r.Header.Add(name, strings.TrimSpace(value))
	}
	began := time.Now()
	w, err := s.client.Do(r)
	if err != nil {
		return nil, a, err
	}
	a.status, a.header, a.took = w.StatusCode, w.Header, time.Since(began)
	return w, a, nil
}

// try is like ask, for goroutines, which cannot end the test. It reports an error to
// t, and returns false if the answer is not usable.
func (s *server) try(t *testing.T, status int, method, path, body string, header ...string) (answer, bool) {
	t.Helper()
	w, a, err := s.send(method, path, body, header...)
	if err == nil {
		var all []byte
		all, err = io.ReadAll(w.Body)
		w.Body.Close()
		a.body = string(all)
	}
	if err != nil {
		t.Errorf("%s: %v, want an answer", a.asked, err)
		return a, false
	}
	if a.status != status {
		t.Errorf("%s: got %d %.300s, want status %d", a.asked, a.status, a.body, status)
		return a, false
	}
	return a, true
}

// ask sends a request and returns the answer. It ends the test unless the answer has
// the status.
func (s *server) ask(t *testing.T, status int, method, path, body string, header ...string) answer {
	t.Helper()
	a, ok := s.try(t, status, method, path, body, header...)
	if !ok {
		t.FailNow()
	}
	return a
}

// refuse sends a request that must be answered with a problem.
func (s *server) refuse(t *testing.T, status int, method, path, body string, header ...string) answer {
	t.Helper()
	a, ok := s.try(t, status, method, path, body, header...)
	if ok {
		a.isProblem(t)
	}
	return a
}

// raw writes text to a new connection and returns the answer. It can send what a
// client library would not send, and shows what one would hide.
func (s *server) raw(t *testing.T, asked, method, text string) (a answer, ok bool) {
	t.Helper()
	a.asked = asked
	at, err := url.Parse(s.url)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.DialTimeout("tcp", at.Host, patience)
	if err != nil {
		t.Errorf("%s: %v, want a connection", asked, err)
		return a, false
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	go io.WriteString(conn, text) // the server may answer before it has read everything
	w, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Errorf("%s: %v, want an answer", asked, err)
		return a, false
	}
	all, err := io.ReadAll(w.Body)
	if err != nil {
		t.Errorf("%s: %v, want a complete answer", asked, err)
		return a, false
	}
	a.status, a.header, a.body = w.StatusCode, w.Header, string(all)
	return a, true
}

// want reports a value that differs from the contract.
func (a answer) want(t *testing.T, what string, got, want any) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %s is %#v, want %#v", a.asked, what, got, want)
	}
}

// has reports a header with another value.
func (a answer) has(t *testing.T, name, value string) {
	t.Helper()
	a.want(t, name, strings.Join(a.header[name], ", "), value)
}

// varies reports a Vary header that does not contain a name.
func (a answer) varies(t *testing.T, by string) {
	t.Helper()
	if !slices.ContainsFunc(list(a.header["Vary"]), func(v string) bool { return strings.EqualFold(v, by) || v == "*" }) {
		t.Errorf("%s: Vary is %q, want %s in it", a.asked, a.header["Vary"], by)
	}
}

// notStored reports an answer that a cache may store.
func (a answer) notStored(t *testing.T) {
	t.Helper()
	if !slices.Contains(list(a.header["Cache-Control"]), "no-store") {
		t.Errorf("%s: Cache-Control is %q, want no-store in it", a.asked, a.header["Cache-Control"])
	}
}

// applied reports a Preference-Applied that does not name exactly the wanted
// preferences.
func (a answer) applied(t *testing.T, want ...string) {
	t.Helper()
	got := list(a.header["Preference-Applied"])
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s: Preference-Applied names %q, want %q", a.asked, got, want)
	}
}

// typed reports another Content-Type. It ignores parameters.
func (a answer) typed(t *testing.T, want string) {
	t.Helper()
	if got, _, _ := mime.ParseMediaType(a.header.Get("Content-Type")); got != want {
		t.Errorf("%s: Content-Type is %q, want %q", a.asked, a.header["Content-Type"], want)
	}
}

// like reports differences from another answer, except in the Date and the given
// headers.
func (a answer) like(t *testing.T, b answer, but ...string) {
	t.Helper()
	a.want(t, "the status", a.status, b.status)
	a.want(t, "the body", a.body, b.body)
	a.headLike(t, b, but...)
}

func (a answer) headLike(t *testing.T, b answer, but ...string) {
	t.Helper()
	got, want := maps.Clone(a.header), maps.Clone(b.header)
	for _, name := range append(but, "Date") {
		delete(got, name)
		delete(want, name)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: the header is %v, want %v as for %s (except %v)", a.asked, got, want, b.asked, but)
	}
}

// list returns the non-empty elements of a list header.
func list(lines []string) []string {
	var elements []string
	for e := range strings.SplitSeq(strings.Join(lines, ","), ",") {
		if e = strings.TrimSpace(e); e != "" {
			elements = append(elements, e)
		}
	}
	return elements
}

// isProblem reports an answer that is not a problem (RFC 9457) of type about:blank
// with a detail.
func (a answer) isProblem(t *testing.T) {
	t.Helper()
	a.typed(t, "application/problem+json")
	if strings.HasPrefix(a.asked, "HEAD ") {
		a.want(t, "the body", a.body, "")
		return
	}
	var p struct {
		Type, Title, Detail string
		Status              int
	}
	if err := json.Unmarshal([]byte(a.body), &p); err != nil {
		t.Errorf("%s: %d %.300q is not a problem: %v", a.asked, a.status, a.body, err)
		return
	}
	if p.Type != "" {
		a.want(t, "the type of the problem", p.Type, "about:blank")
	}
	a.want(t, "the title of the problem", p.Title, http.StatusText(a.status))
	a.want(t, "the status of the problem", p.Status, a.status)
	if p.Detail == "" {
		t.Errorf("%s: the detail of the problem is empty, want it to say what was expected: %s", a.asked, a.body)
	}
}

// detail returns the detail of a problem.
func (a answer) detail() string {
	var p struct{ Detail string }
	json.Unmarshal([]byte(a.body), &p)
	return p.Detail
}

// A job is the job resource.
type job struct {
	ID          string    `json:"id"`
	State       string    `json:"state"`
	Error       string    `json:"error"`
	URL         string    `json:"url"`
	ResponseURL string    `json:"response_url"`
	Status      string    `json:"status"`
	Resource    string    `json:"resourceLocation"`
	AcceptedAt  time.Time `json:"accepted_at"` // RFC 3339, or decoding fails
	StartedAt   time.Time `json:"started_at"`
	EndedAt     time.Time `json:"ended_at"`
}

func (j job) ended() bool { return j.State != "queued" && j.State != "running" }

// step orders the states by time.
func step(state string) int {
	switch state {
	case "queued":
		return 1
	case "running":
		return 2
	case "done", "failed", "canceled", "dropped":
		return 3
	}
	return 0 // an unknown state
}

// statuses are the names of the states for pollers of long-running operations.
var statuses = map[string]string{
	"queued": "NotStarted", "running": "Running",
	"done": "Succeeded", "failed": "Failed", "canceled": "Canceled", "dropped": "Failed",
}

// readJob parses the resource of the job with the id, and reports errors in it.
func readJob(t *testing.T, asked, text, id string) job {
	t.Helper()
	a := answer{asked: asked}
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		t.Errorf("%s: %.300q is not a job resource: %v", asked, text, err)
		return j
	}
	a.want(t, "the id", j.ID, id)
	a.want(t, "the url", j.URL, "/jobs/"+id)
	a.want(t, "the response_url", j.ResponseURL, "/jobs/"+id+"/response")
	if step(j.State) == 0 {
		t.Errorf("%s: the state is %q, want one of queued, running, done, failed, canceled, dropped", asked, j.State)
	}
	if status, ok := statuses[j.State]; ok {
		a.want(t, "the status in the state "+j.State, j.Status, status)
	}
	resource := ""
	if j.State == "done" {
		resource = j.ResponseURL
	}
	a.want(t, "the resourceLocation in the state "+j.State, j.Resource, resource)
	a.want(t, "the presence of accepted_at", !j.AcceptedAt.IsZero(), true)
	a.want(t, "the presence of ended_at in the state "+j.State, !j.EndedAt.IsZero(), j.ended())
	switch j.State {
	case "queued":
		a.want(t, "the presence of started_at in the state queued", !j.StartedAt.IsZero(), false)
	case "running", "done":
		a.want(t, "the presence of started_at in the state "+j.State, !j.StartedAt.IsZero(), true)
	}
	a.want(t, "the presence of an error in the state "+j.State, j.Error != "", j.ended() && j.State != "done")
	times := slices.DeleteFunc([]time.Time{j.AcceptedAt, j.StartedAt, j.EndedAt}, time.Time.IsZero)
	if !slices.IsSortedFunc(times, time.Time.Compare) {
		t.Errorf("%s: accepted_at %v, started_at %v, ended_at %v; want them in this order", asked, j.AcceptedAt, j.StartedAt, j.EndedAt)
	}
	return j
}

// isJob reports an answer that is not the resource of the job with the id, and
// returns the resource.
func (a answer) isJob(t *testing.T, id string) job {
	t.Helper()
	a.typed(t, "application/json")
	j := readJob(t, a.asked, a.body, id)
	a.has(t, "Job-State", j.State)
	if !j.ended() {
		a.retries(t)
	} else {
		a.has(t, "Retry-After", "")
	}
	return j
}

// retries reports an answer that does not say when to ask again.
func (a answer) retries(t *testing.T) {
	t.Helper()
	if n, err := strconv.Atoi(a.header.Get("Retry-After")); err != nil || n < 1 {
		t.Errorf("%s: Retry-After is %q, want whole seconds, at least 1", a.asked, a.header["Retry-After"])
	}
}

// isAccepted reports an answer that does not accept a job, and returns the job's id.
func (a answer) isAccepted(t *testing.T) (id string) {
	t.Helper()
	var body map[string]string
	if err := json.Unmarshal([]byte(a.body), &body); err != nil {
		t.Errorf("%s: %.300q is not the answer for an accepted job: %v", a.asked, a.body, err)
		return ""
	}
	id = body["id"]
	if want := (map[string]string{"id": id, "state": "queued", "url": "/jobs/" + id}); id == "" || !maps.Equal(body, want) {
		t.Errorf("%s: got %s, want only id, state queued and url /jobs/{id}", a.asked, a.body)
	}
	a.has(t, "Location", "/jobs/"+id)
	a.has(t, "Operation-Location", "/jobs/"+id)
	a.has(t, "Content-Location", "/jobs/"+id+"/response")
	if step(a.header.Get("Job-State")) == 0 { // it may have gone on meanwhile, or long ago
		t.Errorf("%s: Job-State is %q, want a state", a.asked, a.header["Job-State"])
	}
	a.typed(t, "application/json")
	a.varies(t, "Prefer")
	return id
}

// sleepFor returns the body of a request for n seconds of work, echo that of its
// answer.
func sleepFor(n int) string { return fmt.Sprintf(`{"sleep_time":%d}`, n) }
func echo(n int) string     { return sleepFor(n) + "\n" }

// forLong is a number of seconds longer than any wait in the tests. Jobs that run for
// so long are canceled.
const forLong = 600

// submit submits a job of n seconds and returns its id. A job of more than a second is
// canceled when the test ends.
func (s *server) submit(t *testing.T, n int, header ...string) (id string) {
	t.Helper()
	id = s.ask(t, 202, "POST", "/bbb", sleepFor(n), header...).isAccepted(t)
	if id == "" {
		t.FailNow()
	}
	if n > 1 {
		s.cancelWith(t, id)
	}
	return id
}

// cancelWith cancels a job when the test ends. A test with such a job must not wait for
// another job: tests run concurrently, and together they could occupy all workers.
func (s *server) cancelWith(t *testing.T, id string) {
	t.Cleanup(func() { s.cancel(id) })
}

// cancel cancels a job and ignores the answer.
func (s *server) cancel(id string) {
	if w, _, err := s.send("DELETE", "/jobs/"+id, ""); err == nil {
		w.Body.Close()
	}
}

// await waits until a job has reached a state or a later one, and returns it.
func (s *server) await(t *testing.T, id, state string) job {
	t.Helper()
	for late := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		a := s.ask(t, 200, "GET", "/jobs/"+id, "")
		j := a.isJob(t, id)
		if step(j.State) >= step(state) {
			return j
		}
		if time.Now().After(late) {
			t.Fatalf("%s: the state is %s after %v, want %s", a.asked, j.State, patience, state)
		}
	}
}

// end waits until a job has ended, and reports another end than state.
func (s *server) end(t *testing.T, id, state string) job {
	t.Helper()
	j := s.await(t, id, state)
	if j.State != state {
		t.Errorf("GET /jobs/%s: the state is %s, want %s", id, j.State, state)
	}
	return j
}

// A stream is the events of a job (Server-Sent Events).
type stream struct {
	answer
	id    string
	body  io.Closer
	lines *bufio.Scanner
	seen  map[string]bool // ids of events
	last  int             // step of the last event
}

// An event is an event of a stream.
type event struct {
	id  string
	job job
}

// follow opens the stream of a job, after the event with the id last unless that is
// empty. It does not end the test, so callers must check ok.
func (s *server) follow(t *testing.T, id, last string) (_ *stream, ok bool) {
	t.Helper()
	header := []string{"Accept: text/event-stream"}
	if last != "" {
		header = append(header, "Last-Event-ID: "+last)
	}
	w, a, err := s.send("GET", "/jobs/"+id, "", header...)
	if err != nil {
		t.Errorf("%s: %v, want an answer", a.asked, err)
		return nil, false
	}
	if a.status != 200 {
		w.Body.Close()
		t.Errorf("%s: got status %d, want 200", a.asked, a.status)
		return nil, false
	}
	a.typed(t, "text/event-stream")
	a.notStored(t)
	if step(a.header.Get("Job-State")) == 0 {
		t.Errorf("%s: Job-State is %q, want a state", a.asked, a.header["Job-State"])
	}
	return &stream{answer: a, id: id, body: w.Body, lines: bufio.NewScanner(w.Body), seen: make(map[string]bool)}, true
}

// next returns the next event, or io.EOF.
func (s *stream) next(t *testing.T) (e event, err error) {
	t.Helper()
	var name, data string
	for s.lines.Scan() {
		line := s.lines.Text()
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case line == "" && data == "": // comments may precede it
			continue
		case line == "":
			if name == "" {
				t.Errorf("%s: the event %s has no name, want an event: line", s.asked, e.id)
			}
			e.job = readJob(t, s.asked+", event "+e.id, data, s.id)
			s.isNew(t, e)
			return e, nil
		case field == "": // a comment
		case field == "id":
			e.id = value
		case field == "event":
			name = value
		case field == "data":
			data += value
		default:
			t.Errorf("%s: the line %q in the stream, want id, event, data or a comment", s.asked, line)
		}
	}
	if err := s.lines.Err(); err != nil {
		return e, err
	}
	return e, io.EOF
}

// isNew reports an event with an id or a state that the stream had before.
func (s *stream) isNew(t *testing.T, e event) {
	t.Helper()
	if e.id == "" || s.seen[e.id] {
		t.Errorf("%s: an event has the id %q after %v, want a new one", s.asked, e.id, s.seen)
	}
	s.seen[e.id] = true
	if n := step(e.job.State); n <= s.last {
		t.Errorf("%s: the event %s says %s, want only newer states", s.asked, e.id, e.job.State)
	} else {
		s.last = n
	}
}

// rest returns the events until the end of the stream. The last must have the state.
func (s *stream) rest(t *testing.T, state string) (events []event, ok bool) {
	t.Helper()
	defer s.body.Close()
	for {
		e, err := s.next(t)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Errorf("%s: %v after %d events, want the end of the stream", s.asked, err, len(events))
			return nil, false
		}
		events = append(events, e)
	}
	if len(events) == 0 || events[len(events)-1].job.State != state {
		t.Errorf("%s: the stream ends after the events %+v, want the last with the state %s", s.asked, events, state)
		return nil, false
	}
	return events, true
}
