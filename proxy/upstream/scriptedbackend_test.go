package upstream

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// canary is a password that must not appear elsewhere.
const canary = "CANARY-7f3a-pw"

// certificate returns a self-signed certificate, and a pool that trusts it.
func certificate(t testing.TB, change func(*x509.Certificate)) (*tls.Config, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "backend"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA:         true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	if change != nil {
		change(cert)
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, pool
}

func user(t testing.TB, name string) identity.User {
	t.Helper()
	return testkit.Must(identity.Canonicalize(name, ""))(t)
}

func testRequest(t testing.TB) Request {
	return Request{
		User:     user(t, "joe@example.org"),
		Password: identity.NewSecret(canary),
		Client: Client{
			Addr:    netip.MustParseAddrPort("192.0.2.7:4711"),
			Local:   netip.MustParseAddrPort("198.51.100.1:993"),
			Session: "s-1",
		},
	}
}

// loginAttempt is one login at a backend that runs steps.
type loginAttempt struct {
	*testkit.Steps
	conn   *Conn
	err    error
	result event.ConnectResult
}

// logIn logs in at a backend that runs steps.
func logIn(t testing.TB, cfg Config, req Request, steps ...string) loginAttempt {
	t.Helper()
	server, pool := certificate(t, nil)
	return logInTLS(t, cfg, req, &testkit.Steps{Lines: steps, TLS: server}, pool)
}

func logInTLS(t testing.TB, cfg Config, req Request, p *testkit.Steps, pool *x509.CertPool) loginAttempt {
	t.Helper()
	cfg.Name, cfg.Address = "east", p.Start(t)
	if cfg.TLS != event.NoTLS {
		cfg.TLSConfig = testbed.StaticTLS(&tls.Config{RootCAs: pool})
	}
	if cfg.UpstreamLoginTimeout == 0 {
		cfg.UpstreamLoginTimeout = 10 * time.Second
	}
	a := loginAttempt{Steps: p}
	b := New(testbed.WithDefaults(cfg), Hooks{OnConnect: func(r event.ConnectResult) { a.result += r }}, zap.NewNop())
	a.conn, a.err = b.Login(context.Background(), req)
	if a.conn != nil {
		t.Cleanup(func() { _ = a.conn.Close() })
	}
	return a
}

// finish closes the connection and waits for the end of the script.
func (a loginAttempt) finish() {
	if a.conn != nil {
		_ = a.conn.Close()
	}
	a.Wait()
}

// testLimits has the defaults of all keys.
var testLimits = testbed.WithDefaults(LoginSettings{})
