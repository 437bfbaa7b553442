package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/net/dns/dnsmessage"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// dnsServer is a DNS server on a loopback port.
type dnsServer struct {
	conn    net.PacketConn // set once
	queries atomic.Int32

	mu sync.Mutex
	// Guarded by mu. Names are absolute.
	ips     map[string][]netip.Addr
	srv     map[string][]dnsmessage.SRVResource
	failing bool // SERVFAIL to all
}

func startDNS(t *testing.T) *dnsServer {
	t.Helper()
	s := &dnsServer{conn: testkit.Must(net.ListenPacket("udp", "127.0.0.1:0"))(t), ips: map[string][]netip.Addr{}, srv: map[string][]dnsmessage.SRVResource{}}
	var serving sync.WaitGroup
	serving.Go(s.serve)
	t.Cleanup(func() {
		_ = s.conn.Close()
		serving.Wait()
	})
	return s
}

// serve ends when the socket is closed.
func (s *dnsServer) serve() {
	buf := make([]byte, 4096)
	for {
		n, from, err := s.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		var query dnsmessage.Message
		if query.Unpack(buf[:n]) != nil || len(query.Questions) != 1 {
			continue
		}
		s.queries.Add(1)
		answer := s.answer(query)
		if packed, err := answer.Pack(); err == nil {
			_, _ = s.conn.WriteTo(packed, from)
		}
	}
}

func (s *dnsServer) answer(query dnsmessage.Message) dnsmessage.Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := query.Questions[0]
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: query.ID, Response: true, Authoritative: true}, Questions: query.Questions}
	add := func(body dnsmessage.ResourceBody) {
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: dnsmessage.ClassINET, TTL: 1}, Body: body})
	}
	name := strings.ToLower(q.Name.String())
	ips, isHost := s.ips[name]
	records, isService := s.srv[name]
	switch {
	case s.failing:
		m.RCode = dnsmessage.RCodeServerFailure
	case !isHost && !isService:
		m.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeSRV:
		for _, r := range records {
			add(&r)
		}
	}
	for _, ip := range ips {
		switch {
		case m.RCode != dnsmessage.RCodeSuccess:
		case q.Type == dnsmessage.TypeA && ip.Is4():
			add(&dnsmessage.AResource{A: ip.As4()})
		case q.Type == dnsmessage.TypeAAAA && ip.Is6():
			add(&dnsmessage.AAAAResource{AAAA: ip.As16()})
		}
	}
	return m
}

// set changes the answers.
func (s *dnsServer) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// lookups are questions to this server.
func (s *dnsServer) lookups() dnsLookups {
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", s.conn.LocalAddr().String())
	}}
	return dnsLookups{r.LookupNetIP, r.LookupSRV}
}

func record(target string, port, priority, weight uint16) dnsmessage.SRVResource {
	return dnsmessage.SRVResource{Target: dnsmessage.MustNewName(target), Port: port, Priority: priority, Weight: weight}
}

func portOf(s *testkit.ScriptedIMAP) uint16 { return netip.MustParseAddrPort(s.Addr()).Port() }

var loopback = []netip.Addr{netip.MustParseAddr("127.0.0.1")} // constant

const srvName = "_imap._tcp.east.test"

// newFromDNS returns a backend whose addresses are those of srvName.
func newFromDNS(dns *dnsServer, log *zap.Logger, change func(*Config)) *Backend {
	cfg := testbed.WithDefaults(Config{Name: "east", Settings: Settings{TLS: event.NoTLS, Placement: event.Spread, Addresses: []AddressSettings{{SRV: srvName, Priority: 1, Weight: 1}}}})
	cfg.Health.Interval = 0
	if change != nil {
		change(&cfg)
	}
	return newBackend(cfg, Hooks{}, log, dns.lookups())
}

// runBackend runs b until the end of the test.
func runBackend(t *testing.T, b *Backend) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = b.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
}

func TestTheAddressesFollowDNS(t *testing.T) {
	t.Parallel()
	first, second := testkit.StartIMAP(t, serveLogins), testkit.StartIMAP(t, serveLogins)
	dns := startDNS(t)
	observed, lines := observer.New(zapcore.InfoLevel)
	b := newFromDNS(dns, zap.New(observed), func(c *Config) { c.Resolve = 10 * time.Millisecond })
	if _, err := logInAt(t, b, "joe"); !errors.Is(err, ErrUnavailable) || ResultOf(t.Context(), err) != event.ConnectUnreachable {
		t.Errorf("a login without an address: %v", err)
	}
	m1, m2 := fmt.Sprint("m1.east.test:", portOf(first)), fmt.Sprint("m2.east.test:", portOf(second))
	dns.set(func() {
		dns.ips["m1.east.test."] = loopback
		dns.srv[srvName+"."] = []dnsmessage.SRVResource{record("M1.East.test.", portOf(first), 10, 0), record("evil.test.", portOf(second), 1, 1)}
	})
	runBackend(t, b)
	isAt := func(want string) func() bool {
		return func() bool {
			at, err := logInAt(t, b, "joe")
			return err == nil && at == want
		}
	}
	testkit.Eventually(t, "the target is used", isAt(m1))
	if names := b.HostPorts(); !slices.Equal(names, []string{m1}) {
		t.Errorf("a target outside of the domain is used: %v", names)
	}
	dns.set(func() {
		dns.ips["m2.east.test."] = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("::ffff:127.0.0.1"), loopback[0]}
		dns.srv[srvName+"."] = append(dns.srv[srvName+"."], record("m2.east.test.", portOf(second), 5, 3))
	})
	testkit.Eventually(t, "the target of a better priority is used", isAt(m2))
	if s := b.Addresses()[0]; s.Address != m2 || s.Priority != 6 || s.Weight != 3 {
		t.Errorf("%+v", s)
	}
	dns.set(func() { dns.failing = true })
	asked := dns.queries.Load()
	testkit.Eventually(t, "DNS to fail several times", func() bool { return dns.queries.Load() > asked+8 })
	if !isAt(m2)() {
		t.Error("without DNS, the known addresses are not used")
	}
	dns.set(func() { dns.failing, dns.srv[srvName+"."] = false, dns.srv[srvName+"."][:1] })
	testkit.Eventually(t, "the target that is gone is not used", isAt(m1))
	if n := lines.FilterMessage("DNS lookup failed; what is known stays in use").Len(); n > 4 { // once for each name, of which there are three
		t.Errorf("%d lines about failed lookups", n)
	}
}

