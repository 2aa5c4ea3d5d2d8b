-- The log: two lanes of events with dense positions, the head row of each lane,
-- and the one function that writes them. Why it is built this way is told in
-- ARCHITECTURE.md; the fields of an event in docs/events.md.

-- +goose Up

-- The service's connections SET ROLE to keyledger_service, which can read the log
-- and append to it by append_events, and nothing else. Roles belong to the whole
-- cluster, so another database may have made it already, or be making it now.
-- +goose StatementBegin
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'keyledger_service') THEN
        BEGIN
            CREATE ROLE keyledger_service NOLOGIN;
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN
                NULL;
            WHEN insufficient_privilege THEN
                RAISE EXCEPTION 'the role keyledger_service does not exist and % may not create it', current_user
                    USING HINT = format('As a superuser: CREATE ROLE keyledger_service NOLOGIN; GRANT keyledger_service TO %I;', current_user);
        END;
    END IF;
    IF NOT pg_has_role(current_user, 'keyledger_service', 'MEMBER') THEN
        EXECUTE format('GRANT keyledger_service TO %I', current_user);
    END IF;
END
$$;
-- +goose StatementEnd

GRANT USAGE ON SCHEMA public TO keyledger_service;

-- One row a lane. Its lock is the order of the log. It is updated with every batch,
-- so the page keeps room for HOT updates.
CREATE TABLE log_head (
    lane        text        NOT NULL CONSTRAINT log_head_lane CHECK (lane IN ('lifecycle', 'usage')),
    position    bigint      NOT NULL CONSTRAINT log_head_position CHECK (position >= 0),
    ledger_id   uuid        NOT NULL,
    epoch       integer     NOT NULL CONSTRAINT log_head_epoch CHECK (epoch > 0),
    recorded_at timestamptz NOT NULL,  -- of the last event: times never run backwards in a lane
    CONSTRAINT log_head_pkey PRIMARY KEY (lane)
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);

INSERT INTO log_head (lane, position, ledger_id, epoch, recorded_at)
SELECT lane, 0, ledger_id, 1, 'epoch'
FROM (SELECT gen_random_uuid() AS ledger_id) AS ledger, unnest(ARRAY['lifecycle', 'usage']) AS lane;

-- When each epoch began, so that a reader can tell whether what it has seen is
-- still history.
CREATE TABLE log_epochs (
    epoch    integer     NOT NULL,
    lane     text        NOT NULL,
    after    bigint      NOT NULL,  -- the last position of the epoch before
    begun_at timestamptz NOT NULL DEFAULT now(),
    reason   text        NOT NULL,
    CONSTRAINT log_epochs_pkey PRIMARY KEY (epoch, lane)
);

INSERT INTO log_epochs (epoch, lane, after, reason)
SELECT epoch, lane, 0, 'the ledger was made' FROM log_head;

-- Bytes are kept as they were written: bytea, since jsonb would reorder them and
-- hashes stand on them. Nothing here is ever updated or deleted.
CREATE TABLE events (
    lane         text        NOT NULL,
    position     bigint      NOT NULL,
    epoch        integer     NOT NULL,
    id           uuid        NOT NULL,
    stream       text        NOT NULL,
    version      bigint      NOT NULL,
    organization text        NOT NULL,
    type         text        NOT NULL,
    schema       smallint    NOT NULL,
    recorded_at  timestamptz NOT NULL,
    data         bytea       NOT NULL,
    metadata     bytea       NOT NULL,
    sealed       bytea,
    CONSTRAINT events_position CHECK (position > 0),
    CONSTRAINT events_version CHECK (version > 0)
) PARTITION BY LIST (lane);

CREATE TABLE events_lifecycle PARTITION OF events FOR VALUES IN ('lifecycle');

-- The usage lane is cut by position, so that old parts can be detached.
CREATE TABLE events_usage PARTITION OF events FOR VALUES IN ('usage') PARTITION BY RANGE (position);

