package tests

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"imapgate/internal/event"
	"imapgate/internal/faultproxy"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// restartTest is a gateway, a backend that is restarted, and client sessions.
type restartTest struct {
	// Set once.
	*testing.T
	backend      mailServer
	faultProxy   *faultproxy.Proxy // between gateway and backend
	mutedProxy   *faultproxy.Proxy // the same for muted users
	g            *gateway
	largeMessage []byte

	mu       sync.Mutex
	sessions []*restingSession // Guarded by mu.
}

// restingSession is a client session across a backend restart.
type restingSession struct {
	// Set once.
	*RawClient
	user   string
	resume func(*restingSession) error // called when the backend is back
	tag    string                      // of the command in progress
}

const (
	restingUserCount = 20        // users with idle sessions
	initialMessages  = 3         // in the mailbox of each
	mutedUser        = "muted"   // prefix of users whose responses are withheld
	largeMailUser    = "large"   // user with a large message
	halfSize         = 512 << 10 // half of the size of an appended message
)

// restartUsers returns all users.
func restartUsers() []string {
	all := []string{largeMailUser}
	for i := range restingUserCount {
		for _, prefix := range []string{"resting", "sync", "nonsync", mutedUser} {
			all = append(all, fmt.Sprint(prefix, i))
		}
	}
	return all
}

// startRestartTest starts backend and gateway and fills the mailboxes.
func startRestartTest(t *testing.T) *restartTest {
	t.Helper()
	h := &restartTest{T: t, largeMessage: attachment(40 << 20)}
	h.backend = startMail(t, restartUsers()...)
	h.faultProxy, h.mutedProxy = faultproxy.Start(t, h.backend.Endpoints().TLS), faultproxy.Start(t, h.backend.Endpoints().TLS)
	users := map[string]string{}
	for i := range restingUserCount {
		users[fmt.Sprint(mutedUser, i)] = "muted"
	}
	ca := h.backend.Endpoints().CA
	mode := muxMode(event.ModeResume, fmt.Sprintf(", command_hold_timeout: %v", 4*testbed.Timeout)) // all sessions reattach at once, and each starts a process
	h.g = startGateway(t, ca, staticBackends(map[string]string{
		onlyBackend: backendConfAt(h.faultProxy.Address(), event.ImplicitTLS, ca) + mode,
		"muted":     backendConfAt(h.mutedProxy.Address(), event.ImplicitTLS, ca) + mode,
	}, users))
	h.forEachUser(func(user string) error {
		return h.runDirectSession(user, func(c *RawClient) error {
			for i := range initialMessages {
				if err := checkOK(c.Do("APPEND INBOX {+}", newMessage(fmt.Sprint("before ", i+1)))); err != nil {
					return err
				}
			}
			return nil
		})
	})
	return h
}

// forEachUser calls do for all resting users concurrently.
func (h *restartTest) forEachUser(do func(user string) error) {
	h.Helper()
	var all errgroup.Group
	for i := range restingUserCount {
		all.Go(func() error { return do(fmt.Sprint("resting", i)) })
	}
	if err := all.Wait(); err != nil {
		h.Fatal(err)
	}
}

// runDirectSession runs a session directly at the backend.
func (h *restartTest) runDirectSession(user string, do func(*RawClient) error) error {
	c, err := dialIMAP(directEndpoint(h.backend)(h, user), "")
	if err != nil {
		return err
	}
	defer c.Close() // logged out
	if err := checkOK(c.Do("LOGIN " + user + " " + password)); err != nil {
		return err
	}
	if err := do(c); err != nil {
		return fmt.Errorf("%s: %w", user, err)
	}
	return checkOK(c.Do("LOGOUT"))
}

// checkOK returns an error unless a command was answered OK.
func checkOK(got []Response, err error) error {
	if err != nil {
		return err
	}
	if last := got[len(got)-1].Text; !strings.Contains(last, " OK ") {
		return errors.New(last)
	}
	return nil
}

