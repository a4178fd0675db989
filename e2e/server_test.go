// Package e2e holds the server, as it is built from main.go, against the OpenAPI
// description that it serves.
package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"holdfast/conformance"
	"holdfast/internal/proctest"
	"holdfast/internal/server"
)

// Everything that the description says is seen at a server, and nothing else is.
func TestServerIsAsDescribed(t *testing.T) {
	d := readDescription(t)
	proctest.Build(t)
	var seen record
	t.Run("servers", func(t *testing.T) {
		for _, test := range []struct {
			name string
			run  func(*testing.T, *description, *record)
		}{
			{"fixed", fixed},
			{"work", work},
			{"jobs", jobs},
			{"late", late},
			{"too large", tooLarge},
			{"full", full},
			{"dropped", dropped},
			{"stopping", stopping},
			{"connections", connections},
			{"description", served},
		} {
			t.Run(test.name, func(t *testing.T) {
				t.Parallel()
				test.run(t, d, &seen)
			})
		}
	})
	if t.Failed() {
		return // what is missing then says nothing
	}
	for _, what := range d.statuses() {
		if seen.seen[what] == 0 {
			t.Errorf("%s is described and was not seen", what)
		}
	}
}

// A client sends requests through a proxy.
type client struct {
	t   *testing.T
	d   *description
	url string
}

// via starts a server and a proxy in front of it.
func via(t *testing.T, d *description, seen *record, args ...string) (client, *process) {
	p := start(t, args...)
	return client{t, d, proxy(t, d, seen, p.addr).URL}, p
}

func (c client) send(method, target, body string, header ...string) *answer {
	c.t.Helper()
	r, err := http.NewRequest(method, c.url+target, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		r.Header.Add(name, value)
	}
	response, err := direct.Do(r)
	if err != nil {
		c.t.Fatal(err)
	}
	defer response.Body.Close()
	read, err := io.ReadAll(response.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return &answer{response.StatusCode, response.Header, read}
}

// direct says what the server says, also if that is to look elsewhere.
var direct = &http.Client{
	Timeout:       patience,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// must is send for an answer that has to have a status.
func (c client) must(status int, method, target, body string, header ...string) *answer {
	c.t.Helper()
	a := c.send(method, target, body, header...)
	if a.status != status {
		c.t.Fatalf("%s %s %q %q: %d %s, want %d", method, target, body, header, a.status, a.body, status)
	}
	return a
}

// refused is must for a request that the description does not allow either.
func (c client) refused(status int, method, target, body string, header ...string) {
	c.t.Helper()
	c.must(status, method, target, body, header...)
	r := httptest.NewRequest(method, c.url+target, nil)
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		r.Header.Add(name, value)
	}
	if c.d.checkRequest(r, []byte(body)) == nil {
		c.t.Errorf("%s %s %q %q was refused, and the description allows it", method, target, body, header)
	}
}

// accepted returns the path of the job that a request has become.
func (c client) accepted(target, body string, header ...string) string {
	c.t.Helper()
	return c.must(http.StatusAccepted, "POST", target, body, header...).header.Get("Location")
}

// state waits for a job to be in a state.
func (c client) state(job, want string) {
	c.t.Helper()
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		var read struct{ State string }
		json.Unmarshal(c.must(200, "GET", job, "").body, &read)
		if read.State == want {
			return
		}
		if time.Since(began) > patience {
			c.t.Fatalf("%s is %s, want %s", job, read.State, want)
		}
	}
}

// cancelRunning cancels a job that runs, and returns the status: 202 if it still ran
// when that was answered, 200 if it had ended already, which is up to the machine.
func (c client) cancelRunning(job string) int {
	c.t.Helper()
	a := c.send("DELETE", job, "")
	if a.status != 200 && a.status != 202 {
		c.t.Fatalf("DELETE %s, which runs: %d %s, want 202 or 200", job, a.status, a.body)
	}
	return a.status
}

const (
	brief   = `{"sleep_time":0}`
	endless = `{"sleep_time":86400}`
	nobody  = "/jobs/AAAAAAAAAAAAAAAAAAAAAAAAAA"
	events  = "Accept: text/event-stream"
	async   = "Prefer: respond-async"
)

