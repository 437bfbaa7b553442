package mux

import (
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/internal/metrics"
	"imapgate/proxy/relay/mux/pool"
)

// backend is one backend with the state that its sessions share.
type backend struct {
	// Set once.
	hub         *Hub
	name        string
	settings    Settings
	pool        *pool.Pool
	attachQueue *attachQueue // of attaching sessions, MaxConcurrentReattaches at a time
	metrics     *metrics.Metrics
	log         *zap.Logger

	violations   violationTracker
	sessionCount atomic.Int64                // sessions, without the pinned ones
	lastOffer    atomic.Pointer[cachedOffer] // last result of OfferedCaps: most sessions have equal capabilities and share it
}

// cachedOffer is the result of OfferedCaps for a backend's capabilities.
type cachedOffer struct {
	backendCaps string // the backend's own list
	caps        imap.Caps
}

func newBackend(h *Hub, name string, cfg Backend) *backend {
	s, m := cfg.Settings, h.deps.Metrics
	b := &backend{
		hub: h, name: name, settings: s, metrics: m, log: h.deps.Log.With(zap.String("backend", name)),
		attachQueue: newAttachQueue(s.MaxConcurrentReattaches),
		pool: pool.New(cfg.Upstream, pool.Config{Settings: s.Settings}, &h.shared, pool.Hooks{
			OnReuse: m.Mux.CountPoolReuse, OnDiscard: m.Mux.CountPoolDiscard, OnWait: m.Mux.ObserveLeaseWait, OnIdleChange: m.Mux.AddPoolConnections,
		}, h.deps.Log),
	}
	m.ObserveSplicing(name, func() bool { return b.violationStatus().Spliced }, func() int { return b.violationStatus().SplicedUsers })
	return b
}

// recordViolation records a protocol violation. counts is false if the session has been
// counted before or its client may be the cause.
func (b *backend) recordViolation(violation event.Violation, user identity.User, counts bool) {
	b.metrics.Mux.CountViolation(violation)
	b.log.Warn("backend violated IMAP", zap.String("kind", string(violation)), zap.Bool("counts", counts))
	if counts && b.violations.record(user, b.sessionCount.Load(), time.Now()) {
		b.log.Error("ALERT: backend violated IMAP for several users in an hour; its new sessions are spliced for now",
			zap.String("kind", string(violation)))
		time.AfterFunc(time.Until(b.violationStatus().SplicedUntil), func() { b.violationStatus() })
	}
}

// violationStatus returns the current status, after the removal of expired violations.
func (b *backend) violationStatus() ViolationStatus {
	status, spliceEnded := b.violations.prune(time.Now())
	if spliceEnded {
		b.log.Info("new sessions of the backend are no longer spliced")
	}
	return status
}
