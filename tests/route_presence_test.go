package tests

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// twoBackendsConf returns the sections of two backends and of routing by Redis.
func twoBackendsConf(east, west *testbed.Dovecot, redis *testbed.Redis) string {
	return fmt.Sprintf("backends:\n  east: {address: %q, tls: none}\n  west: {address: %q, tls: none}\nredis: {addresses: [%q]}",
		east.Plain, west.Plain, redis.Address)
}

// presenceReport is the part about live sessions in the output of a command with --json.
type presenceReport struct {
	Backend, Mode string
	Sessions      struct {
		Known     bool
		Why       string
		Here      *int
		Elsewhere *int
		At        []struct {
			Backend, Mode string
			Count         int
		}
	}
}

func (p presenceReport) String() string {
	s := p.Sessions
	if !s.Known || s.Here == nil || s.Elsewhere == nil {
		return fmt.Sprintf("%+v", s)
	}
	return fmt.Sprintf("%d here, %d elsewhere, %v", *s.Here, *s.Elsewhere, s.At)
}

func (b *gatewayProcess) readPresence(t *testing.T, args ...string) (p presenceReport) {
	t.Helper()
	out := b.runCommand(t, append(args, "--json")...)
	if err := json.Unmarshal([]byte(out), &p); err != nil {
		t.Fatalf("%v: %v in %s", args, err, out)
	}
	return p
}

func TestRouteCommandsCountSessionsElsewhere(t *testing.T) {
	t.Parallel()
	const user = "alice@example.org"
	ca := testbed.NewCA(t)
	east := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password, CA: ca})
	west := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password, CA: ca})
	redis := testbed.StartRedis(t)
	b := startProcess(t, ca, twoBackendsConf(east, west, redis))

	all := map[string][]*RawClient{}
	for _, mode := range testedModes[:3] {
		b.runCommand(t, "route", "set", user, "backend=east", "mode="+mode)
		testkit.Eventually(t, "the gateway to know of mode "+mode, func() bool {
			return b.readPresence(t, "route", "explain", user).Mode == mode
		})
		for range 2 {
			client := mustDial(t, b.endpoint("implicit"), "")
			mustExec(t, client, "LOGIN "+user+" "+password)
			mustExec(t, client, "SELECT INBOX")
			all[mode] = append(all[mode], client)
		}
	}
	const atEast = "[{east resume 2} {east reuse 2} {east splice 2}]"
	if got := b.readPresence(t, "route", "explain", user).String(); got != "6 here, 0 elsewhere, "+atEast {
		t.Errorf("before: %s", got)
	}
	if got := b.readPresence(t, "route", "explain", "bob@example.org").String(); got != "0 here, 0 elsewhere, []" {
		t.Errorf("another user: %s", got)
	}

	out := b.runCommand(t, "route", "set", user, "backend=west")
	for _, want := range []string{": changed\n", "2 at east (splice)", "2 at east (reuse)", "2 at east (resume)", "elsewhere: 6, not at west"} {
		if !strings.Contains(out, want) {
			t.Errorf("set: no %q in\n%s", want, out)
		}
	}
	if got := b.readPresence(t, "route", "set", user, "backend=west").String(); got != "0 here, 6 elsewhere, "+atEast {
		t.Errorf("set, as JSON: %s", got)
	}
	testkit.Eventually(t, "the gateway to know of the west", func() bool {
		return b.readPresence(t, "route", "explain", user).Backend == "west"
	})
	// Seconds after the change all sessions still use the east.
	for mode, clients := range all {
		for _, client := range clients {
			got, err := client.Do("APPEND INBOX {}", newMessage("written in mode "+mode))
			if err != nil || !strings.Contains(formatResponses(got), " OK ") {
				t.Errorf("%s: %v, %v", mode, got, err)
			}
		}
	}
	if n := countMessages(t, east, user); n != 6 {
		t.Errorf("%d messages are in the east, not 6", n)
	}
	if out := b.runCommand(t, "route", "explain", user); !strings.Contains(out, "elsewhere: 6, not at west") {
		t.Errorf("explain:\n%s", out)
	}

	mustExec(t, all["splice"][0], "LOGOUT")
	_ = all["splice"][0].Close()
	all["resume"][0].conn.Close() // without LOGOUT
	client := mustDial(t, b.endpoint("implicit"), "")
	mustExec(t, client, "LOGIN "+user+" "+password)
	testkit.Eventually(t, "two sessions to have ended and one to have begun", func() bool {
		return b.readPresence(t, "route", "explain", user).String() ==
			"1 here, 4 elsewhere, [{east resume 1} {east reuse 2} {east splice 1} {west resume 1}]"
	})
	// A session with another login name counts as elsewhere.
	if got := b.readPresence(t, "route", "set", user, "login=box.b").String(); !strings.HasPrefix(got, "0 here, 5 elsewhere, ") {
		t.Errorf("renamed: %s", got)
	}
	if out := b.runCommand(t, "route", "explain", user); !strings.Contains(out, "elsewhere: 5, not at west as box.b") {
		t.Errorf("renamed:\n%s", out)
	}
	b.runCommand(t, "route", "set", user, "login=")
	if got := b.readPresence(t, "route", "set", user, "state=paused").String(); !strings.HasPrefix(got, "0 here, 5 elsewhere, ") {
		t.Errorf("paused: %s", got)
	}
	if got := b.readPresence(t, "route", "del", user).String(); !strings.HasPrefix(got, "0 here, 5 elsewhere, ") {
		t.Errorf("removed: %s", got)
	}

	b.process.Stop()
	if got := b.readPresence(t, "route", "explain", user).Sessions; got.Known || !strings.Contains(got.Why, "refused") || got.Elsewhere != nil {
		t.Errorf("without a gateway: %+v", got)
	}
	if out := b.runCommand(t, "route", "set", user, "backend=east"); !strings.Contains(out, "live sessions: unknown, because") {
		t.Errorf("without a gateway:\n%s", out)
	}
}
