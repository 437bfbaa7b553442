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
)

// phone is a client that nobody has told of its mistake: it logs in again and again
// with what it has.
type phone struct {
	name string
	cert *tls.Certificate // nil: it has none, and TLS neither
	logs func(c *client) (answer string, err error)
}

// line is a phone whose login is one command.
func line(name, text string) phone {
	return phone{name: name, logs: func(c *client) (string, error) { c.say("a " + text + "\r\n"); return c.verdict() }}
}

// scrams is a phone that proves to know a password.
func scrams(name, user, password string) phone {
	return phone{name: name, logs: func(c *client) (string, error) {
		made, err := scram.SHA256.NewClient(user, password, "")
		if err != nil {
			return "", err
		}
		side := made.NewConversation()
		first, err := side.Step("")
		if err != nil {
			return "", err
		}
		c.say("a AUTHENTICATE SCRAM-SHA-256 " + coded(first) + "\r\n")
		text, err := c.r.ReadString('\n')
		if err != nil || !strings.HasPrefix(text, "+ ") {
			return strings.TrimSpace(strings.TrimPrefix(text, "a ")), err
		}
		challenge, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text[2:]))
		if err != nil {
			return "", err
		}
		final, err := side.Step(string(challenge))
		c.say(coded(final) + "\r\n")
		if err != nil {
			return "", err
		}
		return c.verdict()
	}}
}

// phones are mistakes that people make, by every mechanism.
func phones(ca *authority) []phone {
	token := func(mechanism, form, token string) string {
		return "AUTHENTICATE " + mechanism + " " + bringing(form, token)
	}
	show := func(name string, emails []string, authzid string) phone {
		cert := ca.issue(emails, nil)
		p := line(name, "AUTHENTICATE EXTERNAL "+authzid)
		p.cert = &cert
		return p
	}
	return []phone{
		line("LOGIN, a wrong password", "LOGIN carol wrong"), line("LOGIN, nobody", "LOGIN zoe right"),
		line("LOGIN, blocked", "LOGIN blocked right"), line("LOGIN, a bad name", `LOGIN "DOMAIN\\alice" right`),
		line("LOGIN, a name in UTF-8", "LOGIN {17+}\r\nj\u00f6rg@example.org {5+}\r\nright"),
		line("LOGIN, a password in Latin-1", "LOGIN carol {4+}\r\nr\xf6sy"),
		line("PLAIN, a wrong password", "AUTHENTICATE PLAIN "+coded("\x00carol\x00wrong")),
		line("PLAIN, a bad name", "AUTHENTICATE PLAIN "+coded("\x00DOMAIN\\alice\x00right")),
		line("PLAIN, a name in UTF-8", "AUTHENTICATE PLAIN "+coded("\x00j\u00f6rg@example.org\x00right")),
		line("PLAIN, a password in Latin-1", "AUTHENTICATE PLAIN "+coded("\x00carol\x00r\xf6sy")),
		line("PLAIN, no password", "AUTHENTICATE PLAIN "+coded("\x00carol\x00")),
		line("PLAIN, for somebody else", "AUTHENTICATE PLAIN "+coded("frank\x00carol\x00right")),
		line("PLAIN, no form", "AUTHENTICATE PLAIN "+coded("carol right")),
		line("SASL LOGIN, a bad name", "AUTHENTICATE LOGIN\r\n"+coded("o'brien@example.org")+"\r\n"+coded("right")),
		line("SASL LOGIN, a wrong password", "AUTHENTICATE LOGIN\r\n"+coded("carol")+"\r\n"+coded("wrong")),
		scrams("SCRAM, a wrong password", "carol", "wrong"), scrams("SCRAM, nobody", "zoe", "right"),
		scrams("SCRAM, blocked", "blocked", "right"), scrams("SCRAM, a bad name", "o'brien@example.org", "right"),
		line("SCRAM, a bad binding", "AUTHENTICATE SCRAM-SHA-256 "+coded("p=tls-unique,,n=carol,r=x")),
		line("OAUTHBEARER, expired", token("OAUTHBEARER", bearer, "expired")+"\r\nAQ=="),
		line("OAUTHBEARER, expired, no name", token("OAUTHBEARER", "n,,\x01auth=Bearer %\x01\x01", "expired")+"\r\nAQ=="),
		line("OAUTHBEARER, a bad name", token("OAUTHBEARER", "n,a=DOMAIN\\alice,\x01auth=Bearer %\x01\x01", "right")+"\r\nAQ=="),
		line("XOAUTH2, expired", token("XOAUTH2", xoauth2, "expired")+"\r\n"),
		line("XOAUTH2, a bad name", token("XOAUTH2", "user=DOMAIN\\alice\x01auth=Bearer %\x01\x01", "right")+"\r\n"),
		show("EXTERNAL, nobody lives there", []string{"nobody@example.org"}, "="),
		show("EXTERNAL, a bad name", []string{"o'brien@example.org"}, "="),
		show("EXTERNAL, two names", []string{"carol@example.org", "frank@example.org"}, "="),
		show("EXTERNAL, for somebody else", []string{"carol@example.org"}, coded("frank")),
	}
}

