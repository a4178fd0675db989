package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"holdfast"
	"holdfast/internal/conns"
	"holdfast/internal/logline"
	"holdfast/internal/problem"
)

// Time-outs of a connection. None of them limits how long a handler may take.
const (
	headerTimeout = 10 * time.Second // to send a header
	idleTimeout   = 2 * time.Minute  // between requests
	adminIdle     = 5 * time.Second  // there, where few connections are
	writeTimeout  = 30 * time.Second // to take a piece of a response; also all of it, besides the time that rate allows
	bodyTimeout   = 10 * time.Second // to send a request, besides the time that rate allows
	rate          = 16 << 10         // bytes a second
	adminTimeout  = 10 * time.Second // to send a request to the admin listener
	adminProof    = 2 * time.Second  // there, to have sent one that is let through
	placeTimeout  = 2 * time.Minute  // to wait for a place, and for an answer to wait for a worker

	// lastAnswers is how long connections may stay after the last job has ended
	// or been cut off, for responses to be written.
	lastAnswers = time.Second
)

// A Pool is what runs jobs: a holdfast.Dispatcher, or a node of a cluster.
type Pool interface {
	Shutdown(context.Context) (holdfast.Report, error)
}

// A Server serves a handler beside a pool and stops both in order.
type Server struct {
	pool   Pool
	http   *http.Server
	admin  *http.Server // nil if there is none
	routes http.Handler
	below  *Routes // that Below adds to
	limits conns.Limits
	log    *slog.Logger
	linger time.Duration
	unread func() int // nil if there is nothing to linger for

	stopping atomic.Bool
	active   atomic.Int64 // requests in handlers
}

// New returns a Server for the routes of mux, to which it adds /healthz and
// /readyz. Requests for a route that mux does not have, and all but those two
// while the server stops, are answered with a problem.
func New(p Pool, mux *http.ServeMux, c Config, log *slog.Logger) *Server {
	routes := NewRoutes(mux)
	s := NewDoor(p, routes, c, log)
	s.below = routes
	health := s.Health(nil)
	mux.Handle("GET /healthz", health)
	mux.Handle("GET /readyz", health)
	return s
}

// NewDoor returns a Server that serves all requests with door.
func NewDoor(p Pool, door http.Handler, c Config, log *slog.Logger) *Server {
	s := &Server{pool: p, routes: door, log: log}
	s.limits = conns.Limits{Open: c.MaxConns, Refused: refusedOf(c.Files)}
	timeout := bodyTimeout + time.Duration(min(c.MaxBody/rate, math.MaxInt32))*time.Second
	s.http = s.listening(s.counted(prompt(s.held(crossOrigin(c, http.HandlerFunc(s.route))), timeout)), timeout)
	s.http.WriteTimeout = writeTimeout // for what the server answers past prompt, which extends it
	return s
}

// listening returns an HTTP server with what both listeners have in common.
func (s *Server) listening(h http.Handler, timeout time.Duration) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       timeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    64 << 10,
		// The server's own answer to OPTIONS * reads a body, and past prompt.
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(logline.Seldom(s.log.Handler()), slog.LevelWarn),
		ConnState:                    conns.State,
		ConnContext:                  conns.Context,
	}
}

// Admin makes h what the admin listener serves. It must be called before Run if
// that gets such a listener.
func (s *Server) Admin(h http.Handler) {
	// Package pprof refuses what takes longer than the server's WriteTimeout, so each
	// request begins with one of its own.
	next := prompt(h, adminTimeout)
	s.admin = s.listening(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
		next.ServeHTTP(w, r)
	}), adminTimeout)
	s.admin.IdleTimeout = adminIdle
}

// Linger makes Run go on answering when the last job has ended: for d, but no longer
// than until unread returns 0. It must be called before Run.
func (s *Server) Linger(d time.Duration, unread func() int) { s.linger, s.unread = d, unread }

// Admitted tells that the operator's handler has let a request through. When it is
// there to its end, its connection is one that is kept.
func (s *Server) Admitted(r *http.Request) {
	if r.Body == http.NoBody {
		conns.Prove(r.Context())
		return
	}
	r.Body = &proof{r.Body, r.Context()}
}

// A proof is a body whose end proves a connection. A client that announces a body
// and sends none could hold one of the operator's for as long as for a slow one.
type proof struct {
	io.ReadCloser
	ctx context.Context
}

func (b *proof) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		conns.Prove(b.ctx)
	}
	return n, err
}

// Waiting returns what wrap does, and bounds the time for which a request waits
// there: for a place in the queue, and, if it waits there for its answer, for a
// worker. Then it is answered with 503. wrap is a method of holdfast.Jobs; a body has
// at most maxBody bytes.
func Waiting(maxBody int64, wrap func(http.Handler) http.Handler) func(http.Handler) http.Handler {
	return func(h http.Handler) http.Handler {
		next := wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// A job that was accepted runs when its request is over, and there may be
			// another one on the connection.
			if holdfast.JobID(r.Context()) == "" {
				conns.Unlimit(r.Context())
			}
			h.ServeHTTP(w, r)
		}))
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, ok := problem.ReadBody(w, r, maxBody); ok { // it has a time of its own
				conns.Limit(r.Context(), placeTimeout)
				next.ServeHTTP(w, r)
			}
		})
	}
}

// Stopping reports whether Run has begun to stop.
func (s *Server) Stopping() bool { return s.stopping.Load() }

