package metrics

// Other stands for every value outside its set.
const Other = "other"

// Results of a login, as the client saw them.
const (
	Accepted    = "accepted"
	Refused     = "refused"     // NO [AUTHENTICATIONFAILED], [PRIVACYREQUIRED] and the like
	Unavailable = "unavailable" // NO [UNAVAILABLE]: nothing was said about the password
	Limited     = "limited"     // NO [LIMIT]
	Abandoned   = "abandoned"   // the client went away before an answer
)

// Results of TLS handshakes with clients.
const (
	OK       = "ok"
	Resumed  = "resumed" // an abbreviated handshake
	Timeout  = "timeout"
	ALPN     = "alpn"     // the client wanted another protocol
	Failed   = "failed"   // any other alert, or not TLS at all
	Canceled = "canceled" // the client hung up
	Overload = "overload" // no turn to compute was free
)

// Kinds of probes: what a connection has done that ended without a login.
const (
	ProbeConnect = "connect" // nothing
	ProbeLocal   = "local"   // said by a PROXY header that it is the balancer's own
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
	Unselected = "unselected" // no mailbox: an upstream is taken for single commands only
	Attached   = "attached"   // a mailbox, and an upstream that has it selected
	Detached   = "detached"   // a mailbox, and no upstream
	Idle       = "idle"       // attached or not, and the client is in IDLE
	Pinned     = "pinned"     // relayed without a view until it ends
)

// Results of comparing a view with the backend.
const (
	Same      = "same"
	Different = "different"
	Skipped   = "skipped" // something came in between, or the backend did not answer
)

// The sets. Each is constant by agreement and read in New only.
var (
	modes        = []string{"splice", "reuse", "resume", "park"}
	loginResults = []string{Accepted, Refused, Unavailable, Limited, Abandoned}
	// As in auth: LOGIN is the command, the others are SASL mechanisms.
	mechanisms = []string{"LOGIN", "AUTH=PLAIN", "AUTH=LOGIN", "AUTH=EXTERNAL", "AUTH=SCRAM-SHA-1",
		"AUTH=SCRAM-SHA-1-PLUS", "AUTH=SCRAM-SHA-256", "AUTH=SCRAM-SHA-256-PLUS", "AUTH=OAUTHBEARER", "AUTH=XOAUTH2"}
	// As in proxy/upstream.
	connectResults = []string{"ok", "denied", "refused", "unreachable", "tls", "timeout", "closed", "protocol",
		"down", "busy", "canceled", "loop", "not_taken"}
	handshakeResults = []string{OK, Resumed, Timeout, ALPN, Failed, Canceled, Overload}
	// As in routing: where the answer came from, or why there is none.
	routeSources = []string{"cache", "redis", "stale", "static", "snapshot", "http",
		"no_user", "blocked", "paused", "unavailable"}
	reloadResults = []string{OK, Refused}
	probeKinds    = []string{ProbeConnect, ProbeLocal, ProbeTLS, ProbeIMAP}
	// As in the audit log, those with which a session can end.
	endReasons = []string{"client_logout", "client_closed", "client_error", "client_protocol", "client_stalled",
		"backend_closed", "backend_lost", "backend_stalled", "idle", "drained", "shutdown", "kicked", "moved", "token_expired",
		"overload", "identity_violation", "internal", "mailbox_gone", "mailbox_changed", "mailbox_too_large",
		"view_inconsistent", "upstream_lost", "upstream_unavailable", "login_revoked", "limit_reached", "backend_protocol"}
)
