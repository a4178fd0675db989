// Package metrics is the table of what a holdfast.Dispatcher and a holdfast.Jobs
// export to Prometheus. Package admin writes it as text with the standard library
// alone, and contrib/prometheus hands it to a registry: with one table, a dashboard
// or an alert works with either.
package metrics

import (
	"slices"
	"strconv"
	"time"

	"holdfast"
	"holdfast/histogram"
)

// A Snapshot is what one scrape exports. All figures of a dispatcher are of one
// moment, so that
//
//	jobs accepted = jobs queued + jobs running + the sum of jobs ended
//
// holds in every scrape.
type Snapshot struct {
	Dispatcher holdfast.Stats
	Urgencies  []holdfast.UrgencyStats
	Jobs       *holdfast.JobsStats // nil if there is no Jobs
	Log        *Log                // nil if jobs end with the process
	Cluster    *Cluster            // nil if there is only this process
}

// A Cluster is what its leader knows of the nodes.
type Cluster struct {
	Term  uint64
	Nodes []Node
}

// A Node is one node of a cluster.
type Node struct {
	Name             string
	Workers, Running int
	Silent           float64 // seconds since it was heard
}

// A Log is the state of the log of jobs that outlive the process.
type Log struct {
	Bytes   int64               // on disk
	Waiting int                 // records that are not on disk yet
	Err     error               // why they do not get there; nil if they do
	Syncs   histogram.Histogram // how long writes take
}

// Take returns the snapshot of d and, unless it is nil, of jobs.
func Take(d *holdfast.Dispatcher, jobs *holdfast.Jobs) *Snapshot {
	s := &Snapshot{Dispatcher: d.Stats(), Urgencies: d.Urgencies()}
	if jobs != nil {
		s.Jobs = new(jobs.Stats())
	}
	return s
}

// A Kind is the type of a metric. Its text is what a TYPE line says.
type Kind string

const (
	Counter   Kind = "counter"
	Gauge     Kind = "gauge"
	Histogram Kind = "histogram"
)

// A Family is one metric: a sample for each value of its label, or a single sample
// if Label is empty.
type Family struct {
	Name    string
	Kind    Kind
	Help    string
	Label   string
	Samples func(*Snapshot) []Sample
}

// A Sample is one value of a Family.
type Sample struct {
	LabelValue string // "" if the family has no label
	Value      float64
	Histogram  *histogram.Histogram // in place of Value if the Kind is Histogram
}

// Families returns the table, without the metrics of a Jobs unless jobs is true.
// Its elements do not change.
func Families(jobs bool) []Family {
	if !jobs {
		return ofDispatcher
	}
	return all
}

// OfLog returns the table of a Log.
func OfLog() []Family { return ofLog }

var (
	ofLog = []Family{
		single("log_bytes", Gauge, "Size of the log of stored jobs.", func(s *Snapshot) float64 { return float64(s.Log.Bytes) }),
		single("log_records_waiting", Gauge, "Records that are not on disk yet.", func(s *Snapshot) float64 { return float64(s.Log.Waiting) }),
		single("log_failing", Gauge, "1 while records do not get to the disk, so that no job is accepted, else 0.", func(s *Snapshot) float64 {
			if s.Log.Err != nil {
				return 1
			}
			return 0
		}),
		{"holdfast_log_write_seconds", Histogram, "Time for a write to reach the disk.", "", func(s *Snapshot) []Sample {
			return []Sample{{Histogram: &s.Log.Syncs}}
		}},
	}
	ofDispatcher = dispatcherFamilies()
	all          = slices.Concat(ofDispatcher, jobsFamilies())
)

// single returns a family that is one number.
func single(name string, kind Kind, help string, value func(*Snapshot) float64) Family {
	return Family{"holdfast_" + name, kind, help, "", func(s *Snapshot) []Sample {
		return []Sample{{Value: value(s)}}
	}}
}

// byUrgency returns a family with a number for each urgency.
func byUrgency(name string, kind Kind, help string, value func(*holdfast.UrgencyStats) float64) Family {
	return Family{"holdfast_" + name, kind, help, "urgency", func(s *Snapshot) (samples []Sample) {
		for i := range s.Urgencies {
			u := &s.Urgencies[i]
			samples = append(samples, Sample{LabelValue: strconv.Itoa(3 - u.Urgency), Value: value(u)})
		}
		return samples
	}}
}

