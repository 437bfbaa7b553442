package mux

import (
	"time"

	"imapgate/internal/imap"
	"imapgate/proxy/mux/command"
	"imapgate/proxy/upstream"
)

// answerID is ID (RFC 2971). What the client says of itself is repeated on each
// connection that the session gets. The backend's own answer goes to the client where
// the session has a connection, or the login has left one; none is made, or waited for,
// to ask a question whose answer changes nothing.
func (s *session) answerID(r *request) error {
	pairs, ok := command.ParseID(r.raw)
	if !ok {
		return s.replyTagged("BAD ID takes a list of at most 30 pairs of strings, or NIL.")
	}
	s.auditClient.SetProgram(pairs)
	id := upstream.FormatID(pairs)
	s.account.SetClientID(id)
	first := s.upstream == nil
	if first {
		if conn := s.account.TakeLoginConn(); conn != nil {
			s.bindUpstream(conn)
		}
	}
	answered, err := s.forwardID(id)
	if err := s.recoverLoss(err); err != nil {
		return err
	}
	if first && s.upstream != nil {
		s.account.ReturnLoginConn(s.unbindUpstream())
	}
	if !answered {
		if err := s.reply("* ID (\"name\" \"imapgate\")"); err != nil {
			return err
		}
	}
	return s.replyTagged("OK ID completed.")
}

// forwardID tells the backend of the lease, if there is one and it knows ID, and passes its
// answer on. It returns false where the client has got none.
func (s *session) forwardID(id string) (answered bool, err error) {
	if s.upstream == nil || !s.upstream.Caps().Has("ID") {
		return false, nil
	}
	_, err = s.upstream.Run(time.Now().Add(housekeepingTimeout), "ID "+id, func(response []byte) error {
		answered = answered || imap.HasWordPrefix(response[len("* "):], "ID")
		return s.forwardUntagged(response)
	})
	if err != nil {
		return answered, s.wrapRunError(err)
	}
	s.upstream.SentClientID = id
	return answered, nil
}
