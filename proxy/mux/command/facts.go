package command

import (
	"bytes"
	"errors"
)

// Facts is what a command's arguments say. It points into the command.
type Facts struct {
	// The row's, as the arguments make them.
	Expunge Expunge
	Retry   bool
	Pin     bool // includes all reasons below

	// Mailbox is the first mailbox that SELECT, EXAMINE, STATUS, CREATE, DELETE,
	// RENAME, APPEND or REPLACE names, decoded; any spelling of INBOX is "INBOX".
	// Two names that differ may still be one mailbox to the backend: modified
	// UTF-7 and UTF-8, a separator at the end.
	Mailbox string

	// Set is the sequence set the command begins with: message numbers, or UIDs
	// for a "UID" command. It is nil for "$", and where there is none.
	Set   []byte
	SetAt int // where it begins

	Numbers   bool     // messages are addressed by number, or might be
	Condstore bool     // the session becomes aware of CONDSTORE (RFC 7162 §3.1), unless answered BAD
	Qresync   bool     // SELECT and EXAMINE: parameters of QRESYNC came along
	Unchanged bool     // STORE … (UNCHANGEDSINCE …)
	Saves     bool     // … RETURN (SAVE): the result stays with the connection (RFC 5182)
	UsesSaved bool     // "$" is an argument
	Updates   bool     // … RETURN (UPDATE): so does the search (RFC 5267)
	Names     []string // ENABLE's arguments in upper case

	name int // where the command's name begins
}

// Read reads a whole command, its last CRLF and its literals included. Of a
// command that streams, the first line is enough: a Mailbox that comes as a
// literal is then left empty.
//
// Errors are those of Lookup, and ErrSyntax. A command with ErrSyntax means
// something else to us than to the backend, and the facts are the safest ones:
// it runs alone and, when expunges are pending and it might name messages by
// number, not at all; nothing in it may be rewritten; and unless the backend
// answers BAD, nobody knows what it did, and the session is pinned. Of a command
// that is answered locally, the session's answer is BAD.
func Read(whole []byte) (Facts, error) {
	h, err := Lookup(firstLine(whole))
	if err != nil {
		return Facts{}, err
	}
	r := reader{spec: h.Spec}
	r.s = scanner{b: bytes.TrimSuffix(whole, []byte("\r\n")), at: h.args}
	r.f.name = h.name
	if h.Spec == &unknown {
		r.f.Numbers = true
	}
	if h.Spec.args > namedArgs {
		if err := r.arguments(); err != nil {
			return r.misread(), ErrSyntax
		}
	}
	return r.facts(), nil
}

func firstLine(whole []byte) []byte {
	if i := bytes.IndexByte(whole, '\n'); i >= 0 {
		return whole[:i+1]
	}
	return whole
}

// RewriteUID appends COPY, MOVE or REPLACE to dst as the "UID" command that
// names the messages by uids; every other byte of whole stays as it is. It says
// no, and appends nothing, where f does not know the numbers.
func RewriteUID(dst, whole []byte, f Facts, uids string) ([]byte, bool) {
	if f.Expunge != ExpTranslate {
		return dst, false
	}
	dst = append(dst, whole[:f.name]...)
	dst = append(dst, "UID "...)
	dst = append(dst, whole[f.name:f.SetAt]...)
	dst = append(dst, uids...)
	return append(dst, whole[f.SetAt+len(f.Set):]...), true
}

// reader collects the facts of one command.
type reader struct {
	s    scanner
	spec *Spec
	f    Facts
	pin  bool // for a reason that is no fact of its own
}

// facts are the facts of a command that was understood.
func (r *reader) facts() Facts {
	f := r.f
	f.Pin = r.spec.Pin || r.pin || f.Saves || f.UsesSaved || f.Updates
	f.Retry = r.spec.Retry && !f.Unchanged && !f.Saves && !f.Updates
	f.Expunge = r.spec.Expunge
	switch {
	case f.Expunge == ExpSync && f.Numbers: // UID SEARCH 1:3 (RFC 7162 §3.2.10)
		f.Expunge = ExpNone
	case f.Expunge == ExpTranslate && f.Set == nil:
		f.Expunge = ExpNone
	}
	return f
}

// misread are the facts of a command that was not understood.
func (r *reader) misread() Facts {
	f := Facts{Pin: r.spec.Route != Local, name: r.f.name, Expunge: r.spec.Expunge}
	f.Numbers = r.spec.Expunge == ExpNone || r.spec.Expunge == ExpTranslate || r.spec.args >= searchArgs
	switch {
	case f.Numbers:
		f.Expunge = ExpNone
	case f.Expunge == ExpDrop: // answered BAD, it leaves the mailbox selected
		f.Expunge = ExpSync
	}
	return f
}

func (r *reader) arguments() error {
	switch r.spec.args {
	case bare:
		return r.ends()
	case mailboxArgs:
		return r.mailbox()
	case selectArgs:
		return r.selects()
	case statusArgs:
		return r.status()
	case listArgs:
		return r.list()
	case enableArgs:
		return r.enable()
	case notifyArgs:
		return r.notify()
	case appendArgs:
		return r.streamed(r.mailbox())
	case replaceArgs:
		return r.replace()
	case setArgs:
		return r.set()
	case fetchArgs:
		return r.fetch()
	case storeArgs:
		return r.store()
	case copyArgs:
		return r.copies()
	}
	return r.searches()
}

// streamed takes no offence at a literal that has not been read yet.
func (r *reader) streamed(err error) error {
	if errors.Is(err, errCut) {
		return nil
	}
	return err
}

// ends expects the end of the command.
func (r *reader) ends() error {
	if t := r.s.next(); t.kind != end {
		return r.syntax()
	}
	return nil
}

// syntax is why the last token was not what it should have been.
func (r *reader) syntax() error {
	if r.s.err != nil {
		return r.s.err
	}
	return ErrSyntax
}
