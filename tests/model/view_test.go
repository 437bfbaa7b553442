package model

import (
	"errors"
	"strings"
	"testing"
)

// playDialogue plays a dialogue to a new View. "C: " is a complete command, "c: " a command
// whose literal is not sent yet, "S: " a response. It returns the line that violates IMAP
// and the violation.
func playDialogue(t *testing.T, kind SyncLevel, dialogue string) (line, violation string) {
	t.Helper()
	account := newAccount("alice")
	m := NewView(kind, account)
	for line = range strings.Lines(dialogue) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		direction, text, _ := strings.Cut(line, ": ")
		switch direction {
		case "C", "c":
			m.RecordSent(parseCommand(m, direction, text))
			continue
		case "S":
		default:
			t.Fatalf("a line without C:, c: or S: %q", line)
		}
		if err := m.Receive(parseResponse(text)); err != nil {
			var v *Violation
			if !errors.As(err, &v) {
				t.Fatalf("%q gives an error that is not a violation: %v", line, err)
			}
			return line, err.Error()
		}
	}
	return "", ""
}

// parseCommand parses the command of a line.
func parseCommand(m *View, direction, text string) *Command {
	tag, rest, _ := strings.Cut(text, " ")
	verb, args, _ := strings.Cut(rest, " ")
	if verb == "UID" {
		second, more, _ := strings.Cut(args, " ")
		verb, args = verb+" "+second, more
	}
	c := newCommand(verb, args)
	c.tag, c.complete, c.syncLiteral = tag, direction == "C", direction == "c"
	if verb == "UID SEARCH" && strings.HasPrefix(args, "1:") {
		c.markNumbered()
	}
	if verb == "SELECT" || verb == "EXAMINE" {
		c.mailbox = "INBOX"
		if m.saved != nil && strings.Contains(args, "QRESYNC") {
			c.resyncFrom = m.saved
		}
	}
	return c
}

// parseResponse parses the response of a line. <…> is a literal, in which | is CRLF.
func parseResponse(text string) Response {
	var r Response
	for {
		before, rest, ok := strings.Cut(text, "<")
		r.Text += before
		if !ok {
			return r
		}
		literal, after, _ := strings.Cut(rest, ">")
		literal = strings.ReplaceAll(literal, "|", "\r\n")
		r.Literals = append(r.Literals, literal)
		r.Text += "{1}"
		text = after
	}
}

// The beginnings of dialogues. INBOX has three messages with the UIDs 4, 5 and 7.
const (
	selectDialogue = `
		C: a1 SELECT INBOX
		S: * FLAGS (\Seen \Deleted k1)
		S: * 3 EXISTS
		S: * 0 RECENT
		S: * OK [UIDVALIDITY 9] ok
		S: * OK [HIGHESTMODSEQ 20] ok
		S: a1 OK [READ-WRITE] done
		C: a2 FETCH 1:3 (UID FLAGS)
		S: * 1 FETCH (UID 4 FLAGS ())
		S: * 2 FETCH (UID 5 FLAGS (\Seen))
		S: * 3 FETCH (UID 7 FLAGS ())
		S: a2 OK done
`
	enableDialogue = `
		C: a0 ENABLE QRESYNC
		S: * ENABLED QRESYNC
		S: a0 OK done
` + selectDialogue
	resumeDialogue = enableDialogue + `
		C: a3 UNSELECT
		S: a3 OK done
		C: a4 SELECT INBOX (QRESYNC (9 20))
		S: * FLAGS (\Seen \Deleted k1)
		S: * OK [UIDVALIDITY 9] ok
`
)

