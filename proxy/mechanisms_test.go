package proxy

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/xdg-go/scram"

	"imapgate/auth"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/limit"
	"imapgate/internal/testkit"
	"imapgate/proxy/upstream"
	"imapgate/routing"
)

// withSCRAM stores passwords for SCRAM: carol's, whose backend has a master login, and
// frank's, whose backend needs the password.
func withSCRAM(t testing.TB) func(*harnessConfig) {
	t.Helper()
	hash, err := auth.Hash("SCRAM-SHA-256", identity.NewSecret(password))
	testkit.NoError(t, err)
	return func(s *harnessConfig) {
		s.users = "carol@example.org:" + hash + "\nfrank@example.org:" + hash + "\ngina@example.org:{PLAIN}" + password + "\n"
		s.auth.Mechanisms = []string{"SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "PLAIN"}
		s.auth.SCRAMSecret = identity.NewSecret("a secret of the whole cluster")
	}
}

// scramExchange is a library client in the middle of AUTHENTICATE.
type scramExchange struct {
	*client
	conversation *scram.ClientConversation
}

// startScram starts AUTHENTICATE and returns the client's proof.
func (c *client) startScram(mechanism, user, password, binding string) scramExchange {
	c.t.Helper()
	made, err := scram.SHA256.NewClient(user, password, "")
	testkit.NoError(c.t, err)
	e := scramExchange{c, made.NewConversation()}
	if secure, ok := c.nc.(*tls.Conn); ok && binding != "" {
		state := secure.ConnectionState()
		bind := scram.NewTLSExporterBinding
		if binding == "tls-server-end-point" {
			bind = scram.NewTLSServerEndpointBinding
		}
		b, err := bind(&state)
		testkit.NoError(c.t, err)
		e.conversation = made.NewConversationWithChannelBinding(b)
	}
	first, err := e.conversation.Step("")
	testkit.NoError(c.t, err)
	c.write("a AUTHENTICATE " + mechanism + " " + base64.StdEncoding.EncodeToString([]byte(first)) + "\r\n")
	final, err := e.conversation.Step(c.readChallenge())
	testkit.NoError(c.t, err)
	c.write(base64.StdEncoding.EncodeToString([]byte(final)) + "\r\n")
	return e
}

// readChallenge reads a challenge and returns it decoded.
func (c *client) readChallenge() string {
	c.t.Helper()
	line, err := c.r.ReadString('\n')
	coded, ok := strings.CutPrefix(strings.TrimRight(line, "\r\n"), "+ ")
	if err != nil || !ok {
		c.t.Fatalf("received %q, %v; want a challenge\n%s", line, err, c.harness.logs)
	}
	text, err := base64.StdEncoding.DecodeString(coded)
	testkit.NoError(c.t, err)
	return string(text)
}

func TestMutualSCRAMProofWithEveryBinding(t *testing.T) {
	m := openTestBackend(t)
	b := newHarness(t, m.addr(), withSCRAM(t))
	for _, way := range []struct{ listener, mechanism, binding string }{
		{"implicit", "SCRAM-SHA-256-PLUS", "tls-exporter"}, {"implicit", "scram-sha-256-plus", "tls-server-end-point"},
		{"starttls", "SCRAM-SHA-256-PLUS", "tls-server-end-point"}, {"starttls", "SCRAM-SHA-256", ""}, {"none", "SCRAM-SHA-256", ""},
	} {
		c := b.dialGreeted(way.listener)
		e := c.startScram(way.mechanism, "Carol", password, way.binding)
		if _, err := e.conversation.Step(c.readChallenge()); err != nil || !e.conversation.Valid() {
			t.Fatalf("%v: the gateway does not know the password: %v", way, err)
		}
		c.write("\r\n")
		c.expectLine("a OK [CAPABILITY …] Logged in.")
		c.write("b NOOP\r\n")
		c.expectLine("b OK Done.")
		r := b.lastRecord("login_accepted", c)
		if r.field("mechanism") != "AUTH="+strings.ToUpper(way.mechanism) || r.field("method") != auth.File || r.field("user") != "carol@example.org" {
			t.Errorf("%v: %v", way, r)
		}
		c.write("c LOGOUT\r\n")
		c.expectLine("c OK Done.")
		c.expectEOF()
	}
}

func TestGuesserGetsNoServerProof(t *testing.T) {
	m := openTestBackend(t)
	b := newHarness(t, m.addr(), withSCRAM(t))
	var lines []string
	for _, user := range []string{"carol", "gina", "unknown"} {
		c := b.dialGreeted("implicit")
		c.startScram("SCRAM-SHA-256-PLUS", user, "wrong", "tls-exporter")
		line, err := c.r.ReadString('\n')
		testkit.NoError(t, err)
		lines = append(lines, line)
		if r := b.lastRecord("login_refused", c); r.field("user") != user+"@example.org" || r.field("reason") != string(event.BadCredentials) {
			t.Errorf("%v", r)
		}
		c.close()
	}
	for _, line := range lines {
		if line != "a "+authFailedReply+"\r\n" {
			t.Errorf("received %q", line)
		}
	}
}

func TestSCRAMCannotLogInToPasswordBackend(t *testing.T) {
	m := openTestBackend(t)
	b := newHarness(t, m.addr(), withSCRAM(t))
	c := b.dialGreeted("implicit")
	c.startScram("SCRAM-SHA-256", "frank", password, "")
	c.expectLine("a " + unavailableReply)
	if r := b.lastRecord("login_refused", c); r.field("reason") != string(event.NoPassword) || r.field("result") != "unavailable" {
		t.Errorf("%v", r)
	}
	if !strings.Contains(b.logs.String(), "backend needs the user's password, and the client sent none") {
		t.Errorf("the log has no reason:\n%s", b.logs)
	}
	c.write("b AUTHENTICATE PLAIN " + base64.StdEncoding.EncodeToString([]byte("\x00frank\x00"+password)) + "\r\n")
	c.expectLine("b OK …")
}

func TestClientMayCancelAfterServerProof(t *testing.T) {
	m := openTestBackend(t)
	b := newHarness(t, m.addr(), withSCRAM(t))
	c := b.dialGreeted("implicit")
	for range 3 { // learns each time that the password is right
		c.startScram("SCRAM-SHA-256", "carol", password, "")
		c.readChallenge()
		c.write("*\r\n")
		c.expectLine("a BAD Cancelled.")
		if r := b.lastRecord("login_refused", c); r.field("reason") != string(event.ClientAbortedAfterProof) || r.field("user") != "carol@example.org" {
			t.Errorf("%v", r)
		}
	}
	c.expectLine("* BYE [UNAVAILABLE] Too many failed logins.")
	c.expectEOF()
	gone := b.dialGreeted("implicit")
	gone.startScram("SCRAM-SHA-256", "carol", password, "")
	gone.readChallenge()
	gone.close()
	if r := b.lastRecord("login_refused", gone); r.field("reason") != string(event.ClientAbortedAfterProof) {
		t.Errorf("%v", r)
	}
	testkit.Eventually(t, "the end at the backend", func() bool { return m.Open() == 0 })
}

func TestRefusedUserGetsNoServerProof(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), withSCRAM(t), func(s *harnessConfig) {
		hash := strings.TrimPrefix(strings.Split(s.users, "\n")[0], "carol@example.org")
		s.users += "henry@example.org" + hash + "\nerin@example.org" + hash + "\n"
		s.backends["down"] = upstream.Config{Settings: upstream.Settings{Address: refusingAddress, TLS: event.NoTLS, Login: upstream.MasterLogin, Master: upstream.Master{User: "gateway", Password: identity.NewSecret("master-password")}}, LoginSettings: upstream.LoginSettings{UpstreamConnectTimeout: time.Second}}
		s.routes.Static.Users["erin"] = "down"
	})
	for _, x := range []struct{ user, password, want string }{
		{"henry", password, authFailedReply}, // has no route
		{"henry", "wrong", authFailedReply},
		{"erin", password, unavailableReply},
	} {
		c := b.dialGreeted("implicit")
		c.startScram("SCRAM-SHA-256", x.user, x.password, "")
		c.expectLine("a " + x.want)
		c.close()
	}
}

