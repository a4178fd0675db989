// Package plan answers how many workers, and how long a queue, a load needs, or
// what given workers and a given queue hold. It differs from a load test in
// that it needs a rate and a service time only, and in that it says why.
//
// # Assumptions
//
// Requests arrive independently of each other (a Poisson process), the next one
// to be served is the one that has waited longest, and nobody leaves the queue.
// For exponential service times the waits and refusals are then exact. For
// others, and for arrivals that come more evenly or less so, the waits follow
// Allen and Cunneen's approximation, which multiplies them by
// (ArrivalCV2 + CV2)/2. The share that waits and refusals are computed as if both
// were 1: as a rule too many refusals if they are below 1, too few if above, by a
// factor of up to two near full load if it is CV2 alone. What a burst and a
// deadline need is computed as a flow with a normally distributed error.
package plan

import (
	"fmt"
	"math"
	"time"
)

// The most that [For] considers, as the server does.
const (
	MaxWorkers = 1_000_000
	MaxQueue   = 10_000_000
)

// A Load is what arrives, what is expected of the answers, and, where it is
// given, what there is to serve it. At least Service and one of Rate and Workers
// are needed.
type Load struct {
	// Rate is the mean number of requests that arrive in a second. If zero, and
	// Workers is given, the greatest rate that these hold is used.
	Rate float64

	// Service is the mean time that a worker needs for a request.
	Service time.Duration

	// CV2 is the squared coefficient of variation of the service time, its
	// variance divided by the square of its mean. If zero, 1 is used, the value
	// of the exponential distribution; −1 says that every request takes the
	// same time.
	CV2 float64

	// ArrivalCV2 is the squared coefficient of variation of the times between
	// arrivals; for arrivals that depend on each other, the index of dispersion
	// of their counts, variance by mean. If zero, 1 is used, the value of a
	// Poisson process; −1 says that requests arrive at equal distances.
	ArrivalCV2 float64

	// Burst is how many times as high Rate is during a burst, at least 1. If
	// zero, there are no bursts.
	Burst float64

	// BurstFor is how long a burst lasts. If zero, and Burst is given, a second
	// is used.
	BurstFor time.Duration

	// Deadline is how long a client waits for its answer, the service included.
	// If zero, clients wait for as long as it takes.
	Deadline time.Duration

	// MayWait is the share of the requests, above 0 and at most 1, that may have
	// to wait for a worker outside of bursts. If zero, 0.2 is used.
	MayWait float64

	// MayRefuse is the share of the requests, from 1e-12 to 1, that may find the
	// queue full; also the probability with which a burst may outgrow the queue
	// and with which the last one in the queue may miss its deadline. If zero,
	// 0.01 is used.
	MayRefuse float64

	// Workers is the number of workers there are, at most MaxWorkers. If zero,
	// the least number that does is used.
	Workers int

	// Queue is how many requests can wait, at most MaxQueue. If zero, the least
	// number that does is used; −1 says none.
	Queue int
}

// A Plan is the answer of [For]. Times are in seconds, shares from 0 to 1.
type Plan struct {
	Rate    float64 `json:"rate_per_second"`
	Service float64 `json:"service_seconds"`

	// Erlangs is the offered load, Rate times Service: as many workers are busy
	// on average if no request is refused.
	Erlangs float64 `json:"load_erlangs"`

	// Holds is whether Workers and Queue keep everything that the Load asks for.
	Holds bool `json:"holds"`

	// Reasons says in sentences why it holds no longer with one worker less, or
	// why it does not hold.
	Reasons []string `json:"reasons"`

	// LeastWorkers is the least number above Erlangs. With fewer the backlog
	// grows without end.
	LeastWorkers int `json:"least_workers"`

	// Workers and Queue are those given, or else those recommended.
	Workers int `json:"workers"`
	Queue   int `json:"queue"`

	// Utilisation is Erlangs divided by Workers, above 1 if they can't keep up.
	Utilisation float64 `json:"utilisation"`

	// Waiting is how long requests wait outside of bursts if none is refused;
	// nil if Utilisation is 1 or more, since the wait then has no bound.
	Waiting *Waiting `json:"waiting"`

	// Refused is the share of the requests that find the queue full outside of
	// bursts.
	Refused float64 `json:"refused"`

	// AcceptedWait is the mean wait of those that don't, for any Utilisation,
	// computed as for exponential service times.
	AcceptedWait float64 `json:"accepted_mean_wait_seconds"`

	// FullWait is the mean wait of a request that takes the last place in the
	// queue: Queue·Service/Workers.
	FullWait float64 `json:"full_queue_wait_seconds"`

	Bounds Bounds `json:"queue_bounds"`

	// Backlog is how many requests wait at the end of a burst on average, if
	// none is refused; 0 without a burst, or if the workers keep up with it.
	Backlog float64 `json:"burst_backlog"`

	// Drain is how long it takes after a burst until what then waits is worked
	// off, at most a full queue: Backlog/(Workers/Service − Rate); −1 if it
	// never is.
	Drain float64 `json:"drain_seconds"`

	// Capacity is Workers/Service, the rate that the workers stay below.
	Capacity float64 `json:"capacity_per_second"`

	// MaxRate is the greatest Rate for which Workers, with Queue if that was
	// given, keep everything that the Load asks for; 0 if there is none.
	MaxRate float64 `json:"max_rate_per_second"`
}

