package durable

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"holdfast"
	"holdfast/durable/internal/cluster"
	"holdfast/durable/internal/secret"
	"holdfast/durable/internal/wal"
	"holdfast/internal/budget"
	"holdfast/internal/httpjob"
)

// A NodeConfig says what a node of a cluster is. All nodes have the same Cluster, secret,
// Jobs, Dispatcher and Handler; during an upgrade Handler may know more at some of them.
type NodeConfig struct {
	// Dir is the folder of the node's copy of the log. It is created if it is not there.
	// One process may own it. With NATS it is not used.
	Dir string

	// Cluster is the name of the cluster, and Node that of this node in it, which no other
	// one has: 1 to 64 letters, digits, - and _.
	Cluster, Node string

	// Addr is the host:port where the log's connections from the other nodes come in, and
	// Peers has those of the others; that of this node may be among them. A new cluster
	// needs all of them, later some that can be reached are enough.
	Addr  string
	Peers []string

	// NATS is the URL of external servers (nats://… or tls://…) in place of Addr and Peers,
	// and Creds a file with credentials for them. System and SystemCreds are of their
	// system account, where they are asked whether they sync each write.
	NATS, Creds, System, SystemCreds string

	// NodeAddr is the host:port where the other nodes reach this one to hand jobs to it and
	// to pass requests on.
	NodeAddr string

	// SecretFile is a file that all nodes have, with at least 16 bytes. What nodes send to
	// each other is encrypted, and nobody without the file can take part.
	SecretFile string

	// Workers is how many jobs run at this node at once. If zero, it takes requests and
	// runs nothing.
	Workers int

	// Handler serves the requests of the jobs that run at this node, whichever node has
	// accepted them. See Config.Handler.
	Handler http.Handler

	// Lead is called each time that this node comes to lead, and returns the public routes,
	// made with the Term. It must not block.
	Lead func(*Term) http.Handler

	// Dispatcher is how each term's dispatcher is built. Workers is not used: there are as
	// many as the nodes have in all.
	Dispatcher holdfast.Config

	// Jobs, NoSync and Attempts are as in Config. A node that is lost while a job runs there
	// is a death for Attempts.
	Jobs     holdfast.JobsConfig
	NoSync   bool
	Attempts int

	// Version is what the others see of this node's program.
	Version string

	// Logger gets a record of who comes and goes and leads. If nil, slog.Default() is used.
	Logger *slog.Logger
}

// A Term is the time for which a node leads: it decides for all nodes, until it is stopped
// or lost. What runs at the nodes goes on when a term ends.
type Term struct {
	// Number grows with each leader.
	Number uint64

	// Dispatcher and Jobs are those of the term. They are shut down when it ends.
	Dispatcher *holdfast.Dispatcher
	Jobs       *Jobs

	// Handler lets a node with an idle worker serve the request of a job, with that node's
	// NodeConfig.Handler: it is what Jobs.Async and Queued wrap. Outside of a job, as under
	// Jobs.Sync, it serves the request here.
	Handler http.Handler

	// Operator serves what other nodes pass on with PassOperator. Lead may set it.
	Operator http.Handler

	// Done is closed when the term is over.
	Done <-chan struct{}

	cluster *cluster.Term
	log     *wal.Log
	public  http.Handler
	over    context.CancelFunc
}

// A Node is this process in a cluster of several that share their jobs. It runs jobs, and
// takes requests, as [http.Handler] of the public listener: it serves them while it leads,
// and passes them on to the leader while it does not. Its methods may be called by any
// number of goroutines at once.
type Node struct {
	config   NodeConfig
	member   *wal.Member
	node     *cluster.Node
	term     atomic.Pointer[Term] // nil while another one leads
	stopping atomic.Bool
	began    time.Time
	caught   atomic.Bool // it had all of the log once
	stop     context.CancelFunc
	ended    chan struct{} // closed when lead has returned
}

// catchUp is for how long a node is not ready while it copies the log. One that is to have
// no copy never has it.
const catchUp = 30 * time.Second

