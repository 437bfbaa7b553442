package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// limitNames are the limits that turn something away, as in the audit log. Constant.
var limitNames = []string{"banned", "address_connections", "address_before_login", "network_before_login",
	"connection_rate", "user_connections", "user_address", "total", "address_failures", "user_failures", "pair_failures",
	"append", "upstream_logins", "upstream_rate"}

// holdNames are the limits that make sessions and logins wait. Constant.
var holdNames = []string{"commands", "bytes_in", "bytes_out", "upstream_logins", "upstream_rate"}

// delayBuckets reach from the floor of every denial to the longest wait that can be
// set.
var delayBuckets = []float64{.25, .5, 1, 2, 4, 8, 15, 30, 60}

// Limits is the instruments of what keeps clients out, or waiting. Its methods
// are safe for concurrent use.
type Limits struct {
	// Set once.
	ClusterConnected prometheus.Gauge   // 1 while limits are counted together with other gateways
	SprayDetections  prometheus.Counter // suspicions that a few passwords are tried for many users

	refusals  map[string]prometheus.Counter
	throttles map[string]prometheus.Counter
	delays    prometheus.Histogram
}

func newLimits(r registrar) *Limits {
	return &Limits{
		ClusterConnected: r.gauge("imapgate_limits_cluster_connected",
			"1 while limits are counted together with the other gateways; at 0 this one counts alone."),
		SprayDetections: r.counter("imapgate_password_spray_detections_total", "Times that a few passwords seemed to be tried for many users."),
		refusals:        r.countersByLabel("imapgate_limit_refusals_total", "Connections, logins and uploads that a limit turned away.", "limit", limitNames),
		throttles:       r.countersByLabel("imapgate_limit_throttled_total", "Times that a limit made a session or a login wait.", "limit", holdNames),
		delays:          r.histogram("imapgate_login_delay_seconds", "How long logins were made to wait because others had failed.", delayBuckets),
	}
}

// ObserveBans shows, at each scrape, how many bans there are.
func (m *Metrics) ObserveBans(count func() int) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "imapgate_bans", Help: "Addresses and networks that are banned.",
	}, func() float64 { return float64(count()) }))
}

// CountRefusal counts a connection, login or upload that a limit turned away.
func (l *Limits) CountRefusal(limit string) { instrumentFor(l.refusals, limit).Inc() }

// CountThrottle counts a wait of a session or login, for a limit.
func (l *Limits) CountThrottle(limit string) { instrumentFor(l.throttles, limit).Inc() }

// ObserveDelay counts a login that was made to wait because others had failed, and how long.
func (l *Limits) ObserveDelay(delay time.Duration) { l.delays.Observe(delay.Seconds()) }
