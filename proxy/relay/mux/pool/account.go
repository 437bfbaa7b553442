package pool

import (
	"context"
	"fmt"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/proxy/relay/mux/lease"
	"imapgate/proxy/upstream"
)

// Account is the right of one authenticated session to connections. It belongs to the session's
// goroutine.
type Account struct {
	// Set once.
	pool         *Pool
	cred         *credential
	secret       identity.Secret // the password, or the token if isToken
	isToken      bool            // the client sent a token; with a master login others may share cred
	client       upstream.Client
	verification Verification
	caps         imap.Caps

	// Owned by the session.
	tokenEnd  time.Time   // expiry of the token; zero: unknown
	loginConn *pooledConn // opened by Login or ProbeExtensions and not leased yet
	loginOK   upstream.OK // zero: the backend was not asked, or Acquire was called
	clientID  string      // of SetClientID; "": the client has sent no ID
}

// User returns the user whose account this is.
func (a *Account) User() identity.User { return a.cred.user.name }

// LoginName returns the name as it is sent to the backend.
func (a *Account) LoginName() string { return a.cred.loginName }

// Caps returns the backend's capabilities for this account.
func (a *Account) Caps() imap.Caps { return a.caps }

// OK returns the backend's response to the login, as upstream.Conn.OK. It is zero if the
// backend was not asked, and after the first Acquire.
func (a *Account) OK() upstream.OK { return a.loginOK }

// loginRequest returns the login with which connections are opened.
func (a *Account) loginRequest() upstream.Request {
	req := upstream.Request{User: a.User(), Login: a.cred.loginName, Client: a.client}
	if a.isToken {
		req.Token = a.secret
	} else {
		req.Password = a.secret
	}
	return req
}

// sessionRequest returns the login with which connections are opened once the session exists.
func (a *Account) sessionRequest() upstream.Request {
	req := a.loginRequest()
	req.HasSession = true
	return req
}

// SetTokenEnd sets the expiry of the login's token. After it no connections are opened with
// the token; existing ones stay open.
func (a *Account) SetTokenEnd(end time.Time) { a.tokenEnd = end }

// loginEnd returns the time after which no logins are tried at a pool's backend; zero: none.
func (a *Account) loginEnd(p *Pool) time.Time {
	if p.backend.UsesMasterLogin() { // it is not sent the token
		return time.Time{}
	}
	return a.tokenEnd
}

// SetClientID sets the argument of ID (RFC 2971), as upstream.FormatID, that is sent on each
// connection the account leases from now on, before any other command. A client that sent ID
// before its login need not send it again.
func (a *Account) SetClientID(id string) { a.clientID = id }

// Acquire leases a connection with exactly the extensions in enabled and no mailbox selected:
// an idle one or a new one. At the limits it waits in the queue until ctx ends.
//
// Errors are upstream's, including ErrBusy, ErrExpired and ErrNotEnabled.
func (a *Account) Acquire(ctx context.Context, enabled imap.Extensions) (*lease.Conn, error) {
	pc, err := a.acquireConn(ctx, enabled.With())
	if err != nil {
		return nil, err
	}
	return &pc.Conn, nil
}

func (a *Account) acquireConn(ctx context.Context, set imap.Extensions) (*pooledConn, error) {
	p := a.pool
	a.loginOK = upstream.OK{}
	pc := a.useLoginConn(ctx, set)
	if pc == nil {
		var err error
		if pc, err = p.acquire(ctx, leaseRequest{a.cred, clientUse, set, a.loginEnd(p)}, a.sessionRequest()); err != nil {
			return nil, err
		}
	}
	pc.keepLoginAlerts()
	if err := a.sendClientID(ctx, pc); err != nil {
		return nil, err
	}
	if missing := set.Without(pc.Enabled); len(missing) > 0 {
		if _, err := p.sendEnable(pc, missing); err != nil {
			return nil, err
		}
	}
	if pc.Enabled != set {
		p.discard(pc, event.DiscardError)
		return nil, fmt.Errorf("enable at %s: %w", p.backend.Name(), ErrNotEnabled)
	}
	return pc, nil
}

// useLoginConn returns the connection of the login if it is usable for set, otherwise nil.
func (a *Account) useLoginConn(ctx context.Context, set imap.Extensions) *pooledConn {
	pc := a.loginConn
	if pc == nil {
		return nil
	}
	a.loginConn = nil
	if pc.Enabled != set && pc.Enabled != "" {
		a.releaseUnused(pc)
		return nil
	}
	if time.Since(pc.lastAnswer) < a.pool.cfg.ValidateAfter { // responses after the OK of its login belong to this session
		return pc
	}
	if reason := a.pool.validate(ctx, pc); reason != "" {
		a.pool.discard(pc, reason)
		return nil
	}
	return pc
}

