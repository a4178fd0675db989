package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast"
	"holdfast/internal/budget"
	"holdfast/internal/memtest"
	"holdfast/internal/proctest"
	"holdfast/internal/server"
)

// patience bounds whatever is waited for here.
const patience = proctest.Patience

// A fixture is a server as package command wires it, with a service behind it. Both are
// on the network, since the gateway is a client of its own.
type fixture struct {
	t        *testing.T
	g        *Gateway
	front    string // URL
	upstream *httptest.Server
	opened   atomic.Int64 // connections to the upstream
	d        *holdfast.Dispatcher
	stop     func() error
	log      memtest.Log
	memory   *budget.Budget
}

// through starts a server with config.Workers workers and a queue. Its gateway has what
// else is in gateway.
func through(t *testing.T, config server.Config, gateway Config, upstream http.HandlerFunc) *fixture {
	t.Helper()
	f := &fixture{t: t}
	f.upstream = httptest.NewUnstartedServer(upstream)
	f.upstream.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			f.opened.Add(1)
		}
	}
	f.upstream.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	f.upstream.Start()
	t.Cleanup(f.upstream.Close)
	if gateway.Upstream == nil {
		target, err := url.Parse(f.upstream.URL)
		if err != nil {
			t.Fatal(err)
		}
		gateway.Upstream = target
	}
	f.serve(config, gateway)
	return f
}

func (f *fixture) serve(c server.Config, gateway Config) {
	f.t.Helper()
	if c.MaxResponse == 0 {
		c.MaxResponse = 8 << 20
	}
	if c.Patience == 0 {
		c.Patience = -1 // clients leave at once here, which would be learned
	}
	if c.Drain == 0 {
		c.Drain = 5 * time.Second
	}
	c.MaxBody, c.RetainBytes, c.RetainJobs, c.Retain, c.MaxConns = 1<<20, 64<<20, 1000, time.Hour, 1000
	log := slog.New(slog.NewTextHandler(&f.log, nil))
	config := c.Dispatcher()
	config.Logger = log
	var err error
	if f.d, err = holdfast.New(config); err != nil {
		f.t.Fatal(err)
	}
	jobs, err := holdfast.NewJobs(f.d, c.Jobs())
	if err != nil {
		f.t.Fatal(err)
	}
	mux := http.NewServeMux()
	s := server.New(f.d, mux, c, log)
	f.memory = budget.Of(jobs.Async(http.NotFoundHandler()))
	s.Count(f.memory)
	mux.Handle("/jobs/", jobs)
	gateway.Workers, gateway.MaxBody, gateway.MaxResponse, gateway.Logger = c.Workers, c.MaxBody, c.MaxResponse, log
	if gateway.Idle == 0 {
		gateway.Idle = time.Minute
	}
	f.g = New(gateway)
	s.Below("/sync", s.Work(f.g.Route("/sync", jobs.Queued)))
	s.Below("/async", s.Work(f.g.Route("/async", jobs.Async)))
	mux.Handle("POST /echo", f.g.NotAgain(jobs.Async(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }))))

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.t.Fatal(err)
	}
	f.front = "http://" + l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, l, nil, c.Drain) }()
	f.stop = sync.OnceValue(func() error {
		f.g.Release()
		cancel()
		return <-ended
	})
	f.t.Cleanup(func() {
		gatewayClient.CloseIdleConnections()
		f.stop()
		if f.t.Failed() {
			f.t.Log(f.log.String())
		}
	})
}

// bare returns a Gateway without a server.
func bare(upstream *url.URL, workers int, maxResponse int64) *Gateway {
	return New(Config{Upstream: upstream, Workers: workers, MaxResponse: maxResponse, Idle: time.Minute, Logger: slog.New(slog.DiscardHandler)})
}

