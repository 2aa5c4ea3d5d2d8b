package prove_test

import (
	"fmt"
	"html/template"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The picture's measures, in its own units.
const (
	width, height          = 760, 360
	plotLeft, plotRight    = 80, 220
	plotTop, plotBottom    = 56, 48
	leastShown, mostShown  = 0.5, 3000.0 // milliseconds
	blue, green, red, grey = "#1f6feb", "#1a7f37", "#bc4c00", "#6e7781"
	mostPoints             = 400
)

type curve struct {
	Name, Color, Points string
	At                  float64 // where the name stands
}

type tick struct {
	At    float64
	Label string
}

// plot draws which share of the revoke calls had returned after how long.
func (r report) plot(t *testing.T, folder string) {
	t.Helper()
	x := func(ms float64) float64 {
		share := math.Log(min(max(ms, leastShown), mostShown)/leastShown) / math.Log(mostShown/leastShown)
		return math.Round(10*(plotLeft+share*(width-plotLeft-plotRight))) / 10
	}
	y := func(share float64) float64 {
		return math.Round(10*(height-plotBottom-share*(height-plotTop-plotBottom))) / 10
	}
	draw := func(name, color string, l latencies) curve {
		points := []string{fmt.Sprintf("%g,%g", x(leastShown), y(0))}
		step := max(len(l.sorted)/mostPoints, 1)
		for i := 0; i < len(l.sorted); i += step {
			points = append(points, fmt.Sprintf("%g,%g", x(milliseconds(l.sorted[i])), y(float64(i+1)/float64(len(l.sorted)))))
		}
		return curve{name, color, strings.Join(append(points, fmt.Sprintf("%g,%g", x(l.Max), y(1))), " "), 0}
	}
	p := struct {
		Width, Height, Left, Right, Top, Bottom, Bound float64
		Label                                          string
		Rows, Columns                                  []tick
		Curves                                         []curve
	}{width, height, plotLeft, width - plotRight, plotTop, height - plotBottom, x(r.Bound), fmt.Sprintf("bound, %.0f ms", r.Bound), nil, nil, nil}
	for i := range 6 {
		p.Rows = append(p.Rows, tick{y(float64(i) / 5), fmt.Sprintf("%d %%", 20*i)})
	}
	for _, at := range []time.Duration{time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond, time.Second} {
		p.Columns = append(p.Columns, tick{x(milliseconds(at)), at.String()})
	}
	for _, l := range []struct {
		name, color string
		of          latencies
	}{{"nothing broken", green, r.Healthy}, {"under faults", blue, r.Faulty}, {"the node itself hindered", grey, r.Hindered}} {
		if l.of.N > 0 {
			c := draw(l.name, l.color, l.of)
			c.At = plotTop + 12 + 18*float64(len(p.Curves))
			p.Curves = append(p.Curves, c)
		}
	}
	file, err := os.Create(filepath.Join(folder, "revocation.svg"))
	if err != nil {
		t.Fatal(err)
	}
	if err := picture.Execute(file, p); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
}

var picture = template.Must(template.New("plot").Parse(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {{.Width}} {{.Height}}" font-family="system-ui, sans-serif" font-size="12" role="img" aria-label="How long a revoke takes">
<rect width="{{.Width}}" height="{{.Height}}" fill="#ffffff"/>
<text x="{{.Left}}" y="24" font-size="15" font-weight="600" fill="#1f2328">How long a revoke takes until it holds everywhere</text>
<text x="{{.Left}}" y="40" fill="#59636e">share of the calls that have returned, against time</text>
{{- range .Rows}}
<line x1="{{$.Left}}" x2="{{$.Right}}" y1="{{.At}}" y2="{{.At}}" stroke="#d1d9e0"/>
<text x="{{$.Left}}" dx="-8" y="{{.At}}" dy="4" text-anchor="end" fill="#59636e">{{.Label}}</text>
{{- end}}
{{- range .Columns}}
<text x="{{.At}}" y="{{$.Bottom}}" dy="20" text-anchor="middle" fill="#59636e">{{.Label}}</text>
{{- end}}
<line x1="{{.Bound}}" x2="{{.Bound}}" y1="{{.Top}}" y2="{{.Bottom}}" stroke="` + red + `" stroke-dasharray="4 3"/>
<text x="{{.Bound}}" dx="4" y="{{.Bottom}}" dy="-8" fill="` + red + `">{{.Label}}</text>
{{- range .Curves}}
<polyline points="{{.Points}}" fill="none" stroke="{{.Color}}" stroke-width="2"/>
<text x="{{$.Right}}" dx="10" y="{{.At}}" fill="{{.Color}}">{{.Name}}</text>
{{- end}}
</svg>
`))
