package httpjob_test

import (
	"context"
	"flag"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
)

var lasts = flag.Duration("lasts", 10*time.Second, "how long the loads of the goodput test last")

// A load is an open-loop load: its clients come at random, whatever became of others,
// and leave when their patience has ended.
type load struct {
	service  func(r *rand.Rand, at time.Duration) time.Duration
	rate     float64 // requests a second
	patience time.Duration
	warm     time.Duration // not counted, but in the counts by second
	lasts    time.Duration
}

// counts are what became of the requests.
type counts struct {
	sent, good, refused, left int
	begun, vain               int           // handler calls, and those whose client left
	work                      time.Duration // that the good ones took
	late                      time.Duration // the 99 % quantile of the time that refusals took
	goodAt, vainAt            [60]int       // by the second in which the requests came
}

// A visit is what the handler of a load finds in the context.
type visit struct {
	service time.Duration
	begun   bool
}

type visitKey struct{}

// run sends the load to a handler of Queued. It must be called in a bubble.
func (l load) run(j *holdfast.Jobs) (c counts) {
	random := rand.New(rand.NewPCG(1, 2))
	var mu sync.Mutex
	var refusals []time.Duration
	begin := time.Now()
	h := j.Queued(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v := r.Context().Value(visitKey{}).(*visit)
		v.begun = true
		select {
		case <-time.After(v.service):
		case <-r.Context().Done():
			w.WriteHeader(http.StatusBadGateway) // as a gateway does
		}
	}))
	client := func(took time.Duration) {
		due := time.Now()
		v := &visit{service: took}
		ctx, leave := context.WithCancel(context.WithValue(context.Background(), visitKey{}, v))
		defer leave()
		defer time.AfterFunc(l.patience, leave).Stop()
		status := call(h, httptest.NewRequestWithContext(ctx, "GET", "/", nil))
		mu.Lock()
		defer mu.Unlock()
		at := int(due.Sub(begin).Seconds())
		good := ctx.Err() == nil && status == http.StatusOK
		if good {
			c.goodAt[at]++
		} else if v.begun {
			c.vainAt[at]++
		}
		if due.Sub(begin) < l.warm {
			return
		}
		c.sent++
		if v.begun {
			c.begun++
		}
		switch {
		case good:
			c.good++
			c.work += took
		case ctx.Err() != nil:
			c.left++
			if v.begun {
				c.vain++
			}
		default:
			c.refused++
			refusals = append(refusals, time.Since(due))
		}
	}
	var clients sync.WaitGroup
	for {
		time.Sleep(time.Duration(random.ExpFloat64() / l.rate * 1e9))
		at := time.Since(begin)
		if at >= l.warm+l.lasts {
			break
		}
		took := l.service(random, at)
		clients.Go(func() { client(took) })
	}
	clients.Wait()
	if slices.Sort(refusals); len(refusals) > 0 {
		c.late = refusals[len(refusals)*99/100]
	}
	return c
}

// call calls h and returns the status.
func call(h http.Handler, r *http.Request) int {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code
}

const ms = time.Millisecond

// distributions of the service time, each with the capacity of 8 workers
var distributions = []struct {
	name     string
	capacity float64
	service  func(*rand.Rand, time.Duration) time.Duration
}{
	{"exponential", 160, func(r *rand.Rand, _ time.Duration) time.Duration { return time.Duration(r.ExpFloat64() * 50e6) }},
	{"fixed", 160, func(*rand.Rand, time.Duration) time.Duration { return 50 * ms }},
	{"slow", 8 / 0.14, func(r *rand.Rand, _ time.Duration) time.Duration {
		if r.IntN(5) == 0 {
			return 500 * ms
		}
		return 50 * ms
	}},
}

func queue(tb testing.TB, workers, places int, cfg holdfast.JobsConfig) (*holdfast.Dispatcher, *holdfast.Jobs) {
	d, err := holdfast.New(holdfast.Config{Workers: workers, Queue: places})
	if err != nil {
		tb.Fatal(err)
	}
	j, err := holdfast.NewJobs(d, cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { d.Shutdown(context.Background()) })
	return d, j
}

