//go:build unix

package testbed

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
)

// line is one connection to a backend, spoken to in whole lines.
type line struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
}

// connect dials a backend and reads its greeting; over wraps the connection
// first, for TLS or a PROXY header.
func connect(t *testing.T, address string, over ...func(net.Conn) net.Conn) *line {
	t.Helper()
	conn, err := net.DialTimeout("tcp", address, startTime)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	for _, wrap := range over {
		conn = wrap(conn)
	}
	l := &line{t, conn, bufio.NewReader(conn)}
	if greeting := l.read(); !strings.HasPrefix(greeting, "* OK ") {
		t.Fatalf("greeting %q", greeting)
	}
	return l
}

func (l *line) read() string {
	l.t.Helper()
	_ = l.conn.SetDeadline(time.Now().Add(startTime))
	s, err := l.r.ReadString('\n')
	if err != nil {
		l.t.Fatalf("read a line: %v", err)
	}
	return s
}

// ask sends a command and gives all lines up to its tagged one.
func (l *line) ask(format string, args ...any) string {
	l.t.Helper()
	if _, err := fmt.Fprintf(l.conn, "a "+format+"\r\n", args...); err != nil {
		l.t.Fatal(err)
	}
	var all strings.Builder
	for {
		s := l.read()
		all.WriteString(s)
		if strings.HasPrefix(s, "a ") {
			return all.String()
		}
	}
}

// want asks and fails the test unless the answer has the text.
func (l *line) want(text, format string, args ...any) {
	l.t.Helper()
	if got := l.ask(format, args...); !strings.Contains(got, text) {
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
	connect(t, d.Plain).want("a OK", "LOGIN plain pw")
	connect(t, d.TLS, overTLS).want("a OK", "LOGIN tls pw")
	connect(t, d.Proxied, proxied).want("a OK", "LOGIN proxied pw")
	connect(t, d.ProxiedTLS, proxied, overTLS).want("a OK", "LOGIN proxiedtls pw")

	l := connect(t, d.Plain)
	l.want("a OK", "STARTTLS")
	l.conn = overTLS(l.conn)
	l.r = bufio.NewReader(l.conn)
	l.want("a NO [AUTHENTICATIONFAILED]", "LOGIN starttls wrong")
	l.want("a OK", "LOGIN starttls pw")

	for _, user := range []string{"proxied", "proxiedtls"} {
		Within(t, startTime, "the log to show the address in the PROXY header", func() bool {
			return strings.Contains(strings.Join(d.Logins(user), ""), "rip=203.0.113.9,")
		})
	}
}

func TestDovecotBelievesAnAddressFromTrustedNetworksOnly(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ trusted, rip string }{{"", "203.0.113.7"}, {"none", "127.0.0.1"}} {
		d := StartDovecot(t, DovecotConfig{TrustedNetworks: c.trusted})
		l := connect(t, d.Plain)
		l.want("a OK", `ID ("x-originating-ip" "203.0.113.7" "x-originating-port" "999")`)
		l.want("a OK", "LOGIN alice pw")
		Within(t, startTime, "the log to show "+c.rip, func() bool {
			return strings.Contains(strings.Join(d.Logins("alice"), ""), "rip="+c.rip+",")
		})
	}
}

func TestDovecotKnowsTheUsersAndTheMasterItWasGiven(t *testing.T) {
	t.Parallel()
	d := StartDovecot(t, DovecotConfig{
		Users: map[string]string{"alice@example.org": "one", "bob": "two"}, Master: "gateway", MasterPassword: "three",
	})
	l := connect(t, d.Plain)
	l.want("a NO [AUTHENTICATIONFAILED]", "LOGIN carol one")
	l.want("a NO [AUTHENTICATIONFAILED]", "LOGIN bob one")
	l.want("a OK", "LOGIN alice@example.org one")
	l.want("a OK", "SELECT INBOX")
	connect(t, d.Plain).want("a OK", "LOGIN bob*gateway three")
	l = connect(t, d.Plain)
	// alice@example.org NUL gateway NUL three
	l.want("a OK", "AUTHENTICATE PLAIN YWxpY2VAZXhhbXBsZS5vcmcAZ2F0ZXdheQB0aHJlZQ==")
	l.want("a OK", "SELECT INBOX")
}

func TestDovecotHasWhatTheScenariosNeed(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"sdbox", "mdbox", "maildir"} {
		d := StartDovecot(t, DovecotConfig{Format: format, Quota: "7M"})
		alice, bob := connect(t, d.Plain), connect(t, d.Plain)
		alice.want("a OK", "LOGIN alice pw")
		bob.want("a OK", "LOGIN bob pw")
		got := alice.ask("CAPABILITY") + alice.ask("GETQUOTAROOT INBOX")
		for _, want := range []string{
			" SORT ", " THREAD=REFS ", " CONDSTORE ", " QRESYNC ", " NAMESPACE ", " ACL ", " QUOTA", " IDLE ", " METADATA ",
			" COMPRESS=DEFLATE", "(STORAGE 0 7168)",
		} {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %q in %s", format, want, got)
			}
		}
		alice.want("a OK", "CREATE Team")
		alice.want("a OK", "SETACL Team bob lrs")
		bob.want("shared/alice/Team", `LIST "" shared/*`)
		bob.want("a OK", "SELECT shared/alice/Team")
		carol := connect(t, d.Plain)
		carol.want("a OK", "LOGIN carol pw")
		carol.want("a NO", "SELECT shared/alice/Team")
	}
}

func TestDovecotKeepsItsMailAndPortsOverARestart(t *testing.T) {
	t.Parallel()
	d := StartDovecot(t, DovecotConfig{})
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
