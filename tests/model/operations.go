package model

import (
	"fmt"
	"slices"
	"strings"
)

const (
	// fewest and most are the sizes between which the mailbox is kept.
	fewest, most = 6, 45
	// maxTargets is how many messages one command is about.
	maxTargets = 5
)

// operation is something a client does with a mailbox, and how often.
type operation struct {
	weight int
	do     func(*Actor) error
}

// operations are all that a client with a mailbox does. Constant.
func operations() []operation {
	return []operation{
		{14, (*Actor).learn}, {6, (*Actor).fetchSubject}, {5, (*Actor).fetchBody}, {4, (*Actor).fetchUIDs},
		{16, (*Actor).store}, {9, (*Actor).copy}, {3, (*Actor).move}, {5, (*Actor).remove}, {3, (*Actor).expunge},
		{9, (*Actor).append}, {5, (*Actor).search}, {9, (*Actor).noop}, {6, (*Actor).startIdle}, {9, (*Actor).group},
		{2, (*Actor).other}, {2, (*Actor).again}, {2, (*Actor).deselect}, {1, (*Actor).logout}, {2, (*Actor).storeUnchanged},
	}
}

// turn does one thing.
func (a *Actor) turn() error {
	if a.wire == nil {
		if err := a.enter(); err != nil {
			return err
		}
	}
	switch {
	case a.wire == nil:
		return nil
	case a.idle != nil:
		return a.goOnIdle()
	case a.mirror.box == "":
		return a.withoutMailbox()
	}
	return a.world.choose(a)(a)
}

// withoutMailbox is what a client does before it selects one.
func (a *Actor) withoutMailbox() error {
	switch a.rng.IntN(10) {
	case 0:
		return a.other()
	case 1:
		return a.append()
	case 2, 3:
		return a.do(command("NOOP", ""))
	case 4, 5, 6: // others go on meanwhile
		return nil
	}
	return a.open()
}

// open selects INBOX, by QRESYNC where there is something to go on from.
func (a *Actor) open() error {
	c := command("SELECT", "INBOX")
	if a.chance(8) {
		c = command("EXAMINE", "INBOX")
	}
	c.selects = "INBOX"
	kept := a.mirror.kept
	if a.mirror.box != "" && a.kind == Qresync { // what SELECT will leave behind
		a.mirror.keep()
		kept = a.mirror.kept
	}
	switch {
	case kept != nil && a.chance(80):
		c.resync = kept
		c.args += fmt.Sprintf(" (QRESYNC (%d %d))", kept.uidValidity, kept.modseq)
	case a.kind == Condstore && a.chance(50):
		c.args += " (CONDSTORE)"
	}
	return a.do(c)
}

// numbered gives all message numbers for which ok says yes.
func (a *Actor) numbered(ok func(entry) bool) (all []uint32) {
	for i, e := range a.mirror.entries {
		if ok(e) {
			all = append(all, uint32(i+1))
		}
	}
	return all
}

// numbers gives one of them, or up to most.
func (a *Actor) numbers(most int, ok func(entry) bool) []uint32 {
	all := a.numbered(ok)
	a.rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	all = all[:min(len(all), 1+a.rng.IntN(most))]
	slices.Sort(all)
	return all
}

func anything(entry) bool  { return true }
func known(e entry) bool   { return e.uid != 0 }
func unknown(e entry) bool { return e.uid == 0 || e.flags == nil }

// address makes a command about messages, by number or by UID. Without messages
// there is none.
func (a *Actor) about(verb string, numbers []uint32, rest string) *Command {
	var uids []uint32
	for _, n := range numbers {
		uids = append(uids, a.mirror.entries[n-1].uid)
	}
	var c *Command
	if slices.Contains(uids, 0) || a.chance(50) {
		c = command(verb, formatSet(numbers)+" "+rest)
	} else {
		c = command("UID "+verb, formatSet(uids)+" "+rest)
	}
	c.targets = uids
	return c
}

const subjectItem = "BODY.PEEK[HEADER.FIELDS (SUBJECT)]"

// learn fetches what was never fetched, and only that: flags that are fetched
// again would hide that they were not told.
func (a *Actor) learn() error {
	numbers := a.numbered(unknown)
	if len(numbers) == 0 {
		return a.noop()
	}
	return a.do(command("FETCH", formatSet(numbers)+" (UID FLAGS "+subjectItem+")"))
}

func (a *Actor) fetchSubject() error {
	return a.fetch(maxTargets, "("+subjectItem+" UID)")
}
func (a *Actor) fetchBody() error {
	return a.fetch(2, a.pick("(UID BODY[])", "(BODY.PEEK[])"))
}

