package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"holdfast/admin"
	"holdfast/internal/proctest"
)

// The tests in this file put proxies that others wrote in front of the gateway, with the
// configurations of deploy. In these the tests change addresses and certificates, and
// add what a user has no need of. Time-outs and buffering are as the files have them,
// else the defaults of the proxy, or of Debian's package.

var held = flag.Bool("held", false, "hold a long poll behind each proxy for as long as the server does")

// A front is a kind of proxy.
type front struct {
	name string
	file string // of its configuration
	args []string

	// chain is what an upstream reads in X-Forwarded-For when a client at 127.0.0.2 has
	// said that it is 6.6.6.6.
	chain string

	// plain and tls change the configuration for a proxy without TLS, and with it. Each
	// change is an old text and a new one. Names in capitals stand for addresses.
	plain, tls []string
}

// Each proxy leads / to a server that is at the root, and /queue/ to one that is below
// that prefix, which the proxy strips and says nothing about. Without TLS there are also
// /told/, which is the first server again, and it is said, and /loop/, which leads to a
// server whose upstream is the proxy.
var fronts = []front{
	{
		name: "nginx", file: "nginx.conf", chain: "6.6.6.6, 127.0.0.2, 127.0.0.1",
		args: []string{"-e", "stderr", "-p", ".", "-c", "nginx.conf"},
		plain: append(nginxAlone,
			"listen 443 ssl;", "listen FRONT;",
			"ssl_certificate /etc/ssl/queue.example.pem;", "",
			"ssl_certificate_key /etc/ssl/queue.example.key;", "",
			"\tlocation / {", `	location /told/ {
		proxy_pass http://ROOT/;
		proxy_set_header Host $http_host;
		proxy_set_header X-Forwarded-Prefix /told;
	}
	location /loop/ { proxy_pass http://LOOP/; }
	location / {`),
		tls: append(nginxAlone,
			"listen 443 ssl;", "listen FRONT ssl;",
			"/etc/ssl/queue.example.pem", "cert.pem",
			"/etc/ssl/queue.example.key", "key.pem"),
	},
	{
		name: "haproxy", file: "haproxy.cfg", chain: "6.6.6.6, 127.0.0.2, 127.0.0.1",
		args: []string{"-db", "-f", "haproxy.cfg"},
		plain: []string{
			"bind :443 ssl crt /etc/haproxy/queue.example.pem", "bind FRONT",
			"\tdefault_backend", `	use_backend told if { path_beg /told/ }
	use_backend loop if { path_beg /loop/ }
	default_backend`,
			"\nbackend holdfast\n", `
backend told
	http-request replace-path /told(/.*) \1
	http-request set-header X-Forwarded-Prefix /told
	server one ROOT
backend loop
	http-request replace-path /loop(/.*) \1
	server one LOOP
backend holdfast
`,
		},
		tls: []string{":443 ssl crt /etc/haproxy/queue.example.pem", "FRONT ssl crt both.pem"},
	},
	{
		name: "caddy", file: "Caddyfile", chain: "127.0.0.2, 127.0.0.1",
		args: []string{"run", "--config", "Caddyfile"},
		plain: []string{
			"queue.example {", `{
	admin off
}
http://FRONT {
	handle_path /told/* {
		reverse_proxy ROOT {
			header_up X-Forwarded-Prefix /told
		}
	}
	handle_path /loop/* {
		reverse_proxy LOOP
	}`,
		},
		tls: []string{
			"queue.example {", `{
	admin off
	auto_https disable_redirects
}
https://FRONT {
	tls cert.pem key.pem`,
		},
	},
}

// nginxAlone makes a whole configuration of what stands in the http block.
var nginxAlone = []string{
	"server {", `daemon off; master_process off; pid nginx.pid; error_log stderr;
events {}
http {
	access_log off;
	client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
server {`,
	"\n}\n", "\n}\n}\n",
}

