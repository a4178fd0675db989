package gateway

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/server"
)

// raw sends the text of a request to the front and returns the response to it.
func (f *fixture) raw(text string) (*http.Response, string) {
	f.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(f.front, "http://"))
	if err != nil {
		f.t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	io.WriteString(conn, strings.ReplaceAll(text, "\n", "\r\n"))
	method, _, _ := strings.Cut(text, " ")
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		f.t.Fatalf("%.100q: %v", text, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		f.t.Errorf("%.100q: %v", text, err)
	}
	return res, string(body)
}

// A record is what an upstream saw of a request.
type record struct {
	*http.Request
	body string
}

// recording returns a handler that tells what it sees.
func recording() (http.HandlerFunc, chan record) {
	seen := make(chan record, 10)
	return func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		seen <- record{r, string(body)}
	}, seen
}

func TestLength(t *testing.T) {
	h, seen := recording()
	f := through(t, server.Config{Workers: 1, Queue: 1}, Config{}, h)
	for _, mode := range modes {
		for _, test := range []struct {
			name, request, body string
			chunked             bool
			trailer             string
		}{
			{"chunked", "POST %s/x HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n4\nbody\n1\n!\n0\n\n", "body!", false, ""},
			{"chunked and empty", "POST %s/x HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n0\n\n", "", false, ""},
			{"a trailer that does not come", "POST %s/x HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\nTrailer: X-Sum\n\n4\nbody\n0\n\n", "body", false, ""},
			{"a trailer that is not for the upstream", "POST %s/x HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\nTrailer: X_Forwarded_For, Forwarded\n\n4\nbody\n0\nX_Forwarded_For: 6.6.6.6\nForwarded: for=6\n\n", "body", false, ""},
			{"a trailer", "POST %s/x HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\nTrailer: X-Sum, X-Real-Ip\n\n4\nbody\n0\nX-Sum: 17\nX-Real-Ip: 6.6.6.6\n\n", "body", true, "map[X-Sum:[17]]"},
			{"a length", "POST %s/x HTTP/1.1\nHost: h\nContent-Length: 4\n\nbody", "body", false, ""},
			{"HTTP/1.0", "POST %s/x HTTP/1.0\nContent-Length: 4\n\nbody", "body", false, ""},
			{"GET with a body", "GET %s/x HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n4\nbody\n0\n\n", "body", false, ""},
		} {
			f.raw(fmt.Sprintf(test.request, mode))
			got := <-seen
			length, trailer := int64(len(test.body)), ""
			if test.chunked {
				length = -1
			}
			if len(got.Trailer) > 0 {
				trailer = fmt.Sprint(got.Trailer)
			}
			if got.body != test.body || got.ContentLength != length || (got.TransferEncoding != nil) != test.chunked || trailer != test.trailer {
				t.Errorf("%s%s: %q, length %d, %v, trailer %s", mode, test.name, got.body, got.ContentLength, got.TransferEncoding, trailer)
			}
			if test.body == "" && got.Header.Get("Content-Length") != "0" {
				t.Errorf("%s%s: %v, want Content-Length: 0", mode, test.name, got.Header)
			}
		}
	}
}

