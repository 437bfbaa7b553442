package pool

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/descriptors"
	"imapgate/internal/identity"
	"imapgate/internal/quiet"
	"imapgate/internal/testbed"
	"imapgate/proxy/mux/lease"
	"imapgate/proxy/mux/wire"
	"imapgate/proxy/upstream"
)

const stubCaps = "IMAP4rev1 SASL-IR AUTH=PLAIN ENABLE UNSELECT CONDSTORE QRESYNC UTF8=ACCEPT"

// stub is a backend that does as a test wants.
type stub struct {
	// Set once.
	t    testing.TB
	l    net.Listener
	wg   sync.WaitGroup
	caps string
	// alert comes untagged before the OK of every login; "": none does.
	alert string
	// sockets counts the connections to it; nil: nobody does.
	sockets *descriptors.Counter
	// react answers a command instead of the stub, if it returns true.
	react func(p *peer, tag, command string) bool

	mu sync.Mutex
	// Guarded by mu.
	denied map[string]string // user and password to the NO they get
	peers  []*peer           // all that ever logged in
	logins int               // tried
}

// peer is one connection as the stub sees it.
type peer struct {
	// Set once.
	s              *stub
	nc             net.Conn
	user, password string

	mu sync.Mutex
	// Guarded by mu.
	enabled lease.Enabled
	heard   []string // commands, without their tags
}

func startStub(t testing.TB, caps string) *stub {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &stub{t: t, l: l, caps: caps, denied: map[string]string{}}
	s.wg.Add(1)
	go s.accept()
	t.Cleanup(func() {
		_ = l.Close()
		s.mu.Lock()
		for _, p := range s.peers {
			_ = p.nc.Close()
		}
		s.mu.Unlock()
		s.wg.Wait()
	})
	return s
}

// accept ends when the listener is closed.
func (s *stub) accept() {
	defer s.wg.Done()
	for {
		nc, err := s.l.Accept()
		if err != nil {
			return
		}
		s.wg.Add(1)
		go s.serve(nc)
	}
}

// serve ends when the connection does.
func (s *stub) serve(nc net.Conn) {
	defer s.wg.Done()
	defer func() { _ = nc.Close() }()
	p := &peer{s: s, nc: nc}
	p.say("* OK [CAPABILITY " + s.caps + "] stub")
	r := bufio.NewReader(nc)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		tag, command, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
		p.mu.Lock()
		p.heard = append(p.heard, command)
		p.mu.Unlock()
		if s.react == nil || !s.react(p, tag, command) {
			p.answer(tag, command)
		}
	}
}

func (p *peer) answer(tag, command string) {
	verb, rest, _ := strings.Cut(command, " ")
	switch verb {
	case "AUTHENTICATE":
		p.login(tag, rest)
	case "ENABLE":
		p.mu.Lock()
		p.enabled = p.enabled.With(strings.Fields(rest)...)
		p.mu.Unlock()
		p.say("* ENABLED "+rest, tag+" OK enabled")
	case "XWHO": // not IMAP: who is really on this connection
		p.mu.Lock()
		said := fmt.Sprintf("* XWHO %s %s {%s}", p.user, p.password, p.enabled)
		p.mu.Unlock()
		p.say(strings.NewReplacer("{", "(", "}", ")").Replace(said), tag+" OK")
	case "XHANG":
	default:
		p.say(tag + " OK done")
	}
}

// login takes PLAIN and XOAUTH2; a token is the password "token " and itself.
func (p *peer) login(tag, exchange string) {
	mechanism, response, _ := strings.Cut(exchange, " ")
	said, _ := base64.StdEncoding.DecodeString(response)
	if mechanism == "XOAUTH2" {
		said = []byte(strings.NewReplacer("user=", "\x00", "\x01auth=Bearer ", "\x00token ", "\x01", "").Replace(string(said)))
	}
	parts := strings.Split(string(said), "\x00")
	s := p.s
	s.mu.Lock()
	s.logins++
	no := s.denied[parts[1]+" "+parts[2]]
	if no == "" {
		p.user, p.password = parts[1], parts[2]
		s.peers = append(s.peers, p)
	}
	s.mu.Unlock()
	if no != "" {
		p.say(tag + " NO " + no)
		return
	}
	if s.alert != "" {
		p.say("* OK [ALERT] " + s.alert)
	}
	p.say(tag + " OK [CAPABILITY " + s.caps + "] welcome " + p.user)
}

