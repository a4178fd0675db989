// Package store keeps what clients may ask about jobs: where each stands while
// it is queued or running, and for a bounded time how it has ended.
//
// The HTTP layer reaches a job's record by the methods of Store alone. A job is
// added before it is submitted to the dispatcher; from there it is accepted,
// started and ended, in this order and each at most once, or withdrawn. Between a start
// and the end it may wait and be started again any number of times. Each of
// these steps is decided in one method, under one lock, so the steps of all jobs
// have one order.
//
// # A journal
//
// The memory decides and forgets with the process. A [Journal] beside it makes the state
// survive: it is told of each step where that is decided. The record of an acceptance
// holds the request, that of an end the whole record that is kept, so that with it the
// others are garbage. A job that was withdrawn was never in the journal, and what Yield
// forgets is gone from memory alone: after a start it is there again, and yields again.
//
//   - Order. The store appends under its lock, so the journal's order is that of the
//     decisions. It does not wait there.
//   - Durability. Accept returns when the job's record is on disk. Start waits for
//     nothing: a job may run twice after a crash. End publishes the outcome when its
//     record is on disk, but returns at once, so that the worker is free.
//   - Failure. Where a record does not get to the disk, no later one does. Accept then
//     returns an error, and the client gets 503: the job is perhaps known after a
//     restart, so its key stays claimed. A job whose end is not written stays running for
//     its clients.
//
// At a start, Replay takes the records in their order. What has not ended is submitted
// again, in the order in which it was accepted.
package store

import (
	"crypto/rand"
	"encoding/base32"
	"net/http"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
	"weak"

	"holdfast/internal/budget"
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

	// Memory counts what is kept, which gives way when it is short. If nil, there is no
	// such bound.
	Memory *budget.Budget
}

// A Store has the records of jobs. Its methods may be called by any number of
// goroutines at once. Only Claim and Cancel block; no method calls out while it
// holds the lock.
type Store struct {
	bounds Bounds
	epoch  time.Time // the clock's zero

	mu      sync.Mutex  // protects the following fields and those of every Job
	open    map[ID]*Job // that have not ended
	pending int         // of those, the ones that are not accepted yet
	kept    log         // of those that have ended
	timer   *time.Timer // runs when the oldest of them is too old; nil if there is none
	claims  map[Key]*Claim

	journal   Journal       // written once, before the store is used; nil: the memory is all there is
	order     uint64        // jobs that were accepted beside a journal
	openBytes int64         // of the journal, that are needed for open jobs
	ending    int           // jobs whose end is on the way to the disk
	lastEnd   time.Duration // the latest that was replayed
	unsorted  bool          // an earlier one came after it
	retries   uint64        // attempts that were followed by another one

	byAge, byJobs, byBytes uint64        // evicted
	lastEvicted            time.Duration // when the last of those had ended; 0: none was
}

// A Job is the record of one job that has not ended, or a copy of one that has. Its
// times are those of the store's clock, 0 if they have not come.
type Job struct {
	ID      ID      // never changed
	request Request // nor is this

	accepted, started, ended time.Duration
	attempts                 int           // how often it was started
	next                     time.Duration // when it may be started; 0: whenever its turn comes
	status                   int           // of the response of the last attempt, while it waits for the next
	outcome                  Outcome       // State is where the job stands
	work                     Work          // nil when the job has ended
	again                    bool          // it had failed before, as accepted at original
	original                 time.Duration
	changed                  chan struct{} // closed at the next change; nil if nobody waits
	claim                    *Claim        // until the job has ended
	trace                    *trace        // nil without a journal
}

// New returns an empty Store.
func New(b Bounds) *Store {
	b.Age = min(b.Age, 100*365*24*time.Hour) // so that the sum with a time is one
	return &Store{bounds: b, epoch: time.Now(), open: make(map[ID]*Job), kept: newLog(b.Memory), claims: make(map[Key]*Claim)}
}

// Work is what a record is of.
type Work interface {
	// Cancel ends the job and reports whether it has been canceled; false if it
	// goes on until it notices, or had ended before.
	Cancel() bool
}

