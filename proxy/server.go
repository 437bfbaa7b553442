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
	Listeners      []Listener
	MaxConnections int             // at a time, as far as descriptors allow; 0: as many as they do
	Preauth        time.Duration   // from accept to the login, all together
	Handshake      time.Duration   // of TLS
	Handshakes     int             // of TLS that compute at a time; 0: by the number of cores
	Idle           time.Duration   // of a session
	Write          time.Duration   // of one write in a session
	Drain          time.Duration   // what sessions get when the gateway stops
	AuthAttempts   int             // failed logins on a connection
	BadCommands    int             // before the login, on a connection
	MaxLine        int             // bytes of a client's line after the login, where lines are read; at least 64 KB
	Instance       string          // begins every session id; NewInstance
	Secret         identity.Secret // shared by all gateways, so that they answer alike about unknown users; zero: a random one
	TokenRefusal   auth.TokenRefusal
	TokenGrace     time.Duration // how long a session outlives the token that opened it; 0: as long as it likes
	Placed         bool          // mailboxes live where auth's method http says, not where routing does
	PlaceTTL       time.Duration // with Placed: how long the addresses of backends' names are used
	// Modes are the backends' own; one that is not there is spliced.
	Modes map[string]Mode
}

// Mode is what becomes of a backend's sessions, where a user's route does not
// say otherwise.
type Mode struct {
	Name string // splice, reuse or resume
	Mux  mux.Settings
}

// halfClosed is how long a session may be silent when one side has hung up.
const halfClosed = time.Minute

// silent is how long a session must say nothing to give up its goroutines.
const silent = 200 * time.Millisecond

// Rooms are the other rooms, as the front door asks them.
type Rooms struct {
	TLS      *tlsconf.Server // nil when no listener has TLS
	Auth     *auth.Authenticator
	Routes   *routing.Router
	Backends map[string]*upstream.Backend
	Limits   *limit.Gate
	Sockets  *descriptors.Counter // also of Backends; nil: nobody counts
	Audit    *audit.Log
	Metrics  *metrics.Metrics
	Log      *zap.Logger
}

// relayed counts bytes.
func (r *Rooms) relayed(up, down int64) {
	r.Metrics.BytesToBackend.Add(float64(up))
	r.Metrics.BytesToClient.Add(float64(down))
}

// Server is the front door.
type Server struct {
	// Set once.
	cfg       Config
	rooms     Rooms
	listeners []*listener
	spliced   *splice.Set
	mux       *mux.Hub
	registry  *registry
	slots     int64  // connections at a time
	turns     *turns // of TLS handshakes
	places    *places
	denials   denials
	// Each has lines of its own: wrong passwords must not hide what is wrong with a backend.
	refused     *floodLines // logins
	unavailable *floodLines // logins, by the gateway's or a backend's trouble
	ended       *floodLines // connections, without a login
	sample      *sample
	floor       time.Duration  // denialFloor
	jitter      time.Duration  // denialJitter
	judging     func(*session) // called when a login is judged next; nil outside tests

	wg       sync.WaitGroup // accept loops and sessions before their relay
	open     atomic.Int64   // connections, relayed ones included
	waiting  atomic.Int64   // those of them that have not logged in
	refusals chan struct{}  // a token for each that is being refused; maxRefusals of them
	serial   atomic.Uint64  // of session ids
	draining atomic.Bool
}

// NewInstance is a random prefix for the session ids of one gateway process.
func NewInstance() string { return rand.Text()[:8] }

