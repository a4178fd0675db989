package store

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"holdfast/internal/exchange"
)

// A Journal keeps records, so that what was decided outlives the process.
type Journal interface {
	// Append adds a record behind those that it was given before, and keeps no reference
	// to it. It does not wait for the disk, since the store calls it under its lock. done
	// is called when the record is on disk, in the order of the records and never before
	// Append has returned; or, with an error, when this process will not write it any
	// more. It may be nil.
	Append(record []byte, done func(error))

	// Err returns why records do not get to the disk at present, or nil.
	Err() error
}

// ErrNotStored is returned by Accept for a job that the journal may not have.
var ErrNotStored = errors.New("the job could not be stored")

// storeTimeout is how long a client waits for the disk. A disk that is slower than this
// has failed, for all that its client can do about it.
const storeTimeout = 10 * time.Second

// A trace is what a job has beside a journal.
type trace struct {
	record  []byte        // of its acceptance; nil once the journal has it
	size    int           // of that
	order   uint64        // its place among all that were accepted
	cuts    int           // how often it was cut off by a shutdown
	wall    time.Duration // when it was accepted, if that was before a restart, as the clock was then
	ending  bool          // its end is on the way to the disk
	written chan struct{} // closed when its acceptance is on disk, or lost
	err     error         // set before that, if it is lost
}

// The kinds of records. Each begins with its kind and the id of its job. Times are in
// nanoseconds since 1970.
const (
	kindAccept = 1 + iota // order, time, claim, request, and what the HTTP layer captured
	kindStart             // time, how many starts that makes, and how many were cut off
	kindEnd               // print and the record as it is kept, with the response
	kindWait              // until when, after how many starts, how many were cut off, and the status of the last response
	kindDead              // as kindEnd, and behind it what the job can be made of again
	kindAgain             // as kindAccept, of a job that had failed; a kindWait with its starts is behind it
	kindGone              // a job that had ended is forgotten for good
)

const (
	headSize   = 1 + len(ID{})
	acceptSize = headSize + 2*8 + 1 + len(Key{}) + len(Print{}) + 3
	startSize  = headSize + 3*8
	waitSize   = headSize + 4*8
	goneSize   = headSize
	endSize    = headSize + len(Print{}) + fixedSize
)

// journaledFrom is how long ago the zero of the clock lies beside a journal: before the
// times of all records.
const journaledFrom = 50 * 365 * 24 * time.Hour

// Journaled makes j the journal of a store that is empty and has not been used. Then
// Replay is called for each record that j has, and Restored.
func (s *Store) Journaled(j Journal) {
	s.journal, s.epoch = j, time.Now().Add(-journaledFrom)
}

// Durable reports whether the store has a journal.
func (s *Store) Durable() bool { return s.journal != nil }

// Ready returns nil if a job can be accepted, otherwise why the journal cannot have it.
func (s *Store) Ready() error {
	if s.journal == nil {
		return nil
	}
	if err := s.journal.Err(); err != nil {
		return fmt.Errorf("%w: %w", ErrNotStored, err)
	}
	return nil
}

// Capture gives the journal what a job is made of again after a restart: whatever the
// caller encoded. It comes before Add.
func (j *Job) Capture(captured []byte) {
	b := make([]byte, acceptSize, acceptSize+j.request.size()+len(captured))
	b = append(append(append(b, j.request.Method...), j.request.Target...), j.request.Route...)
	j.trace = &trace{record: append(b, captured...), written: make(chan struct{})}
}

