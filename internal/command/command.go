// Package command is the holdfast command. The root's main.go and cmd/holdfast
// are the two ways to start it.
package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
	stdlog "log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"holdfast"
	"holdfast/admin"
	"holdfast/internal/budget"
	"holdfast/internal/exchange"
	"holdfast/internal/gateway"
	"holdfast/internal/logline"
	"holdfast/internal/server"
	"holdfast/plan"
)

// Main runs the command with its arguments, without the program's name, and
// returns the exit status. It returns when the server has stopped.
func Main(version string, args []string) int { return MainWith(nil, nil, version, args) }

// An Open returns Jobs that outlive the process, as the configuration says. It submits
// those again that had not ended when the last process did, whose requests again serves.
type Open func(d *holdfast.Dispatcher, jobs holdfast.JobsConfig, again http.Handler, c server.Config, log *slog.Logger) (Opened, error)

// Opened is what the server needs of Jobs.
type Opened struct {
	Jobs  *holdfast.Jobs
	Log   func() admin.LogStats // nil if they end with the process
	Close func() error          // called when the server has stopped
}

// MainWith is Main for a command whose jobs outlive the process, and which can be a node of
// a cluster by join. If open is nil, neither is so.
func MainWith(open Open, join Join, version string, args []string) int {
	if len(args) > 0 && args[0] == "plan" {
		return report("holdfast plan", plan.Run(args[1:], os.Stdout))
	}
	parse := server.ParseDurableConfig
	if open == nil {
		parse, open = server.ParseConfig, inMemory
	}
	config, err := parse(args, os.Getenv, version, os.Stdout)
	if err != nil || config == (server.Config{}) { // -version
		return report("holdfast", err)
	}
	survive()
	lines := logline.New(os.Stderr)
	defer lines.Close(lastLines)
	log := slog.New(logline.NewHandler(lines))
	slog.SetDefault(log)
	// What logs without a Logger is net/http's transport, as good as always.
	stdlog.SetFlags(0)
	stdlog.SetOutput(slog.NewLogLogger(logline.Seldom(log.Handler()), slog.LevelWarn).Writer())
	run := func() error { return serve(config, open, version, log) }
	if config.Cluster != "" {
		run = func() error { return serveNode(config, join, version, log) }
	}
	if err := run(); err != nil {
		log.Error(strings.ReplaceAll(err.Error(), "\n", "; ")) // of joined errors
		return 1
	}
	return 0
}

// lastLines is how long the process waits at its end for a slow log to take the
// last lines.
const lastLines = 500 * time.Millisecond

// report returns the exit status of a command that serves nothing.
func report(name string, err error) int {
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return 0
	}
	fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
	return 2
}

// inMemory is the Open of jobs that end with the process.
func inMemory(d *holdfast.Dispatcher, jobs holdfast.JobsConfig, _ http.Handler, _ server.Config, _ *slog.Logger) (Opened, error) {
	j, err := holdfast.NewJobs(d, jobs)
	return Opened{j, nil, func() error { return nil }}, err
}

// serve wires the server and runs it until a signal stops it.
func serve(config server.Config, open Open, version string, log *slog.Logger) (err error) {
	d, err := holdfast.New(config.Dispatcher())
	if err != nil {
		return err
	}
	// What was stored before a restart runs as soon as it is opened, and each start counts.
	// So a server that cannot listen does not come so far.
	public, private, err := listen(config, log)
	if err != nil {
		return err
	}
	upstream := newGateway(config, log)
	opened, err := open(d, jobsOf(config, log), again(upstream), config, log)
	if err != nil {
		return err // the process ends, and the listeners with it
	}
	defer func() { err = errors.Join(err, opened.Close()) }()
	jobs := opened.Jobs
	limitHeap(config.MaxMemory)
	mux := http.NewServeMux()
	s := server.New(d, mux, config, log)
	s.Linger(config.Linger, func() int { return jobs.Stats().Unread })
	s.Count(budget.Of(jobs.Async(http.NotFoundHandler())))
	site{jobs: jobs, gateway: upstream, config: config, work: s.Work}.add(mux, s)
	resize, release := resizing(d, upstream, config)
	operator := admin.New(admin.Config{
		Dispatcher: d, Jobs: jobs, Log: opened.Log, Version: version, Logger: log,
		Stopping: s.Stopping, Health: s.Health(nil), Token: config.AdminToken, Host: config.AdminHost(),
		Demo: mux, Resize: resize, Admitted: s.Admitted,
	})
	s.Admin(operator)

	announce(public, private, config, version, log)
	ctx := untilSignal()
	context.AfterFunc(ctx, release)
	defer watch(operator, private)()
	return s.Run(ctx, public, private, config.Drain)
}

