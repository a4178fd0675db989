package problem

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"holdfast/internal/budget"
	"holdfast/internal/memtest"
)

// details returns the detail of an answer, which must be a problem with the status.
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
		rec.Header().Set("Content-Type", "text/html") // as a handler may have set it
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

// Wrapped handlers can each read the body: a handler that reads it completely
// leaves it complete for the next one, however it arrived.
func TestReadBodyAgain(t *testing.T) {
	for _, test := range []struct {
		name   string
		body   string
		length int64 // as the header says; -1: not at all
	}{
		{"empty", "", 0},
		{"empty, no length", "", -1},
		{"short", "0123456789", 10},
		{"short, no length", "0123456789", -1},
		{"as long as is trusted", strings.Repeat("x", small), small},
		{"longer than is trusted", strings.Repeat("x", small+1), small + 1},
		{"long, no length", strings.Repeat("x", 100_000), -1},
	} {
		t.Run(test.name, func(t *testing.T) {
			const limit = 100_000
			// In pieces, as from a network connection.
			r := httptest.NewRequest("POST", "/", iotest.HalfReader(strings.NewReader(test.body)))
			r.ContentLength = test.length
			rec := httptest.NewRecorder()
			for range 3 {
				body, ok := ReadBody(rec, r, limit)
				if !ok || string(body) != test.body {
					t.Fatalf("%d bytes, %v; want %d", len(body), ok, len(test.body))
				}
			}
			// Handlers that don't use ReadBody can read the body as usual.
			if err := iotest.TestReader(r.Body, []byte(test.body)); err != nil {
				t.Error(err)
			}
			if err := r.Body.Close(); err != nil {
				t.Error(err)
			}
			if n, err := r.Body.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("read after the end: %d, %v", n, err)
			}
			if rec.Body.Len() > 0 || len(rec.Header()) > 0 {
				t.Errorf("answered %v %q", rec.Header(), rec.Body)
			}
			if r.ContentLength != test.length {
				t.Errorf("length %d, want %d", r.ContentLength, test.length)
			}

			// A second, smaller limit applies to it as to a new body.
			if test.length > 1 {
				rec := httptest.NewRecorder()
				if body, ok := ReadBody(rec, r, test.length-1); ok || body != nil {
					t.Errorf("%d bytes pass a limit of %d", len(body), test.length-1)
				}
				details(t, rec.Result(), 413)
			}
		})
	}
}

// If part of the body has been read already, the rest is the body, for later
// readers too.
func TestReadBodyPart(t *testing.T) {
	for _, length := range []int64{10, -1} {
		r := httptest.NewRequest("POST", "/", strings.NewReader("0123456789"))
		r.ContentLength = length
		if _, ok := ReadBody(httptest.NewRecorder(), r, 10); !ok {
			t.Fatal("not read")
		}
		if _, err := io.ReadFull(r.Body, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if body, ok := ReadBody(httptest.NewRecorder(), r, 10); !ok || string(body) != "456789" {
				t.Errorf("%q, %v; want the rest", body, ok)
			}
		}
		if b, err := io.ReadAll(r.Body); string(b) != "456789" || err != nil {
			t.Errorf("then %q, %v", b, err)
		}
	}
}

// A middleware may replace the body, say with a decompressed one. Its length then
// differs from the Content-Length.
func TestReadBodyReplaced(t *testing.T) {
	for _, said := range []int64{0, 1, 9, 10, 11, 19, 20} {
		for _, n := range []int{0, 1, 9, 10, 19, 20, 21, 5000} {
			for name, in := range map[string]func(io.Reader) io.Reader{"whole": func(r io.Reader) io.Reader { return r }, "in bytes": iotest.OneByteReader, "with its end": iotest.DataErrReader} {
				const limit = 20
				want := strings.Repeat("x", n)
				r := httptest.NewRequest("POST", "/", in(strings.NewReader(want)))
				r.ContentLength = said
				rec := httptest.NewRecorder()
				body, ok := ReadBody(rec, r, limit)
				switch {
				case n > limit && (ok || body != nil || rec.Code != 413):
					t.Errorf("%d bytes %s, said to be %d, pass a limit of %d: %d bytes, status %d", n, name, said, limit, len(body), rec.Code)
				case n <= limit && (!ok || string(body) != want):
					t.Errorf("%d bytes %s, said to be %d: %d bytes, %v", n, name, said, len(body), ok)
				}
			}
		}
	}
}

