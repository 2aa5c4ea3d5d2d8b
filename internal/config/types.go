package config

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"net/url"
	"strings"
)

const redacted = "[redacted]"

// Secret is a setting that is never shown.
type Secret struct{ text string }

// Reveal gives the secret to what needs it.
func (s Secret) Reveal() string { return s.text }

// IsSet says whether there is one.
func (s Secret) IsSet() bool { return s.text != "" }

func (s *Secret) UnmarshalText(text []byte) error {
	s.text = string(text)
	return nil
}

func (Secret) String() string               { return redacted }
func (Secret) GoString() string             { return redacted }
func (Secret) Format(f fmt.State, _ rune)   { _, _ = io.WriteString(f, redacted) }
func (Secret) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// URL is an address that may hold a password, which is not shown.
type URL struct{ text string }

// NewURL makes a URL of an address that is known to be one.
func NewURL(text string) URL { return URL{text} }

// Reveal gives the address with its password.
func (u URL) Reveal() string { return u.text }

// IsSet says whether there is one.
func (u URL) IsSet() bool { return u.text != "" }

func (u *URL) UnmarshalText(text []byte) error {
	u.text = string(text)
	return nil
}

// String masks passwords. What does not look like a URL is masked as a whole,
// since nobody knows where in it a password stands.
func (u URL) String() string {
	parts := strings.Split(u.text, ",")
	for i, part := range parts {
		parsed, err := url.Parse(strings.TrimSpace(part))
		if err != nil || parsed.Scheme == "" || parsed.Opaque != "" {
			return redacted
		}
		// A NATS token stands where a user name would.
		if _, has := parsed.User.Password(); parsed.User != nil && !has && parsed.Scheme != "postgres" && parsed.Scheme != "postgresql" {
			parsed.User = url.User("xxxxx")
		}
		query := parsed.Query()
		for name := range query {
			if strings.Contains(strings.ToLower(name), "password") {
				query.Set(name, "xxxxx")
				parsed.RawQuery = query.Encode()
			}
		}
		parts[i] = parsed.Redacted()
	}
	return strings.Join(parts, ",")
}

func (u URL) GoString() string             { return u.String() }
func (u URL) Format(f fmt.State, _ rune)   { _, _ = io.WriteString(f, u.String()) }
func (u URL) LogValue() slog.Value         { return slog.StringValue(u.String()) }
func (u URL) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// Networks are ranges of addresses; a single address is a range of one.
type Networks []netip.Prefix

func (n *Networks) UnmarshalText(text []byte) error {
	*n = nil
	for part := range strings.SplitSeq(string(text), ",") {
		part = strings.TrimSpace(part)
		if address, err := netip.ParseAddr(part); err == nil {
			*n = append(*n, netip.PrefixFrom(address, address.BitLen()))
			continue
		}
		prefix, err := netip.ParsePrefix(part)
		if err != nil {
			return errors.New("must be networks such as 10.0.0.0/8, separated by commas")
		}
		*n = append(*n, prefix.Masked())
	}
	return nil
}

// LogFormat is how logs are written.
type LogFormat string

const (
	LogAuto LogFormat = "auto"
	LogJSON LogFormat = "json"
	LogText LogFormat = "text"
)

func (f *LogFormat) UnmarshalText(text []byte) error {
	return oneOf(f, text, LogAuto, LogJSON, LogText)
}

// VerifyAuth says what those who verify keys must present.
type VerifyAuth string

const (
	VerifyAuthNone     VerifyAuth = "none"
	VerifyAuthRequired VerifyAuth = "required"
)

func (v *VerifyAuth) UnmarshalText(text []byte) error {
	return oneOf(v, text, VerifyAuthNone, VerifyAuthRequired)
}

// UsageMode says when a use is written to the log.
type UsageMode string

const (
	UsageAccounted UsageMode = "accounted"
	UsageExact     UsageMode = "exact"
)

func (m *UsageMode) UnmarshalText(text []byte) error {
	return oneOf(m, text, UsageAccounted, UsageExact)
}

// Stale says what happens when the lease has run out.
type Stale string

const (
	StaleRefuse Stale = "refuse"
	StaleServe  Stale = "serve"
)

func (s *Stale) UnmarshalText(text []byte) error {
	return oneOf(s, text, StaleRefuse, StaleServe)
}

func oneOf[T ~string](target *T, text []byte, known ...T) error {
	names := make([]string, len(known))
	for i, k := range known {
		if string(text) == string(k) {
			*target = k
			return nil
		}
		names[i] = string(k)
	}
	return fmt.Errorf("must be one of: %s", strings.Join(names, ", "))
}