// Waiting describes the time from arrival to the start of the service in an
// M/M/w system (Erlang C), corrected for the variation of arrivals and service
// time. It includes the requests that don't wait.
type Waiting struct {
	Probability float64 `json:"probability"` // that a request waits at all
	Mean        float64 `json:"mean_seconds"`
	P50         float64 `json:"p50_seconds"`
	P90         float64 `json:"p90_seconds"`
	P99         float64 `json:"p99_seconds"`
}

// Bounds are the limits of a useful length of the queue, for Plan.Workers. A
// queue that is shorter than Refusals or Burst refuses too many; one that is
// longer than Deadline accepts requests that will be answered too late. A bound
// that an int cannot hold is given as the greatest int, far above MaxQueue.
type Bounds struct {
	// Refusals is the least length with which at most MayRefuse is refused
	// outside of bursts; nil if no length does.
	Refusals *int `json:"least_for_refusals"`

	// Burst is the least length that takes in a burst; nil if there is none.
	Burst *int `json:"least_for_burst"`

	// Deadline is the greatest length with which whoever takes the last place
	// meets its deadline; nil if there is none, −1 if the service alone takes
	// longer.
	Deadline *int `json:"most_for_deadline"`
}

// A FieldError tells which field of a [Load] can't be used.
type FieldError struct {
	Field string // its name in Load
	Value string // what it is; empty if it is missing
	Want  string // what is allowed
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

// For returns the plan for a load. A load that can't be held is no error: the
// plan then says so, and why. The error is a [*FieldError] if a field is
// negative where that means nothing, not a number, infinite, missing or too
// large.
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
		Reasons:      a.faults,
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
	if a.load < float64(l.Workers) {
		unit := l.variation() * l.Service.Seconds()
		quantile := func(q float64) float64 { return unit * waitQuantile(l.Workers, a.load, a.c, q) }
		p.Waiting = &Waiting{a.c, unit * meanWait(l.Workers, a.load, a.c), quantile(0.5), quantile(0.9), quantile(0.99)}
		p.Drain = min(p.Backlog, float64(a.queue)) / (float64(l.Workers) - a.load) * l.Service.Seconds()
	} else {
		p.Drain = -1
	}
	switch {
	case !p.Holds && recommend && l.Workers == MaxWorkers:
		p.Reasons = append(p.Reasons, "More than 1,000,000 workers are beyond this planner: ask for less, or divide the load.")
	case p.Holds && recommend && l.Workers == p.LeastWorkers:
		p.Reasons = []string{fmt.Sprintf("%d is the least number of workers above the %.4g that are busy on average; with fewer the backlog grows without end.", l.Workers, a.load)}
	case p.Holds && recommend:
		p.Reasons = append([]string{"One worker less would not do:"}, l.assess(l.Workers-1).faults...)
	case p.Holds:
		p.Reasons = []string{fmt.Sprintf("%d workers and a queue of %d keep everything asked for, up to %s requests a second.", l.Workers, a.queue, rate(maxRate))}
	case l.Rate == 0:
		p.Reasons = append(p.Reasons, fmt.Sprintf("With %d workers this can be kept for no rate at all.", l.Workers))
	case !recommend:
		if w := l.recommended(); l.assess(w).faults == nil && w != l.Workers {
			with := ""
			if l.Queue >= 0 {
				with = " with this queue"
			}
			p.Reasons = append(p.Reasons, fmt.Sprintf("%d workers do%s.", w, with))
		}
	}
	return p, nil
}

