package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Mux is the instruments of the modes in which a session may outlive its
// upstream connection. Its methods are safe for concurrent use.
type Mux struct {
	// Set once.
	attachSeconds prometheus.Histogram
	leaseSeconds  prometheus.Histogram
	attaches      map[attachKey]prometheus.Counter
	ghosts        prometheus.Counter
	expungeIssued prometheus.Counter
	retries       map[string]prometheus.Counter
	byes          map[string]prometheus.Counter
	invariants    map[string]prometheus.Counter
	states        map[string]prometheus.Gauge
	pins          map[string]prometheus.Counter
	verifications map[string]prometheus.Counter
	waiting       prometheus.Gauge
	reused        prometheus.Counter
	discards      map[string]prometheus.Counter
}

type attachKey struct{ reason, result string }

func newMux(r register) *Mux {
	return &Mux{
		attachSeconds: r.histogram("imapgate_mux_reattach_seconds", "From the wish for an upstream to a session that goes on there.", waitBuckets),
		leaseSeconds:  r.histogram("imapgate_mux_lease_wait_seconds", "How long a session waited for an upstream connection.", waitBuckets),
		attaches:      r.attaches(),
		ghosts: r.counter("imapgate_mux_reattach_expunge_deferred_total",
			"Attaches that found messages gone whose loss the client could not be told at once."),
		expungeIssued: r.counter("imapgate_mux_expungeissued_total",
			"Commands answered NO [EXPUNGEISSUED] by the gateway itself."),
		retries: r.counters("imapgate_mux_retries_total", "Commands sent again after an upstream was lost.", "command", retried),
		byes:    r.counters("imapgate_mux_sessions_terminated_total", "Sessions the gateway ended with BYE.", "reason", byeReasons),
		invariants: r.counters("imapgate_backend_protocol_violations_total",
			"What a backend said that cannot be, or a view that was not the backend's. Three in an hour switch the backend to splice.",
			"kind", violations),
		states:        r.gauges("imapgate_mux_sessions", "Sessions by what they hold.", "state", states),
		pins:          r.counters("imapgate_mux_pins_total", "Sessions pinned to their upstream, by why.", "reason", pinReasons),
		verifications: r.counters("imapgate_mux_consistency_checks_total", "Views compared with what the backend says.", "result", verifyResults),
		waiting:       r.gauge("imapgate_mux_pool_connections", "Upstream connections that wait for their account's next login."),
		reused:        r.counter("imapgate_mux_pool_reused_total", "Waiting upstream connections that were used again."),
		discards:      r.counters("imapgate_mux_pool_discarded_total", "Upstream connections closed instead of kept, by why.", "reason", discards),
	}
}

// attaches resolves the counters of all pairs of reason and result.
func (r register) attaches() map[attachKey]prometheus.Counter {
	vec := r.counterVec("imapgate_mux_reattaches_total", "Sessions that were given an upstream anew.", "reason", "result")
	set := make(map[attachKey]prometheus.Counter)
	for _, reason := range append([]string{Other}, attachReasons...) {
		for _, result := range append([]string{Other}, attachResults...) {
			set[attachKey{reason, result}] = vec.WithLabelValues(reason, result)
		}
	}
	return set
}

// AttachDone counts an attach, successful or not, and how long it took.
func (m *Mux) AttachDone(reason, result string, took time.Duration) {
	key := attachKey{reason, result}
	if _, known := m.attaches[attachKey{reason, Other}]; !known {
		key.reason = Other
	}
	if _, known := m.attaches[attachKey{Other, result}]; !known {
		key.result = Other
	}
	m.attaches[key].Inc()
	m.attachSeconds.Observe(took.Seconds())
}

// GhostAttach counts an attach after which ghosts had to wait for a sync point.
func (m *Mux) GhostAttach() { m.ghosts.Inc() }

// ExpungeIssued counts a command we answered NO [EXPUNGEISSUED] ourselves.
func (m *Mux) ExpungeIssued() { m.expungeIssued.Inc() }

// Retried counts a command that was sent a second time, by its name in capitals.
func (m *Mux) Retried(command string) { member(m.retries, command).Inc() }

// ByeSaid counts a session we ended with BYE, with the audit log's reason.
func (m *Mux) ByeSaid(reason string) { member(m.byes, reason).Inc() }

// InvariantBroken counts what must not happen.
func (m *Mux) InvariantBroken(kind string) { member(m.invariants, kind).Inc() }

// LeaseWaited counts how long a session waited for an upstream connection.
func (m *Mux) LeaseWaited(took time.Duration) { m.leaseSeconds.Observe(took.Seconds()) }

// Moved moves a session from one state to another. From "" it begins, to ""
// it ends.
func (m *Mux) Moved(from, to string) {
	if from != "" {
		member(m.states, from).Dec()
	}
	if to != "" {
		member(m.states, to).Inc()
	}
}

// Pinned counts a session that stays with its upstream.
func (m *Mux) Pinned(reason string) { member(m.pins, reason).Inc() }

// Verified counts a comparison of a view with the backend.
func (m *Mux) Verified(result string) { member(m.verifications, result).Inc() }

// PoolChanged counts upstream connections that begin (+1) and cease (-1) to wait,
// whatever becomes of them.
func (m *Mux) PoolChanged(by int) { m.waiting.Add(float64(by)) }

// Reused counts a waiting connection that passed its checks and is used again.
func (m *Mux) Reused() { m.reused.Inc() }

// Discarded counts a connection that was closed instead of kept or handed out,
// whether it had waited or not.
func (m *Mux) Discarded(reason string) { member(m.discards, reason).Inc() }
