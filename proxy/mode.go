package proxy

import (
	"context"

	"imapgate/auth"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/proxy/mux"
	"imapgate/proxy/mux/pool"
	"imapgate/proxy/upstream"
	"imapgate/routing"
)

// backendLogin is a login at a backend: an upstream.Conn to be spliced, or an account of a
// pool.
type backendLogin interface {
	User() identity.User
	Caps() imap.Caps
	OK() upstream.OK
	Close() error
}

// pooledLogin adapts pool.Account to backendLogin.
type pooledLogin struct{ *pool.Account }

func (a pooledLogin) Close() error {
	a.Account.Close()
	return nil
}

// newHub creates the hub of the mux sessions.
func (s *Server) newHub() (*mux.Hub, error) {
	backends := make(map[string]mux.Backend, len(s.deps.Backends))
	for name, b := range s.deps.Backends {
		backends[name] = mux.Backend{Upstream: b, Settings: s.cfg.Modes[name].Mux}
	}
	return mux.NewHub(mux.Config{
		ParkAfter: parkAfter, StallTimeout: s.cfg.WriteTimeout, MaxLine: s.cfg.MaxLine, Locate: s.lookupLocation,
	}, mux.Deps{Sessions: s.sessions, Splices: s.spliceSet, Backends: backends, Audit: s.deps.Audit, Metrics: s.deps.Metrics, Log: s.deps.Log})
}

// lookupLocation returns the current location of a user, by routing.
func (s *Server) lookupLocation(ctx context.Context, user identity.User) (mux.Location, error) {
	route, err := s.deps.Routes.Lookup(ctx, user)
	return mux.Location{Backend: route.Backend, Login: route.Login}, err
}

// location returns where the attempt's session belongs. Login is set only if it comes from
// the route: a login name from an auth server is not looked up again.
func (a *attempt) location() mux.Location {
	location := mux.Location{Backend: a.route.Backend}
	if a.loginFromRoute {
		location.Login = a.route.Login
	}
	return location
}

// selectMode returns the mode for a user's session on a route. A backend that violates the
// protocol assumptions of the mux modes is spliced.
func (s *Server) selectMode(user identity.User, r *routing.Route) event.Mode {
	name := r.Mode
	if name == "" {
		name = s.cfg.Modes[r.Backend].Name
	}
	switch {
	case s.hub.ShouldSplice(r.Backend, user):
		return event.ModeSplice
	case name == event.ModeReuse:
		return name
	case name == event.ModeResume, name == event.ModePark: // park is handled as resume
		return event.ModeResume
	}
	return event.ModeSplice
}

// loginUpstream logs the user in at the backend, in the attempt's mode.
func (s *Server) loginUpstream(ctx context.Context, a *attempt, id auth.Identity, request upstream.Request) (backendLogin, error) {
	if a.mode == event.ModeSplice {
		conn, err := s.deps.Backends[a.route.Backend].Login(ctx, request)
		if err != nil {
			return nil, err // avoids a nil *Conn in an interface
		}
		s.hub.EvictElsewhere(request.User, a.location())
		return conn, nil
	}
	verification := pool.BackendDecides
	if id.IsVerified() {
		verification = pool.VerifiedHere
	}
	account, err := s.hub.Login(ctx, a.location(), request, verification)
	if err != nil {
		return nil, err
	}
	account.SetTokenEnd(id.Expires())
	return pooledLogin{account}, nil
}

// offeredCaps returns the backend's capabilities that the client may use.
func (s *Server) offeredCaps(a *attempt, caps imap.Caps) imap.Caps {
	if a.mode == event.ModeSplice {
		return caps.Without(isGatewayCapability)
	}
	return s.hub.OfferedCaps(a.route.Backend, caps)
}
