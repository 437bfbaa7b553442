package proxy

import (
	"testing"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/proxy/upstream"
)

// An ALERT that a backend sends before its answer to a login is for the user and precedes
// the gateway's answer. A denial has none: its bytes are always the same.
func TestAlertPrecedesTaggedResponseInEveryMode(t *testing.T) {
	const alerts = "* NO [ALERT] Mailbox is \x1b nearly full.\r\n* OK [ALERT] Down at noon.\r\n"
	v := openAnsweringBackend(t, func(_, secret string) string {
		return alerts + map[string]string{
			password: loginOK, "limit": "NO [LIMIT] Too many sessions.", "unavailable": "NO [UNAVAILABLE] Later.", "unknown": "NO [STRANGE] x",
			"bad": "BAD what", "master-password": loginOK,
		}[secret]
	})
	const first, second = "* NO [ALERT] Mailbox is ? nearly full.", "* OK [ALERT] Down at noon."
	for _, mode := range []event.Mode{event.ModeSplice, event.ModeReuse, event.ModeResume} {
		b := newHarness(t, v.Addr(), func(s *harnessConfig) {
			s.cfg.Modes = map[string]BackendSettings{"east": {Mode: mode}, "mastered": {Mode: mode}}
		})
		for _, listener := range []string{"none", "starttls", "implicit"} {
			for secret, answer := range map[string][]string{
				password: {first, second, "a OK …"}, "limit": {first, second, "a NO [LIMIT] Too many sessions."},
				"unavailable": {"a " + unavailableReply}, "unknown": {"a " + unavailableReply}, "bad": {"a " + unavailableReply},
			} {
				c := b.dialGreeted(listener)
				c.write("a LOGIN alice " + secret + "\r\n")
				for _, line := range answer {
					c.expectLine(line)
				}
				c.close()
			}
			c := b.dialGreeted(listener)
			c.write("a LOGIN carol right\r\n") // the gateway verifies carol
			for _, line := range []string{first, second, "a OK …"} {
				c.expectLine(line)
			}
			c.close()
		}
		b.stopServer()
	}
}

func TestDenialCarriesNoAlert(t *testing.T) {
	v := openAnsweringBackend(t, func(_, secret string) string { return "* NO [ALERT] " + secret + "\r\nNO [AUTHENTICATIONFAILED] no" })
	b := newHarness(t, v.Addr(), func(s *harnessConfig) {
		s.backends["east"] = upstream.Config{Settings: upstream.Settings{Address: v.Addr(), TLS: event.NoTLS, Login: upstream.MasterLogin, Master: upstream.Master{User: "gateway", Password: identity.NewSecret("master-password")}}}
		s.backends["west"] = upstream.Config{Settings: upstream.Settings{Address: v.Addr(), TLS: event.NoTLS}}
		s.routes.Static.Users["alice"] = "west"
	})
	c := b.dialGreeted("none")
	c.write("a LOGIN alice wrong\r\n")
	c.expectLine("a " + authFailedReply)
	c.write("b LOGIN frank right\r\n") // the master's password is wrong
	c.expectLine("b " + unavailableReply)
	c.close()
}
