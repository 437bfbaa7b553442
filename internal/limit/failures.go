package limit

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"hash/maphash"
	"math"
	"math/bits"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"imapgate/internal/identity"
)

const (
	// Bounds of what is remembered of failures: networks of all tiers, users, and
	// users in networks. What falls out was not looked at for the longest; bans
	// are kept elsewhere and do not fall out.
	maxPastNets  = 64 << 10
	maxPastUsers = 32 << 10
	maxPastPairs = 32 << 10
	// sparedUsers is how many users in a row are kept, because they are under attack,
	// when one has to fall out.
	sparedUsers = 8

	// manyUsers tried from one address within Bans.Window are spraying.
	manyUsers = 10

	lastWrong = 10 // wrong passwords that are recognised, per user in a network
	// maxUnnamed bounds the failed logins of nobody that are recognised.
	maxUnnamed = 16 << 10
	// unlikeOnes of a user in a network within Bans.Window count for the network: of
	// failures without a password nobody can say whether they are one guess or many.
	unlikeOnes = 3
	hour       = time.Hour
	day        = 24 * time.Hour
)

// pastNet is what one network did.
type pastNet struct {
	minute, ban, day window
	users            uint64 // which were tried in this period of ban: a bit each, by their hash
}

// pastUser is what was tried on one user from networks where it is not known.
type pastUser struct {
	hour, day window
	all       uint16 // of day, as Redis last had it of all gateways
}

// pastPair is what was tried on one user in one network.
type pastPair struct {
	hour    window
	repeats window            // of wrong passwords that were recognised, in an hour
	wrong   [lastWrong]uint32 // digests of passwords, newest first
	unclear uint32            // digest of the one password that may have been right; 0: none
	shown   time.Duration     // when that was shown last
	unlike  window            // failures without a password, in Bans.Window
}

// weight is what a failed login counts for.
type weight uint8

const (
	repeated weight = iota // nothing: it was seen before
	userOnly               // the user, not the networks
	whole
)

// failures is what is remembered of failed logins. Keys are keyed hashes, as in
// goodList.
type failures struct {
	// Set once.
	within time.Duration // Bans.Window
	siege  int           // failures of a day from which on a user is under attack
	seed   maphash.Seed
	secret [sha256.Size]byte // of the digests; they mean nothing outside this process

	// Guarded by mu.
	mu    sync.Mutex
	nets  *simplelru.LRU[uint64, pastNet]
	users *simplelru.LRU[uint64, pastUser]
	pairs *simplelru.LRU[uint64, pastPair]
	exact *simplelru.LRU[uint64, window] // as pastPair.hour, of a user at one address
	again *simplelru.LRU[uint64, window] // of a login of nobody in a network: its repetitions in an hour
	open  map[uint64]int32               // logins under way, by what they would count for; bound: the connections there are
}

func newFailures(cfg *Config) *failures {
	f := &failures{
		within: cfg.Failures.BanWithin, siege: max(cfg.Failures.PerUserHour, 2), seed: maphash.MakeSeed(),
		nets: newTable[pastNet](maxPastNets), users: newTable[pastUser](maxPastUsers), pairs: newTable[pastPair](maxPastPairs),
		exact: newTable[window](maxPastPairs), again: newTable[window](maxUnnamed), open: make(map[uint64]int32),
	}
	_, _ = rand.Read(f.secret[:]) // never fails
	return f
}

// digest is a password of a user, as it is recognised.
func (f *failures) digest(u identity.User, password identity.Secret) uint64 {
	mac := hmac.New(sha256.New, f.secret[:])
	mac.Write([]byte(u.String()))
	mac.Write([]byte{0}) // which no name has
	mac.Write([]byte(password.Reveal()))
	return binary.BigEndian.Uint64(mac.Sum(nil))
}

// mark is a digest as a user's entry has it: 0 is an empty place there.
func (f *failures) mark(u identity.User, password identity.Secret) uint32 {
	return max(1, uint32(f.digest(u, password)))
}

// weigh says what a failure of the user from that network counts for, and how
// often in an hour wrong passwords were repeated, this one included. One that was
// not seen of late is remembered.
func (f *failures) weigh(at pair, password identity.Secret, t time.Duration) (w weight, repeats int) {
	if at.user.IsZero() {
		return f.weighUnnamed(at.net, password, t)
	}
	key := maphash.Comparable(f.seed, at)
	d := f.mark(at.user, password)
	f.mu.Lock()
	defer f.mu.Unlock()
	p, _ := f.pairs.Get(key)
	defer func() { f.pairs.Add(key, p) }()
	switch {
	case password.IsZero() && p.unlike.count(t, f.within) >= unlikeOnes:
		return userOnly, 0
	case password.IsZero():
		p.unlike = p.unlike.add(t, f.within)
		return whole, 0
	case slices.Contains(p.wrong[:], d):
		p.repeats = p.repeats.add(t, hour)
		return repeated, p.repeats.count(t, hour)
	}
	copy(p.wrong[1:], p.wrong[:])
	p.wrong[0] = d
	return whole, 0
}