// openSession logs in and calls begin; resume is called after the restart.
func (h *restartTest) openSession(user string, begin func(*restingSession) error, resume func(*restingSession) error) error {
	c, err := dialIMAP(h.g.endpoint(event.ImplicitTLS), "")
	if err != nil {
		return err
	}
	g := &restingSession{RawClient: c, user: user, resume: resume}
	h.mu.Lock()
	h.sessions = append(h.sessions, g)
	h.mu.Unlock()
	if err := checkOK(c.Do("LOGIN " + user + " " + password)); err != nil {
		return err
	}
	return begin(g)
}

// openResting opens n sessions in each of restingStates.
func (h *restartTest) openResting(n int) {
	h.Helper()
	var all errgroup.Group
	all.SetLimit(16)
	for i := range n {
		state := restingStates[i%len(restingStates)]
		all.Go(func() error {
			return h.openSession(fmt.Sprint("resting", i/len(restingStates)%restingUserCount), state.begin, state.resume)
		})
	}
	if err := all.Wait(); err != nil {
		h.Fatalf("open sessions: %v", err)
	}
}

// restartBackend stops the backend and starts it again. Before the gateway can reach it,
// each resting user's mailbox gets a message, a flag and an expunge.
func (h *restartTest) restartBackend(end func(mailServer)) {
	h.Helper()
	for _, p := range []*faultproxy.Proxy{h.faultProxy, h.mutedProxy} {
		p.SetAcceptMode(faultproxy.Refuse)
	}
	end(h.backend)
	h.backend.Restart()
	h.forEachUser(func(user string) error {
		return h.runDirectSession(user, func(c *RawClient) error {
			return errors.Join(
				checkOK(c.Do("SELECT INBOX")),
				checkOK(c.Do(`STORE 1 +FLAGS.SILENT (\Deleted)`)), checkOK(c.Do("EXPUNGE")),
				checkOK(c.Do(`STORE 1 +FLAGS.SILENT (\Flagged)`)),
				checkOK(c.Do("APPEND INBOX {+}", newMessage("during the restart"))),
			)
		})
	})
	for _, p := range []*faultproxy.Proxy{h.faultProxy, h.mutedProxy} {
		p.ResetConns()
		p.SetAcceptMode(faultproxy.Accept)
	}
}

