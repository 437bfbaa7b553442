package mux

import (
	"errors"

	"imapgate/internal/imap"
	"imapgate/proxy/mux/command"
)

// errNothing is a command whose UIDs are none that the client has: it is done.
var errNothing = errors.New("no message has one of these UIDs")

// horizon is how far a client could see into its mailbox when it sent a command.
// What has arrived since it cannot mean, even by "*".
type horizon struct {
	exists uint32
	uid    uint32 // the highest it may know of; 0: that is not known
	known  uint32 // the highest that is known here
}

func (s *session) horizon() horizon {
	b := s.box
	switch {
	case b == nil:
		return horizon{}
	case b.view.Unknown() == 0:
		return horizon{b.view.Exists(), b.view.Max(), b.view.Max()}
	case !b.grown && b.uidNext > 0:
		return horizon{b.view.Exists(), b.uidNext - 1, b.view.Max()}
	}
	return horizon{exists: b.view.Exists(), known: b.view.Max()}
}

// changes says whether a command, once sent, changes the messages of its set.
func changes(spec *command.Spec) bool {
	switch spec.Name {
	case "STORE", "UID STORE", "UID COPY", "UID MOVE", "UID EXPUNGE":
		return true
	}
	return false
}

// confine is a command that changes messages, with its set cut off at the
// horizon. One by number that goes beyond it is errNoSuch, one by UID of which
// nothing remains errNothing; errGhosts where nobody knows the horizon.
func (h horizon) confine(whole []byte, spec *command.Spec) ([]byte, error) {
	facts, err := command.Read(whole)
	if err != nil || facts.Set == nil {
		return whole, nil // "$", or nothing that addresses messages
	}
	set, err := imap.ParseSet(string(facts.Set))
	if err != nil {
		return nil, errGhosts
	}
	most := h.exists
	byUID := spec.Name != "STORE"
	if byUID {
		if most = h.uid; most == 0 && h.exists > 0 {
			return whole, h.named(set)
		}
	}
	confined := make(imap.Set, 0, len(set))
	for _, r := range set {
		switch {
		case r.Last == imap.Star && most > 0: // it is the last message, at least
			r = imap.Range{First: min(r.First, most), Last: most}
		case r.Last > most && !byUID:
			return nil, errNoSuch
		case r.First > most:
			continue
		}
		confined = append(confined, imap.Range{First: r.First, Last: min(r.Last, most)})
	}
	if len(confined) == 0 {
		return nil, errNothing
	}
	rewritten := append([]byte(nil), whole[:facts.SetAt]...)
	rewritten = append(rewritten, confined.String()...)
	return append(rewritten, whole[facts.SetAt+len(facts.Set):]...), nil
}

// named is errGhosts unless a set of UIDs is within the horizon though that is
// unknown: what has arrived can be in a range that goes beyond what is known, and
// not among UIDs that were named one by one.
func (h horizon) named(set imap.Set) error {
	for _, r := range set {
		if r.Last > h.known && r.First != r.Last || r.Last == imap.Star {
			return errGhosts
		}
	}
	return nil
}
