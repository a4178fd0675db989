package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/failsafe-go/failsafe-go/adaptivelimiter"
	"github.com/failsafe-go/failsafe-go/bulkhead"
	"github.com/failsafe-go/failsafe-go/priority"
	"github.com/go-chi/chi/v5/middleware"
	"golang.org/x/sync/semaphore"
)

// A limit is what every contender is told about the service behind it.
type limit struct {
	slots        int           // calls that the upstream runs at once
	queue        int           // requests that may wait
	patience     time.Duration // of the clients
	capacity     float64       // calls a second; for those who limit a rate
	clientHeader string
}

// A contender is something that stands before the upstream.
type contender struct {
	name string
	// start starts it before the upstream at an address.
	start func(ctx context.Context, dir, upstream string, l limit) (*process, error)
	// missing says why it cannot take part; "" if it can.
	missing string
}

// In Go the contenders are handlers around the same reverse proxy, each in a
// process of its own like the others.
var handlers = map[string]func(http.Handler, limit) http.Handler{
	"chi": func(proxy http.Handler, l limit) http.Handler {
		return middleware.ThrottleBacklog(l.slots, l.queue, l.patience)(proxy)
	},
	"semaphore": func(proxy http.Handler, l limit) http.Handler {
		s := semaphore.NewWeighted(int64(l.slots))
		return limited(proxy, l, func(ctx context.Context, _ *http.Request) (func(error), error) {
			return func(error) { s.Release(1) }, s.Acquire(ctx, 1)
		})
	},
	"bulkhead": func(proxy http.Handler, l limit) http.Handler {
		b := bulkhead.New[any](uint(l.slots))
		return limited(proxy, l, func(ctx context.Context, _ *http.Request) (func(error), error) {
			return func(error) { b.ReleasePermit() }, b.AcquirePermitWithMaxWait(ctx, l.patience)
		})
	},
	"adaptive": adaptive,
}

// limited passes a request on when acquire has let it. Acquire waits for at most
// the patience, and no longer than the client is there; what has not been let in
// by then is refused.
func limited(proxy http.Handler, l limit, acquire func(context.Context, *http.Request) (release func(error), err error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), l.patience)
		release, err := acquire(ctx, r)
		cancel()
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		defer func() { release(r.Context().Err()) }()
		proxy.ServeHTTP(w, r)
	})
}

// adaptive is failsafe-go's limiter, which finds its limit itself, with urgencies
// and with the use by clients. It begins at the limit that is right.
func adaptive(proxy http.Handler, l limit) http.Handler {
	const window, clients, often = 10 * time.Second, 1000, 100 * time.Millisecond
	prioritizer := adaptivelimiter.NewPrioritizerBuilder().WithUsageTracker(priority.NewUsageTracker(window, clients)).Build()
	prioritizer.ScheduleCalibrations(context.Background(), often)
	most := uint(l.slots + l.queue)
	limiter := adaptivelimiter.NewBuilder[any]().WithLimits(1, most, uint(l.slots)).BuildPrioritized(prioritizer)
	return limited(proxy, l, func(ctx context.Context, r *http.Request) (func(error), error) {
		ctx = priority.ContextWithPriority(ctx, priorityOf(r))
		if client := r.Header.Get(l.clientHeader); client != "" {
			ctx = priority.ContextWithUser(ctx, client)
		}
		permit, err := limiter.AcquirePermit(ctx)
		if err != nil {
			return nil, err
		}
		return func(gone error) {
			if gone != nil {
				permit.Drop() // the time of a call that was broken off says nothing
				return
			}
			permit.Record()
		}, nil
	})
}

// priorityOf maps the eight urgencies to failsafe-go's five priorities; without
// one a request is in the middle.
func priorityOf(r *http.Request) priority.Priority {
	u, err := strconv.Atoi(strings.TrimPrefix(r.Header.Get("Priority"), "u="))
	switch {
	case err != nil || u == 3:
		return priority.Medium
	case u <= 0:
		return priority.VeryHigh
	case u <= 2:
		return priority.High
	case u <= 5:
		return priority.Low
	}
	return priority.VeryLow
}

// newProxy returns a proxy to the upstream, with as many connections as are used.
func newProxy(upstream *url.URL) http.Handler {
	return &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(upstream) },
		Transport: &http.Transport{MaxIdleConnsPerHost: maxOpenLimit, DisableCompression: true},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, err.Error(), http.StatusBadGateway) // seen by a client that is still there
		},
		ErrorLog: log.New(os.Stderr, "", 0),
	}
}

// serve is what this program does when it has started itself as a contender. It
// prints its address and serves until it is killed.
func serve(args []string) error {
	o := new(options)
	set := o.limitFlags("serve")
	if len(args) == 0 || handlers[args[0]] == nil {
		return fmt.Errorf("serve %q; want the name of a handler", args)
	}
	upstream := set.String("upstream", "", "")
	rate := set.Float64("capacity", 0, "")
	if err := set.Parse(args[1:]); err != nil {
		return err
	}
	to, err := url.Parse(*upstream)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "addr=%v\n", l.Addr())
	return http.Serve(l, handlers[args[0]](newProxy(to), o.limit(*rate)))
}

// contenders returns all of them, the peers first. Each of variants is the flags
// of a Holdfast, whose binary is given.
func contenders(binary string, variants []string) []contender {
	list := []contender{
		{name: "bare upstream", start: func(_ context.Context, _, upstream string, _ limit) (*process, error) {
			return &process{url: "http://" + upstream + "/"}, nil
		}},
		self("semaphore", "x/sync semaphore"),
		self("chi", "chi Throttle, backlog"),
		self("bulkhead", "failsafe bulkhead"),
		self("adaptive", "failsafe adaptive, prioritizer"),
		installed("nginx", "nginx limit_req", startNginx),
		installed("haproxy", "HAProxy maxconn, queue", startHAProxy),
	}
	for _, flags := range variants {
		list = append(list, contender{name: strings.TrimSpace(holdfastName + flags), start: func(ctx context.Context, dir, upstream string, l limit) (*process, error) {
			args := []string{"-addr", "127.0.0.1:0", "-admin", "", "-workers", strconv.Itoa(l.slots), "-queue", strconv.Itoa(l.queue), "-upstream", "http://" + upstream}
			p, err := launch(ctx, binary, append(args, strings.Fields(flags)...)...)
			if err == nil {
				p.url += "sync/"
			}
			return p, err
		}})
	}
	return list
}

const holdfastName = "Holdfast "

// self is a contender that is this program with one of the handlers.
func self(handler, name string) contender {
	return contender{name: name, start: func(ctx context.Context, dir, upstream string, l limit) (*process, error) {
		program, err := os.Executable()
		if err != nil {
			return nil, err
		}
		return launch(ctx, program, "serve", handler, "-upstream", "http://"+upstream, "-slots", strconv.Itoa(l.slots),
			"-queue", strconv.Itoa(l.queue), "-patience", l.patience.String(), "-client-header", l.clientHeader)
	}}
}
