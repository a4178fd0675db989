package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/internal/memtest"
	"holdfast/internal/proctest"
)

// patience bounds whatever is waited for in this package's tests.
const patience = proctest.Patience

// A fixture is a server as main.go wires it, on a listener in memory. It runs in
// a bubble.
type fixture struct {
	t     *testing.T
	l     *memtest.Listener
	d     *holdfast.Dispatcher
	s     *Server
	log   memtest.Log
	began time.Time
	stop  context.CancelFunc
	ended chan error
}

func serve(t *testing.T, c Config, routes map[string]http.HandlerFunc) *fixture {
	t.Helper()
	if c.MaxBody == 0 {
		c.MaxBody = 1 << 20
	}
	if c.MaxConns == 0 {
		c.MaxConns = 100
	}
	f := &fixture{t: t, l: memtest.Listen(), began: time.Now(), ended: make(chan error, 1)}
	log := slog.New(slog.NewTextHandler(&f.log, nil))
	var err error
	config := c.Dispatcher()
	config.Logger = log
	if f.d, err = holdfast.New(config); err != nil {
		t.Fatal(err)
	}
	jobs, err := holdfast.NewJobs(f.d, holdfast.JobsConfig{MaxBody: c.MaxBody, OnEnd: LogJob(log)})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	s := New(f.d, mux, c, log)
	f.s = s
	s.Linger(c.Linger, func() int { return jobs.Stats().Unread })
	mux.Handle("/jobs/", jobs)
	mux.Handle("POST /aaa", s.Work(Sleep(c.MaxBody, jobs.Sync)))
	mux.Handle("POST /bbb", s.Work(Sleep(c.MaxBody, Waiting(c.MaxBody, jobs.Async))))
	mux.Handle("POST /queued", s.Work(Sleep(c.MaxBody, Waiting(c.MaxBody, jobs.Queued))))
	for pattern, h := range routes {
		mux.HandleFunc(pattern, h)
	}
	var ctx context.Context
	ctx, f.stop = context.WithCancel(context.Background())
	var result error
	done := make(chan struct{})
	go func() {
		result = s.Run(ctx, f.l, nil, c.Drain)
		f.ended <- result
		close(done)
	}()
	t.Cleanup(func() {
		f.stop()
		<-done
		if t.Failed() {
			t.Log(f.log.String())
		}
	})
	return f
}

// at fails the test if the bubble's time since the start is not d, up to what
// http.Server.Shutdown takes between two looks at its connections.
func (f *fixture) at(what string, d time.Duration) {
	f.t.Helper()
	if now := time.Since(f.began); now < d || now > d+time.Second {
		f.t.Errorf("%s after %v, want %v", what, now, d)
	}
}

// A client is one connection.
type client struct {
	t      *testing.T
	conn   net.Conn
	r      *bufio.Reader
	closed <-chan struct{} // the server has closed the connection
}

func (f *fixture) dial() *client {
	f.t.Helper()
	conn, closed := f.l.MustDial(f.t)
	return &client{f.t, conn, bufio.NewReader(conn), closed}
}

func (c *client) send(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c.conn, text); err != nil {
		c.t.Fatalf("sending %.80q: %v", text, err)
	}
}

// request is the text of a request.
func request(method, target, body string, header ...string) string {
	text := method + " " + target + " HTTP/1.1\r\nHost: localhost\r\n"
	if body != "" {
		text += fmt.Sprintf("Content-Length: %d\r\n", len(body))
	}
	for _, line := range header {
		text += line + "\r\n"
	}
	return text + "\r\n" + body
}

// Who asks the operator's listener for much and takes nothing in is cut off, though
// it has no WriteTimeout.
func TestAdminCutsOffSlowReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, err := holdfast.New(holdfast.Config{Workers: 1, Queue: 200})
		if err != nil {
			t.Fatal(err)
		}
		s := New(d, http.NewServeMux(), Config{MaxBody: 1, MaxConns: 1}, slog.New(slog.DiscardHandler))
		took := make(chan time.Duration, 1)
		s.Admin(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s.Admitted(r)
			began := time.Now()
			for err := error(nil); err == nil; {
				_, err = w.Write(make([]byte, 1000))
			}
			took <- time.Since(began)
		}))
		ctx, stop := context.WithCancel(context.Background())
		admin := memtest.Listen()
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx, memtest.Listen(), admin, 0) }()
		client, closed := admin.MustDial(t)
		io.WriteString(client, request("GET", "/", ""))
		if d := <-took; d != writeTimeout {
			t.Errorf("cut off after %v, want %v", d, writeTimeout)
		}
		<-closed
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

