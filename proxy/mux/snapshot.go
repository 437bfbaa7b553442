package mux

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"imapgate/internal/audit"
	"imapgate/internal/imap"
	"imapgate/internal/metrics"
	"imapgate/proxy/mux/lease"
	"imapgate/proxy/mux/view"
	"imapgate/proxy/upstream"
)

// reselect selects the session's mailbox on a connection that has none.
func (s *session) reselect(deadline time.Time) (*told, error) {
	name, err := s.box.command(s.up.Caps())
	if err != nil {
		return nil, &ending{audit.UpstreamLost, byeLost, err}
	}
	t := &told{}
	s.up.Selected = true
	res, err := s.up.Run(deadline, name, func(response []byte) error { t.read(response); return s.alert(response) })
	if err != nil {
		return nil, s.ranInto(err)
	}
	switch {
	case res.Name == "OK":
		t.done(res)
		return t, s.recognise(t)
	case res.Code == "UNAVAILABLE", res.Code == "INUSE", res.Code == "SERVERBUG", res.Code == "LIMIT":
		return nil, fmt.Errorf("%w: %s", errBusy, upstream.Describe(res))
	case res.Name == "NO":
		s.up.Selected = false
		return nil, &ending{audit.MailboxGone, byeGone, errors.New(upstream.Describe(res))}
	}
	return nil, &ending{audit.UpstreamLost, byeLost, errors.New(upstream.Describe(res))}
}

// recognise makes sure that the mailbox is the one the client has selected. Without a
// UIDVALIDITY it has no unique identifiers (RFC 9051 §6.3.2), and nobody can tell.
func (s *session) recognise(t *told) error {
	b := s.box
	kind := ""
	switch {
	case t.validity == 0, t.validity != b.validity, b.id != "" && t.id != b.id:
		return &ending{audit.MailboxChanged, byeChanged, nil}
	case t.uidNext != 0 && t.uidNext < b.uidNext:
		kind = metrics.UIDNextShrank
	case t.modseq != 0 && t.modseq < b.modseq:
		kind = metrics.ModseqShrank
	}
	if kind == "" {
		return nil
	}
	s.blame(kind)
	return &ending{audit.ViewInconsistent, byeChanged, errors.New(kind)}
}

// difference is what separates the client's view from the connection's; nil for
// nothing.
func (s *session) difference(t *told, deadline time.Time) (*view.Diff, error) {
	if t.shrunk { // while it was selected: how many there are, nobody has said
		return nil, fmt.Errorf("%w: messages are being expunged", errBusy)
	}
	if t.sameUIDs(s.box) && (s.box.view.Unknown() == 0 || !s.asksAside(t)) {
		return nil, nil
	}
	now, err := s.snapshot(t, deadline)
	if err != nil {
		return nil, err
	}
	b := s.box
	if b.view.Unknown() > 0 && !b.grown {
		if old := now.Below(b.uidNext); old.Len() == b.view.Exists() {
			_ = b.view.Learn(1, old) // as many as there were, and none of them new: they are those
		}
	}
	bound := t.uidNext
	if !b.grown {
		bound = b.uidNext // as of before the loss
	}
	b.view.LearnBelow(bound)
	d, err := b.view.Diff(now, t.uidNext)
	switch {
	case err != nil:
		s.blame(metrics.UIDUnknown)
		return nil, &ending{audit.ViewInconsistent, byeChanged, err}
	case d.Tail() > uint32(s.backend.settings.FlagsFullMax): // an EXPUNGE for each would cost the client its cache
		return nil, &ending{audit.MailboxTooLarge, byeAway, errors.New("UIDs were never learned")}
	case d.Tail() > 0 && (s.enabled.Has(lease.Qresync) || s.enabled.Has(lease.UIDOnly)):
		return nil, &ending{audit.ViewInconsistent, byeLost, errors.New("VANISHED cannot name messages whose UIDs were never learned")}
	}
	return &d, nil
}

// snapshot asks for the UIDs of all messages that the connection has announced. What
// else is said meanwhile is kept for the flush. A connection that does not name all
// of them is of no use: a fresh SELECT knows nothing of messages that are gone.
func (s *session) snapshot(t *told, deadline time.Time) (*view.UIDs, error) {
	exists := t.exists
	if exists == 0 {
		return &view.UIDs{}, nil
	}
	now, res, err := s.askUIDs(1, exists, deadline, func(response []byte) error {
		t.read(response)
		return s.alert(response)
	})
	if err != nil {
		return nil, s.ranInto(err)
	}
	switch {
	case res.Code == "MESSAGELIMIT": // RFC 9738: it does not tell all
		return nil, &ending{audit.MailboxTooLarge, byeAway, errors.New(upstream.Describe(res))}
	case res.Name != "OK":
		return nil, fmt.Errorf("%w: %s", errBusy, upstream.Describe(res))
	case now.Len() < exists, t.shrunk:
		return nil, fmt.Errorf("%w: messages are being expunged", errBusy)
	case now.Len() > exists:
		s.blame(metrics.CountMismatch)
		return nil, &ending{audit.ViewInconsistent, byeChanged, errors.New("more UIDs than messages")}
	}
	return now, nil
}

