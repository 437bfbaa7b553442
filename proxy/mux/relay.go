package mux

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"go.uber.org/zap"

	"imapgate/internal/audit"
	"imapgate/internal/imap"
	"imapgate/internal/metrics"
	"imapgate/proxy/mux/command"
	"imapgate/proxy/mux/lease"
	"imapgate/proxy/mux/view"
)

// errProtocol is what a backend cannot have meant. Nothing of it goes any further.
var errProtocol = errors.New("backend broke the protocol")

// verdict is what becomes of a response.
type verdict uint8

const (
	pass       verdict = iota // on to the client as it is
	drop                      // it is for us
	swap                      // s.out goes on instead
	unfollowed                // on to the client, and then nothing is followed any more
)

// relay passes on what the backend has said, as far as it has been read; what it
// has begun, to its end. Responses that follow each other go out in one piece.
func (s *session) relay() error {
	var run []byte // of the reader's buffer, to be passed on
	for {
		fresh := s.up.Between()
		seg, ok, err := s.up.Ready()
		if err != nil {
			return errors.Join(s.pass(run), s.odd(err))
		}
		if !ok {
			if err := s.pass(run); err != nil {
				return err
			}
			run = nil
			if s.up.Between() {
				return nil
			}
			s.pace()
			if err := s.up.More(); err != nil {
				return s.upstreamLost(err)
			}
			continue
		}
		if fresh {
			var err error
			if s.answering, err = s.judge(seg); err != nil {
				return errors.Join(s.pass(run), err)
			}
		}
		if fresh && s.answering == pass && seg.End && s.learnsFirst(seg.Bytes) {
			if err := s.learnFirst(run, seg.Bytes); err != nil {
				return err
			}
			run = nil
			continue
		}
		if s.answering == unfollowed || seg.Unclosed && s.answering == pass {
			if err := s.passOdd(run, seg); err != nil {
				return err
			}
			run, s.answering = nil, pass
			continue
		}
		if s.answering == pass {
			run = extend(run, seg.Bytes)
			continue
		}
		if err := s.pass(run); err != nil {
			return err
		}
		run = nil
		if s.answering == swap && seg.End {
			if _, err := s.client.Write(s.out); err != nil {
				return s.clientLost(err)
			}
		}
	}
}

// learnsFirst says whether an answer is to wait for the UIDs of what has come.
func (s *session) learnsFirst(line []byte) bool {
	return line[0] != '*' && s.sent.empty() && s.idling == nil && s.resumes && s.box != nil && s.attached &&
		s.box.grown && s.box.view.Unknown() > 0 && s.pinning == "" && s.enabled.Has(lease.Qresync)
}

// extend lengthens a run by the segment behind it, which lies beside it.
func extend(run, next []byte) []byte {
	if run == nil {
		return next
	}
	return run[:len(run)+len(next)]
}

// pass writes a run to the client.
func (s *session) pass(run []byte) error {
	if len(run) == 0 {
		return nil
	}
	s.partial = !s.up.Between() && s.answering == pass
	_, err := s.client.Write(run)
	return s.clientLost(err)
}

// passOdd passes on a run, and the line behind it, which cannot be followed.
func (s *session) passOdd(run []byte, seg imap.Segment) error {
	if lease.Ambiguous(seg) && !s.mayHandOver() {
		return errors.Join(s.pass(run), s.odd(errUnclosed))
	}
	if err := s.pass(extend(run, seg.Bytes)); err != nil {
		return err
	}
	return s.odd(errNoResponse)
}

