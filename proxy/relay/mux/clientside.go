package mux

import (
	"sync/atomic"

	"imapgate/internal/audit"
	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/proxy/relay"
	"imapgate/proxy/relay/mux/command"
	"imapgate/proxy/relay/mux/wire"
)

// clientSide is the client's side of a session: its connection, the command being read,
// and what it is to receive. Its methods do not use the upstream.
type clientSide struct {
	wire.Conn

	// Set once.
	audit       *audit.Client
	offeredCaps imap.Caps // capabilities offered to the client

	// Owned by the session's goroutine.
	*clientWork                // nil while the session is parked with nothing outstanding
	throttle        *throttle  // nil: unlimited
	idle            *idleState // nil: not in IDLE
	enabled         imap.Extensions
	responsePartial bool   // the client has received the beginning of a response, but not its end
	discardingInput bool   // the rest of the current command is discarded
	wasParked       bool   // has been parked at least once
	badCommands     uint8  // consecutive invalid commands, at most maxBadCommands+1
	commandCount    uint32 // commands so far; 32 bits fill a gap, 64 bits would enlarge each session

	stopReason atomic.Pointer[event.Reason] // nil: no stop requested
	aborted    atomic.Bool                  // abort was called
}

// clientWork is the part of a clientSide that is allocated only while the session is
// active.
type clientWork struct {
	request       request
	expungePolicy command.ExpungePolicy // the current command's, until it is sent
	commandBuf    []byte                // a command with literals
	deferred      []byte                // a delayed final response, and the output after it; nil: none
	outBuf        []byte                // the gateway's own responses
	records       recorder
}

// send writes to the client.
func (c *clientSide) send(b []byte) error {
	_, err := c.Write(b)
	return c.wrapError(err)
}

// writeOutBuf writes and empties outBuf.
func (c *clientSide) writeOutBuf() error {
	if len(c.outBuf) == 0 {
		return nil
	}
	err := c.send(c.outBuf)
	c.outBuf = c.outBuf[:0]
	return err
}

// forwardAlert relays a response with an ALERT, which must reach a person, and drops
// others.
func (c *clientSide) forwardAlert(response []byte) error {
	if !imap.IsAlert(response) {
		return nil
	}
	return c.forwardResponses(response)
}

// forwardResponses writes complete responses to the client, or appends them to deferred.
func (c *clientSide) forwardResponses(responses []byte) error {
	if len(responses) == 0 {
		return nil
	}
	if c.deferred != nil {
		c.deferred = append(c.deferred, responses...)
		return nil
	}
	return c.send(responses)
}

// readSegment reads the next segment of a command. A LinePart belongs to a line
// that is too long.
func (c *clientSide) readSegment() (imap.Segment, error) {
	for {
		seg, ok, err := c.NextBuffered()
		if err != nil {
			return seg, &relay.CloseError{Reason: event.ClientProtocol, Bye: byeProtocol, Err: err}
		}
		if ok {
			return seg, nil
		}
		c.throttleBytes()
		if err := c.ReadMore(); err != nil {
			return seg, c.wrapError(err)
		}
	}
}
