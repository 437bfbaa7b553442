package model

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// The operations that change mailboxes.

// flagChange is the change of flags by a STORE.
type flagChange struct {
	sign  string // "+", "-", or "" to replace
	flags []string
}

func (a *Client) randomChange() flagChange {
	flags := []string{`\Seen`, `\Flagged`, `\Answered`, `\Draft`, "$Label1", "$Label2", fmt.Sprintf("k%d", a.rng.IntN(30))}
	a.rng.Shuffle(len(flags), func(i, j int) { flags[i], flags[j] = flags[j], flags[i] })
	return flagChange{a.pickWord("+", "+", "-", "-", ""), flags[:1+a.rng.IntN(2)]}
}

// store changes flags. After .SILENT the client computes the new flags.
func (a *Client) store() error {
	numbers := a.pickNumbers(maxTargets, hasUID)
	if len(numbers) == 0 {
		return a.fetchUnknown()
	}
	return a.exec(a.storeCommand(numbers, a.randomChange()))
}

func (a *Client) storeCommand(numbers []uint32, ch flagChange) *Command {
	silent := ""
	if a.chance(40) && !a.sim.Quirks.SilentHidesChanges {
		silent = ".SILENT"
	}
	c := a.messageCommand("STORE", numbers, ch.sign+"FLAGS"+silent+" ("+strings.Join(ch.flags, " ")+")")
	return c.setOnEnd(func(r Result) error {
		if silent != "" || !r.isOK() {
			a.applySilent(c, ch, r)
		}
		return nil
	})
}

// applySilent applies a change that the server need not report.
func (a *Client) applySilent(c *Command, ch flagChange, r Result) {
	for i := range a.view.entries {
		e := &a.view.entries[i]
		if e.flags == nil || !slices.Contains(c.targets, e.uid) {
			continue
		}
		_, seen := c.flagsSeen[e.uid]
		switch {
		case r.Code == "UNSENT", a.view.readOnly: // no change, whatever the result
		case !r.isOK(), seen && a.view.concurrent:
			e.markUncertain(ch)
		default:
			e.applyChange(ch)
		}
	}
}

// markUncertain marks the flags of a change that may or may not have happened.
func (e *viewEntry) markUncertain(ch flagChange) {
	if ch.sign == "" {
		e.flags, e.uncertain = nil, nil
		return
	}
	e.uncertain = maps.Clone(e.uncertain)
	if e.uncertain == nil {
		e.uncertain = map[string]struct{}{}
	}
	for _, f := range ch.flags {
		e.uncertain[f] = struct{}{}
	}
}

func (e *viewEntry) applyChange(ch flagChange) {
	if ch.sign == "" {
		e.flags, e.uncertain = map[string]struct{}{}, nil
	}
	for _, f := range ch.flags {
		delete(e.uncertain, f)
		if ch.sign == "-" {
			delete(e.flags, f)
		} else {
			e.flags[f] = struct{}{}
		}
	}
}

// storeUnchanged changes flags of messages that no other client has changed
// (RFC 7162 §3.1.3).
func (a *Client) storeUnchanged() error {
	numbers := a.pickNumbers(2, func(e viewEntry) bool { return e.modseq > 0 && e.uid > 0 })
	if a.level == Plain || len(numbers) == 0 {
		return a.store()
	}
	ch := a.randomChange()
	rest := fmt.Sprintf("(UNCHANGEDSINCE %d) %sFLAGS (%s)", a.view.entries[numbers[0]-1].modseq, ch.sign, strings.Join(ch.flags, " "))
	c := a.messageCommand("STORE", numbers, rest)
	c.nonIdempotent = true
	return a.exec(c)
}

// pickIdentified picks messages whose UID and subject the client knows.
func (a *Client) pickIdentified(max int) (numbers []uint32, subjects []string) {
	numbers = a.pickNumbers(max, func(e viewEntry) bool { return e.uid != 0 && e.subject != "" })
	for _, n := range numbers {
		subjects = append(subjects, a.view.entries[n-1].subject)
	}
	return numbers, subjects
}

func (a *Client) copy() error {
	if c := a.copyCommand("COPY"); c != nil {
		return a.exec(c)
	}
	return a.fetchUnknown()
}

func (a *Client) move() error {
	if c := a.copyCommand("MOVE"); c != nil && len(a.view.entries) > minMessages {
		return a.exec(c)
	}
	return a.fetchUnknown()
}

// copyCommand returns a command that copies or moves messages to the client's private
// mailbox, and records them. At the end the record is compared with the mailbox.
func (a *Client) copyCommand(verb string) *Command {
	numbers, subjects := a.pickIdentified(maxTargets)
	if len(numbers) == 0 {
		return nil
	}
	c := a.messageCommand(verb, numbers, a.privateMailbox)
	expunged := a.findExpunged(subjects)
	return c.setOnEnd(func(r Result) error { return a.recordCopy(c, subjects, expunged, r) })
}

// findExpunged returns the subjects that are no longer in INBOX, at a backend that answers
// OK to their copy. No other client acts until the copy is answered.
func (a *Client) findExpunged(subjects []string) (expunged []string) {
	if !a.sim.Quirks.CopiesExpunged {
		return nil
	}
	p, err := dialDirect(a.sim.BackendAddress, a.account.user)
	if err != nil {
		return nil // checkCopies reports any discrepancy
	}
	defer p.close()
	stored, err := p.fetchMessages("INBOX")
	if err != nil {
		return nil
	}
	for _, subject := range subjects {
		if !slices.ContainsFunc(stored, func(f fetchResponse) bool { return strings.Contains(f.header, "Subject: "+subject+"\r\n") }) {
			expunged = append(expunged, subject)
		}
	}
	return expunged
}

