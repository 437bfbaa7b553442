package tlsconf

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"imapgate/internal/testkit"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
)

func newClient(t testing.TB, cfg ClientConfig) *Client {
	t.Helper()
	c, err := NewClient(cfg, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func issueKeyPair(t testing.TB, ca *authority, names ...string) tls.Certificate {
	t.Helper()
	cert, key := ca.issue(t, time.Now().Add(240*time.Hour), names...)
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func TestClientReloadsCAAndDoesNotResume(t *testing.T) {
	old, renewed := newAuthority(t, "old"), newAuthority(t, "renewed")
	file := write(t, filepath.Join(t.TempDir(), "ca"), old.pem())
	c := newClient(t, ClientConfig{CA: file, ServerName: "east.internal"})
	watchFiles(t, c, c.log)
	server := &tls.Config{Certificates: []tls.Certificate{issueKeyPair(t, old, "east.internal")}}
	for i, resumes := range []bool{false, true} {
		if state, err := runHandshake(t, server, c.Config()); err != nil || state.DidResume != resumes {
			t.Fatalf("connection %d: resumed %v, %v", i, state.DidResume, err)
		}
	}

	write(t, file, renewed.pem())
	testkit.Eventually(t, "the new CA is trusted", func() bool {
		_, err := runHandshake(t, &tls.Config{Certificates: []tls.Certificate{issueKeyPair(t, renewed, "east.internal")}}, c.Config())
		return err == nil
	})
	var unknown x509.UnknownAuthorityError
	if state, err := runHandshake(t, server, c.Config()); !errors.As(err, &unknown) {
		t.Errorf("a server of the old authority: resumed %v, %v", state.DidResume, err)
	}

	write(t, file, []byte("garbage"))
	if changed, err := c.Reload(); changed || err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a broken file: %v, %v", changed, err)
	}
	if _, err := runHandshake(t, &tls.Config{Certificates: []tls.Certificate{issueKeyPair(t, renewed, "east.internal")}}, c.Config()); err != nil {
		t.Errorf("with the last good file: %v", err)
	}
}

func TestClientSendsRenewedCertificate(t *testing.T) {
	ca, clients, dir, later := newAuthority(t, "ca"), newAuthority(t, "clients"), t.TempDir(), time.Now().Add(240*time.Hour)
	cert, key := clients.issue(t, later, "one")
	files := writePair(t, filepath.Join(dir, "client"), cert, key)
	c := newClient(t, ClientConfig{CA: write(t, filepath.Join(dir, "ca"), ca.pem()), ServerName: "east.internal", Certificate: files})
	var shown string
	server := &tls.Config{Certificates: []tls.Certificate{issueKeyPair(t, ca, "east.internal")}, ClientCAs: clients.pool(),
		ClientAuth: tls.RequireAndVerifyClientCert, VerifyConnection: func(s tls.ConnectionState) error {
			shown = s.PeerCertificates[0].Subject.CommonName
			return nil
		}}
	for _, want := range []struct {
		name    string
		resumes bool
	}{{"one", false}, {"one", true}, {"two", false}} {
		if want.name == "two" {
			cert, key = clients.issue(t, later, "two")
			write(t, files.Cert, cert)
			if changed, err := c.Reload(); changed || err == nil {
				t.Errorf("half of a pair: %v, %v", changed, err)
			}
			if _, err := runHandshake(t, server, c.Config()); err != nil || shown != "one" {
				t.Errorf("half of a pair: %s is sent, %v", shown, err)
			}
			write(t, files.Key, key)
			if changed, err := c.Reload(); !changed || err != nil {
				t.Fatal(changed, err)
			}
		}
		state, err := runHandshake(t, server, c.Config())
		if err != nil || shown != want.name || state.DidResume != want.resumes {
			t.Errorf("%s is shown, resumed %v, %v", shown, state.DidResume, err)
		}
	}
	if list := c.Certificates(); len(list) != 1 || list[0].File != files.Cert {
		t.Errorf("%+v", list)
	}
}

func TestClientCertificateRefusalIsExplained(t *testing.T) {
	ca, clients, foreign, dir, later := newAuthority(t, "ca"), newAuthority(t, "clients"), newAuthority(t, "strangers"), t.TempDir(), time.Now().Add(240*time.Hour)
	cert, key := foreign.issue(t, later, "stranger")
	wrong := writePair(t, filepath.Join(dir, "wrong"), cert, key)
	caFile := write(t, filepath.Join(dir, "ca"), ca.pem())
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		server := &tls.Config{Certificates: []tls.Certificate{issueKeyPair(t, ca, "127.0.0.1", "east.internal")}, MaxVersion: version,
			ClientCAs: clients.pool(), ClientAuth: tls.RequireAndVerifyClientCert}
		for want, files := range map[string]CertFiles{"none is configured": {}, "does not accept the client certificate": wrong} {
			c := newClient(t, ClientConfig{CA: caFile, ServerName: "east.internal", Certificate: files})
			l, err := tls.Listen("tcp", "127.0.0.1:0", server)
			if err != nil {
				t.Fatal(err)
			}
			served := make(chan error, 1)
			go func() {
				conn, err := l.Accept()
				if err == nil {
					err = conn.(*tls.Conn).Handshake()
					_ = conn.Close()
				}
				served <- err
			}()
			conn, err := Dial(t.Context(), &net.Dialer{Timeout: 10 * time.Second}, l.Addr().String(), c.Config)
			if err == nil { // TLS 1.3
				_, err = conn.Read(make([]byte, 1))
				_ = conn.Close()
			}
			var refused *CertificateError
			if !errors.As(err, &refused) || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v does not say %q", tls.VersionName(version), err, want)
			}
			if err := <-served; err == nil {
				t.Error("the server accepts it")
			}
			_ = l.Close()
		}
	}
	other := errors.New("other")
	if got := ExplainError(other, nil); got != other {
		t.Errorf("an unrelated error became %v", got)
	}
}

