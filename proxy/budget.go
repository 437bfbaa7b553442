package proxy

import (
	"context"
	"time"

	"imapgate/internal/audit"
	"imapgate/internal/limit"
)

// budget is what a session's user may use. What it holds up or refuses is on
// record; those who relay the session know nothing of that.
type budget struct {
	*limit.Budget
	of *loggedIn
}

// budget is nil for a user without bounds.
func (l *loggedIn) budget() *budget {
	b := l.visit.Budget()
	if b == nil {
		return nil
	}
	return &budget{b, l}
}

// Command is limit.Budget's, as the others are.
func (b *budget) Command() time.Duration { return b.slowed(audit.LimitCommands, b.Budget.Command()) }

func (b *budget) Read(n int) time.Duration { return b.slowed(audit.LimitBytesIn, b.Budget.Read(n)) }

func (b *budget) Written(n int) time.Duration {
	return b.slowed(audit.LimitBytesOut, b.Budget.Written(n))
}

func (b *budget) Upload(ctx context.Context, n int64) bool {
	ok := b.Budget.Upload(ctx, n)
	if !ok {
		b.of.server.rooms.Metrics.Limits.Refused(string(audit.LimitAppend))
		b.hit(audit.LimitAppend, audit.Refused)
	}
	return ok
}

// slowed passes a wait on, and writes down that there is one.
func (b *budget) slowed(by audit.Limit, wait time.Duration) time.Duration {
	if wait > 0 {
		b.of.server.rooms.Metrics.Limits.HeldUp(string(by))
		b.hit(by, audit.Slowed)
	}
	return wait
}

func (b *budget) hit(by audit.Limit, did audit.Measure) {
	l := b.of
	_ = l.server.rooms.Audit.LimitHit(&l.who, &audit.Hit{Limit: by, Subject: l.session.User.String(), Measure: did})
}