// New makes a Server that does not listen yet.
func New(cfg Config, rooms Rooms) (*Server, error) {
	s := &Server{
		cfg: cfg, rooms: rooms, registry: newRegistry(), slots: slots(cfg.MaxConnections), turns: newTurns(cfg.Handshakes),
		places: newPlaces(rooms.Backends, cfg.PlaceTTL), floor: denialFloor, jitter: denialJitter,
		sample: newSample(cfg.Secret), refusals: make(chan struct{}, maxRefusals),
		refused: newFloodLines(rooms.Log, "logins refused"), unavailable: newFloodLines(rooms.Log, "logins unavailable"), ended: newFloodLines(rooms.Log, "connections refused"),
	}
	for _, l := range cfg.Listeners {
		if l.TLS != NoTLS && rooms.TLS == nil {
			return nil, fmt.Errorf("listener %s: TLS needs a certificate", l.Name)
		}
		s.listeners = append(s.listeners, &listener{
			Listener: l, server: s, accepted: rooms.Metrics.Connections(l.Name), probes: rooms.Metrics.Probes(l.Name),
		})
	}
	spliced, err := splice.NewSet(splice.Config{
		Quiet: silent, Idle: cfg.Idle, HalfClosed: halfClosed, Write: cfg.Write,
		Bytes:  rooms.relayed,
		Parked: func(n int) { rooms.Metrics.Parked.Set(float64(n) / 2) },
	})
	if err != nil {
		return nil, err
	}
	s.spliced = spliced
	if s.mux, err = s.newHub(); err != nil {
		spliced.Close()
		return nil, err
	}
	rooms.Sockets.Spare(s.mux.Spare)
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
func (s *Server) Sessions() int { return s.spliced.Len() + s.mux.Len() }

// Draining says whether the Server has stopped taking clients.
func (s *Server) Draining() bool { return s.draining.Load() }

// Serve takes clients until ctx is done. Then those before the login get a BYE,
// sessions go on for at most Config.Drain, and it returns when all are gone.
func (s *Server) Serve(ctx context.Context) error {
	for _, l := range s.listeners {
		s.wg.Add(1)
		go l.accept(ctx)
	}
	<-ctx.Done()
	s.draining.Store(true)
	s.closeListeners()
	s.wg.Wait() // the accept loops, and every login that was under way
	s.refused.endMinute()
	s.unavailable.endMinute()
	s.ended.endMinute()
	s.drain()
	s.mux.Close() // what it has handed over ends with the rest
	s.spliced.Close()
	return nil
}

// drain waits for the sessions to end, and ends them over Config.Drain, so that
// their clients come to the next gateway one after the other. Those in which commands are
// followed can be ended between two, and wait for nothing but their turn; a
// spliced one that is not quiet has all of the time.
func (s *Server) drain() {
	began := time.Now()
	spliced, followed := s.spliced.Len(), s.mux.Len()
	look := time.NewTicker(drainTick)
	defer look.Stop()
	for {
		past := time.Since(began)
		s.mux.Drain(keepFollowed(followed, past, s.cfg.Drain), audit.GatewayStopping)
		if s.Sessions() == 0 || past >= s.cfg.Drain {
			return
		}
		s.spliced.EndQuiet(keepSpliced(spliced, past, s.cfg.Drain), splice.Drained)
		<-look.C
	}
}

// keepSpliced is how many of n spliced sessions go on when some of the drain is past.
func keepSpliced(n int, past, drain time.Duration) int {
	if past >= drain {
		return 0
	}
	return int(math.Ceil(float64(n) * float64(drain-past) / float64(drain)))
}

// keepFollowed is keepSpliced for those that have no reason to wait but the others; the
// last have time for a BYE.
func keepFollowed(n int, past, drain time.Duration) int {
	evenly := keepSpliced(n, past, drain*9/10)
	return max(0, min(evenly, n-noHerd-int(noHerd*past.Seconds())))
}

const (
	drainTick = 100 * time.Millisecond
	noHerd    = 100 // sessions a second whose clients come to the next gateway and are no burden to it
)

// Close ends every session now; Serve then returns without waiting for them.
func (s *Server) Close() {
	s.mux.EndAll(audit.Drained)
	s.spliced.EndAll(splice.Drained)
}

func (s *Server) closeListeners() {
	for _, l := range s.listeners {
		if l.tcp != nil {
			_ = l.tcp.Close() // accept is what notices
		}
	}
}

// fewSlots are not worth dividing.
const fewSlots = 16

// full says whether there is no place for one more connection, which has been
// counted. Those before the login have half of the places, so that strangers who
// never log in leave room for the sessions of those who do.
func (s *Server) full() bool {
	return s.open.Load() > s.slots || s.waiting.Load() > preauthRoom(s.slots) || s.rooms.Sockets.Full()
}

// addConnection counts a connection, and decides whether it is to be refused. One that is needs a
// descriptor until it is closed, to which it has no claim. So maxRefusals are open at a
// time: accept waits for the others.
func (s *Server) addConnection(c *session) {
	s.open.Add(1)
	s.waiting.Add(1)
	s.rooms.Sockets.AddClient()
	if c.refused = s.full(); c.refused {
		s.refusals <- struct{}{}
		return
	}
	s.rooms.Sockets.MakeRoom()
}

// removeConnection is for one that is closed.
func (s *Server) removeConnection() {
	s.open.Add(-1)
	s.rooms.Sockets.RemoveClient()
}

// maxRefusals bounds the connections that are open only to be refused. Descriptors for
// them are among those reserved.
const maxRefusals = 8

// slots is how many connections there may be at a time; maxConnections is as in Config.
func slots(maxConnections int) int64 {
	most := descriptors.Slots(descriptors.Limit())
	if maxConnections == 0 {
		return most
	}
	return min(most, int64(maxConnections))
}

func preauthRoom(slots int64) int64 { return max(slots/2, min(slots, fewSlots)) }

// PreauthRoom is how many connections a Server has room for that have not logged in,
// with that Config.MaxConnections.
func PreauthRoom(maxConnections int) int { return int(preauthRoom(slots(maxConnections))) }

func (s *Server) sessionID() string {
	return s.cfg.Instance + "-" + strconv.FormatUint(s.serial.Add(1), 36)
}

// listener accepts on one address.
type listener struct {
	Listener

	// Set once.
	server   *Server
	tcp      *net.TCPListener // by listen
	accepted prometheus.Counter
	probes   map[string]prometheus.Counter // by kind
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
	var trouble backoff
	for {
		tcp, err := l.tcp.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			trouble.wait(ctx, func() { s.rooms.Log.Error("accept", zap.String("listener", l.Name), zap.Error(err)) })
			continue
		}
		trouble = backoff{said: trouble.said}
		l.accepted.Inc()
		c := l.newSession(tcp)
		s.addConnection(c)
		s.wg.Add(1)
		go c.run(ctx)
	}
}

// backoff paces a loop that fails: 5 ms doubling to 1 s, one word a second.
type backoff struct {
	next time.Duration
	said time.Time
}

func (b *backoff) wait(ctx context.Context, say func()) {
	if time.Since(b.said) > time.Second {
		b.said = time.Now()
		say()
	}
	b.next = min(max(2*b.next, 5*time.Millisecond), time.Second)
	pause(ctx, b.next)
}

// pause waits for d, or until ctx is done.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
