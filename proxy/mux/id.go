package mux

import (
	"time"

	"imapgate/internal/imap"
	"imapgate/proxy/upstream"
)

// answerID executes ID (RFC 2971). The client's ID is repeated on each later connection
// of the session. The client receives the backend's answer if the session has a
// connection, or the login has left one. It does not wait for a new connection, because
// the answer changes nothing.
func (s *session) answerID(r *request) error {
	pairs, ok := imap.ParseIDCommand(r.raw)
	if !ok {
		return s.replyTagged(imap.IDRejected)
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
		if err := s.reply(imap.IDResponse); err != nil {
			return err
		}
	}
	return s.replyTagged(imap.IDDone)
}

// forwardID sends ID on the lease, if there is one and it supports ID, and relays the
// answer. It returns false if the client has received none.
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