// configure returns the proxy's configuration after the changes. What a change is for
// must be there, and once: else the test would not be of what users have.
func (p front) configure(t *testing.T, changes []string, addresses ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "deploy", p.file))
	if err != nil {
		t.Fatal(err)
	}
	config := string(text)
	for pair := range slices.Chunk(append(changes[:len(changes):len(changes)], "127.0.0.1:8099", "ROOT", "127.0.0.1:8098", "BELOW"), 2) {
		if n := strings.Count(string(text), pair[0]); n != 1 {
			t.Fatalf("deploy/%s has %q %d times, want once", p.file, pair[0], n)
		}
		config = strings.Replace(config, pair[0], pair[1], 1)
	}
	return strings.NewReplacer(addresses...).Replace(config)
}

// vacant returns an address for a program that has no way to say which port it took. The
// port is none of those that the system gives to whoever asks for any.
func vacant(t *testing.T) string {
	t.Helper()
	for {
		l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", 10_000+rand.IntN(20_000)))
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}
}

// awaitListener waits until a program listens.
func awaitListener(t *testing.T, p *proctest.Process, addr string) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
			return
		}
		select {
		case <-p.Ended:
			t.Fatalf("ended and did not listen: %v", err)
		default:
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// A fronted is a server behind a proxy, and an upstream behind the server.
type fronted struct {
	t     *testing.T
	addr  string // of the proxy
	dir   string // in which the proxy runs
	admin string // of the server at the root
	open  chan struct{}

	mu   sync.Mutex
	seen map[string]int // requests that the upstream has got, by path
}

// behindProxy starts all of them, with TLS between the client and the proxy or without.
func behindProxy(t *testing.T, p front, scheme string) *fronted {
	program := service(t, p.name)
	f := &fronted{t: t, addr: vacant(t), open: make(chan struct{}), seen: make(map[string]int)}
	upstream := httptest.NewServer(f)
	t.Cleanup(upstream.Close)
	serve := func(args ...string) *proctest.Process {
		return proctest.Launch(t, nil, proctest.Build(t), append([]string{
			"-addr", "127.0.0.1:0", "-workers", "1", "-max-body", "8MiB", "-trusted-proxies", "127.0.0.1/32",
		}, args...)...)
	}
	root := serve("-upstream", upstream.URL, "-admin", "127.0.0.1:0")
	below := serve("-upstream", upstream.URL, "-admin", "", "-public-url", scheme+"://"+f.addr+"/queue")
	loop := serve("-upstream", "http://"+f.addr+"/loop/sync", "-admin", "")
	f.admin = root.Admin()

	f.dir = t.TempDir()
	changes := p.plain
	if scheme == "https" {
		certificate(t, f.dir)
		changes = p.tls
	}
	config := p.configure(t, changes, "FRONT", f.addr, "ROOT", root.Addr(), "BELOW", below.Addr(), "LOOP", loop.Addr())
	if err := os.WriteFile(filepath.Join(f.dir, p.file), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	awaitListener(t, proctest.LaunchIn(t, f.dir, []string{"HOME=" + f.dir}, program, p.args...), f.addr)
	return f
}

// ServeHTTP is the upstream.
func (f *fronted) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	f.mu.Lock()
	f.seen[r.URL.Path]++
	f.mu.Unlock()
	switch r.URL.Path {
	case "/gate": // passes one request for each that pass lets through
		select {
		case <-f.open:
			io.WriteString(w, "passed")
		case <-r.Context().Done():
		}
	case "/who":
		io.WriteString(w, strings.Join(r.Header["X-Forwarded-For"], "|"))
	case "/front":
		io.WriteString(w, r.Header.Get("X-Forwarded-Proto")+"://"+r.Header.Get("X-Forwarded-Host")+r.Header.Get("X-Forwarded-Prefix"))
	case "/path":
		w.Header().Set("Location", "/end")
		w.WriteHeader(302)
	case "/own":
		w.Header().Set("Location", "http://"+r.Host+"/end")
		w.WriteHeader(302)
	case "/told":
		w.Header().Set("Location", r.Header.Get("X-Forwarded-Proto")+"://"+r.Header.Get("X-Forwarded-Host")+"/end")
		w.WriteHeader(302)
	case "/prefixed":
		w.Header().Set("Location", r.Header.Get("X-Forwarded-Prefix")+"/end")
		w.WriteHeader(302)
	case "/end":
		io.WriteString(w, "the end")
	case "/echo":
		w.Write(body)
	case "/echo/whole":
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		w.Write(body)
	}
}

// pass lets one request through the gate of the upstream.
func (f *fronted) pass() {
	f.t.Helper()
	select {
	case f.open <- struct{}{}:
	case <-time.After(patience):
		f.t.Fatal("no request is at the gate")
	}
}

// reached returns how many requests for a path the upstream has got.
func (f *fronted) reached(path string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen[path]
}

// counts returns the counts of the server at the root.
func (f *fronted) counts() admin.Counts {
	f.t.Helper()
	var stats admin.Stats
	res, body := do(f.t, "GET", "http://"+f.admin+"/stats", nil)
	if err := json.Unmarshal([]byte(body), &stats); err != nil {
		f.t.Fatalf("%d %s: %v", res.StatusCode, body, err)
	}
	return stats.Dispatcher
}

// await waits until the counts of the server at the root are as they should.
func (f *fronted) await(what string, holds func(admin.Counts) bool) {
	f.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		c := f.counts()
		if holds(c) {
			return
		}
		if time.Now().After(end) {
			f.t.Fatalf("waited for %s; the counts are %+v", what, c)
		}
	}
}

