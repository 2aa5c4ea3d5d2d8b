package publisher

import (
	"bytes"
	"fmt"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"keyledger/eventstore"
)

// digestMember is the one member of any event's data that is for verifiers alone:
// digests of imported keys may be weak.
const digestMember = "digest"

// AppendStructured appends an event as those get it who are no verifiers: a
// CloudEvent 1.0 as one JSON object without white space, with the attributes and texts of a
// message's headers and the stored data without the key's digest.
//
// Numbers are texts here as they are in headers: an Integer of CloudEvents has 32
// bits, and positions have more.
func AppendStructured(dst []byte, r eventstore.Recorded) ([]byte, error) {
	name, about, err := address(r)
	if err != nil {
		return dst, fmt.Errorf("show %s %d: %w", r.Lane, r.Position, err)
	}
	data, err := withoutDigest(r.Data)
	if err != nil {
		return dst, fmt.Errorf("show %s %d: %w", r.Lane, r.Position, err)
	}
	// Ids, names and times are plain ASCII without quotes: nothing is to be escaped.
	ledger := r.Ledger.UUID()
	dst = append(dst, `{"specversion":"`+specVersion+`","id":"`...)
	dst = append(dst, r.ID.UUID()...)
	dst = append(dst, `","source":"`+sourcePrefix...)
	dst = append(dst, ledger...)
	dst = append(dst, `","type":"`...)
	dst = append(dst, name.typ...)
	dst = append(dst, `","subject":"`...)
	dst = append(dst, about...)
	dst = append(dst, `","time":"`...)
	dst = r.RecordedAt.UTC().AppendFormat(dst, time.RFC3339Nano)
	dst = append(dst, `","datacontenttype":"`+dataContentType+`","ledger":"`...)
	dst = append(dst, ledger...)
	dst = append(dst, `","epoch":"`...)
	dst = strconv.AppendUint(dst, uint64(r.Epoch), 10)
	dst = append(dst, `","lane":"`...)
	dst = append(dst, r.Lane...)
	dst = append(dst, `","position":"`...)
	dst = strconv.AppendUint(dst, uint64(r.Position), 10)
	dst = append(dst, `","organization":"`...)
	dst = append(dst, r.Organization...)
	dst = append(dst, `","streamversion":"`...)
	dst = strconv.AppendUint(dst, r.Version, 10)
	dst = append(dst, `","schema":"`...)
	dst = strconv.AppendUint(dst, uint64(r.Schema), 10)
	dst = append(dst, `","data":`...)
	return append(append(dst, data...), '}'), nil
}

// withoutDigest takes the digest out of an event's data, wherever among the
// outermost members it stands, and leaves the other members as they are written.
func withoutDigest(data []byte) ([]byte, error) {
	if !bytes.Contains(data, []byte(digestMember)) {
		return data, nil
	}
	d := jsontext.NewDecoder(bytes.NewReader(data))
	if t, err := d.ReadToken(); err != nil || t.Kind() != '{' {
		return nil, fmt.Errorf("its data is no JSON object (%w)", err)
	}
	kept := append(make([]byte, 0, len(data)), '{')
	for d.PeekKind() == '"' {
		name, err := d.ReadToken()
		if err != nil {
			return nil, fmt.Errorf("read its data: %w", err)
		}
		text := name.String()
		value, err := d.ReadValue()
		if err != nil {
			return nil, fmt.Errorf("read its data: %w", err)
		}
		if text == digestMember {
			continue
		}
		if len(kept) > 1 {
			kept = append(kept, ',')
		}
		if kept, err = jsontext.AppendQuote(kept, text); err != nil {
			return nil, fmt.Errorf("read its data: %w", err)
		}
		kept = append(append(kept, ':'), value...)
	}
	if _, err := d.ReadToken(); err != nil {
		return nil, fmt.Errorf("read its data: %w", err)
	}
	return append(kept, '}'), nil
}
