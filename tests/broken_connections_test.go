package tests

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"imapgate/internal/config"
	"imapgate/internal/event"
	"imapgate/internal/faultproxy"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// Faults of the connection between gateway and backend, during the login and in the
// middle of a message.

var (
	breakActions = map[string]faultproxy.Action{
		"reset": faultproxy.Reset, "swallowed": faultproxy.Blackhole,
		"half closed": faultproxy.HalfClose, "stalled": faultproxy.Stall,
	}
	directions = map[string]faultproxy.Direction{
		"to the backend": faultproxy.ToTarget, "to the client": faultproxy.ToClient,
	}
)

// loginTimeout is the upstream login time-out of these gateways.
const loginTimeout = time.Second

// connBreak is a fault on the path to the backend of one user.
type connBreak struct {
	user      string
	action    faultproxy.Action
	direction faultproxy.Direction
	offset    int64
	proxy     *faultproxy.Proxy
}

func (c connBreak) apply() {
	c.proxy.SetRules(c.direction, faultproxy.Rules{Faults: []faultproxy.Fault{{Offset: c.offset, Action: c.action}}})
}

// startBreaks creates a path to the backend for every kind of fault at each offset, and a
// gateway that routes one user over each path.
func startBreaks(t *testing.T, backend *testbed.Dovecot, offsets ...int64) (*gateway, map[string]connBreak) {
	t.Helper()
	all := map[string]connBreak{}
	paths, users := map[string]string{}, map[string]string{}
	for action, do := range breakActions {
		for name, direction := range directions {
			for _, byte := range offsets {
				c := connBreak{user: fmt.Sprint("user", len(all)), action: do, direction: direction, offset: byte}
				c.proxy = faultproxy.Start(t, backend.Plain)
				paths[c.user], users[c.user] = plainBackend(c.proxy.Address()), c.user
				all[fmt.Sprintf("%s %s at %d", action, name, byte)] = c
			}
		}
	}
	answerSoon := func(cfg *config.Config) { cfg.Limits.AnswerTimeout = loginTimeout }
	return startTunedGateway(t, backend.CA, answerSoon, staticBackends(paths, users), fmt.Sprintf("limits: {upstream_login_timeout: %v}", loginTimeout)), all
}

func TestBrokenBackendLoginIsUnavailable(t *testing.T) {
	t.Parallel()
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password})
	// The greeting, ID, the login and its response: all these offsets are before the end
	// of the OK.
	g, all := startBreaks(t, backend, 0, 60, 150)
	for name, c := range all {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.apply()
			client := mustDial(t, g.endpoint(event.ImplicitTLS), "")
			got, err := client.Do("LOGIN " + c.user + " " + password)
			if err != nil || len(got) != 1 || got[0].Text != "a1 NO [UNAVAILABLE] Account is temporarily unavailable." {
				t.Errorf("%v, %v", got, err)
			}
			// The client's connection can be used for another attempt.
			c.proxy.SetRules(c.direction, faultproxy.Rules{})
			testkit.Eventually(t, "the login to work over the repaired path", func() bool {
				got, err := client.Do("LOGIN " + c.user + " " + password)
				if err != nil {
					t.Fatal(err)
				}
				return strings.Contains(formatResponses(got), " OK [CAPABILITY ")
			})
		})
	}
}

// breakOffset is in the middle of a message of brokenMessageSize bytes, whatever was sent
// before the message.
const (
	breakOffset       = 1 << 20
	brokenMessageSize = 2 * breakOffset
)

func TestTruncatedMessageIsNeverCompleted(t *testing.T) {
	t.Parallel()
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password})
	g, all := startBreaks(t, backend, breakOffset)
	message := messageOfSize(brokenMessageSize, "the whole truth")
	for name, c := range all {
		for _, listener := range []event.TLSMode{event.ImplicitTLS, event.NoTLS} {
			deliverDirect(t, backend, c.user, newMessage("first"))
			t.Run(fmt.Sprintf("%s, %s", name, listener), func(t *testing.T) {
				c.proxy.SetRules(c.direction, faultproxy.Rules{})
				client := mustLogin(t, g.endpoint(listener), c.user)
				if c.direction == faultproxy.ToClient {
					checkFetchBreak(t, client, c, message, backend)
				} else {
					checkAppendBreak(t, client, c, message, backend)
				}
			})
		}
	}
}