// Clients wait for a second, which the server is told or has to learn.
func TestGoodputUnderOverload(t *testing.T) {
	for _, set := range []time.Duration{time.Second, 0} {
		for _, dist := range distributions {
			for _, offered := range []float64{0.8, 1.1, 2, 5, 10} {
				synctest.Test(t, func(t *testing.T) {
					d, j := queue(t, 8, 200, holdfast.JobsConfig{Patience: set})
					c := load{dist.service, dist.capacity * offered, time.Second, 4 * time.Second, *lasts}.run(j)
					// Of what 8 workers can do, so that it does not matter which service times came up.
					goodput := 100 * c.work.Seconds() / (8 * lasts.Seconds())
					refused := 100 * float64(c.refused) / float64(c.sent)
					late := j.Stats()
					vain := 100 * float64(c.vain) / float64(c.begun)
					t.Logf("%-11s %4v %4.1fx: goodput %5.1f %%, refused %5.2f %%, 99 %% of them within %v, in vain %.2f %%, %d refused at once, %d expired", dist.name, set, offered, goodput, refused, c.late, vain, late.RefusedLate, late.Expired)
					least := 90.0 // where it has to be learned, or the load is about what the workers can do
					if set > 0 && offered >= 2 {
						least = 95
					} else if offered == 1.1 {
						least = 80
					}
					switch {
					case offered < 1 && refused+vain > 0.1:
						t.Errorf("%s, %v, %gx: refused %.2f %%, in vain %.2f %%; want at most 0.1 %%", dist.name, set, offered, refused, vain)
					case offered > 1 && (goodput < least || vain > 3):
						t.Errorf("%s, %v, %gx: goodput %.1f %%, in vain %.2f %%; want at least %v %%, at most 3 %%", dist.name, set, offered, goodput, vain, least)
					case offered >= 2 && set > 0 && late.Expired*20 > late.RefusedLate:
						t.Errorf("%s, %v, %gx: %d expired, %d were refused at once; want at most one for 20", dist.name, set, offered, late.Expired, late.RefusedLate)
					}
					conserved(t, d)
				})
			}
		}
	}
}

// conserved fails unless every request has been accounted for, and none is left.
func conserved(t *testing.T, d *holdfast.Dispatcher) {
	t.Helper()
	time.Sleep(time.Hour)
	st := d.Stats()
	if ended := st.Succeeded + st.Failed + st.Panicked + st.Canceled + st.Dropped + st.Abandoned; st.Accepted != ended || st.Queued+st.Running+st.Blocked != 0 {
		t.Errorf("%d accepted, %d ended, %d queued, %d running, %d blocked", st.Accepted, ended, st.Queued, st.Running, st.Blocked)
	}
}

// The service becomes ten times as slow for ten seconds.
func TestEstimateFollowsTheService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, j := queue(t, 8, 200, holdfast.JobsConfig{Patience: time.Second})
		c := load{func(_ *rand.Rand, at time.Duration) time.Duration {
			if at > 5*time.Second && at < 15*time.Second {
				return 500 * ms
			}
			return 50 * ms
		}, 320, time.Second, 0, 25 * time.Second}.run(j)
		t.Logf("good %v, in vain %v", c.goodAt[:25], c.vainAt[:25])
		sum := func(of [60]int, from, to int) (n int) {
			for _, m := range of[from:to] {
				n += m
			}
			return n
		}
		if good := sum(c.goodAt, 8, 14); good < 6*16*9/10 {
			t.Errorf("while it is slow, %d in 6 s; want 9 of 10 of 96", good)
		}
		if good := sum(c.goodAt, 18, 24); good < 6*160*9/10 {
			t.Errorf("when it is quick again, %d in 6 s; want 9 of 10 of 960", good)
		}
		if vain := sum(c.vainAt, 0, 25); vain > 60 {
			t.Errorf("%d were begun in vain; want no more than in the first moments", vain)
		}
	})
}

// 100 requests at once, on 4 workers of 50 ms: the last is answered after 1.25 s.
func TestABurstIsServed(t *testing.T) {
	for _, places := range []int{0, 200} {
		synctest.Test(t, func(t *testing.T) {
			_, j := queue(t, 4, places, holdfast.JobsConfig{})
			h := j.Queued(sleeping(50 * ms))
			var answered atomic.Int32
			for burst := range 3 {
				begin := time.Now()
				var clients sync.WaitGroup
				for range 100 {
					clients.Go(func() {
						if status := call(h, httptest.NewRequest("GET", "/", nil)); status == http.StatusOK {
							answered.Add(1)
						}
					})
				}
				clients.Wait()
				if n := answered.Swap(0); n != 100 || time.Since(begin) != 1250*ms {
					t.Errorf("burst %d: %d answered in %v; want 100 in 1.25s", burst, n, time.Since(begin))
				}
			}
		})
	}
}

