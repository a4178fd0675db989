// Overload is an open-loop load generator: it sends requests when they are due,
// whatever became of those before, and its clients leave when their patience has
// ended. It measures a service that is given, or compares Holdfast with other ways
// to protect an upstream. See the README.md in the folder above.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	log.SetFlags(0)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		log.Fatal("overload: ", err)
	}
}

// maxOpenLimit bounds -open: beyond it a machine runs out of ports.
const maxOpenLimit = 50_000

// options are the flags.
type options struct {
	// of both modes
	lasts        time.Duration
	patience     time.Duration
	mix          []class
	clientHeader string
	constant     bool
	seed         uint64
	maxOpen      int
	json         bool

	// of a run against a URL
	url, method, body string
	header            http.Header
	rate, capacity    float64

	// of the comparison
	loads       []float64
	services    []service
	serviceTime time.Duration
	slots       int
	queue       int
	stops       bool
	warm        time.Duration
	variants    []string
	only        string
	quick       bool
	out         string
}

func (o *options) limit(capacity float64) limit {
	return limit{slots: o.slots, queue: o.queue, patience: o.patience, capacity: capacity, clientHeader: o.clientHeader}
}

// limitFlags returns a set with the flags that a contender is told as well.
func (o *options) limitFlags(name string) *flag.FlagSet {
	set := flag.NewFlagSet(name, flag.ContinueOnError)
	set.DurationVar(&o.patience, "patience", time.Second, "a client gives up `d` after its request was due, and closes the connection")
	set.StringVar(&o.clientHeader, "client-header", "Client", "the `header` that names the client")
	set.IntVar(&o.slots, "slots", 8, "calls that the upstream runs at once, `n`")
	set.IntVar(&o.queue, "queue", 200, "requests that may wait in each contender that has a bound, `n`")
	return set
}

const usage = `Overload sends requests when they are due, whatever became of those before.

    go run ./overload -url http://… -rate 100 -for 30s -patience 1s -capacity 160
        measures a service: goodput, good answers and refusals apart
    go run ./overload
        compares Holdfast with others before the same upstream, and draws overload.svg

Good is an answer with a status below 400 within the patience, refused 429 or 503.
Flags of one use only say so. At most %d requests a second, for at most %v, and %d in all.

`

// parse reads the flags and checks them.
func parse(args []string, out io.Writer) (*options, error) {
	o := &options{header: make(http.Header)}
	set := o.limitFlags("overload")
	set.SetOutput(out)
	set.Usage = func() {
		fmt.Fprintf(out, usage, maxRate, maxFor, maxRequests)
		set.PrintDefaults()
	}
	mix := set.String("mix", "all:100%", "the `classes` of requests, "+mixSyntax+". A class has a share of the load, an urgency, which is sent as Priority: u=N, a number of clients, who are named name-1, name-2, … and have equal shares, a patience of its own, and stays if its clients wait on when that has ended")
	set.DurationVar(&o.lasts, "for", 10*time.Second, "how long the load lasts, `d`")
	set.BoolVar(&o.constant, "constant", false, "space the requests evenly; the default is Poisson arrivals")
	set.Uint64Var(&o.seed, "seed", 1, "decides the schedule and the service times, `n`")
	set.IntVar(&o.maxOpen, "open", 20_000, "leave out a request that would be one of more than `n` open at once, and say so")
	set.BoolVar(&o.json, "json", false, "print JSON, with what the tables leave out")

	set.StringVar(&o.url, "url", "", "measure the service at `url`")
	set.Float64Var(&o.rate, "rate", 0, "with -url: `n` requests a second")
	set.Float64Var(&o.capacity, "capacity", 0, "with -url: requests a second that the service can do, `n`, if known; goodput is also told in % of it")
	set.StringVar(&o.method, "method", http.MethodGet, "with -url: the `method`")
	set.StringVar(&o.body, "body", "", "with -url: the `text` of the body")
	set.Func("header", "with -url: send `name: value`; may be repeated", o.addHeader)

	loads := set.String("loads", "0.5,0.8,1.1,1.5,2,5,10", "comparison: the offered loads, `list`, in the capacity of the upstream")
	kinds := set.String("service", "exponential,fixed,slow", "comparison: how the service time is distributed, `list`; slow is fixed, and ten times as long for one call in five. The figure and the burst are of the first")
	set.DurationVar(&o.serviceTime, "service-time", 50*time.Millisecond, "comparison: the service time, `d`")
	set.BoolVar(&o.stops, "upstream-stops", false, "comparison: the upstream stops when its connection is closed; the default works on, as most services do")
	set.DurationVar(&o.warm, "warm", 3*time.Second, "comparison: a load of 0.5x before each measurement for `d`, not counted")
	set.Func("holdfast", "comparison: measure the gateway with these `flags`; may be repeated. The default is each -overflow", func(s string) error {
		o.variants = append(o.variants, s)
		return nil
	})
	set.StringVar(&o.only, "only", "", "comparison: only contenders whose name contains one of the texts in `list`")
	set.BoolVar(&o.quick, "quick", false, "comparison: only see that everything works; the figures mean nothing")
	set.StringVar(&o.out, "out", ".", "comparison: the `folder` for overload.svg")
	if err := set.Parse(args); err != nil {
		return nil, err
	}
	if set.NArg() > 0 {
		return nil, fmt.Errorf("argument %q; want flags only, see -h", set.Arg(0))
	}
	return o, o.check(*mix, *loads, *kinds)
}

