package plan_test

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/plan"
)

// The formulas describe an ideal queue. These tests run the real dispatcher in
// virtual time and compare in two steps. First, every job must start at the same
// nanosecond as in an ideal queue with the same arrivals. Then both are compared
// with the formulas: at most points the dispatcher, over as many arrivals as a test
// can afford, and everywhere the ideal queue, which the first step has shown to be
// equivalent, over some millions. At a utilisation of 95 % a mean wait takes
// millions of arrivals: with fewer, the confidence intervals would be too wide to
// show anything.
//
// The race detector makes everything ten times slower. Under it, a tenth of the
// arrivals go through the dispatcher, and only the first step is done.
//
// The seeds are fixed. Do not change one because a test fails.

const (
	second  = int64(time.Second) // the mean service time of every point
	endless = 4096               // places, never all taken

	batches    = 65   // 64 degrees of freedom
	familyWise = 1e-4 // probability that any comparison fails if all models are right
	narrow     = 0.15 // greatest half width of an interval, relative to the value

	// A dispatcher's run of at least this many arrivals is compared with the
	// formulas too. At the other points that would take too long: with fewer
	// arrivals, the batches would depend on each other.
	enough = 40_000
)

// underRace reports whether the test was built with the race detector.
var underRace = func() bool {
	info, _ := debug.ReadBuildInfo()
	return info != nil && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}()

// A law draws service times with a mean of 1.
type law struct {
	name string
	cv2  float64 // as in plan.Load
	draw func(*rand.Rand) float64
}

// In the hyperexponential law, a share h2P of the jobs has a mean of 1/h2Mu1, the
// others have a mean of 1/h2Mu2. Each kind is half of the load.
var (
	h2P   = (1 + math.Sqrt((4.-1)/(4+1))) / 2
	h2Mu1 = 2 * h2P
	h2Mu2 = 2 * (1 - h2P)
)

var (
	exponential = law{"exponential", 1, (*rand.Rand).ExpFloat64}
	constant    = law{"constant", -1, func(*rand.Rand) float64 { return 1 }}
	erlang3     = law{"Erlang-3", 1. / 3, func(r *rand.Rand) float64 {
		return (r.ExpFloat64() + r.ExpFloat64() + r.ExpFloat64()) / 3
	}}
	hyper = law{"hyperexponential", 4, func(r *rand.Rand) float64 {
		if r.Float64() < h2P {
			return r.ExpFloat64() / h2Mu1
		}
		return r.ExpFloat64() / h2Mu2
	}}
)

// A source draws Poisson arrivals and their service times. The two have separate
// generators, so that all laws see the same arrivals.
type source struct {
	arrivals, services *rand.Rand
	law                law
	at                 float64 // of the last arrival, in seconds

	// rate returns the rate at a time, and when it changes next.
	rate func(at float64) (perSecond, until float64)
}

func newSource(seed uint64, l law, rate func(float64) (float64, float64)) *source {
	return &source{rand.New(rand.NewPCG(seed, 1)), rand.New(rand.NewPCG(seed, 2)), l, 0, rate}
}

func steady(rate float64) func(float64) (float64, float64) {
	return func(float64) (float64, float64) { return rate, math.Inf(1) }
}

// next returns when the next job arrives and how long it takes, in nanoseconds.
func (s *source) next() (at, service int64) {
	for {
		rate, until := s.rate(s.at)
		s.at += s.arrivals.ExpFloat64() / rate
		if s.at < until {
			break
		}
		s.at = until // arrivals are memoryless, so the draw can restart where the rate changes
	}
	return int64(s.at * float64(second)), max(int64(s.law.draw(s.services)*float64(second)), 1)
}

// A record describes an arrival; started is −1 if it was refused.
type record struct{ at, started, service int64 }

func (r record) accepted() bool { return r.started >= 0 }
func (r record) wait() int64    { return r.started - r.at }

