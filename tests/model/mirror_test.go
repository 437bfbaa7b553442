package model

import (
	"errors"
	"strings"
	"testing"
)

// hear plays a dialogue to a new Mirror: "C: " is a command that is sent whole,
// "c: " one whose literal is still to come, "S: " what the server says. It gives
// the line at which the Mirror objected, and its words.
func hear(t *testing.T, kind Kind, dialogue string) (at string, objection string) {
	t.Helper()
	account := newAccount("alice")
	m := NewMirror(kind, account)
	for line := range strings.Lines(dialogue) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		who, text, _ := strings.Cut(line, ": ")
		switch who {
		case "C", "c":
			m.Sent(spoken(m, who, text))
			continue
		case "S":
		default:
			t.Fatalf("nobody says %q", line)
		}
		if err := m.Take(literally(text)); err != nil {
			var v *Violation
			if !errors.As(err, &v) {
				t.Fatalf("%q is an error, no violation: %v", line, err)
			}
			return line, err.Error()
		}
	}
	return "", ""
}

// spoken makes the command that a line says.
func spoken(m *Mirror, who, text string) *Command {
	tag, rest, _ := strings.Cut(text, " ")
	verb, args, _ := strings.Cut(rest, " ")
	if verb == "UID" {
		second, more, _ := strings.Cut(args, " ")
		verb, args = verb+" "+second, more
	}
	c := command(verb, args)
	c.tag, c.complete, c.waits = tag, who == "C", who == "c"
	if verb == "UID SEARCH" && strings.HasPrefix(args, "1:") {
		c.numbered()
	}
	if verb == "SELECT" || verb == "EXAMINE" {
		c.selects = "INBOX"
		if m.kept != nil && strings.Contains(args, "QRESYNC") {
			c.resync = m.kept
		}
	}
	return c
}

