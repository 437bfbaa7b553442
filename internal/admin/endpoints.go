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

// Paths. Health and readiness need no token, because load balancers have none; they
// return one word.
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

// endpoint has the handlers of a path.
type endpoint struct {
	get     http.HandlerFunc            // for GET and HEAD
	changes map[string]http.HandlerFunc // for other methods
}

// allowedMethods returns the methods of the path, in the form of the header Allow.
func (e endpoint) allowedMethods() string {
	return strings.Join(append([]string{"GET", "HEAD"}, slices.Sorted(maps.Keys(e.changes))...), ", ")
}

// newEndpoints returns all paths; a path must match exactly.
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

// serveReady tells load balancers whether to send clients here.
func (d Deps) serveReady(w http.ResponseWriter, _ *http.Request) {
	if err := d.Ready(); err != nil {
		writeText(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	writeText(w, http.StatusOK, "ready")
}

// serveExplain returns the route of ?user=NAME.
func (d Deps) serveExplain(w http.ResponseWriter, r *http.Request) {
	serveUserQuery(w, r, d.ExplainRoute)
}

// serveSessions returns the live sessions of ?user=NAME at this gateway.
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
		// The text omits the name: no account has it, so it may contain anything.
		writeText(w, http.StatusBadRequest, "invalid user name")
		return
	}
	writeJSON(w, result)
}

// writeJSON writes v as JSON.
func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // an error means that the client has disconnected
}

// writeText writes a status and one line of text.
func writeText(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text+"\n")
}
