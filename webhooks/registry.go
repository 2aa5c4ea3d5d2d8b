package webhooks

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/publisher"
)

// Options are what Webhooks need. Times have defaults.
type Options struct {
	Pool *pgxpool.Pool
	Feed *publisher.Feed
	Key  []byte // 32 bytes, under which secrets are stored
	// Insecure lets endpoints be http, and inside the network. It is for development.
	Insecure bool
	TLS      *tls.Config // nil: the system's

	// Patience is how old an event may be, or how long ago its endpoint was placed
	// where it is, before it is given up. 24 h by default.
	Patience time.Duration
	// DisableAfter is how long an endpoint may fail. 72 h by default.
	DisableAfter time.Duration
	// FirstPause is what is waited after the first failure; it doubles with every further
	// one, up to an hour. 2 s by default.
	FirstPause time.Duration
	// Sweep is how often the database is asked what is due. 1 s by default.
	Sweep time.Duration

	Logger     *slog.Logger          // nil: none
	Clock      func() time.Time      // nil: time.Now
	Registerer prometheus.Registerer // nil: no metrics
}

// MostOfOrganization is how many webhooks an organization may have.
const MostOfOrganization = 10

const (
	disabledByOwner = "it was disabled by the organization"
	mostOverlap     = 7 * 24 * time.Hour
)

// Webhooks are all endpoints: what is set about them, and their deliveries.
type Webhooks struct {
	options Options
	pool    *pgxpool.Pool
	vault   vault
	sender  *sender
	logger  *slog.Logger
	metrics *metrics
	driver  *driver
}

// New makes Webhooks that send nothing before Run.
func New(o Options) (*Webhooks, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	for _, d := range []struct {
		value   *time.Duration
		unless0 time.Duration
	}{{&o.Patience, 24 * time.Hour}, {&o.DisableAfter, 72 * time.Hour}, {&o.FirstPause, 2 * time.Second}, {&o.Sweep, time.Second}} {
		if *d.value == 0 {
			*d.value = d.unless0
		}
	}
	vault, err := newVault(o.Key)
	if err != nil {
		return nil, err
	}
	metrics, err := newMetrics(o.Registerer)
	if err != nil {
		return nil, fmt.Errorf("register the metrics of webhooks: %w", err)
	}
	return &Webhooks{options: o, pool: o.Pool, vault: vault, sender: newSender(o), logger: o.Logger, metrics: metrics, driver: newDriver()}, nil
}

const columns = `id, organization, url, description, types, created_at, updated_at, position, coalesce(disabled_why, ''), disabled_at, attempts, failing_since,
	CASE WHEN attempts > 0 AND disabled_at IS NULL THEN due_at END, last_error, CASE WHEN former_until > now() THEN former_until END`

func scan(row pgx.CollectableRow) (domain.Webhook, error) {
	var w domain.Webhook
	var disabled, failing, next, former *time.Time
	err := row.Scan(
		(*[16]byte)(&w.ID),
		(*string)(&w.Organization),
		&w.URL,
		&w.Description,
		&w.Types,
		&w.CreatedAt,
		&w.UpdatedAt,
		&w.Position,
		&w.DisabledReason,
		&disabled,
		&w.Attempts,
		&failing,
		&next,
		&w.LastError,
		&former,
	)
	for _, t := range []struct {
		to   *time.Time
		from *time.Time
	}{{&w.DisabledAt, disabled}, {&w.FailingSince, failing}, {&w.NextAttempt, next}, {&w.FormerSecretUntil, former}} {
		if t.from != nil {
			*t.to = *t.from
		}
	}
	return w, err
}

func (w *Webhooks) query(ctx context.Context, doing, sql string, args ...any) ([]domain.Webhook, error) {
	rows, err := w.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, eventstore.Wrap(err, "%s", doing)
	}
	found, err := pgx.CollectRows(rows, scan)
	return found, eventstore.Wrap(err, "%s", doing)
}

// one is query for what there is one of, or CodeNotFound.
func (w *Webhooks) one(ctx context.Context, doing, sql string, args ...any) (domain.Webhook, error) {
	found, err := w.query(ctx, doing, sql, args...)
	switch {
	case err != nil:
		return domain.Webhook{}, err
	case len(found) == 0:
		return domain.Webhook{}, errNoWebhook()
	}
	return found[0], nil
}

func errNoWebhook() error { return domain.Errorf(domain.CodeNotFound, "no such webhook") }

// check reads what is to be changed.
func (w *Webhooks) check(c *domain.WebhookChange) (err error) {
	if c.URL != nil {
		if *c.URL, err = domain.ParseWebhookURL(*c.URL, w.options.Insecure); err != nil {
			return err
		}
	}
	if c.Description != nil {
		if *c.Description, err = domain.ParseWebhookDescription(*c.Description); err != nil {
			return err
		}
	}
	if c.Types != nil {
		if err = publisher.CheckTypes(domain.Lifecycle, *c.Types); err != nil {
			return err
		}
		types := slices.Clone(*c.Types)
		slices.Sort(types)
		types = slices.Compact(types)
		c.Types = &types
	}
	return nil
}

