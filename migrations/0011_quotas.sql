-- How many uses a key may have in all of a period. What was used of it is counted by
-- usage_hours already.

-- +goose Up

-- Both have constant defaults, so no row is written.
ALTER TABLE keylist ADD COLUMN quota_limit bigint NOT NULL DEFAULT 0;  -- 0: none
ALTER TABLE keylist ADD COLUMN quota_refill text NOT NULL DEFAULT '';  -- none, day, month; empty without a quota

-- +goose Down
ALTER TABLE keylist DROP COLUMN quota_limit, DROP COLUMN quota_refill;
