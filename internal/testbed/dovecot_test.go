//go:build unix

package testbed

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"imapgate/internal/testkit"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
)

// lineConn is a connection to a backend that is read by lines.
type lineConn struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
}

// dialBackend dials a backend and reads its greeting. Before that, the wrappers add TLS
// or a PROXY header.
func dialBackend(t *testing.T, address string, wrappers ...func(net.Conn) net.Conn) *lineConn {
	t.Helper()
	conn, err := net.DialTimeout("tcp", address, startTimeout)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	for _, wrap := range wrappers {
		conn = wrap(conn)
	}
	l := &lineConn{t, conn, bufio.NewReader(conn)}
	if greeting := l.readLine(); !strings.HasPrefix(greeting, "* OK ") {
		t.Fatalf("greeting %q", greeting)
	}
	return l
}

func (l *lineConn) readLine() string {
	l.t.Helper()
	_ = l.conn.SetDeadline(time.Now().Add(startTimeout))
	s, err := l.r.ReadString('\n')
	if err != nil {
		l.t.Fatalf("read a line: %v", err)
	}
	return s
}

// exec sends a command and returns all lines up to its tagged response.
func (l *lineConn) exec(format string, args ...any) string {
	l.t.Helper()
	if _, err := fmt.Fprintf(l.conn, "a "+format+"\r\n", args...); err != nil {
		l.t.Fatal(err)
	}
	var all strings.Builder
	for {
		s := l.readLine()
		all.WriteString(s)
		if strings.HasPrefix(s, "a ") {
			return all.String()
		}
	}
}

// expect sends a command and fails the test unless the response contains text.
func (l *lineConn) expect(text, format string, args ...any) {
	l.t.Helper()
	if got := l.exec(format, args...); !strings.Contains(got, text) {
		l.t.Errorf(format+" gave %q; want %q in it", append(args, got, text)...)
	}
}

func TestDovecotServesEveryKindOfListener(t *testing.T) {
	t.Parallel()
	d := StartDovecot(t, DovecotConfig{})
	overTLS := func(conn net.Conn) net.Conn { return tls.Client(conn, d.CA.ClientTLS(DovecotName)) }
	from := &net.TCPAddr{IP: net.ParseIP("203.0.113.9"), Port: 4711}
	proxied := func(conn net.Conn) net.Conn {
		if _, err := proxyproto.HeaderProxyFromAddrs(2, from, conn.RemoteAddr()).WriteTo(conn); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	dialBackend(t, d.Plain).expect("a OK", "LOGIN plain pw")
	dialBackend(t, d.TLS, overTLS).expect("a OK", "LOGIN tls pw")
	dialBackend(t, d.Proxied, proxied).expect("a OK", "LOGIN proxied pw")
	dialBackend(t, d.ProxiedTLS, proxied, overTLS).expect("a OK", "LOGIN proxiedtls pw")

	l := dialBackend(t, d.Plain)
	l.expect("a OK", "STARTTLS")
	l.conn = overTLS(l.conn)
	l.r = bufio.NewReader(l.conn)
	l.expect("a NO [AUTHENTICATIONFAILED]", "LOGIN starttls wrong")
	l.expect("a OK", "LOGIN starttls pw")

	for _, user := range []string{"proxied", "proxiedtls"} {
		testkit.Eventually(t, "the log to show the address in the PROXY header", func() bool {
			return strings.Contains(strings.Join(d.Logins(user), ""), "rip=203.0.113.9,")
		})
	}
}

func TestDovecotTrustsAddressesFromTrustedNetworksOnly(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ trusted, rip string }{{"", "203.0.113.7"}, {"none", "127.0.0.1"}} {
		d := StartDovecot(t, DovecotConfig{TrustedNetworks: c.trusted})
		l := dialBackend(t, d.Plain)
		l.expect("a OK", `ID ("x-originating-ip" "203.0.113.7" "x-originating-port" "999")`)
		l.expect("a OK", "LOGIN alice pw")
		testkit.Eventually(t, "the log to show "+c.rip, func() bool {
			return strings.Contains(strings.Join(d.Logins("alice"), ""), "rip="+c.rip+",")
		})
	}
}

func TestDovecotAcceptsConfiguredUsersAndMaster(t *testing.T) {
	t.Parallel()
	d := StartDovecot(t, DovecotConfig{
		Users: map[string]string{"alice@example.org": "one", "bob": "two"}, Master: "gateway", MasterPassword: "three",
	})
	l := dialBackend(t, d.Plain)
	l.expect("a NO [AUTHENTICATIONFAILED]", "LOGIN carol one")
	l.expect("a NO [AUTHENTICATIONFAILED]", "LOGIN bob one")
	l.expect("a OK", "LOGIN alice@example.org one")
	l.expect("a OK", "SELECT INBOX")
	dialBackend(t, d.Plain).expect("a OK", "LOGIN bob*gateway three")
	l = dialBackend(t, d.Plain)
	// alice@example.org NUL gateway NUL three
	l.expect("a OK", "AUTHENTICATE PLAIN YWxpY2VAZXhhbXBsZS5vcmcAZ2F0ZXdheQB0aHJlZQ==")
	l.expect("a OK", "SELECT INBOX")
}

func TestDovecotSupportsTheScenarios(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"sdbox", "mdbox", "maildir"} {
		d := StartDovecot(t, DovecotConfig{Format: format, Quota: "7M"})
		alice, bob := dialBackend(t, d.Plain), dialBackend(t, d.Plain)
		alice.expect("a OK", "LOGIN alice pw")
		bob.expect("a OK", "LOGIN bob pw")
		got := alice.exec("CAPABILITY") + alice.exec("GETQUOTAROOT INBOX")
		for _, want := range []string{
			" SORT ", " THREAD=REFS ", " CONDSTORE ", " QRESYNC ", " NAMESPACE ", " ACL ", " QUOTA", " IDLE ", " METADATA ",
			" COMPRESS=DEFLATE", "(STORAGE 0 7168)",
		} {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %q in %s", format, want, got)
			}
		}
		alice.expect("a OK", "CREATE Team")
		alice.expect("a OK", "SETACL Team bob lrs")
		bob.expect("shared/alice/Team", `LIST "" shared/*`)
		bob.expect("a OK", "SELECT shared/alice/Team")
		carol := dialBackend(t, d.Plain)
		carol.expect("a OK", "LOGIN carol pw")
		carol.expect("a NO", "SELECT shared/alice/Team")
	}
}

func TestDovecotKeepsMailAndPortsAcrossARestart(t *testing.T) {
	t.Parallel()
	d := StartDovecot(t, DovecotConfig{})
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
