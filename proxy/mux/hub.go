// Package mux relays sessions command by command: the modes reuse and resume.
//
// Every command of a client is framed, looked up in one table (command) and sent
// byte for byte on a lease, an upstream connection that is this session's alone
// (lease, pool); every response is framed and passed on byte for byte. What the
// client has been told of its mailbox is kept as a view (view), so that in mode
// resume a session whose upstream is lost gets another one and is told what has
// changed meanwhile.
//
// One goroutine does all of a session in turn, and there is none while a session
// is quiet: then its sockets wait in an epoll set. So nothing on the way of a
// byte is locked. The package does not know how clients log in, or what spliced
// bytes mean: a session whose state cannot be accounted for is handed to whoever
// splices, for good.
//
// Read in this order: session.go (the life of a session), commands.go and
// literals.go, relay.go, selecting.go, attach.go, queue.go, snapshot.go, flush.go
// and confine.go, loss.go, silence.go, gap.go, idle.go, stream.go, pin.go,
// odd.go, end.go.
package mux

import (
	"context"
	"maps"
	"net"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/audit"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/internal/metrics"
	"imapgate/internal/quiet"
	"imapgate/proxy/mux/pool"
	"imapgate/proxy/mux/wire"
	"imapgate/proxy/upstream"
)

// Mode says what becomes of a session whose upstream is lost.
type Mode string

// The modes.
const (
	Reuse  Mode = "reuse"  // the session ends with it
	Resume Mode = "resume" // it gets another
)

// Config is what all backends share.
type Config struct {
	Quiet time.Duration // a session in which nothing is said for this long gives up its goroutine
	Idle  time.Duration // … and for this long ends
	Write time.Duration // a peer that takes or gives nothing in the middle of something for this long is cut off
	// MaxLine bounds a client's line in bytes, with its CRLF and without literals; at
	// least 64 KB.
	MaxLine int
	Bytes   func(up, down int64)
	// Home is where a user's mailbox lives now, for sessions that need another
	// connection to it.
	Home func(context.Context, identity.User) (Home, error)
	// Splice takes a session over whose state cannot be accounted for. ended is
	// called once, with what was relayed since. until is Client.Until.
	Splice func(client, backend End, until time.Time, ended func(Result))
}

// Home is all of a route that decides whose mail a session sees.
type Home struct {
	Backend string
	Login   string // the name to use there; "" where no route says it
}

// End is one connection of a session that is handed on, what goes to it before
// anything else, and how fast it may be read (splice.Side).
type End struct {
	Conn  net.Conn
	First []byte
	Pace  func(n int) time.Duration
}

// Result is how a session ended.
type Result struct {
	Reason   audit.Reason
	Err      error
	Up, Down int64 // bytes from the client, to the client
	// Commands of the client, until nobody read them any more.
	Commands uint64
}

// Rooms are the other rooms, as sessions ask them.
type Rooms struct {
	Backends map[string]Backend
	Audit    *audit.Log
	Metrics  *metrics.Metrics
	Log      *zap.Logger
}

// Backend is one backend and how its sessions are treated.
type Backend struct {
	Upstream *upstream.Backend
	Settings Settings
}

// Hub is all sessions of the modes reuse and resume, with their clock, their
// pools, and the epoll set in which they are quiet.
type Hub struct {
	// Set once.
	cfg      Config
	rooms    Rooms
	shared   wire.Shared
	asleep   *quiet.Set
	backends map[string]*backend
	ctx      context.Context // ends when the Hub closes; for what sessions wait for
	cancel   context.CancelFunc
	began    time.Time
	wg       sync.WaitGroup // the clock, every session, and every goroutine of one
	watching sync.WaitGroup // the epoll set
	rested   atomic.Uint64  // connections that have begun to be quiet, each counted once

	mu       sync.Mutex
	sessions map[*session]struct{}  // Guarded by mu.
	awake    map[*session]struct{}  // Guarded by mu. Those with a goroutine.
	until    map[*session]time.Time // Guarded by mu. When those end that have a Client.Until.
}