// A Request describes the request that a job came from.
type Request struct {
	Method string
	Target string // the path, with the query if there is one
	Route  string // the pattern that it matched, "" if there is none
}

// RequestOf returns the description of r, cut as in a record.
func RequestOf(r *http.Request) Request {
	target := r.RequestURI // as the client sent it, whatever prefix is stripped since
	if !strings.HasPrefix(target, "/") {
		target = r.URL.RequestURI()
	}
	return Request{r.Method, target, r.Pattern}.cut()
}

// cut returns r with fields that are bounded, since a record keeps them: the
// longest method in use has 17 bytes, and 200 tell most targets apart.
func (r Request) cut() Request {
	r.Method, r.Target, r.Route = prefix(r.Method, 20), prefix(r.Target, 200), prefix(r.Route, 200)
	return r
}

// prefix returns at most n bytes of s, and no part of a character.
func prefix(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// NewJob returns the record of a job that r is to become. Fields of r that are too
// long are cut.
func NewJob(id ID, w Work, r Request) *Job {
	return &Job{ID: id, request: r.cut(), outcome: Outcome{State: Queued}, work: w}
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

// Short returns the first 8 characters of String. They tell jobs apart in a log, and
// open none: whoever reads a whole ID can read and cancel its job.
func (id ID) Short() string { return id.String()[:8] }

// now returns the time on the store's clock, which is never 0. Read under the lock,
// it tells the order of what was done.
func (s *Store) now() time.Duration { return time.Since(s.epoch) + 1 }

// Add makes a job known by its id, and c, if it is not nil, the claim that the job
// decides. It comes before the job is submitted to the dispatcher, so that no job
// can have started or ended before it is known. Until it is accepted it is not
// listed and not counted.
func (s *Store) Add(j *Job, c *Claim) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j.claim = c
	s.open[j.ID] = j
	s.pending++
}

// Accept says that the dispatcher has accepted the job. It may have started or ended
// before. Beside a journal it blocks until the job is on disk. An error matches
// ErrNotStored: the job cannot be relied on, and its client must not get 202.
func (s *Store) Accept(j *Job) error {
	s.mu.Lock()
	s.acceptLocked(j, s.now())
	s.mu.Unlock()
	if s.journal == nil {
		return nil
	}
	return s.awaitWritten(j)
}

// acceptLocked accepts a job unless it is accepted. Whoever repeats its request gets
// this job from then on.
func (s *Store) acceptLocked(j *Job, now time.Duration) {
	if j.accepted > 0 {
		return
	}
	j.accepted = now
	s.pending--
	if j.again {
		j.accepted = j.original
		s.kept.remove(j.ID)
	}
	c := j.claim
	if c != nil {
		c.job = j.ID
	}
	switch {
	case s.journal != nil:
		s.journalAcceptLocked(j)
	case c != nil && !j.again:
		close(c.decided)
	}
}

// Withdraw says that the dispatcher has refused the job. It is forgotten, and one
// of those who wait for its claim becomes the first. When the job is accepted
// Withdraw does nothing, so that it can be deferred.
func (s *Store) Withdraw(j *Job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j.accepted > 0 || s.open[j.ID] != j {
		return
	}
	delete(s.open, j.ID)
	s.pending--
	j.work = nil
	if j.claim != nil {
		s.releaseLocked(j.claim)
	}
}

// Start says that the job runs, and returns how often it has been started by that, or 0 if
// it runs or has ended.
func (s *Store) Start(j *Job) (attempt int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j.outcome.State != Queued || j.endingLocked() {
		return 0
	}
	now := s.now()
	s.acceptLocked(j, now)
	j.outcome.State, j.started, j.next, j.status = Running, now, 0, 0
	j.attempts++
	if s.journal != nil { // nobody waits for it: a job whose start is lost with the process runs once more, as one whose start is not
		s.appendStartLocked(j)
	}
	s.changedLocked(j)
	return j.attempts
}

// Delay says before Add that the job is not to start before a time.
func (s *Store) Delay(j *Job, until time.Time) { j.next = max(1, until.Sub(s.epoch)) }

// Wait says that an attempt is over, and that the job waits for the next one until a time.
// status is that of the attempt's response, 0 if there is none. Wait reports whether the job
// was running.
func (s *Store) Wait(j *Job, until time.Time, status int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j.outcome.State != Running || j.endingLocked() {
		return false
	}
	j.outcome.State, j.started, j.next, j.status = Queued, 0, max(1, until.Sub(s.epoch)), status
	if s.journal != nil {
		s.appendWaitLocked(j)
	}
	s.retries++
	s.changedLocked(j)
	return true
}

// Attempts returns how often the job was started.
func (s *Store) Attempts(j *Job) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return j.attempts
}

