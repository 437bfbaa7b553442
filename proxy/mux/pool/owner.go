package pool

import (
	"bytes"
	"container/list"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"time"

	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/internal/metrics"
	"imapgate/proxy/mux/lease"
	"imapgate/proxy/upstream"
)

// kind says for whom a connection is. They never mix: what the gateway asks for
// itself may change what a backend says from then on.
type kind uint8

const (
	forClient kind = iota
	forUs
	kinds
)

// user is one user's part of the pool.
type user struct {
	name identity.User // Set once.

	// Guarded by the Pool's mu.
	owners []*owner                   // one for each credential in use
	count  [kinds]int                 // connections, and logins that have a place
	former map[[sha256.Size]byte]bool // credentials that another was taken after; at most maxFormer
}

// owner is one credential of one user: whom connections may be handed to.
type owner struct {
	// Set once.
	user  *user
	login string            // the name as it is sent
	mac   [sha256.Size]byte // of user, login, password and token; all of a master's logins are alike
	token bool              // it is a bearer token, of which a user has any number

	// Guarded by the Pool's mu.
	refs     int            // Accounts, connections, and logins that have a place
	accounts int            // Accounts
	vouched  bool           // the gateway vouches for logins with it
	waiting  [kinds][]*held // who came last at the end; at most IdlePerAccount each
	verified time.Time      // when the backend was last asked, and said yes
	term     int            // grows with each doubt: what is older waits no more
}

// held is a connection of the Pool's.
type held struct {
	// Set once.
	lease.Conn
	owner *owner
	kind  kind
	term  int // of the owner when it was logged in

	// Owned by whoever has it; guarded by the Pool's mu while it waits.
	ok    upstream.OK // of its login, until somebody is told
	heard time.Time   // when it last answered
	since time.Time   // when it began to wait

	waiting *list.Element // Guarded by the Pool's mu. In Pool.idle; nil: somebody has it.
}

// keepAlerts keeps what the backend said to the login for the user's eyes, where that
// was no client's: the session that has the connection passes it on.
func (h *held) keepAlerts() {
	for response := range bytes.Lines(h.ok.AppendUntagged(nil)) {
		h.Heed(response)
	}
	h.ok = upstream.OK{}
}

// mac is what a credential is known by: two tokens are two credentials, and a
// token is never a password. The secrets themselves are not kept for connections
// that wait.
func (p *Pool) mac(who upstream.Request) (sum [sha256.Size]byte) {
	password, token := who.Password.Reveal(), who.Token.Reveal()
	if p.backend.Master() {
		password, token = "", ""
	}
	h := hmac.New(sha256.New, p.secret[:])
	for _, part := range [...]string{who.User.String(), who.Login, password, token} {
		var n [8]byte // one part must not be taken for the next
		binary.BigEndian.PutUint64(n[:], uint64(len(part)))
		h.Write(n[:])
		h.Write([]byte(part))
	}
	h.Sum(sum[:0])
	return sum
}

// enrol finds or makes the owner of a login, for one Account more.
func (p *Pool) enrol(who upstream.Request) *owner {
	mac := p.mac(who)
	p.mu.Lock()
	defer p.mu.Unlock()
	u := p.users[who.User]
	if u == nil {
		u = &user{name: who.User}
		p.users[who.User] = u
	}
	o := u.find(who.Login, mac)
	if o == nil {
		o = &owner{user: u, login: who.Login, mac: mac, token: !who.Token.IsZero()}
		u.owners = append(u.owners, o)
	}
	o.refs++
	o.accounts++
	return o
}

func (u *user) find(login string, mac [sha256.Size]byte) *owner {
	for _, o := range u.owners {
		if o.login == login && hmac.Equal(o.mac[:], mac[:]) { // in constant time
			return o
		}
	}
	return nil
}

// forgo is the end of an Account. What waits for its owner stays, unless nobody
// who comes could have it without bringing a connection of their own.
func (p *Pool) forgo(o *owner) {
	var useless []*held
	p.mu.Lock()
	o.accounts--
	if o.accounts == 0 && !p.believes(o) {
		useless = p.takeOf(o)
	}
	p.unref(o)
	p.mu.Unlock()
	p.discardAll(useless, metrics.DiscardTTL)
}

// believes says whether a later login may be proven by what waits. mu is held.
func (p *Pool) believes(o *owner) bool {
	return p.remembers(o) || o.vouched || p.backend.Master()
}

// remembers says whether what the backend has said of a credential is believed
// for a while. Not of a token: it has an end of its own, which only the backend
// knows.
func (p *Pool) remembers(o *owner) bool { return p.cfg.CredCache && !o.token }

// unref lets go of an owner. mu is held.
func (p *Pool) unref(o *owner) {
	if o.refs--; o.refs > 0 {
		return
	}
	u := o.user
	u.owners = slices.DeleteFunc(u.owners, func(other *owner) bool { return other == o })
	if len(u.owners) == 0 {
		delete(p.users, u.name)
	}
}

// believed says whether a login is proven without asking the backend, and what
// the backend can do.
func (p *Pool) believed(o *owner, proof Proof) (imap.Caps, bool) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if proof == Vouched {
		o.vouched = true
	} else if !p.remembers(o) || now.Sub(o.verified) >= p.cfg.CredTTL {
		return imap.Caps{}, false
	}
	for _, h := range slices.Backward(o.waiting[forClient]) {
		if p.fresh(h, now) {
			return h.Caps(), true
		}
	}
	return imap.Caps{}, false
}

// fresh says whether a waiting connection may still be used. mu is held.
func (p *Pool) fresh(h *held, now time.Time) bool {
	return now.Sub(h.since) < p.cfg.ReuseTTL && h.Age() < p.cfg.MaxAge
}

func (p *Pool) term(o *owner) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return o.term
}

// takeOf takes all that waits for an owner. mu is held.
func (p *Pool) takeOf(o *owner) (taken []*held) {
	for k := range o.waiting {
		taken = append(taken, o.waiting[k]...)
	}
	for _, h := range taken {
		p.take(h)
	}
	return taken
}

// takeAll takes all that waits. mu is held.
func (p *Pool) takeAll() (taken []*held) {
	for e := p.idle.Front(); e != nil; e = p.idle.Front() {
		h := e.Value.(*held)
		p.take(h)
		taken = append(taken, h)
	}
	return taken
}

// take makes a waiting connection the caller's. mu is held.
func (p *Pool) take(h *held) {
	p.idle.Remove(h.waiting)
	h.waiting = nil
	list := &h.owner.waiting[h.kind]
	i := slices.Index(*list, h)
	*list = slices.Delete(*list, i, i+1)
	p.hooks.Waiting(-1)
}

// put makes a clean connection wait for its owner. It may be another one that
// must go.
func (p *Pool) put(h *held) {
	h.keepAlerts()
	h.Relax()
	p.mu.Lock()
	out, reason := h, ""
	switch list := &h.owner.waiting[h.kind]; {
	case p.closed:
		reason = metrics.DiscardShutdown
	case h.term != h.owner.term:
		reason = metrics.DiscardCredentials
	default:
		if out = nil; len(*list) >= p.cfg.IdlePerAccount {
			out, reason = (*list)[0], metrics.DiscardLimit
			p.take(out)
		}
		*list = append(*list, h)
		h.waiting = p.idle.PushBack(h)
		p.hooks.Waiting(1)
		p.serve()
	}
	p.mu.Unlock()
	p.discard(out, reason)
}
