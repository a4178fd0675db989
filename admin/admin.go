// Package admin serves what only the operator of a server may see or do: the
// dashboard, statistics as JSON and as a stream, the list of jobs, the controls of
// the dispatcher, and Go's own debugging pages. It differs from a page of metrics in
// that it says what the numbers mean for the size of the pool, and can change it.
//
// It imports expvar and net/http/pprof, which register themselves on
// http.DefaultServeMux: a program that imports admin should serve a mux of its own,
// as one should anyway.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"expvar"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"holdfast"
	"holdfast/internal/problem"
)

// A Config says what the operator is shown. Only the Dispatcher is needed, and must
// not be nil.
type Config struct {
	Dispatcher *holdfast.Dispatcher

	// Jobs are listed at /jobs and served below it, so their JobsConfig.Path must be
	// /jobs/, the default. If nil, there is no list.
	Jobs *holdfast.Jobs

	// Version is what the page and /stats say of the program.
	Version string

	// Logger gets a record for each change. If nil, slog.Default() is used.
	Logger *slog.Logger

	// Stopping reports whether the server has begun to shut down. If nil, it
	// never has.
	Stopping func() bool

	// Health answers GET /healthz and GET /readyz. If nil, there are no such routes.
	Health http.Handler

	// Token is what a request must have as Bearer token or as the password of HTTP
	// Basic. If empty, whoever can connect may do everything.
	Token string

	// Host is the name by which the listener is reached, besides localhost and IP
	// addresses. If empty, there is none: a request for any other name is refused,
	// since a hostile page could have made it lead here.
	Host string

	// Demo gets the requests of POST /burst, which show a newcomer what the queue is
	// for: POST /aaa and POST /bbb with {"sleep_time":n}. If nil, there is no burst.
	Demo http.Handler

	// Resize changes the number of workers for a request, one call at a time, with
	// the errors of [holdfast.Dispatcher.Resize]: for a program in which something
	// else depends on that number. If nil, it is the dispatcher's.
	Resize func(workers int) error
}

// A Handler serves the admin listener. Create one with [New] and let it [Handler.Run];
// it may be used by any number of goroutines at once.
type Handler struct {
	config  Config
	began   time.Time
	history history
	bursts  *bursts // nil without a Demo
	streams atomic.Int64
	guarded http.Handler

	// With two changes at a time the workers could be those of one, and resume the
	// number of the other.
	changing sync.Mutex // protects the following field
	resume   int        // workers to go on with after a pause
}

// maxStreams is how many may watch at once. A listener that takes few connections
// should have some left for those who want to change something.
const maxStreams = 8

// New returns a Handler for these routes, as far as c has what they need:
//
//	GET /             the dashboard
//	GET /stats        what there is now, as JSON: Stats
//	GET /events       the same every second, as Server-Sent Events
//	GET /jobs         the list of jobs, see holdfast.Jobs.List
//	/jobs/            the jobs themselves, as on the public listener
//	PATCH /dispatcher {"workers":50,"overflow":"reject"}, or one of them: changes it
//	POST /burst       {"path":"/bbb","jobs":500,"sleep_time":1}: a load to look at
//	DELETE /burst     ends what of it waits for its answer
//	GET /healthz      200
//	GET /readyz       200, and 503 while the server stops
//	/debug/vars, /debug/pprof/
//
// Requests that another site's page sends, or that are for another host, are
// refused, as are those without the token if there is one. Only /healthz and
// /readyz need none.
func New(c Config) *Handler {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Stopping == nil {
		c.Stopping = func() bool { return false }
	}
	if c.Resize == nil {
		c.Resize = c.Dispatcher.Resize
	}
	h := &Handler{config: c, began: time.Now()}
	st := c.Dispatcher.Stats()
	h.history.marks = []mark{{h.began, st}}
	h.resume = max(st.Workers, 1)

	mux := http.NewServeMux()
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, r *http.Request) { writeJSON(w, http.StatusOK, h.stats()) })
	mux.HandleFunc("GET /events", h.serveEvents)
	mux.Handle("PATCH /dispatcher", problem.Unless(c.Stopping, http.HandlerFunc(h.serveChange)))
	if c.Jobs != nil {
		mux.Handle("/jobs", c.Jobs.ListHandler())
		mux.Handle("/jobs/", c.Jobs)
	}
	if c.Health != nil {
		mux.Handle("GET /healthz", c.Health)
		mux.Handle("GET /readyz", c.Health)
	}
	if c.Demo != nil {
		h.bursts = newBursts(c.Demo)
		mux.Handle("POST /burst", problem.Unless(c.Stopping, http.HandlerFunc(h.bursts.serveStart)))
		mux.HandleFunc("DELETE /burst", h.bursts.serveStop)
	}
	mux.HandleFunc("GET /debug/vars", h.serveVars)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("POST /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	servePage(mux)
	h.guarded = h.guard(problem.Mux(mux))
	return h
}

// ServeHTTP serves the routes that [New] lists.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.guarded.ServeHTTP(w, r) }

// Run looks at the dispatcher every second, until ctx ends, and then ends the
// requests of bursts that are not answered yet. Without it there is nothing to tell
// of the last minutes, no advice, and no second event in a stream.
func (h *Handler) Run(ctx context.Context) {
	h.history.run(ctx, h.config.Dispatcher)
	if h.bursts != nil {
		h.bursts.stop()
	}
}