func TestModelRejectsForbiddenResponses(t *testing.T) {
	for _, c := range []struct {
		name     string
		kind     SyncLevel
		dialogue string // the last line is the violation
		want     string
	}{
		{"an expunge with no command in progress", Plain, selectDialogue + "S: * 1 EXPUNGE", "no command in progress"},
		{"an expunge during FETCH", Plain, selectDialogue + "C: a3 FETCH 1 (UID)\nS: * 1 EXPUNGE", "during FETCH"},
		{"an expunge during STORE", Plain, selectDialogue + "C: a3 STORE 1 +FLAGS (k1)\nS: * 1 EXPUNGE", "during STORE"},
		{"an expunge during SEARCH", Plain, selectDialogue + "C: a3 SEARCH ALL\nS: * 1 EXPUNGE", "during SEARCH"},
		{"an expunge during UID SEARCH with numbers", Plain, selectDialogue + "C: a3 UID SEARCH 1:2\nS: * 1 EXPUNGE", "during UID SEARCH"},
		{"an expunge before APPEND is complete", Plain, selectDialogue + "c: a3 APPEND INBOX\nS: * 1 EXPUNGE", "before APPEND is complete"},
		{"VANISHED with no command in progress", Qresync, enableDialogue + "S: * VANISHED 4", "no command in progress"},
		{"VANISHED during FETCH", Qresync, enableDialogue + "C: a3 FETCH 1 (UID)\nS: * VANISHED 4", "during FETCH"},
		{"an expunge of a number that is too large", Plain, selectDialogue + "C: a3 NOOP\nS: * 4 EXPUNGE", "message 4 of 3"},
		{"an expunge of message 0", Plain, selectDialogue + "C: a3 NOOP\nS: * 0 EXPUNGE", "message 0 of 3"},
		{"FETCH of a number that is too large", Plain, selectDialogue + "S: * 4 FETCH (FLAGS ())", "message 4 of 3"},
		{"SEARCH finds a number that is too large", Plain, selectDialogue + "C: a3 SEARCH ALL\nS: * SEARCH 1 4", "message 4 of 3"},
		{"EXISTS that shrinks", Plain, selectDialogue + "C: a3 NOOP\nS: * 2 EXISTS", "there were 3"},
		{"EXISTS that shrinks after an expunge", Plain, selectDialogue + "C: a3 NOOP\nS: * 1 EXPUNGE\nS: * 2 EXISTS\nS: * 1 EXISTS", "there were 2"},
		{"a message with another UID", Plain, selectDialogue + "S: * 2 FETCH (UID 6 FLAGS ())", "was 5"},
		{"a UID at another number", Plain, selectDialogue + "C: a3 NOOP\nS: * 4 EXISTS\nS: * 4 FETCH (UID 7 FLAGS ())", "message 3 is UID 7"},
		{"numbers that were not moved down", Plain, selectDialogue + "C: a3 NOOP\nS: * 1 EXPUNGE\nS: * 2 FETCH (UID 5 FLAGS ())", "was 7"},
		{"EXPUNGE for a QRESYNC client", Qresync, enableDialogue + "C: a3 NOOP\nS: * 1 EXPUNGE", "QRESYNC client"},
		{"VANISHED for a plain client", Plain, selectDialogue + "C: a3 NOOP\nS: * VANISHED 4", "did not enable QRESYNC"},
		{"VANISHED for a CONDSTORE client", Condstore, selectDialogue + "C: a3 NOOP\nS: * VANISHED 4", "did not enable QRESYNC"},
		{"VANISHED of an unknown UID", Qresync, enableDialogue + "C: a3 NOOP\nS: * VANISHED 6", "does not exist"},
		{"unsolicited VANISHED (EARLIER)", Qresync, enableDialogue + "C: a3 NOOP\nS: * VANISHED (EARLIER) 4", "without QRESYNC"},
		{"MODSEQ for a plain client", Plain, selectDialogue + "S: * 2 FETCH (MODSEQ (5) FLAGS ())", "enabled nothing"},
		{"HIGHESTMODSEQ for a plain client", Plain, selectDialogue + "S: * OK [HIGHESTMODSEQ 21] ok", "enabled nothing"},
		{"HIGHESTMODSEQ that decreases", Qresync, enableDialogue + "C: a3 NOOP\nS: * OK [HIGHESTMODSEQ 19] ok", "decreases"},
		{"HIGHESTMODSEQ that decreases with a tag", Qresync, enableDialogue + "C: a3 NOOP\nS: a3 OK [HIGHESTMODSEQ 19] ok", "decreases"},
		{"HIGHESTMODSEQ that decreases over SELECT", Qresync, resumeDialogue + "S: * 3 EXISTS\nS: * OK [HIGHESTMODSEQ 19] ok\nS: a4 OK [READ-WRITE] ok", "was 20"},
		{"VANISHED (EARLIER) that leaves one out", Qresync, resumeDialogue + "S: * 2 EXISTS\nS: * OK [HIGHESTMODSEQ 22] ok\nS: a4 OK [READ-WRITE] ok", "3 messages are left"},
		{"VANISHED (EARLIER) that leaves one out for which another came", Qresync, resumeDialogue + "S: * 3 EXISTS\nS: * OK [HIGHESTMODSEQ 22] ok\nS: * 3 FETCH (UID 8 FLAGS () MODSEQ (21))\nS: a4 OK [READ-WRITE] ok", "was 7"},
		{"an unknown tag", Plain, selectDialogue + "C: a3 NOOP\nS: a4 OK done", "an unknown tag"},
		{"a tag twice", Plain, selectDialogue + "C: a3 NOOP\nS: a3 OK done\nS: a3 OK done", "an unknown tag"},
		{"tags out of order", Plain, selectDialogue + "C: a3 NOOP\nC: a4 NOOP\nS: a4 OK done", "before a3"},
		{"a tag of the gateway's own", Plain, selectDialogue + "C: a3 NOOP\nS: zq7f3k2a1 OK done", "an unknown tag"},
		{"OK before the literal was sent", Plain, selectDialogue + "c: a3 APPEND INBOX\nS: a3 OK [APPENDUID 9 8] done", "before it was complete"},
		{"an unsolicited continuation", Plain, selectDialogue + "C: a3 NOOP\nS: + go", "no command waits"},
		{"a second continuation", Plain, selectDialogue + "C: a3 IDLE\nS: + go\nS: + go", "second continuation"},
		{"BAD", Plain, selectDialogue + "C: a3 NOOP\nS: a3 BAD what", "BAD what"},
		{"an unsolicited search result", Plain, selectDialogue + "C: a3 NOOP\nS: * SEARCH 1 2", "no search"},
		{"the result of another search", Plain, selectDialogue + "C: a3 UID SEARCH RETURN (ALL) ALL\nS: * ESEARCH (TAG \"zz1\") UID ALL 1:3", "another search"},
		{"UIDs for message numbers", Plain, selectDialogue + "C: a3 SEARCH RETURN (ALL) ALL\nS: * ESEARCH (TAG \"a3\") UID ALL 4:5", "for UIDs"},
		{"STATUS unsolicited", Plain, selectDialogue + "C: a3 NOOP\nS: * STATUS INBOX (MESSAGES 3)", "STATUS"},
		{"CAPABILITY unsolicited", Plain, selectDialogue + "C: a3 NOOP\nS: * CAPABILITY IMAP4rev1", "CAPABILITY"},
		{"ENABLED unsolicited", Plain, selectDialogue + "C: a3 NOOP\nS: * ENABLED CONDSTORE", "ENABLED"},
		{"a keyword that is not in FLAGS", Plain, selectDialogue + "S: * 1 FETCH (FLAGS (k2))", "k2"},
		{"content that changes", Plain, selectDialogue + "C: a3 FETCH 1 (X)\nS: * 1 FETCH (BODY[HEADER.FIELDS (SUBJECT)] <Subject: zz-alice-1||>)\nS: a3 OK done\nC: a4 FETCH 1 (X)\nS: * 1 FETCH (BODY[HEADER.FIELDS (SUBJECT)] <Subject: zz-alice-2||>)", "and was"},
		{"one content at two UIDs", Plain, selectDialogue + "C: a3 FETCH 1:2 (X)\nS: * 1 FETCH (BODY[HEADER.FIELDS (SUBJECT)] <Subject: zz-alice-1||>)\nS: * 2 FETCH (BODY[HEADER.FIELDS (SUBJECT)] <Subject: zz-alice-1||>)", "twice"},
		{"a broken message", Plain, selectDialogue + "C: a3 FETCH 1 (BODY[])\nS: * 1 FETCH (BODY[] <Subject: zz-alice-1||torn off>)", "broken content"},
		{"content that was not fetched", Plain, selectDialogue + "C: a3 NOOP\nS: * 1 FETCH (BODY[HEADER.FIELDS (SUBJECT)] <Subject: zz-alice-1||>)", "without a FETCH"},
		{"content of another user", Plain, selectDialogue + "C: a3 FETCH 1 (X)\nS: * 1 FETCH (BODY[HEADER.FIELDS (SUBJECT)] <Subject: zz-bob-1||>)", "content of bob"},
		{"text with content of another user", Plain, selectDialogue + "S: * OK zz-bob-3 is here", "content of bob"},
		{"two sizes in one SELECT", Plain, "C: a1 SELECT INBOX\nS: * 3 EXISTS\nS: * 4 EXISTS", "3 EXISTS and 4 EXISTS"},
		{"another mailbox without CLOSED", Plain, selectDialogue + "C: a3 SELECT INBOX\nS: * FLAGS ()\nS: * 4 EXISTS\nS: * OK [UIDVALIDITY 9] ok\nS: a3 OK [READ-WRITE] ok", "without CLOSED"},
		{"a smaller mailbox without CLOSED", Plain, selectDialogue + "C: a3 SELECT INBOX\nS: * FLAGS ()\nS: * 2 EXISTS", "there were 3"},
		{"CLOSED unsolicited", Plain, selectDialogue + "C: a3 NOOP\nS: * OK [CLOSED] ok", "[CLOSED]"},
		{"another UIDVALIDITY", Plain, selectDialogue + "C: a3 UNSELECT\nS: a3 OK ok\nC: a4 SELECT INBOX\nS: * 3 EXISTS\nS: * OK [UIDVALIDITY 10] ok\nS: a4 OK [READ-WRITE] ok", "was 9"},
		{"UIDVALIDITY outside SELECT", Plain, selectDialogue + "S: * OK [UIDVALIDITY 10] ok", "outside SELECT"},
		{"SELECT with READ-ONLY", Plain, "C: a1 SELECT INBOX\nS: * 3 EXISTS\nS: * OK [UIDVALIDITY 9] ok\nS: a1 OK [READ-ONLY] ok", "READ-ONLY"},
		{"EXISTS without a mailbox", Plain, "C: a1 NOOP\nS: * 3 EXISTS", "without a mailbox"},
		{"an untagged NO", Plain, selectDialogue + "S: * NO what", "NO what"},
		{"half of a response", Plain, selectDialogue + "S: * 2 FET", "unknown response"},
		{"FETCH that does not end", Plain, selectDialogue + "S: * 2 FETCH (FLAGS (k1)", "broken FETCH"},
		{"FETCH with more after it", Plain, selectDialogue + "S: * 2 FETCH (FLAGS (k1)) * 1 EXPUNGE", "broken FETCH"},
		{"a line without a tag", Plain, selectDialogue + "S: EXISTS", "an unknown tag"},
		{"a tagged response of no status", Plain, selectDialogue + "C: a3 NOOP\nS: a3 * 1 EXISTS", "broken tagged"},
	} {
		t.Run(c.name, func(t *testing.T) {
			lines := strings.Split(c.dialogue, "\n")
			at, violation := playDialogue(t, c.kind, c.dialogue)
			if at != strings.TrimSpace(lines[len(lines)-1]) || !strings.Contains(violation, c.want) {
				t.Errorf("violation at %q: %q; want %q at the last line", at, violation, c.want)
			}
		})
	}
}

