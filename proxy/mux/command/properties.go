package command

import (
	"bytes"
	"errors"
)

// Properties is what a command's arguments say. It points into the command.
type Properties struct {
	// The row's, as the arguments make them.
	ExpungePolicy ExpungePolicy
	Retryable     bool
	Pins          bool // includes all reasons below

	// Mailbox is the first mailbox that SELECT, EXAMINE, STATUS, CREATE, DELETE,
	// RENAME, APPEND or REPLACE names, decoded; any spelling of INBOX is "INBOX".
	// Two names that differ may still be one mailbox to the backend: modified
	// UTF-7 and UTF-8, a separator at the end.
	Mailbox string

	// Set is the sequence set the command begins with: message numbers, or UIDs
	// for a "UID" command. It is nil for "$", and where there is none.
	Set    []byte
	SetPos int // where it begins

	UsesNumbers       bool     // messages are addressed by number, or might be
	EnablesCondstore  bool     // the session becomes aware of CONDSTORE (RFC 7162 §3.1), unless answered BAD
	HasQresync        bool     // SELECT and EXAMINE: parameters of QRESYNC came along
	HasUnchangedSince bool     // STORE … (UNCHANGEDSINCE …)
	SavesResult       bool     // … RETURN (SAVE): the result stays with the connection (RFC 5182)
	UsesSavedResult   bool     // "$" is an argument
	RequestsUpdates   bool     // … RETURN (UPDATE): so does the search (RFC 5267)
	EnableNames       []string // ENABLE's arguments in upper case

	namePos int // where the command's name begins
}

// Parse reads a whole command, its last CRLF and its literals included. Of a
// command that streams, the first line is enough: a Mailbox that comes as a
// literal is then left empty.
//
// Errors are those of Lookup, and ErrSyntax. A command with ErrSyntax means
// something else to us than to the backend, and the facts are the safest ones:
// it runs alone and, when expunges are pending and it might name messages by
// number, not at all; nothing in it may be rewritten; and unless the backend
// answers BAD, nobody knows what it did, and the session is pinned. Of a command
// that is answered locally, the session's answer is BAD.
func Parse(raw []byte) (Properties, error) {
	head, err := Lookup(firstLine(raw))
	if err != nil {
		return Properties{}, err
	}
	p := parser{spec: head.Spec}
	p.scanner = scanner{input: bytes.TrimSuffix(raw, []byte("\r\n")), pos: head.argsPos}
	p.props.namePos = head.namePos
	if head.Spec == &unknownSpec {
		p.props.UsesNumbers = true
	}
	if head.Spec.argSyntax > mailboxFirstArgs {
		if err := p.parseArguments(); err != nil {
			return p.safestProperties(), ErrSyntax
		}
	}
	return p.properties(), nil
}

func firstLine(raw []byte) []byte {
	if i := bytes.IndexByte(raw, '\n'); i >= 0 {
		return raw[:i+1]
	}
	return raw
}

// RewriteAsUID appends COPY, MOVE or REPLACE to dst as the "UID" command that
// names the messages by uids; every other byte of whole stays as it is. It says
// no, and appends nothing, where f does not know the numbers.
func RewriteAsUID(dst, raw []byte, props Properties, uids string) ([]byte, bool) {
	if props.ExpungePolicy != TranslateNumbers {
		return dst, false
	}
	dst = append(dst, raw[:props.namePos]...)
	dst = append(dst, "UID "...)
	dst = append(dst, raw[props.namePos:props.SetPos]...)
	dst = append(dst, uids...)
	return append(dst, raw[props.SetPos+len(props.Set):]...), true
}

// parser collects the facts of one command.
type parser struct {
	scanner scanner
	spec    *Spec
	props   Properties
	pins    bool // for a reason that is no fact of its own
}

// properties are the facts of a command that was understood.
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

// safestProperties are the facts of a command that was not understood.
func (p *parser) safestProperties() Properties {
	props := Properties{Pins: p.spec.Upstream != NoUpstream, namePos: p.props.namePos, ExpungePolicy: p.spec.ExpungePolicy}
	props.UsesNumbers = p.spec.ExpungePolicy == ForbidExpunges || p.spec.ExpungePolicy == TranslateNumbers || p.spec.argSyntax >= searchArgs
	switch {
	case props.UsesNumbers:
		props.ExpungePolicy = ForbidExpunges
	case props.ExpungePolicy == DropExpunges: // answered BAD, it leaves the mailbox selected
		props.ExpungePolicy = FlushExpunges
	}
	return props
}

func (p *parser) parseArguments() error {
	switch p.spec.argSyntax {
	case noArgs:
		return p.expectEnd()
	case mailboxArgs:
		return p.parseMailbox()
	case selectArgs:
		return p.parseSelect()
	case statusArgs:
		return p.parseStatus()
	case listArgs:
		return p.parseList()
	case enableArgs:
		return p.parseEnable()
	case notifyArgs:
		return p.parseNotify()
	case appendArgs:
		return p.allowMissingLiteral(p.parseMailbox())
	case replaceArgs:
		return p.parseReplace()
	case setArgs:
		return p.parseSet()
	case fetchArgs:
		return p.parseFetch()
	case storeArgs:
		return p.parseStore()
	case copyArgs:
		return p.parseCopy()
	}
	return p.parseSearch()
}

// allowMissingLiteral takes no offence at a literal that has not been read yet.
func (p *parser) allowMissingLiteral(err error) error {
	if errors.Is(err, errMissingLiteral) {
		return nil
	}
	return err
}

// expectEnd expects the end of the command.
func (p *parser) expectEnd() error {
	if t := p.scanner.next(); t.kind != endToken {
		return p.syntaxError()
	}
	return nil
}

// syntaxError is why the last token was not what it should have been.
func (p *parser) syntaxError() error {
	if p.scanner.err != nil {
		return p.scanner.err
	}
	return ErrSyntax
}
