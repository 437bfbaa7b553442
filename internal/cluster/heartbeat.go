package cluster

import (
	"context"
	"sync"
	"time"
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
	all.Go(func() { c.sendHeartbeats(ctx) })
	all.Go(func() { c.writeCounts(ctx) })
	all.Go(func() { c.heal(ctx) })
	all.Wait()
}

// sendHeartbeats ends with ctx.
func (c *Cluster) sendHeartbeats(ctx context.Context) {
	for ok := ctx.Err() == nil; ok; ok = pause(ctx, c.TTL/heartbeatsPerTTL) {
		c.heartbeat(ctx)
	}
}

// heartbeat reports that this gateway is alive, and learns which others are. If Redis had
// forgotten this one, all counts are written.
func (c *Cluster) heartbeat(ctx context.Context) {
	r, err := c.askOne(ctx, Call{"heartbeat", []string{c.keys.gateways()}, []any{c.self, c.TTL.Milliseconds()}})
	if err != nil {
		return
	}
	words, err := r.Slice()
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

// writeCounts writes dirty counts as soon as there are any, and those that could not be
// written with the next heartbeat. It ends with ctx.
func (c *Cluster) writeCounts(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-c.counts.work:
		case <-ctx.Done():
			return
		}
		if pause(ctx, gather) {
			c.flush(ctx)
		}
	}
}

// heal probes what has failed until it works again, and then sends a heartbeat. It ends with
// ctx.
func (c *Cluster) heal(ctx context.Context) {
	for ok := ctx.Err() == nil; ok; ok = pause(ctx, probeInterval) {
		if c.probe(ctx) {
			c.heartbeat(ctx)
		}
	}
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
	last, cancel := context.WithTimeout(context.Background(), c.Wait)
	defer cancel()
	_, _ = c.askOne(last, Call{"signoff", []string{c.keys.gateways()}, []any{c.self}}) // otherwise after a TTL
}
