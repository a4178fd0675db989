//go:build unix

package server

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var (
	keptJobs   = flag.Int("kept-jobs", 20_000, "jobs of TestProcessKeepsWithinBounds")
	keptBounds = flag.Int("kept", 1000, "how many of them it lets the server keep")
)

// Who follows a job that a stop cuts off is told so, and does not hold the stop up.
func TestProcessStopEndsStreamsAndPolls(t *testing.T) {
	t.Parallel()
	p := start(t, "-workers", "1", "-drain", "300ms")
	running := p.must(202, "POST", "/bbb", sleepFor(maxSleep)).id()
	queued := p.must(202, "POST", "/bbb", sleepFor(0)).id()
	stream := p.connect()
	stream.send(request("GET", "/jobs/"+running, "", "Accept: text/event-stream"))
	for {
		line, err := stream.r.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(line, `"state":"running"`) {
			break
		}
	}
	polls := []*client{p.connect(), p.connect(), p.connect()}
	polls[0].send(request("GET", "/jobs/"+running, "", "Prefer: wait=60"))
	polls[1].send(request("GET", "/jobs/"+queued+"/response", "", "Prefer: wait=60"))
	polls[2].send(request("GET", "/jobs/"+running+"/response", "", "Prefer: wait=60"))
	p.signal(syscall.SIGTERM)
	for i, want := range []string{
		`"state":"(running|canceled)"`, // whichever they hear of first
		`shut down before the job had started`,
		`"state":"running"|canceled when the server shut down`,
	} {
		a, err := polls[i].receive()
		if err != nil || !regexp.MustCompile(want).MatchString(a.body) {
			t.Errorf("poll %d: %v, %d %s, want %s", i, err, a.status, a.body, want)
		}
	}
	if _, err := io.ReadAll(stream.r); err != nil {
		t.Errorf("the stream ends with %v", err)
	}
	if code := p.exit(); code != 1 {
		t.Errorf("exit code %d, want 1: a job was cut off", code)
	}
	p.AwaitLog(regexp.MustCompile(` INFO stopped finished=0 cut_off=1 never_started=1 requests_cut_off=0`))
}

// What has ended stays readable while the rest drains.
func TestProcessResponsesDuringDrain(t *testing.T) {
	t.Parallel()
	p := start(t, "-workers", "2")
	done := p.must(202, "POST", "/bbb", sleepFor(0)).id()
	last := p.must(202, "POST", "/bbb", sleepFor(1)).id()
	p.must(200, "GET", "/jobs/"+done+"/response", "", "Prefer: wait=10")
	p.signal(syscall.SIGTERM)
	p.AwaitLog(regexp.MustCompile(` INFO stopping `))
	if a := p.must(200, "GET", "/jobs/"+done+"/response", ""); a.body != sleepFor(0)+"\n" {
		t.Errorf("the response is %q", a.body)
	}
	if a := p.must(200, "GET", "/jobs/"+last+"/response", "", "Prefer: wait=10"); a.body != sleepFor(1)+"\n" {
		t.Errorf("the last response is %q", a.body)
	}
	p.stopped()
}

// However many jobs there were, the server keeps so many of them, each of these can
// be read, and its memory does not grow with the others.
func TestProcessKeepsWithinBounds(t *testing.T) {
	const clients = 16
	p := launch(t, nil, build(t), "-addr", "127.0.0.1:0", "-retain-jobs", fmt.Sprint(*keptBounds))
	p.listens()
	var mu sync.Mutex
	// The ids of the latest. Jobs do not end in quite the order in which they were
	// sent, so some of the last ones may be forgotten before some of those.
	ring := make([]string, *keptBounds-300)
	n, early := 0, int64(0)
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			conn, err := net.Dial("tcp", p.addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			c := &client{t: t, conn: conn, r: bufio.NewReader(conn)}
			for {
				mu.Lock()
				n++
				mine := n
				if n == *keptJobs/4 {
					early = p.memory()
				}
				mu.Unlock()
				if mine > *keptJobs {
					return
				}
				conn.SetDeadline(time.Now().Add(patience))
				if _, err := io.WriteString(conn, request("POST", "/bbb", sleepFor(0))); err != nil {
					t.Error(err)
					return
				}
				a, err := c.receive()
				if err != nil || a.status != 202 {
					t.Errorf("%v, %d %s", err, a.status, a.body)
					return
				}
				mu.Lock()
				ring[mine%len(ring)] = a.id()
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	c := p.connect()
	for _, id := range ring {
		c.conn.SetDeadline(time.Now().Add(patience))
		a := c.do(200, "GET", "/jobs/"+id+"/response", "", "Prefer: wait=10")
		if a.body != sleepFor(0)+"\n" || a.header.Get("Job-State") != "done" {
			t.Fatalf("job %s: %+v", id, a)
		}
		var resource struct{ ID, State string }
		if a := c.do(200, "GET", "/jobs/"+id, ""); json.Unmarshal([]byte(a.body), &resource) != nil || resource.ID != id || resource.State != "done" {
			t.Fatalf("job %s: %s", id, a.body)
		}
	}
	late := p.memory()
	t.Logf("%d jobs, %d kept: %d KiB resident after a quarter of them, %d KiB at the end", *keptJobs, *keptBounds, early, late)
	if early > 0 && late > early*3/2+16<<10 {
		t.Errorf("%d KiB resident, %d KiB after a quarter of the jobs", late, early)
	}
}

// memory returns the resident memory of the process in KiB, 0 where the system
// does not tell.
func (p *process) memory() int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Cmd.Process.Pid))
	if err != nil {
		return 0
	}
	found := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(status)
	if found == nil {
		return 0
	}
	kib, _ := strconv.ParseInt(string(found[1]), 10, 64)
	return kib
}

// All URLs that a client is given begin with the public one, and the routes stay.
func TestPublicURL(t *testing.T) {
	t.Parallel()
	p := start(t, "-public-url", "https://host/queue/")
	for _, target := range []string{"/aaa", "/bbb"} {
		a := p.must(202, "POST", target, sleepFor(0), "Prefer: respond-async", "Origin: https://host")
		path := "/jobs/" + a.id()
		url := "https://host/queue" + path
		for name, want := range map[string]string{"Location": url, "Operation-Location": url, "Content-Location": url + "/response"} {
			if got := a.header.Get(name); got != want {
				t.Errorf("%s: %s is %q, want %q", target, name, got, want)
			}
		}
		a = p.must(200, "GET", path, "", "Prefer: wait=50")
		for _, want := range []string{`"url":"` + url + `"`, `"response_url":"` + url + `/response"`, `"resourceLocation":"` + url + `/response"`} {
			if !strings.Contains(a.body, want) {
				t.Errorf("%s: %s, want %s in it", target, a.body, want)
			}
		}
		p.must(404, "GET", "/queue"+path, "")
	}
	p.must(403, "POST", "/bbb", sleepFor(0), "Origin: https://other")
}
