// Package plan computes how many workers and how long a queue a load needs, or
// what load given workers and a given queue can serve. Unlike a load test it
// needs only a rate and a service time, and it gives its reasons.
//
// # Assumptions
//
// Requests arrive independently of each other (a Poisson process), they are
// served first come, first served, and none leaves the queue early. For
// exponential service times the waits and refusals are then exact. For other
// service times, and for arrivals that are more or less regular, the waits
// follow Allen and Cunneen's approximation, which multiplies them by
// (ArrivalCV2 + CV2)/2. The share of requests that wait and the share refused
// are computed as if both were 1. This usually overestimates refusals if they
// are below 1 and underestimates them if above, by a factor of up to two near
// full load if only CV2 differs from 1. Bursts and deadlines are computed as a
// flow with a normally distributed error.
package plan

import (
	"fmt"
	"math"
	"time"
)

// The limits of [For], which are those of the server.
const (
	MaxWorkers = 1_000_000
	MaxQueue   = 10_000_000
)

// A Load describes the requests that arrive, the limits on their answers, and
// optionally the workers and the queue that serve them. Service and at least one
// of Rate and Workers are required.
type Load struct {
	// Rate is the mean number of requests that arrive per second. If zero, and
	// Workers is set, the highest rate that meets the limits is used.
	Rate float64

	// Service is the mean time that a worker takes for a request.
	Service time.Duration

	// CV2 is the squared coefficient of variation of the service time, its
	// variance divided by the square of its mean. If zero, 1 is used, the value
	// of the exponential distribution; −1 means that every request takes the
	// same time.
	CV2 float64

	// ArrivalCV2 is the squared coefficient of variation of the times between
	// arrivals; for arrivals that depend on each other, it is the index of
	// dispersion of their counts, variance divided by mean. If zero, 1 is used,
	// the value of a Poisson process; −1 means that requests arrive at equal
	// intervals.
	ArrivalCV2 float64

	// Burst is the factor by which Rate rises during a burst, at least 1. If
	// zero, there are no bursts.
	Burst float64

	// BurstFor is how long a burst lasts. If zero, and Burst is set, a second is
	// used.
	BurstFor time.Duration

	// Deadline is how long a client waits for its answer, service included. If
	// zero, clients wait without limit.
	Deadline time.Duration

	// MayWait is the share of requests, above 0 and at most 1, that may wait for
	// a worker outside bursts. If zero, 0.2 is used.
	MayWait float64

	// MayRefuse is the share of requests, from 1e-12 to 1, that may find the
	// queue full. It is also the probability that a burst may overflow the queue,
	// and that the last request in the queue may miss its deadline. If zero, 0.01
	// is used.
	MayRefuse float64

	// Workers is the number of workers, at most MaxWorkers. If zero, the smallest
	// sufficient number is used.
	Workers int

	// Queue is the number of requests that can wait, at most MaxQueue. If zero,
	// the smallest sufficient number is used; −1 means none.
	Queue int
}

