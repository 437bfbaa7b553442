package mux

import (
	"context"
	"errors"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/proxy/mux/lease"
	"imapgate/proxy/mux/mailbox"
	"imapgate/proxy/mux/pool"
)

// Timeouts of an auxiliary connection and its answers, during which the client waits.
const (
	auxLoginTimeout = 2 * time.Second
	auxReplyTimeout = 5 * time.Second
)

// writeResync sends the client the difference between its view and the connection's: d
// and the data of SELECT. Afterwards the two are equal. The mod-sequence that covers
// everything comes last.
func (s *session) writeResync(d *mailbox.Diff, data *mailbox.SelectData, deadline time.Time) error {
	m := s.mailbox
	for text := range m.Resync(d, data, s.enabled) {
		if _, err := s.client.Write(text); err != nil {
			return s.wrapClientError(err)
		}
	}
	s.attached = true
	s.updateStateMetric()
	resent, err := s.resyncFlags(data, deadline)
	if err != nil {
		return err
	}
	if !resent {
		m.PostponeFlags(data)
		s.scheduleWake(time.Second)
		return nil
	}
	s.outBuf = m.FinishFlags(s.outBuf[:0], data, s.enabled)
	return s.writeOutBuf()
}

// writeOutBuf writes and empties outBuf.
func (s *session) writeOutBuf() error {
	if len(s.outBuf) == 0 {
		return nil
	}
	_, err := s.client.Write(s.outBuf)
	s.outBuf = s.outBuf[:0]
	return s.wrapClientError(err)
}

// resyncFlags sends the flags that have changed since the client last received them. It
// returns false if they are not available; the caller then retries later.
func (s *session) resyncFlags(data *mailbox.SelectData, deadline time.Time) (bool, error) {
	m := s.mailbox
	switch {
	case !m.HasFlagChanges(data):
		return true, nil
	case s.needsAux(data):
		return s.fetchFlagsOnAux(data, deadline)
	}
	fetch, isAll := m.FetchFlags(data, s.enabled)
	if isAll {
		return s.fetchAllFlags(deadline)
	}
	return s.fetchFlags(fetch, deadline)
}

// needsAux reports whether flag changes must be queried on an auxiliary connection. That
// connection identifies messages by UID only.
func (s *session) needsAux(data *mailbox.SelectData) bool {
	return s.backend.settings.ReadAfterWrite && s.mailbox.NeedsAux(data, s.enabled)
}

// fetchAllFlags sends all flags, because the changed ones are unknown. It ends the
// session if the mailbox is too large for that.
func (s *session) fetchAllFlags(deadline time.Time) (bool, error) {
	if s.mailbox.Exists() > uint32(s.backend.settings.FlagResyncMaxMessages) { // a setting of at most millions
		return false, &closeError{event.MailboxTooLarge, byeUnavailable, errors.New("changed flags are unknown, and the mailbox is too large to send all")}
	}
	return s.fetchFlags(s.mailbox.FetchAllFlags(), deadline)
}

// fetchFlags runs a FETCH and relays its responses to the client. No EXPUNGE arrives
// during a FETCH by number.
func (s *session) fetchFlags(command string, deadline time.Time) (bool, error) {
	res, err := s.upstream.Run(deadline, command, s.forwardUntagged)
	if err != nil {
		return false, s.wrapRunError(err)
	}
	return res.Name == "OK", nil
}

// forwardUntagged relays an untagged response that arrives during a command of the
// gateway.
func (s *session) forwardUntagged(response []byte) error {
	seg := imap.Segment{Bytes: response, End: true}
	v, err := s.classifyUntagged(seg)
	if err != nil || v == discard {
		return err
	}
	return s.forwardResponses(response)
}

// forwardAlert relays a response with an ALERT, which must reach a person, and drops
// others.
func (s *session) forwardAlert(response []byte) error {
	if !imap.IsAlert(response) {
		return nil
	}
	return s.forwardResponses(response)
}

