// Package event has the words of every closed set that operators meet: in audit
// records, as labels of metrics, in the configuration and in the documents.
//
// A word is one row here: a constant with its value and, as a comment, its
// meaning. Words before a colon in the comment are tags, which say where the word
// is used. event.go reads the rows.
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
	Maintenance             Reason = "maintenance"                // unavailable: the operator has set the backend's maintenance
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
	Kicked              Reason = "kicked"               // session bye: an operator ended it
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

// Event is what an audit record is about.
//
// Its tag is the priority of the record, which decides what is dropped first when
// a sink's buffer fills up: low for what is neither a login nor an end, so that a
// burst of it cannot prevent logins; normal for what is kept while there is space;
// required for what must not happen without its record.
type Event string

// The events.
const (
	Started           Event = "started"            // normal:
	Stopped           Event = "stopped"            // normal:
	ConfigReloaded    Event = "config_reloaded"    // normal:
	ConfigRejected    Event = "config_rejected"    // normal:
	AddressChanged    Event = "address_state"      // normal: an address of a backend is used otherwise than before
	OperatorAction    Event = "operator_action"    // normal:
	LoginAccepted     Event = "login_accepted"     // required:
	LoginRefused      Event = "login_refused"      // normal:
	SessionEnded      Event = "session_ended"      // normal:
	ConnectionRefused Event = "connection_refused" // low:
	LimitHit          Event = "limit_hit"          // low:
	BanAdded          Event = "ban_added"          // normal:
	BanRemoved        Event = "ban_removed"        // normal:
	SpraySuspected    Event = "spray_suspected"    // normal:
	RoutesEmptied     Event = "routes_emptied"     // normal:
	RoutesRestored    Event = "routes_restored"    // normal:
	SessionAttached   Event = "session_attached"   // low:
	UpstreamLostEvent Event = "upstream_lost"      // low:
	SessionPinned     Event = "session_pinned"     // low:
	CommandEvent      Event = "command"            // low:
	RecordsLost       Event = "records_lost"       // normal:
	LogOpened         Event = "log_opened"         // normal:
)

// Limit names a limit that was reached. Its tags say what it does: refusal of a
// connection, login or upload, or throttle of a session or login.
type Limit string

// Limits of connections and failures, of the load of sessions, and of backends.
const (
	LimitTotal           Limit = "total"                // refusal: sessions of all users
	LimitPreauthAddress  Limit = "address_before_login" // refusal: unauthenticated connections of an address
	LimitPreauthNetwork  Limit = "network_before_login" // refusal: unauthenticated connections of a network
	LimitAddress         Limit = "address_connections"  // refusal: connections of an address
	LimitUser            Limit = "user_connections"     // refusal: sessions of a user
	LimitUserAddress     Limit = "user_address"         // refusal: sessions of a user from one address
	LimitConnectionRate  Limit = "connection_rate"      // refusal: new connections of an address
	LimitAddressFailures Limit = "address_failures"     // refusal: wrong passwords from an address or its network
	LimitUserFailures    Limit = "user_failures"        // refusal: wrong passwords for a user
	LimitPairFailures    Limit = "pair_failures"        // refusal: wrong passwords for a user from one network
	LimitBanned          Limit = "banned"               // refusal: a ban; it has no number
	LimitCommands        Limit = "commands"             // throttle: of a user, per second
	LimitBytesIn         Limit = "bytes_in"             // throttle: from a user, per second
	LimitBytesOut        Limit = "bytes_out"            // throttle: to a user, per second
	LimitAppend          Limit = "append"               // refusal: bytes of APPEND of a user, per day
	LimitUpstreamLogins  Limit = "upstream_logins"      // refusal throttle: concurrent logins at a backend
	LimitUpstreamRate    Limit = "upstream_rate"        // refusal throttle: new connections to a backend
)

// BanReason is why a network was banned, or is no longer.
type BanReason string

// The reasons of bans.
const (
	BanFailures  BanReason = "failures"  // too many wrong passwords
	BanNeighbors BanReason = "neighbors" // too many banned networks within a larger one
	BanMerged    BanReason = "merged"    // too many bans to keep: a larger network replaces some of them
	BanOperator  BanReason = "operator"  // a command of an operator
)

// Action is what an operator did.
type Action string

// The actions.
const (
	ActionReload      Action = "reload"       // SIGHUP
	ActionDrain       Action = "drain"        // SIGTERM or SIGINT
	ActionBan         Action = "ban"          //
	ActionUnban       Action = "unban"        //
	ActionLimitsReset Action = "limits_reset" // the failed logins of a user are forgotten
	ActionKick        Action = "kick"         // sessions are ended
	ActionAddress     Action = "address"      // an address of a backend is drained, evacuated, disabled or used again
	ActionRoute       Action = "route"        // a route record is changed
	ActionRefused     Action = "refused"      // a viewer tried to change something
)

// ReattachReason is why a session got another upstream.
type ReattachReason string

