// Package mux relays sessions command by command: the modes reuse and resume.
//
// Each client command is framed, looked up in the table of package command, and sent byte
// for byte on a lease: an upstream connection that one session uses exclusively (packages
// lease and pool). Each response is framed and relayed byte for byte. A view (package
// view) records the state of the mailbox that the client has received. In mode resume, a
// session that loses its upstream gets another one, and the client receives the
// difference.
//
// One goroutine runs a session. While a session is quiet it has none: its sockets wait in
// an epoll set. So relaying takes no locks. The package knows neither logins nor
// splicing. A session whose state cannot be tracked is handed over to Config.Splice,
// permanently.
//
// Read in this order: session.go (the life of a session), commands.go and literals.go,
// relay.go, select.go, attach.go, attachqueue.go, snapshot.go, resync.go and
// visiblerange.go, recovery.go, silence.go, housekeeping.go, idle.go, stream.go, pin.go,
// unparsable.go, close.go.
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
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/internal/metrics"
	"imapgate/internal/parking"
	"imapgate/proxy/mux/pool"
	"imapgate/proxy/mux/wire"
	"imapgate/proxy/upstream"
)

// Config holds the settings and hooks that all backends share.
type Config struct {
	ParkAfter    time.Duration // quiet time after which a session gives up its goroutine
	IdleTimeout  time.Duration // quiet time after which a session ends
	StallTimeout time.Duration // time after which a peer that stops in the middle of a command or response is aborted
	// MaxLine bounds a client's line in bytes, with its CRLF and without literals. It is
	// at least 64 KB.
	MaxLine int
	OnBytes func(up, down int64)
	// Locate returns the current location of a user's mailbox. Sessions call it before
	// they open another connection.
	Locate func(context.Context, identity.User) (Location, error)
	// Splice takes over a session whose state cannot be tracked. until is
	// Client.ExpiresAt. Splice calls ended once, with the bytes relayed since the
	// handover.
	Splice func(client, backend SpliceSide, until time.Time, ended func(Result))
}

// Location is the part of a route that determines which mail a session sees.
type Location struct {
	Backend string
	Login   string // login name at the backend; "" if the route does not set one
}

// SpliceSide is one connection of a session that is handed over: Buffered is written to
// it first, and Throttle paces reads from it (splice.Side).
type SpliceSide struct {
	Conn     net.Conn
	Buffered []byte
	Throttle func(n int) time.Duration
}

// Result describes how a session ended.
type Result struct {
	Reason            event.Reason
	Err               error
	BytesIn, BytesOut int64 // bytes from the client, to the client
	// Commands is the number of client commands before the handover, if any.
	Commands uint64
}

// Deps holds the services that sessions use.
type Deps struct {
	Backends map[string]Backend
	Audit    *audit.Log
	Metrics  *metrics.Metrics
	Log      *zap.Logger
}

// Backend is one backend with its session settings.
type Backend struct {
	Upstream *upstream.Backend
	Settings Settings
}

// Hub holds all sessions of the modes reuse and resume, with their clock, their pools,
// and the epoll set of the quiet ones.
type Hub struct {
	// Set once.
	cfg         Config
	deps        Deps
	shared      wire.Resources
	poller      *parking.Poller
	backends    map[string]*backend
	ctx         context.Context // canceled by Close; parent of all waits
	cancel      context.CancelFunc
	startedAt   time.Time
	wg          sync.WaitGroup // the clock, all sessions and their goroutines
	pollerDone  sync.WaitGroup // the epoll goroutine
	parkedConns atomic.Uint64  // connections that have ever been parked

	mu       sync.Mutex
	sessions map[*session]struct{}  // Guarded by mu.
	active   map[*session]struct{}  // Guarded by mu. Sessions with a goroutine.
	expiries map[*session]time.Time // Guarded by mu. Ends of the sessions with a Client.ExpiresAt.
}

// NewHub returns a Hub and starts its clock. Close stops it.
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

// runPoller serves the epoll set. It ends when the Hub closes.
func (h *Hub) runPoller() {
	defer h.pollerDone.Done()
	h.poller.Run()
}

// Login verifies a login at the backend of location, or finds that it is already
// verified. The returned account entitles the session to connections there. After
// success, Login closes the user's idle connections at all other locations. Errors are
// upstream's.
func (h *Hub) Login(ctx context.Context, location Location, req upstream.Request, proof pool.Verification) (*pool.Account, error) {
	account, err := h.backends[location.Backend].pool.Login(ctx, req, proof)
	if err == nil {
		h.EvictElsewhere(req.User, location)
	}
	return account, err
}

