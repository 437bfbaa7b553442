// Package tlsconf makes the TLS configurations of both sides: the listeners' certificates,
// chosen by name, and the verified client side towards backends and other servers. Reload reads
// the files of either side again.
//
// The package does not know IMAP beyond its ALPN name, nor listeners, sessions or STARTTLS. It
// never changes a *tls.Config that it has returned. New files make a new generation with its
// own ticket keys, and a connection keeps the generation it began with.
//
// Cipher suites and curves are Go's own choice (in practice AEAD only, X25519MLKEM768 first).
// The hybrid key exchange costs a handshake some tens of microseconds and protects recorded
// mail from future quantum computers.
package tlsconf

import (
	"crypto/tls"
	"fmt"
)

// IMAP is the protocol's ALPN name (RFC 7301 registry). The handshake refuses a client that
// offers only others, which expects another protocol (ALPACA). A client that offers none is
// served.
const IMAP = "imap"

// parseVersion maps a configured version to crypto/tls's number. Versions 1.0 and 1.1 are not
// supported (RFC 8996).
func parseVersion(version string) (uint16, error) {
	switch version {
	case "", "1.2":
		return tls.VersionTLS12, nil
	case "1.3":
		return tls.VersionTLS13, nil
	}
	return 0, fmt.Errorf("TLS version %q is not one of 1.2, 1.3", version)
}