func TestModelAcceptsAllowedResponses(t *testing.T) {
	for _, c := range []struct {
		name     string
		kind     SyncLevel
		dialogue string
	}{
		{"expunges and arrivals during NOOP", Plain, selectDialogue + `
			C: a3 NOOP
			S: * 2 EXPUNGE
			S: * 4 EXISTS
			S: * 2 FETCH (UID 7 FLAGS (k1))
			S: a3 OK done`},
		{"changes of the previous mailbox, with a new keyword, before CLOSED", Plain, selectDialogue + `
			C: a3 SELECT INBOX
			S: * FLAGS (\Seen \Deleted k1 k2)
			S: * 1 FETCH (FLAGS (k2))
			S: * 4 EXISTS
			S: * OK [CLOSED] ok
			S: * FLAGS (\Seen \Deleted k1 k2)
			S: * 3 EXISTS
			S: * OK [UIDVALIDITY 9] ok
			S: * OK [HIGHESTMODSEQ 20] ok
			S: a3 OK [READ-WRITE] ok`},
		{"expunges during UID FETCH, COPY and IDLE", Plain, selectDialogue + `
			C: a3 UID FETCH 4 (UID)
			S: * 2 EXPUNGE
			S: a3 OK done
			C: a4 COPY 1 Box
			S: * 2 EXPUNGE
			S: a4 NO [EXPUNGEISSUED] gone
			C: a5 IDLE
			S: + idling
			S: * 1 EXPUNGE
			S: a5 OK done`},
		{"flags and arrivals with no command in progress", Plain, selectDialogue + `
			S: * 2 FETCH (FLAGS (\Deleted))
			S: * 4 EXISTS`},
		{"VANISHED of an unknown arrival", Qresync, enableDialogue + `
			C: a3 NOOP
			S: * 5 EXISTS
			S: * VANISHED 9
			S: * OK [HIGHESTMODSEQ 22] ok
			S: a3 OK done`},
		{"a resync from the saved state", Qresync, resumeDialogue + `
			S: * 3 EXISTS
			S: * OK [HIGHESTMODSEQ 25] ok
			S: * VANISHED (EARLIER) 5
			S: * 2 FETCH (UID 7 FLAGS (\Seen) MODSEQ (22))
			S: * 3 FETCH (UID 8 FLAGS () MODSEQ (25))
			S: a4 OK [READ-WRITE] ok`},
		{"a command without a sync overtakes", Plain, selectDialogue + `
			C: a3 UID FETCH 4 (UID)
			C: a4 STATUS Box (MESSAGES)
			S: * STATUS Box (MESSAGES 3)
			S: a4 OK done
			S: a3 OK done`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if at, violation := playDialogue(t, c.kind, c.dialogue); at != "" {
				t.Errorf("violation at %q: %s", at, violation)
			}
		})
	}
}