type answer struct {
	status int
	header http.Header
	body   string
	close  bool
}

func (c *client) receive() (a answer, err error) {
	res, err := http.ReadResponse(c.r, &http.Request{Method: "POST"})
	if err != nil {
		return a, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return answer{res.StatusCode, res.Header, string(body), res.Close}, err
}

func (c *client) answer() answer {
	c.t.Helper()
	a, err := c.receive()
	if err != nil {
		c.t.Fatalf("no answer: %v", err)
	}
	return a
}

// do sends a request and checks the answer's status, and that an error is a
// problem.
func (c *client) do(status int, method, target, body string, header ...string) answer {
	c.t.Helper()
	c.send(request(method, target, body, header...))
	a := c.answer()
	a.check(c.t, status)
	return a
}

// id returns the id of a 202.
func (a answer) id() string {
	var body struct{ ID string }
	json.Unmarshal([]byte(a.body), &body)
	return body.ID
}

func (a answer) check(t *testing.T, status int) {
	t.Helper()
	if a.status != status {
		t.Errorf("%d %s, want %d", a.status, a.body, status)
		return
	}
	if status < 400 {
		return
	}
	var p struct {
		Title, Detail string
		Status        int
	}
	err := json.Unmarshal([]byte(a.body), &p)
	if err != nil || p.Status != status || p.Title != http.StatusText(status) || p.Detail == "" || a.header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("%d %q %s is no problem: %v", a.status, a.header, a.body, err)
	}
}

func sleepFor(seconds int) string { return fmt.Sprintf(`{"sleep_time":%d}`, seconds) }

func TestServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := serve(t, Config{Workers: 1, Queue: 1}, nil)
		c := f.dial()
		if a := c.do(200, "GET", "/healthz", ""); a.body != "ok\n" {
			t.Errorf("/healthz says %q", a.body)
		}
		if a := c.do(200, "GET", "/readyz", ""); a.body != "ready\n" {
			t.Errorf("/readyz says %q", a.body)
		}
		c.do(404, "GET", "/nowhere", "")
		if a := c.do(405, "GET", "/bbb", ""); a.header.Get("Allow") != "POST" {
			t.Errorf("Allow: %q, want POST", a.header.Get("Allow"))
		}
		c.do(405, "POST", "/healthz", "")
		c.do(404, "OPTIONS", "*", "")
		f.at("all answered", 0)

		c.do(202, "POST", "/bbb", sleepFor(50)) // takes the worker
		c.do(202, "POST", "/bbb", sleepFor(50)) // waits for it
		f.at("accepted", 0)
		if a := c.do(200, "POST", "/aaa", sleepFor(40)); a.body != `{"sleep_time":40}`+"\n" {
			t.Errorf("/aaa says %q", a.body)
		}
		f.at("answered beside the pool", 40*time.Second)
	})
}

// A client cannot make itself a job's id, neither for the handler nor the log.
func TestForgedJobID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := serve(t, Config{Workers: 1, Queue: 1}, nil)
		f.dial().do(200, "POST", "/aaa", sleepFor(0), "Job-Id: forged", "job-id: again")
		f.dial().do(202, "POST", "/bbb", sleepFor(0), "Job-Id: forged")
		synctest.Wait()
		if log := f.log.String(); strings.Contains(log, "forged") || strings.Contains(log, "again") || strings.Count(log, "msg=\"job ended\"") != 1 {
			t.Errorf("want one job in the log, and not the client's id:\n%s", log)
		}
	})
}

func TestHandlerPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := serve(t, Config{Workers: 1, Queue: 1}, map[string]http.HandlerFunc{
			"GET /panic": func(http.ResponseWriter, *http.Request) { panic("deliberate") },
		})
		other, c := f.dial(), f.dial()
		other.do(200, "GET", "/healthz", "")
		c.send(request("GET", "/panic", ""))
		if a, err := c.receive(); err == nil {
			t.Errorf("a handler that panics answers %+v", a)
		}
		other.do(200, "GET", "/healthz", "")
		if !strings.Contains(f.log.String(), "deliberate") {
			t.Error("the panic is not in the log")
		}
		// It does not count as a request that a stop would cut off.
		f.stop()
		if err := <-f.ended; err != nil {
			t.Error(err)
		}
	})
}

