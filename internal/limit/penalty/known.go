package penalty

import (
	"net/netip"
	"slices"
	"time"

	"imapgate/internal/identity"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

const (
	// maxLogins bounds the successful logins that are known here: three pairs of user and
	// network for each address at most, and three networks. maxUserLogins bounds the users with
	// logins, whom no other user's many networks displace. Redis knows more.
	maxLogins     = 256 << 10
	maxUserLogins = 64 << 10
	// noteInterval is how old the note of a login may get before it is noted again.
	noteInterval = time.Hour
)

// KnownSubjects returns whose successful logins matter to a login: those of the user in the
// networks around the address, the narrowest first, of any user in the wider ones, and of the
// user anywhere.
func KnownSubjects(u identity.User, a netip.Addr) []Subject {
	active := []Subject{{Net: UserNet(a)}, {Net: Tier(a, 1)}, {Net: Tier(a, 2)}}
	if u.IsZero() {
		return active
	}
	user := slices.Compact([]Subject{{u, Tier(a, 0)}, {u, UserNet(a)}, {u, Tier(a, 2)}})
	return append(append(user, active...), Subject{User: u})
}

// Succeeded notes a successful login. It returns what should be noted elsewhere too, because the
// last time from the address is a while ago, and whether the user was not known in the network.
// Then it proves the person, not their phone, and forgets what was tried on the user. Another
// password than the one that may have been right can be right now.
func (h *History) Succeeded(u identity.User, a netip.Addr) (stale []Subject, isNew bool) {
	h.spray.Succeeded()
	h.mu.Lock()
	defer h.mu.Unlock()
	if isNew = h.familiarity(u, a) < KnownNetwork; isNew {
		h.users.Remove(h.hash(Subject{User: u}))
	}
	key := h.hash(Subject{u, UserNet(a)})
	if p, ok := h.passwords.Peek(key); ok && p.unclear != 0 {
		p.unclear = 0
		h.passwords.Add(key, p)
	}
	isStale := false
	for i, s := range KnownSubjects(u, a) {
		refreshed := h.refresh(s)
		isStale = isStale || refreshed && i == 0
		if isStale && s.Net.IsValid() && (refreshed || !s.User.IsZero()) {
			stale = append(stale, s)
		}
	}
	return stale, isNew
}

// refresh notes a login, and reports whether the last note was too old. It is called with mu
// held.
func (h *History) refresh(s Subject) bool {
	logins := h.loginsOf(s)
	last, known := logins.Get(h.hash(s))
	if known && h.now()-last <= noteInterval {
		return false
	}
	logins.Add(h.hash(s), h.now())
	return true
}

// loginsOf returns where the successful logins of a Subject are.
func (h *History) loginsOf(s Subject) *simplelru.LRU[uint64, time.Duration] {
	if s.Net.IsValid() {
		return h.logins
	}
	return h.userLogins
}

// LearnKnown remembers whose successful logins other gateways know.
func (h *History) LearnKnown(known []Subject) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range known {
		h.refresh(s)
	}
}

// addLogins adds to a record what is known of successful logins, with mu held.
func (h *History) addLogins(r *Record, u identity.User, a netip.Addr, isSprayed bool) {
	r.Familiarity = h.familiarity(u, a)
	for i := range r.Active {
		r.Active[i] = h.isKnown(Subject{Net: Tier(a, i)})
	}
	r.Spray = isSprayed && !h.isKnown(Subject{Net: UserNet(a)})
}

// Familiarity returns that of a user with an address.
func (h *History) Familiarity(u identity.User, a netip.Addr) Familiarity {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.familiarity(u, a)
}

func (h *History) familiarity(u identity.User, a netip.Addr) Familiarity {
	switch {
	case u.IsZero():
		return KnownNowhere
	case h.isKnown(Subject{u, Tier(a, 0)}):
		return KnownAddress
	case h.isKnown(Subject{u, UserNet(a)}):
		return KnownNetwork
	case h.isKnown(Subject{u, Tier(a, 2)}):
		return KnownRegion
	case h.isKnown(Subject{User: u}):
		return KnownElsewhere
	}
	return KnownNowhere
}

// IsActive reports whether any user has logged in from a network.
func (h *History) IsActive(net netip.Prefix) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.isKnown(Subject{Net: net})
}

// isKnown is called with mu held.
func (h *History) isKnown(s Subject) bool {
	last, ok := h.loginsOf(s).Get(h.hash(s))
	return ok && h.now()-last < h.keep
}