// A Plan is the result of [For]. Times are in seconds, shares from 0 to 1.
type Plan struct {
	Rate    float64 `json:"rate_per_second"`
	Service float64 `json:"service_seconds"`

	// Erlangs is the offered load, Rate times Service: the mean number of busy
	// workers if no request is refused.
	Erlangs float64 `json:"load_erlangs"`

	// Holds reports whether Workers and Queue meet every limit of the Load.
	Holds bool `json:"holds"`

	// Reasons says in sentences why one worker fewer would not be enough, or
	// which limits are not met.
	Reasons []string `json:"reasons"`

	// LeastWorkers is the smallest number above Erlangs. With fewer workers the
	// backlog grows without bound.
	LeastWorkers int `json:"least_workers"`

	// Workers and Queue are the given values, or else the recommended ones.
	Workers int `json:"workers"`
	Queue   int `json:"queue"`

	// Utilisation is Erlangs divided by Workers, above 1 if they can't keep up.
	Utilisation float64 `json:"utilisation"`

	// Waiting is how long requests wait outside bursts if none is refused; nil if
	// Utilisation is 1 or more, since the wait then has no bound.
	Waiting *Waiting `json:"waiting"`

	// Refused is the share of requests that find the queue full outside bursts.
	Refused float64 `json:"refused"`

	// AcceptedWait is the mean wait of accepted requests. It is finite for any
	// Utilisation, and computed for exponential service times.
	AcceptedWait float64 `json:"accepted_mean_wait_seconds"`

	// FullWait is the mean wait of a request that takes the last place in the
	// queue: Queue·Service/Workers.
	FullWait float64 `json:"full_queue_wait_seconds"`

	Bounds Bounds `json:"queue_bounds"`

	// Backlog is the mean number of requests that wait at the end of a burst if
	// none is refused; 0 without bursts, or if the workers keep up with them.
	Backlog float64 `json:"burst_backlog"`

	// Drain is how long the workers take after a burst to clear the backlog,
	// which is at most a full queue: Backlog/(Workers/Service − Rate). It is −1
	// if they never do.
	Drain float64 `json:"drain_seconds"`

	// Capacity is Workers/Service, the rate at which all workers are busy.
	Capacity float64 `json:"capacity_per_second"`

	// MaxRate is the highest Rate at which Workers, with Queue if it was set,
	// meet every limit of the Load; 0 if there is none.
	MaxRate float64 `json:"max_rate_per_second"`
}

// Waiting describes the time from arrival to the start of service in an M/M/w
// system (Erlang C), corrected for the variation of arrivals and service times.
// It includes the requests that don't wait.
type Waiting struct {
	Probability float64 `json:"probability"` // of waiting at all
	Mean        float64 `json:"mean_seconds"`
	P50         float64 `json:"p50_seconds"`
	P90         float64 `json:"p90_seconds"`
	P99         float64 `json:"p99_seconds"`
}

// Bounds are the bounds of a useful queue length for Plan.Workers. A queue
// shorter than Refusals or Burst refuses too many requests; one longer than
// Deadline accepts requests that will be answered too late. A bound that does not
// fit in an int is given as the greatest int, far above MaxQueue.
type Bounds struct {
	// Refusals is the smallest length that refuses at most MayRefuse outside
	// bursts; nil if no length does.
	Refusals *int `json:"least_for_refusals"`

	// Burst is the smallest length that absorbs a burst; nil without bursts.
	Burst *int `json:"least_for_burst"`

	// Deadline is the greatest length at which the request in the last place
	// meets its deadline; nil without a deadline, −1 if the service alone takes
	// longer.
	Deadline *int `json:"most_for_deadline"`
}

// A FieldError reports an invalid field of a [Load].
type FieldError struct {
	Field string // its name in Load
	Value string // its value; empty if it is missing
	Want  string // the allowed values
}

func (e *FieldError) Error() string {
	if e.Value == "" {
		return fmt.Sprintf("%s is missing; want %s", e.Field, e.Want)
	}
	return fmt.Sprintf("%s is %s; want %s", e.Field, e.Value, e.Want)
}

const (
	wantRate      = "requests per second, above 0"
	wantService   = "a duration above 0, such as 50ms"
	wantCV2       = "0 to 1,000,000"
	wantBurst     = "1 to 1,000,000"
	wantDuration  = "a duration of 0 or more, such as 2s"
	wantMayWait   = "a share above 0, at most 1"
	wantMayRefuse = "a share from 1e-12 to 1"
	wantWorkers   = "1 to 1,000,000"
	wantQueue     = "0 to 10,000,000"
)