// AcquireAux leases a connection for the gateway's own commands. The caller may enable anything
// on it; it is never reused for a client. AcquireAux does not wait: it returns ErrBusy at the
// limits, and when file descriptors are scarce.
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
	lr := leaseRequest{cred: a.cred, use: gatewayUse, tokenEnd: a.loginEnd(p)}
	p.mu.Lock()
	g, ok := p.tryGrant(lr)
	p.mu.Unlock()
	if !ok {
		return nil, ErrBusy
	}
	pc, err := p.connect(ctx, lr, g, a.sessionRequest())
	if err == nil {
		err = a.sendClientID(ctx, pc)
	}
	if err != nil {
		return nil, err
	}
	pc.keepLoginAlerts()
	return &pc.Conn, nil
}

// Release returns a connection to the pool. The session must have no command outstanding on it.
// Release runs a command to leave the mailbox and blocks until the backend answers.
func (a *Account) Release(c *lease.Conn) {
	pc := a.findLeased(c, clientUse)
	a.pool.addIdleOrDiscard(pc, a.pool.reset(pc))
}

// ReleaseAux returns a connection of AcquireAux.
func (a *Account) ReleaseAux(c *lease.Conn) {
	pc := a.findLeased(c, gatewayUse)
	defer a.pool.backend.Sockets().RemoveExtra()
	a.pool.addIdleOrDiscard(pc, a.pool.reset(pc))
}

// Discard closes a connection of Acquire or AcquireAux.
func (a *Account) Discard(c *lease.Conn, reason event.DiscardReason) {
	pc := a.findLeased(c, connUses)
	a.pool.discard(pc, reason)
	if pc.use == gatewayUse {
		a.pool.backend.Sockets().RemoveExtra()
	}
}

// findLeased returns the connection that this account has leased for use; connUses matches any
// use.
func (a *Account) findLeased(c *lease.Conn, use connUse) *pooledConn {
	p := a.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	pc := p.conns[c]
	if pc == nil || pc.idleElem != nil || pc.cred != a.cred || use != connUses && pc.use != use {
		panic("pool: returned connection is not leased by this account")
	}
	return pc
}

// TakeLoginConn returns the connection of the login if it has not been leased, otherwise nil.
// ReturnLoginConn must return it in the same state.
func (a *Account) TakeLoginConn() *lease.Conn {
	pc := a.loginConn
	if pc == nil {
		return nil
	}
	a.loginConn = nil
	return &pc.Conn
}

// ReturnLoginConn makes a connection of TakeLoginConn available to the next Acquire again.
func (a *Account) ReturnLoginConn(c *lease.Conn) { a.loginConn = a.findLeased(c, clientUse) }

// RevokeCredential closes all idle connections of a credential that the backend has refused.
func (a *Account) RevokeCredential() { a.pool.revoke(a.cred) }

// Close ends the use of the account by its session, which must have released its connections.
func (a *Account) Close() {
	a.ReleaseLoginConn()
	a.pool.removeAccount(a.cred)
}

// ReleaseLoginConn pools the connection of the login if it has not been leased.
func (a *Account) ReleaseLoginConn() {
	if pc := a.loginConn; pc != nil {
		a.loginConn = nil
		a.releaseUnused(pc)
	}
}

// LoginAt logs the client in at another backend, with login as the name there. The backend
// must accept the credential that the client has sent, as at a new login. The account stays
// valid.
//
// Errors are those of Login, ErrCredential and ErrExpired.
func (a *Account) LoginAt(ctx context.Context, p *Pool, login string) (*Account, error) {
	req := a.loginRequest()
	req.Login = login
	if p.backend.UsesMasterLogin() && a.verification == BackendDecides || !p.backend.AcceptsCredentials(req.Password, req.Token) {
		return nil, ErrCredential
	}
	if end := a.loginEnd(p); !end.IsZero() && !time.Now().Before(end) {
		return nil, ErrExpired
	}
	moved, err := p.Login(ctx, req, a.verification)
	if err != nil {
		return nil, err
	}
	moved.SetTokenEnd(a.tokenEnd)
	moved.clientID = a.clientID
	if pc := moved.loginConn; pc != nil { // its alerts are for this client, which gets no answer to a login
		pc.loginOK, moved.loginOK = moved.loginOK, upstream.OK{}
	}
	return moved, nil
}

// releaseUnused pools a connection that was not leased.
func (a *Account) releaseUnused(pc *pooledConn) {
	p := a.pool
	reason := event.DiscardTTL
	switch {
	case p.cfg.PoolIdleTimeout <= 0 || a.verification == BackendDecides && !p.isCacheable(a.cred): // no later login could use it
	case pc.Age() >= p.cfg.MaxAge:
		reason = event.DiscardAge
	case pc.Hold().IsLeaving():
		reason = event.DiscardMoved
	default:
		reason = p.validate(context.Background(), pc)
	}
	pc.idleSince = time.Now()
	p.addIdleOrDiscard(pc, reason)
}
