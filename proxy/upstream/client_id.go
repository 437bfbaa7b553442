package upstream

import (
	"strconv"
	"strings"

	"imapgate/internal/imap"
)

// Bounds of the client's ID when forwarded. Dovecot accepts 256 bytes of a client's ID before
// the login.
const (
	maxClientPairs   = imap.MaxIDPairs - 6 // with a login, which adds six of the gateway's
	maxIDBytes       = 256
	maxClientIDBytes = 1024 // bytes of fields and values after the login; a session stores them
	maxSessionID     = 64   // bytes of a session id, as in Dovecot
)

// appendID appends the ID command tag, with the client and the number of gateways that the
// login may still pass.
func (b *Backend) appendID(dst []byte, tag string, c Client, hops int) []byte {
	dst = append(append(dst, tag...), " ID ("...)
	dst = appendClientID(dst, c.ID, maxClientPairs, maxIDBytes)
	if b.cfg.Forward == ForwardID {
		if c.Addr.IsValid() {
			dst = appendField(dst, "x-originating-ip", tcpAddr(c.Addr).IP.String())
			dst = appendField(dst, "x-originating-port", strconv.Itoa(int(c.Addr.Port())))
		}
		if c.Local.IsValid() {
			dst = appendField(dst, "x-connected-ip", tcpAddr(c.Local).IP.String())
			dst = appendField(dst, "x-connected-port", strconv.Itoa(int(c.Local.Port())))
		}
	}
	if len(c.Session) <= maxSessionID {
		dst = appendField(dst, "x-session-id", c.Session)
	}
	dst = appendField(dst, "x-proxy-ttl", strconv.Itoa(hops))
	dst = append(dst[:len(dst)-1], ')') // replaces the last space
	return append(dst, '\r', '\n')
}

// FormatID returns the argument of an ID command for a logged-in client: the pairs that may be
// forwarded, or NIL.
func FormatID(pairs [][2]string) string { return formatID(pairs, imap.MaxIDPairs, maxClientIDBytes) }

// formatID is FormatID with bounds in pairs and bytes.
func formatID(pairs [][2]string, maxPairs, maxBytes int) string {
	list := appendClientID([]byte("("), pairs, maxPairs, maxBytes)
	if len(list) == 1 {
		return "NIL"
	}
	list[len(list)-1] = ')' // replaces the last space
	return string(list)
}

// ForwardedID returns the client's pairs that the ID of a login contains, in the form of
// FormatID; "" if there are none.
func (c Client) ForwardedID() string {
	if id := formatID(c.ID, maxClientPairs, maxIDBytes); id != "NIL" {
		return id
	}
	return ""
}

// appendClientID appends the client's pairs within the bounds. Fields that begin with x- are
// reserved for gateways.
func appendClientID(dst []byte, pairs [][2]string, maxPairs, maxBytes int) []byte {
	for i, p := range pairs {
		maxBytes -= len(p[0]) + len(p[1])
		if i == maxPairs || maxBytes < 0 {
			break
		}
		if len(p[0]) > imap.MaxIDField || len(p[0]) > 1 && strings.EqualFold(p[0][:2], "x-") {
			continue
		}
		dst = appendField(dst, p[0], p[1])
	}
	return dst
}

// appendField appends a field, its value and a space, or nothing if one of them is empty or
// cannot be quoted.
func appendField(dst []byte, field, value string) []byte {
	if field == "" || value == "" {
		return dst
	}
	out, err := imap.AppendQuoted(dst, field)
	if err != nil {
		return dst
	}
	if out, err = imap.AppendQuoted(append(out, ' '), value); err != nil {
		return dst
	}
	return append(out, ' ')
}
