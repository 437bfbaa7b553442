package limit

import (
	"context"
	"math"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"

	"imapgate/internal/identity"
)

const (
	// burst is how many seconds' worth may be used at once. Use beyond it has to wait.
	burst = 2
	// maxUploaders bounds the users whose uploads of the day are known. Redis knows the
	// others, if there is one.
	maxUploaders = 32 << 10
	// maxRates bounds the addresses whose rate of new connections is known. The others have a
	// full bucket.
	maxRates = 16 << 10
)

// Quota is what one user may still use. All sessions of the user at this gateway, at listeners
// with the same settings, share it. Its methods may be called by any goroutine.
type Quota struct {
	// Set once.
	limiter           *Limiter
	key               quotaKey
	commands, in, out *rate.Limiter // nil: no bound

	sessions int // guarded by quotas.mu
}

// quotaKey is a user and the bounds of a listener.
type quotaKey struct {
	user identity.User
	Quotas
}

// upload is what a user uploads on a day.
type upload struct {
	user identity.User
	day  string
}

// quotas has the quotas of the users who have sessions, the uploads of the day, and the token
// buckets of new connections.
type quotas struct {
	// Guarded by mu.
	mu      sync.Mutex
	users   map[quotaKey]*Quota // as many as there are sessions at most
	uploads *simplelru.LRU[upload, int64]
	buckets *simplelru.LRU[netip.Prefix, *rate.Limiter]
}

func newQuotas() *quotas {
	q := &quotas{users: make(map[quotaKey]*Quota)}
	q.uploads, _ = simplelru.NewLRU[upload, int64](maxUploaders, nil) // fails only for a size below 1
	q.buckets, _ = simplelru.NewLRU[netip.Prefix, *rate.Limiter](maxRates, nil)
	return q
}

// acquireQuota returns the quota of a user for one session. quotas.release gives it back.
func (l *Limiter) acquireQuota(u identity.User, s Quotas) *Quota {
	l.quotas.mu.Lock()
	defer l.quotas.mu.Unlock()
	k := quotaKey{u, s}
	q := l.quotas.users[k]
	if q == nil {
		q = &Quota{limiter: l, key: k, commands: bucket(s.CommandsPerSecond), in: bucket(s.BytesInPerSecond), out: bucket(s.BytesOutPerSecond)}
		l.quotas.users[k] = q
	}
	q.sessions++
	return q
}

func bucket(perSecond int) *rate.Limiter {
	if perSecond == 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(perSecond), burst*perSecond)
}

// release ends a session. The next session of the user has a full quota, as it would be after
// burst seconds.
func (t *quotas) release(q *Quota) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if q.sessions--; q.sessions == 0 {
		delete(t.users, q.key)
	}
}

// Command counts a command, and returns how long it has to wait.
func (q *Quota) Command() time.Duration { return spend(q.commands, 1) }

// Read counts n bytes from a client, and returns how long to leave the next ones unread.
func (q *Quota) Read(n int) time.Duration { return spend(q.in, n) }

// Written counts n bytes to a client, and returns how long the next ones have to wait.
func (q *Quota) Written(n int) time.Duration { return spend(q.out, n) }

// spend takes n tokens, future ones included, and returns when the last will be there.
func spend(l *rate.Limiter, n int) (wait time.Duration) {
	if l == nil {
		return 0
	}
	now := time.Now()
	for most := l.Burst(); n > 0; n -= most {
		wait = l.ReserveN(now, min(n, most)).DelayFrom(now)
	}
	return wait
}

// today names the day of uploads.
func today(u identity.User) upload { return upload{u, time.Now().UTC().Format(time.DateOnly)} }

// Upload counts a message of n bytes, and reports whether the day has room for it. It asks
// Redis once, for no longer than cluster.Wait.
func (q *Quota) Upload(ctx context.Context, n int64) bool {
	limit := int64(q.key.AppendBytesPerDay)
	if limit == 0 { // at another listener it counts
		limit = math.MaxInt64
	}
	return q.upload(ctx, n, limit)
}

// ForceUpload counts bytes of messages that are on their way already.
func (q *Quota) ForceUpload(n int64) { q.upload(context.Background(), n, math.MaxInt64) }

func (q *Quota) upload(ctx context.Context, n, limit int64) bool {
	l, of := q.limiter, today(q.key.user)
	if !l.countsUploads {
		return true
	}
	if !l.quotas.addUpload(of, n, limit) {
		return false
	}
	if l.cluster == nil {
		return true
	}
	fits, sum, err := l.cluster.Upload(ctx, of.user, of.day, n, limit)
	if err != nil {
		return true // what is known here has decided
	}
	if !fits {
		l.quotas.addUpload(of, -n, limit)
	}
	l.quotas.raiseUpload(of, sum)
	return fits
}

// addUpload adds n bytes to the uploads of a user's day unless they would exceed limit.
func (t *quotas) addUpload(of upload, n, limit int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	sum, _ := t.uploads.Get(of)
	if n > limit-sum {
		return false
	}
	t.uploads.Add(of, sum+n)
	return true
}

// raiseUpload sets the uploads of a user's day to the sum of all gateways. What is known here
// may be more, after Redis was down.
func (t *quotas) raiseUpload(of upload, sum int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	known, _ := t.uploads.Get(of)
	t.uploads.Add(of, max(known, sum))
}

// uploadedToday returns a user's uploads, at all gateways or without Redis here.
func (l *Limiter) uploadedToday(ctx context.Context, u identity.User) (int64, error) {
	of := today(u)
	if l.cluster != nil {
		return l.cluster.Uploaded(ctx, of.user, of.day)
	}
	l.quotas.mu.Lock()
	defer l.quotas.mu.Unlock()
	sum, _ := l.quotas.uploads.Peek(of)
	return sum, nil
}

// allow reports whether a network may have one more connection now. Listeners differ in
// perMinute and burst and share the bucket.
func (t *quotas) allow(net netip.Prefix, perMinute, burst int) bool {
	if perMinute == 0 {
		return true
	}
	limit := rate.Limit(float64(perMinute) / time.Minute.Seconds())
	burst = max(1, burst) // with none no client would ever be admitted
	t.mu.Lock()
	defer t.mu.Unlock()
	l, ok := t.buckets.Get(net)
	if !ok {
		l = rate.NewLimiter(limit, burst)
		t.buckets.Add(net, l)
	}
	if l.Limit() != limit || l.Burst() != burst {
		l.SetLimit(limit)
		l.SetBurst(burst)
	}
	return l.Allow()
}
