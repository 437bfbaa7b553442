package mailbox

import (
	"slices"
	"strings"
	"unique"
)

// responseLine is a response line without "* " and with its CRLF. Equal lines are stored
// once, because most mailboxes of a backend have the same ones.
type responseLine struct{ handle unique.Handle[string] }

func newResponseLine(text string) responseLine { return responseLine{unique.Make(text)} }

// String returns the line, or "" for the zero value.
func (l responseLine) String() string {
	if l == (responseLine{}) {
		return ""
	}
	return l.handle.Value()
}

// set stores b. It allocates only for a new value.
func (l *responseLine) set(b []byte) {
	if l.String() != string(b) {
		*l = newResponseLine(string(b))
	}
}

// union returns "FLAGS (…)" with the flags of both lines.
func (l responseLine) union(other responseLine) responseLine {
	flags := l.flagNames()
	added := false
	for _, flag := range other.flagNames() {
		if !slices.Contains(flags, flag) {
			flags, added = append(flags, flag), true
		}
	}
	if !added {
		return l
	}
	return newResponseLine("FLAGS (" + strings.Join(flags, " ") + ")\r\n")
}

// flagNames returns the flags of "FLAGS (…)".
func (l responseLine) flagNames() []string {
	return strings.Fields(strings.Trim(strings.TrimPrefix(l.String(), "FLAGS"), " ()\r\n"))
}
