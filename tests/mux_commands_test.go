package tests

import (
	"fmt"
	"strings"
	"testing"

	"imapgate/internal/event"
	"imapgate/internal/faultproxy"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// Each command of a client at a real Dovecot has one audit record, also after lost
// upstreams. Of its arguments the record has only the names of mailboxes.
func TestEachClientCommandIsOnRecord(t *testing.T) {
	t.Parallel()
	const canary = "c4n4ry"
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{Password: canary})
	line := faultproxy.Start(t, backend.Plain)
	g := startGateway(t, backend.CA, singleBackend(plainBackend(line.Address())+muxMode(event.ModeResume, "")), "audit: {commands: all}")
	c := mustDial(t, g.endpoint(event.ImplicitTLS), "")
	mustExec(t, c, "LOGIN zoe "+canary)
	mustExec(t, c, "CREATE Box")
	for range 3 {
		if err := checkOK(c.Do("APPEND Box ("+canary+") {}", []byte("Subject: "+canary+"\r\n\r\n"+canary+"\r\n"))); err != nil {
			t.Fatal(err)
		}
	}
	mustExec(t, c, "SELECT Box")
	line.ResetConns()
	mustExec(t, c, "STORE 1:2 +FLAGS (\\Deleted "+canary+")")
	mustExec(t, c, "UID SEARCH SUBJECT "+canary)
	line.ResetConns()
	mustExec(t, c, "FETCH 2:* (BODY.PEEK[HEADER.FIELDS ("+canary+")])")
	mustExec(t, c, "COPY 3 INBOX")
	if got, err := c.Do("COPY 3 Nowhere"); err != nil || !strings.Contains(formatResponses(got), " NO [TRYCREATE]") {
		t.Errorf("a COPY to nowhere: %v, %v", got, err)
	}
	mustExec(t, c, "EXPUNGE")
	mustExec(t, c, "RENAME Box \"New box\"")
	mustExec(t, c, "LOGOUT")
	want := `CREATE Box>  0 [] ok
APPEND Box>  0 [27] ok APPENDUID
APPEND Box>  0 [27] ok APPENDUID
APPEND Box>  0 [27] ok APPENDUID
SELECT Box>  0 [] ok READ-WRITE
STORE Box>  2 [] ok
UID SEARCH Box>  0 [] ok
FETCH Box>  2 [] ok
COPY Box> INBOX 1 [] ok COPYUID
COPY Box> Nowhere 1 [] no TRYCREATE
EXPUNGE Box>  0 [] ok
RENAME Box> New box 0 [] ok
LOGOUT >  0 [] ok
`
	testkit.Eventually(t, "the end to be in the audit log", func() bool { return len(g.records("session_ended", "zoe")) == 1 })
	var got strings.Builder
	for _, r := range g.records("command", "zoe") {
		fmt.Fprintln(&got, strings.TrimSpace(fmt.Sprintf("%s %s> %s %d %v %s %s", r.Command, r.Mailbox, r.To, r.Messages, r.Literals, r.Result, r.Code)))
	}
	if got.String() != want {
		t.Errorf("the audit log has\n%s, want\n%s", &got, want)
	}
	if n, lines := g.records("session_ended", "zoe")[0].Commands, strings.Count(want, "\n"); n != uint64(lines) {
		t.Errorf("the end has %d commands on record, of %d", n, lines)
	}
	if lost := len(g.records("upstream_lost", "zoe")); lost != 2 {
		t.Errorf("%d losses", lost)
	}
	if strings.Contains(strings.ToLower(g.readFile("audit")), canary) {
		t.Errorf("the audit log has confidential text:\n%s", g.readFile("audit"))
	}
}
