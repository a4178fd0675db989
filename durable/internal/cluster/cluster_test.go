package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"holdfast/durable/internal/secret"
	"holdfast/internal/budget"
	"holdfast/internal/exchange"
	"holdfast/internal/store"
)

const patience = 30 * time.Second

// A harness has what nodes need.
type harness struct {
	t      *testing.T
	nats   *server.Server
	shared *secret.Secret
}

func newHarness(t *testing.T) *harness {
	s, err := server.NewServer(&server.Options{DontListen: true, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(s.Shutdown)
	if !s.ReadyForConnections(patience) {
		t.Fatal("no server")
	}
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("a secret that only this test has"), 0o600); err != nil {
		t.Fatal(err)
	}
	shared, err := secret.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	return &harness{t, s, shared}
}

// node starts a node with two workers.
func (h *harness) node(name string, serve http.HandlerFunc, change ...func(*Config)) *Node {
	h.t.Helper()
	conn, err := nats.Connect("", nats.InProcessServer(h.nats))
	if err != nil {
		h.t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		h.t.Fatal(err)
	}
	c := Config{
		Cluster: "test", Node: name, Addr: l.Addr().String(), Listener: l, Server: h.shared.Server(), Client: h.shared.Client(),
		Conn: conn, Size: 2, Workers: 2, Handler: serve, MaxResponse: 1 << 20, MaxRequest: 1 << 20,
		Local: func(Kind) http.Handler { return nil }, Logger: slog.New(slog.NewTextHandler(h.t.Output(), nil)),
	}
	for _, f := range change {
		f(&c)
	}
	n, err := Start(c)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		n.Close()
		conn.Close()
	})
	return n
}

func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited in vain: " + what)
		}
	}
}

func meet(t *testing.T, nodes ...*Node) {
	t.Helper()
	for _, n := range nodes {
		await(t, "all nodes know each other", func() bool { _, all := n.Members(); return len(all) == len(nodes) })
	}
}

func request(path string) []byte {
	r := httptest.NewRequest("POST", path, strings.NewReader("body"))
	return exchange.AppendRequest(nil, r, []byte("body"))
}

// An order that is repeated is answered by the run that there is. One of an older term than
// the node knows of changes nothing, nor does one for which there is no worker.
func TestOrders(t *testing.T) {
	h := newHarness(t)
	var started atomic.Int64
	hold := make(chan struct{})
	a := h.node("a", nil)
	b := h.node("b", func(w http.ResponseWriter, r *http.Request) {
		started.Add(1)
		select {
		case <-hold:
		case <-r.Context().Done():
		}
		fmt.Fprint(w, "end of ", r.URL.Path)
	})
	meet(t, a, b)
	p := a.members.find("b")
	type result struct {
		end []byte
		err error
	}
	soon, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	send := func(o order) chan result {
		c := make(chan result, 1)
		go func() {
			end, err := a.run(soon, p, o)
			c <- result{end, err}
		}()
		return c
	}
	one := order{term: 2, id: store.NewID(), attempt: 1, request: request("/one")}
	first, second := send(one), send(one)
	await(t, "the job runs", func() bool { return started.Load() == 1 })
	two := send(order{term: 2, id: store.NewID(), attempt: 1, request: request("/two")})
	await(t, "both run", func() bool { return started.Load() == 2 })
	if r := <-send(order{term: 2, id: store.NewID(), request: request("/three")}); !errors.Is(r.err, errBusy) {
		t.Errorf("a third job at two workers: %v, want %v", r.err, errBusy)
	}
	if r := <-send(order{term: 1, id: one.id, request: request("/one")}); !errors.Is(r.err, errOld) {
		t.Errorf("an order of an older term: %v, want %v", r.err, errOld)
	}
	old := one
	old.term = 1
	a.cancel(soon, p, old)
	close(hold)
	for _, c := range []chan result{first, second, two} {
		r := <-c
		if r.err != nil || r.end[0] != endResponse || !strings.Contains(string(r.end), "end of /") {
			t.Errorf("%q, %v", r.end, r.err)
		}
	}
	if r := <-send(one); r.err != nil || !strings.Contains(string(r.end), "end of /one") {
		t.Errorf("the end of a job that has ended: %q, %v", r.end, r.err)
	}
	if started.Load() != 2 {
		t.Errorf("%d jobs were started, want 2", started.Load())
	}
	later := one
	later.attempt = 2
	if r := <-send(later); r.err != nil || started.Load() != 2 {
		t.Errorf("an order of a leader that has not seen the end: %v, %d starts; want the end that there is", r.err, started.Load())
	}
	later.seen = 1
	if r := <-send(later); r.err != nil || started.Load() != 3 {
		t.Errorf("the next attempt of a job that has ended: %v, %d starts; want another one", r.err, started.Load())
	}
	a.forget(t.Context(), p, 2, map[store.ID]run{one.id: {attempt: 1, ended: true}})
	if _, all := b.runs.list(); len(all) != 2 {
		t.Errorf("%d ends are held after the former attempt was to be forgotten, want 2", len(all))
	}
	a.forget(t.Context(), p, 2, map[store.ID]run{one.id: {attempt: 2, ended: true}})
	if _, all := b.runs.list(); len(all) != 1 {
		t.Errorf("%d ends are held, want that of the other job", len(all))
	}
}

