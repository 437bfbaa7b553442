package command

import (
	"bytes"
	"errors"
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

// RewriteAsUID appends COPY, MOVE or REPLACE to dst as the "UID" command that addresses the
// messages by uids; every other byte of raw stays the same. It returns false and appends
// nothing if props has no numbers to translate.
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

// parser collects the properties of one command.
type parser struct {
	scanner scanner
	spec    *Spec
	props   Properties
	pins    bool // for a reason that no property records
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

// allowMissingLiteral ignores the error for a literal that has not been read yet.
func (p *parser) allowMissingLiteral(err error) error {
	if errors.Is(err, errMissingLiteral) {
		return nil
	}
	return err
}

func (p *parser) expectEnd() error {
	if t := p.scanner.next(); t.kind != endToken {
		return p.syntaxError()
	}
	return nil
}

// syntaxError returns the scanner's error for the last token, or ErrSyntax.
func (p *parser) syntaxError() error {
	if p.scanner.err != nil {
		return p.scanner.err
	}
	return ErrSyntax
}
