package histogram

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestHistogramBuckets(t *testing.T) {
	// Every bucket begins where the one before it ends, and none is wider than an
	// eighth of its least value.
	next := int64(0)
	for i := range buckets {
		if got := bucket(uint64(next)); got != i {
			t.Fatalf("bucket(%d) = %d, want %d", next, got, i)
		}
		last := upper(i)
		if last < next || bucket(uint64(last)) != i {
			t.Fatalf("bucket %d ends at %d, begins at %d", i, last, next)
		}
		if last-next > next/8 {
			t.Fatalf("bucket %d is %d to %d", i, next, last)
		}
		next = last + 1
	}
	if next != 1<<maxBits {
		t.Errorf("the last bucket ends at %d", next)
	}
	if limit := time.Duration(next); limit < 39*time.Hour || limit > 40*time.Hour {
		t.Errorf("the last bucket ends at %v, the doc says 39 h", limit)
	}
	for _, ns := range []uint64{1 << maxBits, math.MaxInt64, math.MaxUint64} {
		if bucket(ns) != buckets-1 {
			t.Errorf("bucket(%d) = %d", ns, bucket(ns))
		}
	}
}

func TestHistogramEmpty(t *testing.T) {
	var h Histogram
	if h.Mean() != 0 || h.Quantile(0.5) != 0 || h.Quantile(1) != 0 {
		t.Errorf("mean %v, quantiles %v, %v", h.Mean(), h.Quantile(0.5), h.Quantile(1))
	}
}

func TestHistogramQuantileBounds(t *testing.T) {
	var h Histogram
	for _, ns := range []int64{10, 20, 30, -5} {
		h.Add(time.Duration(ns))
	}
	for _, c := range []struct {
		q    float64
		want int64
	}{{-1, 0}, {math.NaN(), 0}, {math.Inf(-1), 0}, {0, 0}, {0.25, 0}, {0.26, 10}, {0.5, 10}, {0.75, 20}, {1, 30}, {2, 30}, {math.Inf(1), 30}} {
		if got := int64(h.Quantile(c.q)); got != upper(bucket(uint64(c.want))) {
			t.Errorf("Quantile(%v) = %d, want about %d", c.q, got, c.want)
		}
	}
	if h.Count != 4 || h.Sum != 60 || h.Mean() != 15 {
		t.Errorf("count %d, sum %v, mean %v: a negative duration counts as 0", h.Count, h.Sum, h.Mean())
	}
}

// checkQuantiles checks h against the durations that were added to it.
func checkQuantiles(t *testing.T, h *Histogram, durations []int64) {
	t.Helper()
	slices.Sort(durations)
	for i, want := range durations {
		q := (float64(i) + 0.5) / float64(len(durations)) // rank i+1
		got := int64(h.Quantile(q))
		if want >= 1<<maxBits {
			want = 1<<maxBits - 1
		}
		if got < want || got > want+want/8 {
			t.Fatalf("Quantile(%v) of %d = %d, want %d or up to an eighth more", q, len(durations), got, want)
		}
	}
}

func TestHistogramQuantileIsTooHighByAnEighthAtMost(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		var h, a, b Histogram
		var durations []int64
		for range 1 + rng.IntN(100) {
			ns := rng.Int64() >> (16 + rng.IntN(47)) // any magnitude up to 39 h
			durations = append(durations, ns)
			h.Add(time.Duration(ns))
			if rng.IntN(2) == 0 {
				a.Add(time.Duration(ns))
			} else {
				b.Add(time.Duration(ns))
			}
		}
		checkQuantiles(t, &h, durations)
		a.Merge(&b)
		checkQuantiles(t, &a, durations)
		if a.Count != h.Count || math.Abs(a.Sum-h.Sum) > h.Sum/1e9 {
			t.Fatalf("merged: %d with %v, want %d with %v", a.Count, a.Sum, h.Count, h.Sum)
		}
		for q := 0.0; q < 1; q += 0.01 {
			if h.Quantile(q) > h.Quantile(q+0.01) {
				t.Fatalf("Quantile(%v) > Quantile(%v)", q, q+0.01)
			}
		}
	}
}

// FuzzHistogram checks that any quantile of any durations is one of them, or up to
// an eighth more.
func FuzzHistogram(f *testing.F) {
	add := func(durations ...uint64) {
		var b []byte
		for _, ns := range durations {
			b = binary.LittleEndian.AppendUint64(b, ns)
		}
		f.Add(b, 0.5)
	}
	add()
	add(0)
	add(1, 2, 3, 7, 8, 9, 15, 16, 17)
	add(1<<maxBits-1, 1<<maxBits, 1<<maxBits+1)
	add(math.MaxInt64, 1<<63, math.MaxUint64) // negative as an int64: counts as 0
	add(1000, 1000, 1000, 1000_000_000)
	f.Add([]byte("12345678"), math.NaN())
	f.Add([]byte("12345678"), math.Inf(1))
	f.Add([]byte("12345678abcdefgh"), -1.0)
	f.Fuzz(func(t *testing.T, data []byte, q float64) {
		var h Histogram
		var durations []int64
		for ; len(data) >= 8 && len(durations) < 1000; data = data[8:] {
			ns := int64(binary.LittleEndian.Uint64(data))
			h.Add(time.Duration(ns))
			durations = append(durations, max(ns, 0))
			if i := bucket(uint64(max(ns, 0))); i < 0 || i >= buckets || ns < 1<<maxBits && upper(i) < ns {
				t.Fatalf("bucket(%d) = %d, up to %d", ns, i, upper(i))
			}
		}
		if h.Count != uint64(len(durations)) {
			t.Fatalf("count %d of %d", h.Count, len(durations))
		}
		checkQuantiles(t, &h, durations)
		if got := h.Quantile(q); got < h.Quantile(0) || got > h.Quantile(1) {
			t.Fatalf("Quantile(%v) = %v, from %v to %v", q, got, h.Quantile(0), h.Quantile(1))
		}
		if cv2 := h.CV2(); !(cv2 >= 0) || math.IsInf(cv2, 1) {
			t.Fatalf("CV2 %v", cv2)
		}
		if mean := h.Mean(); h.Count > 0 && (mean < 0 || float64(mean) > h.Sum+1) {
			t.Fatalf("mean %v of sum %v", mean, h.Sum)
		}
	})
}

