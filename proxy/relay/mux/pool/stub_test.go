package pool

import (
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/descriptors"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/internal/parking"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
	"imapgate/proxy/relay"
	"imapgate/proxy/relay/mux/lease"
	"imapgate/proxy/relay/mux/wire"
	"imapgate/proxy/upstream"
)

const stubCaps = "IMAP4rev1 SASL-IR AUTH=PLAIN ENABLE UNSELECT CONDSTORE QRESYNC UTF8=ACCEPT"

// stub is a backend that answers as a test demands.
type stub struct {
	*testkit.ScriptedIMAP

	// Set once.
	t    testing.TB
	caps string
	// alert is sent untagged before the OK of every login; "": no alert.
	alert string
	// sockets counts the connections to it; nil: not counted.
	sockets *descriptors.Counter
	// onCommand answers a command instead of the stub, if it returns true.
	onCommand func(p *stubConn, tag, command string) bool

	mu sync.Mutex
	// Guarded by mu.
	refusals   map[string]string // user and password to the text of the NO
	conns      []*stubConn       // every connection that has logged in
	loginCount int               // attempts
}

// stubConn is the stub's side of a connection.
type stubConn struct {
	*testkit.Conn

	// Set once.
	stub           *stub
	user, password string

	mu sync.Mutex
	// Guarded by mu.
	enabled  imap.Extensions
	commands []string // commands, without their tags
}

func startStub(t testing.TB, caps string) *stub {
	t.Helper()
	s := &stub{t: t, caps: caps, refusals: map[string]string{}}
	s.ScriptedIMAP = testkit.StartIMAP(t, s.serve)
	return s
}

// serve ends when the connection does.
func (s *stub) serve(c *testkit.Conn) {
	p := &stubConn{Conn: c, stub: s}
	_ = p.Send("* OK [CAPABILITY " + s.caps + "] stub")
	for {
		tag, command, err := p.ReadCommand()
		if err != nil {
			return
		}
		p.mu.Lock()
		p.commands = append(p.commands, command)
		p.mu.Unlock()
		if s.onCommand == nil || !s.onCommand(p, tag, command) {
			p.handleCommand(tag, command)
		}
	}
}

func (p *stubConn) handleCommand(tag, command string) {
	verb, rest, _ := strings.Cut(command, " ")
	switch verb {
	case "AUTHENTICATE":
		p.handleLogin(tag, rest)
	case "ENABLE":
		p.mu.Lock()
		p.enabled = p.enabled.With(strings.Fields(rest)...)
		p.mu.Unlock()
		_ = p.Send("* ENABLED "+rest, tag+" OK enabled")
	case "XWHO": // not IMAP: user and password of this connection
		p.mu.Lock()
		reply := fmt.Sprintf("* XWHO %s %s {%s}", p.user, p.password, p.enabled)
		p.mu.Unlock()
		_ = p.Send(strings.NewReplacer("{", "(", "}", ")").Replace(reply), tag+" OK")
	case "XHANG":
	default:
		_ = p.Send(tag + " OK done")
	}
}

// handleLogin accepts PLAIN and XOAUTH2; a token counts as the password "token " followed by
// the token.
func (p *stubConn) handleLogin(tag, exchange string) {
	mechanism, encoded, _ := strings.Cut(exchange, " ")
	response, _ := base64.StdEncoding.DecodeString(encoded)
	if mechanism == "XOAUTH2" {
		response = []byte(strings.NewReplacer("user=", "\x00", "\x01auth=Bearer ", "\x00token ", "\x01", "").Replace(string(response)))
	}
	parts := strings.Split(string(response), "\x00")
	s := p.stub
	s.mu.Lock()
	s.loginCount++
	refusal := s.refusals[parts[1]+" "+parts[2]]
	if refusal == "" {
		p.user, p.password = parts[1], parts[2]
		s.conns = append(s.conns, p)
	}
	s.mu.Unlock()
	if refusal != "" {
		_ = p.Send(tag + " NO " + refusal)
		return
	}
	if s.alert != "" {
		_ = p.Send("* OK [ALERT] " + s.alert)
	}
	_ = p.Send(tag + " OK [CAPABILITY " + s.caps + "] welcome " + p.user)
}

// countCommand returns how often a command was received.
func (p *stubConn) countCommand(command string) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.commands {
		if c == command {
			n++
		}
	}
	return n
}

// deny makes the stub refuse a login from now on; with text "" it accepts it again.
func (s *stub) deny(user, password, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refusals[user+" "+password] = text
}

