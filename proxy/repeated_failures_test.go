package proxy

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/xdg-go/scram"

	"imapgate/auth"
	"imapgate/internal/identity"
	"imapgate/internal/limit"
	"imapgate/internal/testkit"
)

// repeatingClient is a client with a wrong configuration that repeats its login.
type repeatingClient struct {
	name  string
	cert  *tls.Certificate // nil: no certificate and no TLS
	login func(c *client) (answer string, err error)
}

// lineClient is a phone whose login is one command.
func lineClient(name, text string) repeatingClient {
	return repeatingClient{name: name, login: func(c *client) (string, error) { c.write("a " + text + "\r\n"); return c.readResult() }}
}

// scramClient is a phone that uses SCRAM.
func scramClient(name, user, password string) repeatingClient {
	return repeatingClient{name: name, login: func(c *client) (string, error) {
		made, err := scram.SHA256.NewClient(user, password, "")
		if err != nil {
			return "", err
		}
		side := made.NewConversation()
		first, err := side.Step("")
		if err != nil {
			return "", err
		}
		c.write("a AUTHENTICATE SCRAM-SHA-256 " + encodeBase64(first) + "\r\n")
		text, err := c.r.ReadString('\n')
		if err != nil || !strings.HasPrefix(text, "+ ") {
			return strings.TrimSpace(strings.TrimPrefix(text, "a ")), err
		}
		challenge, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text[2:]))
		if err != nil {
			return "", err
		}
		final, err := side.Step(string(challenge))
		c.write(encodeBase64(final) + "\r\n")
		if err != nil {
			return "", err
		}
		return c.readResult()
	}}
}

// repeatingClients returns common configuration errors, for every mechanism.
func repeatingClients(ca *testCA) []repeatingClient {
	token := func(mechanism, form, token string) string {
		return "AUTHENTICATE " + mechanism + " " + encodeToken(form, token)
	}
	show := func(name string, emails []string, authzid string) repeatingClient {
		cert := ca.issue(emails, nil)
		p := lineClient(name, "AUTHENTICATE EXTERNAL "+authzid)
		p.cert = &cert
		return p
	}
	return []repeatingClient{
		lineClient("LOGIN, a wrong password", "LOGIN carol wrong"), lineClient("LOGIN, unknown user", "LOGIN zoe right"),
		lineClient("LOGIN, blocked", "LOGIN blocked right"), lineClient("LOGIN, a bad name", `LOGIN "DOMAIN\\alice" right`),
		lineClient("LOGIN, a name in UTF-8", "LOGIN {17+}\r\nj\u00f6rg@example.org {5+}\r\nright"),
		lineClient("LOGIN, a password in Latin-1", "LOGIN carol {4+}\r\nr\xf6sy"),
		lineClient("PLAIN, a wrong password", "AUTHENTICATE PLAIN "+encodeBase64("\x00carol\x00wrong")),
		lineClient("PLAIN, a bad name", "AUTHENTICATE PLAIN "+encodeBase64("\x00DOMAIN\\alice\x00right")),
		lineClient("PLAIN, a name in UTF-8", "AUTHENTICATE PLAIN "+encodeBase64("\x00j\u00f6rg@example.org\x00right")),
		lineClient("PLAIN, a password in Latin-1", "AUTHENTICATE PLAIN "+encodeBase64("\x00carol\x00r\xf6sy")),
		lineClient("PLAIN, no password", "AUTHENTICATE PLAIN "+encodeBase64("\x00carol\x00")),
		lineClient("PLAIN, for another user", "AUTHENTICATE PLAIN "+encodeBase64("frank\x00carol\x00right")),
		lineClient("PLAIN, no form", "AUTHENTICATE PLAIN "+encodeBase64("carol right")),
		lineClient("SASL LOGIN, a bad name", "AUTHENTICATE LOGIN\r\n"+encodeBase64("o'brien@example.org")+"\r\n"+encodeBase64("right")),
		lineClient("SASL LOGIN, a wrong password", "AUTHENTICATE LOGIN\r\n"+encodeBase64("carol")+"\r\n"+encodeBase64("wrong")),
		scramClient("SCRAM, a wrong password", "carol", "wrong"), scramClient("SCRAM, unknown user", "zoe", "right"),
		scramClient("SCRAM, blocked", "blocked", "right"), scramClient("SCRAM, a bad name", "o'brien@example.org", "right"),
		lineClient("SCRAM, a bad binding", "AUTHENTICATE SCRAM-SHA-256 "+encodeBase64("p=tls-unique,,n=carol,r=x")),
		lineClient("OAUTHBEARER, expired", token("OAUTHBEARER", bearer, "expired")+"\r\nAQ=="),
		lineClient("OAUTHBEARER, expired, no name", token("OAUTHBEARER", "n,,\x01auth=Bearer %\x01\x01", "expired")+"\r\nAQ=="),
		lineClient("OAUTHBEARER, a bad name", token("OAUTHBEARER", "n,a=DOMAIN\\alice,\x01auth=Bearer %\x01\x01", "right")+"\r\nAQ=="),
		lineClient("XOAUTH2, expired", token("XOAUTH2", xoauth2, "expired")+"\r\n"),
		lineClient("XOAUTH2, a bad name", token("XOAUTH2", "user=DOMAIN\\alice\x01auth=Bearer %\x01\x01", "right")+"\r\n"),
		show("EXTERNAL, unknown user", []string{"unknown@example.org"}, "="),
		show("EXTERNAL, a bad name", []string{"o'brien@example.org"}, "="),
		show("EXTERNAL, two names", []string{"carol@example.org", "frank@example.org"}, "="),
		show("EXTERNAL, for another user", []string{"carol@example.org"}, encodeBase64("frank")),
	}
}

