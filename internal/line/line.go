// Package line orders what waits: the more urgent first, and within an urgency so that
// clients share what there is, however much one of them asks for. It differs from a
// queue for each client in that nothing is set aside: whoever is alone gets everything.
package line

import (
	"container/list"
	"crypto/sha256"
	"encoding/hex"
	"math"
	"time"
)

const (
	// Urgencies is how many urgencies there are. As in RFC 9218, 0 is the most urgent, and
	// what says nothing is Normal.
	Urgencies = 8
	Normal    = 3

	// Reserve says how much is left for others than the most urgent: of so many turns
	// for which several urgencies wait, one goes to the less urgent ones, in rotation.
	// Without it they would starve.
	Reserve = 20

	// maxIdle is how many clients without a job are remembered, since they have had more
	// than their share. Beyond that, those idle for longest are forgotten.
	maxIdle = 1000

	// mostNow bounds virtual time, in nanoseconds: a float64 is exact up to here.
	mostNow = 1 << 52
)

// Key returns what stands for a client's name, which may be as long as its sender likes.
func Key(name string) string {
	if len(name) <= 64 {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:16])
}

// A Class says how urgent a job is and whose.
type Class struct {
	Urgency int     // 0 to Urgencies-1
	Client  string  // whose turn it takes
	Weight  float64 // of its client, beside 1 of others; more than 0

	Patience time.Duration // how long it is worth beginning, 0 if without end; for those who submit it
}

// Classless is the class of a job that has none.
var Classless = &Class{Urgency: Normal, Weight: 1}

// A Line holds what waits. Within an urgency it is fair by start-time fair queuing
// (Goyal, Vin and Cheng, SIGCOMM 1996): each client has a virtual time at which its next
// job is due, and the earliest is served. A job that is served moves its client's time on
// by what it costs, over the client's weight. Virtual time is that of the job that was
// served last. Other than there, a client that comes anew is due with the next job of the
// client that was served last, and after it, or one job later than virtual time if that
// is less: new names, however many, gain nothing but their turn.
//
// What a job costs is the time that it holds a worker. That is known when it has ended;
// until then it is charged what jobs cost on average.
//
// Create one with New. It is not safe for concurrent use.
type Line[T any] struct {
	levels  [Urgencies]level[T]
	clients map[string]*client[T] // that have a job, or are idle
	waiting int
	running int
	turns   int       // since the reserve was last used
	spare   int       // the urgency that had it
	cost    float64   // of a job, in nanoseconds, on average
	entered uint64    // how often a flow or a job has entered a queue
	served  uint64    // turns so far
	idle    list.List // of *flow[T]: without a job, but ahead of their time
}

// A level is what waits at one urgency.
type level[T any] struct {
	items  chain[T]    // in the order in which they came
	due    flowHeap[T] // the flows that wait, the one whose turn it is first
	length flowHeap[T] // the same, the one with the most jobs first
	now    float64     // virtual time
	tail   *flow[T]    // the last one that was served and waits again
}

type client[T any] struct {
	name   string
	places int // jobs, from Add to their end
	flows  [Urgencies]*flow[T]
}

// A flow is what a client sends at one urgency.
type flow[T any] struct {
	client  *client[T]
	urgency int
	weight  float64
	items   chain[T]
	running int
	due     float64 // virtual time of its next job
	mean    float64 // what jobs cost, in nanoseconds; 0: not known
	order   uint64  // among those that are due at the same time
	served  uint64  // Line.served at its last turn, or when it began to wait
	gap     float64 // turns of the line for each of its own, on average while it waits; 0: not known
	at      [2]int  // position in the heaps of its level
	idle    *list.Element
}

// An Item is a job in a Line.
type Item[T any] struct {
	Value  T
	flow   *flow[T]
	order  uint64
	charge float64
	links  [2]links[T] // in its level, in its flow
}

// New returns an empty Line.
func New[T any]() *Line[T] {
	l := &Line[T]{clients: map[string]*client[T]{}}
	for u := range l.levels {
		l.levels[u].due = flowHeap[T]{which: byDue, before: sooner[T]}
		l.levels[u].length = flowHeap[T]{which: byLength, before: longer[T]}
	}
	return l
}

// Len returns how many wait.
func (l *Line[T]) Len() int { return l.waiting }

// Waiting returns how many wait at an urgency.
func (l *Line[T]) Waiting(urgency int) int { return l.levels[urgency].items.n }

// Places returns how many jobs a client has, waiting and running.
func (l *Line[T]) Places(name string) int {
	if c := l.clients[name]; c != nil {
		return c.places
	}
	return 0
}

