// Package quota bounds rates: the new connections of an address, the commands and bytes per
// second of a user, and the uploads of a user's day.
package quota

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"

	"imapgate/internal/identity"
)

// Settings are what the sessions of one user may use together: commands and bytes per second
// at each gateway, uploads per UTC day at all of them. 0 is no bound.
type Settings struct {
	CommandsPerSecond int `yaml:"commands_per_second" default:"0" min:"0" max:"1000000" reload:"live" doc:"Commands, on each gateway; twice as many in a burst. In the modes reuse and resume only: splice does not parse commands. 0: no bound, here and below."`
	BytesInPerSecond  int `yaml:"bytes_in_per_second" default:"0" min:"0" max:"1000000000000" reload:"live" doc:"Bytes from the user's clients, on each gateway; twice as many in a burst."`
	BytesOutPerSecond int `yaml:"bytes_out_per_second" default:"0" min:"0" max:"1000000000000" reload:"live" doc:"Bytes to the user's clients, on each gateway; twice as many in a burst."`
	AppendBytesPerDay int `yaml:"append_bytes_per_day" default:"0" min:"0" max:"1000000000000000" reload:"live" doc:"Bytes of messages that the user's clients may upload (APPEND, REPLACE) in a day (UTC), on all gateways together. Beyond it they get NO [OVERQUOTA]. In the modes reuse and resume only." listener:"As in limits.user_quota. If any listener has a bound, uploads at listeners without one count too."`
}

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
	key               key
	commands, in, out *rate.Limiter // nil: no bound

	sessions int // guarded by Table.mu
}

// User returns whose quota it is.
func (q *Quota) User() identity.User { return q.key.user }

// Settings returns its bounds.
func (q *Quota) Settings() Settings { return q.key.Settings }

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

// key is a user and the bounds of a listener.
type key struct {
	user identity.User
	Settings
}

// uploads are those of a user on a day.
type uploads struct {
	day string
	sum int64
}

// Table has the quotas of the users who have sessions, and the uploads of the day.
type Table struct {
	// Guarded by mu.
	mu     sync.Mutex
	quotas map[key]*Quota // as many as there are sessions at most
	sums   *simplelru.LRU[identity.User, uploads]
}

// New returns an empty Table.
func New() *Table {
	sums, err := simplelru.NewLRU[identity.User, uploads](maxUploaders, nil)
	if err != nil {
		panic(err) // only for a size below 1
	}
	return &Table{quotas: make(map[key]*Quota), sums: sums}
}

// Acquire returns the quota of a user for one session. Release gives it back.
func (t *Table) Acquire(u identity.User, s Settings) *Quota {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := key{u, s}
	q := t.quotas[k]
	if q == nil {
		q = &Quota{key: k, commands: bucket(s.CommandsPerSecond), in: bucket(s.BytesInPerSecond), out: bucket(s.BytesOutPerSecond)}
		t.quotas[k] = q
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

// Release ends a session. The next session of the user has a full quota, as it would be after
// burst seconds.
func (t *Table) Release(q *Quota) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if q.sessions--; q.sessions == 0 {
		delete(t.quotas, q.key)
	}
}

// Len returns the number of quotas in use.
func (t *Table) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.quotas)
}

// AddUpload adds n bytes to the uploads of a user's day unless they would exceed limit.
func (t *Table) AddUpload(u identity.User, day string, n, limit int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	known, _ := t.sums.Get(u)
	if known.day != day {
		known = uploads{day: day}
	}
	if n > limit-known.sum {
		return false
	}
	known.sum += n
	t.sums.Add(u, known)
	return true
}

// RaiseUpload sets the uploads of a user's day to the sum of all gateways. What is known here
// may be more, after Redis was down.
func (t *Table) RaiseUpload(u identity.User, day string, sum int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if known, _ := t.sums.Get(u); known.day != day || known.sum < sum {
		t.sums.Add(u, uploads{day, sum})
	}
}

// Uploaded returns the uploads of a user's day that are known here.
func (t *Table) Uploaded(u identity.User, day string) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if known, _ := t.sums.Peek(u); known.day == day {
		return known.sum
	}
	return 0
}

// Rates are the token buckets of new connections.
type Rates struct {
	// Set once.
	seed maphash.Seed

	// Guarded by mu.
	mu      sync.Mutex
	buckets *simplelru.LRU[uint64, *rate.Limiter]
}

// NewRates returns full buckets.
func NewRates() *Rates {
	buckets, err := simplelru.NewLRU[uint64, *rate.Limiter](maxRates, nil)
	if err != nil {
		panic(err) // only for a size below 1
	}
	return &Rates{seed: maphash.MakeSeed(), buckets: buckets}
}

// Allow reports whether a network may have one more connection now. Listeners differ in
// perMinute and burst and share the bucket.
func (r *Rates) Allow(net netip.Prefix, perMinute, burst int) bool {
	if perMinute == 0 {
		return true
	}
	limit := rate.Limit(float64(perMinute) / time.Minute.Seconds())
	burst = max(1, burst) // with none no client would ever be admitted
	key := maphash.Comparable(r.seed, net)
	r.mu.Lock()
	defer r.mu.Unlock()
	l, ok := r.buckets.Get(key)
	if !ok {
		l = rate.NewLimiter(limit, burst)
		r.buckets.Add(key, l)
	}
	if l.Limit() != limit || l.Burst() != burst {
		l.SetLimit(limit)
		l.SetBurst(burst)
	}
	return l.Allow()
}
