package line

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// normal is the class of a client's jobs.
func normal(client string) Class { return Class{Urgency: Normal, Client: client, Weight: 1} }

// A server works on the jobs of a line with some workers, in virtual time.
type server struct {
	line    *Line[*job]
	random  *rand.Rand
	now     float64
	workers []worker
	got     map[string]float64 // time of workers, by client
}

type job struct{ takes float64 }

type worker struct {
	until float64
	item  *Item[*job]
}

func newServer(workers int) *server {
	return &server{line: New[*job](), random: rand.New(rand.NewPCG(1, 2)), workers: make([]worker, workers), got: map[string]float64{}}
}

// run lets the workers work until a time.
func (s *server) run(until float64) {
	for {
		w := &s.workers[0]
		for i := range s.workers {
			if s.workers[i].until < w.until {
				w = &s.workers[i]
			}
		}
		if w.until > until {
			return
		}
		s.now = max(s.now, w.until)
		if w.item != nil {
			s.line.Ended(w.item, int64(w.item.Value.takes))
			w.item = nil
		}
		if s.line.Len() == 0 {
			w.until = math.Nextafter(until, math.Inf(1))
			continue
		}
		w.item = s.line.Next()
		w.until = s.now + w.item.Value.takes
		s.got[w.item.flow.client.name] += w.item.Value.takes
	}
}

// maxMin returns the weighted max-min fair allocation of a capacity to demands: no one
// gets more than it asks for, and who gets less than that gets as much for its weight as
// anyone.
func maxMin(capacity float64, demands, weights []float64) []float64 {
	got := make([]float64, len(demands))
	open := map[int]bool{}
	for i := range demands {
		open[i] = true
	}
	for len(open) > 0 {
		sum := 0.0
		for i := range open {
			sum += weights[i]
		}
		level, settled := capacity/sum, false
		for i := range open {
			if demands[i] <= level*weights[i] {
				got[i], settled = demands[i], true
				capacity -= demands[i]
				delete(open, i)
			}
		}
		if !settled {
			for i := range open {
				got[i] = level * weights[i]
				delete(open, i)
			}
		}
	}
	return got
}

// Clients of all kinds get what a fair allocation would give them, which is computed
// apart. A client never has more than 50 jobs in the line, as a bounded queue would see
// to it.
func TestSharesAreFair(t *testing.T) {
	const workers, steps, step = 4, 2_000, 1e8
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 9))
		n := 2 + random.IntN(10)
		demands, weights, takes := make([]float64, n), make([]float64, n), make([]float64, n)
		for i := range n {
			demands[i] = workers * steps * step * random.Float64() * random.Float64() * 2
			weights[i] = float64(1 + random.IntN(2)*random.IntN(5))
			takes[i] = step * (0.2 + 2*random.Float64())
		}
		s := newServer(workers)
		offered := make([]float64, n)
		for at := range steps {
			for i := range n {
				name := fmt.Sprint(i)
				for offered[i] < demands[i]*float64(at+1)/steps {
					c := Class{Urgency: Normal, Client: name, Weight: weights[i]}
					if j := (&job{takes[i] * 2 * random.Float64()}); s.line.own(c) < 50 {
						s.line.Add(j, c)
						offered[i] += j.takes
					} else {
						offered[i] += j.takes // refused
					}
				}
			}
			s.run(float64(at+1) * step)
		}
		for i, want := range maxMin(workers*steps*step, demands, weights) {
			// Demand that is near its share is served almost, since it comes by chance.
			if got := s.got[fmt.Sprint(i)]; math.Abs(got-want) > 0.05*want+100*step {
				t.Errorf("seed %d: client %d of weight %.0f got %.2e of %.2e, want %.2e", seed, i, weights[i], got, demands[i], want)
			}
		}
	}
}

// Twenty clients of equal demands, and one that sends ten times the capacity.
func TestFloodOfOneClient(t *testing.T) {
	const workers, capacity = 8, 160 // a second
	s := newServer(workers)
	worst, count := 0.0, 0
	for at := range 60_000 { // of 1 ms
		if s.line.own(normal("flood")) < 150 {
			s.line.Add(&job{s.random.ExpFloat64() * 50e6}, normal("flood"))
		}
		for i := range 19 {
			if s.random.Float64() < 0.03*capacity/1000 {
				count++
				s.line.Add(&job{s.random.ExpFloat64() * 50e6}, normal(fmt.Sprint(i)))
			}
		}
		s.run(float64(at+1) * 1e6)
		for i := range 19 {
			if f := s.line.clients[fmt.Sprint(i)]; f != nil {
				worst = max(worst, float64(f.flows[Normal].items.n))
			}
		}
	}
	if worst > 10 {
		t.Errorf("one of the small clients had %.0f jobs in line", worst)
	}
	sum, squares := 0.0, 0.0
	for i := range 19 {
		got := s.got[fmt.Sprint(i)]
		sum, squares = sum+got, squares+got*got
	}
	if index := sum * sum / (19 * squares); index < 0.98 {
		t.Errorf("Jain's index of %d jobs of 19 clients is %.3f", count, index)
	}
}

