package tlsconf

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// authority is a CA for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixMicro()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(240 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// issue makes a P-256 certificate for names, good until notAfter, as PEM.
func (a *authority) issue(t testing.TB, notAfter time.Time, names ...string) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return a.sign(t, private, private.Public(), notAfter, names)
}

// issueFrom is issue with a start of validity.
func (a *authority) issueFrom(t testing.TB, notBefore, notAfter time.Time, names ...string) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return a.signFrom(t, private, private.Public(), notBefore, notAfter, names)
}

func (a *authority) sign(t testing.TB, private, public any, notAfter time.Time, names []string) (cert, key []byte) {
	t.Helper()
	return a.signFrom(t, private, public, time.Now().Add(-48*time.Hour), notAfter, names)
}

func (a *authority) signFrom(t testing.TB, private, public any, notBefore, notAfter time.Time, names []string) (cert, key []byte) {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixMicro()), Subject: pkix.Name{CommonName: names[0]},
		NotBefore: notBefore, NotAfter: notAfter, DNSNames: names,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, public, a.key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

func write(t testing.TB, path string, text []byte) string {
	t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// writePair writes base.pem and base.key.
func writePair(t testing.TB, base string, cert, key []byte) CertFiles {
	t.Helper()
	return CertFiles{Cert: write(t, base+".pem", cert), Key: write(t, base+".key", key)}
}

// runHandshake does a handshake over loopback and reads one byte from the server, so that
// a ticket arrives. It returns the client's state.
func runHandshake(t testing.TB, server, client *tls.Config) (tls.ConnectionState, error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go serveOne(l, server, done)
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	c := tls.Client(conn, client)
	_, err = io.ReadFull(c, make([]byte, 1)) // TLS 1.3 reports a refused certificate here
	state := c.ConnectionState()
	_ = c.Close()
	return state, errors.Join(err, <-done)
}

// serveOne serves one connection.
func serveOne(l net.Listener, cfg *tls.Config, done chan<- error) {
	conn, err := l.Accept()
	if err != nil {
		done <- err
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	s := tls.Server(conn, cfg)
	if err = s.Handshake(); err == nil {
		_, err = s.Write([]byte{'*'})
	}
	done <- err
}

func newServer(t testing.TB, cfg ServerSettings) (*Server, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zap.InfoLevel)
	s, err := NewServer(cfg, zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	return s, logs
}

func TestCertificateIsChosenByName(t *testing.T) {
	ca, dir, later := newAuthority(t, "ca"), t.TempDir(), time.Now().Add(240*time.Hour)
	var pairs []CertFiles
	for i, names := range [][]string{{"first.example.org"}, {"mail.example.org"}, {"*.example.org", "Example.NET"}, {"*.deep.example.org"}} {
		cert, key := ca.issue(t, later, names...)
		pairs = append(pairs, writePair(t, filepath.Join(dir, string(rune('a'+i))), cert, key))
	}
	s, _ := newServer(t, ServerSettings{Certificates: pairs})
	for serverName, want := range map[string]string{
		"mail.example.org":    "mail.example.org",
		"MAIL.Example.ORG":    "mail.example.org",
		"imap.example.org":    "*.example.org",
		"example.net":         "*.example.org", // by its second name
		"x.deep.example.org":  "*.deep.example.org",
		"a.b.example.org":     "first.example.org", // a wildcard is one label
		"example.org":         "first.example.org",
		"deep.example.org":    "*.example.org",
		"*.example.org":       "*.example.org",
		"unknown.example.com": "first.example.org",
		"":                    "first.example.org",
	} {
		state, err := runHandshake(t, s.Config(), &tls.Config{ServerName: serverName, InsecureSkipVerify: true})
		if err != nil {
			t.Errorf("%q: %v", serverName, err)
			continue
		}
		if got := state.PeerCertificates[0].Subject.CommonName; got != want {
			t.Errorf("%q got %s, want %s", serverName, got, want)
		}
	}
}

// Old clients support only RSA, by their cipher suites or by their signature
// algorithms, and may send no name, or an unknown one.
func TestClientGetsTheKeyTypeItCanUse(t *testing.T) {
	ca, dir, later := newAuthority(t, "ca"), t.TempDir(), time.Now().Add(240*time.Hour)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecPair := func(file string, names ...string) CertFiles {
		cert, key := ca.issue(t, later, names...)
		return writePair(t, filepath.Join(dir, file), cert, key)
	}
	rsaPair := func(file string, names ...string) CertFiles {
		cert, key := ca.sign(t, rsaKey, rsaKey.Public(), later, names)
		return writePair(t, filepath.Join(dir, file), cert, key)
	}
	ec, rs := ecPair("ec", "mail.example.org"), rsaPair("rsa", "mail.example.org", "old.example.org")
	wild, other := rsaPair("wild", "*.example.org"), rsaPair("other", "other.example.net")
	const both, onlyRSA, onlyECDSA = "both", "RSA", "ECDSA"
	clients := map[string]*tls.Config{
		both:      {},
		onlyRSA:   {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}},
		onlyECDSA: {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}},
	}
	for _, c := range []struct {
		pairs  []CertFiles
		client string
		names  []string
		want   x509.PublicKeyAlgorithm // 0: the handshake fails
	}{
		{[]CertFiles{ec, rs}, both, []string{"", "mail.example.org", "unknown.example.com"}, x509.ECDSA},
		{[]CertFiles{ec, rs}, onlyRSA, []string{"", "mail.example.org", "unknown.example.com", "old.example.org"}, x509.RSA},
		{[]CertFiles{ec, rs}, onlyECDSA, []string{"", "mail.example.org", "unknown.example.com"}, x509.ECDSA},
		{[]CertFiles{rs, ec}, both, []string{"", "mail.example.org", "unknown.example.com"}, x509.RSA}, // the first is the default
		{[]CertFiles{rs, ec}, onlyRSA, []string{"", "mail.example.org", "unknown.example.com"}, x509.RSA},
		{[]CertFiles{rs, ec}, onlyECDSA, []string{"", "mail.example.org", "unknown.example.com"}, x509.ECDSA},
		{[]CertFiles{ec, wild}, onlyRSA, []string{"", "mail.example.org", "unknown.example.com"}, x509.RSA}, // a wildcard matches the name too
		{[]CertFiles{ec, other}, both, []string{"", "unknown.example.com"}, x509.ECDSA},
		{[]CertFiles{ec, other}, onlyRSA, []string{"", "mail.example.org", "unknown.example.com"}, 0}, // the RSA certificate is for another name
	} {
		s, _ := newServer(t, ServerSettings{Certificates: c.pairs})
		for _, name := range c.names {
			client := clients[c.client].Clone()
			client.ServerName, client.InsecureSkipVerify = name, true
			state, err := runHandshake(t, s.Config(), client)
			switch {
			case c.want == 0 && err == nil:
				t.Errorf("%v, %s, %q: served another name's certificate", c.pairs, c.client, name)
			case c.want == 0:
			case err != nil:
				t.Errorf("%v, %s, %q: %v", c.pairs, c.client, name, err)
			case state.PeerCertificates[0].PublicKeyAlgorithm != c.want:
				t.Errorf("%v, %s, %q: served %v", c.pairs, c.client, name, state.PeerCertificates[0].PublicKeyAlgorithm)
			}
		}
	}
}

