package proxy

import (
	"context"
	"errors"
	"fmt"

	"imapgate/auth"
	"imapgate/routing"
)

// errNothingToShow is a client that has proven who it is without a password,
// to a backend that wants to see one.
var errNothingToShow = errors.New("backend wants the user's password, and the client has shown none")

// place finds the backend of an identity, and makes sure that it can be logged
// in at with what there is.
func (s *session) place(ctx context.Context, a *attempt, id auth.Identity) (err error) {
	rooms := &s.server.rooms
	if s.server.cfg.Placed {
		a.route, err = s.server.placed(ctx, id)
	} else {
		a.route, err = rooms.Routes.Lookup(ctx, id.User())
	}
	if err != nil {
		return err
	}
	a.found = a.route
	backend := rooms.Backends[a.route.Backend]
	switch {
	case backend == nil:
		return fmt.Errorf("%w: no backend %q", routing.ErrUnavailable, a.route.Backend)
	case backend.Master() && !id.Decided():
		return errNobodyDecides
	case !backend.Shows(id.Password(), id.Token()):
		return errNothingToShow
	}
	a.routed = !s.server.cfg.Placed && id.Login() == ""
	if id.Login() != "" {
		a.route.Login = id.Login()
	}
	return nil
}

// confirm looks at the route again once the backend has let the user in: a login
// takes its time, and a record that was changed meanwhile must not be followed by a
// session where it no longer leads. Whoever moves a mailbox ends the sessions that
// are there, and relies on no other to begin.
func (s *session) confirm(ctx context.Context, a *attempt) error {
	if s.server.cfg.Placed { // the auth server is not asked again
		return nil
	}
	return s.server.rooms.Routes.Confirm(ctx, a.login.User, a.found)
}

// placed is the route that an auth server has given with its yes. Only a
// configured backend is gone to: no answer can lead a password elsewhere.
func (s *Server) placed(ctx context.Context, id auth.Identity) (routing.Route, error) {
	name, err := s.places.at(ctx, id.Placed())
	if err != nil {
		return routing.Route{}, err
	}
	s.rooms.Metrics.RouteLookup(string(routing.FromHTTP))
	return routing.Route{User: id.User(), Backend: name, Login: id.User().String(), From: routing.FromHTTP}, nil
}
