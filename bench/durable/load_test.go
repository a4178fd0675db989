package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestPercentile(t *testing.T) {
	var hundred []time.Duration
	for i := range 100 {
		hundred = append(hundred, time.Duration(i+1))
	}
	for _, c := range []struct {
		sorted []time.Duration
		q      float64
		want   time.Duration
	}{
		{nil, 0.5, 0}, {hundred[:1], 0.5, 1}, {hundred[:1], 0.99, 1}, {hundred[:2], 0.5, 1}, {hundred[:2], 0.51, 2},
		{hundred[:3], 0.5, 2}, {hundred, 0.5, 50}, {hundred, 0.99, 99}, {hundred, 0.991, 100}, {hundred, 1, 100}, {hundred, 0, 1},
	} {
		if got := percentile(c.sorted, c.q); got != c.want {
			t.Errorf("percentile %v of %d times is %d, want %d", c.q, len(c.sorted), got, c.want)
		}
	}
}

func dial(t *testing.T, addr string) *conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return &conn{Conn: c, r: bufio.NewReader(c)}
}

// answers is a server with what net/http answers in different cases.
func answers(t *testing.T) *httptest.Server {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/work":
			text, _ := io.ReadAll(r.Body)
			if r.Method != "POST" || string(text) != body {
				t.Errorf("%s with %q; want POST with %q", r.Method, text, body)
			}
			w.Header().Set("Location", "/jobs/1")
			w.WriteHeader(http.StatusAccepted)
		case "/text":
			io.WriteString(w, "text")
		case "/chunked":
			w.(http.Flusher).Flush()
		case "/long":
			w.Header().Set("Content-Length", fmt.Sprint(maxAnswer+1))
		}
	}))
	t.Cleanup(server.Close)
	return server
}

// The client understands net/http's answers, one after the other on one connection, and
// refuses what it does not.
func TestConn(t *testing.T) {
	addr := answers(t).Listener.Addr().String()
	get := func(path string) []byte { return fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path) }
	c := dial(t, addr)
	for _, want := range []struct {
		request        []byte
		status         int
		location, body string
	}{{post, 202, "/jobs/1", ""}, {get("/text"), 200, "", "text"}, {post, 202, "/jobs/1", ""}} {
		a, err := c.do(want.request)
		if err != nil {
			t.Fatal(err)
		}
		if a.status != want.status || string(a.location) != want.location || string(a.body) != want.body {
			t.Errorf("%s: %d %q %q; want %+v", want.request, a.status, a.location, a.body, want)
		}
	}
	for path, want := range map[string]string{"/long": "Content-Length 65537", "/chunked": "Content-Length -1"} {
		if _, err := dial(t, addr).do(get(path)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v; want one with %q", path, err, want)
		}
	}
}

// Each client sends its next request when it has its answer, and every answer within
// the time counts once.
func TestClosedLoop(t *testing.T) {
	const clients = 3
	var open, most, all atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n := open.Add(1); n > clients {
			most.Store(n)
		}
		all.Add(1)
		open.Add(-1)
		w.WriteHeader(http.StatusAccepted)
	}))
	defer server.Close()
	const lasts = 100 * time.Millisecond
	r, err := closedLoop(t.Context(), server.Listener.Addr().String(), clients, 0, lasts, accept)
	if err != nil {
		t.Fatal(err)
	}
	if n := all.Load() - int64(len(r.took)); n < 1 || n > clients || most.Load() > 0 {
		t.Errorf("%d requests, of which %d count, %d at once; want one more for each of %d clients", all.Load(), len(r.took), most.Load(), clients)
	}
	if want := float64(len(r.took)) / lasts.Seconds(); r.rate != want || !slices.IsSorted(r.took) {
		t.Errorf("%.1f a second, want %.1f, and sorted times", r.rate, want)
	}
	r, err = closedLoop(t.Context(), server.Listener.Addr().String(), 2, 0, time.Nanosecond, accept)
	if err != nil || len(r.took) != 2 || r.rate <= 0 || r.rate > 2/r.took[1].Seconds() {
		t.Errorf("%.0f a second and %v within a nanosecond, error %v; want the first two answers, in the time of both", r.rate, r.took, err)
	}
}

// Requests are sent when they are due though none before them was answered, and their
// times count from then, also for those that no connection was free for.
func TestOpenLoop(t *testing.T) {
	const rate, lasts = 500, 200 * time.Millisecond
	due := schedule(rate, lasts)
	if len(due) <= openConns {
		t.Fatalf("%d requests; want more than the %d connections", len(due), openConns)
	}
	var n atomic.Int64
	var once sync.Once
	var first time.Time
	arrived := make(chan struct{}) // closed when a request is on every connection
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		once.Do(func() { first = time.Now() })
		if n.Add(1) == openConns {
			close(arrived)
		}
		<-arrived
		time.Sleep(time.Until(first.Add(lasts))) // by then all are due
		w.WriteHeader(http.StatusAccepted)
	}))
	defer server.Close()
	r, err := openLoop(t.Context(), server.Listener.Addr().String(), rate, 0, lasts, accept)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.took) != len(due) || len(r.late) != len(due) || int(n.Load()) != len(due) {
		t.Fatalf("%d sent, %d times, %d delays; want %d", n.Load(), len(r.took), len(r.late), len(due))
	}
	slices.Reverse(due) // the last one waits least
	for i := range due {
		if least := lasts - due[i]; r.took[i] < least {
			t.Fatalf("time %d is %v; want %v or more, since nothing was answered before", i, r.took[i], least)
		}
	}
	if longest, least := r.late[len(r.late)-1], lasts-due[len(due)-1-openConns]; longest < least {
		t.Errorf("the latest was sent %v after it was due; want %v or more, since no connection was free", longest, least)
	}
}

func TestSchedule(t *testing.T) {
	const rate, lasts = 10_000, 10 * time.Second
	due := schedule(rate, lasts)
	if n := len(due); n < 99_000 || n > 101_000 {
		t.Errorf("%d requests at 10000 a second in 10 s", n)
	}
	if !slices.IsSorted(due) || due[len(due)-1] >= lasts || !slices.Equal(due, schedule(rate, lasts)) {
		t.Error("the schedule is not in order, too long, or another in each run")
	}
}

// The first error ends the load, also for clients that wait for an answer.
func TestLoadFails(t *testing.T) {
	var n atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if n.Add(1) < 4 {
			<-r.Context().Done()
			return
		}
		http.Error(w, "broken", http.StatusTeapot)
	}))
	defer server.Close()
	_, err := closedLoop(t.Context(), server.Listener.Addr().String(), 4, 0, time.Minute, accept)
	if err == nil || !strings.Contains(err.Error(), `418 "broken`) {
		t.Errorf("error %v; want one with the answer", err)
	}
}