// EvictElsewhere closes a user's idle connections outside location: at other backends,
// and under other login names than the route's.
func (h *Hub) EvictElsewhere(user identity.User, location Location) {
	for name, b := range h.backends {
		if name != location.Backend {
			b.pool.EvictUser(user, event.DiscardMoved)
		} else if location.Login != "" {
			b.pool.EvictOtherLogins(user, location.Login, event.DiscardMoved)
		}
	}
}

// CloseIdleConn closes one idle upstream connection of any backend to free its
// descriptor. It returns false if there is no idle connection.
func (h *Hub) CloseIdleConn() bool {
	for _, b := range h.backends {
		if b.pool.EvictOldest() {
			return true
		}
	}
	return false
}

// evictUser closes the idle connections of a user that the routes no longer admit.
func (h *Hub) evictUser(user identity.User) {
	for _, b := range h.backends {
		b.pool.EvictUser(user, event.DiscardCredentials)
	}
}

// ShouldSplice reports whether a new session of the user must be spliced because of
// recent protocol violations of the backend.
func (h *Hub) ShouldSplice(backend string, user identity.User) bool {
	return h.backends[backend].violations.shouldSplice(user, time.Now())
}

// ViolationStatus returns the violation status of a backend.
func (h *Hub) ViolationStatus(backend string) ViolationStatus {
	return h.backends[backend].violationStatus()
}

// OfferedCaps returns the capabilities that a client is offered at a backend with caps.
func (h *Hub) OfferedCaps(backend string, caps imap.Caps) imap.Caps {
	b := h.backends[backend]
	if last := b.lastOffer.Load(); last != nil && last.backendCaps == caps.String() {
		return last.caps
	}
	isHidden := func(name string) bool {
		return slices.ContainsFunc(b.settings.HideCapabilities, func(hidden string) bool { return strings.EqualFold(hidden, name) })
	}
	offered := caps.Without(func(name string) bool { return isNeverOffered(name) || isHidden(name) })
	b.lastOffer.Store(&cachedOffer{caps.String(), offered})
	return offered
}

// isNeverOffered reports whether a capability is always hidden: it would change the bytes
// or the user of a connection, or lead the client around the gateway. Or it would create
// connection state that no other connection can be given.
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

// Len returns the number of sessions, without those handed over.
func (h *Hub) Len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.sessions)
}

// uptime returns the time since the Hub started. Sessions store it instead of a
// time.Time, which is three times as large.
func (h *Hub) uptime() time.Duration { return time.Since(h.startedAt) }

func (h *Hub) allSessions() []*session {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Collect(maps.Keys(h.sessions))
}

// Drain requests the stop of all sessions but keep, not counting those already stopping.
// Each session ends with a BYE as soon as it has no command outstanding.
func (h *Hub) Drain(keep int, reason event.Reason) {
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

// AbortAll aborts all remaining sessions.
func (h *Hub) AbortAll(reason event.Reason) {
	for _, s := range h.allSessions() {
		s.abort(reason)
	}
}

// Close ends every session and waits for every goroutine.
func (h *Hub) Close() {
	h.cancel()
	h.AbortAll(event.Drained)
	h.wg.Wait()
	h.poller.Close() // no session uses it any more
	h.pollerDone.Wait()
	for _, b := range h.backends {
		b.pool.Close()
	}
}

const (
	tick        = 50 * time.Millisecond
	secondTicks = 20 // ticks: 1 s
)

func toTicks(d time.Duration) uint32 { return uint32((d + tick - 1) / tick) }

// runClock drives the timers of all sessions. It ends when the Hub closes.
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
				h.wg.Go(debug.FreeOSMemory) // takes as long as a collection
			}
		}
	}
}

func (h *Hub) activeSessions() []*session {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Collect(maps.Keys(h.active))
}

// endExpired ends the expired sessions: between two commands at first, unconditionally
// after finishTimeout.
func (h *Hub) endExpired(now time.Time) {
	for s, expiresAt := range h.copyExpiries() {
		switch {
		case now.Before(expiresAt):
		case now.Before(expiresAt.Add(finishTimeout)):
			s.requestStop(event.TokenExpired)
		default:
			s.abort(event.TokenExpired)
		}
	}
}

func (h *Hub) copyExpiries() map[*session]time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.expiries)
}

// expiryOf returns the time at which s must end, or zero.
func (h *Hub) expiryOf(s *session) time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.expiries[s]
}
