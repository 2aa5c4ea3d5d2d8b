package http

import (
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/oklog/ulid/v2"

	"keyledger/domain"
)

// Answers are appended, member by member, in the order that the contracts name:
// the code reads like the document, and a list of 20,000 keys is one allocation.

// appendText appends a JSON string. Input was checked to be UTF-8 when it came
// in; should it not be, the replacement character stands in its place.
func appendText(dst []byte, text string) []byte {
	for i := range len(text) {
		if c := text[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			dst, _ = jsontext.AppendQuote(dst, text)
			return dst
		}
	}
	dst = append(dst, '"')
	dst = append(dst, text...)
	return append(dst, '"')
}

// appendKeyID appends a key's id as BunShip's and our own clients know it.
func appendKeyID(dst []byte, id domain.KeyID) []byte {
	dst = append(dst, `"`+domain.KeyIDPrefix...)
	at := len(dst)
	dst = append(dst, make([]byte, ulid.EncodedSize)...)
	_ = ulid.ULID(id).MarshalTextTo(dst[at:]) // fails for another length only
	return append(dst, '"')
}

// appendTextOrNull shows what is empty as null.
func appendTextOrNull(dst []byte, text string) []byte {
	if text == "" {
		return append(dst, "null"...)
	}
	return appendText(dst, text)
}

// appendTime appends a time in UTC with whole seconds, or null.
func appendTime(dst []byte, t time.Time) []byte {
	if t.IsZero() {
		return append(dst, "null"...)
	}
	dst = append(dst, '"')
	dst = t.UTC().AppendFormat(dst, "2006-01-02T15:04:05Z")
	return append(dst, '"')
}

func appendScopes(dst []byte, scopes domain.Scopes) []byte {
	dst = append(dst, '[')
	for i, scope := range scopes {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendText(dst, string(scope))
	}
	return append(dst, ']')
}

// appendLimit shows no limit as null.
func appendLimit(dst []byte, perMinute uint32) []byte {
	if perMinute == 0 {
		return append(dst, "null"...)
	}
	return strconv.AppendUint(dst, uint64(perMinute), 10)
}

// seconds gives a wait for Retry-After, rounded up, and never none.
func seconds(wait time.Duration) string {
	return strconv.FormatInt(max(1, int64((wait+time.Second-1)/time.Second)), 10)
}