func sleeping(d time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { time.Sleep(d) })
}

// busy lets n requests of a handler of Queued begin or wait, one after the other.
func busy(h http.Handler, n int) {
	for range n {
		go call(h, httptest.NewRequest("GET", "/", nil))
		synctest.Wait()
	}
}

func TestRefusedAtTheDoor(t *testing.T) {
	for name, test := range map[string]struct {
		set    time.Duration
		header http.Header
		in     time.Duration // deadline of the context
		want   int
	}{
		"no patience":         {-1, nil, 0, 200},
		"not known":           {0, nil, 0, 200},
		"long enough":         {540 * ms, nil, 0, 200},
		"too short":           {500 * ms, nil, 0, 503},
		"the operator's less": {500 * ms, http.Header{"Prefer": {"wait=1"}}, 0, 503},
		"wait, long enough":   {0, http.Header{"Prefer": {"wait=1"}}, 0, 200},
		"grpc, long enough":   {0, http.Header{"Grpc-Timeout": {"540m"}}, 0, 200},
		"grpc, too short":     {0, http.Header{"Grpc-Timeout": {"500m"}}, 0, 503},
		"although none":       {-1, http.Header{"Grpc-Timeout": {"500m"}}, 0, 503},
		"envoy, too short":    {time.Hour, http.Header{"X-Envoy-Expected-Rq-Timeout-Ms": {"500"}}, 0, 503},
		"context, too short":  {0, nil, 500 * ms, 503},
		"context, long":       {0, nil, 540 * ms, 200},
		"malformed":           {0, http.Header{"Grpc-Timeout": {"1"}, "X-Envoy-Expected-Rq-Timeout-Ms": {"-5"}, "Prefer": {"wait=x"}}, 0, 200},
		"zero":                {0, http.Header{"Grpc-Timeout": {"0m"}, "X-Envoy-Expected-Rq-Timeout-Ms": {"0"}, "Prefer": {"wait=0"}}, 0, 200},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, j := queue(t, 2, 5, holdfast.JobsConfig{Patience: test.set})
				h := j.Queued(sleeping(100 * ms))
				busy(h, 2)
				time.Sleep(150 * ms) // now it is known how long it takes
				busy(h, 8)           // one of them is blocked; 7 end before the next begins
				ctx := context.Background()
				if test.in > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, test.in)
					defer cancel()
				}
				r := httptest.NewRequestWithContext(ctx, "GET", "/", nil)
				for name, v := range test.header {
					r.Header[name] = v
				}
				begin := time.Now()
				w := httptest.NewRecorder()
				h.ServeHTTP(w, r)
				if w.Code != test.want {
					t.Fatalf("%d after %v: %s; want %d", w.Code, time.Since(begin), w.Body, test.want)
				}
				refused := j.Stats().RefusedLate
				if w.Code == 503 && (time.Since(begin) != 0 || refused != 1 || w.Header().Get("Retry-After") == "" || !strings.Contains(w.Body.String(), "wait for about 385ms")) {
					t.Errorf("after %v, %d counted, Retry-After %q: %s; want it at once, with the wait", time.Since(begin), refused, w.Header().Get("Retry-After"), w.Body)
				}
				conserved(t, d)
			})
		})
	}
}

// A request that finds nothing else running tells whether the service is quick again.
func TestProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, j := queue(t, 2, 5, holdfast.JobsConfig{Patience: time.Second})
		took := 3 * time.Second
		h := j.Queued(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(took) }))
		get := func() int { status := call(h, httptest.NewRequest("GET", "/", nil)); return status }
		if status := get(); status != 200 {
			t.Fatalf("%d when nothing is known; want 200", status)
		}
		time.Sleep(100 * ms)
		if status := get(); status != 503 {
			t.Errorf("%d when it is known to take too long; want 503", status)
		}
		time.Sleep(5 * time.Second)
		busy(h, 1)
		if status := get(); status != 503 {
			t.Errorf("%d beside a probe; want 503", status)
		}
		time.Sleep(5 * time.Second)
		took = 50 * ms
		for range 10 {
			get()
			time.Sleep(1100 * ms)
		}
		if status := get(); status != 200 {
			t.Errorf("%d when it has been quick for a while; want 200", status)
		}
	})
}

