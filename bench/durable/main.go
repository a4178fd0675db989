// Durable compares ways to accept a job over HTTP that promise the disk for it: Holdfast
// with package durable, a plain file with group commit as the limit, and queues on Redis,
// Postgres and SQLite. All figures come from one run on one machine. See the README.md in
// the folder above.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	log.SetFlags(0)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout)
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
	case ctx.Err() != nil:
		log.Fatal("durable: interrupted; the tables that are printed are complete")
	default:
		log.Fatal("durable: ", err)
	}
}

// run is the command.
func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) > 0 && args[0] == "serve" { // started by this program itself
		return serve(args[1:])
	}
	o, err := parse(args, out)
	if err != nil {
		return err
	}
	return o.compare(ctx, out)
}

// workers is how many jobs run at once, and how many clients wait for results.
const workers = 64

// The parts of a run, in order.
var partNames = []string{"accept", "waiting", "end", "half"}

// options are the flags.
type options struct {
	rounds  int
	lasts   time.Duration
	only    string
	parts   []string
	dir     string
	quick   bool
	clients []int // for the parts accept and waiting
}

// Bounds of what one run may do, so that a slip of the hand is not an attack on the disk.
const (
	maxRounds = 100
	minLasts  = 50 * time.Millisecond
	maxLasts  = time.Minute
)

func parse(args []string, out io.Writer) (*options, error) {
	o := &options{clients: []int{1, 16, 64, 256}}
	var parts string
	set := flag.NewFlagSet("durable", flag.ContinueOnError)
	set.SetOutput(out)
	set.IntVar(&o.rounds, "rounds", 5, "measurements of each figure, `n`")
	set.DurationVar(&o.lasts, "for", 2*time.Second, "the time that counts in one measurement; a quarter of it goes before, to warm up")
	set.StringVar(&o.only, "only", "", "measure the contenders that have one of these `texts` in their names, separated by commas")
	set.StringVar(&parts, "part", strings.Join(partNames, ","), "measure these `parts`")
	set.StringVar(&o.dir, "dir", "", "the `folder` that the data lies in; if empty, a temporary one. It says which disk is measured")
	set.BoolVar(&o.quick, "quick", false, "only see that everything works; the figures mean nothing")
	if err := set.Parse(args); err != nil {
		return nil, err
	}
	if o.quick {
		o.rounds, o.lasts, o.clients = 1, 100*time.Millisecond, []int{64}
	}
	o.parts = strings.Split(parts, ",")
	for _, part := range o.parts {
		if !slices.Contains(partNames, part) {
			return nil, fmt.Errorf("-part %q; want %s, or some of them", parts, strings.Join(partNames, ","))
		}
	}
	switch {
	case set.NArg() > 0:
		return nil, fmt.Errorf("%q; want flags only", set.Args())
	case o.rounds < 1 || o.rounds > maxRounds:
		return nil, fmt.Errorf("-rounds %d; want 1 to %d", o.rounds, maxRounds)
	case o.lasts < minLasts || o.lasts > maxLasts:
		return nil, fmt.Errorf("-for %v; want %v to %v", o.lasts, minLasts, maxLasts)
	}
	return o, nil
}

// warm is how long a load runs before it counts.
func (o *options) warm() time.Duration { return o.lasts / 4 }

// field returns the contenders that take part, and says which do not and why.
func (o *options) field() (list []contender, missing []string, err error) {
	wanted := func(name string) bool {
		return slices.ContainsFunc(strings.Split(o.only, ","), func(text string) bool {
			return strings.Contains(strings.ToLower(name), strings.ToLower(text))
		})
	}
	for _, c := range contenders {
		switch {
		case !wanted(c.name):
		case c.missing() != "":
			missing = append(missing, c.name+": "+c.missing())
		default:
			list = append(list, c)
		}
	}
	if list == nil {
		return nil, missing, fmt.Errorf("-only %q; no contender that can run has that in its name", o.only)
	}
	return list, missing, nil
}

// compare measures all contenders and prints the tables, each as soon as it is complete.
func (o *options) compare(ctx context.Context, out io.Writer) error {
	begin, used := time.Now(), cpuTimes()
	list, missing, err := o.field()
	if err != nil {
		return err
	}
	// Postgres does not run as root, so others must be able to pass through the folder.
	dir, err := os.MkdirTemp(o.dir, "holdfast-durable-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		return err
	}
	c := &comparison{options: o, dir: dir, list: list}
	if err := c.printMachine(out, missing); err != nil {
		return err
	}
	if err := c.measure(ctx, out); err != nil {
		return err
	}
	fmt.Fprintf(out, "\n%sTook %v.\n", used.since(cpuTimes(), time.Since(begin)), time.Since(begin).Round(time.Second))
	return nil
}
