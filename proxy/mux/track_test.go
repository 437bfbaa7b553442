package mux

import (
	"strings"
	"testing"

	"imapgate/internal/audit"
)

// Two sessions of one user are in a mailbox of which the backend keeps no
// mod-sequences yet. There is one auxiliary connection for both: the session that
// does not get it asks later.
func TestModSequencesAreAskedForAgainWhenAnotherSessionAsks(t *testing.T) {
	leavesNothing(t)
	y := newStage(t, setup{settings: Settings{Learn: Eager, Consistent: true, MaxPerUser: 8}}, nil)
	defer y.stub.close()
	all := []*actor{y.join(), y.join()}
	peer := func(n int) *party {
		t.Helper()
		p, err := y.stub.peer(n)
		must(t, err)
		return p
	}
	// hears is the tag of a question of ours.
	hears := func(p *party, question string) string {
		t.Helper()
		line, err := p.line()
		must(t, err)
		tag, got, _ := strings.Cut(strings.TrimSuffix(line, "\r\n"), " ")
		if got != question {
			t.Fatalf("heard %q, want %q", got, question)
		}
		return tag
	}
	selects := append(mailboxLines("0", "1", "0"), "s OK [READ-WRITE] done")
	answers := func(p *party, status string) {
		t.Helper()
		p.say("* STATUS INBOX (HIGHESTMODSEQ 5)\r\n" + status + " OK done\r\n")
		p.say(hears(p, `EXAMINE "INBOX"`) + " OK done\r\n")
	}
	exchange(t, all[0].party, peer(1), "s SELECT INBOX", selects...)
	status := hears(peer(3), `STATUS "INBOX" (HIGHESTMODSEQ)`)
	exchange(t, all[1].party, peer(2), "s SELECT INBOX", selects...) // while the first asks
	exchange(t, all[1].party, peer(2), "a1 NOOP", "a1 OK done")
	answers(peer(3), status)
	answers(peer(4), hears(peer(4), `STATUS "INBOX" (HIGHESTMODSEQ)`))
	all[1].party.say("a2 NOOP\r\n")
	tag := hears(peer(2), "NOOP") // which makes it true of the client
	peer(2).say(tag + " OK done\r\n")
	must(t, peer(2).exactly("a2 NOOP\r\n"))
	peer(2).say("a2 OK done\r\n")
	must(t, all[1].party.exactly("a2 OK done\r\n"))
	y.hub.EndAll(audit.Kicked)
	for _, a := range all {
		y.leave(a)
	}
	y.close(all...)
}
