package wal

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	// renewal is after how long a leader that has nothing to append shows that it lives.
	renewal = time.Second

	// leaseTime is how long an acknowledgement proves that no other node leads. It is
	// shorter than silence by more than clocks can differ in their pace.
	leaseTime = 2 * time.Second

	// silence is how long the log must stand still, seen from the node that wants to
	// lead, before it takes over from a leader that has not given up.
	silence = 3 * time.Second

	// unheard is how long a leader waits for an acknowledgement before it gives up.
	unheard = 5 * time.Second
)

const (
	lookEvery = 100 * time.Millisecond // for the leadership of this node's own replica
	askEvery  = 500 * time.Millisecond // for the end of the log
	tellEvery = 10 * time.Second       // why there is no log yet

	stepTime = time.Second // for a request to a cluster that may have no leader
)

// A lead is what a Log has in a cluster.
//
// A term begins with a message that is stored only if the log ends where the node has
// seen its end, so of several nodes one succeeds, and what others append after that is
// refused. The leader shows at least every second that it lives: by what it appends, or
// by a message on a subject of its own that takes the place of the one before. It goes
// through the same fence. So its acknowledgement proves that no term had begun when it
// was sent, and since others wait for silence seconds from when they saw it, none begins
// within leaseTime. That needs no clocks that agree, only clocks that run.
type lead struct {
	member *Member
	term   uint64

	// The following fields are protected by the log's mu.
	sure     time.Time // no other node led then
	heard    time.Time // the last acknowledgement
	renewing bool      // a message that renews the lease waits or is in flight
}

// Term returns the number of the term in which this node leads. It grows with each
// leader. It is 0 for a log that was made by Open.
func (l *Log) Term() uint64 {
	if l.lead == nil {
		return 0
	}
	return l.lead.term
}

// Lost returns a channel that is closed when this process has lost the log: ErrLost says
// when. In a cluster it is also closed if the replica that leads the stream's group is at
// another node, or if nothing was acknowledged for 5 seconds. What waits then gets
// ErrLost, and whether it is in the log is not known. Close has to be called all the same.
func (l *Log) Lost() <-chan struct{} { return l.gone }

// Leads reports whether no other node has led until this call: so what was read before
// the call was the state of the log. It is false for moments when appends are slow, and
// for good when Lost is closed or Close was called. It does not block. It is true for a
// log that was made by Open.
func (l *Log) Leads() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost == nil && !l.closing && (l.lead == nil || time.Since(l.lead.sure) < leaseTime)
}

// Lead blocks until this node leads, and returns the log, which is to be replayed as one
// that was opened. With servers of the cluster's own the leader is the node at which the
// stream's group has its leader; with external servers it is the first that finds that
// nobody leads. A leader that ends in order is replaced at once, another one when the log
// has stood still for 3 seconds and the servers have a leader.
//
// An append that was refused or not acknowledged at another node before is either in the
// log when Lead returns, or never will be.
//
// One call may be under way at a time, and the log of the call before must be closed.
// ctx ends it, and so does Close, with ErrClosed. Any other error means that this member
// can lead no more and has to be closed.
func (m *Member) Lead(ctx context.Context) (*Log, error) {
	ctx, done, err := m.beginLead(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	c := candidate{member: m}
	defer c.close()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		l, err := c.step(ctx)
		if l != nil {
			return l, nil
		}
		if final := m.ended(ctx, err); final != nil {
			return nil, final
		}
		c.tell(err)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, m.ended(ctx, nil)
		}
	}
}

// beginLead returns a context that also ends with the member.
func (m *Member) beginLead(ctx context.Context) (context.Context, func(), error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.ctx.Err() != nil:
		return nil, nil, ErrClosed
	case m.leading:
		return nil, nil, errors.New("wal: lead: another call is under way")
	case m.log != nil:
		return nil, nil, fmt.Errorf("wal: lead: the log of term %d is not closed", m.log.lead.term)
	}
	m.leading = true
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(m.ctx, cancel)
	return ctx, func() {
		stop()
		cancel()
		m.mu.Lock()
		defer m.mu.Unlock()
		m.leading = false
	}, nil
}