// Workers hang, so no turn comes: that is told as soon as it is too late to begin.
func TestExpired(t *testing.T) {
	for _, test := range []struct {
		places int // 0: it waits for a place, else in the queue
		set    time.Duration
		prefer []string
	}{{0, time.Second, nil}, {5, time.Second, nil}, {0, 0, []string{"wait=1"}}, {5, -1, []string{"wait=1"}}} {
		places := test.places
		synctest.Test(t, func(t *testing.T) {
			var mu sync.Mutex
			var ends []string
			cfg := holdfast.JobsConfig{Patience: test.set, OnEnd: func(i holdfast.JobInfo) {
				mu.Lock()
				ends = append(ends, i.State+" "+i.Error)
				mu.Unlock()
			}}
			d, j := queue(t, 1, places, cfg)
			took := 50 * ms
			calls := 0
			h := j.Queued(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { calls++; time.Sleep(took) }))
			for range 5 {
				call(h, httptest.NewRequest("GET", "/", nil))
			}
			took = time.Minute
			busy(h, 1)
			begin := time.Now()
			w, r := httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil)
			r.Header["Prefer"] = test.prefer
			h.ServeHTTP(w, r)
			if w.Code != 503 || time.Since(begin) != 900*ms || w.Header().Get("Retry-After") == "" || !strings.Contains(w.Body.String(), "too late to begin") {
				t.Errorf("%d places: %d after %v, %s; want 503 after 900ms", places, w.Code, time.Since(begin), w.Body)
			}
			st, late := d.Stats(), j.Stats()
			if late.Expired != 1 || st.Queued+st.Blocked != 0 || calls != 6 || int(st.Canceled) != min(places, 1) || int(st.RefusedGone) != 1-min(places, 1) {
				t.Errorf("%d places: %+v, %d queued, %d blocked, %d canceled, %d gone, %d calls; want one expired", places, late, st.Queued, st.Blocked, st.Canceled, st.RefusedGone, calls)
			}
			mu.Lock()
			last := ends[len(ends)-1]
			mu.Unlock()
			if places > 0 && !strings.Contains(last, "canceled the job was not begun") {
				t.Errorf("OnEnd says %q", last)
			}
			time.Sleep(time.Minute)
			conserved(t, d)
		})
	}
}

// What has begun in time is not ended by its patience.
func TestBegunIsNotExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, j := queue(t, 1, 5, holdfast.JobsConfig{Patience: time.Second})
		h := j.Queued(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Minute)
			if err := r.Context().Err(); err != nil {
				t.Error(err)
			}
		}))
		if status := call(h, httptest.NewRequest("GET", "/", nil)); status != 200 {
			t.Errorf("%d; want 200", status)
		}
	})
}

// A job that was answered 202 runs however late, whatever its client has named.
func TestAcceptedIsNotExpired(t *testing.T) {
	for name, header := range map[string]http.Header{
		"nothing": {}, "grpc": {"Grpc-Timeout": {"10m"}}, "wait": {"Prefer": {"wait=1"}},
	} {
		synctest.Test(t, func(t *testing.T) {
			d, j := queue(t, 1, 5, holdfast.JobsConfig{Patience: 5 * time.Second})
			h := j.Async(sleeping(10 * time.Second))
			post := func() *httptest.ResponseRecorder {
				r := httptest.NewRequest("POST", "/", nil)
				for name, v := range header {
					r.Header[name] = v
				}
				w := httptest.NewRecorder()
				h.ServeHTTP(w, r)
				return w
			}
			for range 4 {
				if w := post(); w.Code != 202 {
					t.Fatalf("%s: %d %s; want 202", name, w.Code, w.Body)
				}
			}
			time.Sleep(15 * time.Second) // the first one has ended
			if w := post(); w.Code != 503 || j.Stats().RefusedLate != 1 || !strings.Contains(w.Body.String(), "would wait for about") {
				t.Errorf("%s: %d %s at the door; want 503", name, w.Code, w.Body)
			}
			time.Sleep(time.Hour)
			if st := d.Stats(); st.Succeeded != 4 {
				t.Errorf("%s: %d of 4 jobs have succeeded, %d were canceled", name, st.Succeeded, st.Canceled)
			}
		})
	}
}

