package mux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"syscall"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/audit"
	"imapgate/internal/imap"
	"imapgate/internal/metrics"
	"imapgate/internal/quiet"
	"imapgate/proxy/mux/wire"
	"imapgate/proxy/upstream"
)

// What ends a goroutine without ending the session.
var (
	errAsleep   = errors.New("asleep")
	errHandedOn = errors.New("handed on")
)

// ending ends a session: why, and the words of the BYE, "" for none.
type ending struct {
	reason audit.Reason
	bye    string
	err    error
}

func (e *ending) Error() string {
	if e.err != nil {
		return string(e.reason) + ": " + e.err.Error()
	}
	return string(e.reason)
}

func (e *ending) Unwrap() error { return e.err }

// The words of a BYE. Constant: nothing that failed inside shows.
const (
	byeLost     = "[UNAVAILABLE] Connection to mail store lost."
	byeAway     = "[UNAVAILABLE] Mail store is away, please reconnect."
	byeGone     = "Mailbox has been deleted."
	byeChanged  = "Mailbox has changed its identity, please reconnect."
	byeMoved    = "[UNAVAILABLE] Mailbox has been moved, please reconnect."
	byeRevoked  = "[UNAVAILABLE] Please log in again."
	byeExpired  = "[EXPIRED] Token has expired, please log in again." // RFC 5530
	byeProtocol = "Too many or too long lines that are no commands."
)

// orderedEnd is the end that somebody else has ordered.
func orderedEnd(why audit.Reason) *ending {
	switch why {
	case audit.Idle:
		return &ending{why, "Disconnected for inactivity.", nil}
	case audit.Kicked:
		return &ending{why, "[UNAVAILABLE] Disconnected by the operator.", nil}
	case audit.TokenExpired:
		return &ending{why, byeExpired, nil}
	}
	return &ending{why, "[UNAVAILABLE] Server is going down.", nil}
}

// clientLost is the end of a session whose client failed; nil stays nil.
func (s *session) clientLost(err error) error {
	switch {
	case err == nil:
		return nil
	case s.order.Load() != nil:
		return &ending{reason: *s.order.Load(), err: err}
	case errors.Is(err, wire.ErrStalled):
		return &ending{reason: audit.ClientStalled, err: err}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return &ending{reason: audit.ClientClosed}
	}
	return &ending{reason: audit.ClientLost, err: err}
}

// say writes an answer of our own to the client.
func (s *session) say(text ...string) error {
	s.out = s.out[:0]
	for _, t := range text {
		s.out = append(s.out, t...)
	}
	s.closes(s.out[bytes.LastIndexByte(s.out, '\n')+1:]) // if that is an answer
	_, err := s.client.Write(append(s.out, "\r\n"...))
	return s.clientLost(err)
}

// answer is say with the tag of the command in hand.
func (s *session) answer(text string) error { return s.say(string(s.request.tag), " ", text) }

// Time for last words.
const (
	lastWords = time.Second
	leaveTime = time.Minute // for commands that a client has left behind, or that a session's end waits for
)

// end is the one end of a session, seen from its own goroutine.
func (s *session) end(err error) {
	e := (*ending)(nil)
	if !errors.As(err, &e) {
		e = &ending{reason: audit.InternalMistake, err: err}
	}
	s.cutsAll()
	if s.idling != nil {
		s.idling.leaveTurn()
	}
	if e.reason == audit.ClientLogout { // it has its answer, and another may wait for the connection
		s.leaveUpstream(e)
	}
	s.hangUp(e)
	s.leaveUpstream(e)
	s.account.Close()
	s.forgotten()
	s.move("")
	if e.bye != "" {
		s.hub.rooms.Metrics.Mux.ByeSaid(string(e.reason))
	}
	up, down := s.client.Counts()
	s.ended(Result{Reason: e.reason, Err: e.err, Up: up, Down: down, Commands: uint64(s.spoken)})
}

// forgotten takes the session off every list.
func (s *session) forgotten() {
	h := s.hub
	s.mu.Lock()
	s.over, s.running = true, false
	s.mu.Unlock()
	h.asleep.Forget(&s.client.Sleeper)
	h.remove(s)
	s.report()
}

// remove takes a session off the Hub's lists, if it is there.
func (h *Hub) remove(s *session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, there := h.sessions[s]; !there {
		return
	}
	delete(h.sessions, s)
	s.backend.live.Add(-1)
	delete(h.awake, s)
	delete(h.until, s)
	h.wg.Done()
}