func TestProxies(t *testing.T) {
	proctest.Build(t)
	for _, p := range fronts {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			f := behindProxy(t, p, "http")
			url := "http://" + f.addr
			for _, test := range []struct {
				name string
				run  func(*testing.T)
			}{
				{"follow", func(t *testing.T) { f.follows(t, url, url) }},
				{"prefix", func(t *testing.T) { f.follows(t, url+"/queue", "") }},
				{"redirects", f.redirects},
				{"events", func(t *testing.T) { f.events(t, url); f.events(t, url+"/queue") }},
				{"wait", f.waits},
				{"hold", f.holds},
				{"bodies", f.bodies},
				{"address", func(t *testing.T) { f.address(t, p.chain) }},
				{"origin", f.origin},
				{"spoof", f.spoofs},
				{"loop", f.loop},
				{"leave", f.leaves},
			} {
				t.Run(test.name, func(t *testing.T) {
					outer := f.t
					f.t = t
					defer func() { f.t = outer }()
					test.run(t)
				})
			}
		})
	}
}

// follows submits a job to the server that clients find at base, and follows it by each
// URL that it is told. Relative ones are resolved against origin; without an origin all
// must begin with base.
func (f *fronted) follows(t *testing.T, base, origin string) {
	find := func(what, told string) string {
		t.Helper()
		if origin == "" && !strings.HasPrefix(told, base+"/jobs/") || origin != "" && !strings.HasPrefix(told, "/jobs/") {
			t.Fatalf("%s is %q", what, told)
		}
		return origin + told
	}
	accepted := func(method, path string, body io.Reader) (job string, header http.Header) {
		t.Helper()
		res, text := do(t, method, base+path, body)
		var read struct{ URL string }
		json.Unmarshal([]byte(text), &read)
		job = find("Location", res.Header.Get("Location"))
		if res.StatusCode != 202 || find("url", read.URL) != job || find("Operation-Location", res.Header.Get("Operation-Location")) != job ||
			find("Content-Location", res.Header.Get("Content-Location")) != job+"/response" {
			t.Fatalf("%d %v %s", res.StatusCode, res.Header, text)
		}
		return job, res.Header
	}
	type resource struct {
		State, URL       string
		ResponseURL      string `json:"response_url"`
		ResourceLocation string
	}
	read := func(url string, status int, header ...string) (r resource) {
		t.Helper()
		res, text := do(t, "GET", url, nil, header...)
		if err := json.Unmarshal([]byte(text), &r); err != nil || res.StatusCode != status || r.URL == "" || find("url", r.URL)+"/response" != find("response_url", r.ResponseURL) {
			t.Fatalf("GET %s: %d %s", url, res.StatusCode, text)
		}
		return r
	}

	job, _ := accepted("POST", "/async/gate", strings.NewReader("x"))
	second, _ := accepted("POST", "/bbb", strings.NewReader(endless))
	if r := read(job, 200); r.State != "queued" && r.State != "running" || find("url", r.URL) != job {
		t.Errorf("%+v", r)
	}
	read(job+"/response", 202)
	if res, _ := do(t, "DELETE", second, nil); res.StatusCode != 200 {
		t.Errorf("DELETE of a queued job: %d", res.StatusCode)
	}
	if res, text := do(t, "GET", second+"/response", nil); res.StatusCode != 410 || res.Header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("the response of a canceled job: %d %s", res.StatusCode, text)
	}
	f.pass()
	r := read(job, 200, "Prefer: wait=30")
	if r.State != "done" || find("resourceLocation", r.ResourceLocation) != job+"/response" {
		t.Errorf("%+v", r)
	}
	if res, text := do(t, "GET", find("resourceLocation", r.ResourceLocation), nil); res.StatusCode != 200 || text != "passed" || res.Header.Get("Job-State") != "done" {
		t.Errorf("the response: %d %s %v", res.StatusCode, text, res.Header)
	}
}

