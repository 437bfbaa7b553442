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

// recognise makes sure that the mailbox is the one the client has selected.
func (s *session) recognise(t *told) error {
	b := s.box
	kind := ""
	switch {
	case t.validity != b.validity, b.id != "" && t.id != b.id:
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
	if t.sameUIDs(s.box) && (s.box.view.Unknown() == 0 || !s.asksAside(t)) {
		return nil, nil
	}
	now, err := s.wholeSnapshot(t, deadline)
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

// wholeSnapshot is a snapshot with as many UIDs as messages have been announced:
// now, or at least before we asked the last time.
func (s *session) wholeSnapshot(t *told, deadline time.Time) (*view.UIDs, error) {
	for tries := range 3 {
		before := t.exists
		now, err := s.snapshot(t, deadline)
		if err != nil {
			return nil, err
		}
		if n := now.Len(); n == t.exists || n == before && tries == 2 {
			return now, nil
		}
	}
	s.blame(metrics.CountMismatch)
	return nil, &ending{audit.ViewInconsistent, byeChanged, errors.New("fewer or more UIDs than messages")}
}

// snapshot asks for the UIDs of all messages of the connection. What else is said
// meanwhile is kept for the flush.
func (s *session) snapshot(t *told, deadline time.Time) (*view.UIDs, error) {
	now := &view.UIDs{}
	if t.exists == 0 {
		return now, nil
	}
	res, err := s.up.Run(deadline, s.search("1:*"), func(response []byte) error {
		if ok, err := uidsIn(response, now); ok {
			return err
		}
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
	}
	return now, nil
}

// search is the command that asks for the UIDs of messages by number: so that no
// EXPUNGE can come in between (RFC 9051 §7.5.1).
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
