package command

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"imapgate/internal/imap"
)

// formatProperties lists the properties that are not their zero value.
func formatProperties(f Properties) string {
	var s strings.Builder
	add := func(on bool, word string) {
		if on {
			s.WriteString(" " + word)
		}
	}
	add(true, []string{"sync", "none", "translate", "drop"}[f.ExpungePolicy])
	add(f.Retryable, "retry")
	add(f.Pins, "pin")
	add(f.Mailbox != "", fmt.Sprintf("%q", f.Mailbox))
	add(f.Set != nil, string(f.Set))
	add(f.UsesNumbers, "numbers")
	add(f.EnablesCondstore, "condstore")
	add(f.HasQresync, "qresync")
	add(f.HasUnchangedSince, "unchanged")
	add(f.SavesResult, "saves")
	add(f.UsesSavedResult, "$")
	add(f.RequestsUpdates, "updates")
	return s.String()[1:]
}

func checkProperties(t *testing.T, cases map[string]string) {
	t.Helper()
	for line, want := range cases {
		f, err := Parse([]byte("a " + line + "\r\n"))
		if got := formatProperties(f); err != nil || got != want {
			t.Errorf("%q: %s, %v; want %s", line, got, err, want)
		}
	}
}

// checkSyntaxError verifies the properties of commands that cannot be parsed.
func checkSyntaxError(t *testing.T, want string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		f, err := Parse([]byte("a " + line + "\r\n"))
		if got := formatProperties(f); !errors.Is(err, ErrSyntax) || got != want {
			t.Errorf("%q: %s, %v; want %s", line, got, err, want)
		}
	}
}

func TestCommandsWithIrrelevantArguments(t *testing.T) {
	checkProperties(t, map[string]string{
		"NOOP": "sync retry", "CAPABILITY": "sync", "CHECK": "sync retry", "EXPUNGE": "sync", "LOGOUT": "drop", "IDLE": "sync retry",
		"CLOSE": "drop", "UNSELECT": "drop retry", "ID (\"name\" \"LOGOUT\")": "sync", "LANGUAGE de": "sync pin", "COMPARATOR": "sync pin",
		"LSUB \"\" \"(\"": "sync retry", "GETQUOTAROOT INBOX": "sync retry", "SETACL x y +l": "sync retry", "UIDBATCHES 100": "sync retry",
		"NOTIFY NONE": "sync", "notify none": "sync", "NOTIFY SET (SELECTED (MessageNew))": "sync pin", "NOTIFY NONE x": "sync pin",
		"NOTIFY": "sync pin", "NOTIFY \"NONE\"": "sync pin", "CANCELUPDATE \"a\"": "none", "XSTARTTIMING": "none pin numbers",
		"STARTTLS": "sync", "LOGIN a {3+}\r\nb c": "sync", "AUTHENTICATE PLAIN =": "sync", "COMPRESS DEFLATE": "sync",
	})
	checkSyntaxError(t, "sync", "LOGOUT now", "IDLE {0+}\r\n")
	checkSyntaxError(t, "sync pin", "CLOSE x", "UNSELECT x")
}

