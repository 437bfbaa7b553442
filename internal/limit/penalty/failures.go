package penalty

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"hash/maphash"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"imapgate/internal/identity"
)

const (
	// Bounds of what is remembered: networks of all tiers, users, users in networks, the
	// passwords of those, and failed logins without a user. The least recently used falls out.
	maxNets      = 64 << 10
	maxUsers     = 32 << 10
	maxPairs     = 32 << 10
	maxPasswords = 32 << 10
	maxUnnamed   = 16 << 10
	// maxSpared is how many users in a row are kept because they are under attack, when one
	// has to fall out.
	maxSpared = 8

	lastWrong = 10 // wrong passwords that are recognised, for a user in a network
	// maxUnrecognised failures without a password, of a user in a network within BanWithin,
	// count for the network: they may be one guess or many.
	maxUnrecognised = 3
	hour            = time.Hour
	day             = 24 * time.Hour
)

// Subject is whose failures are counted: those from a network, of a user from networks where
// the user is not known, or of a user in a network.
type Subject struct {
	User identity.User
	Net  netip.Prefix
}

// Windows returns the times within which failures are counted: from a network a minute,
// banWithin and a day; of a user an hour and a day; of a user in a network an hour.
func (s Subject) Windows(banWithin time.Duration) []time.Duration {
	switch {
	case s.User.IsZero():
		return []time.Duration{time.Minute, banWithin, day}
	case s.Net.IsValid():
		return []time.Duration{hour}
	}
	return []time.Duration{hour, day}
}

// Subjects returns whose failures matter to a login of a user from an address, and count one
// of it: the networks around the address, the user, the user in UserNet and, if that is
// wider, at the address. There are only networks for the zero User.
func Subjects(u identity.User, a netip.Addr) []Subject {
	all := []Subject{{Net: Tier(a, 0)}, {Net: Tier(a, 1)}, {Net: Tier(a, 2)}}
	if u.IsZero() {
		return all
	}
	all = append(all, Subject{User: u}, Subject{u, UserNet(a)})
	if Tier(a, 0) != UserNet(a) {
		all = append(all, Subject{u, Tier(a, 0)})
	}
	return all
}

// Counted says which of the Subjects a failure counts for.
type Counted struct{ Nets, User, Pairs bool }

// Includes reports whether a failure counts for the i-th of the Subjects.
func (c Counted) Includes(i int) bool {
	return i < Tiers && c.Nets || i == Tiers && c.User || i > Tiers && c.Pairs
}

// NewRecord returns the failures of the counts of Subjects.
func NewRecord(counts [][]int) (r Record) {
	at := func(i, window int) int {
		if i >= len(counts) || window >= len(counts[i]) {
			return 0
		}
		return counts[i][window]
	}
	for i := range Tiers {
		r.Nets[i] = NetCounts{at(i, 0), at(i, 1), at(i, 2)}
	}
	r.User = UserCounts{Hour: at(Tiers, 0), Day: at(Tiers, 1), Fleet: min(at(Tiers, 1), at(Tiers, 2))}
	if r.UserNet = at(Tiers+1, 0); len(counts) > Tiers {
		r.UserAddress = at(len(counts)-1, 0)
	}
	return r
}

// entry is what is remembered of a Subject. The third window of a user is the day as Redis last
// had it.
type entry struct {
	windows [3]window
	tried   uint64 // users tried from a network in this period of BanWithin: a bit each, by their hash
}

// passwords are those that were tried on one user in one network.
type passwords struct {
	repeats      window            // of wrong ones that were recognised, in an hour
	wrong        [lastWrong]uint32 // digests, the latest first
	unclear      uint32            // digest of the one that may have been right; 0: none
	shown        time.Duration     // when that was presented last
	unrecognised window            // failures without a password, in BanWithin
}

// Weight is what a failed login counts for.
type Weight uint8

// The weights: nothing, because it was seen before; the user, not the networks; all.
const (
	Repeated Weight = iota
	UserOnly
	Full
)

