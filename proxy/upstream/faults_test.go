package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// sendSlowly sends a line byte by byte, and never its end.
func sendSlowly(c *testkit.Conn) {
	for {
		if _, err := c.Write([]byte("*")); err != nil {
			return
		}
		<-time.After(50 * time.Millisecond)
	}
}

// A greeting that comes byte by byte is as good as none: the time is that of all of it.
func TestASlowGreetingIsPassedOver(t *testing.T) {
	t.Parallel()
	slow, good := testkit.StartIMAP(t, sendSlowly), testkit.StartIMAP(t, serveLogins)
	b := newSeveral(t, withoutTimeouts, slow.Addr(), good.Addr())
	if at, err := logInAt(t, b, "joe"); err != nil || at != good.Addr() {
		t.Errorf("at %q, %v", at, err)
	}
}

// Each fault of TLS at the first address, with implicit TLS and STARTTLS, before the credentials.
func TestALoginGoesOnAfterAFaultOfTLS(t *testing.T) {
	t.Parallel()
	server, roots := certificate(t, nil)
	otherName, _ := certificate(t, func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(192, 0, 2, 1)} })
	expired, _ := certificate(t, func(c *x509.Certificate) { c.NotAfter, c.SerialNumber = time.Now().Add(-time.Minute), big.NewInt(2) })
	unknown, _ := certificate(t, nil)
	for _, trusted := range []*tls.Config{otherName, expired} {
		roots.AddCert(testkit.Must(x509.ParseCertificate(trusted.Certificates[0].Certificate[0]))(t))
	}
	for name, c := range map[string]struct {
		mode  event.TLSMode
		tls   *tls.Config
		steps []string
	}{
		"another name":            {event.ImplicitTLS, otherName, []string{"tls"}},
		"expired":                 {event.ImplicitTLS, expired, []string{"tls"}},
		"unknown authority":       {event.ImplicitTLS, unknown, []string{"tls"}},
		"no handshake":            {event.ImplicitTLS, server, []string{"hang"}},
		"no TLS":                  {event.ImplicitTLS, server, []string{"> * OK hello"}},
		"reset in the handshake":  {event.ImplicitTLS, server, []string{"rst"}},
		"closed after it":         {event.ImplicitTLS, server, []string{"tls", "fin"}},
		"silent after it":         {event.ImplicitTLS, server, []string{"tls", "hang"}},
		"no STARTTLS":             {event.StartTLS, server, []string{"> * OK [CAPABILITY IMAP4rev1] hi"}},
		"STARTTLS refused":        {event.StartTLS, server, []string{greetingStartTLS, "< STARTTLS", "> {S} NO not now"}},
		"silent after STARTTLS":   {event.StartTLS, server, []string{greetingStartTLS, "< STARTTLS", "hang"}},
		"data with the OK":        {event.StartTLS, server, []string{greetingStartTLS, "< STARTTLS", ">> {S} OK\r\n* OK injected\r\n"}},
		"another name, STARTTLS":  {event.StartTLS, otherName, []string{greetingStartTLS, "< STARTTLS", "> {S} OK", "tls"}},
		"reset after STARTTLS":    {event.StartTLS, server, []string{greetingStartTLS, "< STARTTLS", "> {S} OK", "tls", "< CAPABILITY", "rst"}},
		"no mechanism, encrypted": {event.StartTLS, server, []string{greetingStartTLS, "< STARTTLS", "> {S} OK", "tls", "< CAPABILITY", "> * CAPABILITY IMAP4rev1 LOGINDISABLED\r\n{C} OK"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bad := &testkit.Steps{Lines: c.steps, TLS: c.tls}
			goodSteps := []string{"tls", "> * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] hi", "< AUTHENTICATE PLAIN", "> {L} OK [CAPABILITY IMAP4rev1] in"}
			if c.mode == event.StartTLS {
				goodSteps = []string{greetingStartTLS, "< STARTTLS", "> {S} OK", "tls", "< CAPABILITY", "> * CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN\r\n{C} OK", "< AUTHENTICATE PLAIN", "> {L} OK [CAPABILITY IMAP4rev1] in"}
			}
			good := &testkit.Steps{Lines: goodSteps, TLS: server}
			b := newSeveral(t, func(cfg *Config) {
				withoutTimeouts(cfg)
				cfg.TLS, cfg.TLSConfig = c.mode, testbed.StaticTLS(&tls.Config{RootCAs: roots})
			}, bad.Start(t), good.Start(t))
			if at, err := logInAt(t, b, "joe"); err != nil || at != b.HostPorts()[1] {
				t.Errorf("at %q, %v", at, err)
			}
			bad.Wait()
			good.Wait()
			if leaksCredentials(bad.Plaintext.String()+bad.Encrypted.String()) || strings.Count(good.Encrypted.String(), "AUTHENTICATE") != 1 {
				t.Errorf("the first address received %q, the second %q", bad.Encrypted.String(), good.Encrypted.String())
			}
		})
	}
}