// The reasons of reattaches.
const (
	ReattachLost   ReattachReason = "lost"   // its upstream was lost
	ReattachHold   ReattachReason = "hold"   // as above, and a command waited for the backend
	ReattachDetach ReattachReason = "detach" // it had released its upstream
)

// LossReason is how an upstream was lost.
type LossReason string

// The reasons of losses.
const (
	LossClosed   LossReason = "closed"   // the backend closed the connection
	LossReset    LossReason = "reset"    // reset or TLS error
	LossBye      LossReason = "bye"      // the backend sent BYE
	LossTimeout  LossReason = "timeout"  // the backend neither read nor sent anything for too long
	LossProtocol LossReason = "protocol" // the backend sent invalid IMAP
)

// PinReason is why a session is pinned to its upstream.
type PinReason string

// The reasons of pins.
const (
	PinNotify         PinReason = "notify"          // RFC 5465
	PinContext        PinReason = "context"         // RFC 5267: the backend updates a search
	PinSavedSearch    PinReason = "saved_search"    // RFC 5182: $ belongs to the connection
	PinLanguage       PinReason = "language"        // RFC 5255
	PinAnnotate       PinReason = "annotate"        // RFC 5257
	PinUnknownCommand PinReason = "unknown_command" // its effects are unknown
	PinUIDNotSticky   PinReason = "uidnotsticky"    // the mailbox has no persistent UIDs
	PinSelectBad      PinReason = "select_bad"      // SELECT got BAD: the selected mailbox is unknown
	PinViolation      PinReason = "violation"       // the backend violated IMAP
	PinSyntax         PinReason = "syntax"          // a command that could not be parsed
	PinResponse       PinReason = "response"        // a response that could not be processed
)

// Mode is how a session is relayed.
type Mode string

// The modes.
const (
	ModeSplice Mode = "splice" // bytes are copied
	ModeReuse  Mode = "reuse"  // commands are relayed, and the upstream is pooled after LOGOUT
	ModeResume Mode = "resume" // as reuse, and the session survives the loss of its upstream
	ModePark   Mode = "park"   // as resume, and an idle session releases its upstream
)

// TLSMode is how the connections of a listener, or those to a backend, are protected.
type TLSMode string

// The TLS modes.
const (
	ImplicitTLS TLSMode = "implicit" // TLS from the first byte
	StartTLS    TLSMode = "starttls" // STARTTLS before any credentials
	NoTLS       TLSMode = "none"     // credentials travel in the clear: something else must protect them
)

// State is what a multiplexed session is doing.
type State string

// The states.
const (
	StateUnselected State = "unselected" // no mailbox: an upstream is leased for single commands
	StateAttached   State = "attached"   // a mailbox, and an upstream that has it selected
	StateDetached   State = "detached"   // a mailbox, but no upstream
	StateIdle       State = "idle"       // the client is in IDLE, attached or not
	StatePinned     State = "pinned"     // spliced until it ends
)

// Probe is the activity of a connection that ended without a login.
type Probe string

// The probes.
const (
	ProbeConnect Probe = "connect" // nothing
	ProbeLocal   Probe = "local"   // the load balancer's own connection, according to the PROXY header
	ProbeTLS     Probe = "tls"     // a TLS handshake
	ProbeIMAP    Probe = "imap"    // CAPABILITY, STARTTLS or LOGOUT
)

// DiscardReason is why an upstream is closed instead of kept or reused.
type DiscardReason string

// The reasons to discard an upstream.
const (
	DiscardUnread      DiscardReason = "unread"      // it had sent unsolicited data
	DiscardOutstanding DiscardReason = "outstanding" // a command or literal of its last session was unfinished
	DiscardUnanswered  DiscardReason = "unanswered"  // no answer to NOOP or UNSELECT of the gateway
	DiscardError       DiscardReason = "error"       // reset, TLS error, or an answer other than OK
	DiscardClosed      DiscardReason = "closed"      // the backend sent BYE or closed the connection
	DiscardPinned      DiscardReason = "pinned"      // its last session left it in an unknown state
	DiscardSelected    DiscardReason = "selected"    // the backend has no command to leave its mailbox
	DiscardTTL         DiscardReason = "ttl"         // no login within the idle timeout
	DiscardAge         DiscardReason = "age"         //
	DiscardLimit       DiscardReason = "limit"       // another connection needed its slot
	DiscardCredentials DiscardReason = "credentials" // the login it was opened with is no longer valid
	DiscardMoved       DiscardReason = "moved"       // the user's backend, or login name there, changed, or the address is taken out of use
	DiscardShutdown    DiscardReason = "shutdown"    //
	DiscardDescriptors DiscardReason = "descriptors" // its descriptor was needed
)

// Violation is how a backend broke IMAP.
type Violation string

