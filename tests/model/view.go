package model

import (
	"slices"
	"strconv"
	"strings"
)

// SyncLevel is the extension that a client enables.
type SyncLevel int

// The levels.
const (
	Plain SyncLevel = iota
	Condstore
	Qresync
)

func (k SyncLevel) String() string { return [...]string{"plain", "condstore", "qresync"}[k] }

// View is what a client knows from responses alone. It also checks them: a response that
// IMAP does not allow at that moment is a *Violation. A View sends no commands, so an
// unreported change cannot reach it in another way.
type View struct {
	// Set once.
	level   SyncLevel
	account *Account

	// Owned by the caller.
	outstanding   []*Command // oldest first
	enabled       bool
	mailbox       string // selected mailbox, or ""
	readOnly      bool
	uidValidity   uint32
	entries       []viewEntry         // by message number - 1
	keywords      map[string]struct{} // from the last untagged FLAGS
	highestModseq uint64              // highest received for this mailbox
	selecting     *selection
	saved         *savedState // of INBOX, for a QRESYNC client
	bye           string      // the last BYE
	continuations int         // continuations of the current command
	concurrent    bool        // other clients act during a command
}

// viewEntry is a message as the client knows it.
type viewEntry struct {
	uid       uint32              // 0: unknown
	flags     map[string]struct{} // nil: unknown
	uncertain map[string]struct{} // flags in an unknown state
	modseq    uint64
	subject   string
}

// selection is a SELECT or EXAMINE in progress.
type selection struct {
	command     *Command
	oldClosed   bool // responses are about the new mailbox
	exists      int  // -1: unknown
	uidValidity uint32
	vanished    map[uint32]struct{}
	fetches     []fetchResponse
}

// savedState is what a QRESYNC client keeps of a closed mailbox.
type savedState struct {
	uidValidity uint32
	modseq      uint64
	entries     []viewEntry
}

// NewView returns the view of a new session.
func NewView(kind SyncLevel, account *Account) *View {
	return &View{level: kind, account: account, keywords: map[string]struct{}{}}
}

// RecordSent records that a client begins to send a command.
func (m *View) RecordSent(c *Command) { m.outstanding = append(m.outstanding, c) }

// firstOutstanding returns the oldest outstanding command, or nil.
func (m *View) firstOutstanding() *Command {
	if len(m.outstanding) == 0 {
		return nil
	}
	return m.outstanding[0]
}

// findCommand returns the first outstanding command that matches, or nil. A server may
// start a command before it has sent the tagged response of the previous one.
func (m *View) findCommand(ok func(*Command) bool) *Command {
	if i := slices.IndexFunc(m.outstanding, ok); i >= 0 {
		return m.outstanding[i]
	}
	return nil
}

// Receive checks and applies one response.
func (m *View) Receive(r Response) error {
	if err := m.account.checkForeign(r.Text); err != nil {
		return err
	}
	for _, l := range r.Literals {
		if err := m.account.checkForeign(l); err != nil {
			return err
		}
	}
	switch {
	case r.Text == "+" || strings.HasPrefix(r.Text, "+ "):
		return m.receiveContinuation()
	case strings.HasPrefix(r.Text, "* "):
		return m.receiveUntagged(r)
	}
	return m.receiveTagged(r)
}

// receiveContinuation handles a continuation, which only IDLE and synchronizing literals
// may receive.
func (m *View) receiveContinuation() error {
	h := m.firstOutstanding()
	if h == nil || h.verb != "IDLE" && (!h.syncLiteral || h.complete) {
		return newViolation("a continuation that no command waits for")
	}
	m.continuations++
	if m.continuations > 1 {
		return newViolation("a second continuation for %s", h.verb)
	}
	return nil
}

