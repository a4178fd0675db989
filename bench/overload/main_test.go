package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// The program starts itself as a contender, and here that is the test.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		fmt.Fprintln(os.Stderr, run(context.Background(), os.Args[1:], os.Stdout))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// The whole comparison, on loopback, in its quick form. It asserts no figure.
func TestCompare(t *testing.T) {
	var out bytes.Buffer
	dir := t.TempDir()
	args := []string{"-quick", "-json", "-out", dir, "-only", "chi,holdfast", "-holdfast", "-overflow reject", "-mix", "urgent:20%:u=1,rest:80%:clients=3"}
	if err := run(t.Context(), args, &out); err != nil {
		t.Fatal(err)
	}
	var found []measurement
	if err := json.Unmarshal(out.Bytes(), &found); err != nil {
		t.Fatal(err)
	}
	const chi, mine = "chi Throttle, backlog", "Holdfast -overflow reject"
	checkMeasurements(t, found, chi+" 0.5x", mine+" 0.5x", chi+" 2x", mine+" 2x", chi+" burst", mine+" burst")
	checkFigure(t, filepath.Join(dir, "overload.svg"), chi, mine)
	var tables bytes.Buffer
	printLoads(&tables, "Exponential service", found[:4])
	printBurst(&tables, "A burst", found[4:])
	printHealth(&tables, found)
	for _, text := range []string{"\n| | 0.5x | 2x |\n", "Exponential service, rest: Jain's index", "\n| " + mine + " |", "The worst of all runs"} {
		if !strings.Contains(tables.String(), text) {
			t.Errorf("no %q in the tables:\n%s", text, tables.String())
		}
	}
}