// hangUp closes the client's connection within lastWords, whatever it does. A
// client that has the beginning of a response gets nothing more: anything else
// would become part of a message.
func (s *session) hangUp(e *ending) {
	if s.partial {
		s.client.Cut()
		_ = s.client.Close()
		return
	}
	cut := time.AfterFunc(lastWords, s.client.Cut)
	defer cut.Stop()
	if e.bye != "" {
		_, _ = s.client.Write([]byte("* BYE " + e.bye + "\r\n")) // it may be gone
	}
	if e.bye != "" || e.reason == audit.ClientLogout {
		quiet.Linger(s.client.Conn())
	}
	_ = s.client.Close()
}

// leaveUpstream gives the lease back where it is as good as new. Commands that
// must not be done by half are left to finish first.
func (s *session) leaveUpstream(e *ending) {
	if s.up == nil {
		return
	}
	unfinished := !s.sent.empty() || s.idling != nil || s.cutShort
	if unfinished && !s.cutShort && s.mustFinish() {
		s.finish()
	}
	if unfinished || e.reason == audit.InternalMistake {
		s.account.Destroy(s.give(), metrics.DiscardOutstanding)
		return
	}
	s.giveBack()
}

// giveBack returns the lease to those that wait, if it is in no state that the
// next session would find out about.
func (s *session) giveBack() {
	spoiled := s.pinning != "" || s.doubtful || s.box != nil && s.box.spoiled
	switch up := s.give(); {
	case spoiled:
		s.account.Destroy(up, metrics.DiscardPinned)
	case up.Spoiled || s.plus || s.cutShort || !s.sent.empty() || !up.Between():
		s.account.Destroy(up, metrics.DiscardOutstanding)
	default:
		s.account.Return(up)
	}
}

// mustFinish says whether one of the outstanding commands was sent whole and is
// better not cut short.
func (s *session) mustFinish() bool {
	for _, e := range s.sent.all() {
		if !e.retry {
			return true
		}
	}
	return false
}

// finish reads the answers that nobody waits for any more.
func (s *session) finish() {
	s.up.Limit(time.Now().Add(leaveTime))
	for !s.sent.empty() {
		fresh := s.up.Between()
		seg, err := s.up.Next()
		if err != nil {
			return
		}
		if fresh {
			s.sent.answered(seg.Bytes)
		}
	}
}

// recoverFault ends a session in which we broke down, and nobody else's.
func (s *session) recoverFault() {
	fault := recover()
	if fault == nil {
		return
	}
	s.hub.rooms.Log.Error("panic recovered", zap.String("session", s.who.Session), zap.String("fault", fmt.Sprintf("%T", fault)),
		zap.ByteString("stack", debug.Stack()))
	defer func() {
		if again := recover(); again != nil { // in the end itself: what is left of it is this session's alone
			s.hub.remove(s)
			s.hub.rooms.Log.Error("fault in an end", zap.String("session", s.who.Session), zap.ByteString("stack", debug.Stack()))
		}
	}()
	s.client.Cut()
	s.partial = true // whatever it has, nothing may follow
	s.end(&ending{reason: audit.InternalMistake})
}

// lostError is the loss of the upstream.
type lostError struct{ err error }

func (e *lostError) Error() string { return "upstream: " + e.err.Error() }
func (e *lostError) Unwrap() error { return e.err }

// upstreamLost makes a loss of an error on the lease; nil stays nil.
func (s *session) upstreamLost(err error) error {
	if err == nil {
		return nil
	}
	return &lostError{err}
}

// errBye is a loss that the backend has announced.
var errBye = errors.New("backend says goodbye")

// goodbye is the loss that a backend announces with line, "* BYE …". Of its words the
// error has what Describe lets through.
func (s *session) goodbye(line []byte) error {
	res, _ := imap.ParseResponse(bytes.TrimSuffix(line, []byte("\r\n"))) // malformed, it is a BYE without a text
	return s.upstreamLost(fmt.Errorf("%w: %s", errBye, upstream.Describe(res)))
}

// lostHow is how the audit log calls a loss.
func lostHow(err error) audit.Why {
	switch {
	case errors.Is(err, errBye):
		return audit.LostBye
	case errors.Is(err, wire.ErrStalled), errors.Is(err, errSilent), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return audit.LostTimeout
	case errors.Is(err, errProtocol):
		return audit.LostProtocol
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return audit.LostClosed
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return audit.LostReset
	}
	return audit.LostReset
}

// asLost finds the loss in an error. The end of a session is none, whatever it
// came from.
func asLost(err error) (*lostError, bool) {
	if e := (*ending)(nil); errors.As(err, &e) {
		return nil, false
	}
	lost := (*lostError)(nil)
	ok := errors.As(err, &lost)
	return lost, ok
}
