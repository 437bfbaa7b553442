package admin

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
)

// Paths. Health and readiness are open to everybody who can connect: load
// balancers ask them and have no token, and they say one word.
const (
	pathMetrics  = "/metrics"
	pathHealth   = "/healthz"
	pathReady    = "/readyz"
	pathExplain  = "/v1/routes/explain"
	pathSessions = "/v1/sessions"
	pathBackends = "/v1/backends"
	pathLimits   = "/v1/limits"
	pathBans     = "/v1/bans"
)

// endpoint is what a path answers.
type endpoint struct {
	get     http.HandlerFunc            // to GET and HEAD
	changes map[string]http.HandlerFunc // to other methods
}

// allowedMethods is the methods of the page, as the header Allow lists them.
func (p endpoint) allowedMethods() string {
	return strings.Join(append([]string{"GET", "HEAD"}, slices.Sorted(maps.Keys(p.changes))...), ", ")
}

// newEndpoints has every path there is; a path is matched whole, byte by byte.
func newEndpoints(d Deps) map[string]endpoint {
	return map[string]endpoint{
		pathMetrics:  {get: d.Metrics.ServeHTTP},
		pathHealth:   {get: func(w http.ResponseWriter, _ *http.Request) { writeText(w, http.StatusOK, "ok") }},
		pathReady:    {get: d.serveReady},
		pathExplain:  {get: d.serveExplain},
		pathSessions: {get: d.serveSessions},
		pathBackends: {get: func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, d.ListBackends()) }},
		pathLimits:   {get: d.Limits.serveLimits, changes: map[string]http.HandlerFunc{http.MethodDelete: d.Limits.serveReset}},
		pathBans: {get: d.Limits.serveBanList, changes: map[string]http.HandlerFunc{
			http.MethodPost: d.Limits.serveBanAddition, http.MethodDelete: d.Limits.serveBanRemoval,
		}},
	}
}

// serveReady says whether a load balancer should send clients here.
func (d Deps) serveReady(w http.ResponseWriter, _ *http.Request) {
	if err := d.Ready(); err != nil {
		writeText(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	writeText(w, http.StatusOK, "ready")
}

// serveExplain answers ?user=NAME with where that user would go.
func (d Deps) serveExplain(w http.ResponseWriter, r *http.Request) {
	serveUserQuery(w, r, d.ExplainRoute)
}

// serveSessions answers ?user=NAME with the live sessions of that user here.
func (d Deps) serveSessions(w http.ResponseWriter, r *http.Request) {
	serveUserQuery(w, r, d.ListSessions)
}

func serveUserQuery(w http.ResponseWriter, r *http.Request, call func(context.Context, string) (any, error)) {
	users := r.URL.Query()["user"]
	if len(users) != 1 || users[0] == "" {
		writeText(w, http.StatusBadRequest, "one user is needed: "+r.URL.Path+"?user=alice@example.org")
		return
	}
	result, err := call(r.Context(), users[0])
	if err != nil {
		// Without the name: it is no account's, so it may be anything.
		writeText(w, http.StatusBadRequest, "no account can have this name")
		return
	}
	writeJSON(w, result)
}

// writeJSON says what JSON can hold.
func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // a client that went away
}

// writeText answers with one line of text.
func writeText(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text+"\n")
}
