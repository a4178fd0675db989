package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/plan"
)

// A scene is a load on a dispatcher that is sampled every second of virtual time. The
// seeds are fixed. A test that fails is not given another seed.
type scene struct {
	workers, queue int // as in holdfast.Config
	overflow       holdfast.Overflow
	seconds        int
	service        func(*rand.Rand) float64 // in seconds

	// rate returns the rate of Poisson arrivals at a time. It changes at full
	// seconds only.
	rate func(second int) float64

	// clients is how many clients send their next request after each answer, besides
	// the arrivals.
	clients int

	// at is called at the beginning of each second, after the mark was made.
	at func(second int, d *holdfast.Dispatcher)
}

func (s scene) marks(t *testing.T, seed uint64) (marks []mark) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		d, err := holdfast.New(holdfast.Config{Workers: s.workers, Queue: s.queue, Overflow: s.overflow})
		if err != nil {
			t.Fatal(err)
		}
		arrivals, services := rand.New(rand.NewPCG(seed, 1)), rand.New(rand.NewPCG(seed, 2))
		ctx, cancel := context.WithCancel(t.Context())
		job := func() func(context.Context) error {
			took := time.Duration(s.service(services) * 1e9)
			return func(context.Context) error {
				time.Sleep(took)
				return nil
			}
		}
		for i := range s.clients {
			mine := rand.New(rand.NewPCG(seed, uint64(3+i)))
			go func() {
				for ctx.Err() == nil {
					took := time.Duration(s.service(mine) * 1e9)
					d.Do(ctx, func(context.Context) error {
						time.Sleep(took)
						return nil
					})
				}
			}()
		}
		began := time.Now()
		next := 0.0
		for second := range s.seconds + 1 {
			time.Sleep(time.Duration(second)*time.Second - time.Since(began))
			synctest.Wait()
			marks = append(marks, mark{time.Now(), d.Stats()})
			if s.at != nil {
				s.at(second, d)
			}
			// Poisson arrivals have no memory, so each second can begin anew.
			for next = float64(second); s.rate != nil; {
				if next += arrivals.ExpFloat64() / s.rate(second); next >= float64(second+1) {
					break
				}
				time.Sleep(time.Duration(next*1e9) - time.Since(began))
				job := job()
				if s.overflow == holdfast.Block {
					go d.Go(ctx, job) // who waits must not hold up the next arrival
				} else {
					d.Go(ctx, job)
				}
			}
		}
		cancel()
		if _, err := d.Shutdown(context.Background()); err != nil && s.workers > 0 { // paused, it abandons what is queued
			t.Error(err)
		}
	})
	return marks
}

func steady(rate float64) func(int) float64 { return func(int) float64 { return rate } }

func exponential(mean float64) func(*rand.Rand) float64 {
	return func(r *rand.Rand) float64 { return mean * r.ExpFloat64() }
}

func constant(d float64) func(*rand.Rand) float64 { return func(*rand.Rand) float64 { return d } }

