package mux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
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

// maxOutBuf bounds the responses gathered in outBuf before they are written.
const maxOutBuf = 32 << 10

// writeResync sends the client the difference between its view and the connection's: d
// and the data of SELECT. Afterwards the two are equal.
//
// The order matters: keywords before flags that use them; expunges before EXISTS (RFC
// 9051 §7.5.1); flags received during the queries before the newer ones that are fetched;
// and finally the mod-sequence that covers everything.
func (s *session) writeResync(d *mailbox.Diff, data *selectData, deadline time.Time) error {
	m := s.mailbox
	s.outBuf = s.outBuf[:0]
	s.appendFlagsLine(&m.flags, data.flags)
	s.appendFlagsLine(&m.permanentFlags, data.permanentFlags)
	if data.access != "" && data.access != m.access {
		s.outBuf = append(append(append(s.outBuf, "* OK ["...), data.access...), "] Access has changed.\r\n"...)
		m.access = data.access
	}
	if err := s.resyncView(d, data.exists); err != nil {
		return err
	}
	if data.recent != m.recent && !s.enabled.Has(imap.Rev2) {
		m.recent = data.recent
		s.outBuf = append(strconv.AppendUint(append(s.outBuf, "* "...), uint64(data.recent), 10), " RECENT\r\n"...)
	}
	for _, line := range data.fetches {
		s.outBuf = append(s.outBuf, line...)
	}
	if err := s.writeOutBuf(); err != nil {
		return err
	}
	m.uidNext, m.pendingModseq, m.uidsDeferred = data.uidNext, 0, false
	m.modseqRequested = m.modseqRequested && m.modseq != 0
	s.attached = true
	s.updateStateMetric()
	resent, err := s.resyncFlags(data, deadline)
	if err != nil {
		return err
	}
	if m.flagsPending = !resent; m.flagsPending {
		m.flagsPendingModseq = data.modseq
		s.scheduleWake(time.Second)
		return nil
	}
	if data.modseq != 0 && s.enabled.Has(imap.Qresync) && data.modseq != m.modseq {
		if err := s.reply("* OK [HIGHESTMODSEQ ", strconv.FormatUint(data.modseq, 10), "] Highest"); err != nil {
			return err
		}
	}
	if data.modseq != 0 { // otherwise the earlier one stays valid
		m.modseq = data.modseq
	}
	return nil
}

// appendFlagsLine appends a FLAGS or PERMANENTFLAGS line if it differs from last.
func (s *session) appendFlagsLine(last *responseLine, line responseLine) {
	if line != (responseLine{}) && line != *last {
		*last = line
		s.outBuf = append(append(s.outBuf, "* "...), line.String()...)
	}
}

