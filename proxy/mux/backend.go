package mux

import (
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/internal/metrics"
	"imapgate/proxy/mux/pool"
)

// backend is one backend, as all its sessions share it.
type backend struct {
	// Set once.
	name        string
	settings    Settings
	pool        *pool.Pool
	attachQueue *attachQueue // of those that attach; MaxConcurrentReattaches at a time
	metrics     *metrics.Metrics
	gauges      *metrics.Backend
	log         *zap.Logger

	violations   violationTracker
	sessionCount atomic.Int64                // sessions that are not pinned
	lastOffer    atomic.Pointer[cachedOffer] // the last: most are equal, and share one
}

// cachedOffer is what clients are told of a backend's capabilities.
type cachedOffer struct {
	backendCaps string // the backend's own list
	caps        imap.Caps
}

func newBackend(h *Hub, name string, b Backend) *backend {
	s := b.Settings.WithDefaults()
	m := h.deps.Metrics
	return &backend{
		name: name, settings: s, metrics: m, gauges: m.Backend(name), log: h.deps.Log.With(zap.String("backend", name)),
		attachQueue: newAttachQueue(s.MaxConcurrentReattaches),
		pool: pool.New(b.Upstream, pool.Config{
			IdleTimeout: s.PoolIdleTimeout, MaxAge: s.MaxAge, CacheCredentials: s.CredentialCache, CredentialTTL: s.CredentialCacheTTL,
			MaxPerUser: s.MaxPerUser, MaxTotal: s.MaxTotal,
		}, &h.shared, pool.Hooks{
			OnReuse: m.Mux.CountPoolReuse, OnDiscard: m.Mux.CountPoolDiscard, OnWait: m.Mux.ObserveLeaseWait, OnIdleChange: m.Mux.AddPoolConnections,
		}, h.deps.Log),
	}
}

// recordViolation counts a promise that the backend has broken to a user. counts is false where
// the session has counted already, or its client may have been the cause.
func (b *backend) recordViolation(violation string, user identity.User, counts bool) {
	b.metrics.Mux.CountViolation(violation)
	b.log.Warn("backend broke a promise of IMAP", zap.String("kind", violation), zap.Bool("counts", counts))
	if counts && b.violations.record(user, b.sessionCount.Load(), time.Now()) {
		b.log.Error("ALERT: backend has broken promises of IMAP to several users in an hour; its new sessions are spliced for now",
			zap.String("kind", violation))
		b.updateGauges(b.violationStatus())
	}
}

// violationStatus is what is thought of the backend now. Of what is over it is the end.
func (b *backend) violationStatus() ViolationStatus {
	t, spliceEnded := b.violations.prune(time.Now())
	if spliceEnded {
		b.log.Info("sessions of the backend are followed again")
	}
	return t
}

// updateGauges tells the metrics.
func (b *backend) updateGauges(t ViolationStatus) {
	b.gauges.SetSpliced(t.Spliced)
	b.gauges.SetSplicedUsers(t.SplicedUsers)
}
