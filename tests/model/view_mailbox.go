package model

import (
	"maps"
	"slices"
	"strings"
)

// The part of View about the selected mailbox.

// beginSelect handles the first response to a SELECT.
func (m *View) beginSelect(c *Command) {
	m.selecting = &selection{command: c, exists: -1, oldClosed: m.mailbox == "", vanished: map[uint32]struct{}{}}
	if m.mailbox == "" {
		m.closeMailbox()
	}
}

// receiveClosed handles [CLOSED], the end of the previous mailbox (RFC 7162 §3.2.11).
func (m *View) receiveClosed() error {
	if m.selecting == nil || m.selecting.oldClosed {
		return newViolation("[CLOSED] without a change of the mailbox")
	}
	m.selecting.oldClosed = true
	m.closeMailbox()
	return nil
}

// saveState saves the state for a later QRESYNC. It saves none if a message is incomplete,
// because the position of an unknown UID is unknown.
func (m *View) saveState() {
	if m.saved = nil; slices.ContainsFunc(m.entries, isIncomplete) || m.highestModseq == 0 {
		return
	}
	m.saved = &savedState{uidValidity: m.uidValidity, modseq: m.highestModseq}
	for _, e := range m.entries {
		m.saved.entries = append(m.saved.entries, e.clone())
	}
}

// closeMailbox clears the mailbox, after saving its state for QRESYNC.
func (m *View) closeMailbox() {
	if m.mailbox != "" && m.level == Qresync {
		m.saveState()
	}
	m.mailbox, m.entries, m.highestModseq = "", nil, 0
}

// finishSelect handles the tagged response of a SELECT.
func (m *View) finishSelect(c *Command, r Result) error {
	if m.selecting == nil {
		m.beginSelect(c)
	}
	s := m.selecting
	m.selecting = nil
	if !r.isOK() {
		m.closeMailbox()
		return newViolation("%s was answered %q", c.verb, r.Line)
	}
	if !s.oldClosed || s.exists < 0 || s.uidValidity == 0 {
		return newViolation("%s was answered without CLOSED, EXISTS or UIDVALIDITY", c.verb)
	}
	want := map[string]string{"SELECT": "READ-WRITE", "EXAMINE": "READ-ONLY"}[c.verb]
	if r.Code != want {
		return newViolation("%s was answered %q", c.verb, r.Line)
	}
	if err := m.account.recordUIDValidity(s.uidValidity); err != nil {
		return err
	}
	m.uidValidity = s.uidValidity
	m.mailbox, m.readOnly = c.mailbox, c.verb == "EXAMINE"
	if c.resyncFrom != nil {
		if m.highestModseq < c.resyncFrom.modseq {
			return newViolation("HIGHESTMODSEQ is %d, and was %d", m.highestModseq, c.resyncFrom.modseq)
		}
		for _, e := range c.resyncFrom.entries {
			if _, vanished := s.vanished[e.uid]; !vanished {
				m.entries = append(m.entries, e.clone())
			}
		}
		if len(m.entries) > s.exists {
			return newViolation("%d messages are left of those the client knew, but %d exist", len(m.entries), s.exists)
		}
	}
	m.growTo(s.exists)
	for _, f := range s.fetches {
		if err := m.receiveFetch(f); err != nil {
			return err
		}
	}
	return nil
}

func (e viewEntry) clone() viewEntry {
	e.flags, e.uncertain = maps.Clone(e.flags), maps.Clone(e.uncertain)
	return e
}

// growTo adds unknown messages.
func (m *View) growTo(exists int) {
	for len(m.entries) < exists {
		m.entries = append(m.entries, viewEntry{})
	}
}

// receiveNumbered handles EXISTS, EXPUNGE, FETCH and RECENT.
func (m *View) receiveNumbered(n uint32, rest string, literals []string) error {
	if m.mailbox == "" && m.selecting == nil {
		return newViolation("%d %s without a mailbox", n, rest)
	}
	word, items, _ := strings.Cut(rest, " ")
	word = strings.ToUpper(word)
	if word != "FETCH" && (items != "" || len(literals) > 0) {
		return newViolation("a broken %s: %q", word, rest)
	}
	switch word {
	case "EXISTS":
		return m.receiveExists(int(n))
	case "RECENT":
		return nil
	case "EXPUNGE":
		return m.receiveExpunge(int(n))
	case "FETCH":
		f, err := parseFetch(n, items, literals)
		if err != nil {
			return err
		}
		if m.selecting != nil && m.selecting.oldClosed {
			m.selecting.fetches = append(m.selecting.fetches, f)
			return nil
		}
		return m.receiveFetch(f)
	}
	return newViolation("an unknown response: %d %s", n, rest)
}

// receiveExists handles the size of the mailbox, which only expunges reduce.
func (m *View) receiveExists(n int) error {
	if s := m.selecting; s != nil && s.oldClosed { // else it is about the previous mailbox
		if s.exists >= 0 && s.exists != n {
			return newViolation("SELECT with %d EXISTS and %d EXISTS", s.exists, n)
		}
		s.exists = n
		return nil
	}
	if n < len(m.entries) {
		return newViolation("%d EXISTS, and there were %d", n, len(m.entries))
	}
	m.growTo(n)
	return nil
}

// receiveExpunge handles EXPUNGE.
func (m *View) receiveExpunge(n int) error {
	if m.level == Qresync && m.enabled {
		return newViolation("EXPUNGE for a QRESYNC client")
	}
	if err := m.checkExpungeAllowed(); err != nil {
		return err
	}
	if m.selecting != nil || n < 1 || n > len(m.entries) {
		return newViolation("message %d of %d is expunged", n, len(m.entries))
	}
	m.entries = slices.Delete(m.entries, n-1, n)
	return nil
}

