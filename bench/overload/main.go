// Overload is an open-loop load generator: it sends requests when they are due,
// whatever became of those before, and its clients leave when their patience has
// ended. It measures a service that is given, or compares Holdfast with other ways
// to protect an upstream. See the README.md in the folder above.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	log.SetFlags(0)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout)
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
	case ctx.Err() != nil:
		log.Fatal("overload: interrupted, so there is nothing to compare")
	default:
		log.Fatal("overload: ", err)
	}
}

// run is the command.
func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) > 0 && args[0] == "serve" { // started by this program itself
		return serve(args[1:])
	}
	o, err := parse(args, out)
	if err != nil {
		return err
	}
	if o.url != "" {
		return o.measureURL(ctx, out)
	}
	return o.compare(ctx, out)
}

// measureURL measures the service at a URL. Interrupted, it tells what it has.
func (o *options) measureURL(ctx context.Context, out io.Writer) error {
	t := newTarget(ctx, &target{url: o.url, method: o.method, body: o.body, header: o.header, clientHeader: o.clientHeader})
	begin := time.Now()
	samples, h := t.send(schedule(o.seed, []phase{{o.rate, o.lasts}}, o.mix, o.constant), o.mix, o.maxOpen)
	lasts := o.lasts
	if ctx.Err() != nil {
		lasts = min(lasts, time.Since(begin))
		log.Printf("interrupted after %v", lasts.Round(time.Millisecond))
	}
	summaries := summarize(samples, o.mix, window{0, lasts})
	if o.json {
		return writeJSON(out, struct {
			Classes   []summary
			Faults    map[string]int
			Generator health
		}{summaries, t.faults, h})
	}
	printRun(out, summaries, lasts, o.capacity)
	printFaults(out, "", t.faults)
	fmt.Fprintf(out, "\n%v.\n", h)
	return nil
}

func writeJSON(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetIndent("", " ")
	return e.Encode(v)
}

// compare measures all contenders, prints the tables and draws the figure.
func (o *options) compare(ctx context.Context, out io.Writer) error {
	begin := time.Now()
	dir, err := os.MkdirTemp("", "holdfast-overload-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if o.quick && o.out == "." {
		o.out = dir // not over the figure that is there
	}
	list, missing, err := o.field(ctx, dir)
	if err != nil {
		return err
	}
	var steady [][]measurement // by service
	for _, s := range o.services {
		found, err := o.compareLoads(ctx, dir, list, s)
		if err != nil {
			return err
		}
		steady = append(steady, found)
	}
	around, err := o.compareBurst(ctx, dir, list, o.services[0])
	if err != nil {
		return err
	}
	if err := chart(filepath.Join(o.out, "overload.svg"), steady[0], around); err != nil {
		return err
	}
	if o.json {
		return writeJSON(out, append(slices.Concat(steady...), around...))
	}
	o.print(out, missing, steady, around)
	fmt.Fprintf(out, "\nTook %v.\n", time.Since(begin).Round(time.Second))
	return nil
}

// print prints the tables of a comparison.
func (o *options) print(out io.Writer, missing []string, steady [][]measurement, around []measurement) {
	fmt.Fprintf(out, "%s %s/%s, %d cores. An upstream of %d slots and %v, a queue of %d, a patience of %v, %v for each load.\n",
		runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.GOMAXPROCS(0), o.slots, o.serviceTime, o.queue, o.patience, o.lasts)
	for _, line := range missing {
		fmt.Fprintf(out, "\nSkipped: %s.\n", line)
	}
	for i, s := range o.services {
		printLoads(out, strings.ToUpper(s.name[:1])+s.name[1:]+" service", steady[i])
	}
	printBurst(out, fmt.Sprintf("A burst of %dx for %v", flood, o.lasts), around)
	printHealth(out, append(slices.Concat(steady...), around...))
}

// field returns the contenders that take part, and says which do not and why.
func (o *options) field(ctx context.Context, dir string) (list []contender, missing []string, err error) {
	binary := filepath.Join(dir, "holdfast")
	build := exec.CommandContext(ctx, "go", "build", "-o", binary, "holdfast/cmd/holdfast")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return nil, nil, fmt.Errorf("building Holdfast, which needs the folder of this module: %w", err)
	}
	wanted := func(name string) bool {
		return slices.ContainsFunc(strings.Split(o.only, ","), func(text string) bool { return strings.Contains(strings.ToLower(name), strings.ToLower(text)) })
	}
	for _, c := range contenders(binary, o.variants) {
		switch {
		case !wanted(c.name):
		case c.missing != "":
			missing = append(missing, c.name+", "+c.missing)
		default:
			list = append(list, c)
		}
	}
	if list == nil {
		return nil, nil, fmt.Errorf("-only %q; no contender that can run has that in its name", o.only)
	}
	return list, missing, nil
}
