// Package counter counts the connections and sessions of this gateway, and compares them with
// their limits.
package counter

import (
	"net/netip"
	"sync"

	"imapgate/internal/event"
	"imapgate/internal/identity"
)

// Scope is what a count is the count of.
type Scope uint8

// The scopes. Preauth are connections before the login.
const (
	AddressConns   Scope = iota // connections of an address
	AddressPreauth              // of those, before the login
	SitePreauth                 // the same, of an IPv6 /56
	BlockPreauth                // of an IPv4 /24 or IPv6 /48
	AllSessions
	AddressSessions
	UserSessions
	PairSessions // of a user from an address
)

// Key names a count.
type Key struct {
	Scope Scope
	User  identity.User
	Net   netip.Prefix
}

// Bound is a count with its limit, 0 for none, and the reason of a refusal.
type Bound struct {
	Key
	Limit  int
	Reason event.Limit
}

// Table has the counts. They are as many as there are connections at most. The zero Table is
// empty.
type Table struct {
	// Guarded by mu.
	mu     sync.Mutex
	counts map[Key]int
}

// Acquire adds one to all counts or, if a limit is reached, to none. It returns that Bound.
func (t *Table) Acquire(bounds []Bound) *Bound {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.counts == nil {
		t.counts = make(map[Key]int)
	}
	for _, b := range bounds {
		if b.Limit > 0 && t.counts[b.Key] >= b.Limit {
			return &b
		}
	}
	for _, b := range bounds {
		t.counts[b.Key]++
	}
	return nil
}

// Release ends what Acquire began.
func (t *Table) Release(bounds []Bound) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, b := range bounds {
		n, ok := t.counts[b.Key]
		switch {
		case !ok:
			panic("counter: released twice")
		case n == 1:
			delete(t.counts, b.Key)
		default:
			t.counts[b.Key] = n - 1
		}
	}
}

// Count returns one count.
func (t *Table) Count(k Key) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.counts[k]
}

// Sum returns the sum of all counts, 0 if there are no connections.
func (t *Table) Sum() (sum int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range t.counts {
		sum += n
	}
	return sum
}
