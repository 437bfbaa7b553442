// Package ban has the networks that are banned, as far as this gateway knows. IPv4 addresses
// and IPv6 networks of 64 bits are banned, a /48 when many of its networks are, and whatever
// network an operator names.
package ban

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/identity"
)

const (
	// Max bounds the banned networks. A ban is never forgotten to make room: neighbors are
	// merged into the network around them.
	Max = 64 << 10
	// ManyNeighbors is how many banned networks of 64 bits ban the one of 48.
	ManyNeighbors = 8
	// remembered is how long after its end a ban makes the next one of its network longer.
	remembered = 24 * time.Hour
)

// Widths that neighbors are merged into, in this order. Constant.
var (
	mergeBits4 = [...]int{24, 16, 8}
	mergeBits6 = [...]int{48, 32, 16}
)

// ErrNoRoom is the error of a ban for which there is no room.
var ErrNoRoom = errors.New("the table of bans is full of those made by hand")

// Ban is one banned network.
type Ban struct {
	Net       netip.Prefix
	Reason    event.BanReason
	Remaining time.Duration // below 0: since it ended
	Count     int           // number of bans of this network, this one included
	Active    bool          // a user has logged in from there recently: not refused before the user is known
	Note      string        // of an operator
}

// entry is a ban, or one that has ended and makes the next one longer.
type entry struct {
	until  time.Duration // since Table.began
	count  int
	reason event.BanReason
	active bool
	note   string
}

// Table has the bans. Its times are monotonic: no step of the clock ends a ban.
type Table struct {
	// Set once.
	began time.Time

	// Guarded by mu.
	mu        sync.RWMutex
	nets      map[netip.Prefix]entry
	widths    map[int]int           // networks of each width; 1000 is added for IPv6
	inside    map[netip.Prefix]int  // entries of 64 bits in each /48
	unwritten map[netip.Prefix]bool // bans that Redis does not have yet
}

// New returns an empty Table.
func New() *Table {
	return &Table{
		began: time.Now(), nets: make(map[netip.Prefix]entry), widths: make(map[int]int),
		inside: make(map[netip.Prefix]int), unwritten: make(map[netip.Prefix]bool),
	}
}

func (t *Table) now() time.Duration { return time.Since(t.began) }

func width(p netip.Prefix) int {
	if p.Addr().Is4() {
		return p.Bits()
	}
	return 1000 + p.Bits()
}

// Find returns the ban of an address, of several the longest.
func (t *Table) Find(a netip.Addr) (longest Ban, ok bool) {
	now := t.now()
	t.mu.RLock()
	defer t.mu.RUnlock()
	for w := range t.widths {
		if w >= 1000 == a.Is4() {
			continue
		}
		net, _ := a.Prefix(w % 1000)
		if e, ok := t.nets[net]; ok && e.until-now > longest.Remaining {
			longest = e.ban(net, now)
		}
	}
	return longest, longest.Remaining > 0
}

func (e entry) ban(net netip.Prefix, now time.Duration) Ban {
	return Ban{Net: net, Reason: e.reason, Remaining: e.until - now, Count: e.count, Active: e.active, Note: e.note}
}

// Impose bans a network for first, twice as long for each earlier ban, up to longest. A ban
// that has not ended stays as it is.
func (t *Table) Impose(b Ban, first, longest time.Duration) (Ban, bool) {
	now := t.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	old, known := t.nets[b.Net]
	if known && old.until > now {
		return old.ban(b.Net, now), false
	}
	b.Count = 1
	if known && old.until+remembered > now {
		b.Count = old.count + 1
	}
	b.Remaining = min(first, longest)
	for i := 1; i < b.Count && b.Remaining < longest; i++ {
		b.Remaining = min(2*b.Remaining, longest)
	}
	if t.set(b, now) != nil {
		return Ban{}, false
	}
	return b, true
}