func TestAllAddressesAreTriedOnce(t *testing.T) {
	t.Parallel()
	var servers []*testkit.ScriptedIMAP
	var addresses []string
	for range 5 {
		s := testkit.StartIMAP(t, func(c *testkit.Conn) { _ = c.Send("* BYE no") })
		servers, addresses = append(servers, s), append(addresses, s.Addr())
	}
	b := newSeveral(t, nil, addresses...)
	if _, err := logInAt(t, b, "joe"); !errors.Is(err, ErrUnavailable) || !errors.Is(err, errBye) {
		t.Error(err)
	}
	for i, s := range servers {
		if s.Accepted() != 1 {
			t.Errorf("address %d has %d connections", i, s.Accepted())
		}
	}
}

// recordedResults returns a hook that records the results of logins.
func recordedResults(results *[]event.ConnectResult) Hooks {
	return Hooks{OnConnect: func(r event.ConnectResult) { *results = append(*results, r) }}
}

// A login that is tried nowhere says why.
func TestALoginThatIsTriedNowhereHasAResult(t *testing.T) {
	t.Parallel()
	s := testkit.StartIMAP(t, serveLogins)
	for name, c := range map[string]struct {
		change func(*Config, *Backend)
		want   event.ConnectResult
	}{
		"disabled":    {func(_ *Config, b *Backend) { b.SetState(s.Addr(), event.AddressDisabled) }, event.ConnectDown},
		"evacuating":  {func(_ *Config, b *Backend) { b.SetState(s.Addr(), event.AddressEvacuating) }, event.ConnectDown},
		"draining":    {func(_ *Config, b *Backend) { b.SetState(s.Addr(), event.AddressDraining) }, event.ConnectDown},
		"full":        {func(c *Config, b *Backend) { c.MaxSessions = 1; b.list()[0].connections.Store(1) }, event.ConnectBusy},
		"maintenance": {func(c *Config, _ *Backend) { c.Maintenance = "back {soon}" }, event.ConnectMaintenance},
	} {
		var results []event.ConnectResult
		cfg := testbed.WithDefaults(Config{Name: "east", Settings: Settings{Address: s.Addr(), TLS: event.NoTLS}})
		b := New(cfg, recordedResults(&results), zap.NewNop())
		c.change(&cfg, b)
		b.Apply(cfg)
		_, err := b.Login(t.Context(), testRequest(t))
		if !errors.Is(err, ErrUnavailable) || len(results) != 1 || results[0] != c.want || ResultOf(t.Context(), err) != c.want {
			t.Errorf("%s: %v, %v", name, err, results)
		}
		var maintenance *MaintenanceError
		if isMaintenance := errors.As(err, &maintenance); isMaintenance != (name == "maintenance") || isMaintenance && maintenance.Text != "back (soon)" {
			t.Errorf("%s: %+v", name, maintenance)
		}
	}
	if s.Accepted() > 0 {
		t.Error("a connection")
	}
}