// Create makes a webhook that begins at the log's end, and gives its secret away.
func (w *Webhooks) Create(ctx context.Context, organization domain.OrganizationID, c domain.WebhookChange) (domain.Webhook, domain.SigningSecret, error) {
	if c.URL == nil {
		return domain.Webhook{}, domain.SigningSecret{}, domain.Invalid("url", "is required")
	}
	if err := w.check(&c); err != nil {
		return domain.Webhook{}, domain.SigningSecret{}, err
	}
	drawn, err := domain.NewID(w.options.Clock(), rand.Reader)
	if err != nil {
		return domain.Webhook{}, domain.SigningSecret{}, err
	}
	secret, err := domain.NewSigningSecret(rand.Reader)
	if err != nil {
		return domain.Webhook{}, domain.SigningSecret{}, err
	}
	id := domain.WebhookID(drawn)
	var types []string
	if c.Types != nil {
		types = *c.Types
	}
	// Two at once may pass the limit by one: it bounds, it does not count.
	made, err := w.one(ctx, "make a webhook", `INSERT INTO webhooks (id, organization, url, description, types, secret, created_after, position, disabled_at, disabled_why)
		SELECT $1::uuid, $2::text, $3::text, $4::text, $5::text[], $6::bytea, h.position, h.position,
		       CASE WHEN $7::boolean THEN now() END, CASE WHEN $7 THEN $8::text END
		  FROM log_head h WHERE h.lane = 'lifecycle' AND (SELECT count(*) FROM webhooks o WHERE o.organization = $2) < $9 RETURNING `+columns,
		[16]byte(id), string(organization), *c.URL, orEmpty(c.Description), append([]string{}, types...), w.vault.seal(secret, id, organization),
		c.Enabled != nil && !*c.Enabled, disabledByOwner, MostOfOrganization)
	if domain.CodeOf(err) == domain.CodeNotFound {
		err = domain.Errorf(domain.CodeUnprocessable, "an organization has %d webhooks at most", MostOfOrganization)
	}
	return made, secret, err
}

func orEmpty(text *string) string {
	if text == nil {
		return ""
	}
	return *text
}

// List gives an organization's webhooks, the oldest first.
func (w *Webhooks) List(ctx context.Context, organization domain.OrganizationID) ([]domain.Webhook, error) {
	return w.query(ctx, "list webhooks", `SELECT `+columns+` FROM webhooks WHERE organization = $1 ORDER BY created_at, id`, string(organization))
}

// Get gives one, or CodeNotFound.
func (w *Webhooks) Get(ctx context.Context, organization domain.OrganizationID, id domain.WebhookID) (domain.Webhook, error) {
	return w.one(ctx, "read a webhook", `SELECT `+columns+` FROM webhooks WHERE organization = $1 AND id = $2`, string(organization), [16]byte(id))
}

// Change changes what is set. Whoever delivers at this moment begins anew, with
// what is set now. Enabling goes on where it stopped: what happened meanwhile is sent.
func (w *Webhooks) Change(ctx context.Context, organization domain.OrganizationID, id domain.WebhookID, c domain.WebhookChange) (domain.Webhook, error) {
	if err := w.check(&c); err != nil {
		return domain.Webhook{}, err
	}
	var types []string
	if c.Types != nil {
		types = append([]string{}, *c.Types...)
	}
	changed, err := w.one(ctx, "change a webhook", `UPDATE webhooks SET
		url = coalesce($3::text, url), description = coalesce($4::text, description), types = coalesce($5::text[], types), updated_at = now(),
		disabled_at  = CASE WHEN $6::boolean THEN NULL WHEN NOT $6 THEN coalesce(disabled_at, now()) ELSE disabled_at END,
		disabled_why = CASE WHEN $6 THEN NULL WHEN NOT $6 THEN coalesce(disabled_why, $7::text) ELSE disabled_why END,
		placed_at     = CASE WHEN $6 AND disabled_at IS NOT NULL THEN now() ELSE placed_at END,
		failing_since = CASE WHEN $6 AND disabled_at IS NOT NULL THEN NULL ELSE failing_since END,
		claim = claim + 1, due_at = now(), attempts = 0
		WHERE organization = $1 AND id = $2 RETURNING `+columns,
		string(organization), [16]byte(id), c.URL, c.Description, types, c.Enabled, disabledByOwner)
	w.driver.poke()
	return changed, err
}

// Remove forgets a webhook and its dead letters.
func (w *Webhooks) Remove(ctx context.Context, organization domain.OrganizationID, id domain.WebhookID) error {
	_, err := w.one(ctx, "remove a webhook", `DELETE FROM webhooks WHERE organization = $1 AND id = $2 RETURNING `+columns, string(organization), [16]byte(id))
	return err
}

