package pool

import (
	"context"
	"fmt"
	"slices"
	"time"

	"imapgate/internal/metrics"
	"imapgate/proxy/mux/lease"
	"imapgate/proxy/upstream"
)

// maxQueue bounds those who wait for a connection.
const maxQueue = 4096

// leaseRequest is what somebody needs a connection for.
type leaseRequest struct {
	cred       *credential
	use        connUse
	extensions lease.Extensions // what is to be enabled; a client's connection has no more
	tokenEnd   time.Time        // behind it no login is tried; zero: whenever
}

// grant is a connection that waited, or a place for a new one.
type grant struct {
	conn    *pooledConn // nil: a place
	evicted *pooledConn // has left its place; to be closed
}

// waiter is somebody in the queue.
type waiter struct {
	leaseRequest
	grants chan grant // of one; closed when the Pool closes
}

// acquire gives a connection that waited, or a new one, and waits for its turn.
func (p *Pool) acquire(ctx context.Context, lr leaseRequest, req upstream.Request) (*pooledConn, error) {
	started := time.Now()
	g, err := p.awaitGrant(ctx, lr)
	p.hooks.OnWait(time.Since(started))
	if err != nil {
		return nil, err
	}
	return p.connect(ctx, lr, g, req)
}

// connect makes a connection of a grant. Where the one that waited is of no use,
// its place is: the next one might be as dead, and this is somebody's turn.
func (p *Pool) connect(ctx context.Context, lr leaseRequest, g grant, req upstream.Request) (*pooledConn, error) {
	p.closeConn(g.evicted, metrics.DiscardLimit)
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

// awaitGrant waits for a connection or a place, first come, first served.
func (p *Pool) awaitGrant(ctx context.Context, lr leaseRequest) (grant, error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return grant{}, errClosed
	}
	if g, ok := p.tryGrant(lr); ok { // nobody in the queue could have had it
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
	case g, ok := <-w.grants:
		return g, errUnlessGranted(ok)
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
	g, ok := <-w.grants // it came at the same time
	return g, errUnlessGranted(ok)
}

func errUnlessGranted(granted bool) error {
	if !granted {
		return errClosed
	}
	return nil
}

// serveQueue gives what there is to those who have waited longest. It is called
// whenever there is more than before, so that nobody in the queue could be
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

// tryGrant takes what w wants, if there is. mu is held.
func (p *Pool) tryGrant(lr leaseRequest) (grant, bool) {
	if pc := p.findIdle(lr); pc != nil {
		p.removeIdle(pc)
		return grant{conn: pc}, true
	}
	evicted, ok := p.acquireSlot(lr.cred, lr.use)
	return grant{evicted: evicted}, ok
}

// findIdle finds what waits for w: with the very set of extensions, or with none,
// which can be enabled; never with another, because a client would be told what
// it has not asked for. Who came last is the likeliest to be alive. mu is held.
func (p *Pool) findIdle(lr leaseRequest) (fallback *pooledConn) {
	now := time.Now()
	for _, pc := range slices.Backward(lr.cred.idle[lr.use]) {
		switch {
		case !p.isUsable(pc, now): // the janitor's
		case pc.Enabled == lr.extensions, lr.use == gatewayUse:
			return pc
		case fallback == nil && pc.Enabled == "":
			fallback = pc
		}
	}
	return fallback
}

// acquireSlot takes a place, if need be that of a connection that waits. mu is held.
func (p *Pool) acquireSlot(cred *credential, use connUse) (evicted *pooledConn, ok bool) {
	switch {
	case p.maxPerUse[use] >= 0 && cred.user.connCounts[use] >= p.maxPerUse[use]:
		if evicted = cred.user.oldestIdle(use); evicted == nil {
			return nil, false
		}
	case p.cfg.MaxTotal > 0 && p.total >= p.cfg.MaxTotal:
		front := p.idle.Front()
		if front == nil {
			return nil, false
		}
		evicted = front.Value.(*pooledConn)
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

// oldestIdle is the connection that has waited longest for a user, or nil.
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

// removeConn is the end of a connection for the books. mu is held.
func (p *Pool) removeConn(pc *pooledConn) {
	delete(p.conns, &pc.Conn)
	p.releaseSlot(pc.cred, pc.use)
}

// releaseSlot gives a place back. mu is held.
func (p *Pool) releaseSlot(cred *credential, use connUse) {
	cred.user.connCounts[use]--
	p.total--
	p.unref(cred)
}

// discard closes a connection that somebody has, if any, and then gives its
// place on: the backend never has more than the limits say.
func (p *Pool) discard(pc *pooledConn, reason string) {
	if pc == nil {
		return
	}
	p.closeConn(pc, reason)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.removeConn(pc)
	p.serveQueue()
}

func (p *Pool) discardAll(all []*pooledConn, reason string) {
	for _, pc := range all {
		p.discard(pc, reason)
	}
}

// closeConn closes a connection that has no place, if any.
func (p *Pool) closeConn(pc *pooledConn, reason string) {
	if pc == nil {
		return
	}
	_ = pc.Close()
	p.backend.Sockets().RemoveBackend()
	p.hooks.OnDiscard(reason)
}
