package plan

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
)

// example is the published example of a burst with a deadline.
var example = Load{Rate: 100, Service: 50 * time.Millisecond, Burst: 5, BurstFor: 2 * time.Second, Deadline: time.Second}

func TestSourceExamples(t *testing.T) {
	l, err := example.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	mean := l.Service.Seconds()
	// The published example is without a margin, and leaves out the last request's
	// own service.
	for _, test := range []struct {
		workers     int
		least, most int64
	}{{8, 680, 152}, {17, 320, 323}} {
		if got := l.burstQueue(test.workers, 0); got != test.least {
			t.Errorf("%d workers: a burst needs %d, want %d", test.workers, got, test.least)
		}
		if got := l.deadlineQueue(test.workers, mean, 0) + 1; got != test.most {
			t.Errorf("%d workers: the deadline allows %d, want %d", test.workers, got, test.most)
		}
	}
	if l.burstQueue(16, 0) <= l.deadlineQueue(16, mean, 0)+1 {
		t.Error("16 workers: want a contradiction")
	}
	// With a margin of 1 % on both sides.
	p, err := For(example)
	if err != nil {
		t.Fatal(err)
	}
	if !p.Holds || p.Workers != 21 || p.Queue != 260 || *p.Bounds.Burst != 260 || *p.Bounds.Deadline != 283 {
		t.Errorf("got %d workers, queue %d, bounds %d to %d; want 21, 260, 260 to 283", p.Workers, p.Queue, *p.Bounds.Burst, *p.Bounds.Deadline)
	}
	if q := l.longService(); !near(q, .23, .001) {
		t.Errorf("99 %% of the services take up to %v s, want 0.23", q)
	}

	// The README's: rule 2 with a burst of 1 and of 10 seconds.
	for _, test := range []struct {
		d    time.Duration
		want float64
	}{{0, 175}, {time.Second, 175}, {10 * time.Second, 1750}} {
		p, err := For(Load{Rate: 100, Service: 2 * time.Second, Workers: 250, Burst: 3, BurstFor: test.d})
		if err != nil || !near(p.Backlog, test.want, 1e-12) || !near(p.Drain, test.want/25, 1e-12) || p.LeastWorkers != 201 {
			t.Errorf("burst of %v: %+v, %v", test.d, p, err)
		}
	}
}

// TestKnownQueue checks a plan against values that the tests of the formulas check.
func TestKnownQueue(t *testing.T) {
	p, err := For(Load{Rate: 10. / 180, Service: 180 * time.Second, Workers: 14, Queue: 30})
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range map[string][2]float64{
		"erlangs":       {p.Erlangs, 10},
		"utilisation":   {p.Utilisation, 10. / 14},
		"probability":   {p.Waiting.Probability, .1741319336},
		"mean":          {p.Waiting.Mean, 7.83593701177724},
		"p50":           {p.Waiting.P50, 0},
		"p90":           {p.Waiting.P90, 180. / 4 * math.Log(.1741319336/.1)},
		"p99":           {p.Waiting.P99, 180. / 4 * math.Log(.1741319336/.01)},
		"refused":       {p.Refused, birthDeath(14, 30, 10)[44]},
		"accepted wait": {p.AcceptedWait, 180 * AcceptedWait(14, 30, 10)},
		"full wait":     {p.FullWait, 30 * 180. / 14},
		"capacity":      {p.Capacity, 14. / 180},
	} {
		if !near(v[0], v[1], 1e-9) {
			t.Errorf("%s: %v, want %v", name, v[0], v[1])
		}
	}
	constant, err := For(Load{Rate: 10. / 180, Service: 180 * time.Second, Workers: 14, CV2: -1})
	if err != nil || !near(constant.Waiting.Mean, p.Waiting.Mean/2, 1e-12) || !near(constant.Waiting.P99, p.Waiting.P99/2, 1e-12) || constant.Waiting.Probability != p.Waiting.Probability {
		t.Errorf("constant service: %+v, %v", constant.Waiting, err)
	}
	varied, err := For(Load{Rate: 10. / 180, Service: 180 * time.Second, Workers: 14, CV2: 3})
	if err != nil || !near(varied.Waiting.Mean, 2*p.Waiting.Mean, 1e-12) {
		t.Errorf("varied service: %+v, %v", varied.Waiting, err)
	}
	for _, test := range []struct{ arrivals, service, want float64 }{{3, 0, 2}, {3, -1, 1.5}, {-1, 3, 1.5}, {-1, -1, 0}, {1, 0, 1}, {0, 1, 1}} {
		q, err := For(Load{Rate: 10. / 180, Service: 180 * time.Second, Workers: 14, Queue: 30, CV2: test.service, ArrivalCV2: test.arrivals})
		if err != nil || !near(q.Waiting.Mean, test.want*p.Waiting.Mean, 1e-12) || !near(q.Waiting.P99, test.want*p.Waiting.P99, 1e-12) ||
			q.Waiting.Probability != p.Waiting.Probability || q.Refused != p.Refused || q.AcceptedWait != p.AcceptedWait || q.MaxRate != p.MaxRate {
			t.Errorf("arrivals %v and service %v: %+v, %v", test.arrivals, test.service, q, err)
		}
	}
}

