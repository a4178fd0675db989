// Package cluster lets several processes run the jobs of one queue. Each of them is a node,
// which does two things always: it runs jobs that the leader hands to it, and it takes
// HTTP, which it serves if it leads and passes on if it does not. Who leads is not decided
// here, but by whoever owns the log: unlike a group of workers around a broker, the nodes
// share nothing but what the leader's memory says.
//
// # Who is there
//
// Each node tells all others what it is and what it runs, by beats over core NATS. One
// that was silent for two seconds is gone, and so is one that has another boot id; what it
// ran is started elsewhere. A beat also tells the latest term that the node knows of, and
// nodes refuse orders of older ones: a leader that was stopped and wakes up can start
// nothing and cancel nothing.
//
// # Terms
//
// A [Term] is the time for which a node leads. It hands jobs to nodes with idle workers,
// and to no other. When a term ends, what runs goes on: the next leader asks the nodes what
// they run, and waits for it there. A node holds the end of a job until the leader has
// stored it.
package cluster

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"holdfast/internal/budget"
	"holdfast/internal/logline"
)

// A Config says what a Node is.
type Config struct {
	Cluster, Node string // names; they are made of letters, digits, - and _
	Version       string
	Addr          string       // by which the others reach Listener
	Listener      net.Listener // of the other nodes' orders and of what they pass on; Close closes it
	Server        *tls.Config  // for Listener
	Client        *tls.Config  // for the others' listeners
	Conn          *nats.Conn   // between the nodes
	Size          int          // nodes of the cluster, as far as it is known

	Workers     int            // jobs that run here at once
	Handler     http.Handler   // serves their requests
	MaxResponse int64          // bytes
	MaxRequest  int64          // bytes of a request that is passed on
	Memory      *budget.Budget // of those whose server counts nothing

	// Local returns what serves the requests of a kind while this node leads, else nil.
	Local func(kind Kind) http.Handler

	Logger *slog.Logger
}

// A Node is this process among the others. Its methods may be called by any number of
// goroutines at once.
type Node struct {
	Config
	boot    string
	members *members
	runs    *runs
	client  *http.Client
	server  *http.Server
	sub     *nats.Subscription

	kick  chan struct{} // has room for one; receives when a beat is due
	leave context.CancelFunc
	ended sync.WaitGroup
	gone  context.Context // ends when the node stops passing on

	number atomic.Uint64 // of the last beat

	mu   sync.Mutex // protects the following fields
	term *Term      // nil while another one leads
}

// Start makes this process a node. It does not wait for others.
func Start(c Config) (*Node, error) {
	n := &Node{Config: c, boot: rand.Text(), members: newMembers(c.Node), kick: make(chan struct{}, 1)}
	n.runs = newRuns(c.Handler, c.MaxResponse, c.Workers, c.Logger, n.due)
	n.client = &http.Client{Transport: &http.Transport{
		TLSClientConfig: c.Client, ForceAttemptHTTP2: true, DisableCompression: true,
		DialContext:     (&net.Dialer{Timeout: silence}).DialContext,
		IdleConnTimeout: time.Minute, MaxIdleConnsPerHost: 1000,
		// A node that has vanished leaves a connection on which nothing comes back.
		HTTP2: &http.HTTP2Config{SendPingTimeout: silence, PingTimeout: silence},
	}}
	n.server = &http.Server{
		Handler: n.routes(), TLSConfig: c.Server, ReadHeaderTimeout: 10 * time.Second,
		ErrorLog: slog.NewLogLogger(logline.Seldom(c.Logger.Handler()), slog.LevelWarn),
		HTTP2:    &http.HTTP2Config{MaxConcurrentStreams: 10_000},
	}
	var err error
	if n.sub, err = c.Conn.Subscribe(n.subject(), n.heard); err != nil {
		return nil, fmt.Errorf("cluster: listening to the other nodes: %w", err)
	}
	var beating context.Context
	beating, n.leave = context.WithCancel(context.Background())
	n.gone = beating
	n.ended.Go(func() { n.beats(beating) })
	n.ended.Go(func() { n.server.ServeTLS(c.Listener, "", "") })
	return n, nil
}

