package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"
)

// row is one line of the table: what was measured, and against what.
type row struct {
	what, against string
	ours, theirs  float64 // medians, a second
	ratio         float64 // median of the pairs' ratios
	low, high     float64 // least and greatest of them
	least, aim    float64 // what the ratio is held against; 0: nothing
}

// measurement gives a rate: so many things a second.
type measurement func() (float64, error)

// pair lets two measurements take turns and adds their row.
func (b *bench) pair(what, against string, least, aim float64, ours, theirs measurement) error {
	var rates, others, ratios []float64
	for i := range b.pairs {
		fmt.Fprintf(os.Stderr, "\r%s against %s: %d of %d\033[K", what, against, i+1, b.pairs)
		x, err := ours()
		if err != nil {
			return err
		}
		y, err := theirs()
		if err != nil {
			return err
		}
		rates, others, ratios = append(rates, x), append(others, y), append(ratios, x/y)
	}
	fmt.Fprint(os.Stderr, "\r\033[K")
	b.rows = append(b.rows, row{what, against, median(rates), median(others), median(ratios), slices.Min(ratios), slices.Max(ratios), least, aim})
	return nil
}

// rate adds a row that stands alone.
func (b *bench) rate(what string, ours measurement) error {
	var rates []float64
	for range max(3, b.pairs/3) {
		x, err := ours()
		if err != nil {
			return err
		}
		rates = append(rates, x)
	}
	b.rows = append(b.rows, row{what: what, ours: median(rates)})
	return nil
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

func (b *bench) print(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "measured\ta second\tagainst\ta second\tratio\tleast-greatest\twanted\taimed at\t")
	for _, r := range b.rows {
		if r.against == "" {
			fmt.Fprintf(t, "%s\t%.0f\t\t\t\t\t\t\t\n", r.what, r.ours)
			continue
		}
		wanted, aim := "", ""
		if r.least > 0 {
			wanted, aim = fmt.Sprintf(">= %.2f", r.least), fmt.Sprintf("%.2f", r.aim)
		}
		fmt.Fprintf(t, "%s\t%.0f\t%s\t%.0f\t%.2f\t%.2f-%.2f\t%s\t%s\t\n", r.what, r.ours, r.against, r.theirs, r.ratio, r.low, r.high, wanted, aim)
	}
	_ = t.Flush()
}