func TestLimitedClientCausesNoLookup(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), withSCRAM(t), withLimits(limit.Config{Settings: limit.Settings{Failures: failureLimits()}}))
	waiting := map[string]*client{"carol": b.dialGreetedFrom("203.0.113.7"), "unknown": b.dialGreetedFrom("203.0.113.7")}
	for i := range 10 {
		if got := b.tryLogin("203.0.113.7", "frank", fmt.Sprint("guess", i)); got != authFailedReply {
			t.Fatalf("guess %d: %s", i, got)
		}
	}
	for user, c := range waiting {
		c.write("a AUTHENTICATE SCRAM-SHA-256 " + encodeBase64("n,,n="+user+",r=fyko+d2lbbFgONRv9qkxdawL") + "\r\n")
		c.expectLine("a " + unavailableReply)
		if r := b.lastRecord("login_refused", c); r.field("reason") != string(event.LimitReached) || r.field("user") != user+"@example.org" {
			t.Errorf("%v", r)
		}
		c.close()
	}
}

// testCA signs clients' certificates.
type testCA struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newTestCA(t testing.TB) *testCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	testkit.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "clients"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	testkit.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	testkit.NoError(t, err)
	return &testCA{t, key, cert}
}

func (a *testCA) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
}

// issue returns a client's certificate for these addresses, changed by change.
func (a *testCA) issue(emails []string, change func(*x509.Certificate)) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	testkit.NoError(a.t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "carol@example.org"}, EmailAddresses: emails,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	testkit.NoError(a.t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestCertificateLogsInItsOwnUser(t *testing.T) {
	m := openTestBackend(t)
	ca, other := newTestCA(t), newTestCA(t)
	carol := []string{"carol@example.org"}
	b := newHarness(t, m.addr(), func(s *harnessConfig) {
		s.clientCA, s.auth.External.SAN = ca.pem(), "email"
	})
	const notOffered = "a NO Unsupported mechanism."
	for what, c := range map[string]struct {
		certificate tls.Certificate
		authzid     string
		answer      string // "" if TLS fails
	}{
		"hers":                    {ca.issue(carol, nil), "=", "a OK [CAPABILITY …] Logged in."},
		"hers, and as herself":    {ca.issue(carol, nil), "Y2Fyb2w=", "a OK [CAPABILITY …] Logged in."},
		"none":                    {tls.Certificate{}, "=", notOffered},
		"none, and a name":        {tls.Certificate{}, "Y2Fyb2w=", notOffered},
		"hers, for another user":  {ca.issue(carol, nil), "ZnJhbms=", "a " + authFailedReply},
		"of another authority":    {other.issue(carol, nil), "=", ""},
		"self-signed":             {selfSignedLike(t, other), "=", ""},
		"expired":                 {ca.issue(carol, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), "=", ""},
		"not yet valid":           {ca.issue(carol, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), "=", ""},
		"for servers":             {ca.issue(carol, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), "=", ""},
		"with two names":          {ca.issue([]string{"carol@example.org", "frank@example.org"}, nil), "=", "a " + authFailedReply},
		"two names, and a choice": {ca.issue([]string{"carol@example.org", "frank@example.org"}, nil), "Y2Fyb2w=", "a " + authFailedReply},
		"without a name":          {ca.issue(nil, nil), "=", "a " + authFailedReply}, // the common name is not used
		"without, and a choice":   {ca.issue(nil, nil), "Y2Fyb2w=", "a " + authFailedReply},
		"of another kind":         {ca.issue(nil, func(c *x509.Certificate) { c.DNSNames = carol }), "=", "a " + authFailedReply},
		"for a backend's own":     {ca.issue([]string{"frank@example.org"}, nil), "=", "a " + unavailableReply},
	} {
		t.Run(what, func(t *testing.T) {
			person := b.dial("implicit")
			person.t = t
			cfg := &tls.Config{}
			if c.certificate.PrivateKey != nil {
				cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c.certificate, nil }
			}
			err := person.handshake(cfg)
			if err == nil && c.answer == "" { // with TLS 1.3 a client sees the failure when it reads
				_, err = person.r.ReadString('\n')
			}
			if c.answer == "" {
				if err == nil {
					t.Error("TLS succeeds")
				}
				return
			}
			testkit.NoError(t, err)
			greeting, err := person.r.ReadString('\n')
			testkit.NoError(t, err)
			if offered := strings.Contains(greeting, "AUTH=EXTERNAL"); offered != (c.answer != notOffered) {
				t.Errorf("offered: %v: %q", offered, greeting)
			}
			person.write("a AUTHENTICATE EXTERNAL " + c.authzid + "\r\n")
			person.expectLine(c.answer)
			person.close()
		})
	}
}

