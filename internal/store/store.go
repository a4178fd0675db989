// Package store keeps what clients may ask about jobs: where each stands while
// it is queued or running, and for a bounded time how it has ended.
//
// The HTTP layer reaches a job's record by the methods of Store alone.
package store

import (
	"sync"
	"time"

	"holdfast/internal/exchange"
)

// State is where a job stands, as a client sees it.
type State string

const (
	Queued   State = "queued"
	Running  State = "running"
	Done     State = "done"     // the handler returned, whatever it answered
	Failed   State = "failed"   // it did not return, or what it answered cannot be kept
	Canceled State = "canceled" // also when a shutdown did it
	Dropped  State = "dropped"  // for a newer job
)

// Ended reports whether a job in state s has ended.
func (s State) Ended() bool { return s != Queued && s != Running }

// Bounds say how much is kept of jobs that have ended. What exceeds one of them
// goes, the one that ended first before the others. Jobs that have not ended are
// always kept.
type Bounds struct {
	Jobs  int
	Bytes int64
	Age   time.Duration // since the end
}

// overhead is about what a record takes besides its response: the Job, its place
// in the map, its id, and the lists of the response's header.
const overhead = 700

// A Store has the records of jobs. Its methods may be called by any number of
// goroutines at once. Only Claim and Cancel block; no method calls out while it
// holds the lock.
type Store struct {
	bounds Bounds

	mu     sync.Mutex // protects the following fields and those of every Job
	jobs   map[string]*Job
	claims map[Key]*Claim

	// The jobs that have ended, in the order in which they did.
	oldest, newest *Job
	kept           int
	bytes          int64
	timer          *time.Timer // runs when oldest is too old; nil if there is none

	byAge, byJobs, byBytes uint64    // evicted
	lastEvicted            time.Time // when the last of those had ended
}

// A Job is the record of one job. It is kept by its store, and by whoever looks
// at it.
type Job struct {
	ID string // the only key to the job, and never changed

	state                    State
	accepted, started, ended time.Time
	outcome                  Outcome
	cancel                   func() bool   // nil when the job has ended
	changed                  chan struct{} // closed at the next change; nil if nobody waits
	known                    bool          // it has been accepted
	claim                    *Claim
	next                     *Job // that ended after this one
}

// New returns an empty Store.
func New(b Bounds) *Store {
	return &Store{bounds: b, jobs: make(map[string]*Job), claims: make(map[Key]*Claim)}
}

// NewJob returns the record of a job that is to be accepted. Its id must come
// from enough randomness that nobody can guess it. cancel ends the job and
// reports whether it has been canceled, false if it goes on until it notices or
// had ended before.
func NewJob(id string, cancel func() bool) *Job {
	return &Job{ID: id, state: Queued, cancel: cancel}
}

// Accept makes a job known, by its id and, if there is a claim, by that. It may
// have started or ended before. A job that is not accepted needs no mention.
func (s *Store) Accept(j *Job, c *Claim) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	j.accepted = now
	if !j.started.IsZero() && j.started.Before(now) {
		j.accepted = j.started
	}
	j.known = true
	s.jobs[j.ID] = j
	if c != nil {
		j.claim, c.job = c, j
		close(c.decided)
	}
	if j.state.Ended() {
		s.keepLocked(j)
	}
}

// Start says that the job runs.
func (s *Store) Start(j *Job) {
	now := time.Now()
	s.mu.Lock()
	j.state, j.started = Running, now
	s.changedLocked(j)
	s.mu.Unlock()
}

// An Outcome is how a job has ended: as Done with the response, else with the
// status and the words by which a client that asks for it is told why there is
// none.
type Outcome struct {
	State    State
	Response *exchange.Response
	Status   int
	Detail   string
}

// End says how the job has ended. It comes once for each job.
func (s *Store) End(j *Job, o Outcome) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	j.state, j.outcome, j.ended, j.cancel = o.State, o, now, nil
	s.changedLocked(j)
	if j.known {
		s.keepLocked(j)
	}
}

func (s *Store) changedLocked(j *Job) {
	if j.changed != nil {
		close(j.changed)
		j.changed = nil
	}
}

