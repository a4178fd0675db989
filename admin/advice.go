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

// Advice is what package plan concludes from the arrivals and service times of the
// last minutes. What is not known yet is null, and Missing says what is needed. The
// advice allows that up to a fifth of the requests wait for a worker and one in a
// hundred is refused, the defaults of a [plan.Load]. There is no deadline, since the
// server does not know one.
type Advice struct {
	Missing string `json:"missing"` // empty once there is an advice

	// Window is how far the advice looks back: at most five minutes, and not beyond
	// the last change of workers or queue, or the last lasting change of the arrival
	// rate.
	Window float64 `json:"window_seconds"`

	// Arrivals is the rate of requests that were accepted, found the queue full, left
	// before there was a place, or still wait for one. Each counts when it arrived.
	Arrivals float64 `json:"arrivals_per_second"`

	// ArrivalCV2 is the index of dispersion of the arrivals per second: their variance
	// divided by their mean, which is 1 for random arrivals. Bursts are left out,
	// since they would count twice. Variation within a second is not seen. With few
	// arrivals, or in few seconds, the value is close to 1 in any case.
	ArrivalCV2 *float64 `json:"arrival_cv2"`

	Service    *float64 `json:"service_seconds"` // mean of the jobs that ran and ended
	ServiceCV2 *float64 `json:"service_cv2"`

	Burst *ArrivalBurst `json:"burst"` // null if there was none

	Load        *float64 `json:"load_erlangs"`
	Utilisation *float64 `json:"utilisation"`

	// MaxRate is the greatest arrival rate that the workers and the queue can handle.
	// Headroom is how much of it is left, and negative if it is exceeded.
	MaxRate  *float64 `json:"max_rate_per_second"`
	Headroom *float64 `json:"headroom_per_second"`

	Holds   *bool    `json:"holds"`   // whether they can handle this load
	Reasons []string `json:"reasons"` // why, and what the numbers do not show

	Workers *int     `json:"workers"` // what plan would choose, together with Queue
	Queue   *int     `json:"queue"`
	Why     []string `json:"why"`

	Wait WaitFit `json:"wait"`
}

// An ArrivalBurst is the run of seconds that exceeds the others most, by more than
// chance explains.
type ArrivalBurst struct {
	Factor  float64 `json:"factor"` // its rate divided by Advice.Arrivals
	Seconds float64 `json:"seconds"`
}

// A WaitFit compares the measured wait, from acceptance to the start of the run, with
// the wait that is predicted for the present load, workers and queue.
type WaitFit struct {
	Measured  *float64 `json:"measured_mean_seconds"`
	Predicted *float64 `json:"predicted_mean_seconds"`
	Ratio     *float64 `json:"ratio"` // measured divided by predicted; null if either is less than a nanosecond
	Note      string   `json:"note"`
}

const (
	// An advice needs at least this much data. The arrivals must be spread over some
	// seconds: a single burst after the start says nothing about the usual rate.
	leastSeconds = 10 // in which requests arrived
	leastJobs    = 20

	// A higher rate that lasts longer is not a burst but another load. For a burst
	// of minutes, plan would advise a queue for everything that arrives meanwhile.
	longestBurst = 30 * time.Second

	// A run of seconds is a burst if its rate is this many times that of the others,
	// and this many standard deviations above that of random arrivals. That is more
	// deviations than usual, since the most extreme of all runs is tested.
	burstFactor     = 1.5
	burstDeviations = 5
)

