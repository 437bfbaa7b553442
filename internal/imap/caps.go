package imap

import "strings"

// Caps is a capability list as its server wrote it, for forwarding, and for
// asking. Copies share the one list, which nobody writes to.
type Caps struct{ list *capList }

type capList struct {
	raw string
	set map[string]struct{}
}

// maxCaps bounds how many capabilities are looked at.
const maxCaps = 256

// ParseCaps reads the words of a CAPABILITY response or response code. Words
// with characters no capability has are left out, so that the list is safe to
// forward.
func ParseCaps(words string) Caps {
	fields := strings.Fields(words)
	if len(fields) > maxCaps {
		fields = fields[:maxCaps]
	}
	c := &capList{set: make(map[string]struct{}, len(fields))}
	kept := fields[:0]
	for _, f := range fields {
		if !isCapability(f) {
			continue
		}
		kept = append(kept, f)
		c.set[strings.ToUpper(f)] = struct{}{}
	}
	c.raw = strings.Join(kept, " ")
	return Caps{c}
}

// isCapability is RFC 9051's: "AUTH=" or an atom; without resp-specials.
func isCapability(word string) bool {
	for i := 0; i < len(word); i++ {
		if !isAtomChar(word[i]) || word[i] == '\\' || word[i] == '*' || word[i] == '%' || word[i] == ']' {
			return false
		}
	}
	return word != ""
}

// Has says whether the list names the capability, given in upper case.
func (c Caps) Has(name string) bool {
	if c.list == nil {
		return false
	}
	_, ok := c.list.set[name]
	return ok
}

// IsKnown says whether there was a list at all.
func (c Caps) IsKnown() bool { return c.String() != "" }

// String is the list as it was written, single-spaced.
func (c Caps) String() string {
	if c.list == nil {
		return ""
	}
	return c.list.raw
}

// Without is the list less the words drop names, given in upper case.
func (c Caps) Without(drop func(upper string) bool) Caps {
	fields := strings.Fields(c.String())
	kept := fields[:0]
	for _, f := range fields {
		if !drop(strings.ToUpper(f)) {
			kept = append(kept, f)
		}
	}
	return ParseCaps(strings.Join(kept, " "))
}
