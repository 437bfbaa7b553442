package fleet

import (
	"context"
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
	// maxEmptyPlaces bounds the places without a connection that are remembered here.
	maxEmptyPlaces = 100_000
	placesBatch    = 500
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
	usable := slices.Concat(candidates, keep)
	address, isKnown := f.claimInRedis(ctx, key, len(candidates), usable)
	if !isKnown {
		address = f.places.enter(key, usable[:len(candidates)], usable)
	} else if address != "" {
		f.places.enterAt(key, address)
	}
	if address == "" {
		return "", func() {}
	}
	return address, sync.OnceFunc(func() { f.places.leave(key) })
}

// claimInRedis is Claim for the whole fleet, with the candidates first in usable; ok is false if
// Redis was not asked, or did not answer with one of them.
func (f *Fleet) claimInRedis(ctx context.Context, key placeKey, candidates int, usable []string) (address string, ok bool) {
	if f.redis == nil || len(usable) == 0 || !f.places.mayAsk() {
		return "", false
	}
	// A client that leaves must not look like a Redis that does not answer.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), waitTimeout)
	defer cancel()
	args := []any{placeTTL.Milliseconds(), f.places.find(key), candidates}
	for _, a := range usable {
		args = append(args, a)
	}
	address, err := claimScript.Run(ctx, f.redis, []string{f.placeKey(key)}, args...).Text()
	if f.places.record(err) {
		f.Announce() // writes the places that Redis does not know
	}
	if err != nil || address != "" && !slices.Contains(usable, address) {
		return "", false
	}
	return address, true
}

func (p *places) mayAsk() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.breaker.Allow(time.Now())
}

// record records whether Redis has answered, and reports whether it does so again.
func (p *places) record(err error) (isBack bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.breaker.RecordFailure(time.Now())
		return false
	}
	isBack = p.breaker.IsOpen()
	p.breaker.RecordSuccess()
	return isBack
}

// find returns the address of a user as far as this gateway knows, or "".
func (p *places) find(key placeKey) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.findLocked(key)
}

// findLocked is find; mu is held.
func (p *places) findLocked(key placeKey) string {
	known := p.byUser[key]
	if known == nil || known.connections == 0 && time.Since(known.emptySince) >= placeTTL {
		return ""
	}
	return known.address
}

// enter counts a connection of a user where this gateway knows the user to be, if that is one of
// usable, else at the first of candidates. It returns the address, or "" if there is none.
func (p *places) enter(key placeKey, candidates, usable []string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	address := p.findLocked(key)
	if address == "" || !slices.Contains(usable, address) {
		if len(candidates) == 0 {
			return ""
		}
		address = candidates[0]
	}
	p.enterLocked(key, address)
	return address
}

// enterAt counts a connection of a user at an address.
func (p *places) enterAt(key placeKey, address string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.enterLocked(key, address)
}

// enterLocked is enterAt; mu is held.
func (p *places) enterLocked(key placeKey, address string) {
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
		n := min(len(keys), placesBatch)
		if err := f.renewBatch(ctx, keys[:n], addresses[:n]); err != nil {
			return err
		}
		keys, addresses = keys[n:], addresses[n:]
	}
	return nil
}

// renewBatch renews some places. Where another gateway has written another address, this one
// takes it over: it is where the fleet sends the user's next session.
func (f *Fleet) renewBatch(ctx context.Context, keys []placeKey, addresses []string) error {
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	pipe := f.redis.Pipeline()
	replies := make([]*redis.Cmd, len(keys))
	for i, key := range keys {
		replies[i] = renewScript.Eval(ctx, pipe, []string{f.placeKey(key)}, addresses[i], placeTTL.Milliseconds())
	}
	_, err := pipe.Exec(ctx)
	for i, reply := range replies {
		address, replyErr := reply.Text()
		if replyErr != nil {
			continue
		}
		err = nil // a key that anything else was written to does not concern the others
		if address != addresses[i] && len(address) <= maxText {
			f.places.replace(keys[i], addresses[i], address)
		}
	}
	return err
}

// replace changes the address of a user that is still the old one.
func (p *places) replace(key placeKey, old, address string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if known := p.byUser[key]; known != nil && known.address == old {
		known.address = address
	}
}
