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

func TestCyrusKnowsTheUsersAndTheMasterItWasGiven(t *testing.T) {
	t.Parallel()
	d := StartCyrus(t, CyrusConfig{
		Users: map[string]string{"alice@example.org": "one", "bob.2": "two"}, Master: "gateway", MasterPassword: "three",
	})
	overTLS := func(conn net.Conn) net.Conn { return tls.Client(conn, d.CA.ClientTLS(DovecotName)) }
	connect(t, d.Plain).want("a NO", "LOGIN bob.2 one")
	connect(t, d.Plain).want("a NO", "LOGIN carol one")
	for _, l := range []*line{connect(t, d.Plain), connect(t, d.TLS, overTLS)} {
		l.want("a OK", "LOGIN alice@example.org one")
		l.want("a OK", "SELECT INBOX")
		l.want(`"/" INBOX`, `LIST "" *`)
	}
	l := connect(t, d.Plain)
	l.want("a OK", "LOGIN bob.2 two")
	l.want("a OK", "CREATE Work/Plans")
	l = connect(t, d.Plain)
	l.want("a OK", "AUTHENTICATE PLAIN %s", base64.StdEncoding.EncodeToString([]byte("bob.2\x00gateway\x00three")))
	l.want("a OK", "SELECT Work/Plans")
}

func TestCyrusKeepsItsMailAndPortsOverARestart(t *testing.T) {
	t.Parallel()
	d := StartCyrus(t, CyrusConfig{Users: map[string]string{"alice": "pw"}})
	for i, end := range []func(){d.Stop, d.Kill, func() {}} {
		l := connect(t, d.Plain)
		l.want("a OK", "LOGIN alice pw")
		l.want("a OK", "CREATE box%d", i)
		end()
		d.Restart()
		if _, err := io.ReadAll(l.conn); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("the old connection: %v", err)
		}
		l = connect(t, d.Plain)
		l.want("a OK", "LOGIN alice pw")
		l.want("a OK", "SELECT box%d", i)
	}
}
