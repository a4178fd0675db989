package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"holdfast"
	"holdfast/internal/exchange"
	"holdfast/internal/httpjob"
	"holdfast/internal/lazy"
	"holdfast/internal/problem"
	"holdfast/internal/store"
	"holdfast/internal/wrapped"
)

// An errand is a job on its way to a node, and, if that is lost, to another one.
type errand struct {
	*Term
	order
	request  *http.Request
	body     []byte
	followed bool // the job is in the store
}

// ServeHTTP lets a node serve the request of a job, and answers with its response. It is
// what the workers of the term's dispatcher call. Outside of a job it serves the request
// here.
func (t *Term) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Context().Value(lazy.AboutKey{}) == nil {
		t.node.Handler.ServeHTTP(w, r)
		return
	}
	body, ok := problem.ReadBody(w, r, maxWire)
	if !ok {
		return
	}
	e := &errand{Term: t, request: r, body: body}
	e.term, e.attempt = t.number, 1
	if e.id, e.followed = r.Context().Value(httpjob.IDKey{}).(store.ID); e.followed {
		e.attempt, _ = strconv.Atoi(r.Header.Get("Job-Attempt"))
		e.seen = e.attempt - 1 // whatever came of those before, the job is to run once more
	} else {
		e.id = store.NewID() // its client waits for the answer, and nobody else ever will
	}
	e.order.request = exchange.AppendRequest(nil, r, body)
	defer e.over()
	end, err := e.run(r.Context())
	if why, failed := errors.AsType[*exchange.NoResponse](err); failed {
		fail(w, why)
	} else if err == nil {
		answer(w, r.Method, end)
	}
}

func (e *errand) over() {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.active, e.id)
}

// run returns the end of the job. An error that is no NoResponse means that ctx has ended.
func (e *errand) run(ctx context.Context) ([]byte, error) {
	for died, cut := false, false; ; {
		p, err := e.take(ctx, e.id, e.seen)
		if err == nil && (died || cut) {
			// Not before it has a slot: else a leader that is lost while the job waits for one
			// would have counted a start that there was not.
			if err := e.again(cut); err != nil {
				e.give(p)
				return nil, err
			}
			died, cut = false, false
		}
		var end []byte
		if err == nil {
			end, err = e.runAt(ctx, p)
			e.give(p)
		}
		switch {
		case err == nil && end[0] != endReturned:
			return end, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, errOld):
			e.lost()
			<-ctx.Done() // the dispatcher of a term that is over is shut down
			return nil, ctx.Err()
		case err == nil:
			cut, e.seen = true, e.attempt
			e.refused(p)
		case errors.Is(err, errBusy):
			e.refused(p)
		default:
			died = true
		}
	}
}

var errGone = errors.New("cluster: the node is gone")

// runAt lets a node run the job, and waits for its end. When ctx is canceled, so is the job,
// but for the end of a term, with which the node has nothing to do.
func (e *errand) runAt(ctx context.Context, p *peer) ([]byte, error) {
	calling, stop := context.WithCancel(context.Background())
	defer stop()
	if deadline, ok := ctx.Deadline(); ok {
		e.limit = max(time.Until(deadline), 1)
	}
	type result struct {
		end []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		end, err := e.node.run(calling, p, e.order)
		done <- result{end, err}
	}()
	canceled := ctx.Done()
	for {
		select {
		case r := <-done:
			return r.end, r.err
		case <-p.gone:
			return nil, errGone
		case <-e.ended:
			return nil, errOld
		case <-canceled:
			canceled = nil
			switch {
			case errors.Is(context.Cause(ctx), holdfast.ErrClosed):
				return nil, ctx.Err()
			case ctx.Err() == context.Canceled: // of a deadline the node knows by itself
				go e.node.cancel(calling, p, e.order)
			}
		}
	}
}

// again prepares the job for another node: the one that ran it is lost, or, with cut, was
// shut down.
func (e *errand) again(cut bool) error {
	if !e.followed {
		return &exchange.NoResponse{Status: http.StatusBadGateway, Detail: "the node that ran the request is gone; it may have run in part"}
	}
	attempt, deaths := e.store.Restart(e.id, cut)
	if deaths >= e.attempts {
		return &exchange.NoResponse{Status: http.StatusInternalServerError, Detail: fmt.Sprintf("the server ended %d times while the job ran", deaths)}
	}
	e.attempt = attempt
	e.request.Header.Set("Job-Attempt", strconv.Itoa(attempt))
	e.order.request = exchange.AppendRequest(nil, e.request, e.body)
	return nil
}

// answer writes what a node has answered, as its handler would have.
func answer(w http.ResponseWriter, method string, end []byte) {
	switch end[0] {
	case endResponse:
		clear(w.Header()) // what was preset here was preset there
		if end[1]&marksNever != 0 {
			w.Header().Set("Job-Retry", "never")
		}
		if end[1]&marksUnreached != 0 {
			exchange.Unreached(w)
		}
		response := exchange.Cut(end[2:], nil)
		response.CopyHeader(w.Header())
		response.Write(w, method)
	case endPanic:
		panic(nodePanic(end[1:])) // so that it counts as what it is
	default:
		fail(w, &exchange.NoResponse{Status: int(binary.LittleEndian.Uint16(end[1:])), Detail: string(end[3:])})
	}
}

// A nodePanic is what a handler has panicked with at a node, which has logged it with its
// stack.
type nodePanic string

func (p nodePanic) Error() string { return "at its node: " + string(p) }

// fail says that there is no response.
func fail(w http.ResponseWriter, why *exchange.NoResponse) {
	if recorder, ok := wrapped.Find[interface{ Fail(*exchange.NoResponse) }](w); ok {
		recorder.Fail(why)
		return
	}
	problem.Write(w, why.Status, why.Detail)
}
