-- What organizations hear of themselves: their own events, read by an index of
-- their own.

-- +goose Up

-- An organization's events in the order of the log, so that its feed and its
-- webhooks read nothing of others. The expression is there for the planner: by
-- plain position it would prefer the primary key for an organization that has a
-- good part of the log, and filter through everything that happened since its last event.
CREATE INDEX events_lifecycle_organization ON events_lifecycle (organization, (position + 0));

-- +goose Down
DROP INDEX events_lifecycle_organization;
