package login

import (
	"context"
	"errors"
	"fmt"

	"imapgate/auth"
	"imapgate/internal/event"
	"imapgate/routing"
)

// errNoCredential reports a client verified without a password whose backend needs one.
var errNoCredential = errors.New("backend needs the user's password, and the client sent none")

// resolveRoute resolves the route of an identity, and checks that its backend accepts the
// credentials at hand.
func (c *Connector) resolveRoute(ctx context.Context, a *Attempt, id auth.Identity) (err error) {
	deps := &c.deps
	if c.cfg.RouteByAuth {
		a.Route, err = c.routeFromAuth(ctx, id)
	} else {
		a.Route, err = deps.Routes.Lookup(ctx, id.User())
	}
	if err != nil {
		return err
	}
	a.lookupRoute = a.Route
	backend := deps.Backends[a.Route.Backend]
	switch {
	case backend == nil:
		return fmt.Errorf("%w: no backend %q", routing.ErrUnavailable, a.Route.Backend)
	case backend.UsesMasterLogin() && !id.IsVerified():
		return errUnverified
	case !backend.AcceptsCredentials(id.Password(), id.Token()):
		return errNoCredential
	}
	a.LoginFromRoute = !c.cfg.RouteByAuth && id.LoginName() == ""
	if id.LoginName() != "" {
		a.Route.Login = id.LoginName()
	}
	return nil
}

// confirmRoute checks the route again after the backend has accepted the login. A login
// takes time, and no session may start on a route that has changed since. Moving a mailbox
// means ending its sessions and relies on no new one starting.
func (c *Connector) confirmRoute(ctx context.Context, a *Attempt) error {
	if c.cfg.RouteByAuth { // an auth server is not asked again
		return nil
	}
	return c.deps.Routes.Confirm(ctx, a.Login.User, a.lookupRoute)
}

// routeFromAuth returns the route that an auth server sent with its verdict. Only
// configured backends are possible: no answer can send a password elsewhere.
func (c *Connector) routeFromAuth(ctx context.Context, id auth.Identity) (routing.Route, error) {
	name, err := c.backends.find(ctx, id.BackendAddr())
	if err != nil {
		return routing.Route{}, err
	}
	c.deps.Metrics.CountRouteLookup(event.OriginHTTP)
	return routing.Route{User: id.User(), Backend: name, Login: id.User().String(), Origin: event.OriginHTTP}, nil
}
