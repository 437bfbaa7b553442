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

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/internal/parking"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
	"imapgate/proxy/relay/mux/lease"
	"imapgate/proxy/upstream"
)

// newDovecotBackend returns a backend at a Dovecot, with TLS or without.
func newDovecotBackend(d *testbed.Dovecot, mode event.TLSMode, login string) *upstream.Backend {
	cfg := upstream.Config{Name: "dovecot", Settings: upstream.Settings{Address: d.Plain, TLS: mode, Login: login, Master: upstream.Master{User: "gateway", Password: identity.NewSecret("m-pw")}},
		WrapConn: func(c *net.TCPConn) net.Conn { return parking.NewBufferedConn(c) }}
	if mode != event.NoTLS {
		cfg.TLSConfig = d.CA.ClientTLSFunc(testbed.DovecotName)
	}
	if mode == event.ImplicitTLS {
		cfg.Address = d.TLS
	}
	return upstream.New(testbed.WithDefaults(cfg), upstream.Hooks{}, nopLog())
}

func loginModes() map[string][2]string {
	return map[string][2]string{
		"plain":    {string(event.NoTLS), upstream.Passthrough},
		"tls":      {string(event.ImplicitTLS), upstream.Passthrough},
		"starttls": {string(event.StartTLS), upstream.Passthrough},
		"master":   {string(event.ImplicitTLS), upstream.MasterLogin},
	}
}

// runCommand runs a command that must succeed and returns its untagged responses.
func runCommand(t testing.TB, c *lease.Conn, command string) (responses []string) {
	t.Helper()
	res, err := c.Run(time.Now().Add(10*time.Second), command, func(b []byte) error {
		responses = append(responses, string(b))
		return nil
	})
	if err != nil || res.Name != "OK" {
		t.Fatalf("%s: %v %s %s", command, err, res.Name, res.Text)
	}
	return responses
}

// countLogins returns the number of logins of a user ("" for all), after at least wanted of
// them are in the log. Dovecot writes it asynchronously.
func countLogins(t testing.TB, d *testbed.Dovecot, user string, wanted int) int {
	t.Helper()
	testkit.Eventually(t, "logins in Dovecot's log", func() bool { return len(d.Logins(user)) >= wanted })
	return len(d.Logins(user))
}

func TestDovecotLoginIsReusedByManySessions(t *testing.T) {
	d := testbed.StartDovecot(t, testbed.DovecotConfig{Master: "gateway", MasterPassword: "m-pw"})
	for name, mode := range loginModes() {
		t.Run(name, func(t *testing.T) {
			tp := Config{Settings: Settings{PoolIdleTimeout: time.Minute}}.newTestPool(t, newDovecotBackend(d, event.TLSMode(mode[0]), mode[1]))
			for range 5 {
				a := tp.mustLogIn(name, "pw", VerifiedHere)
				c := acquireLease(t, a, "QRESYNC", "CONDSTORE")
				runCommand(t, c, "SELECT INBOX")
				c.Selected = true
				a.Release(c)
				a.Close()
			}
			if n := countLogins(t, d, name, 1); n != 1 || tp.reused != 4 {
				t.Errorf("%d logins, %d reused, closed for %v", n, tp.reused, tp.discarded)
			}
			a := tp.mustLogIn(name, "pw", VerifiedHere)
			c := acquireLease(t, a)
			runCommand(t, c, "SELECT INBOX")
			runCommand(t, c, "APPEND INBOX {1+}\r\nx")
			if responses := strings.Join(runCommand(t, c, "FETCH 1:* (FLAGS)"), ""); strings.Contains(responses, "MODSEQ") {
				t.Errorf("a session that enabled nothing received %q", responses)
			}
			c.Selected = true
			a.Release(c)
			tp.ageAnswer(c, time.Hour) // validated by NOOP
			if acquireLease(t, a) != c || tp.idleCount() != 1 {
				t.Errorf("not reused: closed for %v", tp.discarded)
			}
		})
	}
}

func TestDovecotExtensionsAreEnabled(t *testing.T) {
	d := testbed.StartDovecot(t, testbed.DovecotConfig{})
	tp := Config{Settings: Settings{PoolIdleTimeout: time.Minute}}.newTestPool(t, newDovecotBackend(d, event.NoTLS, upstream.Passthrough))
	a := tp.mustLogIn("alice", "pw", VerifiedHere)
	for _, names := range [][]string{{"QRESYNC", "X-UNKNOWN"}, {"CONDSTORE"}, {"CONDSTORE", "QRESYNC", "SORT"}} {
		enabled, err := a.ProbeExtensions(context.Background(), names)
		if err != nil || len(enabled) == 0 {
			t.Fatalf("%q: %q %v", names, enabled, err)
		}
		set := imap.Extensions("").With(enabled...)
		c, err := a.Acquire(context.Background(), set)
		if err != nil || c.Enabled != set || set.Has("SORT") {
			t.Fatalf("%q: %v", set, err)
		}
		a.Release(c)
	}
}

