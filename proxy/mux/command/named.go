package command

import "bytes"

// Mailboxes are the mailboxes that a command names, for the record alone: the one
// it is about, and the one to which COPY, MOVE, REPLACE and RENAME bring it. Each
// is "" where there is none, and where it cannot be read. Nothing else
// rests on them, so they are read as leniently as they can be.
func (f *Facts) Mailboxes(spec *Spec, whole []byte) (about, to string) {
	switch spec.args {
	case replaceArgs:
		return "", f.Mailbox
	case copyArgs:
		if f.Set != nil {
			to, _ = firstMailbox(whole, f.SetAt+len(f.Set))
		}
		return "", to
	case namedArgs:
		about, _ = firstMailbox(whole, f.name+len(spec.Name))
		return about, ""
	}
	if spec.Name == "RENAME" && f.Mailbox != "" {
		if _, end := firstMailbox(whole, f.name+len(spec.Name)); end > 0 {
			to, _ = firstMailbox(whole, end)
		}
	}
	return f.Mailbox, to
}

// firstMailbox is the one that follows the space at from, and where it ends: 0
// for none.
func firstMailbox(whole []byte, from int) (string, int) {
	s := scanner{b: bytes.TrimSuffix(whole, []byte("\r\n"))}
	s.at = min(from+len(" "), len(s.b))
	t := s.next()
	if !validAstring(t) {
		return "", 0
	}
	return mailboxName(t), s.at
}