// A session of the modes reuse and resume takes connections as it needs them.
func TestSessionsOutlastMaintenanceAndDrain(t *testing.T) {
	t.Parallel()
	first, second := testkit.StartIMAP(t, serveLogins), testkit.StartIMAP(t, serveLogins)
	req := testRequest(t)
	req.HasSession = true
	expect := func(what string, b *Backend, want string) {
		t.Helper()
		conn, err := b.Login(t.Context(), req)
		if (err == nil) != (want != "") || err == nil && conn.Address() != want {
			t.Errorf("%s: %v", what, err)
		}
		if err == nil {
			testkit.NoError(t, conn.Close())
		}
	}
	one := newSeveral(t, func(c *Config) { c.Maintenance = "back soon" }, first.Addr())
	expect("maintenance", one, first.Addr())
	one.SetState(first.Addr(), event.AddressDraining)
	expect("the only address drains", one, first.Addr())
	one.SetState(first.Addr(), event.AddressEvacuating)
	expect("the only address is evacuated", one, "")
	two := newSeveral(t, nil, first.Addr(), second.Addr())
	two.SetState(first.Addr(), event.AddressDraining)
	expect("another address does not drain", two, second.Addr())
}

// As many logins as there are places are accepted, however many come at once.
func TestMaxSessionsIsExact(t *testing.T) {
	t.Parallel()
	first, second := testkit.StartIMAP(t, serveLogins), testkit.StartIMAP(t, serveLogins)
	b := newSeveral(t, func(c *Config) { c.MaxSessions = 5 }, first.Addr(), second.Addr())
	var mu sync.Mutex
	counts := make(map[string]int)
	var logins sync.WaitGroup
	for range 30 {
		logins.Go(func() {
			conn, err := b.Login(t.Context(), testRequest(t))
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				counts[string(ResultOf(t.Context(), err))]++
				return
			}
			counts[conn.Address()]++
			t.Cleanup(func() { _ = conn.Close() })
		})
	}
	logins.Wait()
	if n, err := b.list()[0].loginWhenFull(t, b); n != 5 || !errors.Is(err, errFull) {
		t.Errorf("a login that was chosen before the address was full: %v, %d connections", err, n)
	}
	if counts[first.Addr()] != 5 || counts[second.Addr()] > 5 || counts[first.Addr()]+counts[second.Addr()]+counts["busy"] != 30 {
		t.Errorf("%v", counts)
	}
	for _, s := range b.Addresses() {
		if s.Connections != counts[s.Address] || s.State != event.AddressUp || s.Failures > 0 {
			t.Errorf("%+v", s)
		}
	}
}

// loginWhenFull tries a login at a full address, as one does that was chosen shortly before. It
// returns the connections afterwards.
func (a *address) loginWhenFull(t *testing.T, b *Backend) (int64, error) {
	t.Helper()
	creds := testkit.Must(b.cfg().buildCredentials(testRequest(t)))(t)
	_, canRetry, err := attempt{address: a, cfg: b.cfg(), deadline: time.Now().Add(testbed.Timeout), others: 1}.run(t.Context(), testRequest(t), creds)
	if !canRetry {
		t.Error("the login does not go on to another address")
	}
	return a.connections.Load(), err
}

// A new configuration that has other limits keeps what is known about an address. One without
// health checks forgets what they found.
func TestANewConfigurationChangesLimitsAndChecks(t *testing.T) {
	t.Parallel()
	s := testkit.StartIMAP(t, serveLogins)
	b := newSeveral(t, func(c *Config) { c.Health.Interval, c.Health.Timeout = time.Hour, time.Second }, s.Addr())
	runBackend(t, b)
	testkit.Eventually(t, "the first check", func() bool { return b.Addresses()[0].CheckLatency > 0 }) // the next is in an hour
	conn := testkit.Must(b.Login(t.Context(), testRequest(t)))(t)
	a := b.list()[0]
	a.mu.Lock()
	a.checked = checkResult{why: "a test"}
	a.mu.Unlock()
	a.report()
	cfg := *b.cfg()
	cfg.MaxUpstreamLogins, cfg.MaxUpstreamConnectsPerSecond, cfg.Health.Interval = 1, 1000, 0
	b.Apply(cfg)
	testkit.Eventually(t, "checks that are off to count no more", func() bool { return b.Addresses()[0].State == event.AddressUp })
	if got := b.Addresses()[0]; got.Connections != 1 || got.Logins != 1 || b.list()[0] != a || a.limits.Load().connRate == nil {
		t.Errorf("%+v", got)
	}
	cfg.Health.Interval, cfg.Health.Fall = 100*time.Millisecond, 1
	b.Apply(cfg)
	testkit.NoError(t, conn.Close())
	s.Close()
	testkit.Eventually(t, "checks that are on again", func() bool { return b.Addresses()[0].State == event.AddressDown })
}