// For returns the plan for a load. A load that cannot be served within its limits
// is not an error: the plan then has Holds set to false, and Reasons. For returns
// a [*FieldError] if a field is missing, out of range, infinite or NaN.
func For(load Load) (Plan, error) {
	l, err := load.withDefaults()
	if err != nil {
		return Plan{}, err
	}
	recommend := l.Workers == 0
	if recommend {
		l.Workers = l.recommended()
	}
	maxRate := l.maxRate()
	if l.Rate == 0 {
		l.Rate = maxRate
	}
	a := l.assess(l.Workers)

	p := Plan{
		Rate:         l.Rate,
		Service:      l.Service.Seconds(),
		Erlangs:      a.load,
		Holds:        a.faults == nil && l.Rate > 0,
		LeastWorkers: leastWorkers(a.load),
		Workers:      l.Workers,
		Queue:        a.queue,
		Utilisation:  a.load / float64(l.Workers),
		Refused:      loss(l.Workers, int64(a.queue), a.load, a.b),
		AcceptedWait: acceptedWait(l.Workers, a.queue, a.load, a.b) * l.Service.Seconds(),
		FullWait:     float64(a.queue) * l.Service.Seconds() / float64(l.Workers),
		Capacity:     float64(l.Workers) / l.Service.Seconds(),
		MaxRate:      maxRate,
	}
	p.setQueue(l, a)
	p.Reasons = p.reasons(l, a, recommend)
	return p, nil
}

// setQueue sets the fields that describe the queue: Bounds, Backlog, Drain, Waiting.
func (p *Plan) setQueue(l Load, a assessment) {
	if a.refusals >= 0 {
		p.Bounds.Refusals = bound(a.refusals)
	}
	if l.Burst > 0 {
		p.Bounds.Burst = bound(a.burst)
		p.Backlog = max(0, l.growth(l.Workers))
	}
	if l.Deadline > 0 {
		p.Bounds.Deadline = bound(a.deadline)
	}
	if a.load >= float64(l.Workers) {
		p.Drain = -1
		return
	}
	p.Drain = min(p.Backlog, float64(a.queue)) / (float64(l.Workers) - a.load) * l.Service.Seconds()
	unit := l.variation() * l.Service.Seconds()
	quantile := func(q float64) float64 { return unit * waitQuantile(l.Workers, a.load, a.c, q) }
	p.Waiting = &Waiting{a.c, unit * meanWait(l.Workers, a.load, a.c), quantile(0.5), quantile(0.9), quantile(0.99)}
}

// reasons returns Plan.Reasons. recommend is whether the number of workers was
// left to the planner.
func (p *Plan) reasons(l Load, a assessment, recommend bool) []string {
	switch {
	case !p.Holds && recommend && l.Workers == MaxWorkers:
		return append(a.faults, "The planner stops at 1,000,000 workers: ask for less, or divide the load.")
	case p.Holds && recommend && l.Workers == p.LeastWorkers:
		return []string{fmt.Sprintf("%d is the smallest number of workers above the %.4g that are busy on average; with fewer, the backlog grows without bound.", l.Workers, a.load)}
	case p.Holds && recommend:
		return append([]string{"One worker fewer would not be enough:"}, l.assess(l.Workers-1).faults...)
	case p.Holds:
		return []string{fmt.Sprintf("%d workers and a queue of %d meet every limit, up to %s requests per second.", l.Workers, a.queue, rate(p.MaxRate))}
	case l.Rate == 0:
		return append(a.faults, fmt.Sprintf("%d workers cannot meet these limits at any rate.", l.Workers))
	case recommend:
		return a.faults
	}
	w := l.recommended()
	if w == l.Workers || l.assess(w).faults != nil {
		return a.faults
	}
	if l.Queue >= 0 {
		return append(a.faults, fmt.Sprintf("%d workers are enough with this queue.", w))
	}
	return append(a.faults, fmt.Sprintf("%d workers are enough.", w))
}

