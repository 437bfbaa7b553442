package upstream

import (
	"context"
	"fmt"
	"io"
	"math"
	"slices"
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

// serveLogins accepts every login.
func serveLogins(c *testkit.Conn) {
	_ = c.Send("* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] ready")
	login, err := c.ReadLogin()
	if err != nil {
		return
	}
	_ = c.Send(login.Tag + " OK [CAPABILITY IMAP4rev1] in")
	_, _ = io.Copy(io.Discard, c.R)
}

// newSeveral returns a backend with these addresses, in the order in which they are tried, and
// without health checks.
func newSeveral(t testing.TB, change func(*Config), addresses ...string) *Backend {
	t.Helper()
	cfg := Config{Name: "east", Settings: Settings{TLS: event.NoTLS, Placement: event.Spread}}
	for i, a := range addresses {
		cfg.Addresses = append(cfg.Addresses, AddressSettings{Address: a, Priority: i + 1, Weight: 1})
	}
	cfg = testbed.WithDefaults(cfg)
	cfg.Health.Interval, cfg.SlowStart = 0, 0
	if change != nil {
		change(&cfg)
	}
	return New(cfg, Hooks{}, zap.NewNop())
}

// logInAt logs in and returns the address.
func logInAt(t testing.TB, b *Backend, name string) (string, error) {
	t.Helper()
	req := testRequest(t)
	req.User = user(t, name)
	conn, err := b.Login(t.Context(), req)
	if err != nil {
		return "", err
	}
	address := conn.Address()
	return address, conn.Close()
}

// withoutTimeouts leaves only the time after which a login goes on to another address.
func withoutTimeouts(c *Config) {
	c.UpstreamConnectTimeout, c.UpstreamLoginTimeout, c.AnswerTimeout = time.Hour, time.Hour, time.Hour
}

// An address that fails before the credentials is passed over, also one that only hangs.
func TestALoginGoesOnToTheNextAddressBeforeTheCredentials(t *testing.T) {
	t.Parallel()
	for name, steps := range map[string][]string{
		"reset":                     {"rst"},
		"closed":                    {"fin"},
		"BYE":                       {"> * BYE not now"},
		"not IMAP":                  {"> SSH-2.0-OpenSSH"},
		"half a greeting":           {">> * OK [CAPA", "rst"},
		"silent":                    {"hang"},
		"silent after CAPABILITY":   {"> * OK hi", "< CAPABILITY", "hang"},
		"reset after CAPABILITY":    {"> * OK hi", "< CAPABILITY", "rst"},
		"reset at the continuation": {"> * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hi", "< AUTHENTICATE PLAIN", "rst"},
		"no way to log in":          {"> * OK [CAPABILITY IMAP4rev1 LOGINDISABLED] hi"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bad := &testkit.Steps{Lines: steps}
			good := testkit.StartIMAP(t, serveLogins)
			b := newSeveral(t, withoutTimeouts, bad.Start(t), good.Addr())
			if at, err := logInAt(t, b, "joe"); err != nil || at != good.Addr() || good.Accepted() != 1 {
				t.Errorf("at %q, %v", at, err)
			}
			if bad.Wait(); strings.Contains(bad.Plaintext.String(), canary) {
				t.Error("the first address has the password")
			}
		})
	}
}

func TestABlackHoleIsPassedOver(t *testing.T) {
	t.Parallel()
	good := testkit.StartIMAP(t, serveLogins)
	b := newSeveral(t, withoutTimeouts, fullBacklog(t), good.Addr())
	for i := range 8 {
		if at, err := logInAt(t, b, "joe"); err != nil || at != good.Addr() {
			t.Errorf("login %d: at %q, %v", i, at, err)
		}
	}
	if s := b.Addresses()[0]; s.State != event.AddressDown || s.Failures != uint64(b.cfg().Breaker.Failures) || s.Why == "" {
		t.Errorf("%+v", s)
	}
}

// The credentials are sent once, whatever becomes of them.
func TestALoginDoesNotGoOnAfterTheCredentials(t *testing.T) {
	t.Parallel()
	for name, end := range map[string][]string{
		"closed": {"fin"}, "reset": {"rst"}, "BYE": {"> * BYE no"}, "not IMAP": {"> what"}, "unavailable": {"> {L} NO [UNAVAILABLE] later"}, "denied": {"> {L} NO [AUTHENTICATIONFAILED] no"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bad := &testkit.Steps{Lines: append([]string{"> * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] hi", "< AUTHENTICATE PLAIN"}, end...)}
			other := testkit.StartIMAP(t, serveLogins)
			b := newSeveral(t, nil, bad.Start(t), other.Addr())
			if at, err := logInAt(t, b, "joe"); err == nil || other.Accepted() != 0 {
				t.Errorf("at %q, %v; the other address has %d connections", at, err, other.Accepted())
			}
			if b.Addresses()[0].Connections != 0 {
				t.Error("a connection is still counted")
			}
		})
	}
}

