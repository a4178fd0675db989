package wal

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/durable/internal/secret"
)

// testSecret returns the secret of the tests' clusters.
func testSecret(t testing.TB) *secret.Secret {
	t.Helper()
	name := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(name, []byte("the secret of the tests"), 0o600); err != nil {
		t.Fatal(err)
	}
	return loadSecret(t, name)
}

func loadSecret(t testing.TB, name string) *secret.Secret {
	t.Helper()
	s, err := secret.Load(name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// freeAddrs returns addresses on which nothing listens.
func freeAddrs(t testing.TB, n int) []string {
	t.Helper()
	var addrs []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		addrs = append(addrs, l.Addr().String())
	}
	return addrs
}

// A testCluster has three nodes in this process.
type testCluster struct {
	t       *testing.T
	dirs    []string
	configs []Cluster
	members []*Member // nil: the node is down
}

// startCluster starts three nodes.
func startCluster(t *testing.T) *testCluster {
	t.Helper()
	c := &testCluster{t: t, members: make([]*Member, 3)}
	addrs := freeAddrs(t, 3)
	s := testSecret(t)
	for i, addr := range addrs {
		c.dirs = append(c.dirs, t.TempDir())
		c.configs = append(c.configs, Cluster{Name: "test", Node: fmt.Sprint("n", i), Addr: addr, Peers: addrs, Secret: s})
	}
	for i := range c.members {
		c.start(i)
	}
	t.Cleanup(func() {
		for _, m := range c.members {
			if m != nil {
				closeMember(t, m)
			}
		}
	})
	return c
}

func (c *testCluster) start(i int) *Member {
	c.t.Helper()
	m, err := Start(c.t.Context(), options(c.t, c.dirs[i], true), c.configs[i])
	if err != nil {
		c.t.Fatal(err)
	}
	c.members[i] = m
	return m
}

func closeMember(t *testing.T, m *Member) time.Duration {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	begin := time.Now()
	if err := m.Close(ctx); err != nil {
		t.Error(err)
	}
	return time.Since(begin)
}

// A led is a log and the node that leads it.
type led struct {
	node int
	log  *Log
}

// lead lets the nodes that are up lead, and returns the first that does.
func (c *testCluster) lead() led {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*limit)
	defer cancel()
	found := make(chan led)
	nodes := 0
	for i, m := range c.members {
		if m == nil {
			continue
		}
		nodes++
		go func() {
			l, err := m.Lead(ctx)
			if err != nil && ctx.Err() == nil {
				c.t.Errorf("node %d: %v", i, err)
			}
			found <- led{i, l}
		}()
	}
	var first led
	for range nodes {
		switch l := <-found; {
		case l.log == nil:
		case first.log == nil:
			first = l
			cancel()
		default: // it came before the end of ctx
			closeLog(c.t, l.log)
		}
	}
	if first.log == nil {
		c.t.Fatal("no node leads")
	}
	return first
}

// Three nodes have a log in common. Each in turn leads when the one before has ended in
// order, and finds what was written.
func TestTakeover(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for elections")
	}
	t.Parallel()
	c := startCluster(t)
	begin := time.Now()
	var want []string
	term, down := uint64(0), -1
	for i := range 3 {
		l := c.lead()
		t.Logf("term %d: node %d leads after %v", l.log.Term(), l.node, time.Since(begin).Round(time.Millisecond))
		if l.log.Term() <= term || !l.log.Leads() {
			t.Errorf("term %d follows term %d; it leads: %v", l.log.Term(), term, l.log.Leads())
		}
		term = l.log.Term()
		same(t, replay(t, l.log), want)
		for _, r := range numbered(20) {
			r = fmt.Sprint(i, " ", r)
			write(t, l.log, r)
			want = append(want, r)
		}
		long := fmt.Sprint(i, strings.Repeat("long", 200_000))
		write(t, l.log, long)
		want = append(want, long)
		if down >= 0 {
			c.start(down)
		}
		c.awaitCurrent()
		begin = time.Now()
		t.Logf("an orderly stop takes %v", closeMember(t, c.members[l.node]).Round(time.Millisecond))
		if l.log.Leads() {
			t.Error("a log that is closed leads")
		}
		c.members[l.node] = nil
		down = l.node
	}
}

