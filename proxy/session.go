package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"imapgate/auth"
	"imapgate/internal/audit"
	"imapgate/internal/imap"
	"imapgate/internal/limit"
	"imapgate/internal/quiet"
	"imapgate/proxy/mux"
	"imapgate/proxy/splice"
	"imapgate/proxy/upstream"
	"imapgate/routing"
)

// session is one client from accept to the login. What goes on after that is
// a splice.Relay and a loggedIn; nothing of the session stays.
type session struct {
	// Set once.
	server   *Server
	listener *listener
	began    time.Time
	deadline time.Time // of everything before the login
	socket   *quiet.Socket
	refused  bool // there is no place for it

	// Owned by run.
	visit *limit.Visit // its place among the others; nil before it has one

	conn     *imap.Conn
	release  func() bool       // lets ctx go, which would end conn
	tls      *tls.Conn         // nil in the clear
	served   *x509.Certificate // to the client, with tls
	who      audit.Client      // as far as it is known
	balanced netip.AddrPort    // the client's address by a PROXY header
	balancer *auth.Balancer    // all that header says; nil without one
	said     said              // what the client told us; STARTTLS forgets it
	local    bool              // a PROXY header says that the connection is the balancer's own
	looked   bool              // has sent a command that health checks send
	spoke    bool              // has sent another one
	known    bool              // has left the places of strangers
	bad      int               // commands that were none
	tried    int               // logins
	failed   int               // of them, by the client's doing
	vain     int               // of them, whatever the cause
	out      []byte            // scratch for answers
}

func (l *listener) newSession(tcp *net.TCPConn) *session {
	s := &session{server: l.server, listener: l, began: time.Now(), socket: quiet.NewSocket(tcp)}
	s.deadline = s.began.Add(l.server.cfg.Preauth)
	s.who = audit.Client{Session: l.server.sessionID(), Listener: l.Name, Peer: addrPort(tcp.RemoteAddr())}
	s.conn = imap.NewConn(s.socket, imap.Commands, imap.LongLine)
	s.conn.Now = quiet.ReadArrived
	return s
}

func addrPort(a net.Addr) netip.AddrPort {
	if tcp, ok := a.(*net.TCPAddr); ok {
		ap := tcp.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}

// run is the goroutine of a session; it ends when the client is logged in and
// relayed, or gone. A fault of ours ends this client alone.
func (s *session) run(ctx context.Context) {
	srv := s.server
	defer srv.wg.Done()
	srv.rooms.Metrics.PreAuth.Inc()
	defer srv.rooms.Metrics.PreAuth.Dec()
	s.release = s.conn.Bind(ctx)
	defer func() { s.release() }()
	defer s.recoverFault()
	if err := s.serve(ctx); err != nil {
		s.goodbye(ctx, err)
	}
}

// serve is one client's life, greeting to goodbye. Each step moves the
// connection one stage on or ends it.
func (s *session) serve(ctx context.Context) error {
	if err := s.arrive(); err != nil { // PROXY header, TLS
		return fmt.Errorf("arrive: %w", err)
	}
	if err := s.greet(); err != nil {
		return fmt.Errorf("greet: %w", err)
	}
	for {
		login, err := s.readLogin(ctx) // answers CAPABILITY, ID, STARTTLS on the way
		if err != nil {
			return fmt.Errorf("read login: %w", err)
		}
		up, err := s.connect(ctx, login) // auth, then routing, then upstream
		if err == nil {
			err = s.admit(ctx, login, up) // the login is on record
		}
		if err != nil {
			if err = s.refuse(ctx, login, err); err != nil { // NO; BYE after too many
				return fmt.Errorf("refuse login: %w", err)
			}
			continue
		}
		return s.relay(login, up)
	}
}

// attempt is one login that a client tries, and where it got to.
type attempt struct {
	tag   string
	login auth.Login
	tried auth.Tried
	err   error  // why it failed before anybody was asked
	last  []byte // challenge for a client whose login was accepted; nil: none
	began time.Time

	// Filled by connect.
	method   string
	expires  time.Time // the token; zero: nobody knows, or there is none
	route    routing.Route
	found    routing.Route // as routing gave it
	routed   bool          // the name for the backend is the route's
	mode     string
	upstream string        // how the login at the backend ended; "" when it was not tried
	asked    time.Duration // how long that took
	queued   time.Duration // of it, until the backend's limits let it in
	waited   time.Duration // on purpose
	least    time.Duration // that the answer takes, where it must take as long as another's

	decided bool             // by the gateway: the credentials are right
	verdict upstream.Verdict // of the backend, where nobody else has judged; Unclear also of an auth server
}

// connect finds out who the client is and where its mailbox lives, and logs in
// there. Each value can only come from the step before.
func (s *session) connect(ctx context.Context, a *attempt) (admitted, error) {
	defer s.recordFault(a)
	if err := s.mayTry(ctx, a); err != nil {
		return nil, err
	}
	if a.err != nil {
		return nil, a.err
	}
	if err := s.server.rooms.Audit.Ready(); err != nil {
		return nil, err
	}
	if s.server.judging != nil {
		s.server.judging(s)
	}
	id, err := s.identify(ctx, a)
	if err != nil {
		return nil, err
	}
	up, err := s.enterBackend(ctx, a, id)
	if err != nil {
		return nil, err
	}
	if err := s.confirm(ctx, a); err != nil {
		return nil, errors.Join(err, up.Close())
	}
	s.conn.Limit(later(s.deadline, time.Now().Add(answering)))
	if err := s.prove(a); err != nil {
		return nil, errors.Join(err, up.Close())
	}
	return up, nil
}

// identify finds out who the client is and where its mailbox lives. A login has its
// own time from here on, whatever is left before the connection's deadline: whoever
// sends a guess in the last moment must not get away before it is judged.
func (s *session) identify(ctx context.Context, a *attempt) (auth.Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, s.server.cfg.Preauth)
	defer cancel()
	id, err := s.server.rooms.Auth.Authenticate(ctx, a.login)
	if err != nil {
		if errors.Is(err, auth.ErrUnanswered) {
			a.verdict = upstream.VerdictUnclear
		}
		return auth.Identity{}, err
	}
	a.method, a.login.User, a.expires, a.decided = id.Method(), id.User(), id.Expires(), id.Decided()
	return id, s.placeFor(ctx, a, id)
}

