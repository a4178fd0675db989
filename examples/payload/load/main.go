// Load sends numbered payloads to the example and to two servers that do the same work
// like the first versions in the article: with a goroutine for each payload, and with
// one consumer of one channel. It stops each server with SIGTERM after the last answer
// and counts the stored payloads, first with a folder, then with a slow object store. It
// prints Markdown tables and draws a chart.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// A variant is a way to do the work, with the title of its rows.
type variant struct{ name, title string }

var variants = []variant{
	{"holdfast", "Holdfast"},
	{"goroutines", "a goroutine per payload"},
	{"consumer", "one consumer, one channel"},
}

func main() {
	log.SetFlags(0)
	if len(os.Args) == 4 && os.Args[1] == "serve" { // this program, started by itself
		log.Fatal(serve(os.Args[2], os.Args[3]))
	}
	var p plan
	flag.StringVar(&p.program, "program", "", "`path` of the built example")
	flag.StringVar(&p.variant, "variant", "all", "run holdfast, goroutines, consumer or all")
	flag.IntVar(&p.folder.count, "count", 1_000_000, "send `n` payloads to the folder, one per request")
	flag.DurationVar(&p.folder.limit, "timeout", 5*time.Minute, "stop sending to the folder after this time")
	flag.IntVar(&p.slow.count, "slow-count", 20_000, "send `n` payloads to the slow store")
	flag.DurationVar(&p.slow.limit, "slow-timeout", 30*time.Second, "stop sending to the slow store after this time")
	flag.DurationVar(&p.upload, "upload", 50*time.Millisecond, "time that the slow store takes for an upload")
	connections := flag.Int("connections", 64, "send over `n` connections")
	chartPath := flag.String("chart", "", "write a chart to this `path`")
	flag.Parse()
	p.folder.connections, p.slow.connections = *connections, *connections
	if min(p.folder.count, p.slow.count, *connections) < 1 {
		log.Fatal("-count, -slow-count and -connections must be at least 1")
	}
	ctx, restore := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	groups, err := p.run(ctx)
	restore()
	if len(groups) == 0 {
		log.Fatal(err)
	}
	fmt.Printf("%s %s/%s, %d cores, %d connections.\n", runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), *connections)
	for _, g := range groups {
		g.print()
	}
	if err == nil && *chartPath != "" {
		err = os.WriteFile(*chartPath, chart(groups), 0o644)
	}
	if err != nil {
		log.Fatal(err)
	}
}

// A plan says which variants to run, and the loads for the two stores.
type plan struct {
	program, variant string
	folder, slow     load
	upload           time.Duration // in the slow store
}

// A group holds the results for one store.
type group struct {
	title   string
	results []result
}

func (p plan) chosen() ([]variant, error) {
	if p.variant == "all" {
		return variants, nil
	}
	for _, v := range variants {
		if v.name == p.variant {
			return []variant{v}, nil
		}
	}
	return nil, fmt.Errorf("-variant %q; want holdfast, goroutines, consumer or all", p.variant)
}

// run returns the results, and an error if the example lost a payload or stored it
// twice.
func (p plan) run(ctx context.Context) (groups []group, err error) {
	chosen, err := p.chosen()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "payload-load-")
	if err != nil {
		return nil, err
	}
	defer func() { // only at the end: deleting slows down some file systems for minutes
		log.Print("removing the files")
		os.RemoveAll(dir)
	}()
	if err := room(dir, len(chosen)*p.folder.count); err != nil {
		return nil, err
	}
	groups = []group{
		{title: fmt.Sprintf("%d payloads into a folder", p.folder.count)},
		{title: fmt.Sprintf("%d payloads, %v at most, into a slow store: %v each, %d at once", p.slow.count, p.slow.limit, p.upload, slowPlaces)},
	}
	var faults []error
	for g, l := range []load{p.folder, p.slow} {
		for _, v := range chosen {
			log.Printf("%s: %s", groups[g].title, v.title)
			r, strange, err := p.measure(ctx, v, l, filepath.Join(dir, v.name), g == 1)
			if err != nil {
				return groups, fmt.Errorf("%s: %w", v.title, err)
			}
			groups[g].results = append(groups[g].results, r)
			if strange > 0 {
				faults = append(faults, fmt.Errorf("%s: stored %d things that were not sent", v.title, strange))
			}
			if v.name == "holdfast" && (r.lost > 0 || r.twice > 0) {
				faults = append(faults, errors.New("the example did not store every accepted payload exactly once"))
			}
		}
	}
	return groups, errors.Join(faults...)
}

// measure runs one variant with the folder, or with a slow store. It also returns how
// many things the variant stored that were not sent.
func (p plan) measure(ctx context.Context, v variant, l load, folder string, slow bool) (r result, strange int, err error) {
	self, err := os.Executable()
	if err != nil {
		return r, 0, err
	}
	where := []string{"-folder", folder}
	var store *slowStore
	if slow {
		store = newSlowStore(l.count, p.upload)
		where = []string{"-s3", store.url()}
	}
	command := append([]string{p.program, "-addr", "127.0.0.1:0"}, where...)
	if v.name != "holdfast" {
		command = []string{self, "serve", v.name, where[1]}
	}
	r, latency, err := run(ctx, l, command...)
	var stored tally
	if store != nil {
		stored = store.close()
	} else if err == nil {
		stored, err = count(folder, l.count)
	}
	if err != nil {
		return r, 0, err
	}
	r.title = v.title
	r.against(stored, latency)
	return r, stored.strange, nil
}

func (g group) print() {
	fmt.Printf("\n%s:\n\n| | answered 2xx | a minute | answer, p50 | p99 | max | peak memory | lost | stored twice | after SIGTERM |\n|---|---|---|---|---|---|---|---|---|---|\n", g.title)
	for _, r := range g.results {
		fmt.Printf("| %s | %d | %.0f | %s | %s | %s | %.0f MiB | %d | %d | %s |\n", r.title, r.answered, r.rate(),
			short(r.p50), short(r.p99), short(r.max), r.peak/(1<<20), r.lost, r.twice, r.ended)
	}
}

// short formats a duration in milliseconds.
func short(d time.Duration) string {
	if d < 10*time.Millisecond {
		return fmt.Sprintf("%.1f ms", d.Seconds()*1000)
	}
	return fmt.Sprintf("%.0f ms", d.Seconds()*1000)
}