func TestMailboxesAreDecoded(t *testing.T) {
	for args, want := range map[string]string{
		"INBOX": "INBOX", "inbox": "INBOX", "Inbox": "INBOX", "\"iNBOX\"": "INBOX", "{5}\r\ninbox": "INBOX",
		"INBOX/a": "INBOX/a", "inbox/a": "inbox/a", "NIL": "NIL", "nil": "nil", "\"NIL\"": "NIL", "&AOk-": "&AOk-", "\"&AOk- b\"": "&AOk- b",
		"\"a\\\"b\\\\c\"": "a\"b\\c", "\"\"": "", "{0}\r\n": "", "{0+}\r\n": "", "{3+}\r\n\r\n)": "\r\n)", "~{2}\r\nab": "ab",
		"{11}\r\nx LOGOUT\r\n.": "x LOGOUT\r\n.", "\"a\r\nLOGOUT\"": "!", "\"\xc3\xa9\"": "é", "a]b[": "a]b[", "foo/": "foo/",
		"{1}\r\n\x00": "!", "\xc3\xa9": "!", "a*": "!", "a%": "!", "a\\b": "!", "(a)": "!", "a\"b\"": "!", "\"a\\b\"": "!", "\"a": "!",
		"{1}x": "!", "{01}\r\na": "!", "{}\r\n": "!", "{+}\r\n": "!", "{9999999999}\r\n": "!", "{99999999999999999999}\r\na": "!",
		"{1-}\r\na": "!", "{2}\r\n": "!", "~a{1}\r\na": "!", "{1}\r\nab": "!", "\"a\"b": "!", " a": "!", "": "!", "a ": "!",
	} {
		f, err := Parse([]byte("a SELECT " + args + "\r\n"))
		if want == "!" {
			if !errors.Is(err, ErrSyntax) || f.Mailbox != "" || !f.Pins || f.ExpungePolicy != FlushExpunges {
				t.Errorf("%q: %+v, %v", args, f, err)
			}
			continue
		}
		if err != nil || f.Mailbox != want {
			t.Errorf("%q: %q, %v", args, f.Mailbox, err)
		}
		status, err := Parse([]byte("a STATUS " + args + " ()\r\n"))
		if err != nil || status.Mailbox != want {
			t.Errorf("STATUS %q: %q, %v", args, status.Mailbox, err)
		}
	}
	checkProperties(t, map[string]string{
		"CREATE x (USE (\\Drafts))":        `sync "x"`,
		"DELETE {1}\r\nx":                  `sync "x"`,
		"RENAME inbox {3}\r\n\"(\\":        `sync "INBOX"`,
		"RENAME \"a b\" c":                 `sync "a b"`,
		"EXAMINE \"LOGOUT\"":               `drop retry "LOGOUT"`,
		"SELECT {17}\r\nx (QRESYNC (1 2))": `drop retry "x (QRESYNC (1 2))"`,
	})
}

func TestSelectParametersChangeTheConnection(t *testing.T) {
	checkProperties(t, map[string]string{
		"SELECT a (CONDSTORE)":     `drop retry "a" condstore`,
		"examine a (condstore)":    `drop retry "a" condstore`,
		"SELECT a (QRESYNC (1 2))": `drop retry "a" condstore qresync`,
		"SELECT a (QRESYNC (67890007 90060115194045000 41:211,214:541 (1,5 2,6)))": `drop retry "a" condstore qresync`,
		"SELECT a (CONDSTORE QRESYNC (1 2))":                                       `drop retry "a" condstore qresync`,
		"SELECT a (QRESYNC (1 2) CONDSTORE)":                                       `drop retry "a" condstore qresync`,
		"SELECT a (ANNOTATE)":                                                      `drop retry pin "a"`,
		"SELECT a (CONDSTORE ANNOTATE)":                                            `drop retry pin "a" condstore`,
		"SELECT a ()":                                                              `drop retry "a"`,
		"SELECT \"(CONDSTORE)\"":                                                   `drop retry "(CONDSTORE)"`,
		"SELECT {12}\r\n (CONDSTORE)":                                              `drop retry " (CONDSTORE)"`,
	})
	checkSyntaxError(t, "sync pin", "SELECT a CONDSTORE", "SELECT a (CONDSTORE", "SELECT a (CONDSTORE))", "SELECT a (\"CONDSTORE\")", "SELECT a (QRESYNC 1 2)",
		"SELECT a (QRESYNC)", "SELECT a ( CONDSTORE)", "SELECT a (CONDSTORE) x", "SELECT a  (CONDSTORE)", "SELECT a(CONDSTORE)", "SELECT a (X (CONDSTORE))")
}

