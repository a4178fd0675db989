package admin

import (
	"fmt"
	"math"
	"slices"
	"time"

	"holdfast"
	"holdfast/histogram"
	"holdfast/plan"
)

// Advice is what package plan makes of the arrivals and service times of the last
// minutes. What it can't know yet is null, and Missing then says what it waits for.
// Up to a fifth of the requests may have to wait for a worker and one in a hundred
// may be refused, the defaults of a [plan.Load]; there is no deadline, since
// nobody has told the server of one.
type Advice struct {
	Missing string `json:"missing"` // empty once there is an advice

	// Window is how far it looks back: five minutes at most, and not beyond the
	// last change of workers or queue, or of the arrival rate for good.
	Window float64 `json:"window_seconds"`

	// Arrivals counts accepted requests, those that found the queue full, those
	// that left before there was a place and those that still wait for one, each
	// when it arrived.
	Arrivals float64 `json:"arrivals_per_second"`

	// ArrivalCV2 is the index of dispersion of the arrivals in a second, variance
	// by mean, outside of bursts, which would else count twice: 1 if they are
	// random. It does not see what happens within a second. With few arrivals, or
	// in few seconds, it is close to 1 whatever they do.
	ArrivalCV2 *float64 `json:"arrival_cv2"`

	Service    *float64 `json:"service_seconds"` // on average, of jobs that have run and ended
	ServiceCV2 *float64 `json:"service_cv2"`

	Burst *ArrivalBurst `json:"burst"` // null if there was none

	Load        *float64 `json:"load_erlangs"`
	Utilisation *float64 `json:"utilisation"`

	// MaxRate is the greatest arrival rate that the workers and the queue hold,
	// Headroom how much of it is left, below 0 if it is exceeded.
	MaxRate  *float64 `json:"max_rate_per_second"`
	Headroom *float64 `json:"headroom_per_second"`

	Holds   *bool    `json:"holds"`   // whether they hold this load
	Reasons []string `json:"reasons"` // why, and what the numbers do not tell

	Workers *int     `json:"workers"` // that plan would choose, together with Queue
	Queue   *int     `json:"queue"`
	Why     []string `json:"why"`

	Wait WaitFit `json:"wait"`
}

// An ArrivalBurst is the run of seconds that stands out most over the rest, more
// than chance would have it.
type ArrivalBurst struct {
	Factor  float64 `json:"factor"` // its rate, divided by Advice.Arrivals
	Seconds float64 `json:"seconds"`
}

// A WaitFit holds the wait that was predicted for the present load, workers and
// queue against the measured one, from acceptance to the start of the run.
type WaitFit struct {
	Measured  *float64 `json:"measured_mean_seconds"`
	Predicted *float64 `json:"predicted_mean_seconds"`
	Ratio     *float64 `json:"ratio"` // measured by predicted; null if either is less than a nanosecond
	Note      string   `json:"note"`
}

const (
	// Less than this is too little to go by.
	leastWindow = 10 * time.Second
	leastJobs   = 20

	// A higher rate that lasts longer is no burst but another load. With a burst
	// of minutes, plan would advise to queue what comes in all that time.
	longestBurst = 30 * time.Second

	// A run of seconds stands out if it has so many times the rate of the rest,
	// and is so many standard deviations above what random arrivals bring: more
	// than usual, since it is the best of all runs.
	burstFactor     = 1.5
	burstDeviations = 5
)

