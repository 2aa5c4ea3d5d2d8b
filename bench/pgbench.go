package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// baselineSchema is a table equal to events, twice: bare, with a position from a
// sequence, and with a head row of its own.
const baselineSchema = `
CREATE TABLE plain (
    lane text NOT NULL, position bigserial NOT NULL, epoch integer NOT NULL, id uuid NOT NULL, stream text NOT NULL, version bigint NOT NULL,
    organization text NOT NULL, type text NOT NULL, schema smallint NOT NULL, recorded_at timestamptz NOT NULL, data bytea NOT NULL, metadata bytea NOT NULL, sealed bytea,
    PRIMARY KEY (position));
CREATE UNIQUE INDEX ON plain (stream, version);
CREATE TABLE ordered (LIKE plain INCLUDING ALL);
CREATE TABLE ordered_head (lane text PRIMARY KEY, position bigint NOT NULL) WITH (fillfactor = 10);
INSERT INTO ordered_head VALUES ('lifecycle', 0);`

// An event's bytes, as long as those that the measured commands write.
const baselineValues = `1, gen_random_uuid(), 'key/' || gen_random_uuid(), 1, 'org_bench', 'KeyCreated', 1, now(),
	convert_to(repeat('d', 330), 'UTF8'), convert_to(repeat('m', 90), 'UTF8'), convert_to(repeat('s', 65), 'UTF8')`

const insertScript = `INSERT INTO plain (lane, epoch, id, stream, version, organization, type, schema, recorded_at, data, metadata, sealed) VALUES ('lifecycle', ` + baselineValues + `);`

// What dense positions cost without grouping: the head's lock is held over a commit for
// every single command.
const transactionScript = `BEGIN;
UPDATE ordered_head SET position = position + 1 WHERE lane = 'lifecycle' RETURNING position AS p \gset
INSERT INTO ordered (lane, position, epoch, id, stream, version, organization, type, schema, recorded_at, data, metadata, sealed) VALUES ('lifecycle', :p, ` + baselineValues + `);
COMMIT;`

func (d *database) prepareBaselines(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, d.adminURL)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, baselineSchema)
	return err
}

var tps = regexp.MustCompile(`tps = ([0-9.]+)`)

// pgbench runs a script with as many clients and gives transactions a second.
func (d *database) pgbench(ctx context.Context, script string, clients int, duration time.Duration) (sample, error) {
	program, err := findPgbench()
	if err != nil {
		return sample{}, err
	}
	file := filepath.Join(d.dir, "script.sql")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(script, "\n\t", " ")), 0o600); err != nil {
		return sample{}, err
	}
	// Its clock runs while the clients connect, which the rate leaves out.
	seconds := strconv.Itoa(int(duration.Seconds()) + 1)
	command := exec.CommandContext(ctx, program, "-n", "-M", "prepared", "-f", file, "-c", strconv.Itoa(clients), "-j", "2", "-T", seconds, d.adminURL)
	output, err := command.CombinedOutput()
	if err != nil {
		return sample{}, fmt.Errorf("pgbench: %w: %s", err, output)
	}
	found := tps.FindSubmatch(output)
	if found == nil {
		return sample{}, fmt.Errorf("pgbench printed no rate: %s", output)
	}
	rate, err := strconv.ParseFloat(string(found[1]), 64)
	return sample{value: rate}, err
}

func findPgbench() (string, error) {
	if path, err := exec.LookPath("pgbench"); err == nil {
		return path, nil
	}
	matches, err := filepath.Glob("/usr/lib/postgresql/*/bin/pgbench")
	if err != nil || len(matches) == 0 {
		return "", fmt.Errorf("pgbench is not installed: it comes with Postgres's server package")
	}
	return matches[len(matches)-1], nil
}
