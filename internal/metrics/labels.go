package metrics

// Other replaces every value outside its set.
const Other = "other"

// Results of a login, as the client sees them.
const (
	Accepted    = "accepted"
	Refused     = "refused"     // NO [AUTHENTICATIONFAILED], [PRIVACYREQUIRED] and the like
	Unavailable = "unavailable" // NO [UNAVAILABLE]: the password may be right
	Limited     = "limited"     // NO [LIMIT]
	Abandoned   = "abandoned"   // the client disconnected before the answer
)

// Results of TLS handshakes with clients.
const (
	OK       = "ok"
	Resumed  = "resumed" // an abbreviated handshake
	Timeout  = "timeout"
	ALPN     = "alpn"     // the client requested another protocol
	Failed   = "failed"   // any other alert, or not TLS at all
	Canceled = "canceled" // the client closed the connection
	Overload = "overload" // no handshake slot was free in time
)

// Kinds of probes: the activity of a connection that ended without a login.
const (
	ProbeConnect = "connect" // nothing
	ProbeLocal   = "local"   // the load balancer's own connection, according to the PROXY header
	ProbeTLS     = "tls"     // a TLS handshake
	ProbeIMAP    = "imap"    // CAPABILITY, STARTTLS or LOGOUT
)

// Directions of relayed bytes.
const (
	toClient  = "to_client"
	toBackend = "to_backend"
)

// States of a session that may outlive its upstream.
const (
	Unselected = "unselected" // no mailbox: an upstream is leased for single commands
	Attached   = "attached"   // a mailbox, and an upstream that has it selected
	Detached   = "detached"   // a mailbox, but no upstream
	Idle       = "idle"       // the client is in IDLE, attached or not
	Pinned     = "pinned"     // spliced until it ends
)

// Results of consistency checks of a view.
const (
	Same      = "same"
	Different = "different"
	Skipped   = "skipped" // the mailbox changed during the check, or the backend did not answer
)

// The sets of values. They are constant and read in New only.
var (
	modes        = []string{"splice", "reuse", "resume", "park"}
	loginResults = []string{Accepted, Refused, Unavailable, Limited, Abandoned}
	// As in package auth: LOGIN is the command, the others are SASL mechanisms.
	mechanisms = []string{"LOGIN", "AUTH=PLAIN", "AUTH=LOGIN", "AUTH=EXTERNAL", "AUTH=SCRAM-SHA-1",
		"AUTH=SCRAM-SHA-1-PLUS", "AUTH=SCRAM-SHA-256", "AUTH=SCRAM-SHA-256-PLUS", "AUTH=OAUTHBEARER", "AUTH=XOAUTH2"}
	// As in proxy/upstream.
	connectResults = []string{"ok", "denied", "refused", "unreachable", "tls", "timeout", "closed", "protocol",
		"down", "busy", "canceled", "loop", "not_taken"}
	handshakeResults = []string{OK, Resumed, Timeout, ALPN, Failed, Canceled, Overload}
	// As in routing: the source of the answer, or why there is no route.
	routeSources = []string{"cache", "redis", "stale", "static", "snapshot", "http",
		"no_user", "blocked", "paused", "unavailable"}
	reloadResults = []string{OK, Refused}
	probeKinds    = []string{ProbeConnect, ProbeLocal, ProbeTLS, ProbeIMAP}
	// The reasons of the audit log with which a session can end.
	endReasons = []string{"client_logout", "client_closed", "client_error", "client_protocol", "client_stalled",
		"backend_closed", "backend_lost", "backend_stalled", "idle", "drained", "shutdown", "kicked", "moved", "token_expired",
		"overload", "identity_violation", "internal", "mailbox_gone", "mailbox_changed", "mailbox_too_large",
		"view_inconsistent", "upstream_lost", "upstream_unavailable", "login_revoked", "limit_reached", "backend_protocol"}
)
