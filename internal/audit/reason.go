package audit

// Reason says why a login was refused or a connection ended. The constants
// below are all there are.
type Reason string

// Reasons to refuse a login.
const (
	BadName          Reason = "bad_name"                   // a name no account can have
	BadCredentials   Reason = "bad_credentials"            // unknown user or wrong password: also here they are one
	UserBlocked      Reason = "user_blocked"               // state blocked
	UserPaused       Reason = "user_paused"                // state paused: to be tried again
	NoRoute          Reason = "no_route"                   // nowhere to go
	Cleartext        Reason = "cleartext"                  // before TLS
	BadMechanism     Reason = "bad_mechanism"              // not offered
	BadExchange      Reason = "bad_exchange"               // SASL data that cannot be right, or cancelled
	ProvedAndLeft    Reason = "client_aborted_after_proof" // the proof was right, and the client broke off when it was told
	NotAuthorized    Reason = "not_authorized"             // authenticated, but not for the name asked for
	NothingToShow    Reason = "no_password"                // authenticated without one, and the backend wants to see it
	RoutesAway       Reason = "routing_unavailable"        // Redis away, and no cached answer
	AuthAway         Reason = "auth_unavailable"           // the source of passwords is away
	BackendDown      Reason = "backend_down"               // no connection
	BackendTLS       Reason = "backend_tls"                // not verified, or no TLS where it must be
	BackendTimeout   Reason = "backend_timeout"            // no answer in time
	BackendProtocol  Reason = "backend_protocol"           // what it said is not IMAP, or not allowed there
	BackendRefused   Reason = "backend_refused"            // it refused good credentials, with a code of its own
	ForwardingLoop   Reason = "forwarding_loop"            // the hop limit
	Overload         Reason = "overload"                   // one of our bounds
	LimitReached     Reason = "limit_reached"              // one of the user's or address's limits
	AuditAway        Reason = "audit_unavailable"          // this log cannot be written
	ClientWentAway   Reason = "client_aborted"             // while we were at it
	GatewayStopping  Reason = "shutdown"                   // we are going down
	InternalMistake  Reason = "internal"                   // our own mistake
	IdentityMismatch Reason = "identity_violation"         // the upstream was not this user's: never to happen
)

// Reasons for the end of a connection, before or after the login. Shutdown,
// overload, limit_reached, backend_protocol, internal and identity_violation of
// above are among them.
const (
	ClientLogout      Reason = "client_logout"
	ClientClosed      Reason = "client_closed"
	ClientLost        Reason = "client_error"    // reset, time-out or TLS fault
	ClientProtocol    Reason = "client_protocol" // after the login, where commands are framed
	BackendClosed     Reason = "backend_closed"
	BackendLost       Reason = "backend_lost"
	Idle              Reason = "idle"
	ClientStalled     Reason = "client_stalled" // did not read what it asked for
	BackendStalled    Reason = "backend_stalled"
	Drained           Reason = "drained"       // its grace period was over
	Kicked            Reason = "kicked"        // by the operator
	Moved             Reason = "moved"         // the user's backend changed, also while a login was under way
	LoginChanged      Reason = "login_changed" // the user's login name at the backend changed
	TokenExpired      Reason = "token_expired" // the token that opened it has ended
	PreauthTimeout    Reason = "preauth_timeout"
	HandshakeTimeout  Reason = "tls_timeout"
	HandshakeFailed   Reason = "tls_failed"
	WrongALPN         Reason = "wrong_alpn"
	StartTLSInjection Reason = "starttls_injection" // bytes behind STARTTLS
	BadProxyHeader    Reason = "bad_proxy_header"   // malformed, missing or late
	LineTooLong       Reason = "line_too_long"
	LiteralTooBig     Reason = "literal_too_big"
	WrongProtocol     Reason = "wrong_protocol" // HTTP and other strangers
	BadCommands       Reason = "bad_commands"   // too many
	LoginAttempts     Reason = "login_attempts" // too many
	TooMany           Reason = "too_many_connections"
)

// Reasons for the end of a session that could have outlived its upstream.
const (
	MailboxGone      Reason = "mailbox_gone"         // the selected mailbox was deleted, or is not this user's any more
	MailboxChanged   Reason = "mailbox_changed"      // another has its name: UIDVALIDITY or MAILBOXID
	MailboxTooLarge  Reason = "mailbox_too_large"    // what changed is not known, and there is too much to tell all of it
	ViewInconsistent Reason = "view_inconsistent"    // it cannot have become what it is
	UpstreamLost     Reason = "upstream_lost"        // amid a response, or with the outcome of a command unknown
	UpstreamAway     Reason = "upstream_unavailable" // none to be had in time
	LoginRevoked     Reason = "login_revoked"        // the backend does not accept the login any more
)

// reasons is every Reason with what the client of a refused login was told in
// kind: refused (try another password) or unavailable (try again later).
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

// ended stands in for a result with the reasons that end a connection only.
const ended = "ended"

// result is the kind of answer a refused login got.
func (r Reason) result() string {
	if kind := reasons[r]; kind == unavailable {
		return unavailable
	}
	return refused
}

// Known says whether r is one of the constants.
func (r Reason) Known() bool { _, known := reasons[r]; return known }
