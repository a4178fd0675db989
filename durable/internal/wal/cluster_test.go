package wal

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// lost waits until the log is lost.
func lost(t *testing.T, l *Log) {
	t.Helper()
	select {
	case <-l.Lost():
	case <-time.After(limit):
		t.Fatal("the log is not lost")
	}
}

// isLost reports whether the log is lost, after a moment.
func isLost(l *Log) bool {
	select {
	case <-l.Lost():
		return true
	case <-time.After(time.Millisecond):
		return false
	}
}

// What was tried anew is stored once, whether the first attempt is known or not.
func testRetry(t *testing.T, c *testCluster) {
	l := c.lead()
	replay(t, l.log)
	closeLog(t, l.log)
	l = c.lead()
	n, at := l.log.now()
	message := l.log.sealed(header{kind: kindMark, prev: at.prev, first: at.first})
	id := l.log.newID()
	m := n.message(n.names.subject, id, at.last, message)
	first, err := l.log.attempt(m, at.last)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := l.log.attempt(m, at.last); err != nil || second != first {
		t.Errorf("the second attempt: %d, %v; want %d", second, err, first)
	}
	if sequence, err := n.find(m.Subject, id, at.last); err != nil || sequence != first {
		t.Errorf("found %d, %v; want %d", sequence, err, first)
	}
	if _, err := n.find(m.Subject, "retry-2", first); !errors.Is(err, errConflict) {
		t.Errorf("a message that is not there and may still come: %v; want errConflict", err)
	}
	if _, err := n.find(m.Subject, "retry-2", first+1); !errors.Is(err, errConflict) {
		t.Errorf("a replica that is behind: %v; want errConflict", err)
	}
	if _, err := n.find(m.Subject, "retry-2", at.last); !errors.Is(err, ErrLost) {
		t.Errorf("another writer was there: %v; want ErrLost", err)
	}
	closeLog(t, l.log)
}

// When the stream's leader moves to another node, the lead does too, and whatever the old
// leader still writes is refused.
func testFence(t *testing.T, c *testCluster) {
	l := c.lead()
	before := replay(t, l.log)
	write(t, l.log, "before")
	c.members[l.node].handOver()
	lost(t, l.log)
	acks := make(chan error, 1)
	l.log.Append([]byte("refused"), func(err error) { acks <- err })
	if err := <-acks; !errors.Is(err, ErrLost) || l.log.Leads() {
		t.Errorf("an append of a leader that was: %v; it leads: %v", err, l.log.Leads())
	}
	old := c.members[l.node]
	c.members[l.node] = nil
	next := c.lead()
	c.members[l.node] = old
	// The old leader knows nothing of it, as if it had slept.
	n, at := l.log.now()
	m := n.message(n.names.subject, l.log.newID(), at.last, sealed(header{kind: kindPack, prev: at.prev, count: 1, size: 5}, "\x04evil"))
	if sequence, err := n.publishMsg(m, nil); !errors.Is(err, errConflict) {
		t.Errorf("the old leader has written message %d: %v", sequence, err)
	}
	if _, err := n.find(m.Subject, "none", at.last); !errors.Is(err, ErrLost) {
		t.Errorf("the old leader finds %v; want ErrLost", err)
	}
	same(t, replay(t, next.log), append(before, "before"))
	closeLog(t, l.log) // it cannot say that the lead is free
	write(t, next.log, "after")
	closeLog(t, next.log)
}

// Answers are what the callbacks were called for.
type answers struct {
	mu              sync.Mutex
	answered, acked []string
	closed          bool
}

func (a *answers) note(t *testing.T, r string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answered = append(a.answered, r)
	if err == nil {
		a.acked = append(a.acked, r)
	}
	if a.closed {
		t.Errorf("%q is answered after Close", r)
	}
}

// close says that the log is closed. It returns what was acknowledged.
func (a *answers) close() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	return a.acked
}

// When the lead is lost in the middle of appends, each is answered once, in their order,
// and none after Close has returned.
func testOrder(t *testing.T, c *testCluster) {
	l := c.lead()
	before := replay(t, l.log)
	var a answers
	var appended []string
	for i := 0; ; i++ {
		r := fmt.Sprint("order ", i)
		l.log.Append([]byte(r), func(err error) { a.note(t, r, err) })
		appended = append(appended, r)
		if i == 300 {
			for l.log.Stats().Waiting > 0 && !isLost(l.log) {
			}
			c.members[l.node].handOver()
		}
		if i > 300 && isLost(l.log) {
			break
		}
	}
	if err := l.log.Close(t.Context()); err != nil {
		t.Error(err)
	}
	acked := a.close()
	same(t, a.answered, appended)
	next := c.lead()
	got := replay(t, next.log)
	same(t, got[:len(before)], before)
	got = got[len(before):]
	// What was not acknowledged may be there too, and then is what follows.
	same(t, got, appended[:len(got)])
	if len(acked) > len(got) || len(acked) == 0 || len(acked) == len(appended) {
		t.Errorf("%d records, of %d that were acknowledged of %d", len(got), len(acked), len(appended))
	}
	closeLog(t, next.log)
}

