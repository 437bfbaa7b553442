package proxy

import (
	"context"
	"time"

	"imapgate/auth"
	"imapgate/internal/audit"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/proxy/mux"
	"imapgate/proxy/mux/pool"
	"imapgate/proxy/splice"
	"imapgate/proxy/upstream"
	"imapgate/routing"
)

// spliceMode is the mode of sessions whose commands nobody reads.
const spliceMode = "splice"

// admitted is a login at a backend, in whichever mode: an upstream.Conn to be
// spliced, or an account of a pool.
type admitted interface {
	User() identity.User
	Caps() imap.Caps
	OK() upstream.OK
	Close() error
}

// account is a pool.Account as admitted.
type account struct{ *pool.Account }

func (a account) Close() error {
	a.Account.Close()
	return nil
}

// newHub makes the hub of the sessions that are more than spliced.
func (s *Server) newHub() (*mux.Hub, error) {
	backends := make(map[string]mux.Backend, len(s.rooms.Backends))
	for name, b := range s.rooms.Backends {
		backends[name] = mux.Backend{Upstream: b, Settings: s.cfg.Modes[name].Mux}
	}
	return mux.NewHub(mux.Config{
		Quiet: silent, Idle: s.cfg.Idle, Write: s.cfg.Write, MaxLine: s.cfg.MaxLine, Bytes: s.rooms.relayed,
		Home: s.home, Splice: s.takeOver,
	}, mux.Rooms{Backends: backends, Audit: s.rooms.Audit, Metrics: s.rooms.Metrics, Log: s.rooms.Log})
}

// home is what a user's route says now.
func (s *Server) home(ctx context.Context, user identity.User) (mux.Home, error) {
	route, err := s.rooms.Routes.Lookup(ctx, user)
	return mux.Home{Backend: route.Backend, Login: route.Login}, err
}

// home is where the session of an attempt belongs. A login name that an auth
// server has given is not asked about again.
func (a *attempt) home() mux.Home {
	h := mux.Home{Backend: a.route.Backend}
	if a.routed {
		h.Login = a.route.Login
	}
	return h
}

// takeOver splices what is left of a session that the hub cannot account for.
func (s *Server) takeOver(client, backend mux.End, until time.Time, ended func(mux.Result)) {
	s.spliced.Start(splice.Side(client), splice.Side(backend), until, func(r splice.Result) {
		ended(mux.Result{Reason: audit.Reason(r.Reason), Err: r.Err, Up: r.Up, Down: r.Down})
	})
}

// mode is how a session of a user on this route is relayed. A backend that breaks what
// the other modes build on is spliced.
func (s *Server) mode(user identity.User, r *routing.Route) string {
	name := r.Mode
	if name == "" {
		name = s.cfg.Modes[r.Backend].Name
	}
	switch {
	case s.mux.Spliced(r.Backend, user):
		return spliceMode
	case name == string(mux.Reuse):
		return name
	case name == string(mux.Resume), name == "park": // which is resume and more
		return string(mux.Resume)
	}
	return spliceMode
}

// login proves the client's identity to its backend.
func (s *Server) login(ctx context.Context, a *attempt, id auth.Identity, who upstream.Request) (admitted, error) {
	if a.mode == spliceMode {
		conn, err := s.rooms.Backends[a.route.Backend].Login(ctx, who)
		if err != nil {
			return nil, err // not a nil *Conn in an interface
		}
		s.mux.Settle(who.User, a.home())
		return conn, nil
	}
	proof := pool.Asked
	if id.Decided() {
		proof = pool.Vouched
	}
	made, err := s.mux.Login(ctx, a.home(), who, proof)
	if err != nil {
		return nil, err
	}
	made.TokenEnds(id.Expires())
	return account{made}, nil
}

// offered is what the client may use of what the backend can do.
func (s *Server) offered(a *attempt, caps imap.Caps) imap.Caps {
	if a.mode == spliceMode {
		return caps.Without(notOffered)
	}
	return s.mux.Offered(a.route.Backend, caps)
}