// endingLocked reports whether the job has ended, or will as soon as that is on disk.
func (j *Job) endingLocked() bool {
	return j.outcome.State.Ended() || j.trace != nil && j.trace.ending
}

// An Outcome is how a job has ended: as Done with the response, else with the
// status and the words by which a client that asks for it is told why there is
// none. A job that has Failed may have a response too: that of its last attempt.
type Outcome struct {
	State    State
	Response exchange.Response
	Status   int
	Detail   string
	Letter   Letter // of a job that has Failed: what it is made of again
}

// A Letter is what a job can be made of again.
type Letter struct {
	Captured []byte // as for Job.Capture; nil: it cannot be made again
	Route    any    // whatever is known of the handler in this process; nil after a restart
}

// Answered returns the status of the response, or 0 if there is none.
func (o Outcome) Answered() int {
	if o.Response.Size() == 0 {
		return 0
	}
	return o.Response.Status()
}

// End says how the job has ended, and returns what is known of it then; a second End
// changes nothing. Beside a journal, others learn of it when it is on disk. A response that
// is held by nobody is copied: its memory is the caller's again, and the next client's
// response may lie there. Of one that is held the store becomes the holder in the caller's
// place.
func (s *Store) End(j *Job, o Outcome) View {
	switch {
	case o.State != Done && o.State != Failed:
		o.Response, o.Letter = exchange.Response{}, Letter{}
	case o.Response.Size() > largeSize && o.Response.Held() == nil: // a smaller one is copied by the log
		o.Response = o.Response.Clone(s.bounds.Memory) // not under the lock, which all jobs need
	}
	if int64(len(o.Letter.Captured)) > s.bounds.Bytes/4 {
		o.Letter = Letter{} // with a large response it would leave no space for its own record
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if j.endingLocked() {
		o.Response.Held().Release()
		return s.viewLocked(j)
	}
	now := s.now()
	s.acceptLocked(j, now)
	j.work = nil
	if s.journal == nil {
		s.publishLocked(j, o, now)
		return s.viewLocked(j)
	}
	ended := *j
	ended.outcome, ended.ended = s.journalEndLocked(j, o, now), now
	return s.viewLocked(&ended)
}

// publishLocked lets everybody know how the job has ended.
func (s *Store) publishLocked(j *Job, o Outcome, ended time.Duration) {
	j.ended, j.outcome = ended, o
	delete(s.open, j.ID)
	if j.trace != nil {
		s.openBytes -= int64(j.trace.size)
	}
	s.keepLocked(j)
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
	Outcome                  // of a job that has not ended, only the State
	Request                  Request
	Accepted, Started, Ended time.Time // zero: not yet, or never
	Expires                  time.Time // when it is forgotten at the latest; zero before its end

	Attempts   int       // how often it was started
	Next       time.Time // when it may be started; zero: as soon as its turn comes
	LastStatus int       // while it waits for another attempt, the status of the last one's response; 0: there is none
}

// Wait returns how long the job has waited for its start, or 0 if it has not started.
func (v View) Wait() time.Duration { return between(v.Accepted, v.Started) }

// Run returns how long the job ran, or 0 if it has not started and ended.
func (v View) Run() time.Duration { return between(v.Started, v.Ended) }

func between(from, to time.Time) time.Duration {
	if from.IsZero() || to.IsZero() {
		return 0
	}
	return to.Sub(from)
}

// View returns what is known of the job.
func (s *Store) View(j *Job) View {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.viewLocked(j)
}

// State returns where the job stands.
func (s *Store) State(j *Job) State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return j.outcome.State
}

