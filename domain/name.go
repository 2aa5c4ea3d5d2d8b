package domain

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

const mostNameCharacters = 100

// ParseName trims a human-readable name and accepts 1 to 100 characters that a
// person can see and that cannot rearrange the text around them: no control
// characters, no bidirectional overrides, no line breaks.
func ParseName(text string) (string, error) {
	if !utf8.ValidString(text) {
		return "", Invalid("name", "must be valid UTF-8")
	}
	text = strings.TrimSpace(text)
	if n := utf8.RuneCountInString(text); n == 0 || n > mostNameCharacters {
		return "", Invalid("name", "must be 1 to %d characters after trimming", mostNameCharacters)
	}
	visible := false
	for _, r := range text {
		if !isPrintable(r) {
			return "", Invalid("name", "must not contain control or text-direction characters")
		}
		visible = visible || unicode.IsGraphic(r) && !unicode.IsSpace(r)
	}
	if !visible {
		return "", Invalid("name", "must contain a visible character")
	}
	return text, nil
}

const mostReasonCharacters = 500

// ParseReason trims what somebody says of why, and accepts up to 500 characters of
// the kind that names have. Nothing is a reason, too.
func ParseReason(text string) (string, error) {
	text = strings.TrimSpace(text)
	if !utf8.ValidString(text) || utf8.RuneCountInString(text) > mostReasonCharacters {
		return "", Invalid("reason", "must be at most %d characters of UTF-8", mostReasonCharacters)
	}
	for _, r := range text {
		if !isPrintable(r) {
			return "", Invalid("reason", "must not contain control or text-direction characters")
		}
	}
	return text, nil
}

// isPrintable refuses controls (Cc), private and unassigned code points, line
// separators, and those format characters (Cf) that change the order of what
// is read: Unicode Standard Annex #9, section 2. The zero-width joiner stays, since names of
// emoji and of Indic scripts need it.
func isPrintable(r rune) bool {
	switch {
	case r == '\u200d':
		return true
	case r == utf8.RuneError, unicode.In(r, unicode.Cc, unicode.Cf, unicode.Co, unicode.Cs, unicode.Zl, unicode.Zp):
		return false
	}
	return true
}
