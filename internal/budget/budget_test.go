package budget

import (
	"bufio"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
)

func TestReserve(t *testing.T) {
	var asked int
	kept := int64(40)
	var b *Budget
	b = New(100, func(need int64, enough func() bool) {
		asked++
		for kept > 0 {
			kept -= 10
			b.Add(-10)
			if enough() {
				return
			}
		}
	}, func() int { return 7 })
	b.Add(kept)
	var h Hold
	h.Open(b, 0)
	if !h.Reserve(60) || asked != 0 {
		t.Fatalf("60 of 100 with 40 kept: yield is called %d times", asked)
	}
	if !h.Reserve(25) || kept != 10 || b.Held() != 95 {
		t.Errorf("25 more: %d kept, %d held; want 10 and 95", kept, b.Held())
	}
	if h.Reserve(16) || kept != 0 || b.Held() != 85 {
		t.Errorf("16 more: %d kept, %d held; want none and 85", kept, b.Held())
	}
	if asked = 0; h.Reserve(101) || asked != 0 {
		t.Error("what is larger than the budget makes others go")
	}
	if !h.Reserve(15) || b.Over() {
		t.Error("the last 15 are refused")
	}
	b.Add(1)
	if !b.Over() || h.Reserve(1) {
		t.Error("101 of 100 is not over")
	}
	b.Add(-1)
	if b.Refuse(); b.Refused() != 1 || b.Again() != 7 {
		t.Errorf("refused %d, again %d", b.Refused(), b.Again())
	}
	h.Close()
	h.Close()
	if b.Held() != 0 || h.Reserve(1) || b.Held() != 0 {
		t.Errorf("closed: %d held", b.Held())
	}
}

func TestNil(t *testing.T) {
	var b *Budget
	var s *Shared
	var h, open Hold
	open.Open(nil, 5)
	for _, h := range []*Hold{nil, &h, &open} {
		if !h.Reserve(math.MaxInt64) || h.Budget() != nil || h.Share(1) != nil {
			t.Error("no budget has a limit")
		}
		h.Release(1)
		h.Move(1, new(Hold))
		h.Close()
	}
	s.Hold()
	s.Release()
	b.Add(1)
	b.Refuse()
	if b.Over() || b.Held() != 0 || b.Refused() != 0 || b.Again() != 1 || b.Share(1) != nil || !s.Alone() {
		t.Error("no budget counts")
	}
}

// Whatever is done with holds at once, nothing is lost and nothing is given back twice.
func TestConserved(t *testing.T) {
	for seed := range uint64(20) {
		b := New(10_000, nil, nil)
		holds := make([]Hold, 8)
		for i := range holds {
			holds[i].Open(b, 0)
		}
		shared := make(chan *Shared, 10_000)
		var wg sync.WaitGroup
		for g := range 4 {
			wg.Go(func() { churn(rand.New(rand.NewPCG(seed, uint64(g))), holds, shared) })
		}
		wg.Wait()
		if held := b.Held(); held < 0 || held > 10_000 {
			t.Fatalf("seed %d: %d held", seed, held)
		}
		for i := range holds {
			holds[i].Close()
		}
		close(shared)
		for s := range shared {
			s.Hold() // a reader that is late
			s.Release()
			s.Release()
		}
		if b.Held() != 0 {
			t.Fatalf("seed %d: %d held at the end", seed, b.Held())
		}
	}
}

func churn(random *rand.Rand, holds []Hold, shared chan<- *Shared) {
	for range 2000 {
		h, n := &holds[random.IntN(len(holds))], random.Int64N(500)
		switch random.IntN(40) {
		case 0:
			h.Close()
		case 1, 2:
			shared <- h.Share(n)
		case 3, 4, 5, 6:
			h.Move(n, &holds[random.IntN(len(holds))])
		case 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17:
			h.Release(n)
		default:
			h.Reserve(n)
		}
	}
}

// A reader that comes when the last holder has let go counts the memory again.
func TestShared(t *testing.T) {
	b := New(100, nil, nil)
	s := b.Share(70)
	s.Hold()
	if s.Alone() {
		t.Error("two are alone")
	}
	s.Release()
	s.Release()
	if b.Held() != 0 {
		t.Errorf("%d held by nobody", b.Held())
	}
	s.Hold()
	if b.Held() != 70 {
		t.Errorf("%d held by a late reader, want 70", b.Held())
	}
	s.Release()
	if b.Held() != 0 {
		t.Errorf("%d held at the end", b.Held())
	}
}

