-- Who holds a lease to say that a key is valid. A revocation reads this table after
-- its commit and waits for everybody in it: for a confirmation, or until the lease
-- that it may hold has run out. The argument stands in docs/revocation.md.

-- +goose Up

-- The table is logged and its commits wait for the disk like the log's: a row that a crash
-- took back would leave a lease that no revocation waits for.
CREATE TABLE verifiers (
    id        uuid        NOT NULL,
    kind      text        NOT NULL CONSTRAINT verifiers_kind CHECK (kind IN ('node', 'embedded', 'observers')),
    name      text        NOT NULL,
    lease_ms  integer     NOT NULL CONSTRAINT verifiers_lease CHECK (lease_ms BETWEEN 1 AND 60000),
    renewal   bigint      NOT NULL,  -- drawn anew at every renewal, never the same twice
    joined_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at   timestamptz NOT NULL DEFAULT clock_timestamp(),  -- for people: nothing is decided by it
    CONSTRAINT verifiers_pkey PRIMARY KEY (id)
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- Whether a row was renewed is told by this number and not by a clock, which may jump.
CREATE SEQUENCE verifier_renewals CACHE 1;
ALTER TABLE verifiers ALTER COLUMN renewal SET DEFAULT nextval('verifier_renewals');

GRANT SELECT, INSERT, UPDATE, DELETE ON verifiers TO keyledger_service;
GRANT USAGE ON SEQUENCE verifier_renewals TO keyledger_service;

-- +goose Down
DROP TABLE verifiers;
DROP SEQUENCE verifier_renewals;
