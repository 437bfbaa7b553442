package audit

import (
	"net/netip"
	"sync"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/identity"
)

// A client without an account can cause some records at will, so these are folded.
// Of one address, for one reason, the first events of a minute have their own
// records. The others share one record at the end of the minute, which counts them.
// The bounds below hold for all addresses together, because an IPv6 network has
// practically unlimited addresses.
const (
	// aggregateInterval is how often folded records are written.
	aggregateInterval = time.Minute
	// maxSingles bounds the records of a minute that are not folded.
	maxSingles = 600
	// maxAggregates bounds the addresses and reasons that are counted separately. Beyond
	// it, each reason is counted for all addresses together.
	maxAggregates = 512
)

// aggregateKey identifies the events that are counted together.
type aggregateKey struct {
	event  event.Event
	reason event.Reason
	net    netip.Prefix  // the client's; zero: counted for all addresses together
	user   identity.User // of a login; zero also for an invalid name
}

// aggregate counts the events since the last record.
type aggregate struct {
	start    time.Time
	singles  int    // events with their own records since start
	count    uint64 // events without one
	client   Client // the last of these
	login    Login
	detail   string
	duration time.Duration
}

// aggregator decides which events are folded.
type aggregator struct {
	// Set once.
	maxSinglesPerKey int // events per key and minute that have their own records; 0: all

	mu sync.Mutex
	// Guarded by mu.
	budgetStart time.Time                   // when the budget of maxSingles began
	singles     int                         // used part of the budget
	aggregates  map[aggregateKey]*aggregate // at most maxAggregates, plus one for each event type and reason
}

// effectiveAddr returns the client's own address if a trusted proxy named it, else
// the peer's.
func (c *Client) effectiveAddr() netip.Addr {
	addr := c.Peer.Addr()
	if c.Addr.IsValid() {
		addr = c.Addr.Addr()
	}
	return addr.Unmap().WithZone("")
}

// aggregateKey returns the key under which an event of the client is counted.
func (c *Client) aggregateKey(e event.Event, reason event.Reason, u identity.User) aggregateKey {
	return aggregateKey{e, reason, identity.AddrPrefix(c.effectiveAddr()), u}
}

// add reports whether an event is folded; next has the content of its record.
func (a *aggregator) add(k aggregateKey, next aggregate, now time.Time) bool {
	if a.maxSinglesPerKey == 0 {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.aggregates == nil {
		a.aggregates = make(map[aggregateKey]*aggregate)
	}
	if now.Sub(a.budgetStart) >= aggregateInterval {
		a.budgetStart, a.singles = now, 0
	}
	counted := a.aggregates[k]
	if counted == nil && len(a.aggregates) >= maxAggregates {
		k.net, k.user = netip.Prefix{}, identity.User{}
		next.client, next.login = Client{}, Login{}
		counted = a.aggregates[k]
	}
	if counted == nil {
		counted = &aggregate{start: now}
		a.aggregates[k] = counted
	}
	if k.net.IsValid() && counted.singles < a.maxSinglesPerKey && a.singles < maxSingles {
		counted.singles++
		a.singles++
		return false
	}
	next.start, next.singles, next.count = counted.start, counted.singles, counted.count+1
	*counted = next
	return true
}

// takeDue removes the counts whose minute is over, and returns those that need a
// record.
func (a *aggregator) takeDue(now time.Time) map[aggregateKey]aggregate {
	a.mu.Lock()
	defer a.mu.Unlock()
	due := make(map[aggregateKey]aggregate)
	for k, counted := range a.aggregates {
		if now.Sub(counted.start) < aggregateInterval {
			continue
		}
		if counted.count > 0 {
			due[k] = *counted
		}
		delete(a.aggregates, k) // the next minute begins with the next event
	}
	return due
}

// writeAggregates writes the records of folded events whose minute is over.
func (l *Log) writeAggregates(now time.Time) {
	for k, a := range l.aggregator.takeDue(now) {
		if k.event == event.LoginRefused {
			_ = l.writeLoginRefused(&a.client, &a.login, k.reason, a.count) // an error is counted as lost
			continue
		}
		_ = l.writeConnectionRefused(&a.client, k.reason, &a) // as above
	}
}

// isUnverified reports whether a login was refused before its credentials were
// verified. Such a login reveals nothing about the password.
func isUnverified(login *Login, reason event.Reason) bool {
	switch reason {
	case event.Cleartext, event.BadMechanism, event.BadExchange, event.ClientAborted:
		return true
	case event.LimitReached:
		return login.Method == "" // with a method, the limit applies after a correct password
	}
	return false
}
