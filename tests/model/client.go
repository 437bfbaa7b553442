package model

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// Client simulates one mail client. In each of its turns it performs a random operation.
// It knows only what its View has learned from responses.
type Client struct {
	// Set once.
	name           string
	level          SyncLevel
	sim            *Simulation
	account        *Account
	address        string
	viaFaultProxy  bool       // connected through the fault proxy
	rng            *rand.Rand // for every choice
	privateMailbox string     // written by this client only

	// Owned by the goroutine that runs the client's turn.
	transcript     *transcript
	conn           *imapConn // nil: no session
	view           *View
	saved          *savedState // of INBOX, by a QRESYNC client, from its last session
	tagCount       int
	idleCommand    *Command    // IDLE in progress, or nil
	batches        []copyBatch // expected in the private mailbox, in command order
	stableCounts   FaultCounts // at the last response without any outstanding command
	openCounts     FaultCounts // at the session's start
	previousCounts FaultCounts // one command newer than stableCounts; if Concurrent
	active         bool        // the session has completed a command
}

// copyBatch is the effect of one COPY or MOVE on the private mailbox.
type copyBatch struct {
	subjects   []string
	unanswered bool // no response: all or none were copied
}

// chance returns true in n of 100 calls.
func (a *Client) chance(n int) bool { return a.rng.IntN(100) < n }

// pickWord returns one of the words at random.
func (a *Client) pickWord(words ...string) string { return words[a.rng.IntN(len(words))] }

// openSession connects, logs in and enables the extensions of the client's level.
func (a *Client) openSession() error {
	w, err := dial(a.address, a.transcript)
	if err != nil {
		return newViolation("connect: %v", err)
	}
	a.conn, a.view, a.idleCommand, a.active = w, NewView(a.level, a.account), nil, false
	a.view.concurrent, a.view.saved = a.sim.Concurrent, a.saved
	a.stableCounts = a.sim.faultProxy.Counts()
	a.previousCounts, a.openCounts = a.stableCounts, a.stableCounts
	greeting, err := w.readResponse()
	if err != nil {
		return a.handleEnd(err)
	}
	if !strings.HasPrefix(greeting.Text, "* OK ") {
		return newViolation("greeted with %q", greeting.Text)
	}
	if err := a.handleEnd(a.execOnce(a.loginCommand())); err != nil || a.conn == nil || a.level == Plain {
		return err
	}
	return a.exec(newCommand("ENABLE", strings.ToUpper(a.level.String())))
}

// loginCommand returns a LOGIN. A NO ends the session: with concurrent clients a fault
// armed by another client may cause it.
func (a *Client) loginCommand() *Command {
	return newCommand("LOGIN", a.account.user+" "+password).setOnEnd(func(r Result) error {
		if r.Status == "NO" {
			return &EndError{Cause: errors.New(r.Line)}
		}
		return nil
	})
}

// password is the password of every account.
const password = "pw"

// exec injects faults, sends the commands in one write and reads until all are answered.
// If the session ends in an allowed way, the next turn opens another.
func (a *Client) exec(commands ...*Command) error {
	a.injectFaults()
	err := a.execOnce(commands...)
	return a.handleEnd(err)
}

// execOnce is exec without faults and without handling the end of the session.
func (a *Client) execOnce(commands ...*Command) error {
	if a.conn == nil {
		return a.failUnsent(commands)
	}
	if err := a.readPending(); err != nil {
		return err
	}
	var text strings.Builder
	for _, c := range commands {
		a.queueCommand(&text, c)
	}
	if err := a.conn.sendBytes(text.String()); err != nil {
		return err
	}
	last := commands[len(commands)-1]
	if last.syncLiteral {
		if err := a.sendLiteral(last); err != nil {
			return err
		}
	}
	if last.verb == "IDLE" {
		a.idleCommand = last
		return a.readUntil(func() bool { return a.view.continuations > 0 })
	}
	return a.awaitReplies()
}

// awaitReplies reads until no command is outstanding.
func (a *Client) awaitReplies() error {
	if err := a.readUntil(func() bool { return len(a.view.outstanding) == 0 }); err != nil {
		return err
	}
	a.recordStable()
	a.active = true
	return nil
}

// recordStable records the fault counts after a complete response. With concurrent clients
// it keeps the previous counts, because a very recent fault may not have shown yet.
func (a *Client) recordStable() {
	now := a.sim.faultProxy.Counts()
	if a.sim.Concurrent {
		a.stableCounts, a.previousCounts = a.previousCounts, now
		return
	}
	a.stableCounts = now
}

// failUnsent finishes commands that were not sent because there is no session.
func (a *Client) failUnsent(commands []*Command) error {
	for _, c := range commands {
		if err := c.finish(Result{Status: "NO", Code: "UNSENT"}); err != nil {
			return err
		}
	}
	return nil
}

// queueCommand assigns a tag to a command and appends it to text.
func (a *Client) queueCommand(text *strings.Builder, c *Command) {
	a.tagCount++
	c.tag = fmt.Sprintf("%s%d", a.name, a.tagCount)
	onEnd := c.onEnd
	c.onEnd = func(r Result) error {
		if err := a.checkResult(c, r); err != nil || onEnd == nil {
			return err
		}
		return onEnd(r)
	}
	text.WriteString(c.firstLine())
	switch {
	case c.syncLiteral:
		fmt.Fprintf(text, " {%d}\r\n", len(c.literal))
	case c.literal != "":
		fmt.Fprintf(text, " {%d+}\r\n%s\r\n", len(c.literal), c.literal)
	default:
		text.WriteString("\r\n")
	}
	c.complete = !c.syncLiteral
	a.view.RecordSent(c)
}

