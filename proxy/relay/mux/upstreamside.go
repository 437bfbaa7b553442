package mux

import (
	"errors"
	"strings"
	"sync/atomic"
	"time"

	"imapgate/internal/event"
	"imapgate/proxy/relay/mux/lease"
	"imapgate/proxy/relay/mux/pool"
	"imapgate/proxy/relay/mux/wire"
)

// upstreamSide is the backend's side of a session: the lease, and what was sent on it. Its
// methods do not use the client.
type upstreamSide struct {
	// Owned by the session's goroutine.
	backend              *backend // it and account change when the session moves
	account              *pool.Account
	*lease.Conn                        // nil: no lease
	*upstreamWork                      // nil while the session is parked with nothing outstanding
	loginFromRoute       bool          // Client.LoginFromRoute; set once
	attached             bool          // the mailbox is selected on the lease, in sync with the client's view
	awaitingContinuation bool          // a continuation request is expected
	commandPartial       bool          // the lease has received the beginning of a command, but not its end
	literalDeclined      bool          // the backend answered a command without taking its literal, and has sent nothing since
	tainted              bool          // responses may be caused by the client's own octets
	hadMailbox           bool          // the lease had a mailbox selected before the current SELECT
	disposition          disposition   // of the current response
	previousLost         bool          // the last upstream was lost, not released
	violationCounted     bool          // a violation of this session has been counted
	retries              uint8         // losses since the last answer, at most maxRetries+1
	since                time.Duration // hub uptime at the attach or at the loss
	pinReason            event.PinReason
	mayMove              bool // Move or Pause has released the lease, and the next one may be at another backend

	wire atomic.Pointer[wire.Conn] // the lease's, for the clock
}

// upstreamWork is the part of an upstreamSide that is allocated only while the session is
// active.
type upstreamWork struct {
	outstanding      outstandingQueue // commands sent on the lease
	silenceCheckedAt time.Duration    // hub uptime of the last silence check
}

// send writes to the lease.
func (u *upstreamSide) send(b []byte) error {
	_, err := u.Write(b)
	return wrapLost(err)
}

// read reads from the backend, and returns nil if nothing arrives soon.
func (u *upstreamSide) read() error {
	err := u.AwaitInput()
	if errors.Is(err, wire.ErrIdle) {
		return nil
	}
	return wrapLost(err)
}

// avoidTagPrefix ensures that the gateway's tags do not share a prefix with the client's.
func (u *upstreamSide) avoidTagPrefix(tag []byte) {
	if strings.HasPrefix(string(tag), u.TagPrefix()) {
		u.ChangeTagPrefix()
	}
}