// What is predicted for one client allows for others who come later.
func TestAheadOfAFlood(t *testing.T) {
	l := New[int]()
	add := func(urgency int, client string) { l.Add(0, Class{Urgency: urgency, Client: client, Weight: 1}) }
	for range 20 {
		add(Normal, "flood")
	}
	if n := l.Ahead(normal("flood")); n != 20 {
		t.Errorf("%d are ahead when it is alone, want 20", n)
	}
	for range 12 { // each turn of the flood's is followed by two of others
		l.Ended(l.Next(), 1)
		for _, urgency := range []int{0, Normal} {
			add(urgency, "other")
			l.Ended(l.Next(), 1)
		}
		for l.own(normal("flood")) < 20 {
			add(Normal, "flood")
		}
	}
	if n := l.Ahead(normal("flood")); n < 50 || n > 62 {
		t.Errorf("%d are ahead beside others, want about 3 times 20", n)
	}
	if n := l.Ahead(normal("new")); n > 2 {
		t.Errorf("%d are ahead of a new client, want one turn of each", n)
	}
}

// A flood of new names gains their turn each: a client that was there before gets as much
// as any of those that wait with it, and the names are forgotten.
func TestFloodOfNames(t *testing.T) {
	s := newServer(8)
	names, served := 0, 0
	const waiting = 200
	for at := range 20_000 {
		for range 10 {
			names++
			if s.line.Len() < waiting {
				s.line.Add(&job{50e6}, normal(fmt.Sprint("new ", names)))
			}
		}
		if s.line.own(normal("old")) == 0 {
			s.line.Add(&job{50e6}, normal("old"))
			served++
		}
		s.run(float64(at+1) * 1e6)
		if n := len(s.line.clients); n > waiting+maxIdle+len(s.workers)+1 {
			t.Fatalf("%d names are kept", n)
		}
	}
	// In 20 s 3,200 jobs run, and 200 wait: every 201st is its.
	if served < 3200/(waiting+1)-1 {
		t.Errorf("the client that was there had %d turns of 3,200", served)
	}
}

// One that sends one job at a time gets no more than one that queues many.
func TestOneAtATime(t *testing.T) {
	s := newServer(1)
	for range 1000 {
		s.line.Add(&job{1e6}, normal("many"))
		s.line.Add(&job{1e6}, normal("others"))
	}
	for at := range 600 {
		if s.line.Places("one") == 0 {
			s.line.Add(&job{1e6}, normal("one"))
		}
		s.run(float64(at+1) * 1e6)
	}
	if one, many := s.got["one"], s.got["many"]; one > many || one < many/2 {
		t.Errorf("one at a time got %.0f, many at once %.0f", one, many)
	}
}

// A client that has had more than its share, since its job took long, is remembered when
// it has no job.
func TestOneAtATimeThatTakesLong(t *testing.T) {
	s := newServer(1)
	for range 2000 {
		s.line.Add(&job{1e6}, normal("many"))
	}
	for at := range 2000 {
		if s.line.Places("one") == 0 {
			s.line.Add(&job{10e6}, normal("one"))
		}
		s.run(float64(at+1) * 1e6)
	}
	if one, many := s.got["one"], s.got["many"]; math.Abs(one-many) > 0.05*many {
		t.Errorf("one at a time got %.0f, many at once %.0f", one, many)
	}
}

func TestCanceledJobsCostNothing(t *testing.T) {
	s := newServer(1)
	for range 100 {
		s.line.Add(&job{1e6}, normal("many"))
	}
	s.run(10e6)
	for range 50 {
		s.line.Remove(s.line.Add(&job{1e6}, normal("one")))
	}
	s.line.Add(&job{1e6}, normal("one"))
	s.run(13e6)
	if s.got["one"] == 0 {
		t.Error("a client that had canceled 50 jobs did not get its turn")
	}
}

