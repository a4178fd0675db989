package httpjob

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"net/http"
	"time"

	"holdfast/internal/budget"
	"holdfast/internal/exchange"
	"holdfast/internal/line"
	"holdfast/internal/store"
)

// Of returns the Jobs that a handler of Async belongs to, or nil if it is no such handler.
func Of(h http.Handler) *Jobs {
	if e, ok := h.(*entrance); ok {
		return e.jobs
	}
	return nil
}

// journal gives the record what the job is made of again after a restart.
func (x *execution) journal(t *turn) { x.record.Capture(x.encode(t.until)) }

// timed marks a captured request that says when it is to run.
const timed = 0x80

// encode returns the request as it was captured, to run at a time if that is not zero.
func (x *execution) encode(until time.Time) []byte {
	class, mark := x.class, byte(0)
	if class == nil {
		class = line.Classless
	}
	if !until.IsZero() {
		mark = timed
	}
	b := append(make([]byte, 0, x.exchange.Size()), byte(class.Urgency)|mark)
	b = binary.LittleEndian.AppendUint64(b, math.Float64bits(class.Weight))
	b = binary.LittleEndian.AppendUint64(b, uint64(x.limit))
	b = append(append(b, byte(len(class.Client))), class.Client...)
	if mark != 0 {
		b = binary.LittleEndian.AppendUint64(b, uint64(until.UnixNano()))
	}
	return x.exchange.AppendRequest(b)
}

// restore makes x the execution of a job that encode has captured, and returns when that is
// to run; zero: whenever its turn comes.
func (x *execution) restore(record *store.Job, b []byte) (until time.Time, err error) {
	const fixed = 1 + 8 + 8 + 1
	captured := int64(len(b))
	if len(b) < fixed || len(b) < fixed+int(b[fixed-1])+8 || int(b[0]&^timed) >= line.Urgencies {
		return until, exchange.ErrRequest
	}
	class := line.Class{Urgency: int(b[0] &^ timed), Weight: math.Float64frombits(binary.LittleEndian.Uint64(b[1:]))}
	marked, limit := b[0]&timed != 0, time.Duration(binary.LittleEndian.Uint64(b[9:]))
	class.Client = string(b[fixed : fixed+int(b[fixed-1])])
	if b = b[fixed+len(class.Client):]; marked {
		until, b = time.Unix(0, int64(binary.LittleEndian.Uint64(b))), b[8:]
	}
	request, body, err := exchange.DecodeRequest(b)
	if err != nil {
		return until, err
	}
	// It is there whatever the budget says, since it was promised.
	x.exchange.Hold.Open(x.jobs.Memory, int64(budget.Job)+2*budget.Copy(request.Header)+captured)
	x.exchange.Restore(x.route.handler, request, body, x.jobs.MaxResponse)
	x.exchange.Keep()
	if class != *line.Classless {
		x.class = &class
	}
	x.record, x.limit, x.values = record, limit, withAbout{context.Background(), newAbout(request, record.ID)}
	x.job = x.newJob()
	x.jobs.Store.Resume(record, x)
	return until, nil
}

// Restore submits the jobs again that had not ended before a restart, in the order in
// which they were accepted; h serves their requests. A job that was running attempts times
// when the process died fails: it may be what has ended it. All others have a place when
// Restore returns, also if there are fewer places than before. Beside it no other request
// may come. Restore returns how many jobs those are.
//
// Jobs in elsewhere go on without this process, under the attempt that stands there. They
// come first, have met no death, and count no further attempt. h finds them there.
func (j *Jobs) Restore(h http.Handler, attempts int, elsewhere map[store.ID]int) (int, error) {
	rt := j.newRoute(h, Limits{})
	j.restoring = rt
	var first, again []*execution
	var waiting []time.Duration // of those in again
	for _, r := range j.Store.Restored() {
		attempt, goesOn := elsewhere[r.ID]
		goesOn = goesOn && r.Next.IsZero() // else that attempt is over, and was looked at
		if goesOn {
			j.Store.Continue(r.Job, attempt)
		} else if r.Deaths >= attempts {
			j.tell(r.Job, j.Store.End(r.Job, store.Outcome{State: store.Failed, Status: http.StatusInternalServerError, Detail: fmt.Sprintf("the server ended %d times while the job ran", r.Deaths), Letter: store.Letter{Captured: r.Captured}}))
			continue
		}
		x := &execution{jobs: j, route: rt}
		until, err := x.restore(r.Job, r.Captured)
		if err != nil {
			return 0, fmt.Errorf("the request of job %s: %w", r.ID.Short(), err)
		}
		if goesOn {
			first = append(first, x)
			continue
		}
		if !r.Next.IsZero() || j.Store.Attempts(r.Job) > 0 {
			until = r.Next
		}
		// A clock that was ahead, and has been set back, does not make it wait for longer.
		again, waiting = append(again, x), append(waiting, min(time.Until(until), until.Sub(r.Accepted)+time.Millisecond))
	}
	for _, x := range first {
		x.resume(0)
	}
	for i, x := range again {
		x.resume(waiting[i])
	}
	return len(first) + len(again), nil
}

// resume lets a job that was accepted before a restart go on: wait for what is left until
// its time, or, if nothing is, have its place.
func (x *execution) resume(left time.Duration) {
	if left <= 0 {
		x.job.Resubmit() // unless it is shut down already, and then it is for the next process
		return
	}
	p, at := x.beginPause(), time.Now().Add(left)
	x.jobs.Store.Delay(x.record, at)
	if !x.await(p, at, true) {
		x.endPause(p, Abandoned, x.jobs.Refusals.Abandoned)
	}
}
