package admin

import (
	"bytes"
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/histogram"
	"holdfast/internal/metrics"
)

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, holdfast.Config{Workers: 2, Queue: 3, Overflow: holdfast.Reject}, nil)
		for range 2 {
			f.d.Do(context.Background(), func(context.Context) error { time.Sleep(1500 * time.Millisecond); return nil })
		}
		for range 7 { // 2 run, 3 wait, 2 are refused
			f.d.Go(context.Background(), func(context.Context) error { time.Sleep(time.Minute); return nil })
			synctest.Wait()
		}
		w := f.do("GET", "/metrics", "")
		f.expect(w, 200)
		if got := w.Header().Get("Content-Type"); got != "text/plain; version=0.0.4; charset=utf-8" {
			t.Errorf("Content-Type is %q", got)
		}
		text := "\n" + w.Body.String()
		for _, want := range []string{
			"# HELP holdfast_jobs_accepted_total Jobs accepted.\n# TYPE holdfast_jobs_accepted_total counter\nholdfast_jobs_accepted_total 7\n",
			"holdfast_jobs_ended_total{outcome=\"succeeded\"} 2\n",
			"holdfast_jobs_queued 3\n",
			"holdfast_jobs_running 2\n",
			"holdfast_workers 2\n",
			"holdfast_overflow_policy{policy=\"block\"} 0\nholdfast_overflow_policy{policy=\"reject\"} 1\n",
			"holdfast_submits_refused_total{reason=\"full\"} 2\n",
			"holdfast_submits_gave_up_total 0\n",
			"# TYPE holdfast_job_run_seconds histogram\nholdfast_job_run_seconds_bucket{le=\"8.191e-06\"} 0\n",
			"holdfast_job_run_seconds_bucket{le=\"1.073741823\"} 0\nholdfast_job_run_seconds_bucket{le=\"2.147483647\"} 2\n",
			"holdfast_job_run_seconds_bucket{le=\"+Inf\"} 2\nholdfast_job_run_seconds_sum 3\nholdfast_job_run_seconds_count 2\n",
			"# TYPE holdfast_kept_jobs gauge\nholdfast_kept_jobs 0\n",
		} {
			if !strings.Contains(text, "\n"+want) {
				t.Errorf("%q is missing in %s", want, text)
			}
		}
		if strings.Contains(text, "gone") {
			t.Error("a client that left counts as refused")
		}
		time.Sleep(3 * time.Minute) // until the jobs have ended
	})
}

func TestMetricsWithoutJobs(t *testing.T) {
	f := newFixture(t, holdfast.Config{Workers: 1}, func(c *Config) { c.Jobs = nil })
	w := f.do("GET", "/metrics", "")
	f.expect(w, 200, "holdfast_workers 1\n")
	if strings.Contains(w.Body.String(), "holdfast_kept") {
		t.Errorf("%s without Jobs", w.Body)
	}
}

// Where jobs outlive the process, the operator sees what that depends on.
func TestLogOfStoredJobs(t *testing.T) {
	var syncs histogram.Histogram
	syncs.Add(2 * time.Millisecond)
	f := newFixture(t, holdfast.Config{Workers: 1}, func(c *Config) {
		c.Log = func() LogStats {
			return LogStats{Bytes: 1234, Waiting: 5, Err: errors.New("no space left on device"), Syncs: syncs}
		}
	})
	l := f.stats().Log
	if l == nil || l.Bytes != 1234 || l.Waiting != 5 || l.Error != "no space left on device" || l.Write.Count != 1 || *l.Write.P99 < 0.002 {
		t.Errorf("/stats says %+v of the log", l)
	}
	f.expect(f.do("GET", "/metrics", ""), 200, "holdfast_log_bytes 1234\n", "holdfast_log_records_waiting 5\n", "holdfast_log_failing 1\n", "holdfast_log_write_seconds_count 1\n")

	f = newFixture(t, holdfast.Config{Workers: 1}, nil)
	if w := f.do("GET", "/metrics", ""); strings.Contains(w.Body.String(), "holdfast_log") || f.stats().Log != nil {
		t.Error("there is a log where jobs end with the process")
	}
}

// Where several nodes share the jobs, the operator sees which there are.
func TestNodes(t *testing.T) {
	f := newFixture(t, holdfast.Config{Workers: 1}, func(c *Config) {
		c.Cluster = func() ClusterStats {
			return ClusterStats{Name: "c", Leader: "a", Term: 7, Nodes: []ClusterNode{{Name: "a", Workers: 2, Running: 1}, {Name: "b", Workers: 3, Silent: 0.5}}}
		}
	})
	if c := f.stats().Cluster; c == nil || c.Leader != "a" || c.Term != 7 || len(c.Nodes) != 2 || c.Nodes[1].Silent != 0.5 {
		t.Errorf("/stats says %+v of the cluster", c)
	}
	f.expect(f.do("GET", "/metrics", ""), 200, "holdfast_cluster_term 7\n", `holdfast_cluster_node_workers{node="b"} 3`, `holdfast_cluster_node_running{node="a"} 1`, `holdfast_cluster_node_silent_seconds{node="b"} 0.5`)
	f = newFixture(t, holdfast.Config{Workers: 1}, nil)
	if w := f.do("GET", "/metrics", ""); strings.Contains(w.Body.String(), "holdfast_cluster") || f.stats().Cluster != nil {
		t.Error("there is a cluster where there is only this process")
	}
}

// Text from a table that grows must not break the format.
func TestMetricsAreEscaped(t *testing.T) {
	var text bytes.Buffer
	f := metrics.Family{Name: "a", Kind: metrics.Gauge, Help: "\"one\\two\nthree", Label: "l"}
	writeFamily(&text, &f, []metrics.Sample{{LabelValue: "\"x\\y\nz", Value: 1e21}, {LabelValue: "é", Value: math.Inf(1)}})
	f = metrics.Family{Name: "h", Kind: metrics.Histogram}
	writeFamily(&text, &f, []metrics.Sample{{Histogram: new(histogram.Histogram)}})
	want := "# HELP a \"one\\\\two\\nthree\n# TYPE a gauge\na{l=\"\\\"x\\\\y\\nz\"} 1e+21\na{l=\"é\"} +Inf\n# HELP h \n# TYPE h histogram\n"
	if got := text.String(); !strings.HasPrefix(got, want) || !strings.HasSuffix(got, "h_bucket{le=\"+Inf\"} 0\nh_sum 0\nh_count 0\n") {
		t.Errorf("%q, want it to begin with %q", got, want)
	}
}
