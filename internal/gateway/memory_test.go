package gateway

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/internal/budget"
	"holdfast/internal/server"
)

const muchMemory = 4 << 20

// big answers with more than half of muchMemory, and with a length if asked for that.
func big(w http.ResponseWriter, r *http.Request) {
	const size = 3 << 20
	if r.URL.Path == "/length" {
		w.Header().Set("Content-Length", strconv.Itoa(size))
	}
	io.WriteString(w, strings.Repeat("b", size))
}

// held waits until the budget holds no more than was counted before the requests, which
// is what idle connections and a store's chunk take.
func (f *fixture) held(what string) {
	f.t.Helper()
	for end := time.Now().Add(patience); f.memory.Held() > 512<<10; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			f.t.Errorf("%s: %d bytes are held", what, f.memory.Held())
			return
		}
	}
}

// A response for which there is no memory is no fault of the upstream's: it is refused
// with 503, and nothing of it stays counted.
func TestNoMemoryForResponse(t *testing.T) {
	f := through(t, server.Config{Workers: 1, Queue: 1, MaxMemory: muchMemory}, Config{}, big)
	taken := new(budget.Hold)
	taken.Open(f.memory, 0)
	if !taken.Reserve(muchMemory - 1<<20) {
		t.Fatal("there is no memory before the first request")
	}
	for _, path := range []string{"/length", "/chunks"} {
		for _, mode := range modes {
			refused := f.memory.Refused()
			res, body := f.do(f.request("GET", mode+path, nil))
			f.problem(mode+path, res, body, 503, "no memory is left for the response; try again later")
			if mode == "/sync" && res.Header.Get("Retry-After") == "" {
				t.Errorf("%s: no Retry-After", mode+path)
			}
			if n := f.memory.Refused() - refused; n != 1 {
				t.Errorf("%s: counted as %d refusals", mode+path, n)
			}
		}
	}
	if strings.Contains(f.log.String(), "upstream") {
		t.Error("it is logged as a fault of the upstream")
	}
	taken.Close()
	f.held("when refused")
}

// Where large bodies have taken all that they can get, a job is accepted and has its short
// response all the same.
func TestShortResponseBesideLargeBodies(t *testing.T) {
	f := through(t, server.Config{Workers: 1, Queue: 1, MaxMemory: 4 * muchMemory}, Config{}, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, strings.Repeat("b", 8<<10))
	})
	taken := new(budget.Hold)
	taken.Open(f.memory, 0)
	for n := int64(1 << 20); n > 20_000; n /= 2 {
		for taken.Reserve(n) {
		}
	}
	for _, mode := range modes {
		if res, body := f.do(f.request("GET", mode+"/x", nil)); res.StatusCode != 200 || len(body) != 8<<10 {
			t.Errorf("%s: %d, %.100q", mode, res.StatusCode, body)
		}
	}
	taken.Close()
}

// The length of a HEAD's response is not that of a body.
func TestHeadTakesNoMemory(t *testing.T) {
	f := through(t, server.Config{Workers: 1, Queue: 1, MaxMemory: muchMemory, MaxResponse: 1 << 30}, Config{}, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(1<<29))
	})
	if res, _ := f.do(f.request("HEAD", "/sync/x", nil)); res.StatusCode != 200 || res.ContentLength != 1<<29 {
		t.Errorf("%d, length %d", res.StatusCode, res.ContentLength)
	}
}

// What is read for a job that has passed its deadline is counted until it is there, and
// then given back.
func TestLateResponseIsGivenBack(t *testing.T) {
	hold, halfway := make(chan struct{}), make(chan struct{})
	f := through(t, server.Config{Workers: 1, Queue: 1, MaxMemory: muchMemory, JobTimeout: 50 * time.Millisecond}, Config{}, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, strings.Repeat("b", 1<<20))
		http.NewResponseController(w).Flush()
		close(halfway)
		<-hold
		io.WriteString(w, "end")
	})
	res, body := f.do(f.request("GET", "/sync/x", nil))
	f.problem("late", res, body, 504, "")
	<-halfway
	for end := time.Now().Add(patience); f.memory.Held() < 1<<20; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d bytes are held for a response of which 1 MiB is there", f.memory.Held())
		}
	}
	close(hold)
	f.held("when the late response is there")
}

// What was read of a response is given back when the client has it, and when it is too
// large.
func TestResponseIsGivenBack(t *testing.T) {
	for limit, status := range map[int64]int{8 << 20: 200, 2 << 20: 502} {
		f := through(t, server.Config{Workers: 1, Queue: 1, MaxMemory: 4 * muchMemory, MaxResponse: limit}, Config{}, big)
		for _, path := range []string{"/length", "/chunks"} {
			if res, _ := f.do(f.request("GET", "/sync"+path, nil)); res.StatusCode != status {
				t.Errorf("%s: %d, want %d", path, res.StatusCode, status)
			}
			f.held(path)
		}
	}
}
