// Package proxy serves clients from accept to the end of their login.
//
// It listens, terminates TLS and implements IMAP before the login. proxy/login decides what
// becomes of an attempt, and proxy/relay/splice or proxy/relay/mux then relays both connections. The
// package does not know how a login is decided or what a mail command means.
//
// A Server owns its listeners and every connection until the login; afterwards the
// splice.Set or the mux.Hub does, and the relay.Registry has its session.
package proxy

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"imapgate/auth"
	"imapgate/internal/audit"
	"imapgate/internal/descriptors"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/limit"
	"imapgate/internal/listen"
	"imapgate/internal/logaggregator"
	"imapgate/internal/metrics"
	"imapgate/internal/sleep"
	"imapgate/proxy/login"
	"imapgate/proxy/relay"
	"imapgate/proxy/relay/mux"
	"imapgate/proxy/relay/splice"
	"imapgate/proxy/upstream"
	"imapgate/routing"
	"imapgate/tlsconf"
)

// Config is the configuration of a Server.
type Config struct {
	LimitSettings
	Listeners    []ListenerSettings
	Instance     string          // prefix of every session id; see NewInstance
	FleetSecret  identity.Secret // shared by all gateways, so that they answer alike about unknown users; zero: a random secret
	TokenRefusal auth.TokenRefusal
	SessionGrace time.Duration // how long a session outlives the token that opened it; 0: without limit
	RouteByAuth  bool          // the auth method http chooses the backend, not routing
	ResolveTTL   time.Duration // lifetime of resolved backend addresses, with RouteByAuth
	// Modes holds the settings of each backend by name; a missing one means splice.
	Modes map[string]BackendSettings
}

// halfClosedTimeout is how long a half-closed session may be silent.
const halfClosedTimeout = time.Minute

// parkAfter is how long a session must be silent before it gives up its goroutines.
const parkAfter = 200 * time.Millisecond

// Deps are the packages a Server depends on.
type Deps struct {
	TLS      *tlsconf.Server // nil when no listener has TLS
	Auth     *auth.Authenticator
	Routes   *routing.Router
	Backends map[string]*upstream.Backend
	Limits   *limit.Limiter
	Sockets  *descriptors.Counter // also counts those of Backends
	Audit    *audit.Log
	Metrics  *metrics.Metrics
	Log      *zap.Logger
}

// Server accepts clients, logs them in and hands them to a relay.
type Server struct {
	// Set once.
	cfg        Config
	deps       Deps
	listeners  []*listener
	spliceSet  *splice.Set
	hub        *mux.Hub
	sessions   *relay.Registry
	maxConns   int64 // bound of openConns
	handshakes *handshakeLimiter
	logins     *login.Connector
	endedLog   *logaggregator.Aggregator // connections that ended without a login

	wg            sync.WaitGroup // accept loops and connections before their relay
	openConns     atomic.Int64   // open client connections, relayed ones included
	preauthConns  atomic.Int64   // of openConns, those without a login
	refusalSlots  chan struct{}  // one element for each connection being refused; at most maxRefusals
	lastSessionID atomic.Uint64  // last number used in a session id
	draining      atomic.Bool
}

// NewInstance returns a random prefix for the session ids of one gateway process.
func NewInstance() string { return rand.Text()[:8] }

// New returns a Server that does not listen yet.
func New(cfg Config, deps Deps) (*Server, error) {
	s := &Server{
		cfg: cfg, deps: deps, maxConns: connectionLimit(cfg.MaxConnections), handshakes: newHandshakeLimiter(cfg.TLSHandshakes),
		refusalSlots: make(chan struct{}, maxRefusals), endedLog: logaggregator.New(deps.Log, "connections refused"),
	}
	for _, l := range cfg.Listeners {
		if l.TLS != event.NoTLS && deps.TLS == nil {
			return nil, fmt.Errorf("listener %s: TLS needs a certificate", l.Name)
		}
		opened := &listener{
			ListenerSettings: l, server: s, acceptCounter: deps.Metrics.Connections(l.Name), probeCounters: deps.Metrics.Probes(l.Name),
		}
		if l.ProxyProtocol != nil {
			opened.balancers = l.ProxyProtocol.Trusted
		}
		s.listeners = append(s.listeners, opened)
	}
	if err := s.openRelays(); err != nil {
		return nil, err
	}
	modes := make(map[string]event.Mode, len(cfg.Modes))
	for name, b := range cfg.Modes {
		modes[name] = b.Mode
	}
	s.logins = login.New(login.Config{
		VerifyTimeout: cfg.PreauthTimeout, MaxAuthAttempts: cfg.MaxAuthAttempts, Modes: modes, FleetSecret: cfg.FleetSecret,
		RouteByAuth: cfg.RouteByAuth, ResolveTTL: cfg.ResolveTTL,
	}, login.Deps{
		Auth: deps.Auth, Routes: deps.Routes, Backends: deps.Backends, Hub: s.hub, Audit: deps.Audit, Metrics: deps.Metrics, Log: deps.Log,
	})
	deps.Sockets.SetEvict(s.hub.CloseIdleConn)
	return s, nil
}

