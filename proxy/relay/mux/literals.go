package mux

import (
	"bytes"
	"math"

	"imapgate/internal/imap"
	"imapgate/proxy/relay/mux/command"
)

// A backend that refuses a command without reading its non-synchronizing literal takes
// the octets for commands. It executes them without a record, and their answers have
// unknown tags. Therefore the gateway sends a literal unasked only if every server
// accepts the line that announces it, and otherwise waits for the backend's continuation
// request.

// Refusals of malformed commands.
const (
	refusalLineTooLong        = " BAD [TOOBIG] Line is too long."
	refusalNoLiteral          = " BAD Command takes no literal."
	refusalUnterminatedString = " BAD Quoted string does not end."
	refusalMalformedArguments = " BAD Arguments are malformed."
	refusalNotUnderstood      = " BAD Command is not allowed now, or not understood."
	refusalStrayCR            = " BAD Lines have no CR but the one of CRLF."
)

// checkFirstLine returns the refusal, without the tag, of a command with an invalid first
// line or a forbidden literal; "" if the line is valid.
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

// hasUnterminatedString reports whether a line announces a literal inside an unterminated
// quoted string. A server that sees no string there would see a literal.
func hasUnterminatedString(seg imap.Segment) bool {
	return seg.Kind == imap.LineEnd && seg.End && bytes.HasSuffix(seg.Bytes, []byte("}\r\n")) && bytes.IndexByte(seg.Bytes, '{') >= 0
}

// hasStrayCR reports whether a line contains a CR, which some servers may take for its
// end. A LinePart never reaches the end of its line, so each CR in it is a stray one.
func hasStrayCR(seg imap.Segment) bool {
	if seg.Kind == imap.LiteralData {
		return false
	}
	return bytes.IndexByte(bytes.TrimSuffix(seg.Bytes, []byte("\r\n")), '\r') >= 0
}

// rejectCommand answers the current command without sending it to a backend, and skips
// the rest of it. seg is its last segment so far.
func (s *session) rejectCommand(refusal string, seg imap.Segment) error {
	tag := string(s.client.request.tag)
	s.client.discardingInput = true
	if err := s.awaitReplies(); err != nil {
		return err
	}
	if err := s.client.reply(tag, refusal); err != nil {
		return err
	}
	return s.skipCommand(seg, s.client.request.maxSkip())
}

// skipCommand reads the rest of a command whose first line has been answered. A
// synchronizing literal does not follow. It ends clients that send or announce more than
// limit octets.
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
		if seg, err = s.client.readSegment(); err != nil {
			return err
		}
	}
	return nil
}

// sendCommand writes an outstanding command to the lease. Literals are sent as the
// backend requests them.
func (x *exchange) sendCommand(raw []byte) error {
	if hasLiteral(raw) {
		return x.sendLiterals(raw)
	}
	return x.upstream.send(raw)
}

// hasLiteral reports whether a complete command has a line end before its last.
func hasLiteral(raw []byte) bool { return bytes.IndexByte(raw, '\n') < len(raw)-1 }

// sendLiterals sends a command piece by piece, as the backend requests its literals. A
// server may refuse arguments that the gateway can parse. Nothing else is outstanding.
func (x *exchange) sendLiterals(raw []byte) error {
	r := imap.NewReader(bytes.NewReader(raw), imap.Commands, len(raw))
	x.upstream.commandPartial = true
	for {
		seg, err := r.Next()
		if err != nil {
			return wrapLost(err)
		}
		if seg.Kind == imap.LiteralData && bytes.ContainsAny(seg.Bytes, "\r\n") {
			x.upstream.tainted = true // an answer that repeats the literal contains lines of the client's
		}
		accepted := true
		if seg.Kind == imap.LineEnd && !seg.End {
			accepted, err = x.offerLiteral(seg)
		} else {
			err = x.upstream.send(seg.Bytes)
		}
		if err != nil {
			return err
		}
		if seg.End || !accepted {
			x.upstream.commandPartial = false
			return nil
		}
	}
}

// canSendNonSync reports whether the message announced by the first line of APPEND may be
// sent without a continuation request: the client sent it so, the backend supports it
// (RFC 7888), and no server refuses the line.
func (u *upstreamSide) canSendNonSync(seg imap.Segment) bool {
	caps := u.Caps()
	return seg.Literal.NonSync && (caps.Has("LITERAL+") || caps.Has("LITERAL-") && seg.Literal.Size <= 4096) &&
		command.IsPlainAppend(seg.Bytes)
}

// synchronizingLine returns the line with its literal announced as synchronizing.
func synchronizingLine(seg imap.Segment) []byte {
	if !seg.Literal.NonSync {
		return seg.Bytes
	}
	line := append([]byte(nil), seg.Bytes[:len(seg.Bytes)-len("+}\r\n")]...)
	return append(line, "}\r\n"...)
}

// offerLiteral sends a line that announces a literal and waits for the backend to request
// it. It returns false if the backend has answered the command instead.
func (x *exchange) offerLiteral(seg imap.Segment) (bool, error) {
	x.upstream.awaitingContinuation = true
	if err := x.upstream.send(synchronizingLine(seg)); err != nil {
		return false, err
	}
	return x.awaitContinuation()
}

// awaitContinuation waits for the backend to request a literal. It returns false if the
// backend has answered the command instead. If the loss of the upstream follows that
// answer, nothing is outstanding and nothing may be resent.
func (x *exchange) awaitContinuation() (bool, error) {
	for {
		if err := x.relay(); err != nil {
			return false, err
		}
		if !x.upstream.awaitingContinuation {
			return !x.upstream.outstanding.isEmpty(), nil
		}
		if err := x.readReply(); err != nil {
			return false, err
		}
	}
}
