package proxy

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/limit"
	"imapgate/internal/testkit"
	"imapgate/proxy/upstream"
)

// withLimits sets limits, on a listener whose clients' addresses come from a balancer's
// PROXY header.
func withLimits(l limit.Config) func(*harnessConfig) { return func(s *harnessConfig) { s.limits = l } }

// dialFrom connects through the balancer as a client at an address.
func (b *harness) dialFrom(address string) *client {
	b.t.Helper()
	c := b.dial("balanced-none")
	c.write("PROXY TCP4 " + address + " 127.0.0.1 4711 143\r\n")
	return c
}

// dialGreetedFrom is dialFrom, and reads the greeting.
func (b *harness) dialGreetedFrom(address string) *client {
	b.t.Helper()
	c := b.dialFrom(address)
	c.expectLine("* OK [CAPABILITY …] IMAP ready.")
	return c
}

// expectRefusedFrom is dialFrom, and expects a BYE instead of a greeting.
func (b *harness) expectRefusedFrom(address string) {
	b.t.Helper()
	c := b.dialFrom(address)
	c.expectLine("* BYE [UNAVAILABLE] Too many connections.")
	c.expectEOF()
	if r := b.lastRecord("connection_refused", c); r.field("reason") != string(event.TooManyConnections) {
		b.t.Errorf("%v", r)
	}
}

// wantHit waits for a limit's record and its metric.
func (b *harness) wantHit(reason event.Limit, subject string) {
	b.t.Helper()
	testkit.Eventually(b.t, fmt.Sprintf("limit_hit %s of %s", reason, subject), func() bool {
		for _, r := range b.records() {
			if r.field("event") == "limit_hit" && r.field("limit") == string(reason) && r.field("subject") == subject {
				return strings.Contains(b.metricsText(), `imapgate_limit_refusals_total{limit="`+string(reason)+`"}`)
			}
		}
		return false
	})
}

// waitSlots waits until n counters are in use.
func (b *harness) waitSlots(n int) {
	b.t.Helper()
	testkit.Eventually(b.t, fmt.Sprintf("%d counters in use", n), func() bool { return b.deps.Limits.CountersInUse() == n })
}

func TestAddressPreauthConnectionLimit(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), withLimits(limit.Config{Settings: limit.Settings{Connections: limit.Connections{PreauthPerAddress: 2}}}))
	first, second := b.dialGreetedFrom("192.0.2.1"), b.dialGreetedFrom("192.0.2.1")
	b.expectRefusedFrom("192.0.2.1")
	b.wantHit(event.LimitPreauthAddress, "192.0.2.1/32")
	b.dialGreetedFrom("192.0.2.2").close()
	first.write("a LOGIN frank right\r\n")
	first.expectLine("a OK …") // no longer counts as preauth
	b.dialGreetedFrom("192.0.2.1").reset()
	second.close()
	first.close()
	b.waitSlots(0)
}

func TestAddressConnectionLimit(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), withLimits(limit.Config{Settings: limit.Settings{Connections: limit.Connections{PerAddress: 2}}}))
	first, second := b.dialGreetedFrom("192.0.2.1"), b.dialGreetedFrom("192.0.2.1")
	first.write("a LOGIN frank right\r\n")
	first.expectLine("a OK …")
	b.expectRefusedFrom("192.0.2.1")
	b.wantHit(event.LimitAddress, "192.0.2.1/32")
	second.reset()
	testkit.Eventually(t, "the connection of the reset client to release its slot", func() bool {
		c := b.dialFrom("192.0.2.1")
		defer c.close()
		line, _ := c.r.ReadString('\n')
		return strings.HasPrefix(line, "* OK")
	})
	first.close()
	b.waitSlots(0)
}

func TestAddressConnectionRateLimit(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), withLimits(limit.Config{Settings: limit.Settings{Connections: limit.Connections{NewPerMinute: 1, NewBurst: 3}}}))
	for range 3 {
		b.dialGreetedFrom("192.0.2.1").close()
	}
	b.expectRefusedFrom("192.0.2.1")
	b.wantHit(event.LimitConnectionRate, "192.0.2.1/32")
	b.dialGreetedFrom("192.0.2.2").close()
}

