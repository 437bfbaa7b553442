package mux

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"imapgate/internal/event"
	"imapgate/proxy/relay/mux/command"
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
	moved                bool // the next lease is the first at another backend

	wire atomic.Pointer[wire.Conn] // the lease's, for the clock
}

// upstreamWork is the part of an upstreamSide that is allocated only while the session is
// active.
type upstreamWork struct {
	outstanding      outstandingQueue // commands sent on the lease
	silenceCheckedAt time.Duration    // hub uptime of the last silence check
}

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

// Bounds of the outstanding commands. If more were sent than the kernels on the way can
// buffer, both sides would block on writing. So few commands are sent ahead.
const (
	maxOutstandingCommands = 32
	maxOutstandingBytes    = 32 << 10 // bytes, except for a single command
)

// outstandingQueue holds the commands sent but not yet answered, in order, with their
// bytes. They are resent after the loss of the upstream.
type outstandingQueue struct {
	commands      []outstandingCommand
	answeredCount int // number of answered commands at the front
	buf           []byte
}

// outstandingCommand is one command. Its bytes are outstandingQueue.buf[start:end].
type outstandingCommand struct {
	spec            *command.Spec
	start, end      int
	tagLen          int                   // bytes of the tag
	retryable       bool                  // harmless to repeat
	expungePolicy   command.ExpungePolicy // expunges permitted while it runs
	isSyncPoint     bool                  // the answer implies that the client has received all changes
	closesMailbox   bool                  // answered OK, it closes the mailbox
	selectsMailbox  bool                  // a SELECT; if it is answered before its literal is requested, it leaves the mailbox
	nonSync         bool                  // the literal was sent without a continuation request
	withoutMailbox  bool                  // possible without the mailbox while expunges are pending
	upstreamDropped bool                  // a silent connection was dropped while it was outstanding
	pinReason       event.PinReason       // reason to pin the session after the answer, unless it is BAD
}

func (o *outstandingQueue) isEmpty() bool { return o.answeredCount == len(o.commands) }

func (o *outstandingQueue) isFull() bool {
	return len(o.commands)-o.answeredCount >= maxOutstandingCommands || len(o.buf) >= maxOutstandingBytes
}

// add appends a command that is about to be sent.
func (o *outstandingQueue) add(e outstandingCommand, raw []byte) {
	e.start = len(o.buf)
	o.buf = append(o.buf, raw...)
	e.end = len(o.buf)
	o.commands = append(o.commands, e)
}

// addFrom appends the outstanding commands of other from index i.
func (o *outstandingQueue) addFrom(other *outstandingQueue, i int) {
	for _, e := range other.all()[i:] {
		o.add(e, other.raw(e))
	}
}

func (o *outstandingQueue) all() []outstandingCommand { return o.commands[o.answeredCount:] }

// raw returns the bytes of a command, and tagOf its tag.
func (o *outstandingQueue) raw(e outstandingCommand) []byte { return o.buf[e.start:e.end] }
func (o *outstandingQueue) tagOf(e outstandingCommand) []byte {
	return o.buf[e.start : e.start+e.tagLen]
}

// takeAnswered removes and returns the command that line, "TAG …", answers. With equal
// tags it is the first one, as at every known server.
func (o *outstandingQueue) takeAnswered(line []byte) (outstandingCommand, bool) {
	for i := o.answeredCount; i < len(o.commands); i++ {
		e := o.commands[i]
		tag := o.tagOf(e)
		if len(line) <= len(tag) || line[len(tag)] != ' ' || string(line[:len(tag)]) != string(tag) {
			continue
		}
		copy(o.commands[o.answeredCount+1:i+1], o.commands[o.answeredCount:i])
		if o.answeredCount++; o.isEmpty() {
			o.clear()
		}
		return e, true
	}
	return outstandingCommand{}, false
}

func (o *outstandingQueue) hasTag(tag []byte) bool {
	return slices.ContainsFunc(o.all(), func(e outstandingCommand) bool { return bytes.Equal(o.tagOf(e), tag) })
}

func (o *outstandingQueue) clear() { o.commands, o.buf, o.answeredCount = o.commands[:0], o.buf[:0], 0 }

func (o *outstandingQueue) releaseBuffers() {
	if o.isEmpty() {
		*o = outstandingQueue{}
	}
}
