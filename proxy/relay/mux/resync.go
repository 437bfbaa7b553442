package mux

import (
	"context"
	"errors"
	"fmt"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/internal/sleep"
	"imapgate/proxy/relay/mux/lease"
	"imapgate/proxy/relay/mux/mailbox"
	"imapgate/proxy/relay/mux/pool"
	"imapgate/proxy/upstream"
)

// Timeouts of an auxiliary connection and its answers, during which the client waits.
const (
	auxLoginTimeout = 2 * time.Second
	auxReplyTimeout = 5 * time.Second
)

// resync is one synchronization of the client's view with its lease.
type resync struct {
	*exchange
	data     *mailbox.SelectData // of the lease
	deadline time.Time
}

// writeResync sends the client the difference between its view and the connection's: d
// and the data of SELECT. Afterwards the two are equal. The mod-sequence that covers
// everything comes last.
func (r *resync) writeResync(d *mailbox.Diff) error {
	m := r.mailbox
	for text := range m.Resync(d, r.data, r.client.enabled) {
		if err := r.client.send(text); err != nil {
			return err
		}
	}
	r.upstream.attached = true
	r.updateStateMetric()
	resent, err := r.resyncFlags()
	if err != nil {
		return err
	}
	if !resent {
		m.PostponeFlags(r.data)
		r.scheduleWake(time.Second)
		return nil
	}
	r.client.outBuf = m.FinishFlags(r.client.outBuf[:0], r.data, r.client.enabled)
	return r.client.writeOutBuf()
}

// resyncFlags sends the flags that have changed since the client last received them. It
// returns false if they are not available; the caller then retries later.
func (r *resync) resyncFlags() (bool, error) {
	m := r.mailbox
	switch {
	case !m.HasFlagChanges(r.data):
		return true, nil
	case r.needsAux():
		return r.fetchFlagsOnAux()
	}
	fetch, isAll := m.FetchFlags(r.data, r.client.enabled)
	if isAll {
		return r.fetchAllFlags()
	}
	return r.fetchFlags(fetch)
}

// needsAux reports whether flag changes must be queried on an auxiliary connection. That
// connection identifies messages by UID only.
func (r *resync) needsAux() bool {
	return r.upstream.backend.settings.ReadAfterWrite && r.mailbox.NeedsAux(r.data, r.client.enabled)
}

// fetchAllFlags sends all flags, because the changed ones are unknown. It ends the
// session if the mailbox is too large for that.
func (r *resync) fetchAllFlags() (bool, error) {
	if r.mailbox.Exists() > uint32(r.upstream.backend.settings.FlagResyncMaxMessages) { // a setting of at most millions
		return false, &closeError{event.MailboxTooLarge, byeUnavailable, errors.New("changed flags are unknown, and the mailbox is too large to send all")}
	}
	return r.fetchFlags(r.mailbox.FetchAllFlags())
}

// fetchFlags runs a FETCH and relays its responses to the client. No EXPUNGE arrives
// during a FETCH by number.
func (r *resync) fetchFlags(command string) (bool, error) {
	res, err := r.upstream.Run(r.deadline, command, r.forwardUntagged)
	if err != nil {
		return false, wrapRunError(err)
	}
	return res.Name == "OK", nil
}

// forwardUntagged relays an untagged response that arrives during a command of the
// gateway.
func (x *exchange) forwardUntagged(response []byte) error {
	seg := imap.Segment{Bytes: response, End: true}
	v, err := x.classifyUntagged(seg)
	if err != nil || v == discard {
		return err
	}
	return x.client.forwardResponses(response)
}

// wrapRunError separates the end of the session from the loss of the upstream in an error
// of Run.
func wrapRunError(err error) error {
	if e := (*closeError)(nil); errors.As(err, &e) {
		return e
	}
	return wrapLost(err)
}

// fetchFlagsOnAux queries an auxiliary connection. The client's own connection must not
// be asked about mod-sequences if the client has enabled nothing, because it would report
// them from then on. The auxiliary connection selects the mailbox later than the lease,
// so its flags are never older than the lease's.
func (r *resync) fetchFlagsOnAux() (bool, error) {
	var auxData mailbox.SelectData
	r.client.outBuf = r.client.outBuf[:0]
	deadline := r.deadline
	if auxDeadline := time.Now().Add(auxReplyTimeout); auxDeadline.Before(deadline) {
		deadline = auxDeadline
	}
	ok := r.useAux(func(aux *lease.Conn) bool { return r.fetchChangedFlags(aux, &auxData, deadline) })
	switch {
	case !ok && r.mailbox.Exists() <= uint32(r.upstream.backend.settings.FlagResyncMaxMessages):
		return r.fetchAllFlags()
	case !ok:
		return false, nil // retried later
	}
	if changed := r.client.outBuf; len(changed) > 0 {
		r.client.outBuf = append(r.mailbox.AppendKeywords(nil, &auxData), changed...)
	}
	return true, r.client.writeOutBuf()
}

