package mux

import (
	"bytes"
	"math"

	"imapgate/internal/imap"
	"imapgate/proxy/mux/command"
)

// A backend that refuses a command without having read its literal takes the octets
// of a non-synchronising one for commands: they are executed, none of them is on
// record, and their answers have the tags of no command. Therefore a literal goes out
// unasked only where every server accepts the line that announces it, and otherwise
// when the backend has asked for it.

// Refusals of what no command can have.
const (
	lineTooLong        = " BAD [TOOBIG] Line is too long."
	literalMisplaced   = " BAD Command takes no literal."
	stringEndless      = " BAD Quoted string does not end."
	argumentsMalformed = " BAD Arguments are malformed."
	crMisplaced        = " BAD Lines have no CR but the one of CRLF."
)

// misplaced says why a command cannot be one with this first line, or cannot have the
// literal that it announces, as the answer without the tag; "" if it can.
func misplaced(spec *command.Spec, seg imap.Segment) string {
	switch {
	case seg.Kind == imap.Part:
		return lineTooLong
	case strayCR(seg):
		return crMisplaced
	case endless(seg):
		return stringEndless
	case spec.NoLiteral && !seg.End:
		return literalMisplaced
	}
	return ""
}

// endless says whether a line announces a literal inside a quoted string that does
// not end. A server that sees no string there sees a literal.
func endless(seg imap.Segment) bool {
	return seg.Kind == imap.Text && seg.End && bytes.HasSuffix(seg.Bytes, []byte("}\r\n")) && bytes.IndexByte(seg.Bytes, '{') >= 0
}

// strayCR says whether a line has a CR inside, which some servers may take for its end.
// In a Part there is no other: it never reaches to the end of its line.
func strayCR(seg imap.Segment) bool {
	if seg.Kind == imap.Data {
		return false
	}
	return bytes.IndexByte(bytes.TrimSuffix(seg.Bytes, []byte("\r\n")), '\r') >= 0
}

// reject answers the command in hand, which no backend is shown, and passes over what
// its client still sends of it. seg is its last segment so far.
func (s *session) reject(refusal string, seg imap.Segment) error {
	tag := string(s.request.tag)
	s.apart = true
	if err := s.settle(); err != nil {
		return err
	}
	if err := s.say(tag, refusal); err != nil {
		return err
	}
	return s.skip(seg, s.request.most())
}

// skip reads the rest of a command whose first line is answered. A synchronising
// literal does not come. A client that sends or announces more than limit octets is
// ended.
func (s *session) skip(seg imap.Segment, limit int64) error {
	for !seg.End {
		if seg.Kind == imap.Part {
			if limit -= int64(len(seg.Bytes)); limit < 0 {
				return s.garbage()
			}
		}
		if size := seg.Literal.Size; size >= 0 {
			if !seg.Literal.NonSync {
				s.client.Refuse()
				return nil
			}
			if limit -= min(size, math.MaxInt64/2) + int64(len(seg.Bytes)); limit < 0 {
				return s.garbage()
			}
		}
		var err error
		if seg, err = s.nextOfClient(); err != nil {
			return err
		}
	}
	return nil
}

// send writes a command to the lease; with literals, as the backend takes them.
// The command is outstanding already.
func (s *session) send(whole []byte) error {
	if hasLiteral(whole) {
		return s.sendLiterals(whole)
	}
	_, err := s.up.Write(whole)
	return s.upstreamLost(err)
}

// hasLiteral says whether a whole command has a line end before its last.
func hasLiteral(whole []byte) bool { return bytes.IndexByte(whole, '\n') < len(whole)-1 }

// sendLiterals sends a command piece by piece, as the backend asks for its literals:
// that the gateway can follow the arguments does not mean that every server takes
// them. Nothing else is outstanding.
func (s *session) sendLiterals(whole []byte) error {
	r := imap.NewReader(bytes.NewReader(whole), imap.Commands, len(whole))
	s.cutShort = true
	for {
		seg, err := r.Next()
		if err != nil {
			return s.upstreamLost(err)
		}
		asks := seg.Kind == imap.Text && !seg.End
		if asks {
			seg.Bytes = synchronising(seg)
			s.plus = true
		}
		if seg.Kind == imap.Data && bytes.ContainsAny(seg.Bytes, "\r\n") {
			s.doubtful = true // an answer that repeats it has lines of the client's
		}
		if _, err := s.up.Write(seg.Bytes); err != nil {
			return s.upstreamLost(err)
		}
		if asks {
			if wanted, err := s.asked(); err != nil || !wanted {
				s.cutShort = err != nil
				return err
			}
		}
		if seg.End {
			s.cutShort = false
			return nil
		}
	}
}

// unasked says whether the message that the first line of APPEND announces goes out
// without being asked for: it came so, the backend takes it so (RFC 7888), and does
// not refuse the line.
func (s *session) unasked(seg imap.Segment) bool {
	caps := s.up.Caps()
	return seg.Literal.NonSync && (caps.Has("LITERAL+") || caps.Has("LITERAL-") && seg.Literal.Size <= 4096) &&
		command.PlainAppend(seg.Bytes)
}

// synchronising is the line with its literal's announcement as one that waits.
func synchronising(seg imap.Segment) []byte {
	if !seg.Literal.NonSync {
		return seg.Bytes
	}
	line := append([]byte(nil), seg.Bytes[:len(seg.Bytes)-len("+}\r\n")]...)
	return append(line, "}\r\n"...)
}

// asked waits for the backend to ask for a literal. It says no when the command
// has been answered instead. A loss may come behind that answer: nothing is
// outstanding then, and nothing may be sent again.
func (s *session) asked() (bool, error) {
	for {
		if err := s.relay(); err != nil {
			return false, err
		}
		if !s.plus {
			return !s.sent.empty(), nil
		}
		if err := s.hearAnswer(); err != nil {
			return false, err
		}
	}
}

// rejectCollected refuses a command that is not collected to its end.
func (s *session) rejectCollected(refusal string, seg imap.Segment) error {
	tag := string(s.collected[:len(s.request.tag)])
	s.request.whole, s.apart = nil, true
	if err := s.settle(); err != nil {
		return err
	}
	if err := s.say(tag, refusal); err != nil {
		return err
	}
	return s.skip(seg, maxPassed)
}
