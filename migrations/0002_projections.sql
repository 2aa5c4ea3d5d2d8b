-- What the folds of the log leave in Postgres: the list of keys, the counts of
-- their uses, and how far each fold has come. All of it can be made again from
-- the log at any time (keyledger replay), beside what stands here.
--
-- Index names follow the table's name as Postgres itself would choose them: a
-- rebuild makes a table beside the live one and takes over its names.

-- +goose Up

-- How far a projection has come, in which history of which log. It moves by
-- compare-and-set in the statement that writes the effect: this row's lock is the
-- order in which a projection is applied.
CREATE TABLE projection_checkpoints (
    name       text        NOT NULL,
    lane       text        NOT NULL CONSTRAINT projection_checkpoints_lane CHECK (lane IN ('lifecycle', 'usage')),
    ledger_id  uuid        NOT NULL,  -- all zero as long as nothing was applied
    epoch      integer     NOT NULL,
    position   bigint      NOT NULL CONSTRAINT projection_checkpoints_position CHECK (position >= 0),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT projection_checkpoints_pkey PRIMARY KEY (name)
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);

INSERT INTO projection_checkpoints (name, lane, ledger_id, epoch, position)
VALUES ('keylist', 'lifecycle', '00000000-0000-0000-0000-000000000000', 0, 0),
       ('usage',   'usage',     '00000000-0000-0000-0000-000000000000', 0, 0);

-- Every key that was ever created, as its stream tells it. The verification index
-- is loaded from here.
CREATE TABLE keylist (
    key_id       uuid        NOT NULL,
    organization text        NOT NULL,
    digest       bytea       NOT NULL,
    prefix       text        NOT NULL,
    name         text        NOT NULL,  -- personal; empty once erased
    scopes       text[]      NOT NULL,
    rate_limit   integer     NOT NULL,  -- requests a minute; 0: none
    created_at   timestamptz NOT NULL,
    created_by   text        NOT NULL,  -- personal; empty when no person is known
    expires_at   timestamptz,
    disabled     boolean     NOT NULL,
    revoked      boolean     NOT NULL,
    revoked_at   timestamptz,
    version      bigint      NOT NULL,  -- of the key's stream
    position     bigint      NOT NULL,  -- of its last change in the lifecycle lane
    CONSTRAINT keylist_pkey PRIMARY KEY (key_id)
);

-- Newest first is by created_at: an imported key has the time of its first life,
-- and an id of today. The id decides between equal times, so the order is total.
CREATE INDEX keylist_organization_created_at_key_id_idx ON keylist (organization, created_at DESC, key_id DESC);

-- Counted up with every flush; the free space keeps those updates on their page.
CREATE TABLE usage_keys (
    key_id          uuid   NOT NULL,
    accepted        bigint NOT NULL,
    refused         bigint NOT NULL,
    last_used_at    timestamptz,  -- accepted uses only
    last_refused_at timestamptz,
    CONSTRAINT usage_keys_pkey PRIMARY KEY (key_id)
) WITH (fillfactor = 75);

CREATE TABLE usage_hours (
    key_id  uuid        NOT NULL,
    hour    timestamptz NOT NULL,  -- its beginning, in UTC
    outcome smallint    NOT NULL,  -- the numbers of domain.Outcome
    count   bigint      NOT NULL,
    CONSTRAINT usage_hours_pkey PRIMARY KEY (key_id, hour, outcome)
) WITH (fillfactor = 75);

GRANT SELECT, INSERT, UPDATE, DELETE ON projection_checkpoints, keylist, usage_keys, usage_hours TO keyledger_service;

-- +goose Down
DROP TABLE usage_hours, usage_keys, keylist, projection_checkpoints;