func TestLongService(t *testing.T) {
	// The 99 % quantiles of gamma distributions with mean 1 and variance 1/k, from
	// chi-squared tables: the quantile for 2k degrees of freedom, divided by 2k.
	for _, test := range []struct{ cv2, want float64 }{{-1, 1}, {.5, 13.2767 / 4}, {.2, 23.2093 / 10}, {.1, 37.5662 / 20}, {1, math.Log(100)}, {2, 6.6349}} {
		l, err := Load{Rate: 1, Service: time.Second, CV2: test.cv2}.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		if got := l.longService(); !near(got, test.want, .01) {
			t.Errorf("CV2 %v: %v, want %v", test.cv2, got, test.want)
		}
	}
	if z := (Load{MayRefuse: .01}).margin(); !near(z, 2.3263478740408408, 1e-12) {
		t.Errorf("margin of 1 %%: %v", z)
	}
	if z := (Load{MayRefuse: .9}).margin(); z != 0 {
		t.Errorf("margin of 90 %%: %v", z)
	}
}

// loads are the starting points for tests that change one field.
var loads = []Load{
	{Rate: 100, Service: 2 * time.Second},
	{Rate: .01, Service: time.Millisecond},
	{Rate: 5000, Service: 13 * time.Millisecond, CV2: 4, MayRefuse: 1e-6},
	{Rate: 100, Service: 290 * time.Millisecond, MayWait: 1},
	{Rate: 1000, Service: 20 * time.Millisecond, Deadline: 500 * time.Millisecond, MayWait: 1},
	{Rate: 1000, Service: 20 * time.Millisecond, CV2: -1, Queue: -1, MayRefuse: .001},
	{Rate: 50, Service: time.Second, Queue: 20, Burst: 2},
	example,
}

