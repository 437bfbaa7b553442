package tests

import (
	"strings"
	"testing"

	"imapgate/internal/config"
	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
	"imapgate/proxy/relay"
)

// closedSeries returns the metric series of pooled connections closed for a reason.
func closedSeries(reason event.DiscardReason) string {
	return `imapgate_mux_pool_discarded_total{reason="` + string(reason) + `"}`
}

// moveTest is a gateway in front of two Dovecots, with routes in Redis.
type moveTest struct {
	*cluster
	g *gateway
}

func startMoveTest(t *testing.T, mode event.Mode, tune func(*config.Config)) moveTest {
	t.Helper()
	ca := testbed.NewCA(t)
	c := &cluster{
		t: t, store: redisStores["single"](t), name: "removal",
		east: testbed.StartDovecot(t, testbed.DovecotConfig{Password: password, CA: ca}),
		west: testbed.StartDovecot(t, testbed.DovecotConfig{Password: password, CA: ca}),
	}
	return moveTest{c, startTunedGateway(t, ca, tune, c.backends(muxMode(mode, "")), c.store.conf)}
}

// runSession logs in and out, which leaves an idle upstream in the pool.
func (r moveTest) runSession(user string) {
	r.t.Helper()
	client := mustDial(r.t, r.g.endpoint(event.ImplicitTLS), "")
	for _, command := range []string{"LOGIN " + user + " " + password, "SELECT INBOX", "LOGOUT"} {
		mustExec(r.t, client, command)
	}
}

func mustExec(t testing.TB, client *RawClient, command string) {
	t.Helper()
	got, err := client.Do(command)
	if err != nil || !strings.Contains(got[len(got)-1].Text, " OK ") {
		t.Fatalf("%s: %v, %v", command, got, err)
	}
}

// sessionEnded reports whether a user's session at a backend has ended.
func sessionEnded(d *testbed.Dovecot, user string) bool {
	return strings.Contains(d.Log(), "imap("+user+")")
}

func TestPooledConnectionEndsWhenItsUserLogsInElsewhere(t *testing.T) {
	t.Parallel()
	for _, there := range []event.Mode{event.ModeReuse, "splice"} {
		t.Run(string(there), func(t *testing.T) {
			r := startMoveTest(t, event.ModeReuse, func(*config.Config) {})
			for _, user := range []string{"mover", "other"} {
				r.store.setRoute(t, user, "east")
				r.runSession(user)
			}
			testkit.Eventually(t, "two connections to wait", func() bool {
				return r.g.sumMetric("imapgate_mux_pool_connections") == 2
			})
			r.store.setRoute(t, "mover", "west", "mode", string(there))
			testkit.Eventually(t, "the mover to be in the west", func() bool {
				r.runSession("mover")
				return strings.Contains(r.west.Log(), "user=<mover>")
			})
			testkit.Eventually(t, "the connection in the east to end", func() bool { return sessionEnded(r.east, "mover") })
			r.runSession("other")
			if n := r.g.sumMetric(closedSeries(event.DiscardMoved)); n != 1 || sessionEnded(r.east, "other") || strings.Count(r.east.Log(), "user=<other>") != 1 {
				t.Errorf("%v connections closed; log of the east:\n%s", n, r.east.Log())
			}
		})
	}
}

func TestSessionEndedByARouteChangeLeavesNoPooledConnection(t *testing.T) {
	t.Parallel()
	r := startMoveTest(t, event.ModeResume, alwaysDetach) // every command acquires and releases an upstream
	for _, c := range []struct {
		user, home string
		more       []string
		reason     event.Reason
		discarded  event.DiscardReason
	}{
		{"mover", "west", nil, event.Moved, event.DiscardMoved},
		{"renamed", "east", []string{"login", "other"}, event.LoginChanged, event.DiscardMoved},
		{"villain", "east", []string{"state", "blocked"}, event.LoginRevoked, event.DiscardCredentials},
	} {
		r.store.setRoute(t, c.user, "east")
		client := mustDial(t, r.g.endpoint(event.ImplicitTLS), "")
		mustExec(t, client, "LOGIN "+c.user+" "+password)
		mustExec(t, client, "SELECT INBOX")
		r.store.setRoute(t, c.user, c.home, c.more...)
		testkit.Eventually(t, "the session to end", func() bool {
			got, err := client.Do("NOOP")
			return err != nil || strings.Contains(formatResponses(got), "BYE")
		})
		testkit.Eventually(t, "its connections to end", func() bool {
			return sessionEnded(r.east, c.user) && r.g.sumMetric("imapgate_mux_pool_connections") == 0
		})
		testkit.Eventually(t, "its end to be in the audit log", func() bool {
			return countReasons(r.g.records("session_ended", c.user))[string(c.reason)] == 1
		})
		if r.g.sumMetric(closedSeries(c.discarded)) == 0 {
			t.Errorf("%s: no connection was closed as %s", c.user, c.discarded)
		}
	}
}

