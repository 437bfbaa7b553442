package mux

import (
	"imapgate/internal/audit"
	"imapgate/proxy/mux/command"
)

// Bounds of what is outstanding. While more has been sent than the kernels in
// between can hold, nobody would read the answers: so little is let go ahead.
const (
	maxOutstandingCommands = 32
	maxOutstandingBytes    = 32 << 10 // bytes, unless it is one command alone
)

// outstandingQueue is the commands that were sent and not yet answered, in order, with
// their bytes: a lost upstream may make it necessary to send them again.
type outstandingQueue struct {
	commands      []outstandingCommand
	answeredCount int // of list
	buf           []byte
}

// outstandingCommand is one command. Its bytes are outstanding.buf[from:to].
type outstandingCommand struct {
	spec            *command.Spec
	start, end      int
	tagLen          int                   // bytes of it
	retryable       bool                  // harmless to send again
	expungePolicy   command.ExpungePolicy // what may be told while it runs
	isSyncPoint     bool                  // the answer means that the client was told all changes
	closesMailbox   bool                  // answered OK, it leaves the mailbox
	selectsMailbox  bool                  // answered before its name was asked for, it leaves what was selected
	nonSync         bool                  // its message went out without being asked for
	withoutMailbox  bool                  // it can run without the mailbox, where the client cannot be told of what has gone
	upstreamDropped bool                  // a connection that was silent was given up over it
	pinReason       audit.Why             // the session is pinned once it is answered, unless by BAD
}

func (o *outstandingQueue) isEmpty() bool { return o.answeredCount == len(o.commands) }

func (o *outstandingQueue) isFull() bool {
	return len(o.commands)-o.answeredCount >= maxOutstandingCommands || len(o.buf) >= maxOutstandingBytes
}

// add notes a command that is about to be sent.
func (o *outstandingQueue) add(e outstandingCommand, raw []byte) {
	e.start = len(o.buf)
	o.buf = append(o.buf, raw...)
	e.end = len(o.buf)
	o.commands = append(o.commands, e)
}

// addFrom notes the commands of other from its i-th outstanding one on.
func (o *outstandingQueue) addFrom(other *outstandingQueue, i int) {
	for _, e := range other.all()[i:] {
		o.add(e, other.raw(e))
	}
}

// all are the commands still outstanding.
func (o *outstandingQueue) all() []outstandingCommand { return o.commands[o.answeredCount:] }

// raw is the bytes of a command, and tag its tag.
func (o *outstandingQueue) raw(e outstandingCommand) []byte { return o.buf[e.start:e.end] }
func (o *outstandingQueue) tagOf(e outstandingCommand) []byte {
	return o.buf[e.start : e.start+e.tagLen]
}

// takeAnswered takes off the command to which line, "TAG …", is the answer: the
// first one, for every server that there is.
func (o *outstandingQueue) takeAnswered(line []byte) (outstandingCommand, bool) {
	for i := o.answeredCount; i < len(o.commands); i++ {
		e := o.commands[i]
		tag := o.tagOf(e)
		if len(line) <= len(tag) || line[len(tag)] != ' ' || string(line[:len(tag)]) != string(tag) {
			continue
		}
		copy(o.commands[o.answeredCount+1:i+1], o.commands[o.answeredCount:i])
		if o.answeredCount++; o.isEmpty() {
			o.clear()
		}
		return e, true
	}
	return outstandingCommand{}, false
}

func (o *outstandingQueue) hasTag(tag []byte) bool {
	for _, e := range o.all() {
		if string(o.tagOf(e)) == string(tag) {
			return true
		}
	}
	return false
}

func (o *outstandingQueue) clear() { o.commands, o.buf, o.answeredCount = o.commands[:0], o.buf[:0], 0 }

func (o *outstandingQueue) releaseBuffers() {
	if o.isEmpty() {
		*o = outstandingQueue{}
	}
}