func TestCountUpTo(t *testing.T) {
	var h Histogram
	for _, ns := range []time.Duration{-1, 0, 1, 7, 8, 1023, 1024, 1 << 20, 100 * time.Hour} {
		h.Add(ns)
	}
	for _, c := range []struct {
		d    time.Duration
		want uint64
	}{{-1, 0}, {0, 2}, {6, 3}, {7, 4}, {1022, 5}, {1023, 6}, {1<<20 - 1, 7}, {1<<21 - 1, 8}, {math.MaxInt64, 9}} {
		if got := h.CountUpTo(c.d); got != c.want {
			t.Errorf("CountUpTo(%d) = %d, want %d", c.d, got, c.want)
		}
	}
}

func TestSince(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	var h, added Histogram
	if h.Since(&h) != added {
		t.Error("h.Since(&h) is not empty")
	}
	for range 500 {
		h.Add(time.Duration(rng.Int64N(1000)))
	}
	earlier := h
	for range 500 {
		ns := time.Duration(rng.Int64N(1_000_000))
		h.Add(ns)
		added.Add(ns)
	}
	before := h
	if got := h.Since(&earlier); got != added {
		t.Errorf("since: %d with %v, want %d with %v", got.Count, got.Sum, added.Count, added.Sum)
	}
	if h != before || h.Since(&Histogram{}) != h {
		t.Error("Since changed its receiver, or Since an empty Histogram is not h")
	}
}

// TestCV2 checks CV2 against its definition.
func TestCV2(t *testing.T) {
	var h Histogram
	if got := h.CV2(); got != 0 {
		t.Errorf("of none: %v", got)
	}
	for range 5 {
		h.Add(0)
	}
	if got := h.CV2(); got != 0 {
		t.Errorf("of a mean of 0: %v", got)
	}
	rng := rand.New(rand.NewPCG(5, 6))
	for range 300 {
		var equal Histogram
		ns := time.Duration(rng.Int64() >> (16 + rng.IntN(47)))
		for range 1 + rng.IntN(9) {
			equal.Add(ns)
			if got := equal.CV2(); got != 0 {
				t.Fatalf("of %d times %v: %v", equal.Count, ns, got)
			}
		}
	}

	const worst = -1 // only the bound on the root is checked
	for _, test := range []struct {
		name string
		want float64
		draw func() float64
	}{
		{"exponential", 1, rng.ExpFloat64},
		{"uniform", 1. / 3, rng.Float64},
		{"half to one and a half", 1. / 12, func() float64 { return 0.5 + rng.Float64() }},
		{"Erlang-3", 1. / 3, func() float64 { return rng.ExpFloat64() + rng.ExpFloat64() + rng.ExpFloat64() }},
		{"one in ten takes a hundred times as long", worst, func() float64 {
			if rng.IntN(10) == 0 {
				return 100
			}
			return 1
		}},
		{"on both sides of a bound", worst, func() float64 { return 1.048576 + 1e-6*(rng.Float64()-0.5) }},
		{"at the ends of two buckets", worst, func() float64 { return []float64{1.048576, 1.310719}[rng.IntN(2)] }},
		{"at opposite ends of two buckets", worst, func() float64 {
			if rng.IntN(100) == 0 {
				return 8.388608
			}
			return 1.179647
		}},
		{"two far apart", worst, func() float64 { return []float64{1e-6, 1.15}[rng.IntN(2)] }},
		{"of any magnitude", worst, func() float64 { return math.Exp(20 * (rng.Float64() - 0.5)) }},
	} {
		var h Histogram
		var sum, squares float64
		const n = 50_000
		for range n {
			ns := math.Floor(1e6 * test.draw())
			h.Add(time.Duration(ns))
			sum += ns
			squares += ns * ns
		}
		exact := squares/n/(sum/n*sum/n) - 1
		got := h.CV2()
		t.Logf("%s: %.4f, exactly %.4f", test.name, got, exact)
		if off := math.Abs(math.Sqrt(got) - math.Sqrt(max(exact, 0))); off > math.Sqrt(1+exact)/16+1e-6 {
			t.Errorf("%s: %v, exactly %v, whose root is off by %v", test.name, got, exact, off)
		}
		if test.want != worst && (math.Abs(got-test.want) > 0.05*test.want || math.Abs(got-exact) > 0.015*max(exact, 1)) {
			t.Errorf("%s: %v, want about %v and %v", test.name, got, test.want, exact)
		}
	}
}