func advise(marks []mark) Advice {
	a := Advice{Reasons: []string{}, Why: []string{}}
	w := newWindow(sameSize(marks), "since the last change of workers or queue")
	if len(w.marks) == len(marks) {
		w.since = "seen so far"
	}
	w = w.settle()
	if len(w.marks) == 0 {
		a.Missing = "Nothing was seen yet."
		return a
	}
	from, to := &w.marks[0].stats, &w.marks[len(w.marks)-1].stats
	wait, run := to.Wait.Since(&from.Wait), to.Run.Since(&from.Run)

	arrivals := total(w.all).arrivals
	a.Window = total(w.all).length
	if a.Window > 0 {
		a.Arrivals = arrivals / a.Window
	}
	if run.Count > 0 {
		a.Service, a.ServiceCV2 = mean(&run), new(run.CV2())
	}
	a.Wait.Measured = mean(&wait)

	switch {
	case to.Workers == 0:
		a.Missing = "There are no workers: the server is paused, or stops."
	case a.Window < leastWindow.Seconds() || arrivals < leastJobs || run.Count < leastJobs:
		a.Missing = fmt.Sprintf("An advice needs %.0f s with %d arrivals and %d jobs that have run and ended; in the %.0f s %s there were %.0f and %d.",
			leastWindow.Seconds(), leastJobs, leastJobs, a.Window, w.since, arrivals, run.Count)
		if run.Count == 0 && to.Running > 0 {
			a.Missing += fmt.Sprintf(" None of the %d jobs that run has ended, so it is not known how long they take.", to.Running)
		}
	case run.Mean() == 0:
		a.Missing = "The jobs take no time that could be measured."
	}
	if a.Missing != "" {
		return a
	}

	a.ArrivalCV2 = new(dispersion(w.steady))
	load := plan.Load{Rate: a.Arrivals, Service: run.Mean(), CV2: orNone(*a.ServiceCV2), ArrivalCV2: orNone(*a.ArrivalCV2)}
	if burst := total(w.all[w.burst[0]:w.burst[1]]); burst.length > 0 {
		// Bursts come again, so the mean rate that the workers must do in the long
		// run, rule 1, includes them; the rate outside could also be 0. It makes
		// the waits outside of bursts a little too long. Factor times Rate is the
		// rate in the burst either way, and what its backlog comes from.
		a.Burst = &ArrivalBurst{burst.arrivals / burst.length / a.Arrivals, burst.length}
		load.Burst, load.BurstFor = min(max(a.Burst.Factor, 1), 1e6), time.Duration(a.Burst.Seconds*1e9)
	}
	choice, err := plan.For(load)
	if err != nil {
		a.Missing = "The planner cannot tell: " + err.Error() + "."
		return a
	}
	load.Workers, load.Queue = to.Workers, to.Queue
	if to.Queue == 0 {
		load.Queue = -1
	}
	now, err := plan.For(load)
	if err != nil {
		a.Missing = "The planner cannot tell: " + err.Error() + "."
		return a
	}
	a.Load, a.Utilisation = &now.Erlangs, &now.Utilisation
	a.MaxRate, a.Headroom = &now.MaxRate, new(now.MaxRate-now.Rate)
	a.Holds, a.Reasons = &now.Holds, append(now.Reasons, w.caveats(&run)...)
	if w.changing {
		a.Reasons = append(a.Reasons, fmt.Sprintf("The arrival rate has changed in the last %.0f s; the figures are still those of the whole %.0f s.", longestBurst.Seconds(), a.Window))
	}
	if n := now.Bounds.Refusals; to.Overflow == holdfast.Block && n != nil && now.Queue < *n {
		a.Reasons = append(a.Reasons, "Nobody is refused while overflow is block: they wait for a place instead.")
	}
	a.Workers, a.Queue, a.Why = &choice.Workers, &choice.Queue, choice.Reasons
	switch n := choice.Bounds.Burst; {
	case !choice.Holds:
	case n != nil && *n > 0 && *n == choice.Queue:
		a.Why = append(a.Why, fmt.Sprintf("A queue of %d takes in another burst like this one; who takes its last place waits %.3g s, and the server does not know how long clients do.", choice.Queue, choice.FullWait))
	default:
		a.Why = append(a.Why, fmt.Sprintf("With a queue of %d at most 1 %% of the requests are refused.", choice.Queue))
	}

	variation := (*a.ArrivalCV2 + *a.ServiceCV2) / 2
	a.Wait.Predicted = new(math.Round(1e9*predictedWait(now, variation, to.Overflow)) / 1e9) // no clock measures less
	a.Wait.interpret(now, variation, a.Window, from.Queued)
	return a
}

// orNone returns a coefficient of variation as plan has it: −1 for none, and not
// more than it takes.
func orNone(cv2 float64) float64 {
	if cv2 == 0 {
		return -1
	}
	return min(cv2, 1e6)
}

// sameSize returns the last marks that have the same workers and queue. The first
// of them was made after the change, so nothing from before it counts.
func sameSize(marks []mark) []mark {
	for i := len(marks) - 1; i > 0; i-- {
		if s, t := &marks[i].stats, &marks[i-1].stats; s.Workers != t.Workers || s.Queue != t.Queue {
			return marks[i:]
		}
	}
	return marks
}