// What is for the next hop alone does not pass, nor what a client could use to pretend
// to be another, in whichever spelling.
func TestNotForTheUpstream(t *testing.T) {
	h, seen := recording()
	f := through(t, server.Config{Workers: 1, Queue: 1}, Config{}, h)
	drop := []string{
		"Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA", "Keep-Alive: timeout=5", "Proxy-Connection: x", "Proxy-Authorization: Basic eA==",
		"Proxy-Authenticate: Basic", "Trailers: x", "TE: gzip", "X-Hop: 1", "X_Hop: 2", "Proxy: http://evil", "Expect_: 1",
		"Forwarded: for=6.6.6.6", "X-Real-IP: 6.6.6.6", "X_Real_IP: 6.6.6.6", "X-Forwarded: 6", "X-Forwarded-Port: 6", "X-Forwarded-Server: evil", "X-Forwarded-Prefix: /evil",
		"X_Forwarded_For: 6.6.6.6", "X-Forwarded_For: 6.6.6.6", "x_forwarded-for: 6.6.6.6", "X_Forwarded_Proto: https", "X-FORWARDED-HOST: evil", "_Forwarded: x",
		"Transfer_Encoding: chunked", "Content_Length: 7", "HTTP2_Settings: x", "Proxy_Connection: x", "Host_: evil", "X_User: evil",
	}
	keep := []string{"X-User: me", "X_Api_Key: k", "Authorization: Bearer t", "Origin: http://h", "Range: bytes=0-1", "Max-Forwards: 3", "Idempotency-Key: k"}
	passes := map[string]bool{"Trailers": true, "Expect_": true, "_Forwarded": true, "Host_": true} // they only look like it
	for _, mode := range modes {
		f.raw("POST " + mode + "/x HTTP/1.1\nHost: h\nConnection: Upgrade, HTTP2-Settings, X-Hop, keep-alive\nContent-Length: 1\n" + strings.Join(drop, "\n") + "\n" + strings.Join(keep, "\n") + "\n\nx")
		got := (<-seen).Header
		f.raw("POST " + mode + "/x HTTP/1.1\nHost: h\nUpgrade: h2c\nHTTP2-Settings: x\nKeep-Alive: x\nContent-Length: 1\n\nx") // not in Connection
		if bare := (<-seen).Header; bare["Upgrade"] != nil || bare["Http2-Settings"] != nil || bare["Keep-Alive"] != nil {
			t.Errorf("%s: %v", mode, bare)
		}
		for _, line := range drop {
			name, value, _ := strings.Cut(line, ": ")
			for is, values := range got {
				if strings.EqualFold(is, name) && strings.Join(values, ",") == value && !passes[name] {
					t.Errorf("%s: %s has passed", mode, line)
				}
			}
		}
		for _, line := range keep {
			name, value, _ := strings.Cut(line, ": ")
			if is := strings.Join(got[http.CanonicalHeaderKey(name)], "|"); is != value {
				t.Errorf("%s: %s is %q", mode, line, is)
			}
		}
		if via := got.Get("Via"); via != "1.1 "+f.g.name {
			t.Errorf("%s: Via %q", mode, via)
		}
	}
	f.raw("POST /sync/x HTTP/1.0\nVia: 1.0 a, 1.1 b (comment)\nVia: 1.1 c\nTE: deflate;q=0.5, trailers\n\n")
	got := (<-seen).Header
	if via, want := got["Via"], "1.0 a, 1.1 b (comment), 1.1 c, 1.0 "+f.g.name; len(via) != 1 || via[0] != want {
		t.Errorf("Via is %q, want %q", via, want)
	}
	if got.Get("Te") != "trailers" {
		t.Errorf("TE is %q", got.Get("Te"))
	}
}

// A request that expects 100 Continue holds no worker while the upstream does not send
// that.
func TestExpect(t *testing.T) {
	h, seen := recording()
	f := through(t, server.Config{Workers: 1, Queue: 1}, Config{}, h)
	for _, mode := range modes {
		r := f.request("POST", mode+"/x", strings.NewReader("body"))
		r.Header.Set("Expect", "100-continue")
		f.do(r)
		if got := <-seen; got.body != "body" || got.Header["Expect"] != nil {
			t.Errorf("%s: %q, %v", mode, got.body, got.Header)
		}
	}
}

// What the gateway answers by itself takes no worker.
func TestAnsweredAtOnce(t *testing.T) {
	h, seen := recording()
	f := through(t, server.Config{Workers: 0, Queue: 0}, Config{}, h)
	for _, mode := range modes {
		res, body := f.raw("TRACE " + mode + "/x HTTP/1.1\nHost: h\n\n")
		f.problem(mode+" TRACE", res, body, 405, "TRACE is not allowed here")
		if res.Header.Get("Allow") != allowed {
			t.Errorf("Allow is %q", res.Header.Get("Allow"))
		}
		for _, target := range []string{mode + "/x", "example.com:443"} {
			res, body = f.raw("CONNECT " + target + " HTTP/1.1\nHost: h\n\n")
			f.problem("CONNECT "+target, res, body, 501, "CONNECT is not implemented")
		}
		if res, body = f.raw("OPTIONS " + mode + "/x HTTP/1.1\nHost: h\nMax-Forwards: 0\n\n"); res.StatusCode != 204 || res.Header.Get("Allow") != allowed || body != "" {
			t.Errorf("%s: OPTIONS that is not to be passed on: %d %v", mode, res.StatusCode, res.Header)
		}
		res, body = f.raw("POST " + mode + "/x HTTP/1.1\nHost: h\nVia: 1.1 other, 1.1 " + f.g.name + "\nContent-Length: 0\n\n")
		f.problem(mode+" loop", res, body, 508, "leads back to it")
	}
	res, body := f.raw("POST /echo HTTP/1.1\nHost: h\nVia: HTTP/1.1 " + f.g.name + " (x)\nContent-Length: 0\n\n")
	f.problem("a loop to another route", res, body, 508, "leads back to it")
	if len(seen) > 0 {
		t.Errorf("the upstream saw %v", (<-seen).Request)
	}
}

