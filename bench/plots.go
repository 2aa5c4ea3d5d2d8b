package main

import (
	"fmt"
	"html/template"
	"math"
	"os"
	"path/filepath"
)

// point is everything that was measured at one number of keys.
type point struct {
	keys                int
	index               indexFigures
	zipf, uniform, bare summary
}

// curves are the points in the order of their numbers of keys.
type curves []point

// line is one curve of a plot.
type line struct {
	Name, Color string
	of          func(point) float64 // 0: there is no such point
}

// plot is a diagram over the number of keys.
type plot struct {
	file, title, unit string
	lines             []line
}

const (
	blue, green, grey, red = "#1f6feb", "#1a7f37", "#6e7781", "#bc4c00"
)

var plots = []plot{
	{"throughput.svg", "Verifications over HTTP", "requests a second", []line{
		{"bare Fiber route", grey, func(p point) float64 { return p.bare.value }},
		{"Zipf, uses recorded", blue, func(p point) float64 { return p.zipf.value }},
		{"uniform, uses recorded", green, func(p point) float64 { return p.uniform.value }},
	}},
	{"latency.svg", "Latency of a verification over HTTP, 64 connections, Zipf", "milliseconds", []line{
		{"p50", green, func(p point) float64 { return p.zipf.p50 / 1000 }},
		{"p90", blue, func(p point) float64 { return p.zipf.p90 / 1000 }},
		{"p99", red, func(p point) float64 { return p.zipf.p99 / 1000 }},
		{"p90 of the bare route", grey, func(p point) float64 { return p.bare.p90 / 1000 }},
	}},
	{"memory.svg", "Resident memory of the verification index", "bytes a key", []line{
		{"loaded", blue, func(p point) float64 { return p.index.Bytes }},
		{"every key in use", green, func(p point) float64 { return p.index.BytesInUse }},
	}},
	{"index.svg", "A verification in process, keys in random order", "nanoseconds of processor time", []line{
		{"digest, clock, scopes, limit, use", blue, func(p point) float64 { return median(p.index.Verify) }},
		{"bare SHA-256", grey, func(p point) float64 { return median(p.index.Hash) }},
	}},
}

// write draws all plots that have points.
func (c curves) write(folder string) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	for _, p := range plots {
		picture, ok := p.draw(c)
		if !ok {
			continue
		}
		file, err := os.Create(filepath.Join(folder, p.file))
		if err != nil {
			return err
		}
		if err := svg.Execute(file, picture); err != nil {
			return err
		}
		if err := file.Close(); err != nil {
			return err
		}
	}
	return nil
}

// The picture's measures, in its own units.
const (
	width, height            = 760, 360
	left, right, top, bottom = 80, 220, 56, 48
)

type mark struct {
	At    float64
	Label string
}

type drawn struct {
	line
	Points string
	Dots   [][2]float64
	Last   float64 // where the name stands
}

type picture struct {
	Title, Unit              string
	Width, Height            int
	Left, Right, Top, Bottom float64
	Columns, Rows            []mark
	Lines                    []drawn
}

// draw puts the number of keys on a logarithmic axis. The other one is linear and
// begins at 0, so that what looks flat is flat; it is logarithmic where the values
// span more than a factor of twenty.
func (p plot) draw(c curves) (picture, bool) {
	least, most := math.Inf(1), 0.0
	for _, at := range c {
		for _, l := range p.lines {
			if v := l.of(at); v > 0 {
				least, most = min(least, v), max(most, v)
			}
		}
	}
	if len(c) < 2 || most == 0 {
		return picture{}, false
	}
	first, last := math.Log10(float64(c[0].keys)), math.Log10(float64(c[len(c)-1].keys))
	x := func(keys int) float64 {
		return tenth(left + (math.Log10(float64(keys))-first)/(last-first)*(width-left-right))
	}
	share := func(v float64) float64 { return v / nice(most) }
	ticks := []float64{}
	for i := range 6 {
		ticks = append(ticks, nice(most)*float64(i)/5)
	}
	if most/least > 20 {
		low, high := math.Floor(math.Log10(least)), math.Ceil(math.Log10(most))
		share = func(v float64) float64 { return (math.Log10(v) - low) / (high - low) }
		ticks = ticks[:0]
		for e := low; e <= high; e++ {
			ticks = append(ticks, math.Pow(10, e))
		}
	}
	y := func(v float64) float64 { return tenth(height - bottom - share(v)*(height-top-bottom)) }

	out := picture{Title: p.title, Unit: p.unit, Width: width, Height: height, Left: left, Right: width - right, Top: top, Bottom: height - bottom}
	for _, at := range c {
		out.Columns = append(out.Columns, mark{x(at.keys), thousands(float64(at.keys))})
	}
	for _, v := range ticks {
		label := thousands(v)
		if nice(most) < 10 {
			label = fmt.Sprintf("%.1f", v)
		}
		out.Rows = append(out.Rows, mark{y(v), label})
	}
	for _, l := range p.lines {
		d := drawn{line: l}
		for _, at := range c {
			if v := l.of(at); v > 0 {
				d.Points += fmt.Sprintf("%g,%g ", x(at.keys), y(v))
				d.Dots = append(d.Dots, [2]float64{x(at.keys), y(v)})
				d.Last = y(v)
			}
		}
		if len(d.Dots) > 0 {
			out.Lines = append(out.Lines, d)
		}
	}
	apart(out.Lines)
	return out, true
}

// apart keeps names from standing upon each other.
func apart(lines []drawn) {
	const least = 16
	for range lines {
		for i := range lines {
			for j := range lines {
				if gap := lines[j].Last - lines[i].Last; i != j && gap >= 0 && gap < least && (gap > 0 || j > i) {
					lines[j].Last = lines[i].Last + least
				}
			}
		}
	}
}

func tenth(v float64) float64 { return math.Round(v*10) / 10 }

// nice is the next number of the form 1, 2, 2.5 or 5 times a power of ten.
func nice(v float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(v)))
	for _, factor := range []float64{1, 2, 2.5, 5} {
		if v <= factor*power {
			return factor * power
		}
	}
	return 10 * power
}

var svg = template.Must(template.New("plot").Parse(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {{.Width}} {{.Height}}" font-family="system-ui, sans-serif" font-size="12" role="img" aria-label="{{.Title}}">
<rect width="{{.Width}}" height="{{.Height}}" fill="#ffffff"/>
<text x="{{.Left}}" y="24" font-size="15" font-weight="600" fill="#1f2328">{{.Title}}</text>
<text x="{{.Left}}" y="40" fill="#59636e">{{.Unit}}, against the number of keys</text>
{{- range .Rows}}
<line x1="{{$.Left}}" x2="{{$.Right}}" y1="{{.At}}" y2="{{.At}}" stroke="#d1d9e0"/>
<text x="{{$.Left}}" dx="-8" y="{{.At}}" dy="4" text-anchor="end" fill="#59636e">{{.Label}}</text>
{{- end}}
{{- range .Columns}}
<text x="{{.At}}" y="{{$.Bottom}}" dy="20" text-anchor="middle" fill="#59636e">{{.Label}}</text>
{{- end}}
{{- range .Lines}}
<polyline points="{{.Points}}" fill="none" stroke="{{.Color}}" stroke-width="2"/>
{{- $color := .Color}}
{{- range .Dots}}
<circle cx="{{index . 0}}" cy="{{index . 1}}" r="3" fill="{{$color}}"/>
{{- end}}
<text x="{{$.Right}}" dx="10" y="{{.Last}}" dy="4" fill="{{.Color}}">{{.Name}}</text>
{{- end}}
</svg>
`))
