package mux

import (
	"errors"
	"fmt"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/proxy/relay"
	"imapgate/proxy/relay/mux/lease"
	"imapgate/proxy/relay/mux/mailbox"
	"imapgate/proxy/upstream"
)

// reselect selects the session's mailbox on a connection without a selected mailbox.
func (r *resync) reselect() error {
	name, err := r.mailbox.SelectCommand(r.upstream.Caps())
	if err != nil {
		return &relay.CloseError{Reason: event.UpstreamLost, Bye: byeLost, Err: err}
	}
	r.upstream.Selected = true
	res, err := r.upstream.Run(r.deadline, name, r.readUntagged)
	if err != nil {
		return wrapRunError(err)
	}
	switch {
	case res.Name == "OK":
		r.data.ReadTagged(res)
		return r.checkMailbox()
	case res.Code == "UNAVAILABLE", res.Code == "INUSE", res.Code == "SERVERBUG", res.Code == "LIMIT":
		return fmt.Errorf("%w: %s", errBusy, upstream.DescribeResponse(res))
	case res.Name == "NO":
		r.upstream.Selected = false
		return &relay.CloseError{Reason: event.MailboxGone, Bye: byeDeleted, Err: errors.New(upstream.DescribeResponse(res))}
	}
	return &relay.CloseError{Reason: event.UpstreamLost, Bye: byeLost, Err: errors.New(upstream.DescribeResponse(res))}
}

// readUntagged reads a response before the resync, while the session has its slot.
func (r *resync) readUntagged(response []byte) error {
	r.data.ReadUntagged(response)
	r.upstream.KeepAlert(response)
	return nil
}

// checkMailbox verifies that the mailbox is the one the client has selected.
func (r *resync) checkMailbox() error {
	err := r.mailbox.Check(r.data)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, mailbox.ErrChanged):
		return &relay.CloseError{Reason: event.MailboxChanged, Bye: byeChanged}
	}
	return r.failView(err)
}

// failView ends a session whose view the mailbox cannot have become.
func (r *resync) failView(err error) error {
	if !r.mailbox.IsElsewhere() { // otherwise two backends were compared, and neither broke a rule
		r.upstream.countViolation(mailbox.ViolationOf(err))
	}
	return &relay.CloseError{Reason: event.ViewInconsistent, Bye: byeChanged, Err: err}
}

// diffView returns the difference between the client's view and the connection's; nil for
// none.
func (r *resync) diffView() (*mailbox.Diff, error) {
	if r.data.HasExpunges { // during the SELECT: their number is unknown
		return nil, fmt.Errorf("%w: messages are being expunged", errBusy)
	}
	if r.mailbox.HasSameUIDs(r.data) && (r.mailbox.UnknownCount() == 0 || !r.needsAux()) {
		return nil, nil
	}
	uids, err := r.fetchSnapshot()
	if err != nil {
		return nil, err
	}
	d, err := r.mailbox.Compare(uids, r.data)
	switch {
	case err != nil:
		return nil, r.failView(err)
	case d.ExpungedUnknownCount() > uint32(r.upstream.backend.settings.FlagResyncMaxMessages): // an EXPUNGE for each would cost the client its cache
		return nil, &relay.CloseError{Reason: event.MailboxTooLarge, Bye: byeUnavailable, Err: errors.New("too many messages with unknown UIDs")}
	case d.ExpungedUnknownCount() > 0 && (r.client.enabled.Has(imap.Qresync) || r.client.enabled.Has(imap.UIDOnly)):
		return nil, &relay.CloseError{Reason: event.ViewInconsistent, Bye: byeLost, Err: errors.New("VANISHED cannot name messages with unknown UIDs")}
	}
	return &d, nil
}

// fetchSnapshot fetches the UIDs of all messages that the connection has announced, and
// keeps other responses for writeResync. It fails if the backend does not return all
// UIDs: after a fresh SELECT the gateway cannot know which messages are gone.
func (r *resync) fetchSnapshot() (*mailbox.UIDSet, error) {
	exists := r.data.Exists
	if exists == 0 {
		return &mailbox.UIDSet{}, nil
	}
	uids, res, err := r.upstream.queryUIDs(1, exists, r.deadline, r.readUntagged)
	if err != nil {
		return nil, wrapRunError(err)
	}
	switch {
	case res.Code == "MESSAGELIMIT": // RFC 9738: the list is incomplete
		return nil, &relay.CloseError{Reason: event.MailboxTooLarge, Bye: byeUnavailable, Err: errors.New(upstream.DescribeResponse(res))}
	case res.Name != "OK":
		return nil, fmt.Errorf("%w: %s", errBusy, upstream.DescribeResponse(res))
	case uids.Len() < exists, r.data.HasExpunges:
		return nil, fmt.Errorf("%w: messages are being expunged", errBusy)
	case uids.Len() > exists:
		r.upstream.countViolation(event.CountMismatch)
		return nil, &relay.CloseError{Reason: event.ViewInconsistent, Bye: byeChanged, Err: errors.New("more UIDs than messages")}
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
func (u *upstreamSide) queryUIDs(first, last uint32, deadline time.Time, onOther func([]byte) error) (*mailbox.UIDSet, imap.Response, error) {
	if u.Caps().Has(imap.Qresync) {
		uids := &mailbox.UIDSet{}
		search := "UID SEARCH"
		if caps := u.Caps(); caps.Has("ESEARCH") || caps.Has(imap.Rev2) {
			search += " RETURN (ALL)"
		}
		res, err := u.Run(deadline, fmt.Sprintf("%s %d:%d", search, first, last), func(response []byte) error {
			isSearch, err := uids.AddSearch(response)
			switch {
			case err != nil:
				return fmt.Errorf("%w: %w", lease.ErrProtocol, err)
			case isSearch:
				return nil
			}
			return onOther(response)
		})
		if err != nil || res.Name != "OK" || res.Code == "MESSAGELIMIT" || uids.Len() > last-first {
			return uids, res, err
		}
	}
	return u.fetchUIDs(first, last, deadline, onOther)
}

// fetchUIDs is queryUIDs by FETCH, during which no server sends EXPUNGE. A backend that
// refuses because messages are gone (RFC 2180 §4.1.2) has returned the UIDs of the
// others.
func (u *upstreamSide) fetchUIDs(first, last uint32, deadline time.Time, onOther func([]byte) error) (uids *mailbox.UIDSet, res imap.Response, err error) {
	uids = &mailbox.UIDSet{}
	for from := first; from <= last && uids.Len() == from-first; from += uidFetchBatch {
		to := min(last, from+uidFetchBatch-1)
		res, err = u.Run(deadline, fmt.Sprintf("FETCH %d:%d (UID)", from, to), func(response []byte) error {
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
