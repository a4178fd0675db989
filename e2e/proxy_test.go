package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// A record counts the answers that proxies have seen.
type record struct {
	mu   sync.Mutex
	seen map[string]int // by "METHOD template status"
}

func (r *record) add(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen == nil {
		r.seen = make(map[string]int)
	}
	r.seen[what]++
}

// proxy starts a reverse proxy for the server at addr, which checks requests and
// answers against the description.
func proxy(t *testing.T, d *description, seen *record, addr string) *httptest.Server {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler) // the client has left
		}
		out := r.Clone(r.Context())
		out.RequestURI = ""
		out.Body, out.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		response, err := exchange(out, addr)
		if err != nil {
			if r.Context().Err() == nil {
				t.Errorf("%s %s: no answer: %v", r.Method, r.URL, err)
			}
			panic(http.ErrAbortHandler)
		}
		defer response.Body.Close()

		a := &answer{status: response.StatusCode, header: response.Header}
		if !a.streams() {
			if a.body, err = io.ReadAll(response.Body); err != nil {
				if r.Context().Err() == nil {
					t.Errorf("%s %s: the answer is incomplete: %v", r.Method, r.URL, err)
				}
				panic(http.ErrAbortHandler)
			}
		}
		what, wrong := d.checkAnswer(r, a)
		seen.add(what)
		if a.status < 300 { // an accepted request must match the description
			for _, problem := range d.checkRequest(r, body) {
				wrong = append(wrong, "the request was accepted, but does not match the description: "+problem)
			}
		}
		for _, problem := range wrong {
			t.Errorf("%s %s %d: %s", r.Method, r.URL, a.status, problem)
		}

		for name, values := range a.header {
			w.Header()[name] = values
		}
		w.WriteHeader(a.status)
		if a.streams() {
			for _, problem := range pass(d, w, response.Body) {
				t.Errorf("%s %s: an event: %s", r.Method, r.URL, problem)
			}
			return
		}
		w.Write(a.body)
	}))
	t.Cleanup(s.Close)
	return s
}

// exchange sends a request on a new connection and returns the response. An
// http.Transport would fail if the response arrives before the whole request is sent.
func exchange(r *http.Request, addr string) (*http.Response, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(r.Context(), func() { conn.Close() })
	go r.Write(conn) // there can be a response even if this fails
	response, err := http.ReadResponse(bufio.NewReader(conn), r)
	if err != nil {
		stop()
		conn.Close()
		return nil, err
	}
	response.Body = &connBody{response.Body, conn, stop}
	return response, nil
}

// A connBody is a body that closes its connection.
type connBody struct {
	io.ReadCloser
	conn net.Conn
	stop func() bool
}

func (b *connBody) Close() error {
	b.stop()
	return b.conn.Close()
}

// pass forwards a stream of events line by line, and returns their differences from the
// description.
func pass(d *description, w http.ResponseWriter, stream io.Reader) (wrong []string) {
	out := http.NewResponseController(w)
	out.Flush()
	ranks := map[string]int{"queued": 1, "running": 2}
	var id, kind string
	var data []byte
	lines := bufio.NewReader(stream)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			if line != "" {
				wrong = append(wrong, fmt.Sprintf("the stream ends in the middle of %q", line))
			}
			return wrong
		}
		io.WriteString(w, line)
		out.Flush()
		line = strings.TrimSuffix(line, "\n")
		name, value, _ := strings.Cut(line, ": ")
		switch {
		case line == "" && data != nil:
			wrong = append(wrong, d.checkJob(data)...)
			job, _ := decode(data)
			fields, _ := job.(map[string]any)
			state, _ := fields["state"].(string)
			rank, open := ranks[state]
			if !open {
				rank = 3
			}
			if id != strconv.Itoa(rank) || kind != "state" {
				wrong = append(wrong, fmt.Sprintf("%q has the id %q and the type %q", data, id, kind))
			}
			id, kind, data = "", "", nil
		case line == "" || name == "": // a comment, or the line after it
		case name == "id":
			id = value
		case name == "event":
			kind = value
		case name == "data" && data == nil:
			data = []byte(value)
		default:
			wrong = append(wrong, fmt.Sprintf("the line %q does not match the description", line))
		}
	}
}