// judge decides about a response by its first line, and takes from it what it
// says of the mailbox. An error is the loss of the upstream, or the session's end.
func (s *session) judge(seg imap.Segment) (verdict, error) {
	line := seg.Bytes
	switch {
	case len(line) > 2 && line[0] == '*' && line[1] == ' ':
		return s.untagged(seg)
	case len(line) > 0 && line[0] == '+' && s.plus:
		s.plus = false
		return drop, nil // whoever waits for it sees that it has come
	case len(line) > 0 && line[0] == '+' && s.declined: // it would take commands for the literal
		return drop, s.upstreamLost(fmt.Errorf("%w: a literal is asked for behind the answer", errProtocol))
	}
	if s.idling != nil && s.idling.answered(line) {
		s.plus = false
		return drop, nil
	}
	e, ok := s.sent.answered(line)
	switch {
	case ok:
	case s.up.RefusesDone(line):
		return drop, nil
	case isAnswer(line) && !s.doubtful:
		return drop, s.stray()
	default: // or the answer to what the client's own octets were taken for
		return unfollowed, nil
	}
	s.up.Answered()
	s.declined = s.plus
	s.closes(line)
	s.tries = 0
	s.plus = false
	if !imap.HasWord(line[e.tag+1:], "OK") {
		s.doubtful = s.doubtful || e.unasked || e.spec.Streams && s.request.upload.Names
	}
	if e.closes && imap.HasWord(line[e.tag+1:], "OK") {
		s.closed()
	}
	if e.selects {
		s.unselected(line[e.tag+1:])
	}
	if e.pin == audit.PinSelectBad || e.pin != "" && !imap.HasWord(line[e.tag+1:], "BAD") {
		s.pinning = e.pin
	}
	if e.expunge == command.ExpSync && s.box != nil {
		s.box.deferred = false // it has had its chance to announce what is gone
	}
	if e.syncs && s.box != nil && s.box.next > 0 {
		s.box.modseq, s.box.next = s.box.next, 0
	}
	return s.withoutCode(line), nil
}

// withoutCode takes response codes out of a tagged answer that would lead the
// client around the gateway or tell it of another's capabilities.
func (s *session) withoutCode(line []byte) verdict {
	open := bytes.IndexByte(line, '[')
	if open < 0 || bytes.Count(line[:open], []byte(" ")) != 2 {
		return pass
	}
	code := line[open+1:]
	if !imap.HasWord(code, "CAPABILITY") && !imap.HasWord(code, "REFERRAL") {
		return pass
	}
	s.out = append(s.out[:0], line[:open]...)
	if i := bytes.Index(code, []byte("] ")); i >= 0 {
		s.out = append(s.out, code[i+2:]...)
	} else {
		s.out = append(s.out, "Done.\r\n"...)
	}
	return swap
}

// untagged decides about "* …".
func (s *session) untagged(seg imap.Segment) (verdict, error) {
	line := seg.Bytes[2:]
	if n, rest, ok := leadingNumber(line); ok {
		return s.numbered(n, rest)
	}
	switch {
	case s.up.RefusesDone(seg.Bytes):
		return drop, nil
	case imap.HasWord(line, "OK"), imap.HasWord(line, "NO"), imap.HasWord(line, "BAD"):
		return s.status(line)
	case imap.HasWord(line, "BYE"):
		return drop, s.goodbye(seg.Bytes)
	case imap.HasWord(line, "VANISHED"):
		return s.vanished(seg)
	case imap.HasWord(line, "ENABLED"):
		s.hasEnabled(line[len("ENABLED"):])
	case imap.HasWord(line, "CAPABILITY"):
		return drop, nil // the client's list does not change
	case imap.HasWord(line, "PREAUTH"):
		return drop, s.violated(metrics.ResponseSyntax, fmt.Errorf("%w: PREAUTH", errProtocol))
	case imap.HasWord(line, "FLAGS") && s.box != nil && seg.End:
		s.box.flags.keep(line)
	}
	return pass, nil
}

// numbered decides about "* n …" and keeps the view in step.
func (s *session) numbered(n uint32, rest []byte) (verdict, error) {
	if s.box == nil {
		return pass, nil
	}
	var err error
	kind := ""
	switch {
	case imap.HasWord(rest, "EXISTS"):
		s.box.grown = s.box.grown || n > s.box.view.Exists()
		err, kind = s.box.view.Grow(n), metrics.ExistsShrank
	case imap.HasWord(rest, "EXPUNGE"):
		s.box.deferred = false
		err, kind = s.box.view.Expunge(n), metrics.ExpungeRange
	case imap.HasWord(rest, "RECENT"):
		s.box.recent = n
	case imap.HasWord(rest, "FETCH") && s.box.view.Unknown() > 0 && n == s.box.view.Known()+1:
		if uid, ok := uidIn(rest); ok {
			s.box.view.LearnOne(n, uid)
		}
	}
	if err != nil {
		return s.untold(kind, err)
	}
	return pass, nil
}

// untold is the verdict on a response that the view cannot follow: the client
// gets it, as it would if nobody listened, and the session stays with this
// upstream from now on.
func (s *session) untold(kind string, err error) (verdict, error) {
	if s.box.spoiled {
		return pass, nil
	}
	s.box.spoiled = true
	s.blame(kind)
	if s.pinning == "" {
		s.pinning = audit.PinViolation
	}
	s.hub.rooms.Log.Warn("view is lost", zap.String("session", s.who.Session), zap.Error(err))
	return pass, nil
}

