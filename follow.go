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
	ID     ID     // ID is empty for a job of Jobs.Queued, which cannot be looked up.
	Method string // Method is that of the request.
	Target string // Target is the request's path and query, at most 200 bytes of it.
	Route  string // Route is the pattern of the ServeMux that the request matched, if any.
	State  string // State is "queued", "running", "done", "failed", "canceled" or "dropped".
	Status int    // Status is that of the response, 0 if there is none.
	Error  string // Error says why the job has failed or never ran; otherwise it is empty.

	// Attempts is how often the job was started. Next is the time for which it waits, zero if
	// it waits for none.
	Attempts int
	Next     time.Time

	// These are when the job was accepted, last started and ended. They are zero if it has not.
	Accepted, Started, Ended time.Time

	Wait time.Duration // Wait is from Accepted to Started, 0 if the job has not started.
	Run  time.Duration // Run is from Started to Ended, 0 if the job has not started and ended.
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
		Status: v.Answered(), Attempts: v.Attempts, Next: v.Next,
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
	Open      int   // Open is the number of jobs that have not ended.
	Kept      int   // Kept is the number of jobs that have ended and can be read.
	KeptBytes int64 // KeptBytes is about how many bytes those take.
	Unread    int   // Unread is how many of those no client has read.

	// These count the ended jobs that were forgotten, by the bound that they exceeded:
	// Retain, RetainJobs, or RetainBytes and MaxMemory.
	EvictedAge, EvictedJobs, EvictedBytes uint64

	RefusedLate, Expired uint64 // These count requests refused by patience, when they came and later.

	// Reach is how far back one can look: a job that ended less long ago is still
	// there. It is Retain, unless the other bounds allow less.
	Reach time.Duration

	Held        int64  // Held is about how many bytes of MaxMemory are held for clients.
	RefusedHeld uint64 // RefusedHeld counts requests and responses that MaxMemory had no room for.

	Delayed int    // Delayed is how many of the open jobs wait for their time, or between two attempts.
	Retries uint64 // Retries counts the attempts that were followed by another one.
	Failed  int    // Failed is how many of the kept jobs have failed and can be run again.
}

// Stats returns a snapshot of what is kept. It does not block.
func (j *Jobs) Stats() JobsStats {
	s, late := j.requests.Store.Stats(), j.requests.Late()
	return JobsStats{s.Open, s.Kept, s.Bytes, s.Unread, s.ByAge, s.ByJobs, s.ByBytes, late.AtDoor, late.Waiting, s.Reach, j.requests.Memory.Held(), j.requests.Memory.Refused(), j.requests.Room.Len(), s.Retries, s.Letters}
}