// An address that flaps is passed over as long as logins there fail, and used again after one
// has succeeded.
func TestABreakerLetsOneLoginProbe(t *testing.T) {
	t.Parallel()
	first := testkit.StartIMAP(t, serveLogins)
	address := first.Addr()
	first.Close()
	good := testkit.StartIMAP(t, serveLogins)
	b := newSeveral(t, func(c *Config) {
		c.Breaker = BreakerSettings{Failures: 2, Within: time.Minute, Hold: 300 * time.Millisecond}
	}, address, good.Addr())
	for range 2 {
		if at, err := logInAt(t, b, "joe"); err != nil || at != good.Addr() {
			t.Fatalf("at %q, %v", at, err)
		}
	}
	failures := b.Addresses()[0].Failures
	if at, err := logInAt(t, b, "joe"); err != nil || at != good.Addr() || b.Addresses()[0].Failures != failures {
		t.Errorf("while the breaker is open: at %q, %v, %d failures", at, err, b.Addresses()[0].Failures)
	}
	again := testkit.Must(testkit.ListenIMAP(address, serveLogins))(t)
	defer again.Close()
	testkit.Eventually(t, "the first address is used again", func() bool {
		at, err := logInAt(t, b, "joe")
		return err == nil && at == address
	})
	if s := b.Addresses()[0]; s.State != event.AddressUp {
		t.Errorf("%+v", s)
	}
}

func TestWithoutAnyAddressUpAllAreTried(t *testing.T) {
	t.Parallel()
	down := testkit.StartIMAP(t, serveLogins)
	down.Close()
	last := testkit.StartIMAP(t, serveLogins)
	b := newSeveral(t, nil, down.Addr(), last.Addr())
	for _, a := range b.list() {
		a.checked = checkResult{why: "a test"}
	}
	if at, err := logInAt(t, b, "joe"); err != nil || at != last.Addr() {
		t.Errorf("at %q, %v", at, err)
	}
}

// fakePlaces are the places of a test.
type fakePlaces struct {
	mu     sync.Mutex
	places map[string]string // by user
	open   int
}

func (f *fakePlaces) Claim(_ context.Context, _ string, u identity.User, candidates, keep []string) (string, func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at := f.places[u.String()]
	if !slices.Contains(candidates, at) && !slices.Contains(keep, at) {
		at = ""
		if len(candidates) > 0 {
			at = candidates[0]
		}
	}
	if at == "" {
		return "", func() {}
	}
	f.places[u.String()] = at
	f.open++
	return at, sync.OnceFunc(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.open--
	})
}

func TestOperatorsTakeAddressesOutOfUse(t *testing.T) {
	t.Parallel()
	first, second := testkit.StartIMAP(t, serveLogins), testkit.StartIMAP(t, serveLogins)
	places := &fakePlaces{places: map[string]string{}}
	b := newSeveral(t, func(c *Config) { c.Places, c.Placement = places, event.Sticky }, first.Addr(), second.Addr())
	expect := func(what, name, want string) {
		t.Helper()
		if at, err := logInAt(t, b, name); at != want || (err == nil) != (want != "") {
			t.Errorf("%s: at %q, %v", what, at, err)
		}
	}
	conn := testkit.Must(b.Login(t.Context(), testRequest(t)))(t)
	_, _, hold := conn.Detach()
	expect("in use", "old", first.Addr())
	b.SetState(first.Addr(), event.AddressDraining)
	expect("draining, a user with sessions there", "old", first.Addr())
	expect("draining, a new user", "new", second.Addr())
	if hold.IsLeaving() {
		t.Error("a drain ends connections")
	}
	for _, state := range []event.AddressState{event.AddressEvacuating, event.AddressDisabled} {
		b.SetState(first.Addr(), state)
		expect(string(state), "old", second.Addr())
		places.places["old"] = first.Addr()
		if s := b.Addresses()[0]; s.State != state || !hold.IsLeaving() {
			t.Errorf("%+v", s)
		}
	}
	b.SetState(second.Addr(), event.AddressDisabled)
	expect("all disabled", "old", "")
	b.SetState(first.Addr(), event.AddressUp)
	expect("resumed", "old", first.Addr())
	if b.SetState("127.0.0.1:1", event.AddressDisabled) {
		t.Error("an unknown address has a state")
	}
	hold.Release()
	if places.open != 0 || b.Addresses()[0].Connections != 0 {
		t.Errorf("%d places, %d connections are left", places.open, b.Addresses()[0].Connections)
	}
}

