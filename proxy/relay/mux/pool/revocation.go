package pool

import (
	"time"

	"imapgate/internal/event"
	"imapgate/internal/identity"
)

// maxFormerCredentials bounds the former credentials that are stored for a user. At the bound
// all are forgotten, which only causes more logins at the backend.
const maxFormerCredentials = 8

// recordVerified records that the backend accepted a login that began at started. If the
// credential was refused, or another password accepted, in between, that result prevails. A
// password that the gateway verified gets here too, because a new one has no idle connection.
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
	p.discardAll(invalidated, event.DiscardCredentials)
}

// revoke removes a credential from the cache. Its idle connections are closed, and its leased
// ones are not pooled again.
func (p *Pool) revoke(cred *credential) {
	p.mu.Lock()
	if cred.user.formerCredentials[cred.mac] {
		cred.user.formerCredentials = nil // one of several was refused: the next success may replace another
	}
	idle := p.invalidate(cred)
	p.mu.Unlock()
	p.discardAll(idle, event.DiscardCredentials)
}

// invalidateOthers removes and returns the idle connections of the login's other passwords
// after cred was accepted: this may be the new password, and the others must be verified again.
// Two passwords that were each accepted after the other belong to an account with several (one
// per device) and do not invalidate each other. A token invalidates neither other tokens nor
// passwords. mu is held.
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

// addFormer records that another credential was accepted after cred. mu is held.
func (u *userEntry) addFormer(cred *credential) {
	if u.formerCredentials == nil {
		u.formerCredentials = map[[len(cred.mac)]byte]bool{}
	}
	if len(u.formerCredentials) >= maxFormerCredentials {
		clear(u.formerCredentials)
	}
	u.formerCredentials[cred.mac] = true
}

// invalidate removes a credential from the cache and returns its idle connections. Its leased
// connections are not pooled again. mu is held.
func (p *Pool) invalidate(cred *credential) (removed []*pooledConn) {
	cred.generation++
	cred.verifiedAt, cred.verifiedHere = time.Time{}, false
	return p.removeIdleOf(cred)
}

// EvictUser closes the user's idle connections and keeps leased ones from returning to the
// pool. It is for users who have moved to another backend or were removed. The login name
// exceptLogin, if not "", is spared: it is still the user's, while the others may now belong
// to another one.
func (p *Pool) EvictUser(name identity.User, exceptLogin string, reason event.DiscardReason) {
	var removed []*pooledConn
	p.mu.Lock()
	if u := p.users[name]; u != nil {
		for _, cred := range u.credentials {
			if exceptLogin == "" || cred.loginName != exceptLogin {
				removed = append(removed, p.invalidate(cred)...)
			}
		}
	}
	p.mu.Unlock()
	p.discardAll(removed, reason)
}
