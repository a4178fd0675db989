package holdfast

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

func TestBucketsCoverEachDurationOnce(t *testing.T) {
	for i := range buckets - 1 {
		if got := bucket(uint64(upper(i))); got != i {
			t.Fatalf("the upper bound %d of bucket %d falls into %d", upper(i), i, got)
		}
		if got := bucket(uint64(upper(i)) + 1); got != i+1 {
			t.Fatalf("%d falls into bucket %d, want %d", upper(i)+1, got, i+1)
		}
	}
	if got := bucket(math.MaxUint64); got != buckets-1 {
		t.Errorf("the greatest duration falls into bucket %d, want the last", got)
	}
}

func TestHistogramQuantiles(t *testing.T) {
	var h Histogram
	if h.Quantile(0.5) != 0 || h.Mean() != 0 {
		t.Errorf("empty: %v, %v", h.Quantile(0.5), h.Mean())
	}
	for n := 1; n <= 100; n++ {
		h.add(int64(n) * int64(time.Millisecond))
	}
	h.add(-5) // a clock that lags counts as no time
	if got, want := h.Mean(), 50*time.Millisecond; got != want {
		t.Errorf("mean %v, want %v", got, want)
	}
	for q, want := range map[float64]time.Duration{0: 0, -1: 0, math.NaN(): 0, 0.5: 50 * time.Millisecond, 0.99: 99 * time.Millisecond, 1: 100 * time.Millisecond, 7: 100 * time.Millisecond} {
		if got := h.Quantile(q); got < want || got > want+want/8 {
			t.Errorf("quantile %v is %v, want %v to an eighth more", q, got, want)
		}
	}
}

func FuzzHistogram(f *testing.F) {
	f.Add(uint64(1), 0.5)
	f.Add(uint64(7), 0.99)
	f.Add(uint64(math.MaxUint64), 1.0)
	f.Fuzz(func(t *testing.T, seed uint64, q float64) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var h Histogram
		least, most := int64(math.MaxInt64), int64(0)
		for range 1 + rng.IntN(50) {
			ns := int64(rng.Uint64() >> (17 + rng.IntN(47))) // up to 39 hours
			h.add(ns)
			least, most = min(least, ns), max(most, ns)
		}
		got := int64(h.Quantile(q))
		if got < least || got > most+most/8 {
			t.Errorf("quantile %v is %d, of durations from %d to %d", q, got, least, most)
		}
		if h.Quantile(q) > h.Quantile(1) {
			t.Errorf("quantile %v is beyond the greatest", q)
		}
	})
}

func FuzzOverflow(f *testing.F) {
	for _, s := range []string{"block", "reject", "drop-oldest", "", "Block", "drop_oldest", "block "} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		o := Overflow(77)
		if err := o.UnmarshalText([]byte(s)); err != nil {
			if o != 77 {
				t.Errorf("%q is refused, but changes the policy to %v", s, o)
			}
			return
		}
		text, err := o.MarshalText()
		if err != nil || string(text) != s || o.String() != s {
			t.Errorf("%q becomes %q, %v", s, text, err)
		}
	})
}

func TestNamesOfStatesAndPolicies(t *testing.T) {
	if got := Abandoned.String() + " " + State(99).String() + " " + Overflow(9).String(); got != "abandoned State(99) Overflow(9)" {
		t.Error(got)
	}
	if _, err := Overflow(9).MarshalText(); err == nil {
		t.Error("a policy that there is not has a text")
	}
	for s := Queued; s <= Abandoned; s++ {
		if s.Ended() != (s != Queued && s != Running) {
			t.Errorf("%v: Ended is %v", s, s.Ended())
		}
	}
}
