// Package tlsconf makes the TLS configurations of both sides: the listeners'
// certificates, chosen by name, and the verified client side towards backends and
// other servers. Both read their files again when they are asked to.
//
// It does not know IMAP beyond its ALPN name, nor listeners, sessions or
// STARTTLS. A *tls.Config it hands out is never changed afterwards: new files
// make a new generation with ticket keys of its own, and a connection keeps the
// generation it began with. Cipher suites and curves are Go's own choice
// (AEAD only in practice, X25519MLKEM768 first): the hybrid key exchange costs a
// handshake some tens of microseconds and protects recorded mail from later
// quantum machines, which is worth more than the microseconds.
package tlsconf

import (
	"crypto/tls"
	"fmt"
)

// IMAP is the protocol's ALPN name (RFC 7301 registry). A client that offers only
// others is speaking to the wrong door (ALPACA) and is refused in the handshake;
// a client that offers none is served.
const IMAP = "imap"

// parseVersion turns the configuration's word into crypto/tls's number. There is no
// word for 1.0 and 1.1 (RFC 8996).
func parseVersion(word string) (uint16, error) {
	switch word {
	case "", "1.2":
		return tls.VersionTLS12, nil
	case "1.3":
		return tls.VersionTLS13, nil
	}
	return 0, fmt.Errorf("TLS version %q is not one of 1.2, 1.3", word)
}