func (o *options) addHeader(s string) error {
	name, value, found := strings.Cut(s, ":")
	if !found || strings.TrimSpace(name) == "" {
		return errors.New("want name: value")
	}
	o.header.Add(strings.TrimSpace(name), strings.TrimSpace(value))
	return nil
}

// check reads the lists and refuses what is out of bounds.
func (o *options) check(mix, loads, kinds string) error {
	if o.quick {
		o.lasts, o.warm, o.serviceTime, loads = time.Second, time.Second, 10*time.Millisecond, "0.5,2"
		kinds, _, _ = strings.Cut(kinds, ",")
	}
	if !validPatience(o.patience) {
		return fmt.Errorf("-patience %v; want 1ms to %v", o.patience, maxPatience)
	}
	var err error
	if o.mix, err = parseMix(mix, o.patience); err != nil {
		return fmt.Errorf("-mix: %w", err)
	}
	if o.lasts < time.Second || o.lasts%time.Second != 0 {
		return fmt.Errorf("-for %v; want whole seconds, at least one", o.lasts)
	}
	if o.maxOpen < 1 || o.maxOpen > maxOpenLimit {
		return fmt.Errorf("-open %d; want 1 to %d", o.maxOpen, maxOpenLimit)
	}
	if o.url != "" {
		return o.checkURL()
	}
	return o.checkComparison(loads, kinds)
}

func (o *options) checkURL() error {
	u, err := url.Parse(o.url)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("-url %q; want a URL such as http://localhost:8099/path", o.url)
	}
	if o.capacity < 0 {
		return fmt.Errorf("-capacity %g; want requests a second, or 0 if not known", o.capacity)
	}
	if err := checkBounds([]phase{{o.rate, o.lasts}}); err != nil {
		return fmt.Errorf("-rate and -for: %w", err)
	}
	return nil
}

func (o *options) checkComparison(loads, kinds string) error {
	if o.rate != 0 || o.capacity != 0 {
		return errors.New("-rate and -capacity need -url; the comparison has -loads")
	}
	if o.slots < 1 || o.slots > 10_000 || o.queue < 0 || o.queue > 1_000_000 || o.serviceTime < time.Millisecond || o.serviceTime > time.Minute || o.warm < 0 {
		return errors.New("want -slots of 1 to 10000, -queue of 0 to 1000000, -service-time of 1ms to 1m and -warm of 0 or more")
	}
	for _, text := range strings.Split(loads, ",") {
		load, err := strconv.ParseFloat(text, 64)
		if err != nil || !(load > 0) || slices.Contains(o.loads, load) {
			return fmt.Errorf("-loads has %q; want numbers above 0, each once", text)
		}
		o.loads = append(o.loads, load)
	}
	for _, name := range strings.Split(kinds, ",") {
		i := slices.IndexFunc(services, func(s service) bool { return s.name == name })
		if i < 0 {
			return fmt.Errorf("-service has %q; want exponential, fixed or slow", name)
		}
		o.services = append(o.services, services[i])
		fastest := capacity(services[i], o.serviceTime, o.slots)
		most := slices.Max(append(o.loads, flood))
		if err := checkBounds((course{{calm, o.warm}, {calm, o.lasts}, {most, o.lasts}, {calm, afterBurst * o.lasts}}).phases(fastest)); err != nil {
			return fmt.Errorf("-loads, -for, -warm, -slots and -service-time: %w", err)
		}
	}
	if o.variants == nil {
		o.variants = []string{"-overflow block", "-overflow reject", "-overflow drop-oldest"}
	}
	return nil
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
	if o.url != "" {
		return o.measureURL(ctx, out)
	}
	return o.compare(ctx, out)
}

