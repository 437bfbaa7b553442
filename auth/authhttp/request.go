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

// Values of Auth-Method, in nginx's terms. The LOGIN command and the mechanisms PLAIN and LOGIN
// are all plain.
const (
	MethodPlain    = "plain"
	MethodExternal = "external"
	methodNone     = "none" // in the gateway's own probes
)

// Request describes a login to an auth server.
type Request struct {
	Method      string // MethodPlain or MethodExternal
	User        string
	Password    identity.Secret // zero with MethodExternal
	Attempt     int             // 1-based, of this connection
	ClientAddr  netip.Addr
	ProxyHeader *ProxyHeader         // nil without a PROXY header
	TLS         *tls.ConnectionState // nil in the clear
}

// ProxyHeader holds the addresses of a PROXY header: of the client, and of the balancer that it
// connected to.
type ProxyHeader struct{ Source, Server netip.AddrPort }

// newHeader returns the header of a request as nginx writes it, except for the order, which is
// net/http's. It assigns names directly, because Set would write Client-Ip.
func (c *Client) newHeader(req Request) http.Header {
	h := make(http.Header)
	for name, value := range c.headers {
		h[name] = []string{value.Reveal()}
	}
	for name, value := range map[string]string{
		"Auth-Method":        req.Method,
		"Auth-User":          escapeHeader(req.User),
		"Auth-Pass":          escapeHeader(req.Password.Reveal()),
		"Auth-Protocol":      "imap",
		"Auth-Login-Attempt": strconv.Itoa(req.Attempt),
		"Client-IP":          formatAddr(req.ClientAddr),
		"User-Agent":         "", // keeps net/http from sending one
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
		c.addTLS(h, req.TLS)
	}
	return h
}

// formatAddr formats an address as nginx does: without a zone, and with an IPv4-mapped address
// as IPv4.
func formatAddr(addr netip.Addr) string {
	if !addr.IsValid() {
		return ""
	}
	return addr.Unmap().WithZone("").String()
}

// escapeHeader is nginx's NGX_ESCAPE_MAIL_AUTH: controls, space and % as %XX, all else
// unchanged. It also escapes DEL, which net/http refuses to send; the same decoder handles it.
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

// CheckHeader returns an error for a header that an operator may not configure. The protocol
// and HTTP reserve some names, and a value has no control characters.
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
