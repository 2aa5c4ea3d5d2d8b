-- Witnesses cosign checkpoints after they were stored: their lines are added to the
-- note, which is what everybody is given.

-- +goose Up
GRANT UPDATE (note) ON log_checkpoints TO keyledger_service;

-- +goose Down
REVOKE UPDATE (note) ON log_checkpoints FROM keyledger_service;