// An ideal queue starts the job that has waited longest on the worker that is free
// first (Kiefer and Wolfowitz 1955).
type ideal struct {
	places  int
	free    []int64 // when each worker is free, a heap
	waiting []int64 // start times of the waiting jobs, in order, from head on
	head    int
}

func newIdeal(workers, places int) *ideal {
	return &ideal{places: places, free: make([]int64, workers)}
}

func (q *ideal) arrive(at, service int64) record {
	for q.head < len(q.waiting) && q.waiting[q.head] <= at {
		q.head++
	}
	if q.head == len(q.waiting) {
		q.waiting, q.head = q.waiting[:0], 0
	}
	start := max(at, q.free[0])
	if start > at {
		if len(q.waiting)-q.head >= q.places {
			return record{at, -1, service}
		}
		q.waiting = append(q.waiting, start)
	}
	i, end := 0, start+service
	for {
		least := 2*i + 1
		if least+1 < len(q.free) && q.free[least+1] < q.free[least] {
			least++
		}
		if least >= len(q.free) || q.free[least] >= end {
			break
		}
		q.free[i] = q.free[least]
		i = least
	}
	q.free[i] = end
	return record{at, start, service}
}

// serve runs the first n arrivals through a dispatcher. It checks each against the
// ideal queue, the run against Little's law, and the dispatcher's statistics
// against what its jobs saw.
func serve(t *testing.T, s *source, workers, places, n int) []record {
	if underRace {
		n /= 10
	}
	records := make([]record, n)
	synctest.Test(t, func(t *testing.T) {
		cfg := holdfast.Config{Workers: workers, Queue: places, Overflow: holdfast.Reject}
		if places == endless {
			cfg.Overflow = holdfast.Block
		}
		d, err := holdfast.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		epoch := time.Now()
		now := func() int64 { return int64(time.Since(epoch)) }
		type sample struct{ arrival, queued, running int }
		var samples []sample
		for i := range records {
			r := &records[i]
			r.at, r.service = s.next()
			time.Sleep(time.Duration(r.at - now()))
			if i%(n/97) == 0 { // all other goroutines are blocked here
				st := d.Stats()
				samples = append(samples, sample{i, st.Queued, st.Running})
			}
			r.at, r.started = now(), -1
			err := d.Go(context.Background(), func(context.Context) error {
				r.started = now()
				time.Sleep(time.Duration(r.service))
				return nil
			})
			if err != nil && !errors.Is(err, holdfast.ErrQueueFull) {
				t.Fatal(err)
			}
		}
		if _, err := d.Shutdown(context.Background()); err != nil {
			t.Fatal(err)
		}

		q := newIdeal(workers, places)
		for i, r := range records {
			if want := q.arrive(r.at, r.service); r != want {
				t.Fatalf("arrival %d: %+v; an ideal queue has %+v", i, r, want)
			}
		}
		for _, s := range samples {
			at, queued, running := records[s.arrival].at, 0, 0
			for _, r := range records[:s.arrival] {
				switch {
				case r.started > at:
					queued++
				case r.accepted() && r.started+r.service > at:
					running++
				}
			}
			if queued != s.queued || running != s.running {
				t.Fatalf("before arrival %d: Stats has %d queued and %d running, want %d and %d", s.arrival, s.queued, s.running, queued, running)
			}
		}
		compareStats(t, d.Stats(), records, now())
	})
	return records
}

