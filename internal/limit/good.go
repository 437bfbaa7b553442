package limit

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
	// maxGood bounds the pairs of user and network known here, three for each
	// address at most; Redis knows more.
	maxGood = 192 << 10
	// maxLived bounds the networks in which somebody is known.
	maxLived = 64 << 10
	// maxProven bounds the users of whom any network is known.
	maxProven = 64 << 10
	// tellAgain is how old what Redis knows of a pair may get.
	tellAgain = time.Hour
)

// pair is a user in a network.
type pair struct {
	user identity.User
	net  netip.Prefix
}

// goodList remembers from which networks users have logged in. A pair is kept as
// a keyed hash of 64 bits, for which nobody can find a second pair.
type goodList struct {
	// Set once.
	keep time.Duration
	seed maphash.Seed

	// Guarded by mu: when a login was right there last.
	mu    sync.Mutex
	pairs *simplelru.LRU[uint64, time.Duration]
	nets  *simplelru.LRU[uint64, time.Duration]
	users *simplelru.LRU[uint64, time.Duration] // anywhere
}

func newGoodList(keep time.Duration) *goodList {
	return &goodList{
		keep: keep, seed: maphash.MakeSeed(),
		pairs: newTable[time.Duration](maxGood), nets: newTable[time.Duration](maxLived), users: newTable[time.Duration](maxProven),
	}
}

// newTable makes a bounded table of hashed keys, of which the one that was least
// looked at falls out.
func newTable[V any](size int) *simplelru.LRU[uint64, V] {
	t, err := simplelru.NewLRU[uint64, V](size, nil)
	if err != nil {
		panic(err) // only of a size below 1
	}
	return t
}

// standing is how well a user is known where it comes from.
type standing uint8

const (
	newcomer standing = iota // known nowhere at all
	stranger                 // known, but not here
	customer                 // known somewhere in the carrier's network
	neighbor                 // known near
	resident                 // known at this very address
)

// homes are the networks in which a user is known behind a right login, from the
// narrowest. With IPv6 the address and what is near are the same.
func homes(a netip.Addr) []netip.Prefix {
	return slices.Compact([]netip.Prefix{home(a), near(a), carrier(a)})
}

// streets are the networks of which it is known that somebody lives there.
func streets(a netip.Addr) []netip.Prefix {
	return []netip.Prefix{near(a), tier(a, 1), tier(a, 2)}
}

// stale are the networks of which Redis should be told behind a right login: those
// of the user, and those in which somebody lives.
func (g *goodList) stale(u identity.User, a netip.Addr, now time.Duration) (mine, lived []netip.Prefix) {
	g.mu.Lock()
	defer g.mu.Unlock()
	old := func(t *simplelru.LRU[uint64, time.Duration], key uint64) bool {
		last, known := t.Get(key)
		return !known || now-last > tellAgain
	}
	if !old(g.pairs, maphash.Comparable(g.seed, pair{u, home(a)})) {
		return nil, nil
	}
	for _, net := range streets(a) {
		if old(g.nets, maphash.Comparable(g.seed, net)) {
			lived = append(lived, net)
		}
	}
	return homes(a), lived
}

// note remembers a right login. The times kept are those of the last telling, which
// is an hour early at most.
func (g *goodList) note(u identity.User, a netip.Addr, now time.Duration) {
	for _, net := range homes(a) {
		g.knew(pair{u, net}, now)
	}
	for _, net := range streets(a) {
		g.living(net, now)
	}
	g.proven(u, now)
}

// knew remembers that a user was right there.
func (g *goodList) knew(at pair, now time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	refresh(g.pairs, maphash.Comparable(g.seed, at), now)
}

// living remembers that somebody was.
func (g *goodList) living(net netip.Prefix, now time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	refresh(g.nets, maphash.Comparable(g.seed, net), now)
}

// proven remembers that the user was right somewhere.
func (g *goodList) proven(u identity.User, now time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	refresh(g.users, maphash.Comparable(g.seed, u), now)
}

// refresh is called with mu held.
func refresh(t *simplelru.LRU[uint64, time.Duration], key uint64, now time.Duration) {
	if last, known := t.Get(key); !known || now-last > tellAgain {
		t.Add(key, now)
	}
}

// standing is that of a user at an address.
func (g *goodList) standing(u identity.User, a netip.Addr, now time.Duration) standing {
	switch {
	case u.IsZero():
		return newcomer
	case g.knows(pair{u, home(a)}, now):
		return resident
	case g.knows(pair{u, near(a)}, now):
		return neighbor
	case g.knows(pair{u, carrier(a)}, now):
		return customer
	case g.anywhere(u, now):
		return stranger
	}
	return newcomer
}

// anywhere reports whether the user has logged in from any network of late.
func (g *goodList) anywhere(u identity.User, now time.Duration) bool {
	key := maphash.Comparable(g.seed, u)
	g.mu.Lock()
	defer g.mu.Unlock()
	last, ok := g.users.Get(key)
	return ok && now-last < g.keep
}

// knows says whether the user has logged in from there of late.
func (g *goodList) knows(at pair, now time.Duration) bool {
	key := maphash.Comparable(g.seed, at)
	g.mu.Lock()
	defer g.mu.Unlock()
	last, ok := g.pairs.Get(key)
	return ok && now-last < g.keep
}

// lived says whether anybody has logged in from there of late.
func (g *goodList) lived(net netip.Prefix, now time.Duration) bool {
	key := maphash.Comparable(g.seed, net)
	g.mu.Lock()
	defer g.mu.Unlock()
	last, ok := g.nets.Get(key)
	return ok && now-last < g.keep
}
