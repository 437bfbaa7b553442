package limit

import (
	"context"
	"math"
	"time"

	"imapgate/internal/identity"
	"imapgate/internal/limit/quota"
)

// Quota is what one user may still use. Its methods may be called by any goroutine.
type Quota struct {
	*quota.Quota
	limiter *Limiter
}

// Quota returns what the user of a Conn with a session may use, until Close; nil if there is
// no limit.
func (c *Conn) Quota() *Quota {
	l, s := c.limiter, c.limits.UserQuota
	if c.stage != loggedIn || s == (Quotas{}) && !l.countsUploads {
		return nil
	}
	if c.quota == nil {
		c.quota = &Quota{l.quotas.Acquire(c.user, s), l}
	}
	return c.quota
}

func (c *Conn) releaseQuota() {
	if c.quota != nil {
		c.limiter.quotas.Release(c.quota.Quota)
		c.quota = nil
	}
}

func today() string { return time.Now().UTC().Format(time.DateOnly) }

// Upload counts a message of n bytes, and reports whether the day has room for it. It asks
// Redis once, for no longer than cluster.Wait.
func (q *Quota) Upload(ctx context.Context, n int64) bool {
	l, u, limit, day := q.limiter, q.User(), int64(q.Settings().AppendBytesPerDay), today()
	if !l.countsUploads {
		return true
	}
	if limit == 0 { // at another listener it counts
		limit = math.MaxInt64
	}
	if !l.quotas.AddUpload(u, day, n, limit) {
		return false
	}
	if l.cluster == nil {
		return true
	}
	fits, sum, err := l.cluster.Upload(ctx, u, day, n, limit)
	if err != nil {
		return true // what is known here has decided
	}
	if !fits {
		l.quotas.AddUpload(u, day, -n, limit)
	}
	l.quotas.RaiseUpload(u, day, sum)
	return fits
}

// ForceUpload counts bytes of messages that are on their way already.
func (q *Quota) ForceUpload(n int64) {
	l := q.limiter
	if !l.countsUploads {
		return
	}
	l.quotas.AddUpload(q.User(), today(), n, math.MaxInt64)
	if l.cluster != nil {
		_, _, _ = l.cluster.Upload(context.Background(), q.User(), today(), n, math.MaxInt64) // this gateway knows it too
	}
}

// uploadedToday returns a user's uploads, at all gateways or without Redis here.
func (l *Limiter) uploadedToday(ctx context.Context, u identity.User) (int64, error) {
	if l.cluster == nil {
		return l.quotas.Uploaded(u, today()), nil
	}
	return l.cluster.Uploaded(ctx, u, today())
}
