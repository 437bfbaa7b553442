// Package event has the words of every closed set that operators meet: in audit
// records, as labels of metrics, in the configuration and in the documents.
//
// A word is one row here: a constant with its value and, as a comment, its
// meaning. Words before a colon in the comment are tags, which say where the word
// is used. tables.go is generated from the rows.
package event

// Other replaces a value outside its set.
const Other = "other"

// Reason is why a login was refused or a connection ended.
//
// Its tags: refused and unavailable are the result of a login that is refused for
// it; session marks those that end a session, bye those of which a multiplexed
// session's client is told by BYE.
type Reason string

// Reasons to refuse a login, some of which end connections too.
const (
	BadName                 Reason = "bad_name"                   // refused: the name is invalid for any account
	BadCredentials          Reason = "bad_credentials"            // refused: unknown user or wrong password; they are not distinguished here either
	UserBlocked             Reason = "user_blocked"               // refused: the route's state is blocked
	UserPaused              Reason = "user_paused"                // unavailable: the route's state is paused: try again later
	NoRoute                 Reason = "no_route"                   // refused: no backend for the user
	Cleartext               Reason = "cleartext"                  // refused: before TLS
	BadMechanism            Reason = "bad_mechanism"              // refused: not offered
	BadExchange             Reason = "bad_exchange"               // refused: invalid SASL data, or cancelled by the client
	ClientAbortedAfterProof Reason = "client_aborted_after_proof" // refused: the proof was correct, and the client aborted after it received the result
	NotAuthorized           Reason = "not_authorized"             // refused: authenticated, but not for the requested name
	NoPassword              Reason = "no_password"                // unavailable: authenticated without a password, which the backend requires
	RoutingUnavailable      Reason = "routing_unavailable"        // unavailable: Redis is down, and there is no cached route
	AuthUnavailable         Reason = "auth_unavailable"           // unavailable: the source of passwords is down
	BackendDown             Reason = "backend_down"               // unavailable: no connection
	BackendTLS              Reason = "backend_tls"                // unavailable: certificate not verified, or no TLS where it is required
	BackendTimeout          Reason = "backend_timeout"            // unavailable: no answer in time
	BackendProtocol         Reason = "backend_protocol"           // unavailable session bye: its answer was invalid IMAP, or not allowed in that state
	BackendRefused          Reason = "backend_refused"            // refused: it refused correct credentials, with its own response code
	ForwardingLoop          Reason = "forwarding_loop"            // unavailable: the hop limit was reached
	Overload                Reason = "overload"                   // unavailable session bye: a bound of the gateway was reached
	LimitReached            Reason = "limit_reached"              // refused session bye: a limit of the user or address was reached
	AuditUnavailable        Reason = "audit_unavailable"          // unavailable: this log cannot be written
	ClientAborted           Reason = "client_aborted"             // unavailable: the client disconnected during the login
	Shutdown                Reason = "shutdown"                   // unavailable session bye: the gateway is shutting down
	InternalError           Reason = "internal"                   // unavailable session bye: internal error
	IdentityViolation       Reason = "identity_violation"         // unavailable session bye: the upstream belonged to another user; must never happen
	Moved                   Reason = "moved"                      // unavailable session bye: the user's backend changed, possibly during a login
)

