package gateway

import (
	"context"
	"fmt"

	"imapgate/internal/admin/api"
	"imapgate/internal/audit"
	"imapgate/internal/event"
)

// operations returns what operators can ask of this gateway.
func (g *Gateway) operations() []api.Endpoint {
	limits := newLimitAdmin(g.cfg, g.limits)
	return []api.Endpoint{
		api.Handle(api.ExplainRoute, forUser(g, g.routes.Explain)),
		api.Handle(api.ListSessions, forUser(g, g.listSessions)),
		api.Handle(api.ListBackends, g.listBackends),
		api.Handle(api.ShowLimits, limits.ShowLimits),
		api.Handle(api.ListBans, limits.ListBans),
		api.Handle(api.ResetLimits, recorded(g, event.ActionLimitsReset, limits.ResetLimits)),
		api.Handle(api.AddBan, recorded(g, event.ActionBan, limits.AddBan)),
		api.Handle(api.RemoveBans, recorded(g, event.ActionUnban, limits.RemoveBans)),
	}
}

// forUser returns call for requests that name a user. The error of an invalid name omits
// it: no account has the name, so it may contain anything.
func forUser[Response any](g *Gateway, call func(context.Context, user) Response) func(context.Context, string) (Response, error) {
	return func(ctx context.Context, name string) (response Response, err error) {
		u, err := g.auth.Canonicalize(name)
		if err != nil {
			return response, fmt.Errorf("%w: invalid user name", api.ErrBadRequest)
		}
		return call(ctx, u), nil
	}
}

// recorded returns call with an audit record of each request, whose text is its subject.
func recorded[Request, Response any](g *Gateway, action event.Action, call func(context.Context, Request) (Response, error)) func(context.Context, Request) (Response, error) {
	return func(ctx context.Context, request Request) (Response, error) {
		response, err := call(ctx, request)
		record := audit.OperatorAction{Action: action, Operator: "admin", Subject: fmt.Sprint(request), Err: err}
		g.logLostRecord(event.OperatorAction, g.audit.OperatorAction(&record))
		return response, err
	}
}

func (g *Gateway) listSessions(_ context.Context, u user) api.SessionList {
	return api.SessionList{User: u.String(), Sessions: g.proxy.SessionsOf(u)}
}

func (g *Gateway) listBackends(context.Context, api.None) (api.BackendList, error) {
	return api.BackendList{Backends: g.proxy.Backends()}, nil
}
