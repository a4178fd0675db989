//go:build unix

package wal

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var nodeKills = flag.Int("node-kills", 2, "how often TestKillNodes kills a node, `n` times")

// A nodeProcess is a node that another process is.
type nodeProcess struct {
	cmd   *exec.Cmd
	ended chan struct{}
}

// A clusterOfProcesses is killed, and sees what was acknowledged.
type clusterOfProcesses struct {
	t     *testing.T
	dirs  []string
	addrs []string
	nodes []*nodeProcess

	mu     sync.Mutex
	acked  map[string]bool // "term serial"
	last   time.Time       // of the last acknowledgement
	gap    time.Duration   // the longest time without one
	leader int             // the last node that led
	lost   map[int]int     // how often a node has said that it leads no more
}

const (
	childNode  = "HOLDFAST_WAL_NODE"
	childAddrs = "HOLDFAST_WAL_ADDRS"
)

// runNode is the child: it leads when it can, and appends all the time.
func runNode(t *testing.T, dir string) {
	i, _ := strconv.Atoi(os.Getenv(childNode))
	addrs := strings.Split(os.Getenv(childAddrs), ",")
	c := Cluster{Name: "kill", Node: fmt.Sprint("n", i), Addr: addrs[i], Peers: addrs, Secret: testSecret(t)}
	m, err := Start(t.Context(), options(t, dir, true), c)
	if err != nil {
		t.Fatal(err)
	}
	for {
		l, err := m.Lead(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("leads %d\n", l.Term())
		if err := l.Replay(t.Context(), func([]byte) error { return nil }); err == nil {
			appendUntilLost(l)
		} else {
			fmt.Println("replay", err)
		}
		fmt.Printf("lost %d\n", l.Term())
		l.Close(t.Context())
	}
}

// appendUntilLost says what was acknowledged, in lines of their own.
func appendUntilLost(l *Log) {
	room := make(chan bool, 8)
	for i := 0; ; i++ {
		select {
		case room <- true:
		case <-l.Lost():
			return
		}
		r := fmt.Sprint(l.Term(), " ", i, " ", strings.Repeat("x", i*37%900))
		if i%97 == 96 {
			r += strings.Repeat("y", 300_000) // in parts
		}
		l.Append([]byte(r), func(err error) {
			if err == nil {
				fmt.Printf("ack %d %d\n", l.Term(), i)
			}
			<-room
		})
		time.Sleep(time.Millisecond) // the disk is for others too
	}
}

func (c *clusterOfProcesses) start(i int) {
	cmd := command(c.t, c.dirs[i], nil)
	cmd.Env = append(cmd.Env, childNode+"="+strconv.Itoa(i), childAddrs+"="+strings.Join(c.addrs, ","))
	out, err := cmd.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	p := &nodeProcess{cmd, make(chan struct{})}
	c.nodes[i] = p
	go func() {
		defer close(p.ended)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			c.line(i, lines.Text())
		}
		io.Copy(io.Discard, out)
		cmd.Wait()
	}()
}

func (c *clusterOfProcesses) line(i int, line string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	what, rest, _ := strings.Cut(line, " ")
	switch what {
	case "ack":
		c.acked[rest] = true
		if !c.last.IsZero() {
			c.gap = max(c.gap, time.Since(c.last))
		}
		c.last = time.Now()
	case "leads":
		c.leader = i
	case "lost":
		c.lost[i]++
	case "replay":
		c.t.Log(line)
	}
}

func (c *clusterOfProcesses) kill(i int) {
	c.nodes[i].cmd.Process.Kill()
	<-c.nodes[i].ended
}

// progress waits until another n appends are acknowledged.
func (c *clusterOfProcesses) progress(n int) {
	c.t.Helper()
	count := func() int { c.mu.Lock(); defer c.mu.Unlock(); return len(c.acked) }
	want := count() + n
	for late := time.Now().Add(2 * limit); count() < want; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(late) {
			c.t.Fatal("nothing is acknowledged any more")
		}
	}
}

// Nodes are killed, every second time the leader, and a leader is stopped for so long that another one
// leads. Whatever any of them has acknowledged is in the log, once, in order, and no term
// writes into another.
func TestKillNodes(t *testing.T) {
	if dir, ok := childOf(t); ok {
		runNode(t, dir)
		return
	}
	if testing.Short() {
		t.Skip("starts processes")
	}
	t.Parallel()
	c := &clusterOfProcesses{t: t, addrs: freeAddrs(t, 3), nodes: make([]*nodeProcess, 3), acked: map[string]bool{}, lost: map[int]int{}}
	for i := range c.nodes {
		c.dirs = append(c.dirs, t.TempDir())
		c.start(i)
	}
	t.Cleanup(func() {
		for i := range c.nodes {
			c.kill(i)
		}
	})
	c.progress(50)
	random := rand.New(rand.NewPCG(1, 2))
	for n := range *nodeKills {
		if n%8 == 1 {
			c.sleep()
		}
		i := random.IntN(3)
		if n%2 == 0 {
			i = c.leads()
		}
		c.kill(i)
		c.progress(20 + random.IntN(100))
		c.start(i)
		// Sometimes the next one is killed before this one has caught up.
		time.Sleep(time.Duration(random.IntN(2000)) * time.Millisecond)
	}
	c.progress(20)
	c.check()
}

// leads returns the last node that has come to lead.
func (c *clusterOfProcesses) leads() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leader
}

