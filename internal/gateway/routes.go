package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"imapgate/internal/admin/api"
	"imapgate/internal/event"
	"imapgate/internal/sanitize"
	"imapgate/routing"
)

// routeEndpoints are the operations on route records.
func (g *Gateway) routeEndpoints() []api.Endpoint {
	return []api.Endpoint{
		api.ListRoutes.Handle(g.ListRoutes),
		api.ImportRoutes.Handle(g.ImportRoutes),
		api.GetUserRoute.Handle(named(g.targetOf("user"), g.getRoute)),
		api.GetDomainRoute.Handle(named(g.targetOf("domain"), g.getRoute)),
		api.GetDefaultRoute.Handle(func(ctx context.Context, _ *api.None) (api.RouteRecord, error) {
			return g.getRoute(ctx, routing.ForDefault())
		}),
		api.SetUserRoute.Handle(g.setNamed(g.targetOf("user"))),
		api.SetDomainRoute.Handle(g.setNamed(g.targetOf("domain"))),
		api.SetDefaultRoute.Handle(func(ctx context.Context, in *api.RouteChange) (api.RouteRecord, error) {
			return g.setRoute(ctx, routing.ForDefault(), in)
		}),
		api.DeleteUserRoute.Handle(g.deleteNamed(g.targetOf("user"))),
		api.DeleteDomainRoute.Handle(g.deleteNamed(g.targetOf("domain"))),
		api.DeleteDefaultRoute.Handle(func(ctx context.Context, in *api.RouteRemoval) (api.RouteRecord, error) {
			return g.deleteRoute(ctx, routing.ForDefault(), in.ETag)
		}),
	}
}

// namedTarget returns the target of a name; its error is an operator's mistake.
type namedTarget func(name string) (routing.Target, error)

func (g *Gateway) targetOf(kind string) namedTarget {
	return func(name string) (routing.Target, error) {
		t, err := routing.TargetOf(g.cfg.Auth.NameRules, kind, name)
		return t, routeError(err)
	}
}

func named(target namedTarget, call func(context.Context, routing.Target) (api.RouteRecord, error)) func(context.Context, *api.NamedRoute) (api.RouteRecord, error) {
	return func(ctx context.Context, in *api.NamedRoute) (r api.RouteRecord, err error) {
		t, err := target(in.Name)
		if err != nil {
			return r, err
		}
		return call(ctx, t)
	}
}

func (g *Gateway) setNamed(target namedTarget) func(context.Context, *api.SetNamedRoute) (api.RouteRecord, error) {
	return func(ctx context.Context, in *api.SetNamedRoute) (r api.RouteRecord, err error) {
		t, err := target(in.Name)
		if err != nil {
			return r, err
		}
		return g.setRoute(ctx, t, &in.RouteChange)
	}
}

func (g *Gateway) deleteNamed(target namedTarget) func(context.Context, *api.DeleteNamedRoute) (api.RouteRecord, error) {
	return func(ctx context.Context, in *api.DeleteNamedRoute) (r api.RouteRecord, err error) {
		t, err := target(in.Name)
		if err != nil {
			return r, err
		}
		return g.deleteRoute(ctx, t, in.ETag)
	}
}

// getRoute returns a record.
func (g *Gateway) getRoute(ctx context.Context, t routing.Target) (api.RouteRecord, error) {
	fields, err := g.routes.Record(ctx, t)
	return newRouteRecord(t, fields), err
}

func newRouteRecord(t routing.Target, fields map[string]string) api.RouteRecord {
	r := api.RouteRecord{Kind: t.Kind(), Name: t.String(), Fields: fields}
	if t == routing.ForDefault() {
		r.Name = ""
	}
	text, _ := json.Marshal(fields) // keys are sorted
	sum := sha256.Sum256(text)
	r.ETag = hex.EncodeToString(sum[:16])
	return r
}

