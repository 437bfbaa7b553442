package model

import (
	"maps"
	"slices"
	"strings"
)

// The part of Mirror that is about messages.

// beginSelect is called at the first response to a SELECT.
func (m *Mirror) beginSelect(c *Command) {
	m.selecting = &selection{command: c, exists: -1, closed: m.box == "", vanish: map[uint32]struct{}{}}
	if m.box == "" {
		m.leave()
	}
}

// closed takes [CLOSED], the end of the old mailbox (RFC 7162 §3.2.11).
func (m *Mirror) closed() error {
	if m.selecting == nil || m.selecting.closed {
		return violation("[CLOSED] where no mailbox is left for another")
	}
	m.selecting.closed = true
	m.leave()
	return nil
}

// keep remembers what a QRESYNC client needs to go on later. That is nothing when
// it does not know all UIDs: an unknown one could be anywhere.
func (m *Mirror) keep() {
	if m.kept = nil; slices.ContainsFunc(m.entries, unknown) || m.modseq == 0 {
		return
	}
	m.kept = &cache{uidValidity: m.uidValidity, modseq: m.modseq}
	for _, e := range m.entries {
		m.kept.entries = append(m.kept.entries, e.clone())
	}
}

// leave forgets the mailbox.
func (m *Mirror) leave() {
	if m.box != "" && m.kind == Qresync {
		m.keep()
	}
	m.box, m.entries, m.modseq = "", nil, 0
}

// selected ends a SELECT.
func (m *Mirror) selected(c *Command, r Result) error {
	if m.selecting == nil {
		m.beginSelect(c)
	}
	s := m.selecting
	m.selecting = nil
	if !r.ok() {
		m.leave()
		return violation("%s was answered %q", c.verb, r.Line)
	}
	if !s.closed || s.exists < 0 || s.uidv == 0 {
		return violation("%s was answered without CLOSED, EXISTS or UIDVALIDITY", c.verb)
	}
	want := map[string]string{"SELECT": "READ-WRITE", "EXAMINE": "READ-ONLY"}[c.verb]
	if r.Code != want {
		return violation("%s was answered %q", c.verb, r.Line)
	}
	if err := m.account.validity(s.uidv); err != nil {
		return err
	}
	m.uidValidity = s.uidv
	m.box, m.readOnly = c.selects, c.verb == "EXAMINE"
	if c.resync != nil {
		if m.modseq < c.resync.modseq {
			return violation("HIGHESTMODSEQ is %d, and was %d", m.modseq, c.resync.modseq)
		}
		for _, e := range c.resync.entries {
			if _, gone := s.vanish[e.uid]; !gone {
				m.entries = append(m.entries, e.clone())
			}
		}
		if len(m.entries) > s.exists {
			return violation("%d messages are left of those the client knew, but there are %d", len(m.entries), s.exists)
		}
	}
	m.grow(s.exists)
	for _, f := range s.fetches {
		if err := m.fetched(f); err != nil {
			return err
		}
	}
	return nil
}

func (e entry) clone() entry {
	e.flags, e.unsure = maps.Clone(e.flags), maps.Clone(e.unsure)
	return e
}

// grow adds messages of which nothing is known.
func (m *Mirror) grow(exists int) {
	for len(m.entries) < exists {
		m.entries = append(m.entries, entry{})
	}
}

// numbered takes EXISTS, EXPUNGE, FETCH and RECENT.
func (m *Mirror) numbered(n uint32, rest string, literals []string) error {
	if m.box == "" && m.selecting == nil {
		return violation("%d %s without a mailbox", n, rest)
	}
	word, items, _ := strings.Cut(rest, " ")
	word = strings.ToUpper(word)
	if word != "FETCH" && (items != "" || len(literals) > 0) {
		return violation("a broken %s: %q", word, rest)
	}
	switch word {
	case "EXISTS":
		return m.exists(int(n))
	case "RECENT":
		return nil
	case "EXPUNGE":
		return m.expunge(int(n))
	case "FETCH":
		f, err := parseFetch(n, items, literals)
		if err != nil {
			return err
		}
		if m.selecting != nil && m.selecting.closed {
			m.selecting.fetches = append(m.selecting.fetches, f)
			return nil
		}
		return m.fetched(f)
	}
	return violation("an unknown response: %d %s", n, rest)
}

// exists takes the size of the mailbox, which only expunges make smaller.
func (m *Mirror) exists(n int) error {
	if s := m.selecting; s != nil && s.closed { // or it is still the old mailbox's
		if s.exists >= 0 && s.exists != n {
			return violation("SELECT says %d EXISTS and %d EXISTS", s.exists, n)
		}
		s.exists = n
		return nil
	}
	if n < len(m.entries) {
		return violation("%d EXISTS, and there were %d", n, len(m.entries))
	}
	m.grow(n)
	return nil
}

// expunge takes EXPUNGE.
func (m *Mirror) expunge(n int) error {
	if m.kind == Qresync && m.enabled {
		return violation("EXPUNGE for a QRESYNC client")
	}
	if err := m.syncPoint(); err != nil {
		return err
	}
	if m.selecting != nil || n < 1 || n > len(m.entries) {
		return violation("message %d of %d is expunged", n, len(m.entries))
	}
	m.entries = slices.Delete(m.entries, n-1, n)
	return nil
}

