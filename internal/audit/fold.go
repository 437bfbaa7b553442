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
	// foldEvery is how often folded records are written.
	foldEvery = time.Minute
	// maxAlone bounds the records of a minute that are not folded.
	maxAlone = 600
	// maxFolds bounds the addresses and reasons that are told apart; of those beyond, each
	// reason is counted for all addresses together.
	maxFolds = 512
)

// foldKey is what is counted together.
type foldKey struct {
	kind   kind
	reason Reason
	net    netip.Prefix  // of the client; zero: those that are not told apart
	user   identity.User // of a login; zero, too, for a name that is none
}

// fold is what has happened since the last record of it.
type fold struct {
	since  time.Time
	alone  int    // records of their own since then
	count  uint64 // without one
	client Client // the last of these
	login  Login
	detail string
	took   time.Duration
}

// folds decides which records are folded.
type folds struct {
	// Set once.
	first int // records of a minute of each key that are not; 0: none is

	mu sync.Mutex
	// Guarded by mu.
	minute time.Time         // when the budget of maxAlone was full
	alone  int               // what was spent of it
	kept   map[foldKey]*fold // at most maxFolds, and one more for each kind and reason
}

// addr is where the client is, as far as those in front are trusted.
func (c *Client) addr() netip.Addr {
	addr := c.Peer.Addr()
	if c.Claimed.IsValid() {
		addr = c.Claimed.Addr()
	}
	return addr.Unmap().WithZone("")
}

// key is what is counted together with an event of a client.
func (c *Client) key(k kind, why Reason, u identity.User) foldKey {
	return foldKey{k, why, identity.Home(c.addr()), u}
}

// add reports whether an event is folded; next is what its record would be made of.
func (f *folds) add(k foldKey, next fold, now time.Time) bool {
	if f.first == 0 {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.kept == nil {
		f.kept = make(map[foldKey]*fold)
	}
	if now.Sub(f.minute) >= foldEvery {
		f.minute, f.alone = now, 0
	}
	e := f.kept[k]
	if e == nil && len(f.kept) >= maxFolds {
		k.net, k.user = netip.Prefix{}, identity.User{}
		next.client, next.login = Client{}, Login{}
		e = f.kept[k]
	}
	if e == nil {
		e = &fold{since: now}
		f.kept[k] = e
	}
	if k.net.IsValid() && e.alone < f.first && f.alone < maxAlone {
		e.alone++
		f.alone++
		return false
	}
	next.since, next.alone, next.count = e.since, e.alone, e.count+1
	*e = next
	return true
}

// due takes what is to be written by now: each count whose minute is over.
func (f *folds) due(now time.Time) map[foldKey]fold {
	f.mu.Lock()
	defer f.mu.Unlock()
	ready := make(map[foldKey]fold)
	for k, e := range f.kept {
		if now.Sub(e.since) < foldEvery {
			continue
		}
		if e.count > 0 {
			ready[k] = *e
		}
		delete(f.kept, k) // the next minute begins with the next event
	}
	return ready
}

// writeFolds writes the records of folded events whose minute is over.
func (l *Log) writeFolds(now time.Time) {
	for k, e := range l.folds.due(now) {
		if k.kind == loginRefused {
			_ = l.loginRefused(&e.client, &e.login, k.reason, e.count) // else it counts as lost
			continue
		}
		_ = l.connectionRefused(&e.client, k.reason, &e) // the same
	}
}

// withoutVerdict reports whether a login was refused before anything was known of whether
// its credentials are right: what was refused so has guessed nothing.
func withoutVerdict(login *Login, why Reason) bool {
	switch why {
	case Cleartext, BadMechanism, BadExchange, ClientWentAway:
		return true
	case LimitReached:
		return login.Method == "" // else the limit is one behind a right password
	}
	return false
}
