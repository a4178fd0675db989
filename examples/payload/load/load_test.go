package main

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The load tool starts itself as one of the servers.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "serve" {
		fmt.Fprintln(os.Stderr, serve(os.Args[2], os.Args[3]))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func TestAll(t *testing.T) {
	program := filepath.Join(t.TempDir(), "payload")
	if out, err := exec.Command("go", "build", "-o", program, "..").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Setenv("TMPDIR", t.TempDir())
	limit := time.Minute
	p := plan{program: program, variant: "all", folder: load{1000, 8, limit}, slow: load{100, 8, limit}, upload: time.Millisecond}
	groups, err := p.run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, g := range groups {
		for v, r := range g.results {
			if want := []int{1000, 100}[i]; r.title != variants[v].title || r.answered != want || r.twice != 0 || !(0 < r.p50 && r.p50 <= r.p99 && r.p99 <= r.max) {
				t.Errorf("%s: %+v; want %d answered", g.title, r, want)
			}
		}
		if len(g.results) != len(variants) {
			t.Errorf("%s: %d results", g.title, len(g.results))
		}
	}
	if left, _ := os.ReadDir(os.Getenv("TMPDIR")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	text := xml.NewDecoder(strings.NewReader(string(chart(groups))))
	for err == nil {
		_, err = text.Token()
	}
	if !errors.Is(err, io.EOF) {
		t.Errorf("the chart is not XML: %v", err)
	}
}

func TestLossIsFound(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a": `{"n":0}`, "b": `{"n":2}`, "c": `{"n":2}`, "d": `{"n":2}`,
		"e": `{"n":3}x`, "f": `{"n":6}`, "g": "", "h": `{"n":-1}`,
		"i.part": `{"n":1}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	stored, err := count(dir, 6)
	if err != nil {
		t.Fatal(err)
	}
	var r result
	r.against(stored, []time.Duration{1, 1, 1, 1, 1, 0})
	if r.lost != 3 || r.twice != 1 || stored.strange != 4 {
		t.Errorf("%d lost, %d twice, %d strange; want 3, 1, 4", r.lost, r.twice, stored.strange)
	}
}

func TestNoRoom(t *testing.T) {
	if err := room(t.TempDir(), 1<<50); err == nil {
		t.Error("room reported for 2^50 files")
	}
}

func TestUnknownVariant(t *testing.T) {
	if _, err := (plan{variant: "none", folder: load{count: 1}}).run(t.Context()); err == nil || !strings.Contains(err.Error(), `"none"`) {
		t.Errorf("error %v; want one that names it", err)
	}
}
