// Package e2e tests the server that is built from main.go against the OpenAPI
// description that it serves, and drives its dashboard in a browser.
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

// The server gives every answer that the description lists, and no other.
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
			{"too many", tooMany},
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
		return // then missing answers mean nothing
	}
	for _, what := range d.statuses() {
		if seen.seen[what] == 0 {
			t.Errorf("%s is described but was not seen", what)
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

// direct returns the answers of the server, even redirects.
var direct = &http.Client{
	Timeout:       patience,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// must is like send, but fails the test unless the answer has the status.
func (c client) must(status int, method, target, body string, header ...string) *answer {
	c.t.Helper()
	a := c.send(method, target, body, header...)
	if a.status != status {
		c.t.Fatalf("%s %s %q %q: %d %s, want %d", method, target, body, header, a.status, a.body, status)
	}
	return a
}

// refused is like must, for a request that the description must not allow either.
func (c client) refused(status int, method, target, body string, header ...string) {
	c.t.Helper()
	c.must(status, method, target, body, header...)
	r := httptest.NewRequest(method, c.url+target, nil)
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		r.Header.Add(name, value)
	}
	if c.d.checkRequest(r, []byte(body)) == nil {
		c.t.Errorf("%s %s %q %q was refused, but the description allows it", method, target, body, header)
	}
}

// accepted sends a request and returns the path of its job.
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

// cancelRunning cancels a running job and returns the status: 202 if the job was still
// running when the server answered, 200 if it had ended already. That depends on timing.
func (c client) cancelRunning(job string) int {
	c.t.Helper()
	a := c.send("DELETE", job, "")
	if a.status != 200 && a.status != 202 {
		c.t.Fatalf("DELETE %s, which is running: %d %s, want 202 or 200", job, a.status, a.body)
	}
	return a.status
}

const (
	brief   = `{"sleep_time":0}`
	endless = `{"sleep_time":86400}`
	unknown = "/jobs/AAAAAAAAAAAAAAAAAAAAAAAAAA"
	events  = "Accept: text/event-stream"
	async   = "Prefer: respond-async"
)

// fixed tests the answers that need no job.
func fixed(t *testing.T, d *description, seen *record) {
	c, _ := via(t, d, seen)
	for _, method := range []string{"GET", "HEAD"} {
		for _, target := range []string{"/", "/healthz", "/readyz"} {
			c.must(200, method, target, "")
		}
		c.must(404, method, "/nowhere", "")
		c.must(404, method, unknown, "")
		c.must(404, method, unknown+"/response", "")
		c.must(404, method, "/jobs/", "")
		c.must(404, method, "/jobs/x/y", "")
	}
	c.must(404, "GET", unknown, "", events)
	c.must(404, "GET", "/jobs", "")
	c.must(404, "GET", "//healthz", "") // not redirected either
	c.must(404, "DELETE", unknown, "")
	for _, target := range []string{"/aaa", "/bbb", "/", "/nowhere"} {
		c.must(403, "POST", target, brief, "Origin: https://elsewhere.example")
	}
	c.must(403, "DELETE", unknown, "", "Sec-Fetch-Site: cross-site")
}

// work tests the immediate answers of /aaa and /bbb.
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
		// A schema cannot tell these from valid ones.
		c.must(400, "POST", target, `{"sleep_time":1,"sleep_time":1}`)
		c.must(400, "POST", target, `{"sleep_time":1.0}`)
		for _, key := range []string{"", " ", `"`, `""`, `"x`, `"x"y`, `"\x"`, "ü", strings.Repeat("x", 256), `"` + strings.Repeat("x", 256) + `"`} {
			if strings.TrimSpace(key) == "" {
				c.must(400, "POST", target, brief, async, "Idempotency-Key: "+key) // the library takes an empty header for a missing one
				continue
			}
			c.refused(400, "POST", target, brief, async, "Idempotency-Key: "+key)
		}
		own := target[1:2] // both paths share the keys, and a key with another target would be refused
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
	for _, target := range []string{"/", "/healthz", "/readyz", unknown, unknown + "/response"} {
		c.must(405, "POST", target, "")
	}
	c.must(405, "DELETE", unknown+"/response", "")
}

// jobs tests a job from its acceptance on. There is one worker, so the first job runs
// and the second waits.
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

	// Canceling a job ends its event stream and its waiting requests.
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
			first, _ := lines.ReadString('\n') // before the job ends
			close(flowing)
			rest, err := io.ReadAll(lines)
			if !strings.HasPrefix(first, "id: ") || !bytes.Contains(rest, []byte("\nid: 3\n")) || err != nil {
				t.Errorf("the stream is %q and %q, %v", first, rest, err)
			}
		})
		<-flowing
		time.Sleep(50 * time.Millisecond) // so that the POST very likely waits; if not, it gets 410 too
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
			t.Fatal("100 running jobs were canceled, and all had ended before the answer")
		}
	}

	done := c.accepted("/bbb", brief)
	c.must(200, "GET", done+"/response", "", "Prefer: wait=50")
	c.state(done, "done")
	ended(c, done, 200)
	c.must(409, "DELETE", done, "")
}

