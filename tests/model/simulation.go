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

// recovers says whether sessions outlive the loss of a connection.
func (m Mode) recovers() bool { return m == Resume }

// Config is one run.
type Config struct {
	Mode            Mode
	Faults          FaultLevel
	Detach          bool   // the gateway gives its connection up after each command
	Verify          string // how often the gateway compares its view with the backend
	UIDPrefetch     string // when the gateway learns UIDs; default mux.PrefetchEager
	Concurrent      bool   // all actors act at once
	Seed            uint64
	Turns           int    // of each client
	Serial          uint64 // makes names that no other run at this backend has
	TranscriptLines int    // of the wire that a failure shows of each actor; default 60
	BackendAddress  string // the way past everything
	TestedAddress   string // the way that is tested, which goes through the breaker
	Quirks          Quirks
}

// Quirks are what a backend does that no gateway can mend.
type Quirks struct {
	// CopiesExpunged is OK to the copy of a message that another session has expunged, with
	// its UID, though nothing is copied (Cyrus).
	CopiesExpunged bool
	// SilentHidesChanges is a STORE with .SILENT after which neither a new keyword is announced
	// nor what another session has done to the message (Cyrus 3.10).
	SilentHidesChanges bool
}

// Stats is what happened in a run.
type Stats struct {
	Turns, SessionsEnded, ExpungeIssued, Copies, Checks int
	Faults                                              FaultCounts
}

// sharedStats is Stats that several actors write.
type sharedStats struct {
	mu sync.Mutex // guards Stats
	Stats
}

func (t *sharedStats) update(f func(*Stats)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f(&t.Stats)
}

// Simulation is one run: one user's mailbox, the clients that work on it, and a
// stranger who uses the same gateway meanwhile.
type Simulation struct {
	Config

	// Set once.
	faultProxy  *FaultProxy
	account     *Account
	clients     []*Client // the stranger is the last
	rng         *rand.Rand
	operations  []operation
	totalWeight int
	startCounts FaultCounts

	lineCounter  atomic.Int64 // of the transcripts
	faultsPaused atomic.Bool  // nothing is broken while it is set
	stats        sharedStats
}

// phases is how many times in a run everything is compared.
const phases = 4

