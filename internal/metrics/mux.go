package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Mux is the instruments of the modes in which a session may outlive its
// upstream connection. Its methods are safe for concurrent use.
type Mux struct {
	// Set once.
	reattachSeconds   prometheus.Histogram
	leaseSeconds      prometheus.Histogram
	reattaches        map[reattachKey]prometheus.Counter
	deferredExpunges  prometheus.Counter
	expungeIssued     prometheus.Counter
	retries           map[string]prometheus.Counter
	terminations      map[string]prometheus.Counter
	violations        map[string]prometheus.Counter
	states            map[string]prometheus.Gauge
	pins              map[string]prometheus.Counter
	consistencyChecks map[string]prometheus.Counter
	poolConnections   prometheus.Gauge
	poolReuses        prometheus.Counter
	poolDiscards      map[string]prometheus.Counter
}

type reattachKey struct{ reason, result string }

func newMux(r registrar) *Mux {
	return &Mux{
		reattachSeconds: r.histogram("imapgate_mux_reattach_seconds", "From the wish for an upstream to a session that goes on there.", latencyBuckets),
		leaseSeconds:    r.histogram("imapgate_mux_lease_wait_seconds", "How long a session waited for an upstream connection.", latencyBuckets),
		reattaches:      r.reattachCounters(),
		deferredExpunges: r.counter("imapgate_mux_reattach_expunge_deferred_total",
			"Attaches that found messages gone whose loss the client could not be told at once."),
		expungeIssued: r.counter("imapgate_mux_expungeissued_total",
			"Commands answered NO [EXPUNGEISSUED] by the gateway itself."),
		retries:      r.countersByLabel("imapgate_mux_retries_total", "Commands sent again after an upstream was lost.", "command", retried),
		terminations: r.countersByLabel("imapgate_mux_sessions_terminated_total", "Sessions the gateway ended with BYE.", "reason", byeReasons),
		violations: r.countersByLabel("imapgate_backend_protocol_violations_total",
			"What a backend said that cannot be, or a view that was not the backend's. Three in an hour switch the backend to splice.",
			"kind", violations),
		states:            r.gaugesByLabel("imapgate_mux_sessions", "Sessions by what they hold.", "state", states),
		pins:              r.countersByLabel("imapgate_mux_pins_total", "Sessions pinned to their upstream, by why.", "reason", pinReasons),
		consistencyChecks: r.countersByLabel("imapgate_mux_consistency_checks_total", "Views compared with what the backend says.", "result", verifyResults),
		poolConnections:   r.gauge("imapgate_mux_pool_connections", "Upstream connections that wait for their account's next login."),
		poolReuses:        r.counter("imapgate_mux_pool_reused_total", "Waiting upstream connections that were used again."),
		poolDiscards:      r.countersByLabel("imapgate_mux_pool_discarded_total", "Upstream connections closed instead of kept, by why.", "reason", discards),
	}
}

// reattachCounters resolves the counters of all pairs of reason and result.
func (r registrar) reattachCounters() map[reattachKey]prometheus.Counter {
	vec := r.counterVec("imapgate_mux_reattaches_total", "Sessions that were given an upstream anew.", "reason", "result")
	set := make(map[reattachKey]prometheus.Counter)
	for _, reason := range append([]string{Other}, attachReasons...) {
		for _, result := range append([]string{Other}, attachResults...) {
			set[reattachKey{reason, result}] = vec.WithLabelValues(reason, result)
		}
	}
	return set
}

// CountReattach counts an attach, successful or not, and how long it took.
func (m *Mux) CountReattach(reason, result string, duration time.Duration) {
	key := reattachKey{reason, result}
	if _, known := m.reattaches[reattachKey{reason, Other}]; !known {
		key.reason = Other
	}
	if _, known := m.reattaches[reattachKey{Other, result}]; !known {
		key.result = Other
	}
	m.reattaches[key].Inc()
	m.reattachSeconds.Observe(duration.Seconds())
}

// CountDeferredExpunge counts an attach after which ghosts had to wait for a sync point.
func (m *Mux) CountDeferredExpunge() { m.deferredExpunges.Inc() }

// CountExpungeIssued counts a command we answered NO [EXPUNGEISSUED] ourselves.
func (m *Mux) CountExpungeIssued() { m.expungeIssued.Inc() }

// CountRetry counts a command that was sent a second time, by its name in capitals.
func (m *Mux) CountRetry(command string) { instrumentFor(m.retries, command).Inc() }

// CountTermination counts a session we ended with BYE, with the audit log's reason.
func (m *Mux) CountTermination(reason string) { instrumentFor(m.terminations, reason).Inc() }

// CountViolation counts what must not happen.
func (m *Mux) CountViolation(kind string) { instrumentFor(m.violations, kind).Inc() }

// ObserveLeaseWait counts how long a session waited for an upstream connection.
func (m *Mux) ObserveLeaseWait(wait time.Duration) { m.leaseSeconds.Observe(wait.Seconds()) }

// ChangeState moves a session from one state to another. From "" it begins, to ""
// it ends.
func (m *Mux) ChangeState(from, to string) {
	if from != "" {
		instrumentFor(m.states, from).Dec()
	}
	if to != "" {
		instrumentFor(m.states, to).Inc()
	}
}

// CountPin counts a session that stays with its upstream.
func (m *Mux) CountPin(reason string) { instrumentFor(m.pins, reason).Inc() }

// CountConsistencyCheck counts a comparison of a view with the backend.
func (m *Mux) CountConsistencyCheck(result string) { instrumentFor(m.consistencyChecks, result).Inc() }

// AddPoolConnections counts upstream connections that begin (+1) and cease (-1) to wait,
// whatever becomes of them.
func (m *Mux) AddPoolConnections(n int) { m.poolConnections.Add(float64(n)) }

// CountPoolReuse counts a waiting connection that passed its checks and is used again.
func (m *Mux) CountPoolReuse() { m.poolReuses.Inc() }

// CountPoolDiscard counts a connection that was closed instead of kept or handed out,
// whether it had waited or not.
func (m *Mux) CountPoolDiscard(reason string) { instrumentFor(m.poolDiscards, reason).Inc() }
