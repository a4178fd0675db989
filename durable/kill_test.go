//go:build unix

package durable

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/proctest"
)

var kills = flag.Int("kills", 50, "how often TestKill kills the server, `n` times")

// A witness is the upstream: it has seen what ran, in which life of the server.
type witness struct {
	life atomic.Int64
	mu   sync.Mutex
	runs map[string]map[int64]int // by job and life
	done map[string]int64         // jobs that a client saw as done, and the life
	late []string                 // jobs that ran in a life after that
}

func (w *witness) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	// Each life has a path of its own: what a killed process has sent may arrive in the next.
	first, _, _ := strings.Cut(r.URL.Path[1:], "/")
	life, _ := strconv.ParseInt(first, 10, 64)
	name := r.Header.Get("X-Job")
	w.mu.Lock()
	if w.runs[name] == nil {
		w.runs[name] = make(map[int64]int)
	}
	w.runs[name][life]++
	refused := triedTwice(name) && len(w.runs[name]) == 1 && w.runs[name][life] == 1
	if _, done := w.done[name]; done {
		w.late = append(w.late, name)
	}
	w.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	n, _ := strconv.Atoi(strings.TrimPrefix(name, "j"))
	if time.Sleep(time.Duration(n%20) * time.Millisecond); refused {
		rw.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	rw.Header().Set("Content-Type", "text/plain")
	fmt.Fprintf(rw, "%s:%s", name, body)
}

// triedTwice reports whether the witness refuses the first attempt of a job, and delayed
// whether its client wants it to run later. Neither has a key.
func triedTwice(name string) bool { return strings.HasSuffix(name, "3") }

func delayed(name string) bool { return strings.HasSuffix(name, "5") }

// A promise is a job that a client has a 202 for.
type promise struct{ name, body, key, url string }

// A crowd submits jobs while the server lives and dies.
type crowd struct {
	t        *testing.T
	witness  *witness
	addr     atomic.Value // of the server; "" while there is none
	next     atomic.Int64
	mu       sync.Mutex
	promises []promise
	keys     map[string]string // the URL that each key led to
}

// client submits jobs until stop is closed. Of those under a key it repeats the request
// until there is an answer, and once more after that.
func (c *crowd) client(rng *rand.Rand, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		n := c.next.Add(1)
		p := promise{name: fmt.Sprint("j", n), body: strings.Repeat("b", 1<<rng.IntN(14))}
		if n%4 == 0 {
			p.key = fmt.Sprint("key", n)
		}
		for repeat := 0; repeat < 2; repeat++ {
			url := c.submit(p)
			for url == "" && p.key != "" {
				select {
				case <-stop:
					return
				case <-time.After(5 * time.Millisecond):
					url = c.submit(p)
				}
			}
			c.promised(p, url)
			if p.key == "" {
				break
			}
		}
		if url := c.any(rng); url != "" {
			c.look(url)
		}
	}
}

// submit returns the URL of the job, or "" if there was no 202.
func (c *crowd) submit(p promise) string {
	addr, _ := c.addr.Load().(string)
	if addr == "" {
		time.Sleep(2 * time.Millisecond)
		return ""
	}
	r, err := http.NewRequest("POST", "http://"+addr+"/async/work", strings.NewReader(p.body))
	if err != nil {
		return ""
	}
	r.Host = "holdfast.test" // a key is of one host, and each life has a port of its own
	r.Header.Set("X-Job", p.name)
	if delayed(p.name) {
		r.Header.Set("Delay", "1")
	}
	if p.key != "" {
		r.Header.Set("Idempotency-Key", p.key)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	if resp.StatusCode != http.StatusAccepted {
		return ""
	}
	return resp.Header.Get("Location")
}

func (c *crowd) promised(p promise, url string) {
	if url == "" {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.key != "" {
		if before, ok := c.keys[p.key]; ok {
			if before != url {
				c.t.Errorf("%s led to %s, and then to %s", p.key, before, url)
			}
			return
		}
		c.keys[p.key] = url
	}
	p.url = url
	c.promises = append(c.promises, p)
}

func (c *crowd) any(rng *rand.Rand) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.promises) == 0 {
		return ""
	}
	return c.promises[max(0, len(c.promises)-1-rng.IntN(500))].url
}