// openRelays creates what carries sessions after their login.
func (s *Server) openRelays() (err error) {
	s.sessions = relay.NewRegistry(relay.Config{IdleTimeout: s.cfg.IdleTimeout, OnBytes: func(up, down int64) {
		s.deps.Metrics.BytesToBackend.Add(float64(up))
		s.deps.Metrics.BytesToClient.Add(float64(down))
	}})
	s.spliceSet, err = splice.NewSet(splice.Config{
		ParkAfter: parkAfter, HalfClosedTimeout: halfClosedTimeout, WriteTimeout: s.cfg.WriteTimeout,
	}, s.sessions)
	if err != nil {
		s.sessions.Close()
		return err
	}
	if s.hub, err = s.newHub(); err != nil {
		s.spliceSet.Close()
		s.sessions.Close()
		return err
	}
	s.deps.Metrics.ObserveParked(func() float64 { return float64(s.spliceSet.Parked()) / 2 })
	return nil
}

// newHub creates the hub of the mux sessions.
func (s *Server) newHub() (*mux.Hub, error) {
	backends := make(map[string]mux.Backend, len(s.deps.Backends))
	for name, b := range s.deps.Backends {
		backends[name] = mux.Backend{Upstream: b, Settings: s.cfg.Modes[name].Mux}
	}
	locate := func(ctx context.Context, user identity.User) (mux.Location, error) {
		route, err := s.deps.Routes.Lookup(ctx, user)
		if err == nil && route.User != user { // must not happen: the route decides whose mail a session is shown
			s.deps.Metrics.IdentityViolations.Inc()
			return mux.Location{}, &relay.CloseError{Reason: event.IdentityViolation}
		}
		location := mux.Location{Backend: route.Backend, Login: route.Login}
		if s.deps.Backends[route.Backend] != nil {
			location.Mode = s.logins.SelectMode(user, &route)
		}
		return location, err
	}
	return mux.NewHub(mux.Config{
		ParkAfter: parkAfter, StallTimeout: s.cfg.WriteTimeout, MaxLine: s.cfg.MaxLineLength, Locate: locate,
	}, mux.Deps{Sessions: s.sessions, Splices: s.spliceSet, Backends: backends, Audit: s.deps.Audit, Metrics: s.deps.Metrics, Log: s.deps.Log})
}

// ListenError reports a listener that could not be opened.
type ListenError struct {
	Listener string // name of the listener
	Err      error
}

func (e *ListenError) Error() string { return e.Err.Error() }
func (e *ListenError) Unwrap() error { return e.Err }

// Listen opens all listeners, or none of them. The error is a *ListenError.
func (s *Server) Listen() (err error) {
	for _, l := range s.listeners {
		if l.tcp, err = listen.TCP(l.Address); err != nil {
			s.closeListeners()
			return &ListenError{l.Name, err}
		}
	}
	return nil
}

// Addrs returns the addresses being listened on, by listener name.
func (s *Server) Addrs() map[string]net.Addr {
	addrs := make(map[string]net.Addr, len(s.listeners))
	for _, l := range s.listeners {
		if l.tcp != nil {
			addrs[l.Name] = l.tcp.Addr()
		}
	}
	return addrs
}

// IsDraining reports whether the Server has stopped accepting clients.
func (s *Server) IsDraining() bool { return s.draining.Load() }