// A window is what has happened between marks.
type window struct {
	marks []mark
	since string // what it begins with
	all   []second

	// The run of seconds that stands out most, burst[0] to burst[1], if there is
	// one; where steady is not zero, nothing stands out, or, if the rate is
	// changing, it has not changed yet.
	burst    [2]int
	steady   []second
	changing bool
}

// A second is what has arrived from a mark to the next one. The zero second is not
// there.
type second struct{ arrivals, length float64 }

func newWindow(marks []mark, since string) window {
	w := window{marks: marks, since: since}
	for i := range len(marks) - 1 {
		// Who waits for a place has arrived, and is not accepted yet: without it
		// the arrivals at a full queue would seem to come at the workers' pace. Who
		// leaves can be missing in both for a moment, hence max.
		s, t := &marks[i].stats, &marks[i+1].stats
		n := float64(t.Accepted-s.Accepted) + float64(t.RefusedFull-s.RefusedFull) + float64(t.RefusedGone-s.RefusedGone) + float64(t.Blocked-s.Blocked)
		w.all = append(w.all, second{max(n, 0), marks[i+1].at.Sub(marks[i].at).Seconds()})
	}
	w.steady = slices.Clone(w.all)
	return w
}

func total(list []second) (sum second) {
	for _, s := range list {
		sum.arrivals += s.arrivals
		sum.length += s.length
	}
	return sum
}

// settle finds what stands out, and leaves out what was before the arrival rate
// changed for good. The rate is changing if it was higher for long, and too little
// was seen of what it is now.
func (w window) settle() window {
	longest := longestBurst.Seconds()
	for range 10 { // more bursts than that are the way in which these requests come
		i, j := peak(w.steady)
		if i == j {
			break
		}
		if total(w.all[i:j]).length <= longest {
			if w.burst[1] == 0 {
				w.burst = [2]int{i, j}
			}
			clear(w.steady[i:j])
			continue
		}
		cut := i
		if total(w.all[j:]).length >= longest {
			cut = j
		}
		if cut == 0 {
			w.changing = true
			clear(w.steady[j:])
			break
		}
		w = newWindow(w.marks[cut:], "since the arrival rate changed")
	}
	return w
}

// peak returns the run of seconds that stands out most over the rest, or 0, 0 if
// none stands out enough. That with the greatest excess would be another one: where
// chance has its way for long enough, it exceeds a short burst.
func peak(list []second) (from, to int) {
	all := total(list)
	best := float64(burstDeviations)
	for i := range list {
		if list[i].length == 0 {
			continue
		}
		var run second
		for j, s := range list[i:] {
			run.arrivals += s.arrivals
			run.length += s.length
			n, share := run.arrivals, run.length/all.length
			if n*(1-share) < burstFactor*(all.arrivals-n)*share {
				continue
			}
			// The root of a Poisson count has a deviation of a half, however small
			// it is.
			if z := 2 * (math.Sqrt(n) - math.Sqrt(all.arrivals*share)); z > best {
				best, from, to = z, i, i+j+1
			}
		}
	}
	return from, to
}

// dispersion returns the index of dispersion of the arrivals in a second.
func dispersion(list []second) float64 {
	all := total(list)
	if all.arrivals < 30 {
		return 1
	}
	seconds, squares := 0.0, 0.0
	for _, s := range list {
		if s.length > 0 {
			want := all.arrivals * (s.length / all.length)
			squares += (s.arrivals - want) * (s.arrivals - want) / want
			seconds++
		}
	}
	// It counts for as much as the number of seconds beside ten with a value of 1.
	const prior = 10
	return (squares + prior) / (seconds - 1 + prior)
}

// caveats says what the numbers do not tell.
func (w window) caveats(run *histogram.Histogram) (list []string) {
	say := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	from, to := &w.marks[0].stats, &w.marks[len(w.marks)-1].stats
	blocked, busy := 0, 0.0
	for i := range w.marks {
		blocked = max(blocked, w.marks[i].stats.Blocked)
		busy += float64(w.marks[i].stats.Running) / float64(len(w.marks))
	}
	if blocked > 0 {
		say("Up to %d requests at a time waited for a place in the queue. Clients that send the next request when the last one was answered are slowed to the pace of the workers; they would send more than was measured.", blocked)
	}
	if n := to.RefusedFull - from.RefusedFull; n > 0 {
		say("%d requests found the queue full and were refused; those that try again are counted each time.", n)
	}
	if n := to.RefusedGone - from.RefusedGone; n > 0 {
		say("%d clients left before there was a place; they count as arrivals.", n)
	}
	if all := ended(to) - ended(from); all > run.Count {
		say("%d jobs ended without having run, canceled or dropped in the queue: they count as arrivals but need no worker, so the load is less than computed.", all-run.Count)
	}
	// In the long run as much is worked as the jobs that end have taken.
	seconds := total(w.all).length
	if done := run.Sum / 1e9 / seconds; busy > 1.25*done+1 {
		say("%.4g workers were busy on average, but the jobs that ended account for %.4g: others that still run take longer than the %.0f s looked at, so the service time and the load are more than computed.", busy, done, seconds)
	}
	return list
}