// client follows no redirects and adds nothing.
var gatewayClient = &http.Client{
	Transport:     &http.Transport{DisableCompression: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

func (g *fixture) request(method, path string, body io.Reader) *http.Request {
	r, err := http.NewRequest(method, g.front+path, body)
	if err != nil {
		g.t.Fatal(err)
	}
	return r
}

// modes are the two ways through the gateway.
var modes = []string{"/sync", "/async"}

// do sends a request and returns the response of the upstream, or why there is
// none, and the body.
func (g *fixture) do(r *http.Request) (*http.Response, string) {
	res, err := gatewayClient.Do(r)
	if err != nil {
		g.t.Errorf("%s %s: %v", r.Method, r.URL, err)
		return &http.Response{}, ""
	}
	body, err := io.ReadAll(res.Body)
	res.Body.Close()
	if strings.HasPrefix(r.URL.Path, "/async") && res.StatusCode == 202 {
		method := "GET"
		if r.Method == "HEAD" {
			method = "HEAD"
		}
		r := g.request(method, res.Header.Get("Location")+"/response", nil)
		r.Header.Set("Prefer", "wait=60")
		return g.do(r)
	}
	if err != nil {
		g.t.Errorf("%s %s: %v", r.Method, r.URL, err)
	}
	return res, string(body)
}

func (g *fixture) problem(mode string, res *http.Response, body string, status int, says string) {
	g.t.Helper()
	var p struct {
		Detail string
		Status int
		Cause  int `json:"cause_status"`
	}
	err := json.Unmarshal([]byte(body), &p)
	if res.Header.Get("Job-State") == "failed" { // what is kept is final
		if p.Cause != status {
			g.t.Errorf("%s: %s, want the cause_status %d", mode, body, status)
		}
		status = http.StatusGone
	}
	if err != nil || res.StatusCode != status || p.Status != status || !strings.Contains(p.Detail, says) || res.Header.Get("Content-Type") != "application/problem+json" {
		g.t.Errorf("%s: %d %v %.200s, want a problem %d that says %q", mode, res.StatusCode, res.Header, body, status, says)
	}
	if u, _ := url.Parse(g.upstream.URL); strings.Contains(body, u.Host) || strings.Contains(body, "dial") {
		g.t.Errorf("%s: it tells of the upstream: %s", mode, body)
	}
}

type received struct {
	method, uri, host, body string
	header, trailer         http.Header
}

func TestRequest(t *testing.T) {
	got := make(chan received, 1)
	g := through(t, server.Config{Workers: 2, Queue: 10}, Config{}, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- received{r.Method, r.RequestURI, r.Host, string(body), r.Header, r.Trailer}
	})
	upstream, _ := url.Parse(g.upstream.URL)
	front, _ := url.Parse(g.front)
	for _, mode := range modes {
		for _, target := range []string{"/", "/a/b", "/a%2Fb/c", "/%2Fa", "/a%20b", "/a/", "/?q=1&q=2", "/a?b=%2F&c", "/a//b", "/a/../b", "/a/./b", "/sync/a", "/a?", "/a?b=1;c=2", "/a?b=%zz&a=1"} {
			if g.do(g.request("GET", mode+target, nil)); true {
				if s := <-got; s.uri != target && s.uri != strings.TrimSuffix(target, "?") {
					t.Errorf("%s%s came as %s", mode, target, s.uri)
				}
			}
		}
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"} {
			body := strings.Repeat("body ", 10_000)
			r := g.request(method, mode+"/x", strings.NewReader(body))
			for name, value := range map[string]string{
				"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Host": "evil", "X-Forwarded-Proto": "gopher", "X-Forwarded-Port": "6", "X-Real-Ip": "6.6.6.6", "Forwarded": "for=6.6.6.6",
				"Connection": "X-Hop, keep-alive", "X-Hop": "1", "Keep-Alive": "timeout=5", "Proxy-Authorization": "Basic x", "Proxy-Connection": "x", "Te": "gzip",
				"X-Kept": "yes", "Authorization": "Bearer t", "Cookie": "a=b", "Accept-Encoding": "br", "Content-Type": "text/x", "Prefer": "wait=60, handling=strict",
			} {
				r.Header.Set(name, value)
			}
			r.Header["X-Many"] = []string{"1", "2"}
			r.Header["User-Agent"] = []string{"me"}
			g.do(r)
			s := <-got
			if s.method != method || s.host != upstream.Host || s.body != body {
				t.Errorf("%s: %s, host %s, %d bytes", method, s.method, s.host, len(s.body))
			}
			for name, want := range map[string]string{
				"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": front.Host, "X-Forwarded-Proto": "http", "X-Forwarded-Prefix": mode, "X-Forwarded-Port": "", "X-Real-Ip": "", "Forwarded": "",
				"Connection": "", "X-Hop": "", "Keep-Alive": "", "Proxy-Authorization": "", "Proxy-Connection": "", "Te": "",
				"X-Kept": "yes", "Authorization": "Bearer t", "Cookie": "a=b", "Accept-Encoding": "br", "Content-Type": "text/x", "Prefer": "handling=strict",
				"X-Many": "1|2", "User-Agent": "me", "Content-Length": fmt.Sprint(len(body)),
			} {
				if value := strings.Join(s.header[name], "|"); value != want {
					t.Errorf("%s%s: %s is %q, want %q", method, mode, name, value, want)
				}
			}
		}
		// One of unknown length.
		g.do(g.request("POST", mode+"/x", io.MultiReader(strings.NewReader("one "), strings.NewReader("two"))))
		if s := <-got; s.body != "one two" {
			t.Errorf("%q, %v", s.body, s.header)
		}
	}
}