// NewSimulation makes the accounts of a run, with some mail.
func NewSimulation(c Config, breaker *FaultProxy) (*Simulation, error) {
	w := &Simulation{Config: c, faultProxy: breaker, rng: rand.New(rand.NewPCG(c.Seed, 0)), operations: operations()}
	for _, o := range w.operations {
		w.totalWeight += o.weight
	}
	w.startCounts = breaker.Counts()
	names := c.Users()
	w.account = newAccount(names[0])
	for i, kind := range []SyncLevel{Plain, Condstore, Qresync} {
		w.addClient(w.account, "pcq"[i:i+1], kind).behindFaults = true
	}
	direct := w.addClient(w.account, "d", Plain)
	direct.address = c.BackendAddress
	otherAccount := newAccount(names[1])
	w.addClient(otherAccount, "s", SyncLevel(w.rng.IntN(3))).behindFaults = true
	for _, a := range []*Account{w.account, otherAccount} {
		if err := w.createMailboxes(a); err != nil {
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

// addClient adds an actor.
func (w *Simulation) addClient(account *Account, name string, kind SyncLevel) *Client {
	a := &Client{
		name: name, level: kind, sim: w, account: account, address: w.TestedAddress, privateMailbox: "Private-" + name,
		rng: rand.New(rand.NewPCG(w.Seed, uint64(len(w.clients)+1))), transcript: &transcript{lineCounter: &w.lineCounter, limit: cmp.Or(w.TranscriptLines, defaultTranscriptLines)},
	}
	w.clients = append(w.clients, a)
	return a
}

// createMailboxes makes the mailboxes of an account.
func (w *Simulation) createMailboxes(account *Account) error {
	p, err := dialDirect(w.BackendAddress, account.user)
	if err != nil {
		return err
	}
	defer p.close()
	for _, a := range w.clients {
		if a.account == account {
			if _, err := p.exec("CREATE " + a.privateMailbox); err != nil {
				return err
			}
		}
	}
	for range 12 {
		subject := account.nextSubject()
		text := makeMessage(subject)
		line, err := p.exec(fmt.Sprintf("APPEND INBOX {%d+}\r\n%s", len(text), text))
		if err != nil {
			return err
		}
		r, _ := parseStatus(line)
		if err := account.recordAppend(subject, r); err != nil {
			return err
		}
	}
	return nil
}

// chooseOperation draws an operation; the mailbox neither empties nor grows for ever.
func (w *Simulation) chooseOperation(a *Client) func(*Client) error {
	switch n := len(a.view.entries); {
	case n > maxMessages && !a.view.readOnly:
		return (*Client).deleteMessages
	case n < minMessages && a.chance(50):
		return (*Client).append
	}
	roll := a.rng.IntN(w.totalWeight)
	for _, o := range w.operations {
		if roll -= o.weight; roll < 0 {
			return o.do
		}
	}
	panic("model: weights that do not add up")
}

// Run lets everybody act and compares what they know. Its error shows what was
// said on the wire.
func (w *Simulation) Run(ctx context.Context) (Stats, error) {
	err := w.runPhases(ctx)
	for _, a := range w.clients {
		if a.conn != nil {
			a.conn.close()
		}
	}
	now := w.faultProxy.Counts()
	w.stats.Faults = FaultCounts{
		BetweenCommands: now.BetweenCommands - w.startCounts.BetweenCommands, InFlight: now.InFlight - w.startCounts.InFlight, InsideResponse: now.InsideResponse - w.startCounts.InsideResponse,
		Stalled: now.Stalled - w.startCounts.Stalled, Refused: now.Refused - w.startCounts.Refused,
	}
	if err != nil {
		var b strings.Builder
		for _, a := range w.clients {
			fmt.Fprintf(&b, "\n--- %s, %s, %s:\n%s", a.name, a.level, a.account.user, a.transcript)
		}
		err = fmt.Errorf("seed %d: %w%s", w.Seed, err, b.String())
	}
	return w.stats.Stats, err
}

func (w *Simulation) runPhases(ctx context.Context) error {
	for range phases {
		runPhase := w.runSequentially
		if w.Concurrent {
			runPhase = w.runConcurrently
		}
		if err := runPhase(ctx); err != nil {
			return err
		}
		if err := w.compare(); err != nil {
			return err
		}
	}
	return w.account.verifyStored(w)
}

// turnsPerPhase is how many turns an actor has in one stretch.
func (w *Simulation) turnsPerPhase(a *Client) int {
	if a.account != w.account {
		return max(1, w.Turns/phases/4)
	}
	return max(1, w.Turns/phases)
}

// runSequentially lets the actors act one after the other, in an order drawn by lot.
func (w *Simulation) runSequentially(ctx context.Context) error {
	var order []*Client
	for _, a := range w.clients {
		for range w.turnsPerPhase(a) {
			order = append(order, a)
		}
	}
	w.rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	for _, a := range order {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := w.runTurn(a); err != nil {
			return err
		}
	}
	return nil
}

func (w *Simulation) runTurn(a *Client) error {
	w.stats.update(func(s *Stats) { s.Turns++ })
	if err := a.takeTurn(); err != nil {
		return fmt.Errorf("%s (%s): %w", a.name, a.level, err)
	}
	return nil
}

// runConcurrently lets all actors act at the same time. The first error stops all.
func (w *Simulation) runConcurrently(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, a := range w.clients {
		wg.Go(func() {
			if err := w.runTurns(ctx, a); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// runTurns is the turns of one actor; it ends after them, or when somebody failed.
func (w *Simulation) runTurns(ctx context.Context, a *Client) error {
	for range w.turnsPerPhase(a) {
		if ctx.Err() != nil {
			return nil
		}
		if err := w.runTurn(a); err != nil {
			return err
		}
	}
	return nil
}
