package wal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"holdfast/durable/internal/secret"
)

// account is the one that a server has if none is configured.
const account = "$G"

// A Cluster says which nodes have a log in common.
type Cluster struct {
	// Name is that of the cluster, and Node that of this node in it: 1 to 64 letters,
	// digits, '-' and '_'. A node that has lost its folder comes back under another name:
	// what it has promised to the others is gone.
	Name, Node string

	// Addr is the host:port where this node takes the connections of the others.
	Addr string

	// Peers are the host:port of the others; that of this node may be among them. When
	// the cluster is new, each node has to name all of them. Later some that can be
	// reached are enough: they tell of the others.
	Peers []string

	// Replicas is how many nodes have a copy of the log: 1, 3 or 5. If zero, it is the
	// greatest that the number of Peers allows, or with URL, 3 if the servers are a
	// cluster. A log that has fewer gets more while a node leads that is told so; it never
	// gets fewer.
	Replicas int

	// Secret authenticates and encrypts what the nodes send to each other. It is never
	// nil, but with URL.
	Secret *secret.Secret

	// URL is that of external NATS servers (nats://… or tls://…, several with commas),
	// in place of Addr, Peers and Secret. Their version is 2.12 or newer. Creds, if it is
	// not empty, is a file with the credentials.
	URL, Creds string

	// System is a URL of the same servers with a user of their system account, and
	// SystemCreds its credentials. With Options.Sync, the servers are asked there whether
	// they sync each write.
	System, SystemCreds string

	advertise string // where others are told to connect; a test's
}

// A Member is this node's part of a cluster. It is made by Start. Its methods may be
// called by any number of goroutines at once.
type Member struct {
	options   Options
	cluster   Cluster
	names     names
	folder    *folder        // nil if the servers are external
	server    *server.Server // likewise
	serverLog *serverLog
	conn      *nats.Conn
	dialer    func() (*nats.Conn, error)

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	closed chan struct{} // closed when Close has ended

	mu      sync.Mutex // protects the following fields
	leading bool       // a call of Lead is under way
	log     *Log       // that is not closed
	writer  string     // begins the ids of the last term that this member has begun
}

// Start starts this node's part of the cluster: a server with its part of the log in
// o.Dir and connections to the other nodes, or the connection to external servers, which
// need no Dir. It does not wait for the other nodes. ctx ends what waiting there is. A
// folder in which Open has made a log cannot become one of a cluster, nor one of a
// cluster another's.
func Start(ctx context.Context, o Options, c Cluster) (*Member, error) {
	m, err := newMember(o, c)
	if err != nil {
		return nil, fmt.Errorf("wal: start: %w", err)
	}
	if c.URL != "" {
		err = m.join(ctx)
	} else {
		err = m.serve(ctx)
	}
	if err != nil {
		m.stop()
		return nil, fmt.Errorf("wal: start node %s of cluster %s: %w", c.Node, c.Name, err)
	}
	return m, nil
}

func newMember(o Options, c Cluster) (*Member, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	if c.URL != "" {
		o.Dir = "cluster " + c.Name // for what is logged
	}
	m := &Member{
		options: o, cluster: c, serverLog: newServerLog(o.Logger),
		names:  names{stream: streamName + "_" + c.Name, subject: "holdfast." + c.Name + ".log", lease: "holdfast." + c.Name + ".lease"},
		closed: make(chan struct{}),
	}
	// The server warns of much that concerns no append, and it is not the log's to start
	// anew: no attempt ends for what it says.
	m.serverLog.failed = nil
	m.ctx, m.cancel = context.WithCancel(context.Background())
	return m, nil
}

func (c *Cluster) check() error {
	for what, name := range map[string]string{"cluster": c.Name, "node": c.Node} {
		if !isName(name) {
			return fmt.Errorf("the name of the %s is %q; want 1 to 64 letters, digits, - or _", what, name)
		}
	}
	if !slices.Contains([]int{0, 1, 3, 5}, c.Replicas) {
		return fmt.Errorf("the number of replicas is %d; want 1, 3 or 5, or 0 for as many as there are nodes for", c.Replicas)
	}
	if c.URL != "" {
		if c.Addr != "" || len(c.Peers) > 0 {
			return errors.New("there are the URL of external servers and an address or peers; want one of the two")
		}
		return nil
	}
	if c.Secret == nil {
		return errors.New("the secret of the cluster is missing")
	}
	for _, addr := range append([]string{c.Addr}, c.Peers...) {
		if _, port, err := net.SplitHostPort(addr); err != nil || !isPort(port) {
			return fmt.Errorf("the address of a node is %q; want host:port", addr)
		}
	}
	if len(c.others()) == 0 {
		return errors.New("the cluster has no other node; one node alone needs no cluster")
	}
	return nil
}

