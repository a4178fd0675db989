package exchange

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"holdfast/internal/problem"
)

const ample = 16 << 20 // a limit that no response in these tests reaches

// direct serves h as net/http does, with the header that Serve presets.
func direct(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Vary"] = []string{"Prefer"}
		h.ServeHTTP(w, r)
	})
}

// recorded serves the recorded response of h. The response goes through Append and
// Cut, as in the store.
func recorded(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, ok := problem.ReadBody(w, r, ample)
		if !ok {
			return
		}
		var x Exchange
		x.Capture(h, r, body, ample)
		if err := x.Serve(r.Context()); err != nil {
			w.Header().Set("Not-Recorded", err.Error())
			w.WriteHeader(599)
			return
		}
		response := Cut(x.Response().Append(nil), nil)
		x.Release()
		response.CopyHeader(w.Header())
		response.Write(w, r.Method)
	})
}

// A notebook holds what a handler saw, such as the errors of its writes.
type notebook struct {
	calls sync.WaitGroup // calls in progress: a client may have its answer before they end
	mu    sync.Mutex
	text  strings.Builder
}

type notebookKey struct{}

func note(r *http.Request, a ...any) {
	n := r.Context().Value(notebookKey{}).(*notebook)
	n.mu.Lock()
	defer n.mu.Unlock()
	fmt.Fprintln(&n.text, a...)
}

func (n *notebook) take() string {
	n.calls.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	defer n.text.Reset()
	return n.text.String()
}

// start starts a server whose handlers can take notes.
func start(t *testing.T, h http.Handler) (addr string, notes *notebook) {
	notes = new(notebook)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		notes.calls.Add(1)
		defer notes.calls.Done()
		h.ServeHTTP(w, r)
	}))
	s.Config.BaseContext = func(net.Listener) context.Context {
		return context.WithValue(context.Background(), notebookKey{}, notes)
	}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String(), notes
}

// A call is a request, and the handler that answers it.
type call struct {
	name    string
	handler http.Handler
	method  string // empty: GET and HEAD
	target  string // empty: /
	header  []string
	body    string
}

// raw sends a call over a new connection, and returns the bytes of the answer in a
// form that can be compared: with the header lines sorted, since net/http appends
// its own ones; without the Date; and without the chunk lengths.
func raw(t *testing.T, addr, proto string, c call) string {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	lines := append([]string{c.method + " " + c.target + " " + proto, "Host: example.test", "Connection: close"}, c.header...)
	if c.body != "" {
		lines = append(lines, "Content-Length: "+strconv.Itoa(len(c.body)))
	}
	if _, err := io.WriteString(conn, strings.Join(lines, "\r\n")+"\r\n\r\n"+c.body); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	head, body, ok := strings.Cut(string(answer), "\r\n\r\n")
	if !ok {
		t.Fatalf("no end of a header in %q", answer)
	}
	fields := strings.Split(head, "\r\n")
	for i, f := range fields {
		if strings.HasPrefix(f, "Date: ") {
			fields[i] = "Date"
		}
	}
	slices.Sort(fields[1:])
	var trailer []string
	if slices.Contains(fields, "Transfer-Encoding: chunked") && c.method != "HEAD" {
		rest := bufio.NewReader(strings.NewReader(body))
		b, err := io.ReadAll(httputil.NewChunkedReader(rest))
		if err != nil {
			t.Errorf("chunks: %v", err)
		}
		tail, _ := io.ReadAll(rest)
		trailer = strings.Split(string(tail), "\r\n")
		slices.Sort(trailer)
		body = string(b)
	}
	return normalize(fmt.Sprintf("%s\ntrailer %q\n%s", strings.Join(fields, "\n"), trailer, body))
}

var boundary = regexp.MustCompile(`boundary="?([0-9a-zA-Z]{20,})`)

// normalize removes the random boundary and shortens long texts.
func normalize(s string) string {
	if m := boundary.FindStringSubmatch(s); m != nil {
		s = strings.ReplaceAll(s, m[1], "BOUNDARY")
	}
	if len(s) > 4000 {
		s = fmt.Sprintf("%.1000s… %d bytes with hash %x", s, len(s), sha256.Sum256([]byte(s)))
	}
	return s
}

// viaTransport sends a call with an http.Transport, and returns everything that the
// Transport says about the response.
func viaTransport(t *testing.T, transport *http.Transport, addr string, c call) string {
	t.Helper()
	req, err := http.NewRequest(c.method, "http://"+addr+c.target, strings.NewReader(c.body))
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "example.test"
	for _, line := range c.header {
		name, value, _ := strings.Cut(line, ": ")
		req.Header.Add(name, value)
	}
	res, err := transport.RoundTrip(req)
	if err != nil {
		return "error"
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	_, dated := res.Header["Date"]
	delete(res.Header, "Date")
	return normalize(fmt.Sprintf("%s %s\nheader %q, date %v\nlength %d, coding %v, close %v\ntrailer %q\nerror %v\n%s",
		res.Proto, res.Status, res.Header, dated, res.ContentLength, res.TransferEncoding, res.Close, res.Trailer, err, body))
}

// same checks that neither a client nor the handler can tell a recorded response
// from a direct one.
func same(t *testing.T, calls []call) {
	t.Helper()
	transport := &http.Transport{DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	for _, c := range calls {
		if c.target == "" {
			c.target = "/"
		}
		methods := []string{"GET", "HEAD"}
		if c.method != "" {
			methods = []string{c.method}
		}
		for _, c.method = range methods {
			t.Run(c.name+" "+c.method, func(t *testing.T) {
				addr, notes := start(t, direct(c.handler))
				addr2, notes2 := start(t, recorded(c.handler))
				compare := func(way, want, got string) {
					t.Helper()
					if got != want {
						t.Errorf("%s, recorded:\n%s\n---- direct:\n%s", way, got, want)
					}
					if want, got := notes.take(), notes2.take(); got != want {
						t.Errorf("%s, the handler saw:\n%s---- direct:\n%s", way, got, want)
					}
				}
				compare("HTTP/1.1", raw(t, addr, "HTTP/1.1", c), raw(t, addr2, "HTTP/1.1", c))
				compare("HTTP/1.0", raw(t, addr, "HTTP/1.0", c), raw(t, addr2, "HTTP/1.0", c))
				compare("Transport", viaTransport(t, transport, addr, c), viaTransport(t, transport, addr2, c))
			})
		}
	}
}

// write returns a handler that writes chunks one after the other.
func write(chunks ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		for _, c := range chunks {
			b := []byte(c)
			note(r, fmt.Sprint(w.Write(b)))
			if string(b) != c {
				note(r, "Write changed the handler's bytes")
			}
			clear(b) // a Writer must not keep them
		}
	}
}

// set returns a handler that sets a header before h. Without values, it keeps the
// server from setting the header.
func set(h http.Handler, name string, values ...string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()[name] = values
		h.ServeHTTP(w, r)
	})
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(code) }
}

