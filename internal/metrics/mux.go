package metrics

import (
	"time"

	"imapgate/internal/event"

	"github.com/prometheus/client_golang/prometheus"
)

// Mux has the instruments of the modes reuse and resume. Its methods are safe for
// concurrent use.
type Mux struct {
	// Set once.
	reattachSeconds   prometheus.Histogram
	leaseSeconds      prometheus.Histogram
	reattaches        map[string]map[string]prometheus.Counter // by reason and result
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

func newMux(r registrar) *Mux {
	return &Mux{
		reattachSeconds: r.histogram("imapgate_mux_reattach_seconds", "From the request for an upstream to the session's resynchronization there.", latencyBuckets),
		leaseSeconds:    r.histogram("imapgate_mux_lease_wait_seconds", "Waiting time of sessions for an upstream connection.", latencyBuckets),
		reattaches: r.countersByLabels("imapgate_mux_reattaches_total", "Reattaches of sessions, by reason and result.",
			labelSet{"reason", event.Values("ReattachReason")}, labelSet{"result", event.Values("Result", "reattach")}),
		deferredExpunges: r.counter("imapgate_mux_reattach_expunge_deferred_total",
			"Reattaches that found expunged messages which could not be reported to the client at once."),
		expungeIssued: r.counter("imapgate_mux_expungeissued_total",
			"Commands that the gateway itself answered NO [EXPUNGEISSUED]."),
		retries:      r.countersByLabel("imapgate_mux_retries_total", "Commands sent again after the loss of an upstream.", "command", retried),
		terminations: r.countersByLabel("imapgate_mux_sessions_terminated_total", "Sessions that the gateway ended with BYE.", "reason", event.Values("Reason", "bye")),
		violations: r.countersByLabel("imapgate_backend_protocol_violations_total",
			"Protocol violations of backends, and views that differed from the backend's.",
			"kind", event.Values("Violation")),
		states:            r.gaugesByLabel("imapgate_mux_sessions", "Sessions, by state.", "state", event.Values("State")),
		pins:              r.countersByLabel("imapgate_mux_pins_total", "Sessions pinned to their upstream, by reason.", "reason", event.Values("PinReason")),
		consistencyChecks: r.countersByLabel("imapgate_mux_consistency_checks_total", "Consistency checks of views against the backend, by result.", "result", event.Values("Result", "check")),
		poolConnections:   r.gauge("imapgate_mux_pool_connections", "Idle upstream connections, kept for their account's next login."),
		poolReuses:        r.counter("imapgate_mux_pool_reused_total", "Idle upstream connections that were reused."),
		poolDiscards:      r.countersByLabel("imapgate_mux_pool_discarded_total", "Upstream connections closed instead of kept or reused, by reason.", "reason", event.Values("DiscardReason")),
	}
}

// CountReattach counts a reattach, successful or not, and its duration.
func (m *Mux) CountReattach(reason event.ReattachReason, result event.Result, duration time.Duration) {
	instrumentFor(instrumentFor(m.reattaches, reason), result).Inc()
	m.reattachSeconds.Observe(duration.Seconds())
}

// CountDeferredExpunge counts a reattach whose expunged messages must wait for a
// command that allows EXPUNGE responses.
func (m *Mux) CountDeferredExpunge() { m.deferredExpunges.Inc() }

// CountExpungeIssued counts a command that the gateway itself answered NO
// [EXPUNGEISSUED].
func (m *Mux) CountExpungeIssued() { m.expungeIssued.Inc() }

// CountRetry counts a command that was sent again, by its name in capitals.
func (m *Mux) CountRetry(command string) { instrumentFor(m.retries, command).Inc() }

// CountTermination counts a session that the gateway ended with BYE, with the audit
// log's reason.
func (m *Mux) CountTermination(reason event.Reason) { instrumentFor(m.terminations, reason).Inc() }

// CountViolation counts a protocol violation of a backend.
func (m *Mux) CountViolation(kind event.Violation) { instrumentFor(m.violations, kind).Inc() }

// ObserveLeaseWait records how long a session waited for an upstream connection.
func (m *Mux) ObserveLeaseWait(wait time.Duration) { m.leaseSeconds.Observe(wait.Seconds()) }

// ChangeState moves a session from one state to another. "" stands for before its
// begin and after its end.
func (m *Mux) ChangeState(from, to event.State) {
	if from != "" {
		instrumentFor(m.states, from).Dec()
	}
	if to != "" {
		instrumentFor(m.states, to).Inc()
	}
}

// CountPin counts a session that was pinned to its upstream.
func (m *Mux) CountPin(reason event.PinReason) { instrumentFor(m.pins, reason).Inc() }

// CountConsistencyCheck counts a comparison of a view with the backend.
func (m *Mux) CountConsistencyCheck(result event.Result) {
	instrumentFor(m.consistencyChecks, result).Inc()
}

// AddPoolConnections adds to the number of idle upstream connections.
func (m *Mux) AddPoolConnections(n int) { m.poolConnections.Add(float64(n)) }

// CountPoolReuse counts an idle connection that passed its checks and was reused.
func (m *Mux) CountPoolReuse() { m.poolReuses.Inc() }

// CountPoolDiscard counts a connection that was closed instead of kept or reused,
// whether it was idle before or not.
func (m *Mux) CountPoolDiscard(reason event.DiscardReason) {
	instrumentFor(m.poolDiscards, reason).Inc()
}
