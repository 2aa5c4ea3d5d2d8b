package main

import (
	"context"
	"time"

	"keyledger/audit"
	"keyledger/domain"
	keyhttp "keyledger/http"
)

// auditLog is what the server tells of the past.
func (n *node) auditLog() keyhttp.AuditLog {
	return auditLog{&audit.Trail{Pool: n.pool, Store: n.store, CatchUp: n.keylist.CatchUp, CatchUpParts: n.places.CatchUp}}
}

// auditLog hands the auditor's answers on in the server's words.
type auditLog struct{ trail *audit.Trail }

func (l auditLog) Events(ctx context.Context, q keyhttp.AuditQuery) ([]keyhttp.AuditEntry, error) {
	events, err := l.trail.Events(ctx, audit.TrailQuery(q))
	if err != nil {
		return nil, err
	}
	entries := make([]keyhttp.AuditEntry, len(events))
	for i, e := range events {
		entries[i] = keyhttp.AuditEntry{
			Position: e.Position, ID: e.ID, RecordedAt: e.RecordedAt, Event: e.Event, Metadata: e.EventMetadata, Text: audit.Sentence(e), Erased: e.Erased,
		}
	}
	return entries, nil
}

func (l auditLog) KeysAt(ctx context.Context, organization domain.OrganizationID, at string, now time.Time) ([]domain.Key, time.Time, error) {
	return l.trail.KeysAt(ctx, organization, at, now)
}
