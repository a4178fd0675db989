package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/proctest"
)

// The tests in this file put the gateway in front of servers that others wrote.

// service returns the path of a program. Where it is missing the test is skipped, or
// fails if HOLDFAST_REQUIRE_SERVICES is set.
func service(t *testing.T, name string) string {
	t.Helper()
	for _, at := range []string{name, "/usr/sbin/" + name} {
		if path, err := exec.LookPath(at); err == nil {
			return path
		}
	}
	if os.Getenv("HOLDFAST_REQUIRE_SERVICES") != "" {
		t.Fatalf("%s is not installed, and HOLDFAST_REQUIRE_SERVICES is set", name)
	}
	t.Skipf("%s is not installed", name)
	return ""
}

var listening = regexp.MustCompile(`listening on (\S+)`)

// script starts an upstream of testdata and returns its address.
func script(t *testing.T, program string, args ...string) string {
	t.Helper()
	return proctest.Launch(t, nil, service(t, program), args...).AwaitLog(listening)
}

// A relay passes connections on to an upstream and keeps what goes over them.
type relay struct {
	addr string
	mu   sync.Mutex
	sent []*bytes.Buffer // to the upstream, by connection
	got  []*bytes.Buffer // from it
}

func newRelay(t *testing.T, upstream string) *relay {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{addr: l.Addr().String()}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", upstream)
			if err != nil {
				in.Close()
				continue
			}
			sent, got := new(bytes.Buffer), new(bytes.Buffer)
			r.mu.Lock()
			r.sent, r.got = append(r.sent, sent), append(r.got, got)
			r.mu.Unlock()
			pass := func(to, from net.Conn, keep *bytes.Buffer) {
				io.Copy(to, io.TeeReader(from, &locked{&r.mu, keep}))
				to.(*net.TCPConn).CloseWrite()
			}
			go pass(out, in, sent)
			go pass(in, out, got)
		}
	}()
	return r
}

type locked struct {
	mu *sync.Mutex
	to *bytes.Buffer
}

func (w *locked) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.to.Write(p)
}

// last returns what went over the last connection.
func (r *relay) last() (sent, got string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(r.sent) - 1
	return r.sent[n].String(), r.got[n].String()
}

// do sends a request without a Content-Length and returns the answer.
func do(t *testing.T, method, url string, body io.Reader, header ...string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequest(method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		r.Header[name] = append(r.Header[name], value)
	}
	response, err := direct.Do(r)
	if err != nil {
		t.Errorf("%s %s: %v", method, url, err)
		return &http.Response{}, ""
	}
	defer response.Body.Close()
	read, err := io.ReadAll(response.Body)
	if err != nil {
		t.Errorf("%s %s: %v", method, url, err)
	}
	return response, string(read)
}

// chunked hides the length of a body, so that it is sent in chunks.
func chunked(body string) io.Reader { return io.MultiReader(strings.NewReader(body)) }

var viaID = regexp.MustCompile(`holdfast-[0-9A-Z]+`)

