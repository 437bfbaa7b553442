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

// page is what a path answers.
type page struct {
	shows   http.HandlerFunc            // to GET and HEAD
	changes map[string]http.HandlerFunc // to other methods
}

// allowed is the methods of the page, as the header Allow lists them.
func (p page) allowed() string {
	return strings.Join(append([]string{"GET", "HEAD"}, slices.Sorted(maps.Keys(p.changes))...), ", ")
}

// pages has every path there is; a path is matched whole, byte by byte.
func pages(s Shows) map[string]page {
	return map[string]page{
		pathMetrics:  {shows: s.Metrics.ServeHTTP},
		pathHealth:   {shows: func(w http.ResponseWriter, _ *http.Request) { say(w, http.StatusOK, "ok") }},
		pathReady:    {shows: s.ready},
		pathExplain:  {shows: s.explain},
		pathSessions: {shows: s.sessions},
		pathBackends: {shows: func(w http.ResponseWriter, _ *http.Request) { answer(w, s.Backends()) }},
		pathLimits:   {shows: s.Limits.show, changes: map[string]http.HandlerFunc{http.MethodDelete: s.Limits.forgive}},
		pathBans: {shows: s.Limits.list, changes: map[string]http.HandlerFunc{
			http.MethodPost: s.Limits.add, http.MethodDelete: s.Limits.remove,
		}},
	}
}

// ready says whether a load balancer should send clients here.
func (s Shows) ready(w http.ResponseWriter, _ *http.Request) {
	if err := s.Ready(); err != nil {
		say(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	say(w, http.StatusOK, "ready")
}

// explain answers ?user=NAME with where that user would go.
func (s Shows) explain(w http.ResponseWriter, r *http.Request) { askedOfUser(w, r, s.Explain) }

// sessions answers ?user=NAME with the live sessions of that user here.
func (s Shows) sessions(w http.ResponseWriter, r *http.Request) { askedOfUser(w, r, s.Sessions) }

func askedOfUser(w http.ResponseWriter, r *http.Request, call func(context.Context, string) (any, error)) {
	users := r.URL.Query()["user"]
	if len(users) != 1 || users[0] == "" {
		say(w, http.StatusBadRequest, "one user is needed: "+r.URL.Path+"?user=alice@example.org")
		return
	}
	result, err := call(r.Context(), users[0])
	if err != nil {
		// Without the name: it is no account's, so it may be anything.
		say(w, http.StatusBadRequest, "no account can have this name")
		return
	}
	answer(w, result)
}

// answer says what JSON can hold.
func answer(w http.ResponseWriter, what any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(what) // a client that went away
}

// say answers with one line of text.
func say(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text+"\n")
}
