package config

import (
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"

	"imapgate/internal/identity"
)

// checkFormat checks the form of a text and returns the problem, or "". The form tag
// of a key names the form.
func checkFormat(form, s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return "has control characters"
	}
	switch form {
	case "required":
		if s == "" {
			return "is empty"
		}
	case "listen":
		return checkAddress(s, "host:port to listen on, such as 0.0.0.0:993", 0)
	case "admin":
		if s != "" {
			return checkAddress(s, "host:port such as 127.0.0.1:9143, or empty", 0)
		}
	case "dial", "backend":
		if strings.HasPrefix(s, ":") {
			return quote(s) + " has no host"
		}
		return checkAddress(s, "host:port such as mail.example.org:993", 1)
	case "redis":
		return checkRedisAddress(s)
	case "label":
		return checkLabel(s)
	case "srv":
		return checkSRV(s)
	case "domain":
		if _, err := (identity.Names{}).CanonicalizeDomain(s); s != "" && err != nil {
			return quote(s) + " is not a domain such as example.org"
		}
	case "prefix":
		if s == "" || len(s) > 64 || strings.Trim(s, nameCharacters+"ABCDEFGHIJKLMNOPQRSTUVWXYZ:._-") != "" {
			return quote(s) + " is not 1 to 64 letters, digits, and : . _ -"
		}
	case "path":
		if s != "" && !filepath.IsAbs(s) {
			return quote(s) + " is not an absolute path"
		}
	case "audit":
		if s != "" && s != "-" && !filepath.IsAbs(s) {
			return quote(s) + " is not an absolute path, - or empty"
		}
	case "syslog":
		return checkSyslogAddress(s)
	case "separator":
		return checkSeparator(s)
	case "capability":
		return checkCapability(s)
	}
	return ""
}

const nameCharacters = "abcdefghijklmnopqrstuvwxyz0123456789"

// checkAddress checks host:port. Port 0, for which the kernel chooses a port, is
// valid for listening only.
func checkAddress(s, want string, minPort int) string {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return quote(s) + " is not " + want
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || int(n) < minPort || strconv.FormatUint(n, 10) != port {
		return quote(s) + ": the port is not a number from " + strconv.Itoa(minPort) + " to 65535"
	}
	if _, err := netip.ParseAddr(host); err == nil || host == "" {
		return ""
	}
	if len(host) > 253 || strings.Trim(strings.ToLower(host), nameCharacters+".-_") != "" || strings.Contains(host, "..") ||
		strings.Trim(host, "0123456789.") == "" { // a number that is not an address, such as 127.1
		return quote(s) + ": the host is neither a name nor an IP address"
	}
	return ""
}

// unixScheme is the prefix of the address of a unix socket.
const unixScheme = "unix://"

func checkRedisAddress(s string) string {
	if path, ok := strings.CutPrefix(s, unixScheme); ok && filepath.IsAbs(path) {
		return ""
	}
	if strings.Contains(s, "/") {
		return quote(s) + " is neither host:port nor unix:///path"
	}
	return checkFormat("dial", s)
}

// checkLabel checks a name that appears in logs, metrics and protocols.
func checkLabel(s string) string {
	if len(s) > 253 || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }) {
		return quote(s) + " has characters other than visible ASCII, or is too long"
	}
	return ""
}

// checkSRV checks the name of SRV records (RFC 2782).
func checkSRV(s string) string {
	const want = " is not the name of SRV records such as _imaps._tcp.example.org"
	service, rest, _ := strings.Cut(s, ".")
	proto, domain, _ := strings.Cut(rest, ".")
	if len(service) < 2 || service[0] != '_' || proto != "_tcp" || domain == "" || checkAddress(s+":1", "", 1) != "" {
		return quote(s) + want
	}
	return ""
}

// checkSeparator refuses characters that a user name could contain: Dovecot splits
// at the first separator, so a user could choose the master.
func checkSeparator(s string) string {
	if len(s) != 1 || s[0] <= ' ' || s[0] > '~' {
		return quote(s) + " is not one visible ASCII character"
	}
	if _, err := identity.Canonicalize("a"+s+"b", ""); err == nil {
		return quote(s) + " may be part of a user name"
	}
	return ""
}

// checkCapability checks an atom of RFC 9051 §9. IMAP4rev1 cannot be hidden: without
// it a client does not recognize an IMAP server.
func checkCapability(s string) string {
	switch {
	case s == "" || len(s) > 64 || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("(){%*\"\\]", r) }):
		return quote(s) + " is not the name of a capability"
	case strings.EqualFold(s, "IMAP4rev1"):
		return s + " cannot be hidden"
	}
	return ""
}

func isBackendName(s string) bool {
	return s != "" && len(s) <= 63 && strings.Trim(s, nameCharacters+"-_") == "" && strings.ContainsRune(nameCharacters, rune(s[0]))
}
