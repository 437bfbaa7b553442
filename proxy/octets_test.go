package proxy

import (
	"fmt"
	"strings"
	"testing"

	"imapgate/auth"
	"imapgate/internal/identity"
	"imapgate/proxy/mux"
)

// Passwords were set in Latin-1 once, and octets from 128 on are the business of whoever
// judges them: they arrive as the client sent them, by every mechanism and in every mode.
func TestAPasswordIsJudgedByItsOctets(t *testing.T) {
	const latin1, odd = "p\xe4ssw\xf6rd", "\x80\xc3\x28\xff"
	v := openVerdicts(t, func(_, secret string) string {
		if secret == latin1 || secret == odd {
			return admits
		}
		return "NO [AUTHENTICATIONFAILED] no"
	})
	hashed, err := auth.Hash("SHA512-CRYPT", identity.NewSecret(latin1))
	must(t, err)
	for _, mode := range []string{spliceMode, string(mux.Reuse)} {
		b := newBed(t, v.addr(), func(s *setup) {
			s.auth.Mechanisms = []string{"PLAIN", "LOGIN"}
			s.users = "frank@example.org:{PLAIN}" + latin1 + "\ngina@example.org:" + hashed + "\n"
			s.routes.Static.Users["gina"] = "east"
			s.cfg.Modes = map[string]Mode{"east": {Name: mode}}
			s.cfg.AuthAttempts = 100
		})
		for _, listener := range []string{"none", "starttls", "implicit"} {
			for user, secrets := range map[string][]string{"alice": {latin1, odd}, "frank": {latin1}, "gina": {latin1}} {
				for _, secret := range secrets {
					b.entersWithOctets(listener, user, secret)
				}
			}
		}
		c := b.greeted("none")
		for i, login := range []string{"LOGIN alice {9+}\r\np\u00e4ssw\u00f6r", "AUTHENTICATE PLAIN " + coded("\x00gina\x00p\u00e4ssw\u00f6rd"), "LOGIN frank \"password\""} {
			c.say(fmt.Sprintf("%d %s\r\n", i, login))
			c.hear(fmt.Sprint(i, " ", deniedReply))
		}
		c.close()
		b.end()
	}
}

// entersWithOctets logs a user in by each way to send a password.
func (b *bed) entersWithOctets(listener, user, secret string) {
	b.t.Helper()
	lines := map[string][]string{
		"literal": {fmt.Sprintf("a LOGIN %s {%d+}\r\n%s", user, len(secret), secret)},
		"quoted":  {fmt.Sprintf("a LOGIN %s \"%s\"", user, strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(secret))},
		"PLAIN":   {"a AUTHENTICATE PLAIN " + coded("\x00"+user+"\x00"+secret)},
		"asked":   {"a AUTHENTICATE PLAIN", coded("\x00" + user + "\x00" + secret)},
		"steps":   {"a AUTHENTICATE LOGIN", coded(user), coded(secret)},
	}
	for _, form := range lines {
		c := b.greeted(listener)
		for i, line := range form {
			if i > 0 {
				c.hear("+ …")
			}
			c.say(line + "\r\n")
		}
		c.hear("a OK …")
		c.close()
	}
}
