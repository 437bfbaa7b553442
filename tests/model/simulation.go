// Package model tests a gateway, or a mail server, by the responses its clients receive.
// Several clients perform random operations on one mailbox, and each builds a View of it
// from responses alone. A response that IMAP does not allow, or a view that differs from
// the mailbox in the end, is a Violation. A FaultProxy breaks the connections between
// gateway and backend during the run.
//
// The package does not depend on the gateway; a Simulation needs only addresses. All
// choices derive from the seed of the run. A Simulation owns its Clients, and a Client
// owns its connection and its View.
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

// Mode is how the clients are connected to the backend.
type Mode string

// The modes.
const (
	Direct Mode = "direct"
	Splice Mode = "splice"
	Reuse  Mode = "reuse"
	Resume Mode = "resume"
)

// recovers reports whether sessions survive the loss of an upstream.
func (m Mode) recovers() bool { return m == Resume }

// Config configures one run.
type Config struct {
	Mode            Mode
	Faults          FaultLevel
	Detach          bool   // the gateway releases its upstream after each command
	Verify          string // how often the gateway compares its view with the backend
	UIDPrefetch     string // when the gateway fetches UIDs; default mux.PrefetchEager
	Moves           bool   // sessions are asked to take other connections, and paused
	Concurrent      bool   // all clients act at the same time
	Seed            uint64
	Turns           int    // per client
	Serial          uint64 // makes user names unique at the backend
	TranscriptLines int    // lines shown per client in a failure; default 60
	BackendAddress  string // of the backend itself
	TestedAddress   string // under test, through the fault proxy
	Quirks          Quirks
}

// Quirks are deviations of a backend from IMAP that a gateway cannot correct.
type Quirks struct {
	// CopiesExpunged: the backend answers OK, with a UID, to the copy of a message that
	// another session has expunged, although it copies nothing (Cyrus).
	CopiesExpunged bool
	// SilentHidesChanges: after STORE with .SILENT the backend reports neither new keywords
	// nor changes to the message by other sessions (Cyrus 3.10).
	SilentHidesChanges bool
}

// Stats counts the events of a run.
type Stats struct {
	Turns, SessionsEnded, ExpungeIssued, Copies, Checks, Moves int
	Faults                                                     FaultCounts
}

// sharedStats is Stats for concurrent updates.
type sharedStats struct {
	mu sync.Mutex // guards Stats
	Stats
}

func (t *sharedStats) update(f func(*Stats)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f(&t.Stats)
}

// Simulation is one run: one user's mailbox, its clients, and a client of another user at
// the same gateway.
type Simulation struct {
	Config

	// Set once.
	faultProxy  *FaultProxy
	account     *Account
	clients     []*Client // the last one is the other user's
	rng         *rand.Rand
	operations  []operation
	totalWeight int
	startCounts FaultCounts
	moveSome    func(rng *rand.Rand) // asks some sessions to move; nil: there are no moves

	lineCounter  atomic.Int64 // of the transcripts
	faultsPaused atomic.Bool  // no faults while set
	stats        sharedStats
}

// phases is how many times a run compares views with the backend.
const phases = 4

// NewSimulation creates the mailboxes of a run, with some mail.
func NewSimulation(c Config, faultProxy *FaultProxy) (*Simulation, error) {
	w := &Simulation{Config: c, faultProxy: faultProxy, rng: rand.New(rand.NewPCG(c.Seed, 0)), operations: operations()}
	for _, o := range w.operations {
		w.totalWeight += o.weight
	}
	w.startCounts = faultProxy.Counts()
	names := c.Users()
	w.account = newAccount(names[0])
	for i, kind := range []SyncLevel{Plain, Condstore, Qresync} {
		w.addClient(w.account, "pcq"[i:i+1], kind).viaFaultProxy = true
	}
	direct := w.addClient(w.account, "d", Plain)
	direct.address = c.BackendAddress
	otherAccount := newAccount(names[1])
	w.addClient(otherAccount, "s", SyncLevel(w.rng.IntN(3))).viaFaultProxy = true
	for _, a := range []*Account{w.account, otherAccount} {
		if err := w.createMailboxes(a); err != nil {
			return nil, fmt.Errorf("create mailboxes of %s: %w", a.user, err)
		}
	}
	return w, nil
}

// Users returns the user names of a run: the owner of the mailbox and the other user.
func (c Config) Users() []string {
	return []string{fmt.Sprintf("u%dq%d", c.Seed%1e5, c.Serial), fmt.Sprintf("v%dq%d", c.Seed%1e5, c.Serial)}
}

// addClient adds a client.
func (w *Simulation) addClient(account *Account, name string, kind SyncLevel) *Client {
	a := &Client{
		name: name, level: kind, sim: w, account: account, address: w.TestedAddress, privateMailbox: "Private-" + name,
		rng: rand.New(rand.NewPCG(w.Seed, uint64(len(w.clients)+1))), transcript: &transcript{lineCounter: &w.lineCounter, limit: cmp.Or(w.TranscriptLines, defaultTranscriptLines)},
	}
	w.clients = append(w.clients, a)
	return a
}

// createMailboxes creates the private mailboxes of an account and fills INBOX.
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

// chooseOperation returns a random operation. It keeps the size of the mailbox in bounds.
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
	panic("model: operation weights do not add up")
}

// Run executes the phases of the run and compares the views with the backend after each.
// Its error contains the clients' transcripts.
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

// turnsPerPhase returns the number of turns of a client in one phase.
func (w *Simulation) turnsPerPhase(a *Client) int {
	if a.account != w.account {
		return max(1, w.Turns/phases/4)
	}
	return max(1, w.Turns/phases)
}

// runSequentially runs the clients' turns one after the other in random order.
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

// runConcurrently runs all clients at the same time. The first error stops all of them.
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

// runTurns runs the turns of one client, or until another client fails.
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
