// Package prometheus exports what a holdfast.Dispatcher and a holdfast.Jobs
// count, for Prometheus to scrape. It differs from metrics that are written as
// things happen in that it costs nothing between scrapes, and that all figures
// of a dispatcher in a scrape are of one moment, so that
//
//	jobs accepted = jobs queued + jobs running + the sum of jobs ended
//
// holds in every scrape.
package prometheus

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast"
	"holdfast/histogram"
)

var (
	accepted  = desc("jobs_accepted_total", "Jobs that were accepted.")
	ended     = desc("jobs_ended_total", "Jobs that ended, by outcome.", "outcome")
	queued    = desc("jobs_queued", "Jobs that wait for a worker.")
	running   = desc("jobs_running", "Jobs in the hands of workers.")
	workers   = desc("workers", "Workers, busy or idle.")
	places    = desc("queue_places", "Places for jobs that wait.")
	overflow  = desc("overflow_policy", "1 for the policy that applies when every place is taken, 0 for the others.", "policy")
	oldestAge = desc("queue_oldest_age_seconds", "How long ago the longest-waiting queued job was accepted, 0 if none is queued.")
	blocked   = desc("submits_blocked", "Submits that wait for a place.")
	refused   = desc("submits_refused_total", "Submits that were not accepted, by reason.", "reason")
	wait      = desc("job_wait_seconds", "From acceptance to start, of jobs that have started.")
	run       = desc("job_run_seconds", "From start to end, of jobs that have started and ended.")

	open      = desc("open_jobs", "Jobs accepted by Jobs that have not ended.")
	kept      = desc("kept_jobs", "Ended jobs that can still be read.")
	keptBytes = desc("kept_bytes", "Memory that kept jobs take, as far as that can be told.")
	evicted   = desc("evicted_jobs_total", "Ended jobs that were forgotten, by the bound that they exceeded.", "cause")
	reach     = desc("reach_seconds", "How far back one can look: what ended less long ago is still kept.")

	ofDispatcher = []*prometheus.Desc{
		accepted, ended, queued, running, workers, places, overflow, oldestAge, blocked, refused, wait, run,
	}
	ofJobs = []*prometheus.Desc{open, kept, keptBytes, evicted, reach}
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("holdfast_"+name, help, labels, nil)
}

type collector struct {
	d    *holdfast.Dispatcher
	jobs *holdfast.Jobs
}

// NewCollector returns a collector of what d counts and, unless jobs is nil, of
// what jobs keeps. Each scrape takes one snapshot of each.
//
// The names are the same for every dispatcher. To tell several apart, register
// each with a label of its own:
//
//	prometheus.WrapRegistererWith(prometheus.Labels{"dispatcher": "mail"}, reg).
//		MustRegister(holdfastprom.NewCollector(mail, nil))
func NewCollector(d *holdfast.Dispatcher, jobs *holdfast.Jobs) prometheus.Collector {
	return &collector{d, jobs}
}

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range ofDispatcher {
		ch <- d
	}
	if c.jobs == nil {
		return
	}
	for _, d := range ofJobs {
		ch <- d
	}
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	st := c.d.Stats()
	sink(ch).stats(&st)
	if c.jobs != nil {
		sink(ch).jobsStats(c.jobs.Stats())
	}
}

// A sink takes the metrics of one scrape.
type sink chan<- prometheus.Metric

func (s sink) stats(st *holdfast.Stats) {
	s.counter(accepted, st.Accepted)
	s.counter(ended, st.Succeeded, holdfast.StateSucceeded.String())
	s.counter(ended, st.Failed, holdfast.StateFailed.String())
	s.counter(ended, st.Panicked, holdfast.StatePanicked.String())
	s.counter(ended, st.Canceled, holdfast.StateCanceled.String())
	s.counter(ended, st.Dropped, holdfast.StateDropped.String())
	s.counter(ended, st.Abandoned, holdfast.StateAbandoned.String())
	s.gauge(queued, float64(st.Queued))
	s.gauge(running, float64(st.Running))
	s.gauge(workers, float64(st.Workers))
	s.gauge(places, float64(st.Queue))
	for _, policy := range []holdfast.Overflow{holdfast.Block, holdfast.Reject, holdfast.DropOldest} {
		applies := 0.0
		if policy == st.Overflow {
			applies = 1
		}
		s.gauge(overflow, applies, policy.String())
	}
	s.gauge(oldestAge, st.OldestAge.Seconds())
	s.gauge(blocked, float64(st.Blocked))
	s.counter(refused, st.RefusedFull, "full")
	s.counter(refused, st.RefusedClosed, "closed")
	s.counter(refused, st.RefusedNested, "nested")
	s.counter(refused, st.RefusedGone, "gone")
	s.histogram(wait, &st.Wait)
	s.histogram(run, &st.Run)
}

func (s sink) jobsStats(st holdfast.JobsStats) {
	s.gauge(open, float64(st.Open))
	s.gauge(kept, float64(st.Kept))
	s.gauge(keptBytes, float64(st.KeptBytes))
	s.counter(evicted, st.EvictedAge, "age")
	s.counter(evicted, st.EvictedJobs, "jobs")
	s.counter(evicted, st.EvictedBytes, "bytes")
	s.gauge(reach, st.Reach.Seconds())
}

func (s sink) counter(d *prometheus.Desc, n uint64, labels ...string) {
	s <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
}

func (s sink) gauge(d *prometheus.Desc, v float64, labels ...string) {
	s <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (s sink) histogram(d *prometheus.Desc, h *histogram.Histogram) {
	s <- prometheus.MustNewConstHistogram(d, h.Count, h.Sum/float64(time.Second), cumulative(h))
}

// bounds are those of the exported buckets: from 8 µs to 73 minutes, each
// twice the one before. They are a nanosecond below powers of two since there a
// bucket of histogram.Histogram ends, so that the counts are exact. Rounder ones
// would read better and count some durations on the wrong side. Native
// histograms have bounds that are powers of two of a second, where none ends.
var bounds = func() (b []time.Duration) {
	for exp := 13; exp <= 42; exp++ {
		b = append(b, 1<<exp-1)
	}
	return b
}()

// cumulative returns, for each of the bounds in seconds, how many of the
// durations do not exceed it.
func cumulative(h *histogram.Histogram) map[float64]uint64 {
	counts := make(map[float64]uint64, len(bounds))
	for _, bound := range bounds {
		counts[bound.Seconds()] = h.CountUpTo(bound)
	}
	return counts
}