// withDefaults checks the fields and sets the defaults. In the Load that it
// returns, 0 means no burst, no deadline, no variation, and that the workers or the
// rate are yet to be found; a Queue of −1 is yet to be found.
func (l Load) withDefaults() (Load, error) {
	if err := l.check(); err != nil {
		return l, err
	}
	for _, v := range []*float64{&l.CV2, &l.ArrivalCV2} {
		switch *v {
		case 0:
			*v = 1
		case -1:
			*v = 0
		}
	}
	switch l.Queue {
	case 0:
		l.Queue = -1
	case -1:
		l.Queue = 0
	}
	if l.Burst > 0 && l.BurstFor == 0 {
		l.BurstFor = time.Second
	}
	if l.MayWait == 0 {
		l.MayWait = 0.2
	}
	if l.MayRefuse == 0 {
		l.MayRefuse = 0.01
	}
	return l, nil
}

// check returns a [*FieldError] for the first invalid field.
func (l Load) check() error {
	number := func(v float64) string { return fmt.Sprintf("%g", v) }
	// A NaN fails every comparison, so each case tests for the allowed values and
	// negates. The last case does so for the rate.
	switch {
	case l.Rate == 0 && l.Workers == 0:
		return &FieldError{"Rate", "", wantRate + ", or a number of workers"}
	case l.Rate < 0:
		return &FieldError{"Rate", number(l.Rate), wantRate}
	case l.Service == 0:
		return &FieldError{"Service", "", wantService}
	case l.Service < 0:
		return &FieldError{"Service", l.Service.String(), wantService}
	case !(l.CV2 == -1 || l.CV2 >= 0 && l.CV2 <= 1e6):
		return &FieldError{"CV2", number(l.CV2), wantCV2 + ", or -1 for none"}
	case !(l.ArrivalCV2 == -1 || l.ArrivalCV2 >= 0 && l.ArrivalCV2 <= 1e6):
		return &FieldError{"ArrivalCV2", number(l.ArrivalCV2), wantCV2 + ", or -1 for none"}
	case l.Burst == 0 && l.BurstFor > 0:
		return &FieldError{"Burst", "", wantBurst + ", since a burst has a duration"}
	case !(l.Burst == 0 || l.Burst >= 1 && l.Burst <= 1e6):
		return &FieldError{"Burst", number(l.Burst), wantBurst}
	case l.BurstFor < 0:
		return &FieldError{"BurstFor", l.BurstFor.String(), wantDuration}
	case l.Deadline < 0:
		return &FieldError{"Deadline", l.Deadline.String(), wantDuration}
	case !(l.MayWait >= 0 && l.MayWait <= 1):
		return &FieldError{"MayWait", number(l.MayWait), wantMayWait}
	case !(l.MayRefuse == 0 || l.MayRefuse >= 1e-12 && l.MayRefuse <= 1):
		return &FieldError{"MayRefuse", number(l.MayRefuse), wantMayRefuse}
	case l.Workers < 0 || l.Workers > MaxWorkers:
		return &FieldError{"Workers", fmt.Sprint(l.Workers), wantWorkers}
	case l.Queue < -1 || l.Queue > MaxQueue:
		return &FieldError{"Queue", fmt.Sprint(l.Queue), wantQueue + ", or -1 for none"}
	case !(l.load() < MaxWorkers):
		most := MaxWorkers / l.Service.Seconds()
		return &FieldError{"Rate", number(l.Rate), fmt.Sprintf("less than %g, which keeps 1,000,000 workers busy", most)}
	}
	return nil
}

// load returns Rate·Service. Multiplying by whole nanoseconds first makes 100 a
// second of 290 ms exactly 29.
func (l Load) load() float64 {
	return l.Rate * float64(l.Service) / 1e9
}

// leastWorkers is rule 1: the load must be below the number of workers, not equal.
func leastWorkers(load float64) int {
	return int(load) + 1
}

// recommended returns the smallest number of workers that meets the limits. If
// the service alone takes longer than the deadline, no number does, so it
// ignores the deadline. If still no number does, it returns MaxWorkers.
func (l Load) recommended() int {
	if l.longService() > l.Deadline.Seconds() {
		l.Deadline = 0
	}
	return least(leastWorkers(l.load()), MaxWorkers, func(w int) bool { return l.assess(w).faults == nil })
}

