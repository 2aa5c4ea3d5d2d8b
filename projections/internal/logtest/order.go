package logtest

import (
	"bytes"
	"maps"
	"slices"

	"keyledger/domain"
)

// newestFirst is the order that lists promise, said a second time.
func newestFirst(keys map[domain.KeyID]domain.Key) []domain.Key {
	return slices.SortedFunc(maps.Values(keys), func(a, b domain.Key) int {
		if c := b.CreatedAt.Compare(a.CreatedAt); c != 0 {
			return c
		}
		return bytes.Compare(b.ID[:], a.ID[:])
	})
}
