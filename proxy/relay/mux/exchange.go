package mux

import (
	"math/rand/v2"
	"time"

	"imapgate/internal/event"
	"imapgate/proxy/relay"
	"imapgate/proxy/relay/mux/lease"
	"imapgate/proxy/relay/mux/mailbox"
)

// exchange is a client, its mailbox and its upstream, and what passes between them: it
// relays commands and responses, and sends commands of the gateway. Its methods return a
// loss of the upstream as an error; those of session recover from it.
type exchange struct {
	// Set once.
	hub      *Hub
	live     *relay.Session
	onWake   func() // session.wake
	isResume bool   // the mode is Resume

	// Owned by the session's goroutine.
	client      clientSide
	upstream    upstreamSide
	mailbox     *mailbox.Mailbox // nil: none selected
	board       statusBoard
	published   statusWord    // the last one of board
	metricState event.State   // state under which the session is counted
	wakeTimer   *time.Timer   // calls onWake; nil: never scheduled
	wakeAt      time.Duration // hub uptime at which wakeTimer fires, or has fired
}

// bindUpstream makes conn the session's lease.
func (x *exchange) bindUpstream(conn *lease.Conn) {
	x.upstream.Conn, x.upstream.since = conn, x.hub.uptime()
	x.upstream.wire.Store(&conn.Conn)
	x.live.SetLocation(x.upstream.backend.name, conn.Hold().Address(), x.upstream.account.LoginName())
	if x.client.aborted.Load() { // the abort happened during the acquire
		conn.Abort()
	}
}

// unbindUpstream removes the session's lease and returns it to the caller.
func (x *exchange) unbindUpstream() *lease.Conn {
	conn := x.upstream.Conn
	x.upstream.Conn, x.upstream.attached, x.upstream.tainted, x.upstream.literalDeclined = nil, false, false, false
	x.upstream.since = x.hub.uptime()
	x.upstream.wire.Store(nil)
	x.hub.poller.Disarm(&conn.ParkWaiter)
	x.updateStateMetric()
	return conn
}

// allocateWork allocates what only an active session has.
func (x *exchange) allocateWork() {
	work := new(struct {
		client   clientWork
		upstream upstreamWork
	})
	x.client.clientWork, x.upstream.upstreamWork = &work.client, &work.upstream
	work.client.records = recorder{hub: x.hub, client: x.client.audit, user: x.upstream.account.User(), backend: x.upstream.backend.name}
}

// releaseBuffers releases the buffers that a parked session does not need.
func (x *exchange) releaseBuffers() {
	x.client.ReleaseBuffers()
	if x.upstream.Conn != nil {
		x.upstream.ReleaseBuffers()
	}
	x.client.commandBuf, x.client.outBuf = nil, nil
	if !x.client.wasParked { // TLS and the login leave the most garbage
		x.client.wasParked = true
		x.live.CountParked(2)
	}
	x.upstream.outstanding.releaseBuffers()
	if x.mailbox != nil {
		x.mailbox.Compact()
	}
}

// scheduleWake schedules a wake after d and up to a second more, unless an earlier one is
// scheduled. So the sessions that lose their upstreams together wake one by one.
func (x *exchange) scheduleWake(d time.Duration) {
	now := x.hub.uptime()
	d += rand.N(time.Second)
	if x.wakeAt > now && x.wakeAt <= now+d {
		return
	}
	x.wakeAt = now + d
	if x.wakeTimer == nil {
		x.wakeTimer = time.AfterFunc(d, x.onWake)
		return
	}
	x.wakeTimer.Reset(d)
}

// updateStateMetric updates the metric of session states.
func (x *exchange) updateStateMetric() {
	switch {
	case x.client.idle != nil:
		x.setStateMetric(event.StateIdle)
	case x.mailbox == nil:
		x.setStateMetric(event.StateUnselected)
	case x.upstream.attached:
		x.setStateMetric(event.StateAttached)
	default:
		x.setStateMetric(event.StateDetached)
	}
}

func (x *exchange) setStateMetric(state event.State) {
	if state != x.metricState {
		x.hub.deps.Metrics.Mux.ChangeState(x.metricState, state)
		x.metricState = state
	}
}
