// Package pool keeps authenticated upstream connections for the next use by the same account:
// the same user, login name as sent, and credential.
//
// A response that reaches the wrong session is the worst fault of a proxy. So a connection is
// pooled only when every command on it is known to be answered, and is leased again only when
// it has nothing unread. If either is uncertain, it is closed.
//
// The package does not know what sessions send on their connections, nor whether a password is
// right: the gateway has verified the user, or the backend is asked. All sessions of a backend
// share one Pool. An Account, and a connection while leased, belong to one session's goroutine.
package pool

import (
	"cmp"
	"container/list"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/proxy/relay/mux/lease"
	"imapgate/proxy/relay/mux/wire"
	"imapgate/proxy/upstream"
)

// ErrBusy is returned when the limits leave no connection. It is an
// upstream.ErrUnavailable.
var ErrBusy = fmt.Errorf("%w: all connections are in use", upstream.ErrUnavailable)

// ErrExpired is returned when no connection is idle and the token needed to open one has
// expired. The backend is not asked. It is an upstream.ErrUnavailable.
var ErrExpired = fmt.Errorf("%w: the token has expired", upstream.ErrUnavailable)

// ErrNotEnabled is returned when the backend does not enable exactly the requested extensions. It
// is an upstream.ErrUnavailable.
var ErrNotEnabled = fmt.Errorf("%w: backend did not enable the requested extensions", upstream.ErrUnavailable)

// ErrCredential is returned when another backend cannot use what the client has sent.
var ErrCredential = errors.New("the backend needs another credential")

// Causes of upstream.ErrUnavailable within the gateway.
var (
	errClosed           = fmt.Errorf("%w: the gateway is shutting down", upstream.ErrUnavailable)
	errUnverifiedMaster = fmt.Errorf("%w: master login of an unverified user", upstream.ErrUnavailable)
	errWrongUser        = fmt.Errorf("%w: connection belongs to another user", upstream.ErrUnavailable)
)

// Config is the configuration of one backend's pool. Only tests set what is not in Settings.
type Config struct {
	Settings
	MaxIdlePerCredential int           // idle connections per credential; default 8
	ValidateAfter        time.Duration // a connection idle longer is sent NOOP before reuse; default 5 s
	KeepAliveInterval    time.Duration // between NOOPs on an idle connection; default 2 min
	AnswerTimeout        time.Duration // for the response to a command of the pool; default 5 s
}

func (c Config) withDefaults() Config {
	c.MaxIdlePerCredential = cmp.Or(c.MaxIdlePerCredential, 8)
	c.ValidateAfter = cmp.Or(c.ValidateAfter, 5*time.Second)
	c.KeepAliveInterval = cmp.Or(c.KeepAliveInterval, 2*time.Minute)
	c.AnswerTimeout = cmp.Or(c.AnswerTimeout, 5*time.Second)
	return c
}

// Hooks are called by a Pool, for metrics. Some are called with its lock held and must not call
// the Pool.
type Hooks struct {
	OnReuse      func()                           // an idle connection was leased
	OnDiscard    func(reason event.DiscardReason) // a connection was closed: as in event
	OnWait       func(d time.Duration)            // an Acquire waited for d
	OnIdleChange func(n int)                      // the number of idle connections changed by n
}

// Pool is the set of mux connections to one backend. It is safe for concurrent use.
type Pool struct {
	// Set once.
	backend      *upstream.Backend
	cfg          Config
	maxPerUse    [connUses]int // connections of one user; -1: no limit
	resources    *wire.Resources
	hooks        Hooks
	log          *zap.Logger
	secret       [32]byte // key of the MACs that identify credentials
	stop         chan struct{}
	done         chan struct{} // closed when runCleaner has returned
	warnUnselect sync.Once     // logs once that the backend cannot unselect

	mu sync.Mutex // never held over a socket

	// Guarded by mu.
	users         map[identity.User]*userEntry // users with an Account or a connection
	conns         map[*lease.Conn]*pooledConn  // all connections; at most MaxTotal
	total         int                          // conns, and logins that have a slot
	idle          list.List                    // idle *pooledConn, in the order they were added
	queue         []*waiter                    // waiters in order of arrival; at most maxQueue
	enableEffects map[string][]string          // name to the extensions that ENABLE enabled; at most maxEnableEffects
	closed        bool
}

// New returns a Pool for b and starts its cleaner. Close stops it.
func New(b *upstream.Backend, cfg Config, resources *wire.Resources, hooks Hooks, log *zap.Logger) *Pool {
	p := &Pool{
		backend: b, cfg: cfg.withDefaults(), resources: resources, hooks: hooks,
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

// Close closes the idle connections and waits for the cleaner. Leased connections are closed
// when they are released.
func (p *Pool) Close() {
	close(p.stop)
	<-p.done
	p.mu.Lock()
	p.closed = true
	var idle []*pooledConn
	for pc := p.oldestIdle(); pc != nil; pc = p.oldestIdle() {
		p.removeIdle(pc)
		idle = append(idle, pc)
	}
	for _, w := range p.queue {
		w.grants <- grant{err: errClosed}
	}
	p.queue = nil
	p.mu.Unlock()
	p.discardAll(idle, event.DiscardShutdown)
}

// Verification records whether the gateway has verified a login.
type Verification uint8

// The values of Verification.
const (
	BackendDecides Verification = iota // no: the backend must accept the login
	VerifiedHere                       // yes: the gateway has verified the credential
)

// Login authenticates req at the backend, or from the cache. With VerifiedHere, an idle
// connection of exactly this login, user and credential is enough. With BackendDecides the
// backend is asked, unless it accepted the same login less than CredentialCacheTTL ago.
//
// Errors are upstream's. ErrDenied removes the credential from the cache. A success invalidates
// the other passwords of the same login.
func (p *Pool) Login(ctx context.Context, req upstream.Request, verification Verification) (*Account, error) {
	if verification == BackendDecides && p.backend.UsesMasterLogin() {
		return nil, errUnverifiedMaster
	}
	a := &Account{pool: p, cred: p.addAccount(req), secret: req.Password, client: req.Client, verification: verification, clientID: req.Client.ForwardedID()}
	if !req.Token.IsZero() {
		a.secret, a.isToken = req.Token, true
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

// logInAtBackend logs in without a slot: a login with an unverified password must not take a
// slot from others. If no slot is free afterwards, the connection is closed and Acquire waits
// for a slot.
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
	p.closeConn(evicted, event.DiscardLimit)
	if !ok {
		p.closeConn(pc, event.DiscardLimit)
		return nil
	}
	a.loginConn = pc
	return nil
}

// logIn opens a connection and records whether the backend accepts the credential. It does not
// add the connection to p.conns.
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
		p.closeConn(pc, event.DiscardError)
		return nil, errWrongUser
	}
	p.recordVerified(pc, started)
	return pc, nil
}
