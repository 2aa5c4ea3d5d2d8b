package client

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"keyledger/domain"
)

// Webhook is a place that an organization wants its events to be sent to.
type Webhook struct {
	ID                string // wh_...
	Organization      OrganizationID
	URL               string
	Description       string
	Types             []string // empty: all
	Enabled           bool
	DisabledReason    string
	DisabledAt        time.Time
	Position          Position // everything up to it was delivered, or given up
	FailedAttempts    int      // of the event that is being delivered
	FailingSince      time.Time
	NextAttemptAt     time.Time
	LastError         string
	FormerSecretUntil time.Time // the secret of before signs as well until then
	CreatedAt         time.Time
	UpdatedAt         time.Time
}

// WebhookChange is what may be said of a webhook. What is nil stays as it is.
type WebhookChange struct {
	URL         *string   `json:"url,omitempty"`
	Description *string   `json:"description,omitempty"`
	Types       *[]string `json:"types,omitempty"`
	Enabled     *bool     `json:"enabled,omitempty"`
}

// DeadLetter is an event that could not be delivered.
type DeadLetter struct {
	Position  Position  `json:"position"`
	EventID   string    `json:"eventId"`
	Type      string    `json:"type"`
	Attempts  int       `json:"attempts"`
	Reason    string    `json:"reason"`
	GivenUpAt time.Time `json:"givenUpAt"`
}

// CreateWebhook makes a webhook, and gives the secret that signs what is sent to it:
// it is shown this once. Like everything about webhooks, it needs the scope admin. It is not
// tried again, since nobody could tell whether it had happened: look at Webhooks then.
func (c *Client) CreateWebhook(ctx context.Context, organization OrganizationID, w WebhookChange) (Webhook, Secret, error) {
	return c.webhook(ctx, call{method: http.MethodPost, once: true}, organization, w)
}

// Webhooks gives all webhooks of an organization.
func (c *Client) Webhooks(ctx context.Context, organization OrganizationID) ([]Webhook, error) {
	path, err := organizationPath(organization, "webhooks")
	if err != nil {
		return nil, err
	}
	var got struct {
		Webhooks []wireWebhook `json:"webhooks"`
	}
	if _, err := c.ask(ctx, call{method: http.MethodGet, path: path}, &got); err != nil {
		return nil, err
	}
	webhooks := make([]Webhook, len(got.Webhooks))
	for i := range got.Webhooks {
		webhooks[i] = got.Webhooks[i].webhook()
	}
	return webhooks, nil
}

// GetWebhook gives one webhook, and how it stands.
func (c *Client) GetWebhook(ctx context.Context, organization OrganizationID, id string) (Webhook, error) {
	w, _, err := c.webhook(ctx, call{method: http.MethodGet}, organization, nil, id)
	return w, err
}

// ChangeWebhook changes a webhook, or enables one again that was disabled.
func (c *Client) ChangeWebhook(ctx context.Context, organization OrganizationID, id string, w WebhookChange) (Webhook, error) {
	changed, _, err := c.webhook(ctx, call{method: http.MethodPatch}, organization, w, id)
	return changed, err
}

// RemoveWebhook ends a webhook.
func (c *Client) RemoveWebhook(ctx context.Context, organization OrganizationID, id string) error {
	path, err := organizationPath(organization, "webhooks", id)
	if err != nil {
		return err
	}
	_, err = c.ask(ctx, call{method: http.MethodDelete, path: path}, nil)
	return err
}

// RotateWebhook gives a webhook a new secret. The former one signs as well for the
// overlap, in whole seconds. It is not tried again.
func (c *Client) RotateWebhook(ctx context.Context, organization OrganizationID, id string, overlap time.Duration) (Webhook, Secret, error) {
	body := map[string]int64{"overlapSeconds": int64(overlap / time.Second)}
	return c.webhook(ctx, call{method: http.MethodPost, once: true}, organization, body, id, "rotate")
}

// ReplayWebhook sends everything behind a position again.
func (c *Client) ReplayWebhook(ctx context.Context, organization OrganizationID, id string, after Position) (Webhook, error) {
	w, _, err := c.webhook(ctx, call{method: http.MethodPost}, organization, map[string]Position{"after": after}, id, "replay")
	return w, err
}

