package tests

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

func TestClientsReconnectAfterTheirBackendStops(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(*testbed.Dovecot)
	}{{"by TERM", (*testbed.Dovecot).Stop}, {"by KILL", (*testbed.Dovecot).Kill}} {
		t.Run(c.name, func(t *testing.T) {
			backend := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password})
			g := startGateway(t, backend.CA, singleBackend(backendConf(backend, event.ImplicitTLS)))
			clients := make([]*RawClient, 50)
			for i := range clients {
				clients[i] = mustLogin(t, g.endpoint(listeners[i%len(listeners)]), fmt.Sprint("user", i))
				if i%2 == 0 {
					if _, err := clients[i].Send("IDLE"); err != nil {
						t.Fatal(err)
					}
				}
			}
			var readers errgroup.Group
			for _, client := range clients {
				readers.Go(func() error { return readToEnd(client) })
			}
			c.end(backend)
			if err := readers.Wait(); err != nil {
				t.Fatal(err)
			}
			expectUnavailable(t, g, "user0")
			backend.Restart()
			testkit.Eventually(t, "the gateway to find the backend again", func() bool {
				return tryLogin(g, "user0") == nil
			})
			for i := range clients {
				if err := tryLogin(g, fmt.Sprint("user", i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// mustLogin connects and logs in.
func mustLogin(t testing.TB, e endpoint, user string) *RawClient {
	t.Helper()
	c := mustDial(t, e, "")
	got, err := c.Do("LOGIN " + user + " " + password)
	if err != nil || !strings.Contains(formatResponses(got), " OK [CAPABILITY ") {
		t.Fatalf("log in as %s: %v, %v", user, got, err)
	}
	return c
}

// readToEnd reads until the connection ends in any way.
func readToEnd(c *RawClient) error {
	for {
		if _, err := c.Read(); isConnEnd(err) {
			return nil
		} else if err != nil {
			return fmt.Errorf("instead of an end: %w", err)
		}
	}
}

// isConnEnd reports whether err is the end of the connection, of any kind.
func isConnEnd(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET)
}

// tryLogin runs a short session: login, SELECT and logout.
func tryLogin(g *gateway, user string) error {
	c, err := dialIMAP(g.endpoint(event.ImplicitTLS), "")
	if err != nil {
		return err
	}
	defer c.Close() // it has logged out
	for _, command := range []string{"LOGIN " + user + " " + password, "SELECT INBOX", "LOGOUT"} {
		if got, err := c.Do(command); err != nil || !strings.Contains(got[len(got)-1].Text, " OK ") {
			return fmt.Errorf("%s: %v, %w", command, got, err)
		}
	}
	return nil
}

// expectUnavailable checks that a login gets UNAVAILABLE, not AUTHENTICATIONFAILED.
func expectUnavailable(t *testing.T, g *gateway, user string) {
	t.Helper()
	c := mustDial(t, g.endpoint(event.ImplicitTLS), "")
	got, err := c.Do("LOGIN " + user + " " + password)
	if err != nil || got[0].Text != "a1 NO [UNAVAILABLE] Account is temporarily unavailable." {
		t.Errorf("a login while the backend is down: %v, %v", got, err)
	}
}

func TestClientThatDoesNotReadBlocksNoOther(t *testing.T) {
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password})
	message := attachment(20 << 20)
	deliverDirect(t, backend, "slow", message)
	g := startGateway(t, backend.CA, singleBackend(backendConf(backend, event.ImplicitTLS)))
	for _, listener := range listeners {
		slow := mustLogin(t, g.endpoint(listener), "slow")
		if _, err := slow.Do("SELECT INBOX"); err != nil {
			t.Fatal(err)
		}
		tag, err := slow.Send("FETCH 1 BODY.PEEK[]") // without reading the response
		if err != nil {
			t.Fatal(err)
		}
		var others errgroup.Group
		for i := range 20 {
			others.Go(func() error { return tryLogin(g, fmt.Sprint("quick", i)) })
		}
		if err := others.Wait(); err != nil {
			t.Error(err)
		}
		got, err := slow.ReadUntil(tag)
		if err != nil || len(got) < 2 || len(got[0].Literals) != 1 || string(got[0].Literals[0]) != string(message) {
			t.Fatalf("the slow client did not get its mail in the end: %d responses, %v", len(got), err)
		}
		_ = slow.Close()
	}
}

func TestStoppingGatewayDrainsItsSessions(t *testing.T) {
	const drain = 4 * time.Second
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password})
	g := startGateway(t, backend.CA, singleBackend(backendConf(backend, event.ImplicitTLS)), fmt.Sprintf("limits: {drain_timeout: %v}", drain))
	var before, preauthClient, staying []*RawClient
	for i, listener := range listeners {
		before = append(before, mustDial(t, g.endpoint(listener), ""))
		preauthClient = append(preauthClient, mustLogin(t, g.endpoint(listener), fmt.Sprint("leaving", i)))
		staying = append(staying, mustLogin(t, g.endpoint(listener), fmt.Sprint("staying", i)))
	}
	start := time.Now()
	g.terminate()
	for i, c := range before {
		if r, err := c.Read(); err != nil || r.Text != "* BYE [UNAVAILABLE] Server is going down." {
			t.Errorf("before login, %s: %v, %v", listeners[i], r, err)
		}
	}
	testkit.Eventually(t, "no new client to be greeted", func() bool {
		c, err := dialIMAP(g.endpoint(event.NoTLS), "")
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
	for i := range listeners {
		for _, c := range []*RawClient{preauthClient[i], staying[i]} {
			if got, err := c.Do("SELECT INBOX"); err != nil || !strings.Contains(formatResponses(got), " OK [READ-WRITE] ") {
				t.Errorf("a session on %s while the gateway drains: %v, %v", listeners[i], got, err)
			}
		}
		if got, err := preauthClient[i].Do("LOGOUT"); err != nil || !strings.Contains(formatResponses(got), "* BYE ") {
			t.Errorf("LOGOUT while the gateway drains: %v, %v", got, err)
		}
		_ = preauthClient[i].Close()
	}
	for i, c := range staying {
		// In mode splice the gateway sends no bytes of its own, because it does not know
		// where a response ends.
		if r, err := c.Read(); !errors.Is(err, io.EOF) {
			t.Errorf("a session that stays, on %s: %v, %v", listeners[i], r, err)
		}
	}
	if elapsed := time.Since(start); elapsed < drain-100*time.Millisecond {
		t.Errorf("the drain took %v; want %v", elapsed, drain)
	}
	select {
	case <-g.drained:
	case <-time.After(Timeout):
		t.Error("the gateway has no session and does not stop")
	}
}