// resyncView sends expunges and new messages.
func (s *session) resyncView(d *mailbox.Diff, exists uint32) error {
	s.mailbox.hasArrivals = false
	if d == nil {
		return nil
	}
	if s.enabled.Has(imap.Qresync) || s.enabled.Has(imap.UIDOnly) {
		s.outBuf = d.AppendVanished(s.outBuf)
	} else {
		for n := range d.ExpungedNumbers() {
			s.outBuf = mailbox.AppendExpunge(s.outBuf, n)
			if len(s.outBuf) < maxOutBuf {
				continue
			}
			if err := s.writeOutBuf(); err != nil {
				return err
			}
		}
	}
	s.mailbox.view.Apply(d)
	if exists > d.Exists() { // new messages since the snapshot
		_ = s.mailbox.view.SetExists(exists)
		s.mailbox.hasArrivals = true
	}
	if d.NewCount() > 0 || s.mailbox.hasArrivals {
		s.outBuf = append(strconv.AppendUint(append(s.outBuf, "* "...), uint64(s.mailbox.view.Exists()), 10), " EXISTS\r\n"...)
	}
	return nil
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
func (s *session) resyncFlags(data *selectData, deadline time.Time) (bool, error) {
	m, n := s.mailbox, s.mailbox.view.Exists()
	switch {
	case n == 0:
		return true, nil
	case m.modseq != 0 && data.modseq == m.modseq && !m.flagsPending:
		return true, nil // nothing has changed at all
	case s.needsAux(data):
		return s.fetchFlagsOnAux(data, deadline)
	case m.modseq != 0 && data.modseq != 0 && s.enabled.Has(imap.Condstore):
		return s.fetchFlagsSince(n, m.modseq, deadline)
	}
	return s.fetchAllFlags(n, deadline)
}

// needsAux reports whether flag changes must be queried on an auxiliary connection. That
// connection identifies messages by UID only.
func (s *session) needsAux(data *selectData) bool {
	m := s.mailbox
	return m.modseq != 0 && (data.modseq != m.modseq || m.flagsPending) &&
		!s.enabled.Has(imap.Condstore) && s.backend.settings.ReadAfterWrite && m.isASCII()
}

// fetchAllFlags sends all flags, because the changed ones are unknown. It ends the
// session if the mailbox is too large for that.
func (s *session) fetchAllFlags(n uint32, deadline time.Time) (bool, error) {
	if n > uint32(s.backend.settings.FlagResyncMaxMessages) { // a setting of at most millions
		return false, &closeError{event.MailboxTooLarge, byeUnavailable, errors.New("changed flags are unknown, and the mailbox is too large to send all")}
	}
	return s.fetchFlags(fmt.Sprintf("FETCH 1:%d (UID FLAGS)", n), deadline)
}

// fetchFlagsSince queries the client's own connection, which has the client's extensions
// enabled (RFC 7162 §3.1.4.1).
func (s *session) fetchFlagsSince(n uint32, since uint64, deadline time.Time) (bool, error) {
	return s.fetchFlags(fmt.Sprintf("FETCH 1:%d (UID FLAGS MODSEQ) (CHANGEDSINCE %d)", n, since), deadline)
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
func (s *session) fetchFlagsOnAux(leaseData *selectData, deadline time.Time) (bool, error) {
	ctx, cancel := context.WithTimeout(s.hub.ctx, auxLoginTimeout)
	defer cancel()
	auxData, ok := selectData{}, false
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
	switch n := s.mailbox.view.Exists(); {
	case !ok && n <= uint32(s.backend.settings.FlagResyncMaxMessages):
		return s.fetchAllFlags(n, deadline)
	case !ok:
		return false, nil // retried later
	}
	if changed := s.outBuf; len(changed) > 0 { // either FLAGS line may lack new keywords of the other
		s.outBuf = nil
		s.appendFlagsLine(&s.mailbox.flags, s.mailbox.flags.union(auxData.flags))
		s.outBuf = append(s.outBuf, changed...)
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
func (s *session) fetchChangedFlags(aux *lease.Conn, deadline time.Time) (selectData, bool) {
	var data selectData
	examine := *s.mailbox
	examine.verb = "EXAMINE" // keeps \Recent for the client's session
	name, err := examine.selectCommand(aux.Caps())
	if err != nil {
		return data, false
	}
	aux.Selected = true
	res, err := aux.Run(deadline, name, func(response []byte) error { data.readUntagged(response); return s.forwardAlert(response) })
	if err != nil || res.Name != "OK" || data.uidValidity != s.mailbox.uidValidity {
		return data, false
	}
	fetch := fmt.Sprintf("UID FETCH 1:%d (FLAGS) (CHANGEDSINCE %d)", max(s.mailbox.view.MaxUID(), 1), s.mailbox.modseq)
	res, err = aux.Run(deadline, fetch, func(response []byte) error {
		if imap.HasWordPrefix(response[len("* "):], "FLAGS") { // newer keywords than in EXAMINE
			data.flags.set(response[len("* "):])
		}
		s.outBuf = appendFlags(s.outBuf, response, &s.mailbox.view)
		return s.forwardAlert(response)
	})
	return data, err == nil && res.Name == "OK"
}

// appendFlags appends the flags of a FETCH response with the message's number in v.
// Responses without a UID, whose numbers are valid only on their own connection, and
// messages unknown to v are omitted.
func appendFlags(dst, response []byte, v *mailbox.View) []byte {
	_, rest, ok := parseLeadingNumber(response[len("* "):])
	if !ok || !imap.HasWordPrefix(rest, "FETCH") {
		return dst
	}
	uid, ok := findUID(rest)
	if !ok {
		return dst
	}
	n, ok := v.Number(uid)
	from := bytes.Index(rest, []byte("FLAGS ("))
	if !ok || from < 0 {
		return dst
	}
	to := bytes.IndexByte(rest[from:], ')')
	if to < 0 {
		return dst
	}
	dst = strconv.AppendUint(append(dst, "* "...), uint64(n), 10)
	dst = append(append(dst, " FETCH (UID "...), strconv.FormatUint(uint64(uid), 10)...)
	dst = append(append(dst, ' '), rest[from:from+to+1]...)
	return append(dst, ")\r\n"...)
}
