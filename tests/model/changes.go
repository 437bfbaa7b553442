package model

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// The operations that change something.

// change is what a STORE does to flags.
type change struct {
	sign  string // "+", "-" or "": replace
	flags []string
}

func (a *Actor) change() change {
	flags := []string{`\Seen`, `\Flagged`, `\Answered`, `\Draft`, "$Label1", "$Label2", fmt.Sprintf("k%d", a.rng.IntN(30))}
	a.rng.Shuffle(len(flags), func(i, j int) { flags[i], flags[j] = flags[j], flags[i] })
	return change{a.pick("+", "+", "-", "-", ""), flags[:1+a.rng.IntN(2)]}
}

// store changes flags. After .SILENT the client knows the result by itself.
func (a *Actor) store() error {
	numbers := a.numbers(maxTargets, known)
	if len(numbers) == 0 {
		return a.learn()
	}
	return a.do(a.storing(numbers, a.change()))
}

func (a *Actor) storing(numbers []uint32, ch change) *Command {
	silent := ""
	if a.chance(40) && !a.world.Odd.SilentHides {
		silent = ".SILENT"
	}
	c := a.about("STORE", numbers, ch.sign+"FLAGS"+silent+" ("+strings.Join(ch.flags, " ")+")")
	return c.then(func(r Result) error {
		if silent != "" || !r.ok() {
			a.silently(c, ch, r)
		}
		return nil
	})
}

// silently applies a change that the server need not tell.
func (a *Actor) silently(c *Command, ch change, r Result) {
	for i := range a.mirror.entries {
		e := &a.mirror.entries[i]
		if e.flags == nil || !slices.Contains(c.targets, e.uid) {
			continue
		}
		_, told := c.seen[e.uid]
		switch {
		case r.Code == "UNSENT", a.mirror.readOnly: // nothing happened, OK or not
		case !r.ok(), told && a.mirror.racing:
			e.doubt(ch)
		default:
			e.apply(ch)
		}
	}
}

// doubt marks what a change that may have happened is about.
func (e *entry) doubt(ch change) {
	if ch.sign == "" {
		e.flags, e.unsure = nil, nil
		return
	}
	e.unsure = maps.Clone(e.unsure)
	if e.unsure == nil {
		e.unsure = map[string]struct{}{}
	}
	for _, f := range ch.flags {
		e.unsure[f] = struct{}{}
	}
}

func (e *entry) apply(ch change) {
	if ch.sign == "" {
		e.flags, e.unsure = map[string]struct{}{}, nil
	}
	for _, f := range ch.flags {
		delete(e.unsure, f)
		if ch.sign == "-" {
			delete(e.flags, f)
		} else {
			e.flags[f] = struct{}{}
		}
	}
}

// storeUnchanged changes flags of messages that nobody else has changed
// (RFC 7162 §3.1.3).
func (a *Actor) storeUnchanged() error {
	numbers := a.numbers(2, func(e entry) bool { return e.modseq > 0 && e.uid > 0 })
	if a.kind == Plain || len(numbers) == 0 {
		return a.store()
	}
	ch := a.change()
	rest := fmt.Sprintf("(UNCHANGEDSINCE %d) %sFLAGS (%s)", a.mirror.entries[numbers[0]-1].modseq, ch.sign, strings.Join(ch.flags, " "))
	c := a.about("STORE", numbers, rest)
	c.onlyOnce = true
	return a.do(c)
}

// meant gives messages whose content the client knows, with what it means.
func (a *Actor) meant(max int) (numbers []uint32, subjects []string) {
	numbers = a.numbers(max, func(e entry) bool { return e.uid != 0 && e.subject != "" })
	for _, n := range numbers {
		subjects = append(subjects, a.mirror.entries[n-1].subject)
	}
	return numbers, subjects
}

func (a *Actor) copy() error {
	if c := a.copying("COPY"); c != nil {
		return a.do(c)
	}
	return a.learn()
}

func (a *Actor) move() error {
	if c := a.copying("MOVE"); c != nil && len(a.mirror.entries) > fewest {
		return a.do(c)
	}
	return a.learn()
}

// copying puts messages into the client's private mailbox and notes which it
// means. What it notes is compared with the mailbox in the end.
func (a *Actor) copying(verb string) *Command {
	numbers, subjects := a.meant(maxTargets)
	if len(numbers) == 0 {
		return nil
	}
	c := a.about(verb, numbers, a.private)
	gone := a.gone(subjects)
	return c.then(func(r Result) error { return a.copied(c, subjects, gone, r) })
}

// gone says which of the messages are no longer there, at a backend of which it has to
// be known: it says OK to their copy. Nobody else acts until that is answered.
func (a *Actor) gone(subjects []string) (gone []string) {
	if !a.world.Odd.CopiesGone {
		return nil
	}
	p, err := openProbe(a.world.Backend, a.account.user)
	if err != nil {
		return nil // what is amiss shows in the end
	}
	defer p.close()
	there, err := p.messages("INBOX")
	if err != nil {
		return nil
	}
	for _, subject := range subjects {
		if !slices.ContainsFunc(there, func(f fetched) bool { return strings.Contains(f.header, "Subject: "+subject+"\r\n") }) {
			gone = append(gone, subject)
		}
	}
	return gone
}