func TestResponse(t *testing.T) {
	g := through(t, server.Config{Workers: 2, Queue: 10}, Config{}, func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h["X-Many"] = []string{"1", "2"}
		h.Set("Set-Cookie", "a=b")
		switch r.URL.Path {
		case "/redirect":
			h.Set("Location", "/elsewhere")
			w.WriteHeader(307)
		case "/none":
			w.WriteHeader(204)
		case "/unchanged":
			h.Set("Etag", `"x"`)
			w.WriteHeader(304)
		case "/hop":
			h.Set("Connection", "X-Hop")
			h.Set("X-Hop", "1")
			h.Set("Keep-Alive", "timeout=3")
			h.Set("Proxy-Authenticate", "Basic")
			io.WriteString(w, "hop")
		case "/trailer":
			h.Set("Trailer", "X-Declared")
			io.WriteString(w, "part one, ")
			w.(http.Flusher).Flush()
			io.WriteString(w, "part two")
			h.Set("X-Declared", "d")
			h.Set(http.TrailerPrefix+"X-Undeclared", "u")
		case "/early":
			h.Set("Link", "</a>")
			w.WriteHeader(103)
			w.WriteHeader(500)
			io.WriteString(w, "its own 500")
		default:
			h.Set("Content-Type", "text/odd")
			h.Set("Content-Encoding", "br")
			w.WriteHeader(418)
			io.WriteString(w, strings.Repeat("tea", 10_000))
		}
	})
	for _, mode := range modes {
		for _, test := range []struct {
			method, path string
			status       int
			length       int64
			body         string
			header       map[string]string
		}{
			{"GET", "/", 418, -1, strings.Repeat("tea", 10_000), map[string]string{"Content-Type": "text/odd", "Content-Encoding": "br"}},
			{"GET", "/redirect", 307, 0, "", map[string]string{"Location": mode + "/elsewhere"}},
			{"GET", "/none", 204, 0, "", nil},
			{"GET", "/unchanged", 304, -2, "", map[string]string{"Etag": `"x"`}},
			{"GET", "/hop", 200, 3, "hop", map[string]string{"X-Hop": "", "Keep-Alive": "", "Proxy-Authenticate": "", "Connection": ""}},
			{"GET", "/early", 500, 11, "its own 500", map[string]string{"Link": "</a>"}},
			{"HEAD", "/hop", 200, 3, "", map[string]string{"X-Hop": ""}},
		} {
			res, body := g.do(g.request(test.method, mode+test.path, nil))
			if res.StatusCode != test.status || body != test.body || test.length > -2 && res.ContentLength != test.length {
				t.Errorf("%s%s: %d, %d bytes of %d; want %d, %d of %d", mode, test.path, res.StatusCode, len(body), res.ContentLength, test.status, len(test.body), test.length)
			}
			if strings.Join(res.Header["X-Many"], "|") != "1|2" || res.Header.Get("Set-Cookie") != "a=b" {
				t.Errorf("%s%s: %v", mode, test.path, res.Header)
			}
			for name, want := range test.header {
				if got := res.Header.Get(name); got != want {
					t.Errorf("%s%s: %s is %q, want %q", mode, test.path, name, got, want)
				}
			}
			if want := map[string]string{"/sync": "", "/async": "done"}[mode]; res.Header.Get("Job-State") != want {
				t.Errorf("%s%s: Job-State %q", mode, test.path, res.Header.Get("Job-State"))
			}
		}
		res, body := g.do(g.request("GET", mode+"/trailer", nil))
		if body != "part one, part two" || res.Trailer.Get("X-Declared") != "d" || res.Trailer.Get("X-Undeclared") != "u" {
			t.Errorf("%s: %q, trailer %v", mode, body, res.Trailer)
		}
	}
}

