package metrics

import (
	"time"

	"imapgate/internal/event"

	"github.com/prometheus/client_golang/prometheus"
)

// delayBuckets range from the minimum delay of every denial to the longest delay
// that can be configured.
var delayBuckets = []float64{.25, .5, 1, 2, 4, 8, 15, 30, 60}

// Limits has the instruments of limits and delays. Its methods are safe for
// concurrent use.
type Limits struct {
	// Set once.
	ClusterConnected prometheus.Gauge   // 1 while limits are counted together with other gateways
	SprayDetections  prometheus.Counter // suspicions that a few passwords are being tried for many users

	refusals  map[string]prometheus.Counter
	throttles map[string]prometheus.Counter
	delays    prometheus.Histogram
}

func newLimits(r registrar) *Limits {
	return &Limits{
		ClusterConnected: r.gauge("imapgate_limits_cluster_connected",
			"1 while limits are counted together with the other gateways; at 0 this gateway counts alone."),
		SprayDetections: r.counter("imapgate_password_spray_detections_total", "Suspicions that a few passwords are being tried for many users."),
		refusals:        r.countersByLabel("imapgate_limit_refusals_total", "Connections, logins and uploads that a limit refused.", "limit", event.Values("Limit", "refusal")),
		throttles:       r.countersByLabel("imapgate_limit_throttled_total", "Delays of a session or a login by a limit.", "limit", event.Values("Limit", "throttle")),
		delays:          r.histogram("imapgate_login_delay_seconds", "Delays of logins because of earlier failed logins.", delayBuckets),
	}
}

// ObserveBans exports the number of bans. Each scrape calls count.
func (m *Metrics) ObserveBans(count func() int) {
	m.observe("imapgate_bans", "Banned addresses and networks.", nil, func() float64 { return float64(count()) })
}

// CountRefusal counts a connection, login or upload that a limit refused.
func (l *Limits) CountRefusal(limit event.Limit) { instrumentFor(l.refusals, limit).Inc() }

// CountThrottle counts a delay of a session or login by a limit.
func (l *Limits) CountThrottle(limit event.Limit) { instrumentFor(l.throttles, limit).Inc() }

// ObserveDelay records the delay of a login because of earlier failed logins.
func (l *Limits) ObserveDelay(delay time.Duration) { l.delays.Observe(delay.Seconds()) }
