// Package command is the holdfast command. The root's main.go and cmd/holdfast
// are the two ways to start it.
package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"holdfast"
	"holdfast/admin"
	"holdfast/internal/budget"
	"holdfast/internal/server"
	"holdfast/plan"
)

// Main runs the command with its arguments, without the program's name, and
// returns the exit status. It returns when the server has stopped.
func Main(version string, args []string) int {
	if len(args) > 0 && args[0] == "plan" {
		return report("holdfast plan", plan.Run(args[1:], os.Stdout))
	}
	config, err := server.ParseConfig(args, os.Getenv, version, os.Stdout)
	if err != nil || config == (server.Config{}) { // -version
		return report("holdfast", err)
	}
	if err := serve(config, version, slog.Default()); err != nil {
		slog.Error(strings.ReplaceAll(err.Error(), "\n", "; ")) // of joined errors
		return 1
	}
	return 0
}

// report returns the exit status of a command that serves nothing.
func report(name string, err error) int {
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return 0
	}
	fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
	return 2
}

// serve wires the server and runs it until a signal stops it.
func serve(config server.Config, version string, log *slog.Logger) error {
	d, err := holdfast.New(config.Dispatcher())
	if err != nil {
		return err
	}
	jobsConfig := config.Jobs()
	if config.LogJobs {
		jobsConfig.OnEnd = server.LogJob(log)
	}
	jobs, err := holdfast.NewJobs(d, jobsConfig)
	if err != nil {
		return err
	}

	limitHeap(config.MaxMemory)

	mux := http.NewServeMux()
	s := server.New(d, mux, config, log)
	resize := routes(mux, s, d, jobs, config, log)
	operator := admin.New(admin.Config{
		Dispatcher: d, Jobs: jobs, Version: version, Logger: log,
		Stopping: s.Stopping, Health: s.Health(),
		Token: config.AdminToken, Host: config.AdminHost(),
		Demo: mux, Resize: resize,
	})
	s.Admin(operator)

	public, err := net.Listen("tcp", config.Addr)
	if err != nil {
		return err
	}
	private, err := config.ListenAdmin(log)
	if err != nil {
		return err
	}
	log.Info("holdfast "+version, "addr", public.Addr().String(), "workers", config.Workers, "queue", config.Queue, "overflow", config.Overflow)
	if private != nil {
		log.Info("dashboard", "url", "http://"+private.Addr().String()+"/")
	}

	ctx, restore := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer restore()
	context.AfterFunc(ctx, restore) // a second signal ends the process at once
	if private != nil {
		watching, leave := context.WithCancel(context.Background())
		defer leave()
		go operator.Run(watching)
	}
	return s.Run(ctx, public, private, config.Drain)
}

// routes adds the public routes, and returns how to change the number of workers.
func routes(mux *http.ServeMux, s *server.Server, d *holdfast.Dispatcher, jobs *holdfast.Jobs, config server.Config, log *slog.Logger) (resize func(int) error) {
	s.Count(budget.Of(jobs.Async(http.NotFoundHandler())))
	mux.Handle("POST /aaa", s.Work(server.Sleep(config.MaxBody, jobs.Sync)))
	mux.Handle("POST /bbb", s.Work(server.Sleep(config.MaxBody, jobs.Async)))
	mux.Handle("/jobs/", jobs)
	mux.HandleFunc("GET /openapi.json", server.OpenAPI)
	mux.HandleFunc("GET /{$}", server.Guide)
	if config.Upstream == nil {
		return d.Resize
	}
	gateway := server.NewGateway(config.Upstream, config.Workers, config.MaxResponse, log)
	s.Below("/sync", s.Work(jobs.Queued(gateway)))
	s.Below("/async", s.Work(jobs.Async(gateway)))
	return func(workers int) error { return gateway.Resize(d, workers) }
}
