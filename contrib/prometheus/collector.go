// Package prometheus exports the statistics of a holdfast.Dispatcher and a
// holdfast.Jobs to Prometheus. Unlike metrics that are updated as things happen,
// it costs nothing between scrapes. Each scrape takes one consistent snapshot of
// the dispatcher, so that
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
	accepted  = desc("jobs_accepted_total", "Jobs accepted.")
	ended     = desc("jobs_ended_total", "Jobs ended, by outcome.", "outcome")
	queued    = desc("jobs_queued", "Jobs waiting for a worker.")
	running   = desc("jobs_running", "Jobs running.")
	workers   = desc("workers", "Workers, busy and idle.")
	places    = desc("queue_places", "Places in the queue.")
	overflow  = desc("overflow_policy", "1 for the policy that applies when the queue is full, 0 for the others.", "policy")
	oldestAge = desc("queue_oldest_age_seconds", "Age of the job that has been queued the longest, 0 if none is queued.")
	blocked   = desc("submits_blocked", "Submits waiting for a place in the queue.")
	refused   = desc("submits_refused_total", "Submits refused, by reason.", "reason")
	wait      = desc("job_wait_seconds", "Time from acceptance to start of started jobs.")
	run       = desc("job_run_seconds", "Time from start to end of ended jobs that had started.")

	open      = desc("open_jobs", "Jobs accepted over HTTP that have not ended.")
	kept      = desc("kept_jobs", "Ended jobs that can still be read.")
	keptBytes = desc("kept_bytes", "Estimated memory of kept jobs.")
	unread    = desc("unread_jobs", "Kept jobs that no client has read.")
	evicted   = desc("evicted_jobs_total", "Ended jobs evicted, by the limit that they exceeded.", "cause")
	reach     = desc("reach_seconds", "How far back kept jobs reach: a job that ended more recently is still kept.")

	ofDispatcher = []*prometheus.Desc{
		accepted, ended, queued, running, workers, places, overflow, oldestAge, blocked, refused, wait, run,
	}
	ofJobs = []*prometheus.Desc{open, kept, keptBytes, unread, evicted, reach}
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("holdfast_"+name, help, labels, nil)
}

type collector struct {
	d    *holdfast.Dispatcher
	jobs *holdfast.Jobs
}

// NewCollector returns a collector of the statistics of d and, unless jobs is nil,
// of jobs. Each scrape takes one snapshot of each.
//
// The metric names are the same for every dispatcher. If there are several,
// register each with a label:
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

// A sink receives the metrics of one scrape.
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
	s.gauge(unread, float64(st.Unread))
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

// bounds are the bounds of the exported buckets, from 8 µs to 73 minutes, each
// twice the previous one. They are a nanosecond below a power of two, where a
// bucket of histogram.Histogram ends, so that the counts are exact. Rounder bounds
// would read better, but count some durations in the wrong bucket. So would native
// histograms, whose bounds are powers of two of a second.
var bounds = func() (b []time.Duration) {
	for exp := 13; exp <= 42; exp++ {
		b = append(b, 1<<exp-1)
	}
	return b
}()

// cumulative returns the number of durations up to each bound, by the bound in
// seconds.
func cumulative(h *histogram.Histogram) map[float64]uint64 {
	counts := make(map[float64]uint64, len(bounds))
	for _, bound := range bounds {
		counts[bound.Seconds()] = h.CountUpTo(bound)
	}
	return counts
}
