// Bench measures what Holdfast costs beside other ways to run jobs on a bounded
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
	waiting = flag.Int("waiting", 1_000_000, "jobs that wait while their memory is measured")
	quick   = flag.Bool("quick", false, "only see that everything runs; the figures mean nothing")
	out     = flag.String("out", ".", "folder for ratios.svg")
	only    = flag.String("only", "", "measure one part: \"http\" or \"keep\"; used by this program when it starts itself: \"weigh\" and a contender's name, \"statistics\" or \"bare\"")
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
	case "weigh":
		must(json.NewEncoder(os.Stdout).Encode(weigh(named(flag.Arg(0))[0], workers, *waiting)))
		return
	case "statistics":
		must(json.NewEncoder(os.Stdout).Encode(statistics()))
		return
	case "bare":
		serveBare()
		return
	default:
		log.Fatalf("-only %q; want http, keep, weigh, statistics or bare", *only)
	}
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
		*out = dir // not over the chart that is there
	}

	begin := time.Now()
	fmt.Printf("%s %s/%s, %d cores, %d rounds, %d jobs, %d workers, a queue of %d.\n",
		runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.GOMAXPROCS(0), *rounds, *jobs, workers, places)
	free := freeCores()

	if *only != "http" {
		compareKeepers(max(*jobs, 2*kept)) // first, while there is little else for the garbage collector
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

// An entrant is a contender in a comparison.
type entrant struct {
	contender
	open int
}

// compare measures all contenders on one kind of job, and draws a chart of
// those without handles if it is given a path.
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
		fmt.Print("| | cost, 2 producers | cost, 200 producers | ns per job, 2 | ns per job, 200 | allocations per job | queue |\n|---|---|---|---|---|---|---|\n")
		base := slices.IndexFunc(entrants, func(e entrant) bool { return e.open == g.open })
		var names []string
		var bars [2][]float64
		for i, e := range entrants {
			if e.open != g.open {
				continue
			}
			few, many := samples[0], samples[1]
			fmt.Printf("| %s | %s | %s | %.0f | %.0f | %.2f | %s |\n", e.name, ratio(few[i], few[base]), ratio(many[i], many[base]),
				medianNS(few[i]), medianNS(many[i]), median(each(few[i], few[i], func(a, _ sample) float64 { return a.Allocs })), e.queue)
			names = append(names, e.name)
			for p := range bars {
				bars[p] = append(bars[p], median(ratios(samples[p][i], samples[p][base])))
			}
		}
		if chartPath != "" && g.open == 0 {
			chart(chartPath, names, bars)
		}
	}
}

func ratios(a, base []sample) []float64 {
	return each(a, base, func(a, base sample) float64 { return a.NS / base.NS })
}

func medianNS(s []sample) float64 {
	return median(each(s, s, func(a, _ sample) float64 { return a.NS }))
}

// ratio is the cost of a in that of base: the median over the rounds, and the
// lowest and the highest.
func ratio(a, base []sample) string {
	if slices.Equal(a, base) {
		return "1"
	}
	r := ratios(a, base)
	return fmt.Sprintf("%.2f (%.2f–%.2f)", median(r), slices.Min(r), slices.Max(r))
}

// compareHeap shows what an empty job costs in a process that has much in memory
// besides: the garbage collector comes less often, which helps those that allocate.
func compareHeap() {
	const inUse = 200 << 20
	const producers = 2
	groups := []struct {
		open       int
		contenders []contender // the first is the one that the others are compared with
	}{
		{0, named("Holdfast Go", "bare channel", "pond Go")},
		{100, named("Holdfast Submit", "bare channel, done channel per job", "pond Submit")},
	}
	log.Printf("Empty job, beside %d MiB in use", inUse>>20)
	fmt.Printf("\n### Empty job, beside %d MiB in use, %d producers\n\n| | handles open | cost | ns per job |\n|---|---|---|---|\n", inUse>>20, producers)
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

// weighAll measures each contender in a process of its own, since a million
// goroutines leave their mark on the heap.
func weighAll() {
	fmt.Printf("\n### %d jobs waiting\n\n| | bytes per job | goroutines |\n|---|---|---|\n", *waiting)
	for _, c := range contenders {
		if c.parks {
			fmt.Printf("| %s | n/a: a job that waits is a submitter that waits | |\n", c.name)
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

// compareWorkers shows what more workers cost, most of which are idle.
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
				// Many jobs for each worker, so that to hold them all at the end does not count.
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
