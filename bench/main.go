// Bench measures the cost of Holdfast and of other ways to run jobs on a bounded
// number of goroutines, all in one run on one machine. It prints Markdown tables
// and draws ratios.svg. See README.md.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

const workers = 64

var (
	rounds  = flag.Int("rounds", 7, "measurements of each figure")
	jobs    = flag.Int("jobs", 500_000, "empty jobs in one measurement")
	waiting = flag.Int("waiting", 1_000_000, "queued jobs whose memory is measured")
	quick   = flag.Bool("quick", false, "only check that everything runs; the figures mean nothing")
	out     = flag.String("out", ".", "folder for ratios.svg")
	only    = flag.String("only", "", "measure one part: \"http\" or \"keep\"; for the program's own use: \"weigh\" and a contender's name, \"statistics\" or \"bare\"")
)

var (
	bothProducers = []int{2, 200}
	workerCounts  = []int{1, 10, 100, 1000, 10_000}
)

func main() {
	log.SetFlags(0)
	flag.Parse()
	switch *only {
	case "", "http", "keep":
		measureAll()
	case "weigh":
		must(json.NewEncoder(os.Stdout).Encode(weigh(named(flag.Arg(0))[0], workers, *waiting)))
	case "statistics":
		must(json.NewEncoder(os.Stdout).Encode(statistics()))
	case "bare":
		serveBare()
	default:
		log.Fatalf("-only %q; want http, keep, weigh, statistics or bare", *only)
	}
}

// measureAll measures what -only selects, and prints the tables.
func measureAll() {
	if *quick {
		*rounds, *jobs, *waiting, workerCounts = 1, 2000, 10_000, workerCounts[:3]
	}
	if *rounds < 1 || *jobs < 1 || *waiting < 1 {
		log.Fatal("-rounds, -jobs and -waiting must be at least 1")
	}
	dir, err := os.MkdirTemp("", "holdfast-bench-")
	must(err)
	defer os.RemoveAll(dir)
	if *quick && *out == "." {
		*out = dir // keep the existing chart
	}

	begin := time.Now()
	fmt.Printf("%s %s/%s, %d cores, %d rounds, %d jobs, %d workers, a queue of %d.\n",
		runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.GOMAXPROCS(0), *rounds, *jobs, workers, places)
	free := freeCores()

	if *only != "http" {
		compareKeepers(max(*jobs, 2*kept)) // first, while the garbage collector has little else to scan
	}
	if *only == "" {
		compare("Empty job", newJob(func() {}), *jobs, filepath.Join(*out, "ratios.svg"))
		compareHeap()
		compare("Job of 10 µs", busy(10*time.Microsecond), max(*jobs/25, 1), "")
		weighAll()
		compareWorkers()
		compareStatistics(dir)
	}
	if *only != "keep" {
		perServer := 3 * time.Second
		if *quick {
			perServer = time.Second / 4
		}
		compareHTTP(dir, perServer)
	}
	fmt.Printf("\nFree cores: %.1f at the start, %.1f at the end. Took %v.\n", free, freeCores(), time.Since(begin).Round(time.Second))
}

// An entrant is a contender in a comparison, with the number of handles that each
// producer keeps open.
type entrant struct {
	contender
	open int
}

// compare measures all contenders with one kind of job. If chartPath is not empty,
// it draws a chart of those without handles.
func compare(title string, j *job, jobs int, chartPath string) {
	groups := []struct {
		title string
		open  int
	}{
		{"submit and forget", 0},
		{"with a handle, a producer keeps 100 open", 100},
		{"with a handle, waited for at once", 1},
	}
	var entrants []entrant
	for _, g := range groups {
		for _, c := range contenders {
			if c.handle == (g.open > 0) {
				entrants = append(entrants, entrant{c, g.open})
			}
		}
	}
	var samples [][][]sample // by producers, entrant, round
	for _, producers := range bothProducers {
		log.Printf("%s, %d producers", title, producers)
		samples = append(samples, interleave(*rounds, len(entrants), func(e int) sample {
			return measure(entrants[e].contender, load{job: j, jobs: jobs, producers: producers, workers: workers, open: entrants[e].open})
		}))
	}
	for _, g := range groups {
		fmt.Printf("\n### %s, %s\n\n", title, g.title)
		group := slices.DeleteFunc(slices.Clone(entrants), func(e entrant) bool { return e.open != g.open })
		first := slices.IndexFunc(entrants, func(e entrant) bool { return e.open == g.open })
		few, many := samples[0][first:first+len(group)], samples[1][first:first+len(group)]
		names, bars := printCosts(group, few, many)
		if chartPath != "" && g.open == 0 {
			chart(chartPath, names, bars)
		}
	}
}