// withDefaults checks the fields and puts in the defaults. What it returns says
// by 0 that there is no burst, no deadline, no variation, or no worker or rate
// yet, and by −1 that there is no queue yet.
func (l Load) withDefaults() (Load, error) {
	number := func(v float64) string { return fmt.Sprintf("%g", v) }
	// A NaN fails every comparison, so each asks for what is allowed; of the rate
	// the last one does.
	switch {
	case l.Rate == 0 && l.Workers == 0:
		return l, &FieldError{"Rate", "", wantRate + ", or a number of workers"}
	case l.Rate < 0:
		return l, &FieldError{"Rate", number(l.Rate), wantRate}
	case l.Service == 0:
		return l, &FieldError{"Service", "", wantService}
	case l.Service < 0:
		return l, &FieldError{"Service", l.Service.String(), wantService}
	case !(l.CV2 == -1 || l.CV2 >= 0 && l.CV2 <= 1e6):
		return l, &FieldError{"CV2", number(l.CV2), wantCV2 + ", or -1 for none"}
	case !(l.ArrivalCV2 == -1 || l.ArrivalCV2 >= 0 && l.ArrivalCV2 <= 1e6):
		return l, &FieldError{"ArrivalCV2", number(l.ArrivalCV2), wantCV2 + ", or -1 for none"}
	case l.Burst == 0 && l.BurstFor > 0:
		return l, &FieldError{"Burst", "", wantBurst + ", since a burst has a duration"}
	case !(l.Burst == 0 || l.Burst >= 1 && l.Burst <= 1e6):
		return l, &FieldError{"Burst", number(l.Burst), wantBurst}
	case l.BurstFor < 0:
		return l, &FieldError{"BurstFor", l.BurstFor.String(), wantDuration}
	case l.Deadline < 0:
		return l, &FieldError{"Deadline", l.Deadline.String(), wantDuration}
	case !(l.MayWait >= 0 && l.MayWait <= 1):
		return l, &FieldError{"MayWait", number(l.MayWait), wantMayWait}
	case !(l.MayRefuse == 0 || l.MayRefuse >= 1e-12 && l.MayRefuse <= 1):
		return l, &FieldError{"MayRefuse", number(l.MayRefuse), wantMayRefuse}
	case l.Workers < 0 || l.Workers > MaxWorkers:
		return l, &FieldError{"Workers", fmt.Sprint(l.Workers), wantWorkers}
	case l.Queue < -1 || l.Queue > MaxQueue:
		return l, &FieldError{"Queue", fmt.Sprint(l.Queue), wantQueue + ", or -1 for none"}
	case !(l.load() < MaxWorkers):
		most := MaxWorkers / l.Service.Seconds()
		return l, &FieldError{"Rate", number(l.Rate), fmt.Sprintf("less than %g, which keeps 1,000,000 workers busy", most)}
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

// load returns Rate·Service. Counting in nanoseconds first keeps 100 a second
// of 290 ms at 29 sharp.
func (l Load) load() float64 {
	return l.Rate * float64(l.Service) / 1e9
}

// leastWorkers is rule 1: the load is below the number of workers, not equal.
func leastWorkers(load float64) int {
	return int(load) + 1
}

// recommended returns the least number of workers that hold the load. If the
// service alone takes longer than the deadline no number does, and the deadline
// is left out; if still none does, it returns MaxWorkers.
func (l Load) recommended() int {
	if l.longService() > l.Deadline.Seconds() {
		l.Deadline = 0
	}
	return least(leastWorkers(l.load()), MaxWorkers, func(w int) bool { return l.assess(w).faults == nil })
}

// maxRate returns the greatest rate that Workers hold, found by halving to
// within 2^-40 of the capacity.
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

// An assessment is what becomes of a load with some number of workers.
type assessment struct {
	load, b, c float64  // Erlang B and C
	refusals   int64    // bounds of the queue; −1: no length does
	burst      int64    // 0: no burst
	deadline   int64    // −1: no length does
	queue      int      // given, or else the least that does
	faults     []string // what is not kept, in sentences
}

func (l Load) assess(workers int) assessment {
	a := assessment{load: l.load()}
	a.b = ErlangB(workers, a.load)
	a.c = erlangC(workers, a.load, a.b)
	fault := func(format string, args ...any) { a.faults = append(a.faults, fmt.Sprintf(format, args...)) }

	if n, ok := leastQueue(workers, a.load, l.MayRefuse, a.b); ok {
		a.refusals = n
	} else {
		a.refusals = -1
	}
	if l.Burst > 0 {
		a.burst = l.burstQueue(workers, l.margin())
	}
	a.queue = l.Queue
	if a.queue < 0 {
		a.queue = int(min(max(a.refusals, a.burst, 0), MaxQueue))
	}
	capacity := float64(workers) / l.Service.Seconds()
	switch {
	case a.load >= float64(workers):
		fault("%s requests arrive in a second and %d workers do %s: the backlog grows without end, so no queue is long enough and only workers help, at least %d.",
			rate(l.Rate), workers, rate(capacity), leastWorkers(a.load))
	case a.c > l.MayWait:
		fault("%s of the requests wait for one of %d workers, %s may.", share(a.c), workers, share(l.MayWait))
	}
	switch {
	case a.load >= float64(workers): // said above
	case a.refusals > MaxQueue && l.Queue < 0:
		fault("To refuse at most %s with %d workers the queue needs %d places, more than 10,000,000.", share(l.MayRefuse), workers, a.refusals)
	case int64(a.queue) < a.refusals:
		fault("With a queue of %d more than %s are refused; %d workers need at least %d.", a.queue, share(l.MayRefuse), workers, a.refusals)
	}
	switch {
	case a.burst > MaxQueue && l.Queue < 0:
		fault("A burst needs a queue of %d with %d workers, more than 10,000,000.", a.burst, workers)
	case int64(a.queue) < a.burst:
		fault("A burst needs a queue of %d with %d workers, longer than %d.", a.burst, workers, a.queue)
	}
	if l.Deadline == 0 {
		return a
	}
	a.deadline = l.deadlineQueue(workers, l.longService(), l.margin())
	switch {
	case a.deadline < 0:
		fault("The work alone takes longer than %v (%s with probability %s): neither workers nor a queue meet that deadline, only faster work does.",
			l.Deadline, seconds(l.longService()), share(min(l.MayRefuse, 1)))
	case int64(a.queue) > a.deadline && l.Queue >= 0:
		fault("With %d workers a queue of more than %d is too long: who takes its last place is answered after the deadline.", workers, a.deadline)
	case int64(a.queue) > a.deadline && a.burst >= a.refusals:
		fault("With %d workers a burst needs a queue of %d and the deadline allows %d: they contradict each other, no length is right for both, and only workers help.", workers, a.burst, a.deadline)
	case int64(a.queue) > a.deadline:
		fault("With %d workers few refusals need a queue of %d and the deadline allows %d: no length is right for both, and only workers help.", workers, a.refusals, a.deadline)
	}
	return a
}

// bound returns a length as it is told in Bounds.
func bound(l int64) *int {
	n := int(min(l, math.MaxInt))
	return &n
}

// growth returns how many more requests arrive in a burst than workers do:
// (m·n − w/s)·T, rule 2 for a burst of T seconds.
func (l Load) growth(workers int) float64 {
	return (l.Burst*l.Rate - float64(workers)/l.Service.Seconds()) * l.BurstFor.Seconds()
}

// burstQueue returns the least queue that takes in a burst:
// (m·n − w/s)·T + z·√(T·(m·n·ArrivalCV2 + w/s·CV2)), where z standard deviations are left as
// a margin. Workers that are faster than the burst do no more than arrives.
func (l Load) burstQueue(workers int, z float64) int64 {
	in := l.Burst * l.Rate
	out := min(in, float64(workers)/l.Service.Seconds())
	return whole(math.Ceil((l.growth(workers) + z*math.Sqrt(l.BurstFor.Seconds()*(in*l.ArrivalCV2+out*l.CV2))) * (1 - rounding)))
}

// deadlineQueue returns the greatest queue L with which who takes the last place
// is answered in time, or −1 if the service alone takes too long. Its own
// service takes long, and L + 1 before it have a mean of (L+1)·s/w and z
// standard deviations of √((L+1)·CV2)·s/w. It is solved for √(L+1).
func (l Load) deadlineQueue(workers int, long, z float64) int64 {
	left := float64(workers) * (l.Deadline.Seconds() - long) / l.Service.Seconds()
	if left < 0 {
		return -1
	}
	if left == 0 {
		return 0
	}
	// (−p + √(p²+4·left))/2 without the difference, which cancels.
	p := z * math.Sqrt(l.CV2)
	x := 2 * left / (p + math.Sqrt(p*p+4*left))
	return whole(math.Floor(x*x*(1+rounding) - 1))
}

// rounding is how much of a bound may be a rounding error, which must not cost a
// place: 8·0.95/0.05 is a little below 152.
const rounding = 1e-12

// whole returns x as a whole number from 0 on.
func whole(x float64) int64 {
	return int64(max(0, min(x, longest)))
}

// margin returns by how many standard deviations a normally distributed value
// exceeds its mean with probability MayRefuse, at least 0.
func (l Load) margin() float64 {
	return math.Sqrt2 * math.Erfcinv(2*min(l.MayRefuse, 0.5))
}

// longService returns the seconds that a service takes longer than with
// probability MayRefuse, at least its mean: of an exponential distribution if
// CV2 is 1, else of a gamma distribution after Wilson and Hilferty (1931).
func (l Load) longService() float64 {
	mean := l.Service.Seconds()
	if l.CV2 == 1 {
		return mean * max(1, -math.Log(l.MayRefuse))
	}
	root := 1 - l.CV2/9 + l.margin()*math.Sqrt(l.CV2)/3
	return mean * max(1, root*root*root)
}

// variation returns the factor of Allen and Cunneen for the mean wait.
func (l Load) variation() float64 {
	return (l.ArrivalCV2 + l.CV2) / 2
}
