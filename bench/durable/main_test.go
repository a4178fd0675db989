package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The program starts itself as a contender, and here that is the test.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		if err := run(context.Background(), os.Args[1:], os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// installed skips the test of a contender whose server is not installed, or fails it if
// HOLDFAST_REQUIRE_SERVICES is set.
func installed(t *testing.T, c contender) {
	t.Helper()
	switch missing := c.missing(); {
	case missing == "":
	case os.Getenv("HOLDFAST_REQUIRE_SERVICES") != "":
		t.Fatalf("%s, and HOLDFAST_REQUIRE_SERVICES is set", missing)
	default:
		t.Skip(missing)
	}
}

// reachable returns a temporary folder that the user of Postgres can pass through, which
// that of [testing.T.TempDir] is not.
func reachable(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "holdfast-durable-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

// The whole comparison in its quick form, with whatever is installed. It asserts no
// figure but that there is one in every cell.
func TestCompare(t *testing.T) {
	for _, c := range contenders {
		if missing := c.missing(); missing != "" && os.Getenv("HOLDFAST_REQUIRE_SERVICES") != "" {
			t.Errorf("%s, and HOLDFAST_REQUIRE_SERVICES is set", missing)
		}
	}
	dir := reachable(t)
	var out bytes.Buffer
	if err := run(t.Context(), []string{"-quick", "-dir", dir}, &out); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	t.Log(out.String())
	for _, c := range contenders {
		if c.missing() != "" {
			if !strings.Contains(out.String(), "Skipped: "+c.name) {
				t.Errorf("%s does not take part, and no line says so", c.name)
			}
			continue
		}
		rows := regexp.MustCompile(`(?m)^\| `+regexp.QuoteMeta(c.name)+` \|(.*)\|$`).FindAllStringSubmatch(out.String(), -1)
		if len(rows) != 8 {
			t.Errorf("%s stands in %d tables, want 8", c.name, len(rows))
		}
		for _, row := range rows {
			for cell := range strings.SplitSeq(row[1], "|") {
				for figure := range strings.SplitSeq(cell, ",") {
					if v, err := strconv.ParseFloat(strings.TrimSpace(figure), 64); err != nil || v < 0 {
						t.Errorf("%s has the cell %q; want figures", c.name, cell)
					}
				}
			}
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v is left in the folder, error %v", left, err)
	}
}

func TestFlags(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"-rounds 0", "want 1 to 100"},
		{"-rounds 101", "want 1 to 100"},
		{"-for 1ms", "want 50ms to 1m0s"},
		{"-for 2m", "want 50ms to 1m0s"},
		{"-part accept,begin", "want accept,waiting,end,half"},
		{"more", "want flags only"},
	} {
		if _, err := parse(strings.Fields(c.args), io.Discard); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v; want one with %q", c.args, err, c.want)
		}
	}
	o, err := parse([]string{"-part", "end,half", "-for", "4s"}, io.Discard)
	if err != nil || fmt.Sprint(o.parts) != "[end half]" || o.warm() != time.Second {
		t.Errorf("parts %v, warm %v, error %v", o.parts, o.warm(), err)
	}
	var help bytes.Buffer
	if _, err := parse([]string{"-h"}, &help); !errors.Is(err, flag.ErrHelp) || !strings.Contains(help.String(), "-rounds") {
		t.Errorf("-h: error %v and %q", err, help.String())
	}
}

func TestOnlyNamesNobody(t *testing.T) {
	if err := run(t.Context(), []string{"-only", "nobody"}, io.Discard); err == nil || !strings.Contains(err.Error(), "-only") {
		t.Errorf("error %v; want one about -only", err)
	}
}

// An error in the start of a contender comes with what it has said.
func TestContenderFails(t *testing.T) {
	c := contender{name: plainName}
	if _, err := launch(t.Context(), c, filepath.Join(t.TempDir(), "missing"), 1); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("error %v; want that there is no such file", err)
	}
}

// A contender that is given up while it starts ends its database, though nobody reads
// what it says any more.
func TestGivenUp(t *testing.T) {
	c := contenders[2]
	installed(t, c)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := launch(ctx, c, reachable(t), 1); err == nil || strings.Contains(err.Error(), "signal") || strings.Contains(err.Error(), "exit") {
		t.Errorf("error %v; want that it was given up, and that it has ended in good order", err)
	}
}
