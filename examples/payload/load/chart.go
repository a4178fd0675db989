package main

import (
	"bytes"
	"fmt"
	"math"
	"time"
)

// chart draws three panels beside each other with a row for each result: memory,
// time to the answer, and what was answered but is not stored.
func chart(groups []group) []byte {
	const (
		left, panel, gap = 185, 175, 60 // widths: of the names, of a panel, beside it for figures
		top, head        = 40, 26       // heights: of the titles of the panels, of that of a group
		row, bar         = 36, 14       // of a row, of the bar in it
		blue, orange     = "#1f6fb4", "#f29e38"
	)
	rows := 0
	most, longest, shortest, lost := 1.0, time.Microsecond, time.Hour, 1
	for _, g := range groups {
		for _, r := range g.results {
			rows++
			most, longest, shortest, lost = max(most, r.peak), max(longest, r.max), min(shortest, r.p50), max(lost, r.lost)
		}
	}
	width, height := left+3*(panel+gap)+40, top+head*len(groups)+row*rows+18
	var svg bytes.Buffer
	fmt.Fprintf(&svg, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" font-family=\"Liberation Sans,Arial,Helvetica,sans-serif\" fill=\"#222\">\n", width, height, width, height)
	fmt.Fprintf(&svg, "<rect width=\"%d\" height=\"%d\" fill=\"#fff\"/>\n", width, height)
	text := func(x, y float64, anchor string, size int, s string) {
		fmt.Fprintf(&svg, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=%q font-size=\"%d\">%s</text>\n", x, y, anchor, size, s)
	}
	rect := func(x, y, w float64, color string) {
		fmt.Fprintf(&svg, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%d\" fill=%q/>\n", x, y, w, bar, color)
	}

	// From the power of ten below the shortest time to the one above the longest.
	low, high := math.Floor(math.Log10(float64(shortest))), math.Ceil(math.Log10(float64(longest)))
	at := func(d time.Duration) float64 { return panel * (math.Log10(float64(d)) - low) / (high - low) }

	memory, times, losses := float64(left), float64(left+panel+gap), float64(left+2*(panel+gap))
	text(memory, 22, "start", 13, "peak memory")
	text(times, 22, "start", 13, "answer: p50 to p99, and max (line)")
	text(losses, 22, "start", 13, "answered with 2xx, and lost")
	for e := low; e <= high; e++ {
		x := times + panel*(e-low)/(high-low)
		fmt.Fprintf(&svg, "<path d=\"M%.1f %d V%d\" stroke=\"#ddd\"/>\n", x, top-8, height-18)
		text(x, float64(height)-6, "middle", 9, time.Duration(math.Pow(10, e)).String())
	}
	y := float64(top)
	for _, g := range groups {
		text(12, y+12, "start", 12, g.title)
		y += head
		for _, r := range g.results {
			color := orange
			if r.title == variants[0].title {
				color = blue
			}
			base := y + bar - 3
			text(left-10, base, "end", 12, r.title)
			rect(memory, y, panel*r.peak/most, color)
			text(memory+panel*r.peak/most+5, base, "start", 11, fmt.Sprintf("%.0f MiB", r.peak/(1<<20)))
			fmt.Fprintf(&svg, "<path d=\"M%.1f %.1f H%.1f\" stroke=%q stroke-width=\"2\"/>\n", times+at(r.p50), y+bar/2, times+at(r.max), color)
			rect(times+at(r.p50), y, max(at(r.p99)-at(r.p50), 2), color)
			figures, anchor := times+at(r.p50), "start"
			if at(r.p50) > panel/2 {
				figures, anchor = times+at(r.max), "end"
			}
			text(figures, y+bar+10, anchor, 9, fmt.Sprintf("%s, %s, %s", short(r.p50), short(r.p99), short(r.max)))
			rect(losses, y, panel*float64(r.lost)/float64(lost), color)
			text(losses+panel*float64(r.lost)/float64(lost)+5, base, "start", 11, fmt.Sprintf("%d of %d", r.lost, r.answered))
			y += row
		}
	}
	svg.WriteString("</svg>\n")
	return svg.Bytes()
}