// History remembers logins, failed and successful ones. Its keys are keyed hashes of 64 bits, for
// which no second user or network can be found.
type History struct {
	// Set once.
	banWithin  time.Duration
	keep       time.Duration // successful logins
	underSiege int           // failures of a day from which on a user is under attack
	began      time.Time
	seed       maphash.Seed
	secret     [sha256.Size]byte // of the digests, which mean nothing outside of this process
	spray      *SprayAlert

	// Guarded by mu.
	mu         sync.Mutex
	nets       *simplelru.LRU[uint64, entry]
	users      *simplelru.LRU[uint64, entry]
	pairs      *simplelru.LRU[uint64, entry]
	passwords  *simplelru.LRU[uint64, passwords]
	unnamed    *simplelru.LRU[uint64, window]        // repetitions, in an hour, of a failed login without a user
	logins     *simplelru.LRU[uint64, time.Duration] // the time of the latest successful one, by Subject with a network
	userLogins *simplelru.LRU[uint64, time.Duration] // the same from any network
	pending    map[uint64]int                        // logins in progress, by Subject; bound: the connections
}

// NewHistory returns an empty History. It calls onSpray when a network has tried many users, and
// when spraying is suspected or no longer.
func NewHistory(s *Settings, onSpray func(Spray)) *History {
	h := &History{
		banWithin: s.BanWithin, keep: s.KnownFor, underSiege: max(s.PerUserHour, 2), began: time.Now(), seed: maphash.MakeSeed(), spray: NewSprayAlert(onSpray),
		nets: newTable[entry](maxNets), users: newTable[entry](maxUsers), pairs: newTable[entry](maxPairs), passwords: newTable[passwords](maxPasswords),
		unnamed: newTable[window](maxUnnamed), logins: newTable[time.Duration](maxLogins), userLogins: newTable[time.Duration](maxUserLogins),
		pending: make(map[uint64]int),
	}
	_, _ = rand.Read(h.secret[:]) // never fails
	return h
}

// newTable returns a bounded table. The least recently used entry falls out.
func newTable[V any](size int) *simplelru.LRU[uint64, V] {
	t, _ := simplelru.NewLRU[uint64, V](size, nil) // fails only for a size below 1
	return t
}

func (h *History) now() time.Duration { return time.Since(h.began) }

func (h *History) hash(s Subject) uint64 { return maphash.Comparable(h.seed, s) }

// table returns where a Subject is counted.
func (h *History) table(s Subject) *simplelru.LRU[uint64, entry] {
	switch {
	case s.User.IsZero():
		return h.nets
	case s.Net.IsValid():
		return h.pairs
	}
	return h.users
}

// digest returns a keyed digest of a password of a user, which is never 0.
func (h *History) digest(u identity.User, password identity.Secret) uint32 {
	mac := hmac.New(sha256.New, h.secret[:])
	mac.Write([]byte(u.String()))
	mac.Write([]byte{0}) // which no name has
	mac.Write([]byte(password.Reveal()))
	return max(1, binary.BigEndian.Uint32(mac.Sum(nil)))
}

// Weigh returns what a failure of a user from an address counts for, and how often wrong
// passwords were repeated in an hour, this one included. One that is new is remembered.
func (h *History) Weigh(u identity.User, a netip.Addr, password identity.Secret) (w Weight, repeats int) {
	if u.IsZero() {
		return h.weighUnnamed(UserNet(a), password)
	}
	t, key, d := h.now(), h.hash(Subject{u, UserNet(a)}), h.digest(u, password)
	h.mu.Lock()
	defer h.mu.Unlock()
	p, _ := h.passwords.Get(key)
	defer func() { h.passwords.Add(key, p) }()
	switch {
	case password.IsZero() && p.unrecognised.count(t, h.banWithin) >= maxUnrecognised:
		return UserOnly, 0
	case password.IsZero():
		p.unrecognised = p.unrecognised.add(t, h.banWithin)
		return Full, 0
	case slices.Contains(p.wrong[:], d):
		p.repeats = p.repeats.add(t, hour)
		return Repeated, p.repeats.count(t, hour)
	}
	copy(p.wrong[1:], p.wrong[:])
	p.wrong[0] = d
	return Full, 0
}