// TestLeast checks that the recommended workers and queue are sufficient, and that
// one fewer is not.
func TestLeast(t *testing.T) {
	plan := func(l Load) Plan {
		t.Helper()
		p, err := For(l)
		if err != nil {
			t.Fatal(err)
		}
		if p.Erlangs >= float64(p.LeastWorkers) || p.Erlangs < float64(p.LeastWorkers-1) {
			t.Errorf("%+v: least workers %d", l, p.LeastWorkers)
		}
		return p
	}
	given := func(queue int) int {
		if queue == 0 {
			return -1
		}
		return queue
	}
	for _, l := range loads {
		p := plan(l)
		if !p.Holds || p.Workers < p.LeastWorkers {
			t.Errorf("%+v: %+v", l, p)
		}
		again := l
		again.Workers, again.Queue = p.Workers, given(p.Queue)
		if q := plan(again); !q.Holds || q.Waiting.Probability > .2 && l.MayWait == 0 || q.Refused > .01 {
			t.Errorf("%+v: %+v", again, q)
		}
		if p.Queue > 0 && l.Queue == 0 {
			again.Queue = given(p.Queue - 1)
			if q := plan(again); q.Holds {
				t.Errorf("%+v: holds with one place fewer: %+v", again, q)
			}
		}
		if p.Workers > 1 {
			fewer := l
			fewer.Workers = p.Workers - 1
			if q := plan(fewer); q.Holds {
				t.Errorf("%+v: holds with one worker fewer: %+v", fewer, q)
			}
		}
		// The highest rate holds, a thousandth more does not.
		again = l
		again.Workers, again.Rate = p.Workers, p.MaxRate
		if q := plan(again); !q.Holds || p.MaxRate < p.Rate {
			t.Errorf("%+v: at its highest rate %+v", again, q)
		}
		again.Rate *= 1.001
		if q := plan(again); q.Holds {
			t.Errorf("%+v: above its highest rate %+v", again, q)
		}
		again.Rate = 0
		if q := plan(again); !q.Holds || !near(q.Rate, p.MaxRate, 1e-9) || q.Rate != q.MaxRate {
			t.Errorf("%+v: highest rate %v, want %v", again, q.Rate, p.MaxRate)
		}
	}
}

func TestMonotoneInWorkers(t *testing.T) {
	for _, l := range loads {
		held := false
		var last Plan
		first, err := For(l)
		if err != nil {
			t.Fatal(err)
		}
		for w := first.LeastWorkers; w < first.Workers+20; w++ {
			l.Workers = w
			p, err := For(l)
			if err != nil {
				t.Fatal(err)
			}
			if held && !p.Holds {
				t.Errorf("%+v: no longer holds: %v", l, p.Reasons)
			}
			if last.Workers > 0 && (p.Utilisation >= last.Utilisation || p.Waiting.Mean > last.Waiting.Mean || p.Waiting.P99 > last.Waiting.P99 ||
				p.Waiting.Probability > last.Waiting.Probability || p.Backlog > last.Backlog || p.Drain > last.Drain || p.MaxRate < last.MaxRate || *p.Bounds.Refusals > *last.Bounds.Refusals) {
				t.Errorf("%+v: worse with one worker more:\n%+v\n%+v", l, last, p)
			}
			held, last = p.Holds, p
		}
	}
}

