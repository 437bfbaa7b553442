package model

import "strings"

// expungeRule says whether EXPUNGE may be sent while a command is in progress.
type expungeRule int

const (
	expungeNever  expungeRule = iota // FETCH, STORE, SEARCH, and UID SEARCH with message numbers
	expungeAlways                    // everything else (RFC 3501 §7.4.1, RFC 7162 §3.2.10)
)

// Command is what a client says, and what the model has to know of it.
type Command struct {
	// Set once.
	verb          string // the first word, two with UID, upper case
	args          string // the rest, without CRLF and without the literal
	literal       string // of APPEND
	syncLiteral   bool   // the literal is sent when the server said +
	expunge       expungeRule
	nonIdempotent bool // doing it twice can be seen: it is never sent again

	mailbox    string      // SELECT, EXAMINE: the mailbox
	resyncFrom *savedState // and what the client kept of it
	targets    []uint32
	// onEnd is called with the answer, or with none when the session ended first.
	onEnd func(Result) error

	// Owned by the Mirror.
	tag         string
	copyUID     string              // of an untagged COPYUID
	complete    bool                // all of it was sent
	flagsSeen   map[uint32]struct{} // UIDs, of which FETCH FLAGS came meanwhile
	contentSeen map[uint32]struct{} // UIDs, of which content came meanwhile
}

// newCommand makes one that needs no more than the defaults.
func newCommand(verb, args string) *Command {
	c := &Command{verb: verb, args: args, expunge: expungeAlways}
	c.nonIdempotent = isNonIdempotent(c)
	switch verb {
	case "FETCH", "STORE", "SEARCH":
		c.expunge = expungeNever
	}
	return c
}

// isNonIdempotent says of a command that doing it again can be observed, so that a
// gateway must not.
func isNonIdempotent(c *Command) bool {
	switch c.verb {
	case "APPEND", "COPY", "MOVE", "UID COPY", "UID MOVE", "EXPUNGE", "CLOSE", "CREATE":
		return true
	case "STORE", "UID STORE":
		return strings.Contains(c.args, "(UNCHANGEDSINCE ")
	}
	return false
}

// markNumbered marks a UID SEARCH whose criteria have message numbers.
func (c *Command) markNumbered() *Command {
	c.expunge = expungeNever
	return c
}

// setOnEnd sets what is to be done with the answer.
func (c *Command) setOnEnd(onEnd func(Result) error) *Command {
	c.onEnd = onEnd
	return c
}

// firstLine is the command up to its literal.
func (c *Command) firstLine() string {
	s := c.tag + " " + c.verb
	if c.args != "" {
		s += " " + c.args
	}
	return s
}

// finish gives the answer to who waits for it.
func (c *Command) finish(r Result) error {
	if c.onEnd == nil {
		return nil
	}
	return c.onEnd(r)
}

// addUID adds a UID to one of the sets of a command.
func (c *Command) addUID(set *map[uint32]struct{}, uid uint32) {
	if *set == nil {
		*set = map[uint32]struct{}{}
	}
	(*set)[uid] = struct{}{}
}