func TestUpstreamFails(t *testing.T) {
	const limit = 100_000
	g := through(t, server.Config{Workers: 2, Queue: 10, MaxResponse: limit}, Config{}, func(w http.ResponseWriter, r *http.Request) {
		hijack := func(text string) {
			c, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				io.WriteString(c, text)
				c.Close()
			}
		}
		switch r.URL.Path {
		case "/closes":
			hijack("")
		case "/garbage":
			hijack("not HTTP at all\r\n\r\n")
		case "/breaks":
			hijack("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly this")
		case "/breaks-chunked":
			hijack("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n10\r\nhal")
		case "/huge-header":
			w.Header().Set("X-Huge", strings.Repeat("x", 128<<10))
		case "/large":
			w.Write(make([]byte, limit+1))
		case "/nearly": // with the header it is too large
			w.Write(make([]byte, limit-10))
		case "/endless":
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 10_000)); err != nil {
					return
				}
			}
		case "/fits":
			w.Write(make([]byte, limit-1000))
		}
	})
	for _, mode := range modes {
		for _, path := range []string{"/closes", "/garbage", "/breaks", "/breaks-chunked", "/huge-header", "/large", "/endless"} {
			res, body := g.do(g.request("POST", mode+path, strings.NewReader("x")))
			says := "the upstream has not answered, or not completely"
			if path == "/large" || path == "/endless" {
				says = fmt.Sprintf("too large; want at most %d bytes", limit)
			}
			g.problem(mode+path, res, body, 502, says)
		}
		res, body := g.do(g.request("POST", mode+"/nearly", nil))
		g.problem(mode+"/nearly", res, body, 500, fmt.Sprint(limit))
		if res, body := g.do(g.request("POST", mode+"/fits", nil)); res.StatusCode != 200 || len(body) != limit-1000 {
			t.Errorf("%s: %d, %d bytes", mode, res.StatusCode, len(body))
		}
	}
	if text := g.log.String(); strings.Count(text, "upstream failed") != 1 || !strings.Contains(text, "method=POST path=/closes error=EOF") || strings.Count(text, "upstream answers again") != 1 {
		t.Errorf("log: %s", text)
	}
	// One that is not there.
	g.upstream.Close()
	for _, mode := range modes {
		res, body := g.do(g.request("GET", mode+"/down", nil))
		g.problem(mode+"/down", res, body, 502, "upstream has not answered")
	}
}