// NewHub starts the clock. Close ends it.
func NewHub(cfg Config, rooms Rooms) (*Hub, error) {
	asleep, err := quiet.NewSet()
	if err != nil {
		return nil, err
	}
	h := &Hub{
		cfg: cfg, rooms: rooms, asleep: asleep, began: time.Now(),
		shared:   wire.Shared{Buffers: quiet.NewBuffers(), Clock: new(wire.Clock), MaxLine: cfg.MaxLine},
		backends: make(map[string]*backend, len(rooms.Backends)),
		sessions: map[*session]struct{}{}, awake: map[*session]struct{}{}, until: map[*session]time.Time{},
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	for name, b := range rooms.Backends {
		h.backends[name] = newBackend(h, name, b)
	}
	h.wg.Add(1)
	go h.clock()
	h.watching.Add(1)
	go h.watch()
	return h, nil
}

// watch runs the epoll set. It ends when the Hub closes.
func (h *Hub) watch() {
	defer h.watching.Done()
	h.asleep.Run()
}

// Login proves who to the backend of home, or finds that it is proven: what comes
// out is the session's right to connections there. Once it is proven, nothing
// waits for the user anywhere else. Errors are upstream's.
func (h *Hub) Login(ctx context.Context, home Home, who upstream.Request, proof pool.Proof) (*pool.Account, error) {
	account, err := h.backends[home.Backend].pool.Login(ctx, who, proof)
	if err == nil {
		h.Settle(who.User, home)
	}
	return account, err
}

// Settle closes what waits for a user at any other backend than the one where
// their mailbox is, and there under any other login name than the route's.
func (h *Hub) Settle(user identity.User, home Home) {
	for name, b := range h.backends {
		if name != home.Backend {
			b.pool.Leave(user, metrics.DiscardMoved)
		} else if home.Login != "" {
			b.pool.LeaveOthers(user, home.Login, metrics.DiscardMoved)
		}
	}
}

// Spare closes a connection that only waits, at any backend, because its descriptor is
// needed. It returns false where none does.
func (h *Hub) Spare() bool {
	for _, b := range h.backends {
		if b.pool.Spare() {
			return true
		}
	}
	return false
}

// evict closes what waits for a user whom the routes do not let in any more.
func (h *Hub) evict(user identity.User) {
	for _, b := range h.backends {
		b.pool.Leave(user, metrics.DiscardCredentials)
	}
}

// Spliced says whether a session of the user at the backend is to be spliced, because
// the backend has broken its promises too often of late.
func (h *Hub) Spliced(backend string, user identity.User) bool {
	return h.backends[backend].promises.spliced(user, time.Now())
}

// Trust is what is thought of a backend.
func (h *Hub) Trust(backend string) Trust { return h.backends[backend].trust() }

// Offered is what a client may be told that a backend with these capabilities
// can do.
func (h *Hub) Offered(backend string, caps imap.Caps) imap.Caps {
	b := h.backends[backend]
	if last := b.offered.Load(); last != nil && last.from == caps.String() {
		return last.caps
	}
	hidden := b.settings.Hide
	offered := caps.Without(func(name string) bool { return notOffered(name) || slices.Contains(hidden, name) })
	b.offered.Store(&offer{caps.String(), offered})
	return offered
}

// notOffered names what would change the bytes or the user of a connection, lead
// the client around the gateway, or give the connection a state that no other
// can be given.
func notOffered(name string) bool {
	switch name {
	case "UNAUTHENTICATE", "STARTTLS", "LOGINDISABLED", "MAILBOX-REFERRALS", "LOGIN-REFERRALS", "LANGUAGE", "UIDONLY":
		return true
	}
	for _, prefix := range [...]string{"AUTH=", "COMPRESS=", "I18NLEVEL=", "ANNOTATE-EXPERIMENT-"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// Len is the number of sessions, those not counted that were handed on.
func (h *Hub) Len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.sessions)
}

// age is the time since the Hub began: how sessions remember when something was,
// in a third of what a time.Time takes.
func (h *Hub) age() time.Duration { return time.Since(h.began) }

func (h *Hub) all() []*session {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Collect(maps.Keys(h.sessions))
}

// Drain ends sessions with a BYE, each as soon as it has no command outstanding, until
// no more than keep are left that have not been told to end.
func (h *Hub) Drain(keep int, why audit.Reason) {
	for _, s := range h.all() {
		if s.order.Load() != nil {
			continue
		}
		if keep > 0 {
			keep--
			continue
		}
		s.leave(why)
	}
}

// EndAll cuts every session off that is still there.
func (h *Hub) EndAll(why audit.Reason) {
	for _, s := range h.all() {
		s.cut(why)
	}
}

// Close ends every session and waits for every goroutine.
func (h *Hub) Close() {
	h.cancel()
	h.EndAll(audit.Drained)
	h.wg.Wait()
	h.asleep.Close() // which nobody asks any more
	h.watching.Wait()
	for _, b := range h.backends {
		b.pool.Close()
	}
}

// The clock's pace.
const (
	tick  = 50 * time.Millisecond
	sweep = 20 // ticks: 1 s
)

func ticks(d time.Duration) uint32 { return uint32((d + tick - 1) / tick) }

// clock is the one timer of all sessions. It ends when the Hub closes.
func (h *Hub) clock() {
	defer h.wg.Done()
	t := time.NewTicker(tick)
	defer t.Stop()
	patience, limit := ticks(h.cfg.Quiet), ticks(h.cfg.Write)
	var logins quiet.Burst
	for {
		select {
		case <-h.ctx.Done():
			return
		case <-t.C:
		}
		now := h.shared.Clock.Tick()
		for _, s := range h.busy() {
			s.look(patience, limit)
		}
		if now%sweep == 0 {
			for _, s := range h.all() {
				s.sweep(now)
			}
			h.expire(time.Now())
			for _, b := range h.backends {
				b.show(b.trust())
			}
			if logins.Over(h.rested.Load(), h.Len()) {
				h.wg.Go(debug.FreeOSMemory) // it takes a collection's time
			}
		}
	}
}

func (h *Hub) busy() []*session {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Collect(maps.Keys(h.awake))
}

// expire ends the sessions whose time is over: between two commands, or a
// leaveTime later wherever they are.
func (h *Hub) expire(now time.Time) {
	for s, until := range h.timed() {
		switch {
		case now.Before(until):
		case now.Before(until.Add(leaveTime)):
			s.leave(audit.TokenExpired)
		default:
			s.cut(audit.TokenExpired)
		}
	}
}

func (h *Hub) timed() map[*session]time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.until)
}

// limits is when s has to end; zero: whenever it likes.
func (h *Hub) limits(s *session) time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.until[s]
}