// recordCopy records the messages that a command has copied according to COPYUID.
func (a *Client) recordCopy(c *Command, subjects, expunged []string, r Result) error {
	arg := c.copyUID
	if r.Code == "COPYUID" {
		arg = r.Arg
	}
	if r.Status == "" {
		if rest := excludeSubjects(subjects, expunged); len(rest) > 0 {
			a.batches = append(a.batches, copyBatch{rest, true})
		}
		return nil
	}
	if r.Status == "NO" {
		if arg != "" {
			return newViolation("%s is answered NO, and %s was copied", c.firstLine(), arg)
		}
		return nil
	}
	byUID := strings.HasPrefix(c.verb, "UID ")
	if arg == "" && !byUID {
		return newViolation("%s is answered OK and copied nothing", c.firstLine())
	}
	if arg == "" {
		return nil
	}
	fields := strings.Fields(arg)
	if len(fields) != 3 {
		return newViolation("a broken COPYUID: %q", arg)
	}
	source, ok := parseSet(fields[1])
	if !ok || !byUID && !slices.Equal(source, c.targets) {
		return newViolation("%s names UIDs %v and copied %v", c.firstLine(), c.targets, source)
	}
	var copied []string
	for _, uid := range source {
		at := slices.Index(c.targets, uid)
		if at < 0 {
			return newViolation("%s copied UID %d", c.firstLine(), uid)
		}
		copied = append(copied, subjects[at])
	}
	if copied = excludeSubjects(copied, expunged); len(copied) > 0 {
		a.batches = append(a.batches, copyBatch{copied, false})
	}
	a.sim.stats.update(func(s *Stats) { s.Copies++ })
	return nil
}

func excludeSubjects(subjects, excluded []string) []string {
	return slices.DeleteFunc(slices.Clone(subjects), func(s string) bool { return slices.Contains(excluded, s) })
}

// deleteMessages marks messages as deleted and expunges them by UID, or every marked
// message.
func (a *Client) deleteMessages() error {
	numbers := a.pickNumbers(3, hasUID)
	if len(numbers) == 0 || len(a.view.entries) <= minMessages {
		return a.append()
	}
	var uids []uint32
	for _, n := range numbers {
		uids = append(uids, a.view.entries[n-1].uid)
	}
	if err := a.exec(a.storeCommand(numbers, flagChange{"+", []string{`\Deleted`}})); err != nil || a.conn == nil {
		return err
	}
	if a.chance(50) {
		return a.exec(newCommand("UID EXPUNGE", formatSet(uids)))
	}
	return a.exec(newCommand("EXPUNGE", ""))
}

func (a *Client) expunge() error { return a.exec(newCommand("EXPUNGE", "")) }

// pipeline sends several commands in one write. Message numbers are used only after FETCH,
// STORE and SEARCH, because after any other command they are ambiguous
// (RFC 3501 §5.5).
func (a *Client) pipeline() error {
	numbers := a.pickNumbers(2, hasUID)
	if len(numbers) == 0 {
		return a.fetchUnknown()
	}
	byUID := func(verb, rest string) *Command {
		c := newCommand("UID "+verb, strings.TrimSpace(fmt.Sprintf("%d %s", a.view.entries[numbers[0]-1].uid, rest)))
		c.targets = []uint32{a.view.entries[numbers[0]-1].uid}
		return c
	}
	byNumber := func(verb, rest string) *Command { return newCommand(verb, formatSet(numbers)+" "+rest) }
	switch a.rng.IntN(7) {
	case 0:
		cs := []*Command{byNumber("FETCH", "(UID)"), byNumber("SEARCH", "ALL"), byNumber("STORE", "+FLAGS (k1)")}
		if c := a.copyCommand("COPY"); c != nil {
			cs = append(cs, c)
		}
		return a.exec(cs...)
	case 1:
		return a.exec(newCommand("NOOP", ""), byUID("FETCH", "(BODY.PEEK[])"), byUID("STORE", "-FLAGS (k1)"), newCommand("NOOP", ""))
	case 2:
		return a.exec(byUID("FETCH", "("+subjectItem+")"), newCommand("STATUS", a.privateMailbox+" (MESSAGES)"), newCommand("LIST", `"" *`), newCommand("CHECK", ""))
	case 3:
		if len(a.view.entries) > minMessages {
			return a.exec(byNumber("STORE", `+FLAGS (\Deleted)`), newCommand("EXPUNGE", ""))
		}
	case 4:
		if len(a.view.entries) > minMessages {
			return a.exec(byUID("STORE", `+FLAGS (\Deleted)`), byUID("EXPUNGE", ""), newCommand("NOOP", ""))
		}
	case 5:
		c := newCommand("SELECT", "INBOX")
		c.mailbox = "INBOX"
		return a.exec(newCommand("NOOP", ""), c, newCommand("UID FETCH", "1:* (UID)"), newCommand("UID SEARCH", "ALL"))
	}
	return a.exec(byNumber("FETCH", "("+subjectItem+")"), byNumber("FETCH", "(BODY[])"), byNumber("FETCH", "(UID)"))
}

// asEndError returns the *EndError in err.
func asEndError(err error) (*EndError, bool) {
	var e *EndError
	ok := errors.As(err, &e)
	return e, ok
}