-- Keys stand on the leaves, where they need no partition key. One event a position; and
-- one event a version, so that what two writers decided at the same version cannot
-- both be appended. The second also finds a stream and its version: no index may
-- begin with the lane, or a plan made while the table was empty prefers it.
ALTER TABLE events_lifecycle ADD CONSTRAINT events_lifecycle_pkey PRIMARY KEY (position);
CREATE UNIQUE INDEX events_lifecycle_stream_version ON events_lifecycle (stream, version);

-- +goose StatementBegin
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'events are append-only: % on % is refused', TG_OP, TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
END
$$;
-- +goose StatementEnd

CREATE TRIGGER events_append_only BEFORE UPDATE OR DELETE ON events FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER events_keep BEFORE TRUNCATE ON events FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER events_lifecycle_keep BEFORE TRUNCATE ON events_lifecycle FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER events_usage_keep BEFORE TRUNCATE ON events_usage FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Makes the parts of the usage lane that the next appends will need, always one
-- ahead. A part is made alone and then attached, which does not stop writers.
-- +goose StatementBegin
CREATE FUNCTION ensure_usage_parts(part_size bigint DEFAULT 16777216) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    head bigint;
    number bigint;
    name text;
BEGIN
    PERFORM pg_advisory_xact_lock(6577801);  -- lock numbers are listed in eventstore/locks.go
    SELECT h.position INTO STRICT head FROM log_head h WHERE h.lane = 'usage';
    FOR number IN head / part_size .. head / part_size + 1 LOOP
        name := format('events_usage_%s', lpad(number::text, 6, '0'));
        CONTINUE WHEN to_regclass(name) IS NOT NULL;
        EXECUTE format('CREATE TABLE %I (LIKE events INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name);
        EXECUTE format('ALTER TABLE %I ADD PRIMARY KEY (position)', name);
        EXECUTE format('CREATE UNIQUE INDEX %I ON %I (stream, version)', name || '_stream_version', name);
        EXECUTE format('CREATE TRIGGER %I BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', name || '_keep', name);
        EXECUTE format('ALTER TABLE events_usage ATTACH PARTITION %I FOR VALUES FROM (%s) TO (%s)', name, number * part_size, (number + 1) * part_size);
    END LOOP;
END
$$;
-- +goose StatementEnd

SELECT ensure_usage_parts();

-- The commands whose ids clients chose (Idempotency-Key), and where their result
-- stands: the stream at that version. Rows are forgotten after a day. A command
-- with a generated id needs no row: its id is that of its first event.
CREATE TABLE commands (
    id          uuid        NOT NULL,
    fingerprint bytea       NOT NULL,  -- of what was asked
    stream      text        NOT NULL,
    version     bigint      NOT NULL,  -- of the stream after the command
    position    bigint      NOT NULL,  -- of its last event, or the head when it changed nothing
    changed     boolean     NOT NULL,
    recorded_at timestamptz NOT NULL,
    CONSTRAINT commands_pkey PRIMARY KEY (id)
);

CREATE INDEX commands_recorded_at ON commands USING brin (recorded_at);

-- The key under which an organization's personal fields are sealed, wrapped by the
-- master key. Deleting a row erases what it sealed.
CREATE TABLE data_keys (
    organization text        NOT NULL,
    number       integer     NOT NULL,
    wrapped      bytea       NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT data_keys_pkey PRIMARY KEY (organization, number)
);

-- Appends a batch of commands. It is called by append_batch below, which commits.
--
-- One entry of the c_ arrays a command, one of the e_ arrays an event, in order;
-- e_command says whose it is, counted from 1. No two commands of a batch touch
-- the same stream, and none is guarded by a stream that the batch writes: the
-- appender sees to it.
--
-- The statements are separate on purpose: under READ COMMITTED each has a
-- snapshot of its own, and everything that is compared must be read after the
-- lock was granted. The access paths are pinned, since a plan cached while the
-- tables were empty would scan them for ever.
--
-- Outcomes: 0 appended; 1 known (this very command was appended before); 2 the
-- command id stands for another request; 3 the stream is at another version; 4
-- the guard has moved.
-- +goose StatementBegin
CREATE FUNCTION append_events(
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

    -- 3. The survivors, at head+1 and on.
    INSERT INTO events (lane, position, epoch, id, stream, version, organization, type, schema, recorded_at, data, metadata, sealed)
    SELECT p_lane, append_events.head + row_number() OVER (ORDER BY e.n), p_epoch, e.id, c_stream[e.command], e.version, e.organization,
           e.type, e.schema, at, e.data, e.metadata, e.sealed
      FROM unnest(e_command, e_id, e_version, e_organization, e_type, e_schema, e_data, e_metadata, e_sealed)
           WITH ORDINALITY AS e (command, id, version, organization, type, schema, data, metadata, sealed, n)
     WHERE outcomes[e.command] = 0;
    GET DIAGNOSTICS v_count = ROW_COUNT;

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

-- The one way to append: the batch and its commit in one call. The transaction
-- begins and ends inside the server, so a client that is paused at the worst moment
-- holds no lock. In a plain SELECT the commit would wait for the protocol's Sync
-- message, and a client could be stopped just before it. A procedure
-- that commits may have neither SECURITY DEFINER nor SET, hence the two.
-- +goose StatementBegin
CREATE PROCEDURE append_batch(
    p_lane text, p_ledger uuid, p_epoch integer,
    c_id uuid[], c_fingerprint bytea[], c_stream text[], c_expected bigint[], c_first uuid[], c_events integer[], c_guard text[], c_guarded bigint[],
    e_command integer[], e_id uuid[], e_version bigint[], e_organization text[], e_type text[], e_schema smallint[],
    e_data bytea[], e_metadata bytea[], e_sealed bytea[],
    INOUT head bigint DEFAULT NULL, INOUT at timestamptz DEFAULT NULL, INOUT outcomes smallint[] DEFAULT NULL, INOUT known jsonb DEFAULT NULL
)
LANGUAGE plpgsql AS $$
BEGIN
    SELECT a.head, a.at, a.outcomes, a.known INTO head, at, outcomes, known
      FROM append_events(p_lane, p_ledger, p_epoch, c_id, c_fingerprint, c_stream, c_expected, c_first, c_events, c_guard, c_guarded,
           e_command, e_id, e_version, e_organization, e_type, e_schema, e_data, e_metadata, e_sealed) a;
    COMMIT;
END
$$;
-- +goose StatementEnd

-- After a restore or a failover that lost commits: positions from here on are
-- another history. Only the owner may say so.
-- +goose StatementBegin
CREATE FUNCTION raise_epoch(p_reason text) RETURNS integer LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    v_epoch integer;
BEGIN
    PERFORM 1 FROM log_head ORDER BY lane FOR UPDATE;
    SELECT max(epoch) + 1 INTO v_epoch FROM log_head;
    UPDATE log_head SET epoch = v_epoch;
    INSERT INTO log_epochs (epoch, lane, after, reason) SELECT v_epoch, lane, position, p_reason FROM log_head;
    RETURN v_epoch;
END
$$;
-- +goose StatementEnd

-- For people with psql.
-- +goose StatementBegin
CREATE VIEW events_readable AS
SELECT lane, position, epoch, id, stream, version, organization, type, schema, recorded_at,
       convert_from(data, 'UTF8')::jsonb     AS data,
       convert_from(metadata, 'UTF8')::jsonb AS metadata,
       sealed IS NOT NULL                    AS has_sealed
FROM events;
-- +goose StatementEnd

REVOKE ALL ON FUNCTION raise_epoch(text), ensure_usage_parts(bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION append_events FROM PUBLIC;
REVOKE ALL ON PROCEDURE append_batch FROM PUBLIC;
GRANT EXECUTE ON FUNCTION append_events, ensure_usage_parts(bigint) TO keyledger_service;
GRANT EXECUTE ON PROCEDURE append_batch TO keyledger_service;
GRANT SELECT ON log_head, log_epochs, events, events_readable TO keyledger_service;
GRANT SELECT, DELETE ON commands TO keyledger_service;
GRANT SELECT, INSERT, DELETE ON data_keys TO keyledger_service;

-- +goose Down
-- A log is never migrated away: there is nothing to go back to.
-- +goose StatementBegin
DO $$ BEGIN RAISE EXCEPTION 'the log cannot be migrated down'; END $$;
-- +goose StatementEnd
