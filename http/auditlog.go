package http

import (
	"bytes"
	"context"
	"encoding/csv"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gofiber/fiber/v2"

	"keyledger/domain"
)

// AuditLog tells what happened in an organization, and how its keys stood once.
type AuditLog interface {
	// Events gives a page, newest first.
	Events(ctx context.Context, query AuditQuery) ([]AuditEntry, error)
	// KeysAt gives the keys as they stood at a position, a moment, or so long ago;
	// newest first; and which moment that was. What is none of these is CodeInvalid.
	KeysAt(ctx context.Context, organization domain.OrganizationID, at string, now time.Time) ([]domain.Key, time.Time, error)
}

// AuditQuery asks for one page of an organization's audit log.
type AuditQuery struct {
	Organization domain.OrganizationID
	Before       domain.Position // only what happened before it; 0: from the end
	Most         int
	Key          domain.KeyID // zero: everything
	Types        []string     // empty: all
	Since, Until time.Time    // zero: no bound; Until is not included
}

// AuditEntry is one event as the audit log shows it.
type AuditEntry struct {
	Position   domain.Position
	ID         domain.ID
	RecordedAt time.Time
	Event      domain.Event
	Metadata   domain.Metadata
	Text       string // a sentence for people
	Erased     bool   // personal fields are gone for good
}

// scopeAuditRead lets a key read its organization's audit log. * implies it, admin does not.
const scopeAuditRead domain.Scope = "audit:read"

func (s *Server) auditRoutes() []*route {
	if s.options.Audit == nil {
		return nil
	}
	return []*route{{method: fiber.MethodGet, pattern: "/api/v1/organizations/:organization/audit-log", dialect: native, handle: s.auditLog}}
}

func (s *Server) auditLog(r *request) error {
	p, err := s.admit(r, scopeAuditRead, false)
	if err != nil {
		return err
	}
	query, err := s.auditQuery(r, p.organization)
	if err != nil {
		return err
	}
	format, err := r.auditFormat()
	if err != nil {
		return err
	}
	limit := query.Most
	query.Most++ // one more tells whether there is a next page
	entries, err := s.options.Audit.Events(r.ctx, query)
	if err != nil {
		return err
	}
	next := ""
	if len(entries) > limit {
		entries = entries[:limit]
		next = domain.Token{Epoch: s.options.Epoch, Lane: domain.Lifecycle, Position: entries[limit-1].Position}.String()
		again := url.Values{}
		r.fiber.Context().QueryArgs().VisitAll(func(name, value []byte) { again.Set(string(name), string(value)) })
		again.Set("cursor", next)
		r.set(fiber.HeaderLink, "<"+r.path()+"?"+again.Encode()+`>; rel="next"`)
	}
	r.set(fiber.HeaderCacheControl, "no-store")
	switch format {
	case "csv":
		return r.auditCSV(entries)
	case "ndjson":
		var body []byte
		for i := range entries {
			body = append(appendAuditEntry(body, &entries[i]), '\n')
		}
		r.answer(fiber.StatusOK, "application/x-ndjson", body)
		return nil
	}
	body := []byte(`{"events":[`)
	for i := range entries {
		if i > 0 {
			body = append(body, ',')
		}
		body = appendAuditEntry(body, &entries[i])
	}
	body = append(body, `],"hasMore":`...)
	body = strconv.AppendBool(body, next != "")
	body = append(body, `,"nextCursor":`...)
	body = appendTextOrNull(body, next)
	r.answer(fiber.StatusOK, fiber.MIMEApplicationJSON, append(body, '}'))
	return nil
}

var auditTypes = []string{
	domain.KeyCreated{}.EventName(), domain.KeyRevoked{}.EventName(), domain.RevocationFenced{}.EventName(), domain.MemberAdded{}.EventName(), domain.MemberRemoved{}.EventName(),
	domain.OrganizationErased{}.EventName(),
}

// auditQuery reads the filters.
func (s *Server) auditQuery(r *request, organization domain.OrganizationID) (AuditQuery, error) {
	q := AuditQuery{Organization: organization, Most: defaultPage}
	for name, read := range map[string]func(text string) error{
		"limit": func(text string) (err error) { q.Most, err = pageLimit(text); return err },
		"cursor": func(text string) error {
			token, err := domain.ParseToken(text)
			if err != nil || token.Lane != domain.Lifecycle || token.Epoch != s.options.Epoch || token.Position == 0 {
				return domain.Invalid("cursor", "must be the cursor of an earlier page")
			}
			q.Before = token.Position
			return nil
		},
		"key": func(text string) (err error) {
			q.Key, err = domain.ParseKeyID(text)
			return err
		},
		"types": func(text string) error {
			q.Types = strings.Split(text, ",")
			for _, t := range q.Types {
				if !slices.Contains(auditTypes, t) {
					return domain.Invalid("types", "must be some of %s, separated by commas", strings.Join(auditTypes, ", "))
				}
			}
			return nil
		},
		"since": func(text string) (err error) { q.Since, err = readMoment("since", text); return err },
		"until": func(text string) (err error) { q.Until, err = readMoment("until", text); return err },
	} {
		text, given, err := r.query(name)
		if err == nil && given {
			err = read(text)
		}
		if err != nil {
			return q, err
		}
	}
	return q, nil
}

func readMoment(name, text string) (time.Time, error) {
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return at, domain.Invalid(name, "must be a moment such as 2026-01-15T10:00:00Z")
	}
	return at, nil
}

