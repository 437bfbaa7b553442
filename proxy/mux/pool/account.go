package pool

import (
	"context"
	"fmt"
	"time"

	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/internal/metrics"
	"imapgate/proxy/mux/lease"
	"imapgate/proxy/upstream"
)

// Account is one session's proven right to connections. It belongs to the
// session's goroutine.
type Account struct {
	// Set once.
	pool         *Pool
	cred         *credential
	secret       identity.Secret // the password, or the token where the owner's is one
	client       upstream.Client
	verification Verification
	caps         imap.Caps
	tokenEnd     time.Time // behind it nobody takes the token any more; zero: not known, or the backend does not see it

	// Owned by the session.
	loginConn *pooledConn // made by the login, or to try ENABLE, and not leased yet
	loginOK   upstream.OK // zero: nobody was asked, or the client has heard it
	clientID  string      // of Identify; "": the client has not said what it is
}

// User is whose account this is.
func (a *Account) User() identity.User { return a.cred.user.name }

// LoginName is the name as it is sent to the backend.
func (a *Account) LoginName() string { return a.cred.loginName }

// Caps is what the backend can do for this account.
func (a *Account) Caps() imap.Caps { return a.caps }

// OK is how the backend let the user in, as upstream.Conn's; zero where it was not
// asked, and after the first Lease.
func (a *Account) OK() upstream.OK { return a.loginOK }

// loginRequest is the login with which connections are made.
func (a *Account) loginRequest() upstream.Request {
	req := upstream.Request{User: a.User(), Login: a.cred.loginName, Client: a.client}
	if a.cred.isToken {
		req.Token = a.secret
	} else {
		req.Password = a.secret
	}
	return req
}

// SetTokenEnd says until when connections can be made with the login's token. Those
// that are made go on.
func (a *Account) SetTokenEnd(end time.Time) {
	if !a.pool.backend.UsesMasterLogin() {
		a.tokenEnd = end
	}
}

// Acquire gives the session a connection on which exactly enabled is enabled and
// no mailbox is selected: one that waited, or a new one. At the limits it waits
// for its turn until ctx ends.
//
// Errors: upstream's, ErrBusy and ErrExpired among them.
func (a *Account) Acquire(ctx context.Context, enabled lease.Extensions) (*lease.Conn, error) {
	pc, err := a.acquireConn(ctx, enabled.With())
	if err != nil {
		return nil, err
	}
	return &pc.Conn, nil
}

func (a *Account) acquireConn(ctx context.Context, set lease.Extensions) (*pooledConn, error) {
	p := a.pool
	a.loginOK = upstream.OK{}
	pc := a.useLoginConn(ctx, set)
	if pc == nil {
		var err error
		if pc, err = p.acquire(ctx, leaseRequest{a.cred, clientUse, set, a.tokenEnd}, a.loginRequest()); err != nil {
			return nil, err
		}
	}
	pc.keepLoginAlerts()
	if err := a.sendClientID(ctx, pc); err != nil {
		return nil, err
	}
	if missing := set.Without(pc.Enabled); len(missing) > 0 {
		if _, err := p.sendEnable(pc, missing); err != nil {
			p.discard(pc, discardReason(err))
			return nil, fmt.Errorf("enable at %s: %w: %w", p.backend.Name(), upstream.ErrUnavailable, err)
		}
	}
	if pc.Enabled != set {
		p.discard(pc, metrics.DiscardError)
		return nil, fmt.Errorf("enable at %s: %w", p.backend.Name(), errNotEnabled)
	}
	return pc, nil
}

// useLoginConn is the connection of the login if it is still of use for set.
func (a *Account) useLoginConn(ctx context.Context, set lease.Extensions) *pooledConn {
	pc := a.loginConn
	if pc == nil {
		return nil
	}
	a.loginConn = nil
	if pc.Enabled != set && pc.Enabled != "" {
		a.releaseUnused(pc)
		return nil
	}
	if a.pool.answeredRecently(pc) { // what came behind the OK of its login is this session's
		return pc
	}
	if reason := a.pool.validate(ctx, pc); reason != "" {
		a.pool.discard(pc, reason)
		return nil
	}
	return pc
}

