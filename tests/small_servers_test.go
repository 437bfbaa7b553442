package tests

import (
	"io"
	"log"
	"net"
	"regexp"
	"strings"
	"testing"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapserver"
	"github.com/emersion/go-imap/v2/imapserver/imapmemserver"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// smallServers are mail servers with fewer extensions than Dovecot and Cyrus. start creates
// these users and returns the server's address.
var smallServers = []struct {
	name   string
	prefix string // of a user's mailbox names
	start  func(t testing.TB, users ...string) (address string)
}{
	{"go-imap", "", startMemory},
	{"courier", "INBOX.", func(t testing.TB, users ...string) string { return testbed.StartCourier(t, withPasswords(users)).Plain }},
}

// startMemory starts the server of go-imap, with mail in memory.
func startMemory(t testing.TB, users ...string) string {
	t.Helper()
	store := imapmemserver.New()
	for _, name := range users {
		user := imapmemserver.NewUser(name, password)
		if err := user.Create("INBOX", nil); err != nil {
			t.Fatal(err)
		}
		store.AddUser(user)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := imapserver.New(&imapserver.Options{
		NewSession: func(*imapserver.Conn) (imapserver.Session, *imapserver.GreetingData, error) {
			return store.NewSession(), nil, nil
		},
		Caps: imap.CapSet{imap.CapIMAP4rev1: {}, imap.CapIMAP4rev2: {}}, InsecureAuth: true, Logger: log.New(io.Discard, "", 0),
	})
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(l) // returns when closed
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-served
	})
	return l.Addr().String()
}

// startPlainGateway starts a gateway of a mode for a server without TLS.
func startPlainGateway(t testing.TB, address string, mode event.Mode) *gateway {
	t.Helper()
	return startGateway(t, testbed.NewCA(t), singleBackend(plainBackend(address)+muxMode(mode, "")))
}

// longNumber matches numbers that differ between mailboxes or times.
var longNumber = regexp.MustCompile(`\b[0-9]{6,}\b`)

// runAnswers runs a script and returns the responses.
func runAnswers(t *testing.T, client *RawClient, user, prefix string) string {
	t.Helper()
	requireOK(t, client, "LOGIN "+user+" "+password)
	var answers strings.Builder
	for _, step := range []struct {
		command  string
		literals [][]byte
	}{
		{"CREATE BOXWork", nil},
		{"APPEND INBOX {}", [][]byte{messageOfSize(70_000, "first")}},
		{"APPEND INBOX (\\Flagged) {}", [][]byte{newMessage("second")}},
		{"APPEND INBOX {}", [][]byte{newMessage("third")}},
		{"APPEND BOXNowhere {}", [][]byte{newMessage("lost")}},
		{"STATUS INBOX (MESSAGES)", nil},
		{"SELECT INBOX", nil},
		{"UID SEARCH ALL", nil},
		{"FETCH 1:3 (UID FLAGS BODY.PEEK[])", nil},
		{"STORE 2 +FLAGS (\\Deleted)", nil},
		{"COPY 1 BOXWork", nil},
		{"FROB", nil},
		{"EXPUNGE", nil},
		{"NOOP", nil},
		{"STORE 1 +FLAGS (\\Deleted)", nil},
		{"EXAMINE INBOX", nil},
		{"FETCH 1:* (UID FLAGS)", nil},
		{"SELECT BOXWork", nil},
		{"FETCH 1 (UID BODY.PEEK[])", nil},
		{"CLOSE", nil},
		{"FETCH 1 (UID)", nil},
	} {
		got, err := client.Do(strings.ReplaceAll(step.command, "BOX", prefix), step.literals...)
		if err != nil {
			t.Fatalf("%s: %v", step.command, err)
		}
		answers.WriteString("C: " + step.command + "\n" + longNumber.ReplaceAllString(formatResponses(got), "N"))
	}
	requireOK(t, client, "LOGOUT")
	return answers.String()
}

// A server with few extensions gives the same responses in every mode as to a direct client.
func TestASmallServerAnswersAsDirectly(t *testing.T) {
	t.Parallel()
	for _, server := range smallServers {
		t.Run(server.name, func(t *testing.T) {
			t.Parallel()
			address := server.start(t, "direct", "splice", "reuse", "resume")
			direct, err := Connect(address, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer direct.Close() // logged out
			if _, err := direct.Read(); err != nil {
				t.Fatal(err)
			}
			want := runAnswers(t, direct, "direct", server.prefix)
			for _, mode := range []event.Mode{event.ModeSplice, event.ModeReuse, event.ModeResume} {
				g := startPlainGateway(t, address, mode)
				if got := runAnswers(t, mustDial(t, g.endpoint(event.ImplicitTLS), ""), string(mode), server.prefix); got != want {
					t.Errorf("%s:\n%s\ndirectly:\n%s", mode, got, want)
				}
			}
		})
	}
}

// Upstreams are reused even if a server has no UNSELECT, and closing the mailbox expunges no
// message.
func TestConnectionsOfASmallServerAreReusedAndNothingIsExpunged(t *testing.T) {
	t.Parallel()
	const user, sessions = "alice", 6
	for _, server := range smallServers {
		t.Run(server.name, func(t *testing.T) {
			t.Parallel()
			g := startPlainGateway(t, server.start(t, user), event.ModeReuse)
			for i := range sessions {
				client := mustDial(t, g.endpoint(event.ImplicitTLS), "")
				requireOK(t, client, "LOGIN "+user+" "+password)
				if i == 0 {
					if err := checkOK(client.Do("APPEND INBOX (\\Deleted) {}", newMessage("kept"))); err != nil {
						t.Fatal(err)
					}
				}
				requireOK(t, client, "SELECT INBOX")
				got, err := client.Do("FETCH 1:* (FLAGS)")
				if err := checkOK(got, err); err != nil || !strings.Contains(strings.ToLower(formatResponses(got)), `\deleted`) {
					t.Fatalf("session %d: %v, %v", i, got, err)
				}
				requireOK(t, client, "LOGOUT")
				testkit.Eventually(t, "the connection to wait", func() bool {
					return g.sumMetric("imapgate_mux_pool_connections") == 1
				})
			}
			if reused := g.sumMetric("imapgate_mux_pool_reused_total"); reused != sessions-1 {
				t.Errorf("%v of %d sessions used a pooled upstream", reused, sessions)
			}
		})
	}
}