// Rotate gives a webhook a new secret. The former one signs as well for a while, so that the
// receiver can change over without missing anything.
func (w *Webhooks) Rotate(ctx context.Context, organization domain.OrganizationID, id domain.WebhookID, overlap time.Duration) (domain.Webhook, domain.SigningSecret, error) {
	if overlap < 0 || overlap > mostOverlap {
		return domain.Webhook{}, domain.SigningSecret{}, domain.Invalid("overlapSeconds", "must be from 0 to %d", int(mostOverlap.Seconds()))
	}
	secret, err := domain.NewSigningSecret(rand.Reader)
	if err != nil {
		return domain.Webhook{}, domain.SigningSecret{}, err
	}
	changed, err := w.one(ctx, "rotate the secret of a webhook", `UPDATE webhooks SET former_secret = secret, former_until = now() + $4::interval, secret = $3, updated_at = now()
		WHERE organization = $1 AND id = $2 RETURNING `+columns, string(organization), [16]byte(id), w.vault.seal(secret, id, organization), overlap)
	return changed, secret, err
}

// Replay sends everything behind a position again. Dead letters from there on are
// forgotten, since they are sent as well.
func (w *Webhooks) Replay(ctx context.Context, organization domain.OrganizationID, id domain.WebhookID, after domain.Position) (domain.Webhook, error) {
	head, err := w.options.Feed.Head(ctx, domain.Lifecycle)
	if err != nil {
		return domain.Webhook{}, err
	}
	if after > head {
		return domain.Webhook{}, domain.Invalid("after", "must not be behind the end of the log, which is %d", head)
	}
	changed, err := w.one(ctx, "replay a webhook", `WITH placed AS (
		UPDATE webhooks SET position = $3, placed_at = now(), updated_at = now(), failing_since = NULL, attempts = 0, due_at = now(), claim = claim + 1
		WHERE organization = $1 AND id = $2 RETURNING *
	), forgotten AS (DELETE FROM webhook_dead_letters d USING placed p WHERE d.webhook = p.id AND d.position > $3)
	SELECT `+columns+` FROM placed`, string(organization), [16]byte(id), int64(after))
	w.driver.poke()
	return changed, err
}

// DeadLetters gives what was given up, the newest first, before a position; 0: from the end.
func (w *Webhooks) DeadLetters(ctx context.Context, organization domain.OrganizationID, id domain.WebhookID, before domain.Position, most int) ([]domain.DeadLetter, error) {
	if _, err := w.Get(ctx, organization, id); err != nil {
		return nil, err
	}
	rows, err := w.pool.Query(ctx, `SELECT position, event, type, attempts, reason, given_up FROM webhook_dead_letters
		WHERE webhook = $1 AND ($2 = 0 OR position < $2) ORDER BY position DESC LIMIT $3`, [16]byte(id), int64(before), most)
	if err != nil {
		return nil, eventstore.Wrap(err, "read dead letters")
	}
	letters, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (domain.DeadLetter, error) {
		var d domain.DeadLetter
		err := row.Scan(&d.Position, (*[16]byte)(&d.Event), &d.Type, &d.Attempts, &d.Reason, &d.GivenUp)
		return d, err
	})
	return letters, eventstore.Wrap(err, "read dead letters")
}

// Redeliver makes one attempt with a dead letter, out of its turn, and says how it
// ended: an empty reason is success, and the letter is forgotten.
func (w *Webhooks) Redeliver(ctx context.Context, organization domain.OrganizationID, id domain.WebhookID, position domain.Position) (reason string, err error) {
	e, err := w.endpoint(ctx, `SELECT `+endpointColumns+` FROM webhooks w WHERE organization = $1 AND id = $2
		AND EXISTS (SELECT FROM webhook_dead_letters d WHERE d.webhook = w.id AND d.position = $3)`, string(organization), uuidOf(id), int64(position))
	if err != nil {
		return "", err
	}
	if e == nil {
		return "", domain.Errorf(domain.CodeNotFound, "no such dead letter")
	}
	page, err := w.options.Feed.Page(ctx, publisher.FeedQuery{Lane: domain.Lifecycle, Organization: organization, After: position - 1, Most: 1})
	if err != nil {
		return "", err
	}
	if len(page.Events) == 0 || page.Events[0].Position != position {
		return "", fmt.Errorf("the dead letter %d of %s is not in the log", position, id)
	}
	event := page.Events[0]
	answer := w.sender.send(ctx, e.url, event.ID, event.JSON, e.secrets)
	sql := `DELETE FROM webhook_dead_letters WHERE webhook = $1 AND position = $2`
	args := []any{[16]byte(id), int64(position)}
	if !answer.taken() {
		sql = `UPDATE webhook_dead_letters SET attempts = attempts + 1, reason = $3 WHERE webhook = $1 AND position = $2`
		args = append(args, answer.reason)
	}
	w.metrics.count(answer)
	_, err = w.pool.Exec(ctx, sql, args...)
	return answer.reason, eventstore.Wrap(err, "keep what became of a dead letter")
}
