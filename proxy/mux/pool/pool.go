// Package pool keeps authenticated upstream connections that wait for the next
// use by the very account they were made for: the same user, the same login name
// as it was sent, the same credential.
//
// A reply that reaches the wrong session is the worst that a proxy can do. So a
// connection waits only when everything that was ever asked on it is known to be
// answered, and is handed out only when it is known to have nothing to say. Any
// doubt closes it.
//
// The package does not know what sessions say on their connections, nor whether
// a password is right: the gateway vouches for a user, or the backend is asked. A
// Pool is shared by all sessions at its backend; an Account, and a connection
// while it is leased, belong to one session's goroutine.
package pool

import (
	"cmp"
	"container/list"
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/identity"
	"imapgate/internal/metrics"
	"imapgate/proxy/mux/lease"
	"imapgate/proxy/mux/wire"
	"imapgate/proxy/upstream"
)

// ErrBusy is returned when the limits leave no connection. It is an
// upstream.ErrUnavailable.
var ErrBusy = fmt.Errorf("%w: all connections are taken", upstream.ErrUnavailable)

// ErrExpired is returned when no connection waits and the token with which one
// would be made has ended. The backend is not asked. It is an
// upstream.ErrUnavailable.
var ErrExpired = fmt.Errorf("%w: the token has ended", upstream.ErrUnavailable)

// Causes of upstream.ErrUnavailable that are ours.
var (
	errClosed           = fmt.Errorf("%w: the gateway is going down", upstream.ErrUnavailable)
	errUnverifiedMaster = fmt.Errorf("%w: a master login for which nobody vouches", upstream.ErrUnavailable)
	errWrongUser        = fmt.Errorf("%w: the connection is another user's", upstream.ErrUnavailable)
	errNotEnabled       = fmt.Errorf("%w: backend has not enabled what it should", upstream.ErrUnavailable)
)

// Config is the pool of one backend. With IdleTimeout 0 no connection waits; a
// limit of 0 does not bound.
type Config struct {
	IdleTimeout          time.Duration // a connection waits this long
	MaxAge               time.Duration // since the login, of one that is used again; default 1 h
	MaxIdlePerCredential int           // waiting connections kept of one account; default 8
	ValidateAfter        time.Duration // one that has waited longer is asked first; default 5 s
	KeepAliveInterval    time.Duration // between questions to one that goes on waiting; default 2 min
	AnswerTimeout        time.Duration // for an answer to a command of the pool's own; default 5 s

	// Asked logins may be believed from memory …
	CacheCredentials bool
	CredentialTTL    time.Duration // … this long since the backend was really asked; default 5 min

	MaxPerUser int // connections of one user; one of them is for Aux
	MaxTotal   int // connections of all users
}

func (c Config) withDefaults() Config {
	c.MaxAge = cmp.Or(c.MaxAge, time.Hour)
	c.MaxIdlePerCredential = cmp.Or(c.MaxIdlePerCredential, 8)
	c.ValidateAfter = cmp.Or(c.ValidateAfter, 5*time.Second)
	c.KeepAliveInterval = cmp.Or(c.KeepAliveInterval, 2*time.Minute)
	c.AnswerTimeout = cmp.Or(c.AnswerTimeout, 5*time.Second)
	c.CredentialTTL = cmp.Or(c.CredentialTTL, 5*time.Minute)
	return c
}

// Hooks are called by a Pool, for metrics, some with its lock held: they must
// not call it. A nil one is left out.
type Hooks struct {
	OnReuse      func()                // a waiting connection was handed out
	OnDiscard    func(reason string)   // a connection was closed: one of the metrics.Discard constants
	OnWait       func(d time.Duration) // a lease was waited for
	OnIdleChange func(n int)           // n more connections wait, or fewer
}

func (h Hooks) withDefaults() Hooks {
	if h.OnReuse == nil {
		h.OnReuse = func() {}
	}
	if h.OnDiscard == nil {
		h.OnDiscard = func(string) {}
	}
	if h.OnWait == nil {
		h.OnWait = func(time.Duration) {}
	}
	if h.OnIdleChange == nil {
		h.OnIdleChange = func(int) {}
	}
	return h
}

// Pool is all upstream connections to one backend. It is safe for concurrent
// use.
type Pool struct {
	// Set once.
	backend      *upstream.Backend
	cfg          Config
	maxPerUse    [connUses]int // connections of one user; -1: any number
	resources    *wire.Resources
	hooks        Hooks
	log          *zap.Logger
	secret       [32]byte // key of the MACs by which credentials are remembered
	stop         chan struct{}
	done         chan struct{} // closed when the janitor has ended
	warnUnselect sync.Once     // so that the log has it once that connections cannot leave a mailbox

	mu sync.Mutex // never held over a socket

	// Guarded by mu.
	users         map[identity.User]*userEntry // those with an Account or a connection
	conns         map[*lease.Conn]*pooledConn  // all of them; at most MaxTotal
	total         int                          // those, and logins that have a place
	idle          list.List                    // the *held that wait, who came first at the front
	queue         []*waiter                    // for a connection, in order; at most maxQueue
	enableEffects map[string][]string          // what ENABLE was seen to do; at most maxEnableEffects
	closed        bool
}

