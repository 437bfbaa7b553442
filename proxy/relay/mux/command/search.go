package command

// operands is the kind and number of operands after a search key.
type operands uint8

const (
	noOperand     operands = iota + 1 // another key, or nothing: ALL, NOT, OR
	oneOperand                        // strings or numbers
	twoOperands                       // …
	threeOperands                     // …
	uidSetOperand                     // a set of UIDs
	modseqOperand                     // the operands of MODSEQ
)

// searchKeys maps the search keys of RFC 9051 §6.4.4, and of the RFCs named below, to their
// operands. Prefix notation needs no tree: after a key and its operands comes another key or
// the end. Constant.
var searchKeys = map[string]operands{
	"ALL": noOperand, "ANSWERED": noOperand, "DELETED": noOperand, "DRAFT": noOperand, "FLAGGED": noOperand, "NEW": noOperand, "OLD": noOperand,
	"RECENT": noOperand, "SEEN": noOperand, "UNANSWERED": noOperand, "UNDELETED": noOperand, "UNDRAFT": noOperand, "UNFLAGGED": noOperand,
	"UNSEEN": noOperand, "NOT": noOperand, "OR": noOperand,
	"FUZZY": noOperand, "SAVEDATESUPPORTED": noOperand, // RFC 6203, RFC 8514
	"CHARSET": oneOperand, "BCC": oneOperand, "BEFORE": oneOperand, "BODY": oneOperand, "CC": oneOperand, "FROM": oneOperand, "KEYWORD": oneOperand, "LARGER": oneOperand,
	"ON": oneOperand, "SENTBEFORE": oneOperand, "SENTON": oneOperand, "SENTSINCE": oneOperand, "SINCE": oneOperand, "SMALLER": oneOperand, "SUBJECT": oneOperand,
	"TEXT": oneOperand, "TO": oneOperand, "UNKEYWORD": oneOperand,
	"OLDER": oneOperand, "YOUNGER": oneOperand, "FILTER": oneOperand, // RFC 5032, RFC 5466
	"SAVEDBEFORE": oneOperand, "SAVEDON": oneOperand, "SAVEDSINCE": oneOperand, "EMAILID": oneOperand, "THREADID": oneOperand, // RFC 8514, RFC 8474
	"X-GM-RAW": oneOperand, "X-GM-MSGID": oneOperand, "X-GM-THRID": oneOperand, "X-GM-LABELS": oneOperand, // Gmail
	"HEADER":     twoOperands,
	"ANNOTATION": threeOperands, // RFC 5257
	"UID":        uidSetOperand,
	"MODSEQ":     modseqOperand, // RFC 7162
}

// parseSearch parses SEARCH, SORT, THREAD and ESEARCH.
func (p *parser) parseSearch() error {
	t := p.scanner.next()
	if p.spec.argSyntax == esearchArgs && t.isWord("IN") { // RFC 7377 §2.2
		if t = p.scanner.next(); t.kind != openParen {
			return p.syntaxError()
		}
		if err := p.skipList(); err != nil {
			return err
		}
		t = p.scanner.next()
	}
	if t.isWord("RETURN") {
		if err := p.parseReturnOptions(); err != nil {
			return err
		}
		t = p.scanner.next()
	}
	var err error
	switch p.spec.argSyntax {
	case sortArgs:
		t, err = p.parseSortOrder(t)
	case threadArgs:
		t, err = p.parseThreadAlgorithm(t)
	}
	if err != nil {
		return err
	}
	if t.kind == endToken { // at least one key is required
		return ErrSyntax
	}
	return p.parseCriteria(t)
}

// parseReturnOptions parses the result options of RFC 4731, RFC 5182, RFC 5267 and RFC 9394.
func (p *parser) parseReturnOptions() error {
	if t := p.scanner.next(); t.kind != openParen {
		return p.syntaxError()
	}
	t := p.scanner.next()
	for ; t.kind == atomToken; t = p.scanner.next() {
		switch {
		case t.isWord("SAVE"):
			p.props.SavesResult = true
		case t.isWord("UPDATE"):
			p.props.RequestsUpdates = true
		case t.isWord("PARTIAL"):
			if err := p.skipStrings(1); err != nil {
				return err
			}
		case t.isWord("MIN"), t.isWord("MAX"), t.isWord("ALL"), t.isWord("COUNT"), t.isWord("RELEVANCY"), t.isWord("CONTEXT"):
		default: // unknown: it may change the state of the connection
			p.pins = true
		}
	}
	if t.kind != closeParen {
		return p.syntaxError()
	}
	return nil
}

