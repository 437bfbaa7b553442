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
		return s.client.replyTagged(imap.IDRejected)
	}
	s.client.audit.SetProgram(pairs)
	id := upstream.FormatID(pairs)
	s.upstream.account.SetClientID(id)
	first := s.upstream.Conn == nil
	if first {
		if conn := s.upstream.account.TakeLoginConn(); conn != nil {
			s.bindUpstream(conn)
		}
	}
	answered, err := s.forwardID(id)
	if err := s.recoverLoss(err); err != nil {
		return err
	}
	if first && s.upstream.Conn != nil {
		s.upstream.account.ReturnLoginConn(s.unbindUpstream())
	}
	if !answered {
		if err := s.client.reply(imap.IDResponse); err != nil {
			return err
		}
	}
	return s.client.replyTagged(imap.IDDone)
}

// forwardID sends ID on the lease, if there is one and it supports ID, and relays the
// answer. It returns false if the client has received none.
func (x *exchange) forwardID(id string) (answered bool, err error) {
	if x.upstream.Conn == nil || !x.upstream.Caps().Has("ID") {
		return false, nil
	}
	_, err = x.upstream.Run(time.Now().Add(housekeepingTimeout), "ID "+id, func(response []byte) error {
		answered = answered || imap.HasWordPrefix(response[len("* "):], "ID")
		return x.forwardUntagged(response)
	})
	if err != nil {
		return answered, wrapRunError(err)
	}
	x.upstream.SentClientID = id
	return answered, nil
}