func TestHandshakeNeedsServerName(t *testing.T) {
	ca := newAuthority(t, "ca")
	c := newClient(t, ClientConfig{CA: write(t, filepath.Join(t.TempDir(), "ca"), ca.pem())})
	if _, err := runHandshake(t, &tls.Config{Certificates: []tls.Certificate{issueKeyPair(t, ca, "east.internal")}}, c.Config()); err == nil {
		t.Error("a server is accepted under any name")
	}
}

func TestHTTPConnectionsOfOldGenerationAreNotReused(t *testing.T) {
	ca, dir := newAuthority(t, "ca"), t.TempDir()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte(r.RemoteAddr))
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{issueKeyPair(t, ca, "example.com")}}
	s.StartTLS()
	defer s.Close()
	file := write(t, filepath.Join(dir, "ca"), ca.pem())
	c := newClient(t, ClientConfig{CA: file, ServerName: "example.com"})
	transport := NewTransport(c.Config, func(cfg *tls.Config) *http.Transport { return &http.Transport{TLSClientConfig: cfg} })
	defer transport.CloseIdleConnections()
	get := func() (string, error) {
		res, err := (&http.Client{Transport: transport}).Get(s.URL)
		if err != nil {
			return "", err
		}
		defer res.Body.Close()
		var from [64]byte
		n, _ := res.Body.Read(from[:])
		return string(from[:n]), nil
	}
	one, err := get()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := get(); err != nil || again != one {
		t.Errorf("%s, then %s: the connection is not reused; %v", one, again, err)
	}
	write(t, file, newAuthority(t, "other").pem())
	if changed, err := c.Reload(); !changed || err != nil {
		t.Fatal(changed, err)
	}
	if _, err := get(); err == nil {
		t.Error("a connection that was verified by another CA is reused")
	}
}
