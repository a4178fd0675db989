// Drawing draws the text files that are its arguments as SVG, each beside its text:
// what make drawings runs. A file has one element a line:
//
//	size WIDTH HEIGHT
//	title X Y TEXT
//	text X Y TEXT
//	box NAME X Y WIDTH HEIGHT STYLE LINE | LINE …
//	arrow NAME.SIDE NAME.SIDE TEXT
//
// A STYLE is plain, strong, warm or faint. A SIDE is l, r, t or b, with @PERCENT for
// another place than its middle. An arrow between sides that do not face each other on
// a straight line has corners; its TEXT may be empty. What begins with # is a comment.
//
// A drawing has a page of its own, light or dark as the reader's system is, so that it
// can be read on a page of either kind.
package main

import (
	"bytes"
	"fmt"
	"html"
	"math"
	"os"
	"strings"
)

func main() {
	for _, path := range os.Args[1:] {
		if err := drawFile(path); err != nil {
			fmt.Fprintf(os.Stderr, "drawing: %s: %v\n", path, err)
			os.Exit(1)
		}
	}
}

func drawFile(path string) error {
	base, isText := strings.CutSuffix(path, ".txt")
	if !isText {
		return fmt.Errorf("want a file with a name in .txt")
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	svg, err := draw(string(text))
	if err != nil {
		return err
	}
	return os.WriteFile(base+".svg", svg, 0o644)
}

const head = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %[1]g %[2]g" width="%[1]g" height="%[2]g" font-family="system-ui,Segoe UI,Helvetica,Arial,sans-serif" font-size="13">
<style>
.page{fill:#fff}.box{stroke-width:1.3}
.plain{fill:#f4f6f6;stroke:#7b8a88}.strong{fill:#d9ecea;stroke:#0e6b66}.warm{fill:#fbe9d2;stroke:#b4690e}.faint{fill:none;stroke:#7b8a88;stroke-dasharray:4 3}
text{fill:#1c2928}.soft{fill:#566462}.title{font-size:16px;font-weight:600}.first{font-weight:600}
.label{fill:#566462;font-size:12px}
.arrow{fill:none;stroke:#566462;stroke-width:1.4}.tip{fill:#566462}
@media (prefers-color-scheme:dark){
.page{fill:#161d1c}.plain{fill:#232d2c;stroke:#81918f}.strong{fill:#123f3c;stroke:#4fb8af}.warm{fill:#46321a;stroke:#e0a458}.faint{stroke:#81918f}
text{fill:#e6eeed}.soft{fill:#a9b8b6}.label{fill:#a9b8b6}.arrow{stroke:#a9b8b6}.tip{fill:#a9b8b6}
}
</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto-start-reverse"><path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>
<rect class="page" width="%[1]g" height="%[2]g" rx="8"/>
`

// A drawing is what has been drawn so far.
type drawing struct {
	out   bytes.Buffer
	boxes map[string]box
}

type box struct{ x, y, w, h float64 }

type point struct{ x, y float64 }

// draw returns the SVG of a text.
func draw(text string) ([]byte, error) {
	d := &drawing{boxes: make(map[string]box)}
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if err := d.element(line); err != nil {
			return nil, fmt.Errorf("line %d: %q: %v", i+1, line, err)
		}
	}
	if d.out.Len() == 0 {
		return nil, fmt.Errorf("it is empty; want a size and what is drawn")
	}
	d.out.WriteString("</svg>\n")
	return d.out.Bytes(), nil
}

func (d *drawing) element(line string) error {
	word, rest, _ := strings.Cut(line, " ")
	if (word == "size") != (d.out.Len() == 0) {
		return fmt.Errorf("want size first, and once")
	}
	switch word {
	case "size":
		var w, h float64
		if _, err := fmt.Sscan(rest, &w, &h); err != nil {
			return err
		}
		fmt.Fprintf(&d.out, head, w, h)
		return nil
	case "title", "text":
		return d.text(word, rest)
	case "box":
		return d.box(rest)
	case "arrow":
		return d.arrow(rest)
	}
	return fmt.Errorf("want size, title, text, box or arrow")
}

func (d *drawing) text(word, rest string) error {
	f := strings.SplitN(rest, " ", 3)
	if len(f) < 3 {
		return fmt.Errorf("want X Y TEXT")
	}
	var at point
	if _, err := fmt.Sscan(f[0]+" "+f[1], &at.x, &at.y); err != nil {
		return err
	}
	class := "soft"
	if word == "title" {
		class = "title"
	}
	fmt.Fprintf(&d.out, "<text class=\"%s\" x=\"%g\" y=\"%g\">%s</text>\n", class, at.x, at.y, html.EscapeString(f[2]))
	return nil
}

func (d *drawing) box(rest string) error {
	f := strings.SplitN(rest, " ", 7)
	if len(f) < 7 {
		return fmt.Errorf("want NAME X Y WIDTH HEIGHT STYLE LINE | LINE …")
	}
	var b box
	if _, err := fmt.Sscan(strings.Join(f[1:5], " "), &b.x, &b.y, &b.w, &b.h); err != nil {
		return err
	}
	switch f[5] {
	case "plain", "strong", "warm", "faint":
	default:
		return fmt.Errorf("style %s; want plain, strong, warm or faint", f[5])
	}
	if _, taken := d.boxes[f[0]]; taken {
		return fmt.Errorf("there is a box %s already", f[0])
	}
	d.boxes[f[0]] = b
	fmt.Fprintf(&d.out, "<rect class=\"box %s\" x=\"%g\" y=\"%g\" width=\"%g\" height=\"%g\" rx=\"6\"/>\n", f[5], b.x, b.y, b.w, b.h)
	const leading = 17
	lines := strings.Split(f[6], "|")
	y := b.y + b.h/2 - leading*float64(len(lines)-1)/2 + 4.5 // of the base line
	for i, line := range lines {
		class := "soft"
		if i == 0 {
			class = "first"
		}
		fmt.Fprintf(&d.out, "<text class=\"%s\" text-anchor=\"middle\" x=\"%g\" y=\"%g\">%s</text>\n", class, b.x+b.w/2, y+leading*float64(i), html.EscapeString(strings.TrimSpace(line)))
	}
	return nil
}

func (d *drawing) arrow(rest string) error {
	f := append(strings.SplitN(rest, " ", 3), "", "")
	from, across, err := d.end(f[0])
	if err != nil {
		return err
	}
	to, acrossTo, err := d.end(f[1])
	if err != nil {
		return err
	}
	path := corners(from, to, across, acrossTo)
	fmt.Fprintf(&d.out, "<path class=\"arrow\" marker-end=\"url(#tip)\" d=\"M%g %g", path[0].x, path[0].y)
	for _, p := range path[1:] {
		fmt.Fprintf(&d.out, "L%g %g", p.x, p.y)
	}
	d.out.WriteString("\"/>\n")
	if f[2] != "" {
		d.label(path, f[2])
	}
	return nil
}

// label writes a text beside the longest piece of a way: above it, or to its right.
func (d *drawing) label(path []point, text string) {
	a, b := longest(path)
	at, anchor := point{(a.x + b.x) / 2, a.y - 6}, "middle"
	if a.x == b.x {
		at, anchor = point{a.x + 8, (a.y+b.y)/2 + 4}, "start"
	}
	fmt.Fprintf(&d.out, "<text class=\"label\" text-anchor=\"%s\" x=\"%g\" y=\"%g\">%s</text>\n", anchor, at.x, at.y, html.EscapeString(text))
}

// end returns the point that NAME.SIDE or NAME.SIDE@PERCENT means, and whether an arrow
// leaves it sideways.
func (d *drawing) end(text string) (at point, across bool, err error) {
	name, side, _ := strings.Cut(text, ".")
	b, ok := d.boxes[name]
	if !ok {
		return at, false, fmt.Errorf("%s: there is no such box above", text)
	}
	side, percent, given := strings.Cut(side, "@")
	part := 50.0
	if given {
		if _, err := fmt.Sscan(percent, &part); err != nil {
			return at, false, fmt.Errorf("%s: %v", text, err)
		}
	}
	x, y := math.Round(b.x+b.w*part/100), math.Round(b.y+b.h*part/100) // so that ends can face each other exactly
	switch side {
	case "l":
		return point{b.x, y}, true, nil
	case "r":
		return point{b.x + b.w, y}, true, nil
	case "t":
		return point{x, b.y}, false, nil
	case "b":
		return point{x, b.y + b.h}, false, nil
	}
	return at, false, fmt.Errorf("%s: want NAME.l, .r, .t or .b", text)
}

// corners returns the way between two ends, which leaves each at a right angle.
func corners(from, to point, across, acrossTo bool) []point {
	middle := point{(from.x + to.x) / 2, (from.y + to.y) / 2}
	switch {
	case across && acrossTo && from.y != to.y:
		return []point{from, {middle.x, from.y}, {middle.x, to.y}, to}
	case !across && !acrossTo && from.x != to.x:
		return []point{from, {from.x, middle.y}, {to.x, middle.y}, to}
	case across && !acrossTo:
		return []point{from, {to.x, from.y}, to}
	case !across && acrossTo:
		return []point{from, {from.x, to.y}, to}
	}
	return []point{from, to}
}

// longest returns the ends of the longest piece of a way.
func longest(path []point) (a, b point) {
	length := func(a, b point) float64 { return max(a.x-b.x, b.x-a.x) + max(a.y-b.y, b.y-a.y) }
	a, b = path[0], path[1]
	for i := 1; i+1 < len(path); i++ {
		if length(path[i], path[i+1]) > length(a, b) {
			a, b = path[i], path[i+1]
		}
	}
	return a, b
}