// ended returns why Lead has to end, or nil.
func (m *Member) ended(ctx context.Context, err error) error {
	final := new(finalError)
	switch {
	case m.ctx.Err() != nil:
		return ErrClosed
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &final):
		return fmt.Errorf("wal: lead %s: %w", m.options.Dir, err)
	case m.server != nil && !m.server.JetStreamEnabled():
		return fmt.Errorf("wal: lead %s: the server of this node has ended: %w", m.options.Dir, m.serverLog.failure())
	}
	return nil
}

// A finalError does not go away by waiting.
type finalError struct{ error }

// A candidate looks for the moment to lead.
type candidate struct {
	member *Member
	n      *node // nil: there is no connection, or no stream yet

	last  uint64    // the sequence at which the log ends
	since time.Time // when that was seen first
	asked time.Time
	told  time.Time
}

func (c *candidate) close() {
	if c.n != nil {
		c.n.stop()
	}
}

// tell logs why there is nothing to lead, at times.
func (c *candidate) tell(err error) {
	if err != nil && time.Since(c.told) > tellEvery {
		c.told = time.Now()
		c.member.options.Logger.Info("the log of the cluster cannot be reached yet", "node", c.member.cluster.Node, "err", err)
	}
}

// step looks once. It returns the log if this node has come to lead.
func (c *candidate) step(ctx context.Context) (*Log, error) {
	mine := c.member.server == nil || c.member.server.JetStreamIsStreamLeader(account, c.member.names.stream)
	if !mine && time.Since(c.asked) < askEvery {
		return nil, nil
	}
	c.asked = time.Now()
	asking, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	if err := c.open(asking); err != nil {
		return nil, err
	}
	if !mine {
		info, err := c.n.stream.Info(asking)
		if err == nil {
			c.see(info.State.LastSeq)
		}
		return nil, err
	}
	s, err := c.n.state(asking)
	if err != nil {
		return nil, err
	}
	c.see(s.at.last)
	if c.member.mayFollow(s) || time.Since(c.since) >= silence {
		return c.take(ctx, s)
	}
	return nil, nil
}

// open connects and looks for the stream, or makes it.
func (c *candidate) open(ctx context.Context) error {
	if c.n != nil && !c.n.conn.IsClosed() {
		return nil
	}
	c.close()
	c.n = nil
	n := c.member.newNode()
	err := n.listen()
	if err == nil {
		err = c.member.openStream(ctx, n)
	}
	if err != nil {
		n.stop()
		return err
	}
	c.n = n
	return nil
}

// see takes note of where the log ends.
func (c *candidate) see(last uint64) {
	if c.since.IsZero() || last != c.last {
		c.last, c.since = last, time.Now()
	}
}

// mayFollow reports whether nobody leads: nobody has yet, the last leader has given up,
// or it was this member itself.
func (m *Member) mayFollow(s state) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return s.term == 0 || s.released || s.writer == m.writer
}

// take begins a term behind the state of the log.
func (c *candidate) take(ctx context.Context, s state) (*Log, error) {
	var random [8]byte
	rand.Read(random[:])
	m, term := c.member, s.term+1
	l := makeLog(m.options, nil, c.n, s, strconv.FormatUint(term, 10)+"."+hex.EncodeToString(random[:]))
	l.lead = &lead{member: m, term: term}
	if err := l.begin(ctx); err != nil {
		return nil, err
	}
	if s.firstStored < s.at.first { // a crash has interrupted a deletion
		if err := c.n.purge(ctx, s.at.first); err != nil {
			return nil, err
		}
		if err := l.measure(ctx, c.n); err != nil {
			return nil, err
		}
	}
	m.mu.Lock()
	m.log = l
	m.mu.Unlock()
	m.options.Logger.Info("this node leads", "node", m.cluster.Node, "term", term)
	go l.write()
	go l.watch()
	go m.raise(l, c.n)
	c.n = nil // it is the log's
	return l, nil
}