// A client's signature algorithms select like its cipher suites. crypto/tls has no
// client that offers fewer of them.
func TestSignatureAlgorithmsChooseTheCertificate(t *testing.T) {
	ca, dir, later := newAuthority(t, "ca"), t.TempDir(), time.Now().Add(240*time.Hour)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecCert, ecKey := ca.issue(t, later, "mail.example.org")
	rsaCert, rsaPEM := ca.sign(t, rsaKey, rsaKey.Public(), later, []string{"mail.example.org"})
	s, _ := newServer(t, ServerSettings{Certificates: []CertFiles{
		writePair(t, filepath.Join(dir, "ec"), ecCert, ecKey), writePair(t, filepath.Join(dir, "rsa"), rsaCert, rsaPEM)}})
	for _, name := range []string{"", "mail.example.org", "unknown.example.com"} {
		for scheme, want := range map[tls.SignatureScheme]x509.PublicKeyAlgorithm{
			tls.PSSWithSHA256: x509.RSA, tls.ECDSAWithP256AndSHA256: x509.ECDSA} {
			for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
				cert, err := s.Config().GetCertificate(&tls.ClientHelloInfo{
					ServerName: name, SupportedVersions: []uint16{version}, SignatureSchemes: []tls.SignatureScheme{scheme},
					SupportedCurves: []tls.CurveID{tls.CurveP256}, SupportedPoints: []uint8{0}, // uncompressed
					CipherSuites: []uint16{tls.TLS_AES_128_GCM_SHA256,
						tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
				})
				if err != nil || cert.Leaf.PublicKeyAlgorithm != want {
					t.Errorf("%q, %v, %s: %v, %v", name, scheme, tls.VersionName(version), cert.Leaf.PublicKeyAlgorithm, err)
				}
			}
		}
	}
}

