package command

// args says how the arguments of a command are read.
type args uint8

const (
	opaque      args = iota // nothing in them matters
	namedArgs               // nor in these; a mailbox is the first, for the record
	bare                    // there are none
	mailboxArgs             // a mailbox, and what does not matter
	selectArgs
	statusArgs
	listArgs
	enableArgs
	notifyArgs
	appendArgs
	replaceArgs
	setArgs // a sequence set, and what does not matter
	fetchArgs
	storeArgs
	copyArgs
	searchArgs
	sortArgs
	threadArgs
	esearchArgs
)

// unknown is the row of every command that has none: what it does to its
// connection cannot be known, nor which messages it names. Constant.
var unknown = Spec{Route: Selected, Writes: true, Expunge: ExpNone, Barrier: true, Pin: true}

// table has a row for each command. Constant.
var table = [...]Spec{
	// Any state.
	{Name: "CAPABILITY", NoLiteral: true, Route: Local},
	{Name: "NOOP", NoLiteral: true, Route: Selected, Retry: true},
	{Name: "LOGOUT", NoLiteral: true, Route: Local, Expunge: ExpDrop, Barrier: true, args: bare},
	{Name: "ID", Route: Local},
	{Name: "LANGUAGE", Route: Selected, Barrier: true, Pin: true},
	{Name: "COMPARATOR", Route: Selected, Barrier: true, Pin: true},

	// Over when a session begins, or kept from clients: with COMPRESS the bytes
	// would be no longer IMAP, with UNAUTHENTICATE (RFC 8437) somebody else's.
	{Name: "STARTTLS", NoLiteral: true, Route: Local, Barrier: true, Refused: true},
	{Name: "LOGIN", Route: Local, Barrier: true, Refused: true},
	{Name: "AUTHENTICATE", NoLiteral: true, Route: Local, Barrier: true, Refused: true},
	{Name: "COMPRESS", NoLiteral: true, Route: Local, Barrier: true, Refused: true},
	{Name: "UNAUTHENTICATE", NoLiteral: true, Route: Local, Barrier: true, Refused: true},

	// Logged in. ENABLE is a barrier because it decides which connection runs
	// what follows.
	{Name: "ENABLE", NoLiteral: true, Route: Local, Barrier: true, Retry: true, args: enableArgs},
	{Name: "IDLE", NoLiteral: true, Route: Local, Barrier: true, Retry: true, args: bare},
	{Name: "SELECT", Route: Selected, Expunge: ExpDrop, Barrier: true, Retry: true, args: selectArgs},
	{Name: "EXAMINE", Route: Selected, Expunge: ExpDrop, Barrier: true, Retry: true, args: selectArgs},
	{Name: "CREATE", Writes: true, Route: Any, args: mailboxArgs},
	{Name: "DELETE", Writes: true, Route: Any, Barrier: true, args: mailboxArgs},
	{Name: "RENAME", Writes: true, Route: Any, Barrier: true, args: mailboxArgs},
	{Name: "SUBSCRIBE", Writes: true, Route: Any, Retry: true, args: namedArgs},
	{Name: "UNSUBSCRIBE", Writes: true, Route: Any, Retry: true, args: namedArgs},
	{Name: "LIST", Route: Any, Retry: true, args: listArgs},
	{Name: "LSUB", Route: Any, Retry: true},
	{Name: "XLIST", Route: Any, Retry: true},
	{Name: "RLIST", Route: Any, Retry: true},
	{Name: "RLSUB", Route: Any, Retry: true},
	{Name: "NAMESPACE", NoLiteral: true, Route: Any, Retry: true},
	{Name: "STATUS", Route: Any, Retry: true, args: statusArgs},
	{Name: "APPEND", Writes: true, Route: Selected, Barrier: true, Streams: true, args: appendArgs}, // CATENATE's URLs may be relative to the mailbox
	{Name: "GETACL", Route: Any, Retry: true, args: namedArgs},
	{Name: "SETACL", Writes: true, Route: Any, Retry: true, args: namedArgs},
	{Name: "DELETEACL", Writes: true, Route: Any, Retry: true, args: namedArgs},
	{Name: "LISTRIGHTS", Route: Any, Retry: true, args: namedArgs},
	{Name: "MYRIGHTS", Route: Any, Retry: true, args: namedArgs},
	{Name: "GETQUOTA", Route: Any, Retry: true},
	{Name: "GETQUOTAROOT", Route: Any, Retry: true, args: namedArgs},
	{Name: "SETQUOTA", Writes: true, Route: Any, Retry: true},
	{Name: "GETMETADATA", Route: Any, Retry: true, args: namedArgs},
	{Name: "SETMETADATA", Writes: true, Route: Any, Retry: true, args: namedArgs},
	{Name: "GETANNOTATION", Route: Any, Retry: true, args: namedArgs},
	{Name: "SETANNOTATION", Writes: true, Route: Any, args: namedArgs},
	{Name: "GENURLAUTH", Route: Any, Retry: true},
	{Name: "URLFETCH", Route: Any, Retry: true},
	{Name: "RESETKEY", Writes: true, Route: Any, Retry: true, args: namedArgs},
	{Name: "GETJMAPACCESS", NoLiteral: true, Route: Any, Retry: true},
	{Name: "XAPPLEPUSHSERVICE", Route: Any, Retry: true},
	{Name: "CONVERSIONS", Route: Any, Retry: true},
	{Name: "NOTIFY", Route: Selected, Barrier: true, args: notifyArgs},
	{Name: "CANCELUPDATE", NoLiteral: true, Route: Selected, Expunge: ExpNone},
	{Name: "ESEARCH", Route: Selected, Expunge: ExpNone, Retry: true, args: esearchArgs}, // searches the selected mailbox unless told otherwise (RFC 7377 §2)

	// In a mailbox. UNSELECT is a barrier as CLOSE is: both change what follows.
	{Name: "CHECK", NoLiteral: true, Route: Selected, Retry: true, InMailbox: true},
	{Name: "CLOSE", Writes: true, NoLiteral: true, Route: Selected, Expunge: ExpDrop, Barrier: true, InMailbox: true, args: bare},
	{Name: "UNSELECT", NoLiteral: true, Route: Selected, Expunge: ExpDrop, Barrier: true, Retry: true, InMailbox: true, args: bare},
	{Name: "EXPUNGE", Writes: true, NoLiteral: true, Route: Selected, InMailbox: true},
	{Name: "UID EXPUNGE", Writes: true, NoLiteral: true, Route: Selected, Retry: true, InMailbox: true, args: setArgs},
	{Name: "FETCH", Route: Selected, Expunge: ExpNone, Retry: true, InMailbox: true, args: fetchArgs},
	{Name: "UID FETCH", Route: Selected, Retry: true, InMailbox: true, args: fetchArgs},
	{Name: "STORE", Writes: true, Route: Selected, Expunge: ExpNone, Retry: true, InMailbox: true, args: storeArgs},
	{Name: "UID STORE", Writes: true, Route: Selected, Retry: true, InMailbox: true, args: storeArgs},
	{Name: "COPY", Writes: true, Route: Selected, Expunge: ExpTranslate, InMailbox: true, args: copyArgs},
	{Name: "UID COPY", Writes: true, Route: Selected, InMailbox: true, args: copyArgs},
	{Name: "MOVE", Writes: true, Route: Selected, Expunge: ExpTranslate, InMailbox: true, args: copyArgs},
	{Name: "UID MOVE", Writes: true, Route: Selected, InMailbox: true, args: copyArgs},
	{Name: "REPLACE", Writes: true, Route: Selected, Expunge: ExpTranslate, Barrier: true, Streams: true, InMailbox: true, args: replaceArgs},
	{Name: "UID REPLACE", Writes: true, Route: Selected, Barrier: true, Streams: true, InMailbox: true, args: replaceArgs},
	{Name: "SEARCH", Route: Selected, Expunge: ExpNone, Retry: true, InMailbox: true, args: searchArgs},
	{Name: "UID SEARCH", Route: Selected, Retry: true, InMailbox: true, args: searchArgs},
	{Name: "SORT", Route: Selected, Expunge: ExpNone, Retry: true, InMailbox: true, args: sortArgs},
	{Name: "UID SORT", Route: Selected, Retry: true, InMailbox: true, args: sortArgs},
	{Name: "THREAD", Route: Selected, Expunge: ExpNone, Retry: true, InMailbox: true, args: threadArgs},
	{Name: "UID THREAD", Route: Selected, Retry: true, InMailbox: true, args: threadArgs},
	{Name: "CONVERT", Route: Selected, Expunge: ExpNone, Retry: true, InMailbox: true, args: setArgs},
	{Name: "UID CONVERT", Route: Selected, Retry: true, InMailbox: true, args: setArgs},
	{Name: "UIDBATCHES", NoLiteral: true, Route: Selected, Retry: true, InMailbox: true},
}

// rows finds a row by its name. Constant.
var rows = byName(table[:])

func byName(table []Spec) map[string]*Spec {
	m := make(map[string]*Spec, len(table))
	for i := range table {
		m[table[i].Name] = &table[i]
	}
	return m
}
