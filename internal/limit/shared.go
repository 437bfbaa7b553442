package limit

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"imapgate/internal/identity"
)

// ioTime is the longest that a login waits for Redis.
const ioTime = 250 * time.Millisecond

var (
	errAway = errors.New("limit: Redis does not answer") // in its place, while it is left alone
	errForm = errors.New("limit: Redis has answered in a form that is not ours")
	// errSpent is the cause of a context that ends because a login has waited for
	// Redis as long as it may.
	errSpent = errors.New("limit: this login has waited for Redis long enough")
)

// shared is the way to Redis, and this gateway's place in it.
type shared struct {
	// Set once.
	client  redis.UniversalClient
	keys    keys
	scripts *scripts
	self    string        // this gateway, for as long as it runs
	lease   time.Duration // Config.HeartbeatTTL
	wait    time.Duration // for one trip
	tell    func(up bool, why error)
	work    chan struct{} // there are dirty places

	// together is how many keys one script may have: only one in a cluster, where
	// each may be at another server.
	together int

	// Guarded by mu.
	mu     sync.Mutex
	health health
	from   []any // what every lease begins with: leaseOf the others, as of the last beat
	alive  int   // how many gateways there were then, with this one
}

func newShared(cfg *Config, client redis.UniversalClient, tell func(bool, error)) *shared {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	s := &shared{
		client: client, keys: keys{cfg.Prefix}, scripts: newScripts(), self: hex.EncodeToString(id[:]), lease: cfg.HeartbeatTTL, wait: cfg.wait, tell: tell,
		work: make(chan struct{}, 1), together: 1, health: health{ailing: make(map[string]uint64)},
	}
	if _, one := client.(*redis.Client); one {
		s.together = leaseBatch
	}
	s.from = s.leaseOf("*") // everybody, until it is known who
	return s
}

// leaseOf is what a lease begins with: who asks, and whom of the others to believe.
func (s *shared) leaseOf(live ...any) []any {
	return append([]any{s.self, s.lease.Milliseconds(), (believedLeases * s.lease).Milliseconds(), len(live)}, live...)
}

// share is what a limit of all gateways is here, of which so much was used when
// they last counted together: the whole of it while they do, and while they cannot,
// that and a part of the rest, by how many there were. A limit never becomes 0, which
// would be none.
func (g *Limiter) share(limit, used int) int {
	s := g.shared
	if s == nil || limit == 0 {
		return limit
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.health.down() {
		return limit
	}
	used = min(used, limit)
	return max(1, used+(limit-used)/max(1, s.alive))
}

// wake has the dirty places written.
func (s *shared) wake() {
	select {
	case s.work <- struct{}{}:
	default: // it is awake
	}
}

// call is one script to be run.
type call struct {
	script *script
	keys   []string
	args   []any
}

// ask runs calls in one trip and gives a reply for each, with an error of its own;
// none when Redis was not asked. Its own error is the first of those by which Redis, or
// a part of it, is away or refuses to work. A ctx that ends is no fault of Redis.
func (s *shared) ask(ctx context.Context, calls ...call) ([]*redis.Cmd, error) {
	writes := slices.ContainsFunc(calls, func(c call) bool { return !c.script.reads })
	return s.trip(ctx, writes, func(ctx context.Context) ([]*redis.Cmd, error) { return s.send(ctx, s.client.Pipeline(), calls) })
}

// order runs one call for whoever must know that it was done.
func (s *shared) order(ctx context.Context, c call) error {
	r, err := s.ask(ctx, c)
	if err == nil {
		err = r[0].Err()
	}
	var reply redis.Error
	switch {
	case errors.Is(err, errAway):
		return s.away()
	case err == nil, errors.As(err, &reply):
		return err
	}
	return fmt.Errorf("%w; it may have been done all the same", err)
}

// away is errAway with the reason.
func (s *shared) away() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.health.why == nil {
		return errAway
	}
	return fmt.Errorf("%w: %w", errAway, s.health.why)
}