// weighUnnamed is weigh for a name that no account has, which is part of what was
// shown, or for a token that says for whom. None of them can have been a guess at
// an account; but to make many up is what attackers do.
func (f *failures) weighUnnamed(net netip.Prefix, shown identity.Secret, t time.Duration) (w weight, repeats int) {
	if shown.IsZero() {
		return whole, 0
	}
	type unnamed struct {
		digest uint64
		net    netip.Prefix
	}
	key := maphash.Comparable(f.seed, unnamed{f.digest(identity.User{}, shown), net})
	f.mu.Lock()
	defer f.mu.Unlock()
	p, seen := f.again.Get(key)
	if seen {
		p = p.add(t, hour)
	}
	f.again.Add(key, p)
	if !seen {
		return whole, 0
	}
	return repeated, p.count(t, hour)
}

// mayBeRight reports whether a password can be the user's that a service has seen and
// not judged: at most one can, so it is the first of the user in the network. It is
// remembered until the user logs in there, or another password comes Bans.Window after
// it was shown last: passwords change. repeats says how often it came in an hour, 0 for
// the first time.
func (f *failures) mayBeRight(at pair, password identity.Secret, t time.Duration) (repeats int, ok bool) {
	if password.IsZero() || at.user.IsZero() {
		return 0, false
	}
	d, key := f.mark(at.user, password), maphash.Comparable(f.seed, at)
	f.mu.Lock()
	defer f.mu.Unlock()
	p, _ := f.pairs.Get(key)
	switch {
	case p.unclear == d:
		p.repeats = p.repeats.add(t, hour)
		repeats = max(1, p.repeats.count(t, hour))
	case p.unclear != 0 && t-p.shown < f.within, slices.Contains(p.wrong[:], d):
		return 0, false
	}
	p.unclear, p.shown = d, t
	f.pairs.Add(key, p)
	return repeats, true
}

// wasRight notes that a user has logged in from a network: another password than the
// one that may have been right can be.
func (f *failures) wasRight(at pair) {
	key := maphash.Comparable(f.seed, at)
	f.mu.Lock()
	defer f.mu.Unlock()
	if p, ok := f.pairs.Peek(key); ok && p.unclear != 0 {
		p.unclear = 0
		f.pairs.Add(key, p)
	}
}

// tally is what there is of failures around one login: of the networks, of the
// user, of the user in the network and at the address. It is also what Redis knows
// of them.
type tally struct {
	net   [tiers]netTally
	user  struct{ hour, day, all int }
	pair  struct{ hour int }
	exact struct{ hour int }
}

type netTally struct{ minute, ban, day int }

// wholly is a bitmap from which a number of users cannot be told any more.
const wholly = ^uint64(0)

func (p *pastNet) tally(within, t time.Duration) netTally {
	return netTally{
		minute: p.minute.count(t, time.Minute), ban: p.ban.count(t, within), day: p.day.count(t, day),
	}
}

// distinct estimates how many have set bits (linear counting).
func distinct(set uint64) int {
	if set == wholly {
		return 256
	}
	// 64 * ln(64/zeros), by its series in harmonic numbers.
	n := 0.0
	for zeros := 64; zeros > 64-bits.OnesCount64(set); zeros-- {
		n += 64 / float64(zeros)
	}
	return int(n + 0.5)
}

// failedNets counts a failure in the networks around. It says so when with it one
// of them has tried suspiciously many users.
func (f *failures) failedNets(u identity.User, addr netip.Addr, t time.Duration) (now news) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range tiers {
		net := tier(addr, i)
		if before, after := f.failedNet(net, u, t); before < manyUsers*tierScale[i] && after >= manyUsers*tierScale[i] {
			now = news{true, Spray{Suspected: true, Net: net, Users: after}}
		}
	}
	return now
}

// failedPair counts a failure of a user, known there or not.
func (f *failures) failedPair(at pair, addr netip.Addr, t time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := maphash.Comparable(f.seed, at)
	p, _ := f.pairs.Get(key)
	p.hour = p.hour.add(t, hour)
	f.pairs.Add(key, p)
	key = maphash.Comparable(f.seed, pair{at.user, home(addr)})
	w, _ := f.exact.Get(key)
	f.exact.Add(key, w.add(t, hour))
}

