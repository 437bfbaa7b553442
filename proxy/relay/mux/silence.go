package mux

import (
	"errors"
	"math/rand/v2"
	"time"

	"imapgate/proxy/relay"
	"imapgate/proxy/relay/mux/lease"
)

// errSilent reports the loss of a connection without answers while another connection of
// the same user gets answers.
var errSilent = errors.New("backend does not answer on this connection, but on another one")

// checkSilence finds out whether a backend that has sent nothing for SilenceTimeout is
// slow, or the process behind the connection hangs. The kernel does not show it, because
// it continues to acknowledge. So checkSilence queries a second connection. If that is
// answered, the first one is dropped: a loss.
//
// A connection is never dropped over a command that changes something, because a hanging
// process may still execute it. Over any other command it is dropped only once.
func (x *exchange) checkSilence() error {
	timeout := x.upstream.backend.settings.SilenceTimeout
	if timeout == 0 || !x.isResume || x.upstream.pinReason != "" || !x.upstream.canDrop(x.client.idle) || x.upstream.silenceDuration() < timeout || x.hub.uptime()-x.upstream.silenceCheckedAt < timeout {
		return nil
	}
	answered := x.useAux(func(aux *lease.Conn) bool { // valid without ReadAfterWrite too: it does not depend on the mailbox
		res, err := aux.Run(time.Now().Add(auxReplyTimeout), "NOOP", x.client.forwardAlert)
		return err == nil && res.Name == "OK"
	})
	x.upstream.silenceCheckedAt = x.hub.uptime()
	if !answered || x.upstream.silenceDuration() < timeout || x.upstream.IsReadable() {
		return nil
	}
	x.client.request.upstreamDropped = true // for the resend
	for i := range x.upstream.outstanding.all() {
		x.upstream.outstanding.all()[i].upstreamDropped = true
	}
	return wrapLost(errSilent)
}

// scheduleSilenceCheck schedules a wake for a parked session while an answer is due.
func (x *exchange) scheduleSilenceCheck() {
	timeout := x.upstream.backend.settings.SilenceTimeout
	if timeout == 0 || !x.isResume || x.upstream.pinReason != "" || !x.upstream.canDrop(x.client.idle) {
		return
	}
	last := max(x.hub.uptime()-x.upstream.silenceDuration(), x.upstream.silenceCheckedAt)
	x.scheduleWake(max(last+timeout-x.hub.uptime(), 0) + rand.N(timeout/8+1)) // spread over the sessions of a backend
}

// silenceDuration returns the time since the last octet on the lease in either direction.
func (u *upstreamSide) silenceDuration() time.Duration {
	return relay.Elapsed(u.backend.hub.shared.Clock.Now(), u.LastByteTick())
}

// canDrop reports whether all outstanding commands may be resent elsewhere, and
// have not been before for this reason. A command that the backend has received only in
// part may be resent too.
func (u *upstreamSide) canDrop(idle *idleState) bool {
	all := u.outstanding.all()
	for i, e := range all {
		partial := u.commandPartial && i == len(all)-1
		if e.upstreamDropped || (!e.retryable || e.spec.Writes) && !partial {
			return false
		}
	}
	return len(all) > 0 || idle != nil && idle.upstreamTag != ""
}