// A leader that has nothing to append keeps the lead, and the log does not grow.
func testIdle(t *testing.T, c *testCluster) {
	l := c.lead()
	replay(t, l.log)
	begin := l.log.Stats()
	_, at := l.log.now()
	for end := time.Now().Add(3500 * time.Millisecond); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if !l.log.Leads() {
			t.Fatal("an idle leader does not lead")
		}
	}
	n, renewed := l.log.now()
	if err := l.log.measure(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	if renewed.last < at.last+2 || renewed.prev != at.prev {
		t.Errorf("from %+v to %+v; want two renewals at least", at, renewed)
	}
	if s := l.log.Stats(); s.Messages > begin.Messages+1 {
		t.Errorf("%d messages have become %d", begin.Messages, s.Messages)
	}
	closeLog(t, l.log)
}

// A log of which all was deleted still knows its terms.
func testCleanCluster(t *testing.T, c *testCluster) {
	l := c.lead()
	replay(t, l.log)
	write(t, l.log, numbered(100)...)
	for range 3 {
		if _, err := l.log.Clean(t.Context(), 1<<30, func([]byte) {}); err != nil {
			t.Fatal(err)
		}
	}
	write(t, l.log, "left")
	term := l.log.Term()
	closeLog(t, l.log)
	if other := c.candidate(); !other.member.mayFollow(other.state()) {
		t.Error("a leader that has ended in order has not said so")
	}
	next := c.lead()
	if next.log.Term() != term+1 {
		t.Errorf("term %d follows term %d", next.log.Term(), term)
	}
	same(t, replay(t, next.log), []string{"left"})
	closeLog(t, next.log)
}

// A message of a leader that was replaced is found, if it ever gets into the log.
func TestTermsDoNotMix(t *testing.T) {
	begin := func(prev uint64) []byte { return sealed(header{kind: kindTerm, synced: true, prev: prev}, "n") }
	pack := func(prev uint64) []byte {
		return sealed(header{kind: kindPack, synced: true, prev: prev, count: 1, size: 2}, "\x01r")
	}
	tests := []struct {
		name  string
		terms []uint64
		begin []int // the messages with which a term begins
		want  string
	}{
		{"in order", []uint64{1, 1, 2, 2, 5, 5}, []int{0, 2, 4}, ""},
		{"the beginning was deleted", []uint64{3, 3, 4}, []int{2}, ""},
		{"no terms", []uint64{0, 0}, nil, ""},
		{"an old leader writes", []uint64{1, 2, 2, 1}, []int{0, 1}, "message 4 is of term 1, and follows one of term 2"},
		{"a term without a beginning", []uint64{1, 1, 2}, []int{0}, "message 3 is of term 2, and follows one of term 1"},
		{"a term that begins again", []uint64{2, 1}, []int{0, 1}, "message 2 is of term 1, and follows one of term 2"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d := decoder{warn: func(string) {}}
			var err error
			for i, term := range test.terms {
				m := message{sequence: uint64(i) + 1, term: term, data: pack(uint64(i))}
				if slices.Contains(test.begin, i) {
					m.data = begin(uint64(i))
				}
				if err = d.message(m, func([]byte) error { return nil }); err != nil {
					break
				}
			}
			if test.want == "" && err != nil || test.want != "" && (err == nil || err.Error() != test.want) {
				t.Errorf("%v; want %q", err, test.want)
			}
		})
	}
}

// The log may begin with a sequence that a message of the lease had.
func TestFirstAfterLease(t *testing.T) {
	for prev, want := range map[uint64]string{23: "", 24: "message 25 is the first one, and the log begins with message 24: " + errMissing.Error()} {
		d := decoder{first: 24, warn: func(string) {}}
		m := message{sequence: 25, term: 1, data: sealed(header{kind: kindPack, synced: true, prev: prev, first: 24, count: 1, size: 2}, "\x01r")}
		if err := d.message(m, func([]byte) error { return nil }); err == nil && want != "" || err != nil && err.Error() != want {
			t.Errorf("after message %d: %v; want %q", prev, err, want)
		}
	}
}

