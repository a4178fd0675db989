package admin

import (
	"time"

	"holdfast"
	"holdfast/histogram"
)

// Stats is the answer to GET /stats, as JSON. Its names are a contract: there may be
// new ones, but none is renamed or removed. Durations are in seconds, rates per
// second. A figure that needs an event, such as a quantile, is null until there was
// one.
type Stats struct {
	Time     time.Time `json:"time"`
	Uptime   float64   `json:"uptime_seconds"`
	Version  string    `json:"version"`
	Stopping bool      `json:"stopping"` // the server drains its queue and accepts nothing

	Dispatcher Counts `json:"dispatcher"`
	Kept       *Kept  `json:"kept"` // null without Config.Jobs
	Log        *Log   `json:"log"`  // null without Config.Log

	Cluster *ClusterStats `json:"cluster,omitempty"` // left out without Config.Cluster

	// Urgencies has the figures by urgency, the most urgent first; of those only of which
	// there has been something.
	Urgencies []Urgency `json:"urgencies"`

	// Second is the last full second. Minute is the last minute, or the time since
	// the start of the server if that is less.
	Second Sample `json:"second"`
	Minute Recent `json:"minute"`

	Advice Advice  `json:"advice"`
	Bursts []Burst `json:"bursts"` // the latest for each path, in the order of the paths; null without Config.Demo
}

// ClusterStats are what the leader of a cluster knows of its nodes.
type ClusterStats struct {
	Name   string        `json:"name"`
	Leader string        `json:"leader"` // the node that has answered
	Term   uint64        `json:"term"`   // grows with each leader
	Nodes  []ClusterNode `json:"nodes"`  // that are there, by name
}

// A ClusterNode is one node of a cluster.
type ClusterNode struct {
	Name    string  `json:"name"`
	Addr    string  `json:"addr"` // where the others reach it
	Version string  `json:"version"`
	Workers int     `json:"workers"`
	Running int     `json:"running"`        // jobs
	Held    int     `json:"held"`           // ends that are not stored yet
	Silent  float64 `json:"silent_seconds"` // since it was heard
}

// Counts are a [holdfast.Stats] as JSON, all of one moment: accepted = queued +
// running + the sum of ended.
type Counts struct {
	Workers  int               `json:"workers"`
	Queue    int               `json:"queue"`
	Overflow holdfast.Overflow `json:"overflow"`

	// Resume is the number of workers to go on with after a pause: the last one
	// that was not 0.
	Resume int `json:"resume_workers"`

	Accepted uint64 `json:"accepted"`
	Queued   int    `json:"queued"`
	Running  int    `json:"running"`
	Blocked  int    `json:"blocked"`

	Ended   Ended   `json:"ended"`
	Refused Refused `json:"refused"`
	GaveUp  uint64  `json:"gave_up"` // submits whose client left while it waited for a place

	OldestAge float64 `json:"oldest_age_seconds"`
	Wait      Timings `json:"wait_seconds"` // since the start of the server
	Run       Timings `json:"run_seconds"`
}

// Ended counts jobs by outcome.
type Ended struct {
	Succeeded uint64 `json:"succeeded"`
	Failed    uint64 `json:"failed"`
	Panicked  uint64 `json:"panicked"`
	Canceled  uint64 `json:"canceled"`
	Dropped   uint64 `json:"dropped"`
	Abandoned uint64 `json:"abandoned"`
}

// Refused counts submits that the dispatcher has turned away, by reason.
type Refused struct {
	Full   uint64 `json:"full"`   // no place
	Closed uint64 `json:"closed"` // shutting down
	Nested uint64 `json:"nested"` // a job would have waited for itself
	Share  uint64 `json:"share"`  // its client held all its places
	Late   uint64 `json:"late"`   // it would have been answered too late
}

// Timings are the mean and the quantiles of durations. A quantile is too high by at
// most an eighth.
type Timings struct {
	Count uint64   `json:"count"`
	Mean  *float64 `json:"mean"`
	P50   *float64 `json:"p50"`
	P90   *float64 `json:"p90"`
	P99   *float64 `json:"p99"`
	Max   *float64 `json:"max"`
}

// Kept is a [holdfast.JobsStats] as JSON.
type Kept struct {
	Open    int     `json:"open"`
	Jobs    int     `json:"jobs"`
	Bytes   int64   `json:"bytes"`
	Evicted Evicted `json:"evicted"`
	Reach   float64 `json:"reach_seconds"`

	Held    int64  `json:"held_bytes"`
	Refused uint64 `json:"refused_memory"`
	Late    Late   `json:"late"`

	Delayed int    `json:"delayed"` // jobs that wait for their time
	Retries uint64 `json:"retries"` // attempts that were followed by another one
	Failed  int    `json:"failed"`  // kept jobs that can run again
}

// LogStats are the state of the log of jobs that outlive the process.
type LogStats struct {
	Bytes   int64               // on disk
	Waiting int                 // records that are not on disk yet
	Err     error               // why they do not get there; nil if they do
	Syncs   histogram.Histogram // how long writes take
}

// A Log is a LogStats as JSON.
type Log struct {
	Bytes   int64   `json:"bytes"`
	Waiting int     `json:"waiting_records"`
	Error   string  `json:"error"` // empty if records get to the disk
	Write   Timings `json:"write_seconds"`
}

// Evicted counts ended jobs that are no longer kept, by the bound that they exceeded.
type Evicted struct {
	Age   uint64 `json:"age"`
	Jobs  uint64 `json:"jobs"`
	Bytes uint64 `json:"bytes"`
}