// look asks where a job stands. One that is done must not run any more.
func (c *crowd) look(url string) {
	addr, _ := c.addr.Load().(string)
	if addr == "" {
		return
	}
	resp, err := http.Get("http://" + addr + url)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	var job struct{ State string }
	if json.NewDecoder(resp.Body).Decode(&job) != nil || job.State != "done" {
		if resp.StatusCode == http.StatusNotFound {
			c.t.Errorf("%s is unknown", url)
		}
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := len(c.promises) - 1; i >= 0; i-- {
		if c.promises[i].url == url {
			c.witness.mu.Lock()
			c.witness.done[c.promises[i].name] = c.witness.life.Load()
			c.witness.mu.Unlock()
			return
		}
	}
}

// The server is killed at random moments under load. Every job that a client has a 202
// for ends, with the response to its own request; none runs twice in one life of the
// server, nor after its end was seen; and a key stands for one job.
func TestKill(t *testing.T) {
	const seed = 14
	dir := t.TempDir()
	w := &witness{runs: make(map[string]map[int64]int), done: make(map[string]int64)}
	upstream := httptest.NewServer(w)
	defer upstream.Close()
	c := &crowd{t: t, witness: w, keys: make(map[string]string)}
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for i := range 16 {
		clients.Go(func() { c.client(rand.New(rand.NewPCG(seed, uint64(i))), stop) })
	}
	rng := rand.New(rand.NewPCG(seed, 1000))
	args := []string{"-workers", "8", "-queue", "100", "-retain-jobs", "1000000", "-retain-bytes", "1GiB", "-attempts", "1000", "-retry-on", "503"}
	for range *kills {
		p := c.live(dir, upstream.URL, args)
		time.Sleep(time.Duration(rng.IntN(400)) * time.Millisecond)
		c.addr.Store("")
		p.Cmd.Process.Kill()
		<-p.Ended
	}
	p := c.live(dir, upstream.URL, args)
	close(stop)
	clients.Wait()
	c.settle(p.Addr())
}

// live starts the server once more.
func (c *crowd) live(dir, upstream string, args []string) *proctest.Process {
	life := fmt.Sprint("/", c.witness.life.Add(1))
	p := launch(c.t, dir, append([]string{"-upstream", upstream + life}, args...)...)
	c.addr.Store(p.Addr())
	return p
}

// settle waits until all that was promised has ended, and checks it.
func (c *crowd) settle(addr string) {
	end := time.Now().Add(2 * patience)
	for _, p := range c.promises {
		for {
			resp, err := http.Get("http://" + addr + p.url + "/response")
			if err != nil {
				c.t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.Header.Get("Job-State") == "done" {
				if want := p.name + ":" + p.body; string(body) != want {
					c.t.Errorf("the response of %s is %d %q", p.name, resp.StatusCode, body[:min(len(body), 40)])
				}
				break
			}
			if time.Now().After(end) || resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusGone {
				c.t.Fatalf("%s, %s: %d %s", p.name, p.url, resp.StatusCode, bytes.TrimSpace(body))
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	w := c.witness
	w.mu.Lock()
	defer w.mu.Unlock()
	twice := 0
	for _, p := range c.promises {
		if len(w.runs[p.name]) == 0 {
			c.t.Errorf("%s is done and has not run", p.name)
		}
		if len(w.runs[p.name]) > 1 {
			twice++
		}
		for life, n := range w.runs[p.name] {
			if n > 1 && !triedTwice(p.name) || n > 2 {
				c.t.Errorf("%s ran %d times in life %d", p.name, n, life)
			}
		}
	}
	if len(w.late) > 0 {
		c.t.Errorf("%d jobs ran after they were seen as done: %v", len(w.late), w.late[:min(len(w.late), 10)])
	}
	c.t.Logf("%d kills: %d jobs promised, %d of them started in more than one life, %d seen as done on the way", *kills, len(c.promises), twice, len(w.done))
	if len(c.promises) < *kills {
		c.t.Errorf("only %d jobs were promised", len(c.promises))
	}
}