func TestRequestingModSequencesEnablesCondstore(t *testing.T) {
	checkProperties(t, map[string]string{
		"STATUS a (MESSAGES UIDNEXT)":              `sync retry "a"`,
		"STATUS a (MESSAGES highestmodseq)":        `sync retry "a" condstore`,
		"STATUS \"HIGHESTMODSEQ\" (MESSAGES)":      `sync retry "HIGHESTMODSEQ"`,
		"STATUS {15}\r\n(HIGHESTMODSEQ) (UIDNEXT)": `sync retry "(HIGHESTMODSEQ)"`,
		"LIST \"\" %":                                                             "sync retry",
		"LIST \"\" HIGHESTMODSEQ":                                                 "sync retry",
		"LIST RETURN (HIGHESTMODSEQ)":                                             "sync retry",
		"LIST \"\" * RETURN (STATUS (UIDNEXT) CHILDREN)":                          "sync retry",
		"LIST \"\" * return (CHILDREN status (highestmodseq))":                    "sync retry condstore",
		"LIST (SUBSCRIBED) \"\" (\"a\" {1}\r\nb) RETURN (STATUS (HIGHESTMODSEQ))": "sync retry condstore",
		"LIST \"\" \"RETURN (STATUS (HIGHESTMODSEQ))\"":                           "sync retry",
	})
	checkSyntaxError(t, "sync pin", "STATUS a", "STATUS a HIGHESTMODSEQ", "STATUS a (\"HIGHESTMODSEQ\")", "STATUS a (UIDNEXT) x", "STATUS a ((HIGHESTMODSEQ))",
		"LIST \"\" \"*", "LIST (", "LIST  \"\" *")
}

func TestFetchNamesMessagesByNumber(t *testing.T) {
	checkProperties(t, map[string]string{
		"FETCH 1 (FLAGS)":                                 "none retry 1 numbers",
		"fetch 1,3:5,* flags":                             "none retry 1,3:5,* numbers",
		"FETCH *:4294967295 ALL":                          "none retry *:4294967295 numbers",
		"FETCH $ (FLAGS)":                                 "none retry pin numbers $",
		"UID FETCH $ (FLAGS)":                             "sync retry pin $",
		"UID FETCH 1:* (FLAGS)":                           "sync retry 1:*",
		"FETCH 1 (MODSEQ)":                                "none retry 1 numbers condstore",
		"FETCH 1 modseq":                                  "none retry 1 numbers condstore",
		"UID FETCH 1:* (FLAGS) (CHANGEDSINCE 5)":          "sync retry 1:* condstore",
		"UID FETCH 1:* (FLAGS) (CHANGEDSINCE 5 VANISHED)": "sync retry 1:* condstore",
		"UID FETCH 1:* (FLAGS) (PARTIAL -1:-100)":         "sync retry 1:*",
		"FETCH 1 BODY[HEADER.FIELDS (MODSEQ)]":            "none retry 1 numbers",
		"FETCH 1 (BODY.PEEK[1.HEADER.FIELDS.NOT (MODSEQ \"X]\" X] {9}\r\n)] MODSEQ CHANGEDSINCE)]<0.100> UID)": "none retry 1 numbers",
		"FETCH 1 (BODY[HEADER.FIELDS (DATE)] MODSEQ)":                                                          "none retry 1 numbers condstore",
		"FETCH 1 (BODY[HEADER.FIELDS (DATE)]<1.2> MODSEQ)":                                                     "none retry 1 numbers condstore",
		"FETCH 1 (BODY[TEXT]<0.5> BINARY.SIZE[1.2] X-GM-LABELS PREVIEW (LAZY))":                                "none retry 1 numbers",
		"FETCH 1 (BODY[] MODSEQ)":                    "none retry 1 numbers condstore",
		"CONVERT 1:2 (\"text/plain\") BINARY[1]":     "none retry 1:2 numbers",
		"UID CONVERT 1:2 (\"text/plain\") BINARY[1]": "sync retry 1:2",
		"UID EXPUNGE 3:5":                            "sync retry 3:5",
		"UID EXPUNGE $":                              "sync retry pin $",
	})
	checkSyntaxError(t, "none pin numbers", "FETCH", "FETCH 1", "FETCH 0 FLAGS", "FETCH 01 FLAGS", "FETCH 4294967296 FLAGS", "FETCH 1: FLAGS", "FETCH 1, FLAGS",
		"FETCH ,1 FLAGS", "FETCH 1:2:3 FLAGS", "FETCH 1,$ FLAGS", "FETCH \"1\" FLAGS", "FETCH {1}\r\n1 FLAGS", "FETCH  1 FLAGS", "FETCH 1  FLAGS",
		"FETCH 1 (\"MODSEQ\")", "FETCH 1 ({6}\r\nMODSEQ)", "FETCH 1 (FLAGS", "FETCH 1 FLAGS)", "FETCH 1 ( FLAGS)", "FETCH 1 (BODY[HEADER.FIELDS (MODSEQ)",
		"FETCH 1 (BODY[HEADER.FIELDS (A) MODSEQ)", "FETCH 1 (BODY[ MODSEQ)", "FETCH 1 FLAGS\r\nb LOGOUT", "FETCH 1 \"FLAGS", "FETCH ** FLAGS",
		"FETCH 1 "+strings.Repeat("(", maxDepth+1)+strings.Repeat(")", maxDepth+1), "FETCH 1"+strings.Repeat(",1", imap.MaxRanges)+" FLAGS")
	checkSyntaxError(t, "sync pin", "UID FETCH", "UID FETCH x FLAGS", "UID EXPUNGE", "UID FETCH 1 (FLAGS")
}