// failedUser counts a failure from where the user is not known. Those from where
// it is count for the pair alone, so that nobody's own phone locks a user out
// elsewhere.
func (f *failures) failedUser(u identity.User, t time.Duration) {
	key := maphash.Comparable(f.seed, u)
	f.mu.Lock()
	defer f.mu.Unlock()
	p, known := f.users.Get(key)
	p.hour, p.day = p.hour.add(t, hour), p.day.add(t, day)
	if !known {
		f.spare(t)
	}
	f.users.Add(key, p)
}

// spare has somebody fall out of a full table who is not under attack, with mu
// held: a flood of made-up names must not give a victim's attacker another hundred
// guesses.
func (f *failures) spare(t time.Duration) {
	for range sparedUsers {
		key, p, ok := f.users.GetOldest()
		if !ok || f.users.Len() < maxPastUsers || p.day.count(t, day) < f.siege {
			return
		}
		f.users.Get(key) // is looked at, and the latest now
	}
}

// failedNet is called with mu held. It gives about how many users the network has
// tried, before and after.
func (f *failures) failedNet(net netip.Prefix, u identity.User, t time.Duration) (before, after int) {
	key := maphash.Comparable(f.seed, net)
	p, _ := f.nets.Get(key)
	if p.ban.period != p.ban.at(t, f.within).period {
		p.users = 0
	}
	p.minute, p.ban, p.day = p.minute.add(t, time.Minute), p.ban.add(t, f.within), p.day.add(t, day)
	before = distinct(p.users)
	p.users |= 1 << (maphash.Comparable(f.seed, u) % 64)
	f.nets.Add(key, p)
	return before, distinct(p.users)
}

// look gives what there is of failures around a login.
func (f *failures) look(at pair, addr netip.Addr, t time.Duration) tally {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.past(at, addr, t)
}

// past is called with mu held.
func (f *failures) past(at pair, addr netip.Addr, t time.Duration) (now tally) {
	for i := range tiers {
		if p, ok := f.nets.Get(maphash.Comparable(f.seed, tier(addr, i))); ok {
			now.net[i] = p.tally(f.within, t)
		}
	}
	if p, ok := f.users.Get(maphash.Comparable(f.seed, at.user)); ok {
		now.user.hour, now.user.day = p.hour.count(t, hour), p.day.count(t, day)
		now.user.all = min(int(p.all), now.user.day)
	}
	if p, ok := f.pairs.Get(maphash.Comparable(f.seed, at)); ok {
		now.pair.hour = p.hour.count(t, hour)
	}
	if w, ok := f.exact.Get(maphash.Comparable(f.seed, pair{at.user, home(addr)})); ok {
		now.exact.hour = w.count(t, hour)
	}
	return now
}

// learn raises what is known here to what is known at all gateways.
func (f *failures) learn(at pair, addr netip.Addr, all tally, t time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range tiers {
		key, theirs := maphash.Comparable(f.seed, tier(addr, i)), all.net[i]
		p, _ := f.nets.Get(key)
		p.minute = p.minute.raise(theirs.minute, t, time.Minute)
		p.ban, p.day = p.ban.raise(theirs.ban, t, f.within), p.day.raise(theirs.day, t, day)
		f.nets.Add(key, p)
	}
	if at.user.IsZero() {
		return
	}
	key := maphash.Comparable(f.seed, at.user)
	if u, ok := f.users.Get(key); ok || all.user.day > 0 {
		u.hour, u.day = u.hour.raise(all.user.hour, t, hour), u.day.raise(all.user.day, t, day)
		u.all = uint16(min(all.user.day, math.MaxUint16))
		if !ok {
			f.spare(t)
		}
		f.users.Add(key, u)
	}
	key = maphash.Comparable(f.seed, at)
	p, _ := f.pairs.Get(key)
	p.hour = p.hour.raise(all.pair.hour, t, hour)
	f.pairs.Add(key, p)
	key = maphash.Comparable(f.seed, pair{at.user, home(addr)})
	w, _ := f.exact.Get(key)
	f.exact.Add(key, w.raise(all.exact.hour, t, hour))
}

// forgiveUser forgets what was tried on a user, but not in which network.
func (f *failures) forgiveUser(u identity.User) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.users.Remove(maphash.Comparable(f.seed, u))
}

// forgiveNet forgets what the tiers did that have exactly that network.
func (f *failures) forgiveNet(net netip.Prefix) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nets.Remove(maphash.Comparable(f.seed, net))
}