func TestMeter(t *testing.T) {
	b := New(100_000, nil, nil)
	var m Meter
	m.Hold.Open(b, 0)
	if !m.Read([]byte(strings.Repeat("x", 1<<20))) || b.Held() != 0 {
		t.Error("a body is counted as a header")
	}
	m.Begin()
	if !m.Read([]byte("GET / HTTP/1.1\r\nHost: h\r\nAccept: *\r\n")) || b.Held() != 0 {
		t.Error("an ordinary header is counted")
	}
	m.End()
	m.Begin()
	for range 200 {
		if !m.Read([]byte("a:\r\n")) {
			t.Fatal("200 lines are refused")
		}
	}
	if b.Held() < 200*100 {
		t.Errorf("200 lines count %d", b.Held())
	}
	m.End()
	if b.Held() != 0 {
		t.Errorf("%d held when the request is there", b.Held())
	}
	m.Begin()
	for n := 0; m.Read([]byte("a:\r\n")); n++ {
		if n > 1000 {
			t.Fatal("1000 lines fit into 100,000 bytes")
		}
	}
	m.Hold.Close()
	if b.Held() != 0 {
		t.Errorf("%d held by a closed connection", b.Held())
	}
}

// What a header is counted as is what it takes, within a half.
func TestCosts(t *testing.T) {
	for _, c := range []struct {
		name  string
		lines int
		line  func(i int) string
	}{
		{"tiny lines", 9000, func(i int) string { return fmt.Sprintf("%x:", i) }},
		{"one name", 9000, func(i int) string { return "a: 1" }},
		{"one long", 1, func(int) string { return "a: " + strings.Repeat("x", 60_000) }},
		{"many long", 128, func(i int) string { return fmt.Sprintf("x-%d: %s", i, strings.Repeat("v", 470)) }},
	} {
		var b strings.Builder
		b.WriteString("GET / HTTP/1.1\r\nHost: h\r\n")
		for i := range c.lines {
			b.WriteString(c.line(i) + "\r\n")
		}
		text := b.String() + "\r\n"
		requests, copies := make([]*http.Request, 100), make([]*http.Request, 100) // so that what the runtime itself takes is little
		took := grown(func() {
			for i := range requests {
				requests[i], _ = http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
				requests[i].Body = nil
			}
		}) / int64(len(requests))
		copied := grown(func() {
			for i := range copies {
				copies[i] = requests[i].Clone(context.Background())
			}
		}) / int64(len(copies))
		runtime.KeepAlive(requests)
		runtime.KeepAlive(copies)
		counted, countedCopy := Header(requests[0]), Copy(requests[0].Header)
		t.Logf("%-10s takes %7d, counted %7d; a copy takes %7d, counted %7d", c.name, took, counted, copied, countedCopy)
		if off := float64(counted) / float64(took); off < 0.67 || off > 1.5 {
			t.Errorf("%s: counted %d, takes %d", c.name, counted, took)
		}
		if off := float64(countedCopy+1000) / float64(copied+1000); off < 0.67 || off > 1.5 {
			t.Errorf("%s: a copy is counted %d, takes %d", c.name, countedCopy, copied)
		}
	}
}

func grown(f func()) int64 {
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	f()
	return heap() - before
}

// Large ones, and headers of which each piece is short, leave a part for small ones.
func TestLargeLeaveRoom(t *testing.T) {
	const limit = 1 << 20
	b := New(limit, nil, nil)
	var large, small Hold
	large.Open(b, 0)
	small.Open(b, 0)
	for large.Reserve(20_000) {
	}
	for large.Reserve(16<<10 + 1) {
	}
	full := b.Held()
	if full > limit-limit/16 || full < limit-limit/16-20_000 {
		t.Errorf("large ones take %d of %d, want all but a sixteenth", full, limit)
	}
	var m Meter
	m.Hold.Open(b, 0)
	m.Begin()
	for n := 0; m.Read([]byte(strings.Repeat("x", 4<<10))); n++ {
		if n > 10 {
			t.Fatal("a header takes in pieces what is left for small ones")
		}
	}
	m.Hold.Close()
	for small.Reserve(1 << 10) {
	}
	if b.Held() <= limit-1<<10 || b.Over() {
		t.Errorf("small ones fill up to %d, want nearly %d", b.Held(), limit)
	}
}

