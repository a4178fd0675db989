package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"
)

// A statistic is the result of one process for its build of Holdfast, and for a bare
// channel.
type statistic struct{ Holdfast, Channel sample }

// statistics measures with 2 and with 200 producers.
func statistics() []statistic {
	var found []statistic
	entrants := named("Holdfast Go", "bare channel")
	for _, producers := range bothProducers {
		var s [2]sample
		for range 2 { // the first time is a warm-up
			for i, c := range entrants {
				s[i] = measure(c, load{job: newJob(func() {}), jobs: *jobs, producers: producers, workers: workers})
			}
		}
		found = append(found, statistic{s[0], s[1]})
	}
	return found
}

// compareStatistics measures the cost of Holdfast's statistics. They cannot be switched
// off, since nobody could look into a program without them, so it builds Holdfast
// without them.
func compareStatistics(dir string) {
	variants := []struct {
		name string
		off  bool
	}{
		{"all statistics", false},
		{"without timing", true},
	}
	binaries := make([]string, len(variants))
	for i, v := range variants {
		log.Printf("building Holdfast, %s", v.name)
		binaries[i] = build(filepath.Join(dir, fmt.Sprint(i)), v.off)
	}
	log.Print("measuring the builds")
	found := interleave(*rounds, len(variants), func(e int) (s []statistic) {
		must(json.Unmarshal(command(binaries[e], "-only=statistics", fmt.Sprint("-jobs=", *jobs)), &s))
		return s
	})
	for p, producers := range bothProducers {
		of := func(pick func(statistic) sample, variant int) (s []sample) {
			for _, round := range found[variant] {
				s = append(s, pick(round[p]))
			}
			return s
		}
		holdfast := func(s statistic) sample { return s.Holdfast }
		channel := func(s statistic) sample { return s.Channel }
		fmt.Printf("\n### Statistics, empty job, %d producers\n\n", producers)
		fmt.Print("| Holdfast Go | cost | ns per job | saves, ns | bare channel in the same process, ns | Holdfast / bare channel |\n|---|---|---|---|---|---|\n")
		full := of(holdfast, 0)
		for v, variant := range variants {
			mine, bare := of(holdfast, v), of(channel, v)
			saves := median(each(full, mine, func(full, mine sample) float64 { return full.NS - mine.NS }))
			fmt.Printf("| %s | %s | %.0f | %.0f | %.0f | %s |\n", variant.name, ratio(mine, full), medianNS(mine), saves, medianNS(bare), ratio(mine, bare))
		}
	}
}

// build builds this program, with Holdfast's constant timing set to false if off.
// It uses an overlay, so the file does not change.
func build(dir string, off bool) (binary string) {
	original := filepath.Join(strings.TrimSpace(string(command("go", "list", "-f", "{{.Dir}}", "holdfast"))), "stats.go")
	source, err := os.ReadFile(original)
	must(err)
	if off {
		on, without := []byte("\nconst timing = true\n"), []byte("\nconst timing = false\n")
		if !bytes.Contains(source, on) {
			panic(original + " has no line const timing = true")
		}
		source = bytes.Replace(source, on, without, 1)
	}
	replaced, overlay, binary := filepath.Join(dir, "stats.go"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "bench")
	text, err := json.Marshal(map[string]map[string]string{"Replace": {original: replaced}})
	must(err)
	must(os.Mkdir(dir, 0o755))
	must(os.WriteFile(replaced, source, 0o644))
	must(os.WriteFile(overlay, text, 0o644))
	command("go", "build", "-overlay", overlay, "-o", binary, "holdfast/bench")
	return binary
}
