package model

import (
	"slices"
	"strconv"
	"strings"
)

// Kind is what a client has enabled.
type Kind int

// The kinds of clients.
const (
	Plain Kind = iota
	Condstore
	Qresync
)

func (k Kind) String() string { return [...]string{"plain", "condstore", "qresync"}[k] }

// Mirror is what a client knows from responses alone, and the judge of them: a
// response that a server must not send at that moment is a *Violation. It never
// asks anything; so nothing it should have been told can come by another way.
type Mirror struct {
	// Set once.
	kind    Kind
	account *Account

	// Owned by the caller.
	open        []*Command // sent and not answered, in their order
	enabled     bool
	box         string // selected; "" none
	readOnly    bool
	uidValidity uint32
	entries     []entry             // by message number, less one
	keywords    map[string]struct{} // of the last untagged FLAGS
	modseq      uint64              // the highest told in this mailbox
	selecting   *selection
	kept        *cache // what a QRESYNC client remembers of INBOX
	said        string // of the last BYE
	plus        int    // continuations that came
	racing      bool   // others act while a command is under way
}

// entry is one message as the client knows it.
type entry struct {
	uid     uint32              // 0: not told yet
	flags   map[string]struct{} // nil: not told yet
	unsure  map[string]struct{} // flags whose state nobody can know
	modseq  uint64
	subject string
}

// selection is a SELECT or EXAMINE that is being answered.
type selection struct {
	command *Command
	closed  bool // what comes is about the new mailbox
	exists  int  // -1: not told yet
	uidv    uint32
	vanish  map[uint32]struct{}
	fetches []fetched
}

// cache is what a QRESYNC client keeps of a mailbox it leaves.
type cache struct {
	uidValidity uint32
	modseq      uint64
	entries     []entry
}

// NewMirror makes the mirror of a new session.
func NewMirror(kind Kind, account *Account) *Mirror {
	return &Mirror{kind: kind, account: account, keywords: map[string]struct{}{}}
}

// Sent notes that a client began to send a command.
func (m *Mirror) Sent(c *Command) { m.open = append(m.open, c) }

// head is the command that is in progress: they are answered in their order.
func (m *Mirror) head() *Command {
	if len(m.open) == 0 {
		return nil
	}
	return m.open[0]
}

// find is the first command under way that ok says yes to. A server may work on
// a command before it has sent the end of the last one.
func (m *Mirror) find(ok func(*Command) bool) *Command {
	if i := slices.IndexFunc(m.open, ok); i >= 0 {
		return m.open[i]
	}
	return nil
}

// Take judges one response.
func (m *Mirror) Take(r Response) error {
	if err := m.account.foreign(r.Text); err != nil {
		return err
	}
	for _, l := range r.Literals {
		if err := m.account.foreign(l); err != nil {
			return err
		}
	}
	switch {
	case r.Text == "+" || strings.HasPrefix(r.Text, "+ "):
		return m.goAhead()
	case strings.HasPrefix(r.Text, "* "):
		return m.untagged(r)
	}
	return m.tagged(r)
}

// goAhead takes a continuation: only IDLE and a literal that waits have one.
func (m *Mirror) goAhead() error {
	h := m.head()
	if h == nil || h.verb != "IDLE" && (!h.waits || h.complete) {
		return violation("a continuation that no command waits for")
	}
	m.plus++
	if m.plus > 1 {
		return violation("a second continuation for %s", h.verb)
	}
	return nil
}

// tagged takes the end of a command.
func (m *Mirror) tagged(r Response) error {
	tag, rest, _ := strings.Cut(r.Text, " ")
	at := slices.IndexFunc(m.open, func(c *Command) bool { return c.tag == tag })
	if at < 0 {
		return violation("a response to nobody's tag: %q", r.Text)
	}
	c := m.open[at]
	// Dovecot ends FETCH and the like together with the sync behind them, and what
	// needs none of that overtakes them, as a refusal does. It keeps to the order
	// otherwise.
	if at > 0 && c.verb != "STATUS" && c.verb != "LIST" && !strings.HasPrefix(rest, "NO ") {
		return violation("%s is answered before %s", tag, m.open[0].tag)
	}
	result, ok := parseStatus(rest)
	switch {
	case !ok || result.Status == "BYE" || len(r.Literals) > 0:
		return violation("a broken tagged response: %q", r.Text)
	case result.Status == "BAD":
		return violation("%s %s was answered %q", c.verb, c.args, r.Text)
	case !c.complete && result.ok():
		return violation("%s was answered OK before it was complete", c.verb)
	}
	m.open = slices.Delete(m.open, at, at+1)
	m.plus = 0
	if result.Code == "HIGHESTMODSEQ" {
		if c.verb == "CLOSE" {
			// It covers expunges that nobody tells: to go on from it would be to
			// miss them.
			result.Code = ""
		} else if strings.HasSuffix(c.verb, "EXPUNGE") && m.kind == Plain {
			result.Code = "" // Cyrus says it to everybody
		} else if err := m.highest(result.Arg); err != nil {
			return err
		}
	}
	if err := m.stateAfter(c, result); err != nil {
		return err
	}
	return c.end(result)
}

