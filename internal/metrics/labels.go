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

// Results of connecting and logging in at a backend, and of TLS handshakes.
const (
	OK       = "ok"
	Resumed  = "resumed"  // TLS: an abbreviated handshake
	Timeout  = "timeout"  // no answer in time
	Connect  = "connect"  // refused, unreachable, no such name
	TLS      = "tls"      // the handshake or the certificate failed
	ALPN     = "alpn"     // TLS: the client wanted another protocol
	Protocol = "protocol" // what came was not IMAP, or not allowed here
	Denied   = "denied"   // the backend refused the credentials
	Busy     = "busy"     // at its bound, or it said so itself
	Loop     = "loop"     // the hop limit was reached
	Canceled = "canceled" // our side gave up first
)

// Directions of relayed bytes.
const (
	toClient  = "to_client"
	toBackend = "to_backend"
)

// The sets. A slice here is constant by agreement: it is read in New only.
var (
	modes        = []string{"splice", "reuse", "resume", "park"}
	loginResults = []string{Accepted, Refused, Unavailable, Limited, Abandoned}
	// LOGIN is the command, SASL-LOGIN the mechanism of that name.
	mechanisms = []string{"LOGIN", "PLAIN", "SASL-LOGIN", "EXTERNAL", "SCRAM-SHA-1", "SCRAM-SHA-1-PLUS",
		"SCRAM-SHA-256", "SCRAM-SHA-256-PLUS", "OAUTHBEARER", "XOAUTH2"}
	connectResults   = []string{OK, Timeout, Connect, TLS, Protocol, Denied, Busy, Loop, Canceled}
	handshakeResults = []string{OK, Resumed, Timeout, ALPN, TLS, Canceled}
	routeSources     = []string{"redis", "static", "http", "cache", "negative", "stale", "snapshot", "error"}
	reloadResults    = []string{OK, Refused}
	// The reasons of the audit log for the end of a session.
	endReasons = []string{"client_logout", "client_closed", "client_reset", "client_protocol", "backend_closed",
		"backend_reset", "idle_timeout", "write_timeout", "drained", "shutdown", "kicked", "moved", "overload",
		"identity_violation", "internal"}
)
