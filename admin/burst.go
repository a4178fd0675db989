package admin

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/histogram"
	"holdfast/internal/problem"
)

// The bounds of a burst.
const (
	maxBurst      = 10_000 // requests of one burst, and unanswered requests of all bursts
	maxBurstSleep = 60     // seconds
)

// A Burst is a number of requests that are sent at once, to show what happens to
// them. jobs = pending + answered + refused + stopped.
type Burst struct {
	Path      string    `json:"path"`
	Jobs      int       `json:"jobs"`
	SleepTime int       `json:"sleep_time"` // seconds, of each
	Started   time.Time `json:"started"`

	Pending  int     `json:"pending"`        // without an answer yet
	Answered int     `json:"answered"`       // with 200 or 202
	Refused  int     `json:"refused"`        // answered with another status
	Stopped  int     `json:"stopped"`        // ended by DELETE /burst before an answer
	Answer   Timings `json:"answer_seconds"` // from the start to a 200 or 202
}

// bursts plays the clients of a handler of the same server.
type bursts struct {
	demo http.Handler // of POST /aaa and POST /bbb

	mu     sync.Mutex // protects the following fields
	last   map[string]*burst
	open   int // requests of all bursts without an answer
	ctx    context.Context
	cancel context.CancelFunc
}

type burst struct {
	Burst
	answer histogram.Histogram
}

func newBursts(demo http.Handler) *bursts {
	b := &bursts{demo: demo, last: make(map[string]*burst)}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b
}

// serveStart answers POST /burst.
func (b *bursts) serveStart(w http.ResponseWriter, r *http.Request) {
	var asked struct {
		Path      string `json:"path"`
		Jobs      int    `json:"jobs"`
		SleepTime int    `json:"sleep_time"`
	}
	fields := map[string]any{"path": &asked.Path, "jobs": &asked.Jobs, "sleep_time": &asked.SleepTime}
	if !readObject(w, r, fields, `{"path": "/aaa" or "/bbb", "jobs": n, "sleep_time": seconds}`) {
		return
	}
	switch {
	case asked.Path != "/aaa" && asked.Path != "/bbb":
		problem.Write(w, http.StatusBadRequest, fmt.Sprintf("path is %.40q; want /aaa or /bbb", asked.Path))
		return
	case asked.Jobs < 1 || asked.Jobs > maxBurst:
		problem.Write(w, http.StatusBadRequest, fmt.Sprintf("jobs is %d; want 1 to %d", asked.Jobs, maxBurst))
		return
	case asked.SleepTime < 0 || asked.SleepTime > maxBurstSleep:
		problem.Write(w, http.StatusBadRequest, fmt.Sprintf("sleep_time is %d; want 0 to %d seconds", asked.SleepTime, maxBurstSleep))
		return
	}
	started, open := b.start(asked.Path, asked.Jobs, asked.SleepTime)
	if !started {
		problem.Write(w, http.StatusTooManyRequests, fmt.Sprintf("%d requests of earlier bursts have no answer yet; want at most %d in all", open, maxBurst))
		return
	}
	writeJSON(w, http.StatusAccepted, asked)
}

// start sends the requests, each from a goroutine that plays its client. If too many
// requests are open already, it sends none and returns false. It also returns how many
// are open.
func (b *bursts) start(path string, jobs, seconds int) (ok bool, open int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open+jobs > maxBurst {
		return false, b.open
	}
	b.open += jobs
	one := &burst{Burst: Burst{Path: path, Jobs: jobs, SleepTime: seconds, Started: time.Now(), Pending: jobs}}
	b.last[path] = one
	for range jobs {
		go b.send(b.ctx, one)
	}
	return true, b.open
}

func (b *bursts) send(ctx context.Context, one *burst) {
	body := fmt.Sprintf(`{"sleep_time":%d}`, one.SleepTime)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, one.Path, strings.NewReader(body))
	if err != nil {
		panic(err) // the method and the paths are fixed
	}
	r.RequestURI, r.RemoteAddr = one.Path, "burst"
	status := b.ask(r)

	b.mu.Lock()
	defer b.mu.Unlock()
	b.open--
	one.Pending--
	switch {
	case status < 300:
		one.Answered++
		one.answer.Add(time.Since(one.Started))
	case ctx.Err() != nil:
		one.Stopped++
	default:
		one.Refused++
	}
}

// ask returns the status of the demo's answer. No server is in between that would
// recover from a panic.
func (b *bursts) ask(r *http.Request) (status int) {
	defer func() {
		if recover() != nil {
			status = http.StatusInternalServerError
		}
	}()
	w := problem.NewDiscard()
	b.demo.ServeHTTP(w, r)
	return w.Status
}

// serveStop answers DELETE /burst. Jobs that were accepted go on, as any job does.
func (b *bursts) serveStop(w http.ResponseWriter, r *http.Request) {
	b.stop()
	w.WriteHeader(http.StatusNoContent)
}

// stop ends the requests that have no answer yet.
func (b *bursts) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cancel()
	b.ctx, b.cancel = context.WithCancel(context.Background())
}

// list returns the latest burst for each path.
func (b *bursts) list() []Burst {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := make([]Burst, 0, len(b.last)) // not nil, which JSON would write as null
	for _, one := range b.last {
		now := one.Burst
		now.Answer = timingsOf(&one.answer)
		list = append(list, now)
	}
	slices.SortFunc(list, func(a, b Burst) int { return cmp.Compare(a.Path, b.Path) })
	return list
}
