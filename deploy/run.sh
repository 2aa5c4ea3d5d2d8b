#!/usr/bin/env bash
# What "make run" does: starts Keyledger with nothing configured, and when it is
# ready prints lines to paste, with a real key and a real token in them.
set -euo pipefail

keyledger=$(realpath "${1:?usage: deploy/run.sh path/to/keyledger}")
organization=org_abc123
data=${KEYLEDGER_DATA_DIR:-.keyledger}

endpoint() { sed -n 's/.*"'"$1"'": *"\([^"]*\)".*/\1/p' "$data/endpoints.json"; }

# The address of the server, once it is ready; empty when it has ended before.
await_server() {
    while sleep 0.2 && kill -0 $$ 2>/dev/null; do
        if [[ -f $data/endpoints.json ]] && "$keyledger" healthcheck 2>/dev/null; then
            endpoint http && return
        fi
    done
}

# The key of the first start is kept in a file. One that was revoked since, or
# whose file is gone, is replaced.
admin_key() {
    local file=$data/bootstrap-$organization.key key
    if key=$(cat "$file" 2>/dev/null) && curl -fsS -o /dev/null -H "X-API-Key: $key" "$1/api/v1/organization/$organization/api-keys" 2>/dev/null; then
        echo "$key"
    else
        (umask 077 && "$keyledger" bootstrap --organization "$organization" 2>/dev/null | tee "$file")
    fi
}

show() {
    local url key token nats
    url=$(await_server)
    [[ -n $url ]] || return 0
    key=$(admin_key "$url")
    token=$("$keyledger" token --organization "$organization" --user user_xyz --ttl 8h)
    nats=$(endpoint nats)
    cat <<TEXT

Keyledger is ready. This is an admin key of $organization:

  $key

Paste these into another terminal:

  # Bullseye: list, create a key, revoke that key
  curl -X GET "$url/api/v1/organization/$organization/api-keys" \\
    -H "X-API-Key: $key" \\
    -H "Content-Type: application/json"

  created=\$(curl -sS -X POST "$url/api/v1/organization/$organization/api-keys" \\
    -H "X-API-Key: $key" \\
    -H "Content-Type: application/json" \\
    -d '{"name":"Production Server","scopes":["read","write"]}'); echo "\$created"

  curl -X DELETE "$url/api/v1/organization/$organization/api-keys/\$(sed 's/.*"id":"\([^"]*\)".*/\1/' <<<"\$created")" \\
    -H "X-API-Key: $key"

  # BunShip: the same keys, with a token of a member (8 hours)
  curl --request GET \\
    --url $url/api/v1/organizations/$organization/api-keys \\
    --header 'Authorization: Bearer $token'

  # Verify a key
  curl -X POST "$url/api/v1/keys/verify" \\
    -H "Content-Type: application/json" \\
    -d '{"key":"$key","scopes":["read"]}'

  # React to revocations: a program of this repository, or the nats command
  go run ./examples/subscriber -endpoints $data/endpoints.json
  nats --server $nats subscribe 'keyledger.lifecycle.*.*.revoked'

Ctrl-C stops it. The ledger stays in $data.

TEXT
}

# The server takes this process's place, so that signals reach it and nothing
# outlives it. Its output is no terminal, so a first key goes into its file.
(show &)
exec "$keyledger" serve --bootstrap "$organization" >/dev/null
