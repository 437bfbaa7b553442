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
	errClosed  = fmt.Errorf("%w: the gateway is going down", upstream.ErrUnavailable)
	errNobody  = fmt.Errorf("%w: a master login for which nobody vouches", upstream.ErrUnavailable)
	errUser    = fmt.Errorf("%w: the connection is another user's", upstream.ErrUnavailable)
	errEnabled = fmt.Errorf("%w: backend has not enabled what it should", upstream.ErrUnavailable)
)

// Config is the pool of one backend. With ReuseTTL 0 no connection waits; a
// limit of 0 does not bound.
type Config struct {
	ReuseTTL       time.Duration // a connection waits this long
	MaxAge         time.Duration // since the login, of one that is used again; default 1 h
	IdlePerAccount int           // waiting connections kept of one account; default 8
	NoopAfter      time.Duration // one that has waited longer is asked first; default 5 s
	KeepAlive      time.Duration // between questions to one that goes on waiting; default 2 min
	Answer         time.Duration // for an answer to a command of the pool's own; default 5 s

	// Asked logins may be believed from memory …
	CredCache bool
	CredTTL   time.Duration // … this long since the backend was really asked; default 5 min

	MaxPerUser int // connections of one user; one of them is for Aux
	MaxTotal   int // connections of all users
}

func (c Config) withDefaults() Config {
	c.MaxAge = cmp.Or(c.MaxAge, time.Hour)
	c.IdlePerAccount = cmp.Or(c.IdlePerAccount, 8)
	c.NoopAfter = cmp.Or(c.NoopAfter, 5*time.Second)
	c.KeepAlive = cmp.Or(c.KeepAlive, 2*time.Minute)
	c.Answer = cmp.Or(c.Answer, 5*time.Second)
	c.CredTTL = cmp.Or(c.CredTTL, 5*time.Minute)
	return c
}

// Hooks are called by a Pool, for metrics, some with its lock held: they must
// not call it. A nil one is left out.
type Hooks struct {
	Reused    func()                // a waiting connection was handed out
	Discarded func(reason string)   // a connection was closed: one of the metrics.Discard constants
	Waited    func(d time.Duration) // a lease was waited for
	Waiting   func(n int)           // n more connections wait, or fewer
}

func (h Hooks) withDefaults() Hooks {
	if h.Reused == nil {
		h.Reused = func() {}
	}
	if h.Discarded == nil {
		h.Discarded = func(string) {}
	}
	if h.Waited == nil {
		h.Waited = func(time.Duration) {}
	}
	if h.Waiting == nil {
		h.Waiting = func(int) {}
	}
	return h
}

// Pool is all upstream connections to one backend. It is safe for concurrent
// use.
type Pool struct {
	// Set once.
	backend *upstream.Backend
	cfg     Config
	most    [kinds]int // connections of one user; -1: any number
	shared  *wire.Shared
	hooks   Hooks
	log     *zap.Logger
	secret  [32]byte // key of the MACs by which credentials are remembered
	stop    chan struct{}
	done    chan struct{} // closed when the janitor has ended
	stuck   sync.Once     // so that the log has it once that connections cannot leave a mailbox

	mu sync.Mutex // never held over a socket

	// Guarded by mu.
	users  map[identity.User]*user // those with an Account or a connection
	conns  map[*lease.Conn]*held   // all of them; at most MaxTotal
	total  int                     // those, and logins that have a place
	idle   list.List               // the *held that wait, who came first at the front
	queue  []*waiter               // for a connection, in order; at most maxQueue
	known  map[string][]string     // what ENABLE was seen to do; at most maxKnown
	closed bool
}

