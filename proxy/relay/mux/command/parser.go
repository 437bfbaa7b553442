package command

import (
	"bytes"
	"strings"

	"imapgate/internal/imap"
)

// maxEnableNames bounds the arguments of ENABLE. It exceeds the number of known extensions.
const maxEnableNames = 64

// parser collects the properties of one command. Its first error stays: every later token is
// errorToken.
type parser struct {
	scanner
	spec  *Spec
	props Properties
	pins  bool // for a reason that no property records
}

func (p *parser) parseArguments() {
	switch p.spec.argSyntax {
	case noArgs:
		p.expect(endToken)
	case mailboxArgs:
		p.parseMailbox()
	case selectArgs:
		p.parseSelect()
	case statusArgs:
		p.parseStatus()
	case listArgs:
		p.parseList()
	case enableArgs:
		p.parseEnable()
	case notifyArgs: // NONE cancels NOTIFY SET (RFC 5465 §3)
		p.pins = !p.next().isWord("NONE") || p.next().kind != endToken
	case appendArgs:
		p.parseMailbox()
		p.allowMissingLiteral()
	case replaceArgs:
		p.parseReplace()
	case setArgs:
		p.parseSet()
	case fetchArgs:
		p.parseFetch()
	case storeArgs:
		p.parseStore()
	case copyArgs:
		p.parseCopy()
	default:
		p.parseSearch()
	}
}

// allowMissingLiteral ignores the error for a literal that has not been read yet.
func (p *parser) allowMissingLiteral() {
	if p.err == errMissingLiteral {
		p.err = nil
	}
}

// expect scans a token that must be of the kind.
func (p *parser) expect(kind tokenKind) { p.check(p.next(), kind) }

// check verifies that a token is of the kind.
func (p *parser) check(t token, kind tokenKind) {
	if t.kind != kind {
		p.fail(ErrSyntax)
	}
}

// parseMailbox parses a mailbox into Properties.Mailbox.
func (p *parser) parseMailbox() {
	t := p.next()
	if !isValidAstring(t) {
		p.fail(ErrSyntax)
	}
	p.props.Mailbox = decodeMailbox(t)
}

// isValidAstring verifies the parts of astring that the scanner accepts too widely. A string
// has no NUL, except in a literal8, which is not a mailbox.
func isValidAstring(t token) bool {
	if t.kind == atomToken {
		for _, c := range t.text {
			if !isAstringChar(c) {
				return false
			}
		}
		return true
	}
	return t.isString() && bytes.IndexByte(t.text, 0) < 0
}

// decode returns the text of a string or atom, without escapes.
func (t token) decode() string {
	if t.kind != quotedToken || bytes.IndexByte(t.text, '\\') < 0 {
		return string(t.text)
	}
	var text strings.Builder
	for i := 0; i < len(t.text); i++ {
		if t.text[i] == '\\' {
			i++
		}
		text.WriteByte(t.text[i])
	}
	return text.String()
}

// decodeMailbox returns the mailbox name. INBOX is case-insensitive (RFC 9051 §5.1).
func decodeMailbox(t token) string {
	if bytes.EqualFold(t.text, []byte("INBOX")) {
		return "INBOX"
	}
	return t.decode()
}

// isWord reports whether t is the word, given in upper case. A quoted keyword is text.
func (t token) isWord(word string) bool {
	return t.kind == atomToken && len(t.text) == len(word) && strings.EqualFold(string(t.text), word)
}

// parseSelect parses the mailbox and parameters of SELECT and EXAMINE (RFC 4466 §2.4).
func (p *parser) parseSelect() {
	p.parseMailbox()
	t := p.next()
	if t.kind == endToken {
		return
	}
	p.check(t, openParen)
	for t = p.next(); t.kind == atomToken; t = p.next() {
		p.parseSelectParam(t)
	}
	p.check(t, closeParen)
	p.expect(endToken)
}

func (p *parser) parseSelectParam(t token) {
	switch {
	case t.isWord("CONDSTORE"):
		p.props.EnablesCondstore = true
	case t.isWord("QRESYNC"):
		p.props.HasQresync, p.props.EnablesCondstore = true, true
		p.skipList(p.next())
	default: // ANNOTATE (RFC 5257) or unknown
		p.pins = true
	}
}

// skipList skips to the end of the list that t opens. An end before it is the scanner's error.
func (p *parser) skipList(t token) {
	p.check(t, openParen)
	for depth := p.depth; p.depth >= depth && p.err == nil; {
		p.next()
	}
}

// parseStatus parses the mailbox and items of STATUS.
func (p *parser) parseStatus() {
	p.parseMailbox()
	p.expect(openParen)
	t := p.next()
	for ; t.kind == atomToken; t = p.next() {
		p.props.EnablesCondstore = p.props.EnablesCondstore || t.isWord("HIGHESTMODSEQ")
	}
	p.check(t, closeParen)
	p.expect(endToken)
}

