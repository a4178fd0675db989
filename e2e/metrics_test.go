package e2e

import (
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// What the admin listener exports is what Prometheus' own tool finds nothing wrong
// with.
func TestMetricsPassPromtool(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("HOLDFAST_REQUIRE_SERVICES") != "" {
			t.Fatal("promtool is not installed")
		}
		t.Skip("promtool is not installed (on Debian: apt-get install prometheus)")
	}
	w := watch(t)
	// With Prefer: wait the job has ended when the answer is there.
	r, err := http.NewRequest("POST", "http://"+w.addr+"/bbb", strings.NewReader(`{"sleep_time":0}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Prefer", "wait=30")
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()

	res, err = http.Get("http://" + w.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "\nholdfast_job_run_seconds_count 1\n") {
		t.Errorf("the job is not in %s", text)
	}
	check := exec.Command(promtool, "check", "metrics")
	check.Stdin = strings.NewReader(string(text))
	if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s\nof\n%s", err, out, text)
	}
}
