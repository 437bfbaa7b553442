package mux

import (
	"bytes"

	"imapgate/internal/audit"
	"imapgate/internal/imap"
	"imapgate/proxy/mux/command"
)

// stream is a command that carries messages: APPEND and REPLACE, of which only a
// buffer is held at a time. It runs alone. seg is its first line.
//
// Until it is complete nobody may be told of expunges, so where messages have
// gone it is refused if it depends on what is selected. Otherwise it runs on a
// connection without the mailbox, and the client hears of the rest later.
func (s *session) stream(seg imap.Segment) error {
	r := &s.request
	r.tag = bytes.Clone(r.tag)
	r.whole = seg.Bytes
	r.facts, _ = command.Read(r.whole) // what is wrong with it, the backend says
	s.describes(r)
	s.brings(seg)
	s.inHand = r.facts.Expunge
	defer func() { s.inHand = command.ExpSync }()
	if err := s.settle(); err != nil {
		return err
	}
	if err := s.probe(); err != nil {
		return err
	}
	if !s.mayUpload(seg) {
		return s.refuse(overQuota, seg)
	}
	m := moment{expunge: command.ExpNone, anywhere: r.spec.Name == "APPEND" && !catenates(seg.Bytes)}
	for {
		if !s.inStep() && !(m.anywhere && s.up != nil) {
			if err := s.attachIn(m, s.backend.settings.HoldMax); err != nil {
				return s.refused(err, seg)
			}
		}
		if err := s.probe(); err != nil {
			return err
		}
		if s.up == nil {
			if s.tries++; s.tries > maxTries || s.order.Load() != nil {
				s.tries = 0
				return s.refuse(nothingDone, seg)
			}
			continue
		}
		begun, err := s.upload(seg)
		lost, ok := asLost(err)
		if !ok || begun || s.partial {
			return err
		}
		s.sent.clear() // the backend has not asked for the message: it can be offered to another
		s.tries++
		if err := s.survive(lost); err != nil {
			return err
		}
		if s.tries > maxTries {
			return s.refuse(nothingDone, seg)
		}
	}
}

const nothingDone = " NO [UNAVAILABLE] Connection to mail store lost, nothing was done."

// refused answers a command that is not complete, for which an attach has failed.
func (s *session) refused(err error, seg imap.Segment) error {
	refusal, end := s.refusal(err)
	if end != nil {
		return end
	}
	return s.refuse(refusal, seg)
}

// catenates says whether APPEND refers to messages by URLs, which may be relative
// to the selected mailbox (RFC 4469).
func catenates(line []byte) bool { return bytes.Contains(bytes.ToUpper(line), []byte("CATENATE")) }

// refuse answers a command that is not complete, and passes over the rest of it.
func (s *session) refuse(refusal string, seg imap.Segment) error {
	if seg.Literal.Size >= 0 && !seg.Literal.NonSync {
		s.client.Refuse()
		return s.say(string(s.request.tag), refusal)
	}
	if err := s.skip(seg); err != nil {
		return err
	}
	return s.say(string(s.request.tag), refusal)
}

// upload sends the command as it comes. The backend asks for its literals where
// the client waits with them, or it does not take them unasked.
//
// It says whether more of the client's was taken than the first line.
func (s *session) upload(seg imap.Segment) (begun bool, err error) {
	r := &s.request
	s.avoid(r.tag)
	s.sent.add(entry{spec: r.spec, tag: len(r.tag)}, append(r.tag, ' '))
	s.cutShort = true
	for {
		wanted, err := s.uploadPart(seg)
		switch {
		case err != nil && !begun && !seg.End:
			return false, err
		case err != nil:
			return true, s.uploadLost(seg, err)
		case !wanted:
			s.cutShort = false
			return true, s.passOver(seg)
		case seg.End:
			s.cutShort = false
			return true, s.settle()
		}
		begun = true
		if seg, err = s.nextOfClient(); err != nil {
			return true, err
		}
		s.uploads(seg)
		s.brings(seg)
	}
}

// uploadPart sends one piece, and waits for the backend to ask for the literal
// behind it where it has to. It says no when the backend has answered instead.
func (s *session) uploadPart(seg imap.Segment) (bool, error) {
	asks := seg.Kind == imap.Text && !seg.End && !s.unasked(seg.Literal)
	b := seg.Bytes
	if asks {
		b = synchronising(seg)
		s.plus = true
	}
	if _, err := s.up.Write(b); err != nil {
		return false, s.upstreamLost(err)
	}
	if !asks {
		return true, nil
	}
	wanted, err := s.asked()
	if err == nil && wanted && !seg.Literal.NonSync {
		err = s.say("+ OK")
	}
	return wanted, err
}

// passOver reads what still comes of a command that the backend has answered.
func (s *session) passOver(seg imap.Segment) error {
	if !seg.Literal.NonSync {
		s.client.Refuse()
		return nil
	}
	return s.skip(seg)
}

// uploadLost is the loss of the upstream before it had the whole command. It has
// not been done then, and the client may be told so; but of the last piece
// nobody knows whether it arrived.
func (s *session) uploadLost(seg imap.Segment, err error) error {
	lost, ok := asLost(err)
	if !ok || s.partial {
		return err
	}
	if seg.End {
		return s.survive(lost)
	}
	s.sent.clear()
	if err := s.survive(lost); err != nil { // in mode reuse
		return err
	}
	return s.refuse(nothingDone, seg)
}

// unknown is a command that is not in the table: nobody knows what state it
// gives its connection, so the session stays on it for good. seg is its first
// line.
func (s *session) unknown(seg imap.Segment) error {
	r := &s.request
	r.tag = bytes.Clone(r.tag)
	r.facts = command.Facts{Expunge: command.ExpNone, Numbers: true}
	s.inHand = command.ExpNone
	defer func() { s.inHand = command.ExpSync }()
	if err := s.settle(); err != nil {
		return err
	}
	if !s.inStep() {
		if err := s.attach(r); err != nil {
			return s.refused(err, seg)
		}
	}
	return s.handOver(audit.PinUnknown, bytes.Clone(seg.Bytes))
}