// What a client has had while nobody else wanted it costs it nothing later.
func TestIdleLineForgets(t *testing.T) {
	l := New[int]()
	for range 100 {
		l.Add(0, normal("night"))
	}
	var running []*Item[int]
	for range 100 {
		running = append(running, l.Next())
	}
	for _, i := range running {
		l.Ended(i, 3600e9)
	}
	if len(l.clients) != 0 || l.idle.Len() != 0 {
		t.Errorf("%d clients are remembered, %d idle", len(l.clients), l.idle.Len())
	}
	for range 100 {
		l.Add(0, normal("day"))
	}
	l.Ended(l.Next(), 1)
	l.Add(0, normal("night"))
	turns := 1
	for ; l.own(normal("night")) > 0; turns++ {
		l.Ended(l.Next(), 1)
	}
	if turns > 4 {
		t.Errorf("its job came after %d turns", turns)
	}
}

// One job that takes very long does not make newcomers pay.
func TestOutlierIsNotChargedToOthers(t *testing.T) {
	l := New[int]()
	for range 2000 {
		l.Add(0, normal("many"))
	}
	for range 100 {
		l.Ended(l.Next(), 1e6)
	}
	l.Add(0, normal("long"))
	for l.own(normal("long")) > 0 {
		i := l.Next()
		took := int64(1e6)
		if i.flow.client.name == "long" {
			took = 3600e9
		}
		l.Ended(i, took)
	}
	if mean := l.MeanCost(); mean > 2e6 {
		t.Errorf("one outlier moved the mean from 1 ms to %d ns", mean)
	}
	l.Add(0, normal("new"))
	for turns := 1; l.own(normal("new")) > 0; turns++ {
		if turns > 3 {
			t.Fatal("a newcomer waits for more than its turn")
		}
		l.Ended(l.Next(), 1e6)
	}
}

// Clients that owe something are remembered when they have no job, but not all of them.
func TestDebtorsAreBounded(t *testing.T) {
	l := New[int]()
	for range 5 * maxIdle {
		l.Add(0, normal("many"))
	}
	for n := range 2 * maxIdle {
		name := fmt.Sprint("debtor ", n)
		l.Add(0, normal(name))
		for l.own(normal(name)) > 0 {
			i := l.Next()
			took := int64(1e6)
			if i.flow.client.name == name {
				took = 3600e9
			}
			l.Ended(i, took)
		}
		if l.idle.Len() > maxIdle || len(l.clients) > maxIdle+1 {
			t.Fatalf("%d clients are remembered after %d", len(l.clients), n)
		}
	}
	if l.idle.Len() != maxIdle {
		t.Errorf("%d clients are remembered, want %d", l.idle.Len(), maxIdle)
	}
}

// Virtual time stays where it is exact.
func TestVirtualTimeIsRebased(t *testing.T) {
	l := New[int]()
	heavy := Class{Urgency: Normal, Client: "heavy", Weight: 1000}
	for range 30_000 {
		l.Add(0, heavy)
		l.Add(0, normal("light"))
	}
	lv := &l.levels[Normal]
	for _, c := range l.clients {
		c.flows[Normal].due += 1e19
	}
	lv.now = 1e19
	light := 0
	for range 20_000 {
		i := l.Next()
		if i.flow.client.name == "light" {
			light++
		}
		l.Ended(i, 1e6)
	}
	if lv.now > mostNow || light < 15 || light > 25 {
		t.Errorf("virtual time %g, %d turns of 20,000 for a weight of 1 beside 1,000", lv.now, light)
	}
}

// Three urgencies that all ask for more than there is: none is kept out by the others.
func TestDisplacedLeavesTheMiddleAShare(t *testing.T) {
	l := New[int]()
	const places = 100
	had := map[int]int{}
	for range 20_000 {
		for _, u := range []int{0, 3, 7} {
			c := Class{Urgency: u, Weight: 1}
			if l.Len() == places {
				victim := l.Displaced(c, places, Displace[int]{Yields: func(int) bool { return false }})
				if victim == nil {
					continue
				}
				l.Remove(victim)
			}
			l.Add(0, c)
		}
		if l.Len() == places {
			i := l.Next()
			had[i.flow.urgency]++
			l.Ended(i, 1e6)
		}
	}
	if had[3] < 400 || had[7] < 400 {
		t.Errorf("turns by urgency: %v; want at least one in 40 for each", had)
	}
}

