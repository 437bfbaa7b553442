package proxy

import (
	"strings"
	"testing"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/testkit"
	"imapgate/proxy/relay/mux"
	"imapgate/proxy/relay/mux/pool"
	"imapgate/proxy/upstream"
)

// serveRequiringID is a backend like Coremail: no mailbox can be selected before the client
// has sent ID.
func serveRequiringID(s *testkit.Conn) {
	login, err := s.ReadLogin()
	if err != nil || s.Send(login.Tag+" OK [CAPABILITY IMAP4rev1 ID UNSELECT] In.") != nil {
		return
	}
	known := strings.Contains(login.ID, `"name"`)
	for {
		tag, command, err := s.ReadCommand()
		if err != nil {
			return
		}
		answer := "OK Done."
		switch {
		case strings.HasPrefix(command, `ID ("name"`):
			known = true
			_ = s.Send(`* ID ("name" "Coremail")`)
		case strings.HasPrefix(command, "SELECT") && !known:
			answer = "NO SELECT Unsafe Login. Please contact the postmaster for help"
		case strings.HasPrefix(command, "SELECT"):
			_ = s.Send("* FLAGS (\\Seen)\r\n* 0 EXISTS\r\n* OK [UIDVALIDITY 7] .\r\n* OK [UIDNEXT 1] .")
			answer = "OK [READ-WRITE] Selected."
		}
		if s.Send(tag+" "+answer) != nil || command == "LOGOUT" {
			return
		}
	}
}

const (
	selectRefused = "s NO SELECT Unsafe Login…"
	selectOK      = "s OK [READ-WRITE] Selected."
)

// expectSelect has a client select its mailbox.
func (c *client) expectSelect(want string) {
	c.t.Helper()
	c.write("s SELECT INBOX\r\n")
	if want == selectOK {
		for _, line := range []string{"* FLAGS (\\Seen)", "* 0 EXISTS", "* OK [UIDVALIDITY 7] .", "* OK [UIDNEXT 1] ."} {
			c.expectLine(line)
		}
	}
	c.expectLine(want)
}

func TestClientIDIsForwardedWheneverSent(t *testing.T) {
	for _, mode := range []event.Mode{event.ModeSplice, event.ModeReuse, event.ModeResume} {
		t.Run(string(mode), func(t *testing.T) {
			u := testkit.StartIMAP(t, serveRequiringID)
			b := newHarness(t, u.Addr(), func(s *harnessConfig) {
				s.cfg.Modes = map[string]BackendSettings{"east": {Mode: mode, Mux: mux.Settings{CommandHoldTimeout: 20 * time.Second, Settings: pool.Settings{PoolIdleTimeout: time.Hour}}}}
				s.backends["east"] = upstream.Config{Settings: upstream.Settings{Address: u.Addr(), TLS: event.NoTLS, Forward: upstream.ForwardNone}}
			})
			before := b.dialGreeted("none")
			before.write("i ID (\"name\" \"Early\" \"version\" \"1.0\" \"x-session-id\" \"s\")\r\n")
			before.expectLine("* ID …")
			before.expectLine("i OK …")
			before.write("a LOGIN alice right\r\n")
			before.expectLine("a OK …")
			before.expectSelect(selectOK)
			b.expectReattach(before, u, mode)

			after := b.dialGreeted("none")
			after.write("a LOGIN frank right\r\n")
			after.expectLine("a OK …")
			after.expectSelect(selectRefused)
			after.write("i ID (\"name\" \"Late\" \"version\" \"2.0\")\r\n")
			after.expectLine(`* ID ("name" "Coremail")`)
			after.expectLine("i OK …")
			after.expectSelect(selectOK)
			b.expectReattach(after, u, mode)

			if r := b.lastRecord("login_accepted", before); r.field("program") != "Early" || r.field("program_version") != "1.0" {
				t.Errorf("%v", r)
			}
			late := map[bool]string{false: "Late 2.0", true: " "}[mode == event.ModeSplice] // not parsed in splice mode
			for c, want := range map[*client]string{before: "Early 1.0", after: late} {
				if r := b.lastRecord("session_ended", c); r.field("program")+" "+r.field("program_version") != want {
					t.Errorf("want %q: %v", want, r)
				}
			}
		})
	}
}

// expectReattach closes the backend's connection and expects that the session continues
// where its mode allows, with the client's ID sent again.
func (b *harness) expectReattach(c *client, u *testkit.ScriptedIMAP, mode event.Mode) {
	b.t.Helper()
	defer c.close()
	made := u.Accepted()
	u.CloseConns()
	if mode != event.ModeResume {
		return
	}
	c.write("n NOOP\r\n")
	c.expectLine("n OK Done.")
	c.expectSelect(selectOK)
	if u.Accepted() == made {
		b.t.Error("the connection was not lost")
	}
}

// STARTTLS clears what was sent without TLS, in the records too.
func TestCleartextIDIsNotRecorded(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr())
	c := b.dial("starttls")
	c.expectLine("* OK …")
	c.write("i ID (\"name\" \"Forged\" \"version\" \"1\")\r\n")
	c.expectLine("* ID …")
	c.expectLine("i OK …")
	c.write("t STARTTLS\r\n")
	c.expectLine("t OK …")
	c.startTLS()
	c.write("a LOGIN alice right\r\n")
	c.expectLine("a OK …")
	c.close()
	if r := b.lastRecord("session_ended", c); r.field("program") != "" || r.field("program_version") != "" {
		t.Errorf("%v", r)
	}
}