// advised returns the advice for marks, and fails unless there is one.
func advised(t *testing.T, marks []mark) Advice {
	t.Helper()
	a := advise(marks)
	text, err := json.MarshalIndent(a, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", text)
	if a.Missing != "" {
		t.Fatal(a.Missing)
	}
	return a
}

func within(t *testing.T, name string, got, low, high float64) {
	t.Helper()
	if !(got >= low && got <= high) {
		t.Errorf("%s: %v, want %v to %v", name, got, low, high)
	}
}

func says(t *testing.T, name string, list []string, want string) {
	t.Helper()
	if !strings.Contains(strings.Join(list, "\n"), want) {
		t.Errorf("%s: %q, want one with %q", name, list, want)
	}
}

// TestAdviceIsOfTheLoad uses loads of known rate, service and variation. Apart from
// chance, the advice must be what plan says for them.
func TestAdviceIsOfTheLoad(t *testing.T) {
	for _, test := range []struct {
		name       string
		scene      scene
		rate, mean float64
		cv2        float64 // of the service
		holds      bool
		ratio      [2]float64 // of the waits; none with 0
	}{
		{"a third used", scene{workers: 10, queue: 50, service: exponential(0.1)}, 33, 0.1, 1, true, [2]float64{}},
		{"70 %", scene{workers: 4, queue: 100, service: exponential(0.1)}, 28, 0.1, 1, false, [2]float64{0.7, 1.4}},
		{"80 %", scene{workers: 10, queue: 100, service: exponential(0.1)}, 80, 0.1, 1, false, [2]float64{0.7, 1.4}},
		{"80 % of one", scene{workers: 1, queue: 100, service: exponential(0.02)}, 40, 0.02, 1, false, [2]float64{0.7, 1.4}},
		{"80 %, constant", scene{workers: 10, queue: 100, service: constant(0.1)}, 80, 0.1, 0, false, [2]float64{0.6, 1.6}},
		{"80 %, mixed", scene{workers: 10, queue: 100, service: func(r *rand.Rand) float64 {
			if r.IntN(10) == 0 {
				return 0.55
			}
			return 0.05
		}}, 80, 0.1, 2.25, false, [2]float64{0.6, 1.6}},
		{"90 %, few places", scene{workers: 10, queue: 5, service: exponential(0.1)}, 90, 0.1, 1, false, [2]float64{0.7, 1.4}},
		{"90 %, few places, refused", scene{workers: 10, queue: 5, service: exponential(0.1), overflow: holdfast.Reject}, 90, 0.1, 1, false, [2]float64{0.8, 1.25}},
		{"overload, refused", scene{workers: 10, queue: 20, service: exponential(0.1), overflow: holdfast.Reject}, 120, 0.1, 1, false, [2]float64{0.8, 1.25}},
		{"overload, dropped", scene{workers: 10, queue: 20, service: exponential(0.1), overflow: holdfast.DropOldest}, 120, 0.1, 1, false, [2]float64{0.8, 1.25}},
		{"twice the capacity, dropped", scene{workers: 5, queue: 5, service: exponential(0.1), overflow: holdfast.DropOldest}, 100, 0.1, 1, false, [2]float64{0.8, 1.25}},
		{"overload, blocked", scene{workers: 10, queue: 20, service: exponential(0.1)}, 120, 0.1, 1, false, [2]float64{0.8, 1.25}},
		{"no places", scene{workers: 20, queue: 0, service: exponential(0.1), overflow: holdfast.Reject}, 100, 0.1, 1, true, [2]float64{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := test.scene
			s.seconds, s.rate = 300, steady(test.rate)
			a := advised(t, s.marks(t, 1))
			within(t, "window", a.Window, 300, 300)
			within(t, "rate", a.Arrivals/test.rate, 0.96, 1.04)
			within(t, "arrival CV2", *a.ArrivalCV2, 0.75, 1.25)
			within(t, "service", *a.Service/test.mean, 0.95, 1.05)
			within(t, "service CV2", *a.ServiceCV2, 0.85*test.cv2, 1.15*test.cv2)
			if a.Burst != nil {
				t.Errorf("a burst where there was none: %+v", a.Burst)
			}
			load := plan.Load{Rate: test.rate, Service: time.Duration(test.mean * 1e9), Workers: s.workers, Queue: cmp.Or(s.queue, -1)} // in a plan 0 is for it to choose
			want, err := plan.For(load)
			if err != nil {
				t.Fatal(err)
			}
			load.Workers, load.Queue = 0, 0
			choice, err := plan.For(load)
			if err != nil {
				t.Fatal(err)
			}
			if *a.Holds != test.holds || want.Holds != test.holds {
				t.Errorf("holds: %v, plan says %v, want %v", *a.Holds, want.Holds, test.holds)
			}
			within(t, "load", *a.Load/want.Erlangs, 0.94, 1.06)
			within(t, "utilisation", *a.Utilisation, 0.94*want.Utilisation, 1.06*want.Utilisation)
			within(t, "greatest rate", *a.MaxRate/want.MaxRate, 0.95, 1.05)
			within(t, "headroom", *a.Headroom, *a.MaxRate-a.Arrivals, *a.MaxRate-a.Arrivals)
			within(t, "workers", float64(*a.Workers)/float64(choice.Workers), 0.9, 1.1)
			if len(a.Reasons) == 0 || len(a.Why) == 0 || a.Wait.Note == "" {
				t.Errorf("reasons %q, why %q, note %q", a.Reasons, a.Why, a.Wait.Note)
			}
			if strings.Contains(strings.Join(a.Reasons, "\n"), "others that still run") {
				t.Errorf("reasons: %q", a.Reasons)
			}
			if test.ratio[0] > 0 {
				within(t, "measured by predicted wait", *a.Wait.Ratio, test.ratio[0], test.ratio[1])
			}
			if got := strings.Contains(strings.Join(a.Reasons, "\n"), "no request is refused"); got != (test.name == "90 %, few places") {
				t.Errorf("reasons: %q", a.Reasons)
			}
			note := "The prediction is within a factor of two"
			switch {
			case test.ratio[0] == 0:
				note = "Jobs hardly wait"
			case *a.Utilisation > 1:
				note = "as predicted, the queue is full"
			}
			says(t, "note", []string{a.Wait.Note}, note)
			if strings.Contains(a.Wait.Note, "chance alone") {
				t.Errorf("note: %q", a.Wait.Note)
			}
			if a.Wait.Ratio != nil {
				within(t, "ratio", *a.Wait.Ratio**a.Wait.Predicted / *a.Wait.Measured, 1-1e-9, 1+1e-9)
			}
		})
	}
}

// TestAdviceSeesABurst uses five times the rate for eight seconds. A queue of the
// advised length absorbs it.
func TestAdviceSeesABurst(t *testing.T) {
	rate := func(second int) float64 {
		if second >= 200 && second < 208 {
			return 250
		}
		return 50
	}
	s := scene{workers: 80, queue: 60, seconds: 300, service: exponential(1), rate: rate, overflow: holdfast.Reject}
	a := advised(t, s.marks(t, 2))
	within(t, "rate", a.Arrivals, 53, 58)
	if a.Burst == nil {
		t.Fatal("no burst")
	}
	within(t, "seconds", a.Burst.Seconds, 8, 9)
	within(t, "factor", a.Burst.Factor*a.Arrivals, 220, 270)
	within(t, "arrival CV2 outside of the burst", *a.ArrivalCV2, 0.75, 1.25)
	if *a.Holds {
		t.Error("60 places hold 8 s of 250 arrivals a second against 80 workers")
	}
	says(t, "reasons", a.Reasons, "A burst needs a queue of")
	says(t, "reasons", a.Reasons, "found the queue full")
	says(t, "why", a.Why, "absorbs another burst like this one. A request in its last place waits")
	refused := a

	s.workers, s.queue = *a.Workers, *a.Queue
	a = advised(t, s.marks(t, 3))
	for _, reason := range a.Reasons {
		if strings.Contains(reason, "found the queue full") {
			t.Errorf("with the %d workers and %d places advised: %s", s.workers, s.queue, reason)
		}
	}
	within(t, "workers advised before and after", float64(*a.Workers)/float64(*refused.Workers), 0.9, 1.1)
	if a.Wait.Ratio == nil || *a.Wait.Ratio < 2 {
		t.Error("the wait in a burst was predicted")
	}
	says(t, "note", []string{a.Wait.Note}, "longer than predicted: requests arrive in bursts")
}

// TestAdviceBeginsAnewAfterAResize uses too few workers for 100 s and then enough.
func TestAdviceBeginsAnewAfterAResize(t *testing.T) {
	s := scene{workers: 10, queue: 1000, service: exponential(0.1), rate: steady(120)}
	s.at = func(second int, d *holdfast.Dispatcher) {
		if second == 100 {
			if err := d.Resize(40); err != nil {
				t.Error(err)
			}
		}
	}
	s.seconds = 100
	before := advised(t, s.marks(t, 4))
	if *before.Holds || *before.Utilisation < 1 || *before.Headroom > 0 {
		t.Errorf("10 workers: %+v", before)
	}
	says(t, "reasons", before.Reasons, "only workers help")
	says(t, "note", []string{before.Wait.Note}, "cannot keep up")

	s.seconds = 105
	soon := advise(s.marks(t, 4))
	if soon.Missing == "" || soon.Window != 4 || soon.Holds != nil || soon.Workers != nil || soon.Wait.Predicted != nil {
		t.Errorf("4 s after the resize: %+v", soon)
	}
	says(t, "missing", []string{soon.Missing}, "In the 4 s since the last change of workers or queue there were")

	s.seconds = 200
	after := advised(t, s.marks(t, 4))
	within(t, "window", after.Window, 99, 99)
	if !*after.Holds || *after.Headroom < 100 {
		t.Errorf("40 workers: %+v", after)
	}
	if *after.Wait.Predicted != 0 || after.Wait.Ratio != nil {
		t.Errorf("30 %% used: %v predicted, ratio %v", *after.Wait.Predicted, after.Wait.Ratio)
	}
	says(t, "note", []string{after.Wait.Note}, "jobs were waiting already when the measurement began")
}

func TestAdviceWhilePaused(t *testing.T) {
	s := scene{workers: 0, queue: 100, seconds: 30, service: constant(1), rate: steady(1)}
	a := advise(s.marks(t, 5))
	says(t, "missing", []string{a.Missing}, "There are no workers")
	within(t, "rate", a.Arrivals, 0.5, 1.5)
	if a.Holds != nil || a.Service != nil || a.Wait.Measured != nil {
		t.Errorf("with no workers: %+v", a)
	}
}

// TestAdviceForAClosedLoop uses clients that send the next request after each answer,
// as load generators do, and more of them than there are workers and places.
func TestAdviceForAClosedLoop(t *testing.T) {
	a := advised(t, scene{workers: 10, queue: 5, seconds: 300, service: exponential(0.1), clients: 40}.marks(t, 6))
	within(t, "rate", a.Arrivals, 95, 105)
	within(t, "utilisation", *a.Utilisation, 0.98, 1.02)
	if *a.Holds {
		t.Error("holds")
	}
	says(t, "reasons", a.Reasons, "Up to 25 requests at a time waited for a place in the queue.")
	says(t, "reasons", a.Reasons, "While overflow is block, no request is refused")
	says(t, "why", a.Why, "at most 1 % of the requests are refused")
	within(t, "measured by predicted wait", *a.Wait.Ratio, 0.8, 1.25)
	if *a.Utilisation < 1 {
		says(t, "note", []string{a.Wait.Note}, "chance alone")
	}

	// With a place for each client the queue is never full.
	a = advised(t, scene{workers: 10, queue: 1000, seconds: 300, service: exponential(0.1), clients: 12}.marks(t, 6))
	within(t, "utilisation", *a.Utilisation, 0.9, 1.1)
	if *a.Wait.Ratio > 0.5 {
		t.Errorf("%v times the wait of an open loop", *a.Wait.Ratio)
	}
	if note := a.Wait.Note; !strings.Contains(note, "as from clients that wait") && !strings.Contains(note, "which was not there") {
		t.Errorf("note: %q", note)
	}
}

// TestAdviceCountsWhoWaitsForAPlace uses arrivals that do not slow down, though they
// are accepted at the pace of the workers.
func TestAdviceCountsWhoWaitsForAPlace(t *testing.T) {
	a := advised(t, scene{workers: 10, queue: 5, seconds: 60, service: constant(0.1), rate: steady(150)}.marks(t, 7))
	within(t, "rate", a.Arrivals, 142, 158)
	within(t, "arrival CV2", *a.ArrivalCV2, 0.5, 1.5)
	within(t, "utilisation", *a.Utilisation, 1.4, 1.6)
}

// TestAdviceDoesNotHideAMisfit uses twenty requests at once each second, which look
// even if counted per second.
func TestAdviceDoesNotHideAMisfit(t *testing.T) {
	a := advised(t, scene{workers: 10, queue: 100, seconds: 100, service: constant(0.1), at: func(_ int, d *holdfast.Dispatcher) {
		for range 20 {
			go d.Go(context.Background(), func(context.Context) error { time.Sleep(100 * time.Millisecond); return nil })
		}
	}}.marks(t, 1))
	within(t, "arrival CV2", *a.ArrivalCV2, 0, 0.1)
	within(t, "measured wait", *a.Wait.Measured, 0.049, 0.051)
	within(t, "predicted wait", *a.Wait.Predicted, 0, 0.001)
	says(t, "note", []string{a.Wait.Note}, "longer than predicted: requests arrive in bursts, also within a second")
	if a.Wait.Ratio != nil && *a.Wait.Ratio < 50 {
		t.Errorf("ratio %v", *a.Wait.Ratio)
	}
}

// TestAdviceSaysWhatItDoesNotSee uses jobs that run for longer than the window, and
// jobs that never run.
func TestAdviceSaysWhatItDoesNotSee(t *testing.T) {
	long := func(share float64) func(*rand.Rand) float64 {
		return func(r *rand.Rand) float64 {
			if r.Float64() < share {
				return 3600
			}
			return 0.1
		}
	}
	a := advised(t, scene{workers: 100, queue: 5, seconds: 30, service: long(0.1), rate: steady(20)}.marks(t, 8))
	says(t, "reasons", a.Reasons, "Jobs that are still running take longer than the 30 s measured")
	a = advise(scene{workers: 100, queue: 5, seconds: 30, service: long(1), rate: steady(3)}.marks(t, 8))
	says(t, "missing", []string{a.Missing}, "running jobs has ended, so it is not known how long they take")

	a = advised(t, scene{workers: 5, queue: 5, seconds: 60, service: exponential(0.1), rate: steady(100), overflow: holdfast.DropOldest}.marks(t, 9))
	says(t, "reasons", a.Reasons, "jobs ended without having run")

	a = advised(t, scene{workers: 5, queue: 5, seconds: 60, service: exponential(0.1), rate: steady(20), at: func(_ int, d *holdfast.Dispatcher) {
		for range 100 {
			go func() {
				ctx, cancel := context.WithCancel(context.Background())
				cancel()
				d.Go(ctx, func(context.Context) error { return nil })
			}()
		}
	}}.marks(t, 9))
	says(t, "reasons", a.Reasons, "clients gave up before there was a place")
	within(t, "rate with those who left", a.Arrivals, 112, 128)
}

// What is refused for being late has arrived, and says that the workers are too few.
func TestAdviceCountsTheLate(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 9))
	marks := counted(drawn(r, piece{60, 900}))
	for i := range marks {
		marks[i].stats.RefusedLate = uint64(1000 * i)
	}
	a := advise(marks)
	says(t, "reasons", a.Reasons, "it takes more workers, or less load")
	within(t, "arrivals", a.Arrivals, 1850, 1950)
	if a.Holds == nil || *a.Holds {
		t.Error("100 workers of 100 ms are said to hold 1,900 a second")
	}
}

