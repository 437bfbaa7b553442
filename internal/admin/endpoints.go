package admin

import (
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
)

// Paths. Health and readiness need no token, because load balancers have none; they
// return one word.
const (
	pathMetrics = "/metrics"
	pathHealth  = "/healthz"
	pathReady   = "/readyz"
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
	all := map[string]endpoint{
		pathMetrics: {get: d.Metrics.ServeHTTP},
		pathHealth:  {get: func(w http.ResponseWriter, _ *http.Request) { writeText(w, http.StatusOK, "ok") }},
		pathReady:   {get: d.serveReady},
	}
	for _, o := range d.Operations {
		e := all[o.Path]
		if o.Method == http.MethodGet {
			e.get = o.Serve
		} else if e.changes == nil {
			e.changes = map[string]http.HandlerFunc{o.Method: o.Serve}
		} else {
			e.changes[o.Method] = o.Serve
		}
		all[o.Path] = e
	}
	return all
}

// serveReady tells load balancers whether to send clients here.
func (d Deps) serveReady(w http.ResponseWriter, _ *http.Request) {
	if err := d.Ready(); err != nil {
		writeText(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	writeText(w, http.StatusOK, "ready")
}

// writeText writes a status and one line of text.
func writeText(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text+"\n")
}
