-- The transparency log: a Merkle tree (RFC 6962) over each lane, whose leaves are
-- the canonical envelopes of its events, and the checkpoints that were signed of it.
-- What it promises is told in docs/audit.md.

-- +goose Up

-- Where the tree of each lane ends. This row moves by compare-and-set, on size and
-- root, in the statement that writes tiles and checkpoint.
CREATE TABLE log_trees (
    lane      text        NOT NULL CONSTRAINT log_trees_lane CHECK (lane IN ('lifecycle', 'usage')),
    ledger_id uuid        NOT NULL,  -- all zero as long as nothing was signed
    epoch     integer     NOT NULL,
    size      bigint      NOT NULL CONSTRAINT log_trees_size CHECK (size >= 0),
    root      bytea       NOT NULL CONSTRAINT log_trees_root CHECK (octet_length(root) = 32),
    signed_at timestamptz NOT NULL,
    CONSTRAINT log_trees_pkey PRIMARY KEY (lane)
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);

-- The root of the empty tree is the hash of nothing.
INSERT INTO log_trees (lane, ledger_id, epoch, size, root, signed_at)
SELECT lane, '00000000-0000-0000-0000-000000000000', 0, 0, sha256(''), 'epoch' FROM unnest(ARRAY['lifecycle', 'usage']) AS lane;

-- Tiles of height 8: up to 256 hashes. Those at level 0 are the hashes of leaves. A
-- full tile never changes; one that is not full only grows.
CREATE TABLE log_tiles (
    lane   text     NOT NULL,
    level  smallint NOT NULL CONSTRAINT log_tiles_level CHECK (level BETWEEN 0 AND 7),
    number bigint   NOT NULL CONSTRAINT log_tiles_number CHECK (number >= 0),
    hashes bytea    NOT NULL CONSTRAINT log_tiles_hashes CHECK (octet_length(hashes) BETWEEN 32 AND 8192 AND octet_length(hashes) % 32 = 0),
    CONSTRAINT log_tiles_pkey PRIMARY KEY (lane, level, number)
);

-- Hashes are not compressible, and are small enough to stand in the row.
ALTER TABLE log_tiles ALTER COLUMN hashes SET STORAGE EXTERNAL;

-- +goose StatementBegin
CREATE FUNCTION keep_tile() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.lane <> OLD.lane OR NEW.level <> OLD.level OR NEW.number <> OLD.number
       OR octet_length(NEW.hashes) < octet_length(OLD.hashes)
       OR substr(NEW.hashes, 1, octet_length(OLD.hashes)) <> OLD.hashes THEN
        RAISE EXCEPTION 'tiles only grow: %/%/% would change', OLD.lane, OLD.level, OLD.number USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END
$$;
-- +goose StatementEnd

CREATE TRIGGER log_tiles_grow BEFORE UPDATE ON log_tiles FOR EACH ROW EXECUTE FUNCTION keep_tile();
CREATE TRIGGER log_tiles_keep BEFORE TRUNCATE ON log_tiles FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- What was signed. All of the last hour is kept, and of each hour the first for ever.
CREATE TABLE log_checkpoints (
    lane      text        NOT NULL,
    epoch     integer     NOT NULL,
    size      bigint      NOT NULL,
    root      bytea       NOT NULL,
    note      text        NOT NULL,  -- the signed note, as it is published
    signed_at timestamptz NOT NULL,
    kept      boolean     NOT NULL,
    CONSTRAINT log_checkpoints_pkey PRIMARY KEY (lane, epoch, size)
);

GRANT SELECT, UPDATE ON log_trees TO keyledger_service;
GRANT SELECT, INSERT, UPDATE ON log_tiles TO keyledger_service;
GRANT SELECT, INSERT, DELETE ON log_checkpoints TO keyledger_service;

-- +goose Down
DROP TABLE log_checkpoints, log_tiles, log_trees;
DROP FUNCTION keep_tile();