func TestOnlyTheRightProtocolAndVersionAreServed(t *testing.T) {
	cert, key, err := SelfSignedPEM("mail.example.org", "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	pair := writePair(t, filepath.Join(t.TempDir(), "c"), cert, key)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(cert)
	for name, c := range map[string]struct {
		min    string
		client *tls.Config
		want   string
		ok     bool
	}{
		"imap":               {"", &tls.Config{NextProtos: []string{"imap"}}, "imap", true},
		"imap among others":  {"", &tls.Config{NextProtos: []string{"h2", "imap"}}, "imap", true},
		"none":               {"", &tls.Config{}, "", true},
		"http/1.1":           {"", &tls.Config{NextProtos: []string{"http/1.1"}}, "", false},
		"h2":                 {"", &tls.Config{NextProtos: []string{"h2"}}, "", false},
		"smtp":               {"", &tls.Config{NextProtos: []string{"smtp"}}, "", false},
		"TLS 1.2":            {"1.2", &tls.Config{MaxVersion: tls.VersionTLS12}, "", true},
		"TLS 1.1":            {"", &tls.Config{MinVersion: tls.VersionTLS11, MaxVersion: tls.VersionTLS11}, "", false},
		"1.2 where 1.3 must": {"1.3", &tls.Config{MaxVersion: tls.VersionTLS12}, "", false},
		"1.3 where 1.3 must": {"1.3", &tls.Config{}, "", true},
	} {
		s, _ := newServer(t, ServerSettings{MinVersion: c.min, Certificates: []CertFiles{pair}})
		client := c.client.Clone()
		client.ServerName, client.RootCAs = "mail.example.org", roots
		state, err := runHandshake(t, s.Config(), client)
		if (err == nil) != c.ok || c.ok && state.NegotiatedProtocol != c.want {
			t.Errorf("%s: %q, %v", name, state.NegotiatedProtocol, err)
		}
	}
}

func TestBadFilesAreNamedAllAtOnce(t *testing.T) {
	dir := t.TempDir()
	cert, key, _ := SelfSignedPEM("a")
	_, otherKey, _ := SelfSignedPEM("b")
	good := writePair(t, filepath.Join(dir, "good"), cert, key)
	for name, c := range map[string]struct {
		cfg  ServerSettings
		want []string
	}{
		"none":       {ServerSettings{}, []string{"no certificate is configured"}},
		"version":    {ServerSettings{MinVersion: "1.1", Certificates: []CertFiles{good}}, []string{`"1.1"`}},
		"missing":    {ServerSettings{Certificates: []CertFiles{{"/no/c", "/no/k"}, good, {good.Cert, "/no/k2"}}}, []string{"/no/c: no such file", "/no/k2: no such file"}},
		"mismatch":   {ServerSettings{Certificates: []CertFiles{writePair(t, filepath.Join(dir, "mix"), cert, otherKey)}}, []string{"mix.key: this key does not match the certificate in", "mix.pem"}},
		"empty":      {ServerSettings{Certificates: []CertFiles{writePair(t, filepath.Join(dir, "empty"), nil, key)}}, []string{"empty.pem", "holds no PEM certificate"}},
		"swapped":    {ServerSettings{Certificates: []CertFiles{{good.Key, good.Cert}}}, []string{"good.key: it holds a key and no certificate: are cert and key swapped?"}},
		"CA":         {ServerSettings{Certificates: []CertFiles{good}, ClientCA: good.Key}, []string{"good.key: it holds no PEM certificate"}},
		"missing CA": {ServerSettings{Certificates: []CertFiles{good}, ClientCA: "/no/ca"}, []string{"/no/ca"}},
		"huge":       {ServerSettings{Certificates: []CertFiles{{write(t, filepath.Join(dir, "huge"), make([]byte, maxFileSize+1)), good.Key}}}, []string{"huge: it is larger"}},
	} {
		_, err := NewServer(c.cfg, zap.NewNop())
		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v does not say %q", name, err, want)
			}
		}
		if err != nil && strings.Contains(err.Error(), "PRIVATE") && name != "swapped" {
			t.Errorf("%s: %v quotes a file", name, err)
		}
	}
}

func TestOneConfigServesAllConnectionsOfAGeneration(t *testing.T) {
	cert, key, _ := SelfSignedPEM("a")
	s, _ := newServer(t, ServerSettings{Certificates: []CertFiles{writePair(t, filepath.Join(t.TempDir(), "c"), cert, key)}})
	first := s.Config()
	if n := testing.AllocsPerRun(100, func() { _ = s.Config() }); n != 0 || s.Config() != first {
		t.Errorf("%v allocations", n)
	}
	if changed, err := s.Reload(); changed || err != nil {
		t.Errorf("unchanged files made a new generation: %v", err)
	}
}

