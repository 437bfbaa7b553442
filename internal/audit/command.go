package audit

import (
	"strconv"
	"time"

	"imapgate/internal/identity"
)

// CommandFilter says which commands of clients are written down.
type CommandFilter string

// Which commands are written down.
const (
	NoCommands    CommandFilter = "none"
	WriteCommands CommandFilter = "writes" // those that may change something
	AllCommands   CommandFilter = "all"
)

// CommandResult is how a command was answered. The constants below are all
// there are; another value shows as other.
type CommandResult string

// How a command was answered.
const (
	CommandOK  CommandResult = "ok"
	CommandNo  CommandResult = "no"
	CommandBad CommandResult = "bad"
	CommandCut CommandResult = "aborted" // not at all: a connection ended
)

// commandResults is every CommandResult. Constant.
var commandResults = map[CommandResult]bool{CommandOK: true, CommandNo: true, CommandBad: true, CommandCut: true}

// Known says whether r is one of the constants.
func (r CommandResult) Known() bool { return commandResults[r] }

// MaxLiteralSizes bounds the literals whose sizes are written down one by one.
const MaxLiteralSizes = 16

// Command is one command of a client: never its other arguments, and nothing
// of what messages contain.
type Command struct {
	User          identity.User
	Backend       string
	Name          string // STORE, UID FETCH
	IsWrite       bool   // it may change something
	Mailbox       string // the one it names, else the selected one; the client's bytes
	Destination   string // where COPY, MOVE, REPLACE and RENAME put it
	Messages      uint32 // how many it names; 0 is left out
	LiteralSizes  []int64
	OtherLiterals LiteralTotal // those that are not in Literals
	Result        CommandResult
	ResponseCode  string // the response code of its answer
	Duration      time.Duration
}

// LiteralTotal is literals of which only the sum is known.
type LiteralTotal struct {
	Count uint32
	Bytes int64
}

// Commands says which commands are to be given to Command.
func (l *Log) Commands() CommandFilter { return l.cfg.Commands }

// Command records a command, if such are recorded. It allocates nothing; when
// there is little room it gives way.
func (l *Log) Command(c *Client, cmd *Command) error {
	if l.cfg.Commands != AllCommands && (l.cfg.Commands != WriteCommands || !cmd.IsWrite) {
		return nil
	}
	result := string(cmd.Result)
	if !cmd.Result.Known() {
		result = other
	}
	return l.appendRecord(recordMeta{eventType: command, result: result}, func(b []byte) []byte {
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

// appendLiterals appends the sizes of the first literals, how many more there are,
// and what all have.
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