type outer struct{ http.ResponseWriter }

func (o outer) Unwrap() http.ResponseWriter { return o.ResponseWriter }

type holding struct {
	http.ResponseWriter
	hold Hold
}

func (h *holding) Hold() *Hold { return &h.hold }

func TestFrom(t *testing.T) {
	h := &holding{ResponseWriter: httptest.NewRecorder()}
	if From(outer{outer{h}}) != &h.hold || From(outer{httptest.NewRecorder()}) != nil {
		t.Error("From does not look behind Unwrap")
	}
	if Of(http.NotFoundHandler()) != nil {
		t.Error("a budget from nowhere")
	}
}

func TestDefault(t *testing.T) {
	const gib = 1 << 30
	meminfo := "MemTotal:       16777216 kB\nMemFree: 1 kB\n"
	for _, c := range []struct {
		name  string
		files map[string]string
		limit int64
		want  int64
	}{
		{"machine", map[string]string{"/proc/meminfo": meminfo}, math.MaxInt64, 8 * gib},
		{"nothing known", nil, math.MaxInt64, gib},
		{"GOMEMLIMIT", map[string]string{"/proc/meminfo": meminfo}, 4 * gib, 2 * gib},
		{"group", map[string]string{"/proc/meminfo": meminfo, "/proc/self/cgroup": "0::/a/b\n", "/sys/fs/cgroup/a/b/memory.max": "2147483648\n"}, math.MaxInt64, gib},
		{"outer group", map[string]string{"/proc/meminfo": meminfo, "/proc/self/cgroup": "0::/a/b\n", "/sys/fs/cgroup/a/b/memory.max": "max\n", "/sys/fs/cgroup/a/memory.max": "1073741824\n"}, math.MaxInt64, gib / 2},
		{"root group", map[string]string{"/proc/meminfo": meminfo, "/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/memory.max": "1073741824\n"}, math.MaxInt64, gib / 2},
		{"first version", map[string]string{"/proc/meminfo": meminfo, "/proc/self/cgroup": "5:cpu:/x\n4:hugetlb,memory:/x\n", "/sys/fs/cgroup/memory/x/memory.limit_in_bytes": "1073741824"}, math.MaxInt64, gib / 2},
		{"no limit", map[string]string{"/proc/meminfo": meminfo, "/proc/self/cgroup": "4:memory:/x\n", "/sys/fs/cgroup/memory/x/memory.limit_in_bytes": "9223372036854771712"}, math.MaxInt64, 8 * gib},
		{"garbage", map[string]string{"/proc/meminfo": "MemTotal: x kB\n\x00", "/proc/self/cgroup": "::\n:\n\n0"}, math.MaxInt64, gib},
	} {
		if got := share(c.limit, func(name string) []byte { return []byte(c.files[name]) }); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
	if n := Default(); n < 1<<20 {
		t.Errorf("the default here is %d", n)
	}
}

// Any order of steps conserves: each byte of the program is one step.
func FuzzHold(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11})
	f.Add([]byte("reserve, share and close"))
	f.Fuzz(func(t *testing.T, program []byte) {
		b := New(1000, nil, nil)
		var holds [2]Hold
		holds[0].Open(b, 0)
		holds[1].Open(b, 0)
		var shared []*Shared
		for _, step := range program {
			h, n := &holds[step&1], int64(step>>4)*20
			switch step >> 1 & 7 {
			case 0, 1, 2:
				h.Reserve(n)
			case 3:
				h.Release(n)
			case 4:
				h.Move(n, &holds[1-step&1])
			case 5:
				shared = append(shared, h.Share(n))
			case 6:
				h.Close()
			case 7:
				if len(shared) > 0 {
					shared[len(shared)-1].Hold()
					shared[len(shared)-1].Release()
				}
			}
			if held := b.Held(); held < 0 || held > 1000 {
				t.Fatalf("%d held", held)
			}
		}
		holds[0].Close()
		holds[1].Close()
		for _, s := range shared {
			s.Release()
		}
		if b.Held() != 0 {
			t.Fatalf("%d held at the end", b.Held())
		}
	})
}
