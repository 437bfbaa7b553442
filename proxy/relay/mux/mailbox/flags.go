package mailbox

import (
	"bytes"
	"fmt"
	"time"

	"imapgate/internal/imap"
)

// flagState is what a client knows of the flags of its mailbox.
type flagState struct {
	modseq          uint64 // the client has all flag changes up to here; 0: unknown
	pendingModseq   uint64 // modseq after the next command that permits all responses
	resendModseq    uint64 // modseq once the pending flag changes are sent
	modseqRequested bool   // the backend has answered whether it keeps mod-sequences
	flagsPending    bool   // flag changes remain to be sent
	isElsewhere     bool   // modseq is of another backend, and no bound for changes here
	ModseqRetry     Retry  // of asking for the mod-sequence
	FlagRetry       Retry  // of sending the pending flag changes
}

// Retry is the time of the next attempt of something, on the caller's clock. The zero
// value is due.
type Retry struct {
	At   time.Duration
	wait time.Duration
}

// Lengthen doubles the delay between two attempts, from first up to a minute, and returns
// it.
func (r *Retry) Lengthen(first time.Duration) time.Duration {
	r.wait = min(max(2*r.wait, first), time.Minute)
	return r.wait
}

// NeedsModseq reports whether the backend must still be asked for the mod-sequence.
func (m *Mailbox) NeedsModseq() bool { return m.modseq == 0 && !m.modseqRequested && m.isASCII() }

// SetPendingModseq records the answer of the backend, 0 for none. It holds for the client
// after the next command that permits all responses.
func (m *Mailbox) SetPendingModseq(modseq uint64) {
	m.pendingModseq, m.modseqRequested = modseq, true
}

// HasPendingModseq reports whether a command that permits all responses is awaited.
func (m *Mailbox) HasPendingModseq() bool { return m.pendingModseq > 0 }

// ConfirmModseq records that such a command was answered.
func (m *Mailbox) ConfirmModseq() {
	if m.pendingModseq > 0 {
		m.modseq, m.pendingModseq = m.pendingModseq, 0
	}
}

// DropPendingModseq records that such a command has failed.
func (m *Mailbox) DropPendingModseq() { m.pendingModseq = 0 }

// MoveElsewhere records that the mailbox is at another backend from now on, as a copy with
// the same UIDs. Its mod-sequences are others: only the newest one must not be lower.
func (m *Mailbox) MoveElsewhere() { m.isElsewhere = true }

// IsElsewhere reports whether the view is still that of another backend.
func (m *Mailbox) IsElsewhere() bool { return m.isElsewhere }

// canQueryChanges reports whether a backend can be asked for the flags that have changed.
func (m *Mailbox) canQueryChanges() bool { return m.modseq != 0 && !m.isElsewhere }

// HasFlagChanges reports whether flags may have changed since the client received them,
// by the data of a later SELECT.
func (m *Mailbox) HasFlagChanges(data *SelectData) bool {
	return m.Exists() > 0 && (!m.canQueryChanges() || data.Modseq != m.modseq || m.flagsPending)
}

// NeedsAux reports whether the changed flags can be queried, but not on a connection with
// the client's extensions.
func (m *Mailbox) NeedsAux(data *SelectData, enabled imap.Extensions) bool {
	return m.canQueryChanges() && (data.Modseq != m.modseq || m.flagsPending) && !enabled.Has(imap.Condstore) && m.isASCII()
}

// FetchFlags returns the command, for a connection with the client's extensions, that
// returns the changed flags (RFC 7162 §3.1.4.1). If they are unknown, it returns all
// flags, and isAll is true.
func (m *Mailbox) FetchFlags(data *SelectData, enabled imap.Extensions) (command string, isAll bool) {
	if m.canQueryChanges() && data.Modseq != 0 && enabled.Has(imap.Condstore) {
		return fmt.Sprintf("FETCH 1:%d (UID FLAGS MODSEQ) (CHANGEDSINCE %d)", m.Exists(), m.modseq), false
	}
	return m.FetchAllFlags(), true
}

// FetchAllFlags returns the command that returns all flags.
func (m *Mailbox) FetchAllFlags() string { return fmt.Sprintf("FETCH 1:%d (UID FLAGS)", m.Exists()) }

// FetchFlagsByUID returns the command, for an auxiliary connection, that returns the
// changed flags.
func (m *Mailbox) FetchFlagsByUID() string {
	return fmt.Sprintf("UID FETCH 1:%d (FLAGS) (CHANGEDSINCE %d)", max(m.MaxUID(), 1), m.modseq)
}

// HasSameIdentity reports whether data is of the same mailbox.
func (m *Mailbox) HasSameIdentity(data *SelectData) bool { return data.uidValidity == m.uidValidity }

// AppendFlags appends the flags of a FETCH response with the message's number in the view.
// Responses without a UID, whose numbers are valid only on their own connection, and
// messages unknown to the view are omitted.
func (v *View) AppendFlags(dst, response []byte) []byte {
	_, rest, ok := parseLeadingNumber(response[len("* "):])
	if !ok || !imap.HasWordPrefix(rest, "FETCH") {
		return dst
	}
	uid, _ := findUID(rest)
	n, isKnown := v.Number(uid)
	_, rest, hasFlags := bytes.Cut(rest, []byte("FLAGS ("))
	flags, _, isComplete := bytes.Cut(rest, []byte(")"))
	if !isKnown || !hasFlags || !isComplete {
		return dst
	}
	return fmt.Appendf(dst, "* %d FETCH (UID %d FLAGS (%s))\r\n", n, uid, flags)
}

// AppendKeywords appends a FLAGS line if the connection of data knows flags that the
// client does not know. Either connection may lack new keywords of the other.
func (m *Mailbox) AppendKeywords(dst []byte, data *SelectData) []byte {
	return appendFlagsLine(dst, &m.flags, m.flags.union(data.flags))
}

// PostponeFlags records that the flags changed up to data could not be sent.
func (m *Mailbox) PostponeFlags(data *SelectData) { m.flagsPending, m.resendModseq = true, data.Modseq }

// PostponedFlags returns what FinishFlags takes when the postponed flags have been sent;
// nil if none are.
func (m *Mailbox) PostponedFlags() *SelectData {
	if !m.flagsPending {
		return nil
	}
	return &SelectData{Modseq: m.resendModseq}
}

// EndPostponedFlags records that the postponed flags have been sent.
func (m *Mailbox) EndPostponedFlags() {
	if m.isElsewhere {
		m.modseq = 0 // another backend's
	}
	m.flagsPending, m.isElsewhere, m.FlagRetry.wait = false, false, 0
	m.modseq = max(m.modseq, m.resendModseq)
}

// FinishFlags records that all flags changed up to data have been sent. It appends the
// HIGHESTMODSEQ that covers everything, for a client that keeps it.
func (m *Mailbox) FinishFlags(dst []byte, data *SelectData, enabled imap.Extensions) []byte {
	if data.Modseq == 0 && m.isElsewhere {
		m.modseq = 0
	}
	m.flagsPending, m.isElsewhere = false, false
	if data.Modseq == 0 {
		return dst // the earlier one stays valid
	}
	if enabled.Has(imap.Qresync) && data.Modseq != m.modseq {
		dst = fmt.Appendf(dst, "* OK [HIGHESTMODSEQ %d] Highest\r\n", data.Modseq)
	}
	m.modseq = data.Modseq
	return dst
}
