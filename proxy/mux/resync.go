package mux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"imapgate/internal/audit"
	"imapgate/internal/imap"
	"imapgate/internal/metrics"
	"imapgate/proxy/mux/lease"
	"imapgate/proxy/mux/pool"
	"imapgate/proxy/mux/view"
)

// Bounds of the wait for an auxiliary connection and for its answers: the client
// waits as long.
const (
	auxLoginTimeout = 2 * time.Second
	auxReplyTimeout = 5 * time.Second
)

// maxOutBuf is how much of our own answers is gathered before it is written.
const maxOutBuf = 32 << 10

// writeResync tells the client what separates its view from the connection's, d and
// what SELECT has said, so that from here on they are one.
//
// The order matters: keywords before the flags that use them, expunges (RFC 9051
// §7.5.1) before EXISTS, flags that were said while we asked before the newer
// ones we ask for, and last the mod-sequence that all of it amounts to.
func (s *session) writeResync(d *view.Diff, t *selectData, deadline time.Time) error {
	b := s.mailbox
	s.outBuf = s.outBuf[:0]
	s.appendFlagsLine(&b.flags, t.flags)
	s.appendFlagsLine(&b.permanentFlags, t.permanentFlags)
	if t.access != "" && t.access != b.access {
		s.outBuf = append(append(append(s.outBuf, "* OK ["...), t.access...), "] Access has changed.\r\n"...)
		b.access = t.access
	}
	if err := s.resyncView(d, t.exists); err != nil {
		return err
	}
	if t.recent != b.recent && !s.enabled.Has(lease.Rev2) {
		b.recent = t.recent
		s.outBuf = append(strconv.AppendUint(append(s.outBuf, "* "...), uint64(t.recent), 10), " RECENT\r\n"...)
	}
	for _, line := range t.fetches {
		s.outBuf = append(s.outBuf, line...)
	}
	if err := s.writeOutBuf(); err != nil {
		return err
	}
	b.uidNext, b.pendingModseq, b.uidsDeferred = t.uidNext, 0, false
	b.modseqRequested = b.modseqRequested && b.modseq != 0
	s.attached = true
	s.updateStateMetric()
	resent, err := s.resyncFlags(t, deadline)
	if err != nil {
		return err
	}
	if b.flagsPending = !resent; b.flagsPending {
		b.flagsPendingModseq = t.modseq
		s.scheduleWake(time.Second)
		return nil
	}
	if t.modseq != 0 && s.enabled.Has(lease.Qresync) && t.modseq != b.modseq {
		if err := s.reply("* OK [HIGHESTMODSEQ ", strconv.FormatUint(t.modseq, 10), "] Highest"); err != nil {
			return err
		}
	}
	if t.modseq != 0 { // or an earlier one holds on
		b.modseq = t.modseq
	}
	return nil
}

// appendFlagsLine tells of flags that are new.
func (s *session) appendFlagsLine(last *responseLine, line responseLine) {
	if line != (responseLine{}) && line != *last {
		*last = line
		s.outBuf = append(append(s.outBuf, "* "...), line.String()...)
	}
}

// resyncView tells what has gone and what has come.
func (s *session) resyncView(d *view.Diff, exists uint32) error {
	s.mailbox.hasArrivals = false
	if d == nil {
		return nil
	}
	if s.enabled.Has(lease.Qresync) || s.enabled.Has(lease.UIDOnly) {
		s.outBuf = d.AppendVanished(s.outBuf)
	} else {
		for n := range d.ExpungedNumbers() {
			s.outBuf = view.AppendExpunge(s.outBuf, n)
			if len(s.outBuf) < maxOutBuf {
				continue
			}
			if err := s.writeOutBuf(); err != nil {
				return err
			}
		}
	}
	s.mailbox.view.Apply(d)
	if exists > d.Exists() { // more have come since the snapshot
		_ = s.mailbox.view.SetExists(exists)
		s.mailbox.hasArrivals = true
	}
	if d.NewCount() > 0 || s.mailbox.hasArrivals {
		s.outBuf = append(strconv.AppendUint(append(s.outBuf, "* "...), uint64(s.mailbox.view.Exists()), 10), " EXISTS\r\n"...)
	}
	return nil
}

// writeOutBuf writes what has been gathered.
func (s *session) writeOutBuf() error {
	if len(s.outBuf) == 0 {
		return nil
	}
	_, err := s.client.Write(s.outBuf)
	s.outBuf = s.outBuf[:0]
	return s.wrapClientError(err)
}

// resyncFlags tells which flags have changed since the client was last told. It
// says no when they could not be had: they are owed then.
func (s *session) resyncFlags(t *selectData, deadline time.Time) (bool, error) {
	b, n := s.mailbox, s.mailbox.view.Exists()
	switch {
	case n == 0:
		return true, nil
	case b.modseq != 0 && t.modseq == b.modseq && !b.flagsPending:
		return true, nil // nothing has changed at all
	case s.needsAux(t):
		return s.fetchFlagsOnAux(t, deadline)
	case b.modseq != 0 && t.modseq != 0 && s.enabled.Has(lease.Condstore):
		return s.fetchFlagsSince(n, b.modseq, deadline)
	}
	return s.fetchAllFlags(n, deadline)
}

