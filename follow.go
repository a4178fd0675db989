package holdfast

import (
	"context"
	"log/slog"
	"time"

	"holdfast/internal/httpjob"
	"holdfast/internal/store"
)

// An ID is the id of a job of [Jobs]. Whoever has it can read and cancel the job, so
// treat it like a password.
type ID string

// Short returns the first 8 characters of the id. They tell jobs apart in a log, and
// give access to none.
func (id ID) Short() string { return string(id[:min(len(id), 8)]) }

// LogValue returns what Short does, so that package slog never logs a whole id.
func (id ID) LogValue() slog.Value { return slog.StringValue(id.Short()) }

// JobID returns the id of the job that ctx belongs to: the context of a request that
// [Jobs.Async] has accepted, or of a job that was submitted with such a context. For
// any other it returns "".
func JobID(ctx context.Context) ID {
	if id, ok := ctx.Value(httpjob.IDKey{}).(store.ID); ok {
		return ID(id.String())
	}
	return ""
}

// A JobInfo says what is known of a job of [Jobs] at one moment.
type JobInfo struct {
	ID     ID     // empty for a job of Jobs.Queued, which cannot be looked up
	Method string // of the request
	Target string // its path and query, at most 200 bytes
	Route  string // the pattern of the ServeMux that it matched, if any
	State  string // "queued", "running", "done", "failed", "canceled" or "dropped"
	Status int    // of the response; 0 if there is none
	Error  string // why the job ended without a response; otherwise empty

	// When the job was accepted, has started and has ended; zero if it has not.
	Accepted, Started, Ended time.Time

	Wait time.Duration // from Accepted to Started; 0 if it has not started
	Run  time.Duration // from Started to Ended; 0 if it has not started and ended
}

// LogValue returns the fields with the id cut as by [ID.Short].
func (i JobInfo) LogValue() slog.Value {
	type fields JobInfo // without this method
	i.ID = ID(i.ID.Short())
	return slog.AnyValue(fields(i))
}

func infoOf(id string, v store.View) JobInfo {
	i := JobInfo{
		ID: ID(id), Method: v.Request.Method, Target: v.Request.Target, Route: v.Request.Route,
		State: string(v.State), Error: v.Detail,
		Accepted: v.Accepted, Started: v.Started, Ended: v.Ended, Wait: v.Wait(), Run: v.Run(),
	}
	if v.State == store.Done {
		i.Status = v.Response.Status()
	}
	return i
}

// Lookup returns what is known of the job with an id, and whether there is one that
// has not been forgotten.
func (j *Jobs) Lookup(id ID) (JobInfo, bool) { return j.find(id, j.requests.Store.View) }

// Cancel cancels the job with an id, as [Job.Cancel] does, and returns what is known
// of it then, and whether there is one that has not been forgotten.
func (j *Jobs) Cancel(id ID) (JobInfo, bool) { return j.find(id, j.requests.Store.Cancel) }

func (j *Jobs) find(id ID, view func(*store.Job) store.View) (JobInfo, bool) {
	record, ok := j.requests.Store.Lookup(string(id))
	if !ok {
		return JobInfo{}, false
	}
	return infoOf(string(id), view(record)), true
}

// JobsStats says what [Jobs] keeps of jobs.
type JobsStats struct {
	Open      int   // jobs that have not ended
	Kept      int   // jobs that have
	KeptBytes int64 // about how many bytes these take
	Unread    int   // of these, the ones that no client has read

	// Ended jobs that were forgotten, by the bound that they exceeded: Retain,
	// RetainJobs, or RetainBytes and MaxMemory.
	EvictedAge, EvictedJobs, EvictedBytes uint64

	RefusedLate, Expired uint64 // requests refused by patience, when they came and later

	// Reach is how far back one can look: a job that ended less long ago is still
	// there. It is Retain, unless the other bounds allow less.
	Reach time.Duration

	Held        int64  // about how many bytes are held for clients, of MaxMemory
	RefusedHeld uint64 // requests and responses that were refused since these were too many
}

// Stats returns a snapshot of what is kept. It does not block.
func (j *Jobs) Stats() JobsStats {
	s, late := j.requests.Store.Stats(), j.requests.Late()
	return JobsStats{s.Open, s.Kept, s.Bytes, s.Unread, s.ByAge, s.ByJobs, s.ByBytes, late.AtDoor, late.Waiting, s.Reach, j.requests.Memory.Held(), j.requests.Memory.Refused()}
}