// enterBackend logs in at the backend of the route.
func (s *session) enterBackend(ctx context.Context, a *attempt, id auth.Identity) (admitted, error) {
	ctx, cancel := context.WithTimeout(ctx, s.server.rooms.Backends[a.route.Backend].LoginLimit())
	defer cancel()
	a.mode = s.server.mode(id.User(), &a.route)
	asked := time.Now()
	up, err := s.server.login(ctx, a, id, upstream.Request{
		User: id.User(), Login: a.route.Login, Password: id.Password(), Token: id.Token(), Client: s.introduction(),
		Waited: &a.queued,
	})
	a.upstream, a.asked = upstream.ResultOf(err), time.Since(asked)
	if ctx.Err() == nil && (err != nil || asksBackend(a, up)) {
		s.server.sample.answered(wayOf(a, a.route.Backend), err, a.asked)
	}
	if !id.Decided() {
		s.judged(a, err)
	}
	var own *upstream.Refused
	if !id.Decided() && a.verdict == upstream.VerdictNone && errors.As(err, &own) {
		return nil, fmt.Errorf("%w: %w", errUnchecked, err)
	}
	if errors.Is(err, upstream.ErrDenied) && id.Decided() && id.Token().IsZero() {
		return nil, fmt.Errorf("%w: %w", errBackendDisagrees, err)
	}
	if err != nil {
		return nil, err
	}
	if up.User() != id.User() || a.route.User != id.User() {
		s.server.rooms.Metrics.IdentityViolations.Inc()
		return nil, errors.Join(errForeign, up.Close()) // never to happen: the tripwire of all tripwires
	}
	return up, nil
}

// asksBackend reports whether a login that was accepted has asked the backend now,
// and not been believed from memory.
func asksBackend(a *attempt, up admitted) bool {
	return a.mode == spliceMode || !up.OK().IsZero()
}

// introduction is how the backend is told who the client is.
func (s *session) introduction() upstream.Client {
	return upstream.Client{
		Addr: s.origin(), Local: addrPort(s.socket.LocalAddr()), Session: s.who.Session,
		Via: s.said.via, TTL: s.said.ttl, ID: s.said.id,
	}
}

// origin is the client's own address, as far as those in front are trusted.
func (s *session) origin() netip.AddrPort {
	if s.who.Claimed.IsValid() {
		return s.who.Claimed
	}
	return s.who.Peer
}

