-- Where in the lifecycle lane an organization's events stand, part by part, for its
-- feed and its webhooks. Why this is no index over the events is told in
-- projections/organizations.

-- +goose Up

CREATE TABLE organization_parts (
    organization text   NOT NULL,
    part         bigint NOT NULL,  -- 256 positions
    events       bigint NOT NULL,  -- of the organization in the part
    CONSTRAINT organization_parts_pkey PRIMARY KEY (organization, part)
) WITH (fillfactor = 75);

INSERT INTO projection_checkpoints (name, lane, ledger_id, epoch, position)
VALUES ('organizations', 'lifecycle', '00000000-0000-0000-0000-000000000000', 0, 0);

GRANT SELECT, INSERT, UPDATE, DELETE ON organization_parts TO keyledger_service;

-- Where organizations want their events to be sent. These are settings, not facts:
-- they stand beside the log, and are changed in place.
--
-- A row is also the checkpoint of its own deliveries. Who delivers claims it by raising claim,
-- and moves position only while claim is still theirs, so any node may do it and one that
-- was paused does nothing any more. The database's clock decides when a claim has run out.
CREATE TABLE webhooks (
    id            uuid        NOT NULL,
    organization  text        NOT NULL,
    url           text        NOT NULL,
    description   text        NOT NULL,
    types         text[]      NOT NULL,  -- public names; empty: all
    secret        bytea       NOT NULL,  -- sealed by the service: the database cannot sign
    former_secret bytea,                 -- signs as well, until
    former_until  timestamptz,
    created_at    timestamptz NOT NULL DEFAULT now(),
    created_after bigint      NOT NULL,  -- the lane's end at that time
    updated_at    timestamptz NOT NULL DEFAULT now(),
    disabled_at   timestamptz,           -- null: it is sent to
    disabled_why  text,

    position      bigint      NOT NULL,  -- everything up to here was delivered, passed over or given up
    placed_at     timestamptz NOT NULL DEFAULT now(),  -- when position was last set by somebody: patience counts from here
    claim         bigint      NOT NULL DEFAULT 0,
    due_at        timestamptz,           -- of the next attempt, or the end of a claim; null: nothing is known to be due
    attempts      integer     NOT NULL DEFAULT 0,  -- failed ones of the next event
    failing_since timestamptz,           -- null: the last attempt was good
    last_error    text        NOT NULL DEFAULT '',
    CONSTRAINT webhooks_pkey PRIMARY KEY (id),
    CONSTRAINT webhooks_position CHECK (position >= 0)
) WITH (fillfactor = 75);

CREATE INDEX webhooks_organization ON webhooks (organization);
CREATE INDEX webhooks_due_at ON webhooks (due_at) WHERE due_at IS NOT NULL AND disabled_at IS NULL;

-- Events that were given up. What they say stands in the log.
CREATE TABLE webhook_dead_letters (
    webhook  uuid        NOT NULL CONSTRAINT webhook_dead_letters_webhook REFERENCES webhooks ON DELETE CASCADE,
    position bigint      NOT NULL,
    event    uuid        NOT NULL,
    type     text        NOT NULL,
    attempts integer     NOT NULL,
    reason   text        NOT NULL,
    given_up timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT webhook_dead_letters_pkey PRIMARY KEY (webhook, position)
);

GRANT SELECT, INSERT, UPDATE, DELETE ON webhooks, webhook_dead_letters TO keyledger_service;

-- +goose Down
DROP TABLE webhook_dead_letters, webhooks;
DELETE FROM projection_checkpoints WHERE name = 'organizations';
DROP TABLE organization_parts;
