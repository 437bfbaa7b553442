package mux

import (
	"bytes"
	"strings"
	"time"

	"imapgate/internal/audit"
	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/proxy/mux/command"
)

// commandLog holds the client's unanswered commands as they arrived, if commands are
// recorded: at most maxOutstandingCommands and the current one. A command enters it once,
// when it is read, and leaves it once, with the answer that the client receives. Resends
// do not affect it.
//
// It includes commands that need no record. If two commands have the same tag, the first
// answer belongs to the first.
type commandLog []loggedCommand

// loggedCommand is one command of the log.
type loggedCommand struct {
	tag          []byte
	spec         *command.Spec
	startedAt    time.Duration // hub uptime
	mailbox      string
	destination  string
	messages     uint32
	literals     []int64 // at most audit.MaxLiteralSizes
	moreLiterals audit.LiteralTotal
}

// begin adds a command to the log.
func (l *commandLog) begin(tag []byte, spec *command.Spec, startedAt time.Duration) *loggedCommand {
	n := len(*l)
	if n == cap(*l) {
		*l = append(*l, loggedCommand{})
	}
	*l = (*l)[:n+1]
	c := &(*l)[n]
	*c = loggedCommand{tag: append(c.tag[:0], tag...), spec: spec, startedAt: startedAt, literals: c.literals[:0]}
	return c
}

// finish removes and returns the command that line answers: the first one with its tag,
// or nil. The result is valid until the next begin.
func (l *commandLog) finish(line []byte) *loggedCommand {
	all := *l
	for i := range all {
		tag := all[i].tag
		if len(line) <= len(tag) || line[len(tag)] != ' ' || !bytes.HasPrefix(line, tag) {
			continue
		}
		last := len(all) - 1
		c := all[i]
		copy(all[i:], all[i+1:])
		all[last] = c
		*l = all[:last]
		return &all[last]
	}
	return nil
}

// current returns the command being read, nil if commands are not recorded. It is the
// last one, because a command that is answered early gets no further data.
func (l commandLog) current() *loggedCommand {
	if n := len(l); n > 0 {
		return &l[n-1]
	}
	return nil
}

// clear removes all commands.
func (l *commandLog) clear() { *l = (*l)[:0] }

// beginRecord starts the record of a command, if commands are recorded.
func (s *session) beginRecord(r *request) {
	if s.recordsCommands() {
		s.commandLog.begin(r.tag, r.spec, s.hub.uptime())
	}
}

func (s *session) recordsCommands() bool {
	which := s.hub.deps.Audit.Commands()
	return which == audit.AllCommands || which == audit.WriteCommands
}

// describeRecord adds the mailboxes and the number of messages of the current command.
// The record contains nothing else of its arguments.
func (s *session) describeRecord(r *request) {
	c := s.commandLog.current()
	if c == nil {
		return
	}
	if !r.parseFailed {
		c.mailbox, c.destination = r.facts.Mailboxes(r.spec, r.raw)
	}
	if s.mailbox == nil {
		return
	}
	if c.mailbox == "" && (r.spec.NeedsMailbox || r.spec.Name == "NOOP") {
		c.mailbox = s.mailbox.Name()
	}
	if len(r.facts.Set) == 0 {
		return
	}
	set, err := imap.ParseSet(string(r.facts.Set))
	switch {
	case err != nil: // unparsable for the gateway
	case strings.HasPrefix(r.spec.Name, "UID "):
		c.messages = s.mailbox.CountUIDs(set)
	default:
		c.messages = s.mailbox.CountNumbers(set)
	}
}

// recordLiteral adds the size of the next literal of the current command.
func (s *session) recordLiteral(seg imap.Segment) {
	c := s.commandLog.current()
	switch {
	case c == nil || seg.Kind != imap.LineEnd || seg.End || seg.Literal.Size < 0:
	case len(c.literals) < audit.MaxLiteralSizes:
		c.literals = append(c.literals, seg.Literal.Size)
	default:
		c.moreLiterals.Count++
		c.moreLiterals.Bytes += seg.Literal.Size
	}
}

// finishRecord writes the record of the command that line answers. line is the answer
// that the client receives.
func (s *session) finishRecord(line []byte) {
	if len(s.commandLog) == 0 {
		return
	}
	c := s.commandLog.finish(line)
	if c == nil {
		return
	}
	result := event.ResultOK
	answer := line[len(c.tag)+1:]
	switch {
	case imap.HasWordPrefix(answer, "NO"):
		result = event.ResultNo
	case imap.HasWordPrefix(answer, "BAD"):
		result = event.ResultBad
	}
	s.writeRecord(c, result, responseCode(answer))
}

// responseCode returns the name of an answer's response code, "" for none.
func responseCode(answer []byte) string {
	_, code, ok := bytes.Cut(answer, []byte(" ["))
	end := bytes.IndexAny(code, " ]")
	if !ok || end < 0 || bytes.IndexByte(answer, ' ') != len(answer)-len(code)-len(" [") {
		return ""
	}
	return string(code[:end])
}

// beginIdleRecord starts the record of an IDLE at its end. Until then only its start time
// is kept.
func (s *session) beginIdleRecord(i *idleState) {
	if !s.recordsCommands() {
		return
	}
	c := s.commandLog.begin([]byte(i.tag), &command.Spec{Name: "IDLE"}, i.startedAt)
	if s.mailbox != nil {
		c.mailbox = s.mailbox.Name()
	}
}

// abortRecords writes the records of commands that will not be answered.
func (s *session) abortRecords() {
	if s.idleState != nil {
		s.beginIdleRecord(s.idleState)
	}
	for i := range s.commandLog {
		s.writeRecord(&s.commandLog[i], event.ResultAborted, "")
	}
	s.commandLog.clear()
}

func (s *session) writeRecord(c *loggedCommand, result event.Result, code string) {
	verb := c.spec.Name
	if verb == "" { // the client's own text, which may be anything
		verb = "other"
	}
	_ = s.hub.deps.Audit.Command(s.auditClient, &audit.Command{
		User: s.account.User(), Backend: s.backend.name, Name: verb, IsWrite: c.spec.Writes, Mailbox: c.mailbox, Destination: c.destination,
		Messages: c.messages, LiteralSizes: c.literals, OtherLiterals: c.moreLiterals, Result: result, ResponseCode: code, Duration: s.hub.uptime() - c.startedAt,
	}) // if the log is full, it is counted as lost
}
