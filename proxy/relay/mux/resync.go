package mux

import (
	"context"
	"errors"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/internal/sleep"
	"imapgate/proxy/relay"
	"imapgate/proxy/relay/mux/lease"
	"imapgate/proxy/relay/mux/mailbox"
	"imapgate/proxy/relay/mux/pool"
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
		return false, &relay.CloseError{Reason: event.MailboxTooLarge, Bye: byeUnavailable, Err: errors.New("changed flags are unknown, and the mailbox is too large to send all")}
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