// advise returns the advice for what happened between the marks.
func advise(marks []mark) Advice {
	a := Advice{Reasons: []string{}, Why: []string{}}
	w := newWindow(sameSize(marks), "since the last change of workers or queue")
	if len(w.marks) == len(marks) {
		w.since = "seen so far"
	}
	w = w.settle()
	if len(w.marks) == 0 {
		a.Missing = "Nothing was measured yet."
		return a
	}
	m := w.measure(&a)
	if a.Missing = w.missing(m); a.Missing != "" {
		return a
	}
	load := w.load(&a, m)
	choice, err := plan.For(load)
	if err != nil {
		a.Missing = "The planner cannot compute an advice: " + err.Error() + "."
		return a
	}
	load.Workers, load.Queue = m.to.Workers, m.to.Queue
	if load.Queue == 0 {
		load.Queue = -1
	}
	now, err := plan.For(load)
	if err != nil {
		a.Missing = "The planner cannot compute an advice: " + err.Error() + "."
		return a
	}
	w.assess(&a, m, now)
	a.recommend(choice)
	variation := (*a.ArrivalCV2 + *a.ServiceCV2) / 2
	a.Wait.Predicted = new(math.Round(1e9*predictedWait(now, variation, m.to.Overflow)) / 1e9) // no clock measures less
	a.Wait.interpret(now, variation, a.Window, m.from.Queued)
	return a
}

// A measurement is what was measured in a window.
type measurement struct {
	from, to *holdfast.Stats     // at its beginning and end
	run      histogram.Histogram // of the jobs that ended in it
	arrivals float64
	length   float64 // in seconds
}

// measure returns what was measured in the window, and sets in a what follows from it
// without package plan.
func (w *window) measure(a *Advice) *measurement {
	all := total(w.all)
	m := &measurement{
		from: &w.marks[0].stats, to: &w.marks[len(w.marks)-1].stats,
		arrivals: all.arrivals, length: all.length,
	}
	wait := m.to.Wait.Since(&m.from.Wait)
	m.run = m.to.Run.Since(&m.from.Run)
	a.Window = m.length
	if m.length > 0 {
		a.Arrivals = m.arrivals / m.length
	}
	if m.run.Count > 0 {
		a.Service, a.ServiceCV2 = mean(&m.run), new(m.run.CV2())
	}
	a.Wait.Measured = mean(&wait)
	return m
}

// missing says what an advice needs and the window does not have, or returns "".
func (w *window) missing(m *measurement) string {
	busy := 0
	for _, s := range w.all {
		if s.arrivals > 0 {
			busy++
		}
	}
	switch {
	case m.to.Workers == 0:
		return "There are no workers: the server is paused or stopping."
	case busy < leastSeconds || m.arrivals < leastJobs || m.run.Count < leastJobs:
		text := fmt.Sprintf("It needs arrivals in %d different seconds, %d in all, and %d jobs that ran and ended. In the %.0f s %s there were arrivals in %d, %.0f in all, and %d such jobs.",
			leastSeconds, leastJobs, leastJobs, m.length, w.since, busy, m.arrivals, m.run.Count)
		if m.run.Count == 0 && m.to.Running > 0 {
			text += fmt.Sprintf(" None of the %d running jobs has ended, so it is not known how long they take.", m.to.Running)
		}
		return text
	case m.run.Mean() == 0:
		return "The jobs take no measurable time."
	}
	return ""
}

// load returns the load for package plan, without workers and queue, and sets in a
// what it derives from the window.
func (w *window) load(a *Advice, m *measurement) plan.Load {
	a.ArrivalCV2 = new(dispersion(w.steady))
	load := plan.Load{
		Rate: a.Arrivals, Service: m.run.Mean(),
		CV2: orNone(*a.ServiceCV2), ArrivalCV2: orNone(*a.ArrivalCV2),
	}
	if burst := total(w.all[w.burst[0]:w.burst[1]]); burst.length > 0 {
		// Bursts come again, so the mean rate that the workers must handle in the long
		// run, rule 1, includes them. The rate outside of them could also be 0. This
		// makes the waits outside of bursts a little too long. Factor times Rate is
		// the rate in the burst either way, and its backlog follows from that.
		a.Burst = &ArrivalBurst{burst.arrivals / burst.length / a.Arrivals, burst.length}
		load.Burst, load.BurstFor = min(max(a.Burst.Factor, 1), 1e6), time.Duration(a.Burst.Seconds*1e9)
	}
	return load
}