// auditFormat is what ?format says, else what the Accept header asks for.
func (r *request) auditFormat() (string, error) {
	format, given, err := r.query("format")
	if err != nil {
		return "", err
	}
	if given {
		if format != "json" && format != "csv" && format != "ndjson" {
			return "", domain.Invalid("format", "must be json, ndjson or csv")
		}
		return format, nil
	}
	accept, err := r.header(fiber.HeaderAccept)
	switch {
	case err != nil:
		return "", err
	case strings.HasPrefix(accept, "text/csv"):
		return "csv", nil
	case strings.HasPrefix(accept, "application/x-ndjson"):
		return "ndjson", nil
	}
	return "json", nil
}

// auditFields are an entry's own, beside what everybody has.
func auditFields(e *AuditEntry) (key domain.KeyID, name, user, role, reason string) {
	switch event := e.Event.(type) {
	case domain.KeyCreated:
		return event.Key, event.Name, string(event.CreatedBy), "", ""
	case domain.KeyRevoked:
		return event.Key, "", "", "", event.Reason
	case domain.RevocationFenced:
		return event.Key, "", "", "", ""
	case domain.MemberAdded:
		return key, "", string(event.User), event.Role, ""
	case domain.MemberRemoved:
		return key, "", string(event.User), "", ""
	case domain.OrganizationErased:
		return key, "", "", "", event.Reason
	case domain.KeyUsed: // of another lane
	}
	return key, "", "", "", ""
}

func appendAuditEntry(b []byte, e *AuditEntry) []byte {
	key, name, user, role, reason := auditFields(e)
	b = append(b, `{"position":`...)
	b = strconv.AppendUint(b, uint64(e.Position), 10)
	b = append(b, `,"id":"`...)
	b = append(b, e.ID.UUID()...)
	b = append(b, `","type":"`...)
	b = append(b, e.Event.EventName()...)
	b = append(b, `","recordedAt":"`...)
	b = append(e.RecordedAt.UTC().AppendFormat(b, time.RFC3339Nano), '"')
	b = append(b, `,"text":`...)
	b = appendText(b, e.Text)
	b = append(b, `,"keyId":`...)
	if key.IsZero() {
		b = append(b, "null"...)
	} else {
		b = appendKeyID(b, key)
	}
	for _, field := range [...][2]string{{"name", name}, {"user", user}, {"role", role}, {"reason", reason}} {
		b = append(append(append(b, `,"`...), field[0]...), `":`...)
		b = appendTextOrNull(b, field[1])
	}
	b = append(b, `,"actor":{"kind":`...)
	b = appendText(b, string(e.Metadata.Actor.Kind))
	b = append(b, `,"keyId":`...)
	if e.Metadata.Actor.Key.IsZero() {
		b = append(b, "null"...)
	} else {
		b = appendKeyID(b, e.Metadata.Actor.Key)
	}
	b = append(b, `,"user":`...)
	b = appendTextOrNull(b, string(e.Metadata.Actor.User))
	b = append(b, `},"source":`...)
	b = appendTextOrNull(b, source(e))
	b = append(b, `,"requestId":`...)
	b = appendTextOrNull(b, e.Metadata.RequestID)
	b = append(b, `,"traceId":`...)
	b = appendTextOrNull(b, e.Metadata.TraceID)
	b = append(b, `,"erased":`...)
	return append(strconv.AppendBool(b, e.Erased), '}')
}

func source(e *AuditEntry) string {
	if !e.Metadata.Source.IsValid() {
		return ""
	}
	return e.Metadata.Source.String()
}

// auditCSV writes a table with a head.
func (r *request) auditCSV(entries []AuditEntry) error {
	var body bytes.Buffer
	w := csv.NewWriter(&body)
	_ = w.Write([]string{"position", "recordedAt", "type", "keyId", "name", "user", "role", "reason", "actorKind", "actorKeyId", "actorUser", "source", "requestId", "text"})
	for i := range entries {
		e := &entries[i]
		key, name, user, role, reason := auditFields(e)
		row := []string{
			strconv.FormatUint(uint64(e.Position), 10), e.RecordedAt.UTC().Format(time.RFC3339Nano), e.Event.EventName(), keyText(key), name, user, role, reason,
			string(e.Metadata.Actor.Kind), keyText(e.Metadata.Actor.Key), string(e.Metadata.Actor.User), source(e), e.Metadata.RequestID, e.Text,
		}
		for j, cell := range row {
			// A spreadsheet would take it for a formula, and a name is somebody's free text.
			if cell != "" && strings.ContainsRune("=+-@\t\r", rune(cell[0])) {
				row[j] = "'" + cell
			}
		}
		_ = w.Write(row) // a buffer never fails
	}
	w.Flush()
	r.answer(fiber.StatusOK, "text/csv; charset=utf-8", body.Bytes())
	return nil
}

func keyText(id domain.KeyID) string {
	if id.IsZero() {
		return ""
	}
	return id.String()
}

// keysAt gives the list, as it stood when ?at says so, and which moment it shows.
// Uses are not known of the past.
func (s *Server) keysAt(r *request, query domain.KeyQuery) (views []domain.KeyView, moment time.Time, err error) {
	at, given, err := r.query("at")
	if err != nil {
		return nil, moment, err
	}
	if !given || s.options.Audit == nil {
		views, err = s.keys.List(r.ctx, query)
		return views, s.clock(), err
	}
	if at == "" {
		return nil, moment, domain.Invalid("at", "must be a position, a moment such as 2026-01-15T10:00:00Z, or how long ago, such as 24h")
	}
	keys, moment, err := s.options.Audit.KeysAt(r.ctx, query.Organization, at, s.clock())
	if err != nil {
		return nil, moment, err
	}
	views = []domain.KeyView{}
	skipping := !query.Before.IsZero()
	for _, key := range keys {
		if skipping {
			skipping = key.ID != query.Before
			continue
		}
		if query.Most > 0 && len(views) == query.Most {
			break
		}
		views = append(views, domain.KeyView{Key: key})
	}
	return views, moment, nil
}