// counted returns the marks of jobs of which so many arrive in each second. They are
// accepted, and have run for 100 ms by the end of the second.
func counted(counts []int) []mark {
	m := mark{time.Unix(0, 0), holdfast.Stats{Workers: 100, Queue: 1000}}
	marks := []mark{m}
	for _, n := range counts {
		m.at = m.at.Add(time.Second)
		m.stats.Accepted += uint64(n)
		m.stats.Succeeded += uint64(n)
		for range n {
			m.stats.Wait.Add(0)
			m.stats.Run.Add(100 * time.Millisecond)
		}
		marks = append(marks, m)
	}
	return marks
}

func poisson(r *rand.Rand, mean float64) (n int) {
	for t := r.ExpFloat64(); t < mean; t += r.ExpFloat64() {
		n++
	}
	return n
}

// A piece is a number of seconds with a rate.
type piece struct {
	seconds int
	rate    float64
}

func drawn(r *rand.Rand, pieces ...piece) (counts []int) {
	for _, p := range pieces {
		for range p.seconds {
			counts = append(counts, poisson(r, p.rate))
		}
	}
	return counts
}

// TestRandomArrivalsAreNoBurst checks that chance alone hardly ever looks like a burst
// or a change of the rate, at any rate, and that its dispersion is 1 on average.
func TestRandomArrivalsAreNoBurst(t *testing.T) {
	r := rand.New(rand.NewPCG(10, 11))
	for _, test := range []struct {
		rate    float64
		seconds int
	}{{0.05, 300}, {0.3, 300}, {1, 300}, {1, 20}, {10, 300}, {10, 60}, {100, 10}, {300, 300}} {
		found, sum := 0, 0.0
		const n = 100
		for range n {
			w := newWindow(counted(drawn(r, piece{test.seconds, test.rate})), "")
			sum += dispersion(w.all)
			if w = w.settle(); w.burst[1] > 0 || len(w.all) != test.seconds {
				found++
			}
		}
		t.Logf("%v a second for %d s: %d of %d seem to have a burst; dispersion %.3f", test.rate, test.seconds, found, n, sum/n)
		if found > n/100 {
			t.Errorf("%v a second for %d s: %d of %d seem to have a burst", test.rate, test.seconds, found, n)
		}
		within(t, "dispersion", sum/n, 0.9, 1.1)
	}
}