// Join makes this process a node of a cluster. It does not wait for the others. ctx ends
// what waiting there is. If there is an error, it says what is wrong, and the process is no
// node.
func Join(ctx context.Context, c NodeConfig) (*Node, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	c.Logger = cmp.Or(c.Logger, slog.Default())
	c.Attempts = cmp.Or(c.Attempts, 3)
	c.Jobs.Path = cmp.Or(c.Jobs.Path, "/jobs/")
	shared, err := secret.Load(c.SecretFile)
	if err != nil {
		return nil, fmt.Errorf("durable: %w", err)
	}
	listener, err := net.Listen("tcp", c.NodeAddr)
	if err != nil {
		return nil, fmt.Errorf("durable: NodeConfig.NodeAddr: %w", err)
	}
	member, err := wal.Start(ctx, wal.Options{Dir: c.Dir, Sync: !c.NoSync, Logger: c.Logger}, c.log(shared))
	if err != nil {
		listener.Close()
		return nil, err
	}
	n := &Node{config: c, member: member, began: time.Now(), ended: make(chan struct{})}
	if n.node, err = cluster.Start(n.cluster(listener, shared)); err != nil {
		listener.Close()
		member.Close(ctx)
		return nil, err
	}
	leading, stop := context.WithCancel(context.Background())
	n.stop = stop
	go n.lead(leading)
	return n, nil
}

func (c *NodeConfig) check() error {
	host, _, err := net.SplitHostPort(c.NodeAddr)
	ip := net.ParseIP(host)
	switch {
	case err != nil || host == "" || ip != nil && ip.IsUnspecified():
		return fmt.Errorf("durable: NodeConfig.NodeAddr is %q; want host:port, with a host by which the other nodes reach this one", c.NodeAddr)
	case c.SecretFile == "":
		return errors.New("durable: NodeConfig.SecretFile is empty; want a file that all nodes have")
	case c.Dir == "" && c.NATS == "":
		return errors.New("durable: NodeConfig.Dir is empty; want a folder")
	case c.Handler == nil || c.Lead == nil:
		return errors.New("durable: NodeConfig.Handler or NodeConfig.Lead is nil; want what runs the jobs, and what makes the routes")
	case c.Workers < 0 || c.Attempts < 0:
		return fmt.Errorf("durable: NodeConfig has Workers %d and Attempts %d; want 0 or more", c.Workers, c.Attempts)
	case c.Jobs.MaxBody > maxContent || c.Jobs.MaxResponse > maxContent:
		return fmt.Errorf("durable: NodeConfig.Jobs has MaxBody %d and MaxResponse %d; want at most %d, which a record of the log can hold", c.Jobs.MaxBody, c.Jobs.MaxResponse, maxContent)
	}
	// A term is no time to find out that it cannot begin.
	d, err := holdfast.New(c.dispatcher())
	if err != nil {
		return err
	}
	defer d.Shutdown(context.Background())
	_, err = holdfast.NewJobs(d, c.Jobs)
	return err
}

func (c *NodeConfig) dispatcher() holdfast.Config {
	d := c.Dispatcher
	d.Workers, d.Logger = 0, cmp.Or(d.Logger, c.Logger)
	return d
}

func (c *NodeConfig) log(shared *secret.Secret) wal.Cluster {
	l := wal.Cluster{Name: c.Cluster, Node: c.Node, URL: c.NATS, Creds: c.Creds, System: c.System, SystemCreds: c.SystemCreds}
	if c.NATS == "" {
		l.Addr, l.Peers, l.Secret = c.Addr, c.Peers, shared
	}
	return l
}

// size returns how many nodes the cluster has, as far as the configuration says.
func (c *NodeConfig) size() int {
	if c.NATS != "" || slices.Contains(c.Peers, c.Addr) {
		return max(len(c.Peers), 1)
	}
	return len(c.Peers) + 1
}

func (n *Node) cluster(listener net.Listener, shared *secret.Secret) cluster.Config {
	c := &n.config
	host, _, _ := net.SplitHostPort(c.NodeAddr) // check has looked at it
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	return cluster.Config{
		Cluster: c.Cluster, Node: c.Node, Version: c.Version,
		Addr: net.JoinHostPort(host, port), Listener: listener, Server: shared.Server(), Client: shared.Client(),
		Conn: n.member.Conn(), Size: c.size(),
		Workers: c.Workers, Handler: c.Handler, MaxResponse: cmp.Or(c.Jobs.MaxResponse, 8<<20), MaxRequest: maxContent,
		Memory: budget.New(cmp.Or(c.Jobs.MaxMemory, budget.Default()), func(int64, func() bool) {}, func() int { return 1 }),
		Local:  n.local, Logger: c.Logger,
	}
}

