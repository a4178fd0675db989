package metrics

import (
	"maps"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"holdfast"
	"holdfast/histogram"
)

// fill sets each field of a struct of statistics to a number of its own, and returns
// the names of the fields by these numbers.
func fill(t *testing.T, stats any, next *int64, names map[float64]string) {
	t.Helper()
	v := reflect.ValueOf(stats).Elem()
	for i := range v.NumField() {
		*next++
		name := v.Type().Field(i).Name
		names[float64(*next)] = name
		switch f := v.Field(i).Addr().Interface().(type) {
		case *int:
			*f = int(*next)
		case *int64:
			*f = *next
		case *uint64:
			*f = uint64(*next)
		case *time.Duration:
			*f = time.Duration(*next) * time.Second
		case *holdfast.Overflow:
			*f = holdfast.DropOldest
		case *histogram.Histogram:
			f.Add(time.Duration(*next) * time.Second)
		default:
			t.Fatalf("%s is a %T, which the test does not handle", name, f)
		}
	}
}

// Every figure of the statistics is exported, including ones added later.
func TestEveryFieldIsExported(t *testing.T) {
	s := &Snapshot{Jobs: new(holdfast.JobsStats)}
	want, next := map[float64]string{}, int64(1)
	fill(t, &s.Dispatcher, &next, want)
	fill(t, s.Jobs, &next, want)
	for _, f := range Families(true) {
		for _, sample := range f.Samples(s) {
			if f.Name == "holdfast_overflow_policy" {
				if applies := sample.Value == 1; applies != (sample.LabelValue == "drop-oldest") {
					t.Errorf("the policy %s is %v", sample.LabelValue, sample.Value)
				}
				maps.DeleteFunc(want, func(_ float64, name string) bool { return name == "Overflow" })
				continue
			}
			v := sample.Value
			if f.Kind == Histogram {
				v = sample.Histogram.Sum / float64(time.Second)
			}
			if want[v] == "" {
				t.Errorf("%s has %v, which is not the value of a field, or is exported twice", f.Name, v)
			}
			delete(want, v)
		}
	}
	for _, name := range want {
		t.Errorf("%s is not exported", name)
	}
}

// Without a Jobs nothing of it is asked for.
func TestWithoutJobs(t *testing.T) {
	for _, f := range Families(false) {
		f.Samples(new(Snapshot))
	}
}

func TestBuckets(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, doublings := range []int{0, 1, 40} {
		var h histogram.Histogram
		var all []time.Duration
		add := func(d time.Duration) { h.Add(d); all = append(all, d) }
		check := func() {
			t.Helper()
			g := h
			for range doublings {
				g.Merge(&g)
			}
			got := Buckets(&g)
			if len(got) != len(bounds) {
				t.Fatalf("%d buckets, want %d", len(got), len(bounds))
			}
			for i, bound := range bounds {
				var want uint64
				for _, d := range all {
					if d <= bound {
						want++
					}
				}
				if want <<= doublings; got[i] != (Bucket{bound.Seconds(), want}) {
					t.Errorf("of %d << %d: %v, want %d up to %v", len(all), doublings, got[i], want, bound)
				}
			}
		}
		check()
		add(0)
		check()
		for _, bound := range bounds {
			add(bound)
			add(bound + 1) // falls into the next bucket
		}
		check()
		for range 1000 {
			add(time.Duration(rnd.Uint64() >> (1 + rnd.IntN(60))))
		}
		check()
	}
}

// The cost must not grow with the number of jobs: the histogram counts 2^40.
func BenchmarkBuckets(b *testing.B) {
	var h histogram.Histogram
	for i := range 1000000 {
		h.Add(time.Duration(i) * time.Microsecond)
	}
	for range 20 {
		h.Merge(&h)
	}
	for b.Loop() {
		Buckets(&h)
	}
}
