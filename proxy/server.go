// Package proxy is the front door: one client's life, from accept to goodbye.
//
// It listens, ends TLS, speaks the IMAP of before the login, asks auth who the
// client is, routing where the mailbox lives and proxy/upstream for a login
// there, and hands both connections to proxy/splice. It does not know how a
// password is checked, how a route is found or what a mail command means.
//
// A Server owns its listeners and every connection until the login; after that
// the splice.Set does. reply.go is the one place where an error becomes words
// for a client, record.go the one where it becomes a record for the operator.
package proxy

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"imapgate/auth"
	"imapgate/internal/audit"
	"imapgate/internal/descriptors"
	"imapgate/internal/identity"
	"imapgate/internal/limit"
	"imapgate/internal/listen"
	"imapgate/internal/metrics"
	"imapgate/proxy/mux"
	"imapgate/proxy/splice"
	"imapgate/proxy/upstream"
	"imapgate/routing"
	"imapgate/tlsconf"
)

// TLSMode says how a listener's clients are protected.
type TLSMode string

// The TLS modes of a listener. With NoTLS alone do passwords travel in the
// clear: the operator has put something else in front.
const (
	ImplicitTLS TLSMode = "implicit"
	StartTLS    TLSMode = "starttls"
	NoTLS       TLSMode = "none"
)

// Listener is one address that clients connect to.
type Listener struct {
	Name         string
	Address      string // host:port
	TLS          TLSMode
	ProxyTrusted []netip.Prefix // peers that must send a PROXY header
	Trusted      []netip.Prefix // peers whose ID may speak for the client
}

// Config is what an operator decides about the front door.
type Config struct {
	Listeners        []Listener
	MaxConnections   int             // at a time, as far as descriptors allow; 0: as many as they do
	PreauthTimeout   time.Duration   // from accept to the login, all together
	HandshakeTimeout time.Duration   // of TLS
	MaxHandshakes    int             // of TLS that compute at a time; 0: by the number of cores
	IdleTimeout      time.Duration   // of a session
	WriteTimeout     time.Duration   // of one write in a session
	DrainTimeout     time.Duration   // what sessions get when the gateway stops
	MaxAuthAttempts  int             // failed logins on a connection
	MaxBadCommands   int             // before the login, on a connection
	MaxLine          int             // bytes of a client's line after the login, where lines are read; at least 64 KB
	Instance         string          // begins every session id; NewInstance
	FleetSecret      identity.Secret // shared by all gateways, so that they answer alike about unknown users; zero: a random one
	TokenRefusal     auth.TokenRefusal
	TokenGrace       time.Duration // how long a session outlives the token that opened it; 0: as long as it likes
	RouteByAuth      bool          // mailboxes live where auth's method http says, not where routing does
	ResolveTTL       time.Duration // with Placed: how long the addresses of backends' names are used
	// Modes are the backends' own; one that is not there is spliced.
	Modes map[string]Mode
}

// Mode is what becomes of a backend's sessions, where a user's route does not
// say otherwise.
type Mode struct {
	Name string // splice, reuse or resume
	Mux  mux.Settings
}

// halfClosedTimeout is how long a session may be silent when one side has hung up.
const halfClosedTimeout = time.Minute

// parkAfter is how long a session must say nothing to give up its goroutines.
const parkAfter = 200 * time.Millisecond

// Deps are the other rooms, as the front door asks them.
type Deps struct {
	TLS      *tlsconf.Server // nil when no listener has TLS
	Auth     *auth.Authenticator
	Routes   *routing.Router
	Backends map[string]*upstream.Backend
	Limits   *limit.Limiter
	Sockets  *descriptors.Counter // also of Backends; nil: nobody counts
	Audit    *audit.Log
	Metrics  *metrics.Metrics
	Log      *zap.Logger
}

// countBytes counts bytes.
func (r *Deps) countBytes(up, down int64) {
	r.Metrics.BytesToBackend.Add(float64(up))
	r.Metrics.BytesToClient.Add(float64(down))
}

// Server is the front door.
type Server struct {
	// Set once.
	cfg         Config
	deps        Deps
	listeners   []*listener
	spliceSet   *splice.Set
	hub         *mux.Hub
	sessions    *sessionTable
	maxConns    int64             // connections at a time
	handshakes  *handshakeLimiter // of TLS handshakes
	backends    *backendIndex
	denialTimes denialTimes
	// Each has lines of its own: wrong passwords must not hide what is wrong with a backend.
	refusedLog     *logAggregator // logins
	unavailableLog *logAggregator // logins, by the gateway's or a backend's trouble
	endedLog       *logAggregator // connections, without a login
	outages        *outageSample
	minDenialTime  time.Duration     // minDenialTime
	denialJitter   time.Duration     // denialJitter
	beforeVerify   func(*connection) // called when a login is judged next; nil outside tests

	wg            sync.WaitGroup // accept loops and sessions before their relay
	openConns     atomic.Int64   // connections, relayed ones included
	preauthConns  atomic.Int64   // those of them that have not logged in
	refusalSlots  chan struct{}  // a token for each that is being refused; maxRefusals of them
	lastSessionID atomic.Uint64  // of session ids
	draining      atomic.Bool
}