// Health returns a handler of /healthz, which says that the server is alive, and
// /readyz, which says whether it accepts work: while it stops it does not, nor while ready,
// if that is not nil, returns a reason.
func (s *Server) Health(ready func() error) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok\n") })
	mux.Handle("GET /readyz", s.Work(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if ready != nil {
			if err := ready(); err != nil {
				problem.Retry(w, http.StatusServiceUnavailable, err.Error(), func() int { return 1 })
				return
			}
		}
		io.WriteString(w, "ready\n")
	})))
	return problem.Mux(mux)
}

// Work returns h as a route that takes on new work: while the server stops it
// answers 503.
func (s *Server) Work(h http.Handler) http.Handler { return problem.Unless(s.Stopping, h) }

// Below adds to the routes of a Server that New has made; see Routes.
func (s *Server) Below(prefix string, h http.Handler) { s.below.Below(prefix, h) }

// Routes are those of a mux, and of whole trees below prefixes.
type Routes struct {
	mux   http.Handler
	below []below
}

type below struct {
	prefix string
	h      http.Handler
}

// NewRoutes returns the routes of mux. Requests for a route that it does not have are
// answered with a problem.
func NewRoutes(mux *http.ServeMux) *Routes { return &Routes{mux: problem.Mux(mux)} }

// Below passes all requests for what is below prefix on to h, without the prefix.
// Unlike a mux it does so also where a path has dot segments or empty ones: what
// these mean is for the service behind to say. It must not be called any more when
// there are requests.
func (p *Routes) Below(prefix string, h http.Handler) {
	p.below = append(p.below, below{prefix, h})
}

// ServeHTTP serves the routes.
func (p *Routes) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for _, b := range p.below {
		path, ok := strings.CutPrefix(r.URL.Path, b.prefix)
		raw, rawOK := strings.CutPrefix(r.URL.RawPath, b.prefix)
		if ok && strings.HasPrefix(path, "/") && (rawOK || r.URL.RawPath == "") {
			url := *r.URL
			r.URL, url.Path, url.RawPath = &url, path, raw
			b.h.ServeHTTP(w, r)
			return
		}
	}
	p.mux.ServeHTTP(w, r)
}

func (s *Server) route(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodConnect { // it has no path, but the address of a server
		problem.Write(w, http.StatusNotImplemented, "CONNECT is not implemented here; this server is no proxy")
		return
	}
	s.routes.ServeHTTP(w, r)
}

// counted counts the requests that next serves.
func (s *Server) counted(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.active.Add(1)
		defer s.active.Add(-1)
		next.ServeHTTP(w, r)
	})
}

// Run serves on public, and on admin unless that is nil, until ctx ends or serving
// the public fails, then stops: at once it is no longer ready and accepts no work;
// until the jobs have ended, or for drain if that is not 0, it goes on answering,
// and after that while it lingers; then the connections are closed, the operator's
// last. The error is nil if
// everything that was accepted has ended by itself.
func (s *Server) Run(ctx context.Context, public, admin net.Listener, drain time.Duration) error {
	var serving error
	failed := make(chan error, 1)
	go func() { failed <- s.http.Serve(conns.Listen(public, s.limits)) }()
	if admin != nil {
		watched, leave := context.WithCancel(context.Background())
		s.admin.BaseContext = func(net.Listener) context.Context { return watched }
		go func() {
			limited := conns.Listen(admin, conns.Limits{Open: adminConns, Refused: adminRefused, Prove: adminProof})
			if err := s.admin.Serve(limited); err != http.ErrServerClosed {
				s.log.Error("the admin listener has failed", "error", err)
			}
		}()
		defer func() {
			leave()
			soon, enough := context.WithTimeout(context.Background(), lastAnswers)
			defer enough()
			if s.admin.Shutdown(soon) != nil {
				s.admin.Close()
			}
		}()
	}
	why := "stopping"
	select {
	case serving = <-failed:
		why = "stopping, since serving failed"
	case <-ctx.Done():
	}
	return errors.Join(serving, s.stop(why, drain))
}

// stop is the second half of Run.
func (s *Server) stop(why string, drain time.Duration) error {
	s.stopping.Store(true)
	limit, cancel := context.WithCancel(context.Background())
	if drain > 0 {
		limit, cancel = context.WithTimeout(context.Background(), drain)
	}
	defer cancel()
	s.log.Info(why, "drain", drain)
	report, err := s.pool.Shutdown(limit)
	s.awaitReaders(limit)

	// Requests outside the pool have the rest of the time.
	answers := limit
	if deadline, ok := limit.Deadline(); ok && time.Until(deadline) < lastAnswers {
		var enough context.CancelFunc
		answers, enough = context.WithTimeout(context.Background(), lastAnswers)
		defer enough()
	}
	var cut int64
	if s.http.Shutdown(answers) != nil {
		if cut = s.active.Load(); cut > 0 {
			err = errors.Join(err, fmt.Errorf("holdfast: %d requests cut off", cut))
		}
		s.http.Close()
	}
	unread := 0
	if s.unread != nil {
		unread = s.unread()
	}
	s.log.Info("stopped", "finished", report.Finished, "cut_off", report.Running, "never_started", len(report.NeverStarted), "requests_cut_off", cut, "unread", unread)
	return err
}

// lookAgain is how often a server that lingers looks whether the last job was read.
// A poll needs nothing in the store that every job would pay for.
const lookAgain = 10 * time.Millisecond

// awaitReaders lingers, but not beyond limit.
func (s *Server) awaitReaders(limit context.Context) {
	limit, cancel := context.WithTimeout(limit, s.linger)
	defer cancel()
	again := time.NewTicker(lookAgain)
	defer again.Stop()
	for s.unread != nil && s.unread() > 0 {
		select {
		case <-again.C:
		case <-limit.Done():
			return
		}
	}
}
