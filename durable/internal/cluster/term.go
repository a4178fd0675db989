package cluster

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"holdfast/internal/store"
)

// settleTime is how long a new leader waits for what the nodes run. One that has not
// answered by then is as good as gone, and what it ran is started elsewhere.
const settleTime = 2 * time.Second

// A Term is the time for which a node leads. Make it with Lead, and end it with End.
//
// # Concurrency properties
//
// A job holds a slot of a node from before the node gets it until its end is there. There
// are as many slots as the node announces workers. Jobs that wait for a slot get one in the
// order in which they came; that they wait at all is an exception, since the dispatcher has
// as many workers as there are slots: a node has gone, or is busy with what nobody waits
// for.
type Term struct {
	node   *Node
	number uint64
	sure   func() bool // nobody else leads; see Lead
	lost   func()
	ended  chan struct{}
	end    func()

	// Set by Open.
	attempts int
	store    *store.Store

	mu      sync.Mutex // protects the following fields
	open    bool
	active  map[store.ID]*peer // jobs that are at a node, nil while they wait for one
	used    map[*peer]int      // slots
	full    map[*peer]uint64   // the beat after which to ask it again: it has refused a job
	waiting []*waiter
}

// A waiter is a job without a slot.
type waiter struct {
	id    store.ID
	seen  int        // as of the order
	given chan *peer // has room for one
}

// Lead begins a term. The other nodes learn of it at once. sure reports whether no other
// node has led until it is called; it does not block. lost is called when another node
// knows of a later term.
func (n *Node) Lead(number uint64, sure func() bool, lost func()) *Term {
	t := &Term{
		node: n, number: number, sure: sure, lost: lost, ended: make(chan struct{}),
		active: make(map[store.ID]*peer), used: make(map[*peer]int), full: make(map[*peer]uint64),
	}
	t.end = sync.OnceFunc(func() { close(t.ended) })
	n.members.see(number)
	n.mu.Lock()
	n.term = t
	n.mu.Unlock()
	n.due()
	return t
}

// End ends the term. What runs at nodes goes on.
func (t *Term) End() {
	t.node.mu.Lock()
	if t.node.term == t {
		t.node.term = nil
	}
	t.node.mu.Unlock()
	t.end()
	t.node.due()
}

// Settle waits until all nodes have told what they run, knowing that this node leads, and
// returns these jobs with their attempts, those that have ended and are not stored among
// them. It waits for 2 s at most.
func (t *Term) Settle(ctx context.Context) map[store.ID]int {
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	// One beat of each node should have come at all.
	first := time.NewTimer(beatEvery + beatEvery/2)
	defer first.Stop()
	for late := false; ; {
		all, nodes, told, changed := t.told()
		if told == nodes && (nodes >= t.node.Size || late) {
			return all
		}
		select {
		case <-changed:
		case <-first.C:
			late = true
		case <-ctx.Done():
			return all
		}
	}
}

// told returns what the nodes have said that they run, how many nodes there are, how many
// of them have said so in this term, and a channel that is closed when one says more.
func (t *Term) told() (all map[store.ID]int, nodes, told int, changed <-chan struct{}) {
	m := t.node.members
	m.mu.Lock()
	defer m.mu.Unlock()
	all = make(map[store.ID]int)
	for _, p := range m.nodes {
		if p.last.Term == t.number {
			told++
		}
		for id, r := range p.runs {
			all[id] = max(all[id], r.attempt)
		}
	}
	return all, len(m.nodes), told, m.changed
}

// Open lets the term hand out jobs of s, and clean up after terms before. A job that attempts
// nodes were lost under fails.
func (t *Term) Open(s *store.Store, attempts int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.store, t.attempts, t.open = s, attempts, true
}

// Workers returns how many jobs may run at the nodes that are there, and a channel that is
// closed when that may have changed.
func (n *Node) Workers() (total int, changed <-chan struct{}) {
	m := n.members
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.nodes {
		total += p.last.Workers
	}
	return total, m.changed
}

// heard takes a node's beat.
func (t *Term) heard(b beat) {
	switch {
	case b.Term > t.number:
		t.lost()
		return
	case b.Term < t.number:
		return // it has yet to hear of this term
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.grantLocked()
	if t.open && !b.Left {
		t.cleanLocked(b)
	}
}

// cleanLocked lets a node forget the ends that are stored, and whatever it does for nobody.
func (t *Term) cleanLocked(b beat) {
	needless := make(map[store.ID]run)
	p := t.node.members.find(b.Node)
	for id, r := range unpack(b.Runs) {
		at, active := t.active[id]
		if active && (at == nil || at == p) {
			continue
		}
		state, known := t.store.Standing(id)
		if active || !known || state.Ended() {
			needless[id] = r
		}
	}
	if len(needless) > 0 && p != nil {
		go t.node.forget(context.Background(), p, t.number, needless)
	}
}

// Sure reports whether no other node has led until this call.
func (t *Term) Sure() bool {
	select {
	case <-t.ended:
		return false
	default:
		return t.sure()
	}
}

// take waits for a slot, at the node where the job runs already if there is one.
func (t *Term) take(ctx context.Context, id store.ID, seen int) (*peer, error) {
	t.mu.Lock()
	w := &waiter{id: id, seen: seen, given: make(chan *peer, 1)}
	t.active[id] = nil
	t.waiting = append(t.waiting, w)
	t.grantLocked()
	t.mu.Unlock()
	select {
	case p := <-w.given:
		return p, nil
	case <-ctx.Done():
	case <-t.ended:
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := slices.Index(t.waiting, w); i >= 0 {
		t.waiting = slices.Delete(t.waiting, i, i+1)
	} else {
		t.giveLocked(<-w.given)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return nil, errOld
}

// grantLocked gives slots to those who wait, in their order. While the node is not sure that
// it leads it starts nothing: it may have been stopped, and another one lead by then.
func (t *Term) grantLocked() {
	if len(t.waiting) == 0 || !t.Sure() {
		return
	}
	m := t.node.members
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(t.waiting) > 0 {
		w := t.waiting[0]
		p := t.chooseLocked(w)
		if p == nil {
			return
		}
		t.waiting = t.waiting[1:]
		t.used[p]++
		t.active[w.id] = p
		w.given <- p
	}
}

// chooseLocked returns the node for a job: where it runs, else the least loaded, and of two
// alike this one. It needs members.mu.
func (t *Term) chooseLocked(w *waiter) (best *peer) {
	free := func(p *peer) float64 { return float64(p.last.Workers-t.used[p]) / float64(max(p.last.Workers, 1)) }
	for _, p := range t.node.members.nodes {
		at, runs := p.runs[w.id]
		runs = runs && (!at.ended || at.attempt > w.seen)
		switch {
		case p.last.Number <= t.full[p]:
		case runs:
			return p
		case t.used[p] >= p.last.Workers:
		case best == nil || free(p) > free(best) || free(p) == free(best) && p.name == t.node.Node:
			best = p
		}
	}
	return best
}

// give returns a slot.
func (t *Term) give(p *peer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.giveLocked(p)
}

func (t *Term) giveLocked(p *peer) {
	if t.used[p]--; t.used[p] <= 0 {
		delete(t.used, p)
	}
	t.grantLocked()
}

// refused notes that a node has not taken a job. It is asked again after its next beat.
func (t *Term) refused(p *peer) {
	m := t.node.members
	m.mu.Lock()
	number := p.last.Number
	m.mu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.full[p] = number
	maps.DeleteFunc(t.full, func(p *peer, _ uint64) bool {
		select {
		case <-p.gone:
			return true
		default:
			return false
		}
	})
}
