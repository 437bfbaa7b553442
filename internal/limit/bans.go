package limit

import (
	"cmp"
	"errors"
	"imapgate/internal/event"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// maxBans bounds the banned networks. A ban is never forgotten to make room:
	// neighbors are merged into the network around them.
	maxBans = 64 << 10
	// manyBans is how many banned networks of 64 bits make one of 48.
	manyBans = 8
	// remembered is how long the next ban of a network is longer because of the
	// last one, behind its end.
	remembered = 24 * time.Hour
)

// Widths that neighbors are merged into, from narrow to wide. Constant.
var (
	mergeBits4 = [...]int{24, 16, 8}
	mergeBits6 = [...]int{48, 32, 16}
)

var errNoRoom = errors.New("limit: the table of bans is full of those made by hand")

// entry is a ban, or one that is over and makes the next one longer.
type entry struct {
	until time.Duration // of the gate
	count int
	why   event.BanReason
	lived bool
	note  string
}

// banTable is who is banned, as far as this gateway knows.
type banTable struct {
	// Guarded by mu.
	mu     sync.RWMutex
	nets   map[netip.Prefix]entry
	widths map[int]int           // how many there are of each width; IPv6 has 1000 added
	inside map[netip.Prefix]int  // how many /64s of a /48 have an entry
	unsaid map[netip.Prefix]bool // of which Redis has yet to be told
}

func newBanTable() *banTable {
	return &banTable{
		nets: make(map[netip.Prefix]entry), widths: make(map[int]int),
		inside: make(map[netip.Prefix]int), unsaid: make(map[netip.Prefix]bool),
	}
}

func width(p netip.Prefix) int {
	if p.Addr().Is4() {
		return p.Bits()
	}
	return 1000 + p.Bits()
}

// covers gives the ban that an address is under, of several the longest.
func (b *banTable) covers(a netip.Addr, t time.Duration) (Ban, bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	var longest Ban
	for w := range b.widths {
		if w >= 1000 == a.Is4() {
			continue
		}
		net, _ := a.Prefix(w % 1000)
		if e, ok := b.nets[net]; ok && e.until-t > longest.Remaining {
			longest = e.ban(net, t)
		}
	}
	return longest, longest.Remaining > 0
}

func (e entry) ban(net netip.Prefix, t time.Duration) Ban {
	return Ban{Net: net, Reason: e.why, Remaining: e.until - t, Count: e.count, Active: e.lived, Note: e.note}
}

// impose bans a network for first, or for twice as long for each ban before. A
// ban under way stays as it is, and is not imposed again.
func (b *banTable) impose(net netip.Prefix, e entry, f *Failures, t time.Duration) (Ban, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old, known := b.nets[net]
	if known && old.until > t {
		return old.ban(net, t), false
	}
	e.count = 1
	if known && old.until+remembered > t {
		e.count = old.count + 1
	}
	e.until = t + f.banLength(e.count)
	if b.set(net, e, t) != nil {
		return Ban{}, false
	}
	return e.ban(net, t), true
}

// banLength is that of a ban; count says which of its network it is, from 1.
func (f *Failures) banLength(count int) time.Duration {
	d := f.BanDuration
	for range min(count, 32) - 1 {
		if d *= 2; d >= f.MaxBanDuration {
			break
		}
	}
	return min(d, f.MaxBanDuration)
}

// put sets a ban as somebody else has decided it.
func (b *banTable) put(net netip.Prefix, e entry, t time.Duration) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.set(net, e, t)
}

// set is called with mu held. A full table is merged, where it can be, before a
// further network is entered.
func (b *banTable) set(net netip.Prefix, e entry, t time.Duration) error {
	if _, ok := b.nets[net]; !ok {
		if len(b.nets) >= maxBans {
			b.squeeze(t)
		}
		if len(b.nets) >= maxBans {
			return errNoRoom
		}
		b.widths[width(net)]++
		if up, ok := blockOf(net); ok {
			b.inside[up]++
		}
	}
	b.nets[net] = e
	delete(b.unsaid, net) // whoever owes it says so behind this
	return nil
}

// blockOf is the /48 of a /64.
func blockOf(net netip.Prefix) (netip.Prefix, bool) {
	if net.Addr().Is4() || net.Bits() != 64 {
		return netip.Prefix{}, false
	}
	return block(net.Addr()), true
}

