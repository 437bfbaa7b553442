package command

import (
	"bytes"
	"slices"
)

// Properties are the facts of one command, arguments included. They point into the command.
type Properties struct {
	// The Spec's values, adjusted for the arguments.
	ExpungePolicy ExpungePolicy
	Retryable     bool
	Pins          bool // includes all reasons below

	// Mailbox is the decoded first mailbox of SELECT, EXAMINE, STATUS, CREATE, DELETE, RENAME,
	// APPEND or REPLACE. Any spelling of INBOX is "INBOX". Different names may be the same
	// mailbox to the backend: modified UTF-7 and UTF-8, a trailing separator.
	Mailbox string

	// Set is the sequence set at the start of the arguments: message numbers, or UIDs for a
	// "UID" command. It is nil for "$" and for commands without a set.
	Set    []byte
	SetPos int // offset of Set

	UsesNumbers       bool     // messages are, or might be, addressed by number
	EnablesCondstore  bool     // the session becomes aware of CONDSTORE (RFC 7162 §3.1), unless answered BAD
	HasQresync        bool     // SELECT and EXAMINE: has QRESYNC parameters
	HasUnchangedSince bool     // STORE … (UNCHANGEDSINCE …)
	SavesResult       bool     // … RETURN (SAVE): the connection keeps the result (RFC 5182)
	UsesSavedResult   bool     // "$" is an argument
	RequestsUpdates   bool     // … RETURN (UPDATE): the connection keeps the search (RFC 5267)
	EnableNames       []string // ENABLE's arguments in upper case

	namePos int // offset of the command's name
}

// Parse parses a whole command, final CRLF and literals included. For a command that streams,
// the first line is enough: Mailbox is then empty if it is a literal.
//
// Errors are those of Lookup, and ErrSyntax. With ErrSyntax the backend may read the command
// differently, so the properties are the safest ones. The command runs alone, and not at all if
// expunges are pending and it might use message numbers. Nothing in it may be rewritten. Unless
// the backend answers BAD, its effect is unknown and the session must be pinned. If the session
// answers the command itself, the answer is BAD.
func Parse(raw []byte) (Properties, error) {
	head, err := Lookup(firstLine(raw))
	if err != nil {
		return Properties{}, err
	}
	p := parser{spec: head.Spec, scanner: scanner{input: bytes.TrimSuffix(raw, []byte("\r\n")), pos: head.argsPos}}
	p.props.namePos = head.namePos
	p.props.UsesNumbers = head.Spec == &unknownSpec
	if head.Spec.argSyntax > mailboxFirstArgs {
		p.parseArguments()
	}
	if p.err != nil {
		return p.safestProperties(), ErrSyntax
	}
	return p.properties(), nil
}

func firstLine(raw []byte) []byte {
	if i := bytes.IndexByte(raw, '\n'); i >= 0 {
		return raw[:i+1]
	}
	return raw
}

// RewriteAsUID returns COPY, MOVE or REPLACE as the "UID" command that addresses the messages
// by uids; every other byte of raw stays the same. It returns false if props has no numbers to
// translate.
func RewriteAsUID(raw []byte, props Properties, uids string) ([]byte, bool) {
	if props.ExpungePolicy != TranslateNumbers {
		return nil, false
	}
	name, set := props.namePos, props.SetPos
	return slices.Concat(raw[:name], []byte("UID "), raw[name:set], []byte(uids), raw[set+len(props.Set):]), true
}

// properties returns the properties of a command that was parsed completely.
func (p *parser) properties() Properties {
	props := p.props
	props.Pins = p.spec.Pins || p.pins || props.SavesResult || props.UsesSavedResult || props.RequestsUpdates
	props.Retryable = p.spec.Retryable && !props.HasUnchangedSince && !props.SavesResult && !props.RequestsUpdates
	props.ExpungePolicy = p.spec.ExpungePolicy
	switch {
	case props.ExpungePolicy == FlushExpunges && props.UsesNumbers: // UID SEARCH 1:3 (RFC 7162 §3.2.10)
		props.ExpungePolicy = ForbidExpunges
	case props.ExpungePolicy == TranslateNumbers && props.Set == nil:
		props.ExpungePolicy = ForbidExpunges
	}
	return props
}

// safestProperties returns the properties of a command that was not parsed completely.
func (p *parser) safestProperties() Properties {
	props := Properties{Pins: p.spec.Upstream != NoUpstream, namePos: p.props.namePos, ExpungePolicy: p.spec.ExpungePolicy}
	props.UsesNumbers = p.spec.ExpungePolicy == ForbidExpunges || p.spec.ExpungePolicy == TranslateNumbers || p.spec.argSyntax >= searchArgs
	switch {
	case props.UsesNumbers:
		props.ExpungePolicy = ForbidExpunges
	case props.ExpungePolicy == DropExpunges: // if answered BAD, the mailbox stays selected
		props.ExpungePolicy = FlushExpunges
	}
	return props
}

// Mailboxes returns the mailbox that a command acts on, and the destination of COPY, MOVE,
// REPLACE and RENAME. Each is "" if it is absent or cannot be parsed. Only the audit log uses
// them, so parsing is lenient.
func (f *Properties) Mailboxes(spec *Spec, raw []byte) (mailbox, destination string) {
	switch spec.argSyntax {
	case replaceArgs:
		return "", f.Mailbox
	case copyArgs:
		if f.Set != nil {
			destination, _ = parseMailboxAt(raw, f.SetPos+len(f.Set))
		}
		return "", destination
	case mailboxFirstArgs:
		mailbox, _ = parseMailboxAt(raw, f.namePos+len(spec.Name))
		return mailbox, ""
	}
	if spec.Name == "RENAME" && f.Mailbox != "" {
		if _, end := parseMailboxAt(raw, f.namePos+len(spec.Name)); end > 0 {
			destination, _ = parseMailboxAt(raw, end)
		}
	}
	return f.Mailbox, destination
}

// parseMailboxAt returns the mailbox after the space at pos and the offset of its end, or 0.
func parseMailboxAt(raw []byte, pos int) (string, int) {
	s := scanner{input: bytes.TrimSuffix(raw, []byte("\r\n"))}
	s.pos = min(pos+len(" "), len(s.input))
	t := s.next()
	if !isValidAstring(t) {
		return "", 0
	}
	return decodeMailbox(t), s.pos
}
