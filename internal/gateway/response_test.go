package gateway

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"holdfast/internal/server"
)

func TestBelow(t *testing.T) {
	for _, test := range []struct{ upstream, asked, ref, want string }{
		{"http://up:80", "/a/b?q", "/login", "/sync/login"},
		{"http://up:80", "/a/b", "/login?next=%2Fa&x#top%20", "/sync/login?next=%2Fa&x#top%20"},
		{"http://up:80", "/a/b", "/a%2Fb/%C3%BC", "/sync/a%2Fb/%C3%BC"},
		{"http://up:80", "/a/b", "/x?", "/sync/x?"},
		{"http://up:80", "/a/b", "/", "/sync/"},
		{"http://up:80", "/a/b", "http://up/login", "/sync/login"},
		{"http://up", "/a/b", "HTTP://UP:80/login", "/sync/login"},
		{"http://up", "/a/b", "http://up", "/sync/"},
		{"http://up", "/a/b", "http://up?q", "/sync/?q"},
		{"http://up", "/a/b", "//up/login", "/sync/login"},
		{"https://up", "/a/b", "https://up:443/login", "/sync/login"},
		{"https://[::1]:8443", "/a/b", "https://[::1]:8443/login", "/sync/login"},
		// Relative ones, wherever they are read.
		{"http://up", "/a/b", "c", "/sync/a/c"},
		{"http://up", "/a/b", "../c", "/sync/c"},
		{"http://up", "/a/b", "../../../c", "/sync/c"},
		{"http://up", "/a/b", "/../../c", "/sync/c"},
		{"http://up", "/a/b", "?page=2", "/sync/a/b?page=2"},
		// What knows the public address.
		{"http://up", "/a/b", "http://front:8099/login", "/sync/login"},
		{"http://up", "/a/b", "http://front:8099/sync/login", "http://front:8099/sync/login"},
		{"http://up", "/a/b", "/sync/login", "/sync/login"},
		{"http://up", "/a/b", "/sync", "/sync"},
		{"http://up", "/a/b", "/synchron", "/sync/synchron"},
		{"http://up", "/a/b", "http://up/sync/login", "/sync/login"},
		// The upstream's own path is put before that of each request.
		{"http://up/base/", "/a/b", "/base/login", "/sync/login"},
		{"http://up/base", "/a/b", "/base", "/sync/"},
		{"http://up/base", "/a/b", "login", "/sync/a/login"},
		{"http://up/base", "/a/b", "/other", "/other"},
		{"http://up/base", "/a/b", "/based/x", "/based/x"},
		// Elsewhere.
		{"http://up", "/a/b", "https://up/login", "https://up/login"},
		{"http://up", "/a/b", "http://up:8080/login", "http://up:8080/login"},
		{"http://up", "/a/b", "http://other/login", "http://other/login"},
		{"http://up", "/a/b", "//other/login", "//other/login"},
		{"http://up", "/a/b", "mailto:a@b", "mailto:a@b"},
		{"http://up", "/a/b", "http://up.evil/login", "http://up.evil/login"},
		{"http://up", "/a/b", "/bad%zz", "/bad%zz"},
		{"http://up", "/a/b", "", ""},
	} {
		u, err := url.Parse(test.upstream)
		if err != nil {
			t.Fatal(err)
		}
		g := bare(u, 1, 1)
		in, err := http.NewRequest("GET", test.asked, nil)
		if err != nil {
			t.Fatal(err)
		}
		in.Host = "front:8099"
		asked := (&route{g, &g.work, "/sync"}).outgoing(in, nil, "/sync")
		if got := g.below("/sync", test.ref, asked); got != test.want {
			t.Errorf("%s asked for %s says %q: %q, want %q", test.upstream, test.asked, test.ref, got, test.want)
		}
	}
}

// Whoever follows what the upstream says comes back to it, from a kept response too.
func TestRedirects(t *testing.T) {
	f := through(t, server.Config{Workers: 2, Queue: 2}, Config{}, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/absolute":
			http.Redirect(w, r, "http://"+r.Host+"/end", http.StatusFound)
		case "/path":
			http.Redirect(w, r, "/end", http.StatusSeeOther)
		case "/deep/relative":
			w.Header().Set("Location", "../end")
			w.WriteHeader(307)
		case "/created":
			w.Header().Set("Location", "/end")
			w.Header().Set("Content-Location", "http://"+r.Host+"/end")
			w.WriteHeader(201)
		case "/end":
			io.WriteString(w, "the end")
		}
	})
	for _, mode := range modes {
		for path, status := range map[string]int{"/absolute": 302, "/path": 303, "/deep/relative": 307, "/created": 201} {
			res, _ := f.do(f.request("GET", mode+path, nil))
			if res.StatusCode != status {
				t.Errorf("%s%s: %d, want %d", mode, path, res.StatusCode, status)
			}
			for _, name := range []string{"Location", "Content-Location"} {
				to := res.Header.Get(name)
				if to == "" && name == "Content-Location" && path != "/created" {
					continue
				}
				// As a client resolves it, against what it has asked for.
				u, err := res.Request.URL.Parse(to)
				if err != nil {
					t.Fatal(err)
				}
				if _, body := f.do(f.request("GET", u.RequestURI(), nil)); body != "the end" {
					t.Errorf("%s%s: %s %q leads to %q", mode, path, name, to, body)
				}
			}
		}
	}
}

