package pool

import (
	"context"
	"time"

	"imapgate/internal/metrics"
)

// sweepInterval is how soon a connection that the backend closes is missed.
const sweepInterval = time.Second

// runCleaner is the janitor of the connections that wait. It ends when the Pool closes.
func (p *Pool) runCleaner() {
	defer close(p.done)
	t := time.NewTicker(sweepInterval)
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
	ctx, cancel := context.WithDeadline(context.Background(), time.Now().Add(p.cfg.AnswerTimeout))
	defer cancel()
	for _, pc := range p.idleConns() {
		reason, due := p.takeIfDue(pc, now)
		if !due {
			continue
		}
		if reason == "" {
			reason = p.validate(ctx, pc)
		}
		if reason == "" {
			p.addIdle(pc)
		} else {
			p.discard(pc, reason)
		}
	}
}

// EvictOldest closes the connection that has waited longest, because its descriptor is needed.
// It returns false where none waits.
func (p *Pool) EvictOldest() bool {
	p.mu.Lock()
	front := p.idle.Front()
	if front == nil {
		p.mu.Unlock()
		return false
	}
	pc := front.Value.(*pooledConn)
	p.removeIdle(pc)
	p.mu.Unlock()
	p.discard(pc, metrics.DiscardDescriptors)
	return true
}

// idleConns is all that waits now.
func (p *Pool) idleConns() []*pooledConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*pooledConn, 0, p.idle.Len())
	for e := p.idle.Front(); e != nil; e = e.Next() {
		all = append(all, e.Value.(*pooledConn))
	}
	return all
}

// takeIfDue takes a connection that must be looked after, if it still waits: one that
// is too old, says something, or has been silent for long.
func (p *Pool) takeIfDue(pc *pooledConn, now time.Time) (reason string, due bool) {
	readable := pc.IsReadable()
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case pc.idleElem == nil:
		return "", false
	case now.Sub(pc.idleSince) >= p.cfg.IdleTimeout:
		reason = metrics.DiscardTTL
	case pc.Age() >= p.cfg.MaxAge:
		reason = metrics.DiscardAge
	case !readable && now.Sub(pc.lastAnswer) < p.cfg.KeepAliveInterval:
		return "", false
	}
	p.removeIdle(pc)
	return reason, true
}

// startIdle makes a connection wait from now on.
func (p *Pool) startIdle(pc *pooledConn) {
	pc.idleSince = time.Now()
	p.addIdle(pc)
}

// answeredRecently says whether a connection has answered so lately that it is taken to be
// alive.
func (p *Pool) answeredRecently(pc *pooledConn) bool {
	return time.Since(pc.lastAnswer) < p.cfg.ValidateAfter
}
