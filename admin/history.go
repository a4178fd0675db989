package admin

import (
	"context"
	"sync"
	"time"

	"holdfast"
)

// What is remembered: a mark a second, for as long as the advice and the charts of
// the dashboard look back.
const (
	interval = time.Second
	lookBack = 5 * time.Minute
	maxMarks = int(lookBack/interval) + 1
)

// A mark is what had happened by some moment.
type mark struct {
	at    time.Time
	stats holdfast.Stats
}

// A history has the marks of the last minutes. What happened between two of them is
// the difference of what they have counted, so nothing is lost by looking seldom.
type history struct {
	mu    sync.Mutex    // protects the following fields
	marks []mark        // the oldest first, at least one; what is in it does not change
	next  chan struct{} // closed when there is another one; nil if nobody waits

	// The advice is dear to compute with many workers, and what it is about does
	// not change so fast.
	advising sync.Mutex // protects the following fields
	advice   Advice
	at       time.Time
	workers  int // that it is for
}

// adviceFor is how long an advice stands.
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

// look returns the marks so far, and a channel that is closed when there is
// another one.
func (h *history) look() ([]mark, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.next == nil {
		h.next = make(chan struct{})
	}
	return h.marks, h.next
}

// advise returns an advice that is at most adviceFor old, and for as many workers
// as there are.
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
	list := make([]Sample, 0, len(marks)) // not nil: JSON knows an empty list
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
	}
	return r
}

// arrived returns how many submits there were. One that waits for a place has
// arrived, and will be accepted or refused.
func arrived(st *holdfast.Stats) uint64 { return st.Accepted + refused(st) + uint64(st.Blocked) }

func refused(st *holdfast.Stats) uint64 {
	return st.RefusedFull + st.RefusedClosed + st.RefusedNested + st.RefusedGone
}