// isNoticeable reports whether the gateway can detect the fault. Silence is not
// detectable.
func (c connBreak) isNoticeable() bool {
	return c.action == faultproxy.Reset || c.action == faultproxy.HalfClose
}

// checkFetchBreak fetches a message that is cut off. The client must receive the beginning
// of the response and nothing else.
func checkFetchBreak(t *testing.T, client *RawClient, c connBreak, message []byte, backend *testbed.Dovecot) {
	deliverDirect(t, backend, c.user, message)
	if got, err := client.Do("SELECT INBOX"); err != nil || !strings.Contains(formatResponses(got), " OK ") {
		t.Fatal(got, err)
	}
	complete := fmt.Sprintf("* 2 FETCH (BODY[] {%d}\r\n%s)\r\n", len(message), message)
	c.apply()
	if _, err := client.Send("FETCH 2:* BODY.PEEK[]"); err != nil {
		t.Fatal(err)
	}
	got, ended := readUntilSilent(client, c.isNoticeable())
	if len(got) == 0 || len(got) > breakOffset+4096 {
		t.Errorf("%d bytes arrived, the fault was at %d", len(got), breakOffset)
	}
	if !strings.HasPrefix(complete, string(got)) {
		t.Errorf("not the beginning of the response: it starts %.80q and ends %.80q", got, got[max(0, len(got)-80):])
	}
	if ended != c.isNoticeable() {
		t.Errorf("the client saw an end: %t", ended)
	}
}

// checkAppendBreak appends a message that is cut off. It must be neither confirmed nor
// stored.
func checkAppendBreak(t *testing.T, client *RawClient, c connBreak, message []byte, backend *testbed.Dovecot) {
	before := countMessages(t, backend, c.user)
	c.apply()
	if _, err := fmt.Fprintf(client, "a2 APPEND INBOX {%d+}\r\n", len(message)); err != nil {
		t.Fatal(err)
	}
	wrote := make(chan struct{})
	go func() { // ends when the message is written or the connection closed
		defer close(wrote)
		_, _ = client.conn.Write(append(bytes.Clone(message), "\r\n"...)) // may fail
	}()
	got, ended := readUntilSilent(client, c.isNoticeable())
	if bytes.Contains(got, []byte("a2 OK")) {
		t.Errorf("a message cut short was confirmed: %q", got)
	}
	for line := range strings.Lines(string(got)) {
		if !strings.HasPrefix(line, "* ") && !strings.HasPrefix(line, "a2 NO ") && !strings.HasPrefix(line, "a2 BAD ") {
			t.Errorf("an unexpected response: %q", line)
		}
	}
	if ended != c.isNoticeable() {
		t.Errorf("the client saw an end: %t", ended)
	}
	_ = client.Close()
	<-wrote
	c.proxy.ResetConns()
	if after := countMessages(t, backend, c.user); after != before {
		t.Errorf("%d messages, %d before: a message cut short was stored", after, before)
	}
}

// silenceTime is how long a read must return nothing to count as silence.
const silenceTime = 700 * time.Millisecond

// readUntilSilent reads until the connection ends. Unless untilEnd, it also returns after
// silenceTime without a byte.
func readUntilSilent(c *RawClient, untilEnd bool) (got []byte, ended bool) {
	buf, wait := make([]byte, 64<<10), silenceTime
	if untilEnd {
		wait = Timeout
	}
	for {
		_ = c.conn.SetReadDeadline(time.Now().Add(wait)) // Read has the error
		n, err := c.r.Read(buf)
		got = append(got, buf[:n]...)
		if err != nil {
			return got, isConnEnd(err)
		}
	}
}

// countMessages counts the messages of a user's INBOX, directly at the backend.
func countMessages(t *testing.T, backend *testbed.Dovecot, user string) (n int) {
	t.Helper()
	c := mustLogin(t, directEndpoint(backend)(t, user), user)
	got, err := c.Do("STATUS INBOX (MESSAGES)")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(got[0].Text, "* STATUS INBOX (MESSAGES %d)", &n); err != nil {
		t.Fatalf("%v: %v", got, err)
	}
	return n
}
