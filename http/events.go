package http

import (
	"context"
	"io"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/gofiber/fiber/v2"

	"keyledger/domain"
)

// EventFeed is the log as those read it who are no verifiers: CloudEvents without
// digests and without anything personal.
type EventFeed interface {
	Head(ctx context.Context, lane domain.Lane) (domain.Position, error)
	// Page gives events in the order of the log. It looks at so many at most: a page may
	// be empty though the log goes on. A position that it cannot go on from is
	// CodeStale, a type that there is not CodeInvalid.
	Page(ctx context.Context, query EventQuery) (EventPage, error)
	// Watch tells when there may be more: take the value, then read. stop ends it.
	Watch(lane domain.Lane, organization domain.OrganizationID) (news <-chan struct{}, stop func())
}

// EventQuery asks for the events behind a position.
type EventQuery struct {
	Lane         domain.Lane
	Organization domain.OrganizationID // empty: all; otherwise the lane is the lifecycle
	After        domain.Position
	Most         int
	Types        []string // such as keyledger.key.revoked; empty: all
}

// EventPage is what there was.
type EventPage struct {
	Events []FeedEvent
	Next   domain.Position // how far was looked: the After of the next query
	Head   domain.Position // where the lane ended
}

// FeedEvent is a CloudEvent in JSON, on one line.
type FeedEvent struct {
	Position domain.Position
	JSON     []byte
}

const (
	// scopeEventsRead lets a key read its organization's events. * implies it, admin does not.
	scopeEventsRead domain.Scope = "events:read"

	headerLastEventID = "Last-Event-Id" // as HTTP libraries spell Last-Event-ID
	// eventRetry is how soon a reader of a stream that has ended is to come back.
	eventRetry = "retry: 2000\n\n"
	mostTypes  = 32
)

func (s *Server) eventRoutes() []*route {
	if s.options.Events == nil {
		return nil
	}
	get := func(pattern string, handle func(*request) error) *route {
		return &route{method: fiber.MethodGet, pattern: pattern, dialect: native, handle: handle}
	}
	return []*route{
		get("/api/v1/events", s.systemEvents),
		get("/api/v1/organizations/:organization/events", s.organizationEvents),
	}
}

// systemEvents is the whole log, for keys of the service itself.
func (s *Server) systemEvents(r *request) error {
	c, err := s.admitSystem(r, domain.ScopeSystemEvents)
	if err != nil {
		return err
	}
	return s.events(r, EventQuery{}, admitted{c, domain.ScopeSystemEvents, domain.SystemOrganization})
}

// organizationEvents is what concerns one organization, for its own keys and members.
func (s *Server) organizationEvents(r *request) error {
	p, err := s.admit(r, scopeEventsRead, false)
	if err != nil {
		return err
	}
	c, err := r.credential()
	if err != nil {
		return err
	}
	return s.events(r, EventQuery{Organization: p.organization}, admitted{c, scopeEventsRead, p.organization})
}

func (s *Server) events(r *request, q EventQuery, who admitted) error {
	format, err := r.eventFormat()
	if err != nil {
		return err
	}
	given, err := s.readEventQuery(r, &q, format)
	if err != nil {
		return err
	}
	switch format {
	case eventStream:
		return s.followEvents(r, q, given, who)
	case newlineDelimited:
		return s.exportEvents(r, q, who)
	}
	if q.Most == 0 {
		q.Most = defaultPage
	}
	page, err := s.options.Events.Page(r.ctx, q)
	if err != nil {
		return err
	}
	cursor := s.eventToken(q.Lane, page.Next)
	if page.Next < page.Head {
		again := url.Values{}
		r.fiber.Context().QueryArgs().VisitAll(func(name, value []byte) { again.Set(string(name), string(value)) })
		again.Set("after", cursor)
		r.set(fiber.HeaderLink, "<"+r.path()+"?"+again.Encode()+`>; rel="next"`)
	}
	body := []byte(`{"events":[`)
	for i := range page.Events {
		if i > 0 {
			body = append(body, ',')
		}
		body = append(body, page.Events[i].JSON...)
	}
	body = append(body, `],"next":`...)
	body = strconv.AppendUint(body, uint64(page.Next), 10)
	body = append(body, `,"head":`...)
	body = strconv.AppendUint(body, uint64(page.Head), 10)
	body = append(body, `,"epoch":`...)
	body = strconv.AppendUint(body, uint64(s.options.Epoch), 10)
	body = append(body, `,"lane":`...)
	body = appendText(body, string(q.Lane))
	body = append(body, `,"cursor":`...)
	body = appendText(body, cursor)
	r.answer(fiber.StatusOK, fiber.MIMEApplicationJSON, append(body, '}'))
	return nil
}