func TestMaxForwards(t *testing.T) {
	h, seen := recording()
	f := through(t, server.Config{Workers: 1, Queue: 1}, Config{}, h)
	for method, want := range map[string]string{"OPTIONS": "6", "POST": "7"} {
		f.raw(method + " /sync/x HTTP/1.1\nHost: h\nMax-Forwards: 7\nContent-Length: 0\n\n")
		if got := (<-seen).Header.Get("Max-Forwards"); got != want {
			t.Errorf("%s: Max-Forwards %q, want %q", method, got, want)
		}
	}
	for _, odd := range []string{"-1", "x", "", "99999999999999999999"} {
		f.raw("OPTIONS /sync/x HTTP/1.1\nHost: h\nMax-Forwards: " + odd + "\n\n")
		if got := (<-seen).Header.Get("Max-Forwards"); got != odd {
			t.Errorf("Max-Forwards %q became %q", odd, got)
		}
	}
}

// An upstream that leads back to the gateway: every worker would wait for one.
func TestLoop(t *testing.T) {
	var front atomic.Pointer[url.URL]
	f := through(t, server.Config{Workers: 2, Queue: 2}, Config{}, func(w http.ResponseWriter, r *http.Request) {
		httputil.NewSingleHostReverseProxy(front.Load()).ServeHTTP(w, r)
	})
	u, err := url.Parse(f.front)
	if err != nil {
		t.Fatal(err)
	}
	front.Store(u)
	for _, mode := range modes {
		for _, target := range []string{"/sync/x", "/async/x", "/sync/sync/x", "/echo"} {
			res, body := f.do(f.request("POST", mode+target, nil))
			f.problem(mode+target, res, body, 508, "leads back to it")
		}
	}
	// What waits for no worker is no loop.
	if res, _ := f.do(f.request("GET", "/sync/healthz", nil)); res.StatusCode != 200 {
		t.Errorf("/healthz through the gateway: %d", res.StatusCode)
	}
}

func TestTrustedProxies(t *testing.T) {
	const said = "X-Forwarded-For: 192.0.2.7, 198.51.100.1\nX-Forwarded-For: 203.0.113.9\nX-Forwarded-Proto: https\nX-Forwarded-Host: shop.example\nX-Forwarded-Port: 443\nX-Real-Ip: 192.0.2.7\nForwarded: for=192.0.2.7\nX_Forwarded_For: 6.6.6.6\n"
	for _, test := range []struct {
		trusted, prefix           string
		chain, proto, host, below string
	}{
		{"127.0.0.0/8", "/queue/", "192.0.2.7, 198.51.100.1, 203.0.113.9, 127.0.0.1", "https", "shop.example", "/queue/sync"},
		{"127.0.0.1/32", "/a/b-c.d", "192.0.2.7, 198.51.100.1, 203.0.113.9, 127.0.0.1", "https", "shop.example", "/a/b-c.d/sync"},
		{"127.0.0.1/32", "//evil.example", "192.0.2.7, 198.51.100.1, 203.0.113.9, 127.0.0.1", "https", "shop.example", "/sync"},
		{"127.0.0.1/32", "http://evil", "192.0.2.7, 198.51.100.1, 203.0.113.9, 127.0.0.1", "https", "shop.example", "/sync"},
		{"10.0.0.0/8", "/queue", "127.0.0.1", "http", "h", "/sync"},
		{"::/0", "/queue", "127.0.0.1", "http", "h", "/sync"},
	} {
		h, seen := recording()
		f := through(t, server.Config{Workers: 1, Queue: 1}, Config{Trusted: []netip.Prefix{netip.MustParsePrefix(test.trusted)}}, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "/login")
			h(w, r)
		})
		res, _ := f.raw("GET /sync/x HTTP/1.1\nHost: h\n" + said + "X-Forwarded-Prefix: " + test.prefix + "\n\n")
		got := (<-seen).Header
		for name, want := range map[string]string{
			"X-Forwarded-For": test.chain, "X-Forwarded-Proto": test.proto, "X-Forwarded-Host": test.host, "X-Forwarded-Prefix": test.below,
			"X-Forwarded-Port": "", "X-Real-Ip": "", "Forwarded": "", "X_forwarded_for": "",
		} {
			if is := strings.Join(got[name], "|"); is != want {
				t.Errorf("%s trusted: %s is %q, want %q", test.trusted, name, is, want)
			}
		}
		if l := res.Header.Get("Location"); l != test.below+"/login" {
			t.Errorf("%s trusted: Location %q, want it below %s", test.trusted, l, test.below)
		}
		f.raw("GET /sync/x HTTP/1.1\nHost: h\n\n") // a trusted one that says nothing
		got = (<-seen).Header
		if got.Get("X-Forwarded-For") != "127.0.0.1" || got.Get("X-Forwarded-Host") != "h" || got.Get("X-Forwarded-Proto") != "http" {
			t.Errorf("%s trusted: nothing was said, and that is %v", test.trusted, got)
		}
	}
}