// Whatever happens, the line agrees with a list.
func TestLineAgreesWithAList(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	l := New[int]()
	var waiting, running []*Item[int]
	for n := range 20_000 {
		switch k := random.IntN(10); {
		case k < 5 && len(waiting) < 300:
			c := Class{Urgency: random.IntN(Urgencies), Client: fmt.Sprint(random.IntN(20)), Weight: float64(1 + random.IntN(3))}
			ahead := l.Ahead(c)
			if ahead < l.UpTo(c.Urgency-1)+l.own(c) || ahead > l.UpTo(c.Urgency) && l.own(c) == 0 {
				t.Fatalf("%d are ahead of %+v", ahead, c)
			}
			waiting = append(waiting, l.Add(n, c))
		case k < 7 && len(waiting) > 0:
			i := l.Next()
			at := slices.Index(waiting, i)
			for _, other := range waiting[:at] {
				if other.flow == i.flow {
					t.Fatal("a job has overtaken one of its client")
				}
			}
			waiting = slices.Delete(waiting, at, at+1)
			running = append(running, i)
		case k < 8 && len(waiting) > 0:
			at := random.IntN(len(waiting))
			l.Remove(waiting[at])
			waiting = slices.Delete(waiting, at, at+1)
		case len(running) > 0:
			at := random.IntN(len(running))
			l.Ended(running[at], random.Int64N(1000))
			running = slices.Delete(running, at, at+1)
		}
		agree(t, l, waiting, running)
	}
}

func agree(t *testing.T, l *Line[int], waiting, running []*Item[int]) {
	t.Helper()
	if l.Len() != len(waiting) {
		t.Fatalf("%d wait, want %d", l.Len(), len(waiting))
	}
	if oldest := l.Oldest(); len(waiting) > 0 && oldest != waiting[0] || len(waiting) == 0 && oldest != nil {
		t.Fatal("another one is the oldest")
	}
	places, most := map[string]int{}, [Urgencies]map[string]int{}
	for u := range most {
		most[u] = map[string]int{}
	}
	for _, i := range waiting {
		places[i.flow.client.name]++
		most[i.flow.urgency][i.flow.client.name]++
	}
	for _, i := range running {
		places[i.flow.client.name]++
	}
	for n := range 20 {
		if name := fmt.Sprint(n); l.Places(name) != places[name] {
			t.Fatalf("client %s has %d places, want %d", name, l.Places(name), places[name])
		}
	}
	for u := range most {
		var want []int
		for _, n := range most[u] {
			want = append(want, n)
		}
		slices.Sort(want)
		slices.Reverse(want)
		want = want[:min(5, len(want))]
		var got []int
		for _, s := range l.Most(u, 5) {
			if s.Waiting != most[u][s.Client] {
				t.Fatalf("%+v, want %d waiting", s, most[u][s.Client])
			}
			got = append(got, s.Waiting)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("the most at %d are %v, want %v", u, got, want)
		}
	}
}

// The least urgent have their share of places too, whoever floods the queue.
func TestDisplacedLeavesAShare(t *testing.T) {
	never := func(int) bool { return false }
	for _, d := range []Displace[int]{{Yields: never}, {Oldest: true}} {
		l := New[int]()
		const places = 200
		add := func(urgency int) {
			c := Class{Urgency: urgency, Weight: 1}
			if l.Len() == places {
				victim := l.Displaced(c, places, d)
				if victim == nil {
					return
				}
				l.Remove(victim)
			}
			l.Add(0, c)
		}
		for range 1000 {
			add(5)
		}
		for range 1000 {
			add(1)
		}
		if n := l.levels[5].items.n; n != places/Reserve || l.Len() != places {
			t.Errorf("oldest %t: %d of %d are left for the less urgent, want %d", d.Oldest, n, l.Len(), places/Reserve)
		}
		for range 5 {
			l.Remove(l.levels[5].items.front)
			l.Add(0, Class{Urgency: 1, Weight: 1})
		}
		for range 1000 {
			add(5)
		}
		if n := l.levels[5].items.n; n != places/Reserve || l.Len() != places {
			t.Errorf("oldest %t: %d of %d are less urgent when they come later, want %d", d.Oldest, n, l.Len(), places/Reserve)
		}
		for range 1000 {
			add(3)
			add(1)
		}
		if n := l.levels[5].items.n; n != places/Reserve {
			t.Errorf("oldest %t: %d of %d are left for the least urgent of three, want %d", d.Oldest, n, l.Len(), places/Reserve)
		}
		add(0)
		if l.levels[0].items.n != 1 {
			t.Errorf("oldest %t: an urgent one found no place", d.Oldest)
		}
	}
}

func TestKey(t *testing.T) {
	long := strings.Repeat("x", 65)
	if Key("short") != "short" || len(Key(long)) > 64 || Key(long) == Key(long+"x") || Key(long) != Key(strings.Clone(long)) {
		t.Errorf("%q, %q, %q", Key("short"), Key(long), Key(long+"x"))
	}
}
