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

// connUse says for whom a connection is. They never mix: what the gateway asks for
// itself may change what a backend says from then on.
type connUse uint8

const (
	clientUse connUse = iota
	gatewayUse
	connUses
)

// userEntry is one user's part of the pool.
type userEntry struct {
	name identity.User // Set once.

	// Guarded by the Pool's mu.
	credentials       []*credential              // one for each credential in use
	connCounts        [connUses]int              // connections, and logins that have a place
	formerCredentials map[[sha256.Size]byte]bool // credentials that another was taken after; at most maxFormerCredentials
}

// credential is one credential of one user: whom connections may be handed to.
type credential struct {
	// Set once.
	user      *userEntry
	loginName string            // the name as it is sent
	mac       [sha256.Size]byte // of user, login, password and token; all of a master's logins are alike
	isToken   bool              // it is a bearer token, of which a user has any number

	// Guarded by the Pool's mu.
	refs         int                     // Accounts, connections, and logins that have a place
	accountCount int                     // Accounts
	verifiedHere bool                    // the gateway vouches for logins with it
	idle         [connUses][]*pooledConn // who came last at the end; at most MaxIdlePerCredential each
	verifiedAt   time.Time               // when the backend was last asked, and said yes
	generation   int                     // grows with each doubt: what is older waits no more
}

// pooledConn is a connection of the Pool's.
type pooledConn struct {
	// Set once.
	lease.Conn
	cred       *credential
	use        connUse
	generation int // of the owner when it was logged in

	// Owned by whoever has it; guarded by the Pool's mu while it waits.
	loginOK    upstream.OK // of its login, until somebody is told
	lastAnswer time.Time   // when it last answered
	idleSince  time.Time   // when it began to wait

	idleElem *list.Element // Guarded by the Pool's mu. In Pool.idle; nil: somebody has it.
}

// keepLoginAlerts keeps what the backend said to the login for the user's eyes, where that
// was no client's: the session that has the connection passes it on.
func (pc *pooledConn) keepLoginAlerts() {
	for response := range bytes.Lines(pc.loginOK.AppendUntagged(nil)) {
		pc.KeepAlert(response)
	}
	pc.loginOK = upstream.OK{}
}

// credentialMAC is what a credential is known by: two tokens are two credentials, and a
// token is never a password. The secrets themselves are not kept for connections
// that wait.
func (p *Pool) credentialMAC(req upstream.Request) (sum [sha256.Size]byte) {
	password, token := req.Password.Reveal(), req.Token.Reveal()
	if p.backend.UsesMasterLogin() {
		password, token = "", ""
	}
	h := hmac.New(sha256.New, p.secret[:])
	for _, part := range [...]string{req.User.String(), req.Login, password, token} {
		var n [8]byte // one part must not be taken for the next
		binary.BigEndian.PutUint64(n[:], uint64(len(part)))
		h.Write(n[:])
		h.Write([]byte(part))
	}
	h.Sum(sum[:0])
	return sum
}

// addAccount finds or makes the owner of a login, for one Account more.
func (p *Pool) addAccount(req upstream.Request) *credential {
	mac := p.credentialMAC(req)
	p.mu.Lock()
	defer p.mu.Unlock()
	u := p.users[req.User]
	if u == nil {
		u = &userEntry{name: req.User}
		p.users[req.User] = u
	}
	cred := u.findCredential(req.Login, mac)
	if cred == nil {
		cred = &credential{user: u, loginName: req.Login, mac: mac, isToken: !req.Token.IsZero()}
		u.credentials = append(u.credentials, cred)
	}
	cred.refs++
	cred.accountCount++
	return cred
}

func (u *userEntry) findCredential(login string, mac [sha256.Size]byte) *credential {
	for _, cred := range u.credentials {
		if cred.loginName == login && hmac.Equal(cred.mac[:], mac[:]) { // in constant time
			return cred
		}
	}
	return nil
}

