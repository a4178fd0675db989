package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

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
	set.StringVar(&o.clientHeader, "client-header", "Client", "the `header` that names the client, where a class has clients")
	set.IntVar(&o.slots, "slots", 8, "comparison: calls that the upstream runs at once, `n`")
	set.IntVar(&o.queue, "queue", 200, "comparison: requests that may wait in each contender that has a bound, `n`")
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

	o.urlFlags(set)
	loads, kinds := o.comparisonFlags(set)
	if err := set.Parse(args); err != nil {
		return nil, err
	}
	if set.NArg() > 0 {
		return nil, fmt.Errorf("argument %q; want flags only, see -h", set.Arg(0))
	}
	return o, o.check(*mix, *loads, *kinds)
}

func (o *options) urlFlags(set *flag.FlagSet) {
	set.StringVar(&o.url, "url", "", "measure the service at `url`")
	set.Float64Var(&o.rate, "rate", 0, "with -url: `n` requests a second")
	set.Float64Var(&o.capacity, "capacity", 0, "with -url: requests a second that the service can do, `n`, if known; goodput is also told in % of it")
	set.StringVar(&o.method, "method", http.MethodGet, "with -url: the `method`")
	set.StringVar(&o.body, "body", "", "with -url: the `text` of the body")
	set.Func("header", "with -url: send `name: value`; may be repeated", o.addHeader)
}

func (o *options) comparisonFlags(set *flag.FlagSet) (loads, kinds *string) {
	loads = set.String("loads", "0.5,0.8,1.1,1.5,2,5,10", "comparison: the offered loads, `list`, in the capacity of the upstream")
	kinds = set.String("service", "exponential,fixed,slow", "comparison: how the service time is distributed, `list`; slow is fixed, and ten times as long for one call in five. The figure and the burst are of the first")
	set.DurationVar(&o.serviceTime, "service-time", 50*time.Millisecond, "comparison: the service time, `d`")
	set.BoolVar(&o.stops, "upstream-stops", false, "comparison: the upstream stops when its connection is closed; the default works on, as most services do")
	set.DurationVar(&o.warm, "warm", 2*time.Second, "comparison: before each measurement a load of 0.5x for `d`, and then the load itself for as long, neither of them counted")
	set.Func("holdfast", "comparison: measure the gateway with these `flags`; may be repeated. The default is each -overflow", func(s string) error {
		if slices.Contains(o.variants, s) {
			return errors.New("want each once")
		}
		o.variants = append(o.variants, s)
		return nil
	})
	set.StringVar(&o.only, "only", "", "comparison: only contenders whose name contains one of the texts in `list`")
	set.BoolVar(&o.quick, "quick", false, "comparison: only see that everything works; the figures mean nothing")
	set.StringVar(&o.out, "out", ".", "comparison: the `folder` for overload.svg")
	return loads, kinds
}

func (o *options) addHeader(s string) error {
	name, value, found := strings.Cut(s, ":")
	if !found || !validName(name) {
		return errors.New("want name: value, with a name of letters, digits and -")
	}
	o.header.Add(name, strings.TrimSpace(value))
	return nil
}

// check reads the lists and refuses what is out of bounds.
func (o *options) check(mix, loads, kinds string) error {
	if o.quick {
		o.lasts, o.warm, o.serviceTime, loads = time.Second, time.Second/4, 20*time.Millisecond, "0.5,2"
		kinds, _, _ = strings.Cut(kinds, ",")
	}
	if !validPatience(o.patience) {
		return fmt.Errorf("-patience %v; want 1ms to %v", o.patience, maxPatience)
	}
	if !validName(o.clientHeader) {
		return fmt.Errorf("-client-header %q; want at most 32 letters, digits and -", o.clientHeader)
	}
	var err error
	if o.mix, err = parseMix(mix, o.patience); err != nil {
		return fmt.Errorf("-mix: %w", err)
	}
	if o.lasts < time.Second || o.lasts > maxFor || o.lasts%time.Second != 0 {
		return fmt.Errorf("-for %v; want whole seconds, at least one, and at most %v", o.lasts, maxFor)
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
	if _, err := http.NewRequest(o.method, o.url, nil); err != nil {
		return fmt.Errorf("-method %q: %w", o.method, err)
	}
	if !(o.capacity >= 0) {
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
	if o.slots < 1 || o.slots > 10_000 || o.queue < 0 || o.queue > 1_000_000 || o.serviceTime < time.Millisecond || o.serviceTime > time.Minute || o.warm < 0 || o.warm > maxFor {
		return errors.New("want -slots of 1 to 10000, -queue of 0 to 1000000, -service-time of 1ms to 1m and -warm of 0 to 10m")
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
		for _, plan := range []course{o.steady(slices.Max(o.loads)), o.around()} {
			if err := checkBounds(plan.phases(fastest)); err != nil {
				return fmt.Errorf("-loads, -for, -warm, -slots and -service-time: %w", err)
			}
		}
	}
	if o.variants == nil {
		o.variants = []string{"-overflow block", "-overflow reject", "-overflow drop-oldest"}
	}
	return nil
}
