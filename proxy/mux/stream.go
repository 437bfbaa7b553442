package mux

import (
	"bytes"
	"math"

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
	if !seg.End && !r.upload.Begin(seg.Bytes, s.account.Caps()) {
		return s.reject(argumentsMalformed, seg)
	}
	r.facts, _ = command.Read(r.whole) // what else is wrong with it, the backend says
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
		r.unsent = seg.Bytes
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
	if err := s.skip(seg, s.request.most()); err != nil {
		return err
	}
	return s.say(string(s.request.tag), refusal)
}

// most is how many octets of the command in hand are passed over once it is refused:
// a message is as large as it is.
func (r *request) most() int64 {
	if r.spec.Streams {
		return math.MaxInt64
	}
	return maxPassed
}

// upload sends the command as it comes. The backend asks for its literals, unless it
// takes the first one unasked.
//
// It says whether the command has gone beyond being offered to another: more of the
// client's was taken than the first line, or it is answered.
func (s *session) upload(seg imap.Segment) (begun bool, err error) {
	r := &s.request
	s.avoid(r.tag)
	unasked := s.unasked(seg)
	s.sent.add(entry{spec: r.spec, tag: len(r.tag), unasked: unasked, givenUp: r.givenUp}, append(r.tag, ' '))
	s.cutShort, r.unsent = true, nil
	for {
		wanted := true
		if begun && r.breaks(seg) {
			return true, s.breakOff(seg)
		}
		if unasked || seg.Kind != imap.Text || seg.End {
			_, err = s.up.Write(seg.Bytes)
			err = s.upstreamLost(err)
		} else {
			wanted, err = s.offer(seg)
		}
		unasked = false
		switch {
		case err != nil && s.sent.empty():
			return true, s.lostBehind(seg, err)
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

// breaks says whether the line behind a literal is one that must not be sent.
func (r *request) breaks(seg imap.Segment) bool {
	return seg.Kind == imap.Part || strayCR(seg) || endless(seg) || seg.Kind == imap.Text && !seg.End && !r.upload.Next(seg.Bytes)
}

// breakOff ends a command that has gone wrong behind a literal, so that the backend
// refuses it and waits for nothing more.
func (s *session) breakOff(seg imap.Segment) error {
	if _, err := s.up.Write([]byte(" (\r\n")); err != nil {
		return s.uploadLost(seg, s.upstreamLost(err))
	}
	s.cutShort = false
	if err := s.settle(); err != nil {
		return err
	}
	return s.passOver(seg)
}

// offer sends a line that announces a literal, and waits for the backend to ask for
// it. It says no when the backend has answered instead.
func (s *session) offer(seg imap.Segment) (bool, error) {
	s.plus = true
	if _, err := s.up.Write(synchronising(seg)); err != nil {
		return false, s.upstreamLost(err)
	}
	wanted, err := s.asked()
	if err == nil && wanted && !seg.Literal.NonSync {
		err = s.say("+ OK")
	}
	return wanted, err
}

// passOver reads what still comes of a command that the backend has answered.
func (s *session) passOver(seg imap.Segment) error {
	return s.skip(seg, s.request.most())
}

// lostBehind is the loss of the upstream behind its answer to a command of which it did
// not have the whole. The command is over.
func (s *session) lostBehind(seg imap.Segment, err error) error {
	lost, ok := asLost(err)
	if !ok {
		return err
	}
	if err := s.survive(lost); err != nil {
		return err
	}
	return s.passOver(seg)
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
		s.cutShort = false // as far as anybody knows
		return s.survive(lost)
	}
	s.sent.clear()
	if err := s.survive(lost); err != nil { // in mode reuse
		return err
	}
	return s.refuse(nothingDone, seg)
}

// unknown is a command that is not in the table: nobody knows what state it
// gives its connection, so the session stays on it for good, from the end of the
// command on. seg is its first line.
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
	if seg.End {
		return s.handOver(audit.PinUnknown, bytes.Clone(seg.Bytes))
	}
	return s.unknownLiterals(seg)
}

// unknownLiterals sends an unknown command with literals, as the backend asks for
// them, and hands the session over behind the last.
func (s *session) unknownLiterals(seg imap.Segment) error {
	r := &s.request
	s.avoid(r.tag)
	s.pinning = audit.PinUnknown // a loss is the end: what the command has done, nobody knows
	s.sent.add(entry{spec: r.spec, tag: len(r.tag)}, append(r.tag, ' '))
	s.cutShort, r.unsent = true, nil
	for !seg.End {
		if seg.Kind == imap.Text {
			s.brings(seg)
			s.uploads(seg)
			wanted, err := s.offer(seg)
			if err != nil {
				return err
			}
			if !wanted { // the client's next command is what the backend hears next
				s.cutShort = false
				return s.passOver(seg)
			}
		} else if _, err := s.up.Write(seg.Bytes); err != nil {
			return s.upstreamLost(err)
		}
		var err error
		if seg, err = s.nextOfClient(); err != nil {
			return err
		}
		if strayCR(seg) {
			return s.breakOff(seg)
		}
	}
	s.cutShort = false
	s.sent.clear()
	return s.handOver(audit.PinUnknown, bytes.Clone(seg.Bytes))
}