// The comparison of a view with the backend must report every difference.
func TestModelDetectsEveryDifference(t *testing.T) {
	stored := []fetchResponse{
		{number: 1, uid: 4, flags: []string{"k1"}, header: "Subject: s1\r\n\r\n"},
		{number: 2, uid: 5, flags: []string{`\Recent`, `\Seen`}, header: "Subject: s2\r\n\r\n"},
	}
	flag := func(names ...string) map[string]struct{} {
		set := map[string]struct{}{}
		for _, n := range names {
			set[n] = struct{}{}
		}
		return set
	}
	for _, c := range []struct {
		name    string
		entries []viewEntry
		want    string
	}{
		{"nothing", []viewEntry{{uid: 4, flags: flag("k1"), subject: "s1"}, {uid: 5, flags: flag(`\Seen`)}}, ""},
		{"nothing that is known", []viewEntry{{}, {uid: 5}}, ""},
		{"nothing that is sure", []viewEntry{{uid: 4, flags: flag("k1", "k2"), uncertain: flag("k2")}, {}}, ""},
		{"an extra message", []viewEntry{{}, {}, {}}, "3 messages"},
		{"another UID", []viewEntry{{uid: 3}, {}}, "UID 3"},
		{"an extra flag", []viewEntry{{uid: 4, flags: flag("k1", "k2")}, {}}, "k2"},
		{"a missing flag", []viewEntry{{uid: 4, flags: flag()}, {}}, "k1"},
		{"another content", []viewEntry{{uid: 4, subject: "s2"}, {}}, `"s2"`},
	} {
		a := &Client{sim: &Simulation{}, view: &View{entries: c.entries}}
		err := a.compareView(stored)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", c.name, err, c.want)
		}
	}
}

