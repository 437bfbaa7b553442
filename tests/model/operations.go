package model

import (
	"fmt"
	"slices"
	"strings"
)

const (
	// minMessages and maxMessages bound the size of the mailbox.
	minMessages, maxMessages = 6, 45
	// maxTargets bounds the messages of one command.
	maxTargets = 5
)

// operation is an operation on a mailbox with its relative frequency.
type operation struct {
	weight int
	do     func(*Client) error
}

// operations returns all operations of a client with a selected mailbox.
func operations() []operation {
	return []operation{
		{14, (*Client).fetchUnknown}, {6, (*Client).fetchSubject}, {5, (*Client).fetchBody}, {4, (*Client).fetchUIDs},
		{16, (*Client).store}, {9, (*Client).copy}, {3, (*Client).move}, {5, (*Client).deleteMessages}, {3, (*Client).expunge},
		{9, (*Client).append}, {5, (*Client).search}, {9, (*Client).noop}, {6, (*Client).startIdle}, {9, (*Client).pipeline},
		{2, (*Client).queryMailboxes}, {2, (*Client).reselect}, {2, (*Client).deselect}, {1, (*Client).logout}, {2, (*Client).storeUnchanged},
	}
}

// takeTurn performs one operation.
func (a *Client) takeTurn() error {
	if a.conn == nil {
		if err := a.openSession(); err != nil {
			return err
		}
	}
	switch {
	case a.conn == nil:
		return nil
	case a.idleCommand != nil:
		return a.continueIdle()
	case a.view.mailbox == "":
		return a.actUnselected()
	}
	return a.sim.chooseOperation(a)(a)
}

// actUnselected performs an operation without a selected mailbox, or selects INBOX.
func (a *Client) actUnselected() error {
	switch a.rng.IntN(10) {
	case 0:
		return a.queryMailboxes()
	case 1:
		return a.append()
	case 2, 3:
		return a.exec(newCommand("NOOP", ""))
	case 4, 5, 6: // let the other clients act
		return nil
	}
	return a.selectInbox()
}

// selectInbox selects INBOX, with QRESYNC if there is a saved state.
func (a *Client) selectInbox() error {
	c := newCommand("SELECT", "INBOX")
	if a.chance(8) {
		c = newCommand("EXAMINE", "INBOX")
	}
	c.mailbox = "INBOX"
	saved := a.view.saved
	if a.view.mailbox != "" && a.level == Qresync { // SELECT closes the mailbox
		a.view.saveState()
		saved = a.view.saved
	}
	switch {
	case saved != nil && a.chance(80):
		c.resyncFrom = saved
		c.args += fmt.Sprintf(" (QRESYNC (%d %d))", saved.uidValidity, saved.modseq)
	case a.level == Condstore && a.chance(50):
		c.args += " (CONDSTORE)"
	}
	return a.exec(c)
}

// matchingNumbers returns the numbers of all messages that match.
func (a *Client) matchingNumbers(ok func(viewEntry) bool) (all []uint32) {
	for i, e := range a.view.entries {
		if ok(e) {
			all = append(all, uint32(i+1))
		}
	}
	return all
}

// pickNumbers returns a random selection of up to most of them.
func (a *Client) pickNumbers(most int, ok func(viewEntry) bool) []uint32 {
	all := a.matchingNumbers(ok)
	a.rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	all = all[:min(len(all), 1+a.rng.IntN(most))]
	slices.Sort(all)
	return all
}

func isAny(viewEntry) bool          { return true }
func hasUID(e viewEntry) bool       { return e.uid != 0 }
func isIncomplete(e viewEntry) bool { return e.uid == 0 || e.flags == nil }

// messageCommand returns a command for messages, which it names by number or by UID.
func (a *Client) messageCommand(verb string, numbers []uint32, rest string) *Command {
	var uids []uint32
	for _, n := range numbers {
		uids = append(uids, a.view.entries[n-1].uid)
	}
	var c *Command
	if slices.Contains(uids, 0) || a.chance(50) {
		c = newCommand(verb, formatSet(numbers)+" "+rest)
	} else {
		c = newCommand("UID "+verb, formatSet(uids)+" "+rest)
	}
	c.targets = uids
	return c
}

const subjectItem = "BODY.PEEK[HEADER.FIELDS (SUBJECT)]"

// fetchUnknown fetches only messages that were not fetched before. Fetching flags again
// would hide that the server did not report a change.
func (a *Client) fetchUnknown() error {
	numbers := a.matchingNumbers(isIncomplete)
	if len(numbers) == 0 {
		return a.noop()
	}
	return a.exec(newCommand("FETCH", formatSet(numbers)+" (UID FLAGS "+subjectItem+")"))
}

func (a *Client) fetchSubject() error {
	return a.fetch(maxTargets, "("+subjectItem+" UID)")
}
func (a *Client) fetchBody() error {
	return a.fetch(2, a.pickWord("(UID BODY[])", "(BODY.PEEK[])"))
}