func TestDispersion(t *testing.T) {
	r := rand.New(rand.NewPCG(12, 13))
	var even, batches, odd []int
	for k := range 300 {
		even = append(even, 20)
		batches = append(batches, 10*poisson(r, 3))
		odd = append(odd, k%2)
	}
	for _, test := range []struct {
		name      string
		counts    []int
		low, high float64
	}{
		{"even", even, 0.02, 0.05}, // ten seconds of prior
		{"in batches of ten", batches, 8, 12},
		{"every other second", odd, 0.5, 0.55},
		{"hardly any", []int{0, 0, 0, 9, 0, 0, 0, 0, 0, 9, 0, 0, 0}, 1, 1},
		{"ten seconds", even[:10], 0.5, 0.6},
		{"none", nil, 1, 1},
	} {
		w := newWindow(counted(test.counts), "")
		within(t, test.name, dispersion(w.all), test.low, test.high)
	}
	// Seconds of different lengths, as when the process was suspended, do not add to
	// the dispersion.
	marks := counted([]int{20, 60, 20, 20, 100, 20})
	for i, s := range []int{0, 1, 4, 5, 6, 11, 12} {
		marks[i].at = time.Unix(int64(s), 0)
	}
	within(t, "uneven", dispersion(newWindow(marks, "").all), 10./15, 10./15)
}

