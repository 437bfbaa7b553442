package mux

import (
	"imapgate/internal/audit"
	"imapgate/proxy/mux/command"
)

// Bounds of what is outstanding. While more has been sent than the kernels in
// between can hold, nobody would read the answers: so little is let go ahead.
const (
	maxCommands    = 32
	maxOutstanding = 32 << 10 // bytes, unless it is one command alone
)

// outstanding is the commands that were sent and not yet answered, in order, with
// their bytes: a lost upstream may make it necessary to send them again.
type outstanding struct {
	list  []entry
	done  int // of list
	bytes []byte
}

// entry is one command. Its bytes are outstanding.bytes[from:to].
type entry struct {
	spec     *command.Spec
	from, to int
	tag      int             // bytes of it
	retry    bool            // harmless to send again
	expunge  command.Expunge // what may be told while it runs
	syncs    bool            // the answer means that the client was told all changes
	closes   bool            // answered OK, it leaves the mailbox
	selects  bool            // answered before its name was asked for, it leaves what was selected
	unasked  bool            // its message went out without being asked for
	aside    bool            // it can run without the mailbox, where the client cannot be told of what has gone
	givenUp  bool            // a connection that was silent was given up over it
	pin      audit.Why       // the session is pinned once it is answered, unless by BAD
}

func (o *outstanding) empty() bool { return o.done == len(o.list) }

func (o *outstanding) full() bool {
	return len(o.list)-o.done >= maxCommands || len(o.bytes) >= maxOutstanding
}

// add notes a command that is about to be sent.
func (o *outstanding) add(e entry, bytes []byte) {
	e.from = len(o.bytes)
	o.bytes = append(o.bytes, bytes...)
	e.to = len(o.bytes)
	o.list = append(o.list, e)
}

// addAll notes the commands of other from its i-th outstanding one on.
func (o *outstanding) addAll(other *outstanding, i int) {
	for _, e := range other.all()[i:] {
		o.add(e, other.of(e))
	}
}

// all are the commands still outstanding.
func (o *outstanding) all() []entry { return o.list[o.done:] }

// of is the bytes of a command, and tag its tag.
func (o *outstanding) of(e entry) []byte  { return o.bytes[e.from:e.to] }
func (o *outstanding) tag(e entry) []byte { return o.bytes[e.from : e.from+e.tag] }

// answered takes off the command to which line, "TAG …", is the answer: the
// first one, for every server that there is.
func (o *outstanding) answered(line []byte) (entry, bool) {
	for i := o.done; i < len(o.list); i++ {
		e := o.list[i]
		tag := o.tag(e)
		if len(line) <= len(tag) || line[len(tag)] != ' ' || string(line[:len(tag)]) != string(tag) {
			continue
		}
		copy(o.list[o.done+1:i+1], o.list[o.done:i])
		if o.done++; o.empty() {
			o.clear()
		}
		return e, true
	}
	return entry{}, false
}

func (o *outstanding) has(tag []byte) bool {
	for _, e := range o.all() {
		if string(o.tag(e)) == string(tag) {
			return true
		}
	}
	return false
}

func (o *outstanding) clear() { o.list, o.bytes, o.done = o.list[:0], o.bytes[:0], 0 }

func (o *outstanding) relax() {
	if o.empty() {
		*o = outstanding{}
	}
}