// Reasons for the end of a connection, before or after the login.
const (
	ClientLogout       Reason = "client_logout"        // session:
	ClientClosed       Reason = "client_closed"        // session:
	ClientError        Reason = "client_error"         // session: reset, timeout or TLS error
	ClientProtocol     Reason = "client_protocol"      // session bye: after the login, where commands are parsed
	BackendClosed      Reason = "backend_closed"       // session bye:
	BackendLost        Reason = "backend_lost"         // session bye:
	Idle               Reason = "idle"                 // session bye:
	ClientStalled      Reason = "client_stalled"       // session: the client did not read its responses
	BackendStalled     Reason = "backend_stalled"      // session:
	Drained            Reason = "drained"              // session bye: its grace period was over
	LoginChanged       Reason = "login_changed"        // session bye: the user's login name at the backend changed
	TokenExpired       Reason = "token_expired"        // session bye: the token that opened the session has expired
	PreauthTimeout     Reason = "preauth_timeout"      //
	HandshakeTimeout   Reason = "tls_timeout"          //
	HandshakeFailed    Reason = "tls_failed"           //
	WrongALPN          Reason = "wrong_alpn"           //
	StartTLSInjection  Reason = "starttls_injection"   // data directly after STARTTLS
	BadProxyHeader     Reason = "bad_proxy_header"     // malformed, missing or late
	LineTooLong        Reason = "line_too_long"        //
	LiteralTooBig      Reason = "literal_too_big"      //
	WrongProtocol      Reason = "wrong_protocol"       // HTTP or another protocol
	BadCommands        Reason = "bad_commands"         // too many
	LoginAttempts      Reason = "login_attempts"       // too many
	TooManyConnections Reason = "too_many_connections" //
)

// Reasons for the end of a session that could have outlived its upstream.
const (
	MailboxGone         Reason = "mailbox_gone"         // session bye: the selected mailbox was deleted, or the user lost access
	MailboxChanged      Reason = "mailbox_changed"      // session bye: another mailbox has its name: UIDVALIDITY or MAILBOXID
	MailboxTooLarge     Reason = "mailbox_too_large"    // session bye: the changes are unknown, and the mailbox is too large to send all flags again
	ViewInconsistent    Reason = "view_inconsistent"    // session bye: the mailbox changed in an impossible way
	UpstreamLost        Reason = "upstream_lost"        // session bye: during a response, or with the outcome of a command unknown
	UpstreamUnavailable Reason = "upstream_unavailable" // session bye: no new upstream in time
	LoginRevoked        Reason = "login_revoked"        // session bye: the backend no longer accepts the login
)

// Result is how something went. Its tags say of what: record (of audit records),
// login, reattach, handshake (TLS), check (of a view) and reload (of metrics).
type Result string

// The results.
const (
	ResultAccepted     Result = "accepted"     // login record:
	ResultRefused      Result = "refused"      // login record reattach reload: the credentials are wrong, or a limit or the backend refused
	ResultUnavailable  Result = "unavailable"  // login record reattach: the backend or another service is unavailable; a later attempt may succeed
	ResultLimited      Result = "limited"      // login: NO [LIMIT]
	ResultAbandoned    Result = "abandoned"    // login: the client disconnected before the answer
	ResultDelayed      Result = "delayed"      // record: a limit delayed a login
	ResultSlowed       Result = "slowed"       // record: a limit throttles bytes or commands
	ResultOK           Result = "ok"           // record reattach handshake reload:
	ResultNo           Result = "no"           // record:
	ResultBad          Result = "bad"          // record:
	ResultAborted      Result = "aborted"      // record: a connection ended before the answer
	ResultInconsistent Result = "inconsistent" // record reattach: the mailbox changed in an impossible way
	ResultGone         Result = "gone"         // record reattach: the mailbox no longer exists, or not for this user
	ResultChanged      Result = "changed"      // record reattach: another mailbox has its name: UIDVALIDITY or MAILBOXID
	ResultTooLarge     Result = "too_large"    // record reattach: too large to send all flags again
	ResultLimit        Result = "limit"        // record reattach: no connection left
	ResultTimeout      Result = "timeout"      // record reattach handshake:
	ResultLost         Result = "lost"         // record reattach: the new upstream was lost too
	ResultCanceled     Result = "canceled"     // record reattach handshake: the client disconnected, or the gateway is shutting down
	ResultResumed      Result = "resumed"      // handshake: an abbreviated handshake
	ResultALPN         Result = "alpn"         // handshake: the client requested another protocol
	ResultFailed       Result = "failed"       // handshake: any other alert, or not TLS at all
	ResultOverload     Result = "overload"     // handshake: no handshake slot was free in time
	ResultSame         Result = "same"         // check:
	ResultDifferent    Result = "different"    // check:
	ResultSkipped      Result = "skipped"      // check: the mailbox changed during the check, or the backend did not answer
)
