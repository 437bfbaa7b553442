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
	refusalLineTooLong        = " BAD [TOOBIG] Line is too long."
	refusalNoLiteral          = " BAD Command takes no literal."
	refusalUnterminatedString = " BAD Quoted string does not end."
	refusalMalformedArguments = " BAD Arguments are malformed."
	refusalStrayCR            = " BAD Lines have no CR but the one of CRLF."
)

// checkFirstLine says why a command cannot be one with this first line, or cannot have the
// literal that it announces, as the answer without the tag; "" if it can.
func checkFirstLine(spec *command.Spec, seg imap.Segment) string {
	switch {
	case seg.Kind == imap.LinePart:
		return refusalLineTooLong
	case hasStrayCR(seg):
		return refusalStrayCR
	case hasUnterminatedString(seg):
		return refusalUnterminatedString
	case spec.NoLiteral && !seg.End:
		return refusalNoLiteral
	}
	return ""
}

// hasUnterminatedString says whether a line announces a literal inside a quoted string that does
// not end. A server that sees no string there sees a literal.
func hasUnterminatedString(seg imap.Segment) bool {
	return seg.Kind == imap.LineEnd && seg.End && bytes.HasSuffix(seg.Bytes, []byte("}\r\n")) && bytes.IndexByte(seg.Bytes, '{') >= 0
}

// hasStrayCR says whether a line has a CR inside, which some servers may take for its end.
// In a Part there is no other: it never reaches to the end of its line.
func hasStrayCR(seg imap.Segment) bool {
	if seg.Kind == imap.LiteralData {
		return false
	}
	return bytes.IndexByte(bytes.TrimSuffix(seg.Bytes, []byte("\r\n")), '\r') >= 0
}

// rejectCommand answers the command in hand, which no backend is shown, and passes over what
// its client still sends of it. seg is its last segment so far.
func (s *session) rejectCommand(refusal string, seg imap.Segment) error {
	tag := string(s.request.tag)
	s.discardingInput = true
	if err := s.awaitReplies(); err != nil {
		return err
	}
	if err := s.reply(tag, refusal); err != nil {
		return err
	}
	return s.skipCommand(seg, s.request.maxSkip())
}

// skipCommand reads the rest of a command whose first line is answered. A synchronising
// literal does not come. A client that sends or announces more than limit octets is
// ended.
func (s *session) skipCommand(seg imap.Segment, limit int64) error {
	for !seg.End {
		if seg.Kind == imap.LinePart {
			if limit -= int64(len(seg.Bytes)); limit < 0 {
				return s.endInvalidClient()
			}
		}
		if size := seg.Literal.Size; size >= 0 {
			if !seg.Literal.NonSync {
				s.client.CancelLiteral()
				return nil
			}
			if limit -= min(size, math.MaxInt64/2) + int64(len(seg.Bytes)); limit < 0 {
				return s.endInvalidClient()
			}
		}
		var err error
		if seg, err = s.readClientSegment(); err != nil {
			return err
		}
	}
	return nil
}

// sendCommand writes a command to the lease; with literals, as the backend takes them.
// The command is outstanding already.
func (s *session) sendCommand(raw []byte) error {
	if hasLiteral(raw) {
		return s.sendLiterals(raw)
	}
	_, err := s.upstream.Write(raw)
	return s.wrapUpstreamError(err)
}

// hasLiteral says whether a whole command has a line end before its last.
func hasLiteral(raw []byte) bool { return bytes.IndexByte(raw, '\n') < len(raw)-1 }

// sendLiterals sends a command piece by piece, as the backend asks for its literals:
// that the gateway can follow the arguments does not mean that every server takes
// them. Nothing else is outstanding.
func (s *session) sendLiterals(raw []byte) error {
	r := imap.NewReader(bytes.NewReader(raw), imap.Commands, len(raw))
	s.commandPartial = true
	for {
		seg, err := r.Next()
		if err != nil {
			return s.wrapUpstreamError(err)
		}
		awaits := seg.Kind == imap.LineEnd && !seg.End
		if awaits {
			seg.Bytes = synchronizingLine(seg)
			s.awaitingContinuation = true
		}
		if seg.Kind == imap.LiteralData && bytes.ContainsAny(seg.Bytes, "\r\n") {
			s.tainted = true // an answer that repeats it has lines of the client's
		}
		if _, err := s.upstream.Write(seg.Bytes); err != nil {
			return s.wrapUpstreamError(err)
		}
		if awaits {
			if accepted, err := s.awaitContinuation(); err != nil || !accepted {
				s.commandPartial = err != nil
				return err
			}
		}
		if seg.End {
			s.commandPartial = false
			return nil
		}
	}
}

// canSendNonSync says whether the message that the first line of APPEND announces goes out
// without being asked for: it came so, the backend takes it so (RFC 7888), and does
// not refuse the line.
func (s *session) canSendNonSync(seg imap.Segment) bool {
	caps := s.upstream.Caps()
	return seg.Literal.NonSync && (caps.Has("LITERAL+") || caps.Has("LITERAL-") && seg.Literal.Size <= 4096) &&
		command.IsPlainAppend(seg.Bytes)
}

// synchronizingLine is the line with its literal's announcement as one that waits.
func synchronizingLine(seg imap.Segment) []byte {
	if !seg.Literal.NonSync {
		return seg.Bytes
	}
	line := append([]byte(nil), seg.Bytes[:len(seg.Bytes)-len("+}\r\n")]...)
	return append(line, "}\r\n"...)
}

// awaitContinuation waits for the backend to ask for a literal. It says no when the command
// has been answered instead. A loss may come behind that answer: nothing is
// outstanding then, and nothing may be sent again.
func (s *session) awaitContinuation() (bool, error) {
	for {
		if err := s.relay(); err != nil {
			return false, err
		}
		if !s.awaitingContinuation {
			return !s.outstanding.isEmpty(), nil
		}
		if err := s.readReply(); err != nil {
			return false, err
		}
	}
}

// rejectBuffered refuses a command that is not collected to its end.
func (s *session) rejectBuffered(refusal string, seg imap.Segment) error {
	tag := string(s.commandBuf[:len(s.request.tag)])
	s.request.raw, s.discardingInput = nil, true
	if err := s.awaitReplies(); err != nil {
		return err
	}
	if err := s.reply(tag, refusal); err != nil {
		return err
	}
	return s.skipCommand(seg, maxSkipped)
}
