package publisher

import (
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"keyledger/domain"
	"keyledger/eventstore"
)

// Message is an event as subscribers get it: a CloudEvent 1.0 in the NATS
// binding's binary mode, with the stored data untouched. It is a pure function of the
// recorded event, so that any node publishes the same bytes; what is sealed
// and what only auditors need stay in the log.
func Message(r eventstore.Recorded) (*nats.Msg, error) {
	name, about, err := address(r)
	if err != nil {
		return nil, fmt.Errorf("publish %s %d: %w", r.Lane, r.Position, err)
	}
	subject := lifecycleSubjects + string(r.Organization) + "." + about + "." + name.suffix
	switch {
	case name.lane == domain.Usage:
		subject = usageSubjects + string(r.Organization) + "." + name.suffix
	case !name.ofKey:
		subject = lifecycleSubjects + string(r.Organization) + ".-." + name.suffix
	}
	ledger := r.Ledger.UUID()
	return &nats.Msg{Subject: subject, Data: r.Data, Header: nats.Header{
		HeaderSpecVersion:     {specVersion},
		HeaderID:              {r.ID.UUID()},
		HeaderSource:          {sourcePrefix + ledger},
		HeaderType:            {name.typ},
		HeaderSubject:         {about},
		HeaderTime:            {r.RecordedAt.UTC().Format(time.RFC3339Nano)},
		HeaderDataContentType: {dataContentType},
		HeaderLedger:          {ledger},
		HeaderEpoch:           {strconv.FormatUint(uint64(r.Epoch), 10)},
		HeaderLane:            {string(r.Lane)},
		HeaderPosition:        {strconv.FormatUint(uint64(r.Position), 10)},
		HeaderOrganization:    {string(r.Organization)},
		HeaderStreamVersion:   {strconv.FormatUint(r.Version, 10)},
		HeaderSchema:          {strconv.FormatUint(uint64(r.Schema), 10)},
	}}, nil
}

// address says how an event is called outside, and whom it is about: a key, or
// the organization where it is about no single one.
func address(r eventstore.Recorded) (name named, about string, err error) {
	if name, err = nameOf(r.Type); err != nil {
		return name, "", err
	}
	if name.lane != r.Lane {
		return name, "", fmt.Errorf("a %s does not belong to this lane", r.Type)
	}
	// A space or a dot in a subject would change who gets the message.
	if _, err := domain.ParseOrganizationID(string(r.Organization)); err != nil {
		return name, "", fmt.Errorf("the organization's id is no subject token: %w", err)
	}
	if !name.ofKey {
		return name, string(r.Organization), nil
	}
	key, ok := r.Stream.Key()
	if !ok {
		return name, "", fmt.Errorf("a %s stands in the stream of no key", r.Type)
	}
	return name, key.String(), nil
}

// differs says in which respect a message in the stream is not the event that
// the log holds there; empty when it is. Only what identifies an event is
// compared, so that a later version may add headers.
func differs(r eventstore.Recorded, header nats.Header, data []byte) string {
	switch {
	case header.Get(HeaderLedger) != r.Ledger.UUID():
		return fmt.Sprintf("it comes from ledger %q and this is ledger %s", header.Get(HeaderLedger), r.Ledger.UUID())
	case header.Get(HeaderEpoch) != strconv.FormatUint(uint64(r.Epoch), 10):
		return fmt.Sprintf("it is of epoch %q and the log's event is of epoch %d", header.Get(HeaderEpoch), r.Epoch)
	case header.Get(HeaderID) != r.ID.UUID():
		return fmt.Sprintf("it has the id %q and the log's event has %s", header.Get(HeaderID), r.ID.UUID())
	case string(data) != string(r.Data):
		return "it has the log's id and other content"
	}
	return ""
}