// vanished takes VANISHED and VANISHED (EARLIER).
func (m *Mirror) vanished(rest string) error {
	if m.kind != Qresync || !m.enabled {
		return violation("VANISHED for a client that did not enable QRESYNC")
	}
	set, earlier := strings.CutPrefix(rest, "(EARLIER) ")
	uids, ok := parseSet(set)
	switch {
	case !ok:
		return violation("a broken VANISHED: %q", rest)
	case earlier && (m.selecting == nil || m.selecting.command.resync == nil):
		return violation("VANISHED (EARLIER) where nothing asked for it")
	case earlier:
		for _, uid := range uids {
			m.selecting.vanish[uid] = struct{}{}
		}
		return nil
	case m.selecting != nil:
		return violation("VANISHED during SELECT")
	}
	if err := m.syncPoint(); err != nil {
		return err
	}
	for _, uid := range uids {
		if err := m.vanishOne(uid); err != nil {
			return err
		}
	}
	return nil
}

// vanishOne removes a message by its UID. One of unknown UID can be removed too;
// what was known of its unknown neighbours may then be about another.
func (m *Mirror) vanishOne(uid uint32) error {
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
		return violation("UID %d vanished, which is not there", uid)
	}
	m.entries = slices.Delete(m.entries, after, after+1)
	for i := after; i < len(m.entries) && m.entries[i].uid == 0; i++ {
		m.entries[i] = entry{}
	}
	return nil
}

// flags takes the list of the flags that are in use.
func (m *Mirror) flags(list string) error {
	names, ok := listOf(list)
	if !ok || m.box == "" && m.selecting == nil {
		return violation("a broken or misplaced FLAGS: %q", list)
	}
	m.keywords = map[string]struct{}{}
	for _, f := range names {
		m.keywords[f] = struct{}{}
	}
	return nil
}

// fetched takes what is said of one message.
func (m *Mirror) fetched(f fetched) error {
	if f.number < 1 || int(f.number) > len(m.entries) {
		return violation("FETCH of message %d of %d", f.number, len(m.entries))
	}
	if f.modseq != 0 && m.kind == Plain {
		return violation("MODSEQ for a client that enabled nothing")
	}
	e := &m.entries[f.number-1]
	if f.uid != 0 {
		if err := m.place(int(f.number)-1, f.uid); err != nil {
			return err
		}
	}
	if h := m.head(); f.uid == 0 && h != nil && h.verb == "UID FETCH" && len(m.open) == 1 && (f.header != "" || f.body != "") {
		return violation("FETCH %d without a UID in answer to UID FETCH", f.number)
	}
	if f.hasFlags {
		if err := m.setFlags(e, f.flags); err != nil {
			return err
		}
	}
	e.modseq = max(e.modseq, f.modseq)
	return m.content(e, f)
}

// place notes the UID of a message: it never changes, and UIDs ascend.
func (m *Mirror) place(i int, uid uint32) error {
	if was := m.entries[i].uid; was != 0 {
		if was != uid {
			return violation("message %d is UID %d, and was %d", i+1, uid, was)
		}
		return nil
	}
	for j, e := range m.entries {
		if e.uid != 0 && (j < i && e.uid >= uid || j > i && e.uid <= uid) {
			return violation("message %d is UID %d, where message %d is UID %d", i+1, uid, j+1, e.uid)
		}
	}
	m.entries[i].uid = uid
	return nil
}

// setFlags notes the flags of a message. A keyword is announced before it is used.
func (m *Mirror) setFlags(e *entry, flags []string) error {
	e.flags, e.unsure = map[string]struct{}{}, nil
	for _, f := range flags {
		if f == `\Recent` {
			continue
		}
		if _, known := m.keywords[f]; !known {
			return violation("flag %s was not among the FLAGS of the mailbox", f)
		}
		e.flags[f] = struct{}{}
	}
	if h := m.find(func(c *Command) bool { return strings.HasSuffix(c.verb, "STORE") }); h != nil {
		h.note(&h.seen, e.uid)
	}
	return nil
}

// content checks what a message says against what its UID said before.
func (m *Mirror) content(e *entry, f fetched) error {
	for _, text := range []string{f.header, f.body} {
		if text == "" {
			continue
		}
		fetching := false
		for _, c := range m.open {
			if strings.HasSuffix(c.verb, "FETCH") {
				fetching = true
				c.note(&c.answered, e.uid)
			}
		}
		if !fetching {
			return violation("content that nobody fetched")
		}
		subject, ok := subjectOf(text)
		if !ok || f.body == text && text != message(subject) {
			return violation("message %d has a broken content: %.80q", f.number, text)
		}
		if e.subject != "" && e.subject != subject {
			return violation("message %d is %q, and was %q", f.number, subject, e.subject)
		}
		e.subject = subject
		if e.uid != 0 {
			if err := m.account.content(e.uid, subject); err != nil {
				return err
			}
		}
	}
	return nil
}