// journalAcceptLocked appends the acceptance of j. Those who repeat its request learn of
// it when it is on disk.
func (s *Store) journalAcceptLocked(j *Job) {
	s.order++
	t, b := j.trace, j.trace.record
	t.order, t.size, t.record = s.order, len(b), nil
	b[0] = kindAccept
	if j.again {
		b[0] = kindAgain
	}
	copy(b[1:], j.ID[:])
	at := binary.LittleEndian.AppendUint64(b[headSize:headSize], t.order)
	at = binary.LittleEndian.AppendUint64(at, uint64(s.wall(j.accepted)))
	at = appendClaim(at, j.claim)
	_ = append(at, byte(len(j.request.Method)), byte(len(j.request.Target)), byte(len(j.request.Route))) // into b
	s.openBytes += int64(t.size)
	s.journal.Append(b, func(err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if t.err = err; err == nil && j.claim != nil && !j.again {
			close(j.claim.decided)
		}
		close(t.written)
	})
	if j.again {
		s.appendWaitLocked(j)
	}
}

func appendClaim(b []byte, c *Claim) []byte {
	if c == nil {
		return append(b, make([]byte, 1+len(Key{})+len(Print{}))...)
	}
	return append(append(append(b, 1), c.key[:]...), c.print[:]...)
}

// awaitWritten returns when the acceptance of j is on disk.
func (s *Store) awaitWritten(j *Job) error {
	late := time.NewTimer(storeTimeout)
	defer late.Stop()
	select {
	case <-j.trace.written:
	case <-late.C:
		return fmt.Errorf("%w in %v", ErrNotStored, storeTimeout)
	}
	if j.trace.err != nil {
		return fmt.Errorf("%w: %w", ErrNotStored, j.trace.err)
	}
	return nil
}