// fetch wants the content of every message it asks for, unless the server says
// that some are gone.
func (a *Actor) fetch(max int, items string) error {
	numbers := a.numbers(max, anything)
	if len(numbers) == 0 {
		return a.append()
	}
	c := a.about("FETCH", numbers, items)
	return a.do(c.then(func(r Result) error {
		if !r.ok() || r.Code != "" {
			return nil
		}
		for _, uid := range c.targets {
			_, answered := c.answered[uid]
			there := slices.ContainsFunc(a.mirror.entries, func(e entry) bool { return e.uid == uid })
			if uid != 0 && there && !answered {
				return violation("%s is answered OK without UID %d", c.text(), uid)
			}
		}
		return nil
	}))
}

func (a *Actor) fetchUIDs() error {
	if len(a.mirror.entries) == 0 {
		return a.append()
	}
	if a.kind != Plain && a.chance(50) {
		return a.do(command(a.pick("FETCH", "UID FETCH"), fmt.Sprintf("1:* (UID) (CHANGEDSINCE %d)", max(1, a.mirror.modseq))))
	}
	return a.do(a.about("FETCH", a.numbers(maxTargets, anything), "(UID)"))
}

// noop is a sync point.
func (a *Actor) noop() error { return a.do(command(a.pick("NOOP", "NOOP", "CHECK"), "")) }

// append adds a message that nobody has had yet.
func (a *Actor) append() error {
	subject := a.account.marker()
	c := command("APPEND", a.pick("INBOX", `INBOX (\Flagged)`, `INBOX (\Seen $Label1)`))
	c.literal, c.waits = message(subject), a.chance(50)
	return a.do(c.then(func(r Result) error { return a.account.appendedAs(subject, r) }))
}

// search looks for something, by numbers too.
func (a *Actor) search() error {
	n := len(a.mirror.entries)
	if n == 0 {
		return a.append()
	}
	first := 1 + a.rng.IntN(n)
	set := fmt.Sprintf("%d:%d", first, first+a.rng.IntN(n-first+1))
	criteria := a.pick("ALL", "UNSEEN", `DELETED`, "KEYWORD $Label1", `HEADER SUBJECT "-1"`)
	with := a.pick("", "", "RETURN (ALL) ", "RETURN (COUNT MIN) ")
	switch a.rng.IntN(4) {
	case 0:
		return a.do(command("SEARCH", with+criteria))
	case 1:
		return a.do(command("SEARCH", with+set+" "+criteria))
	case 2:
		return a.do(command("UID SEARCH", with+set+" "+criteria).numbered())
	}
	return a.do(command("UID SEARCH", with+criteria))
}

// startIdle begins IDLE, which goes on while others take their turns.
func (a *Actor) startIdle() error { return a.do(command("IDLE", "")) }

// goOnIdle hears what came, and may end IDLE.
func (a *Actor) goOnIdle() error {
	a.trouble()
	err := a.hear()
	if err == nil && a.chance(40) {
		err = a.done(a.chance(30))
	}
	return a.survive(err)
}

// stopIdle ends IDLE if it is in progress.
func (a *Actor) stopIdle() error {
	if a.wire == nil || a.idle == nil {
		return nil
	}
	a.trouble()
	return a.survive(a.done(false))
}

// survive is the end of what do does.
func (a *Actor) survive(err error) error {
	if a.faulty {
		a.world.breaker.Disarm()
	}
	if e, ok := asEnded(err); ok {
		return a.lost(e)
	}
	return err
}

// done ends IDLE; quickly: with another command in the same write.
func (a *Actor) done(quickly bool) error {
	a.idle = nil
	var text strings.Builder
	text.WriteString("DONE\r\n")
	if quickly {
		a.say(&text, command("NOOP", ""))
	}
	if err := a.wire.send(text.String()); err != nil {
		return err
	}
	return a.answers()
}

// other is about other mailboxes.
func (a *Actor) other() error {
	items := "MESSAGES UIDNEXT UNSEEN"
	if a.kind != Plain {
		items += " HIGHESTMODSEQ"
	}
	switch a.rng.IntN(3) {
	case 0:
		return a.do(command("STATUS", a.private+" ("+items+")"))
	case 1:
		return a.do(command("LIST", `"" *`))
	}
	return a.do(command("CAPABILITY", ""))
}

// again selects the mailbox once more, from within it or from outside.
func (a *Actor) again() error {
	if a.chance(50) {
		if err := a.deselect(); err != nil || a.wire == nil {
			return err
		}
	}
	return a.open()
}

// deselect leaves the mailbox. A QRESYNC client that does not know all of it
// could not go on from there later.
func (a *Actor) deselect() error {
	if a.kind == Qresync {
		if err := a.learn(); err != nil || a.wire == nil || a.mirror.box == "" {
			return err
		}
	}
	return a.do(command(a.pick("CLOSE", "UNSELECT"), ""))
}

// logout ends the session and begins another.
func (a *Actor) logout() error {
	if err := a.do(command("LOGOUT", "")); err != nil || a.wire == nil {
		return err
	}
	if a.mirror.said == "" {
		return violation("LOGOUT without BYE")
	}
	a.leave()
	return nil
}
