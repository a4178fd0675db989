package plan

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite testdata")

const exampleFlags = "-rate 100 -service 50ms -burst 5 -burst-for 2s -deadline 1s"

func TestOutput(t *testing.T) {
	for name, args := range map[string]string{
		"usage":         "-h",
		"recommended":   exampleFlags,
		"json":          exampleFlags + " -json",
		"given":         "-service 1s -workers 100 -queue 200",
		"overload":      "-rate 120 -service 1s -workers 100 -queue 200 -burst 2",
		"overload-json": "-rate 120 -service 1s -workers 100 -queue 0 -json",
		"contradiction": exampleFlags + " -workers 8",
		"slow":          "-rate 100 -service 50ms -cv2 0.5 -deadline 100ms",
		"even":          exampleFlags + " -workers 21 -cv2 0 -arrival-cv2 0",
		"constant":      "-rate 100 -service 2s -cv2 0 -may-wait 1 -may-refuse 0.001",
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			err := Run(strings.Fields(args), &out)
			if name == "usage" != errors.Is(err, flag.ErrHelp) || name != "usage" && err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(file, []byte(out.String()), 0o666); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got := out.String(); got != string(want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// TestRuleOfThumb checks rule 2: a burst of a second needs a queue of 175, a burst
// of ten seconds ten times that.
func TestRuleOfThumb(t *testing.T) {
	for seconds, want := range map[string]string{"1s": "gives 175,", "10s": "gives 1750,"} {
		var out strings.Builder
		if err := Run(strings.Fields("-rate 100 -service 2s -workers 250 -burst 3 -burst-for "+seconds), &out); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out.String(), want) {
			t.Errorf("a burst of %s: want %q in\n%s", seconds, want, out.String())
		}
	}
}

// TestNames fails if a JSON name changes, since programs depend on them.
func TestNames(t *testing.T) {
	var out strings.Builder
	if err := Run(strings.Fields(exampleFlags+" -json"), &out); err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(out.String()), &got); err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct{ object, names string }{
		{"waiting", "probability mean_seconds p50_seconds p90_seconds p99_seconds"},
		{"queue_bounds", "least_for_refusals least_for_burst most_for_deadline"},
		{"", "rate_per_second service_seconds load_erlangs holds reasons least_workers workers queue utilisation waiting refused accepted_mean_wait_seconds full_queue_wait_seconds queue_bounds burst_backlog drain_seconds capacity_per_second max_rate_per_second"},
	} {
		fields := got
		if want.object != "" {
			fields = got[want.object].(map[string]any)
		}
		for _, name := range strings.Fields(want.names) {
			if _, ok := fields[name]; !ok {
				t.Errorf("no %s in %q", name, want.object)
			}
			delete(fields, name)
		}
		for name := range fields {
			t.Errorf("unexpected %s in %q", name, want.object)
		}
	}
}

func TestFlagErrors(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"", "-rate is missing; want requests per second, above 0, or a number of workers"},
		{"-rate 1", "-service is missing"},
		{"-rate 0 -service 1s", `"0" for flag -rate: want requests per second, above 0`},
		{"-rate NaN", "for flag -rate: want"},
		{"-rate Inf", "for flag -rate: want"},
		{"-rate 1e999", "for flag -rate: want"},
		{"-rate 1e9 -service 1s", "-rate is 1e+09; want less than 1e+06"},
		{"-service 5", "for flag -service: want a duration above 0, such as 50ms"},
		{"-service 0s", "for flag -service: want"},
		{"-cv2 -1", "for flag -cv2: want 0 to 1,000,000"},
		{"-arrival-cv2 -1", "for flag -arrival-cv2: want 0 to 1,000,000"},
		{"-burst 0.9", "for flag -burst: want 1 to 1,000,000"},
		{"-rate 1 -service 1s -burst-for 1s", "-burst is missing; want 1 to 1,000,000"},
		{"-burst-for 0s", "for flag -burst-for: want"},
		{"-deadline -1s", "for flag -deadline: want a duration of 0 or more"},
		{"-may-wait 0", "for flag -may-wait: want a share above 0, at most 1"},
		{"-may-refuse 0", "for flag -may-refuse: want a share from 1e-12 to 1"},
		{"-workers 0", "for flag -workers: want 1 to 1,000,000"},
		{"-workers 1.5", "for flag -workers: want"},
		{"-queue -1", "for flag -queue: want 0 to 10,000,000"},
		{"-json=maybe", "for -json: want true or false"},
		{"-nonsense", "-nonsense"},
		{"100", `argument "100"; want flags only`},
	} {
		var out strings.Builder
		err := Run(strings.Fields(test.args), &out)
		if err == nil || !strings.Contains(err.Error(), test.want) || out.Len() > 0 {
			t.Errorf("%s: %v, want %q; wrote %q", test.args, err, test.want, out.String())
		}
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, os.ErrClosed }

func TestWriteError(t *testing.T) {
	for _, args := range []string{"-rate 1 -service 1s", "-rate 1 -service 1s -json"} {
		if err := Run(strings.Fields(args), broken{}); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: %v", args, err)
		}
	}
}

func TestRounding(t *testing.T) {
	for want, got := range map[string]string{
		"0": rate(0), "100": rate(100), "89.5712": rate(89.57129), "0.01": rate(.01), "999999": rate(999999.9), "123456": rate(123456.7), "1234560": rate(1234567),
		"0s": seconds(0), "50ms": seconds(.05), "1.23s": seconds(1.2345), "1.5µs": seconds(1.5e-6), "1m40s": seconds(100), "9.22e+12s": seconds(9.22e12),
		"0 %": share(0), "20 %": share(.2), "120 %": share(1.2), "100 %": share(1), "more than 99.9 %": share(.99999), "less than 0.0001 %": share(1e-9), "0.973 %": share(.00973),
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