// awaitCurrent waits until all nodes that are up have the whole log.
func (c *testCluster) awaitCurrent() {
	c.t.Helper()
	for late := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		if !slices.ContainsFunc(c.members, func(m *Member) bool { return m != nil && !m.Current() }) {
			return
		}
		if time.Now().After(late) {
			c.t.Fatal("the nodes do not get all of the log")
		}
	}
}

// A node takes the place of one that is gone for good, and has a copy of the log then.
func TestRemove(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for elections")
	}
	t.Parallel()
	c := startCluster(t)
	l := c.lead()
	replay(t, l.log)
	write(t, l.log, numbered(10)...)
	gone := (l.node + 1) % 3
	c.dirs = append(c.dirs, t.TempDir())
	fourth := c.configs[gone]
	fourth.Node, fourth.Addr, fourth.Replicas = "n3", freeAddrs(t, 1)[0], 3
	c.configs, c.members = append(c.configs, fourth), append(c.members, nil)
	c.start(3)
	closeMember(t, c.members[gone])
	c.members[gone] = nil
	m := c.members[l.node]
	if err := m.Remove(t.Context(), m.cluster.Node); err == nil {
		t.Error("a node removes itself")
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for err := errors.New("none"); err != nil; {
		if err = m.Remove(ctx, fmt.Sprint("n", gone)); ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	for late := time.Now().Add(limit); !c.members[3].Current(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(late) {
			t.Fatal("the fourth node has no copy")
		}
	}
	c.members[l.node] = nil
	closeMember(t, m)
	next := c.lead() // of three nodes, one is down
	same(t, replay(t, next.log), numbered(10))
	write(t, next.log, "more")
}

// Two nodes, of which one has the log, become three that have it.
func TestRaise(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for elections")
	}
	t.Parallel()
	c := &testCluster{t: t, members: make([]*Member, 3)}
	addrs, s := freeAddrs(t, 3), testSecret(t)
	for i, addr := range addrs {
		c.dirs = append(c.dirs, t.TempDir())
		c.configs = append(c.configs, Cluster{Name: "raise", Node: fmt.Sprint("n", i), Addr: addr, Peers: addrs[:2], Secret: s})
	}
	c.start(0)
	c.start(1)
	l := c.lead()
	replay(t, l.log)
	write(t, l.log, "one copy")
	for i := range 2 {
		closeMember(t, c.members[i])
		c.configs[i].Peers = addrs
	}
	c.configs[2].Peers = addrs
	for i := range 3 {
		c.start(i)
		defer func() { closeMember(t, c.members[i]) }()
	}
	l = c.lead()
	same(t, replay(t, l.log), []string{"one copy"})
	write(t, l.log, "more")
	n, _ := l.log.now()
	for late := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		info, err := n.stream.Info(t.Context())
		if err == nil && info.Config.Replicas == 3 && len(info.Cluster.Replicas) == 2 && info.Cluster.Replicas[0].Current && info.Cluster.Replicas[1].Current {
			break
		}
		if time.Now().After(late) {
			t.Fatalf("%+v, %v", info, err)
		}
	}
	same(t, takeOver(t, c, l), []string{"one copy", "more"})
}

// takeOver stops the node that leads, and returns what the next one reads.
func takeOver(t *testing.T, c *testCluster, l led) []string {
	gone := c.members[l.node]
	closeMember(t, gone)
	c.members[l.node] = nil
	defer func() { c.members[l.node] = gone }()
	return replay(t, c.lead().log)
}