func isName(s string) bool {
	return len(s) >= 1 && len(s) <= 64 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") == ""
}

func isPort(s string) bool {
	n, err := strconv.Atoi(s)
	return err == nil && n > 0 && n < 1<<16
}

// others returns the peers without this node.
func (c *Cluster) others() []string {
	return slices.DeleteFunc(slices.Clone(c.Peers), func(p string) bool { return p == c.Addr })
}

// replicas returns how many copies of the log there should be.
func (c *Cluster) replicas() int {
	switch nodes := len(c.others()) + 1; {
	case c.Replicas != 0:
		return c.Replicas
	case c.URL != "", nodes == 3, nodes == 4: // openStream looks at what external servers can do
		return 3
	case nodes >= 5:
		return 5
	}
	return 1
}

// serve starts the server of this node.
func (m *Member) serve(ctx context.Context) (err error) {
	if m.folder, err = openClusterFolder(m.options.Dir, m.cluster); err != nil {
		return err
	}
	if err := m.folder.probe(0); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	// The server would say so too, but without an end.
	l, err := net.Listen("tcp", m.cluster.Addr)
	if err != nil {
		return err
	}
	l.Close()
	o, err := m.serverOptions()
	if err != nil {
		return err
	}
	if m.server, err = server.NewServer(o); err != nil {
		return err
	}
	m.server.SetLoggerV2(clusterLog{m.serverLog}, false, false, false)
	m.server.Start()
	if err := m.serverLog.fatal(); err != nil {
		return err
	}
	if !m.server.ReadyForConnections(answerTime) {
		return fmt.Errorf("the server has not started: %w", m.serverLog.failure())
	}
	m.dialer = func() (*nats.Conn, error) { return m.dial("") }
	m.conn, err = m.dialer()
	return err
}

func (m *Member) serverOptions() (*server.Options, error) {
	c := m.cluster
	host, portText, _ := net.SplitHostPort(c.Addr) // check has looked at it
	port, _ := strconv.Atoi(portText)
	var routes []*url.URL
	for _, peer := range c.others() {
		routes = append(routes, &url.URL{Scheme: "nats-route", Host: peer})
	}
	return &server.Options{
		ServerName: c.Node,
		NoSigs:     true,

		// Clients are in this process. The server starts no routes without a listener for
		// others, so there is one on the loopback interface, that lets nobody in.
		Host:                       "127.0.0.1",
		Port:                       server.RANDOM_PORT,
		CustomClientAuthentication: inProcess{m},

		Routes: routes,
		Cluster: server.ClusterOpts{
			Name: c.Name, Host: host, Port: port, Advertise: c.advertise, NoAdvertise: true,
			TLSConfig:  c.Secret.Server(), // which fits both sides
			TLSTimeout: 5,
			// A node that does not answer is noticed by the Raft groups. This is for its
			// connection, so that a new one is made in time.
			PingInterval: 2 * time.Second, MaxPingsOut: 3,
		},

		JetStream:              true,
		DisableJetStreamBanner: true,
		StoreDir:               m.options.Dir,
		SyncAlways:             m.options.Sync,
		SyncInterval:           syncInterval(m.options.Sync),
		MaxPayload:             maxMessage,
		JetStreamMaxStore:      1 << 50,
		JetStreamMaxMemory:     64 << 20,
	}, nil
}

// systemUser is the name of the user that dial has for the system account.
const systemUser = "system"

// inProcess lets clients in that are in this process.
type inProcess struct{ m *Member }

// Check implements server.Authentication.
func (p inProcess) Check(c server.ClientAuthentication) bool {
	// Connections in memory have this network. That of a listener is tcp.
	if c.RemoteAddress() == nil || c.RemoteAddress().Network() != "pipe" {
		return false
	}
	if c.GetOpts().Username == systemUser {
		c.RegisterUser(&server.User{Username: systemUser, Account: p.m.server.SystemAccount()})
	}
	return true
}

// dial returns a connection in memory to the server of this node.
func (m *Member) dial(user string) (*nats.Conn, error) {
	return nats.Connect("", nats.InProcessServer(m.server), nats.NoReconnect(), nats.Timeout(answerTime), nats.UserInfo(user, ""), m.warn())
}

