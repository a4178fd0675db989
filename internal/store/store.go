// Package store keeps what clients may ask about jobs: where each stands while
// it is queued or running, and for a bounded time how it has ended.
//
// The HTTP layer reaches a job's record by the methods of Store alone.
package store

import (
	"crypto/rand"
	"encoding/base32"
	"sync"
	"time"
	"weak"

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

// A Store has the records of jobs. Its methods may be called by any number of
// goroutines at once. Only Claim and Cancel block; no method calls out while it
// holds the lock.
type Store struct {
	bounds Bounds
	epoch  time.Time // the clock's zero

	mu     sync.Mutex  // protects the following fields and those of every Job
	open   map[ID]*Job // that have not ended
	kept   log         // of those that have
	timer  *time.Timer // runs when the oldest of them is too old; nil if there is none
	claims map[Key]*Claim

	byAge, byJobs, byBytes uint64        // evicted
	lastEvicted            time.Duration // when the last of those had ended; 0: none was
}

// A Job is the record of one job that has not ended, or a copy of one that has. Its
// times are those of the store's clock, 0 if they have not come.
type Job struct {
	ID ID // never changed

	accepted, started, ended time.Duration
	outcome                  Outcome       // State is where the job stands
	work                     Work          // nil when the job has ended
	changed                  chan struct{} // closed at the next change; nil if nobody waits
	claim                    *Claim
}

// New returns an empty Store.
func New(b Bounds) *Store {
	b.Age = min(b.Age, 100*365*24*time.Hour) // so that the sum with a time is one
	return &Store{bounds: b, epoch: time.Now(), open: make(map[ID]*Job), kept: newLog(), claims: make(map[Key]*Claim)}
}

// Work is what a record is of.
type Work interface {
	// Cancel ends the job and reports whether it has been canceled; false if it
	// goes on until it notices, or had ended before.
	Cancel() bool
}

// NewJob returns the record of a job that is to be accepted.
func NewJob(id ID, w Work) *Job {
	return &Job{ID: id, outcome: Outcome{State: Queued}, work: w}
}

// An ID is the only key to a job: 128 random bits, which nobody can guess. As a key
// of a map it costs neither an object nor a look at one.
type ID [16]byte

var idEncoding = base32.NewEncoding("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567").WithPadding(base32.NoPadding)

const idLen = 26 // 5 bits a letter

// NewID returns an ID that was not there before.
func NewID() (id ID) {
	rand.Read(id[:]) // never fails
	return id
}

// ParseID returns the ID that String gave s for, and whether there is one.
func ParseID(s string) (id ID, ok bool) {
	if len(s) != idLen {
		return ID{}, false
	}
	if _, err := idEncoding.Decode(id[:], []byte(s)); err != nil {
		return ID{}, false
	}
	return id, id.String() == s // the last letter has bits to spare
}

// String returns the ID as 26 letters and digits.
func (id ID) String() string {
	var text [idLen]byte
	idEncoding.Encode(text[:], id[:])
	return string(text[:])
}

// now returns the time on the store's clock, which is never 0. Read under the lock,
// it tells the order of what was done.
func (s *Store) now() time.Duration { return time.Since(s.epoch) + 1 }

// Accept makes a job known, by its id and, if there is a claim, by that. It may
// have started or ended before. A job that is not accepted needs no mention.
func (s *Store) Accept(j *Job, c *Claim) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j.accepted = s.now()
	for _, earlier := range []time.Duration{j.started, j.ended} {
		if earlier > 0 {
			j.accepted = min(j.accepted, earlier)
		}
	}
	if c != nil {
		j.claim, c.job = c, j.ID
		close(c.decided)
	}
	if j.outcome.State.Ended() {
		s.keepLocked(j)
	} else {
		s.open[j.ID] = j
	}
}

// Start says that the job runs.
func (s *Store) Start(j *Job) {
	s.mu.Lock()
	j.outcome.State, j.started = Running, s.now()
	s.changedLocked(j)
	s.mu.Unlock()
}

// An Outcome is how a job has ended: as Done with the response, else with the
// status and the words by which a client that asks for it is told why there is
// none.
type Outcome struct {
	State    State
	Response exchange.Response
	Status   int
	Detail   string
}