// compareStats also checks Little's law. The run begins and ends empty, so the law
// holds exactly, not only on average.
func compareStats(t *testing.T, st holdfast.Stats, records []record, length int64) {
	var ins, outs, waits []int64
	var sum, services int64
	for _, r := range records {
		if r.accepted() {
			ins, outs, waits = append(ins, r.at), append(outs, r.started), append(waits, r.wait())
			sum += r.wait()
			services += r.service
		}
	}
	slices.Sort(outs)
	slices.Sort(waits)
	var area, last int64
	for i, o := 0, 0; o < len(outs); {
		next := outs[o]
		if i < len(ins) && ins[i] <= next {
			next = ins[i]
		}
		area += int64(i-o) * (next - last)
		last = next
		if i < len(ins) && ins[i] == next {
			i++
		} else {
			o++
		}
	}
	if area != sum {
		t.Errorf("Little's law: %d under the curve of the queue's length, %d waited", area, sum)
	}
	n := uint64(len(ins))
	queue := float64(area) / float64(length)
	if product := float64(n) / float64(length) * (st.Wait.Sum / float64(st.Wait.Count)); math.Abs(queue-product) > 1e-9*queue {
		t.Errorf("Little's law: a mean queue of %v, rate times mean wait is %v", queue, product)
	}
	if st.Accepted != n || st.Succeeded != n || st.Wait.Count != n || st.Run.Count != n || st.RefusedFull != uint64(len(records))-n {
		t.Errorf("Stats has %d accepted, %d succeeded, %d waits, %d runs, %d refused; want %d of %d", st.Accepted, st.Succeeded, st.Wait.Count, st.Run.Count, st.RefusedFull, n, len(records))
	}
	if math.Abs(st.Wait.Sum-float64(sum)) > 1e-9*float64(sum) || math.Abs(st.Run.Sum-float64(services)) > 1e-9*float64(services) {
		t.Errorf("Stats has %v of waits and %v of runs; want %d and %d", st.Wait.Sum, st.Run.Sum, sum, services)
	}
	for _, q := range []float64{0.5, 0.9, 0.99} {
		exact := waits[int(math.Ceil(q*float64(n)))-1]
		if got := int64(st.Wait.Quantile(q)); got < exact || float64(got) > 1.125*float64(exact) {
			t.Errorf("Stats has a quantile %v of %d; want %d or up to an eighth more", q, got, exact)
		}
	}
}

// A quantity is a mean over the arrivals, with the value that a model predicts.
type quantity struct {
	name string
	want float64
	of   kind
	t    int64
}

type kind int

const (
	theWait    kind = iota // wait of accepted arrivals, in seconds
	waitsAbove             // share of accepted arrivals that wait longer than t
	isRefused              // share of all arrivals that are refused
)

func meanWait(want float64) quantity { return quantity{"mean wait", want, theWait, 0} }

func beyond(name string, t, want float64) quantity {
	return quantity{name, want, waitsAbove, int64(t * float64(second))}
}

func refused(want float64) quantity { return quantity{"refused", want, isRefused, 0} }

// A tally holds the sums of a quantity by batch.
type tally struct {
	quantity
	value, count [batches]float64
}

func (y *tally) add(batch int, r record) {
	v := 0.
	switch y.of {
	case isRefused:
		if !r.accepted() {
			v = 1
		}
	case theWait:
		v = float64(r.wait()) / float64(second)
	case waitsAbove:
		if r.wait() > y.t {
			v = 1
		}
	}
	if y.of == isRefused || r.accepted() {
		y.value[batch] += v
		y.count[batch]++
	}
}

// result returns the quantity's value and how far it may be from that of a right
// model. It uses the sums of value − want by batch: under a right model their mean
// is 0 even if the number of accepted arrivals varies.
func (y *tally) result(quantile float64) (value, halfWidth float64) {
	var sum, count, squares float64
	for i := range batches {
		sum += y.value[i]
		count += y.count[i]
	}
	mean := (sum - y.want*count) / batches
	for i := range batches {
		d := y.value[i] - y.want*y.count[i] - mean
		squares += d * d
	}
	return sum / count, quantile * math.Sqrt(squares/(batches-1)/batches) / (count / batches)
}

