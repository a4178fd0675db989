// Package conformance tests whether a server conforms to Holdfast's HTTP contract.
// Unlike testing/slogtest it tests a running server by its URL, so it works for
// servers in any language and with any storage.
package conformance

import (
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Run tests whether the server at url, such as "http://127.0.0.1:8099", conforms to
// the HTTP contract. Each clause is a subtest. When Run returns, all subtests have
// ended, and their remaining jobs are canceled.
//
// The server must have the routes of the demo: /aaa, /bbb, /jobs/, /, /healthz and
// /readyz. It must run at least 4 jobs at once and queue at least 20, make requests
// wait when its queue is full, set no timeout for jobs, refuse bodies of more than
// 1 MiB, and keep jobs for some minutes after they have ended. Run has no
// requirements on speed. Nothing else should use the server during the test.
func Run(t *testing.T, url string) {
	s := dial(t, url)
	// Not with t.Parallel, which limits the subtests to the number of processors
	// although they mostly wait, and lets them end after the ones below.
	var wg sync.WaitGroup
	for _, clause := range clauses {
		wg.Go(func() {
			t.Run(clause.name, func(t *testing.T) { clause.test(s, t) })
		})
	}
	wg.Wait()
	// These occupy all workers, so they run one at a time.
	t.Run("cancel a queued job", s.testCancelQueued)
	t.Run("full queue", s.testFull)
	t.Run("many clients", s.testMany)
}

// clauses are the subtests that can run at the same time.
var clauses = []struct {
	name string
	test func(*server, *testing.T)
}{
	{"guide and health", (*server).testGuide},
	{"aaa answers when done", (*server).testSync},
	{"bbb answers at once", (*server).testAsync},
	{"any Content-Type is accepted", (*server).testContentType},
	{"HTTP 1.0", (*server).testOldClient},
	{"Prefer on aaa", (*server).testPreferSync},
	{"Prefer on bbb", (*server).testPreferAsync},
	{"Prefer as a list", (*server).testPreferList},
	{"Prefer wait has a limit", (*server).testPreferLimit},
	{"job resource", (*server).testJob},
	{"job resource as a long poll", (*server).testLongPoll},
	{"events of a job", (*server).testEvents},
	{"events resume", (*server).testEventsResume},
	{"response of a job", (*server).testResponse},
	{"cancel a running job", (*server).testCancelRunning},
	{"concurrent cancels", (*server).testCancelMany},
	{"cancel a done job", (*server).testCancelDone},
	{"unknown jobs", (*server).testUnknown},
	{"methods of a job", (*server).testJobMethods},
	{"Idempotency-Key", (*server).testKey},
	{"Idempotency-Key of another request", (*server).testKeyOtherRequest},
	{"Idempotency-Key of another client", (*server).testKeyOtherClient},
	{"invalid Idempotency-Key", (*server).testKeyBad},
	{"bad methods and paths", (*server).testBadRoutes},
	{"bad bodies", (*server).testBadBodies},
	{"large bodies", (*server).testLargeBodies},
	{"Delay and Run-At", (*server).testDelay},
	{"bad Delay and Run-At", (*server).testDelayBad},
	{"cancel a delayed job", (*server).testDelayCancel},
}

// testDelay checks that a job does not run before the time that its client has named.
func (s *server) testDelay(t *testing.T) {
	for i := range 2 {
		began, header := time.Now(), "Delay: 2"
		if i > 0 {
			header = "Run-At: " + began.Add(3*time.Second).UTC().Format(http.TimeFormat) // in whole seconds
		}
		id := s.ask(t, 202, "POST", "/bbb", sleepFor(0), header).isAccepted(t)
		j := s.ask(t, 200, "GET", "/jobs/"+id, "")
		j.want(t, "the state", j.header.Get("Job-State"), "queued")
		if !strings.Contains(j.body, `"next_attempt_at":"`) || strings.Contains(j.body, "started_at") {
			t.Errorf("%s: got %s, want next_attempt_at and no started_at", j.asked, j.body)
		}
		a := s.ask(t, 200, "GET", "/jobs/"+id+"/response", "", "Prefer: wait=30")
		a.want(t, "the body", a.body, echo(0))
		if took := time.Since(began); took < time.Second {
			t.Errorf("with %s the job was done after %v, which is too early", header, took)
		}
	}
	s.ask(t, 200, "POST", "/bbb", sleepFor(0), "Run-At: Sun, 06 Nov 1994 08:49:37 GMT", "Prefer: wait=30")
}

func (s *server) testDelayBad(t *testing.T) {
	for _, header := range []string{"Delay: -1", "Delay: 1.5", "Delay: soon", "Delay: 99999999999", "Run-At: tomorrow", "Run-At: 2030-01-01T00:00:00Z"} {
		s.refuse(t, 400, "POST", "/bbb", sleepFor(0), header)
	}
	s.refuse(t, 400, "POST", "/bbb", sleepFor(0), "Delay: 1", "Run-At: Sun, 06 Nov 1994 08:49:37 GMT")
}

func (s *server) testDelayCancel(t *testing.T) {
	id := s.ask(t, 202, "POST", "/bbb", sleepFor(0), "Delay: 3600").isAccepted(t)
	a := s.ask(t, 200, "DELETE", "/jobs/"+id, "")
	a.want(t, "the state", a.header.Get("Job-State"), "canceled")
}

func (s *server) testGuide(t *testing.T) {
	a := s.ask(t, 200, "GET", "/", "")
	a.typed(t, "text/plain")
	for _, want := range []string{"curl", "/aaa", "/bbb", "/jobs/"} {
		if !strings.Contains(a.body, want) {
			t.Errorf("%s: got %q, want a guide with %s", a.asked, a.body, want)
		}
	}
	s.ask(t, 200, "GET", "/healthz", "")
	s.ask(t, 200, "GET", "/readyz", "")
	s.ask(t, 200, "HEAD", "/readyz", "")
}

func (s *server) testSync(t *testing.T) {
	var first answer
	for i, n := range []int{0, 1, 0} {
		a := s.ask(t, 200, "POST", "/aaa", sleepFor(n))
		a.want(t, "the body", a.body, echo(n))
		a.typed(t, "application/json")
		a.varies(t, "Prefer")
		a.applied(t)
		if want := time.Duration(n) * time.Second; a.took < want {
			t.Errorf("%s: took %v, want at least %v", a.asked, a.took, want)
		}
		if i == 0 {
			first = a
		}
		a.headLike(t, first)
	}
	a := s.ask(t, 200, "POST", "/aaa", " {\n\t\"sleep_time\" : 0 }\r\n")
	a.want(t, "the body", a.body, echo(0))
}

func (s *server) testAsync(t *testing.T) {
	var ids []string
	for i := range 60 {
		header := []string(nil)
		if i%4 == 3 {
			header = []string{"Prefer: wait=0"} // the body says queued even if the job has ended
		}
		a := s.ask(t, 202, "POST", "/bbb", sleepFor(0), header...)
		id := a.isAccepted(t)
		if len(ids) > 0 && len(id) != len(ids[0]) { // ab counts an answer of another length as a failure
			t.Errorf("%s: the id %s has another length than %s, want equal lengths", a.asked, id, ids[0])
		}
		if len(id) < 22 {
			t.Errorf("%s: the id %s is short, want 128 bits, which take 22 characters", a.asked, id)
		}
		if slices.Contains(ids, id) {
			t.Errorf("%s: the id %s was used before, want unique ids", a.asked, id)
		}
		ids = append(ids, id)
	}
	// Ids with a clock or a counter would have a common beginning or end.
	begins, ends := make(map[string]bool), make(map[string]bool)
	for _, id := range ids {
		begins[id[:min(8, len(id))]], ends[id[max(0, len(id)-8):]] = true, true
	}
	if len(begins) < len(ids) || len(ends) < len(ids) {
		t.Errorf("POST /bbb: the ids %q begin or end alike, want random ones", ids[:3])
	}
	for _, n := range []int{1, 86400} { // the greatest is allowed
		a := s.ask(t, 202, "POST", "/bbb", sleepFor(n))
		id := a.isAccepted(t)
		s.cancel(id)
		a.want(t, "the length of the id", len(id), len(ids[0]))
	}
}

func (s *server) testContentType(t *testing.T) {
	for _, kind := range []string{"", "application/json", "application/x-www-form-urlencoded", "text/plain; charset=latin1", "multipart/form-data; boundary=x", "image/png", "nonsense"} {
		s.ask(t, 200, "POST", "/aaa", sleepFor(0), "Content-Type: "+kind)
		s.ask(t, 202, "POST", "/bbb", sleepFor(0), "Content-Type: "+kind)
	}
	s.ask(t, 200, "POST", "/aaa", sleepFor(0)) // none at all
	s.ask(t, 202, "POST", "/bbb", sleepFor(0))
}

// ab speaks HTTP/1.0: an answer ends at its Content-Length or with the connection.
func (s *server) testOldClient(t *testing.T) {
	for path, status := range map[string]int{"/aaa": 200, "/bbb": 202} {
		body := sleepFor(0)
		a, ok := s.raw(t, "POST "+path+" in HTTP/1.0", "POST", fmt.Sprintf("POST %s HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body))
		if !ok {
			continue
		}
		a.want(t, "the status", a.status, status)
		a.has(t, "Content-Length", strconv.Itoa(len(a.body)))
		if status == 202 {
			a.isAccepted(t)
		} else {
			a.want(t, "the body", a.body, echo(0))
		}
	}
}

func (s *server) testPreferSync(t *testing.T) {
	a := s.ask(t, 202, "POST", "/aaa", sleepFor(0), "Prefer: respond-async")
	id := a.isAccepted(t)
	a.applied(t, "respond-async")
	s.end(t, id, "done")
	a = s.ask(t, 200, "GET", "/jobs/"+id+"/response", "")
	a.want(t, "the body", a.body, echo(0))

	a = s.ask(t, 202, "POST", "/aaa", sleepFor(forLong), "Prefer: respond-async, wait=1")
	s.cancel(a.isAccepted(t))
	a.applied(t, "respond-async", "wait=1")
	if a.took < time.Second {
		t.Errorf("%s: took %v, want at least 1s", a.asked, a.took)
	}

	a = s.ask(t, 200, "POST", "/aaa", sleepFor(0), "Prefer: respond-async, wait=50")
	a.want(t, "the body", a.body, echo(0))
	a.has(t, "Job-State", "done")
	a.applied(t, "wait=50") // respond-async was not applied
	a.varies(t, "Prefer")

	// Without respond-async there is no job, and wait has no effect.
	a = s.ask(t, 200, "POST", "/aaa", sleepFor(1), "Prefer: wait=0")
	a.want(t, "the body", a.body, echo(1))
	a.applied(t)
	if a.took < time.Second {
		t.Errorf("%s: took %v, want at least 1s", a.asked, a.took)
	}
}

func (s *server) testPreferAsync(t *testing.T) {
	aaa := s.ask(t, 200, "POST", "/aaa", sleepFor(0))
	s.ask(t, 200, "POST", "/bbb", sleepFor(0), "Prefer: wait=50").like(t, aaa, "Job-State", "Preference-Applied")

	a := s.ask(t, 200, "POST", "/bbb", sleepFor(1), "Prefer: wait=50")
	a.want(t, "the body", a.body, echo(1))
	a.has(t, "Job-State", "done")
	a.applied(t, "wait=50")
	if a.took < time.Second {
		t.Errorf("%s: took %v, want at least 1s", a.asked, a.took)
	}

	a = s.ask(t, 202, "POST", "/bbb", sleepFor(forLong), "Prefer: wait=1")
	s.cancel(a.isAccepted(t))
	a.applied(t, "wait=1")
	if a.took < time.Second {
		t.Errorf("%s: took %v, want at least 1s", a.asked, a.took)
	}

	a = s.ask(t, 202, "POST", "/bbb", sleepFor(forLong), "Prefer: wait=0")
	s.cancel(a.isAccepted(t))
	a.applied(t, "wait=0")

	a = s.ask(t, 202, "POST", "/bbb", sleepFor(0))
	a.isAccepted(t)
	a.applied(t)
}

var preferences = []struct {
	path    string
	n       int
	status  int
	applied []string
	header  []string
}{
	{"/aaa", 0, 202, []string{"respond-async"}, []string{"Prefer: foo=bar", "Prefer: Respond-ASYNC"}},
	{"/aaa", 0, 202, []string{"respond-async"}, []string{"prefer: , handling=lenient;x=\"respond-async, wait=9\" ,respond-async; x=y"}},
	{"/aaa", 0, 202, []string{"respond-async", "wait=0"}, []string{"Prefer: respond-async", "Prefer: wait=0"}},
	{"/bbb", 0, 200, []string{"wait=50"}, []string{"Prefer: foo", "Prefer: WAIT=50"}},
	{"/bbb", 0, 200, []string{"wait=50"}, []string{"Prefer: wait=50, wait=0"}},
	{"/bbb", 0, 200, []string{"wait=50"}, []string{"Prefer: Wait=50", "Prefer: wait=0"}},
	{"/bbb", forLong, 202, []string{"wait=0"}, []string{"Prefer: wait=0", "Prefer: wait=50"}},
	{"/aaa", 0, 200, nil, []string{"Prefer: foo", "Prefer: return=minimal, respond-asynchronously"}},
	{"/aaa", 0, 200, nil, []string{"Prefer: foo=\"respond-async\"", "Prefer: x=\"a, respond-async\""}},
	{"/aaa", 0, 200, nil, []string{"Prefer: ", "Prefer: ,,;;=", "Prefer: =respond-async"}},
	{"/bbb", 0, 202, nil, []string{"Prefer: foo=bar; wait=50"}},
	{"/bbb", 0, 202, nil, []string{"Prefer: wait"}},
	{"/bbb", 0, 202, nil, []string{"Prefer: wait="}},
	{"/bbb", 0, 202, nil, []string{"Prefer: wait=soon"}},
	{"/bbb", 0, 202, nil, []string{"Prefer: wait=-1"}},
	{"/bbb", 0, 202, nil, []string{"Prefer: wait=1.5"}},
	{"/bbb", 0, 202, nil, []string{"Prefer: wait=0x10"}},
	{"/bbb", 0, 202, nil, []string{"Prefer: \"wait=50"}},
	{"/bbb", 0, 202, nil, []string{"Prefer: \xff\xfe=\xfd"}},
}

// Several lines form one list, names are case-insensitive, the first instance of a
// preference counts, and unknown preferences are ignored.
func (s *server) testPreferList(t *testing.T) {
	for _, test := range preferences {
		a, ok := s.try(t, test.status, "POST", test.path, sleepFor(test.n), test.header...)
		if !ok {
			continue
		}
		a.applied(t, test.applied...)
		a.varies(t, "Prefer")
		if test.status == 200 {
			a.want(t, "the body", a.body, echo(test.n))
			continue
		}
		if id := a.isAccepted(t); test.n > 1 {
			s.cancel(id)
		}
	}
}

func (s *server) testPreferLimit(t *testing.T) {
	for seconds, want := range map[string]string{"49": "49", "50": "50", "51": "50", "60": "50", "3600": "50", "99999999999999999999": "50"} {
		a := s.ask(t, 200, "POST", "/bbb", sleepFor(0), "Prefer: wait="+seconds)
		a.applied(t, "wait="+want)
		id := s.submit(t, 0)
		a = s.ask(t, 200, "GET", "/jobs/"+id, "", "Prefer: wait="+seconds)
		a.applied(t, "wait="+want)
		a.want(t, "the state", a.isJob(t, id).State, "done")
	}
}

func (s *server) testJob(t *testing.T) {
	id := s.submit(t, 1)
	late := time.Now().Add(patience)
	for seen := 0; seen < 3; time.Sleep(50 * time.Millisecond) {
		a := s.ask(t, 200, "GET", "/jobs/"+id, "", "Accept: */*")
		j := a.isJob(t, id)
		a.notStored(t)
		a.varies(t, "Prefer")
		a.varies(t, "Accept") // which can ask for events
		a.applied(t)
		if step(j.State) < seen {
			t.Errorf("%s: the state is back at %s", a.asked, j.State)
		}
		seen = step(j.State)
		if time.Now().After(late) {
			t.Fatalf("%s: the state is %s after %v, want done", a.asked, j.State, patience)
		}
	}
	a := s.ask(t, 200, "GET", "/jobs/"+id, "")
	a.want(t, "the state", a.isJob(t, id).State, "done")
	again := s.ask(t, 200, "GET", "/jobs/"+id, "")
	again.like(t, a)
	head := s.ask(t, 200, "HEAD", "/jobs/"+id, "")
	head.headLike(t, a)
	head.want(t, "the body", head.body, "")
}

func (s *server) testLongPoll(t *testing.T) {
	id := s.submit(t, 1)
	a := s.ask(t, 200, "GET", "/jobs/"+id, "", "Prefer: wait=50")
	a.want(t, "the state", a.isJob(t, id).State, "done")
	a.applied(t, "wait=50")
	a.notStored(t)

	id = s.submit(t, forLong)
	a = s.ask(t, 200, "GET", "/jobs/"+id, "", "Prefer: wait=1, respond-async")
	a.want(t, "having ended", a.isJob(t, id).ended(), false)
	a.applied(t, "wait=1")
	a.notStored(t)
	if a.took < time.Second {
		t.Errorf("%s: took %v, want at least 1s", a.asked, a.took)
	}

	// A cancel ends the job, and so the wait.
	var wg sync.WaitGroup
	wg.Go(func() {
		a, ok := s.try(t, 200, "GET", "/jobs/"+id, "", "Prefer: wait=50")
		if !ok {
			return
		}
		a.want(t, "the state", a.isJob(t, id).State, "canceled")
		if a.took > 40*time.Second {
			t.Errorf("%s: took %v, want it to end with the job", a.asked, a.took)
		}
	})
	time.Sleep(100 * time.Millisecond) // it very likely waits by now; if not, the answer is the same
	s.cancel(id)
	wg.Wait()
}

func (s *server) testEvents(t *testing.T) {
	id := s.submit(t, 1)
	f, ok := s.follow(t, id, "")
	if !ok {
		return
	}
	events, ok := f.rest(t, "done")
	if !ok {
		return
	}
	a := s.ask(t, 200, "GET", "/jobs/"+id, "")
	last := events[len(events)-1]
	if j := a.isJob(t, id); last.job != j {
		t.Errorf("%s: the last event is %+v, want the job resource %+v", f.asked, last.job, j)
	}

	// A client that connects after the end gets the end.
	f, ok = s.follow(t, id, "")
	if !ok {
		return
	}
	if again, ok := f.rest(t, "done"); ok {
		f.want(t, "the last event", again[len(again)-1], last)
		f.has(t, "Job-State", "done")
	}

	// A client that has seen the end is told not to reconnect.
	a = s.ask(t, 204, "GET", "/jobs/"+id, "", "Accept: text/event-stream", "Last-Event-ID: "+last.id)
	a.want(t, "the body", a.body, "")
	a.has(t, "Job-State", "done")

	// An unknown event id is ignored.
	for _, unknown := range []string{"nonsense", "-1", "99999999999999999999"} {
		if f, ok = s.follow(t, id, unknown); ok {
			f.rest(t, "done")
		}
	}
}

func (s *server) testEventsResume(t *testing.T) {
	id := s.submit(t, forLong)
	f, ok := s.follow(t, id, "")
	if !ok {
		return
	}
	var seen []string
	for {
		e, err := f.next(t)
		if err != nil {
			t.Fatalf("%s: %v, want an event with the state running", f.asked, err)
		}
		seen = append(seen, e.id)
		if e.job.State == "running" {
			break
		}
	}
	f.body.Close()
	f, ok = s.follow(t, id, seen[len(seen)-1])
	if !ok {
		return
	}
	s.cancelRunning(t, id)
	events, ok := f.rest(t, "canceled")
	if !ok {
		return
	}
	if len(events) != 1 || slices.Contains(seen, events[0].id) {
		t.Errorf("%s: got %+v, want only the end, with an id not in %q", f.asked, events, seen)
	}

	// A client that reconnects later gets the events that it missed.
	if f, ok = s.follow(t, id, seen[len(seen)-1]); ok {
		f.rest(t, "canceled")
	}
	s.ask(t, 204, "GET", "/jobs/"+id, "", "Accept: text/event-stream", "Last-Event-ID: "+events[0].id).has(t, "Job-State", "canceled")
}

func (s *server) testResponse(t *testing.T) {
	id := s.submit(t, 1)
	path := "/jobs/" + id + "/response"
	aaa := s.ask(t, 200, "POST", "/aaa", sleepFor(1))
	s.end(t, id, "done")
	a := s.ask(t, 200, "GET", path, "")
	a.like(t, aaa, "Job-State")
	a.has(t, "Job-State", "done")
	for range 3 {
		s.ask(t, 200, "GET", path, "").like(t, a)
	}
	head := s.ask(t, 200, "HEAD", path, "")
	head.headLike(t, a)
	head.want(t, "the body", head.body, "")

	id = s.submit(t, forLong)
	path = "/jobs/" + id + "/response"
	a = s.ask(t, 202, "GET", path, "")
	a.want(t, "having ended", a.isJob(t, id).ended(), false)
	a.retries(t)
	head = s.ask(t, 202, "HEAD", path, "")
	head.want(t, "the body", head.body, "")
	if step(head.header.Get("Job-State")) == 0 {
		t.Errorf("%s: Job-State is %q, want a state", head.asked, head.header["Job-State"])
	}
}

// isCanceled checks every answer about a canceled job.
func (s *server) isCanceled(t *testing.T, id string) {
	t.Helper()
	a := s.ask(t, 200, "GET", "/jobs/"+id, "")
	a.want(t, "the state", a.isJob(t, id).State, "canceled")
	a.notStored(t)
	a = s.refuse(t, 410, "GET", "/jobs/"+id+"/response", "")
	a.has(t, "Job-State", "canceled")
	a = s.refuse(t, 410, "HEAD", "/jobs/"+id+"/response", "")
	a.has(t, "Job-State", "canceled")
	for range 2 {
		a = s.ask(t, 200, "DELETE", "/jobs/"+id, "")
		a.want(t, "the state", a.isJob(t, id).State, "canceled")
	}
}

// cancelRunning cancels a running job. The answer is 202. If the job has ended before
// the server answers, its state may be canceled, and the status may be 200.
func (s *server) cancelRunning(t *testing.T, id string) {
	t.Helper()
	w, a, err := s.send("DELETE", "/jobs/"+id, "")
	if err != nil {
		t.Errorf("%s: %v, want an answer", a.asked, err)
		return
	}
	all, _ := io.ReadAll(w.Body)
	w.Body.Close()
	a.body = string(all)
	j := a.isJob(t, id)
	switch {
	case a.status == 202 && (j.State == "running" || j.State == "canceled"):
	case a.status == 200 && j.State == "canceled":
	default:
		t.Errorf("%s: got %d with the state %s, want 202 with running, or with canceled if it has ended already", a.asked, a.status, j.State)
	}
}

func (s *server) testCancelRunning(t *testing.T) {
	id := s.submit(t, forLong)
	s.await(t, id, "running")
	s.cancelRunning(t, id)
	j := s.end(t, id, "canceled")
	if j.StartedAt.IsZero() {
		t.Errorf("GET /jobs/%s: no started_at, but it was running", id)
	}
	s.isCanceled(t, id)
}

func (s *server) testCancelMany(t *testing.T) {
	id := s.submit(t, forLong)
	s.await(t, id, "running")
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { s.cancelRunning(t, id) })
	}
	wg.Wait()
	s.end(t, id, "canceled")
	s.isCanceled(t, id)
}

func (s *server) testCancelDone(t *testing.T) {
	id := s.submit(t, 0)
	s.end(t, id, "done")
	before := s.ask(t, 200, "GET", "/jobs/"+id, "")
	for range 2 {
		a := s.refuse(t, 409, "DELETE", "/jobs/"+id, "")
		a.has(t, "Job-State", "done")
	}
	s.ask(t, 200, "GET", "/jobs/"+id, "").like(t, before)
	a := s.ask(t, 200, "GET", "/jobs/"+id+"/response", "")
	a.want(t, "the body", a.body, echo(0))
}

// queued occupies the workers with long jobs until one stays queued, and returns its
// id and its Idempotency-Key header. It does not know the number of workers, so it
// may have to give up.
func (s *server) queued(t *testing.T) (id, key string, ok bool) {
	const most, batch = 400, 10 // a batch fits into the queue, so no request waits for a place
	for n := 0; n < most; n += batch {
		for range batch {
			key = "Idempotency-Key: " + newKey()
			id = s.submit(t, forLong, key)
		}
		if s.staysQueued(t, id) {
			return id, key, true
		}
	}
	t.Logf("%d jobs run at once; canceling a queued job is not tested", most)
	return "", "", false
}

// staysQueued reports whether a job is queued for half a second.
func (s *server) staysQueued(t *testing.T, id string) bool {
	for began := time.Now(); time.Since(began) < time.Second/2; time.Sleep(20 * time.Millisecond) {
		if a := s.ask(t, 200, "GET", "/jobs/"+id, ""); a.isJob(t, id).State != "queued" {
			return false
		}
	}
	return true
}

func (s *server) testCancelQueued(t *testing.T) {
	id, key, ok := s.queued(t)
	if !ok {
		return
	}
	a := s.ask(t, 202, "GET", "/jobs/"+id+"/response", "")
	a.want(t, "the state", a.isJob(t, id).State, "queued")
	a.retries(t)
	f, ok := s.follow(t, id, "")
	if !ok {
		return
	}
	if e, err := f.next(t); err != nil || e.job.State != "queued" {
		t.Errorf("%s: the first event says %q, %v; want queued", f.asked, e.job.State, err)
	}
	w, a, err := s.send("DELETE", "/jobs/"+id, "")
	if err != nil {
		t.Fatalf("%s: %v, want an answer", a.asked, err)
	}
	w.Body.Close()
	f.rest(t, "canceled")
	j := s.end(t, id, "canceled")
	if j.StartedAt.IsZero() {
		a.want(t, "the status of a cancel while queued", a.status, 200)
		// A job that never ran frees its key.
		if again := s.submit(t, forLong, key); again == id {
			t.Errorf("POST /bbb with the key of a job that was canceled while queued: the same id %s, want another", id)
		}
	} else { // it started before the cancel
		a.want(t, "the status of a cancel while running", a.status, 202)
		t.Logf("%s: the job has started; canceling a queued job is not tested", a.asked)
	}
	s.isCanceled(t, id)
}

// A post is a request with a long job that may have to wait for a place.
type post struct {
	answer
	ok   bool
	done chan struct{} // closed when there is an answer
}

func (s *server) post(t *testing.T, header ...string) *post {
	p := &post{done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.answer, p.ok = s.try(t, 202, "POST", "/bbb", sleepFor(forLong), header...)
	}()
	return p
}

// accepted waits for the answer, and cancels the job when the test ends.
func (s *server) accepted(t *testing.T, p *post) (id string) {
	t.Helper()
	if <-p.done; !p.ok {
		return ""
	}
	id = p.isAccepted(t)
	s.cancelWith(t, id)
	return id
}

// Requests wait while the queue is full. Prefer: wait does not end that, since there is
// no job yet to answer with.
func (s *server) testFull(t *testing.T) {
	const most = 500
	var ids []string
	var first *post
	for first == nil && len(ids) < most {
		p := s.post(t)
		select {
		case <-p.done:
			if id := s.accepted(t, p); id != "" {
				ids = append(ids, id)
				continue
			}
			return
		case <-time.After(time.Second / 2):
			first = p
		}
	}
	if first == nil {
		t.Logf("%d jobs have a place; a full queue is not tested", most)
		return
	}
	second := s.post(t, "Prefer: wait=1")
	select {
	case <-first.done:
		t.Logf("%s: slow, but it had a place; a full queue is not tested", first.asked)
	case <-second.done:
		t.Errorf("%s: got %d while an earlier request waits for a place, want it to wait too", second.asked, second.status)
	case <-time.After(1500 * time.Millisecond):
	}
	for _, id := range ids[:2] { // these are running
		s.cancelRunning(t, id)
	}
	s.accepted(t, first)
	s.accepted(t, second)
}

// unknown returns an id of the same form, but of no job.
func unknown(id string) string {
	b := []byte(id)
	for i := 1; i < len(b)-1; i++ {
		if b[i] != b[0] && b[i] != '-' {
			b[0], b[i] = b[i], b[0]
			break
		}
	}
	return string(b)
}

// All answers about unknown jobs are the same, so that they do not reveal a reason.
func (s *server) testUnknown(t *testing.T) {
	id := s.submit(t, 0)
	first := s.refuse(t, 404, "GET", "/jobs/"+unknown(id), "")
	first.has(t, "Job-State", "")
	for _, path := range []string{
		"/jobs/", "/jobs/x", "/jobs/" + id[1:], "/jobs/" + id + id[:1], "/jobs/" + id + "%20", "/jobs/%00", "/jobs/%ff", "/jobs/*",
		"/jobs/" + strings.Repeat("A", 1000), "/jobs/" + strings.Repeat("A", len(id)), "/jobs/response",
		"/jobs/" + id + "/", "/jobs/" + unknown(id) + "/",
		"/jobs/" + unknown(id) + "/response", "/jobs/x/response", "/jobs/" + id + "/response/", "/jobs/" + unknown(id) + "/response/",
		"/jobs/" + id + "/request", "/jobs/" + id + "/response/x",
	} {
		a := s.refuse(t, 404, "GET", path, "")
		a.like(t, first)
		a = s.refuse(t, 404, "GET", path, "", "Accept: text/event-stream", "Last-Event-ID: 3", "Prefer: wait=50")
		a.like(t, first)
		a = s.refuse(t, 404, "HEAD", path, "")
		a.headLike(t, first)
	}
	for _, path := range []string{"/jobs/", "/jobs/x", "/jobs/" + unknown(id), "/jobs/" + id + "/"} {
		s.refuse(t, 404, "DELETE", path, "").like(t, first)
	}
	// A server may redirect to the canonical path first.
	for _, path := range []string{"/jobs", "/jobs//response", "/jobs//" + unknown(id)} {
		w, a, err := s.send("GET", path, "")
		if err != nil {
			t.Errorf("%s: %v, want an answer", a.asked, err)
			continue
		}
		w.Body.Close()
		if a.status >= 300 && a.status < 400 {
			if at, err := w.Location(); err == nil {
				path = at.RequestURI()
			}
		}
		s.refuse(t, 404, "GET", path, "")
	}
}

// The answer to a wrong method must not reveal whether the job exists.
func (s *server) testJobMethods(t *testing.T) {
	id := s.submit(t, 0)
	for below, allow := range map[string][]string{"": {"DELETE", "GET", "HEAD"}, "/response": {"GET", "HEAD"}} {
		methods := []string{"POST", "PUT", "PATCH", "OPTIONS", "QUERY", "get"}
		if below != "" {
			methods = append(methods, "DELETE")
		}
		for _, method := range methods {
			a := s.refuse(t, 405, method, "/jobs/"+id+below, "")
			got := list(a.header["Allow"])
			slices.Sort(got)
			if !slices.Equal(got, allow) {
				t.Errorf("%s: Allow is %q, want %q", a.asked, got, allow)
			}
			for _, other := range []string{unknown(id), "x"} {
				b := s.refuse(t, 405, method, "/jobs/"+other+below, "")
				b.like(t, a)
			}
		}
	}
	// A part of a method's name is not that method.
	for _, method := range []string{"ET", "E", "HEA", "LETE"} {
		s.refuse(t, 405, method, "/jobs/"+id, "")
		s.refuse(t, 405, method, "/jobs/"+id+"/response", "")
	}
}

// sameKey sends many requests with the key at once, which must all get the same job,
// and returns its id.
func (s *server) sameKey(t *testing.T, k string) (id string) {
	const repeats = 100
	ids := make(chan string, repeats)
	var wg sync.WaitGroup
	for i := range repeats {
		header := "Idempotency-Key: " + k
		if i%2 == 1 {
			header = `Idempotency-Key: "` + k + `"`
		}
		wg.Go(func() {
			if a, ok := s.try(t, 202, "POST", "/bbb", sleepFor(0), header); ok {
				ids <- a.isAccepted(t)
			}
		})
	}
	wg.Wait()
	close(ids)
	id = <-ids
	others := 0
	for other := range ids {
		if other != id {
			others++
		}
	}
	if id == "" {
		t.FailNow()
	}
	if others > 0 {
		t.Errorf("POST /bbb %d times with the Idempotency-Key %s, half of them in quotes: the id %s, but another one %d times, want the same", repeats, k, id, others)
	}
	return id
}

// newKey returns a new idempotency key.
func newKey() string { return "conformance " + rand.Text() }

func (s *server) testKey(t *testing.T) {
	k := newKey()
	id := s.sameKey(t, k)

	// As long as the job is kept, a repeat gets the same answer.
	s.end(t, id, "done")
	a := s.ask(t, 202, "POST", "/bbb", sleepFor(0), "Idempotency-Key: "+k)
	a.want(t, "the id", a.isAccepted(t), id)
	a = s.ask(t, 200, "POST", "/bbb", sleepFor(0), "Idempotency-Key: "+k, "Prefer: wait=50")
	a.want(t, "the body", a.body, echo(0))
	a.has(t, "Job-State", "done")

	a = s.ask(t, 202, "POST", "/bbb", sleepFor(0), "Idempotency-Key: "+k)
	a.has(t, "Job-State", "done") // the present state, though the body says queued as the first one did

	// A cancel does not free the key of a job that has started.
	k = newKey()
	id = s.submit(t, forLong, "Idempotency-Key: "+k)
	s.await(t, id, "running")
	s.cancel(id)
	s.end(t, id, "canceled")
	a = s.ask(t, 202, "POST", "/bbb", sleepFor(forLong), "Idempotency-Key: "+k)
	again := a.isAccepted(t)
	s.cancel(again)
	a.want(t, "the id", again, id)
	a.has(t, "Job-State", "canceled")

	// Another key gives another job.
	if other := s.submit(t, 0, "Idempotency-Key: "+newKey()); other == id {
		t.Errorf("POST /bbb with another Idempotency-Key: the same id %s, want another", id)
	}

	// Keys work on /aaa when it creates jobs.
	k = newKey()
	id = s.ask(t, 202, "POST", "/aaa", sleepFor(0), "Idempotency-Key: "+k, "Prefer: respond-async").isAccepted(t)
	a = s.ask(t, 202, "POST", "/aaa", sleepFor(0), "Idempotency-Key: "+k, "Prefer: respond-async")
	a.want(t, "the id", a.isAccepted(t), id)
}

func (s *server) testKeyOtherRequest(t *testing.T) {
	k := "Idempotency-Key: " + newKey()
	id := s.submit(t, 0, k)
	for range 2 {
		s.refuse(t, 422, "POST", "/bbb", sleepFor(1), k)
		s.refuse(t, 422, "POST", "/bbb?x=1", sleepFor(0), k)
		s.refuse(t, 422, "POST", "/aaa", sleepFor(0), k, "Prefer: respond-async")
		a := s.ask(t, 202, "POST", "/bbb", sleepFor(0), k)
		a.want(t, "the id", a.isAccepted(t), id)
		s.await(t, id, "done")
	}

	// A refused request does not use up its key.
	k = "Idempotency-Key: " + newKey()
	s.refuse(t, 400, "POST", "/bbb", `{"sleep_time":null}`, k)
	s.submit(t, 0, k)
}

func (s *server) testKeyOtherClient(t *testing.T) {
	k := "Idempotency-Key: " + newKey()
	ids := make(map[string][]string)
	clients := [][]string{
		{k},
		{k, "Authorization: Bearer a"},
		{k, "Authorization: Bearer b"},
		{k, "Cookie: session=a"},
		{k, "Cookie: session=b"},
		{k, "Authorization: Bearer a", "Cookie: session=a"},
	}
	for _, client := range clients {
		id := s.submit(t, 0, client...)
		if other, ok := ids[id]; ok {
			t.Errorf("POST /bbb as %q: got the job %s of %q, want another", client, id, other)
		}
		ids[id] = client
	}
	for id, client := range ids {
		a := s.ask(t, 202, "POST", "/bbb", sleepFor(0), append([]string{"User-Agent: another"}, client...)...)
		a.want(t, "the id", a.isAccepted(t), id)
	}
	// Another request of another client is fine too.
	s.submit(t, 1, k, "Authorization: Bearer c")
}

func (s *server) testKeyBad(t *testing.T) {
	const letters = "abcdefghijklmnopqrstuvwxyz"
	long := (newKey() + strings.Repeat(letters, 10))[:255]
	id := s.submit(t, 0, "Idempotency-Key: "+long)
	a := s.ask(t, 202, "POST", "/bbb", sleepFor(0), `Idempotency-Key: "`+long+`"`)
	a.want(t, "the id", a.isAccepted(t), id)
	for _, path := range []string{"/aaa", "/bbb"} {
		for _, header := range [][]string{
			{"Idempotency-Key: " + long + "z"},
			{`Idempotency-Key: "` + long + `z"`},
			{"Idempotency-Key: " + strings.Repeat("a", 5000)},
			{"Idempotency-Key: "},
			{`Idempotency-Key: ""`},
			{"Idempotency-Key: a", "Idempotency-Key: b"},
			{"Idempotency-Key: a", "Idempotency-Key: a"},
			{"Idempotency-Key: schlüssel"},
			{`Idempotency-Key: "schlüssel"`},
			{"Idempotency-Key: \xff"},
			{"Idempotency-Key: a\tb"},
			{`Idempotency-Key: "a`},
			{`Idempotency-Key: "a"b`},
			{`Idempotency-Key: "a", "b"`},
		} {
			s.refuse(t, 400, "POST", path, sleepFor(0), append(header, "Prefer: respond-async")...)
		}
	}
}

func (s *server) testBadRoutes(t *testing.T) {
	for _, path := range []string{"/aaa", "/bbb"} {
		for _, method := range []string{"GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY", "post", "POS"} {
			a := s.refuse(t, 405, method, path, "")
			a.has(t, "Allow", "POST")
		}
		s.refuse(t, 405, "PUT", path, sleepFor(0)).has(t, "Allow", "POST")
	}
	for _, path := range []string{"/", "/healthz", "/readyz"} {
		a := s.refuse(t, 405, "POST", path, "x")
		if got := list(a.header["Allow"]); !slices.Contains(got, "GET") {
			t.Errorf("%s: Allow is %q, want GET in it", a.asked, got)
		}
	}
	for _, path := range []string{"/nowhere", "/aaa/", "/bbb/x", "/AAA", "/aaab", "/healthz/", "/%00", "/job/x"} {
		for _, method := range []string{"GET", "POST", "DELETE", "HEAD", "QUERY"} {
			s.refuse(t, 404, method, path, "")
		}
	}
}

func (s *server) testBadBodies(t *testing.T) {
	for _, path := range []string{"/aaa", "/bbb"} {
		for _, body := range []string{
			"", " \r\n\t", "\x00", "{", `{"sleep_time"`, `{"sleep_time":`, `{"sleep_time":0`, `{"sleep_time":0,}`, `{,"sleep_time":0}`, `{"sleep_time" 0}`, `{"sleep_time",0}`, `{sleep_time:0}`, `{'sleep_time':0}`, "sleep_time=0", "<sleep_time>0</sleep_time>", "\xff\xfe",
			`{}`, `[]`, `[0]`, `[{"sleep_time":0}]`, `0`, `"sleep_time"`, `null`, `true`,
			`{"sleep":0}`, `{"sleep_time":0,"x":0}`, `{"x":0,"sleep_time":0}`, `{"":0}`, `{"sleep_time ":0}`, "{\"sleep_time\xff\":0}",
			`{"sleep_time":0,"sleep_time":0}`, `{"sleep_time":0,"sleep_time":1}`,
			`{"Sleep_Time":0}`, `{"SLEEP_TIME":0}`, `{"sleepTime":0}`, `{"ſleep_time":0}`, `{"sleep_time":0,"Sleep_time":0}`,
			`{"sleep_time":0}{}`, `{"sleep_time":0}{"sleep_time":0}`, `{"sleep_time":0}x`, `{"sleep_time":0} 0`, `{"sleep_time":0}}`, "{\"sleep_time\":0}\x00",
			`{"sleep_time":null}`, `{"sleep_time":true}`, `{"sleep_time":[0]}`, `{"sleep_time":{}}`, `{"sleep_time":[]}`,
			`{"sleep_time":0.5}`, `{"sleep_time":1.0}`, `{"sleep_time":1e0}`, `{"sleep_time":1e400}`, `{"sleep_time":01}`, `{"sleep_time":+1}`, `{"sleep_time":0x1}`, `{"sleep_time":NaN}`, `{"sleep_time":1 0}`, `{"sleep_time":.5}`,
			`{"sleep_time":"0"}`, `{"sleep_time":""}`,
			`{"sleep_time":-1}`, `{"sleep_time":-9223372036854775808}`, `{"sleep_time":86401}`, `{"sleep_time":9223372036854775807}`, `{"sleep_time":9223372036854775808}`, `{"sleep_time":18446744073709551616}`,
		} {
			a := s.refuse(t, 400, "POST", path, body)
			if !strings.Contains(a.detail(), "sleep_time") {
				t.Errorf("%s: the detail is %q, want it to say what was expected, with sleep_time", a.asked, a.detail())
			}
			a.has(t, "Location", "")
			a.has(t, "Job-State", "")
			// The body is checked before a job is created.
			s.refuse(t, 400, "POST", path, body, "Prefer: respond-async, wait=50").like(t, a)
		}
	}
}

func (s *server) testLargeBodies(t *testing.T) {
	const most = 1 << 20
	body := sleepFor(0) + strings.Repeat(" ", most+1-len(sleepFor(0)))
	for _, path := range []string{"/aaa", "/bbb"} {
		for framing, text := range map[string]string{
			"":        fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body),
			"chunked": fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(body), body),
		} {
			a, ok := s.raw(t, fmt.Sprintf("POST %s, %s body of %d bytes", path, framing, len(body)), "POST", "POST "+path+" HTTP/1.1\r\nHost: conformance\r\nConnection: close\r\n"+text)
			if ok {
				a.want(t, "the status", a.status, 413)
				a.isProblem(t)
			}
		}
	}
	s.ask(t, 200, "GET", "/healthz", "")
}

