package audit

import (
	"strconv"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/identity"
)

// CommandFilter selects the commands of clients that are recorded.
type CommandFilter string

// Values of CommandFilter.
const (
	NoCommands    CommandFilter = "none"
	WriteCommands CommandFilter = "writes" // those that may change something
	AllCommands   CommandFilter = "all"
)

// MaxLiteralSizes bounds the literals whose sizes are recorded individually.
const MaxLiteralSizes = 16

// Command is one command of a client. It never has arguments other than these, nor
// any content of messages.
type Command struct {
	User          identity.User
	Backend       string
	Name          string // such as STORE or UID FETCH
	IsWrite       bool   // it may change something
	Mailbox       string // the mailbox it names, else the selected one; in the client's bytes
	Destination   string // destination of COPY, MOVE, REPLACE and RENAME
	Messages      uint32 // number of messages it names; 0 is left out
	LiteralSizes  []int64
	OtherLiterals LiteralTotal // those not in LiteralSizes
	Result        event.Result
	ResponseCode  string // the response code of its answer
	Duration      time.Duration
}

// LiteralTotal is the number and total size of literals.
type LiteralTotal struct {
	Count uint32
	Bytes int64
}

// Commands returns which commands Command records.
func (l *Log) Commands() CommandFilter { return l.cfg.Commands }

// Command records a command if the configuration selects it. It does not allocate.
// These records are dropped first.
func (l *Log) Command(c *Client, cmd *Command) error {
	if l.cfg.Commands != AllCommands && (l.cfg.Commands != WriteCommands || !cmd.IsWrite) {
		return nil
	}
	result := event.OrOther(cmd.Result)
	return l.appendRecord(recordMeta{event.CommandEvent, result}, func(b []byte) []byte {
		b = appendText(b, "session", c.Session, maxNameBytes)
		b = appendAddress(b, "peer", c.Peer)
		b = appendAddress(b, "client", c.Addr)
		b = appendText(b, "user", cmd.User.String(), maxUserBytes)
		b = appendText(b, "backend", cmd.Backend, maxNameBytes)
		b = appendText(b, "command", cmd.Name, maxNameBytes)
		b = appendText(b, "mailbox", cmd.Mailbox, maxTextBytes)
		b = appendText(b, "to", cmd.Destination, maxTextBytes)
		b = appendNonZero(b, "messages", uint64(cmd.Messages))
		b = appendLiterals(b, cmd.LiteralSizes, cmd.OtherLiterals)
		b = appendText(b, "result", result, maxNameBytes)
		b = appendText(b, "code", cmd.ResponseCode, maxNameBytes)
		return appendDuration(b, cmd.Duration)
	})
}

// appendLiterals appends the sizes of the first literals, the number of the others,
// and the total size.
func appendLiterals(b []byte, sizes []int64, more LiteralTotal) []byte {
	if len(sizes) == 0 {
		return b
	}
	b = append(b, `,"literals":[`...)
	total := more.Bytes
	for i, n := range sizes {
		total += n
		if i >= MaxLiteralSizes {
			more.Count++
			continue
		}
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, n, 10)
	}
	b = appendNonZero(append(b, ']'), "literals_more", uint64(more.Count))
	return appendCount(b, "literal_bytes", uint64(max(total, 0)))
}
