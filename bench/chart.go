package main

import (
	"cmp"
	"fmt"
	"image/color"
	"math"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"holdfast/bench/internal/figure"
)

// chart draws the cost of each contender, as bars that begin at that of
// Holdfast, 1, and go to the left for less and to the right for more. The scale
// is logarithmic, or the slowest would hide all others.
func chart(path string, names []string, bars [2][]float64) {
	p := plot.New()
	p.Title.Text = "Cost of an empty job, Holdfast = 1 (less is better)"
	p.Title.Padding = vg.Points(12)
	p.X.Label.Text = "cost in that of Holdfast, logarithmic"

	order := make([]int, len(names)) // the best on top
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(bars[0][b], bars[0][a]) })
	sorted := make([]string, len(names))
	for row, i := range order {
		sorted[row] = names[i]
	}

	grid := plotter.NewGrid()
	grid.Horizontal.Width = 0
	grid.Vertical.Color = color.Gray{225}
	p.Add(grid)
	least, most := 1.0, 1.0
	for _, b := range bars {
		least, most = min(least, slices.Min(b)), max(most, slices.Max(b))
	}
	p.X.Min, p.X.Max = math.Log10(least)-0.2, math.Log10(most)+0.2
	gap := (p.X.Max - p.X.Min) / 120 // between a bar and its figure
	const width = 11                 // points
	for b, series := range []struct {
		name  string
		color color.Color
	}{
		{"2 producers", color.RGBA{R: 0x1f, G: 0x6f, B: 0xb4, A: 0xff}},
		{"200 producers", color.RGBA{R: 0xf2, G: 0x9e, B: 0x38, A: 0xff}},
	} {
		var logs plotter.Values
		var ends plotter.XYLabels
		for row, i := range order {
			v := math.Log10(bars[b][i])
			logs = append(logs, v)
			ends.XYs = append(ends.XYs, plotter.XY{X: v + math.Copysign(gap, v), Y: float64(row)})
			digits := 2
			if bars[b][i] >= 10 {
				digits = 1
			}
			ends.Labels = append(ends.Labels, fmt.Sprintf("%.*f", digits, bars[b][i]))
		}
		bar, err := plotter.NewBarChart(logs, vg.Points(width))
		must(err)
		bar.Horizontal = true
		bar.Color = series.color
		bar.LineStyle.Width = 0
		bar.Offset = vg.Points(width / 2.0)
		if b == 1 {
			bar.Offset = -bar.Offset
		}
		labels, err := plotter.NewLabels(ends)
		must(err)
		labels.Offset.Y = bar.Offset + vg.Points(1)
		for i := range labels.TextStyle {
			labels.TextStyle[i].Font.Size = vg.Points(9)
			labels.TextStyle[i].YAlign = draw.YCenter
			if logs[i] < 0 {
				labels.TextStyle[i].XAlign = draw.XRight
			}
		}
		p.Add(bar, labels)
		p.Legend.Add(series.name, bar)
	}
	// The legend's text is on the right of its colors, where a font that is wider
	// than the one computed with has room.
	p.Legend.Top, p.Legend.Left = true, true
	p.Legend.XOffs = vg.Points(390)
	p.Legend.Padding = vg.Points(4)

	p.NominalY(sorted...)
	p.Y.LineStyle.Width = 0
	p.Y.Tick.Length = 0
	p.Y.Padding = vg.Points(12)
	p.Y.Min, p.Y.Max = -0.6, float64(len(names))-0.4
	var ticks plot.ConstantTicks
	for decade := -3.0; decade <= 3; decade++ {
		for _, step := range []float64{1, 2, 5} {
			v := step * math.Pow(10, decade)
			ticks = append(ticks, plot.Tick{Value: math.Log10(v), Label: fmt.Sprintf("%g", v)})
		}
	}
	p.X.Tick.Marker = ticks
	one, err := plotter.NewLine(plotter.XYs{{X: 0, Y: p.Y.Min}, {X: 0, Y: p.Y.Max}})
	must(err)
	p.Add(one)

	must(figure.Write(path, vg.Points(640), vg.Points(90)+vg.Length(len(names))*vg.Points(32), p.Draw))
}