// sendLiteral sends a literal after the server's continuation.
func (a *Client) sendLiteral(c *Command) error {
	err := a.readUntil(func() bool { return a.view.continuations > 0 || len(a.view.outstanding) == 0 })
	if err != nil || len(a.view.outstanding) == 0 {
		return err // refused
	}
	c.complete = true
	return a.conn.sendBytes(c.literal + "\r\n")
}

// readPending reads what has arrived without a command in progress, or during IDLE.
func (a *Client) readPending() error {
	return a.readUntil(func() bool { return !a.conn.isReadable() })
}

// readUntil reads responses until done returns true.
func (a *Client) readUntil(done func() bool) error {
	for !done() {
		r, err := a.conn.readResponse()
		if err == nil {
			err = a.view.Receive(r)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// recordEnd closes a session that has ended, if it may end this way.
func (a *Client) recordEnd(e *EndError) error {
	e.Bye = a.view.bye
	open := a.view.outstanding
	a.view.outstanding = nil
	if err := a.checkEndAllowed(e, open); err != nil {
		return err
	}
	for _, c := range open {
		if err := c.finish(Result{}); err != nil {
			return err
		}
	}
	a.closeSession()
	a.sim.stats.update(func(s *Stats) { s.SessionsEnded++ })
	return nil
}

// closeSession closes the connection and saves the state for a later QRESYNC.
func (a *Client) closeSession() {
	a.view.closeMailbox()
	a.saved = a.view.saved
	a.conn.close()
	a.conn, a.idleCommand = nil, nil
}

// checkEndAllowed checks whether a session may end like this. It may end with BYE after a
// loss with an unknown outcome, and without BYE in the middle of a response.
func (a *Client) checkEndAllowed(e *EndError, open []*Command) error {
	if !a.viaFaultProxy {
		return newViolation("a session ended without a fault: %v", e)
	}
	now := a.sim.faultProxy.Counts()
	faultsBetween := now.BetweenCommands > a.stableCounts.BetweenCommands
	faultsInside := now.InsideResponse > a.stableCounts.InsideResponse
	faultsInFlight := faultsInside || now.InFlight > a.stableCounts.InFlight
	if !a.sim.Mode.recovers() {
		if now != a.openCounts { // any later command may detect the loss
			return nil
		}
		return newViolation("a session ended without a fault: %v", e)
	}
	if a.sim.Concurrent { // a fault between commands of one client can be inside those of others
		faultsInside, faultsInFlight = faultsInside || faultsInFlight || faultsBetween, faultsInFlight || faultsBetween
	}
	nonIdempotent := false
	for _, c := range open {
		nonIdempotent = nonIdempotent || c.nonIdempotent && c.complete
	}
	switch {
	case e.Bye == "" && faultsInside, faultsInFlight && len(open) == 0 && !a.active:
		return nil
	case strings.HasPrefix(e.Bye, "BYE [UNAVAILABLE]") && faultsInFlight && nonIdempotent:
		return nil
	case strings.HasPrefix(e.Bye, "BYE [UNAVAILABLE]") && faultsInFlight && a.level == Qresync && slices.ContainsFunc(a.view.entries, isIncomplete):
		return nil // VANISHED cannot name a message whose UID was unknown at the loss
	}
	return newViolation("a session ended that had to survive: %v (faults between commands: %v, in flight: %v, inside a response: %v)",
		e, faultsBetween, faultsInFlight, faultsInside)
}

// checkResult checks whether a command may have this result.
func (a *Client) checkResult(c *Command, r Result) error {
	if r.Status != "NO" || r.Code == "UNSENT" {
		return nil
	}
	verb := strings.TrimPrefix(c.verb, "UID ")
	writes := verb == "STORE" || verb == "EXPUNGE" || verb == "MOVE"
	switch {
	case writes && a.view.readOnly:
		return nil
	case r.Code == "EXPUNGEISSUED" && (c.expunge == expungeNever || verb == "FETCH" || verb == "STORE" || verb == "COPY" || verb == "MOVE"):
		a.sim.stats.update(func(s *Stats) { s.ExpungeIssued++ })
		return nil
	case r.Code == "UNAVAILABLE" && c.verb == "LOGIN" && a.sim.Concurrent && a.sawFault():
		return nil
	case r.Code == "UNAVAILABLE" && c.verb == "APPEND" && a.viaFaultProxy && a.sawFault():
		return nil
	}
	return newViolation("%s %s was answered %q", c.verb, c.args, r.Line)
}

// sawFault reports whether a fault happened while a command was outstanding. In modes that
// do not recover, it reports whether one happened since the session began.
func (a *Client) sawFault() bool {
	now := a.sim.faultProxy.Counts()
	if !a.sim.Mode.recovers() {
		return now != a.openCounts
	}
	if !a.sim.Concurrent {
		now.BetweenCommands = a.stableCounts.BetweenCommands
	}
	return now != a.stableCounts
}
