package upstream

import (
	"strconv"
	"strings"

	"imapgate/internal/imap"
)

// Bounds of the client's own ID as it is passed on; RFC 2971 §3.3 allows 30
// octets for a field, Dovecot takes 256 bytes of a client's ID together.
const (
	maxIDPairs = 16
	maxIDField = 30
	maxIDBytes = 256
	maxSession = 64 // bytes of a session id, as Dovecot
)

// appendID appends the command tag that tells the backend who the client is and
// how many gateways the login may still pass.
func (b *Backend) appendID(dst []byte, tag string, c Client, hops int) []byte {
	dst = append(append(dst, tag...), " ID ("...)
	if b.cfg.Forward == ForwardID {
		dst = appendOwnID(dst, c.ID)
		if c.Addr.IsValid() {
			dst = appendField(dst, "x-originating-ip", tcpAddr(c.Addr).IP.String())
			dst = appendField(dst, "x-originating-port", strconv.Itoa(int(c.Addr.Port())))
		}
		if c.Local.IsValid() {
			dst = appendField(dst, "x-connected-ip", tcpAddr(c.Local).IP.String())
			dst = appendField(dst, "x-connected-port", strconv.Itoa(int(c.Local.Port())))
		}
	}
	if len(c.Session) <= maxSession {
		dst = appendField(dst, "x-session-id", c.Session)
	}
	dst = appendField(dst, "x-proxy-ttl", strconv.Itoa(hops))
	dst = append(dst[:len(dst)-1], ')') // in place of the last space
	return append(dst, '\r', '\n')
}

// appendOwnID appends what the client said of itself, as far as it fits. What
// begins with x- is for gateways to say.
func appendOwnID(dst []byte, pairs [][2]string) []byte {
	left := maxIDBytes
	for i, p := range pairs {
		left -= len(p[0]) + len(p[1])
		if i == maxIDPairs || left < 0 {
			break
		}
		if len(p[0]) > maxIDField || len(p[0]) > 1 && strings.EqualFold(p[0][:2], "x-") {
			continue
		}
		dst = appendField(dst, p[0], p[1])
	}
	return dst
}

// appendField appends a field, its value and a space; nothing where one of them
// is empty or cannot be quoted.
func appendField(dst []byte, field, value string) []byte {
	if field == "" || value == "" {
		return dst
	}
	long, err := imap.AppendQuoted(dst, field)
	if err != nil {
		return dst
	}
	if long, err = imap.AppendQuoted(append(long, ' '), value); err != nil {
		return dst
	}
	return append(long, ' ')
}