// A testCandidate looks at the log as a node does that may lead.
type testCandidate struct {
	candidate
	t *testing.T
}

func (c *testCluster) candidate() *testCandidate {
	other := &testCandidate{candidate{member: c.members[0]}, c.t}
	c.t.Cleanup(other.close)
	return other
}

// state returns what the candidate sees.
func (c *testCandidate) state() state {
	c.t.Helper()
	c.member.mu.Lock()
	c.member.writer = "" // so that this member waits for itself, too
	c.member.mu.Unlock()
	for late := time.Now().Add(limit); ; {
		ctx, cancel := context.WithTimeout(c.t.Context(), stepTime)
		err := c.open(ctx)
		var s state
		if err == nil {
			s, err = c.n.state(ctx)
		}
		cancel()
		if err == nil {
			return s
		}
		if time.Now().After(late) {
			c.t.Fatal(err)
		}
	}
}

// Only one call of Lead may be under way, and none while a log is open; ctx and Close end
// it.
func testLeadEnds(t *testing.T, c *testCluster) {
	l := c.lead()
	if _, err := c.members[l.node].Lead(t.Context()); err == nil || !strings.Contains(err.Error(), "is not closed") {
		t.Errorf("Lead while a log is open: %v", err)
	}
	other := c.members[(l.node+1)%3]
	ctx, cancel := withCancel(t)
	ended := make(chan error, 2)
	go func() { _, err := other.Lead(ctx); ended <- err }()
	for late := time.Now().Add(limit); ; {
		other.mu.Lock()
		leading := other.leading
		other.mu.Unlock()
		if leading {
			break
		}
		if time.Now().After(late) {
			t.Fatal("Lead does not begin")
		}
	}
	if _, err := other.Lead(ctx); err == nil || !strings.Contains(err.Error(), "another call is under way") {
		t.Errorf("a second Lead: %v", err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Lead with a context that has ended: %v", err)
	}
	go func() { _, err := other.Lead(t.Context()); ended <- err }()
	closeMember(t, other)
	if err := <-ended; err != ErrClosed {
		t.Errorf("Lead at Close: %v; want ErrClosed", err)
	}
	c.members[(l.node+1)%3] = nil
	closeLog(t, l.log)
}

func TestCluster(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for elections")
	}
	t.Parallel()
	c := startCluster(t)
	for _, test := range []struct {
		name string
		f    func(*testing.T, *testCluster)
	}{
		{"retry", testRetry}, {"fence", testFence}, {"order", testOrder}, {"idle", testIdle}, {"clean", testCleanCluster}, {"lead ends", testLeadEnds},
	} {
		if !t.Run(test.name, func(t *testing.T) { test.f(t, c) }) {
			break
		}
	}
}

// listening returns the addresses on which this process listens.
func listening(t *testing.T) []string {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("/proc is Linux's")
	}
	var mine []string
	files, _ := os.ReadDir("/proc/self/fd")
	for _, f := range files {
		if link, err := os.Readlink(filepath.Join("/proc/self/fd", f.Name())); err == nil {
			mine = append(mine, strings.TrimSuffix(strings.TrimPrefix(link, "socket:["), "]"))
		}
	}
	var addrs []string
	for _, name := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6", "/proc/self/net/udp"} {
		text, _ := os.ReadFile(name)
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			if len(f) > 9 && (f[3] == "0A" || f[3] == "07") && slices.Contains(mine, f[9]) {
				_, port, _ := strings.Cut(f[1], ":")
				n, _ := strconv.ParseUint(port, 16, 16)
				addrs = append(addrs, fmt.Sprint(f[1][:strings.Index(f[1], ":")], ":", n))
			}
		}
	}
	return addrs
}

// A member listens for other members on its address, and for nobody on the loopback
// interface.
func TestOpenPorts(t *testing.T) {
	addrs := freeAddrs(t, 2)
	before := listening(t)
	c := Cluster{Name: "ports", Node: "n0", Addr: addrs[0], Peers: addrs, Secret: testSecret(t)}
	m, err := Start(t.Context(), options(t, t.TempDir(), true), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeMember(t, m) })
	open := slices.DeleteFunc(listening(t), func(a string) bool { return slices.Contains(before, a) })
	_, port, _ := net.SplitHostPort(c.Addr)
	client := strconv.Itoa(m.server.Addr().(*net.TCPAddr).Port)
	slices.Sort(open)
	want := []string{"0100007F:" + client, "0100007F:" + port}
	if slices.Sort(want); !slices.Equal(open, want) {
		t.Errorf("the process listens on %q; want %q", open, want)
	}
	for _, user := range []string{"", systemUser} {
		if conn, err := nats.Connect("nats://127.0.0.1:"+client, nats.UserInfo(user, "")); err == nil {
			conn.Close()
			t.Errorf("a client of another process is let in as %q", user)
		}
	}
}

