package main

import (
	"bytes"
	"fmt"
	"math"
	"time"
)

const (
	left, panel, gap = 185, 175, 60 // widths: names, a panel, space for figures beside it
	top, head        = 40, 26       // heights: panel titles, a group's title
	row, bar         = 36, 14       // heights: a row, the bar in it
	blue, orange     = "#1f6fb4", "#f29e38"

	memory, times, losses = left, left + panel + gap, left + 2*(panel+gap) // where the panels begin
)

// An svg is the chart as it is being drawn.
type svg struct{ bytes.Buffer }

func (s *svg) text(x, y float64, anchor string, size int, text string) {
	fmt.Fprintf(s, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=%q font-size=\"%d\">%s</text>\n", x, y, anchor, size, text)
}

func (s *svg) bar(x, y, width float64, color string) {
	fmt.Fprintf(s, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%d\" fill=%q/>\n", x, y, width, bar, color)
}

// A scale maps values to widths in the panels.
type scale struct {
	rows      int
	peak      float64 // the greatest
	lost      int     // the greatest
	low, high float64 // powers of ten around all times
}

func newScale(groups []group) scale {
	s := scale{peak: 1, lost: 1}
	longest, shortest := time.Microsecond, time.Hour
	for _, g := range groups {
		for _, r := range g.results {
			s.rows++
			s.peak, s.lost = max(s.peak, r.peak), max(s.lost, r.lost)
			longest, shortest = max(longest, r.max), min(shortest, r.p50)
		}
	}
	s.low, s.high = math.Floor(math.Log10(float64(shortest))), math.Ceil(math.Log10(float64(longest)))
	return s
}

// at returns where a time is in its panel, on a logarithmic axis.
func (s scale) at(d time.Duration) float64 {
	return panel * (math.Log10(float64(d)) - s.low) / (s.high - s.low)
}

// chart draws three panels side by side with a row for each result: memory, time to the
// answer, and payloads that were answered but not stored.
func chart(groups []group) []byte {
	scale := newScale(groups)
	width, height := left+3*(panel+gap)+40, top+head*len(groups)+row*scale.rows+18
	s := new(svg)
	fmt.Fprintf(s, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" font-family=\"Liberation Sans,Arial,Helvetica,sans-serif\" fill=\"#222\">\n", width, height, width, height)
	fmt.Fprintf(s, "<rect width=\"%d\" height=\"%d\" fill=\"#fff\"/>\n", width, height)
	s.text(memory, 22, "start", 13, "peak memory")
	s.text(times, 22, "start", 13, "answer: p50 to p99, and max (line)")
	s.text(losses, 22, "start", 13, "answered with 2xx, and lost")
	for e := scale.low; e <= scale.high; e++ {
		x := times + panel*(e-scale.low)/(scale.high-scale.low)
		fmt.Fprintf(s, "<path d=\"M%.1f %d V%d\" stroke=\"#ddd\"/>\n", x, top-8, height-18)
		s.text(x, float64(height)-6, "middle", 9, time.Duration(math.Pow(10, e)).String())
	}
	y := float64(top)
	for _, g := range groups {
		s.text(12, y+12, "start", 12, g.title)
		y += head
		for _, r := range g.results {
			s.row(y, r, scale)
			y += row
		}
	}
	s.WriteString("</svg>\n")
	return s.Bytes()
}

// row draws a result in all three panels.
func (s *svg) row(y float64, r result, scale scale) {
	color := orange
	if r.title == variants[0].title {
		color = blue
	}
	base := y + bar - 3
	s.text(left-10, base, "end", 12, r.title)

	width := panel * r.peak / scale.peak
	s.bar(memory, y, width, color)
	s.text(memory+width+5, base, "start", 11, fmt.Sprintf("%.0f MiB", r.peak/(1<<20)))

	p50, p99, longest := scale.at(r.p50), scale.at(r.p99), scale.at(r.max)
	fmt.Fprintf(s, "<path d=\"M%.1f %.1f H%.1f\" stroke=%q stroke-width=\"2\"/>\n", times+p50, y+bar/2, times+longest, color)
	s.bar(times+p50, y, max(p99-p50, 2), color)
	figures, anchor := times+p50, "start"
	if p50 > panel/2 {
		figures, anchor = times+longest, "end"
	}
	s.text(figures, y+bar+10, anchor, 9, fmt.Sprintf("%s, %s, %s", short(r.p50), short(r.p99), short(r.max)))

	width = panel * float64(r.lost) / float64(scale.lost)
	s.bar(losses, y, width, color)
	s.text(losses+width+5, base, "start", 11, fmt.Sprintf("%d of %d", r.lost, r.answered))
}