func TestBackendIsAlwaysVerified(t *testing.T) {
	ca, other, dir, later := newAuthority(t, "ca"), newAuthority(t, "other"), t.TempDir(), time.Now().Add(240*time.Hour)
	caFile := write(t, filepath.Join(dir, "ca"), ca.pem())
	for name, c := range map[string]struct {
		signer   *authority
		notAfter time.Time
		name     string
		want     string
	}{
		"good":    {ca, later, "east.internal", ""},
		"name":    {ca, later, "west.internal", "not east.internal"},
		"expired": {ca, time.Now().Add(-time.Hour), "east.internal", "expired"},
		"CA":      {other, later, "east.internal", "unknown authority"},
	} {
		cert, key := c.signer.issue(t, c.notAfter, c.name)
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		state, err := runHandshake(t, &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"imap"}},
			newClient(t, ClientConfig{CA: caFile, ServerName: "east.internal", ALPN: IMAP}).Config())
		if c.want == "" && (err != nil || state.NegotiatedProtocol != "imap") || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, cfg := range map[string]ClientConfig{"no CA": {CA: "/no/ca", ServerName: "x"},
		"no PEM": {CA: write(t, filepath.Join(dir, "x"), nil), ServerName: "x"}, "version": {ServerName: "x", MinVersion: "1.0"}} {
		if _, err := NewClient(cfg, zap.NewNop()); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestSecondConnectionToABackendResumes(t *testing.T) {
	ca := newAuthority(t, "ca")
	cert, key := ca.issue(t, time.Now().Add(240*time.Hour), "east.internal")
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	server := &tls.Config{Certificates: []tls.Certificate{pair}}
	cfg := newClient(t, ClientConfig{CA: write(t, filepath.Join(t.TempDir(), "ca"), ca.pem()), ServerName: "east.internal"}).Config()
	var resumed []bool
	for range 3 {
		state, err := runHandshake(t, server, cfg)
		if err != nil {
			t.Fatal(err)
		}
		resumed = append(resumed, state.DidResume)
	}
	if !slices.Equal(resumed, []bool{false, true, true}) {
		t.Errorf("resumed: %v", resumed)
	}
}

func TestServedCertificateIsRecorded(t *testing.T) {
	dir := t.TempDir()
	ca := newAuthority(t, "ca")
	far := time.Now().Add(time.Hour)
	var pairs []CertFiles
	for _, name := range []string{"a.example.org", "b.example.org"} {
		cert, key := ca.issue(t, far, name)
		pairs = append(pairs, writePair(t, filepath.Join(dir, name), cert, key))
	}
	s, _ := newServer(t, ServerSettings{Certificates: pairs})
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		client := &tls.Config{RootCAs: ca.pool(), MaxVersion: version, ClientSessionCache: tls.NewLRUClientSessionCache(4)}
		for i, name := range []string{"a.example.org", "b.example.org", "a.example.org", "b.example.org"} {
			client := client.Clone()
			client.ServerName = name
			recorded, presented, resumed := observeHandshake(t, s.Config(), client)
			if recorded == nil || !recorded.Equal(presented) || resumed != (i > 1) {
				t.Errorf("%s, %s, resumed: %v: recorded %v, served %v", tls.VersionName(version), name, resumed, recorded, presented.DNSNames)
			}
		}
	}
	// A connection of the old generation gets the old certificate.
	cert, key := ca.issue(t, far, "a.example.org")
	writePair(t, filepath.Join(dir, "a.example.org"), cert, key)
	before := s.Config()
	if changed, err := s.Reload(); err != nil || !changed {
		t.Fatal(changed, err)
	}
	for what, cfg := range map[string]*tls.Config{"old": before, "new": s.Config()} {
		recorded, presented, _ := observeHandshake(t, cfg, &tls.Config{RootCAs: ca.pool(), ServerName: "a.example.org"})
		if recorded == nil || !recorded.Equal(presented) {
			t.Errorf("%s: recorded %v, served %v", what, recorded, presented)
		}
	}
}

// observeHandshake returns the recorded certificate and the one that the client received. The
// client reads a byte, so that it has its ticket.
func observeHandshake(t *testing.T, server, client *tls.Config) (recorded, presented *x509.Certificate, resumed bool) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	done := make(chan error, 1)
	go func() {
		c := tls.Server(a, server)
		err := c.HandshakeContext(WithServedCertificate(&recorded))
		if err == nil {
			_, err = c.Write([]byte("x"))
		}
		done <- err
	}()
	c := tls.Client(b, client)
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	state := c.ConnectionState()
	return recorded, state.PeerCertificates[0], state.DidResume
}
