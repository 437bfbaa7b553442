package metrics

// Why an upstream connection is closed instead of kept or handed out.
const (
	DiscardUnread      = "unread"      // it had said something nobody asked for
	DiscardOutstanding = "outstanding" // a command or literal of its last session was not over
	DiscardUnanswered  = "unanswered"  // no answer to our NOOP or UNSELECT
	DiscardError       = "error"       // reset, TLS fault, or an answer that was no OK
	DiscardClosed      = "closed"      // the backend said BYE or hung up
	DiscardPinned      = "pinned"      // its last session left it in a state nobody knows
	DiscardSelected    = "selected"    // the backend gave no way to leave its mailbox
	DiscardTTL         = "ttl"         // nobody came
	DiscardAge         = "age"
	DiscardLimit       = "limit"       // another needed the place
	DiscardCredentials = "credentials" // the login it was made with is no longer good
	DiscardMoved       = "moved"       // the user's backend, or login name there, changed
	DiscardKicked      = "kicked"      // by the operator
	DiscardShutdown    = "shutdown"
	DiscardDescriptors = "descriptors" // its descriptor was needed
)

// Kinds of broken invariants.
const (
	ExistsShrank    = "exists_shrank"    // without EXPUNGE
	ExpungeRange    = "expunge_range"    // of a message that is not there
	ExpungeTime     = "expunge_time"     // where RFC 9051 §7.5.1 forbids one
	CountMismatch   = "count_mismatch"   // fewer or more UIDs than EXISTS said
	UIDUnknown      = "uid_unknown"      // a UID below the highest that was not there before
	UIDOrder        = "uid_order"        // UIDs do not ascend
	UIDNextShrank   = "uidnext_shrank"   // though UIDVALIDITY is the same
	ModseqShrank    = "modseq_shrank"    // though UIDVALIDITY is the same
	TagUnknown      = "tag_unknown"      // an answer to a command nobody sent
	ResponseSyntax  = "response_syntax"  // a response that could not be framed
	ViewDifferent   = "view_different"   // found by consistency_check
	EnabledMismatch = "enabled_mismatch" // ENABLED says another set than was asked for
)

// The sets of Mux. Each is constant by agreement and read in newMux only.
var (
	states        = []string{Unselected, Attached, Detached, Idle, Pinned}
	verifyResults = []string{Same, Different, Skipped}
	discards      = []string{DiscardUnread, DiscardOutstanding, DiscardUnanswered, DiscardError, DiscardClosed, DiscardPinned, DiscardSelected,
		DiscardTTL, DiscardAge, DiscardLimit, DiscardCredentials, DiscardMoved, DiscardKicked, DiscardShutdown, DiscardDescriptors}
	violations = []string{ExistsShrank, ExpungeRange, ExpungeTime, CountMismatch, UIDUnknown, UIDOrder, UIDNextShrank,
		ModseqShrank, TagUnknown, ResponseSyntax, ViewDifferent, EnabledMismatch}
	// As in the audit log.
	attachReasons = []string{"lost", "hold", "detach"}
	attachResults = []string{"ok", "inconsistent", "gone", "changed", "too_large", "refused", "limit", "timeout",
		"unavailable", "lost", "canceled"}
	pinReasons = []string{"notify", "context", "saved_search", "language", "annotate", "unknown_command", "uidnotsticky",
		"select_bad", "violation", "syntax", "response"}
	// As in the audit log, those of a session that is told BYE.
	byeReasons = []string{"mailbox_gone", "mailbox_changed", "mailbox_too_large", "view_inconsistent", "upstream_lost", "backend_lost",
		"upstream_unavailable", "login_revoked", "limit_reached", "backend_protocol", "client_protocol", "backend_closed", "idle",
		"drained", "shutdown", "kicked", "moved", "token_expired", "overload", "identity_violation", "internal"}
	// Commands whose repetition nobody can observe.
	retried = []string{"NOOP", "CHECK", "CONVERT", "UID CONVERT", "XAPPLEPUSHSERVICE", "SELECT", "EXAMINE", "UNSELECT", "FETCH", "UID FETCH", "STORE",
		"UID STORE", "SEARCH", "UID SEARCH", "SORT", "UID SORT", "THREAD", "UID THREAD", "UID EXPUNGE", "UIDBATCHES", "ESEARCH",
		"LIST", "LSUB", "XLIST", "RLIST", "RLSUB", "NAMESPACE", "STATUS", "SUBSCRIBE", "UNSUBSCRIBE", "GETACL", "SETACL",
		"DELETEACL", "LISTRIGHTS", "MYRIGHTS", "GETQUOTA", "GETQUOTAROOT", "SETQUOTA", "GETMETADATA", "SETMETADATA",
		"GETANNOTATION", "GENURLAUTH", "URLFETCH", "RESETKEY", "GETJMAPACCESS", "CONVERSIONS"}
)