// The violations.
const (
	ExistsShrank   Violation = "exists_shrank"   // without EXPUNGE
	ExpungeRange   Violation = "expunge_range"   // of a message that does not exist
	CountMismatch  Violation = "count_mismatch"  // fewer or more UIDs than EXISTS reported
	UIDUnknown     Violation = "uid_unknown"     // a new UID below the highest known one
	UIDNextShrank  Violation = "uidnext_shrank"  // with the same UIDVALIDITY
	ModseqShrank   Violation = "modseq_shrank"   // with the same UIDVALIDITY
	TagUnknown     Violation = "tag_unknown"     // a tagged response without a command
	ResponseSyntax Violation = "response_syntax" // a response that could not be parsed
	ViewDifferent  Violation = "view_different"  // found by consistency_check
)

// Origin is where a route came from. Its tag lookup marks what a lookup may come to
// instead of a route.
type Origin string

// The origins.
const (
	OriginCache       Origin = "cache"       // a fresh cache entry
	OriginRedis       Origin = "redis"       // read from Redis for this lookup
	OriginStale       Origin = "stale"       // the last good route, because Redis gave none
	OriginStatic      Origin = "static"      // the configuration
	OriginSnapshot    Origin = "snapshot"    // the last good route of an earlier process
	OriginHTTP        Origin = "http"        // the auth server
	LookupNoUser      Origin = "no_user"     // lookup:
	LookupBlocked     Origin = "blocked"     // lookup:
	LookupPaused      Origin = "paused"      // lookup:
	LookupUnavailable Origin = "unavailable" // lookup:
)

// ConnectResult is how a connection attempt with its login at a backend ended.
type ConnectResult string

// The results of connection attempts.
const (
	ConnectOK          ConnectResult = "ok"          //
	ConnectDenied      ConnectResult = "denied"      // the backend denied the credentials
	ConnectRefused     ConnectResult = "refused"     // the backend refused correct credentials, with its own response code
	ConnectUnreachable ConnectResult = "unreachable" // no TCP connection
	ConnectTLS         ConnectResult = "tls"         // certificate not verified, or no TLS where it is required
	ConnectTimeout     ConnectResult = "timeout"     //
	ConnectClosed      ConnectResult = "closed"      // the backend closed the connection
	ConnectProtocol    ConnectResult = "protocol"    // its answer was invalid IMAP, or not allowed in that state
	ConnectDown        ConnectResult = "down"        // not tried: the backend was unreachable before, or an operator has taken its addresses out of use
	ConnectMaintenance ConnectResult = "maintenance" // not tried: the operator has set the backend's maintenance
	ConnectBusy        ConnectResult = "busy"        // a limit of the backend was reached
	ConnectCanceled    ConnectResult = "canceled"    // the gateway is shutting down
	ConnectLoop        ConnectResult = "loop"        // the hop limit was reached
	ConnectNotAccepted ConnectResult = "not_taken"   // the backend accepts no such credentials
)

// Activity is what a live session is doing.
type Activity string

// Activities.
const (
	Active  Activity = "active"  // a command or bytes are in progress
	Resting Activity = "idle"    // nothing is in progress, or IDLE
	Waiting Activity = "waiting" // it has no backend connection, and needs one
	Pinned  Activity = "pinned"  // of mode reuse or resume, but relayed byte for byte
)

// Survival is what the loss of its backend connection means to a session.
type Survival string

// Survivals.
const (
	SurvivalYes   Survival = "yes"   // the client notices nothing
	SurvivalPause Survival = "pause" // the command in progress waits
	SurvivalNo    Survival = "no"    // the session ends, because of an Obstacle
)

// Obstacle is why a session does not survive the loss of its backend connection.
type Obstacle string

// Obstacles.
const (
	ObstacleSpliced  Obstacle = "spliced"  // its commands are not seen
	ObstaclePinned   Obstacle = "pinned"   // the connection has state that no other can be given
	ObstacleReuse    Obstacle = "reuse"    // mode reuse does not reattach
	ObstacleAppend   Obstacle = "append"   // an upload is in progress
	ObstacleWrite    Obstacle = "write"    // a command is in progress that must not be repeated
	ObstacleResponse Obstacle = "response" // the client has received a part of a response
	ObstacleView     Obstacle = "view"     // what the client knows of its mailbox is uncertain
	ObstacleGateway  Obstacle = "gateway"  // the gateway itself ends
)

// AddressState is whether an address of a backend is used.
type AddressState string

// States of addresses.
const (
	AddressUp         AddressState = "up"         // it is used
	AddressDown       AddressState = "down"       // its health checks or logins fail
	AddressDraining   AddressState = "draining"   // no new users; those with sessions there may come back
	AddressEvacuating AddressState = "evacuating" // no logins, and its sessions move to other addresses
	AddressDisabled   AddressState = "disabled"   // no logins
)

// HealthCheck is what a health check of an address does.
type HealthCheck string

// Health checks.
const (
	CheckConnect  HealthCheck = "connect"  // connects, with TLS if the backend has it
	CheckGreeting HealthCheck = "greeting" // also reads the greeting
	CheckLogin    HealthCheck = "login"    // also logs in and sends NOOP
)

// Placement is how the sessions of a user are spread over the addresses of a backend.
type Placement string

// Placements.
const (
	Sticky Placement = "sticky" // all at one address, in the whole fleet
	Spread Placement = "spread" // each where its login went
)