// appendStartLocked appends how often the job has been started and cut off.
func (s *Store) appendStartLocked(j *Job) {
	b := append(make([]byte, 0, startSize), kindStart)
	b = append(b, j.ID[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(s.wall(j.started)))
	b = binary.LittleEndian.AppendUint64(b, uint64(j.attempts))
	s.journal.Append(binary.LittleEndian.AppendUint64(b, uint64(j.trace.cuts)), nil)
}

// appendWaitLocked appends that the job waits for another attempt. Nobody waits for that on
// disk: without it the job runs earlier.
func (s *Store) appendWaitLocked(j *Job) {
	b := append(make([]byte, 0, waitSize), kindWait)
	b = append(b, j.ID[:]...)
	for _, n := range []uint64{uint64(s.wall(j.next)), uint64(j.attempts), uint64(j.trace.cuts), uint64(j.status)} {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	s.journal.Append(b, nil)
}

// CutOff says that the process ends in order, and cuts off what runs. These jobs are
// started again after a restart, and have not killed the process.
func (s *Store) CutOff() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, j := range s.open {
		if j.outcome.State == Running && !j.trace.ending {
			j.trace.cuts++
			s.appendStartLocked(j)
		}
	}
}

// journalEndLocked appends the end of j, and publishes it when it is on disk. Until then
// the job is running for its clients: a restart could take back whatever else they were
// told. It returns the outcome, whose response is not its maker's.
func (s *Store) journalEndLocked(j *Job, o Outcome, ended time.Duration) Outcome {
	j.trace.ending = true
	s.ending++
	kept := *j
	kept.ended, kept.outcome = ended, o
	b := kept.endRecord(s)
	s.bounds.Memory.Add(int64(len(b)))                                   // the worker is free, whatever the disk does
	if size := o.Response.Size(); size > 0 && o.Response.Held() == nil { // its maker has its memory back
		end := len(b) - len(o.Letter.Captured) - kept.record(s).more()
		o.Response = exchange.Cut(b[end-4-size:end:end], nil)
	}
	s.journal.Append(b, func(err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.ending--
		s.bounds.Memory.Add(-int64(len(b)))
		if err != nil {
			o.Response.Held().Release()
			return
		}
		s.publishLocked(j, o, ended)
	})
	return o
}

// record returns what is kept of a job that has ended, with times as in the journal.
func (j *Job) record(s *Store) *record {
	return &record{
		id: j.ID, request: j.request, outcome: j.outcome, attempts: j.attempts,
		accepted: s.wall(j.accepted), started: s.wall(j.started), ended: s.wall(j.ended),
	}
}

// endRecord returns the record of the end of a job.
func (j *Job) endRecord(s *Store) []byte {
	r, response, kind := j.record(s), 0, byte(kindEnd)
	if size := j.outcome.Response.Size(); size > 0 {
		response = 4 + size
	}
	if j.outcome.Letter.Captured != nil {
		kind = kindDead
	}
	b := make([]byte, 0, endSize+len(j.outcome.Detail)+r.request.size()+response+moreSize+len(j.outcome.Letter.Captured))
	b = append(append(b, kind), j.ID[:]...)
	var print Print
	if j.claim != nil {
		r.claimed, r.key, print = true, j.claim.key, j.claim.print
	}
	return append(r.append(append(b, print[:]...), response), j.outcome.Letter.Captured...)
}

// wall returns a time of the store's clock in nanoseconds since 1970; 0 stays 0.
func (s *Store) wall(t time.Duration) time.Duration {
	if t == 0 {
		return 0
	}
	return time.Duration(s.epoch.UnixNano()) + t
}

// clock is the reverse of wall. What lies in the future, since the machine's clock was
// set back, is what has just been.
func (s *Store) clock(wall time.Duration) time.Duration {
	if wall == 0 {
		return 0
	}
	return max(1, min(wall-time.Duration(s.epoch.UnixNano()), s.now()))
}

var errRecord = errors.New("store: a record of the journal is not as this version writes it")

// A Step is what a record of the journal says of a job.
type Step string

const (
	Accepted  Step = "accepted"
	Started   Step = "started"
	Waiting   Step = "waiting" // for another attempt
	Ended     Step = "ended"
	Again     Step = "again" // accepted once more, after it had failed
	Discarded Step = "discarded"
)

// StepOf returns which job a record of the journal is of, and what it says. An error means
// that it is not one of this version.
func StepOf(b []byte) (ID, Step, error) {
	if len(b) < headSize {
		return ID{}, "", errRecord
	}
	id := ID(b[1:headSize])
	switch kind := b[0]; {
	case (kind == kindAccept || kind == kindAgain) && len(b) >= acceptSize:
		if lengths := b[acceptSize-3 : acceptSize]; len(b) < acceptSize+int(lengths[0])+int(lengths[1])+int(lengths[2]) {
			break
		}
		if kind == kindAgain {
			return id, Again, nil
		}
		return id, Accepted, nil
	case kind == kindWait && len(b) == waitSize:
		return id, Waiting, nil
	case kind == kindGone && len(b) == goneSize:
		return id, Discarded, nil
	case kind == kindDead && len(b) >= endSize && lengthOf(b[endSize-fixedSize:]) < len(b)-endSize+fixedSize:
		return id, Ended, nil
	case kind == kindStart && len(b) == startSize:
		return id, Started, nil
	case kind == kindEnd && len(b) >= endSize && lengthOf(b[endSize-fixedSize:]) == len(b)-endSize+fixedSize:
		return id, Ended, nil
	}
	return id, "", errRecord
}

// Replay takes a record of the journal, in the order in which it has them. A record may
// be there twice. An error means that it is not one of this version.
func (s *Store) Replay(b []byte) error {
	id, step, err := StepOf(b)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch step {
	case Again:
		s.kept.remove(id)
		s.replayAcceptLocked(id, b)
	case Accepted:
		s.replayAcceptLocked(id, b)
	case Started, Waiting:
		if j, open := s.open[id]; open {
			s.replayAttemptLocked(j, step, b[headSize:])
		}
	case Ended:
		s.replayEndLocked(id, b)
	case Discarded:
		s.discardLocked(id)
	}
	return nil
}

func (s *Store) replayAttemptLocked(j *Job, step Step, b []byte) {
	at := time.Duration(binary.LittleEndian.Uint64(b))
	starts, cuts := int(binary.LittleEndian.Uint64(b[8:])), int(binary.LittleEndian.Uint64(b[16:]))
	if starts < j.attempts {
		return // a copy of what came before
	}
	j.attempts, j.trace.cuts = starts, max(j.trace.cuts, cuts)
	j.started, j.next, j.status = s.clock(at), 0, 0
	if step == Waiting {
		j.started, j.next, j.status = 0, max(1, at-time.Duration(s.epoch.UnixNano())), int(binary.LittleEndian.Uint64(b[24:]))
	}
}

func (s *Store) replayAcceptLocked(id ID, b []byte) {
	at := b[headSize:]
	order, accepted := binary.LittleEndian.Uint64(at), time.Duration(binary.LittleEndian.Uint64(at[8:]))
	claimed, key, print := at[16] != 0, Key(at[17:]), Print(at[17+len(Key{}):])
	s.order = max(s.order, order)
	if _, open := s.open[id]; open || s.kept.has(id) {
		return // a copy
	}
	lengths, rest := b[acceptSize-3:acceptSize], b[acceptSize:]
	text := func(n byte) (t string) {
		t, rest = string(rest[:n]), rest[n:]
		return t
	}
	j := &Job{ID: id, request: Request{text(lengths[0]), text(lengths[1]), text(lengths[2])}, accepted: s.clock(accepted), outcome: Outcome{State: Queued}}
	j.trace = &trace{record: slices.Clone(rest), size: len(b), order: order, wall: accepted, written: closed}
	if claimed { // whatever job had the key before was forgotten, or there would not be this one
		j.claim = s.reclaimLocked(id, key, print)
	}
	s.open[id] = j
	s.openBytes += int64(len(b))
}

var closed = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// reclaimLocked returns the claim of a job that was accepted before the restart.
func (s *Store) reclaimLocked(id ID, key Key, print Print) *Claim {
	c := &Claim{key: key, print: print, decided: closed, job: id}
	s.claims[key] = c
	return c
}

// claimedAnewLocked reports whether the key of a job that has ended leads to a later one: it
// had been forgotten when that was accepted, and is there again since a restart keeps more.
func (s *Store) claimedAnewLocked(j *Job, key Key) bool {
	c, taken := s.claims[key]
	if !taken || c.job == j.ID {
		return false
	}
	if _, open := s.open[c.job]; open {
		return true
	}
	later, ok := s.kept.find(c.job)
	return ok && later.accepted > j.accepted
}

func (s *Store) replayEndLocked(id ID, b []byte) {
	if s.kept.has(id) {
		return // a copy
	}
	if j, open := s.open[id]; open {
		s.openBytes -= int64(j.trace.size)
		delete(s.open, id)
	}
	r := (&log{}).decode(&chunk{b: b}, uint32(endSize-fixedSize))
	j := r.job()
	if b[0] == kindDead {
		j.outcome.Letter.Captured = slices.Clone(b[endSize-fixedSize+lengthOf(b[endSize-fixedSize:]):])
	}
	j.accepted, j.started, j.ended = s.clock(r.accepted), s.clock(r.started), s.clock(r.ended)
	if j.outcome.Response.Size() > largeSize { // a smaller one is copied by the log
		j.outcome.Response = j.outcome.Response.Clone(s.bounds.Memory)
	}
	if r.claimed && !s.claimedAnewLocked(j, r.key) {
		j.claim = s.reclaimLocked(id, r.key, Print(b[headSize:]))
	}
	// A copy of an end lies behind ends that came later. The bounds must not forget those
	// in its place, so they have to wait for the whole.
	s.unsorted = s.unsorted || j.ended < s.lastEnd
	s.lastEnd = max(s.lastEnd, j.ended)
	s.takeLocked(j)
}

// A Restored is a job that was accepted before a restart and had not ended.
type Restored struct {
	*Job
	Captured []byte    // what Capture was given
	Deaths   int       // if the process has ended while it ran: how often it was started and not cut off by a shutdown
	Next     time.Time // when it may start; zero: whenever its turn comes
	Accepted time.Time // by the clock as it was then, which may have been ahead of the present one
}

// Restored returns these jobs in the order in which they were accepted. They are queued,
// and End them or Resume them is all that may be done. It ends the replay: of the jobs that
// have ended, what exceeds the bounds is forgotten.
func (s *Store) Restored() []Restored {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unsorted {
		s.kept, s.unsorted = s.kept.sorted(), false
	}
	s.boundLocked(s.now())
	var all []Restored
	for _, j := range s.open {
		r := Restored{Job: j, Captured: j.trace.record, Accepted: time.Unix(0, int64(j.trace.wall))}
		switch {
		case j.next > 0:
			r.Next = s.epoch.Add(j.next)
		case j.started > 0:
			r.Deaths = j.attempts - j.trace.cuts
		}
		j.started = 0
		all = append(all, r)
		j.trace.record = nil
	}
	slices.SortFunc(all, func(a, b Restored) int { return cmp.Compare(a.trace.order, b.trace.order) })
	return all
}

// Continue says that a restored job goes on elsewhere, where it was started for the
// attempt-th time. The next Start is none of its own, but that one.
func (s *Store) Continue(j *Job, attempt int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j.attempts = max(j.attempts, attempt) - 1
}

// Restart says that a job which runs beside a journal is started once more, since what ran
// it is gone, or, with cut, has been shut down. It returns how often the job has been
// started by that, and how many of those starts were ended by a death. 0 means that it
// does not run.
func (s *Store) Restart(id ID, cut bool) (attempt, deaths int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j, open := s.open[id]
	if !open || j.outcome.State != Running || j.trace == nil || j.trace.ending {
		return 0, 0
	}
	if cut {
		j.trace.cuts++
	}
	deaths = j.attempts - j.trace.cuts
	j.attempts++
	s.appendStartLocked(j)
	return j.attempts, deaths
}

// Standing returns where the job with an id stands. It reports false if there is none, or
// none any more.
func (s *Store) Standing(id ID) (State, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j, ok := s.lookupLocked(id)
	if !ok {
		return "", false
	}
	return j.outcome.State, true
}

// Resume makes w the work of a restored job.
func (s *Store) Resume(j *Job, w Work) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j.work = w
}

