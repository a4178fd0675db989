// Package admin serves what only the operator of a server may see or do: the
// dashboard, statistics as JSON, as a stream and for Prometheus, the list of jobs,
// the controls of the dispatcher, and Go's own debugging pages. Unlike a page of
// metrics, it says what the numbers mean for the size of the pool, and can change it.
//
// It imports expvar and net/http/pprof, which register themselves on
// http.DefaultServeMux. A program that imports admin should serve a mux of its own,
// as it should anyway.
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
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"holdfast"
	"holdfast/internal/httpjob"
	"holdfast/internal/problem"
)

// A Config says what the operator can see and do. Only Dispatcher is required.
type Config struct {
	Dispatcher *holdfast.Dispatcher

	// Jobs are listed at /jobs and served below it, so their JobsConfig.Path must be
	// /jobs/, the default. If nil, there is no list.
	Jobs *holdfast.Jobs

	// Log returns the state of the log of jobs that outlive the process. If nil, they do
	// not.
	Log func() LogStats

	// Cluster returns what is known of the nodes that share the jobs. If nil, there is only
	// this process.
	Cluster func() ClusterStats

	// Version is the version of the program that the page and /stats show.
	Version string

	// Logger receives a record of each change. Wrong tokens are logged when they
	// begin, once a minute, and when they have ended. If nil, slog.Default() is used.
	Logger *slog.Logger

	// Stopping reports whether the server has begun to shut down. If nil, it
	// never has.
	Stopping func() bool

	// Health answers GET /healthz and GET /readyz. If nil, there are no such routes.
	Health http.Handler

	// Token must come with each request, as Bearer token or as the password of HTTP
	// Basic. If empty, whoever can connect may do everything.
	Token string

	// Host is a name of the listener, besides localhost and IP addresses. A request
	// for any other name is refused, since the owner of a hostile page can make such
	// a name lead here.
	Host string

	// Demo receives the requests of POST /burst, which show a newcomer what the queue
	// is for: POST /aaa and POST /bbb with {"sleep_time":n}. If nil, there is no burst.
	Demo http.Handler

	// Resize changes the number of workers for a request. It is called by one request
	// at a time. A program in which something else depends on that number, or which
	// bounds it, sets it. [holdfast.ErrClosed] is answered with 503, any other error
	// with 400 and its text. If nil, the dispatcher's Resize is used.
	Resize func(workers int) error

	// Admitted is called with each request that the guard lets through, before it is
	// served; with a Token not for /healthz and /readyz, which need none. So a server
	// can tell the operator's connections from those of strangers. If nil, it is not
	// called.
	Admitted func(r *http.Request)
}

// A Handler serves the admin listener. Create it with [New] and call [Handler.Run].
// Any number of goroutines may use it at once.
type Handler struct {
	config  Config
	began   time.Time
	history history
	bursts  *bursts // nil without a Demo
	streams atomic.Int64
	tries   *tries
	routes  http.Handler
	guarded http.Handler
	core    *httpjob.Jobs // nil without Jobs

	// Held for a whole change. Otherwise two changes at a time could set the workers
	// of one and the resume of the other.
	changing sync.Mutex // protects the following field
	resume   int        // workers to go on with after a pause
}

// maxStreams is how many clients can watch at once. A listener that takes few
// connections should have some left for those who want to change something.
const maxStreams = 8