// A node without the secret is not served.
func TestStranger(t *testing.T) {
	h, other := newHarness(t), newHarness(t)
	file := filepath.Join(t.TempDir(), "secret")
	os.WriteFile(file, []byte("another secret of 16 bytes"), 0o600)
	var err error
	if other.shared, err = secret.Load(file); err != nil {
		t.Fatal(err)
	}
	ran := false
	b := h.node("b", func(http.ResponseWriter, *http.Request) { ran = true })
	stranger := other.node("a", nil)
	p := &peer{name: "b", addr: b.Addr, gone: make(chan struct{})}
	if end, err := stranger.run(t.Context(), p, order{term: 1, id: store.NewID(), request: request("/")}); err == nil {
		t.Errorf("a stranger has got %q", end)
	}
	resp, err := http.Post("http://"+b.Addr+"/run", "text/plain", nil)
	if err == nil && resp.StatusCode == http.StatusOK {
		t.Error("a stranger without TLS was served")
	}
	if ran {
		t.Error("a stranger has run a job")
	}
}

// What was passed on is not passed on again: two nodes that take each other for the leader
// answer 503.
func TestNoLoop(t *testing.T) {
	h := newHarness(t)
	a, b := h.node("a", nil), h.node("b", nil)
	meet(t, a, b)
	for _, n := range []*Node{a, b} {
		other := map[*Node]string{a: "b", b: "a"}[n]
		n.members.mu.Lock()
		n.members.leader = other
		n.members.mu.Unlock()
	}
	w := httptest.NewRecorder()
	a.Pass(w, httptest.NewRequest("GET", "/jobs/x", nil), Public)
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") != "1" {
		t.Errorf("%d, Retry-After %q, want 503 and 1", w.Code, w.Header().Get("Retry-After"))
	}
}

