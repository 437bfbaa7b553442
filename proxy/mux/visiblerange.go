package mux

import (
	"errors"

	"imapgate/internal/imap"
	"imapgate/proxy/mux/command"
)

// errNoMatch reports a command whose UIDs match no message visible to the client. It is
// answered OK.
var errNoMatch = errors.New("no message has one of these UIDs")

// visibleRange is the range of messages that a client knew when it sent a command. Later
// messages are not part of it, even for "*".
type visibleRange struct {
	exists      uint32
	maxUID      uint32 // highest UID the client may know; 0: unknown
	maxKnownUID uint32 // highest UID the gateway knows
}

func (s *session) visibleRange() visibleRange {
	m := s.mailbox
	switch {
	case m == nil:
		return visibleRange{}
	case m.view.UnknownCount() == 0:
		return visibleRange{m.view.Exists(), m.view.MaxUID(), m.view.MaxUID()}
	case !m.hasArrivals && m.uidNext > 0:
		return visibleRange{m.view.Exists(), m.uidNext - 1, m.view.MaxUID()}
	}
	return visibleRange{exists: m.view.Exists(), maxKnownUID: m.view.MaxUID()}
}

// changesMessages reports whether a command changes the messages of its set.
func changesMessages(spec *command.Spec) bool {
	switch spec.Name {
	case "STORE", "UID STORE", "UID COPY", "UID MOVE", "UID EXPUNGE":
		return true
	}
	return false
}

// clamp returns a command that changes messages with its set limited to v. It returns
// errNoSuchMessage for numbers beyond v, errNoMatch if no UID remains, and
// errPendingExpunges if the limit is unknown.
func (v visibleRange) clamp(raw []byte, spec *command.Spec) ([]byte, error) {
	facts, err := command.Parse(raw)
	if err != nil || facts.Set == nil {
		return raw, nil // "$", or no message set
	}
	set, err := imap.ParseSet(string(facts.Set))
	if err != nil {
		return nil, errPendingExpunges
	}
	last := v.exists
	byUID := spec.Name != "STORE"
	if byUID {
		if last = v.maxUID; last == 0 && v.exists > 0 {
			return raw, v.checkListedUIDs(set)
		}
	}
	clamped := make(imap.Set, 0, len(set))
	for _, r := range set {
		switch {
		case r.Last == imap.Star && last > 0: // includes at least the last message
			r = imap.Range{First: min(r.First, last), Last: last}
		case r.Last > last && !byUID:
			return nil, errNoSuchMessage
		case r.First > last:
			continue
		}
		clamped = append(clamped, imap.Range{First: r.First, Last: min(r.Last, last)})
	}
	if len(clamped) == 0 {
		return nil, errNoMatch
	}
	rewritten := append([]byte(nil), raw[:facts.SetPos]...)
	rewritten = append(rewritten, clamped.String()...)
	return append(rewritten, raw[facts.SetPos+len(facts.Set):]...), nil
}

// checkListedUIDs returns errPendingExpunges unless set is safe although the highest
// visible UID is unknown. A range beyond the highest known UID may include new messages.
// UIDs listed one by one cannot.
func (v visibleRange) checkListedUIDs(set imap.Set) error {
	for _, r := range set {
		if r.Last > v.maxKnownUID && r.First != r.Last || r.Last == imap.Star {
			return errPendingExpunges
		}
	}
	return nil
}
