package mailbox

import (
	"fmt"
	"iter"

	"imapgate/internal/imap"
)

// maxPiece bounds the text that Resync gathers before it yields it.
const maxPiece = 32 << 10

// Check verifies that data is of the mailbox that the client has selected, not of an
// earlier state of it. Without UIDVALIDITY the mailbox has no unique identifiers (RFC 9051
// §6.3.2) and cannot be verified.
//
// Errors: ErrChanged, or an error of ViolationOf.
func (m *Mailbox) Check(data *SelectData) error {
	switch {
	case data.uidValidity == 0, data.uidValidity != m.uidValidity, m.mailboxID != "" && data.mailboxID != m.mailboxID:
		return ErrChanged
	case data.uidNext != 0 && data.uidNext < m.uidNext:
		return errUIDNextShrank
	case data.Modseq != 0 && data.Modseq < m.modseq:
		return errModseqShrank
	}
	return nil
}

// HasSameUIDs reports whether the UIDs of a connection with data must equal those of the
// view: UIDs only grow and are never reused. Those of a copy must be compared.
func (m *Mailbox) HasSameUIDs(data *SelectData) bool {
	return !m.isElsewhere && data.Exists == m.Exists() && data.uidNext != 0 && data.uidNext == m.uidNext
}

// Compare returns the difference between the view and a connection with data, whose
// messages have uids. It derives unknown UIDs of the view from them first.
func (m *Mailbox) Compare(uids *UIDSet, data *SelectData) (Diff, error) {
	if m.UnknownCount() > 0 && !m.hasArrivals {
		if old := uids.Below(m.uidNext); old.Len() == m.Exists() {
			_ = m.addUIDs(1, old) // the same number, and none of them new: they are the same messages
		}
	}
	bound := data.uidNext
	if !m.hasArrivals {
		bound = m.uidNext // as of the SELECT before the loss
	}
	m.inferUIDs(bound)
	return m.Diff(uids, data.uidNext)
}

// Resync yields the responses that tell a client with the enabled extensions the
// difference between its view and a connection's, d and data, except for flags. After
// them the view and the connection are equal. d is nil if the messages are. If the
// caller stops earlier, the mailbox must not be used any more.
//
// The order matters: keywords before flags that use them; expunges before EXISTS (RFC
// 9051 §7.5.1); flags received during the queries before the newer ones that are fetched.
func (m *Mailbox) Resync(d *Diff, data *SelectData, enabled imap.Extensions) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		b := appendFlagsLine(nil, &m.flags, data.flags)
		b = appendFlagsLine(b, &m.permanentFlags, data.permanentFlags)
		if data.access != "" && data.access != m.access {
			b = fmt.Appendf(b, "* OK [%s] Access has changed.\r\n", data.access)
			m.access = data.access
		}
		m.hasArrivals = false
		if d != nil {
			var ok bool
			if b, ok = appendExpunged(b, d, enabled, yield); !ok {
				return
			}
			b = m.applyDiff(b, d, data.Exists)
		}
		if data.recent != m.recent && !enabled.Has(imap.Rev2) {
			m.recent = data.recent
			b = fmt.Appendf(b, "* %d RECENT\r\n", data.recent)
		}
		for _, line := range data.Fetches {
			b = append(b, line...)
		}
		m.uidNext, m.pendingModseq, m.uidsDeferred = data.uidNext, 0, false
		m.modseqRequested = m.modseqRequested && m.modseq != 0
		if len(b) > 0 {
			yield(b)
		}
	}
}

// appendExpunged appends the expunges of d, and yields what exceeds maxPiece. It returns
// false if yield does.
func appendExpunged(b []byte, d *Diff, enabled imap.Extensions, yield func([]byte) bool) ([]byte, bool) {
	if enabled.Has(imap.Qresync) || enabled.Has(imap.UIDOnly) {
		return d.appendVanished(b), true
	}
	for n := range d.expungedNumbers.backward {
		if b = appendExpunge(b, n); len(b) < maxPiece {
			continue
		}
		if !yield(b) {
			return b, false
		}
		b = b[:0]
	}
	return b, true
}

// applyDiff makes the snapshot of d the view, and appends its number of messages, if any
// are new to the client. exists is the number of messages that the connection has
// announced.
func (m *Mailbox) applyDiff(b []byte, d *Diff, exists uint32) []byte {
	m.apply(d)
	if exists > d.Exists() { // new messages since the snapshot
		_ = m.setExists(exists)
		m.hasArrivals = true
	}
	if d.NewCount() > 0 || m.hasArrivals {
		b = fmt.Appendf(b, "* %d EXISTS\r\n", m.Exists())
	}
	return b
}

// appendFlagsLine appends a FLAGS or PERMANENTFLAGS line if it differs from last.
func appendFlagsLine(dst []byte, last *responseLine, line responseLine) []byte {
	if line == (responseLine{}) || line == *last {
		return dst
	}
	*last = line
	return append(append(dst, "* "...), line.String()...)
}