func TestStoreWithUnchangedSinceIsNotRetryable(t *testing.T) {
	checkProperties(t, map[string]string{
		"STORE 1 FLAGS ()":                                    "none retry 1 numbers",
		"STORE 1:2 +FLAGS.SILENT \\Deleted $Junk":             "none retry 1:2 numbers",
		"UID STORE 1 -FLAGS (\\Seen UNCHANGEDSINCE)":          "sync retry 1",
		"STORE 1 (UNCHANGEDSINCE 5) FLAGS (\\Seen)":           "none 1 numbers condstore unchanged",
		"UID STORE 1 (unchangedsince 5) +FLAGS.SILENT (x)":    "sync 1 condstore unchanged",
		"STORE 1 +X-GM-LABELS (\"(UNCHANGEDSINCE\" {1}\r\n))": "none retry 1 numbers",
		"STORE $ +FLAGS (\\Seen)":                             "none retry pin numbers $",
	})
	checkSyntaxError(t, "none pin numbers", "STORE 1", "STORE 1 (\"UNCHANGEDSINCE\" 5) FLAGS x", "STORE 1 (UNCHANGEDSINCE 5)", "STORE 1 (UNCHANGEDSINCE (5)) FLAGS x",
		"STORE 1 \"FLAGS\" x", "STORE x FLAGS y", "STORE 1 FLAGS (x")
}

func TestMessageNumbersBecomeUIDs(t *testing.T) {
	for line, want := range map[string]string{
		"a COPY 1:3 x\r\n":                    "a UID COPY 7,9:10 x\r\n",
		"a move 2,* \"a\\\"1:3\"\r\n":         "a UID move 7,9:10 \"a\\\"1:3\"\r\n",
		"1 COPY 1 {1+}\r\n1\r\n":              "1 UID COPY 7,9:10 {1+}\r\n1\r\n",
		"COPY COPY 1 {0}\r\n\r\n":             "COPY UID COPY 7,9:10 {0}\r\n\r\n",
		"a REPLACE 4 x (\\Seen) {9}\r\n":      "a UID REPLACE 7,9:10 x (\\Seen) {9}\r\n",
		"a REPLACE * {1}\r\n":                 "a UID REPLACE 7,9:10 {1}\r\n",
		"a REPLACE 4 {1}\r\nx {3}\r\nabc\r\n": "a UID REPLACE 7,9:10 {1}\r\nx {3}\r\nabc\r\n",
	} {
		f, err := Parse([]byte(line))
		got, ok := RewriteAsUID([]byte(line), f, "7,9:10")
		if err != nil || !ok || !f.UsesNumbers || f.Retryable || string(got) != want {
			t.Errorf("%q: %q, %v, %v", line, got, ok, err)
		}
	}
	for _, line := range []string{"a COPY 1", "a COPY 1:3 x y", "a COPY 1:3 (x)", "a COPY x y", "a COPY \"1\" y", "a COPY 1  y", "a COPY 1 y ", "a COPY 1 a*",
		"a COPY 1 \"y", "a COPY 1,,2 y", "a COPY 1 {3}\r\nab", "a COPY $ y", "a UID COPY 1 y", "a REPLACE 1:2 x {3}", "a REPLACE 1,2 x {3}", "a REPLACE x y {1}",
		"a REPLACE $ x {3}", "a UID REPLACE 1 x {3}", "a FETCH 1 FLAGS", "a NOOP", "a REPLACE 1", "a REPLACE 1 (x)"} {
		whole := []byte(line + "\r\n")
		f, _ := Parse(whole)
		if got, ok := RewriteAsUID(whole, f, "7"); ok || got != nil || f.ExpungePolicy == TranslateNumbers {
			t.Errorf("%q became %q, %+v", line, got, f)
		}
	}
	checkSyntaxError(t, "none pin numbers", "COPY 1:3 x y", "MOVE 1", "REPLACE 1:2 x {3}")
	checkProperties(t, map[string]string{"COPY $ y": "none pin numbers $", "UID MOVE 1:* {1}\r\ny": "sync 1:*", "UID REPLACE 5 x {3}": `sync "x" 5`})
}

