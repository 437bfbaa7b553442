package command

import "strings"

// operands is the number of operands of a search key, which are strings or numbers, or one of
// the kinds below.
type operands int8

const (
	uidSetOperand operands = -1 // a set of UIDs
	modseqOperand operands = -2 // the operands of MODSEQ
)

// searchKeys maps the search keys of RFC 9051 §6.4.4, and of the RFCs named below, to their
// operands. Prefix notation needs no tree: after a key and its operands comes another key or
// the end. Constant.
var searchKeys = indexSearchKeys(map[operands]string{
	0: "ALL ANSWERED DELETED DRAFT FLAGGED NEW OLD RECENT SEEN UNANSWERED UNDELETED UNDRAFT UNFLAGGED UNSEEN NOT OR " +
		"FUZZY SAVEDATESUPPORTED", // RFC 6203, RFC 8514
	1: "CHARSET BCC BEFORE BODY CC FROM KEYWORD LARGER ON SENTBEFORE SENTON SENTSINCE SINCE SMALLER SUBJECT TEXT TO UNKEYWORD " +
		"OLDER YOUNGER FILTER " + // RFC 5032, RFC 5466
		"SAVEDBEFORE SAVEDON SAVEDSINCE EMAILID THREADID " + // RFC 8514, RFC 8474
		"X-GM-RAW X-GM-MSGID X-GM-THRID X-GM-LABELS", // Gmail
	2:             "HEADER",
	3:             "ANNOTATION", // RFC 5257
	uidSetOperand: "UID",
	modseqOperand: "MODSEQ", // RFC 7162
})

func indexSearchKeys(keys map[operands]string) map[string]operands {
	index := map[string]operands{}
	for n, names := range keys {
		for name := range strings.FieldsSeq(names) {
			index[name] = n
		}
	}
	return index
}

// parseSearch parses SEARCH, SORT, THREAD and ESEARCH.
func (p *parser) parseSearch() {
	t := p.next()
	if p.spec.argSyntax == esearchArgs && t.isWord("IN") { // RFC 7377 §2.2
		p.skipList(p.next())
		t = p.next()
	}
	if t.isWord("RETURN") {
		p.parseReturnOptions()
		t = p.next()
	}
	switch p.spec.argSyntax {
	case sortArgs: // order and charset (RFC 5256 §3)
		p.skipList(t)
		p.skipStrings(1)
		t = p.next()
	case threadArgs: // algorithm and charset
		p.check(t, atomToken)
		p.skipStrings(1)
		t = p.next()
	}
	if t.kind == endToken { // at least one key is required
		p.fail(ErrSyntax)
	}
	p.parseCriteria(t)
}

// parseReturnOptions parses the result options of RFC 4731, RFC 5182, RFC 5267 and RFC 9394.
func (p *parser) parseReturnOptions() {
	p.expect(openParen)
	t := p.next()
	for ; t.kind == atomToken; t = p.next() {
		switch {
		case t.isWord("SAVE"):
			p.props.SavesResult = true
		case t.isWord("UPDATE"):
			p.props.RequestsUpdates = true
		case t.isWord("PARTIAL"):
			p.skipStrings(1)
		case t.isWord("MIN"), t.isWord("MAX"), t.isWord("ALL"), t.isWord("COUNT"), t.isWord("RELEVANCY"), t.isWord("CONTEXT"):
		default: // unknown: it may change the state of the connection
			p.pins = true
		}
	}
	p.check(t, closeParen)
}

// skipStrings skips n strings, atoms or numbers.
func (p *parser) skipStrings(n operands) {
	for range n {
		if !p.next().isString() {
			p.fail(ErrSyntax)
		}
	}
}

// parseCriteria parses search keys, beginning with t, to the end.
func (p *parser) parseCriteria(t token) {
	for ; t.kind != endToken && p.err == nil; t = p.next() {
		if t.kind == openParen || t.kind == closeParen {
			continue
		}
		p.check(t, atomToken) // some servers accept a quoted key
		if p.err == nil && !p.parseSearchKey(t) {
			p.parseUnknownCriteria(t)
			return
		}
	}
}

// parseSearchKey parses a search key with its operands. It returns false if the key is unknown.
func (p *parser) parseSearchKey(t token) bool {
	isSet := t.text[0] == '*' || '0' <= t.text[0] && t.text[0] <= '9'
	if isSet || t.isWord("$") {
		p.checkSet(t)
		p.props.UsesNumbers = p.props.UsesNumbers || isSet
		return true
	}
	var buf [maxName]byte
	n, known := searchKeys[string(toUpper(&buf, t.text))]
	switch n {
	case uidSetOperand:
		p.checkSet(p.next())
	case modseqOperand:
		p.parseModseq()
	default:
		p.skipStrings(n)
	}
	return known
}

// parseModseq parses MODSEQ's [entry type] value (RFC 7162 §3.1.5).
func (p *parser) parseModseq() {
	p.props.EnablesCondstore = true
	t := p.next()
	if t.kind == atomToken && '0' <= t.text[0] && t.text[0] <= '9' {
		return
	}
	if !t.isString() {
		p.fail(ErrSyntax)
	}
	p.skipStrings(2)
}

// parseUnknownCriteria parses the rest of a search from an unknown key. The key may have any
// number of operands, so every number may be a message number. It fails if the rest might
// change the state of the connection.
func (p *parser) parseUnknownCriteria(t token) {
	p.props.UsesNumbers = true
	for ; t.kind != endToken && t.kind != errorToken; t = p.next() {
		var buf [maxName]byte
		word := string(toUpper(&buf, t.text))
		if searchKeys[word] == modseqOperand || word == "RETURN" { // even in quotes, to some backends
			p.fail(ErrSyntax)
		}
		p.props.UsesSavedResult = p.props.UsesSavedResult || t.isWord("$")
	}
}
