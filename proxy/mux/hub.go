// Package mux relays sessions command by command: the modes reuse and resume.
//
// Every command of a client is framed, looked up in one table (command) and sent
// byte for byte on a lease, an upstream connection that is this session's alone
// (lease, pool); every response is framed and passed on byte for byte. What the
// client has been told of its mailbox is kept as a view (view), so that in mode
// resume a session whose upstream is lost gets another one and is told what has
// changed meanwhile.
//
// One goroutine does all of a session in turn, and there is none while a session
// is quiet: then its sockets wait in an epoll set. So nothing on the way of a
// byte is locked. The package does not know how clients log in, or what spliced
// bytes mean: a session whose state cannot be accounted for is handed to whoever
// splices, for good.
//
// Read in this order: session.go (the life of a session), commands.go and
// literals.go, relay.go, selecting.go, attach.go, queue.go, snapshot.go, flush.go
// and confine.go, loss.go, silence.go, gap.go, idle.go, stream.go, pin.go,
// odd.go, end.go.
package mux

import (
	"context"
	"maps"
	"net"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/audit"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/internal/metrics"
	"imapgate/internal/parking"
	"imapgate/proxy/mux/pool"
	"imapgate/proxy/mux/wire"
	"imapgate/proxy/upstream"
)

// Mode says what becomes of a session whose upstream is lost.
type Mode string

// The modes.
const (
	Reuse  Mode = "reuse"  // the session ends with it
	Resume Mode = "resume" // it gets another
)

// Config is what all backends share.
type Config struct {
	ParkAfter    time.Duration // a session in which nothing is said for this long gives up its goroutine
	IdleTimeout  time.Duration // … and for this long ends
	StallTimeout time.Duration // a peer that takes or gives nothing in the middle of something for this long is cut off
	// MaxLine bounds a client's line in bytes, with its CRLF and without literals; at
	// least 64 KB.
	MaxLine int
	OnBytes func(up, down int64)
	// Locate is where a user's mailbox lives now, for sessions that need another
	// connection to it.
	Locate func(context.Context, identity.User) (Location, error)
	// Splice takes a session over whose state cannot be accounted for. ended is
	// called once, with what was relayed since. until is Client.ExpiresAt.
	Splice func(client, backend SpliceSide, until time.Time, ended func(Result))
}

// Location is all of a route that decides whose mail a session sees.
type Location struct {
	Backend string
	Login   string // the name to use there; "" where no route says it
}

// SpliceSide is one connection of a session that is handed on, what goes to it before
// anything else, and how fast it may be read (splice.Side).
type SpliceSide struct {
	Conn     net.Conn
	Buffered []byte
	Throttle func(n int) time.Duration
}

// Result is how a session ended.
type Result struct {
	Reason            audit.Reason
	Err               error
	BytesIn, BytesOut int64 // bytes from the client, to the client
	// Commands of the client, until nobody read them any more.
	Commands uint64
}

// Deps are the other rooms, as sessions ask them.
type Deps struct {
	Backends map[string]Backend
	Audit    *audit.Log
	Metrics  *metrics.Metrics
	Log      *zap.Logger
}

// Backend is one backend and how its sessions are treated.
type Backend struct {
	Upstream *upstream.Backend
	Settings Settings
}

// Hub is all sessions of the modes reuse and resume, with their clock, their
// pools, and the epoll set in which they are quiet.
type Hub struct {
	// Set once.
	cfg         Config
	deps        Deps
	shared      wire.Resources
	poller      *parking.Poller
	backends    map[string]*backend
	ctx         context.Context // ends when the Hub closes; for what sessions wait for
	cancel      context.CancelFunc
	startedAt   time.Time
	wg          sync.WaitGroup // the clock, every session, and every goroutine of one
	pollerDone  sync.WaitGroup // the epoll set
	parkedConns atomic.Uint64  // connections that have begun to be quiet, each counted once

	mu       sync.Mutex
	sessions map[*session]struct{}  // Guarded by mu.
	active   map[*session]struct{}  // Guarded by mu. Those with a goroutine.
	expiries map[*session]time.Time // Guarded by mu. When those end that have a Client.ExpiresAt.
}