// Without a setting Async waits for a place for as long as its client does.
func TestAsyncWaitsForAPlace(t *testing.T) {
	for _, test := range []struct {
		set    time.Duration
		header http.Header
		want   int
		after  time.Duration
	}{
		{0, nil, 202, 10 * time.Minute},
		{0, http.Header{"Grpc-Timeout": {"2S"}}, 503, 2 * time.Second},
		{time.Second, nil, 503, time.Second},
		{-1, nil, 202, 10 * time.Minute},
	} {
		synctest.Test(t, func(t *testing.T) {
			_, j := queue(t, 1, 0, holdfast.JobsConfig{Patience: test.set})
			h := j.Async(sleeping(10 * time.Minute))
			call(h, httptest.NewRequest("POST", "/", nil))
			r := httptest.NewRequest("POST", "/", nil)
			for name, v := range test.header {
				r.Header[name] = v
			}
			begin := time.Now()
			if status := call(h, r); status != test.want || time.Since(begin) != test.after {
				t.Errorf("%v, %v: %d after %v; want %d after %v", test.set, test.header, status, time.Since(begin), test.want, test.after)
			}
			if late := j.Stats(); (late.Expired == 1) != (test.want == 503) {
				t.Errorf("%v, %v: %d counted", test.set, test.header, late.Expired)
			}
		})
	}
}

// A paused queue may go on at any moment, so nothing is refused before it is too late.
func TestPatienceOfAPausedQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j := queue(t, 1, 5, holdfast.JobsConfig{Patience: time.Second})
		h := j.Queued(sleeping(50 * ms))
		call(h, httptest.NewRequest("GET", "/", nil))
		d.Resize(0)
		begin := time.Now()
		if status := call(h, httptest.NewRequest("GET", "/", nil)); status != 503 || time.Since(begin) != 900*ms {
			t.Errorf("%d after %v; want 503 after 900ms", status, time.Since(begin))
		}
		d.Resize(1)
	})
}

// Who waits by a patience that was learned waits on when it has been forgotten.
func TestForgottenPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j := queue(t, 1, 30, holdfast.JobsConfig{})
		h := j.Queued(sleeping(10 * time.Minute))
		busy(h, 1)
		for range 20 { // they leave after 3 minutes, and no others do
			go func() {
				ctx, leave := context.WithCancel(context.Background())
				time.AfterFunc(3*time.Minute, leave)
				call(h, httptest.NewRequestWithContext(ctx, "GET", "/", nil))
			}()
		}
		time.Sleep(3*time.Minute + time.Second)
		if status := call(h, httptest.NewRequest("GET", "/", nil)); status != 200 {
			t.Errorf("%d; want 200, since what was learned is forgotten when it would count", status)
		}
		conserved(t, d)
	})
}

// What was learned of clients that wait says nothing of jobs that nobody waits for.
func TestLearnedPatienceIsNotForAsync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, j := queue(t, 1, 100, holdfast.JobsConfig{})
		h := j.Queued(sleeping(time.Second))
		for range 50 {
			ctx, leave := context.WithCancel(context.Background())
			time.AfterFunc(2500*ms, leave)
			go call(h, httptest.NewRequestWithContext(ctx, "GET", "/", nil))
		}
		time.Sleep(time.Minute)
		for range 20 {
			r := httptest.NewRequest("GET", "/", nil)
			r.Header.Set("Prefer", "respond-async")
			if status := call(h, r); status != 202 {
				t.Fatalf("%d; want 202", status)
			}
		}
		if status := call(h, httptest.NewRequest("GET", "/", nil)); status != 503 {
			t.Errorf("%d for one that waits; want 503, since it was learned that clients leave after 2.5s", status)
		}
	})
}

// The overload is there from the beginning, and nobody has said how long clients wait.
func TestLearnedWithinSeconds(t *testing.T) {
	for _, offered := range []float64{2, 5, 10} {
		synctest.Test(t, func(t *testing.T) {
			_, j := queue(t, 8, 200, holdfast.JobsConfig{})
			c := load{distributions[0].service, 160 * offered, time.Second, 0, 10 * time.Second}.run(j)
			good, vain := 0, 0
			for i := 4; i < 10; i++ {
				good, vain = good+c.goodAt[i], vain+c.vainAt[i]
			}
			if good < 6*160*85/100 || vain > good*3/100 {
				t.Errorf("%gx: good by second %v, in vain %v; want most of 160, and none, from the fourth on", offered, c.goodAt[:10], c.vainAt[:10])
			}
		})
	}
}
