// Package gateway passes requests that a worker has taken on to another service. It
// differs from httputil.ReverseProxy in that request and response are in memory as a
// whole: so it can send a request again, tell its length, and stay with it when its
// client has left.
//
// # Concurrency properties
//
// To the upstream a request is there until its handler has returned, whether its client
// still waits or not. So the gateway has as many places as there are workers, and a
// request holds one until the upstream has answered or the time-out has passed. A CORS
// preflight does not wait for a worker; preflights have one place of their own.
package gateway

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"holdfast"
	"holdfast/internal/budget"
	"holdfast/internal/problem"
	"holdfast/internal/trouble"
)

// A Config says what a Gateway passes on, and where.
type Config struct {
	Upstream    *url.URL
	Workers     int           // requests that may be at the upstream at once
	MaxBody     int64         // bytes of a preflight's body
	MaxResponse int64         // bytes of a response's body
	Timeout     time.Duration // that the upstream has for a request; 0: none
	Idle        time.Duration // that a connection is kept without a request; 0: not at all

	// Abandon hangs up when the job ends early, since the client has left, or the job
	// was canceled or is late. Otherwise the worker stays with its request: an upstream
	// that does not notice would else be at work on more requests than there are
	// workers.
	Abandon bool

	// Unreached is called with the ResponseWriter of a request for which no connection to the
	// upstream could be made; nil: nothing is.
	Unreached func(http.ResponseWriter)

	// Trusted are the proxies whose X-Forwarded-* are believed.
	Trusted []netip.Prefix

	// Public is where clients find the root of the server, as from resource.ParseBase;
	// empty: there. The prefixes of the routes are behind its path.
	Public string

	Files  int // connections that may be open at once, also those being closed; 0: no limit
	Logger *slog.Logger
}

// A Gateway passes requests on to one upstream, with headers of its own in place of
// those by which a client could pretend to be another, and answers for it where it does
// not: 504 if it is late, else 502.
type Gateway struct {
	Config
	name       string // by which it knows itself in Via
	outer      string // the path of Public
	work       lane
	preflights lane
	trouble    *trouble.Log

	release  sync.Once
	released chan struct{} // closed by Release
}

// New returns a Gateway.
func New(c Config) *Gateway {
	g := &Gateway{Config: c, released: make(chan struct{})}
	// Random, so that two servers in a row do not take each other for a loop.
	g.name = "holdfast-" + rand.Text()[:13]
	if u, err := url.Parse(c.Public); err == nil {
		g.outer = publicPath(u.EscapedPath())
	}
	g.trouble = &trouble.Log{Logger: c.Logger, What: "upstream failed", Over: "upstream answers again"}
	var files chan struct{}
	if c.Files > 0 {
		files = make(chan struct{}, c.Files)
	}
	g.work.open(c.Workers, c.Idle, c.Timeout, files)
	g.preflights.open(1, c.Idle, preflightTimeout, files)
	return g
}

// Resize changes the number of workers of d, and of places at the upstream with it. A
// job must not find fewer places than there are workers, or it would wait with a worker
// in hand: so there are more before there are more workers, and fewer only after.
//
// Requests that are there go on; until they have ended the upstream may see more than
// that. With no workers the places stay as they are, for the jobs that run. Calls must
// not overlap.
func (g *Gateway) Resize(d *holdfast.Dispatcher, workers int) error {
	before := g.work.size()
	if workers > before {
		g.work.resize(workers)
	}
	err := d.Resize(workers)
	if err != nil {
		workers = before
	}
	g.work.resize(workers)
	return err
}

// Release lets go of the requests that nobody waits for any more. It is for the stop of
// the server, which would wait for them: with no request to come, the bound is kept.
func (g *Gateway) Release() { g.release.Do(func() { close(g.released) }) }

// Route returns a handler of the requests below a prefix, which it gets without the
// prefix. Those that are for a worker it passes to what queue makes of the handler that
// serves them; the others it answers at once.
func (g *Gateway) Route(prefix string, queue func(http.Handler) http.Handler) http.Handler {
	queued := queue(&route{g, &g.work, prefix})
	preflight := g.prompt(&route{g, &g.preflights, prefix})
	return g.NotAgain(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hops, limited := maxForwards(r)
		switch {
		case r.Method == http.MethodTrace:
			// It would show a client what is added for the upstream's eyes.
			problem.NotAllowed(w, r, allowed)
		case r.Method == http.MethodOptions && limited && hops == 0:
			w.Header().Set("Allow", allowed)
			w.WriteHeader(http.StatusNoContent)
		case r.Method == http.MethodOptions && r.Header["Access-Control-Request-Method"] != nil:
			preflight.ServeHTTP(w, r)
		default:
			queued.ServeHTTP(w, r)
		}
	}))
}

