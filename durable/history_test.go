//go:build unix

package durable

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/durable/internal/history"
)

// What clients are told of jobs while the server is killed again and again is what one
// server could have told them that does one thing after the other.
func TestHistory(t *testing.T) {
	const seed = 20
	g := &gossips{History: history.New(), urls: make(map[string]string)}
	upstream := httptest.NewServer(g)
	defer upstream.Close()
	dir, stop := t.TempDir(), make(chan struct{})
	var clients sync.WaitGroup
	for i := range 12 {
		clients.Go(func() { g.client(rand.New(rand.NewPCG(seed, uint64(i))), stop) })
	}
	rng := rand.New(rand.NewPCG(seed, 1000))
	for life := range max(*kills/2, 2) {
		p := launch(t, dir, "-upstream", upstream.URL, "-workers", "3", "-queue", "20", "-overflow", "reject", "-attempts", "1000")
		p.Addr()
		g.serves.Store(&serving{p.Addr(), life + 1, g.Now()})
		time.Sleep(time.Duration(100+rng.IntN(300)) * time.Millisecond)
		g.serves.Store(nil)
		p.Cmd.Process.Kill()
		<-p.Ended
	}
	close(stop)
	clients.Wait()
	if err := g.Check(); err != nil {
		t.Fatal(err)
	}
	jobs, ops := g.Size()
	t.Logf("%d operations on %d jobs", ops, jobs)
	if ops < 10**kills {
		t.Errorf("only %d operations", ops)
	}
}

// Gossips are clients who do what they like to the same few jobs, and tell of all that they
// see. They are the upstream, too.
type gossips struct {
	*history.History
	serves atomic.Pointer[serving] // nil while there is none
	latest atomic.Int64            // the number of the newest job
	runs   atomic.Int64
	mu     sync.Mutex
	urls   map[string]string // of jobs
}

// A serving server is one life of it.
type serving struct {
	addr string
	life int
	from int64
}

// ServeHTTP runs a job. Each response is another.
func (g *gossips) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s := g.serves.Load(); s != nil {
		// It was begun in this life, perhaps a while ago.
		g.Add(s.from, history.Op{Kind: history.Run, Job: strings.Trim(r.Header.Get("Idempotency-Key"), `"`), Life: s.life})
	}
	n := g.runs.Add(1)
	time.Sleep(time.Duration(n%30) * time.Millisecond)
	fmt.Fprintf(w, "run %d", n)
}

func (g *gossips) client(rng *rand.Rand, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		s := g.serves.Load()
		if s == nil {
			time.Sleep(time.Millisecond)
			continue
		}
		if rng.IntN(8) == 0 {
			g.latest.Add(1)
		}
		job := fmt.Sprint("job", max(0, g.latest.Load()-rng.Int64N(20)))
		g.mu.Lock()
		url := g.urls[job]
		g.mu.Unlock()
		switch n := rng.IntN(10); {
		case url == "" || n < 3:
			g.submit(s, job)
		case n == 3:
			g.do(s, history.Op{Kind: history.Cancel, Job: job, URL: url}, "DELETE", url)
		default:
			g.look(s, job, url)
		}
	}
}

func (g *gossips) submit(s *serving, job string) {
	o := g.do(s, history.Op{Kind: history.Submit, Job: job}, "POST", "/async/work")
	if o.Status == http.StatusAccepted {
		g.mu.Lock()
		g.urls[job] = o.URL
		g.mu.Unlock()
	}
}

// look asks for the response, which comes with the state.
func (g *gossips) look(s *serving, job, url string) {
	g.do(s, history.Op{Kind: history.Look, Job: job, URL: url}, "GET", url+"/response")
}

// do sends a request and adds what came of it.
func (g *gossips) do(s *serving, o history.Op, method, path string) history.Op {
	o.Life = s.life
	var header []string
	if o.Kind == history.Submit {
		header = []string{"Idempotency-Key", `"` + o.Job + `"`}
	}
	from := g.Now()
	status, h, body, err := request("http://"+s.addr+path, method, "", header...)
	o.Status, o.Lost = status, err != nil
	switch {
	case o.Lost:
	case o.Kind == history.Submit:
		o.URL = h.Get("Location")
	case o.Kind == history.Look:
		o.State, o.Response = seen(h, body)
	}
	g.Add(from, o)
	return o
}
