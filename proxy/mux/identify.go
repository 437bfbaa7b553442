package mux

import (
	"time"

	"imapgate/internal/imap"
	"imapgate/proxy/mux/command"
	"imapgate/proxy/upstream"
)

// identify is ID (RFC 2971). What the client says of itself is repeated on each
// connection that the session gets. The backend's own answer goes to the client where
// the session has a connection, or the login has left one; none is made, or waited for,
// to ask a question whose answer changes nothing.
func (s *session) identify(r *request) error {
	pairs, ok := command.ID(r.whole)
	if !ok {
		return s.answer("BAD ID takes a list of at most 30 pairs of strings, or NIL.")
	}
	s.who.Identify(pairs)
	id := upstream.OwnID(pairs)
	s.account.Identify(id)
	first := s.up == nil
	if first {
		if up := s.account.First(); up != nil {
			s.take(up)
		}
	}
	answered, err := s.sayID(id)
	if err := s.healed(err); err != nil {
		return err
	}
	if first && s.up != nil {
		s.account.Keep(s.give())
	}
	if !answered {
		if err := s.say("* ID (\"name\" \"imapgate\")"); err != nil {
			return err
		}
	}
	return s.answer("OK ID completed.")
}

// sayID tells the backend of the lease, if there is one and it knows ID, and passes its
// answer on. It returns false where the client has got none.
func (s *session) sayID(id string) (answered bool, err error) {
	if s.up == nil || !s.up.Caps().Has("ID") {
		return false, nil
	}
	_, err = s.up.Run(time.Now().Add(ownQuestion), "ID "+id, func(response []byte) error {
		answered = answered || imap.HasWord(response[len("* "):], "ID")
		return s.overhear(response)
	})
	if err != nil {
		return answered, s.ranInto(err)
	}
	s.up.ID = id
	return answered, nil
}
