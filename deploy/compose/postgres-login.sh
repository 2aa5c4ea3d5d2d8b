#!/usr/bin/env bash
# Runs once, in the container of a new Postgres: makes the login of the service. It
# owns nothing; the migrations let it take the role that may append to the log.
set -euo pipefail
psql --no-psqlrc --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
    --set password="$KEYLEDGER_DATABASE_PASSWORD" <<'SQL'
CREATE ROLE keyledger LOGIN NOINHERIT PASSWORD :'password';
SQL
