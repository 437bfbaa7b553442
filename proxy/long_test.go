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
)

// longToken is a token of n bytes that ends in text.
func longToken(n int, text string) string { return strings.Repeat("t", n-len(text)) + text }

// authenticate sends a token, with the command or when asked for it.
func (c *client) authenticate(mechanism, form, token string, asked bool) {
	c.t.Helper()
	response := bringing(form, token)
	if !asked {
		c.say("a AUTHENTICATE " + mechanism + " " + response + "\r\n")
		return
	}
	c.say("a AUTHENTICATE " + mechanism + "\r\n")
	c.hear("+ ")
	c.say(response + "\r\n")
}

// tokenForms are the two mechanisms that bring a token, of carol.
var tokenForms = map[string]string{"OAUTHBEARER": bearer, "XOAUTH2": xoauth2}

// everyToken calls try for each listener, mechanism and way to send a token.
func everyToken(b *bed, try func(c *client, mechanism, form string, asked bool)) {
	for _, listener := range []string{"none", "starttls", "implicit"} {
		for mechanism, form := range tokenForms {
			for _, asked := range []bool{false, true} {
				try(b.greeted(listener), mechanism, form, asked)
			}
		}
	}
}

func TestATokenOf16KBIsTakenWhoeverJudgesIt(t *testing.T) {
	v := openVerdicts(t, func(_, secret string) string {
		if len(secret) == identity.MaxToken && strings.HasSuffix(secret, "right") {
			return admits
		}
		return "NO [AUTHENTICATIONFAILED] no"
	})
	for _, method := range []string{auth.OAuth, auth.Passthrough} {
		b := newBed(t, v.addr(), func(s *setup) {
			s.auth.Methods, s.auth.Mechanisms = []string{method}, []string{"OAUTHBEARER", "XOAUTH2"}
			s.asked.OAuth = func(_ context.Context, token identity.Secret) (string, time.Time, error) {
				if token.Reveal() == longToken(identity.MaxToken, "right") {
					return "carol", time.Time{}, nil
				}
				return "", time.Time{}, auth.ErrDenied
			}
			s.routes.Static.Users["carol"] = "east"
		})
		everyToken(b, func(c *client, mechanism, form string, asked bool) {
			c.authenticate(mechanism, form, longToken(identity.MaxToken, "right"), asked)
			c.hear("a OK …")
			if r := b.lastRecord("login_accepted", c); r.field("method") != method {
				t.Errorf("%s: %v", method, r)
			}
			c.close()
		})
		b.end()
	}
}

func TestATokenThatIsTooLongIsNoGuess(t *testing.T) {
	m := openMailbox(t)
	b := newBed(t, m.addr(), withEveryMechanism(t, newAuthority(t)), counting, func(s *setup) { s.cfg.BadCommands = 100 })
	for i, n := range []int{identity.MaxToken + 1, 20 << 10, 60 << 10} { // of which the last is more than a line holds
		everyToken(b, func(c *client, mechanism, form string, asked bool) {
			c.authenticate(mechanism, form, longToken(n, "right"), asked)
			c.hear("a " + tooLongReply)
			c.authenticate(mechanism, form, "right", asked)
			c.hear("a OK …")
			c.close()
		})
		for range 12 { // ten failures ban an address
			address, token := fmt.Sprintf("203.0.%d.7", i), longToken(n, rand.Text())
			if got := b.token(address, "XOAUTH2", "carol", token); got != tooLongReply {
				t.Fatalf("%d bytes: %.80s", n, got)
			}
		}
	}
	c := b.greeted("none")
	c.authenticate("XOAUTH2", xoauth2, longToken(100<<10, "right"), false)
	c.hear("* BYE Line too long.")
	c.end()
	// In the clear it is refused as every login is.
	c = b.dial("starttls")
	c.hear("* OK …")
	c.authenticate("XOAUTH2", xoauth2, longToken(60<<10, "right"), false)
	c.hear("a NO [PRIVACYREQUIRED] STARTTLS must come first.")
	c.close()
}

// ID with all that RFC 2971 §3.3 allows, as Dovecot and Cyrus take it.
func TestIDIsAnsweredAtItsLargest(t *testing.T) {
	b := newBed(t, openMailbox(t).addr())
	var quoted, literals strings.Builder
	for i := range maxPairs {
		key, value := fmt.Sprintf("field-%024d", i), strings.Repeat("v", maxValue)
		fmt.Fprintf(&quoted, " %q %q", key, value)
		fmt.Fprintf(&literals, " {%d+}\r\n%s {%d+}\r\n%s", len(key), key, len(value), value)
	}
	for _, listener := range []string{"none", "starttls", "implicit"} {
		for _, list := range []string{quoted.String(), literals.String()} {
			c := b.greeted(listener)
			for range 3 {
				c.say("a ID (" + list[1:] + ")\r\n")
				c.hear(`* ID ("name" "imapgate")`)
				c.hear("a OK ID completed.")
			}
			c.say("b ID (" + list[1:] + ` "one" "more")` + "\r\n")
			c.hear("b BAD …")
			c.say("c ID (" + strings.Repeat("x", imap.LongLine) + "\r\n")
			c.hear("c BAD Line too long.")
			c.say("d NOOP\r\n")
			c.hear("d OK Nothing done.")
			c.close()
		}
	}
}