// sleep stops the leader, until another node leads and longer.
func (c *clusterOfProcesses) sleep() {
	i := c.leads()
	c.mu.Lock()
	before := c.lost[i]
	c.mu.Unlock()
	c.nodes[i].cmd.Process.Signal(syscall.SIGSTOP)
	time.Sleep(100 * time.Millisecond) // its last lines
	c.progress(50)
	c.nodes[i].cmd.Process.Signal(syscall.SIGCONT)
	for late := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		c.mu.Lock()
		n := c.lost[i]
		c.mu.Unlock()
		if n > before {
			return
		}
		if time.Now().After(late) {
			c.t.Fatal("a leader that was stopped does not find out that another one leads")
		}
	}
}

// check kills all nodes, and reads the log as the next leader does.
func (c *clusterOfProcesses) check() {
	t := c.t
	for i := range c.nodes {
		c.kill(i)
	}
	three := &testCluster{t: t, dirs: c.dirs, members: make([]*Member, 3)}
	s := testSecret(t)
	for i, addr := range c.addrs {
		three.configs = append(three.configs, Cluster{Name: "kill", Node: fmt.Sprint("n", i), Addr: addr, Peers: c.addrs, Secret: s})
		three.start(i)
		defer closeMember(t, three.members[i])
	}
	l := three.lead()
	found, terms := map[string]bool{}, 0
	term, serial := 0, 0
	for _, r := range replay(t, l.log) {
		var a, b int
		if _, err := fmt.Sscan(r, &a, &b); err != nil {
			t.Fatalf("%.30q: %v", r, err)
		}
		switch {
		case a > term && b == 0:
			terms++
		case a != term || b != serial+1:
			t.Fatalf("record %d of term %d follows record %d of term %d", b, a, serial, term)
		}
		term, serial = a, b
		found[fmt.Sprint(a, " ", b)] = true
	}
	for r := range c.acked {
		if !found[r] {
			t.Errorf("%s was acknowledged and is lost", r)
		}
	}
	t.Logf("%d kills: %d records of %d terms, %d acknowledged; longest time without: %v", *nodeKills, len(found), terms, len(c.acked), c.gap.Round(time.Millisecond))
}

// A cable is a proxy that can be cut: what is under way then is gone.
type cable struct {
	listener net.Listener
	to       string
	mu       sync.Mutex
	cut      bool
	conns    map[net.Conn]bool
}

func newCable(t *testing.T, to string) *cable {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cable{listener: l, to: to, conns: map[net.Conn]bool{}}
	t.Cleanup(func() { l.Close(); c.set(true) })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go c.carry(in)
		}
	}()
	return c
}

// carry passes on what comes in and what comes back.
func (c *cable) carry(in net.Conn) {
	defer in.Close()
	out, err := net.Dial("tcp", c.to)
	if err != nil {
		return
	}
	defer out.Close()
	c.mu.Lock()
	if c.cut {
		c.mu.Unlock()
		return
	}
	c.conns[in], c.conns[out] = true, true
	c.mu.Unlock()
	ended := make(chan struct{}, 2)
	for _, p := range [][2]net.Conn{{in, out}, {out, in}} {
		go func() { io.Copy(p[0], p[1]); ended <- struct{}{} }()
	}
	<-ended
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.conns, in)
	delete(c.conns, out)
}

func (c *cable) set(cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = cut
	if cut {
		for conn := range c.conns {
			conn.Close()
		}
	}
}

// The leader is cut off from the other two. It leads no more, and what it appends is not
// acknowledged; one of the others leads. When the cable is whole again, the log is that
// of the majority.
func TestPartition(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for elections")
	}
	t.Parallel()
	c, cables := cabled(t)
	for _, m := range c.members {
		defer closeMember(t, m)
	}
	old := c.lead()
	replay(t, old.log)
	write(t, old.log, "before")
	begin := time.Now()
	for pair, cable := range cables {
		cable.set(pair[0] == old.node || pair[1] == old.node)
	}
	acks := make(chan error, 1)
	old.log.Append([]byte("cut off"), func(err error) { acks <- err })
	alone := c.members[old.node]
	c.members[old.node] = nil
	next := c.lead()
	t.Logf("another node leads after %v", time.Since(begin).Round(time.Millisecond))
	if old.log.Leads() {
		t.Error("two nodes lead")
	}
	lost(t, old.log)
	if err := <-acks; !errors.Is(err, ErrLost) || !strings.Contains(err.Error(), "no append was acknowledged for 5") {
		t.Errorf("an append at one node of three: %v; want ErrLost after 5 s", err)
	}
	same(t, replay(t, next.log), []string{"before"})
	write(t, next.log, "behind")
	for _, cable := range cables {
		cable.set(false)
	}
	closeLog(t, old.log)
	closeLog(t, next.log)
	c.members[old.node] = alone
	same(t, replay(t, c.lead().log), []string{"before", "behind"})
}

// cabled starts three nodes with a cable from each to each other one.
func cabled(t *testing.T) (*testCluster, map[[2]int]*cable) {
	addrs, s := freeAddrs(t, 3), testSecret(t)
	cables := map[[2]int]*cable{}
	c := &testCluster{t: t, members: make([]*Member, 3)}
	for i, addr := range addrs {
		config := Cluster{Name: "cut", Node: fmt.Sprint("n", i), Addr: addr, Replicas: 3, Secret: s, advertise: "127.0.0.1:1"}
		for j, to := range addrs {
			if j != i {
				cables[[2]int{i, j}] = newCable(t, to)
				config.Peers = append(config.Peers, cables[[2]int{i, j}].listener.Addr().String())
			}
		}
		c.configs = append(c.configs, config)
		c.dirs = append(c.dirs, t.TempDir())
		c.start(i)
	}
	return c, cables
}
