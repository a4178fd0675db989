package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"holdfast"
	"holdfast/internal/exchange"
	"holdfast/internal/httpjob"
	"holdfast/internal/store"
)

// The kinds of ends. An end begins with its kind.
const (
	endResponse = iota // and what it says of another attempt, and the response, encoded
	endFailure         // and the status and the words of an exchange.NoResponse
	endPanic           // and what the handler has panicked with
	endReturned        // the node was shut down while the job ran; it is to run elsewhere
)

// What a response says of another attempt, which is not in the response that is kept.
const (
	marksNever     = 1 << iota // none makes sense
	marksUnreached             // what the handler is for was not reached
)

// Bounds of the ends that a node holds until the leader has stored them. What is beyond
// goes, the oldest first: such a job may run once more.
const (
	maxHeldBytes = 64 << 20
	maxHeldTime  = 10 * time.Minute
)

var (
	errBusy = errors.New("cluster: the node has no idle worker")
	errOld  = errors.New("cluster: the order is of an older term than the node has seen")
)

// An order is what the leader wants to be run.
type order struct {
	term    uint64
	id      store.ID
	attempt int
	seen    int           // the attempt whose end the leader has looked at last; 0: none
	limit   time.Duration // that the job may run; 0: none
	request []byte        // as exchange.AppendRequest encodes it
}

// runs are the jobs that this node runs, and the ends that it holds. An order for a job that
// is here is answered by the run that there is, whatever its attempt and whoever leads by
// then. So an order may be repeated, and a node that was taken for lost need not run a job
// twice. Only a run whose end the leader has looked at is followed by another one: the job
// is to be tried again.
type runs struct {
	handler http.Handler
	limit   int64 // bytes of a response
	log     *slog.Logger
	tell    func() // called, without the lock, when the node's beat would be another one

	mu      sync.Mutex // protects the following fields
	workers int
	leaving bool
	all     map[store.ID]*local
	running int
	held    []*local      // in the order of their ends; those that were forgotten are among them
	bytes   int64         // of these ends
	idle    chan struct{} // closed when nothing runs and no end is held, if somebody waits
}

// A local is a run at this node.
type local struct {
	id      store.ID
	attempt int
	cancel  context.CancelCauseFunc
	done    chan struct{} // closed when it has ended

	forgotten bool // nobody wants its end; protected by runs.mu
	end       []byte
	ended     time.Time
}

func newRuns(h http.Handler, limit int64, workers int, log *slog.Logger, tell func()) *runs {
	return &runs{handler: h, limit: limit, log: log, tell: tell, workers: workers, all: make(map[store.ID]*local)}
}

// start runs what o orders, unless it runs already.
func (s *runs) start(o order) (*local, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l, ok := s.all[o.id]; ok && !l.forgotten {
		if l.end == nil || l.attempt > o.seen {
			return l, nil
		}
		l.forgotten = true
		s.dropLocked(l)
	}
	if s.leaving || s.running >= s.workers || s.all[o.id] != nil {
		return nil, errBusy
	}
	request, body, err := exchange.DecodeRequest(o.request)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(context.WithValue(context.Background(), httpjob.IDKey{}, o.id))
	stop := context.CancelFunc(func() {})
	if o.limit > 0 {
		ctx, stop = context.WithTimeout(ctx, o.limit)
	}
	l := &local{id: o.id, attempt: o.attempt, cancel: cancel, done: make(chan struct{})}
	s.all[o.id] = l
	s.running++
	go func() {
		defer stop()
		end := s.serve(ctx, request, body)
		cancel(nil)
		s.finish(l, end)
	}()
	return l, nil
}

// serve calls the handler and returns the end.
func (s *runs) serve(ctx context.Context, r *http.Request, body []byte) (end []byte) {
	var x exchange.Exchange
	x.Restore(s.handler, r, body, s.limit)
	defer x.Release()
	normal := false
	defer func() {
		switch v := recover(); {
		case normal:
		case v == http.ErrAbortHandler:
			end = failureOf(x.Failure(http.ErrAbortHandler))
		case v == nil: // runtime.Goexit
			end = failureOf(x.Failure(nil))
		default:
			text := fmt.Sprintf("%T: %.200v", v, v)
			s.log.Error("a job's handler panicked", "method", r.Method, "panic", text, "stack", string(debug.Stack()))
			end = append([]byte{endPanic}, text...)
		}
	}()
	err := x.Serve(ctx)
	normal = true
	switch {
	case err != nil:
		return failureOf(x.Failure(err))
	case ctx.Err() == context.DeadlineExceeded:
		return failureOf(x.Failure(ctx.Err()))
	}
	return x.Response().Append([]byte{endResponse, marksOf(x.Verdict())})
}

