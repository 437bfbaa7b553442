package command

// operand says what follows a search key.
type operand uint8

const (
	keys     operand = iota + 1 // another key, or nothing: ALL, NOT, OR
	one                         // so many strings or numbers
	two                         // …
	three                       // …
	uids                        // a set of UIDs
	modified                    // what MODSEQ has
)

// criteria are the search keys there are, with what follows each: RFC 9051
// §6.4.4, and those named. Prefix notation needs no tree: behind any key and its
// operand there is another key, or the end. Constant.
var criteria = map[string]operand{
	"ALL": keys, "ANSWERED": keys, "DELETED": keys, "DRAFT": keys, "FLAGGED": keys, "NEW": keys, "OLD": keys,
	"RECENT": keys, "SEEN": keys, "UNANSWERED": keys, "UNDELETED": keys, "UNDRAFT": keys, "UNFLAGGED": keys,
	"UNSEEN": keys, "NOT": keys, "OR": keys,
	"FUZZY": keys, "SAVEDATESUPPORTED": keys, // RFC 6203, RFC 8514
	"CHARSET": one, "BCC": one, "BEFORE": one, "BODY": one, "CC": one, "FROM": one, "KEYWORD": one, "LARGER": one,
	"ON": one, "SENTBEFORE": one, "SENTON": one, "SENTSINCE": one, "SINCE": one, "SMALLER": one, "SUBJECT": one,
	"TEXT": one, "TO": one, "UNKEYWORD": one,
	"OLDER": one, "YOUNGER": one, "FILTER": one, // RFC 5032, RFC 5466
	"SAVEDBEFORE": one, "SAVEDON": one, "SAVEDSINCE": one, "EMAILID": one, "THREADID": one, // RFC 8514, RFC 8474
	"X-GM-RAW": one, "X-GM-MSGID": one, "X-GM-THRID": one, "X-GM-LABELS": one, // Gmail
	"HEADER":     two,
	"ANNOTATION": three, // RFC 5257
	"UID":        uids,
	"MODSEQ":     modified, // RFC 7162
}

// searches reads SEARCH, SORT, THREAD and ESEARCH.
func (r *reader) searches() error {
	t := r.s.next()
	if r.spec.args == esearchArgs && t.is("IN") { // RFC 7377 §2.2
		if t = r.s.next(); t.kind != open {
			return r.syntax()
		}
		if err := r.skipList(); err != nil {
			return err
		}
		t = r.s.next()
	}
	if t.is("RETURN") {
		if err := r.returns(); err != nil {
			return err
		}
		t = r.s.next()
	}
	var err error
	switch r.spec.args {
	case sortArgs:
		t, err = r.sorting(t)
	case threadArgs:
		t, err = r.threading(t)
	}
	if err != nil {
		return err
	}
	if t.kind == end { // there must be a key
		return ErrSyntax
	}
	return r.program(t)
}

// returns reads the result options of RFC 4731, RFC 5182, RFC 5267 and RFC 9394.
func (r *reader) returns() error {
	if t := r.s.next(); t.kind != open {
		return r.syntax()
	}
	t := r.s.next()
	for ; t.kind == atom; t = r.s.next() {
		switch {
		case t.is("SAVE"):
			r.f.Saves = true
		case t.is("UPDATE"):
			r.f.Updates = true
		case t.is("PARTIAL"):
			if err := r.skip(1); err != nil {
				return err
			}
		case t.is("MIN"), t.is("MAX"), t.is("ALL"), t.is("COUNT"), t.is("RELEVANCY"), t.is("CONTEXT"):
		default: // nobody knows what it leaves with the connection
			r.pin = true
		}
	}
	if t.kind != shut {
		return r.syntax()
	}
	return nil
}

// sorting reads SORT's order and charset (RFC 5256 §3).
func (r *reader) sorting(t token) (token, error) {
	if t.kind != open {
		return t, r.syntax()
	}
	if err := r.skipList(); err != nil {
		return t, err
	}
	if err := r.skip(1); err != nil {
		return t, err
	}
	return r.s.next(), nil
}

// threading reads THREAD's algorithm and charset.
func (r *reader) threading(t token) (token, error) {
	if t.kind != atom {
		return t, r.syntax()
	}
	if err := r.skip(1); err != nil {
		return t, err
	}
	return r.s.next(), nil
}

// skip steps over n strings, atoms or numbers.
func (r *reader) skip(n int) error {
	for range n {
		if t := r.s.next(); !t.isString() {
			return r.syntax()
		}
	}
	return nil
}

// program reads search keys, of which t is the first, to the end.
func (r *reader) program(t token) error {
	for ; t.kind != end; t = r.s.next() {
		if t.kind == open || t.kind == shut {
			continue
		}
		if t.kind != atom { // some servers take a quoted key for a key
			return r.syntax()
		}
		known, err := r.key(t)
		if err != nil {
			return err
		}
		if !known {
			return r.guess(t)
		}
	}
	return nil
}

// key reads a search key with its operand, and says whether it is a known one.
func (r *reader) key(t token) (bool, error) {
	if isSet, err := r.messages(t); isSet || err != nil {
		return isSet, err
	}
	var buf [maxName]byte
	switch criteria[string(upper(&buf, t.text))] {
	case keys:
		return true, nil
	case one:
		return true, r.skip(1)
	case two:
		return true, r.skip(2)
	case three:
		return true, r.skip(3)
	case uids:
		return true, r.uids()
	case modified:
		return true, r.modified()
	}
	return false, nil
}

// messages says whether a key is a sequence set or "$".
func (r *reader) messages(t token) (bool, error) {
	switch c := t.text[0]; {
	case t.is("$"):
		r.f.UsesSaved = true
		return true, nil
	case c != '*' && (c < '0' || c > '9'):
		return false, nil
	case !validSet(t.text):
		return false, ErrSyntax
	}
	r.f.Numbers = true
	return true, nil
}

func (r *reader) uids() error {
	t := r.s.next()
	if t.is("$") {
		r.f.UsesSaved = true
		return nil
	}
	if t.kind != atom || !validSet(t.text) {
		return r.syntax()
	}
	return nil
}

// modified reads MODSEQ's [entry type] value (RFC 7162 §3.1.5).
func (r *reader) modified() error {
	r.f.Condstore = true
	t := r.s.next()
	if t.kind == atom && '0' <= t.text[0] && t.text[0] <= '9' {
		return nil
	}
	if !t.isString() {
		return r.syntax()
	}
	return r.skip(2)
}

// guess reads on from a key nobody knows: how many operands it has is open, so
// any number may be a message's. Where it is open what the search leaves with
// the connection, the command was not understood.
func (r *reader) guess(t token) error {
	r.f.Numbers = true
	for ; t.kind != end; t = r.s.next() {
		switch {
		case t.kind == fault:
			return r.syntax()
		case leaves(t):
			return ErrSyntax
		case t.is("$"):
			r.f.UsesSaved = true
		}
	}
	return nil
}

// leaves says whether a backend might take t for the key MODSEQ, or for RETURN.
func leaves(t token) bool {
	var buf [maxName]byte
	word := upper(&buf, t.text)
	return criteria[string(word)] == modified || string(word) == "RETURN"
}