// What a resize to the same number, or a pause, would throw away is needed again;
// one that is refused changes nothing.
func TestResize(t *testing.T) {
	d, err := holdfast.New(holdfast.Config{Workers: 4, Queue: 200})
	if err != nil {
		t.Fatal(err)
	}
	g := bare(&url.URL{Scheme: "http", Host: "upstream"}, 4, 1)
	before := g.work.conns.Load()
	for _, n := range []int{4, 0, 4, -1} {
		if err := g.Resize(d, n); g.work.conns.Load() != before || (err != nil) != (n < 0) {
			t.Errorf("with %d workers the connections are thrown away, or %v", n, err)
		}
	}
	sizes := func(workers, conns int) {
		t.Helper()
		if n, have := g.work.conns.Load().MaxConnsPerHost, d.Stats().Workers; n != conns || have != workers || g.work.size() != conns {
			t.Errorf("%d connections and %d workers, want %d and %d", n, have, conns, workers)
		}
	}
	if err := g.Resize(d, 7); err != nil {
		t.Error(err)
	}
	sizes(7, 7)
	if err := g.Resize(d, 1e9); err == nil {
		t.Error("a thousand million workers")
	}
	sizes(7, 7)
	d.Shutdown(t.Context())
	if err := g.Resize(d, 9); !errors.Is(err, holdfast.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
	sizes(0, 7)
}

// A job that begins as soon as there are more workers must find a connection: for
// one of those there were before it would wait until that is free.
func TestGrows(t *testing.T) {
	const workers = 32
	begun, hold := make(chan struct{}), make(chan struct{})
	upstream := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		begun <- struct{}{}
		<-hold
	}))
	defer upstream.Close()
	target, err := url.Parse(upstream.URL)
	if err != nil {
		t.Fatal(err)
	}
	d, err := holdfast.New(holdfast.Config{Workers: 1, Queue: 200})
	if err != nil {
		t.Fatal(err)
	}
	g := bare(target, 1, 1<<20)
	p := &route{g, &g.work, "/sync"}
	resize := func(n int) {
		t.Helper()
		if err := g.Resize(d, n); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 {
		for range workers {
			d.Go(t.Context(), func(ctx context.Context) error {
				p.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, "GET", "/", nil))
				return nil
			})
		}
		<-begun
		resize(workers)
		for n := range workers - 1 {
			select {
			case <-begun:
			case <-time.After(patience):
				close(hold)
				t.Fatalf("%d of %d workers have got a connection", 1+n, workers)
			}
		}
		for range workers {
			hold <- struct{}{}
		}
		resize(1)
	}
	if _, err := d.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

// A request that was given a connection just before a resize must not leave it to
// others: then there would be more than workers.
func TestResizeWhileInUse(t *testing.T) {
	var open, most atomic.Int64
	upstream := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	upstream.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			most.Store(max(most.Load(), open.Add(1)))
		case http.StateClosed:
			open.Add(-1)
		}
	}
	upstream.Start()
	defer upstream.Close()
	target, err := url.Parse(upstream.URL)
	if err != nil {
		t.Fatal(err)
	}
	g := bare(target, 8, 1<<20)
	p := &route{g, &g.work, "/sync"}
	var users sync.WaitGroup
	for range 8 {
		users.Go(func() {
			for range 200 {
				p.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
			}
		})
	}
	for n := range 100 {
		g.work.resize(7 + n%2)
	}
	users.Wait()
	g.work.resize(1)
	for end := time.Now().Add(patience); open.Load() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d connections are left when nobody uses them; there were %d", open.Load(), most.Load())
		}
	}
}

// A time-out that is not the job's, as that of the dial, is a 504 too.
func TestTimeouts(t *testing.T) {
	g := bare(&url.URL{Scheme: "http", Host: "upstream"}, 1, 1)
	for _, err := range []error{&net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}, fmt.Errorf("round trip: %w", context.DeadlineExceeded)} {
		rec := httptest.NewRecorder()
		(&route{g, &g.work, ""}).fail(rec, httptest.NewRequest("GET", "/", nil), err)
		if rec.Code != 504 || rec.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%v: %d %s", err, rec.Code, rec.Body)
		}
	}
}

