package model

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// Client is one client: it does something at random, in its turn, and believes
// nothing but its Mirror.
type Client struct {
	// Set once.
	name           string
	level          SyncLevel
	sim            *Simulation
	account        *Account
	address        string
	behindFaults   bool       // what it says passes the breaker
	rng            *rand.Rand // every choice
	privateMailbox string     // the mailbox nobody else writes to

	// Owned by whoever takes the actor's turn.
	transcript     *transcript
	conn           *imapConn // nil: no session
	view           *View
	saved          *savedState // of INBOX, by a QRESYNC client, from its last session
	tagCount       int
	idleCommand    *Command    // IDLE is in progress
	batches        []copyBatch // what should be in private, in the order of the commands
	stableCounts   FaultCounts // what was broken when all was last well
	openCounts     FaultCounts // what was broken when the session began
	previousCounts FaultCounts // the same, one command later; only while racing
	active         bool        // the session has done something
}

// copyBatch is what one COPY or MOVE should have put into the private mailbox.
type copyBatch struct {
	subjects   []string
	unanswered bool // no answer came: all of it is there or nothing
}

// chance says yes in n of 100 cases.
func (a *Client) chance(n int) bool { return a.rng.IntN(100) < n }

// pickWord gives one of several words.
func (a *Client) pickWord(words ...string) string { return words[a.rng.IntN(len(words))] }

// openSession begins a session: login, what the kind enables, INBOX.
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

// loginCommand is answered NO where others break connections at the same time.
func (a *Client) loginCommand() *Command {
	return newCommand("LOGIN", a.account.user+" "+password).setOnEnd(func(r Result) error {
		if r.Status == "NO" {
			return &EndError{Cause: errors.New(r.Line)}
		}
		return nil
	})
}

// password is that of every account.
const password = "pw"

// exec says one or more commands in one write and takes what comes until all are
// answered. A session that ends as it may is begun again at the next turn.
func (a *Client) exec(commands ...*Command) error {
	a.injectFaults()
	err := a.execOnce(commands...)
	return a.handleEnd(err)
}

// execOnce is do without trouble and without a second session.
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

// awaitReplies takes what comes until everything is answered.
func (a *Client) awaitReplies() error {
	if err := a.readUntil(func() bool { return len(a.view.outstanding) == 0 }); err != nil {
		return err
	}
	a.recordStable()
	a.active = true
	return nil
}

// recordStable notes that all is well. Where others break connections at the same
// time, one may have been broken a moment ago that has not been noticed yet.
func (a *Client) recordStable() {
	now := a.sim.faultProxy.Counts()
	if a.sim.Concurrent {
		a.stableCounts, a.previousCounts = a.previousCounts, now
		return
	}
	a.stableCounts = now
}

// failUnsent tells commands that there is no session for them.
func (a *Client) failUnsent(commands []*Command) error {
	for _, c := range commands {
		if err := c.finish(Result{Status: "NO", Code: "UNSENT"}); err != nil {
			return err
		}
	}
	return nil
}

// queueCommand gives a command its tag and adds it to what is sent.
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

// sendLiteral sends a literal when the server asks for it.
func (a *Client) sendLiteral(c *Command) error {
	err := a.readUntil(func() bool { return a.view.continuations > 0 || len(a.view.outstanding) == 0 })
	if err != nil || len(a.view.outstanding) == 0 {
		return err // refused
	}
	c.complete = true
	return a.conn.sendBytes(c.literal + "\r\n")
}

// readPending takes what has come while no command was in progress, or during IDLE.
func (a *Client) readPending() error {
	return a.readUntil(func() bool { return !a.conn.isReadable() })
}

// readUntil takes responses until enough.
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

// recordEnd takes the end of a session, if it may end so.
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

// closeSession gives the session up, and keeps what the client may keep.
func (a *Client) closeSession() {
	a.view.closeMailbox()
	a.saved = a.view.saved
	a.conn.close()
	a.conn, a.idleCommand = nil, nil
}

// checkEndAllowed says whether a session may end like this: after a loss whose outcome
// nobody knows, with BYE; in the middle of a response, without a word.
func (a *Client) checkEndAllowed(e *EndError, open []*Command) error {
	if !a.behindFaults {
		return newViolation("a session ends that nobody broke: %v", e)
	}
	now := a.sim.faultProxy.Counts()
	faultsBetween := now.BetweenCommands > a.stableCounts.BetweenCommands
	faultsInside := now.InsideResponse > a.stableCounts.InsideResponse
	faultsInFlight := faultsInside || now.InFlight > a.stableCounts.InFlight
	if !a.sim.Mode.recovers() {
		if now != a.openCounts { // a loss may be noticed at any later command
			return nil
		}
		return newViolation("a session ends that nobody broke: %v", e)
	}
	if a.sim.Concurrent { // what is between two commands of one is inside those of others
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
		return nil // VANISHED cannot name a message that was told of a moment before the loss
	}
	return newViolation("a session ends that has to go on: %v (broken between commands: %v, in flight: %v, inside: %v)",
		e, faultsBetween, faultsInFlight, faultsInside)
}

// checkResult says whether a command may be answered like this.
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
	case r.Code == "UNAVAILABLE" && c.verb == "APPEND" && a.behindFaults && a.sawFault():
		return nil
	}
	return newViolation("%s %s was answered %q", c.verb, c.args, r.Line)
}

// sawFault says whether something was broken while a command was under way, or
// since the session began where no session gets another connection.
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
