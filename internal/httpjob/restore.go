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

// journal prepares what the journal gets of the request. A handler can tell by the key
// that it has seen the request before, so each job has one.
func (x *execution) journal(t *turn, body []byte, key string) {
	if key == "" {
		x.exchange.SetHeader("Idempotency-Key", `"`+x.record.ID.String()+`"`)
	}
	class := t.class
	if class == nil {
		class = line.Classless
	}
	b := append(make([]byte, 0, 512+len(body)), byte(class.Urgency))
	b = binary.LittleEndian.AppendUint64(b, math.Float64bits(class.Weight))
	b = binary.LittleEndian.AppendUint64(b, uint64(t.route.limits.Run))
	b = append(append(b, byte(len(class.Client))), class.Client...)
	x.record.Capture(x.exchange.AppendRequest(b, body))
}

// restored makes x the execution of a job that was captured before a restart.
func (x *execution) restored(r store.Restored) error {
	const fixed = 1 + 8 + 8 + 1
	b := r.Captured
	if len(b) < fixed || len(b) < fixed+int(b[fixed-1]) || int(b[0]) >= line.Urgencies {
		return exchange.ErrRequest
	}
	class := line.Class{Urgency: int(b[0]), Weight: math.Float64frombits(binary.LittleEndian.Uint64(b[1:]))}
	limit := time.Duration(binary.LittleEndian.Uint64(b[9:]))
	class.Client = string(b[fixed : fixed+int(b[fixed-1])])
	request, body, err := exchange.DecodeRequest(b[fixed+len(class.Client):])
	if err != nil {
		return err
	}
	// It is there whatever the budget says, since it was promised.
	x.exchange.Hold.Open(x.jobs.Memory, int64(budget.Job)+budget.Copy(request.Header)+int64(len(b)))
	x.exchange.Restore(x.route.handler, request, body, x.jobs.MaxResponse)
	about := newAbout(request, r.ID)
	var of *line.Class
	if class != *line.Classless {
		of = &class
	}
	x.record = r.Job
	x.job = x.jobs.Queue.NewJob(withAbout{context.Background(), about}, of, limit, x.run, x.ended)
	x.jobs.Store.Resume(r.Job, x)
	return nil
}

// Restore submits the jobs again that had not ended before a restart, in the order in
// which they were accepted; h serves their requests. A job that was running
// attempts times when the process died fails: it may be what has ended it. All others have a place when
// Restore returns, also if there are fewer places than before. Beside it no other request
// may come. Restore returns how many jobs those are.
//
// Jobs in elsewhere go on without this process, under the attempt that stands there. They
// come first, have met no death, and count no further attempt. h finds them there.
func (j *Jobs) Restore(h http.Handler, attempts int, elsewhere map[store.ID]int) (int, error) {
	rt := j.newRoute(h, Limits{})
	var again []*execution
	goOn := 0
	for _, r := range j.Store.Restored() {
		attempt, goesOn := elsewhere[r.ID]
		if goesOn {
			j.Store.Continue(r.Job, attempt)
		} else if r.Deaths >= attempts {
			j.tell(r.Job, j.Store.End(r.Job, store.Outcome{State: store.Failed, Status: http.StatusInternalServerError, Detail: fmt.Sprintf("the server ended %d times while the job ran", r.Deaths)}))
			continue
		}
		x := &execution{jobs: j, route: rt}
		if err := x.restored(r); err != nil {
			return 0, fmt.Errorf("the request of job %s: %w", r.ID.Short(), err)
		}
		again = append(again, x)
		if goesOn {
			copy(again[goOn+1:], again[goOn:len(again)-1])
			again[goOn] = x
			goOn++
		}
	}
	for _, x := range again {
		x.job.Resubmit() // unless it is shut down already, and then it is for the next process
	}
	return len(again), nil
}