func TestModelChecksCopies(t *testing.T) {
	s := strings.Fields
	for _, c := range []struct {
		name                 string
		got                  []string
		answered, unanswered [][]string
		ok                   bool
	}{
		{"nothing", nil, nil, nil, true},
		{"all in order", s("a b c"), [][]string{s("a b"), s("c")}, nil, true},
		{"one twice", s("a b a b"), [][]string{s("a b")}, nil, false},
		{"another message", s("a x"), [][]string{s("a b")}, nil, false},
		{"another order", s("b a"), [][]string{s("a b")}, nil, false},
		{"one missing", s("a"), [][]string{s("a"), s("c")}, nil, false},
		{"half of one", s("a"), [][]string{s("a b")}, nil, false},
		{"an unanswered one that happened", s("a b c"), [][]string{s("a")}, [][]string{s("b c")}, true},
		{"an unanswered one that did not", s("a"), [][]string{s("a")}, [][]string{s("b c")}, true},
		{"half of an unanswered one", s("a b"), [][]string{s("a")}, [][]string{s("b c")}, false},
		{"an unanswered one twice", s("b c b c"), nil, [][]string{s("b c")}, false},
		{"two that begin alike", s("a b a c"), [][]string{s("a c")}, [][]string{s("a b")}, true},
	} {
		if problem := explainCopies(c.got, c.answered, c.unanswered); (problem == "") != c.ok {
			t.Errorf("%s: %q", c.name, problem)
		}
	}
}

func TestModelCountsArrivals(t *testing.T) {
	a := newAccount("alice")
	for _, status := range []string{"OK", "OK", "NO", ""} {
		a.countAppend(status)
	}
	for n, ok := range map[int]bool{1: false, 2: true, 3: true, 4: false} {
		if err := a.checkArrivals(n); (err == nil) != ok {
			t.Errorf("%d messages: %v", n, err)
		}
	}
}