// From the start of a stop: not ready, no new work, all else answered, on old
// connections and on new ones.
func TestStopping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := serve(t, Config{Workers: 1, Queue: 2, Drain: time.Minute}, nil)
		old, sync1 := f.dial(), f.dial()
		for range 3 {
			old.do(202, "POST", "/bbb", sleepFor(10))
		}
		blocked := f.dial()
		blocked.send(request("POST", "/bbb", sleepFor(10)))
		sync1.send(request("POST", "/aaa", sleepFor(35)))
		synctest.Wait()
		if got := f.d.Stats().Blocked; got != 1 {
			t.Fatalf("%d requests wait for a place, want 1", got)
		}

		f.stop()
		blocked.answer().check(t, 503) // and not accepted after all
		for _, c := range []*client{old, f.dial(), f.dial()} {
			c.do(503, "GET", "/readyz", "")
			c.do(200, "GET", "/healthz", "")
			c.do(503, "POST", "/aaa", sleepFor(0))
			c.do(503, "POST", "/bbb", sleepFor(0))
			c.do(503, "POST", "/bbb", "nonsense")
			c.do(404, "GET", "/nowhere", "")
			c.do(405, "PUT", "/bbb", "")
		}
		f.at("all that answered", 0)
		time.Sleep(29 * time.Second) // the last job runs
		f.dial().do(503, "GET", "/readyz", "")

		sync1.answer().check(t, 200)
		f.at("the request outside the pool answered", 35*time.Second)
		if err := <-f.ended; err != nil {
			t.Error(err)
		}
		f.at("stopped", 35*time.Second)
		if log := f.log.String(); strings.Count(log, "msg=\"job ended\"") != 3 || !strings.HasSuffix(log, "finished=3 cut_off=0 never_started=0 requests_cut_off=0 unread=3\n") {
			t.Errorf("want three jobs run:\n%s", log)
		}
		if _, _, err := f.l.Dial(); err == nil {
			t.Error("the listener is open after the stop")
		}
	})
}

func TestDrain(t *testing.T) {
	const hour = 3600
	for _, test := range []struct {
		name    string
		config  Config
		async   []int // sleep_time of jobs
		sync    int   // sleep_time of a request outside the pool
		ends    time.Duration
		is      []error
		text    string
		stopped string
	}{
		{name: "idle", config: Config{Workers: 1, Queue: 9, Drain: time.Minute},
			stopped: "finished=0 cut_off=0 never_started=0 requests_cut_off=0"},
		{name: "waits for queued jobs", config: Config{Workers: 2, Queue: 9, Drain: time.Hour}, async: []int{10, 10, 10, 10, 10},
			ends: 30 * time.Second, stopped: "finished=5 cut_off=0 never_started=0 requests_cut_off=0"},
		{name: "no limit", config: Config{Workers: 1, Queue: 9}, async: []int{hour, hour}, sync: 5 * hour,
			ends: 5 * time.Hour, stopped: "finished=2 cut_off=0 never_started=0 requests_cut_off=0"},
		{name: "limit with jobs", config: Config{Workers: 1, Queue: 9, Drain: 30 * time.Second}, async: []int{20, hour, 1},
			ends: 30 * time.Second, is: []error{context.DeadlineExceeded, holdfast.ErrAbandoned}, stopped: "finished=1 cut_off=1 never_started=1 requests_cut_off=0"},
		{name: "limit with a request", config: Config{Workers: 1, Queue: 9, Drain: 30 * time.Second}, async: []int{20}, sync: hour,
			ends: 30 * time.Second, text: "1 requests cut off", stopped: "finished=1 cut_off=0 never_started=0 requests_cut_off=1"},
		{name: "limit with both", config: Config{Workers: 1, Queue: 9, Drain: 30 * time.Second}, async: []int{hour}, sync: hour,
			ends: 31 * time.Second, is: []error{context.DeadlineExceeded}, text: "1 requests cut off", stopped: "finished=0 cut_off=1 never_started=0 requests_cut_off=1"},
		{name: "a second more for answers", config: Config{Workers: 1, Queue: 9, Drain: 30 * time.Second}, async: []int{hour}, sync: 30,
			ends: 30 * time.Second, is: []error{context.DeadlineExceeded}, stopped: "finished=0 cut_off=1 never_started=0 requests_cut_off=0"},
		{name: "paused", config: Config{Queue: 9, Drain: time.Minute}, async: []int{1, 1},
			is: []error{holdfast.ErrAbandoned}, stopped: "finished=0 cut_off=0 never_started=2 requests_cut_off=0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := serve(t, test.config, nil)
				for _, seconds := range test.async {
					f.dial().do(202, "POST", "/bbb", sleepFor(seconds))
				}
				c := f.dial()
				// A connection without a request would be waited for.
				first := request("GET", "/healthz", "")
				if test.sync > 0 {
					first = request("POST", "/aaa", sleepFor(test.sync))
				}
				c.send(first)
				go io.Copy(io.Discard, c.conn)
				synctest.Wait()
				f.stop()
				err := <-f.ended
				f.at("stopped", test.ends)
				synctest.Wait()
				if !isClosed(c.closed) {
					t.Error("a connection is open after the stop")
				}
				if (err != nil) != (len(test.is) > 0 || test.text != "") {
					t.Errorf("error %v", err)
				}
				for _, want := range test.is {
					if !errors.Is(err, want) {
						t.Errorf("error %v, want %v in it", err, want)
					}
				}
				if test.text != "" && !strings.Contains(fmt.Sprint(err), test.text) {
					t.Errorf("error %v, want %q in it", err, test.text)
				}
				if log := f.log.String(); !strings.Contains(log, "msg=stopped "+test.stopped+" unread=") {
					t.Errorf("want %s:\n%s", test.stopped, log)
				}
			})
		})
	}
}