func dispatcherFamilies() []Family {
	type stats = holdfast.Stats
	timing := func(name, help string, of func(*stats) *histogram.Histogram) Family {
		return Family{"holdfast_" + name, Histogram, help, "", func(s *Snapshot) []Sample {
			return []Sample{{Histogram: of(&s.Dispatcher)}}
		}}
	}
	return []Family{
		single("jobs_accepted_total", Counter, "Jobs accepted.", func(s *Snapshot) float64 { return float64(s.Dispatcher.Accepted) }),
		{"holdfast_jobs_ended_total", Counter, "Jobs ended, by outcome.", "outcome", outcomes},
		single("jobs_queued", Gauge, "Jobs waiting for a worker.", func(s *Snapshot) float64 { return float64(s.Dispatcher.Queued) }),
		single("jobs_running", Gauge, "Jobs running.", func(s *Snapshot) float64 { return float64(s.Dispatcher.Running) }),
		single("workers", Gauge, "Workers, busy and idle.", func(s *Snapshot) float64 { return float64(s.Dispatcher.Workers) }),
		single("queue_places", Gauge, "Places in the queue.", func(s *Snapshot) float64 { return float64(s.Dispatcher.Queue) }),
		{"holdfast_overflow_policy", Gauge, "1 for the policy that applies when the queue is full, 0 for the others.", "policy", policies},
		single("queue_oldest_age_seconds", Gauge, "Age of the job that has been queued the longest, 0 if none is queued.", func(s *Snapshot) float64 { return s.Dispatcher.OldestAge.Seconds() }),
		single("submits_blocked", Gauge, "Submits waiting for a place in the queue.", func(s *Snapshot) float64 { return float64(s.Dispatcher.Blocked) }),
		{"holdfast_submits_refused_total", Counter, "Submits refused, by reason.", "reason", refusals},
		single("submits_gave_up_total", Counter, "Submits whose context ended before they were accepted, as when a client leaves.", func(s *Snapshot) float64 { return float64(s.Dispatcher.RefusedGone) }),
		byUrgency("urgency_jobs_queued", Gauge, "Jobs waiting for a worker, by urgency as in RFC 9218.", func(s *holdfast.UrgencyStats) float64 { return float64(s.Queued) }),
		byUrgency("urgency_oldest_age_seconds", Gauge, "Age of the job that has been queued the longest, by urgency.", func(s *holdfast.UrgencyStats) float64 { return s.OldestAge.Seconds() }),
		byUrgency("urgency_jobs_refused_full_total", Counter, "Jobs refused for want of a place, by urgency.", func(s *holdfast.UrgencyStats) float64 { return float64(s.RefusedFull) }),
		byUrgency("urgency_jobs_refused_share_total", Counter, "Jobs refused since their client held all its places, by urgency.", func(s *holdfast.UrgencyStats) float64 { return float64(s.RefusedShare) }),
		byUrgency("urgency_jobs_refused_late_total", Counter, "Jobs refused when they came, since they would have begun too late, by urgency.", func(s *holdfast.UrgencyStats) float64 { return float64(s.RefusedLate) }),
		byUrgency("urgency_jobs_refused_closed_total", Counter, "Jobs refused during a shutdown, by urgency.", func(s *holdfast.UrgencyStats) float64 { return float64(s.RefusedClosed) }),
		byUrgency("urgency_jobs_expired_total", Counter, "Jobs of requests that were not begun in time, by urgency.", func(s *holdfast.UrgencyStats) float64 { return float64(s.Expired) }),
		byUrgency("urgency_jobs_dropped_total", Counter, "Jobs that gave their place to another one, by urgency.", func(s *holdfast.UrgencyStats) float64 { return float64(s.Dropped) }),
		byUrgency("urgency_jobs_in_vain_total", Counter, "Jobs that were begun and whose client left before the answer, by urgency.", func(s *holdfast.UrgencyStats) float64 { return float64(s.InVain) }),
		timing("job_wait_seconds", "Time from acceptance to start of started jobs.", func(s *stats) *histogram.Histogram { return &s.Wait }),
		timing("job_run_seconds", "Time from start to end of ended jobs that had started.", func(s *stats) *histogram.Histogram { return &s.Run }),
	}
}

