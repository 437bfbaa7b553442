package model

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// Actor is one client: it does something at random, in its turn, and believes
// nothing but its Mirror.
type Actor struct {
	// Set once.
	name    string
	kind    Kind
	world   *World
	account *Account
	address string
	faulty  bool       // what it says passes the breaker
	rng     *rand.Rand // every choice
	private string     // the mailbox nobody else writes to

	// Owned by whoever takes the actor's turn.
	said    *transcript
	wire    *wire // nil: no session
	mirror  *Mirror
	kept    *cache // of INBOX, by a QRESYNC client, from its last session
	tags    int
	idle    *Command // IDLE is in progress
	batches []batch  // what should be in private, in the order of the commands
	calm    Broken   // what was broken when all was last well
	entered Broken   // what was broken when the session began
	lately  Broken   // the same, one command later; only while racing
	used    bool     // the session has done something
}

// batch is what one COPY or MOVE should have put into the private mailbox.
type batch struct {
	subjects []string
	doubtful bool // no answer came: all of it is there or nothing
}

// chance says yes in n of 100 cases.
func (a *Actor) chance(n int) bool { return a.rng.IntN(100) < n }

// pick gives one of several words.
func (a *Actor) pick(words ...string) string { return words[a.rng.IntN(len(words))] }

// enter begins a session: login, what the kind enables, INBOX.
func (a *Actor) enter() error {
	w, err := dial(a.address, a.said)
	if err != nil {
		return violation("connect: %v", err)
	}
	a.wire, a.mirror, a.idle, a.used = w, NewMirror(a.kind, a.account), nil, false
	a.mirror.racing, a.mirror.kept = a.world.Racing, a.kept
	a.calm = a.world.breaker.Broken()
	a.lately, a.entered = a.calm, a.calm
	greeting, err := w.read()
	if err != nil {
		return a.survive(err)
	}
	if !strings.HasPrefix(greeting.Text, "* OK ") {
		return violation("greeted with %q", greeting.Text)
	}
	if err := a.survive(a.attempt(a.login())); err != nil || a.wire == nil || a.kind == Plain {
		return err
	}
	return a.do(command("ENABLE", strings.ToUpper(a.kind.String())))
}

// login is answered NO where others break connections at the same time.
func (a *Actor) login() *Command {
	return command("LOGIN", a.account.user+" "+password).then(func(r Result) error {
		if r.Status == "NO" {
			return &Ended{Cause: errors.New(r.Line)}
		}
		return nil
	})
}

// password is that of every account.
const password = "pw"

// do says one or more commands in one write and takes what comes until all are
// answered. A session that ends as it may is begun again at the next turn.
func (a *Actor) do(commands ...*Command) error {
	a.trouble()
	err := a.attempt(commands...)
	return a.survive(err)
}

// attempt is do without trouble and without a second session.
func (a *Actor) attempt(commands ...*Command) error {
	if a.wire == nil {
		return a.lostAlready(commands)
	}
	if err := a.hear(); err != nil {
		return err
	}
	var text strings.Builder
	for _, c := range commands {
		a.say(&text, c)
	}
	if err := a.wire.send(text.String()); err != nil {
		return err
	}
	last := commands[len(commands)-1]
	if last.waits {
		if err := a.literal(last); err != nil {
			return err
		}
	}
	if last.verb == "IDLE" {
		a.idle = last
		return a.until(func() bool { return a.mirror.plus > 0 })
	}
	return a.answers()
}

// answers takes what comes until everything is answered.
func (a *Actor) answers() error {
	if err := a.until(func() bool { return len(a.mirror.open) == 0 }); err != nil {
		return err
	}
	a.calmDown()
	a.used = true
	return nil
}

// calmDown notes that all is well. Where others break connections at the same
// time, one may have been broken a moment ago that has not been noticed yet.
func (a *Actor) calmDown() {
	now := a.world.breaker.Broken()
	if a.world.Racing {
		a.calm, a.lately = a.lately, now
		return
	}
	a.calm = now
}

// lostAlready tells commands that there is no session for them.
func (a *Actor) lostAlready(commands []*Command) error {
	for _, c := range commands {
		if err := c.end(Result{Status: "NO", Code: "UNSENT"}); err != nil {
			return err
		}
	}
	return nil
}

