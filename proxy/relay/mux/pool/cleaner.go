package pool

import (
	"context"
	"time"

	"imapgate/internal/event"
)

// sweepInterval bounds how late the pool notices that the backend has closed an idle
// connection.
const sweepInterval = time.Second

// runCleaner sweeps the idle connections. It ends when the Pool closes.
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

// sweep closes idle connections that have expired or ended, and keeps the others from being
// logged out. All validations together have one AnswerTimeout, so that a hanging backend does
// not delay the others.
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
		p.addIdleOrDiscard(pc, reason)
	}
}

// EvictOldest closes the connection that has been idle longest, because its file descriptor is
// needed. It returns false if no connection is idle.
func (p *Pool) EvictOldest() bool {
	p.mu.Lock()
	pc := p.oldestIdle()
	if pc != nil {
		p.removeIdle(pc)
	}
	p.mu.Unlock()
	p.discard(pc, event.DiscardDescriptors)
	return pc != nil
}

// idleConns returns all connections that are idle now.
func (p *Pool) idleConns() []*pooledConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*pooledConn, 0, p.idle.Len())
	for e := p.idle.Front(); e != nil; e = e.Next() {
		all = append(all, e.Value.(*pooledConn))
	}
	return all
}

// takeIfDue removes an idle connection from the pool if it needs attention: it is too old, has
// unread bytes, or has long sent nothing. A reason means that it must be closed.
func (p *Pool) takeIfDue(pc *pooledConn, now time.Time) (reason event.DiscardReason, due bool) {
	readable := pc.IsReadable()
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case pc.idleElem == nil:
		return "", false
	case now.Sub(pc.idleSince) >= p.cfg.PoolIdleTimeout:
		reason = event.DiscardTTL
	case pc.Age() >= p.cfg.MaxAge:
		reason = event.DiscardAge
	case pc.Hold().IsLeaving():
		reason = event.DiscardMoved
	case !readable && now.Sub(pc.lastAnswer) < p.cfg.KeepAliveInterval:
		return "", false
	}
	p.removeIdle(pc)
	return reason, true
}

// addIdleOrDiscard pools a connection, or closes it if there is a reason.
func (p *Pool) addIdleOrDiscard(pc *pooledConn, reason event.DiscardReason) {
	if reason != "" {
		p.discard(pc, reason)
		return
	}
	p.addIdle(pc)
}