func flush(w http.ResponseWriter, r *http.Request) { w.(http.Flusher).Flush() }

func control(w http.ResponseWriter, r *http.Request) {
	note(r, http.NewResponseController(w).Flush())
}

// steps returns a handler that calls handlers one after the other.
func steps(handlers ...http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, h := range handlers {
			h(w, r)
		}
	})
}

func TestWrites(t *testing.T) {
	calls := []call{
		{name: "nothing", handler: steps()},
		{name: "empty write", handler: write("")},
		{name: "nil write", handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { note(r, fmt.Sprint(w.Write(nil))) })},
		{name: "string", handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { note(r, fmt.Sprint(io.WriteString(w, "text"))) })},
		{name: "POST", handler: write("text"), method: "POST", body: "x"},
		{name: "own method", handler: write("text"), method: "BREW"},
		{name: "empty between", handler: write("a", "", "b")},
		{name: "status and no body", handler: status(201)},
		{name: "html", handler: write("<!DOCTYPE html><p>")},
		{name: "late html", handler: write(" \n", "<htm", "l>")},
		{name: "png", handler: write("\x89PNG\x0d\x0a\x1a\x0a", "…")},
		{name: "binary", handler: write("\x00\x01\x02\xff")},
		{name: "binary after text", handler: write(strings.Repeat("x", 600), "\x00\x01")},
		{name: "binary at 511", handler: write(strings.Repeat("x", 511), "\x00")},
		{name: "binary at 512", handler: write(strings.Repeat("x", 512), "\x00")},
		{name: "json", handler: write(`{"a":1}`)},
		{name: "bytes in 3000 writes", handler: write(strings.Split(strings.Repeat("x", 3000), "")...)},
		{name: "superfluous status", handler: steps(status(404), write("x"), status(200), write("y"))},
		{name: "status after a write", handler: steps(write("x"), status(500))},
		{name: "header after status", handler: set(steps(status(200), set(write("x"), "X-A", "late").ServeHTTP), "X-A", "early")},
		{name: "type after a write", handler: steps(write("x"), set(steps(), "Content-Type", "a/b").ServeHTTP)},
		{name: "length after a write", handler: steps(write("x"), set(write("y"), "Content-Length", "1").ServeHTTP)},
		{name: "header deleted after a write", handler: set(steps(write("x"), func(w http.ResponseWriter, r *http.Request) { clear(w.Header()) }), "X-A", "b")},
	}
	for _, n := range []int{1, 511, 512, 513, 2047, 2048, 2049, 4095, 4096, 4097, 1 << 20} {
		body := strings.Repeat("0123456789abcdef", n/16+1)[:n]
		calls = append(calls,
			call{name: fmt.Sprintf("%d bytes", n), handler: write(body)},
			call{name: fmt.Sprintf("%d bytes in two writes", n), handler: write(body[:n/2], body[n/2:])},
			call{name: fmt.Sprintf("%d bytes and one", n), handler: write(body[:n-1], body[n-1:])},
			call{name: fmt.Sprintf("%d bytes of a type", n), handler: set(write(body), "Content-Type", "a/b")},
			call{name: fmt.Sprintf("%d bytes of a length", n), handler: set(write(body), "Content-Length", strconv.Itoa(n))},
			call{name: fmt.Sprintf("%d bytes, flushed at the end", n), handler: steps(write(body), flush)},
			call{name: fmt.Sprintf("%d bytes, flushed in between", n), handler: steps(write(body[:n/2]), flush, write(body[n/2:]))},
		)
	}
	same(t, calls)
}

func TestFlush(t *testing.T) {
	html := []string{"<!DOCTYPE html>", "\x00\x01"}
	same(t, []call{
		{name: "only", handler: steps(flush)},
		{name: "control only", handler: steps(control)},
		{name: "before", handler: steps(flush, write(html...))},
		{name: "control before", handler: steps(control, write(html...))},
		{name: "between", handler: steps(write(html[0]), flush, write(html[1]))},
		{name: "between white space", handler: steps(write(" "), flush, write("<html>"))},
		{name: "control between", handler: steps(write(html[0]), control, write(html[1]))},
		{name: "after", handler: steps(write(html...), flush)},
		{name: "control after", handler: steps(write(html...), control)},
		{name: "often", handler: steps(flush, flush, write("a"), flush, control, write("b"), control)},
		{name: "after an empty write", handler: steps(write(""), flush, write("<html>"))},
		{name: "status before", handler: steps(status(404), flush, write("x"))},
		{name: "status after", handler: steps(flush, status(404), write("x"))},
		{name: "header after", handler: steps(flush, set(write("x"), "X-A", "b").ServeHTTP)},
		{name: "204", handler: steps(status(204), flush)},
		{name: "304", handler: steps(status(304), flush, write("x"))},
		{name: "of a type", handler: set(steps(flush, write("x")), "Content-Type", "a/b")},
		{name: "of a length", handler: set(steps(flush, write("x")), "Content-Length", "1")},
		{name: "of length 0", handler: set(steps(flush), "Content-Length", "0")},
		{name: "before a large body", handler: steps(flush, write(strings.Repeat("x", 5000)))},
		{name: "after a large body", handler: steps(write(strings.Repeat("x", 5000)), flush)},
		{name: "events", handler: set(steps(write("data: 1\n\n"), flush, write("data: 2\n\n"), flush), "Content-Type", "text/event-stream")},
	})
}

