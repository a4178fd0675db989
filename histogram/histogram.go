// Package histogram counts durations of any magnitude, at a few nanoseconds each.
// Unlike a histogram with hand-picked bounds, it is accurate to an eighth at any
// quantile, from nanoseconds to hours.
package histogram

import (
	"math"
	"math/bits"
	"time"
)

// A Histogram counts durations in buckets whose bounds are at most an eighth
// apart, from 1 ns to 39 hours. Longer durations count in the last bucket. The
// zero Histogram is empty and ready to use. It has a fixed size and is copied by
// assignment. It is not safe for concurrent use.
type Histogram struct {
	Count   uint64
	Sum     float64 // of the durations, in nanoseconds
	buckets [buckets]uint64
}

const (
	subBits = 3 // each power of two is divided into 8
	maxBits = 47
	buckets = (maxBits - subBits + 1) << subBits
)

// Add counts d. A negative d counts as 0: clock readings from different processors
// can be out of order.
func (h *Histogram) Add(d time.Duration) {
	ns := max(int64(d), 0)
	h.Count++
	h.Sum += float64(ns)
	h.buckets[bucket(uint64(ns))]++
}

func bucket(ns uint64) int {
	shift := max(bits.Len64(ns)-subBits-1, 0)
	return min(shift<<subBits+int(ns>>shift), buckets-1)
}

// upper returns the greatest duration that falls into bucket i, in nanoseconds.
func upper(i int) int64 {
	if i < 1<<subBits {
		return int64(i)
	}
	shift := i>>subBits - 1
	return int64(i-shift<<subBits+1)<<shift - 1
}

// Merge adds the counts of o to h.
func (h *Histogram) Merge(o *Histogram) {
	h.Count += o.Count
	h.Sum += o.Sum
	for i, n := range o.buckets {
		h.buckets[i] += n
	}
}

// Since returns the durations that were added to h after earlier, a copy of h, was
// taken.
func (h *Histogram) Since(earlier *Histogram) Histogram {
	d := Histogram{Count: h.Count - earlier.Count, Sum: h.Sum - earlier.Sum}
	for i := range d.buckets {
		d.buckets[i] = h.buckets[i] - earlier.buckets[i]
	}
	return d
}

// Mean returns the mean duration, or 0 if h is empty.
func (h *Histogram) Mean() time.Duration {
	if h.Count == 0 {
		return 0
	}
	if mean := math.Round(h.Sum / float64(h.Count)); mean < math.MaxInt64 {
		return time.Duration(mean)
	}
	return math.MaxInt64
}

// CV2 returns the squared coefficient of variation: the variance of the durations
// divided by the square of their mean. It is 0 if there are fewer than two. Each
// duration counts as the middle of its bucket, so the root of CV2 is accurate to
// √(1+CV2)/16 for any distribution, and CV2 to about a hundredth unless a few
// buckets hold most durations. If all durations share a bucket, as equal ones do,
// CV2 is 0. It is meaningless if some are longer than 39 hours.
func (h *Histogram) CV2() float64 {
	if h.Count < 2 || h.Sum <= 0 {
		return 0
	}
	n := float64(h.Count)
	// The variance is taken around the mean of the middles, which can differ from
	// the exact mean. It is divided by the square of the exact mean.
	center := 0.0
	for i, count := range h.buckets {
		center += float64(count) / n * middle(i)
	}
	variance := 0.0
	for i, count := range h.buckets {
		variance += float64(count) / n * (middle(i) - center) * (middle(i) - center)
	}
	mean := h.Sum / n
	return variance / (mean * mean)
}

// middle returns the duration in the middle of bucket i, in nanoseconds.
func middle(i int) float64 {
	lower := int64(0)
	if i > 0 {
		lower = upper(i-1) + 1
	}
	return float64(lower+upper(i)) / 2
}

// Quantile returns the q-quantile of the durations, or up to an eighth more. A q
// below 0 or NaN counts as 0, a q above 1 counts as 1. Quantile returns 0 if h is
// empty.
func (h *Histogram) Quantile(q float64) time.Duration {
	if h.Count == 0 {
		return 0
	}
	rank := uint64(1)
	if q > 0 {
		rank = max(uint64(math.Ceil(min(q, 1)*float64(h.Count))), 1)
	}
	i := 0
	for seen := h.buckets[0]; seen < rank && i < buckets-1; seen += h.buckets[i] {
		i++
	}
	return time.Duration(upper(i))
}

// CountUpTo returns the number of durations in buckets that end at or before d. It
// is exact where a bucket ends: every power of two is divided into eight buckets,
// the last of which ends at 2^n−1 nanoseconds.
func (h *Histogram) CountUpTo(d time.Duration) uint64 {
	n := uint64(0)
	for i, count := range h.buckets {
		if upper(i) > int64(d) {
			break
		}
		n += count
	}
	return n
}