// Put enters a ban as an operator or another gateway has decided it. One that ended more than
// a day ago is left out.
func (t *Table) Put(b Ban) error {
	now := t.now()
	if b.Remaining <= -remembered {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.set(b, now)
}

// set is called with mu held. A full table is merged, where it can be, before a further
// network is entered.
func (t *Table) set(b Ban, now time.Duration) error {
	if _, ok := t.nets[b.Net]; !ok {
		if len(t.nets) >= Max {
			t.compact(now)
		}
		if len(t.nets) >= Max {
			return ErrNoRoom
		}
		t.widths[width(b.Net)]++
		if up, ok := parent(b.Net); ok {
			t.inside[up]++
		}
	}
	t.nets[b.Net] = entry{now + b.Remaining, b.Count, b.Reason, b.Active, b.Note}
	delete(t.unwritten, b.Net)
	return nil
}

// parent returns the /48 of a /64.
func parent(net netip.Prefix) (up netip.Prefix, ok bool) {
	if net.Addr().Is4() || net.Bits() != 64 {
		return up, false
	}
	return identity.Network(net.Addr(), 24, 48), true
}

// remove is called with mu held.
func (t *Table) remove(net netip.Prefix) {
	delete(t.nets, net)
	delete(t.unwritten, net)
	if t.widths[width(net)]--; t.widths[width(net)] == 0 {
		delete(t.widths, width(net))
	}
	if up, ok := parent(net); ok {
		if t.inside[up]--; t.inside[up] == 0 {
			delete(t.inside, up)
		}
	}
}

// CrowdedParent returns the /48 that is to be banned because so many networks in it are.
func (t *Table) CrowdedParent(net netip.Prefix) (up netip.Prefix, ok bool) {
	if up, ok = parent(net); !ok {
		return up, false
	}
	now := t.now()
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.inside[up] < ManyNeighbors || t.nets[up].until > now {
		return up, false
	}
	n := 0
	for net, e := range t.nets {
		if e.until > now && net.Bits() == 64 && up.Contains(net.Addr()) {
			n++
		}
	}
	return up, n >= ManyNeighbors
}

// compact makes room, with mu held: bans that have ended go first, then neighbors are merged,
// into ever wider networks, until an eighth of the table is free.
func (t *Table) compact(now time.Duration) {
	for net, e := range t.nets {
		if e.until <= now {
			t.remove(net)
		}
	}
	for i := range mergeBits4 {
		if len(t.nets) <= Max*7/8 {
			return
		}
		t.merge(mergeBits4[i], mergeBits6[i])
	}
}

// merge replaces networks by the wider one that they share. Bans of an operator stay.
func (t *Table) merge(bits4, bits6 int) {
	parts := make(map[netip.Prefix][]netip.Prefix)
	for net, e := range t.nets {
		if up := identity.Network(net.Addr(), bits4, bits6); e.reason != event.BanOperator && up.Bits() < net.Bits() {
			parts[up] = append(parts[up], net)
		}
	}
	for up, nets := range parts {
		if len(nets) < 2 {
			continue
		}
		merged := t.nets[up]
		merged.reason, merged.active = event.BanMerged, true // there may be users: refused when it is known who it is
		for _, net := range nets {
			e := t.nets[net]
			merged.until, merged.count = max(merged.until, e.until), max(merged.count, e.count)
			t.remove(net)
		}
		if _, ok := t.nets[up]; !ok {
			t.widths[width(up)]++
		}
		t.nets[up] = merged
	}
}

// Lift ends every ban that overlaps net, and forgets its history. It returns those that had
// not ended.
func (t *Table) Lift(net netip.Prefix) (lifted []netip.Prefix) {
	now := t.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for n, e := range t.nets {
		if !n.Overlaps(net) {
			continue
		}
		if e.until > now {
			lifted = append(lifted, n)
		}
		t.remove(n)
	}
	return lifted
}

// KeepOnly removes the bans that Redis does not have: an operator may have ended them while
// this gateway did not listen.
func (t *Table) KeepOnly(inRedis map[netip.Prefix]bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for net, e := range t.nets {
		if !inRedis[net] && e.reason != event.BanMerged && !t.unwritten[net] {
			t.remove(net)
		}
	}
}

// MarkUnwritten notes that Redis does not have a ban.
func (t *Table) MarkUnwritten(nets ...netip.Prefix) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, net := range nets {
		t.unwritten[net] = true
	}
}

// MarkAllUnwritten notes that Redis has lost all bans.
func (t *Table) MarkAllUnwritten() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for net, e := range t.nets {
		if e.reason != event.BanMerged {
			t.unwritten[net] = true
		}
	}
}

// TakeUnwritten returns some of the bans that Redis does not have, and unmarks them.
func (t *Table) TakeUnwritten(most int) (some []Ban) {
	now := t.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for net := range t.unwritten {
		if len(some) == most {
			break
		}
		delete(t.unwritten, net)
		if e, ok := t.nets[net]; ok && e.until > now {
			some = append(some, e.ban(net, now))
		}
	}
	return some
}

// Len returns the number of bans that have not ended.
func (t *Table) Len() (n int) {
	now := t.now()
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, e := range t.nets {
		if e.until > now {
			n++
		}
	}
	return n
}

// Bans returns the bans that have not ended, in the order of their ends.
func (t *Table) Bans() (all []Ban) {
	now := t.now()
	t.mu.RLock()
	defer t.mu.RUnlock()
	for net, e := range t.nets {
		if e.until > now {
			all = append(all, e.ban(net, now))
		}
	}
	Sort(all)
	return all
}

// Sort sorts bans by their ends.
func Sort(all []Ban) {
	slices.SortFunc(all, func(a, b Ban) int {
		return cmp.Or(cmp.Compare(a.Remaining, b.Remaining), a.Net.Addr().Compare(b.Net.Addr()))
	})
}