// Each of many clients gets its own result, whichever way it follows its job.
func (s *server) testMany(t *testing.T) {
	const clients = 200
	var mu sync.Mutex
	owner := make(map[string]int)
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			n := 0
			if i/3%16 == 0 {
				n = 1
			}
			a, ok := s.try(t, 202, "POST", "/bbb", sleepFor(n))
			if !ok {
				return
			}
			id := a.isAccepted(t)
			mu.Lock()
			if other, taken := owner[id]; taken {
				t.Errorf("%s: the clients %d and %d got the same id %s, want different ones", a.asked, i, other, id)
			}
			owner[id] = i
			mu.Unlock()
			if !s.waitFor(t, id, i%3) {
				return
			}
			if a, ok = s.try(t, 200, "GET", "/jobs/"+id+"/response", ""); ok {
				a.want(t, "the body", a.body, echo(n))
				a.has(t, "Job-State", "done")
			}
		})
	}
	wg.Wait()
}

// waitFor waits until a job is done, in one of three ways. It does not end the test.
func (s *server) waitFor(t *testing.T, id string, way int) (ok bool) {
	t.Helper()
	switch way {
	case 0:
		return s.poll(t, id)
	case 1:
		return s.poll(t, id, "Prefer: wait=20")
	}
	f, ok := s.follow(t, id, "")
	if ok {
		_, ok = f.rest(t, "done")
	}
	return ok
}

// poll requests a job until it is done. It does not end the test, so goroutines can
// call it.
func (s *server) poll(t *testing.T, id string, header ...string) (ok bool) {
	t.Helper()
	for late := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		a, ok := s.try(t, 200, "GET", "/jobs/"+id, "", header...)
		if !ok {
			return false
		}
		j := a.isJob(t, id)
		if j.ended() {
			a.want(t, "the state", j.State, "done")
			return j.State == "done"
		}
		if time.Now().After(late) {
			t.Errorf("%s: the state is %s after %v, want done", a.asked, j.State, patience)
			return false
		}
	}
}
