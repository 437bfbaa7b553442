package proxy

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"imapgate/internal/audit"
	"imapgate/internal/limit"
	"imapgate/proxy/upstream"
)

// limited is a setup with limits, on a listener in front of which a balancer says
// where clients come from.
func limited(l limit.Config) func(*setup) { return func(s *setup) { s.limits = l } }

// from connects as a client at an address, through the balancer.
func (b *bed) from(address string) *client {
	b.t.Helper()
	c := b.dial("balanced-none")
	c.say("PROXY TCP4 " + address + " 127.0.0.1 4711 143\r\n")
	return c
}

// in is from with the greeting heard.
func (b *bed) in(address string) *client {
	b.t.Helper()
	c := b.from(address)
	c.hear("* OK [CAPABILITY …] IMAP ready.")
	return c
}

// refused is from with a BYE instead.
func (b *bed) refused(address string) {
	b.t.Helper()
	c := b.from(address)
	c.hear("* BYE [UNAVAILABLE] Too many connections.")
	c.end()
	if r := b.lastRecord("connection_refused", c); r.field("reason") != string(audit.TooMany) {
		b.t.Errorf("%v", r)
	}
}

// wantHit waits for a limit's record, with its metric.
func (b *bed) wantHit(reason limit.Reason, subject string) {
	b.t.Helper()
	within(b.t, fmt.Sprintf("limit_hit %s of %s", reason, subject), func() bool {
		for _, r := range b.records() {
			if r.field("event") == "limit_hit" && r.field("limit") == string(reason) && r.field("subject") == subject {
				return strings.Contains(b.scrape(), `imapgate_limit_refusals_total{limit="`+string(reason)+`"}`)
			}
		}
		return false
	})
}

// taken waits until so many places are taken.
func (b *bed) taken(n int) {
	b.t.Helper()
	within(b.t, fmt.Sprintf("%d places", n), func() bool { return b.rooms.Limits.Taken() == n })
}

func TestAnAddressHasSoManyConnectionsBeforeTheLogin(t *testing.T) {
	b := newBed(t, openMailbox(t).addr(), limited(limit.Config{Settings: limit.Settings{Strangers: 2}}))
	first, second := b.in("192.0.2.1"), b.in("192.0.2.1")
	b.refused("192.0.2.1")
	b.wantHit(limit.StrangerPlaces, "192.0.2.1/32")
	b.in("192.0.2.2").close()
	first.say("a LOGIN frank right\r\n")
	first.hear("a OK …") // is no stranger any more
	b.in("192.0.2.1").vanish()
	second.close()
	first.close()
	b.taken(0)
}

func TestAnAddressHasSoManyConnections(t *testing.T) {
	b := newBed(t, openMailbox(t).addr(), limited(limit.Config{Settings: limit.Settings{PerAddress: 2}}))
	first, second := b.in("192.0.2.1"), b.in("192.0.2.1")
	first.say("a LOGIN frank right\r\n")
	first.hear("a OK …")
	b.refused("192.0.2.1")
	b.wantHit(limit.AddressConnections, "192.0.2.1/32")
	second.vanish()
	within(t, "the place of a client that vanished", func() bool {
		c := b.from("192.0.2.1")
		defer c.close()
		line, _ := c.r.ReadString('\n')
		return strings.HasPrefix(line, "* OK")
	})
	first.close()
	b.taken(0)
}

func TestAnAddressComesSoOften(t *testing.T) {
	b := newBed(t, openMailbox(t).addr(), limited(limit.Config{Settings: limit.Settings{NewPerMinute: 1, NewBurst: 3}}))
	for range 3 {
		b.in("192.0.2.1").close()
	}
	b.refused("192.0.2.1")
	b.wantHit(limit.ConnectionRate, "192.0.2.1/32")
	b.in("192.0.2.2").close()
}

