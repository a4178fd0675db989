package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
)

// A memory is a store in memory. If gate is not nil, each Put receives its result from it.
type memory struct {
	gate chan error

	mu    sync.Mutex // protects the following fields
	names []string   // of every attempt
	data  []string   // stored payloads, in order of arrival
}

func (m *memory) Put(ctx context.Context, name string, data []byte) error {
	m.mu.Lock()
	m.names = append(m.names, name)
	m.mu.Unlock()
	if m.gate != nil {
		select {
		case err := <-m.gate:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.data = append(m.data, string(data))
	return nil
}

func newHandler(t *testing.T, m *memory, workers, queue int) *handler {
	t.Helper()
	d, err := holdfast.New(holdfast.Config{Workers: workers, Queue: queue})
	if err != nil {
		t.Fatal(err)
	}
	return &handler{d, m}
}

// post sends a body to a handler and returns its answer.
func post(ctx context.Context, h http.Handler, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "POST", "/payload", strings.NewReader(body)))
	return w
}

// collectionOf returns a body with n numbers, beginning with first.
func collectionOf(first, n int) string {
	var data []string
	for i := range n {
		data = append(data, fmt.Sprint(first+i))
	}
	return `{"version":"1","token":"t","data":[` + strings.Join(data, ",") + `]}`
}

// accepted returns the number of accepted payloads in an answer. It fails the test if
// the form of the answer does not fit its status.
func accepted(t *testing.T, w *httptest.ResponseRecorder) int {
	t.Helper()
	var a struct {
		Accepted      *int
		Status        int
		Title, Detail string
	}
	if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil || a.Accepted == nil {
		t.Fatalf("answer %d %q; want JSON with accepted", w.Code, w.Body)
	}
	if w.Code/100 != 2 && (a.Status != w.Code || a.Title == "" || a.Detail == "" || w.Header().Get("Content-Type") != "application/problem+json") {
		t.Errorf("answer %d %v %q; want a problem", w.Code, w.Header(), w.Body)
	}
	return *a.Accepted
}

func TestBadInputStoresNothing(t *testing.T) {
	for _, c := range []struct {
		name, body string
		status     int
	}{
		{"nothing", "", 400},
		{"no JSON", "data", 400},
		{"broken off", `{"data":[1,2`, 400},
		{"trailing data", `{"data":[1]} {"data":[2]}`, 400},
		{"null", `null`, 400},
		{"a list", `[1]`, 400},
		{"without data", `{"version":"1","token":"t"}`, 400},
		{"data null", `{"data":null}`, 400},
		{"data empty", `{"data":[]}`, 400},
		{"data an object", `{"data":{"a":1}}`, 400},
		{"data a string", `{"data":"[1]"}`, 400},
		{"a bad payload after good ones", `{"data":[1,2,{"a"}]}`, 400},
		{"too many payloads", collectionOf(0, maxItems+1), 400},
		{"too long", `{"data":["` + strings.Repeat("x", maxBody) + `"]}`, 413},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := &memory{}
			h := newHandler(t, m, 1, 1)
			w := post(t.Context(), h, c.body)
			if w.Code != c.status || accepted(t, w) != 0 {
				t.Errorf("answer %d %q; want %d and none accepted", w.Code, w.Body, c.status)
			}
			if s := h.pool.Stats(); s.Accepted != 0 {
				t.Errorf("%d jobs; want 0", s.Accepted)
			}
			h.pool.Shutdown(t.Context())
		})
	}
}

func TestPayloadsAreStoredAsTheyWereSent(t *testing.T) {
	want := []string{`{ "b":1,  "a": [ ] }`, `"é\u00e9\n"`, "\"\xff\"", `1e400`, `-0`, `null`, `true`, `[[],{}]`, `{"a":1,"a":2}`, "[\n\t1 ]"}
	m := &memory{}
	h := newHandler(t, m, 1, 1)
	w := post(t.Context(), h, `{"data": [`+strings.Join(want, " ,\n ")+` ] , "extra": {}, "version":"1"}`)
	if w.Code != 202 || accepted(t, w) != len(want) {
		t.Fatalf("answer %d %q; want 202 and %d accepted", w.Code, w.Body, len(want))
	}
	h.pool.Shutdown(t.Context())
	if !slices.Equal(m.data, want) {
		t.Errorf("stored %q; want %q", m.data, want)
	}
	slices.Sort(m.names)
	if n := len(slices.Compact(m.names)); n != len(want) {
		t.Errorf("%d names for %d payloads", n, len(want))
	}
}