// A change that is found while another one is being reported is reported after it.
func TestChangesOfStateAreReportedInTheirOrder(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var changes []string
	begun, release := make(chan struct{}), make(chan struct{})
	block := sync.OnceFunc(func() {
		close(begun)
		<-release
	})
	cfg := testbed.WithDefaults(Config{Name: "east", Settings: Settings{Address: "127.0.0.1:1", TLS: event.NoTLS}})
	b := New(cfg, Hooks{OnState: func(_ string, old, now event.AddressState, _ string) {
		if now == event.AddressDraining {
			block()
		}
		mu.Lock()
		defer mu.Unlock()
		changes = append(changes, string(old)+" "+string(now))
	}}, zap.NewNop())
	var first sync.WaitGroup
	first.Go(func() { b.SetState("127.0.0.1:1", event.AddressDraining) })
	<-begun
	b.SetState("127.0.0.1:1", event.AddressDisabled) // does not wait for the first
	close(release)
	first.Wait()
	if got := strings.Join(changes, ", "); got != "up draining, draining disabled" {
		t.Error(got)
	}
}

// An address that operators use again gets its users gradually, as one that was down does.
func TestOnlyAnAddressThatWasOutOfUseStartsSlowly(t *testing.T) {
	t.Parallel()
	b := newSeveral(t, nil, "127.0.0.1:1")
	a := b.list()[0]
	for state, want := range map[event.AddressState]bool{event.AddressDraining: false, event.AddressDisabled: true, event.AddressEvacuating: true} {
		a.returnedAt = time.Time{}
		b.SetState(a.hostPort, state)
		b.SetState(a.hostPort, event.AddressUp)
		if got := !a.returnedAt.IsZero(); got != want {
			t.Errorf("after %s: %v", state, got)
		}
	}
}

// The place of a user is claimed for each attempt, and released once when its connection ends.
func TestPlacesAreReleasedOnce(t *testing.T) {
	t.Parallel()
	bad, good := testkit.StartIMAP(t, func(c *testkit.Conn) { _ = c.Send("* BYE no") }), testkit.StartIMAP(t, serveLogins)
	places := &countedPlaces{}
	b := newSeveral(t, func(c *Config) { c.Places, c.Placement = places, event.Sticky }, bad.Addr(), good.Addr())
	conn := testkit.Must(b.Login(t.Context(), testRequest(t)))(t)
	if got := places.all(); len(got) != 2 || got[0] != (claim{bad.Addr(), 1}) || got[1] != (claim{good.Addr(), 0}) {
		t.Errorf("while connected: %v", got)
	}
	nc, _, hold := conn.Detach()
	_ = nc.Close()
	hold.Release()
	hold.Release()
	if got := places.all(); got[1].released != 1 {
		t.Errorf("afterwards: %v", got)
	}
}

// claim is one call of Claim.
type claim struct {
	address  string
	released int
}

// countedPlaces gives each login its first candidate, and counts.
type countedPlaces struct {
	mu     sync.Mutex
	claims []*claim
}

func (p *countedPlaces) Claim(_ context.Context, _ string, _ identity.User, candidates, _ []string) (string, func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := &claim{address: candidates[0]}
	p.claims = append(p.claims, c)
	return c.address, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		c.released++
	}
}

func (p *countedPlaces) all() (list []claim) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.claims {
		list = append(list, *c)
	}
	return list
}
