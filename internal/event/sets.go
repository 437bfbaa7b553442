package event

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
	DiscardMoved       DiscardReason = "moved"       // the user's backend, or login name there, changed
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
	ConnectDown        ConnectResult = "down"        // not tried: the backend was unreachable before
	ConnectBusy        ConnectResult = "busy"        // a limit of the backend was reached
	ConnectCanceled    ConnectResult = "canceled"    // the client disconnected
	ConnectLoop        ConnectResult = "loop"        // the hop limit was reached
	ConnectNotAccepted ConnectResult = "not_taken"   // the backend accepts no such credentials
)
