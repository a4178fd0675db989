package main

import (
	"fmt"
	"image/color"
	"math"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"holdfast/bench/internal/figure"
)

// Holdfast is drawn with broad lines, and above the others.
var (
	peerColors = []color.Color{
		color.RGBA{0x70, 0x70, 0x70, 0xff}, color.RGBA{0x8c, 0x56, 0x4b, 0xff}, color.RGBA{0x2c, 0x96, 0x3c, 0xff}, color.RGBA{0x94, 0x67, 0xbd, 0xff},
		color.RGBA{0xd6, 0x5f, 0xb4, 0xff}, color.RGBA{0xa8, 0xa0, 0x20, 0xff}, color.RGBA{0xd6, 0x27, 0x28, 0xff},
	}
	holdfastColors = []color.Color{
		color.RGBA{0x1f, 0x6f, 0xb4, 0xff}, color.RGBA{0xf2, 0x9e, 0x38, 0xff}, color.RGBA{0x17, 0xb0, 0xc4, 0xff}, color.RGBA{0x0b, 0x2f, 0x6b, 0xff},
	}
)

// styles returns what the line of each contender looks like, in all panels.
func styles(names []string) map[string]draw.LineStyle {
	found := make(map[string]draw.LineStyle)
	used := make(map[bool]int)
	for _, name := range names {
		mine := strings.HasPrefix(name, strings.TrimSpace(holdfastName))
		colors, width := peerColors, vg.Points(1.2)
		if mine {
			colors, width = holdfastColors, vg.Points(2.4)
		}
		n := used[mine]
		used[mine]++
		style := draw.LineStyle{Color: colors[n%len(colors)], Width: width}
		if n >= len(colors) {
			style.Dashes = []vg.Length{vg.Points(4), vg.Points(2)}
		}
		found[name] = style
	}
	return found
}

// panel returns an empty plot with a grid.
func panel(title, x, y string) *plot.Plot {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	p.Title.Padding = vg.Points(6)
	p.Y.Min = 0
	grid := plotter.NewGrid()
	grid.Horizontal.Color, grid.Vertical.Color = color.Gray{225}, color.Gray{225}
	p.Add(grid)
	return p
}

// add draws a line for each contender. Where points has none for it, it has none.
func add(p *plot.Plot, names []string, points func(name string) plotter.XYs) error {
	look := styles(names)
	for _, name := range names {
		xys := points(name)
		if len(xys) == 0 {
			continue
		}
		l, err := plotter.NewLine(xys)
		if err != nil {
			return err
		}
		l.LineStyle = look[name]
		p.Add(l)
	}
	return nil
}

// headroom keeps the highest line off the edge.
const headroom = 1.06

// byLoad is a panel over the offered load, whose axis is logarithmic.
func byLoad(title, y string, found []measurement, value func(measurement) (float64, bool)) (*plot.Plot, error) {
	names, loads := axes(found)
	p := panel(title, "offered load, in the capacity; logarithmic", y)
	var ticks plot.ConstantTicks
	last := math.Inf(-1)
	for _, load := range loads {
		at := math.Log10(load)
		tick := plot.Tick{Value: at}
		if at-last > 0.1 { // else the labels would touch
			tick.Label = fmt.Sprintf("%gx", load)
			last = at
		}
		ticks = append(ticks, tick)
	}
	p.X.Tick.Marker = ticks
	err := add(p, names, func(name string) (xys plotter.XYs) {
		for _, m := range found {
			if v, ok := value(m); ok && m.Contender == name {
				xys = append(xys, plotter.XY{X: math.Log10(m.Load), Y: v})
			}
		}
		return xys
	})
	p.Y.Max *= headroom
	return p, err
}

// overTime is a panel over the seconds around the burst.
func overTime(burst []measurement) (*plot.Plot, error) {
	p := panel("Goodput around a burst", "seconds; the burst is between the two lines", "good answers, % of capacity")
	names, _ := axes(burst)
	err := add(p, names, func(name string) (xys plotter.XYs) {
		m := burst[slices.IndexFunc(burst, func(m measurement) bool { return m.Contender == name })]
		for i, s := range m.Burst.Seconds {
			xys = append(xys, plotter.XY{X: float64(i) + 0.5, Y: 100 * float64(s.Good) / m.Capacity})
		}
		return xys
	})
	if err != nil {
		return nil, err
	}
	p.X.Min, p.X.Max, p.Y.Max = 0, float64(len(burst[0].Burst.Seconds)), p.Y.Max*headroom
	lasts := p.X.Max / (2 + afterBurst) // before, in, and after the burst
	for _, at := range []float64{lasts, 2 * lasts} {
		edge, err := plotter.NewLine(plotter.XYs{{X: at, Y: 0}, {X: at, Y: p.Y.Max}})
		if err != nil {
			return nil, err
		}
		edge.Dashes = []vg.Length{vg.Points(2), vg.Points(2)}
		p.Add(edge)
	}
	return p, nil
}

// chart draws the figure: goodput and p99 over the load, and below them goodput
// around the burst.
func chart(path string, found, burst []measurement) error {
	goodput, err := byLoad("Goodput", "good answers, % of capacity", found, func(m measurement) (float64, bool) {
		return 100 * m.Classes[0].Goodput / m.Capacity, true
	})
	if err != nil {
		return err
	}
	p99, err := byLoad("p99 of good answers", "seconds", found, func(m measurement) (float64, bool) {
		return m.Classes[0].P99, m.Classes[0].Good > 0
	})
	if err != nil {
		return err
	}
	around, err := overTime(burst)
	if err != nil {
		return err
	}
	names, _ := axes(found)
	const columns, w, h, row = 3, 760, 580, 16
	rows := (len(names) + columns - 1) / columns
	legend := vg.Points(float64(rows * row))
	return figure.Write(path, vg.Points(w), vg.Points(h)+legend, func(c draw.Canvas) {
		drawLegend(draw.Crop(c, 0, 0, 0, legend-c.Size().Y), names, rows)
		c = draw.Crop(c, 0, 0, legend+vg.Points(10), 0)
		half, middle, gap := c.Size().Y/2, c.Size().X/2, vg.Points(10)
		goodput.Draw(draw.Crop(c, 0, -middle-gap/2, half+gap/2, 0))
		p99.Draw(draw.Crop(c, middle+gap/2, 0, half+gap/2, 0))
		around.Draw(draw.Crop(c, 0, 0, 0, -half-gap/2))
	})
}

// A swatch is the piece of line in the legend.
type swatch struct{ draw.LineStyle }

func (s swatch) Thumbnail(c *draw.Canvas) {
	y := c.Center().Y
	c.StrokeLine2(s.LineStyle, c.Min.X, y, c.Max.X, y)
}

// drawLegend names the lines in columns, each of so many rows.
func drawLegend(c draw.Canvas, names []string, rows int) {
	look := styles(names)
	columns := (len(names) + rows - 1) / rows
	width := c.Size().X / vg.Length(columns)
	for column := range columns {
		l := plot.NewLegend()
		l.Top, l.Left = true, true
		l.ThumbnailWidth = vg.Points(24)
		l.Padding = vg.Points(2)
		for i := column * rows; i < min((column+1)*rows, len(names)); i++ {
			l.Add(" "+names[i], swatch{look[names[i]]})
		}
		left := width * vg.Length(column)
		l.Draw(draw.Crop(c, left, left+width-c.Size().X, 0, 0))
	}
}
