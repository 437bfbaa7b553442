package mux

import (
	"bytes"
	"context"
	"sync/atomic"
	"time"

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
	responsePartial bool          // the client has received the beginning of a response, but not its end
	discardingInput bool          // the rest of the current command is discarded
	wasParked       bool          // has been parked at least once
	badCommands     uint8         // consecutive invalid commands, at most maxBadCommands+1
	commandCount    atomic.Uint32 // commands so far; 32 bits fill a gap, 64 bits would enlarge each session

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

func (c *clientSide) send(b []byte) error {
	_, err := c.Write(b)
	return c.wrapError(err)
}

// reply writes a response of the gateway to the client.
func (c *clientSide) reply(text ...string) error {
	c.outBuf = c.outBuf[:0]
	for _, t := range text {
		c.outBuf = append(c.outBuf, t...)
	}
	c.records.finish(c.outBuf[bytes.LastIndexByte(c.outBuf, '\n')+1:]) // no-op if this is not a tagged response
	return c.send(append(c.outBuf, "\r\n"...))
}

// replyTagged is reply with the tag of the current command.
func (c *clientSide) replyTagged(text string) error { return c.reply(string(c.request.tag), " ", text) }

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

// Quota is a user's quota, shared by the user's sessions. Command, Read and Written
// return how long to wait before the session may continue.
type Quota interface {
	Command() time.Duration
	Read(n int) time.Duration                 // bytes from the client
	Written(n int) time.Duration              // bytes to the client
	Upload(ctx context.Context, n int64) bool // reports whether a message of n bytes fits, and counts it if so
	ForceUpload(n int64)                      // counts a message that cannot be refused
}

// throttle applies the user's quota to a session.
type throttle struct {
	Quota
	read, written int64 // bytes already reported to the quota
}

// throttleStep is the interval at which a throttled session checks for a stop request.
const throttleStep = 100 * time.Millisecond

// throttleBytes waits as long as the quota demands for the bytes relayed since the last
// call. Neither side is read in that time, so TCP slows both down.
func (c *clientSide) throttleBytes() {
	t := c.throttle
	if t == nil {
		return
	}
	in, out := c.ByteCounts()
	wait := max(t.Read(int(in-t.read)), t.Written(int(out-t.written)))
	t.read, t.written = in, out
	c.sleepThrottled(wait)
}

// throttleCommand waits as long as the quota demands before one more command.
func (c *clientSide) throttleCommand() {
	if c.throttle != nil {
		c.sleepThrottled(c.throttle.Command())
	}
}

func (c *clientSide) sleepThrottled(wait time.Duration) {
	for ; wait > 0 && c.stopReason.Load() == nil; wait -= throttleStep {
		time.Sleep(min(wait, throttleStep))
	}
}

const refusalOverQuota = " NO [OVERQUOTA] Upload limit of the day is reached."

// mayUpload reports whether the quota has room for the first message of a command. Later
// messages cannot be refused any more and are only counted.
func (c *clientSide) mayUpload(ctx context.Context, seg imap.Segment) bool {
	return c.throttle == nil || seg.Literal.Size <= 0 || c.throttle.Upload(ctx, seg.Literal.Size)
}

// countUpload counts a later message of a command.
func (c *clientSide) countUpload(seg imap.Segment) {
	if c.throttle != nil && seg.Kind == imap.LineEnd && seg.Literal.Size > 0 {
		c.throttle.ForceUpload(seg.Literal.Size)
	}
}

// readThrottles returns the session's throttles, for the splice that takes it over.
func (c *clientSide) readThrottles() (client, backend func(n int) time.Duration) {
	if c.throttle == nil {
		return nil, nil
	}
	return c.throttle.Read, c.throttle.Written
}