// receiveTagged handles a tagged response.
func (m *View) receiveTagged(r Response) error {
	tag, rest, _ := strings.Cut(r.Text, " ")
	at := slices.IndexFunc(m.outstanding, func(c *Command) bool { return c.tag == tag })
	if at < 0 {
		return newViolation("a response to an unknown tag: %q", r.Text)
	}
	c := m.outstanding[at]
	// Dovecot syncs the mailbox before it ends commands such as FETCH. Commands without a
	// sync, and refusals, may overtake those; otherwise it keeps the order.
	if at > 0 && c.verb != "STATUS" && c.verb != "LIST" && !strings.HasPrefix(rest, "NO ") {
		return newViolation("%s is answered before %s", tag, m.outstanding[0].tag)
	}
	result, ok := parseStatus(rest)
	switch {
	case !ok || result.Status == "BYE" || len(r.Literals) > 0:
		return newViolation("a broken tagged response: %q", r.Text)
	case result.Status == "BAD":
		return newViolation("%s %s was answered %q", c.verb, c.args, r.Text)
	case !c.complete && result.isOK():
		return newViolation("%s was answered OK before it was complete", c.verb)
	}
	m.outstanding = slices.Delete(m.outstanding, at, at+1)
	m.continuations = 0
	if result.Code == "HIGHESTMODSEQ" {
		if c.verb == "CLOSE" {
			// It covers expunges that are not reported: a resync from it would miss
			// them.
			result.Code = ""
		} else if strings.HasSuffix(c.verb, "EXPUNGE") && m.level == Plain {
			result.Code = "" // Cyrus sends it to every client
		} else if err := m.receiveHighestModseq(result.Arg); err != nil {
			return err
		}
	}
	if err := m.updateState(c, result); err != nil {
		return err
	}
	return c.finish(result)
}

// updateState applies the effect of a command on the selected mailbox and on enabled.
func (m *View) updateState(c *Command, r Result) error {
	switch c.verb {
	case "SELECT", "EXAMINE":
		return m.finishSelect(c, r)
	case "CLOSE", "UNSELECT":
		if !r.isOK() {
			return newViolation("%s was answered %q", c.verb, r.Line)
		}
		m.closeMailbox()
	case "ENABLE":
		m.enabled = m.enabled || r.isOK()
	}
	return nil
}

// receiveUntagged handles an untagged response.
func (m *View) receiveUntagged(r Response) error {
	if h := m.firstOutstanding(); h != nil && h.mailbox != "" && m.selecting == nil {
		m.beginSelect(h)
	}
	first, rest, _ := strings.Cut(r.Text[2:], " ")
	if n, err := strconv.ParseUint(first, 10, 32); err == nil {
		return m.receiveNumbered(uint32(n), rest, r.Literals)
	}
	if len(r.Literals) > 0 {
		return newViolation("a literal in %q", r.Text)
	}
	switch word := strings.ToUpper(first); word {
	case "OK", "NO", "BAD", "BYE":
		return m.receiveStatus(r.Text[2:])
	case "VANISHED":
		return m.receiveVanished(rest)
	case "FLAGS":
		return m.receiveFlags(rest)
	case "SEARCH", "ESEARCH":
		return m.receiveSearch(word, rest)
	case "ENABLED", "CAPABILITY", "LIST", "STATUS":
		return m.checkSolicited(word)
	default:
		return newViolation("an unexpected untagged response: %q", r.Text)
	}
}

// checkSolicited checks that the command that causes such a response is outstanding.
func (m *View) checkSolicited(word string) error {
	verb := map[string]string{"ENABLED": "ENABLE"}[word]
	if verb == "" {
		verb = word
	}
	if m.findCommand(func(c *Command) bool { return c.verb == verb || word == "CAPABILITY" && c.verb == "LOGIN" }) == nil {
		return newViolation("an untagged %s, and no such command is in progress", word)
	}
	return nil
}