// selfSignedLike returns a self-signed certificate that names like's CA as its issuer.
func selfSignedLike(t testing.TB, like *testCA) tls.Certificate {
	t.Helper()
	return tls.Certificate{Certificate: [][]byte{like.cert.Raw}, PrivateKey: like.key}
}

func TestUnofferedMechanismIsRefused(t *testing.T) {
	m := openTestBackend(t)
	b := newHarness(t, m.addr(), withSCRAM(t), func(s *harnessConfig) {
		s.auth.ListenerMechanisms = map[string][]string{"implicit": {"SCRAM-SHA-256-PLUS"}, "none": {"PLAIN"}}
		s.cfg.MaxBadCommands = 10
	})
	plain := base64.StdEncoding.EncodeToString([]byte("\x00carol\x00" + password))
	strict := b.dial("implicit")
	strict.startTLS()
	strict.expectLine("* OK [CAPABILITY IMAP4rev1 LITERAL+ SASL-IR ID LOGINDISABLED AUTH=SCRAM-SHA-256-PLUS] IMAP ready.")
	strict.write("a LOGIN carol " + password + "\r\nb AUTHENTICATE PLAIN " + plain + "\r\nc AUTHENTICATE SCRAM-SHA-256 biwsbj1hLHI9eA==\r\nd AUTHENTICATE LOGIN\r\n")
	strict.expectLine("a NO LOGIN is disabled.")
	strict.expectLine("b NO Unsupported mechanism.")
	strict.expectLine("c NO Unsupported mechanism.")
	strict.expectLine("d NO Unsupported mechanism.")
	if r := b.lastRecord("login_refused", strict); r.field("reason") != string(event.BadMechanism) {
		t.Errorf("%v", r)
	}
	strict.startScram("SCRAM-SHA-256-PLUS", "carol", password, "tls-exporter")
	strict.readChallenge()
	strict.write("\r\n")
	strict.expectLine("a OK …")
	strict.close()

	old := b.dial("none")
	old.expectLine("* OK [CAPABILITY IMAP4rev1 LITERAL+ SASL-IR ID AUTH=PLAIN] IMAP ready.")
	old.write("a AUTHENTICATE SCRAM-SHA-256 biwsbj1hLHI9eA==\r\nb LOGIN carol " + password + "\r\n")
	old.expectLine("a NO Unsupported mechanism.")
	old.expectLine("b OK …")
	old.close()

	all := b.dial("trusting-implicit")
	all.startTLS()
	all.expectLine("* OK [CAPABILITY IMAP4rev1 LITERAL+ SASL-IR ID AUTH=SCRAM-SHA-256-PLUS AUTH=SCRAM-SHA-256 AUTH=PLAIN] IMAP ready.")
	all.close()
}

