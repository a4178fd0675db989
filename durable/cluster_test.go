//go:build unix

package durable

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"holdfast/conformance"
	"holdfast/durable/internal/history"
	"holdfast/internal/proctest"
)

var loss = flag.Duration("loss", 20*time.Second, "for how long TestNodesAreKilled kills a node every 5 s")

// A fleet is a cluster of three processes.
type fleet struct {
	t     *testing.T
	args  [3][]string
	dirs  [3]string
	addrs [3]string // of the public listeners
	admin [3]string // of the operator's
	nodes [3]*proctest.Process
}

// sail starts a fleet.
func sail(t *testing.T, args ...string) *fleet {
	t.Helper()
	f := &fleet{t: t}
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("a secret that only this test has"), 0o600); err != nil {
		t.Fatal(err)
	}
	var peers, nodes []string
	for i := range f.nodes {
		peers, nodes = append(peers, freeAddr(t)), append(nodes, freeAddr(t))
		f.addrs[i], f.admin[i], f.dirs[i] = freeAddr(t), freeAddr(t), t.TempDir()
	}
	for i := range f.nodes {
		f.args[i] = append([]string{
			"-addr", f.addrs[i], "-admin", f.admin[i], "-data", f.dirs[i], "-cluster", "fleet", "-node", fmt.Sprint("n", i+1),
			"-cluster-addr", peers[i], "-peers", strings.Join(peers, ","), "-node-addr", nodes[i], "-cluster-secret-file", file,
		}, args...)
		f.start(i)
	}
	return f
}

func (f *fleet) start(i int) {
	f.nodes[i] = proctest.Launch(f.t, nil, proctest.BuildPackage(f.t, "./cmd/holdfast"), f.args[i]...)
}

func (f *fleet) kill(i int) {
	f.nodes[i].Cmd.Process.Kill()
	<-f.nodes[i].Ended
}

// ready waits until a node takes requests.
func (f *fleet) ready(i int) {
	f.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		resp, err := http.Get("http://" + f.addrs[i] + "/readyz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		if time.Now().After(end) {
			f.t.Fatalf("node n%d is not ready: %v", i+1, err)
		}
	}
}

func (f *fleet) allReady() {
	f.t.Helper()
	for i := range f.nodes {
		f.ready(i)
	}
}

// leader returns which node leads, by what the processes have logged.
func (f *fleet) leader() int {
	leads, last := -1, ""
	for i, p := range f.nodes {
		text := p.Text()
		at := strings.LastIndex(text, "this node serves all requests")
		if at < 0 || strings.Contains(text[at:], "this node leads no more") {
			continue
		}
		select {
		case <-p.Ended:
			continue
		default:
		}
		if line, _, _ := strings.Cut(text[at:], "\n"); line > last { // the terms of a test have one digit
			leads, last = i, line
		}
	}
	if leads < 0 {
		f.t.Fatal("no node leads")
	}
	return leads
}

// do sends a request to a node, and returns the status, the header and the body. It goes
// on while the answer is 503.
func (f *fleet) do(i int, method, path, body string, header ...string) (int, http.Header, string) {
	f.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		status, h, text, err := f.try(i, method, path, body, header...)
		if err == nil && status != http.StatusServiceUnavailable {
			return status, h, text
		}
		if time.Now().After(end) {
			f.t.Fatalf("%s %s at n%d: %d %s, %v", method, path, i+1, status, text, err)
		}
	}
}

func (f *fleet) try(i int, method, path, body string, header ...string) (int, http.Header, string, error) {
	return request("http://"+f.addrs[i]+path, method, body, header...)
}

// await waits until a job is in a state, as a node says.
func (f *fleet) await(i int, url, state string) {
	f.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		_, _, text := f.do(i, "GET", url, "")
		var job struct{ State string }
		json.Unmarshal([]byte(text), &job)
		if job.State == state {
			return
		}
		if time.Now().After(end) {
			f.t.Fatalf("%s is %s at n%d, want %s", url, text, i+1, state)
		}
	}
}

