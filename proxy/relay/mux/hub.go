// Package mux relays sessions command by command: the modes reuse and resume.
//
// Each client command is framed, looked up in the table of package command, and sent byte
// for byte on a lease: an upstream connection that one session uses exclusively (packages
// lease and pool). Each response is framed and relayed byte for byte. A mailbox (package
// mailbox) records what the client has received. In mode resume, a session that loses its
// upstream gets another one, and the client receives the difference.
//
// A session is an exchange with a life. The exchange consists of the client's side, the
// upstream's side and the mailbox, and relays between them; its methods return the loss of
// the upstream as an error. The session recovers from it.
//
// One goroutine runs a session. While a session is quiet it has none: its sockets wait in
// an epoll set. So relaying takes no locks. The package does not know logins. A session
// whose state cannot be tracked is handed over to package splice, permanently.
//
// docs/ARCHITECTURE.md has the order in which to read the files.
package mux

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/audit"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/internal/metrics"
	"imapgate/internal/parking"
	"imapgate/proxy/relay"
	"imapgate/proxy/relay/mux/pool"
	"imapgate/proxy/relay/mux/wire"
	"imapgate/proxy/relay/splice"
	"imapgate/proxy/upstream"
)

// Config holds the settings and hooks that all backends share.
type Config struct {
	ParkAfter    time.Duration // quiet time after which a session gives up its goroutine
	StallTimeout time.Duration // time after which a peer that stops in the middle of a command or response is aborted
	// MaxLine bounds a client's line in bytes, with its CRLF and without literals. It is
	// at least 64 KB.
	MaxLine int
	// Locate returns the current location of a user's mailbox. Sessions call it before
	// they open another connection. A *relay.CloseError ends them.
	Locate func(context.Context, identity.User) (Location, error)
}

// Location is the part of a route that determines which mail a session sees.
type Location struct {
	Backend string
	Login   string     // login name at the backend; "" if the route does not set one
	Mode    event.Mode // of a new session; used by those that move
}

// Deps holds the services that sessions use.
type Deps struct {
	Sessions *relay.Registry
	Splices  *splice.Set // takes over sessions whose state cannot be tracked
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

// Hub relays all sessions of the modes reuse and resume. It holds their pools and the
// epoll set of the quiet ones.
type Hub struct {
	// Set once.
	cfg       Config
	deps      Deps
	shared    wire.Resources
	poller    *parking.Poller
	backends  map[string]*backend
	ctx       context.Context // canceled by Close; parent of all waits
	cancel    context.CancelFunc
	startedAt time.Time

	wg         sync.WaitGroup // all sessions and their goroutines
	pollerDone sync.WaitGroup // the epoll goroutine
}

// NewHub returns a Hub. Close ends its goroutines.
func NewHub(cfg Config, deps Deps) (*Hub, error) {
	poller, err := parking.NewPoller()
	if err != nil {
		return nil, err
	}
	h := &Hub{
		cfg: cfg, deps: deps, poller: poller, startedAt: time.Now(),
		shared:   wire.Resources{Buffers: parking.NewBufferPool(), Clock: deps.Sessions.Clock, MaxLine: cfg.MaxLine},
		backends: make(map[string]*backend, len(deps.Backends)),
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	for name, b := range deps.Backends {
		h.backends[name] = newBackend(h, name, b)
	}
	h.pollerDone.Go(poller.Run)
	return h, nil
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
		switch {
		case name != location.Backend:
			b.pool.EvictUser(user, "", event.DiscardMoved)
		case location.Login != "":
			b.pool.EvictUser(user, location.Login, event.DiscardMoved)
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
		b.pool.EvictUser(user, "", event.DiscardCredentials)
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

// isNeverOffered reports whether a capability is always hidden: besides the gateway's own, it
// would change the bytes of a connection, or lead the client around the gateway. Or it would
// create connection state that no other connection can be given.
func isNeverOffered(name string) bool {
	switch name {
	case "MAILBOX-REFERRALS", "LOGIN-REFERRALS", "LANGUAGE", "UIDONLY":
		return true
	}
	for _, prefix := range [...]string{"COMPRESS=", "I18NLEVEL=", "ANNOTATE-EXPERIMENT-"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return imap.IsGatewayCapability(name)
}

// uptime returns the time since the Hub started. Sessions store it instead of a
// time.Time, which is three times as large.
func (h *Hub) uptime() time.Duration { return time.Since(h.startedAt) }

// Close ends every session, those that are spliced too, and waits for its goroutines.
func (h *Hub) Close() {
	h.cancel()
	h.deps.Sessions.AbortAll(event.Drained)
	h.wg.Wait()
	h.poller.Close() // no session uses it any more
	h.pollerDone.Wait()
	for _, b := range h.backends {
		b.pool.Close()
	}
}
