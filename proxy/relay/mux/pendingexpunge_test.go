package mux

import (
	"strings"
	"testing"
)

// runPacket runs a dialogue whose client sends several commands in one packet. The
// gateway considers only buffered commands as queued.
func (s *scriptedTest) runPacket(lines string) {
	s.t.Helper()
	s.run(strings.Split(strings.TrimSpace(lines), "\n")...)
	s.end()
}

const (
	// A mailbox of three messages. The upstream is lost, and the first message is
	// expunged.
	threeMessages = `
OPEN 3 4 7
U1 ~q UID SEARCH RETURN (ALL) 1:3
B1 * ESEARCH (TAG "~q") UID ALL 1:3
B1 ~q OK done
`
	lostUpstream = `B1-END
ARRIVED 1
M mux_sessions{state="detached"} 1
`
)

func TestOnlyMailboxCommandsAreRefusedBeforeACommandWithNumbers(t *testing.T) {
	s := newScriptedTest(t, setup{settings: Settings{UIDPrefetch: PrefetchEager}})
	s.runPacket(threeMessages + lostUpstream + `C! "d LIST \"\" INBOX\r\ne NOOP\r\nf STATUS INBOX (MESSAGES)\r\nu UID FETCH 3 FLAGS\r\ng FETCH 1 (FLAGS)\r\n"
REOPEN 2 2 4 7
U2 ~a UID SEARCH RETURN (ALL) 1:2
B2 * ESEARCH (TAG "~a") UID ALL 2:3
B2 ~a OK done
U3 d LIST "" INBOX
B3 * LIST () "/" INBOX
B3 d OK done
P * LIST () "/" INBOX
P d OK done
REOPEN 3 2 4 7
U3 ~b UID SEARCH RETURN (ALL) 1:2
B3 * ESEARCH (TAG "~b") UID ALL 2:3
B3 ~b OK done
P e OK NOOP completed.
REOPEN 4 2 4 7
U4 ~c UID SEARCH RETURN (ALL) 1:2
B4 * ESEARCH (TAG "~c") UID ALL 2:3
B4 ~c OK done
U5 f STATUS INBOX (MESSAGES)
B5 * STATUS INBOX (MESSAGES 2)
B5 f OK done
P * STATUS INBOX (MESSAGES 2)
P f OK done
REOPEN 5 2 4 7
U5 ~d UID SEARCH RETURN (ALL) 1:2
B5 * ESEARCH (TAG "~d") UID ALL 2:3
B5 ~d OK done
P u NO [EXPUNGEISSUED] …
REOPEN 6 2 4 7
U6 ~e UID SEARCH RETURN (ALL) 1:2
B6 * ESEARCH (TAG "~e") UID ALL 2:3
B6 ~e OK done
P g NO [EXPUNGEISSUED] …
C h NOOP
REOPEN 7 2 4 7
U7 ~f UID SEARCH RETURN (ALL) 1:2
B7 * ESEARCH (TAG "~f") UID ALL 2:3
B7 ~f OK done
P * 1 EXPUNGE
U7 h NOOP
B7 h OK done
P h OK done`)
}

func TestOnlyMailboxCommandsAreRefusedAfterALoss(t *testing.T) {
	s := newScriptedTest(t, setup{settings: Settings{UIDPrefetch: PrefetchEager}})
	s.runPacket(threeMessages + `C! "d STATUS INBOX (MESSAGES)\r\ne NOOP\r\ng FETCH 1 (FLAGS)\r\n"
U1 d STATUS INBOX (MESSAGES)
U1 e NOOP
U1 g FETCH 1 (FLAGS)
B1-END
REOPEN 2 2 4 7
U2 ~a UID SEARCH RETURN (ALL) 1:2
B2 * ESEARCH (TAG "~a") UID ALL 2:3
B2 ~a OK done
U3 d STATUS INBOX (MESSAGES)
B3 * STATUS INBOX (MESSAGES 2)
B3 d OK done
P * STATUS INBOX (MESSAGES 2)
P d OK done
P e OK NOOP completed.
P g NO [EXPUNGEISSUED] …`)
}

func TestSTATUSReportsNoModseqBeyondPendingExpunges(t *testing.T) {
	s := newScriptedTest(t, setup{settings: Settings{UIDPrefetch: PrefetchEager}})
	s.runPacket(threeMessages + lostUpstream + `C! "f STATUS INBOX (HIGHESTMODSEQ)\r\ng FETCH 1 (FLAGS)\r\n"
U2 ~e ENABLE CONDSTORE
B2 * ENABLED CONDSTORE
B2 ~e OK done
REOPEN 2 2 4 7
U2 ~a UID SEARCH RETURN (ALL) 1:2
B2 * ESEARCH (TAG "~a") UID ALL 2:3
B2 ~a OK done
P f NO [EXPUNGEISSUED] …
U3 ~f ENABLE CONDSTORE
B3 * ENABLED CONDSTORE
B3 ~f OK done
REOPEN 3 2 4 7
U3 ~b UID SEARCH RETURN (ALL) 1:2
B3 * ESEARCH (TAG "~b") UID ALL 2:3
B3 ~b OK done
P g NO [EXPUNGEISSUED] …`)
}

func TestIDLEBeginsBeforeACommandWithNumbers(t *testing.T) {
	s := newScriptedTest(t, setup{settings: Settings{UIDPrefetch: PrefetchEager}})
	s.runPacket(threeMessages + lostUpstream + `C! "d IDLE\r\nDONE\r\ng FETCH 1 (FLAGS)\r\n"
REOPEN 2 2 4 7
U2 ~a UID SEARCH RETURN (ALL) 1:2
B2 * ESEARCH (TAG "~a") UID ALL 2:3
B2 ~a OK done
P + idling
REOPEN 3 2 4 7
U3 ~b UID SEARCH RETURN (ALL) 1:2
B3 * ESEARCH (TAG "~b") UID ALL 2:3
B3 ~b OK done
P d OK Idle completed.
REOPEN 4 2 4 7
U4 ~c UID SEARCH RETURN (ALL) 1:2
B4 * ESEARCH (TAG "~c") UID ALL 2:3
B4 ~c OK done
P g NO [EXPUNGEISSUED] …`)
}
