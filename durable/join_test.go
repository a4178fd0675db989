package durable

import (
	"context"
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

	"holdfast"
)

// A company is a cluster of nodes in this process.
type company struct {
	t     *testing.T
	addrs []string
	file  string
	dirs  []string
	nodes []*colleague
}

// A colleague is one of its nodes.
type colleague struct {
	*Node
	http *httptest.Server
	name string
}

// found makes a cluster of n nodes, and starts them.
func found(t *testing.T, n int, h func(node string) http.Handler, change ...func(*NodeConfig)) *company {
	t.Helper()
	c := &company{t: t, file: filepath.Join(t.TempDir(), "secret"), nodes: make([]*colleague, n)}
	if err := os.WriteFile(c.file, []byte("a secret that only this test has"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range n {
		c.addrs, c.dirs = append(c.addrs, freeAddr(t)), append(c.dirs, t.TempDir())
	}
	for i := range n {
		c.join(i, h, change...)
	}
	t.Cleanup(func() {
		for _, n := range c.nodes {
			n.quit()
		}
	})
	return c
}

func freeAddr(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (c *company) join(i int, h func(node string) http.Handler, change ...func(*NodeConfig)) {
	c.t.Helper()
	name := fmt.Sprint("n", i+1)
	config := NodeConfig{
		Dir: c.dirs[i], Cluster: "company", Node: name, Addr: c.addrs[i], Peers: c.addrs, NodeAddr: "127.0.0.1:0",
		SecretFile: c.file, Workers: 2, Handler: h(name), Dispatcher: holdfast.Config{Queue: 1000},
		Logger: slog.New(slog.NewTextHandler(c.t.Output(), nil)).With("at", name),
		Lead: func(t *Term) http.Handler {
			mux := http.NewServeMux()
			mux.Handle("/jobs/", t.Jobs)
			mux.Handle("/sync", t.Jobs.Sync(t.Handler))
			mux.Handle("/queued", t.Jobs.Queued(t.Handler))
			mux.Handle("/", t.Jobs.Async(t.Handler))
			return mux
		},
	}
	for _, f := range change {
		f(&config)
	}
	n, err := Join(c.t.Context(), config)
	if err != nil {
		c.t.Fatal(err)
	}
	c.nodes[i] = &colleague{n, httptest.NewServer(n), name}
}

func (n *colleague) quit() {
	if n == nil || n.stopping.Load() {
		return
	}
	now, cancel := context.WithCancel(context.Background())
	cancel()
	n.Shutdown(now)
	n.http.Close()
}

// leader waits until all nodes that are there agree on who leads.
func (c *company) leader() *colleague {
	c.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		var leads *colleague
		name, agree := "", true
		for _, n := range c.nodes {
			if n.stopping.Load() {
				continue
			}
			if name == "" {
				name = n.Stats().Leader
			}
			agree = agree && n.Ready() == nil && n.Stats().Leader == name
			if n.term.Load() != nil {
				leads = n
			}
		}
		if agree && leads != nil && leads.name == name {
			return leads
		}
	}
	c.t.Fatal("there is no leader")
	return nil
}

// life is a node as the tests of one server know it.
func (n *colleague) life(t *testing.T) *life { return &life{t: t, http: n.http} }

// A job that was accepted at one node is followed at the second and canceled at the third,
// and all nodes run jobs, each at most as many as it has workers.
func TestJoin(t *testing.T) {
	var total, most atomic.Int64
	var at [4]atomic.Int64
	hold := make(chan struct{})
	c := found(t, 3, func(node string) http.Handler {
		var running atomic.Int64
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if n := running.Add(1); n > most.Load() {
				most.Store(n)
			}
			defer running.Add(-1)
			total.Add(1)
			at[node[1]-'0'].Add(1)
			body, _ := io.ReadAll(r.Body)
			if r.URL.Path == "/hang" {
				<-r.Context().Done()
				return
			}
			if r.URL.Path == "/hold" {
				<-hold
			}
			w.Header().Set("X-Node", node)
			fmt.Fprintf(w, "%s %s %s %s", r.Method, r.URL, r.Header.Get("Job-Attempt"), body)
		})
	})
	c.leader()
	one, two, three := c.nodes[0].life(t), c.nodes[1].life(t), c.nodes[2].life(t)
	var urls []string
	for i := range 20 {
		urls = append(urls, []*life{one, two, three}[i%3].post(fmt.Sprint("/hold?n=", i), "body"))
	}
	for end := time.Now().Add(patience); total.Load() < 6; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d jobs run, want 6", total.Load())
		}
	}
	close(hold)
	for i, url := range urls {
		l := []*life{two, three, one}[i%3]
		l.await(url, "done")
		if status, body := l.response(url); status != http.StatusOK || body != fmt.Sprintf("POST /hold?n=%d 1 body", i) {
			t.Errorf("job %d: %d %s", i, status, body)
		}
	}
	if most.Load() != 2 {
		t.Errorf("up to %d jobs ran at a node, want 2", most.Load())
	}
	url := one.post("/hang", "")
	two.await(url, "running")
	r, _ := http.NewRequest("DELETE", three.http.URL+url, nil)
	if resp, err := http.DefaultClient.Do(r); err != nil || resp.StatusCode != http.StatusAccepted {
		t.Fatalf("DELETE: %v, %v", resp, err)
	}
	one.await(url, "canceled")
	for _, path := range []string{"/sync", "/queued"} {
		resp, err := http.Post(two.http.URL+path, "text/plain", strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		if body, _ := io.ReadAll(resp.Body); string(body) != "POST "+path+"  body" {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
		resp.Body.Close()
	}
}

// With the log at external servers the nodes need no folders, and one takes over from the
// other.
func TestJoinAtNATS(t *testing.T) {
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, MaxPayload: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(s.Shutdown)
	c := found(t, 2, func(node string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "done") })
	}, func(c *NodeConfig) {
		c.Dir, c.Addr, c.Peers, c.NATS, c.NoSync = "", "", nil, s.ClientURL(), true
	})
	leads := c.leader()
	url := leads.life(t).post("/", "")
	leads.life(t).await(url, "done")
	leads.quit()
	next := c.leader()
	if status, body := next.life(t).response(url); status != http.StatusOK || body != "done" {
		t.Errorf("the response is %d %s at the next leader", status, body)
	}
	next.life(t).await(next.life(t).post("/", ""), "done")
}
