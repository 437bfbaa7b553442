package pool

import (
	"context"
	"fmt"
	"time"

	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/internal/metrics"
	"imapgate/internal/mutant"
	"imapgate/proxy/mux/lease"
	"imapgate/proxy/upstream"
)

// Account is one session's proven right to connections. It belongs to the
// session's goroutine.
type Account struct {
	// Set once.
	pool   *Pool
	owner  *owner
	secret identity.Secret // the password, or the token where the owner's is one
	client upstream.Client
	proof  Proof
	caps   imap.Caps
	until  time.Time // behind it nobody takes the token any more; zero: not known, or the backend does not see it

	// Owned by the session.
	first *held       // made by the login, or to try ENABLE, and not leased yet
	ok    upstream.OK // zero: nobody was asked, or the client has heard it
	id    string      // of Identify; "": the client has not said what it is
}

// User is whose account this is.
func (a *Account) User() identity.User { return a.owner.user.name }

// Login is the name as it is sent to the backend.
func (a *Account) Login() string { return a.owner.login }

// Caps is what the backend can do for this account.
func (a *Account) Caps() imap.Caps { return a.caps }

// OK is how the backend let the user in, as upstream.Conn's; zero where it was not
// asked, and after the first Lease.
func (a *Account) OK() upstream.OK { return a.ok }

// who is the login with which connections are made.
func (a *Account) who() upstream.Request {
	who := upstream.Request{User: a.User(), Login: a.owner.login, Client: a.client}
	if a.owner.token {
		who.Token = a.secret
	} else {
		who.Password = a.secret
	}
	return who
}

// TokenEnds says until when connections can be made with the login's token. Those
// that are made go on.
func (a *Account) TokenEnds(at time.Time) {
	if !a.pool.backend.Master() {
		a.until = at
	}
}

// Lease gives the session a connection on which exactly enabled is enabled and
// no mailbox is selected: one that waited, or a new one. At the limits it waits
// for its turn until ctx ends.
//
// Errors: upstream's, ErrBusy and ErrExpired among them.
func (a *Account) Lease(ctx context.Context, enabled lease.Enabled) (*lease.Conn, error) {
	h, err := a.lease(ctx, enabled.With())
	if err != nil {
		return nil, err
	}
	return &h.Conn, nil
}

func (a *Account) lease(ctx context.Context, set lease.Enabled) (*held, error) {
	p := a.pool
	a.ok = upstream.OK{}
	h := a.takeFirst(ctx, set)
	if h == nil {
		var err error
		if h, err = p.obtain(ctx, want{a.owner, forClient, set, a.until}, a.who()); err != nil {
			return nil, err
		}
	}
	h.keepAlerts()
	if err := a.identified(ctx, h); err != nil {
		return nil, err
	}
	if missing := set.Less(h.Enabled); len(missing) > 0 {
		if _, err := p.enable(h, missing); err != nil {
			p.discard(h, reasonOf(err))
			return nil, fmt.Errorf("enable at %s: %w: %w", p.backend.Name(), upstream.ErrUnavailable, err)
		}
	}
	if h.Enabled != set && !mutant.Is(mutant.DeferredEnable) {
		p.discard(h, metrics.DiscardError)
		return nil, fmt.Errorf("enable at %s: %w", p.backend.Name(), errEnabled)
	}
	return h, nil
}

// takeFirst is the connection of the login if it is still of use for set.
func (a *Account) takeFirst(ctx context.Context, set lease.Enabled) *held {
	h := a.first
	if h == nil {
		return nil
	}
	a.first = nil
	if h.Enabled != set && h.Enabled != "" {
		a.recycle(h)
		return nil
	}
	if a.pool.young(h) { // what came behind the OK of its login is this session's
		return h
	}
	if reason := a.pool.fit(ctx, h); reason != "" {
		a.pool.discard(h, reason)
		return nil
	}
	return h
}

// Aux gives the gateway a connection for questions of its own: what is enabled
// on it is for whoever asks, and it is never a client's. There is no waiting:
// ErrBusy, also where descriptors are scarce.
func (a *Account) Aux(ctx context.Context) (*lease.Conn, error) {
	sockets := a.pool.backend.Sockets()
	if !sockets.AddExtra() {
		return nil, ErrBusy
	}
	c, err := a.aux(ctx)
	if err != nil {
		sockets.RemoveExtra()
	}
	return c, err
}

func (a *Account) aux(ctx context.Context) (*lease.Conn, error) {
	p := a.pool
	w := want{owner: a.owner, kind: forUs, until: a.until}
	p.mu.Lock()
	g, ok := p.try(w)
	p.mu.Unlock()
	if !ok {
		return nil, ErrBusy
	}
	h, err := p.realise(ctx, w, g, a.who())
	if err == nil {
		err = a.identified(ctx, h)
	}
	if err != nil {
		return nil, err
	}
	h.keepAlerts()
	return &h.Conn, nil
}

// Return gives back a connection on which the session has no command
// outstanding. It asks the backend to leave the mailbox, and takes as long.
func (a *Account) Return(c *lease.Conn) {
	h := a.out(c, forClient)
	if reason := a.pool.clean(h); reason != "" {
		a.pool.discard(h, reason)
		return
	}
	a.pool.wait(h)
}

// ReturnAux gives back a connection of Aux.
func (a *Account) ReturnAux(c *lease.Conn) {
	h := a.out(c, forUs)
	defer a.pool.backend.Sockets().RemoveExtra()
	if reason := a.pool.clean(h); reason != "" {
		a.pool.discard(h, reason)
		return
	}
	a.pool.wait(h)
}

// Destroy closes a connection of Lease or Aux. The reason is one of the
// metrics.Discard constants.
func (a *Account) Destroy(c *lease.Conn, reason string) {
	h := a.out(c, kinds)
	a.pool.discard(h, reason)
	if h.kind == forUs {
		a.pool.backend.Sockets().RemoveExtra()
	}
}

// out finds a connection that this account has leased, for a kind or for any.
func (a *Account) out(c *lease.Conn, k kind) *held {
	p := a.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.conns[c]
	if h == nil || h.waiting != nil || h.owner != a.owner || k != kinds && h.kind != k {
		panic("pool: a connection comes back that this account does not have")
	}
	return h
}

// Forget is for credentials that the backend has refused: nothing that they were
// good for waits any longer.
func (a *Account) Forget() { a.pool.distrust(a.owner) }

// Close is the end of the session, which has given back its connections.
func (a *Account) Close() {
	if h := a.first; h != nil {
		a.first = nil
		a.recycle(h)
	}
	a.pool.forgo(a.owner)
}

// recycle makes a connection that was not leased wait for somebody else.
func (a *Account) recycle(h *held) {
	p := a.pool
	reason := metrics.DiscardTTL
	switch {
	case p.cfg.ReuseTTL <= 0 || a.proof == Asked && !p.remembers(a.owner): // nobody can come for it
	case h.Age() >= p.cfg.MaxAge:
		reason = metrics.DiscardAge
	default:
		reason = p.fit(context.Background(), h)
	}
	if reason != "" {
		p.discard(h, reason)
		return
	}
	p.wait(h)
}
