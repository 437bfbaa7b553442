package mux

import (
	"strings"
	"testing"

	"imapgate/internal/audit"
)

// Two sessions of one user are in a mailbox of which the backend keeps no
// mod-sequences yet. There is one auxiliary connection for both: the session that
// does not get it asks later.
func TestAModseqRequestIsRetriedWhileAnotherSessionHasTheAuxConnection(t *testing.T) {
	checkGoroutineLeaks(t)
	y := newHarness(t, setup{settings: Settings{UIDPrefetch: PrefetchEager, ReadAfterWrite: true, MaxPerUser: 8}}, nil)
	defer y.stub.close()
	all := []*testClient{y.logIn(), y.logIn()}
	peer := func(n int) *scriptedConn {
		t.Helper()
		p, err := y.stub.peer(n)
		must(t, err)
		return p
	}
	// hears is the tag of a question of ours.
	readQuery := func(p *scriptedConn, question string) string {
		t.Helper()
		line, err := p.readLine()
		must(t, err)
		tag, got, _ := strings.Cut(strings.TrimSuffix(line, "\r\n"), " ")
		if got != question {
			t.Fatalf("heard %q, want %q", got, question)
		}
		return tag
	}
	selectReply := append(selectLines("0", "1", "0"), "s OK [READ-WRITE] done")
	answerQueries := func(p *scriptedConn, status string) {
		t.Helper()
		p.send("* STATUS INBOX (HIGHESTMODSEQ 5)\r\n" + status + " OK done\r\n")
		p.send(readQuery(p, `EXAMINE "INBOX"`) + " OK done\r\n")
	}
	exchange(t, all[0].scriptedConn, peer(1), "s SELECT INBOX", selectReply...)
	status := readQuery(peer(3), `STATUS "INBOX" (HIGHESTMODSEQ)`)
	exchange(t, all[1].scriptedConn, peer(2), "s SELECT INBOX", selectReply...) // while the first asks
	exchange(t, all[1].scriptedConn, peer(2), "a1 NOOP", "a1 OK done")
	answerQueries(peer(3), status)
	answerQueries(peer(4), readQuery(peer(4), `STATUS "INBOX" (HIGHESTMODSEQ)`))
	all[1].scriptedConn.send("a2 NOOP\r\n")
	tag := readQuery(peer(2), "NOOP") // which makes it true of the client
	peer(2).send(tag + " OK done\r\n")
	must(t, peer(2).expect("a2 NOOP\r\n"))
	peer(2).send("a2 OK done\r\n")
	must(t, all[1].scriptedConn.expect("a2 OK done\r\n"))
	y.hub.AbortAll(audit.Kicked)
	for _, a := range all {
		y.awaitEnd(a)
	}
	y.close(all...)
}
