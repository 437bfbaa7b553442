package tests

import (
	"fmt"
	"strings"
	"testing"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
)

// Cyrus omits messages expunged by another session from SEARCH before it reports the
// expunge. The gateway must neither pin nor end such sessions, and after a restart the
// message numbers must be unchanged.
func TestCyrusSessionReattachesAfterUnannouncedExpunge(t *testing.T) {
	t.Parallel()
	users := []string{"ann", "ben", "cat"}
	backend := testbed.StartCyrus(t, testbed.CyrusConfig{Users: withPasswords(users)})
	// auto fetches UIDs two seconds after SELECT, or when IDLE begins.
	g := startGateway(t, backend.CA, singleBackend(backendConf(backend, event.ImplicitTLS)+muxMode(event.ModeResume, ", uid_prefetch: auto")))
	var clients []*RawClient
	for _, user := range users {
		own, client := mustDial(t, directEndpoint(backend)(t, user), ""), mustDial(t, g.endpoint(event.ImplicitTLS), "")
		clients = append(clients, client)
		for _, c := range []*RawClient{own, client} {
			requireOK(t, c, "LOGIN "+user+" "+password)
		}
		for i := range 4 {
			if err := checkOK(own.Do("APPEND INBOX {+}", newMessage(fmt.Sprint(i+1)))); err != nil {
				t.Fatal(err)
			}
		}
		requireOK(t, client, "SELECT INBOX")
		for _, command := range []string{"SELECT INBOX", "STORE 2 +FLAGS.SILENT (\\Deleted)", "EXPUNGE"} {
			requireOK(t, own, command)
		}
		for _, line := range []string{"i IDLE", "DONE"} { // the gateway fetches UIDs in between
			if _, err := client.Write([]byte(line + "\r\n")); err != nil {
				t.Fatal(err)
			}
			for {
				r, err := client.Read()
				if err != nil {
					t.Fatal(err)
				}
				if strings.HasPrefix(r.Text, "+") || strings.HasPrefix(r.Text, "i OK") {
					break
				}
			}
		}
		requireOK(t, client, "NOOP")
	}
	if broken, pinned := g.sumMetric("imapgate_backend_protocol_violations_total"), g.sumMetric("imapgate_mux_pins_total"); broken != 0 || pinned != 0 {
		t.Errorf("%v protocol violations, %v pinned sessions", broken, pinned)
	}
	backend.Restart()
	for _, client := range clients {
		if got, err := client.Do("FETCH 2 (UID)"); err != nil || !strings.Contains(formatResponses(got), "* 2 FETCH (UID 3)") {
			t.Errorf("after a restart message 2 is %v, %v; want UID 3", got, err)
		}
	}
}