// TestSettle uses rates that change, some of them for good.
func TestSettle(t *testing.T) {
	r := rand.New(rand.NewPCG(14, 15))
	for _, test := range []struct {
		name     string
		pieces   []piece
		seconds  int // that are looked at
		from, to int // the burst
	}{
		{"burst", []piece{{150, 50}, {10, 200}, {140, 50}}, 300, 150, 160},
		{"burst of a second", []piece{{150, 10}, {1, 60}, {149, 10}}, 300, 150, 151},
		{"burst out of nothing", []piece{{100, 0}, {5, 60}, {195, 0}}, 300, 100, 105},
		{"burst at the beginning", []piece{{20, 300}, {280, 50}}, 300, 0, 20},
		{"burst that goes on", []piece{{290, 50}, {10, 200}}, 300, 290, 300},
		{"longest burst", []piece{{100, 50}, {30, 200}, {170, 50}}, 300, 100, 130},
		{"more from some time on", []piece{{200, 10}, {100, 95}}, 100, 0, 0},
		{"idle before", []piece{{250, 0}, {50, 95}}, 50, 0, 0},
		{"less from some time on", []piece{{200, 100}, {100, 20}}, 100, 0, 0},
		{"nothing any more", []piece{{100, 50}, {200, 0}}, 200, 0, 0},
		{"up and down", []piece{{100, 20}, {100, 100}, {100, 20}}, 100, 0, 0},
		{"just stopped", []piece{{100, 0}, {180, 100}, {20, 0}}, 200, 0, 0},
		{"bursts again and again", []piece{{30, 50}, {5, 150}, {55, 50}, {5, 250}, {55, 50}, {5, 150}, {55, 50}, {5, 150}, {85, 50}}, 300, 90, 95},
		{"a burst after a change", []piece{{100, 10}, {100, 100}, {10, 300}, {90, 100}}, 200, 100, 110},
		{"a third more", []piece{{150, 300}, {150, 400}}, 300, 0, 0},
	} {
		w := newWindow(counted(drawn(r, test.pieces...)), "").settle()
		if len(w.all) != test.seconds || w.burst != [2]int{test.from, test.to} || w.changing != (test.name == "just stopped") {
			t.Errorf("%s: %d s are looked at, %v is a burst, changing %v; want %d, %d to %d", test.name, len(w.all), w.burst, w.changing, test.seconds, test.from, test.to)
		}
		if test.name != "a third more" { // too little to stand out, so it is dispersion
			within(t, test.name+": dispersion", dispersion(w.steady), 0.75, 1.25)
		}
	}
	a := advised(t, counted(drawn(r, piece{100, 0}, piece{180, 100}, piece{20, 0})))
	says(t, "reasons", a.Reasons, "The arrival rate has changed in the last 30 s")
	within(t, "arrival CV2 before", *a.ArrivalCV2, 0.7, 1.3)
	if a.Burst != nil {
		t.Errorf("a burst of %v s", a.Burst.Seconds)
	}
	a = advised(t, counted(drawn(r, piece{270, 0}, piece{30, 10})))
	if a.Burst == nil {
		t.Fatal("no burst")
	}
	within(t, "factor", a.Burst.Factor, 10-1e-9, 10+1e-9)
	a = advise(counted(drawn(r, piece{100, 50}, piece{200, 0})))
	says(t, "missing", []string{a.Missing}, "In the 200 s since the arrival rate changed there were arrivals in 0, 0 in all")
}

