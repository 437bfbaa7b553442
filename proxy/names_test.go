package proxy

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"imapgate/auth"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/testkit"
)

// withNames allows all names that can be allowed, for users with a password for SCRAM.
func withNames(t testing.TB, ca *testCA, users ...string) func(*harnessConfig) {
	names, err := identity.NewNames(identity.NameRules{
		Domain: "example.org", Characters: identity.OptionalCharacters, UTF8: true, Prefixes: map[string]string{"DOMAIN": "corp.example"},
	})
	testkit.NoError(t, err)
	stored := cheapSCRAMHash()
	return func(s *harnessConfig) {
		withAllMechanisms(t, ca)(s)
		s.auth.NameRules, s.routes.Names, s.limits.Names, s.auth.SCRAMIterations = names, names, names, 4096
		s.users = ""
		for _, u := range users {
			s.users += u + ":" + stored + "\n"
		}
		s.routes.Static.Users, s.routes.Static.Default = map[string]string{}, "mastered"
		s.authSources.OAuth = func(_ context.Context, token identity.Secret) (string, time.Time, error) {
			name, err := base64.RawURLEncoding.DecodeString(token.Reveal())
			return string(name), time.Time{}, err
		}
	}
}

// encodeSASLName escapes a name as RFC 5801 requires.
func encodeSASLName(name string) string {
	return strings.NewReplacer("=", "=3D", ",", "=2C").Replace(name)
}

func TestRealisticNamesWorkWithEveryMechanism(t *testing.T) {
	ca := newTestCA(t)
	names := map[string]string{ // as sent: as canonicalized
		"O'Brien": "o'brien@example.org", "user+detail@example.org": "user+detail@example.org", "R&D=x": "r&d=x@example.org",
		"j\u00f6rg": "j\u00f6rg@example.org", `DOMAIN\alice`: "alice@corp.example", "\u5c71\u7530": "\u5c71\u7530@example.org",
	}
	users := make([]string, 0, len(names))
	for _, u := range names {
		users = append(users, u)
	}
	b := newHarness(t, openTestBackend(t).addr(), withNames(t, ca, users...))
	for sent, kept := range names {
		asserted := sent
		if strings.Contains(sent, `\`) { // prefixes apply only to names that clients send
			asserted = kept
		}
		token := base64.RawURLEncoding.EncodeToString([]byte(asserted))
		logins := map[string]repeatingClient{
			"LOGIN":              lineClient("", fmt.Sprintf("LOGIN {%d+}\r\n%s %s", len(sent), sent, password)),
			"AUTH=PLAIN":         lineClient("", "AUTHENTICATE PLAIN "+encodeBase64("\x00"+sent+"\x00"+password)),
			"AUTH=LOGIN":         lineClient("", "AUTHENTICATE LOGIN\r\n"+encodeBase64(sent)+"\r\n"+encodeBase64(password)),
			auth.SASLXOAuth2:     lineClient("", "AUTHENTICATE XOAUTH2 "+encodeBase64("user="+sent+"\x01auth=Bearer "+token+"\x01\x01")),
			auth.SASLOAuthBearer: lineClient("", "AUTHENTICATE OAUTHBEARER "+encodeBase64("n,a="+encodeSASLName(sent)+",\x01auth=Bearer "+token+"\x01\x01")),
		}
		if strings.IndexFunc(sent, func(r rune) bool { return r > '~' || r == '\\' }) < 0 { // an address in a certificate is ASCII
			cert := ca.issue([]string{kept}, nil)
			logins["AUTH=EXTERNAL"] = repeatingClient{cert: &cert, login: lineClient("", "AUTHENTICATE EXTERNAL =").login}
		}
		for mechanism, p := range logins {
			c := b.dialAs("192.0.2.7", p.cert)
			answer, err := p.login(c)
			b.expectNamedRecord(c, answer, err, mechanism, kept)
		}
		c := b.dialWithCert(tls.Certificate{})
		e := c.startScram("SCRAM-SHA-256", sent, password, "")
		if _, err := e.conversation.Step(c.readChallenge()); err != nil {
			t.Errorf("SCRAM of %q: %v", sent, err)
		}
		c.write("\r\n")
		answer, err := c.readResult()
		b.expectNamedRecord(c, answer, err, "AUTH=SCRAM-SHA-256", kept)
	}
}

// expectNamedRecord expects an accepted login, recorded under the canonical name.
func (b *harness) expectNamedRecord(c *client, answer string, err error, mechanism, kept string) {
	b.t.Helper()
	defer c.close()
	if err != nil || !strings.HasPrefix(answer, "OK ") {
		b.t.Errorf("%s of %q: %q, %v", mechanism, kept, answer, err)
		return
	}
	if r := b.lastRecord("login_accepted", c); r.field("user") != kept || r.field("mechanism") != mechanism || r.field("reason") == string(event.BadName) {
		b.t.Errorf("%s of %q: %v", mechanism, kept, r)
	}
}
