package plan

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/flags"
)

const usageHead = `How many workers and how long a queue does a load need, or what load can given ones serve?

Usage: go run main.go plan [flags]

`

const usageTail = `
Set -rate and -service to get workers and a queue. Add -workers, -queue or both to
check given ones. Leave out -rate to get the highest rate that given workers can serve.
Durations look like 500ms, 30s or 1h30m, shares like 0.01. The exit status is 0 even if
the answer is no.

100 requests a second take 50 ms each. Bursts of five times that rate last two seconds,
and clients give up after one second:
    go run main.go plan -rate 100 -service 50ms -burst 5 -burst-for 2s -deadline 1s
What rate can the server's default 100 workers and queue of 200 serve if a request takes
a second?
    go run main.go plan -service 1s -workers 100 -queue 200
`

// flagOf maps the fields of a Load to their flags.
var flagOf = map[string]string{
	"Rate": "rate", "Service": "service", "CV2": "cv2", "ArrivalCV2": "arrival-cv2", "Burst": "burst", "BurstFor": "burst-for",
	"Deadline": "deadline", "MayWait": "may-wait", "MayRefuse": "may-refuse", "Workers": "workers", "Queue": "queue",
}

// A setting is a flag of the command.
type setting struct {
	name  string
	value flag.Value
	usage string
}

func settings(load *Load, asJSON *bool) []setting {
	return []setting{
		{"rate", &number{&load.Rate, wantRate, func(v float64) bool { return v > 0 }, 0}, "`n` requests arrive per second on average"},
		{"service", &flags.Duration{D: &load.Service, Want: wantService, Least: 1}, "a request takes a worker `d` on average"},
		{"cv2", &number{&load.CV2, wantCV2, func(v float64) bool { return v >= 0 && v <= 1e6 }, -1}, "squared coefficient of variation `x` of the service time: 0 constant, 1 exponential; default 1"},
		{"arrival-cv2", &number{&load.ArrivalCV2, wantCV2, func(v float64) bool { return v >= 0 && v <= 1e6 }, -1}, "squared coefficient of variation `x` of the time between arrivals: 0 constant, 1 Poisson; default 1"},
		{"burst", &number{&load.Burst, wantBurst, func(v float64) bool { return v >= 1 && v <= 1e6 }, 0}, "bursts have `m` times the rate; default no bursts"},
		{"burst-for", &flags.Duration{D: &load.BurstFor, Want: wantService, Least: 1}, "a burst lasts `d`; default 1s"},
		{"deadline", &flags.Duration{D: &load.Deadline, Want: wantDuration}, "clients wait at most `d` for the answer, service included; default no limit"},
		{"may-wait", &number{&load.MayWait, wantMayWait, func(v float64) bool { return v > 0 && v <= 1 }, 0}, "a `share` of the requests may wait for a worker outside bursts; default 0.2"},
		{"may-refuse", &number{&load.MayRefuse, wantMayRefuse, func(v float64) bool { return v >= 1e-12 && v <= 1 }, 0}, "a `share` may be refused, overflow the queue in a burst, or miss the deadline; default 0.01"},
		{"workers", &count{&load.Workers, wantWorkers, 1, MaxWorkers}, "there are `n` workers; default as few as needed"},
		{"queue", &count{&load.Queue, wantQueue, 0, MaxQueue}, "`n` requests can wait; default as few as needed"},
		{"json", (*flags.Boolean)(asJSON), "write JSON: seconds, shares from 0 to 1, null where there is no value"},
	}
}

// Run runs the command "holdfast plan". It reads a [Load] from args, which do not
// include the command's name, and writes its [Plan] to out as a table, or with
// -json as a JSON object with the names in Plan's tags. After -h it writes the
// usage to out and returns flag.ErrHelp. Any other error comes from writing, or
// names the invalid flag and the allowed values.
func Run(args []string, out io.Writer) error {
	var load Load
	var asJSON bool
	settings := settings(&load, &asJSON)
	set := flag.NewFlagSet("holdfast plan", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.Usage = func() {}
	for _, s := range settings {
		set.Var(s.value, s.name, s.usage)
	}
	if err := set.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			io.WriteString(out, usageHead)
			for _, s := range settings {
				arg, text := flag.UnquoteUsage(set.Lookup(s.name))
				fmt.Fprintf(out, "  %-18s %s\n", "-"+s.name+" "+arg, text)
			}
			io.WriteString(out, usageTail)
		}
		return err
	}
	if set.NArg() > 0 {
		return fmt.Errorf("argument %q; want flags only, see plan -h", set.Arg(0))
	}
	p, err := For(load)
	if field := (*FieldError)(nil); errors.As(err, &field) {
		return &FieldError{"-" + flagOf[field.Field], field.Value, field.Want}
	}
	if asJSON {
		encoder := json.NewEncoder(out)
		encoder.SetEscapeHTML(false)
		encoder.SetIndent("", "  ")
		return encoder.Encode(p)
	}
	return p.write(out)
}

