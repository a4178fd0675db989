// Holdfast is the server whose jobs outlive the process. It has the flags of the one in
// the root, and more: -data and -sync, and -cluster with what a node of several needs. With
// check as the first argument, it says what a folder holds and what is wrong with it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"holdfast"
	"holdfast/admin"
	"holdfast/durable"
	"holdfast/internal/command"
	"holdfast/internal/server"
)

// version is stamped by the linker.
var version = "devel"

func main() {
	if len(os.Args) > 1 && os.Args[1] == "check" {
		os.Exit(check(os.Args[2:], os.Stdout, os.Stderr))
	}
	os.Exit(command.MainWith(open, join, version, os.Args[1:]))
}

// check reads a folder and prints what is in it. The exit status is 1 if something is
// wrong, and 2 if it could not be read.
func check(args []string, out, failed io.Writer) int {
	set := flag.NewFlagSet("holdfast check", flag.ContinueOnError)
	set.SetOutput(failed)
	dir := set.String("data", "data", "the `folder` to read, which no server may be using")
	if err := set.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return 2
	}
	if set.NArg() > 0 {
		fmt.Fprintf(failed, "holdfast check: argument %q; want -data only\n", set.Arg(0))
		return 2
	}
	r, err := durable.Check(context.Background(), *dir)
	if err != nil {
		fmt.Fprintf(failed, "holdfast check: %v\n", err)
		return 2
	}
	fmt.Fprintf(out, "%d jobs are open, %d of them had been started; %d have ended\n", r.Open, r.Started, r.Ended)
	fmt.Fprintf(out, "%d records in %d bytes", r.Records, r.Bytes)
	if !r.First.IsZero() {
		fmt.Fprintf(out, ", written from %s to %s", r.First.Format(time.RFC3339), r.Last.Format(time.RFC3339))
	}
	fmt.Fprintln(out)
	for _, problem := range r.Problems {
		fmt.Fprintln(out, "wrong:", problem)
	}
	if len(r.Problems) > 0 {
		return 1
	}
	fmt.Fprintln(out, "nothing is wrong")
	return 0
}

// lastWrites is how long the process waits at its end for the disk.
const lastWrites = 10 * time.Second

func open(d *holdfast.Dispatcher, jobs holdfast.JobsConfig, again http.Handler, c server.Config, log *slog.Logger) (command.Opened, error) {
	j, err := durable.Open(context.Background(), durable.Config{
		Dir: c.Data, Dispatcher: d, Jobs: jobs, Handler: again, NoSync: !c.Sync, Attempts: c.Attempts, Logger: log,
	})
	if err != nil {
		return command.Opened{}, err
	}
	return command.Opened{
		Jobs: j.Jobs,
		Log:  func() admin.LogStats { return admin.LogStats(j.Log()) },
		Close: func() error {
			soon, cancel := context.WithTimeout(context.Background(), lastWrites)
			defer cancel()
			return j.Close(soon)
		},
	}, nil
}

// A node is a durable.Node as the command needs it.
type node struct{ *durable.Node }

func (n node) Stats() admin.ClusterStats {
	s := n.Node.Stats()
	stats := admin.ClusterStats{Leader: s.Leader, Term: s.Term}
	for _, m := range s.Nodes {
		stats.Nodes = append(stats.Nodes, admin.ClusterNode{
			Name: m.Name, Addr: m.Addr, Version: m.Version, Workers: m.Workers, Running: m.Running, Held: m.Held, Silent: m.Silent.Seconds(),
		})
	}
	return stats
}

func join(c server.Config, jobs holdfast.JobsConfig, h http.Handler, lead func(command.Term) (public, operator http.Handler), version string, log *slog.Logger) (command.Node, error) {
	var peers []string
	if c.Peers != "" {
		peers = strings.Split(c.Peers, ",")
	}
	n, err := durable.Join(context.Background(), durable.NodeConfig{
		Dir: c.Data, Cluster: c.Cluster, Node: c.Node, Addr: c.ClusterAddr, Peers: peers,
		NATS: c.NATS, Creds: c.NATSCreds, System: c.NATSSystem, NodeAddr: c.NodeAddr, SecretFile: c.SecretFile,
		Workers: c.Workers, Handler: h, Dispatcher: c.Dispatcher(), Jobs: jobs, NoSync: !c.Sync, Attempts: c.Attempts,
		Version: version, Logger: log,
		Lead: func(t *durable.Term) (public http.Handler) {
			public, t.Operator = lead(command.Term{
				Dispatcher: t.Dispatcher, Jobs: t.Jobs.Jobs, Handler: t.Handler, Done: t.Done,
				Log: func() admin.LogStats { return admin.LogStats(t.Jobs.Log()) },
			})
			return public
		},
	})
	if err != nil {
		return nil, err
	}
	return node{n}, nil
}
