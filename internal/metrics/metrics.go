// Package metrics holds the gateway's Prometheus instruments, as fields and methods
// of one struct that other packages get.
//
// Every label has a closed set of values: those of internal/event and below, and the
// listeners, backends and certificate files of the configuration. A value outside
// its set is counted as "other", so no client can create a new series. Children are
// resolved when the struct is made; counting does not allocate. The package does not
// interpret the numbers, and serves them only as an http.Handler for the admin
// address.
package metrics

import (
	"net/http"
	"runtime"
	"time"

	"imapgate/internal/event"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// maxScrapes bounds concurrent scrapes, so that those of a stuck scraper do not
// accumulate.
const maxScrapes = 4

// latencyBuckets range from a cached route with a near backend to the timeout of an
// upstream login.
var latencyBuckets = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}

// Directions of relayed bytes.
const (
	toClient  = "to_client"
	toBackend = "to_backend"
)

// Sets of label values that are no words of internal/event. Constant.
var (
	// As in package auth: LOGIN is the command, the others are SASL mechanisms.
	mechanisms = []string{"LOGIN", "AUTH=PLAIN", "AUTH=LOGIN", "AUTH=EXTERNAL", "AUTH=SCRAM-SHA-1",
		"AUTH=SCRAM-SHA-1-PLUS", "AUTH=SCRAM-SHA-256", "AUTH=SCRAM-SHA-256-PLUS", "AUTH=OAUTHBEARER", "AUTH=XOAUTH2"}
	// Commands whose repetition has no visible effect.
	retried = []string{"NOOP", "CHECK", "CONVERT", "UID CONVERT", "XAPPLEPUSHSERVICE", "SELECT", "EXAMINE", "UNSELECT", "FETCH", "UID FETCH", "STORE",
		"UID STORE", "SEARCH", "UID SEARCH", "SORT", "UID SORT", "THREAD", "UID THREAD", "UID EXPUNGE", "UIDBATCHES", "ESEARCH",
		"LIST", "LSUB", "XLIST", "RLIST", "RLSUB", "NAMESPACE", "STATUS", "SUBSCRIBE", "UNSUBSCRIBE", "GETACL", "SETACL",
		"DELETEACL", "LISTRIGHTS", "MYRIGHTS", "GETQUOTA", "GETQUOTAROOT", "SETQUOTA", "GETMETADATA", "SETMETADATA",
		"GETANNOTATION", "GENURLAUTH", "URLFETCH", "RESETKEY", "GETJMAPACCESS", "CONVERSIONS"}
)

// Metrics has every instrument of a gateway.
type Metrics struct {
	// Set once. All instruments are safe for concurrent use.
	PreauthConnections         prometheus.Gauge   // connections that have not logged in
	BytesToClient              prometheus.Counter // relayed after the login
	BytesToBackend             prometheus.Counter
	IdentityViolations         prometheus.Counter // must stay 0: a session got another user's upstream
	RouteInvalidationConnected prometheus.Gauge   // 1 while Redis announces route changes
	RoutesEmptied              prometheus.Gauge   // 1 while Redis lacks known records
	Mux                        *Mux               // of the modes reuse and resume
	Limits                     *Limits            // of connections and failed logins

	registry         *prometheus.Registry
	connections      *prometheus.CounterVec
	probes           *prometheus.CounterVec
	upstreamConnects *prometheus.CounterVec
	sessions         map[string]prometheus.Gauge
	logins           map[string]map[string]prometheus.Counter // by result and mechanism
	loginSeconds     map[string]prometheus.Observer
	routes           map[string]prometheus.Counter
	sessionEnds      map[string]prometheus.Counter
	handshakes       map[string]prometheus.Counter
	reloads          map[string]prometheus.Counter
	reloadSuccess    prometheus.Gauge
	reloadTime       prometheus.Gauge
}