// resumeAll calls resume of every session.
func (h *restartTest) resumeAll() {
	h.Helper()
	var all errgroup.Group
	for _, g := range h.sessions {
		all.Go(func() error {
			defer g.Close() // logged out or ended
			if err := g.resume(g); err != nil {
				return fmt.Errorf("%s: %w", g.user, err)
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		h.Error(err)
	}
}

// restingStates are the states of a session without a command in flight.
var restingStates = []struct {
	begin, resume func(*restingSession) error
}{
	{ // in IDLE
		func(g *restingSession) (err error) {
			if err := checkOK(g.Do("SELECT INBOX")); err != nil {
				return err
			}
			if g.tag, err = g.Send("IDLE"); err != nil {
				return err
			}
			return g.awaitContinuation()
		},
		func(g *restingSession) error {
			var received []Response
			for !containsChanges(received, `* 1 EXPUNGE`) {
				r, err := g.Read()
				if err != nil {
					return fmt.Errorf("in IDLE, after %v: %w", received, err)
				}
				received = append(received, r)
			}
			_, err := io.WriteString(g, "DONE\r\n")
			return errors.Join(err, checkOK(g.ReadUntil(g.tag)), checkOK(g.Do("LOGOUT")))
		},
	},
	{ // with a mailbox
		(*restingSession).selectInbox,
		func(g *restingSession) error { return g.checkChanges("NOOP", `* 1 EXPUNGE`) },
	},
	{ // with a mailbox, and extensions
		func(g *restingSession) error {
			return errors.Join(checkOK(g.Do("ENABLE QRESYNC")), checkOK(g.Do("SELECT INBOX")))
		},
		func(g *restingSession) error { return g.checkChanges("NOOP", `* VANISHED 1`) },
	},
	{ // without a mailbox
		func(*restingSession) error { return nil },
		func(g *restingSession) error {
			return errors.Join(checkOK(g.Do("NOOP")), checkOK(g.Do("STATUS INBOX (MESSAGES)")), checkOK(g.Do("LOGOUT")))
		},
	},
}

// checkChanges sends a command whose responses must report all changes.
func (g *restingSession) checkChanges(command, expunge string) error {
	got, err := g.Do(command)
	if err := checkOK(got, err); err != nil {
		return fmt.Errorf("%s, after %v: %w", command, got, err)
	}
	if !containsChanges(got, expunge) {
		return fmt.Errorf("%s reported only %v", command, got)
	}
	return checkOK(g.Do("LOGOUT"))
}

// containsChanges reports whether responses report all changes made during the restart.
func containsChanges(responses []Response, expunge string) bool {
	all := formatResponses(responses)
	return strings.Contains(all, expunge+"\n") && strings.Contains(all, "* 3 EXISTS\n") && strings.Contains(all, `\Flagged)`)
}

// stopMethods are the ways to stop a backend.
var stopMethods = []struct {
	name string
	end  func(mailServer)
}{{"by TERM", mailServer.Stop}, {"by KILL", mailServer.Kill}}

// Two hundred clients are idle, in every state, when their backend restarts. None is
// disconnected, and each receives all changes.
func TestSessionsSurviveABackendRestart(t *testing.T) {
	n := 200
	if testbed.HasCyrus() {
		n = 40 // Cyrus needs a process per connection, which is slow to start
	}
	for _, method := range stopMethods {
		t.Run(method.name, func(t *testing.T) {
			t.Parallel()
			h := startRestartTest(t)
			h.openResting(n)
			h.restartBackend(method.end)
			h.resumeAll()
			h.checkEndReasons(map[string]int{"client_logout": n})
			if lost := len(h.g.records("upstream_lost", "")); lost < n*3/4 {
				t.Errorf("%d upstreams were lost, of those of %d sessions", lost, n)
			}
		})
	}
}

// checkEndReasons checks the numbers of sessions by reason of their end.
func (h *restartTest) checkEndReasons(want map[string]int) {
	h.Helper()
	total := 0
	for _, n := range want {
		total += n
	}
	var got []auditRecord
	testkit.Eventually(h, "every session's end to be in the audit log", func() bool {
		got = h.g.records("session_ended", "")
		return len(got) >= total
	})
	if counts := countReasons(got); fmt.Sprint(counts) != fmt.Sprint(want) {
		h.Errorf("sessions ended by %v; want %v", counts, want)
	}
}

// A backend restarts while some clients are idle, some fetch and some append. Every client
// gets the documented result, and every message is stored once.
func TestARestartLosesOrDuplicatesNoMessage(t *testing.T) {
	resting, busy := testSize(20, 160), testSize(4, 15)
	for _, method := range stopMethods {
		t.Run(method.name, func(t *testing.T) {
			t.Parallel()
			h := startRestartTest(t)
			if err := h.runDirectSession(largeMailUser, func(c *RawClient) error { return checkOK(c.Do("APPEND INBOX {+}", h.largeMessage)) }); err != nil {
				t.Fatal(err)
			}
			h.openResting(resting)
			for i := range busy {
				for _, err := range []error{
					h.openSession(largeMailUser, (*restingSession).startFetch, h.checkTruncatedFetch),
					h.openSession(fmt.Sprint("sync", i), beginAppend("{%d}"), retryAppend),
					h.openSession(fmt.Sprint("nonsync", i), beginAppend("{%d+}"), retryAppend),
					h.openSession(fmt.Sprint(mutedUser, i), (*restingSession).selectInbox, checkUnavailableBye),
				} {
					if err != nil {
						t.Fatal(err)
					}
				}
			}
			h.appendUnanswered()
			h.restartBackend(method.end)
			h.resumeAll()
			h.checkEndReasons(map[string]int{"client_logout": resting + 2*busy, "upstream_lost": 2 * busy})
			for i := range busy {
				for _, prefix := range []string{"sync", "nonsync", mutedUser} {
					h.checkStoredOnce(fmt.Sprint(prefix, i))
				}
			}
		})
	}
}

// startFetch fetches the large message and reads its beginning.
func (g *restingSession) startFetch() error {
	if err := g.selectInbox(); err != nil {
		return err
	}
	if _, err := g.Send("FETCH 1 BODY.PEEK[]"); err != nil {
		return err
	}
	_, err := g.r.Peek(1)
	return err
}

// checkTruncatedFetch checks that the session ends after a prefix of the large message,
// without other bytes.
func (h *restartTest) checkTruncatedFetch(g *restingSession) error {
	if err := g.conn.SetReadDeadline(time.Now().Add(Timeout)); err != nil {
		return err
	}
	got, err := io.ReadAll(g.r)
	if err != nil && !isConnEnd(err) {
		return err
	}
	complete := append(fmt.Appendf(nil, "* 1 FETCH (BODY[] {%d}\r\n", len(h.largeMessage)), h.largeMessage...)
	if len(got) >= len(complete) || !bytes.HasPrefix(complete, got) {
		return fmt.Errorf("%d bytes of %d, which end in %q", len(got), len(complete), got[max(0, len(got)-80):])
	}
	return nil
}

// beginAppend returns a function that sends the first half of a message.
func beginAppend(literal string) func(*restingSession) error {
	return func(g *restingSession) error {
		if err := checkOK(g.Do("SELECT INBOX")); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(g, "x APPEND INBOX "+literal+"\r\n", 2*halfSize); err != nil {
			return err
		}
		if !strings.Contains(literal, "+") {
			if err := g.awaitContinuation(); err != nil {
				return err
			}
		}
		_, err := g.Write(messageOfSize(2*halfSize, g.user)[:halfSize])
		return err
	}
}

// retryAppend sends the second half, gets a NO, and appends the message again.
func retryAppend(g *restingSession) error {
	if _, err := g.Write(append(messageOfSize(2*halfSize, g.user)[halfSize:], "\r\n"...)); err != nil {
		return err
	}
	got, err := g.ReadUntil("x")
	if err != nil || !strings.HasPrefix(got[len(got)-1].Text, "x NO [UNAVAILABLE] ") {
		return fmt.Errorf("half of an APPEND was answered %v, %w", got, err)
	}
	return errors.Join(checkOK(g.Do("APPEND INBOX {}", messageOfSize(2*halfSize, g.user))), checkOK(g.Do("LOGOUT")))
}

// appendUnanswered lets the muted users append messages whose OK does not arrive.
func (h *restartTest) appendUnanswered() {
	h.Helper()
	h.mutedProxy.SetRules(faultproxy.ToClient, faultproxy.Rules{Faults: []faultproxy.Fault{{Action: faultproxy.Blackhole}}})
	for _, g := range h.sessions {
		if !strings.HasPrefix(g.user, mutedUser) {
			continue
		}
		if _, err := g.Send("APPEND INBOX {+}", newMessage(g.user)); err != nil {
			h.Fatal(err)
		}
		testkit.Eventually(h, "a message to be stored", func() bool { return h.countMessages(g.user) == 1 })
	}
}

func (g *restingSession) selectInbox() error { return checkOK(g.Do("SELECT INBOX")) }

// checkUnavailableBye checks that a session ends with BYE [UNAVAILABLE] and without a tagged
// response.
func checkUnavailableBye(g *restingSession) error {
	const bye = "* BYE [UNAVAILABLE] Connection to mail store lost."
	if r, err := g.Read(); err != nil || r.Text != bye {
		return fmt.Errorf("an APPEND with an unknown outcome was answered %v, %w", r, err)
	}
	return readToEnd(g.RawClient)
}

// countMessages counts the messages in INBOX with the user's name as subject.
func (h *restartTest) countMessages(user string) (n int) {
	err := h.runDirectSession(user, func(c *RawClient) error {
		if err := checkOK(c.Do("EXAMINE INBOX")); err != nil {
			return err
		}
		got, err := c.Do("FETCH 1:* BODY.PEEK[HEADER.FIELDS (SUBJECT)]")
		for _, r := range got {
			for _, header := range r.Literals {
				if strings.TrimSpace(string(header)) == "Subject: "+user {
					n++
				}
			}
		}
		return err
	})
	if err != nil {
		h.Error(err)
	}
	return n
}

func (h *restartTest) checkStoredOnce(user string) {
	h.Helper()
	if n := h.countMessages(user); n != 1 {
		h.Errorf("%s has %d messages, of 1", user, n)
	}
}