// After the last job the server goes on answering, for as long as something that has
// ended is unread, and no longer than -linger and -drain allow.
func TestLinger(t *testing.T) {
	const job = 10 * time.Second // that the jobs take, one after the other
	response := func(f *fixture, id string) { f.dial().do(200, "GET", "/jobs/"+id+"/response", "") }
	state := func(f *fixture, id string) { f.dial().do(200, "GET", "/jobs/"+id, "") }
	for _, test := range []struct {
		name   string
		config Config
		read   func(f *fixture, id string) // of both jobs, two seconds after the end of the last
		ends   time.Duration               // after the end of the last
		unread int
	}{
		{"nobody reads", Config{Linger: 5 * time.Second, Drain: time.Minute}, nil, 5 * time.Second, 2},
		{"the responses", Config{Linger: 5 * time.Second, Drain: time.Minute}, response, 2 * time.Second, 0},
		{"without a drain limit", Config{Linger: time.Hour}, response, 2 * time.Second, 0},
		{"the state is not the response", Config{Linger: 5 * time.Second, Drain: time.Minute}, state, 5 * time.Second, 2},
		{"within the drain", Config{Linger: time.Hour, Drain: 2*job + 3*time.Second}, nil, 3 * time.Second, 2},
		{"no linger", Config{Drain: time.Minute}, nil, 0, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				test.config.Workers, test.config.Queue = 1, 9
				f := serve(t, test.config, nil)
				var ids []string
				for range 2 {
					a := f.dial().do(202, "POST", "/bbb", sleepFor(int(job.Seconds())))
					ids = append(ids, a.id())
				}
				f.stop()
				time.Sleep(2*job + 2*time.Second)
				for _, id := range ids {
					if test.read != nil {
						test.read(f, id)
					}
				}
				if err := <-f.ended; err != nil {
					t.Error(err)
				}
				if test.ends >= 2*time.Second {
					f.at("stopped", 2*job+test.ends)
				}
				if log := f.log.String(); !strings.Contains(log, fmt.Sprintf(" requests_cut_off=0 unread=%d\n", test.unread)) {
					t.Errorf("want unread=%d:\n%s", test.unread, log)
				}
			})
		})
	}
}

func TestServingFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := serve(t, Config{Workers: 1, Queue: 9, Drain: time.Minute}, nil)
		f.dial().do(202, "POST", "/bbb", sleepFor(20))
		f.l.Close()
		if err := <-f.ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("error %v, want the listener's", err)
		}
		f.at("stopped", 20*time.Second)
		if log := f.log.String(); !strings.Contains(log, "finished=1 cut_off=0 never_started=0") {
			t.Errorf("the job was not waited for:\n%s", log)
		}
	})
}