// A body in chunks is not lost, and what the upstream sees is what it can read.
func TestUpstreamPython(t *testing.T) {
	for _, kind := range []string{"server", "wsgi"} {
		r := newRelay(t, script(t, "python3", "testdata/upstream.py", kind))
		p := start(t, "-upstream", "http://"+r.addr)
		front := "http://" + p.addr
		large := strings.Repeat("0123456789abcdef", 50_000)
		for _, body := range []string{"upload", large} {
			for _, header := range []string{"X-Test: 1", "Expect: 100-continue"} {
				if res, echo := do(t, "POST", front+"/sync/echo", chunked(body), header); res.StatusCode != 200 || echo != body {
					t.Errorf("%s: %d, %d bytes of %d arrive", kind, res.StatusCode, len(echo), len(body))
				}
			}
		}
		do(t, "POST", front+"/sync/echo?a=b%2Fc", chunked("upload"), "User-Agent: me", "Accept-Encoding: br", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk", "X_Forwarded_For: 6.6.6.6")
		sent, got := r.last()
		want := "POST /echo?a=b%2Fc HTTP/1.1\r\nHost: " + r.addr + "\r\nUser-Agent: me\r\nContent-Length: 6\r\nAccept-Encoding: br\r\nVia: 1.1 ID\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Host: " + p.addr + "\r\nX-Forwarded-Prefix: /sync\r\nX-Forwarded-Proto: http\r\n\r\nupload"
		if sent = viaID.ReplaceAllString(sent, "ID"); sent != want {
			t.Errorf("%s saw\n%q, want\n%q", kind, sent, want)
		}
		if !strings.HasSuffix(got, "\r\n\r\nupload") {
			t.Errorf("%s sent %q", kind, got)
		}
		if kind == "server" { // WSGI knows no interim responses
			hinted(t, p.addr)
			if _, got := r.last(); !strings.HasPrefix(got, "HTTP/1.0 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\nHTTP/1.0 102 Processing\r\n\r\nHTTP/1.0 200 ") {
				t.Errorf("Python has sent %q", got)
			}
		}
		if kind == "wsgi" {
			if _, who := do(t, "GET", front+"/sync/who", nil, "X_Forwarded_For: 6.6.6.6", "X-Forwarded-For: 6.6.6.6"); who != "127.0.0.1" {
				t.Errorf("a client pretends to be %q", who)
			}
		}
		redirected(t, p.addr)
	}
}

// redirected follows the redirects of an upstream to its own URL and to a path.
func redirected(t *testing.T, addr string) {
	t.Helper()
	for _, path := range []string{"/sync/moved", "/sync/login"} {
		res, err := http.Get("http://" + addr + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != 200 || string(body) != "the end" || res.Request.URL.Host != addr {
			t.Errorf("%s leads to %s: %d %s", path, res.Request.URL, res.StatusCode, body)
		}
	}
}

// hinted asks for what the upstream has early hints for, with a Link and other interim
// responses. They are not the response, and no part of it.
func hinted(t *testing.T, addr string) {
	t.Helper()
	raw := func(path string) string {
		t.Helper()
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(patience))
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", path, addr)
		got, err := io.ReadAll(conn)
		if err != nil {
			t.Fatal(err)
		}
		return string(got)
	}
	res, text := do(t, "POST", "http://"+addr+"/async/hints", nil)
	if res.StatusCode != 202 {
		t.Fatalf("%d %s", res.StatusCode, text)
	}
	job := res.Header.Get("Location")
	do(t, "GET", "http://"+addr+job, nil, "Prefer: wait=30")
	for _, path := range []string{"/sync/hints", job + "/response", job + "/response"} {
		got := raw(path)
		if !strings.HasPrefix(got, "HTTP/1.1 200 OK\r\n") || !strings.HasSuffix(got, "hinted") && !strings.HasSuffix(got, "\r\n6\r\nhinted\r\n0\r\n\r\n") ||
			strings.Count(got, "HTTP/1.") != 1 || strings.Contains(got, "Link:") {
			t.Errorf("%s: %q", path, got)
		}
	}
}

func TestUpstreamNode(t *testing.T) {
	r := newRelay(t, script(t, "node", "testdata/upstream.js"))
	const workers = 3
	p := start(t, "-upstream", "http://"+r.addr, "-workers", fmt.Sprint(workers), "-upstream-idle", "100ms",
		"-patience", "0") // its clients leave all the time, which would be learned
	front := "http://" + p.addr

	hinted(t, p.addr)
	if _, got := r.last(); !strings.HasPrefix(got, "HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\n") {
		t.Errorf("Node has sent %q", got)
	}
	redirected(t, p.addr)
	if res, body := do(t, "GET", front+"/sync/chunks", nil); body != "one two" || res.Trailer.Get("X-Sum") != "7" || res.TransferEncoding == nil {
		t.Errorf("chunks: %q, trailer %v, %v", body, res.Trailer, res.TransferEncoding)
	}
	if res, body := do(t, "POST", front+"/sync/echo", chunked("upload"), "User-Agent: me", "Expect: 100-continue", "Upgrade: h2c", "Connection: Upgrade"); res.StatusCode != 200 || body != "upload" {
		t.Errorf("upload: %d %q", res.StatusCode, body)
	}
	sent, _ := r.last()
	want := "POST /echo HTTP/1.1\r\nHost: " + r.addr + "\r\nUser-Agent: me\r\nContent-Length: 6\r\nAccept-Encoding: gzip\r\nVia: 1.1 ID\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Host: " + p.addr + "\r\nX-Forwarded-Prefix: /sync\r\nX-Forwarded-Proto: http\r\n\r\nupload"
	if sent = viaID.ReplaceAllString(sent[strings.LastIndex(sent, "POST "):], "ID"); sent != want {
		t.Errorf("Node saw\n%q, want\n%q", sent, want)
	}

	afterPauses(t, front)
	leaving(t, front)
	if _, most := do(t, "GET", front+"/sync/most", nil); most != fmt.Sprint(workers) {
		t.Errorf("%s requests at once, want %d", most, workers)
	}
}

// afterPauses sends requests about when Node ends the connections that are idle.
func afterPauses(t *testing.T, front string) {
	var clients sync.WaitGroup
	for n := range 8 {
		clients.Go(func() {
			for round := range 4 {
				want := fmt.Sprint(n, round)
				if res, body := do(t, "POST", front+"/sync/echo", strings.NewReader(want)); res.StatusCode != 200 || body != want {
					t.Errorf("after a pause: %d %q", res.StatusCode, body)
				}
				time.Sleep(985*time.Millisecond + time.Duration(n)*5*time.Millisecond)
			}
		})
	}
	clients.Wait()
}

// leaving sends requests whose clients leave before they are answered.
func leaving(t *testing.T, front string) {
	var clients sync.WaitGroup
	for range 8 {
		for range 4 {
			clients.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				r, err := http.NewRequestWithContext(ctx, "POST", front+"/sync/work", nil)
				if err != nil {
					t.Error(err)
					return
				}
				if res, err := direct.Do(r); err == nil {
					res.Body.Close()
				}
			})
		}
		clients.Wait()
	}
}

