//go:build unix

package testbed

import (
	"crypto/tls"
	"encoding/base64"
	"io"
	"net"
	"strings"
	"testing"
)

func TestCyrusAcceptsConfiguredUsersAndMaster(t *testing.T) {
	t.Parallel()
	d := StartCyrus(t, CyrusConfig{
		Users: map[string]string{"alice@example.org": "one", "bob.2": "two"}, Master: "gateway", MasterPassword: "three",
	})
	overTLS := func(conn net.Conn) net.Conn { return tls.Client(conn, d.CA.ClientTLS(DovecotName)) }
	dialBackend(t, d.Plain).expect("a NO", "LOGIN bob.2 one")
	dialBackend(t, d.Plain).expect("a NO", "LOGIN carol one")
	for _, l := range []*lineConn{dialBackend(t, d.Plain), dialBackend(t, d.TLS, overTLS)} {
		l.expect("a OK", "LOGIN alice@example.org one")
		l.expect("a OK", "SELECT INBOX")
		l.expect(`"/" INBOX`, `LIST "" *`)
	}
	l := dialBackend(t, d.Plain)
	l.expect("a OK", "LOGIN bob.2 two")
	l.expect("a OK", "CREATE Work/Plans")
	l = dialBackend(t, d.Plain)
	l.expect("a OK", "AUTHENTICATE PLAIN %s", base64.StdEncoding.EncodeToString([]byte("bob.2\x00gateway\x00three")))
	l.expect("a OK", "SELECT Work/Plans")
}

func TestCyrusKeepsMailAndPortsAcrossARestart(t *testing.T) {
	t.Parallel()
	d := StartCyrus(t, CyrusConfig{Users: map[string]string{"alice": "pw"}})
	for i, end := range []func(){d.Stop, d.Kill, func() {}} {
		l := dialBackend(t, d.Plain)
		l.expect("a OK", "LOGIN alice pw")
		l.expect("a OK", "CREATE box%d", i)
		end()
		d.Restart()
		if _, err := io.ReadAll(l.conn); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("the old connection: %v", err)
		}
		l = dialBackend(t, d.Plain)
		l.expect("a OK", "LOGIN alice pw")
		l.expect("a OK", "SELECT box%d", i)
	}
}