func (p *peer) say(lines ...string) {
	_, _ = p.nc.Write([]byte(strings.Join(lines, "\r\n") + "\r\n"))
}

// count is the number of times that a command was heard.
func (p *peer) count(command string) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.heard {
		if c == command {
			n++
		}
	}
	return n
}

// deny makes the stub refuse a login from now on; with "" it takes it again.
func (s *stub) deny(user, password, no string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.denied[user+" "+password] = no
}

func (s *stub) tried() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.logins
}

// of finds the peer of a connection.
func (s *stub) of(c *lease.Conn) *peer {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range slices.Backward(s.peers) { // an old one may have had the same port
		if p.nc.RemoteAddr().String() == c.Conn().LocalAddr().String() {
			return p
		}
	}
	s.t.Fatal("no such connection at the stub")
	return nil
}

// tally is a Pool with what its hooks have said.
type tally struct {
	*Pool
	t testing.TB

	mu sync.Mutex
	// Guarded by mu.
	discarded map[string]int
	reused    int
	waiting   int
}

func (c Config) pool(t testing.TB, b *upstream.Backend) *tally {
	y := &tally{t: t, discarded: map[string]int{}}
	hooks := Hooks{
		Reused:    func() { y.mu.Lock(); y.reused++; y.mu.Unlock() },
		Discarded: func(reason string) { y.mu.Lock(); y.discarded[reason]++; y.mu.Unlock() },
		Waiting:   func(n int) { y.mu.Lock(); y.waiting += n; y.mu.Unlock() },
	}
	y.Pool = New(b, c, &wire.Shared{Buffers: quiet.NewBuffers(), Clock: new(wire.Clock)}, hooks, zap.NewNop())
	t.Cleanup(func() {
		y.Close()
		if y.number() != 0 {
			t.Errorf("%d connections still wait behind Close", y.number())
		}
	})
	return y
}

func (y *tally) number() int {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.waiting
}

func (y *tally) closedFor(reason string) int {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.discarded[reason]
}

// places is the number of connections, and of logins that have a place.
func (y *tally) places() int {
	y.Pool.mu.Lock()
	defer y.Pool.mu.Unlock()
	return y.total
}

// silent makes a connection one that has not answered for d more.
func (y *tally) silent(c *lease.Conn, d time.Duration) {
	y.Pool.mu.Lock()
	defer y.Pool.mu.Unlock()
	h := y.conns[c]
	h.heard = h.heard.Add(-d)
}

// pool is a pool at the stub in which nothing happens by itself for an hour.
func (s *stub) pool(c Config) *tally {
	for _, d := range []*time.Duration{&c.ReuseTTL, &c.NoopAfter} {
		if *d == 0 {
			*d = time.Hour
		}
	}
	b := upstream.New(upstream.Config{
		Name: "stub", Address: s.l.Addr().String(), TLSMode: upstream.NoTLS, ConnectTimeout: testbed.Patience, Sockets: s.sockets,
	}, upstream.Hooks{}, zap.NewNop())
	return c.pool(s.t, b)
}

func request(t testing.TB, user, password string) upstream.Request {
	t.Helper()
	u, err := identity.Canon(user, "")
	if err != nil {
		t.Fatal(err)
	}
	return upstream.Request{User: u, Password: identity.NewSecret(password)}
}

// login proves a login that has to succeed.
func (y *tally) login(user, password string, proof Proof) *Account {
	y.t.Helper()
	a, err := y.Login(context.Background(), request(y.t, user, password), proof)
	if err != nil {
		y.t.Fatal(err)
	}
	return a
}

func leased(t testing.TB, a *Account, names ...string) *lease.Conn {
	t.Helper()
	c, err := a.Lease(context.Background(), lease.Enabled("").With(names...))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// settled waits for something that another process or goroutine does.
func settled(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testbed.Patience)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		case <-tick.C:
		}
	}
}

// who asks the stub who is on a connection.
func who(t testing.TB, c *lease.Conn) string {
	t.Helper()
	var said []string
	_, err := c.Run(time.Now().Add(5*time.Second), "XWHO", func(b []byte) error {
		said = append(said, strings.TrimSpace(strings.TrimPrefix(string(b), "* XWHO ")))
		return nil
	})
	if err != nil || len(said) != 1 {
		t.Fatalf("XWHO: %v %q", err, said)
	}
	return said[0]
}

func has(all []*lease.Conn, c *lease.Conn) bool { return slices.Contains(all, c) }
