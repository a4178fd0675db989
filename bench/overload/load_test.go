package main

import (
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParseMix(t *testing.T) {
	mix, err := parseMix("urgent:10%:u=1:patience=200ms, greedy:60%:clients=1:stays,small:30%:clients=19:u=7", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	want := []class{
		{Name: "urgent", Share: 0.1, Urgency: 1, Patience: 200 * time.Millisecond},
		{Name: "greedy", Share: 0.6, Urgency: -1, Clients: 1, Patience: time.Second, Stays: true},
		{Name: "small", Share: 0.3, Urgency: 7, Clients: 19, Patience: time.Second},
	}
	if !reflect.DeepEqual(mix, want) {
		t.Errorf("got  %+v\nwant %+v", mix, want)
	}
	names := []string{mix[0].client(0), mix[1].client(0), mix[2].client(0), mix[2].client(18)}
	if want := []string{"", "greedy", "small-1", "small-19"}; !slices.Equal(names, want) {
		t.Errorf("clients have the names %q, want %q", names, want)
	}
}

func TestParseMixRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                          "want name:share%",
		"a":                         "want name:share%",
		"a b:100%":                  "want name:share%",
		"a:100":                     "want a percentage",
		"a:0%,b:100%":               "want a percentage",
		"a:NaN%":                    "want a percentage",
		"a:101%":                    "want a percentage",
		"a:50%,b:49%":               "sum to 99%; want 100%",
		"a:50%,a:50%":               "two classes",
		"a:100%:u=8":                "want u=0 to u=7",
		"a:100%:u=":                 "want u=0 to u=7",
		"a:100%:u":                  "want u=0 to u=7",
		"a:100%:clients=0":          "want clients=1",
		"a:100%:clients=1000000":    "want clients=1",
		"a:100%:patience=0":         "want patience=1ms",
		"a:100%:patience=2h":        "want patience=1ms",
		"a:100%:stays=1":            "without a value",
		"a:100%:fast":               "want name:share%",
		strings.Repeat("a:5%,", 20): "two classes",
	} {
		if _, err := parseMix(text, time.Second); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v; want one with %q", text, err, want)
		}
	}
}

func TestBounds(t *testing.T) {
	for _, bad := range [][]phase{
		{{0, time.Second}}, {{-1, time.Second}}, {{math.NaN(), time.Second}}, {{maxRate + 1, time.Second}},
		{{1, maxFor + 1}}, {{1, maxFor}, {1, 1}}, {{maxRate, maxFor}},
	} {
		if checkBounds(bad) == nil {
			t.Errorf("%v is within bounds", bad)
		}
	}
	if err := checkBounds([]phase{{100, time.Minute}, {1600, time.Minute}}); err != nil {
		t.Error(err)
	}
}

// A schedule has the rates of its phases and the shares of its classes and clients.
func TestSchedule(t *testing.T) {
	mix, err := parseMix("urgent:10%:u=1,small:90%:clients=3", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	for _, constant := range []bool{false, true} {
		arrivals := schedule(1, []phase{{1000, 20 * time.Second}, {5000, 4 * time.Second}}, mix, constant)
		if !slices.IsSortedFunc(arrivals, func(a, b arrival) int { return int(a.due - b.due) }) {
			t.Error("not in order of time")
		}
		var early, urgent float64
		clients := make([]float64, 3)
		for _, a := range arrivals {
			if a.due < 20*time.Second {
				early++
			}
			if a.class == 0 {
				urgent++
				continue
			}
			clients[a.client]++
		}
		n := float64(len(arrivals))
		near(t, "requests in the first phase", early, 20_000)
		near(t, "requests in the second phase", n-early, 20_000)
		near(t, "urgent requests", urgent, 0.1*n)
		for _, c := range clients {
			near(t, "requests of a client", c, 0.3*n)
		}
		// The gaps of a Poisson process spread as far as they are long.
		want := 1.0
		if constant {
			want = 0
		}
		if cv := spread(arrivals[:int(early)]); math.Abs(cv-want) > 0.05 {
			t.Errorf("constant %v: the gaps vary by %.3f of their mean, want %g", constant, cv, want)
		}
	}
}

// Nothing but the seed decides a schedule.
func TestScheduleIsFixed(t *testing.T) {
	of := func(seed uint64) []arrival {
		return schedule(seed, []phase{{1000, time.Second}}, []class{{Share: 0.5}, {Share: 0.5, Clients: 9}}, false)
	}
	if !reflect.DeepEqual(of(1), of(1)) {
		t.Error("the same seed gives another schedule")
	}
	if reflect.DeepEqual(of(1), of(2)) {
		t.Error("another seed gives the same schedule")
	}
}

// near allows 5 %, which is far from chance at these numbers; the seed is fixed.
func near(t *testing.T, what string, got, want float64) {
	t.Helper()
	if math.Abs(got-want) > 0.05*want {
		t.Errorf("%s: %g, want about %g", what, got, want)
	}
}

func spread(arrivals []arrival) float64 {
	var sum, squares, n float64
	for i := 1; i < len(arrivals); i++ {
		gap := (arrivals[i].due - arrivals[i-1].due).Seconds()
		sum, squares, n = sum+gap, squares+gap*gap, n+1
	}
	mean := sum / n
	return math.Sqrt(max(0, squares/n-mean*mean)) / mean
}
