package proxy

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"imapgate/auth"
	"imapgate/internal/event"
	"imapgate/internal/limit"
	"imapgate/internal/testbed"
	"imapgate/proxy/upstream"
)

// startOffice starts a gateway in front of a real Dovecot that allows each user three
// connections per address. Users named off may not log in. suspicions counts bans and
// spraying detections.
func startOffice(t *testing.T, mode event.Mode) (b *harness, suspicions *atomic.Int64) {
	t.Helper()
	users := map[string]string{"off@example.org": "{PLAIN}" + password + "::::::nologin=y reason=AskCarol"}
	for i := range 10 {
		users[fmt.Sprintf("user%d@example.org", i)] = "{PLAIN}" + password
	}
	d := testbed.StartDovecot(t, testbed.DovecotConfig{
		Users: users, Settings: "mail_max_userip_connections = 3\nprotocol imap {\n  mail_max_userip_connections = 3\n}\n",
	})
	suspicions = new(atomic.Int64)
	return openHarness(t, d.Plain, func(s *harnessConfig) {
		s.limits, s.auth.Methods = limit.Config{Settings: limit.Settings{Failures: failureLimits()}}, []string{auth.Passthrough}
		s.hooks.OnSpray = func(limit.Spray) { suspicions.Add(1) }
		s.hooks.OnBan = func(limit.Ban) { suspicions.Add(1) }
		s.backends["east"] = upstream.Config{Settings: upstream.Settings{Address: d.Plain, TLS: event.NoTLS}}
		s.routes.Static.Default = "east"
		s.cfg.Modes = map[string]BackendSettings{"east": {Mode: mode}}
		s.changeServer = func(srv *Server) { srv.logins.MinDenialTime, srv.logins.DenialJitter = 0, 1 }
	}), suspicions
}

func TestExceedingBackendConnectionLimitDoesNotBanNetwork(t *testing.T) {
	for mode, people := range map[event.Mode]int{event.ModeSplice: 10, "resume": 2} {
		b, suspicions := startOffice(t, mode)
		var clients []*client
		for i := range people {
			for range 3 {
				c := b.dialGreetedFrom("203.0.113.7")
				c.write(fmt.Sprintf("a LOGIN user%d %s\r\n", i, password))
				c.expectLine("a OK …")
				clients = append(clients, c)
			}
		}
		for n := range 20 { // the fourth of each user, and more
			got := b.tryLogin("203.0.113.7", fmt.Sprint("user", n%people), password)
			if !strings.HasPrefix(got, "NO [LIMIT] Maximum number of connections from user+IP exceeded") {
				t.Fatalf("%s: user%d received %s", mode, n%people, got)
			}
		}
		for range 12 {
			if got := b.tryLogin("203.0.113.7", "off", password); got != "NO [CONTACTADMIN] AskCarol" {
				t.Fatalf("%s: user off received %s", mode, got)
			}
		}
		if n := suspicions.Load(); n != 0 {
			t.Errorf("%s: %d bans and suspicions", mode, n)
		}
		// A wrong password counts as usual, also for users over the limit or not allowed to
		// log in.
		for n := range 10 {
			if got := b.tryLogin("203.0.113.7", []string{"user1", "off"}[n%2], fmt.Sprint("guess", n)); got != authFailedReply {
				t.Fatalf("%s: guess %d: %s", mode, n, got)
			}
		}
		if suspicions.Load() == 0 {
			t.Errorf("%s: ten guesses were not counted", mode)
		}
		for _, c := range clients {
			c.close()
		}
		b.stopServer()
	}
}