// A View is what is known of a job at one moment.
type View struct {
	State                    State
	Accepted, Started, Ended time.Time // zero: not yet, or never
	Expires                  time.Time // when it is forgotten at the latest; zero before its end
	Outcome                  Outcome   // of a job that has ended
}

// View returns what is known of the job.
func (s *Store) View(j *Job) View {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := View{State: j.state, Accepted: j.accepted, Started: j.started, Ended: j.ended, Outcome: j.outcome}
	if j.state.Ended() {
		v.Expires = j.ended.Add(s.bounds.Age)
	}
	return v
}

// Changed returns a channel that is closed when the job's state changes after
// this call, so a View that follows it misses nothing. The state of a job that
// has ended does not change.
func (s *Store) Changed(j *Job) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j.changed == nil {
		j.changed = make(chan struct{})
	}
	return j.changed
}

// Lookup returns the job with an id, if there is one that is not forgotten yet.
func (s *Store) Lookup(id string) (*Job, bool) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.evictLocked(now)
	j, ok := s.jobs[id]
	return j, ok
}

// Cancel cancels a job and returns where it stands then: Canceled if it was
// queued, or canceled before; Running if its handler has yet to return.
func (s *Store) Cancel(j *Job) View {
	s.mu.Lock()
	cancel := j.cancel
	s.mu.Unlock()
	if cancel != nil && cancel() {
		// Another one's cancel may have been first, and not have told yet.
		for changed := s.Changed(j); !s.View(j).State.Ended(); changed = s.Changed(j) {
			<-changed
		}
	}
	return s.View(j)
}

// keepLocked counts a job that has ended among the kept ones.
func (s *Store) keepLocked(j *Job) {
	if s.newest == nil {
		s.oldest = j
	} else {
		s.newest.next = j
	}
	s.newest = j
	s.kept++
	s.bytes += j.size()
	s.evictLocked(j.ended)
	if s.timer == nil && s.oldest != nil {
		s.timer = time.AfterFunc(s.bounds.Age, s.expire)
	}
}

func (j *Job) size() int64 {
	if j.outcome.Response == nil {
		return overhead
	}
	return overhead + j.outcome.Response.Size()
}

// evictLocked forgets what exceeds the bounds.
func (s *Store) evictLocked(now time.Time) {
	for j := s.oldest; j != nil; j = s.oldest {
		switch {
		case now.Sub(j.ended) >= s.bounds.Age:
			s.byAge++
		case s.kept > s.bounds.Jobs:
			s.byJobs++
		case s.bytes > s.bounds.Bytes:
			s.byBytes++
		default:
			return
		}
		s.oldest = j.next
		if s.oldest == nil {
			s.newest = nil
		}
		j.next = nil // or whoever still looks at j would keep all that came after
		s.kept--
		s.bytes -= j.size()
		s.lastEvicted = j.ended
		delete(s.jobs, j.ID)
		if j.claim != nil {
			delete(s.claims, j.claim.key)
		}
	}
}

// expire forgets what is too old also when nobody comes to ask.
func (s *Store) expire() {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.evictLocked(now)
	if s.oldest == nil {
		s.timer = nil
		return
	}
	s.timer.Reset(s.oldest.ended.Add(s.bounds.Age).Sub(now))
}

// Stats is a snapshot of what is kept.
type Stats struct {
	Open                   int // not ended
	Kept                   int
	Bytes                  int64
	ByAge, ByJobs, ByBytes uint64        // evicted
	Reach                  time.Duration // what ended no longer ago than that is still there
}

// Stats returns a snapshot.
func (s *Store) Stats() Stats {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.evictLocked(now)
	st := Stats{
		Open: len(s.jobs) - s.kept, Kept: s.kept, Bytes: s.bytes,
		ByAge: s.byAge, ByJobs: s.byJobs, ByBytes: s.byBytes,
		Reach: s.bounds.Age,
	}
	if !s.lastEvicted.IsZero() {
		st.Reach = min(st.Reach, now.Sub(s.lastEvicted))
	}
	return st
}
