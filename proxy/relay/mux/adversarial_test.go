package mux

import "testing"

// adversarialCase is one problem that clients, backends or timing cause to a proxy, and the
// dialogues that show the result.
type adversarialCase struct {
	attack    string
	dialogues []string // titles of dialogues
}

// adversarialCases lists them. It excludes parked mailboxes without watchers, and users who
// move while they are logged in. Constant.
var adversarialCases = []adversarialCase{
	{"tag equal to a tag of the gateway", []string{"A client's tag with the gateway's prefix makes the gateway change its prefix"}},
	{"tag reused while outstanding", []string{"A reused tag waits for the first command"}},
	{"LOGOUT inside a literal or a quoted string", []string{"LOGOUT inside a quoted string is not a command", "LOGOUT inside a literal is not a command",
		"LOGOUT inside a literal of a buffered command is not a command"}},
	{"literal of 2^63", []string{"A literal of 2^63 octets ends the session", "A literal of 2^63-1 octets is too large for a command",
		"The backend decides about a message of 2^63-1 octets", "A literal of 2^63 octets in a response is relayed as text"}},
	{"{0}", []string{"An empty literal is a literal", "An empty synchronizing literal is a literal, too", "An empty message is appended"}},
	{"literal as the mailbox of SELECT", []string{"The mailbox of SELECT may be a literal",
		"After a refused literal of SELECT the selection is unknown"}},
	{"mailboxes called NIL, iNbOx, in mUTF-7, in UTF-8, with a separator at the end", []string{"A mailbox may be called NIL",
		"INBOX is the same mailbox in any case", "A quoted name with escapes and a trailing separator is reselected unchanged",
		"A name in 8-bit bytes is reselected as a literal"}},
	{"SELECT of the same mailbox without an upstream", []string{"SELECT of the same mailbox without a lease is an ordinary selection"}},
	{"SELECT answered NO, then FETCH", []string{"A failed SELECT leaves no mailbox selected, also after a loss"}},
	{"IDLE without a mailbox", []string{"IDLE without a mailbox is the gateway's own"}},
	{"DONE in pieces, in lower case, with another command", []string{"DONE may come in pieces", "DONE may be in lower case",
		"DONE and the next IDLE may come at once", "DONE and a command with numbers may come at once"}},
	{"all messages expunged during the loss", []string{"All messages are expunged"}},
	{"mailbox deleted and created again during the loss", []string{"Another UIDVALIDITY in a reattach ends the session", "Another MAILBOXID in a reattach ends the session"}},
	{"mailbox deleted during the loss", []string{"A mailbox that is gone ends the session"}},
	{"last message expunged, then FETCH *", []string{"The last message is expunged when the client requests it"}},
	{"UID FETCH * in an empty mailbox", []string{"All messages are expunged"}},
	{"EXISTS inside a UID SEARCH of the gateway", []string{"EXISTS that grows while UIDs are queried leads to another query",
		"EXISTS that grows during a reattach is sent, and the new UIDs are queried later"}},
	{"keyword created and access lost during the loss", []string{"After a reattach the client receives expunges, new messages and changes"}},
	{"password changed", []string{"A login refused during a reattach ends the session", "A login refused in IDLE ends the session"}},
	{"token expired", []string{"An expired token ends the session"}},
	{"BYE after the OK of NOOP", []string{"A BYE after the OK of NOOP is a loss"}},
	{"EXPUNGE during FETCH", []string{"An EXPUNGE during FETCH is relayed as in a spliced session"}},
	{"CAPABILITY and ALERT twice", []string{"Capabilities and referrals of the backend do not reach the client",
		"Capabilities in the answer to SELECT do not reach the client either"}},
	{"COMPRESS though it is hidden", []string{"Hidden commands stay hidden"}},
	{"QRESYNC client with expunged messages whose UIDs are unknown", []string{"A QRESYNC client cannot receive expunges of messages with unknown UIDs"}},
	{"STORE (UNCHANGEDSINCE) and a loss", []string{"STORE UNCHANGEDSINCE is not resent"}},
	{"MESSAGELIMIT below the mailbox's size", []string{"A limit on messages prevents the UID prefetch"}},
	// 100,000 EXPUNGEs at once: TestAHundredThousandExpunges…
	// A client that does not read: TestAClientThatDoesNotReadIsDisconnected, TestASlowClientReceivesTheWholeResponse
	// Two sessions that wake at the limit: TestTwoSessionsThatWakeAtTheLimitWaitForEachOther
}

func TestEveryAdversarialCaseHasADialogue(t *testing.T) {
	titles := map[string]bool{}
	for _, d := range readDialogues(t) {
		if titles[d.title] {
			t.Errorf("two dialogues have the title %q", d.title)
		}
		titles[d.title] = true
	}
	for _, a := range adversarialCases {
		for _, title := range a.dialogues {
			if !titles[title] {
				t.Errorf("%s: no dialogue has the title %q", a.attack, title)
			}
		}
	}
}