// answered says whether an error is one of Redis at work, with a key that is none of
// ours or no room for a ban.
func answered(err error) bool {
	return redis.HasErrorPrefix(err, "NOROOM") || redis.HasErrorPrefix(err, "WRONGTYPE") ||
		redis.HasErrorPrefix(err, "ERR") && strings.Contains(err.Error(), "WRONGTYPE") // before Redis 7
}

// trip is one use of Redis, which reads alone or writes too, as far as its health allows
// and bounded in time.
func (s *shared) trip(ctx context.Context, writes bool, use func(context.Context) ([]*redis.Cmd, error)) ([]*redis.Cmd, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if !s.allowed(writes) {
		return nil, errAway
	}
	limited, cancel := context.WithTimeout(ctx, s.wait)
	defer cancel()
	replies, err := use(limited)
	if ctx.Err() == nil || errors.Is(context.Cause(ctx), errSpent) {
		s.note(err, writes)
	}
	return replies, err
}

func (s *shared) allowed(writes bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if writes {
		return !s.health.closed()
	}
	return s.health.reads.Allow(time.Now())
}

// note takes down how a trip has ended.
func (s *shared) note(err error, writes bool) {
	s.change(err, func(h *health) {
		var t *trouble
		if errors.As(err, &t) {
			h.failed(t, writes, time.Now(), s.keys.probe)
			return
		}
		h.answered(writes)
	})
}

// send adds calls to what a pipeline has already, and sends it. A server that
// does not know a script yet is sent its text, in a second trip.
func (s *shared) send(ctx context.Context, pipe redis.Pipeliner, calls []call) ([]*redis.Cmd, error) {
	replies := make([]*redis.Cmd, len(calls))
	for i, c := range calls {
		replies[i] = pipe.EvalSha(ctx, c.script.hash, c.keys, c.args...)
	}
	_, _ = pipe.Exec(ctx) // each reply has its own error
	again := s.client.Pipeline()
	for i, c := range calls {
		if redis.HasErrorPrefix(replies[i].Err(), "NOSCRIPT") {
			replies[i] = again.Eval(ctx, c.script.text, c.keys, c.args...)
		}
	}
	if again.Len() > 0 {
		_, _ = again.Exec(ctx)
	}
	var failed *trouble
	for i, r := range replies {
		if err := r.Err(); err != nil && !answered(err) {
			failed = failed.add(calls[i].keys[0], err)
		}
	}
	return replies, failed.orNil()
}

// keys makes the names of everything there is in Redis. No key can become
// another: a user has no colon, and a network, which may, comes last.
type keys struct{ prefix string }

func (k keys) gateways() string             { return k.prefix + "limit:gateways" }
func (k keys) rate(net netip.Prefix) string { return k.prefix + "limit:rate:" + net.String() }
func (k keys) failedNet(net netip.Prefix) string {
	return k.prefix + "limit:failed:net:" + net.String()
}
func (k keys) failedUser(u identity.User) string { return k.prefix + "limit:failed:user:" + u.String() }
func (k keys) failedPair(at pair) string {
	return k.prefix + "limit:failed:pair:" + at.user.String() + ":" + at.net.String()
}
func (k keys) good(u identity.User) string   { return k.prefix + "limit:good:" + u.String() }
func (k keys) lived(net netip.Prefix) string { return k.prefix + "limit:lived:" + net.String() }

// The bans are one thing, and share a slot of a cluster.
func (k keys) bans() []string {
	return []string{k.prefix + "ban:{all}:nets", k.prefix + "ban:{all}:ends", k.prefix + "ban:{all}:changes", k.prefix + "ban:{all}:count"}
}

// sessions is the key of a shared place.
func (k keys) sessions(at place) string {
	switch at.kind {
	case allSessions:
		return k.prefix + "limit:sessions:all"
	case userSessions:
		return k.prefix + "limit:sessions:user:" + at.user.String()
	case pairSessions:
		return k.prefix + "limit:sessions:pair:" + at.user.String() + ":" + at.net.String()
	case addressSessions:
		return k.prefix + "limit:sessions:net:" + at.net.String()
	}
	panic("limit: a place that is not shared has no key")
}