// The HTTP contract is the same at each of several nodes, whether it leads or not.
func TestConformanceOfNodes(t *testing.T) {
	f := sail(t)
	f.allReady()
	for _, addr := range f.addrs {
		t.Run("", func(t *testing.T) { conformance.Run(t, "http://"+addr) })
	}
}

// The operator sees the whole cluster at each node, and the guard of the node that was
// asked lets nobody else in.
func TestOperatorOfNodes(t *testing.T) {
	f := sail(t)
	f.allReady()
	f.await(0, f.postTo(0, "/bbb", `{"sleep_time":0}`), "done")
	leaders := make(map[string]bool)
	for i, admin := range f.admin {
		// request names another host
		if status, _, text, err := request("http://"+admin+"/stats", "GET", ""); status != http.StatusMisdirectedRequest {
			t.Errorf("n%d answers to the name of another host: %d %s, %v", i+1, status, text, err)
		}
		ask := func(method, path, body string) (int, string) {
			r, _ := http.NewRequest(method, "http://"+admin+path, strings.NewReader(body))
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			text, _ := io.ReadAll(resp.Body)
			return resp.StatusCode, string(text)
		}
		var stats struct {
			Dispatcher struct{ Workers, Accepted int }
			Cluster    struct {
				Leader string
				Nodes  []struct{ Name string }
			}
		}
		_, text := ask("GET", "/stats", "")
		if err := json.Unmarshal([]byte(text), &stats); err != nil || len(stats.Cluster.Nodes) != 3 || stats.Dispatcher.Workers != 300 || stats.Dispatcher.Accepted != 1 {
			t.Errorf("/stats of n%d is %s, %v", i+1, text, err)
		}
		leaders[stats.Cluster.Leader] = true
		if status, text := ask("GET", "/jobs", ""); status != http.StatusOK || !strings.Contains(text, `"done"`) {
			t.Errorf("/jobs of n%d: %d %s", i+1, status, text)
		}
		if status, text := ask("PATCH", "/dispatcher", `{"workers":5}`); status != http.StatusBadRequest || !strings.Contains(text, "each node has workers of its own") {
			t.Errorf("PATCH at n%d: %d %s", i+1, status, text)
		}
		for _, path := range []string{"/", "/healthz", "/readyz", "/debug/pprof/cmdline", "/metrics"} {
			if status, text := ask("GET", path, ""); status != http.StatusOK {
				t.Errorf("%s of n%d: %d %s", path, i+1, status, text)
			}
		}
	}
	if len(leaders) != 1 || leaders[""] {
		t.Errorf("the nodes say that %v lead", leaders)
	}
}

// An upstream that blocks requests for /hang until they are let go, and remembers which
// came.
type harbour struct {
	mu   sync.Mutex
	seen map[string][]string // by path, the attempts
	free chan struct{}
	came chan string
}

func (h *harbour) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	h.seen[r.URL.Path] = append(h.seen[r.URL.Path], r.Header.Get("Job-Attempt"))
	h.mu.Unlock()
	h.came <- r.URL.Path
	<-h.free
	fmt.Fprint(w, "attempt ", r.Header.Get("Job-Attempt"))
}

func (h *harbour) attempts(path string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Join(h.seen[path], " ")
}

func newHarbour(t *testing.T) (*harbour, *httptest.Server) {
	h := &harbour{seen: make(map[string][]string), free: make(chan struct{}), came: make(chan string, 100)}
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return h, s
}

func (f *fleet) post(i int, path string) string { return f.postTo(i, path, "body") }

func (f *fleet) postTo(i int, path, body string) string {
	f.t.Helper()
	status, header, text := f.do(i, "POST", path, body)
	if status != http.StatusAccepted {
		f.t.Fatalf("POST %s: %d %s", path, status, text)
	}
	return header.Get("Location")
}