func (m *Member) warn() nats.Option {
	return nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		m.options.Logger.Warn("the connection to the log's server has an error", "err", err)
	})
}

// newNode returns what a Log needs. It is yet to connect.
func (m *Member) newNode() *node {
	return &node{names: m.names, dialer: m.dialer, wait: 2 * stepTime, log: m.serverLog}
}

// openStream looks for the stream, and makes it if there is none.
func (m *Member) openStream(ctx context.Context, n *node) error {
	js, err := jetstream.New(n.conn, jetstream.WithDefaultTimeout(n.wait))
	if err != nil {
		return err
	}
	n.stream, err = js.Stream(ctx, m.names.stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		n.stream, err = m.createStream(ctx, js)
	}
	if err != nil {
		return err
	}
	if why := unfit(n.stream.CachedInfo().Config); why != "" {
		return &finalError{fmt.Errorf("the stream %s %s", m.names.stream, why)}
	}
	return nil
}

func (m *Member) createStream(ctx context.Context, js jetstream.JetStream) (jetstream.Stream, error) {
	c := jetstream.StreamConfig{
		Name:        m.names.stream,
		Subjects:    []string{m.names.subject, m.names.lease},
		Storage:     jetstream.FileStorage,
		Replicas:    m.cluster.replicas(),
		Retention:   jetstream.LimitsPolicy,
		Discard:     jetstream.DiscardNew,
		Duplicates:  30 * time.Second,
		MaxMsgSize:  maxMessage,
		DenyDelete:  true, // only what lies before a sequence, by a purge
		AllowRollup: true, // of the subject of the lease
	}
	s, err := js.CreateStream(ctx, c)
	if api := new(jetstream.APIError); m.server == nil && m.cluster.Replicas == 0 && errors.As(err, &api) && api.ErrorCode == 10074 {
		c.Replicas = 1 // it is one server
		s, err = js.CreateStream(ctx, c)
	}
	return s, err
}

// raise gives the log as many copies as it should have, when there are nodes for them.
func (m *Member) raise(l *Log, n *node) {
	c, want := n.stream.CachedInfo().Config, m.cluster.replicas()
	if c.Replicas >= want || m.server == nil && m.cluster.Replicas == 0 {
		return
	}
	c.Replicas = want
	js, err := jetstream.New(n.conn, jetstream.WithDefaultTimeout(n.wait))
	for err == nil {
		_, failed := js.UpdateStream(context.Background(), c)
		if failed == nil {
			m.options.Logger.Info("the log gets more copies", "dir", m.options.Dir, "replicas", c.Replicas)
			return
		}
		m.options.Logger.Debug("the log has too few copies", "want", c.Replicas, "err", failed)
		select {
		case <-time.After(stepTime):
		case <-l.ended:
			return
		}
	}
}

// unfit returns what is wrong with a stream, which somebody else may have made.
func unfit(c jetstream.StreamConfig) string {
	switch {
	case c.Storage != jetstream.FileStorage:
		return "is in memory; want it in files"
	case c.AllowDirect:
		return "allows direct reads, which may be outdated; want allow_direct off"
	case c.Retention != jetstream.LimitsPolicy || c.MaxAge > 0 || c.MaxMsgs > 0 || c.MaxBytes > 0 || c.MaxMsgsPerSubject > 0:
		return "has limits; want none, since nothing may go by itself"
	case c.MaxMsgSize > 0 && c.MaxMsgSize < maxMessage:
		return fmt.Sprintf("takes messages of %d bytes; want %d", c.MaxMsgSize, maxMessage)
	case !c.AllowRollup || c.DenyPurge:
		return "does not allow rollups and purges"
	}
	return ""
}

// Conn returns a connection for messages among the nodes of the cluster. It is closed by
// Close.
func (m *Member) Conn() *nats.Conn { return m.conn }

// Current reports whether this node has all of the log that it should have, and knows who
// leads. Before another node is stopped in order, all that are up should be current: the
// lead is then handed over in a moment, and otherwise it takes an election. It does not
// block. With external servers it is always true.
func (m *Member) Current() bool {
	return m.server == nil || m.server.JetStreamIsCurrent() && m.server.JetStreamIsStreamCurrent(account, m.names.stream)
}

// handOver lets another node lead the stream's group, if this one does.
func (m *Member) handOver() {
	if m.server == nil {
		return
	}
	if err := m.server.JetStreamStepdownStream(account, m.names.stream); err != nil {
		m.options.Logger.Debug("the log was not handed over", "err", err)
	}
}