// New returns a Handler for these routes, as far as c has what they need:
//
//	GET /             the dashboard
//	GET /jobs.html    the page of jobs
//	GET /stats        the statistics as JSON: Stats
//	GET /events       the same every second, as Server-Sent Events
//	GET /metrics      the counters, in Prometheus' text exposition format
//	GET /jobs         the list of jobs, see holdfast.Jobs.ListHandler
//	/jobs/            the jobs themselves, as on the public listener; but DELETE of a job
//	                  that has failed discards it
//	POST /jobs/{id}/retry  runs a job again that has failed
//	POST /jobs/retry  the same for all with ?state=failed and perhaps route and status
//	DELETE /jobs      discards all of those
//	GET /jobs/{id}/head  status and header of the job's response, as JSON
//	PATCH /dispatcher {"workers":50,"overflow":"reject"}, or one of them: changes it
//	POST /burst       {"path":"/bbb","jobs":500,"sleep_time":1}: sends a load to look at
//	DELETE /burst     ends the requests of bursts that still wait for their answer
//	GET /healthz      200
//	GET /readyz       200, and 503 while the server stops
//	/debug/vars, /debug/pprof/
//
// Requests from another site's page or for another host are refused, and so are
// requests without the token if there is one. Only /healthz and /readyz need none.
// After ten wrong tokens from an address, each further one from there takes a second.
// Only a few requests may wait for that; the others get 429. The pages work below any
// prefix that a proxy strips.
func New(c Config) *Handler {
	c = c.withDefaults()
	if c.Resize == nil {
		c.Resize = c.Dispatcher.Resize
	}
	h := &Handler{config: c, began: time.Now(), tries: newTries(c.Logger)}
	st := c.Dispatcher.Stats()
	h.history.marks = []mark{{h.began, st}}
	h.resume = max(st.Workers, 1)

	mux := http.NewServeMux()
	h.addRoutes(mux)
	addDebug(mux)
	mux.HandleFunc("GET /debug/vars", h.serveVars)
	h.routes = problem.Mux(mux)
	h.guarded = h.guard(h.routes)
	return h
}

func (c Config) withDefaults() Config {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Stopping == nil {
		c.Stopping = func() bool { return false }
	}
	if c.Admitted == nil {
		c.Admitted = func(*http.Request) {}
	}
	return c
}

// addRoutes adds the routes of this package to mux.
func (h *Handler) addRoutes(mux *http.ServeMux) {
	c := &h.config
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, r *http.Request) { writeJSON(w, http.StatusOK, h.stats()) })
	mux.HandleFunc("GET /events", h.serveEvents)
	mux.HandleFunc("GET /metrics", h.serveMetrics)
	mux.Handle("PATCH /dispatcher", problem.Unless(c.Stopping, http.HandlerFunc(h.serveChange)))
	addFiles(mux, dashboard)
	if c.Jobs != nil {
		h.addJobs(mux)
		addFiles(mux, jobsPage)
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
}

// Debug returns a handler of Go's own debugging pages below /debug/pprof/, unguarded.
func Debug() http.Handler {
	mux := http.NewServeMux()
	addDebug(mux)
	return problem.Mux(mux)
}

