-- Erasure: an organization's data keys are destroyed in the statement that appends
-- OrganizationErased, and nothing personal of it can be written again. What that
-- achieves, and what it does not, is told in docs/privacy.md.

-- +goose Up

-- Which organizations are erased, as the log says it. Nobody takes a row back.
CREATE TABLE erased_organizations (
    organization text        NOT NULL,
    position     bigint      NOT NULL,  -- of OrganizationErased, in the lifecycle lane
    erased_at    timestamptz NOT NULL,
    CONSTRAINT erased_organizations_pkey PRIMARY KEY (organization)
);

-- +goose StatementBegin
CREATE FUNCTION keep_erased() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'an erasure is for good: % on % is refused', TG_OP, TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
END
$$;
-- +goose StatementEnd

CREATE TRIGGER erased_organizations_keep BEFORE UPDATE OR DELETE ON erased_organizations FOR EACH ROW EXECUTE FUNCTION keep_erased();
CREATE TRIGGER erased_organizations_whole BEFORE TRUNCATE ON erased_organizations FOR EACH STATEMENT EXECUTE FUNCTION keep_erased();

-- Whoever makes a data key, or a webhook, and whoever erases take turns, organization by
-- organization: a key that is on its way when the erasure commits is either
-- destroyed by it or refused after it.
-- +goose StatementBegin
CREATE FUNCTION refuse_erased() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(6577804, hashtext(NEW.organization));  -- lock numbers are listed in eventstore/locks.go
    IF EXISTS (SELECT FROM erased_organizations x WHERE x.organization = NEW.organization) THEN
        RAISE EXCEPTION 'the organization % was erased', NEW.organization USING ERRCODE = 'KL002';
    END IF;
    RETURN NEW;
END
$$;
-- +goose StatementEnd

CREATE TRIGGER data_keys_erased BEFORE INSERT OR UPDATE ON data_keys FOR EACH ROW EXECUTE FUNCTION refuse_erased();

-- An endpoint's address and description are free text.
CREATE TRIGGER webhooks_erased BEFORE INSERT ON webhooks FOR EACH ROW EXECUTE FUNCTION refuse_erased();

-- +goose StatementBegin
CREATE FUNCTION erase_organization(p_organization text, p_position bigint, p_at timestamptz) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(6577804, hashtext(p_organization));
    INSERT INTO erased_organizations (organization, position, erased_at) VALUES (p_organization, p_position, p_at);
    DELETE FROM data_keys k WHERE k.organization = p_organization;
    DELETE FROM webhooks w WHERE w.organization = p_organization;
END
$$;
-- +goose StatementEnd

-- The service destroys a data key by appending OrganizationErased, and in no other way.
REVOKE DELETE ON data_keys FROM keyledger_service;
REVOKE ALL ON FUNCTION erase_organization(text, bigint, timestamptz) FROM PUBLIC;
GRANT SELECT ON erased_organizations TO keyledger_service;

-- The function of 0001_log.sql, with steps 2b and 3b. A further outcome: 5 the
-- organization was erased.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION append_events(
    p_lane        text,
    p_ledger      uuid,
    p_epoch       integer,
    c_id          uuid[],      -- null where the id was generated; null altogether when all were
    c_fingerprint bytea[],
    c_stream      text[],
    c_expected    bigint[],    -- the version at which the command was decided
    c_first       uuid[],      -- id of its first event; null when it has none
    c_events      integer[],   -- how many
    c_guard       text[],      -- the stream that authorised it; null for none
    c_guarded     bigint[],    -- its version then
    e_command     integer[],
    e_id          uuid[],
    e_version     bigint[],
    e_organization text[],
    e_type        text[],
    e_schema      smallint[],
    e_data        bytea[],
    e_metadata    bytea[],
    e_sealed      bytea[],
    OUT head      bigint,      -- before this batch
    OUT at        timestamptz,
    OUT outcomes  smallint[],
    OUT known     jsonb        -- for outcome 1 of a chosen id: what the row in commands says, by ordinal
)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
AS $$
DECLARE
    v_ledger uuid;
    v_epoch  integer;
    v_last   timestamptz;
    v_count  bigint;
