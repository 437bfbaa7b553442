package authhttp

import (
	"crypto/tls"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"imapgate/internal/identity"
)

// How a client logs in, in nginx's words. The LOGIN command and the mechanisms
// PLAIN and LOGIN are all plain.
const (
	MethodPlain    = "plain"
	MethodExternal = "external"
	methodNone     = "none" // in the gateway's own question
)

// Request is what an auth server is told of a login.
type Request struct {
	Method      string // Plain or External
	User        string
	Password    identity.Secret // zero with External
	Attempt     int             // of this connection, from 1
	ClientAddr  netip.Addr
	ProxyHeader *ProxyHeader         // nil without a PROXY header
	TLS         *tls.ConnectionState // nil in the clear
}

// ProxyHeader is what a PROXY header says: who connected to the balancer, and to which
// of its addresses.
type ProxyHeader struct{ Source, Server netip.AddrPort }

// newHeader is the question as nginx writes it, but for the order, which is
// net/http's. Names are put in as they are: Set would write Client-Ip.
func (a *Client) newHeader(req Request) http.Header {
	h := make(http.Header)
	for name, value := range a.headers {
		h[name] = []string{value.Reveal()}
	}
	for name, value := range map[string]string{
		"Auth-Method":        req.Method,
		"Auth-User":          escapeHeader(req.User),
		"Auth-Pass":          escapeHeader(req.Password.Reveal()),
		"Auth-Protocol":      "imap",
		"Auth-Login-Attempt": strconv.Itoa(req.Attempt),
		"Client-IP":          formatAddr(req.ClientAddr),
		"User-Agent":         "", // net/http leaves it out
	} {
		h[name] = []string{value}
	}
	if req.ProxyHeader != nil {
		h["Proxy-Protocol-Addr"] = []string{formatAddr(req.ProxyHeader.Source.Addr())}
		h["Proxy-Protocol-Port"] = []string{strconv.Itoa(int(req.ProxyHeader.Source.Port()))}
		h["Proxy-Protocol-Server-Addr"] = []string{formatAddr(req.ProxyHeader.Server.Addr())}
		h["Proxy-Protocol-Server-Port"] = []string{strconv.Itoa(int(req.ProxyHeader.Server.Port()))}
	}
	if req.TLS != nil {
		a.addTLS(h, req.TLS)
	}
	return h
}

// formatAddr is an address as nginx writes it: an IPv4 client of a socket for both
// families is an IPv4 client, and zones mean nothing elsewhere.
func formatAddr(addr netip.Addr) string {
	if !addr.IsValid() {
		return ""
	}
	return addr.Unmap().WithZone("").String()
}

// escapeHeader is nginx's NGX_ESCAPE_MAIL_AUTH: controls, space and % as %XX, all else
// as it is. net/http refuses to send DEL, so that is escaped as well; who
// decodes the one decodes the other.
func escapeHeader(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c == '%' || c == 0x7f {
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// CheckHeader says what is wrong with a header that an operator wants to be
// sent: a name of the protocol's or of HTTP's own, or a value of two lines.
func CheckHeader(name, value string) error {
	reserved := slices.ContainsFunc([]string{
		"Auth-Method", "Auth-User", "Auth-Pass", "Auth-Salt", "Auth-Protocol", "Auth-Login-Attempt", "Client-IP", "Client-Host",
		"Host", "Connection", "Content-Length", "Transfer-Encoding", "Trailer", "Upgrade", "Expect", "TE",
	}, func(own string) bool { return strings.EqualFold(own, name) })
	switch {
	case name == "" || strings.Trim(strings.ToLower(name), "abcdefghijklmnopqrstuvwxyz0123456789-_") != "":
		return errors.New("is not a name of letters, digits, - and _")
	case reserved || hasPrefixFold(name, "Auth-SSL") || hasPrefixFold(name, "Proxy-Protocol-"):
		return errors.New("is written by the gateway itself")
	case strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return errors.New("has control characters in its value")
	}
	return nil
}

func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}