// parseSortOrder parses SORT's order and charset (RFC 5256 §3).
func (p *parser) parseSortOrder(t token) (token, error) {
	if t.kind != openParen {
		return t, p.syntaxError()
	}
	if err := p.skipList(); err != nil {
		return t, err
	}
	if err := p.skipStrings(1); err != nil {
		return t, err
	}
	return p.scanner.next(), nil
}

// parseThreadAlgorithm parses THREAD's algorithm and charset.
func (p *parser) parseThreadAlgorithm(t token) (token, error) {
	if t.kind != atomToken {
		return t, p.syntaxError()
	}
	if err := p.skipStrings(1); err != nil {
		return t, err
	}
	return p.scanner.next(), nil
}

// skipStrings skips n strings, atoms or numbers.
func (p *parser) skipStrings(n int) error {
	for range n {
		if t := p.scanner.next(); !t.isString() {
			return p.syntaxError()
		}
	}
	return nil
}

// parseCriteria parses search keys, beginning with t, to the end.
func (p *parser) parseCriteria(t token) error {
	for ; t.kind != endToken; t = p.scanner.next() {
		if t.kind == openParen || t.kind == closeParen {
			continue
		}
		if t.kind != atomToken { // some servers accept a quoted key
			return p.syntaxError()
		}
		known, err := p.parseSearchKey(t)
		if err != nil {
			return err
		}
		if !known {
			return p.parseUnknownCriteria(t)
		}
	}
	return nil
}

// parseSearchKey parses a search key with its operands and reports whether the key is known.
func (p *parser) parseSearchKey(t token) (bool, error) {
	if isSet, err := p.parseMessageSet(t); isSet || err != nil {
		return isSet, err
	}
	var buf [maxName]byte
	switch searchKeys[string(toUpper(&buf, t.text))] {
	case noOperand:
		return true, nil
	case oneOperand:
		return true, p.skipStrings(1)
	case twoOperands:
		return true, p.skipStrings(2)
	case threeOperands:
		return true, p.skipStrings(3)
	case uidSetOperand:
		return true, p.parseUIDSet()
	case modseqOperand:
		return true, p.parseModseq()
	}
	return false, nil
}

// parseMessageSet reports whether a key is a sequence set or "$".
func (p *parser) parseMessageSet(t token) (bool, error) {
	switch c := t.text[0]; {
	case t.isWord("$"):
		p.props.UsesSavedResult = true
		return true, nil
	case c != '*' && (c < '0' || c > '9'):
		return false, nil
	case !isValidSet(t.text):
		return false, ErrSyntax
	}
	p.props.UsesNumbers = true
	return true, nil
}

func (p *parser) parseUIDSet() error {
	t := p.scanner.next()
	if t.isWord("$") {
		p.props.UsesSavedResult = true
		return nil
	}
	if t.kind != atomToken || !isValidSet(t.text) {
		return p.syntaxError()
	}
	return nil
}

// parseModseq parses MODSEQ's [entry type] value (RFC 7162 §3.1.5).
func (p *parser) parseModseq() error {
	p.props.EnablesCondstore = true
	t := p.scanner.next()
	if t.kind == atomToken && '0' <= t.text[0] && t.text[0] <= '9' {
		return nil
	}
	if !t.isString() {
		return p.syntaxError()
	}
	return p.skipStrings(2)
}

// parseUnknownCriteria parses the rest of a search from an unknown key. The key may have any
// number of operands, so every number may be a message number. If the rest might change the
// state of the connection, it returns ErrSyntax.
func (p *parser) parseUnknownCriteria(t token) error {
	p.props.UsesNumbers = true
	for ; t.kind != endToken; t = p.scanner.next() {
		switch {
		case t.kind == errorToken:
			return p.syntaxError()
		case mayAffectConnection(t):
			return ErrSyntax
		case t.isWord("$"):
			p.props.UsesSavedResult = true
		}
	}
	return nil
}

// mayAffectConnection reports whether a backend might read t as the key MODSEQ or as RETURN.
func mayAffectConnection(t token) bool {
	var buf [maxName]byte
	word := toUpper(&buf, t.text)
	return searchKeys[string(word)] == modseqOperand || string(word) == "RETURN"
}