func marksOf(v exchange.Verdict) (marks byte) {
	if v.Never {
		marks |= marksNever
	}
	if v.Failed {
		marks |= marksUnreached
	}
	return marks
}

func failureOf(status int, detail string) []byte {
	return append(binary.LittleEndian.AppendUint16([]byte{endFailure}, uint16(status)), detail...)
}

// finish takes the end of a run, unless leave has given it back before.
func (s *runs) finish(l *local, end []byte) {
	s.mu.Lock()
	if l.end == nil {
		s.endLocked(l, end)
	}
	s.mu.Unlock()
	s.tell()
}

func (s *runs) endLocked(l *local, end []byte) {
	l.end, l.ended = end, time.Now()
	s.running--
	close(l.done)
	if l.forgotten {
		delete(s.all, l.id)
	} else {
		s.held = append(s.held, l)
		s.bytes += int64(len(end))
	}
	s.boundLocked()
}

// boundLocked lets go of ends that are too many or too old, and of those that were
// forgotten.
func (s *runs) boundLocked() {
	for len(s.held) > 0 {
		l := s.held[0]
		if !l.forgotten && s.bytes <= maxHeldBytes && time.Since(l.ended) < maxHeldTime {
			break
		}
		s.dropLocked(l)
		s.held = s.held[1:]
	}
	if s.idle != nil && len(s.all) == 0 {
		close(s.idle)
		s.idle = nil
	}
}

func (s *runs) dropLocked(l *local) {
	if s.all[l.id] == l {
		delete(s.all, l.id)
		s.bytes -= int64(len(l.end))
	}
}

// cancel cancels a job.
func (s *runs) cancel(id store.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l, ok := s.all[id]; ok {
		l.cancel(context.Canceled)
	}
}

// forget drops the ends of jobs that are stored, and cancels those that run for nobody. A
// later attempt, which may have begun meanwhile, is none of them.
func (s *runs) forget(needless map[store.ID]run) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, r := range needless {
		l, ok := s.all[id]
		if !ok || l.attempt > r.attempt {
			continue
		}
		l.forgotten = true
		if l.end != nil {
			s.dropLocked(l)
		} else {
			l.cancel(context.Canceled)
		}
	}
	s.boundLocked()
}

// list returns what is to be told of the runs. What was given back is over.
func (s *runs) list() (workers int, all map[store.ID]run) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.boundLocked()
	all = make(map[store.ID]run, len(s.all))
	for id, l := range s.all {
		if l.end == nil || l.end[0] != endReturned {
			all[id] = run{l.attempt, l.end != nil}
		}
	}
	if s.leaving {
		return 0, all
	}
	return s.workers, all
}

// resize changes the number of workers. What runs goes on.
func (s *runs) resize(workers int) {
	s.mu.Lock()
	s.workers = workers
	s.mu.Unlock()
	s.tell()
}

// leave takes no more jobs, and waits until those that run have ended, or ctx has: then
// they are canceled and given back, so that they run elsewhere. It returns how many have
// ended and how many were given back.
func (s *runs) leave(ctx context.Context) (finished, returned int) {
	s.mu.Lock()
	s.leaving = true
	before := s.running
	s.mu.Unlock()
	s.tell()
	s.await(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.all {
		if l.end == nil {
			l.cancel(holdfast.ErrClosed)
			s.endLocked(l, []byte{endReturned})
			returned++
		}
	}
	return before - returned, returned
}

// await waits until nothing runs and all ends are stored, or ctx ends.
func (s *runs) await(ctx context.Context) {
	s.mu.Lock()
	if len(s.all) == 0 {
		s.mu.Unlock()
		return
	}
	if s.idle == nil {
		s.idle = make(chan struct{})
	}
	idle := s.idle
	s.mu.Unlock()
	select {
	case <-idle:
	case <-ctx.Done():
	}
}
