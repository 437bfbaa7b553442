package tests

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/proxy/upstream"
)

// mailServer is the backend of a test that works with Dovecot and Cyrus.
type mailServer interface {
	Endpoints() testbed.Endpoints
	Stop()
	Kill()
	Restart()
}

// startMail starts the mail server of this run: Dovecot, which accepts any user name, or
// Cyrus with these users. The master may log in as any of them.
func startMail(t testing.TB, users ...string) mailServer {
	t.Helper()
	if testbed.HasCyrus() {
		return testbed.StartCyrus(t, testbed.CyrusConfig{
			Users: withPasswords(users), Master: master, MasterPassword: masterPassword,
		})
	}
	return testbed.StartDovecot(t, testbed.DovecotConfig{Password: password, Master: master, MasterPassword: masterPassword})
}

func withPasswords(users []string) map[string]string {
	all := map[string]string{}
	for _, user := range users {
		all[user] = password
	}
	return all
}

// userPerMode returns a variant of a user name for each mode.
func userPerMode(user string) (users []string) {
	for _, mode := range testedModes {
		users = append(users, mode+"."+user)
	}
	return users
}

// saslPlain returns the message of SASL PLAIN.
func saslPlain(user, password string) string {
	return base64.StdEncoding.EncodeToString([]byte("\x00" + user + "\x00" + password))
}

// tlsModes are all TLS modes of a backend.
var tlsModes = []event.TLSMode{event.ImplicitTLS, event.StartTLS, event.NoTLS}

// The mail server of the run accepts users by their own password and by the master's, with
// and without TLS. The client gets its refusal of a wrong one.
func TestMailServerAcceptsEveryLoginMethod(t *testing.T) {
	t.Parallel()
	const user = "alice@example.org"
	backend := startMail(t, user)
	backends := map[string]string{}
	for _, mode := range tlsModes {
		own := backendConf(backend, mode)
		backends["own-"+string(mode)] = own
		backends["master-"+string(mode)] = own + masterLogin(t, master, masterPassword, upstream.AuthzidStyle)
	}
	s := redisStores["single"](t)
	g := startGateway(t, backend.Endpoints().CA, backendsConf(backends), s.conf, "auth: {methods: [redis, passthrough]}")
	n := 0
	for name := range backends {
		more := []string{"login", user}
		if strings.HasPrefix(name, "master-") { // the gateway must verify the password
			more = append(more, "password", "{PLAIN}"+password)
		}
		s.setRoute(t, name, name, more...)
		for _, command := range []string{"LOGIN " + name + " wrong", "AUTHENTICATE PLAIN " + saslPlain(name, "wrong")} {
			if got, err := mustDial(t, g.endpoint(event.ImplicitTLS), "").Do(command); err != nil || !strings.Contains(formatResponses(got), " NO [AUTHENTICATIONFAILED] ") {
				t.Errorf("%s: %v, %v", command, got, err)
			}
		}
		for _, command := range []string{"LOGIN " + name + " " + password, "AUTHENTICATE PLAIN " + saslPlain(name, password)} {
			n++
			client := mustDial(t, g.endpoint(event.ImplicitTLS), "")
			requireOK(t, client, command)
			if err := checkOK(client.Do("APPEND INBOX {+}", newMessage(name))); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if got, err := client.Do("SELECT INBOX"); err != nil || !strings.Contains(formatResponses(got), fmt.Sprintf("* %d EXISTS\n", n)) {
				t.Errorf("%s: %v, %v; want %d messages", name, got, err, n)
			}
			requireOK(t, client, "LOGOUT")
		}
	}
}

// A server that accepts passwords over TLS only gets none without TLS, and the client gets
// no AUTHENTICATIONFAILED. (Dovecot treats loopback like TLS.)
func TestMailServerThatRequiresTLSGetsNoPasswordInClear(t *testing.T) {
	t.Parallel()
	const user = "alice@example.org"
	backend := testbed.StartCyrus(t, testbed.CyrusConfig{Users: withPasswords([]string{user}), Secured: true})
	for _, mode := range tlsModes {
		g := startGateway(t, backend.Endpoints().CA, singleBackend(backendConf(backend, mode)))
		got, err := mustDial(t, g.endpoint(event.ImplicitTLS), "").Do("LOGIN " + user + " " + password)
		want := " OK [CAPABILITY "
		if mode == event.NoTLS {
			want = " NO [UNAVAILABLE] "
		}
		if err != nil || !strings.Contains(formatResponses(got), want) {
			t.Errorf("%s: %v, %v; want %q", mode, got, err, want)
		}
	}
}

// A Cyrus that cannot verify passwords shows this only in the text of its response.
func TestCyrusWithoutPasswordCheckIsUnavailable(t *testing.T) {
	t.Parallel()
	const user = "alice@example.org"
	backend := testbed.StartCyrus(t, testbed.CyrusConfig{Users: withPasswords([]string{user}), Unchecked: true})
	g := startGateway(t, backend.Endpoints().CA, singleBackend(backendConf(backend, event.ImplicitTLS)))
	got, err := mustDial(t, g.endpoint(event.ImplicitTLS), "").Do("LOGIN " + user + " " + password)
	if err != nil || !strings.Contains(formatResponses(got), " NO [UNAVAILABLE] ") {
		t.Errorf("%v, %v", got, err)
	}
}

// In every mode literals of each kind, and many in one command, reach the mail server of
// the run unchanged.
func TestMailServerGetsLiteralsUnchanged(t *testing.T) {
	t.Parallel()
	users := userPerMode("writer")
	backend := startMail(t, users...)
	for i, mode := range testedModes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			client := mustDial(t, modeEndpoint(t, backend, mode)(t, users[i]), "")
			requireOK(t, client, "LOGIN "+users[i]+" "+password)
			first, second := messageOfSize(70_000, "first"), messageOfSize(300_000, "second")
			for _, step := range []struct {
				command  string
				literals [][]byte
				want     string
			}{
				{"CREATE {}", [][]byte{[]byte("Work")}, " OK "},
				{"APPEND {} (\\Seen) {}", [][]byte{[]byte("Work"), first}, " OK [APPENDUID "},
				{"APPEND {+} {+}", [][]byte{[]byte("Work"), second}, " OK [APPENDUID "},
				{"APPEND Nowhere {}", [][]byte{first}, " NO [TRYCREATE] "},
				{"SELECT {+}", [][]byte{[]byte("Work")}, "* 2 EXISTS\n"},
				{"UID SEARCH SUBJECT {} FROM {+}", [][]byte{[]byte("second"), []byte("ann")}, "* SEARCH 2\n"},
			} {
				if got, err := client.Do(step.command, step.literals...); err != nil || !strings.Contains(formatResponses(got), step.want) {
					t.Fatalf("%s: %v, %v; want %q", step.command, got, err, step.want)
				}
			}
			got, err := client.Do("FETCH 1:2 BODY.PEEK[]")
			if err := checkOK(got, err); err != nil {
				t.Fatal(err)
			}
			var read [][]byte
			for _, r := range got {
				read = append(read, r.Literals...)
			}
			if len(read) != 2 || !bytes.Equal(read[0], first) || !bytes.Equal(read[1], second) {
				t.Errorf("the messages came back as %v", got)
			}
		})
	}
}
