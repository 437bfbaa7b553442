package mux

import (
	"bytes"

	"imapgate/internal/imap"
)

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

// sendLiterals sends a command piece by piece. Nothing else is outstanding.
func (s *session) sendLiterals(whole []byte) error {
	r := imap.NewReader(bytes.NewReader(whole), imap.Commands, len(whole))
	s.cutShort = true
	for {
		seg, err := r.Next()
		if err != nil {
			return s.upstreamLost(err)
		}
		asks := seg.Kind == imap.Text && !seg.End && !s.unasked(seg.Literal)
		if asks {
			seg.Bytes = synchronising(seg)
			s.plus = true
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

// unasked says whether a literal goes out without being asked for: it came so,
// and the backend takes it so (RFC 7888).
func (s *session) unasked(lit imap.Literal) bool {
	caps := s.up.Caps()
	return lit.NonSync && (caps.Has("LITERAL+") || caps.Has("LITERAL-") && lit.Size <= 4096)
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
// has been answered instead.
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