// New makes a Pool of b, and starts its janitor. Close ends both.
func New(b *upstream.Backend, cfg Config, resources *wire.Resources, hooks Hooks, log *zap.Logger) *Pool {
	p := &Pool{
		backend: b, cfg: cfg.withDefaults(), resources: resources, hooks: hooks.withDefaults(),
		log: log.With(zap.String("backend", b.Name())), maxPerUse: [connUses]int{-1, -1},
		stop: make(chan struct{}), done: make(chan struct{}),
		users: map[identity.User]*userEntry{}, conns: map[*lease.Conn]*pooledConn{}, enableEffects: map[string][]string{},
	}
	if n := cfg.MaxPerUser; n > 0 {
		p.maxPerUse = [connUses]int{clientUse: max(n-1, 1), gatewayUse: min(n-1, 1)}
	}
	_, _ = rand.Read(p.secret[:]) // never fails
	go p.runCleaner()
	return p
}

// Close closes the connections that wait, and waits for the janitor. Leased
// connections are closed when they come back.
func (p *Pool) Close() {
	close(p.stop)
	<-p.done
	p.mu.Lock()
	p.closed = true
	idle := p.removeAllIdle()
	for _, w := range p.queue {
		close(w.grants)
	}
	p.queue = nil
	p.mu.Unlock()
	p.discardAll(idle, metrics.DiscardShutdown)
}

// Verification says whose word there is that a login is its user's.
type Verification uint8

// The proofs.
const (
	BackendDecides Verification = iota // nobody's: the backend is asked
	VerifiedHere                       // the gateway's, which has checked the password itself
)

// Login proves who to the backend, or finds that it is proven. With Vouched, a
// connection that waits for exactly this login, user and credential is enough;
// with Asked the backend is asked, or believed to say what it has said to the
// same question less than CredentialTTL ago.
//
// Errors are upstream's. ErrDenied ends what was believed of the credential, and
// a proof what was believed of the same login's other passwords.
func (p *Pool) Login(ctx context.Context, req upstream.Request, verification Verification) (*Account, error) {
	if verification == BackendDecides && p.backend.UsesMasterLogin() {
		return nil, errUnverifiedMaster
	}
	a := &Account{pool: p, cred: p.addAccount(req), secret: req.Password, client: req.Client, verification: verification, clientID: req.Client.ForwardedID()}
	if a.cred.isToken {
		a.secret = req.Token
	}
	if caps, ok := p.cachedLogin(a.cred, verification); ok {
		a.caps = caps
		return a, nil
	}
	var err error
	if verification == VerifiedHere {
		a.loginConn, err = p.acquire(ctx, leaseRequest{cred: a.cred, use: clientUse}, req)
	} else {
		err = a.logInAtBackend(ctx)
	}
	if err != nil {
		p.removeAccount(a.cred)
		return nil, err
	}
	if pc := a.loginConn; pc != nil {
		a.caps, a.loginOK, pc.loginOK = pc.Caps(), pc.loginOK, upstream.OK{}
	}
	return a, nil
}

// logInAtBackend logs in without a place among the limits: as long as nobody knows whether
// the password is right, it must take nothing from those who know it. Without a
// place the connection is closed again; Lease waits for one.
func (a *Account) logInAtBackend(ctx context.Context) error {
	p := a.pool
	pc, err := p.logIn(ctx, leaseRequest{cred: a.cred, use: clientUse}, a.loginRequest())
	if err != nil {
		return err
	}
	a.caps, a.loginOK = pc.Caps(), pc.loginOK
	p.mu.Lock()
	evicted, ok := p.acquireSlot(a.cred, clientUse)
	if ok {
		p.conns[&pc.Conn] = pc
	}
	p.mu.Unlock()
	p.closeConn(evicted, metrics.DiscardLimit)
	if !ok {
		p.closeConn(pc, metrics.DiscardLimit)
		return nil
	}
	a.loginConn = pc
	return nil
}

// logIn makes a connection, and remembers what the backend thinks of the
// credential. It is not yet among p.conns.
func (p *Pool) logIn(ctx context.Context, lr leaseRequest, req upstream.Request) (*pooledConn, error) {
	started, generation := time.Now(), p.generation(lr.cred)
	if !lr.tokenEnd.IsZero() && !started.Before(lr.tokenEnd) {
		return nil, ErrExpired
	}
	up, err := p.backend.Login(ctx, req)
	if upstream.RevokesCredentials(err) {
		p.revoke(lr.cred)
	}
	if err != nil {
		return nil, err
	}
	pc := &pooledConn{cred: lr.cred, use: lr.use, generation: generation, lastAnswer: time.Now()}
	pc.loginOK = up.OK()
	pc.Open(up, p.resources)
	if pc.User() != lr.cred.user.name {
		p.closeConn(pc, metrics.DiscardError)
		return nil, errWrongUser
	}
	p.recordVerified(pc, started)
	return pc, nil
}