// NewInstance is a random prefix for the session ids of one gateway process.
func NewInstance() string { return rand.Text()[:8] }

// New makes a Server that does not listen yet.
func New(cfg Config, deps Deps) (*Server, error) {
	s := &Server{
		cfg: cfg, deps: deps, sessions: newSessionTable(), maxConns: connectionLimit(cfg.MaxConnections), handshakes: newHandshakeLimiter(cfg.MaxHandshakes),
		backends: newBackendIndex(deps.Backends, cfg.ResolveTTL), minDenialTime: minDenialTime, denialJitter: denialJitter,
		outages: newOutageSample(cfg.FleetSecret), refusalSlots: make(chan struct{}, maxRefusals),
		refusedLog: newLogAggregator(deps.Log, "logins refused"), unavailableLog: newLogAggregator(deps.Log, "logins unavailable"), endedLog: newLogAggregator(deps.Log, "connections refused"),
	}
	for _, l := range cfg.Listeners {
		if l.TLS != NoTLS && deps.TLS == nil {
			return nil, fmt.Errorf("listener %s: TLS needs a certificate", l.Name)
		}
		s.listeners = append(s.listeners, &listener{
			Listener: l, server: s, acceptCounter: deps.Metrics.Connections(l.Name), probeCounters: deps.Metrics.Probes(l.Name),
		})
	}
	set, err := splice.NewSet(splice.Config{
		ParkAfter: parkAfter, IdleTimeout: cfg.IdleTimeout, HalfClosedTimeout: halfClosedTimeout, WriteTimeout: cfg.WriteTimeout,
		OnBytes:  deps.countBytes,
		OnParked: func(n int) { deps.Metrics.ParkedSessions.Set(float64(n) / 2) },
	})
	if err != nil {
		return nil, err
	}
	s.spliceSet = set
	if s.hub, err = s.newHub(); err != nil {
		set.Close()
		return nil, err
	}
	deps.Sockets.SetEvict(s.hub.CloseIdleConn)
	return s, nil
}

// ListenError is why a listener could not be opened.
type ListenError struct {
	Listener string // its name
	Err      error
}

func (e *ListenError) Error() string { return e.Err.Error() }
func (e *ListenError) Unwrap() error { return e.Err }

// Listen opens every listener, or none. The error is a *ListenError.
func (s *Server) Listen() error {
	for _, l := range s.listeners {
		if err := l.listen(); err != nil {
			s.closeListeners()
			return &ListenError{l.Name, fmt.Errorf("listen on %s: %w", l.Address, err)}
		}
	}
	return nil
}

// Addrs are the addresses being listened on, by listener name.
func (s *Server) Addrs() map[string]net.Addr {
	addrs := make(map[string]net.Addr, len(s.listeners))
	for _, l := range s.listeners {
		if l.tcp != nil {
			addrs[l.Name] = l.tcp.Addr()
		}
	}
	return addrs
}

// Sessions is the number of logged-in sessions.
func (s *Server) Sessions() int { return s.spliceSet.Len() + s.hub.Len() }

// IsDraining says whether the Server has stopped taking clients.
func (s *Server) IsDraining() bool { return s.draining.Load() }

// Serve takes clients until ctx is done. Then those before the login get a BYE,
// sessions go on for at most Config.DrainTimeout, and it returns when all are gone.
func (s *Server) Serve(ctx context.Context) error {
	for _, l := range s.listeners {
		s.wg.Add(1)
		go l.accept(ctx)
	}
	<-ctx.Done()
	s.draining.Store(true)
	s.closeListeners()
	s.wg.Wait() // the accept loops, and every login that was under way
	s.refusedLog.flush()
	s.unavailableLog.flush()
	s.endedLog.flush()
	s.drain()
	s.hub.Close() // what it has handed over ends with the rest
	s.spliceSet.Close()
	return nil
}

