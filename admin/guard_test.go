package admin

import (
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"

	"holdfast"
)

const token = "0123456789abcdef"

// everything has a request for each route, except those for health.
var everything = []struct{ method, target, body string }{
	{"GET", "/", ""},
	{"GET", "/page.js", ""},
	{"GET", "/stats", ""},
	{"GET", "/events", ""},
	{"GET", "/metrics", ""},
	{"GET", "/jobs.html", ""},
	{"GET", "/jobs.js", ""},
	{"GET", "/common.js", ""},
	{"GET", "/jobs", ""},
	{"GET", "/jobs/AAAAAAAAAAAAAAAAAAAAAAAAAA/head", ""},
	{"GET", "/jobs/AAAAAAAAAAAAAAAAAAAAAAAAAA", ""},
	{"DELETE", "/jobs/AAAAAAAAAAAAAAAAAAAAAAAAAA", ""},
	{"GET", "/debug/vars", ""},
	{"GET", "/debug/pprof/", ""},
	{"GET", "/debug/pprof/profile", ""},
	{"GET", "/debug/pprof/heap", ""},
	{"GET", "/debug/pprof/trace", ""},
	{"POST", "/debug/pprof/symbol", "0x1"},
	{"PATCH", "/dispatcher", `{"workers":3}`},
	{"POST", "/burst", `{"path":"/bbb","jobs":1}`},
	{"DELETE", "/burst", ""},
	{"GET", "/nowhere", ""},
	{"OPTIONS", "/dispatcher", ""},
	{"HEAD", "/stats", ""},
}

// A request from another origin, for another host or without the token reads nothing
// and changes nothing.
func TestGuardRefuses(t *testing.T) {
	for _, test := range []struct {
		name   string
		token  string
		header []string
		status int
		health bool // is refused /healthz as well
	}{
		{"another site", "", []string{"Sec-Fetch-Site: cross-site"}, 403, true},
		{"another site's image", "", []string{"Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: image"}, 403, true},
		{"another site's frame", "", []string{"Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: iframe"}, 403, true},
		{"another port of localhost", "", []string{"Sec-Fetch-Site: same-site"}, 403, true},
		{"an old browser's other origin", "", []string{"Origin: http://evil.example"}, 403, true},
		{"another origin on this machine", "", []string{"Origin: http://127.0.0.1:3000"}, 403, true},
		{"an origin that is not told", "", []string{"Origin: null"}, 403, true},
		{"another origin that says it is the same", "", []string{"Host: evil.example:8100", "Sec-Fetch-Site: same-origin", "Origin: http://evil.example:8100"}, 421, true},
		{"another host", "", []string{"Host: evil.example"}, 421, true},
		{"a host that only begins right", "", []string{"Host: localhost.evil.example:8100"}, 421, true},
		{"a host that only ends right", "", []string{"Host: evil-localhost"}, 421, true},
		{"an address as part of a name", "", []string{"Host: 127.0.0.1.evil.example"}, 421, true},
		{"no host", "", []string{"Host: "}, 421, true},
		{"no token", token, nil, 401, false},
		{"an empty token", token, []string{"Authorization: Bearer "}, 401, false},
		{"another token", token, []string{"Authorization: Bearer 0123456789abcdeF"}, 401, false},
		{"a part of the token", token, []string{"Authorization: Bearer 0123456789abcde"}, 401, false},
		{"more than the token", token, []string{"Authorization: Bearer 0123456789abcdef0"}, 401, false},
		{"another scheme", token, []string{"Authorization: Digest " + token}, 401, false},
		{"the token bare", token, []string{"Authorization: " + token}, 401, false},
		{"another password", token, []string{basic("admin", "admin")}, 401, false},
		{"the token as the user", token, []string{basic(token, "")}, 401, false},
		{"the token, but another site", token, []string{"Authorization: Bearer " + token, "Sec-Fetch-Site: cross-site"}, 403, true},
		{"the token, but another host", token, []string{"Authorization: Bearer " + token, "Host: evil.example"}, 421, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // since wrong tokens take their time
				f := newFixture(t, holdfast.Config{Workers: 5, Queue: 200}, func(c *Config) { c.Token = test.token; c.Host = "ops.example" })
				for _, ask := range everything {
					w := f.do(ask.method, ask.target, ask.body, test.header...)
					f.expect(w, test.status)
					if len(w.Body.String()) > 300 {
						t.Errorf("%s %s tells %.300s", ask.method, ask.target, w.Body)
					}
					if challenge := w.Header().Get("WWW-Authenticate"); (w.Code == 401) != strings.HasPrefix(challenge, "Basic realm=") {
						t.Errorf("%s %s: %d with the challenge %q", ask.method, ask.target, w.Code, challenge)
					}
				}
				w := f.do("GET", "/healthz", "", test.header...)
				if (w.Code != 200) != test.health {
					t.Errorf("/healthz: %d", w.Code)
				}
				st := f.d.Stats()
				if st.Workers != 5 || st.Accepted != 0 || len(f.resized) != 0 {
					t.Errorf("%d workers, %d accepted: it has changed something", st.Workers, st.Accepted)
				}
			})
		})
	}
}