func jobsFamilies() []Family {
	return []Family{
		single("open_jobs", Gauge, "Jobs accepted over HTTP that have not ended.", func(s *Snapshot) float64 { return float64(s.Jobs.Open) }),
		single("kept_jobs", Gauge, "Ended jobs that can still be read.", func(s *Snapshot) float64 { return float64(s.Jobs.Kept) }),
		single("kept_bytes", Gauge, "Estimated memory of kept jobs.", func(s *Snapshot) float64 { return float64(s.Jobs.KeptBytes) }),
		single("delayed_jobs", Gauge, "Jobs that wait for their time or their next attempt.", func(s *Snapshot) float64 { return float64(s.Jobs.Delayed) }),
		single("retries_total", Counter, "Attempts that were followed by another one.", func(s *Snapshot) float64 { return float64(s.Jobs.Retries) }),
		single("failed_jobs", Gauge, "Kept jobs that have failed and can be run again.", func(s *Snapshot) float64 { return float64(s.Jobs.Failed) }),
		single("unread_jobs", Gauge, "Kept jobs that no client has read.", func(s *Snapshot) float64 { return float64(s.Jobs.Unread) }),
		{"holdfast_evicted_jobs_total", Counter, "Ended jobs evicted, by the limit that they exceeded.", "cause", evictions},
		{"holdfast_late_requests_total", Counter, "Requests refused because they could not be answered in time, by when that was certain.", "when", late},
		single("held_bytes", Gauge, "Estimated memory held for clients, that of kept jobs included.", func(s *Snapshot) float64 { return float64(s.Jobs.Held) }),
		single("refused_memory_total", Counter, "Requests and responses refused for lack of memory.", func(s *Snapshot) float64 { return float64(s.Jobs.RefusedHeld) }),
		single("reach_seconds", Gauge, "How far back kept jobs reach: a job that ended more recently is still kept.", func(s *Snapshot) float64 { return s.Jobs.Reach.Seconds() }),
	}
}

func late(s *Snapshot) []Sample {
	return []Sample{labeled("arriving", s.Jobs.RefusedLate), labeled("waiting", s.Jobs.Expired)}
}

func outcomes(s *Snapshot) []Sample {
	st := &s.Dispatcher
	return []Sample{
		labeled(holdfast.StateSucceeded.String(), st.Succeeded),
		labeled(holdfast.StateFailed.String(), st.Failed),
		labeled(holdfast.StatePanicked.String(), st.Panicked),
		labeled(holdfast.StateCanceled.String(), st.Canceled),
		labeled(holdfast.StateDropped.String(), st.Dropped),
		labeled(holdfast.StateAbandoned.String(), st.Abandoned),
	}
}

// OfCluster returns the table of a cluster's leader. The others have no metrics of their
// own: who asks them gets these.
func OfCluster() []Family {
	node := func(name, help string, value func(Node) float64) Family {
		return Family{name, Gauge, help, "node", func(s *Snapshot) (samples []Sample) {
			for _, n := range s.Cluster.Nodes {
				samples = append(samples, Sample{LabelValue: n.Name, Value: value(n)})
			}
			return samples
		}}
	}
	return []Family{
		{"holdfast_cluster_term", Gauge, "Number of the term, which grows with each leader.", "", func(s *Snapshot) []Sample {
			return []Sample{{Value: float64(s.Cluster.Term)}}
		}},
		node("holdfast_cluster_node_workers", "Jobs that may run at a node at once.", func(n Node) float64 { return float64(n.Workers) }),
		node("holdfast_cluster_node_running", "Jobs that run at a node.", func(n Node) float64 { return float64(n.Running) }),
		node("holdfast_cluster_node_silent_seconds", "Time since a node was heard; after 2 s it is gone.", func(n Node) float64 { return n.Silent }),
	}
}

func policies(s *Snapshot) (samples []Sample) {
	for _, policy := range []holdfast.Overflow{holdfast.Block, holdfast.Reject, holdfast.DropOldest} {
		var applies uint64
		if policy == s.Dispatcher.Overflow {
			applies = 1
		}
		samples = append(samples, labeled(policy.String(), applies))
	}
	return samples
}

func refusals(s *Snapshot) []Sample {
	st := &s.Dispatcher
	return []Sample{
		labeled("full", st.RefusedFull),
		labeled("closed", st.RefusedClosed),
		labeled("nested", st.RefusedNested),
		labeled("share", st.RefusedShare),
		labeled("late", st.RefusedLate),
	}
}

func evictions(s *Snapshot) []Sample {
	return []Sample{
		labeled("age", s.Jobs.EvictedAge),
		labeled("jobs", s.Jobs.EvictedJobs),
		labeled("bytes", s.Jobs.EvictedBytes),
	}
}

func labeled(value string, n uint64) Sample {
	return Sample{LabelValue: value, Value: float64(n)}
}

// A Bucket counts the durations that do not exceed its bound.
type Bucket struct {
	Bound float64 // in seconds
	Count uint64
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

// Buckets returns the buckets to export of h, without the last one that counts
// everything.
func Buckets(h *histogram.Histogram) []Bucket {
	buckets := make([]Bucket, 0, len(bounds))
	for _, bound := range bounds {
		buckets = append(buckets, Bucket{bound.Seconds(), h.CountUpTo(bound)})
	}
	return buckets
}