func TestStartRefuses(t *testing.T) {
	good := Cluster{Name: "c", Node: "n", Addr: "127.0.0.1:1", Peers: []string{"127.0.0.1:2"}, Secret: testSecret(t)}
	tests := []struct {
		name   string
		change func(*Cluster)
		want   string
	}{
		{"no name", func(c *Cluster) { c.Name = "" }, `the name of the cluster is ""`},
		{"a name", func(c *Cluster) { c.Name = "a.b" }, `the name of the cluster is "a.b"`},
		{"a node", func(c *Cluster) { c.Node = "a b" }, `the name of the node is "a b"`},
		{"a long one", func(c *Cluster) { c.Node = strings.Repeat("n", 65) }, "want 1 to 64 letters"},
		{"replicas", func(c *Cluster) { c.Replicas = 2 }, "the number of replicas is 2; want 1, 3 or 5"},
		{"address", func(c *Cluster) { c.Addr = "127.0.0.1" }, `the address of a node is "127.0.0.1"; want host:port`},
		{"peer", func(c *Cluster) { c.Peers = []string{"x:y"} }, `the address of a node is "x:y"`},
		{"alone", func(c *Cluster) { c.Peers = []string{c.Addr} }, "no other node"},
		{"secret", func(c *Cluster) { c.Secret = nil }, "the secret of the cluster is missing"},
		{"both", func(c *Cluster) { c.URL = "nats://127.0.0.1:3" }, "want one of the two"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := good
			test.change(&c)
			_, err := Start(t.Context(), options(t, filepath.Join(t.TempDir(), "log"), true), c)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v; want %q", err, test.want)
			}
		})
	}
}

// An address that is taken is an error at once.
func TestAddressTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := Cluster{Name: "c", Node: "n", Addr: l.Addr().String(), Peers: []string{"127.0.0.1:2"}, Secret: testSecret(t)}
	if _, err := Start(t.Context(), options(t, t.TempDir(), true), c); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Error(err)
	}
}

// The folder of a cluster's node is of use to that node alone, and that of a single node
// to no cluster: the servers would delete or change what is in it.
func TestFolderOfCluster(t *testing.T) {
	addrs := freeAddrs(t, 2)
	mine := Cluster{Name: "c", Node: "n", Addr: addrs[0], Peers: addrs, Secret: testSecret(t)}
	dir := t.TempDir()
	m, err := Start(t.Context(), options(t, dir, true), mine)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Start(t.Context(), options(t, dir, true), mine); !errors.Is(err, errInUse) {
		t.Errorf("a second Start: %v", err)
	}
	closeMember(t, m)
	if _, err := Open(t.Context(), options(t, dir, true)); err == nil || !strings.Contains(err.Error(), "it is a part of a log on several nodes (cluster c, node n)") {
		t.Errorf("Open: %v", err)
	}
	if _, err := Check(t.Context(), dir, nil); err == nil || !strings.Contains(err.Error(), "it is a part of a log on several nodes") {
		t.Errorf("Check: %v", err)
	}
	for _, other := range []Cluster{{Name: "c", Node: "m"}, {Name: "d", Node: "n"}} {
		other.Addr, other.Peers, other.Secret = mine.Addr, mine.Peers, mine.Secret
		if _, err := Start(t.Context(), options(t, dir, true), other); err == nil || !strings.Contains(err.Error(), "it is the folder of cluster c, node n, and not of cluster "+other.Name) {
			t.Errorf("Start of another: %v", err)
		}
	}
	alone := logOf(t, "record")
	before := listing(t, alone)
	if _, err := Start(t.Context(), options(t, alone, true), mine); err == nil || !strings.Contains(err.Error(), "it holds the log of a node without a cluster") {
		t.Errorf("Start on the folder of a single node: %v", err)
	}
	if after := listing(t, alone); after != before {
		t.Errorf("the folder has changed from\n%sto\n%s", before, after)
	}
}