// Serve accepts clients until ctx is done. It then sends a BYE to clients before their
// login, lets sessions continue for at most Config.DrainTimeout and returns when all have
// ended.
func (s *Server) Serve(ctx context.Context) error {
	for _, l := range s.listeners {
		s.wg.Add(1)
		go l.accept(ctx)
	}
	<-ctx.Done()
	s.draining.Store(true)
	s.closeListeners()
	s.wg.Wait() // accept loops and logins in progress
	s.logins.FlushLogs()
	s.endedLog.Flush()
	s.sessions.Drain(s.cfg.DrainTimeout)
	s.Close()
	return nil
}

// Close closes a Server whose Serve was not called, or, in Serve, ends the sessions that
// are left.
func (s *Server) Close() {
	s.closeListeners()
	s.sessions.AbortAll(event.Drained)
	s.hub.Close() // pinned sessions end with spliceSet
	s.spliceSet.Close()
	s.sessions.Close()
}

func (s *Server) closeListeners() {
	for _, l := range s.listeners {
		if l.tcp != nil {
			_ = l.tcp.Close() // makes accept return
		}
	}
}

// minSharedSlots is the number of connections up to which preauthLimit does not reserve
// half for sessions.
const minSharedSlots = 16

// addConnection counts a connection and sets overLimit if it must be refused. Connections
// before their login may use half of the slots, so that clients who never log in cannot
// displace sessions. A refused connection still uses a reserved descriptor until it is
// closed. So accept blocks while maxRefusals of them are open.
func (s *Server) addConnection(c *connection) {
	open, preauth := s.openConns.Add(1), s.preauthConns.Add(1)
	hasDescriptors := s.deps.Sockets.AddClient()
	if c.overLimit = !hasDescriptors || open > s.maxConns || preauth > preauthLimit(s.maxConns); c.overLimit {
		s.refusalSlots <- struct{}{}
		return
	}
	s.deps.Sockets.EvictIdle()
}

// removeConnection uncounts a connection that is closed.
func (s *Server) removeConnection() {
	s.openConns.Add(-1)
	s.deps.Sockets.RemoveClient()
}

// maxRefusals bounds the connections that are open only to be refused. Their descriptors
// are among descriptors.Reserved.
const maxRefusals = 8

// connectionLimit returns the maximum of concurrent connections; maxConnections is as in
// Config.
func connectionLimit(maxConnections int) int64 {
	available := descriptors.MaxClients(descriptors.Limit())
	if maxConnections == 0 {
		return available
	}
	return min(available, int64(maxConnections))
}

func preauthLimit(total int64) int64 { return max(total/2, min(total, minSharedSlots)) }

// PreauthLimit returns how many connections of a Server with that Config.MaxConnections may
// be without a login at a time.
func PreauthLimit(maxConnections int) int { return int(preauthLimit(connectionLimit(maxConnections))) }

// listener accepts clients on one address.
type listener struct {
	ListenerSettings

	// Set once.
	server        *Server
	balancers     []netip.Prefix   // of ProxyProtocol: peers whose PROXY header is trusted
	tcp           *net.TCPListener // set by Listen
	acceptCounter prometheus.Counter
	probeCounters map[event.Probe]prometheus.Counter // by probe type
}

// accept accepts connections until the listener is closed. When descriptors run out it
// retries with growing delays and logs at most one line a second.
func (l *listener) accept(ctx context.Context) {
	s := l.server
	defer s.wg.Done()
	var retry backoff
	for {
		tcp, err := l.tcp.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			retry.wait(ctx, func() { s.deps.Log.Error("accept", zap.String("listener", l.Name), zap.Error(err)) })
			continue
		}
		retry.delay = 0
		l.acceptCounter.Inc()
		c := l.newConnection(tcp)
		s.addConnection(c)
		s.wg.Add(1)
		go c.run(ctx)
	}
}

// backoff delays a failing loop: 5 ms doubling to 1 s, with at most one log line a second.
type backoff struct {
	delay      time.Duration
	lastLogged time.Time
}

func (b *backoff) wait(ctx context.Context, logError func()) {
	if time.Since(b.lastLogged) > time.Second {
		b.lastLogged = time.Now()
		logError()
	}
	b.delay = min(max(2*b.delay, 5*time.Millisecond), time.Second)
	_ = sleep.For(ctx, b.delay)
}
