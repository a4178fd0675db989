package patience

import (
	"math"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"
)

const ms = time.Millisecond

// near fails unless got is want, give or take a share of it.
func near(t *testing.T, what string, got, want time.Duration, share float64) {
	t.Helper()
	if math.Abs(float64(got-want)) > share*float64(want) {
		t.Errorf("%s is %v; want %v, give or take %.0f %%", what, got, want, 100*share)
	}
}

func TestEstimateOfKnownDistributions(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for name, test := range map[string]struct {
		draw func() time.Duration
		want Estimate
	}{
		"fixed":       {func() time.Duration { return 50 * ms }, Estimate{50 * ms, 0, 50 * ms, 50 * ms}},
		"uniform":     {func() time.Duration { return time.Duration(random.IntN(100)) * ms }, Estimate{50 * ms, 29 * ms, 50 * ms, 99 * ms}},
		"exponential": {func() time.Duration { return time.Duration(random.ExpFloat64() * 50e6) }, Estimate{50 * ms, 50 * ms, 35 * ms, 230 * ms}},
	} {
		synctest.Test(t, func(t *testing.T) {
			var s Service
			for range 2000 {
				time.Sleep(3 * ms)
				s.Ran(test.draw(), Done)
			}
			time.Sleep(often)
			got := s.Estimate()
			near(t, name+": mean", got.Mean, test.want.Mean, 0.15)
			near(t, name+": deviation", got.Deviation, test.want.Deviation, 0.2)
			near(t, name+": median", got.Median, test.want.Median, 0.2)
			near(t, name+": high quantile", got.High, test.want.High, 0.3)
		})
	}
}

func TestEstimateOfNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s Service
		s.Ran(ms, Failed) // says nothing
		if e := s.Estimate(); e != (Estimate{}) || !s.Stale() {
			t.Errorf("%+v, stale %t; want nothing, and stale", e, s.Stale())
		}
		s.Ran(50*ms, Done)
		if e := s.Estimate(); e != (Estimate{50 * ms, 0, 50 * ms, 50 * ms}) || s.Stale() {
			t.Errorf("after one run: %+v, stale %t; want 50ms, and not stale", e, s.Stale())
		}
		time.Sleep(window)
		if e := s.Estimate(); e.Mean != 50*ms || !s.Stale() {
			t.Errorf("after a while: %+v, stale %t; want 50ms, and stale", e, s.Stale())
		}
		time.Sleep(forget)
		if e := s.Estimate(); e != (Estimate{}) {
			t.Errorf("after a long while: %+v; want nothing", e)
		}
	})
}

// Eight workers run one job after the other.
func TestEstimateFollowsAStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s Service
		work := func(took, lasts time.Duration) {
			for end := time.Now().Add(lasts); time.Now().Before(end); {
				time.Sleep(took)
				for range 8 {
					s.Ran(took, Done)
				}
			}
			time.Sleep(often)
		}
		work(50*ms, 5*time.Second)
		near(t, "the mean before", s.Estimate().Mean, 50*ms, 0)
		work(500*ms, ms)
		near(t, "the high quantile after the first slow runs", s.Estimate().High, 500*ms, 0)
		work(500*ms, 3*time.Second)
		near(t, "the mean after 3 s", s.Estimate().Mean, 500*ms, 0)
		work(50*ms, 3*time.Second)
		near(t, "the mean when it is quick again", s.Estimate().Mean, 50*ms, 0.01)
		near(t, "the high quantile then", s.Estimate().High, 50*ms, 0.01)
	})
}

func TestEstimateIsNotFooledByQuickFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s Service
		for range 100 {
			s.Ran(50*ms, Done)
		}
		for range 1000 {
			time.Sleep(ms)
			s.Ran(ms, Failed)
		}
		time.Sleep(often)
		if e := s.Estimate(); e.Mean != 50*ms {
			t.Errorf("%+v after quick failures; want 50ms", e)
		}
		for range 100 {
			s.Ran(time.Second, Failed)
		}
		time.Sleep(often)
		if e := s.Estimate(); e.Mean < 500*ms || e.High != time.Second {
			t.Errorf("%+v after slow failures; want them counted", e)
		}
	})
}

// Runs that were broken off took longer than they did.
func TestEstimateOfRunsThatWereCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s Service
		s.Ran(30*ms, Cut)
		near(t, "the estimate of one alone", s.Estimate().Mean, 60*ms, 0)
		time.Sleep(2 * forget)
		for range 100 {
			s.Ran(50*ms, Done)
		}
		time.Sleep(often)
		for range 100 {
			s.Ran(ms, Cut)
		}
		time.Sleep(often)
		near(t, "the estimate after early cuts", s.Estimate().High, 50*ms, 0)
		for range 10 {
			s.Ran(40*ms, Cut)
		}
		time.Sleep(often)
		near(t, "the high quantile after late cuts", s.Estimate().High, 80*ms, 0)
	})
}