func TestNobodyHearsAByeBeforeTLS(t *testing.T) {
	b := newBed(t, openMailbox(t).addr(), limited(limit.Config{Settings: limit.Settings{Strangers: 1}}))
	first := b.dial("implicit")
	b.taken(2) // of an address, and of its strangers
	second := b.dial("implicit")
	second.end()
	first.close()
	b.taken(0)
}

func TestATLSHandshakeThatFailsGivesItsPlaceBack(t *testing.T) {
	b := newBed(t, openMailbox(t).addr(), limited(limit.Config{Settings: limit.Settings{Strangers: 1}}))
	for range 3 {
		c := b.dial("implicit")
		c.say("not TLS at all\r\n")
		_ = c.rest()
		b.taken(0)
	}
}

func TestAUserHasSoManySessions(t *testing.T) {
	for name, test := range map[string]struct {
		limits limit.Settings
		other  string // an address from where one more is too many
		reason limit.Reason
	}{
		"from everywhere":     {limit.Settings{PerUser: 2}, "198.51.100.1", limit.UserConnections},
		"from one address":    {limit.Settings{PerUserAddress: 2}, "192.0.2.1", limit.UserAddress},
		"with everybody else": {limit.Settings{Total: 2}, "198.51.100.1", limit.TotalSessions},
	} {
		t.Run(name, func(t *testing.T) {
			m := openMailbox(t)
			b := newBed(t, m.addr(), limited(limit.Config{Settings: test.limits}))
			var in []*client
			for range 2 {
				c := b.in("192.0.2.1")
				c.say("a LOGIN frank right\r\n")
				c.hear("a OK …")
				in = append(in, c)
			}
			one := b.in(test.other)
			one.say("a LOGIN frank right\r\n")
			one.hear("a NO [LIMIT] Too many connections.")
			if r := b.lastRecord("login_refused", one); r.field("reason") != string(audit.LimitReached) {
				t.Errorf("%v", r)
			}
			within(t, "the end at the backend", func() bool { return m.open() == 2 })
			wrong := b.in(test.other)
			wrong.say("a LOGIN frank wrong\r\n")
			wrong.hear("a " + deniedReply) // whose password is wrong does not learn of it
			in[0].vanish()
			within(t, "a free place", func() bool {
				c := b.in(test.other)
				c.say("a LOGIN frank right\r\n")
				line, _ := c.r.ReadString('\n')
				defer c.close()
				return strings.HasPrefix(line, "a OK")
			})
			in[1].say("b LOGOUT\r\n")
			in[1].hear("b OK Done.")
			in[1].close()
			one.close()
			wrong.close()
			b.taken(0)
		})
	}
}

func TestAListenerHasItsOwnLimits(t *testing.T) {
	own := map[string]limit.Listener{"balanced-starttls": {Settings: limit.Settings{Strangers: 1}}}
	b := newBed(t, openMailbox(t).addr(), limited(limit.Config{Listeners: own}))
	first := b.in("192.0.2.1")
	second := b.dial("balanced-starttls")
	second.say("PROXY TCP4 192.0.2.1 127.0.0.1 4711 143\r\n")
	second.hear("* BYE [UNAVAILABLE] Too many connections.")
	first.close()
}

// guesses are the failures of the defaults, in time that tests have.
func guesses() limit.Failures {
	return limit.Failures{
		PerMinute: 10, PerDay: 50, PerUserHour: 10, PerUserTotal: 100,
		Delay: 5 * time.Millisecond, MaxDelay: 40 * time.Millisecond,
		BanAfter: 10,
	}
}

