-- Hashes of what projections hold, so that a fold that was made again can be
-- compared with the live one number by number: which thousand of events is the
-- first at which they differ. What is hashed is told in projections/state.go.

-- +goose Up

-- The sum of the hashes of a projection's rows, modulo 2^256, at the checkpoint. It is null
-- for a projection that was folded before there were sums, until it is rebuilt.
ALTER TABLE projection_checkpoints ADD COLUMN state numeric(78);
UPDATE projection_checkpoints SET state = 0 WHERE position = 0;

-- The sum as it was at every thousandth position.
CREATE TABLE projection_states (
    name     text        NOT NULL,
    position bigint      NOT NULL,
    epoch    integer     NOT NULL,
    state    numeric(78) NOT NULL,
    CONSTRAINT projection_states_pkey PRIMARY KEY (name, position)
);

GRANT SELECT, INSERT, UPDATE, DELETE ON projection_states TO keyledger_service;

-- +goose Down
DROP TABLE projection_states;
ALTER TABLE projection_checkpoints DROP COLUMN state;
