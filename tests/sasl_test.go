package tests

import (
	"crypto/tls"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-imap/v2/imapclient"
	"github.com/emersion/go-sasl"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testbed/openid"
	"imapgate/internal/testkit"
)

// Real clients, by each of their SASL mechanisms.

func TestCurlLogsInByPlainAndByLogin(t *testing.T) {
	t.Parallel()
	curl := testbed.FindProgram(t, "curl", "curl")
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password})
	g := startGateway(t, backend.CA, singleBackend(backendConf(backend, event.ImplicitTLS)))
	for _, kind := range []event.TLSMode{event.ImplicitTLS, event.StartTLS} {
		e := g.endpoint(kind)
		_, port := splitAddress(t, e.address)
		url := "imaps://localhost:" + port
		if e.starttls {
			url = "imap://localhost:" + port
		}
		for _, mechanism := range []string{"PLAIN", "LOGIN"} {
			for _, ir := range []string{"--sasl-ir", "--no-sasl-ir"} {
				user := strings.ToLower(fmt.Sprint("curl", mechanism, ir, "-", kind))
				run := func(password string) ([]byte, error) {
					return exec.Command(curl, "--silent", "--show-error", "--max-time", "30", "--ssl-reqd", ir, "--cacert", e.caFile,
						"--user", user+":"+password, "--login-options", "AUTH="+mechanism, url, "--request", "STATUS INBOX (MESSAGES)").CombinedOutput()
				}
				if out, err := run(password); err != nil || !strings.Contains(string(out), "* STATUS INBOX (MESSAGES 0)") {
					t.Errorf("%s %s %s: %v: %s", kind, mechanism, ir, err, out)
				}
				testkit.Eventually(t, "a login by AUTH="+mechanism+" to be in the audit log", func() bool {
					all := g.records("login_accepted", user)
					return len(all) == 1 && all[0].Mechanism == "AUTH="+mechanism
				})
				if out, err := run("a guess"); err == nil {
					t.Errorf("%s %s %s: a wrong password is as good: %s", kind, mechanism, ir, out)
				}
			}
		}
	}
}

// dialGoIMAP connects a client of go-imap and waits for the greeting. No read takes longer
// than programTimeout.
func dialGoIMAP(t *testing.T, e endpoint, options *imapclient.Options) *imapclient.Client {
	t.Helper()
	if options.TLSConfig == nil {
		options.TLSConfig = e.tls
	}
	c, err := imapclient.DialTLS(e.address, options)
	if err != nil {
		t.Fatal(err)
	}
	watchdog := time.AfterFunc(programTimeout, func() { _ = c.Close() })
	t.Cleanup(func() {
		watchdog.Stop()
		_ = c.Close() // logged out
	})
	if err := c.WaitGreeting(); err != nil {
		t.Fatal(err)
	}
	return c
}

// checkLoggedIn checks that the client is logged in.
func checkLoggedIn(t *testing.T, c *imapclient.Client) {
	t.Helper()
	if _, err := c.Select("INBOX", nil).Wait(); err != nil {
		t.Error(err)
	}
	if err := c.Logout().Wait(); err != nil {
		t.Error(err)
	}
}

func TestGoProgramLogsInWithAToken(t *testing.T) {
	t.Parallel()
	p := openid.Start(t, tokenUser)
	b, _ := startTokenGateway(t, p, oauthConf(p), "login: oauth")
	token := p.Login(t, openid.JWTClient, tokenUser).Access
	e := b.endpoint("implicit")
	host, port := splitAddress(t, e.address)
	number, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	bring := func(c *imapclient.Client, token string) error {
		return c.Authenticate(sasl.NewOAuthBearerClient(&sasl.OAuthBearerOptions{Username: tokenUser, Token: token, Host: host, Port: number}))
	}
	c := dialGoIMAP(t, e, &imapclient.Options{})
	if err := bring(c, token); err != nil {
		t.Fatal(err)
	}
	checkLoggedIn(t, c)
	if err := bring(dialGoIMAP(t, e, &imapclient.Options{}), token+"x"); err == nil {
		t.Error("a changed token is as good")
	}
}

func TestGoProgramLogsInWithACertificate(t *testing.T) {
	t.Parallel()
	passwdFile, clients := filepath.Join(t.TempDir(), "passwd"), testbed.NewCA(t)
	if err := os.WriteFile(passwdFile, []byte("alice@example.org:{PLAIN}x\nbob@example.org:{PLAIN}x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b, _ := startProofGateway(t, fmt.Sprintf("methods: [file], file: {path: %s}, default_domain: example.org, external: {san: dns}", passwdFile), "  client_ca: "+clients.File)
	e := b.endpoint("implicit")
	pair, err := tls.LoadX509KeyPair(clients.Issue(t, "alice"))
	if err != nil {
		t.Fatal(err)
	}
	certificate := e.tls.Clone()
	certificate.Certificates = []tls.Certificate{pair}
	for as, right := range map[string]bool{"": true, "alice@example.org": true, "bob@example.org": false} {
		c := dialGoIMAP(t, e, &imapclient.Options{TLSConfig: certificate})
		if err := c.Authenticate(sasl.NewExternalClient(as)); (err == nil) != right {
			t.Errorf("as %q: %v", as, err)
		}
		if right {
			checkLoggedIn(t, c)
		}
	}
}
