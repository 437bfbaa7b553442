package tests

import (
	"strings"
	"testing"

	"imapgate/internal/audit"
	"imapgate/internal/metrics"
	"imapgate/internal/testbed"
	"imapgate/proxy"
	"imapgate/proxy/mux"
	"imapgate/proxy/upstream"
)

// closedFor is the series of connections closed for a reason.
func closedFor(reason string) string {
	return `imapgate_mux_pool_discarded_total{reason="` + reason + `"}`
}

// removal is a gateway in front of two Dovecots, and Redis, which says who lives
// where.
type removal struct {
	*scene
	g *running
}

func startRemoval(t *testing.T, m proxy.Mode) removal {
	t.Helper()
	ca := testbed.NewCA(t)
	c := &scene{
		t: t, s: stores["single"](t), name: "removal",
		east: testbed.StartDovecot(t, testbed.DovecotConfig{Password: password, CA: ca}),
		west: testbed.StartDovecot(t, testbed.DovecotConfig{Password: password, CA: ca}),
	}
	return removal{c, startGateway(t, options{
		ca: ca, redis: &c.s.config, modes: map[string]proxy.Mode{"east": m, "west": m},
		backends: map[string]upstream.Config{"east": to(c.east, upstream.ImplicitTLS), "west": to(c.west, upstream.ImplicitTLS)},
	})}
}

// visit logs in and out, and leaves a connection that waits.
func (r removal) visit(user string) {
	r.t.Helper()
	client := enter(r.t, r.g.at(proxy.ImplicitTLS), "")
	for _, command := range []string{"LOGIN " + user + " " + password, "SELECT INBOX", "LOGOUT"} {
		mustSay(r.t, client, command)
	}
}

func mustSay(t testing.TB, client *RawClient, command string) {
	t.Helper()
	got, err := client.Do(command)
	if err != nil || !strings.Contains(got[len(got)-1].Text, " OK ") {
		t.Fatalf("%s: %v, %v", command, got, err)
	}
}

// gone says whether a user's session at a backend has ended.
func gone(d *testbed.Dovecot, user string) bool {
	return strings.Contains(d.Log(), "imap("+user+")")
}

func TestAConnectionThatWaitsEndsWhenItsUserLogsInElsewhere(t *testing.T) {
	for _, there := range []mux.Mode{mux.Reuse, "splice"} {
		t.Run(string(there), func(t *testing.T) {
			r := startRemoval(t, proxy.Mode{Name: string(mux.Reuse), Mux: muxSettings()})
			for _, user := range []string{"mover", "neighbour"} {
				r.s.route(t, user, "east")
				r.visit(user)
			}
			testbed.Within(t, Patience, "two connections to wait", func() bool {
				return r.g.metric("imapgate_mux_pool_connections") == 2
			})
			r.s.route(t, "mover", "west", "mode", string(there))
			testbed.Within(t, recovery, "the mover to be in the west", func() bool {
				r.visit("mover")
				return strings.Contains(r.west.Log(), "user=<mover>")
			})
			testbed.Within(t, Patience, "the connection in the east to end", func() bool { return gone(r.east, "mover") })
			r.visit("neighbour")
			if n := r.g.metric(closedFor(metrics.DiscardMoved)); n != 1 || gone(r.east, "neighbour") || strings.Count(r.east.Log(), "user=<neighbour>") != 1 {
				t.Errorf("%v connections closed; the east says:\n%s", n, r.east.Log())
			}
		})
	}
}

func TestASessionThatMayNotGoOnLeavesNoConnectionBehind(t *testing.T) {
	settings := muxSettings()
	settings.AlwaysDetach = true // every command takes a connection, and leaves it
	r := startRemoval(t, proxy.Mode{Name: string(mux.Resume), Mux: settings})
	for _, c := range []struct {
		user, home string
		more       []string
		reason     audit.Reason
		discarded  string
	}{
		{"mover", "west", nil, audit.Moved, metrics.DiscardMoved},
		{"renamed", "east", []string{"login", "other"}, audit.LoginChanged, metrics.DiscardMoved},
		{"villain", "east", []string{"state", "blocked"}, audit.LoginRevoked, metrics.DiscardCredentials},
	} {
		r.s.route(t, c.user, "east")
		client := enter(t, r.g.at(proxy.ImplicitTLS), "")
		mustSay(t, client, "LOGIN "+c.user+" "+password)
		mustSay(t, client, "SELECT INBOX")
		r.s.route(t, c.user, c.home, c.more...)
		testbed.Within(t, recovery, "the session to end", func() bool {
			got, err := client.Do("NOOP")
			return err != nil || strings.Contains(shown(got), "BYE")
		})
		testbed.Within(t, Patience, "its connections to end", func() bool {
			return gone(r.east, c.user) && r.g.metric("imapgate_mux_pool_connections") == 0
		})
		testbed.Within(t, Patience, "its end to be on record", func() bool {
			return reasons(r.g.records("session_ended", c.user))[string(c.reason)] == 1
		})
		if r.g.metric(closedFor(c.discarded)) == 0 {
			t.Errorf("%s: no connection was closed as %s", c.user, c.discarded)
		}
	}
}

// A record that names another login names another's mail.
func TestASessionNeverLogsInAgainUnderALoginThatItsRecordNoLongerNames(t *testing.T) {
	for _, mode := range []mux.Mode{mux.Resume, mux.Reuse} {
		t.Run(string(mode), func(t *testing.T) {
			r := startRemoval(t, proxy.Mode{Name: string(mode), Mux: muxSettings()})
			r.s.route(t, "boxer", "east", "login", "box.a")
			r.visit("boxer") // leaves a connection of box.a that waits
			client := enter(t, r.g.at(proxy.ImplicitTLS), "")
			mustSay(t, client, "LOGIN boxer "+password)
			if mode == mux.Resume {
				mustSay(t, client, "SELECT INBOX")
			}
			r.s.route(t, "boxer", "east", "login", "box.b")
			testbed.Within(t, recovery, "the record to be followed", func() bool {
				r.visit("boxer")
				return strings.Contains(r.east.Log(), "user=<box.b>")
			})
			logins := strings.Count(r.east.Log(), "user=<box.a>")
			r.east.Restart()
			var heard string
			testbed.Within(t, Patience, "the session to end", func() bool {
				got, err := client.Do(`LIST "" *`)
				heard += shown(got)
				return err != nil || strings.Contains(heard, "BYE")
			})
			if n := strings.Count(r.east.Log(), "user=<box.a>"); n != logins || !strings.Contains(heard, "BYE") {
				t.Errorf("box.a logged in %d times more, and its session heard:\n%s", n-logins, heard)
			}
			testbed.Within(t, Patience, "its end to be on record", func() bool {
				return reasons(r.g.records("session_ended", "boxer"))[string(audit.LoginChanged)] == 1
			})
		})
	}
}