func TestHeaders(t *testing.T) {
	odd := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h["lower-case"] = []string{"a"}
		h["X-Many"] = []string{"1", "2", "", "3"}
		h["X-Empty"] = []string{""}
		h["X-None"] = []string{}
		h["X-Newline"] = []string{"a\r\nInjected: b\nc"}
		h["X-Space"] = []string{" \ta b\t "}
		h["X-Binary"] = []string{"\xff\x01"}
		h["bad name"] = []string{"x"}
		h["bad\r\nInjected: x"] = []string{"x"}
		h[""] = []string{"x"}
		h["Set-Cookie"] = []string{"a=b; Path=/", "c=d"}
		w.WriteHeader(http.StatusTeapot)
		io.WriteString(w, "teapot")
	})
	large := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for i := range 500 {
			w.Header().Set("X-"+strconv.Itoa(i), strings.Repeat("v", i))
		}
	})
	same(t, []call{
		{name: "odd", handler: odd},
		{name: "large", handler: large},
		{name: "no date", handler: set(write("x"), "Date")},
		{name: "own date", handler: set(write("x"), "Date", "then")},
		{name: "no type", handler: set(write("<html>"), "Content-Type")},
		{name: "empty type", handler: set(write("<html>"), "Content-Type", "")},
		{name: "no type, flushed", handler: set(steps(write("<html>"), flush), "Content-Type")},
		{name: "two types", handler: set(write("x"), "Content-Type", "a/b", "c/d")},
		{name: "lower-case type", handler: set(set(write("x"), "content-type", "a/b"), "Content-Type", "c/d")},
		{name: "lower-case length", handler: set(write("x"), "content-length", "1"), method: "HEAD"},
		{name: "encoding", handler: set(write("\x1f\x8b\x08"), "Content-Encoding", "gzip")},
		{name: "encoding, flushed", handler: set(steps(write("\x1f\x8b\x08"), flush), "Content-Encoding", "gzip")},
		{name: "empty encoding", handler: set(write("\x1f\x8b\x08"), "Content-Encoding", "")},
		{name: "no encoding", handler: set(write("\x1f\x8b\x08"), "Content-Encoding")},
		{name: "second encoding", handler: set(write("\x1f\x8b\x08"), "Content-Encoding", "", "gzip")},
		{name: "close", handler: set(write("x"), "Connection", "close")},
		{name: "chunked", handler: set(write("x"), "Transfer-Encoding", "chunked"), method: "GET"},
		{name: "identity", handler: set(write("x"), "Transfer-Encoding", "identity"), method: "GET"},
		{name: "Vary", handler: set(write("x"), "Vary", "Accept")},
		{name: "another Vary", handler: steps(func(w http.ResponseWriter, r *http.Request) { w.Header().Add("Vary", "Accept") }, write("x"))},

		{name: "length", handler: set(write("abc"), "Content-Length", "3")},
		{name: "length 0", handler: set(steps(), "Content-Length", "0")},
		{name: "length of HEAD", handler: set(steps(), "Content-Length", "1234567"), method: "HEAD"},
		{name: "length of HEAD and a body", handler: set(write("abc"), "Content-Length", "1234567"), method: "HEAD"},
		{name: "length too small", handler: set(write("abc", "d"), "Content-Length", "3")},
		{name: "length 0 too small", handler: set(write("a", "b"), "Content-Length", "0")},
		{name: "two lengths", handler: set(write("abc"), "Content-Length", "3", "4")},
	})
}

// An invalid Content-Length is left out. The server can send it to an HTTP/1.0
// client, without adding a valid one; that is not imitated.
func TestInvalidLength(t *testing.T) {
	transport := &http.Transport{DisableCompression: true}
	defer transport.CloseIdleConnections()
	for _, length := range []string{"", "x", "-1", "1.5", " 3", "0x3", "9223372036854775808", "99999999999999999999"} {
		for _, body := range []string{"abc", strings.Repeat("x", 5000)} {
			h := set(write(body), "Content-Length", length)
			for _, proto := range []string{"HTTP/1.0", "HTTP/1.1"} {
				addr, notes := start(t, recorded(h))
				answer := raw(t, addr, proto, call{method: "GET", target: "/"})
				if strings.Contains(answer, "Content-Length") && !strings.Contains(answer, "Content-Length: 3\n") {
					t.Errorf("%q of %d bytes: %s", length, len(body), answer)
				}
				if got, want := notes.take(), fmt.Sprintln(len(body), "<nil>"); got != want {
					t.Errorf("%q: the write says %s, want %s", length, got, want)
				}
			}
			addr, _ := start(t, direct(h))
			addr2, _ := start(t, recorded(h))
			read := func(addr string) string {
				res, err := transport.RoundTrip(httptest.NewRequest("GET", "http://"+addr, nil))
				if err != nil {
					t.Fatal(err)
				}
				defer res.Body.Close()
				body, err := io.ReadAll(res.Body)
				return fmt.Sprintf("%s, type %q, close %v, %v, %s", res.Status, res.Header["Content-Type"], res.Close, err, body)
			}
			if want, got := read(addr), read(addr2); got != want {
				t.Errorf("%q of %d bytes, recorded: %s\n---- direct: %s", length, len(body), got, want)
			}
		}
	}
}

func TestStatus(t *testing.T) {
	early := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
	}
	var calls []call
	for _, code := range []int{200, 201, 202, 203, 205, 206, 301, 400, 404, 418, 499, 500, 503, 599, 600, 999} {
		calls = append(calls, call{name: strconv.Itoa(code), handler: steps(status(code), write("x"))})
	}
	for _, code := range []int{204, 304} {
		for _, length := range []string{"", "1", "0", "x"} {
			for _, mime := range []string{"", "a/b"} {
				h := steps(status(code), write("", "x", "y"))
				if length != "" {
					h = set(h, "Content-Length", length)
				}
				if mime != "" {
					h = set(h, "Content-Type", mime)
				}
				calls = append(calls, call{name: fmt.Sprintf("%d with length %q, type %q", code, length, mime), handler: h})
			}
		}
	}
	calls = append(calls, call{name: "0 after 200", handler: steps(status(200), status(201))})
	same(t, calls)

	// The recorder ignores informational statuses. The server sends them, so only the
	// final answers are compared.
	for _, h := range []http.Handler{
		steps(early, early, write("x")),
		steps(early, status(404), write("x")),
		steps(status(100), status(102), status(199), write("x")),
		steps(early),
		steps(status(200), status(103), write("x")),
	} {
		addr, _ := start(t, direct(h))
		addr2, _ := start(t, recorded(h))
		transport := &http.Transport{DisableCompression: true}
		c := call{method: "GET", target: "/"}
		if want, got := viaTransport(t, transport, addr, c), viaTransport(t, transport, addr2, c); got != want || strings.Contains(got, "Link") {
			t.Errorf("recorded:\n%s\n---- direct:\n%s", got, want)
		}
		transport.CloseIdleConnections()
	}
}