func TestFirstLineOfStreamedCommandIsEnough(t *testing.T) {
	checkProperties(t, map[string]string{
		"APPEND x {300}":                         `sync "x"`,
		"APPEND inbox (\\Seen) \"1-Jan\" ~{3+}":  `sync "INBOX"`,
		"APPEND {5}":                             "sync",
		"APPEND {5+}":                            "sync",
		"APPEND x CATENATE (URL \"/x\" TEXT {3}": `sync "x"`,
		"APPEND {1}\r\nx {3}":                    `sync "x"`,
		"APPEND {9}\r\nx":                        "sync",
	})
	checkSyntaxError(t, "sync pin", "APPEND", "APPEND (x)", "APPEND {x}", "APPEND \"x", "UID REPLACE x y {3}")
}

func TestStringsAreNeverKeywords(t *testing.T) {
	checkProperties(t, map[string]string{
		"UID SEARCH SUBJECT \"$ 1:3 RETURN (SAVE) MODSEQ 5\"": "sync retry",
		"UID SEARCH SUBJECT {13}\r\n1:3\r\nMODSEQ 5":          "sync retry",
		"UID SEARCH SUBJECT \"a\\\" 1:3 MODSEQ 5 \\\\\" SEEN": "sync retry",
		"UID SEARCH SUBJECT {0}\r\n SEEN":                     "sync retry",
		"RENAME {11}\r\nx\r\na LOGOUT {8+}\r\nb\r\nclose":     `sync "x\r\na LOGOUT"`,
	})
	checkSyntaxError(t, "none pin numbers", "UID SEARCH SUBJECT \"x\\\" 1:3", "UID SEARCH SUBJECT {4}\r\n1:3", "UID SEARCH SUBJECT {2}\r\nabc")
}

func TestParseAllocatesNothing(t *testing.T) {
	for _, line := range []string{"a NOOP", "a FETCH 1:* (FLAGS BODY.PEEK[HEADER.FIELDS (DATE)])", "a UID STORE 1 +FLAGS (\\Seen)", "a COPY 1 {40}\r\n" + strings.Repeat("x", 40),
		"a UID SEARCH RETURN (MIN) OR NOT (1:3) FROM \"" + strings.Repeat("x", 99) + "\"", "a SELECT inbox", "a LIST \"\" *", "a XUNKNOWN", "a FETCH \"", "a UID SORT (DATE) UTF-8 ALL"} {
		raw := []byte(line + "\r\n")
		if n := testing.AllocsPerRun(100, func() { _, _ = Parse(raw) }); n != 0 {
			t.Errorf("%q: %v allocations", line, n)
		}
		if n := testing.AllocsPerRun(100, func() { _, _ = Lookup(raw[:len(line)]) }); n != 0 && !bytes.Contains(raw[:len(line)], []byte("\r\n")) {
			t.Errorf("%q: Lookup: %v allocations", line, n)
		}
	}
}

func BenchmarkParse(b *testing.B) {
	for _, line := range []string{"a1 NOOP\r\n", "a1 FETCH 1:* (UID FLAGS)\r\n", "a1 UID SEARCH UNSEEN NOT DELETED\r\n"} {
		b.Run(line[:len(line)-2], func(b *testing.B) {
			raw := []byte(line)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Parse(raw); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
