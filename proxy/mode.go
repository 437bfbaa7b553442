package proxy

import (
	"context"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/proxy/login"
	"imapgate/proxy/mux"
	"imapgate/proxy/splice"
)

// newHub creates the hub of the mux sessions.
func (s *Server) newHub() (*mux.Hub, error) {
	backends := make(map[string]mux.Backend, len(s.deps.Backends))
	for name, b := range s.deps.Backends {
		backends[name] = mux.Backend{Upstream: b, Settings: s.cfg.Modes[name].Mux}
	}
	return mux.NewHub(mux.Config{
		ParkAfter: parkAfter, IdleTimeout: s.cfg.IdleTimeout, StallTimeout: s.cfg.WriteTimeout, MaxLine: s.cfg.MaxLine, OnBytes: s.deps.countBytes,
		Locate: s.lookupLocation, Splice: s.splicePinned,
	}, mux.Deps{Backends: backends, Audit: s.deps.Audit, Metrics: s.deps.Metrics, Log: s.deps.Log})
}

// lookupLocation returns the current location of a user, by routing.
func (s *Server) lookupLocation(ctx context.Context, user identity.User) (mux.Location, error) {
	route, err := s.deps.Routes.Lookup(ctx, user)
	return mux.Location{Backend: route.Backend, Login: route.Login}, err
}

// splicePinned splices the rest of a pinned session.
func (s *Server) splicePinned(client, backend mux.SpliceSide, until time.Time, onEnd func(mux.Result)) {
	s.spliceSet.Start(splice.Side(client), splice.Side(backend), until, func(r splice.Result) {
		onEnd(mux.Result{Reason: r.Reason, Err: r.Err, BytesIn: r.Up, BytesOut: r.Down})
	})
}

// offeredCaps returns the backend's capabilities that the client may use.
func (s *Server) offeredCaps(a *login.Attempt, caps imap.Caps) imap.Caps {
	if a.Mode == event.ModeSplice {
		return caps.Without(imap.IsGatewayCapability)
	}
	return s.hub.OfferedCaps(a.Route.Backend, caps)
}