// New creates the instruments, in their own registry.
func New(version string) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	r := registrar{m.registry}
	m.PreauthConnections = r.gauge("imapgate_preauth_connections", "Connections that have not logged in.")
	m.IdentityViolations = r.counter("imapgate_identity_violations_total",
		"Sessions ended because the upstream belonged to another user. Any value but 0 is an emergency.")
	m.RouteInvalidationConnected = r.gauge("imapgate_route_invalidation_connected",
		"1 while Redis announces route changes to this gateway; at 0 they are noticed after the cache's ttl.")
	m.RoutesEmptied = r.gauge("imapgate_routes_emptied",
		"1 while most of the known route records are missing from Redis; no user is then treated as unknown.")
	m.reloadSuccess = r.gauge("imapgate_config_reload_success", "1 if the last reload succeeded, 0 if it was refused.")
	m.reloadTime = r.gauge("imapgate_config_reload_timestamp_seconds", "When the configuration in use was loaded.")

	bytes := r.countersByLabel("imapgate_bytes_total", "Bytes relayed after the login.", "direction", []string{toClient, toBackend})
	m.BytesToClient, m.BytesToBackend = bytes[toClient], bytes[toBackend]
	m.routes = r.countersByLabel("imapgate_route_lookups_total", "Lookups of users, by source of the answer.", "source", event.Values("Origin"))
	m.sessionEnds = r.countersByLabel("imapgate_session_ends_total", "Ended sessions, by reason.", "reason", event.Values("Reason", "session"))
	m.handshakes = r.countersByLabel("imapgate_tls_handshakes_total", "TLS handshakes with clients.", "result", event.Values("Result", "handshake"))
	m.reloads = r.countersByLabel("imapgate_config_reloads_total", "Reloads of the configuration.", "result", event.Values("Result", "reload"))

	m.connections = r.counterVec("imapgate_connections_total", "Accepted connections.", "listener")
	m.probes = r.counterVec("imapgate_probes_total", "Connections that ended cleanly without a login attempt, by activity.", "listener", "kind")
	m.upstreamConnects = r.counterVec("imapgate_upstream_connects_total", "Connection and login attempts at backends, by result.", "backend", "result")
	m.sessions = r.gaugesByLabel("imapgate_sessions", "Logged-in sessions.", "mode", event.Values("Mode"))
	m.Mux = newMux(r)
	m.Limits = newLimits(r)
	results := event.Values("Result", "login")
	m.logins = r.countersByLabels("imapgate_logins_total", "Login attempts.", labelSet{"result", results}, labelSet{"mechanism", mechanisms})
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "imapgate_login_seconds", Help: "From the complete login command to its answer.", Buckets: latencyBuckets,
	}, []string{"result"})
	r.MustRegister(seconds)
	m.loginSeconds = byLabel(results, seconds.WithLabelValues)
	m.registerProcess(version)
	return m
}

func (m *Metrics) registerProcess(version string) {
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "imapgate_build_info", Help: "Always 1; the labels identify the build.",
		ConstLabels: prometheus.Labels{"version": version, "go": runtime.Version()},
	})
	build.Set(1)
	m.registry.MustRegister(build, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
}

// Handler serves the instruments in Prometheus's text format.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes})
}

// Connections returns the counter of a configured listener. Call it once for each.
func (m *Metrics) Connections(listener string) prometheus.Counter {
	return m.connections.WithLabelValues(listener)
}

// Probes returns the counters of a configured listener by kind. Call it once for
// each.
func (m *Metrics) Probes(listener string) map[event.Probe]prometheus.Counter {
	counters := make(map[event.Probe]prometheus.Counter)
	for _, kind := range event.Values("Probe") {
		counters[event.Probe(kind)] = m.probes.WithLabelValues(listener, kind)
	}
	return counters
}

// BeginSession counts the begin of a session. Each needs one EndSession.
func (m *Metrics) BeginSession(mode event.Mode) { instrumentFor(m.sessions, mode).Inc() }

// EndSession counts the end of a session, with the audit log's reason.
func (m *Metrics) EndSession(mode event.Mode, reason event.Reason) {
	instrumentFor(m.sessions, mode).Dec()
	instrumentFor(m.sessionEnds, reason).Inc()
}

// CountLogin counts a login attempt and the time until its answer.
func (m *Metrics) CountLogin(result event.Result, mechanism string, duration time.Duration) {
	instrumentFor(instrumentFor(m.logins, result), mechanism).Inc()
	instrumentFor(m.loginSeconds, result).Observe(duration.Seconds())
}

// CountRouteLookup counts a route lookup, by source of the answer.
func (m *Metrics) CountRouteLookup(source event.Origin) { instrumentFor(m.routes, source).Inc() }

// CountHandshake counts a client's TLS handshake, by result.
func (m *Metrics) CountHandshake(result event.Result) { instrumentFor(m.handshakes, result).Inc() }

// CountReload counts a reload; err is why it was refused, or nil.
func (m *Metrics) CountReload(err error) {
	if err != nil {
		m.reloads[string(event.ResultRefused)].Inc()
		m.reloadSuccess.Set(0)
		return
	}
	m.reloads[string(event.ResultOK)].Inc()
	m.reloadSuccess.Set(1)
	m.reloadTime.SetToCurrentTime()
}
