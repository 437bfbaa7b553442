package proxy

import (
	"context"
	"errors"
	"fmt"

	"imapgate/auth"
	"imapgate/routing"
)

// errNoCredential is a client that has proven who it is without a password,
// to a backend that wants to see one.
var errNoCredential = errors.New("backend wants the user's password, and the client has shown none")

// resolveRoute finds the backend of an identity, and makes sure that it can be logged
// in at with what there is.
func (c *connection) resolveRoute(ctx context.Context, a *attempt, id auth.Identity) (err error) {
	deps := &c.server.deps
	if c.server.cfg.RouteByAuth {
		a.route, err = c.server.routeFromAuth(ctx, id)
	} else {
		a.route, err = deps.Routes.Lookup(ctx, id.User())
	}
	if err != nil {
		return err
	}
	a.lookupRoute = a.route
	backend := deps.Backends[a.route.Backend]
	switch {
	case backend == nil:
		return fmt.Errorf("%w: no backend %q", routing.ErrUnavailable, a.route.Backend)
	case backend.UsesMasterLogin() && !id.IsVerified():
		return errUnverified
	case !backend.AcceptsCredentials(id.Password(), id.Token()):
		return errNoCredential
	}
	a.loginFromRoute = !c.server.cfg.RouteByAuth && id.LoginName() == ""
	if id.LoginName() != "" {
		a.route.Login = id.LoginName()
	}
	return nil
}

// confirmRoute looks at the route again once the backend has let the user in: a login
// takes its time, and a record that was changed meanwhile must not be followed by a
// session where it no longer leads. Whoever moves a mailbox ends the sessions that
// are there, and relies on no other to begin.
func (c *connection) confirmRoute(ctx context.Context, a *attempt) error {
	if c.server.cfg.RouteByAuth { // the auth server is not asked again
		return nil
	}
	return c.server.deps.Routes.Confirm(ctx, a.login.User, a.lookupRoute)
}

// routeFromAuth is the route that an auth server has given with its yes. Only a
// configured backend is gone to: no answer can lead a password elsewhere.
func (s *Server) routeFromAuth(ctx context.Context, id auth.Identity) (routing.Route, error) {
	name, err := s.backends.find(ctx, id.BackendAddr())
	if err != nil {
		return routing.Route{}, err
	}
	s.deps.Metrics.CountRouteLookup(string(routing.OriginHTTP))
	return routing.Route{User: id.User(), Backend: name, Login: id.User().String(), Origin: routing.OriginHTTP}, nil
}