func TestTrailers(t *testing.T) {
	declare := func(names ...string) http.HandlerFunc { return set(steps(), "Trailer", names...).ServeHTTP }
	late := func(name string, values ...string) http.HandlerFunc { return set(steps(), name, values...).ServeHTTP }
	big := write(strings.Repeat("x", 3000))
	calls := []call{
		{name: "declared", handler: steps(declare("X-Sum"), write("x"), late("X-Sum", "1"))},
		{name: "declared, two values", handler: steps(declare("X-Sum"), write("x"), late("X-Sum", "1", "2"))},
		{name: "declared, large", handler: steps(declare("X-Sum"), big, late("X-Sum", "1"))},
		{name: "declared in a list", handler: steps(declare("X-A, x-b,,\tX-C "), write("x"), late("X-A", "1"), late("X-B", "2"), late("X-C", "3"))},
		{name: "declared in lines", handler: steps(declare("X-A", "X-B"), write("x"), late("X-A", "1"), late("X-B", "2"))},
		{name: "declared twice", handler: steps(declare("X-A, X-A"), write("x"), late("X-A", "1"))},
		{name: "declared and not set", handler: steps(declare("X-A, X-B"), write("x"), late("X-B", "1"))},
		{name: "declared, none set", handler: steps(declare("X-A"), write("x"))},
		{name: "declared, set without values", handler: steps(declare("X-A"), write("x"), late("X-A"))},
		{name: "declared, set before", handler: steps(declare("X-A"), late("X-A", "1"), write("x"))},
		{name: "declared, set before and after", handler: steps(declare("X-A"), late("X-A", "1"), write("x"), late("X-A", "2"))},
		{name: "declared late", handler: steps(write("x"), declare("X-A"), late("X-A", "1"))},
		{name: "declared, of another case", handler: steps(declare("X-A"), write("x"), late("x-a", "1"))},
		{name: "declared, forbidden", handler: steps(declare("Content-Length, Trailer, Transfer-Encoding, X-A"), write("x"), late("Content-Length", "5"), late("X-A", "1"))},
		{name: "declared, no body", handler: steps(declare("X-A"), status(200), late("X-A", "1"))},
		{name: "declared, 204", handler: steps(declare("X-A"), status(204), late("X-A", "1"))},
		{name: "declared, with a length", handler: steps(declare("X-A"), late("Content-Length", "1"), write("x"), late("X-A", "1"))},
		{name: "declared, flushed", handler: steps(declare("X-A"), flush, write("x"), late("X-A", "1"))},
		{name: "declared, newline", handler: steps(declare("X-A"), write("x"), late("X-A", "1\r\nX-B: 2"))},
		{name: "not declared", handler: steps(write("x"), late("X-A", "1"))},
		{name: "not declared, large", handler: steps(big, late("X-A", "1"))},
		{name: "prefixed, small", handler: steps(write("x"), late(http.TrailerPrefix+"X-A", "1"))},
		{name: "prefixed, large", handler: steps(big, late(http.TrailerPrefix+"X-A", "1", "2"))},
		{name: "prefixed, flushed", handler: steps(write("x"), flush, late(http.TrailerPrefix+"X-A", "1"))},
		{name: "prefixed, before", handler: steps(late(http.TrailerPrefix+"X-A", "1"), write("x"))},
		{name: "prefixed, before and after", handler: steps(late(http.TrailerPrefix+"X-A", "1"), write("x"), late(http.TrailerPrefix+"X-A", "2"))},
		{name: "prefixed, lower case", handler: steps(flush, late(http.TrailerPrefix+"x-a", "1"))},
		{name: "prefixed, no name", handler: steps(flush, late(http.TrailerPrefix, "1"))},
		{name: "prefixed and declared", handler: steps(declare("X-A"), flush, write("x"), late(http.TrailerPrefix+"X-A", "1"), late("X-A", "2"))},
	}
	for i := range calls { // not HEAD, which has no trailer and is tested below
		calls[i].method = "GET"
	}
	calls = append(calls, call{name: "HEAD, flushed", handler: steps(declare("X-A"), flush, write("x"), late("X-A", "1")), method: "HEAD"})
	calls = append(calls, call{name: "HEAD, large", handler: steps(declare("X-A"), big, late("X-A", "1")), method: "HEAD"})
	same(t, calls)
}

