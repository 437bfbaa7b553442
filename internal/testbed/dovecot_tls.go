//go:build unix

package testbed

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// CA is a certificate authority that only one test trusts.
type CA struct {
	// Set once.
	Pool *x509.CertPool // the CA certificate, for clients
	File string         // the same in a PEM file
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCA creates a CA. Its files are removed when the test ends.
func NewCA(t testing.TB) *CA {
	t.Helper()
	ca := &CA{Pool: x509.NewCertPool(), dir: makeDir(t, "ca"), key: newKey(t)}
	ca.File = filepath.Join(ca.dir, "ca.pem")
	der := signCert(t, &x509.Certificate{
		Subject:               pkix.Name{CommonName: "Test authority"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, nil, ca.key, ca.key)
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatalf("read back the authority: %v", err)
	}
	ca.cert = cert
	ca.Pool.AddCert(cert)
	writePEM(t, ca.File, "CERTIFICATE", der)
	return ca
}

// Issue writes a server and client certificate for the given DNS names and addresses. It
// returns the paths of the chain and the key.
func (ca *CA) Issue(t testing.TB, names ...string) (certFile, keyFile string) {
	t.Helper()
	leaf := &x509.Certificate{
		Subject:     pkix.Name{CommonName: names[0]},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			leaf.IPAddresses = append(leaf.IPAddresses, ip)
		} else {
			leaf.DNSNames = append(leaf.DNSNames, name)
		}
	}
	key := newKey(t)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatalf("encode a key: %v", err)
	}
	dir, err := os.MkdirTemp(ca.dir, "")
	if err != nil {
		t.Fatalf("make a folder: %v", err)
	}
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writePEM(t, certFile, "CERTIFICATE", signCert(t, leaf, ca.cert, key, ca.key))
	writePEM(t, keyFile, "PRIVATE KEY", keyDER)
	return certFile, keyFile
}

// ClientTLS returns a client configuration that trusts only this CA and verifies name.
func (ca *CA) ClientTLS(name string) *tls.Config {
	return &tls.Config{RootCAs: ca.Pool, ServerName: name, MinVersion: tls.VersionTLS12}
}

// ClientTLSFunc is ClientTLS for callers that request a configuration per connection.
func (ca *CA) ClientTLSFunc(name string) func() *tls.Config { return StaticTLS(ca.ClientTLS(name)) }

// StaticTLS returns a function that returns cfg for every connection.
func StaticTLS(cfg *tls.Config) func() *tls.Config { return func() *tls.Config { return cfg } }

// signCert returns the DER form of a certificate. Without a parent it is self-signed.
func signCert(t testing.TB, cert, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) []byte {
	t.Helper()
	if parent == nil {
		parent = cert
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatalf("draw a serial number: %v", err)
	}
	cert.SerialNumber = serial
	cert.NotBefore = time.Now().Add(-time.Hour)
	cert.NotAfter = time.Now().Add(24 * time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, cert, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatalf("sign a certificate: %v", err)
	}
	return der
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatalf("make a key: %v", err)
	}
	return key
}

func writePEM(t testing.TB, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatalf("write a certificate: %v", err)
	}
}