BEGIN
    -- 1. The head's lock is the order of the log. It is held until the commit.
    SELECT h.position, h.ledger_id, h.epoch, h.recorded_at
      INTO STRICT head, v_ledger, v_epoch, v_last
      FROM log_head h WHERE h.lane = p_lane FOR UPDATE;
    IF v_ledger <> p_ledger OR v_epoch <> p_epoch THEN
        RAISE EXCEPTION 'the ledger is % in epoch %, not % in epoch %', v_ledger, v_epoch, p_ledger, p_epoch USING ERRCODE = 'KL001';
    END IF;
    at := greatest(clock_timestamp(), v_last);

    -- 2. What every command would meet. A version that has moved on because of this
    -- very event is a retry after a doubtful commit, and no conflict.
    SELECT array_agg(CASE
               WHEN chosen.id IS NOT NULL AND chosen.fingerprint <> c.fingerprint THEN 2
               WHEN chosen.id IS NOT NULL THEN 1
               WHEN coalesce(current.version, 0) <> c.expected AND mine.id IS NOT NULL THEN 1
               WHEN coalesce(current.version, 0) <> c.expected THEN 3
               WHEN c.guard IS NOT NULL AND coalesce(guard.version, 0) <> c.guarded THEN 4
               ELSE 0
           END::smallint ORDER BY c.n),
           jsonb_object_agg(c.n, jsonb_build_object('stream', chosen.stream, 'version', chosen.version, 'position', chosen.position,
               'changed', chosen.changed, 'recorded_at', chosen.recorded_at)) FILTER (WHERE chosen.id IS NOT NULL)
      INTO outcomes, known
      FROM unnest(c_id, c_fingerprint, c_stream, c_expected, c_first, c_guard, c_guarded)
           WITH ORDINALITY AS c (id, fingerprint, stream, expected, first, guard, guarded, n)
      LEFT JOIN LATERAL (
          SELECT k.id, k.fingerprint, k.stream, k.version, k.position, k.changed, k.recorded_at
            FROM commands k WHERE k.id = c.id AND k.recorded_at > at - interval '24 hours'
      ) chosen ON true
      LEFT JOIN LATERAL (
          SELECT e.version FROM events e
           WHERE e.lane = p_lane AND e.stream = c.stream ORDER BY e.version DESC LIMIT 1
      ) current ON true
      LEFT JOIN LATERAL (
          SELECT e.id FROM events e
           WHERE coalesce(current.version, 0) > c.expected
             AND e.lane = p_lane AND e.stream = c.stream AND e.version = c.expected + 1 AND e.id = c.first
      ) mine ON true
      LEFT JOIN LATERAL (
          SELECT e.version FROM events e
           WHERE e.lane = 'lifecycle' AND e.stream = c.guard ORDER BY e.version DESC LIMIT 1
      ) guard ON true;

    -- 2b. An organization that was erased gets nothing new: its keys may still be
    -- revoked, and fences confirmed, as long as nothing in that is sealed.
    IF p_lane = 'lifecycle' AND ('OrganizationErased' = ANY (e_type)
       OR EXISTS (SELECT FROM erased_organizations x WHERE x.organization = ANY (e_organization))) THEN
        SELECT array_agg(CASE WHEN o.outcome = 0 AND EXISTS (
                   SELECT FROM unnest(e_command, e_organization, e_type, e_sealed) AS e (command, organization, type, sealed)
                    WHERE e.command = o.n AND (e.sealed IS NOT NULL OR e.type NOT IN ('KeyRevoked', 'RevocationFenced'))
                      AND (EXISTS (SELECT FROM erased_organizations x WHERE x.organization = e.organization)
                           -- or by an earlier command of this very batch
                           OR EXISTS (SELECT FROM unnest(e_command, e_organization, e_type) AS f (command, organization, type)
                                       WHERE f.type = 'OrganizationErased' AND f.organization = e.organization
                                         AND f.command < e.command AND outcomes[f.command] = 0))
               ) THEN 5 ELSE o.outcome END::smallint ORDER BY o.n)
          INTO outcomes
          FROM unnest(outcomes) WITH ORDINALITY AS o (outcome, n);
    END IF;

    -- 3. The survivors, at head+1 and on.
    INSERT INTO events (lane, position, epoch, id, stream, version, organization, type, schema, recorded_at, data, metadata, sealed)
    SELECT p_lane, append_events.head + row_number() OVER (ORDER BY e.n), p_epoch, e.id, c_stream[e.command], e.version, e.organization,
           e.type, e.schema, at, e.data, e.metadata, e.sealed
      FROM unnest(e_command, e_id, e_version, e_organization, e_type, e_schema, e_data, e_metadata, e_sealed)
           WITH ORDINALITY AS e (command, id, version, organization, type, schema, data, metadata, sealed, n)
     WHERE outcomes[e.command] = 0;
    GET DIAGNOSTICS v_count = ROW_COUNT;

    -- 3b. An erasure takes the data keys with it: there is no moment at which the log
    -- says that an organization is erased and its keys are still there.
    IF 'OrganizationErased' = ANY (e_type) THEN
        PERFORM erase_organization(e.organization, append_events.head + e.n, at)
           FROM (SELECT u.organization, u.type, row_number() OVER (ORDER BY u.n) AS n
                   FROM unnest(e_command, e_organization, e_type) WITH ORDINALITY AS u (command, organization, type, n)
                  WHERE outcomes[u.command] = 0) AS e
          WHERE e.type = 'OrganizationErased';
    END IF;

    -- 4. The ids that clients chose. A row older than a day may still be there.
    IF c_id IS NOT NULL THEN
        INSERT INTO commands (id, fingerprint, stream, version, position, changed, recorded_at)
        SELECT c.id, c.fingerprint, c.stream, c.expected + c.events, append_events.head + c.through, c.events > 0, at
          FROM (SELECT u.*, sum(u.events) FILTER (WHERE outcomes[u.n] = 0) OVER (ORDER BY u.n) AS through
                  FROM unnest(c_id, c_fingerprint, c_stream, c_expected, c_events)
                       WITH ORDINALITY AS u (id, fingerprint, stream, expected, events, n)) AS c
         WHERE outcomes[c.n] = 0 AND c.id IS NOT NULL
            ON CONFLICT (id) DO UPDATE SET fingerprint = excluded.fingerprint, stream = excluded.stream, version = excluded.version,
               position = excluded.position, changed = excluded.changed, recorded_at = excluded.recorded_at;
    END IF;

    -- 5. The head moves last; nothing of this is seen before the commit.
    IF v_count > 0 THEN
        UPDATE log_head h SET position = append_events.head + v_count, recorded_at = at WHERE h.lane = p_lane;
    END IF;
END
$$;
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
DO $$ BEGIN RAISE EXCEPTION 'the log cannot be migrated down'; END $$;
-- +goose StatementEnd