func ended(st *holdfast.Stats) uint64 {
	return st.Succeeded + st.Failed + st.Panicked + st.Canceled + st.Dropped + st.Abandoned
}

// predictedWait returns the mean wait of the requests that start, in the steady
// state.
//
// It is not Plan.Waiting.Mean, which is of a queue without end: there a request
// waits longer than t with probability C·exp(−t/m). If requests wait for a place,
// only what passes in the last Queue places is counted as wait, F at most on
// average, F the wait from the last place: C·m·(1 − x), where x = exp(−F/m). If they
// are refused instead, the share C·x is missing. The variation of arrivals and
// service stretches m; with none beyond chance, x is r^Queue, and both are exact. If
// the oldest is dropped the queue is as long as with refusals, but everybody
// enters it, so that by Little's law each spends less time there.
func predictedWait(p plan.Plan, variation float64, overflow holdfast.Overflow) float64 {
	if overflow == holdfast.DropOldest {
		return (1 - p.Refused) * predictedWait(p, variation, holdfast.Reject)
	}
	if p.Queue == 0 || variation == 0 && p.Waiting != nil {
		return 0
	}
	c, places := 1.0, 0.0 // F/m, which is 0 if the queue has no reason to be short
	if p.Waiting != nil {
		c, places = p.Waiting.Probability, -float64(p.Queue)*math.Log(p.Utilisation)/variation
	}
	left := -math.Expm1(-places) // 1 − x
	switch {
	case places < 1e-4 && overflow == holdfast.Block: // the differences would cancel
		return c * p.FullWait
	case places < 1e-4:
		return p.AcceptedWait
	case overflow == holdfast.Block:
		return p.Waiting.Mean * left
	}
	return max(0, (p.Waiting.Mean*left-c*p.FullWait*(1-left))/(1-c*(1-left)))
}

// interpret sets Ratio and Note.
func (f *WaitFit) interpret(now plan.Plan, variation, window float64, backlog int) {
	if f.Measured == nil {
		f.Note = "No job has started, so there is no wait to compare with."
		return
	}
	measured, predicted := *f.Measured, *f.Predicted
	ratio := measured / predicted
	if measured > 0 && predicted > 0 {
		f.Ratio = &ratio
	}
	near := ratio >= 0.5 && ratio <= 2
	switch {
	case max(measured, predicted) < now.Service/100:
		f.Note = "Hardly anybody waits: what was measured and what was predicted are both less than a hundredth of the service time."
		return
	case now.Waiting == nil && near:
		f.Note = "The workers cannot keep up: as predicted, the queue is full most of the time."
	case now.Waiting == nil:
		f.Note = "The workers cannot keep up: the prediction is of the steady state with a full queue, which was not there all the time."
	case near:
		f.Note = "The prediction is within a factor of two of what was measured."
	case ratio > 2:
		f.Note = "Jobs waited longer than predicted: requests come in bursts, also within a second, or at a rate that is not steady, or the work slows down under load."
	default:
		f.Note = "Jobs waited shorter than predicted: requests come more evenly than at random, as from clients that wait for one answer before they send the next request."
	}
	if backlog > now.Workers {
		f.Note += fmt.Sprintf(" %d jobs waited already when the measurement began.", backlog)
	}
	// Near full load a queue forgets what it was like, but slowly: in about
	// 4·s/(w·(1−r)²), which variation stretches.
	if idle := 1 - now.Utilisation; now.Waiting != nil && 20*4*variation*now.Service > window*float64(now.Workers)*idle*idle {
		f.Note += fmt.Sprintf(" At this utilisation %.0f s are short: chance alone can make a great difference.", window)
	}
}