// ended reads an ended job in all ways.
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

// late tests jobs that exceed their timeout.
func late(t *testing.T, d *description, seen *record) {
	c, _ := via(t, d, seen, "-job-timeout", "100ms")
	c.must(504, "POST", "/aaa", endless, "Prefer: respond-async, wait=50")
	c.must(504, "POST", "/bbb", endless, "Prefer: wait=50")
	job := c.accepted("/bbb", endless)
	c.state(job, "failed")
	ended(c, job, 410)
	c.must(409, "DELETE", job, "")
}

// tooLarge tests jobs whose response is too large.
func tooLarge(t *testing.T, d *description, seen *record) {
	c, _ := via(t, d, seen, "-max-response", "8")
	c.must(500, "POST", "/aaa", brief, "Prefer: respond-async, wait=50")
	c.must(500, "POST", "/bbb", brief, "Prefer: wait=50")
	job := c.accepted("/bbb", brief)
	c.state(job, "failed")
	ended(c, job, 410)
}

// full tests a full queue that refuses.
func full(t *testing.T, d *description, seen *record) {
	c, _ := via(t, d, seen, "-workers", "1", "-queue", "0", "-overflow", "reject")
	c.accepted("/bbb", endless)
	for _, target := range []string{"/aaa", "/bbb"} {
		if c.must(503, "POST", target, brief, async).header.Get("Retry-After") == "" {
			t.Errorf("%s: Retry-After is missing although the queue is full", target)
		}
	}
}

// tooMany tests a client that has all the places that it may have.
func tooMany(t *testing.T, d *description, seen *record) {
	c, _ := via(t, d, seen, "-workers", "1", "-client-places", "1")
	c.accepted("/bbb", endless)
	for _, target := range []string{"/aaa", "/bbb"} {
		if c.must(429, "POST", target, brief, async).header.Get("Retry-After") == "" {
			t.Errorf("%s: 429 without Retry-After", target)
		}
	}
}

// dropped tests jobs that are dropped for newer ones.
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

// stopping tests a server that is shutting down and still has a job.
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
			t.Fatal("the server is shutting down, but still ready")
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
		t.Error("the job has ended, but the server has not")
	}
}

// connections tests a connection above the limit.
func connections(t *testing.T, d *description, seen *record) {
	p := start(t, "-max-conns", "1")
	held, err := net.Dial("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	c := client{t, d, proxy(t, d, seen, p.addr).URL}
	for _, target := range []string{"/", "/healthz", unknown, unknown + "/response"} {
		c.must(503, "GET", target, "")
	}
}

// served tests the description itself.
func served(t *testing.T, d *description, seen *record) {
	want, err := os.ReadFile(descriptionFile)
	if err != nil {
		t.Fatal(err)
	}
	same := func(c client) {
		if got := c.must(200, "GET", "/openapi.json", "").body; !bytes.Equal(got, want) {
			t.Errorf("the server sends %d bytes that differ from %s", len(got), descriptionFile)
		}
		c.must(200, "HEAD", "/openapi.json", "")
	}
	handler := httptest.NewServer(http.HandlerFunc(server.OpenAPI))
	defer handler.Close()
	same(client{t, d, proxy(t, d, seen, handler.Listener.Addr().String()).URL})

	p := start(t)
	same(client{t, d, proxy(t, d, seen, p.addr).URL})
}

// All answers in the conformance test match the description.
func TestConformanceIsAsDescribed(t *testing.T) {
	t.Parallel()
	var seen record
	p := start(t)
	conformance.Run(t, proxy(t, readDescription(t), &seen, p.addr).URL)
}
