package proxy

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"testing"
	"time"

	"imapgate/auth"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/proxy/login"
)

// padToken returns a token of n bytes that ends in text.
func padToken(n int, text string) string { return strings.Repeat("t", n-len(text)) + text }

// sendToken sends a token, with the command or as a response.
func (c *client) sendToken(mechanism, form, token string, asked bool) {
	c.t.Helper()
	response := encodeToken(form, token)
	if !asked {
		c.write("a AUTHENTICATE " + mechanism + " " + response + "\r\n")
		return
	}
	c.write("a AUTHENTICATE " + mechanism + "\r\n")
	c.expectLine("+ ")
	c.write(response + "\r\n")
}

// tokenForms are the messages of the two token mechanisms, for carol.
var tokenForms = map[string]string{"OAUTHBEARER": bearer, "XOAUTH2": xoauth2}

// forEachToken calls try for each listener, mechanism and way to send a token.
func forEachToken(b *harness, try func(c *client, mechanism, form string, asked bool)) {
	for _, listener := range []string{"none", "starttls", "implicit"} {
		for mechanism, form := range tokenForms {
			for _, asked := range []bool{false, true} {
				try(b.dialGreeted(listener), mechanism, form, asked)
			}
		}
	}
}

func Test16KBTokenIsAcceptedByEveryVerifier(t *testing.T) {
	v := openAnsweringBackend(t, func(_, secret string) string {
		if len(secret) == identity.MaxToken && strings.HasSuffix(secret, "right") {
			return loginOK
		}
		return "NO [AUTHENTICATIONFAILED] no"
	})
	for _, method := range []string{auth.OAuth, auth.Passthrough} {
		b := newHarness(t, v.Addr(), func(s *harnessConfig) {
			s.auth.Methods, s.auth.Mechanisms = []string{method}, []string{"OAUTHBEARER", "XOAUTH2"}
			s.authSources.OAuth = func(_ context.Context, token identity.Secret) (string, time.Time, error) {
				if token.Reveal() == padToken(identity.MaxToken, "right") {
					return "carol", time.Time{}, nil
				}
				return "", time.Time{}, auth.ErrDenied
			}
			s.routes.Static.Users["carol"] = "east"
		})
		forEachToken(b, func(c *client, mechanism, form string, asked bool) {
			c.sendToken(mechanism, form, padToken(identity.MaxToken, "right"), asked)
			c.expectLine("a OK …")
			if r := b.lastRecord("login_accepted", c); r.field("method") != method {
				t.Errorf("%s: %v", method, r)
			}
			c.close()
		})
		b.stopServer()
	}
}

func TestTooLongTokenIsNoGuess(t *testing.T) {
	m := openTestBackend(t)
	b := newHarness(t, m.addr(), withAllMechanisms(t, newTestCA(t)), withCountedUsers, func(s *harnessConfig) { s.cfg.MaxBadCommands = 100 })
	for i, n := range []int{identity.MaxToken + 1, 20 << 10, 60 << 10} { // the last one is longer than a line may be
		forEachToken(b, func(c *client, mechanism, form string, asked bool) {
			c.sendToken(mechanism, form, padToken(n, "right"), asked)
			c.expectLine("a " + login.TooLongReply)
			c.sendToken(mechanism, form, "right", asked)
			c.expectLine("a OK …")
			c.close()
		})
		for range 12 { // ten failures ban an address
			address, token := fmt.Sprintf("203.0.%d.7", i), padToken(n, rand.Text())
			if got := b.tryToken(address, "XOAUTH2", "carol", token); got != login.TooLongReply {
				t.Fatalf("%d bytes: %.80s", n, got)
			}
		}
	}
	c := b.dialGreeted("none")
	c.sendToken("XOAUTH2", xoauth2, padToken(100<<10, "right"), false)
	c.expectLine("* BYE Line too long.")
	c.expectEOF()
	// Without TLS it is refused like any login.
	c = b.dial("starttls")
	c.expectLine("* OK …")
	c.sendToken("XOAUTH2", xoauth2, padToken(60<<10, "right"), false)
	c.expectLine("a NO [PRIVACYREQUIRED] STARTTLS must come first.")
	c.close()
}

// ID of the largest size by RFC 2971 §3.3, which Dovecot and Cyrus accept too.
func TestLargestIDIsAnswered(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr())
	var quoted, literals strings.Builder
	for i := range imap.MaxIDPairs {
		key, value := fmt.Sprintf("field-%024d", i), strings.Repeat("v", 1024)
		fmt.Fprintf(&quoted, " %q %q", key, value)
		fmt.Fprintf(&literals, " {%d+}\r\n%s {%d+}\r\n%s", len(key), key, len(value), value)
	}
	for _, listener := range []string{"none", "starttls", "implicit"} {
		for _, list := range []string{quoted.String(), literals.String()} {
			c := b.dialGreeted(listener)
			for range 3 {
				c.write("a ID (" + list[1:] + ")\r\n")
				c.expectLine(`* ID ("name" "imapgate")`)
				c.expectLine("a OK ID completed.")
			}
			c.write("b ID (" + list[1:] + ` "one" "more")` + "\r\n")
			c.expectLine("b BAD …")
			c.write("c ID (" + strings.Repeat("x", imap.MaxLongLine) + "\r\n")
			c.expectLine("c BAD Line too long.")
			c.write("d NOOP\r\n")
			c.expectLine("d OK Nothing done.")
			c.close()
		}
	}
}
