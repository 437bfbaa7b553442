package pool

import (
	"bytes"
	"container/list"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/proxy/relay/mux/lease"
	"imapgate/proxy/upstream"
)

// connUse is the purpose of a connection. Purposes never mix: commands of the gateway may
// change the backend's later responses.
type connUse uint8

const (
	clientUse connUse = iota
	gatewayUse
	connUses // number of uses; for findLeased: any use
)

// userEntry is the part of the pool that belongs to one user.
type userEntry struct {
	name identity.User // Set once.

	// Guarded by the Pool's mu.
	credentials       []*credential              // credentials in use
	connCounts        [connUses]int              // connections, and logins that have a slot
	formerCredentials map[[sha256.Size]byte]bool // credentials after which another was accepted; at most maxFormerCredentials
}

// credential is one credential of one user. A connection is reused only by its own credential.
type credential struct {
	// Set once.
	user      *userEntry
	loginName string            // the name as it is sent
	mac       [sha256.Size]byte // of user, login, password and token; for a master login, of user and login
	isToken   bool              // a bearer token, of which a user may have any number

	// Guarded by the Pool's mu.
	refs         int                     // Accounts, connections, and logins that have a slot
	accountCount int                     // Accounts
	verifiedHere bool                    // the gateway has verified logins with it
	idle         [connUses][]*pooledConn // most recent last; at most MaxIdlePerCredential each
	verifiedAt   time.Time               // start of the last login that the backend accepted
	generation   int                     // incremented by each invalidation; older connections are not pooled
}

// pooledConn is a connection of the Pool.
type pooledConn struct {
	// Set once.
	lease.Conn
	cred       *credential
	use        connUse
	generation int // of cred at the login

	// Owned by the lease holder; guarded by the Pool's mu while idle.
	loginOK    upstream.OK // response to its login, until it is forwarded
	lastAnswer time.Time   // time of the last response
	idleSince  time.Time   // start of the idle time

	idleElem *list.Element // Guarded by the Pool's mu. In Pool.idle; nil: leased.
}

// keepLoginAlerts stores the alerts in the response to the login, if no session has forwarded
// them. The session that leases the connection forwards them.
func (pc *pooledConn) keepLoginAlerts() {
	for response := range bytes.Lines(pc.loginOK.AppendUntagged(nil)) {
		pc.KeepAlert(response)
	}
	pc.loginOK = upstream.OK{}
}

// credentialMAC returns the MAC that identifies a credential. Two tokens are two credentials,
// and a token never equals a password. The secrets themselves are not kept for idle
// connections.
func (p *Pool) credentialMAC(req upstream.Request) (sum [sha256.Size]byte) {
	password, token := req.Password.Reveal(), req.Token.Reveal()
	if p.backend.UsesMasterLogin() {
		password, token = "", ""
	}
	h := hmac.New(sha256.New, p.secret[:])
	for _, part := range [...]string{req.User.String(), req.Login, password, token} {
		var n [8]byte // the length separates the parts
		binary.BigEndian.PutUint64(n[:], uint64(len(part)))
		h.Write(n[:])
		h.Write([]byte(part))
	}
	h.Sum(sum[:0])
	return sum
}

// addAccount finds or creates the credential of a login and adds an Account to it.
func (p *Pool) addAccount(req upstream.Request) *credential {
	mac := p.credentialMAC(req)
	p.mu.Lock()
	defer p.mu.Unlock()
	u := p.users[req.User]
	if u == nil {
		u = &userEntry{name: req.User}
		p.users[req.User] = u
	}
	i := slices.IndexFunc(u.credentials, func(cred *credential) bool {
		return cred.loginName == req.Login && hmac.Equal(cred.mac[:], mac[:]) // in constant time
	})
	if i < 0 {
		i = len(u.credentials)
		u.credentials = append(u.credentials, &credential{user: u, loginName: req.Login, mac: mac, isToken: !req.Token.IsZero()})
	}
	cred := u.credentials[i]
	cred.refs++
	cred.accountCount++
	return cred
}

// removeAccount removes an Account from its credential. Idle connections stay, unless no later
// login could use them without opening its own connection.
func (p *Pool) removeAccount(cred *credential) {
	var unusable []*pooledConn
	p.mu.Lock()
	cred.accountCount--
	if cred.accountCount == 0 && !p.canReuseLogin(cred) {
		unusable = p.removeIdleOf(cred)
	}
	p.unref(cred)
	p.mu.Unlock()
	p.discardAll(unusable, event.DiscardTTL)
}

// canReuseLogin reports whether an idle connection may stand for a later login at the backend.
// mu is held.
func (p *Pool) canReuseLogin(cred *credential) bool {
	return p.isCacheable(cred) || cred.verifiedHere || p.backend.UsesMasterLogin()
}

// isCacheable reports whether the backend's acceptance of a credential may be cached. A token
// is not cacheable: only the backend knows its expiry.
func (p *Pool) isCacheable(cred *credential) bool { return p.cfg.CredentialCache && !cred.isToken }

// unref drops a reference to a credential. mu is held.
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

// cachedLogin reports whether a login succeeds without asking the backend, and returns the
// backend's capabilities.
func (p *Pool) cachedLogin(cred *credential, verification Verification) (imap.Caps, bool) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if verification == VerifiedHere {
		cred.verifiedHere = true
	} else if !p.isCacheable(cred) || now.Sub(cred.verifiedAt) >= p.cfg.CredentialCacheTTL {
		return imap.Caps{}, false
	}
	for _, pc := range slices.Backward(cred.idle[clientUse]) {
		if p.isUsable(pc, now) {
			return pc.Caps(), true
		}
	}
	return imap.Caps{}, false
}

// isUsable reports whether an idle connection has not expired. mu is held.
func (p *Pool) isUsable(pc *pooledConn, now time.Time) bool {
	return now.Sub(pc.idleSince) < p.cfg.PoolIdleTimeout && pc.Age() < p.cfg.MaxAge && !pc.Hold().IsLeaving()
}

func (p *Pool) generation(cred *credential) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return cred.generation
}

// removeIdleOf removes and returns the idle connections of a credential. mu is held.
func (p *Pool) removeIdleOf(cred *credential) (removed []*pooledConn) {
	for k := range cred.idle {
		removed = append(removed, cred.idle[k]...)
	}
	for _, pc := range removed {
		p.removeIdle(pc)
	}
	return removed
}

// removeIdle removes an idle connection, which the caller then owns. mu is held.
func (p *Pool) removeIdle(pc *pooledConn) {
	p.idle.Remove(pc.idleElem)
	pc.idleElem = nil
	idle := &pc.cred.idle[pc.use]
	i := slices.Index(*idle, pc)
	*idle = slices.Delete(*idle, i, i+1)
	p.hooks.OnIdleChange(-1)
}

// addIdle pools a clean connection. At the limit it closes the oldest of the credential.
func (p *Pool) addIdle(pc *pooledConn) {
	pc.keepLoginAlerts()
	pc.ReleaseBuffers()
	p.mu.Lock()
	evicted, reason := pc, event.DiscardReason("")
	switch idle := &pc.cred.idle[pc.use]; {
	case p.closed:
		reason = event.DiscardShutdown
	case pc.generation != pc.cred.generation:
		reason = event.DiscardCredentials
	default:
		if evicted = nil; len(*idle) >= p.cfg.MaxIdlePerCredential {
			evicted, reason = (*idle)[0], event.DiscardLimit
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
