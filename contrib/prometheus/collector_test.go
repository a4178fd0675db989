package prometheus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
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

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"holdfast"
	"holdfast/admin"
	"holdfast/internal/metrics"
)

func newDispatcher(t *testing.T, cfg holdfast.Config) *holdfast.Dispatcher {
	t.Helper()
	cfg.Logger = slog.New(slog.DiscardHandler)
	d, err := holdfast.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func newJobs(t *testing.T, d *holdfast.Dispatcher, cfg holdfast.JobsConfig) *holdfast.Jobs {
	t.Helper()
	jobs, err := holdfast.NewJobs(d, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return jobs
}

// serve returns the handler for /metrics, with a registry that checks its metrics.
func serve(t *testing.T, c prometheus.Collector) http.Handler {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	if err := reg.Register(c); err != nil {
		t.Fatal(err)
	}
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{})
}

// scrape reads metrics as Prometheus does, and returns the samples by name and
// labels, as written in the text.
func scrape(h http.Handler) (map[string]float64, error) {
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	if rec.Code != http.StatusOK {
		return nil, fmt.Errorf("%d: %s", rec.Code, rec.Body)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(rec.Body)
	if err != nil {
		return nil, err
	}
	return samples(families)
}

func samples(families map[string]*dto.MetricFamily) (map[string]float64, error) {
	out := map[string]float64{}
	for name, f := range families {
		for _, m := range f.Metric {
			key := name
			for _, l := range m.Label {
				key += fmt.Sprintf("{%s=%q}", l.GetName(), l.GetValue())
			}
			switch f.GetType() {
			case dto.MetricType_COUNTER:
				out[key] = m.Counter.GetValue()
			case dto.MetricType_GAUGE:
				out[key] = m.Gauge.GetValue()
			case dto.MetricType_HISTOGRAM:
				out[key+"_count"] = float64(m.Histogram.GetSampleCount())
				out[key+"_sum"] = m.Histogram.GetSampleSum()
				for _, b := range m.Histogram.Bucket {
					out[fmt.Sprintf("%s_bucket{le=%q}", key, fmt.Sprint(b.GetUpperBound()))] = float64(b.GetCumulativeCount())
				}
			default:
				return nil, fmt.Errorf("%s is a %v", key, f.GetType())
			}
		}
	}
	return out, nil
}

func withoutBuckets(all map[string]float64) map[string]float64 {
	out := maps.Clone(all)
	maps.DeleteFunc(out, func(key string, _ float64) bool { return strings.Contains(key, "_bucket{") })
	return out
}

func compare(t *testing.T, got, want map[string]float64) {
	t.Helper()
	for key, v := range want {
		if g, ok := got[key]; !ok {
			t.Errorf("%s is missing, want %v", key, v)
		} else if g != v {
			t.Errorf("%s = %v, want %v", key, g, v)
		}
	}
	for key, v := range got {
		if _, ok := want[key]; !ok {
			t.Errorf("%s = %v, want none", key, v)
		}
	}
}

// The test puts the dispatcher into a state where figures that could be confused are
// different.
func TestScrape(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		d := newDispatcher(t, holdfast.Config{Workers: 3, Queue: 6})
		jobs := newJobs(t, d, holdfast.JobsConfig{RetainJobs: 2, Retain: time.Hour})
		metrics := serve(t, NewCollector(d, jobs))
		scrape := func() map[string]float64 {
			t.Helper()
			synctest.Wait()
			got, err := scrape(metrics)
			if err != nil {
				t.Fatal(err)
			}
			return got
		}
		expect := func(want error, got error) {
			t.Helper()
			if !errors.Is(got, want) {
				t.Fatalf("got %v, want %v", got, want)
			}
		}
		nothing := func(context.Context) error { return nil }

		for range 7 {
			expect(nil, d.Do(ctx, func(context.Context) error { time.Sleep(time.Second); return nil }))
		}
		for range 2 {
			d.Do(ctx, func(context.Context) error { return errors.New("no") })
		}
		expect(holdfast.ErrNested, d.Do(ctx, func(ctx context.Context) error { return d.Do(ctx, nothing) }))
		for range 4 {
			d.Do(ctx, func(context.Context) error { panic("oh") })
		}
		async := jobs.Async(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		for range 5 {
			async.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", "/", nil))
			time.Sleep(time.Second) // so that evictions determine reach
		}

		release := make(chan struct{})
		hold := func(context.Context) error { <-release; return nil }
		for range 3 {
			expect(nil, d.Go(ctx, hold))
		}
		synctest.Wait()
		var waiting []*holdfast.Job
		for range 6 {
			time.Sleep(time.Second)
			j, err := d.Submit(ctx, nothing)
			expect(nil, err)
			waiting = append(waiting, j)
		}
		for range 4 {
			expect(holdfast.ErrQueueFull, d.With(holdfast.Reject).Go(ctx, nothing))
		}
		expect(nil, d.With(holdfast.DropOldest).Go(ctx, nothing))
		gone, leave := context.WithCancel(ctx)
		for range 2 {
			go d.Go(gone, nothing)
		}
		synctest.Wait()
		leave()
		for range 8 {
			go d.Go(ctx, nothing)
		}
		synctest.Wait()
		expect(nil, d.Resize(2))
		waiting[4].Cancel()
		waiting[5].Cancel() // the surplus worker still holds one of these places, so one submit is let in
		time.Sleep(10 * time.Second)

		got := scrape()
		compare(t, withoutBuckets(got), map[string]float64{
			`holdfast_jobs_accepted_total`:                            30,
			`holdfast_jobs_ended_total{outcome="succeeded"}`:          12,
			`holdfast_jobs_ended_total{outcome="failed"}`:             3,
			`holdfast_jobs_ended_total{outcome="panicked"}`:           4,
			`holdfast_jobs_ended_total{outcome="canceled"}`:           2,
			`holdfast_jobs_ended_total{outcome="dropped"}`:            1,
			`holdfast_jobs_ended_total{outcome="abandoned"}`:          0,
			`holdfast_jobs_queued`:                                    5,
			`holdfast_jobs_running`:                                   3,
			`holdfast_workers`:                                        2,
			`holdfast_queue_places`:                                   6,
			`holdfast_overflow_policy{policy="block"}`:                1,
			`holdfast_overflow_policy{policy="reject"}`:               0,
			`holdfast_overflow_policy{policy="drop-oldest"}`:          0,
			`holdfast_queue_oldest_age_seconds`:                       14, // the second of the queued jobs
			`holdfast_submits_blocked`:                                7,
			`holdfast_submits_refused_total{reason="full"}`:           4,
			`holdfast_submits_refused_total{reason="closed"}`:         0,
			`holdfast_submits_refused_total{reason="nested"}`:         1,
			`holdfast_submits_refused_total{reason="share"}`:          0,
			`holdfast_submits_refused_total{reason="late"}`:           0,
			`holdfast_urgency_jobs_queued{urgency="3"}`:               5,
			`holdfast_urgency_oldest_age_seconds{urgency="3"}`:        14,
			`holdfast_urgency_jobs_refused_full_total{urgency="3"}`:   4,
			`holdfast_urgency_jobs_refused_share_total{urgency="3"}`:  0,
			`holdfast_urgency_jobs_refused_late_total{urgency="3"}`:   0,
			`holdfast_urgency_jobs_refused_closed_total{urgency="3"}`: 0,
			`holdfast_urgency_jobs_expired_total{urgency="3"}`:        0,
			`holdfast_urgency_jobs_dropped_total{urgency="3"}`:        1,
			`holdfast_urgency_jobs_in_vain_total{urgency="3"}`:        0,
			`holdfast_submits_gave_up_total`:                          2,
			`holdfast_job_wait_seconds_count`:                         22,
			`holdfast_job_wait_seconds_sum`:                           0,
			`holdfast_job_run_seconds_count`:                          19,
			`holdfast_job_run_seconds_sum`:                            7,
			`holdfast_open_jobs`:                                      0,
			`holdfast_kept_jobs`:                                      2,
			`holdfast_kept_bytes`:                                     float64(jobs.Stats().KeptBytes),
			`holdfast_delayed_jobs`:                                   0, `holdfast_retries_total`: 0, `holdfast_failed_jobs`: 0,
			`holdfast_unread_jobs`:                          2,
			`holdfast_evicted_jobs_total{cause="age"}`:      0,
			`holdfast_evicted_jobs_total{cause="jobs"}`:     3,
			`holdfast_evicted_jobs_total{cause="bytes"}`:    0,
			`holdfast_late_requests_total{when="arriving"}`: 0,
			`holdfast_late_requests_total{when="waiting"}`:  0,
			`holdfast_held_bytes`:                           float64(jobs.Stats().Held),
			`holdfast_refused_memory_total`:                 0,
			`holdfast_reach_seconds`:                        jobs.Stats().Reach.Seconds(),
		})
		for le, n := range map[string]float64{"8.191e-06": 12, "0.536870911": 12, "1.073741823": 19, "4398.046511103": 19} {
			if key := `holdfast_job_run_seconds_bucket{le="` + le + `"}`; got[key] != n {
				t.Errorf("%s = %v, want %v", key, got[key], n)
			}
		}

		ended, end := context.WithCancel(ctx)
		end()
		d.Shutdown(ended)
		close(release)
		expect(holdfast.ErrClosed, d.Go(ctx, nothing))
		time.Sleep(2 * time.Hour)
		async.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", "/", nil))

		got = scrape()
		for key, n := range map[string]float64{
			`holdfast_jobs_ended_total{outcome="abandoned"}`:  5,
			`holdfast_jobs_ended_total{outcome="canceled"}`:   5,
			`holdfast_submits_refused_total{reason="closed"}`: 9, // seven were blocked
			`holdfast_queue_oldest_age_seconds`:               0,
			`holdfast_jobs_running`:                           0,
			`holdfast_workers`:                                0,
			`holdfast_evicted_jobs_total{cause="age"}`:        2,
			`holdfast_kept_jobs`:                              0,
			`holdfast_reach_seconds`:                          3600,
		} {
			if got[key] != n {
				t.Errorf("after the shutdown %s = %v, want %v", key, got[key], n)
			}
		}
	})
}

func TestWithoutJobs(t *testing.T) {
	d := newDispatcher(t, holdfast.Config{Workers: 100, Queue: 200})
	defer d.Shutdown(t.Context())
	c := NewCollector(d, nil)
	got, err := scrape(serve(t, c))
	if err != nil {
		t.Fatal(err)
	}
	if got["holdfast_workers"] != 100 {
		t.Errorf("workers = %v, want 100", got["holdfast_workers"])
	}
	for key := range got {
		if strings.Contains(key, "kept") || strings.Contains(key, "evicted") {
			t.Errorf("%s without Jobs", key)
		}
	}
	described := make(chan *prometheus.Desc, 100)
	c.Describe(described)
	if len(described) != len(metrics.Families(false)) {
		t.Errorf("%d metrics described, want %d", len(described), len(metrics.Families(false)))
	}
}

func TestSeveralDispatchers(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	for i, name := range []string{"mail", "image"} {
		d := newDispatcher(t, holdfast.Config{Workers: i + 1})
		defer d.Shutdown(t.Context())
		prometheus.WrapRegistererWith(prometheus.Labels{"dispatcher": name}, reg).MustRegister(NewCollector(d, nil))
	}
	got, err := scrape(promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	if err != nil {
		t.Fatal(err)
	}
	for key, n := range map[string]float64{`holdfast_workers{dispatcher="mail"}`: 1, `holdfast_workers{dispatcher="image"}`: 2} {
		if got[key] != n {
			t.Errorf("%s = %v, want %v", key, got[key], n)
		}
	}
}

func TestLint(t *testing.T) {
	d := newDispatcher(t, holdfast.Config{Workers: 100, Queue: 200})
	defer d.Shutdown(t.Context())
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(NewCollector(d, newJobs(t, d, holdfast.JobsConfig{})))
	problems, err := testutil.GatherAndLint(reg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// A dashboard or an alert must work with the collector and with GET /metrics of the
// admin listener alike.
func TestSameAsTheAdminListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDispatcher(t, holdfast.Config{Workers: 1, Queue: 1})
		defer d.Shutdown(t.Context())
		jobs := newJobs(t, d, holdfast.JobsConfig{})
		for range 3 {
			d.Do(t.Context(), func(context.Context) error { time.Sleep(1500 * time.Millisecond); return nil })
		}
		for _, jobs := range []*holdfast.Jobs{nil, jobs} {
			want := types(t, serve(t, NewCollector(d, jobs)))
			got := types(t, admin.New(admin.Config{Dispatcher: d, Jobs: jobs}))
			if !maps.EqualFunc(got, want, func(a, b *dto.MetricFamily) bool { return a.String() == b.String() }) {
				t.Errorf("the admin listener exports\n%v\nand the collector\n%v", got, want)
			}
		}
	})
}

// types returns what a handler exports, as Prometheus reads it.
func types(t *testing.T, h http.Handler) map[string]*dto.MetricFamily {
	t.Helper()
	rec := httptest.NewRecorder()
	r := httptest.NewRequest("GET", "/metrics", nil)
	r.Host = "localhost"
	h.ServeHTTP(rec, r)
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(rec.Body)
	if err != nil || rec.Code != http.StatusOK {
		t.Fatalf("%d %s: %v", rec.Code, rec.Body, err)
	}
	for _, f := range families { // the order of samples means nothing
		slices.SortFunc(f.Metric, func(a, b *dto.Metric) int { return cmp.Compare(a.String(), b.String()) })
	}
	return families
}

// Each scrape is consistent under load.
func TestScrapesUnderLoad(t *testing.T) {
	d := newDispatcher(t, holdfast.Config{Workers: 4, Queue: 8})
	jobs := newJobs(t, d, holdfast.JobsConfig{RetainJobs: 10})
	metrics := serve(t, NewCollector(d, jobs))

	var stop atomic.Bool
	var load, scrapes sync.WaitGroup
	async := jobs.Async(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	for i := range 6 {
		load.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 0))
			ctx := context.Background()
			for !stop.Load() {
				fn := func(context.Context) error {
					switch n := rand.IntN(200); {
					case n == 0:
						panic("oh")
					case n == 1:
						time.Sleep(100 * time.Microsecond)
					case n < 30:
						return errors.New("no")
					}
					return nil
				}
				switch rnd.IntN(40) {
				case 0:
					if j, err := d.With(holdfast.Reject).Submit(ctx, fn); err == nil {
						j.Cancel()
					}
				case 1:
					async.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", "/", nil))
				case 2:
					d.Do(ctx, fn)
				case 3:
					d.Resize(1 + rnd.IntN(4))
				default:
					d.With(holdfast.Overflow(rnd.IntN(3))).Go(ctx, fn)
				}
			}
		})
	}
	for range 4 {
		scrapes.Go(func() {
			last := map[string]float64{}
			for range 500 {
				got, err := scrape(metrics)
				if err != nil {
					t.Error(err)
					return
				}
				var sum float64
				for key, v := range got {
					if strings.HasPrefix(key, "holdfast_jobs_ended_total{") {
						sum += v
					}
					if strings.Contains(key, "_total") && v < last[key] {
						t.Errorf("%s fell from %v to %v", key, last[key], v)
					}
				}
				sum += got["holdfast_jobs_queued"] + got["holdfast_jobs_running"]
				if accepted := got["holdfast_jobs_accepted_total"]; accepted != sum {
					t.Errorf("%v jobs accepted, but %v are queued, running or ended", accepted, sum)
				}
				started, done := got["holdfast_job_wait_seconds_count"], got["holdfast_job_run_seconds_count"]
				if started < done || started > done+4 {
					t.Errorf("%v jobs have started and %v have ended, with 4 workers", started, done)
				}
				last = got
			}
		})
	}
	scrapes.Wait()
	stop.Store(true)
	d.Resize(4)
	load.Wait()
	d.Shutdown(context.Background())
	got, err := scrape(metrics)
	if err != nil {
		t.Fatal(err)
	}
	if got["holdfast_jobs_accepted_total"] < 100 {
		t.Errorf("only %v jobs were accepted", got["holdfast_jobs_accepted_total"])
	}
}