// NewHub starts the clock. Close ends it.
func NewHub(cfg Config, deps Deps) (*Hub, error) {
	poller, err := parking.NewPoller()
	if err != nil {
		return nil, err
	}
	h := &Hub{
		cfg: cfg, deps: deps, poller: poller, startedAt: time.Now(),
		shared:   wire.Resources{Buffers: parking.NewBufferPool(), Clock: new(wire.Clock), MaxLine: cfg.MaxLine},
		backends: make(map[string]*backend, len(deps.Backends)),
		sessions: map[*session]struct{}{}, active: map[*session]struct{}{}, expiries: map[*session]time.Time{},
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	for name, b := range deps.Backends {
		h.backends[name] = newBackend(h, name, b)
	}
	h.wg.Add(1)
	go h.runClock()
	h.pollerDone.Add(1)
	go h.runPoller()
	return h, nil
}

// runPoller runs the epoll set. It ends when the Hub closes.
func (h *Hub) runPoller() {
	defer h.pollerDone.Done()
	h.poller.Run()
}

// Login proves who to the backend of home, or finds that it is proven: what comes
// out is the session's right to connections there. Once it is proven, nothing
// waits for the user anywhere else. Errors are upstream's.
func (h *Hub) Login(ctx context.Context, location Location, req upstream.Request, proof pool.Verification) (*pool.Account, error) {
	account, err := h.backends[location.Backend].pool.Login(ctx, req, proof)
	if err == nil {
		h.EvictElsewhere(req.User, location)
	}
	return account, err
}

// EvictElsewhere closes what waits for a user at any other backend than the one where
// their mailbox is, and there under any other login name than the route's.
func (h *Hub) EvictElsewhere(user identity.User, location Location) {
	for name, b := range h.backends {
		if name != location.Backend {
			b.pool.EvictUser(user, metrics.DiscardMoved)
		} else if location.Login != "" {
			b.pool.EvictOtherLogins(user, location.Login, metrics.DiscardMoved)
		}
	}
}

// CloseIdleConn closes a connection that only waits, at any backend, because its descriptor is
// needed. It returns false where none does.
func (h *Hub) CloseIdleConn() bool {
	for _, b := range h.backends {
		if b.pool.EvictOldest() {
			return true
		}
	}
	return false
}

// evictUser closes what waits for a user whom the routes do not let in any more.
func (h *Hub) evictUser(user identity.User) {
	for _, b := range h.backends {
		b.pool.EvictUser(user, metrics.DiscardCredentials)
	}
}

// ShouldSplice says whether a session of the user at the backend is to be spliced, because
// the backend has broken its promises too often of late.
func (h *Hub) ShouldSplice(backend string, user identity.User) bool {
	return h.backends[backend].violations.shouldSplice(user, time.Now())
}

// ViolationStatus is what is thought of a backend.
func (h *Hub) ViolationStatus(backend string) ViolationStatus {
	return h.backends[backend].violationStatus()
}

// OfferedCaps is what a client may be told that a backend with these capabilities
// can do.
func (h *Hub) OfferedCaps(backend string, caps imap.Caps) imap.Caps {
	b := h.backends[backend]
	if last := b.lastOffer.Load(); last != nil && last.backendCaps == caps.String() {
		return last.caps
	}
	hidden := b.settings.HideCapabilities
	offered := caps.Without(func(name string) bool { return isNeverOffered(name) || slices.Contains(hidden, name) })
	b.lastOffer.Store(&cachedOffer{caps.String(), offered})
	return offered
}

// isNeverOffered names what would change the bytes or the user of a connection, lead
// the client around the gateway, or give the connection a state that no other
// can be given.
func isNeverOffered(name string) bool {
	switch name {
	case "UNAUTHENTICATE", "STARTTLS", "LOGINDISABLED", "MAILBOX-REFERRALS", "LOGIN-REFERRALS", "LANGUAGE", "UIDONLY":
		return true
	}
	for _, prefix := range [...]string{"AUTH=", "COMPRESS=", "I18NLEVEL=", "ANNOTATE-EXPERIMENT-"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// Len is the number of sessions, those not counted that were handed on.
func (h *Hub) Len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.sessions)
}

// uptime is the time since the Hub began: how sessions remember when something was,
// in a third of what a time.Time takes.
func (h *Hub) uptime() time.Duration { return time.Since(h.startedAt) }

func (h *Hub) allSessions() []*session {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Collect(maps.Keys(h.sessions))
}

// Drain ends sessions with a BYE, each as soon as it has no command outstanding, until
// no more than keep are left that have not been told to end.
func (h *Hub) Drain(keep int, reason audit.Reason) {
	for _, s := range h.allSessions() {
		if s.stopReason.Load() != nil {
			continue
		}
		if keep > 0 {
			keep--
			continue
		}
		s.requestStop(reason)
	}
}

// AbortAll cuts every session off that is still there.
func (h *Hub) AbortAll(reason audit.Reason) {
	for _, s := range h.allSessions() {
		s.abort(reason)
	}
}

// Close ends every session and waits for every goroutine.
func (h *Hub) Close() {
	h.cancel()
	h.AbortAll(audit.Drained)
	h.wg.Wait()
	h.poller.Close() // which nobody asks any more
	h.pollerDone.Wait()
	for _, b := range h.backends {
		b.pool.Close()
	}
}

// The clock's pace.
const (
	tick        = 50 * time.Millisecond
	secondTicks = 20 // ticks: 1 s
)

func toTicks(d time.Duration) uint32 { return uint32((d + tick - 1) / tick) }

// runClock is the one timer of all sessions. It ends when the Hub closes.
func (h *Hub) runClock() {
	defer h.wg.Done()
	t := time.NewTicker(tick)
	defer t.Stop()
	parkAfter, stallAfter := toTicks(h.cfg.ParkAfter), toTicks(h.cfg.StallTimeout)
	var parkBurst parking.BurstDetector
	for {
		select {
		case <-h.ctx.Done():
			return
		case <-t.C:
		}
		now := h.shared.Clock.Tick()
		for _, s := range h.activeSessions() {
			s.onTick(parkAfter, stallAfter)
		}
		if now%secondTicks == 0 {
			for _, s := range h.allSessions() {
				s.onSecond(now)
			}
			h.endExpired(time.Now())
			for _, b := range h.backends {
				b.updateGauges(b.violationStatus())
			}
			if parkBurst.CheckOver(h.parkedConns.Load(), h.Len()) {
				h.wg.Go(debug.FreeOSMemory) // it takes a collection's time
			}
		}
	}
}

func (h *Hub) activeSessions() []*session {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Collect(maps.Keys(h.active))
}

// endExpired ends the sessions whose time is over: between two commands, or a
// finishTimeout later wherever they are.
func (h *Hub) endExpired(now time.Time) {
	for s, expiresAt := range h.copyExpiries() {
		switch {
		case now.Before(expiresAt):
		case now.Before(expiresAt.Add(finishTimeout)):
			s.requestStop(audit.TokenExpired)
		default:
			s.abort(audit.TokenExpired)
		}
	}
}

func (h *Hub) copyExpiries() map[*session]time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.expiries)
}

// expiryOf is when s has to end; zero: whenever it likes.
func (h *Hub) expiryOf(s *session) time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.expiries[s]
}