// certificate writes a certificate for 127.0.0.1, its key, and a file with both into a
// folder.
func certificate(t *testing.T, dir string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	public, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: public})
	secret := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private})
	for name, text := range map[string][]byte{"cert.pem": cert, "key.pem": secret, "both.pem": slices.Concat(cert, secret)} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// serveHTTP2 starts an nginx that speaks HTTP/2 with TLS before the server at upstream,
// ends a connection after 20 requests, and has its certificate in dir.
func serveHTTP2(t *testing.T, dir, upstream string) (addr string) {
	program := service(t, "nginx")
	addr = vacant(t)
	certificate(t, dir)
	config := filepath.Join(dir, "nginx.conf")
	text := fmt.Sprintf(`daemon off; master_process off; pid nginx.pid; error_log stderr;
events {}
http {
	access_log off;
	client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
	server {
		listen %s ssl http2;
		ssl_certificate cert.pem; ssl_certificate_key key.pem;
		keepalive_requests 20;
		keepalive_timeout 1s;
		location = /moved { return 302 https://$http_host/end; }
		location = /login { return 302 /end; }
		location = /end { return 200 "the end"; }
		location / { proxy_pass http://%s; add_header X-Protocol $server_protocol; }
	}
}
`, addr, upstream)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	awaitListener(t, proctest.Launch(t, nil, program, "-p", dir, "-e", "stderr", "-c", config), addr)
	return addr
}

// An upstream over HTTP/2 that ends its connections: what it has not begun is sent again.
func TestUpstreamNginxHTTP2(t *testing.T) {
	dir := t.TempDir()
	echo := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }))
	defer echo.Close()
	addr := serveHTTP2(t, dir, echo.Listener.Addr().String())
	p := proctest.Launch(t, []string{"SSL_CERT_FILE=" + filepath.Join(dir, "cert.pem")}, proctest.Build(t),
		"-addr", "127.0.0.1:0", "-admin", "", "-workers", "8", "-max-body", "8MiB", "-upstream", "https://"+addr)
	front := "http://" + p.Addr()
	var clients sync.WaitGroup
	for n := range 20 {
		clients.Go(func() {
			for round := range 50 {
				want := fmt.Sprint(n, " ", round)
				body := io.Reader(strings.NewReader(want))
				if round%2 == 0 {
					body = chunked(want)
				}
				res, got := do(t, "POST", front+"/sync/echo", body)
				if res.StatusCode != 200 || got != want || res.Header.Get("X-Protocol") != "HTTP/2.0" {
					t.Errorf("%d %.100q over %s, want %q", res.StatusCode, got, res.Header.Get("X-Protocol"), want)
				}
			}
		})
	}
	clients.Wait()
	redirected(t, p.Addr())
	afterPauses(t, front)

	// nginx says at once that this is too much, and reads no more.
	for _, body := range []io.Reader{strings.NewReader(strings.Repeat("x", 7<<20)), chunked(strings.Repeat("x", 7<<20))} {
		if res, text := do(t, "POST", front+"/sync/echo", body); res.StatusCode != 413 || !strings.Contains(text, "nginx") {
			t.Errorf("too large for nginx: %d %s", res.StatusCode, text)
		}
	}
}

// Early hints over HTTP/2, which nginx does not send on yet.
func TestUpstreamHTTP2Hints(t *testing.T) {
	upstream := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			t.Errorf("the request comes over %s", r.Proto)
		}
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		w.WriteHeader(http.StatusProcessing)
		io.WriteString(w, "hinted")
	}))
	upstream.EnableHTTP2 = true
	upstream.StartTLS()
	defer upstream.Close()
	authority := filepath.Join(t.TempDir(), "cert.pem")
	if err := os.WriteFile(authority, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: upstream.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	p := proctest.Launch(t, []string{"SSL_CERT_FILE=" + authority}, proctest.Build(t),
		"-addr", "127.0.0.1:0", "-admin", "", "-upstream", upstream.URL)
	hinted(t, p.Addr())
}