// With a worker at each of three nodes, three jobs run at three nodes. When one that does
// not lead is killed, its job runs elsewhere, as the second attempt, and no other is
// disturbed. When the leader is killed, the job at the third node goes on where it runs.
func TestNodeIsLost(t *testing.T) {
	h, upstream := newHarbour(t)
	f := sail(t, "-upstream", upstream.URL, "-workers", "1", "-abandon")
	f.allReady()
	var urls []string
	for i := range 3 {
		urls = append(urls, f.post(i, fmt.Sprint("/async/", i)))
	}
	for range 3 {
		<-h.came
	}
	leader := f.leader()
	f.kill((leader + 1) % 3)
	// Both workers that are left are busy, so it waits; with the leader's end its job and
	// this one run, one after the other, at the last node.
	time.Sleep(2500 * time.Millisecond)
	f.kill(leader)
	last := (leader + 2) % 3
	f.start(leader)
	f.ready(last)
	close(h.free)
	twice := 0
	for i, url := range urls {
		f.await(last, url, "done")
		_, _, text := f.do(last, "GET", url+"/response", "")
		switch attempts := h.attempts(fmt.Sprint("/", i)); {
		case attempts == "1" && text == "attempt 1":
		case attempts == "1 2" && text == "attempt 2":
			twice++
		default:
			t.Errorf("job %d was started as %s, and its response is %q", i, attempts, text)
		}
	}
	if twice != 2 {
		t.Errorf("%d jobs ran twice, want the 2 whose nodes were killed", twice)
	}
}

// A leader that is stopped and wakes up has lost the lead, and nothing that others have
// done meanwhile.
func TestLeaderIsStopped(t *testing.T) {
	h, upstream := newHarbour(t)
	close(h.free)
	f := sail(t, "-upstream", upstream.URL, "-workers", "2")
	f.allReady()
	leader := f.leader()
	other, third := (leader+1)%3, (leader+2)%3
	before := f.post(leader, "/async/before")
	f.await(other, before, "done")
	f.nodes[leader].Cmd.Process.Signal(syscall.SIGSTOP)
	time.Sleep(2500 * time.Millisecond) // until the others do not take it for the leader any more
	during := f.post(other, "/async/during")
	f.await(third, during, "done")
	f.nodes[leader].Cmd.Process.Signal(syscall.SIGCONT)
	for range 20 {
		status, _, text, err := f.try(leader, "GET", during, "")
		if err == nil && status != http.StatusOK && status != http.StatusServiceUnavailable {
			t.Errorf("the leader that was stopped has answered %d %s", status, text)
		}
		time.Sleep(20 * time.Millisecond)
	}
	f.ready(leader)
	after := f.post(leader, "/async/after")
	for _, url := range []string{before, during, after} {
		f.await(leader, url, "done")
	}
	for _, path := range []string{"/before", "/during", "/after"} {
		if got := h.attempts(path); got != "1" {
			t.Errorf("%s was started as %q, want once", path, got)
		}
	}
}

// Nodes stop in order in about a second, and nobody loses a job.
func TestNodesStopInOrder(t *testing.T) {
	h, upstream := newHarbour(t)
	close(h.free)
	f := sail(t, "-upstream", upstream.URL)
	f.allReady()
	for i := range f.nodes { // as an upgrade does
		url := f.post(i, fmt.Sprint("/async/", i))
		began := time.Now()
		f.nodes[i].Cmd.Process.Signal(syscall.SIGTERM)
		<-f.nodes[i].Ended
		t.Logf("n%d stopped in %v", i+1, time.Since(began).Round(time.Millisecond))
		if code := f.nodes[i].Cmd.ProcessState.ExitCode(); code != 0 {
			t.Errorf("n%d: exit status %d", i+1, code)
		}
		f.await((i+1)%3, url, "done")
		t.Logf("there is a leader %v after the signal", time.Since(began).Round(time.Millisecond))
		f.start(i)
		f.ready(i)
	}
}

// A lookout is an upstream that sees which node each request comes from, by the name of its
// gateway, which each process has for itself.
type lookout struct {
	mu      sync.Mutex
	running map[string]int            // by node
	most    int                       // at any node
	runs    map[string]map[string]int // by job, and by node and attempt
}