// assess sets in a whether the present workers and queue can handle the load.
func (w *window) assess(a *Advice, m *measurement, now plan.Plan) {
	a.Load, a.Utilisation = &now.Erlangs, &now.Utilisation
	a.MaxRate, a.Headroom = &now.MaxRate, new(now.MaxRate-now.Rate)
	a.Holds, a.Reasons = &now.Holds, append(now.Reasons, w.caveats(m)...)
	if w.changing {
		a.Reasons = append(a.Reasons, fmt.Sprintf("The arrival rate has changed in the last %.0f s; the figures are still those of the whole %.0f s.", longestBurst.Seconds(), a.Window))
	}
	if n := now.Bounds.Refusals; m.to.Overflow == holdfast.Block && n != nil && now.Queue < *n {
		a.Reasons = append(a.Reasons, "While overflow is block, no request is refused: it waits for a place instead.")
	}
}

// recommend sets in a what plan has chosen.
func (a *Advice) recommend(choice plan.Plan) {
	a.Workers, a.Queue, a.Why = &choice.Workers, &choice.Queue, choice.Reasons
	switch n := choice.Bounds.Burst; {
	case !choice.Holds:
	case n != nil && *n > 0 && *n == choice.Queue:
		a.Why = append(a.Why, fmt.Sprintf("A queue of %d absorbs another burst like this one. A request in its last place waits %.3g s; the server does not know how long clients wait.", choice.Queue, choice.FullWait))
	default:
		a.Why = append(a.Why, fmt.Sprintf("With a queue of %d at most 1 %% of the requests are refused.", choice.Queue))
	}
}

// orNone returns a coefficient of variation in the form that plan expects: −1 for
// none, and at most its greatest value.
func orNone(cv2 float64) float64 {
	if cv2 == 0 {
		return -1
	}
	return min(cv2, 1e6)
}

// sameSize returns the latest marks with the same workers and queue. The first of
// them was made after the change, so nothing from before the change counts.
func sameSize(marks []mark) []mark {
	for i := len(marks) - 1; i > 0; i-- {
		if s, t := &marks[i].stats, &marks[i-1].stats; s.Workers != t.Workers || s.Queue != t.Queue {
			return marks[i:]
		}
	}
	return marks
}

// A window is what happened between marks.
type window struct {
	marks []mark
	since string // what the window begins with, for a message
	all   []second

	// burst[0] to burst[1] is the run of seconds that exceeds the others most, empty
	// if there is none. In steady the seconds of bursts are zero, and if the rate is
	// changing, so are those since the change.
	burst    [2]int
	steady   []second
	changing bool
}

// A second holds the arrivals from one mark to the next. The zero second stands for
// one that is left out.
type second struct{ arrivals, length float64 }

