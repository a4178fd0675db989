package plan

import "math"

// ErlangB returns the share of requests that workers without a queue refuse, the
// M/M/w/w system: B(0) = 1, B(k) = a·B(k−1) / (k + a·B(k−1)) (Erlang 1917). The
// load a is the arrival rate times the mean service time, in erlangs; the
// distribution of the service time does not matter. ErlangB takes time
// proportional to workers, about 2 ms for a million. It returns NaN if workers or
// load is negative or load is NaN.
func ErlangB(workers int, load float64) float64 {
	return math.Exp(LogErlangB(workers, load))
}

// LogErlangB returns the natural logarithm of [ErlangB], even where ErlangB itself
// is too small for a float64. It is −Inf if load is 0 and workers is not.
func LogErlangB(workers int, load float64) float64 {
	switch {
	case workers < 0 || !(load >= 0):
		return math.NaN()
	case workers == 0 || math.IsInf(load, 1):
		return 0
	case load == 0:
		return math.Inf(-1)
	case load < 0x1p-400:
		// The probabilities of the states below the last one sum to 1, so B is
		// a^w/w!. The recurrence below could overflow in k/load.
		factorial, _ := math.Lgamma(float64(workers) + 1)
		return float64(workers)*math.Log(load) - factorial
	}
	// The recurrence for 1/B adds only positive numbers, so no digits cancel.
	// 1/B is inverse·2^exponent, and one is 1 on that scale.
	inverse, one, exponent := 1.0, 1.0, 0
	for k := 1; k <= workers; k++ {
		inverse = inverse*(float64(k)/load) + one
		if inverse > 0x1p500 {
			inverse *= 0x1p-500
			one *= 0x1p-500
			exponent += 500
		}
	}
	return -math.Log(inverse) - float64(exponent)*math.Ln2
}

// ErlangC returns the share of requests that wait for a worker if the queue is
// unbounded, the M/M/w system: C = w·B / (w − a·(1−B)), where B is [ErlangB]. It is
// 1 if the workers can't keep up, load >= workers. Arguments and cost are those of
// ErlangB.
func ErlangC(workers int, load float64) float64 {
	return erlangC(workers, load, ErlangB(workers, load))
}

func erlangC(workers int, load, b float64) float64 {
	w := float64(workers)
	if load >= w {
		return b - b + 1 // NaN stays NaN
	}
	return w * b / ((w - load) + load*b)
}

// MeanWait returns the mean wait of all requests in an M/M/w system, including
// those that don't wait, in units of the mean service time: C / (w − a). It is
// +Inf if load >= workers.
func MeanWait(workers int, load float64) float64 {
	return meanWait(workers, load, ErlangC(workers, load))
}

func meanWait(workers int, load, c float64) float64 {
	if load >= float64(workers) {
		return c * math.Inf(1)
	}
	return c / (float64(workers) - load)
}

// WaitBeyond returns the share of requests that wait longer than t in an M/M/w
// system, where t >= 0 is in units of the mean service time: C·exp(−(w−a)·t).
// It is 1 if load >= workers.
func WaitBeyond(workers int, load, t float64) float64 {
	c := ErlangC(workers, load)
	if load >= float64(workers) {
		return c
	}
	return c * math.Exp(-(float64(workers)-load)*t)
}

// WaitQuantile returns the p-quantile of the wait in an M/M/w system, the time that
// a share p of the requests, 0 <= p < 1, wait at most. It is in units of the mean
// service time: ln(C/(1−p)) / (w − a), or 0 if C <= 1−p. It is +Inf if
// load >= workers.
func WaitQuantile(workers int, load, p float64) float64 {
	return waitQuantile(workers, load, ErlangC(workers, load), p)
}

func waitQuantile(workers int, load, c, p float64) float64 {
	if load >= float64(workers) {
		return c * math.Inf(1)
	}
	if c <= 1-p {
		return 0
	}
	return math.Log(c/(1-p)) / (float64(workers) - load)
}

// Loss returns the share of requests that are refused if at most queue requests
// can wait, the M/M/w/w+L system. (The K in M/M/c/K counts workers and queue.) It
// is [ErlangB] if queue is 0, and at least 1 − w/a however long the queue is. It
// returns NaN if an argument is negative or NaN.
func Loss(workers, queue int, load float64) float64 {
	if queue < 0 {
		return math.NaN()
	}
	return loss(workers, int64(queue), load, ErlangB(workers, load))
}

