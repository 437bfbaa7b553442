package mux

import (
	"sync"
	"time"

	"imapgate/internal/identity"
)

// A backend that breaks its promises of IMAP ends sessions, or has them spliced. Where
// it does so again and again, sessions are spliced from the beginning, by this rule:
//
//   - A session counts once, and only where nothing that its client has sent can be the cause.
//   - A user with two such sessions in an hour is spliced, and nobody else.
//   - A backend at which that befalls five users in an hour, and one for every hundred
//     sessions there, is spliced for everybody: for an hour, then two, up to a day. What
//     goes well for a day after it begins at an hour again.
//
// So no user can have another spliced, whatever they find to provoke; and a backend that
// is mended is believed again by itself.
const (
	lapseWindow  = time.Hour
	lapsesOfUser = 2
	fewestUsers  = 5
	sessionsEach = 100
	firstSplice  = time.Hour
	lastSplice   = 24 * time.Hour
	maxLapsed    = 10_000 // users who are remembered
)

// promises is how a backend keeps its promises.
type promises struct {
	mu      sync.Mutex
	users   map[identity.User]lapses // Guarded by mu. At most maxLapsed.
	until   time.Time                // Guarded by mu. Everybody is spliced until then.
	splices time.Duration            // Guarded by mu. How long everybody was the last time.
	open    bool                     // Guarded by mu. Everybody is.
}

// lapses are the sessions of a user in which a promise was broken, none of them an hour
// behind the one before it.
type lapses struct {
	count int
	last  time.Time
}

// Trust is what is thought of a backend.
type Trust struct {
	Spliced      bool      `json:"spliced"`                // new sessions of everybody are, whatever their mode
	Until        time.Time `json:"spliced_until,omitzero"` // … until then
	Users        int       `json:"broken_to_users"`        // within the last hour
	SplicedUsers int       `json:"spliced_users"`          // whose new sessions are
}

// broken notes a session in which a promise was broken, at a backend with so many, and
// says whether everybody's are spliced from now on.
func (p *promises) broken(user identity.User, sessions int64, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	l, known := p.users[user]
	if !known && len(p.users) >= maxLapsed {
		return false
	}
	if now.Sub(l.last) >= lapseWindow {
		l.count = 0
	}
	if p.users == nil {
		p.users = map[identity.User]lapses{}
	}
	p.users[user] = lapses{l.count + 1, now}
	if p.open || int64(p.trust(now).Users) < max(fewestUsers, sessions/sessionsEach) {
		return false
	}
	if now.Sub(p.until) > lastSplice {
		p.splices = 0
	}
	p.splices = min(max(2*p.splices, firstSplice), lastSplice)
	p.until, p.open = now.Add(p.splices), true
	return true
}

// spliced says whether a session of a user is to be spliced from its beginning.
func (p *promises) spliced(user identity.User, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open && now.Before(p.until) || p.users[user].splices(now)
}

func (l lapses) recent(now time.Time) bool  { return l.count > 0 && now.Sub(l.last) < lapseWindow }
func (l lapses) splices(now time.Time) bool { return l.count >= lapsesOfUser && l.recent(now) }

// sweep forgets what is over, and says what is left. closed is true once: everybody's
// sessions are followed again.
func (p *promises) sweep(now time.Time) (t Trust, closed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for user, l := range p.users {
		if !l.recent(now) {
			delete(p.users, user)
		}
	}
	if p.open && !now.Before(p.until) {
		p.open, closed = false, true
		clear(p.users) // what was broken is another question than what will be
	}
	return p.trust(now), closed
}

// trust counts. mu is held.
func (p *promises) trust(now time.Time) Trust {
	t := Trust{Spliced: p.open}
	if p.open {
		t.Until = p.until
	}
	for _, l := range p.users {
		if l.recent(now) {
			t.Users++
		}
		if l.splices(now) {
			t.SplicedUsers++
		}
	}
	return t
}
