package audit

import (
	"strconv"
	"time"

	"imapgate/internal/identity"
)

// Commands says which commands of clients are written down.
type Commands string

// Which commands are written down.
const (
	NoCommands    Commands = "none"
	WriteCommands Commands = "writes" // those that may change something
	AllCommands   Commands = "all"
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

// MaxSizes bounds the literals whose sizes are written down one by one.
const MaxSizes = 16

// Command is one command of a client: never its other arguments, and nothing
// of what messages contain.
type Command struct {
	User     identity.User
	Backend  string
	Verb     string // STORE, UID FETCH
	Writes   bool   // it may change something
	Mailbox  string // the one it names, else the selected one; the client's bytes
	To       string // where COPY, MOVE, REPLACE and RENAME put it
	Messages uint32 // how many it names; 0 is left out
	Literals []int64
	More     Literals // those that are not in Literals
	Result   CommandResult
	Code     string // the response code of its answer
	Took     time.Duration
}

// Literals is literals of which only the sum is known.
type Literals struct {
	Count uint32
	Bytes int64
}

// Commands says which commands are to be given to Command.
func (l *Log) Commands() Commands { return l.cfg.Commands }

// Command records a command, if such are recorded. It allocates nothing; when
// there is little room it gives way.
func (l *Log) Command(c *Client, cmd *Command) error {
	if l.cfg.Commands != AllCommands && (l.cfg.Commands != WriteCommands || !cmd.Writes) {
		return nil
	}
	result := string(cmd.Result)
	if !cmd.Result.Known() {
		result = other
	}
	return l.add(note{kind: command, result: result}, func(b []byte) []byte {
		b = appendText(b, "session", c.Session, maxName)
		b = appendAddress(b, "peer", c.Peer)
		b = appendAddress(b, "client", c.Claimed)
		b = appendText(b, "user", cmd.User.String(), maxUser)
		b = appendText(b, "backend", cmd.Backend, maxName)
		b = appendText(b, "command", cmd.Verb, maxName)
		b = appendText(b, "mailbox", cmd.Mailbox, maxText)
		b = appendText(b, "to", cmd.To, maxText)
		b = appendSome(b, "messages", uint64(cmd.Messages))
		b = appendSizes(b, cmd.Literals, cmd.More)
		b = appendText(b, "result", result, maxName)
		b = appendText(b, "code", cmd.Code, maxName)
		return appendDuration(b, cmd.Took)
	})
}

// appendSizes appends the sizes of the first literals, how many more there are,
// and what all have.
func appendSizes(b []byte, sizes []int64, more Literals) []byte {
	if len(sizes) == 0 {
		return b
	}
	b = append(b, `,"literals":[`...)
	all := more.Bytes
	for i, n := range sizes {
		all += n
		if i >= MaxSizes {
			more.Count++
			continue
		}
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, n, 10)
	}
	b = appendSome(append(b, ']'), "literals_more", uint64(more.Count))
	return appendCount(b, "literal_bytes", uint64(max(all, 0)))
}
