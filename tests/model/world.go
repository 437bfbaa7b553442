// Package model tests a gateway, or a mail server, by what its clients see: a few
// clients do what they like with one mailbox, each keeps a Mirror of it made from
// responses alone, and whatever a server must not say, or has left out in the
// end, is a violation of IMAP. A Breaker cuts connections behind the gateway
// meanwhile.
//
// It does not know how a gateway is built, nor even whether there is one: a
// World is given addresses. Every choice comes from the seed of its run. A World
// owns its Actors, an Actor its connection and its Mirror.
package model

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
)

// Mode is what stands between the clients and the backend.
type Mode string

// The modes.
const (
	Direct Mode = "direct"
	Splice Mode = "splice"
	Reuse  Mode = "reuse"
	Resume Mode = "resume"
)

// heals says whether sessions outlive the loss of a connection.
func (m Mode) heals() bool { return m == Resume }

// Config is one run.
type Config struct {
	Mode    Mode
	Faults  Faults
	Detach  bool   // the gateway gives its connection up after each command
	Verify  string // how often the gateway compares its view with the backend
	Learn   string // when the gateway learns UIDs; default mux.Eager
	Racing  bool   // all actors act at once
	Seed    uint64
	Turns   int    // of each client
	Serial  uint64 // makes names that no other run at this backend has
	Lines   int    // of the wire that a failure shows of each actor; default 60
	Backend string // the way past everything
	Proxied string // the way that is tested, which goes through the breaker
	Odd     Oddities
}

// Oddities are what a backend does that no gateway can mend.
type Oddities struct {
	// CopiesGone is OK to the copy of a message that another session has expunged, with
	// its UID, though nothing is copied (Cyrus).
	CopiesGone bool
	// SilentHides is a STORE with .SILENT after which neither a new keyword is announced
	// nor what another session has done to the message (Cyrus 3.10).
	SilentHides bool
}

// Stats is what happened in a run.
type Stats struct {
	Turns, Ended, ExpungeIssued, Copies, Checks int
	Broken                                      Broken
}

// tally is Stats that several actors write.
type tally struct {
	mu sync.Mutex // guards Stats
	Stats
}

func (t *tally) add(f func(*Stats)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f(&t.Stats)
}

// World is one run: one user's mailbox, the clients that work on it, and a
// stranger who uses the same gateway meanwhile.
type World struct {
	Config

	// Set once.
	breaker *Breaker
	account *Account
	actors  []*Actor // the stranger is the last
	rng     *rand.Rand
	table   []operation
	weights int
	began   Broken

	clock atomic.Int64 // of the transcripts
	quiet atomic.Bool  // nothing is broken while it is set
	stats tally
}

// stretches is how many times in a run everything is compared.
const stretches = 4

// NewWorld makes the accounts of a run, with some mail.
func NewWorld(c Config, breaker *Breaker) (*World, error) {
	w := &World{Config: c, breaker: breaker, rng: rand.New(rand.NewPCG(c.Seed, 0)), table: operations()}
	for _, o := range w.table {
		w.weights += o.weight
	}
	w.began = breaker.Broken()
	names := c.Users()
	w.account = newAccount(names[0])
	for i, kind := range []Kind{Plain, Condstore, Qresync} {
		w.join(w.account, "pcq"[i:i+1], kind).faulty = true
	}
	direct := w.join(w.account, "d", Plain)
	direct.address = c.Backend
	stranger := newAccount(names[1])
	w.join(stranger, "s", Kind(w.rng.IntN(3))).faulty = true
	for _, a := range []*Account{w.account, stranger} {
		if err := w.furnish(a); err != nil {
			return nil, fmt.Errorf("furnish %s: %w", a.user, err)
		}
	}
	return w, nil
}

// Users are the names of the accounts of a run: the one whose mailbox it is about,
// and the stranger.
func (c Config) Users() []string {
	return []string{fmt.Sprintf("u%dq%d", c.Seed%1e5, c.Serial), fmt.Sprintf("v%dq%d", c.Seed%1e5, c.Serial)}
}