// cheapSCRAMHash returns a SCRAM hash of the password with the minimum of iterations.
func cheapSCRAMHash() string {
	const salt, rounds = "sixteen bytes...", 4096
	made, err := scram.SHA256.NewClient("any", password, "")
	if err != nil {
		panic(err)
	}
	keys, err := made.GetStoredCredentialsWithError(scram.KeyFactors{Salt: salt, Iters: rounds})
	if err != nil {
		panic(err)
	}
	encode := func(text []byte) string { return base64.StdEncoding.EncodeToString(text) }
	return fmt.Sprintf("{SCRAM-SHA-256}%d,%s,%s,%s", rounds, encode([]byte(salt)), encode(keys.StoredKey), encode(keys.ServerKey))
}

// withBlockedUser adds a user that Redis denies at once, whatever the password, also with
// SCRAM at the minimum of iterations.
func withBlockedUser(s *harnessConfig) {
	s.auth.Methods = []string{auth.File, auth.Redis, auth.OAuth}
	s.authSources.Redis = func(_ context.Context, u identity.User) (identity.Secret, error) {
		if u.String() == "blocked@example.org" {
			return identity.Secret{}, auth.ErrDenied
		}
		return identity.Secret{}, auth.ErrUnknown
	}
	s.limits = limit.Config{Settings: limit.Settings{Failures: failureLimits()}}
	s.limits.Failures.Delay, s.limits.Failures.MaxDelay, s.limits.Failures.PerUserNetworkHour = time.Millisecond, 4*time.Millisecond, 0
	s.cfg.MaxAuthAttempts, s.cfg.MaxBadCommands = 1000, 1000
	s.auth.SCRAMIterations = 4096
	s.users = "carol@example.org:" + cheapSCRAMHash() + "\nfrank@example.org:{PLAIN}" + password + "\n"
	s.changeServer = func(srv *Server) {
		srv.logins.MinDenialTime, srv.logins.DenialJitter = time.Millisecond, time.Millisecond
	}
}

// An office shares one address. Each phone uses an address of its own, and a colleague
// never seen there logs in after it.
func TestRepeatedMistakeDoesNotBanNetwork(t *testing.T) {
	ca := newTestCA(t)
	b := openHarness(t, openTestBackend(t).addr(), withAllMechanisms(t, ca), withBlockedUser)
	all := repeatingClients(ca)
	runParallel(len(all), 8, func(i int) {
		p, office := all[i], fmt.Sprintf("198.51.%d.7", i)
		c := b.dialAs(office, p.cert)
		tries := 50
		if strings.Contains(p.name, "password") || strings.Contains(p.name, "unknown") {
			tries = 25 // each of which is hashed
		}
		for n := range tries {
			answer, err := p.login(c)
			proves := strings.HasPrefix(p.name, "SCRAM") && n > 3 // further logins of this user are refused for a while
			if err != nil || answer != authFailedReply && !(proves && answer == unavailableReply) {
				t.Errorf("%s: try %d: %q, %v", p.name, n, answer, err)
				break
			}
		}
		c.close()
		if got := b.tryLogin(office, "frank", password); !strings.HasPrefix(got, "OK") {
			t.Errorf("%s: a colleague received %q", p.name, got)
		}
	})
	if n := b.deps.Limits.BanCount(); n > 0 {
		t.Errorf("%d networks are banned", n)
	}
}

