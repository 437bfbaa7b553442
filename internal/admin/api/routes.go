package api

import "net/http"

// Operations on route records. Constant.
var (
	ListRoutes = Operation[RouteFilter, RouteList]{
		Method: http.MethodGet, Path: "/api/v1/routes", ID: "list-routes", Summary: "The route records",
	}
	ImportRoutes = Operation[RouteImport, RouteImportAnswer]{
		Method: http.MethodPost, Path: "/api/v1/routes/import", ID: "import-routes", Summary: "Write many route records", MaxBody: MaxImport,
	}
	GetUserRoute       = routeOperation[NamedRoute](http.MethodGet, "user", "/users/{name}", "The route record of a user")
	SetUserRoute       = routeOperation[SetNamedRoute](http.MethodPut, "user", "/users/{name}", "Change the route record of a user")
	DeleteUserRoute    = routeOperation[DeleteNamedRoute](http.MethodDelete, "user", "/users/{name}", "Remove the route record of a user")
	GetDomainRoute     = routeOperation[NamedRoute](http.MethodGet, "domain", "/domains/{name}", "The route record of a domain")
	SetDomainRoute     = routeOperation[SetNamedRoute](http.MethodPut, "domain", "/domains/{name}", "Change the route record of a domain")
	DeleteDomainRoute  = routeOperation[DeleteNamedRoute](http.MethodDelete, "domain", "/domains/{name}", "Remove the route record of a domain")
	GetDefaultRoute    = routeOperation[None](http.MethodGet, "default", "/default", "The route record of all others")
	SetDefaultRoute    = routeOperation[RouteChange](http.MethodPut, "default", "/default", "Change the route record of all others")
	DeleteDefaultRoute = routeOperation[RouteRemoval](http.MethodDelete, "default", "/default", "Remove the route record of all others")
)

func routeOperation[Input any](method, kind, path, summary string) Operation[Input, RouteRecord] {
	verb := map[string]string{http.MethodGet: "get", http.MethodPut: "set", http.MethodDelete: "delete"}[method]
	return Operation[Input, RouteRecord]{Method: method, Path: "/api/v1/routes" + path, ID: verb + "-" + kind + "-route", Summary: summary}
}

// NamedRoute names the record of a user or a domain.
type NamedRoute struct {
	Name string `path:"name" maxLength:"512"`
}

// IfMatch makes a change conditional.
type IfMatch struct {
	ETag string `header:"If-Match" doc:"The ETag of the record as the caller has seen it. Left out: whatever the record is."`
}

// RouteChange changes fields of a record. An empty value removes a field; others stay.
type RouteChange struct {
	IfMatch
	Body map[string]string
}

// RouteRemoval removes a record.
type RouteRemoval struct{ IfMatch }

// SetNamedRoute changes the record of a user or a domain.
type SetNamedRoute struct {
	NamedRoute
	RouteChange
}

// DeleteNamedRoute removes the record of a user or a domain.
type DeleteNamedRoute struct {
	NamedRoute
	RouteRemoval
}

// RouteRecord is one record. Its fields are null if there is none.
type RouteRecord struct {
	Kind   string            `json:"kind" enum:"user,domain,default"`
	Name   string            `json:"name,omitempty"`
	Fields map[string]string `json:"fields" nullable:"true"`
	ETag   string            `json:"etag,omitempty"`
}

// Version returns the ETag.
func (r RouteRecord) Version() string { return r.ETag }

// RouteFilter selects records.
type RouteFilter struct {
	Page
	Kind    string `query:"kind" enum:"user,domain,default"`
	Backend string `query:"backend" maxLength:"63"`
	Match   string `query:"match" maxLength:"512" doc:"A name; with * for any characters."`
}

// RouteList is a page of records.
type RouteList struct {
	Routes []RouteRecord `json:"routes" nullable:"false"`
	Next   string        `json:"next,omitempty"`
}

// RouteImport writes many records.
type RouteImport struct {
	DryRun bool `query:"dry_run" doc:"Change nothing; only report."`
	Body   struct {
		Routes []RouteRecord `json:"routes" maxItems:"100000"`
	}
}

// RouteImportAnswer is what an import has done.
type RouteImportAnswer struct {
	Created   int      `json:"created"`
	Changed   int      `json:"changed"`
	Unchanged int      `json:"unchanged"`
	Refused   int      `json:"refused"`
	Errors    []string `json:"errors" nullable:"false" doc:"Why records were refused; the first 100."`
}