// checkMatch returns an error if the caller has not seen the record as it is.
func (g *Gateway) checkMatch(ctx context.Context, t routing.Target, etag string) error {
	if etag == "" {
		return nil
	}
	now, err := g.getRoute(ctx, t)
	switch {
	case err != nil:
		return err
	case etag == "*" && now.Fields == nil:
		return fmt.Errorf("%w: there is no record", api.ErrChanged)
	case etag != "*" && strings.Trim(etag, `"`) != now.ETag:
		return api.ErrChanged
	}
	return nil
}

func (g *Gateway) setRoute(ctx context.Context, t routing.Target, in *api.RouteChange) (api.RouteRecord, error) {
	if len(in.Body) == 0 {
		return api.RouteRecord{}, fmt.Errorf("%w: no field is given", api.ErrBadRequest)
	}
	err := g.checkMatch(ctx, t, in.ETag)
	if err == nil {
		err = g.routes.SetRecord(ctx, t, in.Body)
		g.recordAction(event.ActionRoute, api.CallerOf(ctx).Name, t.String(), err)
	}
	if err != nil {
		return api.RouteRecord{}, routeError(err)
	}
	return g.getRoute(ctx, t)
}

func (g *Gateway) deleteRoute(ctx context.Context, t routing.Target, etag string) (api.RouteRecord, error) {
	if err := g.checkMatch(ctx, t, etag); err != nil {
		return api.RouteRecord{}, err
	}
	removed, err := g.routes.DeleteRecord(ctx, t)
	g.recordAction(event.ActionRoute, api.CallerOf(ctx).Name, t.String(), err)
	if err == nil && !removed {
		err = fmt.Errorf("%w: %s has no record", api.ErrNotFound, t)
	}
	return newRouteRecord(t, nil), routeError(err)
}

// routeError returns an error of a change of a record as one of package api.
func routeError(err error) error {
	if errors.Is(err, routing.ErrInvalidRecord) {
		return fmt.Errorf("%w: %w", api.ErrBadRequest, err)
	}
	return err
}

// ListRoutes returns a page of the route records.
func (g *Gateway) ListRoutes(ctx context.Context, in *api.RouteFilter) (api.RouteList, error) {
	cursor, err := base64.RawURLEncoding.DecodeString(in.Cursor)
	if err != nil {
		return api.RouteList{}, fmt.Errorf("%w: the cursor is not one of this API", api.ErrBadRequest)
	}
	records, next, err := g.routes.List(ctx, routing.ListQuery{Kind: in.Kind, Backend: in.Backend, Name: in.Match}, string(cursor), in.Limit)
	list := api.RouteList{Routes: make([]api.RouteRecord, 0, len(records))}
	for _, r := range records {
		list.Routes = append(list.Routes, newRouteRecord(r.Target, r.Fields))
	}
	if next != "" {
		list.Next = base64.RawURLEncoding.EncodeToString([]byte(next))
	}
	return list, routeError(err)
}

// maxImportErrors bounds the errors in the answer to an import.
const maxImportErrors = 100

// ImportRoutes writes many route records. Each is written or refused by itself.
func (g *Gateway) ImportRoutes(ctx context.Context, in *api.RouteImport) (api.RouteImportAnswer, error) {
	answer := api.RouteImportAnswer{Errors: []string{}}
	for _, r := range in.Body.Routes {
		target, err := routing.TargetOf(g.cfg.Auth.NameRules, r.Kind, r.Name)
		var result routing.ImportResult
		if err == nil {
			result, err = g.routes.Import(ctx, target, r.Fields, in.DryRun)
		}
		switch {
		case err != nil && !errors.Is(err, routing.ErrInvalidRecord):
			return answer, err // Redis: the rest would fail too
		case err != nil:
			if answer.Refused++; len(answer.Errors) < maxImportErrors {
				answer.Errors = append(answer.Errors, sanitize.Line(err.Error(), 500))
			}
		case result == routing.ImportCreated:
			answer.Created++
		case result == routing.ImportChanged:
			answer.Changed++
		default:
			answer.Unchanged++
		}
	}
	if !in.DryRun {
		g.recordAction(event.ActionRoute, api.CallerOf(ctx).Name, fmt.Sprintf("import of %d records", len(in.Body.Routes)), nil)
	}
	return answer, nil
}
