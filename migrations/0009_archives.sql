-- Which parts of the usage lane were detached, and where to. The tree over the
-- lane still covers them.

-- +goose Up
CREATE TABLE usage_archives (
    first       bigint      NOT NULL,
    last        bigint      NOT NULL,
    file        text        NOT NULL,  -- its name, without a path
    sha256      bytea       NOT NULL,  -- of the file
    detached_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT usage_archives_pkey PRIMARY KEY (first),
    CONSTRAINT usage_archives_range CHECK (first > 0 AND first <= last)
);

GRANT SELECT ON usage_archives TO keyledger_service;

-- +goose Down
DROP TABLE usage_archives;
