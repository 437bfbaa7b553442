package mux

import (
	"errors"

	"imapgate/internal/imap"
	"imapgate/proxy/mux/command"
)

// errNoMatch is a command whose UIDs are none that the client has: it is done.
var errNoMatch = errors.New("no message has one of these UIDs")

// visibleRange is how far a client could see into its mailbox when it sent a command.
// What has arrived since it cannot mean, even by "*".
type visibleRange struct {
	exists      uint32
	maxUID      uint32 // the highest it may know of; 0: that is not known
	maxKnownUID uint32 // the highest that is known here
}

func (s *session) visibleRange() visibleRange {
	b := s.mailbox
	switch {
	case b == nil:
		return visibleRange{}
	case b.view.UnknownCount() == 0:
		return visibleRange{b.view.Exists(), b.view.MaxUID(), b.view.MaxUID()}
	case !b.hasArrivals && b.uidNext > 0:
		return visibleRange{b.view.Exists(), b.uidNext - 1, b.view.MaxUID()}
	}
	return visibleRange{exists: b.view.Exists(), maxKnownUID: b.view.MaxUID()}
}

// changesMessages says whether a command, once sent, changes the messages of its set.
func changesMessages(spec *command.Spec) bool {
	switch spec.Name {
	case "STORE", "UID STORE", "UID COPY", "UID MOVE", "UID EXPUNGE":
		return true
	}
	return false
}

// clamp is a command that changes messages, with its set cut off at the
// horizon. One by number that goes beyond it is errNoSuchMessage, one by UID of which
// nothing remains errNoMatch; errPendingExpunges where nobody knows the horizon.
func (v visibleRange) clamp(raw []byte, spec *command.Spec) ([]byte, error) {
	facts, err := command.Parse(raw)
	if err != nil || facts.Set == nil {
		return raw, nil // "$", or nothing that addresses messages
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
		case r.Last == imap.Star && last > 0: // it is the last message, at least
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

// checkListedUIDs is errPendingExpunges unless a set of UIDs is within the horizon though that is
// unknown: what has arrived can be in a range that goes beyond what is known, and
// not among UIDs that were named one by one.
func (v visibleRange) checkListedUIDs(set imap.Set) error {
	for _, r := range set {
		if r.Last > v.maxKnownUID && r.First != r.Last || r.Last == imap.Star {
			return errPendingExpunges
		}
	}
	return nil
}
