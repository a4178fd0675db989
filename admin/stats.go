package admin

import (
	"time"

	"holdfast"
	"holdfast/histogram"
)

// Stats is what GET /stats answers, as JSON. Its names stay as they are; new ones
// may come. Times that last are in seconds, rates per second. What one can only
// say of something that has happened, such as a quantile, is null as long as
// nothing has.
type Stats struct {
	Time     time.Time `json:"time"`
	Uptime   float64   `json:"uptime_seconds"`
	Version  string    `json:"version"`
	Stopping bool      `json:"stopping"` // the server drains its queue and accepts nothing

	Dispatcher Counts `json:"dispatcher"`
	Kept       *Kept  `json:"kept"` // null without Config.Jobs

	// Second is the last full second, Minute the last one as far as the server is
	// that old.
	Second Sample `json:"second"`
	Minute Recent `json:"minute"`

	Advice Advice  `json:"advice"`
	Bursts []Burst `json:"bursts"` // the last one for each path, by path; null without Config.Demo
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

	OldestAge float64 `json:"oldest_age_seconds"`
	Wait      Timings `json:"wait_seconds"` // since the start of the server
	Run       Timings `json:"run_seconds"`
}

// Ended counts jobs by how they have ended.
type Ended struct {
	Succeeded uint64 `json:"succeeded"`
	Failed    uint64 `json:"failed"`
	Panicked  uint64 `json:"panicked"`
	Canceled  uint64 `json:"canceled"`
	Dropped   uint64 `json:"dropped"`
	Abandoned uint64 `json:"abandoned"`
}

// Refused counts submits that were not accepted, by reason.
type Refused struct {
	Full   uint64 `json:"full"`   // no place
	Closed uint64 `json:"closed"` // shutting down
	Nested uint64 `json:"nested"` // a job would have waited for itself
	Gone   uint64 `json:"gone"`   // the client left while it waited for a place
}

// Timings are the mean and the quantiles of durations, these too high by an eighth
// at most.
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
}

// Evicted counts ended jobs that were forgotten, by the bound that they exceeded.
type Evicted struct {
	Age   uint64 `json:"age"`
	Jobs  uint64 `json:"jobs"`
	Bytes uint64 `json:"bytes"`
}

// A Sample is one second: what happened in it, and what there was at its end.
type Sample struct {
	Time time.Time `json:"time"` // its end

	Arrivals uint64 `json:"arrivals"` // accepted, refused, or begun to wait for a place
	Started  uint64 `json:"started"`
	Finished uint64 `json:"finished"` // have run and ended
	Refused  uint64 `json:"refused"`

	Workers int `json:"workers"`
	Queue   int `json:"queue"`
	Queued  int `json:"queued"`
	Running int `json:"running"`
	Blocked int `json:"blocked"`

	WaitP50 *float64 `json:"wait_p50_seconds"` // of the jobs that started in it
	WaitP99 *float64 `json:"wait_p99_seconds"`
	RunP50  *float64 `json:"run_p50_seconds"` // of those that ended in it
	RunP99  *float64 `json:"run_p99_seconds"`
}

// Recent is what has happened in the last while.
type Recent struct {
	Seconds  float64 `json:"seconds"`             // how long that was
	Arrivals float64 `json:"arrivals_per_second"` // accepted, refused, or begun to wait for a place
	Finished float64 `json:"finished_per_second"` // have run and ended
	Refused  float64 `json:"refused_per_second"`
	Busy     float64 `json:"busy_workers"` // on average
	Wait     Timings `json:"wait_seconds"`
	Run      Timings `json:"run_seconds"`
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
