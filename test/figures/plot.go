package main

import (
	"encoding/xml"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

type plot struct{ file, title, svg string }

// bar is a horizontal one, from a value to another.
type bar struct {
	name     string
	from, to float64
}

// plotsOf makes the plots for which there are benchmarks.
func plotsOf(all []*result) (plots []plot) {
	lines := map[string][][2]float64{}
	imports := map[string][]bar{}
	var cases []string
	var steps []bar
	for _, r := range all {
		part := strings.Split(r.name, "/")
		switch {
		case part[0] == "OneDisk" && len(part) == 3:
			n, err := strconv.ParseFloat(strings.TrimPrefix(part[2], "layers="), 64)
			if ms, ok := r.median("ms/mount"); ok && err == nil {
				lines[part[1]] = append(lines[part[1]], [2]float64{n, ms})
			}
		case part[0] == "ImportImage" && len(part) == 3:
			if s, ok := r.median("s"); ok {
				if !slices.Contains(cases, part[1]) {
					cases = append(cases, part[1])
				}
				imports[part[1]] = append(imports[part[1]], bar{part[2], 0, s})
			}
		case part[0] == "BootSteps" && len(part) == 2:
			from, ok := r.median("ms-from")
			if to, too := r.median("ms-to"); ok && too {
				steps = append(steps, bar{strings.ReplaceAll(part[1], "_", " "), from, to})
			}
		}
	}
	if len(lines) > 0 {
		title := "Mounting layers that the VM does not have, ms by their number"
		plots = append(plots, plot{"layers.svg", title, curves(title, lines)})
	}
	for _, c := range cases {
		title := "Importing an image, and what others take for it, s: " + c
		plots = append(plots, plot{"import-" + c + ".svg", title, bars(title, imports[c])})
	}
	if len(steps) > 0 {
		title := "Starting a VM, ms from the command"
		plots = append(plots, plot{"boot.svg", title, bars(title, steps)})
	}
	return plots
}

const width, left, right, rowHeight = 720, 150, 110, 24

var colours = []string{"#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e"}

// drawing is an SVG under way.
type drawing struct{ strings.Builder }

func newDrawing(title string, height int) *drawing {
	d := &drawing{}
	fmt.Fprintf(d, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">`+
		"\n", width, height)
	fmt.Fprintf(d, `<rect width="%d" height="%d" fill="white"/>`+"\n", width, height)
	d.text(10, 20, "start", title)
	return d
}

func (d *drawing) text(x, y float64, anchor, s string) {
	fmt.Fprintf(d, `<text x="%.1f" y="%.1f" text-anchor="%s">`, x, y, anchor)
	_ = xml.EscapeText(d, []byte(s)) // a strings.Builder takes all
	d.WriteString("</text>\n")
}

func (d *drawing) end() string {
	d.WriteString("</svg>\n")
	return d.String()
}

// bars draws one bar under the other; those that do not begin at 0 make a waterfall.
func bars(title string, list []bar) string {
	greatest := 0.0
	for _, b := range list {
		greatest = max(greatest, b.to)
	}
	if greatest == 0 {
		greatest = 1
	}
	d := newDrawing(title, 40+rowHeight*len(list))
	scale := float64(width-left-right) / greatest
	for i, b := range list {
		y := float64(34 + rowHeight*i)
		d.text(left-8, y+13, "end", b.name)
		fmt.Fprintf(d, `<rect x="%.1f" y="%.1f" width="%.1f" height="16" fill="%s"/>`+"\n", left+b.from*scale, y,
			max((b.to-b.from)*scale, 1), colours[0])
		d.text(left+b.to*scale+6, y+13, "start", number(b.to-b.from))
	}
	return d.end()
}

// curves draws lines through points, with both axes logarithmic.
func curves(title string, lines map[string][][2]float64) string {
	const height, bottom = 360, 320
	lowX, highX, lowY, highY := math.Inf(1), 0.0, math.Inf(1), 0.0
	for name, points := range lines {
		points = slices.DeleteFunc(points, func(p [2]float64) bool { return p[0] <= 0 || p[1] <= 0 })
		lines[name] = points
		for _, p := range points {
			lowX, highX = min(lowX, p[0]), max(highX, p[0])
			lowY, highY = min(lowY, p[1]), max(highY, p[1])
		}
	}
	d := newDrawing(title, height)
	lowY, highY = math.Pow(10, math.Floor(math.Log10(lowY))), math.Pow(10, math.Ceil(math.Log10(highY)))
	at := func(v, low, high, from, to float64) float64 {
		if high <= low {
			return from
		}
		return from + (to-from)*math.Log(v/low)/math.Log(high/low)
	}
	x := func(v float64) float64 { return at(v, lowX, highX, left, width-right) }
	y := func(v float64) float64 { return at(v, lowY, highY, bottom, 50) }
	for v := lowY; v <= highY*1.001; v *= 10 {
		fmt.Fprintf(d, `<path d="M%d %.1fH%d" stroke="#ccc"/>`+"\n", left, y(v), width-right)
		d.text(left-8, y(v)+4, "end", number(v))
	}
	names := make([]string, 0, len(lines))
	marks := map[float64]bool{}
	for name := range lines {
		names = append(names, name)
	}
	slices.Sort(names)
	for i, name := range names {
		points := slices.SortedFunc(slices.Values(lines[name]), func(a, b [2]float64) int {
			return int(math.Copysign(1, a[0]-b[0]))
		})
		colour := colours[i%len(colours)]
		var path []string
		for _, p := range points {
			path = append(path, fmt.Sprintf("%.1f,%.1f", x(p[0]), y(p[1])))
			fmt.Fprintf(d, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n", x(p[0]), y(p[1]), colour)
			if !marks[p[0]] {
				marks[p[0]] = true
				d.text(x(p[0]), bottom+18, "middle", number(p[0]))
			}
		}
		if len(points) == 0 {
			continue
		}
		fmt.Fprintf(d, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.Join(path, " "), colour)
		last := points[len(points)-1]
		d.text(x(last[0])+8, y(last[1])+4, "start", name)
	}
	return d.end()
}