// copied notes what a copy did, as COPYUID says.
func (a *Actor) copied(c *Command, subjects, gone []string, r Result) error {
	arg := c.copyUID
	if r.Code == "COPYUID" {
		arg = r.Arg
	}
	if r.Status == "" {
		if left := without(subjects, gone); len(left) > 0 {
			a.batches = append(a.batches, batch{left, true})
		}
		return nil
	}
	if r.Status == "NO" {
		if arg != "" {
			return violation("%s is answered NO, and %s was copied", c.text(), arg)
		}
		return nil
	}
	byUID := strings.HasPrefix(c.verb, "UID ")
	if arg == "" && !byUID {
		return violation("%s is answered OK and copied nothing", c.text())
	}
	if arg == "" {
		return nil
	}
	fields := strings.Fields(arg)
	if len(fields) != 3 {
		return violation("a broken COPYUID: %q", arg)
	}
	source, ok := parseSet(fields[1])
	if !ok || !byUID && !slices.Equal(source, c.targets) {
		return violation("%s means UIDs %v and copied %v", c.text(), c.targets, source)
	}
	var done []string
	for _, uid := range source {
		at := slices.Index(c.targets, uid)
		if at < 0 {
			return violation("%s copied UID %d", c.text(), uid)
		}
		done = append(done, subjects[at])
	}
	if done = without(done, gone); len(done) > 0 {
		a.batches = append(a.batches, batch{done, false})
	}
	a.world.stats.add(func(s *Stats) { s.Copies++ })
	return nil
}

func without(subjects, gone []string) []string {
	return slices.DeleteFunc(slices.Clone(subjects), func(s string) bool { return slices.Contains(gone, s) })
}

// remove marks messages and expunges them, by UID or all that are marked.
func (a *Actor) remove() error {
	numbers := a.numbers(3, known)
	if len(numbers) == 0 || len(a.mirror.entries) <= fewest {
		return a.append()
	}
	var uids []uint32
	for _, n := range numbers {
		uids = append(uids, a.mirror.entries[n-1].uid)
	}
	if err := a.do(a.storing(numbers, change{"+", []string{`\Deleted`}})); err != nil || a.wire == nil {
		return err
	}
	if a.chance(50) {
		return a.do(command("UID EXPUNGE", formatSet(uids)))
	}
	return a.do(command("EXPUNGE", ""))
}

func (a *Actor) expunge() error { return a.do(command("EXPUNGE", "")) }

// group says several commands in one write. Message numbers come first, behind
// nothing but FETCH, STORE and SEARCH: otherwise nobody knows which messages
// they name (RFC 3501 §5.5).
func (a *Actor) group() error {
	some := a.numbers(2, known)
	if len(some) == 0 {
		return a.learn()
	}
	byUID := func(verb, rest string) *Command {
		c := command("UID "+verb, strings.TrimSpace(fmt.Sprintf("%d %s", a.mirror.entries[some[0]-1].uid, rest)))
		c.targets = []uint32{a.mirror.entries[some[0]-1].uid}
		return c
	}
	byNumber := func(verb, rest string) *Command { return command(verb, formatSet(some)+" "+rest) }
	switch a.rng.IntN(7) {
	case 0:
		cs := []*Command{byNumber("FETCH", "(UID)"), byNumber("SEARCH", "ALL"), byNumber("STORE", "+FLAGS (k1)")}
		if c := a.copying("COPY"); c != nil {
			cs = append(cs, c)
		}
		return a.do(cs...)
	case 1:
		return a.do(command("NOOP", ""), byUID("FETCH", "(BODY.PEEK[])"), byUID("STORE", "-FLAGS (k1)"), command("NOOP", ""))
	case 2:
		return a.do(byUID("FETCH", "("+subjectItem+")"), command("STATUS", a.private+" (MESSAGES)"), command("LIST", `"" *`), command("CHECK", ""))
	case 3:
		if len(a.mirror.entries) > fewest {
			return a.do(byNumber("STORE", `+FLAGS (\Deleted)`), command("EXPUNGE", ""))
		}
	case 4:
		if len(a.mirror.entries) > fewest {
			return a.do(byUID("STORE", `+FLAGS (\Deleted)`), byUID("EXPUNGE", ""), command("NOOP", ""))
		}
	case 5:
		c := command("SELECT", "INBOX")
		c.selects = "INBOX"
		return a.do(command("NOOP", ""), c, command("UID FETCH", "1:* (UID)"), command("UID SEARCH", "ALL"))
	}
	return a.do(byNumber("FETCH", "("+subjectItem+")"), byNumber("FETCH", "(BODY[])"), byNumber("FETCH", "(UID)"))
}

// asEnded says whether err is the end of a session.
func asEnded(err error) (*Ended, bool) {
	var e *Ended
	ok := errors.As(err, &e)
	return e, ok
}