// measureURL measures the service at a URL. Interrupted, it tells what it has.
func (o *options) measureURL(ctx context.Context, out io.Writer) error {
	t := newTarget(ctx, target{url: o.url, method: o.method, body: o.body, header: o.header, clientHeader: o.clientHeader})
	samples, h := t.send(schedule(o.seed, []phase{{o.rate, o.lasts}}, o.mix, o.constant), o.mix, o.maxOpen)
	summaries := summarize(samples, o.mix, window{0, o.lasts})
	if o.json {
		return writeJSON(out, struct {
			Classes   []summary
			Generator health
		}{summaries, h})
	}
	printRun(out, summaries, o.lasts, o.capacity, h)
	return nil
}

func writeJSON(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetIndent("", " ")
	return e.Encode(v)
}

// compare measures all contenders and prints the tables.
func (o *options) compare(ctx context.Context, out io.Writer) error {
	begin := time.Now()
	dir, err := os.MkdirTemp("", "holdfast-overload-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if o.quick && o.out == "." {
		o.out = dir // not over the figure that is there
	}
	list, missing, err := o.field(ctx, dir)
	if err != nil {
		return err
	}
	var tables strings.Builder
	fmt.Fprintf(&tables, "%s %s/%s, %d cores. An upstream of %d slots and %v, a queue of %d, a patience of %v, %v for each load.\n",
		runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.GOMAXPROCS(0), o.slots, o.serviceTime, o.queue, o.patience, o.lasts)
	for _, line := range missing {
		fmt.Fprintf(&tables, "\nSkipped: %s.\n", line)
	}
	var all, first []measurement
	for i, s := range o.services {
		found, err := o.compareLoads(ctx, dir, list, s)
		if err != nil {
			return err
		}
		if i == 0 {
			first = found
		}
		printLoads(&tables, strings.ToUpper(s.name[:1])+s.name[1:]+" service", found)
		all = append(all, found...)
	}
	burst, err := o.compareBurst(ctx, dir, list, o.services[0])
	if err != nil {
		return err
	}
	printBurst(&tables, fmt.Sprintf("A burst of %dx for %v", flood, o.lasts), burst)
	all = append(all, burst...)
	printHealth(&tables, all)
	if err := chart(filepath.Join(o.out, "overload.svg"), first, burst); err != nil {
		return err
	}
	if o.json {
		return writeJSON(out, all)
	}
	fmt.Fprintf(out, "%s\nTook %v.\n", tables.String(), time.Since(begin).Round(time.Second))
	return nil
}

// field returns the contenders that take part, and says which do not and why.
func (o *options) field(ctx context.Context, dir string) (list []contender, missing []string, err error) {
	binary := filepath.Join(dir, "holdfast")
	build := exec.CommandContext(ctx, "go", "build", "-o", binary, "holdfast/cmd/holdfast")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return nil, nil, fmt.Errorf("building Holdfast, which needs the folder of this module: %w", err)
	}
	wanted := func(name string) bool {
		return slices.ContainsFunc(strings.Split(o.only, ","), func(text string) bool { return strings.Contains(strings.ToLower(name), strings.ToLower(text)) })
	}
	for _, c := range contenders(binary, o.variants) {
		switch {
		case !wanted(c.name):
		case c.missing != "":
			missing = append(missing, c.name+", "+c.missing)
		default:
			list = append(list, c)
		}
	}
	if list == nil {
		return nil, nil, fmt.Errorf("-only %q; no contender that can run has that in its name", o.only)
	}
	return list, missing, nil
}