// redirects follows where the upstream leads, in answers and in kept responses.
func (f *fronted) redirects(t *testing.T) {
	follower := &http.Client{Timeout: patience}
	for _, prefix := range []string{"", "/queue", "/told"} {
		base := "http://" + f.addr + prefix
		for _, path := range []string{"/path", "/own", "/told", "/prefixed"} {
			res, err := follower.Get(base + "/sync" + path)
			if err != nil {
				t.Errorf("%s: %v", path, err)
				continue
			}
			body, _ := io.ReadAll(res.Body)
			res.Body.Close()
			if res.StatusCode != 200 || string(body) != "the end" || !strings.HasPrefix(res.Request.URL.String(), base+"/sync/") {
				t.Errorf("%s/sync%s leads to %s: %d %s", prefix, path, res.Request.URL, res.StatusCode, body)
			}

			kept, text := do(t, "POST", base+"/async"+path, nil, "Prefer: wait=30")
			to, err := kept.Location()
			if err != nil {
				t.Errorf("%s/async%s: %d %s", prefix, path, kept.StatusCode, text)
				continue
			}
			if again, text := do(t, "POST", to.String(), nil, "Prefer: wait=30"); again.StatusCode != 200 || text != "the end" || !strings.HasPrefix(to.String(), base+"/async/") {
				t.Errorf("%s/async%s leads to %s: %d %s", prefix, path, to, again.StatusCode, text)
			}
		}
	}
}

// events reads the events of a job, each before the next can come.
func (f *fronted) events(t *testing.T, base string) {
	submit := func() string {
		t.Helper()
		res, text := do(t, "POST", base+"/async/gate", nil)
		job, err := res.Location()
		if err != nil || res.StatusCode != 202 {
			t.Fatalf("%d %s", res.StatusCode, text)
		}
		return job.String()
	}
	submit()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", submit(), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Accept", "text/event-stream")
	res, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	expect := func(state string) {
		t.Helper()
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				var job struct{ State string }
				if json.Unmarshal([]byte(data), &job); job.State != state {
					t.Fatalf("%s, want %s", data, state)
				}
				return
			}
		}
		t.Fatalf("%s has not come: %v", state, lines.Err())
	}
	expect("queued")
	f.pass() // the one before
	expect("running")
	f.pass()
	expect("done")
	for lines.Scan() {
		if text := lines.Text(); text != "" {
			t.Errorf("%q after the end", text)
		}
	}
	if err := lines.Err(); err != nil {
		t.Error(err)
	}
}

