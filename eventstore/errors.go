package eventstore

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"keyledger/domain"
)

// ErrEpochChanged says that the ledger is another one, or in another epoch,
// than when this process started: a backup was restored or a failover lost
// commits. The process must start anew, since what it has folded may not be
// history any more.
var ErrEpochChanged = errors.New("the ledger or its epoch has changed: start again")

// ErrGap says that positions of the log are missing: they are dense, so events were
// deleted or a partition was detached. Nobody reads past it.
var ErrGap = errors.New("the log has a gap")

const (
	codeEpochChanged = "KL001" // raised by append_events
	codeErased       = "KL002" // raised by refuse_erased: the organization gets no data key any more
)

// Wrap gives an error of Postgres its place in the one vocabulary: whatever means
// that the ledger cannot be asked now is CodeUnavailable, the caller's own
// deadline and a changed epoch too; the rest is a fault of ours.
func Wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	context := fmt.Sprintf(format, args...)
	var known *domain.Error
	switch {
	case isErased(err):
		return fmt.Errorf("%s: %w", context, domain.OrganizationIsErased())
	case errors.As(err, &known), errors.Is(err, domain.ErrGuardMoved):
		return fmt.Errorf("%s: %w", context, err)
	case errors.Is(err, ErrEpochChanged):
		return domain.Unavailable(fmt.Errorf("%s: %w", context, err))
	case isEpochChanged(err):
		return domain.Unavailable(fmt.Errorf("%s: %w: %w", context, ErrEpochChanged, err))
	case isUnavailable(err):
		return domain.Unavailable(fmt.Errorf("%s: %w", context, err))
	}
	return fmt.Errorf("%s: %w", context, err)
}

func isEpochChanged(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == codeEpochChanged
}

func isErased(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == codeErased
}

// isUnavailable covers what passes by itself: a lost or refused connection, a
// server that is starting or stopping, a lock or resource that was not to be had
// in time. It is also what leaves the outcome of a commit in doubt.
func isUnavailable(err error) bool {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		switch pg.Code[:2] {
		case "08", "53", "57", "58": // connection, resources, operator intervention, system error
			return true
		}
		return pg.Code == "55P03" || // lock_not_available
			pg.Code == "25006" || // read_only_sql_transaction: a standby after a failover
			pg.Code == "25P03" || // idle_in_transaction_session_timeout
			pg.Code == "40001" || pg.Code == "40P01" // serialization, deadlock
	}
	var connect *pgconn.ConnectError
	var network net.Error
	return errors.As(err, &connect) || errors.As(err, &network) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) ||
		pgconn.SafeToRetry(err) || pgconn.Timeout(err) ||
		errors.Is(err, net.ErrClosed) || isConnectionLost(err)
}

// isConnectionLost recognises what pgx says of a connection that ended in the
// middle of an answer.
func isConnectionLost(err error) bool {
	for e := err; e != nil; e = errors.Unwrap(e) {
		switch e.Error() {
		case "unexpected EOF", "EOF", "conn closed", "closed pool":
			return true
		}
	}
	return false
}

func noRows(err error) bool { return errors.Is(err, pgx.ErrNoRows) }