// Add puts a job into the line.
func (l *Line[T]) Add(v T, c Class) *Item[T] {
	f := l.flowOf(c)
	lv := &l.levels[f.urgency]
	l.entered++
	i := &Item[T]{Value: v, flow: f, order: l.entered}
	lv.items.push(i, inLevel)
	f.items.push(i, inFlow)
	f.client.places++
	l.waiting++
	if f.items.n > 1 {
		lv.length.fix(f)
		return i
	}
	if f.idle != nil {
		l.idle.Remove(f.idle)
		f.idle = nil
	}
	turn := lv.now + l.cost/f.weight
	if t := lv.tail; t != nil && t.items.n > 0 {
		turn = min(turn, max(t.due, lv.now)) // the mean may be of other jobs than those that come now
	}
	f.due = max(f.due, turn)
	f.order, f.served, f.gap = l.entered, l.served, 0
	lv.due.push(f)
	lv.length.push(f)
	return i
}

// flowOf returns the flow of a class. The last weight that a client has said counts.
func (l *Line[T]) flowOf(c Class) *flow[T] {
	owner := l.clients[c.Client]
	if owner == nil {
		owner = &client[T]{name: c.Client}
		l.clients[c.Client] = owner
	}
	f := owner.flows[c.Urgency]
	if f == nil {
		f = &flow[T]{client: owner, urgency: c.Urgency}
		owner.flows[c.Urgency] = f
	}
	f.weight = c.Weight
	return f
}

// Next takes the job whose turn it is. One must wait. Ended must follow.
func (l *Line[T]) Next() *Item[T] {
	lv := &l.levels[l.urgency()]
	f := lv.due.flows[0]
	i := f.items.front
	lv.now = max(lv.now, f.due)
	if lv.now > mostNow {
		l.rebase(f.urgency)
	}
	i.charge = l.cost / f.weight
	f.due += i.charge
	f.running++
	l.running++
	l.served++
	gap := float64(l.served - f.served)
	if f.gap == 0 {
		f.gap = gap
	}
	f.gap += (gap - f.gap) / 8
	f.served = l.served
	l.take(i)
	if f.items.n > 0 {
		l.entered++
		f.order = l.entered
		lv.due.fix(f)
		lv.tail = f
	}
	return i
}

// urgency returns the urgency whose turn it is.
func (l *Line[T]) urgency() int {
	first := l.after(-1)
	other := l.after(max(l.spare, first))
	if other == Urgencies {
		if other = l.after(first); other == Urgencies {
			return first // the only one
		}
	}
	if l.turns++; l.turns < Reserve {
		return first
	}
	l.turns, l.spare = 0, other
	return other
}

// after returns the first urgency after u at which something waits, or Urgencies.
func (l *Line[T]) after(u int) int {
	for u++; u < Urgencies && l.levels[u].items.n == 0; u++ {
	}
	return u
}

// take removes a job from those that wait.
func (l *Line[T]) take(i *Item[T]) {
	f := i.flow
	lv := &l.levels[f.urgency]
	lv.items.remove(i, inLevel)
	f.items.remove(i, inFlow)
	l.waiting--
	if f.items.n > 0 {
		lv.length.fix(f)
		return
	}
	lv.due.remove(f)
	lv.length.remove(f)
}

// Remove takes a job that waits out of the line, without a turn.
func (l *Line[T]) Remove(i *Item[T]) {
	l.take(i)
	l.leave(i.flow)
}

// Ended tells that a job which was taken by Next has ended, after it has held a worker
// for so many nanoseconds.
func (l *Line[T]) Ended(i *Item[T], took int64) {
	f, cost := i.flow, float64(max(took, 0))
	f.running--
	l.running--
	f.due += cost/f.weight - i.charge
	if f.items.n > 0 {
		l.levels[f.urgency].due.fix(f)
	}
	learn(&l.cost, cost, 64)
	learn(&f.mean, cost, 8)
	l.leave(f)
}

// learn lets a cost count for one part in so many of a mean. One that is far beyond the
// mean counts as less: newcomers are charged the mean, and would pay for it.
func learn(mean *float64, cost, parts float64) {
	if *mean == 0 {
		*mean = cost
	}
	*mean += (min(cost, 8**mean) - *mean) / parts
}

// Cost returns what a job of a class costs, about, in nanoseconds. It is 0 if nothing is
// known.
func (l *Line[T]) Cost(c Class) int64 {
	if f := l.find(c); f != nil && f.mean > 0 {
		return int64(f.mean)
	}
	return l.MeanCost()
}

// MeanCost returns what jobs cost of late, in nanoseconds. It is 0 if nothing is known.
func (l *Line[T]) MeanCost() int64 { return int64(l.cost) }

// rebase lets the virtual time of a level begin anew. A sum of large numbers would
// otherwise swallow small ones after some weeks.
func (l *Line[T]) rebase(urgency int) {
	lv := &l.levels[urgency]
	for _, c := range l.clients {
		if f := c.flows[urgency]; f != nil {
			f.due -= lv.now
		}
	}
	lv.now = 0
}