// stats returns what there is now.
func (h *Handler) stats() Stats {
	now := mark{time.Now(), h.config.Dispatcher.Stats()}
	past, _ := h.history.look()
	s := Stats{
		Time:     now.at.UTC(),
		Uptime:   now.at.Sub(h.began).Seconds(),
		Version:  h.config.Version,
		Stopping: h.config.Stopping(),
		Second:   sample(&past[max(len(past)-2, 0)], &past[len(past)-1]),
		Minute:   recent(past[max(len(past)-1-int(time.Minute/interval), 0):]),
		Advice:   h.history.advise(),
	}
	if h.config.Jobs != nil {
		kept := h.config.Jobs.Stats()
		s.Kept = &Kept{
			Open: kept.Open, Jobs: kept.Kept, Bytes: kept.KeptBytes,
			Evicted: Evicted{kept.EvictedAge, kept.EvictedJobs, kept.EvictedBytes},
			Reach:   kept.Reach.Seconds(),
			Held:    kept.Held, Refused: kept.RefusedHeld,
		}
	}
	if h.bursts != nil {
		s.Bursts = h.bursts.list()
	}
	h.changing.Lock()
	resume := h.resume
	h.changing.Unlock()
	st := &now.stats
	s.Dispatcher = Counts{
		Workers: st.Workers, Queue: st.Queue, Overflow: st.Overflow, Resume: resume,
		Accepted: st.Accepted, Queued: st.Queued, Running: st.Running, Blocked: st.Blocked,
		Ended:     Ended{st.Succeeded, st.Failed, st.Panicked, st.Canceled, st.Dropped, st.Abandoned},
		Refused:   Refused{st.RefusedFull, st.RefusedClosed, st.RefusedNested, st.RefusedGone},
		OldestAge: st.OldestAge.Seconds(),
		Wait:      timingsOf(&st.Wait),
		Run:       timingsOf(&st.Run),
	}
	return s
}

// serveEvents streams the samples of the last minutes at once, and then the Stats
// every second.
func (h *Handler) serveEvents(w http.ResponseWriter, r *http.Request) {
	defer h.streams.Add(-1)
	if h.streams.Add(1) > maxStreams {
		problem.Write(w, http.StatusServiceUnavailable, fmt.Sprintf("%d streams are open already; want at most that", maxStreams))
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would send it in bursts
	w.Header().Set("Cache-Control", "no-store")
	if r.Method == http.MethodHead {
		return
	}
	send := func(event string, data any) error {
		text, err := json.Marshal(data)
		if err != nil {
			h.config.Logger.Error("statistics cannot be told as JSON", "error", err)
			return err
		}
		if _, err := fmt.Fprintf(w, "event: %s\ndata: %s\n\n", event, text); err != nil {
			return err
		}
		return http.NewResponseController(w).Flush()
	}
	past, next := h.history.look()
	err := send("history", samples(past))
	for err == nil {
		err = send("stats", h.stats())
		select {
		case <-next:
		case <-r.Context().Done():
			return
		}
		_, next = h.history.look()
	}
}

// serveChange changes the dispatcher: everything that is asked for, or nothing.
func (h *Handler) serveChange(w http.ResponseWriter, r *http.Request) {
	var workers *int
	var overflow *holdfast.Overflow
	if !readObject(w, r, map[string]any{"workers": &workers, "overflow": &overflow}, `{"workers": n}, {"overflow": "block", "reject" or "drop-oldest"}, or both`) {
		return
	}
	if workers == nil && overflow == nil {
		problem.Write(w, http.StatusBadRequest, "nothing is to be changed; want workers, overflow, or both")
		return
	}
	d := h.config.Dispatcher
	h.changing.Lock()
	defer h.changing.Unlock()
	if workers != nil {
		switch err := h.config.Resize(*workers); {
		case errors.Is(err, holdfast.ErrClosed):
			problem.Write(w, http.StatusServiceUnavailable, "the dispatcher is shut down")
			return
		case err != nil:
			problem.Write(w, http.StatusBadRequest, fmt.Sprintf("workers is %d; want 0 (paused) to 1000000", *workers))
			return
		}
		if *workers > 0 {
			h.resume = *workers
		}
	}
	if overflow != nil {
		d.SetOverflow(*overflow) // its text was one of the three
	}
	st := d.Stats()
	h.config.Logger.Info("dispatcher changed", "workers", st.Workers, "overflow", st.Overflow, "by", r.RemoteAddr)
	writeJSON(w, http.StatusOK, struct {
		Workers  int               `json:"workers"`
		Queue    int               `json:"queue"`
		Overflow holdfast.Overflow `json:"overflow"`
	}{st.Workers, st.Queue, st.Overflow})
}

// serveVars answers as package expvar does, with the statistics besides. Published
// there they would be seen wherever the program serves its variables.
func (h *Handler) serveVars(w http.ResponseWriter, r *http.Request) {
	vars := map[string]any{"holdfast": h.stats()}
	expvar.Do(func(v expvar.KeyValue) { vars[v.Key] = json.RawMessage(v.Value.String()) })
	writeJSON(w, http.StatusOK, vars)
}

// maxBody is what a request to change something may take.
const maxBody = 4 << 10

// readObject reads the fields of the JSON object that the body of a request is, or
// answers it, with what was wanted, and returns false.
func readObject(w http.ResponseWriter, r *http.Request, fields map[string]any, want string) bool {
	body, ok := problem.ReadBody(w, r, maxBody)
	if !ok {
		return false
	}
	if err := problem.Unmarshal(body, fields); err != nil {
		problem.Write(w, http.StatusBadRequest, err.Error()+"; want "+want)
		return false
	}
	return true
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		problem.Write(w, http.StatusInternalServerError, "the answer cannot be told as JSON")
		return
	}
	body = append(body, '\n')
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	w.Write(body)
}
