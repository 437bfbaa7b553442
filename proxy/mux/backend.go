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
	name     string
	settings Settings
	pool     *pool.Pool
	queue    *queue // of those that attach; MaxAttaches at a time
	metrics  *metrics.Metrics
	gauges   *metrics.Backend
	log      *zap.Logger

	promises promises
	live     atomic.Int64          // sessions that are not pinned
	offered  atomic.Pointer[offer] // the last: most are equal, and share one
}

// offer is what clients are told of a backend's capabilities.
type offer struct {
	from string // the backend's own list
	caps imap.Caps
}

func newBackend(h *Hub, name string, b Backend) *backend {
	s := b.Settings.WithDefaults()
	m := h.rooms.Metrics
	return &backend{
		name: name, settings: s, metrics: m, gauges: m.Backend(name), log: h.rooms.Log.With(zap.String("backend", name)),
		queue: newQueue(s.MaxAttaches),
		pool: pool.New(b.Upstream, pool.Config{
			ReuseTTL: s.ReuseTTL, MaxAge: s.MaxAge, CredCache: s.CredCache, CredTTL: s.CredTTL,
			MaxPerUser: s.MaxPerUser, MaxTotal: s.MaxTotal,
		}, &h.shared, pool.Hooks{
			Reused: m.Mux.Reused, Discarded: m.Mux.Discarded, Waited: m.Mux.LeaseWaited, Waiting: m.Mux.PoolChanged,
		}, h.rooms.Log),
	}
}

// violated counts a promise that the backend has broken to a user. counts is false where
// the session has counted already, or its client may have been the cause.
func (b *backend) violated(kind string, user identity.User, counts bool) {
	b.metrics.Mux.InvariantBroken(kind)
	b.log.Warn("backend broke a promise of IMAP", zap.String("kind", kind), zap.Bool("counts", counts))
	if counts && b.promises.broken(user, b.live.Load(), time.Now()) {
		b.log.Error("ALERT: backend has broken promises of IMAP to several users in an hour; its new sessions are spliced for now",
			zap.String("kind", kind))
		b.show(b.trust())
	}
}

// trust is what is thought of the backend now. Of what is over it is the end.
func (b *backend) trust() Trust {
	t, closed := b.promises.sweep(time.Now())
	if closed {
		b.log.Info("sessions of the backend are followed again")
	}
	return t
}

// show tells the metrics.
func (b *backend) show(t Trust) {
	b.gauges.Spliced(t.Spliced)
	b.gauges.SplicedUsers(t.SplicedUsers)
}