// studentT returns the value that |T| exceeds with probability p, for Student's t
// with an even number of degrees of freedom (Abramowitz and Stegun 26.7.4).
func studentT(freedom int, p float64) float64 {
	low, high := 0., 1e6
	for range 100 {
		t := (low + high) / 2
		sin, cos := math.Sincos(math.Atan(t / math.Sqrt(float64(freedom))))
		sum, term := 0., 1.
		for k := 2; k <= freedom; k += 2 {
			sum += term
			term *= cos * cos * float64(k-1) / float64(k)
		}
		if 1-sin*sum > p {
			low = t
		} else {
			high = t
		}
	}
	return high
}

func TestStudentT(t *testing.T) {
	// Abramowitz and Stegun, table 26.10; 2 degrees in closed form.
	for _, test := range []struct {
		freedom int
		p, want float64
	}{{10, .05, 2.228}, {30, .001, 3.646}, {60, .01, 2.660}, {120, .001, 3.373}, {2, .05, 4.3027}} {
		if got := studentT(test.freedom, test.p); math.Abs(got-test.want) > 6e-4 {
			t.Errorf("%d degrees, %v: %v, want %v", test.freedom, test.p, got, test.want)
		}
	}
}

// A point is a system with an exact model.
type point struct {
	name     string
	workers  int
	places   int
	used     float64 // utilisation
	law      law
	seed     uint64
	arrivals int // through the dispatcher
	longer   int // through the ideal queue
}

var points = []point{
	{"M/M/1 at 50%", 1, endless, 0.5, exponential, 1, 80_000, 1_500_000},
	{"M/M/1 at 80%", 1, endless, 0.8, exponential, 2, 200_000, 1_500_000},
	{"M/M/1 at 95%", 1, endless, 0.95, exponential, 3, 20_000, 18_000_000},
	{"M/M/2 at 70%", 2, endless, 0.7, exponential, 4, 160_000, 5_500_000},
	{"M/M/4 at 90%", 4, endless, 0.9, exponential, 5, 20_000, 5_000_000},
	{"M/M/10 at 80%", 10, endless, 0.8, exponential, 6, 20_000, 1_500_000},
	{"M/M/20 at 95%", 20, endless, 0.95, exponential, 7, 20_000, 18_000_000},
	{"M/M/5 and no place at 100%", 5, 0, 1, exponential, 8, 40_000, 1_000_000},
	{"M/M/1 and 3 places at 80%", 1, 3, 0.8, exponential, 9, 40_000, 1_000_000},
	{"M/M/4 and 8 places at 95%", 4, 8, 0.95, exponential, 10, 150_000, 1_000_000},
	{"M/M/10 and 19 places at 90%", 10, 19, 0.9, exponential, 11, 290_000, 2_500_000},
	{"M/M/2 and 5 places at 120%", 2, 5, 1.2, exponential, 12, 60_000, 1_000_000},
	{"M/D/1 at 70%", 1, endless, 0.7, constant, 13, 100_000, 1_000_000},
	{"M/D/1 at 95%", 1, endless, 0.95, constant, 14, 800_000, 8_000_000},
	{"M/H2/1 at 60%", 1, endless, 0.6, hyper, 15, 180_000, 1_500_000},
	{"M/E3/1 at 85%", 1, endless, 0.85, erlang3, 16, 220_000, 1_000_000},
}

func (p point) rate() float64 { return float64(p.workers) * p.used }