// weighUnnamed is Weigh for a name without an account, which is part of what was presented,
// or for a token without a user. It cannot have been a guess at an account, but making up
// many is what attackers do.
func (h *History) weighUnnamed(net netip.Prefix, presented identity.Secret) (w Weight, repeats int) {
	if presented.IsZero() {
		return Full, 0
	}
	t, key := h.now(), maphash.Comparable(h.seed, struct {
		digest uint32
		net    netip.Prefix
	}{h.digest(identity.User{}, presented), net})
	h.mu.Lock()
	defer h.mu.Unlock()
	p, seen := h.unnamed.Get(key)
	if seen {
		p = p.add(t, hour)
	}
	h.unnamed.Add(key, p)
	if !seen {
		return Full, 0
	}
	return Repeated, p.count(t, hour)
}

// MayBeRight reports whether a password that was sent to a service, which did not say whether
// it is right, can be the user's. At most one can, so it is the first of the user in the
// network, until the user logs in from there or another comes BanWithin after it was
// presented last: passwords change. repeats is how often it came in an hour, 0 for the first
// time.
func (h *History) MayBeRight(u identity.User, a netip.Addr, password identity.Secret) (repeats int, ok bool) {
	if password.IsZero() || u.IsZero() {
		return 0, false
	}
	t, key, d := h.now(), h.hash(Subject{u, UserNet(a)}), h.digest(u, password)
	h.mu.Lock()
	defer h.mu.Unlock()
	p, _ := h.passwords.Get(key)
	switch {
	case p.unclear == d:
		p.repeats = p.repeats.add(t, hour)
		repeats = max(1, p.repeats.count(t, hour))
	case p.unclear != 0 && t-p.shown < h.banWithin, slices.Contains(p.wrong[:], d):
		return 0, false
	}
	p.unclear, p.shown = d, t
	h.passwords.Add(key, p)
	return repeats, true
}

// Count counts a failure. It is a suspicion if with it a network has tried many users.
func (h *History) Count(u identity.User, a netip.Addr, c Counted) {
	if c.Nets {
		h.spray.Failed(u)
	}
	if s := h.count(u, a, c); s.Suspected {
		h.spray.onChange(s)
	}
}

func (h *History) count(u identity.User, a netip.Addr, c Counted) (spray Spray) {
	t := h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, s := range Subjects(u, a) {
		if !c.Includes(i) {
			continue
		}
		h.update(s, func(e *entry) {
			if i < Tiers && h.countTried(e, u, manyUsers*TierScale[i]) {
				spray = Spray{true, s.Net, distinctUsers(e.tried)}
			}
			for k, length := range s.Windows(h.banWithin) {
				e.windows[k] = e.windows[k].add(t, length)
			}
		})
	}
	return spray
}

// countTried adds a user to those tried from a network, before its failure is counted. It
// reports whether with this user they are many.
func (h *History) countTried(e *entry, u identity.User, many int) bool {
	if e.windows[1].period != e.windows[1].at(h.now(), h.banWithin).period {
		e.tried = 0
	}
	before := distinctUsers(e.tried)
	e.tried |= 1 << (h.hash(Subject{User: u}) % 64)
	return before < many && distinctUsers(e.tried) >= many
}

// update changes the windows of a Subject, with mu held.
func (h *History) update(s Subject, change func(*entry)) {
	table, key := h.table(s), h.hash(s)
	e, known := table.Get(key)
	change(&e)
	if !known && table == h.users {
		h.spare(h.now())
	}
	table.Add(key, e)
}

// spare makes a user fall out of a full table who is not under attack, with mu held: a flood of
// made-up names must not give an attacker another hundred guesses.
func (h *History) spare(t time.Duration) {
	for range maxSpared {
		key, e, ok := h.users.GetOldest()
		if !ok || h.users.Len() < maxUsers || e.windows[1].count(t, day) < h.underSiege {
			return
		}
		h.users.Get(key) // now it is the latest
	}
}

// Record returns what is known around a login.
func (h *History) Record(u identity.User, a netip.Addr) Record {
	isSprayed := h.spray.Suspected()
	h.mu.Lock()
	defer h.mu.Unlock()
	r := NewRecord(h.counts(Subjects(u, a)))
	h.addLogins(&r, u, a, isSprayed)
	return r
}

