package pool

import (
	"time"

	"imapgate/internal/identity"
	"imapgate/internal/metrics"
)

// maxFormer bounds the credentials of a user that are remembered to have been
// doubted. With more the memory starts anew, and more is asked.
const maxFormer = 8

// trust remembers that the backend was asked at a time and said yes. A no, or a
// yes to another password, that came meanwhile is the later word. A password for
// which the gateway vouches comes here, too: nothing waits for a new one.
func (p *Pool) trust(h *held, began time.Time) {
	p.mu.Lock()
	o := h.owner
	if o.term != h.term {
		p.mu.Unlock()
		return
	}
	if o.verified.Before(began) {
		o.verified = began
	}
	doubted := p.doubtOthers(o)
	p.mu.Unlock()
	p.discardAll(doubted, metrics.DiscardCredentials)
}

// distrust forgets that the backend ever took a credential: nothing that it was
// used for waits any longer, or will.
func (p *Pool) distrust(o *owner) {
	p.mu.Lock()
	if o.user.former[o.mac] {
		o.user.former = nil // one of several has ended: the next yes may mean another's end
	}
	waiting := p.disown(o)
	p.mu.Unlock()
	p.discardAll(waiting, metrics.DiscardCredentials)
}

// doubtOthers takes what waits for the other passwords of a login whose password
// o has just proven right: that may be what they were changed to, and they have
// to be proven again. Two that have both been, each after the other, are passwords
// of an account with several (one for each device), and leave each other alone.
// A new token says nothing about another one, nor about a password. mu is held.
func (p *Pool) doubtOthers(o *owner) (taken []*held) {
	former := o.user.former
	for _, other := range o.user.owners {
		if other == o || other.login != o.login || other.token || o.token || former[o.mac] && former[other.mac] {
			continue
		}
		if other.vouched || !other.verified.IsZero() {
			o.user.doubted(other)
		}
		taken = append(taken, p.disown(other)...)
	}
	return taken
}

// doubted remembers that a credential was good until another was taken. mu is
// held.
func (u *user) doubted(o *owner) {
	if u.former == nil {
		u.former = map[[len(o.mac)]byte]bool{}
	}
	if len(u.former) >= maxFormer {
		clear(u.former)
	}
	u.former[o.mac] = true
}

// disown takes what waits for an owner, of whom nothing is believed any more:
// what is out now will not wait either. mu is held.
func (p *Pool) disown(o *owner) (taken []*held) {
	o.term++
	o.verified, o.vouched = time.Time{}, false
	return p.takeOf(o)
}

// Leave is for a user who is not this backend's any more, or nobody's: nothing
// waits for them, nor will what is out now. The reason is one of the
// metrics.Discard constants.
func (p *Pool) Leave(name identity.User, reason string) {
	p.leave(name, reason, func(*owner) bool { return true })
}

// LeaveOthers is Leave for all login names of a user but the one that is theirs
// now: the others may have become somebody else's.
func (p *Pool) LeaveOthers(name identity.User, login, reason string) {
	p.leave(name, reason, func(o *owner) bool { return o.login != login })
}

func (p *Pool) leave(name identity.User, reason string, has func(*owner) bool) {
	var taken []*held
	p.mu.Lock()
	if u := p.users[name]; u != nil {
		for _, o := range u.owners {
			if has(o) {
				taken = append(taken, p.disown(o)...)
			}
		}
	}
	p.mu.Unlock()
	p.discardAll(taken, reason)
}