// drain waits for the sessions to end, and ends them over Config.DrainTimeout, so that
// their clients come to the next gateway one after the other. Those in which commands are
// followed can be ended between two, and wait for nothing but their turn; a
// spliced one that is not quiet has all of the time.
func (s *Server) drain() {
	start := time.Now()
	spliced, muxed := s.spliceSet.Len(), s.hub.Len()
	ticker := time.NewTicker(drainInterval)
	defer ticker.Stop()
	for {
		elapsed := time.Since(start)
		s.hub.Drain(muxedToKeep(muxed, elapsed, s.cfg.DrainTimeout), audit.GatewayStopping)
		if s.Sessions() == 0 || elapsed >= s.cfg.DrainTimeout {
			return
		}
		s.spliceSet.EndIdle(splicedToKeep(spliced, elapsed, s.cfg.DrainTimeout), splice.Drained)
		<-ticker.C
	}
}

// splicedToKeep is how many of n spliced sessions go on when some of the drain is past.
func splicedToKeep(n int, elapsed, drain time.Duration) int {
	if elapsed >= drain {
		return 0
	}
	return int(math.Ceil(float64(n) * float64(drain-elapsed) / float64(drain)))
}

// muxedToKeep is splicedToKeep for those that have no reason to wait but the others; the
// last have time for a BYE.
func muxedToKeep(n int, elapsed, drain time.Duration) int {
	linear := splicedToKeep(n, elapsed, drain*9/10)
	return max(0, min(linear, n-drainRate-int(drainRate*elapsed.Seconds())))
}

const (
	drainInterval = 100 * time.Millisecond
	drainRate     = 100 // sessions a second whose clients come to the next gateway and are no burden to it
)

// Close ends every session now; Serve then returns without waiting for them.
func (s *Server) Close() {
	s.hub.AbortAll(audit.Drained)
	s.spliceSet.EndAll(splice.Drained)
}

func (s *Server) closeListeners() {
	for _, l := range s.listeners {
		if l.tcp != nil {
			_ = l.tcp.Close() // accept is what notices
		}
	}
}

// minSharedSlots are not worth dividing.
const minSharedSlots = 16

// isFull says whether there is no place for one more connection, which has been
// counted. Those before the login have half of the places, so that strangers who
// never log in leave room for the sessions of those who do.
func (s *Server) isFull() bool {
	return s.openConns.Load() > s.maxConns || s.preauthConns.Load() > preauthLimit(s.maxConns) || s.deps.Sockets.IsFull()
}

// addConnection counts a connection, and decides whether it is to be refused. One that is needs a
// descriptor until it is closed, to which it has no claim. So maxRefusals are open at a
// time: accept waits for the others.
func (s *Server) addConnection(c *connection) {
	s.openConns.Add(1)
	s.preauthConns.Add(1)
	s.deps.Sockets.AddClient()
	if c.overLimit = s.isFull(); c.overLimit {
		s.refusalSlots <- struct{}{}
		return
	}
	s.deps.Sockets.EvictIdle()
}

// removeConnection is for one that is closed.
func (s *Server) removeConnection() {
	s.openConns.Add(-1)
	s.deps.Sockets.RemoveClient()
}

// maxRefusals bounds the connections that are open only to be refused. Descriptors for
// them are among those reserved.
const maxRefusals = 8

// connectionLimit is how many connections there may be at a time; maxConnections is as in Config.
func connectionLimit(maxConnections int) int64 {
	available := descriptors.MaxClients(descriptors.Limit())
	if maxConnections == 0 {
		return available
	}
	return min(available, int64(maxConnections))
}

func preauthLimit(total int64) int64 { return max(total/2, min(total, minSharedSlots)) }

// PreauthLimit is how many connections a Server has room for that have not logged in,
// with that Config.MaxConnections.
func PreauthLimit(maxConnections int) int { return int(preauthLimit(connectionLimit(maxConnections))) }

func (s *Server) newSessionID() string {
	return s.cfg.Instance + "-" + strconv.FormatUint(s.lastSessionID.Add(1), 36)
}

// listener accepts on one address.
type listener struct {
	Listener

	// Set once.
	server        *Server
	tcp           *net.TCPListener // by listen
	acceptCounter prometheus.Counter
	probeCounters map[string]prometheus.Counter // by kind
}

func (l *listener) listen() error {
	var err error
	l.tcp, err = listen.TCP(l.Address)
	return err
}

// accept takes connections until the listener is closed. When descriptors run
// out it waits a little, longer each time, and says so once in a while.
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
		retry = backoff{lastLogged: retry.lastLogged}
		l.acceptCounter.Inc()
		c := l.newConnection(tcp)
		s.addConnection(c)
		s.wg.Add(1)
		go c.run(ctx)
	}
}

// backoff paces a loop that fails: 5 ms doubling to 1 s, one word a second.
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
	sleep(ctx, b.delay)
}

// sleep waits for d, or until ctx is done.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