func TestMostThatIsAllowed(t *testing.T) {
	h := newHandler(t, &memory{}, 10, 1)
	if w := post(t.Context(), h, collectionOf(0, maxItems)); w.Code != 202 || accepted(t, w) != maxItems {
		t.Errorf("answer %d %q; want 202", w.Code, w.Body)
	}
	frame := `{"data":[""]}`
	if w := post(t.Context(), h, `{"data":["`+strings.Repeat("x", maxBody-len(frame))+`"]}`); w.Code != 202 {
		t.Errorf("body of %d bytes: answer %d %q; want 202", maxBody, w.Code, w.Body)
	}
	h.pool.Shutdown(t.Context())
}

func TestFullQueueHoldsTheAnswerBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{gate: make(chan error)}
		h := newHandler(t, m, 1, 2)
		answered := make(chan *httptest.ResponseRecorder, 1)
		go func() { answered <- post(context.Background(), h, collectionOf(0, 5)) }()
		for left := 2; left > 0; left-- { // payloads without a place
			synctest.Wait()
			select {
			case w := <-answered:
				t.Fatalf("%d payloads have no place, but the answer is %d %q", left, w.Code, w.Body)
			default:
			}
			if s := h.pool.Stats(); s.Blocked != 1 || s.Queued != 2 {
				t.Errorf("%d blocked, %d queued; want 1 and 2", s.Blocked, s.Queued)
			}
			m.gate <- nil
		}
		synctest.Wait()
		if w := <-answered; w.Code != 202 || accepted(t, w) != 5 {
			t.Errorf("answer %d %q; want 202 and 5 accepted", w.Code, w.Body)
		}
		close(m.gate)
		h.pool.Shutdown(context.Background())
		if want := []string{"0", "1", "2", "3", "4"}; !slices.Equal(m.data, want) {
			t.Errorf("stored %v; want %v", m.data, want)
		}
	})
}

// A pipes is a listener for connections in memory, which work with the fake clock of
// synctest.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	if c, ok := <-p; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (p pipes) Close() error   { return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

// The server's timeouts limit clients. The time that a slow store takes does not count.
func TestAnswerComesAfterALongWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{gate: make(chan error)}
		h := newHandler(t, m, 1, 1)
		server := http.Server{Handler: h, ReadTimeout: timeout, WriteTimeout: timeout, IdleTimeout: time.Hour}
		listener := make(pipes, 1)
		go server.Serve(listener)
		client, conn := net.Pipe()
		listener <- conn
		for range 2 { // on the same connection
			body := collectionOf(0, 4)
			fmt.Fprintf(client, "POST /payload HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
			go func() {
				for range 4 {
					time.Sleep(timeout - time.Second)
					m.gate <- nil
				}
			}()
			resp, err := http.ReadResponse(bufio.NewReader(client), nil)
			if err != nil || resp.StatusCode != 202 {
				t.Fatalf("%v, %v; want 202", resp, err)
			}
			time.Sleep(time.Minute)
		}
		close(listener)
		server.Close()
		h.pool.Shutdown(context.Background())
	})
}

