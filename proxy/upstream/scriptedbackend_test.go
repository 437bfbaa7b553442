package upstream

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
)

// canary is a password that must not appear elsewhere.
const canary = "CANARY-7f3a-pw"

// scriptedBackend is a backend that runs a script on one connection:
//
//	> TEXT   sends TEXT and CRLF; {X} is the tag of the command that began with X
//	>> TEXT  sends TEXT alone
//	< NAME   reads a command, or a line that NAME stands in
//	tls      continues under TLS
//	fin      closes its side
//	rst      resets the connection
//	hang     sends nothing until the other side closes
//
// After its last step it does the same as hang.
type scriptedBackend struct {
	// Set once.
	steps []string
	tls   *tls.Config

	// Owned by run, then by the receiver from done.
	tcp       *net.TCPConn
	nc        net.Conn // tcp, or TLS over it
	r         *bufio.Reader
	plaintext bytes.Buffer // received without TLS
	encrypted bytes.Buffer // received under TLS
	tags      *strings.Replacer
	tagPairs  []string // tags for the replacer
	err       error    // the script was not followed
	done      chan struct{}
}

// startScripted starts the script for the next connection to the address that it returns.
func startScripted(t testing.TB, p *scriptedBackend) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.done = make(chan struct{})
	go p.run(l)
	t.Cleanup(func() { _ = l.Close(); <-p.done })
	return l.Addr().String()
}

// run ends when the script and the connection end, or the listener is closed.
func (p *scriptedBackend) run(l net.Listener) {
	defer close(p.done)
	nc, err := l.Accept()
	if err != nil {
		p.err = err
		return
	}
	_ = l.Close()                     // refuse further attempts to connect
	defer func() { _ = nc.Close() }() // not p.nc: under TLS that would write close_notify to a closed peer
	p.tcp, p.nc, p.tags = nc.(*net.TCPConn), nc, strings.NewReplacer()
	p.r = bufio.NewReader(io.TeeReader(nc, &p.plaintext))
	for _, step := range p.steps {
		if p.err = p.runStep(step); p.err != nil {
			p.err = fmt.Errorf("step %q: %w", step, p.err)
			break
		}
	}
	_, _ = io.Copy(io.Discard, p.r)
}

func (p *scriptedBackend) runStep(step string) error {
	verb, text, _ := strings.Cut(step, " ")
	switch verb {
	case ">":
		_, err := io.WriteString(p.nc, p.tags.Replace(text)+"\r\n")
		return err
	case ">>":
		_, err := io.WriteString(p.nc, p.tags.Replace(text))
		return err
	case "<":
		return p.readCommand(text)
	case "tls":
		secure := tls.Server(p.nc, p.tls)
		if err := secure.Handshake(); err != nil {
			return err
		}
		p.nc, p.r = secure, bufio.NewReader(io.TeeReader(secure, &p.encrypted))
		return nil
	case "fin":
		return p.nc.(interface{ CloseWrite() error }).CloseWrite()
	case "rst":
		_ = p.tcp.SetLinger(0)
		return p.tcp.Close()
	case "hang":
		_, err := io.Copy(io.Discard, p.r)
		return err
	}
	return fmt.Errorf("no such verb")
}

func (p *scriptedBackend) readCommand(name string) error {
	line, err := p.r.ReadString('\n')
	if err != nil {
		return err
	}
	if !strings.Contains(line, name) {
		return fmt.Errorf("received %q", line)
	}
	if tag, rest, _ := strings.Cut(line, " "); name != "" && strings.HasPrefix(rest, name) {
		p.tagPairs = append(p.tagPairs, "{"+tag[:1]+"}", tag)
		p.tags = strings.NewReplacer(p.tagPairs...)
	}
	return nil
}

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
	u, err := identity.Canonicalize(name, "")
	if err != nil {
		t.Fatal(err)
	}
	return u
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

// loginAttempt is one login at a scripted backend.
type loginAttempt struct {
	*scriptedBackend
	conn   *Conn
	err    error
	result event.ConnectResult
}

// logIn logs in at a backend that runs steps.
func logIn(t testing.TB, cfg Config, req Request, steps ...string) loginAttempt {
	t.Helper()
	server, pool := certificate(t, nil)
	return logInTLS(t, cfg, req, &scriptedBackend{steps: steps, tls: server}, pool)
}

func logInTLS(t testing.TB, cfg Config, req Request, p *scriptedBackend, pool *x509.CertPool) loginAttempt {
	t.Helper()
	cfg.Name, cfg.Address = "east", startScripted(t, p)
	if cfg.TLS != event.NoTLS {
		cfg.TLSConfig = testbed.StaticTLS(&tls.Config{RootCAs: pool})
	}
	if cfg.UpstreamLoginTimeout == 0 {
		cfg.UpstreamLoginTimeout = 10 * time.Second
	}
	a := loginAttempt{scriptedBackend: p}
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
	<-a.done
}

// testLimits has the defaults of all keys.
var testLimits = testbed.WithDefaults(LoginSettings{})