// maxRate returns the highest rate at which Workers meet the limits, found by
// bisection to within 2^-40 of the capacity.
func (l Load) maxRate() float64 {
	low, high := 0.0, float64(l.Workers)/l.Service.Seconds()
	if l.Rate > 0 && l.assess(l.Workers).faults == nil {
		low = l.Rate
	}
	for range 40 {
		l.Rate = low + (high-low)/2
		if l.Rate > 0 && l.assess(l.Workers).faults == nil {
			low = l.Rate
		} else {
			high = l.Rate
		}
	}
	return low
}

// An assessment is the result for a load and one number of workers. The three
// bounds of the queue are those of [Bounds].
type assessment struct {
	load, b, c float64  // the load in erlangs, Erlang B and C
	refusals   int64    // −1 if no length is enough
	burst      int64    // 0 without bursts
	deadline   int64    // −1 if no length is short enough
	queue      int      // as given, or else the smallest sufficient
	faults     []string // the limits that are not met, in sentences
}

func (l Load) assess(workers int) assessment {
	a := assessment{load: l.load()}
	a.b = ErlangB(workers, a.load)
	a.c = erlangC(workers, a.load, a.b)

	if n, ok := leastQueue(workers, a.load, l.MayRefuse, a.b); ok {
		a.refusals = n
	} else {
		a.refusals = -1
	}
	if l.Burst > 0 {
		a.burst = l.burstQueue(workers, l.margin())
	}
	if l.Deadline > 0 {
		a.deadline = l.deadlineQueue(workers, l.longService(), l.margin())
	}
	a.queue = l.Queue
	if a.queue < 0 {
		a.queue = int(min(max(a.refusals, a.burst, 0), MaxQueue))
	}
	a.judgeWorkers(l, workers)
	a.judgeQueue(l, workers)
	if l.Deadline > 0 {
		a.judgeDeadline(l, workers)
	}
	return a
}

func (a *assessment) fault(format string, args ...any) {
	a.faults = append(a.faults, fmt.Sprintf(format, args...))
}

func (a *assessment) judgeWorkers(l Load, workers int) {
	switch {
	case a.load >= float64(workers):
		a.fault("%s requests arrive per second, and %d workers can serve %s: the backlog grows without bound. No queue is long enough, only workers help: at least %d.",
			rate(l.Rate), workers, rate(float64(workers)/l.Service.Seconds()), leastWorkers(a.load))
	case a.c > l.MayWait:
		a.fault("%s of the requests would wait for one of %d workers; at most %s may.", share(a.c), workers, share(l.MayWait))
	}
}

func (a *assessment) judgeQueue(l Load, workers int) {
	switch {
	case a.load >= float64(workers): // judgeWorkers reports it
	case a.refusals > MaxQueue && l.Queue < 0:
		a.fault("With %d workers, refusing at most %s takes a queue of %d, above the maximum of 10,000,000.", workers, share(l.MayRefuse), a.refusals)
	case int64(a.queue) < a.refusals:
		a.fault("With %d workers and a queue of %d, more than %s of the requests are refused; the queue must be at least %d.", workers, a.queue, share(l.MayRefuse), a.refusals)
	}
	switch {
	case a.burst > MaxQueue && l.Queue < 0:
		a.fault("A burst needs a queue of %d with %d workers, above the maximum of 10,000,000.", a.burst, workers)
	case int64(a.queue) < a.burst:
		a.fault("A burst needs a queue of at least %d with %d workers; %d is too short.", a.burst, workers, a.queue)
	}
}