// CopyIfAlive appends a record of the journal once more if it is still needed, so that the
// journal can forget the place where it lies. What is about to end needs no record but
// its end, which must be on disk before the journal forgets anything.
func (s *Store) CopyIfAlive(b []byte) {
	if len(b) < headSize {
		return
	}
	id := ID(b[1:headSize])
	s.mu.Lock()
	defer s.mu.Unlock()
	switch j, open := s.open[id]; {
	case b[0] == kindEnd || b[0] == kindDead:
		if s.isKeptLocked(id, b) {
			s.journal.Append(b, nil)
		}
	case (b[0] == kindAccept || b[0] == kindAgain) && open && !j.trace.ending:
		s.journal.Append(b, nil)
		// The starts may lie between here and the copy, where Replay does not know the job
		// yet. So each copy of an acceptance brings them along, and they are never copied.
		switch {
		case j.attempts == 0:
		case j.next > 0:
			s.appendWaitLocked(j)
		default:
			s.appendStartLocked(j)
		}
	}
}

// isKeptLocked reports whether a record of an end is that which is kept. A job that ran
// again has an earlier one, with fewer attempts or another state.
func (s *Store) isKeptLocked(id ID, b []byte) bool {
	kept, ok := s.kept.find(id)
	if !ok || len(b) < endSize {
		return false
	}
	r := (&log{}).decode(&chunk{b: b}, uint32(endSize-fixedSize))
	return r.attempts == kept.attempts && r.outcome.State == kept.outcome.State
}

// Live returns about how many bytes of the journal are still needed.
func (s *Store) Live() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.openBytes + s.kept.bytes
}
