package server

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// reach serves a request by crossOrigin, and tells whether it came through.
func reach(c Config, method string, header ...string) (rec *httptest.ResponseRecorder, through bool) {
	h := crossOrigin(c, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		through = true
		w.WriteHeader(http.StatusAccepted)
	}))
	r := httptest.NewRequest(method, "http://holdfast.example/bbb", nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	rec = httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return rec, through
}

// A page of another site may send what changes something only if its origin is listed.
func TestCrossSiteRequests(t *testing.T) {
	const evil, app = "https://evil.example", "https://app.example"
	none, listed := Config{}, Config{CORSOrigins: "http://other.example," + app}
	public := Config{PublicURL: "https://front.example/queue"}
	for _, test := range []struct {
		what    string
		c       Config
		method  string
		header  []string
		through bool
	}{
		{"curl", none, "POST", nil, true},
		{"the server's own page", none, "POST", []string{"Sec-Fetch-Site", "same-origin", "Origin", "http://holdfast.example"}, true},
		{"the user", none, "POST", []string{"Sec-Fetch-Site", "none"}, true},
		{"a no-cors POST", none, "POST", []string{"Sec-Fetch-Site", "cross-site", "Origin", evil}, false},
		{"a form of a sandboxed frame", none, "POST", []string{"Sec-Fetch-Site", "cross-site", "Origin", "null"}, false},
		{"a sibling", none, "DELETE", []string{"Sec-Fetch-Site", "same-site", "Origin", "http://evil.holdfast.example"}, false},
		{"an old browser", none, "POST", []string{"Origin", evil}, false},
		{"an old browser, own page", none, "POST", []string{"Origin", "http://holdfast.example"}, true},
		{"a read", none, "GET", []string{"Sec-Fetch-Site", "cross-site", "Origin", evil}, true}, // whose answer the page does not see
		{"listed", listed, "POST", []string{"Sec-Fetch-Site", "cross-site", "Origin", app}, true},
		{"listed, old browser", listed, "DELETE", []string{"Origin", app}, true},
		{"not the one that is listed", listed, "POST", []string{"Sec-Fetch-Site", "cross-site", "Origin", evil}, false},
		{"its subdomain", listed, "POST", []string{"Sec-Fetch-Site", "cross-site", "Origin", "https://x.app.example"}, false},
		{"its prefix", listed, "POST", []string{"Sec-Fetch-Site", "cross-site", "Origin", app + ".evil.example"}, false},
		{"another scheme", listed, "POST", []string{"Sec-Fetch-Site", "cross-site", "Origin", "http://app.example"}, false},
		{"another port", listed, "POST", []string{"Sec-Fetch-Site", "cross-site", "Origin", app + ":8443"}, false},
		{"the public URL, through a proxy that changes Host", public, "POST", []string{"Origin", "https://front.example"}, true},
		{"not the public URL", public, "POST", []string{"Origin", evil}, false},
	} {
		rec, through := reach(test.c, test.method, test.header...)
		if through != test.through {
			t.Errorf("%s: came through: %v", test.what, through)
		}
		var p struct{ Status int }
		if !through && (rec.Code != 403 || json.Unmarshal(rec.Body.Bytes(), &p) != nil || p.Status != 403) {
			t.Errorf("%s: %d %s, want a problem", test.what, rec.Code, rec.Body)
		}
	}
}

// A page of a listed origin sees the answers, and no other does.
func TestCORS(t *testing.T) {
	c := Config{CORSOrigins: "https://app.example,http://localhost:3000"}
	preflight := []string{"Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "content-type,idempotency-key"}
	for _, origin := range []string{"https://app.example", "http://localhost:3000"} {
		rec, through := reach(c, "OPTIONS", append(preflight, "Origin", origin)...)
		checkHeaders(t, "preflight", rec.Header(), map[string]string{
			"Access-Control-Allow-Origin": origin, "Access-Control-Allow-Credentials": "true",
			"Access-Control-Allow-Methods": "POST", "Access-Control-Allow-Headers": "content-type,idempotency-key",
			"Access-Control-Max-Age": "600", "Vary": "Origin",
		})
		if through || rec.Code != 204 || rec.Body.Len() > 0 {
			t.Errorf("preflight: %d %s, came through: %v", rec.Code, rec.Body, through)
		}
		for _, method := range []string{"GET", "HEAD", "POST", "DELETE", "OPTIONS"} { // this is no preflight
			rec, through := reach(c, method, "Origin", origin, "Sec-Fetch-Site", "cross-site")
			checkHeaders(t, method, rec.Header(), map[string]string{
				"Access-Control-Allow-Origin": origin, "Access-Control-Allow-Credentials": "true", "Vary": "Origin",
				"Access-Control-Expose-Headers": exposed, "Access-Control-Allow-Methods": "",
			})
			if !through || rec.Code != 202 {
				t.Errorf("%s: %d", method, rec.Code)
			}
		}
	}
	hidden := map[string]string{"Access-Control-Allow-Origin": "", "Access-Control-Allow-Credentials": "", "Access-Control-Allow-Methods": "", "Access-Control-Expose-Headers": ""}
	for _, origin := range []string{"", "null", "https://evil.example", "https://app.example, https://evil.example", "http://localhost:3000/", "HTTPS://APP.EXAMPLE", "*"} {
		for _, method := range []string{"GET", "OPTIONS"} {
			rec, through := reach(c, method, append(preflight, "Origin", origin)...)
			hidden["Vary"] = "Origin" // or a cache would give this answer to the other
			checkHeaders(t, method+" of "+origin, rec.Header(), hidden)
			if !through {
				t.Errorf("%s of %q does not come through", method, origin)
			}
		}
	}
	// Without a list there is no sign of it.
	hidden["Vary"] = ""
	rec, through := reach(Config{}, "OPTIONS", append(preflight, "Origin", "https://app.example")...)
	checkHeaders(t, "no list", rec.Header(), hidden)
	if !through {
		t.Error("without a list a preflight does not come through")
	}
}

func checkHeaders(t *testing.T, what string, h http.Header, want map[string]string) {
	t.Helper()
	for name, value := range want {
		if got := strings.Join(h[name], "|"); got != value {
			t.Errorf("%s: %s is %q, want %q", what, name, got, value)
		}
	}
}

func TestOriginSpelling(t *testing.T) {
	var v origins
	if err := v.Set(" https://App.Example:443, HTTP://localhost:3000 ,http://h:80,https://h:80,http://[::1]:9"); err != nil || v != "https://app.example,http://localhost:3000,http://h,https://h:80,http://[::1]:9" {
		t.Errorf("%q, %v", v, err)
	}
	// What is taken is what the protection against cross-site requests takes too.
	crossOrigin(Config{CORSOrigins: string(v)}, http.NotFoundHandler())
}
