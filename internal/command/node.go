package command

import (
	"context"
	"errors"
	"log/slog"
	"net/http"

	"holdfast"
	"holdfast/admin"
	"holdfast/internal/budget"
	"holdfast/internal/gateway"
	"holdfast/internal/server"
)

// A Join makes the process a node of a cluster, as the configuration says. handler serves
// the requests of the jobs that run here. lead is called when this node comes to lead.
type Join func(c server.Config, jobs holdfast.JobsConfig, handler http.Handler, lead func(Term) (public, operator http.Handler), version string, log *slog.Logger) (Node, error)

// A Node is this process among others.
type Node interface {
	// ServeHTTP serves the requests of the public listener, here or at the node that leads.
	ServeHTTP(http.ResponseWriter, *http.Request)

	// PassOperator does so for the operator's.
	PassOperator(http.ResponseWriter, *http.Request)

	// Ready returns why the node cannot take requests at present, or nil.
	Ready() error

	// Stats returns what is known of the nodes.
	Stats() admin.ClusterStats

	// Shutdown lets what runs here finish, or run elsewhere when ctx ends first, and leaves
	// the cluster. It returns how many jobs have done the one and the other.
	Shutdown(ctx context.Context) (finished, handedBack int, err error)
}

// A Term is the time for which a node leads.
type Term struct {
	Dispatcher *holdfast.Dispatcher
	Jobs       *holdfast.Jobs
	Log        func() admin.LogStats
	Handler    http.Handler    // lets a node serve the request of a job
	Done       <-chan struct{} // closed when the term is over
}

// A colleague is the server of a node. Listeners, node and gateway are there as long as the
// process; dispatcher, jobs and routes are those of a term.
type colleague struct {
	config  server.Config
	version string
	log     *slog.Logger
	gateway *gateway.Gateway
	node    Node
	server  *server.Server
	joined  chan struct{} // closed when node and server are set
}

// serveNode is serve for a node of a cluster.
func serveNode(config server.Config, join Join, version string, log *slog.Logger) error {
	public, private, err := listen(config, log)
	if err != nil {
		return err
	}
	limitHeap(config.MaxMemory)
	c := &colleague{config: config, version: version, log: log, gateway: newGateway(config, log), joined: make(chan struct{})}
	if c.node, err = join(config, jobsOf(config, log), again(c.gateway), c.lead, version, log); err != nil {
		return err // the process ends, and the listeners with it
	}
	c.server = server.NewDoor(leaving{c.node}, c.door(), config, log)
	// What is passed on is held here too, beside what the jobs of a term take.
	c.server.Count(budget.New(config.MaxMemory, func(int64, func() bool) {}, func() int { return 1 }))
	c.server.Admin(c.operator())
	close(c.joined)

	announce(public, private, config, version, log)
	ctx := untilSignal()
	if c.gateway != nil {
		context.AfterFunc(ctx, c.gateway.Release)
	}
	return c.server.Run(ctx, public, private, config.Drain)
}

// leaving is a node as the pool of a server. Jobs that run elsewhere are not cut off.
type leaving struct{ node Node }

func (l leaving) Shutdown(ctx context.Context) (holdfast.Report, error) {
	finished, _, err := l.node.Shutdown(ctx)
	return holdfast.Report{Finished: finished}, err
}

// door serves what the process itself answers, and leaves the rest to the node.
func (c *colleague) door() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" || r.URL.Path == "/readyz" {
			<-c.joined
			c.server.Health(c.node.Ready).ServeHTTP(w, r)
			return
		}
		c.node.ServeHTTP(w, r)
	})
}

// operator is the handler of the admin listener: what is of this process it answers itself,
// and what is of the jobs the node that leads.
func (c *colleague) operator() http.Handler {
	mux := http.NewServeMux()
	health := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.server.Health(c.node.Ready).ServeHTTP(w, r)
	})
	mux.Handle("GET /healthz", health)
	mux.Handle("GET /readyz", health)
	mux.Handle("/debug/", admin.Debug())
	mux.HandleFunc("/", c.node.PassOperator)
	return admin.Guard(admin.Config{
		Token: c.config.AdminToken, Host: c.config.AdminHost(), Logger: c.log,
		Admitted: func(r *http.Request) { c.server.Admitted(r) },
	}, mux)
}

var errWorkers = errors.New("in a cluster each node has workers of its own; start a node again with another -workers")

// lead returns the public routes of a term, and the operator's.
func (c *colleague) lead(t Term) (public, operator http.Handler) {
	mux := http.NewServeMux()
	routes := server.NewRoutes(mux)
	same := func(h http.Handler) http.Handler { return h } // the others go on when this one stops
	site{jobs: t.Jobs, gateway: c.gateway, config: c.config, work: same, elsewhere: t.Handler}.add(mux, routes)
	h := admin.New(admin.Config{
		Dispatcher: t.Dispatcher, Jobs: t.Jobs, Log: t.Log, Cluster: c.stats, Version: c.version, Logger: c.log, Demo: routes,
		Resize: func(int) error { return errWorkers },
	})
	watching, leave := context.WithCancel(context.Background())
	go func() {
		<-t.Done
		leave()
	}()
	go h.Run(watching)
	return routes, h.Unguarded()
}

func (c *colleague) stats() admin.ClusterStats {
	<-c.joined
	s := c.node.Stats()
	s.Name = c.config.Cluster
	return s
}
