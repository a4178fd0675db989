package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// spread returns the median of the rounds, with the lowest and the highest in brackets.
func spread(v []float64, format string) string {
	if len(v) == 0 {
		return "–"
	}
	text := fmt.Sprintf(format, median(v))
	if len(v) > 1 {
		text += fmt.Sprintf(" ("+format+"–"+format+")", slices.Min(v), slices.Max(v))
	}
	return text
}

// named returns the series of a contender; nil if it does not take part.
func (c *comparison) named(found []series, name string) series {
	i := slices.IndexFunc(c.list, func(e contender) bool { return e.name == name })
	if i < 0 {
		return nil
	}
	return found[i]
}

// ratio returns the ratios of a figure in the rounds; "–" if either does not take part.
func ratio(s, base series, figure func(sample) float64) string {
	if s == nil || base == nil {
		return "–"
	}
	return spread(over(s.of(figure), base.of(figure)), "%.2f")
}

// printAccepts prints what was accepted, by the number of clients.
func (c *comparison) printAccepts(out io.Writer, title string, found [][]series) {
	views := []struct {
		title string
		cell  func(s, plain series) string
	}{
		{title, func(s, _ series) string { return spread(s.of(rate), "%.0f") }},
		{"Divided by those of the plain file", func(s, plain series) string { return ratio(s, plain, rate) }},
		{"Time of an accept in ms, p50 and p99", func(s, _ series) string {
			return fmt.Sprintf("%.2f, %.2f", median(s.of(func(s sample) float64 { return s.p50 })), median(s.of(func(s sample) float64 { return s.p99 })))
		}},
	}
	for i, v := range views {
		heading := "\n### "
		if i > 0 {
			heading = "\n#### "
		}
		fmt.Fprint(out, heading, v.title, "\n\n| |")
		for _, n := range c.clients {
			fmt.Fprintf(out, " %s |", count(n, "client"))
		}
		fmt.Fprint(out, "\n|---|", strings.Repeat("---|", len(c.clients)), "\n")
		for e := range c.list {
			fmt.Fprintf(out, "| %s |", c.list[e].name)
			for n := range c.clients {
				fmt.Fprintf(out, " %s |", v.cell(found[n][e], c.named(found[n], plainName)))
			}
			fmt.Fprintln(out)
		}
	}
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// printEnd prints how fast clients get results.
func (c *comparison) printEnd(out io.Writer, found []series) {
	fmt.Fprintf(out, "\n### From the request to the result, %d clients, %d workers\n\n", workers, workers)
	fmt.Fprint(out, "| | jobs a second | divided by the plain file's | Holdfast's divided by it | p50, ms | p99, ms | a job alone, ms |\n|---|---|---|---|---|---|---|\n")
	for e, s := range found {
		fmt.Fprintf(out, "| %s | %s | %s | %s | %s | %s | %s |\n", c.list[e].name, spread(s.of(rate), "%.0f"),
			ratio(s, c.named(found, plainName), rate), ratio(c.named(found, holdfastName), s, rate),
			spread(s.of(func(s sample) float64 { return s.p50 }), "%.2f"), spread(s.of(func(s sample) float64 { return s.p99 }), "%.2f"),
			spread(s.of(func(s sample) float64 { return s.alone }), "%.2f"))
	}
}

// inSyncs is the 99th percentile of an accept, in fsyncs of the same minute.
func inSyncs(s sample) float64 { return s.p99 / s.syncP50 }

// printHalf prints how long an accept takes at half load.
func (c *comparison) printHalf(out io.Writer, found []series) {
	fmt.Fprint(out, "\n### An accept at half load\n\n| | accepts a second | p50, ms | p99, ms | an fsync, p50, ms | its p99, ms | p99 of an accept, in fsyncs | sent late, p99, ms |\n|---|---|---|---|---|---|---|---|\n")
	for e, s := range found {
		fmt.Fprintf(out, "| %s | %s |", c.list[e].name, spread(s.of(rate), "%.0f"))
		for _, figure := range []func(sample) float64{
			func(s sample) float64 { return s.p50 }, func(s sample) float64 { return s.p99 },
			func(s sample) float64 { return s.syncP50 }, func(s sample) float64 { return s.syncP99 },
			inSyncs, func(s sample) float64 { return s.late },
		} {
			fmt.Fprintf(out, " %s |", spread(s.of(figure), "%.2f"))
		}
		fmt.Fprintln(out)
	}
}

// bars are what Holdfast must reach, with what it does here.
type bars []struct{ what, bar, here string }

func (b *bars) add(what, bar, here string) {
	*b = append(*b, struct{ what, bar, here string }{what, bar, here})
}

func (b *bars) accept(c *comparison, found [][]series) {
	const clients = 64
	i := slices.Index(c.clients, clients)
	if i < 0 {
		return
	}
	mine, plain := c.named(found[i], holdfastName), c.named(found[i], plainName)
	if mine != nil && plain != nil {
		b.add(fmt.Sprintf("accepts of %d clients", clients), "0.8 of the plain file's", ratio(mine, plain, rate))
	}
}

func (b *bars) end(c *comparison, found []series) {
	mine := c.named(found, holdfastName)
	for _, name := range others() {
		if s := c.named(found, name); mine != nil && s != nil {
			b.add("results, compared with "+name, "above 1", ratio(mine, s, rate))
		}
	}
}

func (b *bars) half(c *comparison, found []series) {
	if mine := c.named(found, holdfastName); mine != nil {
		b.add("p99 of an accept at half load, in fsyncs", "below 3", spread(mine.of(inSyncs), "%.2f"))
	}
}

func (b *bars) print(out io.Writer) {
	if len(*b) == 0 {
		return
	}
	fmt.Fprint(out, "\n### What Holdfast must reach\n\n| | bar | here |\n|---|---|---|\n")
	for _, row := range *b {
		fmt.Fprintf(out, "| %s | %s | %s |\n", row.what, row.bar, row.here)
	}
}
