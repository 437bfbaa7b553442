package mux

import (
	"strings"
	"testing"

	"imapgate/internal/event"
	"imapgate/internal/testkit"
	"imapgate/proxy/relay/mux/pool"
)

// TestAModseqRequestIsRetriedWhileAnotherSessionHasTheAuxConnection has two sessions of
// one user in a mailbox without mod-sequences. One auxiliary connection serves both: the
// session that does not get it retries later.
func TestAModseqRequestIsRetriedWhileAnotherSessionHasTheAuxConnection(t *testing.T) {
	checkGoroutineLeaks(t)
	h := newHarness(t, setup{settings: Settings{UIDPrefetch: PrefetchEager, ReadAfterWrite: true, Settings: pool.Settings{MaxPerUser: 8}}}, nil)
	defer h.stub.close()
	all := []*testClient{h.logIn(), h.logIn()}
	peer := func(n int) *scriptedConn {
		t.Helper()
		p, err := h.stub.peer(n)
		testkit.NoError(t, err)
		return p
	}
	// readQuery returns the tag of a command of the gateway.
	readQuery := func(p *scriptedConn, question string) string {
		t.Helper()
		line, err := p.readLine()
		testkit.NoError(t, err)
		tag, got, _ := strings.Cut(strings.TrimSuffix(line, "\r\n"), " ")
		if got != question {
			t.Fatalf("received %q, want %q", got, question)
		}
		return tag
	}
	selectReply := append(selectLines("0", "1", "0"), "s OK [READ-WRITE] done")
	answerQueries := func(p *scriptedConn, status string) {
		t.Helper()
		p.send("* STATUS INBOX (HIGHESTMODSEQ 5)\r\n" + status + " OK done\r\n")
		p.send(readQuery(p, `EXAMINE "INBOX"`) + " OK done\r\n")
	}
	relayCommand(t, all[0].scriptedConn, peer(1), "s SELECT INBOX", selectReply...)
	status := readQuery(peer(3), `STATUS "INBOX" (HIGHESTMODSEQ)`)
	relayCommand(t, all[1].scriptedConn, peer(2), "s SELECT INBOX", selectReply...) // while the first queries
	relayCommand(t, all[1].scriptedConn, peer(2), "a1 NOOP", "a1 OK done")
	answerQueries(peer(3), status)
	answerQueries(peer(4), readQuery(peer(4), `STATUS "INBOX" (HIGHESTMODSEQ)`))
	all[1].scriptedConn.send("a2 NOOP\r\n")
	tag := readQuery(peer(2), "NOOP") // confirmModseq
	peer(2).send(tag + " OK done\r\n")
	testkit.NoError(t, peer(2).expect("a2 NOOP\r\n"))
	peer(2).send("a2 OK done\r\n")
	testkit.NoError(t, all[1].scriptedConn.expect("a2 OK done\r\n"))
	h.deps.Sessions.AbortAll(event.Drained)
	for _, a := range all {
		h.awaitEnd(a)
	}
	h.close(all...)
}
