package cluster

import (
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/store"
)

func isGone(p *peer) bool {
	select {
	case <-p.gone:
		return true
	default:
		return false
	}
}

// A node that is silent for two seconds is gone, and so is one that was started again.
func TestGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMembers("own")
		m.hear(beat{Node: "own", Boot: "o", Number: 1}, time.Now())
		m.hear(beat{Node: "a", Boot: "1", Number: 1, Term: 3, Leads: true}, time.Now())
		m.hear(beat{Node: "b", Boot: "1", Number: 1}, time.Now())
		a, b := m.find("a"), m.find("b")
		for range 3 {
			time.Sleep(beatEvery)
			m.expire(time.Now())
			m.hear(beat{Node: "b", Boot: "1", Number: 1}, time.Now()) // once more, or overtaken: no sign of life
		}
		m.hear(beat{Node: "b", Boot: "1", Number: 2}, time.Now())
		if isGone(a) || isGone(b) {
			t.Error("a node is gone before its time")
		}
		time.Sleep(beatEvery)
		m.expire(time.Now())
		if !isGone(a) || isGone(b) {
			t.Error("want the silent node to be gone, and the other one not")
		}
		if _, leader := m.leads(); leader != nil {
			t.Errorf("%s leads, and is gone", leader.name)
		}
		m.hear(beat{Node: "b", Boot: "2", Number: 1}, time.Now())
		if !isGone(b) || isGone(m.find("b")) {
			t.Error("want the node's first life to be over, and its second to have begun")
		}
		time.Sleep(beatEvery)
		m.expire(time.Now())
		if m.find("own") == nil {
			t.Error("the node is gone for itself")
		}
	})
}

// While this process is stopped nobody can be heard, which is no silence of theirs.
func TestStoppedProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMembers("own")
		m.expire(time.Now())
		m.hear(beat{Node: "a", Boot: "1", Number: 1}, time.Now())
		a := m.find("a")
		time.Sleep(12 * time.Second)
		m.expire(time.Now())
		if isGone(a) {
			t.Fatal("a node is gone since this process was stopped")
		}
		for range 4 {
			time.Sleep(beatEvery)
			m.expire(time.Now())
		}
		if !isGone(a) {
			t.Error("a node is there that was silent for two seconds after that")
		}
	})
}

// The latest term counts, whatever an older leader says, and a leader may give up.
func TestTerms(t *testing.T) {
	m, now, number := newMembers("own"), time.Now(), uint64(0)
	hear := func(node string, term uint64, leads bool) {
		number++
		m.hear(beat{Node: node, Boot: "1", Number: number, Term: term, Leads: leads}, now)
	}
	want := func(term uint64, node string) {
		t.Helper()
		got, leader := m.leads()
		name := ""
		if leader != nil {
			name = leader.name
		}
		if got != term || name != node {
			t.Errorf("%q leads in term %d, want %q in term %d", name, got, node, term)
		}
	}
	hear("a", 3, true)
	want(3, "a")
	hear("b", 4, true)
	want(4, "b")
	hear("a", 3, true) // it does not know yet
	want(4, "b")
	hear("a", 4, false)
	want(4, "b")
	hear("b", 4, false)
	want(4, "")
	if m.see(3) || !m.see(4) || !m.see(5) {
		t.Error("want an order of an older term to be refused, and none else")
	}
	want(5, "")
}

func TestPack(t *testing.T) {
	runs := map[store.ID]run{store.NewID(): {1, false}, store.NewID(): {70_000, true}}
	b := beat{Node: "a", Boot: "1", Runs: pack(runs)}
	got, err := decodeBeat(b.encode())
	if err != nil {
		t.Fatal(err)
	}
	for id, r := range unpack(got.Runs) {
		if runs[id] != r {
			t.Errorf("%v is %v, want %v", id, r, runs[id])
		}
		delete(runs, id)
	}
	if len(runs) > 0 {
		t.Errorf("%v is missing", runs)
	}
	for _, text := range []string{"", "{}", `{"Node":"a"}`, `{"Node":"a","Boot":"b","Workers":-1}`, `{"Node":"a","Boot":"b","Runs":"AA=="}`} {
		if _, err := decodeBeat([]byte(text)); err == nil {
			t.Errorf("%q is a beat", text)
		}
	}
}