// toSend is how long a client may take for a body with the default -max-body.
const toSend = 74 * time.Second

func TestSlowHeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := serve(t, Config{Workers: 1, Queue: 1}, nil)
		silent, half, later := f.dial(), f.dial(), f.dial()
		half.send("POST /bbb HTTP/1.1\r\nHost: te")
		later.do(200, "GET", "/healthz", "")
		go func() {
			for range 1000 { // a byte now and then does not help
				time.Sleep(time.Second)
				if _, err := io.WriteString(half.conn, "x"); err != nil {
					return
				}
			}
		}()
		time.Sleep(9 * time.Second)
		later.send("GET /he")
		go io.Copy(io.Discard, later.conn) // it may be told that this is no request
		synctest.Wait()
		if isClosed(silent.closed) || isClosed(half.closed) {
			t.Error("closed before its time")
		}
		<-silent.closed
		f.at("silent connection closed", headerTimeout)
		<-half.closed
		f.at("slow connection closed", headerTimeout)
		<-later.closed
		f.at("connection with a slow second header closed", 9*time.Second+headerTimeout)
	})
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// A client that is slow to send a body is cut off; one that waits for its
// answer for much longer is not.
func TestSlowBody(t *testing.T) {
	length := "Content-Length: 1000000"
	for _, test := range []struct {
		name, head, piece string
		every             time.Duration
	}{
		{"nothing", request("POST", "/bbb", "", length), "", time.Hour},
		{"nothing, to /aaa", request("POST", "/aaa", "", length), "", time.Hour},
		{"trickle", request("POST", "/bbb", "", length), " ", 5 * time.Second},
		{"chunked", request("POST", "/bbb", "", "Transfer-Encoding: chunked"), "1\r\n \r\n", 5 * time.Second},
		{"within one chunk", request("POST", "/bbb", "", "Transfer-Encoding: chunked") + "ffff\r\n", " ", 5 * time.Second},
		{"just too slow", request("POST", "/bbb", "", length), strings.Repeat(" ", 13_000), time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := serve(t, Config{Workers: 1, Queue: 1}, nil)
				waiting, c := f.dial(), f.dial()
				waiting.send(request("POST", "/aaa", sleepFor(3600)))
				c.send(test.head)
				go func() {
					for err := error(nil); err == nil; _, err = io.WriteString(c.conn, test.piece) {
						time.Sleep(test.every)
					}
				}()
				if a := c.answer(); a.status != 400 || !a.close {
					t.Errorf("%+v, want 400 and the connection closed", a)
				}
				<-c.closed
				f.at("closed", toSend)
				waiting.answer().check(t, 200)
				f.at("the long request answered", time.Hour)
				if n := f.d.Stats().Accepted; n != 0 {
					t.Errorf("%d jobs accepted", n)
				}
			})
		})
	}
}

// A body at rate is in time, however large; then its connection is good for
// as long as ever.
func TestBodyInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := serve(t, Config{Workers: 1, Queue: 1}, nil)
		c := f.dial()
		for range 2 {
			body := strings.Repeat(" ", 1<<20-20) + sleepFor(3600)
			c.send(request("POST", "/aaa", "", fmt.Sprintf("Content-Length: %d", len(body))))
			for len(body) > 0 {
				time.Sleep(time.Second)
				n := min(len(body), rate)
				c.send(body[:n])
				body = body[n:]
			}
			c.answer().check(t, 200)
			time.Sleep(toSend + time.Second) // idle for longer than the deadline of the body
		}
	})
}

// With the largest -max-body the time for a body must not overflow.
func TestBodyLimitHuge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := serve(t, Config{Workers: 1, Queue: 1, MaxBody: 1<<63 - 1}, nil)
		c := f.dial()
		c.send(request("POST", "/bbb", "", "Content-Length: 16"))
		time.Sleep(time.Hour)
		c.send(sleepFor(0))
		c.answer().check(t, 202)
	})
}