// receiveStatus handles an untagged OK, NO, BAD or BYE.
func (m *View) receiveStatus(s string) error {
	r, ok := parseStatus(s)
	switch {
	case !ok:
		return newViolation("a broken status response: %q", s)
	case r.Status == "BYE":
		m.bye = s
		return nil
	case r.Status != "OK":
		return newViolation("an untagged %q", s)
	}
	selecting := m.selecting != nil
	switch r.Code {
	case "", "ALERT":
		return nil
	case "COPYUID":
		h := m.findCommand(func(c *Command) bool { return strings.HasSuffix(c.verb, "MOVE") })
		if h == nil {
			return newViolation("COPYUID, and no MOVE is in progress")
		}
		h.copyUID = r.Arg
		return nil
	case "CLOSED":
		return m.receiveClosed()
	case "HIGHESTMODSEQ":
		if !selecting && m.level == Plain {
			return newViolation("HIGHESTMODSEQ for a client that enabled nothing")
		}
		return m.receiveHighestModseq(r.Arg)
	case "UIDVALIDITY":
		n, ok := parseNumber(r.Arg)
		if !ok || !selecting {
			return newViolation("UIDVALIDITY outside SELECT: %q", s)
		}
		m.selecting.uidValidity = n
		return nil
	case "UIDNEXT", "UNSEEN", "NOMODSEQ", "MAILBOXID", "URLMECH", "ANNOTATIONS":
		if !selecting {
			return newViolation("%s outside SELECT", r.Code)
		}
		return nil
	case "PERMANENTFLAGS", "READ-ONLY", "READ-WRITE":
		if m.mailbox == "" && !selecting {
			return newViolation("%s without a mailbox", r.Code)
		}
		return nil
	}
	return newViolation("an untagged OK with an unexpected code: %q", s)
}

// receiveHighestModseq handles a HIGHESTMODSEQ, which never decreases.
func (m *View) receiveHighestModseq(arg string) error {
	n, err := strconv.ParseUint(arg, 10, 63)
	if err != nil || n == 0 {
		return newViolation("a broken HIGHESTMODSEQ %q", arg)
	}
	if m.level == Plain && m.selecting == nil {
		return newViolation("HIGHESTMODSEQ for a client that enabled nothing")
	}
	if n < m.highestModseq {
		return newViolation("HIGHESTMODSEQ decreases from %d to %d", m.highestModseq, n)
	}
	m.highestModseq = n
	return nil
}

// checkExpungeAllowed checks whether expunges may be reported now.
func (m *View) checkExpungeAllowed() error {
	h := m.firstOutstanding()
	switch {
	case h == nil:
		return newViolation("an expunge with no command in progress")
	case !h.complete:
		return newViolation("an expunge before %s is complete", h.verb)
	case h.expunge == expungeNever:
		return newViolation("an expunge during %s %s", h.verb, h.args)
	}
	return nil
}

// receiveSearch handles the result of the outstanding search.
func (m *View) receiveSearch(word, rest string) error {
	h := m.findCommand(func(c *Command) bool { return strings.HasSuffix(c.verb, "SEARCH") })
	if h == nil {
		return newViolation("an untagged %s, and no search is in progress", word)
	}
	uids := strings.HasPrefix(h.verb, "UID ")
	if word == "ESEARCH" {
		if !strings.HasPrefix(rest, `(TAG "`+h.tag+`")`) {
			return newViolation("the result of another search: ESEARCH %s", rest)
		}
		if strings.HasPrefix(rest, `(TAG "`+h.tag+`") UID`) != uids {
			return newViolation("message numbers for UIDs, or UIDs for message numbers: ESEARCH %s", rest)
		}
		_, set, all := strings.Cut(rest, " ALL ")
		if !all {
			return nil
		}
		rest = strings.ReplaceAll(set, ",", " ")
	}
	for item := range strings.FieldsSeq(rest) {
		found, ok := parseSet(item)
		if !ok {
			return newViolation("a broken %s: %q", word, rest)
		}
		if !uids && int(slices.Max(found)) > len(m.entries) {
			return newViolation("%s finds message %d of %d", word, slices.Max(found), len(m.entries))
		}
	}
	return nil
}
