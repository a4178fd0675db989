package admin

import (
	"context"
	"sync"
	"time"

	"holdfast"
)

// The history has a mark for each second, as far back as the advice and the charts of
// the dashboard look.
const (
	interval = time.Second
	lookBack = 5 * time.Minute
	maxMarks = int(lookBack/interval) + 1
)

// A mark holds the statistics of a moment.
type mark struct {
	at    time.Time
	stats holdfast.Stats
}

// A history has the marks of the last minutes. The difference between two of them is
// what happened from one to the other, so looking seldom loses nothing.
type history struct {
	mu    sync.Mutex    // protects the following fields
	marks []mark        // oldest first, at least one; its elements do not change
	next  chan struct{} // closed when there is a new mark; nil if nobody waits

	// With many workers the advice is costly to compute, and the load does not change
	// that fast.
	advising sync.Mutex // protects the following fields
	advice   Advice
	at       time.Time
	workers  int // that the advice is for
}

// adviceFor is how long an advice is used.
const adviceFor = 5 * time.Second

// run adds a mark each interval, until ctx ends.
func (h *history) run(ctx context.Context, d *holdfast.Dispatcher) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			h.add(mark{now, d.Stats()})
		case <-ctx.Done():
			return
		}
	}
}

// add adds a mark and wakes those who wait for it.
func (h *history) add(m mark) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.marks = append(h.marks, m)
	h.marks = h.marks[max(len(h.marks)-maxMarks, 0):]
	if h.next != nil {
		close(h.next)
		h.next = nil
	}
}

// look returns the marks so far, and a channel that is closed when there is a new
// one.
func (h *history) look() ([]mark, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.next == nil {
		h.next = make(chan struct{})
	}
	return h.marks, h.next
}

// advise returns an advice that is at most adviceFor old and is for the present
// number of workers.
func (h *history) advise() Advice {
	past, _ := h.look()
	latest := &past[len(past)-1]
	h.advising.Lock()
	defer h.advising.Unlock()
	if latest.at.Sub(h.at) >= adviceFor || latest.stats.Workers != h.workers {
		h.advice, h.at, h.workers = advise(past), latest.at, latest.stats.Workers
	}
	return h.advice
}

// samples returns what happened from each mark to the next.
func samples(marks []mark) []Sample {
	list := make([]Sample, 0, len(marks)) // not nil, which JSON would write as null
	for i := range marks[1:] {
		list = append(list, sample(&marks[i], &marks[i+1]))
	}
	return list
}

// sample returns what happened from one mark to another.
func sample(from, to *mark) Sample {
	wait, run := to.stats.Wait.Since(&from.stats.Wait), to.stats.Run.Since(&from.stats.Run)
	return Sample{
		Time:     to.at.UTC(),
		Arrivals: arrived(&to.stats) - arrived(&from.stats),
		Started:  wait.Count,
		Finished: run.Count,
		Refused:  refused(&to.stats) - refused(&from.stats),
		GaveUp:   to.stats.RefusedGone - from.stats.RefusedGone,
		Workers:  to.stats.Workers,
		Queue:    to.stats.Queue,
		Queued:   to.stats.Queued,
		Running:  to.stats.Running,
		Blocked:  to.stats.Blocked,
		WaitP50:  quantile(&wait, 0.5),
		WaitP99:  quantile(&wait, 0.99),
		RunP50:   quantile(&run, 0.5),
		RunP99:   quantile(&run, 0.99),
	}
}

// recent returns what has happened since the first mark.
func recent(marks []mark) Recent {
	from, to := &marks[0], &marks[len(marks)-1]
	wait, run := to.stats.Wait.Since(&from.stats.Wait), to.stats.Run.Since(&from.stats.Run)
	r := Recent{Seconds: to.at.Sub(from.at).Seconds(), Wait: timingsOf(&wait), Run: timingsOf(&run)}
	for i := range marks {
		r.Busy += float64(marks[i].stats.Running) / float64(len(marks))
	}
	if r.Seconds > 0 {
		r.Arrivals = float64(arrived(&to.stats)-arrived(&from.stats)) / r.Seconds
		r.Finished = float64(run.Count) / r.Seconds
		r.Refused = float64(refused(&to.stats)-refused(&from.stats)) / r.Seconds
		r.GaveUp = float64(to.stats.RefusedGone-from.stats.RefusedGone) / r.Seconds
	}
	return r
}

// arrived returns how many submits there were. A submit that waits for a place has
// arrived already.
func arrived(st *holdfast.Stats) uint64 {
	return st.Accepted + refused(st) + st.RefusedGone + uint64(st.Blocked)
}

// refused returns how many submits the dispatcher has turned away. A submitter that
// left by itself is not among them.
func refused(st *holdfast.Stats) uint64 {
	return st.RefusedFull + st.RefusedClosed + st.RefusedNested + st.RefusedShare + st.RefusedLate
}
