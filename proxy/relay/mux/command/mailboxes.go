package command

import "bytes"

// Mailboxes returns the mailbox that a command acts on, and the destination of COPY, MOVE,
// REPLACE and RENAME. Each is "" if it is absent or cannot be parsed. Only the audit log uses
// them, so parsing is lenient.
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

// parseMailboxAt returns the mailbox after the space at pos and the offset of its end, or 0.
func parseMailboxAt(raw []byte, pos int) (string, int) {
	s := scanner{input: bytes.TrimSuffix(raw, []byte("\r\n"))}
	s.pos = min(pos+len(" "), len(s.input))
	t := s.next()
	if !isValidAstring(t) {
		return "", 0
	}
	return decodeMailbox(t), s.pos
}