func TestAFullAddressIsPassedOver(t *testing.T) {
	t.Parallel()
	first, second := testkit.StartIMAP(t, serveLogins), testkit.StartIMAP(t, serveLogins)
	b := newSeveral(t, func(c *Config) { c.MaxSessions = 1 }, first.Addr(), second.Addr())
	var conns []*Conn
	for _, want := range []string{first.Addr(), second.Addr()} {
		conn := testkit.Must(b.Login(t.Context(), testRequest(t)))(t)
		if conns = append(conns, conn); conn.Address() != want {
			t.Errorf("at %s", conn.Address())
		}
	}
	if _, err := logInAt(t, b, "joe"); err == nil {
		t.Error("both are full, and there is a third session")
	}
	for _, conn := range conns {
		testkit.NoError(t, conn.Close())
	}
}

// rankAll returns the first address of each of n users.
func rankAll(b *Backend, t testing.TB, n int) []string {
	first := make([]string, n)
	for i := range first {
		c := b.choose(b.cfg(), &Request{User: user(t, fmt.Sprint("user", i))}, nil)
		if len(c.candidates) > 0 {
			first[i] = c.candidates[0].hostPort
		}
	}
	return first
}

func TestEveryGatewayChoosesAlikeAndByWeight(t *testing.T) {
	t.Parallel()
	weights := map[string]int{"a:1": 1, "b:1": 2, "c:1": 5}
	build := func(order ...string) *Backend {
		return newSeveral(t, func(c *Config) {
			c.Addresses = nil
			for _, a := range order {
				c.Addresses = append(c.Addresses, AddressSettings{Address: a, Priority: 1, Weight: weights[a]})
			}
			c.Addresses = append(c.Addresses, AddressSettings{Address: "spare:1", Priority: 2, Weight: 100})
		})
	}
	const n = 20_000
	one, two := build("a:1", "b:1", "c:1"), build("c:1", "a:1", "b:1")
	first := rankAll(one, t, n)
	if !slices.Equal(first, rankAll(two, t, n)) {
		t.Error("two gateways choose differently")
	}
	counts := make(map[string]int)
	for _, a := range first {
		counts[a]++
	}
	for a, w := range weights {
		if share, want := float64(counts[a])/n, float64(w)/8; math.Abs(share-want) > 0.02 {
			t.Errorf("%s has %.3f of the users, want %.3f", a, share, want)
		}
	}
	one.SetState("b:1", event.AddressDisabled)
	for i, a := range rankAll(one, t, n) {
		if a != first[i] && first[i] != "b:1" || a == "b:1" || a == "spare:1" {
			t.Fatalf("user %d goes from %s to %s when b leaves", i, first[i], a)
		}
	}
	for a := range weights {
		one.SetState(a, event.AddressDisabled)
	}
	if all := rankAll(one, t, 100); slices.ContainsFunc(all, func(a string) bool { return a != "spare:1" }) {
		t.Errorf("%v", all)
	}
}

func TestAnAddressThatComesBackGetsItsUsersGradually(t *testing.T) {
	t.Parallel()
	b := newSeveral(t, func(c *Config) {
		c.SlowStart = time.Hour
		c.Addresses = []AddressSettings{{Address: "a:1", Priority: 1, Weight: 1}, {Address: "b:1", Priority: 1, Weight: 1}}
	})
	share := func() float64 {
		n := 0
		for _, a := range rankAll(b, t, 5000) {
			if a == "b:1" {
				n++
			}
		}
		return float64(n) / 5000
	}
	for minutes, want := range map[int]float64{1: 0.05 / 1.05, 30: 0.5 / 1.5, 61: 0.5} {
		b.list()[1].returnedAt = time.Now().Add(-time.Duration(minutes) * time.Minute)
		if got := share(); math.Abs(got-want) > 0.03 {
			t.Errorf("%d minutes after it has come back: %.3f, want %.3f", minutes, got, want)
		}
	}
}

func TestANewConfigurationKeepsWhatIsKnown(t *testing.T) {
	t.Parallel()
	first, second := testkit.StartIMAP(t, serveLogins), testkit.StartIMAP(t, serveLogins)
	b := newSeveral(t, nil, first.Addr())
	conn := testkit.Must(b.Login(t.Context(), testRequest(t)))(t)
	b.SetState(first.Addr(), event.AddressDraining)
	cfg := *b.cfg()
	cfg.Addresses = []AddressSettings{{Address: second.Addr(), Priority: 1, Weight: 1}, {Address: first.Addr(), Priority: 2, Weight: 7}}
	b.Apply(cfg)
	if s := b.Addresses()[1]; s.Connections != 1 || s.State != event.AddressDraining || s.Weight != 7 || s.Logins != 1 {
		t.Errorf("%+v", s)
	}
	if at, err := logInAt(t, b, "joe"); err != nil || at != second.Addr() {
		t.Errorf("at %q, %v", at, err)
	}
	cfg.Addresses = cfg.Addresses[:1]
	b.Apply(cfg)
	if len(b.Addresses()) != 1 || !conn.hold.IsLeaving() {
		t.Error("an address that is gone is still used")
	}
	testkit.NoError(t, conn.Close())
}