// storedQuickly is the password stored for SCRAM with as few iterations as there may
// be.
func storedQuickly() string {
	const salt, rounds = "sixteen bytes...", 4096
	made, err := scram.SHA256.NewClient("anybody", password, "")
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

// withBlocked has a user whom Redis denies whatever is said, and denies at once, also
// by SCRAM, with as few iterations as there may be.
func withBlocked(s *setup) {
	s.auth.Methods = []string{auth.File, auth.Redis, auth.OAuth}
	s.asked.Redis = func(_ context.Context, u identity.User) (identity.Secret, error) {
		if u.String() == "blocked@example.org" {
			return identity.Secret{}, auth.ErrDenied
		}
		return identity.Secret{}, auth.ErrUnknown
	}
	s.limits = limit.Config{Failures: guesses()}
	s.limits.Failures.Delay, s.limits.Failures.MaxDelay, s.limits.Failures.PerPairHour = time.Millisecond, 4*time.Millisecond, 0
	s.cfg.AuthAttempts, s.cfg.BadCommands = 1000, 1000
	s.auth.SCRAMRounds = 4096
	s.users = "carol@example.org:" + storedQuickly() + "\nfrank@example.org:{PLAIN}" + password + "\n"
	s.server = func(srv *Server) { srv.floor, srv.jitter = time.Millisecond, time.Millisecond }
}

// One office is behind one address. Each phone is at one of its own, and a colleague
// who was never seen there logs in after it.
func TestAPhoneThatRepeatsItsMistakeBansNoOffice(t *testing.T) {
	ca := newAuthority(t)
	b := openBed(t, openMailbox(t).addr(), withEveryMechanism(t, ca), withBlocked)
	all := phones(ca)
	crowd(len(all), 8, func(i int) {
		p, office := all[i], fmt.Sprintf("198.51.%d.7", i)
		c := b.comes(office, p.cert)
		tries := 50
		if strings.Contains(p.name, "password") || strings.Contains(p.name, "nobody") {
			tries = 25 // of which each is hashed
		}
		for n := range tries {
			answer, err := p.logs(c)
			proves := strings.HasPrefix(p.name, "SCRAM") && n > 3 // of its user no more is tried here for a while
			if err != nil || answer != deniedReply && !(proves && answer == unavailableReply) {
				t.Errorf("%s: try %d: %q, %v", p.name, n, answer, err)
				break
			}
		}
		c.close()
		if got := b.guess(office, "frank", password); !strings.HasPrefix(got, "OK") {
			t.Errorf("%s: a colleague hears %q", p.name, got)
		}
	})
	if n := b.rooms.Limits.Banned(); n > 0 {
		t.Errorf("%d networks are banned", n)
	}
}

// comes connects from an address, with a certificate and TLS if there is one.
func (b *bed) comes(address string, cert *tls.Certificate) *client {
	listener := "balanced-none"
	if cert != nil {
		listener = "balanced-implicit"
	}
	c := b.dial(listener)
	must(b.t, c.nc.SetDeadline(time.Now().Add(50*time.Second)))
	c.say("PROXY TCP4 " + address + " 127.0.0.1 4711 143\r\n")
	if cert != nil {
		must(b.t, c.handshake(&tls.Config{Certificates: []tls.Certificate{*cert}}))
	}
	c.hear("* OK [CAPABILITY …] IMAP ready.")
	return c
}

// verdict is the answer to a login, behind challenges that were answered already.
func (c *client) verdict() (string, error) {
	for {
		text, err := c.r.ReadString('\n')
		if err != nil || !strings.HasPrefix(text, "+ ") {
			return strings.TrimSpace(strings.TrimPrefix(text, "a ")), err
		}
	}
}

func TestManyBadNamesBanWhoMakesThemUp(t *testing.T) {
	b := openBed(t, openMailbox(t).addr(), limited(limit.Config{Failures: guesses()}))
	for i := range 10 {
		if got := b.guess("203.0.113.7", fmt.Sprintf(`"a|%d"`, i), "Summer2026"); got != deniedReply {
			t.Fatalf("guess %d: %s", i, got)
		}
	}
	b.refused("203.0.113.7")
	for i := range 10 { // and who tries one with many passwords
		if got := b.guess("203.0.113.8", `"a|b"`, fmt.Sprint("guess", i)); got != deniedReply {
			t.Fatalf("guess %d: %s", i, got)
		}
	}
	b.refused("203.0.113.8")
}

// The parts of a message in the wrong order put a password where the name belongs.
func TestAMisplacedPasswordIsNotOnRecord(t *testing.T) {
	b := openBed(t, openMailbox(t).addr())
	plain := func(message string) string {
		return "AUTHENTICATE PLAIN " + base64.StdEncoding.EncodeToString([]byte(message))
	}
	for password, lines := range map[string][]string{
		"hunter2":   {plain("alice\x00hunter2\x00")}, // which could be a name
		"Hunter 2!": {plain("alice\x00Hunter 2!\x00"), plain("\x00Hunter 2!\x00"), `LOGIN "Hunter 2!" ""`},
	} {
		for _, line := range lines {
			c := b.comes("198.51.100.7", nil)
			c.say("a " + line + "\r\n")
			if answer, err := c.verdict(); err != nil || !strings.HasPrefix(answer, "NO") {
				t.Errorf("%s: %s, %v", line, answer, err)
			}
			if r := b.lastRecord("login_refused", c); strings.Contains(fmt.Sprint(r), password) {
				t.Errorf("%s: %v", line, r)
			}
			c.close()
		}
	}
}

func TestABadNameIsOnRecordByEveryMechanism(t *testing.T) {
	ca := newAuthority(t)
	b := openBed(t, openMailbox(t).addr(), withEveryMechanism(t, ca))
	for _, p := range phones(ca) {
		if !strings.Contains(p.name, "a bad name") {
			continue
		}
		c := b.comes("198.51.100.7", p.cert)
		if answer, err := p.logs(c); err != nil || answer != deniedReply {
			t.Errorf("%s: %q, %v", p.name, answer, err)
		}
		r := b.lastRecord("login_refused", c)
		if claimed := r.field("claimed"); r.field("reason") != "bad_name" || claimed != "DOMAIN\\alice" && claimed != "o'brien@example.org" {
			t.Errorf("%s: %v", p.name, r)
		}
		c.close()
	}
}