// fetchStep is how many messages one FETCH of UIDs is about, which bounds its answer.
const fetchStep = 100_000

// askUIDs asks for the UIDs of the messages first to last, and gives each response
// that is not an answer to that to heard. There are fewer UIDs than messages where the
// backend leaves out of a search what another session has expunged before it has
// announced the EXPUNGE here (RFC 2180 §4.3; Cyrus), and does not name it in a FETCH
// either: then nobody knows which messages the UIDs belong to.
//
// A search is asked only of backends that send no EXPUNGE meanwhile (RFC 7162 §3.2.10):
// without QRESYNC they may, in any UID command. The last message is named by its
// number, because "*" might be one that is not yet announced: it would make up for one
// that was left out.
func (s *session) askUIDs(first, last uint32, deadline time.Time, heard func([]byte) error) (*view.UIDs, imap.Response, error) {
	if s.up.Caps().Has(lease.Qresync) {
		found := &view.UIDs{}
		res, err := s.up.Run(deadline, s.search(fmt.Sprintf("%d:%d", first, last)), func(response []byte) error {
			if ok, err := uidsIn(response, found); ok {
				return err
			}
			return heard(response)
		})
		if err != nil || res.Name != "OK" || res.Code == "MESSAGELIMIT" || found.Len() > last-first {
			return found, res, err
		}
	}
	return s.fetchUIDs(first, last, deadline, heard)
}

// fetchUIDs is askUIDs by FETCH, which brings no EXPUNGE from any server. A backend
// that refuses because messages are gone (RFC 2180 §4.1.2) has named those that are not.
func (s *session) fetchUIDs(first, last uint32, deadline time.Time, heard func([]byte) error) (uids *view.UIDs, res imap.Response, err error) {
	uids = &view.UIDs{}
	for from := first; from <= last && uids.Len() == from-first; from += fetchStep {
		to := min(last, from+fetchStep-1)
		res, err = s.up.Run(deadline, fmt.Sprintf("FETCH %d:%d (UID)", from, to), func(response []byte) error {
			n, uid, bare := fetchedUID(response)
			if uid > 0 && from <= n && n <= to {
				uids.Add(uid)
			}
			if bare {
				return nil
			}
			return heard(response)
		})
		if err != nil {
			return uids, res, err
		}
	}
	if res.Name == "NO" && uids.Len() > 0 {
		res.Name = "OK"
	}
	return uids, res, nil
}

// fetchedUID reads a FETCH response: the number and the UID of its message, and
// whether it says nothing else. Without a UID, and of other responses, uid is 0.
func fetchedUID(response []byte) (n, uid uint32, bare bool) {
	n, rest, ok := leadingNumber(response[len("* "):])
	if !ok || !imap.HasWord(rest, "FETCH") {
		return 0, 0, false
	}
	if uid, ok = uidIn(rest); !ok {
		return 0, 0, false
	}
	return n, uid, bytes.Count(rest, []byte(" ")) == 2 // "FETCH (UID 7)"
}

// search is the command that asks for the UIDs of messages by number.
func (s *session) search(numbers string) string {
	if caps := s.up.Caps(); caps.Has("ESEARCH") || caps.Has(lease.Rev2) {
		return "UID SEARCH RETURN (ALL) " + numbers
	}
	return "UID SEARCH " + numbers
}

// uidsIn reads the answer to search.
func uidsIn(response []byte, into *view.UIDs) (bool, error) {
	b := bytes.TrimSuffix(response[len("* "):], []byte("\r\n"))
	switch {
	case imap.HasWord(b, "SEARCH"):
		for field := range bytes.FieldsSeq(b[len("SEARCH"):]) {
			if field[0] == '(' {
				break // (MODSEQ n)
			}
			if err := into.AddSet(field); err != nil {
				return true, fmt.Errorf("%w: %w", errProtocol, err)
			}
		}
		return true, nil
	case imap.HasWord(b, "ESEARCH"):
		i := bytes.Index(b, []byte(" ALL "))
		if i < 0 {
			return true, nil // no message
		}
		set, _, _ := bytes.Cut(b[i+len(" ALL "):], []byte(" "))
		if err := into.AddSet(set); err != nil {
			return true, fmt.Errorf("%w: %w", errProtocol, err)
		}
		return true, nil
	}
	return false, nil
}
