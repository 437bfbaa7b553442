package pool

import (
	"context"
	"time"

	"imapgate/internal/metrics"
)

// sweepEvery is how soon a connection that the backend closes is missed.
const sweepEvery = time.Second

// keep is the janitor of the connections that wait. It ends when the Pool closes.
func (p *Pool) keep() {
	defer close(p.done)
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-t.C:
			p.sweep(time.Now())
		}
	}
}

// sweep closes what has waited too long or has ended, and keeps the others from
// being logged out. All questions together have the time of one answer: a
// backend that hangs must not hold up the others' end.
func (p *Pool) sweep(now time.Time) {
	ctx, cancel := context.WithDeadline(context.Background(), time.Now().Add(p.cfg.Answer))
	defer cancel()
	for _, h := range p.resting() {
		reason, due := p.due(h, now)
		if !due {
			continue
		}
		if reason == "" {
			reason = p.fit(ctx, h)
		}
		if reason == "" {
			p.put(h)
		} else {
			p.discard(h, reason)
		}
	}
}

// Spare closes the connection that has waited longest, because its descriptor is needed.
// It returns false where none waits.
func (p *Pool) Spare() bool {
	p.mu.Lock()
	front := p.idle.Front()
	if front == nil {
		p.mu.Unlock()
		return false
	}
	h := front.Value.(*held)
	p.take(h)
	p.mu.Unlock()
	p.discard(h, metrics.DiscardDescriptors)
	return true
}

// resting is all that waits now.
func (p *Pool) resting() []*held {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*held, 0, p.idle.Len())
	for e := p.idle.Front(); e != nil; e = e.Next() {
		all = append(all, e.Value.(*held))
	}
	return all
}

// due takes a connection that must be looked after, if it still waits: one that
// is too old, says something, or has been silent for long.
func (p *Pool) due(h *held, now time.Time) (reason string, due bool) {
	says := h.Stirs()
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case h.waiting == nil:
		return "", false
	case now.Sub(h.since) >= p.cfg.ReuseTTL:
		reason = metrics.DiscardTTL
	case h.Age() >= p.cfg.MaxAge:
		reason = metrics.DiscardAge
	case !says && now.Sub(h.heard) < p.cfg.KeepAlive:
		return "", false
	}
	p.take(h)
	return reason, true
}

// wait makes a connection wait from now on.
func (p *Pool) wait(h *held) {
	h.since = time.Now()
	p.put(h)
}

// young says whether a connection has answered so lately that it is taken to be
// alive.
func (p *Pool) young(h *held) bool { return time.Since(h.heard) < p.cfg.NoopAfter }
