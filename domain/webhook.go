package domain

import (
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"strings"
	"time"
)

const (
	// WebhookIDPrefix stands before the ULID form of a webhook's id.
	WebhookIDPrefix = "wh_"
	// SigningSecretPrefix stands before a signing secret, as Standard Webhooks asks.
	SigningSecretPrefix = "whsec_"
	// SigningSecretSize is how many random bytes a signing secret has.
	SigningSecretSize = 32

	mostWebhookURL         = 2048
	mostWebhookDescription = 200
)

// WebhookID names a webhook.
type WebhookID ID

// String gives the id as clients know it: wh_ and a ULID.
func (id WebhookID) String() string { return WebhookIDPrefix + ID(id).ULID() }

// ParseWebhookID reads wh_ and a ULID, a bare ULID, or a UUID.
func ParseWebhookID(text string) (WebhookID, error) {
	id, ok := parseID(strings.TrimPrefix(text, WebhookIDPrefix))
	if !ok {
		return WebhookID{}, Invalid("webhookId", "must be a UUID or %s followed by a ULID", WebhookIDPrefix)
	}
	return WebhookID(id), nil
}

// Webhook is a place that an organization wants its events to be sent to. It is
// configuration, and no part of the log.
type Webhook struct {
	ID           WebhookID
	Organization OrganizationID
	URL          string
	Description  string
	Types        []string // public names of events; empty: all
	CreatedAt    time.Time
	UpdatedAt    time.Time
	// Position is how far events were delivered, passed over by the filter, or given up.
	Position Position
	// DisabledReason says why nothing is sent; empty while it is.
	DisabledReason string
	DisabledAt     time.Time
	// How it fares with the event at hand.
	Attempts     int       // failed ones
	FailingSince time.Time // of the first failure after the last success; zero: none
	NextAttempt  time.Time // zero: none is waited for
	LastError    string
	// FormerSecretUntil is when the secret before the last rotation no longer signs; zero: there is none.
	FormerSecretUntil time.Time
}

// WebhookChange is what is to be changed of a webhook; nil stays as it is.
type WebhookChange struct {
	URL         *string
	Description *string
	Types       *[]string
	Enabled     *bool
}

// DeadLetter is an event that a webhook's receiver did not take in time.
type DeadLetter struct {
	Position Position
	Event    ID
	Type     string
	Attempts int
	Reason   string
	GivenUp  time.Time
}

// ParseWebhookURL checks what can be checked without asking anybody. plain lets
// http through, for development.
func ParseWebhookURL(text string, plain bool) (string, error) {
	u, err := url.Parse(text)
	switch {
	case len(text) > mostWebhookURL:
		return "", Invalid("url", "must be at most %d bytes", mostWebhookURL)
	case err != nil || u.Hostname() == "" || u.Opaque != "":
		return "", Invalid("url", "must be an address such as https://example.com/hooks")
	case u.Scheme != "https" && (!plain || u.Scheme != "http"):
		return "", Invalid("url", "must begin with https://")
	case u.User != nil:
		return "", Invalid("url", "must not hold a user or a password: deliveries are signed")
	case u.Fragment != "":
		return "", Invalid("url", "must not have a fragment")
	}
	for i := range len(text) {
		if text[i] <= ' ' || text[i] > '~' {
			return "", Invalid("url", "must be printable ASCII")
		}
	}
	return text, nil
}

// ParseWebhookDescription takes up to 200 printable characters.
func ParseWebhookDescription(text string) (string, error) {
	if len([]rune(text)) > mostWebhookDescription {
		return "", Invalid("description", "must be at most %d characters", mostWebhookDescription)
	}
	for _, r := range text {
		if !isPrintable(r) {
			return "", Invalid("description", "must not contain control characters")
		}
	}
	return text, nil
}

// SigningSecret signs what is sent to one webhook. It prints, logs and marshals
// as a fixed text.
type SigningSecret struct{ key string }

// NewSigningSecret draws a secret.
func NewSigningSecret(entropy io.Reader) (SigningSecret, error) {
	var key [SigningSecretSize]byte
	if _, err := io.ReadFull(entropy, key[:]); err != nil {
		return SigningSecret{}, fmt.Errorf("draw a signing secret: %w", err)
	}
	return SigningSecret{string(key[:])}, nil
}

// SigningSecretOf takes the bytes of a secret that was stored.
func SigningSecretOf(key []byte) SigningSecret { return SigningSecret{string(key)} }

// Reveal gives the secret away, as whsec_ and base64. It is called in the answer that
// shows a new one once, and nowhere else.
func (s SigningSecret) Reveal() string {
	return SigningSecretPrefix + base64.StdEncoding.EncodeToString([]byte(s.key))
}

// Key is what signs.
func (s SigningSecret) Key() []byte { return []byte(s.key) }

// IsZero says whether there is no secret at all.
func (s SigningSecret) IsZero() bool { return s.key == "" }

func (SigningSecret) String() string                 { return redacted }
func (SigningSecret) GoString() string               { return redacted }
func (SigningSecret) Format(f fmt.State, _ rune)     { _, _ = io.WriteString(f, redacted) }
func (SigningSecret) LogValue() slog.Value           { return slog.StringValue(redacted) }
func (SigningSecret) MarshalText() ([]byte, error)   { return []byte(redacted), nil }
func (SigningSecret) MarshalJSON() ([]byte, error)   { return []byte(`"` + redacted + `"`), nil }
func (SigningSecret) MarshalBinary() ([]byte, error) { return []byte(redacted), nil }