// useAux calls use with an auxiliary connection, and discards that if use returns false. It
// returns false if there is no connection, too.
func (x *exchange) useAux(use func(aux *lease.Conn) bool) bool {
	ctx, cancel := context.WithTimeout(x.hub.ctx, auxLoginTimeout)
	defer cancel()
	aux, err := x.upstream.acquireAuxWhile(ctx, func() bool { return true })
	if err != nil {
		return false
	}
	_ = x.client.forwardResponses(aux.TakeAlerts()) // the next write notices a client that is gone
	if !use(aux) {
		x.upstream.account.Discard(aux, event.DiscardError)
		return false
	}
	x.upstream.account.ReleaseAux(aux)
	return true
}

// acquireAuxWhile acquires an auxiliary connection. It waits a little, while shouldWait returns
// true: other sessions of the user that lost their upstream at the same time may hold it. It
// fails if the route has changed; the session continues without one.
func (u *upstreamSide) acquireAuxWhile(ctx context.Context, shouldWait func() bool) (*lease.Conn, error) {
	if err := u.checkRoute(ctx); err != nil {
		return nil, err
	}
	for range 50 {
		aux, err := u.account.AcquireAux(ctx)
		if !errors.Is(err, pool.ErrBusy) || !shouldWait() {
			return aux, err
		}
		_ = sleep.For(u.backend.hub.ctx, 20*time.Millisecond)
	}
	return nil, pool.ErrBusy
}

// fetchChangedFlags appends the flags changed since the mailbox's mod-sequence to outBuf,
// as FETCH responses with the client's message numbers, and reads the rest into data. If it
// returns false, aux must be discarded.
func (r *resync) fetchChangedFlags(aux *lease.Conn, data *mailbox.SelectData, deadline time.Time) bool {
	name, err := r.mailbox.Command("EXAMINE", aux.Caps()) // keeps \Recent for the client's session
	if err != nil {
		return false
	}
	aux.Selected = true
	res, err := aux.Run(deadline, name, func(response []byte) error { data.ReadUntagged(response); return r.client.forwardAlert(response) })
	if err != nil || res.Name != "OK" || !r.mailbox.HasSameIdentity(data) {
		return false
	}
	res, err = aux.Run(deadline, r.mailbox.FetchFlagsByUID(), func(response []byte) error {
		data.ReadFlags(response) // newer keywords than in EXAMINE
		r.client.outBuf = r.mailbox.AppendFlags(r.client.outBuf, response)
		return r.client.forwardAlert(response)
	})
	return err == nil && res.Name == "OK"
}

// reselect selects the session's mailbox on a connection without a selected mailbox.
func (r *resync) reselect() error {
	name, err := r.mailbox.SelectCommand(r.upstream.Caps())
	if err != nil {
		return &closeError{event.UpstreamLost, byeLost, err}
	}
	r.upstream.Selected = true
	res, err := r.upstream.Run(r.deadline, name, func(response []byte) error { r.data.ReadUntagged(response); return r.client.forwardAlert(response) })
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
		return &closeError{event.MailboxGone, byeDeleted, errors.New(upstream.DescribeResponse(res))}
	}
	return &closeError{event.UpstreamLost, byeLost, errors.New(upstream.DescribeResponse(res))}
}

// checkMailbox verifies that the mailbox is the one the client has selected.
func (r *resync) checkMailbox() error {
	err := r.mailbox.Check(r.data)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, mailbox.ErrChanged):
		return &closeError{event.MailboxChanged, byeChanged, nil}
	}
	r.upstream.countViolation(mailbox.ViolationOf(err))
	return &closeError{event.ViewInconsistent, byeChanged, err}
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
		r.upstream.countViolation(mailbox.ViolationOf(err))
		return nil, &closeError{event.ViewInconsistent, byeChanged, err}
	case d.ExpungedUnknownCount() > uint32(r.upstream.backend.settings.FlagResyncMaxMessages): // an EXPUNGE for each would cost the client its cache
		return nil, &closeError{event.MailboxTooLarge, byeUnavailable, errors.New("too many messages with unknown UIDs")}
	case d.ExpungedUnknownCount() > 0 && (r.client.enabled.Has(imap.Qresync) || r.client.enabled.Has(imap.UIDOnly)):
		return nil, &closeError{event.ViewInconsistent, byeLost, errors.New("VANISHED cannot name messages with unknown UIDs")}
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
	uids, res, err := r.upstream.queryUIDs(1, exists, r.deadline, func(response []byte) error {
		r.data.ReadUntagged(response)
		return r.client.forwardAlert(response)
	})
	if err != nil {
		return nil, wrapRunError(err)
	}
	switch {
	case res.Code == "MESSAGELIMIT": // RFC 9738: the list is incomplete
		return nil, &closeError{event.MailboxTooLarge, byeUnavailable, errors.New(upstream.DescribeResponse(res))}
	case res.Name != "OK":
		return nil, fmt.Errorf("%w: %s", errBusy, upstream.DescribeResponse(res))
	case uids.Len() < exists, r.data.HasExpunges:
		return nil, fmt.Errorf("%w: messages are being expunged", errBusy)
	case uids.Len() > exists:
		r.upstream.countViolation(event.CountMismatch)
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
