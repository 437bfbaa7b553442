package tests

import (
	"bufio"
	"fmt"
	"slices"
	"strings"
	"testing"

	"imapgate/internal/event"
	"imapgate/internal/faultproxy"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// The capabilities are the same before and after a lost upstream, and none of them leads to
// a state that another upstream cannot restore.
func TestCapabilitiesStayTheSameAfterALostUpstream(t *testing.T) {
	t.Parallel()
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password})
	line := faultproxy.Start(t, backend.Plain)
	g := startGateway(t, backend.CA, singleBackend(plainBackend(line.Address())+muxMode(event.ModeResume, "")))
	c := mustDial(t, g.endpoint(event.ImplicitTLS), "")
	welcome, err := c.Do("LOGIN amy " + password)
	if err := checkOK(welcome, err); err != nil {
		t.Fatal(err)
	}
	_, capabilities, _ := strings.Cut(welcome[0].Text, "[CAPABILITY ")
	capabilities, _, _ = strings.Cut(capabilities, "]")
	offered := " " + capabilities + " "
	for _, name := range []string{"LITERAL+", "IDLE", "QRESYNC", "NOTIFY", "UNSELECT", "MOVE"} {
		if !strings.Contains(offered, " "+name+" ") {
			t.Errorf("%s is not offered: %s", name, capabilities)
		}
	}
	for _, name := range []string{
		"COMPRESS=", "UNAUTHENTICATE", "-REFERRALS", "LANGUAGE", "I18NLEVEL=", "ANNOTATE", "STARTTLS", "AUTH=", "LOGINDISABLED", "LITERAL-",
	} {
		if strings.Contains(offered, name) {
			t.Errorf("%s is offered: %s", name, capabilities)
		}
	}
	for _, step := range []struct{ command, want string }{
		{"CAPABILITY", "* CAPABILITY " + capabilities + "\n"},
		{"SELECT INBOX", " OK [READ-WRITE] "},
		{"CAPABILITY", "* CAPABILITY " + capabilities + "\n"},
		{"COMPRESS DEFLATE", " BAD "},
		{"NOOP", " OK "},
	} {
		if got, err := c.Do(step.command); err != nil || !strings.Contains(formatResponses(got), step.want) {
			t.Errorf("%s: %v, %v", step.command, got, err)
		}
	}
	line.ResetConns()
	for _, command := range []string{"NOOP", "CAPABILITY", "NOOP"} {
		got, err := c.Do(command)
		if err := checkOK(got, err); err != nil || command == "CAPABILITY" && got[0].Text != "* CAPABILITY "+capabilities {
			t.Errorf("%s, with another upstream: %v, %v", command, got, err)
		}
	}
	testkit.Eventually(t, "the attach to be in the audit log", func() bool { return len(g.records("session_attached", "")) == 1 })
}

// Each loss, attach, pin and end has one audit record with its reason. No record has a
// password.
func TestSessionLifecycleIsOnRecord(t *testing.T) {
	t.Parallel()
	const secret = "correct-horse-battery-staple"
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{Password: secret})
	line := faultproxy.Start(t, backend.Plain)
	g := startGateway(t, backend.CA, singleBackend(plainBackend(line.Address())+muxMode(event.ModeResume, "")))
	log := func(user string, commands ...string) *RawClient {
		t.Helper()
		c := mustDial(t, g.endpoint(event.ImplicitTLS), "")
		for _, command := range append([]string{fmt.Sprintf("LOGIN %s %q", user, secret)}, commands...) {
			if got, err := c.Do(command); err != nil || !strings.Contains(formatResponses(got), " OK ") {
				t.Fatalf("%s: %s: %v, %v", user, command, got, err)
			}
		}
		return c
	}
	log("whole", "SELECT INBOX", "NOOP", "LOGOUT")
	healed := log("healed", "SELECT INBOX")
	line.ResetConns()
	if err := checkOK(healed.Do("NOOP")); err != nil {
		t.Fatal(err)
	}
	if err := checkOK(healed.Do("LOGOUT")); err != nil {
		t.Fatal(err)
	}
	log("noticed", "SELECT INBOX", "NOTIFY SET (SELECTED (MessageNew MessageExpunge))", "NOOP", "LOGOUT")
	log("remembered", "SELECT INBOX", "SEARCH RETURN (SAVE) ALL", "NOOP", "LOGOUT")
	if got, err := log("strange", "SELECT INBOX").Do("XSTRANGE"); err != nil || !strings.Contains(formatResponses(got), " BAD ") {
		t.Errorf("a strange command: %v, %v", got, err)
	}
	_ = log("leaver", "SELECT INBOX").Close()
	deleted := log("deleted", "CREATE Box", "SELECT Box")
	line.ResetConns()
	// No session is in IDLE: the next command finds that the mailbox was deleted.
	other, err := dialIMAP(endpoint{address: backend.Plain}, "")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close() // all responses were read
	for _, command := range []string{fmt.Sprintf("LOGIN deleted %q", secret), "DELETE Box"} {
		if err := checkOK(other.Do(command)); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := deleted.Do("NOOP"); err == nil || !strings.Contains(formatResponses(got), "* BYE Mailbox has been deleted.") {
		t.Errorf("a deleted mailbox: %v, %v", got, err)
	}
	for user, want := range map[string]string{
		"whole":      "session_ended client_logout",
		"healed":     "upstream_lost reset, session_attached lost ok, session_ended client_logout",
		"noticed":    "session_pinned notify",
		"remembered": "session_pinned saved_search",
		"strange":    "session_pinned unknown_command",
		"leaver":     "session_ended client_closed",
		"deleted":    "upstream_lost reset, session_attached lost gone, session_ended mailbox_gone",
	} {
		testkit.Eventually(t, user+"'s session on record: "+want, func() bool { return strings.HasPrefix(g.sessionEvents(user), want) })
	}
	for _, file := range []string{"audit", "log"} {
		if strings.Contains(g.readFile(file), secret) {
			t.Errorf("a password is in the %s", file)
		}
	}
}