// printCosts prints a table of entrants, with the samples from few and from many
// producers. It returns the names and the costs relative to the first entrant.
func printCosts(entrants []entrant, few, many [][]sample) (names []string, costs [2][]float64) {
	fmt.Print("| | cost, 2 producers | cost, 200 producers | ns per job, 2 | ns per job, 200 | allocations per job | queue |\n|---|---|---|---|---|---|---|\n")
	for i, e := range entrants {
		fmt.Printf("| %s | %s | %s | %.0f | %.0f | %.2f | %s |\n", e.name, ratio(few[i], few[0]), ratio(many[i], many[0]),
			medianNS(few[i]), medianNS(many[i]), median(each(few[i], few[i], func(a, _ sample) float64 { return a.Allocs })), e.queue)
		names = append(names, e.name)
		costs[0] = append(costs[0], median(ratios(few[i], few[0])))
		costs[1] = append(costs[1], median(ratios(many[i], many[0])))
	}
	return names, costs
}

func ratios(a, base []sample) []float64 {
	return each(a, base, func(a, base sample) float64 { return a.NS / base.NS })
}

func medianNS(s []sample) float64 {
	return median(each(s, s, func(a, _ sample) float64 { return a.NS }))
}

// ratio returns the cost of a relative to base: the median over the rounds, with the
// lowest and the highest in brackets.
func ratio(a, base []sample) string {
	if slices.Equal(a, base) {
		return "1"
	}
	r := ratios(a, base)
	return fmt.Sprintf("%.2f (%.2f–%.2f)", median(r), slices.Min(r), slices.Max(r))
}

// compareHeap shows the cost of an empty job in a process with a large heap. There the
// garbage collector runs less often, which helps contenders that allocate.
func compareHeap() {
	const inUse = 200 << 20
	const producers = 2
	groups := []struct {
		open       int
		contenders []contender // the others are compared with the first
	}{
		{0, named("Holdfast Go", "bare channel", "pond Go")},
		{100, named("Holdfast Submit", "bare channel, done channel per job", "pond Submit")},
	}
	log.Printf("Empty job, with %d MiB in use", inUse>>20)
	fmt.Printf("\n### Empty job, with %d MiB in use, %d producers\n\n| | handles open | cost | ns per job |\n|---|---|---|---|\n", inUse>>20, producers)
	heap := make([]byte, inUse)
	for _, g := range groups {
		samples := interleave(*rounds, len(g.contenders), func(c int) sample {
			return measure(g.contenders[c], load{job: newJob(func() {}), jobs: *jobs, producers: producers, workers: workers, open: g.open})
		})
		for i, c := range g.contenders {
			fmt.Printf("| %s | %d | %s | %.0f |\n", c.name, g.open, ratio(samples[i], samples[0]), medianNS(samples[i]))
		}
	}
	runtime.KeepAlive(heap)
}

// weighAll measures each contender in a separate process, since a million goroutines
// leave a large heap behind.
func weighAll() {
	fmt.Printf("\n### %d jobs waiting\n\n| | bytes per job | goroutines |\n|---|---|---|\n", *waiting)
	for _, c := range contenders {
		if c.parks {
			fmt.Printf("| %s | n/a: a waiting job is a blocked submitter | |\n", c.name)
			continue
		}
		log.Printf("%d jobs waiting, %s", *waiting, c.name)
		self, err := os.Executable()
		must(err)
		var f footprint
		must(json.Unmarshal(command(self, "-only=weigh", fmt.Sprint("-waiting=", *waiting), c.name), &f))
		fmt.Printf("| %s | %.0f | %d |\n", c.name, f.Bytes, f.Goroutines)
	}
}

// compareWorkers shows the cost of more workers, most of which are idle.
func compareWorkers() {
	entrants := named("Holdfast Go", "bare channel", "pond Go")
	for _, producers := range bothProducers {
		fmt.Printf("\n### Empty job, by number of workers, %d producers\n\n| workers |", producers)
		for _, c := range entrants {
			fmt.Printf(" %s, ns |", c.name)
		}
		for _, c := range entrants[1:] {
			fmt.Printf(" %s / Holdfast |", c.name)
		}
		fmt.Printf("\n|%s\n", strings.Repeat("---|", 2*len(entrants)))
		for _, w := range workerCounts {
			log.Printf("%d workers, %d producers", w, producers)
			samples := interleave(*rounds, len(entrants), func(e int) sample {
				// Many jobs for each worker, so that holding all workers at the end does not count.
				return measure(entrants[e], load{job: newJob(func() {}), jobs: max(*jobs, 100*w), producers: producers, workers: w})
			})
			fmt.Printf("| %d |", w)
			for _, s := range samples {
				fmt.Printf(" %.0f |", medianNS(s))
			}
			for _, s := range samples[1:] {
				fmt.Printf(" %s |", ratio(s, samples[0]))
			}
			fmt.Println()
		}
	}
}

func named(names ...string) []contender {
	var found []contender
	for _, name := range names {
		i := slices.IndexFunc(contenders, func(c contender) bool { return c.name == name })
		if i < 0 {
			log.Fatalf("no contender %q", name)
		}
		found = append(found, contenders[i])
	}
	return found
}

// command runs a program and returns what it prints.
func command(name string, args ...string) []byte {
	cmd := exec.Command(name, args...)
	cmd.Stderr = os.Stderr
	text, err := cmd.Output()
	must(err)
	return text
}