func TestReasons(t *testing.T) {
	second := time.Second
	for _, test := range []struct {
		name  string
		load  Load
		holds bool
		want  string // in the reasons
	}{
		{"overload", Load{Rate: 120, Service: second, Workers: 100, Queue: 10000}, false, "No queue is long enough, only workers help: at least 121."},
		{"balance", Load{Rate: 100, Service: second, Workers: 100, MayWait: 1, MayRefuse: 1}, false, "at least 101."},
		{"too many wait", Load{Rate: 95, Service: second, Workers: 100}, false, "of the requests would wait for one of 100 workers; at most 20 % may."},
		{"what would do", Load{Rate: 95, Service: second, Workers: 100}, false, "106 workers are enough."},
		{"short queue", Load{Rate: 89, Service: second, Workers: 100, Queue: 2}, false, "With 100 workers and a queue of 2, more than 1 % of the requests are refused; the queue must be at least 7."},
		{"short queue for a burst", Load{Rate: 80, Service: second, Workers: 100, Queue: 70, Burst: 2}, false, "A burst needs a queue of at least 98 with 100 workers; 70 is too short."},
		{"what would do with the queue", Load{Rate: 80, Service: second, Workers: 100, Queue: 70, Burst: 2}, false, "workers are enough with this queue."},
		{"contradiction", Load{Rate: 100, Service: second / 20, Workers: 8, Burst: 5, BurstFor: 2 * second, Deadline: second}, false, "but the deadline allows at most 98. Only more workers help."},
		{"refusals against deadline", Load{Rate: 19, Service: second, Workers: 20, Deadline: 5 * second, MayWait: 1}, false, "refusing at most 1 % takes a queue of"},
		{"long queue", Load{Rate: 80, Service: second / 20, Workers: 10, Queue: 200, Deadline: second}, false, "is too long: the request in its last place is answered after the deadline"},
		{"slow work", Load{Rate: 10, Service: second, Deadline: 2 * second}, false, "Only a faster service helps."},
		{"no rate", Load{Service: second, Workers: 4, Deadline: 2 * second}, false, "cannot meet these limits at any rate"},
		{"hardly a rate", Load{Service: second, Workers: 4, MayWait: 1e-300}, false, "cannot meet these limits at any rate"},
		{"too many workers", Load{Rate: 999_999, Service: second, Queue: -1, MayRefuse: 1e-6}, false, "The planner stops at 1,000,000 workers"},
		{"too long a queue", Load{Rate: 80, Service: second, Workers: 100, Burst: 1e6}, false, "above the maximum of 10,000,000"},
		{"rule 1", Load{Rate: 100, Service: second, MayWait: 1}, true, "101 is the smallest number of workers above the 100"},
		{"one worker fewer", Load{Rate: 100, Service: second}, true, "would wait for one of 110 workers; at most 20 % may."},
		{"given and enough", Load{Rate: 80, Service: second, Workers: 100, Queue: 200}, true, "meet every limit"},
	} {
		p, err := For(test.load)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
		} else if got := strings.Join(p.Reasons, "\n"); p.Holds != test.holds || !strings.Contains(got, test.want) {
			t.Errorf("%s: holds %v:\n%s\nwant %v and %q", test.name, p.Holds, got, test.holds, test.want)
		}
	}
	if p, _ := For(Load{Rate: 120, Service: second, Workers: 100, Queue: 50, Burst: 2}); p.Waiting != nil || p.Bounds.Refusals != nil || p.Drain != -1 || !near(p.Refused, 1./6, .01) {
		t.Errorf("overload: %+v", p)
	}
}

// TestBounds compares the bounds of the queue with the published formulas, written
// down as published.
func TestBounds(t *testing.T) {
	const z, long = 2.5, 0.3 // any
	for i, cv2 := range []float64{0, .3, 1, 6} {
		ca2 := []float64{1, 5, 0, .2}[i]
		for _, w := range []int{1, 9, 26, 60} {
			l := Load{Rate: 100, Service: 130 * time.Millisecond, CV2: cv2, ArrivalCV2: ca2, Burst: 4, BurstFor: 3 * time.Second, Deadline: 5 * time.Second}
			mn, out, cs := 400.0, float64(w)/.13, math.Sqrt(cv2)
			if mn > out {
				if got, want := l.burstQueue(w, z), math.Ceil((mn-out)*3+z*math.Sqrt(3*(mn*ca2+out*cv2))); float64(got) != want {
					t.Errorf("CV2 %v, %d workers: a burst needs %d, want %v", cv2, w, got, want)
				}
			} else if got, want := l.burstQueue(w, z), max(0, math.Ceil((mn-out)*3+z*math.Sqrt(3*(mn*ca2+mn*cv2)))); float64(got) != want {
				t.Errorf("CV2 %v, %d workers: a burst they keep up with needs %d, want %v", cv2, w, got, want)
			}
			x := (-z*cs + math.Sqrt(z*z*cv2+4*out*(5-long))) / 2
			if got, want := l.deadlineQueue(w, long, z), math.Floor(x*x-1); float64(got) != want {
				t.Errorf("CV2 %v, %d workers: the deadline allows %d, want %v", cv2, w, got, want)
			}
		}
	}
	// The workers are just faster than the burst, so they would serve more than arrives.
	if got := (Load{Rate: 1, Service: time.Second, CV2: 1, ArrivalCV2: 1, Burst: 100, BurstFor: time.Second}).burstQueue(104, 2); got != 25 {
		t.Errorf("104 workers for a burst of 100: %d, want 25", got)
	}
	// 1.1·100 − 100 is a little above 10.
	if got := (Load{Rate: 100, Service: time.Second, Burst: 1.1, BurstFor: time.Second}).burstQueue(100, 0); got != 10 {
		t.Errorf("a burst of 110 a second: %d, want 10", got)
	}
	if got := (Load{Service: time.Second, CV2: 1, MayRefuse: .9}).longService(); got != 1 {
		t.Errorf("services longer than with probability 0.9: %v, want their mean", got)
	}
}