func TestTokenRefusalNamesProvider(t *testing.T) {
	m := openTestBackend(t)
	b := newHarness(t, m.addr(), func(s *harnessConfig) {
		s.auth.Methods = []string{auth.OAuth}
		s.cfg.TokenRefusal = auth.TokenRefusal{Scope: "imap", DiscoveryURL: "https://id.example.org/.well-known/openid-configuration"}
		s.authSources.OAuth = func(_ context.Context, token identity.Secret) (string, time.Time, error) {
			if token.Reveal() == "right" {
				return "carol", time.Time{}, nil
			}
			return "", time.Time{}, auth.ErrDenied
		}
	})
	for mechanism, message := range map[string]string{
		"OAUTHBEARER": "n,,\x01auth=Bearer %\x01\x01", "XOAUTH2": "user=carol\x01auth=Bearer %\x01\x01",
	} {
		send := func(c *client, token string) {
			c.write("a AUTHENTICATE " + mechanism + " " + base64.StdEncoding.EncodeToString([]byte(strings.Replace(message, "%", token, 1))) + "\r\n")
		}
		c := b.dialGreeted("implicit")
		for _, answer := range []string{"", "AQ==", "*"} { // the client's reply does not matter
			send(c, "wrong")
			var errorJSON map[string]any
			if text := c.readChallenge(); json.Unmarshal([]byte(text), &errorJSON) != nil || errorJSON["scope"] != "imap" {
				t.Errorf("%s: received %q", mechanism, text)
			}
			c.write(answer + "\r\n")
			c.expectLine("a " + authFailedReply)
			if answer == "AQ==" {
				break // a third failure ends the connection
			}
		}
		send(c, "right")
		c.expectLine("a OK …")
		if r := b.lastRecord("login_accepted", c); r.field("method") != auth.OAuth || r.field("user") != "carol@example.org" {
			t.Errorf("%v", r)
		}
		c.close()
	}
}

