package command

import (
	"strings"
	"testing"

	"imapgate/internal/imap"
)

// Each case has a line that announces a literal, the backend's capabilities, and the result: ""
// if the line must not be sent, "synced" if it may be sent with a synchronizing literal,
// "plain" if it may be sent without waiting.
func TestFirstAppendLineIsCheckedAgainstTheGrammar(t *testing.T) {
	const all = "IMAP4rev1 CATENATE UTF8=ACCEPT ANNOTATE-EXPERIMENT-1"
	for _, c := range []struct{ line, caps, want string }{
		{"a APPEND INBOX {3+}", "", "plain"},
		{"a append \"Sent Items/2024\" (\\Seen \\answered $Forwarded NonJunk) {3+}", "", "plain"},
		{"a APPEND INBOX () \" 7-Jul-2024 02:44:25 -0700\" {3+}", "", "plain"},
		{"a APPEND INBOX \"17-Jul-2024 02:44:25 +0000\" {3}", "", "plain"},
		{"a APPEND INBOX ~{3+}", "", "synced"},
		{"a APPEND NIL {3+}", "", "synced"},
		{"a APPEND \"\" {3+}", "", "synced"},
		{"a APPEND &AOQ- {3+}", "", "synced"},
		{"a APPEND \xe4 {3+}", "", "synced"},
		{"a APPEND \"a\\\"b\" {3+}", "", "synced"},
		{"a APPEND {5+}", "", "synced"},
		{"a APPEND " + strings.Repeat("x", 201) + " {3+}", "", "synced"},
		{"a APPEND INBOX (\\Forwarded) {3+}", "", "synced"},
		{"a APPEND INBOX (\\Recent) {3+}", "", "synced"},
		{"a APPEND INBOX (" + strings.Repeat("x ", 16) + "y) {3+}", "", "synced"},
		{"a APPEND INBOX (" + strings.Repeat("x", 51) + ") {3+}", "", "synced"},
		{"a APPEND INBOX \"77-Jul-2024 02:44:25 -0700\" {3+}", "", "synced"},
		{"a APPEND INBOX \"17-Jul-1969 02:44:25 -0700\" {3+}", "", "synced"},
		{"a APPEND INBOX \"never\" {3+}", "", "synced"},
		{"a REPLACE 1 INBOX {3+}", "", "synced"},
		{"a REPLACE 1 {5+}", "", "synced"},
		{"a UID REPLACE 1 INBOX (\\Seen) {3+}", "", "synced"},
		{"a APPEND INBOX CATENATE (TEXT {3+}", all, "synced"},
		{"a APPEND INBOX (\\Seen) \"x\" CATENATE (URL \"/a\" URL b TEXT {3+}", all, "synced"},
		{"a APPEND INBOX CATENATE (URL {3+}", all, "synced"},
		{"a APPEND INBOX CATENATE (URL \"/a\") {3+}", all, "synced"},
		{"a APPEND INBOX UTF8 (~{3+}", all, "synced"},
		{"a APPEND INBOX ANNOTATION (/comment (value.priv \"x\")) {3+}", all, "synced"},

		{"a APPEND INBOX CATENATE (TEXT {3+}", "", ""},
		{"a APPEND INBOX UTF8 (~{3+}", "", ""},
		{"a APPEND INBOX ANNOTATION (/comment (value.priv \"x\")) {3+}", "", ""},
		{"a APPEND INBOX CATENATE (FROB {3+}", all, ""},
		{"a APPEND INBOX CATENATE (TEXT \"x\" {3+}", all, ""},
		{"a APPEND INBOX CATENATE ({3+}", all, ""},
		{"a APPEND INBOX CATENATE {3+}", all, ""},
		{"a APPEND INBOX CATENATE (URL (x) {3+}", all, ""},
		{"a APPEND INBOX ANNOTATION (/comment {3+}", all, ""},
		{"a APPEND INBOX UTF8 {3+}", all, ""},
		{"a APPEND INBOX x {3+}", all, ""},
		{"a APPEND INBOX FROB (x) {3+}", all, ""},
		{"a APPEND Sent Items {3+}", all, ""},
		{"a APPEND INBOX(\\Seen) {3+}", all, ""},
		{"a APPEND INBOX{3+}", all, ""},
		{"a APPEND  INBOX {3+}", all, ""},
		{"a APPEND INBOX  {3+}", all, ""},
		{"a APPEND  {5+}", all, ""},
		{"a APPEND (INBOX) {3+}", all, ""},
		{"a APPEND INBOX (\\Seen {3+}", all, ""},
		{"a APPEND INBOX ((\\Seen)) {3+}", all, ""},
		{"a APPEND INBOX (\\Seen)) {3+}", all, ""},
		{"a APPEND INBOX (\"\\\\Seen\") {3+}", all, ""},
		{"a APPEND INBOX (\\Seen) (\\Seen) {3+}", all, ""},
		{"a APPEND INBOX \"x\" \"y\" {3+}", all, ""},
		{"a APPEND INBOX \"x\" (\\Seen) {3+}", all, ""},
		{"a REPLACE INBOX {3+}", all, "synced"}, // the set is INBOX and the mailbox is a literal
		{"a REPLACE (1) INBOX {3+}", all, ""},
		{"a REPLACE {3+}", all, ""},
	} {
		var u AppendChecker
		got, line := "", []byte(c.line+"\r\n")
		if u.CheckFirstLine(line, imap.ParseCaps(c.caps)) {
			got = "synced"
		}
		if IsPlainAppend(line) {
			if got == "" {
				t.Errorf("%q is plain but may not be sent", c.line)
			}
			got = "plain"
		}
		if got != c.want {
			t.Errorf("%q with %q is %q, want %q", c.line, c.caps, got, c.want)
		}
	}
}

