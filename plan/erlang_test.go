package plan

import (
	"fmt"
	"math"
	"testing"
)

// near reports whether got is within an absolute or relative tolerance of want.
func near(got, want, tolerance float64) bool {
	return math.Abs(got-want) <= tolerance*max(1, math.Abs(want))
}

// p0 is the probability that an M/M/w/w+L system is empty. That it is full has the
// probability p0·a^w/w!·r^L.
func p0(w, l int, a float64) float64 {
	factorial, _ := math.Lgamma(float64(w) + 1)
	return Loss(w, l, a) / math.Exp(float64(w)*math.Log(a)-factorial+float64(l)*math.Log(a/float64(w)))
}

// TestReference checks against published values.
func TestReference(t *testing.T) {
	// system returns the mean time from arrival to end, in seconds, for w workers
	// that each serve mu requests per second.
	system := func(w, l int, n, mu float64) float64 { return (AcceptedWait(w, l, n/mu) + 1) / mu }
	number := func(q int, ok bool) float64 {
		if !ok {
			return -1
		}
		return float64(q)
	}
	tests := []struct {
		name      string
		got, want float64
		tolerance float64
	}{
		{"Erlang B of 1 worker, 1 erlang", ErlangB(1, 1), 0.5, 1e-15},
		{"Erlang B of no worker", ErlangB(0, 3), 1, 0},
		{"Erlang B of 2 workers, 1 erlang", ErlangB(2, 1), 0.2, 1e-15},
		{"erlang.com: 15 lines", ErlangB(15, 8.108), .00999963, 5e-9},
		{"Erlang B 10, 10", ErlangB(10, 10), .214582343107, 5e-13},
		{"Erlang B 5, 5", ErlangB(5, 5), .284867821331, 5e-13},
		{"Erlang B 3, 2", ErlangB(3, 2), 4. / 19, 1e-15},
		{"ln B 100, 120", LogErlangB(100, 120), -1.62826407041, 5e-12},
		{"ln B 10000, 12000", LogErlangB(10000, 12000), -1.78927734649, 5e-12},
		{"ln B 100, 20", LogErlangB(100, 20), -84.1661482002, 1e-12},
		{"ln B 10000, 200", LogErlangB(10000, 200), -29325.7541713, 2e-12},

		{"CRAN: a=10, w=14", ErlangC(14, 10), .1741319336, 5e-11},
		{"CRAN: a=10, w=14, within 20 s", 1 - WaitBeyond(14, 10, 20./180), .88835, 5e-6},
		{"CRAN: a=10, w=14, wait", 180 * MeanWait(14, 10), 7.83593701177724, 1e-14},
		{"CRAN: a=10, w=11", ErlangC(11, 10), .6821182, 5e-8},
		{"CRAN: a=10, w=11, within 20 s", 1 - WaitBeyond(11, 10, 20./180), .3896138, 5e-8},
		{"mitan: C", ErlangC(55, 48), .2387009364, 5e-11},
		{"mitan: wait", 240 * MeanWait(55, 48), 8.184032, 5e-7},
		{"Erlang C 10, 8", ErlangC(10, 8), .409180150796, 5e-13},
		{"Erlang C 10, 9", ErlangC(10, 9), .668731524108, 5e-13},
		{"Erlang C 3, 2", ErlangC(3, 2), 4. / 9, 1e-15},
		{"Erlang C of 1 worker is its utilisation", ErlangC(1, .3), .3, 1e-15},

		{"Bronson: waiting", 300 / 182.5 * MeanWait(3, 300/182.5), .352, 5e-4},
		{"Bronson: W", (MeanWait(3, 300/182.5) + 1) / 182.5, .006654, 5e-7},
		{"Bronson: p0", p0(3, 100, 300/182.5), .17754, 5e-6},
		{"Octave M/M/2: waiting", 1.8 * MeanWait(2, 1.8), 7.674, 5e-4},
		{"Octave M/M/2: W", (MeanWait(2, 1.8) + 1) / 5, 1.053, 5e-4},
		{"Octave M/M/4: waiting", 1.8 * MeanWait(4, 1.8), .105, 5e-4},
		{"Octave M/M/4: W", (MeanWait(4, 1.8) + 1) / 5, .212, 5e-4},
		{"Octave M/M/3/7: p0", p0(3, 4, 40./30), .255037, 5e-7},
		{"Octave M/M/3/7: W", system(3, 4, 40, 30), .036517, 5e-7},
		{"Octave M/M/4/6: loss", Loss(4, 2, 5), .293543, 5e-7},
		// The published values of these three are truncated, not rounded.
		{"Octave M/M/2/5: p0", p0(2, 3, 1.5), .179334, 1e-6},
		{"Octave M/M/2/5: loss", Loss(2, 3, 1.5), .085113, 1e-6},
		{"Octave M/M/2/5: wait", AcceptedWait(2, 3, 1.5) / 2, .230857, 1e-6},

		{"least queue 9, 10, 1 %", number(LeastQueue(10, 9, .01)), 19, 0},
		{"least queue 7.2, 8, .1 %", number(LeastQueue(8, 7.2, .001)), 41, 0},
		{"least queue 7.2, 8, 1e-6", number(LeastQueue(8, 7.2, 1e-6)), 106, 0},
		{"least queue .8, 1, 1 %", number(LeastQueue(1, .8, .01)), 13, 0},
		{"least queue 90, 100, .1 %", number(LeastQueue(100, 90, .001)), 30, 0},
		{"the source's example", float64(leastWorkers(200)), 201, 0},
	}
	for _, test := range tests {
		if !near(test.got, test.want, test.tolerance) {
			t.Errorf("%s: %.15g, want %.15g", test.name, test.got, test.want)
		}
	}
}