// literally takes <…> for a literal, in which | is CRLF.
func literally(text string) Response {
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

// The beginnings of dialogues: three messages, UIDs 4, 5 and 7.
const (
	selected = `
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
	enabled = `
		C: a0 ENABLE QRESYNC
		S: * ENABLED QRESYNC
		S: a0 OK done
` + selected
	resumed = enabled + `
		C: a3 UNSELECT
		S: a3 OK done
		C: a4 SELECT INBOX (QRESYNC (9 20))
		S: * FLAGS (\Seen \Deleted k1)
		S: * OK [UIDVALIDITY 9] ok
`
)

func TestTheModelObjectsToWhatAServerMustNotSay(t *testing.T) {
	for _, c := range []struct {
		name     string
		kind     Kind
		dialogue string // its last line is the wrong one
		want     string
	}{
		{"an expunge with no command in progress", Plain, selected + "S: * 1 EXPUNGE", "no command in progress"},
		{"an expunge during FETCH", Plain, selected + "C: a3 FETCH 1 (UID)\nS: * 1 EXPUNGE", "during FETCH"},
		{"an expunge during STORE", Plain, selected + "C: a3 STORE 1 +FLAGS (k1)\nS: * 1 EXPUNGE", "during STORE"},
		{"an expunge during SEARCH", Plain, selected + "C: a3 SEARCH ALL\nS: * 1 EXPUNGE", "during SEARCH"},
		{"an expunge during UID SEARCH with numbers", Plain, selected + "C: a3 UID SEARCH 1:2\nS: * 1 EXPUNGE", "during UID SEARCH"},
		{"an expunge before APPEND is complete", Plain, selected + "c: a3 APPEND INBOX\nS: * 1 EXPUNGE", "before APPEND is complete"},
		{"VANISHED with no command in progress", Qresync, enabled + "S: * VANISHED 4", "no command in progress"},
		{"VANISHED during FETCH", Qresync, enabled + "C: a3 FETCH 1 (UID)\nS: * VANISHED 4", "during FETCH"},
		{"an expunge of a number that is too large", Plain, selected + "C: a3 NOOP\nS: * 4 EXPUNGE", "message 4 of 3"},
		{"an expunge of message 0", Plain, selected + "C: a3 NOOP\nS: * 0 EXPUNGE", "message 0 of 3"},
		{"FETCH of a number that is too large", Plain, selected + "S: * 4 FETCH (FLAGS ())", "message 4 of 3"},
		{"SEARCH finds a number that is too large", Plain, selected + "C: a3 SEARCH ALL\nS: * SEARCH 1 4", "message 4 of 3"},
		{"EXISTS that shrinks", Plain, selected + "C: a3 NOOP\nS: * 2 EXISTS", "there were 3"},
		{"EXISTS that shrinks behind an expunge", Plain, selected + "C: a3 NOOP\nS: * 1 EXPUNGE\nS: * 2 EXISTS\nS: * 1 EXISTS", "there were 2"},
		{"a message with another UID", Plain, selected + "S: * 2 FETCH (UID 6 FLAGS ())", "was 5"},
		{"a UID at another number", Plain, selected + "C: a3 NOOP\nS: * 4 EXISTS\nS: * 4 FETCH (UID 7 FLAGS ())", "message 3 is UID 7"},
		{"numbers that were not moved down", Plain, selected + "C: a3 NOOP\nS: * 1 EXPUNGE\nS: * 2 FETCH (UID 5 FLAGS ())", "was 7"},
		{"EXPUNGE for a QRESYNC client", Qresync, enabled + "C: a3 NOOP\nS: * 1 EXPUNGE", "QRESYNC client"},
		{"VANISHED for a plain client", Plain, selected + "C: a3 NOOP\nS: * VANISHED 4", "did not enable QRESYNC"},
		{"VANISHED for a CONDSTORE client", Condstore, selected + "C: a3 NOOP\nS: * VANISHED 4", "did not enable QRESYNC"},
		{"VANISHED of what is not there", Qresync, enabled + "C: a3 NOOP\nS: * VANISHED 6", "not there"},
		{"VANISHED (EARLIER) unasked", Qresync, enabled + "C: a3 NOOP\nS: * VANISHED (EARLIER) 4", "nothing asked"},
		{"MODSEQ for a plain client", Plain, selected + "S: * 2 FETCH (MODSEQ (5) FLAGS ())", "enabled nothing"},
		{"HIGHESTMODSEQ for a plain client", Plain, selected + "S: * OK [HIGHESTMODSEQ 21] ok", "enabled nothing"},
		{"HIGHESTMODSEQ that goes back", Qresync, enabled + "C: a3 NOOP\nS: * OK [HIGHESTMODSEQ 19] ok", "goes back"},
		{"HIGHESTMODSEQ that goes back with a tag", Qresync, enabled + "C: a3 NOOP\nS: a3 OK [HIGHESTMODSEQ 19] ok", "goes back"},
		{"HIGHESTMODSEQ that goes back over SELECT", Qresync, resumed + "S: * 3 EXISTS\nS: * OK [HIGHESTMODSEQ 19] ok\nS: a4 OK [READ-WRITE] ok", "was 20"},
		{"VANISHED (EARLIER) that leaves one out", Qresync, resumed + "S: * 2 EXISTS\nS: * OK [HIGHESTMODSEQ 22] ok\nS: a4 OK [READ-WRITE] ok", "3 messages are left"},
		{"VANISHED (EARLIER) that leaves one out for which another came", Qresync, resumed + "S: * 3 EXISTS\nS: * OK [HIGHESTMODSEQ 22] ok\nS: * 3 FETCH (UID 8 FLAGS () MODSEQ (21))\nS: a4 OK [READ-WRITE] ok", "was 7"},
		{"an unknown tag", Plain, selected + "C: a3 NOOP\nS: a4 OK done", "nobody's tag"},
		{"a tag twice", Plain, selected + "C: a3 NOOP\nS: a3 OK done\nS: a3 OK done", "nobody's tag"},
		{"tags out of order", Plain, selected + "C: a3 NOOP\nC: a4 NOOP\nS: a4 OK done", "before a3"},
		{"a tag of the gateway's own", Plain, selected + "C: a3 NOOP\nS: zq7f3k2a1 OK done", "nobody's tag"},
		{"OK before the literal was sent", Plain, selected + "c: a3 APPEND INBOX\nS: a3 OK [APPENDUID 9 8] done", "before it was complete"},
		{"a continuation for nobody", Plain, selected + "C: a3 NOOP\nS: + go", "no command waits"},
		{"a second continuation", Plain, selected + "C: a3 IDLE\nS: + go\nS: + go", "second continuation"},
		{"BAD", Plain, selected + "C: a3 NOOP\nS: a3 BAD what", "BAD what"},
		{"a search result for nobody", Plain, selected + "C: a3 NOOP\nS: * SEARCH 1 2", "no search"},
		{"the search result of somebody else", Plain, selected + "C: a3 UID SEARCH RETURN (ALL) ALL\nS: * ESEARCH (TAG \"zz1\") UID ALL 1:3", "somebody else"},
		{"UIDs for message numbers", Plain, selected + "C: a3 SEARCH RETURN (ALL) ALL\nS: * ESEARCH (TAG \"a3\") UID ALL 4:5", "for UIDs"},
		{"STATUS unasked", Plain, selected + "C: a3 NOOP\nS: * STATUS INBOX (MESSAGES 3)", "STATUS"},
		{"CAPABILITY unasked", Plain, selected + "C: a3 NOOP\nS: * CAPABILITY IMAP4rev1", "CAPABILITY"},
		{"ENABLED unasked", Plain, selected + "C: a3 NOOP\nS: * ENABLED CONDSTORE", "ENABLED"},
		{"a keyword nobody announced", Plain, selected + "S: * 1 FETCH (FLAGS (k2))", "k2"},
		{"content that changes", Plain, selected + "C: a3 FETCH 1 (X)\nS: * 1 FETCH (BODY[HEADER.FIELDS (SUBJECT)] <Subject: zz-alice-1||>)\nS: a3 OK done\nC: a4 FETCH 1 (X)\nS: * 1 FETCH (BODY[HEADER.FIELDS (SUBJECT)] <Subject: zz-alice-2||>)", "and was"},
		{"one content at two UIDs", Plain, selected + "C: a3 FETCH 1:2 (X)\nS: * 1 FETCH (BODY[HEADER.FIELDS (SUBJECT)] <Subject: zz-alice-1||>)\nS: * 2 FETCH (BODY[HEADER.FIELDS (SUBJECT)] <Subject: zz-alice-1||>)", "twice"},
		{"a broken message", Plain, selected + "C: a3 FETCH 1 (BODY[])\nS: * 1 FETCH (BODY[] <Subject: zz-alice-1||torn off>)", "broken content"},
		{"content that nobody fetched", Plain, selected + "C: a3 NOOP\nS: * 1 FETCH (BODY[HEADER.FIELDS (SUBJECT)] <Subject: zz-alice-1||>)", "nobody fetched"},
		{"content of somebody else", Plain, selected + "C: a3 FETCH 1 (X)\nS: * 1 FETCH (BODY[HEADER.FIELDS (SUBJECT)] <Subject: zz-bob-1||>)", "content of bob"},
		{"words of somebody else", Plain, selected + "S: * OK zz-bob-3 is here", "content of bob"},
		{"two sizes in one SELECT", Plain, "C: a1 SELECT INBOX\nS: * 3 EXISTS\nS: * 4 EXISTS", "3 EXISTS and 4 EXISTS"},
		{"another mailbox without CLOSED", Plain, selected + "C: a3 SELECT INBOX\nS: * FLAGS ()\nS: * 4 EXISTS\nS: * OK [UIDVALIDITY 9] ok\nS: a3 OK [READ-WRITE] ok", "without CLOSED"},
		{"a smaller mailbox without CLOSED", Plain, selected + "C: a3 SELECT INBOX\nS: * FLAGS ()\nS: * 2 EXISTS", "there were 3"},
		{"CLOSED unasked", Plain, selected + "C: a3 NOOP\nS: * OK [CLOSED] ok", "[CLOSED]"},
		{"another UIDVALIDITY", Plain, selected + "C: a3 UNSELECT\nS: a3 OK ok\nC: a4 SELECT INBOX\nS: * 3 EXISTS\nS: * OK [UIDVALIDITY 10] ok\nS: a4 OK [READ-WRITE] ok", "was 9"},
		{"UIDVALIDITY outside SELECT", Plain, selected + "S: * OK [UIDVALIDITY 10] ok", "outside SELECT"},
		{"SELECT that says READ-ONLY", Plain, "C: a1 SELECT INBOX\nS: * 3 EXISTS\nS: * OK [UIDVALIDITY 9] ok\nS: a1 OK [READ-ONLY] ok", "READ-ONLY"},
		{"EXISTS without a mailbox", Plain, "C: a1 NOOP\nS: * 3 EXISTS", "without a mailbox"},
		{"an untagged NO", Plain, selected + "S: * NO what", "NO what"},
		{"half of a response", Plain, selected + "S: * 2 FET", "unknown response"},
		{"FETCH that does not end", Plain, selected + "S: * 2 FETCH (FLAGS (k1)", "broken FETCH"},
		{"FETCH with more behind it", Plain, selected + "S: * 2 FETCH (FLAGS (k1)) * 1 EXPUNGE", "broken FETCH"},
		{"a line of nothing", Plain, selected + "S: EXISTS", "nobody's tag"},
		{"a tagged response of no status", Plain, selected + "C: a3 NOOP\nS: a3 * 1 EXISTS", "broken tagged"},
	} {
		t.Run(c.name, func(t *testing.T) {
			lines := strings.Split(c.dialogue, "\n")
			at, objection := hear(t, c.kind, c.dialogue)
			if at != strings.TrimSpace(lines[len(lines)-1]) || !strings.Contains(objection, c.want) {
				t.Errorf("objects at %q: %q; want %q at the last line", at, objection, c.want)
			}
		})
	}
}

func TestTheModelDoesNotObjectToWhatAServerMaySay(t *testing.T) {
	for _, c := range []struct {
		name     string
		kind     Kind
		dialogue string
	}{
		{"expunges and arrivals during NOOP", Plain, selected + `
			C: a3 NOOP
			S: * 2 EXPUNGE
			S: * 4 EXISTS
			S: * 2 FETCH (UID 7 FLAGS (k1))
			S: a3 OK done`},
		{"news of the old mailbox, with its new keyword, before CLOSED", Plain, selected + `
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
		{"expunges during UID FETCH, COPY and IDLE", Plain, selected + `
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
		{"flags and arrivals with no command in progress", Plain, selected + `
			S: * 2 FETCH (FLAGS (\Deleted))
			S: * 4 EXISTS`},
		{"VANISHED of an unknown arrival", Qresync, enabled + `
			C: a3 NOOP
			S: * 5 EXISTS
			S: * VANISHED 9
			S: * OK [HIGHESTMODSEQ 22] ok
			S: a3 OK done`},
		{"going on from what was kept", Qresync, resumed + `
			S: * 3 EXISTS
			S: * OK [HIGHESTMODSEQ 25] ok
			S: * VANISHED (EARLIER) 5
			S: * 2 FETCH (UID 7 FLAGS (\Seen) MODSEQ (22))
			S: * 3 FETCH (UID 8 FLAGS () MODSEQ (25))
			S: a4 OK [READ-WRITE] ok`},
		{"what needs no sync overtakes", Plain, selected + `
			C: a3 UID FETCH 4 (UID)
			C: a4 STATUS Box (MESSAGES)
			S: * STATUS Box (MESSAGES 3)
			S: a4 OK done
			S: a3 OK done`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if at, objection := hear(t, c.kind, c.dialogue); at != "" {
				t.Errorf("objects at %q: %s", at, objection)
			}
		})
	}
}

// What the client knows is compared with what is so; every difference counts.
func TestTheModelFindsEveryDifferenceInTheEnd(t *testing.T) {
	truth := []fetched{
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
		entries []entry
		want    string
	}{
		{"nothing", []entry{{uid: 4, flags: flag("k1"), subject: "s1"}, {uid: 5, flags: flag(`\Seen`)}}, ""},
		{"nothing that is known", []entry{{}, {uid: 5}}, ""},
		{"nothing that is sure", []entry{{uid: 4, flags: flag("k1", "k2"), unsure: flag("k2")}, {}}, ""},
		{"a message too many", []entry{{}, {}, {}}, "3 messages"},
		{"another UID", []entry{{uid: 3}, {}}, "UID 3"},
		{"a flag too many", []entry{{uid: 4, flags: flag("k1", "k2")}, {}}, "k2"},
		{"a flag too few", []entry{{uid: 4, flags: flag()}, {}}, "k1"},
		{"another content", []entry{{uid: 4, subject: "s2"}, {}}, `"s2"`},
	} {
		a := &Actor{world: &World{}, mirror: &Mirror{entries: c.entries}}
		err := a.knows(truth)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", c.name, err, c.want)
		}
	}
}

func TestTheModelKnowsWhatWasCopied(t *testing.T) {
	s := strings.Fields
	for _, c := range []struct {
		name           string
		got            []string
		sure, doubtful [][]string
		fine           bool
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
		if why := explain(c.got, c.sure, c.doubtful); (why == "") != c.fine {
			t.Errorf("%s: %q", c.name, why)
		}
	}
}

func TestTheModelCountsWhatArrived(t *testing.T) {
	a := newAccount("alice")
	for _, status := range []string{"OK", "OK", "NO", ""} {
		a.appendDone(status)
	}
	for n, fine := range map[int]bool{1: false, 2: true, 3: true, 4: false} {
		if err := a.arrivals(n); (err == nil) != fine {
			t.Errorf("%d messages: %v", n, err)
		}
	}
}
