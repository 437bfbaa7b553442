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
	// maxKnown bounds the successful logins that are known here: three pairs of user and
	// network for each address at most, three networks, and the user. Redis knows more.
	maxKnown = 320 << 10
	// noteInterval is how old the note of a login may get before it is noted again.
	noteInterval = time.Hour
)

// newTable returns a bounded table of keyed hashes. The least recently used entry falls out.
func newTable[V any](size int) *simplelru.LRU[uint64, V] {
	t, _ := simplelru.NewLRU[uint64, V](size, nil) // fails only for a size below 1
	return t
}

// Known remembers from which networks users have logged in. Entries are keyed hashes of 64
// bits, for which no second user or network can be found.
type Known struct {
	// Set once.
	keep  time.Duration
	began time.Time
	seed  maphash.Seed

	// Guarded by mu: the time of the latest login, by Subject.
	mu     sync.Mutex
	logins *simplelru.LRU[uint64, time.Duration]
}

// NewKnown returns an empty Known that remembers logins for a time.
func NewKnown(keep time.Duration) *Known {
	return &Known{keep: keep, began: time.Now(), seed: maphash.MakeSeed(), logins: newTable[time.Duration](maxKnown)}
}

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

// Note remembers a login. It returns what should be noted elsewhere too, because the last time
// from the address is a while ago.
func (k *Known) Note(u identity.User, a netip.Addr) (stale []Subject) {
	k.mu.Lock()
	defer k.mu.Unlock()
	isStale := false
	for i, s := range KnownSubjects(u, a) {
		isNew := k.refresh(s)
		isStale = isStale || isNew && i == 0
		if isStale && s.Net.IsValid() && (isNew || !s.User.IsZero()) {
			stale = append(stale, s)
		}
	}
	return stale
}

// refresh notes a login, and reports whether the last note was too old. It is called with mu
// held.
func (k *Known) refresh(s Subject) bool {
	now, key := time.Since(k.began), maphash.Comparable(k.seed, s)
	last, known := k.logins.Get(key)
	if known && now-last <= noteInterval {
		return false
	}
	k.logins.Add(key, now)
	return true
}

// Learn remembers what other gateways know of earlier logins.
func (k *Known) Learn(known []Subject) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, s := range known {
		k.refresh(s)
	}
}

// Familiarity returns that of a user with an address.
func (k *Known) Familiarity(u identity.User, a netip.Addr) Familiarity {
	switch {
	case u.IsZero():
		return KnownNowhere
	case k.isRecent(Subject{u, Tier(a, 0)}):
		return KnownAddress
	case k.isRecent(Subject{u, UserNet(a)}):
		return KnownNetwork
	case k.isRecent(Subject{u, Tier(a, 2)}):
		return KnownRegion
	case k.isRecent(Subject{User: u}):
		return KnownElsewhere
	}
	return KnownNowhere
}

// IsActive reports whether any user has logged in from a network.
func (k *Known) IsActive(net netip.Prefix) bool { return k.isRecent(Subject{Net: net}) }

func (k *Known) isRecent(s Subject) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	last, ok := k.logins.Get(maphash.Comparable(k.seed, s))
	return ok && time.Since(k.began)-last < k.keep
}
