// Holdfast is the server whose jobs outlive the process. It has the flags of the one in
// the root, and -data, -sync and -attempts. With check as the first argument, it says what
// a folder holds and what is wrong with it.
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
	os.Exit(command.MainWith(open, version, os.Args[1:]))
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