func TestFiles(t *testing.T) {
	modified := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	fsys := fstest.MapFS{}
	for name, size := range map[string]int{"small.txt": 20, "no-extension": 700, "large.txt": 10_000, "empty.txt": 0, "page.html": 30, "sub/index.html": 40, "dir/a.txt": 1, "dir/b<&>.txt": 1} {
		fsys[name] = &fstest.MapFile{Data: []byte(strings.Repeat("0123456789", size/10+1)[:size]), ModTime: modified, Mode: 0o644}
	}
	fsys["dir"] = &fstest.MapFile{Mode: os.ModeDir | 0o755, ModTime: modified}
	memory := http.FileServerFS(fsys)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "large.bin"), bytes.Repeat([]byte{0, 1, 2, 3}, 50_000), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(filepath.Join(dir, "large.bin"), modified, modified); err != nil {
		t.Fatal(err)
	}
	disk := http.FileServer(http.Dir(dir))
	tagged := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"v1"`)
		http.ServeContent(w, r, "x.json", modified, strings.NewReader(`{"a":1}`))
	})
	untyped := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader("<html>"+strings.Repeat("x", 3000)))
	})
	when := modified.Format(http.TimeFormat)
	var calls []call
	for _, target := range []string{"/small.txt", "/no-extension", "/large.txt", "/empty.txt", "/page.html", "/sub/", "/sub", "/sub/index.html", "/dir/", "/dir", "/", "/none", "/small.txt/", "/../x", "/dir/b%3C%26%3E.txt"} {
		calls = append(calls, call{name: "file " + target, handler: memory, target: target})
	}
	for _, header := range []string{
		"Range: bytes=0-4", "Range: bytes=5-", "Range: bytes=-5", "Range: bytes=0-0,5-9", "Range: bytes=0-9,20-29,-3", "Range: bytes=99999-", "Range: bytes=x", "Range: bytes=0-99999",
		"If-Modified-Since: " + when, "If-Modified-Since: " + modified.Add(-time.Hour).Format(http.TimeFormat), "If-Unmodified-Since: " + modified.Add(-time.Hour).Format(http.TimeFormat),
		`If-None-Match: "v1"`, `If-None-Match: "v2"`, "If-None-Match: *", `If-Match: "v2"`, `If-Match: "v1"`, "If-Range: " + when,
	} {
		calls = append(calls,
			call{name: "file " + header, handler: memory, target: "/large.txt", header: []string{header}},
			call{name: "disk " + header, handler: disk, target: "/large.bin", header: []string{header}},
			call{name: "tagged " + header, handler: tagged, header: []string{header}},
		)
	}
	calls = append(calls,
		call{name: "disk", handler: disk, target: "/large.bin"},
		call{name: "disk, listing", handler: disk},
		call{name: "tagged", handler: tagged},
		call{name: "untyped", handler: untyped},
		call{name: "range with If-Range", handler: memory, target: "/large.txt", header: []string{"Range: bytes=1-2", "If-Range: " + when}},
		call{name: "range with an old If-Range", handler: memory, target: "/large.txt", header: []string{"Range: bytes=1-2", "If-Range: " + modified.Add(time.Hour).Format(http.TimeFormat)}},
		call{name: "stripped", handler: http.StripPrefix("/static", memory), target: "/static/small.txt"},
		call{name: "stripped, not there", handler: http.StripPrefix("/static", memory), target: "/small.txt"},
		call{name: "stripped, redirect", handler: http.StripPrefix("/static", memory), target: "/static/sub?q=1"},
		call{name: "ServeFile", handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, filepath.Join(dir, "large.bin")) }), target: "/x"},
	)
	same(t, calls)
}

func TestHelpers(t *testing.T) {
	mux := http.NewServeMux()
	mux.Handle("GET /only/{id}", write("one"))
	mux.Handle("/tree/", write("tree"))
	late := make(chan struct{})
	t.Cleanup(func() { close(late) })
	same(t, []call{
		{name: "Error", handler: set(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Error(w, "bad <x>", 400) }), "Content-Length", "99")},
		{name: "NotFound", handler: http.HandlerFunc(http.NotFound)},
		{name: "Redirect", handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "../a?b=<c>", http.StatusFound) }), target: "/x/y"},
		{name: "Redirect of a POST", handler: http.RedirectHandler("/z", http.StatusTemporaryRedirect), method: "POST", body: "x"},
		{name: "SetCookie", handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.SetCookie(w, &http.Cookie{Name: "a", Value: "b c", HttpOnly: true})
			http.SetCookie(w, &http.Cookie{Name: "d", Value: "e"})
		})},
		{name: "mux, wrong method", handler: mux, method: "PUT", target: "/only/7"},
		{name: "mux, redirect", handler: mux, target: "/tree"},
		{name: "mux", handler: mux, target: "/only/7"},
		{name: "TimeoutHandler in time", handler: http.TimeoutHandler(set(steps(status(201), write("<html>", "x")), "X-A", "b"), time.Minute, "late")},
		{name: "TimeoutHandler late", handler: http.TimeoutHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			<-late
		}), time.Millisecond, "<html>late")},
		{name: "AllowQuerySemicolons", handler: http.AllowQuerySemicolons(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, r.FormValue("b"))
		})), target: "/?a=1;b=2"},
	})
}

// echo answers with everything it can find out about the request.
func echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	again, errAgain := r.Body.Read(make([]byte, 1))
	fmt.Fprintf(w, "%s %s %s %s %q %d %v %q %v, %d %v, %v", r.Method, r.RequestURI, r.Proto, r.Host, r.Header, r.ContentLength, r.TransferEncoding, body, err, again, errAgain, r.Body.Close())
}

func TestRequests(t *testing.T) {
	var form bytes.Buffer
	m := multipart.NewWriter(&form)
	m.WriteField("field", "value")
	part, err := m.CreateFormFile("file", "name.txt")
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(part, strings.Repeat("content ", 1000))
	m.Close()
	values := func(w http.ResponseWriter, r *http.Request) {
		err := r.ParseForm()
		fmt.Fprintf(w, "%v %q %q %q", err, r.Form, r.PostForm, r.FormValue("a"))
	}
	upload := func(w http.ResponseWriter, r *http.Request) {
		f, header, err := r.FormFile("file")
		if err != nil {
			http.Error(w, err.Error(), 400)
			return
		}
		defer f.Close()
		n, err := io.Copy(io.Discard, f)
		fmt.Fprintf(w, "%d %v %s %d %q", n, err, header.Filename, header.Size, r.FormValue("field"))
	}
	urlencoded := []string{"Content-Type: application/x-www-form-urlencoded"}
	same(t, []call{
		{name: "echo", handler: http.HandlerFunc(echo), method: "POST", target: "/a%2Fb?c=d&e", header: []string{"X-A: 1", "X-A: 2", "Cookie: a=b"}, body: "body"},
		{name: "echo without a body", handler: http.HandlerFunc(echo), method: "GET"},
		{name: "echo of much", handler: http.HandlerFunc(echo), method: "PUT", body: strings.Repeat("x", 100_000)},
		{name: "form", handler: http.HandlerFunc(values), method: "POST", target: "/?a=3", header: urlencoded, body: "a=1&a=2&b=%20"},
		{name: "bad form", handler: http.HandlerFunc(values), method: "POST", header: urlencoded, body: "a=%zz"},
		{name: "multipart", handler: http.HandlerFunc(upload), method: "POST", header: []string{"Content-Type: " + m.FormDataContentType()}, body: form.String()},
		{name: "broken multipart", handler: http.HandlerFunc(upload), method: "POST", header: []string{"Content-Type: " + m.FormDataContentType()}, body: form.String()[:100]},
		{name: "body not read", handler: write("x"), method: "POST", body: "not read"},
		{name: "MaxBytesHandler", handler: http.MaxBytesHandler(http.HandlerFunc(echo), 10), method: "POST", body: "0123456789"},
		{name: "parts of the body", handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b := make([]byte, 3)
			n, err := io.ReadFull(r.Body, b)
			fmt.Fprintf(w, "%d %v %s", n, err, b)
		}), method: "POST", body: "0123456789"},
	})
	// A chunked body: the handler sees the coding that the client used.
	chunked := call{method: "POST", target: "/", header: []string{"Transfer-Encoding: chunked", "", "4", "body", "0", ""}}
	addr, _ := start(t, direct(http.HandlerFunc(echo)))
	addr2, _ := start(t, recorded(http.HandlerFunc(echo)))
	if want, got := raw(t, addr, "HTTP/1.1", chunked), raw(t, addr2, "HTTP/1.1", chunked); got != want || !strings.Contains(got, `-1 [chunked] "body"`) {
		t.Errorf("recorded:\n%s\n---- direct:\n%s", got, want)
	}

	// Above the limit the server's own writer closes the connection. Here raw closes
	// it anyway.
	c := call{name: "MaxBytesHandler", handler: http.MaxBytesHandler(http.HandlerFunc(echo), 9), method: "POST", target: "/", body: "0123456789"}
	addr, _ = start(t, direct(c.handler))
	addr2, _ = start(t, recorded(c.handler))
	if want, got := raw(t, addr, "HTTP/1.1", c), raw(t, addr2, "HTTP/1.1", c); got != want || !strings.Contains(got, "too large") {
		t.Errorf("recorded:\n%s\n---- direct:\n%s", got, want)
	}
}

func TestReverseProxy(t *testing.T) {
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	io.WriteString(z, strings.Repeat("zipped ", 100))
	z.Close()
	upstream := http.NewServeMux()
	upstream.Handle("/text", write("text"))
	upstream.Handle("/large", write(strings.Repeat("x", 100_000)))
	upstream.Handle("/gzip", set(set(write(zipped.String()), "Content-Encoding", "gzip"), "Content-Type", "text/plain"))
	upstream.Handle("/chunked", steps(write("<html>"), flush, write("b")))
	upstream.Handle("/events", set(steps(write("data: a\n\n"), flush), "Content-Type", "text/event-stream"))
	upstream.Handle("/trailers", steps(set(steps(), "Trailer", "X-Sum").ServeHTTP, write("x"), set(steps(), "X-Sum", "1").ServeHTTP))
	// With a type, since a timer decides when a proxy flushes, and so what is sniffed.
	upstream.Handle("/late-trailers", set(steps(flush, write("x"), set(steps(), http.TrailerPrefix+"X-Sum", "1").ServeHTTP), "Content-Type", "a/b"))
	upstream.Handle("/500", steps(status(500), write("oops")))
	upstream.Handle("/204", status(204))
	upstream.Handle("/304", set(status(304), "ETag", `"x"`))
	upstream.Handle("/redirect", http.RedirectHandler("/text", http.StatusFound))
	upstream.HandleFunc("/echo", echo)
	addr, _ := start(t, upstream)
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: addr})
	proxy.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)
	var calls []call
	for _, target := range []string{"/text", "/large", "/gzip", "/chunked", "/events", "/trailers", "/late-trailers", "/500", "/204", "/304", "/redirect", "/none"} {
		calls = append(calls,
			call{name: "proxy " + target, handler: proxy, target: target},
			call{name: "proxy gzip " + target, handler: proxy, target: target, header: []string{"Accept-Encoding: gzip"}},
		)
	}
	closed := httptest.NewServer(nil)
	closed.Close()
	dead := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: closed.Listener.Addr().String()})
	dead.ErrorLog = proxy.ErrorLog
	calls = append(calls,
		call{name: "proxy POST", handler: proxy, method: "POST", target: "/echo?a=b", header: []string{"X-A: b"}, body: "body"},
		call{name: "proxy POST without a body", handler: proxy, method: "POST", target: "/echo"},
		call{name: "proxy to a dead upstream", handler: dead},
	)
	same(t, calls)
}

// The temporary files of a form are removed, as by the server, but not before the
// handler has returned.
func TestMultipartFiles(t *testing.T) {
	var form bytes.Buffer
	m := multipart.NewWriter(&form)
	part, err := m.CreateFormFile("file", "name.txt")
	if err != nil {
		t.Fatal(err)
	}
	part.Write(make([]byte, 100_000))
	m.Close()
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	files := func() int {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseMultipartForm(1); err != nil {
			t.Error(err)
		}
		if n := files(); n != 1 {
			t.Skipf("%d files; this system stores them elsewhere", n)
		}
		if r.URL.Path == "/panic" {
			panic(http.ErrAbortHandler)
		}
	})
	for _, target := range []string{"/", "/panic"} {
		r := httptest.NewRequest("POST", target, nil)
		r.Header.Set("Content-Type", m.FormDataContentType())
		var x Exchange
		x.Capture(h, r, form.Bytes(), ample)
		func() {
			defer func() { recover() }()
			x.Serve(t.Context())
		}()
		x.Release()
		if n := files(); n != 0 {
			t.Errorf("%s leaves %d files", target, n)
		}
	}
}

// A proxy that cannot write the whole response panics. The client gets the reason.
func TestReverseProxyGivesUp(t *testing.T) {
	for _, test := range []struct {
		upstream http.Handler
		limit    int64
		detail   string
	}{
		{set(write("abc"), "Content-Length", "10"), ample, "the response breaks off after 3 of the 10 bytes that the handler declared"},
		{write(strings.Repeat("x", 5000)), 1000, "the response is too large; at most 1000 bytes are kept"},
		{set(steps(write("abc"), flush, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }), "Content-Type", "a/b"), ample, Aborted},
	} {
		addr, _ := start(t, test.upstream)
		proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: addr})
		proxy.ErrorLog = log.New(io.Discard, "", 0)
		r := httptest.NewRequest("GET", "/", nil)
		ctx := context.WithValue(t.Context(), http.ServerContextKey, new(http.Server)) // without it a proxy only logs
		var x Exchange
		x.Capture(proxy, r, nil, test.limit)
		func() {
			defer func() {
				if v := recover(); v != http.ErrAbortHandler {
					t.Errorf("panics with %v", v)
				}
			}()
			x.Serve(ctx)
		}()
		if code, detail := x.Failure(http.ErrAbortHandler); code != 500 || detail != test.detail {
			t.Errorf("%d %q, want 500 %q", code, detail, test.detail)
		}
		x.Release()
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
}

// The response to a HEAD, written as the answer to a GET, has no body and declares
// none, so the connection stays usable. The response to a GET, written as the answer
// to a HEAD, is like that of a handler that writes a body regardless.
func TestOtherMethod(t *testing.T) {
	for _, test := range []struct {
		name    string
		handler http.Handler
	}{
		{"own length", set(steps(), "Content-Length", "1234")},
		{"small", write("<html>")},
		{"large", write(strings.Repeat("x", 5000))},
		{"flushed", steps(write("<html>"), flush)},
		{"nothing", steps()},
		{"not found", http.NotFoundHandler()},
	} {
		t.Run(test.name, func(t *testing.T) {
			record := func(method string) Response {
				var x Exchange
				r := httptest.NewRequest(method, "/", nil)
				r = r.WithContext(context.WithValue(r.Context(), notebookKey{}, new(notebook)))
				x.Capture(test.handler, r, nil, ample)
				if err := x.Serve(r.Context()); err != nil {
					t.Fatal(err)
				}
				return x.Response()
			}
			replay := func(response Response) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					response.CopyHeader(w.Header())
					response.Write(w, r.Method)
				})
			}
			addr, _ := start(t, replay(record("HEAD")))
			transport := &http.Transport{DisableCompression: true}
			defer transport.CloseIdleConnections()
			for range 2 {
				res, err := transport.RoundTrip(httptest.NewRequest("GET", "http://"+addr, nil).WithContext(t.Context()))
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(res.Body)
				if len(body) > 0 || err != nil || res.ContentLength > 0 || res.Close {
					t.Errorf("GET of a HEAD: %q, %v, length %d, close %v", body, err, res.ContentLength, res.Close)
				}
				if test.name != "own length" && test.name != "nothing" && res.Header.Get("Content-Type") == "" {
					t.Errorf("GET of a HEAD lost its Content-Type: %v", res.Header)
				}
			}
			if test.name == "own length" {
				return // breaks off
			}
			addr, _ = start(t, direct(test.handler))
			addr2, _ := start(t, replay(record("GET")))
			c := call{method: "HEAD", target: "/"}
			if want, got := raw(t, addr, "HTTP/1.1", c), raw(t, addr2, "HTTP/1.1", c); got != want {
				t.Errorf("HEAD of a GET:\n%s\n---- direct:\n%s", got, want)
			}
		})
	}
}

// request returns a request whose handlers can take notes.
func request(method string) *http.Request {
	r := httptest.NewRequest(method, "/", nil)
	return r.WithContext(context.WithValue(r.Context(), notebookKey{}, new(notebook)))
}

// serve captures a request for h and serves it.
func serve(h http.Handler, method string, limit int64) (*Exchange, error) {
	x := new(Exchange)
	r := request(method)
	x.Capture(h, r, nil, limit)
	return x, x.Serve(r.Context())
}

func TestUnsupported(t *testing.T) {
	x, err := serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := http.NewResponseController(w)
		_, _, hijack := c.Hijack()
		for name, err := range map[string]error{
			"Hijack": hijack, "SetReadDeadline": c.SetReadDeadline(time.Now()), "SetWriteDeadline": c.SetWriteDeadline(time.Now()), "EnableFullDuplex": c.EnableFullDuplex(),
		} {
			if !errors.Is(err, http.ErrNotSupported) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, ok := w.(http.Hijacker); ok {
			t.Error("the recorder implements http.Hijacker")
		}
		if _, ok := w.(http.Pusher); ok {
			t.Error("the recorder implements http.Pusher")
		}
	}), "GET", ample)
	if err != nil {
		t.Error(err)
	}
	x.Release()

	x, err = serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusSwitchingProtocols)
		if n, err := io.WriteString(w, "x"); n != 0 || err == nil {
			t.Errorf("write after 101: %d, %v", n, err)
		}
	}), "GET", ample)
	if err == nil || !strings.Contains(err.Error(), "switches protocols") {
		t.Errorf("101: %v", err)
	}
	if code, detail := x.Failure(err); code != 500 || detail != err.Error() {
		t.Errorf("101: %d %s", code, detail)
	}
	x.Release()

	for _, code := range []int{-1, 0, 1, 99, 1000, 1 << 20} {
		rec := httptest.NewRecorder()
		said := func(f func()) (v any) {
			defer func() { v = recover() }()
			f()
			return nil
		}
		want := said(func() { rec.WriteHeader(code) })
		if got := said(func() { serve(status(code), "GET", ample) }); got != want || got == nil {
			t.Errorf("status %d: panics with %v, want %v", code, got, want)
		}
	}
}

// The server would close the connection.
func TestBreaksOff(t *testing.T) {
	for _, h := range []http.Handler{
		set(write("abc"), "Content-Length", "10"),
		set(write(), "Content-Length", "10"),
		set(write("0123456789x"), "Content-Length", "10"),
		set(steps(write("abc"), flush), "Content-Length", "10"),
	} {
		addr, _ := start(t, direct(h))
		res, err := http.Get("http://" + addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(res.Body); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("direct: %v", err)
		}
		res.Body.Close()
		x, err := serve(h, "GET", ample)
		if err == nil || !strings.Contains(err.Error(), "of the 10 bytes") {
			t.Errorf("recorded: %v", err)
		}
		if code, detail := x.Failure(err); code != 500 || !strings.Contains(detail, "breaks off") {
			t.Errorf("%d %s", code, detail)
		}
		x.Release()
	}
}

func TestLimit(t *testing.T) {
	body := write(strings.Repeat("x", 1000))
	for _, test := range []struct {
		name    string
		method  string
		handler http.Handler
	}{
		{"body", "GET", body},
		{"body of a type", "GET", set(body, "Content-Type", "a/b")},
		{"nothing", "GET", steps()},
		{"header", "GET", set(steps(), "X-A", strings.Repeat("x", 1000))},
		{"many values", "GET", set(steps(), "X-A", strings.Split(strings.Repeat("x", 1000), "")...)},
		{"flushed", "GET", steps(body, flush)},
		{"trailer", "GET", steps(set(steps(), "Trailer", "X-A").ServeHTTP, body, set(steps(), "X-A", strings.Repeat("x", 1000)).ServeHTTP)},
		{"prefixed trailer", "GET", steps(body, set(steps(), http.TrailerPrefix+"X-A", "x").ServeHTTP)},
		{"HEAD", "HEAD", write(strings.Repeat("x", 100_000))},
		{"HEAD of a length", "HEAD", body},
	} {
		t.Run(test.name, func(t *testing.T) {
			x, err := serve(test.handler, test.method, ample)
			if err != nil {
				t.Fatal(err)
			}
			size := int64(x.Response().Size())
			if n := int64(len(x.Response().Append(nil))) - 4; n != size {
				t.Errorf("size %d, want %d", size, n)
			}
			x.Release()

			x, err = serve(test.handler, test.method, size)
			if err != nil || int64(x.Response().Size()) != size {
				t.Errorf("at the limit: %v, %d bytes of %d", err, x.Response().Size(), size)
			}
			x.Release()

			for _, limit := range []int64{size - 1, size / 2, 1, 0} {
				x, err = serve(test.handler, test.method, limit)
				if err != ErrTooLarge || x.Response().Size() != 0 {
					t.Errorf("limit %d: %v, %d bytes", limit, err, x.Response().Size())
				}
				code, detail := x.Failure(err)
				if want := fmt.Sprintf("the response is too large; at most %d bytes are kept", limit); code != 500 || detail != want {
					t.Errorf("limit %d: %d %q, want 500 %q", limit, code, detail, want)
				}
				// A proxy panics like this when its copy fails.
				if code, detail := x.Failure(http.ErrAbortHandler); code != 500 || !strings.Contains(detail, "too large") {
					t.Errorf("limit %d, aborted: %d %q", limit, code, detail)
				}
				x.Release()
			}
		})
	}

	// The handler's write fails, and nothing above the limit is held.
	var writes []error
	x, err := serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for range 50 {
			n, err := w.Write(make([]byte, 100))
			if (n == 100) != (err == nil) || n != 0 && n != 100 {
				t.Errorf("%d, %v", n, err)
			}
			writes = append(writes, err)
		}
		if held := len(w.(*recorder).scratch.body); held > 1000 {
			t.Errorf("%d bytes are held, want 1000 at most", held)
		}
	}), "GET", 1000)
	x.Release()
	if err != ErrTooLarge || writes[8] != nil || slices.ContainsFunc(writes[9:], func(err error) bool { return err != ErrTooLarge }) {
		t.Errorf("%v, writes %v", err, writes)
	}
}

func TestFailure(t *testing.T) {
	abort := func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	for _, test := range []struct {
		name     string
		handler  http.Handler
		err      error
		panicked bool
		status   int
		detail   string
	}{
		{"abort", steps(abort), http.ErrAbortHandler, true, 500, Aborted},
		{"abort after a write", steps(write("x"), abort), http.ErrAbortHandler, true, 500, Aborted},
		{"abort of a part", set(steps(write("abc"), abort), "Content-Length", "10"), http.ErrAbortHandler, true, 500, "the response breaks off after 3 of the 10 bytes that the handler declared"},
		{"time-out", steps(), context.DeadlineExceeded, false, 504, "the handler ran for longer than a job may"},
		{"wrapped time-out", steps(write("x")), fmt.Errorf("job: %w", context.DeadlineExceeded), false, 504, "the handler ran for longer than a job may"},
		{"Goexit", steps(), errors.New("secret"), false, 500, "the handler did not return"},
	} {
		t.Run(test.name, func(t *testing.T) {
			x := new(Exchange)
			r := request("GET")
			x.Capture(test.handler, r, nil, ample)
			func() {
				defer func() {
					if v := recover(); (v != nil) != test.panicked {
						t.Errorf("panics with %v", v)
					}
				}()
				x.Serve(r.Context())
			}()
			if status, detail := x.Failure(test.err); status != test.status || detail != test.detail {
				t.Errorf("%d %q, want %d %q", status, detail, test.status, test.detail)
			}
			x.Release()
		})
	}
}

// Goroutines that outlive their handler cannot write, before or after Release.
func TestLeftBehind(t *testing.T) {
	begin, end := make(chan struct{}), make(chan struct{})
	x, err := serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "in time")
		late := func() {
			if n, err := io.WriteString(w, "late"); n != 0 || err == nil {
				t.Errorf("late write: %d, %v", n, err)
			}
			w.(http.Flusher).Flush()
			w.WriteHeader(500)
			if n, err := w.Write(nil); n != 0 || err == nil {
				t.Errorf("late empty write: %d, %v", n, err)
			}
		}
		go func() {
			defer close(end)
			<-begin
			late()
			begin <- struct{}{}
			<-begin
			late()
		}()
	}), "GET", ample)
	if err != nil {
		t.Fatal(err)
	}
	kept := x.Response().Append(nil)
	begin <- struct{}{}
	<-begin
	if !bytes.Equal(x.Response().Append(nil), kept) {
		t.Error("a late write changed the response")
	}
	x.Release()
	x.Release() // a second call must not put the memory into the pool again
	if x.recorder.scratch != nil {
		t.Error("the memory is still held")
	}
	begin <- struct{}{}
	<-end
}

// A goroutine writes while the handler returns, while the response is read, and
// while its memory is reused. The race detector would report a shared access.
func TestLeftBehindRaces(t *testing.T) {
	var wg sync.WaitGroup
	for i := range 200 {
		stop := make(chan struct{})
		began := make(chan struct{})
		x, err := serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			wg.Go(func() {
				close(began)
				for {
					select {
					case <-stop:
						return
					default:
						w.Write([]byte("xxxxxxxx"))
						w.(http.Flusher).Flush()
					}
				}
			})
			<-began
		}), "GET", ample)
		if err != nil {
			t.Fatal(err)
		}
		rec := httptest.NewRecorder()
		x.Response().CopyHeader(rec.Header())
		x.Response().Write(rec, "GET")
		if strings.Trim(rec.Body.String(), "x") != "" {
			t.Fatalf("%d: %q", i, rec.Body)
		}
		x.Release()
		other, err := serve(steps(write(strings.Repeat("y", 100))), "GET", ample)
		if err != nil {
			t.Fatal(err)
		}
		rec = httptest.NewRecorder()
		other.Response().Write(rec, "GET")
		if rec.Body.String() != strings.Repeat("y", 100) {
			t.Fatalf("%d: %q", i, rec.Body)
		}
		other.Release()
		close(stop)
	}
	wg.Wait()
}

// A copy stays valid after Release, however often the memory is reused, and
// responses do not mix.
func TestReuse(t *testing.T) {
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			var copies []Response
			var want []string
			for i := range 200 {
				text := strings.Repeat(fmt.Sprintf("<%d-%d>", g, i), i%40*i)
				x, err := serve(set(write(text), "X-A", text[:min(len(text), 500)]), "GET", ample)
				if err != nil {
					t.Error(err)
					return
				}
				copies = append(copies, Cut(x.Response().Append(nil), nil))
				want = append(want, text)
				x.Release()
			}
			for i, c := range copies {
				rec := httptest.NewRecorder()
				c.CopyHeader(rec.Header())
				c.Write(rec, "GET")
				if rec.Body.String() != want[i] || rec.Header().Get("X-A") != want[i][:min(len(want[i]), 500)] || rec.Header().Get("Vary") != "Prefer" {
					t.Errorf("%d-%d: %.50q…, header %.50q…", g, i, rec.Body, rec.Header())
				}
			}
		})
	}
	wg.Wait()
}

// A handler that changes its Vary does not change that of others.
func TestPresetIsNotShared(t *testing.T) {
	for range 3 {
		x, err := serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if got := w.Header()["Vary"]; !slices.Equal(got, []string{"Prefer"}) {
				t.Errorf("Vary is %q", got)
			}
			w.Header().Add("Vary", "Accept")
		}), "GET", ample)
		if err != nil {
			t.Fatal(err)
		}
		x.Release()
	}
}

// Goroutines can write the same response concurrently.
func TestConcurrentWrite(t *testing.T) {
	x, err := serve(set(write("text"), "X-A", "b"), "GET", ample)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				rec := httptest.NewRecorder()
				x.Response().CopyHeader(rec.Header())
				rec.Header()["X-A"][0] = "changed" // must change only the copy
				rec.Header().Add("Vary", "Accept")
				x.Response().Write(rec, "GET")
				if rec.Body.String() != "text" {
					t.Errorf("%q", rec.Body)
				}
			}
		})
	}
	wg.Wait()
	rec := httptest.NewRecorder()
	x.Response().CopyHeader(rec.Header())
	if rec.Header().Get("X-A") != "b" {
		t.Errorf("header %v", rec.Header())
	}
	x.Release()
}