// systems calls f for small and large systems: idle, near balance and overloaded.
func systems(f func(w int, a float64)) {
	for _, w := range []int{1, 2, 3, 7, 20, 100, 3000} {
		for _, r := range []float64{1e-300, 1e-3, .3, .7, .99, 1 - 1e-9, math.Nextafter(1, 0), 1, math.Nextafter(1, 2), 1 + 1e-9, 1.01, 1.5, 10, 1e10, 1e300} {
			f(w, r*float64(w))
		}
	}
}

// birthDeath solves the balance equations of an M/M/w/w+L system state by state:
// p(k)·λ = p(k+1)·min(k+1, w). It uses none of the tested formulas.
func birthDeath(w, l int, a float64) (p []float64) {
	p = make([]float64, w+l+1)
	p[0] = 1
	total := 1.0
	for k := 1; k <= w+l; k++ {
		p[k] = p[k-1] * a / float64(min(k, w))
		if p[k] > 1e200 { // only the ratios matter
			for i := range p[:k+1] {
				p[i] *= 1e-200
			}
			total *= 1e-200
		}
		total += p[k]
	}
	for k := range p {
		p[k] /= total
	}
	return p
}

func TestBirthDeath(t *testing.T) {
	for w := 1; w <= 12; w++ {
		for _, l := range []int{0, 1, 2, 5, 40} {
			for _, r := range []float64{.01, .2, .5, .9, .999, 1 - 1e-12, 1, 1 + 1e-12, 1.001, 1.3, 5, 100} {
				a := r * float64(w)
				name := fmt.Sprintf("w=%d L=%d a=%v", w, l, a)
				p := birthDeath(w, l, a)
				if got := Loss(w, l, a); !near(got/p[w+l], 1, 1e-11) {
					t.Errorf("%s: loss %v, want %v", name, got, p[w+l])
				}
				waiting, busy := 0.0, 0.0
				for k, p := range p {
					waiting += p * float64(max(0, k-w))
					busy += p * float64(min(k, w))
				}
				want := waiting / (a * (1 - p[w+l])) // Little's law
				if 1-p[w+l] < 1e-3 {
					want = waiting / busy // equal, since what is accepted is served; no digits cancel
				}
				if got := AcceptedWait(w, l, a); !near(got, want, 1e-10) {
					t.Errorf("%s: accepted wait %v, want %v", name, got, want)
				}
				if got := a * (1 - Loss(w, l, a)); !near(got, busy, 1e-11) {
					t.Errorf("%s: accepted load %v, busy workers %v", name, got, busy)
				}
			}
		}
	}
}

