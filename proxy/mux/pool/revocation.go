package pool

import (
	"time"

	"imapgate/internal/identity"
	"imapgate/internal/metrics"
)

// maxFormerCredentials bounds the credentials of a user that are remembered to have been
// doubted. With more the memory starts anew, and more is asked.
const maxFormerCredentials = 8

// recordVerified remembers that the backend was asked at a time and said yes. A no, or a
// yes to another password, that came meanwhile is the later word. A password for
// which the gateway vouches comes here, too: nothing waits for a new one.
func (p *Pool) recordVerified(pc *pooledConn, started time.Time) {
	p.mu.Lock()
	cred := pc.cred
	if cred.generation != pc.generation {
		p.mu.Unlock()
		return
	}
	if cred.verifiedAt.Before(started) {
		cred.verifiedAt = started
	}
	invalidated := p.invalidateOthers(cred)
	p.mu.Unlock()
	p.discardAll(invalidated, metrics.DiscardCredentials)
}

// revoke forgets that the backend ever took a credential: nothing that it was
// used for waits any longer, or will.
func (p *Pool) revoke(cred *credential) {
	p.mu.Lock()
	if cred.user.formerCredentials[cred.mac] {
		cred.user.formerCredentials = nil // one of several has ended: the next yes may mean another's end
	}
	idle := p.invalidate(cred)
	p.mu.Unlock()
	p.discardAll(idle, metrics.DiscardCredentials)
}

// invalidateOthers takes what waits for the other passwords of a login whose password
// o has just proven right: that may be what they were changed to, and they have
// to be proven again. Two that have both been, each after the other, are passwords
// of an account with several (one for each device), and leave each other alone.
// A new token says nothing about another one, nor about a password. mu is held.
func (p *Pool) invalidateOthers(cred *credential) (removed []*pooledConn) {
	former := cred.user.formerCredentials
	for _, other := range cred.user.credentials {
		if other == cred || other.loginName != cred.loginName || other.isToken || cred.isToken || former[cred.mac] && former[other.mac] {
			continue
		}
		if other.verifiedHere || !other.verifiedAt.IsZero() {
			cred.user.addFormer(other)
		}
		removed = append(removed, p.invalidate(other)...)
	}
	return removed
}

// addFormer remembers that a credential was good until another was taken. mu is
// held.
func (u *userEntry) addFormer(cred *credential) {
	if u.formerCredentials == nil {
		u.formerCredentials = map[[len(cred.mac)]byte]bool{}
	}
	if len(u.formerCredentials) >= maxFormerCredentials {
		clear(u.formerCredentials)
	}
	u.formerCredentials[cred.mac] = true
}

// invalidate takes what waits for an owner, of whom nothing is believed any more:
// what is out now will not wait either. mu is held.
func (p *Pool) invalidate(cred *credential) (removed []*pooledConn) {
	cred.generation++
	cred.verifiedAt, cred.verifiedHere = time.Time{}, false
	return p.removeIdleOf(cred)
}

// EvictUser is for a user who is not this backend's any more, or nobody's: nothing
// waits for them, nor will what is out now. The reason is one of the
// metrics.Discard constants.
func (p *Pool) EvictUser(name identity.User, reason string) {
	p.evict(name, reason, func(*credential) bool { return true })
}

// EvictOtherLogins is Leave for all login names of a user but the one that is theirs
// now: the others may have become somebody else's.
func (p *Pool) EvictOtherLogins(name identity.User, login, reason string) {
	p.evict(name, reason, func(cred *credential) bool { return cred.loginName != login })
}

func (p *Pool) evict(name identity.User, reason string, matches func(*credential) bool) {
	var removed []*pooledConn
	p.mu.Lock()
	if u := p.users[name]; u != nil {
		for _, cred := range u.credentials {
			if matches(cred) {
				removed = append(removed, p.invalidate(cred)...)
			}
		}
	}
	p.mu.Unlock()
	p.discardAll(removed, reason)
}