func newWindow(marks []mark, since string) window {
	w := window{marks: marks, since: since}
	for i := range len(marks) - 1 {
		// A request that waits for a place has arrived, though it is not accepted yet.
		// If it did not count, the arrivals at a full queue would seem to come at the
		// workers' pace. One that gives up is in neither figure for a moment, hence
		// max.
		s, t := &marks[i].stats, &marks[i+1].stats
		n := float64(t.Accepted-s.Accepted) + float64(refused(t)-refused(s)) + float64(t.RefusedGone-s.RefusedGone) + float64(t.Blocked-s.Blocked)
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

// settle finds the bursts, and drops what was before the last lasting change of the
// arrival rate. The rate is changing if it was higher for long and there are too few
// seconds since.
func (w window) settle() window {
	longest := longestBurst.Seconds()
	for range 10 { // more bursts than that are the usual pattern of these requests
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

// peak returns the run of seconds that exceeds the others most, in standard
// deviations, or 0, 0 if none does so enough. The greatest excess in arrivals would
// not do: over a long run chance alone exceeds a short burst.
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
			// The square root of a Poisson count has a standard deviation of a half,
			// whatever its mean.
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
	// The measured seconds are averaged with ten that have a value of 1, so that a
	// few of them do not weigh too much.
	const prior = 10
	return (squares + prior) / (seconds - 1 + prior)
}

// caveats says what the numbers do not show.
func (w *window) caveats(m *measurement) (list []string) {
	say := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	blocked, busy := 0, 0.0
	for i := range w.marks {
		blocked = max(blocked, w.marks[i].stats.Blocked)
		busy += float64(w.marks[i].stats.Running) / float64(len(w.marks))
	}
	if blocked > 0 {
		say("Up to %d requests at a time waited for a place in the queue. Clients that send the next request after an answer are slowed to the pace of the workers; they would send more than was measured.", blocked)
	}
	if n := m.to.RefusedFull - m.from.RefusedFull; n > 0 {
		say("%d requests found the queue full and were refused; a client that tries again counts each time.", n)
	}
	if n := m.to.RefusedLate - m.from.RefusedLate; n > 0 {
		say("%d requests were refused because they could not have been answered within their patience. A longer queue would not help them: it takes more workers, or less load.", n)
	}
	if n := m.to.RefusedGone - m.from.RefusedGone; n > 0 {
		say("%d clients gave up before there was a place; they count as arrivals.", n)
	}
	if all := ended(m.to) - ended(m.from); all > m.run.Count {
		say("%d jobs ended without having run, canceled or dropped in the queue. They count as arrivals but need no worker, so the load is less than computed.", all-m.run.Count)
	}
	// In the long run the workers are busy for as long as the jobs that end have taken.
	if done := m.run.Sum / 1e9 / m.length; busy > 1.25*done+1 {
		say("%.4g workers were busy on average, but the jobs that ended account for only %.4g. Jobs that are still running take longer than the %.0f s measured, so the service time and the load are more than computed.", busy, done, m.length)
	}
	return list
}

func ended(st *holdfast.Stats) uint64 {
	return st.Succeeded + st.Failed + st.Panicked + st.Canceled + st.Dropped + st.Abandoned
}

// predictedWait returns the mean wait, in the steady state, of the requests that
// start.
//
// That is not Plan.Waiting.Mean, which is for a queue without bound. There a request
// waits longer than t with probability C·exp(−t/m). If requests wait for a place, only
// the time in the last Queue places counts as wait, at most F on average, where F is
// the wait from the last place: C·m·(1 − x), where x = exp(−F/m). If requests are
// refused instead, the share C·x is missing. The variation of arrivals and service
// stretches m. With random arrivals and service, x is r^Queue, and both formulas are
// exact. If the oldest is dropped, the queue is as long as with refusals, but every
// request enters it, so that by Little's law each spends less time there.
func predictedWait(p plan.Plan, variation float64, overflow holdfast.Overflow) float64 {
	if overflow == holdfast.DropOldest {
		return (1 - p.Refused) * predictedWait(p, variation, holdfast.Reject)
	}
	if p.Queue == 0 || variation == 0 && p.Waiting != nil {
		return 0
	}
	c, places := 1.0, 0.0 // F/m, which is 0 if the workers cannot keep up
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
	if max(measured, predicted) < now.Service/100 {
		f.Note = "Jobs hardly wait: both the measured and the predicted wait are less than a hundredth of the service time."
		return
	}
	f.Note = compare(ratio, now.Waiting == nil)
	if backlog > now.Workers {
		f.Note += fmt.Sprintf(" %d jobs were waiting already when the measurement began.", backlog)
	}
	// Near full load a queue forgets its past slowly: in about 4·s/(w·(1−r)²), which
	// variation stretches.
	if idle := 1 - now.Utilisation; now.Waiting != nil && 20*4*variation*now.Service > window*float64(now.Workers)*idle*idle {
		f.Note += fmt.Sprintf(" At this utilisation %.0f s are short: chance alone can make a great difference.", window)
	}
}

// compare says what a ratio of the measured to the predicted wait means.
func compare(ratio float64, overloaded bool) string {
	near := ratio >= 0.5 && ratio <= 2
	switch {
	case overloaded && near:
		return "The workers cannot keep up: as predicted, the queue is full most of the time."
	case overloaded:
		return "The workers cannot keep up: the prediction is for the steady state with a full queue, which was not reached all the time."
	case near:
		return "The prediction is within a factor of two of the measured wait."
	case ratio > 2:
		return "Jobs waited longer than predicted: requests arrive in bursts, also within a second, or at a rate that is not steady, or the work slows down under load."
	}
	return "Jobs waited less than predicted: requests arrive more evenly than at random, as from clients that wait for an answer before they send the next request."
}