// answers starts an upstream that answers each connection with a text.
func answers(t *testing.T, text string) *url.URL {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				conn.Read(make([]byte, 64<<10))
				io.WriteString(conn, strings.ReplaceAll(text, "\n", "\r\n"))
				conn.Close()
			}()
		}
	}()
	return &url.URL{Scheme: "http", Host: l.Addr().String()}
}

// The client gets what the upstream has sent, no more and no less.
func TestAnswer(t *testing.T) {
	for _, test := range []struct {
		text, body string
		status     int
		header     map[string]string
		trailer    string
	}{
		{"HTTP/1.1 200 OK\nContent-Length: 6\n\n<html>", "<html>", 200, map[string]string{"Content-Type": ""}, "map[]"},
		{"HTTP/1.0 200 OK\nContent-Type: a/b\n\nuntil the end", "until the end", 200, map[string]string{"Content-Type": "a/b"}, "map[]"},
		{"HTTP/1.1 103 Early Hints\nLink: </a>\nX-Early: 1\n\nHTTP/1.1 200 OK\nVary: Accept\nContent-Length: 1\n\nx", "x", 200, map[string]string{"Link": "", "X-Early": "", "Vary": "Prefer|Accept"}, "map[]"},
		{"HTTP/1.1 102 Processing\n\nHTTP/1.1 103 Early Hints\n\nHTTP/1.1 404 No\nContent-Length: 0\n\n", "", 404, nil, "map[]"},
		{"HTTP/1.1 200 OK\nConnection: X-Hop, Upgrade\nUpgrade: h2c\nX-Hop: 1\nAlt-Svc: h3=\":443\"\nProxy-Authenticate: x\nProxy-Authentication-Info: x\nKeep-Alive: x\nProxy-Connection: x\nTE: x\nX-Kept: 1\nContent-Length: 1\n\nx", "x", 200,
			map[string]string{"X-Hop": "", "Upgrade": "", "Alt-Svc": "", "Proxy-Authenticate": "", "Proxy-Authentication-Info": "", "Keep-Alive": "", "Proxy-Connection": "", "Te": "", "X-Kept": "1"}, "map[]"},
		{"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\nTrailer: X-Sum\n\n4\nbody\n0\nX-Sum: 4\nX-More: 1\n\n", "body", 200, nil, "map[X-More:[1] X-Sum:[4]]"},
		{"HTTP/1.1 299 Odd\nContent-Length: 0\n\n", "", 299, nil, "map[]"},
	} {
		f := through(t, server.Config{Workers: 1, Queue: 1}, Config{Upstream: answers(t, test.text)}, nil)
		for _, mode := range modes {
			res, body := f.do(f.request("GET", mode+"/x", nil))
			if res.StatusCode != test.status || body != test.body || fmt.Sprint(res.Trailer) != test.trailer {
				t.Errorf("%s %q: %d %q, trailer %v", mode, test.text, res.StatusCode, body, res.Trailer)
			}
			for name, want := range test.header {
				if got := strings.Join(res.Header[name], "|"); got != want {
					t.Errorf("%s %q: %s is %q, want %q", mode, test.text, name, got, want)
				}
			}
		}
		f.stop()
	}
}

// What is no response to the request is not passed on.
func TestUnusable(t *testing.T) {
	for text, says := range map[string]string{
		"HTTP/1.1 101 Switching Protocols\nConnection: Upgrade\nUpgrade: x\n\n": "switches protocols",
		"HTTP/1.1 099 Low\nContent-Length: 0\n\n":                               "status 99; want 200 to 999",
		"HTTP/1.1 000 None\nContent-Length: 0\n\n":                              "status 0; want 200 to 999",
		"HTTP/1.1 200 OK\nContent-Length: 5\n\nbrea":                            "not completely",
	} {
		f := through(t, server.Config{Workers: 1, Queue: 1}, Config{Upstream: answers(t, text)}, nil)
		for _, mode := range modes {
			res, body := f.do(f.request("GET", mode+"/x", nil))
			f.problem(mode+text, res, body, 502, says)
		}
		f.stop()
	}
}

// However long what a client sends is, the log is not.
func TestShortLog(t *testing.T) {
	f := through(t, server.Config{Workers: 4, Queue: 4}, Config{Upstream: answers(t, strings.Repeat("no HTTP ", 1000))}, nil)
	for range 20 {
		f.do(f.request("GET", "/sync/"+strings.Repeat("%0a", 10_000), nil))
	}
	if text := f.log.String(); len(text) > 2000 || strings.Count(text, "upstream failed") != 1 || !strings.Contains(text, "bytes more)") {
		t.Errorf("%d bytes: %.3000s", len(text), text)
	}
}
