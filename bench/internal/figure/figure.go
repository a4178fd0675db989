// Package figure writes the figures of the benchmarks as SVG. They have a white
// page of their own, so that they can be read on a dark one too.
package figure

import (
	"bytes"
	"image/color"
	"os"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

func init() {
	plot.DefaultFont.Variant = "Sans"
	plotter.DefaultFont = plot.DefaultFont
}

// Write draws a figure on a page of that size, within a margin, and writes it to
// a file.
func Write(path string, w, h vg.Length, figure func(draw.Canvas)) error {
	canvas := vgsvg.New(w, h)
	page := draw.New(canvas)
	page.FillPolygon(color.White, []vg.Point{{}, {X: w}, {X: w, Y: h}, {Y: h}})
	margin := vg.Points(10)
	figure(draw.Crop(page, margin, -margin, margin, -margin))
	var svg bytes.Buffer
	if _, err := canvas.WriteTo(&svg); err != nil {
		return err
	}
	// The font has twins of the same widths on other systems.
	text := bytes.ReplaceAll(svg.Bytes(), []byte("font-family:Liberation Sans"), []byte("font-family:Liberation Sans,Arial,Helvetica,sans-serif"))
	return os.WriteFile(path, text, 0o644)
}
