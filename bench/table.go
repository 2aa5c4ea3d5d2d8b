package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// sample is one measurement of something.
type sample struct {
	value   float64                 // so many a second, or how long one takes
	latency *hdrhistogram.Histogram // in microseconds; nil: not measured
}

// contender is something that takes turns with others.
type contender struct {
	name    string
	measure func() (sample, error)
}

// comparison is a row to be made of two contenders, given by their numbers.
type comparison struct {
	ours, theirs int
	wanted       string // what the ratio is held against; empty: nothing
}

// summary is what a contender's samples come to.
type summary struct {
	value         float64  // median
	p50, p90, p99 float64  // medians, microseconds
	samples       []sample // in the order of the rounds
}

// row is one line of the table.
type row struct {
	what, result, latency       string
	against, theirs, theirsLate string
	ratio, spread, late, wanted string
}

// compare lets contenders take turns, adds a row for each comparison, and gives
// what was measured.
func (b *bench) compare(rounds int, format func(float64) string, contenders []contender, comparisons ...comparison) ([]summary, error) {
	summaries := make([]summary, len(contenders))
	for i := range rounds {
		for n, c := range contenders {
			fmt.Fprintf(os.Stderr, "\r%s: %d of %d\033[K", c.name, i+1, rounds)
			s, err := c.measure()
			if err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
			summaries[n].samples = append(summaries[n].samples, s)
		}
	}
	fmt.Fprint(os.Stderr, "\r\033[K")
	for i := range summaries {
		summaries[i].sum()
	}
	for _, c := range comparisons {
		b.addComparison(contenders[c.ours].name, summaries[c.ours], contenders[c.theirs].name, summaries[c.theirs], format, c.wanted)
	}
	return summaries, nil
}

func (b *bench) addComparison(what string, ours summary, against string, theirs summary, format func(float64) string, wanted string) {
	ratios := ours.ratios(theirs, func(s sample) float64 { return s.value })
	r := row{
		what: what, result: format(ours.value), latency: ours.times(), against: against, theirs: format(theirs.value), theirsLate: theirs.times(),
		ratio: fmt.Sprintf("%.2f", median(ratios)), spread: fmt.Sprintf("%.2f-%.2f", slices.Min(ratios), slices.Max(ratios)), wanted: wanted,
	}
	if ours.p90 > 0 && theirs.p90 > 0 {
		r.late = fmt.Sprintf("%.2f", median(ours.ratios(theirs, func(s sample) float64 { return float64(s.latency.ValueAtQuantile(90)) })))
	}
	b.rows = append(b.rows, r)
}

// fact adds a row that stands alone.
func (b *bench) fact(what, result, wanted string) {
	b.rows = append(b.rows, row{what: what, result: result, wanted: wanted})
}

// rate measures something that stands alone.
func (b *bench) rate(what string, measure func() (sample, error)) error {
	summaries, err := b.compare(max(3, b.rounds/3), perSecond, []contender{{what, measure}})
	if err == nil {
		b.fact(what, perSecond(summaries[0].value), "")
	}
	return err
}

func (s *summary) sum() {
	var values, p50, p90, p99 []float64
	for _, x := range s.samples {
		values = append(values, x.value)
		if x.latency != nil {
			p50 = append(p50, float64(x.latency.ValueAtQuantile(50)))
			p90 = append(p90, float64(x.latency.ValueAtQuantile(90)))
			p99 = append(p99, float64(x.latency.ValueAtQuantile(99)))
		}
	}
	s.value, s.p50, s.p90, s.p99 = median(values), median(p50), median(p90), median(p99)
}

func (s *summary) ratios(other summary, of func(sample) float64) []float64 {
	ratios := make([]float64, len(s.samples))
	for i := range s.samples {
		ratios[i] = of(s.samples[i]) / of(other.samples[i])
	}
	return ratios
}

func (s *summary) times() string {
	if s.p50 == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f/%.2f/%.2f", s.p50/1000, s.p90/1000, s.p99/1000)
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

func perSecond(v float64) string   { return thousands(v) + "/s" }
func nanoseconds(v float64) string { return fmt.Sprintf("%.0f ns", v) }
func seconds(v float64) string     { return fmt.Sprintf("%.2f s", v) }

func thousands(v float64) string {
	text := fmt.Sprintf("%.0f", v)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

func (b *bench) print(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "measured\tresult\tp50/p90/p99 ms\tagainst\tresult\tp50/p90/p99 ms\tratio\tleast-greatest\tp90 ratio\twanted\t")
	for _, r := range b.rows {
		fmt.Fprintln(t, strings.Join([]string{r.what, r.result, r.latency, r.against, r.theirs, r.theirsLate, r.ratio, r.spread, r.late, r.wanted, ""}, "\t"))
	}
	_ = t.Flush()
}