func TestGuardLetsThrough(t *testing.T) {
	for _, test := range []struct {
		name   string
		token  string
		header []string
	}{
		{"a program", "", nil},
		{"the page itself", "", []string{"Sec-Fetch-Site: same-origin", "Origin: http://127.0.0.1:8100"}},
		{"an old browser's page", "", []string{"Origin: http://127.0.0.1:8100"}},
		{"typed by the user", "", []string{"Sec-Fetch-Site: none"}},
		{"localhost", "", []string{"Host: localhost:8100"}},
		{"localhost by another port, through a tunnel", "", []string{"Host: LOCALHOST:9000"}},
		{"an address of IPv6", "", []string{"Host: [::1]:8100"}},
		{"the same without a port", "", []string{"Host: [::1]"}},
		{"an address of the network", "", []string{"Host: 192.0.2.1"}},
		{"the name in -admin", "", []string{"Host: Ops.example:8100"}},
		{"its own page over plain HTTP", "", []string{"Referer: http://127.0.0.1:8100/"}},
		{"bearer in small letters", token, []string{"Authorization: bearer " + token}},
		{"Bearer", token, []string{"Authorization: Bearer " + token}},
		{"Basic", token, []string{basic("", token)}},
		{"Basic with a user", token, []string{basic("admin", token)}},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFixture(t, holdfast.Config{Workers: 5, Queue: 200}, func(c *Config) { c.Token = test.token; c.Host = "ops.example" })
			f.expect(f.do("GET", "/stats", "", test.header...), 200)
			f.expect(f.do("GET", "/", "", test.header...), 200)
			f.expect(f.do("PATCH", "/dispatcher", `{"workers":3}`, test.header...), 200)
		})
	}
}

// Without a name in -admin every name is wrong, even the empty one.
func TestGuardWithoutHost(t *testing.T) {
	f := newFixture(t, holdfast.Config{Workers: 5, Queue: 200}, nil)
	for _, host := range []string{"", ":8100", "ops.example"} {
		f.expect(f.do("GET", "/stats", "", "Host: "+host), 421)
	}
}

// A link in a mail or a chat opens the page, and nothing else.
func TestGuardOpensThePage(t *testing.T) {
	f := newFixture(t, holdfast.Config{Workers: 5, Queue: 200}, nil)
	for _, opened := range [][]string{
		{"Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"},
		{"Referer: http://wiki.example/page"}, // over plain HTTP to another machine
		{"Referer: http://127.0.0.1:3000/"},
	} {
		f.expect(f.do("GET", "/", "", opened...), 200)
		for _, ask := range everything[1:] {
			f.expect(f.do(ask.method, ask.target, ask.body, opened...), 403)
		}
		f.expect(f.do("POST", "/", "", opened...), 403)
	}
}

func basic(user, password string) string {
	return "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// Those that the guard lets through are told of; the probes that need no token are
// not, and strangers are not.
func TestAdmitted(t *testing.T) {
	d, err := holdfast.New(holdfast.Config{Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Shutdown(t.Context())
	for _, test := range []struct {
		token, path, given string
		want               int
	}{
		{"", "/stats", "", 1},
		{"", "/healthz", "", 1},
		{"secret", "/stats", "", 0},
		{"secret", "/stats", "wrong", 0},
		{"secret", "/stats", "secret", 1},
		{"secret", "/healthz", "", 0},
	} {
		n := 0
		h := New(Config{Dispatcher: d, Token: test.token, Health: http.NotFoundHandler(), Admitted: func(*http.Request) { n++ }})
		r := httptest.NewRequest("GET", "http://localhost"+test.path, nil)
		if test.given != "" {
			r.Header.Set("Authorization", "Bearer "+test.given)
		}
		h.ServeHTTP(httptest.NewRecorder(), r)
		if n != test.want {
			t.Errorf("%+v: told %d times", test, n)
		}
	}
}
