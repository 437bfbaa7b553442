package gateway

import (
	"crypto/tls"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"imapgate/auth"
	"imapgate/auth/authhttp"
	"imapgate/internal/config"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

func TestAuthHTTPErrorsBecomeAuthErrors(t *testing.T) {
	u := testkit.Must(identity.Canonicalize("alice", ""))(t)
	login := auth.Login{User: u, Password: identity.NewSecret("x"), Mechanism: auth.CommandLogin}
	for name, c := range map[string]struct {
		answer map[string]string
		want   error
		wait   time.Duration
	}{
		"right":              {map[string]string{"Auth-Status": "OK"}, nil, 0},
		"wrong":              {map[string]string{"Auth-Status": "no"}, auth.ErrDenied, 0},
		"wrong, with a wait": {map[string]string{"Auth-Status": "no", "Auth-Wait": "4"}, auth.ErrDenied, 4 * time.Second},
		"nothing":            {nil, auth.ErrUnavailable, 0},
	} {
		page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for name, value := range c.answer {
				w.Header().Set(name, value)
			}
		}))
		t.Cleanup(page.Close)
		cfg := &config.Config{Auth: config.Auth{Settings: auth.Settings{Methods: []string{auth.HTTP}}, HTTP: testbed.WithDefaults(authhttp.Settings{URLs: []string{page.URL}})}}
		s, err := openAuthSources(cfg, &watchedFiles{}, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.verifyLogin(t.Context(), login)
		if !errors.Is(err, c.want) || errors.Is(err, auth.ErrDenied) && errors.Is(err, auth.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
		var wait *auth.DelayedDenial
		if errors.As(err, &wait) != (c.wait > 0) || wait != nil && wait.Delay != c.wait {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestARenewedCertificateIsPresentedToTheAuthServer(t *testing.T) {
	ca := testbed.NewCA(t)
	served, err := tls.LoadX509KeyPair(ca.Issue(t, "127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	presented := make(chan string, 2)
	page := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		presented <- r.TLS.PeerCertificates[0].Subject.CommonName
		w.Header().Set("Auth-Status", "OK")
		w.Header().Set("Connection", "close")
	}))
	page.TLS = &tls.Config{Certificates: []tls.Certificate{served}, ClientCAs: ca.Pool, ClientAuth: tls.RequireAndVerifyClientCert}
	page.StartTLS()
	t.Cleanup(page.Close)
	cert, key := ca.Issue(t, "old")
	cfg := &config.Config{Auth: config.Auth{Settings: auth.Settings{Methods: []string{auth.HTTP}}, HTTP: testbed.WithDefaults(authhttp.Settings{URLs: []string{page.URL}, CA: ca.File, Cert: cert, Key: key})}}
	f, err := openFiles(cfg, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	s, err := openAuthSources(cfg, f, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"old", "new"} {
		if _, err := s.verifyLogin(t.Context(), auth.Login{}); err != nil {
			t.Fatal(err)
		}
		if got := <-presented; got != want {
			t.Errorf("presented %s, want %s", got, want)
		}
		newCert, newKey := ca.Issue(t, "new")
		for from, to := range map[string]string{newCert: cert, newKey: key} {
			if err := os.Rename(from, to); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := f.Reload(); err != nil {
			t.Fatal(err)
		}
	}
	cfg.Auth.HTTP.Key = cert
	if _, err := openFiles(cfg, zap.NewNop()); err == nil || !strings.HasPrefix(err.Error(), "auth.http.key: ") {
		t.Errorf("a certificate without its key: %v", err)
	}
}