// stateAfter moves between the mailboxes.
func (m *Mirror) stateAfter(c *Command, r Result) error {
	switch c.verb {
	case "SELECT", "EXAMINE":
		return m.selected(c, r)
	case "CLOSE", "UNSELECT":
		if !r.ok() {
			return violation("%s was answered %q", c.verb, r.Line)
		}
		m.leave()
	case "ENABLE":
		m.enabled = m.enabled || r.ok()
	}
	return nil
}

// untagged takes a response that no command has to have caused.
func (m *Mirror) untagged(r Response) error {
	if h := m.head(); h != nil && h.selects != "" && m.selecting == nil {
		m.beginSelect(h)
	}
	first, rest, _ := strings.Cut(r.Text[2:], " ")
	if n, err := strconv.ParseUint(first, 10, 32); err == nil {
		return m.numbered(uint32(n), rest, r.Literals)
	}
	if len(r.Literals) > 0 {
		return violation("a literal in %q", r.Text)
	}
	switch word := strings.ToUpper(first); word {
	case "OK", "NO", "BAD", "BYE":
		return m.status(r.Text[2:])
	case "VANISHED":
		return m.vanished(rest)
	case "FLAGS":
		return m.flags(rest)
	case "SEARCH", "ESEARCH":
		return m.search(word, rest)
	case "ENABLED", "CAPABILITY", "LIST", "STATUS":
		return m.answers(word)
	default:
		return violation("an untagged response that nothing asked for: %q", r.Text)
	}
}

// answers wants the command that a kind of response belongs to.
func (m *Mirror) answers(word string) error {
	verb := map[string]string{"ENABLED": "ENABLE"}[word]
	if verb == "" {
		verb = word
	}
	if m.find(func(c *Command) bool { return c.verb == verb || word == "CAPABILITY" && c.verb == "LOGIN" }) == nil {
		return violation("an untagged %s, and no such command is in progress", word)
	}
	return nil
}

// status takes an untagged OK, NO, BAD or BYE.
func (m *Mirror) status(s string) error {
	r, ok := parseStatus(s)
	switch {
	case !ok:
		return violation("a broken status response: %q", s)
	case r.Status == "BYE":
		m.said = s
		return nil
	case r.Status != "OK":
		return violation("an untagged %q", s)
	}
	selecting := m.selecting != nil
	switch r.Code {
	case "", "ALERT":
		return nil
	case "COPYUID":
		h := m.find(func(c *Command) bool { return strings.HasSuffix(c.verb, "MOVE") })
		if h == nil {
			return violation("COPYUID, and no MOVE is in progress")
		}
		h.copyUID = r.Arg
		return nil
	case "CLOSED":
		return m.closed()
	case "HIGHESTMODSEQ":
		if !selecting && m.kind == Plain {
			return violation("HIGHESTMODSEQ for a client that enabled nothing")
		}
		return m.highest(r.Arg)
	case "UIDVALIDITY":
		n, ok := number32(r.Arg)
		if !ok || !selecting {
			return violation("UIDVALIDITY outside SELECT: %q", s)
		}
		m.selecting.uidv = n
		return nil
	case "UIDNEXT", "UNSEEN", "NOMODSEQ", "MAILBOXID", "URLMECH", "ANNOTATIONS":
		if !selecting {
			return violation("%s outside SELECT", r.Code)
		}
		return nil
	case "PERMANENTFLAGS", "READ-ONLY", "READ-WRITE":
		if m.box == "" && !selecting {
			return violation("%s without a mailbox", r.Code)
		}
		return nil
	}
	return violation("an untagged OK with an unexpected code: %q", s)
}

// highest takes a HIGHESTMODSEQ, which never goes back.
func (m *Mirror) highest(arg string) error {
	n, err := strconv.ParseUint(arg, 10, 63)
	if err != nil || n == 0 {
		return violation("a broken HIGHESTMODSEQ %q", arg)
	}
	if m.kind == Plain && m.selecting == nil {
		return violation("HIGHESTMODSEQ for a client that enabled nothing")
	}
	if n < m.modseq {
		return violation("HIGHESTMODSEQ goes back from %d to %d", m.modseq, n)
	}
	m.modseq = n
	return nil
}

// syncPoint says whether expunges may be told now.
func (m *Mirror) syncPoint() error {
	h := m.head()
	switch {
	case h == nil:
		return violation("an expunge with no command in progress")
	case !h.complete:
		return violation("an expunge before %s is complete", h.verb)
	case h.expunge == never:
		return violation("an expunge during %s %s", h.verb, h.args)
	}
	return nil
}

// search takes the result of a search, which has to be the head's own.
func (m *Mirror) search(word, rest string) error {
	h := m.find(func(c *Command) bool { return strings.HasSuffix(c.verb, "SEARCH") })
	if h == nil {
		return violation("an untagged %s, and no search is in progress", word)
	}
	uids := strings.HasPrefix(h.verb, "UID ")
	if word == "ESEARCH" {
		if !strings.HasPrefix(rest, `(TAG "`+h.tag+`")`) {
			return violation("the result of a search of somebody else: ESEARCH %s", rest)
		}
		if strings.HasPrefix(rest, `(TAG "`+h.tag+`") UID`) != uids {
			return violation("message numbers for UIDs, or the other way round: ESEARCH %s", rest)
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
			return violation("a broken %s: %q", word, rest)
		}
		if !uids && int(slices.Max(found)) > len(m.entries) {
			return violation("%s finds message %d of %d", word, slices.Max(found), len(m.entries))
		}
	}
	return nil
}