// parseList detects LIST … RETURN (STATUS (… HIGHESTMODSEQ …)) (RFC 5819).
func (p *parser) parseList() {
	inReturn, afterReturn := false, false
	for t := p.next(); t.kind != endToken && t.kind != errorToken; t = p.next() {
		switch {
		case t.kind == openParen && p.depth == 1:
			inReturn = afterReturn
		case t.isWord("HIGHESTMODSEQ"):
			p.props.EnablesCondstore = p.props.EnablesCondstore || inReturn && p.depth > 1
		}
		afterReturn = t.isWord("RETURN")
	}
}

func (p *parser) parseEnable() {
	t := p.next()
	for ; t.kind == atomToken && len(p.props.EnableNames) < maxEnableNames; t = p.next() {
		p.props.EnableNames = append(p.props.EnableNames, strings.ToUpper(string(t.text)))
	}
	p.check(t, endToken)
	if len(p.props.EnableNames) == 0 {
		p.fail(ErrSyntax)
	}
}

// parseSet parses a sequence set into Properties.Set.
func (p *parser) parseSet() {
	t := p.next()
	p.checkSet(t)
	if !t.isWord("$") {
		p.props.Set, p.props.SetPos = t.text, t.pos
	}
	p.props.UsesNumbers = p.spec.ExpungePolicy != FlushExpunges // otherwise they are UIDs
}

// checkSet verifies that t is a sequence set, or "$" (RFC 5182 §2.1), which has no numbers.
func (p *parser) checkSet(t token) {
	switch {
	case t.isWord("$"):
		p.props.UsesSavedResult = true
	case t.kind != atomToken || !isValidSet(t.text):
		p.fail(ErrSyntax)
	}
}

// isValidSet verifies RFC 9051's sequence-set.
func isValidSet(set []byte) bool {
	if bytes.Count(set, []byte(",")) >= imap.MaxRanges {
		return false
	}
	for more := true; more; {
		var item []byte
		item, set, more = bytes.Cut(set, []byte(","))
		first, last, isRange := bytes.Cut(item, []byte(":"))
		if !isSetNumber(first) || isRange && !isSetNumber(last) {
			return false
		}
	}
	return true
}

// isSetNumber verifies RFC 9051's seq-number: "*", or 1 to 4294967295.
func isSetNumber(b []byte) bool {
	if string(b) == "*" {
		return true
	}
	if len(b) == 0 || len(b) > 10 || b[0] == '0' {
		return false
	}
	n := uint64(0)
	for _, c := range b {
		if c < '0' || c > '9' {
			return false
		}
		n = n*10 + uint64(c-'0')
	}
	return n <= 1<<32-1
}

// parseCopy parses the set and mailbox of COPY and MOVE. It is strict to the end, because the
// set may be rewritten.
func (p *parser) parseCopy() {
	p.parseSet()
	if !isValidAstring(p.next()) {
		p.fail(ErrSyntax)
	}
	p.expect(endToken)
}

// parseReplace parses the message and mailbox of REPLACE (RFC 8508 §3).
func (p *parser) parseReplace() {
	p.parseSet()
	if p.err != nil || bytes.ContainsAny(p.props.Set, ",:") {
		p.err = ErrSyntax
		return
	}
	p.parseMailbox()
	p.allowMissingLiteral()
}

// parseStore parses a set and the modifiers before the flags (RFC 7162 §3.1.3).
func (p *parser) parseStore() {
	p.parseSet()
	t := p.next()
	if t.kind == openParen {
		for t = p.next(); t.kind == atomToken; t = p.next() {
			p.props.HasUnchangedSince = p.props.HasUnchangedSince || t.isWord("UNCHANGEDSINCE")
		}
		p.check(t, closeParen)
		p.props.EnablesCondstore = p.props.HasUnchangedSince
		t = p.next()
	}
	p.check(t, atomToken)
	for t.kind != endToken && t.kind != errorToken {
		t = p.next()
	}
}

// parseFetch parses a set and detects MODSEQ among the items and CHANGEDSINCE among the
// modifiers. It skips the header names of a section.
func (p *parser) parseFetch() {
	p.parseSet()
	for n := 0; p.err == nil; n++ {
		t := p.next()
		switch {
		case t.kind == endToken && n > 0:
			return
		case t.kind == openParen || t.kind == closeParen:
		case t.kind != atomToken:
			p.fail(ErrSyntax)
		case opensSection(t.text):
			p.skipList(p.next())
			if t := p.next(); t.kind != atomToken || t.text[0] != ']' {
				p.fail(ErrSyntax)
			}
		case t.isWord("MODSEQ") || t.isWord("CHANGEDSINCE"):
			p.props.EnablesCondstore = true
		}
	}
}

// opensSection reports whether an item begins a section that continues after a list of header
// names: BODY[HEADER.FIELDS (…)].
func opensSection(item []byte) bool {
	i := bytes.IndexByte(item, '[')
	if i < 0 || bytes.IndexByte(item, ']') >= 0 {
		return false
	}
	name := token{kind: atomToken, text: item[:i]}
	return name.isWord("BODY") || name.isWord("BODY.PEEK")
}
