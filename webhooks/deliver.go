package webhooks

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/publisher"
)

const (
	// claimFor is how long an endpoint waits for a node that says nothing any more: one
	// attempt, and what is read and written around it.
	claimFor    = attemptWithin + 5*time.Second
	leaveWithin = time.Second
	// A turn is bounded, so that an endpoint with much to catch up on lets others have theirs.
	mostOfTurn  = 100
	turnWithin  = 30 * time.Second
	pageOfTurn  = 50
	mostPause   = time.Hour
	mostLetters = 1000 // dead letters of one endpoint; beyond it the oldest are forgotten
)

// endpoint is a webhook as whoever delivers to it needs it.
type endpoint struct {
	id           domain.WebhookID
	organization domain.OrganizationID
	url          string
	types        []string
	secrets      []domain.SigningSecret
	position     domain.Position
	claim        int64
	attempts     int
	placedAt     time.Time
	failingSince time.Time
	now          time.Time // the database's
}

const endpointColumns = `id, organization, url, types, secret, CASE WHEN former_until > now() THEN former_secret END, position, claim, attempts, placed_at,
	coalesce(failing_since, now()), now()`

// endpoint reads one; nil when there is none.
//
// Whatever takes the lock of a row travels as one message of the simple protocol: see projections.Move.
func (w *Webhooks) endpoint(ctx context.Context, sql string, args ...any) (*endpoint, error) {
	rows, err := w.pool.Query(ctx, sql, append([]any{pgx.QueryExecModeSimpleProtocol}, args...)...)
	if err != nil {
		return nil, eventstore.Wrap(err, "read an endpoint")
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*endpoint, error) {
		var e endpoint
		var secret, former []byte
		err := row.Scan(
			(*[16]byte)(&e.id),
			(*string)(&e.organization),
			&e.url,
			&e.types,
			&secret,
			&former,
			&e.position,
			&e.claim,
			&e.attempts,
			&e.placedAt,
			&e.failingSince,
			&e.now,
		)
		for _, sealed := range [][]byte{secret, former} {
			if err != nil || sealed == nil {
				continue
			}
			var opened domain.SigningSecret
			opened, err = w.vault.open(sealed, e.id, e.organization)
			e.secrets = append(e.secrets, opened)
		}
		return &e, err
	})
	if err != nil {
		return nil, eventstore.Wrap(err, "read an endpoint")
	}
	if len(found) == 0 {
		return nil, nil
	}
	return found[0], nil
}

// turn delivers to one endpoint what is due, in order, and says whether more is due at once.
func (w *Webhooks) turn(ctx context.Context, id domain.WebhookID) (again bool, err error) {
	// 1. Claim it. Of several nodes one wins; the others' statement waits for its lock,
	// sees that it is not due any more, and does nothing.
	e, err := w.endpoint(ctx, `UPDATE webhooks SET claim = claim + 1, due_at = now() + $2::interval
		WHERE id = $1 AND disabled_at IS NULL AND due_at <= now() RETURNING `+endpointColumns, uuidOf(id), interval(claimFor))
	if err != nil || e == nil {
		return false, err
	}
	began := w.options.Clock()
	for done := 0; done < mostOfTurn && w.options.Clock().Sub(began) < turnWithin; {
		page, err := w.options.Feed.Page(ctx, publisher.FeedQuery{
			Lane: domain.Lifecycle, Organization: e.organization, After: e.position, Most: pageOfTurn, Types: e.types,
		})
		if err != nil {
			return false, err
		}
		for _, event := range page.Events {
			// 2. Send, and only then move on: killed in between, the event is sent again.
			answer := w.sender.send(ctx, e.url, event.ID, event.JSON, e.secrets)
			if ctx.Err() != nil {
				// This node stops, which says nothing about the receiver: another one need not wait.
				leaving, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveWithin)
				defer cancel()
				_, err := w.update(leaving, e, `due_at = now()`)
				return false, err
			}
			w.metrics.count(answer)
			if !answer.taken() {
				return w.failed(ctx, e, event, answer)
			}
			if moved, err := w.move(ctx, e, event.Position); err != nil || !moved {
				return false, err
			}
			done++
		}
		// 3. What the filter left out is passed over.
		if page.Next > e.position {
			if moved, err := w.move(ctx, e, page.Next); err != nil || !moved {
				return false, err
			}
		}
		if page.Next >= page.Head {
			return w.rest(ctx, e)
		}
	}
	_, err = w.update(ctx, e, `due_at = now()`)
	return true, err
}

// move says that everything up to a position is done, and keeps the claim for the
// next attempt. false: the claim is somebody else's by now.
func (w *Webhooks) move(ctx context.Context, e *endpoint, to domain.Position) (bool, error) {
	moved, err := w.update(ctx, e, `position = $3, attempts = 0, failing_since = NULL, last_error = '', due_at = now() + $4::interval`, int64(to), interval(claimFor))
	e.position, e.attempts = to, 0
	return moved, err
}