func TestNoByeIsSentBeforeTLS(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), withLimits(limit.Config{Settings: limit.Settings{Connections: limit.Connections{PreauthPerAddress: 1}}}))
	first := b.dial("implicit")
	b.waitSlots(2) // of an address, and of its preauth connections
	second := b.dial("implicit")
	second.expectEOF()
	first.close()
	b.waitSlots(0)
}

func TestFailedTLSHandshakeReleasesSlot(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), withLimits(limit.Config{Settings: limit.Settings{Connections: limit.Connections{PreauthPerAddress: 1}}}))
	for range 3 {
		c := b.dial("implicit")
		c.write("not TLS at all\r\n")
		_ = c.readAll()
		b.waitSlots(0)
	}
}

func TestUserSessionLimit(t *testing.T) {
	for name, test := range map[string]struct {
		limits limit.Connections
		other  string // address from which one more is too many
		reason event.Limit
	}{
		"from everywhere":  {limit.Connections{PerUser: 2}, "198.51.100.1", event.LimitUser},
		"from one address": {limit.Connections{PerUserAddress: 2}, "192.0.2.1", event.LimitUserAddress},
		"in total":         {limit.Connections{Total: 2}, "198.51.100.1", event.LimitTotal},
	} {
		t.Run(name, func(t *testing.T) {
			m := openTestBackend(t)
			b := newHarness(t, m.addr(), withLimits(limit.Config{Settings: limit.Settings{Connections: test.limits}}))
			var in []*client
			for range 2 {
				c := b.dialGreetedFrom("192.0.2.1")
				c.write("a LOGIN frank right\r\n")
				c.expectLine("a OK …")
				in = append(in, c)
			}
			one := b.dialGreetedFrom(test.other)
			one.write("a LOGIN frank right\r\n")
			one.expectLine("a NO [LIMIT] Too many connections.")
			if r := b.lastRecord("login_refused", one); r.field("reason") != string(event.LimitReached) {
				t.Errorf("%v", r)
			}
			testkit.Eventually(t, "the end at the backend", func() bool { return m.Open() == 2 })
			wrong := b.dialGreetedFrom(test.other)
			wrong.write("a LOGIN frank wrong\r\n")
			wrong.expectLine("a " + authFailedReply) // a wrong password must not reveal the limit
			in[0].reset()
			testkit.Eventually(t, "a free slot", func() bool {
				c := b.dialGreetedFrom(test.other)
				c.write("a LOGIN frank right\r\n")
				line, _ := c.r.ReadString('\n')
				defer c.close()
				return strings.HasPrefix(line, "a OK")
			})
			in[1].write("b LOGOUT\r\n")
			in[1].expectLine("b OK Done.")
			in[1].close()
			one.close()
			wrong.close()
			b.waitSlots(0)
		})
	}
}

func TestListenerOverridesLimits(t *testing.T) {
	own := map[string]limit.Settings{"balanced-starttls": {Connections: limit.Connections{PreauthPerAddress: 1}}}
	b := newHarness(t, openTestBackend(t).addr(), withLimits(limit.Config{Listeners: own}))
	first := b.dialGreetedFrom("192.0.2.1")
	second := b.dial("balanced-starttls")
	second.write("PROXY TCP4 192.0.2.1 127.0.0.1 4711 143\r\n")
	second.expectLine("* BYE [UNAVAILABLE] Too many connections.")
	first.close()
}

// failureLimits returns the default failure limits with durations for tests.
func failureLimits() limit.Failures {
	return limit.Failures{
		PerMinute: 10, PerDay: 50, PerUserHour: 10, PerUserDay: 100, PerUserNetworkHour: 20,
		Delay: 5 * time.Millisecond, MaxDelay: 40 * time.Millisecond,
		BanAfter: 10,
	}
}

// tryLogin tries a password on its own connection and returns the answer, or "". It may be
// called concurrently.
func (b *harness) tryLogin(address, user, secret string) string {
	nc, err := net.Dial("tcp", b.addr("balanced-none"))
	if err != nil {
		return err.Error()
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(30 * time.Second)) // of a new connection
	r := bufio.NewReader(nc)
	_, _ = fmt.Fprintf(nc, "PROXY TCP4 %s 127.0.0.1 4711 143\r\n", address)
	if line, err := r.ReadString('\n'); err != nil || !strings.HasPrefix(line, "* OK") {
		return strings.TrimSpace(line)
	}
	_, _ = fmt.Fprintf(nc, "a LOGIN %s %s\r\n", user, secret)
	line, _ := r.ReadString('\n')
	return strings.TrimSpace(strings.TrimPrefix(line, "a "))
}

