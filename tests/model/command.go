package model

import "strings"

// when says whether EXPUNGE may be sent while a command is in progress.
type when int

const (
	never  when = iota // FETCH, STORE, SEARCH, and UID SEARCH with message numbers
	always             // everything else (RFC 3501 §7.4.1, RFC 7162 §3.2.10)
)

// Command is what a client says, and what the model has to know of it.
type Command struct {
	// Set once.
	verb     string // the first word, two with UID, upper case
	args     string // the rest, without CRLF and without the literal
	literal  string // of APPEND
	waits    bool   // the literal is sent when the server said +
	expunge  when
	onlyOnce bool // doing it twice can be seen: it is never sent again

	selects string // SELECT, EXAMINE: the mailbox
	resync  *cache // and what the client kept of it
	targets []uint32
	// ended is called with the answer, or with none when the session ended first.
	ended func(Result) error

	// Owned by the Mirror.
	tag      string
	copyUID  string              // of an untagged COPYUID
	complete bool                // all of it was sent
	seen     map[uint32]struct{} // UIDs, of which FETCH FLAGS came meanwhile
	answered map[uint32]struct{} // UIDs, of which content came meanwhile
}

// command makes one that needs no more than the defaults.
func command(verb, args string) *Command {
	c := &Command{verb: verb, args: args, expunge: always}
	c.onlyOnce = onlyOnce(c)
	switch verb {
	case "FETCH", "STORE", "SEARCH":
		c.expunge = never
	}
	return c
}

// onlyOnce says of a command that doing it again can be observed, so that a
// gateway must not.
func onlyOnce(c *Command) bool {
	switch c.verb {
	case "APPEND", "COPY", "MOVE", "UID COPY", "UID MOVE", "EXPUNGE", "CLOSE", "CREATE":
		return true
	case "STORE", "UID STORE":
		return strings.Contains(c.args, "(UNCHANGEDSINCE ")
	}
	return false
}

// numbered marks a UID SEARCH whose criteria have message numbers.
func (c *Command) numbered() *Command {
	c.expunge = never
	return c
}

// then sets what is to be done with the answer.
func (c *Command) then(ended func(Result) error) *Command {
	c.ended = ended
	return c
}

// text is the command up to its literal.
func (c *Command) text() string {
	s := c.tag + " " + c.verb
	if c.args != "" {
		s += " " + c.args
	}
	return s
}

// end gives the answer to who waits for it.
func (c *Command) end(r Result) error {
	if c.ended == nil {
		return nil
	}
	return c.ended(r)
}

// note adds a UID to one of the sets of a command.
func (c *Command) note(set *map[uint32]struct{}, uid uint32) {
	if *set == nil {
		*set = map[uint32]struct{}{}
	}
	(*set)[uid] = struct{}{}
}
