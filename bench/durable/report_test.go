package main

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestSpread(t *testing.T) {
	for want, v := range map[string][]float64{"–": nil, "2.00": {2}, "2.00 (1.00–4.00)": {4, 1, 2}, "2.50 (1.00–9.00)": {1, 9, 2, 3}} {
		if got := spread(v, "%.2f"); got != want {
			t.Errorf("%v is %q, want %q", v, got, want)
		}
	}
}

// Ratios are those within the rounds, not those of medians.
func TestTables(t *testing.T) {
	c := &comparison{options: &options{clients: []int{1, 64}}, list: []contender{{name: holdfastName}, {name: plainName}, {name: "asynq on Redis"}}}
	rates := func(rates ...float64) (s series) {
		for _, r := range rates {
			s = append(s, sample{rate: r, p50: 1, p99: 6, syncP50: 2, syncP99: 3, alone: 4, late: 0.5})
		}
		return s
	}
	found := []series{rates(90, 80, 50), rates(100, 200, 50), rates(45, 20, 10)}
	var out bytes.Buffer
	c.printAccepts(&out, "Accepts", [][]series{found, found})
	c.printEnd(&out, found)
	c.printHalf(&out, found)
	c.bars.accept(c, [][]series{found, found})
	c.bars.end(c, found)
	c.bars.half(c, found)
	c.bars.print(&out)
	for _, line := range []string{
		"| | 1 client | 64 clients |",
		"| Holdfast durable | 80 (50–90) | 80 (50–90) |",
		"| Holdfast durable | 0.90 (0.40–1.00) | 0.90 (0.40–1.00) |",
		"| Holdfast durable | 1.00, 6.00 | 1.00, 6.00 |",
		"| asynq on Redis | 20 (10–45) | 0.20 (0.10–0.45) | 4.00 (2.00–5.00) | 1.00 (1.00–1.00) | 6.00 (6.00–6.00) | 4.00 (4.00–4.00) |",
		"| Holdfast durable | 80 (50–90) | 1.00 (1.00–1.00) | 6.00 (6.00–6.00) | 2.00 (2.00–2.00) | 3.00 (3.00–3.00) | 3.00 (3.00–3.00) | 0.50 (0.50–0.50) |",
		"| accepts of 64 clients | 0.8 of the plain file's | 0.90 (0.40–1.00) |",
		"| results, compared with asynq on Redis | above 1 | 4.00 (2.00–5.00) |",
		"| p99 of an accept at half load, in fsyncs | below 3 | 3.00 (3.00–3.00) |",
	} {
		if !strings.Contains(out.String(), line+"\n") {
			t.Errorf("no line %q in\n%s", line, out.String())
		}
	}
}

// Without the plain file there is nothing to divide by, and no bar.
func TestTablesWithoutPlain(t *testing.T) {
	c := &comparison{options: &options{clients: []int{64}}, list: []contender{{name: holdfastName}}}
	found := [][]series{{{sample{rate: 5}}}}
	var out bytes.Buffer
	c.printAccepts(&out, "Accepts", found)
	c.bars.accept(c, found)
	c.bars.print(&out)
	if !strings.Contains(out.String(), "| Holdfast durable | – |\n") || strings.Contains(out.String(), "must reach") {
		t.Errorf("printed\n%s", out.String())
	}
}

func TestSyncTimes(t *testing.T) {
	dir := t.TempDir()
	took, err := syncTimes(dir, 5)
	if err != nil || len(took) != 5 || !slices.IsSorted(took) || took[0] <= 0 {
		t.Errorf("%v, error %v", took, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v is left, error %v", left, err)
	}
	if _, err := syncTimes(filepath.Join(dir, "missing"), 5); err == nil {
		t.Error("no error for a folder that is not there")
	}
}

func TestMachine(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells")
	}
	if fs := fileSystem("/proc/self"); !strings.HasPrefix(fs, "proc (") {
		t.Errorf("/proc/self is on %s, want proc", fs)
	}
	if fs := fileSystem(t.TempDir()); strings.Contains(fs, "unknown") {
		t.Errorf("a temporary folder is on %s", fs)
	}
	if c := cpuTimes(); !c.known || c.busy <= 0 {
		t.Errorf("%+v", c)
	}
}

func TestUsedByOthers(t *testing.T) {
	before := cpu{known: true, busy: 100, stolen: 5, byThis: 10}
	got := before.since(cpu{known: true, busy: 120, stolen: 7, byThis: 25}, 10*time.Second)
	if !strings.Contains(got, "used 0.50 cores, and 0.20 cores were taken") {
		t.Errorf("%q; want 0.50 and 0.20 cores", got)
	}
	if got := (cpu{}).since(before, time.Second); got != "" {
		t.Errorf("%q where the system does not tell", got)
	}
}
