package imap

import "strings"

// Caps is a capability list, in the server's spelling for forwarding and as a set for lookups.
// Copies share one immutable list.
type Caps struct{ list *capList }

type capList struct {
	raw string
	set map[string]struct{}
}

// maxCaps bounds the capabilities of a list; more are dropped.
const maxCaps = 256

// ParseCaps parses the words of a CAPABILITY response or response code. It drops words with
// invalid characters, so that the list is safe to forward.
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

// isCapability verifies RFC 9051's capability: "AUTH=" or an atom, without resp-specials.
func isCapability(word string) bool {
	for i := 0; i < len(word); i++ {
		if !isAtomChar(word[i]) || word[i] == '\\' || word[i] == '*' || word[i] == '%' || word[i] == ']' {
			return false
		}
	}
	return word != ""
}

// Has reports whether the list has the capability, given in upper case.
func (c Caps) Has(name string) bool {
	if c.list == nil {
		return false
	}
	_, ok := c.list.set[name]
	return ok
}

// IsKnown reports whether a list was received.
func (c Caps) IsKnown() bool { return c.String() != "" }

// String returns the list as the server wrote it, single-spaced.
func (c Caps) String() string {
	if c.list == nil {
		return ""
	}
	return c.list.raw
}

// Without returns the list without the words for which drop returns true; drop gets them in
// upper case.
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

// IsGatewayCapability reports whether clients must not use a capability of a backend, given in
// upper case. TLS and logins belong to the gateway, and UNAUTHENTICATE (RFC 8437) would allow a
// second login without it.
func IsGatewayCapability(upper string) bool {
	return upper == "STARTTLS" || upper == "LOGINDISABLED" || upper == "UNAUTHENTICATE" || strings.HasPrefix(upper, "AUTH=")
}
