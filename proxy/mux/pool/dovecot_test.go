//go:build unix

package pool

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imapgate/internal/identity"
	"imapgate/internal/metrics"
	"imapgate/internal/quiet"
	"imapgate/internal/testbed"
	"imapgate/proxy/mux/lease"
	"imapgate/proxy/upstream"
)

// at is a backend at a Dovecot, with TLS or without.
func at(d *testbed.Dovecot, mode upstream.TLSMode, login string) *upstream.Backend {
	cfg := upstream.Config{Name: "dovecot", Address: d.Plain, TLSMode: mode, Login: login,
		Socket: func(c *net.TCPConn) net.Conn { return quiet.NewSocket(c) },
		Master: upstream.Master{User: "gateway", Password: identity.NewSecret("m-pw")}}
	if mode != upstream.NoTLS {
		cfg.TLS = d.CA.Client(testbed.DovecotName)
	}
	if mode == upstream.ImplicitTLS {
		cfg.Address = d.TLS
	}
	return upstream.New(cfg, upstream.Hooks{}, nopLog())
}

func ways() map[string][2]string {
	return map[string][2]string{
		"plain":    {string(upstream.NoTLS), upstream.Passthrough},
		"tls":      {string(upstream.ImplicitTLS), upstream.Passthrough},
		"starttls": {string(upstream.StartTLS), upstream.Passthrough},
		"master":   {string(upstream.ImplicitTLS), upstream.MasterLogin},
	}
}

// run runs a command that has to succeed, and gives its untagged answers.
func run(t testing.TB, c *lease.Conn, command string) (said []string) {
	t.Helper()
	res, err := c.Run(time.Now().Add(10*time.Second), command, func(b []byte) error {
		said = append(said, string(b))
		return nil
	})
	if err != nil || res.Name != "OK" {
		t.Fatalf("%s: %v %s %s", command, err, res.Name, res.Text)
	}
	return said
}

// logins counts the logins of a user, or of all with "", once as many as wanted are
// in the log: Dovecot writes it in its own time.
func logins(t testing.TB, d *testbed.Dovecot, user string, wanted int) int {
	t.Helper()
	testbed.Within(t, testbed.Patience, "logins in Dovecot's log", func() bool { return len(d.Logins(user)) >= wanted })
	return len(d.Logins(user))
}

func TestDovecotIsAskedOnceForManySessions(t *testing.T) {
	d := testbed.StartDovecot(t, testbed.DovecotConfig{Master: "gateway", MasterPassword: "m-pw"})
	for name, way := range ways() {
		t.Run(name, func(t *testing.T) {
			y := Config{ReuseTTL: time.Minute}.pool(t, at(d, upstream.TLSMode(way[0]), way[1]))
			for range 5 {
				a := y.login(name, "pw", Vouched)
				c := leased(t, a, "QRESYNC", "CONDSTORE")
				run(t, c, "SELECT INBOX")
				c.Selected = true
				a.Return(c)
				a.Close()
			}
			if n := logins(t, d, name, 1); n != 1 || y.reused != 4 {
				t.Errorf("%d logins, %d reused, closed for %v", n, y.reused, y.discarded)
			}
			a := y.login(name, "pw", Vouched)
			c := leased(t, a)
			run(t, c, "SELECT INBOX")
			run(t, c, "APPEND INBOX {1+}\r\nx")
			if said := strings.Join(run(t, c, "FETCH 1:* (FLAGS)"), ""); strings.Contains(said, "MODSEQ") {
				t.Errorf("a session that enabled nothing is told %q", said)
			}
			c.Selected = true
			a.Return(c)
			y.silent(c, time.Hour) // asked by NOOP
			if leased(t, a) != c || y.number() != 1 {
				t.Errorf("not used again: closed for %v", y.discarded)
			}
		})
	}
}

func TestDovecotsOwnNamesAreEnabled(t *testing.T) {
	d := testbed.StartDovecot(t, testbed.DovecotConfig{})
	y := Config{ReuseTTL: time.Minute}.pool(t, at(d, upstream.NoTLS, upstream.Passthrough))
	a := y.login("alice", "pw", Vouched)
	for _, names := range [][]string{{"QRESYNC", "X-UNKNOWN"}, {"CONDSTORE"}, {"CONDSTORE", "QRESYNC", "SORT"}} {
		enabled, err := a.Enable(context.Background(), names)
		if err != nil || len(enabled) == 0 {
			t.Fatalf("%q: %q %v", names, enabled, err)
		}
		set := lease.Enabled("").With(enabled...)
		c, err := a.Lease(context.Background(), set)
		if err != nil || c.Enabled != set || set.Has("SORT") {
			t.Fatalf("%q: %v", set, err)
		}
		a.Return(c)
	}
}

