package holdfast

import (
	"context"
	"errors"
	"net/http"
	"time"

	"holdfast/internal/header"
	"holdfast/internal/line"
	"holdfast/internal/patience"
)

// A Class says how urgent a job is, whose it is, and for how long it is worth running.
// Pass one with [Submitter.For]. The zero Class is that of a job without one.
//
// A more urgent job leaves the queue first, and when the queue is full, it takes the
// place of the newest of the least urgent jobs, which ends as dropped. So that none
// waits forever, one of 20 jobs that leave while several urgencies wait is of a less
// urgent one, in rotation, and one of 20 places is left to each urgency.
//
// Within an urgency, clients get equal shares of the workers' time, or shares in
// proportion to their weights, whatever they submit. If one client has nothing queued,
// the others get its share. Under [Reject], a submit that finds the queue full displaces
// the newest request of [Jobs.Queued], or job of Do, of the client that has most there, if
// that client has at least two more: those who wait for it learn of that at once. The jobs
// of one client and urgency leave in the order in which they were accepted, and so do
// submitters that wait for a place.
type Class struct {
	// Urgency is 0 for most jobs, up to 3 for more urgent and down to -4 for less urgent
	// ones. What is beyond counts as the nearest.
	Urgency int

	// Client names whose turn the job takes. Jobs without a name share one turn.
	// A name is kept while its client has jobs, and for about the next thousand clients.
	Client string

	// Weight is the client's share beside that of others, 1 to 1000. If zero, it is 1;
	// what is beyond counts as the nearest.
	Weight int

	// Patience is how long after its submit the job is worth beginning. A submit
	// returns ErrLate if it would have to wait for longer, as far as one can tell, and
	// a job that has not begun by then ends as canceled, with ErrLate. Of a request it is
	// as in JobsConfig: for Async it decides at the door only. If zero, there is no limit.
	Patience time.Duration
}

// Priority returns the [Class] urgency that the Priority header of a request names (RFC
// 9218): 3 for u=0 to -4 for u=7, and 0 if there is none or it is malformed. It is what
// a client says, so use it where clients can be believed.
func Priority(h http.Header) int { return line.Normal - header.Priority(h) }

// ErrShare is returned by a submit for a client that has Config.ClientPlaces jobs.
var ErrShare = errors.New("holdfast: client holds all the places that it may")

// ErrLate is returned by a submit for a job that would begin too late, and is the error
// of a job that has not begun within its patience.
var ErrLate = errors.New("holdfast: job would begin too late")

// For returns a Submitter that submits jobs of a class. It allocates a little, so keep
// it if it is used often.
func (s Submitter) For(c Class) Submitter {
	s.class = c.line()
	return s
}

// line returns the class as the line knows it, nil for the zero Class.
func (c Class) line() *line.Class {
	if c == (Class{}) {
		return nil
	}
	return &line.Class{
		Urgency:  line.Normal - max(-4, min(c.Urgency, line.Normal)),
		Client:   line.Key(c.Client),
		Weight:   float64(max(1, min(c.Weight, 1000))),
		Patience: max(c.Patience, 0),
	}
}

// A turn is what a job has that is of a class, or stands in the line.
type turn struct {
	class *line.Class
	item  *line.Item[entry] // its place in the line, from its acceptance to its end; protected by Dispatcher.mu
	until time.Time         // by when it has to begin; zero: there is no limit
	late  *time.Timer       // cancels it then, if it was accepted; protected by Dispatcher.mu
}

func newTurn(c *line.Class) *turn {
	t := &turn{class: c}
	if c.Patience > 0 {
		t.until = time.Now().Add(c.Patience)
	}
	return t
}

// expireLocked lets j end when its patience has, unless it has begun by then.
func (j *Job) expireLocked() {
	if t := j.turn; t != nil && !t.until.IsZero() {
		t.late = time.AfterFunc(time.Until(t.until), func() { j.cancelWith(ErrLate, nil) })
	}
}

// class returns the class of a job as the line knows it.
func (e *entry) class() *line.Class {
	if e.job == nil || e.job.turn == nil {
		return line.Classless
	}
	return e.job.turn.class
}

// lineUpLocked makes a line of the JobQueue. It happens once, when the first job of a
// class comes.
func (d *Dispatcher) lineUpLocked() {
	queued := d.stats.Queued
	l := line.New[entry]()
	for range queued {
		e := *d.firstLocked()
		d.removeLocked(e)
		d.addLocked(l, e)
	}
	d.line, d.queue, d.first, d.stats.Queued = l, nil, entry{}, queued
}

// addLocked adds e to a line. There every entry has a Job, which knows its place, so that
// it can be taken out of the middle.
func (d *Dispatcher) addLocked(l *line.Line[entry], e entry) {
	if e.job == nil {
		e.job, e.fn = d.newJob(context.Background(), false, line.Classless, 0, e.fn), nil
		e.job.accepted = true
	} else if e.job.turn == nil {
		e.job.turn = newTurn(line.Classless)
	}
	e.job.turn.item = l.Add(e, *e.class())
}

// sharedOutLocked reports whether the client of c has all the places that it may have.
func (d *Dispatcher) sharedOutLocked(c *line.Class) bool {
	if d.clientPlaces == 0 || c.Client == "" {
		return false
	}
	places := d.blocked.Places(c.Client)
	if d.line != nil {
		places += d.line.Places(c.Client)
	}
	return places >= d.clientPlaces
}

// loadLocked returns what there is to do before a job of class c, or in all if c is nil.
func (d *Dispatcher) loadLocked(c *line.Class) patience.Load {
	load := patience.Load{Queued: d.stats.Queued, Blocked: d.stats.Blocked, Running: d.stats.Running, Workers: d.stats.Workers, MeanRun: d.stats.Run.Mean()}
	if c == nil {
		return load
	}
	load.Blocked = d.blocked.Ahead(*c)
	switch {
	case d.line != nil:
		load.Queued = d.line.Ahead(*c)
		if recent := d.line.MeanCost(); recent > 0 {
			load.MeanRun = time.Duration(recent)
		}
	case c.Urgency < line.Normal: // the line begins with this job, in front of all
		load.Queued = 0
	case c.Urgency == line.Normal && c.Client != "": // or with the turn of a new client
		load.Queued = min(load.Queued, 1)
	}
	return load
}