// Again returns the handler of requests that Route has queued, for those that were queued
// before a restart: which prefix they have lost, their target says.
func (g *Gateway) Again() http.Handler {
	async, sync := &route{g, &g.work, "/async"}, &route{g, &g.work, "/sync"}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		target, err := url.ParseRequestURI(r.RequestURI)
		if err == nil && strings.HasPrefix(target.Path, "/sync/") {
			sync.ServeHTTP(w, r)
			return
		}
		async.ServeHTTP(w, r)
	})
}

// allowed are the methods that the gateway names when it answers by itself. It passes on
// any other but TRACE too; of CONNECT, which has no path, the server takes care.
const allowed = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"

// NotAgain returns a handler that answers 508 to a request that the gateway itself has
// sent, and passes the others to next. A worker that waits for a job of its own server
// could wait for ever.
func (g *Gateway) NotAgain(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if g.passedBy(r) {
			problem.Write(w, http.StatusLoopDetected, "the request has come through this gateway before; its upstream leads back to it")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// preflightTimeout is how long a preflight may take, the wait for its place included. An
// upstream answers it without work, and the browser's request waits for it.
const preflightTimeout = 10 * time.Second

// prompt returns a handler that serves with next what waits for no worker.
func (g *Gateway) prompt(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, ok := problem.ReadBody(w, r, g.MaxBody); !ok {
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), preflightTimeout)
		defer cancel()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// A route passes requests on that have come below its prefix.
type route struct {
	*Gateway
	lane   *lane
	prefix string
}

// ServeHTTP passes a request on.
func (p *route) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, ok := problem.ReadBody(w, r, math.MaxInt64) // it is in memory already
	if !ok {
		return
	}
	prefix := p.outerPrefix(r)
	out := p.outgoing(r, body, prefix)
	memory := budget.From(w).Budget()
	a, err := p.exchange(r.Context(), out, memory)
	switch {
	case err == problem.ErrNoMemory: // no fault of the upstream's
		problem.NoMemory(w, memory, "no memory is left for the response")
		return
	case err != nil:
		p.fail(w, r, err)
		return
	}
	defer a.hold.Close()
	p.trouble.Worked()
	p.relocate(a.Header, out, prefix)
	a.write(w, r.Method)
}

// A result is what exchange returns.
type result struct {
	*answer
	error
}

// exchange sends a request and returns the answer to it. When the job is canceled the
// worker stays with the request. When the job has passed its deadline the client is not
// to wait any longer: then its error is returned at once, and the request keeps its place
// at the upstream alone. memory counts the answer until its hold is closed.
func (p *route) exchange(job context.Context, out *http.Request, memory *budget.Budget) (*answer, error) {
	if err := p.lane.take(job); err != nil {
		return nil, err
	}
	ctx, hangUp := p.lane.lasting(job)
	done, left := make(chan result), make(chan struct{})
	defer close(left)
	go func() {
		a, err := p.lane.fetch(out.WithContext(ctx), p.MaxResponse, memory)
		hangUp()
		p.lane.give()
		select {
		case done <- result{a, err}:
		case <-left: // nobody wants it
			if err == nil {
				a.hold.Close()
			}
		}
	}()
	select {
	case r := <-done:
		return r.answer, r.error
	case <-job.Done():
	}
	switch {
	case p.Abandon || errors.Is(context.Cause(job), holdfast.ErrClosed):
		hangUp()
	case job.Err() == context.DeadlineExceeded:
		return nil, job.Err()
	default:
		select {
		case r := <-done:
			return r.answer, r.error
		case <-p.released:
			hangUp()
		}
	}
	r := <-done
	return r.answer, r.error
}

// fail answers for the upstream.
func (p *route) fail(w http.ResponseWriter, r *http.Request, err error) {
	ended := r.Context().Err()
	if ended == nil {
		p.trouble.Failed("method", trouble.Cut(r.Method), "path", trouble.Cut(r.URL.Path), "error", trouble.Cut(err.Error()))
	}
	if dial, ok := errors.AsType[*net.OpError](err); ok && dial.Op == "dial" && ended == nil && p.Unreached != nil {
		p.Unreached(w)
	}
	late, ok := errors.AsType[net.Error](err)
	why, known := errors.AsType[unusable](err)
	switch {
	case ended == context.DeadlineExceeded || errors.Is(err, context.DeadlineExceeded) || ok && late.Timeout():
		problem.Write(w, http.StatusGatewayTimeout, "the upstream has not answered in time")
	case known:
		problem.Write(w, http.StatusBadGateway, string(why))
	default:
		problem.Write(w, http.StatusBadGateway, "the upstream has not answered, or not completely")
	}
}

// unusable says why a response of the upstream cannot be passed on.
type unusable string

func (u unusable) Error() string { return string(u) }

// tooLarge is the error of a response with more than limit bytes.
func tooLarge(limit int64) error {
	return unusable(fmt.Sprintf("the response of the upstream is too large; want at most %d bytes", limit))
}
