package mux

import (
	"bytes"
	"strings"
	"time"

	"imapgate/internal/audit"
	"imapgate/internal/imap"
	"imapgate/proxy/mux/command"
)

// commandLog is the client's commands that have not been answered yet, as they came,
// where commands are put on record: at most maxOutstandingCommands, and the one in hand. What
// becomes of them on the way to a backend is none of its business: a command is
// opened once, when it is read, and closed once, by the answer that its client gets.
//
// It has those that need no record too: of two with one tag, the first is the one
// that is answered first.
type commandLog []loggedCommand

// loggedCommand is one command.
type loggedCommand struct {
	tag          []byte
	spec         *command.Spec
	startedAt    time.Duration // age of the hub
	mailbox      string
	destination  string
	messages     uint32
	literals     []int64 // at most audit.MaxLiteralSizes
	moreLiterals audit.LiteralTotal
}

// begin adds a command.
func (l *commandLog) begin(tag []byte, spec *command.Spec, startedAt time.Duration) *loggedCommand {
	n := len(*l)
	if n == cap(*l) {
		*l = append(*l, loggedCommand{})
	}
	*l = (*l)[:n+1]
	o := &(*l)[n]
	*o = loggedCommand{tag: append(o.tag[:0], tag...), spec: spec, startedAt: startedAt, literals: o.literals[:0]}
	return o
}

// finish takes off the command that a line answers: the first one with its tag,
// nil if there is none. It is there until another is opened.
func (l *commandLog) finish(line []byte) *loggedCommand {
	all := *l
	for i := range all {
		tag := all[i].tag
		if len(line) <= len(tag) || line[len(tag)] != ' ' || !bytes.HasPrefix(line, tag) {
			continue
		}
		last := len(all) - 1
		o := all[i]
		copy(all[i:], all[i+1:])
		all[last] = o
		*l = all[:last]
		return &all[last]
	}
	return nil
}

// current is the command that is being read, nil where none are put on record: the
// last, because of one that is answered early nothing more is put down.
func (l commandLog) current() *loggedCommand {
	if n := len(l); n > 0 {
		return &l[n-1]
	}
	return nil
}

// clear takes off everything.
func (l *commandLog) clear() { *l = (*l)[:0] }

// beginRecord begins the record of a command, if any are recorded.
func (s *session) beginRecord(r *request) {
	if s.recordsCommands() {
		s.commandLog.begin(r.tag, r.spec, s.hub.uptime())
	}
}

func (s *session) recordsCommands() bool {
	which := s.hub.deps.Audit.Commands()
	return which == audit.AllCommands || which == audit.WriteCommands
}

// describeRecord puts down what the command in hand is about: mailboxes, and how many
// messages. Nothing else of its arguments.
func (s *session) describeRecord(r *request) {
	o := s.commandLog.current()
	if o == nil {
		return
	}
	if !r.parseFailed {
		o.mailbox, o.destination = r.facts.Mailboxes(r.spec, r.raw)
	}
	if s.mailbox == nil {
		return
	}
	if o.mailbox == "" && (r.spec.NeedsMailbox || r.spec.Name == "NOOP") {
		o.mailbox = s.mailbox.name
	}
	if len(r.facts.Set) == 0 {
		return
	}
	set, err := imap.ParseSet(string(r.facts.Set))
	switch {
	case err != nil: // not to us
	case strings.HasPrefix(r.spec.Name, "UID "):
		o.messages = s.mailbox.view.CountUIDs(set)
	default:
		o.messages = s.mailbox.view.CountNumbers(set)
	}
}

// recordLiteral puts down the size of the literal that the command in hand goes on with.
func (s *session) recordLiteral(seg imap.Segment) {
	o := s.commandLog.current()
	switch {
	case o == nil || seg.Kind != imap.LineEnd || seg.End || seg.Literal.Size < 0:
	case len(o.literals) < audit.MaxLiteralSizes:
		o.literals = append(o.literals, seg.Literal.Size)
	default:
		o.moreLiterals.Count++
		o.moreLiterals.Bytes += seg.Literal.Size
	}
}

// finishRecord puts the command on record to which line is the answer that the client
// gets.
func (s *session) finishRecord(line []byte) {
	if len(s.commandLog) == 0 {
		return
	}
	o := s.commandLog.finish(line)
	if o == nil {
		return
	}
	result := audit.CommandOK
	answer := line[len(o.tag)+1:]
	switch {
	case imap.HasWordPrefix(answer, "NO"):
		result = audit.CommandNo
	case imap.HasWordPrefix(answer, "BAD"):
		result = audit.CommandBad
	}
	s.writeRecord(o, result, responseCode(answer))
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

// beginIdleRecord is the end of an IDLE, of which nothing was kept but when it began.
func (s *session) beginIdleRecord(i *idleState) {
	if !s.recordsCommands() {
		return
	}
	o := s.commandLog.begin([]byte(i.tag), &command.Spec{Name: "IDLE"}, i.startedAt)
	if s.mailbox != nil {
		o.mailbox = s.mailbox.name
	}
}

// abortRecords puts on record what will not be answered any more.
func (s *session) abortRecords() {
	if s.idleState != nil {
		s.beginIdleRecord(s.idleState)
	}
	for i := range s.commandLog {
		s.writeRecord(&s.commandLog[i], audit.CommandCut, "")
	}
	s.commandLog.clear()
}

func (s *session) writeRecord(o *loggedCommand, result audit.CommandResult, code string) {
	verb := o.spec.Name
	if verb == "" { // the client's own word, which may be anything
		verb = "other"
	}
	_ = s.hub.deps.Audit.Command(s.auditClient, &audit.Command{
		User: s.account.User(), Backend: s.backend.name, Name: verb, IsWrite: o.spec.Writes, Mailbox: o.mailbox, Destination: o.destination,
		Messages: o.messages, LiteralSizes: o.literals, OtherLiterals: o.moreLiterals, Result: result, ResponseCode: code, Duration: s.hub.uptime() - o.startedAt,
	}) // without room it is counted as lost
}