// A body that nobody reads holds its connection no longer than a slow one.
func TestUnreadBody(t *testing.T) {
	for _, test := range []struct {
		name, request string
		status        int
		answered      time.Duration // what is small is waited for before the answer
	}{
		{"404", request("POST", "/nowhere", "", "Content-Length: 100"), 404, toSend},
		{"404 chunked", request("POST", "/nowhere", "", "Transfer-Encoding: chunked"), 404, toSend},
		{"404 large", request("POST", "/nowhere", "", "Content-Length: 10000000000"), 404, 0},
		{"405", request("PUT", "/bbb", "", "Content-Length: 100"), 405, toSend},
		{"GET", request("GET", "/healthz", "", "Content-Length: 100"), 200, toSend},
		{"OPTIONS *", request("OPTIONS", "*", "", "Content-Length: 100"), 404, toSend},
		{"OPTIONS * chunked", request("OPTIONS", "*", "", "Transfer-Encoding: chunked"), 404, toSend},
		// A client that waits for 100 Continue gets the answer instead.
		{"404 expecting", request("POST", "/nowhere", "", "Content-Length: 100", "Expect: 100-continue"), 404, 0},
		{"413", request("POST", "/bbb", "", "Content-Length: 1048577"), 413, 0},
		{"413 expecting", request("POST", "/bbb", "", "Content-Length: 1048577", "Expect: 100-continue"), 413, 0},
		{"405 expecting", request("PUT", "/bbb", "", "Content-Length: 100", "Expect: 100-continue"), 405, 0},
	} {
		for _, last := range []bool{false, true} {
			t.Run(fmt.Sprint(test.name, " last ", last), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := serve(t, Config{Workers: 1, Queue: 1}, nil)
					c := f.dial()
					text := test.request
					if last {
						text = strings.Replace(text, "\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1)
					}
					c.send(text)
					if a := c.answer(); a.status != test.status || !a.close {
						t.Errorf("%+v, want %d and the connection closed", a, test.status)
					}
					f.at("answered", test.answered)
					answered := time.Now()
					<-c.closed
					if d := time.Since(f.began); d > toSend+time.Second {
						t.Errorf("closed after %v", d)
					}
					if time.Since(answered) == 0 && last {
						t.Error("closed at once: who is still sending does not see the answer")
					}
				})
			})
		}
	}

	t.Run("small and last", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := serve(t, Config{Workers: 1, Queue: 1}, nil)
			c := f.dial()
			c.send(request("POST", "/nowhere", "small", "Connection: close"))
			c.answer().check(t, 404)
			<-c.closed
			if time.Since(f.began) != 0 {
				t.Error("the connection is kept for nobody")
			}
		})
	})

	t.Run("sent in the end", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := serve(t, Config{Workers: 1, Queue: 1}, nil)
			c := f.dial()
			c.send(request("POST", "/nowhere", "", "Content-Length: 100"))
			time.Sleep(writeTimeout + 10*time.Second)
			c.send(strings.Repeat("x", 100))
			c.answer().check(t, 404)
			time.Sleep(toSend + time.Second)
			c.do(200, "GET", "/healthz", "")
		})
	})

	t.Run("while stopping", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := serve(t, Config{Workers: 1, Queue: 1}, nil)
			f.dial().do(202, "POST", "/bbb", sleepFor(3600))
			f.stop()
			synctest.Wait()
			c := f.dial()
			c.send(request("POST", "/bbb", "", "Content-Length: 100", "Expect: 100-continue"))
			c.answer().check(t, 503)
			f.at("answered", 0)
		})
	})
}

// pieces writes n pieces of a size and tells the error of the first that fails.
func pieces(n, size int, failed chan<- error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		for range n {
			if _, err := w.Write(make([]byte, size)); err != nil {
				failed <- err
				return
			}
		}
		failed <- nil
	}
}