func (s *stub) loginAttempts() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.loginCount
}

// findConn returns the stub's side of a connection.
func (s *stub) findConn(c *lease.Conn) *stubConn {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range slices.Backward(s.conns) { // an earlier connection may have had the same port
		if p.RemoteAddr().String() == c.NetConn().LocalAddr().String() {
			return p
		}
	}
	s.t.Fatal("no such connection at the stub")
	return nil
}

// testPool is a Pool that counts the calls of its hooks.
type testPool struct {
	*Pool
	t testing.TB

	mu sync.Mutex
	// Guarded by mu.
	discarded map[event.DiscardReason]int
	reused    int
	idle      int
}

func (c Config) newTestPool(t testing.TB, b *upstream.Backend) *testPool {
	tp := &testPool{t: t, discarded: map[event.DiscardReason]int{}}
	hooks := Hooks{
		OnReuse:      func() { tp.mu.Lock(); tp.reused++; tp.mu.Unlock() },
		OnWait:       func(time.Duration) {},
		OnDiscard:    func(reason event.DiscardReason) { tp.mu.Lock(); tp.discarded[reason]++; tp.mu.Unlock() },
		OnIdleChange: func(n int) { tp.mu.Lock(); tp.idle += n; tp.mu.Unlock() },
	}
	tp.Pool = New(b, testbed.WithDefaults(c, "pool_idle_timeout", "max_per_user"), &wire.Resources{Buffers: parking.NewBufferPool(), Clock: relay.NewClock()}, hooks, zap.NewNop())
	t.Cleanup(func() {
		tp.Close()
		if tp.idleCount() != 0 {
			t.Errorf("%d connections are idle after Close", tp.idleCount())
		}
	})
	return tp
}

func (tp *testPool) idleCount() int {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	return tp.idle
}

func (tp *testPool) discardedFor(reason event.DiscardReason) int {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	return tp.discarded[reason]
}

// slotCount returns the number of connections, and of logins that have a slot.
func (tp *testPool) slotCount() int {
	tp.Pool.mu.Lock()
	defer tp.Pool.mu.Unlock()
	return tp.total
}

// ageAnswer moves a connection's last response d into the past.
func (tp *testPool) ageAnswer(c *lease.Conn, d time.Duration) {
	tp.Pool.mu.Lock()
	defer tp.Pool.mu.Unlock()
	pc := tp.conns[c]
	pc.lastAnswer = pc.lastAnswer.Add(-d)
}

// newPool returns a pool at the stub without validation or expiry for an hour.
func (s *stub) newPool(c Config) *testPool {
	for _, d := range []*time.Duration{&c.PoolIdleTimeout, &c.ValidateAfter} {
		if *d == 0 {
			*d = time.Hour
		}
	}
	b := upstream.New(testbed.WithDefaults(upstream.Config{
		Name: "stub", Settings: upstream.Settings{Address: s.Addr(), TLS: event.NoTLS}, LoginSettings: upstream.LoginSettings{UpstreamConnectTimeout: testbed.Timeout}, Sockets: s.sockets,
	}), upstream.Hooks{}, zap.NewNop())
	return c.newTestPool(s.t, b)
}

func newRequest(t testing.TB, user, password string) upstream.Request {
	t.Helper()
	u := testkit.Must(identity.Canonicalize(user, ""))(t)
	return upstream.Request{User: u, Password: identity.NewSecret(password)}
}

// mustLogIn performs a login that must succeed.
func (tp *testPool) mustLogIn(user, password string, proof Verification) *Account {
	tp.t.Helper()
	a, err := tp.Login(context.Background(), newRequest(tp.t, user, password), proof)
	if err != nil {
		tp.t.Fatal(err)
	}
	return a
}

func acquireLease(t testing.TB, a *Account, names ...string) *lease.Conn {
	t.Helper()
	c, err := a.Acquire(context.Background(), imap.Extensions("").With(names...))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// identifyConn asks the stub for the user and password of a connection.
func identifyConn(t testing.TB, c *lease.Conn) string {
	t.Helper()
	var replies []string
	_, err := c.Run(time.Now().Add(5*time.Second), "XWHO", func(b []byte) error {
		replies = append(replies, strings.TrimSpace(strings.TrimPrefix(string(b), "* XWHO ")))
		return nil
	})
	if err != nil || len(replies) != 1 {
		t.Fatalf("XWHO: %v %q", err, replies)
	}
	return replies[0]
}

func containsConn(all []*lease.Conn, c *lease.Conn) bool { return slices.Contains(all, c) }