func (a *assessment) judgeDeadline(l Load, workers int) {
	switch {
	case a.deadline < 0:
		a.fault("The service alone misses the deadline of %v: with probability %s it takes longer than %s. Only a faster service helps.",
			l.Deadline, share(min(l.MayRefuse, 1)), seconds(l.longService()))
	case int64(a.queue) > a.deadline && l.Queue >= 0:
		a.fault("With %d workers, a queue longer than %d is too long: the request in its last place is answered after the deadline.", workers, a.deadline)
	case int64(a.queue) > a.deadline && a.burst >= a.refusals:
		a.fault("With %d workers, a burst needs a queue of at least %d, but the deadline allows at most %d. Only more workers help.", workers, a.burst, a.deadline)
	case int64(a.queue) > a.deadline:
		a.fault("With %d workers, refusing at most %s takes a queue of at least %d, but the deadline allows at most %d. Only more workers help.", workers, share(l.MayRefuse), a.refusals, a.deadline)
	}
}

// bound converts a length for [Bounds].
func bound(l int64) *int {
	n := int(min(l, math.MaxInt))
	return &n
}

// growth returns how many more requests arrive in a burst than workers do:
// (m·n − w/s)·T, rule 2 for a burst of T seconds.
func (l Load) growth(workers int) float64 {
	return (l.Burst*l.Rate - float64(workers)/l.Service.Seconds()) * l.BurstFor.Seconds()
}

// burstQueue returns the shortest queue that absorbs a burst:
// (m·n − w/s)·T + z·√(T·(m·n·ArrivalCV2 + w/s·CV2)), with a margin of z standard
// deviations. Workers that are faster than the burst serve only what arrives.
func (l Load) burstQueue(workers int, z float64) int64 {
	in := l.Burst * l.Rate
	out := min(in, float64(workers)/l.Service.Seconds())
	return whole(math.Ceil((l.growth(workers) + z*math.Sqrt(l.BurstFor.Seconds()*(in*l.ArrivalCV2+out*l.CV2))) * (1 - rounding)))
}

// deadlineQueue returns the longest queue L at which the request in the last
// place is answered in time, or −1 if the service alone takes too long. The
// request's own service takes long seconds. The L + 1 services before it take
// (L+1)·s/w on average, with a standard deviation of √((L+1)·CV2)·s/w, of which z
// are added. The equation is quadratic in √(L+1).
func (l Load) deadlineQueue(workers int, long, z float64) int64 {
	left := float64(workers) * (l.Deadline.Seconds() - long) / l.Service.Seconds()
	if left < 0 {
		return -1
	}
	if left == 0 {
		return 0
	}
	// This is (−p + √(p²+4·left))/2, without the difference, which would cancel.
	p := z * math.Sqrt(l.CV2)
	x := 2 * left / (p + math.Sqrt(p*p+4*left))
	return whole(math.Floor(x*x*(1+rounding) - 1))
}

// rounding is the relative rounding error that a bound may have. It must not cost
// a place: 8·0.95/0.05 is a little below 152.
const rounding = 1e-12

// whole converts x to a whole number from 0 to longest.
func whole(x float64) int64 {
	return int64(max(0, min(x, longest)))
}

// margin returns by how many standard deviations a normally distributed value
// exceeds its mean with probability MayRefuse, at least 0.
func (l Load) margin() float64 {
	return math.Sqrt2 * math.Erfcinv(2*min(l.MayRefuse, 0.5))
}

// longService returns the time in seconds that a service exceeds with probability
// MayRefuse, at least its mean: for an exponential distribution if CV2 is 1, else
// for a gamma distribution (Wilson and Hilferty 1931).
func (l Load) longService() float64 {
	mean := l.Service.Seconds()
	if l.CV2 == 1 {
		return mean * max(1, -math.Log(l.MayRefuse))
	}
	root := 1 - l.CV2/9 + l.margin()*math.Sqrt(l.CV2)/3
	return mean * max(1, root*root*root)
}

// variation returns Allen and Cunneen's factor for the mean wait.
func (l Load) variation() float64 {
	return (l.ArrivalCV2 + l.CV2) / 2
}
