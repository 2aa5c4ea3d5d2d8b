package http

import (
	"context"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/gofiber/fiber/v2"

	"keyledger/domain"
)

// Webhooks are the places that organizations want their events to be sent to. What
// is not there, or another organization's, is CodeNotFound.
type Webhooks interface {
	Create(ctx context.Context, organization domain.OrganizationID, change domain.WebhookChange) (domain.Webhook, domain.SigningSecret, error)
	List(ctx context.Context, organization domain.OrganizationID) ([]domain.Webhook, error)
	Get(ctx context.Context, organization domain.OrganizationID, id domain.WebhookID) (domain.Webhook, error)
	Change(ctx context.Context, organization domain.OrganizationID, id domain.WebhookID, change domain.WebhookChange) (domain.Webhook, error)
	Remove(ctx context.Context, organization domain.OrganizationID, id domain.WebhookID) error
	// Rotate makes a new secret; the former one signs as well for the overlap.
	Rotate(ctx context.Context, organization domain.OrganizationID, id domain.WebhookID, overlap time.Duration) (domain.Webhook, domain.SigningSecret, error)
	// Replay sends everything behind a position again.
	Replay(ctx context.Context, organization domain.OrganizationID, id domain.WebhookID, after domain.Position) (domain.Webhook, error)
	DeadLetters(ctx context.Context, organization domain.OrganizationID, id domain.WebhookID, before domain.Position, most int) ([]domain.DeadLetter, error)
	// Redeliver makes one attempt, and says why it failed: empty, it did not.
	Redeliver(ctx context.Context, organization domain.OrganizationID, id domain.WebhookID, position domain.Position) (reason string, err error)
}

const (
	webhooksPath   = "/api/v1/organizations/:organization/webhooks"
	defaultOverlap = 24 * time.Hour
)

// webhookRoutes are for those who may administer an organization: where its
// events go is as much a matter of trust as its keys.
func (s *Server) webhookRoutes() []*route {
	if s.options.Webhooks == nil {
		return nil
	}
	const one = webhooksPath + "/:webhook"
	on := func(method, pattern string, handle func(*request, principal) error) *route {
		return &route{method: method, pattern: pattern, dialect: native, handle: func(r *request) error {
			p, err := s.admit(r, domain.ScopeAdmin, false)
			if err != nil {
				return err
			}
			return handle(r, p)
		}}
	}
	of := func(method, pattern string, handle func(*request, principal, domain.WebhookID) error) *route {
		return on(method, pattern, func(r *request, p principal) error {
			id, err := domain.ParseWebhookID(r.param("webhook"))
			if err != nil {
				return domain.Errorf(domain.CodeNotFound, "no such webhook")
			}
			return handle(r, p, id)
		})
	}
	return []*route{
		on(fiber.MethodGet, webhooksPath, s.listWebhooks),
		on(fiber.MethodPost, webhooksPath, s.createWebhook),
		of(fiber.MethodGet, one, s.getWebhook),
		of(fiber.MethodPatch, one, s.changeWebhook),
		of(fiber.MethodDelete, one, s.removeWebhook),
		of(fiber.MethodPost, one+"/rotate", s.rotateWebhook),
		of(fiber.MethodPost, one+"/replay", s.replayWebhook),
		of(fiber.MethodGet, one+"/dead-letters", s.listDeadLetters),
		of(fiber.MethodPost, one+"/dead-letters/:position/redeliver", s.redeliver),
	}
}

// noteWebhook says in the server's log who changed what: webhooks are settings, and no part of the ledger.
func (s *Server) noteWebhook(r *request, p principal, what string, id domain.WebhookID) {
	s.logger.Info("a webhook was "+what, "webhook", id.String(), "organization", string(p.organization),
		"actor", string(p.actor.Kind), "actor_key", p.actor.Key.String(), "request_id", r.id())
}

func (s *Server) listWebhooks(r *request, p principal) error {
	webhooks, err := s.options.Webhooks.List(r.ctx, p.organization)
	if err != nil {
		return err
	}
	body := []byte(`{"webhooks":[`)
	for i := range webhooks {
		if i > 0 {
			body = append(body, ',')
		}
		body = appendWebhook(body, &webhooks[i])
	}
	r.answer(fiber.StatusOK, fiber.MIMEApplicationJSON, append(body, "]}"...))
	return nil
}

