package limit

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/identity"
)

// stage is how far a visit has come.
type stage uint8

const (
	outside stage = iota // nothing is taken: exempt, or nobody knows yet who comes
	inLobby              // the places of a stranger are taken
	inHouse              // those of a session
	gone
)

// Conn is one connection. It is used by one goroutine at a time.
type Conn struct {
	// Set once.
	gate   *Limiter
	limits *Settings // of where it has arrived

	// Owned by whoever serves the connection.
	addr   netip.Addr // the zero Addr while nobody knows who comes
	exempt bool       // also while nobody knows
	stage  stage
	user   identity.User // who is in the house
	budget *Quota        // nil until somebody has asked for it
	claims []uint64      // of the login under way, which may yet fail; nil for none
	asked  time.Duration // how long the login under way has waited for Redis
}

// asking bounds what a login asks of Redis: however many questions there are, and
// also when none is answered, they take ioTime in all. Its second result ends it.
func (v *Conn) asking(ctx context.Context) (context.Context, func()) {
	began := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, v.gate.cfg.wait-v.asked, errSpent)
	return ctx, func() {
		cancel()
		v.asked += time.Since(began)
	}
}

// Open lets a new connection in, or refuses it with a *Refusal. Where somebody
// in front has yet to say whose connection it is (a PROXY header), addr is the
// zero Addr: nothing is counted until Move.
func (g *Limiter) Open(listener string, addr netip.Addr) (*Conn, error) {
	v := &Conn{gate: g, limits: g.limits(listener)}
	if err := v.come(addr); err != nil {
		return nil, err
	}
	return v, nil
}

// SetAddr says, before the login, that the client is at another address than was
// thought. When that one is refused nothing is taken any more, and all that may
// follow is Leave.
func (v *Conn) SetAddr(addr netip.Addr) error {
	if plain(addr) == v.addr {
		return nil
	}
	v.EndLogin()
	v.giveLobby()
	return v.come(addr)
}

// plain is one spelling for every address.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// come takes the places of a stranger.
func (v *Conn) come(addr netip.Addr) error {
	g, s := v.gate, v.limits
	v.addr = plain(addr)
	v.exempt = !v.addr.IsValid() || contains(s.ExemptNetworks, v.addr)
	if v.exempt {
		return nil
	}
	if b, ok := g.bans.covers(v.addr, g.now()); ok && (b.Reason == event.BanOperator || !b.Active && !g.good.lived(near(v.addr), g.now())) {
		return g.refused(&Refusal{Reason: event.LimitBanned, Net: b.Net, RetryAfter: b.Remaining})
	}
	want := v.lobby()
	if no := g.places.take(want, g.now()); no != nil {
		return g.refused(no)
	}
	if net := home(v.addr); !g.rates.allow(net, s) {
		g.places.give(want, false)
		return g.refused(&Refusal{Reason: event.LimitConnectionRate, Net: net, RetryAfter: time.Minute / time.Duration(s.NewPerMinute)})
	}
	v.stage = inLobby
	return nil
}

// lobby are the places of a stranger, conn last.
func (v *Conn) lobby() []bounded { return append(v.strangers(), v.conn()) }

// strangers are the places of which the login makes others.
func (v *Conn) strangers() []bounded {
	net, s := home(v.addr), v.limits
	want := []bounded{{place{kind: addressLobby, net: net}, s.PreauthPerAddress, event.LimitPreauthAddress}}
	share := v.gate.networkShare(s)
	if share == 0 {
		return want
	}
	if site := site(v.addr); site != net {
		want = append(want, bounded{place{kind: siteLobby, net: site}, max(s.PreauthPerAddress, share/2), event.LimitPreauthNetwork})
	}
	return append(want, bounded{place{kind: blockLobby, net: block(v.addr)}, share, event.LimitPreauthNetwork})
}

// conn is the place of a connection, before its login and after.
func (v *Conn) conn() bounded {
	return bounded{place{kind: addressConns, net: home(v.addr)}, v.limits.PerAddress, event.LimitAddress}
}

// networkShare is how many connections before the login a network may have, that of one
// address at least; 0: there is no bound.
func (g *Limiter) networkShare(s *Settings) int {
	if g.cfg.Preauth == 0 || s.PreauthNetworkPercent == 0 || s.PreauthPerAddress == 0 {
		return 0
	}
	return max(s.PreauthPerAddress, g.cfg.Preauth*s.PreauthNetworkPercent/100)
}

func (v *Conn) giveLobby() {
	if v.stage == inLobby {
		v.gate.places.give(v.lobby(), false)
		v.stage = outside
	}
}

// BeginSession lets a user in whose login was right. It asks Redis, for no longer than
// ioTime together with Attempt. After a *Refusal the visit is where it was before.
func (v *Conn) BeginSession(ctx context.Context, u identity.User) error {
	if v.stage >= inHouse {
		panic("limit: a visit entered twice")
	}
	v.EndLogin()
	g, want := v.gate, v.house(u)
	if no := g.places.take(g.shares(want), g.now()); no != nil {
		return g.refused(no)
	}
	asking, done := v.asking(ctx)
	no := g.lease(asking, v, u, want)
	done()
	if no != nil {
		return g.refused(no)
	}
	if !v.exempt {
		g.succeeded(u, v.addr)
		g.places.give(v.strangers(), false)
	}
	v.stage, v.user = inHouse, u
	return nil
}

// house are the places of a session.
func (v *Conn) house(u identity.User) []bounded {
	s := v.limits
	want := []bounded{
		{place{kind: userSessions, user: u}, s.PerUser, event.LimitUser},
		{place{kind: allSessions}, s.Total, event.LimitTotal},
	}
	if v.exempt {
		return want
	}
	net := home(v.addr)
	return append(want,
		bounded{place{kind: pairSessions, user: u, net: net}, s.PerUserAddress, event.LimitUserAddress},
		bounded{place{kind: addressSessions, net: net}, s.PerAddress, event.LimitAddress},
	)
}

// shares is what is compared with the numbers of this gateway alone.
func (g *Limiter) shares(want []bounded) []bounded {
	here := slices.Clone(want)
	for i := range here {
		if here[i].kind == allSessions {
			here[i].limit = g.share(here[i].limit, 0)
		}
	}
	return here
}

// Close gives back all that the visit has taken. It is called once, last.
func (v *Conn) Close() {
	v.EndLogin()
	switch v.stage {
	case gone:
		panic("limit: a visit left twice")
	case inLobby:
		v.giveLobby()
	case inHouse:
		v.gate.budgets.release(v)
		v.gate.give(v.house(v.user))
		if !v.exempt {
			v.gate.places.give([]bounded{v.conn()}, false)
		}
	}
	v.stage = gone
}

// give gives the places of a session back, and has Redis told.
func (g *Limiter) give(back []bounded) {
	if g.places.give(back, g.shared != nil) {
		g.shared.wake()
	}
}