// fixed is about what needs no work.
func fixed(t *testing.T, d *description, seen *record) {
	c, _ := via(t, d, seen)
	for _, method := range []string{"GET", "HEAD"} {
		for _, target := range []string{"/", "/healthz", "/readyz"} {
			c.must(200, method, target, "")
		}
		c.must(404, method, "/nowhere", "")
		c.must(404, method, nobody, "")
		c.must(404, method, nobody+"/response", "")
		c.must(404, method, "/jobs/", "")
		c.must(404, method, "/jobs/x/y", "")
	}
	c.must(404, "GET", nobody, "", events)
	c.must(404, "GET", "/jobs", "")
	c.must(404, "GET", "//healthz", "") // not redirected either
	c.must(404, "DELETE", nobody, "")
	for _, target := range []string{"/aaa", "/bbb", "/", "/nowhere"} {
		c.must(403, "POST", target, brief, "Origin: https://elsewhere.example")
	}
	c.must(403, "DELETE", nobody, "", "Sec-Fetch-Site: cross-site")
}

// work is about what /aaa and /bbb answer at once.
func work(t *testing.T, d *description, seen *record) {
	c, _ := via(t, d, seen)
	c.must(200, "POST", "/aaa", brief)
	c.must(200, "POST", "/aaa", brief, "Content-Type: application/x-www-form-urlencoded")
	c.must(200, "POST", "/aaa", ` { "sleep_time" : 0 } `, "Prefer: wait=5", "Prefer: unheard-of")
	c.must(200, "POST", "/aaa", brief, "Prefer: respond-async, wait=50")
	c.must(202, "POST", "/aaa", brief, async)
	c.must(202, "POST", "/aaa", endless, "Prefer: respond-async, wait=0")
	c.must(202, "POST", "/aaa", endless, "Prefer: respond-async, wait=1")
	c.must(200, "POST", "/bbb", brief, "Prefer: wait=50")
	c.must(200, "POST", "/bbb", brief, "Prefer: wait=1000")
	c.must(202, "POST", "/bbb", brief)
	c.must(202, "POST", "/bbb", brief, async)
	c.must(202, "POST", "/bbb", endless, "Prefer: wait=1")
	for _, target := range []string{"/aaa", "/bbb"} {
		for _, body := range []string{
			"", " ", "{", "{}", "null", "[]", "1", `"x"`, `{"sleep_time":null}`, `{"sleep_time":1.5}`,
			`{"sleep_time":"1"}`, `{"sleep_time":-1}`, `{"sleep_time":86401}`, `{"sleep_time":1,"x":1}`,
			`{"Sleep_Time":1}`, `{"sleep_time":1} x`,
		} {
			c.refused(400, "POST", target, body)
		}
		// These a schema cannot tell from what is right.
		c.must(400, "POST", target, `{"sleep_time":1,"sleep_time":1}`)
		c.must(400, "POST", target, `{"sleep_time":1.0}`)
		for _, key := range []string{"", " ", `"`, `""`, `"x`, `"x"y`, `"\x"`, "ü", strings.Repeat("x", 256), `"` + strings.Repeat("x", 256) + `"`} {
			if strings.TrimSpace(key) == "" {
				c.must(400, "POST", target, brief, async, "Idempotency-Key: "+key) // to the library it is not there
				continue
			}
			c.refused(400, "POST", target, brief, async, "Idempotency-Key: "+key)
		}
		own := target[1:2] // keys are shared between the two, and the target is part of the request
		for _, key := range []string{own, `"` + own + ` x"`, `"` + own + `\"\\"`, `"` + own + `p";q=1`, strings.Repeat(own, 255), `"` + strings.Repeat(own, 254) + `."`} {
			job := c.accepted(target, brief, async, "Idempotency-Key: "+key)
			if again := c.accepted(target, brief, async, "Idempotency-Key: "+key); again != job {
				t.Errorf("the key %s has the jobs %s and %s", key, job, again)
			}
			c.must(422, "POST", target, endless, async, "Idempotency-Key: "+key)
		}
		c.must(413, "POST", target, strings.Repeat(" ", 1<<20+1))
		for _, method := range []string{"GET", "HEAD", "PUT", "DELETE", "OPTIONS"} {
			c.must(405, method, target, "")
		}
	}
	for _, target := range []string{"/", "/healthz", "/readyz", nobody, nobody + "/response"} {
		c.must(405, "POST", target, "")
	}
	c.must(405, "DELETE", nobody+"/response", "")
}