func (s *Server) eventToken(lane domain.Lane, position domain.Position) string {
	return domain.Token{Epoch: s.options.Epoch, Lane: lane, Position: position}.String()
}

// eventFormat is what ?format says, else what the Accept header asks for.
func (r *request) eventFormat() (string, error) {
	format, given, err := r.query("format")
	if err != nil {
		return "", err
	}
	if given {
		switch format {
		case "json":
			return fiber.MIMEApplicationJSON, nil
		case "ndjson":
			return newlineDelimited, nil
		case "sse":
			return eventStream, nil
		}
		return "", domain.Invalid("format", "must be json, ndjson or sse")
	}
	accept, err := r.header(fiber.HeaderAccept)
	if err != nil {
		return "", err
	}
	for _, format := range []string{eventStream, newlineDelimited} {
		if strings.HasPrefix(accept, format) {
			return format, nil
		}
	}
	return fiber.MIMEApplicationJSON, nil
}

// readEventQuery reads the parameters, and says whether a position was among them.
func (s *Server) readEventQuery(r *request, q *EventQuery, format string) (given bool, err error) {
	q.Lane = domain.Lifecycle
	if text, asked, err := r.query("lane"); err != nil {
		return false, err
	} else if asked {
		switch q.Lane = domain.Lane(text); {
		case q.Lane != domain.Lifecycle && q.Lane != domain.Usage:
			return false, domain.Invalid("lane", "must be lifecycle or usage")
		case q.Lane == domain.Usage && q.Organization != "":
			return false, domain.Invalid("lane", "must be lifecycle: an organization's uses are counted by key, below /keys/{id}/usage")
		}
	}
	if text, asked, err := r.query("types"); err != nil {
		return false, err
	} else if asked {
		if q.Types = strings.Split(text, ","); len(q.Types) > mostTypes {
			return false, domain.Invalid("types", "must be %d at most", mostTypes)
		}
	}
	if text, asked, err := r.query("limit"); err != nil {
		return false, err
	} else if asked {
		if q.Most, err = pageLimit(text); err != nil {
			return false, err
		}
	}
	field := "after"
	text, given, err := r.query(field)
	if err != nil {
		return false, err
	}
	if format == eventStream {
		// A stream that broke off is asked for again under its old address: what came last decides.
		last, err := r.header(headerLastEventID)
		if err != nil {
			return false, err
		}
		if last != "" {
			field, text, given = "Last-Event-ID", last, true
		}
	}
	if given {
		q.After, err = s.readPosition(field, text, q.Lane)
	}
	return given, err
}

// readPosition takes a position as a number, or as a token, which also says what
// history it is of.
func (s *Server) readPosition(field, text string, lane domain.Lane) (domain.Position, error) {
	if n, err := strconv.ParseUint(text, 10, 62); err == nil {
		return domain.Position(n), nil
	}
	token, err := domain.ParseToken(text)
	switch {
	case err != nil:
		return 0, domain.Invalid(field, "must be a position, or the cursor or id that came with an event")
	case token.Lane != lane:
		return 0, domain.Invalid(field, "must be a position of the lane that is asked for")
	case token.Epoch != s.options.Epoch:
		return 0, &domain.Error{
			Code: domain.CodeStale, Field: field,
			Message: "is of another epoch of the ledger, which was restored since: what came after it may never have happened. " +
				"Compare the id of the event that you have at this position with the one that is there now, and start anew where they differ",
		}
	}
	return token.Position, nil
}

