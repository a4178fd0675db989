package main

import (
	"math"
	"reflect"
	"testing"
	"time"
)

func TestQuantile(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(i + 1)
	}
	for _, c := range []struct {
		of      []float64
		q, want float64
	}{
		{nil, 0.5, 0}, {[]float64{7}, 0.5, 7}, {[]float64{7}, 0.999, 7}, {[]float64{1, 2}, 0.5, 1}, {[]float64{1, 2, 3}, 0.5, 2},
		{hundred, 0, 1}, {hundred, 0.01, 1}, {hundred, 0.5, 50}, {hundred, 0.99, 99}, {hundred, 0.991, 100}, {hundred, 1, 100},
	} {
		if got := quantile(c.of, c.q); got != c.want {
			t.Errorf("quantile %g of %d values is %g, want %g", c.q, len(c.of), got, c.want)
		}
	}
}

func TestJain(t *testing.T) {
	for _, c := range []struct {
		x    []float64
		want float64
	}{
		{[]float64{5, 5, 5, 5}, 1}, {[]float64{8, 0, 0, 0}, 0.25}, {[]float64{1, 3}, 0.8}, {[]float64{0, 0}, 0},
	} {
		if got := jain(c.x); math.Abs(got-c.want) > 1e-12 {
			t.Errorf("Jain's index of %v is %g, want %g", c.x, got, c.want)
		}
	}
}

func TestSummarize(t *testing.T) {
	const ms = time.Millisecond
	mix := []class{{Name: "a", Clients: 2}, {Name: "b"}}
	var samples []sample
	add := func(class, client int32, due, took time.Duration, o outcome) {
		samples = append(samples, sample{arrival{due, class, client}, took, o})
	}
	add(0, 0, 900*ms, 50*ms, good)   // before the window
	add(0, 0, 950*ms, 100*ms, good)  // due before it, answered in it
	add(0, 0, 1000*ms, 100*ms, good) // the first instant is in it
	add(0, 0, 1200*ms, 300*ms, good)
	add(0, 1, 1300*ms, 200*ms, good)
	add(0, 1, 1400*ms, 30*ms, refused)
	add(0, 1, 1500*ms, 10*ms, refused)
	add(1, 0, 1600*ms, 1000*ms, left)
	add(1, 0, 1700*ms, 2000*ms, late)
	add(1, 0, 1800*ms, 5*ms, failed)
	add(1, 0, 2900*ms, 400*ms, good) // due in it, answered after it
	add(1, 0, 2950*ms, 0, unsent)
	add(1, 0, 3000*ms, 10*ms, good) // after the window

	got := summarize(samples, mix, window{1 * time.Second, 3 * time.Second})
	want := []summary{
		{Name: "all", Sent: 9, Good: 4, Late: 1, Refused: 2, Failed: 1, Left: 1, Unsent: 1, Goodput: 2, InTime: 4.0 / 9,
			P50: 0.2, P99: 0.4, P999: 0.4, RefusedP50: 0.01, RefusedP99: 0.03},
		{Name: "a", Sent: 5, Good: 3, Refused: 2, Goodput: 2, InTime: 0.6,
			P50: 0.2, P99: 0.3, P999: 0.3, RefusedP50: 0.01, RefusedP99: 0.03, Jain: 0.9},
		{Name: "b", Sent: 4, Good: 1, Late: 1, Failed: 1, Left: 1, Unsent: 1, InTime: 0.25, P50: 0.4, P99: 0.4, P999: 0.4},
	}
	for i := range want {
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Errorf("got  %+v\nwant %+v", got[i], want[i])
		}
	}
	if one := summarize(samples[:7], mix[:1], window{time.Second, 3 * time.Second}); len(one) != 1 || one[0].Jain != 0.9 {
		t.Errorf("of a single class: %+v; want one summary, with the index of its clients", one)
	}
}

func TestBySecond(t *testing.T) {
	const ms = time.Millisecond
	var samples []sample
	add := func(due, took time.Duration, o outcome) {
		samples = append(samples, sample{arrival{due: due}, took, o})
	}
	add(500*ms, 600*ms, good) // due before the window: an answer in its first second
	add(1100*ms, 100*ms, good)
	add(1200*ms, 200*ms, good) // slow
	add(1300*ms, 50*ms, refused)
	add(1900*ms, 150*ms, good) // due in the first second, answered in the second
	add(2500*ms, 900*ms, good) // answered after the window
	add(2600*ms, 0, unsent)
	got := bySecond(samples, window{1 * time.Second, 3 * time.Second}, 150*ms)
	want := []second{{Offered: 4, Good: 3, Slow: 2, P99: 0.2}, {Offered: 1, Good: 1, Slow: 1, P99: 0.9}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestRecovery(t *testing.T) {
	of := func(slow ...int) []second {
		var list []second
		for _, s := range slow {
			list = append(list, second{Offered: 100, Slow: s})
		}
		return list
	}
	for _, c := range []struct {
		list []second
		want int
	}{
		{of(1, 90, 1, 2, 1), 0},
		{of(1, 90, 50, 1, 2, 1, 1), 1},
		{of(1, 90, 3, 3, 3), 0},
		{of(1, 90, 3, 3, 4), -1},
		{of(1, 90, 1, 1), -1}, // too short to say
		{of(1, 90, 1, 50, 1, 1, 1), 2},
	} {
		if got := recovery(c.list, 2); got != c.want {
			t.Errorf("%v: back after %d s, want %d", c.list, got, c.want)
		}
	}
}