// watch runs what the operator's pages need if there is a listener for them, until it is
// left.
func watch(operator *admin.Handler, private net.Listener) (leave func()) {
	watching, leave := context.WithCancel(context.Background())
	if private != nil {
		go operator.Run(watching)
	}
	return leave
}

func jobsOf(config server.Config, log *slog.Logger) holdfast.JobsConfig {
	jobs := config.Jobs()
	if config.LogJobs {
		jobs.OnEnd = server.LogJob(log)
	}
	return jobs
}

// listen returns the listeners, of which the operator's may be nil. Clients wait until they
// are served.
func listen(config server.Config, log *slog.Logger) (public, private net.Listener, err error) {
	if public, err = server.Listen(config.Addr); err != nil {
		return nil, nil, err
	}
	if private, err = config.ListenAdmin(log); err != nil {
		return nil, nil, err
	}
	return public, private, nil
}

// announce logs where the listeners are.
func announce(public, private net.Listener, config server.Config, version string, log *slog.Logger) {
	log.Info("holdfast "+version, "addr", public.Addr().String(), "workers", config.Workers, "queue", config.Queue, "overflow", config.Overflow)
	if private != nil {
		log.Info("dashboard", "url", "http://"+private.Addr().String()+"/")
	}
}

// newGateway returns the gateway, or nil if there is none.
func newGateway(config server.Config, log *slog.Logger) *gateway.Gateway {
	if config.Upstream == nil {
		return nil
	}
	unreached := exchange.Unreached
	if !config.RetryUnreached() {
		unreached = nil
	}
	return gateway.New(gateway.Config{
		Upstream: config.Upstream, Workers: config.Workers, MaxBody: config.MaxBody, MaxResponse: config.MaxResponse,
		Timeout: config.UpstreamTimeout, Idle: config.UpstreamIdle, Abandon: config.Abandon, Trusted: config.Proxies(), Public: config.PublicURL, Unreached: unreached,
		Files: config.UpstreamFiles(), Logger: log,
	})
}

// again returns the handler of requests that were queued before a restart.
func again(g *gateway.Gateway) http.Handler {
	upstream := http.NotFoundHandler()
	if g != nil {
		upstream = g.Again()
	}
	return server.Again(upstream)
}

// A site is what the public routes are made of.
type site struct {
	jobs    *holdfast.Jobs
	gateway *gateway.Gateway // nil if there is none
	config  server.Config

	// work makes a handler one that takes on new work, and refuses it when the server stops.
	work func(http.Handler) http.Handler

	// elsewhere serves the requests of jobs in place of the route's own handler, if it is
	// not nil.
	elsewhere http.Handler
}

// add adds the routes.
func (p site) add(mux *http.ServeMux, trees interface{ Below(string, http.Handler) }) {
	work := p.work
	if g := p.gateway; g != nil {
		trees.Below("/sync", work(g.Route("/sync", p.waiting(p.jobs.Queued))))
		trees.Below("/async", work(g.Route("/async", p.waiting(p.jobs.Async))))
		work = func(h http.Handler) http.Handler { return g.NotAgain(p.work(h)) }
	}
	mux.Handle("POST /aaa", work(server.Sleep(p.config.MaxBody, p.waiting(p.jobs.Sync))))
	mux.Handle("POST /bbb", work(server.Sleep(p.config.MaxBody, p.waiting(p.jobs.Async))))
	mux.Handle("/jobs/", p.jobs)
	mux.HandleFunc("GET /openapi.json", server.OpenAPI)
	mux.HandleFunc("GET /{$}", server.Guide)
}

// waiting is server.Waiting.
func (p site) waiting(wrap func(http.Handler) http.Handler) func(http.Handler) http.Handler {
	next := server.Waiting(p.config.MaxBody, wrap)
	if p.elsewhere == nil {
		return next
	}
	return func(http.Handler) http.Handler { return next(p.elsewhere) }
}

// resizing returns how to change the number of workers, and what to do when the server
// begins to stop.
func resizing(d *holdfast.Dispatcher, g *gateway.Gateway, config server.Config) (func(workers int) error, func()) {
	resize, release := d.Resize, func() {}
	if g != nil {
		resize, release = func(workers int) error { return g.Resize(d, workers) }, g.Release
	}
	return func(workers int) error {
		if err := config.Resizable(workers); err != nil {
			return err
		}
		return resize(workers)
	}, release
}
