package mux

import (
	"bytes"
	"slices"
	"strings"
	"time"

	"imapgate/internal/audit"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/proxy/relay/mux/command"
	"imapgate/proxy/relay/mux/mailbox"
)

// recorder records a client's commands in the audit log, if commands are recorded.
type recorder struct {
	hub     *Hub
	client  *audit.Client
	user    identity.User
	backend string

	// log holds the unanswered commands as they arrived: at most maxOutstandingCommands and
	// the current one, which is the last. A command enters it once, when it is read, and
	// leaves it once, with the answer that the client receives. Resends do not affect it.
	//
	// It includes commands that need no record. If two commands have the same tag, the first
	// answer belongs to the first.
	log []loggedCommand
}

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

// begin starts the record of a command. It returns nil if commands are not recorded.
func (r *recorder) begin(tag []byte, spec *command.Spec) *loggedCommand {
	if which := r.hub.deps.Audit.Commands(); which != audit.AllCommands && which != audit.WriteCommands {
		return nil
	}
	n := len(r.log)
	if n == cap(r.log) {
		r.log = append(r.log, loggedCommand{})
	}
	r.log = r.log[:n+1]
	c := &r.log[n] // may have the slices of an earlier command
	*c = loggedCommand{tag: append(c.tag[:0], tag...), spec: spec, startedAt: r.hub.uptime(), literals: c.literals[:0]}
	return c
}

// current returns the command being read, nil if commands are not recorded. It is the
// last one, because a command that is answered early gets no further data.
func (r *recorder) current() *loggedCommand {
	if n := len(r.log); n > 0 {
		return &r.log[n-1]
	}
	return nil
}

// describe adds the mailboxes and the number of messages of the current command. m is the
// selected mailbox, or nil. The record contains nothing else of its arguments.
func (r *recorder) describe(req *request, m *mailbox.Mailbox) {
	c := r.current()
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
	c := r.current()
	switch {
	case c == nil || seg.Kind != imap.LineEnd || seg.End || seg.Literal.Size < 0:
	case len(c.literals) < audit.MaxLiteralSizes:
		c.literals = append(c.literals, seg.Literal.Size)
	default:
		c.moreLiterals.Count++
		c.moreLiterals.Bytes += seg.Literal.Size
	}
}

// finish writes the record of the command that line answers: the first one with its tag.
// line is the answer that the client receives.
func (r *recorder) finish(line []byte) {
	i := slices.IndexFunc(r.log, func(c loggedCommand) bool {
		return len(line) > len(c.tag) && line[len(c.tag)] == ' ' && bytes.HasPrefix(line, c.tag)
	})
	if i < 0 {
		return
	}
	c := &r.log[i]
	result := event.ResultOK
	answer := line[len(c.tag)+1:]
	switch {
	case imap.HasWordPrefix(answer, "NO"):
		result = event.ResultNo
	case imap.HasWordPrefix(answer, "BAD"):
		result = event.ResultBad
	}
	r.write(c, result, responseCode(answer))
	last, answered := len(r.log)-1, *c
	copy(r.log[i:], r.log[i+1:])
	r.log[last] = answered // begin reuses its slices
	r.log = r.log[:last]
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
	for i := range c.records.log {
		c.records.write(&c.records.log[i], event.ResultAborted, "")
	}
	c.records.log = c.records.log[:0]
}

// beginIdle starts the record of an IDLE at its end. Until then only its start time is
// kept. m is the selected mailbox, or nil.
func (r *recorder) beginIdle(i *idleState, m *mailbox.Mailbox) {
	c := r.begin([]byte(i.tag), &command.Spec{Name: "IDLE"})
	if c == nil {
		return
	}
	c.startedAt = i.startedAt
	if m != nil {
		c.mailbox = m.Name()
	}
}
