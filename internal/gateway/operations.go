package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"imapgate/internal/admin"
	"imapgate/internal/admin/api"
	"imapgate/internal/admin/legacy"
	"imapgate/internal/audit"
	"imapgate/internal/event"
)

// operations returns what operators can ask of this gateway.
func (g *Gateway) operations() []api.Endpoint {
	return slices.Concat([]api.Endpoint{
		api.ShowStatus.Handle(g.ShowStatus),
		api.ListGateways.Handle(g.ListGateways),
		api.ListSessions.Handle(g.ListSessions),
		api.GetSession.Handle(g.GetSession),
		api.EndSession.Handle(g.EndSession),
		api.ShowUser.Handle(g.ShowUser),
		api.KickUser.Handle(g.KickUser),
		api.ListBackends.Handle(g.ListBackends),
		api.GetBackend.Handle(g.GetBackend),
		api.ShowConfig.Handle(g.ShowConfig),
		api.Reload.Handle(g.APIReload),
		api.BeginDrain.Handle(g.BeginDrain),
		api.ShowDrain.Handle(g.ShowDrain),
	}, g.addressEndpoints(), g.limitEndpoints(), g.routeEndpoints())
}

// openAdmin creates the server for operators.
func (g *Gateway) openAdmin() {
	if g.cfg.Admin.Address == "" && g.cfg.Admin.Socket == "" {
		return
	}
	deps := admin.Deps{
		Version: g.version, Tokens: g.files.tokens, Metrics: g.metrics.Handler(), Ready: g.checkReady, OnRefusal: g.recordViewerRefused, Follow: g.audit.Follow,
		API: g.operations(), Legacy: g.legacyOperations(),
	}
	if g.files.admin != nil {
		deps.TLS = g.files.admin.Config
	}
	g.admin = admin.New(g.cfg.Admin, deps, g.log)
}

// recordViewerRefused records that a viewer tried to change something.
func (g *Gateway) recordViewerRefused(caller api.Caller, request string) {
	g.recordAction(event.ActionRefused, caller.Name, request, errViewer)
}

var errViewer = errors.New("a viewer may only read")

// recordAction records what an operator did.
func (g *Gateway) recordAction(action event.Action, by, subject string, err error) {
	record := audit.OperatorAction{Action: action, Operator: cmp.Or(by, "admin"), Subject: subject, Err: err}
	g.logLostRecord(event.OperatorAction, g.audit.OperatorAction(&record))
}

// legacyOperations returns the operations under /v1.
func (g *Gateway) legacyOperations() []legacy.Endpoint {
	limits := newLimitAdmin(g.cfg, g.limits)
	return []legacy.Endpoint{
		legacy.Handle(legacy.ExplainRoute, forUser(g, g.routes.Explain)),
		legacy.Handle(legacy.ListSessions, forUser(g, g.listSessions)),
		legacy.Handle(legacy.ListBackends, g.listBackends),
		legacy.Handle(legacy.ShowLimits, limits.ShowLimits),
		legacy.Handle(legacy.ListBans, limits.ListBans),
		legacy.Handle(legacy.ResetLimits, recorded(g, event.ActionLimitsReset, limits.ResetLimits)),
		legacy.Handle(legacy.AddBan, recorded(g, event.ActionBan, limits.AddBan)),
		legacy.Handle(legacy.RemoveBans, recorded(g, event.ActionUnban, limits.RemoveBans)),
	}
}

// forUser returns call for requests that name a user. The error of an invalid name omits
// it: no account has the name, so it may contain anything.
func forUser[Response any](g *Gateway, call func(context.Context, user) Response) func(context.Context, string) (Response, error) {
	return func(ctx context.Context, name string) (response Response, err error) {
		u, err := g.auth.Canonicalize(name)
		if err != nil {
			return response, fmt.Errorf("%w: invalid user name", legacy.ErrBadRequest)
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

func (g *Gateway) listSessions(_ context.Context, u user) legacy.SessionList {
	return legacy.SessionList{User: u.String(), Sessions: g.proxy.SessionsOf(u)}
}

func (g *Gateway) listBackends(context.Context, legacy.None) (legacy.BackendList, error) {
	return legacy.BackendList{Backends: g.proxy.Backends()}, nil
}
