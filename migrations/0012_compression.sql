-- How values are compressed that are too large for their row: events of the usage lane, as a rule. Compressing them
-- with Postgres's own method took more than a microsecond a use, which was a tenth of all that recording one costs;
-- lz4 takes an eighth of that and comes to the same size.
--
-- It is a setting of the database and no property of the columns, so that a dump of it can be restored where
-- Postgres was built without lz4. What is there stays as it is.

-- +goose Up
-- +goose StatementBegin
DO $$
DECLARE
    setting text;
BEGIN
    FOR setting IN SELECT name FROM pg_settings WHERE name IN ('default_toast_compression', 'wal_compression') AND 'lz4' = ANY (enumvals) LOOP
        BEGIN
            EXECUTE format('ALTER DATABASE %I SET %I = ''lz4''', current_database(), setting);
        EXCEPTION WHEN insufficient_privilege THEN
            RAISE NOTICE 'the owner of the database may set % to lz4, which costs less', setting;
        END;
    END LOOP;
END
$$;
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
DO $$
BEGIN
    EXECUTE format('ALTER DATABASE %I RESET default_toast_compression', current_database());
    EXECUTE format('ALTER DATABASE %I RESET wal_compression', current_database());
EXCEPTION WHEN insufficient_privilege THEN
    NULL;
END
$$;
-- +goose StatementEnd
