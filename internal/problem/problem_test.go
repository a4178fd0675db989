package problem

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
)

// details reads an answer that has to be a problem with the status.
func details(t *testing.T, res *http.Response, status int) (detail string) {
	t.Helper()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	var p struct {
		Title  string
		Status int
		Detail string
	}
	if err := json.Unmarshal(body, &p); err != nil {
		t.Fatalf("%v in %q", err, body)
	}
	if res.StatusCode != status || p.Status != status || p.Title != http.StatusText(status) {
		t.Errorf("status %d, body %s; want %d %s in both", res.StatusCode, body, status, http.StatusText(status))
	}
	for name, want := range map[string]string{
		"Content-Type":           "application/problem+json",
		"Content-Length":         strconv.Itoa(len(body)),
		"X-Content-Type-Options": "nosniff",
	} {
		if got := res.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	return p.Detail
}

func TestWrite(t *testing.T) {
	for _, detail := range []string{"plain", `{"quoted": "\n"}`, "<script>", "\x00\xff", ""} {
		rec := httptest.NewRecorder()
		rec.Header().Set("Content-Type", "text/html") // what the handler may have begun
		Write(rec, http.StatusTeapot, detail)
		if body := rec.Body.String(); !strings.HasSuffix(body, "}\n") || strings.Count(body, "\n") != 1 {
			t.Errorf("%q is not one line", body)
		}
		if got, want := details(t, rec.Result(), http.StatusTeapot), strings.ToValidUTF8(detail, "\uFFFD"); got != want {
			t.Errorf("detail %q, want %q", got, want)
		}
	}
}

func TestReadBody(t *testing.T) {
	for _, test := range []struct {
		name   string
		body   io.Reader
		length int64 // as the header says; -1: not at all
		status int   // 0: none
		says   string
	}{
		{"empty", strings.NewReader(""), 0, 0, ""},
		{"at the limit", strings.NewReader("0123456789"), 10, 0, ""},
		{"at the limit, no length", strings.NewReader("0123456789"), -1, 0, ""},
		{"over the limit", strings.NewReader("0123456789x"), -1, 413, "at most 10 bytes"},
		{"far over the limit", strings.NewReader(strings.Repeat("x", 1000)), -1, 413, "at most 10 bytes"},
		{"said to be over the limit", iotest.ErrReader(errors.New("was read")), 11, 413, "at most 10 bytes"},
		{"broken off", io.MultiReader(strings.NewReader("01"), iotest.ErrReader(io.ErrUnexpectedEOF)), 5, 400, "could not be read"},
		{"error", iotest.ErrReader(errors.New("read tcp 10.0.0.1: secret")), -1, 400, "could not be read"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := httptest.NewRequest("POST", "/", test.body)
			r.ContentLength = test.length
			rec := httptest.NewRecorder()
			body, ok := ReadBody(rec, r, 10)
			if test.status == 0 {
				if want := strings.Repeat("0123456789", len(body)/10); !ok || string(body) != want || rec.Body.Len() > 0 || test.length > 0 && len(body) == 0 {
					t.Errorf("%q, %v; answered %q", body, ok, rec.Body)
				}
				return
			}
			if got := details(t, rec.Result(), test.status); ok || body != nil || !strings.Contains(got, test.says) || strings.Contains(got, "secret") {
				t.Errorf("%q, %v; says %q, want %q in it", body, ok, got, test.says)
			}
		})
	}
}

// wrapped hides net/http's writer, as a middleware's does.
type wrapped struct{ http.ResponseWriter }

func (w wrapped) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Whoever sends too much gets an answer, and then the connection is closed.
func TestReadBodyCloses(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, ok := ReadBody(wrapped{wrapped{w}}, r, 10); ok {
			t.Error("the body was accepted")
		}
	}))
	defer s.Close()
	// Without a length, and small enough for the server to read what is left.
	res, err := s.Client().Post(s.URL, "text/plain", struct{ io.Reader }{strings.NewReader(strings.Repeat("x", 1000))})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	details(t, res, 413)
	if !res.Close {
		t.Errorf("header %v, want Connection: close", res.Header)
	}
}

func TestMux(t *testing.T) {
	mux := http.NewServeMux()
	say := func(s string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, s+r.PathValue("id")) }
	}
	mux.HandleFunc("GET /{$}", say("root"))
	mux.HandleFunc("POST /work", say("work"))
	mux.HandleFunc("GET /jobs/{id}", say("job "))
	mux.HandleFunc("DELETE /jobs/{id}", say("gone "))
	mux.HandleFunc("GET /tree/", say("tree"))
	mux.HandleFunc("GET /missing", http.NotFound)
	h := Mux(mux)

	for _, test := range []struct {
		method, target string
		status         int
		want           string // body, Location, or for a problem Allow
	}{
		{"GET", "/", 200, "root"},
		{"HEAD", "/", 200, "root"},
		{"POST", "/work?x=1", 200, "work"},
		{"GET", "/jobs/7", 200, "job 7"},
		{"DELETE", "/jobs/7", 200, "gone 7"},
		{"GET", "/tree/a/b", 200, "tree"},
		{"GET", "/tree", 307, "/tree/"},
		{"POST", "//work", 307, "/work"},
		{"GET", "/missing", 404, "404 page not found\n"}, // the handler's own

		{"GET", "/nowhere", -404, ""},
		{"POST", "/work/", -404, ""},
		{"GET", "/Work", -404, ""},
		{"GET", "//nowhere", -404, ""},
		{"OPTIONS", "*", -404, ""},
		{"GET", "/work", -405, "POST"},
		{"HEAD", "/work", -405, "POST"},
		{"post", "/work", -405, "POST"},
		{"OPTIONS", "/work", -405, "POST"},
		{"CONNECT", "/work", -405, "POST"},
		{"POST", "/", -405, "GET, HEAD"},
		{"PUT", "/jobs/7", -405, "DELETE, GET, HEAD"},
	} {
		t.Run(test.method+" "+test.target, func(t *testing.T) {
			req := httptest.NewRequest("GET", "/", nil)
			req.Method, req.URL.Path, req.RequestURI = test.method, test.target, test.target
			if path, query, ok := strings.Cut(test.target, "?"); ok {
				req.URL.Path, req.URL.RawQuery = path, query
			}
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, req)
			res := rec.Result()
			switch {
			case test.status < 0:
				details(t, res, -test.status)
				if got := res.Header.Get("Allow"); got != test.want {
					t.Errorf("Allow %q, want %q", got, test.want)
				}
			case test.status == 307:
				if got := res.Header.Get("Location"); res.StatusCode != 307 || got != test.want {
					t.Errorf("%d to %q, want %d to %q", res.StatusCode, got, test.status, test.want)
				}
			default:
				if got := rec.Body.String(); res.StatusCode != test.status || got != test.want {
					t.Errorf("%d %q, want %d %q", res.StatusCode, got, test.status, test.want)
				}
			}
		})
	}
}