func TestDovecotVerifiesUnverifiedLogins(t *testing.T) {
	d := testbed.StartDovecot(t, testbed.DovecotConfig{Users: map[string]string{"alice": "right"}})
	tp := Config{Settings: Settings{PoolIdleTimeout: time.Minute, CredentialCache: true}}.newTestPool(t, newDovecotBackend(d, event.ImplicitTLS, upstream.Passthrough))
	tp.mustLogIn("alice", "right", BackendDecides).Close()
	if _, err := tp.Login(context.Background(), newRequest(t, "alice", "wrong"), BackendDecides); !errors.Is(err, upstream.ErrDenied) {
		t.Fatal(err)
	}
	tp.mustLogIn("alice", "right", BackendDecides).Close()
	if n := countLogins(t, d, "", 1); n != 1 || tp.idleCount() != 1 {
		t.Errorf("%d logins, %d idle", n, tp.idleCount())
	}
}

func TestUnselectOfEmptiedMailboxLeavesConnectionClean(t *testing.T) {
	d := testbed.StartDovecot(t, testbed.DovecotConfig{})
	tp := Config{Settings: Settings{PoolIdleTimeout: time.Minute}}.newTestPool(t, newDovecotBackend(d, event.NoTLS, upstream.Passthrough))
	a := tp.mustLogIn("alice", "pw", VerifiedHere)
	c, other := acquireLease(t, a), acquireLease(t, a)
	runCommand(t, c, "CREATE box")
	runCommand(t, c, "SELECT box")
	runCommand(t, other, "SELECT box")
	c.Selected, other.Selected = true, true
	for _, command := range []string{"APPEND box {1+}\r\nx", "APPEND box {1+}\r\ny", "STORE 1:* +FLAGS (\\Deleted)", "EXPUNGE"} {
		runCommand(t, other, command)
	}
	a.Release(c) // its responses to the changes are unread
	if tp.idleCount() != 1 {
		t.Fatalf("closed for %v", tp.discarded)
	}
	if again := acquireLease(t, a); again != c || len(runCommand(t, again, "NOOP")) != 0 {
		t.Error("a response was left on the connection")
	}
}

func TestRestartedDovecotLosesIdleConnections(t *testing.T) {
	d := testbed.StartDovecot(t, testbed.DovecotConfig{})
	tp := Config{Settings: Settings{PoolIdleTimeout: time.Minute}}.newTestPool(t, newDovecotBackend(d, event.ImplicitTLS, upstream.Passthrough))
	for _, u := range []string{"alice", "bob"} {
		a := tp.mustLogIn(u, "pw", VerifiedHere)
		a.Release(acquireLease(t, a))
		a.Close()
	}
	d.Kill()
	testkit.Eventually(t, "the cleaner", func() bool { return tp.idleCount() == 0 && tp.slotCount() == 0 })
	if tp.discardedFor(event.DiscardTTL) > 0 {
		t.Errorf("closed for %v", tp.discarded)
	}
	d.Restart()
	a := tp.mustLogIn("alice", "pw", VerifiedHere)
	runCommand(t, acquireLease(t, a), "SELECT INBOX")
}

func TestOldPasswordIsRefusedAfterDovecotPasswordChange(t *testing.T) {
	d := testbed.StartDovecot(t, testbed.DovecotConfig{Users: map[string]string{"alice": "old", "bob": "bob's"}})
	tp := Config{Settings: Settings{PoolIdleTimeout: time.Minute, CredentialCache: true}}.newTestPool(t, newDovecotBackend(d, event.ImplicitTLS, upstream.Passthrough))
	for range 2 { // the second login is cached
		tp.mustLogIn("alice", "old", BackendDecides).Close()
		tp.mustLogIn("bob", "bob's", BackendDecides).Close()
	}
	usersFile := filepath.Join(d.Dir, "users")
	if err := os.WriteFile(usersFile+".new", []byte("alice:another\nbob:bob's\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(usersFile+".new", usersFile); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "the new password to be accepted", func() bool {
		a, err := tp.Login(context.Background(), newRequest(t, "alice", "another"), BackendDecides)
		if err == nil {
			a.Close()
		}
		return err == nil
	})
	testkit.Eventually(t, "Dovecot to see its connection end", func() bool { return strings.Count(d.Log(), "imap(alice)") == 1 })
	if _, err := tp.Login(context.Background(), newRequest(t, "alice", "old"), BackendDecides); !errors.Is(err, upstream.ErrDenied) {
		t.Errorf("the old password: %v", err)
	}
	tp.mustLogIn("bob", "bob's", BackendDecides).Close()
	tp.mustLogIn("alice", "another", BackendDecides).Close()
	if n := countLogins(t, d, "", 3); n != 3 || tp.idleCount() != 2 || tp.discardedFor(event.DiscardCredentials) != 1 {
		t.Errorf("%d logins, %d idle, closed for %v", n, tp.idleCount(), tp.discarded)
	}
	if log := d.Log(); strings.Contains(log, "imap(bob)") {
		t.Errorf("bob's connection has ended:\n%s", log)
	}
}