// jobs is about a job from its acceptance on: with one worker, the first runs and
// the second waits.
func jobs(t *testing.T, d *description, seen *record) {
	c, _ := via(t, d, seen, "-workers", "1", "-queue", "10")
	running := c.accepted("/bbb", endless, "Idempotency-Key: first")
	queued := c.accepted("/aaa", endless, async, "Idempotency-Key: second")
	c.state(running, "running")
	for _, job := range []string{running, queued} {
		for _, method := range []string{"GET", "HEAD"} {
			c.must(200, method, job, "")
			c.must(200, method, job, "", "Prefer: wait=0")
			c.must(200, method, job, "", "Prefer: wait=1, unheard-of")
			c.must(202, method, job+"/response", "")
			c.must(202, method, job+"/response", "", "Prefer: wait=1")
		}
	}

	third := c.accepted("/bbb", endless, "Idempotency-Key: third")
	for range 2 {
		c.must(200, "DELETE", third, "")
	}
	c.state(third, "canceled")
	if again := c.accepted("/bbb", endless, "Idempotency-Key: third"); again == third {
		t.Errorf("the key of %s, which never ran, is not free", third)
	} else {
		c.must(200, "DELETE", again, "")
	}

	// Canceled, each ends the stream of events and the answers that wait.
	var waiting sync.WaitGroup
	for _, more := range []struct{ target, key, job string }{{"/bbb", "first", running}, {"/aaa", "second", queued}} {
		c.state(more.job, "running")
		flowing := make(chan struct{})
		waiting.Go(func() {
			c.must(410, "POST", more.target, endless, "Prefer: respond-async, wait=50", "Idempotency-Key: "+more.key)
		})
		waiting.Go(func() {
			r, err := http.NewRequest("GET", c.url+more.job, nil)
			if err != nil {
				t.Error(err)
				close(flowing)
				return
			}
			r.Header.Set("Accept", "text/event-stream")
			response, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Error(err)
				close(flowing)
				return
			}
			defer response.Body.Close()
			lines := bufio.NewReader(response.Body)
			first, _ := lines.ReadString('\n') // before there is an end
			close(flowing)
			rest, err := io.ReadAll(lines)
			if !strings.HasPrefix(first, "id: ") || !bytes.Contains(rest, []byte("\nid: 3\n")) || err != nil {
				t.Errorf("the stream is %q and %q, %v", first, rest, err)
			}
		})
		<-flowing
		time.Sleep(50 * time.Millisecond) // for the POST to wait; if it does not, it gets 410 all the same
		c.cancelRunning(more.job)
		c.state(more.job, "canceled")
		c.must(200, "DELETE", more.job, "")
	}
	waiting.Wait()
	for _, job := range []string{running, queued, third} {
		ended(c, job, 410)
	}
	for try := 0; ; try++ {
		job := c.accepted("/bbb", endless)
		c.state(job, "running")
		if c.cancelRunning(job) == 202 {
			break
		}
		if try == 100 {
			t.Fatal("of 100 jobs that ran and were canceled not one was still running when that was answered")
		}
	}

	done := c.accepted("/bbb", brief)
	c.must(200, "GET", done+"/response", "", "Prefer: wait=50")
	c.state(done, "done")
	ended(c, done, 200)
	c.must(409, "DELETE", done, "")
}

// ended reads a job that has ended, in all ways.
func ended(c client, job string, status int) {
	c.t.Helper()
	for _, method := range []string{"GET", "HEAD"} {
		c.must(200, method, job, "")
		c.must(200, method, job, "", "Prefer: wait=5")
		c.must(status, method, job+"/response", "")
		c.must(status, method, job+"/response", "", "Prefer: wait=5")
	}
	c.must(200, "GET", job, "", events)
	c.must(200, "HEAD", job, "", events)
	c.must(200, "GET", job, "", events, "Last-Event-ID: 2")
	c.must(204, "GET", job, "", events, "Last-Event-ID: 3")
}

// late is about jobs that exceed their time.
func late(t *testing.T, d *description, seen *record) {
	c, _ := via(t, d, seen, "-job-timeout", "100ms")
	c.must(504, "POST", "/aaa", endless, "Prefer: respond-async, wait=50")
	c.must(504, "POST", "/bbb", endless, "Prefer: wait=50")
	job := c.accepted("/bbb", endless)
	c.state(job, "failed")
	ended(c, job, 410)
	c.must(409, "DELETE", job, "")
}

