package audit

import (
	"net/netip"
	"sync"
	"time"

	"imapgate/internal/identity"
)

// Records that one client without an account can cause as often as it likes are folded:
// of one address for one reason the first of a minute have a record each, the others
// one at its end, which counts them. The bounds below hold for all addresses together,
// because an IPv6 network has as many as somebody wants.
const (
	// aggregateInterval is how often folded records are written.
	aggregateInterval = time.Minute
	// maxSingles bounds the records of a minute that are not folded.
	maxSingles = 600
	// maxAggregates bounds the addresses and reasons that are told apart; of those beyond, each
	// reason is counted for all addresses together.
	maxAggregates = 512
)

// aggregateKey is what is counted together.
type aggregateKey struct {
	eventType eventType
	reason    Reason
	net       netip.Prefix  // of the client; zero: those that are not told apart
	user      identity.User // of a login; zero, too, for a name that is none
}

// aggregate is what has happened since the last record of it.
type aggregate struct {
	start    time.Time
	singles  int    // records of their own since then
	count    uint64 // without one
	client   Client // the last of these
	login    Login
	detail   string
	duration time.Duration
}

// aggregator decides which records are folded.
type aggregator struct {
	// Set once.
	maxSinglesPerKey int // records of a minute of each key that are not; 0: none is

	mu sync.Mutex
	// Guarded by mu.
	budgetStart time.Time                   // when the budget of maxSingles was full
	singles     int                         // what was spent of it
	aggregates  map[aggregateKey]*aggregate // at most maxAggregates, and one more for each kind and reason
}

// effectiveAddr is where the client is, as far as those in front are trusted.
func (c *Client) effectiveAddr() netip.Addr {
	addr := c.Peer.Addr()
	if c.Addr.IsValid() {
		addr = c.Addr.Addr()
	}
	return addr.Unmap().WithZone("")
}

// aggregateKey is what is counted together with an event of a client.
func (c *Client) aggregateKey(k eventType, reason Reason, u identity.User) aggregateKey {
	return aggregateKey{k, reason, identity.AddrPrefix(c.effectiveAddr()), u}
}

// add reports whether an event is folded; next is what its record would be made of.
func (g *aggregator) add(k aggregateKey, next aggregate, now time.Time) bool {
	if g.maxSinglesPerKey == 0 {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.aggregates == nil {
		g.aggregates = make(map[aggregateKey]*aggregate)
	}
	if now.Sub(g.budgetStart) >= aggregateInterval {
		g.budgetStart, g.singles = now, 0
	}
	a := g.aggregates[k]
	if a == nil && len(g.aggregates) >= maxAggregates {
		k.net, k.user = netip.Prefix{}, identity.User{}
		next.client, next.login = Client{}, Login{}
		a = g.aggregates[k]
	}
	if a == nil {
		a = &aggregate{start: now}
		g.aggregates[k] = a
	}
	if k.net.IsValid() && a.singles < g.maxSinglesPerKey && g.singles < maxSingles {
		a.singles++
		g.singles++
		return false
	}
	next.start, next.singles, next.count = a.start, a.singles, a.count+1
	*a = next
	return true
}

// takeDue takes what is to be written by now: each count whose minute is over.
func (g *aggregator) takeDue(now time.Time) map[aggregateKey]aggregate {
	g.mu.Lock()
	defer g.mu.Unlock()
	due := make(map[aggregateKey]aggregate)
	for k, a := range g.aggregates {
		if now.Sub(a.start) < aggregateInterval {
			continue
		}
		if a.count > 0 {
			due[k] = *a
		}
		delete(g.aggregates, k) // the next minute begins with the next event
	}
	return due
}

// writeAggregates writes the records of folded events whose minute is over.
func (l *Log) writeAggregates(now time.Time) {
	for k, a := range l.aggregator.takeDue(now) {
		if k.eventType == loginRefused {
			_ = l.writeLoginRefused(&a.client, &a.login, k.reason, a.count) // else it counts as lost
			continue
		}
		_ = l.writeConnectionRefused(&a.client, k.reason, &a) // the same
	}
}

// isUnverified reports whether a login was refused before anything was known of whether
// its credentials are right: what was refused so has guessed nothing.
func isUnverified(login *Login, reason Reason) bool {
	switch reason {
	case Cleartext, BadMechanism, BadExchange, ClientWentAway:
		return true
	case LimitReached:
		return login.Method == "" // else the limit is one behind a right password
	}
	return false
}