func TestWait(t *testing.T) {
	fixed := Estimate{Mean: 50 * ms, Median: 50 * ms, High: 50 * ms}
	exponential := Estimate{Mean: 50 * ms, Deviation: 50 * ms}
	for _, test := range []struct {
		e    Estimate
		load Load
		want time.Duration
	}{
		{Estimate{}, Load{Queued: 1000, Running: 4, Workers: 4}, 0},
		{fixed, Load{Queued: 0, Running: 3, Workers: 4}, 0},
		{fixed, Load{Queued: 0, Running: 4, Workers: 4}, 13750 * time.Microsecond},
		{fixed, Load{Queued: 79, Running: 4, Workers: 4}, 1100 * ms},
		{fixed, Load{Queued: 79, Running: 0, Workers: 0}, 0},       // paused
		{fixed, Load{Queued: 7, Running: 8, Workers: 4}, 110 * ms}, // after a shrink
		{exponential, Load{Queued: 99, Running: 8, Workers: 8}, 875 * ms},
		{fixed, Load{Queued: 10_000_000, Running: 1, Workers: 1}, 550000*time.Second + 55*ms},
	} {
		if got := test.e.Wait(test.load); got != test.want {
			t.Errorf("%+v, %+v: %v; want %v", test.e, test.load, got, test.want)
		}
	}
}

func TestNeed(t *testing.T) {
	e := Estimate{Median: 50 * ms, High: 200 * ms}
	for _, test := range []struct {
		patience time.Duration
		standing bool
		want     time.Duration
	}{
		{time.Second, true, 250 * ms},
		{time.Second, false, 100 * ms},
		{300 * ms, true, 165 * ms}, // half
		{80 * ms, true, 54 * ms},   // but the median at least
		{20 * ms, false, 51 * ms},
	} {
		if got := e.Need(test.patience, test.standing); got != test.want {
			t.Errorf("%v, standing %t: %v; want %v", test.patience, test.standing, got, test.want)
		}
	}
}

func TestDepartures(t *testing.T) {
	const s = time.Second
	repeat := func(n int, f func(time.Duration), age time.Duration) {
		for range n {
			f(age)
		}
	}
	for name, test := range map[string]struct {
		observe func(d *Departures)
		want    time.Duration
	}{
		"nothing":              {func(d *Departures) {}, 0},
		"all stay":             {func(d *Departures) { repeat(1000, d.Stayed, s) }, 0},
		"all leave":            {func(d *Departures) { repeat(20, d.Left, s) }, s},
		"few leave":            {func(d *Departures) { repeat(enough-1, d.Left, s) }, 0},
		"most stay longer":     {func(d *Departures) { repeat(20, d.Left, s); repeat(30, d.Stayed, 2*s) }, 0},
		"half leave, late":     {func(d *Departures) { repeat(20, d.Left, s); repeat(20, d.Left, 5*s) }, s},
		"less than half early": {func(d *Departures) { repeat(20, d.Left, s); repeat(30, d.Left, 5*s) }, 5 * s},
		// Quick answers say nothing of those who wait for long.
		"answered early":  {func(d *Departures) { repeat(100_000, d.Stayed, 50*ms); repeat(20, d.Left, s) }, s},
		"at once":         {func(d *Departures) { repeat(1000, d.Left, 0) }, Least},
		"absurdly late":   {func(d *Departures) { repeat(20, d.Left, 100*time.Hour) }, 9 * time.Minute},
		"before the time": {func(d *Departures) { repeat(20, d.Left, -s) }, Least},
	} {
		synctest.Test(t, func(t *testing.T) {
			var d Departures
			test.observe(&d)
			near(t, name, d.Patience(), test.want, 0.05)
		})
	}
}

func TestDeparturesAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d Departures
		for range 20 {
			d.Left(time.Second)
		}
		near(t, "patience", d.Patience(), time.Second, 0.03)
		time.Sleep(halfLife)
		near(t, "patience a minute later", d.Patience(), time.Second, 0.03)
		time.Sleep(halfLife)
		if p := d.Patience(); p != 0 {
			t.Errorf("patience is %v when few observations are left; want it not known", p)
		}
		time.Sleep(time.Hour) // for what comes then, the time before does not count
		for range 20 {
			d.Left(3 * time.Second)
		}
		time.Sleep(often)
		near(t, "the patience of others", d.Patience(), 3*time.Second, 0.03)
	})
}
