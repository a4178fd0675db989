package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// printRun prints what a run against one service gave.
func printRun(w io.Writer, summaries []summary, lasts time.Duration, capacity float64) {
	fmt.Fprintf(w, "%d requests in %v. Times count from when a request was due.\n\n", summaries[0].Sent, lasts)
	fmt.Fprint(w, "| class | requests | good a second | % of capacity | in time, % | p50 of good | p99 | p99.9 | refused | p50 of refusals | p99 | client left | late | errors | Jain's index |\n|---|", strings.Repeat("---|", 14), "\n")
	for _, s := range summaries {
		share, fair := "–", "–"
		if capacity > 0 {
			share = fmt.Sprintf("%.1f", 100*s.Goodput/capacity)
		}
		if s.Jain > 0 {
			fair = fmt.Sprintf("%.3f", s.Jain)
		}
		fmt.Fprintf(w, "| %s | %d | %.1f | %s | %.1f | %s | %s | %s | %d | %s | %s | %d | %d | %d | %s |\n",
			s.Name, s.Sent, s.Goodput, share, 100*s.InTime, seconds(s.P50), seconds(s.P99), seconds(s.P999),
			s.Refused, seconds(s.RefusedP50), seconds(s.RefusedP99), s.Left, s.Late, s.Failed, fair)
	}
}

// printFaults says what was wrong with the failed requests.
func printFaults(w io.Writer, where string, faults map[string]int) {
	for _, text := range slices.Sorted(maps.Keys(faults)) {
		fmt.Fprintf(w, "\n%sErrors: %d times %s.\n", where, faults[text], text)
	}
}

// A view is one table of a comparison: a cell for each contender and load.
type view struct {
	title string
	cell  func(m measurement, class int) string
}

var views = []view{
	{"goodput, % of capacity", func(m measurement, class int) string {
		return fmt.Sprintf("%.1f", 100*m.Classes[class].Goodput/m.Capacity)
	}},
	{"p99 of good answers", func(m measurement, class int) string { return seconds(m.Classes[class].P99) }},
	{"refused, % of requests", func(m measurement, class int) string { return percent(m.Classes[class].Refused, m.Classes[class].Sent) }},
	{"p99 of refusals", func(m measurement, class int) string { return seconds(m.Classes[class].RefusedP99) }},
	{"work done for nobody, % of calls", func(m measurement, _ int) string { return percent(int(m.Vain), int(m.Calls)) }},
	{"errors", func(m measurement, class int) string { return fmt.Sprint(m.Classes[class].Failed) }},
	{"most memory, MiB", func(m measurement, _ int) string {
		if m.MemoryMiB == 0 {
			return "–"
		}
		return fmt.Sprintf("%.0f", m.MemoryMiB)
	}},
}

// Of a single class, what the others do not tell.
var classViews = []view{
	{"in time, % of its requests", func(m measurement, class int) string {
		return percent(m.Classes[class].Good, m.Classes[class].Sent)
	}},
	{"p99 of good answers", views[1].cell},
	{"Jain's index of its clients", func(m measurement, class int) string {
		if m.Classes[class].Jain == 0 {
			return "–"
		}
		return fmt.Sprintf("%.3f", m.Classes[class].Jain)
	}},
}

func percent(a, b int) string { return fmt.Sprintf("%.1f", 100*ratio(a, b)) }

// printLoads prints the tables of one service.
func printLoads(w io.Writer, title string, found []measurement) {
	for _, v := range views {
		printView(w, title+": "+v.title, found, 0, v)
	}
	for class := 1; class < len(found[0].Classes); class++ {
		for _, v := range classViews {
			printView(w, title+", "+found[0].Classes[class].Name+": "+v.title, found, class, v)
		}
	}
}

func printView(w io.Writer, title string, found []measurement, class int, v view) {
	names, loads := axes(found)
	fmt.Fprintf(w, "\n### %s\n\n| |", title)
	for _, load := range loads {
		fmt.Fprintf(w, " %gx |", load)
	}
	fmt.Fprintf(w, "\n|---|%s\n", strings.Repeat("---|", len(loads)))
	for _, name := range names {
		fmt.Fprintf(w, "| %s |", name)
		for _, load := range loads {
			i := slices.IndexFunc(found, func(m measurement) bool { return m.Contender == name && m.Load == load })
			fmt.Fprintf(w, " %s |", v.cell(found[i], class))
		}
		fmt.Fprintln(w)
	}
}

// axes returns the contenders and the loads, in order of appearance.
func axes(found []measurement) (names []string, loads []float64) {
	for _, m := range found {
		if !slices.Contains(names, m.Contender) {
			names = append(names, m.Contender)
		}
		if !slices.Contains(loads, m.Load) {
			loads = append(loads, m.Load)
		}
	}
	return names, loads
}

// printBurst prints what the contenders made of the burst.
func printBurst(w io.Writer, title string, found []measurement) {
	fmt.Fprintf(w, "\n### %s\n\n| | in time before, %% | goodput in the burst, %% of capacity | in time after, %% | p99 before | p99 in the burst | p99 after | as before after |\n|---|%s\n", title, strings.Repeat("---|", 7))
	for _, m := range found {
		back := fmt.Sprintf("%d s", m.Burst.Recovered)
		if m.Burst.Recovered < 0 {
			back = "never"
		}
		before, in, after := m.Burst.Before, m.Burst.In, m.Burst.After
		fmt.Fprintf(w, "| %s | %.1f | %.1f | %.1f | %s | %s | %s | %s |\n", m.Contender, 100*before.InTime, 100*in.Goodput/m.Capacity,
			100*after.InTime, seconds(before.P99), seconds(in.P99), seconds(after.P99), back)
	}
}

// where names the load.
func (m measurement) where() string {
	if m.Burst != nil {
		return "burst"
	}
	return fmt.Sprintf("%gx", m.Load)
}

// printHealth prints the worst of what the generator says of itself, and which
// measurements cannot be trusted.
func printHealth(w io.Writer, found []measurement) {
	var worst health
	var bad []string
	for _, m := range found {
		printFaults(w, fmt.Sprintf("%s, %s, %s. ", m.Contender, m.Service, m.where()), m.Faults)
		h := m.Generator
		worst.LateP99, worst.LateWorst = max(worst.LateP99, h.LateP99), max(worst.LateWorst, h.LateWorst)
		worst.Open, worst.MemoryMiB, worst.Unsent = max(worst.Open, h.Open), max(worst.MemoryMiB, h.MemoryMiB), worst.Unsent+h.Unsent
		if !h.trusted() {
			bad = append(bad, fmt.Sprintf("%s, %s, %s (%s)", m.Contender, m.Service, m.where(), seconds(h.LateP99)))
		}
	}
	fmt.Fprintf(w, "\nThe worst of all runs: %v.\n", worst)
	if bad != nil {
		fmt.Fprintf(w, "\nBehind its schedule in %d of %d: %s.\n", len(bad), len(found), strings.Join(bad, "; "))
	}
}