// guess tries a password on a connection of its own and gives the answer, "" for
// none. It may be called by many at a time.
func (b *bed) guess(address, user, secret string) string {
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

// guesses tries ten wrong passwords, with these users in turns: as many as the
// defaults forgive.
func (b *bed) guesses(address string, users ...string) {
	b.t.Helper()
	for i := range 10 {
		if got := b.guess(address, users[i%len(users)], fmt.Sprint("guess", i)); got != deniedReply {
			b.t.Fatalf("guess %d: %s", i, got)
		}
	}
}

func TestWhoGuessesTooOftenIsBanned(t *testing.T) {
	b := newBed(t, openMailbox(t).addr(), limited(limit.Config{Failures: guesses()}))
	waiting := b.in("203.0.113.7")
	// Wrong, unknown, denied by the backend and impossible: all count alike.
	b.guesses("203.0.113.7", "frank", "nobody", "alice", `"a|b"`)
	b.refused("203.0.113.7")
	b.wantHit(limit.Banned, "203.0.113.7/32")
	// On a connection that is open already a right password is not told from a
	// wrong one.
	for i, secret := range []string{"wrong", "right"} {
		waiting.say(fmt.Sprintf("a%d LOGIN frank %s\r\n", i, secret))
		waiting.hear(fmt.Sprintf("a%d %s", i, unavailableReply))
	}
	if got := b.guess("203.0.113.8", "frank", "right"); !strings.HasPrefix(got, "OK") {
		t.Errorf("a neighbour: %s", got)
	}
	waiting.close()
}

func TestARepeatedWrongPasswordIsOneFailure(t *testing.T) {
	b := newBed(t, openMailbox(t).addr(), limited(limit.Config{Failures: guesses()}))
	for i := range 30 {
		if got := b.guess("203.0.113.7", "frank", "the-old-one"); got != deniedReply {
			t.Fatalf("try %d: %s", i, got)
		}
	}
	if got := b.guess("203.0.113.7", "frank", "right"); !strings.HasPrefix(got, "OK") {
		t.Errorf("the new one: %s", got)
	}
}

func TestTheBackendsNoCountsWhereItDecides(t *testing.T) {
	b := newBed(t, openMailbox(t).addr(), limited(limit.Config{Failures: guesses()}))
	b.guesses("203.0.113.7", "alice")
	b.refused("203.0.113.7")
}

func TestABackendThatIsAwayIsNobodysFailure(t *testing.T) {
	b := newBed(t, openMailbox(t).addr(), limited(limit.Config{Failures: guesses()}), func(s *setup) {
		s.backends["refusing"] = upstream.Config{Address: deadAddress, TLSMode: upstream.NoTLS, ConnectTimeout: time.Second}
		s.routes.Static.Users["frank"] = "refusing"
	})
	for i := range 12 {
		if got := b.guess("203.0.113.7", "frank", "right"); got != unavailableReply {
			t.Fatalf("try %d: %s", i, got)
		}
	}
	if got := b.guess("203.0.113.7", "alice", "right"); !strings.HasPrefix(got, "OK") {
		t.Errorf("somebody else there: %s", got)
	}
}

func TestATrustedPeersOwnAddressIsNotCounted(t *testing.T) {
	b := newBed(t, openMailbox(t).addr(), limited(limit.Config{
		Settings: limit.Settings{Strangers: 1, NewPerMinute: 1, NewBurst: 1}, Failures: guesses(),
	}))
	var all []*client
	for range 3 {
		all = append(all, b.greeted("trusting-none"))
	}
	for _, c := range all[:2] {
		c.say("i ID (\"x-originating-ip\" \"192.0.2.1\")\r\n")
		c.hear("* ID …")
		c.hear("i OK ID completed.")
		if c == all[1] {
			c.hear("* BYE [UNAVAILABLE] Too many connections.")
			continue
		}
		c.say("n NOOP\r\n") // the place is taken after ID is answered
		c.hear("n OK Nothing done.")
	}
	for i := range 20 { // by a webmail that says of nobody who it is
		c := b.greeted("trusting-none")
		c.say(fmt.Sprintf("a LOGIN nobody guess%d\r\n", i))
		c.hear("a " + deniedReply)
		c.close()
	}
	all[2].say("a LOGIN frank right\r\n")
	all[2].hear("a OK …")
	for _, c := range all {
		c.close()
	}
	b.taken(0)
}

func TestADelayDoesNotOutlastTheTimeForALogin(t *testing.T) {
	f := guesses()
	f.Delay, f.MaxDelay = 10*time.Minute, 10*time.Minute
	b := newBed(t, openMailbox(t).addr(), limited(limit.Config{Failures: f}), func(s *setup) { s.cfg.Preauth = 700 * time.Millisecond })
	c := b.in("203.0.113.7")
	c.say("a LOGIN frank wrong\r\n")
	c.hear("* BYE Login took too long.") // and no denial after the delay
	c.end()
	next := b.in("203.0.113.7")
	next.say("a LOGIN frank right\r\n") // owes the delay of the first
	next.hear("* BYE Login took too long.")
	if r := b.lastRecord("login_refused", next); r.field("reason") != string(audit.LimitReached) || r.field("delay_ms") == "" {
		t.Errorf("%v", r)
	}
}

// One thread of a refused address can come thousands of times a second. It fills neither
// the audit log nor the ordinary one, and each of its connections is counted.
func TestARefusedAddressDoesNotFillTheLogs(t *testing.T) {
	const flood = 300
	b := newBed(t, openMailbox(t).addr(), func(s *setup) {
		s.first = 3
		s.cfg.BadCommands = 1000
	})
	if err := b.rooms.Limits.Ban(t.Context(), netip.MustParsePrefix("192.0.2.66/32"), time.Hour, ""); err != nil {
		t.Fatal(err)
	}
	for range flood {
		c := b.from("192.0.2.66")
		_ = c.rest()
		c.close()
		c = b.dial("implicit")
		c.say("not TLS at all\r\n")
		_ = c.rest()
		c.close()
	}
	c := b.in("192.0.2.7")
	for range flood {
		c.say("a AUTHENTICATE PLAIN !\r\n")
		c.hear("a BAD Invalid base64.")
	}
	c.close()
	b.end()
	sum, single := map[string]float64{}, map[string]int{}
	for _, r := range b.records() {
		what := r.field("event") + " " + r.field("reason")
		if sum[what] += r.count(); r.count() == 1 {
			single[what]++
		}
	}
	for _, what := range []string{"connection_refused " + string(audit.TooMany), "connection_refused " + string(audit.HandshakeFailed), "login_refused " + string(audit.BadExchange)} {
		if sum[what] != flood || single[what] != 3 {
			t.Errorf("%s: %v events, %d single records", what, sum[what], single[what])
		}
	}
	said := 0
	for line := range strings.Lines(b.logs.String()) {
		if strings.Contains(line, `"level":"info"`) {
			said++
		}
	}
	if said > 2*linesPerAddress+10 { // connections, logins, a count of each, and the ban
		t.Errorf("the ordinary log has %d lines", said)
	}
}

func TestAnIPv6CustomerDoesNotTakeEveryPlace(t *testing.T) {
	const most = 60
	b := newBed(t, openMailbox(t).addr(), func(s *setup) {
		s.cfg.MaxConnections = most
		s.limits = limit.Config{Preauth: PreauthRoom(most), Settings: limit.Settings{Strangers: 4, NetworkShare: 25}}
	})
	in := 0
	for net := range 32 {
		for range 4 {
			c := b.dial("balanced-none")
			c.say(fmt.Sprintf("PROXY TCP6 2001:db8:1:%x::1 ::1 4711 143\r\n", net))
			line, err := c.r.ReadString('\n')
			if err == nil && strings.HasPrefix(line, "* OK") {
				in++
			} else if c.close(); line != "* BYE [UNAVAILABLE] Too many connections.\r\n" {
				t.Fatalf("heard %q, %v", line, err)
			}
		}
	}
	if in != 4 { // half of a quarter of 30 is less than one address may have
		t.Errorf("%d connections of a /59 are in", in)
	}
	b.wantHit(limit.NetworkPlaces, "2001:db8:1::/56")
	b.in("192.0.2.1").close()
}