func (s *Server) createWebhook(r *request, p principal) error {
	change, err := r.webhookChange()
	if err != nil {
		return err
	}
	made, secret, err := s.options.Webhooks.Create(r.ctx, p.organization, change)
	if err != nil {
		return err
	}
	s.noteWebhook(r, p, "made", made.ID)
	r.set(fiber.HeaderLocation, r.path()+"/"+made.ID.String())
	r.answerWebhook(fiber.StatusCreated, &made, secret)
	return nil
}

func (s *Server) getWebhook(r *request, p principal, id domain.WebhookID) error {
	found, err := s.options.Webhooks.Get(r.ctx, p.organization, id)
	if err != nil {
		return err
	}
	r.answerWebhook(fiber.StatusOK, &found, domain.SigningSecret{})
	return nil
}

func (s *Server) changeWebhook(r *request, p principal, id domain.WebhookID) error {
	change, err := r.webhookChange()
	if err != nil {
		return err
	}
	changed, err := s.options.Webhooks.Change(r.ctx, p.organization, id, change)
	if err != nil {
		return err
	}
	s.noteWebhook(r, p, "changed", id)
	r.answerWebhook(fiber.StatusOK, &changed, domain.SigningSecret{})
	return nil
}

func (s *Server) removeWebhook(r *request, p principal, id domain.WebhookID) error {
	if err := s.options.Webhooks.Remove(r.ctx, p.organization, id); err != nil {
		return err
	}
	s.noteWebhook(r, p, "removed", id)
	r.answer(fiber.StatusNoContent, "", nil)
	return nil
}

func (s *Server) rotateWebhook(r *request, p principal, id domain.WebhookID) error {
	body, err := r.jsonBody()
	if err != nil {
		return err
	}
	overlap := defaultOverlap
	if len(body) > 0 {
		err = decodeObject(body, []string{"overlapSeconds"}, func(d *decoder, name string) error {
			n, err := d.number(name, 1<<31-1)
			overlap = time.Duration(n) * time.Second
			return err
		})
		if err != nil {
			return err
		}
	}
	changed, secret, err := s.options.Webhooks.Rotate(r.ctx, p.organization, id, overlap)
	if err != nil {
		return err
	}
	s.noteWebhook(r, p, "given a new secret", id)
	r.answerWebhook(fiber.StatusOK, &changed, secret)
	return nil
}

func (s *Server) replayWebhook(r *request, p principal, id domain.WebhookID) error {
	body, err := r.jsonBody()
	if err != nil {
		return err
	}
	given, after := false, domain.Position(0)
	err = decodeObject(body, []string{"after"}, func(d *decoder, name string) error {
		var text string
		if d.PeekKind() == jsontext.KindNumber {
			value, err := d.ReadValue()
			if err != nil {
				return d.malformed(err)
			}
			text = string(value)
		} else if text, err = d.text(name); err != nil {
			return err
		}
		given = true
		after, err = s.readPosition(name, text, domain.Lifecycle)
		return err
	})
	switch {
	case err != nil:
		return err
	case !given:
		return domain.Invalid("after", "is required: a position, 0 for everything")
	}
	changed, err := s.options.Webhooks.Replay(r.ctx, p.organization, id, after)
	if err != nil {
		return err
	}
	s.noteWebhook(r, p, "replayed", id)
	r.answerWebhook(fiber.StatusOK, &changed, domain.SigningSecret{})
	return nil
}

func (s *Server) listDeadLetters(r *request, p principal, id domain.WebhookID) error {
	limit, before := defaultPage, domain.Position(0)
	if text, given, err := r.query("limit"); err != nil {
		return err
	} else if given {
		if limit, err = pageLimit(text); err != nil {
			return err
		}
	}
	if text, given, err := r.query("before"); err != nil {
		return err
	} else if given {
		if before, err = s.readPosition("before", text, domain.Lifecycle); err != nil {
			return err
		}
	}
	letters, err := s.options.Webhooks.DeadLetters(r.ctx, p.organization, id, before, limit)
	if err != nil {
		return err
	}
	body := []byte(`{"deadLetters":[`)
	for i := range letters {
		d := &letters[i]
		if i > 0 {
			body = append(body, ',')
		}
		body = append(body, `{"position":`...)
		body = strconv.AppendUint(body, uint64(d.Position), 10)
		body = append(body, `,"eventId":"`...)
		body = append(body, d.Event.UUID()...)
		body = append(body, `","type":`...)
		body = appendText(body, d.Type)
		body = append(body, `,"attempts":`...)
		body = strconv.AppendInt(body, int64(d.Attempts), 10)
		body = append(body, `,"reason":`...)
		body = appendText(body, d.Reason)
		body = append(body, `,"givenUpAt":`...)
		body = append(appendTime(body, d.GivenUp), '}')
	}
	r.answer(fiber.StatusOK, fiber.MIMEApplicationJSON, append(body, "]}"...))
	return nil
}