// TestAdviceIsMissing uses too little data.
func TestAdviceIsMissing(t *testing.T) {
	ten := []int{2, 2, 2, 2, 2, 2, 2, 2, 2, 2}
	if a := advise(counted(ten)); a.Missing != "" {
		t.Errorf("10 s and 20 jobs: %s", a.Missing)
	}
	one := counted([]int{1})
	last := func(change func(*holdfast.Stats)) []mark {
		marks := counted([]int{4, 4, 4, 4, 4, 4, 4, 4, 4, 4})
		change(&marks[10].stats)
		return marks
	}
	few := counted([]int{2, 2, 2, 2, 2, 2, 2, 2, 2, 1})
	few[10].stats.Run = counted([]int{40})[1].stats.Run // there were some before
	for name, marks := range map[string][]mark{
		"no mark":          nil,
		"one mark":         one[:1],
		"two at once":      {one[0], one[0]},
		"nine seconds":     counted([]int{5, 5, 5, 5, 5, 5, 5, 5, 5}),
		"19 jobs":          counted([]int{2, 2, 2, 2, 2, 2, 2, 2, 2, 1}),
		"19 arrivals":      few,
		"19 have run":      last(func(st *holdfast.Stats) { st.Run = counted([]int{19})[1].stats.Run }),
		"a longer queue":   last(func(st *holdfast.Stats) { st.Queue++ }),
		"nothing happened": counted(make([]int, 300)),
		"a single burst":   counted(append(make([]int, 60), 250, 250, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)),
		"nine busy":        counted([]int{9, 0, 9, 0, 9, 0, 9, 0, 9, 0, 9, 0, 9, 0, 9, 0, 9}),
	} {
		a := advise(marks)
		if a.Missing == "" || a.Holds != nil || a.Workers != nil || a.Queue != nil || a.Wait.Predicted != nil || len(a.Reasons)+len(a.Why) > 0 {
			t.Errorf("%s: %+v", name, a)
		}
		if text, err := json.Marshal(a); err != nil || !strings.Contains(string(text), `"reasons":[],"workers":null,"queue":null,"why":[]`) {
			t.Errorf("%s: %s, %v", name, text, err)
		}
	}
}

