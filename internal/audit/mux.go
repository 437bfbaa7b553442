package audit

import (
	"time"

	"imapgate/internal/identity"
)

// MuxEvent is an event of a session that may outlive its upstream.
type MuxEvent struct {
	User     identity.User
	Backend  string
	Mailbox  string // the selected mailbox; in the client's bytes
	Reason   Why
	Result   Result // of a reattach
	Expunged uint32 // by a reattach: expunged messages that the client did not know of
	Arrived  uint32 // by a reattach: new messages that the client did not know of
	Duration time.Duration
}

// Why is the reason of a reattach, a loss or a pin. Other values than the constants
// below are recorded as other.
type Why string

// Reasons to reattach a session.
const (
	AfterLoss   Why = "lost"   // its upstream was lost
	AfterHold   Why = "hold"   // as above, and a command waited for the backend
	AfterDetach Why = "detach" // it had released its upstream
)

// How an upstream was lost.
const (
	LostClosed   Why = "closed"   // the backend closed the connection
	LostReset    Why = "reset"    // reset or TLS error
	LostBye      Why = "bye"      // the backend sent BYE
	LostTimeout  Why = "timeout"  // the backend neither read nor sent anything for too long
	LostProtocol Why = "protocol" // the backend sent invalid IMAP
)

// Reasons to pin a session to its upstream.
const (
	PinNotify       Why = "notify"          // RFC 5465
	PinContext      Why = "context"         // RFC 5267: the backend updates a search
	PinSavedSearch  Why = "saved_search"    // RFC 5182: $ belongs to the connection
	PinLanguage     Why = "language"        // RFC 5255
	PinAnnotate     Why = "annotate"        // RFC 5257
	PinUnknown      Why = "unknown_command" // its effects are unknown
	PinUIDNotSticky Why = "uidnotsticky"    // the mailbox has no persistent UIDs
	PinSelectBad    Why = "select_bad"      // SELECT got BAD: the selected mailbox is unknown
	PinViolation    Why = "violation"       // the backend broke an invariant
	PinSyntax       Why = "syntax"          // a command that could not be parsed
	PinResponse     Why = "response"        // a response that could not be processed
)

// Result is the result of a reattach. Other values than the constants below are
// recorded as other.
type Result string

// Results of a reattach.
const (
	AttachOK           Result = "ok"
	AttachInconsistent Result = "inconsistent" // the mailbox changed in an impossible way
	AttachGone         Result = "gone"         // the mailbox no longer exists, or not for this user
	AttachChanged      Result = "changed"      // another mailbox has its name: UIDVALIDITY or MAILBOXID
	AttachTooLarge     Result = "too_large"    // too large to send all flags again
	AttachRefused      Result = "refused"      // the backend refused the login
	AttachLimit        Result = "limit"        // no connection left
	AttachTimeout      Result = "timeout"
	AttachUnavailable  Result = "unavailable" // the backend is unavailable
	AttachLost         Result = "lost"        // the new upstream was lost too
	AttachCanceled     Result = "canceled"    // the client disconnected, or the gateway is shutting down
)

// Constant tables: every Why and every Result.
var (
	whys = map[Why]bool{
		AfterLoss: true, AfterHold: true, AfterDetach: true, LostClosed: true, LostReset: true, LostBye: true,
		LostTimeout: true, LostProtocol: true, PinNotify: true, PinContext: true, PinSavedSearch: true,
		PinLanguage: true, PinAnnotate: true, PinUnknown: true, PinUIDNotSticky: true,
		PinSelectBad: true, PinViolation: true, PinSyntax: true, PinResponse: true,
	}
	results = map[Result]bool{
		AttachOK: true, AttachInconsistent: true, AttachGone: true, AttachChanged: true, AttachTooLarge: true,
		AttachRefused: true, AttachLimit: true, AttachTimeout: true, AttachUnavailable: true, AttachLost: true, AttachCanceled: true,
	}
)

// Known reports whether w is one of the constants.
func (w Why) Known() bool { return whys[w] }

// Known reports whether r is one of the constants.
func (r Result) Known() bool { return results[r] }

// SessionReattached records that a session was reattached, or that reattaching
// failed.
func (l *Log) SessionReattached(c *Client, m *MuxEvent) error {
	result := string(m.Result)
	if !m.Result.Known() {
		result = other
	}
	return l.appendRecord(recordMeta{eventType: sessionAttached, result: result}, func(b []byte) []byte {
		b = appendText(m.appendTo(c.appendTo(b)), "result", result, maxNameBytes)
		b = appendCount(b, "expunged", uint64(m.Expunged))
		b = appendCount(b, "arrived", uint64(m.Arrived))
		return appendDuration(b, m.Duration)
	})
}

// UpstreamLost records that a session lost its upstream and continues. Duration is
// the time it was attached.
func (l *Log) UpstreamLost(c *Client, m *MuxEvent) error {
	return l.appendRecord(recordMeta{eventType: upstreamLost}, func(b []byte) []byte {
		return appendDuration(m.appendTo(c.appendTo(b)), m.Duration)
	})
}

// SessionPinned records that a session will end with its upstream, and why.
func (l *Log) SessionPinned(c *Client, m *MuxEvent) error {
	return l.appendRecord(recordMeta{eventType: sessionPinned}, func(b []byte) []byte { return m.appendTo(c.appendTo(b)) })
}

func (m *MuxEvent) appendTo(b []byte) []byte {
	b = appendText(b, "user", m.User.String(), maxUserBytes)
	b = appendText(b, "backend", m.Backend, maxNameBytes)
	b = appendText(b, "mailbox", m.Mailbox, maxTextBytes)
	reason := string(m.Reason)
	if !m.Reason.Known() {
		reason = other
	}
	return appendText(b, "reason", reason, maxNameBytes)
}