// join adds an actor.
func (w *World) join(account *Account, name string, kind Kind) *Actor {
	a := &Actor{
		name: name, kind: kind, world: w, account: account, address: w.Proxied, private: "Private-" + name,
		rng: rand.New(rand.NewPCG(w.Seed, uint64(len(w.actors)+1))), said: &transcript{clock: &w.clock, keep: cmp.Or(w.Lines, keptLines)},
	}
	w.actors = append(w.actors, a)
	return a
}

// furnish makes the mailboxes of an account.
func (w *World) furnish(account *Account) error {
	p, err := openProbe(w.Backend, account.user)
	if err != nil {
		return err
	}
	defer p.close()
	for _, a := range w.actors {
		if a.account == account {
			if _, err := p.ask("CREATE " + a.private); err != nil {
				return err
			}
		}
	}
	for range 12 {
		subject := account.marker()
		text := message(subject)
		line, err := p.ask(fmt.Sprintf("APPEND INBOX {%d+}\r\n%s", len(text), text))
		if err != nil {
			return err
		}
		r, _ := parseStatus(line)
		if err := account.appendedAs(subject, r); err != nil {
			return err
		}
	}
	return nil
}

// choose draws an operation; the mailbox neither empties nor grows for ever.
func (w *World) choose(a *Actor) func(*Actor) error {
	switch n := len(a.mirror.entries); {
	case n > most && !a.mirror.readOnly:
		return (*Actor).remove
	case n < fewest && a.chance(50):
		return (*Actor).append
	}
	at := a.rng.IntN(w.weights)
	for _, o := range w.table {
		if at -= o.weight; at < 0 {
			return o.do
		}
	}
	panic("model: weights that do not add up")
}

// Run lets everybody act and compares what they know. Its error shows what was
// said on the wire.
func (w *World) Run(ctx context.Context) (Stats, error) {
	err := w.run(ctx)
	for _, a := range w.actors {
		if a.wire != nil {
			a.wire.close()
		}
	}
	now := w.breaker.Broken()
	w.stats.Broken = Broken{
		Between: now.Between - w.began.Between, Flight: now.Flight - w.began.Flight, Inside: now.Inside - w.began.Inside,
		Stalled: now.Stalled - w.began.Stalled, Refused: now.Refused - w.began.Refused,
	}
	if err != nil {
		var b strings.Builder
		for _, a := range w.actors {
			fmt.Fprintf(&b, "\n--- %s, %s, %s:\n%s", a.name, a.kind, a.account.user, a.said)
		}
		err = fmt.Errorf("seed %d: %w%s", w.Seed, err, b.String())
	}
	return w.stats.Stats, err
}

func (w *World) run(ctx context.Context) error {
	for range stretches {
		act := w.inTurn
		if w.Racing {
			act = w.atOnce
		}
		if err := act(ctx); err != nil {
			return err
		}
		if err := w.compare(); err != nil {
			return err
		}
	}
	return w.account.verify(w)
}

// turns is how many turns an actor has in one stretch.
func (w *World) turns(a *Actor) int {
	if a.account != w.account {
		return max(1, w.Turns/stretches/4)
	}
	return max(1, w.Turns/stretches)
}

// inTurn lets the actors act one after the other, in an order drawn by lot.
func (w *World) inTurn(ctx context.Context) error {
	var order []*Actor
	for _, a := range w.actors {
		for range w.turns(a) {
			order = append(order, a)
		}
	}
	w.rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	for _, a := range order {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := w.act(a); err != nil {
			return err
		}
	}
	return nil
}

func (w *World) act(a *Actor) error {
	w.stats.add(func(s *Stats) { s.Turns++ })
	if err := a.turn(); err != nil {
		return fmt.Errorf("%s (%s): %w", a.name, a.kind, err)
	}
	return nil
}

// atOnce lets all actors act at the same time. The first error stops all.
func (w *World) atOnce(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, a := range w.actors {
		wg.Go(func() {
			if err := w.many(ctx, a); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// many is the turns of one actor; it ends after them, or when somebody failed.
func (w *World) many(ctx context.Context, a *Actor) error {
	for range w.turns(a) {
		if ctx.Err() != nil {
			return nil
		}
		if err := w.act(a); err != nil {
			return err
		}
	}
	return nil
}
