package model

import "strings"

// expungeRule is whether EXPUNGE may be sent while a command is in progress.
type expungeRule int

const (
	expungeNever  expungeRule = iota // FETCH, STORE, SEARCH, and UID SEARCH with message numbers
	expungeAlways                    // everything else (RFC 3501 §7.4.1, RFC 7162 §3.2.10)
)

// Command is a command of a client, with its state in the model.
type Command struct {
	// Set once.
	verb          string // upper case; with UID, two words
	args          string // without CRLF and literal
	literal       string // of APPEND
	syncLiteral   bool   // the literal waits for a continuation
	expunge       expungeRule
	nonIdempotent bool // a gateway must not send it again

	mailbox    string      // of SELECT and EXAMINE
	resyncFrom *savedState // for QRESYNC in SELECT
	targets    []uint32    // UIDs of its messages; 0: unknown
	// onEnd is called with the result, or with an empty one if the session ended first.
	onEnd func(Result) error

	// Owned by the View.
	tag         string
	copyUID     string              // of an untagged COPYUID
	complete    bool                // completely sent
	flagsSeen   map[uint32]struct{} // UIDs with FETCH FLAGS during the command
	contentSeen map[uint32]struct{} // UIDs with content during the command
}

// newCommand returns a command with default settings.
func newCommand(verb, args string) *Command {
	c := &Command{verb: verb, args: args, expunge: expungeAlways}
	c.nonIdempotent = isNonIdempotent(c)
	switch verb {
	case "FETCH", "STORE", "SEARCH":
		c.expunge = expungeNever
	}
	return c
}

// isNonIdempotent reports whether repeating a command has an observable effect.
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

// setOnEnd sets the function that handles the result.
func (c *Command) setOnEnd(onEnd func(Result) error) *Command {
	c.onEnd = onEnd
	return c
}

// firstLine returns the command up to its literal.
func (c *Command) firstLine() string {
	s := c.tag + " " + c.verb
	if c.args != "" {
		s += " " + c.args
	}
	return s
}

// finish passes the result to onEnd.
func (c *Command) finish(r Result) error {
	if c.onEnd == nil {
		return nil
	}
	return c.onEnd(r)
}

// addUID adds a UID to flagsSeen or contentSeen.
func (c *Command) addUID(set *map[uint32]struct{}, uid uint32) {
	if *set == nil {
		*set = map[uint32]struct{}{}
	}
	(*set)[uid] = struct{}{}
}