// A host name may lead elsewhere at any time. A login that fails does not wait until resolve is
// over.
func TestAFailedConnectionIsFollowedByALookup(t *testing.T) {
	t.Parallel()
	s := testkit.StartIMAP(t, serveLogins)
	dns := startDNS(t)
	dns.set(func() { dns.ips["mail.test."] = []netip.Addr{netip.MustParseAddr("127.0.0.2")} }) // where nothing listens
	b := newFromDNS(dns, zap.NewNop(), func(c *Config) {
		c.Addresses, c.Resolve = []AddressSettings{{Address: fmt.Sprint("mail.test:", portOf(s)), Priority: 1, Weight: 1}}, time.Hour
		c.UpstreamConnectTimeout = 100 * time.Millisecond
	})
	runBackend(t, b)
	if at, err := logInAt(t, b, "joe"); err == nil {
		t.Errorf("at %q", at)
	}
	dns.set(func() { dns.ips["mail.test."] = loopback })
	testkit.Eventually(t, "the new address is used", func() bool {
		_, err := logInAt(t, b, "joe")
		return err == nil
	})
	asked := dns.queries.Load()
	for range 20 {
		if _, err := logInAt(t, b, "joe"); err != nil {
			t.Error(err)
		}
	}
	if n := dns.queries.Load() - asked; n > 2 { // A and AAAA, of a lookup that was due before
		t.Errorf("%d questions for 20 logins", n)
	}
}

func TestTargetsOfSRVRecords(t *testing.T) {
	t.Parallel()
	dns := startDNS(t)
	many := make([]dnsmessage.SRVResource, maxTargets+5)
	for i := range many {
		many[i] = record(fmt.Sprintf("m%02d.east.test.", i), 143, 0, 1)
	}
	for what, c := range map[string]struct {
		records   []dnsmessage.SRVResource
		anyDomain bool
		want      int
	}{
		"no service":                     {[]dnsmessage.SRVResource{record(".", 0, 0, 0)}, true, 0},
		"another domain":                 {[]dnsmessage.SRVResource{record("mail.west.test.", 143, 0, 0)}, false, 0},
		"another domain, server_name":    {[]dnsmessage.SRVResource{record("mail.west.test.", 143, 0, 0)}, true, 1},
		"a domain with the same ending":  {[]dnsmessage.SRVResource{record("mail.notheast.test.", 143, 0, 0), record("xeast.test.", 143, 0, 0)}, false, 0},
		"the domain itself":              {[]dnsmessage.SRVResource{record("east.test.", 143, 0, 0)}, false, 1},
		"no port":                        {[]dnsmessage.SRVResource{record("m.east.test.", 0, 0, 0)}, false, 0},
		"too many":                       {many, false, maxTargets},
		"a name that is no host, beside": {[]dnsmessage.SRVResource{record("bad\x01name.east.test.", 143, 0, 0), record("m.east.test.", 143, 0, 0)}, false, 1},
	} {
		dns.set(func() { dns.srv[srvName+"."] = c.records })
		lookups := dns.lookups()
		if what == "too many" { // more than fits a datagram
			lookups.srv = func(context.Context, string, string, string) (string, []*net.SRV, error) {
				var all []*net.SRV
				for _, r := range c.records {
					all = append(all, &net.SRV{Target: r.Target.String(), Port: r.Port})
				}
				return srvName, all, nil
			}
		}
		targets, err := lookUpSRV(t.Context(), lookups, srvName, c.anyDomain)
		if len(targets) != c.want || (err == nil) != (c.want > 0) {
			t.Errorf("%s: %v, %v", what, targets, err)
		}
	}
}

// Logins that arrive while no address is known ask DNS one at a time, and share the answer.
func TestLoginsWithoutAddressesDoNotFloodDNS(t *testing.T) {
	t.Parallel()
	dns := startDNS(t)
	dns.set(func() { dns.srv[srvName+"."] = []dnsmessage.SRVResource{record("mail.west.test.", 143, 0, 0)} })
	b := newFromDNS(dns, zap.NewNop(), func(c *Config) { c.Resolve = time.Hour })
	b.mu.Lock()
	b.targets[srvName] = srvAnswer{askedAt: time.Now().Add(time.Hour), err: errors.New("a test")} // as if DNS had just been asked
	b.mu.Unlock()
	for range 50 {
		if _, err := logInAt(t, b, "joe"); !errors.Is(err, ErrUnavailable) {
			t.Error(err)
		}
	}
	if n := dns.queries.Load(); n > 0 {
		t.Errorf("%d questions", n)
	}
}