// rest gives the claim back when nothing is left. What came while it was held was
// announced to nobody, so it is looked for once more.
func (w *Webhooks) rest(ctx context.Context, e *endpoint) (again bool, err error) {
	if moved, err := w.update(ctx, e, `due_at = NULL`); err != nil || !moved {
		return false, err
	}
	marked, err := w.mark(ctx, `AND w.id = $1 AND `+more, uuidOf(e.id))
	return marked > 0, err
}

// failed keeps that an attempt failed, and decides what becomes of event and endpoint.
func (w *Webhooks) failed(ctx context.Context, e *endpoint, event publisher.FeedEvent, answer result) (again bool, err error) {
	waits := event.RecordedAt
	if e.placedAt.After(waits) {
		waits = e.placedAt // a replay or a new beginning gives old events another day
	}
	pause := max(w.pause(e.attempts), answer.retryAfter)
	switch {
	case answer.status == 410:
		_, err = w.update(ctx, e, `disabled_at = now(), disabled_why = $3, due_at = NULL, last_error = $4`, "the receiver says that it is gone for good (410)", answer.reason)
	case e.now.Sub(e.failingSince) >= w.options.DisableAfter:
		_, err = w.update(ctx, e, `disabled_at = now(), disabled_why = $3, due_at = NULL, last_error = $4`,
			fmt.Sprintf("no delivery has succeeded for %s; the last attempt: %s", w.options.DisableAfter, answer.reason), answer.reason)
		w.logger.Warn("a webhook is disabled", "webhook", e.id.String(), "organization", string(e.organization), "reason", answer.reason)
	case e.now.Sub(waits) >= w.options.Patience:
		return false, w.giveUp(ctx, e, event, answer)
	default:
		_, err = w.update(ctx, e, `attempts = attempts + 1, failing_since = coalesce(failing_since, now()), last_error = $3, due_at = now() + $4::interval`,
			answer.reason, interval(pause))
	}
	return false, err
}

// pause doubles with every failed attempt, and is never quite the same.
func (w *Webhooks) pause(failed int) time.Duration {
	pause := min(w.options.FirstPause<<min(failed, 20), mostPause)
	return pause/2 + rand.N(pause)
}

// giveUp makes an event a dead letter and moves on, in one statement.
func (w *Webhooks) giveUp(ctx context.Context, e *endpoint, event publisher.FeedEvent, answer result) error {
	_, err := w.pool.Exec(ctx, `WITH moved AS (
		UPDATE webhooks SET position = $3, attempts = 0, failing_since = coalesce(failing_since, now()), last_error = $4, due_at = now() + $5::interval
		 WHERE id = $1 AND claim = $2 AND disabled_at IS NULL RETURNING id
	), forgotten AS (
		DELETE FROM webhook_dead_letters d USING moved m WHERE d.webhook = m.id AND d.position <=
			(SELECT o.position FROM webhook_dead_letters o WHERE o.webhook = $1 ORDER BY o.position DESC OFFSET $9 LIMIT 1)
	) INSERT INTO webhook_dead_letters (webhook, position, event, type, attempts, reason)
	  SELECT m.id, $3::bigint, $6::uuid, $7::text, $8::integer, $4::text FROM moved m
	      ON CONFLICT (webhook, position) DO UPDATE SET attempts = excluded.attempts, reason = excluded.reason, given_up = now()`,
		pgx.QueryExecModeSimpleProtocol, uuidOf(e.id), e.claim, int64(event.Position), answer.reason, interval(w.options.FirstPause), event.ID.UUID(), event.Type, e.attempts+1, mostLetters-1)
	w.metrics.givenUp.Inc()
	return eventstore.Wrap(err, "give an event up")
}

// update changes an endpoint while its claim is ours, and says whether it was. The
// arguments of set begin with $3.
func (w *Webhooks) update(ctx context.Context, e *endpoint, set string, args ...any) (bool, error) {
	tag, err := w.pool.Exec(ctx, `UPDATE webhooks SET `+set+` WHERE id = $1 AND claim = $2 AND disabled_at IS NULL`,
		append([]any{pgx.QueryExecModeSimpleProtocol, uuidOf(e.id), e.claim}, args...)...)
	return tag.RowsAffected() == 1, eventstore.Wrap(err, "move an endpoint on")
}

// uuidOf and interval are arguments of the simple protocol, which knows texts.
func uuidOf(id domain.WebhookID) string { return domain.ID(id).UUID() }

func interval(d time.Duration) string { return fmt.Sprintf("%d microseconds", d.Microseconds()) }
