package limit

import (
	"context"
	"time"

	"imapgate/internal/sleep"
)

const (
	// farewellTime is how long a gateway that stops may take to tell Redis of the
	// sessions that have ended with it.
	farewellTime = time.Second
	// farewellPause is how often it looks whether the last of them has.
	farewellPause = 10 * time.Millisecond
)

// farewell is the end of Run. Sessions that a stop has cut leave at the last moment:
// untold, they would count at the other gateways for a lease, to which everybody
// comes back at once. The others hear of it when the last visit has left, and then
// that this gateway is gone.
func (g *Limiter) farewell() {
	s := g.shared
	ctx, cancel := context.WithTimeout(context.Background(), farewellTime)
	defer cancel()
	for !g.settled(ctx) && sleep.For(ctx, farewellPause) == nil {
		continue
	}
	if ctx.Err() != nil { // away, or somebody stays: one more word, or a lease
		var last context.CancelFunc
		ctx, last = context.WithTimeout(context.Background(), s.wait)
		defer last()
	}
	_, _ = s.ask(ctx, call{s.scripts.part, []string{s.keys.gateways()}, []any{s.self}}) // else after a lease
}

// settled writes what there is to write, and says whether nothing can follow: who
// is still in has a place among all.
func (g *Limiter) settled(ctx context.Context) bool {
	for notes := g.places.batch(); len(notes) > 0; notes = g.places.batch() {
		if !g.write(ctx, notes) {
			return false
		}
	}
	return g.places.quiet()
}

// quiet says whether nobody has a shared place, and nothing is to be told of one.
func (p *places) quiet() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held[place{kind: allSessions}] == nil && len(p.dirty) == 0
}

// partScript takes a gateway off the list of the living.
const partScript = `return redis.call('ZREM', KEYS[1], ARGV[1])`