// The job's time-out is a 504, before the header and in the middle of the body.
func TestTooLate(t *testing.T) {
	var left atomic.Int64
	g := through(t, server.Config{Workers: 2, Queue: 10, JobTimeout: 100 * time.Millisecond}, Config{Abandon: true}, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/body" {
			io.WriteString(w, "a part")
			w.(http.Flusher).Flush()
		}
		<-r.Context().Done() // the gateway hangs up
		left.Add(1)
	})
	for _, mode := range modes {
		for _, path := range []string{"/header", "/body"} {
			res, body := g.do(g.request("GET", mode+path, nil))
			g.problem(mode+path, res, body, 504, "")
		}
	}
	g.stop()
	g.upstream.Close() // waits for its handlers
	if left.Load() != 4 {
		t.Errorf("the upstream was left %d times, want 4", left.Load())
	}
}

// What a client asks of its own connection is not for the upstream: it would refuse, or
// take the worker's connection with it.
func TestUpgrade(t *testing.T) {
	g := through(t, server.Config{Workers: 1, Queue: 10}, Config{}, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			io.WriteString(w, "plain")
			return
		}
		c, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		io.WriteString(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		rw.Flush()
		io.Copy(io.Discard, rw)
	})
	for _, mode := range modes {
		r := g.request("GET", mode+"/ws", nil)
		r.Header.Set("Connection", "Upgrade")
		r.Header.Set("Upgrade", "websocket")
		res, body := g.do(r)
		if res.StatusCode != 200 || body != "plain" {
			t.Errorf("%s: %d %s", mode, res.StatusCode, body)
		}
		if res, body := g.do(g.request("GET", mode+"/", nil)); res.StatusCode != 200 || body != "plain" {
			t.Errorf("%s: the only worker is not free: %d %s", mode, res.StatusCode, body)
		}
	}
}

// The upstream never sees more requests at once than there are workers, and they
// share as many connections.
func TestBound(t *testing.T) {
	const workers, clients, each = 4, 50, 6
	var now, most, total atomic.Int64
	full := make(chan struct{})
	reached := sync.OnceFunc(func() { close(full) })
	g := through(t, server.Config{Workers: workers, Queue: 20}, Config{}, func(w http.ResponseWriter, r *http.Request) {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		if n == workers {
			reached()
		}
		<-full // so that as many as may be are there at once
		total.Add(1)
		io.Copy(w, r.Body)
	})
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			for k := range each {
				mode := modes[(i+k)%2]
				want := fmt.Sprint(mode, i, k)
				if res, body := g.do(g.request("POST", mode+"/x", strings.NewReader(want))); res.StatusCode != 200 || body != want {
					t.Errorf("%d %s, want %s", res.StatusCode, body, want)
				}
			}
		})
	}
	wg.Wait()
	if most.Load() != workers || total.Load() != clients*each {
		t.Errorf("%d at once of %d, want %d of %d", most.Load(), total.Load(), workers, clients*each)
	}
	if n := g.opened.Load(); n > workers {
		t.Errorf("%d requests took %d connections", total.Load(), n)
	}
}

