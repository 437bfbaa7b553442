package penalty

import (
	"hash/maphash"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"imapgate/internal/identity"
)

const (
	// maxKnown bounds the pairs of user and network that are known here, three for each
	// address at most. Redis knows more.
	maxKnown = 192 << 10
	// maxActive bounds the networks with logins, and the users with logins.
	maxActive = 64 << 10
	// noteInterval is how old the note of a login may get before it is noted again.
	noteInterval = time.Hour
)

// newTable returns a bounded table of keyed hashes. The least recently used entry falls out.
func newTable[V any](size int) *simplelru.LRU[uint64, V] {
	t, err := simplelru.NewLRU[uint64, V](size, nil)
	if err != nil {
		panic(err) // only for a size below 1
	}
	return t
}

// Known remembers from which networks users have logged in. Entries are keyed hashes of 64
// bits, for which no second user or network can be found.
type Known struct {
	// Set once.
	keep  time.Duration
	began time.Time
	seed  maphash.Seed

	// Guarded by mu: the time of the latest login.
	mu    sync.Mutex
	pairs *simplelru.LRU[uint64, time.Duration]
	nets  *simplelru.LRU[uint64, time.Duration] // of any user
	users *simplelru.LRU[uint64, time.Duration] // from any network
}

// NewKnown returns an empty Known that remembers logins for a time.
func NewKnown(keep time.Duration) *Known {
	return &Known{
		keep: keep, began: time.Now(), seed: maphash.MakeSeed(), pairs: newTable[time.Duration](maxKnown),
		nets: newTable[time.Duration](maxActive), users: newTable[time.Duration](maxActive),
	}
}

// UserNets returns the networks in which a user is known after a login, the narrowest first.
func UserNets(a netip.Addr) []netip.Prefix {
	return slices.Compact([]netip.Prefix{Tier(a, 0), UserNet(a), Tier(a, 2)})
}

// ActiveNets returns the networks that are active after a login.
func ActiveNets(a netip.Addr) []netip.Prefix {
	return []netip.Prefix{UserNet(a), Tier(a, 1), Tier(a, 2)}
}

// Note remembers a login. It returns the networks that should be noted elsewhere too, because
// the last time is a while ago.
func (k *Known) Note(u identity.User, a netip.Addr) (user, active []netip.Prefix) {
	now := time.Since(k.began)
	k.mu.Lock()
	defer k.mu.Unlock()
	isStale := refresh(k.pairs, maphash.Comparable(k.seed, Subject{u, Tier(a, 0)}), now)
	for _, net := range UserNets(a)[1:] {
		refresh(k.pairs, maphash.Comparable(k.seed, Subject{u, net}), now)
	}
	for _, net := range ActiveNets(a) {
		if refresh(k.nets, maphash.Comparable(k.seed, net), now) && isStale {
			active = append(active, net)
		}
	}
	refresh(k.users, maphash.Comparable(k.seed, u), now)
	if !isStale {
		return nil, nil
	}
	return UserNets(a), active
}

// refresh notes a login, and reports whether the last note was too old. It is called with mu
// held.
func refresh(t *simplelru.LRU[uint64, time.Duration], key uint64, now time.Duration) bool {
	last, known := t.Get(key)
	if known && now-last <= noteInterval {
		return false
	}
	t.Add(key, now)
	return true
}

// Learn remembers what other gateways know of earlier logins: networks of the user, active
// networks, and whether the user has logged in anywhere.
func (k *Known) Learn(u identity.User, user, active []netip.Prefix, anywhere bool) {
	now := time.Since(k.began)
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, net := range user {
		refresh(k.pairs, maphash.Comparable(k.seed, Subject{u, net}), now)
	}
	for _, net := range active {
		refresh(k.nets, maphash.Comparable(k.seed, net), now)
	}
	if anywhere {
		refresh(k.users, maphash.Comparable(k.seed, u), now)
	}
}

// Familiarity returns that of a user with an address.
func (k *Known) Familiarity(u identity.User, a netip.Addr) Familiarity {
	switch {
	case u.IsZero():
		return KnownNowhere
	case k.isKnown(u, Tier(a, 0)):
		return KnownAddress
	case k.isKnown(u, UserNet(a)):
		return KnownNetwork
	case k.isKnown(u, Tier(a, 2)):
		return KnownRegion
	case k.recent(k.users, maphash.Comparable(k.seed, u)):
		return KnownElsewhere
	}
	return KnownNowhere
}

func (k *Known) isKnown(u identity.User, net netip.Prefix) bool {
	return k.recent(k.pairs, maphash.Comparable(k.seed, Subject{u, net}))
}

// IsActive reports whether any user has logged in from a network.
func (k *Known) IsActive(net netip.Prefix) bool {
	return k.recent(k.nets, maphash.Comparable(k.seed, net))
}

func (k *Known) recent(t *simplelru.LRU[uint64, time.Duration], key uint64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	last, ok := t.Get(key)
	return ok && time.Since(k.began)-last < k.keep
}