func (s *Store) viewLocked(j *Job) View {
	at := func(t time.Duration) time.Time {
		if t == 0 {
			return time.Time{}
		}
		return s.epoch.Add(t)
	}
	v := View{Outcome: j.outcome, Request: j.request, Accepted: at(j.accepted), Started: at(j.started), Ended: at(j.ended), Attempts: j.attempts}
	if j.outcome.State == Queued {
		v.Next, v.LastStatus = at(j.next), j.status
	}
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
	return j.changedLocked()
}

func (j *Job) changedLocked() <-chan struct{} {
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
	work, ending := j.work, j.endingLocked()
	s.mu.Unlock()
	// If its end is on the way to the disk, that decides.
	if !ending && (work == nil || !work.Cancel()) {
		return s.View(j)
	}
	late := time.NewTimer(storeTimeout)
	defer late.Stop()
	// Another one's cancel may have been first, and not have told yet. The disk may take
	// for ever.
	for changed := s.Changed(j); !s.View(j).State.Ended(); changed = s.Changed(j) {
		select {
		case <-changed:
		case <-late.C:
			return s.View(j)
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

// keepLocked takes a job that has ended into the log. Its key stays with it only if
// it has run: a repeat of a request that came to nothing is a new job, not the old
// one that will never run.
func (s *Store) keepLocked(j *Job) {
	s.takeLocked(j)
	s.boundLocked(j.ended)
}

func (s *Store) takeLocked(j *Job) {
	r := record{id: j.ID, request: j.request, accepted: j.accepted, started: j.started, ended: j.ended, outcome: j.outcome, attempts: j.attempts}
	switch {
	case j.claim == nil:
	case j.attempts == 0:
		delete(s.claims, j.claim.key)
	default:
		r.claimed, r.key = true, j.claim.key
	}
	j.claim = nil
	j.outcome = s.kept.add(r)
}

// boundLocked forgets what is too much, and sees to it that what becomes too old is
// forgotten.
func (s *Store) boundLocked(now time.Duration) {
	s.evictLocked(now)
	if s.bounds.Memory.Over() {
		s.yieldLocked(func() bool { return !s.bounds.Memory.Over() })
	}
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
		s.forgottenLocked(r)
	}
}

func (s *Store) forgottenLocked(r header) {
	s.lastEvicted = max(s.lastEvicted, r.ended)
	// After a restart the key may lead to a later job.
	if c, taken := s.claims[r.key]; r.claimed && taken && c.job == r.id {
		delete(s.claims, r.key)
	}
}

// Yield forgets jobs for the memory that they take, until enough reports true or only
// those are left that are being read. Where all together are less than need bytes, none is
// forgotten in vain. enough must not call the store.
func (s *Store) Yield(need int64, enough func() bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !enough() && s.kept.frees(need) { // perhaps by somebody else's Yield
		s.yieldLocked(enough)
	}
}

func (s *Store) yieldLocked(enough func() bool) {
	s.kept.yield(enough, func(r header) {
		s.byBytes++
		s.forgottenLocked(r)
	})
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
	Open                   int // accepted and not ended
	Kept                   int
	Bytes                  int64
	Unread                 int           // of those that are kept, and those that will be when their ends are on disk
	ByAge, ByJobs, ByBytes uint64        // evicted
	Reach                  time.Duration // what ended less long ago than that is still there
	Retries                uint64        // attempts that were followed by another one
	Letters                int           // jobs that have failed, are kept, and can run again
}

// Stats returns a snapshot.
func (s *Store) Stats() Stats {
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.evictLocked(now)
	st := Stats{
		Open: len(s.open) - s.pending, Kept: len(s.kept.index), Bytes: s.kept.bytes, Unread: s.kept.unread + s.ending,
		ByAge: s.byAge, ByJobs: s.byJobs, ByBytes: s.byBytes,
		Reach: s.bounds.Age, Retries: s.retries, Letters: len(s.kept.letters),
	}
	if s.lastEvicted > 0 {
		st.Reach = min(st.Reach, now-s.lastEvicted)
	}
	return st
}
