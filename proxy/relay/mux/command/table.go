package command

import "strings"

// argSyntax selects the parser for a command's arguments.
type argSyntax uint8

const (
	anyArgs          argSyntax = iota // not parsed
	mailboxFirstArgs                  // not parsed; the first is a mailbox, for the audit log
	noArgs                            // none allowed
	mailboxArgs                       // a mailbox; the rest is not parsed
	selectArgs
	statusArgs
	listArgs
	enableArgs
	notifyArgs
	appendArgs
	replaceArgs
	setArgs // a sequence set; the rest is not parsed
	fetchArgs
	storeArgs
	copyArgs
	searchArgs
	sortArgs
	threadArgs
	esearchArgs
)

// unknownSpec is the row for every command not in the table: its effect on the connection and
// the messages it addresses are unknown. Constant.
var unknownSpec = Spec{Upstream: SelectedUpstream, Writes: true, ExpungePolicy: ForbidExpunges, Barrier: true, Pins: true}

// table has a row for all commands with the same properties. Constant.
var table = [...]Spec{
	// Any state.
	{Name: "CAPABILITY", NoLiteral: true, Upstream: NoUpstream},
	{Name: "NOOP", NoLiteral: true, Upstream: SelectedUpstream, Retryable: true},
	{Name: "LOGOUT", NoLiteral: true, Upstream: NoUpstream, ExpungePolicy: DropExpunges, Barrier: true, argSyntax: noArgs},
	{Name: "ID", Upstream: NoUpstream},
	{Name: "LANGUAGE, COMPARATOR", Upstream: SelectedUpstream, Barrier: true, Pins: true},

	// Possible only before login, or kept from clients: after COMPRESS the bytes are not IMAP,
	// after UNAUTHENTICATE (RFC 8437) the user may change.
	{Name: "STARTTLS, AUTHENTICATE, COMPRESS, UNAUTHENTICATE", NoLiteral: true, Upstream: NoUpstream, Barrier: true, Forbidden: true},
	{Name: "LOGIN", Upstream: NoUpstream, Barrier: true, Forbidden: true},

	// Authenticated state. ENABLE is a barrier because it decides which connection runs the
	// next commands.
	{Name: "ENABLE", NoLiteral: true, Upstream: NoUpstream, Barrier: true, Retryable: true, argSyntax: enableArgs},
	{Name: "IDLE", NoLiteral: true, Upstream: NoUpstream, Barrier: true, Retryable: true, argSyntax: noArgs},
	{Name: "SELECT, EXAMINE", Upstream: SelectedUpstream, ExpungePolicy: DropExpunges, Barrier: true, Retryable: true, argSyntax: selectArgs},
	{Name: "CREATE", Writes: true, Upstream: AnyUpstream, argSyntax: mailboxArgs},
	{Name: "DELETE, RENAME", Writes: true, Upstream: AnyUpstream, Barrier: true, argSyntax: mailboxArgs},
	{Name: "SUBSCRIBE, UNSUBSCRIBE, SETACL, DELETEACL, SETMETADATA, RESETKEY", Writes: true, Upstream: AnyUpstream, Retryable: true, argSyntax: mailboxFirstArgs},
	{Name: "SETANNOTATION", Writes: true, Upstream: AnyUpstream, argSyntax: mailboxFirstArgs},
	{Name: "SETQUOTA", Writes: true, Upstream: AnyUpstream, Retryable: true},
	{Name: "GETACL, LISTRIGHTS, MYRIGHTS, GETQUOTAROOT, GETMETADATA, GETANNOTATION", Upstream: AnyUpstream, Retryable: true, argSyntax: mailboxFirstArgs},
	{Name: "LSUB, XLIST, RLIST, RLSUB, GETQUOTA, GENURLAUTH, URLFETCH, XAPPLEPUSHSERVICE, CONVERSIONS", Upstream: AnyUpstream, Retryable: true},
	{Name: "NAMESPACE, GETJMAPACCESS", NoLiteral: true, Upstream: AnyUpstream, Retryable: true},
	{Name: "LIST", Upstream: AnyUpstream, Retryable: true, argSyntax: listArgs},
	{Name: "STATUS", Upstream: AnyUpstream, Retryable: true, argSyntax: statusArgs},
	{Name: "APPEND", Writes: true, Upstream: SelectedUpstream, Barrier: true, Streams: true, argSyntax: appendArgs}, // CATENATE's URLs may be relative to the mailbox
	{Name: "NOTIFY", Upstream: SelectedUpstream, Barrier: true, argSyntax: notifyArgs},
	{Name: "CANCELUPDATE", NoLiteral: true, Upstream: SelectedUpstream, ExpungePolicy: ForbidExpunges},
	{Name: "ESEARCH", Upstream: SelectedUpstream, ExpungePolicy: ForbidExpunges, Retryable: true, argSyntax: esearchArgs}, // searches the selected mailbox by default (RFC 7377 §2)

	// Selected state. UNSELECT and CLOSE are barriers: later commands depend on them.
	{Name: "CHECK, UIDBATCHES", NoLiteral: true, Upstream: SelectedUpstream, Retryable: true, NeedsMailbox: true},
	{Name: "CLOSE", Writes: true, NoLiteral: true, Upstream: SelectedUpstream, ExpungePolicy: DropExpunges, Barrier: true, NeedsMailbox: true, argSyntax: noArgs},
	{Name: "UNSELECT", NoLiteral: true, Upstream: SelectedUpstream, ExpungePolicy: DropExpunges, Barrier: true, Retryable: true, NeedsMailbox: true, argSyntax: noArgs},
	{Name: "EXPUNGE", Writes: true, NoLiteral: true, Upstream: SelectedUpstream, NeedsMailbox: true},
	{Name: "UID EXPUNGE", Writes: true, NoLiteral: true, Upstream: SelectedUpstream, Retryable: true, NeedsMailbox: true, argSyntax: setArgs},
	{Name: "FETCH", Upstream: SelectedUpstream, ExpungePolicy: ForbidExpunges, Retryable: true, NeedsMailbox: true, argSyntax: fetchArgs},
	{Name: "UID FETCH", Upstream: SelectedUpstream, Retryable: true, NeedsMailbox: true, argSyntax: fetchArgs},
	{Name: "STORE", Writes: true, Upstream: SelectedUpstream, ExpungePolicy: ForbidExpunges, Retryable: true, NeedsMailbox: true, argSyntax: storeArgs},
	{Name: "UID STORE", Writes: true, Upstream: SelectedUpstream, Retryable: true, NeedsMailbox: true, argSyntax: storeArgs},
	{Name: "COPY, MOVE", Writes: true, Upstream: SelectedUpstream, ExpungePolicy: TranslateNumbers, NeedsMailbox: true, argSyntax: copyArgs},
	{Name: "UID COPY, UID MOVE", Writes: true, Upstream: SelectedUpstream, NeedsMailbox: true, argSyntax: copyArgs},
	{Name: "REPLACE", Writes: true, Upstream: SelectedUpstream, ExpungePolicy: TranslateNumbers, Barrier: true, Streams: true, NeedsMailbox: true, argSyntax: replaceArgs},
	{Name: "UID REPLACE", Writes: true, Upstream: SelectedUpstream, Barrier: true, Streams: true, NeedsMailbox: true, argSyntax: replaceArgs},
	{Name: "SEARCH", Upstream: SelectedUpstream, ExpungePolicy: ForbidExpunges, Retryable: true, NeedsMailbox: true, argSyntax: searchArgs},
	{Name: "UID SEARCH", Upstream: SelectedUpstream, Retryable: true, NeedsMailbox: true, argSyntax: searchArgs},
	{Name: "SORT", Upstream: SelectedUpstream, ExpungePolicy: ForbidExpunges, Retryable: true, NeedsMailbox: true, argSyntax: sortArgs},
	{Name: "UID SORT", Upstream: SelectedUpstream, Retryable: true, NeedsMailbox: true, argSyntax: sortArgs},
	{Name: "THREAD", Upstream: SelectedUpstream, ExpungePolicy: ForbidExpunges, Retryable: true, NeedsMailbox: true, argSyntax: threadArgs},
	{Name: "UID THREAD", Upstream: SelectedUpstream, Retryable: true, NeedsMailbox: true, argSyntax: threadArgs},
	{Name: "CONVERT", Upstream: SelectedUpstream, ExpungePolicy: ForbidExpunges, Retryable: true, NeedsMailbox: true, argSyntax: setArgs},
	{Name: "UID CONVERT", Upstream: SelectedUpstream, Retryable: true, NeedsMailbox: true, argSyntax: setArgs},
}

// specByName maps a name to its properties. Constant.
var specByName = indexByName(table[:])

func indexByName(table []Spec) map[string]*Spec {
	m := map[string]*Spec{}
	for _, row := range table {
		for name := range strings.SplitSeq(row.Name, ", ") {
			spec := row
			spec.Name = name
			m[name] = &spec
		}
	}
	return m
}