// A node with another secret, with a certificate of its own or without TLS is no member.
func TestOtherSecret(t *testing.T) {
	addrs := freeAddrs(t, 2)
	c := Cluster{Name: "secret", Node: "n0", Addr: addrs[0], Peers: addrs, Secret: testSecret(t)}
	m, err := Start(t.Context(), options(t, t.TempDir(), true), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeMember(t, m) })
	name := filepath.Join(t.TempDir(), "secret")
	os.WriteFile(name, []byte("the secret of another cluster"), 0o600)
	c.Node, c.Addr = "n1", addrs[1]
	c.Secret = loadSecret(t, name)
	other, err := Start(t.Context(), options(t, t.TempDir(), true), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeMember(t, other) })
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if m.server.NumRoutes()+other.server.NumRoutes() > 0 {
			t.Fatal("the nodes have connected")
		}
	}
	conn, err := tls.Dial("tcp", addrs[0], &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
	if err == nil { // the server says INFO before TLS, and looks at the certificate after
		conn.SetDeadline(time.Now().Add(limit))
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Error("the server talks to a client without a certificate")
		}
		conn.Close()
	}
}

// An external server is used if it syncs each write, or nobody asks for that.
func TestExternal(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for a leader's silence")
	}
	t.Parallel()
	for _, sync := range []bool{true, false} {
		t.Run(fmt.Sprint("sync ", sync), func(t *testing.T) { testExternal(t, sync) })
	}
}

// external starts a server that others could have started, and returns the URLs of a user
// and of one of the system account.
func external(t *testing.T, sync bool) (url, system string) {
	t.Helper()
	sys, app := server.NewAccount("SYS"), server.NewAccount("APP")
	s, err := server.NewServer(&server.Options{
		ServerName: "external", Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true,
		JetStream: true, StoreDir: t.TempDir(), SyncAlways: sync, SystemAccount: "SYS",
		Accounts: []*server.Account{sys, app},
		Users:    []*server.User{{Username: "sys", Password: "pass", Account: sys}, {Username: "app", Password: "pass", Account: app}},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(limit) {
		t.Fatal("the server does not start")
	}
	account, err := s.LookupAccount("APP")
	if err != nil {
		t.Fatal(err)
	}
	if err := account.EnableJetStream(nil, nil); err != nil {
		t.Fatal(err)
	}
	addr := s.Addr().String()
	return "nats://app:pass@" + addr, "nats://sys:pass@" + addr
}

func testExternal(t *testing.T, sync bool) {
	url, system := external(t, sync)
	c := Cluster{Name: "ext", Node: "n0", URL: url, System: system}
	m, err := Start(t.Context(), options(t, "", true), c)
	if !sync {
		if err == nil || !strings.Contains(err.Error(), "the external server external does not sync each write: want jetstream { sync_interval: always }") {
			t.Errorf("%v", err)
		}
		if m, err = Start(t.Context(), options(t, "", false), c); err != nil {
			t.Fatal(err)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, system := range []string{"", url} {
		c.System = system
		if _, err := Start(t.Context(), options(t, "", true), c); !errors.Is(err, errNoSync) {
			t.Errorf("Start with the system URL %q: %v", system, err)
		}
	}
	c.Node, c.System = "n1", ""
	other, err := Start(t.Context(), options(t, "", false), c)
	if err != nil {
		t.Fatal(err)
	}
	if sync {
		externalTakeover(t, &testCluster{t: t, members: []*Member{m, other}})
	}
	closeMember(t, other)
	closeMember(t, m)
}

// externalTakeover lets the lead go to and fro, once in order and once not.
func externalTakeover(t *testing.T, c *testCluster) {
	first := c.lead()
	replay(t, first.log)
	write(t, first.log, "one")
	closeLog(t, first.log)
	second := c.lead()
	same(t, replay(t, second.log), []string{"one"})
	write(t, second.log, "two")
	n, _ := second.log.now()
	n.conn.Close() // as if the network were gone, for this node alone
	begin := time.Now()
	third, err := c.members[1-second.node].Lead(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < silence-renewal || second.log.Leads() {
		t.Errorf("the lead was taken after %v; the old leader leads: %v", took, second.log.Leads())
	}
	same(t, replay(t, third), []string{"one", "two"})
	lost(t, second.log)
	closeLog(t, second.log)
	write(t, third, "three")
}