// TestLongestQueue has a queue that is just short enough for the deadline, and a
// burst that it cannot absorb.
func TestLongestQueue(t *testing.T) {
	l := Load{Rate: 100, Service: 50 * time.Millisecond, Workers: 21, Deadline: time.Second}
	for queue, holds := range map[int]bool{283: true, 284: false} {
		l.Queue = queue
		if p, err := For(l); err != nil || p.Holds != holds || holds == strings.Contains(p.Reasons[0], "too long") {
			t.Errorf("queue of %d: %+v, %v", queue, p, err)
		}
	}
	l.Queue, l.Burst = 32, 5
	if p, err := For(l); err != nil || p.Holds || !near(p.Backlog, 80, 1e-12) || !near(p.Drain, 32./320, 1e-12) {
		t.Errorf("full queue: %+v, %v", p, err)
	}
}

func TestLeastWorkersIsExact(t *testing.T) {
	// In floating point 100·0.29 is a little below 29 and 100·0.07 above 7.
	for ms, want := range map[int]int{290: 30, 70: 8, 289: 29, 291: 30, 1: 1, 10: 2} {
		p, err := For(Load{Rate: 100, Service: time.Duration(ms) * time.Millisecond})
		if err != nil || p.LeastWorkers != want {
			t.Errorf("%d ms: %d, want %d (%v)", ms, p.LeastWorkers, want, err)
		}
	}
}

func TestErrors(t *testing.T) {
	good := Load{Rate: 1, Service: time.Second}
	nan, inf := math.NaN(), math.Inf(1)
	change := func(f func(*Load)) Load { l := good; f(&l); return l }
	for _, test := range []struct {
		field, value string
		load         Load
	}{
		{"Rate", "", Load{Service: 1}},
		{"Rate", "-1", change(func(l *Load) { l.Rate = -1 })},
		{"Rate", "NaN", change(func(l *Load) { l.Rate = nan })},
		{"Rate", "+Inf", change(func(l *Load) { l.Rate = inf })},
		{"Rate", "1e+06", change(func(l *Load) { l.Rate = 1e6 })},
		{"Rate", "1e+300", change(func(l *Load) { l.Rate = 1e300 })},
		{"Service", "", Load{Rate: 1}},
		{"Service", "", Load{Workers: 1}},
		{"Service", "-1ns", change(func(l *Load) { l.Service = -1 })},
		{"CV2", "-2", change(func(l *Load) { l.CV2 = -2 })},
		{"CV2", "-0.5", change(func(l *Load) { l.CV2 = -.5 })},
		{"CV2", "NaN", change(func(l *Load) { l.CV2 = nan })},
		{"CV2", "+Inf", change(func(l *Load) { l.CV2 = inf })},
		{"ArrivalCV2", "-2", change(func(l *Load) { l.ArrivalCV2 = -2 })},
		{"ArrivalCV2", "NaN", change(func(l *Load) { l.ArrivalCV2 = nan })},
		{"ArrivalCV2", "+Inf", change(func(l *Load) { l.ArrivalCV2 = inf })},
		{"Burst", "0.5", change(func(l *Load) { l.Burst = .5 })},
		{"Burst", "-3", change(func(l *Load) { l.Burst = -3 })},
		{"Burst", "NaN", change(func(l *Load) { l.Burst = nan })},
		{"Burst", "+Inf", change(func(l *Load) { l.Burst = inf })},
		{"Burst", "", change(func(l *Load) { l.BurstFor = 1 })},
		{"BurstFor", "-1s", change(func(l *Load) { l.BurstFor = -time.Second })},
		{"Deadline", "-1s", change(func(l *Load) { l.Deadline = -time.Second })},
		{"MayWait", "-0.1", change(func(l *Load) { l.MayWait = -.1 })},
		{"MayWait", "1.1", change(func(l *Load) { l.MayWait = 1.1 })},
		{"MayWait", "NaN", change(func(l *Load) { l.MayWait = nan })},
		{"MayRefuse", "1e-13", change(func(l *Load) { l.MayRefuse = 1e-13 })},
		{"MayRefuse", "2", change(func(l *Load) { l.MayRefuse = 2 })},
		{"MayRefuse", "NaN", change(func(l *Load) { l.MayRefuse = nan })},
		{"Workers", "-1", change(func(l *Load) { l.Workers = -1 })},
		{"Workers", "1000001", change(func(l *Load) { l.Workers = 1000001 })},
		{"Queue", "-2", change(func(l *Load) { l.Queue = -2 })},
		{"Queue", "10000001", change(func(l *Load) { l.Queue = 10000001 })},
	} {
		_, err := For(test.load)
		var field *FieldError
		if !errors.As(err, &field) || field.Field != test.field || field.Value != test.value || field.Want == "" || flagOf[field.Field] == "" || !strings.HasPrefix(err.Error(), test.field+" is ") {
			t.Errorf("%s = %q: %v", test.field, test.value, err)
		}
	}
}