// forwardResponses writes complete responses to the client, or appends them to deferred.
func (s *session) forwardResponses(responses []byte) error {
	if len(responses) == 0 {
		return nil
	}
	if s.deferred != nil {
		s.deferred = append(s.deferred, responses...)
		return nil
	}
	_, err := s.client.Write(responses)
	return s.wrapClientError(err)
}

// wrapRunError separates the end of the session from the loss of the upstream in an error
// of Run.
func (s *session) wrapRunError(err error) error {
	if e := (*closeError)(nil); errors.As(err, &e) {
		return e
	}
	return s.wrapUpstreamError(err)
}

// fetchFlagsOnAux queries an auxiliary connection. The client's own connection must not
// be asked about mod-sequences if the client has enabled nothing, because it would report
// them from then on. The auxiliary connection selects the mailbox later than the lease,
// so its flags are never older than the lease's.
func (s *session) fetchFlagsOnAux(leaseData *mailbox.SelectData, deadline time.Time) (bool, error) {
	ctx, cancel := context.WithTimeout(s.hub.ctx, auxLoginTimeout)
	defer cancel()
	auxData, ok := mailbox.SelectData{}, false
	s.outBuf = s.outBuf[:0]
	if auxDeadline := time.Now().Add(auxReplyTimeout); auxDeadline.Before(deadline) {
		deadline = auxDeadline
	}
	if aux, err := s.acquireAux(ctx); err == nil {
		_ = s.forwardResponses(aux.TakeAlerts()) // the next write notices a client that is gone
		if auxData, ok = s.fetchChangedFlags(aux, deadline); ok {
			s.account.ReleaseAux(aux)
		} else {
			s.account.Discard(aux, event.DiscardError)
		}
	}
	switch {
	case !ok && s.mailbox.Exists() <= uint32(s.backend.settings.FlagResyncMaxMessages):
		return s.fetchAllFlags(deadline)
	case !ok:
		return false, nil // retried later
	}
	if changed := s.outBuf; len(changed) > 0 {
		s.outBuf = append(s.mailbox.AppendKeywords(nil, &auxData), changed...)
	}
	return true, s.writeOutBuf()
}

// acquireAux acquires an auxiliary connection. It waits a little, because other sessions
// of the user that lost their upstream at the same time may hold it. It fails if the
// route has changed; the session continues without one.
func (s *session) acquireAux(ctx context.Context) (*lease.Conn, error) {
	return s.acquireAuxWhile(ctx, func() bool { return true })
}

// acquireAuxWhile is acquireAux, and waits only while shouldWait returns true.
func (s *session) acquireAuxWhile(ctx context.Context, shouldWait func() bool) (*lease.Conn, error) {
	if err := s.checkRoute(ctx); err != nil {
		return nil, err
	}
	for range 50 {
		aux, err := s.account.AcquireAux(ctx)
		if !errors.Is(err, pool.ErrBusy) || !shouldWait() {
			return aux, err
		}
		s.hub.sleep(20 * time.Millisecond)
	}
	return nil, pool.ErrBusy
}

// fetchChangedFlags appends the flags changed since the mailbox's mod-sequence to outBuf,
// as FETCH responses with the client's message numbers. If it returns false, aux must be
// discarded.
func (s *session) fetchChangedFlags(aux *lease.Conn, deadline time.Time) (mailbox.SelectData, bool) {
	var data mailbox.SelectData
	name, err := s.mailbox.Command("EXAMINE", aux.Caps()) // keeps \Recent for the client's session
	if err != nil {
		return data, false
	}
	aux.Selected = true
	res, err := aux.Run(deadline, name, func(response []byte) error { data.ReadUntagged(response); return s.forwardAlert(response) })
	if err != nil || res.Name != "OK" || !s.mailbox.HasSameIdentity(&data) {
		return data, false
	}
	res, err = aux.Run(deadline, s.mailbox.FetchFlagsByUID(), func(response []byte) error {
		data.ReadFlags(response) // newer keywords than in EXAMINE
		s.outBuf = s.mailbox.AppendFlags(s.outBuf, response)
		return s.forwardAlert(response)
	})
	return data, err == nil && res.Name == "OK"
}