func TestAuthServerRoutesToConfiguredBackendsOnly(t *testing.T) {
	m := openTestBackend(t)
	here := netip.MustParseAddrPort(m.addr())
	b := newHarness(t, m.addr(), func(s *harnessConfig) {
		delete(s.backends, "mastered") // it has the address of east
		s.auth.Methods, s.cfg.RouteByAuth = []string{auth.HTTP}, true
		s.routes = routing.Config{Settings: routing.Settings{Source: routing.SourceHTTP}}
		s.authSources.HTTP = func(_ context.Context, l auth.Login) (auth.ServerResponse, error) {
			switch l.User.String() {
			case "alice@example.org":
				return auth.ServerResponse{BackendAddr: here}, nil
			case "bob@example.org":
				return auth.ServerResponse{BackendAddr: here, LoginName: "u17", Password: identity.NewSecret(password)}, nil
			case "lost@example.org":
				return auth.ServerResponse{BackendAddr: netip.MustParseAddrPort("192.0.2.1:143")}, nil
			case "late@example.org":
				return auth.ServerResponse{}, &auth.DelayedDenial{Delay: 600 * time.Millisecond, Err: auth.ErrDenied}
			}
			return auth.ServerResponse{}, nil
		}
	})
	for _, c := range []struct{ login, answer string }{
		{"alice " + password, "a OK …"}, {"bob whatever", "a OK …"}, {"alice wrong", "a " + unavailableReply},
		{"lost " + password, "a " + unavailableReply}, {"unplaced " + password, "a " + unavailableReply},
	} {
		person := b.dialGreeted("implicit")
		person.write("a LOGIN " + c.login + "\r\n")
		person.expectLine(c.answer)
		person.close()
	}
	if r := b.wantRecord("login_accepted", ""); r.field("route") != string(event.OriginHTTP) {
		t.Errorf("%v", r)
	}
	late, start := b.dialGreeted("implicit"), time.Now()
	late.write("a LOGIN late x\r\n")
	late.expectLine("a " + authFailedReply)
	if took := time.Since(start); took < 600*time.Millisecond {
		t.Errorf("the auth server set 600 ms, and the answer took %v", took)
	}
	late.close()
}

// An exchange that waits for its client verifies nothing. It does not count as a login in
// progress, for its user or its address.
func TestStalledExchangesDoNotLockOutUser(t *testing.T) {
	failures := failureLimits()
	failures.PerMinute, failures.PerUserDay, failures.PerUserNetworkHour = 3, 9, 3
	b := newHarness(t, openTestBackend(t).addr(), withSCRAM(t), withLimits(limit.Config{Settings: limit.Settings{Failures: failures}}))
	home := b.dialGreetedFrom("198.51.100.1")
	home.startScram("SCRAM-SHA-256", "carol", password, "")
	home.readChallenge()
	home.write("\r\n")
	home.expectLine("a OK …")
	for address := range 3 {
		for range 3 {
			c := b.dialGreetedFrom(fmt.Sprintf("203.0.113.%d", 1+64*address))
			c.write("a AUTHENTICATE SCRAM-SHA-256 " + encodeBase64("n,,n=carol,r=fyko+d2lbbFgONRv9qkxdawL") + "\r\n")
			c.readChallenge() // sends nothing more
		}
	}
	for range 3 { // a right proof; sends nothing after the server's proof
		c := b.dialGreetedFrom("198.51.100.200")
		c.startScram("SCRAM-SHA-256", "carol", password, "")
		c.readChallenge()
	}
	for user, addresses := range map[string][]string{"carol": {"192.0.2.1"}, "frank": {"203.0.113.1", "198.51.100.200"}} {
		for _, address := range addresses {
			c := b.dialGreetedFrom(address)
			c.startScram("SCRAM-SHA-256", user, "wrong", "")
			c.expectLine("a " + authFailedReply)
			c.close()
		}
	}
}
