package config

import (
	"log/slog"
	"time"

	"keyledger/domain"
)

// Config is all settings of all commands. The comment of a field is what --help
// prints about it: this file is embedded and read for that (manual.go). So is
// every field's variable, and from it the name of its flag.
type Config struct {
	// Folder for everything that belongs to this server: its lock, generated
	// secrets, endpoints.json, and the embedded Postgres and NATS.
	DataDir string `env:"KEYLEDGER_DATA_DIR" envDefault:".keyledger"`
	// Postgres to use instead of the embedded one, as the service's login: it needs
	// to be a member of the role keyledger_service.
	DatabaseURL URL `env:"DATABASE_URL"`
	// The same database as its owner, for migrations and rebuilds. Default: the
	// database URL itself.
	DatabaseAdminURL URL `env:"KEYLEDGER_DATABASE_ADMIN_URL"`
	// How long to wait at the start for a Postgres that cannot be reached.
	DatabaseWait time.Duration `env:"KEYLEDGER_DATABASE_WAIT" envDefault:"60s"`
	// Connections to Postgres. Half of them are kept open.
	DatabaseConnections int `env:"KEYLEDGER_DATABASE_CONNECTIONS" envDefault:"16"`
	// Apply what the database lacks of its schema at the start. Where it is off,
	// run keyledger migrate before.
	Migrate bool `env:"KEYLEDGER_MIGRATE" envDefault:"true"`
	// NATS with JetStream to use instead of the embedded one; several URLs are
	// separated by commas.
	NATSURL URL `env:"NATS_URL"`
	// Credentials file (.creds) for that NATS.
	NATSCreds string `env:"NATS_CREDS"`
	// Replicas of the streams, 1 to 5. Default: one, and as it is where a stream exists.
	StreamReplicas int `env:"KEYLEDGER_STREAM_REPLICAS" envDefault:"0"`
	// Key that wraps the organizations' data keys: 32 bytes, as base64 or hex. Every
	// node of a ledger needs the same one. Default: drawn once, into the data directory.
	MasterKey Secret `env:"KEYLEDGER_MASTER_KEY"`
	// Directory of initdb and postgres for the embedded Postgres. Default: found on
	// this machine, else downloaded.
	PostgresBin string `env:"KEYLEDGER_POSTGRES_BIN"`
	// Place to download the embedded Postgres from, instead of Maven Central.
	PostgresMirror string `env:"KEYLEDGER_POSTGRES_MIRROR"`

	// Address to serve HTTP on. Where it is not set, PORT is honoured, on every interface.
	Listen string `env:"KEYLEDGER_LISTEN" envDefault:"127.0.0.1:8080"`
	// PEM file with the server's certificate and its chain; turns TLS on.
	TLSCert string `env:"KEYLEDGER_TLS_CERT"`
	// PEM file with the certificate's private key.
	TLSKey string `env:"KEYLEDGER_TLS_KEY"`
	// Networks of proxies whose X-Forwarded-For is believed, separated by commas.
	// Default: none.
	TrustedProxies Networks `env:"KEYLEDGER_TRUSTED_PROXIES"`
	// How long to go on serving after /readyz has turned to 503 at a shutdown, so that
	// balancers see it.
	DrainDelay time.Duration `env:"KEYLEDGER_DRAIN_DELAY" envDefault:"0s"`
	// Bound of a shutdown's every step; what has not finished then is cut off.
	ShutdownTimeout time.Duration `env:"KEYLEDGER_SHUTDOWN_TIMEOUT" envDefault:"15s"`
	// Make a first admin key for this organization if it has none that is active: shown
	// on a terminal, otherwise written to a file of mode 0600 in the data directory.
	Bootstrap domain.OrganizationID `env:"KEYLEDGER_BOOTSTRAP"`
	// Whether those who verify keys need a key of their own: none, or required
	// (with the scope verify).
	VerifyAuth VerifyAuth `env:"KEYLEDGER_VERIFY_AUTH" envDefault:"none"`
	// When a use of a key is written to the log: accounted (added up for a moment, so that a
	// crash loses at most that) or exact (before the answer, which waits for the commit).
	Usage UsageMode `env:"KEYLEDGER_USAGE" envDefault:"accounted"`
	// How many answers about unknown keys an address gets in a minute, with any
	// credential or none; known keys are never slowed.
	UnknownKeys uint32 `env:"KEYLEDGER_UNKNOWN_KEYS" envDefault:"1000"`
	// How long a server may say that keys are valid without having asked the database
	// whether any was revoked: 100ms to 60s. A revocation waits as long for a
	// server that does not answer; a longer lease bridges longer failovers of the database.
	Lease time.Duration `env:"KEYLEDGER_LEASE" envDefault:"1s"`
	// What to do when the lease has run out: refuse (503 until it is renewed), or serve
	// what is known, marked as stale, for as long as --max-stale.
	Stale Stale `env:"KEYLEDGER_STALE" envDefault:"refuse"`
	// With --stale serve: how long since the database was last asked. Meanwhile a
	// revocation may not hold here.
	MaxStale time.Duration `env:"KEYLEDGER_MAX_STALE" envDefault:"60s"`
	// How long uses of keys are added up before they are written to the log.
	FlushInterval time.Duration `env:"KEYLEDGER_FLUSH_INTERVAL" envDefault:"1s"`

	// Ed25519 key that signs the checkpoints of the log: 32 bytes, as hex or base64;
	// several, separated by commas, all sign, while they are changed. Every node of a ledger needs the
	// same. Default: drawn once, into the data directory.
	CheckpointKey Secret `env:"KEYLEDGER_CHECKPOINT_KEY"`

	// Let webhooks be http, and inside the network. For development only: whoever may
	// make webhooks can then reach whatever this server reaches.
	WebhookInsecure bool `env:"KEYLEDGER_WEBHOOK_INSECURE" envDefault:"false"`

	// Witnesses of the log, separated by commas: each is name+hash+key=URL, is sent every
	// checkpoint, and cosigns it. Audits demand the cosignatures of those that are named, and need no URL.
	Witness []string `env:"KEYLEDGER_WITNESS"`

	// First word of new keys: bsk makes bsk_live_ and bsk_test_ keys.
	KeyPrefix domain.KeyFormat `env:"KEYLEDGER_KEY_PREFIX" envDefault:"bsk"`
	// Limit of a new key, in requests a minute, when none is asked for.
	DefaultRateLimit uint32 `env:"KEYLEDGER_DEFAULT_RATE_LIMIT" envDefault:"1000"`

	// Secret of the HS256 tokens that are accepted. Default: drawn once, into the data
	// directory, unless there is a JWKS.
	JWTSecret Secret `env:"KEYLEDGER_JWT_SECRET"`
	// JWKS whose RS256, ES256 and EdDSA keys sign the tokens that are accepted.
	JWKSURL string `env:"KEYLEDGER_JWKS_URL"`
	// Issuer that a token must name.
	JWTIssuer string `env:"KEYLEDGER_JWT_ISSUER"`
	// Audience that a token must name.
	JWTAudience string `env:"KEYLEDGER_JWT_AUDIENCE"`
	// Only members with one of these roles are let in, separated by commas. Default: every member.
	JWTRoles []string `env:"KEYLEDGER_JWT_ROLES"`

	// How to write logs: json, text, or auto (text on a terminal, otherwise JSON).
	LogFormat LogFormat `env:"KEYLEDGER_LOG_FORMAT" envDefault:"auto"`
	// Least level of what is logged: debug, info, warn or error.
	LogLevel slog.Level `env:"LOG_LEVEL" envDefault:"info"`

	// Organization that the command is about.
	Organization domain.OrganizationID `env:"KEYLEDGER_ORGANIZATION"`
	// User that the command is about, or in whose name it is done.
	User domain.UserID `env:"KEYLEDGER_USER"`
	// Name of the new key, for people.
	Name string `env:"KEYLEDGER_NAME" envDefault:"bootstrap"`
	// Scopes of the new key, separated by commas. Default: admin,* (everything in
	// the organization); with --system: system:verify,system:events,system:audit.
	Scopes []string `env:"KEYLEDGER_SCOPES"`
	// Limit of the new key, in requests a minute; 0 is none. Default: the default rate limit.
	RateLimit *uint32 `env:"KEYLEDGER_RATE_LIMIT"`
	// Make a key of the service itself, which spans organizations.
	System bool `env:"KEYLEDGER_SYSTEM" envDefault:"false"`
	// Role of the member.
	Role string `env:"KEYLEDGER_ROLE" envDefault:"member"`
	// How long the token is valid.
	TTL time.Duration `env:"KEYLEDGER_TTL" envDefault:"15m"`
	// Why, for the record.
	Reason string `env:"KEYLEDGER_REASON"`
	// Print JSON to standard output.
	JSON bool `env:"KEYLEDGER_JSON" envDefault:"false"`
	// Do not ask for confirmation.
	Yes bool `env:"KEYLEDGER_YES" envDefault:"false"`
	// Compare only, and change nothing.
	DryRun bool `env:"KEYLEDGER_DRY_RUN" envDefault:"false"`

	// Files with checkpoints that were kept outside the ledger, separated by commas.
	Checkpoint []string `env:"KEYLEDGER_CHECKPOINT"`
	// Public keys that may have signed checkpoints, separated by commas; where keys of
	// the API are looked at, the id of one. Default: the key of the data directory; every key.
	Key []string `env:"KEYLEDGER_KEY"`
	// Exported file to work on instead of a ledger.
	File string `env:"KEYLEDGER_FILE"`
	// File to write.
	Output string `env:"KEYLEDGER_OUTPUT"`
	// Lane of the log: lifecycle or usage. Default: both.
	Lane string `env:"KEYLEDGER_LANE"`
	// Position of the lifecycle lane, or moment such as 2026-01-15T10:00:00Z, or how
	// long ago, such as 24h.
	At string `env:"KEYLEDGER_AT"`
	// Where to begin: a position, a moment, or how long ago.
	From string `env:"KEYLEDGER_FROM"`
	// Where to end: a position, a moment, or how long ago. Default: the end of the log.
	To string `env:"KEYLEDGER_TO"`
	// Only events of these types, such as KeyCreated,KeyRevoked.
	Types []string `env:"KEYLEDGER_TYPES"`
	// Wait for what happens next, and go on.
	Follow bool `env:"KEYLEDGER_FOLLOW" envDefault:"false"`
	// How far the clocks of verifiers are believed to differ.
	Skew time.Duration `env:"KEYLEDGER_SKEW" envDefault:"2s"`
	// Only what ends before this: a position, a moment, or how long ago.
	Before string `env:"KEYLEDGER_BEFORE"`
	// Files to which parts of the usage lane were detached, separated by commas.
	Archive []string `env:"KEYLEDGER_ARCHIVE"`
	// Export the wrapped data keys as well, without which an imported ledger cannot
	// read its personal fields.
	DataKeys bool `env:"KEYLEDGER_DATA_KEYS" envDefault:"false"`
}