// tooLarge is about jobs whose response is.
func tooLarge(t *testing.T, d *description, seen *record) {
	c, _ := via(t, d, seen, "-max-response", "8")
	c.must(500, "POST", "/aaa", brief, "Prefer: respond-async, wait=50")
	c.must(500, "POST", "/bbb", brief, "Prefer: wait=50")
	job := c.accepted("/bbb", brief)
	c.state(job, "failed")
	ended(c, job, 410)
}

// full is about a queue that is, and refuses.
func full(t *testing.T, d *description, seen *record) {
	c, _ := via(t, d, seen, "-workers", "1", "-queue", "0", "-overflow", "reject")
	c.accepted("/bbb", endless)
	for _, target := range []string{"/aaa", "/bbb"} {
		if c.must(503, "POST", target, brief, async).header.Get("Retry-After") == "" {
			t.Errorf("%s: Retry-After is missing, and the queue is full", target)
		}
	}
}

// dropped is about jobs that give way to others.
func dropped(t *testing.T, d *description, seen *record) {
	c, _ := via(t, d, seen, "-workers", "1", "-queue", "1", "-overflow", "drop-oldest")
	first := c.accepted("/bbb", endless)
	c.state(first, "running")
	second := c.accepted("/bbb", endless)
	c.accepted("/bbb", endless)
	c.state(second, "dropped")
	ended(c, second, 410)
	c.must(409, "DELETE", second, "")

	// Who has waited with the request is told to try again.
	for _, target := range []string{"/aaa", "/bbb"} {
		told := make(chan *answer, 1)
		go func() { told <- c.send("POST", target, endless, "Prefer: respond-async, wait=50") }()
		var a *answer
		for a == nil {
			c.accepted("/bbb", endless) // in its place, once it is there
			select {
			case a = <-told:
			case <-time.After(5 * time.Millisecond):
			}
		}
		if a.status != 503 || a.header.Get("Retry-After") == "" || a.header.Get("Job-State") != "dropped" {
			t.Errorf("%s: %d %v", target, a.status, a.header)
		}
	}
}

// stopping is about a server that has been told to stop and still has a job.
func stopping(t *testing.T, d *description, seen *record) {
	c, p := via(t, d, seen, "-workers", "1", "-drain", "0")
	job := c.accepted("/bbb", endless)
	c.state(job, "running")
	if err := p.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.AwaitLog(regexp.MustCompile(`( stopping )`))
	for began := time.Now(); c.send("GET", "/readyz", "").status != 503; time.Sleep(5 * time.Millisecond) {
		if time.Since(began) > patience {
			t.Fatal("it stops, and is ready")
		}
	}
	c.must(503, "HEAD", "/readyz", "")
	c.must(503, "POST", "/aaa", brief)
	c.must(503, "POST", "/bbb", brief)
	c.must(200, "GET", "/healthz", "")
	c.must(200, "GET", job, "")
	c.must(202, "DELETE", job, "")
	select {
	case <-p.Ended:
	case <-time.After(patience):
		t.Error("the job has ended, and the server has not")
	}
}

// connections is about one more than there may be.
func connections(t *testing.T, d *description, seen *record) {
	p := start(t, "-max-conns", "1")
	held, err := net.Dial("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	c := client{t, d, proxy(t, d, seen, p.addr).URL}
	for _, target := range []string{"/", "/healthz", nobody, nobody + "/response"} {
		c.must(503, "GET", target, "")
	}
}

// served is about the description itself.
func served(t *testing.T, d *description, seen *record) {
	want, err := os.ReadFile(descriptionFile)
	if err != nil {
		t.Fatal(err)
	}
	same := func(c client) {
		if got := c.must(200, "GET", "/openapi.json", "").body; !bytes.Equal(got, want) {
			t.Errorf("what is served has %d bytes and is not %s", len(got), descriptionFile)
		}
		c.must(200, "HEAD", "/openapi.json", "")
	}
	handler := httptest.NewServer(http.HandlerFunc(server.OpenAPI))
	defer handler.Close()
	same(client{t, d, proxy(t, d, seen, handler.Listener.Addr().String()).URL})

	p := start(t)
	same(client{t, d, proxy(t, d, seen, p.addr).URL})
}

// Whatever a client of the contract asks, the server answers as described.
func TestConformanceIsAsDescribed(t *testing.T) {
	t.Parallel()
	var seen record
	p := start(t)
	conformance.Run(t, proxy(t, readDescription(t), &seen, p.addr).URL)
}
