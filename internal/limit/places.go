package limit

import (
	"net/netip"
	"sync"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/identity"
)

// kind is what a number is the number of.
type kind uint8

const (
	addressConns    kind = iota // connections of an address, at this gateway
	addressLobby                // those before the login
	siteLobby                   // the same, of an IPv6 /56
	blockLobby                  // of an IPv4 /24 or IPv6 /48
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
	reason event.Limit
}

func (b bounded) refusal() *Refusal { return &Refusal{Reason: b.reason, Net: b.net} }

// held is how many are at a place, and what of it Redis knows. An entry lives
// while there are any, or while there is something to settle with Redis.
type held struct {
	n       int32
	flying  int32         // questions to Redis about it that are under way, or are about to be
	owed    int32         // have left, and Redis has not been told
	unsure  bool          // Redis may have another number: it is told the whole one when nothing is flying
	settled time.Duration // when it last was, or when the entry was made
}

func (h *held) dirty() bool { return h.unsure || h.owed > 0 }

// places counts who is there. It is bounded by the connections there are, and by
// maxDirty places that were left while Redis was away.
type places struct {
	// Guarded by mu.
	mu      sync.Mutex
	held    map[place]*held
	dirty   map[place]*held // those that flush is to write
	version int64           // of what Redis is told: it only grows
}

// take takes all of the places or, when one is full, none. What is taken of
// shared places is flying until settle.
func (p *places) take(want []bounded, t time.Duration) *Refusal {
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
			h = &held{settled: t}
			p.held[b.place] = h
		}
		h.n++
		if b.kind.shared() {
			h.flying++
		}
	}
	return nil
}

// outcome is what Redis said of one place of a session, in the numbers of
// leaseScript.
type outcome uint8

const (
	granted outcome = iota
	denied
	spared  // nothing was taken, for another place was full
	unheard // nothing; nobody knows what it did
)

// settle ends what take began, once Redis has said what it has to. When one
// place was denied all are given back, and what was not taken down of those who
// have left is owed again.
func (p *places) settle(notes []note, said []outcome, in bool) (dirty bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, n := range notes {
		h := p.held[n.place]
		h.flying--
		switch {
		case said[i] == unheard:
			h.unsure = true
		case said[i] != granted:
			h.owed += 1 - n.n
		case !in:
			h.owed++
		}
		if !in {
			h.n--
		}
		dirty = p.sweep(n.place, h) || dirty
	}
	return dirty
}

// landed ends, where nobody else counts, what take began.
func (p *places) landed(want []bounded) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range want {
		p.held[b.place].flying--
	}
}

// give gives places back. Of those that are told to others it says whether there
// is something to tell.
func (p *places) give(back []bounded, told bool) (dirty bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range back {
		h := p.held[b.place]
		if h == nil || h.n == 0 {
			panic("limit: a place was given back twice")
		}
		h.n--
		if told && b.kind.shared() {
			h.owed++
		}
		dirty = p.sweep(b.place, h) || dirty
	}
	return dirty
}

// sweep puts a place where it belongs after a change, with mu held: on the list
// for flush, or out of the table. What finds no room on the list is left to the
// time after which nobody believes the number in Redis.
func (p *places) sweep(at place, h *held) (dirty bool) {
	_, listed := p.dirty[at]
	if h.dirty() && !listed && len(p.dirty) < maxDirty {
		p.dirty[at] = h
		listed = true
	}
	if h.n == 0 && h.flying == 0 && !listed {
		delete(p.held, at)
	}
	return listed
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
