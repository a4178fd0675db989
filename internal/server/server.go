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
	"holdfast/internal/budget"
	"holdfast/internal/problem"
)

// Time-outs of a connection. None of them limits how long a handler may take.
const (
	headerTimeout = 10 * time.Second // to send a header
	idleTimeout   = 2 * time.Minute  // between requests
	adminIdle     = 5 * time.Second  // there, where few connections are
	writeTimeout  = 30 * time.Second // to take a piece of a response
	bodyTimeout   = 10 * time.Second // to send a request, besides the time that bodyRate allows
	bodyRate      = 16 << 10         // bytes a second
	adminTimeout  = 10 * time.Second // to send a request to the admin listener

	// lastAnswers is how long connections may stay after the last job has ended
	// or been cut off, for responses to be written.
	lastAnswers = time.Second
)

// A Server serves a handler beside a dispatcher and stops both in order.
type Server struct {
	dispatcher *holdfast.Dispatcher
	http       *http.Server
	admin      *http.Server // nil if there is none
	routes     http.Handler
	below      []below
	maxConns   int
	log        *slog.Logger
	memory     *budget.Budget

	stopping atomic.Bool
	active   atomic.Int64 // requests in handlers
}

// New returns a Server for the routes of mux, to which it adds /healthz and
// /readyz. Requests for a route that mux does not have, and all but those two
// while the server stops, are answered with a problem.
func New(d *holdfast.Dispatcher, mux *http.ServeMux, c Config, log *slog.Logger) *Server {
	s := &Server{dispatcher: d, routes: problem.Mux(mux), maxConns: c.MaxConns, log: log}
	health := s.Health()
	mux.Handle("GET /healthz", health)
	mux.Handle("GET /readyz", health)
	timeout := bodyTimeout + time.Duration(min(c.MaxBody/bodyRate, math.MaxInt32))*time.Second
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
		ConnState:                    meterState,
		ErrorLog:                     slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
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

// Stopping reports whether Run has begun to stop.
func (s *Server) Stopping() bool { return s.stopping.Load() }

// Health returns a handler of /healthz, which says that the server is alive, and
// /readyz, which says whether it accepts work.
func (s *Server) Health() http.Handler {
	say := func(text string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, text) })
	}
	mux := http.NewServeMux()
	mux.Handle("/healthz", say("ok\n"))
	mux.Handle("/readyz", s.Work(say("ready\n")))
	return mux
}

// Work returns h as a route that takes on new work: while the server stops it
// answers 503.
func (s *Server) Work(h http.Handler) http.Handler { return problem.Unless(s.Stopping, h) }

// Below passes all requests for what is below prefix on to h, without the prefix.
// Unlike a mux it does so also where a path has dot segments or empty ones: what
// these mean is for the service behind to say. It must not be called any more when
// the server runs.
func (s *Server) Below(prefix string, h http.Handler) {
	s.below = append(s.below, below{prefix, h})
}

type below struct {
	prefix string
	h      http.Handler
}

func (s *Server) route(w http.ResponseWriter, r *http.Request) {
	for _, b := range s.below {
		path, ok := strings.CutPrefix(r.URL.Path, b.prefix)
		raw, rawOK := strings.CutPrefix(r.URL.RawPath, b.prefix)
		if ok && strings.HasPrefix(path, "/") && (rawOK || r.URL.RawPath == "") {
			url := *r.URL
			r.URL, url.Path, url.RawPath = &url, path, raw
			b.h.ServeHTTP(w, r)
			return
		}
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

// prompt bounds the time for which a slow client can hold a connection, and that
// time alone. When the request is there, the server itself lifts its ReadTimeout,
// which is timeout, from then on reading only to notice that the client leaves. Its
// WriteTimeout runs from the header on and would cut off whoever waits for a long
// answer, so each piece of a response gets one of its own instead.
func prompt(next http.Handler, timeout time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		prompt := &promptWriter{ResponseWriter: w, request: r, from: time.Now()}
		if r.Body != http.NoBody {
			prompt.bodyBy = prompt.from.Add(timeout)
		}
		defer prompt.extend()
		next.ServeHTTP(prompt, r)
	})
}

// promptWriter gives the client a time-out for each piece.
type promptWriter struct {
	http.ResponseWriter
	request *http.Request
	from    time.Time // of the present write deadline
	bodyBy  time.Time // when the request's body has to be there; zero: no body
	written int
	hold    budget.Hold
}

// heldBack is how much of a response the server does not send before the handler
// returns, unless it is flushed.
const heldBack = 2048

func (w *promptWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// pieceSize is how much a client has to take in within writeTimeout.
const pieceSize = 64 << 10

func (w *promptWriter) Write(p []byte) (n int, err error) {
	for len(p) > pieceSize && err == nil {
		var m int
		w.more(pieceSize)
		m, err = w.ResponseWriter.Write(p[:pieceSize])
		n, p = n+m, p[m:]
	}
	if err != nil {
		return n, err
	}
	w.more(len(p))
	m, err := w.ResponseWriter.Write(p)
	return n + m, err
}

func (w *promptWriter) WriteString(s string) (int, error) {
	if len(s) > pieceSize {
		return w.Write([]byte(s))
	}
	w.more(len(s))
	return io.WriteString(w.ResponseWriter, s)
}

// more extends the time for a write that may have to wait for the client.
func (w *promptWriter) more(n int) {
	if w.written += n; w.written >= heldBack {
		w.extend()
	}
}

// FlushError is what an http.ResponseController calls.
func (w *promptWriter) FlushError() error {
	w.extend()
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// extend lets the time for the next piece begin: now, or if the body may not be
// there yet, when it has to be, since the server waits for it before it answers.
func (w *promptWriter) extend() {
	from := time.Now()
	if _, arrived := w.request.Body.(*problem.Body); !arrived && w.bodyBy.After(from) {
		from = w.bodyBy
	}
	if from.Sub(w.from) < writeTimeout/30 {
		return // to the second is close enough, and setting a deadline is dear
	}
	w.from = from
	http.NewResponseController(w.ResponseWriter).SetWriteDeadline(from.Add(writeTimeout))
}

// Unhurried tells whoever waits that there is nothing to do about the deadline.
func (w *promptWriter) Unhurried() (hurry func()) { return func() {} }

// Run serves on public, and on admin unless that is nil, until ctx ends or serving
// the public fails, then stops: at once it is no longer ready and accepts no work;
// until the jobs have ended, or for drain if that is not 0, it goes on answering;
// then the connections are closed, the operator's last. The error is nil if
// everything that was accepted has ended by itself.
func (s *Server) Run(ctx context.Context, public, admin net.Listener, drain time.Duration) error {
	var serving error
	failed := make(chan error, 1)
	go func() { failed <- s.http.Serve(&connLimit{Listener: public, max: int64(s.maxConns), memory: s.memory}) }()
	if admin != nil {
		watched, leave := context.WithCancel(context.Background())
		s.admin.BaseContext = func(net.Listener) context.Context { return watched }
		go func() {
			if err := s.admin.Serve(&connLimit{Listener: admin, max: adminConns}); err != http.ErrServerClosed {
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
	s.stopping.Store(true)
	s.log.Info(why, "drain", drain)

	limit, cancel := context.WithCancel(context.Background())
	if drain > 0 {
		limit, cancel = context.WithTimeout(context.Background(), drain)
	}
	defer cancel()
	report, err := s.dispatcher.Shutdown(limit)

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
	s.log.Info("stopped", "finished", report.Finished, "cut_off", report.Running, "never_started", len(report.NeverStarted), "requests_cut_off", cut)
	return errors.Join(serving, err)
}
