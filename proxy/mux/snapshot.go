package mux

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/proxy/mux/mailbox"
	"imapgate/proxy/upstream"
)

// reselect selects the session's mailbox on a connection without a selected mailbox.
func (s *session) reselect(deadline time.Time) (*selectData, error) {
	name, err := s.mailbox.selectCommand(s.upstream.Caps())
	if err != nil {
		return nil, &closeError{event.UpstreamLost, byeLost, err}
	}
	data := &selectData{}
	s.upstream.Selected = true
	res, err := s.upstream.Run(deadline, name, func(response []byte) error { data.readUntagged(response); return s.forwardAlert(response) })
	if err != nil {
		return nil, s.wrapRunError(err)
	}
	switch {
	case res.Name == "OK":
		data.readTagged(res)
		return data, s.checkMailbox(data)
	case res.Code == "UNAVAILABLE", res.Code == "INUSE", res.Code == "SERVERBUG", res.Code == "LIMIT":
		return nil, fmt.Errorf("%w: %s", errBusy, upstream.DescribeResponse(res))
	case res.Name == "NO":
		s.upstream.Selected = false
		return nil, &closeError{event.MailboxGone, byeDeleted, errors.New(upstream.DescribeResponse(res))}
	}
	return nil, &closeError{event.UpstreamLost, byeLost, errors.New(upstream.DescribeResponse(res))}
}

// checkMailbox verifies that the mailbox is the one the client has selected. Without
// UIDVALIDITY the mailbox has no unique identifiers (RFC 9051 §6.3.2) and cannot be
// verified.
func (s *session) checkMailbox(data *selectData) error {
	m := s.mailbox
	violation := event.Violation("")
	switch {
	case data.uidValidity == 0, data.uidValidity != m.uidValidity, m.mailboxID != "" && data.mailboxID != m.mailboxID:
		return &closeError{event.MailboxChanged, byeChanged, nil}
	case data.uidNext != 0 && data.uidNext < m.uidNext:
		violation = event.UIDNextShrank
	case data.modseq != 0 && data.modseq < m.modseq:
		violation = event.ModseqShrank
	}
	if violation == "" {
		return nil
	}
	s.countViolation(violation)
	return &closeError{event.ViewInconsistent, byeChanged, errors.New(string(violation))}
}

// diffView returns the difference between the client's view and the connection's; nil for
// none.
func (s *session) diffView(data *selectData, deadline time.Time) (*mailbox.Diff, error) {
	if data.hasExpunges { // during the SELECT: their number is unknown
		return nil, fmt.Errorf("%w: messages are being expunged", errBusy)
	}
	if data.hasSameUIDs(s.mailbox) && (s.mailbox.view.UnknownCount() == 0 || !s.needsAux(data)) {
		return nil, nil
	}
	uids, err := s.fetchSnapshot(data, deadline)
	if err != nil {
		return nil, err
	}
	m := s.mailbox
	if m.view.UnknownCount() > 0 && !m.hasArrivals {
		if old := uids.Below(m.uidNext); old.Len() == m.view.Exists() {
			_ = m.view.AddUIDs(1, old) // the same number, and none of them new: they are the same messages
		}
	}
	bound := data.uidNext
	if !m.hasArrivals {
		bound = m.uidNext // as of the SELECT before the loss
	}
	m.view.InferUIDs(bound)
	d, err := m.view.Diff(uids, data.uidNext)
	switch {
	case err != nil:
		s.countViolation(event.UIDUnknown)
		return nil, &closeError{event.ViewInconsistent, byeChanged, err}
	case d.ExpungedUnknownCount() > uint32(s.backend.settings.FlagResyncMaxMessages): // an EXPUNGE for each would cost the client its cache
		return nil, &closeError{event.MailboxTooLarge, byeUnavailable, errors.New("too many messages with unknown UIDs")}
	case d.ExpungedUnknownCount() > 0 && (s.enabled.Has(imap.Qresync) || s.enabled.Has(imap.UIDOnly)):
		return nil, &closeError{event.ViewInconsistent, byeLost, errors.New("VANISHED cannot name messages with unknown UIDs")}
	}
	return &d, nil
}

// fetchSnapshot fetches the UIDs of all messages that the connection has announced, and
// keeps other responses for writeResync. It fails if the backend does not return all
// UIDs: after a fresh SELECT the gateway cannot know which messages are gone.
func (s *session) fetchSnapshot(data *selectData, deadline time.Time) (*mailbox.UIDSet, error) {
	exists := data.exists
	if exists == 0 {
		return &mailbox.UIDSet{}, nil
	}
	uids, res, err := s.queryUIDs(1, exists, deadline, func(response []byte) error {
		data.readUntagged(response)
		return s.forwardAlert(response)
	})
	if err != nil {
		return nil, s.wrapRunError(err)
	}
	switch {
	case res.Code == "MESSAGELIMIT": // RFC 9738: the list is incomplete
		return nil, &closeError{event.MailboxTooLarge, byeUnavailable, errors.New(upstream.DescribeResponse(res))}
	case res.Name != "OK":
		return nil, fmt.Errorf("%w: %s", errBusy, upstream.DescribeResponse(res))
	case uids.Len() < exists, data.hasExpunges:
		return nil, fmt.Errorf("%w: messages are being expunged", errBusy)
	case uids.Len() > exists:
		s.countViolation(event.CountMismatch)
		return nil, &closeError{event.ViewInconsistent, byeChanged, errors.New("more UIDs than messages")}
	}
	return uids, nil
}