func TestDovecotsWordDecidesWhereNobodyVouches(t *testing.T) {
	d := testbed.StartDovecot(t, testbed.DovecotConfig{Users: map[string]string{"alice": "right"}})
	y := Config{ReuseTTL: time.Minute, CredCache: true}.pool(t, at(d, upstream.ImplicitTLS, upstream.Passthrough))
	y.login("alice", "right", Asked).Close()
	if _, err := y.Login(context.Background(), request(t, "alice", "wrong"), Asked); !errors.Is(err, upstream.ErrDenied) {
		t.Fatal(err)
	}
	y.login("alice", "right", Asked).Close()
	if n := logins(t, d, "", 1); n != 1 || y.number() != 1 {
		t.Errorf("%d logins, %d wait", n, y.number())
	}
}

func TestAMailboxThatIsGoneLeavesTheConnectionClean(t *testing.T) {
	d := testbed.StartDovecot(t, testbed.DovecotConfig{})
	y := Config{ReuseTTL: time.Minute}.pool(t, at(d, upstream.NoTLS, upstream.Passthrough))
	a := y.login("alice", "pw", Vouched)
	c, other := leased(t, a), leased(t, a)
	run(t, c, "CREATE box")
	run(t, c, "SELECT box")
	run(t, other, "SELECT box")
	c.Selected, other.Selected = true, true
	for _, command := range []string{"APPEND box {1+}\r\nx", "APPEND box {1+}\r\ny", "STORE 1:* +FLAGS (\\Deleted)", "EXPUNGE"} {
		run(t, other, command)
	}
	a.Return(c) // has not heard of any of it
	if y.number() != 1 {
		t.Fatalf("closed for %v", y.discarded)
	}
	if again := leased(t, a); again != c || len(run(t, again, "NOOP")) != 0 {
		t.Error("something was left on the connection")
	}
}

func TestConnectionsEndWithTheirDovecot(t *testing.T) {
	d := testbed.StartDovecot(t, testbed.DovecotConfig{})
	y := Config{ReuseTTL: time.Minute}.pool(t, at(d, upstream.ImplicitTLS, upstream.Passthrough))
	for _, u := range []string{"alice", "bob"} {
		a := y.login(u, "pw", Vouched)
		a.Return(leased(t, a))
		a.Close()
	}
	d.Kill()
	settled(t, "the janitor", func() bool { return y.number() == 0 && y.places() == 0 })
	if y.closedFor(metrics.DiscardTTL) > 0 {
		t.Errorf("closed for %v", y.discarded)
	}
	d.Restart()
	a := y.login("alice", "pw", Vouched)
	run(t, leased(t, a), "SELECT INBOX")
}

func TestAPasswordChangedAtDovecotIsRefusedOnceTheNewOneWasUsed(t *testing.T) {
	d := testbed.StartDovecot(t, testbed.DovecotConfig{Users: map[string]string{"alice": "old", "bob": "bob's"}})
	y := Config{ReuseTTL: time.Minute, CredCache: true}.pool(t, at(d, upstream.ImplicitTLS, upstream.Passthrough))
	for range 2 { // the second is believed
		y.login("alice", "old", Asked).Close()
		y.login("bob", "bob's", Asked).Close()
	}
	people := filepath.Join(d.Dir, "users")
	if err := os.WriteFile(people+".new", []byte("alice:another\nbob:bob's\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(people+".new", people); err != nil {
		t.Fatal(err)
	}
	settled(t, "the new password to be taken", func() bool {
		a, err := y.Login(context.Background(), request(t, "alice", "another"), Asked)
		if err == nil {
			a.Close()
		}
		return err == nil
	})
	settled(t, "Dovecot to see its connection end", func() bool { return strings.Count(d.Log(), "imap(alice)") == 1 })
	if _, err := y.Login(context.Background(), request(t, "alice", "old"), Asked); !errors.Is(err, upstream.ErrDenied) {
		t.Errorf("the old password: %v", err)
	}
	y.login("bob", "bob's", Asked).Close()
	y.login("alice", "another", Asked).Close()
	if n := logins(t, d, "", 3); n != 3 || y.number() != 2 || y.closedFor(metrics.DiscardCredentials) != 1 {
		t.Errorf("%d logins, %d wait, closed for %v", n, y.number(), y.discarded)
	}
	if log := d.Log(); strings.Contains(log, "imap(bob)") {
		t.Errorf("bob's connection has ended:\n%s", log)
	}
}