// say gives a command its tag and adds it to what is sent.
func (a *Actor) say(text *strings.Builder, c *Command) {
	a.tags++
	c.tag = fmt.Sprintf("%s%d", a.name, a.tags)
	ended := c.ended
	c.ended = func(r Result) error {
		if err := a.acceptable(c, r); err != nil || ended == nil {
			return err
		}
		return ended(r)
	}
	text.WriteString(c.text())
	switch {
	case c.waits:
		fmt.Fprintf(text, " {%d}\r\n", len(c.literal))
	case c.literal != "":
		fmt.Fprintf(text, " {%d+}\r\n%s\r\n", len(c.literal), c.literal)
	default:
		text.WriteString("\r\n")
	}
	c.complete = !c.waits
	a.mirror.Sent(c)
}

// literal sends a literal when the server asks for it.
func (a *Actor) literal(c *Command) error {
	err := a.until(func() bool { return a.mirror.plus > 0 || len(a.mirror.open) == 0 })
	if err != nil || len(a.mirror.open) == 0 {
		return err // refused
	}
	c.complete = true
	return a.wire.send(c.literal + "\r\n")
}

// hear takes what has come while no command was in progress, or during IDLE.
func (a *Actor) hear() error {
	return a.until(func() bool { return !a.wire.waiting() })
}

// until takes responses until enough.
func (a *Actor) until(enough func() bool) error {
	for !enough() {
		r, err := a.wire.read()
		if err == nil {
			err = a.mirror.Take(r)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// lost takes the end of a session, if it may end so.
func (a *Actor) lost(e *Ended) error {
	e.Bye = a.mirror.said
	open := a.mirror.open
	a.mirror.open = nil
	if err := a.permitted(e, open); err != nil {
		return err
	}
	for _, c := range open {
		if err := c.end(Result{}); err != nil {
			return err
		}
	}
	a.leave()
	a.world.stats.add(func(s *Stats) { s.Ended++ })
	return nil
}

// leave gives the session up, and keeps what the client may keep.
func (a *Actor) leave() {
	a.mirror.leave()
	a.kept = a.mirror.kept
	a.wire.close()
	a.wire, a.idle = nil, nil
}

// permitted says whether a session may end like this: after a loss whose outcome
// nobody knows, with BYE; in the middle of a response, without a word.
func (a *Actor) permitted(e *Ended, open []*Command) error {
	if !a.faulty {
		return violation("a session ends that nobody broke: %v", e)
	}
	now := a.world.breaker.Broken()
	between := now.Between > a.calm.Between
	inside := now.Inside > a.calm.Inside
	flight := inside || now.Flight > a.calm.Flight
	if !a.world.Mode.heals() {
		if now != a.entered { // a loss may be noticed at any later command
			return nil
		}
		return violation("a session ends that nobody broke: %v", e)
	}
	if a.world.Racing { // what is between two commands of one is inside those of others
		inside, flight = inside || flight || between, flight || between
	}
	once := false
	for _, c := range open {
		once = once || c.onlyOnce && c.complete
	}
	switch {
	case e.Bye == "" && inside, flight && len(open) == 0 && !a.used:
		return nil
	case strings.HasPrefix(e.Bye, "BYE [UNAVAILABLE]") && flight && once:
		return nil
	case strings.HasPrefix(e.Bye, "BYE [UNAVAILABLE]") && flight && a.kind == Qresync && slices.ContainsFunc(a.mirror.entries, unknown):
		return nil // VANISHED cannot name a message that was told of a moment before the loss
	}
	return violation("a session ends that has to go on: %v (broken between commands: %v, in flight: %v, inside: %v)",
		e, between, flight, inside)
}

// acceptable says whether a command may be answered like this.
func (a *Actor) acceptable(c *Command, r Result) error {
	if r.Status != "NO" || r.Code == "UNSENT" {
		return nil
	}
	verb := strings.TrimPrefix(c.verb, "UID ")
	writes := verb == "STORE" || verb == "EXPUNGE" || verb == "MOVE"
	switch {
	case writes && a.mirror.readOnly:
		return nil
	case r.Code == "EXPUNGEISSUED" && (c.expunge == never || verb == "FETCH" || verb == "STORE" || verb == "COPY" || verb == "MOVE"):
		a.world.stats.add(func(s *Stats) { s.ExpungeIssued++ })
		return nil
	case r.Code == "UNAVAILABLE" && c.verb == "LOGIN" && a.world.Racing && a.disturbed():
		return nil
	case r.Code == "UNAVAILABLE" && c.verb == "APPEND" && a.faulty && a.disturbed():
		return nil
	}
	return violation("%s %s was answered %q", c.verb, c.args, r.Line)
}

// disturbed says whether something was broken while a command was under way, or
// since the session began where no session gets another connection.
func (a *Actor) disturbed() bool {
	now := a.world.breaker.Broken()
	if !a.world.Mode.heals() {
		return now != a.entered
	}
	if !a.world.Racing {
		now.Between = a.calm.Between
	}
	return now != a.calm
}