// TestUnboundedQueue compares M/M/w with a system whose queue is practically never full.
func TestUnboundedQueue(t *testing.T) {
	for _, test := range []struct {
		w int
		a float64
	}{{1, .5}, {2, 1.9}, {10, 9}, {50, 48}, {300, 250}} {
		l := 2000
		p := birthDeath(test.w, l, test.a)
		c, beyond := 0.0, 0.0
		const at = 0.3 // in units of the service time
		for j := 0; j < l; j++ {
			c += p[test.w+j]
			// It waits for j+1 services to end. These are Poisson at rate w, so it
			// waits longer than at if at most j end before.
			m := float64(test.w) * at
			sum, term := 0.0, math.Exp(-m)
			for i := 0; i <= min(j, 500); i++ {
				sum += term
				term *= m / float64(i+1)
			}
			beyond += p[test.w+j] * sum
		}
		if got := ErlangC(test.w, test.a); !near(got, c, 1e-11) {
			t.Errorf("%v: Erlang C %v, want %v", test, got, c)
		}
		if got := WaitBeyond(test.w, test.a, at); !near(got, beyond, 1e-10) {
			t.Errorf("%v: beyond %v: %v, want %v", test, at, got, beyond)
		}
		if got, want := AcceptedWait(test.w, l, test.a), MeanWait(test.w, test.a); !near(got, want, 1e-10) {
			t.Errorf("%v: accepted wait %v, want %v", test, got, want)
		}
		for _, q := range []float64{.5, .9, .99, .9999} {
			x := WaitQuantile(test.w, test.a, q)
			if b := WaitBeyond(test.w, test.a, x); x > 0 && !near(b, 1-q, 1e-12) || x == 0 && b > 1-q {
				t.Errorf("%v: beyond the quantile %v: %v", test, q, b)
			}
		}
	}
}

func TestProperties(t *testing.T) {
	systems(func(w int, a float64) {
		b, c := ErlangB(w, a), ErlangC(w, a)
		if !(0 <= b && b <= c && c <= 1) {
			t.Errorf("w=%d a=%v: B = %v, C = %v", w, a, b, c)
		}
		if more := ErlangB(w+1, a); more > b || b > 1e-300 && a < 1e14 && more == b {
			t.Errorf("w=%d a=%v: B = %v, with one worker more %v", w, a, b, more)
		}
		if more := ErlangC(w+1, a); more > c {
			t.Errorf("w=%d a=%v: C = %v, with one worker more %v", w, a, c, more)
		}
		if got := Loss(w, 0, a); got != b {
			t.Errorf("w=%d a=%v: loss without a queue %v, B = %v", w, a, got, b)
		}
		last, wait := b, 0.0
		for l := 1; l <= MaxQueue; l *= 10 {
			p, x := Loss(w, l, a), AcceptedWait(w, l, a)
			// In heavy overload, rounding errors can make the loss rise slightly.
			if !(p <= last*(1+1e-12)) || !(p >= 1-float64(w)/a-1e-12) {
				t.Errorf("w=%d a=%v: loss %v with a queue of %d, %v with less", w, a, p, l, last)
			}
			if !(x >= wait*(1-1e-9) && x <= float64(l)/float64(w)*(1+1e-9)) {
				t.Errorf("w=%d a=%v: wait %v with a queue of %d, %v with less", w, a, x, l, wait)
			}
			last, wait = p, x
		}
		for _, e := range []float64{1e-12, 1e-3, .01, .3, 1} {
			l, ok := LeastQueue(w, a, e)
			if n, _ := leastQueue(w, a, e, ErlangB(w, a)); n > math.MaxInt {
				if ok {
					t.Errorf("w=%d a=%v: a queue of %d for %v, want none, since an int holds no %d", w, a, l, e, n)
				}
			} else if low := 1 - float64(w)/a; !ok && e > low*(1+1e-9) && a != float64(w) {
				t.Errorf("w=%d a=%v: no queue for %v", w, a, e)
			} else if ok && e < low*(1-1e-9) {
				t.Errorf("w=%d a=%v: a queue of %d for %v", w, a, l, e)
			}
			if ok && (Loss(w, l, a) > e || l > 0 && Loss(w, l-1, a) <= e) {
				t.Errorf("w=%d a=%v: a queue of %d is not the least for %v", w, a, l, e)
			}
		}
	})
	if l, ok := LeastQueue(4, 4, .001); !ok || l != int(math.Ceil(1000-1/ErlangB(4, 4))) {
		t.Errorf("least queue in balance: %d, %v", l, ok)
	}
	if l, ok := LeastQueue(100, 120, .16); ok {
		t.Errorf("least queue in overload: %d", l)
	}
}