// admit finds the session a place among those of its user, and puts the login on
// record, without which nobody gets in. From here on a gateway that stops waits
// for the session to end.
func (s *session) admit(ctx context.Context, a *attempt, up admitted) error {
	if err := s.enter(ctx, up); err != nil {
		return err
	}
	if !s.release() {
		return errors.Join(context.Cause(ctx), up.Close())
	}
	err := s.server.rooms.Audit.LoginAccepted(&s.who, a.record())
	if err != nil {
		s.release = s.conn.Bind(ctx)
		return fmt.Errorf("%w: %w", errTurnedBack, errors.Join(err, up.Close()))
	}
	return nil
}

// relay welcomes the client and hands both connections on. From here on the
// session's end is loggedIn.ended's.
func (s *session) relay(a *attempt, up admitted) error {
	s.leaveLobby()
	in := &loggedIn{
		server: s.server, visit: s.visit, who: s.who, began: time.Now(),
		session: audit.Session{User: up.User(), Backend: a.route.Backend, Mode: a.mode},
		login:   a.route.Login,
	}
	s.server.registry.add(up.User(), in.place())
	s.server.rooms.Metrics.SessionBegan(a.mode)
	caps := s.server.offered(a, up.Caps())
	err := s.welcome(a, up, caps)
	s.server.rooms.Metrics.LoginDone(loginResult(err), a.login.Mechanism, time.Since(a.began))
	if err != nil {
		_ = s.conn.Close()
		_ = up.Close()
		in.ended(audit.ClientLost, err, 0, 0)
		return nil
	}
	client, fromClient := s.conn.Detach()
	if s.tls == nil {
		client = s.socket.TCPConn
		fromClient = append(fromClient, s.socket.Rest()...)
	}
	switch up := up.(type) {
	case *upstream.Conn:
		backend, fromBackend := up.Detach()
		front, back := splice.Side{Conn: client, First: fromBackend}, splice.Side{Conn: backend, First: fromClient}
		if budget := in.budget(); budget != nil {
			front.Pace, back.Pace = budget.Read, budget.Written
		}
		s.server.spliced.Start(front, back, s.server.until(a), in.spliced)
	case account:
		c := mux.Client{
			Conn: client, First: fromClient, Who: &in.who, Mode: mux.Mode(a.mode), Caps: caps,
			Routed: a.routed, Until: s.server.until(a),
		}
		if budget := in.budget(); budget != nil { // not a nil one in an interface
			c.Budget = budget
		}
		s.server.mux.Start(c, a.route.Backend, up.Account, in.multiplexed)
	}
	return nil
}

// until is when a session has to end because of the token that opened it; zero:
// never.
func (s *Server) until(a *attempt) time.Time {
	if s.cfg.TokenGrace == 0 || a.expires.IsZero() {
		return time.Time{}
	}
	return a.expires.Add(s.cfg.TokenGrace)
}

// leaveLobby gives the place of those who have not logged in to somebody else,
// once.
func (s *session) leaveLobby() {
	if !s.known {
		s.known = true
		s.server.waiting.Add(-1)
	}
}

// answering is the time for an answer, and for what the mechanism has the client say
// to it, where a login has outlasted the connection's deadline.
const answering = 5 * time.Second

// later is the later of two times.
func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// refuse answers a failed login. The answer comes no sooner than a fixed while
// after the command, so that its time says nothing about the user; the error
// returned ends the connection.
func (s *session) refuse(ctx context.Context, a *attempt, why error) error {
	r := refusalOf(why)
	if ctx.Err() != nil {
		r = unavailable(audit.GatewayStopping)
	}
	inTime := s.linger(ctx, a, why)
	s.recordRefusal(a, r, why)
	switch {
	case ctx.Err() != nil:
		return ctx.Err() // a BYE, and no NO that comes too soon
	case !inTime, errors.Is(why, errTooOften) && !time.Now().Before(s.deadline):
		return &ending{audit.PreauthTimeout, tookTooLong, nil} // as well
	case r.reply == "":
		return why // there is nobody to be told
	}
	late := !time.Now().Before(s.deadline)
	s.conn.Limit(later(s.deadline, time.Now().Add(answering)))
	if r.denied {
		if err := s.explain(a); err != nil {
			return err
		}
	}
	if err := s.send(r.before + a.tag + " " + r.reply); err != nil {
		return err
	}
	if s.gaveUp() {
		return &ending{audit.LoginAttempts, "[UNAVAILABLE] Too many failed logins.", nil}
	}
	if errors.Is(why, errTurnedBack) {
		return &ending{audit.AuditAway, "[UNAVAILABLE] Try again later.", nil} // its place cannot be taken twice
	}
	if late {
		return &ending{audit.PreauthTimeout, tookTooLong, nil}
	}
	s.conn.Limit(s.deadline)
	return nil
}