func addDebug(mux *http.ServeMux) {
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("POST /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
}

// ServeHTTP serves the routes that [New] lists.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.guarded.ServeHTTP(w, r) }

// Run samples the dispatcher every second until ctx ends, and then ends the requests
// of bursts that have no answer yet. Without Run there are no statistics of the last
// minutes, no advice, and only one event in a stream.
func (h *Handler) Run(ctx context.Context) {
	h.history.run(ctx, h.config.Dispatcher)
	if h.bursts != nil {
		h.bursts.stop()
	}
}

// stats returns the present statistics.
func (h *Handler) stats() Stats {
	now := mark{time.Now(), h.config.Dispatcher.Stats()}
	past, _ := h.history.look()
	s := Stats{
		Time:      now.at.UTC(),
		Uptime:    now.at.Sub(h.began).Seconds(),
		Version:   h.config.Version,
		Stopping:  h.config.Stopping(),
		Urgencies: urgenciesOf(h.config.Dispatcher.Urgencies()),
		Second:    sample(&past[max(len(past)-2, 0)], &past[len(past)-1]),
		Minute:    recent(past[max(len(past)-1-int(time.Minute/interval), 0):]),
		Advice:    h.history.advise(),
	}
	if h.config.Jobs != nil {
		s.Kept = keptOf(h.config.Jobs.Stats())
	}
	if h.config.Log != nil {
		s.Log = logOf(h.config.Log())
	}
	if h.config.Cluster != nil {
		s.Cluster = new(h.config.Cluster())
	}
	if h.bursts != nil {
		s.Bursts = h.bursts.list()
	}
	s.Dispatcher = countsOf(&now.stats)
	h.changing.Lock()
	s.Dispatcher.Resume = h.resume
	h.changing.Unlock()
	return s
}

// serveEvents streams the samples of the last minutes at once, and then the Stats
// every second.
func (h *Handler) serveEvents(w http.ResponseWriter, r *http.Request) {
	defer h.streams.Add(-1)
	if h.streams.Add(1) > maxStreams {
		problem.Write(w, http.StatusServiceUnavailable, fmt.Sprintf("%d streams are open already, which is the most there can be", maxStreams))
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would send it in bursts
	w.Header().Set("Cache-Control", "no-store")
	if r.Method == http.MethodHead {
		return
	}
	past, next := h.history.look()
	err := h.sendEvent(w, "history", samples(past))
	for err == nil {
		err = h.sendEvent(w, "stats", h.stats())
		select {
		case <-next:
		case <-r.Context().Done():
			return
		}
		_, next = h.history.look()
	}
}

func (h *Handler) sendEvent(w http.ResponseWriter, event string, data any) error {
	text, err := json.Marshal(data)
	if err != nil {
		h.config.Logger.Error("statistics cannot be written as JSON", "error", err)
		return err
	}
	if _, err := fmt.Fprintf(w, "event: %s\ndata: %s\n\n", event, text); err != nil {
		return err
	}
	return http.NewResponseController(w).Flush()
}

// serveChange changes the dispatcher as the request asks, in whole or not at all.
func (h *Handler) serveChange(w http.ResponseWriter, r *http.Request) {
	var workers *int
	var overflow *holdfast.Overflow
	if !readObject(w, r, map[string]any{"workers": &workers, "overflow": &overflow}, `{"workers": n}, {"overflow": "block", "reject" or "drop-oldest"}, or both`) {
		return
	}
	if workers == nil && overflow == nil {
		problem.Write(w, http.StatusBadRequest, "the body changes nothing; want workers, overflow, or both")
		return
	}
	h.changing.Lock()
	defer h.changing.Unlock()
	if workers != nil && !h.resizeLocked(w, *workers) {
		return
	}
	if overflow != nil {
		h.config.Dispatcher.SetOverflow(*overflow) // Unmarshal takes no text but those of the three policies
	}
	st := h.config.Dispatcher.Stats()
	h.config.Logger.Info("dispatcher changed", "workers", st.Workers, "overflow", st.Overflow, "by", r.RemoteAddr)
	writeJSON(w, http.StatusOK, struct {
		Workers  int               `json:"workers"`
		Queue    int               `json:"queue"`
		Overflow holdfast.Overflow `json:"overflow"`
	}{st.Workers, st.Queue, st.Overflow})
}

// resizeLocked changes the number of workers, or answers the request with the reason
// why not and returns false.
func (h *Handler) resizeLocked(w http.ResponseWriter, workers int) bool {
	switch err := h.config.Resize(workers); {
	case errors.Is(err, holdfast.ErrClosed):
		problem.Write(w, http.StatusServiceUnavailable, "the dispatcher is shut down")
		return false
	case err != nil:
		problem.Write(w, http.StatusBadRequest, strings.TrimPrefix(err.Error(), "holdfast: "))
		return false
	}
	if workers > 0 {
		h.resume = workers
	}
	return true
}

// serveVars answers as package expvar does, and adds the statistics. Publishing them
// with expvar would show them wherever the program serves its variables.
func (h *Handler) serveVars(w http.ResponseWriter, r *http.Request) {
	vars := map[string]any{"holdfast": h.stats()}
	expvar.Do(func(v expvar.KeyValue) { vars[v.Key] = json.RawMessage(v.Value.String()) })
	writeJSON(w, http.StatusOK, vars)
}

// maxBody bounds the body of a request that changes something.
const maxBody = 4 << 10

// readObject reads the body of a request as a JSON object with these fields. If it
// cannot, it answers the request with what was wrong and wanted, and returns false.
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
		problem.Write(w, http.StatusInternalServerError, "the answer cannot be written as JSON")
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
