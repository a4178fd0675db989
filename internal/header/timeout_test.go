package header

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestTimeout(t *testing.T) {
	const day = 24 * time.Hour
	for _, test := range []struct {
		envoy, grpc []string
		want        time.Duration
	}{
		{nil, nil, 0},
		{[]string{"1500"}, nil, 1500 * time.Millisecond},
		{[]string{" 15\t"}, nil, 15 * time.Millisecond},
		{nil, []string{"2H"}, 2 * time.Hour},
		{nil, []string{"3M"}, 3 * time.Minute},
		{nil, []string{"4S"}, 4 * time.Second},
		{nil, []string{"5m"}, 5 * time.Millisecond},
		{nil, []string{"6u"}, 6 * time.Microsecond},
		{nil, []string{"7n"}, 7},

		// The shorter of the two.
		{[]string{"1000"}, []string{"2S"}, time.Second},
		{[]string{"3000"}, []string{"2S"}, 2 * time.Second},
		{[]string{"x"}, []string{"2S"}, 2 * time.Second},
		{[]string{"3000"}, []string{"x"}, 3 * time.Second},

		// Bounded.
		{[]string{"86400001"}, nil, day},
		{[]string{strings.Repeat("9", 10_000)}, nil, day},
		{nil, []string{"99999999H"}, day},

		// Absent.
		{[]string{""}, []string{""}, 0},
		{[]string{"0"}, []string{"0S"}, 0},
		{[]string{"-1"}, []string{"-1S"}, 0},
		{[]string{"+1"}, []string{"S"}, 0},
		{[]string{"1.5"}, []string{"1.5S"}, 0},
		{[]string{"1e3"}, []string{"1s"}, 0},
		{[]string{"1 0"}, []string{"1 S"}, 0},
		{[]string{"0x10"}, []string{"10"}, 0},
		{[]string{"1ms"}, []string{"123456789S"}, 0},
		{[]string{"1", "1"}, []string{"1S", "1S"}, 0},
		{[]string{"١"}, []string{"1\xff"}, 0},
	} {
		h := http.Header{"X-Envoy-Expected-Rq-Timeout-Ms": test.envoy, "Grpc-Timeout": test.grpc}
		if got := Timeout(h); got != test.want {
			t.Errorf("%.40q, %.40q: %v; want %v", test.envoy, test.grpc, got, test.want)
		}
	}
}

func FuzzTimeout(f *testing.F) {
	f.Add("1500", "2S")
	f.Fuzz(func(t *testing.T, envoy, grpc string) {
		if got := Timeout(http.Header{"X-Envoy-Expected-Rq-Timeout-Ms": {envoy}, "Grpc-Timeout": {grpc}}); got < 0 || got > maxTimeout {
			t.Errorf("%q, %q: %v; want 0 to %v", envoy, grpc, got, maxTimeout)
		}
	})
}
