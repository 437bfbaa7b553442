package mux

import (
	"bytes"
	"strings"
	"time"

	"imapgate/internal/audit"
	"imapgate/internal/imap"
	"imapgate/proxy/mux/command"
)

// journal is the client's commands that have not been answered yet, as they came,
// where commands are put on record: at most maxCommands, and the one in hand. What
// becomes of them on the way to a backend is none of its business: a command is
// opened once, when it is read, and closed once, by the answer that its client gets.
//
// It has those that need no record too: of two with one tag, the first is the one
// that is answered first.
type journal []opened

// opened is one command.
type opened struct {
	tag      []byte
	spec     *command.Spec
	began    time.Duration // age of the hub
	mailbox  string
	to       string
	messages uint32
	literals []int64 // at most audit.MaxSizes
	more     audit.Literals
}

// open adds a command.
func (j *journal) open(tag []byte, spec *command.Spec, began time.Duration) *opened {
	n := len(*j)
	if n == cap(*j) {
		*j = append(*j, opened{})
	}
	*j = (*j)[:n+1]
	o := &(*j)[n]
	*o = opened{tag: append(o.tag[:0], tag...), spec: spec, began: began, literals: o.literals[:0]}
	return o
}

// close takes off the command that a line answers: the first one with its tag,
// nil if there is none. It is there until another is opened.
func (j *journal) close(line []byte) *opened {
	all := *j
	for i := range all {
		tag := all[i].tag
		if len(line) <= len(tag) || line[len(tag)] != ' ' || !bytes.HasPrefix(line, tag) {
			continue
		}
		last := len(all) - 1
		o := all[i]
		copy(all[i:], all[i+1:])
		all[last] = o
		*j = all[:last]
		return &all[last]
	}
	return nil
}

// inHand is the command that is being read, nil where none are put on record: the
// last, because of one that is answered early nothing more is put down.
func (j journal) inHand() *opened {
	if n := len(j); n > 0 {
		return &j[n-1]
	}
	return nil
}

// forget takes off everything.
func (j *journal) forget() { *j = (*j)[:0] }

// opens begins the record of a command, if any are recorded.
func (s *session) opens(r *request) {
	if s.audited() {
		s.journal.open(r.tag, r.spec, s.hub.age())
	}
}

func (s *session) audited() bool {
	which := s.hub.rooms.Audit.Commands()
	return which == audit.AllCommands || which == audit.WriteCommands
}

// describes puts down what the command in hand is about: mailboxes, and how many
// messages. Nothing else of its arguments.
func (s *session) describes(r *request) {
	o := s.journal.inHand()
	if o == nil {
		return
	}
	if !r.syntax {
		o.mailbox, o.to = r.facts.Mailboxes(r.spec, r.whole)
	}
	if s.box == nil {
		return
	}
	if o.mailbox == "" && (r.spec.InMailbox || r.spec.Name == "NOOP") {
		o.mailbox = s.box.name
	}
	if len(r.facts.Set) == 0 {
		return
	}
	set, err := imap.ParseSet(string(r.facts.Set))
	switch {
	case err != nil: // not to us
	case strings.HasPrefix(r.spec.Name, "UID "):
		o.messages = s.box.view.CountUIDs(set)
	default:
		o.messages = s.box.view.Count(set)
	}
}

// brings puts down the size of the literal that the command in hand goes on with.
func (s *session) brings(seg imap.Segment) {
	o := s.journal.inHand()
	switch {
	case o == nil || seg.Kind != imap.Text || seg.End || seg.Literal.Size < 0:
	case len(o.literals) < audit.MaxSizes:
		o.literals = append(o.literals, seg.Literal.Size)
	default:
		o.more.Count++
		o.more.Bytes += seg.Literal.Size
	}
}

// closes puts the command on record to which line is the answer that the client
// gets.
func (s *session) closes(line []byte) {
	if len(s.journal) == 0 {
		return
	}
	o := s.journal.close(line)
	if o == nil {
		return
	}
	result := audit.CommandOK
	answer := line[len(o.tag)+1:]
	switch {
	case imap.HasWord(answer, "NO"):
		result = audit.CommandNo
	case imap.HasWord(answer, "BAD"):
		result = audit.CommandBad
	}
	s.record(o, result, responseCode(answer))
}

// responseCode is the name of an answer's response code, "" for none.
func responseCode(answer []byte) string {
	_, code, ok := bytes.Cut(answer, []byte(" ["))
	end := bytes.IndexAny(code, " ]")
	if !ok || end < 0 || bytes.IndexByte(answer, ' ') != len(answer)-len(code)-len(" [") {
		return ""
	}
	return string(code[:end])
}

// reopens is the end of an IDLE, of which nothing was kept but when it began.
func (s *session) reopens(i *idling) {
	if !s.audited() {
		return
	}
	o := s.journal.open([]byte(i.tag), &command.Spec{Name: "IDLE"}, i.began)
	if s.box != nil {
		o.mailbox = s.box.name
	}
}

// cutsAll puts on record what will not be answered any more.
func (s *session) cutsAll() {
	if s.idling != nil {
		s.reopens(s.idling)
	}
	for i := range s.journal {
		s.record(&s.journal[i], audit.CommandCut, "")
	}
	s.journal.forget()
}

func (s *session) record(o *opened, result audit.CommandResult, code string) {
	verb := o.spec.Name
	if verb == "" { // the client's own word, which may be anything
		verb = "other"
	}
	_ = s.hub.rooms.Audit.Command(s.who, &audit.Command{
		User: s.account.User(), Backend: s.backend.name, Verb: verb, Writes: o.spec.Writes, Mailbox: o.mailbox, To: o.to,
		Messages: o.messages, Literals: o.literals, More: o.more, Result: result, Code: code, Took: s.hub.age() - o.began,
	}) // without room it is counted as lost
}
