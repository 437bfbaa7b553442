package auth

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/url"
	"testing"
	"time"
)

// keyMaker makes keys whose certificates have one signature algorithm.
type keyMaker func(t testing.TB) (crypto.Signer, x509.SignatureAlgorithm)

func ecdsaKey(sum x509.SignatureAlgorithm) keyMaker {
	return func(t testing.TB) (crypto.Signer, x509.SignatureAlgorithm) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key, sum
	}
}

func rsaKey(sum x509.SignatureAlgorithm) keyMaker {
	return func(t testing.TB) (crypto.Signer, x509.SignatureAlgorithm) {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		return key, sum
	}
}

func ed25519Key(t testing.TB) (crypto.Signer, x509.SignatureAlgorithm) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key, x509.PureEd25519
}

// selfSigned returns a certificate for localhost, modified by change.
func selfSigned(t testing.TB, newKey keyMaker, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	key, sum := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "alice@example.org"}, SignatureAlgorithm: sum,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"},
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// withNames sets the names of a certificate instead of localhost.
func withNames(emails, dns, uris []string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.EmailAddresses, c.DNSNames = emails, dns
		for _, raw := range uris {
			u, err := url.Parse(raw)
			if err != nil {
				panic(err)
			}
			c.URIs = append(c.URIs, u)
		}
	}
}

// handshake returns one TLS connection from both sides.
func handshake(t testing.TB, cert tls.Certificate, version uint16) (client tls.ConnectionState, c *Client) {
	t.Helper()
	a, b := net.Pipe()
	server := tls.Server(a, &tls.Config{Certificates: []tls.Certificate{cert}, MaxVersion: version, SessionTicketsDisabled: true})
	peer := tls.Client(b, &tls.Config{InsecureSkipVerify: true, MaxVersion: version})
	t.Cleanup(func() { _ = a.Close(); _ = b.Close() })
	failed := make(chan error, 1)
	go func() { failed <- server.HandshakeContext(context.Background()) }()
	if err := peer.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	state := server.ConnectionState()
	return peer.ConnectionState(), &Client{TLS: &state, ServedCertificate: cert.Leaf}
}
