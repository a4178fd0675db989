package prometheus_test

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"holdfast"
	holdfastprom "holdfast/contrib/prometheus"
)

func Example() {
	d, err := holdfast.New(holdfast.Config{Workers: 4, Queue: 100})
	if err != nil {
		log.Fatal(err)
	}
	defer d.Shutdown(context.Background())
	jobs, err := holdfast.NewJobs(d, holdfast.JobsConfig{})
	if err != nil {
		log.Fatal(err)
	}

	reg := prometheus.NewRegistry()
	reg.MustRegister(holdfastprom.NewCollector(d, jobs))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	mux.Handle("/jobs/", jobs)
	server := httptest.NewServer(mux)
	defer server.Close()

	d.Do(context.Background(), func(context.Context) error { return nil })

	res, err := http.Get(server.URL + "/metrics")
	if err != nil {
		log.Fatal(err)
	}
	defer res.Body.Close()
	for lines := bufio.NewScanner(res.Body); lines.Scan(); {
		if line := lines.Text(); strings.HasPrefix(line, "holdfast_jobs_") {
			fmt.Println(line)
		}
	}
	// Output:
	// holdfast_jobs_accepted_total 1
	// holdfast_jobs_ended_total{outcome="abandoned"} 0
	// holdfast_jobs_ended_total{outcome="canceled"} 0
	// holdfast_jobs_ended_total{outcome="dropped"} 0
	// holdfast_jobs_ended_total{outcome="failed"} 0
	// holdfast_jobs_ended_total{outcome="panicked"} 0
	// holdfast_jobs_ended_total{outcome="succeeded"} 1
	// holdfast_jobs_queued 0
	// holdfast_jobs_running 0
}