// TestExtremes has systems where a careless formula overflows or cancels.
func TestExtremes(t *testing.T) {
	million := float64(MaxWorkers)
	for _, a := range []float64{0, 5e-324, 1e-300, 1, million / 2, million - 1, math.Nextafter(million, 0), million, math.Nextafter(million, 2e6), 1e9, math.MaxFloat64} {
		for _, w := range []int{0, 1, 2, MaxWorkers} {
			b := ErlangB(w, a)
			for name, v := range map[string]float64{
				"B": b, "C": ErlangC(w, a), "beyond": WaitBeyond(w, a, 1e9), "loss of 1": Loss(w, 1, a), "loss": Loss(w, MaxQueue, a),
			} {
				if !(v >= 0 && v <= 1) {
					t.Errorf("w=%d a=%v: %s = %v", w, a, name, v)
				}
			}
			if ln := LogErlangB(w, a); !(ln <= 0) || math.IsInf(ln, -1) && a > 0 {
				t.Errorf("w=%d a=%v: ln B = %v", w, a, ln)
			}
			stable := a < float64(w)
			if x := MeanWait(w, a); !(x >= 0) || math.IsInf(x, 1) == stable {
				t.Errorf("w=%d a=%v: mean wait %v", w, a, x)
			}
			if x := WaitQuantile(w, a, .99); !(x >= 0) || math.IsInf(x, 1) == stable {
				t.Errorf("w=%d a=%v: quantile %v", w, a, x)
			}
			if x := AcceptedWait(w, MaxQueue, a); !(x >= 0) || math.IsInf(x, 1) == (w > 0) {
				t.Errorf("w=%d a=%v: accepted wait %v", w, a, x)
			}
		}
	}
	// In overload, r^L is just below the greatest float64, and L/(r − 1) times that
	// is above it.
	for _, r := range []float64{6.9e-5, 7e-5, 7.05e-5, 7.09e-5} {
		if x := AcceptedWait(100, MaxQueue, 100*(1+r)); !near(x, MaxQueue/100.-1/(100*r), 1e-3) {
			t.Errorf("r = 1 + %v: accepted wait %v", r, x)
		}
	}
	// A tiny load has a formula of its own, which must meet the other one.
	for _, w := range []int{1, 5, 1000} {
		below, above := LogErlangB(w, 0x1p-401), LogErlangB(w, 0x1p-399)
		if !near(above-below, float64(w)*2*math.Ln2, 1e-9) {
			t.Errorf("w=%d: ln B from %v to %v", w, below, above)
		}
	}
	nan := math.NaN()
	for i, v := range []float64{
		ErlangB(-1, 1), ErlangB(1, -1), ErlangB(1, nan), ErlangC(-1, 1), ErlangC(1, nan), MeanWait(1, nan), MeanWait(-1, 1),
		WaitQuantile(1, -1, .5), WaitQuantile(-1, 1, .5), WaitBeyond(1, nan, 1), Loss(1, -1, 1), Loss(1, 1, nan), AcceptedWait(1, -1, 1), AcceptedWait(-1, 1, 1), AcceptedWait(1, 1, nan),
	} {
		if v == v {
			t.Errorf("nonsense %d gives %v", i, v)
		}
	}
	for _, e := range []float64{0, -1, nan} {
		if l, ok := LeastQueue(2, 1, e); ok {
			t.Errorf("least queue for %v: %d", e, l)
		}
	}
}

func BenchmarkErlangB(b *testing.B) {
	for b.Loop() {
		ErlangB(MaxWorkers, MaxWorkers-1000)
	}
}
