package tests

import (
	"fmt"
	"strings"
	"testing"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// loginAnswer logs in on a new TLS connection and returns it with the response.
func loginAnswer(t *testing.T, g *gateway, user, password string) (*RawClient, string) {
	t.Helper()
	e := g.endpoint(event.ImplicitTLS)
	c, err := Connect(e.address, e.tls)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() }) // most tests have closed it already
	if _, err := c.Read(); err != nil {
		t.Fatal(err)
	}
	got, err := c.Do("LOGIN " + user + " " + password)
	if err != nil {
		t.Fatal(err)
	}
	_, answer, _ := strings.Cut(got[len(got)-1].Text, " ")
	return c, answer
}

func TestUserLimitHoldsInEveryModeAndIsReleased(t *testing.T) {
	t.Parallel()
	backend, store := testbed.StartDovecot(t, testbed.DovecotConfig{}), testbed.StartRedis(t)
	store.CLI("HSET", "imapgate:default", "backend", onlyBackend)
	for _, mode := range []event.Mode{event.ModeSplice, event.ModeReuse, event.ModeResume} {
		t.Run(string(mode), func(t *testing.T) {
			g := startGateway(t, backend.CA, backendsConf(map[string]string{onlyBackend: backendConf(backend, event.ImplicitTLS) + muxMode(mode, "")}),
				fmt.Sprintf("redis: {addresses: [%q]}", store.Address), "limits: {connections: {per_user: 2}}")
			user := "user-" + string(mode) + "@example.org"
			first, answer := loginAnswer(t, g, user, "pw")
			if !strings.HasPrefix(answer, "OK") {
				t.Fatal(answer)
			}
			second, _ := loginAnswer(t, g, user, "pw")
			for range 3 {
				if _, answer := loginAnswer(t, g, user, "pw"); answer != "NO [LIMIT] Too many connections." {
					t.Fatal(answer)
				}
			}
			_ = first.conn.Close() // without LOGOUT
			testkit.Eventually(t, "a free place", func() bool {
				c, answer := loginAnswer(t, g, user, "pw")
				_ = c.Close()
				return strings.HasPrefix(answer, "OK")
			})
			if _, err := second.Do("NOOP"); err != nil {
				t.Error(err)
			}
			// The gateway stops with second logged in. Its cleanup checks that no slot is taken.
		})
	}
}

func TestBackendDenialsCauseABan(t *testing.T) {
	t.Parallel()
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{})
	g := startGateway(t, backend.CA, singleBackend(backendConf(backend, event.ImplicitTLS)),
		"limits: {exempt_networks: [], failures: {ban_after: 5, ban_duration: 1h, delay: 0s}}")
	for i := range 5 {
		if _, answer := loginAnswer(t, g, "alice@example.org", fmt.Sprint("guess", i)); answer != "NO [AUTHENTICATIONFAILED] Authentication failed." {
			t.Fatal(answer)
		}
	}
	e := g.endpoint(event.NoTLS)
	c, err := Connect(e.address, e.tls)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if r, err := c.Read(); err != nil || r.Text != "* BYE [UNAVAILABLE] Too many connections." {
		t.Errorf("%v, %v", r, err)
	}
}
