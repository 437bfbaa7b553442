package command

import "bytes"

// Mailboxes are the mailboxes that a command names, for the record alone: the one
// it is about, and the one to which COPY, MOVE, REPLACE and RENAME bring it. Each
// is "" where there is none, and where it cannot be read. Nothing else
// rests on them, so they are read as leniently as they can be.
func (f *Properties) Mailboxes(spec *Spec, raw []byte) (mailbox, destination string) {
	switch spec.argSyntax {
	case replaceArgs:
		return "", f.Mailbox
	case copyArgs:
		if f.Set != nil {
			destination, _ = parseMailboxAt(raw, f.SetPos+len(f.Set))
		}
		return "", destination
	case mailboxFirstArgs:
		mailbox, _ = parseMailboxAt(raw, f.namePos+len(spec.Name))
		return mailbox, ""
	}
	if spec.Name == "RENAME" && f.Mailbox != "" {
		if _, end := parseMailboxAt(raw, f.namePos+len(spec.Name)); end > 0 {
			destination, _ = parseMailboxAt(raw, end)
		}
	}
	return f.Mailbox, destination
}

// parseMailboxAt is the one that follows the space at from, and where it ends: 0
// for none.
func parseMailboxAt(raw []byte, pos int) (string, int) {
	s := scanner{input: bytes.TrimSuffix(raw, []byte("\r\n"))}
	s.pos = min(pos+len(" "), len(s.input))
	t := s.next()
	if !isValidAstring(t) {
		return "", 0
	}
	return decodeMailbox(t), s.pos
}