// The bound is that of the upstream: a request is there until its handler has
// returned, whenever the response was complete.
func TestBoundAtTheUpstream(t *testing.T) {
	const workers = 3
	for _, connection := range []string{"keep-alive", "close"} {
		var now, most atomic.Int64
		g := through(t, server.Config{Workers: workers, Queue: 100}, Config{}, func(w http.ResponseWriter, r *http.Request) {
			n := now.Add(1)
			defer now.Add(-1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			w.Header().Set("Connection", connection)
			w.Header().Set("Content-Length", "4")
			io.WriteString(w, "done")
			http.NewResponseController(w).Flush()
			time.Sleep(5 * time.Millisecond) // the log, say
		})
		var wg sync.WaitGroup
		for range 60 {
			wg.Go(func() {
				if res, body := g.do(g.request("GET", "/sync/x", nil)); res.StatusCode != 200 || body != "done" {
					t.Errorf("%d %s", res.StatusCode, body)
				}
			})
		}
		wg.Wait()
		if most.Load() != workers {
			t.Errorf("%s: %d at once, want %d", connection, most.Load(), workers)
		}
	}
}

// One after the other they need one connection.
func TestKeepsConnections(t *testing.T) {
	g := through(t, server.Config{Workers: 1, Queue: 10}, Config{}, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	for i := range 40 {
		g.do(g.request("POST", modes[i%2]+"/x", bytes.NewReader(make([]byte, i*1000))))
		time.Sleep(time.Millisecond)
	}
	if n := g.opened.Load(); n > 3 {
		t.Errorf("40 requests took %d connections", n)
	}
}

// A client that leaves while its request is queued: the upstream never sees it. With
// Abandon the upstream is told of one that leaves later.
func TestClientLeaves(t *testing.T) {
	seen := make(chan string, 10)
	told := make(chan string, 10)
	release := make(chan struct{})
	g := through(t, server.Config{Workers: 1, Queue: 10}, Config{Abandon: true}, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // before that a server does not notice
		seen <- r.URL.Path
		select {
		case <-r.Context().Done():
			told <- r.URL.Path
		case <-release:
		}
	})
	send := func(path string) (leave func()) {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() {
			res, err := gatewayClient.Do(g.request("POST", path, strings.NewReader("x")).WithContext(ctx))
			if err == nil {
				res.Body.Close()
			}
			done <- err
		}()
		return func() {
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
	until := func(what string, ok func(holdfast.Stats) bool) {
		t.Helper()
		for range 10_000 {
			if ok(g.d.Stats()) {
				return
			}
			time.Sleep(time.Millisecond)
		}
		t.Fatalf("never: %s", what)
	}
	leaveFirst := send("/sync/first")
	if got := <-seen; got != "/first" {
		t.Fatal(got)
	}
	leaveSecond := send("/sync/second")
	until("the second is queued", func(s holdfast.Stats) bool { return s.Queued == 1 })
	leaveSecond()
	until("the second is canceled", func(s holdfast.Stats) bool { return s.Queued == 0 && s.Canceled == 1 })
	leaveFirst()
	select {
	case got := <-told:
		if got != "/first" {
			t.Errorf("%s was left", got)
		}
	case <-time.After(10 * time.Second):
		t.Error("the upstream was not told")
	}
	close(release)
	if res, _ := g.do(g.request("POST", "/sync/third", nil)); res.StatusCode != 200 {
		t.Errorf("%d", res.StatusCode)
	}
	if got := <-seen; got != "/third" || len(seen) > 0 {
		t.Errorf("the upstream saw %s", got)
	}
	if strings.Contains(g.log.String(), "/first") {
		t.Errorf("a client that leaves is logged as a fault of the upstream: %s", g.log.String())
	}
}

// A gateway has no more connections open than it may, those included that are being
// closed.
func TestGatewayLimit(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	g := New(Config{Files: 1, Logger: slog.New(slog.DiscardHandler)})
	dial := func(ctx context.Context, addr string) (net.Conn, error) {
		return g.work.dial(ctx, new(net.Dialer), "tcp", addr)
	}
	if _, err := dial(t.Context(), "127.0.0.1:bad"); err == nil {
		t.Fatal("a bad address is dialed")
	}
	first, err := dial(t.Context(), l.Addr().String())
	if err != nil {
		t.Fatalf("a dial that failed still counts: %v", err)
	}
	gone, leave := context.WithCancel(t.Context())
	leave()
	if c, err := dial(gone, l.Addr().String()); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, %v: there is a second connection", c, err)
	}
	first.Close()
	first.Close()
	second, err := dial(t.Context(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
}