// New makes a Pool of b, and starts its janitor. Close ends both.
func New(b *upstream.Backend, cfg Config, shared *wire.Shared, hooks Hooks, log *zap.Logger) *Pool {
	p := &Pool{
		backend: b, cfg: cfg.withDefaults(), shared: shared, hooks: hooks.withDefaults(),
		log: log.With(zap.String("backend", b.Name())), most: [kinds]int{-1, -1},
		stop: make(chan struct{}), done: make(chan struct{}),
		users: map[identity.User]*user{}, conns: map[*lease.Conn]*held{}, known: map[string][]string{},
	}
	if n := cfg.MaxPerUser; n > 0 {
		p.most = [kinds]int{forClient: max(n-1, 1), forUs: min(n-1, 1)}
	}
	_, _ = rand.Read(p.secret[:]) // never fails
	go p.keep()
	return p
}

// Close closes the connections that wait, and waits for the janitor. Leased
// connections are closed when they come back.
func (p *Pool) Close() {
	close(p.stop)
	<-p.done
	p.mu.Lock()
	p.closed = true
	idle := p.takeAll()
	for _, w := range p.queue {
		close(w.granted)
	}
	p.queue = nil
	p.mu.Unlock()
	p.discardAll(idle, metrics.DiscardShutdown)
}

// Proof says whose word there is that a login is its user's.
type Proof uint8

// The proofs.
const (
	Asked   Proof = iota // nobody's: the backend is asked
	Vouched              // the gateway's, which has checked the password itself
)

// Login proves who to the backend, or finds that it is proven. With Vouched, a
// connection that waits for exactly this login, user and credential is enough;
// with Asked the backend is asked, or believed to say what it has said to the
// same question less than CredTTL ago.
//
// Errors are upstream's. ErrDenied ends what was believed of the credential, and
// a proof what was believed of the same login's other passwords.
func (p *Pool) Login(ctx context.Context, who upstream.Request, proof Proof) (*Account, error) {
	if proof == Asked && p.backend.Master() {
		return nil, errNobody
	}
	a := &Account{pool: p, owner: p.enrol(who), secret: who.Password, client: who.Client, proof: proof, id: who.Client.OwnID()}
	if a.owner.token {
		a.secret = who.Token
	}
	if caps, ok := p.believed(a.owner, proof); ok {
		a.caps = caps
		return a, nil
	}
	var err error
	if proof == Vouched {
		a.first, err = p.obtain(ctx, want{owner: a.owner, kind: forClient}, who)
	} else {
		err = a.ask(ctx)
	}
	if err != nil {
		p.forgo(a.owner)
		return nil, err
	}
	if h := a.first; h != nil {
		a.caps, a.ok, h.ok = h.Caps(), h.ok, upstream.OK{}
	}
	return a, nil
}

// ask logs in without a place among the limits: as long as nobody knows whether
// the password is right, it must take nothing from those who know it. Without a
// place the connection is closed again; Lease waits for one.
func (a *Account) ask(ctx context.Context) error {
	p := a.pool
	h, err := p.logIn(ctx, want{owner: a.owner, kind: forClient}, a.who())
	if err != nil {
		return err
	}
	a.caps, a.ok = h.Caps(), h.ok
	p.mu.Lock()
	evicted, ok := p.place(a.owner, forClient)
	if ok {
		p.conns[&h.Conn] = h
	}
	p.mu.Unlock()
	p.close(evicted, metrics.DiscardLimit)
	if !ok {
		p.close(h, metrics.DiscardLimit)
		return nil
	}
	a.first = h
	return nil
}

// logIn makes a connection, and remembers what the backend thinks of the
// credential. It is not yet among p.conns.
func (p *Pool) logIn(ctx context.Context, w want, who upstream.Request) (*held, error) {
	began, term := time.Now(), p.term(w.owner)
	if !w.until.IsZero() && !began.Before(w.until) {
		return nil, ErrExpired
	}
	up, err := p.backend.Login(ctx, who)
	if upstream.Revokes(err) {
		p.distrust(w.owner)
	}
	if err != nil {
		return nil, err
	}
	h := &held{owner: w.owner, kind: w.kind, term: term, heard: time.Now()}
	h.ok = up.OK()
	h.Open(up, p.shared)
	if h.User() != w.owner.user.name {
		p.close(h, metrics.DiscardError)
		return nil, errUser
	}
	p.trust(h, began)
	return h, nil
}