// Late counts requests that were refused since they could not be answered in time.
type Late struct {
	Refused uint64 `json:"refused"` // when they came
	Expired uint64 `json:"expired"` // while they waited
}

// An Urgency is a [holdfast.UrgencyStats] as JSON.
type Urgency struct {
	Urgency   int      `json:"urgency"` // as in RFC 9218: 0, the most urgent, to 7
	Queued    int      `json:"queued"`
	OldestAge float64  `json:"oldest_age_seconds"`
	Refused   Reasons  `json:"refused"`
	Dropped   uint64   `json:"dropped"`
	InVain    uint64   `json:"in_vain"` // begun, but the client left before the answer
	Clients   []Client `json:"clients"` // those with the most queued, 10 at most
}

// Reasons counts what was refused at one urgency, by reason.
type Reasons struct {
	Full    uint64 `json:"full"`
	Share   uint64 `json:"share"`
	Late    uint64 `json:"late"`    // when it came
	Expired uint64 `json:"expired"` // while it waited
	Closed  uint64 `json:"closed"`
}

// A Client is what one client has at one urgency.
type Client struct {
	Client  string `json:"client"`
	Queued  int    `json:"queued"`
	Running int    `json:"running"`
}

// A Sample is one second: what happened in it, and what there was at its end.
type Sample struct {
	Time time.Time `json:"time"` // its end

	Arrivals uint64 `json:"arrivals"` // accepted, refused, given up, or waiting for a place
	Started  uint64 `json:"started"`
	Finished uint64 `json:"finished"` // ran and ended
	Refused  uint64 `json:"refused"`
	GaveUp   uint64 `json:"gave_up"`

	Workers int `json:"workers"`
	Queue   int `json:"queue"`
	Queued  int `json:"queued"`
	Running int `json:"running"`
	Blocked int `json:"blocked"`

	WaitP50 *float64 `json:"wait_p50_seconds"` // of the jobs that started in it
	WaitP99 *float64 `json:"wait_p99_seconds"`
	RunP50  *float64 `json:"run_p50_seconds"` // of the jobs that ended in it
	RunP99  *float64 `json:"run_p99_seconds"`
}

// Recent is what happened in some time up to now.
type Recent struct {
	Seconds  float64 `json:"seconds"`             // how long that time is
	Arrivals float64 `json:"arrivals_per_second"` // accepted, refused, given up, or waiting for a place
	Finished float64 `json:"finished_per_second"` // ran and ended
	Refused  float64 `json:"refused_per_second"`
	GaveUp   float64 `json:"gave_up_per_second"`
	Busy     float64 `json:"busy_workers"` // on average
	Wait     Timings `json:"wait_seconds"`
	Run      Timings `json:"run_seconds"`
}

// countsOf returns the counts of st, without Resume.
func countsOf(st *holdfast.Stats) Counts {
	return Counts{
		Workers: st.Workers, Queue: st.Queue, Overflow: st.Overflow,
		Accepted: st.Accepted, Queued: st.Queued, Running: st.Running, Blocked: st.Blocked,
		Ended:     Ended{st.Succeeded, st.Failed, st.Panicked, st.Canceled, st.Dropped, st.Abandoned},
		Refused:   Refused{st.RefusedFull, st.RefusedClosed, st.RefusedNested, st.RefusedShare, st.RefusedLate},
		GaveUp:    st.RefusedGone,
		OldestAge: st.OldestAge.Seconds(),
		Wait:      timingsOf(&st.Wait),
		Run:       timingsOf(&st.Run),
	}
}

func keptOf(st holdfast.JobsStats) *Kept {
	return &Kept{
		Open: st.Open, Jobs: st.Kept, Bytes: st.KeptBytes,
		Evicted: Evicted{st.EvictedAge, st.EvictedJobs, st.EvictedBytes},
		Reach:   st.Reach.Seconds(),
		Held:    st.Held, Refused: st.RefusedHeld,
		Late: Late{st.RefusedLate, st.Expired},

		Delayed: st.Delayed, Retries: st.Retries, Failed: st.Failed,
	}
}

func logOf(st LogStats) *Log {
	l := &Log{Bytes: st.Bytes, Waiting: st.Waiting, Write: timingsOf(&st.Syncs)}
	if st.Err != nil {
		l.Error = st.Err.Error()
	}
	return l
}

func urgenciesOf(all []holdfast.UrgencyStats) []Urgency {
	list := make([]Urgency, len(all))
	for i, s := range all {
		u := Urgency{
			Urgency: 3 - s.Urgency, Queued: s.Queued, OldestAge: s.OldestAge.Seconds(),
			Refused: Reasons{s.RefusedFull, s.RefusedShare, s.RefusedLate, s.Expired, s.RefusedClosed},
			Dropped: s.Dropped, InVain: s.InVain, Clients: make([]Client, len(s.Clients)),
		}
		for k, c := range s.Clients {
			u.Clients[k] = Client(c)
		}
		list[i] = u
	}
	return list
}

func timingsOf(h *histogram.Histogram) Timings {
	return Timings{h.Count, mean(h), quantile(h, 0.5), quantile(h, 0.9), quantile(h, 0.99), quantile(h, 1)}
}

// mean returns the mean in seconds, or nil if there is none.
func mean(h *histogram.Histogram) *float64 {
	if h.Count == 0 {
		return nil
	}
	return new(h.Mean().Seconds())
}

// quantile returns a quantile in seconds, or nil if there is none.
func quantile(h *histogram.Histogram, q float64) *float64 {
	if h.Count == 0 {
		return nil
	}
	return new(h.Quantile(q).Seconds())
}
