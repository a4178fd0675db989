package holdfast

import (
	"encoding/binary"
	"math"
	"testing"
)

// FuzzOverflow: a text is the name of exactly one policy, or changes nothing.
func FuzzOverflow(f *testing.F) {
	for _, seed := range []string{"block", "reject", "drop-oldest", "", "Block", "BLOCK", " block", "block\x00", "drop_oldest", "dropoldest", "0", "Overflow(1)", "\xff\xfe", "\u212aeject"} {
		f.Add([]byte(seed), uint8(0))
		f.Add([]byte(seed), uint8(9))
	}
	f.Fuzz(func(t *testing.T, text []byte, before uint8) {
		o := Overflow(before)
		if err := o.UnmarshalText(text); err != nil {
			if o != Overflow(before) {
				t.Fatalf("%q: %v, and changed to %v", text, err, o)
			}
			return
		}
		back, err := o.MarshalText()
		if err != nil || string(back) != string(text) || o > DropOldest {
			t.Fatalf("%q gives %v, which gives %q, %v", text, o, back, err)
		}
	})
}

// FuzzHistogram: whatever the durations, a quantile is one of them, or an eighth
// more at most.
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
			h.add(ns)
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
		if mean := h.Mean(); h.Count > 0 && (mean < 0 || float64(mean) > h.Sum+1) {
			t.Fatalf("mean %v of sum %v", mean, h.Sum)
		}
	})
}