func TestAdviceOfExtremes(t *testing.T) {
	marks := counted([]int{4, 4, 4, 4, 4, 4, 4, 4, 4, 4})
	last := &marks[10].stats
	last.Run = last.Run.Since(&last.Run)
	for range 20 {
		last.Run.Add(0)
	}
	says(t, "missing", []string{advise(marks).Missing}, "no measurable time")
	for range 2_000_000 {
		last.Run.Add(1)
	}
	last.Run.Add(time.Hour)
	if a := advised(t, marks); *a.ServiceCV2 < 1e6 {
		t.Errorf("service CV2 %v; want more than plan takes", *a.ServiceCV2)
	}
	// A request that has given up is not counted yet.
	marks = counted([]int{4, 0, 4})
	marks[1].stats.Blocked = 4
	if got := newWindow(marks, "").all; got[0].arrivals != 8 || got[1].arrivals != 0 {
		t.Errorf("arrivals %v, want 8 and 0", got)
	}
}

// TestPredictedWait compares predictedWait with exact values for random arrivals and
// exponential service: AcceptedWait if requests are refused, and a sum over the states
// if they wait for a place.
func TestPredictedWait(t *testing.T) {
	for _, workers := range []int{1, 7, 100} {
		for _, used := range []float64{0.1, 0.7, 0.9, 0.99, 0.999999, 1 - 1e-12, 1, 1.2} {
			for _, queue := range []int{-1, 1, 5, 200} {
				for _, cv2 := range []float64{-1, 0.5, 1, 4} {
					p, err := plan.For(plan.Load{Rate: used * float64(workers), Service: time.Second, Workers: workers, Queue: queue, CV2: cv2, ArrivalCV2: cv2})
					if err != nil {
						t.Fatal(err)
					}
					refused, blocked := predictedWait(p, max(cv2, 0), holdfast.Reject), predictedWait(p, max(cv2, 0), holdfast.Block)
					if !(refused >= 0 && refused <= blocked*(1+1e-6)+1e-9 && blocked <= p.FullWait*(1+1e-9)) {
						t.Errorf("%d workers %v used, queue %d, variation %v: %v refused, %v blocked, %v full", workers, used, queue, cv2, refused, blocked, p.FullWait)
					}
					if cv2 != 1 {
						continue
					}
					if off := refused - p.AcceptedWait; off > 1e-4*p.AcceptedWait || off < -1e-4*p.AcceptedWait {
						t.Errorf("%d workers %v used, queue %d: %v, want %v", workers, used, queue, refused, p.AcceptedWait)
					}
					// The queue is longer than j with probability C·r^(j+1); by
					// Little's law its mean length is the rate times the wait.
					want, c := 0.0, plan.ErlangC(workers, used*float64(workers))
					for range max(queue, 0) {
						c *= min(used, 1)
						want += c / min(used, 1) / float64(workers)
					}
					if off := blocked - want; off > 1e-4*want || off < -1e-4*want {
						t.Errorf("%d workers %v used, queue %d: blocked ones wait %v, want %v", workers, used, queue, blocked, want)
					}
				}
			}
		}
	}
}