// begin writes the message with which the term begins.
func (l *Log) begin(ctx context.Context) error {
	n, at := l.now()
	data := l.sealed(header{kind: kindTerm, prev: at.prev, first: at.first})
	m := n.message(n.names.subject, l.newID(), at.last, data)
	// The end of the stream and the end of the log's subject were read one after the
	// other, perhaps at two servers. This makes the server compare the second one too.
	m.Header[jetstream.ExpectedLastSubjSeqHeader] = []string{strconv.FormatUint(at.prev, 10)}
	defer context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.abortLocked()
	})()
	l.lead.member.began(l.id)
	begin := time.Now()
	sequence, err := l.attempt(m, at.last)
	if err != nil && !errors.Is(err, ErrLost) && ctx.Err() == nil {
		sequence, err = l.attempt(m, at.last) // it may be there
	}
	if err != nil {
		return err
	}
	l.stored(position{last: sequence, prev: sequence, first: at.first}, data, begin)
	return nil
}

// began takes note of a term that this member has begun, or tried to.
func (m *Member) began(writer string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writer = writer
}

// sealed returns a message without records, with the name of the node.
func (l *Log) sealed(h header) []byte {
	node := l.lead.member.cluster.Node
	message := append(make([]byte, headerSize), node...)
	h.size, h.synced = uint32(len(node)), l.options.Sync
	h.seal(message)
	return message
}

// watch ends the lead when it is over, and renews the lease while nothing is appended.
func (l *Log) watch() {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			l.look()
		case <-l.ended:
			return
		}
	}
}

func (l *Log) look() {
	m := l.lead.member
	mine := m.server == nil || m.server.JetStreamIsStreamLeader(account, m.names.stream)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch quiet := time.Since(l.lead.heard); {
	case !mine:
		l.loseLocked(fmt.Errorf("%w: the stream's leader is at another node", ErrLost))
	case quiet > unheard:
		l.loseLocked(fmt.Errorf("%w: no append was acknowledged for %v", ErrLost, quiet.Round(time.Millisecond)))
	case l.waiting == 0 && !l.closing && !l.lead.renewing && time.Since(l.lead.sure) >= renewal:
		l.lead.renewing = true
		l.queue = append(l.queue, &pack{kind: kindLease})
		l.work.Signal()
	}
}

// renew writes the message that renews the lease. It removes the one before, so that a
// log in which nothing happens does not grow.
func (l *Log) renew() error {
	n, at := l.now()
	begin := time.Now()
	m := n.message(n.names.lease, l.newID(), at.last, l.sealed(header{kind: kindLease, prev: at.prev, first: at.first}))
	m.Header[jetstream.MsgRollup] = []string{jetstream.MsgRollupSubject}
	sequence, err := l.persist(m, at.last)
	if err == nil {
		at.last = sequence
		l.succeed(at, begin)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lead.renewing = false
	return err
}

// release gives the lead up: the last message says so, and others need not wait.
func (l *Log) release(n *node) {
	m := l.lead.member
	_, at := l.now() // the writer has ended
	message := n.message(n.names.subject, l.newID(), at.last, l.sealed(header{kind: kindEnd, prev: at.prev, first: at.first}))
	ctx, cancel := context.WithTimeout(context.Background(), stepTime)
	defer cancel()
	// If it fails, another node waits until the log has stood still. That it is refused
	// is the rule after a lead was lost.
	if _, err := n.publishMsg(message, ctx.Done()); err != nil {
		m.options.Logger.Debug("the end of a term was not written", "term", l.lead.term, "err", err)
	}
	m.handOver()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.log = nil
}

// scan is as that of the node. In a cluster it goes on elsewhere when a server ends.
func (l *Log) scan(ctx context.Context, n *node, from, to uint64, f func(message) error) error {
	for tries := 0; ; tries++ {
		var own error
		err := n.scan(ctx, from, to, func(m message) error {
			if own = f(m); own == nil {
				from, tries = m.sequence+1, 0
			}
			return own
		})
		if err == nil || own != nil || l.lead == nil || tries == patience {
			return err
		}
		select {
		case <-time.After(stepTime):
		case <-l.gone:
			return fmt.Errorf("%w: %w", ErrLost, err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