// loss sums B·r^L / (1 + B·(r + r² + … + r^L)) in closed form, with r = a/w.
// For r > 1 the powers would overflow, so both sides are multiplied by r^−L.
func loss(workers int, queue int64, load, b float64) float64 {
	w, l := float64(workers), float64(queue)
	if queue == 0 || workers == 0 || load == 0 || math.IsInf(load, 1) || b != b {
		return b
	}
	x := l * logUtilisation(w, load)
	switch {
	case load < w:
		return b * math.Exp(x) / (1 + b*load*(math.Expm1(x)/(load-w)))
	case load == w:
		return b / (1 + b*l)
	default:
		return b / (math.Exp(-x) - b*math.Expm1(-x)/(1-w/load))
	}
}

// logUtilisation returns ln(a/w). Near a = w it uses the difference, which keeps
// digits that the quotient loses.
func logUtilisation(w, load float64) float64 {
	if math.Abs(load-w) < w/2 {
		return math.Log1p((load - w) / w)
	}
	return math.Log(load) - math.Log(w)
}

// longest is the longest queue that is considered. A float64 represents every whole
// number up to it. An int may have 32 bits, so lengths are int64 until they are
// returned.
const longest = 1 << 53

// LeastQueue returns the shortest queue that refuses at most the share refuse of
// the requests: the smallest L with [Loss] <= refuse. It reports false if no length
// that an int can hold does. That is so if load > workers and
// refuse < 1 − workers/load, where only more workers help.
func LeastQueue(workers int, load, refuse float64) (queue int, ok bool) {
	l, ok := leastQueue(workers, load, refuse, ErlangB(workers, load))
	if !ok || l > math.MaxInt {
		return 0, false
	}
	return int(l), true
}

func leastQueue(workers int, load, refuse, b float64) (int64, bool) {
	if !(refuse > 0) || !(loss(workers, longest, load, b) <= refuse) {
		return 0, false
	}
	return least(0, longest, func(l int64) bool { return loss(workers, l, load, b) <= refuse }), true
}

// least returns the smallest i in [low, high] with enough(i), or high if there is
// none. If enough is not monotone, it returns some i where enough(i−1) is false.
// The cost of enough grows with its argument, so least first goes up in doubling
// steps.
func least[N int | int64](low, high N, enough func(N) bool) N {
	for step := N(1); step < high-low; step *= 2 {
		if enough(low + step - 1) {
			high = low + step - 1
			break
		}
		low += step
	}
	for low < high {
		if mid := low + (high-low)/2; enough(mid) {
			high = mid
		} else {
			low = mid + 1
		}
	}
	return low
}

// AcceptedWait returns the mean wait of an accepted request if at most queue
// requests can wait, the M/M/w/w+L system, in units of the mean service time. By
// Little's law it is the mean number of waiting requests divided by the accepted
// load. It is finite for any load if there are workers, and +Inf if there is a
// queue without workers. AcceptedWait takes time proportional to workers + queue.
func AcceptedWait(workers, queue int, load float64) float64 {
	if queue < 0 {
		return math.NaN()
	}
	return acceptedWait(workers, queue, load, ErlangB(workers, load))
}

func acceptedWait(workers, queue int, load, b float64) float64 {
	w, r := float64(workers), load/float64(workers)
	switch {
	case b != b:
		return b
	case queue == 0 || workers > 0 && load == 0:
		return 0
	case workers == 0:
		return math.Inf(1)
	}
	// A request that finds w + j others waits until j + 1 services have ended, at a
	// rate of w. sum adds up the odds of finding them; all adds up the odds times
	// j + 1. If r > 1, the loop goes down from j = queue − 1 instead, so that the
	// odds shrink. The closed forms cancel near r = 1, and a sum is fast enough.
	var sum, all, factor float64
	if r <= 1 {
		odds := 1.0
		for j := 0; j < queue && odds > 1e-300; j++ {
			sum += odds
			all += odds * float64(j+1)
			odds *= r
		}
		factor = b
	} else {
		odds := 1.0
		for j := queue; j > 0 && odds > 1e-300; j-- {
			sum += odds
			all += odds * float64(j)
			odds /= r
		}
		factor = b * math.Exp(float64(queue-1)*logUtilisation(w, load))
		if factor > 1e100 {
			return all / sum / w
		}
	}
	// Relative to state w, the odds of the states below it add up to 1/B − 1.
	return factor * all / w / ((1 - b) + factor*sum)
}