func (n *Node) subject() string { return "holdfast." + n.Cluster + ".beat" }

// heard is called by the connection, with one beat after the other.
func (n *Node) heard(m *nats.Msg) {
	b, err := decodeBeat(m.Data)
	switch {
	case err != nil:
		n.Logger.Warn("strange message from another node", "error", err)
	case b.Node == n.Node && b.Boot != n.boot && !b.Left:
		n.Logger.Error("another process has this node's name; each node needs a name of its own", "node", n.Node, "addr", b.Addr)
	case b.Node == n.Node: // its own, or the last one of the life before
	default:
		n.hear(b)
	}
}

func (n *Node) hear(b beat) {
	news := n.members.hear(b, time.Now())
	n.mu.Lock()
	t := n.term
	n.mu.Unlock()
	if t != nil {
		t.heard(b)
	}
	if news {
		n.due()
	}
}

// due makes a beat follow at once.
func (n *Node) due() {
	select {
	case n.kick <- struct{}{}:
	default:
	}
}

// leastPause is the least time between two beats, however much changes.
const leastPause = 20 * time.Millisecond

// beats sends beats until ctx ends, the last of which says so.
func (n *Node) beats(ctx context.Context) {
	regular := time.NewTicker(beatEvery)
	defer regular.Stop()
	for {
		n.members.expire(time.Now())
		n.send(false)
		select {
		case <-regular.C:
		case <-n.kick:
			time.Sleep(leastPause)
		case <-ctx.Done():
			n.send(true)
			return
		}
	}
}

func (n *Node) send(last bool) {
	b := beat{Node: n.Node, Boot: n.boot, Addr: n.Addr, Version: n.Version, Left: last, Number: n.number.Add(1)}
	workers, all := n.runs.list()
	b.Workers, b.Runs = workers, pack(all)
	n.mu.Lock()
	t := n.term
	n.mu.Unlock()
	if t != nil {
		b.Term, b.Leads = t.number, true
	} else {
		b.Term, _ = n.members.leads()
	}
	n.hear(b) // whatever the connection does
	if err := n.Conn.Publish(n.subject(), b.encode()); err == nil && last {
		n.Conn.FlushTimeout(time.Second)
	}
}

// Members returns the nodes that are there, by name, and the latest term.
func (n *Node) Members() (term uint64, all []Member) {
	term, _ = n.members.leads()
	return term, n.members.list(time.Now())
}

// Leader returns the name of the node that leads, or "" if none is known to.
func (n *Node) Leader() string {
	if _, p := n.members.leads(); p != nil {
		return p.name
	}
	return ""
}

// Resize changes how many jobs run here at once. Those that run go on.
func (n *Node) Resize(workers int) { n.runs.resize(workers) }

// lastEnds is how long a node that leaves waits for the leader to store the ends that it
// holds.
const lastEnds = 500 * time.Millisecond

// Leave takes no more jobs and waits until those that run here have ended. When ctx ends
// first, they are canceled and run elsewhere. It returns how many have ended, and how many
// are to run elsewhere.
func (n *Node) Leave(ctx context.Context) (finished, returned int) {
	finished, returned = n.runs.leave(ctx)
	soon, cancel := context.WithTimeout(context.Background(), lastEnds)
	defer cancel()
	go func() { // the leader learns of what is still held by beats
		for again := time.NewTicker(2 * leastPause); soon.Err() == nil; <-again.C {
			n.due()
		}
	}()
	n.runs.await(soon)
	return finished, returned
}

// Close tells the others that the node is gone, and closes its listener. What it passes on
// ends.
func (n *Node) Close() {
	n.sub.Unsubscribe()
	n.leave()
	n.server.Close()
	n.ended.Wait()
	n.client.CloseIdleConnections()
}
