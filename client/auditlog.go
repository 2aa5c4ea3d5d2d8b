package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// AuditOptions choose entries of an organization's audit log.
type AuditOptions struct {
	Limit        int    // of a page, 1 to 1,000; 0: 100
	Cursor       string // of the page before; empty: the first page
	Key          KeyID  // zero: everything
	Types        []string
	Since, Until time.Time // zero: no bound; Until is not included
}

// AuditEntry is something that happened, with who did it. Empty is what there is
// nothing to say of.
type AuditEntry struct {
	Position   Position
	ID         string
	Type       string // such as KeyRevoked
	RecordedAt time.Time
	Text       string // a sentence for people
	Key        KeyID
	Name       string
	User       string
	Role       string
	Reason     string
	Actor      AuditActor
	Source     string // the client's address
	RequestID  string
	TraceID    string
	Erased     bool // personal fields are gone for good
}

// AuditActor is who did it.
type AuditActor struct {
	Kind string // key, user, console or service
	Key  KeyID
	User string
}

// AuditPage is a part of the audit log.
type AuditPage struct {
	Entries []AuditEntry // newest first
	Next    string       // the next page's cursor; empty when this is the last one
}

// AuditLog gives a page of an organization's audit log. It needs the scope audit:read.
func (c *Client) AuditLog(ctx context.Context, organization OrganizationID, o AuditOptions) (AuditPage, error) {
	path, err := organizationPath(organization, "audit-log")
	if err != nil {
		return AuditPage{}, err
	}
	query := url.Values{}
	if o.Limit != 0 {
		query.Set("limit", strconv.Itoa(o.Limit))
	}
	set(query, "cursor", o.Cursor)
	if !o.Key.IsZero() {
		query.Set("key", o.Key.String())
	}
	set(query, "types", strings.Join(o.Types, ","))
	if !o.Since.IsZero() {
		query.Set("since", o.Since.UTC().Format(time.RFC3339Nano))
	}
	if !o.Until.IsZero() {
		query.Set("until", o.Until.UTC().Format(time.RFC3339Nano))
	}
	var got struct {
		Events     []wireAuditEntry `json:"events"`
		NextCursor *string          `json:"nextCursor"`
	}
	if _, err := c.ask(ctx, call{method: http.MethodGet, path: path, query: query}, &got); err != nil {
		return AuditPage{}, err
	}
	page := AuditPage{Entries: make([]AuditEntry, len(got.Events)), Next: orZero(got.NextCursor)}
	for i := range got.Events {
		page.Entries[i] = got.Events[i].entry()
	}
	return page, nil
}

// Audit walks through an organization's audit log, page by page, newest first. It
// ends with the first error.
func (c *Client) Audit(ctx context.Context, organization OrganizationID, o AuditOptions) iter.Seq2[AuditEntry, error] {
	return func(yield func(AuditEntry, error) bool) {
		for {
			page, err := c.AuditLog(ctx, organization, o)
			if err != nil {
				yield(AuditEntry{}, err)
				return
			}
			for _, e := range page.Entries {
				if !yield(e, nil) {
					return
				}
			}
			if o.Cursor = page.Next; o.Cursor == "" {
				return
			}
		}
	}
}

type wireAuditEntry struct {
	Position   Position  `json:"position"`
	ID         string    `json:"id"`
	Type       string    `json:"type"`
	RecordedAt time.Time `json:"recordedAt"`
	Text       string    `json:"text"`
	KeyID      *string   `json:"keyId"`
	Name       *string   `json:"name"`
	User       *string   `json:"user"`
	Role       *string   `json:"role"`
	Reason     *string   `json:"reason"`
	Actor      struct {
		Kind  string  `json:"kind"`
		KeyID *string `json:"keyId"`
		User  *string `json:"user"`
	} `json:"actor"`
	Source    *string `json:"source"`
	RequestID *string `json:"requestId"`
	TraceID   *string `json:"traceId"`
	Erased    bool    `json:"erased"`
}

func (w *wireAuditEntry) entry() AuditEntry {
	return AuditEntry{
		Position: w.Position, ID: w.ID, Type: w.Type, RecordedAt: w.RecordedAt, Text: w.Text, Key: keyID(w.KeyID), Name: orZero(w.Name), User: orZero(w.User),
		Role: orZero(w.Role), Reason: orZero(w.Reason), Actor: AuditActor{Kind: w.Actor.Kind, Key: keyID(w.Actor.KeyID), User: orZero(w.Actor.User)},
		Source: orZero(w.Source), RequestID: orZero(w.RequestID), TraceID: orZero(w.TraceID), Erased: w.Erased,
	}
}

func keyID(text *string) KeyID {
	id, err := ParseKeyID(orZero(text))
	if err != nil {
		return KeyID{}
	}
	return id
}