// uidFetchBatch is the number of messages in one FETCH of UIDs. It bounds the size of the
// answer.
const uidFetchBatch = 100_000

// queryUIDs queries the UIDs of the messages first to last, and passes all other
// responses to onOther. The result has fewer UIDs than messages if another session has
// expunged some and the backend has not announced that here. Such a backend omits them
// from SEARCH (RFC 2180 §4.3; Cyrus) and from FETCH. The UIDs then cannot be assigned to
// messages.
//
// It uses SEARCH only at backends with QRESYNC, which send no EXPUNGE during a UID
// command (RFC 7162 §3.2.10). It names the last message by number, because "*" could be a
// message not yet announced and so hide an omission.
func (s *session) queryUIDs(first, last uint32, deadline time.Time, onOther func([]byte) error) (*mailbox.UIDSet, imap.Response, error) {
	if s.upstream.Caps().Has(imap.Qresync) {
		uids := &mailbox.UIDSet{}
		res, err := s.upstream.Run(deadline, s.searchCommand(fmt.Sprintf("%d:%d", first, last)), func(response []byte) error {
			if ok, err := parseSearch(response, uids); ok {
				return err
			}
			return onOther(response)
		})
		if err != nil || res.Name != "OK" || res.Code == "MESSAGELIMIT" || uids.Len() > last-first {
			return uids, res, err
		}
	}
	return s.fetchUIDs(first, last, deadline, onOther)
}

// fetchUIDs is queryUIDs by FETCH, during which no server sends EXPUNGE. A backend that
// refuses because messages are gone (RFC 2180 §4.1.2) has returned the UIDs of the
// others.
func (s *session) fetchUIDs(first, last uint32, deadline time.Time, onOther func([]byte) error) (uids *mailbox.UIDSet, res imap.Response, err error) {
	uids = &mailbox.UIDSet{}
	for from := first; from <= last && uids.Len() == from-first; from += uidFetchBatch {
		to := min(last, from+uidFetchBatch-1)
		res, err = s.upstream.Run(deadline, fmt.Sprintf("FETCH %d:%d (UID)", from, to), func(response []byte) error {
			n, uid, uidOnly := parseFetchUID(response)
			if uid > 0 && from <= n && n <= to {
				uids.Add(uid)
			}
			if uidOnly {
				return nil
			}
			return onOther(response)
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

// parseFetchUID parses a FETCH response. It returns the number and UID of the message,
// and whether the response contains nothing else. Without a UID, uid is 0.
func parseFetchUID(response []byte) (n, uid uint32, uidOnly bool) {
	n, rest, ok := parseLeadingNumber(response[len("* "):])
	if !ok || !imap.HasWordPrefix(rest, "FETCH") {
		return 0, 0, false
	}
	if uid, ok = findUID(rest); !ok {
		return 0, 0, false
	}
	return n, uid, bytes.Count(rest, []byte(" ")) == 2 // "FETCH (UID 7)"
}

// searchCommand returns the command that searches for the UIDs of messages by number.
func (s *session) searchCommand(numbers string) string {
	if caps := s.upstream.Caps(); caps.Has("ESEARCH") || caps.Has(imap.Rev2) {
		return "UID SEARCH RETURN (ALL) " + numbers
	}
	return "UID SEARCH " + numbers
}

// parseSearch adds the UIDs of a SEARCH or ESEARCH response to into, and reports whether
// response is one.
func parseSearch(response []byte, into *mailbox.UIDSet) (bool, error) {
	b := bytes.TrimSuffix(response[len("* "):], []byte("\r\n"))
	switch {
	case imap.HasWordPrefix(b, "SEARCH"):
		for field := range bytes.FieldsSeq(b[len("SEARCH"):]) {
			if field[0] == '(' {
				break // (MODSEQ n)
			}
			if err := into.AddText(field); err != nil {
				return true, fmt.Errorf("%w: %w", errProtocol, err)
			}
		}
		return true, nil
	case imap.HasWordPrefix(b, "ESEARCH"):
		i := bytes.Index(b, []byte(" ALL "))
		if i < 0 {
			return true, nil // no message
		}
		set, _, _ := bytes.Cut(b[i+len(" ALL "):], []byte(" "))
		if err := into.AddText(set); err != nil {
			return true, fmt.Errorf("%w: %w", errProtocol, err)
		}
		return true, nil
	}
	return false, nil
}
