package mux

import (
	"bytes"
	"strings"
	"time"

	"imapgate/internal/audit"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/proxy/relay/mux/command"
	"imapgate/proxy/relay/mux/mailbox"
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

// recorder records a client's commands in the audit log, if commands are recorded.
type recorder struct {
	hub     *Hub
	client  *audit.Client
	user    identity.User
	backend string
	log     commandLog
}

// begin starts the record of a command.
func (r *recorder) begin(tag []byte, spec *command.Spec) {
	if r.isEnabled() {
		r.log.begin(tag, spec, r.hub.uptime())
	}
}

func (r *recorder) isEnabled() bool {
	which := r.hub.deps.Audit.Commands()
	return which == audit.AllCommands || which == audit.WriteCommands
}

// describe adds the mailboxes and the number of messages of the current command. m is the
// selected mailbox, or nil. The record contains nothing else of its arguments.
func (r *recorder) describe(req *request, m *mailbox.Mailbox) {
	c := r.log.current()
	if c == nil {
		return
	}
	if !req.parseFailed {
		c.mailbox, c.destination = req.facts.Mailboxes(req.spec, req.raw)
	}
	if m == nil {
		return
	}
	if c.mailbox == "" && (req.spec.NeedsMailbox || req.spec.Name == "NOOP") {
		c.mailbox = m.Name()
	}
	if len(req.facts.Set) == 0 {
		return
	}
	set, err := imap.ParseSet(string(req.facts.Set))
	switch {
	case err != nil: // unparsable for the gateway
	case strings.HasPrefix(req.spec.Name, "UID "):
		c.messages = m.CountUIDs(set)
	default:
		c.messages = m.CountNumbers(set)
	}
}

// addLiteral adds the size of the next literal of the current command.
func (r *recorder) addLiteral(seg imap.Segment) {
	c := r.log.current()
	switch {
	case c == nil || seg.Kind != imap.LineEnd || seg.End || seg.Literal.Size < 0:
	case len(c.literals) < audit.MaxLiteralSizes:
		c.literals = append(c.literals, seg.Literal.Size)
	default:
		c.moreLiterals.Count++
		c.moreLiterals.Bytes += seg.Literal.Size
	}
}

// finish writes the record of the command that line answers. line is the answer that the
// client receives.
func (r *recorder) finish(line []byte) {
	if len(r.log) == 0 {
		return
	}
	c := r.log.finish(line)
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
	r.write(c, result, responseCode(answer))
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

// beginIdle starts the record of an IDLE at its end. Until then only its start time is
// kept. m is the selected mailbox, or nil.
func (r *recorder) beginIdle(i *idleState, m *mailbox.Mailbox) {
	if !r.isEnabled() {
		return
	}
	c := r.log.begin([]byte(i.tag), &command.Spec{Name: "IDLE"}, i.startedAt)
	if m != nil {
		c.mailbox = m.Name()
	}
}

// abort writes the records of commands that will not be answered.
func (r *recorder) abort() {
	for i := range r.log {
		r.write(&r.log[i], event.ResultAborted, "")
	}
	r.log.clear()
}

func (r *recorder) write(c *loggedCommand, result event.Result, code string) {
	verb := c.spec.Name
	if verb == "" { // the client's own text, which may be anything
		verb = "other"
	}
	_ = r.hub.deps.Audit.Command(r.client, &audit.Command{
		User: r.user, Backend: r.backend, Name: verb, IsWrite: c.spec.Writes, Mailbox: c.mailbox, Destination: c.destination,
		Messages: c.messages, LiteralSizes: c.literals, OtherLiterals: c.moreLiterals, Result: result, ResponseCode: code, Duration: r.hub.uptime() - c.startedAt,
	}) // if the log is full, it is counted as lost
}

// abortRecords writes the records of commands that will not be answered. m is the
// selected mailbox, or nil.
func (c *clientSide) abortRecords(m *mailbox.Mailbox) {
	if c.idle != nil {
		c.records.beginIdle(c.idle, m)
	}
	c.records.abort()
}