// counts is called with mu held.
func (h *History) counts(subjects []Subject) [][]int {
	t, all := h.now(), make([][]int, len(subjects))
	for i, s := range subjects {
		e, _ := h.table(s).Get(h.hash(s))
		for k, length := range s.Windows(h.banWithin) {
			all[i] = append(all[i], e.windows[k].count(t, length))
		}
		if i == Tiers {
			all[i] = append(all[i], e.windows[2].count(t, day))
		}
	}
	return all
}

// Learn raises the counts of Subjects to those of all gateways. Counts that are missing could
// not be read.
func (h *History) Learn(u identity.User, a netip.Addr, fleet [][]int) {
	t := h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, s := range Subjects(u, a) {
		counts := fleet[i]
		if len(counts) == 0 || slices.Max(counts) == 0 {
			continue
		}
		h.update(s, func(e *entry) {
			for k, length := range s.Windows(h.banWithin) {
				e.windows[k] = e.windows[k].raise(counts[k], t, length)
			}
			if i == Tiers {
				e.windows[2] = e.windows[2].raise(counts[1], t, day)
			}
		})
	}
}

// Begin notes that a login is in progress, until End of the claims. It returns what is known
// around it if all logins in progress fail. Otherwise a burst of guesses, of which none has
// failed yet, would pass as a whole. A user who is known at the address claims nothing of its
// networks, because the login succeeds nearly always.
func (h *History) Begin(u identity.User, a netip.Addr) (claims []uint64, worst Record) {
	isSprayed := h.spray.Suspected()
	h.mu.Lock()
	defer h.mu.Unlock()
	subjects, known := Subjects(u, a), h.familiarity(u, a)
	counts := h.counts(subjects)
	now := NewRecord(counts)
	claimed := Counted{Nets: known < KnownAddress, User: known < KnownNetwork, Pairs: true}
	for i, s := range subjects {
		if !claimed.Includes(i) {
			continue
		}
		key := h.hash(s)
		claims = append(claims, key)
		for k := range counts[i] {
			counts[i][k] += h.pending[key]
		}
		h.pending[key]++
	}
	worst = NewRecord(counts)
	for i := range worst.Nets { // refusals, not delays
		worst.Nets[i].Ban = now.Nets[i].Ban
	}
	worst.User.Hour, worst.User.Fleet = now.User.Hour, now.User.Fleet
	h.addLogins(&worst, u, a, isSprayed)
	return claims, worst
}

// End ends a login in progress.
func (h *History) End(claims []uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, key := range claims {
		if h.pending[key]--; h.pending[key] == 0 {
			delete(h.pending, key)
		}
	}
}

// Pending returns how many counts logins in progress have claimed.
func (h *History) Pending() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.pending)
}

// ForgetUser forgets what was tried on a user, but not in which network.
func (h *History) ForgetUser(u identity.User) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.users.Remove(h.hash(Subject{User: u}))
}

// ForgetNet forgets the failures of exactly that network.
func (h *History) ForgetNet(net netip.Prefix) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.nets.Remove(h.hash(Subject{Net: net}))
}

// window counts events within a length of time, approximately: those of this period, and of
// the period before as many as the length still reaches into. It has eight bytes, because
// there are many.
type window struct {
	period      uint32
	now, before uint16
}

// at returns the window as it is at a time.
func (w window) at(t, length time.Duration) window {
	switch period := uint32(t / length); {
	case period == w.period:
		return w
	case period == w.period+1:
		return window{period: period, before: w.now}
	default:
		return window{period: period}
	}
}

func (w window) count(t, length time.Duration) int {
	w = w.at(t, length)
	left := length - t%length
	return int(w.now) + int(float64(w.before)*float64(left)/float64(length))
}

func (w window) add(t, length time.Duration) window { return w.raise(w.count(t, length)+1, t, length) }

// raise brings the count up to n, if it is lower.
func (w window) raise(n int, t, length time.Duration) window {
	w = w.at(t, length)
	if missing := n - w.count(t, length); missing > 0 {
		w.now = uint16(min(int(w.now)+missing, math.MaxUint16))
	}
	return w
}
