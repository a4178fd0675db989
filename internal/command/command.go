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
func Main(version string, args []string) int { return MainWith(nil, version, args) }

// An Open returns Jobs that outlive the process, as the configuration says. It submits
// those again that had not ended when the last process did, whose requests again serves.
type Open func(d *holdfast.Dispatcher, jobs holdfast.JobsConfig, again http.Handler, c server.Config, log *slog.Logger) (Opened, error)

// Opened is what the server needs of Jobs.
type Opened struct {
	Jobs  *holdfast.Jobs
	Log   func() admin.LogStats // nil if they end with the process
	Close func() error          // called when the server has stopped
}

// MainWith is Main for a command whose jobs outlive the process. If open is nil, they do
// not.
func MainWith(open Open, version string, args []string) int {
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
	if err := serve(config, open, version, log); err != nil {
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
	resize, release := routes(mux, s, d, jobs, upstream, config)
	operator := admin.New(admin.Config{
		Dispatcher: d, Jobs: jobs, Log: opened.Log, Version: version, Logger: log,
		Stopping: s.Stopping, Health: s.Health(), Token: config.AdminToken, Host: config.AdminHost(),
		Demo: mux, Resize: resize, Admitted: s.Admitted,
	})
	s.Admin(operator)

	announce(public, private, config, version, log)
	ctx := untilSignal()
	context.AfterFunc(ctx, release)
	watching, leave := context.WithCancel(context.Background())
	defer leave()
	if private != nil {
		go operator.Run(watching)
	}
	return s.Run(ctx, public, private, config.Drain)
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

// routes adds the public routes, and returns how to change the number of workers and
// what to do when the server begins to stop.
func routes(mux *http.ServeMux, s *server.Server, d *holdfast.Dispatcher, jobs *holdfast.Jobs, g *gateway.Gateway, config server.Config) (func(int) error, func()) {
	s.Count(budget.Of(jobs.Async(http.NotFoundHandler())))
	resize, release := d.Resize, func() {}
	work := s.Work
	waiting := func(wrap func(http.Handler) http.Handler) func(http.Handler) http.Handler {
		return server.Waiting(config.MaxBody, wrap)
	}
	if g != nil {
		s.Below("/sync", s.Work(g.Route("/sync", waiting(jobs.Queued))))
		s.Below("/async", s.Work(g.Route("/async", waiting(jobs.Async))))
		resize, release = func(workers int) error { return g.Resize(d, workers) }, g.Release
		work = func(h http.Handler) http.Handler { return g.NotAgain(s.Work(h)) }
	}
	mux.Handle("POST /aaa", work(server.Sleep(config.MaxBody, waiting(jobs.Sync))))
	mux.Handle("POST /bbb", work(server.Sleep(config.MaxBody, waiting(jobs.Async))))
	mux.Handle("/jobs/", jobs)
	mux.HandleFunc("GET /openapi.json", server.OpenAPI)
	mux.HandleFunc("GET /{$}", server.Guide)
	resizable := func(workers int) error {
		if err := config.Resizable(workers); err != nil {
			return err
		}
		return resize(workers)
	}
	return resizable, release
}