// DeadLetters gives events that could not be delivered, newest first: those before a
// position, which may be 0 for the newest. limit is 1 to 1,000; 0 is 100.
func (c *Client) DeadLetters(ctx context.Context, organization OrganizationID, id string, before Position, limit int) ([]DeadLetter, error) {
	path, err := organizationPath(organization, "webhooks", id, "dead-letters")
	if err != nil {
		return nil, err
	}
	query := url.Values{}
	if before > 0 {
		query.Set("before", number(before))
	}
	if limit != 0 {
		query.Set("limit", strconv.Itoa(limit))
	}
	var got struct {
		DeadLetters []DeadLetter `json:"deadLetters"`
	}
	_, err = c.ask(ctx, call{method: http.MethodGet, path: path, query: query}, &got)
	return got.DeadLetters, err
}

// Redeliver makes one attempt to deliver a dead letter, and says why it failed;
// empty: it did not.
func (c *Client) Redeliver(ctx context.Context, organization OrganizationID, id string, position Position) (reason string, err error) {
	path, err := organizationPath(organization, "webhooks", id, "dead-letters", number(position), "redeliver")
	if err != nil {
		return "", err
	}
	var got struct {
		Delivered bool    `json:"delivered"`
		Reason    *string `json:"reason"`
	}
	if _, err := c.ask(ctx, call{method: http.MethodPost, path: path, once: true}, &got); err != nil {
		return "", err
	}
	if reason = orZero(got.Reason); reason == "" && !got.Delivered {
		return "", &Error{Status: http.StatusOK, Code: "internal", Message: "the answer makes no sense"}
	}
	return reason, nil
}

// webhook does something to a webhook and reads it from the answer.
func (c *Client) webhook(ctx context.Context, what call, organization OrganizationID, body any, rest ...string) (Webhook, Secret, error) {
	var err error
	if what.path, err = organizationPath(organization, append([]string{"webhooks"}, rest...)...); err != nil {
		return Webhook{}, Secret{}, err
	}
	if body != nil {
		if what.body, err = json.Marshal(body); err != nil {
			return Webhook{}, Secret{}, invalid("", "the webhook cannot be written as JSON")
		}
	}
	var got struct {
		Webhook wireWebhook `json:"webhook"`
		Secret  string      `json:"secret"`
	}
	if _, err := c.ask(ctx, what, &got); err != nil {
		return Webhook{}, Secret{}, err
	}
	var secret Secret
	if got.Secret != "" {
		if secret, err = domain.ParseSecret(got.Secret); err != nil {
			return Webhook{}, Secret{}, &Error{Status: http.StatusOK, Code: "internal", Message: "the answer's secret makes no sense"}
		}
	}
	return got.Webhook.webhook(), secret, nil
}

type wireWebhook struct {
	ID                string     `json:"id"`
	OrganizationID    string     `json:"organizationId"`
	URL               string     `json:"url"`
	Description       string     `json:"description"`
	Types             []string   `json:"types"`
	Enabled           bool       `json:"enabled"`
	DisabledReason    *string    `json:"disabledReason"`
	DisabledAt        *time.Time `json:"disabledAt"`
	Position          Position   `json:"position"`
	FailedAttempts    int        `json:"failedAttempts"`
	FailingSince      *time.Time `json:"failingSince"`
	NextAttemptAt     *time.Time `json:"nextAttemptAt"`
	LastError         *string    `json:"lastError"`
	FormerSecretUntil *time.Time `json:"formerSecretUntil"`
	CreatedAt         time.Time  `json:"createdAt"`
	UpdatedAt         time.Time  `json:"updatedAt"`
}

func (w *wireWebhook) webhook() Webhook {
	return Webhook{
		ID: w.ID, Organization: OrganizationID(w.OrganizationID), URL: w.URL, Description: w.Description, Types: w.Types, Enabled: w.Enabled,
		DisabledReason: orZero(w.DisabledReason), DisabledAt: orZero(w.DisabledAt), Position: w.Position, FailedAttempts: w.FailedAttempts,
		FailingSince: orZero(w.FailingSince), NextAttemptAt: orZero(w.NextAttemptAt), LastError: orZero(w.LastError),
		FormerSecretUntil: orZero(w.FormerSecretUntil), CreatedAt: w.CreatedAt, UpdatedAt: w.UpdatedAt,
	}
}
