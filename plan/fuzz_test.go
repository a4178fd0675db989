package plan

import (
	"encoding/json"
	"errors"
	"flag"
	"io"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// check fails the test if a plan contradicts itself or its load, or if an error
// does not name a field.
func check(t *testing.T, l Load) Plan {
	t.Helper()
	p, err := For(l)
	if err != nil {
		var field *FieldError
		if !errors.As(err, &field) || flagOf[field.Field] == "" || !strings.HasPrefix(err.Error(), field.Field) {
			t.Fatalf("%+v: %v", l, err)
		}
		return p
	}
	if _, err := json.Marshal(p); err != nil { // a NaN or an infinity
		t.Fatalf("%+v: %v", l, err)
	}
	if err := p.write(io.Discard); err != nil {
		t.Fatal(err)
	}
	atLeast0 := []float64{p.Rate, p.Service, p.Erlangs, p.Utilisation, p.Refused, p.AcceptedWait, p.FullWait, p.Backlog, p.Drain + 1, p.Capacity, p.MaxRate}
	if w := p.Waiting; w != nil {
		atLeast0 = append(atLeast0, w.Probability, w.Mean, w.P50, w.P90-w.P50, w.P99-w.P90)
		if w.Probability > 1 {
			t.Errorf("%+v: %+v", l, w)
		}
	}
	for i, v := range atLeast0 {
		if !(v >= 0) {
			t.Errorf("%+v: value %d is %v: %+v", l, i, v, p)
		}
	}
	if p.Refused > 1 || len(p.Reasons) == 0 || p.Workers < 1 || p.Workers > MaxWorkers || p.Queue < 0 || p.Queue > MaxQueue || p.MaxRate > p.Capacity ||
		l.Workers > 0 && p.Workers != l.Workers || l.Queue > 0 && p.Queue != l.Queue || l.Queue == -1 && p.Queue != 0 || l.Rate > 0 && p.Rate != l.Rate ||
		(p.Waiting == nil) != (p.Workers < p.LeastWorkers) {
		t.Errorf("%+v: %+v", l, p)
	}
	if !p.Holds {
		return p
	}
	if b := p.Bounds; p.Waiting == nil || b.Refusals == nil || p.Queue < *b.Refusals || b.Burst != nil && p.Queue < *b.Burst || b.Deadline != nil && p.Queue > *b.Deadline ||
		p.MaxRate < p.Rate || l.MayWait > 0 && p.Waiting.Probability > l.MayWait || l.MayRefuse > 0 && p.Refused > l.MayRefuse {
		t.Errorf("%+v: does not hold: %+v", l, p)
	}
	if l.Workers == 0 && p.Workers > 1 {
		l.Workers = p.Workers - 1
		if q, err := For(l); err != nil || q.Holds {
			t.Errorf("%+v: holds with a worker less: %+v, %v", l, q, err)
		}
	}
	return p
}

// TestRandom draws plausible loads, which fuzzing rarely produces.
func TestRandom(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	logUniform := func(low, high float64) float64 { return low * math.Pow(high/low, r.Float64()) }
	duration := func(low, high float64) time.Duration { return time.Duration(1e9 * logUniform(low, high)) }
	holds := 0
	const n = 3000
	for range n {
		l := Load{Service: duration(1e-6, 1e3)}
		l.Rate = logUniform(1e-3, 2000) / l.Service.Seconds()
		for _, set := range []func(){
			func() { l.CV2 = logUniform(.01, 100) },
			func() { l.CV2 = -1 },
			func() { l.ArrivalCV2 = logUniform(.01, 100) },
			func() { l.ArrivalCV2 = -1 },
			func() { l.Burst, l.BurstFor = logUniform(1, 100), duration(1e-3, 1e4) },
			func() { l.Deadline = max(1, time.Duration(logUniform(1, 1e4)*float64(l.Service))) },
			func() { l.MayWait = logUniform(1e-9, 1) },
			func() { l.MayRefuse = logUniform(1e-12, 1) },
			func() { l.Workers = int(logUniform(1, 4000)) },
			func() { l.Queue = int(logUniform(1, 1e5)) - 2 },
		} {
			if r.IntN(3) == 0 {
				set()
			}
		}
		if l.Queue == -1 && r.IntN(2) == 0 {
			l.Queue = 0
		}
		if l.Workers > 0 && r.IntN(4) == 0 {
			l.Rate = 0
		}
		if check(t, l).Holds {
			holds++
		}
	}
	if holds < n/4 || holds > n*19/20 {
		t.Errorf("%d of %d plans hold; want some of both", holds, n)
	}
}

// FuzzPlan checks that any load gives a consistent plan, or an error that names a
// field.
func FuzzPlan(f *testing.F) {
	f.Add(100.0, int64(50*time.Millisecond), 0.0, 0.0, 5.0, int64(2*time.Second), int64(time.Second), 0.0, 0.0, 0, 0)
	f.Add(0.0, int64(time.Second), -1.0, -1.0, 0.0, int64(0), int64(0), 1.0, 1e-12, 100, -1)
	f.Add(120.0, int64(time.Second), 7.0, 3.0, 1.0, int64(1), int64(1), 0.5, 0.2, 100, 200)
	f.Add(1e-300, int64(1), 1e6, 1e6, 1e6, int64(math.MaxInt64), int64(math.MaxInt64), 1e-300, 1.0, 3, 10_000_000)
	f.Add(5e-324, int64(math.MaxInt64), 1e-300, 1e-300, 1.0, int64(1), int64(0), 1.0, 0.5, 0, 1)
	f.Add(math.Inf(1), int64(-1), math.NaN(), math.NaN(), -1.0, int64(-1), int64(-1), math.NaN(), -1.0, -1, -2)
	f.Fuzz(func(t *testing.T, rate float64, service int64, cv2, arrivalCV2, burst float64, burstFor, deadline int64, mayWait, mayRefuse float64, workers, queue int) {
		if rate*float64(service) > 3e13 || workers > 30_000 {
			t.Skip("takes tens of milliseconds, too slow for fuzzing; see TestExtremes and BenchmarkFor")
		}
		l := Load{rate, time.Duration(service), cv2, arrivalCV2, burst, time.Duration(burstFor), time.Duration(deadline), mayWait, mayRefuse, workers, queue}
		check(t, l)
	})
}

// FuzzFlags checks that any arguments give output, help or an error with a text.
func FuzzFlags(f *testing.F) {
	for _, args := range []string{"", "-h", exampleFlags, exampleFlags + " -json", "-service 1s -workers 100 -queue 0 -cv2 0", "-rate 1e6 -service 1s", "-rate 0x1p-1074 -service 2562047h -may-wait 1", "--rate=1 -service=1ns -json=false", "-rate"} {
		f.Add(args)
	}
	f.Fuzz(func(t *testing.T, line string) {
		var out strings.Builder
		switch err := Run(strings.Fields(line), &out); {
		case err == nil && strings.HasPrefix(out.String(), "{"):
			var p Plan
			decoder := json.NewDecoder(strings.NewReader(out.String()))
			decoder.DisallowUnknownFields()
			if err := decoder.Decode(&p); err != nil {
				t.Errorf("%q: %v", line, err)
			}
			fallthrough
		case err == nil:
			if s := out.String(); s == "" || strings.Contains(s, "NaN") || strings.Contains(s, "Inf") || strings.Contains(s, "%!") {
				t.Errorf("%q: %s", line, s)
			}
		case errors.Is(err, flag.ErrHelp):
			if !strings.HasPrefix(out.String(), usageHead) {
				t.Errorf("%q: %s", line, out.String())
			}
		case err.Error() == "" || out.Len() > 0:
			t.Errorf("%q: %v after %q", line, err, out.String())
		}
	})
}
