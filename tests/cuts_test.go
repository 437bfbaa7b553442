package tests

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"imapgate/internal/faultproxy"
	"imapgate/internal/testbed"
	"imapgate/proxy"
	"imapgate/proxy/upstream"
	"imapgate/routing"
)

// A connection between gateway and backend that breaks, at the login and in the
// middle of a message.

var (
	breaks = map[string]faultproxy.Action{
		"reset": faultproxy.Reset, "swallowed": faultproxy.Blackhole,
		"half closed": faultproxy.HalfClose, "stalled": faultproxy.Stall,
	}
	directions = map[string]faultproxy.Direction{
		"to the backend": faultproxy.ToTarget, "to the client": faultproxy.ToClient,
	}
)

// cutLimit is the upstream login time-out of these gateways.
const cutLimit = time.Second

// cut is one break of one connection, which belongs to one user.
type cut struct {
	user   string
	action faultproxy.Action
	way    faultproxy.Direction
	at     int64
	link   *faultproxy.Proxy
}

func (c cut) arm() {
	c.link.Set(c.way, faultproxy.Rules{Faults: []faultproxy.Fault{{At: c.at, Do: c.action}}})
}

// cuts makes a path to the backend for every break at every byte given, and a
// gateway that leads each user over its own.
func cuts(t *testing.T, backend *testbed.Dovecot, at ...int64) (*running, map[string]cut) {
	t.Helper()
	all := map[string]cut{}
	paths, users := map[string]upstream.Config{}, map[string]string{}
	for action, do := range breaks {
		for direction, way := range directions {
			for _, byte := range at {
				c := cut{user: fmt.Sprint("user", len(all)), action: do, way: way, at: byte}
				c.link = faultproxy.Start(t, backend.Plain)
				path := to(backend, upstream.NoTLS)
				path.Address, path.LoginTimeout, path.AnswerTimeout = c.link.Address(), cutLimit, cutLimit
				paths[c.user], users[c.user] = path, c.user
				all[fmt.Sprintf("%s %s at %d", action, direction, byte)] = c
			}
		}
	}
	return startGateway(t, options{
		ca: backend.CA, backends: paths, routing: routing.Config{Static: routing.Static{Users: users}},
	}), all
}

func TestALoginThatBreaksAnywhereIsUnavailable(t *testing.T) {
	t.Parallel()
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password})
	// The greeting, what is said of the client, the login and its answer: all
	// these bytes come before the end of the OK.
	g, all := cuts(t, backend, 0, 60, 150)
	for name, c := range all {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.arm()
			client := enter(t, g.at(proxy.ImplicitTLS), "")
			got, err := client.Do("LOGIN " + c.user + " " + password)
			if err != nil || len(got) != 1 || got[0].Text != "a1 NO [UNAVAILABLE] Account is temporarily unavailable." {
				t.Errorf("%v, %v", got, err)
			}
			// The connection is good for another try.
			c.link.Set(c.way, faultproxy.Rules{})
			testbed.Within(t, recovery, "the login to work over the mended path", func() bool {
				got, err := client.Do("LOGIN " + c.user + " " + password)
				if err != nil {
					t.Fatal(err)
				}
				return strings.Contains(shown(got), " OK [CAPABILITY ")
			})
		})
	}
}

// half is a byte in the middle of a message of size bytes, whatever was said
// before it.
const (
	half = 1 << 20
	size = 2 * half
)

func TestAMessageCutShortIsNeverCompleted(t *testing.T) {
	t.Parallel()
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password})
	g, all := cuts(t, backend, half)
	message := mailOf(size, "the whole truth")
	for name, c := range all {
		for _, listener := range []proxy.TLSMode{proxy.ImplicitTLS, proxy.NoTLS} {
			deliver(t, backend, c.user, mail("first"))
			t.Run(fmt.Sprintf("%s, %s", name, listener), func(t *testing.T) {
				c.link.Set(c.way, faultproxy.Rules{})
				client := loggedIn(t, g.at(listener), c.user)
				if c.way == faultproxy.ToClient {
					fetchCut(t, client, c, message, backend)
				} else {
					appendCut(t, client, c, message, backend)
				}
			})
		}
	}
}