func (p point) plan(t *testing.T) plan.Plan {
	l := plan.Load{Rate: p.rate(), Service: time.Second, CV2: p.law.cv2, Workers: p.workers, Queue: p.places}
	if p.places == 0 {
		l.Queue = -1
	}
	a, err := plan.For(l)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// quantities returns what the planner predicts, and what other models predict
// where the planner does not.
func (p point) quantities(t *testing.T) []quantity {
	a := p.plan(t)
	if p.places < endless {
		if p.places == 0 {
			return []quantity{refused(a.Refused)}
		}
		mean := a.AcceptedWait
		return []quantity{
			meanWait(mean),
			refused(a.Refused),
			beyond("any wait", 0, p.waitBeyond(0)),
			beyond("beyond the mean", mean, p.waitBeyond(mean)),
			beyond("beyond twice the mean", 2*mean, p.waitBeyond(2*mean)),
		}
	}
	qs := []quantity{meanWait(a.Waiting.Mean), beyond("any wait", 0, a.Waiting.Probability)}
	switch p.law.name {
	case "exponential":
		if a.Waiting.P50 > 0 {
			qs = append(qs, beyond("beyond p50", a.Waiting.P50, 0.5))
		}
		qs = append(qs, beyond("beyond p90", a.Waiting.P90, 0.1))
		if p.used <= 0.7 { // above, the interval stays too wide
			qs = append(qs, beyond("beyond p99", a.Waiting.P99, 0.01))
		}
	case "constant", "hyperexponential":
		qs = append(qs, beyond("beyond p80", p.exceeded(0.2), 0.2), beyond("beyond p90", p.exceeded(0.1), 0.1))
	}
	return qs
}

// waitBeyond returns the share of accepted jobs that wait longer than t, for
// exponential service and a bounded queue. A job that finds w + j others waits
// until j + 1 services have ended, at a rate of w per second; it waits longer than
// t if at most j end within t. The states form a birth-death process.
func (p point) waitBeyond(t float64) float64 {
	odds, all, beyond := 1., 0., 0.
	w := float64(p.workers)
	for n := range p.workers + p.places {
		all += odds
		if n < p.workers {
			odds *= p.rate() / float64(n+1)
			continue
		}
		term, atMost := math.Exp(-w*t), 0.
		for k := range n - p.workers + 1 {
			atMost += term
			term *= w * t / float64(k+1)
		}
		beyond += odds * atMost
		odds *= p.used
	}
	return beyond / all
}

// exceeded returns the time that a share q of the waits for one worker exceed.
func (p point) exceeded(q float64) float64 {
	low, high := 0., 1000.
	if p.law.name == "constant" {
		high = 30 // the sum alternates and loses its digits further out
	}
	for range 60 {
		if t := (low + high) / 2; p.tail(t) > q {
			low = t
		} else {
			high = t
		}
	}
	return high
}

// tail returns the share of waits beyond t. For constant service it is Erlang's
// sum (1909). For hyperexponential service it inverts the Pollaczek-Khinchine
// transform, whose denominator is a quadratic polynomial.
func (p point) tail(t float64) float64 {
	r := p.used
	if p.law.name == "constant" {
		sum := 0.
		for k := 0; k <= int(t); k++ {
			x, term := r*(float64(k)-t), 1.
			for i := 1; i <= k; i++ {
				term *= x / float64(i)
			}
			sum += term * math.Exp(-x)
		}
		return 1 - (1-r)*sum
	}
	b := h2Mu1 + h2Mu2 - r
	c := h2Mu1*h2Mu2 - r*(h2P*h2Mu2+(1-h2P)*h2Mu1)
	root := math.Sqrt(b*b - 4*c)
	x, y := (b-root)/2, (b+root)/2
	part := func(x, y float64) float64 {
		return (1 - r) * (h2Mu1 - x) * (h2Mu2 - x) / (y - x) / x * math.Exp(-x*t)
	}
	return part(x, y) + part(y, x)
}

func TestEngineFollowsModels(t *testing.T) {
	var all [][]quantity
	comparisons := 0
	for _, p := range points {
		qs := p.quantities(t)
		all = append(all, qs)
		comparisons += len(qs)
		if p.arrivals >= enough {
			comparisons += len(qs)
		}
	}
	quantile := studentT(batches-1, familyWise/float64(comparisons))
	t.Logf("%d comparisons, each within %.2f standard errors", comparisons, quantile)
	for i, p := range points {
		t.Run(p.name, func(t *testing.T) {
			records := serve(t, newSource(p.seed, p.law, steady(p.rate())), p.workers, p.places, p.arrivals)
			if underRace {
				return
			}
			if p.arrivals >= enough {
				widths := compare(t, "dispatcher", all[i], quantile, len(records), func(i int) record { return records[i] })
				if widths[0] > narrow { // the number of arrivals is chosen for the first quantity
					t.Errorf("dispatcher: an interval of ±%.0f %% is too wide to show anything", 100*widths[0])
				}
			}
			s, q := newSource(p.seed, p.law, steady(p.rate())), newIdeal(p.workers, p.places)
			widths := compare(t, "ideal", all[i], quantile, p.longer, func(int) record { return q.arrive(s.next()) })
			if widest := slices.Max(widths); widest > narrow {
				t.Errorf("ideal: an interval of ±%.0f %% is too wide to show anything", 100*widest)
			}
		})
	}
}

// compare tests each quantity and returns the half widths of the intervals,
// relative to the values. It skips the first twentieth, since the system starts
// empty.
func compare(t *testing.T, name string, qs []quantity, quantile float64, n int, next func(int) record) (widths []float64) {
	for _, y := range collect(qs, n, next) {
		value, half := y.result(quantile)
		t.Logf("%-10s %-21s %.5g, model %.5g, off by %+.2f %% of ±%.1f %%", name, y.name, value, y.want, 100*(value/y.want-1), 100*half/y.want)
		if !(math.Abs(value-y.want) <= half) {
			t.Errorf("%s: %s is %v ± %v, but the model has %v", name, y.name, value, half, y.want)
		}
		widths = append(widths, half/y.want)
	}
	return widths
}

func collect(qs []quantity, n int, next func(int) record) []tally {
	tallies := make([]tally, len(qs))
	for k, q := range qs {
		tallies[k].quantity = q
	}
	warmUp := n / 20
	for i := range warmUp {
		next(i)
	}
	i := warmUp
	for batch := range batches {
		for ; i < warmUp+(n-warmUp)*(batch+1)/batches; i++ {
			r := next(i)
			for k := range tallies {
				tallies[k].add(batch, r)
			}
		}
	}
	return tallies
}

// TestEngineNearApproximations bounds the planner's error where it has no exact
// model: some per cent of the mean wait, a factor of two of the refusals. The
// bounds hold for these points only, not for the approximations in general.
func TestEngineNearApproximations(t *testing.T) {
	quantile := studentT(batches-1, familyWise/20)
	for _, test := range []struct {
		point
		low, high float64 // the planner's mean wait or refusals, divided by the measured ones
		most      float64 // share of waits beyond the planner's p99
	}{
		{point{"M/D/4 at 80%", 4, endless, 0.8, constant, 21, 20_000, 1_500_000}, 0.9, 1, 0.012},
		{point{"M/D/10 at 90%", 10, endless, 0.9, constant, 22, 20_000, 2_500_000}, 0.9, 1, 0.012},
		{point{"M/E3/4 at 80%", 4, endless, 0.8, erlang3, 23, 20_000, 1_500_000}, 0.95, 1, 0.012},
		{point{"M/H2/2 at 70%", 2, endless, 0.7, hyper, 24, 20_000, 1_500_000}, 1, 1.1, 0.02},
		{point{"M/H2/10 at 80%", 10, endless, 0.8, hyper, 25, 20_000, 3_000_000}, 1, 1.25, 0.015},
		{point{"M/D/4 and 8 places at 95%", 4, 8, 0.95, constant, 26, 20_000, 1_000_000}, 1, 2.2, 0},
		{point{"M/H2/4 and 8 places at 95%", 4, 8, 0.95, hyper, 27, 20_000, 1_000_000}, 0.6, 1, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := test.point
			serve(t, newSource(p.seed, p.law, steady(p.rate())), p.workers, p.places, p.arrivals)
			if underRace {
				return
			}
			a := p.plan(t)
			qs := []quantity{refused(a.Refused)}
			if p.places == endless {
				qs = []quantity{meanWait(a.Waiting.Mean), beyond("any wait", 0, a.Waiting.Probability), beyond("beyond p90", a.Waiting.P90, 0.1), beyond("beyond p99", a.Waiting.P99, 0.01)}
			}
			s, q := newSource(p.seed, p.law, steady(p.rate())), newIdeal(p.workers, p.places)
			for i, y := range collect(qs, p.longer, func(int) record { return q.arrive(s.next()) }) {
				value, half := y.result(quantile)
				t.Logf("%-10s %.4g ± %.1f %%, the planner predicts %.4g: %+.1f %%", y.name, value, 100*half/value, y.want, 100*(y.want/value-1))
				if ratio := y.want / value; i == 0 && !(ratio >= test.low && ratio <= test.high && half <= narrow*value) {
					t.Errorf("%s: the planner predicts %.3f times what was measured, ± %.0f %%; want %v to %v", y.name, ratio, 100*half/value, test.low, test.high)
				}
				if y.name == "beyond p99" && value > test.most {
					t.Errorf("%v wait longer than the planner's p99, want at most %v", value, test.most)
				}
			}
		})
	}
}