// lead leads whenever the log says so, until ctx ends.
func (n *Node) lead(ctx context.Context) {
	defer close(n.ended)
	for {
		log, err := n.member.Lead(ctx)
		switch {
		case ctx.Err() != nil:
			if err == nil {
				n.close(log)
			}
			return
		case err != nil: // for good
			n.config.Logger.Error("this node can lead no more; stop it, and start it again", "node", n.config.Node, "error", err)
			return
		}
		t, err := n.begin(ctx, log)
		if err == nil {
			n.config.Logger.Info("this node serves all requests", "node", n.config.Node, "term", t.Number)
			<-t.Done
			n.config.Logger.Info("this node leads no more", "node", n.config.Node, "term", t.Number)
		} else if ctx.Err() == nil && !errors.Is(err, wal.ErrLost) {
			n.config.Logger.Error("a term could not begin", "node", n.config.Node, "term", log.Term(), "error", err)
			time.Sleep(time.Second) // another node may do better
		}
		n.end(t)
	}
}

// begin begins a term: it reads the log, asks the nodes what they run, and takes up what
// there is to do. If there is an error, the Term is to be ended all the same.
func (n *Node) begin(ctx context.Context, log *wal.Log) (*Term, error) {
	ctx, over := context.WithCancel(ctx)
	go func() {
		select {
		case <-log.Lost():
			over()
		case <-ctx.Done():
		}
	}()
	t := &Term{Number: log.Term(), Done: ctx.Done(), log: log, over: over}
	t.cluster = n.node.Lead(t.Number, log.Leads, over)
	t.Handler = t.cluster
	d, err := holdfast.New(n.config.dispatcher())
	if err != nil {
		return t, err
	}
	t.Dispatcher = d
	jobs, err := holdfast.NewJobs(d, n.config.Jobs)
	if err != nil {
		return t, err
	}
	t.Jobs = &Jobs{Jobs: jobs, core: httpjob.Of(jobs.Async(t.Handler)), log: log, done: make(chan struct{})}
	if err := n.restore(ctx, t); err != nil {
		return t, err
	}
	go t.Jobs.clean(ctx)
	go n.resize(ctx, t)
	t.public = n.config.Lead(t)
	n.term.Store(t)
	return t, nil
}

// restore is the restore of Jobs, for a process beside which jobs go on.
func (n *Node) restore(ctx context.Context, t *Term) error {
	core := t.Jobs.core
	core.Refusals.Moved = "another node takes the lead of the cluster; try again later"
	core.Store.Journaled(t.log)
	if err := t.log.Replay(ctx, core.Store.Replay); err != nil {
		return err
	}
	elsewhere := t.cluster.Settle(ctx)
	t.cluster.Open(core.Store, n.config.Attempts)
	workers, _ := n.node.Workers()
	if err := t.Dispatcher.Resize(workers); err != nil {
		return err
	}
	again, err := core.Restore(t.Handler, n.config.Attempts, elsewhere)
	if kept := t.Jobs.Stats().Kept; again+kept > 0 {
		n.config.Logger.Info("stored jobs are back", "to_run", again, "at_nodes", len(elsewhere), "ended", kept, "term", t.Number)
	}
	return err
}