// A collection ends in the middle, when 3 of its 5 payloads have a place.
func TestPartOfACollection(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(h *handler, leave func())
	}{
		{"the pool is shut down", func(h *handler, leave func()) { go h.pool.Shutdown(context.Background()) }},
		{"the client leaves", func(h *handler, leave func()) { leave() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &memory{gate: make(chan error)}
				h := newHandler(t, m, 1, 2)
				ctx, leave := context.WithCancel(context.Background())
				defer leave()
				answered := make(chan *httptest.ResponseRecorder, 1)
				go func() { answered <- post(ctx, h, collectionOf(0, 5)) }()
				synctest.Wait()
				c.end(h, leave)
				if w := <-answered; w.Code != 503 || accepted(t, w) != 3 {
					t.Errorf("answer %d %q; want 503 and 3 accepted", w.Code, w.Body)
				}
				close(m.gate)
				h.pool.Shutdown(context.Background())
				if want := []string{"0", "1", "2"}; !slices.Equal(m.data, want) {
					t.Errorf("stored %v; want what was accepted, %v", m.data, want)
				}
			})
		})
	}
}

func TestAttempts(t *testing.T) {
	const attempts = 3 // as in README.md
	for failures := range attempts + 1 {
		t.Run(fmt.Sprint(failures), func(t *testing.T) {
			var logged bytes.Buffer
			defer slog.SetDefault(slog.Default())
			slog.SetDefault(slog.New(slog.NewTextHandler(&logged, nil)))
			synctest.Test(t, func(t *testing.T) {
				m := &memory{gate: make(chan error, attempts)}
				h := newHandler(t, m, 1, 1)
				for range failures {
					m.gate <- errors.New("out of order")
				}
				if failures < attempts {
					m.gate <- nil
				}
				if w := post(context.Background(), h, collectionOf(7, 1)); w.Code != 202 {
					t.Fatalf("answer %d; want 202", w.Code)
				}
				h.pool.Shutdown(context.Background())
				s := h.pool.Stats()
				lost := failures == attempts
				if want := min(failures+1, attempts); len(m.names) != want || len(slices.Compact(m.names)) != 1 {
					t.Errorf("attempts under the names %v; want %d under one", m.names, want)
				}
				if lost && (len(m.data) != 0 || s.Failed != 1) || !lost && (len(m.data) != 1 || s.Succeeded != 1) {
					t.Errorf("stored %v, %d succeeded, %d failed", m.data, s.Succeeded, s.Failed)
				}
				if tells := strings.Contains(logged.String(), m.names[0]) && strings.Contains(logged.String(), "out of order"); tells != lost {
					t.Errorf("log %q; is the payload lost? %v", logged.String(), lost)
				}
			})
		})
	}
}

// A store that does not answer gets its full time, then another attempt.
func TestAttemptIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{gate: make(chan error)}
		h := newHandler(t, m, 1, 1)
		begin := time.Now()
		post(context.Background(), h, collectionOf(7, 1))
		h.pool.Shutdown(context.Background())
		if s := h.pool.Stats(); s.Failed != 1 || time.Since(begin) > attempts*timeout+time.Second {
			t.Errorf("%d failed after %v; want 1 after %d attempts of %v", s.Failed, time.Since(begin), attempts, timeout)
		}
	})
}

func TestBadEnvironmentStopsTheStart(t *testing.T) {
	for _, c := range []struct{ workers, queue, want string }{
		{"many", "", `MAX_WORKERS is "many"; want a number from 1 to 1000000`},
		{"0", "", `MAX_WORKERS is "0"`},
		{"-1", "", `MAX_WORKERS is "-1"`},
		{"1000001", "", `MAX_WORKERS is "1000001"`},
		{"1.5", "", `MAX_WORKERS is "1.5"`},
		{" 1", "", `MAX_WORKERS is " 1"`},
		{"", "ten", `MAX_QUEUE is "ten"; want a number from 1 to 10000000`},
		{"", "0", `MAX_QUEUE is "0"`},
		{"", "99999999999999999999", `MAX_QUEUE is "99999999999999999999"`},
		{"x", "y", "MAX_WORKERS is \"x\"; want a number from 1 to 1000000\nMAX_QUEUE is \"y\""},
	} {
		t.Setenv("MAX_WORKERS", c.workers)
		t.Setenv("MAX_QUEUE", c.queue)
		if err := run("127.0.0.1:0", t.TempDir(), "", 0); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("MAX_WORKERS=%q MAX_QUEUE=%q: %v; want %s", c.workers, c.queue, err, c.want)
		}
	}
}