// needsAux says whether changes of flags are to be asked for on another
// connection than the client's. Their messages are then known by UID alone.
func (s *session) needsAux(t *selectData) bool {
	b := s.mailbox
	return b.modseq != 0 && (t.modseq != b.modseq || b.flagsPending) &&
		!s.enabled.Has(lease.Condstore) && s.backend.settings.ReadAfterWrite && b.isASCII()
}

// fetchAllFlags tells all flags, because nobody knows which have changed. Of a large
// mailbox that is too much.
func (s *session) fetchAllFlags(n uint32, deadline time.Time) (bool, error) {
	if n > uint32(s.backend.settings.FlagResyncMaxMessages) { // a setting of at most millions
		return false, &closeError{audit.MailboxTooLarge, byeUnavailable, errors.New("flags may have changed, nobody knows which")}
	}
	return s.fetchFlags(fmt.Sprintf("FETCH 1:%d (UID FLAGS)", n), deadline)
}

// fetchFlagsSince asks the client's own connection, which says what the client has
// enabled (RFC 7162 §3.1.4.1).
func (s *session) fetchFlagsSince(n uint32, since uint64, deadline time.Time) (bool, error) {
	return s.fetchFlags(fmt.Sprintf("FETCH 1:%d (UID FLAGS MODSEQ) (CHANGEDSINCE %d)", n, since), deadline)
}

// fetchFlags runs a FETCH of ours whose answers are the client's. FETCH by number
// brings no EXPUNGE along.
func (s *session) fetchFlags(command string, deadline time.Time) (bool, error) {
	res, err := s.upstream.Run(deadline, command, s.forwardUntagged)
	if err != nil {
		return false, s.wrapRunError(err)
	}
	return res.Name == "OK", nil
}

// forwardUntagged passes a response on that came while a command of ours ran.
func (s *session) forwardUntagged(response []byte) error {
	seg := imap.Segment{Bytes: response, End: true}
	v, err := s.classifyUntagged(seg)
	if err != nil || v == discard {
		return err
	}
	return s.forwardResponses(response)
}

// forwardAlert passes a response on if people are to be shown it, of those that are
// otherwise for us alone.
func (s *session) forwardAlert(response []byte) error {
	if !imap.IsAlert(response) {
		return nil
	}
	return s.forwardResponses(response)
}

// forwardResponses tells the client of whole responses, none for none.
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

// wrapRunError tells the client's end from the upstream's in an error of Run.
func (s *session) wrapRunError(err error) error {
	if e := (*closeError)(nil); errors.As(err, &e) {
		return e
	}
	return s.wrapUpstreamError(err)
}

// fetchFlagsOnAux asks an auxiliary connection, because a client that has enabled
// nothing must not have its own connection asked about mod-sequences: it would
// be told of them ever after. What it says is newer than what the lease has
// said, never older, since it selects the mailbox later.
func (s *session) fetchFlagsOnAux(t *selectData, deadline time.Time) (bool, error) {
	ctx, cancel := context.WithTimeout(s.hub.ctx, auxLoginTimeout)
	defer cancel()
	data, ok := selectData{}, false
	s.outBuf = s.outBuf[:0]
	if auxDeadline := time.Now().Add(auxReplyTimeout); auxDeadline.Before(deadline) {
		deadline = auxDeadline
	}
	if aux, err := s.acquireAux(ctx); err == nil {
		_ = s.forwardResponses(aux.TakeAlerts()) // a client that is gone is missed by the next write
		if data, ok = s.fetchChangedFlags(aux, deadline); ok {
			s.account.ReleaseAux(aux)
		} else {
			s.account.Discard(aux, metrics.DiscardError)
		}
	}
	switch n := s.mailbox.view.Exists(); {
	case !ok && n <= uint32(s.backend.settings.FlagResyncMaxMessages):
		return s.fetchAllFlags(n, deadline)
	case !ok:
		return false, nil // owed
	}
	if changed := s.outBuf; len(changed) > 0 { // a keyword may be so new that only aux has said it, or so that it has not
		s.outBuf = nil
		s.appendFlagsLine(&s.mailbox.flags, s.mailbox.flags.union(data.flags))
		s.outBuf = append(s.outBuf, changed...)
	}
	return true, s.writeOutBuf()
}

// acquireAux waits a little for an auxiliary connection that others of the user's
// sessions, which were lost with this one, may just have. There is none where the
// user does not live any more: the session goes on without.
func (s *session) acquireAux(ctx context.Context) (*lease.Conn, error) {
	return s.acquireAuxWhile(ctx, func() bool { return true })
}

// acquireAuxWhile is aux, but waits no longer than that is said to be worth it.
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

// fetchChangedFlags gathers what has changed since the mailbox's mod-sequence, as
// FETCH responses in the client's numbers. It says no when aux is of no more use.
func (s *session) fetchChangedFlags(aux *lease.Conn, deadline time.Time) (selectData, bool) {
	var data selectData
	examine := *s.mailbox
	examine.verb = "EXAMINE" // so that \Recent stays whose it is
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
		if imap.HasWordPrefix(response[len("* "):], "FLAGS") { // newer keywords than EXAMINE knew
			data.flags.set(response[len("* "):])
		}
		s.outBuf = appendFlags(s.outBuf, response, &s.mailbox.view)
		return s.forwardAlert(response)
	})
	return data, err == nil && res.Name == "OK"
}

// appendFlags writes the flags of a FETCH response with the number that the
// message has in v. One without a UID is numbered as on its own connection, and
// is left out; so is a message that v has not.
func appendFlags(dst, response []byte, v *view.View) []byte {
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
