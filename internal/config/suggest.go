package config

import (
	"maps"
	"slices"
	"strings"
)

// suggestion names the known variable that is most like an unknown one, if any is.
func suggestion(name string, known map[string]bool) string {
	// The common beginning makes no two names alike.
	best, least := "", len(strings.TrimPrefix(name, ourPrefix))/3+1
	for _, candidate := range slices.Sorted(maps.Keys(known)) {
		if d := distance(name, candidate); d < least {
			best, least = candidate, d
		}
	}
	if best == "" {
		return ": keyledger serve --help lists those that exist"
	}
	return ": did you mean " + best + "?"
}

// distance counts the letters to insert, delete or replace that turn a into b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

func sorted(errs []error) []error {
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errs
}