// sessionEvents returns the audit events of a user's session after its login.
func (g *gateway) sessionEvents(user string) string {
	var all []string
	for _, r := range g.records("", user) {
		if r.Event != "login_accepted" {
			all = append(all, strings.TrimSpace(r.Event+" "+r.Reason+" "+r.Result))
		}
	}
	return strings.Join(all, ", ")
}

// A backend that removes messages without EXPUNGE is spliced: for a user from the second
// violation on, and for all users after violations for five users. The gateway logs it.
func TestBackendThatViolatesTheProtocolIsSpliced(t *testing.T) {
	t.Parallel()
	g := startGateway(t, testbed.NewCA(t), singleBackend(plainBackend(testkit.StartIMAP(t, serveShrinkingMailbox).Addr())+muxMode(event.ModeResume, "")))
	runSession := func(i int) {
		t.Helper()
		c := mustDial(t, g.endpoint(event.NoTLS), "")
		for _, command := range []string{fmt.Sprintf("LOGIN user%d %s", i, password), "SELECT INBOX", "NOOP", "NOOP", "LOGOUT"} {
			if err := checkOK(c.Do(command)); err != nil {
				t.Fatalf("user%d: %s: %v", i, command, err)
			}
		}
		_ = c.Close() // as every client does after LOGOUT
	}
	const spliced = "imapgate_mux_backend_spliced"
	for _, i := range []int{0, 0, 0, 1, 2, 3, 4} {
		if sum := g.sumMetric(spliced); sum != 0 {
			t.Errorf("before the %d. user was there, the backend is spliced", i)
		}
		runSession(i)
	}
	runSession(5)
	testkit.Eventually(t, "all sessions to be in the audit log", func() bool { return len(g.records("session_ended", "")) == 8 })
	var modes []string
	for _, r := range g.records("session_ended", "") {
		modes = append(modes, r.User+" "+r.Mode)
	}
	slices.Sort(modes)
	if want := []string{"user0 resume", "user0 resume", "user0 splice", "user1 resume", "user2 resume", "user3 resume",
		"user4 resume", "user5 splice"}; !slices.Equal(modes, want) {
		t.Errorf("sessions: %q, want %q", modes, want)
	}
	if pins := countReasons(g.records("session_pinned", "")); pins["violation"] != 6 || len(pins) != 1 {
		t.Errorf("pins: %v; want 6 for a violation", pins)
	}
	if n := g.sumMetric("imapgate_backend_protocol_violations_total"); n != 6 {
		t.Errorf("%v protocol violations are counted, want 6", n)
	}
	testkit.Eventually(t, "the metric of users", func() bool { return g.sumMetric("imapgate_mux_spliced_users") == 1 })
	if sum := g.sumMetric(spliced); sum != 1 {
		t.Errorf("the metric is %v, want 1", sum)
	}
	if n := strings.Count(g.readFile("log"), "ALERT"); n != 1 {
		t.Errorf("%d alerts in the log, want 1", n)
	}
}

// serveShrinkingMailbox is a backend whose mailbox loses messages without EXPUNGE.
func serveShrinkingMailbox(conn *testkit.Conn) {
	w := bufio.NewWriter(conn)
	_, _ = w.WriteString("* OK [CAPABILITY IMAP4rev1 SASL-IR UNSELECT AUTH=PLAIN] ready\r\n") // Flush has the error
	for w.Flush() == nil {
		tag, rest, err := conn.ReadCommand()
		if err != nil {
			return
		}
		switch name, _, _ := strings.Cut(rest, " "); name {
		case "AUTHENTICATE":
			_, _ = w.WriteString(tag + " OK [CAPABILITY IMAP4rev1 UNSELECT] welcome\r\n")
			continue
		case "SELECT":
			_, _ = w.WriteString("* 3 EXISTS\r\n* OK [UIDVALIDITY 1] valid\r\n* OK [UIDNEXT 4] next\r\n")
		case "UID":
			_, _ = w.WriteString("* SEARCH 1 2 3\r\n")
		case "NOOP":
			_, _ = w.WriteString("* 1 EXISTS\r\n")
		case "LOGOUT":
			_, _ = w.WriteString("* BYE so long\r\n" + tag + " OK done\r\n")
			_ = w.Flush() // closes anyway
			return
		}
		_, _ = w.WriteString(tag + " OK done\r\n")
	}
}