// A refused body is not kept, so that no handler takes a part for the whole.
func TestReadBodyRefused(t *testing.T) {
	r := httptest.NewRequest("POST", "/", strings.NewReader("0123456789"))
	r.ContentLength = -1
	if _, ok := ReadBody(httptest.NewRecorder(), r, 5); ok {
		t.Error("the body was accepted")
	}
	if _, ok := r.Body.(*Body); ok {
		t.Error("the refused body was kept")
	}
}

// Two bodies over the same bytes are read independently.
func TestNewBody(t *testing.T) {
	data := []byte("0123456789")
	one, two := NewBody(data), NewBody(data)
	if b, err := io.ReadAll(one); string(b) != "0123456789" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	if err := iotest.TestReader(two, data); err != nil {
		t.Error(err)
	}
	if err := iotest.TestReader(NewBody(nil), nil); err != nil {
		t.Error(err)
	}
}

// wrapped hides net/http's ResponseWriter, as a middleware does.
type nested struct{ http.ResponseWriter }

func (w nested) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// A client that sends too much gets an answer, and then the connection is closed.
func TestReadBodyCloses(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, ok := ReadBody(nested{nested{w}}, r, 10); ok {
			t.Error("the body was accepted")
		}
	}))
	defer s.Close()
	// Without a length, and short enough for the server to read the rest.
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

// A client that is still sending on a connection that is to end anyway has time to read
// its answer.
func TestReadBodyLingers(t *testing.T) {
	for _, header := range []string{
		"HTTP/1.0\r\nContent-Length: 1000000", "HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 1000000",
		"HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 8000", // for which there is no memory
	} {
		synctest.Test(t, func(t *testing.T) {
			l := memtest.Listen()
			s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				var hold budget.Hold
				hold.Open(budget.New(4000, nil, func() int { return 1 }), 0)
				if _, ok := ReadBodyInto(&hold, nested{w}, r, 10_000); ok {
					t.Error("the body was accepted")
				}
			})}
			go s.Serve(l)
			defer s.Close()
			conn, closed := l.MustDial(t)
			io.WriteString(conn, "POST / "+header+"\r\n\r\n")
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil || res.StatusCode < 400 {
				t.Fatalf("%q: %v, %v", header, res, err)
			}
			io.Copy(io.Discard, res.Body)
			answered := time.Now()
			<-closed
			if time.Since(answered) == 0 {
				t.Errorf("%q: closed at once", header)
			}
		})
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
		want           string // body, or for a problem Allow
	}{
		{"GET", "/", 200, "root"},
		{"HEAD", "/", 200, "root"},
		{"POST", "/work?x=1", 200, "work"},
		{"GET", "/jobs/7", 200, "job 7"},
		{"DELETE", "/jobs/7", 200, "gone 7"},
		{"GET", "/tree/a/b", 200, "tree"},
		{"GET", "/missing", 404, "404 page not found\n"}, // the handler's own

		{"GET", "/nowhere", -404, ""},
		{"POST", "/work/", -404, ""},
		{"GET", "/Work", -404, ""},
		{"GET", "//nowhere", -404, ""},
		{"GET", "/tree", -404, ""},   // mux alone would redirect
		{"POST", "//work", -404, ""}, // likewise
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
			default:
				if got := rec.Body.String(); res.StatusCode != test.status || got != test.want {
					t.Errorf("%d %q, want %d %q", res.StatusCode, got, test.status, test.want)
				}
			}
		})
	}
}
