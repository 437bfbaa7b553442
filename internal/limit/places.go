package limit

import (
	"net/netip"
	"sync"

	"imapgate/internal/identity"
)

// kind is what a number is the number of.
type kind uint8

const (
	addressConns    kind = iota // connections of an address, at this gateway
	addressLobby                // those before the login
	allSessions                 // from here on: sessions, shared with the other gateways
	addressSessions             //
	userSessions                //
	pairSessions                // of a user from an address
)

func (k kind) shared() bool { return k >= allSessions }

// place names one number.
type place struct {
	kind kind
	user identity.User
	net  netip.Prefix
}

// bounded is a place with its limit.
type bounded struct {
	place
	limit  int
	reason Reason
}

func (b bounded) refusal() *Refusal { return &Refusal{Reason: b.reason, Net: b.net} }

// held is how many are at a place. An entry lives while there are any, or while
// Redis has yet to be told that there are none.
type held struct {
	n       int32
	dirty   bool   // Redis may have another number
	version uint64 // of what Redis was last told
	wrote   int64  // when, in nanoseconds of the gate
}

// places counts who is there. It is bounded by the connections there are, and by
// maxDirty of those that have left while Redis was away.
type places struct {
	// Guarded by mu.
	mu      sync.Mutex
	held    map[place]*held
	dirty   map[place]*held
	version uint64
}

// take takes all of the places or, when one is full, none.
func (p *places) take(want []bounded) *Refusal {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range want {
		if h := p.held[b.place]; b.limit > 0 && h != nil && int(h.n) >= b.limit {
			return b.refusal()
		}
	}
	for _, b := range want {
		h := p.held[b.place]
		if h == nil {
			h = &held{}
			p.held[b.place] = h
		}
		h.n++
	}
	return nil
}

// give gives places back, and says whether there is something to tell Redis.
func (p *places) give(back []bounded) (dirty bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range back {
		h := p.held[b.place]
		if h == nil || h.n == 0 {
			panic("limit: a place was given back twice")
		}
		h.n--
		if b.kind.shared() && h.version > 0 {
			p.soil(b.place, h)
			dirty = true
		}
		if h.n == 0 && !h.dirty {
			delete(p.held, b.place)
		}
	}
	return dirty
}

// soil notes that Redis must be told of a place. Beyond maxDirty it is not: what
// Redis has is then forgotten there when nobody renews it.
func (p *places) soil(at place, h *held) {
	if !h.dirty && len(p.dirty) < maxDirty {
		h.dirty = true
		p.dirty[at] = h
	}
}

// count is how many are at a place.
func (p *places) count(at place) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if h := p.held[at]; h != nil {
		return int(h.n)
	}
	return 0
}
