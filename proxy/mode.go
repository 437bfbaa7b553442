package proxy

import (
	"context"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/proxy/login"
	"imapgate/proxy/relay/mux"
)

// newHub creates the hub of the mux sessions.
func (s *Server) newHub() (*mux.Hub, error) {
	backends := make(map[string]mux.Backend, len(s.deps.Backends))
	for name, b := range s.deps.Backends {
		backends[name] = mux.Backend{Upstream: b, Settings: s.cfg.Modes[name].Mux}
	}
	return mux.NewHub(mux.Config{
		ParkAfter: parkAfter, StallTimeout: s.cfg.WriteTimeout, MaxLine: s.cfg.MaxLineLength, Locate: s.lookupLocation,
	}, mux.Deps{Sessions: s.sessions, Splices: s.spliceSet, Backends: backends, Audit: s.deps.Audit, Metrics: s.deps.Metrics, Log: s.deps.Log})
}

// lookupLocation returns the current location of a user, by routing.
func (s *Server) lookupLocation(ctx context.Context, user identity.User) (mux.Location, error) {
	route, err := s.deps.Routes.Lookup(ctx, user)
	location := mux.Location{Backend: route.Backend, Login: route.Login}
	if s.deps.Backends[route.Backend] != nil {
		location.Mode = s.logins.SelectMode(user, &route)
	}
	return location, err
}

// offeredCaps returns the backend's capabilities that the client may use.
func (s *Server) offeredCaps(a *login.Attempt, caps imap.Caps) imap.Caps {
	if a.Mode == event.ModeSplice {
		return caps.Without(imap.IsGatewayCapability)
	}
	return s.hub.OfferedCaps(a.Route.Backend, caps)
}
