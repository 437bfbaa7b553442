package admin

import (
	"encoding/json"
	"io"
	"net/http"
)

// Paths. Health and readiness are open to everybody who can connect: load
// balancers ask them and have no token, and they say one word.
const (
	pathMetrics = "/metrics"
	pathHealth  = "/healthz"
	pathReady   = "/readyz"
	pathExplain = "/v1/routes/explain"
)

// pages has every path there is; a path is matched whole, byte by byte.
func pages(s Shows) map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		pathMetrics: s.Metrics.ServeHTTP,
		pathHealth:  func(w http.ResponseWriter, _ *http.Request) { say(w, http.StatusOK, "ok") },
		pathReady:   s.ready,
		pathExplain: s.explain,
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
func (s Shows) explain(w http.ResponseWriter, r *http.Request) {
	users := r.URL.Query()["user"]
	if len(users) != 1 || users[0] == "" {
		say(w, http.StatusBadRequest, "one user is needed: "+pathExplain+"?user=alice@example.org")
		return
	}
	explained, err := s.Explain(r.Context(), users[0])
	if err != nil {
		// Without the name: it is no account's, so it may be anything.
		say(w, http.StatusBadRequest, "no account can have this name")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(explained) // a client that went away
}

// say answers with one line of text.
func say(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text+"\n")
}