// ends says whether the gateway can notice the break: nobody can notice silence.
func (c cut) ends() bool { return c.action == faultproxy.Reset || c.action == faultproxy.HalfClose }

// fetchCut reads a message that breaks off: what comes is its beginning, and
// nothing else.
func fetchCut(t *testing.T, client *RawClient, c cut, message []byte, backend *testbed.Dovecot) {
	deliver(t, backend, c.user, message)
	if got, err := client.Do("SELECT INBOX"); err != nil || !strings.Contains(shown(got), " OK ") {
		t.Fatal(got, err)
	}
	whole := fmt.Sprintf("* 2 FETCH (BODY[] {%d}\r\n%s)\r\n", len(message), message)
	c.arm()
	if _, err := client.Send("FETCH 2:* BODY.PEEK[]"); err != nil {
		t.Fatal(err)
	}
	got, ended := collect(client, c.ends())
	if len(got) == 0 || len(got) > half+4096 {
		t.Errorf("%d bytes came, of which %d were let through", len(got), half)
	}
	if !strings.HasPrefix(whole, string(got)) {
		t.Errorf("what came is not the beginning of the response: it starts %.80q and ends %.80q", got, got[max(0, len(got)-80):])
	}
	if ended != c.ends() {
		t.Errorf("the client saw an end: %t", ended)
	}
}

// appendCut stores a message that breaks off: it is not confirmed, and not
// stored.
func appendCut(t *testing.T, client *RawClient, c cut, message []byte, backend *testbed.Dovecot) {
	before := messages(t, backend, c.user)
	c.arm()
	if _, err := fmt.Fprintf(client, "a2 APPEND INBOX {%d+}\r\n", len(message)); err != nil {
		t.Fatal(err)
	}
	wrote := make(chan struct{})
	go func() { // until the message is written or the connection closed
		defer close(wrote)
		_, _ = client.conn.Write(append(bytes.Clone(message), "\r\n"...)) // breaks off
	}()
	got, ended := collect(client, c.ends())
	if bytes.Contains(got, []byte("a2 OK")) {
		t.Errorf("a message cut short was confirmed: %q", got)
	}
	for line := range strings.Lines(string(got)) {
		if !strings.HasPrefix(line, "* ") && !strings.HasPrefix(line, "a2 NO ") && !strings.HasPrefix(line, "a2 BAD ") {
			t.Errorf("bytes of nobody: %q", line)
		}
	}
	if ended != c.ends() {
		t.Errorf("the client saw an end: %t", ended)
	}
	_ = client.Close()
	<-wrote
	c.link.Reset()
	if after := messages(t, backend, c.user); after != before {
		t.Errorf("%d messages, %d before: a message cut short was stored", after, before)
	}
}

// quietFor is how long nothing must come to be sure that nothing will.
const quietFor = 700 * time.Millisecond

// collect reads everything until the connection ends, or is quiet where it need not.
func collect(c *RawClient, ends bool) (got []byte, ended bool) {
	buf, wait := make([]byte, 64<<10), quietFor
	if ends {
		wait = Patience
	}
	for {
		_ = c.conn.SetReadDeadline(time.Now().Add(wait)) // a closed connection says so below
		n, err := c.r.Read(buf)
		got = append(got, buf[:n]...)
		if err != nil {
			return got, isEnd(err)
		}
	}
}

// messages counts a user's INBOX at the backend itself.
func messages(t *testing.T, backend *testbed.Dovecot, user string) (n int) {
	t.Helper()
	c := loggedIn(t, directly(backend)(t, user), user)
	got, err := c.Do("STATUS INBOX (MESSAGES)")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(got[0].Text, "* STATUS INBOX (MESSAGES %d)", &n); err != nil {
		t.Fatalf("%v: %v", got, err)
	}
	return n
}