func BenchmarkFor(b *testing.B) {
	for name, l := range map[string]Load{
		"small":   example,
		"million": {Rate: 990_000, Service: time.Second, Burst: 1.01},
		"given":   {Rate: 990_000, Service: time.Second, Workers: MaxWorkers, Queue: MaxQueue},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := For(l); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// Where an int has 32 bits, a longer queue is not taken for a short one: the same
// sentences are told, and the bounds go as far as an int does.
func TestBoundsBeyondAnInt(t *testing.T) {
	load := Load{Rate: 999.999999, Service: time.Second, Burst: 1e6, BurstFor: time.Hour, Deadline: 1e6 * time.Hour, MayRefuse: 1e-12, MayWait: 1, Workers: 1000}
	p, err := For(load)
	if err != nil {
		t.Fatal(err)
	}
	if p.Holds || p.Queue != MaxQueue {
		t.Errorf("holds %v with a queue of %d, want false and %d", p.Holds, p.Queue, MaxQueue)
	}
	l, err := load.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	a, reasons := l.assess(load.Workers), strings.Join(p.Reasons, " ")
	for _, test := range []struct {
		name  string
		bound *int
		want  int64
		said  string
	}{
		{"refusals", p.Bounds.Refusals, a.refusals, fmt.Sprintf("takes a queue of %d,", a.refusals)},
		{"burst", p.Bounds.Burst, a.burst, fmt.Sprintf("A burst needs a queue of %d ", a.burst)},
		{"deadline", p.Bounds.Deadline, a.deadline, ""},
	} {
		switch {
		case test.want <= math.MaxInt32:
			t.Errorf("%s: %d, want more than 32 bits hold", test.name, test.want)
		case int64(*test.bound) != min(test.want, math.MaxInt):
			t.Errorf("%s: %d, want %d", test.name, *test.bound, min(test.want, math.MaxInt))
		case !strings.Contains(reasons, test.said):
			t.Errorf("%s: %q lacks %q", test.name, reasons, test.said)
		}
	}
	if n, ok := LeastQueue(1000, 1000, 1e-12); ok != (math.MaxInt > math.MaxInt32) {
		t.Errorf("%d, %v for a queue longer than 32 bits hold", n, ok)
	}
}