// End says how the job has ended. It comes once for each job. The response is
// copied: its memory is the caller's again.
func (s *Store) End(j *Job, o Outcome) {
	copied := o.Response.Size() > largeSize
	if copied {
		o.Response = o.Response.Clone() // not under the lock, which all jobs need
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	j.ended, j.work = s.now(), nil
	if j.accepted == 0 && !copied { // Accept is yet to come, and with it the log
		o.Response = o.Response.Clone()
	}
	j.outcome = o
	if j.accepted > 0 {
		delete(s.open, j.ID)
		s.keepLocked(j)
	}
	s.changedLocked(j)
}

func (s *Store) changedLocked(j *Job) {
	if j.changed != nil {
		close(j.changed)
		j.changed = nil
	}
}

// A View is what is known of a job at one moment.
type View struct {
	Outcome                            // of a job that has not ended, only the State
	Accepted, Started, Ended time.Time // zero: not yet, or never
	Expires                  time.Time // when it is forgotten at the latest; zero before its end
}

// View returns what is known of the job.
func (s *Store) View(j *Job) View {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.viewLocked(j)
}

func (s *Store) viewLocked(j *Job) View {
	at := func(t time.Duration) time.Time {
		if t == 0 {
			return time.Time{}
		}
		return s.epoch.Add(t)
	}
	v := View{Outcome: j.outcome, Accepted: at(j.accepted), Started: at(j.started), Ended: at(j.ended)}
	if j.outcome.State.Ended() {
		v.Expires = at(j.ended + s.bounds.Age)
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
func (s *Store) Lookup(text string) (*Job, bool) {
	id, ok := ParseID(text)
	if !ok {
		return nil, false
	}
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.evictLocked(now)
	return s.lookupLocked(id)
}

func (s *Store) lookupLocked(id ID) (*Job, bool) {
	if j, ok := s.open[id]; ok {
		return j, true
	}
	r, ok := s.kept.find(id)
	return r.job(), ok
}

// Cancel cancels a job and returns where it stands then: Canceled if it was
// queued, or canceled before; Running if its handler has yet to return.
func (s *Store) Cancel(j *Job) View {
	s.mu.Lock()
	work := j.work
	s.mu.Unlock()
	if work != nil && work.Cancel() {
		// Another one's cancel may have been first, and not have told yet.
		for changed := s.Changed(j); !s.View(j).State.Ended(); changed = s.Changed(j) {
			<-changed
		}
	}
	return s.View(j)
}

// Read says that a client has what there is to read of a job that has ended: the
// response if it is Done, else how it has ended.
func (s *Store) Read(j *Job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept.read(j.ID)
}

// keepLocked takes a job that has ended into the log.
func (s *Store) keepLocked(j *Job) {
	r := record{id: j.ID, accepted: j.accepted, started: j.started, ended: j.ended, outcome: j.outcome}
	if j.claim != nil {
		r.claimed, r.key = true, j.claim.key
	}
	j.outcome = s.kept.add(r)
	s.evictLocked(j.ended)
	if s.timer == nil && len(s.kept.index) > 0 {
		s.expireIn(s.bounds.Age)
	}
}

// evictLocked forgets what exceeds the bounds.
func (s *Store) evictLocked(now time.Duration) {
	for {
		r, ok := s.kept.oldest()
		switch {
		case !ok:
			return
		case now-r.ended >= s.bounds.Age:
			s.byAge++
		case len(s.kept.index) > s.bounds.Jobs:
			s.byJobs++
		case s.kept.bytes > s.bounds.Bytes:
			s.byBytes++
		default:
			return
		}
		s.kept.drop(r)
		s.lastEvicted = max(s.lastEvicted, r.ended) // a late Accept is out of order
		if r.claimed {
			delete(s.claims, r.key)
		}
	}
}

// expire forgets what is too old also when nobody comes to ask.
func (s *Store) expire() {
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.evictLocked(now)
	s.timer = nil
	if r, ok := s.kept.oldest(); ok {
		s.expireIn(r.ended + s.bounds.Age - now)
	}
}

// expireIn calls expire after d, unless nobody else knows the Store by then: the
// timer must not be what keeps it, and all that is in it, in memory.
func (s *Store) expireIn(d time.Duration) {
	known := weak.Make(s)
	s.timer = time.AfterFunc(d, func() {
		if s := known.Value(); s != nil {
			s.expire()
		}
	})
}

// Stats is a snapshot of what is kept.
type Stats struct {
	Open                   int // not ended
	Kept                   int
	Bytes                  int64
	Unread                 int           // of those that are kept
	ByAge, ByJobs, ByBytes uint64        // evicted
	Reach                  time.Duration // what ended less long ago than that is still there
}

// Stats returns a snapshot.
func (s *Store) Stats() Stats {
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.evictLocked(now)
	st := Stats{
		Open: len(s.open), Kept: len(s.kept.index), Bytes: s.kept.bytes, Unread: s.kept.unread,
		ByAge: s.byAge, ByJobs: s.byJobs, ByBytes: s.byBytes,
		Reach: s.bounds.Age,
	}
	if s.lastEvicted > 0 {
		st.Reach = min(st.Reach, now-s.lastEvicted)
	}
	return st
}
