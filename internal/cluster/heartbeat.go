package cluster

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"imapgate/internal/limit/counter"
	"imapgate/internal/sleep"
)

const (
	// heartbeatsPerTTL is how often a gateway reports that it is alive.
	heartbeatsPerTTL = 4
	// signOffTime is how long a gateway that stops waits for the end of its sessions.
	// signOffPause is how often it looks.
	signOffTime  = time.Second
	signOffPause = 10 * time.Millisecond
)

// Run sends heartbeats, writes counts and probes a Redis that has failed, until ctx ends.
func (c *Cluster) Run(ctx context.Context) {
	var all sync.WaitGroup
	all.Go(func() { repeat(ctx, c.TTL/heartbeatsPerTTL, c.heartbeat) })
	all.Go(func() { repeat(ctx, probeInterval, c.heal) })
	all.Go(func() { c.writeCounts(ctx) })
	all.Wait()
}

// repeat runs f every interval until ctx ends.
func repeat(ctx context.Context, interval time.Duration, f func(context.Context)) {
	for ok := ctx.Err() == nil; ok; ok = pause(ctx, interval) {
		f(ctx)
	}
}

// pause waits for d, a fifth more or less, so that gateways do not act together. It reports
// whether ctx has not ended.
func pause(ctx context.Context, d time.Duration) bool {
	return sleep.For(ctx, d*4/5+rand.N(d*2/5+1)) == nil
}

// heartbeat reports that this gateway is alive, and learns which others are. If Redis had
// forgotten this one, all counts are written.
func (c *Cluster) heartbeat(ctx context.Context) {
	words, err := c.run(ctx, Call{"heartbeat", []string{c.keys.gateways()}, []any{c.self, c.TTL.Milliseconds()}}).Slice()
	if err != nil || len(words) == 0 {
		return
	}
	c.mu.Lock()
	c.alive, c.fleet = words[1:], len(words)
	c.mu.Unlock()
	age := renewLeases * c.TTL
	if words[0] == int64(0) {
		age = 0
	}
	c.counts.renew(age)
	c.counts.wake() // also for what could not be written before
}

// heal probes what has failed, and sends a heartbeat when all of it works again.
func (c *Cluster) heal(ctx context.Context) {
	if c.probe(ctx) {
		c.heartbeat(ctx)
	}
}

// Sessions returns a count over all gateways.
func (c *Cluster) Sessions(ctx context.Context, of counter.Key) (int, error) {
	alive, err := c.run(ctx, Call{"alive", []string{c.keys.gateways()}, []any{c.TTL.Milliseconds()}}).Slice()
	if err != nil {
		return 0, err
	}
	args := append([]any{c.TTL.Milliseconds(), (believedLeases * c.TTL).Milliseconds()}, alive...)
	return c.run(ctx, Call{"sessions", []string{c.keys.sessions(of)}, args}).Int()
}

// SignOff follows Run when the gateway stops. It waits for the last sessions to leave, for at
// most signOffTime, and removes this gateway: otherwise they would count at the others for a
// TTL, to which all of its clients connect at once.
func (c *Cluster) SignOff() {
	ctx, cancel := context.WithTimeout(context.Background(), signOffTime)
	defer cancel()
	for c.flush(ctx) && !c.Idle() && pause(ctx, signOffPause) {
		continue
	}
	c.run(context.Background(), Call{"signoff", []string{c.keys.gateways()}, []any{c.self}}) // otherwise after a TTL
}
