// Package prometheus exports the statistics of a holdfast.Dispatcher and a
// holdfast.Jobs to Prometheus. Unlike metrics that are updated as things happen,
// it costs nothing between scrapes. Each scrape takes one consistent snapshot of
// the dispatcher, so that
//
//	jobs accepted = jobs queued + jobs running + the sum of jobs ended
//
// holds in every scrape. The names are those of GET /metrics of the server's admin
// listener.
package prometheus

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast"
	"holdfast/internal/metrics"
)

// A family is a metric of the table with its description for a registry.
type family struct {
	metrics.Family
	desc *prometheus.Desc
}

type collector struct {
	d        *holdfast.Dispatcher
	jobs     *holdfast.Jobs
	families []family
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
	c := &collector{d: d, jobs: jobs}
	for _, f := range metrics.Families(jobs != nil) {
		var labels []string
		if f.Label != "" {
			labels = []string{f.Label}
		}
		c.families = append(c.families, family{f, prometheus.NewDesc(f.Name, f.Help, labels, nil)})
	}
	return c
}

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, f := range c.families {
		ch <- f.desc
	}
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	snapshot := metrics.Take(c.d, c.jobs)
	for _, f := range c.families {
		for _, s := range f.Samples(snapshot) {
			ch <- f.metric(s)
		}
	}
}

// metric returns one sample as a registry takes it.
func (f *family) metric(s metrics.Sample) prometheus.Metric {
	var labels []string
	if f.Label != "" {
		labels = []string{s.LabelValue}
	}
	switch f.Kind {
	case metrics.Histogram:
		h := s.Histogram
		counts := make(map[float64]uint64)
		for _, b := range metrics.Buckets(h) {
			counts[b.Bound] = b.Count
		}
		return prometheus.MustNewConstHistogram(f.desc, h.Count, h.Sum/float64(time.Second), counts, labels...)
	case metrics.Counter:
		return prometheus.MustNewConstMetric(f.desc, prometheus.CounterValue, s.Value, labels...)
	}
	return prometheus.MustNewConstMetric(f.desc, prometheus.GaugeValue, s.Value, labels...)
}
