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

const barWidth = 11 // points

// chart draws the cost of each contender as a bar from 1, the cost of Holdfast, to the
// left for less and to the right for more. The scale is logarithmic, so that the
// slowest does not hide all others.
func chart(path string, names []string, bars [2][]float64) {
	p := plot.New()
	p.Title.Text = "Cost of an empty job, Holdfast = 1 (less is better)"
	p.Title.Padding = vg.Points(12)
	p.X.Label.Text = "cost relative to Holdfast, logarithmic"

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
	addBars(p, "2 producers", color.RGBA{R: 0x1f, G: 0x6f, B: 0xb4, A: 0xff}, vg.Points(barWidth/2.0), order, bars[0])
	addBars(p, "200 producers", color.RGBA{R: 0xf2, G: 0x9e, B: 0x38, A: 0xff}, -vg.Points(barWidth/2.0), order, bars[1])
	// The legend's text is to the right of its colors, where there is room for a font
	// that is wider than the one used here.
	p.Legend.Top, p.Legend.Left = true, true
	p.Legend.XOffs = vg.Points(390)
	p.Legend.Padding = vg.Points(4)
	setAxes(p, sorted)
	save(p, path, len(names))
}

// addBars adds a bar for each cost, in the given order, with its figure at the end.
func addBars(p *plot.Plot, name string, c color.Color, offset vg.Length, order []int, costs []float64) {
	gap := (p.X.Max - p.X.Min) / 120 // between a bar and its figure
	var logs plotter.Values
	var ends plotter.XYLabels
	for row, i := range order {
		v := math.Log10(costs[i])
		logs = append(logs, v)
		ends.XYs = append(ends.XYs, plotter.XY{X: v + math.Copysign(gap, v), Y: float64(row)})
		digits := 2
		if costs[i] >= 10 {
			digits = 1
		}
		ends.Labels = append(ends.Labels, fmt.Sprintf("%.*f", digits, costs[i]))
	}
	bar, err := plotter.NewBarChart(logs, vg.Points(barWidth))
	must(err)
	bar.Horizontal = true
	bar.Color = c
	bar.LineStyle.Width = 0
	bar.Offset = offset
	labels, err := plotter.NewLabels(ends)
	must(err)
	labels.Offset.Y = offset + vg.Points(1)
	for i := range labels.TextStyle {
		labels.TextStyle[i].Font.Size = vg.Points(9)
		labels.TextStyle[i].YAlign = draw.YCenter
		if logs[i] < 0 {
			labels.TextStyle[i].XAlign = draw.XRight
		}
	}
	p.Add(bar, labels)
	p.Legend.Add(name, bar)
}

// setAxes names the rows, sets the ticks of the logarithmic axis, and draws a line at 1.
func setAxes(p *plot.Plot, rows []string) {
	p.NominalY(rows...)
	p.Y.LineStyle.Width = 0
	p.Y.Tick.Length = 0
	p.Y.Padding = vg.Points(12)
	p.Y.Min, p.Y.Max = -0.6, float64(len(rows))-0.4
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
}

func save(p *plot.Plot, path string, rows int) {
	must(figure.Write(path, vg.Points(640), vg.Points(90)+vg.Length(rows)*vg.Points(32), p.Draw))
}
