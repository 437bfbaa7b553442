package audit

import (
	"time"

	"imapgate/internal/identity"
)

// MuxEvent is what happened to a session that may outlive its upstream.
type MuxEvent struct {
	User     identity.User
	Backend  string
	Mailbox  string // the selected one; the client's bytes
	Reason   Why
	Result   Result // of an attach
	Expunged uint32 // by an attach: messages the client did not know to be gone
	Arrived  uint32 // by an attach: messages the client did not know to be there
	Duration time.Duration
}

// Why says what an attach, a loss or a pin came from. The constants below are
// all there are; another value shows as other.
type Why string

// Why a session was given an upstream anew.
const (
	AfterLoss   Why = "lost"   // its upstream was lost
	AfterHold   Why = "hold"   // as before, and a command waited for the backend
	AfterDetach Why = "detach" // it had given its upstream up
)

// How an upstream was lost.
const (
	LostClosed   Why = "closed"   // the backend hung up
	LostReset    Why = "reset"    // reset or TLS fault
	LostBye      Why = "bye"      // the backend said BYE
	LostTimeout  Why = "timeout"  // it took or gave nothing for too long
	LostProtocol Why = "protocol" // it said what is not IMAP
)

// Why a session is pinned to its upstream.
const (
	PinNotify       Why = "notify"          // RFC 5465
	PinContext      Why = "context"         // RFC 5267: the backend updates a search
	PinSavedSearch  Why = "saved_search"    // RFC 5182: $ is of the connection
	PinLanguage     Why = "language"        // RFC 5255
	PinAnnotate     Why = "annotate"        // RFC 5257
	PinUnknown      Why = "unknown_command" // what it changes cannot be known
	PinUIDNotSticky Why = "uidnotsticky"    // the mailbox has no UIDs that last
	PinSelectBad    Why = "select_bad"      // SELECT answered BAD: what is selected is not known
	PinViolation    Why = "violation"       // the backend broke an invariant
	PinSyntax       Why = "syntax"          // a command that could not be understood
	PinResponse     Why = "response"        // a response that could not be followed
)

// Result is how an attach ended. The constants below are all there are;
// another value shows as other.
type Result string

// Results of an attach.
const (
	AttachOK           Result = "ok"
	AttachInconsistent Result = "inconsistent" // the mailbox cannot have become what it is
	AttachGone         Result = "gone"         // there is no such mailbox any more, or it is not this user's
	AttachChanged      Result = "changed"      // another mailbox has its name: UIDVALIDITY or MAILBOXID
	AttachTooLarge     Result = "too_large"    // for telling all flags again
	AttachRefused      Result = "refused"      // the login
	AttachLimit        Result = "limit"        // no connection left
	AttachTimeout      Result = "timeout"
	AttachUnavailable  Result = "unavailable" // the backend, for now
	AttachLost         Result = "lost"        // the new upstream, too
	AttachCanceled     Result = "canceled"    // the client went away, or we are going down
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

// Known says whether w is one of the constants.
func (w Why) Known() bool { return whys[w] }

// Known says whether r is one of the constants.
func (r Result) Known() bool { return results[r] }

// SessionReattached records that a session was given an upstream anew, or in vain.
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

// UpstreamLost records that a session lost its upstream and goes on. Took is
// how long it had it.
func (l *Log) UpstreamLost(c *Client, m *MuxEvent) error {
	return l.appendRecord(recordMeta{eventType: upstreamLost}, func(b []byte) []byte {
		return appendDuration(m.appendTo(c.appendTo(b)), m.Duration)
	})
}

// SessionPinned records that a session will not outlive its upstream, and why.
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
