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

	"imapgate/internal/testbed"
	"imapgate/proxy"
	"imapgate/proxy/upstream"
)

func TestClientsOfABackendThatEndsSeeItAndComeBack(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(*testbed.Dovecot)
	}{{"by TERM", (*testbed.Dovecot).Stop}, {"by KILL", (*testbed.Dovecot).Kill}} {
		t.Run(c.name, func(t *testing.T) {
			backend := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password})
			g := startGateway(t, options{ca: backend.CA, backends: map[string]upstream.Config{
				only: to(backend, upstream.ImplicitTLS),
			}})
			clients := make([]*RawClient, 50)
			for i := range clients {
				clients[i] = loggedIn(t, g.at(listeners[i%len(listeners)]), fmt.Sprint("user", i))
				if i%2 == 0 {
					if _, err := clients[i].Send("IDLE"); err != nil {
						t.Fatal(err)
					}
				}
			}
			var readers errgroup.Group
			for _, client := range clients {
				readers.Go(func() error { return untilEnd(client) })
			}
			c.end(backend)
			if err := readers.Wait(); err != nil {
				t.Fatal(err)
			}
			turnedAway(t, g, "user0")
			backend.Restart()
			testbed.Within(t, recovery, "the gateway to find the backend again", func() bool {
				return canLogIn(g, "user0") == nil
			})
			for i := range clients {
				if err := canLogIn(g, fmt.Sprint("user", i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// loggedIn is a client after its login.
func loggedIn(t testing.TB, e endpoint, user string) *RawClient {
	t.Helper()
	c := enter(t, e, "")
	got, err := c.Do("LOGIN " + user + " " + password)
	if err != nil || !strings.Contains(shown(got), " OK [CAPABILITY ") {
		t.Fatalf("log in as %s: %v, %v", user, got, err)
	}
	return c
}

// untilEnd reads until the connection ends, in whatever way.
func untilEnd(c *RawClient) error {
	for {
		if _, err := c.Read(); isEnd(err) {
			return nil
		} else if err != nil {
			return fmt.Errorf("instead of an end: %w", err)
		}
	}
}

// isEnd says whether the connection has ended, in whatever way.
func isEnd(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET)
}

// canLogIn is a whole short session.
func canLogIn(g *running, user string) error {
	c, err := reach(g.at(proxy.ImplicitTLS), "")
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

// turnedAway wants a login to be called unavailable, never a wrong password.
func turnedAway(t *testing.T, g *running, user string) {
	t.Helper()
	c := enter(t, g.at(proxy.ImplicitTLS), "")
	got, err := c.Do("LOGIN " + user + " " + password)
	if err != nil || got[0].Text != "a1 NO [UNAVAILABLE] Account is temporarily unavailable." {
		t.Errorf("a login while the backend is away: %v, %v", got, err)
	}
}

func TestAClientThatDoesNotReadHoldsUpNobodyElse(t *testing.T) {
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password})
	film := attachment(20 << 20)
	deliver(t, backend, "slow", film)
	g := startGateway(t, options{ca: backend.CA, backends: map[string]upstream.Config{
		only: to(backend, upstream.ImplicitTLS),
	}})
	for _, listener := range listeners {
		slow := loggedIn(t, g.at(listener), "slow")
		if _, err := slow.Do("SELECT INBOX"); err != nil {
			t.Fatal(err)
		}
		tag, err := slow.Send("FETCH 1 BODY.PEEK[]") // and then it does not read
		if err != nil {
			t.Fatal(err)
		}
		var others errgroup.Group
		for i := range 20 {
			others.Go(func() error { return canLogIn(g, fmt.Sprint("quick", i)) })
		}
		if err := others.Wait(); err != nil {
			t.Error(err)
		}
		got, err := slow.Until(tag)
		if err != nil || len(got) < 2 || len(got[0].Literals) != 1 || string(got[0].Literals[0]) != string(film) {
			t.Fatalf("the slow client did not get its mail at last: %d responses, %v", len(got), err)
		}
		_ = slow.Close()
	}
}

func TestAGatewayThatStopsLetsSessionsEnd(t *testing.T) {
	const drain = 4 * time.Second
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password})
	g := startGateway(t, options{ca: backend.CA, drain: drain, backends: map[string]upstream.Config{
		only: to(backend, upstream.ImplicitTLS),
	}})
	var before, leaving, staying []*RawClient
	for i, listener := range listeners {
		before = append(before, enter(t, g.at(listener), ""))
		leaving = append(leaving, loggedIn(t, g.at(listener), fmt.Sprint("leaving", i)))
		staying = append(staying, loggedIn(t, g.at(listener), fmt.Sprint("staying", i)))
	}
	began := time.Now()
	g.terminate()
	for i, c := range before {
		if r, err := c.Read(); err != nil || r.Text != "* BYE [UNAVAILABLE] Server is going down." {
			t.Errorf("before login, %s: %v, %v", listeners[i], r, err)
		}
	}
	testbed.Within(t, Patience, "no new client to be greeted", func() bool {
		c, err := reach(g.at(proxy.NoTLS), "")
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
	for i := range listeners {
		for _, c := range []*RawClient{leaving[i], staying[i]} {
			if got, err := c.Do("SELECT INBOX"); err != nil || !strings.Contains(shown(got), " OK [READ-WRITE] ") {
				t.Errorf("a session on %s while the gateway drains: %v, %v", listeners[i], got, err)
			}
		}
		if got, err := leaving[i].Do("LOGOUT"); err != nil || !strings.Contains(shown(got), "* BYE ") {
			t.Errorf("LOGOUT while the gateway drains: %v, %v", got, err)
		}
		_ = leaving[i].Close()
	}
	for i, c := range staying {
		// Not one byte of the gateway's own: it cannot know where a response ends.
		if r, err := c.Read(); !errors.Is(err, io.EOF) {
			t.Errorf("a session that stays, on %s: %v, %v", listeners[i], r, err)
		}
	}
	if took := time.Since(began); took < drain-100*time.Millisecond {
		t.Errorf("the drain took %v; want %v", took, drain)
	}
	select {
	case <-g.served:
	case <-time.After(Patience):
		t.Error("the gateway has no session and goes on")
	}
}
