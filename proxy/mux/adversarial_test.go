package mux

import "testing"

// adversarialCase is one thing that clients, backends or the time between them do to a
// proxy that means well, and the dialogues or tests that show what comes of it.
type adversarialCase struct {
	attack    string
	dialogues []string // titles of dialogues
}

// adversarialCases is the list. What concerns mailboxes that nobody watches, and users
// who move while they are logged in, is not on it. Constant.
var adversarialCases = []adversarialCase{
	{"tag equal to a tag of ours", []string{"A client whose tag begins as ours do is served under another"}},
	{"tag used again while outstanding", []string{"A tag that is used again waits for the first"}},
	{"LOGOUT inside a literal or a quoted string", []string{"LOGOUT inside a quoted string is none", "LOGOUT inside a literal is none",
		"LOGOUT inside a literal of a collected command is none"}},
	{"literal of 2^63", []string{"A literal of 2^63 octets ends the session", "A literal of 2^63-1 octets is too large for a command",
		"A message of 2^63-1 octets is for the backend to refuse", "A literal of 2^63 octets is passed on, as if it were none"}},
	{"{0}", []string{"An empty literal is a literal", "An empty literal that is waited with is a literal, too", "An empty message is appended"}},
	{"literal as the mailbox of SELECT", []string{"The mailbox of SELECT may be a literal",
		"A literal of SELECT that is refused leaves nobody knowing what is selected"}},
	{"mailboxes called NIL, iNbOx, in mUTF-7, in UTF-8, with a separator at the end", []string{"A mailbox called NIL is one",
		"INBOX is INBOX in whatever letters", "A quoted name with escapes and a separator at its end is asked for again as it is",
		"A name in 8-bit bytes is asked for again as a literal"}},
	{"SELECT of the same mailbox without an upstream", []string{"SELECT of the same mailbox without a lease is a selection like any other"}},
	{"SELECT answered NO, then FETCH", []string{"SELECT that fails leaves no mailbox, whatever comes"}},
	{"IDLE without a mailbox", []string{"IDLE without a mailbox is the gateway's own"}},
	{"DONE in pieces, in small letters, with another command", []string{"DONE may come in pieces", "DONE may be in small letters",
		"DONE and the next IDLE may come at once", "DONE and a command with numbers may come at once"}},
	{"all messages gone meanwhile", []string{"All messages are gone"}},
	{"mailbox deleted and made again meanwhile", []string{"Another UIDVALIDITY on the way back is the end", "Another MAILBOXID on the way back is the end"}},
	{"mailbox deleted meanwhile", []string{"A mailbox that is gone ends the session"}},
	{"last message gone, then FETCH *", []string{"The last message is gone when it is asked for"}},
	{"UID FETCH * in an empty mailbox", []string{"All messages are gone"}},
	{"EXISTS inside a UID SEARCH of ours", []string{"EXISTS that grows while UIDs are asked for has them asked for again",
		"EXISTS that grows on the way back is told, and has another's UIDs asked for later"}},
	{"keyword made meanwhile, access lost meanwhile", []string{"On the way back a client is told what has gone, what has come and what has changed"}},
	{"password changed", []string{"A login that is refused on the way back ends the session", "A login that is refused in IDLE ends the session"}},
	{"token expired", []string{"A token that has expired ends the session"}},
	{"BYE behind the OK of NOOP", []string{"A BYE behind the OK of NOOP is a loss"}},
	{"EXPUNGE during FETCH", []string{"An expunge during FETCH is passed on as it would be spliced"}},
	{"CAPABILITY and ALERT twice", []string{"Capabilities and referrals of the backend are not the client's business",
		"Capabilities in the answer to SELECT are not the client's business either"}},
	{"COMPRESS though it is hidden", []string{"Commands that are hidden stay so"}},
	{"QRESYNC client with messages gone whose UIDs are unknown", []string{"A QRESYNC client with messages of unknown UID that are gone cannot be told"}},
	{"STORE (UNCHANGEDSINCE) and a loss", []string{"STORE UNCHANGEDSINCE is not repeated"}},
	{"MESSAGELIMIT below the mailbox's size", []string{"A limit on messages keeps the view from being learned"}},
	// 100,000 EXPUNGEs at once: TestAHundredThousandExpunges…
	// A client that does not read: TestAClientThatDoesNotReadIsDisconnected, TestASlowClientReceivesTheWholeResponse
	// Two sessions that wake at the limit: TestTwoSessionsThatWakeAtTheLimitWaitForEachOther
}

func TestEveryAdversarialCaseHasADialogue(t *testing.T) {
	titles := map[string]bool{}
	for _, d := range readDialogues(t) {
		if titles[d.title] {
			t.Errorf("two dialogues are called %q", d.title)
		}
		titles[d.title] = true
	}
	for _, a := range adversarialCases {
		for _, title := range a.dialogues {
			if !titles[title] {
				t.Errorf("%s: no dialogue is called %q", a.attack, title)
			}
		}
	}
}