// removeAccount is the end of an Account. What waits for its owner stays, unless nobody
// who comes could have it without bringing a connection of their own.
func (p *Pool) removeAccount(cred *credential) {
	var unusable []*pooledConn
	p.mu.Lock()
	cred.accountCount--
	if cred.accountCount == 0 && !p.canReuseLogin(cred) {
		unusable = p.removeIdleOf(cred)
	}
	p.unref(cred)
	p.mu.Unlock()
	p.discardAll(unusable, metrics.DiscardTTL)
}

// canReuseLogin says whether a later login may be proven by what waits. mu is held.
func (p *Pool) canReuseLogin(cred *credential) bool {
	return p.isCacheable(cred) || cred.verifiedHere || p.backend.UsesMasterLogin()
}

// isCacheable says whether what the backend has said of a credential is believed
// for a while. Not of a token: it has an end of its own, which only the backend
// knows.
func (p *Pool) isCacheable(cred *credential) bool { return p.cfg.CacheCredentials && !cred.isToken }

// unref lets go of an owner. mu is held.
func (p *Pool) unref(cred *credential) {
	if cred.refs--; cred.refs > 0 {
		return
	}
	u := cred.user
	u.credentials = slices.DeleteFunc(u.credentials, func(other *credential) bool { return other == cred })
	if len(u.credentials) == 0 {
		delete(p.users, u.name)
	}
}

// cachedLogin says whether a login is proven without asking the backend, and what
// the backend can do.
func (p *Pool) cachedLogin(cred *credential, verification Verification) (imap.Caps, bool) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if verification == VerifiedHere {
		cred.verifiedHere = true
	} else if !p.isCacheable(cred) || now.Sub(cred.verifiedAt) >= p.cfg.CredentialTTL {
		return imap.Caps{}, false
	}
	for _, pc := range slices.Backward(cred.idle[clientUse]) {
		if p.isUsable(pc, now) {
			return pc.Caps(), true
		}
	}
	return imap.Caps{}, false
}

// isUsable says whether a waiting connection may still be used. mu is held.
func (p *Pool) isUsable(pc *pooledConn, now time.Time) bool {
	return now.Sub(pc.idleSince) < p.cfg.IdleTimeout && pc.Age() < p.cfg.MaxAge
}

func (p *Pool) generation(cred *credential) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return cred.generation
}

// removeIdleOf takes all that waits for an owner. mu is held.
func (p *Pool) removeIdleOf(cred *credential) (removed []*pooledConn) {
	for k := range cred.idle {
		removed = append(removed, cred.idle[k]...)
	}
	for _, pc := range removed {
		p.removeIdle(pc)
	}
	return removed
}

// removeAllIdle takes all that waits. mu is held.
func (p *Pool) removeAllIdle() (removed []*pooledConn) {
	for e := p.idle.Front(); e != nil; e = p.idle.Front() {
		pc := e.Value.(*pooledConn)
		p.removeIdle(pc)
		removed = append(removed, pc)
	}
	return removed
}

// removeIdle makes a waiting connection the caller's. mu is held.
func (p *Pool) removeIdle(pc *pooledConn) {
	p.idle.Remove(pc.idleElem)
	pc.idleElem = nil
	idle := &pc.cred.idle[pc.use]
	i := slices.Index(*idle, pc)
	*idle = slices.Delete(*idle, i, i+1)
	p.hooks.OnIdleChange(-1)
}

// addIdle makes a clean connection wait for its owner. It may be another one that
// must go.
func (p *Pool) addIdle(pc *pooledConn) {
	pc.keepLoginAlerts()
	pc.ReleaseBuffers()
	p.mu.Lock()
	evicted, reason := pc, ""
	switch idle := &pc.cred.idle[pc.use]; {
	case p.closed:
		reason = metrics.DiscardShutdown
	case pc.generation != pc.cred.generation:
		reason = metrics.DiscardCredentials
	default:
		if evicted = nil; len(*idle) >= p.cfg.MaxIdlePerCredential {
			evicted, reason = (*idle)[0], metrics.DiscardLimit
			p.removeIdle(evicted)
		}
		*idle = append(*idle, pc)
		pc.idleElem = p.idle.PushBack(pc)
		p.hooks.OnIdleChange(1)
		p.serveQueue()
	}
	p.mu.Unlock()
	p.discard(evicted, reason)
}
