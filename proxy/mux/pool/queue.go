package pool

import (
	"context"
	"fmt"
	"slices"
	"time"

	"imapgate/internal/metrics"
	"imapgate/internal/mutant"
	"imapgate/proxy/mux/lease"
	"imapgate/proxy/upstream"
)

// maxQueue bounds those who wait for a connection.
const maxQueue = 4096

// want is what somebody needs a connection for.
type want struct {
	owner *owner
	kind  kind
	set   lease.Enabled // what is to be enabled; a client's connection has no more
	until time.Time     // behind it no login is tried; zero: whenever
}

// grant is a connection that waited, or a place for a new one.
type grant struct {
	held    *held // nil: a place
	evicted *held // has left its place; to be closed
}

// waiter is somebody in the queue.
type waiter struct {
	want
	granted chan grant // of one; closed when the Pool closes
}

// obtain gives a connection that waited, or a new one, and waits for its turn.
func (p *Pool) obtain(ctx context.Context, w want, who upstream.Request) (*held, error) {
	began := time.Now()
	g, err := p.acquire(ctx, w)
	p.hooks.Waited(time.Since(began))
	if err != nil {
		return nil, err
	}
	return p.realise(ctx, w, g, who)
}

// realise makes a connection of a grant. Where the one that waited is of no use,
// its place is: the next one might be as dead, and this is somebody's turn.
func (p *Pool) realise(ctx context.Context, w want, g grant, who upstream.Request) (*held, error) {
	p.close(g.evicted, metrics.DiscardLimit)
	if h := g.held; h != nil {
		reason := p.fit(ctx, h)
		if reason == "" {
			p.hooks.Reused()
			return h, nil
		}
		p.mu.Lock()
		delete(p.conns, &h.Conn)
		p.mu.Unlock()
		p.close(h, reason)
	}
	h, err := p.logIn(ctx, w, who)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.vacate(w.owner, w.kind)
		p.serve()
		return nil, err
	}
	p.conns[&h.Conn] = h
	return h, nil
}

// acquire waits for a connection or a place, first come, first served.
func (p *Pool) acquire(ctx context.Context, w want) (grant, error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return grant{}, errClosed
	}
	if g, ok := p.try(w); ok { // nobody in the queue could have had it
		p.mu.Unlock()
		return g, nil
	}
	if len(p.queue) >= maxQueue {
		p.mu.Unlock()
		return grant{}, ErrBusy
	}
	t := &waiter{want: w, granted: make(chan grant, 1)}
	p.queue = append(p.queue, t)
	p.mu.Unlock()
	select {
	case g, ok := <-t.granted:
		return g, closedUnless(ok)
	case <-ctx.Done():
	}
	p.mu.Lock()
	i := slices.Index(p.queue, t)
	if i >= 0 {
		p.queue = slices.Delete(p.queue, i, i+1)
	}
	p.mu.Unlock()
	if i >= 0 {
		return grant{}, fmt.Errorf("%w: %w", ErrBusy, context.Cause(ctx))
	}
	g, ok := <-t.granted // it came at the same time
	return g, closedUnless(ok)
}

func closedUnless(ok bool) error {
	if !ok {
		return errClosed
	}
	return nil
}

// serve gives what there is to those who have waited longest. It is called
// whenever there is more than before, so that nobody in the queue could be
// served. mu is held.
func (p *Pool) serve() {
	p.queue = slices.DeleteFunc(p.queue, func(t *waiter) bool {
		g, ok := p.try(t.want)
		if ok {
			t.granted <- g
		}
		return ok
	})
}

// try takes what w wants, if there is. mu is held.
func (p *Pool) try(w want) (grant, bool) {
	if h := p.match(w); h != nil {
		p.take(h)
		return grant{held: h}, true
	}
	evicted, ok := p.place(w.owner, w.kind)
	return grant{evicted: evicted}, ok
}

// match finds what waits for w: with the very set of extensions, or with none,
// which can be enabled; never with another, because a client would be told what
// it has not asked for. Who came last is the likeliest to be alive. mu is held.
func (p *Pool) match(w want) (plain *held) {
	now := time.Now()
	for _, h := range slices.Backward(w.owner.waiting[w.kind]) {
		switch {
		case !p.fresh(h, now): // the janitor's
		case h.Enabled == w.set, w.kind == forUs, mutant.Is(mutant.DeferredEnable):
			return h
		case plain == nil && h.Enabled == "":
			plain = h
		}
	}
	return plain
}

// place takes a place, if need be that of a connection that waits. mu is held.
func (p *Pool) place(o *owner, k kind) (evicted *held, ok bool) {
	switch {
	case p.most[k] >= 0 && o.user.count[k] >= p.most[k]:
		if evicted = o.user.oldest(k); evicted == nil {
			return nil, false
		}
	case p.cfg.MaxTotal > 0 && p.total >= p.cfg.MaxTotal:
		front := p.idle.Front()
		if front == nil {
			return nil, false
		}
		evicted = front.Value.(*held)
	}
	if evicted != nil {
		p.take(evicted)
		p.drop(evicted)
	}
	o.user.count[k]++
	o.refs++
	p.total++
	return evicted, true
}

// oldest is the connection that has waited longest for a user, or nil.
func (u *user) oldest(k kind) (oldest *held) {
	for _, o := range u.owners {
		if len(o.waiting[k]) == 0 {
			continue
		}
		if h := o.waiting[k][0]; oldest == nil || h.since.Before(oldest.since) {
			oldest = h
		}
	}
	return oldest
}

// drop is the end of a connection for the books. mu is held.
func (p *Pool) drop(h *held) {
	delete(p.conns, &h.Conn)
	p.vacate(h.owner, h.kind)
}

// vacate gives a place back. mu is held.
func (p *Pool) vacate(o *owner, k kind) {
	o.user.count[k]--
	p.total--
	p.unref(o)
}

// discard closes a connection that somebody has, if any, and then gives its
// place on: the backend never has more than the limits say.
func (p *Pool) discard(h *held, reason string) {
	if h == nil {
		return
	}
	p.close(h, reason)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drop(h)
	p.serve()
}

func (p *Pool) discardAll(all []*held, reason string) {
	for _, h := range all {
		p.discard(h, reason)
	}
}

// close closes a connection that has no place, if any.
func (p *Pool) close(h *held, reason string) {
	if h == nil {
		return
	}
	_ = h.Close()
	p.backend.Sockets().RemoveBackend()
	p.hooks.Discarded(reason)
}
