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

-- +goose Down
DELETE FROM projection_checkpoints WHERE name = 'organizations';
DROP TABLE organization_parts;
