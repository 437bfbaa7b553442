package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"strings"
	"testing"

	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
	"imapgate/tlsconf"
)

// tlsWithCertificate is the configuration for a server of ca, with the client certificate of
// these files.
func tlsWithCertificate(t testing.TB, ca *testbed.CA, name string, cert, key string) func() *tls.Config {
	t.Helper()
	c, err := tlsconf.NewClient(tlsconf.ClientConfig{CA: ca.File, ServerName: name, ALPN: tlsconf.IMAP,
		Certificate: tlsconf.CertFiles{Cert: cert, Key: key}}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	return c.Config
}

// A backend that requires a certificate closes a TLS 1.3 connection after the handshake. By
// then its greeting is read, or the next command is already sent.
func TestAClientCertificateIsPresentedOrTheLoginFailsAsTLS(t *testing.T) {
	ca, otherCA := testbed.NewCA(t), testbed.NewCA(t)
	pair, err := tls.LoadX509KeyPair(ca.Issue(t, "127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	good, goodKey := ca.Issue(t, "gateway")
	wrong, wrongKey := otherCA.Issue(t, "gateway")
	begin := map[event.TLSMode][]string{
		event.ImplicitTLS: {"tls", "> * OK [CAPABILITY IMAP4rev1 ID SASL-IR AUTH=PLAIN] hi"},
		event.StartTLS:    {greetingStartTLS, "< STARTTLS", "> {S} OK", "tls", "< CAPABILITY", capsTLS},
	}
	rest := []string{"< ID", "< AUTHENTICATE", "> * ID NIL\r\n{I} OK", "> {L} OK [CAPABILITY IMAP4rev1] in"}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for mode, steps := range begin {
			for name, c := range map[string]struct {
				tls  func() *tls.Config
				want string // part of the error; "": none
			}{
				"the right one": {tlsWithCertificate(t, ca, "127.0.0.1", good, goodKey), ""},
				"none":          {tlsWithCertificate(t, ca, "127.0.0.1", "", ""), "demands a client certificate, and none is configured"},
				"another's":     {tlsWithCertificate(t, ca, "127.0.0.1", wrong, wrongKey), "does not accept the client certificate"},
			} {
				p := &testkit.Steps{Lines: append(steps[:len(steps):len(steps)], rest...), TLS: &tls.Config{Certificates: []tls.Certificate{pair},
					ClientCAs: ca.Pool, ClientAuth: tls.RequireAndVerifyClientCert, MaxVersion: version}}
				a := loginAttempt{Steps: p}
				b := New(testbed.WithDefaults(Config{Name: "east", Settings: Settings{Address: p.Start(t), TLS: mode}, TLSConfig: c.tls}), Hooks{OnConnect: func(r event.ConnectResult) { a.result = r }}, zap.NewNop())
				a.conn, a.err = b.Login(context.Background(), testRequest(t))
				a.finish()
				switch {
				case c.want == "" && a.err != nil:
					t.Errorf("%s, %s, %s: %v; %v", tls.VersionName(version), mode, name, a.err, p.Err)
				case c.want == "":
				case a.result != event.ConnectTLS || !errors.Is(a.err, ErrUnavailable) || !strings.Contains(a.err.Error(), c.want):
					t.Errorf("%s, %s, %s: %s, %v", tls.VersionName(version), mode, name, a.result, a.err)
				case leaksCredentials(p.Encrypted.String() + p.Plaintext.String()):
					t.Errorf("%s, %s, %s: a password was sent", tls.VersionName(version), mode, name)
				}
			}
		}
	}
}

func TestDovecotAcceptsTheClientCertificate(t *testing.T) {
	ca, otherCA := testbed.NewCA(t), testbed.NewCA(t)
	d := testbed.StartDovecot(t, testbed.DovecotConfig{Password: "pw", CA: ca, ClientCA: ca})
	good, goodKey := ca.Issue(t, "gateway")
	wrong, wrongKey := otherCA.Issue(t, "gateway")
	for mode, address := range map[event.TLSMode]string{event.ImplicitTLS: d.TLS, event.StartTLS: d.Plain} {
		for name, c := range map[string]struct {
			tls    func() *tls.Config
			result event.ConnectResult
		}{
			"the right one": {tlsWithCertificate(t, ca, testbed.DovecotName, good, goodKey), event.ConnectOK},
			"none":          {tlsWithCertificate(t, ca, testbed.DovecotName, "", ""), event.ConnectTLS},
			"another's":     {tlsWithCertificate(t, ca, testbed.DovecotName, wrong, wrongKey), event.ConnectTLS},
		} {
			var got event.ConnectResult
			b := New(testbed.WithDefaults(Config{Name: "east", Settings: Settings{Address: address, TLS: mode}, TLSConfig: c.tls}), Hooks{OnConnect: func(r event.ConnectResult) { got = r }}, zap.NewNop())
			conn, err := b.Login(context.Background(), Request{User: user(t, "joe"), Password: testSecret("pw")})
			if conn != nil {
				_ = conn.Close()
			}
			if got != c.result || err != nil && !strings.Contains(err.Error(), "client_certificate") {
				t.Errorf("%s, %s: %s, %v", mode, name, got, err)
			}
		}
	}
}