// checkMeasurements checks that each load came to each contender, and that what
// became of the requests adds up.
func checkMeasurements(t *testing.T, found []measurement, want ...string) {
	t.Helper()
	var got []string
	for _, m := range found {
		got = append(got, m.Contender+" "+m.where())
		if len(m.Classes) != 3 || m.Calls == 0 {
			t.Errorf("%s, %s: %d classes, %d calls; want 3, and some", m.Contender, m.where(), len(m.Classes), m.Calls)
		}
		for _, s := range m.Classes {
			if s.Sent == 0 || s.Good+s.Late+s.Refused+s.Failed+s.Left != s.Sent {
				t.Errorf("%s, %s: %+v does not add up", m.Contender, m.where(), s)
			}
		}
		if all := m.Classes[0]; all.Failed > 0 {
			t.Errorf("%s, %s: errors %v", m.Contender, m.where(), m.Faults)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// checkFigure checks that a figure is well-formed and names the contenders.
func checkFigure(t *testing.T, path string, names ...string) {
	t.Helper()
	svg, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
		if _, err := d.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range names {
		if !bytes.Contains(svg, []byte(name)) {
			t.Errorf("%s does not name %s", path, name)
		}
	}
}

// A fake is a service that does what the name of the client says.
type fake struct {
	mu       sync.Mutex
	seen     map[string]int // requests by method, urgency, client, preference and body
	departed chan struct{}  // a client has closed its connection
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	client := r.Header.Get("Tenant")
	f.mu.Lock()
	f.seen[strings.Join([]string{r.Method, r.Header.Get("Priority"), client, r.Header.Get("Prefer"), string(body)}, " ")]++
	f.mu.Unlock()
	switch client {
	case "left":
		<-r.Context().Done()
		f.departed <- struct{}{}
	case "refused":
		http.Error(w, "full", http.StatusServiceUnavailable)
	case "failed":
		http.Error(w, "broken", http.StatusTeapot)
	}
}

func (f *fake) count(key string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen[key]
}

// Against a service of the user's: what is sent is what the flags say, what comes
// back is what is told, and a client that leaves closes its connection.
func TestMeasureURL(t *testing.T) {
	service := &fake{seen: make(map[string]int), departed: make(chan struct{}, 1000)}
	server := httptest.NewServer(service)
	defer server.Close()
	var out bytes.Buffer
	err := run(t.Context(), []string{"-url", server.URL, "-rate", "80", "-for", "1s", "-constant", "-json", "-patience", "20s",
		"-method", "POST", "-body", "work", "-header", "Prefer: wait=1", "-client-header", "Tenant",
		"-mix", "good:25%:clients=1:u=1,left:25%:clients=1:patience=50ms,refused:25%:clients=1,failed:25%:clients=1"}, &out)
	if err != nil {
		t.Fatal(err)
	}
	var found struct {
		Classes []summary
		Faults  map[string]int
	}
	if err := json.Unmarshal(out.Bytes(), &found); err != nil {
		t.Fatal(err)
	}
	all, good, left, refused, failed := found.Classes[0], found.Classes[1], found.Classes[2], found.Classes[3], found.Classes[4]
	if all.Sent != 79 || good.Good != good.Sent || left.Left != left.Sent || refused.Refused != refused.Sent || failed.Failed != failed.Sent {
		t.Errorf("%+v", found)
	}
	if found.Faults["status 418"] != failed.Sent || len(found.Faults) != 1 {
		t.Errorf("errors %v; want status 418, %d times", found.Faults, failed.Sent)
	}
	for key, want := range map[string]int{"POST u=1 good wait=1 work": good.Sent, "POST  refused wait=1 work": refused.Sent, "POST  failed wait=1 work": failed.Sent} {
		if got := service.count(key); got != want {
			t.Errorf("%q came %d times, want %d", key, got, want)
		}
	}
	// Where the machine is busy, some leave before they have arrived.
	for range service.count("POST  left wait=1 work") {
		select {
		case <-service.departed:
		case <-time.After(30 * time.Second):
			t.Fatal("a client that left has not closed its connection")
		}
	}
}

func TestFlags(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"-url localhost:80 -rate 1", "want a URL"},
		{"-url http://x", "-rate and -for"},
		{"-url http://x -rate 1e9", "at most 20000"},
		{"-url http://x -rate NaN", "at most 20000"},
		{"-url http://x -rate 1 -for 11m", "at most 10m0s"},
		{"-for 2500000h", "at most 10m0s"},
		{"-warm 2500000h", "-warm of 0 to 10m"},
		{"-for 5m", "at most 10m0s"},
		{"-url http://x -rate 20000 -for 10m", "at most 2000000"},
		{"-url http://x -rate 1 -for 500ms", "whole seconds"},
		{"-url http://x -rate 1 -patience 0", "-patience 0s; want 1ms"},
		{"-url http://x -rate 1 -method a(b", "-method"},
		{"-url http://x -rate 1 -header a", "want name: value"},
		{"-url http://x -rate 1 -client-header a:b", "-client-header"},
		{"-url http://x -rate 1 -capacity -1", "-capacity"},
		{"-url http://x -rate 1 more", "want flags only"},
		{"-open 0", "-open 0; want 1"},
		{"-rate 1", "need -url"},
		{"-loads 1,1", "each once"},
		{"-loads 0", "above 0"},
		{"-loads 1000", "at most 20000"},
		{"-service medium", "want exponential, fixed or slow"},
		{"-slots 0", "want -slots"},
		{"-mix a:50%", "want 100%"},
		{"-holdfast a -holdfast a", "each once"},
	} {
		if _, err := parse(strings.Fields(c.args), io.Discard); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v; want one with %q", c.args, err, c.want)
		}
	}
	var help bytes.Buffer
	if _, err := parse([]string{"-h"}, &help); !errors.Is(err, flag.ErrHelp) || !strings.Contains(help.String(), "-patience") {
		t.Errorf("-h: error %v and %q", err, help.String())
	}
}

func TestOnlyNamesNobody(t *testing.T) {
	if err := run(t.Context(), []string{"-quick", "-only", "nobody"}, io.Discard); err == nil || !strings.Contains(err.Error(), "-only") {
		t.Errorf("error %v; want one about -only", err)
	}
}
