package limit

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"imapgate/internal/identity"
)

const (
	// maxGood bounds the pairs of user and network known here; Redis knows more.
	maxGood = 128 << 10
	// maxLived bounds the networks in which somebody is known.
	maxLived = 64 << 10
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
}

func newGoodList(keep time.Duration) *goodList {
	return &goodList{
		keep: keep, seed: maphash.MakeSeed(),
		pairs: newTable[time.Duration](maxGood), nets: newTable[time.Duration](maxLived),
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

// stale says whether Redis should be told of a right login.
func (g *goodList) stale(at pair, now time.Duration) bool {
	key := maphash.Comparable(g.seed, at)
	g.mu.Lock()
	defer g.mu.Unlock()
	last, known := g.pairs.Get(key)
	return !known || now-last > tellAgain
}

// note remembers a right login. The time kept is that of the last telling, which
// is an hour early at most.
func (g *goodList) note(at pair, now time.Duration) {
	key, net := maphash.Comparable(g.seed, at), maphash.Comparable(g.seed, at.net)
	g.mu.Lock()
	defer g.mu.Unlock()
	if last, known := g.pairs.Get(key); !known || now-last > tellAgain {
		g.pairs.Add(key, now)
	}
	g.nets.Add(net, now)
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
