//go:build ignore

// Holdfast's server: POST /aaa works at once, POST /bbb queues the same work. With
// plan as the first argument, the planner.
//
// A folder holds one package, and this folder's is the library, so this file is
// run by its name: go run main.go.
package main

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
	"holdfast/internal/server"
	"holdfast/plan"
)

// version is stamped by make build.
var version = "devel"

func main() {
	if len(os.Args) > 1 && os.Args[1] == "plan" {
		if err := plan.Run(os.Args[2:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "holdfast plan:", err)
			os.Exit(2)
		}
		return
	}
	config, err := server.ParseConfig(os.Args[1:], os.Getenv, version, os.Stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintln(os.Stderr, "holdfast:", err)
		os.Exit(2)
	case config == server.Config{}: // -version
		return
	}
	if err := run(config, slog.Default()); err != nil {
		slog.Error(strings.ReplaceAll(err.Error(), "\n", "; ")) // of joined errors
		os.Exit(1)
	}
}

func run(config server.Config, log *slog.Logger) error {
	d, err := holdfast.New(config.Dispatcher())
	if err != nil {
		return err
	}
	jobs := holdfast.NewJobs(d, config.Jobs())

	mux := http.NewServeMux()
	s := server.New(d, mux, config, log)
	sleep := server.Sleep(config.MaxBody)
	if config.LogJobs {
		sleep = server.Logged(log, sleep)
	}
	checked := func(h http.Handler) http.Handler { return s.Work(server.Checked(config.MaxBody, h)) }
	mux.Handle("POST /aaa", checked(jobs.Sync(sleep)))
	mux.Handle("POST /bbb", checked(jobs.Async(sleep)))
	mux.Handle("/jobs/", jobs)
	resize := d.Resize
	if config.Upstream != nil {
		gateway := server.NewGateway(config.Upstream, config.Workers, config.MaxResponse, log)
		s.Below("/sync", s.Work(jobs.Queued(gateway)))
		s.Below("/async", s.Work(jobs.Async(gateway)))
		resize = func(workers int) error { return gateway.Resize(d, workers) }
	}
	mux.HandleFunc("GET /openapi.json", server.OpenAPI)
	mux.HandleFunc("GET /{$}", server.Guide)

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