// exportEvents gives everything up to the end as it is now, a line an event.
func (s *Server) exportEvents(r *request, q EventQuery, who admitted) error {
	left := q.Most // 0: no limit
	if q.Most == 0 {
		q.Most = mostPage
	}
	// Read before the answer begins, so that what is wrong has a status.
	page, err := s.options.Events.Page(r.ctx, q)
	if err != nil {
		return err
	}
	head, first := page.Head, true
	r.set(headerPosition, s.eventToken(q.Lane, head))
	next := func(ctx context.Context) ([]byte, error) {
		var lines []byte
		for len(lines) == 0 {
			if !first {
				if q.After >= head || left < 0 {
					return nil, io.EOF
				}
				var err error
				if page, err = s.readEvents(ctx, q); err != nil {
					return nil, err
				}
			}
			if first = false; !s.still(who) {
				return nil, errBadCredential()
			}
			for i := range page.Events {
				if e := &page.Events[i]; e.Position <= head {
					lines = append(append(lines, e.JSON...), '\n')
				}
			}
			q.After = page.Next
			if left > 0 {
				if left -= len(page.Events); left == 0 {
					left = -1
				} else {
					q.Most = left
				}
			}
		}
		return lines, nil
	}
	return s.answerStream(r, newlineDelimited, who.organization, next, func() {})
}

func (s *Server) readEvents(ctx context.Context, q EventQuery) (EventPage, error) {
	ctx, cancel := context.WithTimeout(ctx, streamReadWithin)
	defer cancel()
	return s.options.Events.Page(ctx, q)
}

// followEvents gives what is there and then what happens, for ever, as Server-Sent
// Events. Without a position it begins at the end.
func (s *Server) followEvents(r *request, q EventQuery, given bool, who admitted) error {
	q.Most = mostPage
	var err error
	if !given {
		if q.After, err = s.options.Events.Head(r.ctx, q.Lane); err != nil {
			return err
		}
	}
	news, stop := s.options.Events.Watch(q.Lane, q.Organization)
	page, err := s.options.Events.Page(r.ctx, q)
	if err != nil {
		stop()
		return err
	}
	f := &following{server: s, query: q, who: who, news: news, page: &page}
	return s.answerStream(r, eventStream, who.organization, f.next, stop)
}

// following is one open stream of Server-Sent Events.
type following struct {
	server *Server
	query  EventQuery
	who    admitted
	news   <-chan struct{}
	page   *EventPage // read, and not yet given
	begun  bool
	said   domain.Position // the last id that was sent
}

// next gives the next events, or a sign of life. It ends well when the server stops
// and when who asked would not be admitted any more: they come back and are told why.
func (f *following) next(ctx context.Context) ([]byte, error) {
	var chunk []byte
	if !f.begun {
		f.begun = true
		chunk = append(chunk, eventRetry...)
	}
	heartbeat := time.NewTimer(f.server.streams.heartbeat)
	defer heartbeat.Stop()
	judge := time.NewTicker(f.server.streams.judgeAgain)
	defer judge.Stop()
	for {
		if f.page == nil {
			page, err := f.server.readEvents(ctx, f.query)
			if err != nil {
				return nil, f.ended(ctx, err)
			}
			f.page = &page
		}
		page := f.page
		f.page, f.query.After = nil, page.Next
		for i := range page.Events {
			chunk = append(f.id(chunk, page.Events[i].Position), "\ndata: "...)
			chunk = append(append(chunk, page.Events[i].JSON...), "\n\n"...)
		}
		if len(chunk) > 0 {
			// Asked after the log was read: whoever may not have it any more gets nothing of it.
			if !f.server.still(f.who) {
				return nil, io.EOF
			}
			return chunk, nil
		}
		if page.Next < page.Head && ctx.Err() == nil {
			select {
			case <-heartbeat.C:
				return f.alive()
			default:
				continue // a filter left out all of it
			}
		}
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return nil, io.EOF
			case <-f.news:
				waiting = false
			case <-judge.C:
				if !f.server.still(f.who) {
					return nil, io.EOF
				}
			case <-heartbeat.C:
				return f.alive()
			}
		}
	}
}

// alive is a comment; and the id of what was passed over, so that who comes back
// need not have it passed over again.
func (f *following) alive() ([]byte, error) {
	if !f.server.still(f.who) {
		return nil, io.EOF
	}
	chunk := []byte(":\n")
	if f.said != f.query.After {
		chunk = append(f.id(chunk, f.query.After), '\n')
	}
	return append(chunk, '\n'), nil
}

func (f *following) id(chunk []byte, position domain.Position) []byte {
	f.said = position
	return append(append(chunk, "id: "...), f.server.eventToken(f.query.Lane, position)...)
}

func (f *following) ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return io.EOF
	}
	f.server.logger.Warn("a stream of events was broken off", "error", err)
	return err
}