// waits waits with a request, longer than the proxies would let it.
func (f *fronted) waits(t *testing.T) {
	url := "http://" + f.addr
	for _, wait := range []string{"wait=50", "wait=3600"} {
		res, text := do(t, "POST", url+"/bbb", strings.NewReader(`{"sleep_time":2}`))
		job, err := res.Location()
		if err != nil {
			t.Fatalf("%d %s", res.StatusCode, text)
		}
		res, text = do(t, "GET", job.String(), nil, "Prefer: "+wait)
		if res.StatusCode != 200 || res.Header.Get("Preference-Applied") != "wait=50" || res.Header.Get("Job-State") != "done" {
			t.Errorf("%s: %d %v %s", wait, res.StatusCode, res.Header, text)
		}
	}
	res, text := do(t, "POST", url+"/bbb", strings.NewReader(`{"sleep_time":1}`), "Prefer: wait=20")
	if res.StatusCode != 200 || strings.TrimSpace(text) != `{"sleep_time":1}` || res.Header.Get("Preference-Applied") != "wait=20" {
		t.Errorf("%d %v %s", res.StatusCode, res.Header, text)
	}
}

// holds waits for a job that does not end.
func (f *fronted) holds(t *testing.T) {
	if !*held {
		t.Skip("it takes 50 s; make proxies does it")
	}
	client := &http.Client{Timeout: patience + 50*time.Second}
	r, err := http.NewRequest("POST", "http://"+f.addr+"/async/gate", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Prefer", "wait=3600")
	res, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 202 || res.Header.Get("Preference-Applied") != "wait=50" {
		t.Errorf("%s, header %v", res.Status, res.Header)
	}
	f.pass()
}

// bodies sends large bodies there and back.
func (f *fronted) bodies(t *testing.T) {
	url := "http://" + f.addr
	large := make([]byte, 7<<20)
	rand.NewChaCha8([32]byte{}).Read(large)
	for _, path := range []string{"/echo", "/echo/whole"} {
		for _, mode := range []string{"/sync", "/async"} {
			for _, length := range []string{"known", "unknown"} {
				body := io.Reader(bytes.NewReader(large))
				if length == "unknown" {
					body = chunked(string(large))
				}
				what := fmt.Sprintf("%s%s with a length that is %s", mode, path, length)
				res, got := do(t, "POST", url+mode+path, body, "Expect: 100-continue")
				if mode == "/async" {
					job, err := res.Location()
					if err != nil {
						t.Errorf("%s: %d %.200s", what, res.StatusCode, got)
						continue
					}
					res, got = do(t, "GET", job.String()+"/response", nil, "Prefer: wait=30")
				}
				if res.StatusCode != 200 || got != string(large) {
					t.Errorf("%s: %d, %d bytes of %d, or others", what, res.StatusCode, len(got), len(large))
				}
			}
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for range 5 { // who refuses it hangs up while it comes
		for _, length := range []int64{9 << 20, -1} {
			r, err := http.NewRequestWithContext(ctx, "POST", url+"/async/large", io.NopCloser(bytes.NewReader(make([]byte, 9<<20))))
			if err != nil {
				t.Fatal(err)
			}
			r.ContentLength = length
			res, err := exchange(r, f.addr)
			if err != nil {
				t.Errorf("a body that is too large, length %d: %v", length, err)
				continue
			}
			if res.StatusCode != 413 || res.Header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("a body that is too large, length %d: %s", length, res.Status)
			}
			res.Body.Close()
		}
	}
	if f.reached("/large") > 0 {
		t.Error("the upstream got a body that is too large")
	}
}

// address asks the upstream who the client is.
func (f *fronted) address(t *testing.T, want string) {
	client := &http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}).DialContext,
	}}
	for _, said := range []string{"", "6.6.6.6"} {
		r, err := http.NewRequest("GET", "http://"+f.addr+"/sync/who", nil)
		if err != nil {
			t.Fatal(err)
		}
		want := want
		if said != "" {
			r.Header.Set("X-Forwarded-For", said)
		} else {
			want = strings.TrimPrefix(want, "6.6.6.6, ")
		}
		res, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if who, _ := io.ReadAll(res.Body); string(who) != want {
			t.Errorf("the upstream reads %q, want %q", who, want)
		}
	}
}

// origin sends what a browser does from a page below the proxy, and from elsewhere.
func (f *fronted) origin(t *testing.T) {
	url := "http://" + f.addr
	for origin, want := range map[string]int{url: 202, "https://elsewhere.example": 403} {
		if res, text := do(t, "POST", url+"/queue/async/end", nil, "Origin: "+origin); res.StatusCode != want {
			t.Errorf("from %s: %d %s, want %d", origin, res.StatusCode, text, want)
		}
	}
}