// tryWrongPasswords tries ten wrong passwords with these users in turn: as many as the
// defaults allow.
func (b *harness) tryWrongPasswords(address string, users ...string) {
	b.t.Helper()
	for i := range 10 {
		if got := b.tryLogin(address, users[i%len(users)], fmt.Sprint("guess", i)); got != authFailedReply {
			b.t.Fatalf("guess %d: %s", i, got)
		}
	}
}

func TestRepeatedGuessesAreBanned(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), withLimits(limit.Config{Settings: limit.Settings{Failures: failureLimits()}}))
	waiting := b.dialGreetedFrom("203.0.113.7")
	// Wrong, unknown, denied by the backend and impossible: all count alike.
	b.tryWrongPasswords("203.0.113.7", "frank", "unknown", "alice", `"a|b"`)
	b.expectRefusedFrom("203.0.113.7")
	b.wantHit(event.LimitBanned, "203.0.113.7/32")
	// On a connection that is already open, a right password gets the same answer as a
	// wrong one.
	for i, secret := range []string{"wrong", "right"} {
		waiting.write(fmt.Sprintf("a%d LOGIN frank %s\r\n", i, secret))
		waiting.expectLine(fmt.Sprintf("a%d %s", i, unavailableReply))
	}
	if got := b.tryLogin("203.0.113.8", "frank", "right"); !strings.HasPrefix(got, "OK") {
		t.Errorf("another user there: %s", got)
	}
	waiting.close()
}

func TestRepeatedWrongPasswordCountsOnce(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), withLimits(limit.Config{Settings: limit.Settings{Failures: failureLimits()}}))
	for i := range 30 {
		if got := b.tryLogin("203.0.113.7", "frank", "the-old-one"); got != authFailedReply {
			t.Fatalf("try %d: %s", i, got)
		}
	}
	if got := b.tryLogin("203.0.113.7", "frank", "right"); !strings.HasPrefix(got, "OK") {
		t.Errorf("the new one: %s", got)
	}
}

func TestBackendDenialCountsWithPassthrough(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), withLimits(limit.Config{Settings: limit.Settings{Failures: failureLimits()}}))
	b.tryWrongPasswords("203.0.113.7", "alice")
	b.expectRefusedFrom("203.0.113.7")
}

func TestBackendOutageIsNoFailure(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), withLimits(limit.Config{Settings: limit.Settings{Failures: failureLimits()}}), func(s *harnessConfig) {
		s.backends["refusing"] = upstream.Config{Settings: upstream.Settings{Address: refusingAddress, TLS: event.NoTLS}, LoginSettings: upstream.LoginSettings{UpstreamConnectTimeout: time.Second}}
		s.routes.Static.Users["frank"] = "refusing"
	})
	for i := range 12 {
		if got := b.tryLogin("203.0.113.7", "frank", "right"); got != unavailableReply {
			t.Fatalf("try %d: %s", i, got)
		}
	}
	if got := b.tryLogin("203.0.113.7", "alice", "right"); !strings.HasPrefix(got, "OK") {
		t.Errorf("another user there: %s", got)
	}
}

func TestTrustedPeerAddressIsNotCounted(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), withLimits(limit.Config{
		Settings: limit.Settings{Connections: limit.Connections{PreauthPerAddress: 1, NewPerMinute: 1, NewBurst: 1}, Failures: failureLimits()},
	}))
	var all []*client
	for range 3 {
		all = append(all, b.dialGreeted("trusting-none"))
	}
	for _, c := range all[:2] {
		c.write("i ID (\"x-originating-ip\" \"192.0.2.1\")\r\n")
		c.expectLine("* ID …")
		c.expectLine("i OK ID completed.")
		if c == all[1] {
			c.expectLine("* BYE [UNAVAILABLE] Too many connections.")
			continue
		}
		c.write("n NOOP\r\n") // the slot is taken before ID is answered
		c.expectLine("n OK Nothing done.")
	}
	for i := range 20 { // from a webmail that names no client
		c := b.dialGreeted("trusting-none")
		c.write(fmt.Sprintf("a LOGIN unknown guess%d\r\n", i))
		c.expectLine("a " + authFailedReply)
		c.close()
	}
	all[2].write("a LOGIN frank right\r\n")
	all[2].expectLine("a OK …")
	for _, c := range all {
		c.close()
	}
	b.waitSlots(0)
}