func (l *lookout) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, via := r.Header.Get("X-Job"), r.Header.Get("Via")
	l.mu.Lock()
	l.running[via]++
	l.most = max(l.most, l.running[via])
	if l.runs[name] == nil {
		l.runs[name] = make(map[string]int)
	}
	l.runs[name][via+" as attempt "+r.Header.Get("Job-Attempt")]++ // a node that was taken for lost may get the next attempt
	l.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	time.Sleep(time.Duration(rand.IntN(40)) * time.Millisecond)
	l.mu.Lock()
	l.running[via]--
	l.mu.Unlock()
	fmt.Fprintf(w, "%s:%s", name, body)
}

// One node of three is killed every 5 s, under load. Every job that a client has a 202 for
// ends, with the response to its own request; none runs twice at one node as the same attempt; no node has more
// jobs than workers; and what clients were told at all nodes is what one server could have
// told them.
func TestNodesAreKilled(t *testing.T) {
	const seed, workers = 14, 4
	l := &lookout{running: make(map[string]int), runs: make(map[string]map[string]int)}
	upstream := httptest.NewServer(l)
	defer upstream.Close()
	f := sail(t, "-upstream", upstream.URL, "-workers", fmt.Sprint(workers), "-queue", "1000", "-retain-jobs", "1000000", "-retain-bytes", "1GiB", "-attempts", "1000")
	f.allReady()
	all, book, stop := history.New(), new(ledger), make(chan struct{})
	var next atomic.Int64
	var clients sync.WaitGroup
	for i := range 8 {
		clients.Go(func() {
			c := &crew{history: all, shared: book, rng: rand.New(rand.NewPCG(seed, uint64(i)))}
			c.ask = func(method, path, body string, header ...string) (int, http.Header, string, error) {
				return f.try(c.rng.IntN(3), method, path, body, header...)
			}
			for {
				select {
				case <-stop:
					return
				default:
					c.act(int(next.Add(1)))
				}
			}
		})
	}
	rng := rand.New(rand.NewPCG(seed, 1000))
	for began := time.Now(); time.Since(began) < *loss; {
		i := rng.IntN(3)
		time.Sleep(4 * time.Second)
		f.kill(i)
		time.Sleep(time.Second)
		f.start(i)
	}
	close(stop)
	clients.Wait()
	f.allReady()
	f.settle(book, l)
	if err := all.Check(); err != nil {
		t.Error(err)
	}
	if l.most > workers {
		t.Errorf("up to %d jobs ran at a node, want %d", l.most, workers)
	}
	_, ops := all.Size()
	t.Logf("%d operations; %d jobs promised; longest time without a promise %v", ops, len(book.jobs), book.gap.Round(time.Millisecond))
}

// settle waits until all that was promised has ended, and checks it.
func (f *fleet) settle(book *ledger, l *lookout) {
	f.t.Helper()
	twice := 0
	for i, e := range book.jobs {
		for end := time.Now().Add(2 * patience); ; time.Sleep(10 * time.Millisecond) {
			status, h, text := f.do(i%3, "GET", e.url+"/response", "")
			if state := h.Get("Job-State"); state == "canceled" || state == "done" && text == e.name+":"+e.body {
				break
			} else if state == "done" || state == "failed" || status == http.StatusNotFound || time.Now().After(end) {
				f.t.Fatalf("%s, %s is %s: %d %.60s", e.name, e.url, state, status, text)
			}
		}
		l.mu.Lock()
		for node, n := range l.runs[e.name] {
			if n > 1 {
				f.t.Errorf("%s ran %d times at %s", e.name, n, node)
			}
		}
		if len(l.runs[e.name]) > 1 {
			twice++
		}
		l.mu.Unlock()
	}
	f.t.Logf("%d of %d jobs had more than one run", twice, len(book.jobs))
	if len(book.jobs) < 100 {
		f.t.Errorf("only %d jobs were promised", len(book.jobs))
	}
}
