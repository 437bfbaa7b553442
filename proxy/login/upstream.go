package login

import (
	"context"

	"imapgate/auth"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/proxy/relay/mux"
	"imapgate/proxy/relay/mux/pool"
	"imapgate/proxy/upstream"
	"imapgate/routing"
)

// Upstream is a login at a backend: an *upstream.Conn to be spliced, or a Pooled account.
type Upstream interface {
	User() identity.User
	Caps() imap.Caps
	OK() upstream.OK
	Close() error
}

// Pooled is an account of a pool, as Upstream.
type Pooled struct{ *pool.Account }

// Close closes the account. The error is nil.
func (p Pooled) Close() error {
	p.Account.Close()
	return nil
}

// SelectMode returns the mode for a user's session on a route. A backend that violates the
// protocol assumptions of the mux modes is spliced.
func (c *Connector) SelectMode(user identity.User, r *routing.Route) event.Mode {
	name := r.Mode
	if name == "" {
		name = c.cfg.Modes[r.Backend]
	}
	switch {
	case c.deps.Hub.ShouldSplice(r.Backend, user):
		return event.ModeSplice
	case name == event.ModeReuse:
		return name
	case name == event.ModeResume, name == event.ModePark: // park is handled as resume
		return event.ModeResume
	}
	return event.ModeSplice
}

// loginInMode logs the user in at the backend, in the attempt's mode.
func (c *Connector) loginInMode(ctx context.Context, a *Attempt, id auth.Identity, request upstream.Request) (Upstream, error) {
	if a.Mode == event.ModeSplice {
		conn, err := c.deps.Backends[a.Route.Backend].Login(ctx, request)
		if err != nil {
			return nil, err // avoids a nil *Conn in an interface
		}
		c.deps.Hub.EvictElsewhere(request.User, a.location())
		return conn, nil
	}
	verification := pool.BackendDecides
	if id.IsVerified() {
		verification = pool.VerifiedHere
	}
	account, err := c.deps.Hub.Login(ctx, a.location(), request, verification)
	if err != nil {
		return nil, err
	}
	account.SetTokenEnd(id.Expires())
	return Pooled{account}, nil
}

// location returns where the attempt's session belongs. Login is set only if it comes from
// the route: a login name from an auth server is not looked up again.
func (a *Attempt) location() mux.Location {
	location := mux.Location{Backend: a.Route.Backend}
	if a.LoginFromRoute {
		location.Login = a.Route.Login
	}
	return location
}
