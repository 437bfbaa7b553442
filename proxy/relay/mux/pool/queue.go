package pool

import (
	"context"
	"fmt"
	"slices"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/proxy/upstream"
)

// maxQueue bounds the logins and sessions that wait for a connection.
const maxQueue = 4096

// leaseRequest describes the connection that a session or the gateway needs.
type leaseRequest struct {
	cred       *credential
	use        connUse
	extensions imap.Extensions // to be enabled; a client's connection has no others
	tokenEnd   time.Time       // no login is tried after it; zero: no expiry
}

// grant is an idle connection, a slot for a new one, or an error.
type grant struct {
	conn    *pooledConn // nil: a slot
	evicted *pooledConn // has lost its slot; to be closed
	err     error       // the Pool has closed
}

// waiter is a request in the queue.
type waiter struct {
	leaseRequest
	grants chan grant // capacity 1
}

// acquire returns an idle connection or a new one, after waiting in the queue if necessary.
func (p *Pool) acquire(ctx context.Context, lr leaseRequest, req upstream.Request) (*pooledConn, error) {
	started := time.Now()
	g, err := p.awaitGrant(ctx, lr)
	p.hooks.OnWait(time.Since(started))
	if err != nil {
		return nil, err
	}
	return p.connect(ctx, lr, g, req)
}

// connect turns a grant into a connection. If the idle connection of the grant is dead, its
// slot serves for a new one: other idle connections may be dead too, and the request must not
// queue again.
func (p *Pool) connect(ctx context.Context, lr leaseRequest, g grant, req upstream.Request) (*pooledConn, error) {
	p.closeConn(g.evicted, event.DiscardLimit)
	if pc := g.conn; pc != nil {
		reason := p.validate(ctx, pc)
		if reason == "" {
			p.hooks.OnReuse()
			return pc, nil
		}
		p.mu.Lock()
		delete(p.conns, &pc.Conn)
		p.mu.Unlock()
		p.closeConn(pc, reason)
	}
	pc, err := p.logIn(ctx, lr, req)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.releaseSlot(lr.cred, lr.use)
		p.serveQueue()
		return nil, err
	}
	p.conns[&pc.Conn] = pc
	return pc, nil
}

// awaitGrant waits for an idle connection or a slot, first come, first served.
func (p *Pool) awaitGrant(ctx context.Context, lr leaseRequest) (grant, error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return grant{}, errClosed
	}
	if g, ok := p.tryGrant(lr); ok { // no request in the queue could use it
		p.mu.Unlock()
		return g, nil
	}
	if len(p.queue) >= maxQueue {
		p.mu.Unlock()
		return grant{}, ErrBusy
	}
	w := &waiter{leaseRequest: lr, grants: make(chan grant, 1)}
	p.queue = append(p.queue, w)
	p.mu.Unlock()
	select {
	case g := <-w.grants:
		return g, g.err
	case <-ctx.Done():
	}
	p.mu.Lock()
	i := slices.Index(p.queue, w)
	if i >= 0 {
		p.queue = slices.Delete(p.queue, i, i+1)
	}
	p.mu.Unlock()
	if i >= 0 {
		return grant{}, fmt.Errorf("%w: %w", ErrBusy, context.Cause(ctx))
	}
	g := <-w.grants // granted at the same moment
	return g, g.err
}

// serveQueue grants what is available to the requests in the queue, oldest first. It is called
// after each change that frees something, so a queue never holds a request that could be
// served. mu is held.
func (p *Pool) serveQueue() {
	p.queue = slices.DeleteFunc(p.queue, func(w *waiter) bool {
		g, ok := p.tryGrant(w.leaseRequest)
		if ok {
			w.grants <- g
		}
		return ok
	})
}

// tryGrant takes an idle connection or a slot for lr, if available. mu is held.
func (p *Pool) tryGrant(lr leaseRequest) (grant, bool) {
	if pc := p.findIdle(lr); pc != nil {
		p.removeIdle(pc)
		return grant{conn: pc}, true
	}
	evicted, ok := p.acquireSlot(lr.cred, lr.use)
	return grant{evicted: evicted}, ok
}

// findIdle finds an idle connection with exactly the wanted extensions enabled, or with none.
// Extra extensions would change the server's responses to the client. The most recent one is
// preferred, as the likeliest to be alive. mu is held.
func (p *Pool) findIdle(lr leaseRequest) (fallback *pooledConn) {
	now := time.Now()
	for _, pc := range slices.Backward(lr.cred.idle[lr.use]) {
		switch {
		case !p.isUsable(pc, now): // left to the cleaner
		case pc.Enabled == lr.extensions, lr.use == gatewayUse:
			return pc
		case fallback == nil && pc.Enabled == "":
			fallback = pc
		}
	}
	return fallback
}

// acquireSlot takes a slot, if necessary that of an idle connection. mu is held.
func (p *Pool) acquireSlot(cred *credential, use connUse) (evicted *pooledConn, ok bool) {
	switch {
	case p.maxPerUse[use] >= 0 && cred.user.connCounts[use] >= p.maxPerUse[use]:
		if evicted = cred.user.oldestIdle(use); evicted == nil {
			return nil, false
		}
	case p.cfg.MaxTotal > 0 && p.total >= p.cfg.MaxTotal:
		if evicted = p.oldestIdle(); evicted == nil {
			return nil, false
		}
	}
	if evicted != nil {
		p.removeIdle(evicted)
		p.removeConn(evicted)
	}
	cred.user.connCounts[use]++
	cred.refs++
	p.total++
	return evicted, true
}

// oldestIdle returns the user's connection that has been idle longest, or nil.
func (u *userEntry) oldestIdle(use connUse) (oldest *pooledConn) {
	for _, cred := range u.credentials {
		if len(cred.idle[use]) == 0 {
			continue
		}
		if pc := cred.idle[use][0]; oldest == nil || pc.idleSince.Before(oldest.idleSince) {
			oldest = pc
		}
	}
	return oldest
}

// removeConn removes a connection from the pool and releases its slot. mu is held.
func (p *Pool) removeConn(pc *pooledConn) {
	delete(p.conns, &pc.Conn)
	p.releaseSlot(pc.cred, pc.use)
}

// releaseSlot releases a slot. mu is held.
func (p *Pool) releaseSlot(cred *credential, use connUse) {
	cred.user.connCounts[use]--
	p.total--
	p.unref(cred)
}

// oldestIdle returns the connection that has been idle longest, or nil. mu is held.
func (p *Pool) oldestIdle() *pooledConn {
	if front := p.idle.Front(); front != nil {
		return front.Value.(*pooledConn)
	}
	return nil
}

// discard closes a connection that is not idle, and then releases its slot, so that the backend
// never has more connections than the limits allow. A nil pc is ignored.
func (p *Pool) discard(pc *pooledConn, reason event.DiscardReason) {
	if pc == nil {
		return
	}
	p.closeConn(pc, reason)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.removeConn(pc)
	p.serveQueue()
}

func (p *Pool) discardAll(all []*pooledConn, reason event.DiscardReason) {
	for _, pc := range all {
		p.discard(pc, reason)
	}
}

// closeConn closes a connection that has no slot. A nil pc is ignored.
func (p *Pool) closeConn(pc *pooledConn, reason event.DiscardReason) {
	if pc == nil {
		return
	}
	_ = pc.Close()
	pc.Hold().Release()
	p.hooks.OnDiscard(reason)
}