func TestSlowReader(t *testing.T) {
	// Nothing is read at all.
	for _, test := range []struct {
		name    string
		n, size int
		fails   bool
	}{
		{"large", 100, 64 << 10, true},
		{"one large piece", 1, 10 << 20, true},
		{"small", 1, 100, false}, // written when the handler is done
		{"empty", 0, 0, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				failed := make(chan error, 1)
				f := serve(t, Config{Workers: 1, Queue: 1}, map[string]http.HandlerFunc{"GET /big": pieces(test.n, test.size, failed)})
				c := f.dial()
				c.send(request("GET", "/big", ""))
				if err := <-failed; (err != nil) != test.fails {
					t.Errorf("the handler's writes: %v", err)
				}
				<-c.closed
				f.at("closed", writeTimeout)
			})
		})
	}

	for _, test := range []struct {
		name, request string
		closed        time.Duration
	}{
		{"404", request("GET", "/nowhere", ""), writeTimeout},
		{"202", request("POST", "/bbb", sleepFor(0)), writeTimeout},
		{"400", request("POST", "/bbb", "nonsense"), writeTimeout},
		// What net/http answers before a handler sees it.
		{"no request", "garbage\r\n\r\n", writeTimeout},
		{"header too large", request("GET", "/", "", "X: "+strings.Repeat("x", 80<<10)), writeTimeout},
		{"unknown expectation", request("GET", "/", "", "Expect: miracle"), writeTimeout},
		{"100 Continue", request("POST", "/bbb", "", "Content-Length: 16", "Expect: 100-continue"), toSend},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := serve(t, Config{Workers: 1, Queue: 1}, nil)
				c := f.dial()
				go io.WriteString(c.conn, test.request)
				<-c.closed
				f.at("closed", test.closed)
			})
		})
	}

	// Whoever reads at the least rate may take as long as that takes. Whoever is
	// slower may not, however small the pieces are and however fast a single one.
	for _, test := range []struct {
		name  string
		n     int // bytes that are read at once
		every time.Duration
		cut   bool
	}{
		{"steady", rate, time.Second, false},
		{"in bursts", 20 * rate, 20 * time.Second, false},
		{"trickle", 1000, time.Second, true},
		{"half the rate", rate / 2, time.Second, true},
		{"half the rate in bursts", 10 * rate, 20 * time.Second, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const n = 8 << 20
				failed := make(chan error, 1)
				f := serve(t, Config{Workers: 1, Queue: 1}, map[string]http.HandlerFunc{"GET /big": pieces(n/1000, 1000, failed)})
				c := f.dial()
				c.send(request("GET", "/big", "", "Connection: close"))
				read := 0
				for {
					time.Sleep(test.every)
					m, err := io.CopyN(io.Discard, c.conn, int64(test.n))
					read += int(m)
					if err != nil {
						break
					}
				}
				took := time.Since(f.began)
				if err := <-failed; (err != nil) != test.cut {
					t.Errorf("%d bytes read in %v, the handler's error %v", read, took, err)
				}
				if test.cut && took > 2*writeTimeout+20*time.Second {
					t.Errorf("cut off after %v", took)
				}
				if !test.cut && took < n/rate*time.Second*9/10 {
					t.Errorf("all read in %v, too fast to show something", took)
				}
			})
		})
	}
}

// That a client has read much fast gives it no right to stand still for long.
func TestSlowReaderStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failed := make(chan error, 1)
		f := serve(t, Config{Workers: 1, Queue: 1}, map[string]http.HandlerFunc{"GET /big": pieces(16, 1<<20, failed)})
		c := f.dial()
		c.send(request("GET", "/big", ""))
		io.CopyN(io.Discard, c.conn, 8<<20)
		if err := <-failed; err == nil {
			t.Error("a client that has stopped reading is waited for")
		}
		f.at("cut off", writeTimeout)
	})
}

// A response may come in pieces with long pauses between them.
func TestPauses(t *testing.T) {
	const pause = 3 * writeTimeout
	synctest.Test(t, func(t *testing.T) {
		failed := make(chan error, 1)
		f := serve(t, Config{Workers: 1, Queue: 1}, map[string]http.HandlerFunc{"GET /events": func(w http.ResponseWriter, r *http.Request) {
			conn := http.NewResponseController(w)
			failed <- func() error {
				io.WriteString(w, "one ")
				if err := conn.Flush(); err != nil {
					return err
				}
				time.Sleep(pause)
				io.WriteString(w, "two ") // stays in a buffer
				time.Sleep(pause)
				if err := conn.Flush(); err != nil {
					return err
				}
				time.Sleep(pause)
				_, err := io.WriteString(w, "three")
				time.Sleep(pause)
				return err
			}()
		}})
		c := f.dial()
		c.send(request("GET", "/events", ""))
		a, err := c.receive()
		if a.body != "one two three" || err != nil {
			t.Errorf("%q, %v", a.body, err)
		}
		if err := <-failed; err != nil {
			t.Errorf("the handler's write: %v", err)
		}
		f.at("answered", 4*pause)
	})
}