// A request that is passed on reaches the leader as its client has sent it, and its client
// gets what the leader answers: header, body, trailer, and each part as soon as it is
// flushed.
func TestPass(t *testing.T) {
	h := newHarness(t)
	more := make(chan struct{})
	leads := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Seen", fmt.Sprint(r.Method, " ", r.RequestURI, " ", r.Host, " ", r.Header.Get("X-Forwarded-For"), " ", r.RemoteAddr, " ", len(body)))
		w.Header()["Content-Type"] = nil
		w.Header().Set("Trailer", "X-End")
		w.WriteHeader(http.StatusTeapot)
		fmt.Fprint(w, "<html>")
		http.NewResponseController(w).Flush()
		<-more
		fmt.Fprint(w, "rest")
		w.Header().Set("X-End", "end")
	})
	a := h.node("a", nil)
	b := h.node("b", nil, func(c *Config) { c.Local = func(Kind) http.Handler { return leads } })
	meet(t, a, b)
	b.Lead(1, func() bool { return true }, func() {})
	await(t, "the leader is known", func() bool { return a.Leader() == "b" })
	door := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.RemoteAddr = "192.0.2.1:1" // that of the client
		a.Pass(w, r, Public)
	}))
	defer door.Close()
	r, _ := http.NewRequest("PUT", door.URL+"//x/../y%2Fz?q", strings.NewReader("body"))
	r.Host = "example.org"
	r.Header.Set("X-Forwarded-For", "198.51.100.1")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, want := resp.Header.Get("X-Seen"), "PUT //x/../y%2Fz?q example.org 198.51.100.1 192.0.2.1:1 4"; got != want || resp.StatusCode != http.StatusTeapot {
		t.Errorf("the leader has seen %q, want %q; %d", got, want, resp.StatusCode)
	}
	if kind, ok := resp.Header["Content-Type"]; ok {
		t.Errorf("Content-Type is %q, want none", kind)
	}
	part := make([]byte, 6)
	if _, err := io.ReadFull(resp.Body, part); err != nil || string(part) != "<html>" {
		t.Errorf("%q, %v", part, err)
	}
	close(more)
	if rest, err := io.ReadAll(resp.Body); err != nil || string(rest) != "rest" || resp.Trailer.Get("X-End") != "end" {
		t.Errorf("%q, %v, trailer %v", rest, err, resp.Trailer)
	}
}

// Without it clients of a node fill its memory with requests that the leader has yet to get.
func TestPassHasABudget(t *testing.T) {
	h := newHarness(t)
	memory := budget.New(1<<20, func(int64, func() bool) {}, func() int { return 1 })
	a := h.node("a", nil, func(c *Config) { c.Memory = memory })
	answer := httptest.NewRecorder()
	a.Pass(answer, httptest.NewRequest("POST", "/", strings.NewReader(strings.Repeat("x", 1<<20))), Public)
	if answer.Code != http.StatusServiceUnavailable || memory.Refused() != 1 {
		t.Errorf("%d %s, %d refused; want 503 for want of memory", answer.Code, answer.Body, memory.Refused())
	}
	if held := memory.Held(); held != 0 {
		t.Errorf("%d bytes are held after the answer", held)
	}
}

// A node that leaves gives back what has not ended in time, and says so.
func TestLeave(t *testing.T) {
	h := newHarness(t)
	began := make(chan bool)
	a, b := h.node("a", nil), h.node("b", func(w http.ResponseWriter, r *http.Request) {
		began <- true
		<-r.Context().Done()
	})
	meet(t, a, b)
	p := a.members.find("b")
	ended := make(chan []byte)
	go func() {
		end, _ := a.run(context.Background(), p, order{term: 1, id: store.NewID(), request: request("/")})
		ended <- end
	}()
	<-began
	now, cancel := context.WithCancel(t.Context())
	cancel()
	if finished, returned := b.Leave(now); finished != 0 || returned != 1 {
		t.Errorf("%d finished and %d returned, want 0 and 1", finished, returned)
	}
	if end := <-ended; len(end) != 1 || end[0] != endReturned {
		t.Errorf("the end is %q, want that it runs elsewhere", end)
	}
	b.Close()
	await(t, "the node is gone", func() bool { return isGone(p) })
}

// Ends that nobody fetches are bounded.
func TestHeldEnds(t *testing.T) {
	s := newRuns(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Write(make([]byte, 8<<20))
	}), 9<<20, 1, slog.New(slog.DiscardHandler), func() {})
	for range 20 {
		l, err := s.start(order{id: store.NewID(), request: request("/")})
		if err != nil {
			t.Fatal(err)
		}
		<-l.done
	}
	if _, all := s.list(); len(all) != maxHeldBytes/(8<<20)-1 || s.bytes > maxHeldBytes {
		t.Errorf("%d ends of %d bytes are held, want at most %d bytes", len(all), s.bytes, maxHeldBytes)
	}
}
