package main

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// A summary is what became of the requests of one class, or of all. Times are in
// seconds, and 0 where there is nothing to take them from.
type summary struct {
	Name string
	// Requests that were due in the window, by outcome.
	Sent, Good, Late, Refused, Failed, Left, Unsent int
	// Goodput is the good answers that came in the window, a second. It counts by
	// the time of the answer: a count by due time would add what a queue holds at
	// the end to what the service can do in the window.
	Goodput float64
	InTime  float64 // Good / Sent

	P50, P99, P999         float64 // of good answers
	RefusedP50, RefusedP99 float64
	// Jain is Jain's index over the good answers of the clients, who ask for the
	// same; 0 if there are fewer than two.
	Jain float64
}

// A window is the part of the run that counts.
type window struct{ from, to time.Duration }

func (w window) holds(t time.Duration) bool { return w.from <= t && t < w.to }

// summarize returns the summary of all requests, and with more than one class
// those of each.
func summarize(samples []sample, mix []class, w window) []summary {
	summaries := []summary{summarizeClass("all", samples, w, func(sample) bool { return true })}
	for i, c := range mix {
		of := func(s sample) bool { return int(s.class) == i }
		s := summarizeClass(c.Name, samples, w, of)
		if c.Clients > 1 {
			s.Jain = jain(goodByClient(samples, c.Clients, w, of))
		}
		summaries = append(summaries, s)
	}
	if len(mix) == 1 {
		summaries[0].Jain = summaries[1].Jain
		return summaries[:1]
	}
	return summaries
}

func summarizeClass(name string, samples []sample, w window, of func(sample) bool) summary {
	r := summary{Name: name}
	var answers, refusals []float64
	inWindow := 0
	for _, s := range samples {
		if !of(s) {
			continue
		}
		if s.outcome == good && w.holds(s.answered()) {
			inWindow++
		}
		if !w.holds(s.due) {
			continue
		}
		r.count(s.outcome)
		switch s.outcome {
		case good:
			answers = append(answers, s.took.Seconds())
		case refused:
			refusals = append(refusals, s.took.Seconds())
		}
	}
	slices.Sort(answers)
	slices.Sort(refusals)
	r.Goodput = float64(inWindow) / (w.to - w.from).Seconds()
	r.InTime = ratio(r.Good, r.Sent)
	r.P50, r.P99, r.P999 = quantile(answers, 0.5), quantile(answers, 0.99), quantile(answers, 0.999)
	r.RefusedP50, r.RefusedP99 = quantile(refusals, 0.5), quantile(refusals, 0.99)
	return r
}

func (r *summary) count(o outcome) {
	if o == unsent {
		r.Unsent++
		return
	}
	r.Sent++
	switch o {
	case good:
		r.Good++
	case late:
		r.Late++
	case refused:
		r.Refused++
	case failed:
		r.Failed++
	case left:
		r.Left++
	}
}

func ratio(a, b int) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}

// quantile returns the least value that is not below a share q of all; 0 of none.
func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	rank := int(math.Ceil(q*float64(len(sorted)) - 1e-9)) // 0.99 · 100 is not to be 99.00…1
	return sorted[min(max(rank, 1), len(sorted))-1]
}

func goodByClient(samples []sample, clients int, w window, of func(sample) bool) []float64 {
	counts := make([]float64, clients)
	for _, s := range samples {
		if s.outcome == good && w.holds(s.due) && of(s) {
			counts[s.client]++
		}
	}
	return counts
}

// jain returns Jain's fairness index: 1 if all have the same, 1/n if one of n has
// everything, 0 if nobody has anything.
func jain(x []float64) float64 {
	var sum, squares float64
	for _, v := range x {
		sum += v
		squares += v * v
	}
	if squares == 0 {
		return 0
	}
	return sum * sum / (float64(len(x)) * squares)
}

// A second is one second of a run.
type second struct {
	Offered int     // requests that were due in it
	Good    int     // good answers that came in it
	Slow    int     // of the requests due in it, those without a good answer within the usual time
	P99     float64 // of the good answers to the requests due in it
}

// bySecond returns the seconds of a run. Usual is the time that Slow goes by.
func bySecond(samples []sample, w window, usual time.Duration) []second {
	list := make([]second, int((w.to-w.from)/time.Second))
	times := make([][]float64, len(list))
	at := func(t time.Duration) int { return int((t - w.from) / time.Second) }
	for _, s := range samples {
		if i := at(s.answered()); s.outcome == good && s.answered() >= w.from && i < len(list) {
			list[i].Good++
		}
		i := at(s.due)
		if s.due < w.from || i >= len(list) || s.outcome == unsent {
			continue
		}
		list[i].Offered++
		if s.outcome != good || s.took > usual {
			list[i].Slow++
		}
		if s.outcome == good {
			times[i] = append(times[i], s.took.Seconds())
		}
	}
	for i := range list {
		slices.Sort(times[i])
		list[i].P99 = quantile(times[i], 0.99)
	}
	return list
}

// recovery returns how many seconds after the burst the service was as before it:
// from then on three seconds in a row have at most 3 % of their requests slower
// than the p99 of before. That p99 lets 1 % be slower; the rest is chance, at some
// hundreds of requests. It returns -1 if that never happened.
func recovery(list []second, burstEnd int) int {
	const row, allowed = 3, 0.03
	for begin := burstEnd; begin+row <= len(list); begin++ {
		offered, slow := 0, 0
		for _, s := range list[begin : begin+row] {
			offered += s.Offered
			slow += s.Slow
		}
		if float64(slow) <= allowed*float64(offered) {
			return begin - burstEnd
		}
	}
	return -1
}

// seconds prints a time that is given in seconds with three digits.
func seconds(s float64) string {
	switch {
	case s == 0:
		return "–"
	case s < 0.001:
		return fmt.Sprintf("%.0f µs", s*1e6)
	case s < 0.01:
		return fmt.Sprintf("%.1f ms", s*1e3)
	case s < 1:
		return fmt.Sprintf("%.0f ms", s*1e3)
	}
	return fmt.Sprintf("%.2f s", s)
}
