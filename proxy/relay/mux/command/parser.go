package command

import (
	"bytes"
	"strings"

	"imapgate/internal/imap"
)

// maxEnableNames bounds the arguments of ENABLE. It exceeds the number of known extensions.
const maxEnableNames = 64

// parseMailbox parses a mailbox into Properties.Mailbox.
func (p *parser) parseMailbox() error {
	t := p.scanner.next()
	if !isValidAstring(t) {
		return p.syntaxError()
	}
	p.props.Mailbox = decodeMailbox(t)
	return nil
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
func (p *parser) parseSelect() error {
	if err := p.parseMailbox(); err != nil {
		return err
	}
	t := p.scanner.next()
	if t.kind == endToken {
		return nil
	}
	if t.kind != openParen {
		return p.syntaxError()
	}
	for t = p.scanner.next(); t.kind == atomToken; t = p.scanner.next() {
		if err := p.parseSelectParam(t); err != nil {
			return err
		}
	}
	if t.kind != closeParen {
		return p.syntaxError()
	}
	return p.expectEnd()
}

func (p *parser) parseSelectParam(t token) error {
	switch {
	case t.isWord("CONDSTORE"):
		p.props.EnablesCondstore = true
		return nil
	case t.isWord("QRESYNC"):
		p.props.HasQresync, p.props.EnablesCondstore = true, true
	default: // ANNOTATE (RFC 5257) or unknown
		p.pins = true
		return nil
	}
	if t := p.scanner.next(); t.kind != openParen {
		return p.syntaxError()
	}
	return p.skipList()
}

// skipList skips to the end of the list whose opening parenthesis has been scanned.
func (p *parser) skipList() error {
	for depth := p.scanner.depth; p.scanner.depth >= depth; {
		if t := p.scanner.next(); t.kind == errorToken || t.kind == endToken {
			return p.syntaxError()
		}
	}
	return nil
}

// parseStatus parses the mailbox and items of STATUS.
func (p *parser) parseStatus() error {
	if err := p.parseMailbox(); err != nil {
		return err
	}
	if t := p.scanner.next(); t.kind != openParen {
		return p.syntaxError()
	}
	t := p.scanner.next()
	for ; t.kind == atomToken; t = p.scanner.next() {
		p.props.EnablesCondstore = p.props.EnablesCondstore || t.isWord("HIGHESTMODSEQ")
	}
	if t.kind != closeParen {
		return p.syntaxError()
	}
	return p.expectEnd()
}

// parseList detects LIST … RETURN (STATUS (… HIGHESTMODSEQ …)) (RFC 5819).
func (p *parser) parseList() error {
	inReturn, afterReturn := false, false
	for t := p.scanner.next(); t.kind != endToken; t = p.scanner.next() {
		switch {
		case t.kind == errorToken:
			return p.syntaxError()
		case t.kind == openParen && p.scanner.depth == 1:
			inReturn = afterReturn
		case t.isWord("HIGHESTMODSEQ"):
			p.props.EnablesCondstore = p.props.EnablesCondstore || inReturn && p.scanner.depth > 1
		}
		afterReturn = t.isWord("RETURN")
	}
	return nil
}

func (p *parser) parseEnable() error {
	t := p.scanner.next()
	for ; t.kind == atomToken && len(p.props.EnableNames) < maxEnableNames; t = p.scanner.next() {
		p.props.EnableNames = append(p.props.EnableNames, strings.ToUpper(string(t.text)))
	}
	if t.kind != endToken || len(p.props.EnableNames) == 0 {
		return p.syntaxError()
	}
	return nil
}

// parseNotify pins unless the command is NOTIFY NONE, which cancels NOTIFY SET (RFC 5465 §3).
func (p *parser) parseNotify() error {
	t := p.scanner.next()
	p.pins = !t.isWord("NONE") || p.scanner.next().kind != endToken
	return p.scanner.err
}

// parseSet parses a sequence set, or "$" (RFC 5182 §2.1), which has no numbers.
func (p *parser) parseSet() error {
	switch t := p.scanner.next(); {
	case t.isWord("$"):
		p.props.UsesSavedResult = true
	case t.kind != atomToken || !isValidSet(t.text):
		return p.syntaxError()
	default:
		p.props.Set, p.props.SetPos = t.text, t.pos
	}
	p.props.UsesNumbers = p.spec.ExpungePolicy != FlushExpunges // otherwise they are UIDs
	return nil
}

// isValidSet verifies RFC 9051's sequence-set.
func isValidSet(b []byte) bool {
	if bytes.Count(b, []byte(",")) >= imap.MaxRanges {
		return false
	}
	for len(b) > 0 {
		n := setNumberLen(b)
		if n > 0 && n < len(b) && b[n] == ':' {
			b = b[n+1:]
			n = setNumberLen(b)
		}
		switch {
		case n == 0:
			return false
		case n == len(b):
			return true
		case b[n] != ',':
			return false
		}
		b = b[n+1:]
	}
	return false
}

// setNumberLen returns the length of the seq-number at the start of b ("*", or 1 to
// 4294967295), or 0.
func setNumberLen(b []byte) int {
	if len(b) == 0 || b[0] == '0' {
		return 0
	}
	if b[0] == '*' {
		return 1
	}
	n, value := 0, uint64(0)
	for n < len(b) && n < 11 && '0' <= b[n] && b[n] <= '9' {
		value = value*10 + uint64(b[n]-'0')
		n++
	}
	if value > 1<<32-1 {
		return 0
	}
	return n
}

// parseCopy parses the set and mailbox of COPY and MOVE. It is strict to the end, because the
// set may be rewritten.
func (p *parser) parseCopy() error {
	if err := p.parseSet(); err != nil {
		return err
	}
	if t := p.scanner.next(); !isValidAstring(t) {
		return p.syntaxError()
	}
	return p.expectEnd()
}

// parseReplace parses the message and mailbox of REPLACE (RFC 8508 §3).
func (p *parser) parseReplace() error {
	if err := p.parseSet(); err != nil {
		return err
	}
	if bytes.ContainsAny(p.props.Set, ",:") {
		return ErrSyntax
	}
	return p.allowMissingLiteral(p.parseMailbox())
}

// parseStore parses a set and the modifiers before the flags (RFC 7162 §3.1.3).
func (p *parser) parseStore() error {
	if err := p.parseSet(); err != nil {
		return err
	}
	t := p.scanner.next()
	if t.kind == openParen {
		for t = p.scanner.next(); t.kind == atomToken; t = p.scanner.next() {
			p.props.HasUnchangedSince = p.props.HasUnchangedSince || t.isWord("UNCHANGEDSINCE")
		}
		if t.kind != closeParen {
			return p.syntaxError()
		}
		p.props.EnablesCondstore = p.props.HasUnchangedSince
		t = p.scanner.next()
	}
	if t.kind != atomToken {
		return p.syntaxError()
	}
	return p.checkTokens()
}

// checkTokens verifies that the rest of the command consists of tokens.
func (p *parser) checkTokens() error {
	t := p.scanner.next()
	for t.kind != endToken && t.kind != errorToken {
		t = p.scanner.next()
	}
	return p.scanner.err
}

// parseFetch parses a set and detects MODSEQ among the items and CHANGEDSINCE among the
// modifiers. It skips the header names of a section.
func (p *parser) parseFetch() error {
	if err := p.parseSet(); err != nil {
		return err
	}
	for n := 0; ; n++ {
		t := p.scanner.next()
		switch {
		case t.kind == endToken && n > 0:
			return nil
		case t.kind == openParen || t.kind == closeParen:
		case t.kind != atomToken:
			return p.syntaxError()
		case opensSection(t.text):
			if err := p.skipSection(); err != nil {
				return err
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

// skipSection skips the list of header names and the end of the section.
func (p *parser) skipSection() error {
	if t := p.scanner.next(); t.kind != openParen {
		return p.syntaxError()
	}
	if err := p.skipList(); err != nil {
		return err
	}
	if t := p.scanner.next(); t.kind != atomToken || t.text[0] != ']' {
		return p.syntaxError()
	}
	return nil
}
