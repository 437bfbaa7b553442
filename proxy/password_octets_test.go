package proxy

import (
	"fmt"
	"strings"
	"testing"

	"imapgate/auth"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/testkit"
)

// Old passwords may be in Latin-1, and only the verifier interprets octets from 128 on. So
// every mechanism and mode passes them on as the client sent them.
func TestPasswordIsComparedByOctets(t *testing.T) {
	const latin1, odd = "p\xe4ssw\xf6rd", "\x80\xc3\x28\xff"
	v := openAnsweringBackend(t, func(_, secret string) string {
		if secret == latin1 || secret == odd {
			return loginOK
		}
		return "NO [AUTHENTICATIONFAILED] no"
	})
	hashed, err := auth.Hash("SHA512-CRYPT", identity.NewSecret(latin1))
	testkit.NoError(t, err)
	for _, mode := range []event.Mode{event.ModeSplice, event.ModeReuse} {
		b := newHarness(t, v.Addr(), func(s *harnessConfig) {
			s.auth.Mechanisms = []string{"PLAIN", "LOGIN"}
			s.users = "frank@example.org:{PLAIN}" + latin1 + "\ngina@example.org:" + hashed + "\n"
			s.routes.Static.Users["gina"] = "east"
			s.cfg.Modes = map[string]BackendSettings{"east": {Mode: mode}}
			s.cfg.MaxAuthAttempts = 100
		})
		for _, listener := range []string{"none", "starttls", "implicit"} {
			for user, secrets := range map[string][]string{"alice": {latin1, odd}, "frank": {latin1}, "gina": {latin1}} {
				for _, secret := range secrets {
					b.expectOctetLogin(listener, user, secret)
				}
			}
		}
		c := b.dialGreeted("none")
		for i, login := range []string{"LOGIN alice {9+}\r\np\u00e4ssw\u00f6r", "AUTHENTICATE PLAIN " + encodeBase64("\x00gina\x00p\u00e4ssw\u00f6rd"), "LOGIN frank \"password\""} {
			c.write(fmt.Sprintf("%d %s\r\n", i, login))
			c.expectLine(fmt.Sprint(i, " ", authFailedReply))
		}
		c.close()
		b.stopServer()
	}
}

// expectOctetLogin logs a user in by each way to send a password.
func (b *harness) expectOctetLogin(listener, user, secret string) {
	b.t.Helper()
	lines := map[string][]string{
		"literal": {fmt.Sprintf("a LOGIN %s {%d+}\r\n%s", user, len(secret), secret)},
		"quoted":  {fmt.Sprintf("a LOGIN %s \"%s\"", user, strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(secret))},
		"PLAIN":   {"a AUTHENTICATE PLAIN " + encodeBase64("\x00"+user+"\x00"+secret)},
		"asked":   {"a AUTHENTICATE PLAIN", encodeBase64("\x00" + user + "\x00" + secret)},
		"steps":   {"a AUTHENTICATE LOGIN", encodeBase64(user), encodeBase64(secret)},
	}
	for _, form := range lines {
		c := b.dialGreeted(listener)
		for i, line := range form {
			if i > 0 {
				c.expectLine("+ …")
			}
			c.write(line + "\r\n")
		}
		c.expectLine("a OK …")
		c.close()
	}
}