// Remove takes another node out of the cluster for good: it counts in no majority any
// more, and its copy of the log is made anew at a node that has none, if there is one, so
// the node that replaces it is started first. The node that is removed has to be stopped,
// and does not come back under its name. Remove blocks until the cluster has agreed or ctx
// ends. It is not for external servers.
func (m *Member) Remove(ctx context.Context, node string) error {
	if m.server == nil {
		return errors.New("wal: remove: external servers are removed with their own tools")
	}
	if node == m.cluster.Node {
		return fmt.Errorf("wal: remove: %s is this node; want another one that is stopped", node)
	}
	conn, err := m.dial(systemUser)
	if err != nil {
		return fmt.Errorf("wal: remove %s: %w", node, err)
	}
	defer conn.Close()
	// A request that comes while the cluster has no leader is never answered. An answer may
	// be lost, too; then the next one says that there is no such node.
	for again := false; ; again = true {
		err := removeOnce(ctx, conn, node, again)
		if err == nil || !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			return err
		}
	}
}

// notMember is the code of the answer that a server is not known.
const notMember = 10044

func removeOnce(ctx context.Context, conn *nats.Conn, node string, again bool) error {
	ctx, cancel := context.WithTimeout(ctx, 5*stepTime)
	defer cancel()
	request, _ := json.Marshal(server.JSApiMetaServerRemoveRequest{Server: node})
	answer, err := conn.RequestWithContext(ctx, server.JSApiRemoveServer, request)
	if err != nil {
		return fmt.Errorf("wal: remove %s: the cluster does not answer: %w", node, err)
	}
	var r server.JSApiMetaServerRemoveResponse
	if err := json.Unmarshal(answer.Data, &r); err != nil {
		return fmt.Errorf("wal: remove %s: the cluster has answered %.200q: %w", node, answer.Data, err)
	}
	if r.Success || again && r.Error != nil && r.Error.ErrCode == notMember {
		return nil
	}
	return fmt.Errorf("wal: remove %s: the cluster has answered %.200s", node, answer.Data)
}

// Close leaves the cluster in order: it closes the log if there is one, so that another
// node leads at once, and stops the server of this node. It blocks until then; when ctx
// ends, the log gives up what waits. A second call waits for the first one.
func (m *Member) Close(ctx context.Context) error {
	m.mu.Lock()
	l, first := m.log, m.ctx.Err() == nil
	m.cancel()
	m.mu.Unlock()
	if !first {
		select {
		case <-m.closed:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	defer close(m.closed)
	var err error
	if l != nil {
		err = l.Close(ctx)
	}
	m.stop()
	return err
}

// stop stops what Start has started, perhaps in part.
func (m *Member) stop() {
	if m.conn != nil {
		m.conn.Close()
	}
	if m.server != nil {
		m.server.Shutdown() // hands over what else this node leads
		m.server.WaitForShutdown()
	}
	if m.folder != nil {
		if err := m.folder.sync(); err != nil {
			m.options.Logger.Error("the folder was not synced", "dir", m.options.Dir, "err", err)
		}
		m.folder.close()
	}
}

// A clusterLog passes on what the server of a node says about the cluster.
type clusterLog struct{ *serverLog }

// Noticef and the other methods implement server.Logger.
func (l clusterLog) Noticef(format string, v ...any) {
	text := strings.TrimSpace(fmt.Sprintf(format, v...))
	if strings.Contains(text, " leader") { // elections
		l.logger.Info(text, "from", "nats")
		return
	}
	l.logger.Debug(text, "from", "nats")
}

func (l clusterLog) Warnf(format string, v ...any) {
	if strings.HasPrefix(format, "TLS certificate chain and hostname") {
		return // the secret stands in their place
	}
	l.serverLog.Warnf(format, v...)
}

func (l clusterLog) Errorf(format string, v ...any) {
	if !strings.Contains(format, "route") && !strings.Contains(format, "TLS") {
		l.serverLog.Errorf(format, v...)
		return
	}
	// A node that is down, or has another secret, is no failure of this one, and is tried
	// several times a second.
	if text := l.note(format, v); l.tellRoute() {
		l.logger.Warn(text, "from", "nats")
	} else {
		l.logger.Debug(text, "from", "nats")
	}
}

// tellRoute reports whether another line about routes would not be too much.
func (l clusterLog) tellRoute() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.told) < tellEvery {
		return false
	}
	l.told = time.Now()
	return true
}