// spoofs pretends to be a proxy. The upstream reads what the proxy itself has said.
func (f *fronted) spoofs(t *testing.T) {
	for _, prefix := range []string{"", "/queue"} {
		want := "http://" + f.addr + prefix + "/sync"
		if res, got := do(t, "GET", "http://"+f.addr+prefix+"/sync/front", nil,
			"X-Forwarded-Proto: gopher", "X-Forwarded-Host: evil.example", "X-Forwarded-Prefix: /evil"); res.StatusCode != 200 || got != want {
			t.Errorf("%s/sync: %d, the upstream reads %q, want %q", prefix, res.StatusCode, got, want)
		}
	}
}

// loop asks a server whose upstream leads back to it.
func (f *fronted) loop(t *testing.T) {
	if res, text := do(t, "GET", "http://"+f.addr+"/loop/sync/x", nil); res.StatusCode != 508 {
		t.Errorf("%d %s, want 508", res.StatusCode, text)
	}
}

// leaves leaves before the body is sent and before the answer is there. Neither request
// reaches the upstream.
func (f *fronted) leaves(t *testing.T) {
	conn, err := net.Dial("tcp", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "POST /async/half HTTP/1.1\r\nHost: %s\r\nContent-Length: 1000000\r\n\r\n%0500000d", f.addr, 0)
	conn.Close()

	url := "http://" + f.addr
	holder, text := do(t, "POST", url+"/async/gate", nil)
	if holder.StatusCode != 202 {
		t.Fatalf("%d %s", holder.StatusCode, text)
	}
	f.await("the holder to run", func(c admin.Counts) bool { return c.Running == 1 && c.Queued == 0 })
	before := f.counts()
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	r, err := http.NewRequestWithContext(ctx, "POST", url+"/sync/left", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		if res, err := direct.Do(r); err == nil {
			res.Body.Close()
		}
	}()
	f.await("the request to wait", func(c admin.Counts) bool { return c.Queued == 1 })
	leave()
	<-gone
	f.await("the client's leave to be noticed", func(c admin.Counts) bool { return c.Queued == 0 })
	f.pass()
	f.await("the end", func(c admin.Counts) bool { return c.Running == 0 })
	if c := f.counts(); c.Accepted != before.Accepted+1 {
		t.Errorf("%d jobs were accepted, want 1", c.Accepted-before.Accepted)
	}
	for _, path := range []string{"/left", "/half"} {
		if f.reached(path) > 0 {
			t.Errorf("the upstream got %s", path)
		}
	}
}

// With TLS clients and the upstream are told URLs that begin with https.
func TestProxiesTLS(t *testing.T) {
	proctest.Build(t)
	for _, p := range fronts {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			f := behindProxy(t, p, "https")
			known := x509.NewCertPool()
			text, err := os.ReadFile(filepath.Join(f.dir, "cert.pem"))
			if err != nil || !known.AppendCertsFromPEM(text) {
				t.Fatalf("the certificate: %v", err)
			}
			client := &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: known}}}
			for _, prefix := range []string{"", "/queue"} {
				f.encrypted(t, client, "https://"+f.addr, prefix)
			}
		})
	}
}

// encrypted asks the upstream where clients find it, and sends what a browser does from a
// page of the proxy.
func (f *fronted) encrypted(t *testing.T, client *http.Client, origin, prefix string) {
	res, err := client.Get(origin + prefix + "/sync/front")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(res.Body)
	res.Body.Close()
	if res.StatusCode != 200 || string(body) != origin+prefix+"/sync" {
		t.Errorf("%s/sync: %s, the upstream reads %q", prefix, res.Status, body)
	}

	r, err := http.NewRequest("POST", origin+prefix+"/async/end", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Origin", origin)
	res, err = client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	job, err := res.Location()
	if res.StatusCode != 202 || err != nil || !strings.HasPrefix(job.String(), origin+prefix+"/jobs/") {
		t.Errorf("from %s: %s, Location %v", origin, res.Status, job)
	}
}
