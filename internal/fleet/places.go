package fleet

import (
	"context"
	_ "embed"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"imapgate/internal/breaker"
	"imapgate/internal/identity"
)

const (
	// placeTTL is how long a place lasts after the user's last connection.
	placeTTL = 60 * time.Second
	// claimTimeout bounds the time that a login waits for Redis.
	claimTimeout = 250 * time.Millisecond
	// maxEmptyPlaces bounds the places without a connection that are remembered here.
	maxEmptyPlaces = 100_000
	renewBatch     = 500
)

//go:embed scripts/claim.lua
var claimText string

//go:embed scripts/renew.lua
var renewText string

// The scripts. Constant.
var (
	claimScript = redis.NewScript(claimText)
	renewScript = redis.NewScript(renewText)
)

// placeKey names the place of a user at a backend.
type placeKey struct {
	backend string
	user    identity.User
}

// place is where the connections of a user are.
type place struct {
	address     string
	connections int
	emptySince  time.Time // when the last connection ended
}

// places are the users of this gateway and their addresses.
type places struct {
	mu      sync.Mutex
	byUser  map[placeKey]*place // Guarded by mu. As many as there are connections, and maxEmptyPlaces.
	empty   int                 // Guarded by mu. Places without a connection.
	breaker breaker.Breaker     // Guarded by mu. Of claims in Redis.
}

func newPlaces() places { return places{byUser: make(map[placeKey]*place)} }

func (f *Fleet) placeKey(k placeKey) string {
	return f.Prefix + "place:" + k.backend + ":" + k.user.String()
}

// Claim returns the address of a backend at which the user's sessions of the fleet are, if it
// is one of candidates or keep; otherwise it records and returns the first of candidates. It
// returns "" if there is none. The caller must call release once, when the connection there
// has ended. While Redis is down, only the connections of this gateway count.
func (f *Fleet) Claim(ctx context.Context, backend string, user identity.User, candidates, keep []string) (address string, release func()) {
	key := placeKey{backend, user}
	address, ok := f.claimInRedis(ctx, key, candidates, keep)
	if !ok {
		address = f.places.claim(key, candidates, keep)
	}
	if address == "" {
		return "", func() {}
	}
	f.places.enter(key, address)
	return address, sync.OnceFunc(func() { f.places.leave(key) })
}

// claimInRedis is Claim for the whole fleet; ok is false if Redis was not asked or did not
// answer.
func (f *Fleet) claimInRedis(ctx context.Context, key placeKey, candidates, keep []string) (address string, ok bool) {
	if f.redis == nil || !f.places.mayAsk() {
		return "", false
	}
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	args := []any{placeTTL.Milliseconds(), len(candidates)}
	for _, c := range append(slices.Clone(candidates), keep...) {
		args = append(args, c)
	}
	address, err := claimScript.Run(ctx, f.redis, []string{f.placeKey(key)}, args...).Text()
	f.places.record(err)
	if err != nil || address != "" && !slices.Contains(candidates, address) && !slices.Contains(keep, address) {
		return "", false
	}
	return address, true
}

func (p *places) mayAsk() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.breaker.Allow(time.Now())
}

func (p *places) record(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.breaker.RecordFailure(time.Now())
		return
	}
	p.breaker.RecordSuccess()
}

// claim returns the address for a user as far as this gateway knows.
func (p *places) claim(key placeKey, candidates, keep []string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	known := p.byUser[key]
	isFresh := known != nil && (known.connections > 0 || time.Since(known.emptySince) < placeTTL)
	switch {
	case isFresh && (slices.Contains(candidates, known.address) || slices.Contains(keep, known.address)):
		return known.address
	case len(candidates) == 0:
		return ""
	}
	return candidates[0]
}

// enter counts a connection of a user at an address.
func (p *places) enter(key placeKey, address string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	known := p.byUser[key]
	if known == nil {
		known = &place{}
		p.byUser[key] = known
	} else if known.connections == 0 {
		p.empty--
	}
	known.address = address
	known.connections++
}

// leave uncounts a connection of a user.
func (p *places) leave(key placeKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	known := p.byUser[key]
	if known.connections--; known.connections > 0 {
		return
	}
	if p.empty >= maxEmptyPlaces {
		delete(p.byUser, key)
		return
	}
	known.emptySince = time.Now()
	p.empty++
}

// sweep forgets the places whose last connection has ended long ago.
func (p *places) sweep(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, known := range p.byUser {
		if known.connections == 0 && now.Sub(known.emptySince) >= placeTTL {
			delete(p.byUser, key)
			p.empty--
		}
	}
}

// used returns the places with connections.
func (p *places) used() (keys []placeKey, addresses []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, known := range p.byUser {
		if known.connections > 0 {
			keys, addresses = append(keys, key), append(addresses, known.address)
		}
	}
	return keys, addresses
}

// renewPlaces keeps the places of connected users in Redis, and writes those that it has lost.
func (f *Fleet) renewPlaces(ctx context.Context) error {
	keys, addresses := f.places.used()
	for len(keys) > 0 {
		n := min(len(keys), renewBatch)
		if err := f.renewBatch(ctx, keys[:n], addresses[:n]); err != nil {
			return err
		}
		keys, addresses = keys[n:], addresses[n:]
	}
	return nil
}

func (f *Fleet) renewBatch(ctx context.Context, keys []placeKey, addresses []string) error {
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	pipe := f.redis.Pipeline()
	for i, key := range keys {
		renewScript.Eval(ctx, pipe, []string{f.placeKey(key)}, addresses[i], placeTTL.Milliseconds())
	}
	_, err := pipe.Exec(ctx)
	return err
}