// A connection may be idle for longer than any other time-out lasts.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := serve(t, Config{Workers: 1, Queue: 1}, nil)
		c := f.dial()
		const pause = 100 * time.Second // more than writeTimeout, and than toSend
		c.do(200, "GET", "/healthz", "")
		time.Sleep(pause)
		c.do(200, "POST", "/aaa", sleepFor(100))
		time.Sleep(pause)
		for range 2 { // the server writes before it has read the body
			c.send(request("POST", "/aaa", "", "Content-Length: 16", "Expect: 100-continue"))
			if a := c.answer(); a.status != 100 {
				t.Fatalf("%+v, want 100 Continue", a)
			}
			time.Sleep(60 * time.Second)
			c.send(sleepFor(0))
			c.answer().check(t, 200)
			time.Sleep(pause)
		}
		c.do(404, "POST", "/nowhere", "x")
		time.Sleep(pause)
		c.do(400, "POST", "/bbb", "x")
		idle := time.Now()
		<-c.closed
		if got := time.Since(idle); got != idleTimeout {
			t.Errorf("closed after %v, want %v", got, idleTimeout)
		}
	})
}

// A request waits for a place only so long, and is told to come again. Its
// connection ends: so has the context that all its requests have.
func TestWaitForPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := serve(t, Config{Workers: 1, Queue: 0}, nil)
		f.dial().do(202, "POST", "/bbb", sleepFor(3600))
		c, work := f.dial(), f.dial()
		work.send(request("POST", "/aaa", sleepFor(3600))) // it is at work, and does not wait
		c.send(request("POST", "/bbb", sleepFor(0)))
		time.Sleep(placeTimeout - time.Second)
		later := f.dial()
		later.send(request("POST", "/bbb", sleepFor(0)))
		a := c.answer()
		a.check(t, 503)
		if !a.close || a.header.Get("Retry-After") == "" {
			t.Errorf("%v; want Retry-After, and the end of the connection", a.header)
		}
		<-c.closed
		f.at("answered", placeTimeout)
		later.answer().check(t, 503)
		f.at("the later one answered", 2*placeTimeout-time.Second)
		work.answer().check(t, 200)
		if got := f.d.Stats().Accepted; got != 1 {
			t.Errorf("%d jobs accepted, want 1", got)
		}
	})
}

// Behind Queued the limit is one of the wait for a worker, not of the work.
func TestWaitForWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := serve(t, Config{Workers: 1, Queue: 9}, nil)
		first, second := f.dial(), f.dial()
		first.send(request("POST", "/queued", sleepFor(3600)))
		synctest.Wait()
		second.send(request("POST", "/queued", sleepFor(0)))
		second.answer().check(t, 503)
		f.at("answered", placeTimeout)
		first.answer().check(t, 200)
		f.at("the first one answered", time.Hour)
		first.do(200, "POST", "/queued", sleepFor(0))
	})
}

// An accepted job that runs when its request is over lifts no limit of another
// request on its connection.
func TestAcceptedJobLiftsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := serve(t, Config{Workers: 1, Queue: 1}, nil)
		c, other := f.dial(), f.dial()
		other.do(202, "POST", "/bbb", sleepFor(60))
		c.do(202, "POST", "/bbb", sleepFor(3600)) // begins in a minute
		other.send(request("POST", "/bbb", sleepFor(0)))
		synctest.Wait()
		c.send(request("POST", "/bbb", sleepFor(0)))
		other.answer().check(t, 202)
		f.at("a place became free", time.Minute)
		c.answer().check(t, 503)
		f.at("answered", placeTimeout)
	})
}

// A header has a bound on its lines too.
func TestHeaderLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := serve(t, Config{Workers: 1, Queue: 1}, nil)
		few := strings.Split(strings.Repeat("A: b\n", 120)+"A: b", "\n")
		c := f.dial()
		for range 2 {
			c.do(200, "GET", "/healthz", "", few...)
		}
		c = f.dial()
		go io.WriteString(c.conn, strings.TrimSuffix(request("GET", "/healthz", "", append(few, few...)...), "\r\n"))
		a := c.answer()
		a.check(t, 431)
		f.at("answered before the header's end", 0)
		<-c.closed
		f.dial().do(200, "GET", "/healthz", "")
	})
}
