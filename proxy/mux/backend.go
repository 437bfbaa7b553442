package mux

import (
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/internal/metrics"
	"imapgate/proxy/mux/pool"
)

// A backend that breaks its promises to so many users in this time is spliced: then
// nothing depends on them. One user's sessions never switch a backend that others
// use, whatever they do to it.
const (
	violations      = 3
	violationWindow = time.Hour
)

// backend is one backend, as all its sessions share it.
type backend struct {
	// Set once.
	name     string
	settings Settings
	pool     *pool.Pool
	queue    *queue // of those that attach; MaxAttaches at a time
	metrics  *metrics.Metrics
	log      *zap.Logger

	spliced atomic.Bool
	offered atomic.Pointer[offer] // the last: most are equal, and share one

	mu   sync.Mutex
	last [violations]violation // Guarded by mu. The latest first, one for each user.
}

// violation is a promise that was broken to a user.
type violation struct {
	user identity.User
	at   time.Time
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
		name: name, settings: s, metrics: m, log: h.rooms.Log.With(zap.String("backend", name)),
		queue: newQueue(s.MaxAttaches),
		pool: pool.New(b.Upstream, pool.Config{
			ReuseTTL: s.ReuseTTL, MaxAge: s.MaxAge, CredCache: s.CredCache, CredTTL: s.CredTTL,
			MaxPerUser: s.MaxPerUser, MaxTotal: s.MaxTotal,
		}, &h.shared, pool.Hooks{
			Reused: m.Mux.Reused, Discarded: m.Mux.Discarded, Waited: m.Mux.LeaseWaited, Waiting: m.Mux.PoolChanged,
		}, h.rooms.Log),
	}
}

// violated counts a promise that the backend has broken to a user.
func (b *backend) violated(kind string, user identity.User, now time.Time) {
	b.metrics.Mux.InvariantBroken(kind)
	b.log.Warn("backend broke a promise of IMAP", zap.String("kind", kind))
	if b.brokenOften(violation{user, now}) && b.spliced.CompareAndSwap(false, true) {
		b.metrics.Backend(b.name).SwitchedToSplice()
		b.log.Error("ALERT: backend has broken promises of IMAP to three users in an hour; its new sessions are spliced until the gateway is started again",
			zap.String("kind", kind))
	}
}

// brokenOften notes a violation, and says whether there were enough.
func (b *backend) brokenOften(v violation) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := 0
	for i < len(b.last)-1 && b.last[i].user != v.user {
		i++
	}
	copy(b.last[1:i+1], b.last[:i])
	b.last[0] = v
	return v.at.Sub(b.last[violations-1].at) < violationWindow
}
