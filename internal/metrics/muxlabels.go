package metrics

// Why an upstream connection is closed instead of kept or reused.
const (
	DiscardUnread      = "unread"      // it had sent unsolicited data
	DiscardOutstanding = "outstanding" // a command or literal of its last session was unfinished
	DiscardUnanswered  = "unanswered"  // no answer to our NOOP or UNSELECT
	DiscardError       = "error"       // reset, TLS error, or an answer other than OK
	DiscardClosed      = "closed"      // the backend sent BYE or closed the connection
	DiscardPinned      = "pinned"      // its last session left it in an unknown state
	DiscardSelected    = "selected"    // the backend has no command to leave its mailbox
	DiscardTTL         = "ttl"         // no login within the idle timeout
	DiscardAge         = "age"
	DiscardLimit       = "limit"       // another connection needed its slot
	DiscardCredentials = "credentials" // the login it was opened with is no longer valid
	DiscardMoved       = "moved"       // the user's backend, or login name there, changed
	DiscardKicked      = "kicked"      // by an operator
	DiscardShutdown    = "shutdown"
	DiscardDescriptors = "descriptors" // its descriptor was needed
)

// Kinds of protocol violations.
const (
	ExistsShrank    = "exists_shrank"    // without EXPUNGE
	ExpungeRange    = "expunge_range"    // of a message that does not exist
	ExpungeTime     = "expunge_time"     // when RFC 9051 §7.5.1 forbids it
	CountMismatch   = "count_mismatch"   // fewer or more UIDs than EXISTS reported
	UIDUnknown      = "uid_unknown"      // a new UID below the highest known one
	UIDOrder        = "uid_order"        // UIDs do not ascend
	UIDNextShrank   = "uidnext_shrank"   // with the same UIDVALIDITY
	ModseqShrank    = "modseq_shrank"    // with the same UIDVALIDITY
	TagUnknown      = "tag_unknown"      // a tagged response without a command
	ResponseSyntax  = "response_syntax"  // a response that could not be parsed
	ViewDifferent   = "view_different"   // found by consistency_check
	EnabledMismatch = "enabled_mismatch" // ENABLE reported another set than requested
)

// The sets of values of Mux. They are constant and read in newMux only.
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
	// The reasons of the audit log with which a session gets BYE.
	byeReasons = []string{"mailbox_gone", "mailbox_changed", "mailbox_too_large", "view_inconsistent", "upstream_lost", "backend_lost",
		"upstream_unavailable", "login_revoked", "limit_reached", "backend_protocol", "client_protocol", "backend_closed", "idle",
		"drained", "shutdown", "kicked", "moved", "token_expired", "overload", "identity_violation", "internal"}
	// Commands whose repetition has no visible effect.
	retried = []string{"NOOP", "CHECK", "CONVERT", "UID CONVERT", "XAPPLEPUSHSERVICE", "SELECT", "EXAMINE", "UNSELECT", "FETCH", "UID FETCH", "STORE",
		"UID STORE", "SEARCH", "UID SEARCH", "SORT", "UID SORT", "THREAD", "UID THREAD", "UID EXPUNGE", "UIDBATCHES", "ESEARCH",
		"LIST", "LSUB", "XLIST", "RLIST", "RLSUB", "NAMESPACE", "STATUS", "SUBSCRIBE", "UNSUBSCRIBE", "GETACL", "SETACL",
		"DELETEACL", "LISTRIGHTS", "MYRIGHTS", "GETQUOTA", "GETQUOTAROOT", "SETQUOTA", "GETMETADATA", "SETMETADATA",
		"GETANNOTATION", "GENURLAUTH", "URLFETCH", "RESETKEY", "GETJMAPACCESS", "CONVERSIONS"}
)
