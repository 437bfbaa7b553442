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

	"imapgate/internal/testbed"
	"imapgate/proxy"
	"imapgate/proxy/mux"
	"imapgate/proxy/upstream"
)

// servers are mail servers that can do less than Dovecot and Cyrus; each starts with
// these users and says where it is.
var servers = []struct {
	name   string
	prefix string // of the mailboxes of a user
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
		_ = server.Serve(l) // until it is closed
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-served
	})
	return l.Addr().String()
}

// startFor starts a gateway of a mode for a server without TLS.
func startFor(t testing.TB, address, mode string) *running {
	t.Helper()
	return startGateway(t, options{
		ca: testbed.NewCA(t), backends: map[string]upstream.Config{only: {Address: address, TLSMode: upstream.NoTLS}},
		modes: map[string]proxy.Mode{only: {Name: mode, Mux: muxSettings()}},
	})
}

// ownNumbers are what no two mailboxes or moments have alike.
var ownNumbers = regexp.MustCompile(`\b[0-9]{6,}\b`)

// answersOf plays a script and gives what was answered.
func answersOf(t *testing.T, client *RawClient, user, prefix string) string {
	t.Helper()
	does(t, client, "LOGIN "+user+" "+password)
	var said strings.Builder
	for _, step := range []struct {
		command  string
		literals [][]byte
	}{
		{"CREATE BOXWork", nil},
		{"APPEND INBOX {}", [][]byte{mailOf(70_000, "first")}},
		{"APPEND INBOX (\\Flagged) {}", [][]byte{mail("second")}},
		{"APPEND INBOX {}", [][]byte{mail("third")}},
		{"APPEND BOXNowhere {}", [][]byte{mail("lost")}},
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
		said.WriteString("C: " + step.command + "\n" + ownNumbers.ReplaceAllString(shown(got), "N"))
	}
	does(t, client, "LOGOUT")
	return said.String()
}

// A server with few extensions says in every mode what it says to a client that asks
// it directly.
func TestASmallServerAnswersAsDirectly(t *testing.T) {
	t.Parallel()
	for _, server := range servers {
		t.Run(server.name, func(t *testing.T) {
			t.Parallel()
			address := server.start(t, "direct", "splice", "reuse", "resume")
			direct, err := Connect(address, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer direct.Close() // it has logged out
			if _, err := direct.Read(); err != nil {
				t.Fatal(err)
			}
			want := answersOf(t, direct, "direct", server.prefix)
			for _, mode := range []string{"splice", string(mux.Reuse), string(mux.Resume)} {
				g := startFor(t, address, mode)
				if got := answersOf(t, enter(t, g.at(proxy.ImplicitTLS), ""), mode, server.prefix); got != want {
					t.Errorf("%s:\n%s\ndirectly:\n%s", mode, got, want)
				}
			}
		})
	}
}

// Connections are used again also where a server has no UNSELECT, and leaving the
// mailbox expunges nothing.
func TestConnectionsOfASmallServerAreReusedAndNothingIsExpunged(t *testing.T) {
	t.Parallel()
	const user, sessions = "alice", 6
	for _, server := range servers {
		t.Run(server.name, func(t *testing.T) {
			t.Parallel()
			g := startFor(t, server.start(t, user), string(mux.Reuse))
			for i := range sessions {
				client := enter(t, g.at(proxy.ImplicitTLS), "")
				does(t, client, "LOGIN "+user+" "+password)
				if i == 0 {
					if err := okay(client.Do("APPEND INBOX (\\Deleted) {}", mail("kept"))); err != nil {
						t.Fatal(err)
					}
				}
				does(t, client, "SELECT INBOX")
				got, err := client.Do("FETCH 1:* (FLAGS)")
				if err := okay(got, err); err != nil || !strings.Contains(strings.ToLower(shown(got)), `\deleted`) {
					t.Fatalf("session %d: %v, %v", i, got, err)
				}
				does(t, client, "LOGOUT")
				testbed.Within(t, testbed.Patience, "the connection to wait", func() bool {
					return g.metric("imapgate_mux_pool_connections") == 1
				})
			}
			if reused := g.metric("imapgate_mux_pool_reused_total"); reused != sessions-1 {
				t.Errorf("%v of %d sessions were given a connection that had waited", reused, sessions)
			}
		})
	}
}