// fetch fetches messages and checks that each has content, unless the result code says
// that some were expunged.
func (a *Client) fetch(max int, items string) error {
	numbers := a.pickNumbers(max, isAny)
	if len(numbers) == 0 {
		return a.append()
	}
	c := a.messageCommand("FETCH", numbers, items)
	return a.exec(c.setOnEnd(func(r Result) error {
		if !r.isOK() || r.Code != "" {
			return nil
		}
		for _, uid := range c.targets {
			_, answered := c.contentSeen[uid]
			exists := slices.ContainsFunc(a.view.entries, func(e viewEntry) bool { return e.uid == uid })
			if uid != 0 && exists && !answered {
				return newViolation("%s is answered OK without UID %d", c.firstLine(), uid)
			}
		}
		return nil
	}))
}

func (a *Client) fetchUIDs() error {
	if len(a.view.entries) == 0 {
		return a.append()
	}
	if a.level != Plain && a.chance(50) {
		return a.exec(newCommand(a.pickWord("FETCH", "UID FETCH"), fmt.Sprintf("1:* (UID) (CHANGEDSINCE %d)", max(1, a.view.highestModseq))))
	}
	return a.exec(a.messageCommand("FETCH", a.pickNumbers(maxTargets, isAny), "(UID)"))
}

// noop is a sync point.
func (a *Client) noop() error { return a.exec(newCommand(a.pickWord("NOOP", "NOOP", "CHECK"), "")) }

// append adds a new message.
func (a *Client) append() error {
	subject := a.account.nextSubject()
	c := newCommand("APPEND", a.pickWord("INBOX", `INBOX (\Flagged)`, `INBOX (\Seen $Label1)`))
	c.literal, c.syncLiteral = makeMessage(subject), a.chance(50)
	return a.exec(c.setOnEnd(func(r Result) error { return a.account.recordAppend(subject, r) }))
}

// search sends a random SEARCH, some with message numbers.
func (a *Client) search() error {
	n := len(a.view.entries)
	if n == 0 {
		return a.append()
	}
	first := 1 + a.rng.IntN(n)
	set := fmt.Sprintf("%d:%d", first, first+a.rng.IntN(n-first+1))
	criteria := a.pickWord("ALL", "UNSEEN", `DELETED`, "KEYWORD $Label1", `HEADER SUBJECT "-1"`)
	with := a.pickWord("", "", "RETURN (ALL) ", "RETURN (COUNT MIN) ")
	switch a.rng.IntN(4) {
	case 0:
		return a.exec(newCommand("SEARCH", with+criteria))
	case 1:
		return a.exec(newCommand("SEARCH", with+set+" "+criteria))
	case 2:
		return a.exec(newCommand("UID SEARCH", with+set+" "+criteria).markNumbered())
	}
	return a.exec(newCommand("UID SEARCH", with+criteria))
}

// startIdle begins IDLE, which lasts during the turns of other clients.
func (a *Client) startIdle() error { return a.exec(newCommand("IDLE", "")) }

// continueIdle reads what has arrived, and may end IDLE.
func (a *Client) continueIdle() error {
	a.injectFaults()
	err := a.readPending()
	if err == nil && a.chance(40) {
		err = a.sendDone(a.chance(30))
	}
	return a.handleEnd(err)
}

// stopIdle ends IDLE if it is in progress.
func (a *Client) stopIdle() error {
	if a.conn == nil || a.idleCommand == nil {
		return nil
	}
	a.injectFaults()
	return a.handleEnd(a.sendDone(false))
}

// handleEnd disarms the faults and handles the end of a session if err is one.
func (a *Client) handleEnd(err error) error {
	if a.viaFaultProxy {
		a.sim.faultProxy.Disarm()
	}
	if e, ok := asEndError(err); ok {
		return a.recordEnd(e)
	}
	return err
}

// sendDone ends IDLE, with withNoop also sending NOOP in the same write.
func (a *Client) sendDone(withNoop bool) error {
	a.idleCommand = nil
	var text strings.Builder
	text.WriteString("DONE\r\n")
	if withNoop {
		a.queueCommand(&text, newCommand("NOOP", ""))
	}
	if err := a.conn.sendBytes(text.String()); err != nil {
		return err
	}
	return a.awaitReplies()
}

// queryMailboxes sends a command that needs no selected mailbox.
func (a *Client) queryMailboxes() error {
	items := "MESSAGES UIDNEXT UNSEEN"
	if a.level != Plain {
		items += " HIGHESTMODSEQ"
	}
	switch a.rng.IntN(3) {
	case 0:
		return a.exec(newCommand("STATUS", a.privateMailbox+" ("+items+")"))
	case 1:
		return a.exec(newCommand("LIST", `"" *`))
	}
	return a.exec(newCommand("CAPABILITY", ""))
}

// reselect selects the mailbox again, with or without deselecting it first.
func (a *Client) reselect() error {
	if a.chance(50) {
		if err := a.deselect(); err != nil || a.conn == nil {
			return err
		}
	}
	return a.selectInbox()
}

// deselect closes the mailbox. A QRESYNC client first fetches what it does not know,
// because it could not resync from an incomplete state.
func (a *Client) deselect() error {
	if a.level == Qresync {
		if err := a.fetchUnknown(); err != nil || a.conn == nil || a.view.mailbox == "" {
			return err
		}
	}
	return a.exec(newCommand(a.pickWord("CLOSE", "UNSELECT"), ""))
}

// logout ends the session.
func (a *Client) logout() error {
	if err := a.exec(newCommand("LOGOUT", "")); err != nil || a.conn == nil {
		return err
	}
	if a.view.bye == "" {
		return newViolation("LOGOUT without BYE")
	}
	a.closeSession()
	return nil
}
