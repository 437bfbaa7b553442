package audit

// Reason is why a login was refused or a connection ended. The constants below are
// the closed set.
type Reason string

// Reasons to refuse a login.
const (
	BadName          Reason = "bad_name"                   // the name is invalid for any account
	BadCredentials   Reason = "bad_credentials"            // unknown user or wrong password; they are not distinguished here either
	UserBlocked      Reason = "user_blocked"               // the route's state is blocked
	UserPaused       Reason = "user_paused"                // the route's state is paused: try again later
	NoRoute          Reason = "no_route"                   // no backend for the user
	Cleartext        Reason = "cleartext"                  // before TLS
	BadMechanism     Reason = "bad_mechanism"              // not offered
	BadExchange      Reason = "bad_exchange"               // invalid SASL data, or cancelled by the client
	ProvedAndLeft    Reason = "client_aborted_after_proof" // the proof was correct, and the client aborted after it received the result
	NotAuthorized    Reason = "not_authorized"             // authenticated, but not for the requested name
	NothingToShow    Reason = "no_password"                // authenticated without a password, which the backend requires
	RoutesAway       Reason = "routing_unavailable"        // Redis is down, and there is no cached route
	AuthAway         Reason = "auth_unavailable"           // the source of passwords is down
	BackendDown      Reason = "backend_down"               // no connection
	BackendTLS       Reason = "backend_tls"                // certificate not verified, or no TLS where it is required
	BackendTimeout   Reason = "backend_timeout"            // no answer in time
	BackendProtocol  Reason = "backend_protocol"           // its answer was invalid IMAP, or not allowed in that state
	BackendRefused   Reason = "backend_refused"            // it refused correct credentials, with its own response code
	ForwardingLoop   Reason = "forwarding_loop"            // the hop limit was reached
	Overload         Reason = "overload"                   // a bound of the gateway was reached
	LimitReached     Reason = "limit_reached"              // a limit of the user or address was reached
	AuditAway        Reason = "audit_unavailable"          // this log cannot be written
	ClientWentAway   Reason = "client_aborted"             // the client disconnected during the login
	GatewayStopping  Reason = "shutdown"                   // the gateway is shutting down
	InternalMistake  Reason = "internal"                   // internal error
	IdentityMismatch Reason = "identity_violation"         // the upstream belonged to another user; must never happen
)

// Reasons for the end of a connection, before or after the login. Of the reasons
// above, shutdown, overload, limit_reached, backend_protocol, internal and
// identity_violation are used here too.
const (
	ClientLogout      Reason = "client_logout"
	ClientClosed      Reason = "client_closed"
	ClientLost        Reason = "client_error"    // reset, timeout or TLS error
	ClientProtocol    Reason = "client_protocol" // after the login, where commands are parsed
	BackendClosed     Reason = "backend_closed"
	BackendLost       Reason = "backend_lost"
	Idle              Reason = "idle"
	ClientStalled     Reason = "client_stalled" // the client did not read its responses
	BackendStalled    Reason = "backend_stalled"
	Drained           Reason = "drained"       // its grace period was over
	Kicked            Reason = "kicked"        // by an operator
	Moved             Reason = "moved"         // the user's backend changed, possibly during a login
	LoginChanged      Reason = "login_changed" // the user's login name at the backend changed
	TokenExpired      Reason = "token_expired" // the token that opened the session has expired
	PreauthTimeout    Reason = "preauth_timeout"
	HandshakeTimeout  Reason = "tls_timeout"
	HandshakeFailed   Reason = "tls_failed"
	WrongALPN         Reason = "wrong_alpn"
	StartTLSInjection Reason = "starttls_injection" // data directly after STARTTLS
	BadProxyHeader    Reason = "bad_proxy_header"   // malformed, missing or late
	LineTooLong       Reason = "line_too_long"
	LiteralTooBig     Reason = "literal_too_big"
	WrongProtocol     Reason = "wrong_protocol" // HTTP or another protocol
	BadCommands       Reason = "bad_commands"   // too many
	LoginAttempts     Reason = "login_attempts" // too many
	TooMany           Reason = "too_many_connections"
)

// Reasons for the end of a session that could have outlived its upstream.
const (
	MailboxGone      Reason = "mailbox_gone"         // the selected mailbox was deleted, or the user lost access
	MailboxChanged   Reason = "mailbox_changed"      // another mailbox has its name: UIDVALIDITY or MAILBOXID
	MailboxTooLarge  Reason = "mailbox_too_large"    // the changes are unknown, and the mailbox is too large to send all flags again
	ViewInconsistent Reason = "view_inconsistent"    // the mailbox changed in an impossible way
	UpstreamLost     Reason = "upstream_lost"        // during a response, or with the outcome of a command unknown
	UpstreamAway     Reason = "upstream_unavailable" // no new upstream in time
	LoginRevoked     Reason = "login_revoked"        // the backend no longer accepts the login
)

// reasons has the result of a refused login for every Reason: refused (try another
// password) or unavailable (try again later). It has ended for reasons that only end
// connections.
var reasons = map[Reason]string{
	BadName: refused, BadCredentials: refused, UserBlocked: refused, NoRoute: refused, Cleartext: refused,
	BadMechanism: refused, BadExchange: refused, ProvedAndLeft: refused, NotAuthorized: refused,
	BackendRefused: refused, LimitReached: refused,
	NothingToShow: unavailable, UserPaused: unavailable, RoutesAway: unavailable, AuthAway: unavailable, BackendDown: unavailable,
	BackendTLS: unavailable, BackendTimeout: unavailable, BackendProtocol: unavailable, ForwardingLoop: unavailable,
	Overload: unavailable, AuditAway: unavailable, ClientWentAway: unavailable, GatewayStopping: unavailable,
	InternalMistake: unavailable, IdentityMismatch: unavailable, Moved: unavailable,
	ClientLogout: ended, ClientClosed: ended, ClientLost: ended, ClientProtocol: ended, BackendClosed: ended,
	BackendLost: ended, Idle: ended, ClientStalled: ended, BackendStalled: ended, Drained: ended, Kicked: ended, LoginChanged: ended,
	TokenExpired:   ended,
	PreauthTimeout: ended, HandshakeTimeout: ended, HandshakeFailed: ended, WrongALPN: ended,
	StartTLSInjection: ended, BadProxyHeader: ended, LineTooLong: ended,
	LiteralTooBig: ended, WrongProtocol: ended, BadCommands: ended, LoginAttempts: ended, TooMany: ended,
	MailboxGone: ended, MailboxChanged: ended, MailboxTooLarge: ended, ViewInconsistent: ended, UpstreamLost: ended,
	UpstreamAway: ended, LoginRevoked: ended,
}

// ended is the value of reasons that only end connections.
const ended = "ended"

// result returns the field result of a login that was refused for r.
func (r Reason) result() string {
	if kind := reasons[r]; kind == unavailable {
		return unavailable
	}
	return refused
}

// Known reports whether r is one of the constants.
func (r Reason) Known() bool { _, known := reasons[r]; return known }