func TestDelayEndsAtPreauthDeadline(t *testing.T) {
	f := failureLimits()
	f.Delay, f.MaxDelay = 10*time.Minute, 10*time.Minute
	b := newHarness(t, openTestBackend(t).addr(), withLimits(limit.Config{Settings: limit.Settings{Failures: f}}), func(s *harnessConfig) { s.cfg.PreauthTimeout = 700 * time.Millisecond })
	c := b.dialGreetedFrom("203.0.113.7")
	c.write("a LOGIN frank wrong\r\n")
	c.expectLine("* BYE Login took too long.") // no denial after the delay
	c.expectEOF()
	next := b.dialGreetedFrom("203.0.113.7")
	next.write("a LOGIN frank right\r\n") // waits out the delay of the first
	next.expectLine("* BYE Login took too long.")
	if r := b.lastRecord("login_refused", next); r.field("reason") != string(event.LimitReached) || r.field("delay_ms") == "" {
		t.Errorf("%v", r)
	}
}

// One refused client can connect thousands of times a second. It must not fill the audit
// log or the ordinary log, and each of its connections is counted.
func TestRefusedAddressDoesNotFloodLogs(t *testing.T) {
	const flood = 300
	b := newHarness(t, openTestBackend(t).addr(), func(s *harnessConfig) {
		s.auditFirst = 3
		s.cfg.MaxBadCommands = 1000
	})
	if err := b.deps.Limits.Ban(t.Context(), netip.MustParsePrefix("192.0.2.66/32"), time.Hour, ""); err != nil {
		t.Fatal(err)
	}
	for range flood {
		c := b.dialFrom("192.0.2.66")
		_ = c.readAll()
		c.close()
		c = b.dial("implicit")
		c.write("not TLS at all\r\n")
		_ = c.readAll()
		c.close()
	}
	c := b.dialGreetedFrom("192.0.2.7")
	for range flood {
		c.write("a AUTHENTICATE PLAIN !\r\n")
		c.expectLine("a BAD Invalid base64.")
	}
	c.close()
	b.stopServer()
	sum, single := map[string]float64{}, map[string]int{}
	for _, r := range b.records() {
		what := r.field("event") + " " + r.field("reason")
		if sum[what] += r.count(); r.count() == 1 {
			single[what]++
		}
	}
	for _, what := range []string{"connection_refused " + string(event.TooManyConnections), "connection_refused " + string(event.HandshakeFailed), "login_refused " + string(event.BadExchange)} {
		if sum[what] != flood || single[what] != 3 {
			t.Errorf("%s: %v events, %d single records", what, sum[what], single[what])
		}
	}
	lineCount := 0
	for line := range strings.Lines(b.logs.String()) {
		if strings.Contains(line, `"level":"info"`) {
			lineCount++
		}
	}
	if lineCount > 2*10+10 { // connections, logins, a summary of each, and the ban
		t.Errorf("the ordinary log has %d lines", lineCount)
	}
}

func TestIPv6NetworkCannotTakeAllSlots(t *testing.T) {
	const most = 60
	b := newHarness(t, openTestBackend(t).addr(), func(s *harnessConfig) {
		s.cfg.MaxConnections = most
		s.limits = limit.Config{Preauth: PreauthLimit(most), Settings: limit.Settings{Connections: limit.Connections{PreauthPerAddress: 4, PreauthNetworkPercent: 25}}}
	})
	in := 0
	for net := range 32 {
		for range 4 {
			c := b.dial("balanced-none")
			c.write(fmt.Sprintf("PROXY TCP6 2001:db8:1:%x::1 ::1 4711 143\r\n", net))
			line, err := c.r.ReadString('\n')
			if err == nil && strings.HasPrefix(line, "* OK") {
				in++
			} else if c.close(); line != "* BYE [UNAVAILABLE] Too many connections.\r\n" {
				t.Fatalf("received %q, %v", line, err)
			}
		}
	}
	if in != 4 { // half of a quarter of 30 is less than the limit of one address
		t.Errorf("%d connections of a /59 are in", in)
	}
	b.wantHit(event.LimitPreauthNetwork, "2001:db8:1::/56")
	b.dialGreetedFrom("192.0.2.1").close()
}