// remove is called with mu held.
func (b *banTable) remove(net netip.Prefix) {
	delete(b.nets, net)
	delete(b.unsaid, net)
	if b.widths[width(net)]--; b.widths[width(net)] == 0 {
		delete(b.widths, width(net))
	}
	if up, ok := blockOf(net); ok {
		if b.inside[up]--; b.inside[up] == 0 {
			delete(b.inside, up)
		}
	}
}

// crowded gives the network of 48 bits that is to be banned because so many in
// it are.
func (b *banTable) crowded(net netip.Prefix, t time.Duration) (netip.Prefix, bool) {
	up, ok := blockOf(net)
	if !ok {
		return up, false
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	if b.inside[up] < manyBans || b.nets[up].until > t {
		return up, false
	}
	n := 0
	for net, e := range b.nets {
		if e.until > t && net.Bits() == 64 && up.Contains(net.Addr()) {
			n++
		}
	}
	return up, n >= manyBans
}

// squeeze makes room, with mu held: what is over goes first, then neighbors are
// merged, in ever wider networks, until an eighth of the table is free.
func (b *banTable) squeeze(t time.Duration) {
	for net, e := range b.nets {
		if e.until <= t {
			b.remove(net)
		}
	}
	for i := range mergeBits4 {
		if len(b.nets) <= maxBans*7/8 {
			return
		}
		b.merge(mergeBits4[i], mergeBits6[i])
	}
}

// merge puts a wider network in the place of all that share it. What an operator
// has said stays as it was said.
func (b *banTable) merge(bits4, bits6 int) {
	parts := make(map[netip.Prefix][]netip.Prefix)
	for net, e := range b.nets {
		if up := around(net.Addr(), bits4, bits6); e.why != event.BanOperator && up.Bits() < net.Bits() {
			parts[up] = append(parts[up], net)
		}
	}
	for up, nets := range parts {
		if len(nets) < 2 {
			continue
		}
		whole := b.nets[up]
		whole.why = event.BanMerged
		for _, net := range nets {
			e := b.nets[net]
			whole.until, whole.count = max(whole.until, e.until), max(whole.count, e.count)
			whole.lived = true // somebody may be known in it: wait until it is known who comes
			b.remove(net)
		}
		if _, ok := b.nets[up]; !ok {
			b.widths[width(up)]++
		}
		b.nets[up] = whole
	}
}

// lift ends every ban that has something of net in it, and forgets its history.
func (b *banTable) lift(net netip.Prefix, t time.Duration) (lifted []netip.Prefix) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for n, e := range b.nets {
		if !n.Overlaps(net) {
			continue
		}
		if e.until > t {
			lifted = append(lifted, n)
		}
		b.remove(n)
	}
	return lifted
}

// keepOnly drops what is not in others, which is what Redis has; operators may
// have lifted it while nobody here was listening.
func (b *banTable) keepOnly(others map[netip.Prefix]bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for net, e := range b.nets {
		if !others[net] && e.why != event.BanMerged && !b.unsaid[net] {
			b.remove(net)
		}
	}
}

// owe notes that Redis has yet to be told of a ban.
func (b *banTable) owe(net netip.Prefix) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.unsaid[net] = true
}

// oweAll notes that Redis has lost everything.
func (b *banTable) oweAll() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for net, e := range b.nets {
		if e.why != event.BanMerged {
			b.unsaid[net] = true
		}
	}
}

// owed takes some of the bans that Redis has yet to be told of.
func (b *banTable) owed(t time.Duration) (some []Ban) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for net := range b.unsaid {
		if len(some) == flushBatch {
			break
		}
		delete(b.unsaid, net)
		if e, ok := b.nets[net]; ok && e.until > t {
			some = append(some, e.ban(net, t))
		}
	}
	return some
}

// active are the bans under way, those that end soonest first.
func (b *banTable) active(t time.Duration) (all []Ban) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	for net, e := range b.nets {
		if e.until > t {
			all = append(all, e.ban(net, t))
		}
	}
	sortBans(all)
	return all
}

// sortBans puts those first that end soonest.
func sortBans(all []Ban) {
	slices.SortFunc(all, func(a, b Ban) int {
		return cmp.Or(cmp.Compare(a.Remaining, b.Remaining), a.Net.Addr().Compare(b.Net.Addr()))
	})
}