// A table builds lines of a name and a text.
type table struct{ strings.Builder }

func (t *table) row(name, format string, args ...any) {
	fmt.Fprintf(t, "%-18s %s\n", name, fmt.Sprintf(format, args...))
}

// write writes the plan as a table.
func (p Plan) write(out io.Writer) error {
	t := new(table)
	answer := "yes"
	if !p.Holds {
		answer = "no"
	}
	t.row("does it hold?", "%s", answer)
	for _, reason := range p.Reasons {
		t.row("", "%s", reason)
	}
	t.row("load", "%s requests per second of %s each: %.4g workers busy on average", rate(p.Rate), seconds(p.Service), p.Erlangs)
	t.row("workers", "%d, utilisation %s; rule 1 (n·s < w) needs at least %d", p.Workers, share(p.Utilisation), p.LeastWorkers)
	t.row("queue", "%d places; a request in the last one waits %s", p.Queue, seconds(p.FullWait))
	p.Bounds.write(t, p.Backlog)
	if w := p.Waiting; w != nil {
		t.row("waiting", "%s of the requests; mean %s, p50 %s, p90 %s, p99 %s", share(w.Probability), seconds(w.Mean), seconds(w.P50), seconds(w.P90), seconds(w.P99))
	} else {
		t.row("waiting", "grows without bound; with this queue, accepted requests wait %s on average", seconds(p.AcceptedWait))
	}
	t.row("refused", "%s of the requests", share(p.Refused))
	if p.Bounds.Burst != nil {
		clears := "clears in " + seconds(p.Drain)
		if p.Drain < 0 {
			clears = "never clears"
		}
		t.row("after a burst", "%.4g requests wait on average; the backlog %s", math.Ceil(p.Backlog), clears)
	}
	t.row("holds at most", "%s requests per second; the workers' capacity is %s", rate(p.MaxRate), rate(p.Capacity))
	_, err := io.WriteString(out, t.String())
	return err
}

func (b Bounds) write(t *table, backlog float64) {
	if n := b.Refusals; n != nil {
		t.row("  for refusals", "at least %d", *n)
	} else {
		t.row("  for refusals", "no length is enough")
	}
	if n := b.Burst; n != nil {
		t.row("  for a burst", "at least %d; rule 2, (m·n − w/s)·T, gives %.0f, the rest is a margin", *n, math.Ceil(backlog))
	}
	switch n := b.Deadline; {
	case n == nil:
	case *n < 0:
		t.row("  for the deadline", "no length is short enough")
	default:
		t.row("  for the deadline", "at most %d", *n)
	}
}

// rate formats a rate, rounded down to six digits, since it may be a limit.
func rate(perSecond float64) string {
	if perSecond == 0 {
		return "0"
	}
	unit := math.Pow(10, math.Floor(math.Log10(perSecond))-5)
	if down := math.Floor(perSecond/unit*(1+1e-9)) * unit; down > 0 && unit > 0 {
		perSecond = down
	}
	if perSecond >= 1e6 && perSecond < 1e15 {
		return strconv.FormatFloat(perSecond, 'f', 0, 64)
	}
	return strconv.FormatFloat(perSecond, 'g', 6, 64)
}

// share formats a share as a percentage.
func share(x float64) string {
	switch {
	case x > 0 && x < 1e-6:
		return "less than 0.0001 %"
	case x > 0.999 && x < 1:
		return "more than 99.9 %"
	}
	return strconv.FormatFloat(100*x, 'g', 3+min(1, int(x)), 64) + " %"
}

// seconds formats a duration with three or four digits.
func seconds(x float64) string {
	if x >= 1e9 {
		return strconv.FormatFloat(x, 'g', 3, 64) + "s"
	}
	d := time.Duration(x * 1e9)
	for unit := time.Duration(1); unit < time.Hour; unit *= 10 {
		if d < 1000*unit {
			return d.Round(unit).String()
		}
	}
	return d.Round(time.Second).String()
}

// A number is the flag for a float64 field of a Load.
type number struct {
	v       *float64
	want    string
	allowed func(float64) bool
	zero    float64 // the value that stands for 0, which in the field selects the default
}

func (n *number) String() string { return "" }

func (n *number) Set(s string) error {
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsInf(v, 0) || !n.allowed(v) {
		return errors.New("want " + n.want)
	}
	if v == 0 {
		v = n.zero
	}
	*n.v = v
	return nil
}

// A count is the flag for an int field of a Load. It sets the field to −1 for 0,
// since 0 there means that the flag is not set.
type count struct {
	n           *int
	want        string
	least, most int
}

func (c *count) String() string { return "" }

func (c *count) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < c.least || n > c.most {
		return errors.New("want " + c.want)
	}
	if n == 0 {
		n = -1
	}
	*c.n = n
	return nil
}