// receiveVanished handles VANISHED and VANISHED (EARLIER).
func (m *View) receiveVanished(rest string) error {
	if m.level != Qresync || !m.enabled {
		return newViolation("VANISHED for a client that did not enable QRESYNC")
	}
	set, earlier := strings.CutPrefix(rest, "(EARLIER) ")
	uids, ok := parseSet(set)
	switch {
	case !ok:
		return newViolation("a broken VANISHED: %q", rest)
	case earlier && (m.selecting == nil || m.selecting.command.resyncFrom == nil):
		return newViolation("VANISHED (EARLIER) without QRESYNC in SELECT")
	case earlier:
		for _, uid := range uids {
			m.selecting.vanished[uid] = struct{}{}
		}
		return nil
	case m.selecting != nil:
		return newViolation("VANISHED during SELECT")
	}
	if err := m.checkExpungeAllowed(); err != nil {
		return err
	}
	for _, uid := range uids {
		if err := m.removeUID(uid); err != nil {
			return err
		}
	}
	return nil
}

// removeUID removes a message by its UID. If no message has it, the message is one of
// those with unknown UIDs at that position, and their other data is no longer certain.
func (m *View) removeUID(uid uint32) error {
	for i, e := range m.entries {
		if e.uid == uid {
			m.entries = slices.Delete(m.entries, i, i+1)
			return nil
		}
	}
	after := 0 // the number of the last message known to be before it
	for i, e := range m.entries {
		if e.uid != 0 && e.uid < uid {
			after = i + 1
		}
	}
	if after >= len(m.entries) || m.entries[after].uid != 0 {
		return newViolation("UID %d vanished, but does not exist", uid)
	}
	m.entries = slices.Delete(m.entries, after, after+1)
	for i := after; i < len(m.entries) && m.entries[i].uid == 0; i++ {
		m.entries[i] = viewEntry{}
	}
	return nil
}

// receiveFlags handles the list of the flags in use.
func (m *View) receiveFlags(list string) error {
	names, ok := parseList(list)
	if !ok || m.mailbox == "" && m.selecting == nil {
		return newViolation("a broken or misplaced FLAGS: %q", list)
	}
	m.keywords = map[string]struct{}{}
	for _, f := range names {
		m.keywords[f] = struct{}{}
	}
	return nil
}

// receiveFetch handles a FETCH response.
func (m *View) receiveFetch(f fetchResponse) error {
	if f.number < 1 || int(f.number) > len(m.entries) {
		return newViolation("FETCH of message %d of %d", f.number, len(m.entries))
	}
	if f.modseq != 0 && m.level == Plain {
		return newViolation("MODSEQ for a client that enabled nothing")
	}
	e := &m.entries[f.number-1]
	if f.uid != 0 {
		if err := m.recordUID(int(f.number)-1, f.uid); err != nil {
			return err
		}
	}
	if h := m.firstOutstanding(); f.uid == 0 && h != nil && h.verb == "UID FETCH" && len(m.outstanding) == 1 && (f.header != "" || f.body != "") {
		return newViolation("FETCH %d without a UID in answer to UID FETCH", f.number)
	}
	if f.hasFlags {
		if err := m.setFlags(e, f.flags); err != nil {
			return err
		}
	}
	e.modseq = max(e.modseq, f.modseq)
	return m.checkContent(e, f)
}

// recordUID records the UID of a message. A UID never changes, and UIDs ascend.
func (m *View) recordUID(i int, uid uint32) error {
	if previous := m.entries[i].uid; previous != 0 {
		if previous != uid {
			return newViolation("message %d is UID %d, and was %d", i+1, uid, previous)
		}
		return nil
	}
	for j, e := range m.entries {
		if e.uid != 0 && (j < i && e.uid >= uid || j > i && e.uid <= uid) {
			return newViolation("message %d is UID %d, where message %d is UID %d", i+1, uid, j+1, e.uid)
		}
	}
	m.entries[i].uid = uid
	return nil
}

// setFlags records the flags of a message. A keyword must be in FLAGS before it is used.
func (m *View) setFlags(e *viewEntry, flags []string) error {
	e.flags, e.uncertain = map[string]struct{}{}, nil
	for _, f := range flags {
		if f == `\Recent` {
			continue
		}
		if _, known := m.keywords[f]; !known {
			return newViolation("flag %s was not among the FLAGS of the mailbox", f)
		}
		e.flags[f] = struct{}{}
	}
	if h := m.findCommand(func(c *Command) bool { return strings.HasSuffix(c.verb, "STORE") }); h != nil {
		h.addUID(&h.flagsSeen, e.uid)
	}
	return nil
}

// checkContent compares the content of a message with the earlier content of its UID.
func (m *View) checkContent(e *viewEntry, f fetchResponse) error {
	for _, text := range []string{f.header, f.body} {
		if text == "" {
			continue
		}
		fetching := false
		for _, c := range m.outstanding {
			if strings.HasSuffix(c.verb, "FETCH") {
				fetching = true
				c.addUID(&c.contentSeen, e.uid)
			}
		}
		if !fetching {
			return newViolation("content without a FETCH")
		}
		subject, ok := parseSubject(text)
		if !ok || f.body == text && text != makeMessage(subject) {
			return newViolation("message %d has a broken content: %.80q", f.number, text)
		}
		if e.subject != "" && e.subject != subject {
			return newViolation("message %d is %q, and was %q", f.number, subject, e.subject)
		}
		e.subject = subject
		if e.uid != 0 {
			if err := m.account.recordContent(e.uid, subject); err != nil {
				return err
			}
		}
	}
	return nil
}
