// Package ban has the networks that are banned, as far as this gateway knows. IPv4 addresses
// and IPv6 networks of 64 bits are banned, a /48 when many of its networks are, and whatever
// network an operator names.
package ban

import (
	"cmp"
	"errors"
	"maps"
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
	Ban                     // but for Remaining
	until     time.Duration // since Table.began
	unwritten bool          // Redis does not have it yet
}

// Table has the bans. Its times are monotonic: no step of the clock ends a ban.
type Table struct {
	// Set once.
	began time.Time

	// Guarded by mu.
	mu   sync.RWMutex
	nets map[netip.Prefix]entry
}

// New returns an empty Table.
func New() *Table { return &Table{began: time.Now(), nets: make(map[netip.Prefix]entry)} }

func (t *Table) now() time.Duration { return time.Since(t.began) }

// Find returns the ban of an address, of several the longest.
func (t *Table) Find(a netip.Addr) (longest Ban, ok bool) {
	now := t.now()
	t.mu.RLock()
	defer t.mu.RUnlock()
	for bits := range a.BitLen() + 1 {
		net, _ := a.Prefix(bits)
		if e, ok := t.nets[net]; ok && e.until-now > longest.Remaining {
			longest = e.at(now)
		}
	}
	return longest, longest.Remaining > 0
}

// at returns a ban as it is at a time.
func (e entry) at(now time.Duration) Ban {
	e.Remaining = e.until - now
	return e.Ban
}

// Impose bans a network for first, twice as long for each earlier ban, up to longest. A ban
// that has not ended stays as it is. Redis does not have the ban until Put or MarkWritten.
func (t *Table) Impose(b Ban, first, longest time.Duration) (Ban, bool) {
	now := t.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	old, known := t.nets[b.Net]
	if known && old.until > now {
		return old.at(now), false
	}
	b.Count = 1
	if known && old.until+remembered > now {
		b.Count = old.Count + 1
	}
	b.Remaining = min(first, longest)
	for i := 1; i < b.Count && b.Remaining < longest; i++ {
		b.Remaining = min(2*b.Remaining, longest)
	}
	return b, t.set(entry{Ban: b, until: now + b.Remaining, unwritten: true}) == nil
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
	return t.set(entry{Ban: b, until: now + b.Remaining})
}

// set is called with mu held. A full table is merged, where it can be, before a further
// network is entered.
func (t *Table) set(e entry) error {
	if _, ok := t.nets[e.Net]; !ok && len(t.nets) >= Max {
		t.compact(t.now())
		if len(t.nets) >= Max {
			return ErrNoRoom
		}
	}
	t.nets[e.Net] = e
	return nil
}

// CrowdedParent returns the /48 that is to be banned because so many networks of 64 bits in it
// are.
func (t *Table) CrowdedParent(net netip.Prefix) (up netip.Prefix, ok bool) {
	if net.Bits() != 64 {
		return up, false
	}
	now := t.now()
	t.mu.RLock()
	defer t.mu.RUnlock()
	up = identity.Network(net.Addr(), 24, 48)
	if t.nets[up].until > now {
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
	maps.DeleteFunc(t.nets, func(_ netip.Prefix, e entry) bool { return e.until <= now })
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
		if up := identity.Network(net.Addr(), bits4, bits6); e.Reason != event.BanOperator && up.Bits() < net.Bits() {
			parts[up] = append(parts[up], net)
		}
	}
	for up, nets := range parts {
		if len(nets) < 2 {
			continue
		}
		merged := t.nets[up]
		merged.Net, merged.Reason, merged.Active = up, event.BanMerged, true // there may be users: refused when it is known who it is
		for _, net := range nets {
			e := t.nets[net]
			merged.until, merged.Count = max(merged.until, e.until), max(merged.Count, e.Count)
			delete(t.nets, net)
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
		delete(t.nets, n)
	}
	return lifted
}

// KeepOnly removes the bans that Redis does not have: an operator may have ended them while
// this gateway did not listen.
func (t *Table) KeepOnly(inRedis map[netip.Prefix]bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.DeleteFunc(t.nets, func(net netip.Prefix, e entry) bool {
		return !inRedis[net] && e.Reason != event.BanMerged && !e.unwritten
	})
}

// MarkAllUnwritten notes that Redis has lost all bans.
func (t *Table) MarkAllUnwritten() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for net, e := range t.nets {
		e.unwritten = e.unwritten || e.Reason != event.BanMerged
		t.nets[net] = e
	}
}

// Unwritten returns some of the bans that Redis does not have.
func (t *Table) Unwritten(most int) (some []Ban) {
	now := t.now()
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, e := range t.nets {
		if e.unwritten && e.until > now && len(some) < most {
			some = append(some, e.at(now))
		}
	}
	return some
}

// MarkWritten notes that Redis has some bans.
func (t *Table) MarkWritten(bans []Ban) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, b := range bans {
		if e, ok := t.nets[b.Net]; ok {
			e.unwritten = false
			t.nets[b.Net] = e
		}
	}
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
	for _, e := range t.nets {
		if e.until > now {
			all = append(all, e.at(now))
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