// leave gives up a place, and forgets the flow if it has no job and no more than its
// share. A client that was forgotten earlier would be due at once when it comes back:
// then sending one job at a time would give more than sending many.
func (l *Line[T]) leave(f *flow[T]) {
	f.client.places--
	if l.waiting == 0 && l.running == 0 {
		l.reset()
		return
	}
	if f.items.n == 0 && f.running == 0 {
		f.idle = l.idle.PushBack(f)
	}
	for e := l.idle.Front(); e != nil; e = l.idle.Front() {
		f := e.Value.(*flow[T])
		if l.idle.Len() <= maxIdle && f.due > l.levels[f.urgency].now {
			break
		}
		l.idle.Remove(e)
		f.idle, f.client.flows[f.urgency] = nil, nil
		if f.client.flows == [Urgencies]*flow[T]{} {
			delete(l.clients, f.client.name)
		}
	}
}

// reset forgets all clients. Nothing waits and nothing runs, so what they have had was
// taken from nobody.
func (l *Line[T]) reset() {
	clear(l.clients)
	l.idle.Init()
	for u := range l.levels {
		l.levels[u].now, l.levels[u].tail = 0, nil
	}
}

// Oldest returns the job that has waited longest, or nil.
func (l *Line[T]) Oldest() *Item[T] {
	var oldest *Item[T]
	for u := range l.levels {
		if i := l.OldestOf(u); i != nil && (oldest == nil || i.order < oldest.order) {
			oldest = i
		}
	}
	return oldest
}

// OldestOf returns the job that has waited longest at an urgency, or nil.
func (l *Line[T]) OldestOf(urgency int) *Item[T] { return l.levels[urgency].items.front }

// UpTo returns how many wait that are at least as urgent as urgency.
func (l *Line[T]) UpTo(urgency int) int {
	n := 0
	for u := 0; u <= urgency; u++ {
		n += l.levels[u].items.n
	}
	return n
}

// A Displace says how a newcomer that finds no place may get that of another.
type Displace[T any] struct {
	Oldest bool         // the oldest job goes first, whoever's it is
	Waits  bool         // it can wait until there is one
	Yields func(T) bool // whether a job may be displaced for no other reason than that its client has more
}

// mostAsked is how many of a client's newest jobs are asked whether they yield.
const mostAsked = 16

// Displaced returns the job that gives its place to a newcomer, or nil. There are so many
// places. One in Reserve of them is left to each urgency; a newcomer whose urgency has
// fewer takes one from the most urgent that has more. Within an urgency it takes one from
// the client that has most, if that has more than the newcomer's would have.
func (l *Line[T]) Displaced(c Class, places int, d Displace[T]) *Item[T] {
	share := places / Reserve
	for u := Urgencies - 1; u > c.Urgency; u-- {
		if l.levels[u].items.n <= share {
			continue
		}
		f := l.levels[u].length.flows[0]
		if d.Oldest {
			return f.items.front
		}
		return f.items.back
	}
	same := &l.levels[c.Urgency]
	for u := 0; u < c.Urgency && same.items.n < share && !d.Waits; u++ {
		if l.levels[u].items.n > share {
			return l.levels[u].length.flows[0].items.back
		}
	}
	if same.items.n == 0 || d.Waits {
		return nil
	}
	f := same.length.flows[0]
	if d.Oldest {
		return f.items.front
	}
	asked := 0
	for i := f.items.back; i != nil && f.items.n > l.own(c)+1 && asked < mostAsked; i = i.links[inFlow].before {
		if d.Yields(i.Value) {
			return i
		}
		asked++
	}
	return nil
}

// find returns the flow of a class, or nil if there is none.
func (l *Line[T]) find(c Class) *flow[T] {
	if owner := l.clients[c.Client]; owner != nil {
		return owner.flows[c.Urgency]
	}
	return nil
}

// own returns how many jobs of a class wait.
func (l *Line[T]) own(c Class) int {
	if f := l.find(c); f != nil {
		return f.items.n
	}
	return 0
}

// Ahead returns about how many would be served before a newcomer. Of those that wait it
// is all that are more urgent, and of each client as many as the newcomer's own would
// have had a turn by then. If its client has jobs in line, others that come later may be
// served earlier, as the turns show that it has had meanwhile.
func (l *Line[T]) Ahead(c Class) int {
	lv, own := &l.levels[c.Urgency], l.own(c)
	others := len(lv.due.flows)
	if own > 0 {
		others--
	}
	rounds := math.Ceil(float64(own+1) / c.Weight)
	ahead := float64(l.UpTo(c.Urgency-1)+own) + min(float64(others)*rounds, float64(lv.items.n-own))
	if own > 0 {
		f := l.find(c)
		ahead = max(ahead, float64(own+1)*max(f.gap, float64(l.served-f.served))-1)
	}
	return int(min(ahead, math.MaxInt32))
}

// A Share is what a client has in a line.
type Share struct {
	Client           string
	Waiting, Running int
}

// Most returns the clients that have the most jobs waiting at an urgency, n at most, the
// one with most first.
func (l *Line[T]) Most(urgency, n int) []Share {
	flows := l.levels[urgency].length.most(n)
	shares := make([]Share, len(flows))
	for i, f := range flows {
		shares[i] = Share{f.client.name, f.items.n, f.running}
	}
	return shares
}