// FuzzAdvise uses counters that grow in any way. There is always an advice that can be
// written as JSON, or a reason why there is none.
func FuzzAdvise(f *testing.F) {
	f.Add(uint64(1), 100, 200, uint8(10), uint8(10), uint8(27))
	f.Add(uint64(2), 1, 0, uint8(0), uint8(0), uint8(0))
	f.Add(uint64(3), 1_000_000, 10_000_000, uint8(22), uint8(40), uint8(30))
	f.Add(uint64(4), 3, 5, uint8(63), uint8(63), uint8(63))
	f.Add(uint64(5), 100, 5, uint8(7), uint8(20), uint8(20))
	f.Fuzz(func(t *testing.T, seed uint64, workers, queue int, jobs, waits, runs uint8) {
		if workers > 30_000 {
			workers %= 30_000 // the planner takes its time
		}
		r := rand.New(rand.NewPCG(seed, 1))
		grow := func(n *uint64, bits uint8) { *n += r.Uint64() >> (63 - bits%64) >> r.IntN(10) }
		m := mark{time.Unix(0, 0), holdfast.Stats{Workers: workers, Queue: queue}}
		var marks []mark
		for range r.IntN(60) {
			marks = append(marks, m)
			m.at = m.at.Add(time.Duration(r.Int64() >> (30 + r.IntN(10))))
			st := &m.stats
			for _, n := range []*uint64{&st.Accepted, &st.Succeeded, &st.Canceled, &st.Dropped, &st.RefusedFull, &st.RefusedGone} {
				if r.IntN(3) > 0 {
					grow(n, jobs)
				}
			}
			st.Blocked, st.Running, st.Queued = int(r.Int64()>>(63-jobs%64)), r.IntN(1000), r.IntN(1000)
			st.Overflow = holdfast.Overflow(r.IntN(3))
			for range r.IntN(20) {
				st.Wait.Add(time.Duration(r.Int64() >> (63 - waits%64)))
				st.Run.Add(time.Duration(r.Int64() >> (63 - runs%64)))
			}
		}
		a := advise(marks)
		if _, err := json.Marshal(a); err != nil { // as for NaN and infinities
			t.Fatalf("%+v: %v", a, err)
		}
		if a.Missing == "" != (a.Holds != nil) || a.Missing == "" && (a.Workers == nil || a.Headroom == nil || a.Wait.Predicted == nil || len(a.Reasons) == 0) {
			t.Fatalf("%+v", a)
		}
		values := []*float64{&a.Window, &a.Arrivals, a.ArrivalCV2, a.Service, a.ServiceCV2, a.Load, a.Utilisation, a.MaxRate, a.Wait.Measured, a.Wait.Predicted, a.Wait.Ratio}
		if a.Burst != nil {
			values = append(values, &a.Burst.Factor, &a.Burst.Seconds)
		}
		for i, v := range values {
			if v != nil && !(*v >= 0) {
				t.Fatalf("value %d is %v: %+v", i, *v, a)
			}
		}
	})
}