// A route with another login name leads to another mailbox.
func TestReattachUsesNoLoginNameThatTheRouteHasDropped(t *testing.T) {
	t.Parallel()
	for _, mode := range []event.Mode{event.ModeResume, event.ModeReuse} {
		t.Run(string(mode), func(t *testing.T) {
			r := startMoveTest(t, mode, func(*config.Config) {})
			r.store.setRoute(t, "boxer", "east", "login", "box.a")
			r.runSession("boxer") // leaves an idle upstream of box.a
			client := mustDial(t, r.g.endpoint(event.ImplicitTLS), "")
			mustExec(t, client, "LOGIN boxer "+password)
			if mode == event.ModeResume {
				mustExec(t, client, "SELECT INBOX")
			}
			r.store.setRoute(t, "boxer", "east", "login", "box.b")
			testkit.Eventually(t, "the record to be followed", func() bool {
				r.runSession("boxer")
				return strings.Contains(r.east.Log(), "user=<box.b>")
			})
			logins := strings.Count(r.east.Log(), "user=<box.a>")
			r.east.Restart()
			var received string
			testkit.Eventually(t, "the session to end", func() bool {
				got, err := client.Do(`LIST "" *`)
				received += formatResponses(got)
				return err != nil || strings.Contains(received, "BYE")
			})
			if n := strings.Count(r.east.Log(), "user=<box.a>"); n != logins || !strings.Contains(received, "BYE") {
				t.Errorf("box.a logged in %d times more, and its session received:\n%s", n-logins, received)
			}
			testkit.Eventually(t, "its end to be in the audit log", func() bool {
				return countReasons(r.g.records("session_ended", "boxer"))[string(event.LoginChanged)] == 1
			})
		})
	}
}

// Two clients of a user, one of them in IDLE, are paused, moved and resumed. A third one is
// asked to move only. The two backends are one server, so both have the same mail.
func TestConnectedSessionsMoveToAnotherBackend(t *testing.T) {
	t.Parallel()
	ca := testbed.NewCA(t)
	d := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password, CA: ca})
	c := &cluster{t: t, store: redisStores["single"](t), name: "moves", east: d, west: d}
	r := moveTest{c, startTunedGateway(t, ca, func(*config.Config) {}, c.backends(muxMode(event.ModeResume, "")), c.store.conf)}
	r.store.setRoute(t, "mover", "east")
	logIn := func() *RawClient {
		client := mustDial(t, r.g.endpoint(event.ImplicitTLS), "")
		mustExec(t, client, "LOGIN mover "+password)
		return client
	}
	reader, idler, mover := logIn(), logIn(), logIn()
	for _, client := range []*RawClient{reader, idler, mover} {
		mustExec(t, client, "SELECT INBOX")
	}
	idle, err := idler.Send("IDLE")
	if err == nil {
		_, err = idler.Read()
	}
	if err != nil {
		t.Fatal(err)
	}
	all := r.g.Registry().Sessions()
	for _, live := range all {
		if !live.Pause() {
			t.Error("a session cannot pause")
		}
	}
	for _, live := range all {
		testkit.Eventually(t, "a session to leave", func() bool { return !live.IsLeaving() })
	}
	r.store.setRoute(t, "mover", "west")
	testkit.Eventually(t, "the route to be followed", func() bool {
		mustExec(t, logIn(), "APPEND INBOX {1+}\r\nx") // while the others are paused
		return len(r.g.Registry().Select(relay.Query{Backend: "west"})) > 0
	})
	noop, err := reader.Send("NOOP")
	if err != nil {
		t.Fatal(err)
	}
	for _, live := range all {
		live.Resume()
	}
	got, err := reader.ReadUntil(noop)
	if err != nil || !strings.Contains(formatResponses(got), "EXISTS") {
		t.Errorf("NOOP: %v, %v", got, err)
	}
	for {
		response, err := idler.Read()
		if err != nil {
			t.Fatalf("IDLE: %v", err)
		}
		if strings.Contains(response.Text, "EXISTS") {
			break
		}
	}
	if _, err := idler.Write([]byte("DONE\r\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := idler.ReadUntil(idle); err != nil {
		t.Fatal(err)
	}
	mustExec(t, mover, "UID FETCH 1:* FLAGS")
	for _, live := range all {
		if name := live.Info().Backend; name != "west" {
			t.Errorf("a session is at %s", name)
		}
		live.Move() // and back to the pool, and out of it
	}
	for _, client := range []*RawClient{reader, idler, mover} {
		mustExec(t, client, "UID FETCH 1:* FLAGS")
	}
}