// resize keeps the dispatcher's workers as many as those of the nodes, until ctx ends.
func (n *Node) resize(ctx context.Context, t *Term) {
	for last := -1; ; {
		workers, changed := n.node.Workers()
		if workers != last {
			last = workers
			if t.Dispatcher.Resize(workers) != nil {
				return // it is shut down
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// end ends a term. What runs at nodes goes on, and nothing is told that is not stored.
func (n *Node) end(t *Term) {
	n.term.CompareAndSwap(t, nil)
	t.over()
	t.cluster.End()
	if t.Dispatcher != nil {
		now, cancel := context.WithCancel(context.Background())
		cancel()
		t.Dispatcher.Shutdown(now)
	}
	if t.public != nil {
		<-t.Jobs.done
	}
	n.close(t.log)
}

// lastTime is how long a log has for what waits in it when a term ends.
const lastTime = 2 * time.Second

func (n *Node) close(log *wal.Log) {
	soon, cancel := context.WithTimeout(context.Background(), lastTime)
	defer cancel()
	if err := log.Close(soon); err != nil {
		n.config.Logger.Warn("the log was not written to its end", "node", n.config.Node, "error", err)
	}
}

// local returns what serves a request here, or nil if another node leads.
func (n *Node) local(kind cluster.Kind) http.Handler {
	t := n.term.Load()
	switch {
	case t == nil:
		return nil
	case kind == cluster.Admin:
		return t.Operator
	}
	reads := t.cluster.Reads(t.public)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, n.config.Jobs.Path) {
			reads.ServeHTTP(w, r)
			return
		}
		t.public.ServeHTTP(w, r)
	})
}

// ServeHTTP serves a request if this node leads, and passes it on otherwise. While there is
// no leader it answers 503 with Retry-After.
func (n *Node) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h := n.local(cluster.Public); h != nil {
		h.ServeHTTP(w, r)
		return
	}
	n.node.Pass(w, r, cluster.Public)
}

// PassOperator serves a request with the Operator of the leader's Term. It asks nobody who
// they are: whoever calls it has to.
func (n *Node) PassOperator(w http.ResponseWriter, r *http.Request) {
	if h := n.local(cluster.Admin); h != nil {
		h.ServeHTTP(w, r)
		return
	}
	n.node.Pass(w, r, cluster.Admin)
}

// Ready returns nil if the node takes requests: it is not shutting down, leads or sees a
// leader, and has copied the log since it was started. It does not block.
func (n *Node) Ready() error {
	switch {
	case n.stopping.Load():
		return errors.New("the node is shutting down")
	case n.term.Load() == nil && (n.node.Leader() == "" || n.node.Leader() == n.config.Node):
		return errors.New("the cluster has no leader at present")
	case !n.caught.Load() && time.Since(n.began) < catchUp:
		if !n.member.Current() {
			return errors.New("the node has yet to copy the log")
		}
		n.caught.Store(true)
	}
	return nil
}

// NodeStats are what a node knows of its cluster.
type NodeStats struct {
	Node   string
	Leader string // "" if none is known
	Term   uint64 // the latest that is known
	Nodes  []NodeInfo
}

// NodeInfo is what is known of one node.
type NodeInfo struct {
	Name    string
	Addr    string // where the others reach it
	Version string
	Workers int
	Running int           // jobs
	Held    int           // ends of jobs that the leader has not stored yet
	Silent  time.Duration // since it was heard; after 2 s it is gone
}

// Stats returns a snapshot. It does not block.
func (n *Node) Stats() NodeStats {
	term, all := n.node.Members()
	s := NodeStats{Node: n.config.Node, Leader: n.node.Leader(), Term: term}
	for _, m := range all {
		s.Nodes = append(s.Nodes, NodeInfo{m.Name, m.Addr, m.Version, m.Workers, m.Running, m.Held, m.Silent})
	}
	return s
}

// Resize changes how many jobs may run at this node. Those that run go on.
func (n *Node) Resize(workers int) error {
	if workers < 0 {
		return fmt.Errorf("durable: Resize to %d workers; want 0 or more", workers)
	}
	n.node.Resize(workers)
	return nil
}

// Remove takes another node out of the cluster for good, which is stopped and does not come
// back under its name: it counts in no majority any more. It blocks until the cluster has
// agreed or ctx ends.
func (n *Node) Remove(ctx context.Context, node string) error { return n.member.Remove(ctx, node) }

// Shutdown leaves the cluster. The node takes no more jobs, and those that run there finish;
// when ctx ends first, they are canceled and run at other nodes. Then it leads no more, and
// another node does. It goes on answering requests until then. Shutdown blocks for as long,
// and for about half a second beyond that. It returns how many jobs have finished here
// meanwhile, and how many run elsewhere. A Node cannot be used again.
func (n *Node) Shutdown(ctx context.Context) (finished, handedBack int, err error) {
	if !n.stopping.CompareAndSwap(false, true) {
		return 0, 0, errors.New("durable: the node is shut down already")
	}
	finished, handedBack = n.node.Leave(ctx)
	n.stop()
	<-n.ended
	n.node.Close()
	soon, cancel := context.WithTimeout(context.Background(), 2*lastTime)
	defer cancel()
	return finished, handedBack, n.member.Close(soon)
}