func TestNextAppendLineIsCheckedAgainstTheGrammar(t *testing.T) {
	const all = "IMAP4rev1 CATENATE UTF8=ACCEPT"
	for _, c := range []struct {
		lines []string
		want  bool // whether the last line may be sent
	}{
		{[]string{"a APPEND {5+}", " {3+}"}, true},
		{[]string{"a APPEND {5+}", " (\\Seen) \"x\" {3+}", " {3+}", " (x) ~{3+}"}, true},
		{[]string{"a APPEND {5+}", " x {3+}"}, false},
		{[]string{"a APPEND {5+}", "{3+}"}, false},
		{[]string{"a APPEND {5+}", "(\\Seen) {3+}"}, false},
		{[]string{"a APPEND INBOX {3+}", ") {3+}"}, false},
		{[]string{"a APPEND INBOX {3+}", " CATENATE (TEXT {3+}", " URL x TEXT {3+}", ") {3+}"}, true},
		{[]string{"a APPEND INBOX CATENATE (TEXT {3+}", " (\\Seen) {3+}"}, false},
		{[]string{"a APPEND INBOX CATENATE (TEXT {3+}", "TEXT {3+}"}, false},
		{[]string{"a APPEND INBOX CATENATE (TEXT {3+}", " TEXT {3+}", " URL {3+}", ") UTF8 (~{3+}", ") {3+}"}, true},
		{[]string{"a APPEND INBOX UTF8 (~{3+}", " {3+}"}, false},
		{[]string{"a REPLACE 1 {5+}", " (\\Seen) {3+}"}, true},
	} {
		var u AppendChecker
		got := u.CheckFirstLine([]byte(c.lines[0]+"\r\n"), imap.ParseCaps(all))
		for i, line := range c.lines[1:] {
			if !got {
				t.Fatalf("%q: line %d may not be sent", c.lines, i+1)
			}
			got = u.CheckNextLine([]byte(line + "\r\n"))
		}
		if got != c.want {
			t.Errorf("%q: the last line may be sent: %v", c.lines, got)
		}
	}
}

// FuzzAppendChecker verifies that no line causes a panic, and that a plain line follows the
// grammar.
func FuzzAppendChecker(f *testing.F) {
	f.Add("a APPEND INBOX (\\Seen) \"17-Jul-2024 02:44:25 -0700\" {3+}", ") CATENATE (URL x TEXT {3}")
	f.Add("a REPLACE 1 {3+}", " UTF8 (~{3}")
	caps := imap.ParseCaps("CATENATE UTF8=ACCEPT ANNOTATE-EXPERIMENT-1")
	f.Fuzz(func(t *testing.T, first, next string) {
		var u AppendChecker
		ok := u.CheckFirstLine([]byte(first+"\r\n"), caps)
		if IsPlainAppend([]byte(first+"\r\n")) && strings.HasSuffix(first, "}") && !ok {
			t.Errorf("%q is plain but may not be sent", first)
		}
		u.CheckNextLine([]byte(next + "\r\n"))
	})
}

// Dovecot answers some dates with BAD before it has read the message, and then reads the
// message as commands. Such a date must not be sent with a non-synchronizing literal.
func TestPlainDateMatchesTheGrammarExactly(t *testing.T) {
	for date, want := range map[string]bool{
		"17-Jul-2024 02:44:25 -0700": true, " 7-Jul-2024 02:44:25 +0000": true, "29-Feb-2024 23:59:59 +1400": true,
		"17-Jul-2024  02:44:25 -0700": false, "17-Jul-2024 02:44:25  -0700": false, "7-Jul-2024 02:44:25 -0700": false,
		"07-Jul-2024 02:44:25 -0700": false, "17-jul-2024 02:44:25 -0700": false, "17-Jul-2024 02:44:25.5 -0700": false,
		"17-Jul-2024 2:44:25 -0700": false, "17-Jul-2024 02:44:60 -0700": false, "30-Feb-2024 02:44:25 -0700": false,
		"17-Jul-2024 02:44:25 +1401": false, "17-Jul-2024 02:44:25 -2300": false, "17-Jul-1969 02:44:25 -0700": false,
		"17-Jul-2038 02:44:25 -0700": false, "never": false, "": false,
	} {
		if got := IsPlainAppend([]byte(`a APPEND INBOX (\Seen) "` + date + "\" {3+}\r\n")); got != want {
			t.Errorf("%q is plain: %v", date, got)
		}
	}
}