// vanished is "* VANISHED …" (RFC 7162 §3.2.10).
func (s *session) vanished(seg imap.Segment) (verdict, error) {
	if s.box == nil {
		return pass, nil
	}
	set := bytes.TrimSuffix(seg.Bytes[len("* VANISHED "):], []byte("\r\n"))
	if len(set) > 0 && set[0] == '(' {
		return pass, nil // EARLIER: nothing that the view has
	}
	if !seg.End {
		return s.untold(metrics.ExpungeRange, view.ErrRange) // longer than any line we hold
	}
	s.box.deferred = false
	if _, err := s.box.view.Vanish(set); err != nil {
		return s.untold(metrics.ExpungeRange, err)
	}
	return pass, nil
}

// status decides about "* OK …" by its response code.
func (s *session) status(line []byte) (verdict, error) {
	i := bytes.IndexByte(line, ' ')
	if i < 0 || i+1 >= len(line) || line[i+1] != '[' {
		return pass, nil
	}
	code := line[i+2:]
	switch {
	case imap.HasWord(code, "CAPABILITY"), imap.HasWord(code, "REFERRAL"):
		return drop, nil
	case imap.HasWord(code, "INPROGRESS") && bytes.Contains(code, []byte(s.up.Prefix())): // of a command of ours (RFC 9585)
		return drop, nil
	case s.box == nil:
		return pass, nil
	case imap.HasWord(code, "UIDVALIDITY"):
		if n, _, ok := leadingNumber(bytes.TrimLeft(code[len("UIDVALIDITY"):], " ")); ok && n != s.box.validity {
			return drop, &ending{audit.MailboxChanged, byeChanged, nil}
		}
	case imap.HasWord(code, "UIDNOTSTICKY"):
		s.pinning = audit.PinUIDNotSticky
	case imap.HasWord(code, "PERMANENTFLAGS"):
		s.box.permanent.keep(line)
	case imap.HasWord(code, "READ-ONLY"), imap.HasWord(code, "READ-WRITE"):
		if word, _, ok := bytes.Cut(code, []byte("]")); ok {
			s.box.access = strings.ToUpper(string(word))
		}
	}
	return pass, nil
}

// leadingNumber reads "n " off b.
func leadingNumber(b []byte) (n uint32, rest []byte, ok bool) {
	i := 0
	for ; i < len(b) && b[i] >= '0' && b[i] <= '9'; i++ {
		if n > (1<<32-1-9)/10 {
			return 0, nil, false
		}
		n = n*10 + uint32(b[i]-'0')
	}
	if i == 0 || i == len(b) {
		return 0, nil, false
	}
	if b[i] == ' ' {
		return n, b[i+1:], true
	}
	return n, b[i:], true
}

// uidIn finds "UID u" in "FETCH (…", before any string and outside of lists: a
// keyword may be called UID.
func uidIn(line []byte) (uint32, bool) {
	depth := 0
	for i, c := range line {
		switch {
		case c == '"', c == '{':
			return 0, false
		case c == '(':
			depth++
		case c == ')':
			depth--
		case depth == 1 && c == 'U' && (line[i-1] == ' ' || line[i-1] == '(') && imap.HasWord(line[i:], "UID"):
			uid, _, ok := leadingNumber(line[min(i+len("UID "), len(line)):])
			return uid, ok
		}
	}
	return 0, false
}

// stray is an answer to no command: whatever it answers, it is not for this client.
func (s *session) stray() error {
	return s.violated(metrics.TagUnknown, fmt.Errorf("%w: an answer to nothing", errProtocol))
}

// violated counts a promise the backend has broken, and is the loss of the
// connection on which it did.
func (s *session) violated(kind string, err error) error {
	s.blame(kind)
	return s.upstreamLost(fmt.Errorf("%w: %w", errProtocol, err))
}

// blame counts a promise that the backend has broken to the session's user. On a
// connection that was sent what the backend may have taken for commands, or may have
// repeated in an answer, it is the client that may have broken it.
func (s *session) blame(kind string) {
	s.backend.violated(kind, s.account.User(), !s.doubtful && !s.blamed)
	s.blamed = s.blamed || !s.doubtful
}