// AcquireAux gives the gateway a connection for questions of its own: what is enabled
// on it is for whoever asks, and it is never a client's. There is no waiting:
// ErrBusy, also where descriptors are scarce.
func (a *Account) AcquireAux(ctx context.Context) (*lease.Conn, error) {
	sockets := a.pool.backend.Sockets()
	if !sockets.AddExtra() {
		return nil, ErrBusy
	}
	c, err := a.acquireAuxConn(ctx)
	if err != nil {
		sockets.RemoveExtra()
	}
	return c, err
}

func (a *Account) acquireAuxConn(ctx context.Context) (*lease.Conn, error) {
	p := a.pool
	lr := leaseRequest{cred: a.cred, use: gatewayUse, tokenEnd: a.tokenEnd}
	p.mu.Lock()
	g, ok := p.tryGrant(lr)
	p.mu.Unlock()
	if !ok {
		return nil, ErrBusy
	}
	pc, err := p.connect(ctx, lr, g, a.loginRequest())
	if err == nil {
		err = a.sendClientID(ctx, pc)
	}
	if err != nil {
		return nil, err
	}
	pc.keepLoginAlerts()
	return &pc.Conn, nil
}

// Release gives back a connection on which the session has no command
// outstanding. It asks the backend to leave the mailbox, and takes as long.
func (a *Account) Release(c *lease.Conn) {
	pc := a.findLeased(c, clientUse)
	if reason := a.pool.reset(pc); reason != "" {
		a.pool.discard(pc, reason)
		return
	}
	a.pool.startIdle(pc)
}

// ReleaseAux gives back a connection of Aux.
func (a *Account) ReleaseAux(c *lease.Conn) {
	pc := a.findLeased(c, gatewayUse)
	defer a.pool.backend.Sockets().RemoveExtra()
	if reason := a.pool.reset(pc); reason != "" {
		a.pool.discard(pc, reason)
		return
	}
	a.pool.startIdle(pc)
}

// Discard closes a connection of Lease or Aux. The reason is one of the
// metrics.Discard constants.
func (a *Account) Discard(c *lease.Conn, reason string) {
	pc := a.findLeased(c, connUses)
	a.pool.discard(pc, reason)
	if pc.use == gatewayUse {
		a.pool.backend.Sockets().RemoveExtra()
	}
}

// findLeased finds a connection that this account has leased, for a kind or for any.
func (a *Account) findLeased(c *lease.Conn, use connUse) *pooledConn {
	p := a.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	pc := p.conns[c]
	if pc == nil || pc.idleElem != nil || pc.cred != a.cred || use != connUses && pc.use != use {
		panic("pool: a connection comes back that this account does not have")
	}
	return pc
}

// RevokeCredential is for credentials that the backend has refused: nothing that they were
// good for waits any longer.
func (a *Account) RevokeCredential() { a.pool.revoke(a.cred) }

// Close is the end of the session, which has given back its connections.
func (a *Account) Close() {
	if pc := a.loginConn; pc != nil {
		a.loginConn = nil
		a.releaseUnused(pc)
	}
	a.pool.removeAccount(a.cred)
}

// releaseUnused makes a connection that was not leased wait for somebody else.
func (a *Account) releaseUnused(pc *pooledConn) {
	p := a.pool
	reason := metrics.DiscardTTL
	switch {
	case p.cfg.IdleTimeout <= 0 || a.verification == BackendDecides && !p.isCacheable(a.cred): // nobody can come for it
	case pc.Age() >= p.cfg.MaxAge:
		reason = metrics.DiscardAge
	default:
		reason = p.validate(context.Background(), pc)
	}
	if reason != "" {
		p.discard(pc, reason)
		return
	}
	p.startIdle(pc)
}