// dialAs connects from an address, with a certificate and TLS if there is one.
func (b *harness) dialAs(address string, cert *tls.Certificate) *client {
	listener := "balanced-none"
	if cert != nil {
		listener = "balanced-implicit"
	}
	c := b.dial(listener)
	testkit.NoError(b.t, c.nc.SetDeadline(time.Now().Add(50*time.Second)))
	c.write("PROXY TCP4 " + address + " 127.0.0.1 4711 143\r\n")
	if cert != nil {
		testkit.NoError(b.t, c.handshake(&tls.Config{Certificates: []tls.Certificate{*cert}}))
	}
	c.expectLine("* OK [CAPABILITY …] IMAP ready.")
	return c
}

// readResult returns the tagged response to a login after its challenges were answered.
func (c *client) readResult() (string, error) {
	for {
		text, err := c.r.ReadString('\n')
		if err != nil || !strings.HasPrefix(text, "+ ") {
			return strings.TrimSpace(strings.TrimPrefix(text, "a ")), err
		}
	}
}

func TestManyInvalidNamesAreBanned(t *testing.T) {
	b := openHarness(t, openTestBackend(t).addr(), withLimits(limit.Config{Settings: limit.Settings{Failures: failureLimits()}}))
	for i := range 10 {
		if got := b.tryLogin("203.0.113.7", fmt.Sprintf(`"a|%d"`, i), "Summer2026"); got != authFailedReply {
			t.Fatalf("guess %d: %s", i, got)
		}
	}
	b.expectRefusedFrom("203.0.113.7")
	for i := range 10 { // a client that tries many passwords
		if got := b.tryLogin("203.0.113.8", `"a|b"`, fmt.Sprint("guess", i)); got != authFailedReply {
			t.Fatalf("guess %d: %s", i, got)
		}
	}
	b.expectRefusedFrom("203.0.113.8")
}

// Message parts in the wrong order put a password in the place of the name.
func TestMisplacedPasswordIsNotRecorded(t *testing.T) {
	b := openHarness(t, openTestBackend(t).addr())
	plain := func(message string) string {
		return "AUTHENTICATE PLAIN " + base64.StdEncoding.EncodeToString([]byte(message))
	}
	for password, lines := range map[string][]string{
		"hunter2":   {plain("alice\x00hunter2\x00")}, // could be a name
		"Hunter 2!": {plain("alice\x00Hunter 2!\x00"), plain("\x00Hunter 2!\x00"), `LOGIN "Hunter 2!" ""`},
	} {
		for _, line := range lines {
			c := b.dialAs("198.51.100.7", nil)
			c.write("a " + line + "\r\n")
			if answer, err := c.readResult(); err != nil || !strings.HasPrefix(answer, "NO") {
				t.Errorf("%s: %s, %v", line, answer, err)
			}
			if r := b.lastRecord("login_refused", c); strings.Contains(fmt.Sprint(r), password) {
				t.Errorf("%s: %v", line, r)
			}
			c.close()
		}
	}
}

func TestInvalidNameIsRecordedByEveryMechanism(t *testing.T) {
	ca := newTestCA(t)
	b := openHarness(t, openTestBackend(t).addr(), withAllMechanisms(t, ca))
	for _, p := range repeatingClients(ca) {
		if !strings.Contains(p.name, "a bad name") {
			continue
		}
		c := b.dialAs("198.51.100.7", p.cert)
		if answer, err := p.login(c); err != nil || answer != authFailedReply {
			t.Errorf("%s: %q, %v", p.name, answer, err)
		}
		r := b.lastRecord("login_refused", c)
		if claimed := r.field("claimed"); r.field("reason") != "bad_name" || claimed != "DOMAIN\\alice" && claimed != "o'brien@example.org" {
			t.Errorf("%s: %v", p.name, r)
		}
		c.close()
	}
}