// TestEngineAbsorbsBursts uses the load of the package's example with a service
// time of a second, and a burst in the middle of every 200 seconds.
func TestEngineAbsorbsBursts(t *testing.T) {
	const period, from = 200, 80
	p, err := plan.For(plan.Load{Rate: 5, Service: time.Second, Burst: 5, BurstFor: 40 * time.Second, Deadline: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	rate := func(at float64) (float64, float64) {
		began := at - math.Mod(at, period)
		switch at -= began; {
		case at < from:
			return p.Rate, began + from
		case at < from+40:
			return 5 * p.Rate, began + from + 40
		}
		return p.Rate, began + period
	}
	serve(t, newSource(31, exponential, rate), p.Workers, p.Queue, 40_000)
	if underRace {
		return
	}

	const bursts = 2000
	s, q := newSource(31, exponential, rate), newIdeal(p.Workers, p.Queue)
	r := q.arrive(s.next())
	var overflown, accepted, late, atEnd, drain float64
	for b := range int64(bursts) {
		end := (b*period + from + 40) * second
		full, empty := false, end
		for ; r.at < (b+1)*period*second; r = q.arrive(s.next()) {
			if !r.accepted() {
				full = true
				continue
			}
			accepted++
			if r.started+r.service > r.at+20*second {
				late++
			}
			if r.at < end && r.started > end {
				atEnd++
			}
			if r.at < empty {
				empty = max(empty, r.started)
			}
		}
		if full {
			overflown++
		}
		drain += float64(empty-end) / float64(second)
	}
	atEnd /= bursts
	drain /= bursts
	t.Logf("%d workers, queue %d: %.2f %% of the bursts overflow, %.3f %% of the answers late, planned for 1 %%", p.Workers, p.Queue, 100*overflown/bursts, 100*late/accepted)
	t.Logf("backlog %.1f, planned %.1f: %+.1f %%; drained in %.2f s, planned %.2f s: %+.1f %%", atEnd, p.Backlog, 100*(p.Backlog/atEnd-1), drain, p.Drain, 100*(p.Drain/drain-1))
	if most := 0.01 + 5*math.Sqrt(0.01*0.99/bursts); overflown/bursts > most || late/accepted > 0.01 {
		t.Errorf("%v of the bursts overflow, want at most %v; %v of the answers are late, want at most 0.01", overflown/bursts, most, late/accepted)
	}
	if b := p.Backlog / atEnd; b < 0.9 || b > 1.25 {
		t.Errorf("the mean backlog is %v, planned %v", atEnd, p.Backlog)
	}
	if d := p.Drain / drain; d < 0.9 || d > 1.25 {
		t.Errorf("the backlog drains in %v s, planned %v s", drain, p.Drain)
	}
}
