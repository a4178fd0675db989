package cluster

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/internal/store"
)

const (
	beatEvery = 500 * time.Millisecond

	// silence is how long a node may say nothing before it is gone. What it ran is started
	// elsewhere then.
	silence = 2 * time.Second
)

// A beat is what a node says of itself, every beatEvery and when something has changed.
type beat struct {
	Node    string
	Boot    string // another one after each start of the process
	Addr    string // of its node listener
	Version string
	Workers int    // that jobs may have there; 0: it takes none
	Runs    []byte // the jobs that it runs or whose ends it holds; see pack
	Left    bool   // it is the last one
	Number  uint64 // of the beat

	Term  uint64 // the latest that it knows of
	Leads bool   // it leads that term
}

// A run is a job at a node.
type run struct {
	attempt int
	ended   bool // the node holds its end
}

const (
	runSize = len(store.ID{}) + 5

	// maxRuns is how many runs a beat can tell of: 21 bytes each, as base64 within the
	// 1 MiB of a message.
	maxRuns = 30_000
)

// pack encodes runs, at most maxRuns of them.
func pack(runs map[store.ID]run) []byte {
	b := make([]byte, 0, min(len(runs), maxRuns)*runSize)
	for id, r := range runs {
		if len(b) == maxRuns*runSize {
			break // the others come to the leader when they end
		}
		b = binary.LittleEndian.AppendUint32(append(b, id[:]...), uint32(r.attempt))
		b = append(b, 0)
		if r.ended {
			b[len(b)-1] = 1
		}
	}
	return b
}

func unpack(b []byte) map[store.ID]run {
	runs := make(map[store.ID]run, len(b)/runSize)
	for ; len(b) >= runSize; b = b[runSize:] {
		runs[store.ID(b)] = run{int(binary.LittleEndian.Uint32(b[len(store.ID{}):])), b[runSize-1] == 1}
	}
	return runs
}

var errBeat = errors.New("cluster: a message is not the beat of a node of this version")

func decodeBeat(data []byte) (beat, error) {
	var b beat
	if err := json.Unmarshal(data, &b); err != nil || b.Node == "" || b.Boot == "" || b.Workers < 0 || len(b.Runs)%runSize != 0 {
		return beat{}, errBeat
	}
	return b, nil
}

func (b *beat) encode() []byte {
	data, err := json.Marshal(b)
	if err != nil {
		panic(err) // strings, numbers and bytes can always be marshaled
	}
	return data
}

// A peer is one life of a node, as its beats tell of it.
type peer struct {
	name, boot, addr string
	gone             chan struct{} // closed when the node is gone, or has been started again

	// members.mu protects the following fields.
	last beat
	runs map[store.ID]run // of that
	seen time.Time
}

// members are the nodes that are there. Times are those of the monotonic clock of whoever
// listens, so no two clocks are compared.
type members struct {
	self string // the node's own name

	mu      sync.Mutex // protects the following fields
	nodes   map[string]*peer
	term    uint64 // the latest that anybody has told of
	leader  string // of the term; "" if there is none, as far as it is known
	looked  time.Time
	changed chan struct{} // closed at the next beat or loss
}

func newMembers(self string) *members {
	return &members{self: self, nodes: make(map[string]*peer), changed: make(chan struct{})}
}

func (m *members) changedLocked() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// hear takes a beat, and reports whether it has told of a new leader or a new node, which
// is to be answered at once.
func (m *members) hear(b beat, now time.Time) (news bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.nodes[b.Node]
	if p != nil && p.boot == b.Boot && b.Number <= p.last.Number {
		return false // it has been overtaken
	}
	if p != nil && (p.boot != b.Boot || b.Left) {
		m.dropLocked(p)
		p = nil
	}
	if !b.Left {
		if p == nil {
			p, news = &peer{name: b.Node, boot: b.Boot, addr: b.Addr, gone: make(chan struct{})}, true
			m.nodes[b.Node] = p
		}
		p.last, p.runs, p.seen = b, unpack(b.Runs), now
	}
	news = m.hearTermLocked(b) || news
	m.changedLocked()
	return news
}

// hearTermLocked takes what a beat says of who leads.
func (m *members) hearTermLocked(b beat) (news bool) {
	if b.Term < m.term {
		return false // of an older leader, which has yet to learn that
	}
	leads := b.Leads && !b.Left
	if b.Term > m.term {
		m.term, m.leader = b.Term, ""
	}
	switch {
	case leads:
		news = m.leader != b.Node
		m.leader = b.Node
	case m.leader == b.Node:
		m.leader = ""
	}
	return news
}

// see notes that there is a term, and reports whether none later is known.
func (m *members) see(term uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if term > m.term {
		m.term, m.leader = term, ""
		m.changedLocked()
	}
	return term == m.term
}

// expire drops the nodes that were silent for too long. It is called every beatEvery. If it
// comes late, this process was stopped: then the others could not be heard, and have the
// time once more.
func (m *members) expire(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	late := now.Sub(m.looked)
	stopped := !m.looked.IsZero() && late > silence/2
	m.looked = now
	for _, p := range m.nodes {
		switch {
		case stopped:
			p.seen = p.seen.Add(late)
		case p.name != m.self && now.Sub(p.seen) >= silence:
			m.dropLocked(p)
			if m.leader == p.name {
				m.leader = ""
			}
			m.changedLocked()
		}
	}
}

func (m *members) dropLocked(p *peer) {
	close(p.gone)
	delete(m.nodes, p.name)
}

// find returns the node with a name, nil if it is not there.
func (m *members) find(name string) *peer {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.nodes[name]
}

// leads returns the term, and the node that leads it, nil if there is none.
func (m *members) leads() (uint64, *peer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.term, m.nodes[m.leader]
}

// A Member is what is known of a node.
type Member struct {
	Name    string
	Addr    string // of its node listener
	Version string
	Workers int
	Running int           // jobs
	Held    int           // ends of jobs that are not stored yet
	Silent  time.Duration // since it was heard
	Leads   bool
}

// list returns the nodes by name.
func (m *members) list(now time.Time) []Member {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]Member, 0, len(m.nodes))
	for p := range maps.Values(m.nodes) {
		held := 0
		for _, r := range p.runs {
			if r.ended {
				held++
			}
		}
		all = append(all, Member{
			Name: p.name, Addr: p.addr, Version: p.last.Version, Workers: p.last.Workers,
			Running: len(p.runs) - held, Held: held, Silent: max(now.Sub(p.seen), 0), Leads: p.name == m.leader,
		})
	}
	slices.SortFunc(all, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// String says who is there, for a log.
func (m Member) String() string {
	return fmt.Sprintf("%s at %s, %d workers", m.Name, m.Addr, m.Workers)
}
