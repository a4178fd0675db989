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

const usageHead = `How many workers and how long a queue does a load need, or what do given ones hold?

Usage: go run main.go plan [flags]

`

const usageTail = `
Give -rate and -service to get workers and a queue; add -workers, -queue or both to
ask about those; leave out -rate to learn what they hold at most. Durations are like
500ms, 30s or 1h30m, shares like 0.01. The exit status is 0 also if the answer is no.

100 requests a second take 50 ms each; now and then five times as many come for two
seconds, and clients give up after one:
    go run main.go plan -rate 100 -service 50ms -burst 5 -burst-for 2s -deadline 1s
What do the server's own 100 workers and 200 places hold if a request takes a second?
    go run main.go plan -service 1s -workers 100 -queue 200
`

// flagOf is the flag for each field of a Load.
var flagOf = map[string]string{
	"Rate": "rate", "Service": "service", "CV2": "cv2", "ArrivalCV2": "arrival-cv2", "Burst": "burst", "BurstFor": "burst-for",
	"Deadline": "deadline", "MayWait": "may-wait", "MayRefuse": "may-refuse", "Workers": "workers", "Queue": "queue",
}

// Run is the command "holdfast plan": it reads a [Load] from args, which do not
// include the command's name, and writes its [Plan] to out, as a table or with
// -json as one JSON object with the names in Plan's tags. It returns flag.ErrHelp
// after -h, when the usage has been written to out. Any other error is one of
// writing, or names the flag that is wrong and what is allowed.
func Run(args []string, out io.Writer) error {
	var load Load
	var asJSON bool
	settings := []struct {
		name  string
		value flag.Value
		usage string
	}{
		{"rate", &number{&load.Rate, wantRate, func(v float64) bool { return v > 0 }, 0}, "`n` requests arrive in a second on average"},
		{"service", &flags.Duration{D: &load.Service, Want: wantService, Least: 1}, "a worker needs `d` for a request on average"},
		{"cv2", &number{&load.CV2, wantCV2, func(v float64) bool { return v >= 0 && v <= 1e6 }, -1}, "the service time's variance is `x` times its mean squared: 0 constant, default 1 exponential"},
		{"arrival-cv2", &number{&load.ArrivalCV2, wantCV2, func(v float64) bool { return v >= 0 && v <= 1e6 }, -1}, "the variance of the time between arrivals is `x` times its mean squared: 0 even, default 1 Poisson"},
		{"burst", &number{&load.Burst, wantBurst, func(v float64) bool { return v >= 1 && v <= 1e6 }, 0}, "at times the rate is `m` times as high; default no bursts"},
		{"burst-for", &flags.Duration{D: &load.BurstFor, Want: wantService, Least: 1}, "a burst lasts for `d`; default 1s"},
		{"deadline", &flags.Duration{D: &load.Deadline, Want: wantDuration}, "clients wait `d` for the answer, the service included; default without limit"},
		{"may-wait", &number{&load.MayWait, wantMayWait, func(v float64) bool { return v > 0 && v <= 1 }, 0}, "outside of bursts a `share` of requests may have to wait; default 0.2"},
		{"may-refuse", &number{&load.MayRefuse, wantMayRefuse, func(v float64) bool { return v >= 1e-12 && v <= 1 }, 0}, "a `share` may be refused, outgrow the queue in a burst, or miss the deadline; default 0.01"},
		{"workers", &count{&load.Workers, wantWorkers, 1, MaxWorkers}, "there are `n` workers; default the least that do"},
		{"queue", &count{&load.Queue, wantQueue, 0, MaxQueue}, "there are `n` places to wait; default the least that do"},
		{"json", (*flags.Boolean)(&asJSON), "write JSON for programs: seconds, shares from 0 to 1, null for none"},
	}
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

// write writes the plan as a table.
func (p Plan) write(out io.Writer) error {
	b := new(strings.Builder)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(b, "%-18s %s\n", name, fmt.Sprintf(format, args...))
	}
	answer := "yes"
	if !p.Holds {
		answer = "no"
	}
	row("does it hold?", "%s", answer)
	for _, reason := range p.Reasons {
		row("", "%s", reason)
	}
	row("load", "%s requests a second of %s: %.4g workers busy on average", rate(p.Rate), seconds(p.Service), p.Erlangs)
	row("workers", "%d, utilisation %s; rule 1 (n·s < w) asks for at least %d", p.Workers, share(p.Utilisation), p.LeastWorkers)
	row("queue", "%d places; who takes the last one waits %s", p.Queue, seconds(p.FullWait))
	if n := p.Bounds.Refusals; n != nil {
		row("  for refusals", "at least %d", *n)
	} else {
		row("  for refusals", "no length is enough")
	}
	if n := p.Bounds.Burst; n != nil {
		row("  for a burst", "at least %d; rule 2, (m·n − w/s)·T, asks for %.0f, chance for the rest", *n, math.Ceil(p.Backlog))
	}
	switch n := p.Bounds.Deadline; {
	case n == nil:
	case *n < 0:
		row("  for the deadline", "no length is short enough")
	default:
		row("  for the deadline", "at most %d", *n)
	}
	if w := p.Waiting; w != nil {
		row("waiting", "%s of the requests; mean %s, p50 %s, p90 %s, p99 %s", share(w.Probability), seconds(w.Mean), seconds(w.P50), seconds(w.P90), seconds(w.P99))
	} else {
		row("waiting", "grows without end; with this queue the accepted ones wait %s on average", seconds(p.AcceptedWait))
	}
	row("refused", "%s of the requests", share(p.Refused))
	if p.Bounds.Burst != nil {
		drained := "worked off " + seconds(p.Drain) + " after it"
		if p.Drain < 0 {
			drained = "which is never worked off"
		}
		row("after a burst", "%.4g wait on average, %s", math.Ceil(p.Backlog), drained)
	}
	row("holds at most", "%s requests a second; all workers busy do %s", rate(p.MaxRate), rate(p.Capacity))
	_, err := io.WriteString(out, b.String())
	return err
}

// rate rounds to six digits, downwards, so that a limit stays one.
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

// share writes a share in per cent.
func share(x float64) string {
	switch {
	case x > 0 && x < 1e-6:
		return "less than 0.0001 %"
	case x > 0.999 && x < 1:
		return "more than 99.9 %"
	}
	return strconv.FormatFloat(100*x, 'g', 3+min(1, int(x)), 64) + " %"
}

// seconds writes a duration in three or four digits.
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

// A number is allowed if in says so; none is how the field says 0.
type number struct {
	v    *float64
	want string
	in   func(float64) bool
	none float64
}

func (n *number) String() string { return "" }

func (n *number) Set(s string) error {
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsInf(v, 0) || !n.in(v) {
		return errors.New("want " + n.want)
	}
	if v == 0 {
		v = n.none
	}
	*n.v = v
	return nil
}

// A count of 0 is −1 in its field, where 0 stands for not given.
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
