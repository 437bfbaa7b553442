package proxy

import (
	"context"
	"time"

	"imapgate/internal/audit"
	"imapgate/internal/event"
	"imapgate/internal/limit"
)

// quota is a user's quota for one session. It records throttled and refused use in the
// metrics and the audit log.
type quota struct {
	*limit.Quota
	session *session
}

// quota returns nil for a user without a quota.
func (s *session) quota() *quota {
	b := s.limits.Quota()
	if b == nil {
		return nil
	}
	return &quota{b, s}
}

// Command and the methods below add records to those of limit.Quota.
func (q *quota) Command() time.Duration {
	return q.recordThrottle(event.LimitCommands, q.Quota.Command())
}

func (q *quota) Read(n int) time.Duration {
	return q.recordThrottle(event.LimitBytesIn, q.Quota.Read(n))
}

func (q *quota) Written(n int) time.Duration {
	return q.recordThrottle(event.LimitBytesOut, q.Quota.Written(n))
}

func (q *quota) Upload(ctx context.Context, n int64) bool {
	ok := q.Quota.Upload(ctx, n)
	if !ok {
		q.session.server.deps.Metrics.Limits.CountRefusal(event.LimitAppend)
		q.recordHit(event.LimitAppend, event.ResultRefused)
	}
	return ok
}

// recordThrottle records a wait, if there is one, and returns it.
func (q *quota) recordThrottle(limitName event.Limit, wait time.Duration) time.Duration {
	if wait > 0 {
		q.session.server.deps.Metrics.Limits.CountThrottle(limitName)
		q.recordHit(limitName, event.ResultSlowed)
	}
	return wait
}

func (q *quota) recordHit(limitName event.Limit, measure event.Result) {
	s := q.session
	_ = s.server.deps.Audit.LimitHit(&s.client, &audit.LimitHit{Limit: limitName, Subject: s.live.Info().User.String(), Result: measure})
}