func (s *Server) redeliver(r *request, p principal, id domain.WebhookID) error {
	position, err := strconv.ParseUint(r.param("position"), 10, 62)
	if err != nil || position == 0 {
		return domain.Errorf(domain.CodeNotFound, "no such dead letter")
	}
	reason, err := s.options.Webhooks.Redeliver(r.ctx, p.organization, id, domain.Position(position))
	if err != nil {
		return err
	}
	body := append([]byte(`{"delivered":`), strconv.FormatBool(reason == "")...)
	body = append(body, `,"reason":`...)
	r.answer(fiber.StatusOK, fiber.MIMEApplicationJSON, append(appendTextOrNull(body, reason), '}'))
	return nil
}

// webhookChange reads the members of a webhook that can be set. null is like leaving out.
func (r *request) webhookChange() (change domain.WebhookChange, err error) {
	body, err := r.jsonBody()
	if err != nil {
		return change, err
	}
	err = decodeObject(body, []string{"url", "description", "types", "enabled"}, func(d *decoder, name string) error {
		null, err := d.null()
		if null || err != nil {
			return err
		}
		switch name {
		case "url":
			var text string
			text, err = d.text(name)
			change.URL = &text
		case "description":
			var text string
			text, err = d.text(name)
			change.Description = &text
		case "types":
			var texts []string
			if texts, err = d.texts(name); err == nil && len(texts) > mostTypes {
				err = domain.Invalid(name, "must be %d at most", mostTypes)
			}
			change.Types = &texts
		case "enabled":
			var on bool
			on, err = d.flag(name)
			change.Enabled = &on
		}
		return err
	})
	return change, err
}

// answerWebhook shows a webhook, with its secret where that is new.
func (r *request) answerWebhook(status int, w *domain.Webhook, secret domain.SigningSecret) {
	body := appendWebhook([]byte(`{"webhook":`), w)
	if !secret.IsZero() {
		body = append(body, `,"secret":`...)
		body = appendText(body, secret.Reveal())
	}
	r.answer(status, fiber.MIMEApplicationJSON, append(body, '}'))
}

func appendWebhook(b []byte, w *domain.Webhook) []byte {
	b = append(b, `{"id":`...)
	b = appendText(b, w.ID.String())
	b = append(b, `,"organizationId":`...)
	b = appendText(b, string(w.Organization))
	b = append(b, `,"url":`...)
	b = appendText(b, w.URL)
	b = append(b, `,"description":`...)
	b = appendText(b, w.Description)
	b = append(b, `,"types":[`...)
	for i, t := range w.Types {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendText(b, t)
	}
	b = append(b, `],"enabled":`...)
	b = strconv.AppendBool(b, w.DisabledAt.IsZero())
	b = append(b, `,"disabledReason":`...)
	b = appendTextOrNull(b, w.DisabledReason)
	b = append(b, `,"disabledAt":`...)
	b = appendTime(b, w.DisabledAt)
	b = append(b, `,"position":`...)
	b = strconv.AppendUint(b, uint64(w.Position), 10)
	b = append(b, `,"failedAttempts":`...)
	b = strconv.AppendInt(b, int64(w.Attempts), 10)
	b = append(b, `,"failingSince":`...)
	b = appendTime(b, w.FailingSince)
	b = append(b, `,"nextAttemptAt":`...)
	b = appendTime(b, w.NextAttempt)
	b = append(b, `,"lastError":`...)
	b = appendTextOrNull(b, w.LastError)
	b = append(b, `,"formerSecretUntil":`...)
	b = appendTime(b, w.FormerSecretUntil)
	b = append(b, `,"createdAt":`...)
	b = appendTime(b, w.CreatedAt)
	b = append(b, `,"updatedAt":`...)
	return append(appendTime(b, w.UpdatedAt), '}')
}
