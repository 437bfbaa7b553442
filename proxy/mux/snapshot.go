package mux

import (
	"errors"
	"fmt"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/proxy/mux/mailbox"
	"imapgate/proxy/upstream"
)

// reselect selects the session's mailbox on a connection without a selected mailbox.
func (s *session) reselect(deadline time.Time) (*mailbox.SelectData, error) {
	name, err := s.mailbox.SelectCommand(s.upstream.Caps())
	if err != nil {
		return nil, &closeError{event.UpstreamLost, byeLost, err}
	}
	data := &mailbox.SelectData{}
	s.upstream.Selected = true
	res, err := s.upstream.Run(deadline, name, func(response []byte) error { data.ReadUntagged(response); return s.forwardAlert(response) })
	if err != nil {
		return nil, s.wrapRunError(err)
	}
	switch {
	case res.Name == "OK":
		data.ReadTagged(res)
		return data, s.checkMailbox(data)
	case res.Code == "UNAVAILABLE", res.Code == "INUSE", res.Code == "SERVERBUG", res.Code == "LIMIT":
		return nil, fmt.Errorf("%w: %s", errBusy, upstream.DescribeResponse(res))
	case res.Name == "NO":
		s.upstream.Selected = false
		return nil, &closeError{event.MailboxGone, byeDeleted, errors.New(upstream.DescribeResponse(res))}
	}
	return nil, &closeError{event.UpstreamLost, byeLost, errors.New(upstream.DescribeResponse(res))}
}

// checkMailbox verifies that the mailbox is the one the client has selected.
func (s *session) checkMailbox(data *mailbox.SelectData) error {
	err := s.mailbox.Check(data)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, mailbox.ErrChanged):
		return &closeError{event.MailboxChanged, byeChanged, nil}
	}
	s.countViolation(mailbox.ViolationOf(err))
	return &closeError{event.ViewInconsistent, byeChanged, err}
}

// diffView returns the difference between the client's view and the connection's; nil for
// none.
func (s *session) diffView(data *mailbox.SelectData, deadline time.Time) (*mailbox.Diff, error) {
	if data.HasExpunges { // during the SELECT: their number is unknown
		return nil, fmt.Errorf("%w: messages are being expunged", errBusy)
	}
	if s.mailbox.HasSameUIDs(data) && (s.mailbox.UnknownCount() == 0 || !s.needsAux(data)) {
		return nil, nil
	}
	uids, err := s.fetchSnapshot(data, deadline)
	if err != nil {
		return nil, err
	}
	d, err := s.mailbox.Compare(uids, data)
	switch {
	case err != nil:
		s.countViolation(mailbox.ViolationOf(err))
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
func (s *session) fetchSnapshot(data *mailbox.SelectData, deadline time.Time) (*mailbox.UIDSet, error) {
	exists := data.Exists
	if exists == 0 {
		return &mailbox.UIDSet{}, nil
	}
	uids, res, err := s.queryUIDs(1, exists, deadline, func(response []byte) error {
		data.ReadUntagged(response)
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
	case uids.Len() < exists, data.HasExpunges:
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
			isSearch, err := uids.AddSearch(response)
			switch {
			case err != nil:
				return fmt.Errorf("%w: %w", errProtocol, err)
			case isSearch:
				return nil
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
			if uids.AddFetch(response, from, to) {
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

// searchCommand returns the command that searches for the UIDs of messages by number.
func (s *session) searchCommand(numbers string) string {
	if caps := s.upstream.Caps(); caps.Has("ESEARCH") || caps.Has(imap.Rev2) {
		return "UID SEARCH RETURN (ALL) " + numbers
	}
	return "UID SEARCH " + numbers
}