// Where the proxy does not say which prefix it strips, the public URL does.
func TestPublicPrefix(t *testing.T) {
	for _, test := range []struct{ public, trusted, said, below string }{
		{"https://shop.example/queue", "127.0.0.1/32", "", "/queue"},
		{"https://shop.example/queue", "127.0.0.1/32", "/told", "/told"},
		{"https://shop.example/queue", "127.0.0.1/32", "//evil.example", ""},
		{"https://shop.example/queue", "10.0.0.0/8", "/evil", "/queue"},
		{"https://shop.example/a/b%20c", "10.0.0.0/8", "", "/a/b%20c"},
		{"https://shop.example", "127.0.0.1/32", "", ""},
		{"https://shop.example//evil.example", "127.0.0.1/32", "", ""},
	} {
		h, seen := recording()
		config := Config{Public: test.public, Trusted: []netip.Prefix{netip.MustParsePrefix(test.trusted)}}
		f := through(t, server.Config{Workers: 1, Queue: 1}, config, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "/login")
			h(w, r)
		})
		for _, mode := range modes {
			r := f.request("GET", mode+"/x", nil)
			if test.said != "" {
				r.Header.Set("X-Forwarded-Prefix", test.said)
			}
			res, _ := f.do(r)
			if got := (<-seen).Header.Get("X-Forwarded-Prefix"); got != test.below+mode {
				t.Errorf("%+v: the upstream reads the prefix %q", test, got)
			}
			if l := res.Header.Get("Location"); l != test.below+mode+"/login" {
				t.Errorf("%+v: Location %q", test, l)
			}
		}
	}
}

// A request that the upstream may have seen is sent again only if that is safe. Then it
// has its body again.
func TestRetry(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	seen := make(chan string, 10)
	go func() { // each connection serves one request and ends in the second
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				from := bufio.NewReader(conn)
				for n := range 2 {
					r, err := http.ReadRequest(from)
					if err != nil {
						return
					}
					body, _ := io.ReadAll(r.Body)
					seen <- r.Method + " " + string(body)
					if n == 0 {
						io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
					}
				}
			}()
		}
	}()
	for _, test := range []struct {
		method, key string
		status      int
		times       int
	}{
		{"POST", "", 502, 1},
		{"POST", "k", 200, 2},
		{"GET", "", 200, 2},
		{"PUT", "", 502, 1},
	} {
		f := through(t, server.Config{Workers: 1, Queue: 1}, Config{Upstream: &url.URL{Scheme: "http", Host: l.Addr().String()}}, nil)
		f.do(f.request("POST", "/sync/x", strings.NewReader("first")))
		<-seen
		r := f.request(test.method, "/sync/x", strings.NewReader("second"))
		if test.key != "" {
			r.Header.Set("Idempotency-Key", test.key)
		}
		res, _ := f.do(r)
		if res.StatusCode != test.status || len(seen) != test.times {
			t.Errorf("%s with the key %q: %d, sent %d times; want %d, %d", test.method, test.key, res.StatusCode, len(seen), test.status, test.times)
		}
		for range len(seen) {
			if got := <-seen; got != test.method+" second" {
				t.Errorf("%s came as %q", test.method, got)
			}
		}
		f.stop()
	}
}

// Credentials in the request line are not the client's Authorization.
func TestAbsoluteForm(t *testing.T) {
	h, seen := recording()
	f := through(t, server.Config{Workers: 1, Queue: 1}, Config{}, h)
	f.raw("GET http://user:secret@elsewhere.example/sync/x?q HTTP/1.1\nHost: h\n\n")
	got := <-seen
	if got.Header["Authorization"] != nil || got.RequestURI != "/x?q" || got.Header.Get("X-Forwarded-Host") != "elsewhere.example" {
		t.Errorf("%s %v", got.RequestURI, got.Header)
	}
}
